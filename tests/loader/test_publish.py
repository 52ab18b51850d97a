"""A tree on eight devices is gathered tensor by tensor and published."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.jax, pytest.mark.slow]


def test_a_sharded_tree_is_published_as_it_is(tmp_path: Path) -> None:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    script = Path(__file__).with_name("publish_checks.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=os.environ | flags, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
