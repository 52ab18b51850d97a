"""`gdist seed`: serves files that are here until it is told to stop."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gdist import api
from gdist.cli.jsonlines import JsonLines, plain
from gdist.cli.options import given, option, output_options, swarm_options
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.words import count
from gdist.core.units import format_bytes, format_rate
from gdist.errors import RequestError, translate

if TYPE_CHECKING:
    from gdist.sources.torrent import TransferStats

LINE_SECONDS = 10.0


@click.command()
@click.argument("torrent", type=click.Path(readable=False))
@click.argument("directory", type=click.Path(readable=False))
@option("--advertise", metavar="HOST", help="Put HOST and the listening port into the magnet.")
@option("--check/--no-check", default=True, help="Hash the files first.  [default: check]")
@swarm_options
@output_options
def seed(
    torrent: str, directory: str, output: Output, advertise: str | None, check: bool, **values: Any
) -> None:
    """Serve DIRECTORY, the files of the .torrent file TORRENT, until Ctrl-C.

    DIRECTORY is what make-torrent was given, the directory above it, or a store that was fetched with
    --payload keep. The magnet is printed once peers can connect.
    """
    from gdist.core.magnet import format_magnet
    from gdist.sources.torrent import Seeder, magnet_of

    try:
        content = Path(torrent).read_bytes()
    except OSError as error:
        raise RequestError(
            f"cannot read {torrent!r}: {error.strerror}", hint="give a .torrent file"
        ) from error
    base = _find(content, Path(directory))
    options = api.torrent_options(**given(values))
    with stop_on_signals() as stop, Seeder(content, base, options, check=check) as seeder:
        peers = [(advertise, seeder.port)] if advertise else []
        magnet = format_magnet(magnet_of(content, peers))
        output.result(magnet, {"magnet": magnet, "port": seeder.port})
        output.say(f"serving {base} at port {seeder.port}; Ctrl-C ends it")
        shown = time.monotonic()
        while not stop.wait(0.5):
            if time.monotonic() - shown >= LINE_SECONDS:
                shown = time.monotonic()
                _tell(seeder.stats(), output)
        _tell(seeder.stats(), output)


def _tell(stats: TransferStats, output: Output) -> None:
    if output.json:
        values = plain(stats)
        assert isinstance(values, dict)
        JsonLines().write("serving", values)
    else:
        total = format_bytes(stats.uploaded)
        output.say(f"out {format_rate(stats.upload_rate)}   {total} in all   peers {stats.peers}")


def _find(torrent: bytes, directory: Path) -> Path:
    """The directory that the torrent's paths count from."""
    from gdist.sources.torrent.metadata import load_torrent, read_metadata

    try:
        metadata = read_metadata(load_torrent(torrent))
        files = list(zip(metadata.paths, metadata.payload.files, strict=True))
        own = Path(os.path.abspath(directory))
        tried = [directory / "payload", directory]
        if own.name == metadata.name:
            tried.append(own.parent)
        directory.stat()
        for base in tried:
            if all(_has(base / path, file.length) for path, file in files):
                return base
    except FileNotFoundError as error:
        raise RequestError(f"{str(directory)!r} does not exist", hint="give the torrent's files") from error
    except OSError as error:
        raise translate(error, f"looking into {directory}") from error
    raise RequestError(
        f"{str(directory)!r} does not hold the {count(len(files), 'file')} of {metadata.name!r} in full",
        hint="give the directory that make-torrent was given, under the name it had, or a store fetched with "
        "--payload keep",
    )


def _has(path: Path, nbytes: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == nbytes
    except (FileNotFoundError, NotADirectoryError):
        return False
