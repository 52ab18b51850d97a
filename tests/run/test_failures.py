"""What ends a run is left for those who wait, before the lock is free, and is of the last run only."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from gdist.core.failure import FAILED_NAME, parse_failure
from gdist.core.magnet import format_magnet
from gdist.errors import (
    GdistError,
    InterruptedRun,
    NoPeersError,
    RefusedError,
    ResumeError,
    SpaceError,
)
from gdist.events import Event, StageStarted
from gdist.run.failures import last_failure, left_behind
from gdist.run.fetch import fetch
from gdist.run.journal_file import Lock
from gdist.run.reshard import reshard
from gdist.sources.torrent import TorrentOptions
from gdist.stores.unfinished import held
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import fetch_options, tree_of
from gdist.testing.swarm import seed

NOWHERE = TorrentOptions(dht=False, pex=False, listen="127.0.0.1:0", metadata_timeout_seconds=0.5)


def test_an_error_of_ours_is_left_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(SpaceError), left_behind(tmp_path):
        raise SpaceError("full")
    left = parse_failure((tmp_path / FAILED_NAME).read_bytes(), "here")
    assert (left.kind, left.message) == ("SpaceError", "full")


def test_the_error_itself_is_told_when_it_cannot_be_left(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(SpaceError), left_behind(work):
        work.write_text("a file where the directory was")
        raise SpaceError("full")


def test_what_ended_the_last_run_is_not_what_ended_one_before(tmp_path: Path) -> None:
    def run(error: GdistError | None) -> None:
        lock = Lock(tmp_path / "lock", "a test")
        try:
            with left_behind(tmp_path):
                if error is not None:
                    raise error
        except GdistError:
            pass
        finally:
            lock.release()
        time.sleep(0.02)  # as a file's time can tell

    assert last_failure(tmp_path) is None
    run(SpaceError("full"))
    left = last_failure(tmp_path)
    assert left is not None and left.kind == "SpaceError"
    run(None)  # as if it was killed
    assert last_failure(tmp_path) is None
    run(RefusedError("another secret"))
    left = last_failure(tmp_path)
    assert left is not None and left.kind == "RefusedError"


def test_a_run_that_finds_another_jobs_work_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpaceError), left_behind(tmp_path):
        raise SpaceError("full")
    before = tree_of(tmp_path)
    with pytest.raises(ResumeError), left_behind(tmp_path):
        raise ResumeError("another job's")
    assert tree_of(tmp_path) == before


@pytest.mark.torrent
def test_a_fetch_without_peers_leaves_that(tmp_path: Path) -> None:
    with pytest.raises(NoPeersError) as ended:
        fetch("ab" * 20, tmp_path / "s", fetch_options(torrent=NOWHERE))
    left = parse_failure((tmp_path / "s/.gdist" / FAILED_NAME).read_bytes(), "here")
    assert (left.kind, left.message) == ("NoPeersError", ended.value.message)
    assert not held(tmp_path / "s/.gdist/lock")


@pytest.mark.torrent
def test_a_store_that_is_complete_in_the_end_has_none(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "llama", emb=32)
    stop = threading.Event()

    def at_once(event: Event) -> None:
        if isinstance(event, StageStarted):
            stop.set()

    with seed(tmp_path / "llama", piece_length=1 << 14) as seeded:
        magnet = format_magnet(seeded.magnet)
        with pytest.raises(InterruptedRun):
            fetch(magnet, tmp_path / "s", fetch_options(), observe=at_once, stop=stop)
        assert (tmp_path / "s/.gdist" / FAILED_NAME).exists()
        fetch(magnet, tmp_path / "s", fetch_options())
    assert not (tmp_path / "s/.gdist").exists()
    stop = threading.Event()
    stop.set()
    with pytest.raises(GdistError):
        reshard(tmp_path / "s", tmp_path / "r", stop=stop)
    assert parse_failure((tmp_path / "r/.gdist" / FAILED_NAME).read_bytes(), "r").kind == "InterruptedRun"
