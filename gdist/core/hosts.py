"""Names of hosts as people and schedulers write them: lists with ranges, addresses with ports.

    n[0-3,7],gpu-a[01-04]x    as Slurm: ten hosts; leading zeros are kept
    10.0.0.1 10.0.0.2,10.0.0.3
    h0:7611  [fd00::2]:7611  fd00::2

Ranges mean what they mean in Slurm's host lists, and something may follow them; `tests/core/test_hosts.py`
compares with `scontrol show hostnames` where it is installed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from gdist.errors import RequestError

MOST_HOSTS = 2**16  # several times the largest cluster; a range of more is a slip of the keyboard
HIGHEST_PORT = 2**16 - 1

_HOST = re.compile(r"[A-Za-z0-9_][\w.\-]*")
_IPV6 = re.compile(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?:%[\w.\-]+)?")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_HINT = "for example n[0-3],n7 or 10.0.0.1,10.0.0.2"


def parse_hosts(text: str) -> tuple[str, ...]:
    """The hosts of a list with commas or blanks between them, ranges written out, in the order given.

    Raises:
        RequestError: when it is no list of hosts, or of more than `MOST_HOSTS`.
    """
    found: list[str] = []
    for item in _items(text):
        for host in _expanded(item, text):
            found.append(host)
            if len(found) > MOST_HOSTS:
                raise RequestError(f"the hosts {_shown(text)} are more than {MOST_HOSTS}", hint=_HINT)
    if not found:
        raise RequestError(f"{text!r} names no host", hint=_HINT)
    return tuple(found)


def _items(text: str) -> Iterator[str]:
    """The parts between commas and blanks that are not inside brackets."""
    depth, start = 0, 0
    for position, character in enumerate(text):
        if character in "[]":
            depth += 1 if character == "[" else -1
            if depth not in (0, 1):
                raise RequestError(f"the hosts {_shown(text)} have brackets that do not match", hint=_HINT)
        elif depth == 0 and (character == "," or character.isspace()):
            if position > start:
                yield text[start:position]
            start = position + 1
    if depth:
        raise RequestError(f"the hosts {_shown(text)} have brackets that do not match", hint=_HINT)
    if start < len(text):
        yield text[start:]


def _expanded(item: str, text: str) -> Iterator[str]:
    """One part with its ranges written out; several brackets count like digits, the last the fastest."""
    if _is_address(item):
        yield item
        return
    parts = _BRACKET.split(item)  # name, range, name, range, ..., name
    if any("[" in part or "]" in part for part in parts):
        raise RequestError(f"the hosts {_shown(text)} have brackets that do not match", hint=_HINT)
    choices = [_numbers(part, text) if n % 2 else (part,) for n, part in enumerate(parts)]
    for combination in itertools.product(*choices):
        host = "".join(combination)
        if not _is_address(host):
            raise RequestError(f"{host!r} in {_shown(text)} is no name of a host", hint=_HINT)
        yield host


def _numbers(ranges: str, text: str) -> Sequence[str]:
    """`0-3,7` as five numbers; as wide as the first of a range is written."""
    found: list[str] = []
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part.strip())
        if not match:
            raise RequestError(f"[{ranges}] in the hosts {_shown(text)} is no range of numbers", hint=_HINT)
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise RequestError(f"[{ranges}] in the hosts {_shown(text)} goes backwards", hint=_HINT)
        if int(last) - int(first) >= MOST_HOSTS:
            raise RequestError(f"the hosts {_shown(text)} are more than {MOST_HOSTS}", hint=_HINT)
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def split_address(text: str) -> tuple[str, int | None]:
    """Host and port of `h0:7611`, `h0`, `[fd00::2]:7611`, `[fd00::2]` or `fd00::2`; None where none is given.

    Raises:
        RequestError: for anything else.
    """
    match = re.fullmatch(r"\[(.*)\](?::(\d{1,5}))?", text)
    host, port = (match[1], match[2]) if match else (text, None)
    if match is None and text.count(":") == 1:
        host, _, port = text.partition(":")
    fits = _IPV6.fullmatch(host) if match or ":" in host else _HOST.fullmatch(host)
    if not fits or (port is not None and not (port.isdigit() and 0 < int(port) <= HIGHEST_PORT)):
        raise RequestError(
            f"{text!r} is no address of a host",
            hint="for example h0, h0:7611, 10.0.0.1:7611 or [fd00::2]:7611",
        )
    return host, int(port) if port else None


def join_address(host: str, port: int) -> str:
    """Host and port as one text, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_address(text: str) -> bool:
    try:
        split_address(text)
    except RequestError:
        return False
    return True


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
