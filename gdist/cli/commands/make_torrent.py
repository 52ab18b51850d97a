"""`gdist make-torrent`: a .torrent file and a magnet for files on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from gdist import api
from gdist.cli.options import Place, making_options, option, output_options
from gdist.cli.output import Output
from gdist.durable import write_atomically
from gdist.errors import FilesystemError, RequestError, translate

MAX_TORRENT_BYTES = 256 * 2**20  # what is larger is none


@click.command("make-torrent")
@click.argument("path", type=Place())
@option("--output", "target", type=Place(), metavar="FILE", help="Where it goes.  [default: PATH.torrent]")
@option("--force", is_flag=True, help="Replace a file of other content.")
@making_options
@output_options
def make_torrent(path: str, output: Output, target: str | None, force: bool, **values: Any) -> None:
    """Make PATH.torrent of a file or directory, and print the magnet.

    Equal content gives an equal file: no date and no name of a tool go in.
    """
    from gdist.sources.torrent import check_named  # libtorrent comes with it

    source = Path(path).absolute()
    check_named(source)
    where = Path(target) if target else source.with_name(f"{source.name}.torrent")
    before = _check_target(where, source, force=force)  # hashing may take hours
    try:
        total = sum(file.stat().st_size for file in (source, *source.rglob("*")) if file.is_file())
    except OSError as error:
        raise translate(error, f"reading {error.filename}") from error
    in_the_way = RequestError(f"{where} exists and has other content", hint="give --output FILE, or --force")
    if before is not None and api.torrent_differs(before, path, **values):
        raise in_the_way
    with output.bar("hashing", total) as show:
        torrent, magnet = api.make_torrent(
            path, progress=lambda done, pieces: show(total * done // pieces), **values
        )
    if before not in (None, torrent):
        raise in_the_way
    write_atomically(where, torrent)
    output.say(f"wrote {where}")
    output.result(magnet, {"magnet": magnet, "torrent": str(where), "nbytes": len(torrent)})


def _check_target(where: Path, source: Path, *, force: bool) -> bytes | None:
    """What lies where the torrent goes, None with `force`; and that it can be written there.

    Raises:
        RequestError: no file can be there, something else than a file is, or it is part of `source`.
        FilesystemError: the file system refuses.
    """
    hint = "give the name of a file with --output"
    try:
        if where.exists() and not where.is_file():
            what = "a directory" if where.is_dir() else "no regular file"
            raise RequestError(f"{where} is {what}", hint=hint)
        if not where.parent.is_dir():
            raise RequestError(f"{where.parent} is no directory", hint=hint)
        if where.resolve().is_relative_to(source.resolve()):
            raise RequestError(
                f"what is made cannot lie in what the torrent is of: {where} is in {source}",
                hint="give another --output",
            )
        if not os.access(where.parent, os.W_OK | os.X_OK):
            raise FilesystemError(f"{where.parent} cannot be written to", hint=hint)
        if force or not where.exists():
            return None
        return where.read_bytes() if where.stat().st_size <= MAX_TORRENT_BYTES else b""
    except OSError as error:
        raise translate(error, f"writing {where}") from error
