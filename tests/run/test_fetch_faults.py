"""Faults between the parts of a fetch: what is not needed, what is lost, who was there a moment ago."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gdist.core.journal import parse_journal
from gdist.core.magnet import format_magnet
from gdist.errors import FilesystemError, InterruptedRun, ResumeError
from gdist.events import Event, PieceVerified, Stage, StageStarted
from gdist.run import coordinator
from gdist.run import fetch as fetch_module
from gdist.run.destination import finished
from gdist.run.fetch import fetch
from gdist.run.journal_file import Lock
from gdist.run.verify import verify
from gdist.sources.torrent import source
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import Recorder, fetch_options, tree_of
from gdist.testing.swarm import Seeded, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("from") / "llama"
    write_safetensors(root, emb=128, shards=8)
    return root


@pytest.fixture(scope="module")
def seeded(content: Path) -> Iterator[Seeded]:
    with seed(content, piece_length=PIECE, process=True) as found:
        yield found


@pytest.mark.parametrize("host", ["0/8", "7/8"])
def test_headers_of_pieces_nobody_wants_do_not_throttle_the_rest(
    host: str, seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends of eight files are fetched for their headers; most hold nothing of one host in eight."""
    monkeypatch.setattr(source, "TRICKLE_BYTES", 1)
    monkeypatch.setattr(coordinator, "in_flight_limit", lambda plan: 2 * PIECE)
    sources: list[source.TorrentSource] = []
    right = source.TorrentSource.limit_backlog

    def limit(self: source.TorrentSource, nbytes: int) -> None:
        sources.append(self)
        right(self, nbytes)

    monkeypatch.setattr(source.TorrentSource, "limit_backlog", limit)
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("8", host))
    (used,) = sources
    assert used._released == used._open.swarm.finished, "every piece was given back"


def test_a_sync_that_failed_once_is_never_believed(
    seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a failed write once; a second fdatasync says all is well, and bytes are lost."""
    monkeypatch.setattr(coordinator, "CHECKPOINT_SECONDS", 0.0)
    right, calls = os.fdatasync, []

    def fail_once(descriptor: int) -> None:
        if ".part" in os.readlink(f"/proc/self/fd/{descriptor}"):
            calls.append(descriptor)
            if len(calls) == 1:
                raise OSError(errno.EIO, "Input/output error")
        right(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with pytest.raises(FilesystemError, match="Input/output error syncing"):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    progress, _ = parse_journal((tmp_path / "s/.gdist/journal.jsonl").read_bytes())
    assert progress and not progress.pieces
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert verify(tmp_path / "s").ok


def test_kept_files_that_vanish_or_shrink_between_runs_are_fetched_again(
    content: Path, seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "CHECKPOINT_SECONDS", 0.0)
    dest, stop = tmp_path / "s", threading.Event()
    recorder = Recorder()
    recorder.then = lambda event: stop.set() if len(recorder.of(PieceVerified)) > 60 else None
    magnet, options = format_magnet(seeded.magnet), fetch_options(payload="keep")
    with pytest.raises(InterruptedRun):
        fetch(magnet, dest, options, observe=recorder, stop=stop)
    there = sorted((dest / "payload/llama").iterdir())
    there[0].unlink()
    os.truncate(there[1], there[1].stat().st_size // 2)
    fetch(magnet, dest, options)
    assert tree_of(dest / "payload/llama") == tree_of(content)
    assert verify(dest).ok


def test_assets_that_vanish_or_change_between_runs_are_kept_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "CHECKPOINT_SECONDS", 0.0)
    root, dest = tmp_path / "from/m", tmp_path / "s"
    write_safetensors(root, emb=64)
    names = ["LICENSE", "README.md", "config.json"]
    for name in names:
        (root / name).write_bytes(name.encode() * 9000)

    def fail_at_the_end(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage is Stage.FINISH:
            raise KeyboardInterrupt

    with seed(root, piece_length=PIECE) as seeded:
        magnet = format_magnet(seeded.magnet)
        with pytest.raises(KeyboardInterrupt):
            fetch(magnet, dest, fetch_options(), observe=fail_at_the_end)
        (dest / "assets/LICENSE").unlink()
        (dest / "assets/README.md").write_bytes(b"another")
        fetch(magnet, dest, fetch_options())
    assert verify(dest).ok
    for name in names:
        assert (dest / "assets" / name).read_bytes() == (root / name).read_bytes()


def test_a_store_that_another_run_finished_meanwhile_is_not_fetched_again(
    seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    magnet = format_magnet(seeded.magnet)
    fetch(magnet, tmp_path / "s", fetch_options())
    asked: list[Any] = []

    def late(*arguments: Any) -> Any:
        asked.append(arguments)
        return None if len(asked) == 1 else finished(*arguments)  # the first look was before it was there

    monkeypatch.setattr(fetch_module, "finished", late)
    monkeypatch.setattr(fetch_module, "check_empty", lambda where: None)
    before = tree_of(tmp_path / "s")
    assert fetch(magnet, tmp_path / "s", fetch_options()).already
    assert tree_of(tmp_path / "s") == before


def test_what_a_run_left_that_was_killed_at_its_very_end_is_removed(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options())
    (dest / ".gdist/payload").mkdir(parents=True)
    (dest / ".gdist/payload/weights").write_bytes(b"left")
    assert fetch(magnet, dest, fetch_options()).already
    assert not (dest / ".gdist").exists()


def test_a_lock_file_that_was_removed_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run waits to open the lock while another ends and removes it: only the new file counts."""
    path = tmp_path / "lock"
    right, removed = Lock._taken, []

    def remove_first(self: Lock, path: Path) -> bool:
        if not removed:
            removed.append(path)
            path.unlink()
        return right(self, path)

    monkeypatch.setattr(Lock, "_taken", remove_first)
    lock = Lock(path, "it")
    with pytest.raises(ResumeError, match="another gdist is writing to it"):
        Lock(path, "it")
    lock.release()
    Lock(path, "it").release()


def test_a_destination_that_is_a_link_to_nowhere_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FilesystemError, match=r"store is a symbolic link to .*nowhere, which does not exist"):
        Lock(tmp_path / "store" / ".gdist" / "lock", "it")
