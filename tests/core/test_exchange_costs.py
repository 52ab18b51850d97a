"""What the exchanges move: as many bytes as are counted one by one; and the choice between them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.bound import Bound, Limit, lower_bound, wan_owners
from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.exchange_costs import (
    Exchange,
    ExchangeCost,
    Rates,
    choose_exchange,
    collective_cost,
    even_share,
    exchange_costs,
    swarm_cost,
)
from gdist.core.extent import Extent
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.payload import Payload, PayloadFile
from gdist.core.plan import HostPlan, plan_hosts
from gdist.core.rules import parse_rules
from gdist.core.tensor import Part, StoredTensor, TensorSpec

MESH = Mesh((("data", 2), ("model", 2)))
SPECS = (["data", "model"], ["model"], [None, ["data", "model"]], [None, "data"], [])


def planned(
    shapes: list[tuple[int, int]], specs: list[list[object]], piece_length: int, hosts: int
) -> tuple[HostPlan, ...]:
    tensors, position = [], 3
    for number, shape in enumerate(shapes):
        spec = TensorSpec(f"w{number}.", shape, BY_NAME["int16"])
        tensors.append(StoredTensor(spec, (Part(Extent(position, spec.nbytes), Box.whole(shape)),)))
        position += spec.nbytes
    payload = Payload((PayloadFile("f", 0, position),), piece_length, position)
    rules = parse_rules(
        {"axes": ["data", "model"], "rules": [[rf"w{n}\.", spec] for n, spec in enumerate(specs)]}
    )
    groups = [HostGroup(index, hosts) for index in range(hosts)]
    return plan_hosts(payload, tensors, MESH, rules, groups)


def wanted_bytes(plan: HostPlan) -> np.ndarray:
    """For every byte of the payload whether the host's shards hold it."""
    wanted = np.zeros(plan.payload.length, bool)
    for tensor in plan.tensors:
        inside = np.zeros((*tensor.grid.shape, 2), bool)
        for shard in tensor.shards:
            inside[shard.box.slices()] = True
        extent = tensor.tensor.parts[0].extent
        wanted[extent.start : extent.stop] = inside.ravel()
    return wanted


cases = given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from(SPECS)), min_size=1, max_size=4),
    st.integers(1, 50),
    st.sampled_from([2, 4]),
)


@cases
def test_a_swarm_moves_what_others_brought_in_and_no_byte_more(
    tensors: list[tuple[int, int, list[object]]], piece_length: int, hosts: int
) -> None:
    plans = planned([(4 * a, 4 * b) for a, b, _ in tensors], [s for *_, s in tensors], piece_length, hosts)
    payload = plans[0].payload
    owners = wan_owners([plan.pieces for plan in plans], lambda piece: payload.extent_of(piece).length)
    brought_by = np.full(payload.length, -1)
    for piece, owner in owners.items():
        extent = payload.extent_of(piece)
        brought_by[extent.start : extent.stop] = owner
    taken = [int((wanted_bytes(plan) & (brought_by != host)).sum()) for host, plan in enumerate(plans)]
    cost = swarm_cost(plans, owners)
    assert (cost.lan, cost.lan_most) == (sum(taken), max(taken))
    assert cost.wan == (brought_by >= 0).sum() and cost.bound is None
    assert cost.wan_most == max((brought_by == host).sum() for host in range(hosts))


