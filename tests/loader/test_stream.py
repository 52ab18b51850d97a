"""Streaming on one device: complete stores, and stores that a fetch still writes, here or elsewhere."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gdist
from gdist.core.journal import parse_journal
from gdist.core.magnet import format_magnet
from gdist.core.mesh import HostGroup
from gdist.core.order import loading_order
from gdist.core.tensor import Quantisation
from gdist.errors import CorruptError, InterruptedRun, NoPeersError, RequestError, TransferError
from gdist.events import TensorReady
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds
from gdist.testing.stores import write_store
from gdist.testing.swarm import LOCALHOST, Seeded, Slow, seed

jax = pytest.importorskip("jax")

pytestmark = [pytest.mark.jax, pytest.mark.torrent]

PAIR = {f"moe.linear.{role}": Quantisation("moe.linear", role, 1, 1) for role in ("weight", "scales")}
ALONE: dict[str, Any] = {"dht": False, "listen": f"{LOCALHOST}:0", "stall_timeout": 20}


def sample() -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {
        "embed": rng.standard_normal((16, 32)).astype(np.float32),
        "layer.0.w": rng.standard_normal((8, 64)).astype(np.float32),
        "moe.linear.weight": rng.integers(-128, 127, (2, 8, 64)).astype(np.int8),
        "moe.linear.scales": rng.standard_normal((2, 1, 64)).astype(np.float32),
        "layer.1.w": rng.standard_normal((8, 64)).astype(np.float32),
        "scalar": np.array(1.25, np.float32),
        "nothing": np.zeros((0, 4), np.float32),
    }


PATHS = ["embed", "layer.0.w", "moe.linear", "layer.1.w", "scalar", "nothing"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_store(tmp_path / "s", sample(), quantised=PAIR, chunk_bytes=256)
    return tmp_path / "s"


def bits(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def threads() -> list[str]:
    """Those of streams and of fetches beside them; other tests have seeders of their own."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("gdist-stream", "gdist-fetch"))]


# --- complete stores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "open", "zstd", "memory://stream/s"])
def test_a_complete_store_comes_in_order(where: str, tmp_path: Path) -> None:
    address = where if "://" in where else str(tmp_path / "s")
    codec = "none" if where in ("local", "open") else "zstd"
    write_store(address, sample(), quantised=PAIR, chunk_bytes=256, codec=codec)
    store = gdist.open(address) if where == "open" else address
    found = list(gdist.stream(store))
    assert [path for path, _ in found] == PATHS
    arrays = dict(found)
    pair = arrays.pop("moe.linear")
    assert isinstance(pair, gdist.QuantizedWeight8bit)
    arrays |= {"moe.linear.weight": pair.weight, "moe.linear.scales": pair.scales}
    for name, array in sample().items():
        assert (arrays[name].shape, arrays[name].dtype) == (array.shape, array.dtype)
        assert bits(arrays[name]) == array.tobytes(), name
    assert threads() == []


def test_devices_with_memory_of_their_own_are_fed_likewise(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = gdist.stream  # imports the module, whose name the function has
    monkeypatch.setattr(sys.modules["gdist.loader.stream"], "_on_cpu", lambda array: False)
    assert [path for path, _ in stream(root)] == PATHS


def test_half_of_a_pair_has_its_own_name(tmp_path: Path) -> None:
    half = {"moe.linear.weight": sample()["moe.linear.weight"]}
    write_store(tmp_path / "s", half, quantised=PAIR)
    ((path, array),) = gdist.stream(tmp_path / "s")
    assert path == "moe.linear.weight" and bits(array) == half[path].tobytes()


def test_select_and_verify_are_those_of_load(root: Path) -> None:
    assert [path for path, _ in gdist.stream(root, select=[r"layer", "linear$"])] == PATHS[1:4]
    assert [path for path, _ in gdist.stream(root, select="layer", verify=False)] == [PATHS[1], PATHS[3]]
    with pytest.raises(RequestError, match="chooses no tensor"):
        next(gdist.stream(root, select="absent"))


def test_a_target_gives_the_paths_of_its_leaves_in_loading_order(root: Path) -> None:
    struct = jax.ShapeDtypeStruct
    device = jax.devices()[0]
    placed = struct((16, 32), np.float32, sharding=jax.sharding.SingleDeviceSharding(device))
    target = {"a": [struct((8, 64), np.float32), struct((8, 64), np.float32)], "z": placed, "again": placed}
    rename = {"a.0": "layer.1.w", "a.1": "layer.0.w", "z": "embed", "again": "embed"}
    found = list(gdist.stream(root, target=target, select="embed|layer", rename=rename))
    assert [path for path, _ in found] == ["again", "z", "a.1", "a.0"]
    for path, array in found:
        assert bits(array) == sample()[rename[path]].tobytes()
    assert isinstance(found[0][1].sharding, jax.sharding.SingleDeviceSharding)
    with pytest.raises(RequestError, match="1 missing in the store"):
        next(gdist.stream(root, target=[placed], select="embed"))


def test_wide_types_are_refused_and_not_narrowed_on_the_thread(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"big": np.array([2**40, 5])})
    with pytest.raises(RequestError, match="64-bit"):
        next(gdist.stream(tmp_path / "s"))
    with jax.enable_x64(True):
        ((_, big),) = gdist.stream(tmp_path / "s")
        assert int(big[0]) == 2**40


