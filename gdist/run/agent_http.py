"""Probes and metrics of a run over plain HTTP, for those who ask for it with `--http ADDRESS:PORT`.

    GET /livez                     200 while it progresses or waits for a reason, else 503
    GET /readyz?ready=layers:0-7   200 once all of that can be read, else 503; without `ready` all is meant
    GET /metrics                   for Prometheus

Nobody is authenticated and nothing is encrypted: it says how far a run is, where it writes to, and what of,
and takes no orders. It listens where it was told to and nowhere else. Answers are JSON, but for the metrics.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final
from urllib.parse import parse_qs, urlsplit

from gdist.core.ready import Readiness
from gdist.core.status import AgentStatus, ClusterStatus
from gdist.errors import RequestError
from gdist.exchange import format_address, parse_address
from gdist.run.metrics import Exposition

CONNECTIONS = 64  # at once; who comes beyond that is hung up on
MOST_FIELDS = 64  # of a query
REQUEST_SECONDS = 10.0  # for a whole request, and how long a kept connection may be idle

_log = logging.getLogger(__name__)

Answer = tuple[HTTPStatus, bytes, str]


@final
class AgentHttp:
    """Serves probes and metrics from when it is made until it is closed; a context manager.

    `status`, `ready` (`StatusOfEvents` has both) and `cluster` (of a coordinator) are called from several
    threads, once for each question. Port 0 takes any.

    Raises:
        RequestError: when it cannot listen there.
    """

    def __init__(
        self,
        listen: str,
        status: Callable[[], AgentStatus],
        ready: Callable[[str], Readiness],
        *,
        cluster: Callable[[], ClusterStatus | None] = lambda: None,
    ):
        self._status, self._ready = status, ready
        self._exposition = Exposition(status, cluster)
        self._server = _Server(_listening(listen), self._answer)
        host, port = self._server.socket.getsockname()[:2]
        self.address = format_address(host, port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="gdist-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening; answers that are under way may be cut off."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> AgentHttp:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()

    def _answer(self, target: str, accept: str) -> Answer:
        try:
            parts = urlsplit(target)
            query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            return _json(HTTPStatus.BAD_REQUEST, {"error": "this target cannot be read"})
        match parts.path:
            case "/livez":
                status = self._status()
                document = {
                    "live": status.live,
                    "stage": status.stage.value,
                    "seconds": round(status.seconds, 1),
                }
                return _json(HTTPStatus.OK if status.live else HTTPStatus.SERVICE_UNAVAILABLE, document)
            case "/readyz":
                return self._readyz(query.get("ready", ["all"]))
            case "/metrics":
                text, content_type = self._exposition.text(accept)
                return HTTPStatus.OK, text, content_type
        paths = ["/livez", "/readyz", "/metrics"]
        return _json(HTTPStatus.NOT_FOUND, {"error": f"{parts.path[:200]} is not here", "paths": paths})

    def _readyz(self, wanted: Sequence[str]) -> Answer:
        try:
            asked = [self._ready(what) for what in wanted]
        except RequestError as error:
            return _json(HTTPStatus.BAD_REQUEST, {"error": error.message, "hint": error.hint})
        ready = all(readiness.ready for readiness in asked)
        document = {"ready": ready, "asked": [readiness.to_json() for readiness in asked]}
        return _json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, document)


def _json(status: HTTPStatus, document: Mapping[str, object]) -> Answer:
    return status, json.dumps(document, ensure_ascii=False).encode() + b"\n", "application/json"


def _listening(listen: str) -> socket.socket:
    host, port = parse_address(listen)
    try:
        if not host and socket.has_dualstack_ipv6():
            # a kernel may know IPv6 on a host that has none
            with contextlib.suppress(OSError):
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RequestError(
            f"cannot listen on {listen}: {error.strerror or error}", hint="choose another address for --http"
        ) from error


class _Server(ThreadingHTTPServer):
    """Serves on a socket that listens already, a thread for each connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, answer: Callable[[str, str], Answer]):
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.answer = answer
        self._room = threading.BoundedSemaphore(CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:  # Any: as in socketserver
        """Starts a thread for a connection, as long as there is room."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # Any: as above
        """Serves one connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # Any: as above
        """Notes what went wrong with one connection; others are not concerned."""
        _log.debug("a connection failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection: requests without bodies, one after the other."""

    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answers."""
        status, body, content_type = self.server.answer(self.path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def version_string(self) -> str:
        """Which server it is; the version of gdist is among the metrics."""
        return "gdist"

    def log_message(self, format: str, *args: object) -> None:
        """To the log, for diagnosis, instead of standard error."""
        _log.debug("%s: %s", self.address_string(), format % args)
