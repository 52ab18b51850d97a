"""An agent's collective fetch: even shares of all tensors first, then XLA's exchange."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from gdist.errors import InterruptedRun
from gdist.events import Event, Finished, MoveProgress, Observer, Stage, StageStarted
from gdist.exchange.ports import free_port
from gdist.run.cluster.station import Station
from gdist.run.destination import Destination
from gdist.run.fetch import FetchResult
from gdist.run.timing import Timing

if TYPE_CHECKING:
    from gdist.run.cluster.agent import Agent

FLUSH_SECONDS = 3.0
END_POLL_SECONDS = 0.05


class Sharing:
    """Of one agent; `dest` is where, once it has begun, `moved` whether every byte is where it belongs."""

    def __init__(self, agent: Agent):
        self._agent = agent
        self.dest: Destination | None = None
        self.moved = False

    def fetch(self, where: Destination) -> FetchResult:
        """The whole way, of a destination that is locked; times are of both halves together."""
        from gdist.run.collective import all_here, fetch_shares, finish_alone

        asked, timing = self._agent.options.fetch, Timing()
        self.dest = where
        shares = fetch_shares(
            self._agent.source,
            where.text,
            asked,
            observe=self._agent.watch,
            stop=self._agent.stop,
            opener=self._agent.open,
        )
        timing.add(shares.timing)
        self._agent.serving = False
        station = self._agent.station
        if station is None:  # the shares were here already
            station = self._agent.open_station()
            station.leave_address(where)
            self._agent.watch(StageStarted(Stage.JOIN))
            station.link.join()
        if self._agent.status.status().stage is not Stage.EXCHANGE:
            self._agent.watch(StageStarted(Stage.EXCHANGE))
        here = all_here(where.text, self._agent.host, asked.work)
        coordinator = station.link.meet(here, free_port(), self._agent.options.linger)

        def watch(event: Event) -> None:
            if isinstance(event, Finished):
                timing.add(event.timing)
                event = replace(event, timing=timing.table())
            if isinstance(event, Finished | MoveProgress):
                event = replace(event, seconds=timing.elapsed)
                self._agent.record()
            if event != StageStarted(Stage.EXCHANGE):  # which began when the shares were complete
                self._agent.watch(event)

        if coordinator is None:  # an earlier run ended between its last shard and its manifest
            done = finish_alone(where.text, self._agent.host, work=asked.work, locked=True, observe=watch)
            station.link.announce(FLUSH_SECONDS)
        else:
            done = self._moved(where, coordinator, watch)
            self.moved = True  # or it would have failed here, too
            self._tell_end(station)
        return replace(done, seconds=timing.elapsed, timing=timing.table())

    def _moved(self, where: Destination, coordinator: str, watch: Observer) -> FetchResult:
        """The move, which the deadline ends as well."""
        from gdist.run.collective import MoveRequest, start_move

        asked = self._agent.options.fetch
        request = MoveRequest(
            where.text,
            self._agent.host,
            coordinator,
            memory=asked.memory,
            work=asked.work,
            most_seconds=self._agent.deadline.left,
        )
        try:
            return start_move(request, locked=True, observe=watch, stop=self._agent.stop)
        except InterruptedRun:
            self._agent.deadline.check()
            raise

    @staticmethod
    def _tell_end(station: Station) -> None:
        """Tells that this host is complete; the coordinator waits a little for the others to tell it."""
        station.link.tell_status()
        end = time.monotonic() + FLUSH_SECONDS
        while (cluster := station.own_cluster()) and cluster.done < cluster.count and time.monotonic() < end:
            time.sleep(END_POLL_SECONDS)
