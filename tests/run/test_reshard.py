"""From one mesh to another: bit for bit, on any number of hosts, from all kinds of sources, and back."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import gdist
from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.payload import Payload
from gdist.core.plan import plan_host
from gdist.core.reshard import Grain
from gdist.core.tensor import Part, Quantisation, StoredTensor, TensorSpec
from gdist.errors import RequestError
from gdist.events import (
    AssetKept,
    Finished,
    Note,
    ReshardPlanned,
    ReshardProgress,
    ShardCommitted,
    Stage,
    StageStarted,
    TensorReady,
)
from gdist.run import mover
from gdist.run.origins import open_origin
from gdist.run.reshard_checks import COPIES, share_memory
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, tree_of
from gdist.testing.stores import write_store

RULES = {
    "axes": ["data", "model"],
    "rules": [
        ["moe$", [None, "data", "model"]],
        ["attention$", ["model", "data"]],
        ["embed$", [None, ["data", "model"]]],
        [".*", []],
    ],
}
PAIR = {f"layers.0.moe.{role}": Quantisation("layers.0.moe", role, 8, 1) for role in ("weight", "scales")}
ASSETS = {"config.json": b'{"layers": 1}', "deep/README.md": b"read me"}


def sample() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {
        "embed": rng.standard_normal((24, 128), np.float32),
        "layers.0.moe.weight": rng.integers(-128, 127, (4, 64, 128)).astype(np.int8),
        "layers.0.moe.scales": rng.standard_normal((4, 8, 128)).astype(ml_dtypes.bfloat16),
        "layers.0/attention": rng.standard_normal((64, 64)).astype(ml_dtypes.bfloat16),
        "wide": rng.standard_normal((3, 5)).astype(np.complex128),
        "norm": rng.standard_normal(32).astype(np.float32),
        "step": np.array(1250, np.int64),
        "nothing": np.zeros((0, 4), np.float32),
    }


def cut(root: Path | str, mesh: str, host: HostGroup | None = None, chunk_bytes: int | None = None) -> None:
    """The sample as a fetch would have cut it."""
    write_store(
        root,
        sample(),
        mesh=mesh,
        rules=RULES,
        host=host,
        quantised=PAIR,
        assets=ASSETS,
        chunk_bytes=chunk_bytes,
    )


def content(root: Path) -> dict[str, bytes]:
    """All of a store but its manifest, and what the root's document says of the tool."""
    files = {path: data for path, data in tree_of(root).items() if not path.startswith("gdist.")}
    files["zarr.json"] = files["zarr.json"].replace(f"gdist {gdist.__version__}".encode(), b"gdist test")
    return files


# --- meshes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [None, 96])
@pytest.mark.parametrize(
    ("before", "after"), [("1x1", "8x8"), ("8x8", "2x4"), ("2x4", "4x2"), ("8x1", "1x8"), ("4x4", "1x1")]
)
def test_a_store_is_what_a_fetch_on_that_mesh_would_have_made(
    before: str, after: str, chunk_bytes: int | None, tmp_path: Path
) -> None:
    cut(tmp_path / "from", before, chunk_bytes=chunk_bytes)
    cut(tmp_path / "fetched", after)
    result = gdist.reshard(tmp_path / "from", tmp_path / "to", mesh=after)
    assert not result.already and result.bytes_beyond == 0
    assert content(tmp_path / "to") == content(tmp_path / "fetched")
    assert_holds(tmp_path / "to", sample())
    assert gdist.verify(tmp_path / "to").ok
    assert not (tmp_path / "to/.gdist").exists()


def test_away_and_back_is_bit_identical(tmp_path: Path) -> None:
    cut(tmp_path / "a", "8x8")
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="16x2")
    gdist.reshard(tmp_path / "b", tmp_path / "c", mesh="8x8")
    assert content(tmp_path / "c") == content(tmp_path / "a")
    with gdist.open(tmp_path / "a") as first, gdist.open(tmp_path / "c") as last:
        assert last.manifest.tensors == first.manifest.tensors, "grids, specs and digests"


def test_scales_that_a_mesh_does_not_divide_are_split_again_on_the_way_back(tmp_path: Path) -> None:
    cut(tmp_path / "a", "8x8")
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="16x8")
    with gdist.open(tmp_path / "b") as wide:
        assert wide["layers.0.moe.scales"].spec.to_json() == [None, None, "model"], "8 groups on 16 devices"
    gdist.reshard(tmp_path / "b", tmp_path / "c", mesh="8x8")
    assert content(tmp_path / "c") == content(tmp_path / "a")


