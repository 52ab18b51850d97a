"""Progress as lines, where there is no terminal: stages, a line every ten seconds, and the end."""

from __future__ import annotations

import threading
import time

from gdist.cli import words
from gdist.cli.pace import Pace
from gdist.cli.streams import say
from gdist.core.units import format_bytes, format_rate, format_seconds
from gdist.events import (
    ClusterProgress,
    Event,
    Finished,
    HashFailed,
    MemberChanged,
    MetadataReceived,
    MovePlanned,
    MoveProgress,
    Note,
    PeerBanned,
    PeerCount,
    Planned,
    Progress,
    ReshardPlanned,
    ReshardProgress,
    Stage,
    StageStarted,
    TrackerAnswer,
)

LINE_SECONDS = 10.0
_WAITING = {
    Stage.JOIN: "looking for the other hosts",
    Stage.METADATA: "looking for metadata",
    Stage.HEADERS: "reading headers",
}


class PlainLines:
    """An observer that writes lines to standard error; `close` ends its thread."""

    def __init__(self, every: float = LINE_SECONDS) -> None:
        self._every = every
        self._pace = Pace()
        self._next = time.monotonic() + every
        self._failed = 0
        self._peers = 0
        self._stage: Stage | None = None
        self._plan: words.Plan | None = None
        self._cluster: ClusterProgress | None = None
        self._members = words.Members()
        self._waited = threading.Event()

    def __call__(self, event: Event) -> None:
        """Tells what is worth a line in a log."""
        text = self._text(event)
        if text:
            say(f"{text}\n")

    def _text(self, event: Event) -> str:
        match event:
            case StageStarted():
                self._stage = event.stage
                self._wait(event.stage)
                return words.STAGES[event.stage]
            case PeerCount():
                self._peers = event.peers
            case MetadataReceived():
                size = f"{format_bytes(event.nbytes)} in {event.pieces} pieces"
                return f"{event.name}: {size}, info-hash {event.info_hash.hex}"
            case Note():
                return f"note: {event.text}"
            case Planned() | ReshardPlanned() | MovePlanned():
                self._plan = event
                return words.planned(event)
            case TrackerAnswer(ok=False):
                return f"tracker {event.url}: {event.message}"
            case PeerBanned():
                return f"peer {event.peer} sent wrong bytes and is not asked again"
            case HashFailed():
                self._failed += 1
                return ""
            case Progress() | ReshardProgress() | MoveProgress():
                return self._progress(event)
            case MemberChanged():
                return self._members.text(event)
            case ClusterProgress():
                self._cluster = event
                return self._serving(event)
            case Finished():
                spent = words.timing(event)
                return words.finished(event, self._plan) + (f"\n{spent}" if spent else "")
        return ""

    def _progress(self, event: Progress | ReshardProgress | MoveProgress) -> str:
        self._pace.update(event.seconds, event.bytes_placed)
        if time.monotonic() < self._next:
            return ""
        self._next = time.monotonic() + self._every
        left = self._pace.remaining(event.bytes_wanted - event.bytes_placed)
        failed = f"   {words.count(self._failed, 'piece')} failed their hash" if self._failed else ""
        return (
            f"{format_seconds(event.seconds)}  {words.share(event.bytes_placed, event.bytes_wanted)}  "
            f"{format_bytes(event.bytes_placed)} of {format_bytes(event.bytes_wanted)}   "
            f"tensors {event.tensors_ready}/{event.tensors}   {words.rates(event, self._cluster)}   "
            f"ETA {words.remaining(left)}{failed}{self._others()}"
        )

    def _others(self) -> str:
        if self._cluster is None:
            return ""
        return f"   {words.hosts(self._cluster)}   between hosts {words.between(self._cluster)}"

    def _serving(self, event: ClusterProgress) -> str:
        """Once this host has its part, the cluster is all there is to tell of."""
        if self._stage is not Stage.SERVE or time.monotonic() < self._next:
            return ""
        self._next = time.monotonic() + self._every
        return f"{words.hosts(event)}   out {format_rate(event.lan_out_rate)}"

    def _wait(self, stage: Stage) -> None:
        """Says now and then that a stage goes on in which there may be no events."""
        self.close()
        if stage in _WAITING and self._every > 0:
            self._waited = threading.Event()
            values = (self._waited, _WAITING[stage], time.monotonic())
            threading.Thread(target=self._tick, args=values, name="gdist-lines", daemon=True).start()

    def _tick(self, over: threading.Event, doing: str, start: float) -> None:
        while not over.wait(self._every):
            waited = format_seconds(time.monotonic() - start)
            looking = doing == _WAITING[Stage.METADATA] or self._peers  # a reshard asks no swarm
            peers = f"{words.count(self._peers, 'peer')}, " if looking else ""
            say(f"still {doing}: {peers}{waited}\n")

    def close(self) -> None:
        """No line comes any more but for an event; may be called again."""
        self._waited.set()
