"""A reshard that was stopped, killed or refused leaves nothing that looks whole, and goes on where it was."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gdist
from gdist.core.journal import ShardRecord, parse_journal
from gdist.core.mesh import HostGroup
from gdist.core.plan import ShardTask
from gdist.errors import (
    CorruptError,
    FilesystemError,
    GdistError,
    InterruptedRun,
    RequestError,
    ResumeError,
    SpaceError,
    UnsupportedError,
)
from gdist.events import Event, ReshardPlanned, ShardCommitted
from gdist.sinks.local import LocalSink
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, tree_of
from gdist.testing.stores import write_store

RULES = {"axes": ["data", "model"], "rules": [["w$", ["data", "model"]], [".*", []]]}
NOW_AND_THEN = 7  # of the shards after which a run is stopped, so many are tried


def sample(layers: int = 6) -> dict[str, Array]:
    rng = np.random.default_rng(9)
    arrays: dict[str, Array] = {}
    for layer in range(layers):
        arrays[f"layers.{layer}.w"] = rng.standard_normal((64, 96)).astype(np.float32)
        arrays[f"layers.{layer}.norm"] = rng.standard_normal(64).astype(np.float32)
    return arrays


def store(root: Path, mesh: str = "2x4", host: str = "0/1", arrays: dict[str, Array] | None = None) -> Path:
    index, count = map(int, host.split("/"))
    write_store(
        root,
        arrays or sample(),
        mesh=mesh,
        rules=RULES,
        host=HostGroup(index, count),
        chunk_bytes=2048,
        assets={"config.json": b"{}"},
    )
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("from") / "s")


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("whole") / "s"
    gdist.reshard(source, root, mesh="4x4")
    return tree_of(root)


# --- going on -------------------------------------------------------------------------------------------


def stopped_after(shards: int, source: Path, dest: Path) -> None:
    """Asks a run to stop when so many shards are committed; those after them are held until then."""
    stop, seen = threading.Event(), 0
    begun, commit = itertools.count(), LocalSink.commit

    def held(sink: LocalSink, task: ShardTask) -> ShardRecord:
        if next(begun) >= shards:
            stop.wait(30)
        return commit(sink, task)

    def observe(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, ShardCommitted)
        if seen >= shards:
            stop.set()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRun):
        patch.setattr(LocalSink, "commit", held)
        gdist.reshard(source, dest, mesh="4x4", observe=observe, stop=stop)


@pytest.mark.parametrize("shards", random.Random(1).sample(range(9), NOW_AND_THEN))
def test_stopped_after_any_shard_it_goes_on(
    shards: int, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    dest = tmp_path / "b"
    stopped_after(shards, source, dest)
    assert not (dest / "gdist.json").exists(), "an unfinished store does not look complete"
    with pytest.raises(RequestError, match="is not a store"):
        gdist.open(dest)
    progress, _ = parse_journal((dest / ".gdist/journal.jsonl").read_bytes())
    assert progress is not None and len(progress.shards) >= shards
    recorder = Recorder()
    gdist.reshard(source, dest, mesh="4x4", observe=recorder)
    assert tree_of(dest) == whole
    (planned,) = recorder.of(ReshardPlanned)
    there = sum(sample()[name].nbytes for name, _ in progress.shards)
    assert planned.bytes_resumed == there, "one shard is one tensor here"
    assert planned.bytes_read == planned.bytes_wanted - there, "what was done is not read again"


# Kills itself, as nobody can foresee, after so many shards: source, destination, number.
CHILD = """
import os, signal, sys
import gdist
from gdist.events import ShardCommitted
source, dest, shards = sys.argv[1:]
seen = 0
def tell(event):
    global seen
    seen += isinstance(event, ShardCommitted)
    if seen == int(shards):
        os.kill(os.getpid(), signal.SIGKILL)
