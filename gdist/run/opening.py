"""How a fetch comes to its pieces: what it asks of a source, and the usual way to open one.

A fetch on its own opens a torrent. The hosts of a cluster open one together (`gdist.run.cluster`), and go on
giving pieces to each other when one of them has all it needs: so opening is a context.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gdist.core.extent import Extent
from gdist.core.magnet import InfoHash, Magnet
from gdist.core.payload import Payload
from gdist.core.placer import Placement
from gdist.core.plan import HostPlan
from gdist.errors import CorruptError, RequestError
from gdist.events import Observer, Stage
from gdist.run.catalogue import Catalogue, read_catalogue
from gdist.run.destination import Destination
from gdist.run.headers import HeaderSource
from gdist.run.options import FetchOptions
from gdist.run.resolve import Resolved
from gdist.run.timing import Timing
from gdist.sinks.local import write_atomically
from gdist.sources.torrent import TorrentOptions, TorrentSource, TransferStats


class PieceSource(Protocol):
    """Verified pieces of a torrent, as `gdist.sources.torrent.TorrentSource` gives them."""

    @property
    def info_hash(self) -> InfoHash:
        """The torrent's identity."""

    @property
    def name(self) -> str:
        """The torrent's own name."""

    @property
    def payload(self) -> Payload:
        """The torrent's files and pieces."""

    @property
    def torrent_file(self) -> bytes:
        """The content of a .torrent file."""

    @property
    def readers(self) -> int:
        """How many threads make sense that read pieces."""

    @property
    def had(self) -> frozenset[int]:
        """Pieces that were here when the source was opened."""

    def path_of(self, file: int) -> Path:
        """Where file `file` of the payload lies."""

    def expect(self, plan: HostPlan) -> None:
        """Says what the pieces are for, before any is wanted."""

    def limit_backlog(self, nbytes: int) -> None:
        """Bounds what was given out and is not released."""

    def want(self, ordered: Sequence[int], *, urgent: Collection[int] = ()) -> None:
        """Replaces what is wanted."""

    def verified(self, timeout: float) -> tuple[int, ...]:
        """Pieces that can be read, each once; waits for one."""

    def wake(self) -> None:
        """Ends such a wait; from any thread."""

    def read_piece(
        self, piece: int, buffer: memoryview, placements: Sequence[Placement], extents: Sequence[Extent]
    ) -> memoryview:
        """Bytes of a piece, at least those of `placements` and `extents`; from any thread."""

    def halt(self) -> None:
        """Ends what is being read, however slow it comes, with an error; nothing is read after it."""

    def release(self, piece: int) -> None:
        """The piece is not read again; from any thread."""

    def sync(self) -> None:
        """Returns once what is kept of the payload is on the disk; from any thread."""

    def stats(self) -> TransferStats:
        """Where the transfer stands."""

    def check_alive(self) -> None:
        """Raises when there is no hope any more."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known when a source is opened; `kept` are pieces that an earlier run left in the payload."""

    resolved: Resolved
    dest: Destination
    options: FetchOptions
    torrent: TorrentOptions
    spec: Magnet | bytes  # the torrent itself where an earlier run left it
    kept: frozenset[int]
    observe: Observer
    timing: Timing
    tick: Callable[[], None]
    enter: Callable[[Stage], None]  # tells that a stage begins

    @property
    def keep(self) -> bool:
        """True when the payload is kept."""
        return self.options.payload == "keep"

    @property
    def payload(self) -> Path:
        """Where the torrent's files go."""
        return self.dest.payload if self.keep else self.dest.work / "payload"

    @property
    def torrent_path(self) -> Path:
        """Where the .torrent of this run is, for the next."""
        return self.dest.work / "source.torrent"

    @property
    def headers_path(self) -> Path:
        """Where what the headers said is, for the next run."""
        return self.dest.work / "headers.json"

    def open_torrent(self, source: TorrentSource, pieces: Collection[int]) -> None:
        """Joins the swarm, with `pieces` in place."""
        self.enter(Stage.METADATA)
        with self.timing.measure("metadata"):
            source.open(self.payload, pieces, look=True)
        _check_memory(self.options.memory, source.payload.piece_length)
        write_atomically(self.torrent_path, source.torrent_file)

    def catalogue(self, source: HeaderSource) -> Catalogue:
        """What the torrent holds."""
        self.enter(Stage.HEADERS)
        with self.timing.measure("headers"):
            return read_catalogue(
                source,
                self.resolved.manifest,
                profile=self.options.profile,
                ignore=self.options.ignore,
                cache=self.headers_path,
                tick=self.tick,
            )


Opener = Callable[[Opening], AbstractContextManager[tuple[PieceSource, Catalogue]]]


@contextmanager
def open_alone(opening: Opening) -> Iterator[tuple[PieceSource, Catalogue]]:
    """The torrent itself, for this host alone."""
    if not opening.keep:
        shutil.rmtree(opening.payload, ignore_errors=True)  # pieces half way here say nothing any more
    source = TorrentSource(opening.spec, opening.torrent, opening.observe, tick=opening.tick)
    try:
        opening.open_torrent(source, opening.kept)
        if not opening.resolved.info_hash.names(source.info_hash):
            asked, found = opening.resolved.info_hash, source.info_hash
            raise CorruptError(
                f"the torrent that came is {found.v1_hex} {found.v2_hex}, not {asked.v1_hex} {asked.v2_hex}",
                hint="the magnet or the manifest names another torrent",
            )
        yield source, opening.catalogue(source)
    finally:
        source.close()


def _check_memory(memory: int, piece_length: int) -> None:
    """That one piece, and its parts while a column is cut out, are within what may be held."""
    if memory < 2 * piece_length:
        raise RequestError(
            f"memory of {memory:,} bytes is too little for pieces of {piece_length:,}",
            hint=f"give --memory {2 * piece_length // 2**20 + 1}MiB or more",
        )
