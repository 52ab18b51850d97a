"""A store that a real fetch made, read by TensorStore, zarr-python and Orbax, which know nothing of gdist."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gdist.core.magnet import format_magnet
from gdist.core.mesh import parse_mesh
from gdist.run.fetch import fetch
from gdist.run.options import FetchOptions
from gdist.testing.checkpoints import dequantised, write_grok1
from gdist.testing.swarm import LOOPBACK, seed

pytest.importorskip("jax")
pytest.importorskip("orbax.checkpoint")

pytestmark = [pytest.mark.jax, pytest.mark.torrent, pytest.mark.slow]

Expected = dict[str, list[object]]

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
    ways = ("orbax", "orbax onto a mesh")
    answer = read(store, *ways)
    for way in ways:
        assert answer[way] == expected, way


def test_a_missing_shard_is_an_error_and_never_zeros(fetched: tuple[Path, Expected], tmp_path: Path) -> None:
    store, expected = fetched
    broken = shutil.copytree(store, tmp_path / "broken")
    name = next(name for name in expected if "moe" in name)
    shards = sorted(path for path in (broken / name / "c").rglob("*") if path.is_file())
    shards[0].unlink()
    answer = read(broken, "tensorstore", "orbax", "orbax onto a mesh")
    for way, found in answer.items():
        assert isinstance(found, str), f"{way} made up a missing shard"
        assert "missing" in found, f"{way}: {found}"
