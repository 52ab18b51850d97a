"""How the hosts of a cluster take pieces from each other: what the fetch and the model of it share."""

from __future__ import annotations

import statistics
from collections import deque

AT_ONCE = 14  # pieces that are on their way to a host from others
WHOLE_SHARE = 0.9  # of a piece's bytes: who needs so much takes all, and checks it against the torrent
HOME_SECONDS = 2.0  # how long a piece's home is waited for, at least
HOME_TIMES = 3.0  # and as a multiple of how long it is waited for usually
HOMES_SEEN = 64  # pieces that tell what is usual


class Patience:
    """How long to wait for the host that is to pass a piece on, before another is asked for it.

    Where the line out of the few that bring pieces in is what binds, all who pass on have to wait for theirs,
    and to ask those few instead would make it longer for everyone. Only who takes much longer than others is
    not waited for.
    """

    def __init__(self) -> None:
        self._waited: deque[float] = deque(maxlen=HOMES_SEEN)

    def add(self, seconds: float) -> None:
        """A piece was waited for so long."""
        self._waited.append(seconds)

    @property
    def seconds(self) -> float:
        """How long it is worth to wait for one, now."""
        usual = statistics.median(self._waited) if self._waited else 0.0
        return max(HOME_SECONDS, HOME_TIMES * usual)
