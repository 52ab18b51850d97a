"""Hosts that vanish, freeze or hang up in the middle: an error in time, and nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gdist.errors import Unreachable
from gdist.exchange import Client, Key
from gdist.exchange.auth import Session
from gdist.exchange.channel import Channel

GRACE_SECONDS = 10.0
MIB = 2**20

Call = Callable[..., Client]
AnswerOf = Callable[..., bytes]
Impostor = Callable[[Callable[[Session, Channel], None]], Any]

# --- a kept connection that is closed just as it is used --------------------------------------------------


def hang_up_on(which: set[int], answer_of: AnswerOf) -> Callable[[Session, Channel], None]:
    """Answers, but hangs up instead of the answers of these numbers."""
    count = 0

    def answer(session: Session, channel: Channel) -> None:
        nonlocal count
        count += 1
        if count in which:
            raise ConnectionError("hangs up")
        channel.send((answer_of(session, **{"Content-Length": "0"}),))

    return answer


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_may_be_done_twice_is_sent_once_more(
    impostor: Impostor, call: Call, answer_of: AnswerOf, method: str
) -> None:
    host = impostor(hang_up_on({2}, answer_of))
    client = call(host.port)
    client.request(method, "/")
    assert client.request(method, "/", idempotent=True).status == 200
    assert host.requests == 3


def test_what_may_not_be_done_twice_is_not(impostor: Impostor, call: Call, answer_of: AnswerOf) -> None:
    host = impostor(hang_up_on({2}, answer_of))
    client = call(host.port)
    client.request("POST", "/")
    with pytest.raises(Unreachable, match="closed a connection"):
        client.request("POST", "/")
    assert host.requests == 2
    assert client.request("POST", "/").status == 200  # the next one is another matter


def test_once_more_is_once(impostor: Impostor, call: Call, answer_of: AnswerOf) -> None:
    host = impostor(hang_up_on({2, 3, 4}, answer_of))
    client = call(host.port)
    client.request("GET", "/")
    with pytest.raises(Unreachable, match="closed without an answer"):
        client.request("GET", "/")
    assert host.requests == 3


def test_a_new_connection_that_is_closed_is_not_tried_again(
    impostor: Impostor, call: Call, answer_of: AnswerOf
) -> None:
    host = impostor(hang_up_on({1}, answer_of))
    with pytest.raises(Unreachable):
        call(host.port).request("GET", "/")
    assert host.requests == 1


def test_an_answer_that_has_begun_is_not_asked_for_again(
    impostor: Impostor, call: Call, answer_of: AnswerOf
) -> None:
    def answer(session: Session, channel: Channel) -> None:
        whole = host.requests == 1
        channel.send((answer_of(session, **{"Content-Length": "5"}), b"hello" if whole else b"hel"))
        if not whole:
            raise ConnectionError("hangs up")

    host = impostor(answer)
    client = call(host.port)
    client.request("GET", "/", checked=False)
    with pytest.raises(Unreachable, match="closed in a body"):
        client.request("GET", "/", checked=False)
    assert host.requests == 2


# --- another process --------------------------------------------------------------------------------------

SERVE = """
import sys, threading
from gdist.exchange import Key, Limiter, Request, Response, Server

def handler(request):
    return Response(body=bytes(64 * 2**20) if request.path == "/data" else b"here")

key, encrypt, rate = Key.from_hex(sys.argv[1]), sys.argv[2] == "True", float(sys.argv[3])
with Server("127.0.0.1:0", key, handler=handler, encrypt=encrypt, limiter=Limiter(rate)) as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def host(key: Key, encrypt: bool) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, slow enough to be stopped on the way; its port."""
    command = [sys.executable, "-c", SERVE, key.hex(), str(encrypt), str(8 * MIB)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process, int(process.stdout.readline())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.kill()


def fetching(client: Client, pool: ThreadPoolExecutor) -> Any:
    """A transfer that is on its way."""
    fetched = pool.submit(client.fetch, "/data", b"", memoryview(bytearray(64 * MIB)))
    while client.meter.received < MIB and not fetched.done():
        threading.Event().wait(0.001)
    return fetched


def test_a_frozen_host_is_unreachable(
    host: tuple[subprocess.Popen[str], int], call: Call, encrypt: bool
) -> None:
    process, port = host
    client = call(port, encrypt=encrypt)
    assert client.request("GET", "/").body == b"here"
    with ThreadPoolExecutor(1) as pool:
        slow = call(port, encrypt=encrypt, timeout=0.5)
        fetched = fetching(slow, pool)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(Unreachable, match="does not answer"):  # in the middle of a body
            fetched.result(GRACE_SECONDS)
    with pytest.raises(Unreachable, match="does not answer"):  # on a kept connection
        client.request("GET", "/", timeout=0.2)
    with pytest.raises(Unreachable, match="does not answer"):  # on a new one: the kernel still accepts
        client.request("GET", "/", timeout=0.2)
    os.kill(process.pid, signal.SIGCONT)
    assert client.request("GET", "/").body == b"here"


def test_a_host_without_descriptors_goes_on_once_it_has_some(
    host: tuple[subprocess.Popen[str], int], call: Call, encrypt: bool
) -> None:
    process, port = host
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (24, 24))
    with contextlib.ExitStack() as stack:
        for _ in range(40):  # the kernel accepts them all
            stack.enter_context(socket.create_connection(("127.0.0.1", port), GRACE_SECONDS))
        with pytest.raises(Unreachable):
            call(port, encrypt=encrypt, timeout=0.3).request("GET", "/")
    assert call(port, encrypt=encrypt).request("GET", "/").body == b"here"


def test_a_killed_host_is_unreachable(
    host: tuple[subprocess.Popen[str], int], call: Call, encrypt: bool
) -> None:
    process, port = host
    client = call(port, encrypt=encrypt)
    with ThreadPoolExecutor(1) as pool:
        fetched = fetching(client, pool)
        process.kill()
        with pytest.raises(Unreachable):
            fetched.result(GRACE_SECONDS)
    process.wait()
    with pytest.raises(Unreachable, match="refused"):
        client.request("GET", "/")
