"""What happened: frozen records of facts already true, numbers without wording.

An `Observer` is called with each, in order, on the coordinator's thread (the caller's); so it needs no
lock, and must return soon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gdist.core.magnet import InfoHash
from gdist.core.status import Binds as Binds
from gdist.core.status import MemberState
from gdist.core.status import Stage as Stage


@dataclass(frozen=True, slots=True)
class Event:
    """Root of all events."""


Observer = Callable[[Event], None]


# --- source ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetadataReceived(Event):
    """The torrent's files and pieces are known: payload bytes and number of pieces."""

    info_hash: InfoHash
    name: str
    nbytes: int
    pieces: int


@dataclass(frozen=True, slots=True)
class PieceVerified(Event):
    """A piece arrived and its hash is right."""

    piece: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class HashFailed(Event):
    """A piece arrived with wrong bytes; it is fetched again."""

    piece: int


@dataclass(frozen=True, slots=True)
class PeerBanned(Event):
    """A peer (`host:port`) sent wrong bytes and is not asked again."""

    peer: str


@dataclass(frozen=True, slots=True)
class TrackerAnswer(Event):
    """A tracker answered: with `peers` addresses when `ok`, else with an error `message`."""

    url: str
    ok: bool
    message: str
    peers: int


@dataclass(frozen=True, slots=True)
class PeerCount(Event):
    """Connected peers, and those of them that have everything, when either number changed."""

    peers: int
    seeds: int


# --- run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageStarted(Event):
    """A run enters a stage."""

    stage: Stage


@dataclass(frozen=True, slots=True)
class Waiting(Event):
    """A stage in which little happens goes on, `seconds` since it began: the run is alive, and waits."""

    stage: Stage
    seconds: float


@dataclass(frozen=True, slots=True)
class Note(Event):
    """Something was repaired, dropped or chosen on the user's behalf; `text` says what."""

    text: str


@dataclass(frozen=True, slots=True)
class Planned(Event):
    """What this host will do: tensors, shards and pieces, bytes kept, fetched, and already there.

    `bytes_wanted` and what follows are of the payload; of the tensors as they are kept, converted or not, are
    `bytes_kept` (0: as many as are wanted), and `store_nbytes` with their files' indexes and padding.
    """

    tensors: int
    shards: int
    pieces: int
    bytes_wanted: int
    bytes_touched: int
    bytes_resumed: int
    store_nbytes: int
    mesh: str
    host_index: int
    host_count: int
    bytes_kept: int = 0


@dataclass(frozen=True, slots=True)
class TensorsPlanned(Event):
    """The names of all tensors that a run brings, in loading order.

    It follows `Planned`, or comes before `Finished` where all was complete already.
    """

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReshardPlanned(Event):
    """What a reshard will do on this host: bytes kept, read, read in vain, and already there.

    `bytes_beyond` are read because a chunk of the source can only be read whole; `reads` are such chunks, or
    boxes of plain files.
    """

    tensors: int
    shards: int
    reads: int
    bytes_wanted: int
    bytes_read: int
    bytes_beyond: int
    bytes_resumed: int
    store_nbytes: int
    mesh: str
    host_index: int
    host_count: int


@dataclass(frozen=True, slots=True)
class MovePlanned(Event):
    """What a collective exchange brings to this host: bytes kept, and whence they come.

    `bytes_own` are in this host's even shares, `bytes_received` come from other hosts.
    """

    tensors: int
    shards: int
    bytes_wanted: int
    bytes_own: int
    bytes_received: int
    bytes_resumed: int
    store_nbytes: int
    mesh: str
    host_index: int
    host_count: int


@dataclass(frozen=True, slots=True)
class ShardCommitted(Event):
    """A shard is whole, durable and has its final name."""

    tensor: str
    index: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorReady(Event):
    """All of this host's shards of a tensor are committed: it can be read from now on.

    `nbytes` are those of its shards here; 0 where this host has none of it.
    """

    tensor: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class AssetKept(Event):
    """A file without tensors was kept under `assets/`."""

    path: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """Where a run stands, about twice a second; bytes, bytes a second, seconds since its start."""

    seconds: float
    bytes_verified: int
    bytes_placed: int
    bytes_wanted: int
    tensors_ready: int
    tensors: int
    download_rate: int
    upload_rate: int
    downloaded: int
    uploaded: int
    peers: int
    seeds: int
    wasted: int
    binds: Binds


@dataclass(frozen=True, slots=True)
class ReshardProgress(Event):
    """Where a reshard stands, about twice a second; bytes, seconds since its start."""

    seconds: float
    bytes_read: int
    bytes_placed: int
    bytes_wanted: int
    tensors_ready: int
    tensors: int
    binds: Binds


@dataclass(frozen=True, slots=True)
class MoveProgress(Event):
    """Where a collective exchange stands, about twice a second; bytes, seconds since the start of the run.

    `bytes_wire` came from other hosts with padding, `bytes_received` of them without; `bytes_sent` went to
    them, with padding.
    """

    seconds: float
    rounds: int
    bytes_received: int
    bytes_wire: int
    bytes_sent: int
    bytes_placed: int
    bytes_wanted: int
    tensors_ready: int
    tensors: int
    binds: Binds


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The store is complete; `timing` says how many seconds each stage, and each kind of work, took.

    Seconds of several threads are added up: together they are more than `seconds`.
    """

    path: str
    nbytes: int
    seconds: float
    already: bool
    timing: tuple[tuple[str, float], ...]


# --- cluster --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemberChanged(Event):
    """A host of the cluster came, fell silent, left or has its part; `address` is its agent's `host:port`."""

    index: int
    state: MemberState
    address: str


@dataclass(frozen=True, slots=True)
class ClusterProgress(Event):
    """Where a cluster stands, as this host knows it; bytes, bytes a second, pieces.

    Of `hosts`, some are `live` and some `done`. Of the `union_bytes` that the hosts need together,
    `inside_bytes` came in. Rates, `held_bytes` (kept for others) and `leased_pieces` (to be brought in from
    outside) are this host's; `slowest` is the host that is furthest behind, None when none is at work;
    then `waits_for` are the hosts that are not complete, and not here.
    """

    hosts: int
    live: int
    done: int
    union_bytes: int
    inside_bytes: int
    wan_rate: int
    lan_in_rate: int
    lan_out_rate: int
    held_bytes: int
    leased_pieces: int
    slowest: int | None
    binds: Binds
    waits_for: tuple[int, ...]
