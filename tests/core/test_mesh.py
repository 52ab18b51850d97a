"""Mesh arithmetic: against JAX itself, and what the command line may and may not say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.mesh import (
    HostGroup,
    Mesh,
    PartitionSpec,
    parse_host,
    parse_mesh,
    slab_indices,
    slab_of,
    split_counts,
)
from gdist.errors import RequestError

MESH = Mesh((("data", 2), ("model", 4)))


@pytest.mark.jax
@pytest.mark.slow
def test_every_slab_is_where_jax_puts_it() -> None:
    pytest.importorskip("jax")
    script = Path(__file__).with_name("jax_slabs.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", script, "500", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert not answer["mismatches"], "\n".join(answer["mismatches"])
    assert answer["slabs"] > 2000 and answer["shares"] > 500


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("8", (("model", 8),)),
        ("1", (("model", 1),)),
        (" 2x4 ", (("data", 2), ("model", 4))),
        ("2x4x8", (("replica", 2), ("data", 4), ("model", 8))),
        ("data=8,model=4", (("data", 8), ("model", 4))),
        ("x: 3 , y_1 = 2", (("x", 3), ("y_1", 2))),
        ("a=1,b=2,c=3,d=4", (("a", 1), ("b", 2), ("c", 3), ("d", 4))),
        ("data:2,model:4", (("data", 2), ("model", 4))),
    ],
)
def test_a_mesh_is_read(text: str, axes: tuple[tuple[str, int], ...]) -> None:
    mesh = parse_mesh(text)
    assert mesh.axes == axes
    assert parse_mesh(str(mesh)) == mesh


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a mesh"),
        ("x", "is not a mesh"),
        ("8x", "is not a mesh"),
        ("8 x 8", "is not a mesh"),
        ("-8", "is not a mesh"),
        ("8.0", "is not a mesh"),
        ("data=8,", "is not a mesh"),
        ("data=8 model=8", "is not a mesh"),
        ("data=", "is not a mesh"),
        ("8=data", "is not a mesh"),
        ("1234567", "is not a mesh"),
        ("2x2x2x2", "4 axes and no names"),
        ("-2x8", "is not a mesh"),
        ("-1x8", "the number of devices, which is not known"),
        ("-1x-1", "leaves 2 axes open"),
        ("data=-1,model=-1", "leaves 2 axes open"),
        ("1024x1024x2", "more than 1048576"),
        ("0", "size 0"),
        ("data=0,model=8", "'data' has size 0"),
        ("data=2,data=2", "names an axis twice"),
    ],
)
def test_what_is_no_mesh_is_refused(text: str, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        parse_mesh(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "axes", "sizes"),
    [
        ("2x4x8", "replica,data,model", (2, 4, 8)),
        ("2x2x2x2", "a,b,c,d", (2, 2, 2, 2)),
        ("8", "x", (8,)),
        ("a=2,b=4", "a,b", (2, 4)),  # named twice, and alike
    ],
)
def test_axes_name_the_sizes(text: str, axes: str, sizes: tuple[int, ...]) -> None:
    mesh = parse_mesh(text, axes.split(","))
    assert (mesh.names, mesh.sizes) == (tuple(axes.split(",")), sizes)


@pytest.mark.parametrize(
    ("text", "axes", "why"),
    [
        ("2x4x8", "a,b", "has 3 axes and 2 names .a, b."),
        ("2x4", "a,b,c", "has 2 axes and 3 names"),
        ("2x4", "a,a", "names an axis twice"),
        ("2x4", "a,8", "axis '8' is no name"),
        ("a=2,b=4", "b,a", "names its axes, and they are to be b, a"),
    ],
)
def test_axes_that_do_not_name_the_sizes_are_refused(text: str, axes: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        parse_mesh(text, axes.split(","))


def test_more_than_three_sizes_want_names_and_are_told_how() -> None:
    with pytest.raises(RequestError) as caught:
        parse_mesh("2x2x2x2")
    assert "--axes axis0,axis1,axis2,axis3" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "devices", "sizes"),
    [
        ("-1x8", 64, (8, 8)),
        ("8x-1", 64, (8, 8)),
        ("-1", 3, (3,)),
        ("data=-1,model=8", 8, (1, 8)),
        ("2x-1x4", 24, (2, 3, 4)),
        ("2x4", 64, (2, 4)),  # nothing is open: how many there are is no matter
    ],
)
def test_one_axis_takes_what_is_left(text: str, devices: int, sizes: tuple[int, ...]) -> None:
    assert parse_mesh(text, devices=devices).sizes == sizes


@pytest.mark.parametrize(("text", "devices"), [("-1x8", 60), ("-1x8", 4), ("-1x8", 0), ("-1x3", -3)])
def test_devices_that_the_other_axes_do_not_divide_are_refused(text: str, devices: int) -> None:
    with pytest.raises(RequestError, match=f"cannot have {devices} devices: they are no multiple"):
        parse_mesh(text, devices=devices)
    with pytest.raises(RequestError, match="size 0"):
        parse_mesh("0x-1", devices=8)


def test_an_unknown_number_of_devices_says_which_flag_gives_it() -> None:
    with pytest.raises(RequestError) as caught:
        parse_mesh("-1x8")
    assert "--devices" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "host"), [("0/1", (0, 1)), ("3/8", (3, 8)), (" 7 / 8 ", (7, 8)), ("00/01", (0, 1))]
)
def test_a_host_is_read(text: str, host: tuple[int, int]) -> None:
    assert parse_host(text) == HostGroup(*host)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not INDEX/COUNT"),
        ("3", "is not INDEX/COUNT"),
        ("3/", "is not INDEX/COUNT"),
        ("-1/8", "is not INDEX/COUNT"),
        ("1/8/8", "is not INDEX/COUNT"),
        ("a/b", "is not INDEX/COUNT"),
        ("8/8", "host index 8 is not in 0 to 7"),  # counted from 0
        ("0/0", "host 0 is of 0 hosts, and there is one at least"),
    ],
)
def test_what_is_no_host_is_refused(text: str, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        parse_host(text)
    assert "3/8" in caught.value.hint


@given(st.lists(st.integers(1, 6), max_size=3), st.integers(1, 12))
def test_hosts_share_the_devices_evenly_and_in_order(sizes: list[int], count: int) -> None:
    mesh = Mesh(tuple(zip("abc", sizes, strict=False)))
    hosts = [HostGroup(index, count) for index in range(count)]
    if mesh.devices % count:
        with pytest.raises(RequestError, match="evenly"):
            hosts[0].devices(mesh)
        return
    assert [device for host in hosts for device in host.devices(mesh)] == list(range(mesh.devices))
    assert len({len(host.devices(mesh)) for host in hosts}) == 1


@st.composite
def ordered_meshes(draw: st.DrawFn) -> Mesh:
    axes = tuple(zip("abc", draw(st.lists(st.integers(1, 4), max_size=3)), strict=False))
    return Mesh(axes, tuple(draw(st.permutations(range(Mesh(axes).devices)))))


@given(ordered_meshes(), st.integers(1, 8))
def test_a_host_has_its_devices_wherever_the_order_puts_them(mesh: Mesh, count: int) -> None:
    order = mesh.order or tuple(range(mesh.devices))
    if mesh.devices % count:
        return
    each = mesh.devices // count
    for index in range(count):
        places = HostGroup(index, count).devices(mesh)
        assert list(places) == sorted(places)
        assert {order[place] for place in places} == set(range(index * each, (index + 1) * each))


@given(ordered_meshes())
def test_an_order_that_changes_nothing_is_none(mesh: Mesh) -> None:
    assert Mesh(mesh.axes, tuple(range(mesh.devices))) == Mesh(mesh.axes)
    assert (mesh == Mesh(mesh.axes)) is (not mesh.order)
    assert (mesh.splitting == Mesh(mesh.axes).splitting) is (not mesh.order)
    assert ("devices" in str(mesh)) is bool(mesh.order)


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ((0, 1, 2), "has 3 numbers, the mesh 8 devices"),
        ((0, 1, 2, 3, 4, 5, 6, 8), "has 8, not in 0 to 7"),
        ((0, 1, 2, 3, 4, 5, 6, -1), "has -1, not in 0 to 7"),
        ((0, 1, 2, 3, 4, 5, 6, 6), "has 6 twice"),
    ],
)
def test_an_order_names_every_device_once(order: tuple[int, ...], why: str) -> None:
    with pytest.raises(RequestError, match=why):
        Mesh(MESH.axes, order)


def test_devices_fill_the_mesh_with_the_last_axis_fastest() -> None:
    places = [tuple(MESH.coordinates(device).values()) for device in range(MESH.devices)]
    assert places == [(column, row) for row in range(2) for column in range(4)]
    assert Mesh().devices == 1 and Mesh().coordinates(0) == {}


def test_a_dimension_split_by_two_axes_has_the_first_named_slowest() -> None:
    starts = [slab_of(MESH, PartitionSpec((("model", "data"),)), (16,), d).start[0] for d in range(8)]
    assert starts == [0, 4, 8, 12, 2, 6, 10, 14]
    starts = [slab_of(MESH, PartitionSpec((("data", "model"),)), (16,), d).start[0] for d in range(8)]
    assert starts == [0, 2, 4, 6, 8, 10, 12, 14]


def test_an_axis_that_no_dimension_names_replicates() -> None:
    spec = PartitionSpec(((), ("data",)))
    assert split_counts(MESH, spec, 3) == (1, 2, 1)
    assert slab_indices(MESH, spec, 3, range(8)) == {(0, 0, 0), (0, 1, 0)}
    assert slab_of(MESH, PartitionSpec(), (3, 5), 7) == Box.whole((3, 5))


def test_specs_that_mean_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match="uses a mesh axis twice"):
        PartitionSpec((("data",), ("model", "data")))
    with pytest.raises(RequestError, match="names axis 'expert', mesh data=2,model=4 has none"):
        split_counts(MESH, PartitionSpec((("expert",),)), 1)
    with pytest.raises(RequestError, match="has 2 dimensions, the tensor 1"):
        split_counts(MESH, PartitionSpec(((), ("data",))), 1)
