"""Plans and placements against plain NumPy, on random tensors, layouts, meshes and pieces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.payload import Payload, PayloadFile
from gdist.core.placer import Placement, Placer
from gdist.core.plan import HostPlan, ShardTask, plan_host
from gdist.core.tensor import Order, Part, StoredTensor, TensorSpec

Arrays = list[np.ndarray]
Stores = dict[ShardTask, np.ndarray]


@st.composite
def checkpoints(draw: Callable) -> tuple[Payload, list[StoredTensor], Arrays, bytes]:
    """A payload of one file, tensors at odd offsets in it, the arrays as bytes, and the payload's bytes."""
    tensors, arrays, content = [], [], bytearray(draw(st.integers(0, 5)))
    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.sampled_from([1, 2, 4, 6, 12]), max_size=3)))
        dtype = BY_NAME[draw(st.sampled_from(["int8", "bfloat16", "float32"]))]
        order = draw(st.sampled_from(list(Order)))
        array = np.random.default_rng(number).integers(1, 255, (*shape, dtype.itemsize), np.uint8)
        stored = array.transpose(*range(len(shape))[::-1], len(shape)) if order is Order.F else array
        extent = Extent(len(content), array.size)
        content += stored.tobytes() + bytes(draw(st.integers(0, 9)))
        tensors.append(
            StoredTensor(TensorSpec(f"t{number}", shape, dtype), (Part(extent, Box.whole(shape), order),))
        )
        arrays.append(array)
    piece_length = draw(st.sampled_from([1, 2, 3, 7, 16, 64, 1000]))
    return (
        Payload((PayloadFile("f", 0, len(content)),), piece_length, len(content)),
        tensors,
        arrays,
        bytes(content),
    )


@st.composite
def meshes(draw: Callable) -> tuple[Mesh, HostGroup]:
    """A mesh of up to three axes and one host of those that share it evenly."""
    mesh = Mesh(
        tuple(
            (name, draw(st.sampled_from([1, 2, 3, 4]))) for name in ("r", "d", "m")[: draw(st.integers(0, 3))]
        )
    )
    counts = [count for count in range(1, mesh.devices + 1) if mesh.devices % count == 0]
    count = draw(st.sampled_from(counts))
    return mesh, HostGroup(draw(st.integers(0, count - 1)), count)


def empty_stores(plan: HostPlan) -> Stores:
    return {
        task: np.zeros((*task.box.shape, tensor.tensor.spec.dtype.itemsize), np.uint8)
        for tensor in plan.tensors
        for task in tensor.shards
    }


def write(plan: HostPlan, stores: Stores, placement: Placement, data: np.ndarray) -> None:
    source = placement.source
    block = data[source.start : source.stop].reshape(placement.view)[placement.take.slices()]
    if placement.order is Order.F:
        block = block.transpose(*range(block.ndim - 1)[::-1], block.ndim - 1)
    store = stores[placement.shard]
    if isinstance(placement.target, Box):
        target = store[placement.target.slices()]
        assert not target.any(), "a byte is written twice"
        target[...] = block
        return
    layout = plan.tensors[placement.shard.tensor].layout()
    file = np.zeros(layout.data_nbytes, np.uint8)
    regions = [
        (tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, layout.grid.chunk, strict=True)), extent)
        for index, extent in layout.chunks()
    ]
    for region, extent in regions:
        file[extent.start : extent.stop] = store[region].reshape(-1)
    run = file[placement.target.start : placement.target.stop]
    assert not run.any(), "a byte is written twice"
    run[...] = block
    padding = np.ones(layout.data_nbytes, bool)
    for region, extent in regions:
        store[region] = file[extent.start : extent.stop].reshape(store[region].shape)
        padding[extent.start : extent.stop] = False
    assert not file[padding].any(), "nothing lies between slabs"


def bytes_of(payload: Payload, content: bytes, piece: int) -> np.ndarray:
    extent = payload.extent_of(piece)
    return np.frombuffer(content, np.uint8)[extent.start : extent.stop]


