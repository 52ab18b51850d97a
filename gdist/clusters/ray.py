"""Ray Train: a worker whose backend set the ranks in its environment, as that for PyTorch does.

Ray's core gives a task or actor no rank, so a plain one is a lone host here; `--host` tells otherwise. The
head of the Ray cluster need not run a worker and is not taken for the coordinator.
"""

from __future__ import annotations

from gdist.clusters.membership import Membership, Variables, group
from gdist.errors import RequestError

MARKS = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_ADDRESS", "RAY_CLUSTER_NAME")
RANKS = ("NODE_RANK", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def find(variables: Variables, hostname: str) -> Membership | None:
    """The worker's node; None outside Ray, and where no ranks are set."""
    if not any(variables.has(mark) for mark in MARKS) or not variables.has("NODE_RANK", "WORLD_SIZE"):
        return None
    node, rank, size, local_rank, local_size = variables.needs("ray", *RANKS)
    if local_size < 1 or size % local_size or rank >= size:
        raise RequestError(
            f"ray: the workers are not as many on each node ({', '.join(variables.used)})",
            hint="use as many workers on each node, or say --host INDEX/COUNT",
        )
    host = group("ray", node, size // local_size, variables)
    coordinator, job = variables.text("MASTER_ADDR"), variables.text("RAY_JOB_ID")
    return Membership(host, local_rank, local_size, coordinator, (), "ray", variables.used, job)
