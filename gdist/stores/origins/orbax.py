"""Resharding from an Orbax checkpoint: OCDBT, or one directory an array, zarr v2 or v3.

Orbax itself is not needed. The names of the arrays come from its `_METADATA`, are checked as any tensor's
name is, and TensorStore opens what lies under them; no spec and no path is taken from the checkpoint.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.orbax import METADATA, OrbaxTree, parse_orbax_tree
from gdist.core.order import loading_order
from gdist.core.profile import check_names, listed
from gdist.core.reshard import Grain
from gdist.core.store_manifest import Step, StoreSource
from gdist.core.tensor import Part, StoredTensor, TensorSpec, dtype_named
from gdist.errors import CorruptError, RequestError, UnsupportedError
from gdist.kvstore import kvstore_spec, local_path, shared_context
from gdist.stores import Address, files_of
from gdist.stores.buffers import Array
from gdist.stores.local import unreadable
from gdist.stores.origins import Chunks, Contents, Held, raw
from gdist.stores.remote import WINDOW, translate

OCDBT = "manifest.ocdbt"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a directory that Orbax is still writing

# Any below: TensorStore ships no types.


def is_orbax(address: Address) -> bool:
    """True where an Orbax checkpoint's metadata lies."""
    return files_of(address).read(METADATA) is not None


class OrbaxOrigin:
    """Reads the arrays of a checkpoint in the chunks they are stored in; there are no digests to check."""

    maps = False

    def __init__(self, address: Address, ignore: Sequence[str] = ()):
        files = files_of(address)
        self.where = files.where
        self._address = address
        self._metadata = files.read(METADATA) or b""
        self._ocdbt = files.read(OCDBT)
        if UNFINISHED in self.where.rpartition("/")[2]:
            raise RequestError(
                f"{self.where} is an Orbax checkpoint that is not finished",
                hint="give one that was committed",
            )
        tree = parse_orbax_tree(self._metadata, f"{self.where}/{METADATA}")
        names, ignored = _chosen(tree, ignore, self.where)
        self._arrays = _open_all(self._base(), names, tree)
        self._tensors = tuple(_stored(name, array) for name, array in self._arrays.items())
        name = self.where.rstrip("/").rpartition("/")[2]
        nbytes = sum(tensor.spec.nbytes for tensor in self._tensors)
        self.contents = Contents(
            tensors=self._tensors,
            source=StoreSource("", "", name, 0, nbytes),
            steps=(Step("orbax", name, "", self._identity()),),
            state=self.still(),
            checked=False,
            ignored=ignored,
        )

    def _base(self) -> dict[str, object]:
        base = kvstore_spec(self._address)
        return base if self._ocdbt is None else {"driver": "ocdbt", "base": base}

    def _identity(self) -> str:
        tensors = [[t.spec.name, t.spec.dtype.name, t.spec.shape] for t in self._tensors]
        content = [self._metadata.decode("latin-1"), (self._ocdbt or b"").hex(), tensors]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def still(self) -> str:
        """Of a directory the lengths and times of change of all files, of a bucket what identifies it."""
        root = local_path(self._address)
        if root is None:
            return self._identity()
        marks = []
        try:
            for above, _, names in os.walk(root):
                for name in names:
                    path = os.path.join(above, name)
                    status = os.stat(path)
                    marks.append([os.path.relpath(path, root), status.st_size, status.st_mtime_ns])
        except OSError as error:
            raise unreadable(root, error) from error
        return hashlib.sha256(json.dumps([self._identity(), sorted(marks)]).encode()).hexdigest()

    def grain(self, tensor: int) -> Grain:
        """Chunks as stored: nothing less can be decoded."""
        array = self._arrays[self._tensors[tensor].spec.name]
        return Grain(tuple(array.chunk_layout.read_chunk.shape or ()), whole=True)  # none of a scalar

    def check(self, wanted: Iterable[tuple[int, Box]]) -> None:
        """Nothing: what is missing shows when it is read."""

    def read(self, tensor: int, boxes: Sequence[Box]) -> Held:
        """Decodes chunks, a few on the way at once."""
        spec = self._tensors[tensor].spec
        array, chunk = self._arrays[spec.name], self.grain(tensor).chunk
        arrays: dict[tuple[int, ...], Array] = {}
        waiting: deque[tuple[Box, Any]] = deque()

        def arrive() -> None:
            box, future = waiting.popleft()
            try:
                data = np.ascontiguousarray(future.result()).reshape(box.shape)
            except Exception as error:  # ValueError and its kin
                raise translate(error, f"reading {spec.name!r} of {self.where} at {box.start}") from error
            index = tuple(a // c for a, c in zip(box.start, chunk, strict=True))
            arrays[index] = data.view(raw(spec.dtype.itemsize))

        for box in boxes:
            waiting.append((box, array[box.slices()].read()))
            if len(waiting) >= WINDOW:
                arrive()
        while waiting:
            arrive()
        return Chunks(chunk, arrays)

    def release(self, tensor: int) -> None:
        """Nothing is kept."""

    def asset(self, path: str, directory: str = "assets") -> bytes:
        """There are none."""
        raise KeyError(path)

    def close(self) -> None:
        """Forgets the handles."""
        self._arrays.clear()


def _chosen(tree: OrbaxTree, ignore: Sequence[str], where: str) -> tuple[list[str], tuple[str, ...]]:
    """Names of arrays in loading order, and the patterns by which some are left out."""

    def kept(name: str) -> bool:
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)

    strange = [f"{name} ({kind})" for name, kind in tree.strange if kept(name)]
    if strange:
        raise UnsupportedError(
            f"{len(strange)} leaves of {where} are no arrays: {listed(strange)}",
            hint="leave them out with --ignore 'NAME'",
        )
    names = [name for name in tree.names if kept(name)]
    if not names:
        raise UnsupportedError(f"{where} has no array")
    check_names(names)
    return list(loading_order(names)), tuple(sorted(ignore))


def _open_all(base: dict[str, object], names: Sequence[str], tree: OrbaxTree) -> dict[str, Any]:
    opening = {}
    for name in names:
        spec = {
            "driver": "zarr3" if tree.zarr3 else "zarr",
            "kvstore": {**base, "path": f"{base.get('path', '')}{name}/"},
            "fill_missing_data_reads": not tree.dense,
            "recheck_cached_data": "open",
        }
        opening[name] = ts.open(spec, open=True, read=True, context=shared_context())
    arrays, faults = {}, []
    for name, future in opening.items():
        try:
            arrays[name] = future.result()
        except Exception as error:  # ValueError and its kin
            faults.append(translate(error, f"opening array {name!r}"))
    if faults:
        kind = type(faults[0])
        raise kind(listed(fault.message for fault in faults), hint=faults[0].hint)
    return arrays


def _stored(name: str, array: Any) -> StoredTensor:
    if any(array.domain.inclusive_min):
        raise CorruptError(f"array {name!r} does not start at zero", tensor=name)
    spec = TensorSpec(name, tuple(array.shape), dtype_named(array.dtype.name))
    return StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(spec.shape)),))
