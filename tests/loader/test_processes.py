"""Two JAX processes on loopback: each loads its part of one global array from its own host's directory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gdist.core.mesh import HostGroup
from gdist.testing.stores import write_store

pytest.importorskip("jax")

pytestmark = [pytest.mark.jax, pytest.mark.slow]


def test_each_process_loads_its_own_part(tmp_path: Path) -> None:
    arrays = {"w": np.arange(128, dtype=np.float32).reshape(8, 16), "all": np.ones(3, np.float32)}
    rules = {"rules": [["w", ["data", "model"]], [".*", []]]}
    for index in range(2):
        write_store(tmp_path / str(index), arrays, mesh="2x4", rules=rules, host=HostGroup(index, 2))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    quiet = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    script = Path(__file__).with_name("process_checks.py")
    runs = [
        subprocess.Popen(
            [sys.executable, script, port, str(index), tmp_path / str(index)],
            env={**quiet, **flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        for run in runs:
            said, _ = run.communicate(timeout=120)
            assert run.returncode == 0 and "done" in said, said
    finally:
        for run in runs:
            run.kill()
            run.wait()
