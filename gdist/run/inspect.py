"""What a source or a store holds: tensors, their shapes, types, bytes and sharding, and the other files."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from gdist import releases
from gdist.core.grid import GridMaker, held_shape
from gdist.core.magnet import is_magnet
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.picture import TensorPicture
from gdist.core.rename import NamedTensor, RenamePlan, RenameTable, plan_renames
from gdist.core.rules import Rules, complete_mesh, resolve_specs
from gdist.core.select import chosen_names
from gdist.core.store_manifest import StoreTensor
from gdist.core.tensor import Quantisation, StoredTensor
from gdist.errors import RequestError
from gdist.events import Observer
from gdist.kvstore import is_url, local_path
from gdist.run.picture import choose, pictures_of_store, pictures_of_survey, split_on
from gdist.run.survey import Survey, SurveyOptions, is_checkpoint, survey, survey_files

if TYPE_CHECKING:
    from gdist.stores.manifests import Manifests


@dataclass(frozen=True, slots=True)
class InspectOptions:
    """`mesh`, `rules` and `hosts` say how tensors would be split; without them a store's are as it is cut.

    `tensor` is a name, or a regular expression searched in names: what it finds is `Inspection.chosen`. Where
    that is one tensor or one quantised pair there are pictures of it, of a store on another `mesh` too.
    `rename` is a table that tensors are looked up in.
    """

    mesh: Mesh | None = None
    rules: Rules | None = None
    hosts: int | None = None  # None: those that wrote a store, on its own mesh; else one
    tensor: str | None = None
    rename: RenameTable | None = None
    survey: SurveyOptions = field(default_factory=SurveyOptions)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor: `spec` is None where no rule speaks of it, `slab` is what one device holds of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    spec: PartitionSpec | None
    slab: tuple[int, ...] | None
    quantisation: Quantisation | None
    encoding: str = ""  # what the elements stand for where that is not their type ("gguf.q4_0")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file, its bytes, and how many tensors have bytes in it; `kept` is false where it is left out."""

    path: str
    nbytes: int
    tensors: int
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Inspection:
    """What there is; `kind` is "release", "torrent", "files", "arrays" or "store".

    `nbytes` is of all files of a source, of all tensors of a store. `mesh` is that of a store itself, and
    `shown_on` the one that its tensors are told on, where that was asked for. `piece_length` is None where
    there are no pieces or their length is not known. `absent_hosts` have a part of the store that is not
    here. `chosen` are those of `tensors` that were asked for, and `pictures` are of them where they are one.
    `renamed` is what a table makes of all `tensors`.
    """

    kind: str
    name: str
    info_hash: str
    nbytes: int
    piece_length: int | None
    mesh: Mesh | None
    profile: str
    tensors: tuple[TensorInfo, ...]
    files: tuple[FileInfo, ...]
    codec: str = ""
    absent_hosts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    chosen: tuple[TensorInfo, ...] = ()
    pictures: tuple[TensorPicture, ...] = ()
    renamed: RenamePlan | None = None
    shown_on: Mesh | None = None


