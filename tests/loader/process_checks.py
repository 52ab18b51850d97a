"""Run by `test_processes.py`: forks the processes of a JAX job that together hold an 8x8 mesh, runs every
check in each, and prints `{check: "" or tracebacks}` as JSON.

JAX is imported once and no backend exists before the fork, so eight processes start in a second or two.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding

import gdist
from gdist.core.box import Box
from gdist.core.mesh import HostGroup
from gdist.core.parcels import Item, Kind, deal, rounds_of
from gdist.core.rename import parse_table
from gdist.core.store_manifest import StoreTensor
from gdist.core.tensor import Quantisation
from gdist.errors import CorruptError, GdistError, RequestError, TransferError
from gdist.exchange.ports import free_port
from gdist.loader.carrier import XlaCarrier
from gdist.loader.notices import LOOK_SECONDS
from gdist.stores.rounds import Rounds
from gdist.stores.store import Reader
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.stores import Array, write_store

RULES = {
    "rules": [
        ["both", ["data", "model"]],
        ["moe", [None, "data", "model"]],
        ["rows", ["data"]],
        ["columns", [None, "model"]],
        [".*", []],
    ]
}
PAIR = {f"moe.{role}": Quantisation("moe", role, 4, 1) for role in ("weight", "scales")}
CHECKS: list[Callable[[Path, int, int], None]] = []


def check(function: Callable[[Path, int, int], None]) -> Callable[[Path, int, int], None]:
    CHECKS.append(function)
    return function


def sample() -> dict[str, Array]:
    """Random bits of every kind: NaNs with payloads and signs, negative zeros, subnormals."""
    rng = np.random.default_rng(5)

    def bits(shape: tuple[int, ...], dtype: Any) -> Array:
        data = rng.integers(0, 256, int(np.prod(shape)) * np.dtype(dtype).itemsize, np.uint8)
        return data.view(dtype).reshape(shape)

    return {
        "both": bits((16, 32), np.float32),
        "rows": bits((24, 5), ml_dtypes.bfloat16),
        "columns": bits((7, 64), ml_dtypes.bfloat16),
        "moe.weight": bits((2, 64, 16), np.int8),
        "moe.scales": rng.standard_normal((2, 4, 16)).astype(ml_dtypes.bfloat16),
        "norm": bits((19,), np.float32),
        "half": bits((8, 3), np.float16),
        "byte": bits((5, 5), ml_dtypes.float8_e4m3fn),
        "switch": rng.integers(0, 2, (6, 6)).astype(bool),
        "nibble": rng.integers(-8, 8, (4, 6)).astype(ml_dtypes.int4),
        "wave": rng.standard_normal((4, 2)).astype(np.complex64),
        "step": np.array(-7, np.int32),
        "nothing": np.zeros((0, 8), np.float32),
    }


def prepare(root: Path, count: int) -> None:
    """Each host's own directory, and one that all share."""
    for index in range(count):
        host = HostGroup(index, count)
        write_store(root / f"own{index}", sample(), mesh="8x8", rules=RULES, quantised=PAIR, host=host)
        shutil.copytree(root / f"own{index}", root / "all", dirs_exist_ok=True)
    zipped = {"columns": sample()["columns"], "both": sample()["both"]}
    zipped |= {f"norm{number}": sample()["norm"] for number in range(2 * count)}
    write_store(root / "zstd", zipped, mesh="8x8", rules=RULES, codec="zstd")
    write_store(root / "other", {"both": sample()["both"][:8]}, mesh="8x8", rules=RULES)
    for seed in range(2):  # two checkpoints of one name and the same shapes, that no torrent tells apart
        write_safetensors(root / f"{seed}/model", emb=64, layers=1, seed=seed)
        gdist.view(root / f"{seed}/model", root / f"view{seed}")


def leaves(tree: Any) -> dict[str, jax.Array]:
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def assert_bits(tree: Any, expected: Mapping[str, Array]) -> None:
    found = leaves(tree)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        got = found[name]
        assert (got.shape, got.dtype) == (array.shape, array.dtype), name
        assert len(got.sharding.device_set) == 64, name
        for shard in got.addressable_shards:
            assert np.asarray(shard.data).tobytes() == array[shard.index].tobytes(), (name, shard.index)


