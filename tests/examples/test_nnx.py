"""What `docs/how-to/frameworks.md` says of NNX's trees beyond its example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gdist
from gdist.errors import RequestError
from gdist.testing.stores import write_store

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

pytestmark = pytest.mark.jax

KERNEL, BIAS = np.arange(32, dtype=np.float32).reshape(4, 8), np.ones(8, np.float32)
MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
COLUMNS = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec(None, "model"))
RENAME = [(r"\.value$", "")]


class Model(nnx.Module):
    def __init__(self, rngs: Any, annotated: bool) -> None:
        init = nnx.initializers.lecun_normal()
        if annotated:
            init = nnx.with_partitioning(init, (None, "model"))
        self.up = nnx.Linear(4, 8, kernel_init=init, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_store(tmp_path / "s", {"up.kernel": KERNEL, "up.bias": BIAS})
    return tmp_path / "s"


def kernel_of(state: Any) -> Any:
    return nnx.to_pure_dict(state)["up"]["kernel"]


def test_random_streams_are_split_off_and_made(root: Path) -> None:
    graph, abstract = nnx.get_abstract_model(lambda: Model(nnx.Rngs(0), True), MESH)
    with pytest.raises(RequestError, match=r"2 missing in the store: dropout\.rngs"):
        gdist.load(root, target=abstract, rename=RENAME)
    params, rest = nnx.split_state(abstract, nnx.Param, ...)
    state = gdist.load(root, target=params, rename=RENAME)
    rest = nnx.jit(lambda: nnx.split(Model(nnx.Rngs(0), False), nnx.Param, ...)[2])()
    model = nnx.merge(graph, state, rest)
    model.eval()
    assert np.array_equal(model.dropout(model.up(np.eye(4, dtype=np.float32))), KERNEL + BIAS)
    assert kernel_of(state).sharding == COLUMNS


def test_pure_dicts_have_paths_without_value(root: Path) -> None:
    _, abstract = nnx.get_abstract_model(lambda: Model(nnx.Rngs(0), True), MESH)
    params = nnx.filter_state(abstract, nnx.Param)
    loaded = gdist.load(root, target=nnx.to_pure_dict(params))
    nnx.replace_by_pure_dict(params, loaded)
    assert kernel_of(params).sharding == COLUMNS and np.array_equal(kernel_of(params), KERNEL)


def test_an_abstract_mesh_gets_the_devices_of_the_mesh(root: Path) -> None:
    with jax.set_mesh(MESH):
        abstract = nnx.state(nnx.eval_shape(lambda: Model(nnx.Rngs(0), True)), nnx.Param)
    if kernel_of(abstract).sharding is None:
        pytest.skip("this flax drops them")
    state = gdist.load(root, target=abstract, mesh=MESH, rename=RENAME)
    assert kernel_of(state).sharding == COLUMNS


def test_rules_serve_a_model_without_annotations(root: Path) -> None:
    abstract = nnx.eval_shape(lambda: Model(nnx.Rngs(0), False))
    rules = {"rules": [["kernel", [None, "model"]], [".*", []]]}
    state = gdist.load(root, target=nnx.state(abstract, nnx.Param), mesh=MESH, rules=rules, rename=RENAME)
    assert kernel_of(state).sharding == COLUMNS
