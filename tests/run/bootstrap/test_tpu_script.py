"""The script for TPU VMs with stand-ins for gcloud and the metadata server, which cannot be had here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gdist.cli.commands.bootstrap import PERMANENT
from gdist.errors import RequestError
from gdist.run.bootstrap.job import BootstrapJob
from gdist.run.bootstrap.tpu import TpuVm, tpu_script

WORKERS = 4
GCLOUD = """\
#!/bin/bash
# compute tpus tpu-vm scp|ssh --worker=all ...: each worker is a home directory of its own.
printf '%s\\n' "$*" >>"$HOMES/asked"
[[ "$1 $2 $3 $5" == "compute tpus tpu-vm --worker=all" ]] || exit 9
case $4 in
  scp)
    [[ "$7 $8 $9" == "t:.gdist-secret --zone=us-central2-b --project=my-project" ]] || exit 9
    [[ $(stat -c %a "$6") == 600 ]] || exit 9
    for n in 0 1 2 3; do mkdir -p "$HOMES/$n" && cp "$6" "$HOMES/$n/.gdist-secret"; done ;;
  ssh)
    [[ "$6 $7 $8" == "t --zone=us-central2-b --project=my-project" ]] || exit 9
    result=0
    for n in 0 1 2 3; do
      bare=(env -i HOME="$HOMES/$n" PATH="$PATH" WORKER=$n ENDPOINTS="$ENDPOINTS")
      "${bare[@]}" bash -c "${9#--command=}" || result=$?
    done
    exit "$result" ;;
esac
"""
CURL = """\
#!/bin/bash
case ${!#} in
  */agent-worker-number) echo "$WORKER" ;;
  */worker-network-endpoints) printf '%s' "$ENDPOINTS" ;;
  *) exit 22 ;;
esac
"""


def job(source: str = "grok-1", **changes: Any) -> BootstrapJob:
    fetch = ("--mesh", "8x8", "--select", "layer [0-3]$")
    return BootstrapJob(source, "/data/my models/grok-1", fetch, WORKERS, PERMANENT, **changes)


@pytest.mark.parametrize(
    "endpoints",
    ["10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4", ",".join(f"w{n}:id{n}:10.0.0.{n + 1}" for n in range(4))],
)
@pytest.mark.parametrize("port", [None, 7700])
def test_every_worker_gets_the_line_as_it_was_given(
    standin: Any, nasty: str, tmp_path: Path, endpoints: str, port: int | None
) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (("gcloud", GCLOUD), ("curl", CURL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    made = job(nasty, program=(str(standin.program),), port=port, then="echo trained")
    script = tmp_path / "fetch.sh"
    script.write_text(tpu_script(made, TpuVm("t", "us-central2-b", "my-project")))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GDIST_")}
    environ |= {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "HOMES": str(tmp_path),
        "ENDPOINTS": endpoints,
    }
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environ, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained") == WORKERS
    calls = standin.calls()
    assert [(call["index"], call["count"]) for call in calls] == [(n, WORKERS) for n in range(WORKERS)]
    suffix = f":{port}" if port else ""
    assert all(call["hosts"] == [f"10.0.0.{n + 1}{suffix}" for n in range(WORKERS)] for call in calls)
    expected = ["cluster", "fetch", nasty, "/data/my models/grok-1", *job().fetch]
    assert all(call["argv"] == expected for call in calls)
    (secret,) = {call["environ"]["GDIST_SECRET"] for call in calls}
    asked = (tmp_path / "asked").read_text()
    assert len(secret) == 64 and secret not in asked + done.stdout + done.stderr
    assert not list(tmp_path.rglob(".gdist-secret"))
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


def test_shellcheck_finds_nothing(nasty: str, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    script = tmp_path / "fetch.sh"
    script.write_text(tpu_script(job(nasty, then="python train.py"), TpuVm("t", "z", "p")))
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("name", "zone"), [("", "z"), ("t", "")])
def test_a_tpu_has_a_name_and_a_zone(name: str, zone: str) -> None:
    with pytest.raises(RequestError, match="not named"):
        tpu_script(job(), TpuVm(name, zone))
