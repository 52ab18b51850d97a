"""What a member asks reaches the handler, and the answer comes back: plain and encrypted."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdist.errors import (
    CorruptError,
    GdistError,
    Gone,
    RefusedError,
    RequestError,
    ResumeError,
    SpaceError,
    TransferError,
    Unreachable,
)
from gdist.exchange import Client, FileExtents, FileRun, Limiter, Request, Response, Server
from gdist.exchange.ports import free_port

GRACE_SECONDS = 10.0
MIB = 2**20

Serve = Callable[..., Server]
Call = Callable[..., Client]


def echo(request: Request) -> Response:
    """Everything that the handler was told."""
    return Response.json(
        {
            "method": request.method,
            "path": request.path,
            "query": dict(request.query),
            "body": request.body.decode(),
            "member": request.member,
            "peer": request.peer,
        }
    )


# --- round trips ----------------------------------------------------------------------------------------


def test_a_document_goes_there_and_back(serve: Serve, call: Call, loopback: str, encrypt: bool) -> None:
    server = serve(echo, listen=f"[{loopback}]:0" if ":" in loopback else f"{loopback}:0", encrypt=encrypt)
    client = call(server, loopback, member=3, encrypt=encrypt)
    assert client.json("POST", "/poll?what=layers:0-7&when=a b", {"held": [1, "ü"]}) == {
        "method": "POST",
        "path": "/poll",
        "query": {"what": "layers:0-7", "when": "a b"},
        "body": '{"held":[1,"ü"]}',
        "member": 3,
        "peer": loopback,
    }


def test_nothing_is_sent_for_nothing(serve: Serve, call: Call, encrypt: bool) -> None:
    got = call(serve(echo, encrypt=encrypt), encrypt=encrypt).json("GET", "/ä%2Fb")
    assert (got["path"], got["body"], got["query"], got["member"]) == ("/ä/b", "", {}, None)


def test_a_server_of_every_address_is_reached_by_each(serve: Serve, call: Call, loopback: str) -> None:
    server = serve(echo, listen=":0")
    assert call(server, loopback).json("GET", "/")["peer"] == loopback
    assert call(server, "localhost").json("GET", "/")["path"] == "/"


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, MIB - 1, 3 * MIB + 17])
def test_memory_arrives_whole(serve: Serve, call: Call, encrypt: bool, nbytes: int) -> None:
    data = os.urandom(nbytes)
    client = call(serve(lambda _: Response(body=data), encrypt=encrypt), encrypt=encrypt)
    room = bytearray(nbytes + 5)
    assert client.fetch("/boxes", b"which", memoryview(room)) == nbytes
    assert room == data + bytes(5)
    assert client.request("POST", "/boxes", data).body == data


def test_buffers_go_end_to_end_whatever_their_shape(serve: Serve, call: Call, encrypt: bool) -> None:
    rows = np.arange(3000 * 300, dtype=np.uint16).reshape(3000, 300)
    parts = [
        *(memoryview(row) for row in rows),  # many and short
        memoryview(rows),
        memoryview(np.empty((0, 3))),
        memoryview(b""),
        memoryview(np.float64(2.5).reshape(())),
    ]
    client = call(serve(lambda _: Response(body=parts), encrypt=encrypt), encrypt=encrypt)
    room = np.empty(2 * rows.size + 4, np.uint16)
    assert client.fetch("/", b"", memoryview(room)) == room.nbytes
    np.testing.assert_array_equal(room[:-4].reshape(6000, 300), np.concatenate([rows, rows]))
    assert room[-4:].view(np.float64)[0] == 2.5


@pytest.mark.parametrize("by", ["path", "descriptor"])
def test_runs_of_files_arrive_whole(serve: Serve, call: Call, encrypt: bool, by: str, tmp_path: Path) -> None:
    data = os.urandom(5 * MIB)
    (tmp_path / "a").write_bytes(data[: 3 * MIB])
    (tmp_path / "b").write_bytes(data[3 * MIB :])
    with (tmp_path / "a").open("rb") as first, (tmp_path / "b").open("rb") as second:
        a, b = (
            (str(tmp_path / "a"), str(tmp_path / "b")) if by == "path" else (first.fileno(), second.fileno())
        )
        body = FileExtents(
            (FileRun(a, 5, 3 * MIB - 5), FileRun(b, 0, 2 * MIB - 9), FileRun(b, 0, 0), FileRun(a, 0, 5))
        )
        client = call(serve(lambda _: Response(body=body), encrypt=encrypt), encrypt=encrypt)
        room = bytearray(body.nbytes)
        for _ in range(2):  # descriptors are still open, and their position is nobody's
            room[:] = bytes(len(room))
            assert client.fetch("/piece", b"", memoryview(room), checked=False) == body.nbytes
            assert room == data[5:-9] + data[:5]


def test_files_go_out_where_the_system_cannot_send_them(
    serve: Serve, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sendfile(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("gdist.exchange.channel.os.sendfile", sendfile)
    data = os.urandom(3 * MIB)
    (tmp_path / "a").write_bytes(data)
    body = FileExtents((FileRun(str(tmp_path / "a"), 0, len(data)),))
    room = bytearray(len(data))
    call(serve(lambda _: Response(body=body))).fetch("/", b"", memoryview(room), checked=False)
    assert room == data


def test_an_empty_answer_is_no_document(serve: Serve, call: Call) -> None:
    assert call(serve(lambda _: Response())).json("POST", "/leave", {"why": "done"}) is None


def test_headers_come_along(serve: Serve, call: Call) -> None:
    server = serve(lambda _: Response(206, b"x", {"Gdist-Left": "7"}))
    answer = call(server).request("GET", "/")
    assert (answer.status, answer.headers["gdist-left"], answer.body) == (206, "7", b"x")


@pytest.mark.parametrize(
    "headers", [{"A": "1\r\nB: 2"}, {"Content-Length": "1"}, {"gdist-mac": "1"}, {"Gdist-Digest": "1"}]
)
def test_a_handler_cannot_break_a_head(headers: dict[str, str]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        Response(200, b"", headers)


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RefusedError("another plan", hint="same rules"), RefusedError),
        (Gone("piece 7 is not here"), Gone),
        (RequestError("no such tensor"), TransferError),
        (TransferError("busy"), TransferError),
        (SpaceError("full"), TransferError),
        (CorruptError("bad"), TransferError),
        (ResumeError("strange"), TransferError),
        (ZeroDivisionError("oops"), TransferError),
    ],
)
def test_what_a_handler_raises_is_raised_where_it_was_asked(
    serve: Serve, call: Call, raised: Exception, expected: type[GdistError], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Request) -> Response:
        raise raised

    client = call(serve(fail))
    for ask in (
        lambda: client.json("GET", "/x"),
        lambda: client.fetch("/x", b"", memoryview(bytearray(1))),
    ):
        with pytest.raises(expected, match=str(raised)) as caught:
            ask()
        assert type(caught.value) is expected
        assert caught.value.message.startswith(client.address)
        assert caught.value.hint == getattr(raised, "hint", "")
    assert ("GET /x failed" in caplog.text) is isinstance(raised, ZeroDivisionError)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(403, RefusedError), (404, Gone), (409, RefusedError), (410, Gone), (503, TransferError)],
)
def test_a_status_without_a_document_has_a_meaning_too(
    serve: Serve, call: Call, status: int, expected: type[GdistError]
) -> None:
    client = call(serve(lambda _: Response(status, b"not now")))
    with pytest.raises(expected, match=f"{status} not now") as caught:
        client.json("GET", "/")
    assert caught.value.facts["status"] == status


def test_any_answer_can_be_had_without_raising(serve: Serve, call: Call) -> None:
    client = call(serve(lambda _: Response.json({"ready": False}, 503)))
    answer = client.request("GET", "/ready")
    assert (answer.status, answer.json()) == (503, {"ready": False})


def test_what_is_no_json_is_said_to_be_none(serve: Serve, call: Call) -> None:
    client = call(
        serve(lambda request: Response(body=b"{") if request.method == "GET" else echo_json(request))
    )
    with pytest.raises(TransferError, match="with no JSON"):
        client.json("GET", "/")
    assert client.request("POST", "/", b"}").status == 400


def echo_json(request: Request) -> Response:
    return Response.json(request.json())


def test_files_that_are_gone_are_said_to_be(serve: Serve, call: Call, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    runs = {
        "/missing": FileRun(str(tmp_path / "b"), 0, 1),
        "/short": FileRun(str(tmp_path / "a"), 5, 6),
    }
    client = call(serve(lambda request: Response(body=FileExtents((runs[request.path],)))))
    for path in runs:
        with pytest.raises(Gone, match="cannot read it any more"):
            client.fetch(path, b"", memoryview(bytearray(10)), checked=False)
    assert client.request("GET", "/short").status == 410  # and the connection goes on


def test_a_file_that_shrinks_while_it_is_sent_is_no_answer(serve: Serve, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(64 * MIB))  # more than sockets hold
    done = threading.Event()

    def handler(request: Request) -> Response:
        return Response(body=FileExtents((FileRun(str(path), 0, 64 * MIB),)), done=done.set)

    limiter = Limiter(4 * MIB)  # what is left is still to be sent when the file is cut, however late that is
    client = call(serve(handler, limiter=limiter))

    with ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(client.fetch, "/", b"", memoryview(bytearray(64 * MIB)), checked=False)
        while client.meter.received < MIB and not fetched.done():
            threading.Event().wait(0.001)
        os.truncate(path, MIB)
        with pytest.raises(Unreachable):
            fetched.result()
    assert done.wait(GRACE_SECONDS)


def test_done_is_called_once_the_body_is_away(serve: Serve, call: Call, tmp_path: Path) -> None:
    calls: list[str] = []
    bodies = {
        "/memory": b"abc",
        "/missing": FileExtents((FileRun(str(tmp_path / "none"), 0, 1),)),
    }
    client = call(
        serve(lambda request: Response(body=bodies[request.path], done=lambda: calls.append(request.path)))
    )
    for path in bodies:
        client.request("GET", path)
    client.request("GET", "/memory")  # the same connection: what came before is over
    assert calls[:2] == ["/memory", "/missing"]


def test_an_answer_without_room_is_refused(serve: Serve, call: Call) -> None:
    client = call(serve(lambda _: Response(body=bytes(11))))
    with pytest.raises(TransferError, match="sends 11 bytes where 10 have room"):
        client.fetch("/", b"", memoryview(bytearray(10)))
    assert client.fetch("/", b"", memoryview(bytearray(11))) == 11


def test_bytes_without_a_digest_have_to_be_asked_for(serve: Serve, call: Call, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    body = FileExtents((FileRun(str(tmp_path / "a"), 0, 3),))
    client = call(serve(lambda _: Response(body=body)))
    with pytest.raises(TransferError, match="without their digest"):
        client.fetch("/", b"", memoryview(bytearray(3)))


# --- connections ----------------------------------------------------------------------------------------


def test_one_connection_serves_request_after_request(serve: Serve, call: Call, encrypt: bool) -> None:
    server = serve(echo, encrypt=encrypt)
    client = call(server, encrypt=encrypt)
    for number in range(20):
        client.json("POST", "/", number)
    with pytest.raises(Gone):
        call(serve(lambda _: Response(404))).json("GET", "/")
    assert server.connections == 1


def test_long_polls_and_data_pass_each_other(serve: Serve, call: Call, encrypt: bool) -> None:
    news, data = threading.Event(), os.urandom(MIB)

    def handler(request: Request) -> Response:
        if request.path == "/poll":
            assert news.wait(GRACE_SECONDS)
            return Response.json("news")
        return Response(body=data)

    client = call(serve(handler, encrypt=encrypt), encrypt=encrypt)
    with ThreadPoolExecutor(8) as pool:
        polls = [pool.submit(client.json, "GET", "/poll") for _ in range(4)]
        rooms = [bytearray(MIB) for _ in range(16)]
        fetches = [pool.submit(client.fetch, "/data", b"", memoryview(room)) for room in rooms]
        assert [fetch.result(GRACE_SECONDS) for fetch in fetches] == [MIB] * 16
        assert all(room == data for room in rooms)
        assert not any(poll.done() for poll in polls)
        news.set()
        assert [poll.result(GRACE_SECONDS) for poll in polls] == ["news"] * 4


def test_many_members_at_once_each_get_their_own(serve: Serve, call: Call) -> None:
    server = serve(lambda request: Response(body=request.body * 1000))
    clients = [call(server, member=member) for member in range(8)]

    def ask(number: int) -> bool:
        body = b"%d," % number
        return clients[number % 8].request("POST", "/", body).body == body * 1000

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(400)))


def test_bytes_are_counted_on_both_sides(serve: Serve, call: Call) -> None:
    server = serve(lambda _: Response(body=bytes(MIB)))
    client = call(server)
    client.fetch("/", bytes(1000), memoryview(bytearray(MIB)))
    server.close()  # it may count what the client has already
    assert client.meter.received == server.meter.sent
    assert client.meter.sent == server.meter.received
    assert MIB < client.meter.received < MIB + 2000
    assert 1000 < client.meter.sent < 3000


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_cap_counts_every_byte(serve: Serve, call: Call, side: str, encrypt: bool, tmp_path: Path) -> None:
    # Its clock stands still, so it forgets nothing. A burst is 8 MiB: four steps wait, a third of a second.
    limiter = Limiter(32 * MIB, clock=lambda: 0.0)
    (tmp_path / "a").write_bytes(bytes(6 * MIB))
    bodies = {
        "/memory": bytes(6 * MIB),
        "/file": FileExtents((FileRun(str(tmp_path / "a"), 0, 6 * MIB),)),
    }
    options = {side: {"limiter": limiter}}
    server = serve(
        lambda request: Response(body=bodies[request.path]), encrypt=encrypt, **options.get("server", {})
    )
    client = call(server, encrypt=encrypt, **options.get("client", {}))
    for path in bodies:
        client.fetch(path, b"", memoryview(bytearray(6 * MIB)), checked=False)
    counted = (limiter.reserve(0) + 0.25) * 32 * MIB
    assert 12 * MIB <= counted < 12 * MIB + 8192


# --- ends -----------------------------------------------------------------------------------------------


def test_a_client_finds_the_server_that_came_back(serve: Serve, call: Call, encrypt: bool) -> None:
    # A port that the system gives to no connection: nobody else has it while nobody listens there.
    first = serve(echo, listen=f"127.0.0.1:{free_port()}", encrypt=encrypt)
    client = call(first, encrypt=encrypt)
    assert client.json("POST", "/first", 1)["path"] == "/first"
    port = first.port
    first.close()
    with pytest.raises(Unreachable, match="refused"):
        client.json("POST", "/nobody", 1)
    again = serve(echo, listen=f"127.0.0.1:{port}", encrypt=encrypt)
    assert client.json("POST", "/again", 1)["path"] == "/again"
    client.json("POST", "/kept", 1)
    again.close()
    serve(echo, listen=f"127.0.0.1:{port}", encrypt=encrypt)
    assert client.json("POST", "/third", 1)["path"] == "/third"  # nobody knew that the kept one was closed


def test_closing_a_server_ends_polls_and_idle_connections(serve: Serve, call: Call, encrypt: bool) -> None:
    asked = threading.Barrier(3)

    def wait(request: Request) -> Response:
        if request.path == "/poll":
            asked.wait(GRACE_SECONDS)
            while not request.gone():
                threading.Event().wait(0.01)
        return Response()

    server = serve(wait, encrypt=encrypt)
    idle = [call(server, encrypt=encrypt) for _ in range(5)]
    for client in idle:
        client.request("GET", "/")
    with ThreadPoolExecutor(2) as pool:
        polls = [pool.submit(call(server, encrypt=encrypt).request, "GET", "/poll") for _ in range(2)]
        asked.wait(GRACE_SECONDS)
        server.close()
        for poll in polls:
            with contextlib.suppress(Unreachable):  # or what the handler still said
                assert poll.result(GRACE_SECONDS).body == b""
    assert server.connections == 0
    server.close()  # twice is once


def test_closing_a_client_wakes_who_waits(serve: Serve, call: Call, encrypt: bool) -> None:
    asked, left = threading.Event(), threading.Event()

    def wait(request: Request) -> Response:
        asked.set()
        while not request.gone():
            threading.Event().wait(0.01)
        left.set()
        return Response()

    client = call(serve(wait, encrypt=encrypt), encrypt=encrypt)
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(client.request, "GET", "/")
        assert asked.wait(GRACE_SECONDS)
        client.close()
        with pytest.raises(Unreachable):
            poll.result(GRACE_SECONDS)
    assert left.wait(GRACE_SECONDS)  # the handler learns that nobody waits any more
    with pytest.raises(Unreachable, match="closed"):
        client.request("GET", "/")


def test_a_handler_may_close_its_server(serve: Serve, call: Call) -> None:
    def leave(request: Request) -> Response:
        server.close()
        return Response()

    server = serve(leave)
    with pytest.raises(Unreachable):
        call(server).request("POST", "/leave")


def test_a_port_that_is_taken_is_said_to_be(serve: Serve) -> None:
    port = serve(echo).port
    with pytest.raises(RequestError, match="cannot listen"):
        serve(echo, listen=f"127.0.0.1:{port}")


def test_a_server_that_never_started_can_be_closed(key: Any) -> None:
    Server("127.0.0.1:0", key, handler=echo).close()


def test_a_name_that_does_not_resolve_is_unreachable(key: Any) -> None:
    with Client("nobody.invalid:1", key) as client, pytest.raises(Unreachable, match="does not resolve"):
        client.json("GET", "/")
