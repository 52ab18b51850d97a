"""What one host's fetch leaves for others to see while it runs: its plan, its journal, its lock.

    STORE/.gdist/planned.json    every tensor and its grid, in loading order, as a manifest without shards
    STORE/.gdist/journal.jsonl   a line for each shard that is committed, with its digests
    STORE/.gdist/lock            held as long as the fetch runs
    STORE/gdist.json             in the end: all of it in one piece, and the directory above is gone

Of a fetch for host 3 of 8 the first three lie in `.gdist/gdist.host-00003-of-00008`, and the last has that
name. There a collective fetch has its even shares in `shares` first, a store like any other, whose
`.target.json` is the plan of what they will become.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from gdist.core.journal import Progress, parse_journal
from gdist.core.layout import ShardLayout, shard_key
from gdist.core.store_manifest import MANIFEST_NAME, PLANNED_NAME, StoreManifest, StoreTensor
from gdist.core.view import place_of
from gdist.durable import size_of
from gdist.errors import ResumeError
from gdist.stores.local import Index, LocalFiles, is_whole, unreadable
from gdist.stores.manifests import Files, parse_part

WORK = ".gdist"
SHARES = "shares"  # in a host's work directory


class Part:
    """One host's part: its `plan`, and its journal as far as it was read, or its manifest in the end.

    `work` is where its fetch works, `name` that of its manifest among the `files` of the store.
    """

    def __init__(self, files: Files, work: Path, name: str, plan: StoreManifest):
        self._files, self.work, self.name, self.plan = files, work, name, plan
        self.complete = False
        self._journal: BinaryIO | None = None
        self._job, self._read = "", 0

    def news(self) -> list[tuple[str, Index, tuple[str, ...]]] | None:
        """Shards that were committed since the last call; None when nothing was written down.

        Raises:
            ResumeError: another job's fetch took the place of this one.
        """
        if self.complete:
            return None
        if not self._reopen():  # the journal goes after the manifest has come
            return self._finish()
        assert self._journal is not None
        try:
            size = os.fstat(self._journal.fileno()).st_size
            data = (
                os.pread(self._journal.fileno(), size - self._read, self._read) if size > self._read else b""
            )
        except OSError as error:
            raise unreadable(self.work, error) from error
        progress, whole = parse_journal(data, Progress(self._job) if self._read else None)
        self._read += whole
        if progress is None or not whole:
            return None
        self._job = progress.plan
        self._check_plan(self._job)
        return [(record.tensor, record.index, record.digests) for record in progress.shards.values()]

    def _reopen(self) -> bool:
        """The journal as it now is: a fetch that begins again may replace it; False when there is none."""
        path = self.work / "journal.jsonl"
        try:
            now = os.stat(path)
            if self._journal is None or not os.path.samestat(now, os.fstat(self._journal.fileno())):
                self.close()
                self._journal = open(path, "rb", buffering=0)  # noqa: SIM115  closed by close()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise unreadable(path, error) from error
        return True

    def _finish(self) -> list[tuple[str, Index, tuple[str, ...]]] | None:
        data = self._files.read(self.name)
        if data is None:
            return None
        manifest = parse_part(data, self.name, f"{self._files.where}/{self.name}")
        self._check_plan(manifest.plan)
        self.complete = True
        return [(t.name, index, digests) for t in manifest.tensors for index, digests in t.shards.items()]

    def _check_plan(self, name: str) -> None:
        if self.plan.plan[:32] not in name:  # a journal's job names the plan by that, among other things
            raise ResumeError(
                f"{self._files.where} is written by a fetch of another plan than the one that was followed",
                hint="begin the stream again",
            )

    def close(self) -> None:
        """Closes the journal; it is read anew from its start should it be needed again."""
        if self._journal is not None:
            self._journal.close()
        self._journal, self._job, self._read = None, "", 0


def work_of(root: Path, name: str) -> Path:
    """Where the fetch that will write a manifest works."""
    return root / WORK if name == MANIFEST_NAME else root / WORK / name.removesuffix(".json")


def read_plan(files: LocalFiles, name: str) -> StoreManifest | None:
    """What a host wrote, or is going to write: its manifest, or its plan."""
    planned = f"{work_of(Path(), name)}/{PLANNED_NAME}"
    for key in (name, planned):
        data = files.read(key)
        if data is not None:
            return parse_part(data, name, f"{files.where}/{key}")
    return None


def is_there(root: Path, manifest: StoreManifest, tensor: StoreTensor, index: Index) -> bool:
    """True when a shard that is listed has its file, and that is not cut short."""
    if tensor.view:
        number, _ = place_of(tensor.view, tensor.grid, tensor.dtype.itemsize, index)
        file = manifest.files[number]
        return size_of(root / file.path) == file.nbytes
    layout = ShardLayout(tensor.grid, tensor.dtype.itemsize)
    return is_whole(root / tensor.name / shard_key(index), layout, manifest.codec)


def held(lock: Path) -> bool:
    """True when a fetch holds a lock, or where the file system does not tell."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for some microseconds: `Lock` tries again
        return False
    except FileNotFoundError:
        return False
    except OSError:
        return True
