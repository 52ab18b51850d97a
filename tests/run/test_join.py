"""Checkpoints saved in slices, through a real swarm: joined as torch and NumPy would, and onto a mesh."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import gdist
from gdist.core.magnet import format_magnet
from gdist.core.mesh import parse_mesh
from gdist.errors import CorruptError, GdistError, UnsupportedError
from gdist.rule_files import named_rules
from gdist.run.catalogue import read_catalogue
from gdist.run.export import export
from gdist.run.fetch import fetch
from gdist.run.reshard import ReshardOptions, reshard
from gdist.run.survey import SurveyOptions, survey_files
from gdist.run.verify import verify
from gdist.run.view import make_view
from gdist.sources.torrent import TorrentOptions, TorrentSource
from gdist.testing.agents import Agents
from gdist.testing.fetches import Array, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14
DIM, FFN, KV, VOCAB, LAYERS = 64, 128, 32, 256, 2
BF16 = torch.bfloat16


def llama(version: int) -> tuple[dict[str, torch.Tensor], dict[str, int | None]]:
    """A Llama, whole, and for each tensor the dimension along which ranks have slices; None: copies."""
    torch.manual_seed(3)
    shapes: dict[str, tuple[tuple[int, ...], int | None]] = {
        "tok_embeddings.weight": ((VOCAB, DIM), 1 if version == 2 else 0),
        "output.weight": ((VOCAB, DIM), 0),
        "norm.weight": ((DIM,), None),
        "rope.freqs": ((8,), None),
    }
    for layer in range(LAYERS):
        of = f"layers.{layer}."
        shapes |= {
            of + "attention.wq.weight": ((DIM, DIM), 0),
            of + "attention.wk.weight": ((KV, DIM), 0),
            of + "attention.wv.weight": ((KV, DIM), 0),
            of + "attention.wo.weight": ((DIM, DIM), 1),
            of + "feed_forward.w1.weight": ((FFN, DIM), 0),
            of + "feed_forward.w2.weight": ((DIM, FFN), 1),
            of + "feed_forward.w3.weight": ((FFN, DIM), 0),
            of + "attention_norm.weight": ((DIM,), None),
            of + "ffn_norm.weight": ((DIM,), None),
        }
    whole = {name: torch.randn(shape).to(BF16) for name, (shape, _) in shapes.items()}
    return whole, {name: dimension for name, (_, dimension) in shapes.items()}


def sliced(tensor: torch.Tensor, dimension: int | None, ranks: int) -> list[torch.Tensor]:
    """What each rank has of a tensor."""
    if dimension is None:
        return [tensor.clone() for _ in range(ranks)]
    return [part.contiguous() for part in torch.chunk(tensor, ranks, dimension)]


def write_llama(
    root: Path, version: int, ranks: int = 2, params: dict[str, Any] | None = None
) -> dict[str, Array]:
    """The files of all ranks; wq, wk and wv of a layer share a storage, as in Meta's own."""
    whole, dimensions = llama(version)
    slices = {name: sliced(tensor, dimensions[name], ranks) for name, tensor in whole.items()}
    root.mkdir(parents=True)
    for rank in range(ranks):
        state = {name: parts[rank] for name, parts in slices.items()}
        for layer in range(LAYERS):
            names = [f"layers.{layer}.attention.w{kind}.weight" for kind in "qkv"]
            storage = torch.cat([state[name] for name in names])
            state |= dict(zip(names, torch.split(storage, [len(state[name]) for name in names]), strict=True))
        torch.save(state, root / f"consolidated.{rank:02d}.pth")
    told = {"dim": DIM, "n_layers": LAYERS, "n_heads": 8, "n_kv_heads": 4, "vocab_size": -1}
    (root / "params.json").write_text(json.dumps(told | (params or {})))
    return {name: numpy_of(tensor) for name, tensor in whole.items()}


def numpy_of(tensor: torch.Tensor) -> Array:
    """A tensor of torch's, bfloat16 too, in NumPy."""
    if tensor.dtype == BF16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


# --- the main way -----------------------------------------------------------------------------------------


