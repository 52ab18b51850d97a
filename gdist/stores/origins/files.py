"""Resharding from a checkpoint's own files: pickles and safetensors as they lie in a directory.

Their bytes have no digest; what is checked is that the files are whole, and that nobody changes them
meanwhile. A look into each tensor tells them from others (`gdist.stores.origins.sample`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from gdist.core.box import Box, runs_of_box
from gdist.core.extent import Extent
from gdist.core.payload import Payload
from gdist.core.reshard import Grain
from gdist.core.store_manifest import Step, StoreSource
from gdist.core.tensor import Order, Part, StoredTensor
from gdist.errors import CorruptError, GdistError
from gdist.stores.buffers import Array, Bytes, map_file, will_read
from gdist.stores.faults import raise_faults
from gdist.stores.local import first_hole, unreadable, with_hole
from gdist.stores.origins import Contents, Held, elements
from gdist.stores.origins.sample import middle, spread

READ_TOGETHER_BYTES = 128 * 1024  # runs nearer to each other are one to the disk


class FilesOrigin:
    """Reads tensors that lie in files below `root`, laid end to end as `payload` says."""

    maps = True

    def __init__(
        self,
        root: Path,
        payload: Payload,
        tensors: tuple[StoredTensor, ...],
        *,
        profile: str = "",
        assets: Sequence[int] = (),
        ignored: tuple[str, ...] = (),
    ):
        self._root, self._payload, self._tensors = root, payload, tensors
        self._maps: dict[int, Bytes] = {}
        self.where = str(root)
        name = root.absolute().name
        nbytes = sum(file.length for file in payload.files)
        self._identity = self._identify(assets)
        self.contents = Contents(
            tensors=tensors,
            source=StoreSource("", "", name, 0, nbytes, profile=profile),
            steps=(Step("files", name, "", self._identity),),
            state=self.still(),
            checked=False,
            assets=tuple(payload.files[number].path for number in assets),
            ignored=ignored,
        )

    def _identify(self, assets: Sequence[int]) -> str:
        files = [[file.path, file.length] for file in self._payload.files]
        content = json.dumps([files, [_shape(t) for t in self._tensors]]).encode()
        return hashlib.sha256(content + self._sample(assets)).hexdigest()

    def _sample(self, assets: Sequence[int]) -> bytes:
        """A digest of some bytes of each part of a tensor, and of all assets."""
        extents = [part.extent for tensor in self._tensors for part in tensor.parts]
        looked = sorted(middle(extent) for extent in spread(extents))
        segments = (segment for extent in looked for segment in self._payload.segments(extent))
        found = hashlib.sha256()
        for number, there in groupby(segments, key=lambda segment: segment.file):
            path = self._path(number)
            try:
                with open(path, "rb", buffering=0) as file:
                    for segment in there:
                        found.update(os.pread(file.fileno(), segment.extent.length, segment.extent.start))
            except OSError as error:
                raise unreadable(path, error) from error
        for number in assets:
            found.update(self.asset(self._payload.files[number].path))
        return found.digest()

    def _path(self, file: int) -> Path:
        return self._root if self._root.is_file() else self._root / self._payload.files[file].path

    def still(self) -> str:
        """Lengths and times of change of all files."""
        marks = []
        for number, file in enumerate(self._payload.files):
            try:
                status = os.stat(self._path(number))
            except OSError as error:
                raise unreadable(self._path(number), error) from error
            marks.append([file.path, status.st_size, status.st_mtime_ns])
        return hashlib.sha256(json.dumps([self._identity, marks]).encode()).hexdigest()

    def grain(self, tensor: int) -> Grain:
        """Rows: any box can be read, but a disk wants them together."""
        spec, parts = self._tensors[tensor].spec, self._tensors[tensor].parts
        along = 0 if parts and parts[0].order is Order.F else len(spec.shape) - 1
        return Grain(tuple(size if d == along else 1 for d, size in enumerate(spec.shape)), whole=False)

    def check(self, wanted: Iterable[tuple[int, Box]]) -> None:
        """That the files of these tensors have no holes: unfinished downloads have, and they read as 0."""
        numbers = {self._file(part)[0] for number, _ in wanted for part in self._tensors[number].parts}
        faults: list[GdistError] = []
        for number in sorted(numbers):
            path = self._path(number)
            try:
                with open(path, "rb") as file:
                    hole = first_hole(file.fileno(), self._payload.files[number].length)
            except OSError as error:
                raise unreadable(path, error) from error
            if hole is not None:
                faults.append(with_hole(path, hole))
        raise_faults(faults)

    def _file(self, part: Part) -> tuple[int, Extent]:
        """The file that has a part, and where in it."""
        (segment,) = self._payload.segments(part.extent)
        return segment.file, segment.extent

    def _part(self, part: Part) -> Bytes:
        """The bytes of a part, mapped."""
        number, extent = self._file(part)
        mapped = self._maps.get(number)
        if mapped is None:
            path, length = self._path(number), self._payload.files[number].length
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if os.fstat(descriptor).st_size != length:
                        raise CorruptError(f"{path} changed while it was read", path=str(path))
                    mapped = self._maps.setdefault(number, map_file(descriptor, length))
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise unreadable(path, error) from error
        return mapped[extent.start : extent.stop]

    def read(self, tensor: int, boxes: Sequence[Box]) -> Held:
        """Maps; nothing is read yet, but the kernel is told."""
        stored = self._tensors[tensor]
        views = []
        for part in stored.parts:
            if not part.extent.length:
                continue
            data = self._part(part)
            _announce(data, part, boxes, stored.spec.dtype.itemsize)
            views.append((part.box, _view(data, part, stored.spec.dtype.itemsize)))
        return _Mapped(views)

    def release(self, tensor: int) -> None:
        """Unmaps the files of a tensor; what others still need of them is mapped again."""
        for part in self._tensors[tensor].parts:
            if part.extent.length:
                self._maps.pop(self._file(part)[0], None)

    def asset(self, path: str, directory: str = "assets") -> bytes:
        """A file without tensors."""
        number = next(n for n, file in enumerate(self._payload.files) if file.path == path)
        try:
            return self._path(number).read_bytes()
        except OSError as error:
            raise unreadable(self._path(number), error) from error

    def close(self) -> None:
        """Forgets the maps."""
        self._maps.clear()


class _Mapped:
    """Views of the parts of a tensor."""

    def __init__(self, views: Sequence[tuple[Box, Array]]):
        self._views = views

    def parts(self, box: Box) -> Iterator[tuple[Box, Array]]:
        """The part of the box that lies in each stored part."""
        for whole, view in self._views:
            common = whole.intersect(box)
            if common:
                yield common, view[common.slices_from(whole.start)]


def _shape(tensor: StoredTensor) -> list[object]:
    parts = [[p.extent.start, p.box.start, p.box.stop, p.order.value] for p in tensor.parts]
    return [tensor.spec.name, tensor.spec.dtype.name, tensor.spec.shape, parts]


def _view(data: Bytes, part: Part, itemsize: int) -> Array:
    if part.order is Order.F:
        return elements(data, part.box.shape[::-1], itemsize).transpose()
    return elements(data, part.box.shape, itemsize)


def _announce(data: Bytes, part: Part, boxes: Sequence[Box], itemsize: int) -> None:
    """Tells the kernel which bytes of a part are read soon."""
    shape = part.box.shape
    for box in boxes:
        common = part.box.intersect(box)
        if common is None:
            continue
        inside = common.relative_to(part.box.start)
        fortran = part.order is Order.F
        runs = runs_of_box(
            shape[::-1] if fortran else shape,
            inside.reversed() if fortran else inside,
            READ_TOGETHER_BYTES // itemsize,
        )
        for run in runs:
            will_read(data[run.start * itemsize : run.stop * itemsize])