def test_rules_cut_otherwise(tmp_path: Path) -> None:
    cut(tmp_path / "a", "2x2")
    rules = {"axes": ["data", "model"], "rules": [["embed$", ["model"]], [".*", []]]}
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="2x4", rules=rules)
    with gdist.open(tmp_path / "b") as store:
        assert store["embed"].spec.to_json() == ["model"]
        assert store["layers.0/attention"].spec.to_json() == []
    assert_holds(tmp_path / "b", sample())


def test_axes_that_a_mesh_lacks_have_size_one(tmp_path: Path) -> None:
    cut(tmp_path / "a", "2x2")
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="8")
    cut(tmp_path / "fetched", "1x8")
    assert content(tmp_path / "b") == content(tmp_path / "fetched")


def test_what_was_cut_along_no_axis_is_split_automatically(tmp_path: Path) -> None:
    write_store(tmp_path / "a", sample())
    recorder = Recorder()
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="2x2", observe=recorder)
    assert any("automatically" in note.text for note in recorder.of(Note))
    with gdist.open(tmp_path / "b") as store:
        assert store["embed"].spec.to_json() == [None, ["data", "model"]]
    recorder = Recorder()
    gdist.reshard(tmp_path / "a", tmp_path / "c", observe=recorder)
    assert not recorder.of(Note), "on one device there is nothing to tell"


@pytest.mark.parametrize("memory", ["1MiB", "8MiB"])
def test_little_memory_makes_the_same_store(memory: str, tmp_path: Path) -> None:
    big = {"w": np.random.default_rng(0).integers(0, 255, (1024, 6000)).astype(np.uint8)}
    rules = {"axes": ["data", "model"], "rules": [["w", ["data", "model"]]]}
    write_store(tmp_path / "a", big, mesh="1x1", rules=rules, chunk_bytes=2**18)
    write_store(tmp_path / "fetched", big, mesh="2x4", rules=rules)
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="2x4", memory=memory)
    assert content(tmp_path / "b") == content(tmp_path / "fetched")


# --- hosts ----------------------------------------------------------------------------------------------


def test_hosts_work_apart_and_their_directories_are_one_source(tmp_path: Path) -> None:
    cut(tmp_path / "a", "2x4")
    parts = [tmp_path / f"hosts/{index}" for index in range(4)]
    for index, part in enumerate(parts):
        gdist.reshard(tmp_path / "a", part, mesh="8x8", host=f"{index}/4")
    for number, source in enumerate((parts, parts[::-1], tmp_path / "hosts")):
        gdist.reshard(source, tmp_path / f"back{number}", mesh="2x4")
        assert content(tmp_path / f"back{number}") == content(tmp_path / "a")


def test_processes_that_share_a_destination_need_not_talk(tmp_path: Path) -> None:
    cut(tmp_path / "a", "8x8")
    command = [sys.executable, "-m", "gdist", "reshard", str(tmp_path / "a"), str(tmp_path / "b"), "--mesh"]
    running = [
        subprocess.Popen([*command, "2x4", "--host", f"{host}/4"], stderr=subprocess.PIPE, text=True)
        for host in range(4)
    ]
    for process in running:
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said
    cut(tmp_path / "one", "2x4", HostGroup())
    with gdist.open(tmp_path / "b") as store:
        assert store.absent_hosts == ()
    assert_holds(tmp_path / "b", sample())
    assert (tmp_path / "b/commit_success.txt").exists(), "the last one said that all are there"
    assert gdist.verify(tmp_path / "b").ok


def test_a_host_reads_only_what_it_keeps_and_says_what_it_reads_beyond(tmp_path: Path) -> None:
    whole = {"w": np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)}
    rules = {"axes": ["data", "model"], "rules": [["w", [None, "model"]]]}
    write_store(tmp_path / "rows", whole, rules=rules, chunk_bytes=1024)
    gdist.reshard(tmp_path / "rows", tmp_path / "columns", mesh="1x4", rules=rules)
    recorder = Recorder()
    result = gdist.reshard(tmp_path / "columns", tmp_path / "b", mesh="1x2", host="1/2", observe=recorder)
    assert (result.bytes_read, result.bytes_beyond) == (2048, 0), "two of the four columns"
    (planned,) = recorder.of(ReshardPlanned)
    assert (planned.bytes_wanted, planned.bytes_read, planned.reads) == (2048, 2048, 2)
    result = gdist.reshard(tmp_path / "rows", tmp_path / "c", mesh="1x4", host="1/4")
    assert (result.bytes_read, result.bytes_beyond) == (4096, 3072), "a column meets every row's chunk"