def assert_all_raise(kind: type[GdistError], texts: Iterable[str], call: Callable[[], Any]) -> None:
    try:
        call()
    except GdistError as error:
        assert type(error) is kind, error
        assert all(text in error.message for text in texts), error
        same = np.frombuffer(error.message.encode().ljust(9000), np.uint8)
        multihost_utils.assert_equal(same, "the messages differ")
    else:
        raise AssertionError("nothing was raised")
    multihost_utils.sync_global_devices("everybody is still in step")


@check
def each_process_loads_from_its_own_directory(root: Path, index: int, count: int) -> None:
    own = root / f"own{index}"
    tree = gdist.load(own)
    assert_bits(tree, sample())
    everything = sum(path.is_file() for path in (root / "all/both").rglob("*"))
    assert sum(path.is_file() for path in (own / "both").rglob("*")) < everything
    total = jax.jit(lambda x: jax.lax.bitcast_convert_type(x, np.uint32).sum())(tree["both"])
    assert int(total) == int(sample()["both"].view(np.uint32).sum(dtype=np.uint32))
    whole = multihost_utils.process_allgather(tree["moe"].weight, tiled=True)
    assert np.asarray(whole).tobytes() == sample()["moe.weight"].tobytes()


@check
def a_process_without_a_shard_stops_all(root: Path, index: int, count: int) -> None:
    mine, last = root / f"own{index}", count - 1
    broken = root / f"broken{index}"
    shutil.copytree(mine, broken)
    if index == last:
        for path in [p for p in (broken / "both").rglob("*") if p.is_file() and "/c/" in str(p)][:1]:
            path.unlink()
    for options in ({}, {"verify": False}, {"broadcast": True}, {"dtype": "bfloat16", "select": "both"}):
        missing = [f"process {last} cannot load", "'both'", "is missing"]
        assert_all_raise(CorruptError, missing, lambda options=options: gdist.load(broken, **options))
    assert_bits(gdist.load(mine, select="^both$"), {"both": sample()["both"]})  # and all goes on

    elsewhere = root / ("own0" if index == last else f"own{index}")  # the last one has another host's part
    lacking = [f"process {last} cannot load", f"written by host {last} of {count}", "'both'"]
    assert_all_raise(RequestError, lacking, lambda: gdist.load(elsewhere, verify=False))
    nowhere = root / ("nowhere" if index == 0 else f"own{index}")
    assert_all_raise(RequestError, ["process 0 cannot load", "is not a store"], lambda: gdist.load(nowhere))


@check
def several_failures_are_told_together(root: Path, index: int, count: int) -> None:
    where = root / (f"nowhere{index}" if index < 2 else f"own{index}")
    texts = ["process 0 cannot load", "nowhere0", "process 1 cannot load", "nowhere1"]
    assert_all_raise(RequestError, texts, lambda: gdist.load(where))


@check
def processes_that_disagree_are_told(root: Path, index: int, count: int) -> None:
    select = "rows" if index == 1 else "columns"
    texts = ["process 1 would load other tensors", "than process 0"]
    assert_all_raise(RequestError, texts, lambda: gdist.load(root / "all", select=select))
    where = root / ("other" if index == 1 else "all")
    texts = ["process 1 would load another release"]
    assert_all_raise(RequestError, texts, lambda: gdist.load(where, select="^both$"))
    mixed = ["would load other tensors, shardings or options than process 0"]
    assert_all_raise(RequestError, mixed, lambda: gdist.load(root / "all", broadcast=index == 0))


@check
def checkpoints_of_one_name_are_not_mixed(root: Path, index: int, count: int) -> None:
    where = root / f"view{int(index == 1)}"
    for start in (gdist.load, first_of_stream):
        texts = ["process 1 would ", "other values than those before"]
        assert_all_raise(RequestError, texts, lambda start=start: start(where))
    assert gdist.load(root / "view0")  # the same everywhere: all is well


