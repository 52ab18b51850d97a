"""Units of a reshard: every chunk is read once, every element of every shard written once, within memory."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.grid import GridMaker, ShardGrid
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec, parse_mesh
from gdist.core.payload import Payload
from gdist.core.plan import HostPlan, plan_host
from gdist.core.reshard import (
    Grain,
    Ledger,
    contents_of,
    cost_of,
    identity_of,
    placement_of,
    rules_of,
    stored_tensor,
    unit_shape,
    units_of,
    writes_of,
)
from gdist.core.rules import Rule, Rules
from gdist.core.store_manifest import Step, StoreManifest, StoreSource, StoreTensor
from gdist.core.tensor import Quantisation

# --- properties -----------------------------------------------------------------------------------------


@st.composite
def jobs(draw: st.DrawFn) -> tuple[HostPlan, Grain, int, int]:
    """A plan of one host for one tensor, how its source is read, and limits of a unit and of a write."""
    ndim = draw(st.integers(0, 3))
    mesh = Mesh((("data", draw(st.sampled_from([1, 2, 4]))), ("model", draw(st.sampled_from([1, 2, 3])))))
    axes = draw(st.permutations(["data", "model"]))
    dims = tuple((axes[d],) if d < 2 and draw(st.booleans()) else () for d in range(ndim))
    counts = [prod(dict(mesh.axes)[name] for name in dim) for dim in dims]
    shape = tuple(count * draw(st.integers(1, 6)) for count in counts)
    count = draw(st.sampled_from([n for n in (1, 2, 4) if mesh.devices % n == 0]))
    host = HostGroup(draw(st.integers(0, count - 1)), count)
    tensor = stored_tensor(
        StoreTensor("t", BY_NAME["int16"], ShardGrid(*(shape,) * 4), PartitionSpec(), None)
    )
    plan = plan_host(Payload((), 1, 0), [tensor], mesh, Rules((), (Rule("", PartitionSpec(dims)),)), host)
    grid = GridMaker(mesh, count, chunk_bytes=draw(st.integers(2, 64))).grid(shape, 2, PartitionSpec(dims))
    plan = replace(plan, tensors=(replace(plan.tensors[0], grid=grid),))
    # Chunks of a source need not divide the tensor: those of another program's arrays may not.
    grain = Grain(tuple(draw(st.integers(1, size + 1)) for size in shape), draw(st.booleans()))
    return plan, grain, draw(st.integers(1, 400)), draw(st.integers(1, 64))


@given(jobs(), st.data())
def test_every_chunk_is_read_once_and_every_element_written_once(
    job: tuple[HostPlan, Grain, int, int], data: st.DataObject
) -> None:
    plan, grain, unit_limit, write_limit = job
    tensor = plan.tensors[0]
    shape = tensor.grid.shape
    done = set(data.draw(st.lists(st.sampled_from(tensor.shards), max_size=2)))
    read, written = np.zeros(shape, int), np.zeros(shape, int)
    ledger = Ledger(plan, done)
    whole = []
    units = list(units_of(plan, 0, grain, unit_limit, done))
    for unit in units:
        here = np.zeros(shape, bool)
        for box in unit.reads:
            assert unit.box.contains(box)
            read[box.slices()] += 1
            here[box.slices()] = True
        chunk_nbytes = prod(map(min, grain.chunk, shape)) * 2
        assert unit.box.size * 2 <= max(unit_limit, chunk_nbytes), "a unit is no larger than it may be"
        for task, box in writes_of(plan, unit, write_limit):
            assert task.box.contains(box) and here[box.slices()].all(), "what is written was read"
            chunks = {
                tuple(int(i) // c for i, c in zip(at, tensor.grid.chunk, strict=True))
                for at in (box.start, tuple(b - 1 for b in box.stop))
            }
            assert len(chunks) == 1, "a write is in one inner chunk"
            row = box.shape[-1] * 2 if box.ndim else 2
            assert box.size * 2 <= max(write_limit, row)
            written[box.slices()] += 1
        assert not ledger.read(0)
        whole += ledger.settle(unit)
    wanted = np.zeros(shape, int)
    for task in tensor.shards:
        wanted[task.box.slices()] += task not in done
    assert (written == wanted).all()
    assert read.max(initial=0) <= 1, "no byte is read twice"
    assert (read >= wanted).all()
    if not grain.whole:
        assert (read == wanted).all(), "what can be read in part is read as far as it is wanted"
    assert sorted(task.index for task in whole) == sorted(t.index for t in tensor.shards if t not in done)
    assert ledger.missing_nbytes == 0 and ledger.read(0)
    cost = cost_of(plan, [grain], done)
    assert (cost.nbytes, cost.beyond) == (2 * int(read.sum()), 2 * int(read.sum() - wanted.sum()))
    if grain.whole:
        assert cost.reads == sum(len(unit.reads) for unit in units)


@given(jobs())
def test_placements_rebuild_every_shard(job: tuple[HostPlan, Grain, int, int]) -> None:
    plan, grain, unit_limit, write_limit = job
    tensor = plan.tensors[0]
    values = np.arange(prod(tensor.grid.shape), dtype=np.uint16).reshape(tensor.grid.shape)
    shards = {task: np.zeros((*task.box.shape, 2), np.uint8) for task in tensor.shards}
    for unit in units_of(plan, 0, grain, unit_limit):
        for task, box in writes_of(plan, unit, write_limit):
            placed = placement_of(task, box, 2)
            data = np.frombuffer(np.ascontiguousarray(values[box.slices()]).tobytes(), np.uint8)
            assert (placed.source.start, placed.source.stop) == (0, data.size)
            taken = data.reshape(placed.view)[placed.take.slices()]
            shards[task][placed.target.slices()] = taken
    for task, found in shards.items():
        expected = np.ascontiguousarray(values[task.box.slices()])
        assert found.tobytes() == expected.tobytes()


# --- units ----------------------------------------------------------------------------------------------

MB = 2**20


@pytest.mark.parametrize(
    ("shape", "source", "target", "limit", "expected", "reason"),
    [
        ((8, 1024, 4096), (4, 1024, 4096), (8, 128, 512), 256 * MB, (8, 1024, 4096), "closed under both"),
        ((8, 1024, 4096), (8, 128, 512), (8, 512, 1024), 256 * MB, (8, 1024, 4096), "small ones are grown"),
        ((8, 6144, 32768), (1, 512, 32768), (4, 768, 4096), 256 * MB, (4, 1536, 32768), "as far as closed"),
        ((8, 6144, 32768), (1, 512, 32768), (4, 768, 4096), 64 * MB, (1, 1536, 32768), "columns come first"),
        ((8, 6144, 32768), (1, 512, 32768), (4, 768, 4096), 1, (1, 512, 32768), "a chunk at least"),
        ((65536, 512), (65536, 8), (512, 512), 64 * MB, (65536, 512), "all columns make long rows"),
        ((10, 10), (4, 4), (5, 10), 1000, (10, 10), "chunks that do not divide the tensor"),
        ((10, 100), (4, 30), (1, 100), 500, (4, 100), "the last chunk of a row is cut"),
        ((), (), (), 1, (), "a scalar"),
    ],
)
def test_units_are_closed_from_the_last_dimension_on(
    shape: tuple[int, ...],
    source: tuple[int, ...],
    target: tuple[int, ...],
    limit: int,
    expected: tuple[int, ...],
    reason: str,
) -> None:
    assert unit_shape(shape, source, target, 1, limit) == expected, reason


def test_a_tensor_without_elements_has_no_unit() -> None:
    tensor = stored_tensor(
        StoreTensor("t", BY_NAME["int8"], ShardGrid((0, 4), (1, 4), (1, 4), (1, 4)), PartitionSpec(), None)
    )
    plan = plan_host(Payload((), 1, 0), [tensor], Mesh(), None)
    assert list(units_of(plan, 0, Grain((1, 4), whole=True), 100)) == []


# --- a store as a source --------------------------------------------------------------------------------

DATA, MODEL = ("data",), ("model",)


def manifest(*tensors: StoreTensor, mesh: str = "8x8") -> StoreManifest:
    source = StoreSource("ab" * 20, "", "name", 1, 1)
    return StoreManifest(source, "plan", parse_mesh(mesh), HostGroup(), tensors)


def tensor(name: str, shape: tuple[int, ...], *dims: tuple[str, ...], role: str = "") -> StoreTensor:
    pair = Quantisation(name.rpartition(".")[0], role, 1, 0) if role else None
    return StoreTensor(name, BY_NAME["int8"], ShardGrid(*(shape,) * 4), PartitionSpec(dims), pair)


def test_rules_cut_as_the_store_was_cut() -> None:
    rules = rules_of(
        manifest(tensor("a.w", (8, 8), DATA, MODEL), tensor("a.w2", (8, 8), MODEL), tensor("n", (8,)))
    )
    assert rules is not None and rules.axes == ("data", "model")
    assert rules.spec_for("a.w") == PartitionSpec((DATA, MODEL))
    assert rules.spec_for("a.w2") == PartitionSpec((MODEL,))
    assert rules.spec_for("n") == PartitionSpec()
    assert rules.spec_for("axw") is None, "names are matched whole, and their dots are dots"


@pytest.mark.parametrize("order", [1, -1])
def test_a_pair_goes_by_its_weight(order: int) -> None:
    halves = [
        tensor("p.weight", (8, 64), DATA, MODEL, role="weight"),
        tensor("p.scales", (1, 64), (), MODEL, role="scales"),
    ][::order]
    rules = rules_of(manifest(*halves))
    assert rules is not None and rules.spec_for("p") == PartitionSpec((DATA, MODEL))


def test_a_store_that_nothing_cut_has_no_rules() -> None:
    assert rules_of(manifest(tensor("a", (8, 8)), mesh="1")) is None


def test_identity_is_that_of_any_part_and_of_no_other_store() -> None:
    first = manifest(tensor("a", (8, 8), DATA))
    part = replace(first, plan="other", host=HostGroup(1, 2), tool="another")
    assert identity_of(first) == identity_of(part)
    others = (
        replace(first, source=replace(first.source, info_hash_v1="cd" * 20)),
        replace(first, mesh=parse_mesh("4x8")),
        replace(first, codec="zstd"),
        replace(first, tensors=(tensor("b", (8, 8), DATA),)),
        replace(first, resharded=(Step("files", "x", "", "1"),)),
    )
    assert len({identity_of(store) for store in (first, *others)}) == len(others) + 1


def test_without_info_hash_the_digests_of_all_shards_are_in_the_identity() -> None:
    def of(*digests: str, name: str = "name") -> StoreManifest:
        grid = ShardGrid((8,), (4,), (4,), (4,))
        shards = {(index,): (digest,) for index, digest in enumerate(digests)}
        whole = StoreTensor("a", BY_NAME["int8"], grid, PartitionSpec((DATA,)), None, shards)
        nothing = ShardGrid((0, 4), (1, 4), (1, 4), (1, 4))
        empty = StoreTensor("e", BY_NAME["int8"], nothing, PartitionSpec(), None)
        return replace(manifest(whole, empty), source=StoreSource("", "", name, 0, 8))

    assert identity_of(of("1", "2")) == identity_of(of("1", "2"))
    assert identity_of(of("1", "2")) != identity_of(of("1", "3"))
    assert identity_of(of("1")) == identity_of(of("3")), "less than all says what it was made from"
    assert contents_of(of("1")) != contents_of(of("3"))
    hashed = replace(of("1", "2"), source=manifest().source)
    assert identity_of(hashed) == identity_of(replace(of("1"), source=manifest().source))


def test_boxes_of_chunks_end_where_the_tensor_ends() -> None:
    stored = stored_tensor(tensor("t", (10,)))
    plan = plan_host(Payload((), 1, 0), [stored], Mesh(), None)
    (unit,) = units_of(plan, 0, Grain((4,), whole=True), 100)
    assert unit.reads == (Box((0,), (4,)), Box((4,), (8,)), Box((8,), (10,)))
