"""Mutated files against every format: nothing but gdist's own errors, in bounded time and memory.

    python tests/formats/fuzz.py FORMAT --seconds 60 [--seed 0]        FORMAT: one of TARGETS, or all

Each input is a sample with a few mutations, of the whole file or of an inner part of it (a pickle, a JSON
header) that is then packed again as its format does, so that mutations get past the outer layer. An input
that ends in any other exception, takes more than `MAX_CPU_SECONDS`, makes the process grow, or is found to
hold arrays outside itself is written beside, as `fuzz-FORMAT-DIGEST`, and ends the run.

A new format adds a `Target`: samples, its scan, and where it has an inner part, how to pack that.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gdist.core.extent import Extent
from gdist.core.tensor import FoundArray
from gdist.errors import GdistError
from gdist.formats import (
    flax_msgpack,
    gguf,
    npy,
    npz,
    pickle_arrays,
    safetensors,
    torch_legacy,
    torch_zip,
)
from gdist.formats.zip_directory import read_members
from gdist.run.headers import FileReport, identify
from gdist.testing.checkpoints import write_safetensors

MAX_CPU_SECONDS = 5.0  # for one input; samples take milliseconds
MAX_GROWTH_BYTES = 256 * 2**20  # of the process, at its highest, for inputs of a few kilobytes
MAX_MUTATIONS = 4
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)


@dataclass(frozen=True)
class Target:
    """What is fuzzed: whole `samples`, their `scan`, and inner parts with the packing around them."""

    samples: Callable[[], Sequence[bytes]]
    scan: Callable[[int], Any]
    parts: Callable[[], Sequence[bytes]] = tuple
    pack: Callable[[bytes], bytes] = bytes
    words: Sequence[bytes] = ()  # what mutations may put in


class Failed(Exception):
    """An input that a format does not stand; `data` is it."""

    def __init__(self, what: str, data: bytes) -> None:
        super().__init__(what)
        self.data = data


class Hung(BaseException):
    """Raised by the timer; no `except Exception` of the code under test holds it."""


# --- samples ----------------------------------------------------------------------------------------------


def _pickles() -> list[bytes]:
    arrays = {
        "a": np.arange(12.0).reshape(3, 4),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "b": np.ones((2, 2), ml_dtypes.bfloat16),
        "list": [np.array(1.5), np.float32(2), None, "text", 7],
    }
    return [pickle.dumps(arrays, protocol) for protocol in (3, 4, 5)]


def _safetensors() -> list[bytes]:
    from tempfile import TemporaryDirectory

    tensors = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.int64)}
    with TemporaryDirectory() as scratch:
        write_safetensors(scratch, tensors, shards=1, index=False)
        return [Path(scratch, "model.safetensors").read_bytes()]


def _safetensors_headers() -> list[bytes]:
    data = _safetensors()[0]
    return [data[8 : 8 + int.from_bytes(data[:8], "little")]]


def _with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(56)


def _torch(*, legacy: bool) -> bytes:
    import torch

    base = torch.arange(24.0).reshape(4, 6)
    tree = {
        "base": base,
        "t": base.t(),
        "columns": base[:, ::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "p": torch.nn.Parameter(torch.ones(2)),
        "f8": base.to(torch.float8_e5m2),
        "plain": [1, 2.5, None, "text", argparse.Namespace(x=1)],
    }
    out = io.BytesIO()
    torch.save(tree, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def _torch_pickles() -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(_torch(legacy=False))) as archive:
        return [archive.read("archive/data.pkl")]


def _torch_zip(pickled: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(_torch_sample())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | {"archive/data.pkl": pickled}
    return _zip(members)


_cache: dict[str, bytes] = {}


def _torch_sample() -> bytes:
    if "torch" not in _cache:
        _cache["torch"] = _torch(legacy=False)
    return _cache["torch"]


def _gguf() -> list[bytes]:
    from tempfile import TemporaryDirectory

    import gguf as package

    with TemporaryDirectory() as scratch:
        writer = package.GGUFWriter(Path(scratch, "m"), "llama")
        writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "", "def"])
        writer.add_array("scores", [1.0, 2.0])
        writer.add_array("nested", [[1, 2], [3]])
        writer.add_bool("flag", True)
        writer.add_custom_alignment(64)
        writer.add_tensor("plain", np.arange(6, dtype=np.float32).reshape(2, 3))
        blocks = np.zeros((2, 36), np.uint8)
        writer.add_tensor("blocks", blocks, raw_dtype=package.GGMLQuantizationType.Q4_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return [Path(scratch, "m").read_bytes()]


def _legacy_parts() -> list[bytes]:
    data = _torch(legacy=True)
    return [data[len(torch_legacy.MAGIC + torch_legacy.VERSION) :]]


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _zips() -> list[bytes]:
    arrays = io.BytesIO()
    np.savez(arrays, a=np.arange(5), b=np.zeros(3))
    return [_zip({"a": b"1", "b/c": b"22"}), arrays.getvalue(), _torch_sample(), _zip({})]


def _npys() -> list[bytes]:
    arrays = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.ones((2, 2), ml_dtypes.bfloat16)),
        np.array(1),
    ]
    files = []
    for version, array in zip(((1, 0), (2, 0), (3, 0)), arrays, strict=True):
        out = io.BytesIO()
        np.lib.format.write_array(out, array, version=version)
        files.append(out.getvalue())
    return files


def _npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.arange(5), **{"b/c": np.zeros((0, 3), np.int8)})
    return out.getvalue()


def _npy_headers() -> list[bytes]:
    return [b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"]


def _npy_of(header: bytes) -> bytes:
    return npy.MAGIC + b"\2\0" + struct.pack("<I", len(header)) + header + bytes(24)


def _msgpacks() -> list[bytes]:
    import msgpack

    def array(*shape: int) -> Any:
        content = bytes(4 * int(np.prod(shape)))
        return msgpack.ExtType(1, msgpack.packb((shape, "float32", content)))

    cut = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 2},
        "chunks": {"0": array(3), "1": array(1)},
    }
    tree = {"params": {"w": array(2, 3), "cut": cut, "list": [array(), None, 1.5, "x", b"y"]}, "step": 7}
    pairs = [(("params", "w"), msgpack.packb(array(2))), (("step",), msgpack.packb(array()))]
    return [msgpack.packb(tree), b"".join(map(msgpack.packb, pairs))]


_OPCODES = [
    bytes([code]) for code in b"(.)0]}abceghijlqrstuXQKMJGRTUCB\x80\x81\x85\x86\x87\x8a\x8c\x8e\x93\x94\x95"
]
_TORCH_WORDS = [
    b"_rebuild_tensor_v3",
    b"UntypedStorage",
    b"cos\nsystem\n",
    b"_rebuild_qtensor",
    b"DoubleStorage",
]


def _tars() -> list[bytes]:
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
            for name, content in (("d/" + "n" * 120 + ".npy", _npys()[0]), ("params.json", b"{}")):
                member = tarfile.TarInfo(name if kind != tarfile.USTAR_FORMAT else name[-20:])
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        found.append(out.getvalue())
    return found


def _tar_headers() -> list[bytes]:
    return [_tars()[0][:512]]  # the others begin with a long name


def _tar_of(header: bytes) -> bytes:
    """An archive whose first header is this one, with the right checksum."""
    block = bytearray(header.ljust(512, b"\0")[:512])
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + _npys()[0].ljust(2048, b"\0") + bytes(1024)


TARGETS = {
    "pickle": Target(_pickles, pickle_arrays.scan, words=_OPCODES),
    "safetensors": Target(
        _safetensors,
        safetensors.scan,
        _safetensors_headers,
        _with_header,
        [b"{", b"}", b"[", b"]", b",", b'"', b"1e999", b"NaN", b"-1", b"[" * 2000, b'"dtype":"I64"'],
    ),
    "torch": Target(
        lambda: [_torch_sample()], torch_zip.scan, _torch_pickles, _torch_zip, _OPCODES + _TORCH_WORDS
    ),
    "torch-check": Target(lambda: [_torch_sample()], torch_zip.check),
    "torch-legacy": Target(
        lambda: [_torch(legacy=True)],
        torch_legacy.check,
        _legacy_parts,
        lambda rest: torch_legacy.MAGIC + torch_legacy.VERSION + rest,
        _OPCODES + _TORCH_WORDS,
    ),
    "gguf": Target(
        _gguf,
        gguf.scan,
        words=[struct.pack("<IQ", 9, n) for n in (1, 3, 1 << 40)]
        + [struct.pack("<IIQ", 9, 9, 1) * 5, b"\x08\0\0\0", struct.pack("<Q", 64), b"general.alignment"],
    ),
    "npy": Target(
        _npys,
        npy.scan,
        _npy_headers,
        _npy_of,
        [b"'", b"(", b")", b",", b"{", b"}", b"[", b"True", b"'descr': '|O'", b"9" * 30, b"-1", b"L"],
    ),
    "npz": Target(lambda: [_npz()], npz.scan, words=[b"PK\1\2", b"PK\3\4", b"PK\5\6", b".npy", b"'|O'"]),
    "flax-msgpack": Target(
        _msgpacks,
        flax_msgpack.scan,
        words=[
            b"\x91",
            b"\x81\xa1a",
            b"\xdf\xff\xff\xff\xff",
            b"\xc7",
            b"\xc9\x00\x00\x00",
            b"\xa7float32",
            b"\xc0",
        ],
    ),
    "tar": Target(
        _tars,
        lambda size: identify(size, FileReport()),
        _tar_headers,
        _tar_of,
        [b"0", b"7", b"L", b"x", b"K", b"2", b"../", b"\x80" + bytes(11), b"77777777777\0", b"10 size=9\n"],
    ),
    "zip": Target(
        _zips, read_members, words=[b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08"]
    ),
}


# --- mutations --------------------------------------------------------------------------------------------


def mutate(data: bytes, rng: random.Random, words: Sequence[bytes]) -> bytes:
    """The sample with one to `MAX_MUTATIONS` changes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, MAX_MUTATIONS)):
        _change(changed, rng, words)
    return bytes(changed)


