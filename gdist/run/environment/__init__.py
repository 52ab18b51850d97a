"""A look at the host this runs on, before a fetch: what would go wrong, and what to do about it.

    membership · host name · port · coordinator · other hosts · network · proxies · file system · destination
    disk space · inodes · memory · open files · together · clock · gdist

Each module has functions that look (`call`, `try_out`, `group_memory`) and pure ones that say what follows
(`about_...`), which give a `Finding`.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gdist import __version__
from gdist.clusters.membership import Membership
from gdist.core.hosts import split_address
from gdist.errors import GdistError
from gdist.kvstore import local_path
from gdist.run.environment.clock import Instant, about_clock
from gdist.run.environment.findings import Finding, Status, error_of, fail, ok, warn
from gdist.run.environment.limits import check_limits
from gdist.run.environment.network import (
    Called,
    Reach,
    about_coordinator,
    about_mtu,
    about_name,
    about_others,
    about_port,
    about_proxies,
    call,
    call_all,
    interface_to,
    resolve,
    stranger,
)
from gdist.run.environment.storage import RAM, check_storage, file_system, nearest
from gdist.run.environment.together import AGAIN_SECONDS, Meeting, Met, about_meeting, check_meeting, meet

DEFAULT_PORT = 7611

__all__ = ["EnvironmentOptions", "EnvironmentReport", "Finding", "Status", "check_environment", "error_of"]


@dataclass(frozen=True, slots=True)
class EnvironmentOptions:
    """What the fetch would be asked.

    `membership` may be the error that looking for it gave. `port` None is the default; `needed` are bytes of
    disk, None when not known; `together` are seconds to wait for the other hosts, None to call them only.
    """

    membership: Membership | GdistError
    dest: str | None = None
    port: int | None = None
    memory: int = 1 << 30
    needed: int | None = None
    secret: str = ""
    encrypt: bool = False
    together: float | None = None


@dataclass(frozen=True, slots=True)
class EnvironmentReport:
    """All findings, in the order in which they were made."""

    findings: tuple[Finding, ...]

    @property
    def error(self) -> GdistError | None:
        """What the check ends with; None when nothing failed."""
        return error_of(self.findings)


def check_environment(
    options: EnvironmentOptions, stop: Callable[[], None] = lambda: None
) -> EnvironmentReport:
    """Looks at everything; takes some seconds, or as long as `together` says. `stop` may raise.

    Raises:
        RequestError: when there is nobody to meet, or the port of a meeting is taken.
    """
    member = options.membership
    start = Instant(time.time(), time.monotonic())
    findings = [_about_membership(member)]
    met: tuple[Met, ...] = ()
    if isinstance(member, Membership):
        if options.together is not None:
            check_meeting(options.together, member.host)
        called = list(_network(options, member, findings))
        stop()
        if options.together is not None:
            met = _meet(options, member, called, findings, stop)
    findings += _host(options, member)
    end = Instant(time.time(), time.monotonic())
    findings.append(about_clock(start, end, tuple(one.skew for one in met if not one.refused)))
    findings.append(ok("gdist", f"version {__version__}, Python {platform.python_version()}"))
    return EnvironmentReport(tuple(findings))


def _about_membership(member: Membership | GdistError) -> Finding:
    check = "membership"
    if isinstance(member, GdistError):
        return fail(check, type(member), member.message, member.hint)
    job = f"; job {member.job}" if member.job else ""
    if member.attaches:
        hint = "another rank of this host is its agent: start one process a host where you can"
        return warn(check, f"{member}{job}", hint)
    return ok(check, f"{member}{job}")


def _addresses(options: EnvironmentOptions, member: Membership) -> dict[int, tuple[str, int]]:
    """Where hosts are, by index, as far as it is known."""
    port = options.port or DEFAULT_PORT
    found = {index: split_address(text) for index, text in enumerate(member.hosts)}
    if not found and member.coordinator:
        found = {0: split_address(member.coordinator)}
    return {index: (host, own or port) for index, (host, own) in found.items()}


def _network(options: EnvironmentOptions, member: Membership, findings: list[Finding]) -> Iterator[Called]:
    """Adds what was found out about the network, and gives what came of calling the others."""
    index, count = member.host.index, member.host.count
    name, addresses = socket.gethostname(), _addresses(options, member)
    findings.append(about_name(name, resolve(name), count))
    known = addresses.get(index)
    port = (
        known[1] if known else options.port if options.port is not None else DEFAULT_PORT if index == 0 else 0
    )
    asked = index == 0 or known is not None or bool(options.port)
    findings.append(about_port(port, needed=count > 1 and asked))
    if count == 1:
        return
    others = {n: where for n, where in addresses.items() if n != index}
    called = dict(zip(others, call_all(others.values()), strict=True))
    if index:
        findings.append(_about_coordinator(others.get(0), called.get(0), index))
    if rest := [one for n, one in called.items() if n]:
        findings.append(about_others(rest))
    findings.append(about_mtu(list(called.values()), _interface(called, others)))
    findings.append(about_proxies(os.environ, dict.fromkeys(host for host, _ in others.values())))
    yield from called.values()


def _about_coordinator(where: tuple[str, int] | None, called: Called | None, index: int) -> Finding:
    wrong = _stranger(called)
    if wrong and where is not None:  # a check on host 0 takes its port for a moment, to see that it is free
        time.sleep(AGAIN_SECONDS)
        called = call(where)
        wrong = _stranger(called)
    return about_coordinator(called, index, wrong)


def _stranger(called: Called | None) -> bool:
    return called is not None and called.reach is Reach.ANSWERS and stranger(called)


def _interface(called: dict[int, Called], others: dict[int, tuple[str, int]]) -> str:
    """The interface to the first other host whose address is known."""
    for n, (host, _) in others.items():
        local = called[n].local
        if ":" in local:
            return interface_to(local)
        for address in resolve(host) or ():
            if name := interface_to(address):
                return name
    return ""


def _meet(
    options: EnvironmentOptions,
    member: Membership,
    called: list[Called],
    findings: list[Finding],
    stop: Callable[[], None],
) -> tuple[Met, ...]:
    addresses = _addresses(options, member)
    own = addresses.get(member.host.index)
    port = own[1] if own else (options.port or 0)
    meeting = Meeting(
        member.host,
        {n: f"[{host}]:{p}" if ":" in host else f"{host}:{p}" for n, (host, p) in addresses.items()},
        port or (DEFAULT_PORT if member.host.index == 0 else 0),
        options.secret,
        member.job,
        options.encrypt,
        options.together or 0.0,
    )
    met, claims = meet(meeting, stop)
    findings += about_meeting(meeting, met, claims)
    return met


def _host(options: EnvironmentOptions, member: Membership | GdistError) -> Iterator[Finding]:
    """What there is to say of this host alone."""
    hosts = member.host.count if isinstance(member, Membership) else 1
    in_ram = 0
    if options.dest is not None:
        root = local_path(options.dest)
        if root is None:
            yield ok("destination", f"{options.dest} is a bucket: the fetch itself asks it")
        else:
            yield from check_storage(Path(root), options.needed)
            if file_system(nearest(Path(root)))[0] in RAM:
                in_ram = options.needed or 0
    yield from check_limits(options.memory, hosts, in_ram)
