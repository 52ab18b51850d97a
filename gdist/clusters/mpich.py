"""MPICH, Intel MPI and their kin: processes that a Hydra mpiexec started (`PMI_RANK`, `PMI_SIZE`)."""

from __future__ import annotations

from gdist.clusters.membership import Membership, Variables, hosts_of_ranks

NAMES = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def find(variables: Variables, hostname: str) -> Membership | None:
    """The host of this rank; None where no such mpiexec started it."""
    if not variables.has("PMI_RANK") and not variables.has("PMI_SIZE"):
        return None
    rank, size, local_rank, local_size = variables.needs("mpich", *NAMES)
    host = hosts_of_ranks("mpich", rank, size, local_rank, local_size, variables)
    return Membership(host, local_rank, local_size, "", (), "mpich", variables.used)
