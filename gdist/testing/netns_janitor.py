"""Takes network namespaces down, whatever became of the process that made them.

A rig starts this file as a process of its own and keeps the other end of its standard input. When that end is
closed, by the rig or by the rig's death, everything in the rig's namespaces is killed and they are removed:

    python -I -S netns_janitor.py gd4711.0-

So there is one way of cleaning up, it runs after every use, and no signal can skip it. Only the standard
library is imported, to be there before the first namespace is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NAMESPACES = Path("/run/netns")  # where `ip netns` binds them
SETTINGS = Path("/etc/netns")  # NAME/hosts is bound over /etc/hosts by `ip netns exec`
PREFIX = re.compile(r"gd(\d+)\.\d+-")  # process, and the rig in it

_DEATH_SECONDS = 10.0  # for processes that were killed to be gone


def main() -> None:
    """Waits for the end of standard input, then removes what starts with the given prefix."""
    os.write(1, b"ready\n")
    while os.read(0, 4096):
        pass
    remove(sys.argv[1])


def remove(prefix: str) -> None:
    """Kills all processes in the namespaces with this prefix, and removes those and their settings."""
    deadline = time.monotonic() + _DEATH_SECONDS
    while sum(_kill(name) for name in names(prefix)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for name in names(prefix):
        subprocess.run(["ip", "netns", "delete", name], check=True)
    for path in SETTINGS.glob(f"{prefix}*"):
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # another rig's settings are there, or nobody ever had any
        SETTINGS.rmdir()


def sweep() -> None:
    """Removes what rigs left behind whose process and janitor are both dead."""
    found = {match[0]: int(match[1]) for name in names("gd") if (match := PREFIX.match(name))}
    for prefix, pid in found.items():
        if not Path(f"/proc/{pid}").exists():
            remove(prefix)


def names(prefix: str) -> list[str]:
    """The namespaces whose names start with `prefix`."""
    return sorted(path.name for path in NAMESPACES.glob(f"{prefix}*"))


def pids_in(name: str) -> Iterator[int]:
    """The processes in a named network namespace."""
    try:
        wanted = os.stat(NAMESPACES / name).st_ino
    except FileNotFoundError:
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # gone meanwhile, or a zombie
                if os.stat(f"/proc/{entry}/ns/net").st_ino == wanted:
                    yield int(entry)


def _kill(name: str) -> int:
    """Kills what runs in a namespace; how many there were."""
    pids = list(pids_in(name))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


if __name__ == "__main__":
    main()
