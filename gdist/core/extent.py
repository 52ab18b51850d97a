"""Byte extents: half-open runs of a payload, a file or a piece.

A torrent's payload is one line of bytes. Pieces, files and tensors are all extents of it, so "which
pieces hold this tensor" is one intersection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Bytes `[start, start + length)`; `start` and `length` are in bytes and never negative."""

    start: int
    length: int

    def __post_init__(self) -> None:
        assert self.start >= 0 and self.length >= 0, f"extent ({self.start}, {self.length})"

    @property
    def stop(self) -> int:
        """First byte after the extent."""
        return self.start + self.length

    def intersect(self, other: Extent) -> Extent | None:
        """The bytes in both, or None when there are none."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Extent(start, stop - start) if start < stop else None

    def contains(self, other: Extent) -> bool:
        """True when every byte of `other` is in this extent."""
        return self.start <= other.start and other.stop <= self.stop

    def shift(self, delta: int) -> Extent:
        """The same length, `delta` bytes further on."""
        return Extent(self.start + delta, self.length)


def coalesce(extents: Iterable[Extent], gap: int = 0) -> tuple[Extent, ...]:
    """The fewest extents, sorted, that cover the given ones, joining those at most `gap` bytes apart."""
    merged: list[list[int]] = []
    for extent in sorted(e for e in extents if e.length):
        if merged and extent.start <= merged[-1][1] + gap:
            merged[-1][1] = max(merged[-1][1], extent.stop)
        else:
            merged.append([extent.start, extent.stop])
    return tuple(Extent(start, stop - start) for start, stop in merged)


def complement(extents: Iterable[Extent], within: Extent) -> tuple[Extent, ...]:
    """The parts of `within` that none of the extents covers, in order."""
    gaps: list[Extent] = []
    position = within.start
    for extent in coalesce(extents):
        if extent.start > position:
            gaps.append(Extent(position, min(extent.start, within.stop) - position))
        position = max(position, extent.stop)
        if position >= within.stop:
            break
    if position < within.stop:
        gaps.append(Extent(position, within.stop - position))
    return tuple(gap for gap in gaps if gap.length > 0)


def locate(starts: Sequence[int], offset: int) -> int:
    """Index of the last entry of sorted `starts` that is at most `offset`; -1 when there is none."""
    return bisect_right(starts, offset) - 1
