"""Axis-aligned boxes, and cutting a C-order run of an array into them.

A run of elements of a C-ordered array is a handful of boxes, a shard is a box, and so is what a device
needs: planning and placing are both intersections of boxes. Bytes are handled by giving an array one
extra last dimension of length `itemsize`; a piece may then start in the middle of an element.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from operator import add, floordiv, ge, le, mul, sub

from gdist.core.extent import Extent


@dataclass(frozen=True, slots=True)
class Box:
    """A region of an array: `start` and `stop` per dimension, half-open. A scalar's box has no dimensions."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        valid = len(self.start) == len(self.stop) and all(map(le, self.start, self.stop))
        assert valid and min(self.start, default=0) >= 0, f"box {self.start} to {self.stop}"

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """The box of a whole array of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per dimension."""
        return tuple(map(sub, self.stop, self.start))

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        """The elements in both, or None when there are none."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        if any(map(ge, start, stop)):
            return None
        return Box(start, stop)

    def contains(self, other: Box) -> bool:
        """True when every element of `other` is in this box."""
        return all(map(le, self.start, other.start)) and all(map(le, other.stop, self.stop))

    def shift(self, offset: Sequence[int]) -> Box:
        """The box moved by `offset` per dimension."""
        return Box(tuple(map(add, self.start, offset)), tuple(map(add, self.stop, offset)))

    def relative_to(self, origin: Sequence[int]) -> Box:
        """The same elements, counted from `origin`."""
        return Box(tuple(map(sub, self.start, origin)), tuple(map(sub, self.stop, origin)))

    def slices(self) -> tuple[slice, ...]:
        """What indexes an array to give this box."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def slices_from(self, origin: Sequence[int]) -> tuple[slice, ...]:
        """What indexes an array that starts at `origin` to give this box."""
        return tuple(slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, origin, strict=True))

    def with_bytes(self, itemsize: int) -> Box:
        """The box in the array seen as bytes: one more, last, dimension of length `itemsize`."""
        return Box((*self.start, 0), (*self.stop, itemsize))

    def times(self, ratio: Sequence[int]) -> Box:
        """The box in an array of which each element here stands for a block of `ratio` elements."""
        return Box(tuple(map(mul, self.start, ratio)), tuple(map(mul, self.stop, ratio)))

    def over(self, ratio: Sequence[int]) -> Box:
        """The blocks of `ratio` elements that meet the box; the other way round than `times`."""
        stop = tuple(-(-b // r) for b, r in zip(self.stop, ratio, strict=True))
        return Box(tuple(map(floordiv, self.start, ratio)), stop)

    def reversed(self) -> Box:
        """The box with its dimensions in reverse order, as a Fortran-ordered array stores it."""
        return Box(self.start[::-1], self.stop[::-1])


def boxes_of_run(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Boxes that cover elements `[start, stop)` of a C-ordered array, in element order.

    At most `2 * ndim - 1` boxes (one for a scalar): partial rows, whole rows, partial rows again.

        shape (3, 4), run [2, 9)        . . 1 1
                                        2 2 2 2
                                        3 . . .

    Raises:
        AssertionError: if the run leaves the array.
    """
    assert 0 <= start <= stop <= prod(shape), f"run [{start}, {stop}) of shape {tuple(shape)}"
    if start == stop:
        return
    if not shape:
        yield Box((), ())
        return
    yield from _cut((), tuple(shape), start, stop)


def _cut(prefix: tuple[int, ...], shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    pitch = prod(shape[1:])
    first, into_first = divmod(start, pitch)
    last, into_last = divmod(stop, pitch)

    def rows(a: int, b: int) -> Box:
        tail = shape[1:]
        ones = tuple(p + 1 for p in prefix)
        return Box((*prefix, a, *(0 for _ in tail)), (*ones, b, *tail))

    if into_first:
        end = pitch if last > first else into_last
        yield from _cut((*prefix, first), shape[1:], into_first, end)
        if last == first:
            return
        first += 1
    if first < last:
        yield rows(first, last)
    if into_last:
        yield from _cut((*prefix, last), shape[1:], 0, into_last)


def tiles_of(box: Box, tile: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Box]]:
    """Every cell of the regular grid of `tile`-shaped cells that meets `box`, in C order.

    Gives `(index of the cell, the part of box inside it)`; the part is in the coordinates of `box`.
    """
    ranges = []
    for a, b, t in zip(box.start, box.stop, tile, strict=True):
        if a == b:
            return
        ranges.append(range(a // t, (b - 1) // t + 1))
    if all(len(cells) == 1 for cells in ranges):  # the usual case, and the hot one
        yield tuple(cells.start for cells in ranges), box
        return
    for index in itertools.product(*ranges):
        start = tuple(max(a, i * t) for a, i, t in zip(box.start, index, tile, strict=True))
        stop = tuple(min(b, (i + 1) * t) for b, i, t in zip(box.stop, index, tile, strict=True))
        yield index, Box(start, stop)


def row_parts(box: Box, itemsize: int, limit: int) -> Iterator[Box]:
    """Row blocks that tile a box in its own order, each within `limit` bytes, or else a single element."""
    shape = box.shape
    dimension = next((d for d, size in enumerate(shape) if size > 1), None)
    if dimension is None or box.size * itemsize <= limit:
        yield box
        return
    start, stop = box.start[dimension], box.stop[dimension]
    rows = limit // (prod(shape[dimension + 1 :]) * itemsize)
    for first in range(start, stop, max(rows, 1)):
        part = Box(
            (*box.start[:dimension], first, *box.start[dimension + 1 :]),
            (*box.stop[:dimension], min(first + max(rows, 1), stop), *box.stop[dimension + 1 :]),
        )
        yield from row_parts(part, itemsize, limit) if not rows else (part,)


def runs_of_box(shape: Sequence[int], box: Box, gap: int = 0) -> Iterator[Extent]:
    """Runs of elements of a C-ordered array that cover `box`, in order, joined where at most `gap` apart.

    With `gap` zero the runs are exactly the box. With `gap` one less than a piece the pieces that meet
    the runs are exactly those that meet the box, since no whole piece fits into what was joined; one run
    per box is then the usual answer, and planning needs no loop over rows. `gap`, starts and lengths
    count elements.
    """
    if box.size == 0 and box.ndim:
        return
    pitches = [prod(shape[d + 1 :]) for d in range(len(shape))]
    start = sum(a * p for a, p in zip(box.start, pitches, strict=True))
    length = 1
    outer: list[tuple[int, int]] = []  # (count, pitch), innermost first, of dimensions that do not join
    for extent, pitch in zip(reversed(box.shape), reversed(pitches), strict=True):
        if extent > 1 and (outer or pitch - length > gap):
            outer.append((extent, pitch))
        else:
            length += (extent - 1) * pitch
    for steps in itertools.product(*(range(count) for count, _ in reversed(outer))):
        offset = sum(i * pitch for i, (_, pitch) in zip(steps, reversed(outer), strict=True))
        yield Extent(start + offset, length)