@cases
def test_collectives_move_what_the_even_share_does_not_hold(
    tensors: list[tuple[int, int, list[object]]], piece_length: int, hosts: int
) -> None:
    plans = planned([(4 * a, 4 * b) for a, b, _ in tensors], [s for *_, s in tensors], piece_length, hosts)
    taken = [0] * hosts
    for host, plan in enumerate(plans):
        for tensor in plan.tensors:
            inside = np.zeros(tensor.grid.shape, bool)
            for shard in tensor.shards:
                inside[shard.box.slices()] = True
            start, stop = even_share(inside.size, host, hosts)
            share = np.zeros(inside.size, bool)
            share[start:stop] = True
            taken[host] += 2 * int((inside.ravel() & ~share).sum())
    cost = collective_cost(plans)
    assert (cost.lan, cost.lan_most) == (sum(taken), max(taken))
    payload = plans[0].payload
    pieces = {piece for plan in plans for piece in plan.pieces}
    assert cost.wan == sum(payload.extent_of(piece).length for piece in pieces)
    assert cost.wan_most == -(-cost.wan // hosts)


@cases
def test_no_exchange_is_faster_than_the_lower_bound(
    tensors: list[tuple[int, int, list[object]]], piece_length: int, hosts: int
) -> None:
    plans = planned([(4 * a, 4 * b) for a, b, _ in tensors], [s for *_, s in tensors], piece_length, hosts)
    payload = plans[0].payload
    owners = wan_owners([plan.pieces for plan in plans], lambda piece: payload.extent_of(piece).length)
    for rates in (Rates(10.0, 10.0), Rates(100.0, 1.0), Rates(1.0)):
        swarm, collective = exchange_costs(plans, owners, rates)
        least = lower_bound([plan.bytes_wanted for plan in plans], swarm.wan, wan=rates.wan, lan=rates.lan)
        for cost in (swarm, collective):
            assert cost.bound is not None and cost.bound.seconds >= least.seconds * (1 - 1e-12)


def test_even_shares_are_all_of_it() -> None:
    shares = [even_share(10, host, 4) for host in range(4)]
    assert shares == [(0, 2), (2, 5), (5, 7), (7, 10)]


def test_rows_stay_where_they_come_in_and_columns_do_not() -> None:
    rows = planned([(8, 8)], [["data"]], 16, 2)
    assert collective_cost(rows).lan == 0
    columns = planned([(8, 8)], [[None, "data"]], 16, 2)
    assert collective_cost(columns).lan == 64  # each host has half of its half
    copies = planned([(8, 8)], [[]], 16, 2)
    assert collective_cost(copies).lan == 128


def test_an_interconnect_carries_what_collectives_move() -> None:
    plans = planned([(8, 8)], [[None, "data"]], 16, 2)
    cost = collective_cost(plans, Rates(64.0, 8.0, 4.0))
    assert cost.bound is not None
    ingest = cost.wan_most / 8
    assert dict(cost.bound.terms) == {
        Limit.WAN: cost.wan / 64,
        Limit.HOST_LINK: ingest,
        Limit.INTERCONNECT: 32 / 4,
    }
    swarm = swarm_cost(plans, {piece: piece % 2 for piece in range(9)}, Rates(64.0, 8.0, 4.0))
    assert swarm.bound is not None and Limit.INTERCONNECT not in dict(swarm.bound.terms)


def bound(seconds: float) -> Bound:
    return Bound(((Limit.WAN, seconds),))


@pytest.mark.parametrize(
    ("lan", "other", "seconds", "other_seconds", "jax", "chosen"),
    [
        (100, 10, None, None, False, Exchange.SWARM),  # less, but nothing to run collectives with
        (100, 10, None, None, True, Exchange.COLLECTIVE),
        (100, 95, None, None, True, Exchange.SWARM),  # not clearly less
        (10, 100, None, None, True, Exchange.SWARM),
        (100, 10, 10, 10, True, Exchange.SWARM),  # less, and no sooner there
        (10, 100, 10, 8, True, Exchange.COLLECTIVE),  # more, over a faster link
        (10, 100, 10, 8, False, Exchange.SWARM),
        (10, 10, 10, 9.5, True, Exchange.SWARM),
    ],
)
def test_collectives_are_chosen_where_they_are_clearly_cheaper(
    lan: int, other: int, seconds: float | None, other_seconds: float | None, jax: bool, chosen: Exchange
) -> None:
    swarm = ExchangeCost(Exchange.SWARM, 100, 10, lan, lan, bound(seconds) if seconds else None)
    collective = ExchangeCost(
        Exchange.COLLECTIVE, 100, 10, other, other, bound(other_seconds) if other_seconds else None
    )
    choice = choose_exchange(swarm, collective, jax=jax)
    assert choice.exchange is chosen and choice.reason
    more = replace(collective, wan=101)  # of a choice of tensors all come in, and less is needed
    if seconds is None:
        assert choose_exchange(swarm, more, jax=jax).exchange is Exchange.SWARM


def test_without_a_rate_of_hosts_the_wan_sets_the_time() -> None:
    plans = planned([(8, 8)], [[None, "data"]], 16, 2)
    swarm, collective = exchange_costs(plans, dict.fromkeys(range(9), 0), Rates(10.0, math.inf))
    assert swarm.bound is not None and swarm.bound.limit is Limit.WAN
    assert collective.bound is not None and collective.bound.limit is Limit.WAN
