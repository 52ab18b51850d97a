"""Stores that fetches still write to: what is committed can be read, what is to come can be waited for.

A shard counts once a fetch's journal lists it and its file has its name and its length; its digests are
compared as always. Several hosts' fetches are followed side by side and joined, as the parts of a complete
store are. Fetches know nothing of their readers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gdist.core.box import Box, tiles_of
from gdist.core.mesh import HostGroup
from gdist.core.store_manifest import (
    MANIFEST_NAME,
    StoreManifest,
    StoreTensor,
    manifest_name,
)
from gdist.core.store_parts import join_manifests
from gdist.errors import CorruptError, RequestError, StalledError, TransferError
from gdist.stores import open_as
from gdist.stores.faults import raise_faults
from gdist.stores.local import Index, LocalFiles
from gdist.stores.manifests import Manifests, read_manifests, tensor_fault
from gdist.stores.unfinished import WORK, Part, held, is_there, read_plan, work_of

POLL_SECONDS = 0.02  # how late a commit may be noticed; a look costs one `stat` of one file
LOOK_SECONDS = 0.5  # how often, while nothing comes, fetches are looked for and asked whether they live


class Growing:
    """The store in a directory, complete or not; `store` reads what is here, `wait` waits for the rest.

    Waits call `tick` again and again; it may raise to end them. They end by themselves when for
    `start_seconds` no fetch runs that could bring what is missing, or when one runs and commits nothing for
    `stall_seconds`.

    Raises:
        TransferError: there is no store, and no fetch that says what it will write, in that time.
        RequestError: the directory is somebody else's, or its parts are of different jobs.
        CorruptError: a manifest is damaged or cannot be true.
    """

    def __init__(
        self,
        root: Path,
        *,
        verify: bool,
        stall_seconds: float,
        start_seconds: float,
        tick: Callable[[], None],
    ):
        self._root, self._files, self._tick = root, LocalFiles(root), tick
        self._stall_seconds, self._start_seconds = stall_seconds, start_seconds
        self._parts: dict[int, Part] = {}
        self._restart_clocks()
        while not self._parts:
            tick()
            if not self._find_parts():
                self._check_room()
                self._check_hope(any(map(held, (root / WORK).glob("**/lock"))), "no store is there")
                time.sleep(POLL_SECONDS)
        plan = next(iter(self._parts.values())).plan
        # The manifest's own mappings grow, so that readers of its tensors see what is committed.
        self._shards: dict[str, dict[Index, tuple[str, ...]]] = {t.name: {} for t in plan.tensors}
        tensors = tuple(replace(t, shards=self._shards[t.name]) for t in plan.tensors)
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._manifest = replace(plan, host=HostGroup(), assets=(), tensors=tensors)
        self._count = plan.host.count
        everyone = tuple(range(self._count))
        self.store = open_as([root], Manifests(self._manifest, everyone, self._count), verify=verify)
        try:
            self._refresh()
        except BaseException:
            self.close()
            raise

    @property
    def complete(self) -> bool:
        """True when every host's manifest is here: nothing more will come."""
        return sum(part.complete for part in self._parts.values()) == self._count

    def wait(self, boxes: Mapping[str, Iterable[Box]]) -> None:
        """Returns once every shard that meets these boxes of tensors is committed.

        Raises:
            StalledError: a fetch runs, and commits nothing.
            TransferError: no fetch runs that could bring what is missing.
            RequestError, CorruptError: all is here that will come, and some is not.
        """
        needed = {
            (name, index): self._tensors[name]
            for name, wanted in boxes.items()
            for box in wanted
            for index, _ in (tiles_of(box, self._tensors[name].grid.shard) if box.size else ())
        }
        self._restart_clocks()
        while needed := {key: t for key, t in needed.items() if not self._committed(t, key[1])}:
            self._tick()
            if self._refresh():
                self._moved = self._hope = time.monotonic()
            elif time.monotonic() - self._looked > LOOK_SECONDS:
                self._look([(tensor, index) for (_, index), tensor in needed.items()])
            else:
                time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Closes the store and the journals; arrays that were given out stay valid."""
        for part in self._parts.values():
            part.close()
        self.store.close()

    def _committed(self, tensor: StoreTensor, index: Index) -> bool:
        if index not in tensor.shards:
            return False
        if self.complete:
            return True  # should its file be gone, reading it says so
        return is_there(self._root, self._manifest, tensor, index)  # else a fetch will bring it again

    def _refresh(self) -> bool:
        """Takes in what was committed since the last call; True if that was anything."""
        news = [self._take_in(part) for part in self._parts.values()]
        return any(news)

    def _take_in(self, part: Part) -> bool:
        news = part.news()
        for name, index, digests in news or ():
            tensor = self._tensors.get(name)
            fault = tensor_fault(replace(tensor, shards={index: digests})) if tensor else "no such tensor"
            if not fault and self._shards[name].setdefault(index, digests) != digests:
                fault = "its digests differ from those that were there"
            if fault:
                raise CorruptError(
                    f"{part.work} lists shard {index} of {name[:200]!r}: {fault}",
                    hint="delete the destination and fetch again",
                )
        return news is not None

    def _find_parts(self) -> bool:
        """Looks for hosts' manifests, and plans of hosts that fetch; True if one is new."""
        names = self._files.manifests()
        if MANIFEST_NAME in names:
            names = [MANIFEST_NAME]
        works = [f"{path.name}.json" for path in (self._root / WORK).glob("gdist.host-?????-of-?????")]
        known = {part.name for part in self._parts.values()}
        found = False
        for name in dict.fromkeys([*names, MANIFEST_NAME, *sorted(works)]):
            plan = None if name in known else read_plan(self._files, name)
            if plan is None:
                continue
            for part in self._parts.values():
                _check_same(part.plan, plan)
            self._parts.setdefault(plan.host.index, Part(self._files, work_of(self._root, name), name, plan))
            found = True
        return found

    def _check_room(self) -> None:
        """That a fetch may begin here, or has.

        Raises:
            RequestError: else.
        """
        foreign = any(self._root.iterdir()) if self._root.is_dir() else self._root.exists()
        if foreign and not self._files.unfinished():
            read_manifests(self._files)

    def _look(self, missing: Sequence[tuple[StoreTensor, Index]]) -> None:
        """Nothing came for a while: are there new fetches, do those known live, can what is missing come?"""
        self._looked = time.monotonic()
        if self._find_parts():
            return
        present = {part.plan.host.index for part in self._parts.values() if part.complete}
        known = Manifests(self._manifest, tuple(present), self._count)
        writers = [set(known.writers(tensor, index)) for tensor, index in missing]
        final = [key for key, hosts in zip(missing, writers, strict=True) if hosts <= present]
        raise_faults([known.unlisted(tensor, index) for tensor, index in final])
        names = {
            host: manifest_name(HostGroup(host, self._count)) for host in set().union(*writers) - present
        }
        alive = {host for host, name in names.items() if held(work_of(self._root, name) / "lock")}
        for (tensor, _), hosts in zip(missing, writers, strict=True):
            if not hosts & alive:
                host = f"of host {' or '.join(map(str, sorted(hosts)))} " if self._count > 1 else ""
                self._check_hope(False, f"{tensor.name!r} is not complete", host)
                return
        self._check_hope(True, f"{missing[0][0].name!r} is not complete")

    def _restart_clocks(self) -> None:
        self._moved = self._hope = self._looked = time.monotonic()

    def _check_hope(self, alive: bool, what: str, host: str = "") -> None:
        now = time.monotonic()
        if alive:
            self._hope = now
        waited, stalled = now - self._hope, now - self._moved
        if waited <= self._start_seconds and stalled <= self._stall_seconds:
            return
        kind = self._files.unfinished() or "fetch"
        again = f"run the same gdist {kind} again: it goes on where it stopped, and a stream goes on with it"
        if waited > self._start_seconds:
            raise TransferError(
                f"no {kind} {host}into {self._root} ran for {waited:.0f} seconds, and {what}",
                hint=again,
                path=str(self._root),
            )
        raise StalledError(
            f"the {kind} into {self._root} committed nothing for {stalled:.0f} seconds, and {what}",
            hint=f"look at what it says; end it and {again}",
            path=str(self._root),
        )


def _check_same(first: StoreManifest, other: StoreManifest) -> None:
    """That two hosts' parts are of one job.

    Raises:
        RequestError: else.
    """
    counts = first.host.count, other.host.count
    if counts[0] != counts[1]:
        raise RequestError(
            f"there are parts of jobs with {counts[0]} and {counts[1]} hosts",
            hint="one directory is for one job; give another",
        )
    join_manifests(
        replace(m, tensors=tuple(replace(t, shards={}) for t in m.tensors)) for m in (first, other)
    )
