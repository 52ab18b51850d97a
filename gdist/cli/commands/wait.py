"""`gdist wait`: until a store, or some of it, can be read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gdist import api
from gdist.cli import words
from gdist.cli.jsonlines import JsonLines
from gdist.cli.options import Place, option, output_options, watch_options
from gdist.cli.output import Output
from gdist.core.units import format_bytes, parse_seconds

if TYPE_CHECKING:
    from gdist.run.watch import Sight

LINE_SECONDS = 10.0  # as `fetch` does where there is no terminal


@click.command()
@click.argument("dest", type=Place())
@option(
    "--ready",
    multiple=True,
    metavar="WHAT",
    separators=r"\s+",
    help="What to wait for: layers:0-7, embedding, head, tensors:REGEX; may be repeated.  [default: all]",
)
@option("--timeout", metavar="TIME", help="Give up after.  [default: when the fetch does]")
@option(
    "--start-timeout",
    metavar="TIME",
    default="1m",
    show_default=True,
    help="Give up when no fetch is at work for.",
)
@watch_options
@output_options
def wait(
    dest: str,
    output: Output,
    ready: tuple[str, ...],
    timeout: str | None,
    start_timeout: str,
    host: str | None,
    work_dir: str | None,
) -> None:
    """Wait until DEST can be read; a fetch elsewhere on this machine, or on a shared file system, brings it.

    Ends as the fetch ends: with 0 and DEST on standard output, or with its exit code and error. A fetch that
    was killed, or did not begin, is given up after --start-timeout, with 11. It may start before the fetch.
    """
    from gdist.run.waiting import wait as run

    sights = run(
        dest,
        ready,
        host=api.read_host(host),
        work=Path(work_dir) if work_dir else None,
        timeout=None if timeout is None else parse_seconds(timeout, "timeout"),
        start_seconds=parse_seconds(start_timeout, "start-timeout"),
        show=_Lines(output),
    )
    hosts = [{**sight.status.to_json(), "running": sight.running} for sight in sights]
    complete = all(sight.complete for sight in sights)
    output.result(dest, {"path": dest, "complete": complete, "hosts": hosts})


class _Lines:
    """A line every ten seconds."""

    def __init__(self, output: Output):
        self._output, self._next = output, time.monotonic() + LINE_SECONDS

    def __call__(self, sights: Sequence[Sight]) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LINE_SECONDS
        if self._output.json:
            JsonLines(self._output.host).write("status", {"hosts": [s.status.to_json() for s in sights]})
        self._output.say(_text(sights))


def _text(sights: Sequence[Sight]) -> str:
    if not sights:
        return "nothing is there yet"
    placed, wanted = (
        sum(getattr(s.status, f"bytes_{kind}") for s in sights) for kind in ("placed", "wanted")
    )
    first = min((s for s in sights), key=lambda sight: sight.status.share)
    if not wanted:
        return words.STAGES[first.status.stage]
    tensors = f"{first.status.tensors_ready}/{first.status.tensors}"
    return (
        f"{words.share(placed, wanted)}  {format_bytes(placed)} of {format_bytes(wanted)}   tensors {tensors}"
    )
