"""The block types of GGUF: how many elements of a row share how many bytes. The table of ggml's `ggml_type`.

A tensor of one is stored as `uint8`, its last dimension the bytes of a row; its `encoding` is `gguf.` and the
type's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PREFIX = "gguf."


@dataclass(frozen=True, slots=True)
class Block:
    """A block type: `elements` of a row are stored in `nbytes`."""

    name: str
    elements: int
    nbytes: int

    @property
    def encoding(self) -> str:
        """What a tensor of such blocks says it is."""
        return PREFIX + self.name


# By ggml's number of the type; the numbers between were given to types that ggml has removed.
BLOCKS: Mapping[int, Block] = MappingProxyType(
    {
        2: Block("q4_0", 32, 18),
        3: Block("q4_1", 32, 20),
        6: Block("q5_0", 32, 22),
        7: Block("q5_1", 32, 24),
        8: Block("q8_0", 32, 34),
        9: Block("q8_1", 32, 40),
        10: Block("q2_k", 256, 84),
        11: Block("q3_k", 256, 110),
        12: Block("q4_k", 256, 144),
        13: Block("q5_k", 256, 176),
        14: Block("q6_k", 256, 210),
        15: Block("q8_k", 256, 292),
        16: Block("iq2_xxs", 256, 66),
        17: Block("iq2_xs", 256, 74),
        18: Block("iq3_xxs", 256, 98),
        19: Block("iq1_s", 256, 50),
        20: Block("iq4_nl", 32, 18),
        21: Block("iq3_s", 256, 110),
        22: Block("iq2_s", 256, 82),
        23: Block("iq4_xs", 256, 136),
        29: Block("iq1_m", 256, 56),
        34: Block("tq1_0", 256, 54),
        35: Block("tq2_0", 256, 66),
        39: Block("mxfp4", 32, 17),
        40: Block("nvfp4", 64, 36),
        41: Block("q1_0", 128, 18),
    }
)
