"""Hosts of a simulated cluster: what each has to do, in turn, on its link, cores, interpreter and disk.

A resource is a queue that serves what comes in order, without a gap; all that is remembered of it is when
it will have done all it was given. What is to come by the link soon takes its place at the next resource at
once, so that nothing is idle while there is work. Bytes pass from link to link while they are under way, as a
stream does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from gdist.core.simulation.model import GB, Demand, Group, Setting
from gdist.core.simulation.usage import Resource, Usage
from gdist.core.taking import WHOLE_SHARE

UNKNOWN, ASKED, HAS = 0, 1, 2  # what a host knows of a piece


@final
class Host:
    """A host that is followed, and stands for `members`, itself among them, which need the same.

    All members do the same at the same time. What one does alone is spread over all: `each` is its share.
    """

    __slots__ = (
        *("number", "members", "needs", "each", "open", "asked", "state", "dead", "takes_whole"),
        *("missing", "first_missing", "first", "stop"),
        *("_cores", "_costs", "_line_rate", "_disk_rate", "_line", "_cpu", "_python", "_disk"),
        *("_link_in_meter", "_cpu_meter", "_python_meter", "_disk_meter", "_receive_meter", "workers"),
    )

    def __init__(
        self,
        number: int,
        members: tuple[int, ...],
        group: Group,
        demand: Demand,
        setting: Setting,
        usage: Usage,
    ):
        self.number, self.members, self.needs = number, members, group.needs
        self.each = 1 / len(members)
        self.open = 0  # pieces that it takes and places now
        self.asked: list[tuple[bool, int]] = []  # pieces that it may take, as a heap: those to pass on first
        touched = sum(size for size, nbytes in zip(demand.nbytes, group.needs, strict=True) if nbytes)
        self.takes_whole = touched * WHOLE_SHARE <= group.nbytes
        self.state = bytearray(len(group.needs))
        self.missing = sum(map(bool, group.needs))
        self.first_missing = sum(map(bool, group.needs[: demand.first]))
        self.first = self.stop = 0.0
        self.dead = False
        self._cores, self._costs = setting.cores, setting.costs
        self._link_in_meter = usage.meter(Resource.LINK_IN, number)
        self._cpu_meter = usage.meter(Resource.CPU, number)
        self._python_meter = usage.meter(Resource.PYTHON, number)
        self._disk_meter = usage.meter(Resource.DISK, number)
        self._receive_meter = usage.meter(Resource.RECEIVE, number)
        self.workers = usage.meter(Resource.WORKERS, number)
        self._line_rate = setting.lan * dict(setting.slow).get(number, 1.0)
        self._disk_rate = setting.disk
        self._line = self._cpu = self._python = self._disk = 0.0

    def take_in(self, began: float, ended: float, nbytes: float, share: float = 1.0) -> float:
        """When bytes that came from `began` to `ended` are through the link, of a share of the members."""
        seconds = nbytes / self._line_rate
        if not seconds:
            return ended
        start = max(self._line, began)
        self._line = stop = start + seconds * share
        self._link_in_meter.add(start, stop, seconds * share)
        return max(ended, start + seconds)

    def compute(self, now: float, ready: float, seconds: float, share: float = 1.0) -> float:
        """When work of so many CPU seconds is done, which can begin when it is ready; one core does it."""
        if not seconds:
            return ready
        start = max(self._cpu, now)
        self._cpu = stop = start + seconds * share / self._cores
        self._cpu_meter.add(start, stop, stop - start)
        return max(stop, ready + seconds)

    def _interpret(self, now: float, ready: float, seconds: float) -> float:
        """When work is done that nothing else in the interpreter can run beside."""
        if not seconds:
            return ready
        start = max(self._python, now)
        self._python = stop = start + seconds
        self._python_meter.add(start, stop, seconds)
        return max(stop, ready + seconds)

    def _write(self, now: float, ready: float, nbytes: float, share: float = 1.0) -> float:
        """When bytes are on the disk."""
        seconds = nbytes / self._disk_rate
        if not seconds:
            return ready
        start = max(self._disk, now)
        self._disk = stop = start + seconds * share
        self._disk_meter.add(start, stop, seconds * share)
        return max(stop, ready + seconds)

    def bring_in(self, began: float, now: float, nbytes: float) -> float:
        """When a piece that came to one member from outside is received, hashed and in its place."""
        costs, size, each = self._costs, nbytes / GB, self.each
        through = self.take_in(began, now, nbytes, each)
        if costs.receive:
            self._receive_meter.add(began, now, costs.receive * size * each)
            self.compute(now, now, costs.receive * size, each)
        return max(
            self._write(now, through, nbytes, each), self.compute(now, through, costs.hash * size, each)
        )

    def take(self, began: float, now: float, moved: float, nbytes: float, *, whole: bool) -> float:
        """When bytes are in the shards, of what `moved` here from another host; a whole piece is hashed."""
        costs = self._costs
        through, seconds = self.take_in(began, now, moved), costs.take + (costs.hash if whole else 0.0)
        checked = self.compute(now, through, seconds * moved / GB)
        return self._place(now, checked, nbytes)

    def pass_on(self, began: float, now: float, nbytes: float) -> float:
        """When a whole piece that one member took for others is hashed."""
        through = self.take_in(began, now, nbytes, self.each)
        return self.compute(now, through, (self._costs.take + self._costs.hash) * nbytes / GB, self.each)

    def place(self, now: float, nbytes: float) -> float:
        """When bytes that this host brought in itself are in the shards."""
        return self._place(now, now, nbytes)

    def _place(self, now: float, ready: float, nbytes: float) -> float:
        costs, size = self._costs, nbytes / GB
        placed = self._interpret(now, ready, costs.place * size)
        done = self.compute(now, ready, (costs.place + costs.write) * size)
        return max(placed, done, self._write(now, ready, nbytes))


def follow(demand: Demand, setting: Setting, usage: Usage) -> list[Host]:
    """The hosts to follow: all of them, or so many of each group that there are about `setting.sample`.

    Hosts that are like no other (slow, failing, the gateways where these are few) stand for themselves.
    """
    special = {host for host, _ in (*setting.slow, *setting.fails)}
    if setting.gateways is not None and len(setting.gateways) <= setting.sample:
        special |= set(setting.gateways)
    found = []
    for group in demand.groups:
        plain = [host for host in group.hosts if host not in special]
        number = len(plain)
        if demand.hosts > setting.sample and plain:
            number = max(round(setting.sample * len(plain) / demand.hosts), 1)
        chosen: Iterable[tuple[int, ...]] = [tuple(plain[n::number]) for n in range(number)]
        alone = [(host,) for host in group.hosts if host in special]
        for members in (*alone, *chosen):
            found.append(Host(members[0], members, group, demand, setting, usage))
    return found
