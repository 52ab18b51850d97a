"""Loading a store into JAX on CPU, against an Orbax restore of the same arrays onto the same shardings.

    python benchmarks/load_jax.py [--mb 1000] [--mesh 1x8] [--runs 5] [--dir DIR]

Every load is a fresh process, page cache warm, the contestants take turns, medians are printed. "read" adds
one pass over every byte of every distinct shard, so that a lazy map is not flattered. Orbax is its
StandardCheckpointer as it comes: OCDBT and zstd. Goals: 15 times Orbax without digests, twice with.
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
import threading
import time
from math import prod
from pathlib import Path

CONTESTANTS = ("orbax", "gdist", "gdist+digests")
GOALS = {"gdist": 15.0, "gdist+digests": 2.0}
RULES = {
    "axes": ["data", "model"],
    "rules": [
        ["attention.(query|key|value)$", ["data", "model"]],
        ["attention.linear$", ["model", "data"]],
        ["moe.linear_1$", [None, "model", "data"]],
        ["moe.linear", [None, "data", "model"]],
        ["embedding$", [None, ["data", "model"]]],
        [".*", []],
    ],
}


def make_store(root: Path, mb: int, mesh: str) -> None:
    """A small Grok-like model: int8 weights drawn like quantised Gaussians, bfloat16 scales, float32 rest."""
    import ml_dtypes
    import numpy as np

    from gdist.core.tensor import Quantisation
    from gdist.testing.stores import write_store

    rng = np.random.default_rng(0)
    noise = np.clip(np.rint(rng.standard_normal(2**26, np.float32) * 32), -127, 127).astype(np.int8)
    arrays = {"embedding": rng.standard_normal((32768, 1024), np.float32)}
    quantised = {}

    def weight(name: str, shape: tuple[int, ...]) -> None:
        start = int(rng.integers(0, noise.size - prod(shape)))
        scales = rng.random((*shape[:-2], 1, shape[-1]), np.float32).astype(ml_dtypes.bfloat16)
        arrays[f"{name}.weight"] = noise[start : start + prod(shape)].reshape(shape)
        arrays[f"{name}.scales"] = scales
        quantised.update(
            {f"{name}.{role}": Quantisation(name, role, 1, len(shape) - 2) for role in ("weight", "scales")}
        )

    for layer in range(max(1, (mb - 134) // 105)):
        for part in ("query", "key", "value", "linear"):
            weight(f"layer.{layer}.attention.{part}", (1024, 1024))
        for part, shape in (
            ("linear", (8, 1024, 4096)),
            ("linear_v", (8, 1024, 4096)),
            ("linear_1", (8, 4096, 1024)),
        ):
            weight(f"layer.{layer}.moe.{part}", shape)
        for part in range(4):
            arrays[f"layer.{layer}.norm_{part}"] = rng.standard_normal(1024, np.float32)
    write_store(root, arrays, mesh=mesh, rules=RULES, quantised=quantised, piece_length=2**24)


def start_jax(mesh: str) -> None:
    from gdist.core.mesh import parse_mesh

    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={parse_mesh(mesh).devices}"
    import jax

    jax.device_put(1.0).block_until_ready()


def save_orbax(root: Path, orbax_root: Path, mesh: str) -> None:
    start_jax(mesh)
    import orbax.checkpoint as ocp

    import gdist

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(orbax_root, gdist.load(root, mesh=mesh, verify=False))


class PeakMemory(threading.Thread):
    """Samples this process's resident memory, anonymous and file-backed, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.file = 0.0
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.02):
            self.sample()

    def sample(self) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        kib = {key: int(status[key].split()[0]) for key in ("RssAnon", "RssFile", "RssShmem")}
        self.anonymous = max(self.anonymous, (kib["RssAnon"] + kib["RssShmem"]) / 1024)
        self.file = max(self.file, kib["RssFile"] / 1024)

    def end(self) -> None:
        self._stop_now.set()
        self.join()
        self.sample()


