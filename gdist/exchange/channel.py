"""One connection: heads and bodies in and out, each within its time."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from gdist.exchange.heads import END, HEAD_BYTES
from gdist.exchange.limiter import Limiter
from gdist.exchange.messages import Buffer, FileRun

AWAIT_BYTES = 64 * 2**10  # a reader is not woken for fewer bytes of a body
READ_BYTES = 2**20  # at most, from the kernel at once
HEAD_READ_BYTES = 4096  # what comes behind a head is copied, so little of it is taken along
SEND_BYTES = 4 * 2**20  # offered to the kernel at once
NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems
SEND_BUFFERS = 512  # of one call; Linux takes 1024 (IOV_MAX)


class Hasher(Protocol):
    """Takes bytes as they come."""

    def update(self, data: Buffer, /) -> object:
        """Adds bytes."""


class Closed(ConnectionError):
    """The other side closed the connection where a message should go on."""


class Meter:
    """Bytes sent and received by all connections of a server or client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent = self.received = 0

    def add(self, sent: int, received: int) -> None:
        """Counts more."""
        with self._lock:
            self.sent += sent
            self.received += received


class Channel:
    """A connected socket that speaks in messages.

    `stall` is how long, in seconds, the other side may not move a byte. Raises `TimeoutError` when it moves
    none for longer, `Closed` or another `OSError` when it goes away.
    """

    def __init__(
        self,
        sock: socket.socket,
        meter: Meter,
        *,
        stall: float,
        limiter: Limiter | None = None,
        wait: Callable[[float], object] = time.sleep,
    ):
        self.sock = sock
        self.stall = stall
        self._meter, self._limiter, self._wait = meter, limiter, wait
        self._ahead = bytearray()  # read with a head, and not of it
        self._hung_up = False
        self._awaited = 1  # bytes that the kernel waits for before it wakes who reads

    def encrypt(self, context: ssl.SSLContext, seconds: float, *, called: bool) -> bytes:
        """Goes on inside TLS; the other side's certificate (DER).

        Raises:
            ssl.SSLError: when the other side does not do its part, or is not whom the context trusts.
        """
        # The handshake is not left to `wrap_socket`, which knows no time limit of ours.
        self.sock = sock = context.wrap_socket(self.sock, server_side=called, do_handshake_on_connect=False)
        if self._hung_up:  # on the socket that was before
            raise Closed("hung up")
        sock.settimeout(seconds)
        sock.do_handshake()
        return sock.getpeercert(binary_form=True) or b""

    def read_head(self, first: float, whole: float) -> bytes:
        """The next head with the empty line that ends it; b"" when the other side closed before it.

        Waits `first` seconds for its first byte, then `whole` seconds for all of it.

        Raises:
            ValueError: when it is longer than any of ours.
        """
        deadline = time.monotonic() + (whole if self._ahead else first)
        begun = bool(self._ahead)
        scanned = 0
        while (end := self._ahead.find(END, max(0, scanned - len(END)))) < 0:
            scanned = len(self._ahead)
            if scanned > HEAD_BYTES:
                raise ValueError("the head is too long")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the head takes too long")
            self.sock.settimeout(left)
            data = self.sock.recv(HEAD_READ_BYTES)
            if not data:
                if begun:
                    raise Closed("closed in a head")
                return b""
            if not begun:
                begun, deadline = True, time.monotonic() + whole
            self._meter.add(0, len(data))
            self._ahead += data
        head = bytes(self._ahead[: end + len(END)])
        del self._ahead[: len(head)]
        return head

    def read_into(
        self, view: memoryview, hasher: Hasher | None = None, deadline: float | None = None
    ) -> None:
        """Fills the view; `deadline` is a time of `time.monotonic`."""
        ahead = min(len(view), len(self._ahead))
        view[:ahead] = self._ahead[:ahead]
        del self._ahead[:ahead]
        if hasher:
            hasher.update(view[:ahead])
        if self._limiter:
            self._limiter.reserve(ahead)  # too little to wait for
        self.sock.settimeout(self.stall)
        step = READ_BYTES
        if self._limiter:
            step = min(step, self._limiter.step)
        for start in range(ahead, len(view), step):
            block = view[start : start + step]
            self._fill(block, deadline)
            if hasher:
                hasher.update(block)  # while it is in the cache, and the kernel receives more
            if self._limiter:
                self._limiter.take(len(block), self._wait)
        self._await(1)

    def _receive(self, view: memoryview) -> int:
        try:
            return self.sock.recv_into(view)
        except TimeoutError:
            if self._awaited == 1:
                raise
            self._await(1)  # fewer bytes than were waited for may have come all the same
            self.sock.settimeout(0)
            try:
                return self.sock.recv_into(view)
            except BlockingIOError:
                raise TimeoutError("nothing comes") from None
            finally:
                self.sock.settimeout(self.stall)

    def _await(self, nbytes: int) -> None:
        # Not with TLS: it reads ahead, so fewer bytes may be left on the wire than are still to be read.
        if nbytes != self._awaited and not isinstance(self.sock, ssl.SSLSocket):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, nbytes)
            self._awaited = nbytes

    def _fill(self, block: memoryview, deadline: float | None) -> None:
        got = 0
        while got < len(block):
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError("the body takes too long")
            # A line that is not the fastest brings a few packets at a time: each would cost a turn of Python.
            self._await(min(len(block) - got, AWAIT_BYTES))
            nbytes = self._receive(block[got:])
            if not nbytes:
                raise Closed("closed in a body")
            self._meter.add(0, nbytes)
            got += nbytes

    def send(self, parts: Iterable[Buffer]) -> None:
        """Sends buffers, C-contiguous ones, end to end."""
        self.sock.settimeout(self.stall)
        step = self._limiter.step if self._limiter else SEND_BYTES
        for batch, nbytes in batches(parts, step):
            if self._limiter:
                self._limiter.take(nbytes, self._wait)
            if isinstance(self.sock, ssl.SSLSocket):
                self._send_one(batch[0] if len(batch) == 1 else memoryview(b"".join(batch)))
            else:
                self._send_many(batch)

    def _send_one(self, data: memoryview) -> None:
        while data:
            sent = self.sock.send(data)
            self._meter.add(sent, 0)
            data = data[sent:]

    def _send_many(self, batch: list[memoryview]) -> None:
        first = 0
        while first < len(batch):
            sent = self.sock.sendmsg(batch[first:])
            self._meter.add(sent, 0)
            while first < len(batch) and sent >= len(batch[first]):
                sent -= len(batch[first])
                first += 1
            if sent:
                batch[first] = batch[first][sent:]

    def send_files(self, head: bytes, runs: Sequence[FileRun]) -> None:
        """Sends a head and, behind it, runs of open files (`file` is a descriptor).

        Raises:
            OSError: also when a file ends before its run.
        """
        if isinstance(self.sock, ssl.SSLSocket):
            self.send((head,))
            for block in _read(runs):
                self.send((block,))
            return
        self.sock.settimeout(self.stall)
        self.sock.sendall(head, socket.MSG_MORE)
        self._meter.add(len(head), 0)
        for run in runs:
            assert isinstance(run.file, int), run
            self._send_file(run.file, run.offset, run.length)

    def _send_file(self, file: int, offset: int, length: int) -> None:
        out = self.sock.fileno()
        ready = select.poll()
        ready.register(out, select.POLLOUT)
        while length:
            step = min(length, self._limiter.step if self._limiter else SEND_BYTES)
            if self._limiter:
                self._limiter.take(step, self._wait)
            while step:
                try:
                    sent = os.sendfile(out, file, offset, step)
                except BlockingIOError:
                    if not ready.poll(self.stall * 1000):
                        raise TimeoutError("the other side takes nothing") from None
                    continue
                except OSError as error:
                    if error.errno not in NO_SENDFILE:
                        raise
                    sent = self.sock.send(os.pread(file, min(step, READ_BYTES), offset))
                if not sent:
                    raise OSError(f"file ends at {offset}")
                self._meter.add(sent, 0)
                offset, length, step = offset + sent, length - sent, step - sent

    def is_quiet(self) -> bool:
        """Whether nothing has come, not even the end: an idle connection that may be used again."""
        if self._ahead or self.sock.fileno() < 0:
            return False
        ready = select.poll()
        ready.register(self.sock, select.POLLIN | select.POLLHUP | select.POLLERR)
        return not ready.poll(0)

    def hang_up(self) -> None:
        """Ends both directions at once, from any thread; whoever waits here wakes."""
        self._hung_up = True
        with contextlib.suppress(OSError):
            # Not `SSLSocket.shutdown`: it forgets that it is encrypted, under the feet of who reads.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close_gently(self, seconds: float) -> None:
        """Closes so that what was sent last arrives: bytes left unread would make the kernel drop it."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0:
                self.sock.settimeout(left)
                if not socket.socket.recv(self.sock, READ_BYTES):
                    break
        self.close()

    def close(self) -> None:
        """Closes; only by the thread that uses it."""
        self.sock.close()


def bytes_of(part: Buffer) -> memoryview:
    """The bytes of a C-contiguous buffer of any shape."""
    view = memoryview(part)
    return view.cast("B") if view.nbytes else memoryview(b"")  # `cast` takes no shape with a zero


def batches(parts: Iterable[Buffer], step: int) -> Iterator[tuple[list[memoryview], int]]:
    """The parts in lists of at most `step` bytes, none empty."""
    batch: list[memoryview] = []
    room = step
    for part in parts:
        view = bytes_of(part)
        while view:
            head, view = view[:room], view[room:]
            batch.append(head)
            room -= len(head)
            if not room or len(batch) == SEND_BUFFERS:
                yield batch, step - room
                batch, room = [], step
    if batch:
        yield batch, step - room


def _read(runs: Iterable[FileRun]) -> Iterator[memoryview]:
    """Runs of open files through one buffer: a view is good until the next is asked for."""
    buffer = memoryview(bytearray(READ_BYTES))
    for run in runs:
        assert isinstance(run.file, int), run
        done = 0
        while done < run.length:
            got = os.preadv(run.file, [buffer[: run.length - done]], run.offset + done)
            if not got:
                raise OSError(f"file ends at {run.offset + done}")
            yield buffer[:got]
            done += got
