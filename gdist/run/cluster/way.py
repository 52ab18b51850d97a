"""The way to the coordinator, and to any other agent: who it is, where it is asked, and who takes its place.

When the coordinator does not answer for `TAKEOVER_SECONDS` the lowest host that does takes its place, unless
that one still follows the old: then it is this host's way that is cut, and it keeps trying. Whoever follows a
stand-in looks for the first coordinator every few seconds and goes back to it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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
        self._clients: dict[str, Client] = {}
        self._clients_lock = threading.Lock()
        self._silent_since: float | None = None
        self._looked = time.monotonic()

    @property
    def address(self) -> str:
        """Where the coordinator is asked."""
        if self.coordinator == self.index:
            return self._own
        peer = self._peers().get(self.coordinator)
        if peer and peer.address:
            return peer.address
        return self.candidates[min(self.coordinator, len(self.candidates) - 1)]

    def reach(self, index: int, address: str) -> str:
        """An address that works from here: the coordinator has none for itself."""
        return self._own if index == self.index else address or self.address

    @property
    def answers(self) -> bool:
        """True while the coordinator does."""
        return self._silent_since is None

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
        self._silent_since = None

    def silent(self, error: TransferError) -> None:
        """The coordinator does not answer: after a while another one is looked for."""
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        _log.debug("the coordinator (host %s) does not answer: %s", self.coordinator, error)
        if now - self._silent_since <= TAKEOVER_SECONDS:
            return
        for index, address in self._others():
            if index != self.coordinator and (index == self.index or self._would_lead(address)):
                _log.info("host %s coordinates in place of host %s", index, self.coordinator)
                self.coordinator, self._silent_since = index, None
                return

    def turn_back(self) -> None:
        """Goes back to the first coordinator, once it answers for itself; looks now and then."""
        now = time.monotonic()
        if self.coordinator == 0 or now - self._looked < RETURN_SECONDS:
            return
        self._looked = now
        if self.index == 0 or self._would_lead(self.candidates[0]):
            _log.info("host 0 coordinates again")
            self.coordinator = 0

    def _others(self) -> Iterator[tuple[int, str]]:
        """Whom to ask in the coordinator's place, lowest first; this host is one of them."""
        known = {peer.index: peer.address for peer in self._peers().values() if peer.state != "left"}
        if len(self.candidates) > 1:
            known = dict(enumerate(self.candidates)) | {i: a for i, a in known.items() if a}
        known[self.index] = self._own
        yield from ((index, known[index]) for index in sorted(known) if known[index])

    def _would_lead(self, address: str) -> bool:
        try:
            found = self.client(address).json("GET", "/who", None, timeout=WHO_SECONDS)
        except GdistError:
            return False
        return bool(found["follows"] == found["index"] or not found["alive"])

    def close(self) -> None:
        """Hangs up."""
        with self._clients_lock:
            for client in self._clients.values():
                client.close()
