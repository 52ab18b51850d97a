"""`gdist cluster status`: where a cluster's fetch stands, from any host."""

from __future__ import annotations

import click

from gdist import api
from gdist.cli.options import Place, option, output_options
from gdist.cli.output import Output


@click.command()
@click.argument("dest", required=False, type=Place())
@option("--coordinator", metavar="HOST:PORT", help="Host 0's address.  [default: the scheduler's]")
@option("--hosts", metavar="LIST|@FILE", help="Addresses of hosts; the first that answers is asked.")
@option("--secret", metavar="TEXT|@FILE", help="Shared by the hosts of the job.")
@option("--encrypt", is_flag=True, help="As in the job.")
@option("--job", metavar="ID", help="The scheduler's id of the job.  [default: that of this process]")
@option("--host", metavar="I/N", help="Where hosts share DEST: the one to ask, like 3/8.")
@option(
    "--work-dir",
    type=Place(),
    metavar="DIR",
    help="Where unfinished shards of a bucket wait.  [default: the user's cache]",
)
@output_options
def status(
    dest: str | None,
    output: Output,
    coordinator: str | None,
    hosts: str | None,
    secret: str | None,
    encrypt: bool,
    job: str | None,
    host: str | None,
    work_dir: str | None,
) -> None:
    """Tell where a cluster's fetch stands: who has what, what binds, the slowest.

    With DEST the agent on this machine that writes there is asked, and nothing else is needed. Without, the
    coordinator, with the secret of the job: from a host of the job, or from any machine that
    reaches it where hosts have no list of each other.
    """
    from gdist.cli.status_words import cluster_text

    found = api.cluster_status(
        dest,
        coordinator=coordinator,
        hosts=hosts or (),
        secret=secret,
        encrypt=encrypt,
        job=job,
        host=host,
        work_dir=work_dir,
    )
    output.result(cluster_text(found), found.to_json())
