"""Run by `test_meshes.py` in a process of 64 CPU devices; prints `{check: "" or a traceback}` as JSON."""

from __future__ import annotations

import functools
import gc
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import gdist
from gdist.core.mesh import HostGroup
from gdist.core.profiles import PROFILES
from gdist.core.tensor import Quantisation
from gdist.errors import CorruptError, RequestError
from gdist.rule_files import named_rules
from gdist.testing.checkpoints import dequantised, llama_tree, write_grok1
from gdist.testing.stores import Array, write_store

RULES = {
    "axes": ["data", "model"],
    "rules": [
        ["attn", ["data", "model"]],
        ["moe", [None, None, "model"]],
        ["embed", [["data", "model"]]],
        [".*", []],
    ],
}
PAIR = {f"moe.up.{role}": Quantisation("moe.up", role, 1, 1) for role in ("weight", "scales")}
MESHES = ((1, 1), (1, 8), (8, 1), (2, 4), (8, 8), (4, 16))
CHECKS: list[Callable[[Path], None]] = []


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHECKS.append(function)
    return function


def sample() -> dict[str, Array]:
    rng = np.random.default_rng(2)
    return {
        "embed": rng.standard_normal((128, 64)).astype(np.float32),
        "attn.q": rng.standard_normal((64, 128)).astype(ml_dtypes.bfloat16),
        "moe.up.weight": rng.integers(-128, 127, (2, 64, 128)).astype(np.int8),
        "moe.up.scales": rng.standard_normal((2, 1, 128)).astype(ml_dtypes.bfloat16),
        "norm": rng.standard_normal(40).astype(np.float32),
        "step": np.array(3, np.int32),
        "nothing": np.zeros((0, 8), np.float32),
    }


def leaves(tree: Any) -> dict[str, jax.Array]:
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def assert_same(tree: Any, mesh: jax.sharding.Mesh) -> None:
    found = leaves(tree)
    assert found.keys() == sample().keys()
    for name, array in sample().items():
        got = found[name]
        assert (got.shape, got.dtype) == (array.shape, array.dtype), name
        assert np.asarray(got).tobytes() == array.tobytes(), name
        assert got.sharding.mesh == mesh, name
        for shard in got.addressable_shards:
            assert np.asarray(shard.data).tobytes() == array[shard.index].tobytes(), (name, shard.index)


def mesh_of(*sizes: int) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return jax.sharding.Mesh(devices, ("data", "model"))


@check
def bits_are_equal_on_every_mesh_from_every_cut(directory: Path) -> None:
    for cut in ("1x1", "1x8", "8x8", "4x2"):
        write_store(directory / cut, sample(), mesh=cut, rules=RULES, quantised=PAIR, chunk_bytes=512)
        for sizes in ((1, 1), (1, 8), (8, 8), (2, 4)):
            tree = gdist.load(directory / cut, mesh=mesh_of(*sizes), verify=sizes != (8, 8))
            assert_same(tree, mesh_of(*sizes))
            wanted = NamedSharding(mesh_of(*sizes), P("data", "model"))
            assert tree["attn"]["q"].sharding.is_equivalent_to(wanted, 2)


@check
def other_rules_and_meshes_by_name(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="8x8", rules=RULES, quantised=PAIR)
    rules = {"rules": [["attn", ["model", "data"]], [".*", []]]}
    tree = gdist.load(directory / "s", mesh="4x16", rules=rules)
    assert_same(tree, mesh_of(4, 16))
    assert tree["attn"]["q"].sharding.spec == P("model", "data")
    assert gdist.load(directory / "s")["embed"].sharding.mesh == mesh_of(8, 8)
    product = tree["attn"]["q"] @ tree["attn"]["q"].T  # fails on a mesh with Explicit axes
    assert product.shape == (64, 64)


