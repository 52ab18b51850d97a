"""Bytes of pieces that hosts need: as many as are counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.convert import converted
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.needs import Needs, band_of, pieces_in_order
from gdist.core.payload import Payload, PayloadFile
from gdist.core.plan import HostPlan, plan_hosts
from gdist.core.rules import parse_rules
from gdist.core.tensor import Order, Part, Quantisation, StoredTensor, TensorSpec

MESH = Mesh((("data", 2), ("model", 4)))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], Box]:
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    edges = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    return shape, Box(tuple(a for a, _ in edges), tuple(b for _, b in edges))


@given(boxes(), st.integers(0, 7))
def test_a_band_has_the_bytes_of_its_box(case: tuple[tuple[int, ...], Box], first: int) -> None:
    shape, box = case
    inside = np.zeros(shape, int)
    inside[box.slices()] = 1
    flat = inside.ravel()
    sums = [0, *flat.cumsum().tolist()]
    band = band_of(Extent(first, flat.size), shape, box)
    for position in range(flat.size + 1):
        assert band.before(position) == sums[position]
        for stop in range(position, flat.size + 1):
            extent = Extent(first + position, stop - position)
            assert band.nbytes_in(extent) == sums[stop] - sums[position]
    assert band.nbytes_in(Extent(0, first + flat.size + 5)) == sums[-1]
    assert band.nbytes_in(Extent(first + flat.size, 5)) == 0


def counted(plan: HostPlan) -> dict[int, int]:
    """The same, byte by byte: every element of the payload is marked where a shard wants it."""
    wanted = np.zeros(plan.payload.length, int)
    for tensor in plan.tensors:
        for factor in tensor.tensor.sources:
            itemsize = factor.tensor.spec.dtype.itemsize
            inside = np.zeros((*factor.tensor.spec.shape, itemsize), int)
            for shard in tensor.shards:
                inside[factor.box_for(shard.box).slices()] = 1
            for part in factor.tensor.parts:
                found = inside[part.box.slices()]
                if part.order is Order.F:
                    found = found.transpose(*range(found.ndim - 1)[::-1], found.ndim - 1)
                wanted[part.extent.start : part.extent.stop] |= found.ravel()
    length = plan.payload.piece_length
    sums = (wanted[start : start + length].sum() for start in range(0, plan.payload.length, length))
    return {piece: int(nbytes) for piece, nbytes in enumerate(sums) if nbytes}


def lay_out(shapes: list[tuple[int, int]], gap: int, orders: list[Order]) -> tuple[int, list[StoredTensor]]:
    tensors, position = [], gap
    for number, (shape, order) in enumerate(zip(shapes, orders, strict=False)):
        spec = TensorSpec(f"layers.{number}.w", shape, BY_NAME["float16"])
        half = shape[1] // 2
        parts = []
        for box in (Box((0, 0), (shape[0], half)), Box((0, half), shape)):
            parts.append(Part(Extent(position, spec.nbytes_of(box)), box, order))
            position += spec.nbytes_of(box) + gap
        tensors.append(StoredTensor(spec, tuple(parts)))
    return position, tensors


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
    st.integers(0, 5),
    st.lists(st.sampled_from(Order), min_size=3, max_size=3),
    st.integers(1, 40),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([["data", "model"], ["model"], [None, ["data", "model"]], [None, "data"]]),
)
def test_needs_are_those_counted_byte_by_byte(
    sizes: list[tuple[int, int]],
    gap: int,
    orders: list[Order],
    piece_length: int,
    hosts: int,
    spec: list[object],
) -> None:
    length, tensors = lay_out([(8 * a, 8 * b) for a, b in sizes], gap, orders)
    payload = Payload((PayloadFile("f", 0, length),), piece_length, length)
    rules = parse_rules({"axes": ["data", "model"], "rules": [[".*", spec]]})
    groups = [HostGroup(index, hosts) for index in range(hosts)]
    plans = plan_hosts(payload, tensors, MESH, rules, groups)
    needs = Needs(plans)
    for host, plan in enumerate(plans):
        expected = counted(plan)
        assert needs.by_piece(host) == expected
        assert expected.keys() == set(plan.pieces)
        assert {piece: needs.nbytes(host, piece) for piece in range(payload.pieces)} == {
            piece: expected.get(piece, 0) for piece in range(payload.pieces)
        }
        assert sum(expected.values()) == plan.bytes_wanted
    assert set(pieces_in_order(tensors, payload)) == set().union(*(plan.pieces for plan in plans))


@pytest.mark.parametrize("piece_length", [8, 64, 1000])
def test_a_converted_pair_needs_both_its_halves(piece_length: int) -> None:
    halves = []
    for role, shape, start in (("weight", (8, 16), 0), ("scales", (2, 16), 128)):
        dtype = BY_NAME["int8" if role == "weight" else "float32"]
        spec = TensorSpec(f"w.{role}", shape, dtype)
        part = Part(Extent(start, spec.nbytes), Box.whole(shape))
        halves.append(StoredTensor(spec, (part,), Quantisation("w", role, 2, 0)))
    payload = Payload((PayloadFile("f", 0, 256),), piece_length, 256)
    groups = [HostGroup(index, 8) for index in range(8)]
    rules = parse_rules({"axes": ["data", "model"], "rules": [[".*", ["data", "model"]]]})
    plans = plan_hosts(payload, converted(halves, BY_NAME["bfloat16"]), MESH, rules, groups)
    needs = Needs(plans)
    for host, plan in enumerate(plans):
        assert needs.by_piece(host) == counted(plan)


def test_pieces_are_in_loading_order() -> None:
    length, tensors = lay_out([(8, 8), (8, 8)], 0, [Order.C] * 2)
    payload = Payload((PayloadFile("f", 0, length),), 48, length)
    assert pieces_in_order(tensors[::-1], payload) == (2, 3, 4, 5, 0, 1)
    assert pieces_in_order([], payload) == ()
