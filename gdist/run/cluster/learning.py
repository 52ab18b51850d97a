"""What the torrent holds, found out once for all hosts.

One host, the scout, fetches the metadata; the others get it from inside. Where no manifest knows the release,
the headers of its files have to be read too, from both ends of every file: the scout reads them, and all who
may use the outside bring those pieces in, as they later do with all the rest. Pieces are counted as they lie
then, since nobody knows the loading order yet. What was brought in is kept for the fetch itself. A host that
read them in an earlier run gives them to all, and nobody reads on.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gdist.errors import RefusedError
from gdist.run.catalogue import Catalogue
from gdist.run.cluster.held import Held, read_held
from gdist.run.cluster.link import Link
from gdist.run.cluster.source import ClusterSource
from gdist.run.cluster.station import Station
from gdist.run.opening import Opening
from gdist.sinks.local import write_atomically
from gdist.sources.torrent import TorrentOptions, TorrentSource

LOOK_SECONDS = 0.5

Json = dict[str, Any]  # Any: documents of the wire


@dataclass(frozen=True, slots=True)
class Learned:
    """The open torrent, the pieces of it that are here, and what it holds."""

    opening: Opening
    station: Station
    outside: TorrentSource
    held: Held
    record: Path
    hold: int | None

    def source(self, order: Sequence[int], phase: int) -> ClusterSource:
        """Its pieces and those of the other hosts, counted in this order."""
        pieces = ClusterSource(
            self.outside,
            self.station.link,
            self.held,
            order,
            self.record,
            phase=phase,
            stall_seconds=self.opening.torrent.stall_seconds,
            hold=self.hold,
        )
        self.station.pieces = pieces
        return pieces


def learn(
    opening: Opening, station: Station, record: Path, *, gateway: bool, hold: int | None
) -> tuple[Learned, Catalogue]:
    """Joins the swarm, and learns what the torrent holds; `record` is where held pieces are written down.

    Raises:
        RefusedError: the others fetch another torrent.
        GdistError: of opening a torrent and reading its headers.
    """
    link = station.link
    finder = _Finder(opening.tick, link)
    opening = replace(opening, tick=finder)
    torrent = opening.torrent if gateway else replace(opening.torrent, outside=False)
    outside, found = _open(opening, finder, torrent, link, read_held(record))
    try:
        station.downloaded = lambda: outside.downloaded
        if not opening.resolved.info_hash.names(outside.info_hash):
            raise RefusedError(
                "the other hosts fetch another torrent", hint="run the same line on every host"
            )
        held = Held(outside, opening.dest.work)
        held.add(outside.had)
        learned = Learned(opening, station, outside, held, record, hold)
        return learned, _catalogue(learned, finder, found)
    except BaseException:
        outside.close()
        raise


class _Known(Exception):
    """Another host has told meanwhile what the torrent holds."""


class _Finder:
    """A fetch's tick that ends, by raising `_Known`, what is done inside `finds` once it need not be."""

    def __init__(self, tick: Callable[[], None], link: Link):
        self._tick, self._link = tick, link
        self._finds = False

    def __call__(self) -> None:
        self._tick()
        if self._finds and self._link.inside.catalogue:
            raise _Known

    @contextmanager
    def finds(self) -> Iterator[None]:
        """While this host finds out what the torrent holds."""
        self._finds = True
        try:
            yield
        finally:
            self._finds = False


def _open(
    opening: Opening, finder: _Finder, options: TorrentOptions, link: Link, pieces: Collection[int]
) -> tuple[TorrentSource, Json | None]:
    """The open torrent, its metadata from inside or from outside; and what was known of it inside."""
    knows = isinstance(opening.spec, bytes) and opening.headers_path.exists()
    while True:
        found = link.catalogue(knows=knows)
        spec = opening.spec if found is None else base64.b64decode(found["torrent"])
        outside = TorrentSource(spec, options, opening.observe, tick=opening.tick)
        try:
            with finder.finds() if found is None else nullcontext():
                opening.open_torrent(outside, pieces)
            return outside, found
        except _Known:
            outside.close()
        except BaseException:
            outside.close()
            raise


def _catalogue(learned: Learned, finder: _Finder, found: Json | None) -> Catalogue:
    """What the torrent holds: what was `found` inside, or what this host is to find out."""
    opening, link, outside = learned.opening, learned.station.link, learned.outside
    own = {"torrent": base64.b64encode(outside.torrent_file).decode(), "headers": None, "whole": False}
    if found is None:
        link.publish(own)
    if found is None or not found["whole"]:
        pieces = learned.source(range(outside.payload.pieces), 0)
        if found is not None:
            found = _help(pieces, link, opening)
        while found is None:
            try:
                with finder.finds():
                    catalogue = opening.catalogue(pieces)
            except _Known:
                found = _help(pieces, link, opening)
            else:
                path = opening.headers_path
                headers = path.read_text() if path.exists() else None
                link.publish({**own, "headers": headers, "whole": True})
                return replace(catalogue, arrived=frozenset())
    link.keep(found)
    if found["headers"] is not None:
        write_atomically(opening.headers_path, str(found["headers"]).encode(), sync=False)
    return replace(opening.catalogue(outside), arrived=frozenset())


def _help(pieces: ClusterSource, link: Link, opening: Opening) -> Json | None:
    """Brings in what the scout needs until all is known; None when this host is to be the scout."""
    pieces.want(())
    looked = 0.0
    while True:
        pieces.serve()
        opening.tick()
        if link.inside.catalogue or time.monotonic() - looked > LOOK_SECONDS:
            looked = time.monotonic()
            found = link.look()
            if found is not None:
                return None if found.get("scout") else found
