"""Loading a store into JAX on CPU, against an Orbax restore of the same arrays onto the same shardings.

    python benchmarks/load_jax.py [--mb 1000] [--runs 5] [--dir DIR] [--cut 8x8 --mesh 2x4 | --overhead]

By itself it loads a store cut for 8x8 on 64 devices, then onto a mesh it was not cut for, then one that was
not cut at all onto 64 devices, and last measures what an array and a shard cost beside their bytes.

Every load is a fresh process, page cache warm, the contestants take turns, medians are printed. "read" adds
one pass over every byte of every distinct shard, so that a lazy map is not flattered. Orbax is its
StandardCheckpointer as it comes: OCDBT and zstd. "readinto" reads the same files into fresh buffers, one
thread, and is what any loader that copies could at best do with one. Goals: on the store's own mesh 10 times
Orbax without digests and twice with; on another mesh twice Orbax and 0.6 of readinto.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from math import prod
from pathlib import Path

CONTESTANTS = ("orbax", "readinto", "gdist", "gdist+digests")
SCENARIOS = (("8x8", "8x8"), ("8x8", "2x4"), ("1x1", "8x8"))  # what the store is cut for, and loaded on
SAME_GOALS = {"gdist": 10.0, "gdist+digests": 2.0}  # times Orbax
OTHER_GOALS = {"gdist": 2.0}
FLOOR_GOAL = 0.6  # of readinto, on another mesh
TINY_TENSORS = 770  # as many files as Grok-1 has
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


def make_tiny(root: Path) -> None:
    """Many tensors of next to no bytes, each in 64 slabs."""
    import numpy as np

    from gdist.testing.stores import write_store

    arrays = {f"layer.{n}.w": np.full((64, 64), n % 100, np.int8) for n in range(TINY_TENSORS)}
    write_store(root, arrays, mesh="8x8", rules={"rules": [[".*", ["data", "model"]]]}, piece_length=2**20)


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
    tree: object
    if contestant == "orbax":
        tree = checkpointer.restore(orbax_root, target)
    elif contestant == "readinto":
        tree = read_files(root)
    else:
        tree = gdist.load(root, mesh=mesh, verify=contestant.endswith("digests"))
    jax.block_until_ready(tree)
    loaded, cpu = time.perf_counter(), time.process_time() - cpu
    value = read_all(tree) if contestant != "readinto" else None
    done = time.perf_counter()
    memory.end()
    return {
        "load": loaded - before,
        "read": done - before,
        "cpu": cpu,
        "anon": memory.anonymous,
        "file": memory.file,
        **({} if value is None else {"xor": value}),
    }


def read_files(root: Path) -> object:
    """Every shard file in a buffer of its own."""
    import numpy as np

    buffers = []
    for path in sorted(root.glob("*/c/**/*")):
        if path.is_file():
            buffer = np.empty(path.stat().st_size, np.uint8)
            with path.open("rb", buffering=0) as file:
                file.readinto(buffer)
            buffers.append(buffer)
    return buffers


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


def compare(mb: int, cut: str, mesh: str, runs: int, directory: Path) -> int:
    root, orbax_root = directory / "store", directory / "orbax"
    child("--make", str(mb), "--mesh", cut, "--dir", str(directory))
    child("--save", "--mesh", cut, "--dir", str(directory))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for run in range(runs + 1):  # the first round warms the page cache
        for name in CONTESTANTS:
            answer = json.loads(
                child("--load", name, "--mesh", mesh, "--dir", str(directory)).splitlines()[-1]
            )
            if run:
                results[name].append(answer)
    assert len({r["xor"] for rows in results.values() for r in rows if "xor" in r}) == 1, (
        "the loaders disagree about the bytes"
    )
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file()) / 1e9
    print(
        f"\n{size:.2f} GB cut for {cut}, loaded on {mesh}, medians of {runs}; "
        f"Orbax on disk {du(orbax_root):.2f} GB"
    )
    print(
        f"{'':>14} {'load s':>8} {'+read s':>8} {'CPU s':>7} {'anon MiB':>9} {'file MiB':>9}"
        f"   {'x Orbax':>8} {'+read':>6} {'x readinto':>11}"
    )
    medians = {
        name: {key: statistics.median(r[key] for r in rows) for key in rows[0]}
        for name, rows in results.items()
    }
    return sum(line(name, m, medians, cut == mesh) for name, m in medians.items())


def line(name: str, m: dict[str, float], medians: dict[str, dict[str, float]], same: bool) -> int:
    """Prints a contestant's row; how many goals it misses."""
    orbax, floor = medians["orbax"], medians["readinto"]
    ratio, share = orbax["load"] / m["load"], floor["load"] / m["load"]
    goal = (SAME_GOALS if same else OTHER_GOALS).get(name, 0.0)
    wants_share = name == "gdist" and not same
    text = f"  goal {goal:.0f} x Orbax" if goal else ""
    text += f", {FLOOR_GOAL} x readinto" if wants_share else ""
    print(
        f"{name:>14} {m['load']:8.3f} {m['read']:8.3f} {m['cpu']:7.2f} {m['anon']:9.0f} {m['file']:9.0f}"
        f"   {ratio:8.1f} {orbax['read'] / m['read']:6.1f} {share:11.2f}{text}"
    )
    return (ratio < goal) + (wants_share and share < FLOOR_GOAL)


