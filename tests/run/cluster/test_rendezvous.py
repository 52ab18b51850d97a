"""What hosts say reaches the coordinator by two threads each, in any order."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from gdist.core import leases
from gdist.core.status import AgentStatus, MemberState
from gdist.errors import RefusedError
from gdist.events import Stage
from gdist.exchange.messages import Request
from gdist.run.cluster import rendezvous as module
from gdist.run.cluster.rendezvous import FINAL_PHASE, Rendezvous


def post(
    rendezvous: Rendezvous, path: str, body: dict[str, object], host: int = 1, method: str = "POST"
) -> dict[str, Any]:
    content = json.dumps({"index": host, "boot": f"boot{host}", **body}).encode()
    response = rendezvous.answer(Request(method, path, body=content, peer="10.0.0.2"))
    assert response and isinstance(response.body, bytes)
    found: dict[str, Any] = json.loads(response.body)
    return found


@pytest.mark.parametrize("stages", [(Stage.FETCH, Stage.SERVE), (Stage.SERVE, Stage.FETCH)])
def test_a_message_that_was_overtaken_does_not_undo_what_was_told_since(stages: tuple[Stage, Stage]) -> None:
    rendezvous = Rendezvous(0, "boot0", 2, {}, lambda address: "")
    post(rendezvous, "/join", {"port": 7, "gateway": True, "name": "h1", "job": {}})
    for stage in stages:
        status = AgentStatus(1, 2, "h1", "", stage, 0.0, live=True).to_json()
        number = 5 if stage is Stage.SERVE else 4
        post(rendezvous, "/poll", {"message": number, "status": status, "wait": 0})
    assert rendezvous.status(1.0).done == 1


@pytest.mark.parametrize(("word", "empty"), [("choice of tensors", "all"), ("ignored files", "none")])
def test_hosts_that_disagree_are_told_what_each_has(word: str, empty: str) -> None:
    rendezvous = Rendezvous(0, "boot0", 3, {word: []}, lambda address: "")
    body = {"index": 2, "boot": "boot2", "port": 7, "gateway": True, "name": "h2", "job": {word: ["layer_1"]}}
    with pytest.raises(RefusedError, match=f"on the {word}: host 2 has layer_1, host 0 has {empty}$"):
        rendezvous.answer(Request("POST", "/join", body=json.dumps(body).encode(), peer="10.0.0.2"))


def test_a_host_that_left_has_no_rates_any_more() -> None:
    rendezvous = Rendezvous(0, "boot0", 2, {}, lambda address: "")
    post(rendezvous, "/join", {"port": 7, "gateway": True, "name": "h1", "job": {}})
    rates = {"wan_rate": 3, "lan_in_rate": 4, "lan_out_rate": 5, "leased": 6, "held_bytes": 8}
    status = AgentStatus(1, 2, "h1", "", Stage.FETCH, 9.0, live=True, wan_bytes=7, **rates)
    post(rendezvous, "/poll", {"message": 1, "status": status.to_json(), "wait": 0})
    assert rendezvous.status(1.0).members[0].status == status
    post(rendezvous, "/leave", {"gone": True})
    (member,) = rendezvous.status(1.0).members
    assert member.state is MemberState.LEFT
    assert member.status == replace(status, **dict.fromkeys(rates, 0))


PIECES = {"order": "as they lie", "nbytes": [[100, 4]]}
NOTHING = {"needs": [], "held": [], "had": [], "leased": [], "done": False}


def publish(rendezvous: Rendezvous) -> None:
    catalogue = {"torrent": "", "headers": None, "whole": True}
    post(rendezvous, "/catalogue", catalogue, host=2, method="PUT")


def enrol_finally(rendezvous: Rendezvous) -> None:
    enrolment = {"phase": FINAL_PHASE, **PIECES, **NOTHING}
    post(rendezvous, "/poll", {"message": 1, "phase": FINAL_PHASE, "wait": 0, "enrol": enrolment}, host=2)


@pytest.mark.parametrize(
    ("change", "says"),
    [(publish, {"catalogue": True}), (enrol_finally, {"enrol": True})],
    ids=["known", "phase"],
)
def test_who_waits_is_told_at_once_when_all_is_known(
    change: Callable[[Rendezvous], None], says: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name in ((module, "POLL_SECONDS"), (module, "LOST_SECONDS"), (leases, "LOST_SECONDS")):
        monkeypatch.setattr(place, name, 100.0)
    rendezvous = Rendezvous(0, "boot0", 3, {}, lambda address: "")
    for host in (1, 2):
        post(rendezvous, "/join", {"port": 7, "gateway": True, "name": "", "job": {}}, host=host)
    poll = {"message": 1, "phase": 0, "wait": 0, "enrol": {"phase": 0, **PIECES, **NOTHING}}
    found = post(rendezvous, "/poll", poll)
    assert not found["catalogue"]
    poll = {"message": 2, "phase": 0, "wait": 100.0, "coordinator": "boot0"}
    poll |= {name: found[name] for name in ("version", "roster", "catalogue")}
    waits = threading.Event()
    monkeypatch.setattr(
        rendezvous, "_wait", lambda deadline, wait=rendezvous._wait: waits.set() or wait(deadline)
    )
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(post, rendezvous, "/poll", poll)
        assert waits.wait(60), "nothing is new"
        change(rendezvous)
        assert says.items() <= told.result(50).items()
