"""The contract of sinks: what every target must keep, checked on small random stores.

    TARGET = Target(open=lambda plan: MySink(..., plan), kvstore={"driver": ..., "path": ...})

    @pytest.mark.parametrize("check", CHECKS)
    def test_my_sink(check): check(TARGET)

Each check takes a fresh, empty target. `Target.open` is called again on the same place, as after a restart;
`kvstore` is the TensorStore spec of that place, by which checks look at what is really there.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts
from blake3 import blake3
from numpy.typing import NDArray

from gdist.core.box import Box
from gdist.core.convert import converted
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.journal import ShardRecord
from gdist.core.layout import shard_key
from gdist.core.mesh import parse_mesh
from gdist.core.payload import Payload, PayloadFile
from gdist.core.placer import Placer
from gdist.core.plan import HostPlan, ShardTask, plan_host
from gdist.core.rules import parse_rules
from gdist.core.store_manifest import StoreManifest, StoreSource, parse_store_manifest
from gdist.core.tensor import Order, Part, Quantisation, StoredTensor, TensorSpec
from gdist.kvstore import shared_context
from gdist.sinks import Sink
from gdist.testing.checkpoints import numpy_dtype

Array = NDArray[Any]  # Any: the element types of ml_dtypes have no static type

THREADS = 4
PIECE_LENGTH = 1000 + 1  # odd, so that pieces begin inside elements


@dataclass(frozen=True, slots=True)
class Target:
    """An empty place for a store; `open` makes a sink on it, each time it is called.

    `dtype` is what a sink that converts makes of floating tensors and of quantised pairs.
    """

    open: Callable[[HostPlan], Sink]
    kvstore: Mapping[str, object]
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A plan of one host, the bytes of its payload and the arrays that its store has by name."""

    plan: HostPlan
    data: bytes
    arrays: Mapping[str, Array]

    def piece(self, number: int) -> memoryview:
        """The bytes of a piece."""
        extent = self.plan.payload.extent_of(number)
        return memoryview(self.data)[extent.start : extent.stop]

    def key(self, task: ShardTask) -> str:
        """The path of a shard in the store."""
        return f"{self.plan.tensors[task.tensor].tensor.spec.name}/{shard_key(task.index)}"

    def record(self, task: ShardTask) -> ShardRecord:
        """What `commit` must give: BLAKE3 of each inner chunk's own bytes, from the array."""
        tensor = self.plan.tensors[task.tensor]
        name = tensor.tensor.spec.name
        values, digests = self.arrays[name][task.box.slices()], []
        for index, _ in tensor.layout().chunks():
            where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, tensor.grid.chunk, strict=True))
            digests.append(blake3(np.ascontiguousarray(values[where]).tobytes()).hexdigest())
        return ShardRecord(name, task.index, tuple(digests))


_SHAPES: tuple[tuple[str, tuple[int, ...], str, Order], ...] = (
    ("layer.0.w", (32, 48), "float32", Order.C),
    ("layer.1.w", (48, 32), "bfloat16", Order.F),  # transposed on its way
    ("columns.w", (64, 16), "int8", Order.C),  # runs of 4 bytes
    ("deep/er", (4, 6, 10), "float8_e5m2", Order.C),
    ("flags", (37,), "bool", Order.C),
    ("poison", (8, 8), "int8", Order.C),  # nothing but its fill value, which is no reason to leave it out
    ("step", (), "int64", Order.C),
    ("temperature", (), "float32", Order.C),
    ("pair.w.weight", (4, 24, 32), "int8", Order.C),  # with a shard of 6 rows, groups of 4 straddle shards
    ("pair.w.scales", (4, 6, 32), "bfloat16", Order.F),
    ("nothing", (0, 3), "float32", Order.C),
)


_GROUPS, _ROWS = 6, 4


def job(*, mesh: str = "2x4", seed: int = 0, shard_bytes: int | None = 1024, dtype: str | None = None) -> Job:
    """A small store of many kinds of tensors at odd offsets; one in two parts, two a quantised pair."""
    rng = np.random.default_rng(seed)
    tensors, arrays, content = [], {}, bytearray(b"\xff" * 3)
    for name, shape, type_name, order in _SHAPES:
        spec = TensorSpec(name, shape, BY_NAME[type_name])
        raw = rng.integers(1, 2 if type_name == "bool" else 120, spec.nbytes, np.uint8)
        raw = np.full_like(raw, 0x80) if name == "poison" else raw
        array = arrays[name] = raw.view(numpy_dtype(spec.dtype)).reshape(shape)
        parts = []
        for box in _halves(shape) if name == "layer.0.w" else [Box.whole(shape)]:
            stored = array[box.slices()]
            stored = stored.T if order is Order.F else stored
            parts.append(Part(Extent(len(content), spec.nbytes_of(box)), box, order))
            content += np.ascontiguousarray(stored).tobytes() + b"\xff"
        pair, _, role = name.rpartition(".")
        half = Quantisation(pair, role, _GROUPS, 1) if role in ("weight", "scales") else None
        tensors.append(StoredTensor(spec, tuple(parts), half))
    if dtype:
        tensors, arrays = list(converted(tensors, BY_NAME[dtype])), _converted(arrays, dtype)
    payload = Payload((PayloadFile("f", 0, len(content)),), PIECE_LENGTH, len(content))
    rules = parse_rules({"rules": [["w$", ["data", "model"]], [".*", []]]})
    plan = plan_host(payload, tensors, parse_mesh(mesh), rules, identity="suite", shard_bytes=shard_bytes)
    return Job(plan, bytes(content), arrays)


