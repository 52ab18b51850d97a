"""From every kind of source to a store that holds exactly what the torrent names."""

from __future__ import annotations

import itertools
import pickle
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr

from gdist.core.magnet import Magnet, format_magnet, parse_magnet
from gdist.core.rules import parse_rules
from gdist.errors import UnsupportedError
from gdist.events import (
    AssetKept,
    Finished,
    Planned,
    ShardCommitted,
    Stage,
    StageStarted,
    TensorReady,
    TensorsPlanned,
)
from gdist.run.fetch import fetch
from gdist.run.verify import verify
from gdist.sources.torrent import Seeder, Version, magnet_of, make_torrent
from gdist.stores import open as open_store
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import LOCALHOST, LOOPBACK, Seeded, Tracker, WebSeed, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14
CONFIG = b'{"architectures": ["LlamaForCausalLM"]}\n'


def write_llama(root: Path) -> dict[str, Array]:
    """Two safetensors files with their index, and files without tensors."""
    expected = write_safetensors(root, emb=32, vocab=128)
    (root / "config.json").write_bytes(CONFIG)
    (root / "empty.txt").write_bytes(b"")
    (root / "tokenizer").mkdir()
    (root / "tokenizer/vocab.txt").write_bytes(b"a b c" * 5000)
    return expected


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    root = tmp_path_factory.mktemp("from") / "llama"
    return root, write_llama(root)


