"""Where a repair takes pieces from: other stores, copies of the payload's files, and at last the swarm.

Whatever a source gives is checked by the torrent's hash before it is used: nothing here is trusted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gdist.core.extent import Extent
from gdist.core.magnet import parse_magnet
from gdist.core.source_map import DIRECTORY, MAP_NAME, TORRENT_NAME
from gdist.core.store_manifest import StoreManifest, StoreSource
from gdist.errors import CorruptError, GdistError, RequestError
from gdist.events import Event, Observer
from gdist.kvstore import local_path
from gdist.run.keeping import read_kept
from gdist.run.rebuild import Rebuilder
from gdist.run.survey import SurveyOptions, survey_files
from gdist.run.verify import Fault, VerifyReport
from gdist.run.view_torrent import ViewedTorrent
from gdist.sources.torrent import TorrentOptions, TorrentSource
from gdist.sources.torrent.files import PayloadFiles
from gdist.sources.torrent.metadata import Metadata
from gdist.stores import Address, files_of
from gdist.stores.manifests import read_manifests

_WAIT_SECONDS = 0.25
SWARM, WEB_SEEDS = "the swarm", "web seeds"
EITHER = f"{SWARM} and {WEB_SEEDS}"  # both gave bytes: which piece is whose is not known


@dataclass(frozen=True, slots=True)
class PieceTaken(Event):
    """A piece that was needed is here: its number, its bytes, and where it came from."""

    piece: int
    nbytes: int
    origin: str


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair found, what it mended, what it fetched from where, and what it could not mend.

    `fetched` are pieces by where they came from; those that the store rebuilt itself are not among them.
    `copied` are small files that were taken whole from other stores, likewise.
    """

    store: str
    verified: VerifyReport
    mended: tuple[str, ...] = ()
    fetched: tuple[tuple[str, tuple[int, ...]], ...] = ()
    nbytes: int = 0
    left: tuple[Fault, ...] = ()
    copied: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing is damaged any more."""
        return not self.left


class Copy(Protocol):
    """A place that may have pieces; `name` is for people."""

    name: str

    def read(self, extent: Extent, out: memoryview) -> bool:
        """Fills `out` with an extent of the payload; False when it has not all of it. Unchecked."""
        ...


class FilesCopy:
    """The torrent's files, or some of them, below a directory."""

    def __init__(self, directory: Path, metadata: Metadata):
        self.name = str(directory)
        bases = [directory / "payload", directory]
        if directory.absolute().name == metadata.name:
            bases.append(directory.absolute().parent)
        tried = [tuple(base / path for path in metadata.paths) for base in bases]
        inside = tuple(directory / file.path for file in metadata.payload.files)
        paths = max((inside, *tried), key=lambda paths: sum(path.is_file() for path in paths))
        self.found = sum(path.is_file() for path in paths)
        self._files = PayloadFiles(metadata.payload, paths)

    def read(self, extent: Extent, out: memoryview) -> bool:
        """The extent, as the files have it."""
        return self._files.read(extent, out)


class StoreCopy:
    """Another store of the same torrent, whatever its mesh."""

    def __init__(self, address: Address, rebuilder: Rebuilder):
        self.name, self._rebuilder = os.fspath(address), rebuilder

    def read(self, extent: Extent, out: memoryview) -> bool:
        """The extent, rebuilt from that store."""
        return self._rebuilder.fill(extent, out)


