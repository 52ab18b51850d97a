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
    misfit,
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
    assert answer["slabs"] > 2000


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
        ("2x2x2x2", "4 axes without names"),
        ("0", "size 0"),
        ("data=0,model=8", "'data' has size 0"),
        ("data=2,data=2", "names an axis twice"),
    ],
)
def test_what_is_no_mesh_is_refused(text: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        parse_mesh(text)


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
        ("0/0", "host index 0"),
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


@pytest.mark.parametrize(
    ("dims", "shape", "fault"),
    [
        ((("data",), ("model",)), (2, 4), None),
        ((("data",),), (0,), None),  # nothing can be cut into any number of nothings
        ((), (), None),
        ((("data",), ("model",)), (2, 6), "mesh axis 'model' (4) does not divide dimension 1 (6) of 'w'"),
        ((("data", "model"),), (12,), "mesh axis 'data, model' (8) does not divide dimension 0 (12) of 'w'"),
        ((("data",), ()), (4,), "partition spec P(data, None) has 2 dimensions, 'w' has 1"),
    ],
)
def test_a_misfit_is_said_in_a_sentence(
    dims: tuple[tuple[str, ...], ...], shape: tuple[int, ...], fault: str | None
) -> None:
    assert misfit(MESH, PartitionSpec(dims), "w", shape) == fault


def test_specs_that_mean_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match="uses a mesh axis twice"):
        PartitionSpec((("data",), ("model", "data")))
    with pytest.raises(RequestError, match="names axis 'expert', mesh data=2,model=4 has none"):
        split_counts(MESH, PartitionSpec((("expert",),)), 1)
    with pytest.raises(RequestError, match="has 2 dimensions, the tensor 1"):
        split_counts(MESH, PartitionSpec(((), ("data",))), 1)
