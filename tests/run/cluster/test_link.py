"""What the coordinator answers reaches a host by two threads, in any order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from gdist.exchange import Key
from gdist.run.cluster.link import Link

GUARD_SECONDS = 60
ENROLMENT = {"phase": 1, "order": "", "nbytes": [[1, 8]]}
Json = dict[str, Any]  # Any: documents of the wire


class Coordinator:
    """Answers from a log of who holds what, as a rendezvous does; `asked` is all that it was asked."""

    def __init__(self) -> None:
        self.log: list[list[object]] = []
        self.knows = True
        self.asked: list[Json] = []

    def hold(self, piece: int, *, held: bool = True) -> None:
        self.log.append([piece, 2, held])

    def answer(self, body: Json) -> Json:
        self.asked.append(body)
        version = body["version"]
        found: Json = {"coordinator": "boot0", "index": 0, "roster": 0, "phase": 1, "catalogue": True}
        if not self.knows and "enrol" not in body:
            return found | {"enrol": True}
        found |= {"version": len(self.log), "fresh": version is None, "changes": self.log[version or 0 :]}
        found |= {"lease": [], "spent": [], "spare": [], "wanted": True, "done": False}
        return found | {"brought": 0, "slowest": None, "union": 0}


class Question:
    """A question on its way; it is answered at once, or where it is `held` when the answer is to arrive."""

    def __init__(self, link: Link, answer: Callable[[Json], Json], *, held: bool = False):
        self._asked, self._arrives = threading.Event(), threading.Event()

        def request(method: str, path: str, body: Json, *, timeout: float, address: str) -> Json:
            found = {} if held else answer(body)
            self._asked.set()
            assert self._arrives.wait(GUARD_SECONDS)
            return answer(body) if held else found

        link._request = request  # type: ignore[method-assign]
        self._thread = threading.Thread(target=link._exchange, args=(0,))
        self._thread.start()
        assert self._asked.wait(GUARD_SECONDS)

    def arrive(self) -> None:
        self._arrives.set()
        self._thread.join(GUARD_SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def link() -> Link:
    me = {"index": 1, "boot": "boot1", "own": "127.0.0.1:1"}
    key = Key.from_secret("tested", "")
    found = Link(me, ("127.0.0.1:1",), key, encrypt=False, status=dict, stop=lambda: None)
    found._boot = "boot0"
    found.enrol(ENROLMENT, 255, 0)
    return found


def holders(link: Link) -> dict[int, set[int]]:
    return {place: hosts for place, hosts in link.inside.holders.items() if hosts}


def test_an_answer_of_all_that_was_overtaken_takes_nothing_back(link: Link) -> None:
    coordinator = Coordinator()
    late = Question(link, coordinator.answer)
    coordinator.hold(3)
    Question(link, coordinator.answer).arrive()
    third = Question(link, coordinator.answer, held=True)
    late.arrive()
    coordinator.hold(5)
    third.arrive()
    Question(link, coordinator.answer).arrive()
    assert holders(link) == {3: {2}, 5: {2}}


def test_news_that_were_overtaken_take_nothing_back(link: Link) -> None:
    coordinator = Coordinator()
    coordinator.hold(3)
    Question(link, coordinator.answer).arrive()
    coordinator.hold(3, held=False)
    late = Question(link, coordinator.answer)
    coordinator.hold(3)
    Question(link, coordinator.answer).arrive()
    third = Question(link, coordinator.answer, held=True)
    late.arrive()
    third.arrive()
    Question(link, coordinator.answer).arrive()
    assert holders(link) == {3: {2}}


def test_who_is_to_tell_all_anew_does_so_whatever_else_arrives(link: Link) -> None:
    coordinator = Coordinator()
    Question(link, coordinator.answer).arrive()
    late = Question(link, coordinator.answer)
    coordinator.knows = False
    Question(link, coordinator.answer).arrive()
    late.arrive()
    Question(link, coordinator.answer).arrive()
    assert coordinator.asked[-1]["enrol"]["needs"]
