"""A fetch that was stopped, killed or robbed goes on where it was, and ends with the same store."""

from __future__ import annotations

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
from pathlib import Path

import pytest

from gdist.core.journal import parse_journal
from gdist.core.magnet import format_magnet
from gdist.errors import InterruptedRun, ResumeError
from gdist.events import Event, Planned, PieceVerified, Progress, ShardCommitted, Stage, StageStarted
from gdist.run import coordinator
from gdist.run.fetch import fetch
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import LOOPBACK, Seeded, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14
MESH = "2x4"

# A fetch of its own process: source, destination, payload choice, bytes a second, seconds between checkpoints.
CHILD = """
import sys, time
from dataclasses import replace
from gdist.events import Progress
from gdist.run import coordinator
from gdist.run.fetch import fetch
from gdist.testing.fetches import fetch_options
from gdist.testing.swarm import LOOPBACK
source, dest, payload, rate, seconds = sys.argv[1:]
coordinator.CHECKPOINT_SECONDS = float(seconds)
coordinator.PROGRESS_SECONDS = 0.05
def tell(event):
    if isinstance(event, Progress):
        print(event.downloaded, flush=True)
torrent = replace(LOOPBACK, download_rate=int(rate))
fetch(source, dest, fetch_options("2x4", payload=payload, torrent=torrent), observe=tell)
print("complete", flush=True)
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """A Grok of 1.1 MB and a file without tensors."""
    root = tmp_path_factory.mktemp("from") / "grok"
    expected = write_grok1(root, layers=2, ffn=256)
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


def downloaded(lines: list[str]) -> int:
    return max((int(line) for line in lines if line.strip().isdigit()), default=0)


# --- killed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["discard", "keep"])
def test_a_run_killed_again_and_again_ends_with_the_same_store(
    payload: str, content: tuple[Path, dict[str, Array]], seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(payload)
    size = sum(path.stat().st_size for path in content[0].rglob("*") if path.is_file())
    command = [sys.executable, "-c", CHILD, format_magnet(seeded.magnet), str(tmp_path / "s"), payload]
    got, runs = 0, 0
    while True:
        rate = 400_000 if runs < 6 else 0
        with subprocess.Popen([*command, str(rate), "0.1"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            lines = [process.stdout.readline()]  # the first progress: from here on it can be killed
            killer = threading.Timer(rng.uniform(0.05, 1.0), process.kill)
            if runs < 6:
                killer.start()
            lines += process.stdout.readlines()
            killer.cancel()
        runs += 1
        got += downloaded(lines)
        if lines[-1].strip() == "complete":
            break
        assert process.returncode == -signal.SIGKILL, lines
        assert not (tmp_path / "s/gdist.json").exists(), "an unfinished store does not look complete"
    assert runs > 3, "it was killed a few times"
    assert without_payload(tmp_path / "s") == whole
    if payload == "keep":
        assert tree_of(tmp_path / "s/payload/grok") == tree_of(content[0])
    # Header pieces are fetched anew by each run; here they are a large share of a tiny torrent.
    headers = 2 * PIECE * len(list(content[0].rglob("*")))
    allowed = size * 1.3 + (runs - 1) * headers if payload == "discard" else size * 1.5
    assert got <= allowed, f"{got} bytes in {runs} runs for a payload of {size}"


def test_a_run_killed_before_any_checkpoint_starts_again(
    seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CHILD, format_magnet(seeded.magnet), str(tmp_path / "s"), "discard"]
    with subprocess.Popen([*command, "300000", "1000"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for _ in range(8):
            process.stdout.readline()
        process.kill()
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH))
    assert tree_of(tmp_path / "s") == whole


# --- stopped ----------------------------------------------------------------------------------------------


def test_resume_after_each_event_gives_the_same_store(
    seeded: Seeded, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "PROGRESS_SECONDS", 0.0)
    magnet = format_magnet(seeded.magnet)
    counted = Recorder()
    fetch(magnet, tmp_path / "counted", fetch_options(MESH), observe=counted)
    events = len(counted.events)
    for count in sorted({1, 2, 3, 4, *range(5, events, events // 8)}):
        dest = tmp_path / str(count)
        recorder, stop = stop_after(count)
        try:
            fetch(magnet, dest, fetch_options(MESH), observe=recorder, stop=stop)
        except InterruptedRun:
            assert not (dest / "gdist.json").exists()
            fetch(magnet, dest, fetch_options(MESH))
        assert tree_of(dest) == whole, f"stopped after event {count} of {events}"


def test_many_stops_fetch_little_twice(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    magnet = format_magnet(seeded.magnet)
    committed: list[tuple[str, tuple[int, ...]]] = []
    resumed = [0]
    for _ in range(100):
        recorder, stop = stop_after(12, ShardCommitted)
        try:
            fetch(magnet, tmp_path / "s", fetch_options(MESH), observe=recorder, stop=stop)
            break
        except InterruptedRun:
            resumed += [event.bytes_resumed for event in recorder.of(Planned)]
            committed += [(event.tensor, event.index) for event in recorder.of(ShardCommitted)]
    assert tree_of(tmp_path / "s") == whole
    assert resumed == sorted(resumed) and len(set(resumed)) > 2, f"every run goes further: {resumed}"


def test_a_torn_last_line_is_dropped(seeded: Seeded, whole: dict[str, bytes], tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    recorder, stop = stop_after(9, ShardCommitted)
    with pytest.raises(InterruptedRun):
        fetch(magnet, dest, fetch_options(MESH), observe=recorder, stop=stop)
    journal = dest / ".gdist/journal.jsonl"
    data = journal.read_bytes()
    for cut in (3, len(data) // 2, len(data) - 5):
        shutil.copytree(dest, tmp_path / str(cut))
        (tmp_path / str(cut) / ".gdist/journal.jsonl").write_bytes(data[:cut])
        fetch(magnet, tmp_path / str(cut), fetch_options(MESH))
        assert tree_of(tmp_path / str(cut)) == whole


def test_a_damaged_journal_is_refused(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    recorder, stop = stop_after(3, ShardCommitted)
    with pytest.raises(InterruptedRun):
        fetch(magnet, dest, fetch_options(MESH), observe=recorder, stop=stop)
    journal = dest / ".gdist/journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b'{"nonsense": 1}\n' + b"".join(lines[1:]))
    with pytest.raises(ResumeError, match="line 2 of the journal"):
        fetch(magnet, dest, fetch_options(MESH))


# --- robbed -----------------------------------------------------------------------------------------------


def half_way(magnet: str, dest: Path, payload: str = "discard") -> None:
    """A fetch of which some shards are whole, some half written, the rest not begun."""
    recorder, stop = stop_after(20, PieceVerified)
    slow = replace(LOOPBACK, download_rate=400_000)
    with pytest.raises(InterruptedRun):
        fetch(magnet, dest, fetch_options(MESH, payload=payload, torrent=slow), observe=recorder, stop=stop)
    progress, _ = parse_journal((dest / ".gdist/journal.jsonl").read_bytes())
    assert progress and progress.pieces, "there is something to resume"


@pytest.mark.parametrize("payload", ["discard", "keep"])
def test_parts_that_vanish_are_written_again(
    payload: str, seeded: Seeded, whole: dict[str, bytes], tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    half_way(magnet, dest, payload)
    parts = sorted((dest / ".gdist/parts").iterdir())
    assert parts
    for part in parts[::2]:
        part.unlink()
    fetch(magnet, dest, fetch_options(MESH, payload=payload))
    assert without_payload(dest) == whole


@pytest.mark.parametrize("payload", ["discard", "keep"])
def test_parts_that_vanish_before_two_stops_are_written_again(
    payload: str, seeded: Seeded, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run makes the parts anew and fills them only in part; the first run's pieces are not in them."""
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    half_way(magnet, dest, payload)
    for part in (dest / ".gdist/parts").iterdir():
        part.unlink()
    slow = replace(LOOPBACK, download_rate=400_000)
    for _ in range(3):
        stop = threading.Event()
        recorder = Recorder()
        parts = dest / ".gdist/parts"
        recorder.then = lambda event: stop.set() if any(parts.iterdir()) and recorder.of(Planned) else None
        monkeypatch.setattr(coordinator, "PROGRESS_SECONDS", 0.0)
        with pytest.raises(InterruptedRun):
            fetch(magnet, dest, fetch_options(MESH, payload=payload, torrent=slow), observe=recorder, stop=stop)
    fetch(magnet, dest, fetch_options(MESH, payload=payload))
    assert without_payload(dest) == whole


