"""Whom a host takes pieces from, and how many at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gdist.core.taking import AT_ONCE
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


def test_a_host_takes_first_what_it_is_to_pass_on(link: Link) -> None:
    """All others wait for that; it may lie further ahead than is looked."""
    peers = link.inside.peers
    link.inside.peers = {i: Peer(i, peer.address, i == 1, "live", peer.name) for i, peer in peers.items()}
    order = tuple(range(6 * LOOKAHEAD))
    link.inside.holders = {piece: {1} if piece % 3 == 0 else {1, 2} for piece in order}
    found = others(link, order)
    found.takes_whole = True
    for piece in order[: 3 * LOOKAHEAD : 3]:
        found.forget(piece)  # taken already
    half, given = AT_ONCE // 2, found.ready()
    assert given[:half] == order[3 * LOOKAHEAD :: 3][:half]
    assert given[half:] == order[2::3][:half], "the line of host 1, the home of the others, is busy"


def test_a_pieces_home_is_waited_for_also_while_it_is_busy(link: Link) -> None:
    """Only host 1 uses the outside, and would have to give each piece to all: host 2 passes on its own."""
    peers = link.inside.peers
    link.inside.peers = {i: Peer(i, peer.address, i == 1, "live", peer.name) for i, peer in peers.items()}
    link.inside.holders = {piece: {1, 2} for piece in ORDER}
    found = others(link)
    found.takes_whole = True
    for piece in ORDER[::3]:
        found.forget(piece)  # this host is their home
    given = found.ready()
    half = AT_ONCE // 2
    assert [piece for piece in given if piece % 3 == 1] == list(ORDER[1::3][:half])
    assert [piece for piece in given if piece % 3 == 2] == list(ORDER[2::3][:half])
    for piece in ORDER[1::3][:half]:
        found.let_go(piece)
    assert found.ready() == ORDER[1::3][half : 2 * half], "host 2 is busy; host 1 is not asked for its pieces"
