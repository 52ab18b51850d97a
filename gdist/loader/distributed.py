"""Joining the processes of a job through `jax.distributed`, and leaving them again."""

from __future__ import annotations

import inspect
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import jax

from gdist.core.mesh import HostGroup
from gdist.errors import RequestError, TransferError, Unreachable
from gdist.loader.carrier import XlaCarrier
from gdist.stores.rounds import HOSTS

LEAVE_SECONDS = 10  # the last ones are waited for at most so long: all of them are at the end, or one is gone

_log = logging.getLogger(__name__)


@contextmanager
def joined(
    coordinator: str,
    host: HostGroup,
    *,
    join_seconds: float = 300,
    silence_seconds: float = 30,
    rails: int | None = None,
) -> Iterator[XlaCarrier]:
    """A carrier between the processes of all hosts, one each.

    `coordinator` is where host 0 listens, `HOST:PORT`. A process that has joined its job already is taken as
    it is, and stays in it. A host that is silent for `silence_seconds` ends the processes of all others,
    abruptly: JAX leaves them no choice.

    Raises:
        Unreachable: not all have come within `join_seconds`.
        RequestError: this process has joined as another than the host.
    """
    here = host.count == 1 or jax.distributed.is_initialized()
    if not here:
        _join(coordinator, host, join_seconds, silence_seconds)
    try:
        if (jax.process_index(), jax.process_count()) != (host.index, host.count):
            raise RequestError(
                f"this process is {jax.process_index()} of {jax.process_count()} in JAX, "
                f"and host {host.index} of {host.count}",
                hint="start one process on each host, and let gdist join them",
            )
        with closing(XlaCarrier(jax.devices(), HOSTS, rails)) as carrier:
            yield carrier
    finally:
        if not here:
            with suppress(RuntimeError, ValueError):  # others are gone, or too late: there is nothing to do
                shutdown: Callable[[], None] = jax.distributed.shutdown  # JAX leaves it untyped
                shutdown()


def _join(coordinator: str, host: HostGroup, join_seconds: float, silence_seconds: float) -> None:
    wanted: dict[str, Any] = {  # Any: of several types
        "coordinator_address": coordinator,
        "num_processes": host.count,
        "process_id": host.index,
        "cluster_detection_method": "deactivate",  # it would choose one device of a host that has several
        "initialization_timeout": max(int(join_seconds), 1),
        "heartbeat_timeout_seconds": max(int(silence_seconds), 1),
        "shutdown_timeout_seconds": LEAVE_SECONDS,
        "coordinator_bind_address": f"[::]:{coordinator.rpartition(':')[2]}",  # else the environment's
    }
    known = inspect.signature(jax.distributed.initialize).parameters  # JAX before 0.7 knows fewer
    try:
        jax.distributed.initialize(**{name: value for name, value in wanted.items() if name in known})
        _bind_gloo(coordinator)
        jax.devices()
    except (RuntimeError, ValueError) as error:
        raise Unreachable(
            f"the {host.count} hosts did not come together at {coordinator}: {error}",
            hint="see that all hosts run, and can reach that address; the same command goes on",
        ) from error


def _bind_gloo(coordinator: str) -> None:
    """Lets the CPU collectives listen where the way to the coordinator leaves this host.

    They take the address that the host's own name leads to, which on many machines is 127.0.1.1, and JAX
    (0.10) has no option for it.
    """
    try:
        from jax._src import distributed, xla_bridge  # see above
        from jax._src.lib import _jax  # type: ignore[attr-defined]

        collectives = _jax.make_gloo_tcp_collectives(
            distributed_client=distributed.global_state.client, hostname=own_address(coordinator)
        )
        xla_bridge.register_backend_factory(
            "cpu", lambda: xla_bridge.make_cpu_client(collectives), priority=0, fail_quietly=False
        )
    except (ImportError, AttributeError, TypeError) as error:
        _log.debug("CPU collectives listen where this host's name leads to: %s", error)


def own_address(other: str) -> str:
    """The address of this host on its way to another, `HOST:PORT`; no packet is sent.

    Raises:
        TransferError: when its name is not known, or there is no way.
    """
    name, _, port = other.rpartition(":")
    try:
        found = socket.getaddrinfo(name.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        family, kind, *_, address = found[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except (OSError, ValueError) as error:
        raise TransferError(
            f"there is no way from here to {other}: {error}", hint="check the address of host 0"
        ) from error
