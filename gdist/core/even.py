"""Even shares: what each host takes in when collectives move it to where it belongs.

Every tensor is cut into equal row blocks, which are dealt out in order, so that each host has one contiguous
run of the tensor's elements and takes in 1/H of it, whatever it will keep. A block is as large as an even
deal allows; where no number of equal blocks divides among the hosts, they are as many as make the largest
share at most a twentieth larger than the others.

    (8, 6144, 1024) on 4 hosts      4 blocks of (2, 6144, 1024), one each
    (6, 4096, 1024) on 4 hosts      12 blocks of (1, 2048, 1024), three each
    (7,)            on 4 hosts      1 block: so little is taken in by one host, by turns
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from math import isqrt, prod

from gdist.core.grid import CHUNK_BYTES, ShardGrid, row_block
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.plan import HostPlan, ShardTask, TensorPlan

LEAST_BLOCK_BYTES = 2**16  # below it, files and messages cost more than what they hold
MOST_BLOCKS = 32  # of a share: each is a file
UNEVEN = 1.05  # the largest share over an even one, where blocks may be made smaller for it
TURNS = 8  # what does not deal out evenly begins at one of so many hosts: few patterns, few programs
HOSTS = "hosts"  # the one mesh axis of even shares


def even_mesh(count: int) -> Mesh:
    """The mesh of a store that holds even shares: one place a host."""
    return Mesh(((HOSTS, count),))


def plan_even(plan: HostPlan) -> HostPlan:
    """What a host takes in of the tensors of a plan, so that all hosts take in alike.

    The plan is a store's like any other: tensors, payload and host are the same, the grids are others.
    """
    tensors = []
    for number, tensor in enumerate(plan.tensors):
        spec = tensor.tensor.spec
        grid = even_grid(spec.shape, spec.dtype.itemsize, plan.host.count)
        shards = tuple(
            ShardTask(number, index, grid.box_of(index)) for index in even_shards(grid, number, plan.host)
        )
        tensors.append(TensorPlan(tensor.tensor, PartitionSpec(), grid, shards))
    return replace(plan, mesh=even_mesh(plan.host.count), tensors=tuple(tensors))


@lru_cache(1024)  # a model has few shapes
def even_grid(shape: tuple[int, ...], itemsize: int, hosts: int) -> ShardGrid:
    """The blocks that a tensor is dealt out in."""
    if 0 in shape:
        ones = tuple(max(size, 1) for size in shape)
        return ShardGrid(shape, ones, ones, ones)
    block = _block(shape, itemsize, hosts)
    return ShardGrid(shape, block, block, row_block(block, itemsize, CHUNK_BYTES, soft=True))


def _block(shape: tuple[int, ...], itemsize: int, hosts: int) -> tuple[int, ...]:
    """The largest block that makes shares even enough; else the one that makes the largest share least."""
    size = prod(shape)
    best, least = shape, size * hosts
    for block in _blocks(shape):
        if prod(block) * itemsize < LEAST_BLOCK_BYTES or size > prod(block) * hosts * MOST_BLOCKS:
            break
        largest = -(-size // prod(block) // hosts) * prod(block)
        if largest < least:
            best, least = block, largest
        if largest * hosts <= UNEVEN * size:
            break
    return best


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Row blocks that divide a shape evenly, largest first."""
    yield shape
    for dimension, size in enumerate(shape):
        low = [d for d in range(1, isqrt(size) + 1) if size % d == 0]
        for rows in sorted({*low, *(size // d for d in low)} - {size}, reverse=True):
            yield (*(1 for _ in shape[:dimension]), rows, *shape[dimension + 1 :])


def even_shards(grid: ShardGrid, number: int, host: HostGroup) -> Sequence[tuple[int, ...]]:
    """The blocks of the tensor with this number that a host takes in, in order.

    Where blocks do not divide among the hosts, those with one more change by turns.
    """
    if 0 in grid.shape:
        return ()
    counts = grid.shards
    blocks = prod(counts)
    first = number % TURNS * host.count // TURNS if blocks % host.count else 0
    turn = (host.index - first) % host.count
    return [_unravel(n, counts) for n in range(_start(turn, blocks, host), _start(turn + 1, blocks, host))]


def _start(turn: int, blocks: int, host: HostGroup) -> int:
    return turn * blocks // host.count


def _unravel(ordinal: int, counts: Sequence[int]) -> tuple[int, ...]:
    index = []
    for count in reversed(counts):
        ordinal, i = divmod(ordinal, count)
        index.append(i)
    return tuple(reversed(index))
