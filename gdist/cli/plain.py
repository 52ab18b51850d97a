"""Progress as lines, where there is no terminal: stages, a line every ten seconds, and the end."""

from __future__ import annotations

import sys
import time

from gdist.cli import words
from gdist.cli.pace import Pace
from gdist.core.units import format_bytes, format_seconds
from gdist.events import (
    Event,
    Finished,
    HashFailed,
    MetadataReceived,
    Note,
    PeerBanned,
    Planned,
    Progress,
    StageStarted,
    TrackerAnswer,
)

LINE_SECONDS = 10.0


class PlainLines:
    """An observer that writes lines to standard error."""

    def __init__(self, every: float = LINE_SECONDS) -> None:
        self._every = every
        self._pace = Pace()
        self._next = time.monotonic() + every
        self._failed = 0

    def __call__(self, event: Event) -> None:
        """Tells what is worth a line in a log."""
        text = self._text(event)
        if text:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def _text(self, event: Event) -> str:
        match event:
            case StageStarted():
                return words.STAGES[event.stage]
            case MetadataReceived():
                size = f"{format_bytes(event.nbytes)} in {event.pieces} pieces"
                return f"{event.name}: {size}, info-hash {event.info_hash.hex}"
            case Note():
                return f"note: {event.text}"
            case Planned():
                return words.planned(event)
            case TrackerAnswer(ok=False):
                return f"tracker {event.url}: {event.message}"
            case PeerBanned():
                return f"peer {event.peer} sent wrong bytes and is not asked again"
            case HashFailed():
                self._failed += 1
                return ""
            case Progress():
                return self._progress(event)
            case Finished():
                spent = words.timing(event)
                return words.finished(event) + (f"\ntime went to: {spent}" if spent else "")
        return ""

    def _progress(self, event: Progress) -> str:
        self._pace.update(event.seconds, event.bytes_placed)
        if time.monotonic() < self._next:
            return ""
        self._next = time.monotonic() + self._every
        left = self._pace.remaining(event.bytes_wanted - event.bytes_placed)
        failed = f"   {self._failed} pieces failed their hash" if self._failed else ""
        return (
            f"{format_seconds(event.seconds)}  {words.share(event.bytes_placed, event.bytes_wanted)}  "
            f"{format_bytes(event.bytes_placed)} of {format_bytes(event.bytes_wanted)}   "
            f"tensors {event.tensors_ready}/{event.tensors}   {words.rates(event)}   "
            f"ETA {words.remaining(left)}{failed}"
        )

    def close(self) -> None:
        """Nothing is held."""
