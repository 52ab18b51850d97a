"""Parts: written in place from any piece, bounded in open files, honest about full and vanishing disks."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.layout import ShardLayout
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.payload import Payload, PayloadFile
from gdist.core.placer import Placement, Placer
from gdist.core.plan import HostPlan, ShardTask, plan_host
from gdist.core.rules import Rules, parse_rules
from gdist.core.tensor import Order, Part, StoredTensor, TensorSpec
from gdist.errors import FilesystemError, SpaceError
from gdist.sinks import parts
from gdist.sinks.local import LocalSink, write_atomically
from gdist.sinks.parts import FEW_RUNS, OPEN_FILES, SHORT_RUN, PartFiles

COLUMNS = parse_rules({"rules": [["w", [None, "model"]]]})


def one_tensor(
    shape: tuple[int, ...],
    *,
    dtype: str = "float32",
    order: Order = Order.C,
    piece_length: int = 4001,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    host: HostGroup | None = None,
    shard_bytes: int | None = None,
) -> tuple[HostPlan, np.ndarray, bytes]:
    """A plan of one tensor three bytes into its file, its elements as bytes, and the payload."""
    spec = TensorSpec("w", shape, BY_NAME[dtype])
    array = np.random.default_rng(0).integers(0, 256, (*shape, spec.dtype.itemsize), np.uint8)
    stored = array.transpose(*range(len(shape))[::-1], len(shape)) if order is Order.F else array
    content = b"abc" + np.ascontiguousarray(stored).tobytes()
    tensor = StoredTensor(spec, (Part(Extent(3, spec.nbytes), Box.whole(shape), order),))
    payload = Payload((PayloadFile("f", 0, len(content)),), piece_length, len(content))
    plan = plan_host(payload, [tensor], mesh or Mesh(), rules, host, shard_bytes=shard_bytes)
    return plan, array, content


def place_all(files: PartFiles, plan: HostPlan, content: bytes) -> None:
    placer = Placer(plan)
    for piece in np.random.default_rng(1).permutation(placer.wanted()).tolist():
        extent = plan.payload.extent_of(piece)
        files.place(placer.accept(piece), memoryview(content)[extent.start : extent.stop])


def content_of(path: Path, layout: ShardLayout) -> np.ndarray:
    data = np.fromfile(path, np.uint8)
    assert data.size == layout.file_nbytes
    values = np.empty((*layout.grid.shard, layout.itemsize), np.uint8)
    for index, extent in layout.chunks():
        where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, layout.grid.chunk, strict=True))
        values[where] = data[extent.start : extent.stop].reshape(*layout.grid.chunk, layout.itemsize)
    return values


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((600, 128), "runs of 64 bytes, thousands: through a map"),
        ((FEW_RUNS // 2, 128), "few short runs: by pwrite"),
        ((40, 8 * SHORT_RUN // 4), "runs that are long enough: by pwrite"),
        ((6, 40, 16), "rows of a last dimension of two elements"),
        ((5000, 8), "one element a run"),
    ],
)
def test_columns_land_where_they_belong(
    tmp_path: Path, order: Order, shape: tuple[int, ...], why: str
) -> None:
    axes = Mesh((("model", 8),))
    rules = parse_rules({"rules": [["w", [None] * (len(shape) - 1) + ["model"]]]})
    plan, array, content = one_tensor(
        shape, order=order, mesh=axes, rules=rules, host=HostGroup(3, 8), piece_length=2**20 + 1
    )
    files = PartFiles(tmp_path, plan)
    place_all(files, plan, content)
    (task,) = plan.tensors[0].shards
    np.testing.assert_array_equal(
        content_of(files.path(task), files.layout(task)), array[task.box.slices()], why
    )
    digest = blake3(np.ascontiguousarray(array[task.box.slices()]).tobytes()).hexdigest()
    assert files.seal(task) == (digest,)
    files.close()


@pytest.mark.parametrize("as_run", [False, True])
def test_a_chunk_placed_whole_is_digested_as_it_was_given(tmp_path: Path, as_run: bool) -> None:
    plan, array, content = one_tensor((64, 16), shard_bytes=2**20, piece_length=2**20)
    (task,) = plan.tensors[0].shards
    files = PartFiles(tmp_path, plan)
    box = Box((0, 0, 0), (64, 16, array.shape[-1]))
    whole = Placement(task, Extent(3, array.size), box.shape, box, box, Order.C)
    if as_run:
        (whole,) = Placer(plan).accept(0)
        assert whole.target == Extent(0, array.size)
    files.place([whole], memoryview(content))
    flat = files.path(task).read_bytes()
    files.path(task).write_bytes(bytes(len(flat)))  # what a disk may do to it shows against the digest
    assert files.seal(task) == (blake3(array.tobytes()).hexdigest(),)
    files.close()
    again = PartFiles(tmp_path, plan)
    assert again.present([task]) == {task}
    assert again.seal(task) == (blake3(bytes(array.size)).hexdigest(),), "what was there before is read"
    again.close()


def open_files(directory: Path) -> int:
    """How many files below a directory this process has open."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, such as the one that lists them
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum(link.startswith(str(directory)) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    plan, array, content = one_tensor((3 * OPEN_FILES, 16), shard_bytes=64, piece_length=100)
    tasks = plan.tensors[0].shards
    assert len(tasks) == 3 * OPEN_FILES
    sink = LocalSink(tmp_path / "store", tmp_path / "store/.gdist", plan)
    placer = Placer(plan)
    for piece in np.random.default_rng(1).permutation(placer.wanted()).tolist():
        extent = plan.payload.extent_of(piece)
        sink.place(placer.accept(piece), memoryview(content)[extent.start : extent.stop])
        placer.settle(piece)
        assert open_files(tmp_path) <= OPEN_FILES
    sink.sync()
    assert sink.restore(()) == (set(), set(tasks))
    assert len(placer.whole()) == len(tasks)
    for task in placer.whole():
        sink.commit(task)
    assert not open_files(tmp_path), "a committed shard's file is closed"
    for task in tasks:
        values = content_of(tmp_path / f"store/w/c/{task.index[0]}/0", plan.tensors[0].layout())
        np.testing.assert_array_equal(values, array[task.box.slices()])
    sink.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_is_said_and_leaves_no_part_of_a_wrong_size(tiny_disk: Path) -> None:
    plan, _, content = one_tensor((16, 100_000), dtype="int8", shard_bytes=400_000, piece_length=100_000)
    files = PartFiles(tiny_disk / "parts", plan)
    with pytest.raises(SpaceError, match="no space left for 400020 bytes") as caught:
        place_all(files, plan, content)
    assert "resumes" in caught.value.hint
    files.close()
    left = list((tiny_disk / "parts").iterdir())
    size = plan.tensors[0].layout().file_nbytes
    assert left and all(path.stat().st_size == size for path in left)
    assert files.present(plan.tensors[0].shards) == {
        task for task in plan.tensors[0].shards if files.path(task) in left
    }


def test_a_document_on_a_full_disk_leaves_the_old_one(tiny_disk: Path) -> None:
    write_atomically(tiny_disk / "gdist.json", b"old")
    with pytest.raises(SpaceError, match="no space left writing"):
        write_atomically(tiny_disk / "gdist.json", bytes(2 * 2**20))
    assert [path.name for path in tiny_disk.iterdir()] == ["gdist.json"]
    assert (tiny_disk / "gdist.json").read_bytes() == b"old"


def test_a_limit_on_file_size_is_an_error_and_leaves_no_part(tmp_path: Path) -> None:
    plan, _, content = one_tensor((8, 1000), dtype="int8", piece_length=1000)
    files = PartFiles(tmp_path / "parts", plan)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # Python ignores SIGXFSZ: an error comes instead
    try:
        with pytest.raises(FilesystemError, match="File too large for 8020 bytes"):
            place_all(files, plan, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "parts").iterdir()) == []
    place_all(files, plan, content)  # the next attempt begins anew
    files.close()