@check
def slabs_are_not_copied(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="8x8", rules=RULES, quantised=PAIR)
    tree = leaves(gdist.load(directory / "s", mesh="8x8"))
    maps = mapped_files()
    for name in ("embed", "attn.q", "moe.up.weight", "norm"):
        for shard in tree[name].addressable_shards:
            address = shard.data.unsafe_buffer_pointer()
            owner = [path for start, stop, path in maps if start <= address < stop]
            assert owner and str(directory / "s" / name) in owner[0], (name, shard.index, owner)


def mapped_files() -> list[tuple[int, int, str]]:
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in fields[0].split("-"))
        found.append((start, stop, fields[5] if len(fields) > 5 else ""))
    return found


@check
def arrays_outlive_the_store_and_maps_go_with_them(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="8x8", rules=RULES, quantised=PAIR)
    tree = gdist.load(directory / "s", mesh="8x8")
    shutil.rmtree(directory / "s")
    assert_same(tree, mesh_of(8, 8))
    assert any("attn.q" in path for *_, path in mapped_files())
    del tree
    gc.collect()  # JAX lets go of host memory when Python collects
    assert not any(str(directory) in path for *_, path in mapped_files())


@check
def copies_outlive_the_store_too(directory: Path) -> None:
    odd = {"odd": np.arange(8 * 21, dtype=np.float32).reshape(8, 21), "row": np.arange(24, dtype=np.int8)}
    write_store(directory / "s", {**sample(), **odd}, quantised=PAIR)  # one slab: most boxes start anywhere
    rules = {"rules": [["odd|row", [["data", "model"]]], *RULES["rules"]]}
    options: tuple[dict[str, Any], ...] = (
        {},
        {"staging": "ring"},
        {"staging": "pinned"},
        {"staging": "ring", "memory": 4096},
        {"staging": "pinned", "memory": 5000},
    )
    trees = [gdist.load(directory / "s", mesh="2x4", rules=rules, **some) for some in options]
    shutil.rmtree(directory / "s")
    gc.collect()
    for tree in trees:
        found = leaves(tree)
        for name, array in {**sample(), **odd}.items():
            for shard in found[name].addressable_shards:
                assert np.asarray(shard.data).tobytes() == array[shard.index].tobytes(), (name, shard.index)


@check
def large_slabs_pass_a_small_window_in_parts(directory: Path) -> None:
    rng = np.random.default_rng(3)
    kinds = (np.float32, np.bool_, ml_dtypes.int4, ml_dtypes.float8_e5m2, np.complex64, np.int16)
    arrays: dict[str, Array] = {}
    for number, kind in enumerate(kinds):
        arrays[f"t{number}"] = rng.integers(0, 2, (16, 8, 10)).astype(kind)
    nan = np.array([0x7F800001, 0xFFC12345, 0x80000000], np.uint32).view(np.float32)
    arrays["t0"][0, 0, :3] = nan  # a signalling NaN, a payload, a negative zero
    write_store(directory / "s", arrays, mesh="2x1", rules={"rules": [[".*", ["data"]]]})
    for mesh in ("1x1", "2x2"):
        tree = gdist.load(directory / "s", mesh=mesh, staging="ring", memory=100)
        for name, array in arrays.items():
            for shard in tree[name].addressable_shards:
                assert np.asarray(shard.data).tobytes() == array[shard.index].tobytes(), (name, shard.index)


