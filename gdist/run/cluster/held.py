"""Pieces that this host has whole, for itself and for others, and what it gives of them.

Most were brought in from outside and lie in the torrent's own files in the work directory. Where few hosts
may use the outside, others keep pieces that came from them and pass them on; those lie in one sparse file
beside. `held.json` there says which pieces were brought in: after a kill they are not fetched again. It is a
hint: a piece that was there at the start is hashed before its first use.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gdist.core.payload import Payload, PayloadFile
from gdist.core.piece_set import from_json, members, set_of, to_json
from gdist.errors import CorruptError, GdistError, Gone, RequestError, translate
from gdist.exchange import Response
from gdist.sinks.local import write_atomically
from gdist.sources.torrent import TorrentSource
from gdist.sources.torrent.files import PayloadFiles

RECENT_BYTES = 64 << 20  # pieces kept in memory: several hosts ask for parts of one at nearly the same time
MOST_TAKES = 4096


class Held:
    """The pieces; thread-safe. `source` has those from outside, `directory` is for what is passed on."""

    def __init__(self, source: TorrentSource, directory: Path):
        self._source, self._payload = source, source.payload
        self._lock = threading.Lock()
        self._outside: set[int] = set()
        self._relayed: set[int] = set()
        self._users: dict[int, int] = {}
        self._leaving: set[int] = set()  # dropped while somebody read them
        self._recent: OrderedDict[int, memoryview] = OrderedDict()
        self._loading: dict[int, threading.Lock] = {}
        self.given = 0  # how many times somebody was given something
        self._relay_path = directory / "relay"
        total = self._payload.length
        line = Payload((PayloadFile("relay", 0, total),), self._payload.piece_length, total)
        self._relay = PayloadFiles(line, (self._relay_path,))

    def __contains__(self, piece: int) -> bool:
        with self._lock:
            return piece in self._outside or piece in self._relayed

    def pieces(self) -> frozenset[int]:
        """All that are held."""
        with self._lock:
            return frozenset(self._outside | self._relayed)

    def brought(self) -> frozenset[int]:
        """Those that were brought in from outside, in no order."""
        with self._lock:
            return frozenset(self._outside)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, a short last piece counted whole."""
        with self._lock:
            return (len(self._outside) + len(self._relayed)) * self._payload.piece_length

    def add(self, pieces: Iterable[int]) -> None:
        """Pieces that were brought in and verified."""
        with self._lock:
            self._outside.update(pieces)

    def relay(self, piece: int, data: memoryview) -> None:
        """Keeps a verified piece that came from another host, to pass it on.

        Raises:
            GdistError: the disk refused.
        """
        extent = self._payload.extent_of(piece)
        try:
            self._relay_path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._relay_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                rest, offset = data, extent.start
                while rest:
                    written = os.pwrite(descriptor, rest, offset)
                    rest, offset = rest[written:], offset + written
            finally:
                os.close(descriptor)
        except OSError as error:
            raise translate(error, f"writing {self._relay_path}") from error
        with self._lock:
            self._relayed.add(piece)

    def drop(self, pieces: Iterable[int]) -> tuple[int, ...]:
        """Gives their disk back, as soon as nobody reads them; those that were held."""
        dropped = []
        with self._lock:
            for piece in pieces:
                if piece in self._outside or piece in self._relayed:
                    dropped.append(piece)
                    self._leaving.add(piece)
                    self._recent.pop(piece, None)
            free = [piece for piece in dropped if not self._users.get(piece)]
        for piece in free:
            self._free(piece)
        return tuple(dropped)

    def _free(self, piece: int) -> None:
        with self._lock:
            outside, relayed = piece in self._outside, piece in self._relayed
            self._outside.discard(piece)
            self._relayed.discard(piece)
            self._leaving.discard(piece)
        if outside:
            self._source.release(piece)
        if relayed:
            self._relay.release(self._payload.extent_of(piece))

    @contextlib.contextmanager
    def use(self, piece: int) -> Iterator[bool]:
        """While it is entered the piece's bytes stay; False when it is not held."""
        with self._lock:
            held = (piece in self._outside or piece in self._relayed) and piece not in self._leaving
            if held:
                self._users[piece] = self._users.get(piece, 0) + 1
        try:
            yield held
        finally:
            if held:
                with self._lock:
                    self._users[piece] -= 1
                    last = not self._users[piece]
                    if last:
                        del self._users[piece]
                    free = last and piece in self._leaving
                if free:
                    self._free(piece)

    def read(self, piece: int, buffer: memoryview | None = None) -> memoryview:
        """The bytes of a held piece, inside `use`.

        Raises:
            CorruptError: what lies there is not the piece.
        """
        with self._lock:
            relayed = piece in self._relayed and piece not in self._outside
        if not relayed:
            return self._source.read_piece(piece, buffer)
        extent = self._payload.extent_of(piece)
        view = memoryview(bytearray(extent.length)) if buffer is None else buffer[: extent.length]
        if not self._relay.read(extent, view):
            raise CorruptError(f"piece {piece} is gone from {self._relay_path}", piece=piece)
        return view

    # --- for others -----------------------------------------------------------------------------------

    def answer(self, body: bytes) -> Response:
        """Parts of a piece, one after the other, or all of it.

        `takes` are boxes of runs of the piece's bytes, as `core.placer.Placement` has them: the run's start
        and its shape as bytes, and the box's start and stop in it.
        """
        try:
            asked = json.loads(body)
            piece = int(asked["piece"])
            takes = [_read_take(take) for take in asked.get("takes", ())]
            if not 0 <= piece < self._payload.pieces or len(takes) > MOST_TAKES:
                raise ValueError(f"piece {piece}, {len(takes)} parts")
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"not a request for a piece: {error}") from error
        with self.use(piece) as held:
            if not held:
                raise Gone(f"piece {piece} is not here")
            try:
                data = self.load(piece)
                parts = [_cut(data, take) for take in takes] if takes else [data]
            except ValueError as error:
                raise RequestError(f"no such part of a piece: {error}") from error
            except CorruptError as error:
                raise Gone(f"piece {piece}: {error.message}") from error
        self.given += 1
        return Response(200, parts)

    def load(self, piece: int) -> memoryview:
        """A piece in memory, inside `use`; read once for all who ask for it at about the same time."""
        with self._lock:
            loading = self._loading.setdefault(piece, threading.Lock())
        with loading:
            with self._lock:
                if piece in self._recent:
                    self._recent.move_to_end(piece)
                    return self._recent[piece]
            data = self.read(piece).toreadonly()
            with self._lock:
                self._recent[piece] = data
                while len(self._recent) > 1 and len(self._recent) * self._payload.piece_length > RECENT_BYTES:
                    self._recent.popitem(last=False)
                self._loading.pop(piece, None)
            return data


def read_held(path: Path) -> frozenset[int]:
    """The pieces that an earlier run left, as far as it wrote them down."""
    try:
        found = from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, GdistError):
        return frozenset()
    return frozenset(members(found))


def write_held(path: Path, pieces: Iterable[int]) -> None:
    """Writes down which pieces are held; a machine that crashes may lose it, a process does not."""
    write_atomically(path, json.dumps(to_json(set_of(pieces))).encode(), sync=False)


_Take = tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _read_take(value: object) -> _Take:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError("a part has a start, a shape and a box")
    start, *shapes = value
    view, low, high = (tuple(map(int, shape)) for shape in shapes)
    inside = all(0 <= a < b <= n for a, b, n in zip(low, high, view, strict=True))
    if not inside or not 0 < len(view) < 32 or int(start) < 0:
        raise ValueError(f"box {low} to {high} of {view} at {start}")
    return int(start), view, low, high


def _cut(data: memoryview, take: _Take) -> memoryview:
    start, view, low, high = take
    nbytes = int(np.prod(view, dtype=np.int64))
    run = np.frombuffer(data, np.uint8, nbytes, start).reshape(view)
    box = run[tuple(map(slice, low, high))]
    return np.ascontiguousarray(box).reshape(-1).data
