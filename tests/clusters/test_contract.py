"""Every scheduler keeps the same contract, in environments as the scheduler itself makes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gdist.clusters import CLUSTERS
from gdist.testing.cluster_suite import CHECKS, Rank, Scheduler

Check = Callable[[Scheduler], None]


def slurm(hosts: int, each: int, job: str) -> list[Rank]:
    """As `srun -N HOSTS --ntasks-per-node=EACH` of Slurm 22.05; test_slurm.py has the daemons' own."""
    nodes = "n0" if hosts == 1 else f"n[0-{hosts - 1}]"
    common = {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NUM_NODES": str(hosts),
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_NUM_NODES": str(hosts),
        "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{hosts})" if hosts > 1 else str(each),
        "SLURM_NTASKS": str(hosts * each),
    }
    return [
        Rank(
            common
            | {
                "SLURM_PROCID": str(host * each + local),
                "SLURM_LOCALID": str(local),
                "SLURM_NODEID": str(host),
                "SLURMD_NODENAME": f"n{host}",
            },
            f"n{host}",
            host,
            local,
        )
        for host in range(hosts)
        for local in range(each)
    ]


def jax(hosts: int, each: int, job: str) -> list[Rank]:
    if each > 1:
        return []
    common = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": str(hosts)}
    return [Rank(common | {"JAX_PROCESS_ID": str(n)}, f"h{n}", n, 0) for n in range(hosts)]


def tpu(hosts: int, each: int, job: str) -> list[Rank]:
    """As on Google Kubernetes Engine; several processes a host are named with ports, one by one."""
    names = [f"slice{job}-{n}.svc" for n in range(hosts)]
    if each == 1:
        common = {"TPU_WORKER_HOSTNAMES": ",".join(names)}
        return [Rank(common | {"TPU_WORKER_ID": str(n)}, names[n], n, 0) for n in range(hosts)]
    processes = [f"{name}:{8476 + local}" for name in names for local in range(each)]
    common = {"TPU_PROCESS_ADDRESSES": ",".join(processes)}
    return [
        Rank(
            common | {"TPU_WORKER_ID": str(host), "CLOUD_TPU_TASK_ID": str(host * each + local)},
            names[host],
            host,
            local,
        )
        for host in range(hosts)
        for local in range(each)
    ]


def kubernetes(hosts: int, each: int, job: str) -> list[Rank]:
    """Pods of the Indexed Job `fetchJOB` behind the headless Service `swarm`."""
    if each > 1:
        return []
    common = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "GDIST_WORLD": str(hosts)}
    return [
        Rank(
            common | {"JOB_COMPLETION_INDEX": str(n)},
            f"fetch{job}-{n}.swarm.default.svc.cluster.local",
            n,
            0,
        )
        for n in range(hosts)
    ]


def pods_of(hosts: int) -> tuple[str, ...]:
    return tuple(f"fetch17-{n}.swarm.default.svc.cluster.local" for n in range(hosts))


def skypilot(hosts: int, each: int, job: str) -> list[Rank]:
    if each > 1:
        return []
    common = {
        "SKYPILOT_NODE_IPS": "\n".join(f"10.0.0.{n}" for n in range(hosts)),
        "SKYPILOT_NUM_NODES": str(hosts),
        "SKYPILOT_TASK_ID": f"sky-{job}",
    }
    return [Rank(common | {"SKYPILOT_NODE_RANK": str(n)}, f"h{n}", n, 0) for n in range(hosts)]


def ray(hosts: int, each: int, job: str) -> list[Rank]:
    """As TorchTrainer's backend sets them."""
    common = {
        "RAY_JOB_ID": job,
        "RAY_RAYLET_PID": "4711",
        "MASTER_ADDR": "10.0.0.0",
        "MASTER_PORT": "29500",
        "WORLD_SIZE": str(hosts * each),
        "LOCAL_WORLD_SIZE": str(each),
    }
    return [
        Rank(
            common | {"RANK": str(host * each + local), "LOCAL_RANK": str(local), "NODE_RANK": str(host)},
            f"h{host}",
            host,
            local,
        )
        for host in range(hosts)
        for local in range(each)
    ]


def torchrun(hosts: int, each: int, job: str) -> list[Rank]:
    common = {
        "TORCHELASTIC_RUN_ID": job,
        "MASTER_ADDR": "10.0.0.0",
        "MASTER_PORT": "29500",
        "WORLD_SIZE": str(hosts * each),
        "LOCAL_WORLD_SIZE": str(each),
        "GROUP_WORLD_SIZE": str(hosts),
    }
    return [
        Rank(
            common | {"RANK": str(host * each + local), "LOCAL_RANK": str(local), "GROUP_RANK": str(host)},
            f"h{host}",
            host,
            local,
        )
        for host in range(hosts)
        for local in range(each)
    ]


def openmpi(hosts: int, each: int, job: str) -> list[Rank]:
    common = {
        "OMPI_COMM_WORLD_SIZE": str(hosts * each),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(each),
        "OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://10.0.0.0,10.1.0.0:43243;tcp6://[fd00::2]:58211",
    }
    return [
        Rank(
            common
            | {
                "OMPI_COMM_WORLD_RANK": str(host * each + local),
                "OMPI_COMM_WORLD_LOCAL_RANK": str(local),
                "OMPI_COMM_WORLD_NODE_RANK": str(local),
            },
            f"h{host}",
            host,
            local,
        )
        for host in range(hosts)
        for local in range(each)
    ]


def mpich(hosts: int, each: int, job: str) -> list[Rank]:
    common = {"PMI_SIZE": str(hosts * each), "MPI_LOCALNRANKS": str(each), "PMI_FD": "9"}
    return [
        Rank(
            common | {"PMI_RANK": str(host * each + local), "MPI_LOCALRANKID": str(local)},
            f"h{host}",
            host,
            local,
        )
        for host in range(hosts)
        for local in range(each)
    ]


SAMPLES = (
    Scheduler(
        "slurm",
        slurm,
        ("SLURM_JOB_ID", "SLURM_NODEID", "SLURM_STEP_NUM_NODES"),
        lambda hosts: "n0",
        lambda hosts: tuple(f"n{n}" for n in range(hosts)),
    ),
    Scheduler("jax", jax, ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"), lambda hosts: "10.0.0.1", has_job=False),
    Scheduler(
        "tpu",
        tpu,
        (),
        lambda hosts: "slice17-0.svc",
        lambda hosts: tuple(f"slice17-{n}.svc" for n in range(hosts)),
    ),
    Scheduler(
        "kubernetes", kubernetes, ("JOB_COMPLETION_INDEX", "GDIST_WORLD"), lambda n: pods_of(n)[0], pods_of
    ),
    Scheduler(
        "skypilot",
        skypilot,
        ("SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"),
        lambda hosts: "10.0.0.0",
        lambda hosts: tuple(f"10.0.0.{n}" for n in range(hosts)),
    ),
    Scheduler("ray", ray, ("NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), lambda hosts: "10.0.0.0"),
    Scheduler("torchrun", torchrun, (), lambda hosts: "10.0.0.0"),
    Scheduler(
        "openmpi",
        openmpi,
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        lambda hosts: "10.0.0.0",
    ),
    Scheduler("mpich", mpich, ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"), has_job=False),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_contract(sample: Scheduler, check: Check) -> None:
    check(sample)


def test_every_scheduler_is_sampled() -> None:
    assert sorted(sample.name for sample in SAMPLES) == sorted(CLUSTERS)
