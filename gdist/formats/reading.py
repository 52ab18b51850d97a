"""Scans made of other scans: of a part of a file, and with fewer, larger questions."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from gdist.core.extent import Extent

NEAR_BYTES = 64 * 1024  # what is asked for so soon after the last is taken for a row of small things
AHEAD_BYTES = 256 * 1024  # asked for at once then; at most so much is fetched that nobody looks at

_Found = TypeVar("_Found")


def shifted(scan: Generator[Extent, bytes, _Found], by: int) -> Generator[Extent, bytes, _Found]:
    """A scan of what starts `by` bytes into a file, as a scan of that file."""
    try:
        wanted = next(scan)
        while True:
            wanted = scan.send((yield wanted.shift(by)))
    except StopIteration as stop:
        found: _Found = stop.value
        return found


def reading_ahead(scan: Generator[Extent, bytes, _Found], size: int) -> Generator[Extent, bytes, _Found]:
    """A scan of a file of `size` bytes that asks for `AHEAD_BYTES` where it would go in small steps.

    What lies far apart is asked for as it is.
    """
    at, held, last = 0, b"", -NEAR_BYTES
    try:
        wanted = next(scan)
        while True:
            if wanted.start < at or wanted.stop > at + len(held):
                near = 0 <= wanted.start - last < NEAR_BYTES
                length = max(wanted.length, min(AHEAD_BYTES, size - wanted.start)) if near else wanted.length
                at, held = wanted.start, (yield Extent(wanted.start, length))
            last = wanted.stop
            wanted = scan.send(held[wanted.start - at : wanted.stop - at])
    except StopIteration as stop:
        found: _Found = stop.value
        return found
