"""A torrent whose files lie here: extents of its payload, and pieces that were held against its hashes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gdist.core.extent import Extent
from gdist.core.payload import Payload
from gdist.errors import InterruptedRun
from gdist.sources.torrent.files import PayloadFiles
from gdist.sources.torrent.hashing import PieceHashes
from gdist.sources.torrent.metadata import Metadata, piece_layers


class TorrentFiles:
    """The content of a .torrent file, and its files at `paths`, in the order of the payload; thread-safe."""

    def __init__(self, torrent: bytes, metadata: Metadata, paths: tuple[Path, ...]):
        self.torrent, self.metadata, self.paths = torrent, metadata, paths
        self._hashes = PieceHashes(metadata)
        self._hashes.add_layers(piece_layers(torrent))
        self._files = PayloadFiles(self.payload, paths)

    @property
    def payload(self) -> Payload:
        """The torrent's files and pieces."""
        return self.metadata.payload

    def absent(self) -> tuple[Path, ...]:
        """Files of the torrent that are missing here, or of another length."""
        files = zip(self.paths, self.payload.files, strict=True)
        return tuple(path for path, file in files if file.length and size_of_file(path) != file.length)

    def read(self, extent: Extent, out: memoryview) -> bool:
        """Fills `out` with an extent, unchecked; False where a file is missing or too short."""
        return self._files.read(extent, out)

    def knows(self, piece: int) -> bool:
        """True when the piece can be checked."""
        return self._hashes.knows(piece)

    def matches(self, piece: int, data: memoryview) -> bool:
        """True when these are the piece's bytes."""
        return self._hashes.knows(piece) and self._hashes.matches(piece, data)

    def piece(self, piece: int, out: memoryview | None = None) -> memoryview | None:
        """A piece, when it is here and its hash is right; in the first bytes of `out`."""
        extent = self.payload.extent_of(piece)
        view = memoryview(bytearray(extent.length)) if out is None else out[: extent.length]
        return view if self.read(extent, view) and self.matches(piece, view) else None


def wrong_pieces(
    right: Callable[[int], bool],
    pieces: int,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    stop: threading.Event | None = None,
) -> list[int]:
    """Those of so many pieces that are not `right`, asked on several threads; `progress` gets how many were.

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
            for piece, fine in enumerate(pool.map(check, range(pieces))):
                if not fine:
                    wrong.append(piece)
                progress(piece + 1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return wrong


def size_of_file(path: Path) -> int:
    """Bytes of a plain file; -1 where there is none, or it cannot be seen."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1
