"""Views: made over any finished download or fetched as one, read everywhere a store is, and never a lie."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore as ts

import gdist
from gdist.core.dtypes import BY_SAFETENSORS
from gdist.core.magnet import format_magnet
from gdist.core.order import loading_order
from gdist.errors import CorruptError, RequestError, ResumeError, UnsupportedError
from gdist.events import Event, ShardCommitted, TensorReady
from gdist.run import view_sink
from gdist.run.verify import verify
from gdist.run.view import ViewOptions, make_view
from gdist.sources.torrent import Version, magnet_of, make_torrent
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, stopped_when, tree_of
from gdist.testing.swarm import Seeded, WebSeed, seed

SWARM = {"dht": False, "lsd": False, "listen": "127.0.0.1:0"}


@pytest.fixture
def grok(tmp_path: Path) -> tuple[Path, dict[str, Array]]:
    root = tmp_path / "grok"
    return root, write_grok1(root, layers=2, emb=64, ffn=256, vocab=512)


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, dict[str, Array]]:
    root = tmp_path / "llama"
    expected = write_safetensors(root, emb=32, vocab=128)
    (root / "config.json").write_bytes(b"{}")
    return root, expected


def files_of(root: Path) -> dict[str, tuple[int, int]]:
    """Length and time of change of every file."""
    found = {path.relative_to(root).as_posix(): path.stat() for path in root.rglob("*") if path.is_file()}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def by_tensorstore(root: Path, name: str) -> Array:
    base = {"driver": "file", "path": f"{root}/"}
    spec = {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
    spec["fill_missing_data_reads"] = False
    return np.asarray(ts.open(spec, open=True).result().read().result())


@pytest.mark.parametrize("kind", ["grok", "llama"])
@pytest.mark.parametrize("where", [None, "view"])
def test_a_download_becomes_a_store_in_place(
    kind: str, where: str | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    payload, expected = request.getfixturevalue(kind)
    before = files_of(payload)
    made = gdist.view(payload, None if where is None else tmp_path / where)
    root = Path(made.path)
    assert not made.already
    assert before.items() <= files_of(payload).items(), "the payload is as it was"
    assert_holds(root, {name: np.asarray(array) for name, array in expected.items()})
    for name, array in expected.items():
        assert by_tensorstore(root, name).tobytes() == np.asarray(array).tobytes()
    assert verify(root).ok
    assert gdist.view(payload, None if where is None else root).already
    if where:
        index = [path for path in root.rglob("*") if path.is_file() and "payload" not in path.parts]
        assert sum(path.stat().st_size for path in index) < 200_000, "an index, and no copy"
        moved = tmp_path.with_name(f"{tmp_path.name}-moved")
        shutil.move(tmp_path, moved)  # with the payload beside it
        assert_holds(moved / where, {name: np.asarray(array) for name, array in expected.items()})


def test_a_view_knows_how_its_release_is_split(grok: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    payload, _ = grok
    view = gdist.view(payload, tmp_path / "view")
    split = gdist.reshard(payload, tmp_path / "split", mesh="2x4").manifest
    again = gdist.reshard(view.path, tmp_path / "again", mesh="2x4").manifest
    assert any(any(tensor.spec.dims) for tensor in split.tensors)
    assert [(t.name, t.spec) for t in again.tensors] == [(t.name, t.spec) for t in split.tensors]
    checked = gdist.check_rules(view.path, mesh="2x4")
    assert [(t.name, t.spec) for t in checked.tensors] == [(t.name, t.spec) for t in split.tensors]


def test_a_payload_may_have_a_view_in_place_and_others(
    llama: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    gdist.view(llama[0])
    assert gdist.view(llama[0], tmp_path / "view").manifest.tensors == gdist.view(llama[0]).manifest.tensors


def test_one_file_is_viewed_from_beside_it(llama: tuple[Path, dict[str, Array]]) -> None:
    file = next(llama[0].glob("*.safetensors"))
    made = gdist.view(file)
    assert made.path == f"{file}.view"
    with gdist.open(made.path) as store:
        assert all(np.array_equal(store[name], llama[1][name]) for name in store)


def test_a_view_is_of_the_payload_that_was_asked_for(
    llama: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    """Another payload may have the same names, lengths and shapes; and one may be moved."""
    root, other = tmp_path / "view", tmp_path / "other"
    gdist.view(llama[0], root)
    changed = write_safetensors(other, emb=32, vocab=128, seed=1)
    (other / "config.json").write_bytes(b"{}")
    assert not gdist.view(other, root).already
    assert_holds(root, {name: np.asarray(array) for name, array in changed.items()})
    other.rename(tmp_path / "moved")
    assert not gdist.view(tmp_path / "moved", root).already
    assert verify(root).ok


def test_a_view_that_knows_its_torrent_keeps_it(llama: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    root = tmp_path / "view"
    with seed(llama[0]) as seeded:
        gdist.fetch(format_magnet(seeded.magnet), root, layout="view", **SWARM)
    before, what = files_of(root), gdist.inspect(root).info_hash
    assert what and gdist.view(root).already
    assert files_of(root) == before and gdist.inspect(root).info_hash == what
    with pytest.raises(RequestError, match="holds a view of other tensors"):
        gdist.view(root, select="norm")
    with pytest.raises(RequestError, match="holds a view of 'llama', not of"):
        gdist.view(llama[0], root)
    assert files_of(root) == before
    config = root / "payload" / "llama" / "config.json"
    config.write_bytes(b"{} ")
    with pytest.raises(CorruptError, match=r"config\.json has 3 bytes, the payload's file 2"):
        gdist.view(root)


def test_what_cannot_be_viewed_leaves_nothing(llama: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    file = max(llama[0].glob("*.safetensors"), key=lambda path: path.stat().st_size)
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size - 3 * 4096)
        opened.truncate(size)
        if os.lseek(opened.fileno(), 0, os.SEEK_HOLE) == size:
            pytest.skip("this file system has no holes")
    with pytest.raises(CorruptError, match="a hole at byte"):
        gdist.view(llama[0], tmp_path / "view")
    assert not (tmp_path / "view").exists()


def test_a_directory_whose_name_is_no_text_holds_no_view(
    llama: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    payload = tmp_path / os.fsdecode(b"caf\xe9")
    llama[0].rename(payload)
    for dest in (None, tmp_path / "view"):
        with pytest.raises(RequestError, match="not UTF-8"):
            gdist.view(payload, dest)
    payload.rename(llama[0])
    with pytest.raises(RequestError, match="not UTF-8"):
        gdist.view(llama[0], payload)


def test_a_store_of_shards_is_no_payload(llama: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    gdist.reshard(llama[0], tmp_path / "shards", mesh="1x2")
    with pytest.raises(RequestError, match="is a store of shards already"):
        gdist.view(tmp_path / "shards", tmp_path / "view")
    with pytest.raises(RequestError, match="is a store of shards already"):
        gdist.view(tmp_path / "shards")


def test_every_way_to_read_a_store(grok: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    payload, expected = grok
    root = gdist.view(payload).path
    whole = sorted(np.asarray(array).tobytes() for array in expected.values())
    assert sorted(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(gdist.load(root))) == whole
    streamed = [
        np.asarray(leaf).tobytes() for _, item in gdist.stream(root) for leaf in jax.tree.leaves(item)
    ]
    assert sorted(streamed) == whole
    with gdist.open(root) as store:
        name = max(expected, key=lambda key: expected[key].ndim)
        assert np.array_equal(store[name][0, 1:3], expected[name][0, 1:3])
        seen = store[name].view()
        assert seen is not None and not seen.flags.owndata and not seen.flags.writeable
        assert store[name].tensorstore().shape == expected[name].shape
    gdist.reshard(root, tmp_path / "shards", mesh="2x4")
    assert_holds(tmp_path / "shards", expected)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_scalars_are_arrays_of_no_dimension(kind: str, tmp_path: Path) -> None:
    scalars: dict[str, Array] = {}
    for number, dtype in enumerate(BY_SAFETENSORS.values()):
        if kind == "safetensors" or not dtype.needs_ml_dtypes:
            wide = dtype.itemsize == 8  # JAX narrows those by default, and a load refuses to
            scalars[f"{'wide' if wide else 'one'}.{dtype.name}"] = np.array(number % 3).astype(dtype.name)
    payload = tmp_path / "p"
    if kind == "safetensors":
        write_safetensors(payload, scalars, shards=1)
    else:
        payload.mkdir()
        for name, scalar in scalars.items():
            (payload / name).write_bytes(pickle.dumps(scalar, protocol=4))
    root = gdist.view(payload).path
    with gdist.open(root) as store:
        assert len(store) == len(scalars)
        for name in store:
            expected = scalars[name]
            seen = store[name].view()
            assert isinstance(seen, np.ndarray) and (seen.shape, seen.dtype) == ((), expected.dtype), name
            assert seen.tobytes() == expected.tobytes() and not seen.flags.writeable
            assert np.asarray(store[name]).tobytes() == store[name][()].tobytes() == expected.tobytes()
    narrow = sorted(array.tobytes() for name, array in scalars.items() if name.startswith("one"))
    loaded = jax.tree.leaves(gdist.load(root, select="one"))
    assert sorted(np.asarray(leaf).tobytes() for leaf in loaded) == narrow
    streamed = [leaf for _, item in gdist.stream(root, select="one") for leaf in jax.tree.leaves(item)]
    assert sorted(np.asarray(leaf).tobytes() for leaf in streamed) == narrow
    gdist.reshard(root, tmp_path / "shards", mesh="2")
    with gdist.open(root) as store:
        assert_holds(tmp_path / "shards", {name: np.asarray(store[name]) for name in store})


def test_fortran_order_is_a_transposed_chunk(tmp_path: Path) -> None:
    payload, value = tmp_path / "p", np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    payload.mkdir()
    (payload / "w").write_bytes(pickle.dumps(value, protocol=4))
    root = Path(gdist.view(payload).path)
    with gdist.open(root) as store:
        (name,) = store
        assert np.array_equal(store[name], value) and np.array_equal(store[name][1, :, 2], value[1, :, 2])
    assert np.array_equal(by_tensorstore(root, name), value)
    assert verify(root).ok


def test_a_view_behind_a_web_server(llama: tuple[Path, dict[str, Array]]) -> None:
    gdist.view(llama[0])
    with WebSeed(llama[0].parent) as web:
        url = f"{web.url}llama"
        assert_holds(url, {name: np.asarray(array) for name, array in llama[1].items()})
        assert verify(url).ok
        file = max(llama[0].glob("*.safetensors"))
        damage(file, file.stat().st_size - 3)
        (fault,) = verify(url).faults
        assert "differs from its digest" in fault.what and fault.tensor


# --- what is wrong ----------------------------------------------------------------------------------------


def damage(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_a_payload_that_changed_is_refused_by_name_and_place(grok: tuple[Path, dict[str, Array]]) -> None:
    root = Path(gdist.view(grok[0]).path)
    with gdist.open(root) as store:
        name = max(store, key=lambda key: store[key].nbytes)
    manifest = json.loads((root / "gdist.json").read_bytes())
    row = next(row for row in manifest["tensors"] if row["name"] == name)
    number, offset = row["view"][2][0]
    file = root / manifest["files"][number][0]
    damage(file, offset + 5)
    with gdist.open(root) as store, pytest.raises(CorruptError, match=f"at byte {offset} of {file}"):
        store[name].read()
    (fault,) = verify(root).faults
    assert (fault.path, fault.tensor) == (
        file.relative_to(root).as_posix(),
        name,
    ) and f"at byte {offset}" in fault.what
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with gdist.open(root) as store, pytest.raises(CorruptError, match=f"{file} has {len(content) - 1} bytes"):
        store[name].read()
    file.unlink()
    with gdist.open(root) as store, pytest.raises(CorruptError, match=f"{file} of the payload is missing"):
        store[name].read()
    assert {fault.path for fault in verify(root).faults} == {file.relative_to(root).as_posix()}
    with pytest.raises(CorruptError, match="missing"):
        gdist.reshard(root, root.parent / "shards", mesh="1")


def test_holes_are_an_unfinished_download(grok: tuple[Path, dict[str, Array]]) -> None:
    file = max((path for path in grok[0].rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    size = file.stat().st_size
    with open(file, "r+b") as opened:  # its end was never written
        opened.truncate(size // 4096 // 2 * 4096)
        opened.truncate(size)
    if file.stat().st_blocks * 512 >= size:
        pytest.skip("this file system has no holes")
    with pytest.raises((CorruptError, UnsupportedError), match=r"holes|opcode|ends|STOP"):
        gdist.view(grok[0])


def test_an_index_that_was_tampered_with_is_found(llama: tuple[Path, dict[str, Array]]) -> None:
    root = Path(gdist.view(llama[0]).path)
    (nodes,) = (root / "d").iterdir()
    damage(nodes, nodes.stat().st_size // 2)
    assert [fault.path for fault in verify(root).faults] == [f"d/{nodes.name}"]
    nodes.unlink()
    assert [fault.what for fault in verify(root).faults] == ["is missing"]


def test_without_reading_there_are_no_digests_and_verify_says_so(
    llama: tuple[Path, dict[str, Array]],
) -> None:
    made = make_view(llama[0], None, ViewOptions(trust=True))
    with pytest.raises(RequestError, match="no digests to be checked by"):
        verify(made.path)
    assert_holds(made.path, llama[1])
    assert not gdist.view(llama[0]).already, "asked for digests, it reads them"
    assert verify(made.path).ok
    assert gdist.view(llama[0], trust=True).already, "more than was asked for is enough"


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Array]]:
    """What Flax writes of an array that is too large for it, and of one that is not."""
    flax = pytest.importorskip("flax.serialization")
    arrays = {
        "cut": np.arange(7 * 5, dtype=np.float32).reshape(7, 5),
        "whole": np.arange(6, dtype=np.float32),
    }
    monkeypatch.setattr(flax, "MAX_CHUNK_SIZE", 96)  # bytes; 24 elements are no rows of 5
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax" / "model.msgpack").write_bytes(flax.msgpack_serialize(arrays))
    return tmp_path / "flax", arrays


def test_what_does_not_lie_there_as_it_is_is_named_and_the_rest_served_on_request(
    cut: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    payload, arrays = cut
    with pytest.raises(UnsupportedError, match=r"'cut' lies in parts of different shapes") as error:
        gdist.view(payload)
    assert "--partial" in error.value.hint
    assert not (payload / "gdist.json").exists()
    with seed(payload) as seeded:
        magnet = format_magnet(seeded.magnet)
        with pytest.raises(UnsupportedError, match=r"'cut' lies in parts of different shapes") as error:
            gdist.fetch(magnet, tmp_path / "v", layout="view", **SWARM)
        assert "--select" in error.value.hint and "--layout both" in error.value.hint
        gdist.fetch(magnet, tmp_path / "v", layout="view", select="whole", **SWARM)
        gdist.fetch(magnet, tmp_path / "b", layout="both", **SWARM)
    assert_holds(tmp_path / "b", arrays)
    made = gdist.view(payload, partial=True)
    assert len(made.left_out) == 1
    for root in (made.path, tmp_path / "v", tmp_path / "b" / "view"):
        assert_holds(root, {"whole": arrays["whole"]})


def test_one_pattern_is_one_pattern(llama: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    made = gdist.view(llama[0], tmp_path / "v", select="layers.1")
    names = [tensor.name for tensor in made.manifest.tensors]
    assert names == [name for name in loading_order(llama[1]) if "layers.1" in name]


def test_where_a_view_cannot_go(llama: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        gdist.view(tmp_path / "nothing")
    with pytest.raises(RequestError, match="inside the payload"):
        gdist.view(llama[0], llama[0] / "view")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"holds no view \(diary.txt\)"):
        gdist.view(llama[0], tmp_path / "mine")
    gdist.reshard(llama[0], tmp_path / "shards", mesh="1")
    with pytest.raises(RequestError, match="a store of shards"):
        gdist.view(llama[0], tmp_path / "shards")
    assert not list((tmp_path / "mine").glob("*.ocdbt"))


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA", "references.json", "gdist.json"])
def test_files_of_the_payload_are_never_replaced(
    llama: tuple[Path, dict[str, Array]], tmp_path: Path, name: str
) -> None:
    """An Orbax checkpoint beside other files, say; the index goes elsewhere then."""
    (llama[0] / name).write_bytes(b"their own")
    with pytest.raises(RequestError, match=f"payload's own: {name}"):
        gdist.view(llama[0])
    gdist.view(llama[0], tmp_path / "view", ignore=[name])
    assert (llama[0] / name).read_bytes() == b"their own"
    assert_holds(tmp_path / "view", llama[1])


def test_a_database_of_theirs_is_no_index_of_ours(llama: tuple[Path, dict[str, Array]]) -> None:
    theirs = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{llama[0]}/"}).result()
    theirs.write("key", b"value" * 100).result()
    before = tree_of(llama[0])
    with pytest.raises(RequestError, match=r"payload's own: manifest.ocdbt"):
        gdist.view(llama[0])
    assert tree_of(llama[0]) == before


def test_a_view_that_was_killed_before_its_manifest_is_made_again(
    llama: tuple[Path, dict[str, Array]],
) -> None:
    gdist.view(llama[0])
    (llama[0] / "gdist.json").unlink()
    gdist.view(llama[0])
    assert_holds(llama[0], llama[1])


def test_a_directory_of_the_payload_may_be_called_as_one_of_ours(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "payload" / "d", emb=32, vocab=128)
    gdist.view(tmp_path / "payload")
    gdist.view(tmp_path / "payload")
    assert_holds(tmp_path / "payload", expected)


def on_a_read_only_payload(payload: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs gdist where the payload's directory cannot be written to, not even by root."""
    script = f'{shlex.quote(sys.executable)} -m gdist "$@"'
    if os.geteuid() == 0:
        mount = f"mount --bind {payload} {payload} && mount -o remount,ro,bind {payload} && {script}"
        words = ["unshare", "-m", "sh", "-ec", mount, "sh"]
    else:
        words = ["sh", "-c", f"chmod 555 {payload} && {script}; x=$?; chmod 755 {payload}; exit $x", "sh"]
    return subprocess.run([*words, *command], capture_output=True, text=True, timeout=100)


