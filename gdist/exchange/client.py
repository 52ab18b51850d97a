"""The side that calls: one other host, and the connections to it that are kept open."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, final
from urllib.parse import quote

from blake3 import blake3

from gdist.core.text import printable
from gdist.errors import RefusedError, RequestError, TransferError, Unreachable
from gdist.exchange.addresses import format_address, parse_address
from gdist.exchange.auth import ANSWER, REQUEST, VERSION, Session, is_nonce, new_nonce
from gdist.exchange.channel import Channel, Closed, Meter
from gdist.exchange.key import Key
from gdist.exchange.limiter import Limiter
from gdist.exchange.messages import MAC, Answer, Head, make_head, parse_head, sealed

HELLO = "/hello"
IDLE_SECONDS = 60.0  # half of what a server waits: a connection rarely goes away just as it is used
MOST_IDLE = 16  # kept open
MOST_BYTES = 256 * 2**20  # of an answer that nobody gave room for
CONNECT_SECONDS = 5.0
TARGET = "/?&=:;,%~-._!$'()*+@"  # what a path with its query may have unquoted


class _Stale(Exception):
    """A kept connection turned out to be gone before any of the answer came."""


class _Link:
    """One connection that both sides have signed."""

    def __init__(self, channel: Channel, session: Session, host: str) -> None:
        self.channel, self.session, self.host = channel, session, host
        self.used = False
        self.idle_since = 0.0


@final
class Client:
    """Asks one host of the cluster; from many threads at once, each on a connection of its own.

    `address` is `host:port`; `member` the own index among the hosts. `timeout` is how long, in seconds, nothing
    may come where something should; `limiter` caps what is received.
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
        """Sends a JSON document (None: nothing), gives the one that comes back; see `request`.

        Raises:
            GdistError: of `request`, and of `Answer.raise_for_status`.
        """
        body = b"" if value is None else json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        answer = self.request(method, path, body, timeout=timeout, idempotent=idempotent)
        answer.raise_for_status(self.address)
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

        They are what the other host sent: their digest was compared. `checked=False` takes data without a digest
        too, from a host's files; the caller then checks it against the torrent.

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

        The body of a good answer (2xx) goes `into`, if given. `timeout` is until the answer begins, and again between
        its bytes: more than a long poll blocks. A request that is `idempotent` (by default GET) is sent once more when
        a kept connection turns out to be closed.

        Raises:
            Unreachable: nobody there, or it fell silent for `timeout`, or this client was closed.
            RefusedError: another secret, or only one side encrypts.
            TransferError: the answer is not what the other side sent, or has no room.
        """
        timeout = self._timeout if timeout is None else timeout
        idempotent = method == "GET" if idempotent is None else idempotent
        target = quote(path, safe=TARGET)
        assert target.startswith("/"), path
        with self._as_ours():
            link = self._kept() or self._connect(timeout)
            try:
                return self._exchange(link, method, target, body, into, timeout, checked)
            except _Stale as error:
                if not idempotent:
                    raise Closed("a kept connection was closed") from error
            link = self._connect(timeout)
            try:
                return self._exchange(link, method, target, body, into, timeout, checked)
            except _Stale as error:
                raise Closed("closed without an answer") from error

    def close(self) -> None:
        """Hangs up, also on requests that others wait for: they raise `Unreachable`."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
            busy = tuple(self._busy)
        for link in idle:
            link.channel.close()
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
            return self._greet(channel, min(timeout, 2 * CONNECT_SECONDS))
        except BaseException:
            self._drop(channel)
            raise

    def _greet(self, channel: Channel, seconds: float) -> _Link:
        channel.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._encrypt:
            self._encrypted(channel, seconds)
        channel.stall = seconds
        ours = new_nonce()
        host = self.address
        first = make_head(f"GET {HELLO} HTTP/1.1", {"Host": host, "Gdist-Exchange": f"{VERSION} {ours}"})
        channel.send((first + b"\r\n",))
        head, answer = self._unsigned(channel, seconds)
        challenge = head.fields.get("www-authenticate", "").split(" ")
        if head.words[1] != "401" or challenge[0] != "Gdist":
            raise Unreachable(f"something other than gdist answers at {host}", host=host)
        if len(challenge) != 2 or not is_nonce(challenge[1]):
            answer.raise_for_status(host)
        session = Session(self._key, ours, challenge[1])
        proof = make_head(f"GET {HELLO} HTTP/1.1", {"Host": host})
        channel.send((sealed(proof, session.sign(REQUEST, proof)),))
        self._signed_head(channel, session, seconds)
        return _Link(channel, session, host)

    def _encrypted(self, channel: Channel, seconds: float) -> None:
        channel.sock = self._key.client_context.wrap_socket(channel.sock, do_handshake_on_connect=False)
        channel.sock.settimeout(seconds)
        try:
            channel.sock.do_handshake()
        except ssl.SSLCertVerificationError as error:
            raise RefusedError(
                f"{self.address} was given another secret, or works on another job", host=self.address
            ) from error
        except ssl.SSLEOFError:
            raise
        except ssl.SSLError as error:
            raise RefusedError(
                f"{self.address} does not encrypt",
                hint="give --encrypt to all hosts or to none",
                host=self.address,
            ) from error
        if channel.sock.getpeercert(binary_form=True) != self._key.certificate:
            raise RefusedError(f"{self.address} shows another certificate", host=self.address)

    # Messages

    def _exchange(
        self,
        link: _Link,
        method: str,
        target: str,
        body: bytes,
        into: memoryview | None,
        timeout: float,
        checked: bool,
    ) -> Answer:
        channel = link.channel
        try:
            channel.stall = timeout
            try:
                channel.send((self._request(link, method, target, body), body))
                head = self._signed_head(channel, link.session, timeout)
            except (ConnectionError, ssl.SSLError) as error:
                if link.used:
                    raise _Stale from error
                raise
            answer = self._body(channel, head, into, checked)
        except BaseException:
            self._drop(channel)
            raise
        self._keep(link)
        return answer

    def _request(self, link: _Link, method: str, target: str, body: bytes) -> bytes:
        fields = {"Host": link.host, "Content-Length": str(len(body))}
        if self._member is not None:
            fields["Gdist-Member"] = str(self._member)
        if body:
            fields["Gdist-Digest"] = blake3(body).hexdigest()
        head = make_head(f"{method} {target} HTTP/1.1", fields)
        return sealed(head, link.session.sign(REQUEST, head))

    def _signed_head(self, channel: Channel, session: Session, seconds: float) -> Head:
        raw = channel.read_head(seconds, seconds)
        if not raw:
            raise Closed("closed without an answer")
        head = parse_head(raw)
        if not head.signed:
            self._refused(channel, head)
        if not session.is_signed(ANSWER, head.signed, head.fields[MAC]):
            raise TransferError(f"the answer of {self.address} was changed on the way", host=self.address)
        return head

    def _unsigned(self, channel: Channel, seconds: float) -> tuple[Head, Answer]:
        raw = channel.read_head(seconds, seconds)
        if not raw:
            raise Closed("closed at once: is this host on its list of hosts?")
        head = parse_head(raw)
        return head, self._small(channel, head)

    def _refused(self, channel: Channel, head: Head) -> None:
        """Raises what an answer without signature says: that we are not believed, or nothing to rely on."""
        if head.words[1] == "401":
            self._small(channel, head).raise_for_status(self.address)
        raise TransferError(f"the answer of {self.address} is not signed", host=self.address)

    def _small(self, channel: Channel, head: Head) -> Answer:
        """An answer that is not signed, as far as it is worth reading."""
        body = bytearray(min(head.length, 4096))
        channel.read_into(memoryview(body))
        return Answer(int(head.words[1]), head.fields, bytes(body), len(body))

    def _body(self, channel: Channel, head: Head, into: memoryview | None, checked: bool) -> Answer:
        status, nbytes = int(head.words[1]), head.length
        own = into is None or status >= 300
        room = MOST_BYTES if own or into is None else into.nbytes
        if nbytes > room:
            raise TransferError(
                f"{self.address} sends {nbytes} bytes where {room} have room", host=self.address
            )
        target = memoryview(bytearray(nbytes)) if own or into is None else into.cast("B")[:nbytes]
        digest = head.fields.get("gdist-digest")
        if nbytes and digest is None and checked:
            raise TransferError(f"{self.address} sends bytes without their digest", host=self.address)
        hasher = blake3() if digest else None
        channel.read_into(target, hasher)
        if hasher and hasher.hexdigest() != digest:
            raise TransferError(f"bytes of {self.address} were changed on the way", host=self.address)
        return Answer(status, head.fields, bytes(target) if own else b"", nbytes)

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
