"""What conversion makes of tensors, and that the bytes a shard is made of all come, against plain NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.convert import converted, disk_for_staging, parse_dtype, staged_nbytes, staging
from gdist.core.dtypes import BY_NAME, DType
from gdist.core.extent import Extent
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.payload import Payload, PayloadFile
from gdist.core.placer import Placer
from gdist.core.plan import HostPlan, plan_host
from gdist.core.rules import parse_rules
from gdist.core.tensor import Order, Part, Quantisation, StoredTensor, TensorSpec
from gdist.errors import RequestError

BFLOAT16, FLOAT32, INT8 = BY_NAME["bfloat16"], BY_NAME["float32"], BY_NAME["int8"]


def stored(name: str, shape: tuple[int, ...], dtype: DType = INT8, start: int = 0) -> StoredTensor:
    spec = TensorSpec(name, shape, dtype)
    pair, _, role = name.rpartition(".")
    half = Quantisation(pair, role, 0, 0) if role in ("weight", "scales") else None
    return StoredTensor(spec, (Part(Extent(start, spec.nbytes), Box.whole(shape)),), half)


# --- what becomes of tensors ------------------------------------------------------------------------------


def test_pairs_become_one_and_floats_are_cast_in_the_same_order() -> None:
    tensors = [
        stored("embed", (8, 4), FLOAT32),
        stored("l.0.w.weight", (2, 8, 4)),
        stored("l.0.w.scales", (2, 2, 4), BFLOAT16),
        stored("norm", (4,), BFLOAT16),
        stored("steps", (4,), BY_NAME["int32"]),
        stored("phases", (4,), BY_NAME["complex64"]),
        stored("fp8", (4,), BY_NAME["float8_e5m2"]),
    ]
    made = converted(tensors, BFLOAT16)
    assert [(t.spec.name, t.spec.shape, t.spec.dtype.name) for t in made] == [
        ("embed", (8, 4), "bfloat16"),
        ("l.0.w", (2, 8, 4), "bfloat16"),
        ("norm", (4,), "bfloat16"),
        ("steps", (4,), "int32"),
        ("phases", (4,), "complex64"),
        ("fp8", (4,), "bfloat16"),
    ]
    assert [[f.tensor for f in t.factors] for t in made] == [
        tensors[:1],
        tensors[1:3],
        [],
        [],
        [],
        tensors[6:],
    ]
    assert [f.ratio for f in made[1].factors] == [(), (1, 4, 1)]
    assert made[2:5] == tuple(tensors[3:6]), "what needs no conversion is as it was"
    assert not any(t.quantisation for t in made)


def test_one_group_for_each_row_goes_element_by_element() -> None:
    (made,) = converted([stored("w.weight", (8, 4)), stored("w.scales", (8, 4), BFLOAT16)], FLOAT32)
    assert [f.ratio for f in made.factors] == [(), ()]


def test_half_a_pair_and_a_name_twice_are_refused() -> None:
    with pytest.raises(RequestError, match=r"without their other half: a\.weight, b\.scales"):
        converted([stored("a.weight", (8, 4)), stored("b.scales", (1, 4))], BFLOAT16)
    pair = [stored("a.weight", (8, 4)), stored("a.scales", (1, 4))]
    with pytest.raises(RequestError, match="names of other tensors: a"):
        converted([*pair, stored("a", (1,))], BFLOAT16)


def test_other_types_are_refused() -> None:
    assert parse_dtype("float16").itemsize == 2
    for name in ("int8", "float64", "", "bf16"):
        with pytest.raises(RequestError, match="is none of bfloat16, float16, float32"):
            parse_dtype(name)


# --- where the bytes go -----------------------------------------------------------------------------------


@st.composite
def plans(draw: Callable) -> tuple[HostPlan, dict[str, np.ndarray], bytes]:
    """A host's plan of pairs and a float tensor, the stored arrays as bytes, and the payload."""
    mesh = Mesh(tuple((name, draw(st.sampled_from([1, 2, 3]))) for name in ("d", "m")))
    hosts = draw(st.sampled_from([n for n in range(1, mesh.devices + 1) if mesh.devices % n == 0]))
    spec = draw(st.sampled_from([["d", "m"], ["m", "d"], [["d", "m"]], [None, "m"], []]))
    tensors, arrays, content = [], {}, bytearray(draw(st.integers(0, 5)))

    def add(name: str, shape: tuple[int, ...], dtype: DType) -> None:
        order = draw(st.sampled_from(list(Order)))
        array = np.random.default_rng(len(content)).integers(1, 255, (*shape, dtype.itemsize), np.uint8)
        turned = array.transpose(*range(len(shape))[::-1], len(shape)) if order is Order.F else array
        part = Part(Extent(len(content), array.size), Box.whole(shape), order)
        content.extend(turned.tobytes() + bytes(draw(st.integers(0, 3))))
        whole = stored(name, shape, dtype)
        tensors.append(StoredTensor(whole.spec, (part,), whole.quantisation))
        arrays[name] = array

    for number in range(draw(st.integers(1, 2))):
        shape = draw(st.sampled_from([(36, 12), (72, 6)]))
        groups = draw(st.sampled_from([n for n in (1, 2, 4, 9, 36) if shape[0] % n == 0]))
        add(f"w{number}.weight", shape, INT8)
        add(f"w{number}.scales", (groups, shape[1]), BFLOAT16)
    add("norm", (36, 6), FLOAT32)
    piece_length = draw(st.sampled_from([7, 64, 1000]))
    payload = Payload((PayloadFile("f", 0, len(content)),), piece_length, len(content))
    plan = plan_host(
        payload,
        converted(tensors, BFLOAT16),
        mesh,
        parse_rules({"rules": [[".*", spec]]}),
        HostGroup(draw(st.integers(0, hosts - 1)), hosts),
        shard_bytes=draw(st.sampled_from([None, 100])),
    )
    return plan, arrays, bytes(content)