def open_copy(
    address: Address,
    metadata: Metadata,
    known: Mapping[str, bytes] | None = None,
    beside: Address | None = None,
) -> Copy:
    """A copy at an address: a store, or a directory with the torrent's files.

    `known` are files of `source/`, for a store without its own. Another host's part of the store in need,
    which lies at `beside`, is joined with it: few pieces are whole in one of them.

    Raises:
        RequestError: when it is neither, or of another torrent, or what it holds of this one is not known.
    """
    root, files, unknown = local_path(address), files_of(address), None
    if files.manifests():
        manifests = read_manifests(files)
        told = manifests.joined.source
        if _hashes(told) and _hashes(told).isdisjoint(_hashes_of(metadata)):
            raise RequestError(
                f"{os.fspath(address)} is of {told.info_hash}, not of {metadata.info_hash.hex}",
                hint="give a store or the files of the same torrent",
            )
        if manifests.absent and beside is not None:
            with contextlib.suppress(GdistError):  # of another job
                return StoreCopy(address, Rebuilder((address, beside), known))
        try:
            return StoreCopy(address, Rebuilder(address))
        except RequestError as error:
            unknown = error
    if root is not None and root.is_dir():
        copy = FilesCopy(root, metadata)
        if copy.found:
            return copy
    if unknown is not None and known:
        try:
            return StoreCopy(address, Rebuilder(address, known))
        except CorruptError as error:  # of other tensors, or of other types
            raise RequestError(
                f"{os.fspath(address)} has no {DIRECTORY}/, and that of the store in need does not fit it: "
                f"{error.message}",
                hint="give its first host's directory, or the files of the torrent",
            ) from error
    if unknown is not None:
        raise unknown
    raise RequestError(
        f"{os.fspath(address)} holds neither a store nor files of {metadata.name!r}",
        hint="give a store of the same torrent, or the directory of a finished download",
    )


def _hashes(source: StoreSource) -> set[str]:
    return {source.info_hash_v1, source.info_hash_v2} - {""}


def _hashes_of(metadata: Metadata) -> set[str]:
    return {metadata.info_hash.v1_hex, metadata.info_hash.v2_hex} - {""}


def known_source(manifest: StoreManifest, copies: Sequence[Address]) -> dict[str, bytes]:
    """The files of a store's `source/`, by name, from a copy that has the .torrent and the map; or nothing.

    A store has them in its own; of a payload with its .torrent the headers are read.
    """
    for address in copies:
        with contextlib.suppress(GdistError):  # what is wrong with a copy is said when it is opened
            files = files_of(address)
            if files.manifests():
                told = read_manifests(files).joined
                kept = {path: read_kept(files, told, path) for path in (TORRENT_NAME, MAP_NAME)}
                if _hashes(told.source) & _hashes(manifest.source) and None not in kept.values():
                    return {path: data for path, data in kept.items() if data is not None}
        root = local_path(address)
        for directory in (root, root / "payload") if root is not None else ():
            for torrent in sorted([*directory.glob("*.torrent"), *directory.parent.glob("*.torrent")]):
                with contextlib.suppress(GdistError):
                    if found := _read_payload(manifest, torrent, directory):
                        return found
    return {}


def _read_payload(manifest: StoreManifest, torrent: Path, directory: Path) -> dict[str, bytes]:
    """The same from a payload, by the headers of its files; nothing where it is of another torrent."""
    viewed = ViewedTorrent(torrent, directory)
    if _hashes(viewed.source("")).isdisjoint(_hashes(manifest.source)):
        return {}
    options = SurveyOptions(manifest.source.profile or None, manifest.ignored)
    found = survey_files(viewed.base, options, payload=viewed.payload)
    names = {tensor.name for tensor in manifest.tensors if not tensor.stored}
    tensors = (tensor for tensor in found.tensors if tensor.spec.name in names)
    apart = {*found.assets, *found.ignored}
    if manifest.select or manifest.converted:  # the rest of these is not kept
        apart = {*range(len(viewed.payload.files))}
    kept: dict[str, bytes] = {}
    viewed.keep(kept.__setitem__, tensors, apart)
    return {path.removeprefix(f"{DIRECTORY}/"): data for path, data in kept.items()}


