"""The headers of a torch checkpoint of Mixtral 8x7B's size: what it costs to know them, and to plan a fetch.

    python benchmarks/headers.py [--mesh 8x8] [--piece-mib 16] [--rounds 3]

torch itself writes the file, 93.4 GB (87 GiB) with the bytes of its storages left out: a sparse file of about
a megabyte, its headers real. Fresh processes then run `gdist inspect` over the file, and `gdist plan` over a
magnet of it that a seeder in another process serves on loopback. Prints wall and CPU seconds and peak
resident memory, start of the interpreter included, against an interpreter that only imports NumPy, and the
pieces that a scan touches, as it is and with every member's local header read.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from plan_grok1 import run

from gdist.core.extent import Extent
from gdist.core.magnet import format_magnet
from gdist.formats import Scan, drive, torch_zip
from gdist.testing.swarm import seed

LAYERS, DIM, FFN, EXPERTS, HEADS, KV_HEADS, VOCAB = 32, 4096, 14336, 8, 32, 8, 32000
GOAL_SECONDS, GOAL_BYTES = 5, 300e6  # of work, and of memory, to read the headers and plan from a magnet
ATTEMPTS = 3


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The parameters of the release, by its own names."""
    kv = DIM // HEADS * KV_HEADS
    yield "tok_embeddings.weight", (VOCAB, DIM)
    for layer in range(LAYERS):
        prefix = f"layers.{layer}."
        for name, rows in (("wq", DIM), ("wk", kv), ("wv", kv), ("wo", DIM)):
            yield f"{prefix}attention.{name}.weight", (rows, DIM)
        for name in ("w1", "w2", "w3"):
            yield f"{prefix}block_sparse_moe.{name}", (EXPERTS * FFN, DIM)
        yield f"{prefix}block_sparse_moe.gate.weight", (EXPERTS, DIM)
        for name in ("attention_norm", "ffn_norm"):
            yield f"{prefix}{name}.weight", (DIM,)
    yield "norm.weight", (DIM,)
    yield "output.weight", (VOCAB, DIM)


def write(path: Path) -> None:
    """Writes the checkpoint; its storages are reserved in memory and on disk and touched in neither."""
    import torch

    tree = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes()}
    with torch.serialization.skip_data():
        torch.save(tree, path)


def torrent_of(path: Path, piece_length: int) -> bytes:
    """A v1 torrent of a sparse file; pieces that are all hole are hashed once."""
    size, hashes = path.stat().st_size, bytearray()
    hole = hashlib.sha1(bytes(piece_length)).digest()
    with path.open("rb") as file:
        data = -1  # where the next data starts
        for start in range(0, size, piece_length):
            length = min(piece_length, size - start)
            if data < start:
                data = os.lseek(file.fileno(), start, os.SEEK_DATA)
            if data >= start + length and length == piece_length:
                hashes += hole
            else:
                file.seek(start)
                hashes += hashlib.sha1(file.read(length)).digest()
    name = path.name.encode()
    info = b"d6:lengthi%de4:name%d:%s12:piece lengthi%de" % (size, len(name), name, piece_length)
    return b"d4:info" + info + b"6:pieces%d:%see" % (len(hashes), bytes(hashes))


def pieces_of(path: Path, scan: Scan, piece_length: int) -> int:
    """How many pieces a scan touches."""
    touched: set[int] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:

        def read(extent: Extent) -> bytes:
            touched.update(range(extent.start // piece_length, -(-extent.stop // piece_length)))
            return data[extent.start : extent.stop]

        drive(scan, read)
    return len(touched)


def main() -> None:
    """Reads the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mesh", default="8x8")
    parser.add_argument("--piece-mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=ATTEMPTS)
    args = parser.parse_args()
    piece_length = args.piece_mib * 2**20
    with tempfile.TemporaryDirectory(prefix="gdist-bench-") as scratch:
        path = Path(scratch, "consolidated.00.pth")
        subprocess.run([sys.executable, __file__, "--write", str(path)], check=True)
        size = path.stat().st_size
        print(f"{size / 1e9:.1f} GB, {path.stat().st_blocks * 512 / 1e6:.1f} MB on disk")
        for name, scan in (("scan", torch_zip.scan(size)), ("every local header", torch_zip.check(size))):
            print(f"{name}: {pieces_of(path, scan, piece_length)} of {-(-size // piece_length)} pieces")
        floor = min(run("-c", "import numpy") for _ in range(args.rounds))
        with seed(path, torrent=torrent_of(path, piece_length), process=True) as seeded:
            magnet = format_magnet(seeded.magnet)
            plan = [
                "plan",
                magnet,
                "--mesh",
                args.mesh,
                "--hosts",
                "8",
                "--no-dht",
                "--listen",
                "127.0.0.1:0",
            ]
            for words, command in (("inspect FILE", ["inspect", str(path)]), ("plan MAGNET", plan)):
                wall, cpu, peak = min(run("-m", "gdist", *command) for _ in range(args.rounds))
                print(
                    f"gdist {words}: {wall:5.2f} s wall, {cpu:5.2f} s CPU, {peak / 1e6:4.0f} MB; "
                    f"x{cpu / floor[1]:.1f} of importing NumPy; "
                    f"goals {GOAL_SECONDS} s, {GOAL_BYTES / 1e6:.0f} MB"
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))  # by itself: what runs here is not to be in torch's memory
    else:
        main()
