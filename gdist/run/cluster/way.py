"""The way to the coordinator, and to any other agent: who it is, where it is asked, and who takes its place.

When the coordinator does not answer for `TAKEOVER_SECONDS`, another takes its place: whom a host that can be
reached follows already, else the lowest that answers. One that still follows the old coordinator, and hears
from it, shows that it is this host's way that is cut: it keeps trying. A host that knows nobody but where
host 0 should be waits for it: alone it would bring in what others bring in too. Whoever follows a stand-in
looks for the first coordinator every few seconds and goes back to it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gdist.errors import GdistError, TransferError
from gdist.exchange import Client, Key
from gdist.exchange.channel import Meter

_log = logging.getLogger(__name__)

TAKEOVER_SECONDS = 6.0
RETURN_SECONDS = 5.0
ANSWER_SECONDS = 5.0  # without a byte: the other is gone or frozen
WHO_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Another host of the job, as the coordinator told."""

    index: int
    address: str
    gateway: bool
    state: str
    name: str


class Way:
    """Host `index`, whose own agent is at `own`; `candidates` is where a coordinator may be, host 0 first."""

    def __init__(
        self,
        index: int,
        own: str,
        candidates: tuple[str, ...],
        key: Key,
        *,
        encrypt: bool,
        peers: Callable[[], Mapping[int, Peer]],
    ):
        self.index, self._own, self.candidates = index, own, candidates
        self._key, self._encrypt, self._peers = key, encrypt, peers
        self.meter = Meter()
        self.coordinator = 0  # its index
        self._last: dict[int, str] = {}  # where agents were, also those that the newest members lack
        self._clients: dict[str, Client] = {}
        self._clients_lock = threading.Lock()
        self._silent_since: float | None = None
        self.trouble = ""  # why the coordinator was last not heard
        self._met = False  # a coordinator answered once: the others are known
        self._looked = time.monotonic()

    @property
    def address(self) -> str:
        """Where the coordinator is asked."""
        if self.coordinator == self.index:
            return self._own
        peer = self._peers().get(self.coordinator)
        if peer and peer.address:
            self._last[self.coordinator] = peer.address
        known = self._last.get(self.coordinator)  # a stand-in's first members may lack itself
        return known or self.candidates[min(self.coordinator, len(self.candidates) - 1)]

    def reach(self, index: int, address: str, asked: str) -> str:
        """An address that works from here: the coordinator, which was `asked` there, has none for itself.

        Whom this host follows may have changed while it waited for the answer.
        """
        return self._own if index == self.index else address or asked

    @property
    def answers(self) -> bool:
        """True while the coordinator does, and did."""
        return self._met and self._silent_since is None

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

    def heard(self) -> None:
        """The coordinator answered."""
        self._silent_since, self._met = None, True

    def silent(self, error: TransferError) -> None:
        """The coordinator does not answer: after a while another one is looked for."""
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        self.trouble = error.message
        _log.debug("the coordinator (host %s) does not answer: %s", self.coordinator, error)
        if now - self._silent_since <= TAKEOVER_SECONDS:
            return
        found = self._stand_in() if self._met or len(self.candidates) > 1 else None
        if found is not None and self._silent_since is not None:  # else it answered while others were asked
            _log.info("host %s coordinates in place of host %s", found, self.coordinator)
            self.coordinator, self._silent_since = found, None

    def _stand_in(self) -> int | None:
        """Who coordinates now; None while it is to be the one that does not answer."""
        lowest = None
        for index, address in self._others():
            if index == self.coordinator:
                continue
            said = {"follows": index, "alive": False} if index == self.index else self._ask(address)
            if said is None:
                continue
            if said["alive"]:
                return int(said["follows"]) if said["follows"] != self.coordinator else None
            lowest = index if lowest is None else lowest
        return lowest

    def turn_back(self) -> None:
        """Goes back to the first coordinator, once it answers for itself; looks now and then."""
        now = time.monotonic()
        if self.coordinator == 0 or now - self._looked < RETURN_SECONDS:
            return
        self._looked = now
        said = {"follows": 0} if self.index == 0 else self._ask(self.candidates[0])
        if said is not None and said["follows"] == 0:
            _log.info("host 0 coordinates again")
            self.coordinator = 0

    def _others(self) -> Iterator[tuple[int, str]]:
        """Whom to ask in the coordinator's place, lowest first; this host is one of them."""
        known = {peer.index: peer.address for peer in self._peers().values() if peer.state != "left"}
        if len(self.candidates) > 1:
            known = dict(enumerate(self.candidates)) | {i: a for i, a in known.items() if a}
        known[self.index] = self._own
        yield from ((index, known[index]) for index in sorted(known) if known[index])

    def _ask(self, address: str) -> dict[str, Any] | None:  # Any: a document of the wire
        """Whom an agent follows, and whether it hears from it; None when nobody is there."""
        try:
            found: dict[str, Any] = self.client(address).json("GET", "/who", None, timeout=WHO_SECONDS)
        except GdistError:
            return None
        return found

    def interrupt(self) -> None:
        """Hangs up on requests that are under way."""
        with self._clients_lock:
            clients = tuple(self._clients.values())
        for client in clients:
            client.interrupt()

    def close(self) -> None:
        """Hangs up."""
        with self._clients_lock:
            for client in self._clients.values():
                client.close()
