"""The sink of a fetch whose store is a view: the bytes are where they belong as soon as they are verified.

Nothing is placed. A chunk is committed once the file that holds it is durable and its digest is taken, and
the index grows by whole tensors: who has it open sees the new ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from blake3 import blake3

from gdist.core.journal import ShardRecord
from gdist.core.placer import Placement
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.core.view_entries import view_entries
from gdist.durable import write_atomically
from gdist.errors import CorruptError, translate
from gdist.run.view_index import write_documents, write_index
from gdist.stores.manifests import Manifests
from gdist.stores.views import ViewReader

GROW_SECONDS = 5.0  # between two states of the index while tensors arrive


class ViewSink:
    """A view in the directory `root`; `planned` is its manifest, as yet without digests."""

    def __init__(self, root: Path, plan: HostPlan, planned: StoreManifest):
        self._root, self._plan, self._planned = root, plan, planned
        self._tensors = {tensor.name: tensor for tensor in planned.tensors}
        self._reader = ViewReader(root, Manifests(planned, (0,), 1), verify=False)
        self._whole: list[StoreTensor] = []  # tensors that are in the index, or will be with its next state
        self._grown = time.monotonic()
        self._whole_nbytes = {root / file.path: file.nbytes for file in planned.files}

    def restore(self, records: Iterable[ShardRecord]) -> tuple[set[ShardTask], set[ShardTask]]:
        """After a restart: the chunks that are durable, and all others, whose bytes may be there in part."""
        known = {(record.tensor, record.index) for record in records}
        tasks = [task for plan in self._plan.tensors for task in plan.shards]
        done = {task for task in tasks if (self._name(task), task.index) in known and self._is_there(task)}
        return done, set(tasks) - done

    def _name(self, task: ShardTask) -> str:
        return self._plan.tensors[task.tensor].tensor.spec.name

    def _is_there(self, task: ShardTask) -> bool:
        path, offset = self._reader.place(self._tensors[self._name(task)], task.index)
        try:
            return path.stat().st_size >= offset + self._nbytes(task)
        except OSError:
            return False

    def _nbytes(self, task: ShardTask) -> int:
        plan = self._plan.tensors[task.tensor]
        return prod(plan.grid.chunk) * plan.tensor.spec.dtype.itemsize

    def place(self, placements: Iterable[Placement], piece: memoryview) -> None:
        """Nothing: the torrent's own files hold the bytes."""

    def commit(self, task: ShardTask) -> ShardRecord:
        """Syncs the file and takes the chunk's digest; thread-safe."""
        name = self._name(task)
        path, offset = self._reader.place(self._tensors[name], task.index)
        whole = self._whole_nbytes[path]
        nbytes, digest = self._nbytes(task), blake3()
        block = memoryview(bytearray(min(nbytes, 1 << 20)))
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                # Readers of a view go by the whole file's length; what is still to come is a hole until then.
                if os.fstat(descriptor).st_size < whole:
                    os.ftruncate(descriptor, whole)
                os.fsync(descriptor)
                done = 0
                while done < nbytes:
                    count = os.preadv(descriptor, [block[: nbytes - done]], offset + done)
                    if not count:
                        raise CorruptError(f"{path} ends at {offset + done}", path=str(path))
                    digest.update(block[:count])
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise translate(error, f"reading {path}") from error
        return ShardRecord(name, task.index, (digest.hexdigest(),))

    def publish(self, plan: TensorPlan) -> None:
        """Puts a tensor into the index, with its next state."""
        tensor = self._tensors[plan.tensor.spec.name]
        self._whole.append(replace(tensor, shards={task.index: ("",) for task in plan.shards}))
        if time.monotonic() - self._grown > GROW_SECONDS:
            write_index(self._root, view_entries(replace(self._planned, tensors=tuple(self._whole))))
            self._grown = time.monotonic()

    def sync(self) -> None:
        """Nothing was placed."""

    def write_document(self, path: str, data: bytes) -> None:
        """Puts a small file in place, but for assets: those lie in the payload already."""
        if not path.startswith("assets/"):
            write_atomically(self._root / path, data)

    def finish(self, manifest: StoreManifest, documents: Mapping[str, bytes]) -> None:
        """The index of all tensors, what other readers look for, and last the manifest."""
        write_documents(self._root, manifest)

    def close(self) -> None:
        """Forgets the files."""
        self._reader.close()
