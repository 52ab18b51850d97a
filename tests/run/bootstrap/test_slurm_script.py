"""The rendered batch script under Slurm's own daemons, with a stand-in for gdist on every node."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gdist.cli.commands.bootstrap import PERMANENT
from gdist.errors import RequestError
from gdist.run.bootstrap.job import BootstrapJob
from gdist.run.bootstrap.slurm import Slurm, slurm_script
from gdist.testing.slurm import SlurmCluster, missing_programs, slurm_cluster

NODES = 4
slurm_is_there = pytest.mark.skipif(bool(missing_programs()), reason=missing_programs())


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=NODES) as cluster:
        yield cluster


def job(source: str = "grok-1", **changes: Any) -> BootstrapJob:
    fetch = ("--mesh", "8x8", "--select", "layer [0-3]$")
    return BootstrapJob(source, "/data/my models/grok-1", fetch, NODES, PERMANENT, **changes)


@pytest.fixture
def submit(slurm: SlurmCluster, standin: Any, tmp_path: Path) -> Callable[..., int]:
    """Submits the script for the stand-in; pauses between attempts are left out."""

    def submit(made: BootstrapJob | None = None, *options: str, **settings: Any) -> int:
        made = made or job(program=(str(standin.program),))
        text = slurm_script(made, Slurm(**settings)).replace("sleep 30", "sleep 0.1")
        script = tmp_path / "job.sh"
        script.write_text(text)
        return slurm.submit(script, *options)

    return submit


@pytest.mark.slow
@slurm_is_there
def test_every_node_gets_the_line_as_it_was_given(
    slurm: SlurmCluster, standin: Any, submit: Callable[..., int], nasty: str, tmp_path: Path
) -> None:
    then = f"printenv > '{tmp_path}/then'; echo \"trained on $SLURM_JOB_NUM_NODES\""
    number = submit(job(nasty, program=(str(standin.program),), then=then))
    facts = slurm.wait(number)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), slurm.output(number)
    calls = standin.calls()
    assert [call["index"] for call in calls] == [0, 1, 2, 3]
    expected = ["cluster", "fetch", nasty, "/data/my models/grok-1", *job().fetch]
    assert all(call["argv"] == expected for call in calls)
    assert all(call["hosts"] == ["n0", "n1", "n2", "n3"] and call["cluster"] == "slurm" for call in calls)
    (secret,) = {call["environ"]["GDIST_SECRET"] for call in calls}
    assert len(secret) == 64 and int(secret, 16)
    said = slurm.output(number)
    assert "trained on 4" in said and secret not in said
    assert "GDIST_SECRET" not in (tmp_path / "then").read_text()
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


@pytest.mark.slow
@slurm_is_there
def test_nodes_have_the_secret_where_a_job_exports_nothing(
    slurm: SlurmCluster, standin: Any, submit: Callable[..., int]
) -> None:
    """Slurm hands `--export=NONE` on to the steps of the job."""
    number = submit(None, "--export=NONE")
    assert slurm.wait(number)["JobState"] == "COMPLETED", slurm.output(number)
    (secret,) = {call["environ"].get("GDIST_SECRET") for call in standin.calls()}
    assert secret and len(secret) == 64


def test_every_step_exports_what_the_script_sets() -> None:
    text = slurm_script(job(), Slurm(directives=("--export=NONE",)))
    steps = [line for line in text.splitlines() if line.lstrip("# ").startswith("srun --")]
    assert len(steps) == 2 and all("srun --export=ALL " in line for line in steps)


@pytest.mark.slow
@slurm_is_there
def test_a_code_that_asking_again_does_not_help_ends_the_job_at_once(
    slurm: SlurmCluster, standin: Any, submit: Callable[..., int]
) -> None:
    """Also where another node's code is larger, and may pass."""
    standin.ends_with({0: [20], 1: [15], 2: [0], 3: [-9]})
    facts = slurm.wait(number := submit())
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "15:0", "0")
    assert len(standin.calls()) == NODES
    assert "asking again gives the same answer" in slurm.output(number)


@pytest.mark.slow
@slurm_is_there
@pytest.mark.parametrize("code", [10, -9])
def test_what_may_pass_is_tried_again_in_place(
    slurm: SlurmCluster, standin: Any, submit: Callable[..., int], code: int
) -> None:
    standin.ends_with({2: [code, 0]})
    facts = slurm.wait(number := submit())
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0")
    assert len(standin.calls()) == 2 * NODES
    assert f"ended with {99 if code < 0 else code}, which may pass; attempt 2 of 3" in slurm.output(number)


