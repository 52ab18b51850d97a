"""What the headers of a torrent's files said, kept beside the journal.

A run that goes on where another stopped, or a host whose neighbour read them, would otherwise fetch the
headers again: the first and last pieces of every file, long since given back to the disk. The documents that
names and shapes were taken from (`params.json`, `.zarray`) are kept with them. The cache lies in the fetch's
own working directory, next to the .torrent it belongs to; one that cannot be read is ignored, and the headers
are fetched.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gdist.core.extent import Extent
from gdist.core.payload import Payload
from gdist.core.source_files import SourceArray, SourceFile, file_to_json, parse_file
from gdist.errors import GdistError
from gdist.formats.detect import Foreign
from gdist.run.documents import Contents
from gdist.run.headers import FileReport, MemberReport
from gdist.sinks.local import write_atomically

VERSION = 4


def save_headers(
    path: Path,
    payload: Payload,
    reports: Mapping[int, FileReport],
    ignore: Sequence[str] = (),
    documents: Contents | None = None,
) -> None:
    """Writes what was found, by file of the payload; `ignore` is by what members were left out."""
    rows = []
    for number, report in reports.items():
        file = payload.files[number]
        rows.append([number, _to_row(file.path, file.length, report)])
    texts = [
        [number, extent.start, base64.b64encode(data).decode()]
        for (number, extent), data in (documents or {}).items()
    ]
    document = {"gdist_headers": VERSION, "ignore": sorted(ignore), "files": rows, "documents": texts}
    write_atomically(path, json.dumps(document).encode())


def _to_row(path: str, length: int, report: FileReport) -> list[object]:
    arrays = tuple(SourceArray(array.key, array) for array in report.arrays)
    foreign = [report.foreign.what, report.foreign.hint] if report.foreign else None
    members = [
        [member.extent.start, _to_row(member.path, member.extent.length, member.report)]
        for member in report.members
    ]
    file = file_to_json(SourceFile(path, length, arrays))
    return [report.format, foreign, report.keys_are_names, file, members]


def load_headers(
    path: Path, payload: Payload, files: Collection[int], ignore: Sequence[str] = ()
) -> dict[int, FileReport] | None:
    """What was found in all of these files, or None when that is not known."""
    try:
        content = json.loads(path.read_bytes())
        if content["gdist_headers"] != VERSION or content["ignore"] != sorted(ignore):
            return None
        reports = {}
        for number, row in content["files"]:
            file, report = _from_row(row)
            if (file.path, file.nbytes) != (payload.files[number].path, payload.files[number].length):
                return None
            reports[number] = report
        return {number: reports[number] for number in files}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AssertionError, GdistError):
        return None


def load_documents(path: Path, payload: Payload) -> Contents:
    """The documents that were read, as far as that is known."""
    try:
        content = json.loads(path.read_bytes())
        if content["gdist_headers"] != VERSION:
            return {}
        found = {}
        for number, start, text in content["documents"]:
            data = base64.b64decode(text)
            assert 0 <= start <= payload.files[number].length - len(data), (number, start)
            found[number, Extent(start, len(data))] = data
        return found
    except (OSError, ValueError, KeyError, TypeError, IndexError, AssertionError, GdistError):
        return {}


def _from_row(row: Any) -> tuple[SourceFile, FileReport]:  # Any: whatever fails is no cache of ours
    kind, foreign, named, entry, members = row
    file = parse_file(entry)
    found = []
    for start, member in members:
        inner, report = _from_row(member)
        assert inner.nbytes is not None, inner.path
        found.append(MemberReport(inner.path, Extent(start, inner.nbytes), report))
    arrays = tuple(item.array for item in file.arrays)
    return file, FileReport(kind, arrays, Foreign(*foreign) if foreign else None, named, tuple(found))
