"""Names come in the order a model loads, whatever order they were given in."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.order import layer_of, loading_order, stage_of
from gdist.core.profiles import PROFILES

IN_ORDER = {
    "grok": (
        "params.language_model.in_out_embed.embeddings",
        "params.transformer.decoder_layer_0.moe.linear.w.weight",
        "params.transformer.decoder_layer_0.moe.linear.w.scales",
        "params.transformer.decoder_layer_0.moe.linear_1.w.weight",
        "params.transformer.decoder_layer_0.moe.linear_1.w.scales",
        "params.transformer.decoder_layer_0.rms_norm.scale",
        "params.transformer.decoder_layer_2.router.w",
        "params.transformer.decoder_layer_10.router.w",
        "params.language_model.rms_norm.scale",
    ),
    "llama on the hub": (
        "model.embed_tokens.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.9.mlp.up_proj.weight",
        "model.layers.10.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ),
    "llama from its makers": (
        "tok_embeddings.weight",
        "layers.0.attention.wq.weight",
        "layers.0.feed_forward.w1.weight",
        "layers.0.feed_forward.w2.weight",
        "layers.11.attention.wq.weight",
        "norm.weight",
        "output.weight",
    ),
    "gpt-2": (
        "wpe.weight",
        "wte.weight",
        "h.0.attn.c_attn.weight",
        "h.2.ln_1.bias",
        "h.11.ln_1.bias",
        "ln_f.bias",
    ),
    "nested groups": ("a/embed/table", "a/block2/w", "a/block10/w", "a/out/w"),
    "an embedding inside a layer": ("embed.w", "layers.0.pos_embed.w", "layers.1.mlp.w"),
    "experts inside a layer": ("x.layers.3.experts.2.w", "x.layers.3.experts.10.w", "x.layers.4.experts.0.w"),
    "files": ("tensor00000_000", "tensor00002_000.weight", "tensor00002_000.scales", "tensor00010_000"),
}


@pytest.mark.parametrize("case", IN_ORDER)
def test_known_models_come_in_loading_order(case: str) -> None:
    names = list(IN_ORDER[case])
    for seed in range(10):
        random.Random(seed).shuffle(names)
        assert loading_order(names) == IN_ORDER[case]


def test_the_layers_of_grok_come_by_number_not_by_text() -> None:
    names = [role.path for role in PROFILES["grok-1"].roles(64)]
    ordered = loading_order(names)
    layers = [
        int(name.split("decoder_layer_")[1].split(".")[0]) for name in ordered if "decoder_layer_" in name
    ]
    assert layers == sorted(layers) and len(layers) == 768
    assert ordered[0].endswith("embeddings") and ordered[-1].endswith("language_model.rms_norm.scale")


@given(st.lists(st.text(max_size=12)), st.randoms())
def test_any_names_come_back_once_each_in_one_order(names: list[str], chance: random.Random) -> None:
    ordered = loading_order(names)
    assert sorted(ordered) == sorted(names)
    chance.shuffle(names)
    assert loading_order(names) == ordered


@given(st.lists(st.text("ab.01", min_size=1, max_size=8), unique=True))
def test_halves_of_a_pair_stand_side_by_side(pairs: list[str]) -> None:
    ordered = loading_order([f"{name}.{half}" for name in pairs for half in ("scales", "weight")])
    for weight, scales in zip(ordered[::2], ordered[1::2], strict=True):
        assert weight.removesuffix(".weight") == scales.removesuffix(".scales")


@pytest.mark.parametrize(
    ("name", "stage", "pattern", "layer"),
    [
        ("params.language_model.in_out_embed.embeddings", "embedding", None, None),
        (
            "params.transformer.decoder_layer_10.router.w",
            "layer 10",
            "params.transformer.decoder_layer_*.router.w",
            10,
        ),
        ("model.layers.2.experts.7.w1", "layer 2", "model.layers.*.experts.7.w1", 2),
        ("model.norm.weight", "rest", None, None),
        ("lm_head.weight", "head", None, None),
        ("w1.weight", "layer 1", "w*.weight", 1),
    ],
)
def test_what_a_tensor_becomes_ready_with(
    name: str, stage: str, pattern: str | None, layer: int | None
) -> None:
    assert stage_of(name) == stage
    assert layer_of(name) == (pattern or name, layer)


@given(st.lists(st.from_regex(r"(layers\.[0-3]\.)?(embed|norm|w|lm_head)", fullmatch=True), max_size=12))
def test_stages_are_runs_of_the_loading_order(names: list[str]) -> None:
    stages = [stage for stage, _ in itertools.groupby(loading_order(names), stage_of)]
    assert len(stages) == len(set(stages))
