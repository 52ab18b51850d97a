"""Making a view of Grok-1, and reading tensors through one.

    python benchmarks/view.py [--mb 1600] [--rounds 5] [--dir DIR]

First `gdist view --trust` in a fresh process on Grok-1's 770 files at their real sizes: real headers, holes
for the 318 GB between them. Goals: 10 s, 300 MB of memory, an index of 64 MB.

Then whole tensors, each into a new array, of a payload of --mb MB that lies in the page cache: fresh
processes in turn, libraries imported before the clock starts. "memmap" copies `np.memmap`. "TensorStore,
Zarr" reads an uncompressed Zarr v3 store that TensorStore wrote, in the view's own chunks, "TensorStore,
view" the view. Prints medians, and CPU seconds a GB. Goals: TensorStore reads the view at 0.9 of the speed of
its Zarr, gdist at 0.8 of the memmap's, with digests and without.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  makes NumPy know bfloat16
import numpy as np

import gdist
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.core.view_entries import view_document
from gdist.testing.checkpoints import grok1_files, write_grok1, write_sparse

REAL = {"layers": 64, "emb": 6144, "ffn": 32768, "kv": 1024, "vocab": 131072}
GOAL_SECONDS, GOAL_MEMORY_MB, GOAL_INDEX_MB = 10, 300, 64
ROLES = ("memmap", "gdist", "gdist, digests", "TensorStore, Zarr", "TensorStore, view")
GOALS = {
    "gdist": ("memmap", 0.8),
    "gdist, digests": ("memmap", 0.8),
    "TensorStore, view": ("TensorStore, Zarr", 0.9),
}


def make_index(directory: Path) -> int:
    """Times `gdist view` on Grok-1; how many goals are missed."""
    nbytes = 0
    for file in grok1_files(**REAL, numpy1=True):
        path = directory / "grok-1" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sparse(path, file.layout)
        nbytes += file.layout.nbytes
    command = [
        sys.executable,
        "-m",
        "gdist",
        "view",
        "--trust",
        str(directory / "grok-1"),
        str(directory / "v"),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall, memory = time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6
    assert not status, command
    view = directory / "v"
    sizes = dict.fromkeys((path.name for path in view.iterdir() if not path.is_symlink()), 0)
    for path in view.rglob("*"):  # does not follow the link to the payload
        if path.is_file() and not path.is_symlink():
            sizes[path.relative_to(view).parts[0]] += path.stat().st_size
    index = sum(sizes.values()) / 1e6
    print(
        f"gdist view --trust, {nbytes / 1e9:.1f} GB in 770 files: {wall:.2f} s (goal {GOAL_SECONDS}), ",
        end="",
    )
    print(
        f"CPU {usage.ru_utime + usage.ru_stime:.2f} s, {memory:.0f} MB of memory (goal {GOAL_MEMORY_MB}), ",
        end="",
    )
    print(f"index {index:.1f} MB (goal {GOAL_INDEX_MB})")
    print(
        "  "
        + ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sorted(sizes.items(), key=lambda s: -s[1]))
    )
    return (wall > GOAL_SECONDS) + (memory > GOAL_MEMORY_MB) + (index > GOAL_INDEX_MB)


def make_payload(directory: Path, mb: int) -> None:
    """A Grok-1 of other sizes, a view beside it, and the same chunks as a store of TensorStore's."""
    write_grok1(directory / "payload", layers=max(1, round(mb / 410)), emb=2048, ffn=8192, kv=512, vocab=1024)
    gdist.view(directory / "payload", directory / "view")
    import tensorstore as ts

    with gdist.open(directory / "view", verify=False) as store:
        for tensor in store.manifest.tensors:
            document = view_document(tensor)
            metadata = {
                k: document[k] for k in document if k not in ("zarr_format", "node_type", "attributes")
            }
            kvstore = {"driver": "file", "path": f"{directory}/zarr/{tensor.name}/"}
            array = ts.open(
                {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata}, create=True
            ).result()
            array.write(store[tensor.name].read()).result()