def _converted(arrays: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """What conversion makes of them, in NumPy and of whole arrays."""
    made = {}
    for name, array in arrays.items():
        if name.endswith(".weight"):
            scales = arrays[name.replace(".weight", ".scales")].astype(np.float32)
            value = array.astype(np.float32) * np.repeat(scales, _ROWS, axis=1)
            with np.errstate(over="ignore"):
                made[name.removesuffix(".weight")] = value.astype(np.dtype(dtype))
        elif not name.endswith(".scales"):
            with np.errstate(over="ignore"):
                made[name] = array.astype(np.dtype(dtype)) if "float" in array.dtype.name else array
    return made


def _halves(shape: tuple[int, ...]) -> list[Box]:
    middle = shape[1] // 2
    return [Box((0, 0), (shape[0], middle)), Box((0, middle), shape)]


def place(sink: Sink, work: Job, placer: Placer, pieces: Iterable[int], *, seed: int = 0) -> list[ShardTask]:
    """Places pieces in random order from several threads; gives the shards that are whole since."""
    order = list(pieces)
    random.Random(seed).shuffle(order)
    lock = threading.Lock()
    whole: list[ShardTask] = []

    def one(piece: int) -> None:
        with lock:
            placements = placer.accept(piece)
        sink.place(placements, work.piece(piece))
        with lock:
            whole.extend(placer.settle(piece))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, order))
    return whole


def commit(sink: Sink, work: Job, tasks: Iterable[ShardTask]) -> list[ShardRecord]:
    """Commits shards from several threads, and checks what each commit says."""
    with ThreadPoolExecutor(THREADS) as pool:
        pairs = [(task, pool.submit(sink.commit, task)) for task in tasks]
        records = [(task, future.result()) for task, future in pairs]
    for task, record in records:
        assert record == work.record(task), f"{work.key(task)}: {record}"
    return [record for _, record in records]


def keys(target: Target) -> set[str]:
    """What is in the target under a name of the store's; not what waits in a directory of its own."""
    store = ts.KvStore.open(dict(target.kvstore), context=shared_context()).result()
    found = {bytes(key).decode() for key in store.list().result()}
    return {key for key in found if not key.startswith(".")}


def assert_readable(target: Target, work: Job) -> None:
    """That a strict TensorStore reads every published array, equal to its source."""
    for name, expected in work.arrays.items():
        kvstore = {**target.kvstore, "path": f"{target.kvstore['path']}{name}/"}
        spec = {"driver": "zarr3", "kvstore": kvstore, "fill_missing_data_reads": False}
        array = ts.open(spec, context=shared_context(), recheck_cached=True).result()
        found = np.asarray(array.read().result())
        assert found.shape == expected.shape and found.tobytes() == expected.tobytes(), name


def check_any_order_from_any_thread(target: Target) -> None:
    """Pieces in any order, from several threads, become the arrays; digests are those of the chunks."""
    for seed in (1, 2):
        _write_all(target, job(seed=seed, dtype=target.dtype), seed)


def check_shards_of_many_slabs(target: Target) -> None:
    """The same where a shard file holds several slabs, with padding between them."""
    _write_all(target, job(shard_bytes=None, dtype=target.dtype), 3)


def _write_all(target: Target, work: Job, seed: int) -> None:
    sink, placer = target.open(work.plan), Placer(work.plan)
    whole = place(sink, work, placer, placer.wanted(), seed=seed)
    sink.sync()
    commit(sink, work, whole)
    for tensor in work.plan.tensors:
        sink.publish(tensor)
    sink.close()
    assert_readable(target, work)


