"""`examples/grok1.py` gives the tree that Grok-1's released model code declares."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gdist
from gdist.core.magnet import format_magnet
from gdist.run.fetch import fetch
from gdist.testing.checkpoints import write_grok1
from gdist.testing.fetches import Array, fetch_options
from gdist.testing.swarm import seed

jax = pytest.importorskip("jax")

pytestmark = [pytest.mark.jax, pytest.mark.torrent]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "grok1.py"
LAYERS, SMALL_LAYERS = 64, 11  # eleven: layer 10 comes before layer 2

# What `model.py` of the release declares: a module, its parameter, the parameter's shape at full size, the
# groups of its scales where it is quantised, and the spec that the partition rules there give it.
Row = tuple[str, str, tuple[int, ...], int | None, tuple[Any, ...]]
PER_LAYER: list[Row] = [
    ("moe/linear", "w", (8, 6144, 32768), 1, (None, "data", "model")),
    ("moe/linear_1", "w", (8, 32768, 6144), 8, (None, "model", "data")),
    ("moe/linear_v", "w", (8, 6144, 32768), 1, (None, "data", "model")),
    ("multi_head_attention/key", "w", (6144, 1024), 1, ("data", "model")),
    ("multi_head_attention/linear", "w", (6144, 6144), 8, ("model", "data")),
    ("multi_head_attention/query", "w", (6144, 6144), 1, ("data", "model")),
    ("multi_head_attention/value", "w", (6144, 1024), 1, ("data", "model")),
    ("rms_norm", "scale", (6144,), None, (None,)),
    ("rms_norm_1", "scale", (6144,), None, (None,)),
    ("rms_norm_2", "scale", (6144,), None, (None,)),
    ("rms_norm_3", "scale", (6144,), None, (None,)),
    ("router", "w", (6144, 8), None, ("data",)),
]
ONCE: list[Row] = [
    ("language_model/in_out_embed", "embeddings", (131072, 6144), None, (None, ("data", "model"))),
    ("language_model/rms_norm", "scale", (6144,), None, (None,)),
]
EXAMPLE_NAMES = runpy.run_path(str(EXAMPLE))
haiku_params, is_pair = EXAMPLE_NAMES["haiku_params"], EXAMPLE_NAMES["is_pair"]


def declared(layers: int) -> list[Row]:
    prefixes = [f"transformer/decoder_layer_{number}/" for number in range(layers)]
    return ONCE + [(prefix + module, *rest) for prefix in prefixes for module, *rest in PER_LAYER]


def names_of(params: dict[str, dict[str, Any]]) -> set[tuple[str, str]]:
    return {(module, parameter) for module, found in params.items() for parameter in found}


def released() -> tuple[dict[str, Any], list[Any]]:
    """Grok-1 as `gdist.load` would nest it, of `jax.ShapeDtypeStruct`; and its leaves file by file."""
    root: dict[str, Any] = {}
    leaves = []
    for file in json.loads((ROOT / "manifests" / "grok-1.json").read_text())["files"]:
        halves = {a.get("role"): jax.ShapeDtypeStruct(tuple(a["shape"]), a["dtype"]) for a in file["arrays"]}
        leaves.append(gdist.QuantizedWeight8bit(**halves) if "weight" in halves else halves[None])
        *parents, last = file["arrays"][0]["name"].split(".")
        place = root
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaves[-1]
    return root, leaves


def test_all_770_files_have_their_place_in_the_model() -> None:
    tree, leaves = released()
    params = haiku_params(tree["params"])
    assert names_of(params) == {row[:2] for row in declared(LAYERS)}
    for module, parameter, shape, groups, _ in declared(LAYERS):
        leaf = params[module][parameter]
        assert (leaf.shape, is_pair(leaf)) == (shape, groups is not None), module
        assert not groups or leaf.scales.shape == (*shape[:-2], groups, shape[-1]), module
    # The release numbered its files in the order in which JAX flattens the model's own tree.
    flat = jax.tree.leaves(params, is_leaf=is_pair)
    assert len(flat) == len(leaves) == 770
    assert all(found is leaf for found, leaf in zip(flat, leaves, strict=True))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """A store of a small one, fetched, and what it has to hold."""
    root = tmp_path_factory.mktemp("grok")
    expected = write_grok1(root / "grok", layers=SMALL_LAYERS, emb=32, ffn=64, kv=16, vocab=64)
    with seed(root / "grok", piece_length=1 << 14) as seeded:
        fetch(format_magnet(seeded.magnet), root / "store", fetch_options("1x8"))
    return root / "store", expected


def test_a_fetched_store_loads_as_the_model_declares_it(small: tuple[Path, dict[str, Array]]) -> None:
    store, arrays = small
    params = haiku_params(gdist.load(store, mesh="1x1")["params"])
    assert names_of(params) == {row[:2] for row in declared(SMALL_LAYERS)}
    for module, parameter, _, groups, spec in declared(SMALL_LAYERS):
        leaf = params[module][parameter]
        halves = {".weight": leaf.weight, ".scales": leaf.scales} if groups else {"": leaf}
        assert tuple(next(iter(halves.values())).sharding.spec) == spec, module
        for half, array in halves.items():
            name = f"params.{module}.{parameter}{half}".replace("/", ".")
            assert np.asarray(array).tobytes() == arrays[name].tobytes(), name


@pytest.mark.parametrize("mesh", ["1x8", "2x4"])  # the release's own, and one its loader fails on
def test_pairs_compute_on_a_mesh(mesh: str, small: tuple[Path, dict[str, Array]]) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, small[0], mesh],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{2 + 12 * SMALL_LAYERS} modules; ")
