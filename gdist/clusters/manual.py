"""What was said outright: GDIST_HOST or GDIST_RANK and GDIST_WORLD, GDIST_COORDINATOR, GDIST_HOSTS.

Each wins over the scheduler's own; index and count together win over the whole scheduler. With GDIST_HOSTS
alone, this host's place in the list is its index: the same line then works on every host of the list.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

from gdist.clusters.membership import SHOWN, HalfSet, Variables, half_set
from gdist.core.hosts import parse_hosts, split_address
from gdist.core.mesh import parse_host
from gdist.core.text import shorten
from gdist.errors import RequestError


@dataclass(frozen=True, slots=True)
class Said:
    """What was said outright; None, '' and () where nothing was."""

    index: int | None
    count: int | None
    coordinator: str
    hosts: tuple[str, ...]
    evidence: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """True when index and count are known."""
        return self.index is not None and self.count is not None


def said(variables: Variables, hostname: str, addresses: Collection[str]) -> Said:
    """What the variables of ours say.

    Raises:
        RequestError: when they contradict one another.
    """
    index, count = variables.number("GDIST_RANK"), variables.number("GDIST_WORLD")
    text = variables.text("GDIST_HOST")
    if text:
        host = parse_host(text)
        if index not in (None, host.index) or count not in (None, host.count):
            raise RequestError(
                f"GDIST_HOST is {text}, GDIST_RANK {index} and GDIST_WORLD {count}",
                hint="set GDIST_HOST, or the two others",
            )
        index, count = host.index, host.count
    hosts = _hosts(variables.text("GDIST_HOSTS"))
    if hosts and count not in (None, len(hosts)):
        raise RequestError(
            f"GDIST_HOSTS names {len(hosts)} hosts, and there are {count} ({', '.join(variables.used)})",
            hint="name every host once, in order",
        )
    if hosts:
        count = len(hosts)
        index = _place(hosts, hostname, addresses) if index is None else index
    if index is not None and count is not None and index >= count:
        raise RequestError(
            f"host {index} is not in 0 to {count - 1} ({', '.join(variables.used)})",
            hint="hosts are counted from 0",
        )
    coordinator = variables.text("GDIST_COORDINATOR")
    if coordinator:
        split_address(coordinator)  # so that a mistake is told here
    return Said(index, count, coordinator, hosts, variables.used)


def _hosts(text: str) -> tuple[str, ...]:
    if text.startswith("@"):
        raise RequestError(
            f"GDIST_HOSTS is {text!r}, and a file is not read here", hint="give the hosts themselves"
        )
    hosts = parse_hosts(text) if text else ()
    if len(set(hosts)) != len(hosts):
        twice = next(host for host in hosts if hosts.count(host) > 1)
        raise RequestError(f"GDIST_HOSTS names {twice!r} twice", hint="name every host once, in order")
    return hosts


def _place(hosts: tuple[str, ...], hostname: str, addresses: Collection[str]) -> int | None:
    """Where this host is in the list: by its name, an address, the name's first label; None if not once."""
    names = [split_address(host)[0].lower() for host in hosts]
    ours = hostname.lower()
    places = [n for n, name in enumerate(names) if ours and name == ours]
    # Every host is its own 127.0.0.1, so that loopback tells nothing.
    places = places or [n for n, name in enumerate(names) if name in addresses and not _is_loopback(name)]
    if not places and ours:
        short = ours.partition(".")[0]
        places = [
            n for n, name in enumerate(names) if not name[0].isdigit() and name.partition(".")[0] == short
        ]
    return places[0] if len(places) == 1 else None


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def incomplete(told: Said) -> RequestError:
    """The error when less was said than is needed, and no scheduler tells the rest."""
    if not told.evidence:
        return RequestError(
            "manual: neither GDIST_RANK and GDIST_WORLD are set nor GDIST_HOSTS",
            hint="give --host INDEX/COUNT",
        )
    if told.hosts and told.index is None:
        return HalfSet(
            f"manual: no name or address of this host is just once in GDIST_HOSTS "
            f"({shorten(', '.join(told.hosts), SHOWN)})",
            hint="set GDIST_RANK, or name the host as it calls itself",
        )
    missing = [
        name for name, value in (("GDIST_RANK", told.index), ("GDIST_WORLD", told.count)) if value is None
    ]
    return half_set("manual", missing, [entry.partition("=")[0] for entry in told.evidence])
