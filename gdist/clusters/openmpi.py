"""Open MPI: processes that mpirun started.

It is asked before Slurm, as JAX does: inside a job, mpirun starts the processes of the first node without
srun and those of the others as a step of one node less, so that Slurm's variables are wrong for both.
Hosts are ranks divided by the ranks of a host; with `--map-by node` they are dealt out otherwise, which the
second rank sees and tells.
"""

from __future__ import annotations

import re

from gdist.clusters.membership import Membership, Variables, hosts_of_ranks

RANKS = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")


def find(variables: Variables, hostname: str) -> Membership | None:
    """The host of this rank; None where mpirun did not start it."""
    names = [f"OMPI_COMM_WORLD_{name}" for name in RANKS]
    if not any(variables.has(name) for name in names):
        return None
    rank, size, local_rank, local_size = variables.needs("openmpi", *names)
    host = hosts_of_ranks("openmpi", rank, size, local_rank, local_size, variables)
    job, coordinator = _launcher(variables)
    return Membership(host, local_rank, local_size, coordinator, (), "openmpi", variables.used, job)


def _launcher(variables: Variables) -> tuple[str, str]:
    """The job's id and mpirun's address, of `1531576320.0;tcp://10.96.0.1,10.148.0.1:34911;tcp6://[fd00::2]:1`.

    mpirun runs on the first host, unless it was started from elsewhere: then `--coordinator` is needed, for
    gdist as for `jax.distributed`. Open MPI 5 has no such variable.
    """
    uri = variables.text("OMPI_MCA_orte_hnp_uri")
    found = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    job = uri.partition(".")[0] or variables.text("PMIX_NAMESPACE")
    return job, (found[1] or found[2]) if found else ""
