"""A store that a real fetch made, read by TensorStore, zarr-python and Orbax, which know nothing of gdist."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  makes NumPy know bfloat16
import numpy as np
import pytest

from gdist.core.magnet import format_magnet
from gdist.core.mesh import HostGroup, parse_mesh
from gdist.run.fetch import fetch
from gdist.run.options import FetchOptions
from gdist.testing.checkpoints import dequantised, write_grok1
from gdist.testing.stores import write_store
from gdist.testing.swarm import LOOPBACK, seed

pytest.importorskip("jax")
pytest.importorskip("orbax.checkpoint")

pytestmark = [pytest.mark.jax, pytest.mark.torrent, pytest.mark.slow]

Expected = dict[str, list[object]]

ORBAX = ("orbax", "orbax pytree", "orbax onto a mesh", "orbax pytree onto a mesh")
SCRIPT = Path(__file__).with_name("interop_readers.py")


def read(store: Path, *ways: str) -> dict[str, Any]:
    """What the ways found in a store, each in a process that does not import gdist of itself."""
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, store, *ways],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture(
    scope="module",
    params=[("none", None), ("zstd", None), ("none", "bfloat16")],
    ids=["none", "zstd", "bfloat16"],
)
def fetched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Expected]:
    """A store on mesh 2x4, and the shape, type and digest of every tensor of its source, converted or not."""
    codec, dtype = request.param
    directory = tmp_path_factory.mktemp("interop")
    arrays = write_grok1(directory / "grok-1", layers=2, emb=64, ffn=128, kv=16, experts=8, vocab=256)
    with seed(directory / "grok-1", piece_length=2**14) as seeded:
        options = FetchOptions(mesh=parse_mesh("2x4"), codec=codec, dtype=dtype, torrent=LOOPBACK)
        result = fetch(format_magnet(seeded.magnet), directory / "store", options)
    assert not result.already and result.manifest.codec == codec
    arrays = dequantised(arrays, dtype) if dtype else arrays
    expected: Expected = {
        name: [list(array.shape), array.dtype.name, hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in arrays.items()
    }
    return Path(result.path), expected


@pytest.mark.parametrize("way", ["tensorstore", "zarr"])
def test_zarr_readers_find_every_array_equal_to_its_source(fetched: tuple[Path, Expected], way: str) -> None:
    store, expected = fetched
    assert read(store, way)[way] == expected


def test_orbax_restores_the_tree_also_onto_another_mesh(fetched: tuple[Path, Expected]) -> None:
    store, expected = fetched
    answer = read(store, *ORBAX)
    for way in ORBAX:
        assert answer[way] == expected, way


def test_orbax_restores_what_several_hosts_wrote_into_one_directory(tmp_path: Path) -> None:
    """And types that NumPy does not know; one host's part alone is refused."""
    values = np.arange(8 * 16).reshape(8, 16) % 15 - 7
    arrays = {name: values.astype(name) for name in ("float32", "bfloat16", "float8_e4m3fn", "int4")}
    rules = {"rules": [[".*", ["data", "model"]]]}
    write_store(tmp_path, arrays, mesh="2x4", rules=rules, host=HostGroup(0, 2))
    for way, found in read(tmp_path, *ORBAX).items():
        assert isinstance(found, str) and "missing" in found, f"{way}: {found}"
    write_store(tmp_path, arrays, mesh="2x4", rules=rules, host=HostGroup(1, 2))
    expected = {
        name: [list(array.shape), name, hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in arrays.items()
    }
    answer = read(tmp_path, *ORBAX)
    for way in ORBAX:
        assert answer[way] == expected, way


def test_a_missing_shard_is_an_error_and_never_zeros(fetched: tuple[Path, Expected], tmp_path: Path) -> None:
    store, expected = fetched
    broken = shutil.copytree(store, tmp_path / "broken")
    name = next(name for name in expected if "moe" in name)
    shards = sorted(path for path in (broken / name / "c").rglob("*") if path.is_file())
    shards[0].unlink()
    answer = read(broken, "tensorstore", *ORBAX)
    for way, found in answer.items():
        assert isinstance(found, str), f"{way} made up a missing shard"
        assert "missing" in found, f"{way}: {found}"
