"""Whether memory and descriptors are enough: the machine's, and those of the control groups around us."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

from gdist.core.units import format_bytes
from gdist.errors import RequestError
from gdist.run.environment.findings import Finding, fail, ok, warn

BESIDE_BYTES = 512 * 2**20  # interpreter, libraries, buffers of the wire and of libtorrent
UNLIMITED = 1 << 60  # control groups write a number near 2**63 for none
LEAST_FILES = 256  # torrent peers alone
FILES, FILES_A_HOST = 512, 8


def check_limits(memory: int, hosts: int, in_ram: int = 0) -> Iterator[Finding]:
    """Memory for a fetch with this `--memory` and `in_ram` bytes of destination that are RAM; descriptors."""
    root = Path("/")
    yield about_memory(memory + in_ram, machine_memory(root), group_memory(root))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield about_files(soft, hard, hosts)


def machine_memory(root: Path) -> tuple[int, int] | None:
    """Bytes of the machine, and those it can give without swapping, by /proc/meminfo; None if it is mute."""
    found = dict(
        re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    )
    if len(found) < 2:
        return None
    return int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024


def group_memory(root: Path) -> tuple[int, int] | None:
    """Limit of the tightest control group around this process, and what of it is used; None without a limit.

    Files that were read and not used since are not counted: they are given back when memory is short.
    """
    found: list[tuple[int, int]] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = base / path.lstrip("/")
        for place in (group, *group.parents):
            if place.is_relative_to(base):
                found += _group(place, *names)
    return min(found, key=lambda pair: pair[0] - pair[1]) if found else None


def _group(place: Path, limit_name: str, used_name: str, inactive_name: str) -> list[tuple[int, int]]:
    limit, used = _read(place / limit_name).strip(), _read(place / used_name).strip()
    if not limit.isdecimal() or not used.isdecimal() or int(limit) >= UNLIMITED:  # `max`, or not there
        return []
    inactive = re.search(rf"^{inactive_name} (\d+)", _read(place / "memory.stat"), re.MULTILINE)
    return [(int(limit), max(int(used) - (int(inactive[1]) if inactive else 0), 0))]


def about_memory(asked: int, machine: tuple[int, int] | None, group: tuple[int, int] | None) -> Finding:
    """What follows from the memory asked for, the machine's (all, free) and the group's (limit, used)."""
    check, needed = "memory", asked + BESIDE_BYTES
    parts = [f"{format_bytes(needed)} needed"]
    most, free = UNLIMITED, UNLIMITED
    if machine is not None:
        most, free = machine
        parts.append(f"{format_bytes(free)} of {format_bytes(most)} available")
    if group is not None:
        most, free = min(most, group[0]), min(free, group[0] - group[1])
        parts.append(f"the control group's limit is {format_bytes(group[0])}, {format_bytes(group[1])} used")
    what = ", ".join(parts)
    if needed > most:
        return fail(check, RequestError, what, "lower --memory, or raise the job's or the container's limit")
    if needed > free:
        return warn(check, what, "lower --memory, or stop what uses it: the system may end the fetch")
    return ok(check, what)


def about_files(soft: int, hard: int, hosts: int) -> Finding:
    """What follows from the limit of open files."""
    check, needed = "open files", FILES + FILES_A_HOST * hosts
    infinite = resource.RLIM_INFINITY
    what = f"limit {'none' if soft == infinite else soft}, {needed} may be needed"
    if soft == infinite or soft >= needed:
        return ok(check, what)
    hint = f"ulimit -n {needed}"
    if hard not in (infinite,) and hard < needed:
        hint = f"the hard limit is {hard}: raise it for the service or the user (LimitNOFILE, limits.conf)"
    if soft < LEAST_FILES:
        return fail(check, RequestError, what, hint)
    return warn(check, what, hint)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
