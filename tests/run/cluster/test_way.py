"""The way to the coordinator: where it is asked."""

from __future__ import annotations

import socket
import threading

import pytest

from gdist.errors import TransferError
from gdist.exchange import Key
from gdist.run.cluster import way as ways
from gdist.run.cluster.link import Link
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
    peers = {1: peer(1, way.reach(1, "", way.address)), 2: peer(2, "10.0.0.2:4002")}
    assert way.address == "10.0.0.1:4001"


def test_an_answer_names_who_was_asked_though_this_host_follows_itself_by_now() -> None:
    """Else this host would take itself for host 0, and never find the way back to it."""
    me = {"index": 2, "own": "127.0.0.1:4002", "boot": "here"}
    link = Link(
        me, ("10.0.0.0:7611",), Key.from_secret("s", "j"), encrypt=False, status=dict, stop=lambda: None
    )
    asked = link.way.address
    link.way.coordinator = 2
    members = [[0, "", True, "live", "h0"], [2, "10.0.0.2:4002", True, "live", "h2"]]
    link._take({"coordinator": "there", "index": 0, "roster": 1, "members": members}, asked, None)
    assert {i: peer.address for i, peer in link.inside.peers.items()} == {0: asked, 2: "127.0.0.1:4002"}
    link.way.coordinator = 0
    assert link.way.address == asked
    link.close()


def test_who_answers_while_another_is_looked_for_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers where host 1 was; meanwhile host 0 does again."""
    monkeypatch.setattr(ways, "TAKEOVER_SECONDS", -1.0)
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        peers = {1: peer(1, f"127.0.0.1:{dumb.getsockname()[1]}"), 2: peer(2, "127.0.0.1:4002")}
        key = Key.from_secret("s", "j")
        way = Way(2, "127.0.0.1:4002", ("127.0.0.1:1",), key, encrypt=False, peers=lambda: peers)
        way.heard()
        looks = threading.Thread(target=way.silent, args=(TransferError("no answer"),))
        looks.start()
        caller, _ = dumb.accept()
        way.heard()
        caller.close()
        looks.join()
        assert way.coordinator == 0
        way.silent(TransferError("no answer"))
        assert way.coordinator == 2
        way.close()
