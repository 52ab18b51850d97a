"""Pieces are given out once libtorrent has written them: every byte that is read then is right, unhashed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import libtorrent as lt
import pytest

from gdist.sources.torrent import TorrentSource, Version, flushed, source
from gdist.sources.torrent.flushed import FlushWatch
from gdist.testing.swarm import LOOPBACK, seed

pytestmark = pytest.mark.torrent

LOAD_BYTES = 300 * 2**20
MIB = 2**20


class Asked:
    """What a watch asks of libtorrent, in order; nobody answers by himself."""

    def __init__(self) -> None:
        self.questions: list[str] = []

    def save_resume_data(self) -> None:
        self.questions.append("state")

    def flush_cache(self) -> None:
        self.questions.append("flush")


@pytest.fixture(autouse=True)
def _at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "asked" in request.fixturenames:
        monkeypatch.setattr(flushed, "POLL_SECONDS", 0.0)


@pytest.fixture
def asked() -> Asked:
    return Asked()


def watch(asked: Asked, *, fence_only: bool = False) -> FlushWatch:
    return FlushWatch(cast(lt.torrent_handle, asked), fence_only=fence_only)


# --- what is asked, and what the answers mean -------------------------------------------------------------


def test_nothing_is_asked_while_nothing_waits(asked: Asked) -> None:
    pieces = watch(asked)
    pieces.step()
    assert not pieces.busy
    assert asked.questions == []


def test_the_state_gives_the_pieces_it_names_and_keeps_the_others(asked: Asked) -> None:
    pieces = watch(asked)
    for piece in (3, 1, 2):
        pieces.announced(piece)
    pieces.step()
    pieces.announced(0)  # after the question: the answer may or may not know it
    pieces.step()
    assert asked.questions == ["state"], "one question at a time"
    assert pieces.state([True, False, False, True, False]) == [3, 0]
    assert pieces.busy
    pieces.step()
    assert pieces.state([True, True, True, True, False]) == [1, 2]
    assert not pieces.busy
    assert asked.questions == ["state", "state"]


@pytest.mark.parametrize("answer", [(), (True, True, True)], ids=["none", "all"])
def test_a_state_that_cannot_tell_is_followed_by_flushes(answer: tuple[bool, ...], asked: Asked) -> None:
    """A torrent whose pieces are all verified says "all", written or not; from then on only flushes tell."""
    pieces = watch(asked)
    pieces.announced(1)
    pieces.step()
    assert pieces.state(answer) == []
    assert pieces.busy
    pieces.step()
    assert asked.questions == ["state", "flush"]
    assert pieces.flushed() == [1]
    pieces.announced(2)
    pieces.step()
    assert asked.questions == ["state", "flush", "flush"]


def test_a_flush_is_asked_for_when_no_other_piece_comes(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = watch(asked)
    pieces.announced(1)
    pieces.step()
    pieces.state([False, False, False])
    monkeypatch.setattr(flushed, "QUIET_SECONDS", -1.0)
    pieces.step()
    assert asked.questions == ["state", "flush"]
    assert pieces.flushed() == [1]


def test_a_flush_gives_only_what_was_announced_before_it_was_asked_for(asked: Asked) -> None:
    pieces = watch(asked, fence_only=True)
    pieces.announced(5)
    pieces.announced(4)
    pieces.step()
    pieces.announced(6)
    pieces.step()
    assert asked.questions == ["flush"], "the flush under way does not cover piece 6, the next one does"
    assert pieces.flushed() == [5, 4]
    pieces.step()
    assert asked.questions == ["flush", "flush"]
    assert pieces.flushed() == [6]
    assert not pieces.busy


def test_a_flush_nobody_asked_for_gives_nothing(asked: Asked) -> None:
    """libtorrent flushes by itself when a torrent is finished, and a read that failed asks for one too."""
    pieces = watch(asked)
    pieces.announced(1)
    assert pieces.flushed() == []
    assert pieces.busy


def test_a_state_that_comes_during_a_flush_does_not_confuse_it(asked: Asked) -> None:
    pieces = watch(asked, fence_only=True)
    pieces.announced(1)
    pieces.announced(2)
    pieces.step()
    assert pieces.state(()) == []  # saving the state failed for somebody else
    assert pieces.flushed() == [1, 2]


def test_a_late_piece_is_flushed(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flushed, "LATE_SECONDS", -1.0)
    pieces = watch(asked)
    pieces.announced(1)
    pieces.step()
    assert asked.questions == ["flush"]
    assert pieces.flushed() == [1]


def test_a_piece_announced_twice_is_given_out_of_both_places(asked: Asked) -> None:
    pieces = watch(asked)
    pieces.announced(1)
    pieces.announced(1)
    pieces.step()
    assert pieces.state([False, True, False]) == [1, 1]
    assert not pieces.busy


# --- every byte, as it is given out -----------------------------------------------------------------------


class Never(random.Random):
    """The dice of the sample, loaded: no read is hashed again."""

    def randrange(self, *args: Any, **kwargs: Any) -> int:  # as in the base class
        return 1


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two files that share pieces, at odd lengths."""
    root = tmp_path_factory.mktemp("from") / "model"
    root.mkdir()
    block = random.Random(5).randbytes(7 * MIB + 13)  # repeats at no multiple of a piece
    whole = block * (LOAD_BYTES // len(block))
    cut = LOAD_BYTES * 2 // 3 - 777
    (root / "a").write_bytes(whole[:cut])
    (root / "b").write_bytes(whole[cut:])
    yield root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "piece_length"),
    [("v1", MIB // 16), ("v1", MIB), ("v2", MIB // 4), ("hybrid", MIB // 2), ("hybrid", MIB // 16)],
)
def test_every_byte_is_right_when_a_piece_is_given_out(
    version: Version, piece_length: int, content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "random", Never())
    files = {path.name: path.read_bytes() for path in content.iterdir()}
    options = replace(LOOPBACK, upload=False)
    with seed(content, version=version, piece_length=piece_length, process=True) as seeded:
        torrent = TorrentSource(seeded.magnet, options)
        try:
            torrent.open(tmp_path / "to")
            line = bytearray(torrent.payload.length)
            for file in torrent.payload.files:
                line[file.offset : file.offset + file.length] = files[file.path]
            wrong = _wrong_pieces(torrent, memoryview(line))
            assert not torrent._check_all
        finally:
            torrent.close()
    assert wrong == []


PORTIONS = 3


def _wrong_pieces(torrent: TorrentSource, line: memoryview) -> list[int]:
    """Reads every piece of the torrent on four threads as soon as it is given out; those that differ.

    They are wanted in portions: at the end of each libtorrent thinks it is finished, and flushes by itself.
    """
    pieces = torrent.payload.pieces
    left, wrong = set(range(pieces)), []

    def read(piece: int) -> bool:
        extent = torrent.payload.extent_of(piece)
        right = torrent.read_piece(piece) == line[extent.start : extent.stop]
        torrent.release(piece)
        return right

    with ThreadPoolExecutor(4) as pool:
        jobs: dict[Future[bool], int] = {}
        wanted = 0
        while left:
            if wanted + len(left) == pieces:
                wanted = min(wanted + -(-pieces // PORTIONS), pieces)
                torrent.want(range(wanted))
            for piece in torrent.verified(1):
                left.remove(piece)
                jobs[pool.submit(read, piece)] = piece
            for job in [job for job in jobs if job.done()]:
                if not job.result():
                    wrong.append(jobs[job])
                del jobs[job]
            torrent.check_alive()
        wrong += [piece for job, piece in jobs.items() if not job.result()]
    return wrong
