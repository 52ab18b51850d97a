"""The reference page names everything, and the library's keyword arguments are the command line's options."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest

from gdist import api
from gdist.cli import cli
from gdist.cli.options import SWARM

PAGE = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()
SPEAKING = {"json", "quiet", "verbose"}
NOT_LIBRARY = {
    "fetch": {"http"},
    "plan": {"report"},
    "reshard": set(),
    "inspect": {"files", "plot"},
    "make-torrent": {"target", "force"},
    "publish": {"new_key"},
    "manifest check": set(),
    "rules check": set(),
}
NOT_COMMAND = {"observe", "stop", "progress", "details", "file_bytes"}
FUNCTIONS = {"rules check": "check_rules", "manifest check": "check_manifest"}


def commands(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """Every command below a group by the words that call it: `fetch`, `rules check`."""
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= commands(command, f"{before}{name} ")
        else:
            found[before + name] = command
    return found


COMMANDS = commands(cli)


def options(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option)]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_names_every_option_and_its_variable(name: str) -> None:
    own = PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]
    shared = PAGE.split("\n## Swarm options\n")[1]
    for option in options(COMMANDS[name]):
        place = own if f"`{option.opts[0]}`" in own else shared
        for flag in (*option.opts, *option.secondary_opts):
            assert f"`{flag}`" in place, f"{name} {flag}"
        assert f"`{option.envvar}`" in place, f"{name} {option.envvar}"


def test_the_page_names_nothing_else() -> None:
    known = {n for c in COMMANDS.values() for o in options(c) for n in (*o.opts, *o.secondary_opts)}
    assert set(re.findall(r"^\| `(--[\w-]+)`", PAGE, re.MULTILINE)) <= known
    assert set(re.findall(r"^## ([a-z][a-z -]*)$", PAGE, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_option_has_the_variable_of_its_name(command: click.Command) -> None:
    for option in options(command):
        flag = next(name for name in option.opts if name.startswith("--"))
        assert option.envvar == "GDIST_" + flag[2:].replace("-", "_").upper()
        assert option.help


@pytest.mark.parametrize("name", sorted(NOT_LIBRARY))
def test_library_and_command_take_the_same(name: str) -> None:
    command = COMMANDS[name]
    function = getattr(api, FUNCTIONS.get(name, name.replace("-", "_")))
    keywords = {
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        keywords |= set(api.Swarm.__annotations__)
    asked = {param.name for param in command.params} - SPEAKING - NOT_LIBRARY[name]
    assert keywords - NOT_COMMAND == asked


def test_swarm_options_are_one_list() -> None:
    assert set(SWARM) == set(api.Swarm.__annotations__)
    assert set(SWARM) == set(inspect.signature(api.torrent_options).parameters)
