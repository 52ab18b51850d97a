"""A fetch of a directory of arrays whose chunks must be decoded: its files first, then a reshard of them.

what the torrent ─▶ its files, beside the   ─▶ a reshard of the directory, ─▶ the files are removed,
holds is known      store, piece by piece      into the store                 or kept

A chunk that is compressed is one file, whole, or a part of one that only its codec finds: nothing of it can
be placed before all of it is there. So this takes the disk of both, and is said before it begins. A run that
is stopped goes on: pieces that lie there are hashed and not fetched again, shards that are done stay.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gdist.core.box import Box
from gdist.core.reshard import Grain
from gdist.core.source_map import DIRECTORY, MAP_NAME, REST_NAME, TORRENT_NAME, SourceMap, source_map_to_json
from gdist.core.store_manifest import StoreManifest, StoreSource
from gdist.core.units import format_bytes
from gdist.core.view import VIEW
from gdist.errors import CorruptError, FilesystemError
from gdist.events import Binds, Note, Observer, Progress, Stage, StageStarted
from gdist.run.destination import Destination
from gdist.run.directories import EncodedDirectory
from gdist.run.options import FetchOptions
from gdist.run.origins import open_origin
from gdist.run.preflight import check_free
from gdist.run.reshard import ReshardOptions, reshard_from
from gdist.run.survey import check_beside
from gdist.run.timing import Timing
from gdist.sinks.local import write_atomically
from gdist.sources.torrent import TorrentOptions, TorrentSource
from gdist.stores.origins import Contents, Held, Origin

WAIT_SECONDS = 0.5  # how late a stop may be noticed, and how often progress is told


@dataclass(frozen=True, slots=True)
class Asked:
    """What is fetched and where to: `found` tells of the directory, `torrent` is the .torrent's content."""

    found: EncodedDirectory
    torrent: bytes
    swarm: TorrentOptions
    dest: Destination
    options: FetchOptions

    @property
    def root(self) -> str:
        """The directory's path in the payload."""
        return str(self.found.root)

    @property
    def keep(self) -> bool:
        """True when the torrent's files stay."""
        return self.options.payload == "keep"

    @property
    def files(self) -> Path:
        """Where the torrent's files go."""
        return self.dest.payload if self.keep else self.dest.work / "directory"


def fetch_directory(
    asked: Asked,
    source_of: Callable[[TorrentSource], StoreSource],
    observe: Observer,
    timing: Timing,
    stop: threading.Event,
    tick: Callable[[], None],
) -> StoreManifest:
    """Fetches the files, and writes the store that its directory of arrays is.

    `source_of` says what the store's manifest tells of the torrent.

    Raises:
        EncodedDirectory: what was asked for does not go with it.
        GdistError: as of a fetch and of a reshard; what is done is kept for the next call.
    """
    _check_options(asked)
    source = TorrentSource(asked.torrent, asked.swarm, observe, tick=tick)
    try:
        source.open(asked.files, None)
        ignored = {
            number
            for number, file in enumerate(source.payload.files)
            if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in asked.options.ignore)
        }
        _download(source, asked, ignored, observe, timing, tick)
        about, torrent = source_of(source), source.torrent_file
        files = {file.path: source.path_of(n) for n, file in enumerate(source.payload.files)}
        left_out = {source.payload.files[n].path for n in ignored}
        if asked.keep:
            write_atomically(asked.files / f"{source.name}.torrent", torrent, aside=asked.dest.work)
    finally:
        source.close()
    _make_empty(files.values())
    if not asked.keep:
        for path in left_out:  # of these parts have come, in pieces of others
            files[path].unlink(missing_ok=True)
    tick()
    outside = [path for path in files if path not in left_out and not _below(path, asked.root)]
    check_beside("the torrent holds a directory of arrays", {path: files[path] for path in outside})
    directory = _directory(asked, files)
    inside = [path.removeprefix(asked.root).lstrip("/") for path in left_out if _below(path, asked.root)]
    patterns = (*asked.options.ignore, *map(glob.escape, inside))
    origin, rules = open_origin((directory,), None, patterns)
    with contextlib.closing(origin):
        known = _OfTorrent(origin, about, torrent, asked, {path: files[path] for path in outside})
        work = replace(asked.dest, work=asked.dest.work / "convert")
        options = ReshardOptions(
            mesh=asked.options.mesh,
            rules=asked.options.rules,
            memory=asked.options.memory,
            codec=asked.options.codec,
        )
        manifest, _ = reshard_from(known, rules, work, options, observe, timing, stop)
    if not asked.keep:
        shutil.rmtree(asked.files, ignore_errors=True)
    return manifest


def _check_options(asked: Asked) -> None:
    """That nothing is asked for that takes tensors apart before their files are whole."""
    options = asked.options
    faults = {
        "--layout view": options.codec == VIEW,
        "--host": options.host.count > 1 or options.target is not None,
        "--select": bool(options.select),
        "--dtype": options.dtype is not None,
        "--profile": options.profile is not None,
    }
    named = [name for name, there in faults.items() if there]
    if named:
        raise EncodedDirectory(
            f"{asked.found.message}; {', '.join(named)} does not go with that",
            hint=f"leave it out; {asked.found.hint}",
            **asked.found.facts,
        )


