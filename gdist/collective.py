"""The process that moves shares between hosts by XLA: `python -m gdist.collective FD`.

`gdist.run.collective.start_move` starts it, and talks to it over the connection with that descriptor: a
`MoveRequest` comes, and perhaps "stop"; events go, and at last the result, or what it failed with. It is the
one place where the machinery of a run and JAX meet.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from gdist.core.failure import Failure
from gdist.errors import GdistError
from gdist.run.collective import MoveRequest, move_shares

ENDED = 1  # its exit status when whoever started it is gone


def move(request: MoveRequest, tell: Callable[[object], None], stop: threading.Event) -> bool:
    """Joins the processes of the other hosts, makes this host's shards of all hosts' shares, and tells.

    How it went is told before the others are left: a host that is left may end the processes of the rest.

    Raises:
        Unreachable: the others did not come.
    """
    from gdist.loader.distributed import joined  # takes seconds, in which a stop should be heard

    with joined(
        request.coordinator,
        request.host,
        join_seconds=request.join_seconds,
        silence_seconds=request.silence_seconds,
        rails=request.rails,
    ) as carrier:
        try:
            result = move_shares(
                request.dest,
                request.host,
                carrier,
                memory=request.memory,
                work=request.work,
                locked=True,
                observe=tell,
                stop=stop,
            )
        except GdistError as error:
            tell(Failure.of(error, time.time()))
            return False
        tell(result)
        return True


def main(descriptor: int) -> int:
    """Does what comes over the connection; the exit status."""
    connection, lock = Connection(descriptor), threading.Lock()
    stop = threading.Event()
    request: MoveRequest = connection.recv()

    def listen() -> None:
        while True:
            try:
                connection.recv()
            except (EOFError, OSError):  # reset, where it was gone before it had read everything
                os._exit(ENDED)
            stop.set()

    def tell(what: object) -> None:
        with lock, contextlib.suppress(OSError):  # `listen` ends this process
            connection.send(what)

    threading.Thread(target=listen, name="gdist-listen", daemon=True).start()
    try:
        return 0 if move(request, tell, stop) else 1
    except GdistError as error:
        tell(Failure.of(error, time.time()))
        return 1


if __name__ == "__main__":
    # Without the interpreter's own end: XLA's threads may still be at work, and wait for hosts that are gone.
    status = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
