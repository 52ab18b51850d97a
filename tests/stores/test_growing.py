"""Reading what a fetch has committed so far, and waiting for the rest, beside real fetches."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

import gdist
from gdist.core.box import Box
from gdist.core.journal import header_line
from gdist.core.magnet import format_magnet
from gdist.errors import (
    CorruptError,
    InterruptedRun,
    RequestError,
    ResumeError,
    StalledError,
    TransferError,
)
from gdist.events import ReshardPlanned, TensorReady
from gdist.run.fetch import fetch
from gdist.run.journal_file import Lock
from gdist.stores.growing import Growing
from gdist.stores.unfinished import held
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import Array, fetch_options, stopped_when
from gdist.testing.stores import write_store
from gdist.testing.swarm import Seeded, seed

pytestmark = pytest.mark.torrent

MESH = "2x4"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    root = tmp_path_factory.mktemp("from") / "llama"
    return root, write_safetensors(root, emb=64)


@pytest.fixture(scope="module")
def seeded(content: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(content[0], piece_length=1 << 14) as found:
        yield found


def stopped(seeded: Seeded, dest: Path, host: str = "0/1", tensors: int = 3) -> list[str]:
    """A fetch that was stopped after some tensors; their names."""
    magnet, options = format_magnet(seeded.magnet), fetch_options(MESH, host)
    recorder = stopped_when(
        lambda told: len(told.of(TensorReady)) >= tensors,
        lambda observe, stop: fetch(magnet, dest, options, observe=observe, stop=stop),
    )
    return [event.tensor for event in recorder.of(TensorReady)]


@pytest.fixture(scope="module")
def half(seeded: Seeded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store whose fetch was stopped, and the tensors that are complete."""
    dest = tmp_path_factory.mktemp("half") / "s"
    return dest, stopped(seeded, dest)


@pytest.fixture
def copy(half: tuple[Path, list[str]], tmp_path: Path) -> Path:
    shutil.copytree(half[0], tmp_path / "s")
    return tmp_path / "s"


class Open(Protocol):
    def __call__(self, root: Path, *, stall_seconds: float = 20.0, start_seconds: float = 0.3) -> Growing: ...


@pytest.fixture
def growing() -> Iterator[Open]:
    """Opens stores, and closes them in the end."""
    with ExitStack() as stack:

        def opened(root: Path, *, stall_seconds: float = 20.0, start_seconds: float = 0.3) -> Growing:
            found = Growing(
                root,
                verify=True,
                stall_seconds=stall_seconds,
                start_seconds=start_seconds,
                tick=lambda: None,
            )
            return stack.enter_context(closing(found))

        yield opened


def test_an_unfinished_reshard_is_called_one(growing: Open, tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.ones((64, 64), np.float32), "b": np.ones(8, np.float32)})
    stop = threading.Event()
    with pytest.raises(InterruptedRun):
        gdist.reshard(
            tmp_path / "s",
            tmp_path / "w4",
            mesh="1x4",
            stop=stop,
            observe=lambda event: stop.set() if isinstance(event, ReshardPlanned) else None,
        )
    with pytest.raises(TransferError, match=r"no reshard into .* ran for") as caught:
        found = growing(tmp_path / "w4")
        for name in found.store:
            found.wait(whole(found, name))
    assert "run the same gdist reshard again" in caught.value.hint


def whole(found: Growing, name: str) -> dict[str, list[Box]]:
    return {name: [Box.whole(found.store[name].shape)]}


def test_what_is_committed_is_read_and_the_rest_is_missing(
    growing: Open, half: tuple[Path, list[str]], content: tuple[Path, dict[str, Array]]
) -> None:
    root, ready = half
    found = growing(root)
    assert list(found.store) and set(found.store) == set(content[1]), "all tensors are known at once"
    assert not found.complete
    for name in ready:
        found.wait(whole(found, name))
        assert found.store[name].read().tobytes() == content[1][name].tobytes()
    rest = next(tensor.name for tensor in found.store.manifest.tensors if not tensor.shards)
    with pytest.raises(TransferError, match=r"no fetch into .* ran for .* is not complete") as caught:
        found.wait(whole(found, rest))
    assert rest in caught.value.message and "same gdist fetch again" in caught.value.hint
    with pytest.raises(CorruptError, match="in no manifest"):
        found.store[rest].read()  # and never zeros


