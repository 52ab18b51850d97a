"""What goes wrong around a torrent source is said, and never waited for without end."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest

from gdist.core.magnet import Magnet, parse_magnet
from gdist.core.payload import Payload, PayloadFile
from gdist.errors import CorruptError, FilesystemError, NoPeersError, TransferError
from gdist.sources.torrent import TorrentSource, files, session, source
from gdist.sources.torrent.files import PayloadFiles
from gdist.testing.swarm import LOOPBACK, Tracker, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "from" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(random.Random(2).randbytes(40 * PIECE))
    return path


@contextmanager
def opened(spec: Magnet | bytes, directory: Path, **changes: Any) -> Iterator[TorrentSource]:
    found = TorrentSource(spec, replace(LOOPBACK, upload=False, **changes))
    try:
        found.open(directory)
        yield found
    finally:
        found.close()


# --- the alert thread -------------------------------------------------------------------------------------


class Mumbling(str):
    """A refusal that is no UTF-8."""

    def encode(self, *args: Any) -> bytes:
        return b"\xff\xfe\x80?"


def test_a_tracker_that_answers_no_text_harms_nobody(content: Path, tmp_path: Path) -> None:
    with Tracker(refuse=Mumbling("x")) as tracker, seed(content, piece_length=PIECE) as seeded:
        nobody = Magnet(parse_magnet("0" * 39 + "1")[0].info_hash, trackers=(tracker.url,))
        with (
            pytest.raises(NoPeersError, match="failed: an answer that is not text"),
            opened(nobody, tmp_path / "none", metadata_timeout_seconds=5),
        ):
            pass
        with opened(replace(seeded.magnet, trackers=(tracker.url,)), tmp_path / "to") as found:
            found.want(range(40))
            got = 0
            while got < 40:
                got += len(found.verified(1))
                found.check_alive()


def test_a_torrent_file_with_an_address_that_is_no_text_is_refused(content: Path, tmp_path: Path) -> None:
    with seed(content, piece_length=PIECE) as seeded:
        torrent = lt.bencode({**lt.bdecode(seeded.torrent), b"url-list": b"http://\xff/"})
    with pytest.raises(CorruptError, match="not text"), opened(torrent, tmp_path / "to"):
        pass


def test_an_alert_thread_that_fails_ends_every_wait(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = session.record

    def wrong(swarm: session.Swarm, alert: lt.alert) -> None:
        if isinstance(alert, lt.piece_finished_alert):
            raise ZeroDivisionError("for a test")
        right(swarm, alert)

    monkeypatch.setattr(session, "record", wrong)
    with seed(content, piece_length=PIECE, process=True) as seeded, opened(seeded.magnet, tmp_path) as found:
        found.want(range(40))
        began = time.monotonic()
        with pytest.raises(TransferError, match="ZeroDivisionError: for a test"):
            while True:
                found.verified(600)
        with pytest.raises(TransferError, match="ZeroDivisionError"):
            found.check_alive()
        assert time.monotonic() - began < 300


def test_a_stop_is_noticed_while_files_are_checked(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = session.record
    monkeypatch.setattr(
        session, "record", lambda swarm, a: isinstance(a, lt.torrent_checked_alert) or right(swarm, a)
    )

    def stop() -> None:
        raise KeyboardInterrupt

    with seed(content, piece_length=PIECE, process=True) as seeded:
        found = TorrentSource(seeded.torrent, LOOPBACK, tick=stop)
        try:
            with pytest.raises(KeyboardInterrupt):
                found.open(tmp_path / "to")
        finally:
            found.close()


def test_a_process_that_ends_without_closing_its_session_ends_well() -> None:
    """Threads are killed when Python ends; one that is inside libtorrent then would abort the process."""
    script = """
from gdist.sources.torrent.options import session_settings
from gdist.sources.torrent.session import Session
from gdist.testing.swarm import LOOPBACK
sessions = [Session(session_settings(LOOPBACK)) for _ in range(3)]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- files ------------------------------------------------------------------------------------------------


def test_more_files_than_may_be_open_are_read_released_and_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "RELEASED_BYTES", 1)
    count, size = 600, 8192
    payload = Payload(tuple(PayloadFile(f"{n}", n * size, size) for n in range(count)), size, count * size)
    paths = tuple(tmp_path / file.path for file in payload.files)
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number % 251]) * size)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
    try:
        found = PayloadFiles(payload, paths)
        for number in range(count):
            buffer = memoryview(bytearray(size))
            assert found.read(payload.extent_of(number), buffer)
            assert buffer == bytes([number % 251]) * size
            found.release(payload.extent_of(number))
        found.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("elsewhere")
    found = PayloadFiles(Payload((PayloadFile("a", 0, 10),), 10, 10), (tmp_path / "a",))
    with pytest.raises(FilesystemError, match=r"using .*/a"):
        found.read(found._payload.extent_of(0), memoryview(bytearray(10)))


# --- the backlog ------------------------------------------------------------------------------------------


def test_a_backlog_slows_the_download_down_until_it_is_released(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "TRICKLE_BYTES", 1)
    with (
        seed(content, piece_length=PIECE, process=True) as seeded,
        opened(seeded.magnet, tmp_path / "to") as found,
    ):
        found.limit_backlog(2 * PIECE)
        found.want(range(40))
        held: list[int] = []
        got, throttled = 0, False
        while got < 40:
            arrived = found.verified(0.2)
            held += arrived
            got += len(arrived)
            found.check_alive()
            if found._throttled or got == 40:
                throttled |= found._throttled
                for piece in held:
                    found.read_piece(piece)
                    found.release(piece)
                held = []
        assert throttled, "more than two pieces waited"
        assert not found._throttled


def test_a_piece_whose_hash_is_not_known_is_not_called_corrupt(content: Path, tmp_path: Path) -> None:
    """Resumed from a v2 magnet without peers: the piece is there, and nothing says what it must be."""
    with (
        seed(content, version="v2", piece_length=PIECE) as seeded,
        opened(seeded.magnet, tmp_path / "to") as found,
    ):
        # As it is cached when no piece layers are known yet.
        torrent = lt.bencode({**lt.bdecode(found.torrent_file), b"piece layers": {}})
        found.want(range(40))
        got = 0
        while got < 40:
            got += len(found.verified(1))
            found.check_alive()
    again = TorrentSource(torrent, LOOPBACK)
    try:
        again.open(tmp_path / "to", range(40))
        with pytest.raises(TransferError, match="piece 3 is here, and its hash is not known yet"):
            again.read_piece(3)
    finally:
        again.close()
