"""Torrents that hold a directory of arrays: plain chunks stream, others are decoded from whole files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zarr

import gdist
from gdist.core.magnet import format_magnet
from gdist.errors import CorruptError, GdistError, InterruptedRun, RequestError, SpaceError, UnsupportedError
from gdist.events import Event, Note, PieceVerified, Planned, ReshardPlanned, ShardCommitted
from gdist.run.directories import EncodedDirectory
from gdist.run.export import export
from gdist.run.fetch import fetch
from gdist.run.seeding import open_held, serve
from gdist.run.survey import SurveyOptions, survey
from gdist.sources.torrent import magnet_of
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import LOCALHOST, LOOPBACK, seed

pytestmark = [
    pytest.mark.torrent,
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]

PIECE = 1 << 14


class Killed(Exception):
    """Ends a run from within its observer."""


def tree() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {
        "layers.0.w": rng.standard_normal((64, 96)).astype(np.float32),
        "layers.10.w": rng.integers(-99, 99, (64, 96)).astype(np.int8),
        "norm": rng.standard_normal((32, 32)),
        "step": np.array(7, np.int64),
        "none": np.zeros((0, 32), np.float32),
    }


def write_zarr(root: Path, arrays: dict[str, Array], version: Any = 3, **options: Any) -> Path:
    group = zarr.open_group(root, mode="w", zarr_format=version)
    for name, array in arrays.items():
        chunks = tuple(max(1, min(32, size)) for size in array.shape)
        made = group.create_array(
            name.replace(".", "/"),
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks,
            config={"write_empty_chunks": True},
            **options,
        )
        if array.size:
            made[...] = array
    return root


def release(root: Path, **options: Any) -> dict[str, Array]:
    """A torrent's directory with a hierarchy in it, and files beside."""
    write_zarr(root / "ckpt", tree(), **options)
    (root / "ckpt/config.json").write_bytes(b'{"dim": 96}')
    (root / "README.md").write_bytes(b"read me")
    (root / "empty.txt").write_bytes(b"")
    return tree()


def refused(root: Path, dest: Path, **changes: Any) -> GdistError:
    with seed(root, piece_length=PIECE) as seeded, pytest.raises(GdistError) as caught:
        fetch(format_magnet(seeded.magnet), dest, fetch_options(**changes))
    assert not (dest / "gdist.json").exists()
    return caught.value


RAW = {
    "v3": {"compressors": None},
    "v2 C": {"version": 2, "compressors": None},
    "v2 F": {"version": 2, "compressors": None, "order": "F"},
    "v3 turned": {"compressors": None, "filters": "turned"},
}


@pytest.mark.parametrize("way", RAW)
def test_raw_chunks_stream_and_come_back(way: str, tmp_path: Path) -> None:
    options = dict(RAW[way])
    arrays = tree()
    if options.pop("filters", None):
        arrays = {name: array for name, array in arrays.items() if array.ndim == 2}
        options["filters"] = zarr.codecs.TransposeCodec(order=(1, 0))
    write_zarr(tmp_path / "r/ckpt", arrays, **options)
    (tmp_path / "r/ckpt/config.json").write_bytes(b"{}")
    recorder = Recorder()
    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x2"), observe=recorder)
    assert recorder.of(Planned) and not recorder.of(ReshardPlanned)
    assert_holds(tmp_path / "s", arrays)
    assert (tmp_path / "s/assets/ckpt/config.json").read_bytes() == b"{}"
    assert not list((tmp_path / "s/assets").rglob("*zarr*")), "no array is there that has no chunks"
    export(tmp_path / "s", tmp_path / "out")
    assert tree_of(tmp_path / "out/r") == tree_of(tmp_path / "r")
    assert gdist.verify(tmp_path / "s").ok


def test_a_store_from_raw_chunks_can_be_seeded_and_viewed(tmp_path: Path) -> None:
    arrays = release(tmp_path / "r", compressors=None)
    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "a", fetch_options())
        fetch(format_magnet(seeded.magnet), tmp_path / "v", fetch_options(codec="view", payload="keep"))
    assert_holds(tmp_path / "v", arrays)
    with open_held([tmp_path / "a"]) as held, serve(held, LOOPBACK) as server:
        fetch(
            format_magnet(magnet_of(held.torrent, ((LOCALHOST, server.port),))),
            tmp_path / "b",
            fetch_options(),
        )
    assert_holds(tmp_path / "b", arrays)


def test_arrays_can_be_chosen_or_left_out_of_raw_chunks(tmp_path: Path) -> None:
    arrays = release(tmp_path / "r", compressors=None)
    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        magnet = format_magnet(seeded.magnet)
        fetch(magnet, tmp_path / "a", fetch_options(ignore=("layers.0.*",)))
        fetch(magnet, tmp_path / "b", fetch_options(select=("norm",)))
        found = survey(magnet, SurveyOptions(torrent=LOOPBACK))
    assert_holds(tmp_path / "a", {name: a for name, a in arrays.items() if name != "layers.0.w"})
    assert_holds(tmp_path / "b", {"norm": arrays["norm"]})
    assert {tensor.spec.name for tensor in found.tensors} == set(arrays)