@pytest.fixture(scope="module")
def grok(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    root = tmp_path_factory.mktemp("from") / "grok"
    return root, write_grok1(root, layers=2)


@pytest.fixture(scope="module")
def seeded(llama: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(llama[0], piece_length=PIECE) as found:
        yield found


Content = tuple[Path, dict[str, Array]]


# --- sources ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
@pytest.mark.parametrize("kind", ["llama", "grok"])
def test_a_magnet_becomes_a_store(
    version: Version, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root, expected = request.getfixturevalue(kind)
    recorder = Recorder()
    with seed(root, version=version, piece_length=PIECE) as seeded:
        result = fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4"), observe=recorder)
    assert not result.already
    assert_holds(tmp_path / "s", expected)
    assert verify(tmp_path / "s").ok
    assert [event.stage for event in recorder.of(StageStarted)] == [
        Stage.METADATA,
        Stage.HEADERS,
        Stage.PLAN,
        Stage.FETCH,
        Stage.FINISH,
    ]
    assert {event.tensor for event in recorder.of(TensorReady)} == set(expected)
    (planned,) = recorder.of(Planned)
    assert len(recorder.of(ShardCommitted)) == planned.shards
    assert planned.bytes_wanted == sum(array.nbytes for array in expected.values()) == result.manifest.nbytes
    assert isinstance(recorder.events[-1], Finished)


def test_other_readers_see_the_same(seeded: Seeded, llama: Content, tmp_path: Path) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("8x8"))
    group = zarr.open_group(tmp_path / "s", mode="r")
    for name, array in llama[1].items():
        found = group[name]
        assert isinstance(found, zarr.Array)
        assert np.asarray(found[...]).tobytes() == array.tobytes()


def test_files_without_tensors_are_kept(seeded: Seeded, llama: Content, tmp_path: Path) -> None:
    recorder = Recorder()
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(), observe=recorder)
    names = {"config.json", "empty.txt", "tokenizer/vocab.txt", "model.safetensors.index.json"}
    assert {event.path for event in recorder.of(AssetKept)} == names
    assert tree_of(tmp_path / "s/assets") == {name: (llama[0] / name).read_bytes() for name in names}


def test_files_can_be_left_out(seeded: Seeded, llama: Content, tmp_path: Path) -> None:
    options = fetch_options(ignore=("*-00002-of-*", "*.index.json", "tokenizer/*"))
    fetch(format_magnet(seeded.magnet), tmp_path / "s", options)
    half = dict(itertools.islice(llama[1].items(), len(llama[1]) // 2))
    assert_holds(tmp_path / "s", half)
    assert set(tree_of(tmp_path / "s/assets")) == {"config.json", "empty.txt"}


@pytest.mark.parametrize("way", ["path", "file", "http"])
def test_a_torrent_file_is_a_source(way: str, seeded: Seeded, llama: Content, tmp_path: Path) -> None:
    path = tmp_path / "a model.torrent"
    path.write_bytes(seeded.torrent)
    torrent = replace(LOOPBACK, peers=((LOCALHOST, seeded.port),))
    with WebSeed(tmp_path) as server:  # any server of files does
        urls = {"path": str(path), "file": path.as_uri(), "http": f"{server.url}a%20model.torrent"}
        fetch(urls[way], tmp_path / "s", fetch_options(torrent=torrent))
    assert_holds(tmp_path / "s", llama[1])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_info_hash_and_a_tracker_are_enough(version: Version, llama: Content, tmp_path: Path) -> None:
    torrent = make_torrent(llama[0], version=version, piece_length=PIECE)
    with Tracker() as tracker:
        known = replace(LOOPBACK, trackers=(tracker.url,))
        with Seeder(torrent, llama[0].parent, known):
            until = time.monotonic() + 60
            while not tracker.announced:
                assert time.monotonic() < until, "the seeder did not announce itself"
                time.sleep(0.02)
            fetch(magnet_of(torrent).info_hash.hex, tmp_path / "s", fetch_options(torrent=known))
    assert_holds(tmp_path / "s", llama[1])


@pytest.mark.parametrize("version", ["v1", "hybrid"])
def test_a_web_seed_alone_is_enough(version: Version, llama: Content, tmp_path: Path) -> None:
    with WebSeed(llama[0].parent) as server:
        torrent = make_torrent(llama[0], version=version, piece_length=PIECE, web_seeds=[server.url])
        (tmp_path / "t.torrent").write_bytes(torrent)
        fetch(str(tmp_path / "t.torrent"), tmp_path / "s", fetch_options("2x4"))
    assert_holds(tmp_path / "s", llama[1])


def test_a_torrent_of_one_file_is_a_source(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "from", shards=1, index=False, emb=16, vocab=32)
    with seed(tmp_path / "from/model.safetensors", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4"))
    assert_holds(tmp_path / "s", expected)


def test_the_torrent_s_name_is_the_default_destination(
    seeded: Seeded, llama: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = replace(seeded.magnet, name="A Model/../v1 (final)")
    assert fetch(format_magnet(named), None, fetch_options()).path == "A-Model-..-v1--final"
    assert_holds(tmp_path / "A-Model-..-v1--final", llama[1])
    nameless = replace(seeded.magnet, name="")
    assert fetch(format_magnet(nameless), None, fetch_options()).path == seeded.magnet.info_hash.hex


# --- what files can hold ----------------------------------------------------------------------------------


def test_scalars_and_empty_arrays_are_kept(tmp_path: Path) -> None:
    tensors: dict[str, Array] = {
        "scalar": np.array(7.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "none.too": np.zeros((4, 0, 2), np.int8),
        "flags": np.array([True, False, True]),
        "half": np.array([[1.5], [2.5]], ml_dtypes.bfloat16),
        "wide": np.arange(5, dtype=np.int64),
    }
    expected = write_safetensors(tmp_path / "m", tensors, shards=2)
    for mesh in ("1", "2x4"):
        with seed(tmp_path / "m", piece_length=PIECE) as seeded:
            fetch(format_magnet(seeded.magnet), tmp_path / mesh, fetch_options(mesh))
        assert_holds(tmp_path / mesh, expected)
        assert verify(tmp_path / mesh).ok


def test_nothing_but_empty_arrays_is_a_store_too(tmp_path: Path) -> None:
    expected = write_safetensors(
        tmp_path / "m", {"none": np.zeros((0, 3), np.float32)}, shards=1, index=False
    )
    with seed(tmp_path / "m", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert_holds(tmp_path / "s", expected)


def test_fortran_order_is_turned_round(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    expected: dict[str, Array] = {
        "a.pkl": np.asfortranarray(rng.random((40, 96), dtype=np.float32)),
        "b.pkl": np.asfortranarray(rng.integers(0, 99, (8, 6, 16, 24))),
        "c.pkl": rng.random((7, 9)),
    }
    (tmp_path / "m").mkdir()
    for name, array in expected.items():
        (tmp_path / "m" / name).write_bytes(pickle.dumps(array, protocol=4))
    with seed(tmp_path / "m", piece_length=PIECE) as seeded:
        for mesh in ("1", "2x4"):
            fetch(format_magnet(seeded.magnet), tmp_path / mesh, fetch_options(mesh))
            assert_holds(tmp_path / mesh, expected)


# --- meshes and hosts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", ["1x1", "8x8", "data=4,model=2"])
def test_every_mesh_holds_the_same(mesh: str, grok: Content, tmp_path: Path) -> None:
    with seed(grok[0], piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(mesh))
    assert_holds(tmp_path / "s", grok[1])


@pytest.mark.parametrize(("mesh", "count"), [("2x4", 2), ("2x4", 8), ("8", 4)])
def test_hosts_together_hold_all(mesh: str, count: int, grok: Content, tmp_path: Path) -> None:
    rules = (
        None
        if "x" in mesh
        else parse_rules({"axes": ["model"], "rules": [["scales|norm", []], [".*", ["model"]]]})
    )
    shares = []
    with seed(grok[0], piece_length=PIECE) as seeded:
        for index in range(count):
            options = fetch_options(mesh, f"{index}/{count}", rules=rules)
            recorder = Recorder()
            fetch(format_magnet(seeded.magnet), tmp_path / str(index), options, observe=recorder)
            shares += recorder.of(Planned)
    for index in range(1, count):
        shutil.copytree(tmp_path / str(index), tmp_path / "0", dirs_exist_ok=True)
    assert_holds(tmp_path / "0", grok[1])
    report = verify(tmp_path / "0")
    assert report.ok and not report.absent_hosts
    assert len({share.bytes_wanted for share in shares}) == 1, "hosts keep equal shares"


def test_hosts_can_write_into_one_directory(grok: Content, tmp_path: Path) -> None:
    with seed(grok[0], piece_length=PIECE) as seeded:
        for index in range(4):
            result = fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4", f"{index}/4"))
            assert not result.already
        assert fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4", "2/4")).already
    assert_holds(tmp_path / "s", grok[1])
    assert not (tmp_path / "s/.gdist").exists()


def test_a_host_fetches_only_the_pieces_it_needs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    expected = write_safetensors(tmp_path / "m", {"w": rng.random((1024, 512), dtype=np.float32)}, shards=1)
    recorder = Recorder()
    with seed(tmp_path / "m", piece_length=PIECE) as seeded:
        options = fetch_options("model=4", "2/4", payload="keep")
        fetch(format_magnet(seeded.magnet), tmp_path / "s", options, observe=recorder)
    (planned,) = recorder.of(Planned)
    nbytes = expected["w"].nbytes
    assert planned.bytes_wanted == nbytes // 4
    assert planned.bytes_touched <= nbytes // 4 + 2 * PIECE
    file = tmp_path / "s/payload/m/model.safetensors"
    assert file.stat().st_blocks * 512 < nbytes // 4 + 6 * PIECE, "the rest of the file is a hole"
    with open_store(tmp_path / "s") as store:
        assert store.absent_hosts == (0, 1, 3)


# --- payload, repetition, targets -------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_a_kept_payload_is_the_torrent_s_own_files(version: Version, llama: Content, tmp_path: Path) -> None:
    with seed(llama[0], version=version, piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(payload="keep"))
    assert_holds(tmp_path / "s", llama[1])
    assert tree_of(tmp_path / "s/payload/llama") == tree_of(llama[0])
    with Seeder(seeded.torrent, tmp_path / "s/payload", LOOPBACK) as seeder:  # hashes all of it
        magnet = magnet_of(seeded.torrent, ((LOCALHOST, seeder.port),))
        fetch(format_magnet(magnet), tmp_path / "again", fetch_options())
    assert_holds(tmp_path / "again", llama[1])


def test_nothing_but_the_store_is_left(seeded: Seeded, tmp_path: Path) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    there = tree_of(tmp_path / "s")
    assert not [name for name in there if name.startswith((".", "payload")) or name.endswith(".part")]
    assert not (tmp_path / "s/.gdist").exists() and not (tmp_path / "s/payload").exists()


def test_a_second_run_does_nothing(llama: Content, tmp_path: Path) -> None:
    with seed(llama[0], piece_length=PIECE) as seeded:
        first = fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    recorder = Recorder()
    again = fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4"), observe=recorder)
    assert again.already and again.manifest == first.manifest
    assert [type(event) for event in recorder.events] == [TensorsPlanned, Finished]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")} == before


def test_equal_calls_write_equal_bytes(seeded: Seeded, tmp_path: Path) -> None:
    for name in "ab":
        fetch(
            format_magnet(seeded.magnet),
            tmp_path / name,
            fetch_options("2x4", memory=1 << (20 if name == "a" else 30)),
        )
    assert tree_of(tmp_path / "a") == tree_of(tmp_path / "b")


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_bucket_gets_the_same(
    codec: str, grok: Content, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"memory://{request.node.name}"
    with seed(grok[0], piece_length=PIECE) as seeded:
        options = fetch_options("2x4", codec=codec, work=tmp_path / "work")
        assert fetch(format_magnet(seeded.magnet), url, options).path == url
    assert_holds(url, grok[1])
    assert verify(url).ok
    assert list((tmp_path / "work").iterdir()) == [], "nothing waits here any more"


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_file_url_is_a_directory(codec: str, seeded: Seeded, llama: Content, tmp_path: Path) -> None:
    url = (tmp_path / "a b").as_uri()
    options = fetch_options("2x4", codec=codec)
    fetch(format_magnet(seeded.magnet), url, options)
    assert_holds(tmp_path / "a b", llama[1])
    assert (tmp_path / "a b/assets/config.json").read_bytes() == CONFIG
    assert fetch(format_magnet(seeded.magnet), url, options).already


def test_the_store_names_where_it_came_from(seeded: Seeded, tmp_path: Path) -> None:
    manifest = fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options()).manifest
    assert manifest.source.info_hash == seeded.magnet.info_hash.hex
    magnet: Magnet = parse_magnet(manifest.source.magnet)[0]
    assert magnet.info_hash == seeded.magnet.info_hash


def test_a_file_gdist_cannot_read_is_named(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m", emb=16, vocab=32)
    (tmp_path / "m/model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with seed(tmp_path / "m", piece_length=PIECE) as seeded:
        with pytest.raises(UnsupportedError, match=r"model\.h5 \(an HDF5 file\)"):
            fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(ignore=("*.h5",)))
