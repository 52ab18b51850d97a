"""From a store to `jax.Array`s one by one, in loading order, also while a fetch still writes the store.

One thread runs ahead of the caller, by a tensor or two: it waits for shards, compares digests, and has what
this process's devices hold ready in host memory. Everything that is JAX's happens on the caller's thread, in
the same order in every process.

    fetch:   ... commits layer 3 ─▶ journal
    thread:                            └▶ finds layer 3, checks it, maps or copies it   (AHEAD at most)
    caller:  for path, array in gdist.stream(...):  ◀── layer 2, on its devices
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from gdist.core.box import Box
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.core.units import parse_seconds
from gdist.errors import RequestError
from gdist.kvstore import local_path
from gdist.loader.alike import check_replicas, release_of
from gdist.loader.arrays import array_of
from gdist.loader.load import Select, _refuse_wide, _selected, concerned, is_choice
from gdist.loader.names import Rename, RenameLike, table_or_names
from gdist.loader.notices import Notices
from gdist.loader.quantized import QuantizedWeight8bit
from gdist.loader.shardings import MeshLike, RulesLike, device_mesh, local_boxes, shardings_on
from gdist.loader.team import Team
from gdist.loader.trees import lay_on, match_target
from gdist.loader.wanted import described
from gdist.stores import LazyArray, Store
from gdist.stores import open as open_store
from gdist.stores.agreement import Words
from gdist.stores.buffers import Array
from gdist.stores.growing import Growing

AHEAD = 2  # tensors that are read before the caller asks for them; what waits is in host memory
STREAMING = Words(
    doing="stream",
    hint="call gdist.stream with the same arguments, and parts of one store, on every process",
)

_T = TypeVar("_T")


@runtime_checkable
class Job(Protocol):
    """A fetch in this process; `gdist.fetching` gives one."""

    def __fspath__(self) -> str:
        """Where it writes to."""
        ...

    def check(self) -> None:
        """Raises what the fetch raised, if it did."""
        ...

    def result(self) -> object:
        """Waits until the store is complete."""
        ...


class _Left(Exception):
    """The caller wants no more; ends the thread."""


@dataclass(frozen=True)
class _Step:
    """What is yielded at once: one array (its field is ""), or the weight and the scales of a pair.

    `boxes` are those that this process's devices hold, by tensor.
    """

    path: str
    fields: Mapping[str, tuple[StoreTensor, jax.sharding.Sharding]]
    boxes: Mapping[str, frozenset[Box]]


def stream(
    store: str | os.PathLike[str] | Store | Job,
    *,
    mesh: MeshLike = None,
    rules: RulesLike = None,
    target: Any = None,
    select: Select | None = None,
    rename: RenameLike = None,
    verify: bool = True,
    timeout: float | str = "10m",
    start_timeout: float | str = "30s",
) -> Generator[tuple[str, Any], None, None]:
    """`(path, array)` for every tensor, in loading order, each as soon as it is there.

    `store` may be complete, or a local directory that a fetch writes to, in this process or another, now or
    soon: then a tensor is yielded once the shards that this process's devices need are committed. A
    `gdist.fetching` job is such a directory, whose errors are raised here, and without `select` the iteration
    ends when its store is complete.

    `path` is the tensor's name, or the common name of a quantised pair, which is one `QuantizedWeight8bit`.
    With `target` it is the path of a leaf, joined by `.`. The order is the fetch's: embedding, layer 0, 1, 2,
    ..., the same in every process. `mesh` to `verify` are those of `load`; digests are compared tensor by
    tensor, but `rename` is no table here. Times are seconds or texts like `5m`: `timeout` is how long a fetch
    may run and commit nothing, `start_timeout` how long none may run, before the first or after one was
    killed.

    Where the devices belong to several processes, all of them have to call: they agree before the first array
    on the release, the tensors and their order, and how they are cut. One that fails later is heard of by
    those that wait for a tensor then.

    Raises:
        RequestError, CorruptError: as `load`, of a damaged tensor when it is its turn.
        TransferError: no fetch runs that could bring what is missing.
        StalledError: the fetch commits nothing.
        GdistError: whatever ended a job's fetch.
    """
    job = store if isinstance(store, Job) else None
    stop = threading.Event()

    def tick() -> None:
        if stop.is_set():
            raise _Left
        if job:
            job.check()
        notices.check()

    team = Team(concerned(mesh, target), STREAMING)
    notices = Notices(team)
    told = {"another release": "", "other tensors or shardings": ""}
    opened: _Opened | None = None
    try:
        with team.together(told):
            table, names = table_or_names(rename, target)
            if table:
                raise RequestError(
                    "stream gives tensors as they are stored, and takes no renaming table",
                    hint="gdist.load takes one",
                )
            limits = parse_seconds(timeout, "timeout"), parse_seconds(start_timeout, "start_timeout")
            opened = _open(store, verify, limits, tick)
            source = opened.store
            steps = _steps(source.manifest, mesh, rules, target, select, names)
            if opened.all_known:
                for step in steps:
                    source.check_listed(step.boxes)
            if team.meets:
                fields = (field for step in steps for field in step.fields.values())
                told["another release"] = release_of(source.manifest)
                told["other tensors or shardings"] = described(fields)
        check_replicas(team, source.manifest)
        with notices.telling():
            yield from _streamed(opened, steps, tick, stop)
            if job and select is None:
                job.result()
    finally:
        if opened is not None:
            opened.close()


@dataclass(frozen=True)
class _Opened:
    """A store, and the means to wait for it where it lies in a directory; or one that the caller opened."""

    store: Store
    growing: Growing | None = None
    callers: bool = False

    @property
    def all_known(self) -> bool:
        """False while nobody knows yet what will be there."""
        return self.growing is None or self.growing.complete

    def forget(self) -> None:
        """Closes its maps: what was read keeps its own."""
        if not self.callers:
            self.store.close()

    def close(self) -> None:
        """Gives back what is held."""
        if self.growing:
            self.growing.close()
        self.forget()


def _streamed(
    opened: _Opened, steps: Sequence[_Step], tick: Callable[[], None], stop: threading.Event
) -> Generator[tuple[str, Any], None, None]:
    source = opened.store

    def read(step: _Step) -> dict[str, _Held]:
        tick()
        if opened.growing:
            opened.growing.wait(step.boxes)
        source.check(step.boxes)
        held = {name: _Held(source[name], boxes) for name, boxes in step.boxes.items()}
        opened.forget()  # what is held keeps its maps; the others are not needed again
        return held

    moving: list[jax.Array] = []
    with closing(_read_ahead(read, steps, stop)) as ahead:
        for step in steps:
            value, arrays = _built(step, next(ahead))
            for array in moving:
                array.block_until_ready()  # its host memory is free now
            moving = [array for array in arrays if not _on_cpu(array)]
            del arrays
            yield step.path, value
            del value  # the caller may have let go of it


def _open(
    store: str | os.PathLike[str] | Store | Job,
    verify: bool,
    limits: tuple[float, float],
    tick: Callable[[], None],
) -> _Opened:
    if isinstance(store, Store):
        return _Opened(store, callers=True)
    where = os.fspath(store)
    root = local_path(where)
    if root is not None:
        stall, start = limits
        growing = Growing(root, verify=verify, stall_seconds=stall, start_seconds=start, tick=tick)
        return _Opened(growing.store, growing)
    if isinstance(store, Job):
        raise RequestError(
            f"a fetch into {where} cannot be streamed while it runs",
            hint="fetch into a local directory, or stream the store when it is complete",
        )
    return _Opened(open_store(where, verify=verify))


def _steps(
    manifest: StoreManifest,
    mesh: MeshLike,
    rules: RulesLike,
    target: Any,
    select: Select | None,
    rename: Rename | None,
) -> list[_Step]:
    """All that will be yielded, in loading order.

    Raises:
        RequestError: for what `load` refuses.
    """
    tensors = _selected(manifest.tensors, select)
    _refuse_wide(tensors)
    some = is_choice(manifest, select)
    shardings: Mapping[str, jax.sharding.Sharding]
    steps: list[tuple[str, dict[str, tuple[StoreTensor, jax.sharding.Sharding]]]] = []
    if target is None:
        shardings = shardings_on(device_mesh(mesh, manifest), tensors, rules, some=some)
        halves = Counter(t.quantisation.pair for t in tensors if t.quantisation)
        pairs: dict[str, dict[str, tuple[StoreTensor, jax.sharding.Sharding]]] = {}
        for tensor in tensors:
            placed = tensor, shardings[tensor.name]
            half = tensor.quantisation
            if half is None or halves[half.pair] != 2:
                steps.append((tensor.name, {"": placed}))
            elif half.pair in pairs:
                pairs[half.pair][half.role] = placed
            else:
                pairs[half.pair] = {half.role: placed}
                steps.append((half.pair, pairs[half.pair]))
    else:
        leaves, _ = match_target(target, tensors, rename)
        leaves = lay_on(lambda: device_mesh(mesh, manifest), leaves)
        places = {tensor.name: place for place, tensor in enumerate(tensors)}
        leaves.sort(key=lambda leaf: places[leaf.tensor.name])
        rest = {leaf.tensor.name: leaf.tensor for leaf in leaves if leaf.sharding is None}
        some = some or len(rest) < len(places)
        shardings = shardings_on(device_mesh(mesh, manifest), rest.values(), rules, some=some) if rest else {}
        for leaf in leaves:
            steps.append((leaf.path, {"": (leaf.tensor, leaf.sharding or shardings[leaf.tensor.name])}))
    return _with_boxes(steps)


def _with_boxes(
    steps: Iterable[tuple[str, Mapping[str, tuple[StoreTensor, jax.sharding.Sharding]]]],
) -> list[_Step]:
    alike = cache(local_boxes)  # many tensors share shape and sharding
    found, faults = [], []
    for path, fields in steps:
        boxes: dict[str, frozenset[Box]] = {}
        for tensor, sharding in fields.values():
            try:
                boxes[tensor.name] = frozenset(alike(sharding, tensor.shape))
            except ValueError as error:
                faults.append(f"{tensor.name!r}: {error}")
        found.append(_Step(path, fields, boxes))
    if faults:
        raise RequestError(
            f"shardings do not fit {len(faults)} tensors: {'; '.join(faults)}", faults=tuple(faults)
        )
    return found


def _built(step: _Step, held: Mapping[str, _Held]) -> tuple[Any, list[jax.Array]]:
    """What is yielded for a step, and the arrays in it."""
    arrays = {field: array_of(held[t.name].array, to) for field, (t, to) in step.fields.items()}
    value = arrays[""] if "" in arrays else QuantizedWeight8bit(**arrays)
    return value, list(arrays.values())


class _Held:
    """Boxes of one tensor in host memory: maps of its shards where they are there whole, else copies.

    It is a reader of the store's kind, for `array`: the tensor as far as it was read.
    """

    def __init__(self, tensor: LazyArray, boxes: Iterable[Box]):
        self._boxes: dict[Box, Array] = {}
        for box in boxes:
            view = tensor.view(box)
            self._boxes[box] = tensor.read(box) if view is None else view
        self.array = tensor.read_by(self)

    def check(self, requests: Iterable[tuple[StoreTensor, Box]], workers: int = 1) -> None:
        """Nothing: what is held was checked as it was read."""

    def view(self, tensor: StoreTensor, box: Box) -> Array:
        """The box; only those that were read are asked for."""
        return self._boxes[box]

    def read(self, tensor: StoreTensor, box: Box, out: Array) -> None:
        """Copies the box."""
        out[...] = self._boxes[box]

    def close(self) -> None:
        """Nothing: the memory goes with the arrays."""


def _read_ahead(
    read: Callable[[_Step], _T], steps: Iterable[_Step], stop: threading.Event
) -> Generator[_T, None, None]:
    """What `read` gives for each step, in order, made on a thread, `AHEAD` of it before it is asked for."""
    room = threading.Semaphore(AHEAD)
    made: SimpleQueue[list[_T] | BaseException] = SimpleQueue()

    def work() -> None:
        for step in steps:
            room.acquire()
            try:
                made.put([read(step)])
            except BaseException as error:
                made.put(error)
                return

    def end() -> None:
        if not stop.is_set():  # else the process ends, and did this before
            stop.set()
            room.release()
            thread.join()
            atexit.unregister(end)

    # An iteration that nobody ends must not keep the process from ending: a daemon is not waited for, and
    # the hook ends it before the interpreter stops it wherever it is, perhaps with a lock in its hands.
    thread = threading.Thread(target=work, name="gdist-stream", daemon=True)
    atexit.register(end)
    thread.start()
    try:
        for _ in steps:
            item = made.get()
            room.release()
            if isinstance(item, BaseException):
                raise item
            yield item.pop()  # the caller's alone: nothing is held here while it works
    finally:
        end()


def _on_cpu(array: jax.Array) -> bool:
    platform: str = next(iter(array.sharding.device_set)).platform  # type: ignore[attr-defined]  # untyped in JAX
    return platform == "cpu"
