"""A copy of a checkpoint whose tensors start at multiples of 64 bytes, as far as safetensors lets them.

    before   |length|header....|tensor a|tensor b ...       data starts at any multiple of 8
    after    |length|header........     |tensor b|tensor a  data starts at a multiple of 64

safetensors leaves no holes between tensors, so what can be done is to lengthen the header by blanks, and to
put first the tensors whose own length is a multiple of 64: all of those are aligned, and one more. In
checkpoints that is every large tensor. Aligned tensors can be mapped as arrays of any library without a copy.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gdist.core.dtypes import DType
from gdist.core.extent import Extent
from gdist.core.tensor import FoundArray
from gdist.errors import RequestError, UnsupportedError
from gdist.formats import safetensors
from gdist.run.describe import Digester
from gdist.run.output_files import OutputFiles, check_empty_directory
from gdist.run.safetensors_files import header_of
from gdist.run.survey import scan_file

ALIGNMENT = 64  # bytes: a cache line, and what JAX and NumPy ask of memory they take without a copy


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An array of a safetensors file, to be written again."""

    array: FoundArray

    @property
    def name(self) -> str:
        return self.array.key

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> DType:
        return self.array.dtype


def write_aligned(source: Path, target: Path, stop: threading.Event | None = None) -> tuple[Path, int, int]:
    """Copies a file or a directory to the directory `target`; what is there now, aligned tensors, and all.

    Files that are not safetensors are copied as they are.

    Raises:
        RequestError: `target` is not empty or within `source`, or there is no safetensors file.
        UnsupportedError: a header would be longer than readers take.
        SpaceError: the disk cannot hold it.
    """
    if target.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(target.resolve()):
        raise RequestError(
            f"the aligned copy {target} and its source {source} are one within the other",
            hint="give another --output or --name",
        )
    check_empty_directory(target)
    files = [(source.name, source)] if source.is_file() else sorted(_below(source))
    kinds = [scan_file(path) for _, path in files]
    if not any(kind.format == safetensors.NAME for kind in kinds):
        raise RequestError(f"{source} holds no safetensors file to align", hint="leave out --align-tensors")
    digester, aligned, tensors = Digester(stop=stop), 0, 0
    with OutputFiles(target, lambda event: None, lambda: None, "aligned copy") as out:
        out.expect(sum(path.stat().st_size for _, path in files))
        for (name, path), kind in zip(files, kinds, strict=True):
            out.begin(name)
            if kind.format == safetensors.NAME:
                aligned += _copy_aligned(path, kind.arrays, out, digester)
                tensors += len(kind.arrays)
            else:
                digester.feed(path, [(0, path.stat().st_size)], out.write)
            out.end()
    return target, aligned, tensors


def _below(source: Path) -> Iterator[tuple[str, Path]]:
    for path in source.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UnsupportedError(
                f"{path} is a symbolic link or a special file", hint="put a plain file there"
            )
        if path.is_file():
            yield path.relative_to(source).as_posix(), path


def _copy_aligned(path: Path, arrays: tuple[FoundArray, ...], out: OutputFiles, digester: Digester) -> int:
    """Writes one file again; how many of its tensors are aligned."""
    ordered = sorted(arrays, key=lambda array: array.extent.length % ALIGNMENT != 0)
    # among those that are not multiples, wide elements first: each stays at a multiple of its own size
    first = sum(array.extent.length % ALIGNMENT == 0 for array in ordered)
    ordered[first:] = sorted(ordered[first:], key=lambda array: -array.dtype.itemsize)
    header = header_of([_Tensor(array) for array in ordered], _metadata(path), ALIGNMENT)
    out.write(header)
    position, aligned = len(header), 0
    for array in ordered:
        aligned += position % ALIGNMENT == 0
        digester.feed(path, [(array.extent.start, array.extent.length)], out.write)
        position += array.extent.length
    return aligned


def _metadata(path: Path) -> dict[str, str]:
    """The strings that a safetensors file carries beside its tensors; its header has been read before."""
    with path.open("rb") as file:
        length = Extent(8, int.from_bytes(file.read(8), "little"))
        found = json.loads(file.read(length.length)).get("__metadata__", {})
    return {str(key): str(value) for key, value in found.items()}
