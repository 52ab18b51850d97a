"""What a torrent holds: its tensors in loading order, its small other files, and what is still to be checked.

Two ways lead here. With a whole source manifest everything is known before the first byte, and the headers
are compared with it as they arrive. Without one, or where it leaves something open, they are fetched and
scanned first.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gdist.core.payload import Payload
from gdist.core.profile import INDEX_SUFFIX, check_index
from gdist.core.rules import Rules
from gdist.core.select import chosen_names
from gdist.core.source_manifest import SourceManifest
from gdist.core.tensor import StoredTensor
from gdist.errors import UnsupportedError
from gdist.formats.detect import CHECKS, advice_on_piece, formats_read
from gdist.run.directories import find_directories
from gdist.run.documents import Documents, documents_ending, documents_in
from gdist.run.header_cache import load_documents, load_headers, save_headers
from gdist.run.headers import HeaderScan, HeaderSource, Unread, arrays_of, unread_of
from gdist.run.naming import name_arrays

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

    def skip(path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in ignore)

    ignored = tuple(i for i, f in enumerate(payload.files) if skip(f.path))
    files = [i for i in range(len(payload.files)) if i not in set(ignored)]
    if manifest and manifest.whole:
        naming = manifest.to_tensors(payload)
        known = _files_of(payload, naming.tensors)
        assets = tuple(i for i in files if i not in known)
        check_unread(Unread(payload.files[i].path, payload.files[i].length) for i in assets)
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
    documents = Documents(scan, payload, load_documents(cache, payload) if cache else {})
    directories = find_directories(payload, files, skip, documents.fetch_all)
    files = [i for i in files if i not in directories.inside]
    ignored = (*ignored, *sorted(directories.ignored))
    known_headers = load_headers(cache, payload, files, ignore) if cache else None
    reports = known_headers or scan.run(files, skip)
    found = [
        *directories.found,
        *(held for i, report in reports.items() for held in arrays_of(payload.files[i], report)),
    ]
    assets = tuple(i for i, report in reports.items() if report.format is None)
    check_unread(row for i, report in reports.items() for row in unread_of(payload.files[i], report))
    if not found:
        raise no_tensor(payload, "gdist inspect lists the files")
    if not known_headers:
        for index in documents_ending(payload, reports, scan.fetch, INDEX_SUFFIX).values():
            if index:
                check_index(index, found)
    for i, report in reports.items() if manifest else ():
        assert manifest is not None
        manifest.check_file(payload.files[i].path, report.arrays)
    asked = profile or (manifest.profile if manifest else None)
    naming = name_arrays(found, asked, documents_in(payload, reports, documents.fetch))
    if cache and not known_headers:
        save_headers(cache, payload, reports, ignore, documents.known)
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


def check_unread(unread: Iterable[Unread]) -> None:
    """That files and members without tensors may be kept as they are: of no kind we know, small together.

    Raises:
        UnsupportedError: naming those that may not, and what to do with them.
    """
    leave = "leave them out with --ignore 'PATTERN'"
    unread = tuple(unread)
    known = [(row.path, row.foreign) for row in unread if row.foreign]
    if known:
        named = [f"{path} ({foreign.what})" for path, foreign in known]
        advice = dict.fromkeys(foreign.hint for _, foreign in known if foreign.hint)
        raise UnsupportedError(
            f"{len(known)} files are of a kind gdist does not read: {', '.join(named[:20])}",
            hint="; or ".join((*advice, f"{leave}, if the rest is what you want")),
        )
    total = sum(row.nbytes for row in unread)
    if total > MAX_ASSET_BYTES:
        largest = sorted(unread, key=lambda row: -row.nbytes)[:5]
        names = ", ".join(f"{row.path} ({row.nbytes} bytes)" for row in largest)
        pieces = [text for row in largest if (text := advice_on_piece(row.path))]
        raise UnsupportedError(
            f"files of unknown content hold {total} bytes, more than {MAX_ASSET_BYTES}: {names}",
            hint="; or ".join((*pieces[:1], leave)),
        )


def no_tensor(payload: Payload, more: str, where: str = "") -> UnsupportedError:
    """That there is no tensor in any file, and what may be done about it."""
    advice = next((found for file in payload.files if (found := advice_on_piece(file.path))), "")
    return UnsupportedError(
        f"none of the {len(payload.files)} files{where} holds a tensor gdist can read",
        hint=advice or f"{formats_read()}, also in tar; {more}",
    )
