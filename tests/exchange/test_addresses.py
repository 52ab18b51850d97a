"""Addresses as people write them, and who may knock."""

from __future__ import annotations

import pytest

from gdist.errors import RequestError
from gdist.exchange import EVERYONE, Allow, format_address, parse_address
from gdist.exchange.addresses import LOOK_UP_SECONDS


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("node-0:7611", "node-0", 7611),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[::1]:7611", "::1", 7611),
        ("[fe80::1%eth0]:7611", "fe80::1%eth0", 7611),
        (":0", "", 0),
        (" node-0.pods.svc:7611\n", "node-0.pods.svc", 7611),
    ],
)
def test_addresses_are_read_and_written(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert parse_address(format_address(host, port)) == (host, port)


@pytest.mark.parametrize(
    ("text", "host"),
    [("node-0", "node-0"), ("10.0.0.1", "10.0.0.1"), ("[::1]", "::1"), ("fd00::2", "fd00::2")],
)
def test_a_port_may_be_left_out_where_there_is_one_to_mean(text: str, host: str) -> None:
    assert parse_address(text, 7611) == (host, 7611)
    with pytest.raises(RequestError, match="no address of a host"):
        parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a:b",
        "a:-1",
        "a:65536",
        "a:²",
        "http://a:1",
        "[::1:5",
        "[]:5",
        "[::1]x:5",
        "a b:1",
        "me@a:1",
        "fd00::2:x",
        "a:",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="no address of a host"):
        parse_address(text, None)


@pytest.mark.parametrize(
    ("entries", "address", "permitted"),
    [
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "11.1.2.3", False),
        (["10.0.0.7"], "10.0.0.7", True),
        (["10.0.0.7/8"], "10.9.9.9", True),  # an address of the network means the network
        (["10.0.0.7"], "::ffff:10.0.0.7", True),  # as a socket for both shows it
        (["fd00::/64"], "fd00::5", True),
        (["[fd00::5]"], "fd00::5%eth0", True),
        (["fd00::/64"], "fd01::5", False),
        (["fd00::/64"], "10.0.0.7", False),
        ([], "127.0.0.1", False),
    ],
)
def test_networks_permit_their_addresses(entries: list[str], address: str, permitted: bool) -> None:
    assert Allow(entries).permits(address) is permitted
    assert EVERYONE.permits(address)


def test_names_are_looked_up_when_somebody_knocks_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    known = {"node-1": []}
    asked = []

    def look_up(name: str, port: None, type: int) -> list[tuple[object, ...]]:
        asked.append(name)
        if name not in known:
            raise OSError("no such name")
        return [(0, 0, 0, "", (address, 0)) for address in known[name]]

    monkeypatch.setattr("gdist.exchange.addresses.socket.getaddrinfo", look_up)
    allow = Allow(["node-1", "node-2", "10.0.0.0/24"], clock=lambda: now)
    assert allow.permits("10.0.0.1")
    assert asked == []
    assert not allow.permits("10.0.1.1")
    assert asked == ["node-1", "node-2"]
    known["node-1"] = ["10.0.1.1", "fd00::1"]
    assert not allow.permits("10.0.1.1")  # asked just now
    assert asked == ["node-1", "node-2"]
    now += LOOK_UP_SECONDS + 1
    assert allow.permits("10.0.1.1")
    assert allow.permits("fd00::1")
    assert asked == ["node-1", "node-2"] * 2
    known["node-1"] = ["10.0.1.2"]  # it moved
    now += LOOK_UP_SECONDS + 1
    assert allow.permits("10.0.1.2")
    assert not allow.permits("10.0.1.1")
