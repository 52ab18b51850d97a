"""Memory and descriptors, from trees of files as the kernel shows them."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

import pytest

from gdist.run.environment.findings import Status
from gdist.run.environment.limits import (
    about_files,
    about_memory,
    check_limits,
    group_memory,
    machine_memory,
)

GIB = 1 << 30
INFINITE = resource.RLIM_INFINITY


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected", "why"),
    [
        ({}, None, "no control groups"),
        ({"proc/self/cgroup": "0::/\n"}, None, "the root has no limit"),
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/step/memory.current": "5\n",
                "sys/fs/cgroup/job/memory.max": "1000\n",
                "sys/fs/cgroup/job/memory.current": "600\n",
                "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 500\n",
            },
            (1000, 100),
            "the parent's; files that were read once are not counted",
        ),
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "900\n",
                "sys/fs/cgroup/job/step/memory.current": "100\n",
                "sys/fs/cgroup/job/memory.max": "1000\n",
                "sys/fs/cgroup/job/memory.current": "950\n",
            },
            (1000, 950),
            "the one with the least left",
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/slurm/job_1\n3:cpu,cpuacct:/\n1:name=systemd:/\n",
                "sys/fs/cgroup/memory/slurm/job_1/memory.limit_in_bytes": "2000\n",
                "sys/fs/cgroup/memory/slurm/job_1/memory.usage_in_bytes": "700\n",
                "sys/fs/cgroup/memory/slurm/job_1/memory.stat": "total_inactive_file 200\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "123\n",
            },
            (2000, 500),
            "the first version; its root's number is none",
        ),
        (
            {
                "proc/self/cgroup": "0::/../other\n",
                "sys/fs/cgroup/memory.max": "3000\n",
                "sys/fs/cgroup/memory.current": "1\n",
            },
            (3000, 1),
            "a container that sees its own group as the root",
        ),
    ],
)
def test_the_tightest_group_counts(
    tmp_path: Path, files: Mapping[str, str], expected: tuple[int, int] | None, why: str
) -> None:
    assert group_memory(tree(tmp_path, files)) == expected, why


def test_the_machines_memory(tmp_path: Path) -> None:
    assert machine_memory(tmp_path) is None
    tree(tmp_path, {"proc/meminfo": "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n"})
    assert machine_memory(tmp_path) == (2 << 20, 1 << 20)
    real = machine_memory(Path("/"))
    assert real and real[0] > real[1] > 0


@pytest.mark.parametrize(
    ("asked", "machine", "group", "status"),
    [
        (GIB, None, None, Status.OK),
        (GIB, (16 * GIB, 8 * GIB), None, Status.OK),
        (8 * GIB, (16 * GIB, 8 * GIB), None, Status.WARN),
        (16 * GIB, (16 * GIB, 8 * GIB), None, Status.FAIL),
        (GIB, (16 * GIB, 8 * GIB), (4 * GIB, GIB), Status.OK),
        (2 * GIB, (16 * GIB, 8 * GIB), (4 * GIB, 2 * GIB), Status.WARN),
        (4 * GIB, (16 * GIB, 8 * GIB), (4 * GIB, 0), Status.FAIL),
    ],
)
def test_memory(
    asked: int, machine: tuple[int, int] | None, group: tuple[int, int] | None, status: Status
) -> None:
    found = about_memory(asked, machine, group)
    assert found.status is status, found.what
    assert ("control group" in found.what) is (group is not None)


@pytest.mark.parametrize(
    ("soft", "hard", "hosts", "status", "hint"),
    [
        (1024, 4096, 8, Status.OK, ""),
        (INFINITE, INFINITE, 2600, Status.OK, ""),
        (1024, 1 << 20, 2600, Status.WARN, "ulimit -n 21312"),
        (1024, INFINITE, 2600, Status.WARN, "ulimit -n 21312"),
        (1024, 4096, 2600, Status.WARN, "the hard limit is 4096"),
        (128, 1024, 1, Status.FAIL, "ulimit -n 520"),
    ],
)
def test_open_files(soft: int, hard: int, hosts: int, status: Status, hint: str) -> None:
    found = about_files(soft, hard, hosts)
    assert found.status is status and found.hint.startswith(hint)


def test_this_machine_is_looked_at() -> None:
    checks = {finding.check: finding for finding in check_limits(GIB // 4, 8)}
    assert set(checks) == {"memory", "open files"}
    enormous = next(iter(check_limits(1 << 50, 8)))
    assert enormous.status is Status.FAIL