@pytest.mark.jax
def test_two_ranks_of_a_llama_are_fetched_joined_resharded_and_loaded(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    rules = named_rules("llama")
    expected = write_llama(tmp_path / "from", 2)
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        result = fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4"))
    assert_holds(tmp_path / "s", expected)
    assert verify(tmp_path / "s").ok
    assert result.manifest.tensors and not (tmp_path / "s/.gdist").exists()
    reshard(tmp_path / "s", tmp_path / "r", ReshardOptions(mesh=parse_mesh("8x8"), rules=rules))
    assert_holds(tmp_path / "r", expected)
    tree = gdist.load(tmp_path / "r")
    flat = {
        ".".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert flat.keys() == expected.keys()
    for name, array in expected.items():
        assert np.asarray(flat[name]).tobytes() == array.tobytes(), name
    # What is in no tensor, the copies of other ranks too, is kept: the store leads back to the torrent.
    export(tmp_path / "s", tmp_path / "back", to="payload")
    assert tree_of(tmp_path / "back/from") == tree_of(tmp_path / "from")


def test_what_was_read_for_the_names_is_read_once(tmp_path: Path) -> None:
    """By a later run, and by the other hosts of a cluster, which may have let its pieces go."""
    write_llama(tmp_path / "from", 2)
    cache = tmp_path / "headers.json"
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        source = TorrentSource(seeded.magnet, TorrentOptions(dht=False, listen="127.0.0.1:0"))
        source.open(tmp_path / "payload")
        try:
            first = read_catalogue(source, None, cache=cache)
        finally:
            source.close()
    nothing: Any = SimpleNamespace(payload=first.payload)  # whatever else it is asked is an error
    assert read_catalogue(nothing, None, cache=cache).tensors == first.tensors


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["swarm", "collective"])
def test_hosts_of_a_cluster_join_what_one_of_them_read(exchange: str, tmp_path: Path) -> None:
    if exchange == "collective":
        pytest.importorskip("jax")
    expected = write_llama(tmp_path / "from", 2)
    with (
        seed(tmp_path / "from", piece_length=PIECE) as seeded,
        Agents(seeded, tmp_path, 2, "--exchange", exchange, mesh="1x2") as agents,
    ):
        agents.start_all()
        assert agents.wait_all() == [0, 0], agents.said()
        with gdist.open(agents.stores) as store:
            for name, array in expected.items():
                assert store[name].read().tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("version", [2, 3])
def test_the_embedding_tells_llama_2_from_3(version: int, ranks: int, tmp_path: Path) -> None:
    expected = write_llama(tmp_path / "from", version, ranks, {"vocab_size": VOCAB})
    found = survey_files(tmp_path / "from")
    assert found.profile == (None if ranks == 1 else f"llama-{version}")
    assert {t.spec.name: t.spec.shape for t in found.tensors} == {n: a.shape for n, a in expected.items()}
    if ranks > 1:
        asked = SurveyOptions(profile="llama-3" if version == 2 else "llama-2")
        with pytest.raises(CorruptError, match="do not join"):
            survey_files(tmp_path / "from", asked)


def test_a_joined_tensor_is_cast_on_the_way(tmp_path: Path) -> None:
    expected = write_llama(tmp_path / "from", 3)
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("1x4", dtype="float32"))
    assert_holds(tmp_path / "s", {name: array.astype(np.float32) for name, array in expected.items()})


# --- what does not fit ------------------------------------------------------------------------------------


def test_copies_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    write_llama(tmp_path / "from", 2)
    path = tmp_path / "from/consolidated.01.pth"
    state = torch.load(path)
    state["layers.1.ffn_norm.weight"][7] += 1
    torch.save(state, path)
    with seed(tmp_path / "from", piece_length=PIECE) as seeded, pytest.raises(CorruptError) as error:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert "2 copies of 'layers.1.ffn_norm.weight' are not equal" in error.value.message
    assert not (tmp_path / "s/gdist.json").exists()


def test_a_missing_rank_is_said(tmp_path: Path) -> None:
    write_llama(tmp_path / "from", 2, 4)
    (tmp_path / "from/consolidated.02.pth").unlink()
    with pytest.raises(GdistError, match="have ranks 0, 1, 3"):
        survey_files(tmp_path / "from", SurveyOptions(profile="llama-2"))
    (tmp_path / "from/consolidated.03.pth").unlink()  # of 0 and 1 alone only the shapes tell
    with pytest.raises(CorruptError, match="where dim is"):
        survey_files(tmp_path / "from", SurveyOptions(profile="llama-2"))


def test_params_that_contradict_are_said(tmp_path: Path) -> None:
    write_llama(tmp_path / "from", 2, params={"n_kv_heads": 8})
    with pytest.raises(
        CorruptError, match=r"'layers.0.attention.wk.weight' has shape \[32, 64\], where kv is 64"
    ):
        survey_files(tmp_path / "from", SurveyOptions(profile="llama-2"))


