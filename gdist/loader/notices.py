"""What processes tell each other between collectives: that one of them goes no further.

It goes through the coordination service of `jax.distributed`, which every process reaches whatever the others
do; so one that waits for its next tensor hears of it without a collective for each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

import jax

from gdist.loader.team import Team
from gdist.stores.agreement import error_of, is_agreed, text_of

LOOK_SECONDS = 0.5  # how late a notice may be heard; a thousand processes ask one service


class Notices:
    """The notices of one team about one thing it does; all its processes make it together."""

    def __init__(self, team: Team):
        self._team, self._looked = team, -inf
        self._client = _client() if team.meets else None
        # The first collective of a team waits 30 seconds for all (JAX 0.10 on CPU), later ones for ever:
        # this one comes before anybody waits for a store.
        name = team.gathered(os.urandom(16))[0][:16].hex() if team.meets else ""
        self._prefix = f"gdist/notices/{name}/"

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tells the others of an error that ends the block, unless they have it too."""
        try:
            yield
        except Exception as error:
            if self._client is not None and not is_agreed(error):
                with suppress(RuntimeError, AttributeError):  # the service is gone, and the job with it
                    key = f"{self._prefix}{jax.process_index()}"
                    self._client.key_value_set(key, text_of(error).decode())
            raise

    def check(self) -> None:
        """Raises what another process has told; looks for it every half second at most.

        Raises:
            GdistError: of the kind of the first failure, with the messages of all that failed.
        """
        now = time.monotonic()
        if self._client is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        said: dict[str, str] = {}
        with suppress(RuntimeError, AttributeError):  # as above, or a JAX that has no such call
            said = dict(self._client.key_value_dir_get(self._prefix))
        if said:
            texts = [said.get(f"{self._prefix}{process}", "").encode() for process in self._team.processes]
            raise error_of(self._team.processes, texts, self._team.words)


def _client() -> Any:  # Any: JAX leaves it untyped
    """The client of the coordination service, for which JAX (0.10) has no public name; None without one."""
    try:
        from jax._src import distributed
    except ImportError:
        return None
    return getattr(distributed.global_state, "client", None)
