"""Pieces from outside and from the other hosts, as one source of a fetch.

    leases ──▶ outside (a torrent source that wants just those) ──▶ held, told ──▶ others take parts of it
    news   ──▶ pieces that others hold ──▶ read from them, by the workers that place them

To the coordinator of the fetch it looks like a torrent: pieces become readable, are read once, and are
released. A piece that another host holds is readable as soon as that is known; only the boxes that this host
needs of it cross the wire, with a digest. Where (nearly) all of it is needed it comes whole, and is hashed
against the torrent here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from blake3 import blake3

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.magnet import InfoHash
from gdist.core.payload import Payload
from gdist.core.piece_set import PieceSet, members, set_of
from gdist.core.placer import Placement
from gdist.core.plan import HostPlan
from gdist.core.taking import WHOLE_SHARE
from gdist.errors import CorruptError, PieceLost, StalledError
from gdist.run.cluster.held import Held, write_held
from gdist.run.cluster.link import Link
from gdist.run.cluster.others import Others, Take
from gdist.run.cluster.rendezvous import FINAL_PHASE
from gdist.sources.torrent import TorrentSource, TransferStats

HELD_SECONDS = 0.25  # between two writings of what is held: what a kill may cost of the outside's bytes
READERS = 16  # more than `AT_ONCE`, so that what comes from outside does not wait for other hosts
RATE_SECONDS = 0.25
PATIENCE_SECONDS = 10.0  # that a host nobody needs stays, to see all others done


class ClusterSource:
    """Both kinds of pieces; `order` is the loading order of all pieces, the same on every host."""

    def __init__(
        self,
        outside: TorrentSource,
        link: Link,
        held: Held,
        order: Sequence[int],
        record: Path,
        *,
        phase: int,
        stall_seconds: float,
        hold: int | None,
    ):
        self._outside, self._link, self.held, self._record = outside, link, held, record
        self._order, self._phase = order, phase
        self._place = {piece: place for place, piece in enumerate(order)}
        self._stall_seconds, self._most = stall_seconds, hold
        self._hold = 0
        self._wanted: set[int] = set()
        self._enrolled = False
        self._given: set[int] = set()
        self._others = Others(link, order, self._place, outside.matches, paced=phase == FINAL_PHASE)
        self._lost: set[int] = set()  # pieces that others hold no more: this host may bring them in itself
        self._lease: PieceSet = 0
        self._here: list[int] = []  # wanted and held from the start
        self._recorded: frozenset[int] = frozenset()
        self._written = self._rated = 0.0
        self._progress = self._needed = time.monotonic()
        outside.want(())  # nothing without a lease
        link.on_news = outside.wake

    # --- what a fetch asks of its source --------------------------------------------------------------

    @property
    def info_hash(self) -> InfoHash:
        """The torrent's identity."""
        return self._outside.info_hash

    @property
    def name(self) -> str:
        """The torrent's own name."""
        return self._outside.name

    @property
    def payload(self) -> Payload:
        """The torrent's files and pieces."""
        return self._outside.payload

    @property
    def torrent_file(self) -> bytes:
        """The content of a .torrent file."""
        return self._outside.torrent_file

    @property
    def had(self) -> frozenset[int]:
        """Pieces that were here when the source was opened."""
        return self._outside.had

    @property
    def readers(self) -> int:
        """More than processors: they wait for other hosts."""
        return READERS

    @property
    def gives_parts(self) -> bool:
        """True: parts of what another host holds cross the wire alone."""
        return True

    def path_of(self, file: int) -> Path:
        """Where file `file` of the payload lies."""
        return self._outside.path_of(file)

    def sync(self) -> None:
        """Nothing of the payload is kept for good."""

    def expect(self, plan: HostPlan) -> None:
        """Learns what part of the payload this host needs, and what its disk can spare for others."""
        self._others.takes_whole = plan.amplification * WHOLE_SHARE <= 1.0
        self._hold = self._spare(plan.store_nbytes)

    def lend(self) -> None:
        """Wants nothing: this host is here for the others."""
        self._hold = self._spare(0)
        self._outside.limit_backlog(self._hold)
        self.want(())

    def _spare(self, nbytes: int) -> int:
        """What the disk can spare for others, beside so many bytes."""
        if self._most is not None:
            return self._most
        status = os.statvfs(self._record.parent)
        return max(status.f_bavail * status.f_frsize - nbytes, 0) // 2

    def limit_backlog(self, nbytes: int) -> None:
        """More than a fetch alone lets wait: pieces stay until every host has them."""
        self._hold = max(nbytes, self._hold)
        self._outside.limit_backlog(self._hold)

    def want(self, ordered: Sequence[int], *, urgent: Collection[int] = ()) -> None:
        """Says to the others what this host needs."""
        wanted = {*ordered, *urgent}
        if self._phase != FINAL_PHASE:
            # A reader of headers comes back to pieces it had: who has them has to stay known. And it says
            # again and again what it waits for: to enrol anew would forget what was heard meanwhile.
            wanted |= self._wanted
            if self._enrolled and wanted == self._wanted:
                return
        self._wanted, self._enrolled = wanted, True
        self._here = [piece for piece in self.held.pieces() & self._wanted if piece not in self._given]
        self._here.sort(key=self._place.__getitem__)
        pieces = self.payload
        lengths = [pieces.extent_of(piece).length for piece in self._order]
        enrolment = {"phase": self._phase, "order": _digest(self._order), "nbytes": _runs(lengths)}
        self._link.enrol(enrolment, self._set(self._wanted), self._set(self.held.pieces()))
        self._progress = time.monotonic()

    def verified(self, timeout: float) -> tuple[int, ...]:
        """Pieces that can be read and were not given out before; waits up to `timeout` seconds for one."""
        self._link.check()
        self._follow()
        here, self._here = self._here, []
        self._given.update(here)
        ready = (*here, *self._readable())
        arrived = self._outside.verified(0.0 if ready else timeout)
        if arrived:
            self.held.add(arrived)
            self._link.tell(held=self._set(arrived))
            self._progress = time.monotonic()
        now = self._needed = time.monotonic()  # patience begins when this host has its part
        if now - self._rated > RATE_SECONDS:
            self._rated = now
            self._link.set_rate(self._outside.stats().download_rate)
        if now - self._written > HELD_SECONDS:
            self._write_held()
        own = tuple(p for p in arrived if p in self._wanted and p not in self._given)
        self._given.update(own)
        for piece in own:
            self._others.forget(piece)  # nobody else need give it any more
        return (*own, *(ready or self._readable()))

    def halt(self) -> None:
        """No piece of another host is to be read any more; from any thread."""
        self._others.halt()

    def wake(self) -> None:
        """Ends a wait of `verified` early."""
        self._outside.wake()

    def read_piece(
        self, piece: int, buffer: memoryview, placements: Sequence[Placement], extents: Sequence[Extent]
    ) -> memoryview:
        """The bytes of a piece; of one that another host holds just those in `placements` and `extents`.

        Raises:
            PieceLost: it was readable and is not any more; `verified` gives it out again.
        """
        view = buffer[: self.payload.extent_of(piece).length]
        with self.held.use(piece) as held:
            if held:
                self._others.let_go(piece)
                try:
                    return self.held.read(piece, view) if placements else self.held.load(piece)
                except CorruptError as error:  # what an earlier run left was damaged meanwhile
                    self._lose(piece)
                    raise PieceLost(f"piece {piece} has to come again: {error.message}") from error
        takes = [Take(p.source, p.view, p.take) for p in placements]
        takes += [Take(e, (e.length,), Box((0,), (e.length,))) for e in extents]
        try:
            passed_on = self._others.read(piece, view, takes)
        except PieceLost:
            self._again(piece)
            raise
        finally:
            self._outside.wake()  # another one can be asked for
        if passed_on:
            self.held.relay(piece, view)
            self._link.tell(held=self._set((piece,)))
        return view

    def release(self, piece: int) -> None:
        """All of the piece that this host needs is in its shards; from any thread."""
        self._others.let_go(piece)
        self._link.tell(got=1 << self._place[piece])
        self._progress = time.monotonic()

    def stats(self) -> TransferStats:
        """Where the transfer from outside stands."""
        return self._outside.stats()

    def check_alive(self) -> None:
        """Returns while there is hope.

        Raises:
            NoPeersError, StalledError: nothing arrived for the stall window, neither from outside nor inside.
        """
        self._outside.revive()
        waited = time.monotonic() - self._progress
        if waited < self._stall_seconds:
            return
        self._outside.check_alive()
        with self._link.changed:
            here = [peer.index for peer in self._link.inside.here()]
        raise StalledError(
            f"nothing arrived for {waited:.0f} seconds, from outside or from other hosts "
            f"(hosts {', '.join(map(str, sorted(here))) or 'none'} are here)",
            hint="look at the other hosts with gdist cluster status, or run the same command again",
        )

    def close(self) -> None:
        """Leaves the swarm."""
        self._write_held()
        self._outside.close()

    # --- leases, news, and what is spent --------------------------------------------------------------

    def serve(self) -> bool:
        """One turn of a host that has all it needs; False once nobody wants anything of it any more."""
        self._link.check()
        self._follow()
        arrived = self._outside.verified(0.25)
        if arrived:
            self.held.add(arrived)
            self._link.tell(held=self._set(arrived))
        self._link.set_rate(self._outside.stats().download_rate)
        if time.monotonic() - self._written > HELD_SECONDS:
            self._write_held()
        with self._link.changed:
            inside = self._link.inside
            if inside.done:
                return False
            if inside.wanted or inside.lease or self._link.coordinates:
                self._needed = time.monotonic()
        return time.monotonic() - self._needed < PATIENCE_SECONDS

    def _follow(self) -> None:
        """Does what the coordinator said since."""
        with self._link.changed:
            inside = self._link.inside
            lease, spent, spare = inside.lease, inside.spent, inside.spare
            news, inside.news = inside.news, []
        for place in news:
            piece = self._order[place]
            if piece in self._wanted and piece not in self._given:
                self._others.wait_for(piece)
        if lease != self._lease:
            self._lease = lease
            leased = [self._order[place] for place in members(lease)]
            again = [piece for piece in leased if piece not in self.held]
            self._outside.fetch_again(again)
            self._outside.want(leased)
        if spent:
            self._drop(members(spent))
        beyond = -(-(self.held.nbytes - self._hold) // self.payload.piece_length)
        if spare and beyond > 0:  # those that are loaded last are the last that a late host asks for
            self._drop(list(members(spare))[-beyond:])

    def _drop(self, places: Iterable[int]) -> None:
        pieces = [self._order[place] for place in places]
        self._write_held(without=pieces)
        dropped = self.held.drop(pieces)
        self._link.tell(dropped=self._set(dropped))

    def _lose(self, piece: int) -> None:
        """A piece that was held is not, or is damaged."""
        self.held.drop((piece,))
        self._link.tell(dropped=self._set((piece,)))
        self._given.discard(piece)

    def _write_held(self, without: Collection[int] = ()) -> None:
        """Before pieces go: who reads the file must not take holes for them."""
        pieces = self.held.brought() - set(without)
        if pieces != self._recorded:
            write_held(self._record, pieces)
            self._recorded = pieces
        self._written = time.monotonic()

    def _readable(self) -> tuple[int, ...]:
        """Pieces of others that can be read now, in loading order."""
        # This host may have brought a piece in itself, while it still waited for one that is gone to give it.
        here = [piece for piece in tuple(self._lost) if piece in self.held]
        for piece in here:
            self._others.forget(piece)
        ready = []
        for piece in (*here, *self._others.ready()):
            if piece in self._given:  # it came from outside just when another host had failed to give it
                self._others.let_go(piece)
            else:
                ready.append(piece)
        self._lost.difference_update(here, ready)
        self._given.update(ready)
        return tuple(ready)

    def _again(self, piece: int) -> None:
        """A piece that was given out and could not be read."""
        self._given.discard(piece)
        self._others.wait_for(piece)
        self._lost.add(piece)

    def _set(self, pieces: Collection[int]) -> PieceSet:
        return set_of(self._place[piece] for piece in pieces)


def _digest(order: Sequence[int]) -> str:
    return blake3(np.asarray(order, np.int64).tobytes()).hexdigest()[:32]


def _runs(values: Sequence[int]) -> list[list[int]]:
    """A row of numbers as [number, how many times in a row]."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs
