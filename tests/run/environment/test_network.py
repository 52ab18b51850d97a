"""Names, ports and reach: on loopback for real, and what follows from what would be seen elsewhere."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gdist.errors import RequestError, TransferError
from gdist.exchange import Key, Request, Response, Server
from gdist.exchange.ports import free_port
from gdist.run.environment import network
from gdist.run.environment.findings import Status
from gdist.run.environment.network import (
    Called,
    Reach,
    about_coordinator,
    about_mtu,
    about_name,
    about_others,
    about_port,
    about_proxies,
    call,
    call_all,
    interface_to,
    resolve,
    stranger,
)

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
ib0\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
ib1\t0005010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
ADDRESSES6 = "fd000000000000000000000000000002 03 40 00 80     ib0\n"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_an_address_that_answers(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    called = call(("127.0.0.1", port))
    assert (called.address, called.reach, called.local) == (f"127.0.0.1:{port}", Reach.ANSWERS, "127.0.0.1")
    assert called.packet > 500


def test_a_port_where_nobody_listens(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    assert call(("127.0.0.1", port)).reach is Reach.REFUSES


def test_a_host_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue drops who knocks, as a firewall does."""
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        knocking = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(full.getsockname())
            knocking.append(one)
        assert call(full.getsockname()).reach is Reach.SILENT
        for one in knocking:
            one.close()


def test_a_name_that_does_not_resolve() -> None:
    assert call(("no-such-host.invalid", 1)).reach is Reach.UNKNOWN
    assert resolve("no-such-host.invalid") is None
    assert resolve("127.0.0.1") == ["127.0.0.1"]


def test_several_are_called_in_order(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    called = call_all([("no-such-host.invalid", 1), ("127.0.0.1", port)])
    assert [one.reach for one in called] == [Reach.UNKNOWN, Reach.ANSWERS]


@pytest.mark.parametrize(
    ("addresses", "hosts", "status"),
    [
        (["10.0.0.1"], 8, Status.OK),
        (["127.0.0.1", "10.0.0.1"], 8, Status.OK),
        (["127.0.1.1"], 8, Status.WARN),
        (["::1"], 8, Status.WARN),
        (["fe80::1%eth0"], 8, Status.OK),
        (["127.0.1.1"], 1, Status.OK),
        (None, 8, Status.WARN),
        (None, 1, Status.OK),
    ],
)
def test_what_the_own_name_resolves_to(addresses: list[str] | None, hosts: int, status: Status) -> None:
    found = about_name("n0", addresses, hosts)
    assert found.status is status
    assert status is Status.OK or "gloo" in found.hint


def test_a_port_that_is_taken() -> None:
    port = free_port()  # the system gives it to no connection meanwhile
    with socket.create_server(("", port)):
        found = about_port(port, needed=True)
        assert found.status is Status.FAIL and found.family is RequestError and str(port) in found.what
        assert about_port(port, needed=False).status is Status.WARN
    assert about_port(port, needed=True).status is Status.OK
    assert about_port(0, needed=True).what == "any will do"


@pytest.mark.parametrize(
    ("called", "status", "family"),
    [
        (None, Status.FAIL, RequestError),
        (Called("h0:7611", Reach.ANSWERS), Status.OK, None),
        (Called("h0:7611", Reach.REFUSES), Status.OK, None),
        (Called("h0:7611", Reach.SILENT), Status.FAIL, TransferError),
        (Called("h0:7611", Reach.UNKNOWN), Status.FAIL, TransferError),
    ],
)
def test_the_coordinator(called: Called | None, status: Status, family: object) -> None:
    found = about_coordinator(called, 1)
    assert (found.status, found.family) == (status, family)


@pytest.mark.parametrize("encrypt", [False, True])
def test_gdist_of_any_job_is_no_stranger(encrypt: bool) -> None:
    def nothing(request: Request) -> Response:
        raise AssertionError("nobody was let in")

    key = Key.from_secret("its own", "17")
    with Server("127.0.0.1:0", key, handler=nothing, encrypt=encrypt) as server:
        assert stranger(Called(f"127.0.0.1:{server.port}", Reach.ANSWERS)) is False


def test_another_program_is_a_stranger(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.2)
    silent = Called(f"127.0.0.1:{listener.getsockname()[1]}", Reach.ANSWERS)
    assert stranger(silent)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.handle_request, daemon=True).start()
        assert stranger(Called(f"127.0.0.1:{web.server_port}", Reach.ANSWERS))
    found = about_coordinator(silent, 1, wrong=True)
    assert (found.status, found.family) == (Status.FAIL, RequestError) and found.hint
    assert found.what == f"{silent.address} takes connections, and does not speak as gdist does"


def test_the_other_hosts() -> None:
    up = [Called(f"h{n}:1", Reach.REFUSES) for n in range(3)] + [Called("h3:1", Reach.ANSWERS)]
    assert about_others(up).what == "4 of 4 other hosts up, 1 listening"
    found = about_others([*up, *(Called(f"x{n}:1", Reach.SILENT) for n in range(10))])
    assert found.status is Status.WARN
    assert found.what.startswith("4 of 14 other hosts up") and "x7:1" in found.what
    assert found.what.endswith("and 2 more")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.3.4", "eth0"),
        ("10.1.3.4", "ib0"),
        ("10.1.5.4", "ib1"),
        ("8.8.8.8", "eth0"),
        ("127.0.0.2", "lo"),
        ("fd00::2", "ib0"),
        ("fd00::3", ""),
        ("nonsense", ""),
    ],
)
def test_the_interface_to_an_address(tmp_path: Path, address: str, name: str) -> None:
    net = tmp_path / "proc" / "net"
    net.mkdir(parents=True)
    (net / "route").write_text(ROUTES)
    (net / "if_inet6").write_text(ADDRESSES6)
    assert interface_to(address, tmp_path) == name


@pytest.mark.parametrize(
    ("mtu", "packets", "status", "says"),
    [
        ("9000", (9000, 8990), Status.OK, "MTU 9000, 100000 Mb/s"),
        ("9000", (9000, 1500), Status.WARN, "packets to h1 have at most about 1500 bytes"),
        ("9000", (0, 0), Status.OK, "MTU 9000"),
        ("1400", (1400, 1400), Status.OK, "MTU 1400"),
        ("1000", (1000, 1000), Status.WARN, "MTU 1000"),
        ("", (), Status.OK, "not known"),
    ],
)
def test_mtu(tmp_path: Path, mtu: str, packets: tuple[int, ...], status: Status, says: str) -> None:
    interface = tmp_path / "sys" / "class" / "net" / "eth0"
    interface.mkdir(parents=True)
    (interface / "mtu").write_text(f"{mtu}\n")
    (interface / "speed").write_text("100000\n")
    called = [Called(f"h{n}", Reach.ANSWERS, "10.0.0.1", packet) for n, packet in enumerate(packets)]
    found = about_mtu(called, "eth0", tmp_path)
    assert found.status is status and says in found.what


def test_loopback_has_an_mtu(listener: socket.socket) -> None:
    found = about_mtu([call(listener.getsockname())], interface_to("127.0.0.1"))
    assert found.status is Status.OK and found.what.startswith("lo, MTU ")


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({}, Status.OK),
        ({"http_proxy": ""}, Status.OK),
        ({"HTTPS_PROXY": "http://proxy:3128"}, Status.WARN),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "10.0.0.0/8,.cluster"}, Status.OK),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "*"}, Status.OK),
        ({"http_proxy": "http://proxy:3128", "NO_PROXY": "localhost 10.0.0.1"}, Status.WARN),
    ],
)
def test_proxies(environ: dict[str, str], status: Status) -> None:
    found = about_proxies(environ, ["10.0.0.1", "n1.cluster"])
    assert found.status is status, found.what
