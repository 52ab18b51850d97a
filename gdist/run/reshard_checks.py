"""What is looked at before a reshard begins: the destination, and the memory it may take."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from math import prod

from gdist.core.plan import HostPlan
from gdist.core.reshard import Grain, Share
from gdist.core.store_manifest import Step, StoreManifest, parse_store_manifest
from gdist.core.store_parts import steps_differ
from gdist.core.units import format_bytes
from gdist.errors import RequestError, ResumeError
from gdist.run.destination import Destination, check_cut, check_unfinished, read_manifest
from gdist.stores import files_of

MAX_WORKERS = 4
MOST_UNIT_BYTES = 256 * 2**20  # more only keeps the workers from sharing the work evenly
MOST_WRITE_BYTES = 16 * 2**20  # an inner chunk
LEAST_WRITE_BYTES = 2**16  # less only makes more of them
COPIES = 3  # of a chunk that TensorStore decodes: as stored, decoded, and ours
NAMED = 8  # tensors in the sentence of an error


def share_memory(plan: HostPlan, grains: Sequence[Grain], memory: int, *, maps: bool, staged: bool) -> Share:
    """How `memory` is shared: workers, the bytes that each may hold of the source, and of one write.

    Half of it is for shards on their way to a bucket, where there are such (`staged`). What is mapped
    (`maps`) takes none of it, but is bounded all the same: what workers read should stay in the page cache.

    Raises:
        RequestError: when it is too little for anything, or naming all tensors whose chunks cannot be held.
    """
    if memory < LEAST_WRITE_BYTES:
        raise RequestError(
            f"{memory} bytes of memory are less than one write takes, {LEAST_WRITE_BYTES}",
            hint="give --memory 64KiB or more",
        )
    workers, write, free = _split(memory, staged=staged)
    if maps:
        return Share(min(memory // workers, MOST_UNIT_BYTES), write, workers)
    sizes = {
        p.tensor.spec.name: p.tensor.spec.dtype.itemsize * prod(map(min, grain.chunk, p.grid.shape))
        for p, grain in zip(plan.tensors, grains, strict=True)
        if p.shards
    }
    largest = max(sizes.values(), default=1)
    if COPIES * largest > free:
        over = [name for name, nbytes in sizes.items() if COPIES * nbytes > free]
        more = f" and {len(over) - NAMED} more" if len(over) > NAMED else ""
        enough = bisect_left(
            range(2**40), True, key=lambda mib: _split(mib * 2**20, staged=staged)[2] >= COPIES * largest
        )
        raise RequestError(
            f"chunks of up to {format_bytes(largest)} of {len(over)} tensors are too large for "
            f"{format_bytes(memory)} of memory, of which {format_bytes(max(0, free))} are left for {COPIES} "
            f"copies of each: {', '.join(over[:NAMED])}{more}",
            hint=f"they can only be decoded whole: give --memory {enough}MiB",
            tensors=tuple(over),
        )
    workers = max(1, min(workers, free // (COPIES * largest)))
    return Share(min(free // (COPIES * workers), MOST_UNIT_BYTES), write, workers)


def _split(memory: int, *, staged: bool) -> tuple[int, int, int]:
    """Of so much memory: workers, bytes of a write, and what is left for chunks that are decoded."""
    workers = max(1, min(MAX_WORKERS, os.cpu_count() or 1, memory // (4 * 2**20)))
    write = max(LEAST_WRITE_BYTES, min(MOST_WRITE_BYTES, memory // (4 * workers)))
    return workers, write, memory // (2 if staged else 1) - workers * write


def finished(dest: Destination, plan: HostPlan, codec: str, steps: Sequence[Step]) -> StoreManifest | None:
    """The manifest of this plan's store, complete at the destination; None when this host has none there.

    Raises:
        ResumeError: when the store there is another job's.
        CorruptError: when its manifest is damaged.
    """
    data = read_manifest(dest)
    if data is None:
        return None
    found = parse_store_manifest(data, f"{dest.text}/{dest.manifest}")
    if (found.plan, found.codec) != (plan.digest, codec):
        raise _another(dest, plan, codec, steps, found)
    return found


def check_neighbours(dest: Destination, plan: HostPlan, codec: str, steps: Sequence[Step]) -> None:
    """That all other hosts that work at this destination, or did, do the same job.

    Raises:
        ResumeError: when one does another.
    """
    check_unfinished(dest, plan.host)
    files = files_of(dest.text)
    ours = (plan.host.count, plan.mesh.splitting, codec, _identities(steps))
    for name in files.manifests():
        data = files.read(name)
        if name == dest.manifest or data is None:
            continue
        found = parse_store_manifest(data, f"{dest.text}/{name}")
        if (found.host.count, found.mesh.splitting, found.codec, found.steps) != ours:
            raise _another(dest, plan, codec, steps, found)
        check_cut([found], plan)


def _identities(steps: Sequence[Step]) -> tuple[tuple[str, str], ...]:
    return tuple((step.kind, step.identity) for step in steps)


def _another(
    dest: Destination, plan: HostPlan, codec: str, steps: Sequence[Step], found: StoreManifest
) -> ResumeError:
    """That what is there is another job's, with what differs."""
    rows = (
        ("on mesh {}", str(found.mesh), str(plan.mesh)),
        ("with codec {}", found.codec, codec),
        ("of {} hosts", str(found.host.count), str(plan.host.count)),
    )
    differ = [f"{words.format(there)}, not {ours}" for words, there, ours in rows if there != ours]
    if way := steps_differ(found.resharded, steps, "not"):
        differ.append(f"made from another source: {way}")
    what = "; ".join(differ) or "cut otherwise, or made before its source changed"
    return ResumeError(
        f"{dest.text} holds a store {what}",
        hint="choose another destination, or delete this one; all hosts need the same sources and gdist",
    )
