"""npy, npz and Flax's msgpack through a real swarm, and as views."""

from __future__ import annotations

import struct
from pathlib import Path

import flax.serialization as flax
import ml_dtypes
import numpy as np
import pytest

import gdist
from gdist.core.magnet import format_magnet
from gdist.errors import UnsupportedError
from gdist.run.export import export
from gdist.run.fetch import fetch
from gdist.run.verify import verify
from gdist.testing.fetches import Array, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14


def write_npz(folder: Path) -> dict[str, Array]:
    rng = np.random.default_rng(4)
    arrays = {
        "params/w": rng.standard_normal((80, 96)).astype(np.float32),
        "params/f": np.asfortranarray(rng.standard_normal((33, 40))),
        "params/b": rng.standard_normal(50).astype(ml_dtypes.bfloat16),
        "step": np.array(7, np.int32),
    }
    folder.mkdir(parents=True)
    np.savez(folder / "model.npz", **arrays)  # type: ignore[arg-type]  # as anyone calls it
    return arrays


def write_npy(folder: Path) -> dict[str, Array]:
    folder.mkdir(parents=True)
    arrays = {
        "a.npy": np.arange(6000, dtype=np.float32).reshape(60, 100),
        "f.npy": np.asfortranarray(np.arange(600, dtype=np.int16).reshape(20, 30)),
    }
    for name, array in arrays.items():
        np.save(folder / name, array)
    return arrays


def write_flax(folder: Path) -> dict[str, Array]:
    """With one array in chunks, as Flax cuts those of more than a GiB."""
    rng = np.random.default_rng(5)
    tree = {
        "params": {
            "w": rng.standard_normal((70, 90)).astype(np.float32),
            "b": np.ones(9, ml_dtypes.bfloat16),
        },
        "cut": rng.standard_normal((60, 77)).astype(np.float32),
        "step": 3,
    }
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax, "_chunk_array_leaves_in_place", _cut_one)
        patch.setattr(flax, "MAX_CHUNK_SIZE", 5000)
        (folder / "flax_model.msgpack").write_bytes(flax.msgpack_serialize(tree))
    return {"params.w": tree["params"]["w"], "params.b": tree["params"]["b"], "cut": tree["cut"]}


_cut = flax._chunk_array_leaves_in_place


def _cut_one(tree: dict[str, object]) -> dict[str, object]:
    return {**tree, **_cut({"cut": tree["cut"]})}


WRITERS = {
    "npz": write_npz,
    "npy": write_npy,
    "flax": write_flax,
}


@pytest.mark.parametrize("mesh", ["1", "2x4"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_checkpoint_is_fetched_and_given_back(kind: str, mesh: str, tmp_path: Path) -> None:
    expected = WRITERS[kind](tmp_path / "from")
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(mesh))
    assert_holds(tmp_path / "s", expected)
    assert verify(tmp_path / "s").ok
    export(tmp_path / "s", tmp_path / "back", to="payload")
    assert tree_of(tmp_path / "back/from") == tree_of(tmp_path / "from")


def test_files_of_a_format_without_arrays_are_kept_as_they_are(tmp_path: Path) -> None:
    expected = write_npz(tmp_path / "from")
    others = {
        "index.msgpack": flax.msgpack_serialize({"version": 1, "files": ["a", "b"]}),
        "vocabulary.gguf": b"GGUF" + struct.pack("<I2Q", 3, 0, 0) + bytes(8),
    }
    for name, data in others.items():
        (tmp_path / "from" / name).write_bytes(data)
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert_holds(tmp_path / "s", expected)
    assert {name: (tmp_path / "s/assets" / name).read_bytes() for name in others} == others
    assert verify(tmp_path / "s").ok


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_a_download_becomes_a_store_in_place(kind: str, tmp_path: Path) -> None:
    expected = WRITERS[kind](tmp_path / "model")
    root = gdist.view(tmp_path / "model").path
    assert_holds(Path(root), expected)
    assert verify(root).ok


def test_a_view_has_flax_s_arrays_that_are_whole(tmp_path: Path) -> None:
    expected = write_flax(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"not all tensors can be viewed: .*'cut'"):
        gdist.view(tmp_path / "model")
    root = gdist.view(tmp_path / "model", partial=True).path
    assert_holds(Path(root), {name: array for name, array in expected.items() if name != "cut"})
