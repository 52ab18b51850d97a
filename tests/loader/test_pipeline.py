"""The ring of host memory, and how boxes are cut for it."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box, row_parts

pytest.importorskip("jax")

from gdist.loader.arrays import carve, spanned
from gdist.loader.pipeline import Ring

pytestmark = pytest.mark.jax


@given(st.integers(64, 2000), st.lists(st.integers(1, 700), max_size=60))
def test_runs_of_a_ring_never_overlap_and_always_come(size: int, wishes: list[int]) -> None:
    ring = Ring(size)
    held: deque[tuple[int, int]] = deque()
    base = ring.buffer.ctypes.data
    for number, wish in enumerate(w for w in wishes if w <= size):
        while (run := ring.take(wish)) is None:
            assert held, f"an empty ring of {size} has no {wish}"
            ring.give_back()
            held.popleft()
        start = run.ctypes.data - base
        assert run.nbytes == wish and start % 64 == 0 and 0 <= start <= size - wish
        assert all(start + wish <= a or b <= start for a, b in held)
        held.append((start, start + wish))
        if number % 3 == 0:
            ring.give_back()
            held.popleft()


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 4), st.integers(1, 400))
def test_row_parts_are_the_box_in_order(shape: list[int], itemsize: int, limit: int) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    parts = list(row_parts(Box.whole(shape), itemsize, limit))
    assert np.array_equal(np.concatenate([array[p.slices()].ravel() for p in parts]), array.ravel())
    assert all(p.size * itemsize <= limit or p.size == 1 for p in parts)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_carved_arrays_are_apart_and_aligned(sizes: list[int]) -> None:
    boxes = [Box((0, n), (1, n + size)) for n, size in enumerate(sizes)]
    arrays = carve(None, boxes, np.dtype(np.int16))
    for number, array in enumerate(arrays.values()):
        array[:] = number
        assert array.ctypes.data % 64 == 0
    assert [set(array.ravel()) for array in arrays.values()] == [{n} for n in range(len(boxes))]
    assert spanned(boxes, np.dtype(np.int16)) % 64 == 0
