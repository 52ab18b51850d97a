"""Finds the arrays of all files of a torrent by fetching only the pieces that hold headers.

Every file's scan is a generator that asks for extents (see `gdist.formats`); all of them run side by side,
so that hundreds of files wait for the network together and not one after the other. The first and the last
piece of each file are asked for at once: they hold all of most headers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gdist.core.extent import Extent
from gdist.core.payload import Payload, PayloadFile
from gdist.core.placer import Placement
from gdist.core.profile import FileArrays
from gdist.core.tensor import FoundArray
from gdist.errors import CorruptError, PieceLost, UnsupportedError
from gdist.formats import SNIFF_BYTES, Container, Scan
from gdist.formats.detect import (
    CHECKS,
    Foreign,
    advice_on_fault,
    detect,
    detect_container,
    recognise_foreign,
)
from gdist.formats.reading import reading_ahead, shifted


class HeaderSource(Protocol):
    """What a scan asks of its source: of `PieceSource` what it needs."""

    @property
    def payload(self) -> Payload:
        """The torrent's files and pieces."""

    @property
    def gives_parts(self) -> bool:
        """True where reading a part of a piece costs less than all of it."""

    def want(self, ordered: Sequence[int], *, urgent: Collection[int] = ()) -> None:
        """Replaces what is wanted."""

    def verified(self, timeout: float) -> tuple[int, ...]:
        """Pieces that can be read, each once."""

    def read_piece(
        self, piece: int, buffer: memoryview, placements: Sequence[Placement], extents: Sequence[Extent]
    ) -> memoryview:
        """Bytes of a piece, at least those of `extents`."""

    def check_alive(self) -> None:
        """Raises when there is no hope any more."""


CACHED_PIECES = 4  # small files share pieces; each read of one costs a hash of it
CACHED_BYTES = 64 * 2**20
MAX_DEPTH = 2  # a container in a container; nobody means more
MAX_MEMBERS = 1 << 17  # of all containers in a file: what is known of each is held in memory


@dataclass(slots=True)
class FileReport:
    """What a file turned out to be: its format's name and arrays, or none and `foreign` if that is known.

    A file of a format that holds no array has none: it is kept as it is.

    A container has `members` instead of arrays; where none of them has a format, neither has it.
    """

    format: str | None = None
    arrays: tuple[FoundArray, ...] = ()
    foreign: Foreign | None = None
    keys_are_names: bool = False
    members: tuple[MemberReport, ...] = ()


@dataclass(frozen=True, slots=True)
class MemberReport:
    """A file in a container: its path there, where its bytes lie, and what it is.

    The arrays of `report` count from the member's start, as if it were a file of its own.
    """

    path: str
    extent: Extent
    report: FileReport


Skip = Callable[[str], bool]  # whether the member at a path in a container is left out


def identify(
    size: int, report: FileReport, skip: Skip = lambda path: False, *, thorough: bool = False
) -> Scan:
    """A scan of a file of any kind: sniffs, then runs its format's own scan; fills in the report.

    Members of a container that `skip` names are not looked at, and not in the report. The arrays that come
    back count from the start of this file; those of a member have its path before their key. A `thorough`
    scan also reads what a file says again beside its payloads; see `CHECKS`.

    Raises:
        UnsupportedError, CorruptError: from a format; of a member with its path before the message.
    """
    return _identify(size, report, _Opening(skip, thorough), ())


@dataclass(slots=True)
class _Opening:
    """How files are identified; `left` is how many more members are read in all."""

    skip: Skip
    thorough: bool
    left: int = MAX_MEMBERS


def _identify(size: int, report: FileReport, how: _Opening, above: tuple[str, ...]) -> Scan:
    """The same of a file in the containers `above`."""
    head = yield Extent(0, min(SNIFF_BYTES, size))
    kind, container = detect(head, size), detect_container(head, size)
    if kind is not None and container is not None:
        raise UnsupportedError(f"the file starts as {kind.NAME} and as {container.NAME} at once")
    if container is not None:
        return (yield from reading_ahead(_open(container, size, report, how, above), size))
    if kind is None:
        report.foreign = recognise_foreign(head, size)
        return ()
    report.format = kind.NAME
    report.keys_are_names = kind.KEYS_ARE_NAMES
    whole = CHECKS.get(kind.NAME, kind.scan) if how.thorough else kind.scan
    report.arrays = yield from whole(size)
    if not report.arrays:  # a vocabulary in GGUF, data in msgpack: a file like any other
        report.format, report.keys_are_names = None, False
    return report.arrays


