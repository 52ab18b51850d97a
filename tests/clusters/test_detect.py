"""Which of several that could tell is believed, and what is refused."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping

import pytest

from gdist.clusters import CHOICES, detect
from gdist.clusters.this_host import find_membership, host_name, own_addresses
from gdist.core.mesh import HostGroup
from gdist.errors import RequestError

SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "n[0-3]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_NODEID": "2",
    "SLURM_LOCALID": "0",
    "SLURMD_NODENAME": "n2",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "n0",
}
POD = {"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}


@pytest.mark.parametrize(
    ("environ", "host", "cluster", "coordinator", "why"),
    [
        ({}, (0, 1), "alone", "", "nothing is there"),
        ({"PATH": "/bin", "HOSTNAME": "x"}, (0, 1), "alone", "", "nothing of ours is there"),
        ({"MASTER_ADDR": "h0"}, (0, 1), "alone", "", "an address alone says nothing"),
        ({"TPU_WORKER_ID": "0"}, (0, 1), "alone", "", "a lone TPU VM's may be set by hand"),
        ({"SKYPILOT_NUM_NODES": "1"}, (0, 1), "alone", "", "a count of one is no larger job"),
        ({"JOB_INDEX": "2"}, (0, 1), "alone", "", "a name that others use"),
        ({"GROUP_RANK": "1"}, (0, 1), "alone", "", "not of torchrun's agent"),
        ({"PET_NNODES": "1", "PET_NODE_RANK": ""}, (0, 1), "alone", "", "torchrun on one host"),
        (SLURM | {"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4), "slurm", "n0", "Slurm's own PMI"),
        ({"RAY_ADDRESS": "h0:6379"}, (0, 1), "alone", "", "a plain Ray task has no rank"),
        (SLURM, (2, 4), "slurm", "n0", ""),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "10.0.0.9:1234"}, (2, 4), "slurm", "10.0.0.9", "JAX is told so"),
        (SLURM | TORCHRUN, (2, 4), "slurm", "n0", "torchrun runs inside the step"),
        (SLURM | {"RANK": "7", "WORLD_SIZE": "9"}, (2, 4), "slurm", "n0", "Slurm comes first"),
        (TORCHRUN, (1, 2), "torchrun", "n0", ""),
        ({"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, (3, 4), "torchrun", "a", "one rank a host"),
        (
            {"PET_NODE_RANK": "1", "PET_NNODES": "4", "PET_MASTER_ADDR": "job-0", "RANK": "1"},
            (1, 4),
            "torchrun",
            "job-0",
            "a pod of a PyTorchJob, before torchrun runs in it",
        ),
        (POD | {"GDIST_WORLD": "4"}, (3, 4), "kubernetes", "", "no domain: names would not resolve"),
        (POD | {"GDIST_HOSTS": "p-[0-3].s"}, (3, 4), "kubernetes", "p-0.s", "the hosts count themselves"),
        (
            POD | {"GDIST_WORLD": "4", "PET_NODE_RANK": "3", "PET_NNODES": "4"},
            (3, 4),
            "kubernetes",
            "",
            "",
        ),
        (TORCHRUN | {"PET_NNODES": "1:4"}, (1, 2), "torchrun", "n0", "the agents of an elastic job agreed"),
        (
            {"JAX_COORDINATOR_ADDRESS": "h0:1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"},
            (1, 2),
            "torchrun",
            "h0",
            "half of JAX's does not matter then",
        ),
        (POD | {"PET_NODE_RANK": "3", "PET_NNODES": "4"}, (3, 4), "torchrun", "", "half a Job, a whole PET"),
        (
            {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "t0,t1", "MEGASCALE_NUM_SLICES": "4"}
            | {"MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "s0-0.svc:8080"},
            (5, 8),
            "tpu",
            "s0-0.svc",
            "hosts of the slices before are counted; the port is Megascale's",
        ),
        (
            {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"} | POD | {"GDIST_WORLD": "8"},
            (3, 8),
            "kubernetes",
            "",
            "a Job of single-host slices",
        ),
        (
            {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
            (0, 1),
            "tpu",
            "localhost",
            "one host of one slice",
        ),
        (
            {"LWS_LEADER_ADDRESS": "m-1.m.ns", "LWS_WORKER_INDEX": "2", "LWS_GROUP_SIZE": "3"},
            (2, 3),
            "kubernetes",
            "m-1.m.ns",
            "a LeaderWorkerSet's group",
        ),
        ({"GDIST_HOST": "1/2"}, (1, 2), "manual", "", ""),
        ({"GDIST_RANK": "1", "GDIST_WORLD": "2"}, (1, 2), "manual", "", ""),
        ({"GDIST_RANK": "1", "GDIST_HOSTS": "a,b,c"}, (1, 3), "manual", "a", "the list counts"),
        ({"GDIST_HOSTS": "a,me,c"}, (1, 3), "manual", "a", "this host's place in the list"),
        ({"GDIST_HOSTS": "a,me.example.org:7000"}, (1, 2), "manual", "a", "by the first label"),
        ({"GDIST_HOSTS": "10.0.0.[1-4]"}, (1, 4), "manual", "10.0.0.1", "by an address of ours"),
        (
            SLURM | {"GDIST_HOST": "0/2"},
            (0, 2),
            "manual",
            "",
            "what is said wins, and n0 may be no host of it",
        ),
        (SLURM | {"GDIST_RANK": "2"}, (2, 4), "slurm", "n0", "half of it, and it agrees"),
        ({"RANK": "1"} | {"GDIST_HOST": "1/2"}, (1, 2), "manual", "", "half a torchrun does not matter then"),
    ],
)
def test_who_is_believed(
    environ: Mapping[str, str], host: tuple[int, int], cluster: str, coordinator: str, why: str
) -> None:
    member = detect(environ, hostname="me.cluster", addresses=("127.0.0.1", "10.0.0.2"))
    assert (member.host, member.cluster) == (HostGroup(*host), cluster), why
    assert member.coordinator == coordinator, why


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        (SLURM | {"SLURM_NODEID": "4"}, "host 4 is not in 0 to 3"),
        (SLURM | {"SLURM_STEP_NUM_NODES": "5"}, "4 hosts are named and 5 counted"),
        (SLURM | {"SLURM_NODEID": "two"}, "SLURM_NODEID is 'two', which is no number"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[0-"}, "brackets"),
        ({"SLURM_JOB_ID": "17"}, "SLURM_JOB_ID is 17, and nothing tells its nodes"),
        ({"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2"}, "of 2 nodes, not as a step"),
        ({"RANK": "1"}, "RANK is set, WORLD_SIZE is not"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE is set, RANK is not"),
        ({"RANK": "8", "WORLD_SIZE": "8"}, "not dealt out host by host"),
        ({"RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "not dealt out"),
        (POD, "JOB_COMPLETION_INDEX is set, and nothing tells how many pods"),
        (POD | {"GDIST_WORLD": "3"}, "host 3 is not in 0 to 2"),
        ({"LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "l"}, "LWS_GROUP_SIZE is not"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID is not"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "2"}, "worker 2 is not among the 2"),
        (
            {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1", "MEGASCALE_NUM_SLICES": "2"},
            "MEGASCALE_SLICE_ID is not",
        ),
        ({"SKYPILOT_NODE_RANK": "0"}, "SKYPILOT_NODE_IPS is not"),
        ({"SKYPILOT_NODE_RANK": "2", "SKYPILOT_NODE_IPS": "a\nb"}, "host 2 is not in 0 to 1"),
        (
            {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "a\nb", "SKYPILOT_NUM_NODES": "3"},
            "SKYPILOT_NUM_NODES is 3",
        ),
        (
            {"SKYPILOT_NUM_NODES": "4"},
            "SKYPILOT_NUM_NODES is set, SKYPILOT_NODE_RANK and SKYPILOT_NODE_IPS are",
        ),
        ({"SKYPILOT_NODE_IPS": "a\nb"}, "skypilot: SKYPILOT_NODE_IPS is set, SKYPILOT_NODE_RANK is not"),
        ({"PMI_RANK": "1"}, "PMI_RANK is set, PMI_SIZE and MPI_LOCALRANKID and MPI_LOCALNRANKS are not"),
        ({"PMI_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, "OMPI_COMM_WORLD_RANK is set, OMPI_COMM_WORLD_SIZE"),
        ({"TPU_WORKER_ID": "3"}, "tpu: TPU_WORKER_ID is set, TPU_WORKER_HOSTNAMES is not"),
        ({"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_NUM_SLICES is set, TPU_WORKER_HOSTNAMES is not"),
        (
            {"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"},
            "TPU_WORKER_ID and MEGASCALE_NUM_SLICES are set, MEGASCALE_SLICE_ID is not",
        ),
        ({"LWS_GROUP_SIZE": "4"}, "LWS_GROUP_SIZE is set, LWS_WORKER_INDEX and LWS_LEADER_ADDRESS are not"),
        ({"LWS_LEADER_ADDRESS": "l"}, "LWS_LEADER_ADDRESS is set, LWS_WORKER_INDEX and LWS_GROUP_SIZE are"),
        ({"JOB_INDEX": "2", "JOBSET_NAME": "x"}, "JOB_INDEX is set, JOB_COMPLETION_INDEX and"),
        ({"GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, "GROUP_RANK is set, GROUP_WORLD_SIZE is not"),
        ({"PET_NODE_RANK": "1"}, "PET_NODE_RANK is set, PET_NNODES is not"),
        ({"JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES is not"),
        (
            {"JAX_COORDINATOR_ADDRESS": "h0:1234"},
            "JAX_COORDINATOR_ADDRESS is set, JAX_NUM_PROCESSES and JAX_PROCESS_ID are not",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "h0:1234", "JAX_PROCESS_ID": "1"},
            "JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS are set, JAX_NUM_PROCESSES is not",
        ),
        ({"PET_NNODES": "1:4", "PET_NODE_RANK": "1"}, "PET_NNODES is 1:4, which does not tell"),
        ({"PET_NNODES": "1:4", "RANK": "0"}, "PET_NNODES is 1:4, which does not tell"),
        ({"PET_NNODES": "four", "PET_NODE_RANK": "1"}, "PET_NNODES is 'four', which is no number"),
        ({"GDIST_RANK": "1"}, "GDIST_RANK is set, GDIST_WORLD is not"),
        ({"GDIST_WORLD": "2"}, "GDIST_WORLD is set, GDIST_RANK is not"),
        ({"GDIST_RANK": "2", "GDIST_WORLD": "2"}, "host 2 is not in 0 to 1"),
        ({"GDIST_COORDINATOR": "h0"}, "GDIST_COORDINATOR is set, GDIST_RANK and GDIST_WORLD are not"),
        ({"GDIST_HOST": "1/2", "GDIST_RANK": "0"}, "GDIST_HOST is 1/2, GDIST_RANK 0"),
        ({"GDIST_HOST": "eight"}, "'eight' is not INDEX/COUNT"),
        ({"GDIST_HOSTS": "a,b"}, "no name or address of this host is just once"),
        ({"GDIST_HOSTS": "a,a"}, "names 'a' twice"),
        ({"GDIST_HOSTS": "me:1,me:2"}, "no name or address of this host is just once"),
        ({"GDIST_HOSTS": "a,b", "GDIST_WORLD": "3"}, "names 2 hosts, and there are 3"),
        ({"GDIST_HOSTS": "@hosts"}, "a file is not read here"),
        ({"GDIST_HOST": "0/1", "GDIST_COORDINATOR": "a b"}, "no address"),
        (SLURM | {"GDIST_RANK": "3"}, "GDIST_RANK=3, and slurm says host 2 of 4"),
    ],
)
def test_what_is_refused(environ: Mapping[str, str], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        detect(environ, hostname="me", addresses=("10.0.0.9",))
    assert says in caught.value.message
    assert caught.value.hint


def test_what_decided_is_told_on_one_line() -> None:
    """SkyPilot has an address a line."""
    environ = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    member = detect(environ, hostname="me")
    assert "SKYPILOT_NODE_IPS=10.0.0.1 10.0.0.2" in member.evidence and "\n" not in str(member)


def test_ranks_inside_a_schedulers_task_are_ranks_of_its_host() -> None:
    """Slurm started one task on the node, and torchrun in it four: one of them is the agent."""
    member = detect(SLURM | TORCHRUN, hostname="n2")
    assert (member.host, member.local_rank, member.local_size) == (HostGroup(2, 4), 1, 4)
    assert member.attaches and "LOCAL_RANK=1" in member.evidence
    assert not detect(SLURM | TORCHRUN | {"LOCAL_RANK": "0"}, hostname="n2").attaches


def test_who_names_the_coordinator_knows_better_than_the_scheduler() -> None:
    """Its names may not resolve, or not to the right network: none is kept then."""
    assert detect(SLURM, hostname="n2").hosts == ("n0", "n1", "n2", "n3")
    assert detect(SLURM | {"GDIST_COORDINATOR": "10.0.0.1"}, hostname="n2").hosts == ()
    assert detect(SLURM | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1"}, hostname="n2").hosts == ()
    other_port = detect(SLURM | {"GDIST_COORDINATOR": "n0:8000"}, hostname="n2")
    assert other_port.hosts == ("n0:8000", "n1", "n2", "n3")
    named = {"GDIST_COORDINATOR": "10.0.0.1", "GDIST_HOSTS": "10.0.0.[1-4]"}
    assert detect(SLURM | named, hostname="n2").hosts[1] == "10.0.0.2"


def test_one_machine_may_be_all_hosts_of_a_list() -> None:
    """Ports tell them apart; which one this is, the scheduler knows."""
    for hosts in ("127.0.0.1:[7001-7004]", "127.0.0.[1-4]:7003"):
        member = detect(SLURM | {"GDIST_HOSTS": hosts}, hostname="n2", addresses=("127.0.0.1", "::1"))
        assert member.host == HostGroup(2, 4) and member.hosts[2].endswith(":7003")


def test_one_choice_asks_one_scheduler() -> None:
    both = SLURM | {"RANK": "0", "WORLD_SIZE": "9"}
    assert detect(both, "torchrun", hostname="n2").host == HostGroup(0, 9)
    assert detect(both, "alone", hostname="n2").host == HostGroup(0, 1)
    with pytest.raises(RequestError, match="nothing of tpu"):
        detect(both, "tpu", hostname="n2")
    with pytest.raises(RequestError, match="neither GDIST_RANK"):
        detect(both, "manual", hostname="n2")
    with pytest.raises(RequestError, match="'pbs' is not known") as caught:
        detect(both, "pbs", hostname="n2")
    assert all(name in caught.value.hint for name in CHOICES)


def test_pods_of_a_jobset_of_several_jobs_follow_one_another() -> None:
    for job in range(3):
        for pod in range(4):
            environ = {"JOB_COMPLETION_INDEX": str(pod), "JOB_INDEX": str(job), "JOB_REPLICAS": "3"}
            name = f"train-slice-{job}-{pod}.train.ns.svc.cluster.local"
            member = detect(environ | {"PODS_PER_JOB": "4", "JOBSET_NAME": "train"}, hostname=name)
            assert member.host == HostGroup(job * 4 + pod, 12)
            assert member.hosts[member.host.index] == name
            assert member.coordinator == "train-slice-0-0.train.ns.svc.cluster.local"
            assert member.job == "train"
    with pytest.raises(RequestError, match="PODS_PER_JOB is not"):
        detect(environ, hostname=name)
    with pytest.raises(RequestError, match="pod 3 of 3 in Job 2 of 3"):
        detect(environ | {"PODS_PER_JOB": "3"}, hostname=name)


def test_members_of_a_leader_worker_set_are_named() -> None:
    environ = {"LWS_LEADER_ADDRESS": "m-1.m.ns", "LWS_WORKER_INDEX": "0", "LWS_GROUP_SIZE": "3"}
    assert detect(environ, hostname="m-1").hosts == ("m-1.m.ns", "m-1-1.m.ns", "m-1-2.m.ns")


TELL = """
import json, os
from gdist.clusters import detect
m = detect(os.environ, hostname="here")
print(json.dumps([m.host.index, m.host.count, m.local_rank, m.local_size, m.cluster, m.coordinator, m.job]))
"""


@pytest.mark.skipif(not shutil.which("mpirun"), reason="Open MPI is not installed (Debian: openmpi-bin)")
def test_mpirun_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes on this machine are one host, and one of them its agent."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    command = ["mpirun", "--oversubscribe", "-np", "3", sys.executable, "-c", TELL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    # mpirun may put the lines of two processes into one.
    rows = sorted(json.loads(line) for line in done.stdout.replace("][", "]\n[").splitlines() if line)
    assert [row[:5] for row in rows] == [[0, 1, rank, 3, "openmpi"] for rank in range(3)]
    coordinators, jobs = {row[5] for row in rows}, {row[6] for row in rows}
    assert len(coordinators) == len(jobs) == 1 and all(jobs)
    assert coordinators <= {*own_addresses()}


def test_this_machine_knows_its_names() -> None:
    assert host_name() == socket.gethostname()
    assert "127.0.0.1" in own_addresses()


def test_this_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SLURM, *TORCHRUN, *POD):
        monkeypatch.delenv(name, raising=False)
    assert find_membership().host == HostGroup()
    monkeypatch.setenv("GDIST_HOSTS", f"elsewhere,{socket.gethostname()}")
    assert find_membership().host == HostGroup(1, 2)
