"""What a torrent holds: its tensors in loading order, its small other files, and what is still to be checked.

Two ways lead here. With a whole source manifest everything is known before the first byte, and the headers
are compared with it as they arrive. Without one, or where it leaves something open, they are fetched and
scanned first.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gdist.core.payload import Payload
from gdist.core.profile import INDEX_SUFFIX, FileArrays, check_index
from gdist.core.rules import Rules
from gdist.core.select import chosen_names
from gdist.core.source_manifest import SourceManifest
from gdist.core.tensor import StoredTensor
from gdist.errors import UnsupportedError
from gdist.formats.detect import CHECKS, formats_read
from gdist.run.header_cache import load_headers, save_headers
from gdist.run.headers import HeaderScan, HeaderSource, arrays_of
from gdist.run.naming import name_arrays
from gdist.run.survey import MAX_DOCUMENT_BYTES

MAX_ASSET_BYTES = 64 * 2**20  # all assets together are held in memory while they arrive


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Tensors of a payload, in loading order, and what goes with them.

    `assets` are files (indices in the payload) kept as they are; `unchecked` are files whose headers must
    still be compared with `manifest`; `arrived` are pieces verified while finding out. `chosen` are those of
    the tensors that are to be fetched; see `select`. `computed` are files that say again beside each payload
    what was computed from their headers (`gdist.formats.detect.CHECKS`): whoever gathers that checks it.
    """

    payload: Payload
    tensors: tuple[StoredTensor, ...]
    rules: Rules | None
    profile: str | None
    assets: tuple[int, ...]
    unchecked: tuple[int, ...] = ()
    manifest: SourceManifest | None = None
    arrived: frozenset[int] = frozenset()
    ignored: tuple[int, ...] = ()
    chosen: tuple[StoredTensor, ...] = ()
    computed: frozenset[int] = frozenset()

    def select(self, patterns: Sequence[str]) -> Catalogue:
        """The same, with the tensors chosen by name; of the others' files nothing need be checked.

        Raises:
            RequestError: for a pattern that is found in no name.
        """
        names = chosen_names((tensor.rule_name for tensor in self.tensors), patterns)
        chosen = tuple(tensor for tensor in self.tensors if tensor.rule_name in names)
        touched = _files_of(self.payload, chosen)
        return replace(self, chosen=chosen, unchecked=tuple(f for f in self.unchecked if f in touched))


def read_catalogue(
    source: HeaderSource,
    manifest: SourceManifest | None,
    *,
    profile: str | None = None,
    ignore: Sequence[str] = (),
    cache: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Catalogue:
    """What the torrent of an open source holds.

    `ignore` are glob patterns of paths that are left out. What the headers say is kept in the file `cache`,
    and taken from there when an earlier run left it.

    Raises:
        UnsupportedError: when there is no tensor, or a file that gdist neither reads nor keeps.
        CorruptError: when files contradict themselves or each other.
    """
    payload = source.payload
    ignored = tuple(
        i
        for i, f in enumerate(payload.files)
        if any(fnmatch.fnmatchcase(f.path, pattern) for pattern in ignore)
    )
    files = [i for i in range(len(payload.files)) if i not in set(ignored)]
    if manifest and manifest.whole:
        naming = manifest.to_tensors(payload)
        known = _files_of(payload, naming.tensors)
        assets = tuple(i for i in files if i not in known)
        check_assets(payload, assets, {})
        return Catalogue(
            payload,
            naming.tensors,
            naming.rules,
            naming.profile,
            assets,
            tuple(sorted(known)),
            manifest,
            ignored=ignored,
        )
    if manifest:
        manifest.places(payload)
    scan = HeaderScan(source, tick)
    known_headers = load_headers(cache, payload, files) if cache else None
    reports = known_headers or scan.run(files)
    found = [held for i, report in reports.items() for held in arrays_of(payload.files[i], report)]
    assets = tuple(i for i, report in reports.items() if report.format is None)
    check_assets(payload, assets, {i: reports[i].foreign for i in assets})
    if not found:
        raise UnsupportedError(
            f"none of the {len(payload.files)} files holds a tensor gdist can read",
            hint=f"{formats_read()}; gdist inspect lists the files",
        )
    if not known_headers:
        _check_indexes(scan, payload, assets, found)
    for i, report in reports.items() if manifest else ():
        assert manifest is not None
        manifest.check_file(payload.files[i].path, report.arrays)

    def find_documents(names: Collection[str]) -> dict[str, bytes]:
        return {payload.files[i].path: scan.fetch(i) for i in _documents(payload, files, names)}

    naming = name_arrays(found, profile or (manifest.profile if manifest else None), find_documents)
    if cache and not known_headers:
        save_headers(cache, payload, reports)
    return Catalogue(
        payload,
        naming.tensors,
        (manifest.rules if manifest else None) or naming.rules,
        naming.profile,
        assets,
        arrived=frozenset(scan.arrived),
        ignored=ignored,
        computed=frozenset(i for i, report in reports.items() if report.format in CHECKS),
    )


def _files_of(payload: Payload, tensors: Sequence[StoredTensor]) -> set[int]:
    parts = (part for t in tensors for factor in t.sources for part in factor.tensor.parts)
    return {segment.file for part in parts for segment in payload.segments(part.extent)}


def _documents(payload: Payload, files: Iterable[int], names: Collection[str]) -> list[int]:
    """The small files whose last part of the path is among the names."""
    sizes = range(1, MAX_DOCUMENT_BYTES + 1)
    return [
        i
        for i in files
        if payload.files[i].path.rpartition("/")[2] in names and payload.files[i].length in sizes
    ]


def check_assets(payload: Payload, assets: Collection[int], foreign: Mapping[int, str | None]) -> None:
    """That files without tensors may be kept as they are: of no kind we know, and small together.

    Raises:
        UnsupportedError: naming those that may not.
    """
    known = [f"{payload.files[i].path} ({name})" for i, name in foreign.items() if name]
    if known:
        raise UnsupportedError(
            f"{len(known)} files are of a kind gdist does not read: {', '.join(known[:20])}",
            hint="leave them out with --ignore 'PATTERN', if the rest is what you want",
        )
    total = sum(payload.files[i].length for i in assets)
    if total > MAX_ASSET_BYTES:
        largest = sorted(assets, key=lambda i: -payload.files[i].length)[:5]
        names = ", ".join(f"{payload.files[i].path} ({payload.files[i].length} bytes)" for i in largest)
        raise UnsupportedError(
            f"files of unknown content hold {total} bytes, more than {MAX_ASSET_BYTES}: {names}",
            hint="leave them out with --ignore 'PATTERN'",
        )


def _check_indexes(
    scan: HeaderScan, payload: Payload, assets: Collection[int], found: Sequence[FileArrays]
) -> None:
    """Holds every `*.safetensors.index.json` against the files it speaks of."""
    indexes = [i for i in assets if payload.files[i].path.endswith(INDEX_SUFFIX) and payload.files[i].length]
    for index in indexes:
        check_index(scan.fetch(index), found)