def test_slices_in_an_archive_are_joined_with_the_params_in_it(tmp_path: Path) -> None:
    expected = write_llama(tmp_path / "llama", 2)
    for name in ("right", "wrong"):
        if name == "wrong":
            (tmp_path / "llama/params.json").write_text(
                json.dumps({"dim": DIM, "n_heads": 8, "n_kv_heads": 8})
            )
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / "llama.tar", "w") as archive:
            archive.add(tmp_path / "llama", "llama")
    with seed(tmp_path / "right", piece_length=PIECE) as seeded:
        result = fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert_holds(tmp_path / "s", expected)
    assert result.manifest.source.profile == "llama-2"
    with pytest.raises(CorruptError, match="where kv is 64"):
        survey_files(tmp_path / "wrong", SurveyOptions(profile="llama-2"))


def test_two_models_in_one_payload_want_a_choice(tmp_path: Path) -> None:
    expected = write_llama(tmp_path / "from/7B", 2, 1)
    write_llama(tmp_path / "from/13B", 2, 2)
    with pytest.raises(UnsupportedError, match="one folder; there are 13B/, 7B/") as error:
        survey_files(tmp_path / "from", SurveyOptions(profile="llama-2"))
    assert "--ignore" in error.value.hint
    found = survey_files(tmp_path / "from", SurveyOptions(profile="llama-2", ignore=("13B/*",)))
    assert {t.spec.name for t in found.tensors} == set(expected)


def test_keys_that_repeat_without_a_profile_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    for name in "ab":
        torch.save({"w": torch.zeros(3)}, tmp_path / f"from/{name}.pt")
    with pytest.raises(CorruptError, match="more than once: 'w'") as error:
        survey_files(tmp_path / "from")
    assert "--profile" in error.value.hint


# --- the other profiles -----------------------------------------------------------------------------------


def test_files_of_other_keys_are_one_model(tmp_path: Path) -> None:
    whole, _ = llama(3)
    (tmp_path / "from").mkdir()
    for rank in range(3):
        part = {name: tensor for n, (name, tensor) in enumerate(whole.items()) if n % 3 == rank}
        torch.save(part, tmp_path / f"from/consolidated.{rank:02d}.pt")
    expected = {name: numpy_of(tensor) for name, tensor in whole.items()}
    for number, profile in enumerate((None, "disjoint")):
        with seed(tmp_path / "from", piece_length=PIECE) as seeded:
            options = fetch_options(profile=profile)
            fetch(format_magnet(seeded.magnet), tmp_path / f"s{number}", options)
        assert_holds(tmp_path / f"s{number}", expected)


def test_mixtrals_experts_become_tensors(tmp_path: Path) -> None:
    torch.manual_seed(5)
    experts, dim, ffn = 4, 16, 24
    state = {
        "tok_embeddings.weight": torch.randn(40, dim),
        "norm.weight": torch.randn(dim),
        "layers.0.attention.wq.weight": torch.randn(dim, dim),
        "layers.0.attention_norm.weight": torch.randn(dim),
        "layers.0.block_sparse_moe.gate.weight": torch.randn(experts, dim),
    }
    expected = {name: tensor.numpy() for name, tensor in state.items()}
    for kind in ("w1", "w2", "w3"):
        stacked = state[f"layers.0.block_sparse_moe.{kind}"] = torch.randn(experts * ffn, dim)
        for index, expert in enumerate(stacked.view(experts, ffn, dim)):
            turned = expert.t() if kind == "w2" else expert
            expected[f"layers.0.block_sparse_moe.experts.{index}.{kind}.weight"] = turned.contiguous().numpy()
    (tmp_path / "from").mkdir()
    torch.save(state, tmp_path / "from/consolidated.00.pth")
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        options = fetch_options("2x2", profile="mixtral-8x7b")
        fetch(format_magnet(seeded.magnet), tmp_path / "s", options)
    assert_holds(tmp_path / "s", expected)


