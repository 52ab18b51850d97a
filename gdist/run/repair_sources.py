"""Where a repair takes pieces from: other stores, copies of the payload's files, and at last the swarm.

Whatever a source gives is checked by the torrent's hash before it is used: nothing here is trusted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gdist.core.extent import Extent
from gdist.core.magnet import parse_magnet
from gdist.errors import GdistError, RequestError
from gdist.events import Event, Observer
from gdist.kvstore import local_path
from gdist.run.rebuild import Rebuilder
from gdist.run.verify import Fault, VerifyReport
from gdist.sources.torrent import TorrentOptions, TorrentSource
from gdist.sources.torrent.files import PayloadFiles
from gdist.sources.torrent.metadata import Metadata
from gdist.stores import Address, files_of

_WAIT_SECONDS = 0.25
SWARM = "the swarm"


@dataclass(frozen=True, slots=True)
class PieceTaken(Event):
    """A piece that was needed is here: its number, its bytes, and where it came from."""

    piece: int
    nbytes: int
    origin: str


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair found, what it mended, what it fetched from where, and what it could not mend.

    `fetched` are pieces by where they came from; those that the store rebuilt itself are not among them.
    """

    store: str
    verified: VerifyReport
    mended: tuple[str, ...] = ()
    fetched: tuple[tuple[str, tuple[int, ...]], ...] = ()
    nbytes: int = 0
    left: tuple[Fault, ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing is damaged any more."""
        return not self.left


class Copy(Protocol):
    """A place that may have pieces; `name` is for people."""

    name: str

    def read(self, extent: Extent, out: memoryview) -> bool:
        """Fills `out` with an extent of the payload; False when it has not all of it. Unchecked."""
        ...


class FilesCopy:
    """The torrent's files, or some of them, below a directory."""

    def __init__(self, directory: Path, metadata: Metadata):
        self.name = str(directory)
        bases = [directory / "payload", directory]
        if directory.absolute().name == metadata.name:
            bases.append(directory.absolute().parent)
        tried = [tuple(base / path for path in metadata.paths) for base in bases]
        inside = tuple(directory / file.path for file in metadata.payload.files)
        paths = max((inside, *tried), key=lambda paths: sum(path.is_file() for path in paths))
        self.found = sum(path.is_file() for path in paths)
        self._files = PayloadFiles(metadata.payload, paths)

    def read(self, extent: Extent, out: memoryview) -> bool:
        """The extent, as the files have it."""
        return self._files.read(extent, out)


class StoreCopy:
    """Another store of the same torrent, whatever its mesh."""

    def __init__(self, address: Address, rebuilder: Rebuilder):
        self.name, self._rebuilder = os.fspath(address), rebuilder

    def read(self, extent: Extent, out: memoryview) -> bool:
        """The extent, rebuilt from that store."""
        return not self._rebuilder.read(extent, out)


def open_copy(address: Address, metadata: Metadata) -> Copy:
    """A copy at an address: a store, or a directory with the torrent's files.

    Raises:
        RequestError: when it is neither, or of another torrent.
    """
    root = local_path(address)
    if files_of(address).manifests():
        try:
            rebuilder = Rebuilder(address)
        except RequestError:
            if root is None:
                raise
        else:
            if rebuilder.metadata.info_hash != metadata.info_hash:
                raise RequestError(
                    f"{os.fspath(address)} is of {rebuilder.metadata.info_hash.hex}, not of "
                    f"{metadata.info_hash.hex}",
                    hint="give a store or the files of the same torrent",
                )
            return StoreCopy(address, rebuilder)
    if root is not None and root.is_dir():
        copy = FilesCopy(root, metadata)
        if copy.found:
            return copy
    raise RequestError(
        f"{os.fspath(address)} holds neither a store nor files of {metadata.name!r}",
        hint="give a store of the same torrent, or the directory of a finished download",
    )


def swarm_pieces(
    torrent: bytes,
    magnet: str,
    pieces: Sequence[int],
    options: TorrentOptions,
    work: Path,
    observe: Observer,
    check_stop: Callable[[], None],
) -> Iterator[tuple[int, memoryview]]:
    """Pieces from the torrent's swarm and web seeds as they come, each checked; `work` is emptied at the end.

    Raises:
        StalledError, NoPeersError: nobody brings them.
    """
    known = parse_magnet(magnet)[0] if magnet else None
    if known is not None:
        options = _with_links(options, known.trackers, known.web_seeds, known.peers)
    shutil.rmtree(work, ignore_errors=True)
    source = TorrentSource(torrent, options, observe, tick=check_stop)
    left = set(pieces)
    try:
        source.open(work, ())
        source.want(tuple(pieces))
        while left:
            check_stop()
            for piece in source.verified(_WAIT_SECONDS):
                if piece in left:
                    left.discard(piece)
                    yield piece, source.read_piece(piece)
                source.release(piece)
            source.check_alive()
    finally:
        source.close()
        shutil.rmtree(work, ignore_errors=True)


def _with_links(
    options: TorrentOptions,
    trackers: Sequence[str],
    web_seeds: Sequence[str],
    peers: Sequence[tuple[str, int]],
) -> TorrentOptions:
    return replace(
        options,
        trackers=(*options.trackers, *trackers),
        web_seeds=(*options.web_seeds, *web_seeds),
        peers=(*options.peers, *peers),
        upload=False,  # what is here are a few pieces, for moments
    )


def copied_pieces(
    copies: Sequence[Copy],
    pieces: Sequence[int],
    extent_of: Callable[[int], Extent],
    matches: Callable[[int, memoryview], bool],
) -> Iterator[tuple[int, memoryview, str]]:
    """Those of the pieces that one of the copies has right, with its name."""
    for piece in pieces:
        extent = extent_of(piece)
        view = memoryview(bytearray(extent.length))
        for copy in copies:
            with contextlib.suppress(GdistError):  # a copy that cannot be read does not have it
                if copy.read(extent, view) and matches(piece, view):
                    yield piece, view, copy.name
                    break


class Fetcher:
    """Brings pieces: from copies first, from the swarm what they do not have; counts where from."""

    def __init__(
        self, options: TorrentOptions, swarm: bool, observe: Observer, check_stop: Callable[[], None]
    ):
        self._options, self._swarm = options, swarm
        self._observe, self._check_stop = observe, check_stop
        self.fetched: dict[str, list[int]] = {}
        self.nbytes = 0

    def bring(
        self,
        pieces: Sequence[int],
        copies: Sequence[Copy],
        extent_of: Callable[[int], Extent],
        matches: Callable[[int, memoryview], bool],
        torrent: bytes,
        magnet: str,
        work: Path,
    ) -> Iterator[tuple[int, memoryview]]:
        """The pieces, in any order, each once and checked; without the swarm some may not come."""
        left = set(pieces)
        for piece, data, name in copied_pieces(copies, pieces, extent_of, matches):
            self._check_stop()
            left.discard(piece)
            self._count(piece, data, name)
            yield piece, data
        if left and self._swarm:
            found = swarm_pieces(
                torrent, magnet, sorted(left), self._options, work, self._observe, self._check_stop
            )
            for piece, data in found:
                self._count(piece, data, SWARM)
                yield piece, data

    def _count(self, piece: int, data: memoryview, name: str) -> None:
        self.fetched.setdefault(name, []).append(piece)
        self.nbytes += len(data)
        self._observe(PieceTaken(piece, len(data), name))

    def table(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Pieces by where they came from."""
        return tuple((name, tuple(sorted(pieces))) for name, pieces in self.fetched.items())