def test_a_waiting_reader_goes_on_when_the_fetch_does(
    growing: Open, copy: Path, seeded: Seeded, content: tuple[Path, dict[str, Array]]
) -> None:
    found = growing(copy, start_seconds=20)
    again = threading.Thread(target=fetch, args=(format_magnet(seeded.magnet), copy, fetch_options(MESH)))
    again.start()
    for name in found.store:
        found.wait(whole(found, name))
        assert found.store[name].read().tobytes() == content[1][name].tobytes()
    again.join()
    found.wait({name: [Box.whole(found.store[name].shape)] for name in found.store})


def test_a_complete_store_is_read_too(
    growing: Open, seeded: Seeded, content: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH))
    found = growing(tmp_path / "s", start_seconds=0)
    assert found.complete and set(found.store) == set(content[1])
    found.wait({name: [Box.whole(array.shape)] for name, array in content[1].items()})


def test_a_compressed_store_grows_as_well(
    growing: Open, seeded: Seeded, content: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    magnet, options = format_magnet(seeded.magnet), fetch_options(MESH, codec="zstd")
    recorder = stopped_when(
        lambda told: told.of(TensorReady),
        lambda observe, stop: fetch(magnet, tmp_path / "s", options, observe=observe, stop=stop),
    )
    found = growing(tmp_path / "s")
    name = recorder.of(TensorReady)[0].tensor
    found.wait(whole(found, name))
    assert found.store[name].read().tobytes() == content[1][name].tobytes()
    with pytest.raises(TransferError):
        found.wait({name: [Box.whole(found.store[name].shape)] for name in found.store})


# --- several hosts ----------------------------------------------------------------------------------------


def test_hosts_that_share_a_directory_are_followed_together(
    growing: Open, seeded: Seeded, content: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    dest, magnet = tmp_path / "s", format_magnet(seeded.magnet)
    fetch(magnet, dest, fetch_options(MESH, "0/2"))
    found = growing(dest)
    assert not found.complete
    split = next(t for t in found.store.manifest.tensors if len(t.shards) < t.grid.shards[0])
    with pytest.raises(TransferError, match="no fetch of host 1 into"):
        found.wait(whole(found, split.name))
    stopped(seeded, dest, "1/2")
    fetch(magnet, dest, fetch_options(MESH, "1/2"))
    for name in found.store:
        found.wait(whole(found, name))
        assert found.store[name].read().tobytes() == content[1][name].tobytes()
    assert found.complete


def test_a_host_s_own_directory_is_enough_for_its_shards(
    growing: Open, seeded: Seeded, tmp_path: Path
) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH, "1/2"))
    found = growing(tmp_path / "s")
    boxes = {
        tensor.name: [tensor.grid.box_of(index) for index in tensor.shards]
        for tensor in found.store.manifest.tensors
    }
    found.wait(boxes)
    found.store.check(boxes)


def test_parts_of_different_jobs_are_refused(growing: Open, seeded: Seeded, tmp_path: Path) -> None:
    magnet = format_magnet(seeded.magnet)
    fetch(magnet, tmp_path / "s", fetch_options(MESH, "0/2"))
    for mesh, host, said in (("4x2", "1/2", "another job"), (MESH, "1/4", "jobs with 2 and 4 hosts")):
        fetch(magnet, tmp_path / "other", fetch_options(mesh, host))
        (other,) = (tmp_path / "other").glob("gdist.host-*")
        shutil.copy(other, tmp_path / "s")
        with pytest.raises(RequestError, match=said):
            growing(tmp_path / "s")
        (tmp_path / "s" / other.name).unlink()
        shutil.rmtree(tmp_path / "other")


# --- what cannot be followed ------------------------------------------------------------------------------


def test_where_no_fetch_begins_the_wait_ends(growing: Open, tmp_path: Path) -> None:
    for root in (tmp_path / "absent", tmp_path):
        with pytest.raises(TransferError, match=r"no fetch into .* no store is there"):
            growing(root)


