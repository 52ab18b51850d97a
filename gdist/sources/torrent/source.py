"""The torrent as a source of verified pieces.

    open ──▶ want(order) ──▶ verified() ──▶ read_piece() ──▶ release()
    metadata,    priorities      alerts        bytes, hash        disk space
    names checked                              checked by us      given back

The caller's thread (the coordinator) calls everything but `read_piece`, `release`, `wake` and `path_of`,
which are safe from any thread.

A piece that libtorrent announces is verified, but with its cheapest disk back end not always in the file
yet, where a hole reads as zeros. So pieces are given out only once libtorrent says that it wrote them
(see flushed.py). To hash every byte a second time would cost half as much CPU as the whole download, so of
the pieces verified in this run one in `SAMPLE` is hashed again as it is read, chosen at random; the first
mismatch makes every later read checked. Pieces that were there when the source was opened are always
hashed. A mismatch is flushed, tried again, and at last read through libtorrent.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import libtorrent as lt

from gdist.core.magnet import InfoHash, Magnet
from gdist.core.payload import Payload
from gdist.core.plan import HostPlan
from gdist.errors import CorruptError, NoPeersError, StalledError, TransferError
from gdist.events import MetadataReceived, Observer, PieceVerified
from gdist.sources.torrent.files import PayloadFiles
from gdist.sources.torrent.hashing import PieceHashes
from gdist.sources.torrent.join import Links, addresses_of, gather_links, learn_metadata, saved_state, start
from gdist.sources.torrent.metadata import (
    load_torrent,
    piece_layers,
    read_metadata,
    torrent_file,
    written_files,
)
from gdist.sources.torrent.options import TorrentOptions, TransferStats, session_settings
from gdist.sources.torrent.session import Session, record_status
from gdist.sources.torrent.window import Window

# Waits between tries to read a piece from its file, 1.3 seconds in all; most are there at the first or the
# second. From the third on libtorrent is asked to flush.
_RETRY_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.5)
_FLUSH_FROM = 2
MAX_READERS = 4
TRICKLE_BYTES = 64 * 1024  # a second, while the download waits for the conversion
SAMPLE = 16  # one read in so many is hashed again, to notice a back end that breaks its promise
_READ_SECONDS = 60.0  # for libtorrent's own read of a piece, behind a busy disk
REVIVE_SECONDS = 10.0
_FIRST_DEADLINE_MS, _DEADLINE_STEP_MS = 500, 20  # urgent pieces: in their order, requested at once


class TorrentSource:
    """Pieces of one torrent, from a magnet or the content of a .torrent file (`spec`)."""

    def __init__(
        self,
        spec: Magnet | bytes,
        options: TorrentOptions,
        observe: Observer | None = None,
        *,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._spec = spec
        self._options = options
        self._tick = tick
        self._observe: Observer = observe or (lambda event: None)
        self._read_lock = threading.Lock()
        self._session: Session | None = None
        self._had: set[int] = set()
        self._fresh: list[int] = []  # had at open, not yet given out by `verified`
        self._old: frozenset[int] = frozenset()
        self._check_all = False
        self._released = 0
        self._arrived_bytes = 0
        self.downloaded = 0  # bytes that came in; only grows, may be read from any thread
        self._backlog_limit, self._throttled, self._backlog_lock = 0, False, threading.Lock()
        self._urgent: frozenset[int] = frozenset()
        self._failed = 0  # pieces that had failed their hash when it was revived last

    def open(self, directory: Path, have: Iterable[int] | None = (), *, look: bool = False) -> None:
        """Joins the swarm and learns the metadata; wants no piece yet and writes nothing.

        `have` names pieces that are known to be in the files below `directory`: they are neither hashed nor
        fetched, and any other bytes there are taken as missing. None: what lies there is hashed instead,
        as far as hashes are known (of a v2 torrent from a magnet only files of one piece). With `look`,
        pieces of `have` whose files are missing or shorter are fetched again.

        Raises:
            RequestError: it cannot listen where it was told to.
            NoPeersError: no metadata in time; says what trackers and peers answered.
            UnsupportedError: unsafe file names, or metadata larger than gdist reads.
            CorruptError: not a torrent.
        """
        assert self._session is None, "a source is opened once"
        self._directory = directory
        self._session = session = Session(session_settings(self._options))
        if self._options.outside and self._options.listen != TorrentOptions().listen:
            session.check_listening(self._options.listen)  # a choice of somebody's, not the usual
        if isinstance(self._spec, Magnet):
            links = self._gather(self._spec)
            torrent, met = learn_metadata(session, self._spec, links, self._options, self._emit)
            links = replace(links, peers=tuple(dict.fromkeys((*links.peers, *met))))
            params = load_torrent(torrent)
        else:
            torrent, params = self._spec, load_torrent(self._spec)
            links = self._gather(params)
        self._links = links
        self._metadata = read_metadata(params)
        if isinstance(self._spec, Magnet):
            self._check_identity(self._spec.info_hash)
        self._hashes = PieceHashes(self._metadata)
        self._hashes.add_layers(piece_layers(torrent))
        self._files = PayloadFiles(self.payload, tuple(directory / path for path in self._metadata.paths))
        if look and have is not None:
            sizes = self._files.sizes()
            count = self.payload.pieces
            have = [p for p in have if p < count and self._files.reach(self.payload.extent_of(p), sizes)]
        self._numbers = written_files(params)
        self._window = Window(self.payload.piece_length)
        self._handle, had = start(session, params, links, self._options, directory, have, self._emit)
        self._had, self._fresh, self._old = set(had), list(had), frozenset(had)
        self._emit()
        nbytes = sum(file.length for file in self.payload.files)
        self._observe(MetadataReceived(self.info_hash, self.name, nbytes, self.payload.pieces))

    def _gather(self, named: Magnet | lt.add_torrent_params) -> Links:
        links = gather_links(named, self._options)
        with self._open.changed:
            self._open.swarm.tried.update(dict.fromkeys(links.unknown, "name not known"))
        return links

    @property
    def info_hash(self) -> InfoHash:
        """The torrent's full identity."""
        return self._metadata.info_hash

    @property
    def name(self) -> str:
        """The torrent's own name: its root directory, or its only file."""
        return self._metadata.name

    @property
    def payload(self) -> Payload:
        """The torrent's files and pieces."""
        return self._metadata.payload

    @property
    def torrent_file(self) -> bytes:
        """The content of a .torrent file: the one given, or one made of the metadata.

        Of a v2 torrent it has the piece layers that are wholly known by now.
        """
        if isinstance(self._spec, bytes):
            return self._spec
        if self._metadata.info_hash.v2:
            self._learn_hashes()
        links = self._links
        return torrent_file(self._metadata, self._hashes.layers(), links.trackers, links.web_seeds)

    @property
    def readers(self) -> int:
        """As many as there are processors: they only copy."""
        return min(MAX_READERS, os.cpu_count() or 1)

    @property
    def gives_parts(self) -> bool:
        """False: a piece is read whole, to be hashed."""
        return False

    @property
    def had(self) -> frozenset[int]:
        """Pieces that were in the files when the source was opened."""
        return self._old

    @property
    def port(self) -> int:
        """The TCP port that peers can reach us at."""
        with self._open.changed:
            return self._open.swarm.port

    def want(self, ordered: Sequence[int], *, urgent: Collection[int] = ()) -> None:
        """Replaces what is wanted: `urgent` at once, then `ordered` roughly in that order, nothing else.

        Pieces that are had, also those since released, are not fetched again.
        """
        changes = self._window.want(ordered, urgent, self._had)
        deadlines = [piece for piece in urgent if piece not in self._had]
        for piece in self._urgent - set(deadlines) - self._had:
            self._handle.reset_piece_deadline(piece)
        for number, piece in enumerate(deadlines):
            if piece not in self._urgent:
                self._handle.set_piece_deadline(piece, _FIRST_DEADLINE_MS + number * _DEADLINE_STEP_MS)
        self._urgent = frozenset(deadlines)
        if changes:
            self._handle.prioritize_pieces(list(changes))
        with self._open.changed:  # the stall clock starts with the wish
            self._open.swarm.progress_seconds = time.monotonic()

    def connect(self, peers: Iterable[tuple[str, int]]) -> None:
        """Tries more peers, given by host and port; names that cannot be resolved are skipped."""
        for host, port in peers:
            for address in addresses_of(host, port):
                self._handle.connect_peer(address)

    def expect(self, plan: HostPlan) -> None:
        """Nothing: a torrent's pieces are the same whatever they are for."""

    def limit_backlog(self, nbytes: int) -> None:
        """Bounds what waits on disk: while more than `nbytes` are verified and not released, little comes.

        So every piece that `verified` gives out must be released, also one that turns out not to be needed.
        """
        self._backlog_limit = nbytes

    def _throttle(self) -> None:
        """Slows the download down to a trickle while the backlog is too large; a trickle keeps peers."""
        with self._backlog_lock:
            backlog = (self._open.swarm.finished - self._released) * self.payload.piece_length
            if not self._throttled and self._backlog_limit and backlog > self._backlog_limit:
                self._throttled = True
                self._handle.set_download_limit(
                    min(TRICKLE_BYTES, self._options.download_rate or TRICKLE_BYTES)
                )
            elif self._throttled and backlog < self._backlog_limit // 2:
                self._throttled = False
                self._handle.set_download_limit(self._options.download_rate)

    def verified(self, timeout: float) -> tuple[int, ...]:
        """Pieces that can be read and were not given out before; waits up to `timeout` seconds for one.

        The first call gives those that were had at `open` too. Delivers events.

        Raises:
            SpaceError, FilesystemError: libtorrent cannot write.
        """
        fresh, self._fresh = self._fresh, []
        self._open.wait(lambda swarm: swarm.readable or fresh or swarm.woken, timeout)
        with self._open.changed:
            self._open.swarm.woken = False
            readable = tuple(self._open.swarm.readable)
            self._open.swarm.readable.clear()
        arrived = [piece for piece in dict.fromkeys(readable) if piece not in self._had]
        self._had.update(arrived)
        with self._backlog_lock:
            self._released += len(readable) - len(arrived)  # nobody gets these a second time to release them
        self._throttle()
        changes = self._window.finished(arrived)
        if changes:
            self._handle.prioritize_pieces(list(changes))
        self._emit()
        for piece in arrived:
            length = self.payload.extent_of(piece).length
            self._arrived_bytes += length
            self._observe(PieceVerified(piece, length))
        self.downloaded = max(self.downloaded, self._arrived_bytes)
        return (*fresh, *arrived)

    def wake(self) -> None:
        """Ends a wait of `verified` early; from any thread."""
        with self._open.changed:
            self._open.swarm.woken = True
            self._open.changed.notify_all()

    def fetch_again(self, pieces: Iterable[int]) -> None:
        """Makes pieces missing that were had and given back to the disk, so that they can be wanted again."""
        lost = self._had.intersection(pieces)
        if not lost:
            return
        self._had -= lost
        self._old -= lost
        self._window = Window(self.payload.piece_length)
        self._add_anew()  # what libtorrent has, it has for good

    def _add_anew(self) -> None:
        """Gives libtorrent the torrent once more, with what is had, and what is wanted by the window."""
        params = load_torrent(self.torrent_file)
        self._open.remove(self._handle)
        self._handle, _ = start(
            self._open, params, self._links, self._options, self._directory, self._had, self._emit
        )
        self._urgent = frozenset()
        with self._backlog_lock:
            self._throttled = False  # it is added without a limit of ours
        if wanted := self._window.priorities():
            self._handle.prioritize_pieces(list(wanted))

    def matches(self, piece: int, data: memoryview) -> bool:
        """True when these are the piece's bytes, or its hash is not known yet (v2 from a magnet)."""
        return not self._hashes.knows(piece) or self._hashes.matches(piece, data)

    def read_piece(
        self, piece: int, buffer: memoryview | None = None, placements: object = (), extents: object = ()
    ) -> memoryview:
        """The bytes of a verified piece; in the first bytes of `buffer` when one is given.

        All of them: `placements` and `extents` say which are needed, to sources that can give just those.

        Raises:
            CorruptError: neither the file nor libtorrent has bytes with the right hash.
            TransferError: the piece's hash is still to come from a peer (v2 from a magnet, resumed).
        """
        extent = self.payload.extent_of(piece)
        view = memoryview(bytearray(extent.length)) if buffer is None else buffer[: extent.length]
        assert len(view) == extent.length, f"buffer of {len(view)} bytes for a piece of {extent.length}"
        checked = self._check_all or piece in self._old or random.randrange(SAMPLE) == 0
        if not checked and self._files.read(extent, view):
            return view
        for attempt, delay in enumerate((*_RETRY_SECONDS, None)):
            if not self._hashes.knows(piece):
                self._learn_hashes()
            if self._files.read(extent, view) and self._hashes.matches(piece, view):
                return view
            self._check_all = True
            if delay is not None:
                if attempt >= _FLUSH_FROM:
                    self._handle.flush_cache()
                time.sleep(delay)
        data = self._ask_for(piece)
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
        if not self._hashes.knows(piece):  # v2 from a magnet: they come from peers
            raise TransferError(
                f"piece {piece} is here, and its hash is not known yet",
                hint="run the same command again when peers can be reached",
            )
        if not self._hashes.matches(piece, view):
            raise CorruptError(
                f"piece {piece} was verified, but its bytes on disk have another hash",
                hint="check the disk; another program may have written to the payload",
                piece=piece,
            )
        return view

    def halt(self) -> None:
        """Nothing to do: pieces are read from this machine's disk."""

    def release(self, piece: int) -> None:
        """Gives the piece's disk space back where the file system can; its bytes are gone from then on."""
        self._files.release(self.payload.extent_of(piece))
        if piece not in self._old:
            with self._backlog_lock:
                self._released += 1
        self._throttle()

    def sync(self) -> None:
        """Returns once the files' bytes survive a crash of the machine; from any thread."""
        self._files.sync()

    def path_of(self, file: int) -> Path:
        """Where file `file` of the payload lies."""
        return self._directory / self._metadata.paths[file]

    def stats(self) -> TransferStats:
        """Where the transfer stands; the DHT's and the disk's numbers are at most half a second old."""
        status = self._handle.status(0)
        with self._open.changed:
            record_status(self._open.swarm, status)
            stats = self._open.swarm.stats
        # libtorrent adds up once a second, and begins anew with a torrent that is added anew.
        self.downloaded = max(self.downloaded, stats.downloaded)
        return replace(stats, downloaded=self.downloaded)

    def givers(self) -> tuple[bool, bool]:
        """Whether peers, and whether web seeds, that are connected now gave bytes."""
        peers = [peer for peer in self._handle.get_peer_info() if peer.total_download]
        usual = [peer.connection_type == lt.peer_info.standard_bittorrent for peer in peers]
        return True in usual, False in usual

    def revive(self) -> None:
        """Where nothing came for a while since a piece failed its hash, adds the torrent anew.

        Now and then libtorrent takes a block of such a piece for written, and asks nobody for it any more.
        """
        with self._open.changed:
            waited = time.monotonic() - self._open.swarm.progress_seconds
            failed = self._open.swarm.hash_failures
        if self._window.missing and waited > REVIVE_SECONDS and failed > self._failed:
            self._failed = failed
            self._add_anew()

    def check_alive(self) -> None:
        """Returns while there is hope.

        Raises:
            StalledError: pieces are wanted, and nothing useful arrived for `stall_seconds`.
            NoPeersError: likewise, and no peer was ever connected.
        """
        self.revive()
        with self._open.changed:
            swarm = self._open.swarm
            if swarm.error:
                raise swarm.error
            waited = time.monotonic() - swarm.progress_seconds
            if not self._window.missing or waited < self._options.stall_seconds:
                return
            kind = StalledError if swarm.met else NoPeersError
            raise kind(
                f"nothing arrived for {waited:.0f} seconds though {self._window.missing} pieces are wanted "
                f"({swarm.evidence()})",
                hint="check the network, give more trackers or peers, or run the same command later",
            )

    def close(self) -> None:
        """Leaves the swarm; may be called again."""
        if self._session is not None:
            self._session.close()

    @property
    def _open(self) -> Session:
        assert self._session is not None, "the source is not open"
        return self._session

    def _check_identity(self, expected: InfoHash) -> None:
        """Libtorrent checks the hash it asked with; a magnet may name a second one."""
        if not expected.names(self._metadata.info_hash):
            found = self._metadata.info_hash
            raise CorruptError(
                f"the magnet names {expected.v1_hex or '-'} and {expected.v2_hex or '-'}, the metadata is of "
                f"{found.v1_hex or '-'} and {found.v2_hex or '-'}",
                hint="remove one of the hashes from the magnet",
            )

    def _emit(self) -> None:
        """Delivers what the alert thread noted, on the caller's thread; `tick` may raise to stop a wait."""
        self._tick()
        with self._open.changed:
            events = tuple(self._open.swarm.events)
            self._open.swarm.events.clear()
        for event in events:
            self._observe(event)

    def _learn_hashes(self) -> None:
        """Takes over the merkle nodes libtorrent has learned (v2 from a magnet)."""
        with self._read_lock:
            state = saved_state(self._open, self._handle)
        trees = state.get(b"trees", [])
        for file, number in enumerate(self._numbers):
            if number < len(trees):
                self._hashes.add_tree(file, trees[number][b"hashes"], trees[number].get(b"mask", b""))

    def _ask_for(self, piece: int) -> bytes:
        """The piece's bytes from libtorrent: always right, but a copy in memory and more CPU."""
        with self._read_lock:
            with self._open.changed:
                self._open.swarm.reads.pop(piece, None)
            self._handle.read_piece(piece)
            if not self._open.wait(lambda swarm: piece in swarm.reads, _READ_SECONDS):
                raise TransferError(f"piece {piece} was not read back within {_READ_SECONDS:.0f} seconds")
            with self._open.changed:
                answer = self._open.swarm.reads.pop(piece)
        if isinstance(answer, str):
            raise CorruptError(f"piece {piece} cannot be read back: {answer}", piece=piece)
        return answer