@pytest.mark.slow
@slurm_is_there
def test_what_does_not_pass_puts_the_job_back_into_the_queue(
    slurm: SlurmCluster, standin: Any, submit: Callable[..., int]
) -> None:
    """It has the same number then, says so in the same file, and goes on."""
    standin.ends_with({1: [11, 11, 11, 0]})
    number = submit()
    slurm.wait(number, "PENDING")
    standin.wait_for(3 * NODES)
    slurm.wait(number, "PENDING")
    assert slurm.facts(number)["Restarts"] == "1"
    slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now+3")  # not two minutes
    facts = slurm.wait(number)
    assert facts["JobState"] == "COMPLETED", (facts, slurm.output(number))
    assert len(standin.calls()) == 4 * NODES
    said = slurm.output(number)
    assert "attempt 3 of 3" in said and "put back into the queue" in said


@pytest.mark.slow
@slurm_is_there
def test_the_notice_before_the_limit_lets_every_node_leave(
    slurm: SlurmCluster, standin: Any, submit: Callable[..., int]
) -> None:
    standin.hold(True)
    number = submit()
    standin.wait_for(NODES)
    slurm.run("scancel", "--signal=TERM", "--batch", str(number))  # what --signal=B:TERM@120 does in time
    slurm.wait(number, "PENDING")
    stopped = [record["index"] for record in standin.records() if "stopped" in record]
    assert stopped == [0, 1, 2, 3], slurm.output(number)
    assert "ended with 20, which may pass; the job is put back" in slurm.output(number)
    standin.hold(False)
    slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now+3")
    facts = slurm.wait(number)
    assert facts["JobState"] == "COMPLETED", (facts, slurm.output(number))


@pytest.mark.slow
@slurm_is_there
def test_cancelling_the_job_lets_every_node_leave(
    slurm: SlurmCluster, standin: Any, submit: Callable[..., int]
) -> None:
    standin.hold(True)
    number = submit()
    standin.wait_for(NODES)
    slurm.run("scancel", str(number))
    assert slurm.wait(number)["JobState"] == "CANCELLED"
    stopped = [record["index"] for record in standin.records() if "stopped" in record]
    assert stopped == [0, 1, 2, 3], slurm.output(number)


@pytest.mark.slow
@slurm_is_there
def test_a_port_of_its_own_and_a_secret_from_a_file(
    slurm: SlurmCluster, standin: Any, submit: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "the secret").write_text("correct horse\n")
    made = job(program=(str(standin.program),), port=7700, secret_file=str(tmp_path / "the secret"))
    assert slurm.wait(submit(made))["JobState"] == "COMPLETED"
    calls = standin.calls()
    assert {call["environ"]["GDIST_SECRET"] for call in calls} == {"correct horse"}
    assert all(call["hosts"] == [f"n{n}:7700" for n in range(NODES)] for call in calls)


@pytest.mark.slow
@slurm_is_there
def test_slurm_reads_the_directives(slurm: SlurmCluster, standin: Any, submit: Callable[..., int]) -> None:
    settings = {"partition": "all", "time": "1:30:00", "directives": ('--comment="of mine"', "--nice=5")}
    number = submit(job(name="brings-grok", program=(str(standin.program),)), "--hold", **settings)
    facts = slurm.facts(number)
    assert facts["JobName"] == "brings-grok"
    assert (facts["Partition"], facts["TimeLimit"], facts["Nice"]) == ("all", "01:30:00", "5")
    assert (facts["NumNodes"], facts["Requeue"], facts["NtasksPerN:B:S:C"]) == ("4-4", "1", "1:0:*:*")
    slurm.run("scancel", str(number))


@pytest.mark.parametrize("then", ["", "srun python train.py"])
@pytest.mark.parametrize("port", [None, 7000])
def test_shellcheck_finds_nothing(nasty: str, then: str, port: int | None, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    script = tmp_path / "job.sh"
    script.write_text(slurm_script(job(nasty, then=then, port=port), Slurm("gpu", "4:00:00", ("--nice=1",))))
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("made", "where", "says"),
    [
        (BootstrapJob("s", "/d", (), 2, (2,), hosts=("a", "b")), Slurm(), "takes a number of hosts"),
        (BootstrapJob("s", "d", (), 2, (2,)), Slurm(), "'d' is relative"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Slurm(partition="a b"), "directive"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Slurm(directives=("account=x",)), "no option of sbatch"),
        (BootstrapJob("s", "/d", (), 2, (2,)), Slurm(directives=("--x\n#SBATCH -y",)), "do not print"),
        (BootstrapJob("s", "/d", (), 2, (2,), then="a\nb"), Slurm(), "do not print"),
    ],
)
def test_what_cannot_be_a_job(made: BootstrapJob, where: Slurm, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        slurm_script(made, where)
    assert caught.value.hint
