"""Hosts as they are given to a command: how many, or which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gdist.cli.options import F, Option, option
from gdist.core.hosts import parse_hosts
from gdist.errors import RequestError


class HostCount(Option):
    """A number of hosts; its variable may list them too, as it does where hosts work together."""

    def value_from_envvar(self, ctx: click.Context) -> Any:  # Any: as in click
        """The number."""
        text = self.resolve_envvar_value(ctx)
        return text if text is None else str(read_hosts(text)[0])


def hosts_option(help: str, **settings: Any) -> Callable[[F], F]:  # Any: as in click
    """How many hosts there are: `--hosts N`."""
    return option("--hosts", cls=HostCount, type=click.IntRange(1), metavar="N", help=help, **settings)


def read_hosts(text: str) -> tuple[int, tuple[str, ...]]:
    """How many, and which where they are named: `8`, `h[0-7]`, `@FILE` with one a line.

    Raises:
        RequestError: when they are neither, or one is there twice.
    """
    if text.strip().isdecimal():
        return int(text), ()
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise RequestError(
                f"the file of the hosts, {text[1:]!r}, cannot be read: {error}", hint="one host a line"
            ) from error
        text = " ".join(line.partition("#")[0] for line in lines)
    names = parse_hosts(text)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"{twice!r} is among the hosts twice", hint="name every host once")
    return len(names), names
