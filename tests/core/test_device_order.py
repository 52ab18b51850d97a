"""The text of a device order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.device_order import format_device_order, is_device_order, parse_device_order
from gdist.core.mesh import Mesh
from gdist.errors import RequestError

MESH = Mesh((("data", 2), ("model", 4)))


@given(st.lists(st.integers(0, 40), max_size=30) | st.permutations(range(16)))
def test_an_order_survives_its_text(order: list[int]) -> None:
    text = format_device_order(order)
    assert parse_device_order(text, MESH) == tuple(order)
    assert not order or is_device_order(text, MESH)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("0,1,2,3,4,5,6,7", range(8)),
        ("4-7,0-3", (4, 5, 6, 7, 0, 1, 2, 3)),
        ("3-0, 4 - 7", (3, 2, 1, 0, 4, 5, 6, 7)),
        ("0 1\n2 3\n", (0, 1, 2, 3)),  # as a file may have it
        ("[0, 1,\n 2]", (0, 1, 2)),
        ("data,model", range(8)),
        ("model,data", (0, 2, 4, 6, 1, 3, 5, 7)),
    ],
)
def test_an_order_is_read(text: str, order: tuple[int, ...]) -> None:
    assert parse_device_order(text, MESH) == tuple(order)


def test_the_axes_in_another_order_transpose_the_devices() -> None:
    mesh = Mesh((("a", 2), ("b", 3), ("c", 4)))
    order = parse_device_order("c,a,b", mesh)
    places = [mesh.coordinates(order.index(number)) for number in range(24)]
    assert places == [{"c": c, "a": a, "b": b} for c in range(4) for a in range(2) for b in range(3)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0,x", "has 'x', which is no number, run or axis"),
        ("model", "has 'model', which is no"),  # all axes or none
        ("model,data,model", "names an axis twice"),
        ("0-9999999", "more than 1048576 numbers"),
        ("-1", "has '-1'"),
        ("0--3", "has '0--3'"),
    ],
)
def test_what_is_no_order_is_refused(text: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        parse_device_order(text, MESH)


def test_the_shortest_text() -> None:
    assert format_device_order([0, 1, 2, 3, 8, 9, 5, 4, 6]) == "0-3,8,9,5,4,6"
    assert format_device_order([]) == ""
