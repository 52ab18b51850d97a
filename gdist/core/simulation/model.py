"""What a simulated cluster is made of: what its hosts need, its links, and what handling a byte costs.

`gdist.core.simulation.run` runs it. All rates are bytes a second, all times seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from gdist.core.bound import Bound, Limit
from gdist.core.taking import AT_ONCE
from gdist.errors import RequestError

GB = 1e9
TELL_SECONDS = 0.02  # what changes at a host within it is told in one message
ROUND_SECONDS, ROUND_SECONDS_PER_HOST = 0.02, 0.0005  # the coordinator answers no host more often
ANSWER_SECONDS, ANSWER_SECONDS_PER_HOST = 0.00015, 0.6e-6  # a poll, measured by benchmarks/cluster/slices.py


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU seconds that a gigabyte costs a host, by what is done with it.

    Measured on the machine of docs/benchmarks.md: a core of an AMD EPYC with SHA instructions. `receive` and
    `place` run in one thread each, however many cores there are: libtorrent's own, and the one that has the
    interpreter's lock.
    """

    receive: float = 0.9  # from outside: a bare leecher costs 1.15 to 1.5, of which 0.45 are hashing
    hash: float = 0.45  # SHA-1 of a piece that came from outside, or whole from another host
    place: float = 0.25  # arithmetic of placements, in Python
    write: float = 0.6  # into the shards 0.3, BLAKE3 of chunks 0.14, files and syncing 0.15
    serve: float = 0.5  # to another host; benchmarks/cluster/slices.py: 0.38 whole, 0.59 cut out of columns
    take: float = 0.6  # from another host, digest checked; 0.46 whole, 0.69 put into columns

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not 0 <= value < math.inf:
                raise RequestError(f"CPU cost {one.name!r} is {value}", hint="seconds a gigabyte, 0 or more")

    @property
    def most_received(self) -> float:
        """Bytes a second that a host can take from outside, whatever its link."""
        return GB / self.receive if self.receive else math.inf

    def changed(self, name: str, seconds: float) -> Costs:
        """The same with another cost of one kind.

        Raises:
            RequestError: when there is no such kind.
        """
        kinds = [one.name for one in fields(self)]
        if name not in kinds:
            raise RequestError(f"CPU cost {name!r} is none of {', '.join(kinds)}")
        return replace(self, **{name: seconds})


@dataclass(frozen=True, slots=True)
class Setting:
    """The cluster: `wan` is shared by the `gateways` (None: all hosts), each of which has `host_wan` at most.

    `lan` is each host's link, in and out, which what comes from outside passes too. `disk` is what a host
    writes. `slow` hosts have that share of both their links. A host of `fails` is gone from then on, with all
    it holds. `latency` is one way between two hosts, `round` the time between two answers of the coordinator
    to one host (None: as gdist's makes them). A host handles `pulls` pieces at once. Up to `sample` hosts are
    followed one by one; of more, each that is stands for several (see `gdist.core.simulation.run`). Chance
    comes from `seed`.
    """

    hosts: int
    wan: float
    lan: float = math.inf
    host_wan: float = math.inf
    disk: float = math.inf
    gateways: tuple[int, ...] | None = None
    cores: float = 16
    costs: Costs = field(default_factory=Costs)
    latency: float = 0.0005
    round: float | None = None
    slow: tuple[tuple[int, float], ...] = ()
    fails: tuple[tuple[int, float], ...] = ()
    pulls: int = AT_ONCE
    sample: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.hosts > 0 and self.pulls > 0 and self.sample > 0 and self.cores > 0, self
        assert min(self.wan, self.lan, self.host_wan, self.disk) > 0, self
        named = {host for host, _ in (*self.slow, *self.fails)} | set(self.gateways or ())
        if any(not 0 <= host < self.hosts for host in named):
            raise RequestError(f"of {self.hosts} hosts there is no number {max(named)}")
        if any(not 0 < share <= 1 for _, share in self.slow):
            raise RequestError("a slow host has a share of its links, more than 0 and at most 1")
        if not self.outside:
            raise RequestError("nobody may use the outside", hint="name gateways, or all")
        if not set(self.outside) - {host for host, _ in self.fails}:
            raise RequestError(
                "every host that may use the outside fails",
                hint="let one of them live, or name more gateways",
            )

    @property
    def answers_seconds(self) -> float:
        """What it takes the coordinator to answer every host once."""
        return self.hosts * (ANSWER_SECONDS + ANSWER_SECONDS_PER_HOST * self.hosts)

    @property
    def round_seconds(self) -> float:
        """Between two answers of the coordinator to one host: as long as it waits, or takes for them all."""
        waits = ROUND_SECONDS + ROUND_SECONDS_PER_HOST * self.hosts
        return max(waits, self.answers_seconds) if self.round is None else self.round

    @property
    def outside(self) -> Sequence[int]:
        """The hosts that may use the outside."""
        return range(self.hosts) if self.gateways is None else self.gateways

    @property
    def wan_within(self) -> float:
        """What can come in: no more than the gateways' own lines carry."""
        slow = dict(self.slow)
        line = min(self.host_wan, self.lan)
        each = (line * slow.get(host, 1.0) for host in self.outside)
        return min(self.wan, sum(each))


@dataclass(frozen=True, slots=True)
class Group:
    """Hosts that need the same: bytes of each piece, by its place in loading order."""

    hosts: tuple[int, ...]
    needs: Sequence[int]

    @property
    def nbytes(self) -> int:
        """Bytes that each of them needs."""
        return sum(self.needs)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a cluster needs: sizes of its pieces in loading order, and who needs how much of each.

    The first `first` pieces hold all that loads first. `exact` is false where some hosts were put into the
    group of others that need nearly the same.
    """

    nbytes: tuple[int, ...]
    groups: tuple[Group, ...]
    first: int
    exact: bool = True

    def __post_init__(self) -> None:
        assert 0 <= self.first <= len(self.nbytes), f"{self.first} of {len(self.nbytes)} pieces"
        for group in self.groups:
            assert len(group.needs) == len(self.nbytes), f"{len(group.needs)} needs"

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return sum(len(group.hosts) for group in self.groups)

    @property
    def union(self) -> int:
        """Bytes of all pieces, each once."""
        return sum(self.nbytes)


def least_time(demand: Demand, setting: Setting) -> Bound:
    """The least time in which hosts that live can have what they need: `lower_bound`, for unequal links."""
    slow, dead = dict(setting.slow), {host for host, _ in setting.fails}
    needed = {host: group.nbytes for group in demand.groups for host in group.hosts if host not in dead}
    links = sum(setting.lan * slow.get(host, 1.0) for host in range(setting.hosts))
    wan = setting.wan_within
    return Bound(
        (
            (Limit.WAN, demand.union / wan),
            (
                Limit.HOST_LINK,
                max((nbytes / (setting.lan * slow.get(h, 1.0)) for h, nbytes in needed.items()), default=0.0),
            ),
            (Limit.ALL_LINKS, sum(needed.values()) / (wan + links)),
        )
    )
