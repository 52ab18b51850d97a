"""What SRC of a reshard is: a store in one place or several, an Orbax checkpoint, or a checkpoint's files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gdist.core.reshard import rules_of
from gdist.core.rules import Rules
from gdist.errors import RequestError
from gdist.kvstore import local_path
from gdist.run.survey import SurveyOptions, is_checkpoint, survey_files
from gdist.stores import Address, files_of
from gdist.stores.origins import Origin
from gdist.stores.origins.store import StoreOrigin


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
    files = [files_of(place) for place in places]
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
            hint="give the directories that the hosts of one fetch wrote",
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

    if is_orbax(source):
        if profile:
            raise RequestError(
                f"{os.fspath(source)} is an Orbax checkpoint: its tensors have their names",
                hint="leave out --profile",
            )
        return OrbaxOrigin(source, ignore), None
    root = local_path(source)
    if root is None or not root.exists() or not is_checkpoint(root):
        raise RequestError(
            f"{os.fspath(source)} is no store, no Orbax checkpoint and no checkpoint on this disk",
            hint="check the address; a torrent is fetched with gdist fetch --mesh",
        )
    items = sorted(path.parent.name for path in root.glob("*/_METADATA")) if root.is_dir() else []
    if items:
        raise RequestError(
            f"{root} is not an Orbax checkpoint itself, but holds some: {', '.join(items)}",
            hint=f"give one of them: {root / items[0]}",
        )
    return _files(root, profile, ignore)


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
