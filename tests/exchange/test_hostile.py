"""Whoever does not know the secret gets nothing but 401, and whoever is slow or huge is dropped."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blake3 import blake3

from gdist.errors import RefusedError, RequestError, TransferError, Unreachable
from gdist.exchange import Allow, Client, Key, Limits, Request, Response, Server
from gdist.exchange.auth import REQUEST, Session
from gdist.exchange.channel import Channel, Meter
from gdist.exchange.greeting import greet_called
from gdist.exchange.heads import make_head, parse_head, sealed

GRACE_SECONDS = 10.0
MIB = 2**20

Serve = Callable[..., Server]
Call = Callable[..., Client]
Alone = Callable[[Callable[[socket.socket], None]], int]
AnswerOf = Callable[..., bytes]
Impostor = Callable[[Callable[[Session, Channel], None]], Any]


class Asked:
    """A handler that remembers what reached it."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, request: Request) -> Response:
        self.paths.append(request.path)
        return Response(body=request.body)


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def alone() -> Iterator[Alone]:
    """Answers one connection as it is told; the port to call."""
    with contextlib.ExitStack() as stack:

        def start(answer: Callable[[socket.socket], None]) -> int:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def run() -> None:
                sock, _ = listening.accept()
                with sock, contextlib.suppress(ConnectionError):
                    answer(sock)

            thread = threading.Thread(target=run)
            thread.start()
            stack.callback(thread.join)
            return int(listening.getsockname()[1])

        yield start


