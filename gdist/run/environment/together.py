"""All hosts look at once: each listens on its port for a while, and calls the others as a fetch would.

    POST /check   who I am, where I listen;  answered with who answers, its time, and all that it has heard of
    POST /bulk    a quarter of a megabyte: whether what fits in one packet is all that gets through

Hosts that know only the coordinator hear of the others from it. What is spoken is the exchange of a fetch, so
another secret, or encryption on one side only, shows here.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gdist import __version__
from gdist.core.hosts import join_address
from gdist.core.mesh import HostGroup
from gdist.core.text import numbers, printable, shorten
from gdist.errors import GdistError, HostsMissing, RefusedError, RequestError, ResumeError, TransferError
from gdist.exchange import Client, Key, Request, Response, Server
from gdist.run.environment.findings import Finding, fail, ok, warn

NO_SECRET = "gdist check without a secret"  # hosts without one can still meet; nothing is given away
BULK_BYTES = 1 << 18
ANSWER_SECONDS = 5.0
AGAIN_SECONDS = 0.5  # between calls to hosts that are not there yet
AFTER_SECONDS = 2.0  # stays for those that are a little later
THREADS = 16
NAMED = 8


@dataclass(frozen=True, slots=True)
class Meeting:
    """Which host this is, the addresses of others as far as they are known, and how to speak with them."""

    host: HostGroup
    addresses: Mapping[int, str]
    port: int
    secret: str
    job: str
    encrypt: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Met:
    """Another host that was called: its version, how far its clock is ahead, whether bulk data came through.

    `refused` says why it or this host would not speak.
    """

    index: int
    address: str
    name: str = ""
    version: str = ""
    skew: float = 0.0
    bulk: bool = True
    refused: str = ""


class _Table:
    """Who has been heard of; the one mutable thing, under one lock."""

    def __init__(self, meeting: Meeting, token: str) -> None:
        self._lock = threading.Lock()
        self._addresses = {n: a for n, a in meeting.addresses.items() if n != meeting.host.index}
        self._tokens = {meeting.host.index: token}
        self.claims: dict[str, None] = {}  # two processes that say they are one host

    def heard(self, index: int, address: str) -> None:
        with self._lock:
            self._addresses.setdefault(index, address)

    def greeted(self, index: int, token: str, who: str) -> str:
        """Who called; what is wrong with that, or ''."""
        with self._lock:
            if self._tokens.setdefault(index, token) == token:
                return ""
            claim = f"{who} says that it is host {index}, and so does another"
            self.claims[claim] = None
            return claim

    def callers(self) -> frozenset[int]:
        with self._lock:
            return frozenset(self._tokens)

    def addresses(self) -> dict[int, str]:
        with self._lock:
            return dict(self._addresses)


def meet(
    meeting: Meeting, stop: Callable[[], None] = lambda: None
) -> tuple[tuple[Met, ...], tuple[str, ...]]:
    """The other hosts that were met, and which index was claimed by several.

    Takes as long as the last of them does to come, at most the meeting's seconds. `stop` may raise.

    Raises:
        RequestError: when the port cannot be listened on.
    """
    own, token = socket.gethostname(), secrets.token_hex(8)
    table = _Table(meeting, token)
    key = Key.from_secret(meeting.secret or NO_SECRET, f"check {meeting.job}")

    def answer(request: Request) -> Response:
        if request.path == "/bulk":
            return Response(body=bytes(BULK_BYTES))
        told = json.loads(request.body)
        index, address = int(told["index"]), join_address(request.peer, int(told["port"]))
        who = f"{printable(str(told['name']))} at {address}"
        claim = table.greeted(index, str(told["token"]), who)
        if not claim:
            table.heard(index, address)
        here = {"index": meeting.host.index, "name": own, "version": __version__, "time": time.time()}
        known = {str(n): a for n, a in table.addresses().items()}
        return Response(body=json.dumps(here | {"hosts": known, "claim": claim}).encode())

    with Server(f":{meeting.port}", key, handler=answer, encrypt=meeting.encrypt) as server:
        hello = {"index": meeting.host.index, "port": server.port, "name": own, "token": token}
        deadline = time.monotonic() + meeting.seconds
        met = _call_until_all(meeting, table, key, hello, deadline, stop)
        _stay({index for index, one in met.items() if not one.refused}, table, deadline, stop)
    return tuple(met[index] for index in sorted(met)), tuple(table.claims)


def _call_until_all(
    meeting: Meeting,
    table: _Table,
    key: Key,
    hello: dict[str, object],
    deadline: float,
    stop: Callable[[], None],
) -> dict[int, Met]:
    met: dict[int, Met] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        while True:
            missing = {n: a for n, a in table.addresses().items() if n not in met or met[n].refused}
            calls = [pool.submit(_call, n, a, meeting, key, hello, table) for n, a in missing.items()]
            for found in (call.result() for call in calls):
                if found is not None:
                    met[found.index] = found
            here = sum(not one.refused for one in met.values())
            if here == meeting.host.count - 1 or time.monotonic() > deadline:
                return met
            stop()
            time.sleep(AGAIN_SECONDS)


def _stay(met: Collection[int], table: _Table, deadline: float, stop: Callable[[], None]) -> None:
    """Answers until all who were met have called too, and for a while those who call for the second time."""
    until = time.monotonic() + (AFTER_SECONDS if met else 0)
    while (now := time.monotonic()) < until:
        if now < deadline and not table.callers() >= set(met):
            until = now + AFTER_SECONDS
        stop()
        time.sleep(0.1)


def _call(
    index: int, address: str, meeting: Meeting, key: Key, hello: dict[str, object], table: _Table
) -> Met | None:
    """One call; None when nobody answers."""
    client = Client(address, key, member=meeting.host.index, encrypt=meeting.encrypt, timeout=ANSWER_SECONDS)
    with client:
        started = time.time()
        try:
            told = client.json("POST", "/check", hello, idempotent=True)
        except TransferError:
            return None
        except GdistError as error:
            return Met(index, address, refused=error.message)
        try:
            clock, who = float(told["time"]), int(told["index"])
            name, version = printable(str(told["name"])), printable(str(told["version"]))
            claim = printable(str(told["claim"]))
            others = {int(n): str(where) for n, where in dict(told["hosts"]).items()}
        except (KeyError, TypeError, ValueError):
            return Met(index, address, refused="it answers with something that is no answer")
        if claim:
            return Met(index, address, name, refused=claim)
        if who != index:
            return Met(index, address, name, refused=f"{name} there says that it is host {who}")
        skew = clock - (started + time.time()) / 2
        if index == 0:  # the coordinator knows them all; one such list is enough
            for other in others.keys() - {meeting.host.index}:
                table.heard(other, others[other])
        try:
            bulk = client.fetch("/bulk", b"", memoryview(bytearray(BULK_BYTES))) == BULK_BYTES
        except TransferError:
            bulk = False
        return Met(index, address, name, version, skew, bulk)


def about_meeting(meeting: Meeting, met: tuple[Met, ...], claims: tuple[str, ...]) -> Iterator[Finding]:
    """What follows from who was met."""
    check, count = "together", meeting.host.count
    for claim in claims[:NAMED]:
        yield fail(check, RefusedError, claim, "give every host an index of its own")
    refused = [one for one in met if one.refused]
    for one in refused[:NAMED]:
        hint = "give all hosts the same --secret and --encrypt, and their right places"
        yield fail(check, ResumeError, f"host {one.index} at {one.address}: {one.refused}", hint)
    good = [one for one in met if not one.refused]
    missing = sorted(set(range(count)) - {meeting.host.index} - {one.index for one in met})
    if missing:
        what = f"hosts {shorten(numbers(missing), 60)} of {count} did not come in {meeting.seconds:.0f} s"
        hint = "run it on all hosts at once; else see that they are up and no firewall is between"
        yield fail(check, HostsMissing, what, hint)
    for one in [one for one in good if not one.bulk][:NAMED]:
        hint = "a packet in between is cut: set one MTU on all hosts, tunnels and switches"
        yield fail(
            check, TransferError, f"host {one.index} at {one.address} answers, and large answers hang", hint
        )
    versions = {one.version for one in good} | {__version__}
    if len(versions) > 1:
        what = f"hosts run different versions: {', '.join(sorted(versions))}"
        yield warn(check, what, "install one version everywhere")
    elif not missing and not refused and not claims and all(one.bulk for one in good):
        secret = "the secret is theirs too" if meeting.secret else "without a secret"
        yield ok(check, f"all {count} hosts were met; {secret}, and large answers get through")


def check_meeting(seconds: float, host: HostGroup) -> None:
    """That a meeting can be held.

    Raises:
        RequestError: when nobody could find this host, or there is nobody to meet.
    """
    if host.count < 2:
        raise RequestError("a lone host meets nobody", hint="leave --together out, or give --host I/N")
    if seconds <= 0:
        raise RequestError(f"{seconds} seconds are no time to meet", hint="for example --together 30s")