def _open(container: Container, size: int, report: FileReport, how: _Opening, above: tuple[str, ...]) -> Scan:
    """The scan of a container's members, one after the other."""
    if len(above) >= MAX_DEPTH:
        raise UnsupportedError(
            f"it is a {container.NAME} archive in {len(above)} others, more than is read",
            hint="unpack the outer ones",
        )
    found: list[FoundArray] = []
    members: list[MemberReport] = []
    for member in (yield from container.members(size)):
        how.left -= 1
        if how.left < 0:
            raise UnsupportedError(f"the archives in it have more than {MAX_MEMBERS} members")
        if how.skip("/".join((*above, member.path))):
            continue
        inner, extent = FileReport(), member.extent
        members.append(MemberReport(member.path, extent, inner))
        if not extent.length:
            continue
        try:
            scan = _identify(extent.length, inner, how, (*above, member.path))
            arrays = yield from shifted(scan, extent.start)
        except (UnsupportedError, CorruptError) as error:
            raise type(error)(f"{member.path}: {error.message}", hint=error.hint) from error
        found += [_in_container(array, member.path, extent.start) for array in arrays]
    report.members = tuple(members)
    report.format = container.NAME if any(member.report.format for member in members) else None
    return tuple(found)


def _in_container(array: FoundArray, path: str, start: int) -> FoundArray:
    runs = tuple(replace(run, extent=run.extent.shift(start)) for run in array.runs)
    key = f"{path}:{array.key}" if array.key else path
    return replace(array, key=key, extent=array.extent.shift(start), runs=runs)


def arrays_of(file: PayloadFile, report: FileReport) -> list[FileArrays]:
    """What was found in a file of the payload, to be named: of itself, or of each member."""
    found = []
    if report.arrays:
        found.append(FileArrays(file.path, file.offset, report.arrays, report.keys_are_names))
    for member in report.members:
        found += arrays_of(_as_file(file, member), member.report)
    return found


@dataclass(frozen=True, slots=True)
class Unread:
    """A file, or a member of a container, in which there are no arrays that gdist reads."""

    path: str
    nbytes: int
    foreign: Foreign | None = None


def unread_of(file: PayloadFile, report: FileReport) -> list[Unread]:
    """Of a file of the payload what has no format: itself, or some of its members."""
    if report.members:
        return [row for m in report.members for row in unread_of(_as_file(file, m), m.report)]
    return [] if report.format else [Unread(file.path, file.length, report.foreign)]


def _as_file(file: PayloadFile, member: MemberReport) -> PayloadFile:
    return PayloadFile(f"{file.path}/{member.path}", file.offset + member.extent.start, member.extent.length)


def files_within(file: PayloadFile, report: FileReport) -> Iterator[PayloadFile]:
    """A file of the payload, and every file in it."""
    yield file
    for member in report.members:
        yield from files_within(_as_file(file, member), member.report)


@dataclass(slots=True)
class _Running:
    file: int
    scan: Scan
    report: FileReport
    wanted: Extent = field(default_factory=lambda: Extent(0, 0))


