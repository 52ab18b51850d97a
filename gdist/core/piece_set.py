"""Sets of pieces as integers: bit n is piece n, or whatever else is counted from 0.

A coordinator holds several sets a host and intersects them all the time; as integers 20,000 pieces are 2,500
bytes and an intersection is one machine loop. On the wire a set is a list of half-open ranges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from gdist.errors import RequestError

PieceSet = int

MOST_PIECES = 1 << 24  # above what metadata may have; a range beyond is nonsense from the wire

_ONES = re.compile("1+")


def set_of(pieces: Iterable[int]) -> PieceSet:
    """The set of these pieces."""
    pieces = tuple(pieces)
    if not pieces:
        return 0
    row = bytearray(max(pieces) // 8 + 1)
    for piece in pieces:
        row[piece >> 3] |= 1 << (piece & 7)
    return int.from_bytes(row, "little")


def members(pieces: PieceSet) -> Iterator[int]:
    """The pieces of a set, ascending."""
    for start, stop in ranges(pieces):
        yield from range(start, stop)


def ranges(pieces: PieceSet) -> Iterator[tuple[int, int]]:
    """The runs of a set, half-open, ascending."""
    for found in _ONES.finditer(f"{pieces:b}"[::-1]):
        yield found.span()


def first(pieces: PieceSet) -> int:
    """The lowest piece of a set that is not empty."""
    return (pieces & -pieces).bit_length() - 1


def to_json(pieces: PieceSet) -> list[list[int]]:
    """A set as a list of half-open ranges."""
    return [[start, stop] for start, stop in ranges(pieces)]


def from_json(value: object) -> PieceSet:
    """Reads what `to_json` gives, from a stranger.

    Raises:
        RequestError: when it is anything else.
    """
    found = 0
    try:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError
        for start, stop in value:
            if not (type(start) is type(stop) is int and 0 <= start < stop <= MOST_PIECES):
                raise ValueError
            found |= (1 << stop) - (1 << start)
    except (TypeError, ValueError) as error:
        raise RequestError("not a list of ranges of pieces") from error
    return found
