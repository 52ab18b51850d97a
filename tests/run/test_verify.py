"""Verifying offline finds every kind of damage, all of it, and nothing in a sound store."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

import gdist
from gdist.core.box import Box
from gdist.core.mesh import HostGroup
from gdist.errors import CorruptError, FilesystemError, RequestError
from gdist.events import Event
from gdist.run.verify import ShardVerified, verify
from gdist.testing.stores import Array, write_store

ASSETS = {"config.json": b"{}", "tokenizer/vocab.txt": b"a b c"}


def sample() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {
        "a.w": rng.integers(-128, 127, (64, 128)).astype(np.int8),
        "b": rng.standard_normal((8, 8)).astype(np.float32),
        "scalar": np.array(4.0, np.float32),
        "none": np.zeros((3, 0), np.float32),
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_store(tmp_path / "s", sample(), mesh="2", chunk_bytes=512, assets=ASSETS)
    return tmp_path / "s"


def change(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_sound_store_has_no_fault(root: Path) -> None:
    events: list[Event] = []
    report = verify(root, workers=2, observe=events.append)
    assert report.ok and report.faults == ()
    assert (report.shards, report.assets) == (3, 2)
    shards = [event for event in events if isinstance(event, ShardVerified)]
    assert [event.tensor for event in shards] == ["a.w", "b", "scalar"]
    assert sum(event.nbytes for event in shards) == report.nbytes >= sum(a.nbytes for a in sample().values())
    assert gdist.verify is verify


@pytest.mark.parametrize("workers", [0, -1])
def test_without_workers_nothing_is_verified(workers: int, root: Path) -> None:
    with pytest.raises(RequestError, match=f"{workers} workers do nothing"):
        verify(root, workers=workers)
    with gdist.open(root) as store, pytest.raises(RequestError, match="do nothing"):
        store.check({}, workers=workers)
    with pytest.raises(RequestError, match="do nothing"):
        gdist.view(root, workers=workers)


def test_a_shard_that_may_not_be_read_is_not_called_damaged(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def locked(path: Path, flags: int) -> int:  # root may read everything, so the system is made to refuse
        if str(path).endswith("/c/0/0"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags)

    monkeypatch.setattr(os, "open", locked)
    with pytest.raises(FilesystemError, match=r"s/(a\.w|b)/c/0/0 cannot be read: Permission denied"):
        verify(root)
    with gdist.open(root) as store:
        for name in ("a.w", "b"):
            with pytest.raises(FilesystemError, match="cannot be read"):
                store[name].read()
        with pytest.raises(FilesystemError, match=r"a.w.*cannot be read.*; .*b/.*cannot be read"):
            store.check({name: [Box.whole(sample()[name].shape)] for name in ("a.w", "b")})


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "chunk": (lambda r: change(r / "a.w/c/0/0", 4096 + 9), "a.w/c/0/0", "differs from its digest"),
    "index": (lambda r: change(r / "a.w/c/0/0", -8), "a.w/c/0/0", "another sharding index"),
    "index checksum": (lambda r: change(r / "a.w/c/0/0", -1), "a.w/c/0/0", "wrong checksum"),
    "missing": (lambda r: (r / "b/c/0/0").unlink(), "b/c/0/0", "is missing"),
    "cut": (lambda r: os.truncate(r / "b/c/0/0", 3), "b/c/0/0", "has 3 bytes"),
    "grown": (lambda r: os.truncate(r / "b/c/0/0", 9999), "b/c/0/0", "has 9999 bytes"),
    "no document": (lambda r: (r / "b/zarr.json").unlink(), "b/zarr.json", "is missing"),
    "no json": (lambda r: change(r / "b/zarr.json", 0), "b/zarr.json", "is not JSON"),
    "no root": (lambda r: (r / "zarr.json").unlink(), "zarr.json", "is missing"),
    "no tree": (lambda r: (r / "_METADATA").unlink(), "_METADATA", "is missing"),
    "tree": (lambda r: change(r / "_METADATA", 60), "_METADATA", "manifest"),
    "no marker": (lambda r: (r / "commit_success.txt").unlink(), "commit_success.txt", "is missing"),
    "asset": (lambda r: change(r / "assets/tokenizer/vocab.txt", 0), "assets/tokenizer/vocab.txt", "digest"),
    "asset cut": (lambda r: os.truncate(r / "assets/config.json", 1), "assets/config.json", "has 1 bytes"),
    "asset missing": (lambda r: (r / "assets/config.json").unlink(), "assets/config.json", "is missing"),
}


@pytest.mark.parametrize(("damage", "path", "what"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found_and_named(root: Path, damage: Callable[[Path], None], path: str, what: str) -> None:
    damage(root)
    report = verify(root)
    assert not report.ok
    assert [fault.path for fault in report.faults] == [path]
    assert what in report.faults[0].what


def test_a_damaged_chunk_is_named(root: Path) -> None:
    change(root / "a.w/c/0/0", 4096 + 600)
    (fault,) = verify(root).faults
    assert fault.tensor == "a.w" and fault.chunk is not None
    assert "a.w/c/0/0, chunk" in str(fault)


def test_every_fault_is_collected(root: Path) -> None:
    for damage, _, _ in DAMAGE.values():
        try:
            damage(root)
        except FileNotFoundError:
            continue
    assert len(verify(root).faults) >= 7


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", [8, 9]), ("data_type", "int32"), ("codecs", []), ("chunk_grid", {"name": "regular"})],
)
def test_documents_that_disagree_are_faults(root: Path, field: str, value: object) -> None:
    path = root / "b/zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    faults = verify(root).faults
    assert faults[0].path == "b/zarr.json" and field in faults[0].what
    assert faults[1].path == "zarr.json"  # the consolidated copy is another now


def test_a_host_s_part_is_sound_by_itself(tmp_path: Path) -> None:
    for index in range(2):
        write_store(tmp_path / f"{index}", sample(), mesh="4", host=HostGroup(index, 2))
    report = verify(tmp_path / "1")
    assert report.ok and report.absent_hosts == (0,)
    shutil.copytree(tmp_path / "0", tmp_path / "1", dirs_exist_ok=True)
    report = verify(tmp_path / "1")
    assert report.ok and report.absent_hosts == ()


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_remote_store_is_verified_too(request: pytest.FixtureRequest, codec: str) -> None:
    url = f"memory://{request.node.name}"
    write_store(url, sample(), mesh="2", chunk_bytes=512, codec=codec, assets=ASSETS)
    report = verify(url)
    assert report.ok and report.nbytes == sum(array.nbytes for array in sample().values())
    with gdist.open(url) as store:
        array = store["a.w"].tensorstore()
        array[20, 100] = int(array[20, 100].read().result()) ^ 1
    (fault,) = verify(url).faults
    assert fault.path == "a.w/c/0/0" and fault.chunk is not None


def test_what_is_no_store_cannot_be_verified(tmp_path: Path, root: Path) -> None:
    with pytest.raises(RequestError):
        verify(tmp_path)
    change(root / "gdist.json", 400)
    with pytest.raises(CorruptError):
        verify(root)


def test_the_digest_is_blake3(root: Path) -> None:
    with gdist.open(root) as store:
        (digest,) = store.manifest.tensors[2].shards[()]
    assert digest == blake3(np.float32(4.0).tobytes()).hexdigest()