@contextlib.contextmanager
def knock(server: Server, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A bare connection."""
    with socket.create_connection(("127.0.0.1", server.port), GRACE_SECONDS, (source, 0)) as sock:
        yield sock


@contextlib.contextmanager
def greeted(server: Server, key: Key, encrypt: bool = False) -> Iterator[tuple[Channel, Session]]:
    """A connection that has shown that it knows the secret, to misuse."""
    sock = socket.create_connection(("127.0.0.1", server.port), GRACE_SECONDS)
    channel = Channel(sock, Meter(), stall=GRACE_SECONDS)
    try:
        deadline = time.monotonic() + GRACE_SECONDS
        yield channel, greet_called(channel, key, host="there", encrypt=encrypt, deadline=deadline)
    finally:
        channel.close()


def everything(sock: socket.socket) -> bytes:
    """What comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(65536):
            data += more
    return data


def request_of(session: Session, path: str, body: bytes = b"", **fields: str) -> bytes:
    """A signed head."""
    given = {"Content-Length": str(len(body)), **fields}
    if body:
        given.setdefault("Gdist-Digest", blake3(body).hexdigest())
    head = make_head(f"POST {path} HTTP/1.1", given)
    return sealed(head, session.sign(REQUEST, head))


# --- without the secret -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nUser-Agent: curl\r\n\r\n",
        b"POST /poll HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n",
        b"POST /hello HTTP/1.1\r\nGdist-Exchange: 1 " + b"0" * 32 + b"\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nGdist-Exchange: 1 " + b"0" * 32 + b"\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /hello HTTP/1.1\r\nGdist-Exchange: 1 short\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nGdist-Exchange: 1 " + b"0" * 32 + b"\r\nGdist-Mac: 00\r\n\r\n",
        b"GET /status HTTP/1.1\r\nGdist-Mac: " + b"0" * 64 + b"\r\n\r\n",
        b"hello?\r\n\r\n",
        b"\x00\xff\r\n\r\n",
    ],
)
def test_nothing_unsigned_is_answered_but_by_401(serve: Serve, asked: Asked, said: bytes) -> None:
    heard: list[tuple[str, str]] = []
    server = serve(asked, refused=lambda peer, why: heard.append((peer, why)))
    with knock(server) as sock:
        sock.sendall(said)
        head, _, body = everything(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert json.loads(body)["error"].split()[0] in ("an", "this")
    assert asked.paths == []
    assert [peer for peer, _ in heard] == ["127.0.0.1"]


def test_a_challenge_alone_opens_nothing(serve: Serve, asked: Asked) -> None:
    server = serve(asked)
    with knock(server) as sock:
        sock.sendall(b"GET /hello HTTP/1.1\r\nGdist-Exchange: 1 " + b"0" * 32 + b"\r\n\r\n")
        first = sock.recv(65536)
        assert b"WWW-Authenticate: Gdist " in first
        sock.sendall(b"GET /status HTTP/1.1\r\n\r\n")
        rest = everything(sock)
    assert rest.startswith(b"HTTP/1.1 401")
    assert rest.count(b"HTTP/1.1") == 1
    assert asked.paths == []


def test_another_secret_is_refused_in_words(
    serve: Serve, call: Call, asked: Asked, other_key: Key, encrypt: bool
) -> None:
    client = call(serve(asked, encrypt=encrypt), key=other_key, encrypt=encrypt)
    for ask in (lambda: client.json("GET", "/x"), lambda: client.request("POST", "/x", bytes(32 * MIB))):
        with pytest.raises(RefusedError, match="this host was given another secret") as caught:
            ask()
        assert "--secret" in caught.value.hint
    assert asked.paths == []


def test_another_version_is_refused_in_words(
    serve: Serve, call: Call, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(asked)
    with knock(server) as sock:
        sock.sendall(b"GET /hello HTTP/1.1\r\nGdist-Exchange: 2 " + b"0" * 32 + b"\r\n\r\n")
        assert b"another version" in everything(sock)
    monkeypatch.setattr("gdist.exchange.greeting.new_nonce", lambda: "of another kind")
    with pytest.raises(RefusedError, match="another version"):
        call(server).json("GET", "/")
    assert asked.paths == []


# --- overheard and changed --------------------------------------------------------------------------------


def test_a_signature_is_of_one_request_on_one_connection(serve: Serve, asked: Asked, key: Key) -> None:
    server = serve(asked)
    with greeted(server, key) as (channel, session):
        overheard = request_of(session, "/a")
        channel.send((overheard,))
        assert parse_head(channel.read_head(GRACE_SECONDS, GRACE_SECONDS)).words[1] == "200"
        channel.send((overheard,))  # again
        assert b"HTTP/1.1 401" in everything(channel.sock)
    with greeted(server, key) as (channel, _):
        channel.send((overheard,))  # on another connection, as its first
        assert b"HTTP/1.1 401" in everything(channel.sock)
    with greeted(server, key) as (channel, session):
        channel.send((request_of(session, "/a").replace(b"/a", b"/b"),))  # to another path
        assert b"HTTP/1.1 401" in everything(channel.sock)
    assert asked.paths == ["/a"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POST", b"GET"),
        (b"Gdist-Member: 1", b"Gdist-Member: 2"),
        (b"Gdist-Member: 1\r\n", b""),
        (b"Content-Length: 5", b"Content-Length: 4"),
        (b"?n=1", b"?n=2"),
    ],
)
def test_no_byte_of_a_head_can_be_changed(
    serve: Serve, asked: Asked, key: Key, old: bytes, new: bytes
) -> None:
    with greeted(serve(asked), key) as (channel, session):
        head = request_of(session, "/a?n=1", b"hello", **{"Gdist-Member": "1"})
        assert old in head
        channel.send((head.replace(old, new), b"hello"))
        assert b"HTTP/1.1 401" in everything(channel.sock)
    assert asked.paths == []


@pytest.mark.parametrize("digest", [blake3(b"hallo").hexdigest(), ""])
def test_a_changed_body_reaches_nobody(serve: Serve, asked: Asked, key: Key, digest: str) -> None:
    with greeted(serve(asked), key) as (channel, session):
        head = request_of(session, "/a", b"hello", **{"Gdist-Digest": digest} if digest else {})
        channel.send((head, b"hello" if digest else b"hallo"))
        assert everything(channel.sock) == b""
    assert asked.paths == []


def test_a_request_cannot_hide_another(serve: Serve, asked: Asked, key: Key) -> None:
    with greeted(serve(asked), key) as (channel, session):
        channel.send((request_of(session, "/a", **{"Transfer-Encoding": "chunked"}),))
        assert everything(channel.sock) == b""
    assert asked.paths == []


BODY = b"all is well"
SOUND = {"Content-Length": str(len(BODY)), "Gdist-Digest": blake3(BODY).hexdigest()}


def test_the_impostor_can_answer_right(impostor: Impostor, call: Call, answer_of: AnswerOf) -> None:
    host = impostor(lambda session, channel: channel.send((answer_of(session, **SOUND), BODY)))
    client = call(host.port)
    assert [client.request("GET", "/").body for _ in range(3)] == [BODY] * 3
    assert host.requests == 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda head, body: (head, body.replace(b"well", b"lost")), "bytes .* were changed on the way"),
        (lambda head, body: (head.replace(b"200", b"201"), body), "answer .* was changed on the way"),
        (lambda head, body: (head.replace(b": 11", b": 10"), body), "answer .* was changed on the way"),
        (lambda head, body: (head.partition(b"Gdist-Mac")[0] + b"\r\n", body), "was changed on the way"),
        (lambda head, body: (b"HTTP/1.1\r\n\r\n", body), "does not answer as gdist does"),
        (lambda head, body: (head.replace(b"200", b"\xff00"), body), "was changed on the way"),
        (lambda head, body: (b"A" * 40000, b""), "does not answer as gdist does"),
    ],
)
def test_a_changed_answer_is_not_believed(
    impostor: Impostor,
    call: Call,
    answer_of: AnswerOf,
    change: Callable[[bytes, bytes], tuple[bytes, bytes]],
    match: str,
) -> None:
    host = impostor(lambda session, channel: channel.send(change(answer_of(session, **SOUND), BODY)))
    with pytest.raises(TransferError, match=match):
        call(host.port).request("GET", "/")


