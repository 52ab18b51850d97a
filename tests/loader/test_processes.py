"""JAX jobs of 2, 4 and 8 processes on loopback, which together hold an 8x8 mesh, each with its own store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

pytestmark = [pytest.mark.jax, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("process_checks.py")
CHECKS = re.findall(r"@check\ndef (\w+)", SCRIPT.read_text())


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_job_of(count: int, tmp_path: Path) -> None:
    """All checks in one test: its processes are started once, wherever tests are spread."""
    quiet = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, SCRIPT, str(count), tmp_path],
        env={**quiet, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    failed = [said for said in answer["found"].values() if said]
    assert not failed, "\n".join(failed)
    assert list(answer["found"]) == CHECKS, f"{answer['ended']}: {done.stderr[-4000:]}"
