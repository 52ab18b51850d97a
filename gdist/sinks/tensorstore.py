"""Shards in any TensorStore target: `s3://`, `gs://`, `file://`, `memory://`, and compressed stores.

Such targets take a shard whole. It is put together in a local part, as for a local store, then written by
TensorStore in one call and the part removed; so the plan must bound the shards (`shard_bytes`), and memory
holds one shard for each commit at work.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 and its kin with NumPy, by name
import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from gdist.core.journal import ShardRecord
from gdist.core.layout import array_document, shard_key, to_document
from gdist.core.placer import Placement
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.store_manifest import StoreManifest, manifest_name, store_manifest_to_json, tensor_attributes
from gdist.errors import TransferError
from gdist.kvstore import shared_context
from gdist.sinks.parts import PartFiles


class TensorStoreSink:
    """A store in the key-value store of `kvstore`, a TensorStore spec; `work` is a local directory."""

    def __init__(self, kvstore: Mapping[str, object], work: Path, plan: HostPlan, codec: str = "none"):
        self._plan = plan
        self._codec = codec
        self._parts = PartFiles(work / "parts", plan)
        self._spec = dict(kvstore)
        self._context = shared_context()
        self._store = self._call(
            lambda: ts.KvStore.open(self._spec, context=self._context).result(), "opening"
        )
        self._names = {tensor.tensor.spec.name: number for number, tensor in enumerate(plan.tensors)}

    def _call(self, action: Any, doing: str) -> Any:  # Any: TensorStore's futures are untyped
        try:
            return action()
        except Exception as error:  # TensorStore raises ValueError and its kin for anything remote
            raise TransferError(
                f"{doing} {self._spec.get('driver')} target failed: {error}",
                hint="check the address, the credentials and the network; the same command resumes",
            ) from error

    def _document(self, plan: TensorPlan) -> dict[str, object]:
        attributes = tensor_attributes(plan.spec, plan.tensor.quantisation, plan.tensor.spec.encoding)
        return array_document(plan.grid, plan.tensor.spec.dtype, attributes, self._codec)

    def restore(self, records: Iterable[ShardRecord]) -> tuple[set[ShardTask], set[ShardTask]]:
        """After a restart: the shards of `records` that the target has, and the parts here."""
        tasks = {(t.tensor, t.index): t for plan in self._plan.tensors for t in plan.shards}
        known = [task for r in records if (task := tasks.get((self._names.get(r.tensor, -1), r.index)))]
        keys = self._call(lambda: self._store.list().result(), "listing") if known else ()
        there = {bytes(key).decode() for key in keys}
        done = {task for task in known if self._key(task) in there}
        return done, self._parts.present(set(tasks.values()) - done)

    def _key(self, task: ShardTask) -> str:
        return f"{self._plan.tensors[task.tensor].tensor.spec.name}/{shard_key(task.index)}"

    def place(self, placements: Iterable[Placement], piece: memoryview) -> None:
        """Writes bytes of a piece into local parts; thread-safe."""
        self._parts.place(placements, piece)

    def commit(self, task: ShardTask) -> ShardRecord:
        """Digests, then one write of the whole shard to the target; the part is removed."""
        digests = self._parts.seal(task)
        plan = self._plan.tensors[task.tensor]
        values = self._values(task, plan)
        spec = {
            "driver": "zarr3",
            "kvstore": self._under(plan.tensor.spec.name),
            "metadata": self._document(plan),
            "store_data_equal_to_fill_value": True,  # else a chunk of poison would be left out
        }

        def write() -> None:
            array = ts.open(spec, open=True, create=True, context=self._context).result()
            array[task.box.slices()].write(values).result()

        self._call(write, f"writing {self._key(task)} to the")
        self._parts.remove(task)
        return ShardRecord(plan.tensor.spec.name, task.index, digests)

    def _under(self, name: str) -> dict[str, object]:
        return {**self._spec, "path": f"{self._spec.get('path', '')}{name}/"}

    def _values(self, task: ShardTask, plan: TensorPlan) -> NDArray[Any]:
        layout = self._parts.layout(task)
        dtype = np.dtype(plan.tensor.spec.dtype.name)
        values = np.empty(task.box.shape, dtype)
        with (
            self._parts.descriptor(task) as descriptor,
            mmap.mmap(descriptor, layout.data_nbytes, access=mmap.ACCESS_READ) as mapped,
        ):
            for index, extent in layout.chunks():
                where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, plan.grid.chunk, strict=True))
                data = mapped[extent.start : extent.stop]
                values[where] = np.frombuffer(data, dtype).reshape(plan.grid.chunk)
        return values

    def publish(self, plan: TensorPlan) -> None:
        """Writes the tensor's `zarr.json`."""
        self._put(f"{plan.tensor.spec.name}/zarr.json", to_document(self._document(plan)))

    def sync(self) -> None:
        """Returns once what was placed before the call is on the local disk."""
        self._parts.sync()

    def write_document(self, path: str, data: bytes) -> None:
        """Puts a small file in place."""
        self._put(path, data)

    def finish(self, manifest: StoreManifest, documents: Mapping[str, bytes]) -> None:
        """Root documents, then the manifest."""
        for path, data in documents.items():
            self._put(path, data)
        self._put(manifest_name(manifest.host), store_manifest_to_json(manifest))

    def _put(self, key: str, data: bytes) -> None:
        self._call(lambda: self._store.write(key, data).result(), f"writing {key} to the")

    def close(self) -> None:
        """Closes the parts; they stay for the next run."""
        self._parts.close()
