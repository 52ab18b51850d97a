"""Real little swarms on loopback, for tests: seeders, also slow or wrong ones, a tracker, a web seed.

    with seed(directory) as seeded:
        source = TorrentSource(seeded.magnet, LOOPBACK)

Nothing here leaves 127.0.0.1: no DHT, no local discovery, no port mapping.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from gdist.core.magnet import Magnet
from gdist.sources.torrent import Seeder, TorrentOptions, TransferStats, Version, magnet_of, make_torrent

LOCALHOST = "127.0.0.1"
LOOPBACK = TorrentOptions(
    dht=False, pex=False, listen=f"{LOCALHOST}:0", metadata_timeout_seconds=20, stall_seconds=20
)
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Seeded:
    """A torrent that is being served: its magnet (the seeder as peer), its .torrent content, the port."""

    magnet: Magnet
    torrent: bytes
    port: int
    stats: Callable[[], TransferStats]


@contextmanager
def seed(
    content: Path,
    *,
    version: Version = "v1",
    piece_length: int | None = None,
    torrent: bytes | None = None,
    options: TorrentOptions = LOOPBACK,
    process: bool = False,
) -> Iterator[Seeded]:
    """Serves a file or directory from this process, or from one of its own (`process`; without stats).

    The bytes are not checked: with the `torrent` of other content this is a seeder of wrong bytes.
    """
    torrent = torrent or make_torrent(content, version=version, piece_length=piece_length)
    if process:
        with _seed_process(torrent, content) as port:
            yield Seeded(magnet_of(torrent, ((LOCALHOST, port),)), torrent, port, TransferStats)
        return
    with Seeder(torrent, content.parent, options, check=False) as seeder:
        yield Seeded(magnet_of(torrent, ((LOCALHOST, seeder.port),)), torrent, seeder.port, seeder.stats)


@contextmanager
def bad_seed(
    content: Path, torrent: bytes, *, every: int = 1 << 14, options: TorrentOptions = LOOPBACK
) -> Iterator[Seeded]:
    """Serves a copy of `content` in which one byte of every `every` is flipped, as if it were right."""
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / content.name
        if content.is_dir():
            shutil.copytree(content, copy)
        else:
            shutil.copyfile(content, copy)
        for path in (p for p in (copy, *copy.rglob("*")) if p.is_file()):
            data = bytearray(path.read_bytes())
            for position in range(0, len(data), every):
                data[position] ^= 0xFF
            path.write_bytes(data)
        with seed(copy, torrent=torrent, options=options) as seeded:
            yield seeded


class Slow:
    """A way to a seeder that lets `rate` bytes a second through, and no more than `limit` in all.

    Both may be changed meanwhile; `passed` is how much came through. libtorrent's own limits come in bursts.
    """

    def __init__(self, port: int, rate: float = inf, limit: float = inf) -> None:
        self._seeder, self.rate, self.limit = port, rate, limit
        self.passed = 0
        self._server = socket.create_server((LOCALHOST, 0))
        self.port: int = self._server.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.limit = inf

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection((LOCALHOST, self._seeder))
                for source, target, slow in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._pass_on, args=(source, target, slow), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        due = time.monotonic()
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(1 << 14):
                target.sendall(data)
                if slow:
                    self.passed += len(data)
                    due = max(due, time.monotonic() - 0.1) + len(data) / self.rate
                    time.sleep(max(due - time.monotonic(), 0))
                    while self.passed >= self.limit:
                        time.sleep(0.02)
            target.shutdown(socket.SHUT_RDWR)


class _Server:
    """An HTTP server on a free port of loopback, on a thread of its own while it is entered."""

    def __init__(
        self, handler: Callable[..., BaseHTTPRequestHandler], address: tuple[str, int] = (LOCALHOST, 0)
    ) -> None:
        self._server = ThreadingHTTPServer(address, handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=partial(self._server.serve_forever, 0.05), daemon=True)

    @property
    def _base(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Tracker(_Server):
    """A tracker (BEP 3, compact answers) that forgets nobody; `refuse` makes it answer with that failure."""

    def __init__(self, refuse: str = "", address: tuple[str, int] = (LOCALHOST, 0)) -> None:
        self.announced: dict[bytes, dict[tuple[str, int], None]] = {}
        super().__init__(partial(_TrackerHandler, self.announced, refuse), address)

    @property
    def url(self) -> str:
        """Its announce URL."""
        return f"{self._base}/announce"


class WebSeed(_Server):
    """A web seed (BEP 19) of the files below `directory`: plain HTTP, with byte ranges or without."""

    def __init__(self, directory: Path, *, ranges: bool = True) -> None:
        super().__init__(partial(_FileHandler, directory, ranges))

    @property
    def url(self) -> str:
        """Its URL, to which a torrent's name and paths are appended."""
        return f"{self._base}/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet; requests are no news in a test."""

    def _answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _TrackerHandler(_Handler):
    def __init__(
        self, announced: dict[bytes, dict[tuple[str, int], None]], refuse: str, *args: object
    ) -> None:
        self._announced = announced
        self._refuse = refuse
        super().__init__(*args)  # type: ignore[arg-type]  # what socketserver passes on

    def do_GET(self) -> None:
        """Answers an announce with everybody who announced the same torrent."""
        fields = parse_qs(urlsplit(self.path).query, encoding="latin-1")
        if self._refuse:
            text = self._refuse.encode()
            self._answer(200, b"d14:failure reason%d:%se" % (len(text), text), {})
            return
        if "port" not in fields:  # a scrape: how many there are
            self._answer(404, b"", {})
            return
        info_hash = fields["info_hash"][0].encode("latin-1")
        peers = self._announced.setdefault(info_hash, {})
        peers[(self.client_address[0], int(fields["port"][0]))] = None
        compact = b"".join(
            bytes(map(int, host.split("."))) + port.to_bytes(2, "big") for host, port in tuple(peers)
        )
        self._answer(200, b"d8:intervali60e5:peers%d:%se" % (len(compact), compact), {})


class _FileHandler(_Handler):
    def __init__(self, directory: Path, ranges: bool, *args: object) -> None:
        self._directory = directory
        self._ranges = ranges
        super().__init__(*args)  # type: ignore[arg-type]  # what socketserver passes on

    def do_GET(self) -> None:
        """Answers with a file, or with the one range of it that was asked for."""
        path = self._directory / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            self._answer(404, b"", {})
            return
        size = path.stat().st_size
        unit, _, asked = self.headers.get("Range", "").partition("=")
        if unit != "bytes" or not self._ranges:
            self._answer(200, path.read_bytes(), {})
            return
        first, _, last = asked.partition("-")
        start, stop = int(first), min(int(last or size - 1) + 1, size)
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(stop - start)
        self._answer(206, body, {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})


@contextmanager
def _seed_process(torrent: bytes, content: Path) -> Iterator[int]:
    """A seeder in a process of its own, which ends when its standard input does; gives its port."""
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "seed.torrent"
        path.write_bytes(torrent)
        command = [sys.executable, "-m", __name__, str(path), str(content.parent)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin and process.stdout
            try:
                yield int(process.stdout.readline())
            finally:
                process.stdin.close()


def _serve(torrent: Path, directory: Path) -> None:
    with Seeder(torrent.read_bytes(), directory, replace(LOOPBACK), check=False) as seeder:
        sys.stdout.write(f"{seeder.port}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
