"""A manifest of one's own leads a fetch, whatever it leaves open, and is held against what comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gdist.core.magnet import Magnet, format_magnet
from gdist.core.rules import parse_rules
from gdist.core.source_files import SourceFile
from gdist.core.source_manifest import SourceManifest
from gdist.errors import CorruptError, RequestError, ResumeError
from gdist.events import Stage, StageStarted
from gdist.run.fetch import fetch
from gdist.run.inspect import InspectOptions, inspect
from gdist.run.survey import SurveyOptions, survey
from gdist.testing.checkpoints import write_grok1
from gdist.testing.fetches import Array, Recorder, assert_holds, fetch_options
from gdist.testing.swarm import Seeded, seed

pytestmark = pytest.mark.torrent


@pytest.fixture(scope="module")
def grok(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    root = tmp_path_factory.mktemp("m") / "grok"
    return root, write_grok1(root, layers=1, emb=16, ffn=32, kv=8, vocab=32)


@pytest.fixture
def seeded(grok: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(grok[0], piece_length=1 << 14) as seeded:
        yield seeded


def written(path: Path, magnet: Magnet | None, **fields: Any) -> str:
    link = format_magnet(magnet) if magnet else ""
    path.write_text(SourceManifest("tiny", link, **{"files": (), **fields}).to_json())
    return str(path)


def unseen(*paths: str, nbytes: int | None = None) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(path, nbytes, (), known=False) for path in paths)


def test_a_manifest_that_knows_no_file_gives_magnet_profile_and_rules(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    where = written(tmp_path / "m.json", seeded.magnet, profile="grok-1")
    recorder = Recorder()
    done = fetch(where, tmp_path / "s", fetch_options(), observe=recorder)
    assert_holds(tmp_path / "s", grok[1])
    assert done.manifest.source.profile == "grok-1"
    assert Stage.HEADERS in [event.stage for event in recorder.of(StageStarted)]
    assert fetch(where, tmp_path / "s", fetch_options()).already


@pytest.mark.parametrize("whole", [False, True])
def test_a_magnet_with_a_manifest_beside_it(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, whole: bool, tmp_path: Path
) -> None:
    about = _described(seeded, grok[0]) if whole else ()
    where = written(tmp_path / "m.json", None, profile="grok-1", files=about)
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2", manifest=where))
    assert_holds(tmp_path / "s", grok[1])


def _described(seeded: Seeded, root: Path) -> tuple[SourceFile, ...]:
    from gdist.run.publish import describe_files  # the same that publishing writes

    return describe_files(root, seeded.torrent).files


def test_a_complete_store_is_not_that_of_another_manifest(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    magnet, files = format_magnet(seeded.magnet), _described(seeded, grok[0])
    whole = written(tmp_path / "m.json", None, profile="grok-1", files=files)
    options = fetch_options("2", manifest=whole)
    fetch(magnet, tmp_path / "s", options)
    for same in (options, fetch_options("2"), fetch_options("2", profile="grok-1")):
        assert fetch(magnet, tmp_path / "s", same).already
    (item, *_) = files[0].arrays
    renamed = (replace(files[0], arrays=(replace(item, name="other"),)), *files[1:])
    rules = parse_rules({"rules": [["w$", ["data"]], [".*", []]]})
    for fields, word in (
        ({"files": renamed}, f"other tensors than the manifest of 'tiny' says: 'other', {item.name!r}"),
        ({"files": files, "rules": rules}, "split by"),
        ({"profile": "llama-2"}, "named by profile 'grok-1', not by profile 'llama-2'"),
    ):
        where = written(tmp_path / "other.json", None, **fields)
        with pytest.raises(ResumeError, match=word):
            fetch(magnet, tmp_path / "s", fetch_options("2", manifest=where))


def test_files_that_are_listed_are_checked(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    magnet = format_magnet(seeded.magnet)
    first = "ckpt-0/tensor00000_000"
    for files, word in (
        (unseen("absent.pth"), "'absent.pth' is there 0 times"),
        (unseen(first, nbytes=7), "bytes, not 7"),
    ):
        where = written(tmp_path / "m.json", None, profile="grok-1", files=files)
        with pytest.raises(RequestError, match=word):
            fetch(magnet, tmp_path / "s", fetch_options(manifest=where))
    described = _described(seeded, grok[0])
    (item,) = described[0].arrays
    wrong = replace(item.array, shape=(*reversed(item.array.shape),))
    files = (replace(described[0], arrays=(replace(item, array=wrong),)), *unseen(described[1].path))
    where = written(tmp_path / "m.json", None, profile="grok-1", files=files)
    with pytest.raises(CorruptError, match="is not what the manifest of 'tiny' says"):
        fetch(magnet, tmp_path / "s", fetch_options(manifest=where))


def test_a_manifest_with_a_wrong_offset_is_what_to_go_without(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    first, *others = _described(seeded, grok[0])
    (item,) = first.arrays
    moved = replace(item.array, extent=item.array.extent.shift(-32))
    files = (replace(first, arrays=(replace(item, array=moved),)), *others)
    where = written(tmp_path / "m.json", None, profile="grok-1", files=files)
    with pytest.raises(CorruptError, match="is not what the manifest") as caught:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(manifest=where))
    assert "go without it" in caught.value.hint


def test_a_manifest_of_another_torrent_is_refused(seeded: Seeded, tmp_path: Path) -> None:
    torrent = tmp_path / "t.torrent"
    torrent.write_bytes(seeded.torrent)
    for fields in ({"info_hash_v1": "ab" * 20}, {"info_hash_v2": "ab" * 32}):
        where = written(tmp_path / "m.json", None, **fields)
        with pytest.raises(RequestError, match="the torrent is"):
            fetch(str(torrent), tmp_path / "s", fetch_options(manifest=where))
    where = written(tmp_path / "m.json", None, info_hash_v1="ab" * 20)
    with pytest.raises(RequestError, match="and not abab"):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(manifest=where))
    for text in ("{}", "no json", json.dumps([1])):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(RequestError, match="source manifest"):
            fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(manifest=where))
    with pytest.raises(RequestError, match="cannot read"):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(manifest=f"{where}.absent"))
    assert not (tmp_path / "s").exists()


def test_what_a_manifest_tells_is_inspected_without_a_network(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    where = written(tmp_path / "m.json", seeded.magnet, files=_described(seeded, grok[0]))
    assert {tensor.spec.name for tensor in survey(where).tensors} == set(grok[1])
    options = InspectOptions(survey=SurveyOptions(manifest=where))
    assert {tensor.name for tensor in inspect(where, options).tensors} == set(grok[1])
    with pytest.raises(RequestError, match="no torrent that a manifest could speak of"):
        inspect(grok[0], options)
