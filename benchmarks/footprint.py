"""What a fetch needs of a host: memory whatever the payload's size, and disk beside the store.

    python benchmarks/footprint.py [--megabytes 500 4000] [--mesh 1x1] [--max-download 100MB/s]

For each size a seeder in a process of its own serves a scaled-down Grok-1 on loopback and `gdist fetch` runs
in a fresh process, payload discarded, sampled every 20 ms: resident anonymous memory (`RssAnon`: the page
cache of mapped files is not counted) and the blocks allocated below the destination. Prints the peaks, how
far the sizes' memory differs, and the disk's high-water mark over the finished store.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gdist.core.magnet import format_magnet
from gdist.testing.checkpoints import write_grok1
from gdist.testing.swarm import seed

SAMPLE_SECONDS = 0.02
PIECE_LENGTH = 4 * 2**20  # the same for all sizes: workers hold pieces


def allocated(directory: Path) -> int:
    """Bytes of disk of all files below a directory; files that vanish meanwhile are not counted."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except OSError:
                continue
    return total


def anonymous(pid: int) -> int:
    """Resident anonymous memory of a process, in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def watch(command: list[str], target: Path) -> tuple[int, int]:
    """Runs a command; the peaks of its memory and of the disk below `target`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    memory = disk = 0
    while process.poll() is None:
        memory, disk = max(memory, anonymous(process.pid)), max(disk, allocated(target))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return memory, max(disk, allocated(target))


def main() -> None:
    """Reads the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, nargs="+", default=[500, 4000])
    parser.add_argument("--mesh", default="1x1")
    parser.add_argument("--max-download", default="0", help="a cap for the download, as of gdist fetch")
    parser.add_argument("--scratch", type=Path, default=None)
    args = parser.parse_args()
    peaks = []
    for megabytes in args.megabytes:
        scratch = Path(tempfile.mkdtemp(prefix="gdist-bench-", dir=args.scratch))
        try:
            scale = max(1, round((megabytes / 0.9) ** 0.5 / 8) * 8)
            write_grok1(
                scratch / "grok", layers=4, emb=64 * scale, ffn=128 * scale, kv=16 * scale, vocab=256 * scale
            )
            nbytes = sum(path.stat().st_size for path in (scratch / "grok").rglob("*") if path.is_file())
            with seed(scratch / "grok", process=True, piece_length=PIECE_LENGTH) as seeded:
                command = [
                    sys.executable,
                    "-m",
                    "gdist",
                    "fetch",
                    format_magnet(seeded.magnet),
                    str(scratch / "store"),
                ]
                command += ["--mesh", args.mesh, "--no-dht", "--listen", "127.0.0.1:0"]
                command += ["--max-download", args.max_download]
                memory, disk = watch(command, scratch / "store")
            store = allocated(scratch / "store")
        finally:
            shutil.rmtree(scratch)
        peaks.append(memory)
        print(
            f"payload {nbytes / 1e9:5.2f} GB: memory {memory / 2**20:6.0f} MiB, "
            f"disk {disk / 1e9:5.2f} GB at its highest, store {store / 1e9:5.2f} GB, x{disk / store:.3f}",
            flush=True,
        )
    print(f"memory of the largest over the smallest payload: x{peaks[-1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
