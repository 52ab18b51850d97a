"""The main job from end to end, as a user would do it, on this machine alone: `make demo`.

    a scaled-down Grok-1 ─▶ make-torrent ─▶ seed (a process of its own)
                                              │ loopback
    magnet ─▶ gdist fetch ─▶ inspect ─▶ verify ─▶ load on an 8x8 mesh ─▶ every bit compared

Every command is the real one and is printed before it runs. Exits 0 only if every array is right.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict  # arrays of NumPy's and ml_dtypes' types

MESH = "8x8"
DEVICES = 64
SCALE = 20  # a 64th of Grok-1's width and more: about 360 MB with four layers
LOOPBACK = ("--no-dht", "--listen", "127.0.0.1:0")  # the demo speaks to nobody outside this machine


class Sizes(TypedDict):
    """Widths of the model, as `gdist.testing.checkpoints` names them."""

    layers: int
    emb: int
    ffn: int
    kv: int
    vocab: int


@dataclass
class QuantizedWeight8bit:
    """What the release's pickles name in `__main__`; only the comparison unpickles them."""

    weight: Any
    scales: Any


def main() -> None:
    """Runs the demo in a scratch directory, which is removed unless --keep is given."""
    parser = argparse.ArgumentParser(description="gdist from a magnet to JAX arrays, on this machine alone")
    parser.add_argument("--keep", action="store_true", help="leave the files, and say where")
    parser.add_argument("--scale", type=int, default=SCALE, help="width of the model in units of 64")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("STORE", "SOURCE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compare:
        store, release = args.compare
        compare(store, release, args.scale)
        return
    scratch = Path(tempfile.mkdtemp(prefix="gdist-demo-"))
    try:
        run(scratch, args.scale)
    finally:
        if args.keep:
            print(f"\nfiles are in {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)


def run(scratch: Path, scale: int) -> None:
    """All steps; raises SystemExit where one fails."""
    from gdist.testing.checkpoints import write_grok1

    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        print(f"\n\033[1m── {step}\033[0m" if sys.stdout.isatty() else f"\n-- {step}", flush=True)
        start = time.monotonic()
        yield
        seconds[step] = time.monotonic() - start

    release, store = scratch / "release", scratch / "store"
    with timed("build a scaled-down Grok-1 (same files, names, pickles and types; four layers)"):
        write_grok1(release, **sizes(scale))
        files = [path for path in release.rglob("*") if path.is_file()]
        print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.0f} MB")
    with timed("make a torrent of it"):
        call("make-torrent", release)
    with timed("seed it, from another process"):
        magnet = seeding(release)
    with magnet as link:
        print(link)
        with timed("fetch the magnet: verified, converted and cut for an 8x8 mesh while it downloads"):
            call("fetch", link, store, "--mesh", MESH, *LOOPBACK)
    with timed("look at the store"):
        call("inspect", store, "--tensor", "decoder_layer_0|embed")
    with timed("verify every shard against its digests"):
        call("verify", store)
    with timed(f"load it in JAX on {DEVICES} pretend devices and compare every bit with the release"):
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
            "JAX_PLATFORMS": "cpu",
        }
        command = [
            sys.executable,
            "-m",
            "gdist.testing.demo",
            "--scale",
            str(scale),
            "--compare",
            str(store),
            str(release),
        ]
        if subprocess.run(command, env=environment).returncode:
            raise SystemExit("the loaded arrays are not those of the release")
    print("\nwhere the time went")
    for step, took in seconds.items():
        print(f"  {took:6.1f} s  {step}")
    print(f"  {sum(seconds.values()):6.1f} s  in all")


def sizes(scale: int) -> Sizes:
    """Grok-1's proportions at a fraction of its width."""
    return {"layers": 4, "emb": 64 * scale, "ffn": 128 * scale, "kv": 16 * scale, "vocab": 256 * scale}


def call(*words: object) -> None:
    """Prints and runs a gdist command; its result stays on stdout, its progress on stderr."""
    shown = shlex.join(["gdist", *map(str, words)])
    print(f"$ {shown}", flush=True)
    done = subprocess.run([sys.executable, "-m", "gdist", *map(str, words)])
    if done.returncode:
        raise SystemExit(f"{shown} ended with {done.returncode}")


@contextmanager
def seeding(release: Path) -> Iterator[str]:
    """`gdist seed` in a process of its own; gives the magnet it prints."""
    torrent = release.with_name(f"{release.name}.torrent")
    words = ["seed", str(torrent), str(release), *LOOPBACK, "--advertise", "127.0.0.1", "--quiet"]
    print(f"$ {shlex.join(['gdist', *words])} &", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "gdist", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        if not link:
            raise SystemExit(f"gdist seed ended with {process.wait()}")
        yield link
    finally:
        process.terminate()
        process.wait(30)


def compare(store: Path, release: Path, scale: int) -> None:
    """In a process with 64 devices: loads the store on the mesh, and checks every shard of every array."""
    import jax
    import numpy as np

    from gdist import loader
    from gdist.testing.checkpoints import grok1_files

    start = time.monotonic()
    tree = loader.load(store, mesh=MESH)
    jax.block_until_ready(tree)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
    took = time.monotonic() - start
    arrays = {
        ".".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    nbytes, shards, names = 0, 0, set()
    for file in grok1_files(**sizes(scale)):
        found = pickle.loads((release / file.path).read_bytes())  # ours, made a minute ago: safe to unpickle
        halves = [found.weight, found.scales] if isinstance(found, QuantizedWeight8bit) else [found]
        for (name, _), expected in zip(file.arrays, halves, strict=True):
            names.add(name)
            for shard in arrays[name].addressable_shards:
                part = np.ascontiguousarray(expected[shard.index])
                if np.asarray(shard.data).tobytes() != part.tobytes():
                    raise SystemExit(f"{name} on {shard.device} differs at {shard.index}")
                shards += 1
            nbytes += expected.nbytes
    if names != set(arrays):
        raise SystemExit(f"names differ: {sorted(names ^ set(arrays))}")
    print(f"{len(names)} arrays, {nbytes / 1e6:.0f} MB, {shards} device slabs: every bit is right")
    print(f"loaded, digests checked, in {took:.2f} s")
    example = "params.transformer.decoder_layer_0.moe.linear.w.weight"
    print(f"{example}: {arrays[example].shape} {arrays[example].dtype} {arrays[example].sharding.spec}")


if __name__ == "__main__":
    main()
