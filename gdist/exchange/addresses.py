"""Where hosts are: `host:port` as people write it, and who may connect."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable

from gdist.errors import RequestError

LOOK_UP_SECONDS = 5.0  # between look-ups of names, however many strangers knock

ADDRESS = re.compile(r"(?:\[(?P<bracketed>[^]\[/@\s]+)\]|(?P<plain>[^]\[/@\s:]*))(?::(?P<port>[0-9]{1,5}))?")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Host and port of `host:port`, `10.0.0.1:7611`, `[::1]:7611` or `:7611` (every address: host "").

    Without a port `default_port` is meant, if given; an IPv6 address may then go without brackets.

    Raises:
        RequestError: when it is none of these.
    """
    address = text.strip()
    read = ADDRESS.fullmatch(f"[{address}]" if _is_ipv6(address) else address)
    host = (read["bracketed"] or read["plain"]) if read else ""
    port = int(read["port"]) if read and read["port"] else default_port
    if not read or port is None or port > 65535 or not (host or read["port"]):
        raise RequestError(
            f"{text!r} is no address of a host", hint="for example node-0:7611 or [fd00::1]:7611"
        )
    return host, port


def _is_ipv6(text: str) -> bool:
    try:
        return isinstance(ipaddress.ip_address(text), ipaddress.IPv6Address)
    except ValueError:
        return False


def format_address(host: str, port: int) -> str:
    """The text that `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Allow:
    """Who may connect: everyone, or the listed addresses, networks and host names.

    Names are looked up when an address knocks that is not known yet, at most every few seconds: the names of
    a cluster's hosts may resolve only once those run, and may move.
    """

    def __init__(self, entries: Iterable[str] | None = None, *, clock: Callable[[], float] = time.monotonic):
        self._everyone = entries is None
        self._clock = clock
        self._networks: tuple[Network, ...] = ()
        self._names: tuple[str, ...] = ()
        for entry in entries or ():
            try:
                self._networks += (ipaddress.ip_network(entry.strip("[] "), strict=False),)
            except ValueError:
                self._names += (entry.strip(),)
        self._found: frozenset[str] = frozenset()
        self._looked_up: float | None = None
        self._lock = threading.Lock()

    def permits(self, address: str) -> bool:
        """Whether a peer of this IP address may speak; may look names up, and take as long as that takes."""
        if self._everyone:
            return True
        address = plain_address(address)
        peer = ipaddress.ip_address(address)
        if any(peer in network for network in self._networks) or address in self._found:
            return True
        return bool(self._names) and address in self._look_up()

    def _look_up(self) -> frozenset[str]:
        with self._lock:
            now = self._clock()
            if self._looked_up is None or now - self._looked_up > LOOK_UP_SECONDS:
                self._found = frozenset(found for name in self._names for found in _addresses_of(name))
                self._looked_up = self._clock()
            return self._found


EVERYONE = Allow()


def plain_address(address: str) -> str:
    """An IP address without its zone, and as IPv4 where IPv6 only wraps it (`::ffff:10.0.0.1`)."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _addresses_of(name: str) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # does not resolve yet: nobody of that name may knock
        return ()
    return tuple(plain_address(str(entry[4][0])) for entry in found)
