"""JAX jobs of 2, 4 and 8 processes on loopback, which together hold an 8x8 mesh, each with its own store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jax")

pytestmark = [pytest.mark.jax, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("process_checks.py")
CHECKS = re.findall(r"@check\ndef (\w+)", SCRIPT.read_text())


@pytest.fixture(scope="module", params=(2, 4, 8))
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    quiet = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, SCRIPT, str(request.param), tmp_path_factory.mktemp("job")],
        env={**quiet, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    answer["said"] = done.stderr
    return answer


@pytest.mark.parametrize("name", CHECKS)
def test_in_a_job(job: Any, name: str) -> None:
    assert name in job["found"], f"not reached; {job['ended']}: {job['said'][-4000:]}"
    assert job["found"][name] == ""
