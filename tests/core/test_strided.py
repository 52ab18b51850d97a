"""Views of a storage lie where NumPy's strides say, in as few runs as whole dimensions allow."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.strided import MAX_RUNS, place_strided
from gdist.core.tensor import FoundArray, Order
from gdist.errors import CorruptError, UnsupportedError

BASE = 40  # where the storage starts in the file


def read(file: bytes, found: FoundArray) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """The array, put together from its parts, each element once."""
    array = np.zeros(found.shape, "<u2")
    times = np.zeros(found.shape, int)
    for part in found.parts:
        values = np.frombuffer(file[part.extent.start : part.extent.stop], "<u2")
        array[part.box.slices()] = values.reshape(part.box.shape, order=part.order.value)
        times[part.box.slices()] += 1
    assert (times == 1).all(), "the runs tile the array"
    return array


def found(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], elements: int) -> FoundArray:
    placed = place_strided(Extent(BASE, 2 * elements), offset, shape, strides, 2)
    return FoundArray("t", placed.extent, shape, BY_NAME["uint16"], placed.order, runs=placed.runs)


def storage(elements: int) -> tuple[bytes, np.ndarray[tuple[int, ...], np.dtype[np.uint16]]]:
    values = np.arange(elements, dtype="<u2")
    return bytes(BASE) + values.tobytes(), values


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=4), st.integers(0, 9))
def test_any_view_is_what_numpy_makes_of_it(dimensions: list[tuple[int, int]], offset: int) -> None:
    shape = tuple(n for n, _ in dimensions)
    strides = tuple(s for _, s in dimensions)
    elements = offset + sum(max(n - 1, 0) * s for n, s in dimensions) + 1
    file, values = storage(elements)
    view = np.lib.stride_tricks.as_strided(values[offset:], shape, [2 * s for s in strides])
    array = found(offset, shape, strides, elements)
    assert (read(file, array) == view).all()
    if array.runs:
        assert array.extent.start == min(run.extent.start for run in array.runs)
        assert array.extent.stop == max(run.extent.stop for run in array.runs)


@settings(max_examples=300)
@given(st.data())
def test_transposed_slices_are_what_numpy_makes_of_them(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    file, values = storage(prod(shape))
    view = values.reshape(shape).transpose(data.draw(st.permutations(range(len(shape)))))
    steps = [data.draw(st.integers(1, 3)) for _ in view.shape]
    starts = [data.draw(st.integers(0, n - 1)) for n in view.shape]
    view = view[tuple(slice(a, None, s) for a, s in zip(starts, steps, strict=True))]
    offset = (view.__array_interface__["data"][0] - values.__array_interface__["data"][0]) // 2
    strides = tuple(s // 2 for s in view.strides)
    array = found(offset, view.shape, strides, prod(shape))
    assert (read(file, array) == view).all()
    if view.flags.c_contiguous or view.flags.f_contiguous:
        assert not array.runs
    assert len(array.parts) == fewest(view.shape, strides)


def fewest(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The fewest boxes of whole dimensions, by trying every choice of them in both orders."""
    best = prod(shape)
    wide = [d for d, n in enumerate(shape) if n > 1]
    for count in range(len(wide) + 1):
        for chosen in itertools.combinations(wide, count):
            for ordered in (chosen[::-1], chosen):
                span, fits = 1, True
                for d in ordered:
                    fits = fits and strides[d] == span
                    span *= shape[d]
                if fits:
                    best = min(best, prod(shape) // span)
    return best


@pytest.mark.parametrize(
    ("shape", "strides", "runs", "order", "why"),
    [
        ((), (), 0, Order.C, "a scalar"),
        ((2, 3), (3, 1), 0, Order.C, "rows end to end"),
        ((2, 3), (1, 2), 0, Order.F, "columns end to end"),
        ((1, 3), (99, 1), 0, Order.C, "a dimension of one has any stride"),
        ((2, 0), (7, 7), 0, Order.C, "nothing lies anywhere"),
        ((4, 3), (8, 1), 4, Order.C, "rows with gaps"),
        ((4, 3), (0, 1), 4, Order.C, "one row, expanded"),
        ((3, 2, 2), (4, 1, 2), 3, Order.C, "a stack of transposed squares"),
    ],
)
def test_runs(shape: tuple[int, ...], strides: tuple[int, ...], runs: int, order: Order, why: str) -> None:
    array = found(1, shape, strides, 50)
    assert (len(array.runs), array.order) == (runs, order), why
    if why.startswith("a stack"):
        assert {run.order for run in array.runs} == {Order.F}


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (9, (2,), (1,)),
        (0, (2, 2), (9, 1)),
        (11, (0,), (1,)),
        (0, (11,), (1,)),
        (10, (), ()),
        (0, (2,), (1, 1)),
    ],
)
def test_what_leaves_the_storage_is_corrupt(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with pytest.raises(CorruptError, match="a view of shape"):
        place_strided(Extent(BASE, 20), offset, shape, strides, 2)


@pytest.mark.parametrize("huge", [2**31, 2**62])
def test_more_runs_than_are_kept_are_refused_at_once(huge: int) -> None:
    with pytest.raises(UnsupportedError, match=f"{huge} runs of 2 bytes, {MAX_RUNS} are read"):
        place_strided(Extent(0, 2), 0, (huge,), (0,), 2)
