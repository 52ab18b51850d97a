"""Reading a store in a directory: shard files are mapped, and what is asked for is a view or a copy of a map.

A shard is mapped once, when it is first touched, and checked then: it must be there, have its exact length,
and, where digests are not asked for, no hole (a hole reads as zeros, and nobody may see those).
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import google_crc32c
from blake3 import blake3

from gdist.core.box import Box, tiles_of
from gdist.core.journal import kind_of, parse_journal
from gdist.core.layout import ShardLayout, shard_key
from gdist.core.store_manifest import MANIFEST_NAME, StoreTensor
from gdist.durable import size_of
from gdist.errors import CorruptError, FilesystemError, GdistError, RequestError, ResumeError
from gdist.stores.buffers import Array, Bytes, copy_arrays, map_file, numpy_dtype, region, threads_for
from gdist.stores.faults import ChunkFault, raise_faults
from gdist.stores.manifests import Manifests

CHECKSUM_BYTES = 4  # CRC-32C, after a shard's index
NO_CHUNK = 2**64 - 1  # in an index, for one that is not stored

Index = tuple[int, ...]


class LocalFiles:
    """The small files of a store in a directory."""

    def __init__(self, root: Path):
        self._root = root
        self.where = str(root)

    def read(self, key: str) -> bytes | None:
        """The bytes of a file below the root, or None."""
        try:
            return (self._root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise unreadable(self._root / key, error) from error

    def manifests(self) -> Sequence[str]:
        """`gdist.json`, or the names of the hosts' parts of it."""
        names = sorted(path.name for path in self._root.glob("gdist.host-?????-of-?????.json"))
        return [MANIFEST_NAME, *names] if (self._root / MANIFEST_NAME).is_file() else names

    def unfinished(self) -> str:
        """What left its work here, `fetch` or `reshard`; "" when nothing did."""
        work = self._root / ".gdist"
        if not work.is_dir():
            return ""
        journals = (work / "journal.jsonl", *sorted(work.glob("gdist.host-*/journal.jsonl")))
        return next(filter(None, map(_kind, journals)), "fetch")


def _kind(journal: Path) -> str:
    """What kind of job a journal is of; "" when that cannot be told."""
    try:
        with open(journal, "rb") as file:
            progress, _ = parse_journal(file.readline())
    except (OSError, ResumeError):
        return ""
    return kind_of(progress.plan) if progress else ""


def unreadable(path: Path, error: OSError) -> FilesystemError:
    """The error for a file the system does not let us read."""
    return FilesystemError(
        f"{path} cannot be read: {error.strerror or error}", hint="check its permissions and the disk"
    )


