"""`gdist plan`: what a fetch would cost, before it is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gdist import api
from gdist.cli.files import check_target, write_whole
from gdist.cli.hosts import hosts_option
from gdist.cli.jsonlines import plain
from gdist.cli.options import (
    fetch_options,
    given,
    hint_at_quotes,
    mesh_options,
    option,
    output_options,
    reading_options,
    source_argument,
    swarm_options,
)
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.words import count, table
from gdist.core.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from gdist.core.bound import Bound
    from gdist.run.plan import PlanReport


@click.command()
@source_argument
@mesh_options()
@hosts_option("All N hosts.", default=1, show_default=True)
@option("--wan", metavar="RATE", help="Into the cluster, for example 10Gb/s: gives the least time.")
@option("--lan", metavar="RATE", help="Of each host, in and out.  [default: no limit]")
@option(
    "--interconnect",
    metavar="RATE",
    help="Of each host, for XLA's collectives: says that JAX runs there.  [default: no JAX]",
)
@option(
    "--piece-length", metavar="SIZE", help="Stands in where the release's is not known.  [default: 16MiB]"
)
@option("--report", metavar="FILE.html", help="Write the plan as one page, with pictures and tables.")
@fetch_options
@reading_options
@swarm_options
@output_options
def plan(source: str, output: Output, report: str | None, **values: Any) -> None:  # Any: options by name
    """Show what a fetch of SOURCE would cost each host.

    Bytes kept and fetched, pieces, disk and memory, for all N hosts or for one (--host I/N); what every host
    would bring in if no byte came into the cluster twice; what each of the two exchanges between hosts moves,
    and which one is recommended; and, with --wan, the least time that any way of doing it can take. A known
    release is planned without a network. --report shows it as a page that needs nothing but itself.
    """
    target = check_target("--report", report, (".html", ".htm"))
    with hint_at_quotes(source, values), stop_on_signals() as stop, output.progress() as observe:
        found = api.plan(source, details=bool(target), observe=observe, stop=stop, **given(values))
    result = _plain(replace(found, details=None))
    result |= {
        "bound": _bound(found.bound),
        "exchanges": [{**_plain(cost), "bound": _bound(cost.bound)} for cost in found.exchanges],
    }
    del result["details"]  # the page has them
    if target:
        from gdist.pictures.plan_page import plan_page

        write_whole(target, plan_page(found), output)
        result["report"] = str(target)
    output.result("\n".join(_lines(found)), result)


def _lines(report: PlanReport) -> Iterator[str]:
    assumed = (
        " (assumed: the release's own is not known without its torrent)"
        if report.piece_length_assumed
        else ""
    )
    tensors, files = count(report.tensors, "tensor"), count(report.files, "file")
    yield f"{report.name}: {tensors}, {files}, {format_bytes(report.nbytes)}"
    yield f"mesh {report.mesh}; pieces of {report.piece_length} bytes{assumed}"
    yield ""
    head = ("host", "keeps", "fetches", "ratio", "pieces", "shards", "disk", "memory", "once")
    rows = [
        (
            f"{cost.host.index}/{cost.host.count}",
            format_bytes(cost.bytes_wanted),
            format_bytes(cost.bytes_touched),
            f"{cost.amplification:.2f}",
            str(cost.pieces),
            str(cost.shards),
            format_bytes(cost.disk),
            format_bytes(cost.memory),
            format_bytes(cost.wan_share) if report.complete else "-",
        )
        for cost in report.hosts
    ]
    yield from table(head, rows, right=range(1, 9))
    yield ""
    yield "keeps: bytes of its shards; fetches: the pieces that hold them; disk: the most it takes"
    if report.complete and len(report.hosts) > 1:
        total = sum(cost.bytes_touched for cost in report.hosts)
        yield (
            f"all {len(report.hosts)} hosts fetch {format_bytes(total)}; the distinct pieces are "
            f"{format_bytes(report.union)}: 'once' is each host's part when none comes in twice"
        )
    if report.exchanges:
        yield from _exchanges(report)
    if report.bound:
        least, limit = format_seconds(report.bound.seconds), report.bound.limit.value
        yield f"least time: {least}, set by the {limit} ({_terms(report.bound)})"
    elif not report.complete:
        yield "the least time needs all hosts: --hosts N instead of --host I/N"
    yield from (f"note: {note}" for note in report.notes)


def _exchanges(report: PlanReport) -> Iterator[str]:
    """What moves between hosts, in both ways, and which one to ask for."""
    yield ""
    head = ("exchange", "wan", "lan", "lan, most of a host", "least time")
    rows = [
        (
            cost.exchange.value,
            format_bytes(cost.wan),
            format_bytes(cost.lan),
            format_bytes(cost.lan_most),
            f"{format_seconds(cost.bound.seconds)}, {cost.bound.limit.value}" if cost.bound else "-",
        )
        for cost in report.exchanges
    ]
    yield from table(head, rows, right=range(1, 4))
    if report.choice:
        yield f"recommended: --exchange {report.choice.exchange.value} ({report.choice.reason})"
    yield ""


def _terms(bound: Bound) -> str:
    return ", ".join(f"{term.value} {format_seconds(seconds)}" for term, seconds in bound.terms)


def _plain(value: object) -> dict[str, object]:
    result = plain(value)
    assert isinstance(result, dict)
    return result


def _bound(bound: Bound | None) -> dict[str, object] | None:
    if bound is None:
        return None
    terms = {limit.value.replace(" ", "_"): seconds for limit, seconds in bound.terms}
    return {"seconds": bound.seconds, "limit": bound.limit.value.replace(" ", "_"), "terms": terms}