@check
def types_are_cast_and_pairs_dequantised_the_same_everywhere(directory: Path) -> None:
    rng = np.random.default_rng(4)
    arrays: dict[str, Array] = {
        "norm": rng.standard_normal(64).astype(np.float32),
        "step": np.array(3, np.int32),
    }
    quantised, expected = {}, {"norm": arrays["norm"].astype(ml_dtypes.bfloat16), "step": arrays["step"]}
    for groups in (1, 2, 8, 64):
        name = f"w{groups}"
        arrays[f"{name}.weight"] = rng.integers(-128, 127, (2, 64, 64)).astype(np.int8)
        arrays[f"{name}.scales"] = rng.standard_normal((2, groups, 64)).astype(np.float32)
        for role in ("weight", "scales"):
            quantised[f"{name}.{role}"] = Quantisation(name, role, groups, 1)
        value = np.repeat(arrays[f"{name}.scales"], 64 // groups, axis=1) * arrays[f"{name}.weight"]
        expected[name] = value.astype(ml_dtypes.bfloat16)
    for name in ("nothing", "void.weight"):  # without elements, and split even so
        arrays[name] = np.zeros((2, 0, 64), np.int8 if "." in name else np.float32)
        expected[name.removesuffix(".weight")] = np.zeros((2, 0, 64), ml_dtypes.bfloat16)
    arrays["void.scales"] = np.zeros((2, 1, 64), np.float32)
    quantised |= {f"void.{role}": Quantisation("void", role, 1, 1) for role in ("weight", "scales")}
    rules = {
        "rules": [
            ["w1|nothing|void", [None, None, ["data", "model"]]],
            ["w", [None, "data", "model"]],
            [".*", []],
        ]
    }
    write_store(directory / "s", arrays, mesh="8x8", rules=rules, quantised=quantised)
    for sizes in ((1, 1), (1, 8), (8, 1), (2, 4), (8, 8), (4, 16)):
        explicit = jax.make_mesh(sizes, ("data", "model"), devices=jax.devices()[: int(np.prod(sizes))])
        for mesh in (mesh_of(*sizes), explicit):
            tree = gdist.load(directory / "s", mesh=mesh, dtype="bfloat16")
            assert tree.keys() == expected.keys()
            for name, array in expected.items():
                assert (tree[name].dtype, tree[name].sharding.mesh) == (array.dtype, mesh), name
                assert np.asarray(tree[name]).tobytes() == array.tobytes(), (name, sizes)
                slab = tree[name].sharding.shard_shape(array.shape)
                assert all(shard.data.shape == slab for shard in tree[name].addressable_shards), name

    wanted = NamedSharding(mesh_of(4, 4), P(None, ("model", "data")))
    target = {
        "w8": jax.ShapeDtypeStruct((2, 64, 64), np.float32, sharding=wanted),
        "w2": jax.ShapeDtypeStruct((2, 64, 64), np.float32, sharding=SingleDeviceSharding(jax.devices()[5])),
    }
    tree = gdist.load(directory / "s", target=target, select="w8|w2", dtype=np.float32)
    assert tree["w8"].sharding == wanted and tree["w2"].devices() == {jax.devices()[5]}
    for name in tree:
        assert np.asarray(tree[name]).astype(ml_dtypes.bfloat16).tobytes() == expected[name].tobytes(), name


@check
def any_sharding_of_a_target_will_do(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="8x8", rules=RULES, quantised=PAIR)
    explicit, auto = jax.make_mesh((8, 8), ("data", "model")), mesh_of(8, 8)
    shardings = (
        NamedSharding(explicit, P("data", "model")),
        NamedSharding(auto, P(("model", "data"))),
        NamedSharding(auto, P("model"), memory_kind="pinned_host"),
        SingleDeviceSharding(jax.devices()[63]),
    )
    for sharding in shardings:
        for options in ({}, {"staging": "ring"}, {"staging": "pinned"}, {"dtype": "float32"}):
            kind = np.float32 if options.get("dtype") else ml_dtypes.bfloat16
            target = {"attn": {"q": jax.ShapeDtypeStruct((64, 128), kind, sharding=sharding)}}
            q = gdist.load(directory / "s", target=target, select="attn", **options)["attn"]["q"]
            assert q.sharding == sharding and q.dtype == kind, (sharding, options)
            assert np.asarray(q).tobytes() == sample()["attn.q"].astype(kind).tobytes(), (sharding, options)
    with jax.set_mesh(explicit):
        abstract = {"norm": jax.eval_shape(lambda: jax.numpy.ones(40))}
    assert isinstance(abstract["norm"].sharding.mesh, jax.sharding.AbstractMesh)
    norm = gdist.load(directory / "s", target=abstract, select="norm", mesh=explicit)["norm"]
    assert norm.sharding.mesh == explicit
    try:
        gdist.load(directory / "s", target=abstract, select="norm", mesh="4x4")
    except RequestError as error:
        assert "another mesh than data=4,model=4: norm on data=8,model=8" in error.message, error
    else:
        raise AssertionError("an abstract mesh got other axes")


@check
def meshes_that_do_not_fit_name_every_tensor(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="8x8", rules=RULES, quantised=PAIR)
    for mesh, text in (
        (jax.sharding.Mesh(np.array(jax.devices()).reshape(8, 8), ("x", "model")), "names axis 'data'"),
        (mesh_of(3, 1), "does not divide"),
    ):
        try:
            gdist.load(directory / "s", mesh=mesh)
        except RequestError as error:
            assert text in error.message and "embed" in error.message and "attn.q" in error.message, error
        else:
            raise AssertionError(mesh)


@check
def targets_carry_their_shardings(directory: Path) -> None:
    write_store(directory / "s", sample(), mesh="1x8", rules=RULES, quantised=PAIR)
    mesh = mesh_of(8, 8)
    wanted = NamedSharding(mesh, P(None, ("model", "data")))

    def struct(name: str, sharding: Any) -> Any:
        array = sample()[name]
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    pair = gdist.QuantizedWeight8bit(
        struct("moe.up.weight", NamedSharding(mesh, P(None, "data", "model"))),
        struct("moe.up.scales", NamedSharding(mesh, P(None, None, "model"))),
    )
    target = {"attn": {"q": struct("attn.q", wanted)}, "moe": {"up": pair}}
    tree = gdist.load(directory / "s", target=target, select="attn|moe")
    for name, leaf in leaves(tree).items():
        assert np.asarray(leaf).tobytes() == sample()[name].tobytes(), name
        assert leaf.sharding == leaves(target)[name].sharding, name
    try:
        gdist.load(
            directory / "s",
            select="norm",
            target={"norm": struct("norm", NamedSharding(mesh_of(3, 1), P("data")))},
        )
    except RequestError as error:
        assert "'norm'" in error.message
    else:
        raise AssertionError("40 is not divided by 3")


@check
def hosts_parts_load_together_and_not_alone(directory: Path) -> None:
    for index in range(8):
        part = directory / str(index)
        write_store(part, sample(), mesh="8x8", rules=RULES, quantised=PAIR, host=HostGroup(index, 8))
        shutil.copytree(part, directory / "all", dirs_exist_ok=True)
    assert_same(gdist.load(directory / "all"), mesh_of(8, 8))
    for verify in (True, False):
        try:
            gdist.load(directory / "3", verify=verify)
        except RequestError as error:
            assert "written by host 0 of 8" in error.message, error
        else:
            raise AssertionError("a part loaded as the whole")
    shutil.rmtree(directory / "all/attn.q/c/5")
    for verify in (True, False):
        try:
            gdist.load(directory / "all", verify=verify)
        except CorruptError as error:
            assert "attn.q/c/5" in error.message
        else:
            raise AssertionError("a missing shard was made up")


PAIRS: tuple[tuple[str, tuple[int, ...], int, list[Any]], ...] = (  # name, weight's shape, groups, its rule
    ("moe.linear.w", (8, 64, 128), 1, [None, "data", "model"]),  # these four as Grok-1 has them
    ("moe.linear_1.w", (8, 128, 64), 8, [None, "model", "data"]),
    ("attention.linear.w", (64, 64), 8, ["model", "data"]),
    ("attention.query.w", (64, 64), 1, ["data", "model"]),
    ("fine.w", (128, 64), 128, ["model", "data"]),  # a scale for each row
    ("coarse.w", (128, 64), 4, ["model", "data"]),  # fewer groups than devices
    ("both.w", (128, 64), 8, [["data", "model"], None]),  # split by one of two axes only
)


def pairs() -> tuple[dict[str, Array], dict[str, Quantisation], dict[str, Array]]:
    """Halves of pairs, what belongs together, and the values that they stand for."""
    rng, arrays, quantised, values = np.random.default_rng(3), {}, {}, {}
    for name, shape, groups, _ in PAIRS:
        weight = rng.integers(-128, 128, shape).astype(np.int8)
        scales = rng.standard_normal((*shape[:-2], groups, shape[-1])).astype(ml_dtypes.bfloat16)
        arrays |= {f"{name}.weight": weight, f"{name}.scales": scales}
        for role in ("weight", "scales"):
            quantised[f"{name}.{role}"] = Quantisation(name, role, groups, len(shape) - 2)
        repeated = np.repeat(scales.astype(np.float32), shape[-2] // groups, axis=-2)
        values[name] = weight.astype(np.float32) * repeated
    return arrays, quantised, values


@check
def pairs_stand_for_the_same_values_on_every_mesh(directory: Path) -> None:
    arrays, quantised, values = pairs()
    rules = {"rules": [[f"^{name}$", spec] for name, _, _, spec in PAIRS]}
    for sizes in MESHES:
        cut = "x".join(map(str, sizes))
        write_store(directory / cut, arrays, mesh=cut, rules=rules, quantised=quantised)
    cuts = [(cut, cut) for cut in MESHES] + [((1, 1), (8, 8)), ((4, 16), (8, 8)), ((8, 8), (4, 16))]
    for cut, sizes in cuts:
        tree = gdist.load(directory / "x".join(map(str, cut)), mesh=mesh_of(*sizes))
        found: dict[str, gdist.QuantizedWeight8bit] = {}
        for name, _, groups, spec in PAIRS:
            found[name] = functools.reduce(lambda node, part: node[part], name.split("."), tree)
            axes = spec[-2] if isinstance(spec[-2], list) else [spec[-2]]
            count = np.prod([{"data": sizes[0], "model": sizes[1]}[axis] for axis in axes])
            assert_device_slabs(found[name], values[name], exact=groups % count == 0)
        inside = jax.jit(lambda tree: {name: -pair.dequantize("float32") for name, pair in tree.items()})
        for name, negative in inside(found).items():
            assert np.asarray(negative).tobytes() == (-values[name]).tobytes(), (sizes, name)
            assert negative.sharding.is_equivalent_to(found[name].weight.sharding, negative.ndim), name
        whole = found["moe.linear_1.w"].dequantize()
        expected = values["moe.linear_1.w"].astype(ml_dtypes.bfloat16)
        assert whole.dtype == expected.dtype and np.asarray(whole).tobytes() == expected.tobytes(), sizes


def assert_device_slabs(pair: gdist.QuantizedWeight8bit, value: Array, *, exact: bool) -> None:
    """That what each device holds stands for its slab of the value; `exact`: with no group more."""
    scales = {shard.device: shard for shard in pair.scales.addressable_shards}
    rows_of_a_group = pair.weight.shape[-2] // pair.scales.shape[-2]
    for mine in pair.weight.addressable_shards:
        theirs = scales[mine.device]
        first, stop, _ = mine.index[-2].indices(pair.weight.shape[-2])
        offset, _, _ = theirs.index[-2].indices(pair.scales.shape[-2])
        groups = np.arange(first, stop) // rows_of_a_group - offset
        assert groups.min() >= 0 and groups.max() < theirs.data.shape[-2], (mine.index, theirs.index)
        taken = np.take(np.asarray(theirs.data, np.float32), groups, axis=-2)
        got = np.asarray(mine.data, np.float32) * taken
        assert got.tobytes() == np.ascontiguousarray(value[mine.index]).tobytes(), mine.index
        if exact:
            assert theirs.data.shape[-2] == groups.max() + 1, (mine.index, theirs.index)


def maxtext_like(old: dict[str, Array]) -> dict[str, Any]:
    """What `hf-maxtext` makes of Hugging Face's names, worked out plainly."""
    roles = {
        "self_attn.q_proj": "self_attention.query.kernel",
        "self_attn.k_proj": "self_attention.key.kernel",
        "self_attn.v_proj": "self_attention.value.kernel",
        "self_attn.o_proj": "self_attention.out.kernel",
        "mlp.gate_proj": "mlp.wi_0.kernel",
        "mlp.up_proj": "mlp.wi_1.kernel",
        "mlp.down_proj": "mlp.wo.kernel",
        "input_layernorm": "pre_self_attention_layer_norm.scale",
        "post_attention_layernorm": "post_self_attention_layer_norm.scale",
    }
    made: dict[str, Any] = {
        "params.token_embedder.embedding": old["model.embed_tokens.weight"],
        "params.decoder.decoder_norm.scale": old["model.norm.weight"],
        "params.decoder.logits_dense.kernel": old["lm_head.weight"].T,
    }
    for theirs, ours in roles.items():
        rows = [old[f"model.layers.{layer}.{theirs}.weight"].T for layer in range(11)]
        made[f"params.decoder.layers.{ours}"] = np.stack(rows, axis=1)
    return made


def assert_renamed(tree: Any, expected: dict[str, Any], mesh: jax.sharding.Mesh) -> None:
    found = leaves(tree)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].sharding.mesh == mesh, name
        for shard in found[name].addressable_shards:
            wanted = np.ascontiguousarray(array[shard.index])
            assert np.asarray(shard.data).tobytes() == wanted.tobytes(), (name, shard.index)


@check
def a_renaming_table_transposes_and_stacks_on_every_mesh(directory: Path) -> None:
    old, rules = dict(llama_tree(layers=11)), named_rules("llama")
    expected = maxtext_like(old)
    cuts = {
        ("2x4", "none"): ((1, 1), (1, 8), (2, 4), (8, 8)),
        ("8x8", "none"): ((2, 4),),
        ("2x4", "zstd"): ((8, 8),),
    }
    for (cut, codec), meshes in cuts.items():
        where = directory / f"{cut}-{codec}"
        write_store(where, old, mesh=cut, rules=rules, chunk_bytes=512, codec=codec)
        for sizes in meshes:
            tree = gdist.load(where, mesh=mesh_of(*sizes), rename="hf-maxtext")
            assert_renamed(tree, expected, mesh_of(*sizes))
            kernel = tree["params"]["decoder"]["layers"]["mlp"]["wo"]["kernel"]
            wanted = NamedSharding(mesh_of(*sizes), P("model", None, "data"))  # down_proj has P(data, model)
            assert kernel.sharding.is_equivalent_to(wanted, 3), kernel.sharding


@check
def a_renaming_table_goes_with_every_way_to_load(directory: Path) -> None:
    old, mesh = dict(llama_tree(layers=11)), mesh_of(2, 4)
    expected = maxtext_like(old)
    write_store(directory / "s", old, mesh="4x2", rules=named_rules("llama"), chunk_bytes=512)
    ways: list[dict[str, Any]] = [{"staging": "ring"}, {"staging": "ring", "memory": 3000}, {"verify": False}]
    for way in [*ways, {"broadcast": True}]:
        assert_renamed(gdist.load(directory / "s", mesh=mesh, rename="hf-maxtext", **way), expected, mesh)
    wide = {name: array.astype(np.float32) for name, array in expected.items()}
    tree = gdist.load(directory / "s", mesh=mesh, rename="hf-maxtext", dtype="float32")
    assert_renamed(tree, wide, mesh)
    place = NamedSharding(mesh, P(None, None, ("data", "model")))
    name = "params.decoder.layers.mlp.wi_0.kernel"
    shape = expected[name].shape
    target = {name: jax.ShapeDtypeStruct(shape, ml_dtypes.bfloat16, sharding=place)}
    tree = gdist.load(directory / "s", rename="hf-maxtext", target=target, select=r"wi_0")
    assert tree[name].sharding == place
    assert_renamed(tree, {name: expected[name]}, mesh)


@check
def flax_names_go_by_rules_for_flax_names(directory: Path) -> None:
    old, mesh = dict(llama_tree()), mesh_of(2, 4)
    write_store(directory / "s", old)
    tree = gdist.load(directory / "s", mesh=mesh, rules="llama", rename="hf-flax")
    kernel = tree["params"]["model"]["layers"]["1"]["mlp"]["down_proj"]["kernel"]
    assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, P("model", "data")), 2)
    wanted = np.ascontiguousarray(old["model.layers.1.mlp.down_proj.weight"].T)
    assert np.asarray(kernel).tobytes() == wanted.tobytes()


