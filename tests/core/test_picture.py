"""Regions tile the tensor, devices are those of the mesh, and what feeds a region is what holds its bytes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.grid import GridMaker
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec, slab_of, split_counts
from gdist.core.payload import Payload, PayloadFile
from gdist.core.picture import (
    MOST_REGIONS,
    TensorPicture,
    View,
    axis_keys,
    block_factor,
    blocks_of,
    choose_view,
    feeds_of,
    indices_of,
    most_runs,
    pieces_of_box,
    regions_of,
    shards_of_box,
    side_by_side,
)
from gdist.core.tensor import Order, Part, StoredTensor, TensorSpec
from gdist.errors import RequestError

Case = tuple[Mesh, PartitionSpec, tuple[int, ...], int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A mesh, a spec, a shape that it divides, and a number of hosts that divides the mesh."""
    names = draw(st.permutations("abc"))
    sizes = draw(st.lists(st.integers(1, 4), max_size=3))
    mesh = Mesh(tuple(zip(names, sizes, strict=False)))
    ndim = draw(st.integers(0, 4))
    dims: list[tuple[str, ...]] = [()] * ndim
    for name in draw(st.permutations(mesh.names)) if ndim else ():
        if draw(st.booleans()):
            place = draw(st.integers(0, ndim - 1))
            dims[place] += (name,)
    spec = PartitionSpec(tuple(dims))
    shape = tuple(count * draw(st.integers(1, 3)) for count in split_counts(mesh, spec, ndim))
    hosts = draw(st.sampled_from([n for n in range(1, mesh.devices + 1) if mesh.devices % n == 0]))
    return mesh, spec, shape, hosts


@given(cases())
def test_regions_tile_the_tensor_and_name_every_device_once(case: Case) -> None:
    mesh, spec, shape, hosts = case
    regions = regions_of(mesh, spec, shape, hosts)
    held = np.zeros(shape, int)
    for region in regions:
        held[region.box.slices()] += 1
        assert all(slab_of(mesh, spec, shape, device) == region.box for device in region.devices)
        on = {h for h in range(hosts) if set(HostGroup(h, hosts).devices(mesh)) & set(region.devices)}
        assert set(region.hosts) == on
    assert (held == 1).all()
    assert sorted(device for region in regions for device in region.devices) == list(range(mesh.devices))
    assert [region.index for region in regions] == sorted(region.index for region in regions)


@given(cases(), st.integers(1, 3), st.integers(1, 3))
def test_panels_and_blocks_hold_every_region_once(case: Case, tall: int, wide: int) -> None:
    mesh, spec, shape, hosts = case
    picture = drawn(mesh, spec, shape, hosts)
    panels = itertools.product(*(range(picture.counts[d]) for d in picture.view.panels))
    found = [n for panel in panels for block in blocks_of(picture, panel, tall, wide).values() for n in block]
    assert sorted(found) == list(range(len(picture.regions)))
    assert picture.counts == split_counts(mesh, spec, len(shape))
    assert picture.replicas * len(picture.regions) == mesh.devices
    shown = {d for d in (picture.view.rows, picture.view.columns) if d is not None}
    rest = {*picture.view.panels, *picture.view.whole}
    assert shown | rest == set(range(len(shape))) and not shown & rest
    assert len(axis_keys(picture)[1]) == len(picture.regions)


def drawn(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...], hosts: int = 1) -> TensorPicture:
    view = choose_view(shape, split_counts(mesh, spec, len(shape)))
    tensor = TensorSpec("w", shape, BY_NAME["int8"])
    return TensorPicture(tensor, mesh, spec, hosts, view, regions_of(mesh, spec, shape, hosts))


@pytest.mark.parametrize(
    ("shape", "counts", "view"),
    [
        ((), (), View(None, None)),
        ((8,), (4,), View(None, 0)),
        ((4, 6), (1, 1), View(0, 1)),
        ((8, 6, 32), (1, 2, 4), View(1, 2, (), (0,))),  # the two that are split
        ((8, 6, 32), (8, 1, 1), View(0, 2, (), (1,))),  # the one that is, and the largest beside it
        ((8, 6, 4), (1, 1, 1), View(0, 1, (), (2,))),  # the largest two
        ((8, 8, 8), (2, 4, 8), View(1, 2, (0,), ())),  # a panel for each place on the third
        ((1, 2, 8, 8), (1, 2, 2, 2), View(2, 3, (1,), (0,))),
    ],
)
def test_the_dimensions_that_are_drawn(shape: tuple[int, ...], counts: tuple[int, ...], view: View) -> None:
    assert choose_view(shape, counts) == view


def test_scales_are_drawn_like_their_weight() -> None:
    mesh = Mesh((("data", 2), ("model", 4)))
    weight = drawn(mesh, PartitionSpec(((), ("data",), ("model",))), (8, 6, 32))
    scales = drawn(mesh, PartitionSpec(((), (), ("model",))), (8, 1, 32))
    assert scales.view == View(0, 2, (), (1,))
    assert [picture.view for picture in side_by_side([weight, scales])] == [View(1, 2, (), (0,))] * 2
    other = drawn(mesh, PartitionSpec(), (3,))
    assert side_by_side([weight, other])[1] == other
    assert side_by_side([]) == ()


