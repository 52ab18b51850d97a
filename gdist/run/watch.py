"""Looking at runs from outside: what those that write to a destination have done, and whether they live.

Nothing is asked of a run: its plan, its journal, its lock, the error that it left, and in the end its
manifest say it all, and more than one may look. Where a run has an agent that answers, that is asked too: it
knows rates, and what binds.

    with Watch("/data/model") as watch:
        for sight in watch.look():
            sight.status, sight.ready("layers:0-7")
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gdist.core.failure import Failure
from gdist.core.grid import shards_of
from gdist.core.journal import parse_journal
from gdist.core.mesh import HostGroup
from gdist.core.ready import Readiness, ready
from gdist.core.status import AgentStatus, Stage
from gdist.core.store_manifest import (
    MANIFEST_NAME,
    PLANNED_NAME,
    TARGET_NAME,
    StoreManifest,
    StoreTensor,
    manifest_name,
)
from gdist.errors import GdistError, RequestError, ResumeError
from gdist.kvstore import local_path
from gdist.run.failures import last_failure
from gdist.stores import files_of
from gdist.stores.local import Index, LocalFiles, unreadable
from gdist.stores.manifests import Files, parse_part
from gdist.stores.unfinished import SHARES, WORK, Part, held, is_there, work_of

if TYPE_CHECKING:
    from gdist.run.local_agent import AgentAddress


@dataclass(frozen=True, slots=True)
class Sight:
    """What could be seen of one host's run: `names` in loading order, those of them that are `here`.

    `running` says that a process writes there now; `failure` is what ended the last one.
    """

    manifest: str
    status: AgentStatus
    names: tuple[str, ...]
    here: frozenset[str]
    running: bool
    failure: Failure | None = None

    @property
    def complete(self) -> bool:
        """True once all of this host's part can be read."""
        return self.status.complete

    def ready(self, what: str) -> Readiness:
        """How far something is; see `gdist.core.ready`.

        Raises:
            RequestError: `what` cannot be asked for, or will never be there.
        """
        return ready(what, self.names, self.here)


class Watch:
    """The runs that write to a destination, a directory or a URL: of one `host`, or all that are seen there.

    Of a URL the run of one host is seen, on the machine where that runs; `work` is where its work waits.
    With `ask` agents are asked too, which may take seconds where one hangs.
    """

    def __init__(
        self, dest: str, host: HostGroup | None = None, work: Path | None = None, *, ask: bool = False
    ):
        self._dest, self._host, self._ask = dest, host, ask
        self._root, self._files = local_path(dest), files_of(dest)
        self._work = None if self._root else _work_of_bucket(dest, host or HostGroup(), work)
        self._runs: dict[str, _Run] = {}

    @property
    def local(self) -> bool:
        """True when the destination is a directory: to look costs little."""
        return self._root is not None

    def look(self) -> tuple[Sight, ...]:
        """What can be seen now, in the order of the hosts; nothing where no run began yet.

        Raises:
            RequestError: the directory is somebody else's.
            CorruptError: a plan, a manifest or a journal is damaged.
        """
        for name in self._names():
            if name not in self._runs:
                self._runs[name] = _Run(self._dest, self._files, self._work_of(name), name)
        sights = [self._runs[name].look() for name in sorted(self._runs)]
        found = (sight for sight in sights if sight is not None)
        return tuple(self._asked(sight) if self._ask and sight.running else sight for sight in found)

    def agents(self) -> tuple[AgentAddress, ...]:
        """Where the agents of the runs that are at work answer, as far as they have any."""
        from gdist.run.local_agent import find_agent  # see _asked

        working = (sight.manifest for sight in self.look() if sight.running)
        found = (find_agent(self._work_of(name)) for name in working)
        return tuple(agent for agent in found if agent is not None)

    def close(self) -> None:
        """Closes the journals."""
        for run in self._runs.values():
            run.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()

    def _asked(self, sight: Sight) -> Sight:
        """The same with what its agent says of itself, if it has one that answers."""
        from gdist.run.local_agent import find_agent  # probes ask nobody: a third of their time is imports

        agent = find_agent(self._work_of(sight.manifest))
        if agent is not None:
            with contextlib.suppress(GdistError):  # what can be seen without it is enough
                return replace(sight, status=agent.status())
        return sight

    def _work_of(self, name: str) -> Path:
        return self._work or work_of(self._root or Path(), name)

    def _names(self) -> Iterable[str]:
        """The manifests that runs wrote or will write here."""
        if self._host is not None or self._root is None:
            return [manifest_name(self._host or HostGroup())]
        if self._root.is_file():
            raise RequestError(f"{self._dest} is a file", hint="give the directory of a store")
        # Twice, because a run may begin or end between two looks.
        found = self._found(self._root) or self._found(self._root)
        if not found and not self._files.unfinished() and _entries(self._root):
            raise RequestError(
                f"{self._dest} is not empty and holds no gdist store", hint="give the directory of a store"
            )
        return found

    def _found(self, root: Path) -> Iterable[str]:
        # The work first: it goes when the manifest has come.
        works = {f"{name}.json" for name in _entries(root / WORK) if name.startswith("gdist.host-")}
        alone = {MANIFEST_NAME} if (root / WORK / "lock").exists() else set()
        names = self._files.manifests()
        return [MANIFEST_NAME] if MANIFEST_NAME in names else {*works, *alone, *names}


