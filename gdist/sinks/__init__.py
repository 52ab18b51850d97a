"""Where shards go.

A sink takes placements of verified pieces in any order, from several threads, and commits a shard once it
is whole: its digests taken, its bytes durable, its final name given. What is not committed has no final
name, so an unfinished shard reads as missing and never as zeros. A new target is one new module here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from gdist.core.journal import ShardRecord
from gdist.core.placer import Placement
from gdist.core.plan import ShardTask, TensorPlan
from gdist.core.store_manifest import StoreManifest


class Sink(Protocol):
    """What the coordinator asks of a target.

    Every method may raise `SpaceError`, `FilesystemError` or `TransferError`; nothing is lost by trying
    again later.
    """

    def restore(self, records: Iterable[ShardRecord]) -> tuple[set[ShardTask], set[ShardTask]]:
        """After a restart: the shards of `records` that are really there, and those half written here."""
        ...

    def place(self, placements: Iterable[Placement], piece: memoryview) -> None:
        """Writes bytes of a piece into shards; thread-safe, in any order."""
        ...

    def commit(self, task: ShardTask) -> ShardRecord:
        """Makes a whole shard durable under its final name; thread-safe."""
        ...

    def publish(self, plan: TensorPlan) -> None:
        """Writes the documents of a tensor whose shards are all committed: it can be opened from now on."""
        ...

    def sync(self) -> None:
        """Returns once everything placed before the call survives a crash of the machine."""
        ...

    def write_document(self, path: str, data: bytes) -> None:
        """Puts a small file in place, whole and durable; `path` is relative to the store and was checked."""
        ...

    def finish(self, manifest: StoreManifest, documents: Mapping[str, bytes]) -> None:
        """Writes the root's documents, and last, atomically, the manifest: the store is complete."""
        ...

    def close(self) -> None:
        """Gives back files; what is not committed stays for the next run."""
        ...