def _change(data: bytearray, rng: random.Random, words: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    length = min(rng.choice((1, 1, 2, 4, 8, 30, 200)), len(data) - at)
    match rng.randrange(8 if words else 6):
        case 0 if length:
            data[at] ^= 1 << rng.randrange(8)
        case 1 | 2:
            width = rng.choice((1, 2, 4, 8))
            edge = (rng.choice(_EDGES) + rng.randint(-1, 1)) % (1 << 8 * width)
            data[at : at + width] = edge.to_bytes(width, rng.choice(("little", "big")))
        case 3:
            del data[at : at + length]
        case 4:
            where = rng.randint(0, len(data))
            data[where:where] = bytes(data[at : at + length]) * rng.choice((1, 1, 2, 50))
        case 5:
            data[at : at + length] = rng.randbytes(length)
        case 6:
            word = rng.choice(words)
            data[at : at + len(word)] = word
        case 7:
            data[at:at] = rng.choice(words) * rng.choice((1, 1, 3, 100))


# --- running ----------------------------------------------------------------------------------------------


def run(name: str, seconds: float, seed: int = 0) -> tuple[int, int]:
    """Fuzzes one target for so long; (inputs, those that were read whole).

    Raises:
        Failed: at the first input the format does not stand.
    """
    target, rng = TARGETS[name], random.Random(seed)
    samples, parts = list(target.samples()), list(target.parts())
    for sample in [*samples, *map(target.pack, parts)]:
        attempt(target, sample, must=True)
    highest, stop, inputs, whole = _highest(), time.monotonic() + seconds, 0, 0
    while time.monotonic() < stop:
        if parts and rng.random() < 0.5:
            data = target.pack(mutate(rng.choice(parts), rng, target.words))
        else:
            data = mutate(rng.choice(samples), rng, target.words)
        whole += attempt(target, data)
        inputs += 1
        if _highest() > highest + MAX_GROWTH_BYTES:
            raise Failed(f"the process grew from {highest} to {_highest()} bytes", data)
    return inputs, whole


def attempt(target: Target, data: bytes, *, must: bool = False) -> bool:
    """Reads one input; True when it is one that is read whole."""
    try:
        with _timer(MAX_CPU_SECONDS):
            _read(target.scan(len(data)), data)
    except GdistError as error:
        if must:
            raise Failed(f"a sample is refused: {error}", data) from error
        return False
    except Hung as hung:
        raise Failed(f"more than {MAX_CPU_SECONDS} s", data) from hung
    except Exception as error:
        raise Failed(f"{type(error).__name__}: {error}", data) from error
    return True


def _read(scan: Any, data: bytes) -> None:
    try:
        wanted = next(scan)
        while True:
            assert wanted.length and wanted.stop <= len(data), f"asks for {wanted} of {len(data)} bytes"
            wanted = scan.send(data[wanted.start : wanted.stop])
    except StopIteration as stop:
        for item in stop.value:
            extents = [part.extent for part in item.parts] if isinstance(item, FoundArray) else [item.extent]
            assert all(Extent(0, len(data)).contains(e) for e in extents), f"{item} of {len(data)} bytes"


@contextmanager
def _timer(seconds: float) -> Iterator[None]:
    """Raises `Hung` after so much time of this process's own; other load does not count."""

    def ring(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=Path, help="read this one file instead")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in TARGETS if args.format == "all" else [args.format]:
        try:
            if args.input:
                print("read" if attempt(TARGETS[name], args.input.read_bytes()) else "refused")
                continue
            inputs, whole = run(name, args.seconds, args.seed)
        except Failed as failed:
            path = Path(f"fuzz-{name}-{hashlib.sha256(failed.data).hexdigest()[:12]}")
            path.write_bytes(failed.data)
            sys.exit(f"{name}: {failed}; the input is in {path}")
        print(json.dumps({"format": name, "inputs": inputs, "read": whole, "peak MiB": _highest() >> 20}))


if __name__ == "__main__":
    main()
