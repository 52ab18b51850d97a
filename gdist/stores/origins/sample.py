"""A few bytes of a checkpoint that has no digests, by which it is told from another of the same shapes.

Hosts must find the same of a copy, so times do not count, and to read all of it would take as long as the
reshard. What a step of training changes is changed nearly everywhere: a look into each tensor finds it, with
near certainty. It is no proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from gdist.core.extent import Extent

SAMPLE_BYTES = 16 * 1024  # read in about the time that a disk needs to find them
MOST_SAMPLES = 4096  # 64 MiB together: seconds, even where each is a request to a file server

T = TypeVar("T")


def spread(places: Sequence[T]) -> Sequence[T]:
    """Of all places those that are looked at: all, or `MOST_SAMPLES` at most at even distances."""
    return places[:: max(1, -(-len(places) // MOST_SAMPLES))]


def middle(extent: Extent) -> Extent:
    """The bytes of an extent that are looked at: `SAMPLE_BYTES` in its middle, or all."""
    length = min(extent.length, SAMPLE_BYTES)
    return Extent(extent.start + (extent.length - length) // 2, length)
