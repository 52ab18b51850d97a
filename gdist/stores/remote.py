"""Reading a store through TensorStore: in a bucket, over HTTP, or compressed.

Digests are of a chunk's uncompressed C-order bytes, whatever lies in the bucket; so where they are checked
a chunk is read whole, every time, and its part is copied out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorstore as ts
from blake3 import blake3

from gdist.core.box import Box, tiles_of
from gdist.core.layout import shard_key
from gdist.core.mesh import HostGroup
from gdist.core.store_manifest import MANIFEST_NAME, StoreTensor, manifest_name
from gdist.errors import CorruptError, GdistError, RequestError, TransferError
from gdist.kvstore import kvstore_spec, shared_context
from gdist.stores.buffers import Array, aligned_empty, stored_order
from gdist.stores.faults import MEND, ChunkFault, raise_faults
from gdist.stores.manifests import Manifests

WINDOW = 8  # chunks asked for at once: hides latency, holds at most 8 x 16 MiB
NO_BUCKET = r"^NOT_FOUND: .*(NoSuchBucket|bucket does not exist)"  # words of S3, and of Google's storage
ANNEX = r" \[(?:tensorstore_spec|http_response_body)="  # screens of what we gave it, and of the server's XML

K = TypeVar("K")

# Any below: TensorStore ships no types.


def ahead(asked: Iterable[tuple[K, Any]]) -> Iterator[tuple[K, Any]]:
    """What was asked for, with its future, in order; `WINDOW` of them are on the way at once."""
    waiting: deque[tuple[K, Any]] = deque()
    for one in asked:
        waiting.append(one)
        if len(waiting) >= WINDOW:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def translate(error: Exception, doing: str) -> GdistError:
    """TensorStore's error as ours, by the status code its message starts with."""
    if re.search(NO_BUCKET, str(error)):
        return RequestError(f"{doing}: the bucket does not exist", hint="create it, or check the address")
    status = re.match(r"[A-Z_]+", str(error))
    error = type(error)(re.split(ANNEX, str(error))[0])
    if "was ignored by server" in str(error):  # TensorStore's words for it; the status says corrupt
        return RequestError(
            f"{doing}: the server does not give parts of files (HTTP range requests): {error}",
            hint="serve the store with a server that does, or read a copy of it on disk",
        )
    match status[0] if status else "":
        case "NOT_FOUND":
            return CorruptError(f"{doing}: something is missing: {error}", hint=MEND)
        case "DATA_LOSS" | "OUT_OF_RANGE":
            return CorruptError(f"{doing}: bytes are damaged: {error}", hint=MEND)
        case "FAILED_PRECONDITION" | "INVALID_ARGUMENT":
            return CorruptError(f"{doing}: not what the manifest says: {error}", hint=MEND)
        case "PERMISSION_DENIED" | "UNAUTHENTICATED":
            return RequestError(f"{doing}: access is refused: {error}", hint="check the credentials")
        case _:
            return TransferError(f"{doing}: {error}", hint="check the address and the network, and try again")


