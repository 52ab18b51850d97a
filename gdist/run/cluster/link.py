"""A host's side of the rendezvous: what it tells the coordinator, and what it was told.

Two threads speak for it. One asks all the time, and its question waits at the coordinator until there is
something to say; the other tells at once what changed here. Whatever could not be told is told with the next
message, and a coordinator that knows nothing of this host is told everything.

When the coordinator does not answer for `TAKEOVER_SECONDS` the lowest host that does takes its place, unless
that one still follows the old: then it is this host's way that is cut, and it keeps trying. Whoever follows a
stand-in looks for the first coordinator every few seconds and goes back to it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gdist.core.piece_set import PieceSet, from_json, to_json
from gdist.errors import GdistError, RefusedError, TransferError
from gdist.exchange import Client, Key
from gdist.exchange.channel import Meter

_log = logging.getLogger(__name__)

TAKEOVER_SECONDS = 6.0
RETURN_SECONDS = 5.0
RETRY_SECONDS = 0.25
ANSWER_SECONDS = 5.0  # without a byte: the other is gone or frozen
WHO_SECONDS = 1.0
TELL_SECONDS = 0.02  # what changes within it is told in one message
POLL_WAIT_SECONDS = 1.0

Json = dict[str, Any]  # Any: documents of the wire, checked where they are made


@dataclass(frozen=True, slots=True)
class Peer:
    """Another host of the job, as the coordinator told."""

    index: int
    address: str
    gateway: bool
    state: str
    name: str


@dataclass(slots=True)
class Inside:
    """What the coordinator told; read with the link's lock held."""

    holders: dict[int, set[int]] = field(default_factory=dict)  # piece -> who has it, of what is needed here
    lease: PieceSet = 0
    spent: PieceSet = 0
    spare: PieceSet = 0
    wanted: bool = True
    done: bool = False
    brought: int = 0
    union: int = 0
    peers: dict[int, Peer] = field(default_factory=dict)
    news: list[int] = field(default_factory=list)  # pieces that somebody has, not yet given out


