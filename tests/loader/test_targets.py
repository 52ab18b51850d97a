"""From a target's leaves to tensors: names by substitution, leaves that are no arrays, abstract meshes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gdist
from gdist.errors import RequestError
from gdist.testing.stores import write_store

jax = pytest.importorskip("jax")

from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

pytestmark = pytest.mark.jax

W, B = np.arange(32, dtype=np.float32).reshape(4, 8), np.ones(8, np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_store(tmp_path / "s", {"layers.0.up.w": W, "layers.0.up.b": B})
    return tmp_path / "s"


def struct(like: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)


def target(**leaves: Any) -> dict[str, Any]:
    return {"params": {"layer_0/up": {"kernel": struct(W), "bias": struct(B), **leaves}}}


RENAME = [(r"^params\.", ""), ("/", "."), (r"layer_(\d+)", r"layers.\1"), ("kernel$", "w"), ("bias$", "b")]


@pytest.mark.parametrize("form", [list, tuple, iter])
def test_each_pair_is_substituted_in_turn(root: Path, form: Any) -> None:
    up = gdist.load(root, target=target(), rename=form(RENAME))["params"]["layer_0/up"]
    assert np.array_equal(up["kernel"], W) and np.array_equal(up["bias"], B)


def test_pairs_that_are_none_are_named_together(root: Path) -> None:
    wrong: Any = [("(", "x"), ("a", "b"), ("a", r"\2"), ("alone",), (3, "x"), ("a", None)]
    with pytest.raises(RequestError) as caught:
        gdist.load(root, target=target(), rename=wrong)
    faults = caught.value.faults
    assert isinstance(faults, tuple) and len(faults) == 5
    assert all(repr(pair) in caught.value.message for pair in wrong if pair != ("a", "b"))
    with pytest.raises(RequestError, match="rename 'kernel' is no table that gdist knows"):
        gdist.load(root, target=target(), rename="kernel")


@pytest.mark.parametrize("rename", [{"kernel": "layers.0.up.w"}, RENAME, str.lower])
def test_paths_are_renamed_of_a_target_only(root: Path, rename: Any) -> None:
    for start in (gdist.load, lambda *given, **options: next(gdist.stream(*given, **options))):
        with pytest.raises(RequestError, match="rename= of paths needs target="):
            start(root, rename=rename)


def test_what_is_missing_is_named_as_it_was_looked_for(root: Path) -> None:
    with pytest.raises(RequestError) as caught:
        gdist.load(root, target=target(), rename=RENAME[:-1])
    assert caught.value.missing == ("params.layer_0/up.bias",)
    assert caught.value.unexpected == ("layers.0.up.b",)
    assert "params.layer_0/up.bias (as layers.0.up.bias)" in caught.value.message


def test_leaves_that_are_no_arrays_are_refused_by_name(root: Path) -> None:
    with pytest.raises(RequestError, match="2 in the target, but no arrays: ") as caught:
        gdist.load(root, target=target(activation=jax.nn.relu, rate=0.5), rename=RENAME)
    assert caught.value.strange == ("params.layer_0/up.activation", "params.layer_0/up.rate")
    assert caught.value.missing == caught.value.unexpected == ()


def test_shardings_on_an_abstract_mesh_get_the_devices_of_the_mesh(root: Path) -> None:
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)

    def init() -> dict[str, Any]:
        return {"kernel": jax.sharding.reshard(W, P(None, "model")), "bias": jax.numpy.ones(8)}

    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(init)
    assert isinstance(abstract["kernel"].sharding.mesh, jax.sharding.AbstractMesh)
    rename = {"kernel": "layers.0.up.w", "bias": "layers.0.up.b"}
    found = gdist.load(root, target=abstract, mesh=mesh, rename=rename)
    assert found["kernel"].sharding == NamedSharding(mesh, P(None, "model"))
    assert np.array_equal(found["kernel"], W)


def test_an_abstract_mesh_of_other_axes_names_its_leaves(root: Path) -> None:
    other = NamedSharding(jax.sharding.AbstractMesh((2, 4), ("data", "model")), P("data"))
    wanted = {"kernel": struct(W, other), "bias": struct(B, other)}
    with pytest.raises(RequestError, match=r"than model=1: bias on data=2,model=4, kernel") as caught:
        gdist.load(root, target=wanted, rename={"kernel": "layers.0.up.w", "bias": "layers.0.up.b"})
    assert "mesh=" in caught.value.hint
