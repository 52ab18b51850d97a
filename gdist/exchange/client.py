"""The side that calls: one other host, and the connections to it that are kept open."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, final
from urllib.parse import quote

from blake3 import blake3

from gdist.core.text import printable
from gdist.errors import RequestError, TransferError, Unreachable
from gdist.exchange.addresses import format_address, parse_address
from gdist.exchange.auth import REQUEST, Session
from gdist.exchange.channel import Channel, Closed, Meter
from gdist.exchange.greeting import check_answer, greet_called
from gdist.exchange.heads import BODY_BYTES, DIGEST, Head, make_head, parse_head, sealed
from gdist.exchange.key import Key
from gdist.exchange.limiter import Limiter
from gdist.exchange.messages import Answer

IDLE_SECONDS = 60.0  # half of what a server waits: a connection rarely goes away just as it is used
MOST_IDLE = 16  # kept open
MOST_BYTES = 256 * 2**20  # of an answer that nobody gave room for
CONNECT_SECONDS = 5.0  # for each address of a name
GREET_SECONDS = 10.0
TARGET = "/?&=:;,%~-._!$'()*+@"  # what a path with its query may have unquoted


class _Stale(Exception):
    """A kept connection turned out to be gone before any of the answer came."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request, as it may have to be sent twice."""

    method: str
    target: str
    body: bytes
    into: memoryview | None
    timeout: float
    checked: bool


class _Link:
    """One connection that both sides have signed."""

    def __init__(self, channel: Channel, session: Session) -> None:
        self.channel, self.session = channel, session
        self.used = False
        self.idle_since = 0.0


