"""A script that starts the fetch on a list of hosts by ssh."""

from __future__ import annotations

from gdist.core.hosts import join_address, split_address
from gdist.errors import RequestError
from gdist.run.bootstrap.job import BootstrapJob, check_absolute
from gdist.run.bootstrap.rendering import render

DEFAULT_PORT = 7611


def ssh_script(job: BootstrapJob, ssh: tuple[str, ...] = ("ssh",)) -> str:
    """The script, to be run where ssh reaches every host; `ssh` is how it is called there.

    A host's port, where it is named with one, is its agent's and not ssh's.

    Raises:
        RequestError: when the hosts are not named.
    """
    if not job.hosts:
        raise RequestError("ssh needs the names of the hosts", hint="--hosts h[0-7], or --hosts @FILE")
    check_absolute(job, "a remote shell starts in the user's home")
    places = [split_address(host) for host in job.hosts]
    targets = tuple(host for host, _ in places)
    agents = tuple(join_address(host, port or job.port or DEFAULT_PORT) for host, port in places)
    return render("ssh.sh.j2", **job.values(), ssh=ssh or ("ssh",), targets=targets, agents=agents)
