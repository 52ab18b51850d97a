"""A manifest is hostile until it was checked: its seal can be made by anyone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gdist
from gdist.core.store_manifest import _seal
from gdist.errors import CorruptError, GdistError
from gdist.testing.stores import write_store


def resealed(root: Path, change: Callable[[Any], None]) -> None:
    """Changes a manifest and seals it again, as an attacker would."""
    path = root / "gdist.json"
    body = json.loads(path.read_bytes())
    del body["digest"]
    change(body)
    body["digest"] = _seal(body)
    path.write_text(json.dumps(body))


def row(body: Any) -> Any:
    return body["tensors"][0]


HOSTILE: dict[str, Callable[[Any], None]] = {
    "climbs": lambda b: row(b).update(name="../../etc/passwd"),
    "climbs inside": lambda b: row(b).update(name="a/../../b"),
    "absolute": lambda b: row(b).update(name="/etc/passwd"),
    "empty": lambda b: row(b).update(name=""),
    "collides": lambda b: row(b).update(name="zarr.json"),
    "control": lambda b: row(b).update(name="a\x1b[2Jb"),
    "nul": lambda b: row(b).update(name="a\0b"),
    "number": lambda b: row(b).update(name=5),
    "twice": lambda b: b["tensors"].append(row(b)),
    "shard index outside": lambda b: row(b).update(shards=[[[7, 0], row(b)["shards"][0][1]]]),
    "shard index negative": lambda b: row(b).update(shards=[[[-1, 0], row(b)["shards"][0][1]]]),
    "shard index short": lambda b: row(b).update(shards=[[[0], row(b)["shards"][0][1]]]),
    "digests too few": lambda b: row(b).update(shards=[[[0, 0], []]]),
    "zero chunk": lambda b: row(b).update(chunk=[0, 8]),
    "negative shape": lambda b: row(b).update(shape=[-8, 8], shard=[-8, 8], slab=[-8, 8], chunk=[-8, 8]),
    "ragged": lambda b: row(b).update(shape=[9, 8]),
    "dimensions": lambda b: row(b).update(shape=[8]),
    "type": lambda b: row(b).update(dtype="object"),
    "pair": lambda b: row(b).update(quantisation=["elsewhere", "weight", 1, 0]),
    "asset climbs": lambda b: b.update(assets=[{"path": "../x", "nbytes": 1, "digest": ""}]),
    "asset absolute": lambda b: b.update(assets=[{"path": "/x", "nbytes": 1, "digest": ""}]),
    "codec": lambda b: b.update(codec="exec"),
    "mesh": lambda b: b.update(mesh=[["model", 0]]),
    "other host": lambda b: b.update(host=[1, 2]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_manifest_that_cannot_be_true_is_refused(tmp_path: Path, change: Callable[[Any], None]) -> None:
    write_store(tmp_path / "s", {"w": np.ones((8, 8), np.int8)})
    resealed(tmp_path / "s", change)
    with pytest.raises(GdistError):
        gdist.open(tmp_path / "s")


def test_a_resealed_manifest_without_a_change_opens(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.ones((8, 8), np.int8)})
    resealed(tmp_path / "s", lambda body: None)
    with gdist.open(tmp_path / "s") as store:
        assert np.asarray(store["w"]).all()


def test_a_changed_manifest_breaks_its_seal(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.ones((8, 8), np.int8)})
    path = tmp_path / "s/gdist.json"
    path.write_text(path.read_text().replace('"int8"', '"uint8"'))
    with pytest.raises(CorruptError, match="does not match"):
        gdist.open(tmp_path / "s")