class Link:
    """How this host and the coordinator know of each other."""

    def __init__(
        self,
        me: Json,
        candidates: tuple[str, ...],
        key: Key,
        *,
        encrypt: bool,
        status: Callable[[], Json],
        stop: Callable[[], None],
    ):
        self._me, self.candidates, self._key, self._encrypt = me, candidates, key, encrypt
        self._status, self._stop = status, stop
        self.index: int = me["index"]
        self.changed = threading.Condition()
        self.inside = Inside()
        self.on_news: Callable[[], None] = lambda: None
        self.meter = Meter()
        self._clients: dict[str, Client] = {}
        self._clients_lock = threading.Lock()
        self._coordinator = 0  # index
        self._boot, self._version, self._roster = "", None, -1
        self._enrolment: Json | None = None
        self._needs: PieceSet = 0
        self._held: PieceSet = 0
        self._got: PieceSet = 0
        self._done = False
        self._untold = {"held": 0, "dropped": 0, "got": 0}
        self._gone: list[tuple[int, int]] = []  # pieces, and hosts that do not have them though they should
        self._message = 0
        self._rate = 0.0
        self._failed: GdistError | None = None
        self._silent_since: float | None = None
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    # --- joining --------------------------------------------------------------------------------------

    def join(self) -> None:
        """Returns once the coordinator knows this host.

        Raises:
            RefusedError: another plan, another secret, or another process is this host.
            GdistError: from `stop`, which is called again and again.
        """
        while not self._try_join():
            self._stop()
            self._closing.wait(RETRY_SECONDS)
        for name, run in (("asks", self._ask), ("tells", self._tell)):
            thread = threading.Thread(target=self._guard, args=(run,), name=f"gdist-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _try_join(self) -> bool:
        try:
            found = self.client(self._address()).json(
                "POST", "/join", self._me, timeout=ANSWER_SECONDS, idempotent=True
            )
        except RefusedError:
            raise
        except TransferError as error:
            self._silence(error)
            return False
        self._silent_since = None
        with self.changed:
            self._boot, self._coordinator, self._version, self._roster = (
                found["coordinator"],
                found["index"],
                None,
                -1,
            )
        return True

    def _address(self) -> str:
        """Where the coordinator is asked."""
        if self._coordinator == self.index:
            return str(self._me["own"])
        peer = self.inside.peers.get(self._coordinator)
        if peer and peer.address:
            return peer.address
        return self.candidates[min(self._coordinator, len(self.candidates) - 1)]

    def client(self, address: str) -> Client:
        """The connections to an agent."""
        with self._clients_lock:
            if address not in self._clients:
                self._clients[address] = Client(
                    address,
                    self._key,
                    member=self.index,
                    encrypt=self._encrypt,
                    timeout=ANSWER_SECONDS,
                    meter=self.meter,
                )
            return self._clients[address]

    def _silence(self, error: TransferError) -> None:
        """The coordinator does not answer: after a while another one is looked for."""
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        _log.debug("the coordinator (host %s) does not answer: %s", self._coordinator, error)
        if now - self._silent_since > TAKEOVER_SECONDS:
            for index, address in self._others():
                if index == self._coordinator:
                    continue
                if index == self.index or self._would_lead(address):
                    _log.info("host %s coordinates in place of host %s", index, self._coordinator)
                    self._coordinator, self._silent_since = index, None
                    return

    def _others(self) -> Iterator[tuple[int, str]]:
        """Whom to ask in the coordinator's place, lowest first; this host is one of them."""
        known = {peer.index: peer.address for peer in self.inside.peers.values() if peer.state != "left"}
        if len(self.candidates) > 1:
            known = dict(enumerate(self.candidates)) | {i: a for i, a in known.items() if a}
        known[self.index] = str(self._me["own"])
        for index in sorted(known):
            if known[index]:
                yield index, known[index]

    def _would_lead(self, address: str) -> bool:
        try:
            found = self.client(address).json("GET", "/who", None, timeout=WHO_SECONDS)
        except GdistError:
            return False
        return bool(found["follows"] == found["index"] or not found["alive"])

    @property
    def follows(self) -> tuple[int, bool]:
        """The coordinator's index, and whether it answers."""
        return self._coordinator, self._silent_since is None

    @property
    def coordinates(self) -> bool:
        """True when this host's agent is the one that the others ask."""
        return self._coordinator == self.index

    # --- the catalogue --------------------------------------------------------------------------------

    def catalogue(self) -> Json | None:
        """What the torrent holds, from inside: `torrent` and `headers`; None: this host is to find it out.

        Raises:
            GdistError: from `stop`.
        """
        while True:
            self._stop()
            self.check()
            found = self._request("POST", "/catalogue", {}, timeout=ANSWER_SECONDS + 10)
            if found is None or found.get("wait"):
                continue
            return None if found.get("scout") else found

    def publish(self, catalogue: Json) -> None:
        """Gives the others what was found out."""
        while self._request("PUT", "/catalogue", catalogue, timeout=ANSWER_SECONDS) is None:
            self._stop()
            self.check()

    def _request(self, method: str, path: str, body: Json, *, timeout: float) -> Json | None:
        """One question to the coordinator; None when it has to be asked again."""
        who = {"index": self.index, "boot": self._me["boot"]}
        try:
            found: Json = self.client(self._address()).json(
                method, path, {**who, **body}, timeout=timeout, idempotent=True
            )
        except RefusedError:
            raise
        except TransferError as error:
            self._silence(error)
            self._closing.wait(RETRY_SECONDS)
            return None
        self._silent_since = None
        if found.get("join"):
            self._try_join()
            return None
        return found

    # --- pieces ---------------------------------------------------------------------------------------

    def enrol(self, enrolment: Json, needs: PieceSet, held: PieceSet) -> None:
        """Says what this host needs and has; `enrolment` describes the pieces."""
        with self.changed:
            self._enrolment, self._needs, self._held = enrolment, needs, held
            self._got, self._version = 0, None
            self._untold = dict.fromkeys(self._untold, 0)
            self.changed.notify_all()

    def tell(
        self, *, held: PieceSet = 0, dropped: PieceSet = 0, got: PieceSet = 0, done: bool = False
    ) -> None:
        """Something changed here."""
        with self.changed:
            self._held = (self._held | held) & ~dropped
            self._got |= got
            self._done = self._done or done
            self._untold["held"] = (self._untold["held"] | held) & ~dropped
            self._untold["dropped"] |= dropped
            self._untold["got"] |= got
            self.inside.spent &= ~dropped
            self.inside.spare &= ~dropped
            if held or dropped or got or done:
                self.changed.notify_all()

    def deny(self, place: int, host: int) -> None:
        """A host does not have a piece that it was said to hold."""
        with self.changed:
            self.inside.holders.get(place, set()).discard(host)
            self._gone.append((place, host))
            self.changed.notify_all()

    def set_rate(self, rate: float) -> None:
        """Bytes a second that come in from outside."""
        self._rate = rate

    def check(self) -> None:
        """Returns while this host may go on.

        Raises:
            RefusedError: the coordinator will not have it.
        """
        if self._failed:
            raise self._failed

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except GdistError as error:
            self._failed = self._failed or error
        except Exception as error:
            self._failed = TransferError(
                f"the link to the coordinator failed: {type(error).__name__}: {error}"
            )
        with self.changed:
            self.changed.notify_all()
        self.on_news()

    def _ask(self) -> None:
        looked = time.monotonic()
        while not self._closing.is_set():
            self._exchange(POLL_WAIT_SECONDS)
            if self._coordinator != 0 and time.monotonic() - looked > RETURN_SECONDS:
                looked = time.monotonic()
                self._return()

    def _return(self) -> None:
        """Back to the first coordinator, once it answers for itself."""
        address = self.candidates[0]
        if self.index == 0:
            self._coordinator = 0
        elif self._would_lead(address):
            _log.info("host 0 is back and coordinates again")
            self._coordinator = 0

    def _tell(self) -> None:
        while not self._closing.is_set():
            with self.changed:
                self.changed.wait_for(lambda: self._has_news() or self._closing.is_set(), 1.0)
                nothing = not self._has_news()
            if nothing:
                continue
            time.sleep(TELL_SECONDS)
            self._exchange(0)

    def _has_news(self) -> bool:
        return bool(self._gone or any(self._untold.values()))

    def _exchange(self, wait: float) -> None:
        with self.changed:
            gone, self._gone = self._gone, []
            untold, self._untold = self._untold, dict.fromkeys(self._untold, 0)
            body: Json = {name: to_json(value) for name, value in untold.items() if value}
            body |= {"coordinator": self._boot, "version": self._version, "roster": self._roster}
            self._message += 1
            body |= {"message": self._message, "gone": gone}
            body |= {"rate": self._rate, "done": self._done, "wait": wait, "status": self._status()}
            if self._enrolment and self._version is None:
                needs = to_json(self._needs & ~self._got)
                body["enrol"] = {
                    **self._enrolment,
                    "needs": needs,
                    "held": to_json(self._held),
                    "done": self._done,
                }
        found = self._request("POST", "/poll", body, timeout=ANSWER_SECONDS + wait)
        with self.changed:
            if found is None:
                self._gone += gone
                for name, value in untold.items():
                    self._untold[name] |= value
                self._untold["held"] &= ~self._untold["dropped"]
                return
            self._take(found)
            self.changed.notify_all()
        self.on_news()

    def _take(self, found: Json) -> None:
        """Learns what an answer says; with the lock held."""
        inside = self.inside
        if found["coordinator"] != self._boot:
            self._boot, self._version = found["coordinator"], None
        self._roster = found["roster"]
        if "members" in found:
            inside.peers = {
                i: Peer(i, self._reach(i, address), g, state, name)
                for i, address, g, state, name in found["members"]
            }
        if found.get("enrol"):
            self._version = None
        if "version" not in found:
            return
        if found["fresh"]:
            inside.holders.clear()
        for piece, host, held in found["changes"]:
            if held:
                inside.holders.setdefault(piece, set()).add(host)
                inside.news.append(piece)
            else:
                inside.holders.get(piece, set()).discard(host)
        self._version = found["version"]
        inside.lease, inside.wanted = from_json(found["lease"]), bool(found["wanted"])
        inside.spent, inside.spare = (
            from_json(found["spent"]) & self._held,
            from_json(found["spare"]) & self._held,
        )
        inside.done, inside.brought = bool(found["done"]), int(found["brought"])
        inside.union = int(found["union"])

    def _reach(self, index: int, address: str) -> str:
        """An address that works from here: the coordinator has none for itself, or one of its own machine."""
        if index == self.index:
            return str(self._me["own"])
        return address or self._address()

    # --- the end --------------------------------------------------------------------------------------

    def announce(self, seconds: float) -> bool:
        """Tells that this host has all it needs since an earlier run; False when nobody answers in time."""
        end = time.monotonic() + seconds
        self._me["done"] = True
        while time.monotonic() < end:
            with contextlib.suppress(RefusedError):
                if self._try_join():
                    return True
            self._stop()
            self._closing.wait(RETRY_SECONDS)
        return False

    def leave(self, *, gone: bool) -> None:
        """Tells that this host will go, or that it goes; nobody is waited for."""
        with contextlib.suppress(GdistError):
            who = {"index": self.index, "boot": self._me["boot"], "gone": gone}
            self.client(self._address()).json("POST", "/leave", who, timeout=WHO_SECONDS)

    def ask_cluster(self) -> object:
        """Where the cluster stands, from the coordinator."""
        return self.client(self._address()).json("GET", "/cluster", None, timeout=ANSWER_SECONDS)

    def flush(self, seconds: float) -> None:
        """Waits until everything here was told, at most so long."""
        end = time.monotonic() + seconds
        with self.changed:
            while self._has_news() and time.monotonic() < end:
                self.changed.wait(TELL_SECONDS)

    def close(self) -> None:
        """Ends the threads and connections."""
        self._closing.set()
        with self.changed:
            self.changed.notify_all()
        with self._clients_lock:
            for client in self._clients.values():
                client.close()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS)
