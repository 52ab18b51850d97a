"""Whom a host takes pieces from, and how many at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gdist.core.taking import AT_ONCE, HOME_SECONDS, HOME_TIMES
from gdist.errors import PieceLost
from gdist.exchange import Key
from gdist.run.cluster.link import Link
from gdist.run.cluster.others import LOOKAHEAD, Others
from gdist.run.cluster.way import Peer

GIVERS = (1, 2)
EACH = 100
ORDER = tuple(range(2 * EACH))


@pytest.fixture
def link() -> Iterator[Link]:
    """Host 0's, which has not joined: host 1 has all even pieces, host 2 the odd ones."""
    me = {"index": 0, "own": "127.0.0.1:1", "boot": "here"}
    key = Key.from_secret("s", "j")
    made = Link(me, ("127.0.0.1:1",), key, encrypt=False, status=dict, stop=lambda: None)
    made.inside.peers = {i: Peer(i, f"127.0.0.1:{i + 1}", True, "live", f"h{i}") for i in (0, *GIVERS)}
    made.inside.holders = {piece: {GIVERS[piece % 2]} for piece in ORDER}
    yield made
    made.close()


def others(link: Link, order: tuple[int, ...] = ORDER, *, paced: bool = True) -> Others:
    place = {piece: at for at, piece in enumerate(order)}
    made = Others(link, order, place, lambda piece, data: True, paced=paced)
    for piece in order:
        made.wait_for(piece)
    return made


def test_a_few_are_given_out_from_each_host_in_loading_order(link: Link) -> None:
    found = others(link)
    assert found.ready() == ORDER[:AT_ONCE]
    assert found.ready() == ()
    found.let_go(3)
    assert found.ready() == (AT_ONCE + 1,), "the next one of the host that gave piece 3"


def test_the_line_of_a_busy_host_is_waited_for_and_no_other(link: Link) -> None:
    """Pieces of the other host are taken though those of the busy one come first."""
    order = tuple(sorted(ORDER, key=lambda piece: (piece % 2, piece)))  # all of host 1's first
    link.inside.holders = {place: {GIVERS[piece % 2]} for place, piece in enumerate(order)}
    found = others(link, order)
    half = AT_ONCE // 2
    assert found.ready() == (*order[:half], *order[EACH : EACH + half])
    for piece in order[EACH : EACH + half]:
        found.let_go(piece)
        assert found.ready() == (piece + 2 * half,)


def test_only_so_far_ahead_is_looked(link: Link) -> None:
    """With many pieces of one host first, those of others wait: a look costs the same at any size."""
    order = tuple(range(2 * LOOKAHEAD))
    link.inside.holders = {piece: {1 if piece < LOOKAHEAD else 2} for piece in order}
    found = others(link, order)
    assert found.ready() == order[: AT_ONCE // 2]


def test_all_are_given_out_to_who_reads_headers(link: Link) -> None:
    assert others(link, paced=False).ready() == ORDER


def test_a_piece_that_is_forgotten_or_gone_is_not_given_out(link: Link) -> None:
    found = others(link)
    found.forget(0)
    link.inside.holders[1].clear()
    assert found.ready()[:2] == (2, 3)
    with pytest.raises(PieceLost, match="nobody has piece 1"):
        found.read(1, memoryview(bytearray(4)), ())


def test_a_host_that_did_not_answer_is_left_alone_for_a_while(link: Link) -> None:
    """Nobody listens at its address."""
    found = others(link)
    given = found.ready()
    with pytest.raises(PieceLost, match="host 1 did not give piece 0"):
        found.read(0, memoryview(bytearray(4)), ())
    for piece in given:
        found.let_go(piece)
    assert {piece % 2 for piece in found.ready()} == {1}


def few_gateways(link: Link) -> None:
    """Only host 1 uses the outside: this host is the home of all even pieces, host 2 of the odd ones."""
    peers = link.inside.peers
    link.inside.peers = {i: Peer(i, peer.address, i == 1, "live", peer.name) for i, peer in peers.items()}


def test_a_host_takes_first_what_it_is_to_pass_on(link: Link) -> None:
    """All others wait for that; it may lie further ahead than is looked."""
    few_gateways(link)
    order = tuple(range(6 * LOOKAHEAD))
    link.inside.holders = {piece: {1, 2} if piece % 2 else {1} for piece in order}
    found = others(link, order)
    found.takes_whole = True
    for piece in order[: 4 * LOOKAHEAD : 2]:
        found.forget(piece)  # taken already
    half, given = AT_ONCE // 2, found.ready()
    assert given == (*order[4 * LOOKAHEAD :: 2][:half], *order[1::2][:half])


def test_a_pieces_home_is_waited_for_also_while_it_is_busy(link: Link) -> None:
    few_gateways(link)
    link.inside.holders = {piece: {1, 2} for piece in ORDER}
    found = others(link)
    found.takes_whole = True
    for piece in ORDER[::2]:
        found.forget(piece)
    half, mine = AT_ONCE // 2, ORDER[1::2]
    assert found.ready() == mine[:half]
    assert found.ready() == ()
    for piece in mine[:half]:
        found.let_go(piece)
    assert found.ready() == mine[half : 2 * half], "host 2 was busy; host 1 is not asked for its pieces"


def test_a_home_that_has_a_piece_later_than_usual_is_not_waited_for(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of them take long, the line all wait for binds, and to ask it more makes it worse."""
    few_gateways(link)
    now = [1000.0]
    monkeypatch.setattr("gdist.run.cluster.others.time.monotonic", lambda: now[0])
    link.inside.holders = {piece: {1} for piece in ORDER}
    found = others(link)
    found.takes_whole = True
    for piece in ORDER[::2]:
        found.forget(piece)
    others_own = ORDER[1::2]  # host 2 is their home

    def taken() -> list[int]:
        given = found.ready()
        for piece in given:
            found.let_go(piece)
        return list(given)

    assert taken() == []
    now[0] += HOME_SECONDS * 0.9
    assert taken() == []
    for piece in others_own[:20]:  # host 2 had them after just under two seconds
        link.inside.holders[piece] = {1, 2}
    assert {piece for _ in range(5) for piece in taken()} == set(others_own[:20])
    now[0] += HOME_SECONDS
    assert taken() == [], "it is usual to wait so long"
    now[0] += HOME_SECONDS * HOME_TIMES
    assert tuple(taken()) == others_own[20 : 20 + AT_ONCE // 2], "host 1 gives them"