def test_a_part_that_vanishes_is_never_made_again_of_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "OPEN_FILES", 1)  # so that the file is not held open
    plan, _, content = one_tensor((4, 4), dtype="int8", shard_bytes=8, piece_length=4)
    files, placer = PartFiles(tmp_path, plan), Placer(plan)
    first, second = plan.tensors[0].shards
    for piece in placer.wanted()[:-1]:
        extent = plan.payload.extent_of(piece)
        files.place(placer.accept(piece), memoryview(content)[extent.start : extent.stop])
    files.path(first).unlink()
    for action in (lambda: files.seal(first), lambda: files.place(placer.accept(0), memoryview(content)[:4])):
        with pytest.raises(FilesystemError, match="vanished while it was written") as caught:
            action()
        assert "anew" in caught.value.hint
    assert not files.path(first).exists() and files.path(second).exists()
    files.close()


def test_a_shard_nobody_wrote_cannot_be_sealed(tmp_path: Path) -> None:
    plan, _, _ = one_tensor((4, 4))
    with pytest.raises(AssertionError, match="nothing was ever placed"):
        PartFiles(tmp_path, plan).seal(plan.tensors[0].shards[0])


def test_a_part_of_another_size_is_not_progress(tmp_path: Path) -> None:
    plan, array, content = one_tensor((4, 4))
    (task,) = plan.tensors[0].shards
    files = PartFiles(tmp_path, plan)
    files.path(task).write_bytes(b"\xee" * 7)
    assert files.present([task]) == set()
    place_all(files, plan, content)
    np.testing.assert_array_equal(content_of(files.path(task), files.layout(task)), array)
    assert files.present([task]) == {task}
    files.close()


