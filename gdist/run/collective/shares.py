"""A host's even shares: fetched like a store of their own, beside what they will become."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gdist.core.even import even_mesh
from gdist.core.grid import shards_of
from gdist.core.layout import ShardLayout
from gdist.core.mesh import HostGroup
from gdist.core.payload import Payload
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.reshard import stored_tensor
from gdist.core.store_manifest import (
    TARGET_NAME,
    StoreManifest,
    StoreTensor,
    manifest_name,
    parse_store_manifest,
)
from gdist.errors import CorruptError, RequestError, translate
from gdist.events import Event, Finished, Observer, ShardCommitted, Stage, StageStarted, TensorReady
from gdist.run.destination import (
    Destination,
    check_empty,
    check_neighbours,
    default_dest,
    find_destination,
    finished,
)
from gdist.run.failures import left_behind
from gdist.run.fetch import FetchResult, fetch
from gdist.run.journal_file import Lock
from gdist.run.opening import Opener, open_alone
from gdist.run.options import FetchOptions, Target
from gdist.run.preflight import shard_limit
from gdist.run.resolve import Resolved, resolve
from gdist.stores.local import is_whole
from gdist.stores.unfinished import SHARES

Index = tuple[int, ...]


def shares_dir(dest: Destination) -> Path:
    """Where a host's even shares lie on their way to a destination."""
    return dest.work / SHARES


@contextmanager
def taken(dest: Destination, resolved: Resolved, options: FetchOptions) -> Iterator[bool]:
    """Locks a destination from its first share to its last shard; False when its store is complete.

    Who looks at it sees a run at work all the while, and in the end the error that ended one.

    Raises:
        LockedError: another process of this host works on it.
        RequestError, ResumeError: it is somebody else's, or another job's.
    """
    if finished(dest, resolved, options):
        yield False
        return
    check_empty(dest)  # before the lock: that lies there
    check_neighbours(dest, resolved, options)
    lock = Lock(dest.work / "lock", dest.text)
    try:
        with left_behind(dest.work):
            yield finished(dest, resolved, options) is None  # or by the one that held it a moment ago
    finally:
        lock.release()


def fetch_shares(
    source: str,
    dest: str | os.PathLike[str] | None,
    options: FetchOptions,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    opener: Opener = open_alone,
) -> FetchResult:
    """Fetches this host's even share of every tensor, on the way to the store that `options` ask for.

    The rest is as in `gdist.run.fetch.fetch`; the result's path is where the shares lie. What the move has
    given back to the disk since is not fetched again.

    Raises:
        ResumeError: what lies there are shares of another store.
        GdistError: of a fetch.
    """
    resolved = resolve(source, options.manifest, options.verify_key)
    text = os.fspath(dest) if dest is not None else default_dest(resolved)
    where = find_destination(text, options.host, options.work)
    shares = shares_dir(where)
    target = Target(
        options.mesh,
        options.rules,
        options.codec,
        shard_limit(options.memory, staged=where.root is None or options.codec != "none"),
    )
    if finished(where, resolved, options) is None:
        check_empty(where)
    check_neighbours(where, resolved, options)
    known = finished(Destination(str(shares), shares, where.work, TARGET_NAME), resolved, options)
    complete = shares / manifest_name(options.host)
    if known and complete.exists():
        manifest = parse_store_manifest(complete.read_bytes(), str(complete))
        return FetchResult(str(shares), manifest, already=True, seconds=0.0)
    even = replace(options, mesh=even_mesh(options.host.count), rules=None, codec="none", target=target)
    tell = None if observe is None else partial(_tell, observe)
    return fetch(source, shares, even, observe=tell, stop=stop, opener=opener)


def _tell(observe: Observer, event: Event) -> None:
    """Passes on what a share means to who waits for the store: of that nothing is ready yet."""
    if not isinstance(event, TensorReady | ShardCommitted | Finished) and event != StageStarted(Stage.FINISH):
        observe(event)


@dataclass(frozen=True, slots=True)
class Shares:
    """Even shares that are complete: what they are, and the store they are on their way to."""

    root: Path
    manifest: StoreManifest
    target: StoreManifest

    def held(self) -> tuple[tuple[Index, ...], ...]:
        """For each tensor the shards that are still here."""
        found = []
        for tensor in self.manifest.tensors:
            layout, codec = ShardLayout(tensor.grid, tensor.dtype.itemsize), self.manifest.codec
            there = (index for index in tensor.shards if is_whole(self.path(tensor, index), layout, codec))
            found.append(tuple(there))
        return tuple(found)

    def path(self, tensor: StoreTensor, index: Index) -> Path:
        """The file of a shard."""
        return self.root / tensor.name / "/".join(("c", *map(str, index)))


def read_shares(root: Path, host: HostGroup) -> Shares:
    """The shares in a directory.

    Raises:
        RequestError: there are none, or not all yet.
        CorruptError: what they say of themselves is damaged, or does not fit together.
    """
    found = []
    for name in (manifest_name(host), TARGET_NAME):
        try:
            found.append(parse_store_manifest((root / name).read_bytes(), str(root / name)))
        except FileNotFoundError as error:
            raise RequestError(
                f"{root} does not hold the even shares of host {host.index} of {host.count}: "
                f"there is no {name}",
                hint="fetch them first",
            ) from error
        except OSError as error:
            raise translate(error, f"reading {root / name}") from error
    manifest, target = found
    ours = [(t.name, t.dtype, t.shape) for t in manifest.tensors]
    theirs = [(t.name, t.dtype, t.shape) for t in target.tensors]
    if ours != theirs or manifest.source != target.source or (manifest.host, target.host) != (host, host):
        raise CorruptError(f"the even shares in {root} are of another store than {TARGET_NAME} there says")
    return Shares(root, manifest, target)


def plan_of(manifest: StoreManifest) -> HostPlan:
    """The plan by which a manifest's host writes; where bytes come from is not in it."""
    tensors = tuple(
        TensorPlan(
            stored_tensor(tensor),
            tensor.spec,
            tensor.grid,
            tuple(ShardTask(number, i, tensor.grid.box_of(i)) for i in kept(tensor, manifest, manifest.host)),
        )
        for number, tensor in enumerate(manifest.tensors)
    )
    return HostPlan(Payload((), 1, 0), manifest.mesh, manifest.host, tensors)


def kept(tensor: StoreTensor, manifest: StoreManifest, host: HostGroup) -> tuple[Index, ...]:
    """The shards of a tensor that a host keeps, in C order."""
    return shards_of(tensor.grid, manifest.mesh, tensor.spec, host.devices(manifest.mesh))
