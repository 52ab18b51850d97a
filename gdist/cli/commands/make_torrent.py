"""`gdist make-torrent`: a .torrent file and a magnet for files on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from gdist import api
from gdist.cli.options import making_options, option, output_options
from gdist.cli.output import Output
from gdist.errors import RequestError, translate


@click.command("make-torrent")
@click.argument("path", type=click.Path(readable=False))
@option(
    "--output", "target", type=click.Path(), metavar="FILE", help="Where it goes.  [default: PATH.torrent]"
)
@option("--force", is_flag=True, help="Replace a file of other content.")
@making_options
@output_options
def make_torrent(path: str, output: Output, target: str | None, force: bool, **values: Any) -> None:
    """Make PATH.torrent of a file or directory, and print the magnet.

    Equal content gives an equal file: no date and no name of a tool go in.
    """
    source = Path(path).absolute()
    where = Path(target) if target else source.with_name(f"{source.name}.torrent")
    try:
        total = sum(file.stat().st_size for file in (source, *source.rglob("*")) if file.is_file())
    except OSError as error:
        raise translate(error, f"reading {error.filename}") from error
    with output.bar("hashing", total) as show:
        torrent, magnet = api.make_torrent(
            path, progress=lambda done, pieces: show(total * done // pieces), **values
        )
    if where.exists() and not force and where.read_bytes() != torrent:
        raise RequestError(f"{where} exists and has other content", hint="give --output FILE, or --force")
    try:
        partial = where.with_name(f"{where.name}.part")
        partial.write_bytes(torrent)
        os.replace(partial, where)
    except OSError as error:
        raise translate(error, f"writing {where}") from error
    output.say(f"wrote {where}")
    output.result(magnet, {"magnet": magnet, "torrent": str(where), "nbytes": len(torrent)})
