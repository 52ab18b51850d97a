"""Finding the manifests of a store, joining them, and refusing those that cannot be true.

A manifest is sealed with its own digest, which anyone can make: names, shapes and shard indexes are hostile
until they were checked here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

from gdist.core.box import Box, tiles_of
from gdist.core.layout import CODECS
from gdist.core.mesh import HostGroup, slab_indices
from gdist.core.store_manifest import (
    MANIFEST_NAME,
    StoreManifest,
    StoreTensor,
    manifest_name,
    parse_store_manifest,
)
from gdist.core.store_parts import join_manifests
from gdist.core.tensor import check_name
from gdist.core.view import VIEW, is_block
from gdist.errors import CorruptError, GdistError, RequestError
from gdist.stores.faults import copy_hint, raise_faults

MOST_CHUNKS = 2**32  # a shard with more inner chunks than this is no shard of ours


class Files(Protocol):
    """The small files of a store, wherever it is."""

    where: str

    def read(self, key: str) -> bytes | None:
        """The bytes under a key, `/` between its parts; None when there are none."""
        ...

    def manifests(self) -> Sequence[str]:
        """Names of the manifests at the root."""
        ...

    def unfinished(self) -> str:
        """What began here and is not known to be done, `fetch` or `reshard`; "" when nothing did."""
        ...


@dataclass(frozen=True, slots=True)
class Manifests:
    """What a store says of itself: `joined` from the parts of hosts `present`, of `count` that wrote it.

    Where parts lie in several directories, `places` has the number of that of each shard which is not in the
    first.
    """

    joined: StoreManifest
    present: tuple[int, ...]
    count: int
    places: Mapping[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)

    @property
    def absent(self) -> tuple[int, ...]:
        """Hosts whose part of the store is not here."""
        return tuple(sorted(set(range(self.count)) - set(self.present)))

    def writers(self, tensor: StoreTensor, index: tuple[int, ...]) -> tuple[int, ...]:
        """The hosts that keep a shard: those with a device whose slab meets it."""
        box, mesh, slab = tensor.grid.box_of(index), self.joined.mesh, tensor.grid.slab
        ranges = (range(a // s, (b - 1) // s + 1) for a, b, s in zip(box.start, box.stop, slab, strict=True))
        met = set(itertools.product(*ranges))
        hosts = (HostGroup(host, self.count) for host in range(self.count))
        return tuple(
            host.index
            for host in hosts
            if met & slab_indices(mesh, tensor.spec, box.ndim, host.devices(mesh))
        )

    def unlisted(self, tensor: StoreTensor, index: tuple[int, ...]) -> GdistError:
        """Why no manifest here lists a shard: another host has it, or one of those here should."""
        writers = self.writers(tensor, index)
        if set(writers) & set(self.present):
            return CorruptError(
                f"shard {index} of {tensor.name!r} is in no manifest, host {writers[0]} should have it",
                hint="delete this store, and fetch it again",
                tensor=tensor.name,
                shard=index,
            )
        names = " or ".join(manifest_name(HostGroup(host, self.count)) for host in writers)
        return RequestError(
            f"shard {index} of {tensor.name!r} was written by host {' or '.join(map(str, writers))} of "
            f"{self.count}, whose part of the store is not here",
            hint=copy_hint([names]),
            tensor=tensor.name,
            shard=index,
            hosts=writers,
            manifests=names,
        )

    def check_listed(self, requests: Iterable[tuple[StoreTensor, Box]]) -> None:
        """That every shard that meets the boxes is in a manifest.

        Raises:
            RequestError: when another host has some of them.
            CorruptError: when a host that is here should.
        """
        missing = {
            (tensor.name, index): (tensor, index)
            for tensor, box in requests
            for index, _ in tiles_of(box, tensor.grid.shard)
            if index not in tensor.shards
        }
        raise_faults([self.unlisted(tensor, index) for tensor, index in missing.values()])


def read_manifests(files: Files, *more: Files) -> Manifests:
    """The manifest of a store, joined from its hosts' parts where there are several, in several places too.

    Raises:
        RequestError: when there is none, or the parts are of different jobs.
        CorruptError: when one is damaged or cannot be true.
    """
    found = [_parts_of(place) for place in (files, *more)]
    parts = [part for there in found for part in there]
    counts = sorted({part.host.count for part in parts})
    if len(counts) > 1:
        where = " and ".join(place.where for place in (files, *more))
        raise RequestError(
            f"parts of jobs with {', '.join(map(str, counts))} hosts lie in {where}",
            hint="join only directories that one job wrote",
        )
    present = tuple(sorted({part.host.index for part in parts}))
    return Manifests(join_manifests(parts), present, counts[0], _places(found))


def _parts_of(files: Files) -> list[StoreManifest]:
    names = files.manifests()
    if MANIFEST_NAME in names:
        names = [MANIFEST_NAME]
    if not names:
        raise _no_store(files)
    parts = []
    for name in names:
        data = files.read(name)
        if data is None:
            raise _no_store(files)
        parts.append(parse_part(data, name, f"{files.where}/{name}"))
    return parts


def _places(found: Sequence[Iterable[StoreManifest]]) -> dict[tuple[str, tuple[int, ...]], int]:
    """Where each shard lies that is not in the first place; the earlier where it is in several."""
    places: dict[tuple[str, tuple[int, ...]], int] = {}
    for number, parts in reversed(list(enumerate(found))):
        for tensor in (tensor for part in parts for tensor in part.tensors):
            for index in tensor.shards:
                places[tensor.name, index] = number
    return {key: number for key, number in places.items() if number}


def parse_part(data: bytes, name: str, where: str) -> StoreManifest:
    """The manifest that goes by a name, with everything that a manifest can be checked for.

    Raises:
        RequestError: when a newer gdist wrote it.
        CorruptError: when it is damaged, cannot be true, or belongs to another name.
    """
    try:
        part = parse_store_manifest(data, where)
        check_manifest(part, where)
    except (ArithmeticError, AttributeError, TypeError) as error:  # a zero in a grid, a number for a name
        raise CorruptError(
            f"{where} cannot be true: {error!r}", hint="do not use this store; fetch it again"
        ) from error
    if manifest_name(part.host) != name:
        raise CorruptError(
            f"{where} is the manifest of host {part.host.index} of {part.host.count}",
            hint="give it its own name again",
        )
    return part


def _no_store(files: Files) -> RequestError:
    if began := files.unfinished():
        hint = f"the {began} did not finish; run the same {began} again"
    else:
        hint = hint_of_hosts(files.where, "give the directory that gdist fetch wrote to")
    return RequestError(
        f"{files.where} is not a store: it has no {MANIFEST_NAME}", hint=hint, where=files.where
    )


def hint_of_hosts(where: str, hint: str) -> str:
    """A hint where there is no store; over HTTP, where nothing is listed, also that all hosts' are needed."""
    if not where.startswith(("http://", "https://")):
        return hint
    return f"{hint}; over HTTP, which lists nothing, those of all hosts that wrote a store together"


