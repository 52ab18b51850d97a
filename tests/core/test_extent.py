"""Extents against sets of byte numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.extent import Extent, coalesce, complement, locate

EXTENTS = st.builds(Extent, st.integers(0, 40), st.integers(0, 12))


def numbers(*extents: Extent) -> set[int]:
    return {byte for extent in extents for byte in range(extent.start, extent.stop)}


@given(EXTENTS, EXTENTS)
def test_two_extents_are_two_sets_of_bytes(one: Extent, two: Extent) -> None:
    both = one.intersect(two)
    assert numbers(*[both] if both else []) == numbers(one) & numbers(two)
    assert both is None or both.length
    if one.contains(two):
        assert numbers(two) <= numbers(one)
    elif two.length:
        assert not numbers(two) <= numbers(one)
    assert one.shift(3).shift(-3) == one


@given(st.lists(EXTENTS, max_size=8), st.integers(0, 5))
def test_coalescing_covers_the_same_bytes_and_no_gap_wider_than_allowed(
    extents: list[Extent], gap: int
) -> None:
    merged = coalesce(extents, gap)
    assert numbers(*coalesce(extents)) == numbers(*extents)
    assert numbers(*extents) <= numbers(*merged)
    assert all(b.start - a.stop > gap for a, b in pairwise(merged)), "sorted, and the fewest"
    ends = {extent.start for extent in extents} | {extent.stop for extent in extents}
    assert all({extent.start, extent.stop} <= ends for extent in merged), "nothing is added at the ends"


@given(st.lists(EXTENTS, max_size=8), EXTENTS)
def test_the_complement_is_what_is_left(extents: list[Extent], within: Extent) -> None:
    left = complement(extents, within)
    assert numbers(*left) == numbers(within) - numbers(*extents)
    assert all(gap.length for gap in left) and list(left) == sorted(left)


@given(st.lists(st.integers(0, 20), max_size=8).map(sorted), st.integers(-1, 21))
def test_locate_finds_the_last_start_that_is_not_after(starts: list[int], offset: int) -> None:
    assert locate(starts, offset) == sum(start <= offset for start in starts) - 1


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, -1)])
def test_an_extent_is_never_negative(start: int, length: int) -> None:
    with pytest.raises(AssertionError, match="extent"):
        Extent(start, length)