@settings(max_examples=40)
@given(plans(), st.randoms(use_true_random=False))
def test_all_that_a_shard_is_made_of_comes_once_and_is_placed_where_it_waits(made, random) -> None:
    plan, arrays, content = made
    files = {
        task: np.zeros(staged_nbytes(tensor, task), np.uint8)
        for tensor in plan.tensors
        for task in tensor.shards
    }
    placer, pieces, whole = Placer(plan), list(plan.pieces), []
    random.shuffle(pieces)
    assert placer.missing_nbytes == plan.bytes_wanted
    for piece in pieces:
        extent = plan.payload.extent_of(piece)
        data = np.frombuffer(content, np.uint8)[extent.start : extent.stop]
        assert placer.accept(piece), "a planned piece has bytes for a shard"
        for p in placer.accept(piece):
            block = data[p.source.start : p.source.stop].reshape(p.view)[p.take.slices()]
            block = (
                block.transpose(*range(block.ndim - 1)[::-1], block.ndim - 1) if p.order is Order.F else block
            )
            start, layout = staging(plan.tensors[p.shard.tensor], p.shard)[p.factor]
            for part, local, offset in layout.targets(p.target):
                chunk = files[p.shard][start + offset : start + offset + layout.chunk_nbytes]
                place = chunk.reshape(*layout.grid.chunk, layout.itemsize)[local.slices()]
                assert not place.any(), "a byte is placed twice"
                place[...] = block[part.relative_to(p.target.start).slices()]
        whole += placer.settle(piece)
    assert set(whole) == set(files) and not placer.missing_nbytes
    for task, file in files.items():
        tensor = plan.tensors[task.tensor]
        for factor, (start, layout) in zip(tensor.tensor.factors, staging(tensor, task), strict=True):
            wanted = arrays[factor.tensor.spec.name][factor.box_for(task.box).slices()]
            found = np.zeros_like(wanted)
            for index, extent in layout.chunks():
                where = tuple(
                    slice(i * c, (i + 1) * c) for i, c in zip(index, layout.grid.chunk, strict=True)
                )
                chunk = file[start + extent.start : start + extent.stop]
                found[where] = chunk.reshape(*layout.grid.chunk, layout.itemsize)
            np.testing.assert_array_equal(found, wanted)


def test_a_plan_of_another_type_is_another_plan() -> None:
    tensors = [
        stored("a.weight", (8, 4)),
        stored("a.scales", (2, 4), BFLOAT16, 32),
        stored("n", (4,), FLOAT32, 48),
    ]
    payload = Payload((PayloadFile("f", 0, 64),), 16, 64)
    plans = [
        plan_host(payload, chosen, Mesh(), None)
        for chosen in (tensors, converted(tensors, BFLOAT16), converted(tensors, FLOAT32))
    ]
    assert len({plan.digest for plan in plans}) == 3
    assert [plan.bytes_wanted for plan in plans] == [64, 64, 64]
    assert [sum(t.nbytes for t in plan.tensors) for plan in plans] == [64, 72, 144]
    assert [disk_for_staging(plan) > 0 for plan in plans] == [False, True, True]
