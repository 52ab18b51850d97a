"""A discrete-event model of how `gdist cluster fetch` moves a checkpoint into a cluster.

    outside ══ WAN, shared ══▶ gateway: link in ─ hash ─▶ held ─ link out ═══▶ any host: link in ─ place
                                  ▲                        │                        ▲
                                  └────── leases ──── coordinator ─── who has it ───┘

A gateway brings in one leased piece after the other at its fair share of the WAN (`line`); what it gets
leased is in `leases`. A verified piece is known to the others a round of the coordinator later. A host that
needs it takes the bytes that it needs from one that holds it, in loading order, a few pieces at once; who
needs nearly all takes it whole, and hashes it. `holdings` says who gives it. Links, cores, interpreter and
disk are queues (`hosts`).

Up to `Setting.sample` hosts are followed one by one. Of more, some are, and each *stands for* several that
need the same: whenever it takes a slice, they take as many bytes of any piece that they might be at, since
hosts do not keep step. What hosts that are not followed bring in, hash and serve is spread over those that
stand for them; links out are those of every single host. Against following all of 256 hosts, following 64
gave times within 1 % where one resource binds, and within 15 % where links out are nearly full.

Not in the model: the start of processes, metadata and headers, peers outside that are slow or gone, retries,
and switches: the LAN has no bottleneck but the hosts' links.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from gdist.core.leases import LOST_SECONDS
from gdist.core.simulation.holdings import Holdings
from gdist.core.simulation.hosts import ASKED, HAS, UNKNOWN, Host, follow
from gdist.core.simulation.leases import POLL_SECONDS, LeaseBook
from gdist.core.simulation.line import FairLine
from gdist.core.simulation.model import GB, TELL_SECONDS, Demand, Setting, least_time
from gdist.core.simulation.outcome import HostTime, Outcome
from gdist.core.simulation.usage import Cluster, Resource, Usage
from gdist.core.taking import WHOLE_SHARE, Patience

MOST_UNVERIFIED = 4  # pieces that came in to a host and wait for their hash, until the next one may come
SPANS, SPANS_SHOWN = 128, 16  # how finely usage is counted, of the least time; how many spans are told
LEAST_SPAN = 1e-3  # seconds: waiting may outlast by far the least time of a few bytes
OUT_OF_STEP = 1024  # pieces that hosts are apart: enough to keep links busy, few enough to end together

_Event = tuple[float, int, Any, Any]  # time, serial number; Any: a method and its arguments


def simulate(demand: Demand, setting: Setting) -> Outcome:
    """Runs the model until every host that lives has all it needs; the same arguments, the same outcome."""
    assert demand.hosts == setting.hosts, f"{demand.hosts} of {setting.hosts} hosts"
    return _Run(demand, setting).run()


class _Run:
    """One run of the model. Events are methods and their arguments, in the order of their times."""

    def __init__(self, demand: Demand, setting: Setting):
        self._demand, self._setting = demand, setting
        self._bound = least_time(demand, setting)
        self._usage = Usage(max(self._bound.seconds / SPANS, LEAST_SPAN))
        self._chance = random.Random(setting.seed).random
        self._events: list[_Event] = []
        self._serial, self._now = 0, 0.0
        self._round = setting.round_seconds
        self._news = TELL_SECONDS + self._round + 2 * setting.latency  # until others know what a host has
        self._hosts = follow(demand, setting, self._usage)
        self._stands = {member: host for host in self._hosts for member in host.members}
        self._missing = sum(host.missing > 0 for host in self._hosts)
        self._strays = {piece for piece in range(len(demand.nbytes)) if self._is_stray(piece)}
        self._line, self._line_within = FairLine(setting.wan), setting.wan_within
        self._book = LeaseBook(demand.nbytes, setting.outside, lambda h, p: self._stands[h].needs[p])
        self._bringing: dict[int, tuple[int, float]] = {}  # by gateway: the piece, and since when
        self._unverified: dict[int, set[int]] = {host: set() for host in setting.outside}
        self._heard = dict.fromkeys(setting.outside, -self._round)  # when the coordinator last answered it
        slow = dict(setting.slow)
        self._shares = [slow.get(host, 1.0) for host in range(setting.hosts)]
        self._line_out = [0.0] * setting.hosts
        self._out_meters = [self._usage.meter(Resource.LINK_OUT, host) for host in range(setting.hosts)]
        self._dead: set[int] = set()
        self._holdings = Holdings(demand, setting, self._hosts, self._chance)
        self._patience, self._told = (
            Patience(),
            dict[int, float](),
        )  # when pieces were known, their homes to come
        self._lan = 0.0

    def run(self) -> Outcome:
        """Runs to the end."""
        for host, when in self._setting.fails:
            self._at(when, self._fail, host)
        for host in self._setting.outside:
            self._bring(host)
        self._at(POLL_SECONDS, self._poll)
        while self._missing or self._strays:
            coming = self._line.next()
            while (self._missing or self._strays) and (coming is None or self._events[0][0] <= coming[0]):
                self._now, _, act, arguments = heapq.heappop(self._events)
                serial = self._line.changes
                act(*arguments)
                if self._line.changes != serial:
                    coming = self._line.next()
            if (self._missing or self._strays) and coming is not None:
                self._now = coming[0]
                self._brought(coming[1])
        self._carry()
        return self._outcome()

    def _is_stray(self, piece: int) -> bool:
        """True for a piece that only hosts need which were put into the group of others."""
        return not self._demand.exact and not any(group.needs[piece] for group in self._demand.groups)

    def _at(self, when: float, act: Callable[..., object], *arguments: object) -> None:
        self._serial += 1
        event: _Event = (when, self._serial, act, arguments)
        heapq.heappush(self._events, event)

    # --- into the cluster -------------------------------------------------------------------------------

    def _carry(self) -> None:
        """Moves the WAN's clock on to now; before anything on it changes."""
        before = self._line.now
        carried = self._line.advance(self._now)
        if carried:
            self._usage.meter(Resource.WAN).add(before, self._now, carried / self._line_within)

    def _bring(self, host: int) -> None:
        """A gateway brings in its next piece, if it has one to bring."""
        if host in self._bringing or host in self._dead or len(self._unverified[host]) >= MOST_UNVERIFIED:
            return
        if self._now - self._heard[host] >= self._round * (1 - 1e-9):
            self._heard[host] = self._now
            self._book.grant(host, self._now)
        piece = self._book.first(host)
        if piece is None:
            if self._book.free:
                self._at(self._heard[host] + self._round, self._bring, host)
            return
        self._carry()
        setting = self._setting
        cap = min(setting.costs.most_received, min(setting.host_wan, setting.lan) * self._shares[host])
        self._line.start(host, self._demand.nbytes[piece], cap)
        self._bringing[host] = piece, self._now

    def _brought(self, host: int) -> None:
        """The last byte of a piece came."""
        piece, since = self._bringing.pop(host)
        self._carry()
        self._line.stop(host)
        nbytes = self._demand.nbytes[piece]
        self._book.done(host, piece, nbytes / max(self._now - since, 1e-9))
        self._unverified[host].add(piece)
        verified = self._stands[host].bring_in(since, self._now, nbytes)
        self._at(verified, self._verified, host, piece)
        self._bring(host)

    def _verified(self, host: int, piece: int) -> None:
        """A piece is right: its host holds it, and the coordinator will tell."""
        if host in self._dead:
            return
        self._unverified[host].remove(piece)
        self._hold(host, piece)
        own = self._stands[host]
        if piece in self._strays:  # some host like this one needs it, and is not followed
            self._strays.remove(piece)
            self._holdings.satisfied(piece, 1)
            own.stop = max(own.stop, self._now)
        if own.number == host and own.needs[piece] and own.state[piece] == UNKNOWN:
            self._may_take(own, piece)
            if len(own.members) > 1:  # the others that it stands for take it from it
                moved, takers = self._moved(own, piece), len(own.members) - 1
                self._at(self._now + self._news, self._send, host, moved, takers)
        self._bring(host)

    # --- between hosts ----------------------------------------------------------------------------------

    def _hold(self, host: int, piece: int) -> None:
        self._holdings.hold(piece, host)
        self._at(self._now + self._news, self._tell, piece)

    def _tell(self, piece: int) -> None:
        """Everyone who needs a piece hears that it can be had; who hears it first is up to chance."""
        first = int(self._chance() * len(self._hosts))
        relays, passed, patience = False, False, self._patience.seconds
        for host in (*self._hosts[first:], *self._hosts[:first]):
            if not host.needs[piece] or host.state[piece] != UNKNOWN or host.dead:
                continue
            home = self._holdings.home(piece, host)
            if home is None or home == host.number or home in self._holdings.sources[piece]:
                self._may_take(host, piece)
                passed = passed or home not in (None, host.number)
            else:
                relays = relays or self._stands[home].number != home
                self._told.setdefault(piece, self._now)
                self._at(self._now + patience, self._lose_patience, host, piece)
        if passed and piece in self._told:
            self._patience.add(self._now - self._told.pop(piece))
        if relays:
            self._pass_on(piece)

    def _lose_patience(self, host: Host, piece: int) -> None:
        """A host has waited for a piece's home: for longer than is usual by now, or it waits on."""
        until = self._told.get(piece, 0.0) + self._patience.seconds
        if until > self._now:
            self._at(until, self._lose_patience, host, piece)
        else:
            self._may_take(host, piece)

    def _pass_on(self, piece: int) -> None:
        """A piece's home, which is not followed itself, takes it and holds it for others."""
        stand = next(host for host in self._hosts if host.takes_whole)
        home = self._holdings.home(piece, stand)
        source = self._choose(stand, piece)
        if home is None or source is None or home in self._dead:
            return
        nbytes = self._demand.nbytes[piece]
        began, ended = self._send(source, nbytes, 1)
        passed = self._stands[home].pass_on(began, ended, nbytes)
        self._at(passed, self._hold, home, piece)

    def _may_take(self, host: Host, piece: int) -> None:
        if host.state[piece] == UNKNOWN and not host.dead:
            host.state[piece] = ASKED
            self._queue(host, piece)

    def _queue(self, host: Host, piece: int) -> None:
        """A host is to take a piece: in loading order, but first those that it is to pass on."""
        passes_on = self._holdings.home(piece, host) == host.number
        heapq.heappush(host.asked, (not passes_on, piece))
        self._ask(host)

    def _ask(self, host: Host) -> None:
        """A host takes the next pieces, as many as it handles at once."""
        while host.asked and host.open < self._setting.pulls and not host.dead:
            _, piece = heapq.heappop(host.asked)
            if host.number in self._holdings.sources[piece]:
                host.open += 1
                placed = host.place(self._now, host.needs[piece])
                self._at(placed, self._placed, host, piece, self._now)
                continue
            source = self._choose(host, piece)
            if source is None:
                host.state[piece] = UNKNOWN  # until it is brought in again
                continue
            host.open += 1
            began, ended = self._send(source, self._moved(host, piece), 1)
            self._at(ended, self._arrived, host, piece, source, began, self._now)
            if len(host.members) > 1:
                self._ask_alike(host, piece)

    def _ask_alike(self, host: Host, piece: int) -> None:
        """The hosts that this one stands for take as many bytes, of any piece that it might ask for."""
        takers = len(host.members) - 1
        for one in self._holdings.sources[piece]:  # members that have it already
            takers -= one != host.number and self._stands[one] is host
        number = int(self._chance() * OUT_OF_STEP)
        other = host.asked[number][1] if number < len(host.asked) else piece
        source = self._choose(host, other)
        if source is not None and takers:
            self._send(source, self._moved(host, piece), takers)

    def _choose(self, host: Host, piece: int) -> int | None:
        return self._holdings.choose(piece, host, self._dead)

    def _moved(self, host: Host, piece: int) -> int:
        """Bytes of a piece that cross the wire to a host that needs some of it."""
        nbytes, size = host.needs[piece], self._demand.nbytes[piece]
        return size if nbytes >= WHOLE_SHARE * size else nbytes

    def _send(self, source: int, nbytes: int, takers: int) -> tuple[float, float]:
        """A host sends bytes to each of so many; when those to the first of them begin and end."""
        setting, server = self._setting, self._stands[source]
        seconds = nbytes / (setting.lan * self._shares[source])
        start = max(self._now + setting.latency, self._line_out[source])
        self._line_out[source] = stop = start + seconds * takers
        self._lan += nbytes * takers
        if seconds:
            self._out_meters[source].add(start, stop, seconds * takers)
        served = server.compute(self._now, start, setting.costs.serve * nbytes / GB, takers * server.each)
        ended = max(start + seconds, served)
        return ended - seconds, ended

    def _arrived(self, host: Host, piece: int, source: int, began: float, asked: float) -> None:
        """The last byte of a slice was sent."""
        if source in self._dead:
            host.open -= 1
            self._queue(host, piece)
            return
        moved = self._moved(host, piece)
        whole = moved == self._demand.nbytes[piece]
        placed = host.take(began, self._now, moved, host.needs[piece], whole=whole)
        self._at(placed, self._placed, host, piece, asked)

    def _placed(self, host: Host, piece: int, asked: float) -> None:
        """A host has what it needs of a piece in its shards."""
        if host.dead:
            return
        host.workers.add(asked, self._now, (self._now - asked) / self._setting.pulls)
        host.state[piece] = HAS
        host.open -= 1
        host.missing -= 1
        if piece < self._demand.first:
            host.first_missing -= 1
            host.first = self._now
        if not host.missing:
            host.stop = self._now
            self._missing -= 1
        if self._holdings.home(piece, host) == host.number:
            self._hold(host.number, piece)
        self._holdings.satisfied(piece, len(host.members))
        self._ask(host)

    # --- what goes wrong --------------------------------------------------------------------------------

    def _fail(self, number: int) -> None:
        """A host is gone, with all it holds; the others notice later."""
        host = self._stands[number]
        self._dead.add(number)
        self._holdings.fail(number)
        host.dead = True
        self._missing -= host.missing > 0
        if number in self._bringing:
            del self._bringing[number]
            self._carry()
            self._line.stop(number)
        self._at(self._now + LOST_SECONDS, self._lost, number)

    def _lost(self, number: int) -> None:
        """The coordinator gives a host up: what it had leased, and what it alone had, is free again."""
        self._book.gone(number)
        for piece in (*self._unverified.get(number, ()), *self._holdings.lose(self._stands[number])):
            self._book.again(piece)

    def _poll(self) -> None:
        """Gateways without work ask for some, and take over what takes others much longer."""
        idle = [
            host for host in self._setting.outside if host not in self._bringing and host not in self._dead
        ]
        for host in idle:
            self._bring(host)
        idle = [host for host in idle if host not in self._bringing]
        if idle:
            for host in self._bringing:  # a slow line is not to look like any other
                self._book.hear(host, self._line.rate_of(host))
            for victim, host, piece in self._book.steal(idle, self._now):
                if self._bringing.get(victim, (None,))[0] == piece:
                    del self._bringing[victim]
                    self._carry()
                    self._line.stop(victim)
                    self._bring(victim)
                self._bring(host)
        self._at(self._now + POLL_SECONDS, self._poll)

    def _outcome(self) -> Outcome:
        few = self._setting.gateways if len(self._setting.outside) < self._setting.hosts else None
        stands_for = {host.number: len(host.members) for host in self._hosts}
        told = self._setting.answers_seconds / self._round if self._setting.round is None else 0.0
        cluster = Cluster(stands_for, few or (), told)
        living = sorted((host for host in self._hosts if not host.dead), key=lambda host: host.stop)
        return Outcome(
            bound=self._bound,
            hosts=tuple(HostTime(h.number, len(h.members), h.first, h.stop) for h in living),
            union=self._demand.union,
            wan=self._line.carried,
            lan=self._lan,
            held_most=self._holdings.most,
            spans=self._usage.spans(self._now, cluster, SPANS_SHOWN) if self._now else (),
            lost=len(self._dead),
        )
