"""Where a strided view of a storage lies in its file: one run of bytes, or the fewest that tile it.

A view's element (i0, i1, ...) is element `offset + i0 * strides[0] + i1 * strides[1] + ...` of its storage.
Dimensions that lie in memory without a gap, in C or in Fortran order, form one run; over every other
dimension the view is cut, one run for each of its indices:

    shape (2, 3), strides (3, 1)    one run, C           shape (2, 3), strides (8, 1)    two runs of 3
    shape (2, 3), strides (1, 2)    one run, Fortran     shape (2, 3), strides (0, 1)    the same run twice
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.tensor import Order, Part
from gdist.errors import CorruptError, UnsupportedError

MAX_RUNS = 1 << 14  # of one array; each is written into the store's manifest, and read by itself


@dataclass(frozen=True, slots=True)
class Placed:
    """The fields of a `FoundArray` that say where it lies; see there."""

    extent: Extent
    order: Order
    runs: tuple[Part, ...] = ()


def place_strided(
    storage: Extent, offset: int, shape: Sequence[int], strides: Sequence[int], itemsize: int
) -> Placed:
    """Where the view of this shape lies; `offset` and `strides` count elements of the `storage`.

    Raises:
        CorruptError: when it leaves its storage, or has no stride for a dimension, or a negative one.
        UnsupportedError: when it would be more than `MAX_RUNS` runs.
    """
    what = f"a view of shape {list(shape)}, strides {list(strides)} and offset {offset}"
    if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
        raise CorruptError(f"{what} is none")
    available, size = storage.length // itemsize, prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if size else offset - 1
    if max(last + 1, offset) > available:
        raise CorruptError(f"{what} needs {last + 1} elements, its storage has {available}")
    if not size:
        return Placed(Extent(storage.start + offset * itemsize, 0), Order.C)
    joined, order = _joined(shape, strides)
    nbytes = itemsize * prod(shape[d] for d in joined)
    cut = [d for d in range(len(shape)) if shape[d] > 1 and d not in joined]
    count = prod(shape[d] for d in cut)
    if count > MAX_RUNS:
        raise UnsupportedError(
            f"{what} is {count} runs of {nbytes} bytes, {MAX_RUNS} are read",
            hint="save a contiguous copy of it, where you trust the file",
        )
    first = storage.start + offset * itemsize
    if not cut:
        return Placed(Extent(first, nbytes), order)
    runs = []
    for index in itertools.product(*(range(shape[d]) for d in cut)):
        where = dict(zip(cut, index, strict=True))
        start = first + itemsize * sum(i * strides[d] for d, i in where.items())
        low = tuple(where.get(d, 0) for d in range(len(shape)))
        high = tuple(where[d] + 1 if d in where else n for d, n in enumerate(shape))
        runs.append(Part(Extent(start, nbytes), Box(low, high), order))
    return Placed(Extent(first, storage.start + (last + 1) * itemsize - first), Order.C, tuple(runs))


def _joined(shape: Sequence[int], strides: Sequence[int]) -> tuple[frozenset[int], Order]:
    """The dimensions that form the longest run, and its order."""
    fast_last = _chain(shape, strides, range(len(shape) - 1, -1, -1))
    fast_first = _chain(shape, strides, range(len(shape)))
    if prod(shape[d] for d in fast_first) > prod(shape[d] for d in fast_last):
        return frozenset(fast_first), Order.F
    return frozenset(fast_last), Order.C


def _chain(shape: Sequence[int], strides: Sequence[int], fastest_first: Sequence[int]) -> tuple[int, ...]:
    """Of the dimensions, in this order, the most whose strides are the elements of all chosen before."""
    chains: dict[int, tuple[int, ...]] = {1: ()}  # by elements joined, which are all that matters
    for d in fastest_first:
        if shape[d] > 1 and strides[d] in chains:
            chains.setdefault(strides[d] * shape[d], (*chains[strides[d]], d))
    return chains[max(chains)]
