"""How a collective exchange shows: the plan, where it stands, the end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gdist.cli import words
from gdist.cli.live import LiveView
from gdist.cli.plain import PlainLines
from gdist.core.mesh import HostGroup
from gdist.core.status import Stage
from gdist.events import Binds, Finished, MovePlanned, MoveProgress, StageStarted
from gdist.run.status_of_events import StatusOfEvents

GB = 10**9
PLANNED = MovePlanned(3, 12, 2 * GB, GB // 2, GB, GB // 2, 2 * GB, "data=4,model=2", 1, 4)
PROGRESS = MoveProgress(4.0, 17, 3 * GB // 4, 4 * GB // 5, GB // 2, GB, 2 * GB, 1, 3, Binds.LAN)
ALL = (StageStarted(Stage.EXCHANGE), PLANNED, PROGRESS)


def test_the_plan_says_what_comes_from_others() -> None:
    assert words.planned(PLANNED) == (
        "3 tensors on mesh data=4,model=2, host 1 of 4: keeps 2.00 GB, gets 1.00 GB from other hosts, "
        "500.00 MB already here"
    )


def test_a_terminal_shows_where_it_stands() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    view = LiveView(console)
    try:
        for event in ALL:
            view(event)
        with console.capture() as captured:
            console.print(view.draw())
    finally:
        view.close()
    shown = captured.get()
    assert "move " in shown and "50.0%" in shown and "1 of 3 tensors ready" in shown
    assert "from other hosts 750.00 MB" in shown and "binds: network between hosts" in shown


def test_a_log_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainLines(every=0.0)
    for event in (*ALL, Finished("/b", 8 * GB, 3.0, False, ())):
        lines(event)
    lines.close()
    said = capsys.readouterr().err
    assert "exchanging with the other hosts" in said
    assert "50.0%  1.00 GB of 2.00 GB   tensors 1/3   from other hosts 750.00 MB" in said
    assert "complete: 2.00 GB of 8.00 GB on host 1 of 4" in said


def test_an_agents_status_follows() -> None:
    now = [10.0]
    status = StatusOfEvents("/data", HostGroup(1, 4), clock=lambda: now[0])
    for event in ALL:
        status(event)
        now[0] += 2.0
    found = status.status()
    assert (found.stage, found.binds) == (Stage.EXCHANGE, Binds.LAN)
    assert (found.lan_in_bytes, found.lan_out_bytes) == (4 * GB // 5, GB // 2), "with padding"
    assert (found.lan_in_rate, found.lan_out_rate) == (2 * GB // 5, GB // 4)
    assert (found.tensors, found.bytes_wanted, found.bytes_placed) == (3, 2 * GB, GB)
