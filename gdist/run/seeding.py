"""Serving a store's torrent: from the payload's own files where they are here, else rebuilt when asked for.

A store that holds every byte of its torrent needs no second copy of it to be seeded. Pieces are checked by
the torrent's hashes before they are sent, and all of them, unless that is waived, before anyone is told.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gdist.core.store_manifest import StoreManifest
from gdist.core.view import VIEW
from gdist.errors import CorruptError, InterruptedRun, RequestError
from gdist.kvstore import local_path
from gdist.run.rebuild import Rebuilder
from gdist.run.view_pieces import ViewTorrent
from gdist.sources.torrent import PieceServer, Seeder, TorrentOptions
from gdist.stores import Address, files_of
from gdist.stores.manifests import read_manifests


@dataclass(frozen=True, slots=True)
class Held:
    """A store's torrent, and what gives its pieces.

    Where its own files are here, `paths` has the place of each, and `base` the directory that they are below.
    """

    torrent: bytes
    pieces: int
    piece_length: int
    where: str
    read: Callable[[int], memoryview | None]
    describe: Callable[[Sequence[int]], str]
    base: Path | None = None
    paths: tuple[Path, ...] = ()


@contextmanager
def open_held(places: Sequence[Address]) -> Iterator[Held]:
    """The torrent of the store whose parts lie in these places.

    Raises:
        RequestError: it does not hold every byte of its torrent; says which are missing.
        CorruptError: what it knows of its torrent is damaged.
    """
    manifest = read_manifests(*map(files_of, places)).joined
    root = local_path(places[0]) if len(places) == 1 else None
    if root is not None and (manifest.codec == VIEW or (root / "payload").is_dir()):
        kept = _kept(root, manifest)
        if kept is not None:
            yield kept
            return
    source = Rebuilder(places)
    with contextlib.closing(source):
        source.check_whole("it cannot be seeded")
        payload = source.payload
        yield Held(
            source.torrent,
            payload.pieces,
            payload.piece_length,
            source.where,
            source.piece,
            source.describe,
        )


def _kept(root: Path, manifest: StoreManifest) -> Held | None:
    """The torrent's own files of a view, or kept beside shards; None where the shards must do.

    Raises:
        RequestError: files of a view are missing.
    """
    try:
        source = ViewTorrent(root, manifest)
    except RequestError:
        if manifest.codec == VIEW:
            raise
        return None
    if manifest.codec != VIEW and source.absent():
        return None
    source.check_whole("it cannot be seeded")
    paths = tuple(path.absolute() for path in source.paths)
    base = Path(os.path.commonpath([path.parent for path in paths]))
    return Held(
        source.torrent,
        source.payload.pieces,
        source.payload.piece_length,
        str(root),
        source.piece,
        source.describe,
        base if all(map(_is_text, paths)) else None,
        paths,
    )


def _is_text(path: Path) -> bool:
    """True for a path that libtorrent can be given."""
    try:
        str(path).encode()
        return True
    except UnicodeEncodeError:
        return False


def check_pieces(
    held: Held,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    stop: threading.Event | None = None,
) -> None:
    """That every piece can be rebuilt and has its hash; `progress` is called with the pieces done so far.

    Raises:
        CorruptError: naming those that cannot.
        InterruptedRun: `stop` was set.
    """
    wrong: list[int] = []

    def check(piece: int) -> bool:
        if stop is not None and stop.is_set():
            raise InterruptedRun("the check was asked to stop", hint="run it again")
        return held.read(piece) is not None

    with ThreadPoolExecutor(workers or os.cpu_count() or 1, "gdist-hash") as pool:
        try:
            for piece, right in enumerate(pool.map(check, range(held.pieces))):
                if not right:
                    wrong.append(piece)
                progress(piece + 1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if wrong:
        raise CorruptError(
            f"{held.describe(wrong)} of {held.where} are missing or differ from the torrent",
            hint="gdist verify --repair STORE fetches them",
            pieces=tuple(wrong),
        )


def serve(held: Held, options: TorrentOptions) -> Seeder | PieceServer:
    """What serves it, not entered yet: libtorrent where the files are here as such, else a peer of ours."""
    if held.base is not None:
        return Seeder(held.torrent, held.base, options, check=False, paths=held.paths)
    return PieceServer(held.torrent, held.read, options)
