"""The model keeps to what no cluster can beat, and does not lose, double or invent a byte."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.bound import Limit, lower_bound
from gdist.core.simulation.hosts import follow
from gdist.core.simulation.model import Costs, Demand, Group, Setting, least_time
from gdist.core.simulation.outcome import Outcome
from gdist.core.simulation.run import SPANS_SHOWN, simulate
from gdist.core.simulation.usage import Resource, Usage

MB = 10**6
FREE = Costs(0, 0, 0, 0, 0, 0)


def copies(hosts: int, pieces: int, nbytes: int = 4 * MB) -> Demand:
    """Every host needs everything."""
    return Demand((nbytes,) * pieces, (Group(tuple(range(hosts)), (nbytes,) * pieces),), pieces // 10)


def rows(hosts: int, pieces: int, nbytes: int = 4 * MB) -> Demand:
    """Every host needs pieces of its own."""
    groups = (
        Group((host,), tuple(nbytes if piece % hosts == host else 0 for piece in range(pieces)))
        for host in range(hosts)
    )
    return Demand((nbytes,) * pieces, tuple(groups), pieces // 10)


def columns(hosts: int, pieces: int, nbytes: int = 4 * MB) -> Demand:
    """Every host needs an even part of every piece."""
    groups = (Group((host,), (nbytes // hosts,) * pieces) for host in range(hosts))
    return Demand((nbytes // hosts * hosts,) * pieces, tuple(groups), pieces // 10)


KINDS = {"copies": copies, "rows": rows, "columns": columns}


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Demand, Setting]:
    hosts = draw(st.integers(1, 6))
    demand = KINDS[draw(st.sampled_from(sorted(KINDS)))](hosts, draw(st.integers(1, 60)))
    rates = st.sampled_from([5e6, 20e6, 100e6, 2e9])
    slow = draw(st.lists(st.integers(0, hosts - 1), unique=True, max_size=2))
    gateways = draw(
        st.none() | st.sets(st.integers(0, hosts - 1), min_size=1).map(lambda s: tuple(sorted(s)))
    )
    return demand, Setting(
        hosts,
        draw(rates),
        lan=draw(rates | st.just(math.inf)),
        host_wan=draw(rates | st.just(math.inf)),
        disk=draw(st.sampled_from([math.inf, 50e6])),
        gateways=gateways,
        cores=draw(st.sampled_from([1, 4])),
        costs=draw(st.sampled_from([FREE, Costs()])),
        slow=tuple((host, 0.1) for host in slow),
        pulls=draw(st.sampled_from([1, 4])),
        sample=draw(st.sampled_from([2, 64])),
    )


@settings(max_examples=150)
@given(clusters())
def test_no_run_is_faster_than_the_bound_or_moves_other_bytes(case: tuple[Demand, Setting]) -> None:
    demand, setting = case
    outcome = simulate(demand, setting)
    assert outcome.seconds >= outcome.bound.seconds * (1 - 1e-9)
    assert outcome.share <= 1 + 1e-9
    assert outcome.median_seconds <= outcome.seconds and outcome.first_seconds <= outcome.seconds
    assert outcome.ratio == pytest.approx(1) or setting.slow or setting.lan < math.inf
    assert outcome.wan >= outcome.union * (1 - 1e-9)
    assert sum(host.stands_for for host in outcome.hosts) == setting.hosts
    needed = sum(group.nbytes * len(group.hosts) for group in demand.groups)
    assert outcome.lan <= needed * (1 + 1e-9)
    for span in outcome.spans:
        assert all(0 <= used.all <= 1 + 1e-9 and 0 <= used.most <= 1 for used in span.used)
    work = sum(
        (s.stop - s.start) * u.all for s in outcome.spans for u in s.used if u.resource is Resource.WAN
    )
    assert work * setting.wan_within == pytest.approx(outcome.wan, rel=1e-6)


@settings(max_examples=30)
@given(clusters(), st.integers(0, 3))
def test_the_same_arguments_give_the_same_outcome(case: tuple[Demand, Setting], seed: int) -> None:
    demand, setting = case
    setting = replace(setting, seed=seed)
    assert simulate(demand, setting) == simulate(demand, setting)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("hosts", [1, 2, 8])
def test_with_links_and_cores_for_nothing_the_wan_sets_the_time(kind: str, hosts: int) -> None:
    demand = KINDS[kind](hosts, 400)
    outcome = simulate(demand, Setting(hosts, 100e6, costs=FREE))
    assert outcome.bound.limit is Limit.WAN
    assert outcome.seconds == pytest.approx(demand.union / 100e6, rel=0.05)
    assert outcome.wan == pytest.approx(demand.union)


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_full_copies_fill_every_link(hosts: int) -> None:
    outcome = simulate(copies(hosts, 256, MB), Setting(hosts, 25e6, lan=12.5e6, costs=FREE, pulls=16))
    assert outcome.bound.limit is Limit.HOST_LINK
    assert outcome.share > 0.9
    assert outcome.lan == pytest.approx((hosts - 1) * outcome.union)


def test_rows_stay_with_who_brings_them_in() -> None:
    outcome = simulate(rows(4, 200), Setting(4, 100e6, lan=1e9, costs=FREE))
    assert outcome.lan < 0.1 * outcome.union
    assert outcome.share > 0.95


def test_columns_cross_the_lan_but_for_the_part_of_who_brings_them_in() -> None:
    demand = columns(4, 200)
    outcome = simulate(demand, Setting(4, 100e6, lan=1e9, costs=FREE))
    assert outcome.lan == pytest.approx(demand.union * 3 / 4)


@pytest.mark.parametrize(
    ("change", "binds"),
    [
        ({"wan": 10e6}, "wan"),
        ({"disk": 10e6}, "disk"),
        ({"costs": replace(FREE, place=20.0)}, "python"),
        ({"costs": replace(FREE, write=80.0), "cores": 2}, "cores"),
        ({"costs": replace(FREE, receive=200.0)}, "receiving"),
        ({"lan": 20e6}, "link in"),
        ({"lan": 20e6, "gateways": (0,)}, "link out of host 0"),
        ({"lan": 20e6, "gateways": (0, 1)}, "link out of the gateways"),
    ],
)
def test_what_is_scarce_binds(change: dict[str, object], binds: str) -> None:
    demand = copies(8, 200)
    if "gateways" in change:  # half of every piece, which nobody can pass on
        demand = Demand(demand.nbytes, (Group(tuple(range(8)), (2 * MB,) * 200),), 0)
    setting = Setting(8, 1e9, lan=1e9, costs=FREE, pulls=8)
    outcome = simulate(demand, replace(setting, **change))  # type: ignore[arg-type]
    most = max({s.binds for s in outcome.spans}, key=[s.binds for s in outcome.spans].count)
    assert most == binds


def test_more_of_anything_makes_nothing_slower() -> None:
    """But for a little: what comes in order of loading, not of need, may come in a worse order."""
    demand = copies(6, 300)
    base = Setting(6, 60e6, lan=50e6, disk=60e6, cores=2, pulls=16)
    slowest = simulate(demand, base).seconds
    for change in ({"wan": 120e6}, {"lan": 100e6}, {"disk": 120e6}, {"cores": 8}, {"costs": FREE}):
        more = replace(base, **change)  # type: ignore[arg-type]
        assert simulate(demand, more).seconds <= slowest * 1.1, change


def test_a_failed_host_s_pieces_come_in_again_and_the_others_end() -> None:
    demand = rows(4, 400)
    setting = Setting(4, 50e6, lan=100e6, costs=FREE, fails=((2, 10.0),))
    outcome = simulate(demand, setting)
    assert outcome.lost == 1 and {host.host for host in outcome.hosts} == {0, 1, 3}
    assert 0.9 < outcome.ratio < 1.10, "the last of what it alone needs may be under way at the end"
    unhurt = simulate(demand, replace(setting, fails=()))
    assert unhurt.lost == 0 and unhurt.ratio == pytest.approx(1)


def test_what_only_the_failed_host_held_comes_in_again() -> None:
    demand = copies(3, 40)
    # host 0 brings everything in, and nobody can take it from it before it is gone
    setting = Setting(3, 100e6, lan=1e9, costs=FREE, gateways=(0, 1), fails=((0, 1.0),), latency=30.0)
    outcome = simulate(demand, setting)
    assert {host.host for host in outcome.hosts} == {1, 2}
    assert outcome.wan > outcome.union * 1.2
    assert outcome.seconds > 31


def test_what_a_failed_host_had_not_hashed_comes_in_again() -> None:
    slow = Costs(0, 200, 0, 0, 0, 0)  # it fails while it hashes
    outcome = simulate(copies(3, 6), Setting(3, 20e6, cores=1, costs=slow, fails=((0, 1.0),)))
    assert outcome.lost == 1 and outcome.wan > outcome.union


def test_a_slow_gateway_s_leases_are_taken_over() -> None:
    demand = rows(4, 64)
    slow = Setting(4, 100e6, lan=25e6, costs=FREE, slow=((1, 0.01),), gateways=(0, 1, 2))
    outcome = simulate(demand, slow)
    alone = demand.groups[1].nbytes / 0.25e6
    assert outcome.bound.seconds == pytest.approx(alone)
    others = [host.all for host in outcome.hosts if host.host != 1]
    assert max(others) < alone / 5, "they do not wait for what it would bring in"


def test_slow_gateways_do_not_take_a_piece_from_each_other_for_ever() -> None:
    setting = Setting(3, 5e6, lan=2e9, host_wan=5e6, costs=FREE, slow=((0, 0.1), (1, 0.1)))
    outcome = simulate(columns(3, 3), setting)
    assert outcome.seconds < 20, "8 seconds for a piece on a slow line"


def test_hosts_that_stand_for_others_give_the_times_of_all() -> None:
    for kind in (copies, columns):
        demand = kind(1, 200)
        many = Demand(demand.nbytes, (Group(tuple(range(48)), demand.groups[0].needs),), demand.first)
        setting = Setting(48, 1e9, lan=2e9)
        exact, some = simulate(many, setting), simulate(many, replace(setting, sample=12))
        assert (len(exact.hosts), len(some.hosts)) == (48, 12)
        assert some.seconds == pytest.approx(exact.seconds, rel=0.1)
        assert some.lan == pytest.approx(exact.lan, rel=0.01)


def test_pieces_that_no_followed_host_needs_are_waited_for() -> None:
    """Hosts of other groups need them: a run without them would end before its own least time."""
    own = rows(4, 40).groups[0].needs
    joined = Demand((4 * MB,) * 40, (Group((0, 1, 2, 3), own),), 4, exact=False)
    for fails in ((), ((3, 1.0),)):
        outcome = simulate(joined, Setting(4, 20e6, fails=fails, sample=1))
        assert outcome.wan >= outcome.union and outcome.share <= 1 + 1e-9


def test_those_like_no_other_are_followed_themselves() -> None:
    demand = copies(100, 2)
    setting = Setting(100, 1e9, sample=10, gateways=(3, 4), slow=((7, 0.5),), fails=((9, 1.0),))
    hosts = follow(demand, setting, Usage(1.0))
    alone = {host.number for host in hosts if host.members == (host.number,)}
    assert {3, 4, 7, 9} <= alone
    assert sorted(member for host in hosts for member in host.members) == list(range(100))
    assert 10 <= len(hosts) <= 15


def test_the_least_time_is_that_of_the_plan_where_links_are_equal() -> None:
    demand = columns(4, 10)
    bound = least_time(demand, Setting(4, 50e6, lan=20e6))
    needed = [group.nbytes for group in demand.groups]
    assert bound.terms == lower_bound(needed, demand.union, wan=50e6, lan=20e6).terms
    one = least_time(demand, Setting(4, 50e6, lan=20e6, gateways=(0,)))
    assert dict(one.terms)[Limit.WAN] == demand.union / 20e6, "one host's link is all there is"


def test_many_hosts_wait_for_their_coordinator() -> None:
    demand = copies(1, 300)
    many = Demand(demand.nbytes, (Group(tuple(range(2000)), demand.groups[0].needs),), demand.first)
    setting = Setting(2000, 2e9, lan=50e9, sample=8)
    assert setting.round_seconds == setting.answers_seconds > 2
    slow, fast = simulate(many, setting), simulate(many, replace(setting, round=1.0))
    assert slow.seconds > setting.round_seconds + fast.seconds / 2
    assert "coordinator" in {span.binds for span in slow.spans}
    assert "coordinator" not in {span.binds for span in fast.spans}
    assert replace(setting, hosts=8).round_seconds == pytest.approx(0.024)


def test_a_long_wait_for_little_is_counted_in_few_spans() -> None:
    """A byte that takes microseconds, and a host that waits seconds for another: not millions of spans."""
    lines = {"wan": 2e9, "lan": 2e9, "gateways": (0,), "costs": FREE}
    outcome = simulate(copies(2, 1, 1), Setting(2, **lines))  # type: ignore[arg-type]
    assert outcome.bound.seconds < 1e-6 < 0.01 < outcome.seconds
    assert 0 < len(outcome.spans) <= SPANS_SHOWN


def test_nothing_needed_takes_no_time() -> None:
    outcome = simulate(Demand((), (Group((0, 1), ()),), 0), Setting(2, 1e9))
    assert (outcome.seconds, outcome.wan, outcome.share, outcome.spans) == (0, 0, 1, ())
    assert outcome.median_seconds == outcome.first_seconds == 0


def first_and_all(outcome: Outcome) -> tuple[float, float]:
    return outcome.first_seconds, outcome.seconds


def test_what_loads_first_is_there_first() -> None:
    first, everything = first_and_all(simulate(copies(4, 1000), Setting(4, 100e6, lan=1e9, costs=FREE)))
    assert first < 0.3 * everything
