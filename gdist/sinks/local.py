"""Shards in a local directory: written in place, renamed when whole.

The fast path: a piece's bytes go by `pwrite` straight to where a reader will map them, as cheap as writing
the payload itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gdist.core.journal import ShardRecord
from gdist.core.layout import array_document, shard_key, to_document
from gdist.core.placer import Placement
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.store_manifest import StoreManifest, manifest_name, store_manifest_to_json, tensor_attributes
from gdist.durable import size_of, sync_directory, sync_file
from gdist.durable import write_atomically as write_atomically
from gdist.errors import translate
from gdist.sinks.parts import PartFiles

SYNCERS = 8  # a file system makes several small syncs at once one


class LocalSink:
    """A store in a directory; `work` is a directory on the same file system for what is not finished."""

    def __init__(self, root: Path, work: Path, plan: HostPlan):
        self._root = root
        self._work = work
        self._plan = plan
        self._parts = PartFiles(work / "parts", plan)
        self._names = {tensor.tensor.spec.name: number for number, tensor in enumerate(plan.tensors)}

    def _final(self, task: ShardTask) -> Path:
        return self._root / self._plan.tensors[task.tensor].tensor.spec.name / shard_key(task.index)

    def restore(self, records: Iterable[ShardRecord]) -> tuple[set[ShardTask], set[ShardTask]]:
        """After a restart: the shards of `records` whose files are there, whole, and the parts here."""
        tasks = {(t.tensor, t.index): t for plan in self._plan.tensors for t in plan.shards}
        done = set()
        for record in records:
            task = tasks.get((self._names.get(record.tensor, -1), record.index))
            if task and size_of(self._final(task)) == self._parts.layout(task).file_nbytes:
                done.add(task)
        return done, self._parts.present(set(tasks.values()) - done)

    def place(self, placements: Iterable[Placement], piece: memoryview) -> None:
        """Writes bytes of a piece into parts; thread-safe."""
        self._parts.place(placements, piece)

    def commit(self, task: ShardTask) -> ShardRecord:
        """Digests, index, sync, rename; thread-safe."""
        digests = self._parts.seal(task)
        final = self._final(task)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self._parts.path(task), final)
        except OSError as error:
            raise translate(error, f"making {final}") from error
        self._parts.forget(task)
        return ShardRecord(self._plan.tensors[task.tensor].tensor.spec.name, task.index, digests)

    def publish(self, plan: TensorPlan) -> None:
        """Writes the tensor's `zarr.json`."""
        document = array_document(
            plan.grid,
            plan.tensor.spec.dtype,
            tensor_attributes(plan.spec, plan.tensor.quantisation, plan.tensor.spec.encoding),
        )
        # Not synced: should the machine die, the next run publishes again; `finish` syncs them all.
        self._write(f"{plan.tensor.spec.name}/zarr.json", to_document(document), sync=False)

    def sync(self) -> None:
        """Returns once what was placed before the call is on the disk."""
        self._parts.sync()

    def write_document(self, path: str, data: bytes) -> None:
        """Puts a small file in place."""
        self._write(path, data)

    def finish(self, manifest: StoreManifest, documents: Mapping[str, bytes]) -> None:
        """Root documents, then the manifest, each written aside, synced and renamed.

        Before them the directories of all tensors are synced: a file system may keep a later rename and lose
        an earlier one of another directory, and the manifest must not outlive a shard's name.
        """
        lowest = {self._final(task).parent for plan in self._plan.tensors for task in plan.shards}
        lowest |= {self._root / name for name in self._names}  # of tensors without a shard, too
        below = len(self._root.parts)
        directories = {p for low in lowest for p in (low, *low.parents) if len(p.parts) >= below}
        with ThreadPoolExecutor(SYNCERS, "gdist-sync") as pool:
            list(pool.map(sync_directory, sorted(directories)))
            list(pool.map(sync_file, [self._root / name / "zarr.json" for name in self._names]))
        for path, data in documents.items():
            self._write(path, data)
        self._write(manifest_name(manifest.host), store_manifest_to_json(manifest))

    def _write(self, path: str, data: bytes, *, sync: bool = True) -> None:
        # Aside in the work directory: what a kill leaves there goes with it, and nothing stays in the store.
        write_atomically(self._root / path, data, sync=sync, aside=self._work)

    def close(self) -> None:
        """Closes the parts; they stay for the next run."""
        self._parts.close()
