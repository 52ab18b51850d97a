"""Boxes against the plainest NumPy: arrays of element numbers, cut and counted."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box, boxes_of_run, runs_of_box, tiles_of
from gdist.core.extent import Extent

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def shapes_and_boxes(draw: st.DrawFn, count: int = 1) -> tuple[tuple[int, ...], list[Box]]:
    """A shape, sizes of zero included, and boxes inside it, empty ones included."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    boxes = []
    for _ in range(count):
        ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
        boxes.append(Box(tuple(a for a, _ in ends), tuple(b for _, b in ends)))
    return shape, boxes


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    """Every element is its own number in C order."""
    return np.arange(prod(shape)).reshape(shape)


@given(SHAPES, st.data())
def test_a_run_is_its_boxes_in_order_and_few(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    boxes = list(boxes_of_run(shape, start, stop))
    assert len(boxes) <= max(2 * len(shape) - 1, 1)
    assert all(box.size for box in boxes)
    found = [numbers(shape)[box.slices()].ravel() for box in boxes]
    np.testing.assert_array_equal(np.concatenate([*found, np.empty(0, int)]), np.arange(start, stop))


@pytest.mark.parametrize(
    ("shape", "start", "stop", "boxes"),
    [
        ((), 0, 1, [Box((), ())]),  # a scalar is one box without dimensions
        ((), 0, 0, []),  # nothing of it is none
        ((3, 0), 0, 0, []),  # and so is nothing of nothing
        ((3, 4), 0, 12, [Box((0, 0), (3, 4))]),  # whole rows stay together
        ((3, 4), 5, 7, [Box((1, 1), (2, 3))]),  # inside one row
        ((3, 4), 3, 5, [Box((0, 3), (1, 4)), Box((1, 0), (2, 1))]),  # a row's end and the next one's start
        ((3, 4), 2, 9, [Box((0, 2), (1, 4)), Box((1, 0), (2, 4)), Box((2, 0), (3, 1))]),  # the drawing
        ((2, 1, 2), 1, 3, [Box((0, 0, 1), (1, 1, 2)), Box((1, 0, 0), (2, 1, 1))]),  # dimensions of one vanish
    ],
)
def test_runs_by_example(shape: tuple[int, ...], start: int, stop: int, boxes: list[Box]) -> None:
    assert list(boxes_of_run(shape, start, stop)) == boxes


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 13)])
def test_a_run_that_leaves_the_array_is_a_broken_invariant(start: int, stop: int) -> None:
    with pytest.raises(AssertionError, match="run"):
        list(boxes_of_run((3, 4), start, stop))


@given(shapes_and_boxes(2))
def test_boxes_are_what_numpy_slices_are(case: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, (one, two) = case
    array = numbers(shape)
    both = one.intersect(two)
    common = set(array[one.slices()].ravel()) & set(array[two.slices()].ravel())
    if shape and not common:
        assert both is None
    else:
        assert both is not None and set(array[both.slices()].ravel()) == common
    assert array[one.slices()].shape == one.shape and array[one.slices()].size == one.size
    assert one.contains(two) or not set(array[two.slices()].ravel()) <= common or not two.size
    assert one.relative_to(one.start).shift(one.start) == one == one.reversed().reversed()
    np.testing.assert_array_equal(array.T[one.reversed().slices()], array[one.slices()].T)
    assert one.with_bytes(4).size == 4 * one.size


@pytest.mark.parametrize(("start", "stop"), [((0,), (1, 2)), ((2,), (1,)), ((-1,), (1,))])
def test_a_box_is_valid_from_construction(start: tuple[int, ...], stop: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="box"):
        Box(start, stop)


@given(shapes_and_boxes(), st.data())
def test_tiles_cut_a_box_by_a_grid(case: tuple[tuple[int, ...], list[Box]], data: st.DataObject) -> None:
    shape, (box,) = case
    tile = tuple(data.draw(st.integers(1, 6)) for _ in shape)
    array, seen = numbers(shape), []
    indices = []
    for index, part in tiles_of(box, tile):
        indices.append(index)
        cell = Box(
            tuple(i * t for i, t in zip(index, tile, strict=True)),
            tuple((i + 1) * t for i, t in zip(index, tile, strict=True)),
        )
        assert part.size and box.contains(part) and cell.contains(part)
        seen += array[part.slices()].ravel().tolist()
    assert indices == sorted(set(indices)), "cells come in C order, each once"
    assert sorted(seen) == sorted(array[box.slices()].ravel().tolist())


@given(shapes_and_boxes())
def test_runs_without_a_gap_are_exactly_the_box(case: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, (box,) = case
    runs = list(runs_of_box(shape, box))
    found = [number for run in runs for number in range(run.start, run.stop)]
    assert found == numbers(shape)[box.slices()].ravel().tolist()


@given(shapes_and_boxes(), st.integers(1, 40))
def test_runs_joined_over_less_than_a_piece_meet_the_same_pieces(
    case: tuple[tuple[int, ...], list[Box]], piece: int
) -> None:
    shape, (box,) = case
    runs = list(runs_of_box(shape, box, piece - 1))
    met = {number // piece for run in runs for number in range(run.start, run.stop)}
    assert met == {number // piece for number in numbers(shape)[box.slices()].ravel().tolist()}
    assert all(a.stop <= b.start for a, b in pairwise(runs)), "in order, and apart"


@pytest.mark.parametrize(
    ("shape", "box", "gap", "runs"),
    [
        ((), Box((), ()), 0, [Extent(0, 1)]),  # a scalar
        ((4, 6), Box((1, 0), (3, 6)), 0, [Extent(6, 12)]),  # whole rows lie end to end
        ((4, 6), Box((1, 2), (3, 4)), 0, [Extent(8, 2), Extent(14, 2)]),  # columns do not
        ((4, 6), Box((1, 2), (3, 4)), 4, [Extent(8, 8)]),  # but four apart is near enough here
        ((4, 6), Box((1, 2), (2, 4)), 0, [Extent(8, 2)]),  # one row of them is one run
        ((2, 3, 4), Box((0, 1, 0), (2, 2, 4)), 7, [Extent(4, 4), Extent(16, 4)]),  # eight apart
        ((2, 3, 4), Box((0, 1, 0), (2, 2, 4)), 8, [Extent(4, 16)]),
        ((4, 6), Box((1, 2), (1, 4)), 0, []),  # an empty box
    ],
)
def test_runs_of_boxes_by_example(shape: tuple[int, ...], box: Box, gap: int, runs: list[Extent]) -> None:
    assert list(runs_of_box(shape, box, gap)) == runs
