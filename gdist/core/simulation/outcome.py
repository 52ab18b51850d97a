"""What a simulated run came to."""

from __future__ import annotations

from dataclasses import dataclass

from gdist.core.bound import Bound
from gdist.core.simulation.usage import Span


@dataclass(frozen=True, slots=True)
class HostTime:
    """When a followed host had all that loads first, and when all; it stands for so many hosts."""

    host: int
    stands_for: int
    first: float
    all: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulated run came to; `hosts` are those that were followed, the fastest first.

    `wan` and `lan` are bytes that crossed them. `held_most` is the most that one host held for others at
    once, `lost` the number of hosts that failed. `bound` is the least time there is.
    """

    bound: Bound
    hosts: tuple[HostTime, ...]
    union: int
    wan: float
    lan: float
    held_most: int
    spans: tuple[Span, ...]
    lost: int

    @property
    def seconds(self) -> float:
        """When the last host had all."""
        return self.hosts[-1].all

    @property
    def first_seconds(self) -> float:
        """When the last host had all that loads first."""
        return max(host.first for host in self.hosts)

    @property
    def median_seconds(self) -> float:
        """When half of the hosts had all."""
        left = sum(host.stands_for for host in self.hosts) / 2
        for host in self.hosts:
            left -= host.stands_for
            if left <= 0:
                return host.all
        raise AssertionError("there is a host")

    @property
    def share(self) -> float:
        """The least time over the time it took."""
        return self.bound.seconds / self.seconds if self.seconds else 1.0

    @property
    def ratio(self) -> float:
        """Bytes that came in over those that had to."""
        return self.wan / self.union if self.union else 1.0
