"""Ports for servers that another program opens, a moment after they were chosen here."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

from gdist.errors import TransferError

_LOCAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RANGE = range(20_000, 30_000)  # Kubernetes forwards some from 30,000 on
_TRIES = 200


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nobody listens on, at any address of this host.

    They are none of those that the system gives to connections by itself, so that none of these takes one
    before it is used (ip(7), `ip_local_port_range`).

    Raises:
        TransferError: when there are none.
    """
    taken = range(32_768, 61_000)  # Linux' own default
    with suppress(OSError, ValueError):
        first, last = _LOCAL_RANGE.read_text().split()
        taken = range(int(first), int(last) + 1)
    offered = [port for port in _RANGE if port not in taken] or list(_RANGE)
    found: list[int] = []
    for port in random.SystemRandom().sample(offered, min(_TRIES + count, len(offered))):
        with suppress(OSError), socket.create_server(("", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise TransferError(f"no port from {_RANGE.start} to {_RANGE.stop - 1} is free on this host")


def free_port() -> int:
    """One of `free_ports`."""
    return free_ports(1)[0]