def swarm_pieces(
    torrent: bytes,
    magnet: str,
    pieces: Sequence[int],
    options: TorrentOptions,
    work: Path,
    observe: Observer,
    check_stop: Callable[[], None],
) -> Iterator[tuple[int, memoryview, str]]:
    """Pieces from the torrent's swarm and web seeds as they come, each checked, with who gave bytes so far.

    `work` is emptied at the end.

    Raises:
        StalledError, NoPeersError: nobody brings them.
    """
    known = parse_magnet(magnet)[0] if magnet else None
    if known is not None:
        options = _with_links(options, known.trackers, known.web_seeds, known.peers)
    shutil.rmtree(work, ignore_errors=True)
    source = TorrentSource(torrent, options, observe, tick=check_stop)
    left, peers, web = set(pieces), False, False
    try:
        source.open(work, ())
        source.want(tuple(pieces))
        while left:
            check_stop()
            arrived = source.verified(_WAIT_SECONDS)
            now = source.givers()
            peers, web = peers or now[0], web or now[1]
            for piece in arrived:
                if piece in left:
                    left.discard(piece)
                    yield piece, source.read_piece(piece), _origin(peers, web, bool(options.web_seeds))
                source.release(piece)
            source.check_alive()
    finally:
        source.close()
        shutil.rmtree(work, ignore_errors=True)


def _origin(peers: bool, web: bool, could_be_web: bool) -> str:
    """Who gave pieces: these gave bytes; where nobody is seen any more, who could have."""
    if peers == web:
        return EITHER if peers or could_be_web else SWARM
    return SWARM if peers else WEB_SEEDS


def _with_links(
    options: TorrentOptions,
    trackers: Sequence[str],
    web_seeds: Sequence[str],
    peers: Sequence[tuple[str, int]],
) -> TorrentOptions:
    return replace(
        options,
        trackers=(*options.trackers, *trackers),
        web_seeds=(*options.web_seeds, *web_seeds),
        peers=(*options.peers, *peers),
        upload=False,  # what is here are a few pieces, for moments
    )


def copied_pieces(
    copies: Sequence[Copy],
    pieces: Sequence[int],
    extent_of: Callable[[int], Extent],
    matches: Callable[[int, memoryview], bool],
) -> Iterator[tuple[int, memoryview, str]]:
    """Those of the pieces that one of the copies has right, with its name."""
    for piece in pieces:
        extent = extent_of(piece)
        view = memoryview(bytearray(extent.length))
        for copy in copies:
            with contextlib.suppress(GdistError):  # a copy that cannot be read does not have it
                if copy.read(extent, view) and matches(piece, view):
                    yield piece, view, copy.name
                    break


class Fetcher:
    """Brings pieces: from copies first, from the swarm what they do not have; counts where from."""

    def __init__(
        self, options: TorrentOptions, swarm: bool, observe: Observer, check_stop: Callable[[], None]
    ):
        self._options, self._swarm = options, swarm
        self._observe, self._check_stop = observe, check_stop
        self.fetched: dict[str, list[int]] = {}
        self.nbytes = 0

    def bring(
        self,
        pieces: Sequence[int],
        copies: Sequence[Copy],
        extent_of: Callable[[int], Extent],
        matches: Callable[[int, memoryview], bool],
        torrent: bytes,
        magnet: str,
        work: Path,
    ) -> Iterator[tuple[int, memoryview]]:
        """The pieces, in any order, each once and checked; without the swarm some may not come."""
        left = set(pieces)
        for piece, data, name in copied_pieces(copies, pieces, extent_of, matches):
            self._check_stop()
            left.discard(piece)
            self._count(piece, data, name)
            yield piece, data
        if left and self._swarm:
            found = swarm_pieces(
                torrent, magnet, sorted(left), self._options, work, self._observe, self._check_stop
            )
            for piece, data, origin in found:
                self._count(piece, data, origin)
                yield piece, data

    def _count(self, piece: int, data: memoryview, name: str) -> None:
        self.fetched.setdefault(name, []).append(piece)
        self.nbytes += len(data)
        self._observe(PieceTaken(piece, len(data), name))

    def table(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Pieces by where they came from."""
        return tuple((name, tuple(sorted(pieces))) for name, pieces in self.fetched.items())
