"""A checkpoint in a tar is one like any other: fetched, viewed, resharded, exported and seeded."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import gdist
from gdist.core.magnet import format_magnet
from gdist.errors import CorruptError, UnsupportedError
from gdist.events import Event, ShardCommitted
from gdist.run import catalogue
from gdist.run.export import export
from gdist.run.fetch import fetch
from gdist.run.headers import HeaderScan
from gdist.run.seeding import open_held, serve
from gdist.run.survey import SurveyOptions, survey_files
from gdist.run.view import make_view
from gdist.sources.torrent import TorrentSource, magnet_of
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import LOCALHOST, LOOPBACK, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14
CONFIG = b'{"dim": 64}'


def packed(path: Path, root: Path | None = None, more: Mapping[str, bytes] | None = None) -> Path:
    """An archive of a directory's files and of more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        if root:
            tar.add(root, "./model")
        for name, data in (more or {}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def release(tmp_path: Path) -> tuple[Path, dict[str, Array]]:
    """A directory with an archive of a model and a file beside it."""
    arrays = write_safetensors(tmp_path / "plain", emb=32, vocab=128)
    (tmp_path / "plain/params.json").write_bytes(CONFIG)
    packed(tmp_path / "r/model.tar", tmp_path / "plain", {"tokenizer.model": bytes(20_000)})
    (tmp_path / "r/README.md").write_bytes(b"read me")
    return tmp_path / "r", arrays


def test_a_fetch_gives_the_tensors_and_the_archive_comes_back(
    release: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    root, arrays = release
    with seed(root, piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x2"))
    assert_holds(tmp_path / "s", arrays)
    export(tmp_path / "s", tmp_path / "out")
    assert tree_of(tmp_path / "out/r") == tree_of(root)
    assert (tmp_path / "s/assets/README.md").read_bytes() == b"read me"


def test_only_headers_are_fetched_to_find_them(tmp_path: Path) -> None:
    arrays = {f"w{number}": np.ones((512, 512), np.float32) for number in range(4)}
    write_safetensors(tmp_path / "plain", arrays, shards=4, index=False)
    packed(tmp_path / "r/model.tar", tmp_path / "plain")
    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        source = TorrentSource(seeded.magnet, LOOPBACK)
        try:
            source.open(tmp_path / "to")
            scan = HeaderScan(source)
            (report,) = scan.run([0]).values()
            assert len(scan.arrived) < source.payload.pieces / 3
        finally:
            source.close()
    names = [f"model/model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
    assert sorted(member.path for member in report.members) == names


class Killed(Exception):
    """Ends a run from within its observer."""


def test_a_run_that_was_killed_goes_on(release: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    root, arrays = release

    def then(event: Event) -> None:
        if isinstance(event, ShardCommitted):
            raise Killed

    with seed(root, piece_length=PIECE) as seeded:
        with pytest.raises(Killed):
            fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(), observe=Recorder(then=then))
        assert (tmp_path / "s/.gdist/headers.json").exists()
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert_holds(tmp_path / "s", arrays)


def test_a_view_reads_the_archive_itself(release: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    root, arrays = release
    result = make_view(root, tmp_path / "v")
    assert_holds(tmp_path / "v", arrays)
    assert {Path(file.path).name for file in result.manifest.files} == {"model.tar", "README.md"}
    make_view(root / "model.tar", tmp_path / "w")
    assert_holds(tmp_path / "w", arrays)
    assert gdist.verify(tmp_path / "w").ok


def test_a_fetched_view_and_a_reshard_of_the_archive(
    release: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    root, arrays = release
    with seed(root, piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "v", fetch_options(codec="view", payload="keep"))
    assert_holds(tmp_path / "v", arrays)
    gdist.reshard(root / "model.tar", tmp_path / "s", mesh="2x2")
    assert_holds(tmp_path / "s", arrays)


def test_a_store_from_an_archive_can_be_seeded(
    release: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    root, arrays = release
    with seed(root, piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "a", fetch_options("2x2"))
    with open_held([tmp_path / "a"]) as held, serve(held, LOOPBACK) as server:
        magnet = format_magnet(magnet_of(held.torrent, ((LOCALHOST, server.port),)))
        fetch(magnet, tmp_path / "b", fetch_options())
    assert_holds(tmp_path / "b", arrays)


def test_pickles_and_an_archive_in_an_archive(tmp_path: Path) -> None:
    arrays = write_grok1(tmp_path / "grok", layers=1, emb=16, ffn=16, kv=8, vocab=16)
    inner = packed(tmp_path / "inner.tar", tmp_path / "grok")
    outer = packed(tmp_path / "r/outer.tar", None, {"in/inner.tar": inner.read_bytes()})
    gdist.reshard(outer, tmp_path / "s")
    assert_holds(tmp_path / "s", arrays)
    assert survey_files(outer).profile == "grok-1"


def test_members_can_be_left_out(tmp_path: Path) -> None:
    arrays = {"w": np.arange(6, dtype=np.float32)}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/w.pkl").write_bytes(pickle.dumps(arrays["w"], 4))
    more = {"bad.pkl": pickle.dumps(print, 4), "old.tgz": b"\x1f\x8b\x08" + bytes(20)}
    packed(tmp_path / "r/m.tar", tmp_path / "plain", more)
    with pytest.raises((UnsupportedError, CorruptError), match=r"m\.tar: bad\.pkl: "):
        survey_files(tmp_path / "r")
    with pytest.raises(UnsupportedError, match=r"m\.tar/old\.tgz \(gzip data\)") as caught:
        gdist.reshard(tmp_path / "r", tmp_path / "s", ignore=["m.tar/bad.pkl"])
    assert "tar xzf" in caught.value.hint and "--ignore" in caught.value.hint
    gdist.reshard(tmp_path / "r", tmp_path / "s", ignore=["m.tar/bad.pkl", "*.tgz"])
    assert_holds(tmp_path / "s", {"w.pkl": arrays["w"]})
    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        options = fetch_options(ignore=("m.tar/bad.pkl", "*.tgz"))
        fetch(format_magnet(seeded.magnet), tmp_path / "f", options)
    assert_holds(tmp_path / "f", {"w.pkl": arrays["w"]})
    export(tmp_path / "f", tmp_path / "out")
    assert tree_of(tmp_path / "out/r") == tree_of(tmp_path / "r")


def test_an_index_in_the_archive_is_held_against_its_files(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "plain", emb=16, vocab=32)
    index = tmp_path / "plain/model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"].popitem()
    index.write_text(json.dumps(document))
    packed(tmp_path / "r/m.tar", tmp_path / "plain")
    with pytest.raises(CorruptError, match="index and its files disagree"):
        survey_files(tmp_path / "r", SurveyOptions())


def test_large_members_of_unknown_content_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "MAX_ASSET_BYTES", 1000)
    write_safetensors(tmp_path / "plain", emb=16, vocab=32, index=False)
    packed(tmp_path / "r/m.tar", tmp_path / "plain", {"w.pth-split1": b"\xff" * 2000})
    with pytest.raises(UnsupportedError, match=r"m\.tar/w\.pth-split1 \(2000 bytes\)") as caught:
        gdist.reshard(tmp_path / "r", tmp_path / "s")
    assert "ls -v w.pth-split*" in caught.value.hint


def test_pieces_of_a_file_without_anything_else_bring_advice(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    for number in range(2):
        (tmp_path / f"r/model.safetensors.part{number:02}").write_bytes(b"\xff" * 100)
    with pytest.raises(UnsupportedError, match="holds a tensor") as caught:
        survey_files(tmp_path / "r")
    assert "ls -v model.safetensors.part*" in caught.value.hint