ENCODED = {
    "v3": {},
    "v2": {"version": 2},
    "edges": {"compressors": None, "edges": True},
    "big-endian": {"compressors": None, "serializer": "big"},
}


@pytest.mark.parametrize("way", ENCODED)
def test_encoded_chunks_are_decoded_from_files(way: str, tmp_path: Path) -> None:
    options = dict(ENCODED[way])
    if options.pop("serializer", None):
        options["serializer"] = zarr.codecs.BytesCodec(endian="big")
    arrays = tree()
    if options.pop("edges", None):
        arrays["layers.0.w"] = np.ones((33, 50), np.float32)
    write_zarr(tmp_path / "r/ckpt", arrays, **options)
    (tmp_path / "r/ckpt/config.json").write_bytes(b"{}")
    (tmp_path / "r/README.md").write_bytes(b"read me")
    recorder = Recorder()
    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        magnet = format_magnet(seeded.magnet)
        result = fetch(magnet, tmp_path / "s", fetch_options("2x2"), observe=recorder)
        assert fetch(magnet, tmp_path / "s", fetch_options("2x2")).already
    assert any("are downloaded beside the store" in note.text for note in recorder.of(Note))
    assert_holds(tmp_path / "s", arrays)
    assert result.manifest.source.info_hash == seeded.magnet.info_hash.hex
    assert (tmp_path / "s/assets/README.md").read_bytes() == b"read me"
    assert (tmp_path / "s/assets/ckpt/config.json").read_bytes() == b"{}"
    assert not (tmp_path / "s/.gdist").exists() and not (tmp_path / "s/payload").exists()
    assert gdist.verify(tmp_path / "s").ok
    with pytest.raises(RequestError):
        export(tmp_path / "s", tmp_path / "out")
    export(tmp_path / "s", tmp_path / "hf", to="safetensors")


def test_the_files_stay_where_they_are_wanted_and_are_seeded(tmp_path: Path) -> None:
    arrays = release(tmp_path / "r")
    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "a", fetch_options(payload="keep"))
    assert_holds(tmp_path / "a", arrays)
    kept = tree_of(tmp_path / "a/payload/r")
    assert kept == tree_of(tmp_path / "r")
    with open_held([tmp_path / "a"]) as held, serve(held, LOOPBACK) as server:
        fetch(
            format_magnet(magnet_of(held.torrent, ((LOCALHOST, server.port),))),
            tmp_path / "b",
            fetch_options(),
        )
    assert_holds(tmp_path / "b", arrays)


@pytest.mark.parametrize("payload", ["discard", "keep"])
@pytest.mark.parametrize("when", [PieceVerified, ReshardPlanned, ShardCommitted])
def test_a_run_that_was_killed_goes_on(when: type[Event], payload: str, tmp_path: Path) -> None:
    arrays = release(tmp_path / "r")
    seen = 0

    def then(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, when)
        if seen == 3 or (seen and when is ReshardPlanned):
            raise Killed

    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        magnet = format_magnet(seeded.magnet)
        options = fetch_options(payload=payload)
        with pytest.raises(Killed):
            fetch(magnet, tmp_path / "s", options, observe=Recorder(then=then))
        assert not (tmp_path / "s/gdist.json").exists()
        recorder = Recorder()
        fetch(magnet, tmp_path / "s", options, observe=recorder)
    assert_holds(tmp_path / "s", arrays)
    if when is ShardCommitted:
        assert recorder.of(ReshardPlanned)[0].bytes_resumed


def test_a_stop_during_the_download_ends_it(tmp_path: Path) -> None:
    release(tmp_path / "r")
    stop = threading.Event()

    def then(event: Event) -> None:
        if isinstance(event, Note) and "are downloaded" in event.text:
            stop.set()

    with seed(tmp_path / "r", piece_length=PIECE) as seeded, pytest.raises(InterruptedRun):
        fetch(
            format_magnet(seeded.magnet),
            tmp_path / "s",
            fetch_options(),
            observe=Recorder(then=then),
            stop=stop,
        )
    assert not (tmp_path / "s/gdist.json").exists()


def test_what_is_left_out_is_not_there(tmp_path: Path) -> None:
    arrays = release(tmp_path / "r")
    (tmp_path / "r/ckpt/notes.txt").write_bytes(b"n" * 40_000)
    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        options = fetch_options(ignore=("layers.10.*", "ckpt/notes.txt"))
        fetch(format_magnet(seeded.magnet), tmp_path / "s", options)
        assert fetch(format_magnet(seeded.magnet), tmp_path / "s", options).already
    assert_holds(tmp_path / "s", {name: a for name, a in arrays.items() if name != "layers.10.w"})
    assert not (tmp_path / "s/assets/ckpt/notes.txt").exists()


