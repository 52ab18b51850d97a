"""What was busy when: work of several resources, spread over equal spans of time, and what bound in each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

FULL = 0.85  # of what all hosts have of a resource was used in a span: it binds
ONE_FULL = 0.95  # of what one host has
TRACE = 1e-9  # of a span, which rounding leaves


class Resource(Enum):
    """What bytes pass on their way, which each host has of its own but for the WAN; and who tells of them."""

    WAN = "wan"
    RECEIVE = "receiving"  # libtorrent's one thread
    LINK_IN = "link in"
    LINK_OUT = "link out"
    CPU = "cores"
    PYTHON = "python"
    DISK = "disk"
    WORKERS = "workers"  # the few that take and place pieces; they are busy while they wait for bytes, too
    COORDINATOR = "coordinator"  # the one that tells all others; in the interpreter of host 0


WAITING = "waiting"  # for news of pieces, for slices on their way, for a host that others wait for


@dataclass(frozen=True, slots=True)
class Used:
    """The share of a resource that was used: of all hosts', and of theirs who used it most (`who`)."""

    resource: Resource
    all: float
    most: float = 0.0
    who: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time, what was used in it, and what bound: a resource, that of some host, or `WAITING`."""

    start: float
    stop: float
    used: tuple[Used, ...]
    binds: str


def _binds(used: Sequence[Used]) -> str:
    """What was full: a resource of all hosts, or that of one; else what is full while it waits, too."""
    own = [one for one in used if one.resource not in (Resource.WORKERS, Resource.COORDINATOR)]
    fullest = max(own, key=lambda one: one.all)
    if fullest.all >= FULL:
        return fullest.resource.value
    fullest = max(own, key=lambda one: one.most)
    if fullest.most >= ONE_FULL:
        return f"{fullest.resource.value} of {fullest.who}"
    full = [one.resource.value for one in used if one not in own and one.all >= FULL]
    return full[0] if full else WAITING


@dataclass(frozen=True, slots=True)
class Cluster:
    """Whose resources they are: how many hosts each followed one stands for, and the few gateways, if few.

    `coordinator` is the share of its time that the coordinator needs to answer everyone in turn.
    """

    stands_for: Mapping[int, int]
    gateways: tuple[int, ...] = ()
    coordinator: float = 0.0


class Meter:
    """How much of one resource of one host was used in each span of `width` seconds."""

    __slots__ = ("spans", "width")

    def __init__(self, width: float):
        self.width = width
        self.spans: dict[int, float] = {}

    def add(self, start: float, stop: float, work: float) -> None:
        """So many seconds of it were used from `start` to `stop`, evenly."""
        spans, width = self.spans, self.width
        first, last = int(start / width), int(stop / width)
        if first == last:
            spans[first] = spans.get(first, 0.0) + work
            return
        rate = work / (stop - start)
        # max: what ends with a span may, rounded, end before it
        spans[first] = spans.get(first, 0.0) + rate * max((first + 1) * width - start, 0.0)
        spans[last] = spans.get(last, 0.0) + rate * max(stop - last * width, 0.0)
        for number in range(first + 1, last):
            spans[number] = spans.get(number, 0.0) + rate * width


class Usage:
    """What was used of all resources; `width` is the length of a span in seconds."""

    def __init__(self, width: float):
        self._width = width
        self._meters: dict[tuple[Resource, int], Meter] = {}

    def meter(self, resource: Resource, host: int = 0) -> Meter:
        """That of a host's resource; the WAN has one."""
        return self._meters.setdefault((resource, host), Meter(self._width))

    def spans(self, end: float, cluster: Cluster, count: int) -> tuple[Span, ...]:
        """So many spans at most, up to the end."""
        number = int(end / self._width - TRACE) + 1
        each = -(-number // count)
        found = []
        for first in range(0, number, each):
            start, stop = first * self._width, min((first + each) * self._width, end)
            sums: dict[Resource, dict[int, float]] = {resource: {} for resource in Resource}
            for (resource, host), meter in self._meters.items():
                work = sum(meter.spans.get(n, 0.0) for n in range(first, first + each))
                sums[resource][host] = min(work / (stop - start), 1.0)
            used = tuple(_used(resource, shares, cluster) for resource, shares in sums.items())
            found.append(Span(start, stop, used, _binds(used)))
        return tuple(found)


def _used(resource: Resource, shares: Mapping[int, float], cluster: Cluster) -> Used:
    if resource is Resource.COORDINATOR:
        return Used(resource, cluster.coordinator)
    if resource is Resource.WAN or not shares:
        return Used(resource, shares.get(0, 0.0))
    hosts = sum(cluster.stands_for.values())
    if resource is Resource.LINK_OUT:  # that of every single host
        everyone = sum(shares.values()) / hosts
    else:
        everyone = sum(share * cluster.stands_for[host] for host, share in shares.items()) / hosts
    host, most = max(shares.items(), key=lambda item: item[1])
    who = f"host {host}"
    if len(cluster.gateways) > 1:
        mean = sum(shares.get(gateway, 0.0) for gateway in cluster.gateways) / len(cluster.gateways)
        if mean >= FULL:
            most, who = 1.0, "the gateways"
    return Used(resource, everyone, most, who)


def joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same with neighbours that the same bound as one, its shares their means."""
    found: list[Span] = []
    for binds, group in itertools.groupby(spans, key=lambda span: span.binds):
        members = list(group)
        total = members[-1].stop - members[0].start
        used = []
        for column in zip(*(span.used for span in members), strict=True):
            lengths = [(span.stop - span.start) / total for span in members]
            everyone = sum(one.all * length for one, length in zip(column, lengths, strict=True))
            fullest = max(column, key=lambda one: one.most)
            used.append(replace(fullest, all=everyone))
        one = Span(members[0].start, members[-1].stop, tuple(used), binds)
        found.append(one)
    return tuple(found)