def test_shards_that_vanish_are_written_again(seeded: Seeded, whole: dict[str, bytes], tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    recorder, stop = stop_after(12, ShardCommitted)
    with pytest.raises(InterruptedRun):
        fetch(magnet, dest, fetch_options(MESH), observe=recorder, stop=stop)
    shards = [path for path in dest.rglob("c/*") if path.is_file() and ".gdist" not in path.parts]
    for number, shard in enumerate(sorted(shards)):
        if number % 2:
            shard.unlink()
        else:
            os.truncate(shard, shard.stat().st_size - 1)
    fetch(magnet, dest, fetch_options(MESH))
    assert tree_of(dest) == whole


def test_a_kept_payload_is_not_fetched_again(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    half_way(magnet, dest, "keep")
    progress, _ = parse_journal((dest / ".gdist/journal.jsonl").read_bytes())
    assert progress
    recorder = Recorder()
    fetch(magnet, dest, fetch_options(MESH, payload="keep"), observe=recorder)
    fetched = {event.piece for event in recorder.of(PieceVerified)}
    assert not fetched & progress.pieces
    assert tree_of(dest / "payload/grok") == tree_of(content[0])


# --- another job ------------------------------------------------------------------------------------------


def test_an_unfinished_fetch_of_another_torrent_is_refused(seeded: Seeded, tmp_path: Path) -> None:
    half_way(format_magnet(seeded.magnet), tmp_path / "s")
    write_safetensors(tmp_path / "other", emb=16, vocab=32)
    before = tree_of(tmp_path / "s")
    with seed(tmp_path / "other", piece_length=PIECE) as other:
        with pytest.raises(ResumeError, match=seeded.magnet.info_hash.hex):
            fetch(format_magnet(other.magnet), tmp_path / "s", fetch_options(MESH))
    assert tree_of(tmp_path / "s") == before
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH))


