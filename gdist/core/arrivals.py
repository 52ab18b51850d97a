"""What arrives when: the bytes that come in until each tensor is whole, in loading order.

Pieces are asked for in the order in which tensors load. A piece that an earlier tensor brought in costs a
later one nothing, so the sums over tensors are exactly the sums over pieces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gdist.core.order import stage_of
from gdist.core.plan import HostPlan


@dataclass(frozen=True, slots=True)
class Arrival:
    """One tensor, or several together: bytes kept and fetched, summed over the hosts, and when it is whole.

    `fetched` counts pieces that nothing before it brought to a host. Until it is whole `union` distinct bytes
    come into the cluster, and `largest` bytes to the host that gets most.
    """

    kept: int
    fetched: int
    union: int
    largest: int

    def seconds(self, *, wan: float, lan: float = math.inf) -> float:
        """The least time from the start until it is whole, when no byte comes into the cluster twice."""
        return max(self.union / wan, self.largest / lan)


@dataclass(frozen=True, slots=True)
class Stage:
    """Neighbours in loading order that become ready together: an embedding, a layer, the head."""

    name: str
    tensors: int
    nbytes: int
    arrival: Arrival


def arrivals(plans: Sequence[HostPlan]) -> tuple[Arrival, ...]:
    """The arrival of each tensor; the plans are of hosts of one cluster, and have the same tensors."""
    payload = plans[0].payload
    entered: set[int] = set()
    held: list[set[int]] = [set() for _ in plans]
    amounts = [0] * len(plans)
    union, found = 0, []

    def nbytes(pieces: Collection[int]) -> int:
        last = payload.pieces - 1
        short = payload.piece_length - payload.extent_of(last).length if last in pieces else 0
        return len(pieces) * payload.piece_length - short

    for number in range(len(plans[0].tensors)):
        fetched = 0
        for host, plan in enumerate(plans):
            fresh = set(itertools.chain.from_iterable(plan.runs[number])) - held[host]
            held[host] |= fresh
            amounts[host] += nbytes(fresh)
            fetched += nbytes(fresh)
            union += nbytes(fresh - entered)
            entered |= fresh
        kept = sum(plan.tensors[number].nbytes for plan in plans)
        found.append(Arrival(kept, fetched, union, max(amounts)))
    return tuple(found)


def stages_of(plans: Sequence[HostPlan], found: Sequence[Arrival]) -> tuple[Stage, ...]:
    """The arrivals of tensors, joined to the stages of loading, in order."""
    tensors = [plan.tensor.spec for plan in plans[0].tensors]
    stages = []
    for name, group in itertools.groupby(
        zip(tensors, found, strict=True), lambda pair: stage_of(pair[0].name)
    ):
        members = list(group)
        arrived = [arrival for _, arrival in members]
        stages.append(
            Stage(
                name,
                len(members),
                sum(tensor.nbytes for tensor, _ in members),
                Arrival(
                    sum(arrival.kept for arrival in arrived),
                    sum(arrival.fetched for arrival in arrived),
                    arrived[-1].union,
                    arrived[-1].largest,
                ),
            )
        )
    return tuple(stages)
