from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.leases import LOST_SECONDS, SETTLE_SECONDS, STALL_SECONDS, Leases
from gdist.core.piece_set import PieceSet, members, set_of

PIECE = 4 << 20


@dataclass
class Host:
    """A host that does what it is told: brings its leases in, one a turn, and places what somebody holds."""

    index: int
    needs: frozenset[int]
    gateway: bool = True
    speed: int = 1
    boot: str = "first"
    version: int | None = None
    got: set[int] = field(default_factory=set)
    held: set[int] = field(default_factory=set)
    lease: PieceSet = 0
    brought: list[int] = field(default_factory=list)
    seen: dict[int, set[int]] = field(default_factory=dict)

    def turn(self, leases: Leases, now: float, *, place: bool = True) -> bool:
        """Asks, and does something of what it learned; True once it needs nothing more."""
        answer = leases.answer(self.index, self.version, now)
        if answer.fresh:
            self.seen = {}
        for change in answer.changes:
            holders = self.seen.setdefault(change.piece, set())
            (holders.add if change.held else holders.discard)(change.host)
        self.version, self.lease = answer.version, answer.lease
        dropped = set(members(answer.spent))
        assert dropped <= self.held
        self.held -= dropped
        new = [piece for piece in members(answer.lease) if piece not in self.held][: self.speed]
        self.brought += new
        self.held |= set(new)
        inside = {piece for piece, holders in self.seen.items() if holders} | self.held
        placed = (self.needs & inside) - self.got if place else set()
        self.got |= placed
        leases.report(
            self.index,
            held=set_of(new),
            dropped=set_of(dropped),
            got=set_of(placed),
            rate=self.speed * PIECE,
            done=self.got == self.needs,
            now=now,
        )
        return self.got == self.needs

    def enrol(self, leases: Leases, now: float) -> None:
        self.version = None
        leases.enrol(
            self.index,
            self.boot,
            gateway=self.gateway,
            needs=set_of(self.needs - self.got),
            held=set_of(self.held),
            leased=self.lease & ~set_of(self.held),
            now=now,
        )


def run(leases: Leases, hosts: list[Host], now: float = 0.0, turns: int = 3000) -> float:
    """Lets all take turns until all are done, a tenth of a second a round; the time."""
    for _ in range(turns):
        now += 0.1
        if sum(host.turn(leases, now) for host in hosts) == len(hosts):
            return now
    raise AssertionError(f"not done: {[len(host.needs - host.got) for host in hosts]}")


@st.composite
def clusters(draw: st.DrawFn) -> tuple[int, list[Host]]:
    pieces = draw(st.integers(1, 60))
    count = draw(st.integers(1, 6))
    gateways = draw(st.sets(st.integers(0, count - 1), min_size=1))
    return pieces, [
        Host(i, frozenset(draw(st.sets(st.integers(0, pieces - 1)))), i in gateways, draw(st.integers(1, 3)))
        for i in range(count)
    ]


@settings(max_examples=150)
@given(clusters())
def test_every_needed_piece_comes_in_once_and_is_given_back(cluster: tuple[int, list[Host]]) -> None:
    pieces, hosts = cluster
    leases = Leases([PIECE] * pieces, len(hosts))
    for host in hosts:
        host.enrol(leases, 0.0)
    now = run(leases, hosts)
    brought = [piece for host in hosts for piece in host.brought]
    assert sorted(brought) == sorted(frozenset().union(*(host.needs for host in hosts)))
    assert all(host.gateway or not host.brought for host in hosts)
    for host in hosts:
        host.turn(leases, now + 1)
    assert not any(host.held for host in hosts), "everything is spent at the end"
    assert leases.done() and leases.brought == PIECE * len(brought)