class RemoteFiles:
    """The small files of a store at a URL, which may be that of one of so many hosts."""

    def __init__(self, url: str, host: HostGroup | None = None):
        self.where = url.rstrip("/")
        self._host = host or HostGroup()
        self._spec = kvstore_spec(url)
        try:
            self._kvstore: Any = ts.KvStore.open(self._spec, context=shared_context()).result()
        except Exception as error:  # ValueError and its kin, for anything remote
            raise translate(error, f"opening {self.where}") from error

    def read(self, key: str) -> bytes | None:
        """The bytes under a key, or None."""
        try:
            result = self._kvstore.read(key).result()
        except Exception as error:
            raise translate(error, f"reading {self.where}/{key}") from error
        return bytes(result.value) if result.state == "value" else None

    def has_more(self, key: str, nbytes: int) -> bool:
        """True where more than `nbytes` bytes lie under a key: one of them is read."""
        try:
            result = self._kvstore.read(key, byte_range=slice(nbytes, nbytes + 1)).result()
        except Exception as error:
            if str(error).startswith("OUT_OF_RANGE"):
                return False
            raise translate(error, f"reading {self.where}/{key}") from error
        return bool(result.state == "value")

    def manifests(self) -> Sequence[str]:
        """`gdist.json`, or the names of the hosts' parts of it.

        HTTP cannot list: there it is one host's of as many as there are places, its own by their order first.
        """
        if self.read(MANIFEST_NAME) is not None:
            return [MANIFEST_NAME]
        if self._spec["driver"] == "http":
            count = self._host.count if self._host.count > 1 else 0
            order = sorted(range(count), key=lambda index: index != self._host.index)
            tried = (manifest_name(HostGroup(index, count)) for index in order)
            first = next((name for name in tried if self.read(name) is not None), None)
            return [first] if first else []
        # From "gdist.host-" to just after the last name that starts so: "." follows "-" in ASCII.
        names = ts.KvStore.KeyRange("gdist.host-", "gdist.host.")
        try:
            found = [key.decode() for key in self._kvstore.list(names).result()]
        except Exception as error:
            raise translate(error, f"listing {self.where}") from error
        return sorted(name for name in found if re.fullmatch(r"gdist\.host-\d{5}-of-\d{5}\.json", name))

    def unfinished(self) -> str:
        """Never known: who writes into a bucket keeps its work elsewhere."""
        return ""


def open_array(root: dict[str, object], tensor: StoreTensor) -> Any:
    """The TensorStore of one tensor below the store's root; missing shards are errors.

    Raises:
        CorruptError: when its `zarr.json` is missing or disagrees with the manifest.
    """
    kvstore = {**root, "path": f"{root.get('path', '')}{tensor.name}/"}
    spec: dict[str, object] = {
        "driver": "zarr3",
        "kvstore": kvstore,
        "fill_missing_data_reads": False,
        "recheck_cached_data": "open",
    }
    if (
        tensor.view
    ):  # an index takes what its payload's files hold for unchanging: only what is read now counts
        spec["cache_pool"] = {"total_bytes_limit": 0}
    doing = f"opening tensor {tensor.name!r}"
    try:
        array = ts.open(spec, open=True, context=shared_context()).result()
    except Exception as error:
        raise translate(error, doing) from error
    layout: Any = array.chunk_layout
    shard, chunk = tuple(layout.write_chunk.shape or ()), tuple(layout.read_chunk.shape or ())
    found = tuple(array.shape), array.dtype.name, shard, chunk
    grid = tensor.grid
    if found != (grid.shape, tensor.dtype.name, grid.shard, grid.chunk):
        raise CorruptError(
            f"{doing}: zarr.json says shape {found[0]} of {found[1]} in shards {found[2]} of chunks "
            f"{found[3]}, the manifest {grid.shape} of {tensor.dtype.name} in {grid.shard} of {grid.chunk}",
            hint=MEND,
            tensor=tensor.name,
        )
    return array


def _chunks_of(tensor: StoreTensor, box: Box) -> Iterator[Box]:
    for index, _ in tiles_of(box, tensor.grid.chunk):
        start = tuple(i * c for i, c in zip(index, tensor.grid.chunk, strict=True))
        yield Box(start, tuple(a + c for a, c in zip(start, tensor.grid.chunk, strict=True)))


