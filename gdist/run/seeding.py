"""Serving a store's torrent: from the payload's own files where they are here, else rebuilt when asked for.

A store that holds every byte of its torrent needs no second copy of it to be seeded. Pieces are checked by
the torrent's hashes before they are sent, and all of them, unless that is waived, before anyone is told.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from gdist.core.store_manifest import StoreManifest
from gdist.core.view import VIEW
from gdist.errors import CorruptError, RequestError
from gdist.kvstore import local_path
from gdist.run.rebuild import Rebuilder
from gdist.run.torrent_files import wrong_pieces
from gdist.run.view_pieces import SHOWN, ViewTorrent
from gdist.run.view_rest import Rest
from gdist.sources.torrent import PieceServer, Seeder, TorrentOptions
from gdist.stores import Address, files_of
from gdist.stores.manifests import read_manifests
from gdist.stores.views import ViewReader


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
    hint: str = "gdist verify --repair STORE fetches them"  # what to do about wrong pieces


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

    def describe(pieces: Sequence[int]) -> str:
        return source.describe(pieces, [_blamed(root, source, piece) for piece in pieces[:SHOWN]])

    held = Held(
        source.torrent,
        source.payload.pieces,
        source.payload.piece_length,
        str(root),
        source.piece,
        describe,
        base if all(map(_is_text, paths)) else None,
        paths,
    )
    if manifest.codec != VIEW:
        return replace(held, hint=f"move {root / 'payload'} away: the shards are seeded then, without it")
    if not manifest.source.info_hash:  # its .torrent was found by the lengths of its files
        return replace(held, hint="let the client that made it check it again, or give the .torrent it is of")
    return held


def _blamed(root: Path, source: ViewTorrent, piece: int) -> str:
    """The file in which a wrong piece is damaged, as far as digests tell the files apart that share it."""
    payload, manifests = source.payload, read_manifests(files_of(root))
    manifest = manifests.joined
    viewed = manifest.codec == VIEW
    segments = list(payload.segments(payload.extent_of(piece)))
    digests = {asset.path: asset.digest for asset in manifest.assets}
    reader, damaged = ViewReader(root, manifests, verify=True), set[Path]()
    for tensor in manifest.tensors if viewed and len(segments) > 1 else ():
        for index in tensor.shards:
            if piece in reader.pieces(tensor, index) and reader.fault(tensor, index) is not None:
                damaged.add(reader.place(tensor, index)[0])
    reader.close()
    loose = {gap.file for gap in Rest(source).gaps(piece)} if viewed and manifest.source.info_hash else None
    wrong, unknown = [], []
    for segment in segments:
        file, path = payload.files[segment.file], source.paths[segment.file]
        if path in damaged or (file.path in digests and not _is_right(path, digests[file.path])):
            wrong.append(file.path)
        elif file.path not in digests and (loose is None or segment.file in loose):
            unknown.append(file.path)
    named = wrong or unknown or [payload.files[segment.file].path for segment in segments]
    return " and ".join(named) if wrong or len(named) == 1 else f"{' or '.join(named)}, which share it"


def _is_right(path: Path, digest: str) -> bool:
    try:
        return blake3(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


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
    wrong = wrong_pieces(
        lambda piece: held.read(piece) is not None,
        range(held.pieces),
        workers=workers,
        progress=progress,
        stop=stop,
    )
    if wrong:
        verb = "is missing or differs" if len(wrong) == 1 else "are missing or differ"
        raise CorruptError(
            f"{held.describe(wrong)} of {held.where} {verb} from the torrent",
            hint=held.hint,
            pieces=tuple(wrong),
        )


def serve(held: Held, options: TorrentOptions) -> Seeder | PieceServer:
    """What serves it, not entered yet: libtorrent where the files are here as such, else a peer of ours."""
    if held.base is not None:
        return Seeder(held.torrent, held.base, options, check=False, paths=held.paths)
    return PieceServer(held.torrent, held.read, options)
