"""Resharding from real Orbax checkpoints, in every way Orbax stores arrays, and from hostile ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, by name
import numpy as np
import pytest

import gdist
from gdist.core import zarr_arrays
from gdist.core.orbax import orbax_documents, parse_orbax_tree
from gdist.errors import CorruptError, GdistError, RequestError, ResumeError, UnsupportedError
from gdist.events import Event, Stage, StageStarted
from gdist.stores.origins import orbax
from gdist.testing.fetches import Array, assert_holds
from gdist.testing.stores import write_store

pytest.importorskip("orbax.checkpoint")
pytestmark = [pytest.mark.jax, pytest.mark.slow]

Saved = tuple[Path, dict[str, Array]]

WAYS = ("ocdbt", "ocdbt3", "zarr", "zarr3")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    root = tmp_path_factory.mktemp("orbax")
    script = Path(__file__).with_name("orbax_checkpoints.py")
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(root)], check=True, capture_output=True)
    arrays = {}
    with np.load(root / "arrays.npz") as found:
        for key, data in found.items():
            name, dtype, shape = key.split("|")
            arrays[name] = data.view(np.dtype(dtype)).reshape([int(n) for n in shape.split(",") if n])
    return root, arrays


@pytest.mark.parametrize("way", WAYS)
def test_every_way_orbax_stores_arrays(way: str, saved: Saved, tmp_path: Path) -> None:
    root, arrays = saved
    rules = {"rules": [["w$", ["model", "data"]], [".*", []]]}
    result = gdist.reshard(root / way, tmp_path / "b", mesh="2x4", rules=rules, ignore=["note"])
    assert_holds(tmp_path / "b", arrays)
    assert "zeros" in arrays and "step" in arrays, "chunks of zeros, and a scalar"
    manifest = result.manifest
    assert [(step.kind, step.name) for step in manifest.resharded] == [("orbax", way)]
    assert (manifest.source.info_hash, manifest.ignored) == ("", ("note",))
    assert gdist.verify(tmp_path / "b").ok


def test_leaves_that_are_no_arrays_must_be_left_out(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"note \(string\)") as caught:
        gdist.reshard(saved[0] / "ocdbt", tmp_path / "b")
    assert "--ignore" in caught.value.hint
    assert not (tmp_path / "b").exists()


def test_chunks_too_large_for_the_memory_are_named_before_anything_is_written(
    saved: Saved, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"chunks of up to 512 B .* 0 B are left .*layers\.0\.w") as caught:
        gdist.reshard(saved[0] / "zarr3", tmp_path / "b", memory=2**16, ignore=["note"])
    assert "--memory" in caught.value.hint
    assert not (tmp_path / "b").exists()


def test_a_directory_above_says_what_it_holds(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved[0] / "zarr3", tmp_path / "a/default")
    with pytest.raises((RequestError, UnsupportedError), match="default"):
        gdist.reshard(tmp_path / "a", tmp_path / "b")


def test_a_checkpoint_still_being_written_is_refused(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved[0] / "zarr3", tmp_path / "a.orbax-checkpoint-tmp")
    with pytest.raises(RequestError, match="not finished"):
        gdist.reshard(tmp_path / "a.orbax-checkpoint-tmp", tmp_path / "b", ignore=["note"])


def test_a_missing_chunk_is_not_zeros(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved[0] / "zarr3", tmp_path / "a")
    (tmp_path / "a/layers.0.w/c/1/3").unlink()
    with pytest.raises(CorruptError, match=r"layers\.0\.w.*missing"):
        gdist.reshard(tmp_path / "a", tmp_path / "b", ignore=["note"])
    assert not (tmp_path / "b/gdist.json").exists()


def test_a_checkpoint_that_changed_meanwhile_is_no_complete_store(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved[0] / "zarr3", tmp_path / "a")

    def touch(event: Event) -> None:
        if event == StageStarted(Stage.FINISH):
            (tmp_path / "a/zeros/c/0/0").touch()

    with pytest.raises(CorruptError, match="changed while it was read"):
        gdist.reshard(tmp_path / "a", tmp_path / "b", ignore=["note"], observe=touch)
    assert not (tmp_path / "b/gdist.json").exists()
    with pytest.raises(ResumeError):
        gdist.reshard(tmp_path / "a", tmp_path / "b", ignore=["note"])


@pytest.mark.parametrize("way", ["zarr", "zarr3"])
def test_hosts_that_read_copies_share_a_destination_and_those_that_do_not_are_told(
    way: str, saved: Saved, tmp_path: Path
) -> None:
    root, arrays = saved
    dest, later = tmp_path / "b", tmp_path / "later" / way
    gdist.reshard(root / way, dest, mesh="1x2", host="0/2", ignore=["note"])
    shutil.copytree(root / way, later, copy_function=shutil.copyfile)
    chunks = [path for path in later.rglob("*[0-9]") if path.is_file() and "layers.0.w" in str(path)]
    assert len(chunks) == 8
    for path in chunks:
        path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ResumeError, match=f"another source: orbax '{way}' with identity"):
        gdist.reshard(later, dest, mesh="1x2", host="1/2", ignore=["note"])
    shutil.copytree(root / way, tmp_path / "copy" / way, copy_function=shutil.copyfile)
    gdist.reshard(tmp_path / "copy" / way, dest, mesh="1x2", host="1/2", ignore=["note"])
    assert_holds(dest, arrays)


# --- what its metadata may say --------------------------------------------------------------------------


def test_our_own_metadata_is_read_back() -> None:
    names = ("a.b", "a.c", "d")
    tree = parse_orbax_tree(orbax_documents(names)["_METADATA"], "here")
    assert (tree.names, tree.zarr3, tree.dense, tree.strange) == (names, True, True, ())


def forged(root: Path, edit: Callable[[Any], None]) -> Path:
    """A gdist store without its manifest, which is an Orbax checkpoint, with other metadata."""
    write_store(root, {"w": np.arange(8, dtype=np.float32)})
    (root / "gdist.json").unlink()
    document = json.loads((root / "_METADATA").read_text())
    edit(document)
    (root / "_METADATA").write_text(json.dumps(document))
    return root


def rename(*keys: object) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        (entry,) = document["tree_metadata"].values()
        entry["key_metadata"] = [{"key": key, "key_type": 2} for key in keys]

    return edit


def twice(document: Any) -> None:
    (entry,) = document["tree_metadata"].values()
    document["tree_metadata"]["again"] = entry


def test_a_store_without_its_manifest_is_an_orbax_checkpoint(tmp_path: Path) -> None:
    gdist.reshard(forged(tmp_path / "a", lambda document: None), tmp_path / "b", mesh="8")
    assert_holds(tmp_path / "b", {"w": np.arange(8, dtype=np.float32)})


@pytest.mark.parametrize(
    "edit",
    [
        rename("..", "..", "etc"),
        rename("../../w"),
        rename("/etc/w"),
        rename("w", "/", "x"),
        rename("assets"),
        rename(""),
        rename("elsewhere"),
        lambda document: document.pop("tree_metadata"),
        lambda document: document.update(tree_metadata=[]),
        lambda document: document.update(tree_metadata={}),
        lambda document: document.update(tree_metadata={"x": 1}),
        lambda document: document.update(use_zarr3=False),
        lambda document: document["tree_metadata"].update(
            again=next(iter(document["tree_metadata"].values()))
        ),
    ],
)
def test_metadata_that_cannot_be_is_refused(edit: Callable[[Any], None], tmp_path: Path) -> None:
    source = forged(tmp_path / "a", edit)
    with pytest.raises(GdistError):
        gdist.reshard(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()


# --- what the documents of its arrays may say ------------------------------------------------------------

HUGE = 1 << 30
RAW = [{"name": "bytes", "configuration": {"endian": "little"}}]


def grid(*chunk: int) -> dict[str, Any]:
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}}}


def sharded(*inner: int, codecs: Any = RAW) -> dict[str, Any]:
    configuration = {"chunk_shape": inner, "codecs": codecs, "index_codecs": RAW}
    return {"codecs": [{"name": "sharding_indexed", "configuration": configuration}]}


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({**grid(HUGE, HUGE), "codecs": RAW}, "has chunks of"),
        ({**grid(1 << 18, 1 << 18), "codecs": RAW}, "has chunks of"),
        ({**grid(HUGE, HUGE), **sharded(HUGE, HUGE)}, "has chunks of"),
        ({**grid(HUGE, HUGE), **sharded(8, 8)}, "chunks, more than"),
        ({**grid(1 << 14, 1 << 14), **sharded(1, 1)}, "chunks, more than"),
        (
            {**grid(1 << 14, 1 << 14), **sharded(1 << 14, 1 << 14, codecs=sharded(1, 1)["codecs"])},
            "chunks, more than",
        ),
        ({"shape": [HUGE, HUGE]}, "chunks, more than"),
        ({"shape": [HUGE, HUGE], **grid(HUGE, HUGE), "codecs": RAW}, "too large for"),
        ({"shape": [HUGE, HUGE], **grid(HUGE, HUGE), **sharded(HUGE, HUGE)}, "too large for"),
        ({"shape": [HUGE, HUGE * HUGE]}, "have more than"),
        (
            {"storage_transformers": [{"name": "x", "configuration": {"path": "/etc"}}]},
            "storage_transformers",
        ),
        ({"codecs": [{"name": "evil"}]}, "'evil'"),
        ({"node_type": "group"}, "are no arrays"),
    ],
)
def test_documents_that_cannot_be_are_refused(
    changes: dict[str, Any], words: str, dense: bool, tmp_path: Path
) -> None:
    source = forged(tmp_path / "a", lambda d: d.update({"store_array_data_equal_to_fill_value": dense}))
    path = source / "w/zarr.json"
    document = json.loads(path.read_text()) | {"shape": [8, 8], "fill_value": 0.0, "dimension_names": None}
    path.write_text(json.dumps(document | {"codecs": RAW} | grid(8, 8) | changes))
    with pytest.raises(GdistError) as caught:
        gdist.reshard(source, tmp_path / "b")
    assert words in caught.value.message and "w" in caught.value.message
    assert not (tmp_path / "b").exists()


def test_chunks_that_were_left_out_are_zeros_or_an_error(tmp_path: Path) -> None:
    source = forged(tmp_path / "a", lambda d: d.update({"store_array_data_equal_to_fill_value": False}))
    shutil.rmtree(source / "w/c")
    with pytest.raises(UnsupportedError, match="chunks that are not zeros: 'w'"):
        gdist.reshard(source, tmp_path / "b")  # NaN, in a store of gdist's
    path = source / "w/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fill_value": 0}))
    gdist.reshard(source, tmp_path / "b")
    assert_holds(tmp_path / "b", {"w": np.zeros(8, np.float32)})


def test_documents_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = forged(tmp_path / "a", lambda document: None)
    for module in (zarr_arrays, orbax):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 10)
    with pytest.raises(UnsupportedError, match=r"more than 10: w/zarr\.json"):
        gdist.reshard(source, tmp_path / "b")
