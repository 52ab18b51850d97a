"""Blocks of every type have the values that the `gguf` package gives them, wherever a row is cut."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.gguf_blocks import BLOCKS, as_blocks, stored_type
from gdist.core.tensor import Part, StoredTensor, TensorSpec, dtype_named
from gdist.errors import RequestError, UnsupportedError
from gdist.sinks import gguf_values

UINT8 = BY_NAME["uint8"]


def unknown(number: int) -> bool:
    block = BLOCKS[number]
    try:
        gguf.dequantize(np.zeros((1, block.nbytes), np.uint8), gguf.GGMLQuantizationType(number))
    except (NotImplementedError, ValueError):
        return True
    return False


@pytest.mark.parametrize("number", BLOCKS)
def test_values_are_the_package_s_or_refused(number: int) -> None:
    block = BLOCKS[number]
    if unknown(number):
        with pytest.raises(RequestError, match=f"does not dequantise {block.encoding}"):
            gguf_values.check([block.encoding])
        return
    gguf_values.check([block.encoding])
    stored = np.random.default_rng(number).integers(0, 256, (3, 2, 4 * block.nbytes), np.uint8)
    blocks = stored.view(np.dtype((np.void, block.nbytes)))[:, 1:, 1:3]
    with np.errstate(all="ignore"):
        right = gguf.dequantize(
            np.ascontiguousarray(stored[:, 1:, block.nbytes : 3 * block.nbytes]),
            gguf.GGMLQuantizationType(number),
        )
    found = gguf_values.values(blocks, block.encoding)
    assert found.shape == (3, 1, 2 * block.elements) and found.tobytes() == right.tobytes()


@given(st.sampled_from(list(BLOCKS.values())), st.integers(0, 3), st.integers(1, 3), st.integers(1, 5))
def test_a_tensor_of_bytes_is_one_of_blocks(block: object, before: int, rows: int, columns: int) -> None:
    assert isinstance(block, type(BLOCKS[2]))
    shape = (2, rows, columns * block.nbytes)
    half = rows * columns * block.nbytes
    parts = tuple(
        Part(Extent(before + n * half, half), Box((n, 0, 0), (n + 1, *shape[1:]))) for n in range(2)
    )
    factor = as_blocks(StoredTensor(TensorSpec("w", shape, UINT8, block.encoding), parts))
    seen = factor.tensor
    assert (seen.spec.shape, seen.spec.nbytes) == ((2, rows, columns), 2 * half)
    assert [part.extent for part in seen.parts] == [part.extent for part in parts]
    assert factor.served_by(Box.whole(seen.spec.shape)).shape == (2, rows, columns * block.elements)
    assert stored_type(seen.spec.dtype.name) == seen.spec.dtype


def test_what_is_cut_inside_a_block_is_refused() -> None:
    spec = TensorSpec("w", (36,), UINT8, "gguf.q4_0")
    parts = (Part(Extent(0, 9), Box((0,), (9,))), Part(Extent(9, 27), Box((9,), (36,))))
    with pytest.raises(RequestError, match="no whole blocks of q4_0"):
        as_blocks(StoredTensor(spec, parts))
    with pytest.raises(UnsupportedError):
        dtype_named("gguf.q4_0")  # no store has elements of it
