"""Who brings in which piece, as the coordinator of a cluster decides it, for a simulation of many hosts.

The rules are those of `gdist.core.leases`, which a running cluster goes by: a gateway gets leases of free
pieces in loading order, as many as it brings in within a few seconds, those it needs itself before others
near by; towards the end everyone gets less; a host without work takes over what would take another much
longer. Here they are kept for thousands of hosts that come in turn: no sets, and no hosts that come and go.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heapreplace

from gdist.core.leases import (
    LEASE_SECONDS,
    LEAST_LEASE_BYTES,
    LEAST_LEASE_PIECES,
    LOOKAHEAD,
    RATE_DECAY,
    STEAL_SECONDS,
)

POLL_SECONDS = 1.0  # how often a host without work asks


class LeaseBook:
    """Free and leased pieces, by their places in loading order; `needs` says what a host needs of a piece."""

    def __init__(self, nbytes: Sequence[int], gateways: Iterable[int], needs: Callable[[int, int], int]):
        self._nbytes, self._needs = nbytes, needs
        self._largest = max(nbytes, default=1)
        self._free = list(range(len(nbytes)))
        self._leased: dict[int, dict[int, float]] = {host: {} for host in gateways}  # piece -> since when
        self._bytes: dict[int, int] = dict.fromkeys(self._leased, 0)
        self._rates: dict[int, float] = dict.fromkeys(self._leased, 0.0)

    @property
    def free(self) -> bool:
        """True while there are pieces that nobody has leased."""
        return bool(self._free)

    def first(self, host: int) -> int | None:
        """What a host is to bring in next, if anything."""
        return min(self._leased.get(host, ()), default=None)

    def done(self, host: int, piece: int, rate: float) -> None:
        """A host brought a piece in, at so many bytes a second."""
        self._take(host, piece)
        self.hear(host, rate)

    def hear(self, host: int, rate: float) -> None:
        """A host says how many bytes a second come in."""
        self._rates[host] = max(rate, self._rates[host] * RATE_DECAY)

    def gone(self, host: int) -> None:
        """A host gets no more leases, and those it has are free."""
        for piece in self._leased.pop(host, {}):
            insort(self._free, piece)

    def again(self, piece: int) -> None:
        """A piece has to come in once more."""
        insort(self._free, piece)

    def grant(self, host: int, now: float) -> None:
        """Fills a host's leases up."""
        own = self._leased.get(host)
        if own is None:
            return
        room = self._room(host)
        while self._free and room > 0:
            piece = self._choose(host)
            own[piece] = now
            self._bytes[host] += self._nbytes[piece]
            room -= self._nbytes[piece]

    def steal(self, idle: Iterable[int], now: float) -> list[tuple[int, int, int]]:
        """Hosts without work take over what takes others much longer: `(from, to, piece)` each."""
        moved = []
        best = max(self._rates.values(), default=0.0)
        queue = [(-self._left(victim, now), victim) for victim in self._leased]
        heapify(queue)
        for host in idle:
            if host not in self._leased or self._leased[host]:
                continue
            limit = STEAL_SECONDS + self._largest / max(self._rates[host] or best, 1.0)
            if -queue[0][0] <= limit:
                break  # the others have no reason to, either
            victim = queue[0][1]
            piece = max(p for p, since in self._leased[victim].items() if now - since > STEAL_SECONDS)
            self._take(victim, piece)
            self._leased[host][piece] = now
            self._bytes[host] += self._nbytes[piece]
            moved.append((victim, host, piece))
            heapreplace(queue, (-self._left(victim, now), victim))
        return moved

    def _left(self, host: int, now: float) -> float:
        """Seconds until a host has all it leased, where something of it may be taken over."""
        if not any(now - since > STEAL_SECONDS for since in self._leased[host].values()):
            return 0.0
        return self._bytes[host] / max(self._rates[host], 1.0)

    def _take(self, host: int, piece: int) -> None:
        del self._leased[host][piece]
        self._bytes[host] -= self._nbytes[piece]

    def _room(self, host: int) -> float:
        least = max(LEAST_LEASE_BYTES, LEAST_LEASE_PIECES * self._largest)
        wish = max(self._rates[host] * LEASE_SECONDS, least)
        fair = self._largest * -(-len(self._free) // (2 * len(self._leased)))
        return min(wish, fair) - self._bytes[host]

    def _choose(self, host: int) -> int:
        free, needs = self._free, self._needs
        end = free[0] + LOOKAHEAD
        for index, piece in enumerate(free):
            if piece >= end:
                break
            if needs(host, piece):
                return free.pop(index)
        return free.pop(0)
