"""A store is served to real clients without a second copy; what is wrong or missing is never sent."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gdist.core.magnet import format_magnet
from gdist.errors import CorruptError, RequestError, StalledError
from gdist.exchange.ports import free_port
from gdist.run.fetch import fetch
from gdist.run.seeding import Held, check_pieces, open_held, serve
from gdist.run.view import make_view
from gdist.sources.torrent import PieceServer, Seeder, TorrentOptions, Version, magnet_of, make_torrent
from gdist.sources.torrent.peer_wire import (
    HANDSHAKE_BYTES,
    Message,
    greeting,
    message,
    read_greeting,
    read_message,
)
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import fetch_options, tree_of
from gdist.testing.swarm import LOCALHOST, LOOPBACK, Tracker, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14


def write_model(root: Path) -> None:
    write_safetensors(root, emb=64, vocab=256)
    (root / "config.json").write_bytes(b"{}\n")
    (root / "empty").write_bytes(b"")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("from") / "model"
    write_model(root)
    return root


def stored(origin: Path, store: Path, version: Version = "v1", **changes: Any) -> bytes:
    with seed(origin, version=version, piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), store, fetch_options(**changes))
        return seeded.torrent


@contextmanager
def served(*places: Path, options: TorrentOptions = LOOPBACK) -> Iterator[tuple[Held, Seeder | PieceServer]]:
    with open_held(places) as held, serve(held, options) as server:
        yield held, server


def magnet(held: Held, server: Seeder | PieceServer) -> str:
    return format_magnet(magnet_of(held.torrent, ((LOCALHOST, server.port),)))


def wait_for(tracker: Tracker, port: int) -> None:
    """Until a port is announced."""
    until = time.monotonic() + 60
    while port not in {known for peers in tracker.announced.values() for _, known in peers}:
        assert time.monotonic() < until, f"nobody announced port {port}"
        time.sleep(0.02)


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_a_magnet_alone_brings_it_all(version: Version, origin: Path, tmp_path: Path) -> None:
    stored(origin, tmp_path / "s", version, mesh="2x4")
    before = tree_of(tmp_path / "s")
    with served(tmp_path / "s") as (held, server):
        assert isinstance(server, PieceServer)
        check_pieces(held)
        fetch(magnet(held, server), tmp_path / "again", fetch_options(payload="keep"))
        assert server.stats().uploaded >= sum(map(len, tree_of(origin).values())) - PIECE
    assert tree_of(tmp_path / "again/payload/model") == tree_of(origin)
    assert tree_of(tmp_path / "s") == before, "nothing is written"


def test_pickles_and_other_hosts_parts(tmp_path: Path) -> None:
    write_grok1(tmp_path / "tiny", layers=1, emb=32, ffn=64, kv=8, vocab=64)
    for index in range(2):
        stored(tmp_path / "tiny", tmp_path / str(index), mesh="2x4", host=f"{index}/2")
    with served(tmp_path / "0", tmp_path / "1") as (held, server):
        fetch(magnet(held, server), tmp_path / "again", fetch_options(payload="keep"))
    assert tree_of(tmp_path / "again/payload/tiny") == tree_of(tmp_path / "tiny")
    with pytest.raises(RequestError, match="cannot be seeded"), served(tmp_path / "0"):
        pass


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
@pytest.mark.parametrize("kind", ["keep", "view", "view apart", "view elsewhere", "odd name", "inside"])
def test_files_that_are_here_are_served_as_they_are(
    kind: str, version: Version, origin: Path, tmp_path: Path
) -> None:
    root, torrent = tmp_path / "v", make_torrent(origin, piece_length=PIECE, version=version)
    if kind == "keep":
        stored(origin, root, version, payload="keep")
    else:
        names = {"view elsewhere": "far/away/named-otherwise", "odd name": "a:b*?, \\ü é.view"}
        files = tmp_path / names.get(kind, "model")
        shutil.copytree(origin, files)
        if kind in ("view", "odd name"):
            root = files
        make_view(files, root)
        (files / "m.torrent" if kind == "inside" else root / "m.torrent").write_bytes(torrent)
    before = tree_of(root)
    with served(root) as (held, server):
        check_pieces(held)
        assert isinstance(server, Seeder)
        fetch(magnet(held, server), tmp_path / "again", fetch_options(payload="keep"))
    assert tree_of(tmp_path / "again/payload/model") == tree_of(origin)
    assert tree_of(root) == before


def test_a_place_whose_name_is_no_text_is_served_all_the_same(origin: Path, tmp_path: Path) -> None:
    shutil.copytree(origin, tmp_path / "model")
    make_view(tmp_path / "model")
    root = (tmp_path / "model").rename(tmp_path / os.fsdecode(b"\xff"))
    (root / "m.torrent").write_bytes(make_torrent(origin, piece_length=PIECE))
    with served(root) as (held, server):
        assert isinstance(server, PieceServer)  # libtorrent takes no such path
        fetch(magnet(held, server), tmp_path / "again", fetch_options(payload="keep"))
    assert tree_of(tmp_path / "again/payload/model") == tree_of(origin)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"select": ("norm",)}, "--select"),
        ({"dtype": "float32"}, "converted"),
        ({"ignore": ("config*",)}, "left"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], what: str, origin: Path, tmp_path: Path) -> None:
    stored(origin, tmp_path / "s", **changes)
    with (
        pytest.raises(RequestError, match=rf"cannot be seeded: .* are missing: .*{what}"),
        served(tmp_path / "s"),
    ):
        pass


def test_a_damaged_piece_is_named_and_never_sent(origin: Path, tmp_path: Path) -> None:
    stored(origin, tmp_path / "s", mesh="2x4")
    path = max((p for p in (tmp_path / "s").rglob("c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with served(tmp_path / "s") as (held, server):
        with pytest.raises(CorruptError, match=r"piece \d+ \(with .* is missing or differs") as caught:
            check_pieces(held)
        (wrong,) = caught.value.pieces  # type: ignore[misc]
        hasty = replace(LOOPBACK, stall_seconds=2)
        with pytest.raises(StalledError):
            fetch(magnet(held, server), tmp_path / "again", fetch_options(torrent=hasty))
        data[100] ^= 1
        path.write_bytes(data)
        fetch(magnet(held, server), tmp_path / "again", fetch_options())
    assert isinstance(wrong, int)


@pytest.mark.parametrize(("harm", "names"), [("header", "model-00001"), ("asset", "config.json")])
def test_a_damaged_piece_of_a_view_is_blamed_on_its_file(
    harm: str, names: str, origin: Path, tmp_path: Path
) -> None:
    stored(origin, tmp_path / "s", payload="keep", codec="view")
    name = "config.json" if harm == "asset" else "model-00001-of-00002.safetensors"
    path = tmp_path / "s/payload/model" / name
    data = bytearray(path.read_bytes())
    data[1 if harm == "asset" else 100] ^= 1
    path.write_bytes(data)
    with served(tmp_path / "s") as (held, _), pytest.raises(CorruptError) as caught:
        check_pieces(held)
    assert f"piece 0 (in {names}" in caught.value.message, caught.value.message
    assert caught.value.message.count("config.json") == (harm == "asset")
    assert "is missing or differs" in caught.value.message


def test_what_repair_does_not_mend_is_not_sent_there(origin: Path, tmp_path: Path) -> None:
    torrent = stored(origin, tmp_path / "kept", payload="keep")
    shutil.copytree(origin, tmp_path / "model")
    make_view(tmp_path / "model")
    (tmp_path / "model/m.torrent").write_bytes(torrent)
    for root, directory, hint in (
        (tmp_path / "kept", tmp_path / "kept/payload/model", "payload away"),
        (tmp_path / "model", tmp_path / "model", "let the client"),
    ):
        path = directory / "model-00001-of-00002.safetensors"
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        with served(root) as (held, _), pytest.raises(CorruptError) as caught:
            check_pieces(held)
        assert hint in caught.value.hint
    (tmp_path / "kept/payload").rename(tmp_path / "away")
    with served(tmp_path / "kept") as (held, _):
        check_pieces(held)


def test_trackers_learn_the_serving_port(origin: Path, tmp_path: Path) -> None:
    with Tracker() as tracker:
        known = replace(LOOPBACK, trackers=(tracker.url,))
        stored(origin, tmp_path / "s")
        with served(tmp_path / "s", options=known) as (held, server):
            wait_for(tracker, server.port)
            bare = format_magnet(replace(magnet_of(held.torrent), trackers=(tracker.url,)))
            fetch(bare, tmp_path / "again", fetch_options(torrent=known))
            assert isinstance(server, PieceServer) and server.stats().uploaded
    assert tree_of(tmp_path / "again/assets") == tree_of(tmp_path / "s/assets")


def test_uploads_keep_to_a_limit(origin: Path, tmp_path: Path) -> None:
    stored(origin, tmp_path / "s")
    nbytes = sum(map(len, tree_of(origin).values()))
    with served(tmp_path / "s", options=replace(LOOPBACK, upload_rate=nbytes // 2)) as (held, server):
        start = time.monotonic()
        fetch(magnet(held, server), tmp_path / "again", fetch_options())
        assert time.monotonic() - start > 1.5


def test_many_leechers_at_once(origin: Path, tmp_path: Path) -> None:
    stored(origin, tmp_path / "s", mesh="2x4")
    with served(tmp_path / "s") as (held, server):
        address = magnet(held, server)
        runs = [
            threading.Thread(target=fetch, args=(address, tmp_path / str(n), fetch_options()))
            for n in range(4)
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join(60)
    for n in range(4):
        assert tree_of(tmp_path / str(n) / "assets"), n


# --- other clients ----------------------------------------------------------------------------------------


def client(command: list[str], done: Path, expected: dict[str, bytes], tell: list[str] | None = None) -> None:
    """Runs a client until the files are all there; `tell` is how it learns of them."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while tell and subprocess.run(tell, capture_output=True).returncode and process.poll() is None:
            time.sleep(0.2)
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            if done.is_dir() and tree_of(done) == expected:
                return
            time.sleep(0.2)
        process.kill()
        said = process.communicate()[0][-2000:]
        assert done.is_dir() and tree_of(done) == expected, said
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def own_address() -> str:
    """An address of this machine that is not the loopback's, or nothing; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        address: str = asking.getsockname()[0]
        return address


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2 is not installed")
@pytest.mark.parametrize("by", ["magnet", "torrent"])
def test_aria2_fetches_from_it(by: str, origin: Path, tmp_path: Path) -> None:
    torrent = stored(origin, tmp_path / "s", mesh="2x4")
    with Tracker() as tracker:
        known = replace(LOOPBACK, trackers=(tracker.url,))
        with served(tmp_path / "s", options=known) as (held, server):
            wait_for(tracker, server.port)
            asked = format_magnet(replace(magnet_of(held.torrent), trackers=(tracker.url,)))
            if by == "torrent":
                (tmp_path / "t.torrent").write_bytes(torrent)
                asked = str(tmp_path / "t.torrent")
            command = ["aria2c", "--enable-dht=false", "--seed-time=0", "--file-allocation=none"]
            command += [f"--bt-tracker={tracker.url}", f"--dir={tmp_path / 'out'}", "--no-conf", asked]
            client(command, tmp_path / "out/model", tree_of(origin))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("transmission-daemon"), reason="transmission is not installed")
def test_transmission_fetches_from_it(origin: Path, tmp_path: Path) -> None:
    address = own_address()  # it asks no peer at the loopback's
    if not address or address.startswith("127."):
        pytest.skip("no network but loopback")
    settings = {
        "dht-enabled": False,
        "lpd-enabled": False,
        "utp-enabled": False,  # what is rebuilt is served by TCP alone
        "port-forwarding-enabled": False,
        "rpc-bind-address": LOCALHOST,
        "rpc-port": (control := free_port()),
        "peer-port": free_port(),
        "download-dir": str(tmp_path / "out"),
    }
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/settings.json").write_text(json.dumps(settings))
    with Tracker(address=(address, 0)) as tracker:
        torrent = make_torrent(origin, piece_length=PIECE, trackers=[tracker.url])
        (tmp_path / "t.torrent").write_bytes(torrent)
        with seed(origin, torrent=torrent, piece_length=PIECE) as seeded:
            fetch(format_magnet(replace(seeded.magnet, trackers=())), tmp_path / "s", fetch_options("2x4"))
        known = replace(LOOPBACK, trackers=(tracker.url,), listen=f"{address}:0")
        with served(tmp_path / "s", options=known) as (_, server):
            wait_for(tracker, server.port)
            add = ["transmission-remote", f"{LOCALHOST}:{control}", "-a", str(tmp_path / "t.torrent")]
            command = ["transmission-daemon", "--foreground", "--config-dir", str(tmp_path / "conf")]
            there = {path: data for path, data in tree_of(origin).items() if data}  # it makes no empty files
            client(command, tmp_path / "out/model", there, tell=add)


# --- hostile peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(80),
        bytes(HANDSHAKE_BYTES),
        greeting(b"x" * 20, b"y" * 20, v2=False),
        "huge",
        "far",
        "long",
        "odd",
        "metadata",
        "hashes",
    ],
)
def test_a_hostile_peer_gets_nothing_and_harms_nobody(
    said: bytes | str, origin: Path, tmp_path: Path
) -> None:
    stored(origin, tmp_path / "s")
    with (
        served(tmp_path / "s") as (held, server),
        socket.create_connection((LOCALHOST, server.port), 10) as peer,
    ):
        stream = peer.makefile("rb")
        if isinstance(said, bytes):
            peer.sendall(said)
            assert stream.read(1) == b""
        else:
            name = magnet_of(held.torrent).info_hash.v1
            assert name is not None
            peer.sendall(greeting(name, b"y" * 20, v2=False) + message(Message.INTERESTED))
            assert read_greeting(stream).info_hash == name
            extended = bytes([2]) + b"d8:msg_typei0e5:piecei999999ee"
            peer.sendall(
                {
                    "huge": struct.pack(">I", 1 << 31),
                    "far": message(Message.REQUEST, struct.pack(">III", 1 << 30, 0, 1 << 14)),
                    "long": message(Message.REQUEST, struct.pack(">III", 0, 0, 1 << 30)),
                    "odd": message(Message.REQUEST, b"abc"),
                    "metadata": message(Message.EXTENDED, extended) + message(Message.EXTENDED, b"\0xyz"),
                    "hashes": message(Message.HASH_REQUEST, b"abc"),
                }[said]
            )
            kinds = set()
            try:
                while True:
                    got = read_message(stream)
                    kinds.add(got[0] if got else -1)
                    if said == "far" and Message.REJECT in kinds:
                        break
            except Exception as error:
                assert type(error).__name__ == "Goodbye"
            assert Message.PIECE not in kinds
        fetch(magnet(held, server), tmp_path / "again", fetch_options())
