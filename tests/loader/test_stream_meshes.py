"""Streaming two hosts' fetches: on 8 devices of one process, and in two processes that compute together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gdist.core.magnet import format_magnet
from gdist.exchange.ports import free_port
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.swarm import seed

pytest.importorskip("jax")

pytestmark = [pytest.mark.jax, pytest.mark.torrent, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("stream_checks.py")


@pytest.mark.parametrize("processes", [1, 2])
def test_two_hosts_fetches_are_streamed(processes: int, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model", emb=64)
    port = str(free_port())
    quiet = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    with seed(tmp_path / "model", piece_length=1 << 14) as seeded:
        arguments = [format_magnet(seeded.magnet), str(tmp_path)]
        runs = [
            subprocess.Popen(
                [sys.executable, SCRIPT, *arguments, *((port, str(index)) if processes > 1 else ())],
                env={**quiet, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(processes)
        ]
        try:
            for run in runs:
                said, _ = run.communicate(timeout=120)
                assert run.returncode == 0 and "done" in said, said
        finally:
            for run in runs:
                run.kill()
                run.wait()
