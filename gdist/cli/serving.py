"""Probes and metrics beside a run, for those who ask for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gdist.core.mesh import HostGroup
from gdist.errors import GdistError
from gdist.events import Event, Note, Observer


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