class _Run:
    """One host's run; what was read stays, so that looking again reads what is new."""

    def __init__(self, dest: str, files: Files, work: Path, name: str):
        self._dest, self._files, self._work, self._name = dest, files, work, name
        self._part: Part | None = None
        self._counts: _Counts | None = None
        self._done: Sight | None = None

    def look(self) -> Sight | None:
        """What can be seen of it; None where nothing is."""
        # The lock first: a run that ends leaves its manifest, or its error, before it lets go of that.
        running = held(self._work / "lock")
        if self._done is None:
            self._done = self._complete()
        if self._done is not None:
            return replace(self._done, running=running)
        failure = None if running else last_failure(self._work)
        if not running and failure is None and not self._work.exists():
            return None
        self._follow()
        return self._unfinished(running, failure)

    def close(self) -> None:
        """Closes the journal."""
        if self._part is not None:
            self._part.close()
        self._part, self._counts = None, None

    def _follow(self) -> None:
        """Takes in the plan, and what the journal says since the last look."""
        try:
            if self._part is None:
                data = LocalFiles(self._work).read(PLANNED_NAME)
                if data is None:
                    data = LocalFiles(self._work / SHARES).read(TARGET_NAME)
                if data is None:
                    return
                plan = parse_part(data, self._name, str(self._work / PLANNED_NAME))
                self._part = Part(self._files, self._work, self._name, plan)
                self._counts = _Counts(plan, local_path(self._dest))
            if self._counts is not None:
                for name, index, _ in self._part.news() or ():
                    self._counts.add(name, index)
        except ResumeError:  # another run, with another plan, took the place of the one that was followed
            self.close()

    def _complete(self) -> Sight | None:
        data = self._files.read(self._name)
        if data is None:
            return None
        manifest = parse_part(data, self._name, f"{self._files.where}/{self._name}")
        self.close()
        counts = _Counts(manifest, None)
        status = replace(counts.status(self._dest), stage=Stage.DONE, bytes_placed=counts.wanted)
        status = replace(status, tensors_ready=status.tensors, next_tensor="")
        return Sight(self._name, status, counts.names, frozenset(counts.names), running=False)

    def _unfinished(self, running: bool, failure: Failure | None) -> Sight:
        since = _time_of(self._work / "lock")
        until = time.time() if running else failure.time if failure else since
        counts = self._counts
        status = counts.status(self._dest) if counts else _unknown(self._dest, self._name)
        status = replace(
            status,
            stage=self._stage(counts, failure),
            live=running,
            seconds=max(until - since, 0.0),
            error=failure.message if failure else "",
            error_kind=failure.kind if failure else "",
        )
        names, here = (counts.names, frozenset(counts.here)) if counts else ((), frozenset[str]())
        return Sight(self._name, status, names, here, running, failure)

    def _stage(self, counts: _Counts | None, failure: Failure | None) -> Stage:
        if failure is not None:
            return Stage.FAILED
        if counts is not None:
            if len(counts.here) == len(counts.names):
                return Stage.FINISH
            return Stage.EXCHANGE if (self._work / SHARES / self._name).exists() else Stage.FETCH
        with contextlib.suppress(ResumeError):
            progress, _ = parse_journal(LocalFiles(self._work).read("journal.jsonl") or b"")
            if progress is not None:
                return Stage.RESHARD if progress.plan.startswith("reshard ") else Stage.PLAN
        works = self._work, work_of(self._work / SHARES, self._name)
        return Stage.HEADERS if any((w / "source.torrent").exists() for w in works) else Stage.METADATA


