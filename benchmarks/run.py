"""All benchmarks, one after the other: `make bench`. Each is a command of its own; see its `--help`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMANDS = (
    ("plan_grok1.py",),
    ("headers.py",),
    ("load_jax.py",),
    ("reshard.py",),
    ("view.py",),
    ("repair.py", "--mb", "2000"),
    ("fetch.py", "--mesh", "1x1"),
    ("fetch.py", "--mesh", "8x8"),
    ("footprint.py",),
    ("stream.py",),
    ("cluster/slices.py",),
    ("cluster/run.py", "--mode", "shards", "--tools", "gdist"),
    ("cluster/run.py", "--mode", "copies"),
    ("collective.py",),
)


def main() -> None:
    """Runs them; a benchmark that misses its goal does not stop the rest."""
    here = Path(__file__).parent
    for name, *arguments in COMMANDS:
        print(f"\n== {name} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, str(here / name), *arguments, *sys.argv[1:]])


if __name__ == "__main__":
    main()