def inspect(
    source: str | os.PathLike[str],
    options: InspectOptions | None = None,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> Inspection:
    """Looks into a source (as `fetch` takes it), a store (directory or URL), or a local checkpoint.

    Of a torrent only the headers are fetched, and nothing is kept.

    Raises:
        RequestError: when it is none of these, the mesh does not divide its tensors, none has the name, or a
            renaming table does not fit.
        GdistError: when metadata or headers do not come, or cannot be read.
    """
    asked = options or InspectOptions()
    found = look(source, asked.survey, observe=observe, stop=stop)
    if isinstance(found, Survey):
        result = _of_survey(found, asked)
    else:
        result = _of_store(found, asked, os.fspath(source))
    if asked.rename is None:
        return result
    tensors = (NamedTensor(t.name, t.shape, t.dtype, t.quantisation, t.encoding) for t in result.tensors)
    return replace(result, renamed=plan_renames(asked.rename, tensors))


def look(
    source: str | os.PathLike[str],
    options: SurveyOptions,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> Survey | Manifests:
    """What there is: a store's manifests, or what a local checkpoint or a torrent holds.

    Raises:
        RequestError: when it is none of these.
        GdistError: when metadata or headers do not come, or cannot be read.
    """
    text = os.fspath(source)
    if releases.known_release(text) is None:
        if _is_store(text):
            from gdist.stores import files_of
            from gdist.stores.manifests import read_manifests

            _check_described(options, text)
            return read_manifests(files_of(text))
        path = local_path(text)
        if path is not None and path.is_dir():
            from gdist.run.origins import is_directory_of_arrays, survey_arrays  # TensorStore comes with it

            if is_directory_of_arrays(path):
                return survey_arrays(path, options)
        if path is not None and is_checkpoint(path):
            _check_described(options, text)
            return survey_files(path, options)
    return survey(text, options, observe=observe, stop=stop)


def _check_described(options: SurveyOptions, text: str) -> None:
    if options.described:
        raise RequestError(
            f"{text} is no torrent that a manifest could speak of",
            hint="gdist manifest check holds a manifest against files and stores",
        )


def _is_store(text: str) -> bool:
    """True where a manifest of a store lies; a torrent's own addresses are not asked."""
    path = local_path(text)
    if path is not None:
        return path.is_dir() and _has_manifest(text)
    return is_url(text) and not text.endswith(".torrent") and not is_magnet(text) and _has_manifest(text)


def _has_manifest(text: str) -> bool:
    from gdist.stores import files_of  # NumPy comes with it

    files = files_of(text)
    if not files.manifests() and (began := files.unfinished()):
        raise RequestError(
            f"{text} is not complete: a {began} is still to finish there", hint=f"run the {began} again"
        )
    return bool(files.manifests())


def _of_store(found: Manifests, options: InspectOptions, where: str) -> Inspection:
    manifest = found.joined
    names = [t.quantisation.pair if t.quantisation else t.name for t in manifest.tensors]
    selected = chosen_names(names, options.survey.select)
    kept = [number for number, name in enumerate(names) if name in selected]
    tensors = [_kept(manifest.tensors[number], manifest.mesh) for number in kept]
    chosen, one = _choose(tensors, options, where)
    drawn = tuple(kept[number] for number in chosen) if one else ()
    pictures = pictures_of_store(found, drawn, options.mesh, options.rules, options.hosts)
    shown_on = None
    if options.mesh is not None or options.rules is not None:
        shown_on = complete_mesh(options.mesh or manifest.mesh, options.rules)
        if one:  # the others may not fit
            split = {picture.tensor.name: (picture.spec, picture.slab) for picture in pictures}
        else:
            split = split_on(shown_on, options.rules, [manifest.tensors[number] for number in kept])
        for number in chosen:
            spec, slab = split[tensors[number].name]
            tensors[number] = replace(tensors[number], spec=spec, slab=slab)
    return Inspection(
        kind="store",
        name=manifest.source.name,
        info_hash=manifest.source.info_hash,
        nbytes=manifest.nbytes,
        piece_length=manifest.source.piece_length,
        mesh=manifest.mesh,
        profile=manifest.source.profile,
        tensors=tuple(tensors),
        files=tuple(FileInfo(asset.path, asset.nbytes, 0) for asset in manifest.assets),
        codec=manifest.codec,
        absent_hosts=found.absent,
        chosen=tuple(tensors[number] for number in chosen),
        pictures=pictures,
        shown_on=shown_on,
    )


def _kept(tensor: StoreTensor, mesh: Mesh) -> TensorInfo:
    nbytes = prod(tensor.shape) * tensor.dtype.itemsize
    return TensorInfo(
        tensor.name,
        tensor.shape,
        tensor.dtype.name,
        nbytes,
        tensor.spec,
        held_shape(tensor.grid, mesh, tensor.spec),
        tensor.quantisation,
        tensor.encoding,
    )


def _of_survey(found: Survey, options: InspectOptions) -> Inspection:
    holds = [0] * len(found.payload.files)
    for tensor in found.tensors:
        parts = (s.file for part in tensor.parts for s in found.payload.segments(part.extent))
        for number in set(parts):
            holds[number] += 1
    assets = set(found.assets)
    rules = options.rules or found.rules
    tensors = _tensors(found, options.mesh, rules)
    chosen, one = _choose(tensors, options, found.name)
    drawn = chosen if one else ()
    return Inspection(
        kind=found.kind,
        name=found.name,
        info_hash=found.info_hash,
        nbytes=found.nbytes,
        piece_length=None if found.piece_length_assumed else found.payload.piece_length,
        mesh=options.mesh,
        profile=found.profile or "",
        tensors=tensors,
        files=tuple(
            FileInfo(file.path, file.length, holds[number], bool(holds[number]) or number in assets)
            for number, file in enumerate(found.payload.files)
        ),
        notes=found.notes,
        chosen=tuple(tensors[number] for number in chosen),
        pictures=pictures_of_survey(found, drawn, options.mesh, rules, options.hosts or 1),
    )


def _choose(tensors: Sequence[TensorInfo], options: InspectOptions, where: str) -> tuple[Sequence[int], bool]:
    """The tensors that are asked for, by place, and whether they are one tensor or pair."""
    if options.tensor is None:
        return range(len(tensors)), False
    return choose(options.tensor, [(tensor.name, tensor.quantisation) for tensor in tensors], where)


def _tensors(found: Survey, mesh: Mesh | None, rules: Rules | None) -> tuple[TensorInfo, ...]:
    """With a mesh, how each tensor would be split on it; without one, what the rules say of it."""
    if mesh is None:
        return tuple(_tensor(t, _rule(t, rules), None) for t in found.tensors)
    mesh = complete_mesh(mesh, rules)
    maker, infos = GridMaker(mesh, HostGroup().count), []
    for tensor, spec in zip(found.tensors, resolve_specs(mesh, rules, found.tensors), strict=True):
        grid = maker.grid(tensor.spec.shape, tensor.spec.dtype.itemsize, spec)
        infos.append(_tensor(tensor, spec, held_shape(grid, mesh, spec)))
    return tuple(infos)


def _rule(tensor: StoredTensor, rules: Rules | None) -> PartitionSpec | None:
    """What a rule says before a mesh is known; for scales it depends on the mesh, so nothing."""
    if rules is None or (tensor.quantisation and tensor.quantisation.role == "scales"):
        return None
    return rules.spec_for(tensor.rule_name)


def _tensor(tensor: StoredTensor, spec: PartitionSpec | None, slab: tuple[int, ...] | None) -> TensorInfo:
    own = tensor.spec
    return TensorInfo(
        own.name, own.shape, own.dtype.name, own.nbytes, spec, slab, tensor.quantisation, own.encoding
    )
