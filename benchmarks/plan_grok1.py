"""Planning Grok-1 at full size: `gdist plan grok-1 --mesh 8x8`, for one host and for 8, in a fresh process.

    python benchmarks/plan_grok1.py

Prints wall and CPU seconds and peak resident memory, start of the interpreter included, and the wall as a
multiple of an interpreter that only imports NumPy in the same run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time


def run(*command: str) -> tuple[float, float, int]:
    """Wall and CPU seconds, and peak resident bytes, of a command."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    """See the module's text."""
    floor = min(run("-c", "import numpy")[0] for _ in range(3))
    for hosts in ("1", "8", "64"):
        wall, cpu, peak = min(
            run("-m", "gdist", "plan", "grok-1", "--mesh", "8x8", "--hosts", hosts) for _ in range(3)
        )
        print(
            f"plan grok-1 --mesh 8x8 --hosts {hosts:2}: {wall:5.2f} s wall, {cpu:5.2f} s CPU, "
            f"{peak / 2**20:4.0f} MiB, x{wall / floor:.1f} of importing NumPy"
        )


if __name__ == "__main__":
    main()
