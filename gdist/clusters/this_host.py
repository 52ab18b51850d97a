"""What this host is called, and the membership it has: the part that looks at the machine."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path

from gdist.clusters import detect
from gdist.clusters.membership import Membership

_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")


def find_membership(choice: str = "auto") -> Membership:
    """Which host this is by the environment of this process; see `gdist.clusters.detect`."""
    return detect(os.environ, choice, hostname=host_name(), addresses=own_addresses())


def host_name() -> str:
    """The host's name; in a pod with its domain, which is in `/etc/hosts` there and needs no name server."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return socket.getfqdn()
    return socket.gethostname()


def own_addresses() -> tuple[str, ...]:
    """Addresses of this host's interfaces, loopback too, as the kernel lists them; no name is looked up."""
    found: dict[str, None] = {}
    for address in _LOCAL.findall(_read("/proc/net/fib_trie")):
        found[address] = None
    for line in _read("/proc/net/if_inet6").splitlines():
        found[str(ipaddress.IPv6Address(int(line.split()[0], 16)))] = None
    return tuple(found)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # another system, or IPv6 is off
        return ""
