"""A fetch that was stopped, killed or robbed goes on where it was, and ends with the same store."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gdist.core.journal import parse_journal
from gdist.core.magnet import format_magnet
from gdist.errors import InterruptedRun, ResumeError
from gdist.events import Event, PieceVerified, Planned, Progress, ShardCommitted, Stage, StageStarted
from gdist.run import coordinator
from gdist.run.fetch import fetch
from gdist.run.verify import verify
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import Array, Recorder, fetch_options, stopped_when, tree_of
from gdist.testing.swarm import LOCALHOST, Seeded, Slow, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14
MESH = "2x4"

# A fetch of its own process: source, destination, payload choice, seconds between checkpoints: least, most.
CHILD = """
import sys
from gdist.events import Progress
from gdist.run import coordinator
from gdist.run.fetch import fetch
from gdist.testing.fetches import fetch_options
source, dest, payload, least, most = sys.argv[1:]
coordinator.LEAST_SECONDS, coordinator.CHECKPOINT_SECONDS = float(least), float(most)
coordinator.PROGRESS_SECONDS = 0.05
def tell(event):
    if isinstance(event, Progress):
        print(event.downloaded, flush=True)
print("begun", flush=True)
fetch(source, dest, fetch_options("2x4", payload=payload), observe=tell)
print("complete", flush=True)
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """Two files of 0.5 MB each, so that their headers are few of the 70 pieces, and one without tensors."""
    root = tmp_path_factory.mktemp("from") / "llama"
    expected = write_safetensors(root, emb=128)
    (root / "README.md").write_bytes(b"read me" * 9000)
    return root, expected


