"""`gdist export`: a checkpoint's files, out of a store."""

from __future__ import annotations

import time

import click

from gdist.cli.options import Place, option, output_options, rename_option
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.words import count
from gdist.core.units import format_bytes, format_rate, format_seconds
from gdist.events import Event

KINDS = ("payload", "safetensors")


@click.command()
@click.argument("store", nargs=-1, required=True, type=Place())
@click.argument("dest", type=Place())
@option(
    "--to",
    type=click.Choice(KINDS),
    default="payload",
    show_default=True,
    help="The torrent's own files, or safetensors files of the tensors.",
)
@option(
    "--file-size",
    default="5GB",
    show_default=True,
    metavar="SIZE",
    help="Most bytes of a safetensors file, but for one tensor.",
)
@rename_option
@output_options
def export(
    store: tuple[str, ...], dest: str, output: Output, to: str, file_size: str, rename: str | None
) -> None:
    """Write the files that STORE came from, or safetensors, below the directory DEST.

    STORE is a directory or URL; several, where hosts wrote it apart. The torrent's own files are the same
    byte for byte, each piece checked by its hash; where the store does not hold every byte, it is said which
    are missing. Safetensors files are checked by the store's digests, and have an index where they are
    several; --rename gives the tensors other names. DEST is empty or does not exist, and is printed at the
    end.
    """
    from gdist.run.export import export as run
    from gdist.run.output_files import Exported

    start = time.monotonic()
    with stop_on_signals() as stop, output.bar("exporting", _nbytes(store)) as show:

        def observe(event: Event) -> None:
            assert isinstance(event, Exported)
            show(event.nbytes)

        done = run(store, dest, to=to, file_bytes=file_size, rename=rename, observe=observe, stop=stop)
    seconds = time.monotonic() - start
    rate = format_rate(done.nbytes / max(seconds, 1e-3))
    output.say(
        f"{count(len(done.files), 'file')}, {format_bytes(done.nbytes)}, "
        f"in {format_seconds(seconds)} ({rate})"
    )
    values = {"path": done.path, "files": list(done.files), "nbytes": done.nbytes, "seconds": seconds}
    output.result(done.path, values)


def _nbytes(store: tuple[str, ...]) -> int:
    from gdist.stores import files_of
    from gdist.stores.manifests import read_manifests

    manifest = read_manifests(*map(files_of, store)).joined
    return max(manifest.source.nbytes, manifest.nbytes)
