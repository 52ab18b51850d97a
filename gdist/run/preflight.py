"""Whether the disk can hold the result, before a byte is fetched."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from gdist.core.convert import disk_for_staging
from gdist.core.placer import Placer
from gdist.core.plan import HostPlan, ShardTask
from gdist.errors import SpaceError

MOST_IN_FLIGHT_BYTES = 256 * 2**20  # pieces on their way: enough for any wire, little for any disk
LEAST_IN_FLIGHT_PIECES = 8
BURST_BYTES = 64 * 2**20
DOCUMENT_BYTES = 2**20
STAGED_SHARDS = 16  # waiting here on their way to a bucket
LEAST_SHARD_BYTES = 16 * 2**20


def shard_limit(memory: int, *, staged: bool) -> int | None:
    """Most bytes of a shard: where a target takes it whole it is held in memory, twice with what is coded."""
    return max(memory // 8, LEAST_SHARD_BYTES) if staged else None


def in_flight_limit(plan: HostPlan) -> int:
    """Bytes of verified pieces that may wait on disk before the download pauses for the conversion.

    A fortieth of the store, so that the disk's high-water mark stays near the store's own size.
    """
    least = LEAST_IN_FLIGHT_PIECES * plan.payload.piece_length
    return max(min(MOST_IN_FLIGHT_BYTES, plan.store_nbytes // 40), least)


def disk_needed(plan: HostPlan, payload: str, payload_nbytes: int) -> int:
    """Bytes of disk a fetch needs at its highest, from nothing; `payload_nbytes` is what one host keeps."""
    store_nbytes = plan.store_nbytes + disk_for_staging(plan)
    if payload == "keep":
        kept = payload_nbytes if plan.host.count == 1 else plan.bytes_touched
        return store_nbytes + kept + DOCUMENT_BYTES
    return store_nbytes + min(_in_flight(plan), plan.bytes_touched) + DOCUMENT_BYTES


def _in_flight(plan: HostPlan) -> int:
    """What may wait, as much again, and what a fast wire brings before a pause is felt."""
    return 2 * in_flight_limit(plan) + BURST_BYTES


def check_space(
    plan: HostPlan,
    placer: Placer,
    payload: str,
    payload_nbytes: int,
    directory: Path,
    partial: Collection[ShardTask],
    *,
    staged: bool,
) -> None:
    """That the disk of `directory` can hold what is still to come.

    `partial` shards are preallocated already. `staged` is true where shards only wait here, on their way to
    a bucket; then just the larger ones count.

    Raises:
        SpaceError: with the numbers.
    """
    made = {task for task in partial if plan.tensors[task.tensor].tensor.factors}  # not in their place yet
    here = sum(plan.tensors[t.tensor].layout().file_nbytes for t in {*placer.whole(), *partial} - made)
    needed = disk_needed(plan, payload, payload_nbytes) - here
    if staged:
        needed = staging_needed(plan) + disk_for_staging(plan) + _in_flight(plan)
    elif payload == "keep":
        needed -= _allocated(directory.parent / "payload")
    check_free(directory, needed, "fetch", share=plan.host.count > 1)


def check_rest(
    directory: Path, plan: HostPlan, there: Collection[ShardTask], doing: str, *, staged: bool
) -> None:
    """The same, where shards are made of what is here or comes from hosts; those `there` take no more.

    Raises:
        SpaceError: with the numbers.
    """
    needed = plan.store_nbytes - sum(plan.tensors[t.tensor].layout().file_nbytes for t in there)
    if staged:
        needed = min(needed, staging_needed(plan))
    check_free(directory, needed + DOCUMENT_BYTES, doing)


def staging_needed(plan: HostPlan) -> int:
    """Bytes of disk for the shards that wait on their way to a bucket."""
    sizes = sorted((p.layout().file_nbytes for p in plan.tensors if p.shards), reverse=True)
    return sum(sizes[:STAGED_SHARDS])


def check_free(directory: Path, needed: int, doing: str, *, share: bool = False) -> None:
    """That a disk has so many bytes free; `share` is true where they are of one host of several.

    Raises:
        SpaceError: with the numbers.
    """
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise SpaceError(
            f"the {doing} needs {needed:,} more bytes of disk at {directory}, {free:,} are free",
            hint="choose a destination with more space, or "
            + ("more hosts" if share else "fetch a share: --mesh and --host"),
            needed=needed,
            free=free,
        )


def _allocated(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
