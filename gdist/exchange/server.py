"""The side that is called: a thread for each connection, and a handler for what members ask."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import final
from urllib.parse import parse_qsl, unquote, urlsplit

from blake3 import blake3

from gdist.core.text import printable
from gdist.errors import GdistError, Gone, RequestError
from gdist.exchange.addresses import EVERYONE, Allow, parse_address, plain_address
from gdist.exchange.auth import ANSWER, REQUEST, VERSION, Session, is_nonce, new_nonce
from gdist.exchange.channel import Channel, Meter
from gdist.exchange.key import Key
from gdist.exchange.limiter import Limiter
from gdist.exchange.messages import (
    MAC,
    FileExtents,
    FileRun,
    Handler,
    Head,
    Request,
    Response,
    make_head,
    parse_head,
    response_of,
    sealed,
)

log = logging.getLogger(__name__)

HELLO = "/hello"
BACKLOG = 1024  # a whole cluster may knock at once when its coordinator comes up
TLS_HANDSHAKE = b"\x16"  # first byte of TLS (RFC 8446, 5.1), and of no HTTP request
CLOSE_SECONDS = 1.0  # for threads to end; one in a handler that does not return is left behind
LINGER_SECONDS = 0.5
FULL_SECONDS = 0.05  # before the next try when the process has no descriptors left

NOT_SIGNED = "an agent of gdist: what it is asked has to be signed with the job's secret"
OTHER_SECRET = "this host was given another secret, or works on another job"
OTHER_VERSION = "this host speaks another version of the exchange: run the same gdist everywhere"
ENCRYPTED_HERE = "this host encrypts (--encrypt), and was called without"
PLAIN_HERE = "this host does not encrypt, and was called with --encrypt"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server puts up with."""

    body_bytes: int = 64 * 2**20  # of a request
    connections: int = 2048
    strangers: int = 128  # of them, connections that have not shown yet that they know the secret
    greet_seconds: float = 10.0  # from connecting to being known; also for a whole head
    idle_seconds: float = 120.0  # between requests
    stall_seconds: float = 30.0  # without a byte moving, in either direction
    body_seconds: float = 120.0  # for a whole request


class _Unwelcome(Exception):
    """Ends a connection that was not authenticated; says why."""


