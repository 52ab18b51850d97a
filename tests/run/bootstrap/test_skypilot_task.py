"""The task for SkyPilot: its fields, and its `run` on every node, in bash as SkyPilot does it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gdist.cli.commands.bootstrap import PERMANENT
from gdist.errors import RequestError
from gdist.run.bootstrap.job import BootstrapJob
from gdist.run.bootstrap.skypilot import SkyPilot, skypilot_task

NODES = 3


def job(source: str = "grok-1", **changes: Any) -> BootstrapJob:
    fetch = ("--mesh", "3x8", "--select", "layer [0-3]$")
    return BootstrapJob(source, "/data/my models/grok-1", fetch, NODES, PERMANENT, **changes)


def run_on_nodes(task: dict[str, Any], tmp_path: Path) -> list[subprocess.CompletedProcess[str]]:
    """Runs the task's `run` with the variables that SkyPilot sets."""
    done = []
    for node in range(NODES):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GDIST_")}
        environ |= {
            "SKYPILOT_NODE_RANK": str(node),
            "SKYPILOT_NODE_IPS": "\n".join(f"10.0.0.{n}" for n in range(NODES)),
            "SKYPILOT_NUM_NODES": str(NODES),
            "SKYPILOT_TASK_ID": "sky-17",
            "GDIST_SECRET": "correct horse",
        }
        script = task["run"].replace("sleep 30", "sleep 0")
        done.append(
            subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environ, cwd=tmp_path)
        )
    return done


@pytest.mark.parametrize("port", [None, 7700])
def test_every_node_gets_the_line_as_it_was_given(
    standin: Any, nasty: str, tmp_path: Path, port: int | None
) -> None:
    made = job(nasty, program=(str(standin.program),), port=port, then="echo trained")
    task = yaml.safe_load(skypilot_task(made, SkyPilot(("accelerators=H100:8", "use_spot=true"))))
    done = run_on_nodes(task, tmp_path)
    assert [one.returncode for one in done] == [0] * NODES, done[0].stderr
    assert all(one.stdout.endswith("trained\n") for one in done)
    calls = standin.calls()
    assert [call["index"] for call in calls] == list(range(NODES))
    expected = ["cluster", "fetch", nasty, "/data/my models/grok-1", *job().fetch]
    assert all(call["argv"] == expected for call in calls)
    suffix = f":{port}" if port else ""
    assert all(call["hosts"] == [f"10.0.0.{n}{suffix}" for n in range(NODES)] for call in calls)
    assert not list(tmp_path.rglob("pwned"))


def test_codes_decide_whether_it_is_tried_again(standin: Any, tmp_path: Path) -> None:
    standin.ends_with({0: [11, 10, 0], 1: [15, 0], 2: [11]})
    task = yaml.safe_load(skypilot_task(job(program=(str(standin.program),)), SkyPilot()))
    done = run_on_nodes(task, tmp_path)
    assert [one.returncode for one in done] == [0, 15, 11]
    counts = [sum(call["index"] == node for call in standin.calls()) for node in range(NODES)]
    assert counts == [3, 1, 3]


def test_fields_are_those_of_a_task() -> None:
    asked = ("accelerators=H100:8", "disk_size=500", "use_spot=true", "cpus=32+")
    text = skypilot_task(job(), SkyPilot(asked, "pip install 'gdist[jax]'"))
    task = yaml.safe_load(text)
    assert set(task) == {"name", "num_nodes", "resources", "secrets", "setup", "run"}
    assert (task["name"], task["num_nodes"]) == ("fetch-grok-1", NODES)
    expected = {"accelerators": "H100:8", "disk_size": 500, "use_spot": True, "cpus": "32+"}
    assert task["resources"] == expected, "SkyPilot's schema wants numbers and truths as such"
    assert task["secrets"] == {"GDIST_SECRET": None}, "null: sky launch insists on it"
    assert task["setup"] == "pip install 'gdist[jax]'\n"
    assert "resources" not in yaml.safe_load(skypilot_task(job(), SkyPilot()))


@pytest.mark.parametrize(
    ("made", "sky", "says"),
    [
        (BootstrapJob("s", "/d", (), 2, (2,), hosts=("a", "b")), SkyPilot(), "takes a number"),
        (BootstrapJob("s", "d", (), 2, (2,)), SkyPilot(), "'d' is relative"),
        (BootstrapJob("s", "/d", (), 2, (2,)), SkyPilot(("H100",)), "not KEY=VALUE"),
        (BootstrapJob("s", "/d", (), 2, (2,)), SkyPilot(setup="a\nrun: b"), "do not print"),
    ],
)
def test_what_cannot_be_a_task(made: BootstrapJob, sky: SkyPilot, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        skypilot_task(made, sky)
    assert caught.value.hint