def mapped(root: Path, manifest: StoreManifest, tensor: StoreTensor) -> Any:
    """A tensor in one part as NumPy itself maps it."""
    ((file, offset),) = tensor.view.at
    return np.memmap(root / manifest.files[file].path, np.dtype(tensor.dtype.name), "r", offset, tensor.shape)


def read_once(role: str, directory: Path) -> dict[str, float]:
    """Times the reading of all tensors in this process; "xor" is of all bytes, not in the time."""
    import tensorstore as ts

    store = gdist.open(directory / "view", verify=role.endswith("digests"))
    tensors = store.manifest.tensors
    maps = {tensor.name: mapped(directory / "view", store.manifest, tensor) for tensor in tensors}
    context = ts.Context()

    def through_tensorstore(name: str, kvstore: dict[str, Any]) -> Any:
        spec = {"driver": "zarr3", "kvstore": {**kvstore}, "fill_missing_data_reads": False}
        return ts.open(spec, context=context).result().read().result()

    def read(name: str) -> Any:
        match role:
            case "memmap":
                return np.array(maps[name])
            case "TensorStore, Zarr":
                return through_tensorstore(name, {"driver": "file", "path": f"{directory}/zarr/{name}/"})
            case "TensorStore, view":
                base = {"driver": "file", "path": f"{directory}/view/"}
                return through_tensorstore(name, {"driver": "ocdbt", "base": base, "path": f"{name}/"})
            case _:
                return store[name].read()

    wall = cpu = 0.0
    nbytes = value = 0
    for tensor in tensors:
        start, busy = time.perf_counter(), time.process_time()
        array = read(tensor.name)
        wall, cpu = wall + time.perf_counter() - start, cpu + time.process_time() - busy
        nbytes += array.nbytes
        value ^= int(
            np.bitwise_xor.reduce(array.reshape(-1).view(np.uint8)[: array.nbytes // 8 * 8].view(np.uint64))
        )
    return {"wall": wall, "cpu": cpu, "nbytes": nbytes, "xor": value}


def child(*arguments: str) -> str:
    """Runs this file in a process of its own; its standard output."""
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(directory: Path, mb: int, rounds: int) -> int:
    """Reads in turn; how many goals are missed."""
    child("--make", str(mb), "--dir", str(directory))
    results: dict[str, list[dict[str, float]]] = {role: [] for role in ROLES}
    for number in range(rounds + 1):  # the first round warms the page cache
        for role in ROLES:
            answer = json.loads(child("--role", role, "--dir", str(directory)).splitlines()[-1])
            if number:
                results[role].append(answer)
    assert len({run["xor"] for runs in results.values() for run in runs}) == 1, (
        "they disagree about the bytes"
    )
    gigabytes = results["memmap"][0]["nbytes"] / 1e9
    walls = {role: statistics.median(run["wall"] for run in runs) for role, runs in results.items()}
    print(f"\n{gigabytes:.2f} GB, whole tensors, medians of {rounds} (min to max)")
    print(f"{'':>18} {'wall s':>7} {'GB/s':>6} {'CPU s/GB':>9}")
    missed = 0
    for role, runs in results.items():
        cpu = statistics.median(run["cpu"] for run in runs) / gigabytes
        spread = f"({min(run['wall'] for run in runs):.2f} to {max(run['wall'] for run in runs):.2f})"
        print(f"{role:>18} {walls[role]:7.2f} {gigabytes / walls[role]:6.2f} {cpu:9.2f}  {spread}", end="")
        if role in GOALS:
            peer, goal = GOALS[role]
            ratio = walls[peer] / walls[role]
            missed += ratio < goal
            print(f"  x{ratio:.2f} of {peer} (goal {goal})", end="")
        print()
    return missed


def main() -> None:
    """Reads the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=1600, help="size of the payload that is read, in MB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to write (default: a temporary directory)")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_payload(args.dir, args.make)
    elif args.role:
        print(json.dumps(read_once(args.role, args.dir)))
    else:
        with tempfile.TemporaryDirectory(prefix="gdist-bench-", dir=args.dir) as directory:
            missed = make_index(Path(directory))
            sys.exit(missed + compare(Path(directory), args.mb, args.rounds) > 0)


if __name__ == "__main__":
    main()
