"""The way to the coordinator: where it is asked."""

from __future__ import annotations

from gdist.exchange import Key
from gdist.run.cluster.way import Peer, Way


def peer(index: int, address: str) -> Peer:
    return Peer(index, address, True, "live", f"h{index}")


def test_a_stand_in_is_asked_where_it_was_though_its_first_members_lack_itself() -> None:
    """It answers others before its own agent has joined it."""
    peers = {1: peer(1, "10.0.0.1:4001"), 2: peer(2, "10.0.0.2:4002")}
    way = Way(
        2, "127.0.0.1:4002", ("10.0.0.0:7611",), Key.from_secret("s", "j"), encrypt=False, peers=lambda: peers
    )
    assert way.address == "10.0.0.0:7611"
    way.coordinator = 1
    assert way.address == "10.0.0.1:4001"
    peers = {2: peer(2, "10.0.0.2:4002")}
    assert way.address == "10.0.0.1:4001"
    peers = {1: peer(1, way.reach(1, "")), 2: peer(2, "10.0.0.2:4002")}
    assert way.address == "10.0.0.1:4001"
