"""From the even shares of all hosts to this host's shards: the whole way, in step with the others.

shares, target, what DEST holds ─▶ all well everywhere? ─▶ who has what, who wants what ─▶ rounds ─▶ manifest
of this host                       the same job?            told by each to all             parcels

A tensor that every host has committed is not moved again. Its shares go once that is so, and not before: a
host that fails finds everything that it still needs when the line is run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from gdist import __version__
from gdist.core.mesh import HostGroup
from gdist.core.parcels import Deal, rounds_of
from gdist.errors import InterruptedRun, RequestError
from gdist.events import Finished, MovePlanned, Observer, TensorsPlanned
from gdist.run.collective.dealing import Facts, deals_of, facts_of
from gdist.run.collective.landing import Landing
from gdist.run.collective.opened import Opened, opened
from gdist.run.collective.shares import Shares
from gdist.run.destination import Destination, clean, find_destination
from gdist.run.fetch import FetchResult
from gdist.run.reshard import COMMITTERS, STAGED_COMMITTERS
from gdist.run.timing import Timing
from gdist.stores.agreement import agree, gather_all
from gdist.stores.rounds import HOSTS, Carrier, Rounds, parcel_limit

NOTE_BYTES = 8  # between rounds each host tells how many tensors it has committed


def move_shares(
    dest: str | os.PathLike[str],
    host: HostGroup,
    carrier: Carrier,
    *,
    memory: int = 2**30,
    work: Path | None = None,
    locked: bool = False,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> FetchResult:
    """Makes this host's shards of the shares that `fetch_shares` left on all hosts; all of them have to call.

    What is written is what a fetch would have written. `memory` bounds what is held of parcels; `locked` says
    that the caller has locked the destination. A run that ended is gone on with; when all is done the shares
    are gone, too.

    Raises:
        GdistError: the same on all hosts, when one has failed; what is done is kept for the next call.
        Unreachable: when another host is gone.
    """
    tell: Observer = observe or (lambda event: None)
    where = find_destination(os.fspath(dest), host, work)
    move = _Move(where, host, carrier, memory, tell, stop or threading.Event(), locked=locked)
    return move.run()


class _Move:
    """One run on one destination."""

    def __init__(
        self,
        dest: Destination,
        host: HostGroup,
        carrier: Carrier,
        memory: int,
        observe: Observer,
        stop: threading.Event,
        *,
        locked: bool,
    ):
        self._dest, self._host, self._carrier, self._locked = dest, host, carrier, locked
        self._memory, self._observe, self._stop = memory, observe, stop
        self._timing = Timing()
        self._stack = contextlib.ExitStack()

    def run(self) -> FetchResult:
        with self._stack:
            there = self._prepare()
            mine = facts_of(there.shares, there.plan, there.records)
            told = [Facts.unpack(data) for data in gather_all(self._carrier.gathered, mine.pack())]
            limit = parcel_limit(self._memory, self._host.count)
            deals = deals_of(there.shares, told, limit)
            self._tell_plan(there, deals)
            landing = self._land(there)
            rounds = Rounds(
                self._carrier,
                [tensor.dtype.itemsize for tensor in there.shares.manifest.tensors],
                there.view,
                landing.place,
                landed=landing.landed,
                note=lambda: self._note(landing),
                note_nbytes=NOTE_BYTES,
                heard=lambda notes: there.give_back(min(int.from_bytes(note, "little") for note in notes)),
            )
            rounds.run(rounds_of(self._begun(rounds, landing, deals), self._host.count, limit))
            rounds.attempt(landing.drain)
            rounds.agree()
            manifest = rounds.attempt(there.finish)
            rounds.agree()
        clean(self._dest)
        text, seconds, timing = self._dest.text, self._timing.elapsed, self._timing.table()
        self._observe(Finished(text, manifest.nbytes, seconds, already=False, timing=timing))
        return FetchResult(text, manifest, False, seconds, timing)

    # --- before the rounds ----------------------------------------------------------------------------

    def _prepare(self) -> Opened:
        """What is open on this host, once that went well on all of them, for one and the same job."""
        fault, there = None, None
        told = {"with another version of gdist": __version__, "with other --memory": str(self._memory)}
        told["another store"] = ""
        try:
            self._check_number()
            opening = opened(self._dest, self._host, self._timing, self._observe, locked=self._locked)
            there = self._stack.enter_context(opening)
            told["another store"] = _job(there.shares)
        except Exception as error:  # whatever it is, the others are waiting
            fault = error
        agree(self._carrier.gathered, range(self._carrier.count), fault, told, HOSTS)
        assert there is not None, "a fault was raised"
        return there

    def _check_number(self) -> None:
        host = self._host
        if (self._carrier.index, self._carrier.count) != (host.index, host.count):
            raise RequestError(
                f"this is process {self._carrier.index} of {self._carrier.count} of JAX, "
                f"and host {host.index} of {host.count}",
                hint="start one process on each host, with the host's own number",
            )

    def _tell_plan(self, there: Opened, deals: Sequence[tuple[int, Deal]]) -> None:
        plan, me = there.plan, self._host.index
        own = received = 0
        for number, one in deals:
            itemsize = plan.tensors[number].tensor.spec.dtype.itemsize
            own += itemsize * sum(item.box.size for item in one.own[me])
            received += itemsize * sum(stage.elements_for(me, self._host.count) for stage in one.stages)
        self._observe(
            MovePlanned(
                tensors=len(plan.tensors),
                shards=sum(len(tensor.shards) for tensor in plan.tensors),
                bytes_wanted=plan.bytes_wanted,
                bytes_own=own,
                bytes_received=received,
                bytes_resumed=sum(plan.tensors[t.tensor].tensor.spec.nbytes_of(t.box) for t in there.records),
                store_nbytes=plan.store_nbytes,
                mesh=str(plan.mesh),
                host_index=me,
                host_count=self._host.count,
            )
        )
        self._observe(TensorsPlanned(tuple(tensor.tensor.spec.name for tensor in plan.tensors)))

    # --- in step with the others ----------------------------------------------------------------------

    def _land(self, there: Opened) -> Landing:
        landing = Landing(
            there.plan,
            there.sink,
            there.journal,
            there.records,
            lambda number, item: there.view(number, item.box),
            committers=STAGED_COMMITTERS if there.staged else COMMITTERS,
            observe=self._observe,
            timing=self._timing,
            stop=self._check_stop,
        )
        self._stack.callback(landing.close)
        return landing

    def _begun(
        self, rounds: Rounds, landing: Landing, deals: Sequence[tuple[int, Deal]]
    ) -> Iterator[tuple[int, Deal]]:
        for number, one in deals:
            rounds.attempt(landing.begin, number, one)
            yield number, one

    def _note(self, landing: Landing) -> bytes:
        self._check_stop()
        landing.turn()
        return landing.committed.to_bytes(NOTE_BYTES, "little")

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise InterruptedRun(
                "the run was asked to stop", hint="the same command goes on where this one stopped"
            )


def _job(shares: Shares) -> str:
    """What has to be the same on all hosts."""
    target = shares.target
    about = (target.source, target.mesh, target.host.count, target.codec, target.select, target.converted)
    grids = [[(t.name, t.dtype.name, t.grid, t.spec) for t in m.tensors] for m in (target, shares.manifest)]
    return hashlib.sha256(repr((about, sorted(target.ignored), grids)).encode()).hexdigest()
