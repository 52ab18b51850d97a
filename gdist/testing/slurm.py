"""A real Slurm on one machine, for tests: munged, slurmctld and several slurmd in a directory of their own.

    with slurm_cluster(tmp_path, nodes=4) as slurm:
        slurm.run("srun", "-N4", "--ntasks-per-node=1", "hostname")
        job = slurm.submit(script)
        slurm.wait(job)

Needs the programs of Debian's `slurm-wlm` and `munge`, no service of the system and no rights but those of
the user; `missing_programs` says what is not installed. Nodes are called n0, n1, ... and are all this
machine, so that their names do not resolve: whoever wants an address gives it. Nothing listens but on ports
that were free a moment before, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from gdist.exchange.ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel", "squeue")
IDLE_SECONDS = 60  # about 5 on an idle machine
STOP_SECONDS = 10
POLL_SECONDS = 0.2
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # daemons are in sbin

_CONF = """\
ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={run}/munge.sock
StateSaveLocation={state}
SlurmdSpoolDir={state}/spool-%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd-%n.pid
SlurmctldLogFile={log}/slurmctld.log
SlurmdLogFile={log}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait={kill_wait}
MinJobAge=600
SchedulerParameters=sched_interval=1,batch_sched_delay=0
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


def missing_programs() -> str:
    """Why no Slurm can be started here, or ''."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=_PATH)]
    return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)" if missing else ""


@dataclass(slots=True)
class SlurmCluster:
    """A running Slurm: what to set in the environment of its commands, and its nodes' names."""

    directory: Path
    environ: Mapping[str, str]
    nodes: tuple[str, ...]
    _jobs: list[int] = field(default_factory=list)

    def run(
        self, *command: str, timeout: float = 60, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command of Slurm's; with `check`, one that fails is an error that shows what it said."""
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env={**self.environ, **(env or {})}
        )
        if check and done.returncode:
            raise AssertionError(f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def submit(self, script: Path, *options: str, env: Mapping[str, str] | None = None) -> int:
        """Submits a batch script; its output goes to `slurm-JOB.out` in the cluster's directory."""
        out = self.directory / "slurm-%j.out"
        said = self.run("sbatch", "--parsable", f"--output={out}", *options, str(script), env=env).stdout
        self._jobs.append(int(said.strip().partition(";")[0]))
        return self._jobs[-1]

    def output(self, job: int) -> str:
        """What a job has said so far."""
        path = self.directory / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def facts(self, job: int) -> dict[str, str]:
        """What `scontrol show job` tells: JobState, ExitCode, Restarts, ..."""
        said = self.run("scontrol", "--oneliner", "show", "job", str(job)).stdout
        return dict(part.split("=", 1) for part in said.split() if "=" in part)

    def wait(self, job: int, *states: str, timeout: float = 120) -> dict[str, str]:
        """Waits until a job is in one of these states (none given: has ended), and gives its facts."""
        deadline = time.monotonic() + timeout
        while True:
            facts = self.facts(job)
            state = facts["JobState"]
            if (
                state in states
                if states
                else state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
            ):
                return facts
            assert time.monotonic() < deadline, f"job {job} is {facts}, and said:\n{self.output(job)}"
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def slurm_cluster(
    directory: Path, nodes: int = 4, *, cpus: int = 4, kill_wait: int = 30
) -> Iterator[SlurmCluster]:
    """Starts a Slurm of so many nodes, and stops it. `kill_wait` is Slurm's seconds from TERM to KILL."""
    # A socket's path has 108 bytes at most, which pytest's directories may fill up.
    with TemporaryDirectory(prefix="slurm-") as short, contextlib.ExitStack() as stack:
        run = Path(short)
        names = tuple(f"n{n}" for n in range(nodes))
        conf = _configure(directory, run, names, cpus, kill_wait)
        environ = {**os.environ, "SLURM_CONF": str(conf), "PATH": _PATH}
        for name in [name for name in environ if name.startswith(("SLURM_", "SBATCH_"))]:
            if name != "SLURM_CONF":
                del environ[name]  # of a Slurm that runs the tests
        cluster = SlurmCluster(directory, environ, names)
        for command in _daemons(run, directory, names):
            stack.callback(_stop, _start(command, environ, directory / "log" / f"{command[0]}-said.log"))
            if command[0] == "munged":
                _until(lambda: (run / "munge.sock").exists(), directory)
        stack.callback(_cancel, cluster)  # called before the daemons are stopped
        _until(lambda: _idle(cluster), directory)
        yield cluster


def _configure(directory: Path, run: Path, names: tuple[str, ...], cpus: int, kill_wait: int) -> Path:
    state, log = directory / "state", directory / "log"
    for path in (state, log):
        path.mkdir(parents=True, exist_ok=True)
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host, ports = socket.gethostname(), free_ports(len(names) + 1)
    text = _CONF.format(
        name=host, port=ports[0], user=getpass.getuser(), run=run, state=state, log=log, kill_wait=kill_wait
    )
    for name, port in zip(names, ports[1:], strict=True):
        where = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
        text += f"NodeName={name} {where} CPUs={cpus} RealMemory=1000 State=UNKNOWN\n"
    conf = directory / "slurm.conf"
    conf.write_text(text)
    (directory / "cgroup.conf").write_text("CgroupAutomount=no\n")
    return conf


def _daemons(run: Path, directory: Path, names: tuple[str, ...]) -> Iterator[list[str]]:
    """Each in the foreground, so that stopping it is stopping a child."""
    log = directory / "log"
    yield [
        "munged",
        "--foreground",
        "--force",  # it mistrusts temporary directories
        f"--socket={run}/munge.sock",
        f"--key-file={directory}/munge.key",
        f"--pid-file={run}/munged.pid",
        f"--log-file={log}/munged.log",
        f"--seed-file={run}/munged.seed",
    ]
    yield ["slurmctld", "-D", "-c"]
    yield from (["slurmd", "-D", "-c", "-N", name] for name in names)


def _start(command: list[str], environ: Mapping[str, str], said: Path) -> subprocess.Popen[bytes]:
    with said.open("ab") as file:
        return subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def _idle(cluster: SlurmCluster) -> bool:
    said = cluster.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).stdout.split()
    return said == ["idle"] * len(cluster.nodes)


def _cancel(cluster: SlurmCluster) -> None:
    """Ends all jobs, and waits: a step's own daemon would outlive those of its node."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        cluster.run("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}", check=False)
        cluster.run("scancel", f"--user={getpass.getuser()}", check=False)
        deadline = time.monotonic() + STOP_SECONDS
        while cluster.run("squeue", "--noheader", check=False).stdout and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _until(ready: Callable[[], bool], directory: Path) -> None:
    deadline = time.monotonic() + IDLE_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            logs = "".join(f"{p.name}:\n{p.read_text()[-2000:]}\n" for p in (directory / "log").iterdir())
            raise AssertionError(f"Slurm did not come up in {IDLE_SECONDS} s\n{logs}")
        time.sleep(POLL_SECONDS)