def first_of_stream(where: Path, **options: Any) -> Any:
    return next(gdist.stream(where, **options))


@check
def streams_agree_before_their_first_array(root: Path, index: int, count: int) -> None:
    own, short = root / f"own{index}", {"start_timeout": 0.5}
    found = dict(gdist.stream(own, select="both|norm|rows"))
    assert_bits(found, {name: sample()[name] for name in ("both", "rows", "norm")})
    where = root / ("other" if index == 1 else "all")
    texts = ["process 1 would stream another release than process 0"]
    assert_all_raise(RequestError, texts, lambda: first_of_stream(where, select="^both$"))
    cases: list[dict[str, Any]] = [
        {"select": "rows" if index == 1 else "columns"},
        {"mesh": "4x16" if index == 1 else "8x8"},
        {"rules": {"rules": [["both", ["data"] if index == 1 else []], [".*", []]]}},
    ]
    texts = ["process 1 would stream other tensors or shardings than process 0"]
    for options in cases:
        assert_all_raise(
            RequestError, texts, lambda options=options: first_of_stream(root / "all", **options)
        )
    nowhere = root / "nowhere" if index == 1 else own
    texts = ["process 1 cannot stream", "no store is there"]
    assert_all_raise(TransferError, texts, lambda: first_of_stream(nowhere, **short))


@check
def an_argument_that_is_wrong_on_one_process_stops_all(root: Path, index: int, count: int) -> None:
    both: list[tuple[dict[str, Any], str]] = [
        ({"rename": root / "nowhere.yaml"}, "nowhere.yaml"),
        ({"rename": {"a": "b"}}, "needs target="),
    ]
    loading: list[tuple[dict[str, Any], str]] = [
        ({"memory": "xx"}, "memory 'xx'"),
        ({"memory": 0}, "memory 0 holds nothing"),
        ({"dtype": "int8"}, "no floating type"),
        ({"broadcast": True, "exchange": True}, "are both asked for"),
        ({"rename": "hf-flax", "exchange": True}, "a renaming table makes others"),
    ]
    streaming: list[tuple[dict[str, Any], str]] = [
        ({"timeout": "soon"}, "timeout 'soon'"),
        ({"start_timeout": "soon"}, "start_timeout 'soon'"),
        ({"rename": "hf-flax"}, "takes no renaming table"),
    ]
    cases = [("load", gdist.load, case) for case in both + loading]
    cases += [("stream", first_of_stream, case) for case in both + streaming]
    for doing, start, (wrong, said) in cases:
        options = wrong if index == 1 else {}
        texts = [f"process 1 cannot {doing}", said]
        assert_all_raise(
            RequestError, texts, lambda start=start, options=options: start(root / "all", **options)
        )


@check
def a_stream_that_fails_is_heard_of_by_the_others(root: Path, index: int, count: int) -> None:
    broken = root / f"cut{index}"
    shutil.copytree(root / f"own{index}", broken)
    if index == 1:
        for path in [p for p in (broken / "rows/c").rglob("*") if p.is_file()][:1]:
            data = bytearray(path.read_bytes())
            data[3] ^= 1
            path.write_bytes(data)
    seen = []
    try:
        for path, _ in gdist.stream(broken):
            seen.append(path)
            time.sleep(LOOK_SECONDS)
    except CorruptError as error:
        told = "" if index == 1 else "process 1 cannot stream: "
        assert error.message.startswith(told) and "'rows'" in error.message, error
        assert ("processes" in error.facts) == (index != 1)
    else:
        raise AssertionError("nothing was raised")
    assert len(seen) < len(sample()) - 1, seen
    multihost_utils.sync_global_devices("all have heard")


