"""Loading onto meshes of up to 8x8, in one other process: the number of devices is fixed at first use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

pytestmark = pytest.mark.jax

SCRIPT = Path(__file__).with_name("mesh_checks.py")
CHECKS = re.findall(r"@check\ndef (\w+)", SCRIPT.read_text())


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=64"}
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("name", CHECKS)
def test_on_64_devices(results: dict[str, str], name: str) -> None:
    assert results[name] == "", results[name]
