"""Resharding against copying the same bytes, and against loading and saving them through Orbax.

    python benchmarks/reshard.py [--mb 2000] [--moves 1x1:8x8 8x8:2x4] [--rounds 3] [--memory 1GiB]

For each move a store is cut for the first mesh, and the same arrays are saved by Orbax (its
StandardCheckpointer as it comes: OCDBT and zstd) from as many pretend devices. In turn, each in a fresh
process and into an empty directory on one disk: `cp -r` of the store and a sync, `gdist reshard` to the
second mesh and a sync, and a restore by Orbax onto the second mesh's shardings, a save, and a sync. Libraries
are imported and devices ready before the clock starts; sources are in the page cache. Anonymous memory is
sampled every 20 ms. Prints medians and ratios; what gdist wrote is verified once. Goals: 0.6 of cp's
throughput, 5 times Orbax, peak memory of --memory and 300 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from load_jax import PeakMemory, make_store, start_jax

import gdist
from gdist.core.mesh import parse_mesh
from gdist.core.units import parse_bytes

ROLES = ("cp", "gdist", "orbax")
GOAL_CP, GOAL_ORBAX, GOAL_EXTRA_MB = 0.6, 5.0, 300
WARM_BYTES = 6 * 2**30
SETTLE_SECONDS = 6  # ext4 walks over inodes that were deleted in the last 5 seconds


def copy(source: Path, target: Path) -> None:
    """What a file system does with the same bytes."""
    subprocess.run(["cp", "-r", source, target], check=True)


def through_orbax(checkpointer: Any, source: Path, target: Path, structs: Any) -> None:
    """Restores onto other shardings, and saves that."""
    tree = checkpointer.restore(source, structs)
    checkpointer.save(target, tree)
    checkpointer.wait_until_finished()


def structs_on(store: Path, mesh: str) -> Any:
    """The store's tree as Orbax wants to be told it: shapes, types, shardings on a mesh."""
    import jax

    import gdist.loader
    from gdist.loader.shardings import device_mesh, shardings_on
    from gdist.loader.trees import nested

    with gdist.open(store) as opened:
        tensors = opened.manifest.tensors
        shardings = shardings_on(device_mesh(mesh, opened.manifest), tensors, None)
        leaves = {
            t.name: jax.ShapeDtypeStruct(t.shape, np.dtype(t.dtype.name), sharding=shardings[t.name])
            for t in tensors
        }
        return nested(tensors, leaves)


def save_orbax(store: Path, target: Path, mesh: str) -> None:
    """The source of Orbax's move: the same arrays on the same mesh."""
    start_jax(mesh)
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target, gdist.load(store, mesh=mesh, verify=False))


def move_once(role: str, directory: Path, mesh: str, memory: str) -> dict[str, float]:
    """Times one move in this process."""
    store, target = directory / "store", directory / "target"
    checkpointer: Any = None
    structs: Any = None
    if role == "orbax":
        start_jax(mesh)
        import orbax.checkpoint as ocp

        checkpointer, structs = ocp.StandardCheckpointer(), structs_on(store, mesh)
    elif role == "gdist":
        import gdist.run.reshard
        import gdist.stores.local
    peak = PeakMemory()
    peak.sample()
    peak.start()
    start, cpu = time.perf_counter(), time.process_time()
    profile: dict[str, float] = {}
    if role == "cp":
        copy(store, target)
    elif role == "gdist":
        profile = dict(gdist.reshard(store, target, mesh=mesh, memory=memory).timing)
    else:
        through_orbax(checkpointer, directory / "orbax", target, structs)
    moved = time.perf_counter()
    os.sync()
    end = time.perf_counter()
    cpu = time.process_time() - cpu
    peak.end()
    return {"wall": end - start, "sync": end - moved, "cpu": cpu, "anon": peak.anonymous, **profile}


def child(*arguments: str) -> str:
    """Runs this file in a process of its own; its standard output."""
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def warm() -> None:
    """A virtual machine is given memory it has not used lately at ten times the price of a page fault."""
    np.ones(WARM_BYTES, np.uint8)


