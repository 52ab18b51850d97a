"""The torrent source against real libtorrent sessions on loopback."""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.magnet import Magnet, format_magnet, parse_magnet
from gdist.errors import (
    CorruptError,
    NoPeersError,
    RequestError,
    StalledError,
    UnsupportedError,
)
from gdist.events import Event, HashFailed, MetadataReceived, PeerBanned, PieceVerified, TrackerAnswer
from gdist.exchange.ports import free_port
from gdist.sources.torrent import (
    Seeder,
    TorrentOptions,
    TorrentSource,
    Version,
    choose_piece_length,
    differs,
    files,
    magnet_of,
    make_torrent,
)
from gdist.sources.torrent import source as source_module
from gdist.sources.torrent.session import Swarm, _record_ban
from gdist.sources.torrent.window import FIRST, MIN_WINDOW_PIECES, REST, UNWANTED, Window
from gdist.testing.swarm import LOCALHOST, LOOPBACK, Slow, Tracker, WebSeed, bad_seed, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 16
NOBODY = "0" * 39 + "1"  # an info-hash that nobody serves
VERSIONS: tuple[Version, ...] = ("v1", "v2", "hybrid")
IMPATIENT = replace(LOOPBACK, metadata_timeout_seconds=1.5, stall_seconds=1.5)
WHILE = replace(LOOPBACK, metadata_timeout_seconds=5, stall_seconds=5)  # all that may be seen is, until then


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A directory of files of all sorts of lengths, about 3 MB."""
    root = tmp_path / "from" / "model"
    (root / "ckpt-0").mkdir(parents=True)
    rng = random.Random(7)
    for name, size in (
        ("ckpt-0/tensor00000_000", 1_500_003),
        ("ckpt-0/tensor00001_000", 5 * PIECE),
        ("ckpt-0/tensor00002_000", 1_200_001),
        ("empty", 0),
        ("config.json", 17),
        ("a piece", PIECE),
    ):
        (root / name).write_bytes(rng.randbytes(size))
    return root


@contextmanager
def opened(
    spec: Magnet | bytes,
    directory: Path,
    options: TorrentOptions = LOOPBACK,
    observe: Callable[[Event], None] | None = None,
    have: Any = (),
) -> Iterator[TorrentSource]:
    source = TorrentSource(spec, options, observe)
    try:
        source.open(directory, have)
        yield source
    finally:
        source.close()


def line_of(source: TorrentSource, content: Path) -> bytes:
    """The payload as one line of bytes, from the original files."""
    line = bytearray(source.payload.length)
    for file in source.payload.files:
        path = content / file.path if content.is_dir() else content
        line[file.offset : file.offset + file.length] = path.read_bytes()
    return bytes(line)


def collect(source: TorrentSource, count: int, seconds: float = 60) -> list[int]:
    """Waits for `count` verified pieces; `seconds` guard against hangs."""
    pieces: list[int] = []
    limit = time.monotonic() + seconds
    while len(pieces) < count:
        assert time.monotonic() < limit, f"{len(pieces)} of {count} pieces; {source.stats()}"
        pieces += source.verified(0.2)
        source.check_alive()
    return pieces


def want_once_met(source: TorrentSource, pieces: Sequence[int]) -> None:
    """Wants pieces, and again when somebody is there: the clock of a stall starts with the wish."""
    source.want(pieces)
    limit = time.monotonic() + 20
    while not source._open.swarm.met:
        assert time.monotonic() < limit, "nobody is there"
        source.verified(0.02)
    source.want(pieces)


def assert_equal(source: TorrentSource, pieces: list[int], line: bytes) -> None:
    for piece in pieces:
        extent = source.payload.extent_of(piece)
        assert source.read_piece(piece) == line[extent.start : extent.stop], f"piece {piece}"


# --- fetching -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_byte_of_a_magnet_arrives(version: Version, content: Path, tmp_path: Path) -> None:
    with (
        seed(content, version=version, piece_length=PIECE) as seeded,
        opened(seeded.magnet, tmp_path / "to") as source,
    ):
        assert source.info_hash == seeded.magnet.info_hash
        assert source.name == "model"
        assert {f.path: f.length for f in source.payload.files} == {
            p.relative_to(content).as_posix(): p.stat().st_size for p in content.rglob("*") if p.is_file()
        }
        assert not (tmp_path / "to").exists(), "nothing is written before it is wanted"
        source.want(range(source.payload.pieces))
        pieces = collect(source, source.payload.pieces)
        assert sorted(pieces) == list(range(source.payload.pieces))
        assert_equal(source, pieces, line_of(source, content))
        for number, file in enumerate(source.payload.files):
            if file.length:
                assert source.path_of(number).read_bytes() == (content / file.path).read_bytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_pieces_read_as_soon_as_they_are_announced_are_right_under_load(
    version: Version, tmp_path: Path
) -> None:
    big = tmp_path / "from" / "weights.bin"
    big.parent.mkdir()
    data = random.Random(1).randbytes(48 << 20)
    big.write_bytes(data)
    with (
        seed(big, version=version, piece_length=1 << 20, process=True) as seeded,
        opened(seeded.magnet, tmp_path / "to") as source,
        ThreadPoolExecutor(4) as pool,
    ):
        source.want(range(source.payload.pieces))
        jobs = []
        done = 0
        while done < source.payload.pieces:
            for piece in source.verified(5):
                jobs.append(pool.submit(source.read_piece, piece, memoryview(bytearray(1 << 20))))
                jobs[-1].piece = piece  # type: ignore[attr-defined]
                done += 1
            source.check_alive()
        for job in jobs:
            start = job.piece << 20  # type: ignore[attr-defined]
            assert job.result() == data[start : start + (1 << 20)]


def test_only_wanted_pieces_are_downloaded(content: Path, tmp_path: Path) -> None:
    with seed(content, piece_length=PIECE) as seeded, opened(seeded.magnet, tmp_path / "to") as source:
        time.sleep(0.3)
        assert source.stats().downloaded == 0
        wanted = [3, 17, 40]
        source.want(wanted, urgent=[40])
        assert sorted(collect(source, 3)) == wanted
        time.sleep(0.5)
        assert source.verified(0) == ()
        assert source.stats().downloaded == 3 * PIECE
        source.want([5])  # replaces: nothing else may come
        assert collect(source, 1) == [5]
        source.want([])
        source.check_alive()


def test_two_sources_feed_each_other(content: Path, tmp_path: Path) -> None:
    torrent = make_torrent(content, piece_length=PIECE)
    with opened(torrent, tmp_path / "a") as first, seed(content, torrent=torrent) as seeded:
        first.want(range(0))
        peers = ((LOCALHOST, seeded.port),)
        with opened(torrent, tmp_path / "b", replace(LOOPBACK, peers=peers)) as second:
            second.want(range(second.payload.pieces))
            collect(second, second.payload.pieces)
            options = replace(LOOPBACK, peers=((LOCALHOST, second.port),))
            with opened(magnet_of(torrent), tmp_path / "c", options) as third:
                third.want([1, 2])
                assert_equal(third, collect(third, 2), line_of(third, content))


def test_a_source_that_does_not_upload_serves_nobody(content: Path, tmp_path: Path) -> None:
    mute = replace(LOOPBACK, upload=False)
    with seed(content, piece_length=PIECE) as seeded, opened(seeded.magnet, tmp_path / "a", mute) as source:
        source.want(range(source.payload.pieces))
        collect(source, source.payload.pieces)
        options = replace(IMPATIENT, peers=((LOCALHOST, source.port),))
        with opened(seeded.torrent, tmp_path / "b", options) as other:
            want_once_met(other, [0])
            with pytest.raises(StalledError):
                collect(other, 1)


def test_a_tracker_finds_the_peer_and_its_answer_is_an_event(content: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    with Tracker() as tracker:
        options = replace(LOOPBACK, trackers=(tracker.url,))
        with (
            seed(content, piece_length=PIECE, options=options) as seeded,
            opened(replace(seeded.magnet, peers=()), tmp_path / "to", options, events.append) as source,
        ):
            source.want([0, 1])
            assert_equal(source, collect(source, 2), line_of(source, content))
    answers = [event for event in events if isinstance(event, TrackerAnswer)]
    assert answers and all(a.ok and a.url == tracker.url for a in answers)


def test_a_web_seed_alone_serves_a_torrent_file(content: Path, tmp_path: Path) -> None:
    with WebSeed(content.parent) as web:
        torrent = make_torrent(content, piece_length=PIECE, web_seeds=[web.url])
        assert magnet_of(torrent).web_seeds == (web.url,)
        with opened(torrent, tmp_path / "to") as source:
            source.want(range(source.payload.pieces))
            assert_equal(source, collect(source, source.payload.pieces), line_of(source, content))


def test_a_web_seed_that_gives_nothing_is_told_with_its_reason(content: Path, tmp_path: Path) -> None:
    torrent = make_torrent(content, piece_length=PIECE)
    pieces = range(20, 30)  # from within a file
    with WebSeed(content.parent, ranges=False) as web, WebSeed(tmp_path) as empty:
        for mirror, said in ((web, "invalid HTTP range"), (empty, f"web seed {empty.url}.* failed: ")):
            options = replace(IMPATIENT, web_seeds=(mirror.url,))
            with opened(torrent, tmp_path / "to", options) as source:
                source.want(pieces)
                limit = time.monotonic() + 20
                while not re.search(said, source._open.swarm.evidence()):
                    assert time.monotonic() < limit, source._open.swarm.evidence()
                    source.verified(0.02)
                with pytest.raises((NoPeersError, StalledError), match=said):
                    collect(source, 1)


def test_a_ban_is_told_once() -> None:
    swarm = Swarm()
    for peer in ("1.2.3.4:1", "1.2.3.4:1", "1.2.3.4:2"):
        _record_ban(swarm, peer)
    assert list(swarm.events) == [PeerBanned("1.2.3.4:1"), PeerBanned("1.2.3.4:2")]


def test_events_come_on_the_callers_thread(content: Path, tmp_path: Path) -> None:
    events: list[tuple[Event, int]] = []

    def observe(event: Event) -> None:
        events.append((event, threading.get_ident()))

    with (
        seed(content, piece_length=PIECE) as seeded,
        opened(seeded.magnet, tmp_path / "to", observe=observe) as source,
    ):
        source.want([0, 9])
        collect(source, 2)
        nbytes = sum(file.length for file in source.payload.files)
        assert MetadataReceived(source.info_hash, "model", nbytes, source.payload.pieces) in dict(events)
    assert {event for event, _ in events if isinstance(event, PieceVerified)} == {
        PieceVerified(0, PIECE),
        PieceVerified(9, PIECE),
    }
    assert {thread for _, thread in events} == {threading.get_ident()}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_torrent_file_learned_from_a_magnet_opens_again(
    version: Version, content: Path, tmp_path: Path
) -> None:
    with seed(content, version=version, piece_length=PIECE) as seeded:
        with opened(seeded.magnet, tmp_path / "a") as source:
            source.want(range(source.payload.pieces))
            collect(source, source.payload.pieces)
            torrent = source.torrent_file
        assert lt.bdecode(torrent)[b"info"] == lt.bdecode(seeded.torrent)[b"info"]
        options = replace(LOOPBACK, peers=seeded.magnet.peers)
        with opened(torrent, tmp_path / "b", options) as source:
            source.want(range(source.payload.pieces))
            assert_equal(source, collect(source, source.payload.pieces), line_of(source, content))


def test_close_is_quick_and_may_be_repeated(content: Path, tmp_path: Path) -> None:
    TorrentSource(Magnet(parse_magnet(NOBODY)[0].info_hash), LOOPBACK).close()
    with seed(content, piece_length=PIECE) as seeded:
        source = TorrentSource(seeded.magnet, LOOPBACK)
        source.open(tmp_path / "to")
        source.close()
        source.close()


# --- evidence -------------------------------------------------------------------------------------------


def test_no_metadata_says_what_tracker_and_peers_answered(tmp_path: Path) -> None:
    closed = free_port()
    with Tracker(refuse="torrent not registered") as refusing, Tracker() as empty:
        magnet = Magnet(
            parse_magnet(NOBODY)[0].info_hash,
            trackers=(refusing.url, empty.url),
            peers=((LOCALHOST, closed),),
        )
        with pytest.raises(NoPeersError) as caught, opened(magnet, tmp_path, WHILE):
            pass
    message = caught.value.message
    assert NOBODY in message
    assert f"tracker {refusing.url} failed: torrent not registered" in message
    assert f"tracker {empty.url} answered" in message
    assert "0 DHT nodes" in message
    assert f"{LOCALHOST}:{closed}: Connection refused" in message


def test_no_peer_at_all_is_told_from_a_stall(content: Path, tmp_path: Path) -> None:
    torrent = make_torrent(content, piece_length=PIECE)
    with opened(torrent, tmp_path, IMPATIENT) as source:
        time.sleep(2)
        source.check_alive()  # nothing is wanted, so nothing is missed
        source.want([0])
        source.check_alive()  # the clock starts with the wish
        with pytest.raises(NoPeersError, match=r"nothing arrived for \d+ seconds though 1 pieces"):
            collect(source, 1)


# --- wrong bytes ----------------------------------------------------------------------------------------


def test_a_corrupt_peer_beside_a_good_one_does_no_harm(content: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    with (
        seed(content, piece_length=PIECE) as good,
        bad_seed(content, good.torrent) as bad,
        opened(bad.magnet, tmp_path / "to", observe=events.append) as source,
    ):
        source.want(range(source.payload.pieces))
        limit = time.monotonic() + 60
        while not any(isinstance(event, HashFailed) for event in events):
            assert source.verified(0.2) == ()  # the bad one is alone at first, so it is certain to be asked
            assert time.monotonic() < limit
        source.connect(((LOCALHOST, good.port),))
        pieces = collect(source, source.payload.pieces)
        assert_equal(source, pieces, line_of(source, content))
        assert source.stats().waste >= PIECE
    assert PeerBanned(f"{LOCALHOST}:{bad.port}") in events


@pytest.mark.parametrize("version", VERSIONS)
def test_a_corrupt_peer_alone_never_yields_a_piece(version: Version, content: Path, tmp_path: Path) -> None:
    torrent = make_torrent(content, version=version, piece_length=PIECE)
    options = replace(LOOPBACK, stall_seconds=1.5)
    with bad_seed(content, torrent) as bad, opened(bad.magnet, tmp_path / "to", options) as source:
        want_once_met(source, range(source.payload.pieces))
        with pytest.raises(StalledError, match="nothing arrived"):
            collect(source, 1)


# --- resuming and releasing -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_pieces_had_are_neither_hashed_nor_fetched(version: Version, content: Path, tmp_path: Path) -> None:
    directory = tmp_path / "to"
    with seed(content, version=version, piece_length=PIECE) as seeded:
        with opened(seeded.magnet, directory) as source:
            source.want(range(10))
            collect(source, 10)
            for piece in range(10):
                source.read_piece(piece)  # so that they are on disk
            segment = next(source.payload.segments(source.payload.extent_of(4)))
            path = source.path_of(segment.file)
        with path.open("r+b") as file:  # were piece 4 hashed at open, it would not be had
            file.seek(segment.extent.start)
            file.write(b"\0" * 1000)
        with opened(seeded.magnet, directory, have=range(10)) as source:
            source.want(range(14))
            pieces = collect(source, 14)
            assert sorted(pieces) == list(range(14))
            assert pieces[:10] == list(range(10))
            assert source.stats().downloaded <= 4 * PIECE
            line = line_of(source, content)
            assert_equal(source, [p for p in pieces if p != 4], line)
            with pytest.raises(CorruptError):
                source.read_piece(4)
        with opened(seeded.torrent, directory, have=None) as source:  # hashes what is there
            had = set(source.verified(0))
            assert 4 not in had and set(range(10)) - {4} <= had
        with opened(seeded.magnet, directory, have=()) as source:  # trusts nothing, hashes nothing
            assert source.verified(0) == ()
            source.want([4])
            assert_equal(source, collect(source, 1), line)


def test_pieces_released_earlier_need_not_be_there(content: Path, tmp_path: Path) -> None:
    with (
        seed(content, piece_length=PIECE) as seeded,
        opened(seeded.magnet, tmp_path / "empty", have=range(10)) as source,
    ):
        source.verified(0)
        source.want([10, 11])
        assert_equal(source, collect(source, 2), line_of(source, content))


def test_pieces_are_fetched_again_while_others_arrive(content: Path, tmp_path: Path) -> None:
    """libtorrent forgets no piece: the torrent is added anew, often just as pieces are being written."""
    with (
        seed(content, piece_length=1 << 14) as seeded,
        Slow(seeded.port, rate=4e6) as slow,
        opened(replace(seeded.magnet, peers=((LOCALHOST, slow.port),)), tmp_path / "to") as source,
    ):
        everything = range(source.payload.pieces)
        missing, limit, times = set(everything), time.monotonic() + 60, 0
        source.want(everything)
        while missing:
            assert time.monotonic() < limit, f"{len(missing)} pieces did not come"
            arrived = source.verified(0.02)
            missing.difference_update(arrived)
            if arrived and times < 3:
                times += 1
                source.fetch_again(arrived[:1])
                missing.add(arrived[0])
                source.want(sorted(missing))
        assert times == 3
        assert_equal(source, list(everything), line_of(source, content))


def test_a_torrent_that_stands_still_after_wrong_bytes_is_added_anew(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "REVIVE_SECONDS", 0.0)
    with (
        seed(content, piece_length=PIECE) as seeded,
        Slow(seeded.port, rate=4e6) as slow,
        opened(replace(seeded.magnet, peers=((LOCALHOST, slow.port),)), tmp_path / "to") as source,
    ):
        everything = range(source.payload.pieces)
        arrived: list[int] = []
        limit, handles = time.monotonic() + 60, {id(source._handle): source._handle}
        source.want(everything)
        while len(arrived) < len(everything):
            assert time.monotonic() < limit, f"{len(arrived)} of {len(everything)} pieces came"
            found = source.verified(0.02)
            arrived += found
            if found and len(handles) < 3:
                with source._open.changed:
                    source._open.swarm.hash_failures += 1  # as if
                source.check_alive()
                source.check_alive()  # once for each failure
                handles[id(source._handle)] = source._handle
        assert len(handles) == 3
        assert sorted(arrived) == list(everything), "each once"
        assert_equal(source, list(everything), line_of(source, content))


def test_a_torrent_that_is_removed_is_asked_nothing_more(content: Path, tmp_path: Path) -> None:
    """The alert thread asks whether pieces are written, and libtorrent throws where the torrent is gone."""
    with seed(content, piece_length=PIECE) as seeded, opened(seeded.magnet, tmp_path / "to") as source:
        session, handle = source._open, source._handle
        session.remove(handle)
        with session.changed:
            if session.swarm.flush is not None:
                session.swarm.flush.announced(0)
        time.sleep(1.5)  # more than a piece may be late
        with session.changed:
            assert session.swarm.error is None


def test_release_gives_the_disk_back(content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RELEASED_BYTES", 1)  # at once, not when many have come together

    def blocks() -> int:
        os.sync()
        return sum(p.stat().st_blocks * 512 for p in (tmp_path / "to").rglob("*") if p.is_file())

    quiet = replace(LOOPBACK, upload=False)
    with seed(content, piece_length=PIECE) as seeded, opened(seeded.magnet, tmp_path / "to", quiet) as source:
        pieces = list(range(source.payload.pieces))
        source.want(pieces)
        collect(source, len(pieces))
        assert_equal(source, pieces, line_of(source, content))
        full = blocks()
        order = random.Random(3).sample(pieces, len(pieces))
        for piece in order[:10]:
            source.release(piece)
        assert blocks() < full - 8 * PIECE
        assert_equal(source, order[10:], line_of(source, content))
        for piece in order:
            source.release(piece)
        assert blocks() == 0, "pages at the edges of pieces come back with their neighbours"
        assert source.path_of(1).stat().st_size == source.payload.files[1].length


# --- hostile and broken metadata ------------------------------------------------------------------------


def hostile(files: list[dict[str, Any]], name: bytes = b"n", **more: Any) -> bytes:
    """A v1 torrent with these raw file entries."""
    total = sum(entry["length"] for entry in files)
    info = {
        b"name": name,
        b"piece length": PIECE,
        b"pieces": b"x" * 20 * -(-total // PIECE),
        b"files": [{key.encode(): value for key, value in entry.items()} for entry in files],
        **{key.encode(): value for key, value in more.items()},
    }
    return lt.bencode({b"info": info})


def plain(*parts: bytes, length: int = 5) -> dict[str, Any]:
    return {"length": length, "path": list(parts)}


HOSTILE = {
    "climbs": (hostile([plain(b"..", b"..", b"etc", b"passwd")]), "'..'"),
    "here": (hostile([plain(b".", b"a")]), "'.'"),
    "slash inside": (hostile([plain(b"../a")]), "slash"),
    "absolute": (hostile([plain(b"", b"etc", b"passwd")]), "''"),
    "absolute inside": (hostile([plain(b"/etc/passwd")]), "slash"),
    "backslash": (hostile([plain(b"a\\b")]), "slash"),
    "root climbs": (hostile([plain(b"a")], name=b".."), "the torrent's name '..' is not safe"),
    "root absolute": (hostile([plain(b"a")], name=b"/tmp"), "the torrent's name '/tmp' is not safe"),
    "twice": (hostile([plain(b"a"), plain(b"a")]), "twice"),
    "twice but for case": (hostile([plain(b"a"), plain(b"A")]), "would be written as"),
    "file and directory": (hostile([plain(b"a"), plain(b"a", b"b")]), "a file and a directory"),
    "nul": (hostile([plain(b"a\0b")]), "control"),
    "newline": (hostile([plain(b"a\nb")]), "control"),
    "right to left": (hostile([plain("a\u202eb".encode())]), "control"),
    "not text": (hostile([plain(b"a\xff")]), "UTF-8"),
    "too long": (hostile([plain(b"a" * 256)]), "256 bytes"),
    "symlink": (
        hostile([{"length": 0, "path": [b"a"], "attr": b"l", "symlink path": [b"..", b"b"]}, plain(b"b")]),
        "symbolic link",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_unsafe_names_are_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    torrent, says = HOSTILE[case]
    with pytest.raises(UnsupportedError) as caught, opened(torrent, tmp_path / "to"):
        pass
    assert says in caught.value.message
    assert not (tmp_path / "to").exists()


def test_unsafe_names_from_a_magnet_are_refused_before_anything_is_written(
    content: Path, tmp_path: Path
) -> None:
    torrent = hostile([plain(b"..", b"escaped"), plain(b"fine")])
    params = lt.load_torrent_buffer(torrent)
    assert params.ti is not None
    magnet = Magnet(parse_magnet(str(params.ti.info_hashes().v1))[0].info_hash)
    with serving(params, tmp_path / "served") as port, pytest.raises(UnsupportedError, match=r"'\.\.'"):
        TorrentSource(replace(magnet, peers=((LOCALHOST, port),)), LOOPBACK).open(tmp_path / "to")
    assert not (tmp_path / "to").exists()


@contextmanager
def serving(params: lt.add_torrent_params, directory: Path) -> Iterator[int]:
    """A bare libtorrent session that serves a torrent gdist itself would not make."""
    session = lt.session({"listen_interfaces": f"{LOCALHOST}:0", "enable_dht": False, "enable_lsd": False})
    params.save_path = str(directory)
    params.flags = lt.torrent_flags.seed_mode
    session.add_torrent(params)
    while not session.listen_port():
        time.sleep(0.01)
    yield session.listen_port()


def test_padding_files_are_not_part_of_the_payload(tmp_path: Path) -> None:
    padding = {"length": PIECE - 5, "path": [b".pad", b"1"], "attr": b"p"}
    torrent = hostile([plain(b"a"), padding, plain(b"c", length=3)])
    with opened(torrent, tmp_path / "to") as source:
        files = [(file.path, file.offset, file.length) for file in source.payload.files]
        assert files == [("a", 0, 5), ("c", PIECE, 3)]
        assert source.path_of(1) == tmp_path / "to" / "n" / "c"


@pytest.mark.parametrize("torrent", [b"", b"d4:infoi1e", b"de", b"d4:infodee", b"x" * 100, b"le"])
def test_what_is_no_torrent_is_refused(torrent: bytes, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="not a valid torrent"), opened(torrent, tmp_path):
        pass


def test_more_pieces_than_gdist_reads_says_so(tmp_path: Path) -> None:
    info = {b"name": b"n", b"piece length": 1 << 14, b"length": 1 << 38, b"pieces": b"x" * 20}
    torrent = lt.bencode({b"info": info})
    with (
        pytest.raises(UnsupportedError, match="larger than gdist reads") as caught,
        opened(torrent, tmp_path),
    ):
        pass
    assert "8388608 pieces" in caught.value.hint


def test_a_magnet_with_a_second_hash_of_another_torrent_is_refused(content: Path, tmp_path: Path) -> None:
    with seed(content, piece_length=PIECE) as seeded:
        text = format_magnet(seeded.magnet) + "&xt=urn:btmh:1220" + "ab" * 32
        with pytest.raises((CorruptError, NoPeersError)), opened(parse_magnet(text)[0], tmp_path, IMPATIENT):
            pass


# --- making and serving ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_torrents_of_equal_content_are_equal(version: Version, content: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "model"
    for path in sorted(content.rglob("*"), reverse=True):
        if path.is_file():
            target = copy / path.relative_to(content)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    hashed: list[tuple[int, int]] = []
    torrent = make_torrent(content, version=version, piece_length=PIECE)
    again = make_torrent(
        copy, version=version, piece_length=PIECE, progress=lambda done, total: hashed.append((done, total))
    )
    assert torrent == again
    assert hashed[-1][0] == hashed[-1][1]
    info_hash = magnet_of(torrent).info_hash
    assert (info_hash.v1 is not None, info_hash.v2 is not None) == (version != "v2", version != "v1")
    info = lt.bencode(lt.bdecode(torrent)[b"info"])
    assert info_hash.v1 in (None, hashlib.sha1(info).digest())
    assert info_hash.v2 in (None, hashlib.sha256(info).digest())


@pytest.mark.parametrize(
    ("nbytes", "piece_length"),
    [(1, 1 << 14), (10**6, 1 << 14), (10**9, 1 << 20), (318 * 10**9, 1 << 24), (1 << 40, 1 << 24)],
)
def test_the_piece_length_fits_the_size(nbytes: int, piece_length: int) -> None:
    assert choose_piece_length(nbytes) == piece_length


@pytest.mark.parametrize("version", VERSIONS)
def test_a_torrent_that_would_be_another_is_told_without_hashing(
    content: Path, tmp_path: Path, version: Version
) -> None:
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "file").write_bytes(b"x")
    links = {"trackers": ["udp://t.org:1"], "web_seeds": ["http://w.org/m"]}
    for source in (content, tmp_path / "single", tmp_path / "single" / "file"):
        made = make_torrent(source, version=version, piece_length=PIECE, **links)
        assert not differs(made, source, version=version, piece_length=PIECE, **links)
        assert differs(made, source, version=version, piece_length=PIECE)
        assert differs(made, source, version=version, piece_length=2 * PIECE, **links)
        assert differs(made, source, version=version, piece_length=PIECE, private=True, **links)
        assert all(
            differs(made, source, version=v, piece_length=PIECE, **links) for v in VERSIONS if v != version
        )
        assert differs(b"other", source)
    with (tmp_path / "single" / "file").open("ab") as file:
        file.write(b"y")
    assert differs(made, source, version=version, piece_length=PIECE, **links)


def test_what_cannot_be_shared_is_refused(content: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no bytes"):
        (tmp_path / "nothing").mkdir()
        make_torrent(tmp_path / "nothing")
    with pytest.raises(RequestError, match="neither"):
        make_torrent(tmp_path / "absent")
    with pytest.raises(RequestError, match="piece length 1000") as caught:
        make_torrent(content, piece_length=1000)
    assert "1MiB" in caught.value.hint
    with pytest.raises(RequestError, match="has no name of its own") as caught:
        make_torrent(content / "ckpt-0" / "..")
    assert caught.value.hint == f"give {content.resolve()}"
    (content / "link").symlink_to("config.json")
    with pytest.raises(UnsupportedError, match="symbolic link"):
        make_torrent(content)
    with pytest.raises(UnsupportedError, match="symbolic link"):
        make_torrent(content / "link")


def test_a_torrent_of_one_file_lies_directly_in_the_directory(content: Path, tmp_path: Path) -> None:
    for version in VERSIONS:
        file = content / "config.json"
        with (
            seed(file, version=version, piece_length=PIECE) as seeded,
            opened(seeded.magnet, tmp_path / version) as source,
        ):
            source.want([0])
            assert_equal(source, collect(source, 1), line_of(source, file))
            assert source.path_of(0) == tmp_path / version / "config.json"


def test_the_seeder_checks_what_it_serves(content: Path) -> None:
    torrent = make_torrent(content, piece_length=PIECE)
    with Seeder(torrent, content.parent, LOOPBACK) as seeder:
        assert seeder.port and seeder.stats().verified
    (content / "a piece").write_bytes(bytes(PIECE))
    with pytest.raises(CorruptError, match=r"of 4[0-9] pieces"), Seeder(torrent, content.parent, LOOPBACK):
        pass
    with Seeder(torrent, content.parent, LOOPBACK, check=False) as seeder:
        assert seeder.port


def test_an_address_that_is_taken_is_told(content: Path) -> None:
    torrent = make_torrent(content, piece_length=PIECE)
    nowhere = replace(LOOPBACK, listen="192.0.2.1:7")  # TEST-NET-1: no interface has it
    with (
        pytest.raises(RequestError, match=r"cannot listen at 192\.0\.2\.1:7"),
        Seeder(torrent, content.parent, nowhere),
    ):
        pass
    source = TorrentSource(torrent, nowhere)
    with closing(source), pytest.raises(RequestError, match=r"cannot listen at 192\.0\.2\.1:7"):
        source.open(content.parent)


# --- the window -----------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 200), unique=True),
    st.lists(st.integers(0, 200), unique=True, max_size=5),
    st.sets(st.integers(0, 200)),
    st.randoms(use_true_random=False),
)
def test_the_window_moves_over_the_order_to_its_end(
    order: list[int], urgent: list[int], had: set[int], rng: random.Random
) -> None:
    window = Window(1 << 30)
    priorities = dict(window.want(order, urgent, had))
    row = [p for p in dict.fromkeys((*urgent, *order)) if p not in had]
    assert set(priorities) == set(row)
    left = list(row)
    while left:
        bands = [max(FIRST - rank // MIN_WINDOW_PIECES, REST) for rank in range(len(left))]
        assert [priorities[piece] for piece in left] == bands
        assert window.missing == len(left)
        gone = rng.choice(left)  # the swarm may bring any of them
        left.remove(gone)
        priorities.update(window.finished([gone]))
    assert dict(window.want([300], [], had)) == {300: FIRST}
    assert dict(window.want([], [], had)) == {300: UNWANTED}


@pytest.mark.parametrize(
    ("pieces", "piece_length", "first"),
    [(30, 1 << 14, 16), (1600, 1 << 14, 100), (1 << 20, 1 << 14, 1 << 14), (20_000, 1 << 24, 16)],
)
def test_the_window_is_a_small_part_of_what_is_wanted(pieces: int, piece_length: int, first: int) -> None:
    priorities = Window(piece_length).want(range(pieces), (), ())
    assert sum(value == FIRST for _, value in priorities) == first
