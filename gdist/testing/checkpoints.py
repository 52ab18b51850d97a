"""Small real checkpoints on disk: Grok-1's layout at any size, and safetensors.

Deterministic in the seed, written tensor by tensor in bounded memory, from kilobytes to many gigabytes.
What a writer returns are the expected arrays, memory-mapped from the files it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from gdist.core.dtypes import BY_NAME, DType
from gdist.core.profiles import PROFILES
from gdist.testing.pickle_writer import ArraySpec, Layout, layout_array, layout_pair

CHUNK_BYTES = 1 << 24  # of random payload made at once

_INT8, _BFLOAT16, _FLOAT32 = BY_NAME["int8"], BY_NAME["bfloat16"], BY_NAME["float32"]
_Array = np.ndarray[Any, Any]  # element types vary, and those of ml_dtypes are no np.generic to mypy


@dataclass(frozen=True, slots=True)
class Grok1File:
    """One file of a Grok-1 checkpoint: `arrays` are (tensor name, spec), one or a quantised pair."""

    path: str
    arrays: tuple[tuple[str, ArraySpec], ...]
    layout: Layout


def grok1_files(
    *,
    layers: int = 4,
    emb: int = 64,
    ffn: int = 128,
    kv: int = 16,
    experts: int = 8,
    vocab: int = 256,
    groups: int = 8,
    numpy1: bool = False,
    directory: str = "ckpt-0",
) -> Iterator[Grok1File]:
    """The files of a Grok-1 checkpoint of these sizes, in order of their index, without their payloads.

    The real release is `layers=64, emb=6144, ffn=32768, kv=1024, vocab=131072, numpy1=True`: its files are
    then laid out to the byte. `groups` divides `emb` and `ffn`.
    """
    assert emb % groups == 0 and ffn % groups == 0, f"{groups} groups do not divide {emb} and {ffn}"
    shapes: dict[str, tuple[tuple[int, ...], int]] = {  # shape, and groups of scales or 0
        "in_out_embed.embeddings": ((vocab, emb), 0),
        "moe.linear.w": ((experts, emb, ffn), 1),
        "moe.linear_v.w": ((experts, emb, ffn), 1),
        "moe.linear_1.w": ((experts, ffn, emb), groups),
        "multi_head_attention.query.w": ((emb, emb), 1),
        "multi_head_attention.key.w": ((emb, kv), 1),
        "multi_head_attention.value.w": ((emb, kv), 1),
        "multi_head_attention.linear.w": ((emb, emb), groups),
        "router.w": ((emb, experts), 0),
    }
    for index, role in enumerate(PROFILES["grok-1"].roles(layers)):
        shape, count = next((s for end, s in shapes.items() if role.path.endswith("." + end)), ((emb,), 0))
        path = f"{directory}/tensor{index:05d}_000" if directory else f"tensor{index:05d}_000"
        if count:
            weight = ArraySpec(shape, _INT8)
            scales = ArraySpec((*shape[:-2], count, shape[-1]), _BFLOAT16)
            arrays = ((f"{role.path}.weight", weight), (f"{role.path}.scales", scales))
            yield Grok1File(path, arrays, layout_pair(weight, scales, numpy1=numpy1))
        else:
            array = ArraySpec(shape, _FLOAT32)
            yield Grok1File(path, ((role.path, array),), layout_array(array, numpy1=numpy1))


def write_grok1(
    directory: Path | str,
    *,
    layers: int = 4,
    emb: int = 64,
    ffn: int = 128,
    kv: int = 16,
    experts: int = 8,
    vocab: int = 256,
    groups: int = 8,
    seed: int = 0,
    numpy1: bool = False,
) -> dict[str, _Array]:
    """Writes a checkpoint in Grok-1's layout under `directory/ckpt-0/`; gives the arrays by tensor name.

    Bytes per layer are about `3 * experts * emb * ffn + 2 * emb * (emb + kv)`, and `4 * vocab * emb` for the
    embedding; a shape of the real release gives a file of the real size. `numpy1` spells names as NumPy 1
    did, which the real files have. The files are what `pickle.dump(..., protocol=4)` writes.
    """
    expected: dict[str, _Array] = {}
    files = grok1_files(
        layers=layers,
        emb=emb,
        ffn=ffn,
        kv=kv,
        experts=experts,
        vocab=vocab,
        groups=groups,
        numpy1=numpy1,
    )
    for index, file in enumerate(files):
        path = Path(directory, file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            for number, (_, array) in enumerate(file.arrays):
                out.write(file.layout.chunks[number])
                _write_random(out, array.dtype, array.nbytes, [seed, index, number])
            out.write(file.layout.chunks[-1])
        for start, (name, array) in zip(file.layout.starts, file.arrays, strict=True):
            expected[name] = _mapped(path, start, array.shape, array.dtype)
    return expected


def dequantised(arrays: Mapping[str, _Array], dtype: str) -> dict[str, _Array]:
    """What a checkpoint of Grok-1's layout is in one type: pairs multiplied in float32 and rounded once."""
    made: dict[str, _Array] = {}
    for name, array in arrays.items():
        if name.endswith(".weight"):
            scales = arrays[name.replace(".weight", ".scales")].astype(np.float32)
            repeated = np.repeat(scales, array.shape[-2] // scales.shape[-2], axis=-2)
            made[name.removesuffix(".weight")] = (array * repeated).astype(np.dtype(dtype))
        elif not name.endswith(".scales"):
            made[name] = array.astype(np.dtype(dtype))
    return made


def write_safetensors(
    directory: Path | str,
    tensors: Mapping[str, _Array] | None = None,
    *,
    shards: int = 2,
    index: bool = True,
    seed: int = 0,
    layers: int = 2,
    emb: int = 64,
    vocab: int = 256,
) -> dict[str, _Array]:
    """Writes tensors, or a seeded Llama-like tree, as `model-0000I-of-0000N.safetensors` with an index.

    One shard is `model.safetensors`; with `index`, `model.safetensors.index.json` says which file holds
    what. Shards get consecutive tensors, in even numbers.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tree = dict(llama_tree(layers=layers, emb=emb, vocab=vocab, seed=seed)) if tensors is None else tensors
    names = list(tree)
    weight_map: dict[str, str] = {}
    expected: dict[str, _Array] = {}
    for shard in range(shards):
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        weight_map |= dict.fromkeys(mine, file)
        expected |= _write_safetensors_file(directory / file, {name: tree[name] for name in mine})
    if index:
        total = sum(array.nbytes for array in tree.values())
        document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / "model.safetensors.index.json").write_text(json.dumps(document, indent=2) + "\n")
    return expected


def llama_tree(
    *, layers: int = 2, emb: int = 64, vocab: int = 256, seed: int = 0
) -> Iterator[tuple[str, _Array]]:
    """Names as Hugging Face gives a Llama, bfloat16, norms float32."""
    kv, ffn = max(emb // 4, 1), 4 * emb
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, emb)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + "input_layernorm.weight": (emb,), prefix + "mlp.down_proj.weight": (emb, ffn)}
        shapes |= {prefix + f"mlp.{name}_proj.weight": (ffn, emb) for name in ("gate", "up")}
        shapes[prefix + "post_attention_layernorm.weight"] = (emb,)
        for name, rows in (("k", kv), ("o", emb), ("q", emb), ("v", kv)):
            shapes[prefix + f"self_attn.{name}_proj.weight"] = (rows, emb)
    shapes |= {"model.norm.weight": (emb,), "lm_head.weight": (vocab, emb)}
    for number, (name, shape) in enumerate(shapes.items()):
        values = np.random.default_rng([seed, number]).random(shape, dtype=np.float32)
        yield name, values if len(shape) == 1 else values.astype(ml_dtypes.bfloat16)


def write_sparse(path: Path | str, layout: Layout) -> None:
    """Writes a file with its opcodes in place and holes for payloads: full length, hardly any disk."""
    with Path(path).open("wb") as out:
        ends = [*layout.starts, layout.nbytes]
        for chunk, end in zip(layout.chunks, ends, strict=True):
            out.seek(end - len(chunk))
            out.write(chunk)


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy type of an element type."""
    return np.dtype(getattr(ml_dtypes, dtype.name) if dtype.needs_ml_dtypes else dtype.name)


def _write_random(out: BinaryIO, dtype: DType, nbytes: int, seed: Sequence[int]) -> None:
    """Random bytes for integers, numbers in [0, 1) for floats, so that arrays compare equal to themselves."""
    generator = np.random.Generator(np.random.SFC64(seed))
    while nbytes:
        count = min(nbytes, CHUNK_BYTES)
        if dtype.name.startswith(("int", "uint")):
            out.write(generator.bytes(count))
        else:
            values = generator.random(count // dtype.itemsize, dtype=np.float32)
            out.write(values.astype(numpy_dtype(dtype), copy=False).tobytes())
        nbytes -= count


def _mapped(path: Path, offset: int, shape: tuple[int, ...], dtype: DType) -> _Array:
    if 0 in shape:
        return np.empty(shape, numpy_dtype(dtype))
    return np.memmap(path, numpy_dtype(dtype), "r", offset, shape)


def _write_safetensors_file(path: Path, tensors: Mapping[str, _Array]) -> dict[str, _Array]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": BY_NAME[array.dtype.name].safetensors,
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    expected: dict[str, _Array] = {}
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            out.write(np.ascontiguousarray(array).tobytes())
    position = 8 + len(text)
    for name, array in tensors.items():
        expected[name] = _mapped(path, position, array.shape, BY_NAME[array.dtype.name])
        position += array.nbytes
    return expected
