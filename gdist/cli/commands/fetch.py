"""`gdist fetch`: from a magnet to a store."""

from __future__ import annotations

from typing import Any

import click

from gdist import api
from gdist.cli.options import (
    CODECS,
    Place,
    fetch_options,
    given,
    hint_at_quotes,
    http_option,
    mesh_options,
    option,
    output_options,
    reading_options,
    source_argument,
    swarm_options,
)
from gdist.cli.output import Output
from gdist.cli.serving import served
from gdist.cli.signals import stop_on_signals
from gdist.cli.words import kept_nbytes


@click.command()
@source_argument
@click.argument("dest", required=False, type=Place())
@mesh_options()
@fetch_options
@option(
    "--codec", type=click.Choice(CODECS), default="none", show_default=True, help="Compression of chunks."
)
@option(
    "--layout",
    type=click.Choice(api.LAYOUTS),
    default="zarr",
    show_default=True,
    help="Shards; a view of the torrent's own files, which are kept and not copied; or both.",
)
@reading_options
@option(
    "--work-dir",
    type=Place(),
    metavar="DIR",
    help="Where unfinished shards of a bucket wait.  [default: the user's cache]",
)
@swarm_options
@http_option
@output_options
def fetch(
    source: str,
    dest: str | None,
    output: Output,
    http: str | None,
    **values: Any,  # Any: options by name
) -> None:
    """Fetch SOURCE into a store at DEST, while it downloads.

    SOURCE is a known release (grok-1), a magnet (quote it), an info-hash, a .torrent file or URL. DEST is a
    directory or s3://, gs:// URL (default: the source's name, here). Run the same line again and it goes on
    where it stopped; when the store is complete it returns at once. DEST is printed at the end.
    """
    host = api.read_host(values["host"])
    output.host = host.index if host else 0
    with (
        hint_at_quotes(source, values),
        stop_on_signals() as stop,
        output.progress() as observe,
        served(http, dest, host, observe) as tell,
    ):
        done = api.fetch(source, dest, observe=tell, stop=stop, **given(values))
    output.result(
        done.path,
        {
            "path": done.path,
            "already": done.already,
            "nbytes": done.manifest.nbytes,
            "kept_nbytes": kept_nbytes(done.manifest),
            "tensors": len(done.manifest.tensors),
            "info_hash": done.manifest.source.info_hash,
            "seconds": done.seconds,
        },
    )
