"""`gdist verify`: every byte of a store against its digests, offline."""

from __future__ import annotations

import time
from math import prod

import click

from gdist.cli.jsonlines import JsonLines, plain
from gdist.cli.options import option, output_options
from gdist.cli.output import Output
from gdist.cli.streams import say
from gdist.cli.words import count
from gdist.core.units import format_bytes, format_rate, format_seconds
from gdist.errors import CorruptError
from gdist.events import Event

NAMED = 20  # faults in the error's own sentence; all are listed before it


@click.command()
@click.argument("store", type=click.Path(readable=False))
@option("--workers", type=click.IntRange(1), metavar="N", help="Threads that read.  [default: one a core]")
@output_options
def verify(store: str, output: Output, workers: int | None) -> None:
    """Verify STORE, a directory or URL, offline: every shard against its digests.

    Names every shard that is missing, cut or wrong, and ends with exit code 12 then.
    """
    from gdist.run.verify import ShardVerified, check_access
    from gdist.run.verify import verify as run

    check_access(store)
    start, done = time.monotonic(), 0
    with output.bar("verifying", _shard_bytes(store)) as show:

        def observe(event: Event) -> None:
            nonlocal done
            assert isinstance(event, ShardVerified)
            done += event.nbytes
            show(done)
            if output.json:
                JsonLines()(event)

        report = run(store, workers=workers, observe=observe)
    seconds = time.monotonic() - start
    values = plain(report)
    assert isinstance(values, dict)
    values |= {"ok": report.ok, "seconds": seconds}
    if not report.ok:
        if output.json:
            JsonLines().write("report", values)
        else:
            say("".join(f"{fault}\n" for fault in report.faults))
        paths = list(dict.fromkeys(fault.path for fault in report.faults))
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        raise CorruptError(
            f"{count(len(report.faults), 'fault')} in {report.store}: {', '.join(paths[:NAMED])}{more}",
            hint="delete the store, or what is wrong in it, and fetch again",
        )
    absent = (
        f"; parts of hosts {', '.join(map(str, report.absent_hosts))} are not here"
        if report.absent_hosts
        else ""
    )
    rate = format_rate(report.nbytes / max(seconds, 1e-3))
    output.say(
        f"{count(report.shards, 'shard')}, {count(report.assets, 'other file')}, "
        f"{format_bytes(report.nbytes)} are right, in {format_seconds(seconds)} ({rate}){absent}"
    )
    output.result(report.store, values)


def _shard_bytes(store: str) -> int:
    """Bytes of tensors in the shards that are here."""
    from gdist.stores import files_of
    from gdist.stores.manifests import read_manifests

    tensors = read_manifests(files_of(store)).joined.tensors
    return sum(len(t.shards) * prod(t.grid.shard) * t.dtype.itemsize for t in tensors)