class Counting:
    """A reader that notes the boxes it was asked for; reading goes on as ever."""

    def __init__(self, reader: Reader):
        self._reader = reader
        self.boxes: set[tuple[str, Box]] = set()
        self.nbytes = 0

    def _note(self, tensor: StoreTensor, box: Box) -> None:
        if (tensor.name, box) not in self.boxes:
            self.boxes.add((tensor.name, box))
            self.nbytes += box.size * tensor.dtype.itemsize

    def check(self, requests: Iterable[tuple[StoreTensor, Box]], workers: int = 1) -> None:
        self._reader.check(requests, workers)

    def view(self, tensor: StoreTensor, box: Box) -> Array | None:
        self._note(tensor, box)
        return self._reader.view(tensor, box)

    def read(self, tensor: StoreTensor, box: Box, out: Array) -> None:
        self._note(tensor, box)
        self._reader.read(tensor, box, out)

    def close(self) -> None:
        self._reader.close()


@check
def what_is_common_is_read_once(root: Path, index: int, count: int) -> None:
    def read(select: str, **options: Any) -> Any:
        with gdist.open(root / "all") as store:
            store._reader = counting = Counting(store._reader)
            tree = gdist.load(store, select=select, **options)
            assert_bits(tree, {name: array for name, array in sample().items() if re.search(select, name)})
        return np.asarray(multihost_utils.process_allgather(np.array(counting.nbytes)))

    some = "^(?!wave)" if count == 2 else "both|rows|columns|norm|nibble"  # each type costs a compilation
    once = sum(array.nbytes for name, array in sample().items() if re.search(some, name))
    each = read(some, broadcast=True)
    assert each.sum() == once and (each > 0).all(), (each, once)
    assert read(some).sum() > once
    assert read("wave", broadcast=True).sum() == count * sample()["wave"].nbytes  # complex: not summed
    if count == 2:
        few = "both|columns|step"  # the second is larger than this memory
        assert read(few, broadcast=True, memory=100).sum() == read(few, broadcast=True).sum()


@check
def each_host_reads_its_share_of_what_it_has(root: Path, index: int, count: int) -> None:
    tree = gdist.load(root / f"own{index}", broadcast=True, select="columns|norm")
    assert_bits(tree, {name: sample()[name] for name in ("columns", "norm")})


