"""Stock TensorStore, zarr-python, dask and Orbax read a view's index where gdist is not installed.

In the place where it was written, moved, read-only, and behind an HTTP server that knows ranges.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

import gdist
from gdist.core.dtypes import BY_NAME
from gdist.kvstore import kvstore_spec
from gdist.testing.buckets import s3_bucket
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.swarm import WebSeed
from gdist.testing.views import various_arrays, write_index

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("stock_readers.py")

TENSORSTORE = ("tensorstore", "tensorstore by URL")
FSSPEC = ("zarr JSON", "zarr Parquet", "dask JSON", "dask Parquet")
ORBAX = ("orbax", "orbax pytree", "orbax onto a mesh", "orbax pytree onto a mesh")
INSTALLED = ("zarr JSON, gdist installed", "zarr Parquet, gdist installed")

Expected = dict[str, list[object]]


def read(location: Path | str, *ways: str) -> dict[str, Any]:
    """What the ways found in a view, each library with warnings as errors."""
    command = [sys.executable, "-W", "error", SCRIPT, str(location), *ways]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def assert_equal(found: dict[str, Any], expected: Expected) -> None:
    for way, tensors in found.items():
        assert tensors == expected, way


def digests(arrays: dict[str, Any]) -> Expected:
    return {
        name: [list(array.shape), array.dtype.name, hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in arrays.items()
    }


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    """Arrays in parts, in Fortran order, in many chunks, in every one of NumPy's kinds."""
    root = tmp_path_factory.mktemp("views") / "a {view} 100%"
    arrays = various_arrays()
    write_index(root, arrays, parts={"layers.0.joined": (4, 6)}, fortran=["layers.0.turned"])
    return root, digests(arrays)


@pytest.fixture(scope="module")
def small_types(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    """Arrays of types that NumPy does not know."""
    root = tmp_path_factory.mktemp("small types")
    values = (np.arange(42) % 15 - 7).reshape(7, 6)
    arrays = {row.name: values.astype(row.name) for row in BY_NAME.values() if row.needs_ml_dtypes}
    assert ml_dtypes and "bfloat16" in arrays
    write_index(root, arrays, chunk_bytes=12)
    return root, digests(arrays)


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    modes = {path: path.stat().st_mode for path in (root, *root.rglob("*"))}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_in_place(view: tuple[Path, Expected]) -> None:
    root, expected = view
    assert_equal(read(root, *TENSORSTORE, "zarr JSON in place"), expected)


def test_moved_and_read_only(view: tuple[Path, Expected], tmp_path: Path) -> None:
    root, expected = view
    moved = shutil.copytree(root, tmp_path / "moved")
    with read_only(moved):
        before = sorted(moved.rglob("*"))
        assert_equal(read(moved, *TENSORSTORE, *FSSPEC), expected)
        assert sorted(moved.rglob("*")) == before


@pytest.mark.jax
def test_orbax_restores_it_unmodified(view: tuple[Path, Expected], tmp_path: Path) -> None:
    pytest.importorskip("orbax.checkpoint")
    root, expected = view
    moved = shutil.copytree(root, tmp_path / "moved")
    with read_only(moved):
        assert_equal(read(moved, *ORBAX), expected)


def test_behind_a_server(view: tuple[Path, Expected]) -> None:
    root, expected = view
    with WebSeed(root) as server:
        assert_equal(read(server.url.rstrip("/"), *TENSORSTORE, *FSSPEC), expected)


def test_in_a_bucket(view: tuple[Path, Expected]) -> None:
    pytest.importorskip("moto.server")
    root, expected = view
    with s3_bucket() as url:
        bucket = ts.KvStore.open(kvstore_spec(f"{url}/a-view")).result()
        for path in root.rglob("*"):
            if path.is_file():
                bucket.write(str(path.relative_to(root)), path.read_bytes()).result()
        assert_equal(read(f"{url}/a-view", "tensorstore"), expected)


def test_bfloat16_and_its_kin_through_tensorstore(small_types: tuple[Path, Expected]) -> None:
    root, expected = small_types
    assert_equal(read(root, *TENSORSTORE), expected)


def test_bfloat16_and_its_kin_through_zarr_where_gdist_is_installed(
    small_types: tuple[Path, Expected],
) -> None:
    root, expected = small_types
    for way in INSTALLED:
        assert_equal(read(root, way), expected)


@pytest.mark.jax
def test_orbax_restores_bfloat16_and_its_kin(small_types: tuple[Path, Expected]) -> None:
    pytest.importorskip("orbax.checkpoint")
    root, expected = small_types
    assert_equal(read(root, "orbax", "orbax pytree"), expected)


@pytest.mark.jax
@pytest.mark.parametrize("write", [write_grok1, write_safetensors])
def test_a_download_that_gdist_view_indexed(tmp_path: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    """Pickles as Grok-1 has them, and safetensors; where they lie, and then moved and beside the payload."""
    pytest.importorskip("orbax.checkpoint")
    expected = digests(write(tmp_path / "payload"))
    gdist.view(tmp_path / "payload")
    assert_equal(read(tmp_path / "payload", "tensorstore", *ORBAX), expected)
    gdist.view(tmp_path / "payload", tmp_path / "beside")
    (tmp_path / "elsewhere").mkdir()
    for name in ("payload", "beside"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = tmp_path / "elsewhere" / "beside"
    assert_equal(read(moved, "tensorstore", *ORBAX), expected)
    assert_equal(read(moved, *INSTALLED), expected)


@pytest.mark.jax
@pytest.mark.parametrize("fault", ["missing", "short"])
def test_a_payload_that_is_not_whole_is_an_error_for_everybody(
    view: tuple[Path, Expected], tmp_path: Path, fault: str
) -> None:
    root, _ = view
    broken = shutil.copytree(root, tmp_path / "broken")
    path = sorted((broken / "payload" / "ckpt-0").iterdir())[1]
    if fault == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    for way, found in read(broken, *TENSORSTORE, *FSSPEC, *ORBAX).items():
        assert isinstance(found, str), f"{way} made up what is not there"


@pytest.mark.jax
def test_a_chunk_that_is_not_in_the_index_is_an_error_or_poison(tmp_path: Path) -> None:
    """Readers that are told to refuse it do; what the others show is never a zero."""
    array = np.ones((8, 4), np.float32)
    write_index(tmp_path, {"w": array}, chunk_bytes=32, without=[("w", (1, 0))])
    found = read(tmp_path, "tensorstore", "tensorstore by URL", *FSSPEC, *ORBAX[:3])
    array[2:4] = np.nan
    for way, tensors in found.items():
        if way == "tensorstore" or way.startswith("orbax"):
            assert isinstance(tensors, str), f"{way} made up what is not there"
        else:
            assert tensors == digests({"w": array}), way
