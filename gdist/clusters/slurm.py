"""Slurm: a step's tasks, started by srun.

The host is the node of the step (`SLURM_NODEID`), whatever number of tasks runs on it. In a batch script
outside srun, Slurm sets the variables of the job and not those of a step: there, a job of one node is a
cluster of one, and a job of more is a mistake that is told, because the other nodes would be waited for.
"""

from __future__ import annotations

import re

from gdist.clusters.membership import HINT, HalfSet, Membership, Variables, group
from gdist.core.hosts import parse_hosts
from gdist.errors import RequestError

SRUN = "put srun --ntasks-per-node=1 in front of the command"


def find(variables: Variables, hostname: str) -> Membership | None:
    """The node of this step; None outside Slurm."""
    job = variables.text("SLURM_JOB_ID")
    if not job:
        return None
    nodes = variables.text("SLURM_STEP_NODELIST")
    if not nodes:
        return _outside_srun(variables, job)
    index, count = variables.needs("slurm", "SLURM_NODEID", "SLURM_STEP_NUM_NODES")
    host = group("slurm", index, count, variables)
    hosts = parse_hosts(nodes)
    name = variables.text("SLURMD_NODENAME")
    if len(hosts) == count and name in hosts and hosts[index] != name:
        raise RequestError(
            f"slurm: node {index} of {nodes} is {hosts[index]}, and this one is {name} "
            f"({', '.join(variables.used)})",
            hint=HINT,
        )
    local_rank = variables.number("SLURM_LOCALID") or 0
    tasks = _tasks_of(variables, index, count)
    return Membership(
        host, local_rank, max(tasks, local_rank + 1), hosts[0], hosts, "slurm", variables.used, job
    )


def _outside_srun(variables: Variables, job: str) -> Membership:
    nodes = variables.number("SLURM_JOB_NUM_NODES") or variables.number("SLURM_NNODES")
    if nodes is None:
        raise HalfSet(f"slurm: SLURM_JOB_ID is {job}, and nothing tells its nodes", hint=SRUN)
    if nodes > 1:
        raise HalfSet(
            f"slurm: this runs beside job {job} of {nodes} nodes, not as a step of it "
            "(SLURM_STEP_NODELIST is not set)",
            hint=SRUN,
        )
    names = parse_hosts(variables.text("SLURM_JOB_NODELIST") or "localhost")
    return Membership(
        group("slurm", 0, 1, variables), 0, 1, names[0], names[:1], "slurm", variables.used, job
    )


def _tasks_of(variables: Variables, index: int, count: int) -> int:
    """How many tasks of the step run on a node: `2(x3),1` is two on each of three nodes, then one."""
    text = variables.text("SLURM_STEP_TASKS_PER_NODE") or variables.text("SLURM_TASKS_PER_NODE")
    tasks: list[int] = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"(\d{1,7})(?:\(x(\d{1,7})\))?", part.strip())
        if not match or len(tasks) > count:
            return 1
        tasks += [int(match[1])] * min(int(match[2] or 1), count)
    return tasks[index] if index < len(tasks) else 1