@pytest.fixture(scope="module")
def seeded(content: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(content[0], piece_length=PIECE, process=True) as found:
        yield found


@pytest.fixture(scope="module")
def whole(seeded: Seeded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the store that an undisturbed fetch writes."""
    root = tmp_path_factory.mktemp("whole") / "s"
    fetch(format_magnet(seeded.magnet), root, fetch_options(MESH))
    return tree_of(root)


@pytest.fixture
def slow(seeded: Seeded) -> Iterator[str]:
    """A magnet whose only peer needs three seconds for the payload."""
    with Slow(seeded.port, 400_000) as way:
        yield format_magnet(replace(seeded.magnet, peers=((LOCALHOST, way.port),)))


def without_payload(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree_of(root).items() if not name.startswith("payload/")}


def stop_after(count: int, kind: type[Event] = Event) -> tuple[Recorder, threading.Event]:
    """An observer that asks a run to stop at the `count`-th event of a kind."""
    stop = threading.Event()
    recorder = Recorder()

    def check(event: Event) -> None:
        if len(recorder.of(kind)) >= count:
            stop.set()

    recorder.then = check
    return recorder, stop


def some_shards(count: int, magnet: str, dest: Path) -> None:
    """A fetch that was stopped once so many shards were committed."""
    stopped_when(
        lambda told: len(told.of(ShardCommitted)) >= count,
        lambda observe, stop: fetch(magnet, dest, fetch_options(MESH), observe=observe, stop=stop),
    )


def stop_at_first_part(parts: Path, stop: threading.Event, event: Event) -> None:
    if isinstance(event, Progress) and any(parts.iterdir()):
        stop.set()


def child(
    source: str, dest: Path, payload: str, least: float, most: float | None = None
) -> subprocess.Popen[str]:
    """A fetch in a process of its own; it says "begun", then bytes downloaded, then "complete"."""
    command = [sys.executable, "-c", CHILD, source, str(dest), payload, str(least), str(most or least)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# --- killed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["discard", "keep"])
def test_a_run_killed_again_and_again_ends_with_the_same_store(
    payload: str, content: tuple[Path, dict[str, Array]], slow: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(payload)
    size = sum(path.stat().st_size for path in content[0].rglob("*") if path.is_file())
    dest = tmp_path / "s"
    got, runs, complete = 0, 0, False
    while not complete:
        with child(slow, dest, payload, 0.1) as process:
            assert process.stdout and process.stdout.readline() == "begun\n"
            killer = threading.Timer(rng.uniform(0.1, 1.0), process.kill)
            if runs < 6:
                killer.start()
            lines = process.stdout.readlines()
            killer.cancel()
        runs += 1
        got += max((int(line) for line in lines if line.strip().isdigit()), default=0)
        complete = lines[-1:] == ["complete\n"]
        assert complete or process.returncode == -signal.SIGKILL, lines
        assert complete == (dest / "gdist.json").exists(), "an unfinished store does not look complete"
    assert runs > 3, "it was killed a few times"
    assert without_payload(dest) == whole
    if payload == "keep":
        assert tree_of(dest / "payload/llama") == tree_of(content[0])
    # Each kill costs what came since the last checkpoint; and without a payload the pieces of the headers,
    # at both ends of each of the four files.
    costs = (runs - 1) * (80_000 + (8 * PIECE if payload == "discard" else 0))
    assert got <= size * 1.1 + costs, f"{got} bytes in {runs} runs for a payload of {size}"


def test_a_run_killed_before_any_checkpoint_starts_again(
    slow: str, seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with child(slow, tmp_path / "s", "discard", 1000) as process:
        assert process.stdout
        while not process.stdout.readline().strip().isdigit():
            pass
        time.sleep(0.5)
        process.kill()
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH))
    assert tree_of(tmp_path / "s") == whole


def test_a_disk_that_syncs_soon_is_synced_often(
    slow: str, seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    journal = tmp_path / "s/.gdist/journal.jsonl"
    with child(slow, tmp_path / "s", "discard", 0.1, 1000) as process:
        end = time.monotonic() + 60
        while not (journal.exists() and b'"pieces"' in journal.read_bytes()) and time.monotonic() < end:
            time.sleep(0.02)
        process.kill()
    progress, _ = parse_journal(journal.read_bytes())
    assert progress and progress.pieces, "though the next checkpoint may be far off on a slow disk"
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH))
    assert tree_of(tmp_path / "s") == whole


# --- stopped ----------------------------------------------------------------------------------------------


def test_resume_after_each_event_gives_the_same_store(
    seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    magnet = format_magnet(seeded.magnet)
    counted = Recorder()
    fetch(magnet, tmp_path / "counted", fetch_options(MESH), observe=counted)
    events = len(counted.events)
    for count in sorted({1, 2, 3, 4, *range(5, events, events // 7)}):
        dest = tmp_path / str(count)
        recorder, stop = stop_after(count)
        try:
            fetch(magnet, dest, fetch_options(MESH), observe=recorder, stop=stop)
        except InterruptedRun:
            assert not (dest / "gdist.json").exists()
            fetch(magnet, dest, fetch_options(MESH))
        assert tree_of(dest) == whole, f"stopped after event {count} of {events}"


def test_many_stops_fetch_little_twice(
    content: tuple[Path, dict[str, Array]], slow: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    resumed: list[int] = []
    fetched = 0
    while not (tmp_path / "s/gdist.json").exists():
        assert len(resumed) < 30, resumed
        recorder, stop = stop_after(18, PieceVerified)
        with contextlib.suppress(InterruptedRun):
            fetch(slow, tmp_path / "s", fetch_options(MESH), observe=recorder, stop=stop)
        resumed += [event.bytes_resumed for event in recorder.of(Planned)]
        fetched += sum(event.nbytes for event in recorder.of(PieceVerified))
    assert tree_of(tmp_path / "s") == whole
    assert len(resumed) > 3 and sorted(resumed) == resumed, f"no run falls back: {resumed}"
    size = sum(path.stat().st_size for path in content[0].rglob("*") if path.is_file())
    assert fetched <= size + len(resumed) * 8 * PIECE, "only the headers' pieces come again"


def test_a_torn_last_line_is_dropped(seeded: Seeded, whole: dict[str, bytes], tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    some_shards(9, magnet, dest)
    journal = dest / ".gdist/journal.jsonl"
    data = journal.read_bytes()
    for cut in (3, len(data) // 2, len(data) - 5):
        shutil.copytree(dest, tmp_path / str(cut))
        (tmp_path / str(cut) / ".gdist/journal.jsonl").write_bytes(data[:cut])
        fetch(magnet, tmp_path / str(cut), fetch_options(MESH))
        assert tree_of(tmp_path / str(cut)) == whole


def test_a_damaged_journal_is_refused(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    some_shards(3, magnet, dest)
    journal = dest / ".gdist/journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b'{"nonsense": 1}\n' + b"".join(lines[1:]))
    with pytest.raises(ResumeError, match="line 2 of the journal"):
        fetch(magnet, dest, fetch_options(MESH))


@pytest.mark.parametrize("payload", ["discard", "keep"])
def test_a_damaged_torrent_of_the_run_before_is_learnt_anew(
    payload: str, seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    magnet = format_magnet(seeded.magnet)
    half_way(magnet, tmp_path / "s", payload)
    data = (tmp_path / "s/.gdist/source.torrent").read_bytes()
    for number, damaged in enumerate((b"", data[:-100], bytes(len(data)), b"de", b"d4:infodee")):
        dest = tmp_path / str(number)
        shutil.copytree(tmp_path / "s", dest)
        (dest / ".gdist/source.torrent").write_bytes(damaged)
        fetch(magnet, dest, fetch_options(MESH, payload=payload))
        assert without_payload(dest) == whole


# --- robbed -----------------------------------------------------------------------------------------------


def half_way(magnet: str, dest: Path, payload: str = "discard") -> None:
    """A fetch of which some shards are whole, some half written, the rest not begun."""
    recorder, stop = stop_after(20, PieceVerified)
    with pytest.raises(InterruptedRun):
        fetch(magnet, dest, fetch_options(MESH, payload=payload), observe=recorder, stop=stop)
    progress, _ = parse_journal((dest / ".gdist/journal.jsonl").read_bytes())
    assert progress and progress.pieces, "there is something to resume"


@pytest.mark.parametrize("payload", ["discard", "keep"])
def test_parts_that_vanish_are_written_again(
    payload: str, slow: str, seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    half_way(slow, dest, payload)
    parts = sorted((dest / ".gdist/parts").iterdir())
    assert parts
    for part in parts[::2]:
        part.unlink()
    fetch(magnet, dest, fetch_options(MESH, payload=payload))
    assert without_payload(dest) == whole


@pytest.mark.parametrize("payload", ["discard", "keep"])
def test_parts_that_vanish_before_two_stops_are_written_again(
    payload: str,
    slow: str,
    seeded: Seeded,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second run makes the parts anew; the first run's pieces are not in them."""
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    half_way(slow, dest, payload)
    for part in (dest / ".gdist/parts").iterdir():
        part.unlink()
    monkeypatch.setattr(coordinator, "PROGRESS_SECONDS", 0.0)
    for _ in range(3):
        recorder, stop = Recorder(), threading.Event()
        recorder.then = partial(stop_at_first_part, dest / ".gdist/parts", stop)
        with pytest.raises(InterruptedRun):
            fetch(slow, dest, fetch_options(MESH, payload=payload), observe=recorder, stop=stop)
    fetch(magnet, dest, fetch_options(MESH, payload=payload))
    assert without_payload(dest) == whole


def test_shards_that_vanish_are_written_again(
    seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    some_shards(12, magnet, dest)
    shards = [path for path in dest.rglob("c/*") if path.is_file() and ".gdist" not in path.parts]
    for number, shard in enumerate(sorted(shards)):
        if number % 2:
            shard.unlink()
        else:
            os.truncate(shard, shard.stat().st_size - 1)
    fetch(magnet, dest, fetch_options(MESH))
    assert tree_of(dest) == whole


@pytest.mark.parametrize("left", [0, 3, 30, 1000])
def test_a_compressed_shard_of_a_complete_store_that_is_cut_short_is_written_again(
    left: int, seeded: Seeded, tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    options = fetch_options(MESH, codec="zstd")
    fetch(magnet, dest, options)
    shards = sorted(path for path in dest.rglob("c/**/*") if path.is_file())
    sizes = [shard.stat().st_size for shard in shards]
    assert max(sizes) > 1000
    assert fetch(magnet, dest, options).already
    cut = shards[sizes.index(max(sizes))]
    times = {shard: shard.stat().st_mtime_ns for shard in shards}
    os.truncate(cut, left)
    assert not fetch(magnet, dest, options).already
    assert [shard for shard in shards if shard.stat().st_mtime_ns != times[shard]] == [cut]
    assert [shard.stat().st_size for shard in shards] == sizes and verify(dest).ok


def test_a_kept_payload_is_not_fetched_again(
    content: tuple[Path, dict[str, Array]], slow: str, seeded: Seeded, tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    half_way(slow, dest, "keep")
    progress, _ = parse_journal((dest / ".gdist/journal.jsonl").read_bytes())
    assert progress
    recorder = Recorder()
    fetch(magnet, dest, fetch_options(MESH, payload="keep"), observe=recorder)
    fetched = {event.piece for event in recorder.of(PieceVerified)}
    assert not fetched & progress.pieces
    assert tree_of(dest / "payload/llama") == tree_of(content[0])


# --- another job ------------------------------------------------------------------------------------------


def test_an_unfinished_fetch_of_another_torrent_is_refused(slow: str, seeded: Seeded, tmp_path: Path) -> None:
    half_way(slow, tmp_path / "s")
    write_safetensors(tmp_path / "other", emb=16, vocab=32)
    before = tree_of(tmp_path / "s")
    with (
        seed(tmp_path / "other", piece_length=PIECE) as other,
        pytest.raises(ResumeError, match=seeded.magnet.info_hash.hex),
    ):
        fetch(format_magnet(other.magnet), tmp_path / "s", fetch_options(MESH))
    assert tree_of(tmp_path / "s") == before
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH))


@pytest.mark.parametrize("change", ["mesh", "payload", "codec"])
def test_an_unfinished_fetch_with_other_options_is_refused(
    change: str, slow: str, seeded: Seeded, tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    half_way(slow, dest)
    others = {
        "mesh": fetch_options("4x2"),
        "payload": fetch_options(MESH, payload="keep"),
        "codec": fetch_options(MESH, codec="zstd"),
    }
    with pytest.raises(ResumeError, match="unfinished fetch") as caught:
        fetch(magnet, dest, others[change])
    assert "same" in caught.value.hint
    fetch(magnet, dest, fetch_options(MESH))


# --- two at once ------------------------------------------------------------------------------------------


def test_a_second_run_on_the_same_destination_is_refused_at_once(
    slow: str, seeded: Seeded, tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    with child(slow, dest, "discard", 10) as process:
        assert process.stdout
        while not process.stdout.readline().strip().isdigit():
            pass
        with pytest.raises(ResumeError, match="another gdist"):
            fetch(magnet, dest, fetch_options(MESH))
        process.kill()
    assert (dest / ".gdist/lock").exists(), "the killed run's lock file is still there"
    assert not fetch(magnet, dest, fetch_options(MESH)).already


def test_a_stop_while_nobody_answers_ends_soon(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.4, stop.set).start()
    with pytest.raises(InterruptedRun):
        fetch("ab" * 20, tmp_path / "s", fetch_options(), stop=stop)


def test_progress_tells_where_a_run_stands(
    seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "PROGRESS_SECONDS", 0.0)
    recorder = Recorder()
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH), observe=recorder)
    told = recorder.of(Progress)
    assert [event.bytes_placed for event in told] == sorted(event.bytes_placed for event in told)
    assert told[-1].bytes_placed == told[-1].bytes_wanted
    assert all(0 <= event.tensors_ready <= event.tensors for event in told)
    assert recorder.of(StageStarted)[-1].stage in (Stage.FINISH, Stage.DONE)
