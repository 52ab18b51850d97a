"""What of a view's files is in no tensor and no asset: no digest covers it, but the torrent's pieces do.

    file     | header | tensor a | padding | tensor b | end |
    held by    pieces    digest    pieces     digest   pieces

Nothing is said of bytes that a view never had: of files that were left out, of tensors that were not chosen.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod

from gdist.core.extent import Extent, coalesce, complement, locate
from gdist.core.store_manifest import StoreManifest
from gdist.durable import size_of
from gdist.run.torrent_files import wrong_pieces
from gdist.run.view_pieces import ViewTorrent


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of a file that no digest covers: the file's number in the payload, and an extent of it."""

    file: int
    extent: Extent


class Rest:
    """The bytes that no digest covers, of a view that knows its torrent, which `source` is."""

    def __init__(self, source: ViewTorrent):
        self._source = source
        parts = list(_digested(source.manifest))
        self._covered = coalesce(extent for _, extent in parts)
        self._starts = [extent.start for extent in self._covered]
        files = source.payload.files
        numbers = {(file.offset, file.length): number for number, file in enumerate(files) if file.length}
        places = {(place.offset, place.nbytes) for place in (source.manifest.files[n] for n, _ in parts)}
        self._held = {numbers[place] for place in places if place in numbers}

    def _near(self, extent: Extent) -> Iterator[Extent]:
        """What digests cover of an extent of the payload."""
        for number in range(max(locate(self._starts, extent.start), 0), len(self._covered)):
            if self._starts[number] >= extent.stop:
                return
            if common := self._covered[number].intersect(extent):
                yield common

    def gaps(self, piece: int) -> tuple[Gap, ...]:
        """Those of a piece."""
        payload = self._source.payload
        found = []
        for segment in payload.segments(payload.extent_of(piece)):
            offset = payload.files[segment.file].offset
            inside = segment.extent.shift(offset)
            gaps = complement(self._near(inside), inside)
            found += [Gap(segment.file, gap.shift(-offset)) for gap in gaps]
        return tuple(found)

    def pieces(self) -> list[int]:
        """Pieces that hold such bytes, where every byte of them should be here and their hash is known."""
        payload, found = self._source.payload, set[int]()
        for number in self._held:
            inside = payload.files[number].extent
            for gap in complement(self._near(inside), inside):
                found.update(payload.pieces_of(gap))
        return sorted(piece for piece in found if self._source.knows(piece) and self._is_whole(piece))

    def _is_whole(self, piece: int) -> bool:
        extent = self._source.payload.extent_of(piece)
        if any(segment.file not in self._held for segment in self._source.payload.segments(extent)):
            return False
        # Of a choice of tensors only what shares a piece with them was fetched.
        return not self._source.manifest.select or any(True for _ in self._near(extent))


def wrong_rest(rest: Rest, source: ViewTorrent, known: Collection[int], workers: int) -> list[int]:
    """Pieces with bytes that no digest covers which differ from the torrent, but for those in `known`.

    Files that are missing or of another length are left out too: all that is in them is known to be wrong.
    """
    files = zip(source.paths, source.payload.files, strict=True)
    sound = [size_of(path) == file.length for path, file in files]

    def right(piece: int) -> bool:
        extent = source.payload.extent_of(piece)
        out = not all(sound[segment.file] for segment in source.payload.segments(extent))
        return out or source.has(piece)

    pieces = [piece for piece in rest.pieces() if piece not in known]
    return wrong_pieces(right, pieces, workers=workers)


def in_words(gaps: tuple[Gap, ...], piece: int, source: ViewTorrent) -> tuple[str, str]:
    """For a wrong piece, whose digests are right: the file below the view that is wrong, and what is."""
    first = gaps[0]
    others = dict.fromkeys(gap.file for gap in gaps if gap.file != first.file)
    names = " or ".join(source.payload.files[number].path for number in others)
    shared = f" (or {names} in the same piece)" if names else ""
    path = os.path.relpath(source.paths[first.file], source.where)
    return path, f"at byte {first.extent.start}, in no tensor{shared}, piece {piece} differs from the torrent"


def _digested(manifest: StoreManifest) -> Iterator[tuple[int, Extent]]:
    """All that digests cover: the number of its file in the manifest, and its extent in the payload."""
    numbers = {file.path: number for number, file in enumerate(manifest.files)}
    for tensor in manifest.tensors:
        assert tensor.view is not None, tensor.name
        nbytes = prod(tensor.view.part) * tensor.dtype.itemsize
        for file, offset in tensor.view.at:
            yield file, Extent((manifest.files[file].offset or 0) + offset, nbytes)
    for asset in manifest.assets:
        number = numbers.get(manifest.asset_key(asset))
        if number is not None:
            yield number, Extent(manifest.files[number].offset or 0, asset.nbytes)