def test_blooms_norms_are_averaged(tmp_path: Path) -> None:
    torch.manual_seed(6)
    ranks, expected = 4, {}
    (tmp_path / "from").mkdir()
    files: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for layer in (1, 3, 4):
        names: dict[str, int | str] = {"input_layernorm.weight": "mean", "input_layernorm.bias": "mean"}
        names |= {"self_attention.query_key_value.weight": 0, "self_attention.query_key_value.bias": 0}
        names |= {"self_attention.dense.weight": 1, "self_attention.dense.bias": "mean"}
        if layer == 1:
            names = {"word_embeddings.weight": 0, "word_embeddings.norm.weight": "mean"}
        for name, join in names.items():
            shape = (16,) if name.endswith("bias") or "norm" in name else (16, 8)
            parts = [torch.randn(shape).to(BF16) for _ in range(ranks)]
            for rank, part in enumerate(parts):
                files.setdefault((layer, rank), {})[name] = part
            joined = (
                torch.cat(parts, join) if isinstance(join, int) else torch.stack(parts).float().sum(0) / ranks
            )
            expected[f"layer_{layer:02d}.{name}"] = numpy_of(joined.to(BF16))
    for (layer, rank), state in files.items():
        torch.save(state, tmp_path / f"from/layer_{layer:02d}-model_{rank:02d}-model_states.pt")
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("1x2", profile="bloom"))
    assert_holds(tmp_path / "s", expected)


@pytest.mark.parametrize(
    ("profile", "above", "beside"),
    [("stable-diffusion-1", "state_dict", {"epoch": 3}), ("gemma", "model_state_dict", {})],
)
def test_a_models_state_loses_what_is_above_it(
    profile: str, above: str, beside: dict[str, Any], tmp_path: Path
) -> None:
    state = {"model.diffusion_model.out.weight": torch.randn(3, 4), "betas": torch.randn(5)}
    (tmp_path / "from").mkdir()
    torch.save({above: state, **beside}, tmp_path / "from/model.ckpt")
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(profile=profile))
    assert_holds(tmp_path / "s", {name: tensor.numpy() for name, tensor in state.items()})


def test_megatrons_layers_lose_the_module(tmp_path: Path) -> None:
    torch.manual_seed(8)
    expected: dict[str, Array] = {}
    ranks: list[dict[str, Any]] = [{}, {}]
    for name, dimension in (
        ("0.word_embeddings.weight", 0),
        ("1.attention.query_key_value.weight", 0),
        ("1.attention.dense.weight", 1),
        ("1.attention.dense.bias", None),
        ("1.input_layernorm.weight", None),
        ("1.mlp.dense_h_to_4h.bias", 0),
        ("1.mlp.dense_4h_to_h.weight", 1),
    ):
        whole = torch.randn(12, 8) if name.endswith("weight") and "norm" not in name else torch.randn(12)
        for state, part in zip(ranks, sliced(whole, dimension, 2), strict=True):
            state[name] = part
        expected[name] = whole.numpy()
    (tmp_path / "from").mkdir()
    for rank, state in enumerate(ranks):
        torch.save(
            {"module": state, "global_steps": 7}, tmp_path / f"from/mp_rank_{rank:02d}_model_states.pt"
        )
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(profile="deepspeed"))
    assert_holds(tmp_path / "s", expected)


def test_a_profile_of_ones_own_stacks(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "from").mkdir()
    parts = [rng.standard_normal((6, 5), np.float32) for _ in range(3)]
    for rank, part in enumerate(parts):
        torch.save({"w": torch.from_numpy(part).t().contiguous().t()}, tmp_path / f"from/part{rank}.pt")
    profile = tmp_path / "mine.toml"
    profile.write_text(
        """name = "mine"
files = 'part(?P<shard>\\d)\\.pt'
[[tensor]]
match = '(w)'
name = 'all.\\1'
join = "stacked"
"""
    )
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(profile=str(profile)))
    assert_holds(tmp_path / "s", {"all.w": np.stack(parts)})


def test_a_view_has_one_of_the_copies(tmp_path: Path) -> None:
    expected = write_llama(tmp_path / "from", 3)
    make_view(tmp_path / "from", tmp_path / "v")
    assert_holds(tmp_path / "v", expected)
    path = tmp_path / "from/consolidated.01.pth"
    state = torch.load(path)
    state["norm.weight"][7] += 1
    torch.save(state, path)
    with pytest.raises(CorruptError, match=r"2 copies of 'norm.weight' are not equal"):
        make_view(tmp_path / "from", tmp_path / "w")


def test_why_no_profile_joins_is_said_of_those_that_may_be_meant(tmp_path: Path) -> None:
    write_llama(tmp_path / "from", 2)
    path = tmp_path / "from/consolidated.01.pth"
    torch.save({**torch.load(path), "extra": torch.zeros(1)}, path)
    with pytest.raises(CorruptError) as error:
        survey_files(tmp_path / "from")
    assert "llama-2: keys that profile 'llama-2' does not know: extra" in error.value.message
    assert "bloom" not in error.value.message