@given(cases(), st.data())
@settings(max_examples=60)
def test_pieces_are_those_that_hold_a_byte_of_the_region(case: Case, data: st.DataObject) -> None:
    mesh, spec, shape, _ = case
    name = data.draw(st.sampled_from(["int8", "float32"]))
    tensor, payload = stored(data, TensorSpec("w", shape, BY_NAME[name]))
    where = np.full((*shape, tensor.spec.dtype.itemsize), -1)
    for part in tensor.parts:
        offsets = np.arange(part.extent.start, part.extent.stop)
        itemsize = tensor.spec.dtype.itemsize
        if part.order is Order.C:
            laid = offsets.reshape(*part.box.shape, itemsize)
        else:
            laid = offsets.reshape(*part.box.shape[::-1], itemsize)
            laid = laid.transpose(*range(len(shape))[::-1], len(shape))
        where[part.box.slices()] = laid
    for region in regions_of(mesh, spec, shape):
        runs = pieces_of_box(payload, tensor, region.box)
        assert all(a < b for a, b in runs)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(runs))  # joined, and in order
        assert len(runs) <= most_runs(payload, tensor, [region])
        pieces = {piece for a, b in runs for piece in range(a, b)}
        assert pieces == set((where[region.box.slices()] // payload.piece_length).ravel().tolist())


def stored(data: st.DataObject, spec: TensorSpec) -> tuple[StoredTensor, Payload]:
    """A tensor in two parts along its first dimension, in any order and some bytes apart."""
    order = data.draw(st.sampled_from(Order))
    cut = data.draw(st.integers(0, spec.shape[0])) if spec.shape else 0
    boxes = [Box.whole(spec.shape)]
    if 0 < cut < (spec.shape[0] if spec.shape else 0):
        tail = spec.shape[1:]
        zeros = (0,) * len(tail)
        boxes = [Box((0, *zeros), (cut, *tail)), Box((cut, *zeros), spec.shape)]
    position, parts = data.draw(st.integers(0, 9)), []
    for box in data.draw(st.permutations(boxes)):
        parts.append(Part(Extent(position, spec.nbytes_of(box)), box, order))
        position += spec.nbytes_of(box) + data.draw(st.integers(0, 20))
    payload = Payload((PayloadFile("f", 0, position),), data.draw(st.integers(1, 40)), position)
    return StoredTensor(spec, tuple(parts)), payload


@given(cases(), st.sampled_from([None, 4, 16]))
def test_shards_are_those_that_meet_the_region(case: Case, shard_bytes: int | None) -> None:
    mesh, spec, shape, hosts = case
    grid = GridMaker(mesh, hosts, chunk_bytes=8, shard_bytes=shard_bytes).grid(shape, 1, spec)
    every = indices_of(Box((0,) * len(shape), grid.shards))
    boxes = {index: grid.box_of(index) for index in every}
    for region in regions_of(Mesh((("a", 2),)), PartitionSpec(), shape) + regions_of(mesh, spec, shape):
        met = [index for index, box in boxes.items() if box.intersect(region.box) or not shape]
        assert list(indices_of(shards_of_box(grid, region.box))) == met


def test_regions_of_the_same_feed_are_one() -> None:
    mesh = Mesh((("data", 2), ("model", 2)))
    regions = regions_of(mesh, PartitionSpec((("data",), ("model",))), (4, 4), 2)
    assert feeds_of(regions) == ()  # nothing is known of what feeds them
    fed = [replace(region, pieces=((region.index[0], region.index[0] + 2),)) for region in regions]
    assert [(feed.regions, feed.devices, feed.hosts) for feed in feeds_of(fed)] == [
        ((0, 1), (0, 1), (0,)),
        ((2, 3), (2, 3), (1,)),
    ]


def test_what_tells_regions_apart() -> None:
    mesh = Mesh((("data", 2), ("model", 2)))
    split, columns = PartitionSpec((("data",), ("model",))), PartitionSpec(((), ("model",)))
    assert axis_keys(drawn(mesh, split, (4, 4), 2)) == ("host", (0, 0, 1, 1))
    assert axis_keys(drawn(mesh, split, (4, 4))) == ("data", (0, 0, 1, 1))
    assert axis_keys(drawn(mesh, columns, (4, 4), 2)) == ("model", (0, 1))  # both hosts hold both
    assert axis_keys(drawn(mesh, PartitionSpec(), (4,))) == ("", (0,))


@given(st.integers(1, 500), st.integers(0, 100))
def test_a_block_is_the_smallest_divisor_that_leaves_few_enough(count: int, most: int) -> None:
    factor = block_factor(count, most)
    fitting = [f for f in range(1, count + 1) if count % f == 0 and count // f <= most]
    assert factor == min(fitting, default=count)


def test_empty_tensors_have_regions_and_nothing_to_feed_them() -> None:
    picture = drawn(Mesh((("model", 2),)), PartitionSpec(((), ("model",))), (0, 4))
    assert [region.box.shape for region in picture.regions] == [(0, 2), (0, 2)]
    tensor = StoredTensor(picture.tensor, (Part(Extent(0, 0), Box.whole((0, 4))),))
    assert pieces_of_box(Payload((), 16, 0), tensor, picture.regions[0].box) == ()


def test_more_than_a_picture_can_show_is_refused() -> None:
    mesh = Mesh((("model", MOST_REGIONS * 2),))
    spec = PartitionSpec((("model",),))
    with pytest.raises(RequestError, match=f"into {MOST_REGIONS * 2} slabs"):
        regions_of(mesh, spec, (MOST_REGIONS * 2,))
    assert prod(split_counts(mesh, PartitionSpec(), 1)) == len(regions_of(mesh, PartitionSpec(), (4,)))
    with pytest.raises(RequestError, match="131072 devices"):
        regions_of(Mesh((("model", 2**17),)), PartitionSpec(), (4,))
    with pytest.raises(RequestError, match="3 hosts do not divide"):
        regions_of(Mesh((("model", 4),)), PartitionSpec(), (4,), 3)
