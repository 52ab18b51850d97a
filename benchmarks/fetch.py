"""Fetch-and-convert against a bare libtorrent download of the same torrent.

    python benchmarks/fetch.py [--megabytes 1000] [--piece-length 4MiB] [--mesh 1x1] [--rounds 3]

A seeder in a process of its own serves a scaled-down Grok-1 on loopback. In turn, each in a fresh process and
an empty directory: a bare download (the same session settings, every piece wanted, nothing read), the same
followed by a sync of its files, and `gdist fetch`, which downloads, verifies, converts, digests and syncs.
Prints the medians of wall and CPU seconds (user and system of the process, the seeder's not), their ratios to
the bare download, and the profile of gdist's run. What gdist finishes is on the disk; the bare download is
when it is synced.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gdist.core.magnet import Magnet, format_magnet, parse_magnet
from gdist.core.mesh import parse_mesh
from gdist.core.units import parse_bytes
from gdist.run.fetch import fetch
from gdist.run.options import FetchOptions
from gdist.sources.torrent import TorrentOptions, TorrentSource
from gdist.testing.checkpoints import write_grok1
from gdist.testing.swarm import seed

NAMES = {"bare": "bare libtorrent", "bare-sync": "bare, then synced"}
WARM_BYTES = 8 * 2**30
SETTLE_SECONDS = 6  # ext4 walks over inodes that were deleted in the last 5 seconds
LOOPBACK = TorrentOptions(dht=False, listen="127.0.0.1:0")


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def bare(magnet: Magnet, directory: Path, *, sync: bool) -> None:
    """Downloads everything and reads nothing."""
    source = TorrentSource(magnet, LOOPBACK)
    source.open(directory)
    left = set(range(source.payload.pieces))
    source.want(sorted(left))
    while left:
        left.difference_update(source.verified(0.25))
        source.check_alive()
    if sync:
        source.sync()
    source.close()


def converted(magnet: Magnet, directory: Path, mesh: str, payload: str) -> dict[str, float]:
    """Fetches into a store; the seconds of each kind of work."""
    options = FetchOptions(mesh=parse_mesh(mesh), payload=payload, torrent=LOOPBACK)
    return dict(fetch(format_magnet(magnet), directory, options).timing)


def run_role(role: str, magnet: str, directory: Path, mesh: str) -> None:
    """In a process of its own: one download, its costs as JSON on stdout."""
    parsed, _ = parse_magnet(magnet)
    start, before = time.monotonic(), cpu_seconds()
    profile: dict[str, float] = {}
    if role.startswith("bare"):
        bare(parsed, directory, sync=role == "bare-sync")
    else:
        profile = converted(parsed, directory, mesh, role)
    print(json.dumps({"wall": time.monotonic() - start, "cpu": cpu_seconds() - before, "profile": profile}))


def measure(role: str, magnet: str, scratch: Path, mesh: str) -> dict[str, object]:
    """Runs a role in a fresh process and an empty directory.

    Memory that a virtual machine has not used lately is first given to it by its host, at ten times the
    price of a page fault, to whichever run comes first: it is touched beforehand, for all runs alike.
    """
    np.ones(WARM_BYTES, np.uint8)
    target = scratch / "target"
    command = [
        sys.executable,
        __file__,
        "--role",
        role,
        "--magnet",
        magnet,
        "--target",
        str(target),
        "--mesh",
        mesh,
    ]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment())
    except subprocess.CalledProcessError as error:
        sys.exit(error.stderr)
    shutil.rmtree(target)
    os.sync()
    time.sleep(SETTLE_SECONDS)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def _environment() -> dict[str, str]:
    """As a user runs it: modules are compiled once, not in every run, and no BLAS threads idle about."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """Reads the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--piece-length", help="such as 4MiB; default: what gdist make-torrent chooses")
    parser.add_argument("--mesh", default="1x1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=None, help="a directory on the disk to measure")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--magnet", help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        run_role(args.role, args.magnet, args.target, args.mesh)
        return
    scratch = Path(tempfile.mkdtemp(prefix="gdist-bench-", dir=args.scratch))
    try:
        scale = max(1, round((args.megabytes / 0.9) ** 0.5 / 8) * 8)
        write_grok1(
            scratch / "grok", layers=4, emb=64 * scale, ffn=128 * scale, kv=16 * scale, vocab=256 * scale
        )
        nbytes = sum(path.stat().st_size for path in (scratch / "grok").rglob("*") if path.is_file())
        results: dict[str, list[dict[str, object]]] = {}
        piece_length = parse_bytes(args.piece_length) if args.piece_length else None
        with seed(scratch / "grok", process=True, piece_length=piece_length) as seeded:
            magnet = format_magnet(seeded.magnet)
            for _ in range(args.rounds):
                for role in ("bare", "bare-sync", "discard", "keep"):
                    results.setdefault(role, []).append(measure(role, magnet, scratch, args.mesh))
        report(results, nbytes, args.mesh, args.piece_length or "default")
    finally:
        shutil.rmtree(scratch)


def report(results: dict[str, list[dict[str, object]]], nbytes: int, mesh: str, piece_length: str) -> None:
    """Prints medians and ratios."""
    gb = nbytes / 1e9
    print(f"payload {gb:.2f} GB, {piece_length} pieces, mesh {mesh}, load {os.getloadavg()[0]:.1f}")
    print(f"medians of {len(results['bare'])} (min to max)")
    middle: dict[str, dict[str, float]] = {}
    for role, runs in results.items():
        middle[role] = {}
        for kind in ("wall", "cpu"):
            values = [float(str(run[kind])) for run in runs]
            middle[role][kind] = statistics.median(values)
            ratio = middle[role][kind] / middle["bare"][kind]
            spread = f"{min(values):.2f} to {max(values):.2f}"
            name = NAMES.get(role) or f"gdist, payload {role}"
            value = middle[role][kind]
            print(f"{name:24} {kind:4} {value:7.2f} s  {value / gb:6.2f} s/GB  x{ratio:.2f}  ({spread})")
    profile = results["discard"][-1]["profile"]
    assert isinstance(profile, dict)
    print("profile of the last discard run, seconds summed over threads:")
    for name, seconds in profile.items():
        print(f"    {name:30} {seconds:7.2f}")


if __name__ == "__main__":
    main()
