"""What a cluster's run was like, kept while it runs: totals over time, and what became of each host.

    recorder = Recorder()
    recorder.add(status)        # a ClusterStatus, every second or two
    recorder.record()           # for a report

Memory does not grow with time: when there are many samples every other one is dropped. A host that starts
again counts from 0 again; what it moved before is not forgotten.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gdist.core.bound import Bound, lower_bound
from gdist.core.status import AgentStatus, Binds, ClusterStatus, MemberState, MemberStatus

MOST_SAMPLES = 480
LEAST_SECONDS = 1e-3
LEAST_SEEN = 0.5  # of the run, for rates that are likely to be the fastest
WINDOW_SECONDS = 10.0  # a rate over less is luck
LATE_SECONDS = 1.0  # how late bytes are counted: libtorrent adds up what is not a whole piece so often


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment: sums over the hosts, the spread of how far they are (0 to 1), what binds how many."""

    seconds: float
    wan_bytes: int
    lan_bytes: int
    inside_bytes: int
    least: float
    median: float
    most: float
    working: int
    done: int
    gone: int
    binds: tuple[int, ...]  # hosts at work, in the order of `Binds`


@dataclass(frozen=True, slots=True)
class HostStory:
    """What became of one host: when it came, was complete, was first lost or left (seconds; None: never).

    Bytes are of all its starts together.
    """

    index: int
    name: str
    address: str
    state: MemberState
    came: float
    done: float | None
    gone: float | None
    starts: int
    wan_bytes: int
    lan_in_bytes: int
    lan_out_bytes: int
    status: AgentStatus


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it was recorded, which took `seconds` until no host was at work any more, or does yet.

    `wan_rate` and `link_rate` are the fastest that went in for some seconds, and no less than over the whole
    run: the first from outside, of all hosts together, the second from anywhere into one host.
    """

    status: ClusterStatus
    samples: tuple[Sample, ...]
    hosts: tuple[HostStory, ...]
    seconds: float
    wan_rate: float
    link_rate: float

    @property
    def wan_bytes(self) -> int:
        """Bytes that came in from outside."""
        return sum(host.wan_bytes for host in self.hosts)

    @property
    def bound(self) -> Bound | None:
        """The least time at the fastest rates that were seen; None where nothing came in.

        What was there from an earlier run is not counted: no more than what moved in this one. Who came to
        coordinate late, or has seen no more than some seconds, knows of no rate that tells how fast it could
        be: None too.
        """
        if self.seconds - self.samples[0].seconds < max(WINDOW_SECONDS, LEAST_SEEN * self.seconds):
            return None
        moved = [(host.status.bytes_wanted, host.wan_bytes + host.lan_in_bytes) for host in self.hosts]
        union = min(self.status.union_bytes, self.wan_bytes)
        if not union or not self.wan_rate or not self.link_rate:
            return None
        return lower_bound([min(pair) for pair in moved], union, wan=self.wan_rate, lan=self.link_rate)

    @property
    def share_of_bound(self) -> float | None:
        """The least time over the time it took: at most 1, as fast as can be."""
        bound = self.bound
        return min(bound.seconds / max(self.seconds, LEAST_SECONDS), 1.0) if bound else None


@dataclass(slots=True)
class _Host:
    """What was seen of one host so far; `before` are bytes of its earlier starts."""

    came: float
    done: float | None = None
    gone: float | None = None
    starts: int = 1
    before: tuple[int, int, int] = (0, 0, 0)
    last: MemberStatus | None = None
    link: list[tuple[float, int]] = field(default_factory=list)  # by its own clock
    link_rate: float = 0.0

    def see(self, seconds: float, member: MemberStatus) -> None:
        now = _moved(member.status)
        if self.last is not None and any(a < b for a, b in zip(now, _moved(self.last.status), strict=True)):
            self.before = self.moved
            self.starts += 1
            self.done = None
            self.link.clear()
        self.last = member
        if member.complete and self.done is None:
            self.done = seconds
        if _gone(member) and self.gone is None:
            self.gone = seconds
        self.link_rate = max(self.link_rate, _rate(self.link, member.status.seconds, now[0] + now[1]))

    @property
    def moved(self) -> tuple[int, int, int]:
        now = _moved(self.last.status) if self.last else (0, 0, 0)
        return self.before[0] + now[0], self.before[1] + now[1], self.before[2] + now[2]


class Recorder:
    """Takes in what the coordinator knows, again and again; see `record`."""

    def __init__(self) -> None:
        self._hosts: dict[int, _Host] = {}
        self._samples: list[Sample] = []
        self._every = 0.0
        self._status: ClusterStatus | None = None
        self._wan_rate = 0.0
        self._seconds, self._works = 0.0, True

    def add(self, status: ClusterStatus) -> None:
        """One moment; of one that is not later than the last only what became of hosts is taken in."""
        self._status = status
        for member in status.members:
            host = self._hosts.setdefault(member.status.index, _Host(status.seconds))
            host.see(status.seconds, member)
        works, worked = not status.done or any(member.works for member in status.members), self._works
        self._works = works
        if not works and not worked:  # some are waited for, perhaps for long
            return
        self._seconds = status.seconds
        sample = self._sample(status)
        self._wan_rate = max([self._wan_rate, *(_wan_rate(before, sample) for before in self._samples)])
        if works and self._samples and sample.seconds - self._samples[-1].seconds < self._every:
            return
        self._samples.append(sample)
        if len(self._samples) > MOST_SAMPLES:
            del self._samples[1::2]
            span = self._samples[-1].seconds - self._samples[0].seconds
            self._every = span / len(self._samples)

    @property
    def tells(self) -> bool:
        """True where the run's page is this host's to write: host 0's, and a stand-in's that saw the end."""
        status = self._status
        return status is not None and (status.coordinator == 0 or not self._works)

    def record(self) -> RunRecord | None:
        """What was recorded so far; None before anything was."""
        status = self._status
        if status is None:
            return None
        samples = list(self._samples)
        stories = tuple(_story(self._hosts[index]) for index in sorted(self._hosts))
        whole = max(self._seconds, LEAST_SECONDS)
        link_rate = max((host.link_rate for host in self._hosts.values()), default=0.0)
        link_most = max((story.wan_bytes + story.lan_in_bytes for story in stories), default=0)
        if samples[-1].seconds < self._seconds:
            samples.append(self._sample(status))
        return RunRecord(
            status,
            tuple(samples),
            stories,
            self._seconds,
            max(self._wan_rate, sum(story.wan_bytes for story in stories) / whole),
            max(link_rate, link_most / whole),
        )

    def _sample(self, status: ClusterStatus) -> Sample:
        moved = [host.moved for host in self._hosts.values()]
        working = [member.status for member in status.members if member.works]
        shares = [member.status.share for member in status.members] or [0.0]
        binds = Counter(agent.binds for agent in working)
        return Sample(
            status.seconds,
            sum(wan for wan, _, _ in moved),
            sum(lan for _, lan, _ in moved),
            status.inside_bytes,
            min(shares),
            statistics.median(shares),
            max(shares),
            len(working),
            status.done,
            sum(map(_gone, status.members)),
            tuple(binds[kind] for kind in Binds),
        )


def _moved(status: AgentStatus) -> tuple[int, int, int]:
    return status.wan_bytes, status.lan_in_bytes, status.lan_out_bytes


def _gone(member: MemberStatus) -> bool:
    """True for a host that is not there, and whose part is not complete."""
    return member.state in (MemberState.LOST, MemberState.LEFT) and not member.complete


def _wan_rate(before: Sample, after: Sample) -> float:
    """Bytes a second from outside at the least: some may have come before the first, and were told since."""
    span = after.seconds - before.seconds
    return (after.wan_bytes - before.wan_bytes) / (span + LATE_SECONDS) if span >= WINDOW_SECONDS else 0.0


def _rate(seen: list[tuple[float, int]], seconds: float, nbytes: int) -> float:
    """Bytes a second over the last `WINDOW_SECONDS`; 0 until so much time went by."""
    if not seen or seconds > seen[-1][0]:
        seen.append((seconds, nbytes))
    while len(seen) > 2 and seconds - seen[1][0] >= WINDOW_SECONDS:
        del seen[0]
    span = seconds - seen[0][0]
    return (nbytes - seen[0][1]) / span if span >= WINDOW_SECONDS else 0.0


def _story(host: _Host) -> HostStory:
    assert host.last is not None, "a host is made when it is seen"
    status, (wan, lan_in, lan_out) = host.last.status, host.moved
    return HostStory(
        status.index,
        status.name,
        host.last.address,
        host.last.state,
        host.came,
        host.done,
        host.gone,
        host.starts,
        wan,
        lan_in,
        lan_out,
        status,
    )


def joined_hosts(hosts: Sequence[HostStory], most: int) -> list[tuple[HostStory, ...]]:
    """The hosts one by one, or neighbours together where there are more than `most`."""
    width = -(-len(hosts) // most)
    return [tuple(hosts[first : first + width]) for first in range(0, len(hosts), width)]
