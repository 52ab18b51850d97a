"""Resharding from a plain Zarr hierarchy in a directory: groups of arrays, version 2 or 3, sharded or not.

A chunk that is not there is an error, though Zarr takes it for one of fill values.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from gdist.core.box import Box, tiles_of
from gdist.core.order import loading_order
from gdist.core.profile import listed
from gdist.core.reshard import Grain
from gdist.core.store_manifest import Step, StoreSource
from gdist.core.zarr_arrays import (
    ARRAY_V2,
    GROUP_V2,
    MISSING_HINT,
    NODE_V3,
    ZarrArray,
    check_documents,
    document_paths,
    loose_paths,
    missing_chunks,
    named,
    owner_of,
    parse_hierarchy,
)
from gdist.errors import CorruptError, UnsupportedError
from gdist.kvstore import kvstore_spec
from gdist.stores.local import unreadable
from gdist.stores.origins import Contents, Held
from gdist.stores.origins.arrays import OpenArrays, sample_of
from gdist.stores.origins.tree import Marks, files_below

INDEX_ENTRY_BYTES = 16  # of an inner chunk in its shard's index


def has_zarr(root: Path) -> bool:
    """True where a document of a Zarr array or group lies in a directory or below it."""
    known = {ARRAY_V2, GROUP_V2, NODE_V3}
    return any(not known.isdisjoint(names) for _, _, names in os.walk(root))


def loose_files(root: Path) -> tuple[str, ...]:
    """The files of a hierarchy that are in no array and no document of Zarr's own."""
    marks = files_below(root)
    return tuple(sorted(loose_paths(marks, _arrays(root, marks))))


class ZarrOrigin:
    """Reads the arrays of a hierarchy in the chunks they are stored in; there are no digests to check.

    `ignore` are patterns of names; `assets` files beside the arrays that are to be kept.
    """

    maps = False

    def __init__(self, root: Path, ignore: Sequence[str] = (), assets: Sequence[str] = ()):
        self.where, self._root = str(root), root
        self._files = files_below(root)
        name = root.absolute().name
        self._named = _chosen(named(_arrays(root, self._files), name), ignore, self.where)
        _check_sizes(self._named, self._files)
        kvstore = kvstore_spec(root)
        self._arrays = OpenArrays(self.where, self._named, kvstore)
        self._identity = self._identify(sample_of(self.where, self._named.values(), kvstore), assets)
        nbytes = sum(tensor.spec.nbytes for tensor in self._arrays.tensors)
        self.contents = Contents(
            tensors=self._arrays.tensors,
            source=StoreSource("", "", name, 0, nbytes),
            steps=(Step("zarr", name, "", self._identity),),
            state=self._state(self._files),
            checked=False,
            assets=tuple(assets),
            ignored=tuple(sorted(ignore)),
        )

    def _identify(self, looked: str, assets: Sequence[str]) -> str:
        rows: list[object] = [[name, array.metadata] for name, array in self._named.items()]
        rows += [looked, [[path, hashlib.sha256(self.asset(path)).hexdigest()] for path in assets]]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def _state(self, marks: Marks) -> str:
        rows = [self._identity, sorted([path, *mark] for path, mark in marks.items())]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def still(self) -> str:
        """Lengths and times of change of all files."""
        return self._state(files_below(self._root))

    def grain(self, tensor: int) -> Grain:
        """Chunks as stored, of a sharded array inner ones: nothing less can be decoded."""
        return self._arrays.grain(tensor)

    def check(self, wanted: Iterable[tuple[int, Box]]) -> None:
        """That the files of all chunks are there.

        Raises:
            CorruptError: naming those that are not.
        """
        missing: dict[str, None] = {}
        arrays = list(self._named.values())
        for number, box in wanted:
            array = arrays[number]
            indexes = (index for index, _ in tiles_of(box, array.chunk))
            missing.update(dict.fromkeys(missing_chunks(array, indexes, self._files)))
        if missing:
            raise CorruptError(
                f"{len(missing)} chunks of {self.where} are missing: {listed(missing)}",
                hint=MISSING_HINT,
                missing=tuple(missing),
            )

    def read(self, tensor: int, boxes: Sequence[Box]) -> Held:
        """Decodes chunks, a few on the way at once."""
        return self._arrays.read(tensor, boxes)

    def release(self, tensor: int) -> None:
        """Nothing is kept."""

    def asset(self, path: str, directory: str = "assets") -> bytes:
        """A file beside the arrays."""
        try:
            return (self._root / path).read_bytes()
        except OSError as error:
            raise unreadable(self._root / path, error) from error

    def close(self) -> None:
        """Forgets the handles."""
        self._arrays.close()


def _arrays(root: Path, marks: Marks) -> tuple[ZarrArray, ...]:
    documents = {}
    paths = document_paths(marks)
    check_documents({path: marks[path][0] for path in paths})
    for path in paths:
        try:
            documents[path] = (root / path).read_bytes()
        except OSError as error:
            raise unreadable(root / path, error) from error
    return parse_hierarchy(documents)


def _chosen(arrays: dict[str, ZarrArray], ignore: Sequence[str], where: str) -> dict[str, ZarrArray]:
    """Those that are not left out, in loading order."""
    kept = [name for name in arrays if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)]
    if not kept:
        raise UnsupportedError(f"{where} has no array")
    return {name: arrays[name] for name in loading_order(kept)}


def _check_sizes(arrays: dict[str, ZarrArray], files: Marks) -> None:
    """That no document claims more chunks than the files of its array can hold.

    Raises:
        CorruptError: naming those that do.
    """
    below: dict[str, tuple[int, int]] = {}
    owners = {array.path: name for name, array in arrays.items()}
    for path, (nbytes, _) in files.items():
        owner = owner_of(path, owners)
        if owner is not None:
            count, total = below.get(owner, (0, 0))
            below[owner] = (count + 1, total + nbytes)
    faults = []
    for name, array in arrays.items():
        count, total = below.get(array.path, (0, 0))
        chunks = array.chunks
        if chunks > count:
            first = next(missing_chunks(array, map(array.index_of, range(chunks)), files), "")
            faults.append(f"array {name!r} has {chunks} chunks and {count} files: {first!r} is missing")
        elif array.inner > 1 and chunks * array.inner * INDEX_ENTRY_BYTES > total:
            faults.append(f"array {name!r} has {chunks * array.inner} inner chunks in {total} bytes")
    if faults:
        raise CorruptError(listed(faults), hint=MISSING_HINT)
