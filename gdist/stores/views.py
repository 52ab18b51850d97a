"""Reading a view in a directory: the payload's files are mapped, and what is asked for is a piece of a map.

A file is mapped once, when it is first touched, and checked then: it must be there and have the length that
the manifest says. Chunks are compared with their digests; where those are not known, or not asked for, the
file must have no hole: what was not downloaded reads as zeros, and nobody may see those.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

from blake3 import blake3

from gdist.core.box import Box, tiles_of
from gdist.core.store_manifest import StoreTensor
from gdist.core.view import View, place_of
from gdist.errors import CorruptError, GdistError
from gdist.stores.buffers import Array, Bytes, copy_arrays, map_file, numpy_dtype, region, threads_for
from gdist.stores.faults import ChunkFault, raise_faults
from gdist.stores.local import Index, first_hole, unreadable, with_hole
from gdist.stores.manifests import Manifests

_HINT = "put the payload's own file back, or let gdist verify --repair fetch what is damaged"


@dataclass(frozen=True, slots=True)
class _File:
    """A mapped file, and its first hole, as far as the file system knows."""

    path: Path
    data: Bytes
    hole: int | None


class ViewReader:
    """Reads boxes of tensors from the payload's files below `root`; thread-safe."""

    def __init__(self, root: Path, manifests: Manifests, *, verify: bool):
        self.root, self._manifests, self._verify = root, manifests, verify
        self._files = manifests.joined.files
        self._lock = threading.Lock()
        self._maps: dict[int, _File] = {}
        self._checked: set[tuple[str, Index]] = set()

    def _file(self, number: int) -> _File:
        """A mapped file.

        Raises:
            CorruptError: it is missing, or has another length than it must have.
        """
        with self._lock:
            found = self._maps.get(number)
            if found is None:
                found = self._maps[number] = self._map(number)
            return found

    def _map(self, number: int) -> _File:
        file = self._files[number]
        path = self.root / file.path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptError(f"{path} of the payload is missing", hint=_HINT, path=str(path)) from error
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            size = os.fstat(descriptor).st_size
            if size != file.nbytes:
                raise CorruptError(
                    f"{path} has {size} bytes, the payload's file {file.nbytes}", hint=_HINT, path=str(path)
                )
            return _File(path, map_file(descriptor, size), first_hole(descriptor, size))
        except OSError as error:
            raise unreadable(path, error) from error
        finally:
            os.close(descriptor)

    def place(self, tensor: StoreTensor, index: Index) -> tuple[Path, int]:
        """The file that has a chunk, and where in it."""
        assert tensor.view is not None, tensor.name
        number, offset = place_of(tensor.view, tensor.grid, tensor.dtype.itemsize, index)
        return self.root / self._files[number].path, offset

    def pieces(self, tensor: StoreTensor, index: Index) -> range:
        """The pieces of the torrent that hold a chunk; none where that is not known."""
        assert tensor.view is not None, tensor.name
        number, offset = place_of(tensor.view, tensor.grid, tensor.dtype.itemsize, index)
        begin, length = self._files[number].offset, self._manifests.joined.source.piece_length
        if begin is None or not length:
            return range(0)
        first, last = begin + offset, begin + offset + prod(tensor.grid.chunk) * tensor.dtype.itemsize - 1
        return range(first // length, last // length + 1)

    def chunk(self, tensor: StoreTensor, index: Index) -> Bytes:
        """The bytes of a chunk, as they lie in their file; unchecked.

        Raises:
            CorruptError: its file is missing, or has another length than it must have.
        """
        assert tensor.view is not None, tensor.name
        number, offset = place_of(tensor.view, tensor.grid, tensor.dtype.itemsize, index)
        return self._file(number).data[offset : offset + prod(tensor.grid.chunk) * tensor.dtype.itemsize]

    def fault(self, tensor: StoreTensor, index: Index) -> GdistError | None:
        """What is wrong with a chunk, if anything."""
        if index not in tensor.shards:
            return self._manifests.unlisted(tensor, index)
        try:
            data = self.chunk(tensor, index)
        except CorruptError as error:
            return error
        (digest,) = tensor.shards[index]
        path, offset = self.place(tensor, index)
        if self._verify and digest:
            if blake3(data.data).hexdigest() == digest:
                return None
            return ChunkFault(tensor, index, (0,) * len(index), str(path), offset).error()
        assert tensor.view is not None, tensor.name
        number, _ = place_of(tensor.view, tensor.grid, tensor.dtype.itemsize, index)
        hole = self._file(number).hole
        return None if hole is None else with_hole(path, hole)

    def unreadable_files(self) -> list[GdistError]:
        """What is wrong with the payload's files: those that are missing, or of another length."""
        faults: list[GdistError] = []
        for number in range(len(self._files)):
            try:
                self._file(number)
            except CorruptError as error:
                faults.append(error)
        return faults

    def unreadable(self, tensor: StoreTensor, index: Index) -> list[CorruptError]:
        """What is wrong with the file of a chunk: that it is missing, or of another length."""
        try:
            self.chunk(tensor, index)
        except CorruptError as error:
            return [error]
        return []

    def check(self, requests: Iterable[tuple[StoreTensor, Box]], workers: int = 1) -> None:
        """That every chunk that meets the boxes is here, with its digest where that is known and asked for.

        Raises:
            CorruptError: naming file, place and tensor of what is missing, cut, or differs.
        """
        todo = {
            (tensor.name, index): tensor
            for tensor, box in requests
            for index, _ in tiles_of(box, tensor.grid.chunk)
            if (tensor.name, index) not in self._checked
        }
        jobs = [(tensor, index) for (_, index), tensor in todo.items()]
        if workers > 1 and len(jobs) > 1:
            with ThreadPoolExecutor(workers, thread_name_prefix="gdist-digest") as pool:
                found = list(pool.map(lambda job: self.fault(*job), jobs))
        else:
            found = [self.fault(*job) for job in jobs]
        # Two chunks of one missing file are one fault.
        raise_faults(list({fault.message: fault for fault in found if fault}.values()))
        self._checked.update(todo)

    def view(self, tensor: StoreTensor, box: Box) -> Array | None:
        """A read-only array over the map, when the box lies in one part; the bytes are not checked."""
        view = tensor.view
        assert view is not None, tensor.name
        if not box.size:
            return None
        number = 0
        for a, b, part, size in zip(box.start, box.stop, view.part, tensor.shape, strict=True):
            if a // part != (b - 1) // part:
                return None
            number = number * (size // part) + a // part
        array = self._part(tensor, view, number)
        origin = tuple(a // p * p for a, p in zip(box.start, view.part, strict=True))
        return region(array, box.relative_to(origin))

    def _part(self, tensor: StoreTensor, view: View, number: int) -> Array:
        file, offset = view.at[number]
        dtype = numpy_dtype(tensor.dtype)
        data = self._file(file).data[offset : offset + prod(view.part) * dtype.itemsize].view(dtype)
        return data.reshape(view.part, order=view.order.value)

    def read(self, tensor: StoreTensor, box: Box, out: Array) -> None:
        """Copies a box, checked first, into `out`, part by part."""
        self.check([(tensor, box)], threads_for(out.nbytes))
        parts = self.parts(tensor, box)
        copy_arrays(
            ((source, region(out, part.relative_to(box.start))) for part, source in parts), out.nbytes
        )

    def parts(self, tensor: StoreTensor, box: Box) -> Iterator[tuple[Box, Array]]:
        """A box as arrays over the maps, unchecked: the part of it that lies in each stored part."""
        assert tensor.view is not None, tensor.name
        for _, part in tiles_of(box, tensor.view.part):
            source = self.view(tensor, part)
            assert source is not None, f"box {part} of {tensor.name!r} is in no part"
            yield part, source

    def forget(self, tensor: StoreTensor) -> None:
        """Lets go of the maps of a tensor's files; what else needs them maps them again."""
        with self._lock:
            for number, _ in tensor.view.at if tensor.view else ():
                self._maps.pop(number, None)

    def close(self) -> None:
        """Forgets the maps; arrays over them keep theirs."""
        with self._lock:
            self._maps.clear()
            self._checked.clear()
