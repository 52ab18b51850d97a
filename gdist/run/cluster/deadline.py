"""How long a host waits for the others, and what it says of those that are not there."""

from __future__ import annotations

import math
import time

from gdist.errors import HostsMissing, StalledError
from gdist.run.cluster.link import Link
from gdist.run.cluster.options import ClusterOptions


class Deadline:
    """The deadline of one run that began at `started`; `link` is known once the host looks for the others."""

    def __init__(self, options: ClusterOptions, started: float):
        self._options, self._started = options, started
        self._index, self._count = options.fetch.host.index, options.fetch.host.count
        self.link: Link | None = None

    @property
    def left(self) -> float:
        """Seconds until the deadline; infinite without one."""
        limit = self._options.deadline
        return max(0.0, self._started + limit - time.monotonic()) if limit else math.inf

    def check(self) -> None:
        """Returns while the deadline has not passed.

        Raises:
            HostsMissing, StalledError: it has; the first when hosts are missing.
        """
        if self.left:
            return
        passed = f"the deadline of {self._options.deadline:.0f} seconds"
        if missing := self.missing():
            raise HostsMissing(
                f"{passed} passed, and {self.said_of(missing)}",
                hint="start them with the same line, or give a longer --deadline; "
                "what is here is kept, and the same command goes on",
            )
        raise StalledError(f"not done at {passed}", hint="the same command goes on where this one stopped")

    def check_enough(self) -> None:
        """The same for a host that is done: that as many as were asked for are here at the deadline.

        Raises:
            HostsMissing: fewer are.
        """
        missing, fewest = self.missing(), self._options.min_hosts
        if not self.left and self._count - len(missing) < fewest:
            raise HostsMissing(
                f"this host is done; at the deadline of {self._options.deadline:.0f} seconds "
                f"{self.said_of(missing)}, and at least {fewest} were asked for",
                hint="start them with the same line",
            )

    def missing(self) -> list[int]:
        """The other hosts that lack something and are not here."""
        missing = set(range(self._count)) - {self._index}
        if self.link is None:
            return sorted(missing)
        with self.link.changed:
            missing.difference_update(peer.index for peer in self.link.inside.here())
            if self._options.exchange != "collective":  # where who is complete has its shares only
                missing -= self.link.inside.complete
        return sorted(missing)

    def said_of(self, missing: list[int]) -> str:
        """Which hosts did not come, and which came and went: their own words tell why."""
        left = [i for i in missing if self.link and self.link.has_left(i)]
        absent = [i for i in missing if i not in left]
        return " and ".join(
            f"hosts {', '.join(map(str, who))} of {self._count} {what}"
            for who, what in ((absent, "are not here"), (left, "left before they were done"))
            if who
        )