@settings(max_examples=100)
@given(clusters(), st.integers(0, 10), st.randoms(use_true_random=False))
def test_a_host_that_dies_costs_only_what_it_held(
    cluster: tuple[int, list[Host]], turns: int, chance: random.Random
) -> None:
    pieces, hosts = cluster
    hosts = [*hosts, Host(len(hosts), frozenset(range(pieces)))]  # so that somebody can bring all in
    leases = Leases([PIECE] * pieces, len(hosts))
    for host in hosts:
        host.enrol(leases, 0.0)
    for turn in range(turns):
        for host in hosts:
            host.turn(leases, turn / 10)
    victim = chance.choice(hosts[:-1])
    now = turns / 10
    while victim.index not in leases.expire(now):
        now += 1
        for host in hosts:
            if host is not victim:
                host.turn(leases, now)
        assert now < LOST_SECONDS * 3
    lost = set(victim.held)
    victim.boot, victim.held = "second", set()
    victim.enrol(leases, now)
    run(leases, hosts, now)
    brought = [piece for host in hosts for piece in host.brought]
    assert set(brought) == frozenset().union(*(host.needs for host in hosts))
    twice = {piece for piece in brought if brought.count(piece) > 1}
    assert twice <= lost, "only what was lost comes in again"


def enrolled(count: int, pieces: int = 64, **changes: object) -> tuple[Leases, list[Host]]:
    hosts = [Host(i, frozenset(range(pieces)), **changes) for i in range(count)]  # type: ignore[arg-type]
    leases = Leases([PIECE] * pieces, count)
    for host in hosts:
        host.enrol(leases, 0.0)
    return leases, hosts


def test_leases_follow_loading_order_and_are_shared_out() -> None:
    leases, hosts = enrolled(4)
    given_out = [set(members(leases.answer(host.index, None, 0.0).lease)) for host in hosts]
    assert set().union(*given_out) == set(range(sum(map(len, given_out)))), "the first pieces, each once"
    assert max(map(len, given_out)) - min(map(len, given_out)) <= 1


def test_faster_lines_bring_more_in() -> None:
    leases, hosts = enrolled(2, 400)
    hosts[0].speed = 4
    run(leases, hosts)
    assert 2 < len(hosts[0].brought) / len(hosts[1].brought) < 8


def test_a_stalled_host_loses_its_leases_to_others() -> None:
    leases, hosts = enrolled(2, 8)
    stuck = leases.answer(0, None, 0.0).lease
    assert stuck
    now = 0.0
    while hosts[1].got != hosts[1].needs:
        now += 1.0
        hosts[1].turn(leases, now)
        leases.report(0, now=now)  # alive, and brings nothing in
        assert now < 2 * STALL_SECONDS
    assert sorted(hosts[1].brought) == list(range(8))


@pytest.mark.parametrize("speeds", [(3, 1, 1, 1), (1, 1, 1, 1), (2, 2, 1, 1)])
def test_who_has_much_to_give_leaves_pieces_to_others(speeds: tuple[int, ...]) -> None:
    """Lines outside may be unlike; where those inside bind, each is to give about as much."""
    leases, hosts = enrolled(4, 800)
    for host, speed in zip(hosts, speeds, strict=True):
        host.speed = speed
    now = 0.0
    while any(host.got != host.needs for host in hosts):
        now += 0.1
        assert now < 200
        for host in hosts:
            host.turn(leases, now, place=False)
        lines = {host.index: 2 for host in hosts}  # pieces that each gives to others, a turn
        for host in hosts:
            placed = host.needs & host.held - host.got
            for piece in sorted(host.needs - host.got - placed):
                giver = min(host.seen.get(piece, set()), default=None)
                if giver is not None and lines[giver]:
                    lines[giver] -= 1
                    placed |= {piece}
            host.got |= placed
            leases.report(host.index, got=set_of(placed), done=host.got == host.needs, now=now)
    brought = [len(host.brought) for host in hosts]
    assert sum(brought) == 800
    assert max(brought) <= 1.2 * 800 / 4, brought


