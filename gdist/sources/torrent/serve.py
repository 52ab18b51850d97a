"""Serving a torrent whose files are not here as such: pieces are rebuilt as they are asked for, and checked.

    trackers, DHT  ◀── Announcer (libtorrent, without a disk)
    peers          ◀─▶ PieceServer: one thread a connection ──▶ piece(n): rebuilt, hashed, kept for a while

A peer of ours that only serves: it speaks the plain protocol over TCP, has every piece, unchokes everyone,
and asks for nothing. A piece whose hash is wrong, or that cannot be read, is never sent.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Self, cast

from gdist.errors import GdistError, RequestError
from gdist.sources.torrent.announce import Announcer
from gdist.sources.torrent.metadata import load_torrent, piece_layers, read_metadata
from gdist.sources.torrent.options import TorrentOptions, TransferStats
from gdist.sources.torrent.peer_wire import (
    UT_METADATA,
    Goodbye,
    HashTrees,
    Message,
    all_pieces,
    block_head,
    decode,
    extension_greeting,
    greeting,
    message,
    metadata_answer,
    parse_request,
    read_greeting,
    read_message,
)

_log = logging.getLogger(__name__)

CACHE_BYTES = 128 * 2**20  # rebuilt pieces kept for the next blocks of them; at least one a connection
MOST_PEERS = 200
SILENCE_SECONDS = 150.0  # peers speak every two minutes, or have gone
_RATE_SECONDS = 5.0  # over which the rate that is shown is taken
_BACKLOG = 64

ReadPiece = Callable[[int], "memoryview | None"]


class PieceServer:
    """Serves the torrent while it is entered; `port` is where. `read` gives a piece, checked, or None.

    Several threads call `read` at once, each for another piece.
    """

    def __init__(self, torrent: bytes, read: ReadPiece, options: TorrentOptions | None = None):
        self._torrent, self._read = torrent, read
        self._options = options or TorrentOptions()
        self._metadata = read_metadata(load_torrent(torrent))
        self._trees = HashTrees(piece_layers(torrent), self._metadata.payload.piece_length)
        hashes = self._metadata.info_hash
        names = (hashes.v1, hashes.v2[:20] if hashes.v2 else None)
        self._names = frozenset(name for name in names if name)
        self._peer_id = b"-GD0100-" + secrets.token_bytes(12)
        self._sockets: list[socket.socket] = []
        self._peers: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._pieces = _Pieces(read, max(CACHE_BYTES // self._metadata.payload.piece_length, 4))
        self._meter = _Meter(self._options.upload_rate)
        self._announcer: Announcer | None = None
        self._stopped = threading.Event()
        self.port = 0

    def __enter__(self) -> Self:
        try:
            self._listen()
            if self._options.outside:
                self._announcer = Announcer(self._torrent, self._options, self.port)
        except BaseException:
            self._close()
            raise
        for listening in self._sockets:
            threading.Thread(target=self._accept, args=(listening,), name="gdist-serve", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._stopped.set()
        with self._lock:
            open_now = [*self._sockets, *self._peers]
        for one in open_now:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
            one.close()
        if self._announcer is not None:
            self._announcer.close()

    def stats(self) -> TransferStats:
        """What has been served."""
        with self._lock:
            peers = len(self._peers)
        return TransferStats(
            upload_rate=self._meter.rate(), uploaded=self._meter.total, peers=peers, state="serving"
        )

    def _listen(self) -> None:
        """Listens at each address of the options; where no port is named, at the same one for all.

        Raises:
            RequestError: at none of them.
        """
        reason = ""
        for address in self._options.listen.split(","):
            host, _, port = address.strip().rpartition(":")
            host = host.strip("[]")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                listening = socket.socket(family, socket.SOCK_STREAM)
                try:
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    listening.bind((host, int(port) or self.port))
                    listening.listen(_BACKLOG)
                except BaseException:
                    listening.close()
                    raise
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                continue
            self._sockets.append(listening)
            self.port = self.port or listening.getsockname()[1]
        if not self._sockets:
            raise RequestError(
                f"cannot listen at {self._options.listen}: {reason}", hint="choose another address or port"
            )

    def _accept(self, listening: socket.socket) -> None:
        while not self._stopped.is_set():
            try:
                connection, address = listening.accept()
            except OSError:
                return  # closed
            with self._lock:
                full = len(self._peers) >= MOST_PEERS
                if not full:
                    self._peers.add(connection)
            if full:
                connection.close()
                continue
            threading.Thread(
                target=self._talk, args=(connection, str(address)), name="gdist-peer", daemon=True
            ).start()

    def _talk(self, connection: socket.socket, address: str) -> None:
        try:
            connection.settimeout(SILENCE_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb") as stream:
                self._serve(connection, cast(BinaryIO, stream))
        except (Goodbye, OSError) as error:
            _log.debug("peer %s: %s", address, error)
        finally:
            with self._lock:
                self._peers.discard(connection)
            connection.close()

    def _serve(self, connection: socket.socket, stream: BinaryIO) -> None:
        theirs = read_greeting(stream)
        if theirs.info_hash not in self._names:
            raise Goodbye("asks for another torrent")
        v2 = bool(self._metadata.info_hash.v2)
        start = [greeting(theirs.info_hash, self._peer_id, v2=v2)]
        start.append(all_pieces(self._metadata.payload.pieces, fast=theirs.fast))
        if theirs.extended:
            start.append(extension_greeting(self._metadata, self.port))
        connection.sendall(b"".join(start))
        metadata_number = 0
        while not self._stopped.is_set():
            said = read_message(stream)
            match said:
                case None:
                    continue
                case (Message.INTERESTED, _):
                    connection.sendall(message(Message.UNCHOKE))
                case (Message.REQUEST, content):
                    self._answer(connection, content, fast=theirs.fast)
                case (Message.EXTENDED, content) if content[:1] == b"\0":
                    number = decode(content[1:]).get(b"m", {})
                    found = number.get(b"ut_metadata", 0) if isinstance(number, dict) else 0
                    metadata_number = found if isinstance(found, int) else 0
                case (Message.EXTENDED, content) if content[:1] == bytes([UT_METADATA]):
                    reply = metadata_answer(self._metadata, decode(content[1:]), metadata_number)
                    if reply:
                        connection.sendall(reply)
                case (Message.HASH_REQUEST, content):
                    connection.sendall(self._trees.answer(content))
                case _:
                    pass  # what it has, that it wants nothing now, extensions we did not offer

    def _answer(self, connection: socket.socket, content: bytes, *, fast: bool) -> None:
        piece, begin, length = parse_request(content)
        payload = self._metadata.payload
        whole = payload.extent_of(piece).length if piece < payload.pieces else 0
        data = self._pieces.get(piece) if begin + length <= whole else None
        if data is None:
            if fast:
                connection.sendall(message(Message.REJECT, content))
                return
            raise Goodbye(f"piece {piece} cannot be given")
        self._meter.wait(length, self._stopped)
        connection.sendall(block_head(piece, begin, length) + bytes(data[begin : begin + length]))
        self._meter.count(length)


@dataclass(slots=True)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    data: memoryview | None = None
    done: bool = False


class _Pieces:
    """Pieces that were rebuilt, the last ones used; each is made once, whoever asks for it meanwhile."""

    def __init__(self, read: ReadPiece, most: int):
        self._read, self._most = read, most
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def get(self, piece: int) -> memoryview | None:
        """A piece, or None when it cannot be given."""
        with self._lock:
            entry = self._entries.get(piece)
            if entry is None:
                entry = self._entries[piece] = _Entry()
                while len(self._entries) > self._most:
                    self._entries.popitem(last=False)
            self._entries.move_to_end(piece)
        with entry.lock:
            if not entry.done:
                with contextlib.suppress(GdistError):  # what cannot be read is not served
                    entry.data = self._read(piece)
                entry.done = True
        if entry.data is None:
            _log.warning("piece %s cannot be rebuilt: it is not served", piece)
            with self._lock:
                self._entries.pop(piece, None)  # it may have been mended when it is asked for again
        return entry.data


class _Meter:
    """Counts what goes out, and holds it to a rate; 0 is no limit."""

    def __init__(self, limit: int):
        self._limit, self._lock = limit, threading.Lock()
        self._free_at = time.monotonic()
        self._marks: list[tuple[float, int]] = []
        self.total = 0

    def wait(self, nbytes: int, stopped: threading.Event) -> None:
        """Returns when so many bytes may go."""
        if not self._limit:
            return
        with self._lock:
            now = time.monotonic()
            start = max(self._free_at, now)
            self._free_at = start + nbytes / self._limit
        stopped.wait(max(start - now, 0))

    def count(self, nbytes: int) -> None:
        """So many have gone."""
        now = time.monotonic()
        with self._lock:
            self.total += nbytes
            if not self._marks or now - self._marks[-1][0] > _RATE_SECONDS / 10:
                self._marks.append((now, self.total))
                del self._marks[: max(len(self._marks) - 11, 0)]

    def rate(self) -> int:
        """Bytes a second, of late."""
        now = time.monotonic()
        with self._lock:
            recent = [mark for mark in self._marks if now - mark[0] <= _RATE_SECONDS]
            if not recent:
                return 0
            return int((self.total - recent[0][1]) / max(now - recent[0][0], 0.1))
