"""Where the hosts of a job meet: who is here, what the torrent holds, who brings in and who has which piece.

Every agent can be asked; the hosts ask the coordinator's, which is host 0's or, while that is gone, that of
the lowest host that answers. Nothing is kept on disk: after a restart each host tells again what it needs and
has, with its next message.

    POST /join       who I am, and the job I was asked to do; refused when it is not the others' job; answered
                     with whether all hosts are done
    POST /catalogue  the torrent's metadata and headers, or the task to find them out
    PUT /catalogue   found out
    POST /poll       what I have since; answered with what I should know, at once or when there is something
    POST /meet       I have my even share: answered when all have theirs, with where JAX's processes meet
    POST /leave      I am going: take over what I hold
    GET /who         who answers here, and whom he follows
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from gdist.core.leases import LOST_SECONDS, Answer, Leases
from gdist.core.piece_set import PieceSet, from_json, to_json
from gdist.core.status import AgentStatus, ClusterStatus, MemberState, MemberStatus, Stage, parse_agent_status
from gdist.errors import GdistError, RefusedError, RequestError
from gdist.exchange import Request, Response

FINAL_PHASE = 1  # what the torrent holds is known; before that its pieces are counted as they lie
POLL_SECONDS = 1.0  # the longest that an answer is held back; a host is late by as much after a lost message
ENROL_SECONDS = 0.05  # the same while hosts are about to say what they need
WAKE_SECONDS = 0.25  # how late the passing of time is noticed
COALESCE_SECONDS, COALESCE_SECONDS_PER_HOST = 0.02, 0.0005  # between two answers to one host

Probe = Callable[[str], str]  # who answers at an address (its boot id), "" for nobody
Json = dict[str, Any]  # Any: documents of the wire, checked field by field


@dataclass(slots=True)
class Member:
    """A host of the job, as the rendezvous knows it; `status` is what it last said of itself."""

    index: int
    boot: str
    address: str
    gateway: bool
    name: str
    seen: float
    state: str = "live"  # live, lost, left, done
    status: Json = field(default_factory=dict)
    told: float = 0.0
    roster: int = -1
    lease: PieceSet = 0
    message: int = -1  # the newest of its messages that was taken in


class Rendezvous:
    """One agent's rendezvous; `job` is what its own agent was asked to do."""

    def __init__(self, index: int, boot: str, count: int, job: Json, probe: Probe):
        self.index, self.boot, self.count = index, boot, count
        self.members: dict[int, Member] = {}
        self.changed = threading.Condition()
        self.on_change: Callable[[Member], None] = lambda member: None
        self._job, self._probe = job, probe
        self._leases: Leases | None = None
        self._pieces: Json = {}
        self._phase = -1
        self._catalogue: Json | None = None
        self._scout: int | None = None
        self._roster = 0
        self._met: dict[int, tuple[bool, int]] = {}  # has all of its shards, a free port
        self._complete: set[int] = set()  # hosts that had all they need before they joined

    def answer(self, request: Request) -> Response | None:
        """The answer to one of the requests above; None for any other."""
        handle = {
            ("POST", "/join"): self._join,
            ("POST", "/catalogue"): self._ask_catalogue,
            ("PUT", "/catalogue"): self._put_catalogue,
            ("POST", "/poll"): self._poll,
            ("POST", "/meet"): self._meet,
            ("POST", "/leave"): self._leave,
        }.get((request.method, request.path))
        if handle is None:
            return None
        try:
            return Response.json(handle(request, request.json()))
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"not a request of this version of gdist: {error!r}") from error

    # --- joining --------------------------------------------------------------------------------------

    def _join(self, request: Request, body: Json) -> Json:
        index, boot = int(body["index"]), str(body["boot"])
        self._check_job(index, body["job"])
        address = str(body.get("address") or "") or f"{_bracketed(request.peer)}:{int(body['port'])}"
        with self.changed:
            before = self.members.get(index)
        if (
            before
            and before.boot != boot
            and before.state == "live"
            and self._probe(before.address) == before.boot
        ):
            raise RefusedError(
                f"host {index} is {before.name} at {before.address} already",
                hint="give each host an index of its own",
            )
        with self.changed:
            member = Member(
                index, boot, address, bool(body["gateway"]), str(body["name"])[:200], time.monotonic()
            )
            self.members[index] = member
            if self._scout == index:
                self._scout = None
            self._complete.discard(index)
            if body.get("done"):
                member.state = "done"
                self._complete.add(index)
                if self._leases:
                    self._leases.finish(index)
            self._changed(member)
            return {"coordinator": self.boot, "index": self.index, "done": self.done()}

    def _check_job(self, index: int, job: Json) -> None:
        if not 0 <= index < self.count:
            raise RefusedError(
                f"host index {index} is not in 0 to {self.count - 1}", hint="check the job's host count"
            )
        for word, ours in self._job.items():
            theirs = job.get(word)
            if word == "info-hash":
                same = bool(set(ours) & set(theirs or ()))
            else:
                same = theirs == ours
            if not same:
                raise RefusedError(
                    f"the hosts disagree on the {word}: host {index} has {_words(theirs, word)}, "
                    f"host {self.index} has {_words(ours, word)}",
                    hint="run the same line on every host",
                )

    def _member(self, body: Json) -> Member | None:
        """The host that speaks, unless it has to join first; with the lock held."""
        member = self.members.get(int(body["index"]))
        if member is None or member.boot != body["boot"] or member.state == "left":
            return None
        member.seen = time.monotonic()
        if member.state == "lost":
            member.state = "live"
            self._changed(member)
        return member

    def _changed(self, member: Member) -> None:
        self._roster += 1
        self.changed.notify_all()
        self.on_change(member)

    # --- the catalogue --------------------------------------------------------------------------------

    def _ask_catalogue(self, request: Request, body: Json) -> Json:
        deadline = time.monotonic() + POLL_SECONDS
        with self.changed:
            while True:
                member = self._member(body)
                if member is None:
                    return {"join": True}
                self._expire()
                known = self._catalogue or {}
                if known.get("whole"):
                    return known
                if body["knows"]:  # nothing has to be read then, whoever began to
                    return {"scout": True}
                if known and not body["have"]:
                    return known
                scout = self.members.get(self._scout) if self._scout is not None else None
                if (scout is None or scout.state != "live" or scout is member) and member.gateway:
                    self._scout = member.index
                    return {"scout": True}
                if body["have"] or time.monotonic() > deadline:
                    return {"wait": True}
                self.changed.wait(WAKE_SECONDS)

    def _put_catalogue(self, request: Request, body: Json) -> Json:
        with self.changed:
            if self._member(body) is None:
                return {"join": True}
            if not self._knows_all():
                self._catalogue = {name: body[name] for name in ("torrent", "headers", "whole")}
            self.changed.notify_all()
        return {}

    def _knows_all(self) -> bool:
        """True once it is known what the torrent holds, headers and all."""
        return bool(self._catalogue and self._catalogue["whole"])

    # --- pieces ---------------------------------------------------------------------------------------

    def _poll(self, request: Request, body: Json) -> Json:
        wait = min(float(body.get("wait", 0)), POLL_SECONDS)
        with self.changed:
            if self._knows_all() and self._phase != FINAL_PHASE:  # every host is about to say what it needs
                wait = min(wait, ENROL_SECONDS)
            deadline = time.monotonic() + wait
            member = self._member(body)
            if member is None:
                return {"join": True}
            leases = self._leases
            number = int(body["message"])
            known = leases is not None and leases.knows(member.index, member.boot)
            # Its two threads may overtake each other: what is old must not undo what was told since.
            if number >= member.message:
                member.status = dict(body.get("status") or {})
            if body.get("enrol") and not (known and number < member.message):
                self._enrol(member, body["enrol"])
            member.message = max(number, member.message)
            leases = self._leases
            if leases is None or not leases.knows(member.index, member.boot):
                self._wait(deadline)
                self._expire()
                return {**self._common(member, body), "enrol": "enrol" not in body and leases is not None}
            self._report(leases, member, body)
            version = body.get("version") if body.get("coordinator") == self.boot else None
            while True:
                self._expire()
                if leases is not self._leases or not leases.knows(member.index, member.boot):
                    return {**self._common(member, body), "enrol": True}
                answer = leases.answer(member.index, version, time.monotonic())
                news = answer.fresh or answer.changes or answer.spent or answer.lease != member.lease
                news = news or member.roster != self._roster or leases.done()
                news = news or bool(body.get("catalogue")) != self._knows_all()
                if news or not self._wait(deadline):
                    break
            self._coalesce(member)
            if not leases.knows(member.index, member.boot):
                return {**self._common(member, body), "enrol": True}
            answer = leases.answer(member.index, version, time.monotonic())
            member.told, member.lease = time.monotonic(), answer.lease
            return {**self._common(member, body), **_answer(answer, leases, self._slowest())}

    def _enrol(self, member: Member, body: Json) -> None:
        phase = int(body["phase"])
        if phase < self._phase:
            return
        if phase > self._phase:
            self._phase, self._leases = phase, None
        runs = [(int(nbytes), int(times)) for nbytes, times in body["nbytes"]]
        pieces = {"order": str(body["order"]), "nbytes": runs}
        if self._leases is None:
            self._pieces = pieces
            nbytes = [length for length, times in runs for _ in range(times)]
            self._leases = Leases(nbytes, self.count, final=phase == FINAL_PHASE)
            for index in self._complete:
                self._leases.finish(index)
        elif pieces != self._pieces:
            raise RefusedError(
                f"host {member.index} reads another catalogue of tensors from this torrent than the others",
                hint="run the same version of gdist with the same options on every host",
            )
        self._leases.enrol(
            member.index,
            member.boot,
            gateway=member.gateway,
            needs=from_json(body["needs"]),
            held=from_json(body["held"]),
            had=from_json(body["had"]),
            leased=from_json(body["leased"]),
            done=bool(body["done"]),
            now=time.monotonic(),
        )
        self.changed.notify_all()

    def _report(self, leases: Leases, member: Member, body: Json) -> None:
        ours = body.get("phase") == self._phase
        sets = {name: from_json((ours and body.get(name)) or []) for name in ("held", "dropped", "got")}
        done = bool(body.get("done"))
        for place, host in body.get("gone", ()) if ours else ():
            leases.deny(int(host), 1 << int(place))
        leases.report(member.index, rate=float(body.get("rate", 0)), done=done, now=time.monotonic(), **sets)
        if done and member.state == "live":
            member.state = "done"
            self._changed(member)
        if any(sets.values()):
            self.changed.notify_all()

    def _common(self, member: Member, body: Json) -> Json:
        """What every answer to a poll has; the members when this host does not know them yet."""
        found: Json = {"coordinator": self.boot, "index": self.index, "roster": self._roster}
        found |= {"phase": self._phase, "catalogue": self._knows_all()}
        if body.get("roster") != self._roster or body.get("coordinator") != self.boot:
            found["members"] = [
                [m.index, m.address if m.index != self.index else "", m.gateway, m.state, m.name]
                for m in self.members.values()
            ]
        member.roster = self._roster
        return found

    def done(self) -> bool:
        """True when every host of the job has all it needs."""
        with self.changed:
            return self._leases.done() if self._leases else self.all_complete()

    def all_complete(self) -> bool:
        """True when every host has said that its store was complete when it came."""
        with self.changed:
            return len(self._complete) == self.count

    def busy(self) -> bool:
        """True while another host is at work here."""
        with self.changed:
            self._expire()
            return any(m.state == "live" and m.index != self.index for m in self.members.values())

    def quiet(self) -> float:
        """Seconds since any other host that is at work was heard of."""
        now = time.monotonic()
        with self.changed:
            others = [m.seen for m in self.members.values() if m.index != self.index and m.state == "live"]
        return now - max(others) if others else float("inf")

    def _meet(self, request: Request, body: Json) -> Json:
        """Where an exchange by XLA needs all hosts at once: nobody is held here longer than a poll."""
        deadline = time.monotonic() + POLL_SECONDS
        with self.changed:
            member = self._member(body)
            if member is None:
                return {"join": True}
            self._met[member.index] = (bool(body["here"]), int(body["port"]))
            self.changed.notify_all()
            while len(met := self._have_met()) < self.count and self._wait(deadline):
                self._expire()
            move = not all(here for here, _ in met.values())
            absent = sorted(self._complete - self._met.keys())
            if move and absent:  # they have all of their shards, and their shares are gone
                raise RefusedError(
                    f"shards are missing here or on another host, and the even shares that they would be "
                    f"made of are gone: complete is host {', '.join(map(str, absent))}",
                    hint="run the line on every host with --exchange swarm, which fetches what is missing",
                )
            if len(met) < self.count:
                working = {m.index for m in self.members.values() if m.state in ("live", "done")}
                return {"wait": True, "gone": sorted(set(range(self.count)) - met.keys() - working)}
            return {"move": move, "port": met[0][1]}

    def _have_met(self) -> dict[int, tuple[bool, int]]:
        """Who waits for the exchange, or needs none."""
        return dict.fromkeys(self._complete, (True, 0)) | self._met

    def _slowest(self) -> int | None:
        """The host at work that is furthest behind, by what each said last."""
        shares = {
            member.index: member.status.get("bytes_placed", 0) / (member.status.get("bytes_wanted") or 1)
            for member in self.members.values()
            if member.state == "live"
        }
        return min(shares, key=lambda index: shares[index]) if shares else None

    def _wait(self, deadline: float) -> bool:
        """Waits for a change; False when the time is up."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        self.changed.wait(min(left, WAKE_SECONDS))
        return True

    def _coalesce(self, member: Member) -> None:
        """Waits a little where news come thick and fast: one answer then says what many would have."""
        rest = member.told + COALESCE_SECONDS + COALESCE_SECONDS_PER_HOST * self.count - time.monotonic()
        end = time.monotonic() + rest
        while (left := end - time.monotonic()) > 0:
            self.changed.wait(left)

    def _expire(self) -> None:
        now = time.monotonic()
        if self._leases:
            self._leases.expire(now)
        for member in self.members.values():
            if member.state in ("live", "done") and now - member.seen > LOST_SECONDS:
                member.state = "lost"
                self._changed(member)

    def _leave(self, request: Request, body: Json) -> Json:
        """The first time the others are told to hurry; with `gone` what the host holds is not counted on."""
        with self.changed:
            member = self._member(body)
            if member is None:
                return {}
            leases = self._leases
            if leases and leases.knows(member.index, member.boot):
                if body.get("gone"):
                    leases.remove(member.index)
                else:
                    leases.leave(member.index)
            if body.get("gone"):
                member.state = "left"
            self._changed(member)
        return {}

    def status(self, seconds: float) -> ClusterStatus:
        """Where the cluster stands, `seconds` after this agent began."""
        now = time.monotonic()
        with self.changed:
            self._expire()
            found = tuple(self._member_status(self.members[i], now) for i in sorted(self.members))
            leases = self._leases
            if leases is None:
                return ClusterStatus(self.index, self.count, seconds, found)
            union, inside, spent = leases.union, leases.inside, leases.spent
            return ClusterStatus(
                self.index,
                self.count,
                seconds,
                found,
                union_bytes=leases.union_nbytes,
                inside_bytes=leases.brought,
                pieces=union.bit_count(),
                held=inside.bit_count(),
                spent=spent.bit_count(),
            )

    def _member_status(self, member: Member, now: float) -> MemberStatus:
        try:
            status = parse_agent_status(member.status)
        except GdistError:  # it has said nothing yet
            status = AgentStatus(member.index, self.count, member.name, "", Stage.JOIN, 0.0, live=True)
        if member.state in ("lost", "left"):  # not what it did when it said something last
            status = replace(status, wan_rate=0, lan_in_rate=0, lan_out_rate=0, held_bytes=0, leased=0)
        return MemberStatus(status, member.address, MemberState(member.state), now - member.seen)


def _answer(answer: Answer, leases: Leases, slowest: int | None) -> Json:
    return {
        "version": answer.version,
        "fresh": answer.fresh,
        "changes": [[change.piece, change.host, change.held] for change in answer.changes],
        "lease": to_json(answer.lease),
        "spent": to_json(answer.spent),
        "spare": to_json(answer.spare),
        "wanted": answer.wanted,
        "done": leases.done(),
        "brought": leases.brought,
        "slowest": slowest,
        "union": leases.union_nbytes,
    }


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _words(value: object, word: str) -> str:
    if value == []:
        return "all" if word == "choice of tensors" else "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