def check_manifest(manifest: StoreManifest, where: str) -> None:
    """That a manifest's names are safe and its numbers fit each other.

    Raises:
        CorruptError: naming everything that is wrong.
    """
    faults: list[str] = []
    if manifest.codec not in (*CODECS, VIEW):
        faults.append(f"codec {manifest.codec!r} is none of {', '.join((*CODECS, VIEW))}")
    seen: set[str] = set()
    for tensor in manifest.tensors:
        if tensor.name in seen:
            faults.append(f"tensor {tensor.name[:200]!r} is listed twice")
        seen.add(tensor.name)
        fault = tensor_fault(tensor)
        fault = fault or view_fault(tensor, manifest)
        if fault:
            faults.append(fault)
    paths = [file.path for file in (*manifest.assets, *manifest.source_files)]
    paths += [file.path for file in manifest.files]
    faults += [f"file {path[:200]!r} is not a plain relative path" for path in paths if not _plain(path)]
    if faults:
        raise CorruptError(
            f"{where} cannot be true: {'; '.join(faults)}",
            hint="do not use this store; fetch it again",
            faults=tuple(faults),
        )


def tensor_fault(tensor: StoreTensor) -> str:
    """What cannot be true of a tensor's name, grid, or the shards it lists; "" for nothing."""
    grid, pair = tensor.grid, tensor.quantisation
    try:
        check_name(tensor.name)
    except GdistError as error:
        return error.message
    if pair and (tensor.name != f"{pair.pair}.{pair.role}" or pair.role not in ("weight", "scales")):
        return f"tensor {tensor.name!r} is not the {pair.role!r} of {pair.pair!r}"
    shapes = (grid.shard, grid.slab, grid.chunk)
    legal = all(len(shape) == len(grid.shape) and all(size > 0 for size in shape) for shape in shapes)
    chunks = prod(s // c for s, c in zip(grid.shard, grid.chunk, strict=True)) if legal else 0
    if min(grid.shape, default=0) < 0 or not 0 < chunks <= MOST_CHUNKS or (0 in grid.shape and tensor.shards):
        return f"tensor {tensor.name!r} has an impossible grid {grid}"
    for index, digests in tensor.shards.items():
        ranges = zip(index, grid.shards, strict=False)
        if len(index) != len(grid.shards) or not all(0 <= i < n for i, n in ranges):
            return f"shard {index} of {tensor.name!r} is not in its grid of {grid.shards}"
        if len(digests) != chunks:
            return f"shard {index} of {tensor.name!r} has {len(digests)} digests for {chunks} chunks"
    return ""


def view_fault(tensor: StoreTensor, manifest: StoreManifest) -> str:
    """What cannot be true of where a view's tensor lies; "" for nothing, and for tensors of other stores."""
    view, grid = tensor.view, tensor.grid
    if (view is None) != (manifest.codec != VIEW):
        return f"tensor {tensor.name!r} lies {'in no file' if view is None else 'in files of a payload'}"
    if view is None or 0 in grid.shape:
        return ""
    fits = len(view.part) == len(grid.shape) and all(
        part > 0 and size % part == 0 for size, part in zip(grid.shape, view.part, strict=True)
    )
    if not fits or not is_block(view, grid):
        return f"tensor {tensor.name!r} has an impossible grid {grid} of parts {view.part}"
    nbytes = prod(view.part) * tensor.dtype.itemsize
    if len(view.at) != prod(grid.shape) // prod(view.part):
        return f"tensor {tensor.name!r} has {len(view.at)} parts of shape {view.part}"
    for number, offset in view.at:
        if not 0 <= number < len(manifest.files) or not 0 <= offset <= manifest.files[number].nbytes - nbytes:
            return f"tensor {tensor.name!r} lies at {offset} of file {number}, which has no room for it"
    return ""


def _plain(path: str) -> bool:
    parts = path.split("/")
    return "\\" not in path and "\0" not in path and not any(part in ("", ".", "..") for part in parts)
