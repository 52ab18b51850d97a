"""Taking pieces from the other hosts: whom to ask, and what for.

Of a piece only the boxes that are needed cross the wire, with a digest over what was cut. Where (nearly)
all of it is needed it comes whole, and is hashed against the torrent here.

A few pieces are taken at once, and no more from one host than its share of these: else all of them would soon
be from the host with the busiest line, while the others' lines stood idle.

Where few hosts may use the outside and all need whole pieces, the line out of those few would carry each
piece once for every host. So each piece has a home among the hosts, by its number: the home takes it first
and passes it on, and the others wait for that a little. A host takes what it is to pass on before all else:
it would hold up the others whenever it falls behind.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.piece_set import PieceSet, members, set_of
from gdist.core.taking import AT_ONCE, WHOLE_SHARE, Patience
from gdist.errors import Gone, PieceLost, TransferError
from gdist.exchange import Client
from gdist.run.cluster.link import Link
from gdist.run.cluster.way import Peer

LEAST_OF_ONE = 2  # of what is taken at once, from one host: while one comes, the next is asked for
LOOKAHEAD = 256  # pieces known to be inside among which those are looked for whose host has a line free
SUSPECT_SECONDS = 3.0  # how long a host that did not answer is not asked
READ_SECONDS = 5.0  # without a byte from another host


@dataclass(frozen=True, slots=True)
class Take:
    """A box of a run of a piece's bytes that is seen as `view`."""

    source: Extent
    view: tuple[int, ...]
    box: Box