class _Counts:
    """The shards of one host by a manifest or a plan, and those of them that are committed.

    A shard that a journal lists and whose file below `root` is gone is not: a fetch will bring it again.
    """

    def __init__(self, plan: StoreManifest, root: Path | None):
        self._plan, self._root = plan, root
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self.names = tuple(tensor.name for tensor in plan.tensors)
        self.here: set[str] = set()
        self.wanted = self.placed = 0
        self._missing: dict[str, set[Index]] = {}
        self._nbytes: dict[str, int] = {}
        places = plan.host.devices(plan.mesh)
        for tensor in plan.tensors:
            own = set(shards_of(tensor.grid, plan.mesh, tensor.spec, places))
            self._missing[tensor.name] = own
            self._nbytes[tensor.name] = (
                tensor.grid.box_of(next(iter(own))).size * tensor.dtype.itemsize if own else 0
            )
            self.wanted += len(own) * self._nbytes[tensor.name]
            if not own:
                self.here.add(tensor.name)

    def add(self, name: str, index: Index) -> None:
        """One shard is committed."""
        missing = self._missing.get(name, set())
        if index in missing and self._is_there(self._tensors[name], index):
            missing.remove(index)
            self.placed += self._nbytes[name]
            if not missing:
                self.here.add(name)

    def _is_there(self, tensor: StoreTensor, index: Index) -> bool:
        return self._root is None or is_there(self._root, self._plan, tensor, index)

    def status(self, dest: str) -> AgentStatus:
        """What the counts say; the rest is for who knows more."""
        plan, source = self._plan, self._plan.source
        return AgentStatus(
            index=plan.host.index,
            count=plan.host.count,
            name="",
            dest=dest,
            stage=Stage.FETCH,
            seconds=0.0,
            live=True,
            info_hash=source.info_hash,
            release=source.name,
            bytes_wanted=self.wanted,
            bytes_placed=self.placed,
            tensors=len(self.names),
            tensors_ready=len(self.here),
            next_tensor=next((name for name in self.names if name not in self.here), ""),
        )


def all_ready(sights: Sequence[Sight], what: str) -> Readiness:
    """How far something is on all hosts that are seen: of each tensor the least of them."""
    assert sights, "nothing is seen"
    names = sights[0].names
    everywhere = frozenset.intersection(*(sight.here for sight in sights))
    return ready(what, names if all(sight.names for sight in sights) else (), everywhere)


def _work_of_bucket(dest: str, host: HostGroup, work: Path | None) -> Path:
    from gdist.run.destination import remote_work  # brings all that a fetch needs

    return remote_work(dest, manifest_name(host), work)


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(directory, error) from error


def _unknown(dest: str, manifest: str) -> AgentStatus:
    """The status of a run that has not said yet what it will bring."""
    index, count = 0, 1
    if manifest != MANIFEST_NAME:
        index, count = int(manifest[11:16]), int(manifest[20:25])
    return AgentStatus(index, count, "", dest, Stage.METADATA, 0.0, live=True)


def _time_of(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return time.time()
