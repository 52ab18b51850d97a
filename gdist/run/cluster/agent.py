"""One host's part in a cluster's fetch, from joining to leaving.

The fetch is the one of a single host. Only how it comes to its pieces differs: before it opens its source the
agent joins the others, and learns from them (or finds out for them) what the torrent holds; and when all of
this host's shards are there, it goes on giving pieces to the others until they have what they need.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gdist.core.plan import piece_order
from gdist.core.status import AgentStatus, MemberState
from gdist.errors import (
    GdistError,
    HostsMissing,
    InterruptedRun,
    LockedError,
    RefusedError,
    RequestError,
    StalledError,
    translate,
)
from gdist.events import ClusterProgress, Event, MemberChanged, Note, Observer, Stage, StageStarted
from gdist.exchange import EVERYONE, Allow, Client, Key, Limiter, Request, Response, Server, parse_address
from gdist.kvstore import local_path
from gdist.run.catalogue import Catalogue
from gdist.run.cluster.held import Held, read_held
from gdist.run.cluster.link import Link
from gdist.run.cluster.meters import Meters
from gdist.run.cluster.options import DEFAULT_PORT, ClusterOptions
from gdist.run.cluster.rendezvous import Member, Rendezvous
from gdist.run.cluster.source import ClusterSource
from gdist.run.fetch import FetchResult, fetch
from gdist.run.opening import Opening, PieceSource
from gdist.run.resolve import resolve
from gdist.run.status_of_events import StatusOfEvents
from gdist.sinks.local import write_atomically
from gdist.sources.torrent import TorrentSource

_log = logging.getLogger(__name__)

ATTACH_SECONDS = 0.5
EVENT_SECONDS = 0.5
PROBE_SECONDS = 1.0
ANNOUNCE_SECONDS = 3.0
QUIET_SECONDS = 10.0  # host 0 of a finished job waits so long for others that are not finished
RECEIPT = ".gdist.hosts"  # in a store that all hosts have finished: how many they were
HAND_OVER_SECONDS = 6.0  # of the ten that a host has between SIGTERM and its end
FLUSH_SECONDS = 3.0
NO_SECRET = "gdist: no secret was given"


def cluster_fetch(
    source: str,
    dest: str | os.PathLike[str] | None,
    options: ClusterOptions,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> FetchResult:
    """Fetches this host's part of a release together with the other hosts of the job; safe to repeat.

    The first process on a host does it; others wait until it is done, and take over should it die.

    Raises:
        RefusedError: the hosts disagree on the plan or the secret, or another process is this host.
        HostsMissing: the deadline passed, and hosts without which it cannot be done did not come.
        GdistError: of a fetch.
    """
    tell: Observer = observe or (lambda event: None)
    stopped = stop or threading.Event()
    started, waiting = time.monotonic(), False
    while True:
        agent = _Agent(source, options, tell, stopped, started)
        try:
            return agent.run(dest)
        except LockedError:
            if not waiting:
                tell(Note("another process of this host fetches it already: waiting for it"))
            waiting = True
            agent.check_time()
            if stopped.wait(ATTACH_SECONDS):
                raise InterruptedRun("the run was asked to stop while another process fetches") from None


class _Agent:
    """One run; see the module's text."""

    def __init__(
        self, source: str, options: ClusterOptions, observe: Observer, stop: threading.Event, started: float
    ):
        self._source, self._options, self._observe, self._stop = source, options, observe, stop
        self._started = started
        self._host = options.fetch.host
        self._boot = secrets.token_hex(8)
        self._job = _job(source, options)
        self._key = Key.from_secret(options.secret or NO_SECRET, options.job)
        self._pieces: ClusterSource | None = None
        self._link: Link | None = None
        self._server: Server | None = None
        self._status = StatusOfEvents("", self._host)
        self._changes: list[MemberChanged] = []
        self._told = 0.0
        self._meters = Meters(self._host.count)
        self._rendezvous = Rendezvous(self._host.index, self._boot, self._host.count, self._job, self._probe)

    def run(self, dest: str | os.PathLike[str] | None) -> FetchResult:
        """The fetch."""
        asked = self._options.fetch
        if asked.payload == "keep":
            raise RequestError(
                "a cluster's fetch keeps no payload: each host brings in a part of it",
                hint="gdist fetch --payload keep on one host, or gdist export from the store",
            )
        if self._host.count == 1:
            return fetch(self._source, dest, asked, observe=self._observe, stop=self._stop)
        try:
            return fetch(self._source, dest, asked, observe=self._watch, stop=self._stop, opener=self._open)
        finally:
            self._close()

    # --- time, stops and what is told -----------------------------------------------------------------

    def check_time(self) -> None:
        """Returns while the deadline has not passed.

        Raises:
            HostsMissing, StalledError: it has; the first when hosts are missing.
        """
        limit = self._options.deadline
        if not limit or time.monotonic() - self._started < limit:
            return
        missing = sorted(set(range(self._host.count)) - {self._host.index, *self._here()})
        if missing:
            raise HostsMissing(
                f"the deadline of {limit:.0f} seconds passed, and hosts {', '.join(map(str, missing))} of "
                f"{self._host.count} are not here",
                hint="start them with the same line, or give a longer --deadline; "
                "what is here is kept, and the same command goes on",
            )
        raise StalledError(
            f"not done at the deadline of {limit:.0f} seconds",
            hint="the same command goes on where this one stopped",
        )

    def _here(self) -> set[int]:
        link = self._link
        if link is None:
            return set()
        with link.changed:
            return {peer.index for peer in link.inside.peers.values() if peer.state in ("live", "done")}

    def _tick(self) -> None:
        if self._stop.is_set():
            raise InterruptedRun(
                "the run was asked to stop", hint="the same command goes on where this one stopped"
            )
        self.check_time()
        if self._link is not None:
            self._link.check()
        self._tell()

    def _also(self, tick: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            tick()
            self._tick()

        return both

    def _tell(self) -> None:
        """Events of the cluster, on the fetch's thread."""
        changes, self._changes = self._changes, []
        for change in changes:
            self._watch(change)
        now = time.monotonic()
        if now - self._told > EVENT_SECONDS and self._pieces is not None:
            self._told = now
            self._watch(self.progress(self._pieces))

    def _watch(self, event: Event) -> None:
        self._status(event)
        self._observe(event)

    def status(self) -> AgentStatus:
        """Where this host stands; from any thread."""
        link, server = self._link, self._server
        received = link.meter.received if link else 0
        sent = server.meter.sent if server else 0
        return replace(self._status.status(), lan_in_bytes=received, lan_out_bytes=sent)

    def progress(self, pieces: ClusterSource) -> ClusterProgress:
        """Where the cluster stands, as this host knows it."""
        assert self._link is not None and self._server is not None
        return self._meters.progress(self._link, self._server, pieces)

    # --- joining --------------------------------------------------------------------------------------

    @contextmanager
    def _open(self, opening: Opening) -> Iterator[tuple[PieceSource, Catalogue]]:
        """Joins the others and opens the source of both kinds of pieces; serves the others at the end."""
        opening = replace(opening, tick=self._also(opening.tick))
        link = self._connect(opening.dest.work)
        self._watch(StageStarted(Stage.JOIN))
        link.join()
        held_path = opening.dest.work / "held.json"
        opening.enter(Stage.METADATA)
        outside, catalogue = self._learn(opening, link, held_path)
        try:
            order = piece_order(catalogue.payload, catalogue.tensors)
            held = Held(outside, opening.dest.work)
            held.add((*outside.had, *catalogue.arrived))
            pieces = ClusterSource(
                outside,
                link,
                held,
                order,
                held_path,
                stall_seconds=self._options.fetch.torrent.stall_seconds,
                hold=self._options.hold,
                hosts=self._host.count,
            )
            self._pieces = pieces
            yield pieces, catalogue
            self._serve(pieces, link)
        finally:
            outside.close()

    def _connect(self, work: Path, *, agent_file: bool = True) -> Link:
        """Listens, and knows where the others are."""
        options, index = self._options, self._host.index
        candidates = options.hosts or (options.coordinator,)
        if index == 0 and not candidates[0]:
            candidates = (f"127.0.0.1:{options.port or DEFAULT_PORT}",)
        if not candidates[0]:
            raise RequestError(
                "where host 0 is to be found is not known",
                hint="give --coordinator HOST:PORT, the address of host 0, to every host",
            )
        candidates = tuple(_with_port(address, DEFAULT_PORT) for address in candidates)
        port = options.port
        if port is None:
            own = candidates[index] if len(candidates) > 1 else candidates[0] if index == 0 else ""
            port = parse_address(own)[1] if own else 0
        self._server = Server(
            f":{port}",
            self._key,
            handler=self._answer,
            encrypt=options.encrypt,
            allow=Allow([parse_address(a)[0] for a in candidates]) if len(candidates) > 1 else EVERYONE,
            limiter=Limiter(options.max_lan) if options.max_lan else None,
        )
        self._server.start()
        own = f"127.0.0.1:{self._server.port}"
        me = {
            "index": index,
            "boot": self._boot,
            "port": self._server.port,
            "own": own,
            "address": candidates[index] if len(candidates) > 1 else "",
            "gateway": options.gateway,
            "name": socket.gethostname(),
            "job": self._job,
        }
        self._link = link = Link(
            me, candidates, self._key, encrypt=options.encrypt, status=self._document, stop=self._tick
        )
        self._rendezvous.on_change = self._changed
        if agent_file:
            self._write_agent_file(work / "agent.json", own)
        return link

    def _write_agent_file(self, path: Path, own: str) -> None:
        """How `gdist status` and `gdist wait` find this agent; it goes with the work directory."""
        encrypt = self._options.encrypt
        content = {"pid": os.getpid(), "address": own, "key": self._key.hex(), "encrypt": encrypt}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w") as file:
                json.dump(content, file)
        except OSError as error:
            raise translate(error, f"writing {path}") from error

    def _learn(self, opening: Opening, link: Link, held: Path) -> tuple[TorrentSource, Catalogue]:
        """The open torrent and what it holds: from the others, or found out for them."""
        found = link.catalogue()
        torrent, spec = opening.torrent, opening.spec
        if found is not None:
            spec = base64.b64decode(found["torrent"])
            if found["headers"] is not None:
                write_atomically(opening.headers_path, str(found["headers"]).encode(), sync=False)
        if not self._options.gateway:
            torrent = replace(torrent, outside=False)
        outside = TorrentSource(spec, torrent, opening.observe, tick=opening.tick)
        try:
            opening.open_torrent(outside, read_held(held))
            if not opening.resolved.info_hash.names(outside.info_hash):
                raise RefusedError(
                    "the other hosts fetch another torrent", hint="run the same line on every host"
                )
            catalogue = opening.catalogue(outside)
            if found is None:
                path = opening.headers_path
                headers = path.read_text() if path.exists() else None
                link.publish({"torrent": base64.b64encode(outside.torrent_file).decode(), "headers": headers})
            return outside, catalogue
        except BaseException:
            outside.close()
            raise

    def _afterwards(self, done: FetchResult) -> None:
        """Writes down that all hosts are done; of a store that was complete, tells the others if they wait.

        They would wait for this host's needs otherwise; and without host 0 they could not find each other.
        """
        root = local_path(done.path)
        receipt = root / RECEIPT if root else None
        count = str(self._host.count)
        if self._link is None and not (receipt and receipt.exists() and receipt.read_text() == count):
            link = self._connect(Path(tempfile.gettempdir()) / f"gdist-{self._boot}", agent_file=False)
            found = link.announce(ANNOUNCE_SECONDS)
            rendezvous = self._rendezvous
            while found and self._host.index == 0 and not rendezvous.done():
                if self._stop.wait(EVENT_SECONDS):
                    return
                if rendezvous.quiet() > QUIET_SECONDS and time.monotonic() - self._started > QUIET_SECONDS:
                    return
        if receipt and (self._rendezvous.done() or (self._link is not None and self._link.inside.done)):
            with contextlib.suppress(GdistError):  # it only saves a later run some seconds
                write_atomically(receipt, count.encode(), sync=False)

    # --- serving and leaving --------------------------------------------------------------------------

    def _serve(self, pieces: ClusterSource, link: Link) -> None:
        """Goes on giving pieces until everyone has what they need, or those who miss some never came."""
        self._watch(StageStarted(Stage.SERVE))
        link.tell(done=True)
        alone_since = time.monotonic()
        while pieces.serve():
            if self._stop.is_set():
                break
            link.check()
            self._tell()
            with link.changed:
                working = [
                    p for p in link.inside.peers.values() if p.state == "live" and p.index != self._host.index
                ]
            now = time.monotonic()
            if working:
                alone_since = now
            late = now - alone_since > self._options.linger
            over = self._options.deadline and now - self._started > self._options.deadline
            if late or over:
                missing = sorted(set(range(self._host.count)) - self._here())
                who = ", ".join(map(str, missing))
                self._watch(Note(f"hosts {who} did not come; what they need comes in again when they do"))
                break
        link.flush(FLUSH_SECONDS)

    def _close(self) -> None:
        """Leaves, after others had a chance to take what only this host has."""
        link, server = self._link, self._server
        if link is not None:
            if self._pieces is not None and not link.inside.done:
                self._hand_over(link, self._pieces)
            link.leave(gone=True)
            link.close()
        if server is not None:
            server.close()

    def _hand_over(self, link: Link, pieces: ClusterSource) -> None:
        """Gives the others a few seconds to take the pieces that they need and only this host has."""
        link.leave(gone=False)
        end = time.monotonic() + HAND_OVER_SECONDS
        sent, since = -1, time.monotonic()
        while time.monotonic() < end and pieces.held.pieces():
            server = self._server
            assert server is not None
            if server.meter.sent - sent > 4096:
                sent, since = server.meter.sent, time.monotonic()
            if time.monotonic() - since > 1.0:  # nobody takes anything
                return
            time.sleep(0.1)

    # --- what others ask ------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        if request.path == "/slices" and self._pieces is not None:
            return self._pieces.held.answer(request.body)
        if request.path == "/who":
            follows, alive = self._link.follows if self._link else (0, False)
            return Response.json(
                {"index": self._host.index, "boot": self._boot, "follows": follows, "alive": alive}
            )
        if request.path == "/status":
            return Response.json(self.status().to_json())
        if request.path == "/ready":
            found = self._status.ready(request.query.get("what", "all"))
            return Response.json(found.to_json(), 200 if found.ready else 503)
        if request.path == "/cluster":
            return Response.json(self._cluster())
        answer = self._rendezvous.answer(request)
        return answer or Response.error(404, f"nothing at {request.path}")

    def _cluster(self) -> object:
        """Where the cluster stands: from the coordinator, which may be this agent."""
        link = self._link
        if link is None or link.follows[0] == self._host.index:
            return self._rendezvous.status(time.monotonic() - self._started).to_json()
        return link.ask_cluster()

    def _probe(self, address: str) -> str:
        """The boot id of the agent at an address; nothing when there is none."""
        try:
            with Client(address, self._key, encrypt=self._options.encrypt, timeout=PROBE_SECONDS) as client:
                return str(client.json("GET", "/who", None)["boot"])
        except GdistError:
            return ""

    def _changed(self, member: Member) -> None:
        self._changes.append(MemberChanged(member.index, MemberState(member.state), member.address))

    def _document(self) -> dict[str, Any]:  # Any: a document of the wire
        return self.status().to_json()


def _job(source: str, options: ClusterOptions) -> dict[str, Any]:  # Any: a document of the wire
    """What all hosts of a job must have been asked to do; the words are used when they disagree."""
    asked = options.fetch
    info_hash = resolve(source).info_hash
    rules = asked.rules
    return {
        "info-hash": [h for h in (info_hash.v1_hex, info_hash.v2_hex) if h],
        "number of hosts": asked.host.count,
        "mesh": str(asked.mesh),
        "rules": str(rules) if rules else "those of the release",
        "codec": asked.codec,
        "type": asked.dtype or "as stored",
        "choice of tensors": sorted(set(asked.select)),
        "ignored files": sorted(set(asked.ignore)),
        "profile": asked.profile or "any",
        "exchange": options.exchange,
    }


def _with_port(address: str, port: int) -> str:
    host, _, found = address.rpartition(":")
    if host and found.isdigit() and (":" not in host or host.startswith("[")):
        return address
    return f"[{address}]:{port}" if ":" in address and not address.startswith("[") else f"{address}:{port}"
