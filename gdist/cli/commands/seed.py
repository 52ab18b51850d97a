"""`gdist seed`: serves files that are here until it is told to stop."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gdist import api
from gdist.cli.jsonlines import JsonLines, plain
from gdist.cli.options import Place, given, option, output_options, swarm_options
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.words import count
from gdist.core.units import format_bytes, format_rate
from gdist.errors import RequestError, translate

if TYPE_CHECKING:
    from gdist.sources.torrent import PieceServer, Seeder, TorrentOptions, TransferStats

LINE_SECONDS = 10.0


@click.command()
@click.argument("source", nargs=-1, required=True, type=Place())
@option("--advertise", metavar="HOST", help="Put HOST and the listening port into the magnet.")
@option("--check/--no-check", default=True, help="Hash all of it first.  [default: check]")
@swarm_options
@output_options
def seed(source: tuple[str, ...], output: Output, advertise: str | None, check: bool, **values: Any) -> None:
    """Serve a store, or the files of a torrent, until Ctrl-C.

    SOURCE is a store (several, where hosts wrote it apart), or a .torrent file and its files' directory.

    A view, and a store that was fetched with --payload keep, are served from the torrent's own files. Of any
    other store that holds every byte of its torrent the pieces are rebuilt as they are asked for, without a
    second copy, and checked by their hashes before they are sent; where bytes are missing it is said which.

    The directory of a .torrent's files is what make-torrent was given, or the directory above it. The magnet
    is printed once peers can connect.
    """
    options = api.torrent_options(**given(values))
    with stop_on_signals() as stop:
        if len(source) == 2 and not Path(source[0]).is_dir() and not _is_store(source[0]):
            server, content, what = _files(*source, options, check)
            with server:
                _serve(server, content, options, what, output, advertise, stop)
            return
        if len(source) == 1 and Path(source[0]).is_file():
            raise RequestError(f"{source[0]!r} is a file", hint="give the directory of its files too")
        from gdist.run.seeding import check_pieces, open_held, serve

        with open_held(source) as held:
            if check:
                with output.bar("checking", held.pieces * held.piece_length) as show:
                    check_pieces(held, progress=lambda done: show(done * held.piece_length), stop=stop)
            with serve(held, options) as served:
                how = (
                    f"{held.where}, from {held.base}" if held.base else f"{held.where}, rebuilt as asked for,"
                )
                _serve(served, held.torrent, options, how, output, advertise, stop)


def _is_store(address: str) -> bool:
    """True for what a second place of a store may be of: no file that is read as a .torrent."""
    from gdist.kvstore import local_path

    return local_path(address) is None


def _files(torrent: str, directory: str, options: TorrentOptions, check: bool) -> tuple[Seeder, bytes, str]:
    """What serves the files of a .torrent file, not entered yet."""
    from gdist.sources.torrent import Seeder

    try:
        content = Path(torrent).read_bytes()
    except OSError as error:
        raise RequestError(
            f"cannot read {torrent!r}: {error.strerror}", hint="give a .torrent file"
        ) from error
    base = _find(content, Path(directory))
    return Seeder(content, base, options, check=check), content, str(base)


def _serve(
    server: Seeder | PieceServer,
    content: bytes,
    options: TorrentOptions,
    what: str,
    output: Output,
    advertise: str | None,
    stop: threading.Event,
) -> None:
    """Tells how to come to what is served, and from time to time how much was, until `stop`."""
    from gdist.core.magnet import format_magnet
    from gdist.sources.torrent import magnet_of

    own = magnet_of(content, [(advertise, server.port)] if advertise else [])
    trackers = dict.fromkeys((*own.trackers, *options.trackers))  # those given here are asked and told too
    web_seeds = dict.fromkeys((*own.web_seeds, *options.web_seeds))
    magnet = format_magnet(replace(own, trackers=tuple(trackers), web_seeds=tuple(web_seeds)))
    output.result(magnet, {"magnet": magnet, "port": server.port})
    output.say(f"serving {what} at port {server.port}; Ctrl-C ends it")
    shown = time.monotonic()
    while not stop.wait(0.5):
        if time.monotonic() - shown >= LINE_SECONDS:
            shown = time.monotonic()
            _tell(server.stats(), output)
    _tell(server.stats(), output)


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
