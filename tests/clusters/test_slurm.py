"""Slurm's own daemons, several nodes on one machine: what gdist finds in the environments that they make."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdist.clusters import detect
from gdist.errors import RequestError
from gdist.testing.slurm import SlurmCluster, missing_programs, slurm_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=missing_programs()),
]

TELL = """
import json, os, socket
from gdist.clusters import detect
from gdist.errors import RequestError
try:
    m = detect(os.environ, hostname=socket.gethostname())
    host = [m.host.index, m.host.count, m.local_rank, m.local_size]
    print(json.dumps([*host, m.coordinator, m.hosts, m.cluster, m.job]))
except RequestError as error:
    print(json.dumps([str(error), error.hint]))
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=4) as cluster:
        yield cluster


def told(text: str) -> list[list[object]]:
    return sorted(json.loads(line) for line in text.splitlines())


def test_one_task_a_node(slurm: SlurmCluster) -> None:
    said = slurm.run("srun", "-N4", "--ntasks-per-node=1", sys.executable, "-c", TELL).stdout
    found = told(said)
    names = ["n0", "n1", "n2", "n3"]
    job = found[0][-1]
    assert str(job).isdecimal()
    assert found == [[n, 4, 0, 1, "n0", names, "slurm", job] for n in range(4)]


def test_several_tasks_a_node_are_one_host(slurm: SlurmCluster) -> None:
    said = slurm.run("srun", "-N2", "--ntasks-per-node=3", sys.executable, "-c", TELL).stdout
    assert [row[:4] for row in told(said)] == [[host, 2, rank, 3] for host in range(2) for rank in range(3)]


def test_nodes_with_unequal_numbers_of_tasks(slurm: SlurmCluster) -> None:
    said = slurm.run("srun", "-N2", "-n3", "-m", "block", sys.executable, "-c", TELL).stdout
    assert [row[:4] for row in told(said)] == [[0, 2, 0, 2], [0, 2, 1, 2], [1, 2, 0, 1]]


def test_a_step_on_some_nodes_of_a_job(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Nodes are counted within the step, not within the job."""
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH -N4\nsrun -N2 -w n1,n3 {sys.executable} -c '{TELL}'\n")
    job = slurm.submit(script)
    slurm.wait(job)
    assert told(slurm.output(job)) == [[n, 2, 0, 1, "n1", ["n1", "n3"], "slurm", str(job)] for n in range(2)]


def test_tasks_dealt_out_in_another_order(slurm: SlurmCluster, tmp_path: Path) -> None:
    """With `arbitrary` the first rank is on another node than the first; hosts are nodes all the same."""
    tasks = ["-N3", "-n3", "-m", "arbitrary", "-w", "n2,n0,n1"]
    said = slurm.run("srun", *tasks, sys.executable, "-c", TELL).stdout
    assert [row[:2] + row[4:6] for row in told(said)] == [[n, 3, "n0", ["n0", "n1", "n2"]] for n in range(3)]


def test_the_batch_script_of_one_node_is_a_host(slurm: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH -N1\n{sys.executable} -c '{TELL}'\n")
    job = slurm.submit(script)
    slurm.wait(job)
    ((index, count, *_, cluster, its_job),) = told(slurm.output(job))
    assert (index, count, cluster, its_job) == (0, 1, "slurm", str(job))


def test_a_batch_script_without_srun_is_told(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Its other nodes would be waited for until the deadline."""
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH -N3\n{sys.executable} -c '{TELL}'\n")
    job = slurm.submit(script)
    slurm.wait(job)
    ((message, hint),) = told(slurm.output(job))
    assert "of 3 nodes" in str(message) and "SLURM_STEP_NODELIST" in str(message)
    assert "srun --ntasks-per-node=1" in str(hint)


def test_an_allocation_without_a_task_is_told(slurm: SlurmCluster) -> None:
    said = slurm.run("salloc", "-N2", sys.executable, "-c", TELL).stdout
    ((message, hint),) = told(said)
    assert "of 2 nodes" in str(message) and "srun" in str(hint)


@pytest.mark.parametrize(
    ("text", "tasks"),
    [("1(x4)", [1, 1, 1, 1]), ("2(x2),1", [2, 2, 1]), ("3", [3]), ("8(x1000000)", [8, 8]), ("nonsense", [1])],
)
def test_tasks_per_node(text: str, tasks: list[int]) -> None:
    nodes = "n0" if len(tasks) == 1 else f"n[0-{len(tasks) - 1}]"
    for node, each in enumerate(tasks):
        environ = {
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": nodes,
            "SLURM_STEP_NUM_NODES": str(len(tasks)),
            "SLURM_STEP_TASKS_PER_NODE": text,
            "SLURM_NODEID": str(node),
        }
        assert detect(environ, hostname=f"n{node}").local_size == each


def test_a_node_that_is_another_one_is_told() -> None:
    environ = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "n[0-1]",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_NODEID": "0",
        "SLURMD_NODENAME": "n1",
    }
    with pytest.raises(RequestError, match=r"node 0 of n\[0-1\] is n0, and this one is n1"):
        detect(environ, hostname="n1")
