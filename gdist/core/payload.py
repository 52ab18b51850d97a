"""The files of a torrent laid end to end, and how pieces, extents and files map to each other.

    payload   |---- file 0 ----|-- file 1 --|pad|------- file 2 -------|
    pieces    |   0   |   1   |   2   |   3   |   4   |   5   |   6  |

Pad files (BEP 47) and the piece alignment of v2 torrents (BEP 52) leave gaps between files; their bytes
are zero and lie in no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gdist.core.extent import Extent, locate
from gdist.errors import RequestError

MIN_PIECE_BYTES = 1 << 14  # BEP 52's least, and one block
MOST_PIECE_BYTES = 1 << 27  # the most that libtorrent (2.1) makes and reads


@dataclass(frozen=True, slots=True)
class PayloadFile:
    """One file: `path` relative to the torrent's root with `/` between parts, place in the payload, bytes."""

    path: str
    offset: int
    length: int

    @property
    def extent(self) -> Extent:
        """Where the file lies in the payload."""
        return Extent(self.offset, self.length)


@dataclass(frozen=True, slots=True)
class FileSegment:
    """Part of one file: `file` is its index in `Payload.files`, `extent` counts from the file's start."""

    file: int
    extent: Extent


@dataclass(frozen=True, slots=True)
class Payload:
    """All files of a torrent, in order, and the length of its pieces in bytes.

    `length` is the end of the last piece; files must not overlap and must be in payload order.
    """

    files: tuple[PayloadFile, ...]
    piece_length: int
    length: int
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.piece_length > 0, f"piece length {self.piece_length}"
        position = 0
        for file in self.files:
            assert file.offset >= position, f"file {file.path!r} at {file.offset} overlaps the one before it"
            position = file.offset + file.length
        assert position <= self.length, f"files end at {position}, after the payload's {self.length} bytes"
        object.__setattr__(self, "_starts", tuple(f.offset for f in self.files))

    @property
    def pieces(self) -> int:
        """Number of pieces."""
        return -(-self.length // self.piece_length)

    def extent_of(self, piece: int) -> Extent:
        """The bytes of a piece; the last one may be shorter."""
        assert 0 <= piece < self.pieces, f"piece {piece} of {self.pieces}"
        start = piece * self.piece_length
        return Extent(start, min(self.piece_length, self.length - start))

    def pieces_of(self, extent: Extent) -> range:
        """The pieces that hold a byte of the extent, in order; empty for an empty extent."""
        if not extent.length:
            return range(0)
        return range(extent.start // self.piece_length, (extent.stop - 1) // self.piece_length + 1)

    def segments(self, extent: Extent) -> Iterator[FileSegment]:
        """The file parts that hold the bytes of the extent, in order; padding belongs to none."""
        index = max(locate(self._starts, extent.start), 0)
        for number in range(index, len(self.files)):
            file = self.files[number]
            if file.offset >= extent.stop:
                return
            common = file.extent.intersect(extent)
            if common:
                yield FileSegment(number, common.shift(-file.offset))


def check_piece_length(nbytes: int) -> None:
    """That pieces may have a length that somebody asks for.

    Raises:
        RequestError: it is no power of two from 16 KiB to 128 MiB.
    """
    if not MIN_PIECE_BYTES <= nbytes <= MOST_PIECE_BYTES or nbytes & (nbytes - 1):
        raise RequestError(
            f"piece length {nbytes} is not a power of two of at least {MIN_PIECE_BYTES} "
            f"and at most {MOST_PIECE_BYTES}",
            hint="for example 1MiB, or leave it out",
        )
