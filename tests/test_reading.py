"""Meshes, device orders and rules as people write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdist.core.mesh import Mesh
from gdist.core.rules import parse_rules
from gdist.errors import FilesystemError, RequestError
from gdist.reading import all_devices, read_host, read_mesh, read_rules

TP = parse_rules({"axes": ["dp", "tp"], "rules": [["w", ["tp"]]]})
MESH = Mesh((("data", 2), ("model", 4)))
SWAPPED = (1, 0, 2, 3, 4, 5, 6, 7)


def test_axes_of_rules_name_sizes_where_they_are_as_many() -> None:
    def named(text: str, **more: str) -> str:
        return str(read_mesh(text, rules=TP, **more))  # type: ignore[arg-type]  # axes alone

    assert named("8x8") == "dp=8,tp=8"
    assert named("8x8", axes="x,y") == "x=8,y=8"  # said by the user
    assert named("2x8x8") == "replica=2,data=8,model=8"  # another number
    assert named("8") == "model=8"
    assert named("a=2,tp=4") == "a=2,tp=4"
    four = parse_rules({"axes": ["a", "b", "c", "d"], "rules": []})
    assert str(read_mesh("2x2x2x2", rules=four)) == "a=2,b=2,c=2,d=2"
    assert str(read_mesh("8x8", rules=parse_rules({"rules": [["w", ["tp", "dp"]]]}))) == "data=8,model=8"


def test_axes_may_be_a_text_or_a_list() -> None:
    assert read_mesh("2x4", axes="x, y") == read_mesh("2x4", axes=["x", "y"]) == Mesh((("x", 2), ("y", 4)))
    for mesh in (None, MESH):
        with pytest.raises(RequestError, match="not given by sizes"):
            read_mesh(mesh, axes="x,y")


def test_the_number_of_devices_fills_and_checks() -> None:
    assert read_mesh("-1x4", devices=8) == MESH
    assert read_mesh("2x4", devices=8) == read_mesh(MESH, devices=8) == MESH
    assert read_mesh(None, devices=8) is None
    with pytest.raises(RequestError, match="mesh data=2,model=4 has 8 devices, not 16"):
        read_mesh("2x4", devices=16)


def test_hosts_times_their_devices_are_all() -> None:
    assert all_devices(None, None, 4) is None
    assert all_devices(8, None, 4) == 8
    assert all_devices(None, 2, 4) == all_devices(8, 2, 4) == 8
    with pytest.raises(RequestError, match="4 hosts of 2 devices have 8, not 16"):
        all_devices(16, 2, 4)


@pytest.mark.parametrize(
    "order",
    [
        lambda path: "1,0,2-7",
        lambda path: SWAPPED,
        lambda path: np.array(SWAPPED),
        lambda path: path,
        lambda path: str(path),
    ],
    ids=["text", "tuple", "array", "path", "path as text"],
)
def test_a_device_order_is_a_text_numbers_or_a_file(order: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "order").write_text("[1, 0,\n 2, 3, 4, 5, 6, 7]\n")
    found = read_mesh("2x4", device_order=order(tmp_path / "order"))
    assert found == Mesh(MESH.axes, SWAPPED) and all(type(number) is int for number in found.order)


def test_an_order_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for order, why in (
        ("0,1", "has 2 numbers, the mesh 8 devices"),
        ("model,expert", "neither numbers, nor the mesh's axes, nor a file"),
        (tmp_path / "binary", "no text of numbers"),
        ("a\0b", "no text of numbers"),
    ):
        with pytest.raises(RequestError, match=why):
            read_mesh("2x4", device_order=order)
    with pytest.raises(FilesystemError):
        read_mesh("2x4", device_order=tmp_path)
    with pytest.raises(RequestError, match="without a mesh"):
        read_mesh(None, device_order="1,0")


@pytest.mark.parametrize("value", [8, (1, 8), [8]])
def test_values_of_other_types_are_refused_with_what_to_write(value: Any) -> None:
    with pytest.raises(RequestError, match=f"is of type {type(value).__name__}") as caught:
        read_mesh(value)
    assert "'8x8'" in caught.value.hint
    with pytest.raises(RequestError, match=f"is of type {type(value).__name__}") as caught:
        read_host(value)
    assert "'3/8'" in caught.value.hint
    with pytest.raises(RequestError, match="not an object with a list named 'rules'"):
        read_rules(value)
    assert read_mesh(None) is read_host(None) is read_rules(None) is None
