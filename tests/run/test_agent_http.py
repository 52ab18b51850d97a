"""Probes and metrics over real HTTP: what orchestrators and Prometheus get."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from gdist.core.mesh import HostGroup
from gdist.core.status import AgentStatus, Binds, ClusterStatus, MemberState, MemberStatus, Stage
from gdist.errors import RequestError, StalledError
from gdist.events import Planned, Progress, StageStarted, TensorReady, TensorsPlanned
from gdist.run import agent_http
from gdist.run.agent_http import AgentHttp
from gdist.run.status_of_events import LIVE_SECONDS, StatusOfEvents

NAMES = ("embed", "layers.0.w", "layers.1.w")


class Run:
    """A run with a clock of ours, and its endpoint."""

    def __init__(self) -> None:
        self.now = 0.0
        self.cluster: ClusterStatus | None = None
        self.observe = StatusOfEvents("/data", HostGroup(3, 8), name="node3", clock=lambda: self.now)
        self.http = AgentHttp(
            "127.0.0.1:0", self.observe.status, self.observe.ready, cluster=lambda: self.cluster
        )

    def get(self, target: str, method: str = "GET", **headers: str) -> tuple[int, str, Any]:
        """Status, content type and body (JSON read) of one request on a connection of its own."""
        host, _, port = self.http.address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        try:
            connection.request(method, target, headers=headers)
            answer = connection.getresponse()
            body, kind = answer.read(), answer.headers["Content-Type"]
            return (
                answer.status,
                kind,
                json.loads(body) if kind == "application/json" and body else body.decode(),
            )
        finally:
            connection.close()


@pytest.fixture
def run() -> Iterator[Run]:
    found = Run()
    with found.http:
        yield found


def test_it_is_ready_layer_by_layer(run: Run) -> None:
    assert run.get("/readyz")[0] == 503
    run.observe(Planned(3, 3, 9, 300, 300, 0, 300, "1", 3, 8))
    run.observe(TensorsPlanned(NAMES))
    run.observe(TensorReady("layers.0.w", 100))
    assert run.get("/readyz?ready=layers:0") == (
        200,
        "application/json",
        {
            "ready": True,
            "asked": [
                {"what": "layers:0", "ready": True, "tensors": 1, "tensors_ready": 1, "next_tensor": ""}
            ],
        },
    )
    status, _, body = run.get("/readyz?ready=layers:0-1")
    assert (status, body["asked"][0]["next_tensor"]) == (503, "layers.1.w")
    assert run.get("/readyz?ready=embedding&ready=layers:0")[0] == 503
    run.observe(TensorReady("embed", 100))
    assert run.get("/readyz?ready=embedding&ready=layers:0")[0] == 200
    assert run.get("/readyz")[0] == 503
    run.observe(TensorReady("layers.1.w", 100))
    assert run.get("/readyz")[0] == 200


@pytest.mark.parametrize("target", ["/readyz?ready=layers:9", "/readyz?ready=", "/readyz?" + "a&" * 100])
def test_what_cannot_be_asked_is_a_fault_of_who_asks(run: Run, target: str) -> None:
    run.observe(TensorsPlanned(NAMES))
    status, _, body = run.get(target)
    assert status == 400 and body["error"]


def test_it_lives_while_there_are_signs(run: Run) -> None:
    run.now = 5
    assert run.get("/livez") == (200, "application/json", {"live": True, "stage": "metadata", "seconds": 5.0})
    run.now = LIVE_SECONDS + 1
    assert run.get("/livez")[0] == 503
    run.observe(StageStarted(Stage.FETCH))
    assert run.get("/livez")[2]["stage"] == "fetch"
    run.observe.failed(StalledError("nothing"))
    assert run.get("/livez")[0] == 503


def test_other_paths_say_what_there_is(run: Run) -> None:
    status, _, body = run.get("/")
    assert status == 404 and body["paths"] == ["/livez", "/readyz", "/metrics"]
    assert run.get("/livez", "POST")[0] == 501
    assert run.get("/livez", "HEAD") == (200, "application/json", "")
    host, _, port = run.http.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"GET http://[/livez HTTP/1.1\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def samples(text: str, parse: Any = parse_plain) -> dict[tuple[str, str, str], float]:
    """Values by name, host and the one other label, where there is one."""
    return {
        (
            one.name,
            one.labels.get("host", ""),
            one.labels.get("state", one.labels.get("stage", one.labels.get("binds", ""))),
        ): one.value
        for family in parse(text)
        for one in family.samples
    }


def test_metrics_are_the_status(run: Run) -> None:
    run.observe(Planned(3, 3, 9, 300, 300, 0, 300, "1", 3, 8))
    run.observe(Progress(3.0, 300, 250, 300, 1, 3, 70, 0, 310, 0, 5, 2, 0, Binds.DISK))
    status, kind, text = run.get("/metrics")
    assert status == 200 and kind.startswith("text/plain; version=0.0.4")
    found = samples(text)
    assert found["gdist_wanted_bytes", "3", ""] == 300
    assert found["gdist_placed_bytes", "3", ""] == 250
    assert found["gdist_wan_received_bytes_total", "3", ""] == 310
    assert found["gdist_stage", "3", "metadata"] == 1 and found["gdist_stage", "3", "fetch"] == 0
    assert found["gdist_binds", "3", "disk"] == 1 and found["gdist_binds", "3", "network"] == 0
    assert found["gdist_live", "3", ""] == 1
    assert found["process_resident_memory_bytes", "", ""] > 1e6
    info = next(f for f in parse_plain(text) if f.name == "gdist_run_info").samples[0]
    assert (info.labels["name"], info.labels["hosts"], info.labels["dest"]) == ("node3", "8", "/data")
    ours = {name for name, _, _ in found if not name.startswith("process_")}
    assert all(name.startswith("gdist_") for name in ours)


def test_metrics_come_in_the_form_that_is_asked_for(run: Run) -> None:
    _, kind, text = run.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text") and text.endswith("# EOF\n")
    assert samples(text, parse_openmetrics)["gdist_live", "3", ""] == 1


def test_a_coordinator_has_metrics_of_its_cluster(run: Run) -> None:
    assert "gdist_cluster" not in run.get("/metrics")[2]
    agent = AgentStatus(0, 3, "node0", "/data", Stage.FETCH, 1.0, True, wan_bytes=40)
    members = (
        MemberStatus(agent, "10.0.0.1:1", MemberState.LIVE, 0.1),
        MemberStatus(replace(agent, index=2), "10.0.0.3:1", MemberState.LOST, 40.0),
    )
    bound = {"bound_seconds": 8.0, "share_of_bound": 0.8}
    run.cluster = ClusterStatus(0, 3, 10.0, members, union_bytes=100, inside_bytes=80, **bound)
    found = samples(run.get("/metrics")[2])
    hosts = {
        state: found["gdist_cluster_hosts", "", state]
        for state in ("live", "lost", "left", "done", "missing")
    }
    assert hosts == {"live": 1, "lost": 1, "left": 0, "done": 0, "missing": 1}
    assert found["gdist_cluster_wan_received_bytes_total", "", ""] == 80
    assert found["gdist_cluster_bound_ratio", "", ""] == pytest.approx(0.8)


def test_it_listens_where_it_was_told(run: Run) -> None:
    with pytest.raises(RequestError, match=r"cannot listen on 127\.0\.0\.1"):
        AgentHttp(run.http.address, run.observe.status, run.observe.ready)
    with pytest.raises(RequestError, match="no address"):
        AgentHttp("nonsense", run.observe.status, run.observe.ready)
    with AgentHttp(":0", run.observe.status, run.observe.ready) as everywhere:
        port = int(everywhere.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_connection_serves_several_requests_and_none_blocks_others(run: Run) -> None:
    host, _, port = run.http.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(8)]
    try:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        for _ in range(3):
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
        connection.close()
    finally:
        for one in silent:
            one.close()


def test_too_many_connections_are_hung_up_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_http, "CONNECTIONS", 2)
    with AgentHttp("127.0.0.1:0", run.observe.status, run.observe.ready) as small:
        host, _, port = small.address.rpartition(":")
        first = [socket.create_connection((host, int(port)), timeout=5) for _ in range(2)]
        for one in first:
            one.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert one.recv(100).startswith(b"HTTP/1.1 200")
        with socket.create_connection((host, int(port)), timeout=5) as third:
            assert third.recv(1) == b""
        for one in first:
            one.close()


def test_scrapes_from_many_threads_while_events_come(run: Run) -> None:
    run.observe(TensorsPlanned(NAMES))
    codes: list[int] = []

    def scrape() -> None:
        codes.extend(run.get(target)[0] for target in ("/metrics", "/readyz", "/livez"))

    threads = [threading.Thread(target=scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for name in NAMES:
        run.observe(TensorReady(name, 1))
    for thread in threads:
        thread.join(20)
    assert len(codes) == 24 and set(codes) <= {200, 503}
