"""`gdist bootstrap check`: what would go wrong on this host, before a byte is fetched."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from gdist import api
from gdist.cli.commands.cluster import SCHEDULERS
from gdist.cli.jsonlines import JsonLines
from gdist.cli.options import Place, option, output_options
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.streams import put
from gdist.core.units import parse_bytes, parse_memory, parse_seconds
from gdist.errors import GdistError, InterruptedRun

if TYPE_CHECKING:
    from gdist.run.environment import EnvironmentReport, Finding


@click.command()
@click.argument("dest", required=False, type=Place())
@option(
    "--cluster",
    type=click.Choice(SCHEDULERS),
    default="auto",
    show_default=True,
    help="Whose environment says which host this is.",
)
@option("--host", metavar="I/N", help="This host, counted from 0, of all.  [default: the scheduler's]")
@option("--coordinator", metavar="HOST:PORT", help="Host 0's address.  [default: the scheduler's]")
@option("--hosts", metavar="LIST|@FILE", help="The addresses of all hosts, in order.")
@option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="Of the hosts.  [default: 7611]")
@option("--memory", default="1GiB", show_default=True, metavar="SIZE", help="As the fetch will be given.")
@option("--need", metavar="SIZE", help="What the fetch takes of the disk, as gdist plan says.")
@option("--together", metavar="TIME", help="Meet the other hosts, which run this too, within so long.")
@option("--secret", metavar="TEXT|@FILE", help="Shared by the hosts of the job; with --together.")
@option("--encrypt", is_flag=True, help="Speak TLS; with --together.")
@output_options
def check(dest: str | None, output: Output, **values: Any) -> None:  # Any: options by name
    """See whether this host can take part in a fetch to DEST.

    Which host this is and why; ports, names, who can be reached; disk, file system, memory, open files, MTU,
    proxies, clock. Run it with --together on all hosts at once, and they also compare secrets, versions and
    clocks, and see that large answers get through. Ends with the exit code of what would go wrong first.
    """
    from gdist.run.environment import EnvironmentOptions, check_environment

    together, need = values["together"], values["need"]
    with stop_on_signals() as stop:

        def check_stop() -> None:
            if stop.is_set():
                raise InterruptedRun("the check was asked to stop")

        member = _membership(values)
        output.host = 0 if isinstance(member, GdistError) else member.host.index
        options = EnvironmentOptions(
            member,
            dest,
            port=values["port"],
            memory=parse_memory(values["memory"]),
            needed=parse_bytes(need, "need") if need else None,
            secret=api.read_secret(values["secret"]),
            encrypt=values["encrypt"],
            together=parse_seconds(together, "together") if together else None,
        )
        report = check_environment(options, check_stop)
    _tell(report, output)


def _membership(values: dict[str, Any]) -> Any:  # Any: a Membership, which is not loaded for this
    try:
        names = ("cluster", "host", "coordinator", "hosts")
        return api.find_host(**{name: values[name] for name in names if values[name]})
    except GdistError as error:
        return error


def _tell(report: EnvironmentReport, output: Output) -> None:
    error = report.error
    result = {"ok": error is None, "findings": [finding.to_json() for finding in report.findings]}
    text = "\n".join(_lines(report.findings))
    if error is None:
        output.result(text, result)
        return
    if output.json:
        JsonLines(output.host).write("report", result)
    else:
        put(f"{text}\n")
    raise error


def _lines(findings: tuple[Finding, ...]) -> Iterator[str]:
    """A line for each finding, and one below it where there is something to do."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        yield f"{finding.status.value:<4}  {finding.check:<{width}}  {finding.what}"
        if finding.hint:
            margin = " " * (width + 8)
            yield from textwrap.wrap(
                finding.hint, 100, initial_indent=f"{margin}-> ", subsequent_indent=f"{margin}   "
            )
