"""`--select`: only some tensors, nothing else downloaded, and the store says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gdist
from gdist.core.extent import Extent
from gdist.core.magnet import format_magnet
from gdist.core.source_files import SourceArray, SourceFile
from gdist.core.source_manifest import SourceManifest
from gdist.errors import RequestError, ResumeError
from gdist.events import PieceVerified, Planned, ShardCommitted
from gdist.formats import drive
from gdist.run.fetch import fetch
from gdist.run.headers import FileReport, identify
from gdist.run.verify import verify
from gdist.testing.checkpoints import write_grok1
from gdist.testing.fetches import Array, Recorder, assert_holds, fetch_options, stopped_when, tree_of
from gdist.testing.swarm import LOCALHOST, Seeded, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14
LAYER = r"decoder_layer_1\."

Content = tuple[Path, dict[str, Array]]


@pytest.fixture(scope="module")
def grok(tmp_path_factory: pytest.TempPathFactory) -> Content:
    root = tmp_path_factory.mktemp("from") / "grok"
    expected = write_grok1(root, layers=3)
    (root / "tokenizer.model").write_bytes(b"tokens" * 100)
    return root, expected


@pytest.fixture(scope="module")
def seeded(grok: Content) -> Iterator[Seeded]:
    with seed(grok[0], piece_length=PIECE) as found:
        yield found


def layer_one(expected: dict[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in expected.items() if "decoder_layer_1." in name}


def manifest_of(root: Path, magnet: str, expected: dict[str, Array]) -> SourceManifest:
    """What a manifest of a Grok-1 look-alike says."""
    names: dict[str, list[str]] = {}
    for name, array in expected.items():
        assert isinstance(array, np.memmap)
        names.setdefault(Path(str(array.filename)).name, []).append(name)
    files = []
    for path in sorted(root.glob("ckpt-0/*")):
        data = path.read_bytes()

        def read(extent: Extent, data: bytes = data) -> bytes:
            return data[extent.start : extent.stop]

        found = drive(identify(len(data), FileReport()), read)
        pair = names[path.name][0].removesuffix(".weight")
        files.append(
            SourceFile(f"ckpt-0/{path.name}", len(data), tuple(SourceArray(pair, array) for array in found))
        )
    return SourceManifest("tiny", magnet, tuple(files), profile="grok-1")


# --- what comes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", ["1", "2x4"])
def test_only_the_tensors_chosen_are_in_the_store(
    mesh: str, seeded: Seeded, grok: Content, tmp_path: Path
) -> None:
    recorder = Recorder()
    options = fetch_options(mesh, select=(LAYER, "rms_norm.scale$"))
    result = fetch(format_magnet(seeded.magnet), tmp_path / "s", options, observe=recorder)
    expected = {
        name: array
        for name, array in grok[1].items()
        if "layer_1." in name or name.endswith("rms_norm.scale")
    }
    assert_holds(tmp_path / "s", expected)
    assert verify(tmp_path / "s").ok
    (planned,) = recorder.of(Planned)
    assert planned.tensors == len(expected)
    assert planned.bytes_wanted == sum(a.nbytes for a in expected.values()) == result.manifest.nbytes
    assert (tmp_path / "s/assets/tokenizer.model").exists(), "files without tensors are kept as ever"


def test_with_a_manifest_no_other_piece_is_fetched(seeded: Seeded, grok: Content, tmp_path: Path) -> None:
    magnet = format_magnet(replace(seeded.magnet, peers=()))
    manifest = manifest_of(grok[0], magnet, grok[1])
    (tmp_path / "tiny.json").write_text(manifest.to_json())
    recorder = Recorder()
    torrent = replace(fetch_options().torrent, peers=((LOCALHOST, seeded.port),))
    options = fetch_options("2x4", torrent=torrent, select=(LAYER,))
    fetch(str(tmp_path / "tiny.json"), tmp_path / "s", options, observe=recorder)
    assert_holds(tmp_path / "s", layer_one(grok[1]))
    arrived = {event.piece for event in recorder.of(PieceVerified)}
    chosen = sum(file.nbytes for file in manifest.files if any("layer_1." in a.name for a in file.arrays))
    files = sum(any("layer_1." in array.name for array in file.arrays) for file in manifest.files)
    assert len(arrived) * PIECE <= chosen + (files + 2) * 2 * PIECE, "what holds them, the asset, and no more"
    assert chosen < manifest.nbytes / 2


def test_a_kept_payload_holds_what_was_fetched(seeded: Seeded, grok: Content, tmp_path: Path) -> None:
    recorder = Recorder()
    options = fetch_options(select=(LAYER,), payload="keep")
    fetch(format_magnet(seeded.magnet), tmp_path / "s", options, observe=recorder)
    assert_holds(tmp_path / "s", layer_one(grok[1]))
    total = sum(path.stat().st_size for path in grok[0].rglob("*") if path.is_file())
    fetched = {event.piece: event.nbytes for event in recorder.of(PieceVerified)}
    assert sum(fetched.values()) < total * 0.75, "not all of the torrent"


def test_select_and_dtype_go_together(seeded: Seeded, grok: Content, tmp_path: Path) -> None:
    options = fetch_options("2x4", select=(r"layer_2\.moe\.linear\.w",), dtype="float32")
    fetch(format_magnet(seeded.magnet), tmp_path / "s", options)
    name = "params.transformer.decoder_layer_2.moe.linear.w"
    weight, scales = grok[1][f"{name}.weight"], grok[1][f"{name}.scales"]
    assert_holds(tmp_path / "s", {name: weight * scales.astype(np.float32)})


# --- what is written down, and what is refused ------------------------------------------------------------


def test_another_choice_is_another_job(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    select = (LAYER, "embed")
    manifest = fetch(magnet, dest, fetch_options(select=select)).manifest
    assert manifest.select == tuple(sorted(select))
    assert json.loads((dest / "gdist.json").read_bytes())["select"] == sorted(select)
    assert fetch(magnet, dest, fetch_options(select=(*select[::-1], LAYER))).already
    before = tree_of(dest)
    for other in ((), (LAYER,), ("embed",)):
        with pytest.raises(ResumeError, match="asked for") as caught:
            fetch(magnet, dest, fetch_options(select=other))
        assert "--select" in caught.value.hint
    fetch(magnet, tmp_path / "all", fetch_options())
    assert "select" not in json.loads((tmp_path / "all/gdist.json").read_bytes())
    with pytest.raises(ResumeError, match="holds a store of all tensors as they are stored"):
        fetch(magnet, tmp_path / "all", fetch_options(select=(LAYER,)))
    assert tree_of(dest) == before


def test_an_unfinished_choice_is_finished_first(seeded: Seeded, grok: Content, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    options = fetch_options(select=(LAYER,))
    stopped_when(
        lambda told: len(told.of(ShardCommitted)) > 3,
        lambda observe, stop: fetch(magnet, dest, options, observe=observe, stop=stop),
    )
    for other in ((r"decoder_layer_[12]\.",), ()):
        with pytest.raises(ResumeError, match="unfinished fetch of another plan"):
            fetch(magnet, dest, fetch_options(select=other))
    fetch(magnet, dest, fetch_options(select=(LAYER,)))
    assert_holds(dest, layer_one(grok[1]))


def test_neighbours_choose_alike(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options("2x4", "0/2", select=(LAYER,)))
    for select in ((), ("embed",)):
        with pytest.raises(ResumeError, match="another job"):
            fetch(magnet, dest, fetch_options("2x4", "1/2", select=select))
    fetch(magnet, dest, fetch_options("2x4", "1/2", select=(LAYER,)))
    assert verify(dest).ok


def test_what_cannot_be_chosen_is_refused(seeded: Seeded, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no regular expression"):
        fetch("ab" * 20, tmp_path / "s", fetch_options(select=("layer_(",)))
    assert not (tmp_path / "s").exists()
    with pytest.raises(RequestError, match=r"'layer_9' is found in no tensor's name: params\."):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(select=(LAYER, "layer_9")))
    assert not (tmp_path / "s/gdist.json").exists()


# --- looking ----------------------------------------------------------------------------------------------


def test_inspect_and_plan_choose_alike(seeded: Seeded, grok: Content, tmp_path: Path) -> None:
    magnet = format_magnet(seeded.magnet)
    names = set(layer_one(grok[1]))
    fetch(magnet, tmp_path / "s", fetch_options("2x4"))
    for found in (
        gdist.inspect(magnet, select=LAYER, dht=False, listen=f"{LOCALHOST}:0"),
        gdist.inspect(tmp_path / "s", select=[LAYER]),
        gdist.inspect(grok[0], profile="grok-1", ignore=["*.model"], select=[LAYER]),
    ):
        assert {tensor.name for tensor in found.tensors} == names, found.kind
        with pytest.raises(RequestError, match="found in no tensor"):
            gdist.inspect(tmp_path / "s", select="layer_9")
    holding = [file for file in found.files if file.tensors]
    assert len(holding) == 12 and not any(file.kept for file in found.files if not file.tensors)
    report = gdist.plan(magnet, select=LAYER, payload="keep", dht=False, listen=f"{LOCALHOST}:0")
    assert report.tensors == len(names)
    assert report.hosts[0].bytes_wanted == sum(array.nbytes for array in layer_one(grok[1]).values())
    whole = gdist.plan(magnet, payload="keep", dht=False, listen=f"{LOCALHOST}:0")
    assert whole.hosts[0].disk - report.hosts[0].disk > whole.hosts[0].bytes_wanted
