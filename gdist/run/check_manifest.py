"""Holding a source manifest against a payload on disk, or against a store that was made of it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from gdist.core.payload import Payload
from gdist.core.profile import listed
from gdist.core.source_files import SourceArray, SourceFile
from gdist.core.source_manifest import SourceManifest
from gdist.core.tensor import Order
from gdist.errors import CorruptError, GdistError, InterruptedRun, RequestError
from gdist.kvstore import local_path
from gdist.run.describe import Digester
from gdist.run.rebuild import whole_boxes
from gdist.run.resolve import signed_manifest
from gdist.run.survey import local_payload, scan_file
from gdist.stores import files_of
from gdist.stores import open as open_store
from gdist.stores.buffers import aligned_empty
from gdist.stores.store import Store

WINDOW_BYTES = 32 * 2**20  # of a store's tensor, read and hashed at once


@dataclass(frozen=True, slots=True)
class ManifestReport:
    """What a manifest was held against, and everything that differs.

    `arrays` are those whose place, shape and type were compared, `digests` those of arrays and files that
    were computed and compared. `open` says in words what could not be compared.
    """

    name: str
    where: str
    files: int
    arrays: int
    digests: int
    open: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True where nothing differs."""
        return not self.faults

    def error(self) -> CorruptError:
        """All that differs, as an error."""
        return CorruptError(
            f"{self.where} is not what the manifest of {self.name!r} says: {listed(self.faults)}",
            hint="it is of another release, or damaged: gdist verify checks a store against its own digests",
            faults=self.faults,
        )


@dataclass(slots=True)
class _Findings:
    files: int = 0
    arrays: int = 0
    digests: int = 0
    open: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check_manifest(
    manifest: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    verify_key: str | None = None,
    digests: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: threading.Event | None = None,
) -> ManifestReport:
    """Compares a manifest (a file, URL or known release) with a payload on disk, or with a store.

    Of a payload: that every listed file is there in its length, holds the listed arrays, and has the digests
    that are given. Of a store: its torrent, and names, shapes, types and digests of its tensors. `digests`
    False compares what needs no reading of tensors. All faults are collected.

    Raises:
        RequestError: the manifest is none, or there is nothing at `target`.
        CorruptError: the manifest is not what `verify_key` signed.
    """
    about = signed_manifest(os.fspath(manifest), verify_key)
    text, found = os.fspath(target), _Findings()
    path = local_path(text)
    if (path is None or path.is_dir()) and files_of(text).manifests():
        _check_store(about, text, found, digests, progress, stop)
    elif path is None or not path.exists():
        raise RequestError(
            f"{text!r} is neither a payload on this disk nor a store", hint="give a directory or a file"
        )
    else:
        _check_payload(about, path, found, digests, progress, stop)
    counts = (found.files, found.arrays, found.digests)
    return ManifestReport(about.name, text, *counts, tuple(found.open), tuple(found.faults))


def _check_payload(
    about: SourceManifest,
    path: Path,
    found: _Findings,
    digests: bool,
    progress: Callable[[int, int], None],
    stop: threading.Event | None,
) -> None:
    payload = local_payload(path)
    places, faults = about.find(payload)
    found.faults += faults
    if not about.files:
        found.open.append("the manifest lists no file")
    total, done, lock = _expected(about, payload, digests), 0, threading.Lock()

    def tell(nbytes: int) -> None:
        nonlocal done
        with lock:
            done += nbytes
            progress(done, total)

    digester = Digester(tell, stop)
    with ThreadPoolExecutor(os.cpu_count() or 1, "gdist-hash") as pool:
        jobs = []
        for file in about.files:
            place = places.get(file.path)
            if place is None:
                continue
            where = path if path.is_file() else path / place.path
            found.files += 1
            _check_arrays(about, file, where, found)
            if digests:
                jobs += [pool.submit(_file_digests, where, file, digester)] if file.digests else []
                with_digest = [item for item in file.arrays if item.digest]
                jobs += [pool.submit(_array_digest, where, file, item, digester) for item in with_digest]
                without = len(file.arrays) - len(with_digest)
                found.open += [f"{file.path!r}: {without} arrays without a digest"] if without else []
        for job in jobs:
            try:
                count, wrong = job.result()
            except InterruptedRun:
                pool.shutdown(cancel_futures=True)
                raise
            except GdistError as error:
                count, wrong = 0, [error.message]
            found.digests += count
            found.faults += wrong
    if not digests:
        found.open.append("digests were not asked for")


def _expected(about: SourceManifest, payload: Payload, digests: bool) -> int:
    """About the bytes that will be read."""
    if not digests:
        return 0
    arrays = sum(a.array.extent.length for file in about.files for a in file.arrays if a.digest)
    return arrays + sum(file.nbytes or 0 for file in about.files if file.digests) or payload.length