def test_a_line_without_equal_brings_in_all_it_can() -> None:
    """However much one host has to give: were the others' lines waited for, it would take longer."""
    leases, hosts = enrolled(4, 400)
    hosts[0].speed = 40
    for turn in range(20):
        for host in hosts:
            host.turn(leases, 0.1 * turn, place=False)
    assert len(hosts[0].brought) > 200


def test_a_slow_host_is_helped_at_the_end() -> None:
    """What would take it minutes is taken over by one that has nothing to do."""
    leases, hosts = enrolled(2, 8)
    leases.answer(0, None, 0.0)
    now = 0.0
    while hosts[1].got != hosts[1].needs:
        now += 1.0
        hosts[1].turn(leases, now)
        leases.report(0, rate=1000.0, now=now)
        assert now < 60
    assert sorted(hosts[1].brought) == list(range(8))


def test_nothing_is_spent_before_all_hosts_told_what_they_need() -> None:
    leases = Leases([PIECE] * 4, 2)
    first = Host(0, frozenset(range(4)))
    first.enrol(leases, 0.0)
    for turn in range(10):
        first.turn(leases, SETTLE_SECONDS + turn)
    assert first.got == first.needs and first.held == set(range(4))
    answer = leases.answer(0, first.version, 20.0)
    assert answer.spare == set_of(range(4)) and not answer.spent and answer.wanted
    second = Host(1, frozenset({1, 2}), gateway=False)
    second.enrol(leases, 21.0)
    second.turn(leases, 21.1)
    first.turn(leases, 21.2)
    assert first.held == set() and second.got == {1, 2}


def test_a_lone_early_host_waits_a_moment_for_those_who_may_have_pieces_already() -> None:
    leases = Leases([PIECE] * 4, 2)
    Host(0, frozenset(range(4))).enrol(leases, 0.0)
    assert not leases.answer(0, None, SETTLE_SECONDS / 2).lease
    assert leases.answer(0, None, SETTLE_SECONDS).lease


def test_a_new_coordinator_learns_who_has_what() -> None:
    leases, hosts = enrolled(3, 30)
    for turn in range(4):
        for host in hosts:
            host.turn(leases, turn / 10)
    before = [set(host.brought) for host in hosts]
    begun = [host.lease & ~set_of(host.held) for host in hosts]
    assert any(begun)
    again = Leases([PIECE] * 30, 3)
    for host in hosts:
        host.enrol(again, 10.0)
    for host, pieces in zip(hosts, begun, strict=True):
        assert not pieces & ~again.answer(host.index, None, 10.0).lease, "half of them may be here"
    run(again, hosts, 10.0)
    brought = [piece for host in hosts for piece in host.brought]
    assert sorted(brought) == list(range(30)), f"each once, {before} before"


def test_what_nobody_needs_any_more_is_not_brought_in_for_a_new_coordinator() -> None:
    leases = Leases([PIECE] * 4, 2)
    leases.enrol(0, "a", gateway=True, needs=0b0001, held=0, had=0b1110, leased=0b0111, now=0.0)
    assert leases.answer(0, None, 0.1).lease == 0b0111, "the other host may need them"
    leases.enrol(1, "b", gateway=True, needs=0b0010, held=0, had=0b1100, now=0.2)
    assert leases.answer(0, None, 0.3).lease == 0b0011


def test_a_new_coordinator_learns_what_came_in_and_went() -> None:
    leases = Leases([PIECE] * 6, 2)
    leases.enrol(0, "a", gateway=True, needs=0b110000, held=0b010000, had=0b011101, now=0.0)
    assert leases.union == 0b111101 and leases.union_nbytes == 5 * PIECE
    assert leases.brought == 4 * PIECE and leases.inside == 0b010000
    leases.enrol(1, "b", gateway=True, needs=0b100000, held=0, had=0b000001, now=0.0)
    assert (leases.union_nbytes, leases.brought) == (5 * PIECE, 4 * PIECE)
    assert leases.spent == 0b001101


