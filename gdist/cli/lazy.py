"""A group of commands of which only the one that is asked for is imported: most of a start is imports."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any  # what click takes for a group

import click


class LazyGroup(click.Group):
    """A group whose commands are at these places (name: "module:attribute"), listed in this order."""

    def __init__(self, *args: Any, commands_at: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._commands_at = commands_at

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands; none is imported."""
        return [*self._commands_at, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now; None when there is none."""
        where = self._commands_at.get(cmd_name)
        if where is None:
            return super().get_command(ctx, cmd_name)
        module, attribute = where.split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command
