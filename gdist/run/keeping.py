"""Keeping what leads from a store back to its torrent, while it is fetched: see `gdist.core.source_map`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from blake3 import blake3

from gdist.core.extent import Extent
from gdist.core.journal import rest_line
from gdist.core.source_map import (
    DIRECTORY,
    MAP_NAME,
    REST_NAME,
    TORRENT_NAME,
    SourceMap,
    parse_source_map,
    source_map_to_json,
)
from gdist.core.store_manifest import StoreAsset, StoreManifest
from gdist.core.tensor import StoredTensor
from gdist.core.view import VIEW
from gdist.errors import GdistError
from gdist.events import Note, Observer
from gdist.run.catalogue import Catalogue
from gdist.run.collect import gaps_of
from gdist.run.options import FetchOptions
from gdist.sinks import Sink
from gdist.stores.manifests import Files

MAX_REST_BYTES = 64 * 2**20  # held in memory and in the journal while it arrives; headers are far smaller


class SourceKeeper:
    """The rest of a torrent's files, gathered by the first host; `found` is what earlier runs had of it.

    Of a choice of tensors, or of converted ones, only torrent and map are kept: far more is missing anyway.
    """

    def __init__(
        self, catalogue: Catalogue, options: FetchOptions, found: Mapping[str, bytes], observe: Observer
    ):
        self._first = options.host.index == 0 and options.codec != VIEW  # a view has the files themselves
        payload, apart = catalogue.payload, {*catalogue.assets, *catalogue.ignored}
        files = [n for n in range(len(payload.files)) if n not in apart]
        if not self._first or options.select or options.dtype:
            files = []
        gaps = gaps_of(payload, catalogue.tensors, files)
        nbytes = sum(gap.length for extents in gaps.values() for gap in extents)
        if nbytes > MAX_REST_BYTES:
            why = "more than is kept: the store will not hold every byte of the torrent"
            observe(Note(f"{nbytes:,} bytes are in no tensor, {why}"))
            gaps = {}
        self._gaps: dict[str, tuple[Extent, ...]] = {payload.files[n].path: e for n, e in gaps.items()}
        self._found = {
            path: data
            for path, data in found.items()
            if path in self._gaps and len(data) == sum(gap.length for gap in self._gaps[path])
        }
        self.files = tuple(n for n in gaps if payload.files[n].path not in self._found)

    def take(self, path: str, data: bytes) -> str:
        """Keeps the rest of a file; the journal's line for it."""
        self._found[path] = data
        return rest_line(path, data)

    def write(self, sink: Sink, torrent: bytes, tensors: Iterable[StoredTensor]) -> tuple[StoreAsset, ...]:
        """Writes what is kept into the store; `tensors` are those that it holds as they are stored."""
        if not self._first:
            return ()
        rest = b"".join(self._found[path] for path in self._gaps)
        return write_source(sink.write_document, torrent, tensors, self._gaps, rest)


def write_source(
    write: Callable[[str, bytes], None],
    torrent: bytes,
    tensors: Iterable[StoredTensor],
    gaps: Mapping[str, tuple[Extent, ...]],
    rest: bytes,
) -> tuple[StoreAsset, ...]:
    """Gives `write` the files below `source/`; `rest` are the bytes of the `gaps`, in their order."""
    parts = {tensor.spec.name: tensor.parts for tensor in tensors if not tensor.factors}
    documents = {
        TORRENT_NAME: torrent,
        MAP_NAME: source_map_to_json(SourceMap(parts, gaps)),
        REST_NAME: rest,
    }
    for path, data in documents.items():
        write(f"{DIRECTORY}/{path}", data)
    return tuple(StoreAsset(p, len(d), blake3(d).hexdigest()) for p, d in sorted(documents.items()))


def read_kept(files: Files, manifest: StoreManifest, path: str) -> bytes | None:
    """A file below `source/` that is as the manifest says, or None."""
    entry = next((file for file in manifest.source_files if file.path == path), None)
    data = files.read(f"{DIRECTORY}/{path}") if entry else None
    right = data is not None and entry is not None and blake3(data).hexdigest() == entry.digest
    return data if right else None


def kept_rest(files: Files, manifest: StoreManifest) -> dict[str, bytes]:
    """The rest of each file, by path, as far as a store has it right."""
    rest, about = read_kept(files, manifest, REST_NAME), read_kept(files, manifest, MAP_NAME)
    if rest is None or about is None:
        return {}
    try:
        kept = parse_source_map(about, MAP_NAME).rest
    except GdistError:
        return {}
    found, position = {}, 0
    for path, extents in kept.items():
        end = position + sum(extent.length for extent in extents)
        found[path] = rest[position:end]
        position = end
    return found
