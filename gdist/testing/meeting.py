"""Hosts that are threads of one process, and a carrier between them: an exchange without JAX."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from gdist.core.parcels import Kind, Round
from gdist.errors import Unreachable
from gdist.stores.buffers import Bytes

MEET_SECONDS = 30.0  # then somebody does not come any more

_Result = TypeVar("_Result")


class Meeting:
    """Where some hosts meet; `run` runs a function for each, with its carrier."""

    def __init__(self, count: int):
        self.count = count
        self._barrier = threading.Barrier(count)
        self._brought: list[object] = [None] * count
        self.wire = [0] * count  # bytes that came to each host in rounds

    def run(self, function: Callable[[MeetingCarrier], _Result]) -> list[_Result | BaseException]:
        """What the function gives for each host, or raises there."""

        def one(index: int) -> _Result | BaseException:
            try:
                return function(MeetingCarrier(self, index))
            except BaseException as error:
                return error

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(one, range(self.count)))

    def share(self, index: int, value: object) -> Sequence[object]:
        """What every host brought, once all have."""
        try:
            self._brought[index] = value
            self._barrier.wait(MEET_SECONDS)
            found = list(self._brought)
            self._barrier.wait(MEET_SECONDS)
        except threading.BrokenBarrierError as error:
            raise Unreachable("another host is gone") from error
        return found

    def leave(self) -> None:
        """Somebody is gone: nobody waits for it."""
        self._barrier.abort()


class MeetingCarrier:
    """One host's carrier."""

    def __init__(self, meeting: Meeting, index: int):
        self.meeting, self.index, self.count = meeting, index, meeting.count

    def gathered(self, row: bytes, length: int = 0) -> list[bytes]:
        """Everybody's bytes, padded to a length that is the same for all."""
        rows = [bytes(found) for found in self.meeting.share(self.index, row.ljust(length, b"\0"))]  # type: ignore[call-overload]
        assert len({len(found) for found in rows}) == 1, "rows are of one length"
        return rows

    def start(self, one: Round, rows: Bytes) -> Callable[[], Bytes]:
        """Runs a round; what is called to get the rows received."""
        assert rows.shape == (one.rows_sent, one.slot)
        everybody = self.meeting.share(self.index, rows.copy())
        got = np.full((one.rows_received, one.slot), 0xEE, np.uint8)
        for row, sender in one.receives(self.index):
            sent: Bytes = everybody[sender]  # type: ignore[assignment]
            if one.kind is Kind.PAIRS:
                got[row] = sent[one.hops.index((self.index - sender) % self.count)]
            else:
                got[row] = sent[0 if one.kind is Kind.GATHER else self.index]
            self.meeting.wire[self.index] += one.slot
        return lambda: got