def test_somebody_else_s_directory_is_refused_at_once(growing: Open, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    for root in (tmp_path, tmp_path / "holiday.jpg"):
        with pytest.raises(RequestError, match="is not a store"):
            growing(root, start_seconds=1000)


def test_a_fetch_that_commits_nothing_is_not_waited_for_for_ever(
    growing: Open, copy: Path, tmp_path: Path, half: tuple[Path, list[str]]
) -> None:
    (tmp_path / "new/.gdist").mkdir(parents=True)
    for root in (tmp_path / "new", copy):
        lock = Lock(root / ".gdist/lock", "a test")
        with pytest.raises(StalledError, match="committed nothing for"):
            found = growing(root, stall_seconds=0.3, start_seconds=1000)
            found.wait({name: [Box.whole(found.store[name].shape)] for name in found.store})
        lock.release()


def test_looking_whether_a_fetch_lives_keeps_none_out(tmp_path: Path) -> None:
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            held(tmp_path / "lock")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(200):
            lock = Lock(tmp_path / "lock", "a test")
            assert held(tmp_path / "lock")
            lock.release()
    finally:
        done.set()
        for looker in lookers:
            looker.join()
    assert not held(tmp_path / "lock") and not held(tmp_path / "absent")


def test_another_job_in_the_same_place_is_noticed(
    growing: Open, copy: Path, half: tuple[Path, list[str]]
) -> None:
    found = growing(copy)
    (copy / ".gdist/journal.jsonl").unlink()
    (copy / ".gdist/journal.jsonl").write_text(header_line("discard none 1 " + "0" * 32) + "\n")
    with pytest.raises(ResumeError, match="another plan"):
        found.wait({name: [Box.whole(found.store[name].shape)] for name in found.store})


# --- journals and files -----------------------------------------------------------------------------------


def test_a_torn_line_says_nothing_until_it_is_whole(
    growing: Open, copy: Path, half: tuple[Path, list[str]]
) -> None:
    journal = copy / ".gdist/journal.jsonl"
    data = journal.read_bytes()
    lines = data.splitlines(keepends=True)
    name = half[1][0]
    at = next(n for n, line in enumerate(lines) if name.encode() in line)
    journal.write_bytes(b"".join(lines[:at]) + lines[at][:-9])
    found = growing(copy)
    with pytest.raises(TransferError):
        found.wait(whole(found, name))
    with journal.open("r+b") as file:  # as a fetch that begins again does
        file.truncate(sum(map(len, lines[:at])))
        file.seek(0, 2)
        file.write(b"".join(lines[at:]))
    found.wait(whole(found, name))


def test_a_journal_that_is_written_anew_is_read_anew(
    growing: Open, copy: Path, half: tuple[Path, list[str]]
) -> None:
    found = growing(copy)
    journal = copy / ".gdist/journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    fresh = journal.with_name("fresh")
    fresh.write_bytes(b"".join([lines[0], *reversed(lines[1:])]))
    fresh.replace(journal)
    for name in half[1]:
        found.wait(whole(found, name))


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_shard_that_was_lost_is_waited_for(
    growing: Open,
    damage: str,
    copy: Path,
    half: tuple[Path, list[str]],
    seeded: Seeded,
    content: tuple[Path, dict[str, Array]],
) -> None:
    name = half[1][0]
    shard = next(path for path in (copy / name / "c").rglob("*") if path.is_file())
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    found = growing(copy)
    with pytest.raises(TransferError):
        found.wait(whole(found, name))
    fetch(format_magnet(seeded.magnet), copy, fetch_options(MESH))
    found.wait(whole(found, name))
    assert found.store[name].read().tobytes() == content[1][name].tobytes()


def test_a_shard_that_was_changed_is_found_by_its_digest(
    growing: Open, copy: Path, half: tuple[Path, list[str]]
) -> None:
    name = half[1][0]
    shard = next(path for path in (copy / name / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    found = growing(copy)
    found.wait(whole(found, name))
    with pytest.raises(CorruptError, match="differs from its digest"):
        found.store[name].read()


def test_a_damaged_plan_or_journal_is_refused(
    growing: Open, copy: Path, half: tuple[Path, list[str]]
) -> None:
    planned, journal = copy / ".gdist/planned.json", copy / ".gdist/journal.jsonl"
    good = planned.read_bytes()
    planned.write_bytes(good.replace(b'"float32"', b'"float16"', 1))
    with pytest.raises(CorruptError, match=r"planned\.json was changed"):
        growing(copy)
    planned.write_bytes(good)
    lines = journal.read_bytes()
    for line in (
        b'{"shard": ["absent", [0]], "digests": []}\n',
        b'{"shard": ["model.norm.weight", [7]], "digests": []}\n',
        b'{"shard": ["model.norm.weight", [0]], "digests": []}\n',
    ):
        journal.write_bytes(lines + line)
        with pytest.raises(CorruptError, match="lists shard"):
            growing(copy)
