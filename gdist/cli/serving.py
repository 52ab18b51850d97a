"""Probes, metrics and a report of a run, for those who ask for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gdist.cli.files import write_whole
from gdist.cli.output import Output
from gdist.core.mesh import HostGroup
from gdist.errors import GdistError
from gdist.events import Event, Note, Observer

if TYPE_CHECKING:
    from gdist.run.recorder import Recorder, RunRecord


@contextlib.contextmanager
def served(
    http: str | None, dest: str | None, host: HostGroup | None, observe: Observer
) -> Iterator[Observer]:
    """The observer to give to a run, so that `http` (`address:port`) tells where it stands.

    Raises:
        RequestError: when it cannot be listened there.
    """
    if http is None:
        yield observe
        return
    # Prometheus' library is not loaded for those who do not ask.
    from gdist.run.agent_http import AgentHttp
    from gdist.run.status_of_events import StatusOfEvents

    status = StatusOfEvents(dest or "", host)

    def tell(event: Event) -> None:
        status(event)
        observe(event)

    with AgentHttp(http, status.status, status.ready) as endpoint:
        tell(Note(f"probes and metrics at http://{endpoint.address}"))
        try:
            yield tell
        except GdistError as error:
            status.failed(error)
            raise


@contextlib.contextmanager
def reported(target: Path | None, output: Output) -> Iterator[Recorder | None]:
    """What to record a cluster's run with; at its end, also of one that failed, `target` has the page.

    Nothing is written where nothing was recorded: by hosts that did not coordinate. Nor by one that stood in
    for host 0 for a while: of the end that one knows.

    Raises:
        FilesystemError, SpaceError: when the page cannot be written.
    """
    if target is None:
        yield None
        return
    from gdist.pictures.run_page import run_page  # templates are loaded for those who want a page
    from gdist.run.recorder import Recorder

    recorder = Recorder()
    try:
        yield recorder
    except GdistError:
        with contextlib.suppress(GdistError):  # the run's own error is the one to tell
            _write(recorder, run_page, target, output)
        raise
    if recorder.tells:
        _write(recorder, run_page, target, output)


def tell_no_report(recorder: Recorder | None, already: bool, observe: Observer) -> None:
    """Says that there will be no page, where one was asked for and nothing had to be done."""
    if already and recorder is not None and recorder.record() is None:
        observe(Note("no report: complete already"))


def _write(recorder: Recorder, page: Callable[[RunRecord], str], target: Path, output: Output) -> None:
    record = recorder.record()
    if record is not None:
        write_whole(target, page(record), output)