def test_a_read_only_payload_takes_an_index_elsewhere(
    llama: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    refused = on_a_read_only_payload(llama[0], "view", str(llama[0]))
    assert refused.returncode == 17 and "Traceback" not in refused.stderr, refused.stderr
    done = on_a_read_only_payload(llama[0], "view", str(llama[0]), str(tmp_path / "view"))
    assert done.returncode == 0, done.stderr
    assert_holds(tmp_path / "view", llama[1])


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_with_its_torrent_a_download_is_held_against_every_hash(
    version: Version, llama: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    payload, expected = llama
    torrent = tmp_path / "llama.torrent"
    torrent.write_bytes(make_torrent(payload, version=version, piece_length=1 << 14))
    elsewhere = gdist.view(tmp_path / "llama", tmp_path / "view", torrent=torrent)
    assert elsewhere.manifest.source.info_hash == magnet_of(torrent.read_bytes()).info_hash.hex
    assert_holds(tmp_path / "view", expected)
    assert verify(tmp_path / "view").ok
    gdist.export(tmp_path / "view", tmp_path / "back")
    assert tree_of(tmp_path / "back" / "llama") == tree_of(payload)
    file = max(payload.glob("*.safetensors"))
    damage(file, file.stat().st_size - 3)
    (fault,) = verify(tmp_path / "view").faults
    assert "piece" in fault.what
    with pytest.raises(CorruptError, match=f"piece .* in {file.name}"):
        gdist.view(payload, torrent=torrent)
    assert not (payload / "gdist.json").exists()
    file.unlink()
    with pytest.raises(RequestError, match=f"does not have the files of 'llama' in full: {file.name}"):
        gdist.view(payload, torrent=torrent)
    with pytest.raises(RequestError, match="--trust reads none"):
        gdist.view(payload, torrent=torrent, trust=True)


# --- fetched as views -------------------------------------------------------------------------------------


@pytest.fixture
def seeded(llama: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(llama[0], piece_length=1 << 14) as found:
        yield found


@pytest.mark.torrent
def test_a_fetch_writes_no_second_byte(
    llama: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    dest, recorder = tmp_path / "dest", Recorder()
    done = gdist.fetch(format_magnet(seeded.magnet), dest, layout="view", observe=recorder, **SWARM)
    assert done.manifest.source.info_hash == seeded.magnet.info_hash.hex
    assert_holds(dest, llama[1])
    for name, array in llama[1].items():
        assert by_tensorstore(dest, name).tobytes() == np.asarray(array).tobytes()
    assert verify(dest).ok
    payload = sum(path.stat().st_size for path in llama[0].iterdir())
    assert sum(len(data) for data in tree_of(dest).values()) < payload + 200_000
    assert {event.tensor for event in recorder.of(TensorReady)} == set(llama[1])
    assert recorder.of(ShardCommitted)
    again = gdist.fetch(format_magnet(seeded.magnet), dest, layout="view", **SWARM)
    assert again.already
    with pytest.raises(ResumeError, match="codec view"):
        gdist.fetch(format_magnet(seeded.magnet), dest, **SWARM)
    damage(dest / done.manifest.files[1].path, done.manifest.files[1].nbytes - 3)
    (fault,) = verify(dest).faults
    assert "piece" in fault.what and fault.tensor


@pytest.mark.torrent
def test_a_stream_follows_a_fetch_and_other_readers_see_the_index_grow(
    llama: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_sink, "GROW_SECONDS", 0.0)
    dest, ready, reached, go_on = tmp_path / "dest", [], threading.Event(), threading.Event()

    def observe(event: Event) -> None:
        """Holds the fetch up once six tensors are there."""
        if isinstance(event, TensorReady):
            ready.append(event.tensor)
            if len(ready) == 6:
                reached.set()
                assert go_on.wait(60)

    seen = {}
    with gdist.fetching(format_magnet(seeded.magnet), dest, layout="view", observe=observe, **SWARM) as job:
        assert reached.wait(60)
        for name in ready:
            assert by_tensorstore(dest, name).tobytes() == np.asarray(llama[1][name]).tobytes()
        for name, array in gdist.stream(job):
            if not seen:
                assert not (dest / "gdist.json").exists()
                go_on.set()
            seen[name] = np.asarray(array).tobytes()
        job.result()
    assert seen == {name: np.asarray(array).tobytes() for name, array in llama[1].items()}


@pytest.mark.torrent
def test_shards_and_a_view(llama: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    gdist.fetch(format_magnet(seeded.magnet), dest, layout="both", mesh="1x2", **SWARM)
    assert_holds(dest, llama[1])
    assert_holds(dest / "view", llama[1])
    assert verify(dest).ok and verify(dest / "view").ok


@pytest.mark.torrent
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "view", "mesh": "2x4"}, "--mesh"),
        ({"layout": "view", "dtype": "float32"}, "--dtype"),
        ({"layout": "view", "codec": "zstd"}, "codec zstd"),
        ({"layout": "nothing"}, "none of zarr, view, both"),
    ],
)
def test_what_does_not_go_with_a_view(
    options: dict[str, str], words: str, seeded: Seeded, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        gdist.fetch(format_magnet(seeded.magnet), tmp_path / "dest", **options, **SWARM)  # type: ignore[arg-type]


@pytest.mark.torrent
def test_a_view_of_chosen_tensors(
    llama: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    dest = tmp_path / "dest"
    chosen = {name: array for name, array in llama[1].items() if "layers.1" in name}
    gdist.fetch(format_magnet(seeded.magnet), dest, layout="view", select="layers.1", **SWARM)
    assert_holds(dest, chosen)
    assert verify(dest).ok


@pytest.mark.torrent
def test_a_fetch_that_is_ended_goes_on_and_can_be_read_meanwhile(
    llama: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    dest, magnet = tmp_path / "dest", format_magnet(seeded.magnet)
    for most in (1, 4, 9):
        stopped_when(
            lambda told, most=most: len(told.of(ShardCommitted)) >= most,  # type: ignore[misc]
            lambda observe, stop: gdist.fetch(
                magnet, dest, layout="view", observe=observe, stop=stop, **SWARM
            ),
        )
        with pytest.raises(RequestError, match="not a store"):
            gdist.open(dest)
    assert not gdist.fetch(magnet, dest, layout="view", **SWARM).already
    assert_holds(dest, llama[1])
    assert verify(dest).ok


def test_a_flipped_byte_is_named_by_file_tensor_and_the_one_piece(
    llama: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    """A chunk may lie in several pieces, of which one is wrong."""
    root, length = tmp_path / "v", 1 << 14
    with seed(llama[0], piece_length=length) as seeded:
        gdist.fetch(format_magnet(seeded.magnet), root, layout="view", **SWARM)
    with gdist.open(root) as store:
        tensors = {tensor.name: tensor for tensor in store.manifest.tensors}
        files = store.manifest.files
    name = max(tensors, key=lambda key: llama[1][key].nbytes)
    view = tensors[name].view
    assert view is not None
    number, offset = view.at[0]
    path = root / files[number].path
    data = bytearray(path.read_bytes())
    data[offset + llama[1][name].nbytes - 1] ^= 1
    path.write_bytes(data)
    piece = ((files[number].offset or 0) + offset + llama[1][name].nbytes - 1) // length
    (fault,) = verify(root).faults
    assert str(fault).startswith(f"{files[number].path}, {name!r}, chunk (")
    assert f", piece {piece}, differs from its digest" in str(fault)
