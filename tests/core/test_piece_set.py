from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.piece_set import MOST_PIECES, first, from_json, members, ranges, set_of, to_json
from gdist.errors import RequestError

pieces = st.sets(st.integers(0, 300))


@given(pieces, pieces)
def test_sets_are_sets(a: set[int], b: set[int]) -> None:
    assert set(members(set_of(a) & set_of(b))) == a & b
    assert set(members(set_of(a) | set_of(b))) == a | b
    assert tuple(members(set_of(a))) == tuple(sorted(a))


@given(pieces)
def test_json_and_back(a: set[int]) -> None:
    assert from_json(to_json(set_of(a))) == set_of(a)
    assert {p for start, stop in ranges(set_of(a)) for p in range(start, stop)} == a
    assert all(
        stop < start
        for (_, stop), (start, _) in zip(
            list(ranges(set_of(a)))[:-1], list(ranges(set_of(a)))[1:], strict=True
        )
    )


@given(pieces.filter(bool))
def test_the_first_is_the_lowest(a: set[int]) -> None:
    assert first(set_of(a)) == min(a)


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        "ab",
        {"a": 1},
        [3],
        [[1]],
        [[2, 1]],
        [[1, 1]],
        [[-1, 2]],
        [[0, MOST_PIECES + 1]],
        [["0", "1"]],
        [[0, 1.5]],
        [[False, True]],
    ],
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(RequestError):
        from_json(value)
