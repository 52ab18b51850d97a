"""A torrent whose files lie here: extents of its payload, and pieces that were held against its hashes."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gdist.core.extent import Extent
from gdist.core.payload import Payload
from gdist.durable import size_of
from gdist.errors import InterruptedRun
from gdist.sources.torrent.files import PayloadFiles
from gdist.sources.torrent.hashing import PieceHashes
from gdist.sources.torrent.metadata import Metadata, piece_layers


class TorrentPieces(ABC):
    """Pieces of the torrent in the content of a .torrent file, from wherever they are read; thread-safe."""

    def __init__(self, torrent: bytes, metadata: Metadata):
        self.torrent, self.metadata = torrent, metadata
        self._hashes = PieceHashes(metadata)
        self._hashes.add_layers(piece_layers(torrent))
        self._local = threading.local()

    @property
    def payload(self) -> Payload:
        """The torrent's files and pieces."""
        return self.metadata.payload

    @abstractmethod
    def fill(self, extent: Extent, out: memoryview) -> bool:
        """Fills `out` with an extent, unchecked; False where not all of it is here."""

    def knows(self, piece: int) -> bool:
        """True when the piece can be checked."""
        return self._hashes.knows(piece)

    def matches(self, piece: int, data: memoryview) -> bool:
        """True when these are the piece's bytes."""
        return self._hashes.knows(piece) and self._hashes.matches(piece, data)

    def piece(self, piece: int, out: memoryview | None = None) -> memoryview | None:
        """A piece, when all of it is here and its hash is right; in the first bytes of `out`."""
        extent = self.payload.extent_of(piece)
        view = memoryview(bytearray(extent.length)) if out is None else out[: extent.length]
        return view if self.fill(extent, view) and self.matches(piece, view) else None

    def has(self, piece: int) -> bool:
        """True when a piece is here and its hash is right; each thread has a buffer of its own for it."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(bytearray(self.payload.piece_length))
        return self.piece(piece, self._local.buffer) is not None


class TorrentFiles(TorrentPieces):
    """Those of a torrent whose files lie at `paths`, in the order of the payload."""

    def __init__(self, torrent: bytes, metadata: Metadata, paths: tuple[Path, ...]):
        super().__init__(torrent, metadata)
        self.paths = paths
        self._files = PayloadFiles(self.payload, paths)

    def absent(self) -> tuple[Path, ...]:
        """Files of the torrent that are missing here, or of another length."""
        files = zip(self.paths, self.payload.files, strict=True)
        return tuple(path for path, file in files if file.length and size_of(path) != file.length)

    def fill(self, extent: Extent, out: memoryview) -> bool:
        """Fills `out` with an extent, unchecked; False where a file is missing or too short."""
        return self._files.read(extent, out)


def wrong_pieces(
    right: Callable[[int], bool],
    pieces: Sequence[int],
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    stop: threading.Event | None = None,
) -> list[int]:
    """Those of the pieces that are not `right`, asked on several threads; `progress` gets how many were.

    Raises:
        InterruptedRun: `stop` was set.
    """

    def check(piece: int) -> bool:
        if stop is not None and stop.is_set():
            raise InterruptedRun("the check was asked to stop", hint="run the same command again")
        return right(piece)

    wrong = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1, "gdist-hash") as pool:
        try:
            for done, (piece, fine) in enumerate(zip(pieces, pool.map(check, pieces), strict=True), 1):
                if not fine:
                    wrong.append(piece)
                progress(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return wrong
