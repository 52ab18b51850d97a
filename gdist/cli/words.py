"""Events in words, the same on a terminal and in a log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gdist.core.status import MemberState
from gdist.core.store_manifest import StoreManifest
from gdist.core.text import count as count
from gdist.core.text import numbers
from gdist.core.units import format_bytes, format_rate, format_seconds
from gdist.events import (
    Binds,
    ClusterProgress,
    Finished,
    MemberChanged,
    MovePlanned,
    MoveProgress,
    Planned,
    Progress,
    ReshardPlanned,
    ReshardProgress,
    Stage,
)

Plan = Planned | ReshardPlanned | MovePlanned

STAGES = {
    Stage.JOIN: "looking for the other hosts",
    Stage.METADATA: "looking for peers and metadata",
    Stage.HEADERS: "reading headers",
    Stage.PLAN: "planning",
    Stage.FETCH: "fetching",
    Stage.RESHARD: "resharding",
    Stage.EXCHANGE: "exchanging with the other hosts",
    Stage.FINISH: "writing the manifest",
    Stage.SERVE: "complete, and serving other hosts",
    Stage.DONE: "done",
    Stage.FAILED: "failed",
}
BINDS = {
    Binds.NETWORK: "network",
    Binds.LAN: "network between hosts",
    Binds.CONVERT: "hash and place",
    Binds.DISK: "disk",
    Binds.WAITING: "waiting for other hosts",
}
RESHARD_BINDS = {**BINDS, Binds.CONVERT: "read and place"}


def planned(event: Plan) -> str:
    """The plan in one line."""
    host = f", host {event.host_index} of {event.host_count}" if event.host_count > 1 else ""
    resumed = f", {format_bytes(event.bytes_resumed)} already here" if event.bytes_resumed else ""
    if isinstance(event, ReshardPlanned):
        brought = f"reads {format_bytes(event.bytes_read)} in {count(event.reads, 'part')}"
        if event.bytes_beyond:
            brought += f", {format_bytes(event.bytes_beyond)} of it beyond what it keeps"
    elif isinstance(event, MovePlanned):
        brought = f"gets {format_bytes(event.bytes_received)} from other hosts"
    else:
        brought = f"fetches {format_bytes(event.bytes_touched)} in {count(event.pieces, 'piece')}"
    return (
        f"{count(event.tensors, 'tensor')} on mesh {event.mesh}{host}: "
        f"keeps {format_bytes(_kept(event))}, {brought}{resumed}"
    )


def _kept(event: Plan) -> int:
    """Bytes of tensors that the host keeps, which a fetch may have converted on the way."""
    return (event.bytes_kept if isinstance(event, Planned) else 0) or event.bytes_wanted


def rates(event: Progress | ReshardProgress | MoveProgress, cluster: ClusterProgress | None = None) -> str:
    """Rates outside, peers, and what keeps it from being faster; of the network the cluster knows which."""
    if isinstance(event, MoveProgress):
        return f"from other hosts {format_bytes(event.bytes_received)}   binds: {BINDS[event.binds]}"
    if isinstance(event, ReshardProgress):
        return f"read {format_bytes(event.bytes_read)}   binds: {RESHARD_BINDS[event.binds]}"
    binds = cluster.binds if cluster and event.binds is Binds.NETWORK else event.binds
    plural = "s" if event.seeds > 1 else ""
    seeds = f" ({event.seeds} seed{plural})" if event.seeds else ""
    text = f"in {format_rate(event.download_rate)}"
    if event.uploaded or event.upload_rate:
        text += f"   out {format_rate(event.upload_rate)}"
    text += f"   peers {event.peers}{seeds}   binds: {BINDS[binds]}"
    if event.wasted:
        text += f"   wasted {format_bytes(event.wasted)}"
    return text


def hosts(event: ClusterProgress) -> str:
    """Who is there, what came into the cluster, and who is last, or waited for."""
    inside = f"   inside {share(event.inside_bytes, event.union_bytes)} of {format_bytes(event.union_bytes)}"
    slowest = f"   slowest host {event.slowest}" if event.slowest is not None else ""
    return (
        f"hosts {event.live + event.done} of {event.hosts}, {event.done} done"
        f"{inside if event.union_bytes else ''}{slowest}{_waited_for(event)}"
    )


def _waited_for(event: ClusterProgress) -> str:
    if not event.waits_for:
        return ""
    who = numbers(event.waits_for, 30)
    one = len(event.waits_for) == 1
    return f"   waits for {f'host {who}, which is' if one else f'hosts {who}, which are'} not here"


def between(event: ClusterProgress) -> str:
    """What goes between this host and the others."""
    held = f"   holds {format_bytes(event.held_bytes)}" if event.held_bytes else ""
    leased = f"   brings in {count(event.leased_pieces, 'piece')}" if event.leased_pieces else ""
    return f"in {format_rate(event.lan_in_rate)}   out {format_rate(event.lan_out_rate)}{held}{leased}"


class Members:
    """What is worth saying of hosts that come and go: of thousands that come, nothing."""

    def __init__(self) -> None:
        self._gone: set[int] = set()
        self._complete: set[int] = set()

    def text(self, event: MemberChanged) -> str:
        """A line when a host is lost, leaves before it is done, or comes back; else nothing."""
        if event.state in (MemberState.LOST, MemberState.LEFT):
            if event.state is MemberState.LEFT and event.index in self._complete:
                return ""
            self._gone.add(event.index)
            how = "says nothing any more" if event.state is MemberState.LOST else "left before it was done"
            return f"host {event.index} ({event.address}) {how}: others take over what it was to bring in"
        if event.state is MemberState.DONE:
            self._complete.add(event.index)
        else:
            self._complete.discard(event.index)
        if event.index in self._gone:
            self._gone.discard(event.index)
            return f"host {event.index} ({event.address}) is back"
        return ""


def share(done: int, total: int) -> str:
    """`52.1%`; 100% only when it is all."""
    if done >= total:
        return "100%"
    return f"{min(100 * done / total, 99.9):.1f}%"


def remaining(seconds: float | None) -> str:
    """Time left in whole seconds, or that it is not known."""
    if seconds is None:
        return "--"
    return f"{math.ceil(seconds)} s" if seconds < 59 else format_seconds(seconds)


def finished(event: Finished, plan: Plan | None = None) -> str:
    """The end in one line: what this host keeps, and the rate of what this run fetched of it."""
    if event.already:
        return f"{event.path} is complete already: {format_bytes(event.nbytes)}"
    kept = _kept(plan) if plan else event.nbytes
    new = kept * (1 - plan.bytes_resumed / plan.bytes_wanted) if plan and plan.bytes_wanted else kept
    rate = format_rate(new / event.seconds) if event.seconds else "--"
    part = ""
    if plan and plan.host_count > 1:
        part = f" of {format_bytes(event.nbytes)} on host {plan.host_index} of {plan.host_count}"
    return f"complete: {format_bytes(kept)}{part} in {format_seconds(event.seconds)}, {rate}"


def kept_nbytes(manifest: StoreManifest) -> int:
    """Bytes of tensors in the shards of this host."""
    return sum(len(t.shards) * math.prod(t.grid.shard) * t.dtype.itemsize for t in manifest.tensors)


def timing(event: Finished) -> str:
    """Where the time went, the longest first: seconds of all threads, more than the run's; may be empty."""
    worth = [(name, seconds) for name, seconds in event.timing if seconds >= 0.05][:4]
    if not worth:
        return ""
    return "threads' time went to: " + " · ".join(
        f"{name} {format_seconds(seconds)}" for name, seconds in worth
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Lines of aligned columns; those in `right` end together."""
    all_rows = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in all_rows) for column in range(len(head))]
    flush = set(right)
    return [
        "  ".join(
            cell.rjust(width) if column in flush else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in all_rows
    ]
