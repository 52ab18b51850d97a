"""The report of a run: who writes one, and who says that there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdist.cli.output import Output
from gdist.cli.serving import reported, tell_no_report
from gdist.core.status import AgentStatus, ClusterStatus, MemberState, MemberStatus, Stage
from gdist.errors import TransferError
from gdist.events import Note
from gdist.testing.fetches import Recorder


def look(seconds: float, *stages: Stage) -> ClusterStatus:
    """What a coordinator sees."""
    members = (
        MemberStatus(
            AgentStatus(n, len(stages), f"n{n}", "/data", stage, seconds, True), "", MemberState.LIVE, 0.0
        )
        for n, stage in enumerate(stages)
    )
    return ClusterStatus(1, len(stages), seconds, tuple(members))


def test_who_stood_in_for_a_while_writes_no_page(tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    with reported(page, Output()) as recorder:
        assert recorder is not None
        recorder.add(look(1.0, Stage.FETCH, Stage.FETCH))
    assert not page.exists()
    with reported(page, Output()) as recorder:
        assert recorder is not None
        recorder.add(look(1.0, Stage.FETCH, Stage.FETCH))
        recorder.add(look(2.0, Stage.SERVE, Stage.SERVE))
    assert page.exists()


def test_a_run_that_failed_has_its_page(tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    with pytest.raises(TransferError), reported(page, Output()) as recorder:
        assert recorder is not None
        recorder.add(look(1.0, Stage.FETCH, Stage.FETCH))
        raise TransferError("the line is down")
    assert page.exists()


def test_where_nothing_was_to_do_it_says_so(tmp_path: Path) -> None:
    seen = Recorder()
    with reported(tmp_path / "run.html", Output()) as recorder:
        tell_no_report(recorder, False, seen)
        tell_no_report(None, True, seen)
        assert not seen.events
        tell_no_report(recorder, True, seen)
    assert seen.events == [Note("no report: complete already")]