gdist.reshard(source, dest, mesh="4x4", observe=tell)
"""


def test_killed_again_and_again_it_still_ends_with_the_same_store(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    dest = tmp_path / "b"
    for shards in (1, 3, 6):
        done = subprocess.run([sys.executable, "-c", CHILD, str(source), str(dest), str(shards)])
        assert done.returncode == -9
    journal = dest / ".gdist/journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"shard": ["layers.5.')  # as if it died while it wrote
    part = dest / ".gdist/parts/0-0-0.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"of another size")
    gdist.reshard(source, dest, mesh="4x4")
    assert tree_of(dest) == whole


def test_shards_that_vanished_meanwhile_are_written_again(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    dest = tmp_path / "b"
    stopped_after(4, source, dest)
    next(path for path in sorted(dest.rglob("c/*/*")) if path.is_file()).unlink()
    gdist.reshard(source, dest, mesh="4x4")
    assert tree_of(dest) == whole


def test_two_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    refused = []

    def observe(event: Event) -> None:
        if isinstance(event, ShardCommitted) and not refused:
            with pytest.raises(ResumeError, match="another gdist") as caught:
                gdist.reshard(source, tmp_path / "b", mesh="4x4")
            refused.append(caught)

    gdist.reshard(source, tmp_path / "b", mesh="4x4", observe=observe)
    assert refused


# --- another job ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"mesh": "2x2"},
        {"codec": "zstd"},
        {"rules": {"axes": ["data", "model"], "rules": [[".*", []]]}},
    ],
)
def test_a_destination_never_holds_two_jobs(change: dict[str, object], source: Path, tmp_path: Path) -> None:
    half, done = tmp_path / "half", tmp_path / "done"
    stopped_after(2, source, half)
    gdist.reshard(source, done, mesh="4x4")
    options = {"mesh": "4x4", **change}
    for dest in (half, done):
        before = tree_of(dest)
        with pytest.raises(ResumeError) as caught:
            gdist.reshard(source, dest, **options)  # type: ignore[arg-type]  # as many types as options
        assert "destination" in caught.value.hint
        assert tree_of(dest) == before


def test_a_destination_never_holds_two_sources(source: Path, tmp_path: Path) -> None:
    other = store(tmp_path / "other", mesh="4x2")
    half, done = tmp_path / "half", tmp_path / "done"
    stopped_after(2, source, half)
    with pytest.raises(ResumeError, match="unfinished reshard of another plan"):
        gdist.reshard(other, half, mesh="4x4")
    gdist.reshard(source, done, mesh="4x4")
    with pytest.raises(ResumeError, match="another source"):
        gdist.reshard(other, done, mesh="4x4")


def test_hosts_at_one_destination_must_do_one_job(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "b"
    gdist.reshard(source, dest, mesh="4x4", host="0/2")
    before = tree_of(dest)
    with pytest.raises(ResumeError, match="2 hosts, not 4"):
        gdist.reshard(source, dest, mesh="4x4", host="1/4")
    with pytest.raises(ResumeError, match="mesh data=4,model=4, not data=2,model=4"):
        gdist.reshard(source, dest, mesh="2x4", host="1/2")
    with pytest.raises(ResumeError, match="2 hosts, not 1"):
        gdist.reshard(source, dest, mesh="4x4")
    other = store(tmp_path / "other", mesh="4x2")
    with pytest.raises(ResumeError, match="another source"):
        gdist.reshard(other, dest, mesh="4x4", host="1/2")
    rules = {"axes": ["data", "model"], "rules": [[".*", []]]}
    with pytest.raises(ResumeError, match="another way"):
        gdist.reshard(source, dest, mesh="4x4", host="1/2", rules=rules)
    assert tree_of(dest) == before
    gdist.reshard(source, dest, mesh="4x4", host="1/2")
    assert_holds(dest, sample())


def test_files_that_changed_are_another_source(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", shards=1, index=False)
    gdist.reshard(tmp_path / "a", tmp_path / "b")
    assert gdist.reshard(tmp_path / "a", tmp_path / "b").already
    os.utime(tmp_path / "a/model.safetensors", ns=(1, 1))
    with pytest.raises(ResumeError, match="before its source changed"):
        gdist.reshard(tmp_path / "a", tmp_path / "b")


def test_copies_of_files_on_two_hosts_are_one_source(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy", copy_function=shutil.copyfile)
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="1x2", host="0/2")
    gdist.reshard(tmp_path / "copy", tmp_path / "b", mesh="1x2", host="1/2")
    assert_holds(tmp_path / "b", expected)


def checkpoint(root: Path, step: int, *, everywhere: bool = True) -> Path:
    """A checkpoint as training left it after a step: all its values, or just one, differ from others."""
    rng = np.random.default_rng(step if everywhere else 0)
    arrays: dict[str, Array] = {
        f"layers.{layer}.w": rng.standard_normal((64, 96)).astype(np.float32) for layer in range(6)
    }
    arrays["layers.0.w"][0, 0] = step
    shutil.rmtree(root, ignore_errors=True)
    write_safetensors(root, arrays, shards=1, index=False)
    return root


def store_of(root: Path, step: int, *, everywhere: bool = True, host: str = "0/1") -> Path:
    """A store that a checkpoint was made to, at the same place for every step."""
    shutil.rmtree(root, ignore_errors=True)
    files = checkpoint(root.with_name("files"), step, everywhere=everywhere)
    gdist.reshard(files, root, mesh="2x4", rules=RULES, host=host)
    return root


@pytest.mark.parametrize("everywhere", [True, False], ids=["every value", "one value"])
def test_a_store_that_became_another_is_not_gone_on_with(everywhere: bool, tmp_path: Path) -> None:
    source, half, done = tmp_path / "s", tmp_path / "half", tmp_path / "done"
    store_of(source, 1, everywhere=everywhere)
    stopped_after(2, source, half)
    gdist.reshard(source, done, mesh="4x4")
    assert gdist.reshard(source, done, mesh="4x4").already
    store_of(source, 2, everywhere=everywhere)
    with pytest.raises(ResumeError, match="unfinished reshard of another plan"):
        gdist.reshard(source, half, mesh="4x4")
    with pytest.raises(ResumeError, match="another source"):
        gdist.reshard(source, done, mesh="4x4")


def test_a_part_that_became_another_is_not_gone_on_with(tmp_path: Path) -> None:
    part, dest = tmp_path / "s", tmp_path / "b"
    store_of(part, 1, everywhere=False, host="0/2")
    gdist.reshard(part, dest, mesh="2x4", host="0/2")
    store_of(part, 2, everywhere=False, host="0/2")
    with pytest.raises(ResumeError, match="before its source changed"):
        gdist.reshard(part, dest, mesh="2x4", host="0/2")


@pytest.mark.parametrize("make", [checkpoint, store_of], ids=["files", "store"])
def test_hosts_that_read_two_checkpoints_do_not_share_a_destination(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    source, dest = tmp_path / "s", tmp_path / "b"
    gdist.reshard(make(source, 1), dest, mesh="4x4", rules=RULES, host="0/2")
    make(source, 2)
    with pytest.raises(ResumeError, match=r"another source: .* with identity .*, not ") as caught:
        gdist.reshard(source, dest, mesh="4x4", rules=RULES, host="1/2")
    assert "all hosts need the same sources" in caught.value.hint


def test_parts_of_two_checkpoints_are_not_joined(tmp_path: Path) -> None:
    parts = [store_of(tmp_path / f"h{host}", host, host=f"{host}/2") for host in (0, 1)]
    for read in (gdist.open, lambda sources: gdist.reshard(sources, tmp_path / "b")):
        with pytest.raises(RequestError, match=r"another job .*made from files 'files' with identity"):
            read(parts)  # type: ignore[operator]  # either is a function
    assert not (tmp_path / "b").exists()


def test_hosts_that_read_parts_of_their_own_share_a_destination(tmp_path: Path) -> None:
    parts = [store_of(tmp_path / f"h{host}", 1, host=f"{host}/4") for host in range(4)]
    gdist.reshard(parts[:2], tmp_path / "b", mesh="2x2", host="0/2")
    gdist.reshard(parts[2:], tmp_path / "b", mesh="2x2", host="1/2")
    with gdist.open(tmp_path / "b") as one, gdist.open(parts) as other:
        assert all(np.array_equal(one[name].read(), other[name].read()) for name in other)


def test_another_source_of_the_same_name_is_told_apart(source: Path, tmp_path: Path) -> None:
    for mesh in ("8x8", "1x2"):
        gdist.reshard(source, tmp_path / mesh, mesh=mesh)
    gdist.reshard(tmp_path / "8x8", tmp_path / "b", mesh="4x4")
    with pytest.raises(ResumeError, match=r"store 'test' on mesh data=8,model=8, not .* data=1,model=2"):
        gdist.reshard(tmp_path / "1x2", tmp_path / "b", mesh="4x4")


def test_an_unfinished_reshard_is_called_one(source: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    stopped_after(2, source, half)
    with pytest.raises(RequestError) as verified:
        gdist.verify(half)
    with pytest.raises(RequestError) as inspected:
        gdist.inspect(half)
    with pytest.raises(ResumeError) as shared:
        gdist.reshard(source, half, mesh="4x4", host="0/2")
    for caught in (verified, inspected, shared):
        said = f"{caught.value.message} {caught.value.hint}"
        assert "reshard" in said and "fetch" not in said


# --- what is damaged ------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_damaged_chunk_is_named_and_nothing_of_it_is_whole(tmp_path: Path) -> None:
    source, dest = store(tmp_path / "a"), tmp_path / "b"
    flip(source / "layers.3.w/c/0/0", 5000)
    with pytest.raises(CorruptError, match=r"chunk \(\d+, \d+\) of shard .*layers\.3\.w") as caught:
        gdist.reshard(source, dest, mesh="4x4")
    assert caught.value.tensor == "layers.3.w"
    assert not (dest / "gdist.json").exists() and not (dest / "layers.3.w/c").exists()
    flip(source / "layers.3.w/c/0/0", 5000)
    gdist.reshard(source, dest, mesh="4x4")
    assert_holds(dest, sample())


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_shard_that_is_not_there_shows_before_any_byte_moves(damage: str, tmp_path: Path) -> None:
    source = store(tmp_path / "a")
    for layer in (1, 4):
        path = source / f"layers.{layer}.w/c/0/0"
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError, match=r"layers\.1\.w.*layers\.4\.w"):
        gdist.reshard(source, tmp_path / "b", mesh="4x4")
    assert not (tmp_path / "b").exists()


def test_a_damaged_asset_ends_it_before_the_manifest(tmp_path: Path) -> None:
    source = store(tmp_path / "a")
    (source / "assets/config.json").write_bytes(b"[]")
    with pytest.raises(CorruptError, match=r"config\.json"):
        gdist.reshard(source, tmp_path / "b")
    assert not (tmp_path / "b/gdist.json").exists()


def test_a_damaged_chunk_of_a_bucket_is_named(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import tensorstore as ts

    from gdist.kvstore import kvstore_spec, shared_context

    bucket = f"memory://{request.node.name}/s"
    write_store(bucket, sample(2), mesh="2x4", rules=RULES)
    kvstore = ts.KvStore.open(kvstore_spec(bucket), context=shared_context()).result()
    key = "layers.1.w/c/0/0"
    data = bytearray(kvstore.read(key).result().value)
    data[100] ^= 1
    kvstore.write(key, bytes(data)).result()
    with pytest.raises(CorruptError, match=r"layers\.1\.w"):
        gdist.reshard(bucket, tmp_path / "b")
    assert not (tmp_path / "b/gdist.json").exists()


def test_files_with_holes_are_unfinished_downloads(tmp_path: Path) -> None:
    big = {"w": np.ones((64, 4096), np.float32)}
    write_safetensors(tmp_path / "a", big, shards=1, index=False)
    path = tmp_path / "a/model.safetensors"
    head = path.read_bytes()[:4096]
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.truncate(0)
        file.write(head)
        file.truncate(size)
    with pytest.raises(CorruptError, match=r"has a hole at byte \d+,"):
        gdist.reshard(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a")
    index = tmp_path / "a/model.safetensors.index.json"
    index.write_text(index.read_text().replace("lm_head.weight", "lm_tail.weight"))
    with pytest.raises(CorruptError, match="lm_tail"):
        gdist.reshard(tmp_path / "a", tmp_path / "b")


# --- what cannot be asked -------------------------------------------------------------------------------


def hosts(root: Path, count: int = 4, mesh: str = "4x2") -> list[Path]:
    return [store(root / f"host{index}", mesh, f"{index}/{count}") for index in range(count)]


def test_missing_hosts_are_named_with_what_they_hold(tmp_path: Path) -> None:
    parts = hosts(tmp_path)
    with pytest.raises(RequestError, match=r"host 1 has 6 shards .*'layers\.0\.w'.*; host 3 has 6") as caught:
        gdist.reshard([parts[0], parts[2]], tmp_path / "b", mesh="2x2")
    assert caught.value.hosts == (1, 3)
    assert not (tmp_path / "b").exists()
    gdist.reshard([parts[0], parts[1]], tmp_path / "b", mesh="2x2", host="0/2")  # all that this host needs


def joined_wrongly(tmp_path: Path) -> dict[str, list[Path]]:
    parts = hosts(tmp_path / "one")
    other = store(tmp_path / "other", "4x2", "1/4", arrays=sample(3))
    turned = store(tmp_path / "turned", "8x1", "1/4")
    (tmp_path / "empty").mkdir()
    return {
        "3 tensors": [parts[0], other],
        "another mesh": [parts[0], turned],
        "a whole store": [parts[0], store(tmp_path / "whole", "4x2")],
        "no store": [parts[0], tmp_path / "empty"],
    }


@pytest.mark.parametrize("wrong", ["3 tensors", "another mesh", "a whole store", "no store"])
def test_only_parts_of_one_store_are_joined(wrong: str, tmp_path: Path) -> None:
    sources = joined_wrongly(tmp_path)[wrong]
    with pytest.raises(RequestError) as caught:
        gdist.reshard(sources, tmp_path / "b")
    assert "another job" in caught.value.message or "parts of" in caught.value.message
    assert not (tmp_path / "b").exists()
    if wrong != "no store":
        with pytest.raises(RequestError):
            gdist.open(sources)


@pytest.mark.parametrize("dest", ["a", "a/", "a/below", ".", "link", "link/below"])
def test_source_and_destination_lie_apart(dest: str, tmp_path: Path) -> None:
    store(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    before = tree_of(tmp_path)
    with pytest.raises(RequestError, match="the source"):
        gdist.reshard(tmp_path / "a", f"{tmp_path}/{dest}", mesh="4x4")
    assert tree_of(tmp_path) == before


def test_addresses_of_one_bucket_are_compared_too() -> None:
    with pytest.raises(RequestError, match="is inside the source"):
        gdist.reshard("memory://here/s", "memory://here/s/t")
    with pytest.raises(RequestError, match="is no store"):
        gdist.reshard("memory://here/s", "memory://here/st")


@pytest.mark.parametrize("dest", ["http://127.0.0.1:9/s", "HTTPS://127.0.0.1:9/s"])
def test_a_web_server_is_no_destination(dest: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="can only be read") as caught:
        gdist.reshard(tmp_path / "none", dest)
    assert "s3://" in caught.value.hint


def unfinished(tmp_path: Path) -> Path:
    stopped_after(1, store(tmp_path / "a"), tmp_path / "half")
    return tmp_path / "half"


def foreign(tmp_path: Path) -> Path:
    write_safetensors(tmp_path / "a")
    (tmp_path / "a/model.gguf").write_bytes(b"GGUF" + bytes(100))
    return tmp_path / "a"


def nothing(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    return tmp_path / "a"


def text(tmp_path: Path) -> Path:
    (tmp_path / "a").write_text("hello")
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("make", "options", "kind", "words"),
    [
        (unfinished, {}, RequestError, "not complete"),
        (foreign, {}, UnsupportedError, "gguf"),
        (nothing, {}, UnsupportedError, "none of the 0 files"),
        (text, {}, RequestError, "no store"),
        (lambda root: root / "none", {}, RequestError, "no store"),
        (lambda root: store(root / "a"), {"mesh": "3x5"}, RequestError, "does not divide 6 tensors"),
        (lambda root: store(root / "a"), {"mesh": "batch=4"}, RequestError, "'batch' that the rules do not"),
        (lambda root: store(root / "a"), {"mesh": "2x4", "host": "0/3"}, RequestError, "do not divide"),
        (lambda root: store(root / "a"), {"mesh": "2x4", "host": "8/8"}, RequestError, "host index 8"),
        (lambda root: store(root / "a"), {"codec": "lzma"}, RequestError, "codec 'lzma'"),
        (lambda root: store(root / "a"), {"profile": "grok-1"}, RequestError, "--profile"),
        (lambda root: store(root / "a"), {"ignore": ["x"]}, RequestError, "--ignore"),
        (lambda root: [], {}, RequestError, "no source"),
        (lambda root: store(root / "a"), {"memory": 0}, RequestError, "memory 0 is too little"),
        (lambda root: store(root / "a"), {"memory": 1}, RequestError, "memory 1 is too little"),
    ],
)
def test_refusals_come_before_anything_is_written(
    make: Callable[[Path], Path | list[Path]],
    options: dict[str, object],
    kind: type[GdistError],
    words: str,
    tmp_path: Path,
) -> None:
    source = make(tmp_path)
    with pytest.raises(kind) as caught:
        gdist.reshard(source, tmp_path / "b", **options)  # type: ignore[arg-type]  # as many types as options
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert not (tmp_path / "b").exists()


def test_other_peoples_files_are_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/thesis.txt").write_text("mine")
    with pytest.raises(RequestError, match="is not empty"):
        gdist.reshard(source, tmp_path / "b")
    (tmp_path / "file").write_text("mine")
    with pytest.raises((RequestError, FilesystemError)):
        gdist.reshard(source, tmp_path / "file")
    assert (tmp_path / "b/thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_too_small_is_told_before_anything_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdist.run.preflight.DOCUMENT_BYTES", 2**60)
    with pytest.raises(SpaceError, match="the reshard needs"):
        gdist.reshard(source, tmp_path / "b")
    assert not list((tmp_path / "b").rglob("*.part"))
