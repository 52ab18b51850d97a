"""Run by `test_meshes.py` in a process of 64 CPU devices; prints `{check: "" or a traceback}` as JSON."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gdist
from gdist.core.mesh import HostGroup
from gdist.core.tensor import Quantisation
from gdist.errors import CorruptError, RequestError
from gdist.testing.stores import Array, write_store

RULES = {
    "axes": ["data", "model"],
    "rules": [
        ["attn", ["data", "model"]],
        ["moe", [None, None, "model"]],
        ["embed", [["data", "model"]]],
        [".*", []],
    ],
}
PAIR = {f"moe.up.{role}": Quantisation("moe.up", role, 1, 1) for role in ("weight", "scales")}
CHECKS: list[Callable[[Path], None]] = []


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHECKS.append(function)
    return function


def sample() -> dict[str, Array]:
    rng = np.random.default_rng(2)
    return {
        "embed": rng.standard_normal((128, 64)).astype(np.float32),
        "attn.q": rng.standard_normal((64, 128)).astype(ml_dtypes.bfloat16),
        "moe.up.weight": rng.integers(-128, 127, (2, 64, 128)).astype(np.int8),
        "moe.up.scales": rng.standard_normal((2, 1, 128)).astype(ml_dtypes.bfloat16),
        "norm": rng.standard_normal(40).astype(np.float32),
        "step": np.array(3, np.int32),
        "nothing": np.zeros((0, 8), np.float32),
    }


def leaves(tree: Any) -> dict[str, jax.Array]:
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def assert_same(tree: Any, mesh: jax.sharding.Mesh) -> None:
    found = leaves(tree)
    assert found.keys() == sample().keys()
    for name, array in sample().items():
        got = found[name]
        assert (got.shape, got.dtype) == (array.shape, array.dtype), name
        assert np.asarray(got).tobytes() == array.tobytes(), name
        assert got.sharding.mesh == mesh, name
        for shard in got.addressable_shards:
            assert np.asarray(shard.data).tobytes() == array[shard.index].tobytes(), (name, shard.index)


def mesh_of(*sizes: int) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return jax.sharding.Mesh(devices, ("data", "model"))


@check
def bits_are_equal_on_every_mesh_from_every_cut(directory: Path) -> None:
    for cut in ("1x1", "1x8", "8x8", "4x2"):
        write_store(directory / cut, sample(), mesh=cut, rules=RULES, quantised=PAIR, chunk_bytes=512)
        for sizes in ((1, 1), (1, 8), (8, 8), (2, 4)):
            tree = gdist.load(directory / cut, mesh=mesh_of(*sizes), verify=sizes != (8, 8))
            assert_same(tree, mesh_of(*sizes))
            wanted = NamedSharding(mesh_of(*sizes), P("data", "model"))
            assert tree["attn"]["q"].sharding.is_equivalent_to(wanted, 2)


@check
def other_rules_and_meshes_by_name(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="8x8", rules=RULES, quantised=PAIR)
    rules = {"rules": [["attn", ["model", "data"]], [".*", []]]}
    tree = gdist.load(directory / "s", mesh="4x16", rules=rules)
    assert_same(tree, mesh_of(4, 16))
    assert tree["attn"]["q"].sharding.spec == P("model", "data")
    assert gdist.load(directory / "s")["embed"].sharding.mesh == mesh_of(8, 8)
    product = tree["attn"]["q"] @ tree["attn"]["q"].T  # fails on a mesh with Explicit axes
    assert product.shape == (64, 64)


@check
def slabs_are_not_copied(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="8x8", rules=RULES, quantised=PAIR)
    tree = leaves(gdist.load(directory / "s", mesh="8x8"))
    maps = mapped_files()
    for name in ("embed", "attn.q", "moe.up.weight", "norm"):
        for shard in tree[name].addressable_shards:
            address = shard.data.unsafe_buffer_pointer()
            owner = [path for start, stop, path in maps if start <= address < stop]
            assert owner and str(directory / "s" / name) in owner[0], (name, shard.index, owner)


def mapped_files() -> list[tuple[int, int, str]]:
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in fields[0].split("-"))
        found.append((start, stop, fields[5] if len(fields) > 5 else ""))
    return found


@check
def arrays_outlive_the_store_and_maps_go_with_them(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="8x8", rules=RULES, quantised=PAIR)
    tree = gdist.load(directory / "s", mesh="8x8")
    shutil.rmtree(directory / "s")
    assert_same(tree, mesh_of(8, 8))
    assert any("attn.q" in path for *_, path in mapped_files())
    del tree
    gc.collect()  # JAX lets go of host memory when Python collects
    assert not any(str(directory) in path for *_, path in mapped_files())


@check
def meshes_that_do_not_fit_name_every_tensor(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="8x8", rules=RULES, quantised=PAIR)
    for mesh, text in (
        (jax.sharding.Mesh(np.array(jax.devices()).reshape(8, 8), ("x", "model")), "names axis 'data'"),
        (mesh_of(3, 1), "does not divide"),
    ):
        try:
            gdist.load(directory / "s", mesh=mesh)
        except RequestError as error:
            assert text in error.message and "embed" in error.message and "attn.q" in error.message, error
        else:
            raise AssertionError(mesh)


@check
def targets_carry_their_shardings(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="1x8", rules=RULES, quantised=PAIR)
    mesh = mesh_of(8, 8)
    wanted = NamedSharding(mesh, P(None, ("model", "data")))

    def struct(name: str, sharding: Any) -> Any:
        array = sample()[name]
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    pair = gdist.QuantizedWeight8bit(
        struct("moe.up.weight", NamedSharding(mesh, P(None, "data", "model"))),
        struct("moe.up.scales", NamedSharding(mesh, P(None, None, "model"))),
    )
    target = {"attn": {"q": struct("attn.q", wanted)}, "moe": {"up": pair}}
    tree = gdist.load(directory / "s", target=target, select="attn|moe")
    for name, leaf in leaves(tree).items():
        assert np.asarray(leaf).tobytes() == sample()[name].tobytes(), name
        assert leaf.sharding == leaves(target)[name].sharding, name
    try:
        gdist.load(
            directory / "s",
            select="norm",
            target={"norm": struct("norm", NamedSharding(mesh_of(3, 1), P("data")))},
        )
    except RequestError as error:
        assert "'norm'" in error.message
    else:
        raise AssertionError("40 is not divided by 3")


@check
def hosts_parts_load_together_and_not_alone(directory: Path) -> None:
    for index in range(8):
        part = directory / str(index)
        write_store(part, sample(), mesh="8x8", rules=RULES, quantised=PAIR, host=HostGroup(index, 8))
        shutil.copytree(part, directory / "all", dirs_exist_ok=True)
    assert_same(gdist.load(directory / "all"), mesh_of(8, 8))
    for verify in (True, False):
        try:
            gdist.load(directory / "3", verify=verify)
        except RequestError as error:
            assert "written by host 0 of 8" in error.message, error
        else:
            raise AssertionError("a part loaded as the whole")
    shutil.rmtree(directory / "all/attn.q/c/5")
    for verify in (True, False):
        try:
            gdist.load(directory / "all", verify=verify)
        except CorruptError as error:
            assert "attn.q/c/5" in error.message
        else:
            raise AssertionError("a missing shard was made up")


def main() -> None:
    results = {}
    for function in CHECKS:
        with tempfile.TemporaryDirectory() as directory:
            try:
                function(Path(directory))
                results[function.__name__] = ""
            except Exception:
                results[function.__name__] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
