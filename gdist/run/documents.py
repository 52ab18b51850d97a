"""Small files beside the tensors, by their names: `params.json` and its kind, also inside containers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from gdist.core.extent import Extent
from gdist.core.payload import Payload, PayloadFile
from gdist.run.headers import FileReport, HeaderScan, files_within

MAX_DOCUMENT_BYTES = 2**20  # a configuration is a few kilobytes; what is larger is something else
MAX_INDEX_BYTES = 64 * 2**20  # an index has a line for each tensor

Contents = dict[tuple[int, Extent], bytes]  # of extents of files of the payload

# Gives, by full path, the content of every file whose last part is one of these names.
FindDocuments = Callable[[Collection[str]], dict[str, bytes]]
Read = Callable[[int, Extent], bytes]  # bytes of an extent of a file of the payload


class Documents:
    """Documents that were read, each once; `known` are those that an earlier run, or another host, read."""

    def __init__(self, scan: HeaderScan, payload: Payload, known: Contents):
        self._scan, self._payload, self.known = scan, payload, known

    def fetch(self, file: int, extent: Extent) -> bytes:
        """Bytes of an extent of a file."""
        if (file, extent) not in self.known:
            self.known[file, extent] = self._scan.fetch(file, extent)
        return self.known[file, extent]

    def fetch_all(self, files: Sequence[int]) -> dict[int, bytes]:
        """All bytes of some files, whose pieces are waited for together."""
        whole = {file: Extent(0, self._payload.files[file].length) for file in files}
        missing = [file for file in files if (file, whole[file]) not in self.known]
        for file, data in self._scan.fetch_all(missing).items():
            self.known[file, whole[file]] = data
        return {file: self.known[file, extent] for file, extent in whole.items()}


def documents_in(payload: Payload, reports: Mapping[int, FileReport], read: Read) -> FindDocuments:
    """Finds documents among some files and their members.

    What is larger than `MAX_DOCUMENT_BYTES` is passed over.
    """

    def find_documents(names: Collection[str]) -> dict[str, bytes]:
        wanted = set(names)
        return _contents(payload, reports, read, lambda path: path.rpartition("/")[2] in wanted)

    return find_documents


def documents_ending(
    payload: Payload, reports: Mapping[int, FileReport], read: Read, suffix: str
) -> dict[str, bytes]:
    """The same by the end of the path, and up to `MAX_INDEX_BYTES` long."""
    return _contents(payload, reports, read, lambda path: path.endswith(suffix), MAX_INDEX_BYTES)


def _contents(
    payload: Payload,
    reports: Mapping[int, FileReport],
    read: Read,
    wanted: Callable[[str], bool],
    most: int = MAX_DOCUMENT_BYTES,
) -> dict[str, bytes]:
    found = {}
    for number, report in reports.items():
        for file in _small(files_within(payload.files[number], report), wanted, most):
            extent = Extent(file.offset - payload.files[number].offset, file.length)
            found[file.path] = read(number, extent) if extent.length else b""
    return found


def _small(files: Iterable[PayloadFile], wanted: Callable[[str], bool], most: int) -> Iterable[PayloadFile]:
    return (file for file in files if file.length <= most and wanted(file.path))
