"""The least time of a distribution, and who brings in what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.bound import Limit, lower_bound, wan_owners, wan_shares


@pytest.mark.parametrize(
    ("needed", "union", "wan", "lan", "seconds", "limit"),
    [
        ([100], 100, 10, float("inf"), 10, Limit.WAN),
        ([100, 100], 100, 10, 1000, 10, Limit.WAN),  # needed twice, comes in once
        ([100, 10], 110, 100, 10, 10, Limit.HOST_LINK),
        # all need everything: the cluster takes in 400, its links push 10 + 4 * 20 a second
        ([100] * 4, 100, 50, 20, 5, Limit.HOST_LINK),
        ([90, 90, 90], 10, 10, 50, 1.8, Limit.HOST_LINK),
        ([100] * 10, 10, 10, 105, 1, Limit.WAN),
    ],
)
def test_the_bound_is_its_largest_term(
    needed: list[int], union: int, wan: float, lan: float, seconds: float, limit: Limit
) -> None:
    bound = lower_bound(needed, union, wan=wan, lan=lan)
    assert bound.seconds == pytest.approx(seconds)
    assert bound.limit is limit
    assert len(bound.terms) == 3


def test_what_all_hosts_send_is_what_all_receive() -> None:

    bound = lower_bound([100] * 2, 1, wan=1, lan=99)
    terms = dict(bound.terms)
    assert terms[Limit.ALL_LINKS] == pytest.approx(200 / 199)
    assert bound.limit is Limit.HOST_LINK


@given(st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=6))
def test_every_piece_comes_in_once_by_a_host_that_needs_it(needs: list[set[int]]) -> None:
    owners = wan_owners(needs, lambda piece: piece + 1)
    assert owners.keys() == set().union(*needs) and all(
        piece in needs[host] for piece, host in owners.items()
    )
    shares = wan_shares(owners, len(needs), lambda piece: piece + 1)
    assert sum(shares) == sum(piece + 1 for piece in set().union(*needs))
    for host, share in enumerate(shares):
        assert share <= sum(piece + 1 for piece in needs[host])


def test_shares_are_even_where_everyone_needs_everything() -> None:
    shares = wan_shares(wan_owners([range(1000)] * 8, lambda piece: 16), 8, lambda piece: 16)
    assert max(shares) - min(shares) <= 16
