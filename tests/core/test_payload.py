"""Pieces, extents and files of a payload against a line of labelled bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.extent import Extent
from gdist.core.payload import FileSegment, Payload, PayloadFile


@st.composite
def payloads(draw: st.DrawFn) -> Payload:
    """Files with padding between them, empty files included, and padding at the end."""
    files, position = [], 0
    for number in range(draw(st.integers(0, 5))):
        position += draw(st.integers(0, 4))
        files.append(PayloadFile(f"f{number}", position, draw(st.integers(0, 9))))
        position += files[-1].length
    length = position + draw(st.integers(0, 4))
    return Payload(tuple(files), draw(st.integers(1, 12)), length)


def labels(payload: Payload) -> list[tuple[int, int] | None]:
    """For every byte its file and the place in it, or None for padding."""
    line: list[tuple[int, int] | None] = [None] * payload.length
    for number, file in enumerate(payload.files):
        for byte in range(file.length):
            line[file.offset + byte] = (number, byte)
    return line


@given(payloads(), st.data())
def test_segments_name_every_byte_of_an_extent_once(payload: Payload, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, payload.length))
    extent = Extent(start, data.draw(st.integers(0, payload.length - start)))
    found = []
    for segment in payload.segments(extent):
        assert segment.extent.length
        found += [(segment.file, byte) for byte in range(segment.extent.start, segment.extent.stop)]
    assert found == [label for label in labels(payload)[extent.start : extent.stop] if label]
    pieces = {byte // payload.piece_length for byte in range(extent.start, extent.stop)}
    assert list(payload.pieces_of(extent)) == sorted(pieces)


@given(payloads())
def test_pieces_lie_end_to_end(payload: Payload) -> None:
    extents = [payload.extent_of(piece) for piece in range(payload.pieces)]
    line = [byte for extent in extents for byte in range(extent.start, extent.stop)]
    assert line == list(range(payload.length))
    assert all(extent.length == payload.piece_length for extent in extents[:-1])
    assert all(extent.length for extent in extents)


@pytest.mark.parametrize(
    ("files", "length", "why"),
    [
        (((0, 5), (4, 2)), 10, "overlap"),
        (((5, 5), (0, 2)), 10, "out of order"),
        (((0, 5),), 4, "beyond the end"),
    ],
)
def test_files_that_cannot_lie_so_are_a_broken_invariant(
    files: tuple[tuple[int, int], ...], length: int, why: str
) -> None:
    with pytest.raises(AssertionError):
        Payload(tuple(PayloadFile("f", offset, size) for offset, size in files), 4, length)


def test_there_is_no_piece_beyond_the_last() -> None:
    payload = Payload((PayloadFile("f", 0, 9),), 4, 9)
    assert payload.extent_of(2) == Extent(8, 1)
    for piece in (-1, 3):
        with pytest.raises(AssertionError, match="of 3"):
            payload.extent_of(piece)


def test_an_empty_file_between_two_has_no_segment() -> None:
    payload = Payload(tuple(PayloadFile(*f) for f in (("a", 0, 3), ("b", 3, 0), ("c", 3, 3))), 4, 6)
    assert list(payload.segments(Extent(2, 2))) == [
        FileSegment(0, Extent(2, 1)),
        FileSegment(2, Extent(0, 1)),
    ]
