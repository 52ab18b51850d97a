"""The torrent of a view: its .torrent beside the payload, and which of its files is which of the view's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gdist.core.extent import Extent
from gdist.core.source_map import DIRECTORY, TORRENT_NAME
from gdist.core.store_manifest import StoreManifest
from gdist.errors import GdistError, RequestError
from gdist.run.torrent_files import TorrentFiles
from gdist.sources.torrent.metadata import Metadata, load_torrent, read_metadata

SHOWN = 8  # files that a message names


class ViewTorrent(TorrentFiles):
    """The payload of a view in a directory, as its torrent has it.

    Raises:
        RequestError: when there is no .torrent of this payload.
    """

    def __init__(self, root: Path, manifest: StoreManifest):
        self.where, self.manifest = str(root), manifest
        torrent, metadata = _find(root, manifest)
        super().__init__(torrent, metadata, tuple(_paths(root, manifest, metadata)))

    def extent_of_file(self, key: str) -> Extent | None:
        """Where a file of the view, by its path below the root, lies in the payload."""
        root = Path(self.where)
        for path, file in zip(self.paths, self.payload.files, strict=True):
            if path == root / key:
                return file.extent
        return None

    def check_whole(self, doing: str) -> None:
        """That all files of the torrent are here, in their lengths.

        Raises:
            RequestError: naming those that are not.
        """
        absent = self.absent()
        if absent:
            more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
            chosen = self.manifest.select or self.manifest.ignored
            raise RequestError(
                f"{self.where} does not hold every byte of its torrent, so {doing}: "
                f"missing or of another length: {', '.join(map(str, absent[:SHOWN]))}{more}",
                hint="fetch all: without --select and --ignore"
                if chosen
                else "gdist verify --repair fetches what is missing",
            )

    def describe(self, pieces: Sequence[int], where: Iterable[str] = ()) -> str:
        """Some pieces for a message, and `where` (default: the files in which they lie)."""
        payload = self.payload
        found = {segment.file for p in pieces for segment in payload.segments(payload.extent_of(p))}
        names = dict.fromkeys(where) or [payload.files[number].path for number in sorted(found)[:SHOWN]]
        more = f" and {len(pieces) - SHOWN} more" if len(pieces) > SHOWN else ""
        word = "piece" if len(pieces) == 1 else "pieces"
        return f"{word} {', '.join(map(str, pieces[:SHOWN]))}{more} (in {', '.join(names)})"


def _find(root: Path, manifest: StoreManifest) -> tuple[bytes, Metadata]:
    known = {manifest.source.info_hash_v1, manifest.source.info_hash_v2} - {""}
    for path in _candidates(root):
        try:
            torrent = path.read_bytes()
            metadata = read_metadata(load_torrent(torrent))
        except (OSError, GdistError):
            continue
        hashes = {metadata.info_hash.v1_hex, metadata.info_hash.v2_hex} - {""}
        sizes = sorted(file.length for file in metadata.payload.files)
        if known & hashes or (not known and sizes == sorted(file.nbytes for file in manifest.files)):
            return torrent, metadata
    raise RequestError(
        f"{root} has no .torrent file of its payload",
        hint=f"put it into {root}, under any name that ends with .torrent, or make the view with "
        "gdist view --torrent",
    )


def _candidates(root: Path) -> Iterator[Path]:
    yield root / DIRECTORY / TORRENT_NAME
    for directory in (root, root / "payload"):
        yield from sorted(directory.glob("*.torrent"))


def _paths(root: Path, manifest: StoreManifest, metadata: Metadata) -> Iterator[Path]:
    """Where each file of the torrent lies; where the view has it not, where it would lie."""
    for path, file in zip(metadata.paths, metadata.payload.files, strict=True):
        same = [f for f in manifest.files if f.nbytes == file.length]
        ends = [f for f in same if f"/{f.path}".endswith(f"/{file.path}")]
        best = min(ends, key=lambda f: len(f.path), default=None)
        if best is not None:
            yield root / best.path
            continue
        inside = [root / "payload" / path, root / "payload" / file.path, root / path, root / file.path]
        yield next((place for place in inside if place.is_file()), inside[0])
