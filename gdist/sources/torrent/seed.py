"""Serving a torrent whose files are already here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from gdist.errors import CorruptError
from gdist.sources.torrent.join import gather_links, start
from gdist.sources.torrent.metadata import load_torrent, read_metadata, written_files
from gdist.sources.torrent.options import TorrentOptions, TransferStats, session_settings
from gdist.sources.torrent.session import Session, record_status

# A port that was named and is taken is an error; libtorrent would take the next one.
_ONE_PORT: dict[str, object] = {"max_retry_port_bind": 0, "listen_system_port_fallback": False}


class Seeder:
    """Serves the files below `directory` while it is entered; `port` is where.

    With `check` the files are hashed on entry, which raises `CorruptError` when a piece is missing or
    wrong; without it a wrong piece is noticed by those who receive it. `paths` has the place of each file of
    the payload where they do not lie below `directory` under the torrent's names.
    """

    def __init__(
        self,
        torrent: bytes,
        directory: Path,
        options: TorrentOptions | None = None,
        *,
        check: bool = True,
        paths: Sequence[Path] = (),
    ) -> None:
        self._torrent = torrent
        self._directory = directory
        self._options = options or TorrentOptions()
        self._check = check
        self._paths = paths
        self._session: Session | None = None

    def __enter__(self) -> Self:
        params = load_torrent(self._torrent)
        metadata = read_metadata(params)
        if self._paths:  # absolute names count from no directory
            places = (os.path.abspath(path) for path in self._paths)
            params.renamed_files = dict(zip(written_files(params), places, strict=True))
        links = gather_links(params, self._options)
        self._session = session = Session(session_settings(self._options) | _ONE_PORT)
        try:
            # Seed mode would hash a piece when it is first asked for; trusting is saying that we have it.
            trusted = None if self._check else range(metadata.payload.pieces)
            self._handle, had = start(
                session, params, links, self._options, self._directory, trusted, lambda: None
            )
            if len(had) < metadata.payload.pieces:
                raise CorruptError(
                    f"{metadata.payload.pieces - len(had)} of {metadata.payload.pieces} pieces below "
                    f"{self._directory} are missing or differ from the torrent",
                    hint="fetch them again, or make a new torrent",
                )
            session.check_listening(self._options.listen)
        except BaseException:
            session.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._session.close()

    @property
    def port(self) -> int:
        """The TCP port peers can connect to."""
        assert self._session is not None, "the seeder has not been entered"
        with self._session.changed:
            return self._session.swarm.port

    def stats(self) -> TransferStats:
        """What has been served."""
        assert self._session is not None, "the seeder has not been entered"
        status = self._handle.status(0)
        with self._session.changed:
            record_status(self._session.swarm, status)
            return self._session.swarm.stats