class Others:
    """The other hosts, as far as they have pieces that this one waits for; thread-safe.

    `order` is the pieces' loading order and `place` where in it each one is, `matches` hashes a whole one.
    Where `paced`, no more are given out than are to be on their way at once, and what is given out has to be
    read or let go.
    """

    def __init__(
        self,
        link: Link,
        order: Sequence[int],
        place: Mapping[int, int],
        matches: Callable[[int, memoryview], bool],
        *,
        paced: bool,
    ):
        self._link, self._order, self._place, self._matches, self._paced = link, order, place, matches, paced
        self._waiting: PieceSet = 0  # by place
        self._since: dict[int, float] = {}  # when each of them was first looked at
        self._patience = Patience()
        self._suspects: dict[int, float] = {}
        self._asked: dict[int, int] = {}  # piece -> the host that is to give it
        self._busy: Counter[int] = Counter()
        self._mine: tuple[tuple[int, int], PieceSet] = ((0, 1), 0)  # which of how many homes, and its pieces
        self._lock = threading.Lock()
        self._halted = threading.Event()
        self.takes_whole = False  # this host's shards need (nearly) all of the payload

    def wait_for(self, piece: int) -> None:
        """A piece is wanted that another host has, or had."""
        with self._lock:
            self._waiting |= 1 << self._place[piece]

    def forget(self, piece: int) -> None:
        """A piece is not waited for any more."""
        with self._lock:
            self._waiting &= ~(1 << self._place[piece])
            self._since.pop(piece, None)

    def ready(self) -> tuple[int, ...]:
        """Pieces that can be read now, and are not waited for since: first those this host is to pass on.

        Both in loading order.
        """
        if not self._waiting:
            return ()
        with self._link.changed, self._lock:
            free, homes, found, now = self._free(), self._homes(), [], time.monotonic()
            patience = self._patience.seconds
            holders = self._link.inside.holders
            mine = self._waiting & self._to_pass_on(homes)
            ahead = LOOKAHEAD if self._paced else None
            looks = (itertools.islice(members(some), ahead) for some in (mine, self._waiting & ~mine))
            for place in itertools.chain.from_iterable(looks):
                if not free:
                    break
                piece, having = self._order[place], holders.get(place)
                if not having:
                    continue
                waited = now - self._since.setdefault(piece, now)
                host = self._choose(piece, having, free, homes, patient=waited < patience)
                if host is None:
                    continue
                found.append(place)
                self._since.pop(piece)
                self._patience.add(waited)
                if self._paced:
                    self._ask(piece, host)
                    free = self._free()
            self._waiting &= ~set_of(found)
            return tuple(self._order[place] for place in found)

    def read(self, piece: int, view: memoryview, takes: Sequence[Take]) -> bool:
        """Fills in what is needed of a piece; True when it came whole and this host is to pass it on.

        Raises:
            PieceLost: nobody gave it.
        """
        if self._halted.is_set():
            raise PieceLost(f"piece {piece} is not asked for any more")
        peer, homes = self._giver(piece)
        if peer is None:
            self.let_go(piece)
            raise PieceLost(f"nobody has piece {piece} any more")
        whole = sum(take.box.size for take in takes) >= WHOLE_SHARE * len(view)
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
            self.let_go(piece)
        return whole and self._home(piece, homes) == self._link.index

    def halt(self) -> None:
        """Nothing is to be read any more; what is under way ends with `PieceLost`, however slow its line."""
        self._halted.set()
        self._link.way.interrupt()

    def let_go(self, piece: int) -> None:
        """A piece was read, or is not to be: the line to its host is free for another."""
        with self._lock:
            host = self._asked.pop(piece, None)
            if host is not None:
                self._busy[host] -= 1

    def _giver(self, piece: int) -> tuple[Peer | None, Sequence[int]]:
        """Whom to ask for a piece that was given out, and the homes of pieces; None for nobody."""
        with self._link.changed, self._lock:
            homes = self._homes()
            host = self._asked.get(piece)
            if host is None:
                holders = self._link.inside.holders.get(self._place[piece], set())
                host = self._choose(piece, holders, holders - self._suspected(), homes)
                if host is not None:
                    self._ask(piece, host)
            return (self._link.inside.peers.get(host) if host is not None else None), homes

    # --- with both locks held -------------------------------------------------------------------------

    def _ask(self, piece: int, host: int) -> None:
        self._asked[piece] = host
        self._busy[host] += 1

    def _suspected(self) -> set[int]:
        now = time.monotonic()
        return {host for host, until in self._suspects.items() if until > now}

    def _free(self) -> set[int]:
        """Hosts that can be asked for one more piece."""
        others = self._link.inside.peers.keys() - {self._link.index} - self._suspected()
        if not self._paced:
            return others
        if len(self._asked) >= AT_ONCE:
            return set()
        most = max(LEAST_OF_ONE, AT_ONCE // max(len(others), 1))
        return {host for host in others if self._busy[host] < most}

    def _choose(
        self,
        piece: int,
        holders: Collection[int],
        free: set[int],
        homes: Sequence[int],
        *,
        patient: bool = False,
    ) -> int | None:
        """Which of those who have a piece, and are free, is to give it; None while its home is waited for.

        Where `patient`, that is also until the home has it.
        """
        home = self._home(piece, homes)
        if home is not None and home in holders and self._suspects.get(home, 0.0) < time.monotonic():
            return home if home in free else None
        if patient and home not in (None, self._link.index):
            return None
        able = free.intersection(holders)
        return min(able, key=lambda host: (self._busy[host], random.random()), default=None)

    def _homes(self) -> Sequence[int]:
        """The hosts that pass pieces on; none where those who bring pieces in can give each to all.

        Not those who bring in: their lines out are what there is too little of.
        """
        here = self._link.inside.here()
        if not self.takes_whole or 2 * sum(peer.gateway for peer in here) > len(here):
            return ()
        return sorted(peer.index for peer in here if not peer.gateway)

    def _to_pass_on(self, homes: Sequence[int]) -> PieceSet:
        """Places in loading order of the pieces that this host is the home of."""
        if self._link.index not in homes:
            return 0
        key = homes.index(self._link.index), len(homes)
        if self._mine[0] != key:
            self._mine = key, set_of(range(key[0], len(self._order), key[1]))
        return self._mine[1]

    def _home(self, piece: int, homes: Sequence[int]) -> int | None:
        return homes[self._place[piece] % len(homes)] if homes else None

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
