"""`gdist cluster`: one line on every host of a cluster."""

from __future__ import annotations

from typing import Any

import click

from gdist import api
from gdist.cli.commands.cluster_status import status
from gdist.cli.files import check_target
from gdist.cli.options import (
    CODECS,
    Place,
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
from gdist.cli.serving import reported, tell_no_report
from gdist.cli.signals import stop_on_signals
from gdist.cli.words import kept_nbytes
from gdist.core.exchanges import EXCHANGES

SCHEDULERS = (
    "auto",
    "manual",
    "alone",
    "openmpi",
    "slurm",
    "jax",
    "tpu",
    "kubernetes",
    "skypilot",
    "ray",
    "torchrun",
    "mpich",
)
REPORTS = (".html", ".htm")


class _Exchange(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2
    """One of the exchanges; who asks a fetch to choose is told who can."""

    def convert(  # Any: as in click
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if value == "auto":
            self.fail(
                "there is no 'auto': a fetch does not know its network beforehand; 'gdist plan' recommends "
                "swarm (the default) or collective, to be given to every host",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


@click.group()
def cluster() -> None:
    """Fetch with all hosts of a cluster at once."""


cluster.add_command(status)


@cluster.command()
@source_argument
@click.argument("dest", required=False, type=Place())
@mesh_options(alone="the scheduler's")
@option(
    "--cluster",
    type=click.Choice(SCHEDULERS),
    default="auto",
    show_default=True,
    help="Whose environment says which host this is.",
)
@option("--coordinator", metavar="HOST:PORT", help="Host 0's address.  [default: the scheduler's]")
@option("--hosts", metavar="LIST|@FILE", help="The addresses of all hosts, in order; only these may connect.")
@option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="What this host listens on.  [default: 7611 on host 0, any on others]",
)
@option("--secret", metavar="TEXT|@FILE", help="Shared by the hosts of the job.")
@option("--encrypt", is_flag=True, help="Encrypt what goes between hosts (TLS from the secret).")
@option(
    "--gateways",
    metavar="LIST",
    default="all",
    show_default=True,
    help="Hosts that may use the outside: 0,1 or 0-3.",
)
@option(
    "--exchange",
    type=_Exchange(EXCHANGES),
    default="swarm",
    show_default=True,
    help="How hosts get what others brought in; the same on all.",
)
@option("--max-lan", metavar="RATE", help="Of what this host gives to others.  [default: no limit]")
@option("--hold", metavar="SIZE", help="Pieces kept for others, at most.  [default: what the disk can spare]")
@option("--deadline", metavar="TIME", help="End, wherever the fetch stands.  [default: none]")
@option(
    "--min-hosts",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Fewer than N hosts at the deadline are an error, even when this one is done.",
)
@option(
    "--linger",
    metavar="TIME",
    default="10m",
    show_default=True,
    help="How long a host that is done waits for hosts that never came.",
)
@option("--http", metavar="ADDRESS:PORT", help="Serve /livez, /readyz and /metrics there.")
@option("--report", metavar="FILE.html", help="On the coordinator: a page about the run, at its end.")
@fetch_options
@option(
    "--codec", type=click.Choice(CODECS), default="none", show_default=True, help="Compression of chunks."
)
@reading_options
@option(
    "--work-dir",
    type=Place(),
    metavar="DIR",
    help="Where unfinished shards of a bucket wait.  [default: the user's cache]",
)
@swarm_options
@output_options
def fetch(
    source: str,
    dest: str | None,
    output: Output,
    report: str | None,
    **values: Any,  # Any: options by name
) -> None:
    """Fetch SOURCE with all hosts of the job; each keeps its part at DEST.

    The same line on every host, in any order, at any time, safe to repeat. Which host this is comes from
    Slurm, Kubernetes, TPU VMs, MPI, torchrun, SkyPilot, Ray or JAX, or from --host I/N and --coordinator.
    Every byte comes into the cluster once, by the host whose line is free; each host takes from the others
    just what its shards need. One process a host does the work: other ranks wait for it.
    """
    target = check_target("--report", report, REPORTS)
    asked = given(values)
    names = ("cluster", "host", "coordinator", "hosts")
    output.host = api.find_host(**{name: asked[name] for name in names if name in asked}).host.index
    with (
        hint_at_quotes(source, values),
        reported(target, output) as recorder,
        stop_on_signals() as stop,
        output.progress() as observe,
    ):
        done = api.cluster_fetch(source, dest, recorder=recorder, observe=observe, stop=stop, **asked)
        tell_no_report(recorder, done.already, observe)
    output.result(
        done.path,
        {
            "path": done.path,
            "already": done.already,
            "nbytes": done.manifest.nbytes,
            "kept_nbytes": kept_nbytes(done.manifest),
            "tensors": len(done.manifest.tensors),
            "info_hash": done.manifest.source.info_hash,
            "seconds": done.seconds,
        },
    )
