"""The values of GGUF's blocks, by the `gguf` package; loaded where it is needed, for it is optional."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdist.core.gguf_blocks import BLOCKS, BY_ENCODING
from gdist.errors import RequestError

try:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize
except ImportError as error:
    raise RequestError(
        "blocks of GGUF are dequantised by the package gguf, which is not installed",
        hint="pip install 'gdist[gguf]', or leave --dtype out: blocks are kept as they are",
    ) from error

_NUMBERS = {block.encoding: number for number, block in BLOCKS.items()}


def check(encodings: Iterable[str]) -> None:
    """That the package dequantises all of these; also fills its tables, before threads ask for them.

    Raises:
        RequestError: naming those that it does not.
    """
    unknown = []
    for encoding in sorted(encodings):
        try:
            values(np.zeros((1, 1), np.dtype((np.void, BY_ENCODING[encoding].nbytes))), encoding)
        except (NotImplementedError, ValueError):  # ValueError: a type that the package does not know yet
            unknown.append(encoding)
    if unknown:
        raise RequestError(
            f"the installed gguf does not dequantise {', '.join(unknown)}",
            hint="leave --dtype out, or these tensors with --select",
        )


def values(blocks: NDArray[Any], encoding: str) -> NDArray[np.float32]:
    """The elements of an array of blocks, the last dimension a row of them."""
    nbytes = BY_ENCODING[encoding].nbytes
    stored = np.ascontiguousarray(blocks).view(np.uint8).reshape(*blocks.shape[:-1], -1)
    assert stored.shape[-1] == blocks.shape[-1] * nbytes, (blocks.shape, encoding)
    with np.errstate(all="ignore"):  # scales may be anything
        found: NDArray[np.float32] = dequantize(stored, GGMLQuantizationType(_NUMBERS[encoding]))
    return found
