"""torchrun, and what sets its variables by hand: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR.

The host is torchrun's own agent (`GROUP_RANK` of `GROUP_WORLD_SIZE`). Where only ranks are set, hosts are
ranks divided by `LOCAL_WORLD_SIZE`, or the ranks themselves when it is not there. `PET_NODE_RANK` and
`PET_NNODES` are what a Kubeflow PyTorchJob or TrainJob gives a pod before torchrun runs in it. Of an elastic
job the second is a range, `1:4`: how many hosts there will be, torchrun's agents agree on later.
"""

from __future__ import annotations

from gdist.clusters.membership import SHOWN, HalfSet, Membership, Variables, group, half_set, hosts_of_ranks
from gdist.core.text import shorten

GROUP = ("GROUP_RANK", "GROUP_WORLD_SIZE")
NODES = ("PET_NODE_RANK", "PET_NNODES")


def find(variables: Variables, hostname: str) -> Membership | None:
    """The host of this rank; None where no rank is set."""
    if variables.has("TORCHELASTIC_RUN_ID") and variables.has(*GROUP):
        return _member(variables, *variables.needs("torchrun", *GROUP))
    nodes = variables.text(NODES[1])
    if variables.has(*NODES) and ":" not in nodes:
        return _member(variables, *variables.needs("torchrun", *NODES))
    there = [name for name in ("RANK", "WORLD_SIZE") if variables.has(name)]
    if len(there) < 2 and ":" in nodes:
        raise HalfSet(
            f"torchrun: {NODES[1]} is {shorten(nodes, SHOWN)}, which does not tell how many hosts there are",
            hint="say --host INDEX/COUNT, the same COUNT on every host",
        )
    if not there:
        _check_half(variables)
        return None
    if len(there) == 1:
        raise half_set("torchrun", {"RANK", "WORLD_SIZE"} - set(there), there)
    rank, size = variables.needs("torchrun", "RANK", "WORLD_SIZE")
    local_rank = variables.number("LOCAL_RANK") or 0
    local_size = variables.number("LOCAL_WORLD_SIZE") or 1
    host = hosts_of_ranks("torchrun", rank, size, local_rank, local_size, variables)
    return _member(variables, host.index, host.count)


def _check_half(variables: Variables) -> None:
    """That nothing is set, where no rank is, which only one of several hosts has.

    Raises:
        HalfSet: naming it, and what is missing.
    """
    if variables.has("TORCHELASTIC_RUN_ID") and any(variables.has(name) for name in GROUP):
        variables.needs("torchrun", *GROUP)
    if (variables.number(NODES[0]) or 0) > 0 or (variables.number(NODES[1]) or 1) > 1:
        variables.needs("torchrun", *NODES)


def _member(variables: Variables, index: int, count: int) -> Membership:
    host = group("torchrun", index, count, variables)
    local_rank = variables.number("LOCAL_RANK") or 0
    local_size = max(variables.number("LOCAL_WORLD_SIZE") or 1, local_rank + 1)
    coordinator = variables.text("MASTER_ADDR") or variables.text("PET_MASTER_ADDR")
    job = variables.text("TORCHELASTIC_RUN_ID")
    job = "" if job == "none" else job  # torchrun's default: not an id
    return Membership(host, local_rank, local_size, coordinator, (), "torchrun", variables.used, job)
