"""One host's part in a cluster's fetch, from joining to leaving.

The fetch is the one of a single host. Only how it comes to its pieces differs: before it opens its source the
agent joins the others, and learns from them (or finds out for them) what the torrent holds; and when all of
this host's shards are there, it goes on giving pieces to the others until they have what they need.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gdist.core.plan import piece_order
from gdist.core.status import ClusterStatus, MemberState, MemberStatus
from gdist.errors import (
    GdistError,
    InterruptedRun,
    LockedError,
    RequestError,
)
from gdist.events import (
    Event,
    MemberChanged,
    Note,
    Observer,
    Stage,
    StageStarted,
)
from gdist.kvstore import local_path
from gdist.run.catalogue import Catalogue
from gdist.run.cluster.deadline import Deadline
from gdist.run.cluster.held import Held, read_held
from gdist.run.cluster.job import job_of
from gdist.run.cluster.learning import learn
from gdist.run.cluster.link import LOCALHOST, Link
from gdist.run.cluster.meters import Meters
from gdist.run.cluster.options import ClusterOptions
from gdist.run.cluster.rendezvous import FINAL_PHASE
from gdist.run.cluster.sharing import Sharing
from gdist.run.cluster.source import ClusterSource
from gdist.run.cluster.station import Station
from gdist.run.destination import Destination, default_dest, find_destination
from gdist.run.fetch import FetchResult, fetch
from gdist.run.opening import Opening, PieceSource, open_alone
from gdist.run.recorder import Recorder
from gdist.run.resolve import resolve
from gdist.run.status_of_events import StatusOfEvents
from gdist.sinks.local import write_atomically

ATTACH_SECONDS = 0.5
EVENT_SECONDS = 0.5
ANNOUNCE_SECONDS = 10.0  # in which a host that is complete looks for others that may not be
QUIET_SECONDS = 10.0  # and host 0 waits so long for them
HELD_NAME = "held.json"
RECEIPT = ".gdist.hosts"  # in a store that all hosts have finished: how many they were
HAND_OVER_SECONDS = 4.0  # of the ten that a host has between SIGTERM and its end
IDLE_SECONDS = 1.0
FLUSH_SECONDS = 3.0


def cluster_fetch(
    source: str,
    dest: str | os.PathLike[str] | None,
    options: ClusterOptions,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    recorder: Recorder | None = None,
) -> FetchResult:
    """Fetches this host's part of a release together with the other hosts of the job; safe to repeat.

    The first process on a host does it; others wait until it is done, and take over should it die. `recorder`
    is told how the whole cluster fares while this host coordinates it.

    Raises:
        RefusedError: the hosts disagree on the plan or the secret, or another process is this host.
        HostsMissing: the deadline passed, and hosts without which it cannot be done did not come.
        GdistError: of a fetch.
    """
    tell: Observer = observe or (lambda event: None)
    stopped = stop or threading.Event()
    started, waiting = time.monotonic(), False
    while True:
        agent = Agent(source, options, tell, stopped, started, recorder)
        try:
            return agent.run(dest)
        except LockedError:
            if not waiting:
                tell(Note("another process of this host fetches it already: waiting for it"))
            waiting = True
            agent.deadline.check()
            if stopped.wait(ATTACH_SECONDS):
                raise InterruptedRun("the run was asked to stop while another process fetches") from None


class Agent:
    """One run; see the module's text."""

    def __init__(
        self,
        source: str,
        options: ClusterOptions,
        observe: Observer,
        stop: threading.Event,
        started: float,
        recorder: Recorder | None,
    ):
        self.source, self.options, self._observe, self.stop = source, options, observe, stop
        self._started, self._recorder = started, recorder or Recorder()
        self.host = options.fetch.host
        self._pieces: ClusterSource | None = None
        self.station: Station | None = None
        self.status = StatusOfEvents("", self.host)
        self._changes: list[MemberChanged] = []
        self._told = 0.0
        self.serving = self._complete = False
        self._meters = Meters(self.host.count)
        self._sharing = Sharing(self)
        self.deadline = Deadline(options, started)

    def run(self, dest: str | os.PathLike[str] | None) -> FetchResult:
        """The fetch."""
        if self.host.count == 1:
            return self._alone(dest)
        try:
            done = self._shared(dest) if self.options.exchange == "collective" else self._fetched(dest)
            self._note_done(local_path(done.path))
            return done
        finally:
            self._close()

    def _alone(self, dest: str | os.PathLike[str] | None) -> FetchResult:
        """The fetch of the only host: there is nobody to meet, but the same probes, deadline and report."""

        @contextmanager
        def opened(opening: Opening) -> Iterator[tuple[PieceSource, Catalogue]]:
            with open_alone(replace(opening, tick=self._also(opening.tick))) as found:
                yield found

        with contextlib.ExitStack() as stack:
            if self.options.http:
                from gdist.run.agent_http import AgentHttp  # loaded where it is asked for

                stack.enter_context(AgentHttp(self.options.http, self.status.status, self.status.ready))
            stack.callback(self.record)  # how it was in the end, also where it ended early
            asked = self.options.fetch
            return fetch(self.source, dest, asked, observe=self.watch, stop=self.stop, opener=opened)

    def _fetched(self, dest: str | os.PathLike[str] | None) -> FetchResult:
        """What this host's shards need, from outside and from the others."""
        asked = self.options.fetch
        again = None if self._all_done(dest) else self._others_wait
        return fetch(
            self.source, dest, asked, observe=self.watch, stop=self.stop, opener=self.open, again=again
        )

    def _shared(self, dest: str | os.PathLike[str] | None) -> FetchResult:
        """An even share of every tensor, and then XLA's collectives to where each byte belongs."""
        from gdist.run.collective import taken  # and what it loads

        asked = self.options.fetch
        resolved = resolve(self.source, asked.manifest, asked.verify_key)
        text = os.fspath(dest) if dest is not None else default_dest(resolved)
        where = find_destination(text, self.host, asked.work)
        with taken(where, resolved, asked) as unfinished:
            if unfinished:
                return self._sharing.fetch(where)
        return self._fetched(text)

    # --- time, stops and what is told -----------------------------------------------------------------

    def _tick(self) -> None:
        if self._pieces is None:
            self.status.waits()
        if not self.serving:  # then it ends in its own way
            if self.stop.is_set():
                raise InterruptedRun(
                    "the run was asked to stop", hint="the same command goes on where this one stopped"
                )
            self.deadline.check()
        if self.station is not None:
            self.station.link.check()
        self._tell()

    def _also(self, tick: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            if not self.serving:
                tick()
            self._tick()

        return both

    def _tell(self) -> None:
        """Events of the cluster, on the fetch's thread."""
        changes, self._changes = self._changes, []
        for change in changes:
            self.watch(change)
        now = time.monotonic()
        if now - self._told > EVENT_SECONDS:
            self._told = now
            self.record()
            if self.station and self._pieces:
                self.watch(self._meters.progress(self.station.link, self.station.server, self._pieces))

    def record(self) -> None:
        """Takes down how the cluster fares, where this host knows it."""
        cluster = self.station.own_cluster() if self.station else self._own_cluster()
        if cluster:
            self._recorder.add(cluster)
            if self.station:
                self.station.record = self._recorder.record()

    def _own_cluster(self) -> ClusterStatus | None:
        """Where a cluster of one host stands; None of any other, which its coordinator knows."""
        if self.host.count > 1:
            return None
        status = self.status.status()
        member = MemberStatus(status, LOCALHOST, MemberState.LIVE, 0.0)
        union, seconds = status.bytes_wanted, time.monotonic() - self._started
        return ClusterStatus(0, 1, seconds, (member,), union_bytes=union, inside_bytes=status.wan_bytes)

    def watch(self, event: Event) -> None:
        """Takes in an event of this host's work, and tells it."""
        if self._sharing.dest and event == StageStarted(Stage.SERVE):  # shares: the store is not complete yet
            event = StageStarted(Stage.EXCHANGE)
        self.status(event)
        self._observe(event)

    # --- joining --------------------------------------------------------------------------------------

    @contextmanager
    def open(self, opening: Opening) -> Iterator[tuple[PieceSource, Catalogue]]:
        """Joins the others and opens the source of both kinds of pieces; serves the others at the end."""
        opening = replace(opening, tick=self._also(opening.tick))
        station = self.station or self.open_station()
        station.leave_address(self._sharing.dest or opening.dest)
        self.watch(StageStarted(Stage.JOIN))
        station.check_alone()
        link = station.link
        link.join()
        record = opening.dest.work / HELD_NAME
        options = self.options
        learned, catalogue = learn(opening, station, record, gateway=options.gateway, hold=options.hold)
        try:
            order = piece_order(catalogue.payload, catalogue.tensors)
            self._pieces = pieces = learned.source(order, FINAL_PHASE)
            if self._complete:
                pieces.lend()
            yield pieces, catalogue
            self._serve(pieces, link)
            self._note_done(opening.dest.root)  # before another rank of this host may look
        finally:
            if link.inside.wanted and not link.inside.done:
                self._hand_over(link, learned.held)
            self._pieces = station.pieces = None
            learned.outside.close()

    def open_station(self) -> Station:
        """Lets others find this host."""
        job = job_of(self.source, self.options)
        self.station = station = Station(self.options, job, self.status, self._tick, self._started)
        self.deadline.link = station.link
        station.link.on_silence = lambda why: self._observe(Note(why))
        station.rendezvous.on_change = lambda member: self._changes.append(
            MemberChanged(member.index, MemberState(member.state), member.address)
        )
        return station

    # --- a store that was complete --------------------------------------------------------------------

    def _others_wait(self, dest: Destination) -> bool:
        """Of a store that was complete: tells the others; True where they need pieces that it can give.

        They would wait for this host's needs otherwise; without host 0 they could not find each other; and
        who may use the outside, or still has pieces that others need, has to give them. In an exchange by
        XLA nobody takes pieces of a store that is complete; others may lack no more than the end.
        """
        if self._all_done(dest.text):  # written by the rank that this one waited for
            return False
        try:
            station = self.open_station()
        except RequestError as error:
            if getattr(error.__cause__, "errno", None) == errno.EADDRINUSE:
                return False
            raise
        self._observe(Note("complete already: looking for hosts that are not"))
        met, gives = station.rendezvous, self.options.gateway or bool(read_held(dest.work / HELD_NAME))
        gives = gives and self.options.exchange != "collective"
        found = station.link.announce(ANNOUNCE_SECONDS)
        while found and not self._know_all_done(station):
            if self.host.index:
                self._complete = gives
                return gives
            if gives and met.busy():
                self._complete = True
                return True
            quiet = min(met.quiet(), time.monotonic() - self._started)
            if quiet > QUIET_SECONDS or self.stop.wait(EVENT_SECONDS):
                break
        return False

    def _all_done(self, dest: str | os.PathLike[str] | None) -> bool:
        """True when an earlier run wrote down that all hosts are done."""
        asked = self.options.fetch
        if dest is None:
            dest = default_dest(resolve(self.source, asked.manifest, asked.verify_key))
        root = local_path(dest)
        try:
            return root is not None and (root / RECEIPT).read_text() == str(self.host.count)
        except OSError:
            return False

    def _note_done(self, root: Path | None) -> None:
        """Writes into a store that all hosts are done, if they are."""
        if root and self.station and self._know_all_done(self.station):
            with contextlib.suppress(GdistError):  # it only saves a later run some seconds
                write_atomically(root / RECEIPT, str(self.host.count).encode(), sync=False)

    def _know_all_done(self, station: Station) -> bool:
        if self.options.exchange == "collective":  # leases there are of shares
            return self._sharing.moved or station.rendezvous.all_complete()
        return station.rendezvous.done() or station.link.inside.done

    # --- serving and leaving --------------------------------------------------------------------------

    def _serve(self, pieces: ClusterSource, link: Link) -> None:
        """Goes on giving pieces until everyone has what they need, or those who miss some never came.

        Raises:
            HostsMissing: fewer than `min_hosts` are here at the deadline.
        """
        self.serving = True
        self.watch(StageStarted(Stage.SERVE))
        link.tell(done=True)
        alone_since = time.monotonic()
        while pieces.serve():
            if self.stop.is_set():
                if self._sharing.dest:  # of which no store is made yet
                    break
                if link.inside.wanted and not link.inside.done:
                    raise InterruptedRun(
                        "the run was asked to stop: the store here is complete, others still need its pieces",
                        hint="the same command goes on giving them what they need",
                    )
                break
            link.check()
            self._tell()
            with link.changed:
                working = [
                    p for p in link.inside.peers.values() if p.state == "live" and p.index != self.host.index
                ]
            now = time.monotonic()
            if working:
                alone_since = now
            self.deadline.check_enough()
            over = not self.deadline.left
            if over or now - alone_since > self.options.linger:
                missing = self.deadline.missing()
                if missing:
                    said = f"{self.deadline.said_of(missing)}; what they need comes in again when they are"
                else:
                    said = "the deadline passed: leaving hosts that are still at work"
                self.watch(Note(said))
                break
        link.flush(FLUSH_SECONDS)

    def _close(self) -> None:
        """Leaves the others."""
        if self.station is not None:
            self.record()  # how it was in the end, also where it ended early
            self.station.link.leave(gone=True)
            self.station.close()

    def _hand_over(self, link: Link, held: Held) -> None:
        """Gives the others a few seconds to take the pieces that they need and only this host has."""
        link.leave(gone=False)
        given = held.given
        since = time.monotonic()
        end = since + HAND_OVER_SECONDS
        while time.monotonic() < end and held.pieces():
            if held.given > given:
                given, since = held.given, time.monotonic()
            if time.monotonic() - since > IDLE_SECONDS:  # nobody takes anything
                return
            time.sleep(0.1)
