"""Damage is mended by the pieces it lies in, and no others; the store is the same to the byte afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gdist
from gdist.core.magnet import format_magnet
from gdist.errors import GdistError, RequestError, StalledError
from gdist.run.fetch import fetch
from gdist.run.repair import repair
from gdist.run.repair_sources import SWARM, WEB_SEEDS, PieceTaken, RepairReport
from gdist.run.verify import verify
from gdist.run.view import make_view
from gdist.sources.torrent import TorrentOptions, make_torrent
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Recorder, fetch_options, tree_of
from gdist.testing.stores import write_store
from gdist.testing.swarm import LOCALHOST, LOOPBACK, Seeded, WebSeed, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14
OFFLINE = TorrentOptions(dht=False, outside=False)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("from") / "tiny"
    write_grok1(root, layers=1, emb=64, ffn=128, kv=16, vocab=256)
    (root / "README.md").write_bytes(b"# hello\n" * 4000)
    return root


@pytest.fixture(scope="module")
def seeded(origin: Path) -> Iterator[Seeded]:
    with seed(origin, piece_length=PIECE) as served:
        yield served


@pytest.fixture(scope="module")
def stores(seeded: Seeded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores that tests copy: "1" and "2x4", whole."""
    root = tmp_path_factory.mktemp("stores")
    for mesh in ("1", "2x4"):
        fetch(format_magnet(seeded.magnet), root / mesh, fetch_options(mesh))
    return root


@pytest.fixture
def peers(seeded: Seeded) -> TorrentOptions:
    return TorrentOptions(
        dht=False, pex=False, listen=f"{LOCALHOST}:0", stall_seconds=20, peers=((LOCALHOST, seeded.port),)
    )


def copied(store: Path, target: Path) -> dict[str, bytes]:
    shutil.copytree(store, target)
    return tree_of(target)


def flip(path: Path, *places: int) -> None:
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))


def pieces_of(report: RepairReport) -> dict[str, int]:
    return {name: len(pieces) for name, pieces in report.fetched}


