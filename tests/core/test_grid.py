"""Grids: regular, within their bounds, and never two hosts in one shard unless it is the same shard."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.grid import GridMaker, ShardGrid, row_block
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec, slab_of, split_counts

NAMES = ("a", "b", "c", "d")


@given(st.lists(st.integers(1, 12), max_size=4), st.sampled_from([1, 2, 4, 8]), st.integers(1, 600))
def test_a_row_block_is_the_largest_even_run_of_rows(shape: list[int], itemsize: int, limit: int) -> None:
    block = row_block(tuple(shape), itemsize, limit)
    assert all(size % part == 0 for size, part in zip(shape, block, strict=True))
    cut = next((d for d, (size, part) in enumerate(zip(shape, block, strict=True)) if size != part), None)
    if cut is None:
        assert prod(shape) * itemsize <= limit or prod(shape) == 1
        return
    assert block[cut + 1 :] == tuple(shape[cut + 1 :]) or all(part == 1 for part in block[: cut + 1])
    # the blocks one after the other are the array's own bytes
    pitch, first = prod(block), np.zeros(shape, bool)
    first[tuple(slice(part) for part in block)] = True
    assert first.ravel()[:pitch].all() and not first.ravel()[pitch:].any()
    assert pitch * itemsize <= limit or pitch == 1
    larger = [
        (*block[:d], m, *shape[d + 1 :])
        for d, size in enumerate(shape)
        for m in range(1, size + 1)
        if size % m == 0 and all(part == 1 for part in block[:d])
    ]
    fitting = [prod(b) for b in larger if prod(b) * itemsize <= limit]
    assert pitch == max(fitting, default=1)


@pytest.mark.parametrize(
    ("shape", "itemsize", "limit", "block"),
    [
        ((), 4, 1, ()),  # a scalar cannot be cut
        ((0, 5), 4, 1, (0, 5)),  # nor can nothing
        ((8, 4), 2, 64, (8, 4)),  # it fits whole
        ((8, 4), 2, 63, (4, 4)),  # a divisor, not 7 rows
        ((7, 4), 2, 40, (1, 4)),  # a prime number of rows leaves one
        ((8, 4), 2, 7, (1, 2)),  # less than a row
        ((2, 2), 8, 1, (1, 1)),  # less than an element
        ((2**31 - 1,), 1, 2**24, (1,)),  # a large prime, found without counting to it
    ],
)
def test_row_blocks_by_example(
    shape: tuple[int, ...], itemsize: int, limit: int, block: tuple[int, ...]
) -> None:
    assert row_block(shape, itemsize, limit) == block


@pytest.mark.parametrize(
    ("shape", "itemsize", "limit", "block"),
    [
        ((32003, 4096), 2, 2**24, (32003, 4096)),  # 32003 is prime: one block of 16 times the limit
        ((4001, 30, 35), 4, 2**24, (4001, 30, 35)),  # and what follows a passed limit is not cut
        ((65537, 4096), 2, 2**24, (1, 4096)),  # 33 times the limit: its rows
        ((50257, 768), 4, 2**24, (1733, 768)),  # 29 times a prime: there are even blocks near the limit
        ((64, 1024), 4, 2**16, (16, 1024)),  # as without `soft`
    ],
)
def test_a_soft_limit_is_passed_for_few_blocks(
    shape: tuple[int, ...], itemsize: int, limit: int, block: tuple[int, ...]
) -> None:
    assert row_block(shape, itemsize, limit, soft=True) == block


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.sampled_from([1, 2, 8]), st.integers(1, 9000)
)
def test_a_soft_block_divides_whatever_the_shape(shape: list[int], itemsize: int, limit: int) -> None:
    block = row_block(tuple(shape), itemsize, limit, soft=True)
    assert all(size % part == 0 for size, part in zip(shape, block, strict=True))
    hard = row_block(tuple(shape), itemsize, limit)
    assert prod(hard) <= prod(block) <= max(prod(hard), 32 * limit // itemsize)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Mesh, int, PartitionSpec, tuple[int, ...]]:
    """Up to four axes, devices in any order, hosts that divide them, a spec, and a shape that it divides."""
    mesh = Mesh(tuple((name, draw(st.integers(1, 4))) for name in NAMES[: draw(st.integers(0, 4))]))
    if draw(st.booleans()):
        mesh = Mesh(mesh.axes, tuple(draw(st.randoms()).sample(range(mesh.devices), mesh.devices)))
    hosts = draw(st.sampled_from([n for n in range(1, mesh.devices + 1) if mesh.devices % n == 0]))
    dims: list[tuple[str, ...]] = [() for _ in range(draw(st.integers(0, 3)))]
    if dims:
        for name in draw(st.permutations(mesh.names)):
            place = draw(st.integers(-1, len(dims) - 1))
            if place >= 0:
                dims[place] += (name,)
    spec = PartitionSpec(tuple(dims))
    shape = tuple(n * draw(st.sampled_from([1, 2, 3, 4])) for n in split_counts(mesh, spec, len(dims)))
    return mesh, hosts, spec, shape


def held(mesh: Mesh, hosts: int, spec: PartitionSpec, shape: tuple[int, ...], host: int) -> np.ndarray:
    """Which elements the devices of a host hold."""
    mask = np.zeros(shape, bool)
    for device in HostGroup(host, hosts).devices(mesh):
        mask[slab_of(mesh, spec, shape, device).slices()] = True
    return mask


@settings(max_examples=300)
@given(cuts())
def test_a_shard_belongs_to_a_host_whole_or_not_at_all(
    cut: tuple[Mesh, int, PartitionSpec, tuple[int, ...]],
) -> None:
    mesh, hosts, spec, shape = cut
    grid = GridMaker(mesh, hosts).grid(shape, 2, spec)
    for host in range(hosts):
        mask = held(mesh, hosts, spec, shape, host)
        for index in np.ndindex(*grid.shards):
            part = mask[grid.box_of(index).slices()]
            assert part.all() or not part.any(), f"host {host} holds a part of shard {index}"


@settings(max_examples=200)
@given(cuts(), st.integers(1, 200), st.none() | st.integers(1, 200))
def test_shards_slabs_and_chunks_nest_within_their_bounds(
    cut: tuple[Mesh, int, PartitionSpec, tuple[int, ...]], chunk_bytes: int, shard_bytes: int | None
) -> None:
    mesh, hosts, spec, shape = cut
    grid = GridMaker(mesh, hosts, chunk_bytes=chunk_bytes, shard_bytes=shard_bytes).grid(shape, 2, spec)
    ShardGrid(grid.shape, grid.shard, grid.slab, grid.chunk)  # its own check that they nest
    counts = split_counts(mesh, spec, len(shape))
    assert grid.slab == tuple(size // count for size, count in zip(shape, counts, strict=True))
    assert prod(grid.chunk) * 2 <= chunk_bytes or prod(grid.chunk) == 1
    if shard_bytes is not None:
        assert prod(grid.shard) * 2 <= shard_bytes or prod(grid.shard) == 1
    assert prod(grid.shards) * prod(grid.shard) == prod(shape)


@pytest.mark.parametrize(
    ("hosts", "spec", "shard"),
    [
        (1, (("data",), ("model",)), (32, 64)),  # one host keeps all in one file
        (2, (("data",), ("model",)), (16, 64)),  # a data row each
        (4, (("data",), ("model",)), (16, 32)),  # half a row each
        (8, (("data",), ("model",)), (16, 16)),  # a slab each
        (2, (("model",), ("data",)), (32, 32)),  # a column each
        (2, ((), ("model",)), (32, 64)),  # replicated over data: both keep the same
        (2, (), (32, 64)),
    ],
)
def test_a_shard_is_what_one_host_keeps(
    hosts: int, spec: tuple[tuple[str, ...], ...], shard: tuple[int, ...]
) -> None:
    mesh = Mesh((("data", 2), ("model", 4)))
    assert GridMaker(mesh, hosts).grid((32, 64), 4, PartitionSpec(spec)).shard == shard


def test_a_host_whose_devices_are_no_box_keeps_a_file_a_slab() -> None:
    mesh = Mesh((("data", 2), ("model", 3)))  # three hosts of two: the middle one wraps around
    grid = GridMaker(mesh, 3).grid((4, 6), 1, PartitionSpec((("data",), ("model",))))
    assert grid.shard == grid.slab == (2, 2)


def test_slabs_that_are_as_many_as_a_box_but_none_keep_a_file_each() -> None:
    # One host of six holds as many slabs as a box of them has, but they lie apart.
    mesh = Mesh((("a", 2), ("b", 2), ("c", 2), ("d", 3)))
    spec = PartitionSpec((("c",), ("b", "a")))
    grid = GridMaker(mesh, 6).grid((2, 4), 1, spec)
    for host in range(6):
        mask = held(mesh, 6, spec, (2, 4), host)
        parts = [mask[grid.box_of(index).slices()] for index in np.ndindex(*grid.shards)]
        assert all(part.all() or not part.any() for part in parts), f"host {host}"


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0)])
def test_nothing_has_a_grid_and_no_shard(shape: tuple[int, ...]) -> None:
    grid = GridMaker(Mesh((("a", 4),)), 2).grid(shape, 4, PartitionSpec())
    assert prod(grid.shards) == 0 and all(grid.shard) and all(grid.chunk)


def test_a_grid_that_does_not_nest_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="grid"):
        ShardGrid((8,), (4,), (4,), (3,))
