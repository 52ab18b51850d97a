"""Who brings in which piece from outside, and who has it inside: what a cluster's coordinator knows.

Pieces are counted by their place in loading order, so that the lowest bit of a set (`core.piece_set`) is the
piece that is wanted first. Of every host four sets are known:

    needs    pieces it still has to place when it enrols
    got      those of them that it has placed since
    held     pieces it has, verified, and gives to others
    leased   pieces that it alone is to bring in from outside

A piece that somebody needs, nobody holds and nobody is bringing in is free. A host that may use the outside
(a gateway) gets leases of free pieces, in order, as many as it brings in within a few seconds: so hosts are
balanced by what their lines really carry, and a host that dies, stalls or becomes slow costs only what it had
leased. One that has brought in more than it can soon give to the others leaves free pieces to those that have
less to give: else all would wait for its line in the end. A held piece is spent, and its disk can be given
back, once everyone who needs it has got it; hosts that did not enrol yet may need anything.

All of it can be told anew by the hosts themselves: a coordinator that starts again, or another one, knows
the same after one message of each. Pure: times are arguments, in seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gdist.core.piece_set import PieceSet, first, members, set_of

LEASE_SECONDS = 3.0  # of its line that a host has leased in advance: libtorrent asks peers as far ahead
LEAST_LEASE_BYTES = 2 << 20  # until a host's rate is known, and so that a slow one is not idle between polls
LEAST_LEASE_PIECES = 2
LOST_SECONDS = 8.0  # without a word from a host: its leases and what it holds are not counted on any more
STALL_SECONDS = 15.0  # leases of a host that brings nothing in for so long are given to others
STEAL_SECONDS = 3.0  # a lease is taken over when it would last so much longer than with the idle host
SETTLE_SECONDS = 3.0  # after the first host enrolled, until all are there: who returns tells what he has
RATE_DECAY = 0.9  # a report: a line is as fast as it was lately at its best
BRIEF_SECONDS = 0.5  # the same while headers are read: few would have pieces of them
REVIEW_SECONDS = 0.5  # between two looks at all hosts: an answer must not cost more the more there are
MOST_LOAD = 1.1  # of the mean: who has more to give than that waits with the next pieces from outside
LEAST_HELP = 0.5  # of its line: less from all other hosts is no reason to wait
LOOKAHEAD = 64  # free pieces among which a host gets those that it needs itself


@dataclass(slots=True)
class _Host:
    boot: str
    gateway: bool
    needs: PieceSet
    got: PieceSet = 0
    held: PieceSet = 0
    unable: PieceSet = 0  # given back to the disk while somebody may still need them
    leased: dict[int, float] = field(default_factory=dict)  # piece -> since when
    rate: float = 0.0
    seen: float = 0.0
    progress: float = 0.0
    done: bool = False
    leaving: bool = False

    @property
    def open(self) -> PieceSet:
        return self.needs & ~self.got


class _Tally:
    """How many hosts each piece is counted for, and the set of those with any: kept, not summed anew."""

    def __init__(self, pieces: int):
        self._counts = [0] * pieces
        self.some: PieceSet = 0

    def count(self, piece: int) -> int:
        return self._counts[piece]

    def add(self, pieces: PieceSet) -> None:
        for piece in members(pieces):
            self._counts[piece] += 1
        self.some |= pieces

    def remove(self, pieces: PieceSet) -> None:
        gone = []
        for piece in members(pieces):
            self._counts[piece] -= 1
            if not self._counts[piece]:
                gone.append(piece)
        self.some &= ~set_of(gone)


@dataclass(frozen=True, slots=True)
class Change:
    """That a host has a piece since, or has it no longer."""

    piece: int
    host: int
    held: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host is told: `changes` since the `version` it knew (all there is, when `fresh`).

    `lease` is all it is to bring in, `spent` what it holds and nobody needs, `spare` what it holds and only
    hosts that are not here may need. `wanted` is true while somebody may come for what it holds.
    """

    version: int
    fresh: bool
    changes: tuple[Change, ...]
    lease: PieceSet
    spent: PieceSet
    spare: PieceSet
    wanted: bool


