"""`gdist view`: an index that makes a finished download a store, in place."""

from __future__ import annotations

from typing import Any

import click

from gdist import api
from gdist.cli.options import Place, given, naming_options, option, output_options
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.words import count
from gdist.core.units import format_bytes, format_seconds


@click.command()
@click.argument("payload", type=Place())
@click.argument("dest", required=False, type=Place())
@naming_options
@option(
    "--select",
    multiple=True,
    metavar="REGEX",
    help="Only tensors in whose name REGEX is found; may be repeated.",
)
@option(
    "--partial", is_flag=True, help="Leave out tensors that do not lie in the files as they are; say which."
)
@option(
    "--trust",
    is_flag=True,
    help="Read nothing but headers: the index is there in seconds, and has no digests to verify by.",
)
@option(
    "--torrent",
    type=Place(),
    metavar="FILE",
    help="Hold every piece against this .torrent file first; the view then knows what it is of.",
)
@option("--workers", type=click.IntRange(1), metavar="N", help="Threads that read.  [default: one a core]")
@output_options
def view(payload: str, dest: str | None, output: Output, **values: Any) -> None:  # Any: by name
    """Make the finished download PAYLOAD a store, without copying a byte.

    PAYLOAD is a directory or a file in any format that gdist reads, from any torrent client. An index is put
    into it, or into DEST with a link to PAYLOAD: TensorStore, Orbax, zarr-python and gdist then read tensors
    from the payload's own files, which stay as they are and can go on being seeded. Every byte is read once
    for its digest. Run the same line again: what is there is left as it is. The store's path is printed.
    """
    with stop_on_signals() as stop, output.progress() as observe:
        done = api.view(payload, dest, observe=observe, stop=stop, **given(values))
    if values["trust"] and not done.already:
        size, files = format_bytes(done.manifest.nbytes), count(len(done.manifest.files), "file")
        output.say(f"a view of {size} in {files}, without digests, in {format_seconds(done.seconds)}")
    if done.left_out:
        output.say(f"{count(len(done.left_out), 'tensor')} left out: {'; '.join(done.left_out[:5])}")
    output.result(
        done.path,
        {
            "path": done.path,
            "already": done.already,
            "nbytes": done.manifest.nbytes,
            "tensors": len(done.manifest.tensors),
            "files": len(done.manifest.files),
            "left_out": list(done.left_out),
            "seconds": done.seconds,
        },
    )
