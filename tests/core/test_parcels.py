"""Parcels: everything that is wanted arrives once, from somebody who has it, in rounds all agree on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box, tiles_of
from gdist.core.layout import CACHE_LINE
from gdist.core.parcels import (
    HEADER_BYTES,
    Deal,
    Index,
    Kind,
    Round,
    deal,
    padded,
    rounds_of,
    slot_for,
    wire_nbytes,
)


@st.composite
def scenes(
    draw: st.DrawFn,
) -> tuple[tuple[int, ...], tuple[int, ...], dict[Index, list[int]], list[list[Box]]]:
    """A tensor's shape, its shards' shape, who has each, and what each host wants: cells of another grid."""
    hosts = draw(st.integers(2, 5))
    ndim = draw(st.integers(0, 3))
    cuts = [draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))) for _ in range(ndim)]
    shape = tuple(a * b * c for a, b, c in cuts)
    shard = tuple(b * c for _, b, c in cuts)
    cell = tuple(a * c for a, _, c in cuts)
    someone = st.lists(st.integers(0, hosts - 1), min_size=1, max_size=hosts, unique=True).map(sorted)
    holders = {index: draw(someone) for index, _ in tiles_of(Box.whole(shape), shard)}
    cells = [box for _, box in tiles_of(Box.whole(shape), cell)]
    wants = [draw(st.lists(st.sampled_from(cells), unique=True)) for _ in range(hosts)]
    return shape, shard, holders, wants


def received(one: Deal, hosts: int, limit: int) -> Iterator[tuple[int, int, Box, int]]:
    """Receiver, sender, box and target of all that travels, as the hosts themselves read it."""
    for turn in rounds_of([(7, one)], hosts, limit):
        for host in range(hosts):
            for _, sender in turn.receives(host):
                for number, item in turn.parcel(sender, host):
                    assert number == 7
                    yield host, sender, item.box, item.target


@given(scenes(), st.sampled_from([1, 2, 4]), st.sampled_from([1, 64, 200, 10**6]))
def test_everything_wanted_arrives_once_from_who_has_it(scene, itemsize: int, limit: int) -> None:  # type: ignore[no-untyped-def]
    shape, shard, holders, wants = scene
    hosts = len(wants)
    one = deal(shard, holders, wants, itemsize, limit)
    assert not one.absent
    seen = [np.zeros(shape, int) for _ in wants]
    for host, items in enumerate(one.own):
        for item in items:
            assert wants[host][item.target].contains(item.box)
            ((index, _),) = tiles_of(item.box, shard)
            assert host in holders[index]
            seen[host][item.box.slices()] += 1
    for host, sender, box, target in received(one, hosts, limit):
        assert host != sender
        assert wants[host][target].contains(box)
        ((index, _),) = tiles_of(box, shard)  # so a sender reads it from one file
        assert sender in holders[index] and host not in holders[index]
        seen[host][box.slices()] += 1
    for host, boxes in enumerate(wants):
        expected = np.zeros(shape, int)
        for box in boxes:
            expected[box.slices()] = 1
        assert (seen[host] == expected).all()


@given(scenes(), st.sampled_from([1, 2, 4]), st.sampled_from([64, 200, 1000]), st.integers(1, 4))
def test_parcels_fit_and_rows_meet(scene, itemsize: int, limit: int, copies: int) -> None:  # type: ignore[no-untyped-def]
    _, shard, holders, wants = scene
    hosts = len(wants)
    one = deal(shard, holders, wants, itemsize, limit)
    for turn in rounds_of([(number, one) for number in range(copies)], hosts, limit):
        for sender, receiver in turn.pairs:
            nbytes = sum(padded(item.box, itemsize) for _, item in turn.parcel(sender, receiver))
            assert 0 < nbytes <= limit
            assert HEADER_BYTES + nbytes <= turn.slot
            assert sender in [other for _, other in turn.receives(receiver)]
        sent = {host: dict(turn.sends(host)) for host in range(hosts)}
        for host in range(hosts):
            rows = [row for row, _ in turn.receives(host)]
            assert len(set(rows)) == len(rows) and all(0 <= row < turn.rows_received for row in rows)
            assert len(sent[host]) == len(list(turn.sends(host)))
            assert all(0 <= row < turn.rows_sent for row in sent[host])
        for hop in turn.hops:
            pairs = turn.pairs_at(hop)
            assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
        if turn.kind is Kind.PAIRS:
            assert sorted(itertools.chain(*map(turn.pairs_at, turn.hops))) == sorted(turn.pairs)
            for host in range(hosts):
                for row, sender in turn.receives(host):
                    assert sent[sender][row] == host  # what lies in this row here was put there for us


def by_hosts(rows: int, hosts: int) -> dict[Index, list[int]]:
    return {(row, 0): [row * hosts // rows] for row in range(rows)}


def rounds(wants: list[list[Box]], shape: tuple[int, int], limit: int = 10**6) -> list[Round]:
    hosts = len(wants)
    one = deal((shape[0] // hosts, shape[1]), by_hosts(hosts, hosts), wants, 4, limit)
    return list(rounds_of([(0, one)], hosts, limit))


def columns(hosts: int, shape: tuple[int, int]) -> list[list[Box]]:
    width = shape[1] // hosts
    return [[Box((0, n * width), (shape[0], (n + 1) * width))] for n in range(hosts)]


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_the_kind_follows_from_who_wants_what(hosts: int) -> None:
    shape = (8 * hosts, 1024 * hosts)
    (gather,) = rounds([[Box.whole(shape)]] * hosts, shape)
    assert gather.kind is Kind.GATHER  # replicas everywhere
    (to_columns,) = rounds(columns(hosts, shape), shape)
    assert to_columns.kind is (Kind.ALL if hosts > 2 else Kind.GATHER)  # of two each has one other
    assert not rounds([[Box((8 * n, 0), (8 * n + 8, shape[1]))] for n in range(hosts)], shape)  # as they lie
    if hosts > 2:
        half = [[Box((0, 0), (shape[0] // 2, shape[1]))], [Box((shape[0] // 2, 0), shape)]]
        (halves,) = rounds([half[n * 2 // hosts] for n in range(hosts)], shape)
        assert halves.kind is Kind.PAIRS  # replicas within halves
        (only,) = rounds([[Box.whole(shape)], *([[]] * (hosts - 1))], shape)
        assert only.kind is Kind.PAIRS and len(only.pairs) == hosts - 1


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_little_more_than_the_least_is_moved(hosts: int) -> None:
    shape = (8 * hosts, 4096 * hosts)
    for wants in ([[Box.whole(shape)]] * hosts, columns(hosts, shape)):
        least = sum(box.size for box in wants[0]) * 4 * (hosts - 1) // hosts
        assert least <= sum(wire_nbytes(one, 0) for one in rounds(wants, shape)) <= 1.08 * least


def test_a_tensor_larger_than_memory_takes_rounds() -> None:
    shape = (64, 4096)
    found = rounds(columns(4, shape), shape, limit=1 << 14)
    assert len(found) == 64 * 1024 * 4 // 4 // (1 << 14)
    assert all(one.slot <= (1 << 14) + HEADER_BYTES + 4096 for one in found)


def test_small_tensors_share_a_round() -> None:
    one = deal((4,), {(0,): [0]}, [[], [Box((0,), (4,))]], 4, 10**6)
    other = deal((4,), {(0,): [1]}, [[Box((0,), (4,))], []], 4, 10**6)
    (turn,) = rounds_of([(0, one), (1, other), (2, one)], 2, 10**6)
    assert [number for number, _ in turn.parcel(0, 1)] == [0, 2]
    assert [number for number, _ in turn.parcel(1, 0)] == [1]


def test_what_nobody_has_is_named() -> None:
    one = deal((4,), {(0,): [0]}, [[], [Box((0,), (8,))]], 4, 10**6)
    assert one.absent == ((1, (1,)),)


def test_nothing_wanted_is_no_round() -> None:
    one = deal((4,), {(0,): [0]}, [[Box((0,), (4,))], []], 4, 10**6)
    assert not list(rounds_of([(0, one)], 2, 10**6))
    assert not list(rounds_of([], 2, 10**6))


@given(st.integers(1, 2**40))
def test_slots_are_few_and_hardly_larger(nbytes: int) -> None:
    slot = slot_for(nbytes)
    assert nbytes <= slot <= nbytes + max(nbytes // 16, 4096) and slot % CACHE_LINE == 0
    assert slot_for(slot) == slot
