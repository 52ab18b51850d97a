"""`gdist verify`: every byte of a store against its digests, offline."""

from __future__ import annotations

import sys
import time

import click

from gdist.cli.jsonlines import plain
from gdist.cli.options import option, output_options
from gdist.cli.output import Output
from gdist.core.units import format_bytes, format_rate, format_seconds
from gdist.errors import CorruptError

NAMED = 20  # faults in the error's own sentence; all are listed before it


@click.command()
@click.argument("store", type=click.Path())
@option("--workers", type=click.IntRange(1), metavar="N", help="Threads that read.  [default: one a core]")
@output_options
def verify(store: str, output: Output, workers: int | None) -> None:
    """Verify STORE, a directory or URL, offline: every shard against its digests.

    Names every shard that is missing, cut or wrong, and ends with exit code 12 then.
    """
    from gdist.run.verify import verify as run

    start = time.monotonic()
    with output.progress() as observe:
        report = run(store, workers=workers, observe=observe)
    seconds = time.monotonic() - start
    for fault in report.faults:
        if not output.json:
            sys.stderr.write(f"{fault}\n")
    if not report.ok:
        paths = list(dict.fromkeys(fault.path for fault in report.faults))
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        raise CorruptError(
            f"{len(report.faults)} faults in {report.store}: {', '.join(paths[:NAMED])}{more}",
            hint="delete the store, or what is wrong in it, and fetch again",
        )
    absent = (
        f"; parts of hosts {', '.join(map(str, report.absent_hosts))} are not here"
        if report.absent_hosts
        else ""
    )
    output.say(
        f"{report.shards} shards, {report.assets} other files, {format_bytes(report.nbytes)} are right, in "
        f"{format_seconds(seconds)} ({format_rate(report.nbytes / max(seconds, 1e-3))}){absent}"
    )
    values = plain(report)
    assert isinstance(values, dict)
    output.result(report.store, {**values, "ok": True, "seconds": seconds})