def test_a_host_that_goes_hands_over_and_gets_nothing_more() -> None:
    leases, hosts = enrolled(2, 20)
    hosts[0].turn(leases, 0.1)
    leases.leave(0)
    assert not leases.answer(0, None, 0.2).lease
    hosts[1].turn(leases, 0.3)
    leases.remove(0)
    now = 0.3
    while hosts[1].got != hosts[1].needs:
        now += 0.1
        hosts[1].turn(leases, now)
    assert set(hosts[1].brought) | hosts[1].got >= set(range(20))


def test_a_host_that_was_done_is_not_missed_when_it_is_gone() -> None:
    leases, hosts = enrolled(2, 6)
    run(leases, hosts)
    leases.remove(0)
    assert leases.absent == 0 and leases.done()


def test_a_host_that_finished_in_an_earlier_run_is_not_waited_for() -> None:
    leases = Leases([PIECE] * 4, 2)
    leases.finish(1)
    host = Host(0, frozenset(range(4)))
    host.enrol(leases, 0.0)
    run(leases, [host])
    assert leases.done()
    host.turn(leases, 99.0)
    assert not host.held


def test_pieces_given_back_too_early_are_brought_in_by_another() -> None:
    leases = Leases([PIECE] * 2, 3)
    for index in (0, 1):
        Host(index, frozenset({0, 1})).enrol(leases, 0.0)
        leases.report(index, held=set_of({0, 1}), got=set_of({0, 1}), done=True, now=4.0)
    leases.report(0, dropped=set_of({0, 1}), now=4.0)
    leases.report(1, dropped=set_of({1}), now=4.0)
    late = Host(2, frozenset({0, 1}), gateway=False)
    late.enrol(leases, 5.0)
    late.turn(leases, 5.1)
    assert late.got == {0}
    leases.report(0, now=5.2)
    leases.report(1, now=5.2)
    leased: list[PieceSet] = [leases.answer(index, None, 5.3).lease for index in (0, 1)]
    assert set_of({1}) in leased, "all have given it back, so one brings it in again"


@settings(max_examples=60)
@given(clusters(), st.integers(0, 12), st.randoms(use_true_random=False))
def test_sums_that_are_kept_equal_those_made_anew(
    cluster: tuple[int, list[Host]], turns: int, chance: random.Random
) -> None:
    """Hosts come, work, come again, are denied pieces, leave and are given up, in any order."""
    pieces, hosts = cluster
    leases = Leases([PIECE] * pieces, len(hosts) + 1)
    for turn in range(4 * turns):
        host = chance.choice(hosts)
        what = chance.randrange(12)
        if not leases.knows(host.index, host.boot) or what == 0:
            host.boot = chance.choice(["first", "second"])
            host.enrol(leases, turn / 10)
        elif what == 1:
            leases.remove(host.index)
        elif what == 2:
            leases.deny(host.index, set_of(host.held))
            host.held = set()
        elif what == 3:
            leases.leave(host.index)
        else:
            host.turn(leases, SETTLE_SECONDS + turn / 10)
        known = leases._hosts.values()
        opened, inside, leased = 0, 0, 0
        for each in known:
            opened, inside, leased = opened | each.open, inside | each.held, leased | set_of(each.leased)
        assert (leases._open.some, leases.inside, leases._leased) == (opened, inside, leased)
        assert not leased & inside


def test_unknown_versions_are_told_everything() -> None:
    leases, _ = enrolled(2, 4)
    leases.report(0, held=set_of({0, 1}), now=0.1)
    for version in (None, -1, 999):
        answer = leases.answer(1, version, 0.2)
        assert answer.fresh and {change.piece for change in answer.changes} == {0, 1}


@pytest.mark.parametrize("count", [1, 8])
def test_the_end_is_shared_out_piece_by_piece(count: int) -> None:
    """With few pieces left nobody takes several while others have none."""
    leases, hosts = enrolled(count, count)
    leased = [leases.answer(host.index, None, 0.0).lease.bit_count() for host in hosts]
    assert sum(leased) == count and (count == 1 or max(leased) == 1)