@final
class Server:
    """Answers members of the cluster from `start` to `close`; a context manager.

    `listen` is an address as `parse_address` reads it; port 0 takes any, and no host means every address, IPv6
    where there is. Calls `handler` from many threads at once. `limiter` caps what is sent.
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
    ):
        self._listen = listen
        self._key, self._handler, self._encrypt = key, handler, encrypt
        self._allow, self._limiter, self._limits = allow, limiter, limits or Limits()
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
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("a handler did not return: %s", thread.name)

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
                    log.warning("cannot accept a connection: %s", error)
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
                next(iter(self._strangers)).hang_up()  # who has had the longest time to say who it is
            full = len(self._threads) >= self._limits.connections
            if not full:
                self._threads[thread] = channel
                self._strangers[channel] = None
        if full:
            log.warning("%d connections are open: %s has to wait", self._limits.connections, peer)
            channel.close()
            return
        thread.start()

    def _run(self, channel: Channel, peer: str) -> None:
        """On its own thread: one connection, from its first byte to its last."""
        try:
            if self._allow.permits(peer):
                self._converse(channel, peer)
            else:
                log.warning("%s is not on the list of hosts", peer)
        except _Unwelcome as error:
            log.warning("%s: %s", peer, error)
            with contextlib.suppress(OSError):
                channel.send((_refusal(str(error), close=True),))
                channel.close_gently(LINGER_SECONDS)
        except (OSError, ValueError) as error:
            log.debug("%s: %s", peer, error)
        except Exception:
            log.exception("%s: failed", peer)
        finally:
            channel.close()
            with self._lock:
                self._strangers.pop(channel, None)
                self._threads.pop(threading.current_thread(), None)

    # Talking

    def _converse(self, channel: Channel, peer: str) -> None:
        session = self._greet(channel)
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
                member=_member(head.fields.get("gdist-member", "")),
                gone=lambda: self._closing.is_set() or not channel.is_quiet(),
            )
            self._respond(session, channel, self._handle(request))

    def _greet(self, channel: Channel) -> Session:
        """Both sides show that they know the secret, before anything of it is asked."""
        channel.sock.settimeout(self._limits.greet_seconds)
        channel.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = channel.sock.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE
        if tls != self._encrypt:
            raise _Unwelcome(PLAIN_HERE if tls else ENCRYPTED_HERE)
        if tls:
            self._encrypted(channel)
        hello = self._hello(channel)
        if hello.words[:2] != ("GET", HELLO) or "gdist-exchange" not in hello.fields or hello.length:
            raise _Unwelcome(NOT_SIGNED)
        version, _, theirs = hello.fields["gdist-exchange"].partition(" ")
        if version != VERSION or not is_nonce(theirs):
            raise _Unwelcome(OTHER_VERSION)
        ours = new_nonce()
        channel.send((_refusal(NOT_SIGNED, f"Gdist {ours}"),))
        session = Session(self._key, theirs, ours)
        proof = self._hello(channel)
        if not proof.signed:
            raise _Unwelcome(NOT_SIGNED)
        if not session.is_signed(REQUEST, proof.signed, proof.fields[MAC]) or proof.length:
            raise _Unwelcome(OTHER_SECRET)
        self._respond(session, channel, Response())
        return session

    def _hello(self, channel: Channel) -> Head:
        seconds = self._limits.greet_seconds
        raw = channel.read_head(seconds, seconds)
        if not raw:
            raise ConnectionError("left without a word")
        try:
            return parse_head(raw)
        except ValueError as error:
            raise _Unwelcome(NOT_SIGNED) from error

    def _encrypted(self, channel: Channel) -> None:
        """Goes on inside TLS; whoever has no certificate of the secret's does not get in."""
        plain = channel.sock
        # Without a handshake here: were it to fail, `wrap_socket` would close the socket that others may hang up.
        channel.sock = self._key.server_context.wrap_socket(
            plain, server_side=True, do_handshake_on_connect=False
        )
        channel.sock.settimeout(self._limits.greet_seconds)
        channel.sock.do_handshake()
        if channel.sock.getpeercert(binary_form=True) != self._key.certificate:
            raise ssl.SSLError("another certificate")

    def _signed_head(self, session: Session, raw: bytes) -> Head:
        head = parse_head(raw)
        if not head.signed or not session.is_signed(REQUEST, head.signed, head.fields[MAC]):
            raise _Unwelcome(NOT_SIGNED)
        return head

    def _body(self, session: Session, channel: Channel, head: Head) -> bytes | None:
        """The body of a request whose head is signed; None when it was refused, and the connection ends."""
        most = self._limits.body_bytes
        if head.length > most:
            self._respond(
                session, channel, Response.error(413, f"{head.length} bytes are too many, {most} are taken")
            )
            channel.close_gently(LINGER_SECONDS)
            return None
        body = bytearray(head.length)
        if body:
            hasher = blake3()
            channel.read_into(memoryview(body), hasher, time.monotonic() + self._limits.body_seconds)
            if hasher.hexdigest() != head.fields.get("gdist-digest"):
                raise ValueError("the body was changed on the way")
        return bytes(body)

    def _handle(self, request: Request) -> Response:
        try:
            return self._handler(request)
        except GdistError as error:
            return response_of(error)
        except Exception as error:
            log.exception("%s %s failed", request.method, printable(request.path))
            return Response.error(500, f"{type(error).__name__}: {error}")

    def _respond(self, session: Session, channel: Channel, response: Response) -> None:
        try:
            body = response.body
            if not isinstance(body, FileExtents):
                self._send_memory(session, channel, response)
                return
            with contextlib.ExitStack() as opened:
                try:
                    runs = tuple(_opened(run, opened) for run in body.runs)
                except OSError as error:
                    gone = Gone(f"cannot read it any more: {error.strerror or error}")
                    self._send_memory(session, channel, response_of(gone))
                    return
                head = _signed(session, response, body.nbytes, None)
                channel.send_files(head, runs)
        finally:
            if response.done:
                response.done()

    def _send_memory(self, session: Session, channel: Channel, response: Response) -> None:
        assert not isinstance(response.body, FileExtents)
        body = response.body
        parts = (body,) if isinstance(body, bytes | bytearray | memoryview) else tuple(body)
        hasher = blake3()
        nbytes = 0
        for part in parts:
            hasher.update(part)
            nbytes += memoryview(part).nbytes
        head = _signed(session, response, nbytes, hasher.hexdigest() if nbytes else None)
        channel.send((head, *parts))


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
    return socket.create_server(
        address[:2],  # type: ignore[arg-type]  # host and port, whatever the family
        family=family,
        backlog=BACKLOG,
        dualstack_ipv6=both,
    )


def _member(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _signed(session: Session, response: Response, nbytes: int, digest: str | None) -> bytes:
    status = HTTPStatus(response.status)
    fields = {"Content-Length": str(nbytes), **response.headers}
    if digest:
        fields["Gdist-Digest"] = digest
    head = make_head(f"HTTP/1.1 {status.value} {status.phrase}", fields)
    return sealed(head, session.sign(ANSWER, head))


def _refusal(message: str, challenge: str = "Gdist", close: bool = False) -> bytes:
    """The one answer that is not signed: 401."""
    body = bytes(Response.error(401, message).body)
    fields = {
        "WWW-Authenticate": challenge,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    if close:
        fields["Connection"] = "close"
    return make_head("HTTP/1.1 401 Unauthorized", fields) + b"\r\n" + body


def _opened(run: FileRun, stack: contextlib.ExitStack) -> FileRun:
    """The run of an open file, which holds all of it."""
    file = run.file
    if isinstance(file, str):
        file = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, file)
    size = os.fstat(file).st_size
    if size < run.offset + run.length:
        raise OSError(f"the file ends at {size}")
    return FileRun(file, run.offset, run.length)