# --- targets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_buckets_and_compressed_stores_both_ways(
    codec: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cut(tmp_path / "a", "2x4")
    bucket = f"memory://{request.node.name}/s"
    result = gdist.reshard(tmp_path / "a", bucket, mesh="4x2", codec=codec, work_dir=tmp_path / "work")
    assert result.manifest.codec == codec
    assert_holds(bucket, sample())
    assert not list((tmp_path / "work").rglob("*.part"))
    gdist.reshard(bucket, tmp_path / "local", mesh="1x2", codec=codec)
    assert_holds(tmp_path / "local", sample())
    gdist.reshard(tmp_path / "local", tmp_path / "back", mesh="2x4")
    assert content(tmp_path / "back") == content(tmp_path / "a")


def test_hosts_parts_in_buckets_are_joined(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cut(tmp_path / "a", "2x4")
    parts = [f"memory://{request.node.name}/{index}" for index in range(2)]
    for index, part in enumerate(parts):
        gdist.reshard(
            tmp_path / "a", part, mesh="2x4", host=f"{index}/2", codec="zstd", work_dir=tmp_path / "work"
        )
    gdist.reshard(parts, tmp_path / "back", mesh="2x4")
    assert content(tmp_path / "back") == content(tmp_path / "a")
    for verify in (True, False):
        with gdist.open(parts, verify=verify) as store:
            for name, array in sample().items():
                assert store[name].read().tobytes() == array.tobytes(), name


# --- provenance -----------------------------------------------------------------------------------------


def test_provenance_is_kept_and_the_way_recorded(tmp_path: Path) -> None:
    cut(tmp_path / "a", "2x4")
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="8x8")
    manifest = gdist.reshard(tmp_path / "b", tmp_path / "c", mesh="1x1").manifest
    with gdist.open(tmp_path / "a") as first:
        original = first.manifest
    assert (manifest.source, manifest.assets, manifest.ignored) == (
        original.source,
        original.assets,
        original.ignored,
    )
    assert [(step.kind, step.mesh) for step in manifest.resharded] == [
        ("store", "data=2,model=4"),
        ("store", "data=8,model=8"),
    ]
    assert original.resharded == () and "resharded" not in json.loads((tmp_path / "a/gdist.json").read_text())
    assert {path: (tmp_path / "c/assets" / path).read_bytes() for path in ASSETS} == ASSETS


# --- events and repeating -------------------------------------------------------------------------------


def test_events_tell_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "PROGRESS_SECONDS", 0.0)
    cut(tmp_path / "a", "2x4")
    recorder = Recorder()
    result = gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="8x8", observe=recorder)
    assert [event.stage for event in recorder.of(StageStarted)] == [
        Stage.HEADERS,
        Stage.PLAN,
        Stage.RESHARD,
        Stage.FINISH,
    ]
    (planned,) = recorder.of(ReshardPlanned)
    assert planned.shards == len(recorder.of(ShardCommitted))
    assert {event.tensor for event in recorder.of(TensorReady)} == set(sample())
    told = recorder.of(ReshardProgress)
    assert [event.bytes_placed for event in told] == sorted(event.bytes_placed for event in told)
    assert told[-1].bytes_placed <= told[-1].bytes_wanted == planned.bytes_wanted
    assert len(recorder.of(AssetKept)) == len(ASSETS)
    (finished,) = recorder.of(Finished)
    assert finished is recorder.events[-1]
    assert (finished.already, finished.nbytes) == (False, result.manifest.nbytes)


def test_a_complete_store_returns_at_once_and_gets_lost_shards_back(tmp_path: Path) -> None:
    cut(tmp_path / "a", "2x4")
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="8x8")
    before = tree_of(tmp_path / "b")
    again = gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="8x8")
    assert again.already and again.bytes_read == 0
    (tmp_path / "b/embed/c/0/0").unlink()
    recorder = Recorder()
    back = gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="8x8", observe=recorder)
    assert not back.already and back.bytes_read == sample()["embed"].nbytes, "only what was lost is read"
    assert any("made again" in note.text for note in recorder.of(Note))
    assert tree_of(tmp_path / "b") == before


