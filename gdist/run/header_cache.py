"""What the headers of a torrent's files said, kept beside the journal.

A run that goes on where another stopped would otherwise fetch the headers again: the first and last pieces
of every file, long since given back to the disk. The cache lies in the fetch's own working directory, next
to the .torrent it belongs to; one that cannot be read is ignored, and the headers are fetched.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from gdist.core.payload import Payload
from gdist.core.source_files import SourceArray, SourceFile, file_to_json, parse_file
from gdist.errors import GdistError
from gdist.run.headers import FileReport
from gdist.sinks.local import write_atomically

VERSION = 2


def save_headers(path: Path, payload: Payload, reports: Mapping[int, FileReport]) -> None:
    """Writes what was found, by file of the payload."""
    rows = []
    for number, report in reports.items():
        file = payload.files[number]
        arrays = tuple(SourceArray(array.key, array) for array in report.arrays)
        rows.append(
            [
                number,
                report.format,
                report.foreign,
                report.keys_are_names,
                file_to_json(SourceFile(file.path, file.length, arrays)),
            ]
        )
    write_atomically(path, json.dumps({"gdist_headers": VERSION, "files": rows}).encode())


def load_headers(path: Path, payload: Payload, files: Collection[int]) -> dict[int, FileReport] | None:
    """What was found in all of these files, or None when that is not known."""
    try:
        content = json.loads(path.read_bytes())
        if content["gdist_headers"] != VERSION:
            return None
        reports = {}
        for number, kind, foreign, named, row in content["files"]:
            file = parse_file(row)
            if (file.path, file.nbytes) != (payload.files[number].path, payload.files[number].length):
                return None
            reports[number] = FileReport(kind, tuple(item.array for item in file.arrays), foreign, named)
        return {number: reports[number] for number in files}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AssertionError, GdistError):
        return None