def load_once(contestant: str, root: Path, orbax_root: Path, mesh: str) -> dict[str, float]:
    """Times one load in this process; libraries and devices are ready before the clock starts."""
    start_jax(mesh)
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    import gdist
    import gdist.loader
    import gdist.stores

    memory = PeakMemory()
    if contestant == "orbax":
        with gdist.open(root) as store:  # shapes and shardings, told to Orbax before the clock starts
            from gdist.loader.shardings import device_mesh, shardings_on
            from gdist.loader.trees import nested

            tensors = store.manifest.tensors
            shardings = shardings_on(device_mesh(mesh, store.manifest), tensors, None)
            structs = {
                t.name: jax.ShapeDtypeStruct(t.shape, np.dtype(t.dtype.name), sharding=shardings[t.name])
                for t in tensors
            }
            target = nested(tensors, structs)
        checkpointer = ocp.StandardCheckpointer()
    memory.start()
    before, cpu = time.perf_counter(), time.process_time()
    if contestant == "orbax":
        tree = checkpointer.restore(orbax_root, target)
    else:
        tree = gdist.load(root, mesh=mesh, verify=contestant.endswith("digests"))
    jax.block_until_ready(tree)
    loaded, cpu = time.perf_counter(), time.process_time() - cpu
    value = read_all(tree)
    done = time.perf_counter()
    memory.end()
    return {
        "load": loaded - before,
        "read": done - before,
        "cpu": cpu,
        "anon": memory.anonymous,
        "file": memory.file,
        "xor": value,
    }


def read_all(tree: object) -> int:
    """The exclusive or of all bytes of every distinct shard."""
    import jax
    import numpy as np

    value = 0
    for leaf in jax.tree.leaves(tree):
        distinct = {str(shard.index): shard.data for shard in leaf.addressable_shards}
        for data in distinct.values():
            flat = np.asarray(data).reshape(-1).view(np.uint8)
            whole = flat.size // 8 * 8
            value ^= int(np.bitwise_xor.reduce(flat[:whole].view(np.uint64), initial=0))
            value ^= int(np.bitwise_xor.reduce(flat[whole:], initial=0))
    return value


def child(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return result.stdout


def compare(mb: int, mesh: str, runs: int, directory: Path) -> int:
    root, orbax_root = directory / "store", directory / "orbax"
    child("--make", str(mb), "--mesh", mesh, "--dir", str(directory))
    child("--save", "--mesh", mesh, "--dir", str(directory))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for run in range(runs + 1):  # the first round warms the page cache
        for name in CONTESTANTS:
            answer = json.loads(
                child("--load", name, "--mesh", mesh, "--dir", str(directory)).splitlines()[-1]
            )
            if run:
                results[name].append(answer)
    assert len({r["xor"] for rows in results.values() for r in rows}) == 1, (
        "the loaders disagree about the bytes"
    )
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file()) / 1e9
    print(f"{size:.2f} GB, mesh {mesh}, medians of {runs}; Orbax on disk {du(orbax_root):.2f} GB")
    print(f"{'':>14} {'load s':>8} {'+read s':>8} {'CPU s':>7} {'anon MiB':>9} {'file MiB':>9}   times Orbax")
    medians = {
        name: {key: statistics.median(r[key] for r in rows) for key in rows[0]}
        for name, rows in results.items()
    }
    base, missed = medians["orbax"], 0
    for name, m in medians.items():
        ratio = base["load"] / m["load"]
        missed += ratio < GOALS.get(name, 0)
        goal = f"  goal {GOALS[name]:.0f}" if name in GOALS else ""
        print(
            f"{name:>14} {m['load']:8.3f} {m['read']:8.3f} {m['cpu']:7.2f} {m['anon']:9.0f} {m['file']:9.0f}"
            f"   {ratio:6.1f} load, {base['read'] / m['read']:5.1f} load+read{goal}"
        )
    return missed


def du(directory: Path) -> float:
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=1000, help="size of the store in MB")
    parser.add_argument("--mesh", default="1x8")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to write (default: a temporary directory)")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_store(args.dir / "store", args.make, args.mesh)
    elif args.save:
        save_orbax(args.dir / "store", args.dir / "orbax", args.mesh)
    elif args.load:
        print(json.dumps(load_once(args.load, args.dir / "store", args.dir / "orbax", args.mesh)))
    else:
        directory = Path(tempfile.mkdtemp(prefix="gdist-bench-", dir=args.dir))
        try:
            sys.exit(compare(args.mb, args.mesh, args.runs, directory) > 0)
        finally:
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