# --- a checkpoint's own files ---------------------------------------------------------------------------


def test_pickles_of_grok1_as_a_fetch_would_have_cut_them(tmp_path: Path) -> None:
    expected = write_grok1(tmp_path / "grok", layers=1)
    (tmp_path / "grok/README.md").write_bytes(b"read me")
    recorder = Recorder()
    result = gdist.reshard(tmp_path / "grok", tmp_path / "b", mesh="2x4", observe=recorder)
    assert_holds(tmp_path / "b", expected)
    source = result.manifest.source
    assert (source.profile, source.name, source.info_hash) == ("grok-1", "grok", "")
    assert [step.kind for step in result.manifest.resharded] == ["files"]
    assert (tmp_path / "b/assets/README.md").read_bytes() == b"read me"
    assert any("no digests" in note.text for note in recorder.of(Note))
    assert result.bytes_beyond == 0
    with gdist.open(tmp_path / "b") as store:
        spec = store["params.transformer.decoder_layer_0.moe.linear.w.weight"].spec
    assert spec.to_json() == [None, "data", "model"], "the profile's own rules"


def test_safetensors_of_a_host_and_files_left_out(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "llama")
    (tmp_path / "llama/old.gguf").write_bytes(b"GGUF" + bytes(100))
    for index in range(2):
        gdist.reshard(tmp_path / "llama", tmp_path / "b", mesh="2x2", host=f"{index}/2", ignore=["*.gguf"])
    assert_holds(tmp_path / "b", expected)
    with gdist.open(tmp_path / "b") as store:
        assert store.manifest.ignored == ("*.gguf",)


def test_one_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "llama", shards=1, index=False)
    gdist.reshard(tmp_path / "llama/model.safetensors", tmp_path / "b", mesh="1x2")
    assert_holds(tmp_path / "b", expected)


def test_a_source_whose_name_no_manifest_can_hold_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    write_safetensors(tmp_path / "one\udcff")
    with pytest.raises(RequestError, match="has a name that is not UTF-8"):
        gdist.reshard(tmp_path / "one\udcff", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("mesh", ["1x1", "4x2", "2x4"])
def test_arrays_in_fortran_order(mesh: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        "cube": np.asfortranarray(rng.standard_normal((16, 24, 32)).astype(np.float32)),
        "flat": np.asfortranarray(rng.integers(-128, 127, (64, 40)).astype(np.int8)),
    }
    (tmp_path / "a").mkdir()
    for name, array in arrays.items():
        assert array.flags.f_contiguous
        (tmp_path / "a" / name).write_bytes(pickle.dumps(array, protocol=4))
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh=mesh)
    assert_holds(tmp_path / "b", arrays)


# --- memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("memory", [2**20, 2**24, 2**30, 2**33])
def test_workers_share_the_memory_there_is(memory: int, staged: bool, tmp_path: Path) -> None:
    cut(tmp_path / "a", "1x1")
    origin, _ = open_origin([tmp_path / "a"], None, ())
    plan = plan_host(Payload((), 1, 0), origin.contents.tensors, Mesh(), None)
    grains = [origin.grain(number) for number in range(len(plan.tensors))]
    share = share_memory(plan, grains, memory, maps=False, staged=staged)
    held = share.workers * (COPIES * share.unit + share.write)
    assert held <= memory // (2 if staged else 1)
    mapped = share_memory(plan, grains, memory, maps=True, staged=staged)
    assert mapped.workers * mapped.write <= memory


@pytest.mark.parametrize("staged", [False, True])
def test_the_memory_that_a_refusal_asks_for_is_the_least_that_is_enough(staged: bool) -> None:
    spec = TensorSpec("w", (4096, 4096), BY_NAME["uint8"])
    stored = StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(spec.shape)),))
    plan = plan_host(Payload((), 1, 0), [stored], Mesh(), None)
    grains = [Grain((1024, 4096), whole=True)]
    with pytest.raises(
        RequestError, match=r"chunks of up to 4\.19 MB .* of which 0 B are left for 3 copies"
    ) as caught:
        share_memory(plan, grains, 2**16, maps=False, staged=staged)
    enough = int(caught.value.hint.rpartition(" ")[2].removesuffix("MiB"))
    share_memory(plan, grains, enough * 2**20, maps=False, staged=staged)
    with pytest.raises(RequestError):
        share_memory(plan, grains, (enough - 1) * 2**20, maps=False, staged=staged)
