"""What a source holds, found out with as little as it takes: a manifest, a torrent's headers, or local files.

Nothing is kept: what has to come over the network is headers only, into a directory that is removed.
"""

from __future__ import annotations

import fnmatch
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from gdist import releases
from gdist.core.extent import Extent
from gdist.core.payload import Payload, PayloadFile
from gdist.core.profile import INDEX_SUFFIX, FileArrays, check_index, listed
from gdist.core.rules import Rules
from gdist.core.select import check_patterns, chosen_names
from gdist.core.source_manifest import ASSUMED_PIECE_LENGTH, SourceManifest
from gdist.core.tensor import StoredTensor
from gdist.errors import CorruptError, InterruptedRun, UnsupportedError, translate
from gdist.events import Note, Observer, Stage, StageStarted
from gdist.formats import drive
from gdist.formats.detect import advice_on_fault, advice_on_piece
from gdist.run.documents import documents_ending, documents_in
from gdist.run.headers import FileReport, Unread, arrays_of, identify, skip_below, unread_of

if TYPE_CHECKING:
    from gdist.run.resolve import Resolved
    from gdist.sources.torrent import TorrentOptions


@dataclass(frozen=True, slots=True)
class SurveyOptions:
    """How to find out: all as in a fetch; `torrent` None means the defaults."""

    profile: str | None = None
    ignore: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    manifest: str | None = None
    verify_key: str | None = None
    torrent: TorrentOptions | None = None

    @property
    def described(self) -> bool:
        """True where a manifest is given, or has to be signed."""
        return self.manifest is not None or self.verify_key is not None


@dataclass(frozen=True, slots=True)
class Survey:
    """What a source holds; tensors are the chosen ones, in loading order, `assets` indices of other files.

    `kind` is "release" (from a manifest alone), "torrent", "files" or "arrays" (an Orbax checkpoint or a Zarr
    hierarchy: tensors are in no file of the payload).
    """

    kind: str
    name: str
    info_hash: str
    payload: Payload
    tensors: tuple[StoredTensor, ...]
    rules: Rules | None
    profile: str | None
    assets: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()
    piece_length_assumed: bool = False
    notes: tuple[str, ...] = ()
    unread: tuple[Unread, ...] = ()  # of files on disk: those without tensors, and members of containers

    @property
    def nbytes(self) -> int:
        """Bytes of all files, of arrays by their shapes."""
        arrays = sum(tensor.spec.nbytes for tensor in self.tensors) if self.kind == "arrays" else 0
        return arrays + sum(file.length for file in self.payload.files)


