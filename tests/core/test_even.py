"""Even shares: every block is one host's, a share is one run, and shares are alike."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.even import (
    LEAST_BLOCK_BYTES,
    MOST_BLOCKS,
    UNEVEN,
    even_grid,
    even_mesh,
    even_shards,
    plan_even,
)
from gdist.core.extent import Extent
from gdist.core.mesh import HostGroup, PartitionSpec, parse_mesh
from gdist.core.payload import Payload, PayloadFile
from gdist.core.placer import Placer
from gdist.core.plan import HostPlan, plan_host
from gdist.core.tensor import Part, StoredTensor, TensorSpec

shapes = st.lists(st.integers(0, 40), max_size=4).map(tuple)
small = st.lists(st.integers(0, 60), max_size=3).map(tuple)


def plan_of(shapes: list[tuple[int, ...]], host: HostGroup, piece_length: int = 4096) -> HostPlan:
    tensors, position = [], 0
    for number, shape in enumerate(shapes):
        spec = TensorSpec(f"t{number}", shape, BY_NAME["float32"])
        tensors.append(StoredTensor(spec, (Part(Extent(position, spec.nbytes), Box.whole(shape)),)))
        position += spec.nbytes
    payload = Payload((PayloadFile("all", 0, position),), piece_length, position)
    return (
        plan_host(payload, tensors, parse_mesh("1x1"), None, HostGroup(0, 1))
        if host.count == 1
        else (plan_host(payload, tensors, parse_mesh(f"{host.count}x1"), None, host))
    )


@given(shapes, st.sampled_from([1, 2, 4, 8]), st.integers(1, 9), st.integers(0, 20))
def test_every_element_is_taken_in_by_one_host(
    shape: tuple[int, ...], itemsize: int, count: int, number: int
) -> None:
    grid = even_grid(shape, itemsize, count)
    taken = [even_shards(grid, number, HostGroup(host, count)) for host in range(count)]
    indexes = [index for share in taken for index in share]
    assert len(indexes) == len(set(indexes)) == (prod(grid.shards) if prod(shape) else 0)
    assert sum(grid.box_of(index).size for index in indexes) == prod(shape)


@given(
    st.lists(st.integers(1, 4096), min_size=1, max_size=3).map(tuple).filter(lambda s: prod(s) < 2**28),
    st.integers(1, 70),
    st.integers(0, 200),
)
def test_a_share_is_one_run_of_the_tensor(shape: tuple[int, ...], count: int, number: int) -> None:
    grid = even_grid(shape, 4, count)
    pitches = [prod(shape[d + 1 :]) for d in range(len(shape))]
    for host in range(count):
        position = None
        for index in even_shards(grid, number, HostGroup(host, count)):
            box = grid.box_of(index)
            start = sum(a * p for a, p in zip(box.start, pitches, strict=True))
            assert position in (None, start)
            position = start + box.size  # a row block: leading dimensions are 1, and one is cut


@pytest.mark.parametrize(
    ("shape", "count", "block"),
    [
        ((8, 6144, 1024), 4, (2, 6144, 1024)),  # the largest that deals out evenly
        ((8, 6144, 1024), 8, (1, 6144, 1024)),
        ((8, 6144, 1024), 16, (1, 3072, 1024)),  # more hosts than rows: the next dimension is cut
        ((8, 6144, 1024), 12, (1, 2048, 1024)),  # two blocks each
        ((6, 4096, 1024), 4, (1, 2048, 1024)),  # three each
        ((131072, 6144), 3, (4096, 6144)),  # 11 of 32 at most: within a twentieth
        ((50257, 768), 8, (1733, 768)),  # 29 rows would be even, and 217 files
        ((101, 4096), 8, (101, 4096)),  # a prime number of small rows
        ((6144,), 8, (6144,)),  # too little to be cut
        ((), 8, ()),
    ],
)
def test_blocks_of_known_shapes(shape: tuple[int, ...], count: int, block: tuple[int, ...]) -> None:
    assert even_grid(shape, 4, count).shard == block


@given(st.integers(1, 12), st.integers(1, 64), st.integers(1, 64), st.integers(1, 33))
def test_shares_of_large_tensors_are_even_where_blocks_allow_it(a: int, b: int, c: int, count: int) -> None:
    shape = (a, 64 * b, 1024 * c)
    grid = even_grid(shape, 4, count)
    blocks = prod(grid.shards)
    largest = -(-blocks // count) * prod(grid.shard)
    assert prod(grid.shard) * 4 >= min(LEAST_BLOCK_BYTES, prod(shape) * 4) and blocks <= count * MOST_BLOCKS
    smaller = [
        rows * 1024 * c
        for rows in range(1, 64 * b + 1)
        if 64 * b % rows == 0 and rows * 4096 * c >= LEAST_BLOCK_BYTES
        if a * 64 * b <= rows * count * MOST_BLOCKS
    ]
    best = min((-(-prod(shape) // size // count) * size for size in smaller), default=prod(shape))
    assert largest * count <= max(UNEVEN * prod(shape), best * count)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_small_tensors_are_taken_in_by_turns(count: int) -> None:
    grid = even_grid((16,), 4, count)
    owners = [
        [host for host in range(count) if even_shards(grid, number, HostGroup(host, count))]
        for number in range(16)
    ]
    assert all(len(found) == 1 for found in owners)
    taken = [sum(host in found for found in owners) for host in range(count)]
    assert min(taken) >= max(taken) // 2 > 0


@settings(max_examples=40)
@given(st.lists(small, min_size=1, max_size=5), st.integers(2, 5))
def test_all_pieces_come_in_and_every_byte_once(found: list[tuple[int, ...]], count: int) -> None:
    """The plan of even shares is a plan like any other: the placer fills its shards from the same pieces."""
    placed = 0
    touched: set[int] = set()
    total = 0
    for host in range(count):
        plan = plan_even(plan_of(found, HostGroup(host, count)))
        assert plan.mesh == even_mesh(count)
        assert {tensor.spec for tensor in plan.tensors} == {PartitionSpec()}
        placer = Placer(plan)
        for piece in placer.wanted():
            placed += sum(placement.nbytes for placement in placer.accept(piece))
            placer.settle(piece)
        assert not placer.missing_nbytes
        touched.update(plan.pieces)
        total = plan.payload.length
    assert placed == total
    assert len(touched) == -(-total // 4096)


def test_hosts_of_another_cut_have_other_plans() -> None:
    one = plan_of([(64, 1024)], HostGroup(0, 2))
    assert plan_even(one).digest != one.digest
    assert plan_even(one).digest != plan_even(plan_of([(64, 1024)], HostGroup(1, 2))).digest
