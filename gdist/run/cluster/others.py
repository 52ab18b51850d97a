"""Taking pieces from the other hosts: whom to ask, and what for.

Of a piece only the boxes that are needed cross the wire, with a digest over what was cut. Where (nearly)
all of it is needed it comes whole, and is hashed against the torrent here.

Where few hosts may use the outside and all need whole pieces, the line out of those few would carry each
piece once for every host. So each piece has a home among the hosts, by its number: the home takes it first
and passes it on, and the others wait for that a little.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.errors import Gone, PieceLost, TransferError
from gdist.exchange import Client
from gdist.run.cluster.link import Link
from gdist.run.cluster.way import Peer

WHOLE_SHARE = 0.9  # of a piece's bytes: who needs so much takes all, and checks it against the torrent
HOME_SECONDS = 2.0  # how long a piece's home is waited for
SUSPECT_SECONDS = 3.0  # how long a host that did not answer is not asked
READ_SECONDS = 5.0  # without a byte from another host


@dataclass(frozen=True, slots=True)
class Take:
    """A box of a run of a piece's bytes that is seen as `view`."""

    source: Extent
    view: tuple[int, ...]
    box: Box


class Others:
    """The other hosts, as far as they have pieces; `place` counts them, `matches` hashes a whole one."""

    def __init__(self, link: Link, place: dict[int, int], matches: Callable[[int, memoryview], bool]):
        self._link, self._place, self._matches = link, place, matches
        self._suspects: dict[int, float] = {}
        self._busy: Counter[int] = Counter()
        self._lock = threading.Lock()
        self.takes_whole = False  # this host's shards need (nearly) all of the payload

    def holder(self, piece: int, since: float) -> int | None:
        """Whom to take a piece from that was first heard of at `since`.

        None while there is nobody to ask, and while the piece's home is waited for.
        """
        now, place = time.monotonic(), self._place[piece]
        with self._link.changed:
            known = tuple(self._link.inside.holders.get(place, ()))
        holders = [host for host in known if self._suspects.get(host, 0.0) < now]
        if not holders:
            return None
        home = self._home(place)
        if home in holders:
            return home
        if home not in (None, self._link.index) and now - since < HOME_SECONDS:
            return None
        return min(holders, key=lambda host: (self._busy[host], random.random()))

    def read(self, piece: int, view: memoryview, takes: Sequence[Take]) -> bool:
        """Fills in what is needed of a piece; True when it came whole and this host is to pass it on.

        Raises:
            PieceLost: nobody gave it.
        """
        holder = self.holder(piece, 0.0)
        with self._link.changed:
            peer = self._link.inside.peers.get(holder) if holder is not None else None
        if peer is None:
            raise PieceLost(f"nobody has piece {piece} any more")
        whole = sum(take.box.size for take in takes) >= WHOLE_SHARE * len(view)
        self._count(peer, 1)
        try:
            client = self._link.way.client(peer.address)
            if whole:
                self._read_whole(client, piece, view)
            else:
                _read_parts(client, piece, view, takes)
        except Gone as error:
            self._link.deny(self._place[piece], peer.index)
            raise PieceLost(f"host {peer.index} has piece {piece} no more") from error
        except TransferError as error:
            self._suspects[peer.index] = time.monotonic() + SUSPECT_SECONDS
            raise PieceLost(f"host {peer.index} did not give piece {piece}: {error.message}") from error
        finally:
            self._count(peer, -1)
        return whole and self._home(self._place[piece]) == self._link.index

    def _count(self, peer: Peer, change: int) -> None:
        with self._lock:
            self._busy[peer.index] += change

    def _home(self, place: int) -> int | None:
        """The host that passes a piece on; None where those who bring pieces in can give each to all."""
        with self._link.changed:
            here = [peer for peer in self._link.inside.peers.values() if peer.state in ("live", "done")]
        if not self.takes_whole or 2 * sum(peer.gateway for peer in here) > len(here):
            return None
        hosts = sorted(peer.index for peer in here)
        return hosts[place % len(hosts)] if hosts else None

    def _read_whole(self, client: Client, piece: int, view: memoryview) -> None:
        _fetch(client, json.dumps({"piece": piece}).encode(), view)
        if not self._matches(piece, view):
            raise Gone(f"piece {piece} came with a wrong hash")


def _read_parts(client: Client, piece: int, view: memoryview, takes: Sequence[Take]) -> None:
    asked = [[take.source.start, take.view, take.box.start, take.box.stop] for take in takes]
    got = memoryview(bytearray(sum(take.box.size for take in takes)))
    _fetch(client, json.dumps({"piece": piece, "takes": asked}).encode(), got)
    data, position = np.frombuffer(view, np.uint8), 0
    for take in takes:
        run = data[take.source.start : take.source.stop].reshape(take.view)
        part = np.frombuffer(got, np.uint8, take.box.size, position)
        run[take.box.slices()] = part.reshape(take.box.shape)
        position += take.box.size


def _fetch(client: Client, body: bytes, into: memoryview) -> None:
    received = client.fetch("/slices", body, into, timeout=READ_SECONDS)
    if received != len(into):
        raise TransferError(f"{received} bytes came, not {len(into)}")
