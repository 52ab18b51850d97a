"""What others reach of a host's agent, and how it reaches them: its server, its rendezvous, its link.

Also how this machine's own tools find it (`agent.json` in the work directory), and the probes that `--http`
asks for.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gdist.core.status import AgentStatus, ClusterStatus
from gdist.errors import GdistError, RefusedError, RequestError, translate
from gdist.exchange import (
    EVERYONE,
    Allow,
    Client,
    Key,
    Limiter,
    Request,
    Response,
    Server,
    format_address,
    parse_address,
)
from gdist.run.cluster.link import Link
from gdist.run.cluster.options import DEFAULT_PORT, ClusterOptions
from gdist.run.cluster.rendezvous import Rendezvous
from gdist.run.cluster.source import ClusterSource
from gdist.run.destination import Destination
from gdist.run.recorder import RunRecord
from gdist.run.status_of_events import StatusOfEvents

PROBE_SECONDS = 1.0
AGENT_NAME = "agent.json"
NO_SECRET = "gdist: no secret was given"
LOOPBACK = ("127.0.0.0/8", "::1")

Json = dict[str, Any]  # Any: documents of the wire


class Station:
    """Open from when it is made; `job` is what this host was asked to do, `stop` raises when it is to end."""

    def __init__(
        self,
        options: ClusterOptions,
        job: Json,
        status: StatusOfEvents,
        stop: Callable[[], None],
        started: float,
    ):
        self._options, self._status, self._started = options, status, started
        self._host = options.fetch.host
        self._boot = secrets.token_hex(8)
        self._key = Key.from_secret(options.secret or NO_SECRET, options.job)
        self._complete = threading.Event()  # the server knows its port before the link can be made
        self.pieces: ClusterSource | None = None
        self.downloaded: Callable[[], int] = lambda: 0  # bytes from outside, up to now
        self.record: RunRecord | None = None  # of what came so far
        self.rendezvous = Rendezvous(self._host.index, self._boot, self._host.count, job, self._probe)
        candidates = _candidates(options)
        several = len(candidates) > 1
        self.server = Server(
            f":{_port(options, candidates)}",
            self._key,
            handler=self._answer,
            encrypt=options.encrypt,
            allow=Allow([*LOOPBACK, *(parse_address(a)[0] for a in candidates)]) if several else EVERYONE,
            limiter=Limiter(options.max_lan) if options.max_lan else None,
        ).start()
        self._own = f"127.0.0.1:{self.server.port}"
        me = {
            "index": self._host.index,
            "boot": self._boot,
            "port": self.server.port,
            "own": self._own,
            "address": candidates[self._host.index] if several else "",
            "gateway": options.gateway,
            "name": socket.gethostname(),
            "job": job,
        }
        self.link = Link(me, candidates, self._key, encrypt=options.encrypt, status=self._document, stop=stop)
        self._complete.set()
        self._hang_up: Callable[[], None] = lambda: None  # on who asks over plain HTTP
        try:
            if options.http:
                from gdist.run.agent_http import AgentHttp  # loaded where it is asked for

                http = AgentHttp(options.http, self.status, status.ready, cluster=self.own_cluster)
                self._hang_up = http.close
        except BaseException:
            self.close()
            raise

    def check_alone(self) -> None:
        """That no other process is host 0: it would coordinate hosts that know nothing of these.

        Raises:
            RefusedError: when one answers where host 0 is looked for.
        """
        address = self.link.way.candidates[0]
        if self._host.index == 0 and self._probe(address) not in ("", self._boot):
            raise RefusedError(
                f"host 0 is another process already, at {address}", hint="give each host an index of its own"
            )

    def leave_address(self, dest: Destination) -> None:
        """Leaves in the work directory how `gdist status` and `gdist wait` find this agent."""
        self._status.goes_to(dest.text)
        path = dest.work / AGENT_NAME
        encrypt = self._options.encrypt
        content = {"pid": os.getpid(), "address": self._own, "key": self._key.hex(), "encrypt": encrypt}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w") as file:
                json.dump(content, file)
        except OSError as error:
            raise translate(error, f"writing {path}") from error

    def status(self) -> AgentStatus:
        """Where this host stands; from any thread. Events know what collectives move, meters all else."""
        status = self._status.status()
        received = status.lan_in_bytes + self.link.way.meter.received
        sent = status.lan_out_bytes + self.server.meter.sent
        wan = max(status.wan_bytes, self.downloaded())  # no events tell of it while this host serves others
        return replace(status, wan_bytes=wan, lan_in_bytes=received, lan_out_bytes=sent)

    def close(self) -> None:
        """Hangs up on everyone."""
        self._hang_up()
        self.link.close()
        self.server.close()

    # --- what others ask ------------------------------------------------------------------------------

    def _document(self) -> Json:
        return self.status().to_json()

    def _answer(self, request: Request) -> Response:
        self._complete.wait(PROBE_SECONDS)
        match request.path:
            case "/slices" if self.pieces is not None:
                return self.pieces.held.answer(request.body)
            case "/who":
                follows, alive = self.link.way.coordinator, self.link.way.answers
                who = {"index": self._host.index, "boot": self._boot, "follows": follows, "alive": alive}
                return Response.json(who)
            case "/status":
                return Response.json(self.status().to_json())
            case "/ready":
                found = self._status.ready(request.query.get("what", "all"))
                return Response.json(found.to_json(), 200 if found.ready else 503)
            case "/cluster":
                own = self.own_cluster()
                return Response.json(own.to_json() if own else self.link.ask_cluster())
        return self.rendezvous.answer(request) or Response.error(404, f"nothing at {request.path}")

    def own_cluster(self) -> ClusterStatus | None:
        """Where the cluster stands, when this agent coordinates it."""
        if not self.link.coordinates:
            return None
        status = self.rendezvous.status(time.monotonic() - self._started)
        record = self.record
        bound = record.bound if record else None
        if record is None or bound is None:
            return status
        return replace(status, bound_seconds=bound.seconds, share_of_bound=record.share_of_bound)

    def _probe(self, address: str) -> str:
        """The boot id of the agent at an address; nothing when there is none."""
        try:
            with Client(address, self._key, encrypt=self._options.encrypt, timeout=PROBE_SECONDS) as client:
                return str(client.json("GET", "/who", None)["boot"])
        except GdistError:
            return ""


def _candidates(options: ClusterOptions) -> tuple[str, ...]:
    """Where a coordinator may be, host 0 first: the addresses of all hosts, or of that one.

    Raises:
        RequestError: when nobody said where.
    """
    found = options.hosts or (options.coordinator,)
    if not found[0] and options.fetch.host.index == 0:
        found = (f"127.0.0.1:{options.port or DEFAULT_PORT}",)
    if not found[0]:
        raise RequestError(
            "where host 0 is to be found is not known",
            hint="give --coordinator HOST:PORT, the address of host 0, to every host",
        )
    return tuple(format_address(*parse_address(address, DEFAULT_PORT)) for address in found)


def _port(options: ClusterOptions, candidates: tuple[str, ...]) -> int:
    """What to listen on: as asked, else where the others look for this host, else anything."""
    if options.port is not None:
        return options.port
    index = options.fetch.host.index
    looked_for = index == 0 or len(candidates) > 1
    return parse_address(candidates[index])[1] if looked_for else 0
