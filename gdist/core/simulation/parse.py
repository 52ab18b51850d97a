"""A cluster to simulate, as people write it: hosts, rates, CPU costs, faults."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from gdist.core.simulation.model import Costs, Setting
from gdist.core.taking import AT_ONCE
from gdist.core.units import parse_rate, parse_seconds
from gdist.errors import RequestError

MOST_HOSTS = 2**17
_HOSTS = re.compile(r"\s*(\d{1,7})\s*(?:-\s*(\d{1,7})\s*)?")
_FAULT = re.compile(r"\s*(\d{1,7})\s*@\s*(.+?)\s*")
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")


def parse_setting(
    hosts: int,
    *,
    wan: float | str,
    lan: float | str | None = None,
    host_wan: float | str | None = None,
    disk: float | str | None = None,
    gateways: str | Iterable[int] | None = None,
    cores: int = 16,
    cpu: str | Iterable[str] | Mapping[str, float] = (),
    latency: float | str = 0.0005,
    round: float | str | None = None,
    pulls: int = AT_ONCE,
    sample: int = 64,
    seed: int = 0,
) -> Setting:
    """The setting of that many hosts; None is no limit, or the usual.

    Raises:
        RequestError: for what is no rate, time or number, and for hosts that there are not.
    """
    for name, number in (("hosts", hosts), ("cores", cores), ("pulls", pulls), ("sample", sample)):
        if not 1 <= number <= MOST_HOSTS:
            raise RequestError(f"{name} is {number}", hint=f"give 1 to {MOST_HOSTS}")
    if gateways is not None:
        gateways = parse_hosts(gateways) if isinstance(gateways, str) else tuple(gateways)
    return Setting(
        hosts,
        wan=_rate(wan, "wan"),
        lan=_rate(lan, "lan"),
        host_wan=_rate(host_wan, "host-wan"),
        disk=_rate(disk, "disk"),
        gateways=gateways,
        cores=cores,
        costs=parse_costs(cpu),
        latency=parse_seconds(latency, "latency"),
        round=None if round is None else parse_seconds(round, "round"),
        pulls=pulls,
        sample=sample,
        seed=seed,
    )


def _rate(value: float | str | None, name: str) -> float:
    if value is None:
        return math.inf
    rate = parse_rate(value, name)
    if rate <= 0:
        raise RequestError(f"{name} {value!r} is no rate", hint="for example 10Gb/s")
    return rate


def parse_hosts(text: str) -> tuple[int, ...] | None:
    """Reads `0-7,12`, ascending; None for `all`.

    Raises:
        RequestError: for anything else.
    """
    if text.strip() == "all":
        return None
    found: set[int] = set()
    for item in text.split(","):
        match = _HOSTS.fullmatch(item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= MOST_HOSTS:
            raise RequestError(f"hosts {text!r} are no numbers", hint="for example 0-7,12, or all")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def parse_costs(values: str | Iterable[str] | Mapping[str, float]) -> Costs:
    """The usual costs, but for those of `place=0.3`, or of a mapping: seconds a gigabyte.

    Raises:
        RequestError: when there is no such cost, or it is no number.
    """
    pairs: Iterable[tuple[str, float | str]]
    if isinstance(values, Mapping):
        pairs = values.items()
    else:
        items = [values] if isinstance(values, str) else values
        pairs = [
            (name.strip(), seconds.strip()) for name, _, seconds in (item.partition("=") for item in items)
        ]
    costs = Costs()
    for name, seconds in pairs:
        if isinstance(seconds, str) and not _NUMBER.fullmatch(seconds):
            raise RequestError(
                f"CPU cost '{name}={seconds}' is no number of seconds",
                hint="for example place=0.3, a gigabyte",
            )
        costs = costs.changed(name, float(seconds))
    return costs


def parse_slow(values: str | Iterable[str]) -> tuple[tuple[int, float], ...]:
    """Reads `2@0.05`: that many hosts, with that share of their links.

    Raises:
        RequestError: for anything else.
    """
    found = []
    for number, text in _faults(values, "slow", "2@0.05: 2 hosts with a twentieth of their links"):
        if not _NUMBER.fullmatch(text) or not 0 < float(text) <= 1:
            raise RequestError(f"slow hosts have {text!r} of their links", hint="more than 0, at most 1")
        found.append((number, float(text)))
    return tuple(found)


def parse_fail(values: str | Iterable[str]) -> tuple[tuple[int, float], ...]:
    """Reads `1@30s`: that many hosts, which are gone after that time.

    Raises:
        RequestError: for anything else.
    """
    found = _faults(values, "fail", "1@30s: one host, which is gone after 30 s")
    return tuple((number, parse_seconds(text, "fail")) for number, text in found)


def _faults(values: str | Iterable[str], what: str, example: str) -> list[tuple[int, str]]:
    found = []
    for text in [values] if isinstance(values, str) else values:
        match = _FAULT.fullmatch(text)
        if not match:
            raise RequestError(f"{what} {text!r} is not NUMBER@{what.upper()}", hint=f"for example {example}")
        found.append((int(match[1]), match[2]))
    return found