@settings(max_examples=150)
@given(checkpoints(), meshes(), st.randoms(use_true_random=False))
def test_every_byte_of_a_host_lands_once_and_where_it_belongs(checkpoint, mesh_host, random) -> None:
    payload, tensors, arrays, content = checkpoint
    plan = plan_host(payload, tensors, mesh_host[0], None, mesh_host[1])
    placer, stores, whole = Placer(plan), empty_stores(plan), []
    order = list(plan.pieces)
    random.shuffle(order)
    for piece in order:
        for placement in placer.accept(piece):
            write(plan, stores, placement, bytes_of(payload, content, piece))
        whole += placer.settle(piece)
    assert sorted(whole, key=lambda t: (t.tensor, t.index)) == [t for p in plan.tensors for t in p.shards]
    assert not placer.wanted() and not placer.missing_nbytes
    for task, store in stores.items():
        np.testing.assert_array_equal(store, arrays[task.tensor][task.box.slices()])


@settings(max_examples=150)
@given(checkpoints(), meshes())
def test_the_pieces_planned_are_exactly_those_that_hold_a_wanted_byte(checkpoint, mesh_host) -> None:
    payload, tensors, _, _ = checkpoint
    plan = plan_host(payload, tensors, mesh_host[0], None, mesh_host[1])
    placer = Placer(plan)
    touched = {piece for piece in range(payload.pieces) if piece in placer._parts and placer.accept(piece)}
    assert touched == set(plan.pieces)


@settings(max_examples=150)
@given(checkpoints(), meshes(), st.data())
def test_a_restart_at_any_moment_gives_the_same_shards(checkpoint, mesh_host, data) -> None:
    payload, tensors, arrays, content = checkpoint
    plan = plan_host(payload, tensors, mesh_host[0], None, mesh_host[1])
    stores, first = empty_stores(plan), Placer(plan)
    cut = data.draw(st.integers(0, len(plan.pieces)))
    done: list[ShardTask] = []
    for piece in plan.pieces[:cut]:
        for placement in first.accept(piece):
            write(plan, stores, placement, bytes_of(payload, content, piece))
        done += first.settle(piece)
    unfinished = [task for task in stores if task not in done]
    lost = data.draw(st.sets(st.sampled_from(unfinished))) if unfinished else set()
    for task in lost:  # its file vanished: everything of it must come again
        stores[task][...] = 0
    second = Placer(plan, done=done, placed=plan.pieces[:cut], partial=set(unfinished) - lost)
    for piece in second.wanted():
        for placement in second.accept(piece):
            write(plan, stores, placement, bytes_of(payload, content, piece))
        second.settle(piece)
    assert not second.missing_nbytes
    for task, store in stores.items():
        np.testing.assert_array_equal(store, arrays[task.tensor][task.box.slices()])


def test_all_hosts_together_hold_every_tensor_and_no_two_write_one_shard_differently() -> None:
    spec = TensorSpec("w", (8, 12), BY_NAME["float32"])
    tensor = StoredTensor(spec, (Part(Extent(3, spec.nbytes), Box.whole(spec.shape)),))
    payload = Payload((PayloadFile("f", 0, 400),), 64, 400)
    plans = [
        plan_host(payload, [tensor], Mesh((("d", 2), ("m", 2))), None, HostGroup(h, 4)) for h in range(4)
    ]
    assert len({plan.tensors[0].grid for plan in plans}) == 1
    held = {task.index for plan in plans for task in plan.tensors[0].shards}
    assert held == set(np.ndindex(*plans[0].tensors[0].grid.shards))


@pytest.mark.parametrize("pieces", [(0, 1, 2)])
def test_settling_a_piece_twice_changes_nothing(pieces: tuple[int, ...]) -> None:
    spec = TensorSpec("w", (10,), BY_NAME["int8"])
    payload = Payload((PayloadFile("f", 0, 10),), 4, 10)
    plan = plan_host(payload, [StoredTensor(spec, (Part(Extent(0, 10), Box.whole((10,))),))], Mesh(), None)
    placer = Placer(plan)
    assert [len(placer.settle(piece)) for piece in (*pieces, *pieces)] == [0, 0, 1, 0, 0, 0]
