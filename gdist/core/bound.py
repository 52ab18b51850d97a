"""How fast a cluster could possibly be fed, and what each host brings in when no byte comes in twice.

For hosts i that need B_i bytes, their union U, a rate W into the cluster, and rates d_i into and u_i out of
each host (all its links together):

    T_min = max( U / W,  max B_i / d_i,  sum B_i / (W + sum u_i) )

Once into the cluster; the host with the slowest link for what it needs; all links together. It is the
classic bound of distribution among peers, for unequal needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Limit(Enum):
    """The resource that a term of the bound is about."""

    WAN = "wan"
    HOST_LINK = "host link"
    INTERCONNECT = "interconnect"
    ALL_LINKS = "all links together"


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time in seconds, and the terms it is the largest of."""

    terms: tuple[tuple[Limit, float], ...]

    @property
    def seconds(self) -> float:
        """No way of moving the bytes is faster."""
        return max(seconds for _, seconds in self.terms)

    @property
    def limit(self) -> Limit:
        """What sets it; the first of equals."""
        return max(self.terms, key=lambda term: term[1])[0]


def lower_bound(needed: Sequence[int], union: int, *, wan: float, lan: float = math.inf) -> Bound:
    """The least time to give every host its `needed` bytes, of which `union` are distinct.

    `wan` is the rate into the cluster, `lan` that of each host in either direction, in bytes a second.
    """
    assert needed and wan > 0 and lan > 0, f"{len(needed)} hosts, wan {wan}, lan {lan}"
    return Bound(
        (
            (Limit.WAN, union / wan),
            (Limit.HOST_LINK, max(needed) / lan),
            (Limit.ALL_LINKS, sum(needed) / (wan + lan * len(needed))),
        )
    )


def wan_owners(needs: Sequence[Collection[int]], nbytes_of: Callable[[int], int]) -> dict[int, int]:
    """The host that brings in each piece when every piece comes in once, by a host that needs it.

    `needs` are the pieces of each host. Pieces that few hosts need are given out first, each to the host
    with the least bytes so far.
    """
    wanted_by: dict[int, list[int]] = {}
    for host, pieces in enumerate(needs):
        for piece in pieces:
            wanted_by.setdefault(piece, []).append(host)
    shares, owners = [0] * len(needs), {}
    for piece, hosts in sorted(wanted_by.items(), key=lambda item: (len(item[1]), item[0])):
        owner = owners[piece] = min(hosts, key=shares.__getitem__)
        shares[owner] += nbytes_of(piece)
    return owners


def wan_shares(owners: Mapping[int, int], hosts: int, nbytes_of: Callable[[int], int]) -> tuple[int, ...]:
    """Bytes that each of so many hosts brings in."""
    shares = [0] * hosts
    for piece, owner in owners.items():
        shares[owner] += nbytes_of(piece)
    return tuple(shares)
