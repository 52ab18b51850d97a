"""`--dtype`: pairs dequantised, floats cast on the way, equal to the bit on every mesh and after any kill."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
import zarr

import gdist
from gdist.core.magnet import format_magnet
from gdist.errors import CorruptError, RequestError, ResumeError
from gdist.events import Planned, ShardCommitted
from gdist.run.fetch import fetch
from gdist.run.plan import PlanOptions, plan
from gdist.run.survey import SurveyOptions
from gdist.run.verify import verify
from gdist.sinks import convert
from gdist.testing.checkpoints import dequantised, write_grok1, write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import Seeded, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14


@pytest.fixture(scope="module")
def grok(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    root = tmp_path_factory.mktemp("from") / "grok"
    return root, write_grok1(root, layers=2)


@pytest.fixture(scope="module")
def seeded(grok: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(grok[0], piece_length=PIECE) as found:
        yield found


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("mesh", ["1x1", "2x4", "8x8"])
def test_a_mesh_holds_what_numpy_makes_of_the_source(
    mesh: str, dtype: str, seeded: Seeded, grok: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    recorder = Recorder()
    options = fetch_options(mesh, dtype=dtype)
    result = fetch(format_magnet(seeded.magnet), tmp_path / "s", options, observe=recorder)
    expected = dequantised(grok[1], dtype)
    assert_holds(tmp_path / "s", expected)
    assert verify(tmp_path / "s").ok
    assert not (tmp_path / "s/.gdist").exists()
    (planned,) = recorder.of(Planned)
    assert planned.bytes_wanted >= sum(array.nbytes for array in grok[1].values())
    assert planned.bytes_kept == result.manifest.nbytes
    assert sum(event.nbytes for event in recorder.of(ShardCommitted)) == result.manifest.nbytes
    for name, array in expected.items():
        kvstore = {"driver": "file", "path": f"{tmp_path}/s/{name}/"}
        spec = {"driver": "zarr3", "kvstore": kvstore, "fill_missing_data_reads": False}
        assert ts.open(spec).result().read().result().tobytes() == array.tobytes()
        found = zarr.open_group(tmp_path / "s", mode="r")[name]
        assert isinstance(found, zarr.Array) and np.asarray(found[...]).tobytes() == array.tobytes()


@pytest.mark.jax
def test_what_is_loaded_is_what_jax_makes_of_the_pairs(seeded: Seeded, tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    import gdist

    fetch(format_magnet(seeded.magnet), tmp_path / "pairs", fetch_options("2x4"))
    fetch(format_magnet(seeded.magnet), tmp_path / "plain", fetch_options("2x4", dtype="bfloat16"))

    def is_pair(leaf: object) -> bool:
        return isinstance(leaf, gdist.QuantizedWeight8bit)

    expected = jax.tree.map(
        lambda leaf: leaf.dequantize() if is_pair(leaf) else leaf.astype("bfloat16"),
        gdist.load(tmp_path / "pairs"),
        is_leaf=is_pair,
    )
    found = gdist.load(tmp_path / "plain")
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(got, jax.Array) and got.dtype == wanted.dtype
        assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()


def test_hosts_convert_their_own_shares(
    seeded: Seeded, grok: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    for index in range(2):
        options = fetch_options("2x4", f"{index}/2", dtype="bfloat16")
        fetch(format_magnet(seeded.magnet), tmp_path / str(index), options)
    shutil.copytree(tmp_path / "1", tmp_path / "0", dirs_exist_ok=True)
    assert_holds(tmp_path / "0", dequantised(grok[1], "bfloat16"))
    assert verify(tmp_path / "0").ok


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_bucket_gets_what_was_converted(
    codec: str,
    seeded: Seeded,
    grok: tuple[Path, dict[str, Array]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gdist.run.preflight.LEAST_SHARD_BYTES", 1 << 14)  # several shards for each slab
    url = f"memory://{request.node.name}"
    options = fetch_options("2x4", codec=codec, work=tmp_path / "work", dtype="bfloat16", memory=1 << 17)
    fetch(format_magnet(seeded.magnet), url, options)
    assert_holds(url, dequantised(grok[1], "bfloat16"))
    assert verify(url).ok
    assert list((tmp_path / "work").iterdir()) == [], "nothing waits here any more"


def test_only_floating_tensors_are_cast(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    tensors: dict[str, Array] = {
        "double": rng.standard_normal((40, 30)),
        "half": rng.standard_normal((40, 30)).astype(np.float16),
        "same": rng.standard_normal((40, 30)).astype(ml_dtypes.bfloat16),
        "small": rng.standard_normal((40, 30)).astype(ml_dtypes.float8_e4m3fn),
        "scalar": np.array(1 / 3, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "whole": rng.integers(-9, 9, (40, 30)),
        "bytes": rng.integers(-9, 9, (40, 30)).astype(np.int8),
        "flags": np.array([True, False]),
    }
    write_safetensors(tmp_path / "m", tensors)
    with seed(tmp_path / "m", piece_length=PIECE) as seeded:
        options = fetch_options("2x4", dtype="bfloat16")
        manifest = fetch(format_magnet(seeded.magnet), tmp_path / "s", options).manifest
    kept = {"same", "whole", "bytes", "flags"}
    bfloat16 = np.dtype("bfloat16")
    assert_holds(tmp_path / "s", {n: a if n in kept else a.astype(bfloat16) for n, a in tensors.items()})
    assert {t.name for t in manifest.tensors if not t.stored} == kept


def test_blocks_of_any_size_give_the_same_store(
    seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in (1 << 10, 1 << 22):
        monkeypatch.setattr(convert, "BLOCK_BYTES", block)
        fetch(format_magnet(seeded.magnet), tmp_path / str(block), fetch_options("2x4", dtype="bfloat16"))
    assert tree_of(tmp_path / str(1 << 10)) == tree_of(tmp_path / str(1 << 22))


# --- what is written down ---------------------------------------------------------------------------------


def test_the_manifest_says_what_was_converted(seeded: Seeded, tmp_path: Path) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4", dtype="bfloat16"))
    manifest = json.loads((tmp_path / "s/gdist.json").read_bytes())
    assert manifest["converted"] == {"dtype": "bfloat16"}
    stored = {row["name"]: row["stored"] for row in manifest["tensors"]}
    assert stored["params.transformer.decoder_layer_0.moe.linear_1.w"] == ["int8", "bfloat16"]
    assert stored["params.language_model.rms_norm.scale"] == ["float32"]
    assert not any("quantisation" in row for row in manifest["tensors"])
    shard = next((tmp_path / "s" / manifest["tensors"][0]["name"]).glob("c/*/*"))
    shard.write_bytes(bytes(64) + shard.read_bytes()[64:])
    with gdist.open(tmp_path / "s") as store, pytest.raises(CorruptError, match="differs") as caught:
        store[manifest["tensors"][0]["name"]].read()
    assert "was converted" in caught.value.hint and "--repair" not in caught.value.hint


def test_a_store_of_another_type_is_another_job(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options(dtype="bfloat16"))
    assert fetch(magnet, dest, fetch_options(dtype="bfloat16")).already
    for other in (fetch_options(), fetch_options(dtype="float32")):
        with pytest.raises(ResumeError, match="all tensors in bfloat16, asked for all tensors") as caught:
            fetch(magnet, dest, other)
        assert "--dtype" in caught.value.hint
    fetch(magnet, tmp_path / "shared", fetch_options("2x4", "0/2", dtype="bfloat16"))
    with pytest.raises(ResumeError, match="another job"):
        fetch(magnet, tmp_path / "shared", fetch_options("2x4", "1/2"))


def test_a_type_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="dtype 'int8' is none of"):
        fetch("ab" * 20, tmp_path / "s", fetch_options(dtype="int8"))
    assert not (tmp_path / "s").exists()


def test_the_plan_counts_what_is_kept_and_what_waits(seeded: Seeded) -> None:
    torrent = SurveyOptions(torrent=fetch_options().torrent)
    magnet = format_magnet(seeded.magnet)
    (stored,) = plan(magnet, PlanOptions(survey=torrent)).hosts
    (made,) = plan(magnet, PlanOptions(survey=torrent, dtype="float32")).hosts
    assert made.bytes_touched == stored.bytes_touched
    assert made.bytes_wanted > 3 * stored.bytes_wanted
    assert made.disk - stored.disk > made.bytes_wanted - stored.bytes_wanted


def test_a_shard_that_is_lost_is_made_again(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options("2x4", dtype="bfloat16"))
    whole = tree_of(dest)
    shards = sorted(path for path in dest.rglob("c/*") if path.is_file())
    for shard in shards[::9]:
        shard.unlink()
    recorder = Recorder()
    fetch(magnet, dest, fetch_options("2x4", dtype="bfloat16"), observe=recorder)
    assert tree_of(dest) == whole
    (planned,) = recorder.of(Planned)
    assert planned.bytes_resumed > planned.bytes_wanted / 2


def test_a_kept_payload_stays_as_it_is(
    seeded: Seeded, grok: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    options = fetch_options("2x4", dtype="bfloat16", payload="keep")
    fetch(format_magnet(seeded.magnet), tmp_path / "s", options)
    assert_holds(tmp_path / "s", dequantised(grok[1], "bfloat16"))
    assert tree_of(tmp_path / "s/payload/grok") == tree_of(grok[0])


# --- killed -----------------------------------------------------------------------------------------------

# A fetch of its own process that is killed at its n-th write, rename or removal; 0: never.
CHILD = """
import os, signal, sys
from gdist.run import coordinator
from gdist.run.fetch import fetch
from gdist.sinks import convert
from gdist.testing.fetches import fetch_options
source, dest, codec, count = sys.argv[1:]
coordinator.CHECKPOINT_SECONDS = 0.0
convert.BLOCK_BYTES = 4096
left = int(count)
def counted(call):
    def wrapper(*args, **keywords):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **keywords)
    return wrapper
for name in ("pwrite", "rename", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
fetch(source, dest, fetch_options("2x4", dtype="bfloat16", codec=codec))
print("complete", flush=True)
"""


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_run_killed_at_any_write_ends_with_the_same_store(
    codec: str, grok: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    rng = random.Random(codec)
    dest, killed = tmp_path / "s", 0
    with seed(grok[0], piece_length=PIECE, process=True) as seeded:
        magnet = format_magnet(seeded.magnet)
        for run in itertools.count():
            count = 0 if run >= 5 else rng.randrange(20, 200)
            command = [sys.executable, "-c", CHILD, magnet, str(dest), codec, str(count)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            assert done.returncode == -signal.SIGKILL or done.stdout == "complete\n", done
            assert (done.returncode == 0) == (dest / "gdist.json").exists()
            if done.returncode == 0:
                break
            killed += 1
        fetch(magnet, tmp_path / "whole", fetch_options("2x4", dtype="bfloat16", codec=codec))
    assert killed >= 3, "it was killed a few times"
    assert_holds(dest, dequantised(grok[1], "bfloat16"))
    if codec == "none":
        assert tree_of(dest) == tree_of(tmp_path / "whole")
    assert not (dest / ".gdist").exists()
