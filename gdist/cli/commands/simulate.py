"""`gdist simulate`: how a cluster of any size would fetch a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from gdist import api
from gdist.cli.hosts import hosts_option
from gdist.cli.jsonlines import plain
from gdist.cli.options import (
    DTYPES,
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
from gdist.core.taking import AT_ONCE
from gdist.core.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from gdist.run.simulate import SimulationReport


@click.command()
@source_argument
@mesh_options(host=False, hosts=True)
@hosts_option("How many hosts there are.", required=True)
@option("--wan", metavar="RATE", required=True, help="Into the cluster, for example 100Gb/s.")
@option("--lan", metavar="RATE", help="Of each host's link, in and out.  [default: no limit]")
@option("--host-wan", metavar="RATE", help="Into one host from outside.  [default: its link]")
@option("--disk", metavar="RATE", help="That each host writes.  [default: no limit]")
@option("--gateways", metavar="all|LIST", help="Hosts that may use the outside: 0-7,12.  [default: all]")
@option("--cores", type=click.IntRange(1), default=16, show_default=True, metavar="N", help="Of each host.")
@option("--cpu", multiple=True, metavar="KIND=SECONDS", help="What a GB costs; may be repeated.")
@option("--latency", default="0.5ms", show_default=True, metavar="TIME", help="From host to host, one way.")
@option(
    "--round", metavar="TIME", help="Between two answers of the coordinator.  [default: as it makes them]"
)
@option(
    "--pulls",
    type=click.IntRange(1),
    default=AT_ONCE,
    show_default=True,
    metavar="N",
    help="Pieces that a host takes and places at once.",
)
@option("--slow", multiple=True, metavar="K@SHARE", help="K hosts with so much of their links: 2@0.05.")
@option("--fail", multiple=True, metavar="K@TIME", help="K hosts that are gone after a time: 1@30s.")
@option(
    "--sample",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="N",
    help="Follow so many hosts one by one.",
)
@option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of what is left to chance.")
@option(
    "--piece-length", metavar="SIZE", help="Stands in where the release's is not known.  [default: 16MiB]"
)
@option("--dtype", type=click.Choice(DTYPES), help="As of the fetch.  [default: as they are stored]")
@reading_options
@swarm_options
@output_options
def simulate(source: str, output: Output, **values: Any) -> None:  # Any: options by name
    """Show how N hosts would fetch SOURCE together, by a model of cluster fetch.

    When all have what they need and when the first layer is everywhere, what crosses the WAN and the LAN, and
    what binds when. Nothing is fetched; a known release needs no network. Kinds of --cpu: receive, hash,
    place, write, serve, take, in CPU seconds a gigabyte.
    """
    with hint_at_quotes(source, values), stop_on_signals() as stop, output.progress() as observe:
        found = api.simulate(source, observe=observe, stop=stop, **given(values))
    output.result("\n".join(_lines(found)), _json(found))


def _lines(report: SimulationReport) -> Iterator[str]:
    outcome, setting = report.outcome, report.setting
    assumed = " (assumed)" if report.piece_length_assumed else ""
    yield (
        f"{report.name} on {count(setting.hosts, 'host')}, mesh {report.mesh}; "
        f"{count(report.pieces, 'piece')} of {report.piece_length} bytes{assumed}"
    )
    followed = len(outcome.hosts) + outcome.lost
    few = f", {followed} of them followed" if followed < setting.hosts else ""
    near = "" if report.exact else " (groups that need nearly the same were joined)"
    yield f"{count(report.groups, 'group')} of hosts that need the same{few}{near}"
    yield ""
    bound = outcome.bound
    least = f"least time {format_seconds(bound.seconds)}, set by the {bound.limit.value}"
    median = outcome.median_seconds
    tail = f"slowest / median {outcome.seconds / median:.2f}" if median else ""
    each = f"{format_bytes(outcome.lan / setting.hosts)} a host"
    rows = (
        ("all hosts have all", format_seconds(outcome.seconds), f"{outcome.share:.2f} of the {least}"),
        ("all have the first layer", format_seconds(outcome.first_seconds), ""),
        ("the median host has all", format_seconds(median), tail),
        ("over the WAN", format_bytes(outcome.wan), f"{outcome.ratio:.3f} of what has to come in"),
        ("between hosts", format_bytes(outcome.lan), each),
        ("held for others", format_bytes(outcome.held_most), "at most, by one host"),
    )
    yield from table(rows[0], rows[1:], right=(1,))
    if outcome.lost:
        yield f"{count(outcome.lost, 'host')} failed; the times are those of the others"
    yield ""
    yield from _spans(report)


def _spans(report: SimulationReport) -> Iterator[str]:
    """What bound when, and how much of each resource all hosts together used."""
    from gdist.core.simulation.usage import joined

    spans = joined(report.outcome.spans)
    if not spans:
        return
    head = ("from", "to", "binds", *(used.resource.value for used in spans[0].used))
    rows = [
        (
            format_seconds(span.start),
            format_seconds(span.stop),
            span.binds,
            *(f"{used.all:.0%}" for used in span.used),
        )
        for span in spans
    ]
    yield from table(head, rows, right=(0, 1, *range(3, len(head))))


def _json(report: SimulationReport) -> dict[str, object]:
    outcome = report.outcome
    result = plain(report)
    assert isinstance(result, dict)
    setting = result["setting"]
    assert isinstance(setting, dict)
    finite = {name: None if value == float("inf") else value for name, value in setting.items()}
    bound = {limit.value.replace(" ", "_"): seconds for limit, seconds in outcome.bound.terms}
    told = result["outcome"]
    assert isinstance(told, dict)
    told |= {
        "seconds": outcome.seconds,
        "first_seconds": outcome.first_seconds,
        "median_seconds": outcome.median_seconds,
        "share": outcome.share,
        "ratio": outcome.ratio,
        "bound": {
            "seconds": outcome.bound.seconds,
            "limit": outcome.bound.limit.value.replace(" ", "_"),
            "terms": bound,
        },
    }
    return {**result, "setting": finite}
