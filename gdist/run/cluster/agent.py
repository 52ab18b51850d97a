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
from typing import Any

from gdist.core.plan import piece_order
from gdist.core.status import ClusterStatus, MemberState, MemberStatus
from gdist.errors import (
    GdistError,
    HostsMissing,
    InterruptedRun,
    LockedError,
    RequestError,
    StalledError,
)
from gdist.events import (
    Event,
    Finished,
    MemberChanged,
    MoveProgress,
    Note,
    Observer,
    Stage,
    StageStarted,
)
from gdist.exchange.ports import free_port
from gdist.kvstore import local_path
from gdist.run.catalogue import Catalogue
from gdist.run.cluster.held import Held, read_held
from gdist.run.cluster.learning import learn
from gdist.run.cluster.link import LOCALHOST, Link
from gdist.run.cluster.meters import Meters
from gdist.run.cluster.options import ClusterOptions
from gdist.run.cluster.rendezvous import FINAL_PHASE
from gdist.run.cluster.source import ClusterSource
from gdist.run.cluster.station import Station
from gdist.run.destination import Destination, default_dest, find_destination
from gdist.run.fetch import FetchResult, fetch
from gdist.run.opening import Opening, PieceSource, open_alone
from gdist.run.recorder import Recorder
from gdist.run.resolve import resolve
from gdist.run.status_of_events import StatusOfEvents
from gdist.run.timing import Timing
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
END_POLL_SECONDS = 0.05


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
        agent = _Agent(source, options, tell, stopped, started, recorder)
        try:
            return agent.run(dest)
        except LockedError:
            if not waiting:
                tell(Note("another process of this host fetches it already: waiting for it"))
            waiting = True
            agent.check_time()
            if stopped.wait(ATTACH_SECONDS):
                raise InterruptedRun("the run was asked to stop while another process fetches") from None


