"""The side that is called: a thread for each connection, and a handler for what members ask."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import final
from urllib.parse import parse_qsl, unquote, urlsplit

from blake3 import blake3

from gdist.core.text import printable
from gdist.errors import GdistError, RequestError
from gdist.exchange.addresses import EVERYONE, Allow, parse_address, plain_address
from gdist.exchange.auth import REQUEST, Session
from gdist.exchange.channel import Channel, Meter
from gdist.exchange.greeting import NOT_SIGNED, Unwelcome, greet_caller, refusal
from gdist.exchange.heads import BODY_BYTES, DIGEST, MAC, MEMBER, Head, parse_head
from gdist.exchange.key import Key
from gdist.exchange.limiter import Limiter
from gdist.exchange.messages import Handler, Request, Response, response_of
from gdist.exchange.sending import send_response

_log = logging.getLogger(__name__)

BACKLOG = 1024  # a whole cluster may knock at once when its coordinator comes up
CLOSE_SECONDS = 1.0  # for threads to end; one in a handler that does not return is left behind
LINGER_SECONDS = 0.5
FULL_SECONDS = 0.05  # before the next try when the process has no descriptors left


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server puts up with."""

    body_bytes: int = BODY_BYTES  # of a request
    connections: int = 2048
    strangers: int = 1024  # of them, connections that have not shown yet that they know the secret
    greet_seconds: float = 10.0  # from connecting to being known; also for a whole head
    idle_seconds: float = 120.0  # between requests
    stall_seconds: float = 30.0  # without a byte moving, in either direction
    body_seconds: float = 120.0  # for a whole request


