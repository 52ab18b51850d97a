"""Many tensors at once: threads read, transfers run, and no more than a window of host memory is in use.

    threads read ──▶ ┌ oldest ─────────────────── newest ┐
                     │ on their way │ read │ being read  │  ring
    devices ◀─────── └───────────────────────────────────┘

Tensors keep their order from end to end: so the ring is one buffer that is gone round, and all processes of
a job come to their collectives in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax

from gdist.core.box import Box
from gdist.core.layout import CACHE_LINE
from gdist.loader.arrays import BYTE, Read, carve, reads_of
from gdist.loader.bits import Run, is_movable
from gdist.stores import LazyArray
from gdist.stores.buffers import Array, Bytes, aligned_empty

UNDERWAY = 4  # leaves on their way to devices at once: what they take there besides themselves is not much


class Source(Protocol):
    """How one tensor becomes an array. Boxes are read on threads, the rest is for the coordinator's."""

    tensor: LazyArray
    nbytes: int  # of the ring; 0 when it does not go through it
    shared: bool  # landing is a collective, to which every process has to come

    def boxes(self) -> Sequence[Box]:
        """What has to be read; never fails where the tensor is shared."""
        ...

    def land(self, slabs: Mapping[Box, Array]) -> jax.Array:
        """The array; what is of the ring is free when it is ready."""
        ...

    def land_in_parts(self, memory: Bytes, run: Run) -> jax.Array:
        """The same without reading first, in whatever memory there is; `run` reads."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One leaf of the result: the tensors it is made of, and what makes it of their arrays, if anything."""

    sources: tuple[Source, ...]
    finish: Callable[..., jax.Array] | None = None

    @property
    def nbytes(self) -> int:
        """What it takes of the ring."""
        return sum(source.nbytes for source in self.sources)

    @property
    def is_awaited(self) -> bool:
        """True when devices calculate for it, and hold other arrays while they do."""
        return self.finish is not None or any(source.shared for source in self.sources)


@dataclass(slots=True)
class _Reading:
    job: Job
    slabs: list[dict[Box, Array]]
    reads: list[Future[object]]


class Pipeline:
    """Runs jobs. With `patient`, a failure is raised only after every shared tensor has landed.

    Other processes wait for each of those; what lands after a failure is never given out.
    """

    def __init__(self, memory: int, workers: int, *, patient: bool):
        self._memory = max(memory, CACHE_LINE)  # which holds an element of any type
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="gdist-load")
        self._patient = patient
        self._fault: Exception | None = None
        self._reading: deque[_Reading] = deque()
        self._flying: deque[tuple[Any, bool]] = deque()  # and whether it holds a run of the ring
        self._results: list[Any] = []

    def run(self, jobs: Sequence[Job]) -> list[jax.Array]:
        """The arrays of all jobs, in order."""
        self._ring = Ring(min(self._memory, sum(job.nbytes + CACHE_LINE for job in jobs if job.nbytes)))
        try:
            for job in jobs:
                if job.nbytes > self._ring.nbytes:
                    self._drain()
                    self._land_in_parts(job)
                else:
                    self._start(job)
                while self._reading and all(read.done() for read in self._reading[0].reads):
                    self._land()
            self._drain()
        finally:
            self._pool.shutdown(cancel_futures=True)
        if self._fault:
            raise self._fault
        return self._results

    def _start(self, job: Job) -> None:
        memory = None
        while job.is_awaited and len(self._reading) >= UNDERWAY:
            self._retire()
        while job.nbytes and (memory := self._ring.take(job.nbytes)) is None:
            self._retire()
        begun = _Reading(job, [], [])
        self._reading.append(begun)
        for source in job.sources:
            boxes = source.boxes() if source.shared else self._attempt(source.boxes) or ()
            part = None
            if source.nbytes and memory is not None:
                part, memory = memory[: source.nbytes], memory[source.nbytes :]
            slabs = carve(part, boxes, source.tensor.dtype)
            begun.slabs.append(slabs)
            for box, out in slabs.items():
                begun.reads += self._submit(self._attempt(reads_of, source.tensor, box, out) or ())

    def _submit(self, reads: Iterable[Read]) -> list[Future[object]]:
        return [] if self._fault else [self._pool.submit(read) for read in reads]

    def _wait(self, reads: Iterable[Future[object]]) -> None:
        for read in reads:
            self._attempt(read.result)

    def _land(self) -> None:
        begun = self._reading.popleft()
        self._wait(begun.reads)
        pairs = zip(begun.job.sources, begun.slabs, strict=True)
        arrays = [self._landed(source, partial(source.land, slabs)) for source, slabs in pairs]
        self._finish(begun.job, arrays, of_ring=begun.job.nbytes > 0)

    def _land_in_parts(self, job: Job) -> None:
        def run(reads: Iterable[Read]) -> None:
            self._wait(self._submit(reads))

        arrays = []
        for source in job.sources:
            dtype = source.tensor.dtype
            if is_movable(dtype):
                land = partial(source.land_in_parts, self._ring.buffer, run)
            else:  # nothing puts it together on a device: it has to be held whole
                slabs = carve(None, source.boxes(), dtype)
                for box, out in slabs.items():
                    run(reads_of(source.tensor, box, out))
                land = partial(source.land, slabs)
            arrays.append(self._landed(source, land))
        self._finish(job, arrays, of_ring=False)

    def _landed(self, source: Source, land: Callable[[], jax.Array]) -> jax.Array | None:
        return land() if source.shared else self._attempt(land)

    def _finish(self, job: Job, arrays: Sequence[jax.Array | None], *, of_ring: bool) -> None:
        result = self._attempt(job.finish, *arrays) if job.finish else arrays[0]
        self._results.append(result)
        if of_ring or job.is_awaited:
            self._flying.append((arrays if result is None else result, of_ring))
        while len(self._flying) > UNDERWAY:
            self._retire()

    def _retire(self) -> None:
        """Waits for the oldest, or lands the oldest that is read."""
        if self._flying:
            arrays, of_ring = self._flying.popleft()
            jax.block_until_ready(arrays)  # type: ignore[no-untyped-call]
            if of_ring:
                self._ring.give_back()
        else:
            self._land()

    def _drain(self) -> None:
        while self._flying or self._reading:
            self._retire()

    def _attempt(self, call: Callable[..., Any], *arguments: object) -> Any:
        """What a call gives; None where something has failed, and is raised when all others were met."""
        if self._fault:
            return None
        try:
            return call(*arguments)
        except Exception as error:
            if not self._patient:
                raise
            self._fault = error
            return None


class Ring:
    """One buffer, given out in runs that come back in the order in which they were taken."""

    def __init__(self, nbytes: int):
        self.nbytes = nbytes
        self.buffer = aligned_empty((nbytes,), BYTE)
        self._taken: deque[tuple[int, int]] = deque()

    def take(self, nbytes: int) -> Bytes | None:
        """An aligned run of that many bytes, or None until something has come back."""
        first, last = (self._taken[0][0], self._taken[-1][1]) if self._taken else (self.nbytes, 0)
        start = -(-last // CACHE_LINE) * CACHE_LINE
        limit = self.nbytes
        if self._taken and start <= first:  # it has gone round
            limit = first
        elif start + nbytes > limit:
            start, limit = 0, first
        if start + nbytes > limit:
            return None
        self._taken.append((start, start + nbytes))
        return self.buffer[start : start + nbytes]

    def give_back(self) -> None:
        """The oldest run is free."""
        self._taken.popleft()
