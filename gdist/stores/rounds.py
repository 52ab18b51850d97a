"""Rounds of parcels, run in step with all other hosts.

    pack ─▶ is all well everywhere? ─▶ collective ─▶ check ─▶ place
            else the same error on all

While one round is under way the next is packed and the last is placed. A host that fails goes on until the
next question whether all is well, and there all hosts learn of it and stop; so nobody waits for a host that
has given up. Memory is that of two rounds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from blake3 import blake3

from gdist.core.box import Box
from gdist.core.parcels import HEADER_BYTES, Item, Round, padded
from gdist.errors import CorruptError, Unreachable
from gdist.stores.agreement import Words, agree
from gdist.stores.buffers import Array, Bytes, aligned_empty

MOST_WORKERS = 4  # that pack and place: memory is no faster with more
DIGEST_BYTES = 32
ROUND_COPIES = 6  # of all parcels of a round: two sent, two received, and what a collective takes for itself
LEAST_PARCEL_BYTES = 2**12
HOSTS = Words("host", "hosts", "move", "run the same line on every host")

View = Callable[[int, Box], Array]
"""A box of the tensor with this number, within one shard that is here, checked."""

Place = Callable[[int, Item, Bytes], None]
"""Takes a box of a tensor, as its bytes in C order, which are not kept; called from threads."""


class Carrier(Protocol):
    """What takes parcels from host to host; `index` is this one of `count`.

    All hosts have to call the same in the same order. Raises `Unreachable` when another is gone.
    """

    index: int
    count: int

    def gathered(self, row: bytes, length: int = 0) -> list[bytes]:
        """Everybody's bytes, padded to a length that is the same for all."""
        ...

    def start(self, one: Round, rows: Bytes) -> Callable[[], Bytes]:
        """Begins a round; what is called to get the rows received. `rows` stay as they are until then."""
        ...


def parcel_limit(memory: int, hosts: int) -> int:
    """Bytes of a parcel, so that rounds take about `memory` bytes on each host."""
    return max(memory // (ROUND_COPIES * hosts) - HEADER_BYTES, LEAST_PARCEL_BYTES)


class Rounds:
    """Runs rounds; see `run`."""

    def __init__(
        self,
        carrier: Carrier,
        itemsizes: Sequence[int],
        view: View,
        place: Place,
        *,
        words: Words = HOSTS,
        landed: Callable[[Round], None] = lambda one: None,
        note: Callable[[], bytes] = lambda: b"",
        note_nbytes: int = 0,
        heard: Callable[[list[bytes]], None] = lambda notes: None,
    ):
        self._carrier, self._itemsizes, self._view, self._place = carrier, itemsizes, view, place
        self._words, self._landed, self._note, self._heard = words, landed, note, heard
        self._note_nbytes = note_nbytes
        self._members = range(carrier.count)
        self.fault: Exception | None = None  # what failed here, until it was told to all
        self._buffers: list[Bytes] = []
        self.received = 0  # bytes of parcels, without padding

    def run(self, rounds: Iterable[Round], *, settle: bool = True) -> None:
        """Returns when all have landed, with `settle` everywhere; else a fault of the last ones stays untold.

        `landed` is called when what came with a round is placed. `note` is what is told to all between
        rounds, in `note_nbytes` bytes, `heard` what all told.

        Raises:
            GdistError: the same on all hosts, when one has failed.
            Unreachable: when one is gone.
        """
        flight: tuple[Round, Callable[[], Bytes]] | None = None
        self._pool = ThreadPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1), "gdist-rounds")
        try:
            for number, one in enumerate(rounds):
                rows = self.attempt(self._pack, number, one)
                self.agree()
                begun = one, self._carrier.start(one, rows)
                if flight:
                    self.attempt(self._land, *flight)
                flight = begun
            if flight:
                self.attempt(self._land, *flight)
            if settle:
                self.agree()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def agree(self) -> None:
        """Returns when all is well on all hosts, which all have to call this."""
        note: bytes = self.attempt(self._note) or bytes(self._note_nbytes)
        assert len(note) == self._note_nbytes, "rows are of one length on all hosts"
        notes = agree(self._carrier.gathered, self._members, self.fault, {}, self._words, note)
        self.attempt(self._heard, notes)

    def attempt(self, call: Callable[..., Any], *arguments: object) -> Any:
        """What a call gives; None where something has failed: `agree` tells it to all, and raises it."""
        if self.fault:
            return None
        try:
            return call(*arguments)
        except Unreachable:  # nobody can be told
            raise
        except Exception as error:
            self.fault = error
            return None

    def _pack(self, number: int, one: Round) -> Bytes:
        rows = self._buffer(number % 2, one)
        sends = list(one.sends(self._carrier.index))
        for _ in self._pool.map(lambda sent: self._fill(one, rows[sent[0]], sent[1]), sends):
            pass
        return rows

    def _buffer(self, which: int, one: Round) -> Bytes:
        nbytes = one.rows_sent * one.slot
        while len(self._buffers) <= which:
            self._buffers.append(aligned_empty((0,), np.dtype(np.uint8)))
        if self._buffers[which].nbytes < nbytes:
            self._buffers[which] = aligned_empty((nbytes,), np.dtype(np.uint8))
            self._buffers[which][:] = 0  # padding is sent, too
        return self._buffers[which][:nbytes].reshape(one.rows_sent, one.slot)

    def _fill(self, one: Round, row: Bytes, receiver: int) -> None:
        offset = HEADER_BYTES
        for number, item in one.parcel(self._carrier.index, receiver):
            itemsize = self._itemsizes[number]
            view = self._view(number, item.box)
            out = row[offset : offset + item.box.size * itemsize].view(view.dtype).reshape(view.shape)
            np.copyto(out, view)
            offset += padded(item.box, itemsize)
        row[:DIGEST_BYTES] = _digest(row[HEADER_BYTES:offset])

    def _land(self, one: Round, begun: Callable[[], Bytes]) -> None:
        rows = begun()
        receives = list(one.receives(self._carrier.index))
        for nbytes in self._pool.map(lambda got: self._take(one, rows[got[0]], got[1]), receives):
            self.received += nbytes
        self._landed(one)

    def _take(self, one: Round, row: Bytes, sender: int) -> int:
        items = list(one.parcel(sender, self._carrier.index))
        offset = HEADER_BYTES + sum(padded(item.box, self._itemsizes[number]) for number, item in items)
        if (row[:DIGEST_BYTES] != _digest(row[HEADER_BYTES:offset])).any():
            raise CorruptError(
                f"{offset - HEADER_BYTES} bytes from {self._words.who} {sender} are not what it sent",
                hint="run again; if it happens again, look at the network and memory of both",
                host=sender,
            )
        offset, nbytes = HEADER_BYTES, 0
        for number, item in items:
            length = item.box.size * self._itemsizes[number]
            self._place(number, item, row[offset : offset + length])
            offset += padded(item.box, self._itemsizes[number])
            nbytes += length
        return nbytes


def _digest(data: Bytes) -> Bytes:
    return np.frombuffer(blake3(data.data).digest(), np.uint8)