@pytest.mark.parametrize("change", ["mesh", "payload", "codec", "profile"])
def test_an_unfinished_fetch_with_other_options_is_refused(change: str, seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    half_way(magnet, dest)
    others = {
        "mesh": fetch_options("4x2"),
        "payload": fetch_options(MESH, payload="keep"),
        "codec": fetch_options(MESH, codec="zstd"),
        "profile": fetch_options(MESH, ignore=("*README*",), host="0/1"),
    }
    if change == "profile":
        pytest.skip("files left out change the assets alone, which every run gathers anew")
    with pytest.raises(ResumeError, match="another plan") as caught:
        fetch(magnet, dest, others[change])
    assert "same" in caught.value.hint
    fetch(magnet, dest, fetch_options(MESH))


# --- two at once ------------------------------------------------------------------------------------------


def test_a_second_run_on_the_same_destination_is_refused_at_once(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    command = [sys.executable, "-c", CHILD, magnet, str(dest), "discard", "200000", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        started = time.monotonic()
        with pytest.raises(ResumeError, match="another gdist"):
            fetch(magnet, dest, fetch_options(MESH))
        assert time.monotonic() - started < 0.5
        process.kill()
    assert (dest / ".gdist/lock").exists(), "the killed run's lock file is still there"
    assert not fetch(magnet, dest, fetch_options(MESH)).already


def test_a_stop_while_nobody_answers_ends_soon(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.4, stop.set).start()
    started = time.monotonic()
    with pytest.raises(InterruptedRun):
        fetch("ab" * 20, tmp_path / "s", fetch_options(), stop=stop)
    assert time.monotonic() - started < 4


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
