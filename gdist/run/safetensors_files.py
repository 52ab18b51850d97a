"""What safetensors files are made of, beside the bytes of their tensors: headers, names, the index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Protocol, TypeVar

from gdist.core.dtypes import DType
from gdist.core.units import parse_some_bytes
from gdist.errors import UnsupportedError

FILE_BYTES = 5 * 10**9  # of a safetensors file: what Hugging Face's own tools choose
MAX_HEADER_BYTES = 100 * 10**6  # what the safetensors library reads
FORMAT = MappingProxyType({"format": "pt"})  # some readers refuse a file that does not say so


class Described(Protocol):
    """A tensor to be written: its name, shape and element type."""

    @property
    def name(self) -> str:
        """Its key in the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""

    @property
    def dtype(self) -> DType:
        """Its element type."""


D = TypeVar("D", bound=Described)


def check_types(tensors: Sequence[Described], hint: str) -> None:
    """That safetensors has names for all types.

    Raises:
        UnsupportedError: naming those that it has not.
    """
    unknown = [t for t in tensors if t.dtype.safetensors is None]
    if unknown:
        named = ", ".join(f"{t.name!r} ({t.dtype.name})" for t in unknown[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise UnsupportedError(
            f"safetensors has no name for the type of {named}{more}",
            hint=hint,
        )


def parse_file_bytes(value: int | str) -> int:
    """Most bytes of a file.

    Raises:
        RequestError: it is no size, or nothing fits.
    """
    return parse_some_bytes(value, "file size", "5GB")


def cut_files(tensors: Sequence[D], file_bytes: int) -> list[list[D]]:
    """Tensors for each file, in loading order; a file has at least one."""
    files: list[list[D]] = [[]]
    held = 0
    for tensor in tensors:
        nbytes = nbytes_of(tensor)
        if files[-1] and held + nbytes > file_bytes:
            files.append([])
            held = 0
        files[-1].append(tensor)
        held += nbytes
    return files


def nbytes_of(tensor: Described) -> int:
    """Bytes of a tensor."""
    return prod(tensor.shape) * tensor.dtype.itemsize


def file_name(number: int, count: int) -> str:
    """What the file of that number, of so many, is called."""
    if count == 1:
        return "model.safetensors"
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


def header_of(tensors: Sequence[Described], metadata: Mapping[str, str] = FORMAT, align: int = 8) -> bytes:
    """The length and the JSON of a safetensors file, padded so that data starts at a multiple of `align`.

    Raises:
        UnsupportedError: it is longer than readers take.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        end = position + nbytes_of(tensor)
        entries[tensor.name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    if len(text) > MAX_HEADER_BYTES:
        raise UnsupportedError(
            f"a header of {len(text)} bytes is more than readers of safetensors take",
            hint="give a smaller --file-size",
        )
    return len(text).to_bytes(8, "little") + text


def index_of(files: Mapping[str, str], nbytes: int) -> bytes:
    """The index of several files: which of them holds which tensor."""
    index = {"metadata": {"total_size": nbytes}, "weight_map": dict(sorted(files.items()))}
    return json.dumps(index, indent=2).encode() + b"\n"
