"""Where a run stands: of one host (its agent), and of a cluster; their JSON, and what is ready on a host.

The agent of each host makes an `AgentStatus`, the coordinator of a cluster a `ClusterStatus` of all it knows.
They are what `gdist status`, `gdist wait` and `gdist cluster status` show, and what `/status`, `/ready` and
`/cluster` of an agent answer. Everything is a number or a word: sentences belong to whoever shows them.

A reader takes documents that have more fields than it knows, so that hosts of several versions of gdist can
be looked at together, and none that lack a field or have it of another kind.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, TypeVar

from gdist.errors import CorruptError, RequestError

FORMAT = 1

T = TypeVar("T")


class Stage(Enum):
    """What a run is doing, in this order; it is a fetch, perhaps with an exchange after it, or a reshard."""

    JOIN = "join"
    METADATA = "metadata"
    HEADERS = "headers"
    PLAN = "plan"
    FETCH = "fetch"
    RESHARD = "reshard"
    EXCHANGE = "exchange"  # hosts move even shares to where they belong
    FINISH = "finish"
    SERVE = "serve"  # its own part is complete, and others still take from it
    DONE = "done"
    FAILED = "failed"


class Binds(Enum):
    """What keeps a run from being faster: what it would get more from if there were more of it.

    The wire from outside, the wire between hosts, reading and placing pieces, making shards durable, or
    others: it waits for what another host brings in.
    """

    NETWORK = "network"
    LAN = "lan"
    CONVERT = "convert"
    DISK = "disk"
    WAITING = "waiting"


class MemberState(Enum):
    """A member as its coordinator sees it: heard of lately, silent for too long, gone by itself, complete."""

    LIVE = "live"
    LOST = "lost"
    LEFT = "left"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Where one host's run stands. Bytes, bytes a second, seconds since its start.

    `held_bytes` are of pieces that are kept for other hosts, `leased` is the number of pieces that it is to
    bring in from outside. `live` is true as long as it makes progress or waits for a reason. Of a host alone
    what comes from outside is `wan`, and there is no `lan`.
    """

    index: int
    count: int
    name: str  # of the host
    dest: str
    stage: Stage
    seconds: float
    live: bool
    info_hash: str = ""
    release: str = ""
    bytes_wanted: int = 0
    bytes_placed: int = 0
    tensors: int = 0
    tensors_ready: int = 0
    next_tensor: str = ""  # the first in loading order that is not ready
    pieces: int = 0  # verified by this run
    wan_bytes: int = 0
    lan_in_bytes: int = 0
    lan_out_bytes: int = 0
    wan_rate: int = 0
    lan_in_rate: int = 0
    lan_out_rate: int = 0
    held_bytes: int = 0
    leased: int = 0
    peers: int = 0  # outside
    binds: Binds = Binds.NETWORK
    hash_failures: int = 0  # pieces that came with wrong bytes
    transfer_errors: int = 0  # peers, trackers or hosts that failed, and others were asked instead
    note: str = ""  # the last thing that was worth saying
    error: str = ""  # what ended a run that failed
    error_kind: str = ""  # its class in `gdist.errors`

    def __post_init__(self) -> None:
        assert 0 <= self.index < self.count, f"host {self.index} of {self.count}"
        assert self.bytes_placed <= self.bytes_wanted, f"{self.bytes_placed} of {self.bytes_wanted} bytes"
        assert self.tensors_ready <= self.tensors, f"{self.tensors_ready} of {self.tensors} tensors"

    @property
    def complete(self) -> bool:
        """True once all of this host's part can be read."""
        return self.stage in (Stage.SERVE, Stage.DONE)

    @property
    def over(self) -> bool:
        """True once nothing more will come of this run."""
        return self.complete or self.stage is Stage.FAILED

    @property
    def share(self) -> float:
        """How much of what it wants is placed: 0 to 1."""
        if self.bytes_wanted:
            return self.bytes_placed / self.bytes_wanted
        return 1.0 if self.complete else 0.0

    def to_json(self) -> dict[str, object]:
        """The document that `parse_agent_status` reads."""
        return {"gdist_status": FORMAT, **_plain(self)}


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A host as the coordinator knows it: what it said last, and how many seconds ago that was."""

    status: AgentStatus
    address: str  # of its agent, `host:port`
    state: MemberState
    seen_seconds: float

    @property
    def complete(self) -> bool:
        """True once its part is complete; that it is done it says before its last status comes.

        A host that exchanges is done with its even share alone.
        """
        done = self.state is MemberState.DONE and self.status.stage is not Stage.EXCHANGE
        return self.status.complete or done

    @property
    def works(self) -> bool:
        """True for a host that is there, and whose part is not complete yet."""
        here = self.state in (MemberState.LIVE, MemberState.DONE)
        return here and not self.complete and not self.status.over


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """Where a cluster stands; `members` are those that ever came, in the order of their index.

    `union_bytes` are the distinct bytes that the hosts need, `inside_bytes` those of them that came in. Of
    `pieces` in the union, some are `held` by a host that keeps them for others, others `spent`: got by all
    that need them. `bound_seconds` is the least time in which what came so far could have come, at the
    fastest rates that were seen, `share_of_bound` that over the time it took until all that are here were
    done, or takes yet: 1 would be as fast as can be.
    """

    coordinator: int
    count: int
    seconds: float
    members: tuple[MemberStatus, ...]
    union_bytes: int = 0
    inside_bytes: int = 0
    pieces: int = 0
    held: int = 0
    spent: int = 0
    bound_seconds: float | None = None
    share_of_bound: float | None = None

    def __post_init__(self) -> None:
        indices = [member.status.index for member in self.members]
        assert indices == sorted(set(indices)), f"members {indices} are not in order"
        assert all(member.status.count == self.count for member in self.members), "of several clusters"
        assert 0 <= self.coordinator < self.count, f"coordinator {self.coordinator} of {self.count}"

    @property
    def missing(self) -> tuple[int, ...]:
        """Hosts that never came."""
        return tuple(sorted(set(range(self.count)) - {member.status.index for member in self.members}))

    @property
    def done(self) -> int:
        """Hosts whose part is complete."""
        return sum(member.complete for member in self.members)

    @property
    def wan_bytes(self) -> int:
        """Bytes that came in from outside, all hosts together."""
        return sum(member.status.wan_bytes for member in self.members)

    @property
    def slowest(self) -> int | None:
        """The host that is furthest behind of those at work; None when none is."""
        working = [member.status for member in self.members if member.works]
        return min(working, key=lambda status: (status.share, status.index)).index if working else None

    @property
    def binds(self) -> Binds:
        """What binds most hosts at work, of equals the slowest; waiting, when none works and some miss."""
        slowest = self.slowest
        if slowest is None:
            return Binds.WAITING
        binds = {member.status.index: member.status.binds for member in self.members if member.works}
        votes = Counter(binds.values())
        return max(votes, key=lambda each: (votes[each], each is binds[slowest]))

    def to_json(self) -> dict[str, object]:
        """The document that `parse_cluster_status` reads.

        What follows from the members is in it too, for readers that only show it.
        """
        return {
            "gdist_cluster_status": FORMAT,
            **_plain(self),
            "members": [{**_plain(m), "status": m.status.to_json()} for m in self.members],
            "missing": list(self.missing),
            "done": self.done,
            "wan_bytes": self.wan_bytes,
            "slowest": self.slowest,
            "binds": self.binds.value,
        }


# --- JSON -----------------------------------------------------------------------------------------------


def parse_agent_status(document: object, where: str = "the status") -> AgentStatus:
    """One host's status from its document, an object or JSON text; `where` names it in messages.

    Raises:
        CorruptError: when it is not one.
        RequestError: when a newer gdist wrote it.
    """
    return _parse(document, where, "gdist_status", lambda row: _read(AgentStatus, row))


def parse_cluster_status(document: object, where: str = "the cluster's status") -> ClusterStatus:
    """A cluster's status from its document; raises like `parse_agent_status`."""

    def member(row: Any) -> MemberStatus:
        return _read(MemberStatus, row, status=parse_agent_status(row["status"], where))

    def cluster(row: Any) -> ClusterStatus:
        return _read(ClusterStatus, row, members=tuple(map(member, _list(row["members"]))))

    return _parse(document, where, "gdist_cluster_status", cluster)


