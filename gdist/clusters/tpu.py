"""TPU pods on Google Kubernetes Engine, and TPU VMs whose launcher passes the variables on; multislice too.

`TPU_WORKER_ID` counts the hosts of a slice; slices follow one another by `MEGASCALE_SLICE_ID`, as
`jax.distributed` counts them. A plain TPU VM has none of these variables: there the metadata server knows,
which gdist does not ask. The script of `gdist bootstrap tpu` asks it, and sets GDIST_RANK and GDIST_HOSTS.
"""

from __future__ import annotations

from gdist.clusters.membership import Membership, Variables, group, half_set, host_part
from gdist.errors import RequestError

ADDRESSES, NAMES = "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"


def find(variables: Variables, hostname: str) -> Membership | None:
    """The host among those of all slices; None where no worker is named."""
    listed = variables.text(ADDRESSES) or variables.text(NAMES)
    if not listed:
        # Worker 0 of one slice may be a lone host's.
        if (variables.number("TPU_WORKER_ID") or 0) > 0 or (
            variables.number("MEGASCALE_NUM_SLICES") or 1
        ) > 1:
            raise half_set("tpu", [NAMES], [item.partition("=")[0] for item in variables.used])
        return None
    processes = [host_part(item.strip()) for item in listed.split(",") if item.strip()]
    hosts = tuple(dict.fromkeys(processes))
    # Where several processes of a host are named, the worker's number says the host and not which of them.
    counts = "CLOUD_TPU_TASK_ID" if len(processes) > len(hosts) else "TPU_WORKER_ID"
    number = variables.number(counts)
    if number is None:
        raise half_set("tpu", [counts], [ADDRESSES if variables.has(ADDRESSES) else NAMES])
    if number >= len(processes):
        raise RequestError(
            f"tpu: worker {number} is not among the {len(processes)} that are named "
            f"({', '.join(variables.used)})",
            hint="say --host INDEX/COUNT",
        )
    slices = variables.number("MEGASCALE_NUM_SLICES") or 1
    if slices == 1 and len(hosts) == 1 and variables.has("JOB_COMPLETION_INDEX"):
        return None  # a Job of single-host slices: the Job's index tells more than the slice's
    worker = hosts.index(processes[number])
    here = [n for n, host in enumerate(processes) if host == processes[number]]
    return _of_slices(variables, hosts, worker, here.index(number), len(here), slices)


def _of_slices(
    variables: Variables, hosts: tuple[str, ...], worker: int, local_rank: int, local_size: int, slices: int
) -> Membership:
    coordinator, slice_id = hosts[0], 0
    if slices > 1:
        (slice_id,) = variables.needs("tpu", "MEGASCALE_SLICE_ID")
        address = variables.text("MEGASCALE_COORDINATOR_ADDRESS")
        if not address and slice_id:  # the first slice's hosts are not in this one's list
            raise half_set("tpu", ["MEGASCALE_COORDINATOR_ADDRESS"], ["MEGASCALE_NUM_SLICES"])
        coordinator = host_part(address) or coordinator  # its port is Megascale's own
    host = group("tpu", slice_id * len(hosts) + worker, slices * len(hosts), variables)
    return Membership(
        host,
        local_rank,
        local_size,
        coordinator,
        hosts if slices == 1 else (),
        "tpu",
        variables.used,
        coordinator,
    )
