"""Leases of a simulated coordinator: every piece to one gateway, in order, by rate; nothing stays behind."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.leases import LEASE_SECONDS, LOOKAHEAD, STEAL_SECONDS
from gdist.core.simulation.leases import LeaseBook

MIB = 1 << 20


def book(pieces: int, gateways: int, nbytes: int = 16 * MIB) -> LeaseBook:
    """Hosts that need every piece alike."""
    return LeaseBook([nbytes] * pieces, range(gateways), lambda host, piece: 1)


def drain(leases: LeaseBook, host: int) -> list[int]:
    """Brings in all that a host has leased."""
    found = []
    while (piece := leases.first(host)) is not None:
        leases.done(host, piece, 1e6)
        found.append(piece)
    return found


def test_leases_come_in_loading_order_and_once() -> None:
    leases = book(100, 2)
    leases.grant(0, 0.0)
    leases.grant(1, 0.0)
    assert drain(leases, 0) == [0, 1] and drain(leases, 1) == [2, 3]
    leases.grant(0, 0.0)
    assert drain(leases, 0) == [4, 5]


def test_who_is_faster_gets_more() -> None:
    leases = book(1000, 2)
    for host, rate in ((0, 16e6), (1, 160e6)):
        leases.grant(host, 0.0)
        piece = leases.first(host)
        assert piece is not None
        leases.done(host, piece, rate)
        leases.grant(host, 0.0)
    counts = [len(drain(leases, host)) for host in range(2)]
    assert counts == [math.ceil(rate * LEASE_SECONDS / (16 * MIB)) for rate in (16e6, 160e6)]


def test_towards_the_end_everyone_gets_less() -> None:
    leases = book(6, 3)
    leases.grant(0, 0.0)
    assert drain(leases, 0) == [0], "the last ones are shared out one by one"


def test_a_host_gets_what_it_needs_itself_before_others_near_by() -> None:
    leases = LeaseBook([16 * MIB] * 200, range(2), lambda host, piece: piece % 2 == host)
    leases.grant(1, 0.0)
    assert drain(leases, 1) == [1, 3]
    far = LeaseBook([16 * MIB] * 200, range(2), lambda host, piece: piece >= LOOKAHEAD)
    far.grant(0, 0.0)
    assert drain(far, 0) == [0, LOOKAHEAD], "not at the price of the order"


def test_what_a_gone_host_had_is_free_again() -> None:
    leases = book(100, 2)
    leases.grant(0, 0.0)
    leases.gone(0)
    leases.grant(1, 0.0)
    assert drain(leases, 1) == [0, 1]
    leases.grant(0, 0.0)
    assert leases.first(0) is None, "and it gets nothing more"
    leases.again(0)
    leases.grant(1, 0.0)
    assert leases.first(1) == 0


def test_idle_hosts_take_over_what_would_take_long() -> None:
    leases = book(4, 2)
    for host, rate in ((0, 1e6), (1, 100e6)):
        leases.grant(host, 0.0)
        piece = leases.first(host)
        assert piece is not None
        leases.done(host, piece, rate)
        leases.grant(host, 0.0)
    drain(leases, 1)
    leases.grant(1, 0.0)
    drain(leases, 1)
    left = leases.first(0)
    assert left is not None
    assert leases.steal([1], STEAL_SECONDS / 2) == [], "not at once"
    assert leases.steal([1], STEAL_SECONDS + 1) == [(0, 1, left)]
    assert leases.first(0) is None and leases.first(1) == left
    assert leases.steal([0], 2 * STEAL_SECONDS + 2) == [], "nor back again"


@given(st.integers(1, 60), st.integers(1, 6), st.lists(st.integers(0, 5), max_size=200))
def test_every_piece_comes_in_once_whatever_the_turns(pieces: int, gateways: int, turns: list[int]) -> None:
    leases = LeaseBook([(n % 7 + 1) * MIB for n in range(pieces)], range(gateways), lambda h, p: (h + p) % 3)
    found: list[int] = []
    for now, turn in enumerate(turns):
        host = turn % gateways
        leases.grant(host, float(now))
        piece = leases.first(host)
        if piece is not None:
            leases.done(host, piece, 1e6 * (host + 1))
            found.append(piece)
        leases.steal(range(gateways), float(now))
    for host in range(gateways):
        found += drain(leases, host)
    while True:
        leases.grant(0, 1e3)
        if leases.first(0) is None:
            break
        found += drain(leases, 0)
    assert sorted(found) == list(range(pieces))


def test_nothing_to_do_is_fine() -> None:
    leases = LeaseBook([], [0], lambda host, piece: 1)
    leases.grant(0, 0.0)
    assert leases.first(0) is None and leases.steal([0], 9.0) == []
    with pytest.raises(KeyError):
        leases.done(0, 0, 1.0)
