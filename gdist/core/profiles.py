"""Known releases whose files do not say what they hold, as data: a new one is a new entry, no code.

A profile names the file of every index, and gives the partition rules of the model's own authors.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from gdist.core.rules import Rules, parse_rules


@dataclass(frozen=True, slots=True)
class Role:
    """What one index stands for: `path`, where `{layer}` stands for the layer's number, and dimensions."""

    path: str
    ndim: int


@dataclass(frozen=True, slots=True)
class Profile:
    """A release that stores one leaf of its tree per file, numbered in the order JAX flattens the tree.

    `file_pattern` matches the last part of a file's path; its groups are the index and the process that
    wrote it. Indices start with `head`; then every layer has those of `layer`, in the order of the layers'
    numbers *as text* (0, 1, 10, 11, ..., 2, 20, ...), because JAX sorts the keys of a dict.
    """

    name: str
    file_pattern: str
    head: tuple[Role, ...]
    layer: tuple[Role, ...]
    rules: Rules

    def layers(self, files: int) -> int | None:
        """How many layers that many files make, at least one, or None."""
        layers, rest = divmod(files - len(self.head), len(self.layer))
        return layers if layers >= 1 and not rest else None

    def roles(self, layers: int) -> tuple[Role, ...]:
        """The role of each index of a release with that many layers, with its layer number filled in."""
        roles = list(self.head)
        for number in sorted(map(str, range(layers))):
            roles += [Role(role.path.format(layer=number), role.ndim) for role in self.layer]
        return tuple(roles)


_LAYER = "params.transformer.decoder_layer_{layer}."
_GROK_1 = Profile(
    name="grok-1",
    file_pattern=r"tensor(\d{5})_(\d{3})",
    head=(
        Role("params.language_model.in_out_embed.embeddings", 2),
        Role("params.language_model.rms_norm.scale", 1),
    ),
    layer=(
        Role(_LAYER + "moe.linear.w", 3),
        Role(_LAYER + "moe.linear_1.w", 3),
        Role(_LAYER + "moe.linear_v.w", 3),
        Role(_LAYER + "multi_head_attention.key.w", 2),
        Role(_LAYER + "multi_head_attention.linear.w", 2),
        Role(_LAYER + "multi_head_attention.query.w", 2),
        Role(_LAYER + "multi_head_attention.value.w", 2),
        Role(_LAYER + "rms_norm.scale", 1),
        Role(_LAYER + "rms_norm_1.scale", 1),
        Role(_LAYER + "rms_norm_2.scale", 1),
        Role(_LAYER + "rms_norm_3.scale", 1),
        Role(_LAYER + "router.w", 2),
    ),
    # the model code's own TRANSFORMER_PARTITION_RULES and LM_PARTITION_RULES, on dotted names
    rules=parse_rules(
        {
            "axes": ["data", "model"],
            "rules": [
                [r"(^|\.)multi_head_attention\.(query|key|value)\.w$", ["data", "model"]],
                [r"(^|\.)multi_head_attention\.linear\.w$", ["model", "data"]],
                [r"(^|\.)moe\.linear(_v)?\.w$", [None, "data", "model"]],
                [r"(^|\.)moe\.linear_1\.w$", [None, "model", "data"]],
                [r"(^|\.)router\.w$", ["data"]],
                [r"(^|\.)rms_norm(_\d+)?\.scale$", [None]],
                [r"(^|\.)in_out_embed\.embeddings$", [None, ["data", "model"]]],
            ],
        }
    ),
)

PROFILES = MappingProxyType({profile.name: profile for profile in (_GROK_1,)})