class HeaderScan:
    """Scans files over a torrent source; `arrived` collects every piece verified meanwhile."""

    def __init__(self, source: HeaderSource, tick: Callable[[], None] = lambda: None):
        self._source = source
        self._tick = tick
        self.arrived: set[int] = set()
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached = max(1, min(CACHED_PIECES, CACHED_BYTES // source.payload.piece_length))
        self._buffer = memoryview(bytearray(source.payload.piece_length))

    def run(self, files: Sequence[int], skip: Skip = lambda path: False) -> dict[int, FileReport]:
        """What each of these files (indices in the payload) holds; empty files are reported as nothing.

        `skip` names members of containers that are left out, by their path from the payload's root.

        Raises:
            UnsupportedError, CorruptError: from a format, with the file's name.
            NoPeersError, StalledError: when the pieces do not come.
        """
        payload = self._source.payload
        reports = {file: FileReport() for file in files}
        running = []
        for file in files:
            if payload.files[file].length:
                path = payload.files[file].path
                scan = identify(payload.files[file].length, reports[file], skip_below(path, skip))
                running.append(_Running(file, scan, reports[file]))
        for run in running:
            run.wanted = next(run.scan)
        likely = [piece for run in running for piece in _ends(payload, run.file)]
        asked: set[int] = set()
        while running:
            needed = [p for run in running for p in self._pieces(run)] + likely
            missing = [piece for piece in dict.fromkeys(needed) if piece not in self.arrived]
            if not set(missing) <= asked or not asked:
                self._source.want(missing, urgent=missing)
                asked = set(missing)
            running = [run for run in running if not self._advance(run)]
            if running and not any(self._ready(run) for run in running):
                self.arrived.update(self._source.verified(0.5))
                self._source.check_alive()
                self._tick()
        return reports

    def _pieces(self, run: _Running) -> range:
        return self._source.payload.pieces_of(run.wanted.shift(self._source.payload.files[run.file].offset))

    def _ready(self, run: _Running) -> bool:
        return all(piece in self.arrived for piece in self._pieces(run))

    def _advance(self, run: _Running) -> bool:
        """Feeds a scan what has arrived; True once it is finished."""
        path = self._source.payload.files[run.file].path
        while self._ready(run):
            try:
                found = self.read(run.file, run.wanted)
            except PieceLost:
                return False
            try:
                run.wanted = run.scan.send(found)
            except StopIteration:
                return True
            except (UnsupportedError, CorruptError) as error:
                hint = advice_on_fault(path, error)
                raise type(error)(f"{path}: {error.message}", hint=hint, file=path) from error
        return False

    def fetch_all(self, files: Sequence[int]) -> dict[int, bytes]:
        """All bytes of some small files, whose pieces are waited for together."""
        payload = self._source.payload
        pieces = dict.fromkeys(p for f in files for p in payload.pieces_of(payload.files[f].extent))
        self._wait_for(tuple(pieces))
        return {file: self.fetch(file) for file in files}

    def _wait_for(self, pieces: Sequence[int]) -> None:
        asked: set[int] = set()
        while missing := [piece for piece in pieces if piece not in self.arrived]:
            if not asked >= set(missing):
                self._source.want(missing, urgent=missing)
                asked = set(missing)
            self.arrived.update(self._source.verified(0.5))
            self._source.check_alive()
            self._tick()

    def fetch(self, file: int, extent: Extent | None = None) -> bytes:
        """All bytes of one small file, or those of an extent of it."""
        whole = extent or Extent(0, self._source.payload.files[file].length)
        pieces = self._source.payload.pieces_of(whole.shift(self._source.payload.files[file].offset))
        self._wait_for(pieces)
        try:
            return self.read(file, whole)
        except PieceLost:
            return self.fetch(file, extent)

    def read(self, file: int, extent: Extent) -> bytes:
        """Bytes of a file whose pieces have all arrived."""
        payload = self._source.payload
        where = extent.shift(payload.files[file].offset)
        data = bytearray()
        for piece in payload.pieces_of(where):
            inside = payload.extent_of(piece)
            common = inside.intersect(where)
            assert common is not None
            data += self._part(piece, common.shift(-inside.start))
        return bytes(data)

    def _part(self, piece: int, part: Extent) -> bytes:
        """Part of a piece; where it costs as much as all of it, of a piece that is kept for a while.

        Raises:
            PieceLost: it has to arrive again.
        """
        extents = (part,) if self._source.gives_parts else ()
        if extents or piece not in self._cache:
            try:
                found = self._source.read_piece(piece, self._buffer, (), extents)
            except PieceLost:
                self.arrived.discard(piece)
                raise
            if extents:
                return bytes(found[part.start : part.stop])
            if len(self._cache) >= self._cached:
                self._cache.popitem(last=False)
            self._cache[piece] = bytes(found)
        self._cache.move_to_end(piece)
        return self._cache[piece][part.start : part.stop]


def skip_below(path: str, skip: Skip) -> Skip:
    """What to leave out of the container at a path, where `skip` speaks of whole paths."""
    return lambda member: skip(f"{path}/{member}")


def _ends(payload: Payload, file: int) -> Iterable[int]:
    pieces = payload.pieces_of(payload.files[file].extent)
    return (pieces[0], pieces[-1])