def survey(
    source: str,
    options: SurveyOptions | None = None,
    *,
    piece_length: int | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> Survey:
    """What a source holds: a release's name, a magnet, an info-hash, a .torrent file or URL.

    `piece_length` stands in where the release's own is not known. Setting `stop` ends a wait.

    Raises:
        RequestError: when it is none of these.
        GdistError: when metadata or headers do not come, or the files cannot be read.
    """
    asked = options or SurveyOptions()
    check_patterns(asked.select)
    known = releases.known_release(source.strip())
    if known and known.whole and not asked.described:  # needs neither a network nor libtorrent
        return _chosen(_from_manifest(known, piece_length), asked)
    from gdist.run.resolve import resolve  # libtorrent comes with it

    resolved = resolve(source, asked.manifest, asked.verify_key)
    manifest = resolved.manifest
    if resolved.told and manifest and manifest.whole:
        return _chosen(_from_manifest(manifest, piece_length), asked)
    return _chosen(_from_torrent(resolved, asked, observe or (lambda event: None), stop), asked)


def _chosen(found: Survey, options: SurveyOptions) -> Survey:
    """The same with the tensors that were asked for."""
    names = chosen_names((tensor.rule_name for tensor in found.tensors), options.select)
    return replace(found, tensors=tuple(t for t in found.tensors if t.rule_name in names))


def _from_manifest(manifest: SourceManifest, piece_length: int | None) -> Survey:
    payload = manifest.payload(manifest.piece_length or piece_length)
    naming = manifest.to_tensors(payload)
    holders = {file.path for file in manifest.files if file.arrays}
    return Survey(
        kind="release",
        name=manifest.name,
        info_hash=manifest.info_hash_v1 or manifest.info_hash_v2,
        payload=payload,
        tensors=naming.tensors,
        rules=naming.rules,
        profile=naming.profile,
        assets=tuple(i for i, file in enumerate(payload.files) if file.path not in holders),
        piece_length_assumed=manifest.piece_length is None,
        notes=manifest.known_incomplete,
    )


def _from_torrent(
    resolved: Resolved, options: SurveyOptions, observe: Observer, stop: threading.Event | None
) -> Survey:
    from gdist.run.catalogue import read_catalogue
    from gdist.sources.torrent import TorrentOptions, TorrentSource

    def check_stop() -> None:
        if stop is not None and stop.is_set():
            raise InterruptedRun(
                "the run was asked to stop", hint="nothing was kept; run the same command again"
            )

    for note in resolved.notes:
        observe(Note(note))
    asked, manifest = options.torrent or TorrentOptions(), resolved.manifest
    swarm = replace(
        asked, trackers=(*asked.trackers, *(manifest.all_trackers if manifest else ())), upload=False
    )
    source = TorrentSource(resolved.spec, swarm, observe, tick=check_stop)
    with TemporaryDirectory(prefix="gdist-") as scratch:
        try:
            observe(StageStarted(Stage.METADATA))
            source.open(Path(scratch))
            observe(StageStarted(Stage.HEADERS))
            found = read_catalogue(
                source, manifest, profile=options.profile, ignore=options.ignore, tick=check_stop
            )
        finally:
            source.close()
    return Survey(
        kind="torrent",
        name=source.name,
        info_hash=source.info_hash.hex,
        payload=found.payload,
        tensors=found.tensors,
        rules=found.rules,
        profile=found.profile,
        assets=found.assets,
        ignored=found.ignored,
        notes=resolved.notes,
    )


def is_checkpoint(path: Path) -> bool:
    """True for a directory, or a file in a format that gdist reads."""
    if path.is_dir():
        return True
    return path.is_file() and scan_file(path).format is not None


def survey_files(
    path: Path,
    options: SurveyOptions | None = None,
    *,
    skip: Callable[[str], bool] = lambda name: False,
    payload: Payload | None = None,
) -> Survey:
    """What a checkpoint on the local disk holds, as if it were a torrent's payload.

    Files whose paths below it `skip` says yes to are no part of it. Where the `payload` is known, its files
    are all there is, and tensors are placed in it.

    Raises:
        UnsupportedError: when it holds no tensor gdist can read.
        CorruptError, FilesystemError: when a file contradicts itself or cannot be read.
    """
    asked = options or SurveyOptions()
    from gdist.run.catalogue import check_unread, no_tensor  # NumPy comes with it
    from gdist.run.naming import name_arrays

    def left_out(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in asked.ignore)

    def read(number: int, extent: Extent) -> bytes:
        return _content(path if path.is_file() else path / laid.files[number].path, extent)

    laid = payload or local_payload(path, skip)
    found: list[FileArrays] = []
    unread: list[Unread] = []
    assets = []
    reports: dict[int, FileReport] = {}
    for number, file in enumerate(laid.files):
        if left_out(file.path):
            continue
        where = path if path.is_file() else path / file.path
        name = "" if path.is_file() else file.path
        reports[number] = report = scan_file(where, skip_below(file.path, left_out), name=name)
        held = arrays_of(file, report)
        found += held
        if not held:
            assets.append(number)
        unread += unread_of(file, report)
    if not found:
        check_unread(row for row in unread if row.foreign)
        raise no_tensor(laid, "gdist inspect lists what is in a torrent", f" of {str(path)!r}")
    for index in documents_ending(laid, reports, read, INDEX_SUFFIX).values():
        if index:
            check_index(index, found)
    naming = name_arrays(found, asked.profile, documents_in(laid, reports, read))
    everything = Survey(
        kind="files",
        name=path.absolute().name,
        info_hash="",
        payload=laid,
        tensors=naming.tensors,
        rules=naming.rules,
        profile=naming.profile,
        assets=tuple(assets),
        ignored=tuple(number for number in range(len(laid.files)) if number not in reports),
        piece_length_assumed=True,
        unread=tuple(unread),
    )
    return _chosen(everything, asked)


def local_payload(path: Path, skip: Callable[[str], bool] = lambda name: False) -> Payload:
    """The files below a directory, or one file, in the order of their names."""
    files, position = [], 0
    for name, where in _files_below(path):
        if not skip(name):
            files.append(PayloadFile(name, position, where.stat().st_size))
            position += files[-1].length
    return Payload(tuple(files), ASSUMED_PIECE_LENGTH, position)


def _content(path: Path, extent: Extent) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(extent.start)
            return file.read(extent.length)
    except OSError as error:
        raise translate(error, f"reading {path}") from error


def _files_below(path: Path) -> Sequence[tuple[str, Path]]:
    if path.is_file():
        return [(path.name, path)]
    found = [Path(above, name) for above, _, names in os.walk(path) for name in names]
    return sorted((where.relative_to(path).as_posix(), where) for where in found if where.is_file())


def check_beside(what: str, files: Mapping[str, Path]) -> None:
    """That files beside a directory of arrays, by path, may be kept as they are; `what` begins the message.

    Raises:
        UnsupportedError: naming those that hold tensors of their own, or are of a kind that is not read.
    """
    from gdist.run.catalogue import check_unread  # NumPy comes with it

    unread: list[Unread] = []
    holders: list[str] = []
    for path, where in files.items():
        report = scan_file(where)
        unread += unread_of(PayloadFile(path, 0, where.stat().st_size), report)
        holders += [path] if report.format else []
    if holders:
        raise UnsupportedError(
            f"{what}, and tensors in other files: {listed(holders)}",
            hint="leave one of them out with --ignore 'PATTERN'",
        )
    check_unread(unread)


def scan_file(
    path: Path, skip: Callable[[str], bool] = lambda member: False, *, name: str = ""
) -> FileReport:
    """What one local file is and holds; `name` is what it could be left out by, one of several.

    Raises:
        UnsupportedError, CorruptError: from its format, with the file's name.
    """
    report, size = FileReport(), path.stat().st_size
    if not size:
        return report
    try:
        with path.open("rb") as file:

            def read(extent: Extent) -> bytes:
                file.seek(extent.start)
                return file.read(extent.length)

            drive(identify(size, report, skip, thorough=True), read)
    except (UnsupportedError, CorruptError) as error:
        hint = advice_on_fault(name, error) if name else advice_on_piece(str(path)) or error.hint
        raise type(error)(f"{path}: {error.message}", hint=hint, file=str(path)) from error
    except OSError as error:
        raise translate(error, f"reading {path}") from error
    return report
