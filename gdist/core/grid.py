"""How a tensor is cut: slabs for devices, shards for hosts, inner chunks for readers.

    tensor   ⊇  shard  (one file: what one host keeps, or an even part of it)
             ⊇  slab   (what one device holds)
             ⊇  chunk  (a row block of a slab, near 16 MiB: the unit read and digested alone)

All four are regular grids, each dividing the one before, so "which shards hold this box" is arithmetic.
Where a shard is cut smaller than a slab, the order of the middle two is the other way round.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt, prod

from gdist.core.box import Box
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec, slab_indices, split_counts

TINY, PASSED = 64, 32  # a soft limit is passed, up to 32-fold, where blocks within it were a 64th of it
CHUNK_BYTES = 16 * 2**20  # facts: reading speed is flat from 1 to 64 MiB; 16 keeps digests and indexes small


@dataclass(frozen=True, slots=True)
class ShardGrid:
    """Shapes, in elements, of a tensor and of its shards, slabs and inner chunks."""

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    slab: tuple[int, ...]
    chunk: tuple[int, ...]

    def __post_init__(self) -> None:
        for size, shard, slab, chunk in zip(self.shape, self.shard, self.slab, self.chunk, strict=True):
            if size:
                fits = size % shard == size % slab == shard % chunk == slab % chunk == 0
                assert fits and (shard % slab == 0 or slab % shard == 0), f"grid {self}"

    @property
    def shards(self) -> tuple[int, ...]:
        """Number of shards per dimension."""
        return tuple(size // shard for size, shard in zip(self.shape, self.shard, strict=True))

    def box_of(self, index: tuple[int, ...]) -> Box:
        """The box of one shard."""
        start = tuple(i * s for i, s in zip(index, self.shard, strict=True))
        return Box(start, tuple(a + s for a, s in zip(start, self.shard, strict=True)))


def held_shape(grid: ShardGrid, mesh: Mesh, spec: PartitionSpec) -> tuple[int, ...]:
    """The shape of what one device holds: a slab, which in the grid of a tensor without elements has some."""
    if 0 not in grid.shape:
        return grid.slab
    counts = split_counts(mesh, spec, len(grid.shape))
    return tuple(size // count for size, count in zip(grid.shape, counts, strict=True))


def shards_of(
    grid: ShardGrid, mesh: Mesh, spec: PartitionSpec, places: Iterable[int]
) -> tuple[tuple[int, ...], ...]:
    """The indexes of the shards that hold the slabs of the devices at some places, in C order."""
    if 0 in grid.shape:
        return ()
    found: set[tuple[int, ...]] = set()
    for slab in slab_indices(mesh, spec, len(grid.shape), places):
        ranges = (
            range(i * size // cut, max((i + 1) * size // cut, i * size // cut + 1))
            for i, size, cut in zip(slab, grid.slab, grid.shard, strict=True)
        )
        found.update(itertools.product(*ranges))
    return tuple(sorted(found))


def row_block(shape: tuple[int, ...], itemsize: int, limit: int, *, soft: bool = False) -> tuple[int, ...]:
    """The largest even row block of a C-ordered array within `limit` bytes; at least one row.

    Leading dimensions 1, one dimension cut by a divisor, trailing dimensions whole: such blocks, one
    after the other, are the array's own bytes. A `soft` limit is passed where the only even blocks within it
    are tiny: a vocabulary may be a prime number, and its rows one by one tens of thousands of blocks.
    """
    block = list(shape)
    for dimension, size in enumerate(shape):
        if prod(block) * itemsize <= limit or not size:
            break
        rest = prod(block[dimension + 1 :]) * itemsize
        most = max(limit // max(rest, 1), 1)
        divisors = _divisors(size)
        block[dimension] = max(d for d in divisors if d <= most)
        if soft and block[dimension] * TINY < most:
            larger = min(d for d in divisors if d > most)
            if larger <= most * PASSED:
                block[dimension] = larger
                break  # past the limit on purpose: what follows stays whole
    return tuple(block)


def _divisors(size: int) -> list[int]:
    low = [d for d in range(1, isqrt(size) + 1) if size % d == 0]
    return [*low, *(size // d for d in low)]


def _host_factor(mesh: Mesh, spec: PartitionSpec, ndim: int, count: int) -> tuple[int, ...]:
    """How many neighbouring slabs per dimension every one of `count` hosts holds together."""
    factors: list[int] | None = None
    for host in range(count):
        held = slab_indices(mesh, spec, ndim, HostGroup(host, count).devices(mesh))
        places = [sorted({index[d] for index in held}) for d in range(ndim)]
        lengths = [1] * ndim
        if prod(map(len, places)) == len(held):  # else they are no box: files of one slab each
            for d, row in enumerate(places):
                if row[-1] - row[0] + 1 == len(row) and row[0] % len(row) == 0:
                    lengths[d] = len(row)
        factors = (
            lengths
            if factors is None
            else [a if a == b else 1 for a, b in zip(factors, lengths, strict=True)]
        )
    return tuple(factors or [1] * ndim)


class GridMaker:
    """Makes grids for one mesh and number of hosts; remembers what a spec means on it."""

    def __init__(
        self, mesh: Mesh, hosts: int = 1, *, chunk_bytes: int = CHUNK_BYTES, shard_bytes: int | None = None
    ):
        self._mesh = mesh
        self._hosts = hosts
        self._chunk_bytes = chunk_bytes
        self._shard_bytes = shard_bytes
        self._factors: dict[tuple[PartitionSpec, int], tuple[int, ...]] = {}

    def grid(self, shape: tuple[int, ...], itemsize: int, spec: PartitionSpec) -> ShardGrid:
        """The grid of a tensor; the spec must divide the shape.

        `shard_bytes` bounds a shard, for targets that take a shard whole and in memory.
        """
        ndim = len(shape)
        if 0 in shape:  # no element, no shard: any legal shapes do
            ones = tuple(max(size, 1) for size in shape)
            return ShardGrid(shape, ones, ones, ones)
        counts = split_counts(self._mesh, spec, ndim)
        slab = tuple(size // count for size, count in zip(shape, counts, strict=True))
        chunk = row_block(slab, itemsize, self._chunk_bytes, soft=True)
        key = (spec, ndim)
        if key not in self._factors:
            self._factors[key] = _host_factor(self._mesh, spec, ndim, self._hosts)
        shard = tuple(s * f for s, f in zip(slab, self._factors[key], strict=True))
        if self._shard_bytes is not None and prod(shard) * itemsize > self._shard_bytes:
            shard = row_block(slab, itemsize, self._shard_bytes)
            if any(s % c for s, c in zip(shard, chunk, strict=True)):
                chunk = row_block(shard, itemsize, self._chunk_bytes)
        return ShardGrid(shape, shard, slab, chunk)
