"""Bytes of a payload that are in no tensor, gathered as their pieces come by.

Small files are kept as they are (assets). Of files with tensors it is the rest, headers above all: kept too,
and, when a manifest said beforehand what a release holds, scanned and held against what the manifest says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable

from gdist.core.extent import Extent, complement
from gdist.core.payload import Payload
from gdist.core.tensor import FoundArray, StoredTensor
from gdist.errors import CorruptError, UnsupportedError
from gdist.formats import drive
from gdist.run.headers import FileReport, identify

MANIFEST_HINT = "the manifest is wrong, or of another release: go without it to read the files' own headers"


def gaps_of(
    payload: Payload, tensors: Iterable[StoredTensor], files: Collection[int]
) -> dict[int, tuple[Extent, ...]]:
    """For some files, where in them the bytes are that are in no tensor."""
    taken: dict[int, list[Extent]] = {file: [] for file in files}
    for tensor in tensors:
        for part in tensor.parts:
            for segment in payload.segments(part.extent):
                if segment.file in taken:
                    taken[segment.file].append(segment.extent)
    return {
        file: complement(extents, Extent(0, payload.files[file].length)) for file, extents in taken.items()
    }


class Collector:
    """Gathers, for some files, all their bytes that are outside tensors; thread-safe for distinct pieces."""

    def __init__(self, payload: Payload, tensors: Iterable[StoredTensor], files: Collection[int]):
        self._payload = payload
        self._gaps = gaps_of(payload, tensors, files)
        self._missing = {file: sum(gap.length for gap in gaps) for file, gaps in self._gaps.items()}
        self._held: dict[int, dict[int, bytes]] = {file: {} for file in files}
        self._by_piece: dict[int, list[tuple[int, Extent]]] = {}
        for file, gaps in self._gaps.items():
            for gap in gaps:
                for piece in payload.pieces_of(gap.shift(payload.files[file].offset)):
                    self._by_piece.setdefault(piece, []).append((file, gap))

    @property
    def pieces(self) -> tuple[int, ...]:
        """Pieces that hold bytes to gather, in payload order."""
        return tuple(sorted(self._by_piece))

    def wants(self, piece: int) -> bool:
        """True when a piece holds bytes that are not gathered yet."""
        return piece in self._by_piece

    def extents(self, piece: int) -> tuple[Extent, ...]:
        """Where in a piece the bytes lie that are to be gathered from it."""
        whole = self._payload.extent_of(piece)
        found = []
        for file, gap in self._by_piece.get(piece, ()):
            common = gap.shift(self._payload.files[file].offset).intersect(whole)
            assert common is not None, f"piece {piece} and gap {gap} of file {file}"
            found.append(common.shift(-whole.start))
        return tuple(found)

    def take(self, piece: int, data: memoryview) -> list[tuple[int, int, bytes]]:
        """Copies of a piece's bytes that belong here, to be given to `add`; changes nothing."""
        offsets = [(file, self._payload.files[file].offset) for file, _ in self._by_piece.get(piece, ())]
        start = self._payload.extent_of(piece).start
        return [
            (file, start + extent.start - offset, bytes(data[extent.start : extent.stop]))
            for (file, offset), extent in zip(offsets, self.extents(piece), strict=True)
        ]

    def add(self, piece: int, found: Iterable[tuple[int, int, bytes]]) -> list[int]:
        """Keeps what `take` gave; the files that are whole since."""
        whole = []
        self._by_piece.pop(piece, None)
        for file, start, data in found:
            self._held[file][start] = data
            self._missing[file] -= len(data)
            if not self._missing[file]:
                whole.append(file)
        return whole

    def empty_files(self) -> list[int]:
        """Files with nothing to gather: they are whole from the start."""
        return [file for file, gaps in self._gaps.items() if not gaps]

    def pop(self, file: int) -> bytes:
        """The same; they are not held any longer."""
        data = self.rest(file)
        self._held.pop(file)
        return data

    def rest(self, file: int) -> bytes:
        """All gathered bytes of a file, one after the other."""
        return b"".join(data for _, data in sorted(self._held[file].items()))

    def scan(
        self, file: int, expected: str = "the manifest says", hint: str = MANIFEST_HINT
    ) -> tuple[FoundArray, ...]:
        """The arrays in a file, found from its gathered headers alone.

        Bytes of tensors read as zeros. A scan that arrives at just these tensors has never looked at them,
        since a format looks only at what lies outside the arrays it finds; any other outcome is a
        difference, and an error.

        Raises:
            CorruptError: when the headers are not those of a file gdist reads.
        """
        held = sorted(self._held[file].items())
        stops = [start + len(piece) for start, piece in held]
        path = self._payload.files[file].path

        def read(extent: Extent) -> bytes:
            data = bytearray(extent.length)
            for number in range(bisect_right(stops, extent.start), len(held)):
                start, piece = held[number]
                common = Extent(start, len(piece)).intersect(extent)
                if start >= extent.stop:
                    break
                if common:
                    inside = piece[common.start - start : common.stop - start]
                    data[common.start - extent.start : common.stop - extent.start] = inside
            return bytes(data)

        try:
            return drive(identify(self._payload.files[file].length, FileReport(), thorough=True), read)
        except (UnsupportedError, CorruptError) as error:
            raise CorruptError(
                f"{path} is not what {expected}: {error.message}", hint=hint, file=path
            ) from error
