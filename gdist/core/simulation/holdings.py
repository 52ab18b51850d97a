"""Who holds which piece in a simulated cluster, and for how many others.

Where few hosts may use the outside and others need whole pieces, each piece has a *home* among the others, by
its number: the home takes it first and passes it on, and all others wait for that, within reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gdist.core.simulation.hosts import HAS, Host
from gdist.core.simulation.model import Demand, Setting


class Holdings:
    """Pieces and their holders; `most` are the most bytes that one host held for others at once."""

    def __init__(self, demand: Demand, setting: Setting, hosts: Sequence[Host], chance: Callable[[], float]):
        self._nbytes, self._hosts, self._chance = demand.nbytes, hosts, chance
        self.sources: list[list[int]] = [[] for _ in demand.nbytes]
        self._wanting = [0] * len(demand.nbytes)
        for host in hosts:
            for piece, nbytes in enumerate(host.needs):
                self._wanting[piece] += len(host.members) if nbytes else 0
        if not demand.exact:  # what no followed host needs, another does
            self._wanting = [wanting or 1 for wanting in self._wanting]
        self._held = [0] * setting.hosts
        self.most = 0
        few, outside = 2 * len(setting.outside) <= setting.hosts, set(setting.outside)
        self._homes = [host for host in range(setting.hosts) if few and host not in outside]

    def hold(self, piece: int, host: int) -> None:
        """A host has a piece, and holds it until all have what they need of it."""
        if host not in self.sources[piece]:
            self.sources[piece].append(host)
            self._held[host] += self._nbytes[piece]
            self.most = max(self.most, self._held[host])

    def home(self, piece: int, host: Host) -> int | None:
        """Who passes a piece on to a host; None where those do that brought it in."""
        return self._homes[piece % len(self._homes)] if self._homes and host.takes_whole else None

    def choose(self, piece: int, host: Host, dead: set[int]) -> int | None:
        """Who gives a piece to a host: its home, or else one that has it."""
        found = [source for source in self.sources[piece] if source not in dead]
        if len(found) < 2:
            return found[0] if found else None
        home = self.home(piece, host)
        return home if home in found else found[int(self._chance() * len(found))]

    def satisfied(self, piece: int, hosts: int) -> None:
        """So many hosts have what they need of a piece; once all have, it is given back to the disk."""
        self._wanting[piece] -= hosts
        if not self._wanting[piece]:
            for source in self.sources[piece]:
                self._held[source] -= self._nbytes[piece]

    def fail(self, host: int) -> None:
        """A host is nobody's home any more."""
        if host in self._homes:
            self._homes.remove(host)

    def lose(self, host: Host) -> Iterator[int]:
        """A host is given up, with what it held; pieces that nobody else has, and somebody still needs."""
        for piece, sources in enumerate(self.sources):
            if host.needs[piece] and host.state[piece] != HAS:
                self.satisfied(piece, 1)
            if host.number in sources:
                sources.remove(host.number)
                if not sources and self._wanting[piece]:
                    yield piece