def test_an_old_answer_is_not_believed(impostor: Impostor, call: Call, answer_of: AnswerOf) -> None:
    old: list[bytes] = []

    def answer(session: Session, channel: Channel) -> None:
        old.append(answer_of(session, **SOUND))
        channel.send((old[0], BODY))

    client = call(impostor(answer).port)
    assert client.request("GET", "/").body == BODY
    with pytest.raises(TransferError, match="was changed on the way"):
        client.request("GET", "/")


def test_who_does_not_know_the_secret_cannot_answer(
    other_key: Key, call: Call, answer_of: AnswerOf, alone: Alone
) -> None:
    """It can pretend to believe the caller, and that is all."""

    def pretend(sock: socket.socket) -> None:
        channel = Channel(sock, Meter(), stall=GRACE_SECONDS)
        hello = parse_head(channel.read_head(GRACE_SECONDS, GRACE_SECONDS))
        theirs = hello.fields["gdist-exchange"].split(" ")[1]
        ours = "00" * 16
        channel.send((b"HTTP/1.1 401 No\r\nWWW-Authenticate: Gdist %s\r\n\r\n" % ours.encode(),))
        channel.read_head(GRACE_SECONDS, GRACE_SECONDS)
        channel.send((answer_of(Session(other_key, theirs, ours), **{"Content-Length": "0"}),))

    with pytest.raises(TransferError, match="was changed on the way"):
        call(alone(pretend)).request("GET", "/")


# --- strangers --------------------------------------------------------------------------------------------


def test_who_is_not_on_the_list_is_not_heard(serve: Serve, call: Call, asked: Asked) -> None:
    heard: list[tuple[str, str]] = []
    server = serve(asked, allow=Allow(["127.0.0.2"]), refused=lambda *why: heard.append(why))
    with knock(server) as sock:
        assert everything(sock) == b""
    with pytest.raises(Unreachable):
        call(server).json("GET", "/")
    assert set(heard) == {("127.0.0.1", "it is not on the list of hosts")}
    with knock(server, "127.0.0.2") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert everything(sock).startswith(b"HTTP/1.1 401")


def test_those_on_the_list_are_served(serve: Serve, call: Call, asked: Asked) -> None:
    server = serve(asked, allow=Allow(["10.0.0.0/8", "localhost"]), listen=":0")
    assert call(server).request("POST", "/", b"x").body == b"x"


def test_something_else_than_gdist_is_not_there(call: Call, alone: Alone) -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    with pytest.raises(Unreachable, match="something else than gdist answers"):
        call(alone(answer)).json("GET", "/")


