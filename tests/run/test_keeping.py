"""What is kept beside tensors: all of it, by the first host, checked, and carried along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gdist.core.magnet import format_magnet
from gdist.core.source_map import parse_source_map
from gdist.events import Note
from gdist.run import keeping
from gdist.run.fetch import fetch
from gdist.run.reshard import ReshardOptions, reshard
from gdist.run.verify import verify
from gdist.testing.checkpoints import write_grok1
from gdist.testing.fetches import Recorder, fetch_options, tree_of
from gdist.testing.swarm import Seeded, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14
NAMES = ["parts.json", "rest.bin", "source.torrent"]


@pytest.fixture(scope="module")
def grok(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("from") / "grok"
    write_grok1(root, layers=1, emb=32, ffn=64, kv=8, vocab=64)
    (root / "README.md").write_bytes(b"# hello\n")
    return root


@pytest.fixture(scope="module")
def seeded(grok: Path) -> Iterator[Seeded]:
    with seed(grok, piece_length=PIECE) as served:
        yield served


def kept_names(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "source").iterdir()) if (store / "source").exists() else []


def test_every_byte_outside_tensors_is_kept(seeded: Seeded, grok: Path, tmp_path: Path) -> None:
    manifest = fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options()).manifest
    assert kept_names(tmp_path / "s") == NAMES == [file.path for file in manifest.source_files]
    about = parse_source_map((tmp_path / "s/source/parts.json").read_bytes(), "parts.json")
    tensors = sum(part.extent.length for parts in about.tensors.values() for part in parts)
    total = sum(path.stat().st_size for path in grok.rglob("*") if path.is_file())
    assert tensors + about.rest_nbytes + len(b"# hello\n") == total
    rest, position = (tmp_path / "s/source/rest.bin").read_bytes(), 0
    for path, extents in about.rest.items():
        data = (grok / path).read_bytes()
        for extent in extents:
            assert rest[position : position + extent.length] == data[extent.start : extent.stop], path
            position += extent.length
    assert position == len(rest)
    assert verify(tmp_path / "s").ok


@pytest.mark.parametrize("name", NAMES)
def test_verify_names_what_is_wrong_in_it(seeded: Seeded, tmp_path: Path, name: str) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    path = tmp_path / "s/source" / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert [str(fault) for fault in verify(tmp_path / "s").faults] == [
        f"source/{name}: differs from its digest"
    ]
    path.unlink()
    assert [str(fault) for fault in verify(tmp_path / "s").faults] == [f"source/{name}: is missing"]


def test_the_first_host_keeps_it(seeded: Seeded, tmp_path: Path) -> None:
    for index in range(2):
        fetch(format_magnet(seeded.magnet), tmp_path / str(index), fetch_options("2", f"{index}/2"))
    assert kept_names(tmp_path / "0") == NAMES
    assert kept_names(tmp_path / "1") == []


@pytest.mark.parametrize("changes", [{"select": ("router",)}, {"dtype": "bfloat16"}])
def test_of_a_part_only_the_map_is_kept(seeded: Seeded, tmp_path: Path, changes: dict[str, object]) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(**changes))
    about = parse_source_map((tmp_path / "s/source/parts.json").read_bytes(), "parts.json")
    assert about.rest == {} and (tmp_path / "s/source/rest.bin").read_bytes() == b""


def test_more_than_the_limit_is_not_kept_and_said(
    seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MAX_REST_BYTES", 100)
    recorder = Recorder()
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(), observe=recorder)
    assert any("are in no tensor, more than is kept" in note.text for note in recorder.of(Note))
    assert (tmp_path / "s/source/rest.bin").read_bytes() == b""


def test_a_reshard_carries_it(seeded: Seeded, tmp_path: Path) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x2"))
    reshard(str(tmp_path / "s"), tmp_path / "t", ReshardOptions(mesh=fetch_options("4").mesh))
    assert tree_of(tmp_path / "t/source") == tree_of(tmp_path / "s/source")
    assert verify(tmp_path / "t").ok


def test_a_lost_shard_is_fetched_without_the_rest(seeded: Seeded, tmp_path: Path) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    before = tree_of(tmp_path / "s")
    lost = next(path for path in before if path.endswith("/c/0/0"))
    (tmp_path / "s" / lost).unlink()
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert tree_of(tmp_path / "s") == before