class RemoteReader:
    """Reads boxes of tensors through TensorStore; thread-safe."""

    def __init__(self, roots: Sequence[dict[str, object]], manifests: Manifests, *, verify: bool):
        self._roots = roots
        self._manifests = manifests
        self._verify = verify
        self._arrays: dict[tuple[str, int], Any] = {}

    def check(self, requests: Iterable[tuple[StoreTensor, Box]], workers: int = 1) -> None:
        """That the manifests list every shard that meets the boxes; bytes are checked as they are read.

        Raises:
            RequestError: when another host has some of them.
        """
        self._manifests.check_listed(requests)

    def view(self, tensor: StoreTensor, box: Box) -> Array | None:
        """Never: what is remote has to be copied."""
        return None

    def read(self, tensor: StoreTensor, box: Box, out: Array) -> None:
        """Copies a box into `out`; with digests chunk by chunk, a few on the way at once."""
        self.check([(tensor, box)])
        if not self._verify:
            # TensorStore (0.1.86) writes to a copy of an array that is not aligned, which nobody sees.
            direct = out if out.flags.aligned else aligned_empty(out.shape, out.dtype)
            for part in self._parts(tensor, box):
                target = ts.array(direct)[part.relative_to(box.start).slices()]
                try:
                    target.write(self._array(tensor, part)[part.slices()]).result()
                except Exception as error:
                    raise translate(error, f"reading {tensor.name!r}") from error
            if direct is not out:
                np.copyto(out, direct)
            return
        for chunk, data, fault in self.chunks(tensor, box):
            raise_faults([fault] if fault else [])
            common = chunk.intersect(box)
            assert common is not None, f"chunk {chunk} of {tensor.name!r} is not in box {box}"
            out[common.relative_to(box.start).slices()] = data[common.relative_to(chunk.start).slices()]

    def _parts(self, tensor: StoreTensor, box: Box) -> Iterator[Box]:
        """The box itself, or, where a store lies in several places, its parts by shard."""
        if len(self._roots) == 1:
            yield box
        else:
            yield from (part for _, part in tiles_of(box, tensor.grid.shard))

    def chunks(self, tensor: StoreTensor, box: Box) -> Iterator[tuple[Box, Array, GdistError | None]]:
        """Every inner chunk that meets a box, whole, and what is wrong with it."""
        return self.fetch(tensor, _chunks_of(tensor, box))

    def fetch(
        self, tensor: StoreTensor, chunks: Iterable[Box]
    ) -> Iterator[tuple[Box, Array, GdistError | None]]:
        """These inner chunks, in order, and what is wrong with each."""
        asked = ((chunk, self._array(tensor, chunk)[chunk.slices()].read()) for chunk in chunks)
        for chunk, future in ahead(asked):
            yield self._arrived(tensor, chunk, future)

    def _arrived(self, tensor: StoreTensor, chunk: Box, future: Any) -> tuple[Box, Array, GdistError | None]:
        try:
            data = np.ascontiguousarray(future.result())
        except Exception as error:
            return chunk, np.empty(0), translate(error, f"reading {tensor.name!r} at {chunk.start}")
        grid = tensor.grid
        shard = tuple(a // s for a, s in zip(chunk.start, grid.shard, strict=True))
        within = tuple(a % s // c for a, s, c in zip(chunk.start, grid.shard, grid.chunk, strict=True))
        counts = tuple(s // c for s, c in zip(grid.shard, grid.chunk, strict=True))
        ordinal = int(np.ravel_multi_index(within, counts)) if within else 0
        data = data.reshape(chunk.shape)  # NumPy makes one dimension of none
        digest = tensor.shards[shard][ordinal]
        stored = np.ascontiguousarray(stored_order(tensor, data))
        if digest and blake3(stored.reshape(-1).view(np.uint8).data).hexdigest() != digest:
            return chunk, data, ChunkFault(tensor, shard, within, f"{tensor.name}/{shard_key(shard)}").error()
        return chunk, data, None

    def _array(self, tensor: StoreTensor, box: Box) -> Any:
        """The array that has a box which lies in one shard, or any box where there is one place."""
        shard = tuple(a // s for a, s in zip(box.start, tensor.grid.shard, strict=True))
        place = self._manifests.places.get((tensor.name, shard), 0)
        array = self._arrays.get((tensor.name, place))
        if array is None:
            array = open_array(self._roots[place], tensor)
            self._arrays[tensor.name, place] = array
        return array

    def close(self) -> None:
        """Forgets the handles."""
        self._arrays.clear()
