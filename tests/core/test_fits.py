"""What does not fit, said once for each cause, and the nearest meshes that do fit."""

from __future__ import annotations

import itertools
from math import log2, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.fits import Cut, faults_of, fit, nearest_meshes
from gdist.core.mesh import Mesh, PartitionSpec
from gdist.core.tensor import Part, Quantisation, StoredTensor, TensorSpec

MESH = Mesh((("data", 2), ("model", 4)))


def tensor(name: str, *shape: int, role: str = "") -> StoredTensor:
    spec = TensorSpec(name, shape, BY_NAME["int8"])
    pair = Quantisation(name, role, 1, 0) if role else None
    return StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(shape)),), pair)


@pytest.mark.parametrize(
    ("dims", "shape", "faults"),
    [
        ((("data",), ("model",)), (2, 4), []),
        ((("data",),), (0,), []),  # nothing can be cut into any number of nothings
        ((), (), []),
        ((("data",), ("model",)), (2, 6), ["mesh axis 'model' (4) does not divide dimension 1 (6) of 'w'"]),
        (
            (("data", "model"),),
            (12,),
            ["mesh axis 'data, model' (8) does not divide dimension 0 (12) of 'w'"],
        ),
        ((("data",), ()), (4,), ["partition spec P(data, None) has 2 dimensions, more than the 1 of 'w'"]),
        (
            (("data",), ("model",)),
            (3, 6),
            [
                "mesh axis 'data' (2) does not divide dimension 0 (3) of 'w'",
                "mesh axis 'model' (4) does not divide dimension 1 (6) of 'w'",
            ],
        ),
        (
            (("expert",),),
            (4,),
            [
                "partition spec P(expert) of 'w' names axis 'expert', "
                "mesh data=2,model=4 has none of that name"
            ],
        ),
    ],
)
def test_every_fault_is_said_in_a_sentence(
    dims: tuple[tuple[str, ...], ...], shape: tuple[int, ...], faults: list[str]
) -> None:
    assert list(map(str, faults_of(MESH, PartitionSpec(dims), "w", shape))) == faults


def test_tensors_of_one_cause_are_one_sentence() -> None:
    spec = PartitionSpec((("model",),))
    layers = [tensor(f"layer.{n}.{part}", 6) for n in range(5) for part in ("a", "b")]
    found = fit(MESH, [*layers, tensor("b.0", 6), tensor("odd", 7), tensor("even", 8)], [spec] * 13)
    assert len(found.faults) == 12 and not found.ok
    assert found.causes() == [
        "mesh axis 'model' (4) does not divide dimension 0 (6) of 'layer.*.a' (5), 'layer.*.b' (5), 'b.0'",
        "mesh axis 'model' (4) does not divide dimension 0 (7) of 'odd'",
    ]
    assert "does not divide 12 tensors" in found.error().message


def test_only_numbers_that_differ_are_left_out_of_names() -> None:
    names = [f"layer_{n}.moe.linear_{kind}.w" for kind in ("1", "v") for n in range(4)]
    names += [f"layer_{n}.norm_{m}" for m in (1, 2) for n in range(4)]
    (cause,) = fit(MESH, (tensor(name, 6) for name in names), [PartitionSpec((("model",),))] * 16).causes()
    assert "'layer_*.moe.linear_1.w' (4), 'layer_*.moe.linear_v.w' (4), 'layer_*.norm_*' (8)" in cause


def test_names_beyond_twenty_are_counted() -> None:
    names = [tensor("x" * n, 3) for n in range(1, 24)]
    (cause,) = fit(MESH, names, [PartitionSpec((("model",),))] * 23).causes()
    assert "'xxx', 'xxxx'" in cause and cause.endswith(f"'{'x' * 20}' and 3 more")


def test_causes_beyond_a_dozen_are_counted() -> None:
    spec = PartitionSpec((("model",),))
    odd = [tensor(f"t{size}x", size) for size in range(1, 60, 2)]
    message = fit(MESH, odd, [spec] * 30).error().message
    assert message.count("does not divide dimension") == 12 and message.endswith("; and 18 more causes")


def test_scales_do_not_keep_a_mesh_away() -> None:
    spec = PartitionSpec((("model",),))
    found = fit(
        MESH,
        [tensor("w", 6), tensor("p.weight", 16, role="weight"), tensor("p", 3, role="scales")],
        [spec] * 3,
    )
    assert [str(mesh) for mesh in found.nearest] == ["data=2,model=2", "data=2,model=1"]


def test_the_same_number_of_devices_is_offered_if_it_can_be_had() -> None:
    mesh = Mesh((("data", 8), ("model", 8)))
    assert [str(found) for found in nearest_meshes(mesh, {(65, ("model",)), (6144, ("data",))})] == [
        "data=8,model=5",
        "data=8,model=13",
        "data=64,model=1",
    ]


SIZES = st.integers(1, 12)
AXES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True).map(tuple)


@given(st.tuples(*[st.integers(1, 6)] * 3), st.sets(st.tuples(SIZES, AXES), max_size=5))
def test_the_nearest_are_what_a_search_of_all_finds(sizes: tuple[int, ...], cuts: set[Cut]) -> None:
    mesh = Mesh(tuple(zip("abc", sizes, strict=True)))

    def divides(candidate: tuple[int, ...]) -> bool:
        named = dict(zip("abc", candidate, strict=True))
        return all(size % prod(named[axis] for axis in axes) == 0 for size, axes in cuts)

    def far(candidate: tuple[int, ...]) -> float:
        return sum(abs(log2(a / b)) for a, b in zip(candidate, sizes, strict=True))

    used = {axis for _, axes in cuts for axis in axes}
    ways = [range(1, 13) if axis in used else (size,) for axis, size in mesh.axes]
    fitting = [candidate for candidate in itertools.product(*ways) if divides(candidate)]
    found = nearest_meshes(mesh, cuts)
    assert found and all(divides(candidate.sizes) for candidate in found)
    assert far(found[0].sizes) == pytest.approx(min(map(far, fitting)), abs=1e-6)
    same = [candidate for candidate in fitting if prod(candidate) == mesh.devices]
    assert not same or any(candidate.devices == mesh.devices for candidate in found)