@check
def grok_1_under_other_names(directory: Path) -> None:
    mesh = mesh_of(2, 4)
    stored = write_grok1(directory / "files", layers=11, emb=32, ffn=64, vocab=64)
    old = dequantised(stored, "bfloat16")
    write_store(directory / "s", old, mesh="8x1", rules=PROFILES["grok-1"].rules, chunk_bytes=512)
    layer = "params.transformer.decoder_layer_{}."
    tree = gdist.load(directory / "s", mesh=mesh, rename="grok-1-stacked")
    stacked = {name: array for name, array in old.items() if "decoder_layer" not in name}
    for role in (name.removeprefix(layer.format(0)) for name in old if name.startswith(layer.format(0))):
        rows = [old[layer.format(number) + role] for number in range(11)]
        stacked["params.transformer.layers." + role] = np.stack(rows)
    assert_renamed(tree, stacked, mesh)
    tree = leaves(gdist.load(directory / "s", mesh=mesh, rename="grok-1-hf"))
    assert len(tree) == len(old)
    got = np.asarray(tree["model.layers.10.attn.q_proj.weight"])
    wanted = np.ascontiguousarray(old[layer.format(10) + "multi_head_attention.query.w"].T)
    assert got.tobytes() == wanted.tobytes()


@check
def quantised_pairs_are_transposed_and_stacked_with_their_scales(directory: Path) -> None:
    stored = write_grok1(directory / "files", layers=3, emb=32, ffn=64, vocab=64)
    plain = dequantised(stored, "float32")
    pairs = {}
    for name, array in stored.items():
        if name.endswith((".weight", ".scales")):
            pair, _, role = name.rpartition(".")
            groups = stored[f"{pair}.scales"].shape[-2]
            pairs[name] = Quantisation(pair, role, groups, array.ndim - 2)
    rules, layer = PROFILES["grok-1"].rules, "params.transformer.decoder_layer_{}."
    write_store(directory / "s", stored, mesh="2x4", rules=rules, quantised=pairs, chunk_bytes=512)
    moe = np.stack([plain[layer.format(number) + "moe.linear_1.w"] for number in range(3)])
    query = np.ascontiguousarray(plain[layer.format(2) + "multi_head_attention.query.w"].T)
    for sizes in ((1, 1), (2, 4), (8, 1), (1, 8)):
        mesh = mesh_of(*sizes)
        tree = gdist.load(directory / "s", mesh=mesh, rename="grok-1-stacked")
        found = tree["params"]["transformer"]["layers"]["moe"]["linear_1"]["w"]
        assert isinstance(found, gdist.QuantizedWeight8bit) and found.shape == (3, 8, 64, 32)
        assert np.asarray(found.dequantize(np.float32)).tobytes() == moe.tobytes(), sizes
        one = leaves(gdist.load(directory / "s", mesh=mesh, rename="grok-1-stacked", dtype="float32"))
        assert np.asarray(one["params.transformer.layers.moe.linear_1.w"]).tobytes() == moe.tobytes(), sizes
        one = leaves(gdist.load(directory / "s", mesh=mesh, rename="grok-1-hf", dtype="float32"))
        assert np.asarray(one["model.layers.2.attn.q_proj.weight"]).tobytes() == query.tobytes(), sizes


def main() -> None:
    results = {}
    for function in CHECKS:
        with tempfile.TemporaryDirectory() as directory:
            try:
                function(Path(directory))
                results[function.__name__] = ""
            except Exception:
                results[function.__name__] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