@final
class Server:
    """Answers members of the cluster from `start` to `close`; a context manager.

    `listen` is an address as `parse_address` reads it; port 0 takes any, and no host means every address,
    IPv6 ones where there are. Calls `handler` from many threads at once. `limiter` caps what it sends and
    receives; `refused` hears who was turned away, by address, and why.
    """

    def __init__(
        self,
        listen: str,
        key: Key,
        *,
        handler: Handler,
        encrypt: bool = False,
        allow: Allow = EVERYONE,
        limiter: Limiter | None = None,
        limits: Limits | None = None,
        refused: Callable[[str, str], None] | None = None,
    ):
        self._listen = listen
        self._key, self._handler, self._encrypt = key, handler, encrypt
        self._allow, self._limiter, self._limits = allow, limiter, limits or Limits()
        self._tell_refused = refused
        self.meter = Meter()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, Channel] = {}
        self._strangers: dict[Channel, None] = {}  # oldest first
        self._socket: socket.socket | None = None
        self._accepting = threading.Thread(target=self._accept, name="gdist-accept", daemon=True)

    def start(self) -> Server:
        """Listens.

        Raises:
            RequestError: when it cannot, for example because the port is taken.
        """
        assert self._socket is None, "started twice"
        host, port = parse_address(self._listen)
        if self._encrypt:
            _ = self._key.server_context  # made now, not by the first who calls
        try:
            self._socket = _listening(host, port)
        except OSError as error:
            raise RequestError(
                f"cannot listen on {self._listen}: {error.strerror or error}",
                hint="choose another --port, or 0 for any",
            ) from error
        self._accepting.start()
        return self

    def close(self) -> None:
        """Stops listening and hangs up on everyone, within about a second."""
        self._closing.set()
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._accepting.join()
        self._socket.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        with self._lock:
            threads = dict(self._threads)
        for channel in threads.values():
            channel.hang_up()
        for thread in threads.keys() - {threading.current_thread()}:  # a handler may close its server
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.debug("a handler did not return: %s", thread.name)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._socket is not None, "not started"
        return int(self._socket.getsockname()[1])

    @property
    def connections(self) -> int:
        """How many are open."""
        with self._lock:
            return len(self._threads)

    # Accepting

    def _accept(self) -> None:
        assert self._socket is not None
        while not self._closing.is_set():
            try:
                sock, peer = self._socket.accept()
            except OSError as error:
                if not self._closing.is_set():
                    _log.debug("cannot accept a connection: %s", error)
                    self._closing.wait(FULL_SECONDS)
                continue
            self._begin(sock, plain_address(str(peer[0])))

    def _begin(self, sock: socket.socket, peer: str) -> None:
        channel = Channel(
            sock,
            self.meter,
            stall=self._limits.stall_seconds,
            limiter=self._limiter,
            wait=self._closing.wait,
        )
        thread = threading.Thread(target=self._run, args=(channel, peer), name=f"gdist-{peer}", daemon=True)
        with self._lock:
            if len(self._strangers) >= self._limits.strangers:
                oldest = next(iter(self._strangers))  # it has had the longest time to say who it is
                del self._strangers[oldest]
                oldest.hang_up()
            full = len(self._threads) >= self._limits.connections
            if not full:
                self._threads[thread] = channel
                self._strangers[channel] = None
        if full:
            _log.debug("%d connections are open: %s has to wait", self._limits.connections, peer)
            channel.close()
            return
        try:
            thread.start()
        except RuntimeError:  # the process may have no more threads
            _log.debug("no thread for %s", peer)
            self._forget(thread, channel)

    def _run(self, channel: Channel, peer: str) -> None:
        """On its own thread: one connection, from its first byte to its last."""
        try:
            if self._allow.permits(peer):
                self._converse(channel, peer)
            else:
                self._refused(peer, "it is not on the list of hosts")
        except Unwelcome as error:
            self._refused(peer, str(error))
            with contextlib.suppress(OSError):
                channel.send((refusal(str(error)),))
                channel.close_gently(LINGER_SECONDS)
        except (OSError, ValueError) as error:
            _log.debug("%s: %s", peer, error)
        except Exception:
            _log.exception("%s: failed", peer)
        finally:
            self._forget(threading.current_thread(), channel)

    def _refused(self, peer: str, why: str) -> None:
        _log.debug("%s is refused: %s", peer, why)
        if self._tell_refused:
            self._tell_refused(peer, why)

    def _forget(self, thread: threading.Thread, channel: Channel) -> None:
        channel.close()
        with self._lock:
            self._strangers.pop(channel, None)
            self._threads.pop(thread, None)

    # Talking

    def _converse(self, channel: Channel, peer: str) -> None:
        channel.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deadline = time.monotonic() + self._limits.greet_seconds
        session = greet_caller(channel, self._key, encrypt=self._encrypt, deadline=deadline)
        with self._lock:
            self._strangers.pop(channel, None)
        while not self._closing.is_set():
            raw = channel.read_head(self._limits.idle_seconds, self._limits.greet_seconds)
            if not raw:
                return
            head = self._signed_head(session, raw)
            body = self._body(session, channel, head)
            if body is None:
                return
            target = urlsplit(head.words[1])
            request = Request(
                method=head.words[0],
                path=unquote(target.path),
                query=dict(parse_qsl(target.query, keep_blank_values=True)),
                body=body,
                peer=peer,
                member=_member(head.fields.get(MEMBER, "")),
                gone=lambda: self._closing.is_set() or not channel.is_quiet(),
            )
            send_response(session, channel, self._handle(request))

    def _signed_head(self, session: Session, raw: bytes) -> Head:
        head = parse_head(raw)
        if not head.signed or not session.is_signed(REQUEST, head.signed, head.fields[MAC]):
            raise Unwelcome(NOT_SIGNED)
        return head

    def _body(self, session: Session, channel: Channel, head: Head) -> bytes | None:
        """The body of a request whose head is signed; None when it was refused, and the connection ends."""
        most = self._limits.body_bytes
        if head.length > most:
            refused = Response.error(413, f"{head.length} bytes are too many, {most} are taken")
            send_response(session, channel, refused)
            channel.close_gently(LINGER_SECONDS)
            return None
        body = bytearray(head.length)
        if body:
            hasher = blake3()
            channel.read_into(memoryview(body), hasher, time.monotonic() + self._limits.body_seconds)
            if hasher.hexdigest() != head.fields.get(DIGEST):
                raise ValueError("the body was changed on the way")
        return bytes(body)

    def _handle(self, request: Request) -> Response:
        try:
            return self._handler(request)
        except GdistError as error:
            return response_of(error)
        except Exception as error:
            _log.exception("%s %s failed", request.method, printable(request.path))
            return Response.error(500, f"{type(error).__name__}: {error}")


def _listening(host: str, port: int) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
            )
        except OSError:
            host = ""  # the kernel knows IPv6, and this host has none
    family, _, _, _, address = socket.getaddrinfo(
        host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)


def _member(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