class Leases:
    """The state of one job's pieces; see the module's text.

    `nbytes` are the pieces' sizes in loading order, `count` is how many hosts the job has. While what the
    torrent holds is still being found out (`final` false) nothing is ever spent.
    """

    def __init__(self, nbytes: Sequence[int], count: int, *, final: bool = True):
        self._nbytes, self._count, self._final = nbytes, count, final
        self._largest = max(nbytes, default=1)
        self._hosts: dict[int, _Host] = {}
        self._finished: set[int] = set()  # had all they need before they went
        self._log: list[Change] = []
        self._began = math.inf
        self.brought = 0  # bytes that were reported as held for the first time: what came in, each piece once
        self._ever: PieceSet = 0
        self.union: PieceSet = 0  # pieces that some host needs, or had
        self.union_nbytes = 0
        self._open, self._inside = _Tally(len(nbytes)), _Tally(len(nbytes))
        self._leased: PieceSet = 0
        self._lessees: dict[int, int] = {}  # of leased pieces
        self._loads: dict[int, int] = {}  # bytes that gateways have to give, at the last review
        self._reviewed = -math.inf

    # --- what hosts say -------------------------------------------------------------------------------

    def enrol(
        self,
        index: int,
        boot: str,
        *,
        gateway: bool,
        needs: PieceSet,
        held: PieceSet,
        now: float,
        had: PieceSet = 0,
        leased: PieceSet = 0,
        done: bool = False,
    ) -> None:
        """A host is here, or tells all anew: `needs` is what it has not placed yet.

        `had` is what it got or held before, in the same run: it counts as needed, and as brought in.
        `leased` is what another coordinator had it bring in: half of it may be here.
        """
        before = self._hosts.get(index)
        self._finished.discard(index)
        host = _Host(boot, gateway, needs, seen=now, progress=now, done=done)
        if before:
            host.held = before.held
            self._open.remove(before.open)
            if before.boot == boot:
                host.leased, host.rate, host.unable = before.leased, before.rate, before.unable
            else:
                self._free(before)
        self._hosts[index] = host
        self._reviewed = -math.inf
        self._open.add(needs)
        self._began = min(self._began, now)
        self.union_nbytes += self.nbytes_of((needs | held | had) & ~self.union)
        self.union |= needs | held | had
        self._bring(had)
        self._drop(index, host.held & ~held)
        self._hold(index, held, now)
        if gateway:
            for piece in members(leased & ~self._inside.some & ~self._leased):
                self._lease(piece, index, now)

    def report(
        self,
        index: int,
        *,
        held: PieceSet = 0,
        dropped: PieceSet = 0,
        got: PieceSet = 0,
        rate: float = 0.0,
        done: bool = False,
        now: float,
    ) -> None:
        """What changed at a host since it spoke last; telling it twice does no harm."""
        host = self._hosts[index]
        self._hold(index, held, now)
        self._drop(index, dropped)
        self._open.remove(host.open & got)
        host.got |= got
        host.unable |= dropped & ~held
        host.seen, host.done = now, done or host.done
        if rate:
            host.progress = now
        if host.leased or rate > host.rate:  # an idle host's line is not slow
            host.rate = max(rate, host.rate * RATE_DECAY)

    def leave(self, index: int) -> None:
        """A host will go: it gets no more leases, and what it holds should be taken over soon."""
        host = self._hosts[index]
        host.leaving = True
        self._reviewed = -math.inf
        self._free(host)

    def remove(self, index: int) -> None:
        """A host is gone, and what it held with it."""
        host = self._hosts.get(index)
        if host:
            self._drop(index, host.held)
            self._free(host)
            self._open.remove(host.open)
            del self._hosts[index]
            self._reviewed = -math.inf
            if host.done:
                self._finished.add(index)

    def deny(self, index: int, pieces: PieceSet) -> None:
        """Somebody asked a host for pieces that it was said to hold, and it has them not."""
        if index in self._hosts:
            self._drop(index, pieces)

    def finish(self, index: int) -> None:
        """A host has all it needs since an earlier run, and will not enrol."""
        if index not in self._hosts:
            self._finished.add(index)

    def expire(self, now: float) -> tuple[int, ...]:
        """Removes hosts that were not heard of; which."""
        lost = tuple(i for i, host in self._hosts.items() if now - host.seen > LOST_SECONDS)
        for index in lost:
            self.remove(index)
        return lost

    def knows(self, index: int, boot: str) -> bool:
        """True for a host that enrolled and has not been given up since."""
        host = self._hosts.get(index)
        return host is not None and host.boot == boot

    def _hold(self, index: int, pieces: PieceSet, now: float) -> None:
        host = self._hosts[index]
        new = pieces & ~host.held
        if not new:
            return
        host.progress = now
        host.held |= new
        self._inside.add(new)
        self._log += (Change(piece, index, True) for piece in members(new))
        self._bring(new)
        for piece in members(new & self._leased):
            del self._hosts[self._lessees.pop(piece)].leased[piece]
        self._leased &= ~new

    def _bring(self, pieces: PieceSet) -> None:
        self.brought += self.nbytes_of(pieces & ~self._ever)
        self._ever |= pieces

    def _drop(self, index: int, pieces: PieceSet) -> None:
        host = self._hosts[index]
        gone = pieces & host.held
        host.held &= ~gone
        self._inside.remove(gone)
        self._log += (Change(piece, index, False) for piece in members(gone))

    def _free(self, host: _Host) -> None:
        """Gives a host's leases to whoever asks."""
        self._take_back(host, set_of(host.leased))

    def _take_back(self, host: _Host, pieces: PieceSet) -> None:
        self._leased &= ~pieces
        for piece in members(pieces):
            del self._lessees[piece], host.leased[piece]

    # --- what hosts are told --------------------------------------------------------------------------

    def answer(self, index: int, version: int | None, now: float) -> Answer:
        """What a host should know; `version` is that of the last answer it got, None for none."""
        host = self._hosts[index]
        if host.gateway and not host.leaving:
            self._grant(index, now)
        fresh = version is None or not 0 <= version <= len(self._log)
        changes = self._holders() if fresh else itertools.islice(self._log, version, None)
        needs, absent = host.open, self.absent > 0
        unused = host.held & ~self._open.some
        return Answer(
            version=len(self._log),
            fresh=fresh,
            changes=tuple(c for c in changes if c.host != index and (not c.held or needs >> c.piece & 1)),
            lease=set_of(host.leased),
            spent=unused if self._final and not absent else 0,
            spare=unused if self._final and absent else 0,
            wanted=bool(host.held & self._open.some) or absent,
        )

    def _holders(self) -> Iterator[Change]:
        for index, host in self._hosts.items():
            yield from (Change(piece, index, True) for piece in members(host.held))

    @property
    def inside(self) -> PieceSet:
        """Pieces that somebody holds."""
        return self._inside.some

    @property
    def spent(self) -> PieceSet:
        """Pieces that came in, and that nobody needs any more."""
        return self._ever & ~self._inside.some & ~self._open.some

    @property
    def absent(self) -> int:
        """How many hosts of the job have yet to come, or to come again."""
        return self._count - len(self._hosts) - len(self._finished)

    def done(self) -> bool:
        """True when every host of the job has all it needs."""
        return not self.absent and all(host.done for host in self._hosts.values())

    def nbytes_of(self, pieces: PieceSet) -> int:
        """Bytes of some pieces."""
        return sum(self._nbytes[piece] for piece in members(pieces))

    # --- leases ---------------------------------------------------------------------------------------

    def _grant(self, index: int, now: float) -> None:
        """Fills a host's leases up; takes over from others what would take them much longer."""
        host = self._hosts[index]
        if self.absent and now - self._began < (SETTLE_SECONDS if self._final else BRIEF_SECONDS):
            return
        if now - self._reviewed > REVIEW_SECONDS:
            self._review(index, now)
        self._take_back(host, set_of(host.leased) & ~self._open.some)  # told anew, and not needed any more
        if self._laden(index):
            return
        free = self._open.some & ~self._inside.some & ~self._leased & ~self._unable(index)
        room = self._room(host, free)
        while free and room > 0:
            piece = _choose(free, host.needs)
            free &= ~(1 << piece)
            self._lease(piece, index, now)
            room -= self._nbytes[piece]
        if not host.leased and not free:
            self._steal(index, now)

    def _lease(self, piece: int, index: int, now: float) -> None:
        self._hosts[index].leased[piece] = now
        self._lessees[piece] = index
        self._leased |= 1 << piece

    def _review(self, index: int, now: float) -> None:
        """Counts what gateways have to give, and takes leases from those whose lines bring nothing."""
        self._reviewed, needed = now, self._open.some
        self._loads = {
            number: sum(self._open.count(p) * self._nbytes[p] for p in members(host.held & needed))
            for number, host in self._hosts.items()
            if host.gateway and not host.leaving
        }
        for number, other in self._hosts.items():
            stuck = other.leased and now - max(other.progress, min(other.leased.values())) > STALL_SECONDS
            if number != index and stuck:
                self._free(other)
                other.progress = now  # it may try again, with others' help

    def _laden(self, index: int) -> bool:
        """True for a host that has much more to give than others, whose lines can bring in what it leaves."""
        load, rate = self._loads.get(index, 0), self._hosts[index].rate
        # As much as its leases bring is on its way to the others all the time.
        least = max(rate * LEASE_SECONDS, LEAST_LEASE_BYTES) * (len(self._hosts) - 1)
        if load <= least or load * len(self._loads) <= MOST_LOAD * sum(self._loads.values()):
            return False
        return sum(self._hosts[number].rate for number in self._loads) - rate >= rate * LEAST_HELP

    def _unable(self, index: int) -> PieceSet:
        """Pieces that a host had and gave back, as far as another gateway can bring them in."""
        if not self._hosts[index].unable:
            return 0
        others = 0
        for number, host in self._hosts.items():
            if number != index and host.gateway and not host.leaving:
                others |= ~host.unable
        return self._hosts[index].unable & others

    def _room(self, host: _Host, free: PieceSet) -> int:
        """Bytes that a host should be given now."""
        wish = max(host.rate * LEASE_SECONDS, LEAST_LEASE_BYTES, LEAST_LEASE_PIECES * self._largest)
        # Towards the end everyone gets less, so that all end together; but each at least a piece.
        fair = self._largest * -(-free.bit_count() // (2 * max(len(self._loads), 1)))
        return int(min(wish, fair)) - sum(self._nbytes[piece] for piece in host.leased)

    def _steal(self, index: int, now: float) -> None:
        """One piece from the host that would bring its last one in much later than this one could."""
        host = self._hosts[index]
        best = host.rate or max(other.rate for other in self._hosts.values())
        own = self._largest / max(best, 1.0)
        worst, last = STEAL_SECONDS + own, None
        unable = self._unable(index)
        for other in self._hosts.values():
            candidates = [
                p for p, since in other.leased.items() if now - since > STEAL_SECONDS and not unable >> p & 1
            ]
            if not candidates:
                continue
            left = sum(self._nbytes[piece] for piece in other.leased) / max(other.rate, 1.0)
            if left > worst:
                worst, last = left, (other, max(candidates))
        if last:
            other, piece = last
            del other.leased[piece]
            self._lease(piece, index, now)


def _choose(free: PieceSet, needs: PieceSet) -> int:
    """The next free piece, or one soon after it that the host needs itself."""
    start = first(free)
    near = free & ((1 << (start + LOOKAHEAD)) - 1) & needs
    return first(near) if near else start