def compare(move: str, mb: int, rounds: int, memory: str, scratch: Path | None) -> int:
    """One move, all contestants; how many goals it misses."""
    before, after = move.split(":")
    directory = Path(tempfile.mkdtemp(prefix="gdist-bench-", dir=scratch))
    missed = 0
    try:
        common = ("--dir", str(directory), "--mesh")
        child("--make", str(mb), *common, before)
        child("--save", *common, before)
        results: dict[str, list[dict[str, float]]] = {role: [] for role in ROLES}
        for number in range(rounds):
            for role in ROLES:
                warm()
                line = child("--role", role, "--memory", memory, *common, after).splitlines()[-1]
                results[role].append(json.loads(line))
                if role == "gdist" and not number:
                    assert gdist.verify(directory / "target").ok, "what was written is not what was read"
                shutil.rmtree(directory / "target")
                os.sync()
                time.sleep(SETTLE_SECONDS)
        nbytes = sum(f.stat().st_size for f in (directory / "store").rglob("*") if f.is_file())
        missed = report(move, nbytes, results, memory)
    finally:
        shutil.rmtree(directory)
    return missed


def report(move: str, nbytes: int, results: dict[str, list[dict[str, float]]], memory: str) -> int:
    """Prints medians and ratios; how many goals are missed."""
    rounds = len(results["cp"])
    print(f"{nbytes / 1e9:.2f} GB, {move.replace(':', ' -> ')}, medians of {rounds} (min to max)")
    print(f"{'':>8} {'wall s':>7} {'of it sync':>10} {'CPU s':>7} {'GB/s':>6} {'anon MB':>8}")
    medians = {
        role: {key: statistics.median(run[key] for run in runs) for key in ("wall", "sync", "cpu", "anon")}
        for role, runs in results.items()
    }
    for role, m in medians.items():
        walls = [run["wall"] for run in results[role]]
        spread = f"({min(walls):.2f} to {max(walls):.2f})"
        rate = nbytes / 1e9 / m["wall"]
        anon = m["anon"] * 2**20 / 1e6
        cpu = "" if role == "cp" else f"{m['cpu']:.2f}"
        print(f"{role:>8} {m['wall']:7.2f} {m['sync']:10.2f} {cpu:>7} {rate:6.2f} {anon:8.0f}  {spread}")
    of_cp = medians["cp"]["wall"] / medians["gdist"]["wall"]
    of_orbax = medians["orbax"]["wall"] / medians["gdist"]["wall"]
    most = max(run["anon"] for run in results["gdist"]) * 2**20 / 1e6
    bound = parse_bytes(memory) / 1e6 + GOAL_EXTRA_MB
    print(f"throughput x{of_cp:.2f} of cp (goal {GOAL_CP}), x{of_orbax:.1f} of Orbax (goal {GOAL_ORBAX:.0f})")
    print(
        f"peak memory {most:.0f} MB (goal {bound:.0f}), Orbax {medians['orbax']['anon'] * 2**20 / 1e6:.0f} MB"
    )
    profile = {k: v for k, v in results["gdist"][-1].items() if k not in medians["gdist"]}
    print("seconds of the last gdist run, summed over threads: ", end="")
    print(", ".join(f"{name} {seconds:.2f}" for name, seconds in profile.items()))
    return (of_cp < GOAL_CP) + (of_orbax < GOAL_ORBAX) + (most > bound)


def main() -> None:
    """Reads the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=2000, help="size of the store in MB")
    parser.add_argument("--moves", nargs="+", default=["1x1:8x8", "8x8:2x4"], help="meshes, FROM:TO")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="1GiB", help="as of gdist reshard")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--mesh", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for move in args.moves:
        for mesh in move.split(":"):
            parse_mesh(mesh)
    if args.make:
        make_store(args.dir / "store", args.make, args.mesh)
    elif args.save:
        save_orbax(args.dir / "store", args.dir / "orbax", args.mesh)
    elif args.role:
        print(json.dumps(move_once(args.role, args.dir, args.mesh, args.memory)))
    else:
        sys.exit(sum(compare(move, args.mb, args.rounds, args.memory, args.dir) for move in args.moves) > 0)


if __name__ == "__main__":
    main()
