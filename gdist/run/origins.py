"""What SRC of a reshard is: a store in one place or several, an Orbax or Zarr directory, or a checkpoint."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gdist.core.payload import Payload, PayloadFile
from gdist.core.reshard import rules_of
from gdist.core.rules import Rules
from gdist.core.select import chosen_names
from gdist.core.source_manifest import ASSUMED_PIECE_LENGTH
from gdist.errors import RequestError
from gdist.kvstore import local_path
from gdist.run.survey import Survey, SurveyOptions, check_beside, is_checkpoint, survey_files
from gdist.stores import Address, files_of, files_of_all
from gdist.stores.manifests import hint_of_hosts
from gdist.stores.origins import Origin
from gdist.stores.origins.store import StoreOrigin

if TYPE_CHECKING:
    from gdist.stores.origins.zarr import ZarrOrigin


def check_apart(sources: Sequence[Address], dest: str) -> None:
    """That no source is the destination, inside it, or around it.

    Raises:
        RequestError: naming the first that is.
    """
    for source in sources:
        ours, theirs = _parts(dest), _parts(source)
        shorter = min(len(ours), len(theirs))
        if ours[:shorter] == theirs[:shorter]:
            how = "is" if ours == theirs else "is inside" if len(ours) > len(theirs) else "holds"
            raise RequestError(
                f"the destination {dest} {how} the source {os.fspath(source)}",
                hint="choose a destination beside it",
            )


def _parts(address: Address) -> tuple[str, ...]:
    path = local_path(address)
    if path is not None:
        return path.resolve().parts
    return tuple(part for part in os.fspath(address).split("/") if part)


def open_origin(
    sources: Sequence[Address], profile: str | None, ignore: Sequence[str]
) -> tuple[Origin, Rules | None]:
    """What is read from, and the partition rules that come with it.

    Raises:
        RequestError: when it is none of the kinds, or several that are not one store.
        GdistError: when it cannot be read, or contradicts itself.
    """
    places = [place for source in sources for place in _hosts_below(source)]
    files = files_of_all(places)
    others = [file.where for file in files if not file.manifests()]
    if not others:
        if profile or ignore:
            raise RequestError(
                f"{files[0].where} is a store: its tensors have their names and its files were chosen",
                hint="leave out --profile and --ignore; they are for a checkpoint's own files",
            )
        store = StoreOrigin(places)
        return store, rules_of(store.manifest)
    unfinished = [file.where for file in files if not file.manifests() and file.unfinished()]
    if unfinished:
        raise RequestError(
            f"{' and '.join(unfinished)} is not complete: there is work still to finish there",
            hint="run the command that began it again",
        )
    if len(places) > 1:
        raise RequestError(
            f"{' and '.join(others)} is no store of gdist: only parts of one store are joined",
            hint=hint_of_hosts(others[0], "give the directories that the hosts of one fetch wrote"),
        )
    return _checkpoint(places[0], profile, ignore)


def _hosts_below(source: Address) -> Sequence[Address]:
    """The source, or, where it is just a directory with hosts' directories in it, these."""
    root = local_path(source)
    if root is None or not root.is_dir() or files_of(root).manifests():
        return [source]
    below = sorted(path.parent for path in root.glob("*/gdist.host-*.json"))
    return list(dict.fromkeys(below)) or [source]


def _checkpoint(source: Address, profile: str | None, ignore: Sequence[str]) -> tuple[Origin, Rules | None]:
    from gdist.stores.origins.orbax import OrbaxOrigin, is_orbax  # TensorStore comes with it
    from gdist.stores.origins.zarr import has_zarr

    if is_orbax(source):
        if profile:
            raise RequestError(
                f"{os.fspath(source)} is an Orbax checkpoint: its tensors have their names",
                hint="leave out --profile",
            )
        return OrbaxOrigin(source, ignore), None
    root = local_path(source)
    items = sorted(path.parent.name for path in root.glob("*/_METADATA")) if root is not None else []
    if items:
        raise RequestError(
            f"{root} is not an Orbax checkpoint itself, but holds some: {', '.join(items)}",
            hint=f"give one of them: {root}/{items[0]}",
        )
    if root is not None and has_zarr(root):
        if profile:
            raise RequestError(
                f"{root} is a Zarr hierarchy: its tensors have their names", hint="leave out --profile"
            )
        return open_zarr(root, ignore), None
    if root is None or not root.exists() or not is_checkpoint(root):
        raise RequestError(
            f"{os.fspath(source)} is no store, no Orbax or Zarr directory and no checkpoint on this disk",
            hint=hint_of_hosts(
                os.fspath(source), "check the address; a torrent is fetched with gdist fetch --mesh"
            ),
        )
    return _files(root, profile, ignore)


def is_directory_of_arrays(path: Path) -> bool:
    """True for an Orbax checkpoint or a Zarr hierarchy: its tensors lie in chunks, a file each or more."""
    from gdist.stores.origins.orbax import is_orbax  # TensorStore comes with it
    from gdist.stores.origins.zarr import has_zarr

    return path.is_dir() and (is_orbax(path) or has_zarr(path))


def survey_arrays(path: Path, options: SurveyOptions) -> Survey:
    """What an Orbax checkpoint or a Zarr hierarchy holds.

    Its tensors lie in no file of the payload, which has the other files alone.

    Raises:
        UnsupportedError, CorruptError: as `open_origin`.
    """
    origin, rules = _checkpoint(path, options.profile, options.ignore)
    with contextlib.closing(origin):
        contents = origin.contents
    position = sum(tensor.spec.nbytes for tensor in contents.tensors)
    files = []
    for name in contents.assets:
        files.append(PayloadFile(name, position, (path / name).stat().st_size))
        position += files[-1].length
    names = chosen_names((tensor.rule_name for tensor in contents.tensors), options.select)
    return Survey(
        kind="arrays",
        name=path.absolute().name,
        info_hash="",
        payload=Payload(tuple(files), ASSUMED_PIECE_LENGTH, position),
        tensors=tuple(tensor for tensor in contents.tensors if tensor.rule_name in names),
        rules=rules,
        profile=None,
        assets=tuple(range(len(files))),
        piece_length_assumed=True,
    )


def open_zarr(root: Path, ignore: Sequence[str]) -> ZarrOrigin:
    """A Zarr hierarchy, and the files beside its arrays that go with them.

    Raises:
        UnsupportedError: for files that hold tensors of their own, or of a kind that is not read.
    """
    from gdist.stores.origins.zarr import ZarrOrigin, loose_files  # TensorStore comes with it

    paths = [p for p in loose_files(root) if not any(fnmatch.fnmatchcase(p, pattern) for pattern in ignore)]
    check_beside(f"{root} holds Zarr arrays", {path: root / path for path in paths})
    return ZarrOrigin(root, ignore, paths)


def _files(root: Path, profile: str | None, ignore: Sequence[str]) -> tuple[Origin, Rules | None]:
    from gdist.run.catalogue import check_unread  # libtorrent comes with it
    from gdist.stores.origins.files import FilesOrigin

    found = survey_files(root, SurveyOptions(profile, tuple(ignore)))
    check_unread(found.unread)
    origin = FilesOrigin(
        root,
        found.payload,
        found.tensors,
        profile=found.profile or "",
        assets=found.assets,
        ignored=tuple(sorted(ignore)),
    )
    return origin, found.rules
