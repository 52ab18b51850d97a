"""A host's side of the rendezvous: what it tells the coordinator, and what it was told.

Two threads speak for it. One asks all the time, and its question waits at the coordinator until there is
something to say; the other tells at once what changed here. Whatever could not be told is told with the next
message, and a coordinator that knows nothing of this host is told everything.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gdist.core.piece_set import PieceSet, from_json, to_json
from gdist.core.units import format_seconds
from gdist.errors import GdistError, HostsMissing, RefusedError, TransferError
from gdist.exchange import Key, format_address, parse_address
from gdist.run.cluster.way import ANSWER_SECONDS, WHO_SECONDS, Peer, Way

_log = logging.getLogger(__name__)

RETRY_SECONDS = 0.25
TELL_SECONDS = 0.02  # what changes within it is told in one message
POLL_WAIT_SECONDS = 1.0
LOCALHOST = "127.0.0.1"  # host 0's own process listens on all of its addresses
STATUS_SECONDS = 3.0  # for who asks this host: it waits five itself
SILENT_SECONDS = 10.0  # without an answer, until it is told why
PATIENCE_SECONDS = 1800.0  # for hosts without which nothing can begin: pods may wait long for their node

Json = dict[str, Any]  # Any: documents of the wire, checked where they are made


@dataclass(slots=True)
class Inside:
    """What the coordinator told; read with the link's lock held."""

    holders: dict[int, set[int]] = field(default_factory=dict)  # piece -> who has it, of what is needed here
    lease: PieceSet = 0
    spent: PieceSet = 0
    spare: PieceSet = 0
    wanted: bool = True
    done: bool = False
    catalogue: bool = False  # whether all is known of what the torrent holds
    brought: int = 0
    union: int = 0
    slowest: int | None = None
    peers: dict[int, Peer] = field(default_factory=dict)
    complete: set[int] = field(default_factory=set)  # hosts that had all they need when last heard of
    news: list[int] = field(default_factory=list)  # pieces that somebody has, not yet given out

    def here(self) -> tuple[Peer, ...]:
        """The hosts that are here, at work or done."""
        return tuple(peer for peer in self.peers.values() if peer.state in ("live", "done"))


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
        self._me, self._status, self._stop = me, status, stop
        self.index: int = me["index"]
        self.changed = threading.Condition()
        self.inside = Inside()
        self.way = Way(
            self.index, me["own"], candidates, key, encrypt=encrypt, peers=lambda: self.inside.peers
        )
        self.on_news: Callable[[], None] = lambda: None
        self.on_silence: Callable[[str], None] = lambda why: None
        self._boot, self._roster = "", -1
        self._version: int | None = None
        self._enrolment: Json | None = None
        self._enrolments = 0  # how often; an answer to what was asked before the last one says nothing
        self._catalogue: Json | None = None
        self._needs: PieceSet = 0
        self._held: PieceSet = 0
        self._got: PieceSet = 0
        self._had: PieceSet = 0  # all that it ever got or held: another coordinator knows of none of it
        self._done = self._done_told = False
        self._untold = {"held": 0, "dropped": 0, "got": 0}
        self._gone: list[tuple[int, int]] = []  # pieces, and hosts that do not have them though they should
        self._message = 0
        self._rate = 0.0
        self._failed: GdistError | None = None
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    # --- joining --------------------------------------------------------------------------------------

    def join(self) -> None:
        """Returns once the coordinator knows this host.

        Raises:
            RefusedError: another plan, another secret, or another process is this host.
            HostsMissing: the coordinator did not come for `PATIENCE_SECONDS`.
            GdistError: from `stop`, which is called again and again.
        """
        began, told = time.monotonic(), ""
        self._me["done"] = False  # also where it was announced before
        while not self._try_join():
            self._stop()
            waited = time.monotonic() - began
            why = f"host {self.way.coordinator} does not answer: {self.way.trouble}"
            if waited > PATIENCE_SECONDS:
                raise HostsMissing(
                    f"{why}, for {format_seconds(waited)}",
                    hint="start it with the same line, or check --coordinator and the way there",
                )
            if waited > SILENT_SECONDS and why != told:
                told = why
                self.on_silence(f"{why}; it is waited for up to {format_seconds(PATIENCE_SECONDS)}")
            self._closing.wait(RETRY_SECONDS)
        for name, run in (("asks", self._ask), ("tells", self._tell)):
            thread = threading.Thread(target=self._guard, args=(run,), name=f"gdist-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _try_join(self) -> bool:
        try:
            found = self.way.client(self.way.address).json(
                "POST", "/join", self._me, timeout=ANSWER_SECONDS, idempotent=True
            )
        except RefusedError:
            raise
        except TransferError as error:
            self.way.silent(error)
            return False
        self.way.heard()
        with self.changed:
            self._boot, self._version, self._roster = found["coordinator"], None, -1
            self.way.coordinator = found["index"]
            self.inside.done = bool(found["done"])
        return True

    @property
    def coordinates(self) -> bool:
        """True when this host's agent is the one that the others ask."""
        return self.way.coordinator == self.index

    # --- the catalogue --------------------------------------------------------------------------------

    def catalogue(self, *, knows: bool) -> Json | None:
        """What is known of the torrent inside: `torrent`, and `headers` once they are known (`whole`).

        None: this host is to find it out, or to tell what it `knows` from an earlier run.

        Raises:
            HostsMissing: no host that may use the outside came for `PATIENCE_SECONDS`.
            GdistError: from `stop`.
        """
        began, told = time.monotonic(), False
        why = "no host that may use the outside has found the torrent's metadata"
        while True:
            self._stop()
            self.check()
            waited = time.monotonic() - began
            if waited > PATIENCE_SECONDS:
                raise HostsMissing(why, hint="start the hosts of --gateways, or look at what they say")
            if waited > SILENT_SECONDS and not told:
                told = True
                self.on_silence(f"{why} yet; one is waited for up to {format_seconds(PATIENCE_SECONDS)}")
            found = self._request(
                "POST", "/catalogue", {"have": False, "knows": knows}, timeout=ANSWER_SECONDS
            )
            if found is not None and not found.get("wait"):
                return None if found.get("scout") else found

    def look(self) -> Json | None:
        """For a host that has the torrent: the whole catalogue, `scout` if it is to find it out, or None."""
        found = self._request("POST", "/catalogue", {"have": True, "knows": False}, timeout=ANSWER_SECONDS)
        return None if found is None or found.get("wait") else found

    def publish(self, catalogue: Json) -> None:
        """Gives the others what was found out; a coordinator that starts again gets it again."""
        while self._request("PUT", "/catalogue", catalogue, timeout=ANSWER_SECONDS) is None:
            self._stop()
            self.check()
        self.keep(catalogue)

    def keep(self, catalogue: Json) -> None:
        """Remembers what the torrent holds, for a coordinator that forgets it."""
        if catalogue["whole"]:
            self._catalogue = catalogue

    def _request(
        self, method: str, path: str, body: Json, *, timeout: float, address: str = ""
    ) -> Json | None:
        """One question to the coordinator (at `address`); None when it has to be asked again."""
        who = {"index": self.index, "boot": self._me["boot"]}
        try:
            found: Json = self.way.client(address or self.way.address).json(
                method, path, {**who, **body}, timeout=timeout, idempotent=True
            )
        except RefusedError:
            raise
        except TransferError as error:
            self.way.silent(error)
            self._closing.wait(RETRY_SECONDS)
            return None
        self.way.heard()
        if found.get("join"):
            if not self._closing.is_set():
                self._try_join()
            return None
        return found

    # --- pieces ---------------------------------------------------------------------------------------

    def enrol(self, enrolment: Json, needs: PieceSet, held: PieceSet) -> None:
        """Says what this host needs and has; `enrolment` describes the pieces."""
        with self.changed:
            self._enrolment, self._needs, self._held = enrolment, needs, held
            self._had = held
            self._enrolments += 1
            self._got, self._version = 0, None
            self._untold = dict.fromkeys(self._untold, 0)
            self._gone.clear()
            self.inside.holders.clear()
            self.inside.news.clear()
            self.inside.lease = self.inside.spent = self.inside.spare = 0
            self.changed.notify_all()

    def tell(
        self, *, held: PieceSet = 0, dropped: PieceSet = 0, got: PieceSet = 0, done: bool = False
    ) -> None:
        """Something changed here."""
        with self.changed:
            self._held = (self._held | held) & ~dropped
            self._got |= got
            self._had |= held | got
            self._done = self._done or done
            self._untold["held"] = (self._untold["held"] | held) & ~dropped
            self._untold["dropped"] |= dropped
            self._untold["got"] |= got
            self.inside.spent &= ~dropped
            self.inside.spare &= ~dropped
            if held or dropped or got or done:
                self.changed.notify_all()

    def tell_status(self) -> None:
        """Tells at once where this host stands; not again when nobody answers."""
        with contextlib.suppress(GdistError):
            self._exchange(0)

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
        while not self._closing.is_set():
            self._exchange(POLL_WAIT_SECONDS)
            self.way.turn_back()

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
        return bool(self._gone or any(self._untold.values()) or self._done != self._done_told)

    def _exchange(self, wait: float) -> None:
        with self.changed:
            gone, self._gone = self._gone, []
            untold, self._untold = self._untold, dict.fromkeys(self._untold, 0)
            body: Json = {name: to_json(value) for name, value in untold.items() if value}
            body |= {"coordinator": self._boot, "version": self._version, "roster": self._roster}
            body["catalogue"] = self.inside.catalogue
            self._message += 1
            body |= {"message": self._message, "gone": gone}
            body |= {"rate": self._rate, "done": self._done, "wait": wait, "status": self._status()}
            enrolments = self._enrolments
            body["phase"] = self._enrolment["phase"] if self._enrolment else None
            if self._enrolment and self._version is None:
                needs = to_json(self._needs & ~self._got)
                body["enrol"] = {
                    **self._enrolment,
                    "needs": needs,
                    "held": to_json(self._held),
                    "had": to_json(self._had),
                    "leased": to_json(self.inside.lease & ~self._held),
                    "done": self._done,
                }
        asked = self.way.address
        found = self._request("POST", "/poll", body, timeout=ANSWER_SECONDS + wait, address=asked)
        with self.changed:
            if found is None:
                self._gone += gone
                for name, value in untold.items():
                    self._untold[name] |= value
                self._untold["held"] &= ~self._untold["dropped"]
                return
            if body["done"] and not found.get("enrol"):
                self._done_told = True
            if enrolments == self._enrolments:
                self._take(found, asked, body["version"])
            self.inside.catalogue = found["catalogue"]
            self.changed.notify_all()
        if self._catalogue and not found["catalogue"]:
            self._request("PUT", "/catalogue", self._catalogue, timeout=ANSWER_SECONDS)
        self.on_news()

    def _take(self, found: Json, asked: str, since: int | None) -> None:
        """Learns what the answer of who was `asked` says, from version `since` on; with the lock held."""
        inside = self.inside
        if found["coordinator"] != self._boot:
            self._boot, self._version = found["coordinator"], None
        self._roster = found["roster"]
        if "members" in found:
            inside.peers = {
                i: Peer(i, self.way.reach(i, address, asked), g, state, name)
                for i, address, g, state, name in found["members"]
            }
            inside.complete.update(i for i, peer in inside.peers.items() if peer.state == "done")
            inside.complete.difference_update(i for i, peer in inside.peers.items() if peer.state == "live")
        if found.get("enrol"):
            self._version = None
        if "version" not in found or not self._enrolment or found["phase"] != self._enrolment["phase"]:
            return
        # One thread's answer may overtake the other's. An older one would take back what is known since, for
        # good: the question that is on its way already asks for no more than what came after that.
        if self._version is not None and found["version"] < self._version:
            return
        if found["fresh"]:
            inside.holders.clear()
        elif self._version is None or since is None or since > self._version:  # to be told all anew
            return
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
        inside.union, inside.slowest = int(found["union"]), found["slowest"]

    def meet(self, here: bool, port: int, patience: float) -> str | None:
        """Waits until every host has its even share; where JAX's processes meet then, at host 0.

        None when all hosts have all of their shards (`here`) already. `port` is free on this host.

        Raises:
            HostsMissing: some that are not at work did not come for `patience` seconds.
            GdistError: from `stop`.
        """
        since, gone, told = time.monotonic(), "", False
        while True:
            self._stop()
            self.check()
            found = self._request("POST", "/meet", {"here": here, "port": port}, timeout=ANSWER_SECONDS)
            if found is None:
                continue
            now = time.monotonic()
            if found.get("wait"):
                who = ", ".join(map(str, found["gone"]))
                if not who or who != gone:
                    since, gone, told = now, who, False
                elif now - since > patience:
                    raise HostsMissing(
                        f"hosts {who} are not here, and all hosts have to exchange their shares",
                        hint="start them with the same line; the same command goes on",
                    )
                elif now - since > min(SILENT_SECONDS, patience) / 2 and not told:
                    told = True
                    self.on_silence(f"waiting up to {format_seconds(patience)} for hosts {who} to come")
                continue
            if not found["move"]:
                return None
            with self.changed:
                first = self.inside.peers.get(0)
            if self.index and first is None:  # who is here comes with the next poll
                self._closing.wait(RETRY_SECONDS)
                continue
            host = parse_address(first.address)[0] if self.index and first else LOCALHOST
            return format_address(host, found["port"])

    # --- the end --------------------------------------------------------------------------------------

    def has_left(self, host: int) -> bool:
        """True of a host that was here and went of itself."""
        with self.changed:
            peer = self.inside.peers.get(host)
            return peer is not None and peer.state == "left"

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
        if gone:
            self._closing.set()  # else the thread that asks is told to join, and this host is back
        with contextlib.suppress(GdistError):
            who = {"index": self.index, "boot": self._me["boot"], "gone": gone}
            self.way.client(self.way.address).json("POST", "/leave", who, timeout=WHO_SECONDS)

    def ask_cluster(self) -> object:
        """Where the cluster stands, from the coordinator."""
        return self.way.client(self.way.address).json("GET", "/cluster", None, timeout=STATUS_SECONDS)

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
        self.way.close()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS)