def large(store: Path) -> Path:
    """The largest shard."""
    return max(store.rglob("c/**/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


@pytest.mark.parametrize("mesh", ["1", "2x4"])
def test_a_flipped_byte_costs_one_piece(
    mesh: str, stores: Path, peers: TorrentOptions, tmp_path: Path
) -> None:
    before = copied(stores / mesh, tmp_path / "s")
    path = large(tmp_path / "s")
    inode = path.stat().st_ino
    flip(path, 5000)
    recorder = Recorder()
    report = repair(tmp_path / "s", torrent=peers, observe=recorder)
    assert report.ok and len(report.mended) == 1 and len(report.verified.faults) == 1
    assert pieces_of(report) == {SWARM: 1} and report.nbytes <= PIECE
    assert [event.origin for event in recorder.of(PieceTaken)] == [SWARM]
    assert tree_of(tmp_path / "s") == before
    assert path.stat().st_ino == inode, "mended where it lies"
    assert verify(tmp_path / "s").ok


@pytest.mark.parametrize(
    "harm", ["missing", "cut", "long", "tail", "checksum", "asset", "rest", "many", "documents", "directory"]
)
def test_every_damage_is_mended(harm: str, stores: Path, peers: TorrentOptions, tmp_path: Path) -> None:
    before = copied(stores / "2x4", tmp_path / "s")
    root = tmp_path / "s"
    path = large(root)
    match harm:
        case "missing":
            path.unlink()
        case "cut":
            os.truncate(path, path.stat().st_size - 100)
        case "long":
            with path.open("ab") as file:
                file.write(b"more")
        case "tail":
            flip(path, path.stat().st_size - 20)
        case "checksum":
            flip(path, path.stat().st_size - 1)
        case "asset":
            flip(root / "assets/README.md", 20_000)
        case "rest":
            (root / "source/rest.bin").unlink()
        case "many":
            for other in [p for p in sorted(root.rglob("c/**/*")) if p.is_file()][::3]:
                flip(other, 0, other.stat().st_size // 2)
        case "documents":
            (root / "zarr.json").unlink()
            (root / "_METADATA").unlink()
            (root / "commit_success.txt").unlink()
            (root / path.relative_to(root).parts[0] / "zarr.json").write_text("{}")
        case "directory":
            shutil.rmtree(root / path.relative_to(root).parts[0])
    assert not verify(root).ok
    report = repair(root, torrent=peers)
    assert report.ok, report.left
    assert tree_of(root) == before
    if harm in ("tail", "checksum", "documents"):
        assert report.fetched == ()
    if harm == "asset":
        assert pieces_of(report) == {SWARM: 1}


def test_a_shard_of_the_wrong_length_is_rebuilt_from_its_own_good_bytes(
    origin: Path, stores: Path, tmp_path: Path
) -> None:
    root = tmp_path / "s"
    before = copied(stores / "1", root)
    path = large(root)
    with path.open("ab") as file:
        file.write(b"more")
    report = repair(root, swarm=False)
    assert report.ok and report.fetched == () and tree_of(root) == before
    assert report.mended == (path.relative_to(root).as_posix(),)
    with path.open("ab") as file:
        file.write(b"more")
    flip(path, 5000)
    report = repair(root, swarm=False)
    assert not report.ok and not report.mended
    report = repair(root, copies=[origin], swarm=False)
    assert report.ok and pieces_of(report) == {str(origin): 1} and tree_of(root) == before
    os.truncate(path, path.stat().st_size - 5)  # in the sharding index: all chunks are there
    report = repair(root, swarm=False)
    assert report.ok and report.fetched == () and tree_of(root) == before


def test_a_sound_store_is_left_alone(stores: Path, tmp_path: Path) -> None:
    before = copied(stores / "1", tmp_path / "s")
    report = repair(tmp_path / "s", swarm=False)
    assert report.ok and not report.mended and report.fetched == ()
    assert tree_of(tmp_path / "s") == before


@pytest.mark.parametrize("kind", ["files", "parent", "other mesh", "both"])
def test_copies_are_asked_first(kind: str, stores: Path, origin: Path, tmp_path: Path) -> None:
    before = copied(stores / "1", tmp_path / "s")
    flip(large(tmp_path / "s"), 5000, 50_000)
    copies = {
        "files": [origin],
        "parent": [origin.parent],
        "other mesh": [stores / "2x4"],
        "both": [stores / "2x4", origin],
    }[kind]
    report = repair(tmp_path / "s", copies=copies, swarm=False, torrent=OFFLINE)
    assert report.ok and pieces_of(report) == {str(copies[0]): 2}
    assert tree_of(tmp_path / "s") == before


def test_a_wrong_copy_is_not_believed(
    stores: Path, origin: Path, tmp_path: Path, peers: TorrentOptions
) -> None:
    before = copied(stores / "1", tmp_path / "s")
    flip(large(tmp_path / "s"), 5000)
    shutil.copytree(origin, tmp_path / "wrong")
    for path in (tmp_path / "wrong").rglob("tensor*"):
        path.write_bytes(bytes(path.stat().st_size))
    report = repair(tmp_path / "s", copies=[tmp_path / "wrong"], swarm=False)
    assert not report.ok and report.fetched == () and len(report.left) == 1
    report = repair(tmp_path / "s", copies=[tmp_path / "wrong"], torrent=peers)
    assert report.ok and pieces_of(report) == {SWARM: 1}
    assert tree_of(tmp_path / "s") == before


def test_two_damaged_stores_mend_each_other(stores: Path, tmp_path: Path) -> None:
    before = copied(stores / "1", tmp_path / "a"), copied(stores / "2x4", tmp_path / "b")
    flip(large(tmp_path / "a"), 5000)
    shards = sorted(path for path in (tmp_path / "b").rglob("c/**/*") if path.is_file())
    shards[0].unlink()
    (tmp_path / "b/source/rest.bin").unlink()
    assert repair(tmp_path / "b", copies=[tmp_path / "a"], swarm=False).ok
    assert repair(tmp_path / "a", copies=[tmp_path / "b"], swarm=False).ok
    assert (tree_of(tmp_path / "a"), tree_of(tmp_path / "b")) == before


def test_a_copy_of_another_torrent_is_refused(stores: Path, tmp_path: Path) -> None:
    copied(stores / "1", tmp_path / "s")
    flip(large(tmp_path / "s"), 5000)
    write_safetensors(tmp_path / "other")
    with seed(tmp_path / "other", piece_length=PIECE) as other:
        fetch(format_magnet(other.magnet), tmp_path / "o", fetch_options())
    with pytest.raises(RequestError, match=r"is of .*, not of"):
        repair(tmp_path / "s", copies=[tmp_path / "o"], swarm=False)
    with pytest.raises(RequestError, match="neither a store nor files"):
        repair(tmp_path / "s", copies=[tmp_path / "nothing"], swarm=False)


def test_a_web_seed_mends(origin: Path, tmp_path: Path) -> None:
    with WebSeed(origin.parent) as server:
        torrent = make_torrent(origin, piece_length=PIECE, web_seeds=[server.url])
        (tmp_path / "t.torrent").write_bytes(torrent)
        fetch(str(tmp_path / "t.torrent"), tmp_path / "s", fetch_options())
        before = tree_of(tmp_path / "s")
        flip(large(tmp_path / "s"), 5000)
        report = repair(tmp_path / "s", torrent=LOOPBACK)
    assert report.ok and pieces_of(report) == {WEB_SEEDS: 1}
    assert tree_of(tmp_path / "s") == before


@pytest.mark.parametrize("path", ["assets/README.md", "source/source.torrent"])
def test_what_is_copied_from_another_store_is_said(path: str, stores: Path, tmp_path: Path) -> None:
    before = copied(stores / "1", tmp_path / "s")
    (tmp_path / "s" / path).unlink()
    command = [sys.executable, "-m", "gdist", "verify", "--repair", str(tmp_path / "s"), "--offline"]
    command += ["--from", str(stores / "2x4")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"copied {path} from {stores / '2x4'}" in done.stderr + done.stdout
    assert "nothing had to be fetched" not in done.stderr + done.stdout
    assert tree_of(tmp_path / "s") == before


@pytest.mark.parametrize(
    "lost", [("source.torrent",), ("parts.json",), ("rest.bin", "source.torrent", "parts.json")]
)
@pytest.mark.parametrize(
    "changes", [{}, {"select": ("moe",)}, {"ignore": ("README.md",)}, {"dtype": "float32"}]
)
def test_the_torrents_files_bring_back_what_leads_to_it(
    changes: dict[str, Any], lost: tuple[str, ...], origin: Path, seeded: Seeded, tmp_path: Path
) -> None:
    root = tmp_path / "s"
    fetch(format_magnet(seeded.magnet), root, fetch_options("2x4", **changes))
    before = tree_of(root)
    for name in lost:
        (root / "source" / name).unlink()
    if not changes:
        flip(large(root), 5000)
    shutil.copytree(origin, tmp_path / "down/tiny")
    with pytest.raises(GdistError) as caught:
        repair(root, copies=[tmp_path / "down/tiny"], swarm=False)
    assert ".torrent beside" in caught.value.hint
    (tmp_path / "down/any.torrent").write_bytes(seeded.torrent)
    report = repair(root, copies=[tmp_path / "down/tiny"], swarm=False)
    assert report.ok and tree_of(root) == before
    assert {path for _, paths in report.copied for path in paths} == {f"source/{name}" for name in lost}


def test_nobody_there_is_said_and_nothing_is_lost(stores: Path, tmp_path: Path) -> None:
    copied(stores / "1", tmp_path / "s")
    flip(large(tmp_path / "s"), 5000)
    damaged = tree_of(tmp_path / "s")
    alone = TorrentOptions(dht=False, pex=False, listen=f"{LOCALHOST}:0", stall_seconds=1)
    with pytest.raises((StalledError, GdistError)):
        repair(tmp_path / "s", torrent=alone)
    assert tree_of(tmp_path / "s") == damaged


def test_what_cannot_be_mended_is_said(stores: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.zeros((4, 4), np.float32)})
    flip(tmp_path / "s/w/c/0/0", 3)
    with pytest.raises(RequestError, match=r"has no source/source\.torrent"):
        repair(tmp_path / "s", swarm=False)


def test_a_part_of_a_store_fetches_what_it_cannot_check(
    seeded: Seeded, peers: TorrentOptions, tmp_path: Path
) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4", "0/2"))
    before = tree_of(tmp_path / "s")
    flip(large(tmp_path / "s"), 5000)
    report = repair(tmp_path / "s", torrent=peers)
    assert report.ok and tree_of(tmp_path / "s") == before


@pytest.fixture(scope="module")
def hosts(seeded: Seeded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Both hosts' directories of one fetch, which tests copy."""
    root = tmp_path_factory.mktemp("hosts")
    for index in range(2):
        fetch(format_magnet(seeded.magnet), root / str(index), fetch_options("2x4", f"{index}/2"))
    return root / "0", root / "1"


def test_another_hosts_directory_gives_what_it_has(hosts: tuple[Path, Path], tmp_path: Path) -> None:
    before = copied(hosts[0], tmp_path / "0")
    for shard in sorted(p for p in (tmp_path / "0").rglob("c/**/*") if p.is_file()):
        flip(shard, 0)
    report = repair(tmp_path / "0", copies=[hosts[1]], swarm=False)
    assert not report.ok and {name for name, _ in report.fetched} == {str(hosts[1])}
    whole = {fault.path for fault in report.verified.faults} - {fault.path for fault in report.left}
    assert whole, "what both hosts have whole"
    assert all((tmp_path / "0" / path).read_bytes() == before[path] for path in whole)


@pytest.mark.parametrize("kind", ["first host", "store", "view", "files", "nothing"])
def test_a_later_hosts_part_is_mended_by_who_knows_its_torrent(
    kind: str,
    hosts: tuple[Path, Path],
    origin: Path,
    seeded: Seeded,
    stores: Path,
    peers: TorrentOptions,
    tmp_path: Path,
) -> None:
    before = copied(hosts[1], tmp_path / "1")
    flip(large(tmp_path / "1"), 5000)
    if kind == "nothing":
        with pytest.raises(RequestError, match="the first host has it") as caught:
            repair(tmp_path / "1", torrent=peers)
        assert "--from" in caught.value.hint
        return
    shutil.copytree(origin, tmp_path / "down/tiny")
    (tmp_path / "down/any.torrent").write_bytes(seeded.torrent)
    if kind == "view":
        make_view(tmp_path / "down/tiny")
    copies = {"first host": hosts[0], "store": stores / "1"}
    copy = copies.get(kind, tmp_path / "down/tiny")
    report = repair(tmp_path / "1", copies=[copy], swarm=kind == "first host", torrent=peers)
    assert report.ok and tree_of(tmp_path / "1") == before
    if kind != "first host":
        assert set(pieces_of(report)) == {str(copy)}


@pytest.mark.parametrize("changes", [{"select": ("moe",)}, {"ignore": ("README.md",)}])
def test_a_choice_is_mended_too(
    changes: dict[str, Any], seeded: Seeded, peers: TorrentOptions, tmp_path: Path
) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(**changes))
    before = tree_of(tmp_path / "s")
    flip(large(tmp_path / "s"), 5000)
    report = repair(tmp_path / "s", torrent=peers)
    assert report.ok and tree_of(tmp_path / "s") == before


@pytest.mark.parametrize("harm", ["flip", "end", "missing", "empty", "directory"])
def test_a_compressed_store_is_mended_shard_by_shard(
    harm: str, seeded: Seeded, peers: TorrentOptions, tmp_path: Path
) -> None:
    root = tmp_path / "s"
    fetch(format_magnet(seeded.magnet), root, fetch_options("2x2", codec="zstd"))
    before = tree_of(root)
    path = large(root)
    match harm:
        case "flip":
            flip(path, path.stat().st_size // 2)
        case "end":
            flip(path, path.stat().st_size - 1)
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "directory":
            shutil.rmtree(root / path.relative_to(root).parts[0])
    report = repair(root, torrent=peers)
    assert report.ok and report.fetched, report
    assert verify(root).ok
    assert tree_of(root).keys() == before.keys()


def test_a_kept_payload_mends_its_store(seeded: Seeded, tmp_path: Path) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(payload="keep"))
    before = tree_of(tmp_path / "s")
    shard = max((tmp_path / "s").rglob("c/**/0"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    flip(shard, 5000)
    report = repair(tmp_path / "s", swarm=False)
    assert report.ok and pieces_of(report) == {str(tmp_path / "s" / "payload"): 1}
    assert tree_of(tmp_path / "s") == before


# --- views ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["flip", "cut", "missing", "index", "asset"])
@pytest.mark.parametrize("place", ["in place", "apart"])
def test_views_are_mended(
    place: str, harm: str, origin: Path, seeded: Seeded, peers: TorrentOptions, tmp_path: Path
) -> None:
    shutil.copytree(origin, tmp_path / "tiny")
    if place == "in place":
        root = tmp_path / "tiny"
        make_view(root)
    else:
        root = tmp_path / "view"
        make_view(tmp_path / "tiny", root)
    (root / "any.torrent").write_bytes(seeded.torrent)
    before = {**tree_of(tmp_path / "tiny")}
    path = max((tmp_path / "tiny").rglob("tensor*"), key=lambda p: p.stat().st_size)
    match harm:
        case "flip":
            flip(path, 5000)
        case "cut":
            os.truncate(path, 1000)
        case "missing":
            path.unlink()
        case "index":
            (root / "manifest.ocdbt").unlink()
        case "asset":
            (tmp_path / "tiny/README.md").unlink()
    assert not verify(root).ok
    report = repair(root, torrent=peers)
    assert report.ok, report.left
    if harm == "flip":
        assert pieces_of(report) == {SWARM: 1}
    after = tree_of(tmp_path / "tiny")
    assert {p: d for p, d in after.items() if p in tree_of(origin)} == tree_of(origin)
    if harm != "index":
        assert after == before


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("from") / "llama"
    write_safetensors(root, emb=64, vocab=256)
    (root / "config.json").write_bytes(b"{}\n")
    (root / "empty.txt").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def viewed(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A fetched view that tests copy, and its torrent."""
    root = tmp_path_factory.mktemp("views") / "v"
    with seed(llama, piece_length=PIECE) as served:
        fetch(format_magnet(served.magnet), root, fetch_options(payload="keep", codec="view"))
        return root, served.torrent


@pytest.mark.parametrize("made", ["fetched", "with its torrent"])
def test_bytes_in_no_tensor_of_a_view_are_held_against_the_torrent(
    made: str, viewed: tuple[Path, bytes], llama: Path, tmp_path: Path
) -> None:
    root = tmp_path / "v"
    if made == "fetched":
        copied(viewed[0], root)
    else:
        shutil.copytree(llama, tmp_path / "llama")
        (tmp_path / "llama.torrent").write_bytes(viewed[1])
        gdist.view(tmp_path / "llama", root, torrent=tmp_path / "llama.torrent")
    before = tree_of(root)
    assert verify(root).ok
    path = next(root.glob("payload/**/model-00001*"))
    flip(path, 100)
    (fault,) = verify(root).faults
    assert (fault.path, fault.piece) == (path.relative_to(root).as_posix(), 0)
    assert "piece 0 differs from the torrent" in fault.what
    report = repair(root, swarm=False)
    assert report.left == (fault,) and not report.mended
    report = repair(root, copies=[llama], swarm=False)
    assert report.ok and report.mended == (fault.path,) and pieces_of(report) == {str(llama): 1}
    assert tree_of(root) == before


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_what_other_readers_of_a_view_go_by_is_made_anew(
    harm: str, viewed: tuple[Path, bytes], tmp_path: Path
) -> None:
    root = tmp_path / "v"  # not where it was fetched to: references still say that
    before = copied(viewed[0], root)
    assert verify(root).ok
    paths = ["_METADATA", "commit_success.txt", "references.parquet/.zmetadata", "references.json"]
    paths += [p.relative_to(root).as_posix() for p in root.rglob("refs.*.parq")][:1]
    for path in paths:
        if harm == "missing":
            (root / path).unlink()
        else:
            flip(root / path, 20 if path == "commit_success.txt" else (root / path).stat().st_size // 2)
    assert {fault.path for fault in verify(root).faults} == set(paths)
    index = (root / "manifest.ocdbt").read_bytes()
    report = repair(root, swarm=False)
    assert report.ok and set(report.mended) == set(paths) and report.fetched == ()
    after = tree_of(root)
    assert {path for path in before if before[path] != after[path]} == {"references.json"}
    assert str(root) in (root / "references.json").read_text()
    assert (root / "manifest.ocdbt").read_bytes() == index, "what is right is left alone"


def test_a_file_of_a_view_that_is_too_long_is_cut(
    viewed: tuple[Path, bytes], llama: Path, tmp_path: Path
) -> None:
    root = tmp_path / "v"
    before = copied(viewed[0], root)
    path = next(root.glob("payload/**/model-00001*"))
    for longer in (path, path.with_name("config.json"), path.with_name("empty.txt")):
        with longer.open("ab") as file:
            file.write(b"xx\n")
    report = repair(root, swarm=False)
    assert report.ok and report.fetched == () and tree_of(root) == before
    path.with_name("empty.txt").unlink()
    with path.open("ab") as file:
        file.write(b"xx\n")
    flip(path, 100)
    report = repair(root, copies=[llama], swarm=False)
    assert report.ok and pieces_of(report) == {str(llama): 1} and tree_of(root) == before


@pytest.mark.parametrize("changes", [{"select": ("layers.1",)}, {"ignore": ("config.json",)}])
def test_bytes_that_a_view_never_had_are_no_damage(
    changes: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    root = tmp_path / "v"
    with seed(llama, piece_length=PIECE) as served:
        fetch(format_magnet(served.magnet), root, fetch_options(payload="keep", codec="view", **changes))
    assert verify(root).ok


@pytest.mark.parametrize("layout", ["view", "both"])
def test_what_a_fetch_viewed_is_mended(
    layout: str, seeded: Seeded, peers: TorrentOptions, tmp_path: Path
) -> None:
    swarm = {"dht": False, "listen": f"{LOCALHOST}:0"}
    gdist.fetch(format_magnet(seeded.magnet), tmp_path / "s", layout=layout, **swarm)
    path = max((tmp_path / "s/payload").rglob("tensor*"), key=lambda p: p.stat().st_size)
    before = path.read_bytes()
    flip(path, 5000)
    root = tmp_path / "s"
    if layout == "both":
        (root,) = {p.parent for p in (tmp_path / "s").rglob("manifest.ocdbt")}
    report = repair(root, torrent=peers)
    assert report.ok and pieces_of(report) == {SWARM: 1}, report
    assert path.read_bytes() == before
