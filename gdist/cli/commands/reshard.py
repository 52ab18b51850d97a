"""`gdist reshard`: from a store or a checkpoint to a store on another mesh."""

from __future__ import annotations

from typing import Any

import click

from gdist import api
from gdist.cli.options import CODECS, Place, given, mesh_options, naming_options, option, output_options
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.words import kept_nbytes


@click.command()
@click.argument("source", nargs=-1, required=True, type=Place())
@click.argument("dest", type=Place())
@mesh_options(job=True)
@option(
    "--memory",
    default="1GiB",
    show_default=True,
    metavar="SIZE",
    help="Bound of what is held while converting.",
)
@option(
    "--codec", type=click.Choice(CODECS), default="none", show_default=True, help="Compression of chunks."
)
@naming_options
@option(
    "--work-dir",
    type=Place(),
    metavar="DIR",
    help="Where unfinished shards of a bucket wait.  [default: the user's cache]",
)
@output_options
def reshard(source: tuple[str, ...], dest: str, output: Output, **values: Any) -> None:  # Any: by name
    """Write SOURCE as a store at DEST, cut for another mesh.

    SOURCE is a store (directory or URL; several, where hosts wrote it apart), a directory of files that
    gdist reads, or an Orbax or Zarr directory. Without --rules tensors are split as SOURCE was. Without
    --host one host does it all; else each does its part, and none waits for another: --host job on all hosts
    of a scheduler's job. Run the same line again and it goes on where it stopped; when the store is complete
    it returns at once. DEST is printed at the end.
    """
    output.host = api.sharing_host(values["host"]).index
    with stop_on_signals() as stop, output.progress() as observe:
        done = api.reshard(source, dest, observe=observe, stop=stop, **given(values))
    output.result(
        done.path,
        {
            "path": done.path,
            "already": done.already,
            "nbytes": done.manifest.nbytes,
            "kept_nbytes": kept_nbytes(done.manifest),
            "read_nbytes": done.bytes_read,
            "beyond_nbytes": done.bytes_beyond,
            "tensors": len(done.manifest.tensors),
            "info_hash": done.manifest.source.info_hash,
            "seconds": done.seconds,
        },
    )
