"""A store's torrent, rebuilt from the store: any extent of the payload, and pieces checked by its hashes.

    payload   | header | tensor a | padding | tensor b | end | README |
    from        rest     shards     rest      shards     rest  assets

Nothing here is trusted: whoever hands bytes on checks them by the torrent's hashes (`Rebuilder.matches`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from gdist.core.box import Box, boxes_of_run
from gdist.core.extent import Extent, complement, locate
from gdist.core.source_map import DIRECTORY, MAP_NAME, REST_NAME, TORRENT_NAME, SourceMap, parse_source_map
from gdist.core.store_manifest import StoreTensor
from gdist.core.tensor import Order, Part
from gdist.core.units import format_bytes
from gdist.core.view import VIEW
from gdist.errors import CorruptError, GdistError, RequestError
from gdist.run.keeping import read_kept
from gdist.run.torrent_files import TorrentPieces
from gdist.sources.torrent.metadata import load_torrent, read_metadata
from gdist.stores import Address, files_of_all, open_as
from gdist.stores.buffers import numpy_dtype
from gdist.stores.manifests import read_manifests

SHOWN = 8  # of what is missing, in one message


@dataclass(frozen=True, slots=True)
class Run:
    """An extent of the payload that the store has: a part of a tensor, or bytes of a small file of it."""

    extent: Extent
    path: str  # of the small file below the store; "" for a tensor's
    offset: int = 0  # in the small file
    tensor: StoreTensor | None = None
    part: Part | None = None


@dataclass(frozen=True, slots=True)
class Lack:
    """Bytes of the torrent that the store does not hold, by its own manifests: where, how many, and why."""

    where: str
    nbytes: int
    why: str

    def __str__(self) -> str:
        return f"{self.where} ({format_bytes(self.nbytes)}): {self.why}"


class Rebuilder(TorrentPieces):
    """Reads the payload of the store whose parts lie in these places; safe from any thread.

    `known` are files of another store's `source/`, by name, where these places have none: it is kept by the
    first host alone.

    Raises:
        RequestError: when the store does not know its torrent.
        CorruptError: when what it knows of it is damaged.
    """

    def __init__(self, places: Address | Sequence[Address], known: Mapping[str, bytes] | None = None):
        self._known = known or {}
        self.places = (places,) if isinstance(places, str | os.PathLike) else tuple(places)
        self._files = files_of_all(self.places)
        self.manifests = read_manifests(*self._files)
        self.manifest = manifest = self.manifests.joined
        self.where = " and ".join(files.where for files in self._files)
        torrent = self._kept(TORRENT_NAME)
        super().__init__(torrent, read_metadata(load_torrent(torrent)))
        if self.metadata.info_hash.hex not in (manifest.source.info_hash_v1, manifest.source.info_hash_v2):
            raise CorruptError(
                f"{DIRECTORY}/{TORRENT_NAME} of {self.where} is of {self.metadata.info_hash.hex}, the store "
                f"of {manifest.source.info_hash}",
                hint="fetch the store again",
            )
        about = self._kept(MAP_NAME)
        self.kept = {TORRENT_NAME: self.torrent, MAP_NAME: about}
        self.map: SourceMap = parse_source_map(about, f"{DIRECTORY}/{MAP_NAME} of {self.where}")
        shapes = {t.name: (t.shape, t.dtype.itemsize) for t in manifest.tensors}
        self.map.check(self.payload, shapes, f"{DIRECTORY}/{MAP_NAME} of {self.where}")
        self.runs: tuple[Run, ...] = tuple(_uncovered(self._find_runs()))
        self._stops = [run.extent.stop for run in self.runs]
        self._small: dict[str, bytes] = {}
        self.store = open_as(self.places, self.manifests, verify=False)

    def _kept(self, path: str) -> bytes:
        manifest = self.manifest
        for files in self._files:
            data = read_kept(files, manifest, path)
            if data is not None:
                return data
        if path in self._known:
            return self._known[path]
        if any(file.path == path for file in manifest.source_files):
            raise CorruptError(
                f"{DIRECTORY}/{path} of {self.where} is missing or differs from its digest",
                hint="gdist verify --repair brings it back --from another store of this torrent, or from its "
                "files with the .torrent beside them",
            )
        outside = manifest.source.nbytes - manifest.nbytes - sum(asset.nbytes for asset in manifest.assets)
        hosts = self.manifests.absent
        raise RequestError(
            f"{self.where} has no {DIRECTORY}/{path}: which bytes of its torrent it holds is not known"
            + (
                f"; the first host has it, and of hosts {', '.join(map(str, hosts))} no part is here"
                * bool(hosts)
            )
            + (f"; {outside:,} bytes of the torrent are in no tensor and no asset" * (outside > 0)),
            hint="make the view with gdist view --torrent"
            if manifest.codec == VIEW
            else "it is kept since gdist wrote source/; fetch the store again, or with --payload keep",
        )

    def _find_runs(self) -> Iterator[Run]:
        tensors = {tensor.name: tensor for tensor in self.manifest.tensors}
        for name, parts in self.map.tensors.items():
            for part in parts:
                if part.extent.length:
                    yield Run(part.extent, "", 0, tensors[name], part)
        offsets = {file.path: file for file in self.payload.files}
        position = 0
        for path, extents in self.map.rest.items():
            for extent in extents:
                moved = extent.shift(offsets[path].offset)
                yield Run(moved, f"{DIRECTORY}/{REST_NAME}", position)
                position += extent.length
        for asset in self.manifest.assets:
            file = offsets.get(asset.path)
            if file and file.length == asset.nbytes and file.length:
                yield Run(file.extent, self.manifest.asset_key(asset))

    def lacks(self) -> tuple[Lack, ...]:
        """What of the torrent the store does not hold, by its manifests alone."""
        found = []
        for file in self.payload.files:
            held = [
                common for run in self.runs_of(file.extent) if (common := run.extent.intersect(file.extent))
            ]
            for gap in complement(held, file.extent) if file.length else ():
                start = gap.start - file.offset
                where = f"{file.path} bytes {start}-{start + gap.length}"
                found.append(Lack(where, gap.length, self._why(file.path)))
        mapped = {run.tensor.name for run in self.runs if run.tensor is not None}
        for tensor in self.manifest.tensors:
            absent = prod(tensor.grid.shards) - len(tensor.shards)
            if tensor.name in mapped and absent:
                nbytes = absent * prod(tensor.grid.shard) * tensor.dtype.itemsize
                where = f"{absent} of {prod(tensor.grid.shards)} shards of {tensor.name!r}"
                found.append(Lack(where, nbytes, "written by a host whose part is not here"))
        return tuple(found)

    def _why(self, path: str) -> str:
        if self.manifest.converted:
            return f"the store was converted to {self.manifest.converted}"
        if self.manifest.select:
            return "the store has a choice of tensors (--select)"
        if self.manifest.ignored and path not in self.map.rest:
            return "left out (--ignore), or not kept"
        return "not kept"

    def check_whole(self, doing: str) -> None:
        """That the store holds all of its torrent.

        Raises:
            RequestError: naming what is missing.
        """
        lacks = self.lacks()
        if lacks:
            more = f"; and {len(lacks) - SHOWN} more" if len(lacks) > SHOWN else ""
            raise RequestError(
                f"{self.where} does not hold every byte of {self.metadata.name!r}, so {doing}: "
                f"{format_bytes(sum(lack.nbytes for lack in lacks))} are missing: "
                + "; ".join(map(str, lacks[:SHOWN]))
                + more,
                hint="fetch all: without --select, --dtype and --ignore, and with every host's part here",
                lacks=lacks,
            )

    def runs_of(self, extent: Extent) -> Iterator[Run]:
        """The runs that meet an extent of the payload, in order."""
        for number in range(locate(self._stops, extent.start) + 1, len(self.runs)):
            run = self.runs[number]
            if run.extent.start >= extent.stop:
                return
            if run.extent.intersect(extent):
                yield run

    def read(self, extent: Extent, out: memoryview) -> list[tuple[Extent, GdistError]]:
        """Fills `out` with an extent of the payload; gives what cannot be read, with why, as zeros."""
        assert len(out) == extent.length, f"buffer of {len(out)} bytes for {extent.length}"
        faults: list[tuple[Extent, GdistError]] = []
        position = extent.start
        for run in self.runs_of(extent):
            common = run.extent.intersect(extent)
            assert common is not None, f"{run.extent} meets {extent}"
            _blank(out, extent, position, common.start)
            view = out[common.start - extent.start : common.stop - extent.start]
            try:
                self._read_run(run, common.shift(-run.extent.start), view)
            except GdistError as error:
                view[:] = bytes(len(view))
                faults.append((common, error))
            position = max(position, common.stop)
        _blank(out, extent, position, extent.stop)
        for segment in self.payload.segments(extent):
            file = self.payload.files[segment.file]
            inside = segment.extent.shift(file.offset)
            held = [run.extent for run in self.runs_of(inside)]
            for gap in complement(held, inside):
                missing = RequestError(f"{file.path} at {gap.start - file.offset}: {self._why(file.path)}")
                faults.append((gap, missing))
        return faults

    def fill(self, extent: Extent, out: memoryview) -> bool:
        """The same; False where something cannot be read."""
        return not self.read(extent, out)

    def _read_run(self, run: Run, within: Extent, view: memoryview) -> None:
        if run.tensor is None or run.part is None:
            start = run.offset + within.start
            data = self.small(run.path)[start : start + within.length]
            if len(data) != within.length:
                raise CorruptError(f"{run.path} of {self.where} is cut short", hint="gdist verify names it")
            view[:] = data
            return
        tensor, part = run.tensor, run.part
        itemsize, lazy = tensor.dtype.itemsize, self.store[tensor.name]
        dtype, fortran = numpy_dtype(tensor.dtype), part.order is Order.F
        stored = part.box.shape[::-1] if fortran else part.box.shape
        first, last = within.start // itemsize, -(-within.stop // itemsize)
        position = first * itemsize - within.start  # negative where an element begins before the run
        for box in boxes_of_run(stored, first, last):
            nbytes = box.size * itemsize
            logical = (box.reversed() if fortran else box).shift(part.box.start)
            inside = position >= 0 and position + nbytes <= len(view)
            target = view[position : position + nbytes] if inside else bytearray(nbytes)
            array = np.frombuffer(target, dtype).reshape(box.shape)
            lazy.read(logical, array.transpose() if fortran else array)
            if not inside:
                low, high = max(position, 0), min(position + nbytes, len(view))
                view[low:high] = bytes(target)[low - position : high - position]
            position += nbytes

    def small(self, path: str) -> bytes:
        """A small file of the store, as it is; it is read once."""
        data = self._small.get(path)
        if data is None:
            data = next((d for files in self._files if (d := files.read(path)) is not None), None)
            if data is None:
                raise CorruptError(f"{path} of {self.where} is missing", hint="gdist verify names all damage")
            self._small[path] = data
        return data

    def forget_small(self) -> None:
        """Reads small files anew from now on."""
        self._small.clear()

    def describe(self, pieces: Iterable[int]) -> str:
        """Some pieces, and what of the store lies in them, for a message."""
        named: dict[str, None] = {}
        listed = list(pieces)
        for piece in listed:
            for run in self.runs_of(self.payload.extent_of(piece)):
                named[run.tensor.name if run.tensor else run.path] = None
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        shown = ", ".join(map(str, listed[:SHOWN])) + (", ..." if len(listed) > SHOWN else "")
        word = "piece" if len(listed) == 1 else "pieces"
        return f"{word} {shown} (with {', '.join(list(named)[:SHOWN])}{more})"

    def close(self) -> None:
        """Gives back what is held."""
        self.store.close()


def _uncovered(runs: Iterable[Run]) -> Iterator[Run]:
    """Sorted runs without those that lie within others, as of tied tensors: starts and stops both rise."""
    stop = -1
    for run in sorted(runs, key=lambda run: (run.extent.start, -run.extent.length)):
        if run.extent.stop > stop:
            stop = run.extent.stop
            yield run


def _blank(out: memoryview, extent: Extent, start: int, stop: int) -> None:
    """Zeros where there is no run: gaps between files, and what is missing."""
    if start < stop:
        out[start - extent.start : stop - extent.start] = bytes(stop - start)


def whole_boxes(shape: tuple[int, ...], itemsize: int, most: int) -> Iterator[Box]:
    """Boxes of at most `most` bytes, more for one element, that are an array's bytes one after the other."""
    count, step = prod(shape), max(most // itemsize, 1)
    for start in range(0, count, step):
        yield from boxes_of_run(shape, start, min(start + step, count))
