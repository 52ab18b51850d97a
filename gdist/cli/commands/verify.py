"""`gdist verify`: every byte of a store against its digests, offline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import click

from gdist import api
from gdist.cli.jsonlines import JsonLines, plain
from gdist.cli.options import Place, given, option, output_options, swarm_options
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.streams import say
from gdist.cli.words import count
from gdist.core.units import format_bytes, format_rate, format_seconds
from gdist.errors import CorruptError, RequestError
from gdist.events import Event

if TYPE_CHECKING:
    from gdist.run.verify import Fault

NAMED = 20  # faults in the error's own sentence; all are listed before it


@click.command()
@click.argument("store", type=Place())
@option("--workers", type=click.IntRange(1), metavar="N", help="Threads that read.  [default: one a core]")
@option("--repair", is_flag=True, help="Fetch the pieces of what is damaged, and mend it in place.")
@option(
    "--from",
    "copies",
    multiple=True,
    metavar="PLACE",
    help="With --repair: a store of the same torrent, or a directory with its files; may be repeated.",
)
@option("--offline", is_flag=True, help="With --repair: from --from alone, not from the swarm.")
@swarm_options
@output_options
def verify(
    store: str,
    output: Output,
    workers: int | None,
    repair: bool,
    copies: tuple[str, ...],
    offline: bool,
    **values: Any,
) -> None:
    """Verify STORE, a directory or URL, offline: every shard against its digests.

    Names every shard that is missing, cut or wrong, and ends with exit code 12 then.

    With --repair what is damaged is mapped to the pieces of the torrent that it was made of. Of these, only
    such as the store cannot rebuild itself are fetched: from places given by --from first, then from the
    swarm and its web seeds. Each is checked by its hash. What was fetched, and from where, is said.
    """
    from gdist.run.verify import ShardVerified, check_access, way_out
    from gdist.run.verify import verify as run

    check_access(store)
    if repair:
        _repair(store, output, workers, copies, offline, values)
        return
    if copies or offline:
        raise RequestError("--from and --offline go with --repair", hint="add --repair")
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
    told = plain(report)
    assert isinstance(told, dict)
    told |= {"ok": report.ok, "seconds": seconds}
    if not report.ok:
        mending = "gdist verify --repair fetches the pieces of what is damaged"
        hint = way_out(store, report.faults, mending)
        raise _told(report.faults, f"in {report.store}", hint, told, output)
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
    output.result(report.store, told)


def _repair(
    store: str,
    output: Output,
    workers: int | None,
    copies: tuple[str, ...],
    offline: bool,
    values: dict[str, Any],  # Any: options by name
) -> None:
    from gdist.run.repair import repair as run
    from gdist.run.repair_sources import PieceTaken
    from gdist.run.verify import ShardVerified, way_out

    start, done = time.monotonic(), 0
    with stop_on_signals() as stop, output.bar("verifying", _shard_bytes(store)) as show:

        def observe(event: Event) -> None:
            nonlocal done
            if isinstance(event, ShardVerified):
                done += event.nbytes
                show(done)
            if output.json and isinstance(event, ShardVerified | PieceTaken):
                JsonLines()(event)

        report = run(
            store,
            copies=copies,
            swarm=not offline,
            torrent=api.torrent_options(**given(values)),
            workers=workers,
            observe=observe,
            stop=stop,
        )
    told = plain(report)
    assert isinstance(told, dict)
    told |= {"ok": report.ok, "seconds": time.monotonic() - start}
    for place in report.mended:
        output.say(f"mended {place}")
    for name, paths in report.copied:
        output.say(f"copied {', '.join(paths)} from {name}")
    if report.fetched:
        origins = ", ".join(f"{count(len(pieces), 'piece')} from {name}" for name, pieces in report.fetched)
        output.say(f"fetched {format_bytes(report.nbytes)}: {origins}")
    elif report.ok and report.mended and not report.copied:
        output.say("nothing had to be fetched")
    if not report.ok:
        mending = "give --from another store of this torrent, or its files with the .torrent beside them"
        mending += ", or leave --offline out" if offline else ""
        hint = way_out(store, report.left, mending)
        raise _told(report.left, f"in {report.store} could not be mended", hint, told, output)
    if not report.mended:
        output.say("nothing is damaged")
    output.result(report.store, told)


def _told(
    faults: Sequence[Fault], what: str, hint: str, report: dict[str, object], output: Output
) -> CorruptError:
    """The error for faults, all of which are told first."""
    if output.json:
        JsonLines().write("report", report)
    else:
        say("".join(f"{fault}\n" for fault in faults))
    paths = list(dict.fromkeys(fault.path for fault in faults))
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return CorruptError(f"{count(len(faults), 'fault')} {what}: {', '.join(paths[:NAMED])}{more}", hint=hint)


def _shard_bytes(store: str) -> int:
    """Bytes of tensors in the shards that are here."""
    from gdist.stores import files_of
    from gdist.stores.manifests import read_manifests

    tensors = read_manifests(files_of(store)).joined.tensors
    return sum(len(t.shards) * prod(t.grid.shard) * t.dtype.itemsize for t in tensors)
