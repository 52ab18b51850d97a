"""A line that flows share: each gets as much as the others, up to its own cap; time is an argument.

Max-min fairness, as many TCP connections through one bottleneck come near to: capped flows get their cap,
the rest is split evenly. Flows of one cap are a pool with one clock, the bytes that each of its flows got so
far, so that a start, an end or a question costs a heap operation and not a loop over all flows.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Pool:
    """Flows of one cap: `clock` is what each got since the pool began, `heap` has the clocks they end at."""

    cap: float
    clock: float = 0.0
    rate: float = 0.0
    heap: list[tuple[float, int, int]] = field(default_factory=list)  # clock, change, flow
    flows: int = 0


class FairLine:
    """The line; `rate` in bytes a second. A flow is a number, one at a time of each."""

    def __init__(self, rate: float):
        assert rate > 0, rate
        self.rate = rate
        self.now = 0.0
        self.carried = 0.0  # bytes so far
        self.changes = 0  # how often flows began or ended
        self._pools: dict[float, _Pool] = {}
        self._flows: dict[
            int, tuple[_Pool, float, int]
        ] = {}  # pool, clock at its end, the change it began with

    def start(self, flow: int, nbytes: float, cap: float = math.inf) -> None:
        """Begins a flow now."""
        assert flow not in self._flows, flow
        pool = self._pools.setdefault(cap, _Pool(cap))
        end = pool.clock + nbytes
        self._flows[flow] = pool, end, self.changes
        heapq.heappush(pool.heap, (end, self.changes, flow))
        pool.flows += 1
        self._share()

    def stop(self, flow: int) -> float:
        """Ends a flow now; the bytes it still had to carry."""
        pool, end, _ = self._flows.pop(flow)
        pool.flows -= 1
        left = max(end - pool.clock, 0.0)
        self._share()
        return left

    def next(self) -> tuple[float, int] | None:
        """When the next flow has carried all its bytes, and which; None without flows."""
        best: tuple[float, int] | None = None
        for pool in self._pools.values():
            heap = pool.heap
            while heap and self._flows.get(heap[0][2], (None, 0.0, -1))[2] != heap[0][1]:
                heapq.heappop(heap)  # it was stopped
            if heap:
                when = self.now + max(heap[0][0] - pool.clock, 0.0) / pool.rate
                if best is None or when < best[0]:
                    best = when, heap[0][2]
        return best

    def advance(self, now: float) -> float:
        """Moves the clock on, at most to the time of `next`; the bytes that were carried meanwhile."""
        assert now >= self.now, f"from {self.now} to {now}"
        carried = 0.0
        for pool in self._pools.values():
            if pool.flows:
                done = pool.rate * (now - self.now)
                pool.clock += done
                carried += done * pool.flows
        self.now = now
        self.carried += carried
        return carried

    def rate_of(self, flow: int) -> float:
        """Bytes a second that a flow gets now."""
        return self._flows[flow][0].rate

    def _share(self) -> None:
        self.changes += 1
        left, flows = self.rate, sum(pool.flows for pool in self._pools.values())
        for cap in sorted(self._pools):
            pool = self._pools[cap]
            if not pool.flows:
                continue
            pool.rate = min(cap, left / flows)
            left -= pool.rate * pool.flows
            flows -= pool.flows