def _download(
    source: TorrentSource,
    asked: Asked,
    ignored: set[int],
    observe: Observer,
    timing: Timing,
    tick: Callable[[], None],
) -> None:
    """All pieces of the files that are wanted; of all files, where they are kept."""
    payload = source.payload
    numbers = [n for n in range(len(payload.files)) if asked.keep or n not in ignored]
    pieces = sorted({p for n in numbers for p in payload.pieces_of(payload.files[n].extent)})
    missing = set(pieces) - source.had
    nbytes = sum(payload.extent_of(piece).length for piece in missing)
    size = sum(payload.extent_of(piece).length for piece in pieces)
    store = int(str(asked.found.nbytes))
    observe(
        Note(
            f"{asked.found.message}: {format_bytes(size)} of files are downloaded beside the store"
            + ("" if asked.keep else ", and removed when it is whole")
            + (
                f"; both take {format_bytes(size + store)} of disk"
                if store
                else "; what the store takes is known then"
            )
        )
    )
    observe(StageStarted(Stage.FETCH))
    asked.dest.work.mkdir(parents=True, exist_ok=True)
    check_free(asked.dest.work, nbytes + store, "fetch")
    source.want(sorted(missing))
    told = time.monotonic()
    with timing.measure("waiting for pieces"):
        while missing:
            tick()
            missing.difference_update(source.verified(WAIT_SECONDS))
            source.check_alive()
            if time.monotonic() - told > WAIT_SECONDS:
                told = time.monotonic()
                left = sum(payload.extent_of(piece).length for piece in missing)
                observe(_progress(source, timing, size - left, size))
    with timing.measure("reading and checking pieces"):
        source.sync()


def _progress(source: TorrentSource, timing: Timing, done: int, size: int) -> Progress:
    stats = source.stats()
    return Progress(
        seconds=timing.elapsed,
        bytes_verified=done,
        bytes_placed=done,
        bytes_wanted=size,
        tensors_ready=0,
        tensors=0,
        download_rate=stats.download_rate,
        upload_rate=stats.upload_rate,
        downloaded=stats.downloaded,
        uploaded=stats.uploaded,
        peers=stats.peers,
        seeds=stats.seeds,
        wasted=stats.waste,
        binds=Binds.NETWORK,
    )


def _make_empty(paths: Iterable[Path]) -> None:
    """Files of no bytes, which no piece brings."""
    for path in paths:
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError as error:
                raise FilesystemError(f"{error.strerror} making {path}") from error


def _directory(asked: Asked, files: dict[str, Path]) -> Path:
    """Where the directory of arrays lies on this disk."""
    path, where = next(iter(files.items()))
    for _ in path.split("/"):
        where = where.parent
    return where / asked.root if asked.root else where


def _below(path: str, root: str) -> bool:
    return not root or path.startswith(f"{root}/")


class _OfTorrent:
    """A directory of arrays that is known to be of a torrent: what is made of it is a store of that torrent.

    Its bytes were verified as they came. What it is follows from the info-hash; when its files were written
    matters no more than that they stay as they are. `source/` tells the torrent, and that no tensor's bytes
    are the torrent's own.
    """

    def __init__(
        self, origin: Origin, source: StoreSource, torrent: bytes, asked: Asked, beside: dict[str, Path]
    ):
        self._origin, self._beside = origin, beside
        self.where, self.maps = origin.where, origin.maps
        self._prefix = f"{asked.root}/" if asked.root else ""
        self._first = origin.still()
        self._state = f"{source.info_hash} {asked.root}"
        self._documents = {
            TORRENT_NAME: torrent,
            MAP_NAME: source_map_to_json(SourceMap({}, {})),
            REST_NAME: b"",
        }
        self.contents: Contents = replace(
            origin.contents,
            source=source,
            steps=(),
            state=self._state,
            checked=True,
            assets=(*(f"{self._prefix}{path}" for path in origin.contents.assets), *beside),
            source_files=tuple(sorted(self._documents)),
            ignored=tuple(sorted(asked.options.ignore)),
        )

    def grain(self, tensor: int) -> Grain:
        """As of the directory."""
        return self._origin.grain(tensor)

    def check(self, wanted: Iterable[tuple[int, Box]]) -> None:
        """As of the directory."""
        self._origin.check(wanted)

    def read(self, tensor: int, boxes: Sequence[Box]) -> Held:
        """As of the directory."""
        return self._origin.read(tensor, boxes)

    def release(self, tensor: int) -> None:
        """As of the directory."""
        self._origin.release(tensor)

    def asset(self, path: str, directory: str = "assets") -> bytes:
        """A file beside the arrays, or what leads back to the torrent."""
        if directory == DIRECTORY:
            return self._documents[path]
        if path in self._beside:
            try:
                return self._beside[path].read_bytes()
            except OSError as error:
                raise CorruptError(f"{path} went away while it was read", path=path) from error
        return self._origin.asset(path.removeprefix(self._prefix))

    def still(self) -> str:
        """The state, another one when files changed since they were opened."""
        return self._state if self._origin.still() == self._first else "changed"

    def close(self) -> None:
        """As of the directory."""
        self._origin.close()
