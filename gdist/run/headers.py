"""Finds the arrays of all files of a torrent by fetching only the pieces that hold headers.

Every file's scan is a generator that asks for extents (see `gdist.formats`); all of them run side by side,
so that hundreds of files wait for the network together and not one after the other. The first and the last
piece of each file are asked for at once: they hold all of most headers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gdist.core.extent import Extent
from gdist.core.payload import Payload, PayloadFile
from gdist.core.placer import Placement
from gdist.core.profile import FileArrays
from gdist.core.tensor import FoundArray
from gdist.errors import CorruptError, PieceLost, UnsupportedError
from gdist.formats import SNIFF_BYTES, Scan
from gdist.formats.detect import CHECKS, detect, recognise_foreign


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


@dataclass(slots=True)
class FileReport:
    """What a file turned out to be: its format's name and arrays, or none and `foreign`'s name if known."""

    format: str | None = None
    arrays: tuple[FoundArray, ...] = ()
    foreign: str | None = None
    keys_are_names: bool = False


def identify(size: int, report: FileReport, *, thorough: bool = False) -> Scan:
    """A scan of a file of any kind: sniffs, then runs its format's own scan; fills in the report.

    A `thorough` one also reads what the file says again beside its payloads; see `CHECKS`.
    """
    head = yield Extent(0, min(SNIFF_BYTES, size))
    kind = detect(head, size)
    if kind is None:
        report.foreign = recognise_foreign(head, size)
        return ()
    report.format = kind.NAME
    report.keys_are_names = kind.KEYS_ARE_NAMES
    whole = CHECKS.get(kind.NAME, kind.scan) if thorough else kind.scan
    report.arrays = yield from whole(size)
    return report.arrays


def arrays_of(file: PayloadFile, report: FileReport) -> list[FileArrays]:
    """What was found in a file of the payload, to be named."""
    if not report.arrays:
        return []
    return [FileArrays(file.path, file.offset, report.arrays, report.keys_are_names)]


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

    def run(self, files: Sequence[int]) -> dict[int, FileReport]:
        """What each of these files (indices in the payload) holds; empty files are reported as nothing.

        Raises:
            UnsupportedError, CorruptError: from a format, with the file's name.
            NoPeersError, StalledError: when the pieces do not come.
        """
        payload = self._source.payload
        reports = {file: FileReport() for file in files}
        running = []
        for file in files:
            if payload.files[file].length:
                scan = identify(payload.files[file].length, reports[file])
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
                raise type(error)(f"{path}: {error.message}", hint=error.hint, file=path) from error
        return False

    def fetch(self, file: int) -> bytes:
        """All bytes of one small file."""
        whole = Extent(0, self._source.payload.files[file].length)
        pieces = self._source.payload.pieces_of(whole.shift(self._source.payload.files[file].offset))
        while missing := [piece for piece in pieces if piece not in self.arrived]:
            self._source.want(missing, urgent=missing)
            self.arrived.update(self._source.verified(0.5))
            self._source.check_alive()
            self._tick()
        try:
            return self.read(file, whole)
        except PieceLost:
            return self.fetch(file)

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


def _ends(payload: Payload, file: int) -> Iterable[int]:
    pieces = payload.pieces_of(payload.files[file].extent)
    return (pieces[0], pieces[-1])
