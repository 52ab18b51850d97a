"""The status of a run from what it tells: an observer that other threads may ask.

observer = StatusOfEvents(dest, host)
gdist.fetch(source, dest, observe=observer)      # on one thread
observer.status(), observer.ready("layers:0-7")  # on any other
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gdist.core.mesh import HostGroup
from gdist.core.ready import Readiness, ready
from gdist.core.status import AgentStatus, Stage
from gdist.errors import GdistError
from gdist.events import (
    Binds,
    ClusterProgress,
    Event,
    Finished,
    HashFailed,
    MetadataReceived,
    MovePlanned,
    MoveProgress,
    Note,
    PeerBanned,
    PeerCount,
    PieceVerified,
    Planned,
    Progress,
    ReshardPlanned,
    ReshardProgress,
    StageStarted,
    TensorReady,
    TensorsPlanned,
    TrackerAnswer,
)

# A run gives a sign at least every few seconds (`Progress`, `Waiting`), but for planning and the last
# documents on slow storage; one that gave none for so long hangs.
LIVE_SECONDS = 300.0

_NETWORKS = (Binds.NETWORK, Binds.LAN, Binds.WAITING)


class StatusOfEvents:
    """Folds the events of one run into an `AgentStatus`; thread-safe.

    `name` is the host's (default: what the system calls it); `clock` counts seconds.
    """

    def __init__(
        self,
        dest: str,
        host: HostGroup | None = None,
        *,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        group = host or HostGroup()
        self._lock, self._clock = threading.Lock(), clock
        self._start = self._moved = self._planned = clock()
        self._end: float | None = None
        self._names: tuple[str, ...] = ()
        self._here: set[str] = set()
        self._next = 0
        self._network = Binds.NETWORK
        self._status = AgentStatus(
            index=group.index,
            count=group.count,
            name=socket.gethostname() if name is None else name,
            dest=dest,
            stage=Stage.METADATA,
            seconds=0.0,
            live=True,
        )

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        with self._lock:
            self._moved = self._clock()
            self._take(event)

    def waits(self) -> None:
        """It is alive, and nothing else is to be told: it waits for others."""
        with self._lock:
            self._moved = self._clock()

    def goes_to(self, dest: str) -> None:
        """Where it writes to is known now."""
        with self._lock:
            self._change(dest=dest)

    def failed(self, error: GdistError) -> None:
        """The run ended with an error."""
        with self._lock:
            self._end = self._clock()
            self._change(stage=Stage.FAILED, error=error.message, error_kind=type(error).__name__)

    def status(self) -> AgentStatus:
        """Where the run stands now."""
        with self._lock:
            now = self._clock()
            seconds = (now if self._end is None else self._end) - self._start
            live = self._end is not None or now - self._moved < LIVE_SECONDS
            return replace(
                self._status, seconds=seconds, live=live and self._status.stage is not Stage.FAILED
            )

    def ready(self, what: str) -> Readiness:
        """How far something is; see `gdist.core.ready`.

        Raises:
            RequestError: `what` cannot be asked for, or will never be there.
        """
        with self._lock:
            names, here = self._names, frozenset(self._here)
        return ready(what, names, here)

    def _change(self, **values: Any) -> None:  # Any: fields of a status
        self._status = replace(self._status, **values)

    def _take(self, event: Event) -> None:
        status = self._status
        match event:
            case StageStarted():
                self._change(stage=event.stage)
            case MetadataReceived():
                self._change(info_hash=event.info_hash.hex, release=event.name)
            case Planned() | ReshardPlanned() | MovePlanned():
                self._planned = self._moved
                placed = event.bytes_resumed
                self._change(tensors=event.tensors, bytes_wanted=event.bytes_wanted, bytes_placed=placed)
            case TensorsPlanned():
                self._names = event.names
                self._ready_now()
            case TensorReady():
                self._here.add(event.tensor)
                self._ready_now()
            case Note():
                self._change(note=event.text)
            case PieceVerified():
                self._change(pieces=status.pieces + 1)
            case HashFailed():
                self._change(hash_failures=status.hash_failures + 1)
            case PeerBanned() | TrackerAnswer(ok=False):
                self._change(transfer_errors=status.transfer_errors + 1)
            case PeerCount():
                self._change(peers=event.peers)
            case Progress() | ReshardProgress() | MoveProgress() | ClusterProgress():
                self._change(**_progress(event, self._moved - self._planned))
                self._change(binds=self._binds_of(event))
            case Finished():
                self._finish(event)

    def _binds_of(self, event: Progress | ReshardProgress | MoveProgress | ClusterProgress) -> Binds:
        """What binds: where the run says that it is the network, the cluster knows which."""
        if isinstance(event, ClusterProgress):
            self._network = event.binds
            return event.binds if self._status.binds in _NETWORKS else self._status.binds
        return self._network if event.binds is Binds.NETWORK else event.binds

    def _ready_now(self) -> None:
        while self._next < len(self._names) and self._names[self._next] in self._here:
            self._next += 1
        following = self._names[self._next] if self._next < len(self._names) else ""
        self._change(tensors_ready=min(len(self._here), self._status.tensors), next_tensor=following)

    def _finish(self, event: Finished) -> None:
        self._end = self._clock()
        self._here.update(self._names)  # of a store that was complete already no tensor was told
        wanted = self._status.bytes_wanted or event.nbytes
        self._change(
            stage=Stage.DONE,
            tensors=len(self._names),
            tensors_ready=len(self._names),
            dest=event.path,
            bytes_wanted=wanted,
            bytes_placed=wanted,
            wan_rate=0,
            lan_in_rate=0,
            lan_out_rate=0,
            leased=0,
            next_tensor="",
        )


def _progress(
    event: Progress | ReshardProgress | MoveProgress | ClusterProgress, seconds: float
) -> Mapping[str, Any]:  # Any: see _change
    match event:
        case Progress():
            return {
                "bytes_placed": event.bytes_placed,
                "bytes_wanted": event.bytes_wanted,
                "wan_bytes": event.downloaded,
                "wan_rate": event.download_rate,
                "peers": event.peers,
            }
        case ReshardProgress():
            return {
                "bytes_placed": event.bytes_placed,
                "bytes_wanted": event.bytes_wanted,
            }
        case MoveProgress():
            return {
                "bytes_placed": event.bytes_placed,
                "bytes_wanted": event.bytes_wanted,
                "wan_rate": 0,
                "lan_in_bytes": event.bytes_wire,
                "lan_in_rate": round(event.bytes_wire / max(seconds, 1e-3)),
                "lan_out_bytes": event.bytes_sent,
                "lan_out_rate": round(event.bytes_sent / max(seconds, 1e-3)),
                "held_bytes": 0,
            }
    return {
        "wan_rate": event.wan_rate,
        "lan_in_rate": event.lan_in_rate,
        "lan_out_rate": event.lan_out_rate,
        "held_bytes": event.held_bytes,
        "leased": event.leased_pieces,
    }
