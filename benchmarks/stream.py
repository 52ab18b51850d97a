"""Arrays on the devices while their checkpoint still downloads, at a capped rate.

    python benchmarks/stream.py [--megabytes 500] [--rate 40MB/s] [--mesh 1x8] [--rounds 3]

A seeder in a process of its own serves a scaled-down Grok-1 on loopback, through a way that lets `--rate` a
second pass. `gdist fetch` and `gdist.stream` run side by side, in two processes and in one; libraries and
devices are ready before the clock starts. Prints the medians of the time to the first layer on the devices
(the embedding and all of layer 0), to the last piece verified, to the last array on the devices, and the
ratio of the last two (goal: at most 1.05). Beside them, what a user has without streaming: the store
complete, then `gdist.load` in a fresh process.
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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from gdist.core.magnet import format_magnet
from gdist.core.mesh import parse_mesh
from gdist.core.units import format_rate, parse_rate
from gdist.events import Event, Finished, PieceVerified, ShardCommitted
from gdist.testing.checkpoints import write_grok1
from gdist.testing.swarm import LOCALHOST, Slow, seed

GOAL = 1.05
LAYERS = 16
FIRST = "decoder_layer_0."
LOOPBACK = {"dht": False, "listen": f"{LOCALHOST}:0"}
Times = dict[str, float]


# --- roles, each in a process of its own -----------------------------------------------------------------


def start_jax(mesh: str) -> None:
    """Devices that are ready, and every library that the clock should not see imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={parse_mesh(mesh).devices}"
    import jax

    import gdist.loader
    import gdist.run.fetch  # noqa: F401

    jax.device_put(1.0).block_until_ready()


class Clock:
    """Notes when things happen to a fetch; the monotonic clock is one for all processes of a machine."""

    def __init__(self) -> None:
        self.times: Times = {}

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case PieceVerified():
                self.times["last piece"] = now
            case ShardCommitted():
                self.times["last shard"] = now
            case Finished():
                self.times["complete"] = now


def streamed(stream: Iterator[tuple[str, object]]) -> Times:
    """When the first layer, and when everything, is on the devices."""
    import jax

    times: Times = {}
    for path, array in stream:
        jax.block_until_ready(array)
        times["last array"] = time.monotonic()
        if FIRST in path:
            times["first layer"] = times["last array"]
    return times


def run_role(role: str, magnet: str, store: Path, mesh: str) -> Times:
    import gdist

    if role != "fetch":
        start_jax(mesh)
    else:
        import gdist.run.fetch
    print("ready", flush=True)
    sys.stdin.readline()
    clock = Clock()
    begun = {"begun": time.monotonic()}
    if role == "load":
        import jax

        jax.block_until_ready(gdist.load(store, mesh=mesh))
        return {"seconds": time.monotonic() - begun["begun"]}
    if role == "stream":
        return streamed(gdist.stream(store, mesh=mesh))
    if role == "fetch":
        gdist.fetch(magnet, store, mesh=mesh, observe=clock, **LOOPBACK)
        return {**begun, **clock.times}
    with gdist.fetching(magnet, store, mesh=mesh, observe=clock, **LOOPBACK) as job:
        times = streamed(gdist.stream(job, mesh=mesh))
    return {**begun, **clock.times, **times}


# --- the parent -------------------------------------------------------------------------------------------


def start(role: str, magnet: str, store: Path, mesh: str) -> subprocess.Popen[str]:
    """A role, ready to begin."""
    words = ["--role", role, "--magnet", magnet, "--store", str(store), "--mesh", mesh]
    process = subprocess.Popen(
        [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if pipe(process.stdout).readline() != "ready\n":
        sys.exit(f"{role} did not start")
    return process


def pipe(end: IO[str] | None) -> IO[str]:
    assert end is not None
    return end


def together(*processes: subprocess.Popen[str]) -> Times:
    """Lets roles begin at once; what they measured."""
    for process in processes:
        pipe(process.stdin).write("go\n")
        pipe(process.stdin).flush()
    times: Times = {}
    for process in processes:
        said, _ = process.communicate()
        if process.returncode:
            sys.exit(process.returncode)
        times |= json.loads(said.splitlines()[-1])
    return times


def measure(seeder_port: int, magnet: str, scratch: Path, mesh: str, rate: float) -> dict[str, Times]:
    """One round: both ways to stream, and a load of what was fetched."""
    results: dict[str, Times] = {}
    for way, roles in (("two processes", ("stream", "fetch")), ("one process", ("both",))):
        store = scratch / "store"
        with Slow(seeder_port, rate) as tap:
            through = magnet.replace(f":{seeder_port}", f":{tap.port}")
            times = together(*(start(role, through, store, mesh) for role in roles))
        begun = times.pop("begun")
        results[way] = {what: when - begun for what, when in times.items()}
        if way == "two processes":
            loaded = together(start("load", magnet, store, mesh))["seconds"]
            results["fetch, then load"] = {
                **{what: results[way][what] for what in ("last piece", "complete")},
                **dict.fromkeys(("first layer", "last array"), results[way]["complete"] + loaded),
            }
        shutil.rmtree(store)
    return results


def report(rounds: list[dict[str, Times]]) -> int:
    """Prints medians; how many goals were missed."""
    columns = ("first layer", "last piece", "last array", "complete")
    print(f"{'':18}" + "".join(f"{name:>13}" for name in columns) + "   last array / last piece")
    missed = 0
    for way in rounds[0]:
        middle = {name: statistics.median(r[way][name] for r in rounds) for name in columns}
        ratios = [r[way]["last array"] / r[way]["last piece"] for r in rounds]
        ratio = statistics.median(ratios)
        goal = f"  goal {GOAL}" if "process" in way else ""
        missed += bool(goal) and ratio > GOAL
        row = "".join(f"{middle[name]:11.2f} s" for name in columns)
        print(f"{way:18}{row}   {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}){goal}")
    return missed


def main() -> None:
    """Reads the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rate", default="40MB/s")
    parser.add_argument("--mesh", default="1x8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=None, help="a directory on the disk to measure")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--magnet", help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        print(json.dumps(run_role(args.role, args.magnet, args.store, args.mesh)))
        return
    scratch = Path(tempfile.mkdtemp(prefix="gdist-bench-", dir=args.scratch))
    try:
        scale = max(1, round((args.megabytes * 4 / LAYERS / 0.9) ** 0.5))
        sizes = {"emb": 64 * scale, "ffn": 128 * scale, "kv": 16 * scale, "vocab": 256 * scale}
        write_grok1(scratch / "grok", layers=LAYERS, **sizes)
        nbytes = sum(path.stat().st_size for path in (scratch / "grok").rglob("*") if path.is_file())
        rate = parse_rate(args.rate)
        with seed(scratch / "grok", process=True) as seeded:
            magnet = format_magnet(replace(seeded.magnet, peers=((LOCALHOST, seeded.port),)))
            rounds = [measure(seeded.port, magnet, scratch, args.mesh, rate) for _ in range(args.rounds)]
        print(
            f"payload {nbytes / 1e9:.2f} GB at {format_rate(rate)}, {LAYERS} layers, mesh {args.mesh}, "
            f"medians of {args.rounds}; seconds since the fetch began"
        )
        sys.exit(report(rounds) > 0)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