def overhead(runs: int, directory: Path) -> None:
    """What arrays cost beside their bytes, and what JAX alone takes of that."""
    child("--make-tiny", "--dir", str(directory))
    results: dict[str, list[float]] = {"gdist.load": [], "JAX alone": []}
    for _ in range(runs):
        answer = json.loads(child("--load-tiny", "--dir", str(directory)).splitlines()[-1])
        for name, seconds in answer.items():
            results[name].append(seconds)
    print(f"\n{TINY_TENSORS} tensors of 4 KiB on 64 devices, one process, medians of {runs}")
    for name, rows in results.items():
        seconds = statistics.median(rows)
        print(
            f"{name:>14} {seconds:8.3f} s {seconds / TINY_TENSORS * 1e6:8.0f} us an array "
            f"{seconds / TINY_TENSORS / 64 * 1e6:8.1f} us a shard"
        )


def load_tiny(root: Path) -> dict[str, float]:
    """Times a load of the tiny tensors, and `make_array_from_callback` over arrays that are at hand."""
    start_jax("8x8")
    import jax

    import gdist
    from gdist.stores.buffers import aligned_empty

    before = time.perf_counter()
    tree = gdist.load(root, verify=False)
    jax.block_until_ready(tree)
    seconds = time.perf_counter() - before
    sharding = jax.tree.leaves(tree)[0].sharding
    slab = aligned_empty((8, 8), jax.numpy.int8.dtype)
    before = time.perf_counter()
    arrays = [jax.make_array_from_callback((64, 64), sharding, lambda _: slab) for _ in range(TINY_TENSORS)]
    jax.block_until_ready(arrays)
    return {"gdist.load": seconds, "JAX alone": time.perf_counter() - before}


def du(directory: Path) -> float:
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=1000, help="size of the store in MB")
    parser.add_argument("--cut", help="the mesh the store is cut for (default: that it is loaded on)")
    parser.add_argument("--mesh", help="the mesh it is loaded on (default: all scenarios)")
    parser.add_argument("--overhead", action="store_true", help="only the cost of arrays without bytes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to write (default: a temporary directory)")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--make-tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load-tiny", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_store(args.dir / "store", args.make, args.mesh)
    elif args.save:
        save_orbax(args.dir / "store", args.dir / "orbax", args.mesh)
    elif args.load:
        print(json.dumps(load_once(args.load, args.dir / "store", args.dir / "orbax", args.mesh)))
    elif args.make_tiny:
        make_tiny(args.dir / "tiny")
    elif args.load_tiny:
        print(json.dumps(load_tiny(args.dir / "tiny")))
    else:
        sys.exit(run_all(args) > 0)


def run_all(args: argparse.Namespace) -> int:
    """Runs what was asked for, each in a directory of its own; how many goals were missed."""
    scenarios = ((args.cut or args.mesh, args.mesh),) if args.mesh else () if args.overhead else SCENARIOS
    missed = 0
    for cut, mesh in scenarios:
        with tempfile.TemporaryDirectory(prefix="gdist-bench-", dir=args.dir) as directory:
            missed += compare(args.mb, cut, mesh, args.runs, Path(directory))
    if not args.mesh:
        with tempfile.TemporaryDirectory(prefix="gdist-bench-", dir=args.dir) as directory:
            overhead(args.runs, Path(directory))
    return missed


if __name__ == "__main__":
    main()
