"""Whether the hosts can talk: names, ports, who can be reached, how large packets may be."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from gdist.core.hosts import join_address
from gdist.core.text import count, shorten
from gdist.errors import GdistError, RefusedError, RequestError, TransferError
from gdist.exchange import Client, Key
from gdist.run.environment.findings import Finding, fail, ok, warn

CONNECT_SECONDS = 3.0
THREADS = 32
NAMED = 8  # hosts in one line
HEADER_BYTES, HEADER6_BYTES = 52, 72  # of a packet, with timestamps
SLACK_BYTES = 20  # options of a packet that come and go
LEAST_MTU = 1280  # of IPv6; less is a tunnel in a tunnel
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


class Reach(Enum):
    """What came of calling an address."""

    ANSWERS = "answers"
    REFUSES = "is up, and nothing listens there yet"
    SILENT = "does not answer"
    UNKNOWN = "is no name that resolves"


@dataclass(frozen=True, slots=True)
class Called:
    """An address that was called: what came of it, our own address, bytes of the largest packet."""

    address: str
    reach: Reach
    local: str = ""
    packet: int = 0


def about_name(name: str, addresses: Sequence[str] | None, hosts: int) -> Finding:
    """What follows from what the host's own name resolves to (None: it does not)."""
    check = "host name"
    hint = (
        "collectives of JAX (gloo, --exchange collective) listen on what it resolves to: put the host's own "
        "address into /etc/hosts or the name server"
    )
    if addresses is None:
        what = f"{name} does not resolve"
        return (
            warn(check, what, hint) if hosts > 1 else ok(check, f"{what}, which a lone host can do without")
        )
    what = f"{name} is {', '.join(addresses)}"
    outside = [a for a in addresses if not ipaddress.ip_address(a.partition("%")[0]).is_loopback]
    if not outside and hosts > 1:
        return warn(check, f"{what}: only this host can reach that", hint)
    return ok(check, what)


def resolve(name: str) -> list[str] | None:
    """The addresses of a name, in order; None when it has none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def about_port(port: int, needed: bool) -> Finding:
    """Whether a port can be listened on; `needed` where others were told that it is this one."""
    check, family = "port", socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
    try:
        with socket.create_server(("", port), family=family, dualstack_ipv6=socket.has_dualstack_ipv6()):
            return ok(check, f"{port} is free" if port else "any will do")
    except OSError as error:
        what = f"{port}: {error.strerror or error}"
        if not needed:
            return warn(check, what, "this host may listen elsewhere; leave --port out")
        return fail(check, RequestError, what, "choose another --port for the job, or end what listens there")


def call(address: tuple[str, int]) -> Called:
    """Connects to an address, and hangs up."""
    host, port = address
    text = join_address(host, port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return Called(text, Reach.UNKNOWN)
    reach = Reach.SILENT
    for family, kind, protocol, _, where in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as connection:
            connection.settimeout(CONNECT_SECONDS)
            try:
                connection.connect(where)
            except ConnectionRefusedError:
                reach = Reach.REFUSES
                continue
            segment = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            packet = segment + (HEADER6_BYTES if family == socket.AF_INET6 else HEADER_BYTES)
            return Called(text, Reach.ANSWERS, str(connection.getsockname()[0]), packet)
    return Called(text, reach)


def call_all(addresses: Iterable[tuple[str, int]]) -> list[Called]:
    """Calls several addresses at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, addresses))


def stranger(called: Called) -> bool:
    """True when who takes connections at an address does not speak as gdist does, of whatever job."""
    key = Key.from_secret(secrets.token_hex(), "")  # nobody's: only gdist has words to refuse it
    with Client(called.address, key, timeout=CONNECT_SECONDS) as client:
        try:
            client.json("GET", "/who")
        except RefusedError:
            return False
        except GdistError:
            return True
    return True  # it believes anybody


def about_coordinator(called: Called | None, index: int, wrong: bool = False) -> Finding:
    """What follows from calling the coordinator; None where its address is not known.

    `wrong` is true where it is a `stranger` who answers.
    """
    check = "coordinator"
    if called is None:
        hint = "give --coordinator HOST:PORT, host 0's address, to every host"
        return fail(check, RequestError, "where host 0 is to be found is not known", hint)
    what = f"{called.address} {called.reach.value}"
    if wrong:
        hint = "choose another --port for the job, or end what listens there"
        what = f"{called.address} takes connections, and does not speak as gdist does"
        return fail(check, RequestError, what, hint)
    if called.reach is Reach.ANSWERS or called.reach is Reach.REFUSES:
        return ok(check, what)
    hint = "see that host 0 is up, that its name and the port are right, and that no firewall drops them"
    return fail(check, TransferError, what, hint)