def test_parts_have_names_of_their_own(tmp_path: Path) -> None:
    plan, _, _ = one_tensor((4, 4))
    files = PartFiles(tmp_path, plan)
    box = Box((), ())
    tasks = [
        ShardTask(1, (11, 1), box),
        ShardTask(11, (1, 1), box),
        ShardTask(1, (1, 11), box),
        ShardTask(1, (), box),
    ]
    assert len({files.path(task) for task in tasks}) == len(tasks)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan, _, content = one_tensor((4, 4))
    with pytest.raises(FilesystemError, match="Not a directory making"):
        place_all(PartFiles(tmp_path / "file/parts", plan), plan, content)


def test_only_what_was_placed_is_there_after_a_kill(tmp_path: Path) -> None:
    """A process that is killed between pieces leaves parts of the right size with the pieces it placed."""
    script = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_parts import one_tensor
from gdist.core.placer import Placement, Placer
from gdist.sinks.parts import PartFiles
plan, array, content = one_tensor((64, 64), piece_length=1000)
files, placer = PartFiles(Path({str(tmp_path)!r}), plan), Placer(plan)
for piece in placer.wanted()[:5]:
    extent = plan.payload.extent_of(piece)
    files.place(placer.accept(piece), memoryview(content)[extent.start : extent.stop])
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    plan, array, content = one_tensor((64, 64), piece_length=1000)
    (task,) = plan.tensors[0].shards
    files = PartFiles(tmp_path, plan)
    assert files.present([task]) == {task}
    placer = Placer(plan, placed=range(5), partial={task})
    for piece in placer.wanted():
        extent = plan.payload.extent_of(piece)
        files.place(placer.accept(piece), memoryview(content)[extent.start : extent.stop])
    np.testing.assert_array_equal(content_of(files.path(task), files.layout(task)), array)
    files.close()


def test_what_could_not_be_synced_is_still_to_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "OPEN_FILES", 1)  # so that the first part is opened anew
    plan, _, content = one_tensor((4, 4), dtype="int8", shard_bytes=8, piece_length=100)
    files, first = PartFiles(tmp_path, plan), plan.tensors[0].shards[0]
    place_all(files, plan, content)
    aside = files.path(first).rename(tmp_path / "aside")
    files.path(first).mkdir()
    for _ in range(2):
        with pytest.raises(FilesystemError, match="Is a directory opening"):
            files.sync()
    files.path(first).rmdir()
    aside.rename(files.path(first))
    files.sync()
    files.close()
