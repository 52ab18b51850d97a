"""`gdist status`: where the runs stand that write to a store."""

from __future__ import annotations

from pathlib import Path

import click

from gdist import api
from gdist.cli.jsonlines import JsonLines
from gdist.cli.options import Place, option, output_options, watch_options
from gdist.cli.output import Output
from gdist.cli.streams import put
from gdist.core.ready import Readiness, check_ready
from gdist.errors import TransferError


@click.command()
@click.argument("dest", type=Place())
@option(
    "--ready",
    multiple=True,
    metavar="WHAT",
    separators=r"\s+",
    help="Only tell whether this can be read: all, layers:0-7, embedding, head, tensors:REGEX; "
    "may be repeated. The exit code is 0 or 11.",
)
@watch_options
@output_options
def status(dest: str, output: Output, ready: tuple[str, ...], host: str | None, work_dir: str | None) -> None:
    """Tell where a fetch into DEST stands, also of one that runs elsewhere or has ended.

    Works from what is on disk, for any fetch; rates come from the agent of a cluster's fetch. With --ready it
    is a probe: it ends with 0 when everything asked for can be read, with 11 when not yet, and with the exit
    code of a fetch that has failed.
    """
    from gdist.cli.status_words import ready_text, run_text
    from gdist.run.watch import Watch, all_ready

    for what in ready:
        check_ready(what)
    with Watch(dest, api.read_host(host), Path(work_dir) if work_dir else None, ask=not ready) as watch:
        sights = watch.look()
    if not sights:
        raise TransferError(
            f"there is no store at {dest}, and no fetch that writes one", hint="is this where it writes to?"
        )
    asked = [all_ready(sights, what) for what in ready]
    values = {
        "path": dest,
        "complete": all(sight.complete for sight in sights),
        "running": any(sight.running for sight in sights),
        "hosts": [{**sight.status.to_json(), "running": sight.running} for sight in sights],
        "ready": [readiness.to_json() for readiness in asked],
    }
    if all(readiness.ready for readiness in asked):
        text = "\n".join(map(ready_text, asked)) if asked else run_text(dest, sights)
        output.result(text, values)
        return
    if output.json:
        JsonLines(output.host).write("status", values)
    else:
        put("".join(f"{ready_text(readiness)}\n" for readiness in asked))
    for sight in sights:
        if sight.failure is not None:
            raise sight.failure.error(f"the run that wrote to {dest}")
    raise _not_ready(dest, [readiness for readiness in asked if not readiness.ready])


def _not_ready(dest: str, asked: list[Readiness]) -> TransferError:
    names = " and ".join(readiness.what for readiness in asked)
    return TransferError(f"{names} of {dest} cannot be read yet", hint="gdist wait waits for it")
