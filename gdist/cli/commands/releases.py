"""`gdist releases`: the releases gdist knows by name."""

from __future__ import annotations

import click

from gdist import releases as known
from gdist.cli.options import output_options
from gdist.cli.output import Output
from gdist.cli.words import table
from gdist.core.units import format_bytes


@click.command()
@output_options
def releases(output: Output) -> None:
    """List the releases gdist knows by name."""
    found = [known.known_release(name) for name in known.release_names()]
    manifests = [manifest for manifest in found if manifest is not None]
    rows = [(m.name, format_bytes(m.nbytes), m.licence, m.title) for m in manifests]
    values = [
        {
            "name": m.name,
            "title": m.title,
            "licence": m.licence,
            "nbytes": m.nbytes,
            "magnet": m.magnet,
            "info_hash": m.info_hash_v1 or m.info_hash_v2,
        }
        for m in manifests
    ]
    output.result(
        "\n".join(table(("name", "bytes", "licence", "title"), rows, right=(1,))), {"releases": values}
    )