def check_uncommitted_is_missing(target: Target) -> None:
    """What is placed and not committed has no name in the store; nor has a tensor before it is published."""
    work = job(dtype=target.dtype)
    sink, placer = target.open(work.plan), Placer(work.plan)
    whole = place(sink, work, placer, placer.wanted())
    assert keys(target) == set()
    commit(sink, work, whole[::2])
    names = {key for key in keys(target) if not key.endswith("/zarr.json")}
    assert names == {work.key(task) for task in whole[::2]}
    sink.publish(work.plan.tensors[0])
    assert f"{work.plan.tensors[0].tensor.spec.name}/zarr.json" in keys(target)
    sink.close()


def check_a_killed_run_goes_on(target: Target) -> None:
    """Another sink on the same place sees what was committed and what was half written, and finishes it."""
    work = job(dtype=target.dtype)
    first, placer = target.open(work.plan), Placer(work.plan)
    assert first.restore(()) == (set(), set())
    pieces = list(placer.wanted())
    random.Random(5).shuffle(pieces)
    half = pieces[: len(pieces) // 2]
    whole = place(first, work, placer, half)
    records = commit(first, work, whole)
    first.sync()
    first.close()
    touched = {p.shard for piece in half for p in Placer(work.plan).accept(piece)}

    second = target.open(work.plan)
    done, partial = second.restore(records)
    assert done == set(whole) and partial == touched - done and partial
    placer = Placer(work.plan, done=done, placed=half, partial=partial)
    assert set(placer.wanted()).isdisjoint(half)
    commit(second, work, place(second, work, placer, placer.wanted()))
    assert not placer.missing_nbytes
    for tensor in work.plan.tensors:
        second.publish(tensor)
    second.close()
    assert_readable(target, work)


def check_a_record_alone_is_no_proof(target: Target) -> None:
    """A shard that a record names and the target lacks is not done; nor is one of no plan's."""
    work = job(dtype=target.dtype)
    sink, placer = target.open(work.plan), Placer(work.plan)
    whole = place(sink, work, placer, placer.wanted())
    records = commit(sink, work, whole)
    sink.close()
    store = ts.KvStore.open(dict(target.kvstore), context=shared_context()).result()
    store.write(work.key(whole[0]), None).result()  # None deletes
    strangers = [ShardRecord("another", (0,), ()), ShardRecord(records[0].tensor, (99, 99), ())]
    again = target.open(work.plan)
    assert again.restore([*records, *strangers]) == (set(whole[1:]), set())
    assert again.restore(records[1:3])[0] == set(whole[1:3]), "what no record names is not done"
    again.close()


def check_writing_again_changes_nothing(target: Target) -> None:
    """A piece placed twice, a shard fetched again after its commit, a tensor published twice: the same."""
    work = job(dtype=target.dtype)
    sink, placer = target.open(work.plan), Placer(work.plan)
    for piece in placer.wanted():
        sink.place(placer.accept(piece), work.piece(piece))
    commit(sink, work, place(sink, work, placer, placer.wanted()))
    sink.close()
    again, placer = target.open(work.plan), Placer(work.plan)  # its journal was lost
    assert again.restore(()) == (set(), set())
    commit(again, work, place(again, work, placer, placer.wanted()))
    for tensor in (*work.plan.tensors, *work.plan.tensors):
        again.publish(tensor)
    again.close()
    assert_readable(target, work)


def check_the_manifest_and_what_lies_beside(target: Target) -> None:
    """Assets and documents are kept byte for byte, and the manifest can be read."""
    work = job(dtype=target.dtype)
    sink = target.open(work.plan)
    sink.write_document("assets/a/tokenizer.json", b"{}")
    sink.write_document("assets/empty", b"")
    source = StoreSource("ab" * 20, "", "suite", PIECE_LENGTH, len(work.data))
    manifest = StoreManifest(source, work.plan.digest, work.plan.mesh, work.plan.host, ())
    placer = Placer(work.plan)
    commit(sink, work, place(sink, work, placer, placer.wanted()))
    for tensor in work.plan.tensors:
        sink.publish(tensor)
    sink.finish(manifest, {"zarr.json": b"1", "deep/zarr.json": b"2"})
    sink.close()
    store = ts.KvStore.open(dict(target.kvstore), context=shared_context()).result()
    contents = {
        "assets/a/tokenizer.json": b"{}",
        "assets/empty": b"",
        "zarr.json": b"1",
        "deep/zarr.json": b"2",
    }
    assert {key: bytes(store.read(key).result().value) for key in contents} == contents
    assert parse_store_manifest(bytes(store.read("gdist.json").result().value), "target") == manifest


CHECKS: tuple[Callable[[Target], None], ...] = (
    check_any_order_from_any_thread,
    check_shards_of_many_slabs,
    check_uncommitted_is_missing,
    check_a_killed_run_goes_on,
    check_a_record_alone_is_no_proof,
    check_writing_again_changes_nothing,
    check_the_manifest_and_what_lies_beside,
)