def test_damage_is_told_when_it_is_its_turn(root: Path) -> None:
    path = root / "layer.1.w/c/0/0"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    found = []
    with pytest.raises(CorruptError, match=r"'layer.1.w'"):
        for name, _ in gdist.stream(root):
            found.append(name)
    assert found == PATHS[:3]
    path.unlink()
    with pytest.raises(CorruptError, match="is missing"):
        list(gdist.stream(root, verify=False))
    assert threads() == []


class Counting:
    """A reader that knows how many tensors it was asked to check."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.checked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def check(self, requests: Any, workers: int = 1) -> None:
        requests = list(requests)
        self.checked += [tensor.name for tensor, _ in requests if tensor.name not in self.checked]
        self._reader.check(requests, workers)


def test_little_is_read_ahead(tmp_path: Path) -> None:
    arrays = {f"layer.{n}.w": np.full((4,), n, np.float32) for n in range(20)}
    write_store(tmp_path / "s", arrays)
    with gdist.open(tmp_path / "s") as store:
        store._reader = reader = Counting(store._reader)  # type: ignore[assignment]
        for number, (path, _) in enumerate(gdist.stream(store), 1):
            assert path in reader.checked
            assert len(reader.checked) <= number + 2
        assert reader.checked == list(arrays)


@pytest.mark.parametrize("way", ["break", "close", "error"])
def test_an_iteration_that_is_left_ends_its_thread(way: str, root: Path) -> None:
    if way == "close":
        found = gdist.stream(root)
        next(found)
        assert "gdist-stream" in threads()
        found.close()
    elif way == "break":
        for _ in gdist.stream(root):
            break
    else:
        with pytest.raises(ZeroDivisionError):
            for _ in gdist.stream(root):
                1 / 0  # noqa: B018
    assert threads() == []


def test_a_process_ends_though_an_iteration_is_open(root: Path) -> None:
    script = f"import gdist; stream = gdist.stream({str(root)!r}); print(next(stream)[0]); held = [stream]"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout, done.stderr) == (0, "embed\n", "")


def test_times_that_are_none_are_refused(root: Path) -> None:
    with pytest.raises(RequestError, match="start_timeout 'soon'"):
        next(gdist.stream(root, start_timeout="soon"))


def test_shards_of_another_host_are_missed(tmp_path: Path) -> None:
    rules = {"rules": [[".*", ["data"]]]}
    write_store(
        tmp_path / "s", {"w": np.ones((4, 2), np.float32)}, mesh="2x1", rules=rules, host=HostGroup(0, 2)
    )
    with gdist.open(tmp_path / "s") as store, pytest.raises(RequestError, match="written by host 1 of 2"):
        next(gdist.stream(store))
    with pytest.raises(TransferError, match="no fetch of host 1 into"):
        next(gdist.stream(tmp_path / "s", start_timeout=0.1))


# --- a fetch in another process ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """2 MB, so that the first tensors are a small part of it."""
    root = tmp_path_factory.mktemp("from") / "llama"
    return root, write_safetensors(root, emb=128, layers=4)


@pytest.fixture(scope="module")
def seeded(content: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(content[0], piece_length=1 << 14, process=True) as found:
        yield found


@pytest.fixture
def tap(seeded: Seeded) -> Iterator[Slow]:
    """A way to the seeder that ends after half of the payload, until its limit is lifted."""
    with Slow(seeded.port, limit=1_100_000) as way:
        yield way


def through(tap: Slow, seeded: Seeded) -> str:
    return format_magnet(replace(seeded.magnet, peers=((LOCALHOST, tap.port),)))


@contextmanager
def fetching_elsewhere(source: str, dest: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a process of its own."""
    words = ["fetch", source, str(dest), "--no-dht", "--listen", f"{LOCALHOST}:0", "--quiet"]
    with subprocess.Popen([sys.executable, "-m", "gdist", *words], stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def committed(dest: Path) -> set[str]:
    progress, _ = parse_journal((dest / ".gdist/journal.jsonl").read_bytes())
    assert progress
    return {name for name, _ in progress.shards}


def test_layers_come_while_later_ones_download(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tap: Slow, tmp_path: Path
) -> None:
    dest, found = tmp_path / "s", {}
    stream = gdist.stream(dest)  # before there is anything
    with fetching_elsewhere(through(tap, seeded), dest) as process:
        for path, array in stream:
            if not found:  # the second half of the payload cannot have come
                assert not (dest / "gdist.json").exists()
                assert committed(dest) < set(content[1])
                tap.limit = inf
            found[path] = bits(array)
        assert process.wait(60) == 0
    assert list(found) == list(loading_order(content[1]))
    assert found == {name: array.tobytes() for name, array in content[1].items()}
    assert_holds(dest, content[1])


def test_a_fetch_that_was_killed_is_told(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tap: Slow, tmp_path: Path
) -> None:
    dest, found = tmp_path / "s", {}
    with fetching_elsewhere(through(tap, seeded), dest) as process:
        stream = gdist.stream(dest, start_timeout=60)
        found.update([next(stream)])
        process.kill()
        process.wait()
    late = gdist.stream(dest, start_timeout=0.3)
    with pytest.raises(TransferError, match=r"no fetch into .* ran for .* is not complete") as caught:
        for path, array in late:
            found[path] = array
    assert "run the same gdist fetch again" in caught.value.hint
    assert 0 < len(found) < len(content[1])
    for path, array in found.items():
        assert bits(array) == content[1][path].tobytes()

    # The first iteration is still there, and goes on with the next fetch.
    tap.limit = inf
    with fetching_elsewhere(through(tap, seeded), dest) as process:
        rest = dict(stream)
        assert process.wait(60) == 0
    assert len(rest) == len(content[1]) - 1
    for path, array in rest.items():
        assert bits(array) == content[1][path].tobytes()


# --- a fetch in this process ------------------------------------------------------------------------------


def test_one_process_fetches_and_streams(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tap: Slow, tmp_path: Path
) -> None:
    recorder, found = Recorder(), {}
    with gdist.fetching(through(tap, seeded), tmp_path / "s", observe=recorder, **ALONE) as job:
        for path, array in gdist.stream(job):
            if not found:
                assert not job.done and len(recorder.of(TensorReady)) < len(content[1])
                tap.limit = inf
            found[path] = bits(array)
        assert job.done, "an iteration over all of it ends with the store complete"
    assert job.result().path == str(tmp_path / "s") and not job.result().already
    assert found == {name: array.tobytes() for name, array in content[1].items()}
    assert list(gdist.load(job)["model"]) == ["embed_tokens", "layers", "norm"]
    assert threads() == []


def test_a_part_is_streamed_and_the_rest_is_fetched_on_request(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tap: Slow, tmp_path: Path
) -> None:
    with gdist.fetching(through(tap, seeded), tmp_path / "s", **ALONE) as job:
        found = dict(gdist.stream(job, select="embed_tokens"))
        assert list(found) == ["model.embed_tokens.weight"] and not job.done
        tap.limit = inf
        assert job.result().manifest.nbytes == sum(array.nbytes for array in content[1].values())
    assert_holds(tmp_path / "s", content[1])


@pytest.mark.parametrize("way", ["break", "error"])
def test_leaving_the_block_early_stops_the_fetch(
    way: str, content: tuple[Path, dict[str, Array]], seeded: Seeded, tap: Slow, tmp_path: Path
) -> None:
    source, dest = through(tap, seeded), tmp_path / "s"
    try:
        with gdist.fetching(source, dest, **ALONE) as job:
            for _ in gdist.stream(job):
                if way == "error":
                    raise ZeroDivisionError
                break
    except ZeroDivisionError:
        assert way == "error"
    assert job.done and threads() == []
    with pytest.raises(InterruptedRun):
        job.result()
    assert committed(dest) and not (dest / "gdist.json").exists()
    tap.limit = inf
    with gdist.fetching(source, dest, **ALONE) as job:  # goes on where that one stopped
        assert len(list(gdist.stream(job))) == len(content[1])


def test_what_ends_a_fetch_ends_its_stream(tmp_path: Path) -> None:
    alone = {**ALONE, "metadata_timeout": 0.2}
    with pytest.raises(NoPeersError), gdist.fetching("ab" * 20, tmp_path / "s", **alone) as job:
        with pytest.raises(NoPeersError):  # here, and again at the end of the block
            next(gdist.stream(job))
        assert job.done
    for dest, options, said in (
        (tmp_path / "s", {"mesh": "0x1"}, "mesh"),
        ("memory://stream/job", alone, "cannot be streamed while it runs"),
    ):
        with pytest.raises(RequestError, match=said), gdist.fetching("ab" * 20, dest, **options) as job:
            next(gdist.stream(job))


def test_a_complete_store_is_fetched_and_streamed_at_once(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    magnet = format_magnet(seeded.magnet)
    gdist.fetch(magnet, tmp_path / "s", **ALONE)
    with gdist.fetching(magnet, tmp_path / "s", **ALONE) as job:
        assert len(list(gdist.stream(job))) == len(content[1])
        assert job.result().already


def test_a_damaged_shard_of_an_unfinished_store_is_corrupt(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tap: Slow, tmp_path: Path
) -> None:
    dest = tmp_path / "s"
    with gdist.fetching(through(tap, seeded), dest, **ALONE) as job:
        (first, _), (second, _) = islice(gdist.stream(job), 2)
    shard = next(path for path in (dest / second / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    stream = gdist.stream(dest, start_timeout=5)
    assert next(stream)[0] == first
    with pytest.raises(CorruptError, match="differs from its digest"):
        next(stream)
