"""Resharding from a gdist store: a directory, several hosts' directories, a bucket, a web server."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from functools import partial

from blake3 import blake3

from gdist.core.box import Box, tiles_of
from gdist.core.layout import ShardLayout
from gdist.core.reshard import Grain, contents_of, identity_of, stored_tensor
from gdist.core.source_map import DIRECTORY
from gdist.core.store_manifest import Step, StoreManifest, StoreTensor
from gdist.errors import CorruptError, GdistError, RequestError
from gdist.stores import Address, files_of_all, reader_of
from gdist.stores.buffers import Array, will_read
from gdist.stores.faults import ChunkFault, raise_faults
from gdist.stores.local import LocalReader
from gdist.stores.manifests import Manifests, read_manifests
from gdist.stores.origins import Chunks, Contents, Held, elements, raw
from gdist.stores.views import ViewReader

Index = tuple[int, ...]
NAMED = 8  # tensors of an absent host that a message names


class StoreOrigin:
    """Reads the inner chunks of a store, each against its digest."""

    def __init__(self, places: Sequence[Address]):
        self._files = files_of_all(places)
        self._manifests = read_manifests(*self._files)
        self._reader = reader_of(places, self._manifests, verify=True)
        manifest = self._manifests.joined
        self._tensors = manifest.tensors
        self.where = " and ".join(files.where for files in self._files)
        self.maps = isinstance(self._reader, LocalReader | ViewReader)
        identity = identity_of(manifest)
        step = Step("store", manifest.source.name, str(manifest.mesh), identity)
        self.contents = Contents(
            tensors=tuple(map(stored_tensor, manifest.tensors)),
            source=manifest.source,
            steps=(*manifest.resharded, step),
            state=f"{identity} {contents_of(manifest)}",
            checked=manifest.digested,
            assets=tuple(asset.path for asset in manifest.assets),
            source_files=tuple(file.path for file in manifest.source_files),
            ignored=manifest.ignored,
            select=manifest.select,
            converted=manifest.converted,
            stored={tensor.name: tensor.stored for tensor in manifest.tensors},
        )

    @property
    def manifest(self) -> StoreManifest:
        """What the store says of itself, joined."""
        return self._manifests.joined

    def grain(self, tensor: int) -> Grain:
        """Inner chunks, whole: only so can they be checked."""
        return Grain(self._tensors[tensor].grid.chunk, whole=True)

    def check(self, wanted: Iterable[tuple[int, Box]]) -> None:
        """That the shards these boxes meet are listed, and, in directories, there and of the right length."""
        missing: list[tuple[StoreTensor, Index]] = []
        faults: list[GdistError] = []
        seen: set[tuple[int, Index]] = set()
        for number, box in wanted:
            tensor = self._tensors[number]
            for index, _ in tiles_of(box, tensor.grid.shard):
                if (number, index) in seen:
                    continue
                seen.add((number, index))
                if index not in tensor.shards:
                    missing.append((tensor, index))
                elif isinstance(self._reader, LocalReader):
                    faults += _length_fault(self._reader, tensor, index)
                elif isinstance(self._reader, ViewReader):
                    faults += self._reader.unreadable(tensor, index)
        if missing:
            raise _absent(self._manifests, missing)
        raise_faults(faults)

    def read(self, tensor: int, boxes: Sequence[Box]) -> Held:
        """Inner chunks that equal their digests; those of a directory are maps of its files."""
        stored = self._tensors[tensor]
        chunk = stored.grid.chunk
        faults: list[GdistError] = []
        arrays: dict[Index, Array] = {}
        if isinstance(self._reader, LocalReader):
            arrays, faults = self._map(self._reader, stored, boxes)
        elif isinstance(self._reader, ViewReader):
            arrays, faults = _map_view(self._reader, stored, boxes)
        else:
            for box, data, fault in self._reader.fetch(stored, boxes):
                if fault:
                    faults.append(fault)
                else:
                    index = tuple(a // c for a, c in zip(box.start, chunk, strict=True))
                    arrays[index] = data.view(raw(stored.dtype.itemsize))
        raise_faults(faults)
        return Chunks(chunk, arrays)

    def _map(
        self, reader: LocalReader, tensor: StoreTensor, boxes: Sequence[Box]
    ) -> tuple[dict[Index, Array], list[GdistError]]:
        grid, found = tensor.grid, []
        for box in boxes:
            index = tuple(a // s for a, s in zip(box.start, grid.shard, strict=True))
            within = tuple(a % s // c for a, s, c in zip(box.start, grid.shard, grid.chunk, strict=True))
            shard = reader.shard(tensor, index)
            extent = shard.layout.extent_of(within)
            data = shard.data[extent.start : extent.stop]
            will_read(data)
            found.append((box, shard, within, data))
        counts = tuple(s // c for s, c in zip(grid.shard, grid.chunk, strict=True))
        arrays: dict[Index, Array] = {}
        faults: list[GdistError] = []
        for box, shard, within, data in found:
            ordinal = 0
            for i, count in zip(within, counts, strict=True):
                ordinal = ordinal * count + i
            if blake3(data.data).hexdigest() != tensor.shards[shard.index][ordinal]:
                faults.append(ChunkFault(tensor, shard.index, within, str(shard.path)).error())
            place = tuple(a // c for a, c in zip(box.start, grid.chunk, strict=True))
            arrays[place] = elements(data, grid.chunk, tensor.dtype.itemsize)
        return arrays, faults

    def release(self, tensor: int) -> None:
        """Unmaps the shards of a tensor."""
        if isinstance(self._reader, LocalReader | ViewReader):
            self._reader.forget(self._tensors[tensor])

    def asset(self, path: str, directory: str = "assets") -> bytes:
        """An asset, or a file under `source/`, from the first place that has it right."""
        listed = self.manifest.source_files if directory == DIRECTORY else self.manifest.assets
        entry = next(file for file in listed if file.path == path)
        key = f"{directory}/{path}" if directory == DIRECTORY else self.manifest.asset_key(entry)
        for files in self._files:
            data = files.read(key)
            if data is not None and entry.digest in ("", blake3(data).hexdigest()):
                return data
        raise CorruptError(
            f"{key} of {self.where} is missing or differs from its digest",
            hint="gdist verify --repair fetches what is damaged",
            path=path,
        )

    def still(self) -> str:
        """The same: a published store does not change, and every chunk was held against its digest."""
        return self.contents.state

    def close(self) -> None:
        """Forgets maps and handles."""
        self._reader.close()


def _map_view(
    reader: ViewReader, tensor: StoreTensor, boxes: Sequence[Box]
) -> tuple[dict[Index, Array], list[GdistError]]:
    """Chunks of a view, as maps of the payload's files."""
    arrays: dict[Index, Array] = {}
    faults: list[GdistError] = []
    indexes = [tuple(a // c for a, c in zip(box.start, tensor.grid.chunk, strict=True)) for box in boxes]
    for index in indexes:
        will_read(reader.chunk(tensor, index))
    for box, index in zip(boxes, indexes, strict=True):
        fault = reader.fault(tensor, index)
        array = None if fault else reader.view(tensor, box)
        if array is None:
            faults += [fault] if fault else []
        else:
            arrays[index] = array.view(raw(tensor.dtype.itemsize))
    return arrays, faults


def _length_fault(reader: LocalReader, tensor: StoreTensor, index: Index) -> list[GdistError]:
    path = reader.path(tensor, index)
    expected = ShardLayout(tensor.grid, tensor.dtype.itemsize).file_nbytes
    fault = partial(
        CorruptError,
        hint="fetch again: what is damaged is fetched anew",
        tensor=tensor.name,
        shard=index,
        path=str(path),
    )
    try:
        found = os.stat(path).st_size
    except OSError:
        return [fault(f"shard {path} of {tensor.name!r} is missing")]
    if found != expected:
        return [fault(f"shard {path} of {tensor.name!r} has {found} bytes, not {expected}")]
    return []


def _absent(manifests: Manifests, missing: Sequence[tuple[StoreTensor, Index]]) -> GdistError:
    """One error for all shards that are in no manifest here: which hosts have them."""
    by_hosts: dict[tuple[int, ...], list[tuple[str, Index]]] = {}
    for tensor, index in missing:
        writers = manifests.writers(tensor, index)
        if set(writers) & set(manifests.present):
            return manifests.unlisted(tensor, index)
        by_hosts.setdefault(writers, []).append((tensor.name, index))
    sentences = []
    for hosts, shards in sorted(by_hosts.items()):
        names = list(dict.fromkeys(name for name, _ in shards))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        who = " or ".join(map(str, hosts))
        sentences.append(
            f"host {who} has {len(shards)} shards of {', '.join(map(repr, names[:NAMED]))}{more}"
        )
    return RequestError(
        f"{len(missing)} shards that are needed were written by hosts whose parts of the store are not here: "
        + "; ".join(sentences),
        hint="give the directories of these hosts as further sources",
        hosts=tuple(sorted(set(itertools.chain.from_iterable(by_hosts)))),
        shards=tuple((tensor.name, index) for tensor, index in missing),
    )
