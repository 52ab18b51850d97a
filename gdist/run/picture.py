"""Who holds what of a tensor, of a source or a store, and what feeds it: `gdist.core.picture` filled in."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gdist import releases
from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.fits import faults_of, fit
from gdist.core.mesh import Mesh, PartitionSpec, split_counts
from gdist.core.picture import (
    Place,
    Region,
    TensorPicture,
    choose_view,
    indices_of,
    most_runs,
    pieces_of_box,
    regions_of,
    shards_of_box,
    side_by_side,
)
from gdist.core.rules import Rule, Rules, complete_mesh, kept_specs, resolve_specs
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.core.tensor import Part, Quantisation, StoredTensor, TensorSpec
from gdist.errors import RequestError
from gdist.run.survey import Survey, survey

if TYPE_CHECKING:
    from gdist.stores.manifests import Manifests

PLACES = 4  # stored runs that a picture names; a tensor saved in slices has one in each of many files
LEAST_PIECE = 2**14  # of BEP 52, and of every torrent that is known
MOST_RUNS = 2**20  # of pieces, for all slabs: some hundred megabytes, some seconds
NEAR = 5
COMPARED = 20_000  # names that are held against a misspelt one


def choose(
    pattern: str, names: Sequence[tuple[str, Quantisation | None]], where: str
) -> tuple[tuple[int, ...], bool]:
    """The tensors that a pattern means, by their place, and whether they are one: a tensor, or a pair.

    The exact name of a tensor or of a pair means just that; else all in whose name, or pair's name, the
    regular expression is found.

    Raises:
        RequestError: when there is none; the hint has names that are near.
    """
    exact = [n for n, (name, pair) in enumerate(names) if pattern in (name, pair.pair if pair else name)]
    found = exact or [
        n
        for n, (name, pair) in enumerate(names)
        if re.search(pattern, name) or (pair and re.search(pattern, pair.pair))
    ]
    if not found:
        known = list(dict.fromkeys(pair.pair if pair else name for name, pair in names[:COMPARED]))
        near = difflib.get_close_matches(pattern, known, NEAR, 0.5)
        near = near or [name for name in known if pattern.casefold() in name.casefold()][:NEAR]
        hint = f"near: {', '.join(near)}" if near else "gdist inspect without --tensor lists them all"
        raise RequestError(f"{where} has no tensor {pattern!r}", hint=hint, near=tuple(near))
    owners = {pair.pair if pair else name for name, pair in (names[n] for n in found)}
    return tuple(found), len(owners) == 1


def pictures_of_survey(
    found: Survey, numbers: Iterable[int], mesh: Mesh | None, rules: Rules | None, hosts: int
) -> tuple[TensorPicture, ...]:
    """Pictures of some tensors of a source; without a mesh, of one device that holds everything.

    Raises:
        RequestError: when the mesh does not divide them, no rule speaks of them, or the hosts do not fit.
    """
    specs = [PartitionSpec()] * len(found.tensors)
    if mesh is not None:
        mesh = complete_mesh(mesh, rules)
        specs = list(resolve_specs(mesh, rules, found.tensors))
    pictures = []
    for number in numbers:
        tensor = found.tensors[number]
        picture = _picture(tensor.spec, mesh or Mesh(), specs[number], hosts, tensor.quantisation)
        pictures.append(_from_payload(picture, tensor, found, pieces=found.kind not in ("files", "arrays")))
    return side_by_side(pictures)


def pictures_of_store(
    store: Manifests, numbers: Sequence[int], mesh: Mesh | None, rules: Rules | None, hosts: int | None
) -> tuple[TensorPicture, ...]:
    """Pictures of some tensors of a store: on its own mesh, or as a load onto another would read it.

    Without rules the other mesh splits tensors as the store is cut, as `gdist.load` does.

    Raises:
        RequestError: when the mesh does not divide them, no rule speaks of them, or the hosts do not fit.
    """
    manifest, pictures = store.joined, []
    layout = _layout_of(manifest) if numbers else None
    for number in numbers:
        tensor = manifest.tensors[number]
        own = TensorSpec(tensor.name, tensor.shape, tensor.dtype, tensor.encoding)
        if mesh is None and rules is None:
            on, spec = manifest.mesh, tensor.spec
        else:
            on = complete_mesh(mesh or manifest.mesh, rules)
            spec = _spec_of(manifest, tensor, on, rules)
        shared_by = hosts or (store.count if mesh is None else 1)
        picture = _picture(own, on, spec, shared_by, tensor.quantisation)
        regions = tuple(_from_shards(region, tensor) for region in picture.regions)
        picture = replace(picture, grid=tensor.grid, regions=regions)
        stored = next((t for t in layout.tensors if t.spec == own), None) if layout else None
        if layout and stored:
            picture = _from_payload(picture, stored, replace(layout, piece_length_assumed=True))
        pictures.append(picture)
    return side_by_side(pictures)


def _picture(
    tensor: TensorSpec, mesh: Mesh, spec: PartitionSpec, hosts: int, quantisation: Quantisation | None
) -> TensorPicture:
    faults = faults_of(mesh, spec, tensor.name, tensor.shape)
    if faults:  # a store's manifest may claim anything
        raise RequestError("; ".join(map(str, faults)), hint="choose a mesh whose axes divide the tensor")
    regions = regions_of(mesh, spec, tensor.shape, hosts)
    view = choose_view(tensor.shape, split_counts(mesh, spec, len(tensor.shape)))
    return TensorPicture(tensor, mesh, spec, hosts, view, regions, quantisation)


def _from_payload(
    picture: TensorPicture, tensor: StoredTensor, found: Survey, *, pieces: bool = True
) -> TensorPicture:
    """The picture with the files that hold the tensor, and the pieces that hold each slab."""
    payload = found.payload
    segments = (s for part in tensor.parts for s in payload.segments(part.extent))
    places = tuple(
        Place(payload.files[s.file].path, s.extent.start, s.extent.length)
        for s in itertools.islice(segments, PLACES)
    )
    picture = replace(picture, places=places, parts=len(tensor.parts))
    if not pieces:
        return picture
    if most_runs(payload, tensor, picture.regions) > MOST_RUNS:
        fine = f"pieces of {payload.piece_length} bytes are too many to list for every slab"
        return replace(picture, notes=(fine,))
    regions = []
    for region in picture.regions:
        runs = pieces_of_box(payload, tensor, region.box)
        stops = (min(stop * payload.piece_length, payload.length) for _, stop in runs)
        nbytes = sum(
            stop - start * payload.piece_length for (start, _), stop in zip(runs, stops, strict=True)
        )
        regions.append(replace(region, pieces=runs, pieces_nbytes=nbytes))
    return replace(
        picture,
        regions=tuple(regions),
        piece_length=payload.piece_length,
        pieces_assumed=found.piece_length_assumed,
    )


def _from_shards(region: Region, tensor: StoreTensor) -> Region:
    shards = shards_of_box(tensor.grid, region.box)
    # A hostile grid may claim more shards than there are atoms; those that are listed can be counted.
    here = shards.size <= len(tensor.shards) and all(index in tensor.shards for index in indices_of(shards))
    return replace(region, shards=shards, here=here)


def _layout_of(manifest: StoreManifest) -> Survey | None:
    """Where the tensors of a store's source lie, when it is a known release.

    The order of its files is then its manifest's, which may not be the torrent's.
    """
    known = releases.find_by_info_hash(str(manifest.source.info_hash))
    length: object = manifest.source.piece_length  # as the manifest has it, which may be anything
    if known is None or not known.whole or not isinstance(length, int) or length < LEAST_PIECE:
        return None
    return survey(known.name, piece_length=length)


def _spec_of(manifest: StoreManifest, tensor: StoreTensor, mesh: Mesh, rules: Rules | None) -> PartitionSpec:
    pair = tensor.quantisation.pair if tensor.quantisation else ""
    halves = [t for t in manifest.tensors if t.quantisation and t.quantisation.pair == pair] or [tensor]
    if rules is None:
        rules = Rules((), (Rule("", tensor.spec),))  # as the store is cut
        halves = [tensor]
    specs = resolve_specs(mesh, rules, [_stored(half) for half in halves])
    return next(spec for half, spec in zip(halves, specs, strict=True) if half.name == tensor.name)


def split_on(
    mesh: Mesh, rules: Rules | None, tensors: Sequence[StoreTensor]
) -> dict[str, tuple[PartitionSpec, tuple[int, ...]]]:
    """The spec of each tensor of a store on a mesh, and what one device holds of it; as the pictures have it.

    Raises:
        RequestError: naming every tensor without a rule, and every one that the mesh does not divide.
    """
    stored = [_stored(tensor) for tensor in tensors]
    if rules is None:
        specs = kept_specs(mesh, zip(stored, (tensor.spec for tensor in tensors), strict=True))
        if not (found := fit(mesh, stored, specs)).ok:
            raise found.error()
    else:
        specs = resolve_specs(mesh, rules, stored)
    split = {}
    for tensor, spec in zip(tensors, specs, strict=True):
        counts = split_counts(mesh, spec, len(tensor.shape))
        split[tensor.name] = spec, tuple(n // count for n, count in zip(tensor.shape, counts, strict=True))
    return split


def _stored(tensor: StoreTensor) -> StoredTensor:
    """The tensor in the terms that rules are written in; where its bytes lie is of no matter there."""
    spec = TensorSpec(tensor.name, tensor.shape, tensor.dtype, tensor.encoding)
    return StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(spec.shape)),), tensor.quantisation)
