"""What the two exchanges of a cluster cost, and which of them to ask for.

    swarm       Every piece that a host needs comes into the cluster once, whole, by one host that needs it.
                The others take from that host the bytes that their shards hold, and no more.
    collective  Every host takes in an even, contiguous share of every tensor; XLA's collectives then move
                it to the target sharding. What a host's shards hold and its share has not must reach it.

                WAN             LAN, into host i                        links
    swarm       union U         B_i - bytes of its own pieces it needs  WAN and LAN are one
    collective  all tensors' U  B_i - bytes of its share it needs       may have one of their own

`B_i` are the bytes that host i needs (for collectives: as converted on the way). Both are exact counts, with
no overhead of a protocol. Not counted are pieces that lie across the edge of two shares of a tensor, which
one host hands on to the other before the collectives start; and that XLA may pick a collective that moves
more than it must.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gdist.core.bound import Bound, Limit
from gdist.core.exchanges import Exchange
from gdist.core.extent import Extent
from gdist.core.needs import Needs, band_of, pieces_in_order
from gdist.core.plan import HostPlan, TensorPlan
from gdist.core.units import format_bytes, format_seconds

CLEARLY = 0.9  # of the other's cost: below it an exchange is chosen for its cost


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second: into the cluster, of each host's link, and of the link that collectives have."""

    wan: float
    lan: float = float("inf")
    interconnect: float | None = None


@dataclass(frozen=True, slots=True)
class ExchangeCost:
    """Bytes of one exchange: into the cluster, and from host to host; of all hosts, and the most of one.

    `bound` is the least time of this exchange, where rates are known: all that its hosts take in counts, not
    just what they need. So it is at least that of `lower_bound`, unless collectives have a link of their own.
    """

    exchange: Exchange
    wan: int
    wan_most: int
    lan: int
    lan_most: int
    bound: Bound | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The exchange to use, and why."""

    exchange: Exchange
    reason: str


def exchange_costs(
    plans: Sequence[HostPlan], owners: Mapping[int, int], rates: Rates | None = None
) -> tuple[ExchangeCost, ExchangeCost]:
    """The costs of both, swarm first, for the plans of all hosts; `owners` bring the pieces in."""
    return swarm_cost(plans, owners, rates), collective_cost(plans, rates)


def swarm_cost(
    plans: Sequence[HostPlan], owners: Mapping[int, int], rates: Rates | None = None
) -> ExchangeCost:
    """What it costs when pieces come in by these hosts, and slices of them go to the others."""
    needs, payload = Needs(plans), plans[0].payload
    brought, taken = [0] * len(plans), [plan.bytes_wanted for plan in plans]
    for piece, owner in owners.items():
        brought[owner] += payload.extent_of(piece).length
        taken[owner] -= needs.nbytes(owner, piece)
    return _cost(Exchange.SWARM, brought, taken, rates and Rates(rates.wan, rates.lan))


def collective_cost(plans: Sequence[HostPlan], rates: Rates | None = None) -> ExchangeCost:
    """What it costs when every host takes in an even share of every tensor, and collectives do the rest."""
    payload, tensors = plans[0].payload, [plan.tensor for plan in plans[0].tensors]
    union = sum(payload.extent_of(piece).length for piece in pieces_in_order(tensors, payload))
    taken = [0] * len(plans)
    known: dict[object, tuple[int, ...]] = {}
    for number, first in enumerate(plans[0].tensors):
        kind = first.grid, first.spec, first.tensor.spec.dtype.itemsize
        if kind not in known:
            known[kind] = _beyond_shares([plan.tensors[number] for plan in plans])
        for host, nbytes in enumerate(known[kind]):
            taken[host] += nbytes
    brought = [union * (host + 1) // len(plans) - union * host // len(plans) for host in range(len(plans))]
    return _cost(Exchange.COLLECTIVE, brought, taken, rates)


def even_share(size: int, host: int, count: int) -> tuple[int, int]:
    """The half-open run of a tensor's elements, in C order, that a host of so many takes in."""
    return size * host // count, size * (host + 1) // count


def _beyond_shares(plans: Sequence[TensorPlan]) -> tuple[int, ...]:
    """For each host bytes of its shards of one tensor that are not in its even share of it."""
    spec = plans[0].tensor.spec
    found = []
    for host, plan in enumerate(plans):
        size = spec.nbytes // spec.dtype.itemsize
        start, stop = even_share(size, host, len(plans))
        share = Extent(start, stop - start)
        bands = (band_of(Extent(0, size), spec.shape, shard.box) for shard in plan.shards)
        own = sum(band.nbytes_in(share) for band in bands)
        found.append(plan.nbytes - own * spec.dtype.itemsize)
    return tuple(found)


def _cost(
    exchange: Exchange, brought: Sequence[int], taken: Sequence[int], rates: Rates | None
) -> ExchangeCost:
    wan, lan = sum(brought), sum(taken)
    bound = _bound(brought, taken, rates) if rates else None
    return ExchangeCost(exchange, wan, max(brought), lan, max(taken), bound)


def _bound(brought: Sequence[int], taken: Sequence[int], rates: Rates) -> Bound:
    """The least time of an exchange; its terms are those of `lower_bound`, for what hosts really take in."""
    wan, lan, hosts = sum(brought), sum(taken), len(brought)
    if rates.interconnect is not None:
        return Bound(
            (
                (Limit.WAN, wan / rates.wan),
                (Limit.HOST_LINK, max(brought) / rates.lan),
                (Limit.INTERCONNECT, max(taken) / rates.interconnect),
            )
        )
    both = max(a + b for a, b in zip(brought, taken, strict=True))
    return Bound(
        (
            (Limit.WAN, wan / rates.wan),
            (Limit.HOST_LINK, both / rates.lan),
            (Limit.ALL_LINKS, (wan + lan) / (rates.wan + rates.lan * hosts)),
        )
    )


def choose_exchange(swarm: ExchangeCost, collective: ExchangeCost, *, jax: bool) -> Choice:
    """The exchange to ask a fetch for; `jax` says that `jax.distributed` would run.

    A plan is told the rates of all wires, a fetch is not: so this recommends, and a fetch is told. The
    swarm is the default: it needs sockets alone, and goes on when a host is gone, where a collective
    waits for everyone. Collectives are chosen where they are clearly cheaper.
    """
    if not jax:
        return Choice(Exchange.SWARM, "needs nothing but sockets; collectives need JAX on every host")
    if swarm.bound and collective.bound:
        least, other = collective.bound.seconds, swarm.bound.seconds
        if least < CLEARLY * other:
            reason = f"can be done in {format_seconds(least)}, a swarm in {format_seconds(other)}"
            return Choice(Exchange.COLLECTIVE, reason)
    elif collective.lan < CLEARLY * swarm.lan and collective.wan <= swarm.wan:
        less = format_bytes(swarm.lan - collective.lan)
        return Choice(Exchange.COLLECTIVE, f"moves {less} less between hosts")
    return Choice(Exchange.SWARM, "collectives are not clearly faster, and wait for a host that is gone")
