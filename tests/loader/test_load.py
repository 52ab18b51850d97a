"""Loading on one device, trees, targets and refusals; meshes are in `test_meshes.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gdist
from gdist.core.tensor import Quantisation
from gdist.errors import CorruptError, RequestError
from gdist.testing.stores import Array, write_store

jax = pytest.importorskip("jax")

pytestmark = pytest.mark.jax

PAIR = {f"moe.linear.{role}": Quantisation("moe.linear", role, 1, 1) for role in ("weight", "scales")}


def sample() -> dict[str, Array]:
    rng = np.random.default_rng(11)
    return {
        "embed": rng.standard_normal((16, 32)).astype(np.float32),
        "layer.0.w": rng.standard_normal((8, 64)).astype(ml_dtypes.bfloat16),
        "moe.linear.weight": rng.integers(-128, 127, (2, 8, 64)).astype(np.int8),
        "moe.linear.scales": rng.standard_normal((2, 1, 64)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(1.25, np.float32),
        "nothing": np.zeros((0, 4), np.float32),
        "fp8": rng.standard_normal((4, 4)).astype(ml_dtypes.float8_e4m3fn),
        "int4": rng.integers(-8, 8, (4, 6)).astype(ml_dtypes.int4),
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_store(tmp_path / "s", sample(), quantised=PAIR, chunk_bytes=256)
    return tmp_path / "s"


def bits(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def test_names_become_nested_dicts_and_pairs_one_leaf(root: Path) -> None:
    tree = gdist.load(root)
    assert list(tree) == ["embed", "layer", "moe", "scalar", "nothing", "fp8", "int4"]
    pair = tree["moe"]["linear"]
    assert isinstance(pair, gdist.QuantizedWeight8bit) and pair.shape == (2, 8, 64)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert found.keys() == sample().keys()
    for name, array in sample().items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert bits(found[name]) == array.tobytes(), name


@pytest.mark.parametrize("url", ["memory://load/s", "zstd"])
def test_remote_and_compressed_stores_load_too(tmp_path: Path, url: str) -> None:
    where = url if "://" in url else str(tmp_path / "s")
    write_store(where, sample(), quantised=PAIR, chunk_bytes=256, codec="zstd")
    tree = gdist.load(where)
    assert bits(tree["embed"]) == sample()["embed"].tobytes()
    assert bits(tree["moe"]["linear"].scales) == sample()["moe.linear.scales"].tobytes()


def test_an_open_store_stays_open(root: Path) -> None:
    with gdist.open(root) as store:
        assert gdist.load(store, select="embed").keys() == {"embed"}
        assert store["embed"].view() is not None


def test_select_takes_both_halves_of_a_pair(root: Path) -> None:
    assert gdist.load(root, select=r"linear$").keys() == {"moe"}
    assert gdist.load(root, select=["^emb", r"layer\.0"]).keys() == {"embed", "layer"}
    assert gdist.load(root, select=lambda name: name == "moe.linear").keys() == {"moe"}
    with pytest.raises(RequestError, match="chooses no tensor"):
        gdist.load(root, select="absent")


@pytest.mark.parametrize("load", [gdist.load, lambda *args, **options: list(gdist.stream(*args, **options))])
def test_what_is_no_pattern_or_mesh_is_refused(root: Path, load: Any) -> None:
    with pytest.raises(RequestError, match=r"select is no regular expression: 'z\('"):
        load(root, select=["embed", "z("])
    for mesh in (8, (1, 8), jax.sharding.AbstractMesh((8,), ("model",))):
        with pytest.raises(RequestError, match="is of type") as caught:
            load(root, mesh=mesh)
        assert "'8x8'" in caught.value.hint
        with pytest.raises(RequestError, match="is of type"):
            gdist.device_order(mesh)


def target(**changes: Any) -> dict[str, Any]:
    struct = jax.ShapeDtypeStruct
    return {
        "embed": struct((16, 32), np.float32),
        "layer": [{"w": struct((8, 64), ml_dtypes.bfloat16)}],
        "moe": {
            "linear": gdist.QuantizedWeight8bit(
                struct((2, 8, 64), np.int8), struct((2, 1, 64), ml_dtypes.bfloat16)
            )
        },
        "scalar": struct((), np.float32),
        **changes,
    }


WITHOUT = r"^(?!nothing|fp8|int4)"


def test_a_target_is_filled_and_keeps_its_form(root: Path) -> None:
    device = jax.devices()[0]
    placed = jax.ShapeDtypeStruct((16, 32), np.float32, sharding=jax.sharding.SingleDeviceSharding(device))
    tree = gdist.load(root, target=target(embed=placed), select=WITHOUT)
    assert jax.tree.structure(tree) == jax.tree.structure(target())
    assert bits(tree["embed"]) == sample()["embed"].tobytes()
    assert bits(tree["layer"][0]["w"]) == sample()["layer.0.w"].tobytes()
    assert bits(tree["moe"]["linear"].weight) == sample()["moe.linear.weight"].tobytes()
    assert isinstance(tree["embed"].sharding, jax.sharding.SingleDeviceSharding)


@pytest.mark.parametrize("rename", [lambda path: path.removeprefix("params."), {"params.embed": "embed"}])
def test_rename_goes_from_leaf_to_tensor(root: Path, rename: Any) -> None:
    tree = gdist.load(root, target={"params": {"embed": target()["embed"]}}, select="^embed$", rename=rename)
    assert bits(tree["params"]["embed"]) == sample()["embed"].tobytes()


def test_a_target_that_disagrees_hears_everything_at_once(root: Path) -> None:
    wrong = target(embed=jax.ShapeDtypeStruct((16, 31), np.float32), more=target()["scalar"])
    wrong["moe"] = {"linear": wrong["scalar"]}
    with pytest.raises(RequestError) as caught:
        gdist.load(root, target=wrong, select=WITHOUT)
    error = caught.value
    assert error.missing == ("moe.linear", "more")
    assert error.unexpected == ("moe.linear.weight", "moe.linear.scales")
    assert isinstance(error.different, tuple) and len(error.different) == 1
    assert "embed is float32[16, 31], stored is float32[16, 32]" in error.message
    assert "moe.linear.scales" in error.message and "more" in error.message


def test_wide_types_are_refused_and_never_narrowed(tmp_path: Path) -> None:
    arrays = {"big": np.array([2**40, 5]), "also": np.array([0.1]), "w": np.ones(3, np.float32)}
    write_store(tmp_path / "s", arrays)
    with pytest.raises(RequestError, match="2 tensors are of 64-bit types") as caught:
        gdist.load(tmp_path / "s")
    assert caught.value.tensors == ("big", "also")
    assert gdist.load(tmp_path / "s", select="w").keys() == {"w"}
    with jax.enable_x64(True):
        tree = gdist.load(tmp_path / "s")
        assert tree["big"].dtype == np.int64 and int(tree["big"][0]) == 2**40


def test_damage_stops_a_load_before_it_begins(root: Path) -> None:
    path = root / "layer.0.w/c/0/0"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"'layer.0.w'\[4:6, 0:64\]"):
        gdist.load(root)
    gdist.load(root, select="embed")
    path.unlink()
    (root / "embed/c/0/0").unlink()
    for verify in (True, False):
        with pytest.raises(CorruptError, match=r"embed/c/0/0 of 'embed' is missing; shard .*layer.0.w/c/0/0"):
            gdist.load(root, verify=verify)


def test_too_large_a_mesh_is_refused(root: Path) -> None:
    with pytest.raises(RequestError, match="needs 4096 devices, there are"):
        gdist.load(root, mesh="64x64")


def test_rules_that_do_not_fit_name_every_tensor(root: Path) -> None:
    devices = np.array(jax.devices()[:1])
    other = jax.sharding.Mesh(devices, ("x",))
    with pytest.raises(RequestError, match="'model'") as caught:
        gdist.load(root, mesh=other, rules={"rules": [[".*", ["model"]]]})
    assert "'x'" in caught.value.message or "x=1" in caught.value.message
    with pytest.raises(RequestError, match="no rule matches 2 tensors"):
        gdist.load(root, rules={"rules": [["moe|layer|nothing|fp8|int4", []]]})


@pytest.mark.parametrize("load", [gdist.load, lambda *args, **options: dict(gdist.stream(*args, **options))])
def test_rules_of_another_model_are_refused(root: Path, load: Any) -> None:
    other = {"rules": [["zzz", ["model"]], [".*", []]]}
    with pytest.raises(RequestError, match="the rules match none of the 7 names"):
        load(root, rules=other)
    assert load(root, rules=other, select="^embed$").keys() == {"embed"}  # a choice may be of what they leave
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    struct = jax.ShapeDtypeStruct
    tree = {name: struct(array.shape, array.dtype, sharding=device) for name, array in sample().items()}
    with pytest.raises(RequestError, match="the rules match none of the 7 names"):
        load(root, rules=other, target={n: struct(a.shape, a.dtype) for n, a in sample().items()})
    tree["embed"] = struct((16, 32), np.float32)  # the only one that goes by the rules
    assert load(root, rules=other, target=tree).keys() == sample().keys()


def test_names_that_are_beginnings_of_others_need_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "s", {"a": np.ones(3, np.float32), "a.b": np.ones(3, np.float32)})
    with monkeypatch.context() as patch:
        patch.setattr(
            gdist.stores.Store,
            "check",
            lambda self, boxes: pytest.fail("it is refused before anything is read"),
        )
        with pytest.raises(RequestError, match="beginnings of other names"):
            gdist.load(tmp_path / "s")
    assert gdist.load(tmp_path / "s", select="^a$").keys() == {"a"}


def test_a_pair_goes_through_jax(root: Path) -> None:
    pair = gdist.load(root, select="moe")["moe"]["linear"]
    product = jax.jit(lambda q: q.weight * q.scales)(pair)
    expected = sample()["moe.linear.weight"] * sample()["moe.linear.scales"]
    np.testing.assert_array_equal(np.asarray(product), expected)
    assert replace(pair, scales=pair.scales).weight is pair.weight


def test_dtype_casts_floats_dequantises_pairs_and_leaves_integers(root: Path) -> None:
    arrays = sample()
    tree = gdist.load(root, dtype="bfloat16")
    value = arrays["moe.linear.weight"].astype(np.float32) * arrays["moe.linear.scales"].astype(np.float32)
    assert bits(tree["moe"]["linear"]) == value.astype(ml_dtypes.bfloat16).tobytes()
    for name in ("embed", "scalar", "fp8"):
        assert bits(tree[name]) == arrays[name].astype(ml_dtypes.bfloat16).tobytes(), name
    assert tree["int4"].dtype == ml_dtypes.int4 and bits(tree["int4"]) == arrays["int4"].tobytes()
    assert tree["nothing"].dtype == ml_dtypes.bfloat16 and tree["nothing"].shape == (0, 4)
    same = gdist.load(root, dtype=np.float32, select="embed")["embed"]
    assert bits(same) == arrays["embed"].tobytes()
    half = gdist.load(root, dtype=jax.numpy.float16, select="layer")  # as wide as what it was: donated
    assert bits(half["layer"]["0"]["w"]) == arrays["layer.0.w"].astype(np.float16).tobytes()


def test_a_target_has_the_types_that_are_given_out(root: Path) -> None:
    struct = jax.ShapeDtypeStruct
    filled = gdist.load(
        root, target={"moe": {"linear": struct((2, 8, 64), np.float32)}}, select="moe", dtype="float32"
    )
    assert filled["moe"]["linear"].dtype == np.float32
    with pytest.raises(RequestError, match=r"moe.linear is bfloat16.*, dtype= makes it float32"):
        gdist.load(
            root, target={"moe": {"linear": struct((2, 8, 64), "bfloat16")}}, select="moe", dtype="float32"
        )
    for dtype, said in (("bfloat16", "dtype= makes it bfloat16"), ("float32", "stored is float32")):
        with pytest.raises(RequestError, match=rf"embed is float16\[16, 32\], {said}"):
            gdist.load(root, target={"embed": struct((16, 32), "float16")}, select="embed", dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "float33", "float128", "bool", object()])
def test_other_types_are_refused(root: Path, dtype: Any) -> None:
    with pytest.raises(RequestError, match="is no floating type"):
        gdist.load(root, dtype=dtype)


def test_a_type_of_64_bits_needs_x64(root: Path) -> None:
    with pytest.raises(RequestError, match="dtype float64 is of 64 bits"):
        gdist.load(root, dtype="float64")
    with jax.enable_x64(True):
        tree = gdist.load(root, dtype="float64", select="embed")
        assert bits(tree["embed"]) == sample()["embed"].astype(np.float64).tobytes()


def test_scales_that_do_not_divide_their_weight_are_refused(tmp_path: Path) -> None:
    arrays = {"p.weight": np.ones((4, 6), np.int8), "p.scales": np.ones((4, 4), np.float32)}
    pair = {f"p.{role}": Quantisation("p", role, 4, 1) for role in ("weight", "scales")}
    write_store(tmp_path / "s", arrays, quantised=pair)
    with pytest.raises(RequestError, match=r"\[4, 4\] scales of 'p' do not divide its \[4, 6\]"):
        gdist.load(tmp_path / "s", dtype="float32")
    assert gdist.load(tmp_path / "s")["p"].scales.shape == (4, 4)


def test_staging_and_memory_are_what_they_are_called(root: Path) -> None:
    with pytest.raises(RequestError, match="staging 'disk' is none of auto, none, ring, pinned"):
        gdist.load(root, staging="disk")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="memory 'lots' is not a number of bytes"):
        gdist.load(root, memory="lots")
    with pytest.raises(RequestError, match="memory '0GiB' holds nothing"):
        gdist.load(root, memory="0GiB")
    for staging in ("ring", "pinned"):
        found = gdist.load(root, staging=staging, memory="1KiB", select="embed|layer|int4|scalar")
        for name in ("embed", "int4", "scalar"):
            assert bits(found[name]) == sample()[name].tobytes()


def test_a_table_is_refused_where_it_cannot_be_used(root: Path) -> None:
    with pytest.raises(RequestError, match="rename 'llama' is no table that gdist knows"):
        gdist.load(root, rename="llama")
    with pytest.raises(RequestError, match="'hf-flax' has no rule for 8 tensors: embed, "):
        gdist.load(root, rename="hf-flax")
    with pytest.raises(RequestError, match="exchange goes by the shards as they are stored"):
        gdist.load(root, rename="hf-flax", exchange=True)
    with pytest.raises(RequestError, match="stream gives tensors as they are stored"):
        next(gdist.stream(root, rename="hf-flax"))
