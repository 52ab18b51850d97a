"""Servers and clients on loopback that leave nothing behind."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gdist.exchange import Client, Handler, Key, Server, server
from gdist.exchange.auth import ANSWER, REQUEST, Session
from gdist.exchange.channel import Channel, Meter
from gdist.exchange.greeting import greet_caller
from gdist.exchange.heads import make_head, parse_head, sealed

KEY = Key(bytes(range(32)))
GRACE_SECONDS = 10.0  # far more than anything here takes


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


LOOPBACKS = ("127.0.0.1", *(["::1"] if _has_ipv6() else []))


@pytest.fixture
def key() -> Key:
    """The job's key; deriving it from a secret would take its time in every test."""
    return KEY


@pytest.fixture
def other_key() -> Key:
    return Key(bytes(32))


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def encrypt(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=LOOPBACKS)
def loopback(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serve(key: Key, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Starts servers: `serve(handler, **options)`. They wait for their threads also on a busy machine."""
    monkeypatch.setattr(server, "CLOSE_SECONDS", GRACE_SECONDS)
    with contextlib.ExitStack() as stack:

        def start(handler: Handler, listen: str = "127.0.0.1:0", **options: Any) -> Server:
            return stack.enter_context(Server(listen, key, handler=handler, **options))

        yield start
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("gdist-")]
    assert left == []


@pytest.fixture
def call(key: Key) -> Iterator[Callable[..., Client]]:
    """Makes clients: `call(server, **options)`, or of a port."""
    with contextlib.ExitStack() as stack:

        def make(server: Server | int, host: str = "127.0.0.1", key: Key = key, **options: Any) -> Client:
            port = server if isinstance(server, int) else server.port
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            options.setdefault("timeout", GRACE_SECONDS)
            return stack.enter_context(Client(address, key, **options))

        yield make


class Impostor:
    """Greets as a server does, and then answers what it likes; `requests` counts what it was asked."""

    def __init__(self, key: Key, answer: Callable[[Session, Channel], None]) -> None:
        self.requests = 0
        self._key, self._answer = key, answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._channel: Channel | None = None
        self.port = int(self._socket.getsockname()[1])

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        if self._channel:
            self._channel.hang_up()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                self._channel = Channel(sock, Meter(), stall=GRACE_SECONDS)
                with contextlib.closing(self._channel), contextlib.suppress(OSError):
                    self._converse(self._channel)

    def _converse(self, channel: Channel) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        session = greet_caller(channel, self._key, encrypt=False, deadline=deadline)
        while raw := channel.read_head(GRACE_SECONDS, GRACE_SECONDS):
            head = parse_head(raw)
            assert session.is_signed(REQUEST, head.signed, head.fields["gdist-mac"])
            channel.read_into(memoryview(bytearray(head.length)))
            self.requests += 1
            self._answer(session, channel)


@pytest.fixture
def impostor(key: Key) -> Iterator[Callable[[Callable[[Session, Channel], None]], Impostor]]:
    """Starts impostors, each with what it does for an answer."""
    with contextlib.ExitStack() as stack:
        yield lambda answer: stack.enter_context(Impostor(key, answer))


@pytest.fixture
def answer_of() -> Callable[..., bytes]:
    """The head of an answer: `answer_of(session, status, **fields)`."""

    def make(session: Session, status: int = 200, **fields: str) -> bytes:
        head = make_head(f"HTTP/1.1 {status} Fine", fields)
        return sealed(head, session.sign(ANSWER, head))

    return make
