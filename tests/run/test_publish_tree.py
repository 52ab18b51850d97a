"""A tree of arrays is written as safetensors that other readers read, and published as any checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors import deserialize, safe_open

import gdist
from gdist.core.dtypes import BY_NAME
from gdist.errors import RequestError, UnsupportedError
from gdist.run.fetch import fetch
from gdist.run.tree_files import leaves_of, plain_leaves, write_tree
from gdist.testing.fetches import assert_holds, fetch_options, tree_of
from gdist.testing.swarm import LOCALHOST, LOOPBACK, seed


def tree() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "embed": {"w": rng.random((32, 16), dtype=np.float32)},
        "layers": [
            {"w": rng.random((16, 16)).astype(ml_dtypes.bfloat16), "scale": np.ones(16, np.float16)}
            for _ in range(11)
        ],
        "head": (rng.random((16, 8)).astype(ml_dtypes.float8_e4m3fn), np.array(3, np.int32)),
    }


def expected(value: Any) -> dict[str, Any]:
    return {name: read() for name, _, _, read in plain_leaves(value) or ()}


@pytest.mark.torrent
@pytest.mark.parametrize("file_bytes", ["5GB", "2kB"])
def test_a_tree_is_published_and_fetched(file_bytes: str, tmp_path: Path) -> None:
    done = gdist.publish(tree(), tmp_path / "out", name="tiny", file_bytes=file_bytes, rules=None)
    files = sorted(path.name for path in (tmp_path / "out/tiny").iterdir())
    several = file_bytes == "2kB"
    assert (len(files) > 2) == several and ("model.safetensors.index.json" in files) == several
    content = Path(done.torrent).read_bytes()
    with seed(Path(done.payload), torrent=content) as seeded:
        torrent = replace(LOOPBACK, peers=((LOCALHOST, seeded.port),))
        fetch(done.manifest, tmp_path / "s", fetch_options("2", torrent=torrent))
    assert_holds(tmp_path / "s", expected(tree()))
    assert gdist.check_manifest(done.manifest, tmp_path / "s").digests == len(expected(tree()))


def test_names_are_paths_and_files_are_in_loading_order(tmp_path: Path) -> None:
    write_tree(leaves_of(plain_leaves(tree()) or []), tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert {"embed.w", "layers.10.w", "head.0", "head.1"} <= set(file.keys())
    header = (tmp_path / "out/model.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    entries = json.loads(header[8 : 8 + length])
    assert (8 + length) % 64 == 0 and entries.pop("__metadata__") == {"format": "flax"}
    layers = [name for name in entries if name.endswith(".w") and name.startswith("layers")]
    assert layers == [f"layers.{number}.w" for number in range(11)], "2 comes before 10"


KINDS = (np.float32, np.int8, np.uint16, np.bool_, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(
        arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5), min_size=1, max_size=5
    ),
    kinds=st.lists(st.sampled_from(KINDS), min_size=5, max_size=5),
    way=st.sampled_from(["C", "F", "strided", "big"]),
)
def test_any_array_is_written_as_it_is(
    shapes: list[tuple[int, ...]], kinds: list[Any], way: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(len(shapes))
    given_: dict[str, Any] = {}
    for number, (shape, kind) in enumerate(zip(shapes, kinds, strict=False)):
        array = rng.integers(0, 2, shape).astype(kind)
        if way == "F":
            array = np.asfortranarray(array)
        elif way == "strided":
            array = np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
        elif way == "big" and array.dtype.kind in "fiuc":
            array = array.astype(array.dtype.newbyteorder(">"))
        given_[f"t{number}"] = array
    where = tmp_path_factory.mktemp("t") / "out"
    write_tree(leaves_of(plain_leaves(given_) or []), where, file_bytes=64)
    found: dict[str, Any] = {}
    for path in where.glob("*.safetensors"):
        found |= dict(deserialize(path.read_bytes()))
    assert set(found) == set(given_)
    for name, array in given_.items():
        assert tuple(found[name]["shape"]) == array.shape
        assert found[name]["dtype"] == BY_NAME[array.dtype.name].safetensors
        assert found[name]["data"] == array.astype(array.dtype.newbyteorder("<")).tobytes()


def test_only_one_tensor_is_in_memory(tmp_path: Path) -> None:
    nbytes, count = 4 << 20, 24
    made = 0

    def read() -> np.ndarray[Any, Any]:
        nonlocal made
        made += 1
        return np.full(nbytes, made, np.uint8)

    leaves = leaves_of([(f"t{number}", (nbytes,), "uint8", read) for number in range(count)])
    tracemalloc.start()
    write_tree(leaves, tmp_path / "out", file_bytes=3 * nbytes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made == count and peak < 3 * nbytes
    assert sum(len(data) for data in tree_of(tmp_path / "out").values()) > count * nbytes


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    itself: dict[str, Any] = {}
    itself["a"] = itself
    for value, kind, word in (
        ({}, RequestError, "holds no arrays"),
        ({"a": {}}, RequestError, "holds no arrays"),
        (itself, RequestError, "hold itself"),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, RequestError, "there twice"),
        ({"../a": np.ones(1)}, UnsupportedError, "plain relative"),
        ({"a": np.array(["x"])}, UnsupportedError, "does not store the types"),
        ({"a": np.array([None])}, UnsupportedError, "does not store the types"),
        ({"a": np.ones(1, np.complex128)}, UnsupportedError, "no name for the type"),
        ({"a": "text"}, RequestError, "are no arrays"),
        ({"c": np.ones(1)}, UnsupportedError, "'c'"),
        (np.ones(1), RequestError, "has no name"),
        (5, RequestError, "has no name"),
    ):
        with pytest.raises(kind, match=word) as caught:
            gdist.publish(value, tmp_path / "out")
        assert "--ignore" not in caught.value.hint
    with pytest.raises(RequestError, match="where to write the tree"):
        gdist.publish({"a": np.ones(1)})
    gdist.publish({"a": np.ones(1)}, tmp_path / "out")
    with pytest.raises(RequestError, match="is not empty"):
        gdist.publish({"a": np.ones(1)}, tmp_path / "out")


def test_a_tree_of_numpy_needs_no_jax(tmp_path: Path) -> None:
    script = (
        "import sys, gdist, numpy as np\n"
        "assert not {'jax', 'libtorrent', 'numpy.linalg'} & set(sys.modules) - {'numpy.linalg'}\n"
        f"gdist.publish({{'a': [np.ones(3)]}}, {str(tmp_path / 'out')!r})\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "out/out/model.safetensors").exists()