@pytest.mark.parametrize(
    "changes",
    [{"select": ("norm",)}, {"dtype": "bfloat16"}, {"host": "0/2"}, {"codec": "view", "payload": "keep"}],
)
def test_what_does_not_go_with_it_is_said(changes: dict[str, Any], tmp_path: Path) -> None:
    release(tmp_path / "r")
    error = refused(tmp_path / "r", tmp_path / "s", **changes)
    assert isinstance(error, EncodedDirectory) and "does not go with that" in error.message
    assert "gdist reshard DIRECTORY DEST" in error.hint


def test_a_disk_that_is_too_small_is_told_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(tmp_path / "r")
    real = os.statvfs

    def small(path: Any) -> Any:
        found = list(real(path))
        found[4] = 10  # blocks available
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", small)
    error = refused(tmp_path / "r", tmp_path / "s")
    assert isinstance(error, SpaceError) and "more bytes of disk" in error.message


# --- what a torrent may say ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"compressors": None}])
def test_a_missing_chunk_is_not_zeros(options: dict[str, Any], tmp_path: Path) -> None:
    release(tmp_path / "r", **options)
    (tmp_path / "r/ckpt/layers/0/w/c/1/0").unlink()
    error = refused(tmp_path / "r", tmp_path / "s")
    assert isinstance(error, CorruptError) and "layers/0/w/c/1/0" in error.message


def test_documents_that_name_another_place_are_refused(tmp_path: Path) -> None:
    release(tmp_path / "r")
    path = tmp_path / "r/ckpt/norm/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"storage_transformers": [{"name": "x"}]}))
    error = refused(tmp_path / "r", tmp_path / "s")
    assert isinstance(error, UnsupportedError) and "storage_transformers" in error.message


def test_a_hierarchy_and_tensors_in_other_files_are_refused_where_it_is_decoded(tmp_path: Path) -> None:
    release(tmp_path / "r")
    write_safetensors(tmp_path / "r/other", emb=16, vocab=32, shards=1)
    error = refused(tmp_path / "r", tmp_path / "s")
    assert "other/model.safetensors" in error.message


def test_several_directories_are_refused(tmp_path: Path) -> None:
    release(tmp_path / "r")
    (tmp_path / "r/default").mkdir()
    (tmp_path / "r/default/_METADATA").write_bytes(b"{}")
    error = refused(tmp_path / "r", tmp_path / "s")
    assert "2 directories of arrays: 'default', 'ckpt'" in error.message


def test_an_orbax_tree_that_is_none_is_refused_before_the_download(tmp_path: Path) -> None:
    (tmp_path / "r/x").mkdir(parents=True)
    (tmp_path / "r/x/_METADATA").write_bytes(b"{}")
    (tmp_path / "r/x/data").write_bytes(bytes(100_000))
    assert isinstance(refused(tmp_path / "r", tmp_path / "s"), CorruptError)
    (tmp_path / "r/x/_METADATA").rename(tmp_path / "r/x/manifest.ocdbt")
    assert "without _METADATA" in refused(tmp_path / "r", tmp_path / "t").message


@pytest.mark.jax
@pytest.mark.slow
@pytest.mark.parametrize("way", ["ocdbt", "ocdbt3", "zarr", "zarr3"])
def test_orbax_checkpoints_are_decoded_from_files(way: str, tmp_path: Path) -> None:
    pytest.importorskip("orbax.checkpoint")
    script = Path(__file__).with_name("orbax_checkpoints.py")
    subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], check=True, capture_output=True
    )
    arrays = {}
    with np.load(tmp_path / "arrays.npz") as found:
        for key, data in found.items():
            name, dtype, shape = key.split("|")
            arrays[name] = data.view(np.dtype(dtype)).reshape([int(n) for n in shape.split(",") if n])
    assert arrays["layers.0.w"].dtype == ml_dtypes.bfloat16
    shutil.copytree(tmp_path / way, tmp_path / "r/0/default")
    (tmp_path / "r/README.md").write_bytes(b"read me")
    with seed(tmp_path / "r", piece_length=PIECE) as seeded:
        magnet = format_magnet(seeded.magnet)
        with pytest.raises(UnsupportedError, match=r"note \(string\)"):
            fetch(magnet, tmp_path / "s", fetch_options("2x4"))
        result = fetch(magnet, tmp_path / "s", fetch_options("2x4", ignore=("note",)))
    assert_holds(tmp_path / "s", arrays)
    assert result.manifest.source.info_hash == seeded.magnet.info_hash.hex
    assert (tmp_path / "s/assets/README.md").read_bytes() == b"read me"
