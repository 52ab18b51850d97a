"""The order in which a model loads: embedding, layer 0, 1, 2, ..., then the final norm, the head last.

Downloads and plans follow it, so that the first layers can serve while the last ones arrive. It is read
from the names alone: the layer is the first number that ends a part of a name.

    params.language_model.in_out_embed.embeddings        embedding
    model.layers.2.mlp.up_proj.weight                    layer 2
    params.transformer.decoder_layer_10.router.w         layer 10, after 2
    model.norm.weight                                    what is left
    lm_head.weight                                       head
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(\d+)(?=[._/-]|$)")
_EMBEDDING = re.compile(r"(^|[._/])(\w*emb(ed\w*)?|wte|wpe)([._/]|$)", re.IGNORECASE)
_HEAD = re.compile(r"(^|[._/])(\w*head|output|logits|unemb\w*)([._/]|$)", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")
_STAGES, _LAYERS = ("embedding", "layer", "rest", "head"), 1
_HALVES = {".weight": 0, ".scales": 1}  # of a quantised pair

_Key = tuple[int, int, tuple[tuple[int, int, str], ...], int]


def loading_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order a model loads; natural order of numbers inside a layer, pairs side by side."""
    return tuple(sorted(names, key=_key))


def stage_of(name: str) -> str:
    """What a tensor becomes ready with: `embedding`, `layer 3`, `rest` (final norms) or `head`."""
    group, number = _stage(name)
    return f"layer {number}" if group == _LAYERS else _STAGES[group]


def layer_of(name: str) -> tuple[str, int | None]:
    """A name without its layer's number, `*` in its place, and the number; None where it has none.

    So the same tensor of all layers is one name: `layers.*.w` for `layers.3.w`.
    """
    found = _LAYER.search(name)
    return (f"{name[: found.start()]}*{name[found.end() :]}", int(found[1])) if found else (name, None)


def _stage(name: str) -> tuple[int, int]:
    layer = _LAYER.search(name)
    if layer:
        return _LAYERS, int(layer[1])
    return 3 if _HEAD.search(name) else 0 if _EMBEDDING.search(name) else 2, 0


def _key(name: str) -> _Key:
    suffix = name[-7:]
    half = _HALVES.get(suffix, 2)
    base = name if half == 2 else name[:-7]
    group, number = _stage(name)
    # digits compare as numbers and come before letters; the text itself settles `01` against `1`
    natural = tuple((0, int(t), t) if t.isdecimal() else (1, 0, t) for t in _DIGITS.split(base) if t)
    return group, number, natural, half
