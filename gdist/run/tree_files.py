"""Writing a tree of arrays as safetensors files: one tensor in memory at a time, whatever the tree's size."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gdist.core.dtypes import BY_NAME, DType
from gdist.core.order import loading_order
from gdist.core.profile import INDEX_SUFFIX, check_names, listed
from gdist.errors import InterruptedRun, RequestError, UnsupportedError
from gdist.run.output_files import OutputFiles, check_empty_directory
from gdist.run.safetensors_files import (
    FILE_BYTES,
    check_types,
    cut_files,
    file_name,
    header_of,
    index_of,
    nbytes_of,
)

WINDOW_BYTES = 32 * 2**20  # written at once
MAX_DEPTH = 1000  # of plain trees: deeper ones hold themselves

# A name, shape, NumPy's name of the element type, and what gives the array.
RawLeaf = tuple[str, tuple[int, ...], str, Callable[[], Any]]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of a tree; `read` gives all of it, in host memory, when it is its turn."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    read: Callable[[], np.ndarray[Any, Any]]


def plain_leaves(tree: object) -> list[RawLeaf] | None:
    """The leaves of dicts, lists and tuples of NumPy arrays, by path joined by `.`; None for other trees."""
    found: list[RawLeaf] = []
    waiting: list[tuple[tuple[str, ...], object]] = [((), tree)]
    while waiting:
        path, value = waiting.pop()
        if len(path) > MAX_DEPTH:
            raise RequestError(f"the tree is deeper than {MAX_DEPTH}: does it hold itself?")
        if isinstance(value, np.ndarray | np.generic):
            found.append((".".join(path), value.shape, value.dtype.name, _reader(value)))
        elif type(value) is dict:
            waiting += [((*path, str(key)), child) for key, child in value.items()]
        elif type(value) in (list, tuple):
            assert isinstance(value, list | tuple)
            waiting += [((*path, str(number)), child) for number, child in enumerate(value)]
        else:
            return None
    return found


def _reader(value: np.ndarray[Any, Any] | np.generic) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: np.asarray(value)


def leaves_of(raw: Sequence[RawLeaf]) -> list[Leaf]:
    """The leaves as they are written, in loading order.

    Raises:
        RequestError: there are none, one without a name, or two of one name.
        UnsupportedError: naming those with names that stores do not allow, or types gdist does not store.
    """
    if not raw:
        raise RequestError("the tree holds no arrays", hint="give a tree of arrays, or a path")
    if any(not name for name, *_ in raw):
        raise RequestError(
            "an array of the tree has no name", hint="give a dict of arrays, or the path of files"
        )
    twice = [name for name, count in Counter(name for name, *_ in raw).items() if count > 1]
    if twice:
        raise RequestError(f"paths of the tree, joined by '.', are there twice: {listed(twice)}")
    unknown = [f"{name!r} ({dtype})" for name, _, dtype, _ in raw if dtype not in BY_NAME]
    if unknown:
        raise UnsupportedError(f"gdist does not store the types of {listed(unknown)}", tensors=tuple(unknown))
    check_names((name for name, *_ in raw), hint="give these other names in the tree")
    leaves = {name: Leaf(name, shape, BY_NAME[dtype], read) for name, shape, dtype, read in raw}
    return [leaves[name] for name in loading_order(leaves)]


def write_tree(
    leaves: Sequence[Leaf],
    target: Path,
    *,
    file_bytes: int = FILE_BYTES,
    metadata: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> tuple[str, ...]:
    """Writes leaves as safetensors files below the directory `target`; the names of the files.

    `file_bytes` bounds a file, but for one tensor. Several files come with their index.

    Raises:
        RequestError: `target` is not empty.
        UnsupportedError: for types that safetensors has no name for.
        SpaceError: the disk cannot hold it.
    """
    check_empty_directory(target)
    check_types(leaves, "cast them first")

    def check_stop() -> None:
        if stop is not None and stop.is_set():
            raise InterruptedRun(
                "the run was asked to stop", hint="nothing was kept; run the same command again"
            )

    with OutputFiles(target, lambda event: None, check_stop, "publish") as out:
        total = sum(map(nbytes_of, leaves))
        out.expect(total)
        files = cut_files(leaves, file_bytes)
        names = [file_name(number, len(files)) for number in range(len(files))]
        for name, chosen in zip(names, files, strict=True):
            out.begin(name)
            out.write(header_of(chosen, metadata or {"format": "flax"}, align=64))
            for leaf in chosen:
                for window in _windows(leaf):
                    out.write(window)
            out.end()
        if len(files) > 1:
            where = {leaf.name: name for name, chosen in zip(names, files, strict=True) for leaf in chosen}
            out.begin("model" + INDEX_SUFFIX)
            out.write(index_of(where, total))
            out.end()
    return tuple(out.files)


def _windows(leaf: Leaf) -> Iterator[memoryview]:
    """The bytes of an array in C order and little-endian, some at a time."""
    array = leaf.read()
    if (array.shape, array.dtype.name) != (leaf.shape, leaf.dtype.name):
        raise RequestError(f"{leaf.name!r} is {array.dtype.name} {list(array.shape)} now, and was another")
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and not np.little_endian):
        array = array.astype(array.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    for start in range(0, len(flat), WINDOW_BYTES):
        yield flat[start : start + WINDOW_BYTES]
