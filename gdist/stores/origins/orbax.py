"""Resharding from an Orbax checkpoint: OCDBT, or one directory an array, zarr v2 or v3.

Orbax itself is not needed. The names of the arrays come from its `_METADATA`, and are checked as any tensor's
name is; what lies under them is read as any Zarr array is.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorstore as ts

from gdist.core.box import Box
from gdist.core.orbax import METADATA, OrbaxTree, parse_orbax_tree
from gdist.core.order import loading_order
from gdist.core.profile import check_names, listed
from gdist.core.reshard import Grain
from gdist.core.store_manifest import Step, StoreSource
from gdist.core.zarr_arrays import (
    ARRAY_V2,
    MAX_DOCUMENT_BYTES,
    NODE_V3,
    ZarrArray,
    check_documents,
    parse_hierarchy,
)
from gdist.errors import CorruptError, RequestError, UnsupportedError
from gdist.kvstore import kvstore_spec, local_path, shared_context
from gdist.stores import Address, files_of
from gdist.stores.origins import Contents, Held
from gdist.stores.origins.arrays import OpenArrays, sample_of
from gdist.stores.origins.tree import files_below
from gdist.stores.remote import ahead, translate

OCDBT = "manifest.ocdbt"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a directory that Orbax is still writing


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
        _marks(address)  # no link leads elsewhere
        base = kvstore_spec(address)
        kvstore = base if self._ocdbt is None else {"driver": "ocdbt", "base": base}
        arrays = _arrays(names, kvstore, NODE_V3 if tree.zarr3 else ARRAY_V2, self.where)
        self._arrays = OpenArrays(self.where, arrays, kvstore, zeros=not tree.dense)
        self._tensors = self._arrays.tensors
        # What a commit wrote has a random name in OCDBT's manifest: that tells it from all others.
        looked = "" if self._ocdbt is not None else sample_of(self.where, arrays.values(), kvstore)
        self._identity = self._identify(looked)
        name = self.where.rstrip("/").rpartition("/")[2]
        nbytes = sum(tensor.spec.nbytes for tensor in self._tensors)
        self.contents = Contents(
            tensors=self._tensors,
            source=StoreSource("", "", name, 0, nbytes),
            steps=(Step("orbax", name, "", self._identity),),
            state=self.still(),
            checked=False,
            ignored=ignored,
        )

    def _identify(self, looked: str) -> str:
        tensors = [[t.spec.name, t.spec.dtype.name, t.spec.shape] for t in self._tensors]
        content = [self._metadata.decode("latin-1"), (self._ocdbt or b"").hex(), tensors, looked]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def still(self) -> str:
        """Of a directory the lengths and times of change of all files, of a bucket what identifies it."""
        marks = _marks(self._address)
        if marks is None:
            return self._identity
        return hashlib.sha256(json.dumps([self._identity, marks]).encode()).hexdigest()

    def grain(self, tensor: int) -> Grain:
        """Chunks as stored: nothing less can be decoded."""
        return self._arrays.grain(tensor)

    def check(self, wanted: Iterable[tuple[int, Box]]) -> None:
        """Nothing: what is missing shows when it is read."""

    def read(self, tensor: int, boxes: Sequence[Box]) -> Held:
        """Decodes chunks, a few on the way at once."""
        return self._arrays.read(tensor, boxes)

    def release(self, tensor: int) -> None:
        """Nothing is kept."""

    def asset(self, path: str, directory: str = "assets") -> bytes:
        """There are none."""
        raise KeyError(path)

    def close(self) -> None:
        """Forgets the handles."""
        self._arrays.close()


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


def _arrays(
    names: Sequence[str], kvstore: Mapping[str, object], document: str, where: str
) -> dict[str, ZarrArray]:
    """What the document of each array says, a few being read at once."""
    documents: dict[str, bytes] = {}
    paths, path, nbytes = [f"{name}/{document}" for name in names], "", 0
    try:
        store: Any = ts.KvStore.open(dict(kvstore), context=shared_context()).result()  # Any: it has no types
        for path, future in ahead((path, store.read(path)) for path in paths):
            found = future.result()
            documents[path] = bytes(found.value) if found.state == "value" else b""
            nbytes += len(documents[path])
            if nbytes > MAX_DOCUMENT_BYTES:  # one value may be that of many keys: what follows is not held
                break
    except Exception as error:  # ValueError and its kin
        raise translate(error, f"reading {where}/{path}") from error
    check_documents({path: len(data) for path, data in documents.items()})
    missing = [path for path, data in documents.items() if not data]
    if missing:
        raise CorruptError(f"{where} has no {listed(missing)}", hint="fetch it again", file=missing[0])
    arrays = {array.path: array for array in parse_hierarchy(documents)}
    groups = [name for name in names if name not in arrays]
    if groups:
        raise CorruptError(f"{listed(map(repr, groups))} of {where} are no arrays, as its {METADATA} says")
    return {name: arrays[name] for name in names}


def _marks(address: Address) -> list[list[object]] | None:
    """What the files of a directory are; None of a bucket."""
    root = local_path(address)
    return None if root is None else [[p, *mark] for p, mark in sorted(files_below(root).items())]