@check
def a_read_that_fails_late_stops_all(root: Path, index: int, count: int) -> None:
    where = root / f"zstd{index}"
    shutil.copytree(root / "zstd", where)
    if index == count - 1:  # of a compressed store only reading finds damage
        for path in [p for p in (where / "columns/c").rglob("*") if p.is_file()]:
            data = bytearray(path.read_bytes())
            end = len(data) - 150  # the index is at the end
            data[:end:8] = bytes(len(data[:end:8]))
            path.write_bytes(data)
    one = 128 * (8 // count)  # a process's share of "columns": what comes after it waits for its place
    shared = ({"broadcast": True, "memory": memory} for memory in ("1GiB", one, 64)[: 3 if count == 2 else 2])
    for options in ({}, *shared, {"staging": "ring"}):
        texts = [f"process {count - 1} cannot load", "'columns'"]
        assert_all_raise(CorruptError, texts, lambda options=options: gdist.load(where, **options))


@check
def staged_and_cast_as_anywhere(root: Path, index: int, count: int) -> None:
    own = root / f"own{index}"
    few = {name: array for name, array in sample().items() if name in ("columns", "norm", "step")}
    for staging in ("ring", "pinned"):
        assert_bits(gdist.load(own, staging=staging, select=[f"^{name}$" for name in few]), few)
    if count == 2:
        part = gdist.load(own, staging="ring", memory=64, select="columns")  # two rows at a time
        assert_bits(part, {"columns": sample()["columns"]})
    pair = sample()["moe.weight"].astype(np.float32)
    pair *= np.repeat(sample()["moe.scales"].astype(np.float32), 16, axis=1)
    expected = {"moe": pair.astype(ml_dtypes.bfloat16), "step": sample()["step"]}
    for options in ({}, {"staging": "pinned"}, {"broadcast": True}):
        assert_bits(gdist.load(own, dtype="bfloat16", select="moe|step", **options), expected)


@check
def a_renaming_table_is_for_every_process(root: Path, index: int, count: int) -> None:
    rules = [
        {"match": "(both|rows|columns)", "to": r"params.\1", "transpose": True},
        {"match": r"norm(?P<layer>\d+)", "to": "norms", "stack": "layer", "axis": 1},
        {"match": ".*", "drop": True},
    ]
    table = parse_table({"name": "t", "rename": rules})
    turned = {
        f"params.{name}": np.ascontiguousarray(sample()[name].T) for name in ("both", "rows", "columns")
    }
    for options in ({}, {"broadcast": True}):  # each process has just the shards that its devices need
        assert_bits(gdist.load(root / f"own{index}", rename=table, **options), turned)
    stacked = {name: array for name, array in turned.items() if name != "params.rows"}
    stacked["norms"] = np.stack([sample()["norm"]] * 2 * count, axis=1)
    for options in ({}, {"broadcast": True}):
        assert_bits(gdist.load(root / "zstd", rename=table, **options), stacked)


@check
def what_a_process_lacks_comes_from_others(root: Path, index: int, count: int) -> None:
    own, other = (
        root / f"own{index}",
        {"rules": [["both|moe", [None, "model"]], ["columns", [None, "data"]], [".*", []]]},
    )
    some = (
        sample()
        if count == 2
        else {n: a for n, a in sample().items() if n in ("both", "columns", "nibble", "step")}
    )
    select = [f"^{name}$" for name in some]
    cases: list[dict[str, Any]] = [
        {"rules": other},
        {"mesh": "2x32"},
        {"mesh": "64x1", "staging": "ring", "memory": 300},
    ]
    for options in cases if count < 8 else cases[:1]:
        tree = gdist.load(
            own, select=select if count > 2 else None, exchange=True, **{"rules": other, **options}
        )
        assert_bits(tree, some)
    # The least comes over the network: a process that has all it needs asks nobody.
    with gdist.open(own) as store:
        store._reader = counting = Counting(store._reader)
        assert_bits(gdist.load(store, select="both", exchange=True), {"both": sample()["both"]})
    assert counting.nbytes == sample()["both"].nbytes // count
    pair = sample()["moe.weight"].astype(np.float32)
    pair *= np.repeat(sample()["moe.scales"].astype(np.float32), 16, axis=1)
    made = gdist.load(own, select="moe", dtype="bfloat16", rules=other, exchange=True)
    assert_bits(made, {"moe": pair.astype(ml_dtypes.bfloat16)})


@check
def parcels_of_every_kind_come_by_xla(root: Path, index: int, count: int) -> None:
    rng = np.random.default_rng(11)
    shape, itemsize = (8 * count, 5 * count), 2
    whole = rng.integers(0, 2**16, shape, np.uint16)
    row, width = shape[0] // count, 5
    layouts: dict[Kind, list[list[Box]]] = {
        Kind.ALL: [[Box((0, n * width), (shape[0], (n + 1) * width))] for n in range(count)],
        Kind.GATHER: [[Box.whole(shape)]] * count,
        Kind.PAIRS: [[Box.whole(shape)], *([[]] * (count - 1))],
    }
    held = {(n, 0): [n] for n in range(count)}
    for kind, wants in layouts.items():
        deals = [(0, deal((row, shape[1]), held, wants, itemsize, 300))]
        kinds = {one.kind for one in rounds_of(deals, count, 300)}
        assert kinds == {Kind.GATHER if count == 2 and kind is Kind.ALL else kind}, (kind, kinds)
        for rails in (1, 3) if count < 8 else (1,):
            got = np.zeros(shape, np.uint16)

            def place(number: int, item: Item, data: Any, got: Array = got) -> None:
                got[item.box.slices()] = data.view(np.uint16).reshape(item.box.shape)

            carrier = XlaCarrier(jax.devices(), rails=rails)
            assert (carrier.index, carrier.count) == (index, count)
            Rounds(carrier, [itemsize], lambda number, box: whole[box.slices()], place).run(
                rounds_of(deals, count, 300)
            )
            expected = np.zeros(shape, np.uint16)
            for box in wants[index]:
                expected[box.slices()] = whole[box.slices()]
            expected[index * row : (index + 1) * row] = 0  # its own never left it
            assert (got == expected).all(), (kind, rails)


@check
def a_share_that_nobody_has_right_stops_all(root: Path, index: int, count: int) -> None:
    other = {"rules": [[".*", []]]}
    broken = root / f"bad{index}"
    shutil.copytree(root / f"own{index}", broken)
    if index == count - 1:
        for path in [p for p in (broken / "both/c").rglob("*") if p.is_file()][:1]:
            data = bytearray(path.read_bytes())
            data[8] ^= 1
            path.write_bytes(data)
    texts = [f"process {count - 1} cannot load", "'both'"]
    assert_all_raise(
        CorruptError, texts, lambda: gdist.load(broken, select="both|norm", rules=other, exchange=True)
    )
    part = root / ("own1" if index == 0 else f"own{index}")  # nobody has what process 0 wrote
    texts = ["no process has some shards of 1 tensors: both"]
    assert_all_raise(CorruptError, texts, lambda: gdist.load(part, select="both", rules=other, exchange=True))
    texts = ["would load other tensors, shardings or options than process 0"]
    assert_all_raise(RequestError, texts, lambda: gdist.load(root / f"own{index}", exchange=index == 0))


@check
def a_part_of_the_processes_may_load(root: Path, index: int, count: int) -> None:
    half = count // 2
    who = range(half) if index < half else range(half, count)
    devices = [d for d in jax.devices() if d.process_index in who]
    mesh = Mesh(np.array(devices).reshape(-1, 8), ("data", "model"))
    for broadcast in (True, False):
        tree = gdist.load(root / "all", mesh=mesh, broadcast=broadcast, select="columns|rows")
        for name, leaf in tree.items():
            for shard in leaf.addressable_shards:
                assert np.asarray(shard.data).tobytes() == sample()[name][shard.index].tobytes()

    # A mesh of the first process alone: the others hold nothing, and say so with a type and no bytes.
    first = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model"))
    empty = gdist.load(root / "all", mesh=first, select="both|moe", dtype="bfloat16", broadcast=True)
    assert empty["moe"].dtype == ml_dtypes.bfloat16 and empty["both"].shape == (16, 32)
    assert bool(empty["both"].addressable_shards) == (index == 0)

    # What is on a process's own device is its own affair: nobody else has to come.
    if index == 0:
        own = SingleDeviceSharding(jax.local_devices()[0])
        target = {"norm": jax.ShapeDtypeStruct((19,), np.float32, sharding=own)}
        assert gdist.load(root / "all", target=target, select="norm")["norm"].is_fully_addressable
    multihost_utils.sync_global_devices("done")


@check
def too_few_devices_are_not_made_up(root: Path, index: int, count: int) -> None:
    assert_all_raise(RequestError, ["needs 128 devices"], lambda: gdist.load(root / "all", mesh="16x8"))


def run_checks(root: Path, port: int, index: int, count: int) -> None:
    jax.config.update("jax_num_cpu_devices", 64 // count)
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, initialization_timeout=60)
    results = {}
    for function in CHECKS:
        try:
            function(root, index, count)
            results[function.__name__] = ""
        except Exception:
            results[function.__name__] = traceback.format_exc()
            break  # the others wait somewhere else
    (root / f"results{index}").write_text(json.dumps(results))
    jax.distributed.shutdown()


class Fork:
    """Runs a function in a process of its own."""

    def __init__(self, function: Callable[[], None]):
        self._id = os.fork()
        if self._id == 0:
            try:
                function()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)

    def wait(self) -> int:
        return os.waitpid(self._id, 0)[1]


def main(count: int, root: Path) -> None:
    if Fork(lambda: prepare(root, count)).wait():  # TensorStore's threads do not survive a fork
        raise SystemExit("the stores could not be written")
    port = free_port()
    children = [Fork(lambda index=index: run_checks(root, port, index, count)) for index in range(count)]
    ended = [child.wait() for child in children]
    found: dict[str, str] = {}
    for index in range(count):
        path = root / f"results{index}"
        for name, said in (json.loads(path.read_text()) if path.is_file() else {}).items():
            found[name] = found.get(name, "") + (said and f"process {index}: {said}\n")
    print(json.dumps({"ended": ended, "found": found}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