class _Agent:
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
        self._source, self._options, self._observe, self._stop = source, options, observe, stop
        self._started, self._recorder = started, recorder or Recorder()
        self._host = options.fetch.host
        self._pieces: ClusterSource | None = None
        self._station: Station | None = None
        self._status = StatusOfEvents("", self._host)
        self._changes: list[MemberChanged] = []
        self._told = 0.0
        self._serving = self._complete = self._moved_all = False
        self._meters = Meters(self._host.count)
        self._shares_of: Destination | None = None  # of a collective fetch, while its shares come in

    def run(self, dest: str | os.PathLike[str] | None) -> FetchResult:
        """The fetch."""
        if self._host.count == 1:
            return self._alone(dest)
        try:
            done = self._exchanged(dest) if self._options.exchange == "collective" else self._fetched(dest)
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
            if self._options.http:
                from gdist.run.agent_http import AgentHttp  # loaded where it is asked for

                stack.enter_context(AgentHttp(self._options.http, self._status.status, self._status.ready))
            stack.callback(self._record)  # how it was in the end, also where it ended early
            asked = self._options.fetch
            return fetch(self._source, dest, asked, observe=self._watch, stop=self._stop, opener=opened)

    def _fetched(self, dest: str | os.PathLike[str] | None) -> FetchResult:
        """What this host's shards need, from outside and from the others."""
        asked = self._options.fetch
        again = None if self._all_done(dest) else self._others_wait
        return fetch(
            self._source, dest, asked, observe=self._watch, stop=self._stop, opener=self._open, again=again
        )

    def _exchanged(self, dest: str | os.PathLike[str] | None) -> FetchResult:
        """An even share of every tensor, and then XLA's collectives to where each byte belongs."""
        from gdist.run.collective import taken  # and what it loads

        asked = self._options.fetch
        resolved = resolve(self._source, asked.manifest, asked.verify_key)
        text = os.fspath(dest) if dest is not None else default_dest(resolved)
        where = find_destination(text, self._host, asked.work)
        with taken(where, resolved, asked) as unfinished:
            if unfinished:
                return self._shared_and_moved(where)
        return self._fetched(text)

    def _shared_and_moved(self, where: Destination) -> FetchResult:
        """The same, of a destination that is locked; times are of both together."""
        from gdist.run.collective import all_here, fetch_shares, finish_alone

        asked, timing = self._options.fetch, Timing()
        self._shares_of = where
        shares = fetch_shares(
            self._source, where.text, asked, observe=self._watch, stop=self._stop, opener=self._open
        )
        timing.add(shares.timing)
        self._serving = False
        station = self._station
        if station is None:  # the shares were here already
            station = self._open_station()
            station.leave_address(where)
            self._watch(StageStarted(Stage.JOIN))
            station.link.join()
        if self._status.status().stage is not Stage.EXCHANGE:
            self._watch(StageStarted(Stage.EXCHANGE))
        here = all_here(where.text, self._host, asked.work)
        coordinator = station.link.meet(here, free_port(), self._options.linger)

        def watch(event: Event) -> None:
            if isinstance(event, Finished):
                timing.add(event.timing)
                event = replace(event, timing=timing.table())
            if isinstance(event, Finished | MoveProgress):
                event = replace(event, seconds=timing.elapsed)
                self._record()
            if event != StageStarted(Stage.EXCHANGE):  # which began when the shares were complete
                self._watch(event)

        if coordinator is None:  # an earlier run ended between its last shard and its manifest
            done = finish_alone(where.text, self._host, work=asked.work, locked=True, observe=watch)
            station.link.announce(FLUSH_SECONDS)
        else:
            done = self._moved(where, coordinator, watch)
            self._moved_all = True  # or it would have failed here, too
            self._tell_end(station)
        return replace(done, seconds=timing.elapsed, timing=timing.table())

    def _moved(self, where: Destination, coordinator: str, watch: Observer) -> FetchResult:
        """The move, which the deadline ends as well."""
        from gdist.run.collective import MoveRequest, start_move

        asked, limit = self._options.fetch, self._options.deadline
        left = max(0.0, self._started + limit - time.monotonic()) if limit else float("inf")
        request = MoveRequest(
            where.text, self._host, coordinator, memory=asked.memory, work=asked.work, most_seconds=left
        )
        try:
            return start_move(request, locked=True, observe=watch, stop=self._stop)
        except InterruptedRun:
            self.check_time()
            raise

    @staticmethod
    def _tell_end(station: Station) -> None:
        """Tells that this host is complete; the coordinator waits a little for the others to tell it."""
        station.link.tell_status()
        end = time.monotonic() + FLUSH_SECONDS
        while (cluster := station.own_cluster()) and cluster.done < cluster.count and time.monotonic() < end:
            time.sleep(END_POLL_SECONDS)

    # --- time, stops and what is told -----------------------------------------------------------------

    def check_time(self) -> None:
        """Returns while the deadline has not passed.

        Raises:
            HostsMissing, StalledError: it has; the first when hosts are missing.
        """
        limit = self._options.deadline
        if not limit or time.monotonic() - self._started < limit:
            return
        if missing := self._missing():
            raise HostsMissing(
                f"the deadline of {limit:.0f} seconds passed, and {self._said_of(missing)}",
                hint="start them with the same line, or give a longer --deadline; "
                "what is here is kept, and the same command goes on",
            )
        raise StalledError(
            f"not done at the deadline of {limit:.0f} seconds",
            hint="the same command goes on where this one stopped",
        )

    def _missing(self) -> list[int]:
        """The other hosts that lack something and are not here."""
        missing = set(range(self._host.count)) - {self._host.index}
        if self._station is None:
            return sorted(missing)
        link = self._station.link
        with link.changed:
            missing -= {peer.index for peer in link.inside.peers.values() if peer.state in ("live", "done")}
            if self._options.exchange != "collective":  # where who is complete has its shares only
                missing -= link.inside.complete
        return sorted(missing)

    def _said_of(self, missing: list[int]) -> str:
        """Which hosts did not come, and which came and went: their own words tell why."""
        left = [i for i in missing if self._station and self._station.link.has_left(i)]
        absent = [i for i in missing if i not in left]
        count = self._host.count
        return " and ".join(
            f"hosts {', '.join(map(str, who))} of {count} {what}"
            for who, what in ((absent, "are not here"), (left, "left before they were done"))
            if who
        )

    def _tick(self) -> None:
        if self._pieces is None:
            self._status.waits()
        if not self._serving:  # then it ends in its own way
            if self._stop.is_set():
                raise InterruptedRun(
                    "the run was asked to stop", hint="the same command goes on where this one stopped"
                )
            self.check_time()
        if self._station is not None:
            self._station.link.check()
        self._tell()

    def _also(self, tick: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            if not self._serving:
                tick()
            self._tick()

        return both

    def _tell(self) -> None:
        """Events of the cluster, on the fetch's thread."""
        changes, self._changes = self._changes, []
        for change in changes:
            self._watch(change)
        now = time.monotonic()
        if now - self._told > EVENT_SECONDS:
            self._told = now
            self._record()
            if self._station and self._pieces:
                self._watch(self._meters.progress(self._station.link, self._station.server, self._pieces))

    def _record(self) -> None:
        cluster = self._station.own_cluster() if self._station else self._own_cluster()
        if cluster:
            self._recorder.add(cluster)
            if self._station:
                self._station.record = self._recorder.record()

    def _own_cluster(self) -> ClusterStatus | None:
        """Where a cluster of one host stands; None of any other, which its coordinator knows."""
        if self._host.count > 1:
            return None
        status = self._status.status()
        member = MemberStatus(status, LOCALHOST, MemberState.LIVE, 0.0)
        union, seconds = status.bytes_wanted, time.monotonic() - self._started
        return ClusterStatus(0, 1, seconds, (member,), union_bytes=union, inside_bytes=status.wan_bytes)

    def _watch(self, event: Event) -> None:
        if self._shares_of and event == StageStarted(Stage.SERVE):  # shares: the store is not complete yet
            event = StageStarted(Stage.EXCHANGE)
        self._status(event)
        self._observe(event)

    # --- joining --------------------------------------------------------------------------------------

    @contextmanager
    def _open(self, opening: Opening) -> Iterator[tuple[PieceSource, Catalogue]]:
        """Joins the others and opens the source of both kinds of pieces; serves the others at the end."""
        opening = replace(opening, tick=self._also(opening.tick))
        station = self._station or self._open_station()
        station.leave_address(self._shares_of or opening.dest)
        self._watch(StageStarted(Stage.JOIN))
        station.check_alone()
        link = station.link
        link.join()
        record = opening.dest.work / HELD_NAME
        options = self._options
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

    def _open_station(self) -> Station:
        job = _job(self._source, self._options)
        self._station = station = Station(self._options, job, self._status, self._tick, self._started)
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
            station = self._open_station()
        except RequestError as error:
            if getattr(error.__cause__, "errno", None) == errno.EADDRINUSE:
                return False
            raise
        self._observe(Note("complete already: looking for hosts that are not"))
        met, gives = station.rendezvous, self._options.gateway or bool(read_held(dest.work / HELD_NAME))
        gives = gives and self._options.exchange != "collective"
        found = station.link.announce(ANNOUNCE_SECONDS)
        while found and not self._know_all_done(station):
            if self._host.index:
                self._complete = gives
                return gives
            if gives and met.busy():
                self._complete = True
                return True
            quiet = min(met.quiet(), time.monotonic() - self._started)
            if quiet > QUIET_SECONDS or self._stop.wait(EVENT_SECONDS):
                break
        return False

    def _all_done(self, dest: str | os.PathLike[str] | None) -> bool:
        """True when an earlier run wrote down that all hosts are done."""
        asked = self._options.fetch
        if dest is None:
            dest = default_dest(resolve(self._source, asked.manifest, asked.verify_key))
        root = local_path(dest)
        try:
            return root is not None and (root / RECEIPT).read_text() == str(self._host.count)
        except OSError:
            return False

    def _note_done(self, root: Path | None) -> None:
        """Writes into a store that all hosts are done, if they are."""
        if root and self._station and self._know_all_done(self._station):
            with contextlib.suppress(GdistError):  # it only saves a later run some seconds
                write_atomically(root / RECEIPT, str(self._host.count).encode(), sync=False)

    def _know_all_done(self, station: Station) -> bool:
        if self._options.exchange == "collective":  # leases there are of shares
            return self._moved_all or station.rendezvous.all_complete()
        return station.rendezvous.done() or station.link.inside.done

    # --- serving and leaving --------------------------------------------------------------------------

    def _serve(self, pieces: ClusterSource, link: Link) -> None:
        """Goes on giving pieces until everyone has what they need, or those who miss some never came.

        Raises:
            HostsMissing: fewer than `min_hosts` are here at the deadline.
        """
        self._serving = True
        self._watch(StageStarted(Stage.SERVE))
        link.tell(done=True)
        alone_since = time.monotonic()
        while pieces.serve():
            if self._stop.is_set():
                if self._shares_of:  # of which no store is made yet
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
                    p for p in link.inside.peers.values() if p.state == "live" and p.index != self._host.index
                ]
            now = time.monotonic()
            if working:
                alone_since = now
            missing = self._missing()
            limit, fewest = self._options.deadline, self._options.min_hosts
            over = limit and now - self._started > limit
            if over and self._host.count - len(missing) < fewest:
                raise HostsMissing(
                    f"this host is done; at the deadline of {limit:.0f} seconds {self._said_of(missing)}, "
                    f"and at least {fewest} were asked for",
                    hint="start them with the same line",
                )
            if over or now - alone_since > self._options.linger:
                if missing:
                    said = f"{self._said_of(missing)}; what they need comes in again when they are"
                else:
                    said = "the deadline passed: leaving hosts that are still at work"
                self._watch(Note(said))
                break
        link.flush(FLUSH_SECONDS)

    def _close(self) -> None:
        """Leaves the others."""
        if self._station is not None:
            self._record()  # how it was in the end, also where it ended early
            self._station.link.leave(gone=True)
            self._station.close()

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


def _job(source: str, options: ClusterOptions) -> dict[str, Any]:  # Any: a document of the wire
    """What all hosts of a job must have been asked to do; the words are used when they disagree."""
    asked = options.fetch
    info_hash = resolve(source, asked.manifest, asked.verify_key).info_hash
    rules = asked.rules
    return {
        "info-hash": [h for h in (info_hash.v1_hex, info_hash.v2_hex) if h],
        "number of hosts": asked.host.count,
        "mesh": str(asked.mesh),
        "rules": str(rules) if rules else "those of the release",
        "codec": asked.codec,
        "type": asked.dtype or "as stored",
        "choice of tensors": sorted(set(asked.select)),
        "ignored files": sorted(set(asked.ignore)),
        "profile": asked.profile or "any",
        "exchange": options.exchange,
    }