def about_others(called: Sequence[Called]) -> Finding:
    """What follows from calling the other hosts."""
    check = "other hosts"
    lost = [c for c in called if c.reach in (Reach.SILENT, Reach.UNKNOWN)]
    listening = sum(c.reach is Reach.ANSWERS for c in called)
    up = f"{len(called) - len(lost)} of {count(len(called), 'other host')} up, {listening} listening"
    if not lost:
        return ok(check, up)
    names = "; ".join(f"{c.address} {c.reach.value}" for c in lost[:NAMED])
    more = f"; and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    hint = "see that they are up and no firewall is between; a fetch goes on without them as far as it can"
    return warn(check, f"{up}; {names}{more}", hint)


def interface_to(address: str, root: Path = Path("/")) -> str:
    """The interface by which packets go to an IPv4 address, by the kernel's main table; '' when unknown."""
    try:
        target = int(ipaddress.IPv4Address(address))
    except ValueError:
        return _interface6(address, root)
    if ipaddress.IPv4Address(address).is_loopback:
        return "lo"
    best, name = -1, ""
    for line in _read(root / "proc/net/route").splitlines()[1:]:
        fields = line.split()
        network, mask = (int.from_bytes(bytes.fromhex(fields[n]), "little") for n in (1, 7))
        if target & mask == network and mask.bit_count() > best:
            best, name = mask.bit_count(), fields[0]
    return name


def _interface6(local: str, root: Path) -> str:
    """The interface that has an IPv6 address."""
    try:
        wanted = int(ipaddress.IPv6Address(local.partition("%")[0]))
    except ValueError:
        return ""
    for line in _read(root / "proc/net/if_inet6").splitlines():
        fields = line.split()
        if int(fields[0], 16) == wanted:
            return fields[5]
    return ""


def about_mtu(called: Sequence[Called], name: str, root: Path = Path("/")) -> Finding:
    """What follows from the interface's largest packet, and the segments that the others agreed to."""
    check = "network"
    text = _read(root / "sys/class/net" / name / "mtu").strip() if name else ""
    if not text.isdecimal():
        return ok(check, "the interface to the other hosts is not known")
    mtu, speed = int(text), _read(root / "sys/class/net" / name / "speed").strip()
    what = f"{name}, MTU {mtu}" + (f", {speed} Mb/s" if speed.isdecimal() else "")
    smaller = [(c.packet, c.address) for c in called if 0 < c.packet < mtu - SLACK_BYTES]
    smaller = [] if name == "lo" else smaller  # there segments stay below half a window
    if smaller:
        packet, address = min(smaller)
        hint = (
            "set one MTU on all hosts and switches: large transfers may hang where one in between is smaller"
        )
        return warn(check, f"{what}; packets to {address} have at most about {packet} bytes", hint)
    if mtu < LEAST_MTU:
        return warn(check, what, "that is less than IPv6 needs: look for a tunnel that should not be there")
    return ok(check, what)


def about_proxies(environ: Mapping[str, str], hosts: Iterable[str]) -> Finding:
    """What follows from proxies in the environment, which JAX's coordination service would use."""
    check = "proxies"
    set_ = [name for name in PROXIES if environ.get(name) or environ.get(name.upper())]
    if not set_:
        return ok(check, "none")
    exempt = [e for e in re.split(r"[\s,]+", environ.get("no_proxy") or environ.get("NO_PROXY") or "") if e]
    through = [host for host in hosts if not _is_exempt(host, exempt)]
    if not through:
        return ok(check, f"{', '.join(set_)}, not for the hosts of the cluster")
    what = f"{', '.join(set_)} would be used for {shorten(', '.join(through), 60)}"
    return warn(check, what, "gdist's own exchange uses none, JAX does: add the hosts to no_proxy")


def _is_exempt(host: str, exempt: Iterable[str]) -> bool:
    for entry in exempt:
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        suffix = entry.lstrip("*").lstrip(".")
        if entry == "*" or (suffix and (host == suffix or host.endswith(f".{suffix}"))):
            return True
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):  # `speed` of an interface that is down
        return ""
