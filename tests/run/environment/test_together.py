"""Hosts that look at once: real sockets on loopback, one thread a host."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from gdist.core.mesh import HostGroup
from gdist.errors import HostsMissing, RefusedError, RequestError, ResumeError, TransferError
from gdist.exchange.ports import free_ports
from gdist.run.environment import together
from gdist.run.environment.findings import Finding, Status
from gdist.run.environment.together import Meeting, Met, about_meeting, check_meeting, meet

SHORT = 5  # seconds that are waited for who does not come; who comes has been met by then


def meetings(count: int, *, named: bool, seconds: float = 60, secret: str = "horse") -> list[Meeting]:
    """A meeting for each host; where they are not `named`, all know host 0 only."""
    ports = free_ports(count)
    everyone = {n: f"127.0.0.1:{port}" for n, port in enumerate(ports)}
    return [
        Meeting(
            HostGroup(n, count),
            everyone if named else {0: everyone[0]},
            ports[n] if named or n == 0 else 0,
            secret,
            "17",
            False,
            seconds,
        )
        for n in range(count)
    ]


def hold(
    these: Iterable[Meeting], late: Callable[[int], float] = lambda n: 0
) -> list[tuple[tuple[Met, ...], list[Finding]]]:
    """What each of them met, and what follows from it."""

    def one(meeting: Meeting) -> tuple[tuple[Met, ...], list[Finding]]:
        time.sleep(late(meeting.host.index))
        met, claims = meet(meeting)
        return met, list(about_meeting(meeting, met, claims))

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, these))


@pytest.mark.parametrize("named", [True, False])
def test_all_meet_all(named: bool) -> None:
    """Also where only host 0 is known to all, and one comes later."""
    for index, (met, findings) in enumerate(hold(meetings(4, named=named), lambda n: 0.7 * (n == 2))):
        assert [one.index for one in met] == [n for n in range(4) if n != index]
        assert all(abs(one.skew) < 10 and one.bulk and not one.refused for one in met)
        (finding,) = findings
        assert finding.status is Status.OK
        assert finding.what == "all 4 hosts were met; the secret is theirs too, and large answers get through"


def test_a_host_stays_until_who_it_met_has_called_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """That one may be starved: it answers, and has not begun to call."""
    monkeypatch.setattr(together, "AFTER_SECONDS", 0.2)
    call, met_by_0 = together._call, threading.Event()

    def late(index: int, address: str, meeting: Meeting, *others: Any) -> Met | None:
        if meeting.host.index == 1:
            assert met_by_0.wait(60)
            time.sleep(1)
        found = call(index, address, meeting, *others)
        if meeting.host.index == 0 and found:
            met_by_0.set()
        return found

    monkeypatch.setattr(together, "_call", late)
    for met, _ in hold(meetings(2, named=True)):
        assert len(met) == 1


def test_encrypted() -> None:
    for _, (finding,) in hold(replace(one, encrypt=True) for one in meetings(2, named=True)):
        assert finding.status is Status.OK


def test_another_secret_is_told_on_both_sides() -> None:
    first, second = meetings(2, named=True, seconds=SHORT)
    for _, findings in hold([first, replace(second, secret="battery")]):
        failed = [finding for finding in findings if finding.status is Status.FAIL]
        assert [finding.family for finding in failed] == [ResumeError]
        assert "secret" in failed[0].what and "--secret" in failed[0].hint


def test_a_host_that_does_not_come_is_told() -> None:
    started = time.monotonic()
    for _, findings in hold(meetings(3, named=True, seconds=SHORT)[:2]):
        (finding,) = findings
        assert finding.family is HostsMissing and finding.what == f"hosts 2 of 3 did not come in {SHORT} s"
    assert time.monotonic() - started < 60


def test_two_hosts_with_one_index_are_told() -> None:
    first, second, third = meetings(3, named=True, seconds=SHORT)
    both = [first, second, replace(third, host=second.host, port=free_ports(1)[0])]
    findings = [finding for _, found in hold(both) for finding in found]
    claims = [finding for finding in findings if finding.family is RefusedError]
    assert claims and "says that it is host 1, and so does another" in claims[0].what
    assert any(f.family is ResumeError and "host 1" in f.what for f in findings), "the second hears it too"


def test_a_host_in_anothers_place_is_told() -> None:
    first, second, _ = meetings(3, named=True, seconds=SHORT)
    swapped = replace(first, addresses={**first.addresses, 2: second.addresses[1]})
    findings = hold([swapped, second])[0][1]
    assert any("says that it is host 1" in f.what for f in findings if f.family is ResumeError)


def test_a_port_that_is_taken() -> None:
    (meeting, _) = meetings(2, named=True)
    with (
        socket.create_server(("127.0.0.1", meeting.port)),
        pytest.raises(RequestError, match="cannot listen"),
    ):
        meet(meeting)


def test_stopping_ends_it() -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        meet(meetings(2, named=True)[0], stop)


def test_what_follows_from_who_was_met(monkeypatch: pytest.MonkeyPatch) -> None:
    (meeting, *_) = meetings(3, named=True)
    good = Met(1, "h1:1", "h1", together.__version__)
    hangs = Met(2, "h2:1", "h2", together.__version__, bulk=False)
    (finding,) = about_meeting(meeting, (good, hangs), ())
    assert finding.family is TransferError and "MTU" in finding.hint
    older = Met(2, "h2:1", "h2", "0.0.9")
    (finding,) = about_meeting(meeting, (good, older), ())
    assert finding.status is Status.WARN and "0.0.9" in finding.what


@pytest.mark.parametrize(("seconds", "count"), [(30.0, 1), (0.0, 2), (-1.0, 2)])
def test_what_is_no_meeting(seconds: float, count: int) -> None:
    with pytest.raises(RequestError) as caught:
        check_meeting(seconds, HostGroup(0, count))
    assert caught.value.hint
