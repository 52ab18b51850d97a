"""Who holds which piece in a simulated cluster, and for how many others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gdist.core.simulation.hosts import HAS, Host
from gdist.core.simulation.model import Demand

SOURCES_TRIED = 2  # of those that took a piece whole: the one with least to send gives it


class Holdings:
    """Pieces and their holders; `most` are the most bytes that one host held for others at once."""

    def __init__(self, demand: Demand, hosts: Sequence[Host], chance: Callable[[], float]):
        self._nbytes, self._hosts, self._chance = demand.nbytes, hosts, chance
        self.sources: list[list[int]] = [[] for _ in demand.nbytes]  # those that brought a piece in
        self._copies: list[list[tuple[float, Host]]] = [[] for _ in demand.nbytes]  # known since, took it
        self._wanting = [0] * len(demand.nbytes)
        for host in hosts:
            for piece, nbytes in enumerate(host.needs):
                self._wanting[piece] += len(host.members) if nbytes else 0
        self._held = [0] * demand.hosts
        self.most = 0

    def hold(self, piece: int, host: int) -> None:
        """A host brought a piece in, and holds it until all have what they need of it."""
        self.sources[piece].append(host)
        self._held[host] += self._nbytes[piece]
        self.most = max(self.most, self._held[host])

    def copy(self, piece: int, host: Host, since: float) -> None:
        """A host took a piece whole, which is known from then on."""
        self._copies[piece].append((since, host))

    def choose(self, piece: int, now: float, dead: set[int], busy: Sequence[float]) -> int | None:
        """Who gives a piece: the least busy of those that brought it in and a few that took it whole."""
        found = [host for host in self.sources[piece] if host not in dead]
        copies, chance = self._copies[piece], self._chance
        for _ in range(min(SOURCES_TRIED, len(copies))):
            since, host = copies[int(chance() * len(copies))]
            if since <= now and not host.dead:
                found.append(host.members[int(chance() * len(host.members))])
        if len(found) < 2:
            return found[0] if found else None
        return min(found, key=busy.__getitem__)

    def satisfied(self, piece: int, hosts: int) -> None:
        """So many hosts have what they need of a piece; once all have, it is given back to the disk."""
        self._wanting[piece] -= hosts
        if not self._wanting[piece]:
            for source in self.sources[piece]:
                self._held[source] -= self._nbytes[piece]

    def lose(self, host: Host) -> Iterator[int]:
        """A host is given up, with what it held; pieces that nobody else has, and somebody still needs."""
        for piece, sources in enumerate(self.sources):
            if host.needs[piece] and host.state[piece] != HAS:
                self.satisfied(piece, 1)
            if host.number in sources:
                sources.remove(host.number)
                copied = any(not other.dead for _, other in self._copies[piece])
                if not sources and not copied and self._wanting[piece]:
                    yield piece
