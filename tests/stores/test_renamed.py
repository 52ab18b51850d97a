"""A store under a table's names gives, box by box, what NumPy makes of the stored arrays."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdist
from gdist.core.box import Box
from gdist.core.rename import RenameTable, parse_table
from gdist.errors import CorruptError, RequestError
from gdist.stores import Store
from gdist.stores.renamed import renamed_store
from gdist.testing.stores import Array, write_store

RULES = {"axes": ["data", "model"], "rules": [["[wv]$", ["data", "model"]], [".*", []]]}
LAYERS = 11


def sample() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    found: dict[str, Array] = {"e": rng.standard_normal((16, 32)).astype(np.float32)}
    for layer in range(LAYERS):
        found[f"l.{layer}.w"] = rng.standard_normal((16, 24)).astype(ml_dtypes.bfloat16)
        found[f"l.{layer}.n"] = rng.standard_normal(40).astype(np.float32)
        found[f"l.{layer}.s"] = np.array(layer, np.int32)
    return found | {"cube.v": rng.integers(0, 99, (4, 8, 6)), "nothing": np.zeros((0, 4), np.float32)}


def table() -> RenameTable:
    stack = {"stack": "layer"}
    rules = [
        {"match": "e", "to": "embed.kernel", "transpose": True},
        {"match": r"l\.(?P<layer>\d+)\.w", "to": "w", "transpose": True, "axis": 1, **stack},
        {"match": r"l\.(?P<layer>\d+)\.n", "to": "n", "axis": 1, **stack},
        {"match": r"l\.(?P<layer>\d+)\.s", "to": "s", **stack},
        {"match": r"(cube|nothing)(\.v)?", "to": r"\1", "transpose": True},
    ]
    return parse_table({"name": "t", "rename": rules})


def expected() -> dict[str, Any]:
    old = sample()
    stacks = {role: [old[f"l.{layer}.{role}"] for layer in range(LAYERS)] for role in "wns"}
    return {
        "embed.kernel": old["e"].T,
        "w": np.stack([array.T for array in stacks["w"]], 1),
        "n": np.stack(stacks["n"], 1),
        "s": np.stack(stacks["s"], 0),
        "cube": old["cube.v"].transpose(2, 1, 0),
        "nothing": old["nothing"].T,
    }


def assert_same(store: Store) -> None:
    assert list(store) == list(expected())
    for name, array in expected().items():
        got = np.asarray(store[name])
        assert (got.shape, got.dtype) == (array.shape, array.dtype), name
        assert got.tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("mesh", ["1", "4x2"])
def test_every_bit_is_where_numpy_puts_it(tmp_path: Path, mesh: str, codec: str, verify: bool) -> None:
    write_store(
        tmp_path / "s", sample(), mesh=mesh, rules=RULES if "x" in mesh else None, chunk_bytes=64, codec=codec
    )
    with gdist.open(tmp_path / "s", verify=verify) as store:
        assert_same(renamed_store(store, table()))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("renamed")
    for codec in ("none", "zstd"):
        write_store(root / codec, sample(), mesh="4x2", rules=RULES, chunk_bytes=64, codec=codec)
    with gdist.open(root / "none") as one, gdist.open(root / "zstd") as two:
        yield [renamed_store(one, table()), renamed_store(two, table())]


@given(st.data())
@settings(max_examples=60)
def test_any_box_is_what_numpy_gives(stores: list[Store], data: st.DataObject) -> None:
    name, array = data.draw(st.sampled_from([(n, a) for n, a in expected().items() if a.size]))
    start = tuple(data.draw(st.integers(0, size - 1)) for size in array.shape)
    stop = tuple(data.draw(st.integers(a + 1, size)) for a, size in zip(start, array.shape, strict=True))
    box = Box(start, stop)
    for store in stores:
        want = np.ascontiguousarray(array[box.slices()]).tobytes()
        assert store[name].read(box).tobytes() == want
        view = store[name].view(box)
        assert view is None or np.ascontiguousarray(view).tobytes() == want
        tiles = [(tile, store[name].read(tile)) for tile in store[name].chunks_of(box)]
        out = np.empty(box.shape, array.dtype)
        for tile, part in tiles:
            out[tile.relative_to(box.start).slices()] = part
        assert out.tobytes() == want


def test_specs_go_with_their_dimensions_and_tensorstore_agrees(stores: list[Store]) -> None:
    store = stores[0]
    assert str(store["embed.kernel"].spec) == "P(None, None)"
    assert str(store["w"].spec) == "P(model, None, data)"
    assert str(store["cube"].spec) == "P(None, model, data)"
    for name in ("w", "cube", "s"):
        assert np.asarray(store[name].tensorstore().read().result()).tolist() == expected()[name].tolist()


def test_a_part_of_one_source_is_a_view(stores: list[Store]) -> None:
    local = stores[0]
    view = local["embed.kernel"].view()
    assert view is not None and view.shape == (32, 16)
    assert local["w"].view(Box((0, 3, 0), (12, 4, 4))) is not None
    assert local["w"].view(Box((0, 3, 0), (12, 5, 4))) is None


def test_what_is_missing_is_an_error_and_never_zeros(tmp_path: Path) -> None:
    write_store(tmp_path / "s", sample())
    shutil.rmtree(tmp_path / "s" / "l.3.w")
    with gdist.open(tmp_path / "s") as store:
        renamed = renamed_store(store, table())
        with pytest.raises(CorruptError, match=r"of 'l\.3\.w' is missing"):
            renamed["w"].read()
        with pytest.raises(CorruptError, match=r"of 'l\.3\.w' is missing"):
            renamed.check({"w": [Box.whole(renamed["w"].shape)]})
        renamed["w"].read(Box((0, 0, 0), (24, 3, 16)))


def test_what_has_no_rule_is_listed(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {**sample(), "other": np.zeros(3, np.float32)})
    with (
        gdist.open(tmp_path / "s") as store,
        pytest.raises(RequestError, match="no rule for 1 tensors: other"),
    ):
        renamed_store(store, table())
