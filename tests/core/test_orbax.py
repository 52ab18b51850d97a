"""Orbax restores, unmodified, what stands beside the documents; and the tree is the names."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.orbax import COMMIT_MARKER, METADATA, orbax_documents, tree_paths

RANDOM = np.random.default_rng(7)
ARRAYS: dict[str, tuple[np.ndarray[Any, Any], tuple[int, ...], tuple[int, ...]]] = {
    # name: values, shape of a shard, shape of an inner chunk
    "layers.0.weight": (RANDOM.integers(-128, 128, (16, 8)).astype(np.int8), (8, 8), (4, 4)),
    "layers.0.scales": (RANDOM.normal(size=16).astype(np.float32), (8,), (4,)),
    "embed": (RANDOM.normal(size=(16, 16)).astype(ml_dtypes.bfloat16), (8, 16), (8, 8)),
    "decoder/0/w": (RANDOM.normal(size=(8, 8)).astype(np.float32), (4, 8), (4, 4)),
    "decoder/1.bias": (RANDOM.normal(size=6).astype(np.float32), (4,), (2,)),  # a ragged last shard
    "step": (np.array(3.0, np.float32), (), ()),
}


def sharded(
    shape: tuple[int, ...], dtype: str, shard: tuple[int, ...], inner: tuple[int, ...]
) -> dict[str, object]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    codec = {"chunk_shape": inner, "codecs": [little], "index_codecs": [little, {"name": "crc32c"}]}
    return {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "fill_value": -128 if dtype == "int8" else "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": {**codec, "index_location": "end"}}],
    }


def write_store(path: Path, names: list[str]) -> None:
    for name in names:
        values, shard, inner = ARRAYS[name]
        metadata = sharded(values.shape, str(values.dtype), shard, inner)
        kvstore = {"driver": "file", "path": f"{path}/{name}/"}
        spec = {
            "driver": "zarr3",
            "kvstore": kvstore,
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        ts.open(spec, create=True).result().write(values).result()
    for file, data in orbax_documents(names).items():
        (path / file).write_bytes(data)


def restored(path: Path) -> dict[str, Any]:
    """What each way of restoring gives: a dict of leaves, or the error as text."""
    shapes = {
        "\t".join(keys): [ARRAYS[name][0].shape, str(ARRAYS[name][0].dtype)]
        for name, keys in tree_paths(ARRAYS).items()
    }
    script = Path(__file__).with_name("orbax_restore.py")
    done = subprocess.run(
        [sys.executable, str(script), str(path), json.dumps(shapes)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ways: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return ways


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything gdist puts beside the arrays."""
    path = tmp_path_factory.mktemp("store")
    write_store(path, list(ARRAYS))
    group = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}})
    for file in ("gdist.json", "gdist.host-00000-of-00002.json", "assets/tokenizer.json", ".gdist/journal"):
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text("{}")
    (path / "zarr.json").write_text(group)
    (path / "decoder" / "zarr.json").write_text(group)
    (path / "embed/c/1/0.part").write_bytes(b"half a shard")
    return path


@pytest.mark.jax
@pytest.mark.slow
def test_orbax_restores_the_store_in_every_way(store: Path) -> None:
    for way, leaves in restored(store).items():
        assert isinstance(leaves, dict), f"{way}: {leaves}"
        assert set(leaves) == {"\t".join(keys) for keys in tree_paths(ARRAYS).values()}, way
        for name, keys in tree_paths(ARRAYS).items():
            values = ARRAYS[name][0]
            data, dtype, spec = leaves["\t".join(keys)]
            assert (data, dtype) == (values.tobytes().hex(), str(values.dtype)), (way, name)
            if way.endswith("mesh"):
                assert spec == ("('data', 'model')" if values.ndim == 2 else "()"), (way, name)


@pytest.mark.jax
@pytest.mark.slow
def test_a_missing_shard_or_marker_makes_orbax_fail(tmp_path: Path) -> None:
    write_store(tmp_path, list(ARRAYS))
    (tmp_path / "embed/c/1/0").unlink()
    for way, answer in restored(tmp_path).items():
        assert isinstance(answer, str), f"{way} filled the missing shard"

    metadata = json.loads((tmp_path / METADATA).read_text())
    metadata["store_array_data_equal_to_fill_value"] = False
    (tmp_path / METADATA).write_text(json.dumps(metadata))
    (tmp_path / COMMIT_MARKER).unlink()
    ways = restored(tmp_path)
    assert isinstance(ways["standard"], dict), "it is the flag that makes Orbax strict"
    assert "incomplete checkpoint" in ways["by_commit_file"]


def test_documents_say_how_the_arrays_are_stored() -> None:
    documents = orbax_documents(["b.x", "a"])
    assert list(documents) == [METADATA, COMMIT_MARKER], "the marker is written last"
    metadata = json.loads(documents[METADATA])
    assert metadata["use_zarr3"] and not metadata["use_ocdbt"]
    assert list(metadata["tree_metadata"]) == ["('b', 'x')", "('a',)"]


@pytest.mark.parametrize(
    ("names", "paths"),
    [
        (["a.b", "a.c"], [("a", "b"), ("a", "c")]),
        (["a", "a.b"], [("a",), ("a.b",)]),  # a leaf cannot be a branch
        (["a.b", "a.b.c", "d.e"], [("a.b",), ("a.b.c",), ("d.e",)]),  # one conflict makes the whole tree flat
        (["a", "ab.c"], [("a",), ("ab", "c")]),  # a prefix of letters is none of parts
        (["x/y.z"], [("x/y", "z")]),  # "/" nests directories, not the tree
    ],
)
def test_names_become_paths(names: list[str], paths: list[tuple[str, ...]]) -> None:
    assert list(tree_paths(names).values()) == paths


@given(st.sets(st.text("ab./", min_size=1, max_size=6), max_size=8))
def test_every_leaf_has_its_own_place_and_its_name_back(names: set[str]) -> None:
    paths = tree_paths(names)
    assert {".".join(path) for path in paths.values()} == names
    for shorter, longer in pairwise(sorted(paths.values())):
        assert longer[: len(shorter)] != shorter