@dataclass(slots=True)
class Shard:
    """One mapped shard file; `checked` has a mark for each inner chunk whose digest was compared."""

    tensor: StoreTensor
    index: Index
    path: Path
    layout: ShardLayout
    data: Bytes
    checked: bytearray = field(repr=False)
    _slabs: dict[Index, Array] = field(default_factory=dict, repr=False)

    def slab(self, origin: Index) -> Array:
        """The slab (or, where shards are smaller, the shard) that starts at an element of the shard."""
        array = self._slabs.get(origin)
        if array is None:
            grid = self.tensor.grid
            block = tuple(map(min, grid.shard, grid.slab))
            # Its chunks are row blocks in order: from the first one on, they are the slab's own bytes.
            first = self.layout.extent_of(
                tuple(a // c for a, c in zip(origin, grid.chunk, strict=True))
            ).start
            data = self.data[first : first + prod(block) * self.layout.itemsize]
            array = self._slabs[origin] = data.view(numpy_dtype(self.tensor.dtype)).reshape(block)
        return array

    def chunks_of(self, box: Box) -> Iterable[tuple[int, Index]]:
        """Ordinals and indexes of the inner chunks that meet a box of the shard."""
        grid = self.tensor.grid
        counts = [s // c for s, c in zip(grid.shard, grid.chunk, strict=True)]
        for chunk, _ in tiles_of(box, grid.chunk):
            ordinal = 0
            for i, count in zip(chunk, counts, strict=True):
                ordinal = ordinal * count + i
            yield ordinal, chunk

    def check(self, ordinal: int, chunk: Index) -> ChunkFault | None:
        """Compares one inner chunk with its digest."""
        extent = self.layout.extent_of(chunk)
        digest = blake3(self.data[extent.start : extent.stop].data).hexdigest()
        if digest != self.tensor.shards[self.index][ordinal]:
            return ChunkFault(self.tensor, self.index, chunk, str(self.path))
        self.checked[ordinal] = 1
        return None


class LocalReader:
    """Reads boxes of tensors from the shard files of one directory or several; thread-safe."""

    def __init__(self, roots: Sequence[Path], manifests: Manifests, *, verify: bool):
        self._roots = roots
        self._manifests = manifests
        self._verify = verify
        self._lock = threading.Lock()
        self._shards: dict[tuple[str, Index], Shard] = {}
        self._sound: set[tuple[str, Box]] = set()  # boxes that were checked, as a shortcut past their chunks

    def shard(self, tensor: StoreTensor, index: Index) -> Shard:
        """The mapped shard.

        Raises:
            RequestError: when another host has it.
            CorruptError: when its file is missing or of another length than it must have.
        """
        key = tensor.name, index
        with self._lock:
            shard = self._shards.get(key)
            if shard is None:
                shard = self._shards[key] = self._map(tensor, index)
            return shard

    def forget(self, tensor: StoreTensor) -> None:
        """Lets go of the maps of a tensor that is not needed any more; arrays over them keep theirs."""
        with self._lock:
            for index in tensor.shards:
                self._shards.pop((tensor.name, index), None)

    def path(self, tensor: StoreTensor, index: Index) -> Path:
        """The file of a shard."""
        root = self._roots[self._manifests.places.get((tensor.name, index), 0)]
        return root / tensor.name / shard_key(index)

    def _map(self, tensor: StoreTensor, index: Index) -> Shard:
        if index not in tensor.shards:
            raise self._manifests.unlisted(tensor, index)
        layout = ShardLayout(tensor.grid, tensor.dtype.itemsize)
        path = self.path(tensor, index)
        facts: dict[str, object] = {"tensor": tensor.name, "shard": index, "path": str(path)}
        hint = "fetch again: what is damaged is fetched anew"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptError(f"shard {path} of {tensor.name!r} is missing", hint=hint, **facts) from error
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            size = os.fstat(descriptor).st_size
            if size != layout.file_nbytes:
                message = f"shard {path} of {tensor.name!r} has {size} bytes, not {layout.file_nbytes}"
                raise CorruptError(message, hint=hint, **facts)
            data = map_file(descriptor, size)
            trusted = not self._verify and first_hole(descriptor, layout.data_nbytes) is None
        except OSError as error:
            raise unreadable(path, error) from error
        finally:
            os.close(descriptor)
        chunks = prod(s // c for s, c in zip(tensor.grid.shard, tensor.grid.chunk, strict=True))
        return Shard(tensor, index, path, layout, data, bytearray([trusted]) * chunks)

    def check(self, requests: Iterable[tuple[StoreTensor, Box]], workers: int = 1) -> None:
        """That every shard that meets the boxes is here and sound, with its digests when they are asked for.

        Raises:
            RequestError: when another host has some of them.
            CorruptError: naming what is missing, cut, or different from its digest.
        """
        todo: dict[tuple[str, Index, int], tuple[Shard, int, Index]] = {}
        faults: dict[tuple[str, Index], GdistError] = {}
        boxes = [(tensor, box) for tensor, box in requests if (tensor.name, box) not in self._sound]
        for tensor, box in boxes:
            for index, part in tiles_of(box, tensor.grid.shard):
                try:
                    shard = self.shard(tensor, index)
                except (CorruptError, RequestError) as error:
                    faults[tensor.name, index] = error
                    continue
                if all(shard.checked):
                    continue
                for ordinal, chunk in shard.chunks_of(part.relative_to(tensor.grid.box_of(index).start)):
                    if not shard.checked[ordinal]:
                        todo[tensor.name, index, ordinal] = shard, ordinal, chunk
        raise_faults(list(faults.values()))
        jobs = list(todo.values())
        if workers > 1 and len(jobs) > 1:
            with ThreadPoolExecutor(workers, thread_name_prefix="gdist-digest") as pool:
                results = list(pool.map(lambda job: job[0].check(*job[1:]), jobs))
        else:
            results = [shard.check(ordinal, chunk) for shard, ordinal, chunk in jobs]
        raise_faults([fault.error() for fault in results if fault])
        self._sound.update((tensor.name, box) for tensor, box in boxes)

    def view(self, tensor: StoreTensor, box: Box) -> Array | None:
        """A read-only array over the map, when the box lies in one slab; the bytes are not checked."""
        grid = tensor.grid
        block = tuple(map(min, grid.shard, grid.slab))
        first = tuple(a // b * b for a, b in zip(box.start, block, strict=True))
        inside = all(b <= f + size for b, f, size in zip(box.stop, first, block, strict=True))
        if not inside or not box.size:
            return None
        index = tuple(a // s for a, s in zip(first, grid.shard, strict=True))
        slab = self.shard(tensor, index).slab(tuple(a % s for a, s in zip(first, grid.shard, strict=True)))
        if box.shape == block:
            return slab
        return slab[tuple(slice(a - f, b - f) for a, b, f in zip(box.start, box.stop, first, strict=True))]

    def read(self, tensor: StoreTensor, box: Box, out: Array) -> None:
        """Copies a box, checked first, into `out`, slab by slab."""
        self.check([(tensor, box)], threads_for(out.nbytes))
        block = tuple(map(min, tensor.grid.shard, tensor.grid.slab))
        pairs = []
        for _, part in tiles_of(box, block):
            source = self.view(tensor, part)
            assert source is not None, f"box {part} of {tensor.name!r} is in no slab"
            pairs.append((source, region(out, part.relative_to(box.start))))
        copy_arrays(pairs, out.nbytes)

    def close(self) -> None:
        """Forgets the maps; arrays over them keep theirs."""
        with self._lock:
            self._shards.clear()
            self._sound.clear()


def is_whole(path: Path, layout: ShardLayout, codec: str) -> bool:
    """True when a shard's file is there and not cut short; its bytes are not looked at.

    A compressed one has a length of its own: it is whole when its index, at the very end, is sound, and what
    that lists lies before it.
    """
    size = size_of(path)
    if codec == "none":
        return size == layout.file_nbytes
    tail = layout.file_nbytes - layout.data_nbytes
    if size < tail:
        return False
    try:
        with open(path, "rb") as file:
            file.seek(size - tail)
            index, checksum = (data := file.read(tail))[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    except OSError:
        return False
    if google_crc32c.value(index) != int.from_bytes(checksum, "little"):
        return False
    ends = (offset + length for offset, length in struct.iter_unpack("<QQ", index) if offset != NO_CHUNK)
    return max(ends, default=0) <= size - tail


def first_hole(descriptor: int, length: int) -> int | None:
    """Where among the first `length` bytes some were never written, as far as the file system knows."""
    try:
        hole = os.lseek(descriptor, 0, os.SEEK_HOLE)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENXIO, errno.EOPNOTSUPP):
            return None  # this file system does not say
        raise
    return hole if hole < length else None


def with_hole(path: Path, offset: int) -> CorruptError:
    """The error about a file of a payload with a hole at this byte."""
    return CorruptError(
        f"{path} has a hole at byte {offset}, as a file has that was not downloaded whole",
        hint="finish the download; if the file is right, copy it with cp --sparse=never",
        path=str(path),
        offset=offset,
    )