def _plain(value: Any) -> dict[str, object]:  # Any: one of the classes above
    row = {field.name: getattr(value, field.name) for field in fields(value)}
    return {
        name: item.value if isinstance(item, Enum) else round(item, 3) if isinstance(item, float) else item
        for name, item in row.items()
        if not isinstance(item, AgentStatus)
    }


def _parse(document: object, where: str, mark: str, read: Callable[[Any], T]) -> T:
    hint = "ask with the gdist that runs there"
    try:
        row: Any = json.loads(document) if isinstance(document, str | bytes) else document
        version = row[mark]
        if version == FORMAT:
            return read(row)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise CorruptError(f"{where} cannot be read: {error!r:.200}", hint=hint) from error
    raise RequestError(f"{where} is of version {version!r}, this gdist reads {FORMAT}", hint=hint)


def _read(kind: type[T], row: Mapping[str, object], **known: object) -> T:
    """A value of one of the classes above: every field there and of its kind, others let be."""
    values = dict(known)
    for field in fields(kind):  # type: ignore[arg-type]  # all of them are dataclasses
        if field.name not in known:
            values[field.name] = _KINDS[str(field.type)](row[field.name])
    return kind(**values)


def _int(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.100} is no count")
    return value


def _float(value: object) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]  # a number
        raise ValueError(f"{value!r:.100} is no time")
    return float(value)  # type: ignore[arg-type]  # as above


def _exactly(kind: type[T]) -> Callable[[object], T]:
    def check(value: object) -> T:
        if type(value) is not kind:
            raise ValueError(f"{value!r:.100} is no {kind.__name__}")
        return value

    return check


_list = _exactly(list)
_KINDS: Mapping[str, Callable[[Any], object]] = {  # Any: whatever a document holds
    "int": _int,
    "float": _float,
    "float | None": lambda value: None if value is None else _float(value),
    "str": _exactly(str),
    "bool": _exactly(bool),
    "Stage": Stage,
    "Binds": Binds,
    "MemberState": MemberState,
}
