"""A mesh whose device array is a permutation: a host fetches what `NamedSharding` gives its process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdist.core.device_order import parse_device_order
from gdist.core.mesh import HostGroup, Mesh, parse_mesh
from gdist.exchange.ports import free_port
from gdist.testing.stores import write_store

jax = pytest.importorskip("jax")

from gdist.loader.devices import laid_out, numbered  # noqa: E402  # after the check for JAX

pytestmark = pytest.mark.jax


@dataclass(frozen=True)
class Device:
    """What is looked at of a device; the CPU back end cannot lay processes out as a TPU slice does."""

    id: int
    process_index: int


def test_devices_are_numbered_process_by_process() -> None:
    slice_of: list[Any] = [Device(number, number % 4 // 2) for number in range(8)]  # two processes alternate
    assert [device.id for device in numbered(slice_of)] == [0, 1, 4, 5, 2, 3, 6, 7]
    assert [device.id for device in laid_out(parse_mesh("2x2"), slice_of)] == [0, 1, 4, 5]
    assert [device.id for device in laid_out(Mesh((("x", 4),), (3, 1, 0, 2)), slice_of)] == [5, 1, 0, 4]


@pytest.mark.slow
def test_each_process_loads_its_own_part_on_interleaved_devices(tmp_path: Path) -> None:
    order = "0,4,1,5,2,6,3,7"
    mesh = Mesh(parse_mesh("2x4").axes, parse_device_order(order, parse_mesh("2x4")))
    arrays = {"w": np.arange(128, dtype=np.float32).reshape(8, 16)}
    rules = {"rules": [["w", ["data", "model"]]]}
    for index in range(2):
        write_store(tmp_path / str(index), arrays, mesh=mesh, rules=rules, host=HostGroup(index, 2))
    port = str(free_port())
    quiet = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    script = Path(__file__).with_name("order_checks.py")
    runs = [
        subprocess.Popen(
            [sys.executable, script, port, str(index), tmp_path / str(index), order],
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


def test_an_open_axis_and_rules_by_name_are_read_as_in_a_fetch(tmp_path: Path) -> None:
    import gdist

    write_store(tmp_path / "s", {"lm_head.weight": np.zeros((8, 8), np.float32)}, mesh="2x2")
    (tmp_path / "rules.yaml").write_text("rules: [[weight, [null, model]]]")
    devices = len(jax.devices())
    for rules, spec in (("llama", ("model", "data")), (tmp_path / "rules.yaml", (None, "model"))):
        leaf = gdist.load(tmp_path / "s", mesh="-1x1", rules=rules)["lm_head"]["weight"]
        assert leaf.sharding.mesh.shape == {"data": devices, "model": 1}
        assert tuple(leaf.sharding.spec) == spec