@final
class Client:
    """Asks one host of the cluster; from many threads at once, each on a connection of its own.

    `address` is `host:port`; `member` the own index among the hosts. `timeout` is how long, in seconds,
    nothing may come where something should; `limiter` caps what it sends and receives; `meter` counts for
    several clients together.
    """

    def __init__(
        self,
        address: str,
        key: Key,
        *,
        member: int | None = None,
        encrypt: bool = False,
        timeout: float = 30.0,
        limiter: Limiter | None = None,
        meter: Meter | None = None,
    ):
        self._host, self._port = parse_address(address)
        self.address = format_address(self._host, self._port)
        self._key, self._member, self._encrypt = key, member, encrypt
        self._timeout, self._limiter = timeout, limiter
        self.meter = meter or Meter()
        self._lock = threading.Lock()
        self._idle: list[_Link] = []
        self._busy: set[Channel] = set()
        self._closed = threading.Event()

    def json(
        self,
        method: str,
        path: str,
        value: object = None,
        *,
        timeout: float | None = None,
        idempotent: bool | None = None,
    ) -> Any:  # Any: as `json.loads`
        """Sends a JSON document (None: nothing), gives what comes back (None: nothing); see `request`.

        Raises:
            GdistError: of `request`, and of `Answer.raise_for_status`.
        """
        body = b"" if value is None else json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        answer = self.request(method, path, body, timeout=timeout, idempotent=idempotent)
        answer.raise_for_status(self.address)
        if not answer.body:
            return None
        try:
            return answer.json()
        except RequestError as error:
            raise TransferError(f"{self.address} answered {path} with no JSON", host=self.address) from error

    def fetch(
        self,
        path: str,
        body: bytes,
        into: memoryview,
        *,
        timeout: float | None = None,
        checked: bool = True,
    ) -> int:
        """Receives bulk data into the caller's memory; how many bytes came.

        They are what the other host sent: their digest was compared. `checked=False` takes data without a
        digest too, from a host's files; the caller then checks it against the torrent.

        Raises:
            GdistError: of `request`, and of `Answer.raise_for_status`. `into` may have been written to.
        """
        answer = self.request(
            "POST", path, body, into=into, timeout=timeout, idempotent=True, checked=checked
        )
        answer.raise_for_status(self.address)
        return answer.nbytes

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        into: memoryview | None = None,
        timeout: float | None = None,
        idempotent: bool | None = None,
        checked: bool = True,
    ) -> Answer:
        """Asks, and gives the answer of any status but 401.

        The body of a good answer (2xx) goes `into`, if given. `timeout` is until the answer begins, and again
        between its bytes: more than a long poll blocks. A request that is `idempotent` (by default GET) is
        sent once more when a kept connection turns out to be closed.

        Raises:
            Unreachable: nobody there, or it fell silent for `timeout`, or this client was closed.
            RefusedError: another secret, or only one side encrypts.
            TransferError: the answer is not what the other side sent, or has no room.
        """
        timeout = self._timeout if timeout is None else timeout
        idempotent = method == "GET" if idempotent is None else idempotent
        target = quote(path, safe=TARGET)
        assert target.startswith("/"), path
        if len(body) > BODY_BYTES:
            raise RequestError(f"a request of {len(body)} bytes is too long; {BODY_BYTES} are taken")
        with self._as_ours():
            ask = _Ask(method, target, body, into, timeout, checked)
            try:
                return self._exchange(self._kept() or self._connect(timeout), ask)
            except _Stale as error:
                if not idempotent:
                    raise Closed("it closed a connection that was kept open") from error
            return self._exchange(self._connect(timeout), ask)  # a new one is never stale

    def close(self) -> None:
        """Hangs up, also on requests that others wait for: they raise `Unreachable`."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.channel.close()
        self.interrupt()

    def interrupt(self) -> None:
        """Hangs up on requests that are under way: they raise `Unreachable`; later ones connect anew."""
        with self._lock:
            busy = tuple(self._busy)
        for channel in busy:
            channel.hang_up()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Connections

    def _kept(self) -> _Link | None:
        """A kept connection that nothing speaks against, the last used first."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                link = self._idle.pop()
                self._busy.add(link.channel)
            if time.monotonic() - link.idle_since < IDLE_SECONDS and link.channel.is_quiet():
                return link
            self._drop(link.channel)

    def _keep(self, link: _Link) -> None:
        link.used, link.idle_since = True, time.monotonic()
        with self._lock:
            self._busy.discard(link.channel)
            if not self._closed.is_set() and len(self._idle) < MOST_IDLE:
                self._idle.append(link)
                return
        link.channel.close()

    def _drop(self, channel: Channel) -> None:
        with self._lock:
            self._busy.discard(channel)
        channel.close()

    def _connect(self, timeout: float) -> _Link:
        """A new connection, on which both sides have shown that they know the secret."""
        if self._closed.is_set():
            raise Closed("this client is closed")
        sock = socket.create_connection((self._host, self._port), min(timeout, CONNECT_SECONDS))
        channel = Channel(sock, self.meter, stall=timeout, limiter=self._limiter, wait=self._closed.wait)
        with self._lock:
            self._busy.add(channel)
        try:
            if self._closed.is_set():
                raise Closed("this client is closed")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            seconds = channel.stall = min(timeout, GREET_SECONDS)
            deadline = time.monotonic() + seconds
            session = greet_called(
                channel, self._key, host=self.address, encrypt=self._encrypt, deadline=deadline
            )
            return _Link(channel, session)
        except BaseException:
            self._drop(channel)
            raise

    # Messages

    def _exchange(self, link: _Link, ask: _Ask) -> Answer:
        channel = link.channel
        try:
            channel.stall = ask.timeout
            try:
                channel.send((self._request(link, ask), ask.body))
                raw = channel.read_head(ask.timeout, ask.timeout)
                if not raw:
                    raise Closed("closed without an answer")
            except (ConnectionError, ssl.SSLError) as error:
                if link.used:
                    raise _Stale from error
                raise
            head = parse_head(raw)
            check_answer(channel, link.session, head, self.address)
            answer = self._body(channel, head, ask)
        except BaseException:
            self._drop(channel)
            raise
        self._keep(link)
        return answer

    def _request(self, link: _Link, ask: _Ask) -> bytes:
        fields = {"Host": self.address, "Content-Length": str(len(ask.body))}
        if self._member is not None:
            fields["Gdist-Member"] = str(self._member)
        if ask.body:
            fields["Gdist-Digest"] = blake3(ask.body).hexdigest()
        head = make_head(f"{ask.method} {ask.target} HTTP/1.1", fields)
        return sealed(head, link.session.sign(REQUEST, head))

    def _body(self, channel: Channel, head: Head, ask: _Ask) -> Answer:
        status, nbytes = int(head.words[1]), head.length
        into = ask.into.cast("B") if ask.into is not None and status < 300 else None
        room = MOST_BYTES if into is None else len(into)
        if nbytes > room:
            raise TransferError(
                f"{self.address} sends {nbytes} bytes where {room} have room", host=self.address
            )
        target = memoryview(bytearray(nbytes)) if into is None else into[:nbytes]
        digest = head.fields.get(DIGEST)
        if nbytes and digest is None and ask.checked:
            raise TransferError(f"{self.address} sends bytes without their digest", host=self.address)
        hasher = blake3() if digest else None
        channel.read_into(target, hasher)
        if hasher and hasher.hexdigest() != digest:
            raise TransferError(f"bytes of {self.address} were changed on the way", host=self.address)
        return Answer(status, head.fields, bytes(target) if into is None else b"", nbytes)

    @contextlib.contextmanager
    def _as_ours(self) -> Iterator[None]:
        """Errors of sockets, TLS and malformed heads as errors of gdist."""
        try:
            yield
        except TimeoutError as error:
            raise Unreachable(f"{self.address} does not answer", host=self.address) from error
        except socket.gaierror as error:
            raise Unreachable(
                f"{self.address}: the name does not resolve: {error.strerror}", host=self.address
            ) from error
        except OSError as error:
            raise Unreachable(f"{self.address}: {error.strerror or error}", host=self.address) from error
        except ValueError as error:
            raise TransferError(
                f"{self.address} does not answer as gdist does: {printable(str(error))}", host=self.address
            ) from error