def _check_arrays(about: SourceManifest, file: SourceFile, where: Path, found: _Findings) -> None:
    if not file.known:
        found.open.append(f"{file.path!r}: its arrays are not listed")
        return
    try:
        about.check_file(file.path, scan_file(where).arrays if where.stat().st_size else ())
        found.arrays += len(file.arrays)
    except GdistError as error:
        found.faults.append(error.message)


def _file_digests(where: Path, file: SourceFile, digester: Digester) -> tuple[int, list[str]]:
    # MD5 is what some publishers gave; it vouches for nothing against intent
    makers: dict[str, Callable[[], Any]] = {  # Any: hashlib's and blake3's objects have no common type
        "md5": lambda: hashlib.md5(usedforsecurity=False),
        "sha256": hashlib.sha256,
        "blake3": blake3,
    }
    hashers = {kind: makers[kind]() for kind, _ in file.digests}

    def update(window: memoryview) -> None:
        for hasher in hashers.values():
            hasher.update(window)

    digester.feed(where, [(0, where.stat().st_size)], update)
    wrong = [
        f"{file.path!r} has {kind} {hashers[kind].hexdigest()}, not {digest}"
        for kind, digest in file.digests
        if hashers[kind].hexdigest() != digest
    ]
    return len(hashers), wrong


def _array_digest(
    where: Path, file: SourceFile, item: SourceArray, digester: Digester
) -> tuple[int, list[str]]:
    if item.array.extent.stop > where.stat().st_size:
        return 0, []  # said already: the file is shorter
    digest = digester.array(where, item.array)
    right = digest == item.digest
    return 1, [] if right else [f"{item.name!r} in {file.path!r} has digest {digest}, not {item.digest}"]


def _check_store(
    about: SourceManifest,
    where: str,
    found: _Findings,
    digests: bool,
    progress: Callable[[int, int], None],
    stop: threading.Event | None,
) -> None:
    known = replace(about, files=tuple(file for file in about.files if file.whole))
    found.files = len(known.files)
    if not about.whole:
        found.open.append("the manifest does not know all files of the release")
    with open_store(where) as store:
        source = store.manifest.source
        for ours, theirs in (
            (source.info_hash_v1, about.info_hash_v1),
            (source.info_hash_v2, about.info_hash_v2),
        ):
            if ours and theirs and ours != theirs:
                found.faults.append(f"the store is of torrent {ours}, the manifest of {theirs}")
        if store.manifest.select or store.manifest.converted:
            found.open.append(
                "the store holds a choice of tensors, or converted ones: others are passed over"
            )
        expected = list(_expected_tensors(known))
        total = sum(item.array.extent.length for _, item in expected) if digests else 0
        done = 0
        for name, item in expected:
            if stop is not None and stop.is_set():
                raise InterruptedRun("the check was asked to stop", hint="run it again")
            try:
                _check_tensor(store, name, item, found, digests)
            except GdistError as error:
                found.faults.append(error.message)
            done += item.array.extent.length
            progress(min(done, total), total)


def _expected_tensors(known: SourceManifest) -> Iterator[tuple[str, SourceArray]]:
    for file in known.files:
        for item in file.arrays:
            yield (f"{item.name}.{item.array.role}" if item.array.role else item.name), item


def _check_tensor(store: Store, name: str, item: SourceArray, found: _Findings, digests: bool) -> None:
    partial = bool(store.manifest.select or store.manifest.converted)
    if name not in store:
        found.faults += [] if partial else [f"tensor {name!r} is not in the store"]
        return
    array, about = store[name], item.array
    if partial and array.dtype != np.dtype(about.dtype.name):
        return
    if (array.shape, array.dtype.name) != (about.shape, about.dtype.name):
        expected = f"{about.dtype.name} {list(about.shape)}"
        found.faults.append(f"tensor {name!r} is {array.dtype.name} {list(array.shape)}, not {expected}")
        return
    found.arrays += 1
    if not digests:
        return
    if not item.digest or about.runs or about.order is not Order.C:
        why = "has no digest" if not item.digest else "is stored in another order than in its file"
        found.open.append(f"tensor {name!r} {why}")
        return
    hasher = blake3()
    for box in whole_boxes(array.shape, array.dtype.itemsize, WINDOW_BYTES):
        read = array.read(box, aligned_empty(box.shape, array.dtype))
        hasher.update(read.reshape(-1).view(np.uint8).data)
    found.digests += 1
    if hasher.hexdigest() != item.digest:
        found.faults.append(f"tensor {name!r} has digest {hasher.hexdigest()}, not {item.digest}")
