"""`gdist manifest`: source manifests, held against what they speak of."""

from __future__ import annotations

import click

from gdist import api
from gdist.cli.commands.publish import size_of
from gdist.cli.jsonlines import JsonLines, plain
from gdist.cli.options import Place, option, output_options
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.streams import put
from gdist.core.text import count
from gdist.kvstore import local_path

SHOWN = 20  # of what is open


@click.group()
def manifest() -> None:
    """Check source manifests; publish makes them."""


@manifest.command()
@click.argument("manifest", type=Place())
@click.argument("target", type=Place(), metavar="PAYLOAD|STORE")
@option(
    "--verify-key",
    metavar="KEY",
    help="The public key, 64 hex digits or a PEM file, that must have signed it.",
)
@option(
    "--digests/--no-digests", default=True, help="Read what has a digest and compare.  [default: digests]"
)
@output_options
def check(manifest: str, target: str, output: Output, verify_key: str | None, digests: bool) -> None:
    """Hold MANIFEST, a file, URL or release's name, against a payload on disk or a store.

    Of a payload: files, lengths, arrays as the files' headers have them, and all digests that are given. Of a
    store: the torrent it was made of, and names, shapes, types and digests of its tensors. Names all that
    differs, and ends with exit code 12 then; says what could not be compared.
    """
    with stop_on_signals() as stop, output.bar("checking", _size(target)) as show:
        report = api.check_manifest(
            manifest,
            target,
            verify_key=verify_key,
            digests=digests,
            progress=lambda done, total: show(done),
            stop=stop,
        )
    values = plain(report)
    assert isinstance(values, dict)
    values["ok"] = report.ok
    for text in report.open[:SHOWN]:
        output.say(f"not compared: {text}")
    if len(report.open) > SHOWN:
        output.say(f"not compared: {len(report.open) - SHOWN} more")
    if not report.ok:
        if output.json:
            JsonLines().write("report", values)
        else:
            put("\n".join(report.faults) + "\n")
        raise report.error()
    compared = (
        f"{count(report.files, 'file')}, {count(report.arrays, 'array')}, {count(report.digests, 'digest')}"
    )
    output.result(f"{report.where} is what the manifest of {report.name} says: {compared} compared", values)


def _size(target: str) -> int:
    path = local_path(target)
    return size_of(path) if path is not None and path.exists() else 0
