"""The torrent of a download that is viewed: whether the files are its, and what leads back to it.

Every piece is checked by the torrent's own hashes, so a view made with a `.torrent` is as certain as one that
was fetched, and names pieces where something is damaged later.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from gdist.core.magnet import format_magnet
from gdist.core.store_manifest import StoreAsset, StoreSource
from gdist.core.tensor import StoredTensor
from gdist.durable import size_of
from gdist.errors import CorruptError, RequestError, UnsupportedError, translate
from gdist.run.collect import gaps_of
from gdist.run.keeping import MAX_REST_BYTES, write_source
from gdist.run.torrent_files import TorrentFiles, wrong_pieces
from gdist.sources.torrent import magnet_of
from gdist.sources.torrent.metadata import load_torrent, read_metadata

NAMED = 8  # pieces that a message names


class ViewedTorrent(TorrentFiles):
    """The torrent in a file, and where its files lie in or around the download `directory`.

    Raises:
        RequestError: there is no such file, or the download does not have its files in full; names them.
        CorruptError, UnsupportedError: it is no torrent, or one that gdist does not take.
    """

    def __init__(self, torrent: str | os.PathLike[str], directory: Path):
        try:
            content = Path(torrent).read_bytes()
        except OSError as error:
            raise RequestError(
                f"cannot read {os.fspath(torrent)!r}: {error.strerror}", hint="give a .torrent file"
            ) from error
        metadata = read_metadata(load_torrent(content))
        files = metadata.payload.files
        bases = [directory.parent] if directory.is_file() else [directory, directory / metadata.name]
        lacking = {base: [f.path for f in files if size_of(base / f.path) != f.length] for base in bases}
        self.base = min(bases, key=lambda base: len(lacking[base]))
        lacks = lacking[self.base]
        if lacks:
            more = f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else ""
            raise RequestError(
                f"{str(directory)!r} does not have the files of {metadata.name!r} in full: "
                f"{', '.join(lacks[:NAMED])}{more}",
                hint="finish the download, or give the .torrent file that it is of",
                files=tuple(lacks),
            )
        super().__init__(content, metadata, tuple(self.base / file.path for file in files))

    def source(self, profile: str) -> StoreSource:
        """What a manifest says of it."""
        known = self.metadata.info_hash
        nbytes = sum(file.length for file in self.payload.files)
        magnet = format_magnet(magnet_of(self.torrent))
        length = self.payload.piece_length
        return StoreSource(known.v1_hex, known.v2_hex, self.metadata.name, length, nbytes, magnet, profile)

    def check(self, workers: int, stop: threading.Event) -> None:
        """Holds every piece against its hash.

        Raises:
            CorruptError: naming the pieces that are not, and their files.
            UnsupportedError: a hash is not in the .torrent file.
            InterruptedRun: `stop` was set.
        """
        unknown = sum(not self.knows(piece) for piece in range(self.payload.pieces))
        if unknown:
            raise UnsupportedError(
                f"the .torrent file lacks the hashes of {unknown} pieces",
                hint="give one with its piece layers, as make-torrent and clients write it",
            )
        bad = wrong_pieces(self.has, range(self.payload.pieces), workers=workers, stop=stop)
        if bad:
            raise self._damaged(bad)

    def _damaged(self, pieces: Sequence[int]) -> CorruptError:
        where = []
        for piece in pieces[:NAMED]:
            segments = self.payload.segments(self.payload.extent_of(piece))
            names = " and ".join(self.payload.files[segment.file].path for segment in segments)
            where.append(f"piece {piece} in {names}")
        more = f"; and {len(pieces) - NAMED} more" if len(pieces) > NAMED else ""
        return CorruptError(
            f"the download is not what the torrent names: {'; '.join(where)}{more}",
            hint="let the client that made it check it again",
            pieces=tuple(pieces),
        )

    def keep(
        self, write: Callable[[str, bytes], None], tensors: Iterable[StoredTensor], apart: Collection[int]
    ) -> tuple[StoreAsset, ...]:
        """Gives `write` what leads back to the torrent; files `apart` are assets, or are left out."""
        tensors = tuple(tensors)
        files = [number for number in range(len(self.payload.files)) if number not in apart]
        gaps = gaps_of(self.payload, tensors, files)
        if sum(gap.length for extents in gaps.values() for gap in extents) > MAX_REST_BYTES:
            gaps = {}
        rest = bytearray()
        for number, extents in gaps.items():
            path = self.paths[number]
            try:
                with path.open("rb") as file:
                    for extent in extents:
                        file.seek(extent.start)
                        rest += file.read(extent.length)
            except OSError as error:
                raise translate(error, f"reading {path}") from error
        names = {self.payload.files[number].path: extents for number, extents in gaps.items()}
        return write_source(write, self.torrent, tensors, names, bytes(rest))