def test_silent_strangers_make_room(serve: Serve, call: Call, asked: Asked) -> None:
    server = serve(asked, limits=Limits(strangers=3, greet_seconds=GRACE_SECONDS * 10))
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(knock(server)) for _ in range(5)]
        assert everything(silent[0]) == everything(silent[1]) == b""  # who came first has to go
        assert call(server).request("POST", "/", b"x").body == b"x"
        assert everything(silent[2]) == b""
        silent[4].sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert everything(silent[4]).startswith(b"HTTP/1.1 401")


def test_no_more_than_so_many_connections(serve: Serve, asked: Asked, key: Key) -> None:
    server = serve(asked, limits=Limits(connections=2))
    with greeted(server, key), greeted(server, key), knock(server) as third:
        assert everything(third) == b""
    while server.connections:  # the first two have gone
        threading.Event().wait(0.001)
    with greeted(server, key) as (channel, session):
        channel.send((request_of(session, "/a"),))
        assert parse_head(channel.read_head(GRACE_SECONDS, GRACE_SECONDS)).words[1] == "200"


# --- slow and huge ----------------------------------------------------------------------------------------

HASTY = Limits(greet_seconds=0.3, stall_seconds=0.3)
# Who greets properly has to be let in, also by a machine that is busy.
PATIENT = Limits(greet_seconds=5.0, idle_seconds=0.2, stall_seconds=0.2, body_seconds=0.2)


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_a_slow_greeting_ends(serve: Serve, asked: Asked, encrypt: bool, pause: float) -> None:
    with knock(serve(asked, limits=HASTY, encrypt=encrypt)) as sock, contextlib.suppress(ConnectionError):
        while pause:  # one byte after the other, each soon
            sock.sendall(b"\x16" if encrypt else b"G")
            time.sleep(pause)
    with knock(serve(asked, limits=HASTY, encrypt=encrypt)) as sock:
        assert everything(sock) == b""


@pytest.mark.parametrize("part", ["nothing", "head", "body"])
def test_a_slow_request_ends(serve: Serve, asked: Asked, key: Key, part: str) -> None:
    with greeted(serve(asked, limits=PATIENT), key) as (channel, session):
        with contextlib.suppress(ConnectionError):
            if part == "body":
                channel.send((request_of(session, "/a", bytes(MIB)),))
            while part != "nothing":
                channel.send((b"A",))
                time.sleep(0.02)
        assert everything(channel.sock) == b""
    assert asked.paths == []


def test_who_takes_nothing_is_dropped(serve: Serve, key: Key, encrypt: bool) -> None:
    given_up = threading.Event()
    limits = Limits(stall_seconds=0.2)  # its request is waited for
    server = serve(
        lambda _: Response(body=bytes(64 * MIB), done=given_up.set), limits=limits, encrypt=encrypt
    )
    with greeted(server, key, encrypt) as (channel, session):
        channel.send((request_of(session, "/a"),))
        assert given_up.wait(GRACE_SECONDS)  # though nothing was read


def test_a_head_has_an_end(serve: Serve, asked: Asked) -> None:
    with knock(serve(asked)) as sock, contextlib.suppress(ConnectionError):
        while True:
            sock.sendall(b"A" * 4096)
    assert asked.paths == []


def test_a_body_that_is_too_long_is_not_read(serve: Serve, call: Call, asked: Asked) -> None:
    client = call(serve(asked, limits=Limits(body_bytes=1000)))
    assert client.request("POST", "/", bytes(1000)).nbytes == 1000
    with pytest.raises(TransferError, match="1001 bytes are too many, 1000 are taken"):
        client.json("POST", "/", "x" * 999)
    assert len(asked.paths) == 1
    with pytest.raises(RequestError, match="too long"):
        client.request("POST", "/", bytes(64 * MIB + 1))


def test_an_endless_refusal_is_not_read_to_its_end(call: Call, alone: Alone) -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 401 No\r\nWWW-Authenticate: Gdist\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            sock.sendall(bytes(65536))

    with pytest.raises(RefusedError):
        call(alone(answer)).json("GET", "/")
