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
WINDOW_SECONDS = 5.0  # a rate over less is luck


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
    """A run as it was recorded; `wan_rate` and `link_rate` are the fastest that went in, for some seconds.

    The first is from outside, of all hosts together, the second from anywhere into one host. Of a short run
    they are those of the whole run.
    """

    status: ClusterStatus
    samples: tuple[Sample, ...]
    hosts: tuple[HostStory, ...]
    wan_rate: float
    link_rate: float

    @property
    def seconds(self) -> float:
        """When the last host was complete, or the last sample was taken."""
        ends = [host.done for host in self.hosts if host.done is not None]
        return max(ends) if ends and len(ends) == self.status.count else self.status.seconds

    @property
    def wan_bytes(self) -> int:
        """Bytes that came in from outside."""
        return sum(host.wan_bytes for host in self.hosts)

    @property
    def bound(self) -> Bound | None:
        """The least time at the fastest rates that were seen; None where nothing came in.

        What was there from an earlier run is not counted: no more than what moved in this one.
        """
        moved = [(host.status.bytes_wanted, host.wan_bytes + host.lan_in_bytes) for host in self.hosts]
        union = min(self.status.union_bytes, self.wan_bytes)
        if not union or not self.wan_rate or not self.link_rate:
            return None
        return lower_bound([min(pair) for pair in moved], union, wan=self.wan_rate, lan=self.link_rate)


@dataclass(slots=True)
class _Host:
    """What was seen of one host so far; `before` are bytes of its earlier starts."""

    came: float
    done: float | None = None
    gone: float | None = None
    starts: int = 1
    before: tuple[int, int, int] = (0, 0, 0)
    last: MemberStatus | None = None
    link: list[tuple[float, int]] = field(default_factory=list)
    link_rate: float = 0.0

    def see(self, seconds: float, member: MemberStatus) -> None:
        now = _moved(member.status)
        if self.last is not None and any(a < b for a, b in zip(now, _moved(self.last.status), strict=True)):
            self.before = self.moved
            self.starts += 1
            self.done = None
        self.last = member
        if member.complete and self.done is None:
            self.done = seconds
        gone = member.state in (MemberState.LOST, MemberState.LEFT) and not member.complete
        if gone and self.gone is None:
            self.gone = seconds
        self.link_rate = max(self.link_rate, _rate(self.link, seconds, self.moved[0] + self.moved[1]))

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
        self._wan: list[tuple[float, int]] = []
        self._wan_rate = 0.0

    def add(self, status: ClusterStatus) -> None:
        """One moment; of one that is not later than the last only what became of hosts is taken in."""
        self._status = status
        for member in status.members:
            host = self._hosts.setdefault(member.status.index, _Host(status.seconds))
            host.see(status.seconds, member)
        sample = self._sample(status)
        self._wan_rate = max(self._wan_rate, _rate(self._wan, sample.seconds, sample.wan_bytes))
        if self._samples and sample.seconds - self._samples[-1].seconds < self._every:
            return
        self._samples.append(sample)
        if len(self._samples) > MOST_SAMPLES:
            del self._samples[1::2]
            span = self._samples[-1].seconds - self._samples[0].seconds
            self._every = span / len(self._samples)

    def record(self) -> RunRecord | None:
        """What was recorded so far; None before anything was."""
        status = self._status
        if status is None:
            return None
        samples = list(self._samples)
        stories = tuple(_story(self._hosts[index]) for index in sorted(self._hosts))
        whole = max(status.seconds, 1e-3)
        link_rate = max((host.link_rate for host in self._hosts.values()), default=0.0)
        link_most = max((story.wan_bytes + story.lan_in_bytes for story in stories), default=0)
        if samples[-1].seconds < status.seconds:
            samples.append(self._sample(status))
        return RunRecord(
            status,
            tuple(samples),
            stories,
            self._wan_rate or sum(story.wan_bytes for story in stories) / whole,
            link_rate or link_most / whole,
        )

    def _sample(self, status: ClusterStatus) -> Sample:
        moved = [host.moved for host in self._hosts.values()]
        working = [member.status for member in status.members if member.works]
        shares = [member.status.share for member in status.members] or [0.0]
        binds = Counter(agent.binds for agent in working)
        states = Counter(member.state for member in status.members)
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
            states[MemberState.LOST] + states[MemberState.LEFT],
            tuple(binds[kind] for kind in Binds),
        )


def _moved(status: AgentStatus) -> tuple[int, int, int]:
    return status.wan_bytes, status.lan_in_bytes, status.lan_out_bytes


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
