"""The options that commands share. Each has an environment name: `--max-download` is `GDIST_MAX_DOWNLOAD`.

The command line wins over the environment. Where an option may be given several times, its variable holds
several values with blanks or commas between them. What is not given reaches `gdist.api` as not given.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from gdist.cli.output import Output
from gdist.core.magnet import is_magnet
from gdist.errors import NoPeersError

F = TypeVar("F", bound=Callable[..., Any])  # Any: click passes a command's options by name

CODECS = ("none", "zstd")
DTYPES = ("bfloat16", "float16", "float32")
PAYLOADS = ("discard", "keep")
SWARM = (
    "trackers",
    "peers",
    "web_seeds",
    "dht",
    "lsd",
    "listen",
    "metadata_timeout",
    "stall_timeout",
    "max_download",
    "max_upload",
)


class Option(click.Option):
    """An option whose variable may hold several values, with `separators` between them."""

    def __init__(self, *names: Any, separators: str = r"[\s,]+", **settings: Any):  # Any: as in click
        super().__init__(*names, **settings)
        self._separators = separators

    def value_from_envvar(self, ctx: click.Context) -> Any:  # Any: as in click
        """The value, or all of them."""
        text = self.resolve_envvar_value(ctx)
        if text is not None and self.multiple:
            return [item for item in re.split(self._separators, text.strip()) if item]
        return super().value_from_envvar(ctx)


class Place(click.Path):
    """A path or an address; none of no letters, which would be the working directory."""

    def __init__(self) -> None:
        super().__init__(readable=False)  # whoever opens it says what is wrong

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as it was given.  Any: as in click."""
        if not os.fspath(value):
            self.fail("it is empty; the working directory is '.'", param, ctx)
        return super().convert(value, param, ctx)


def option(*names: str, **settings: Any) -> Callable[[F], F]:  # Any: click's own settings
    """`click.option` with the environment name that follows from its first long name."""
    flag = next(name for name in names if name.startswith("--")).partition("/")[0]
    variable = "GDIST_" + flag.removeprefix("--").replace("-", "_").upper()
    settings.setdefault("cls", Option)
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def source_argument(function: F) -> F:
    """SOURCE, completed with the names of known releases."""
    from click.shell_completion import CompletionItem

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from gdist.releases import release_names

        names = [CompletionItem(name) for name in release_names() if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]

    return click.argument("source", shell_complete=complete)(function)


def swarm_options(function: F) -> F:
    """How to take part in the swarm; see `gdist.api.Swarm`."""
    several: dict[str, Any] = {"multiple": True, "default": None}
    for decorate in reversed(
        (
            option(
                "--tracker", "trackers", metavar="URL", help="A tracker more; may be repeated.", **several
            ),
            option("--peer", "peers", metavar="HOST:PORT", help="A peer to ask; may be repeated.", **several),
            option(
                "--web-seed", "web_seeds", metavar="URL", help="An HTTP mirror; may be repeated.", **several
            ),
            option("--dht/--no-dht", default=None, help="Look for peers in the DHT.  [default: dht]"),
            option(
                "--lsd/--no-lsd", default=None, help="Look for peers on the local network.  [default: no-lsd]"
            ),
            option("--listen", metavar="ADDRESS:PORT,...", help="Where peers can reach us; port 0 is any."),
            option(
                "--metadata-timeout", metavar="TIME", help="Give up without metadata after.  [default: 5m]"
            ),
            option(
                "--stall-timeout", metavar="TIME", help="Give up when nothing arrived for.  [default: 5m]"
            ),
            option(
                "--max-download",
                metavar="RATE",
                help="At most, like 100MB/s.  [default: no limit]",
            ),
            option("--max-upload", metavar="RATE", help="At most, like 10MB/s.  [default: no limit]"),
        )
    ):
        function = decorate(function)
    return function


def given(values: dict[str, Any]) -> dict[str, Any]:  # Any: options by name
    """The options that were given: neither None nor an empty list."""
    return {name: value for name, value in values.items() if value not in (None, (), [])}


@contextlib.contextmanager
def hint_at_quotes(source: str, values: Mapping[str, object]) -> Iterator[None]:
    """Tells whoever finds no peers for a bare magnet that its shell may have cut it."""
    try:
        yield
    except NoPeersError as error:
        named = any(values.get(name) for name in ("trackers", "peers", "web_seeds"))
        if is_magnet(source) and "&" not in source and not named:
            cut = "the magnet names no tracker: a shell cuts it at the first & unless it stands in quotes"
            error.hint = f"{error.hint}; {cut}" if error.hint else cut
        raise


def mesh_options(
    *, host: bool = True, hosts: bool = False, job: bool = False, alone: str = "0/1"
) -> Callable[[F], F]:
    """How the store is cut; with `host`, also who holds what of it; `hosts` is for all hosts at once.

    With `job` a host may be the one that the scheduler says. `alone` is what --host is when it is not given,
    in words.
    """
    from click.shell_completion import CompletionItem

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from gdist.rule_files import rule_names

        names = [CompletionItem(name) for name in rule_names() if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]

    number = click.IntRange(1)
    text = "Devices: 8x8, or data=8,model=8; one size may be -1.  [default: one device]"
    mesh = option("--mesh", metavar="MESH", help=text)
    text = "Names of sizes without names.  [default: the rules', else replica,data,model from the right]"
    axes = option("--axes", metavar="NAME,...", help=text)
    text = "How many devices there are in all: what a -1 in the mesh is worked out from."
    devices = option("--devices", type=number, metavar="N", help=text)
    text = "How many devices each host has: N hosts have N times as many."
    each = option("--devices-per-host", type=number, metavar="N", help=text)
    text = "Device at each place: 0-3,8-11,4-7, axes (model,data), or a file.  [default: 0,1,2, ...]"
    order = option("--device-order", metavar="ORDER", help=text)
    text = "Partition rules: a name, or a YAML or JSON file.  [default: the release's, else automatic]"
    rules = option("--rules", metavar="NAME|FILE", help=text, shell_complete=complete)
    said = ", or as the scheduler says: job" if job else ""
    text = f"This host, counted from 0, of all: 3/8{said}.  [default: {alone}]"
    this = option("--host", metavar="I/N|job" if job else "I/N", help=text)
    several = (mesh, axes, devices, each, order, rules)
    chosen = (*several, this) if host else several if hosts else (mesh, axes, devices, rules)

    def decorate(function: F) -> F:
        for option_of in reversed(chosen):
            function = option_of(function)
        return function

    return decorate


def reading_options(function: F) -> F:
    """How files become tensors, and which of them."""
    text = "The public key, 64 hex digits or a PEM file, that must have signed the manifest."
    function = option("--verify-key", metavar="KEY", help=text)(function)
    text = "A source manifest that says what SOURCE holds.  [default: the known release's]"
    function = option("--manifest", metavar="FILE|URL", help=text)(function)
    text = "Only tensors in whose name this is found; may be repeated."
    return naming_options(option("--select", multiple=True, metavar="REGEX", help=text)(function))


def naming_options(function: F) -> F:
    """How files become tensors."""
    function = option(
        "--ignore", multiple=True, metavar="GLOB", help="Files to leave out, by pattern; may be repeated."
    )(function)
    return option(
        "--profile",
        metavar="NAME|FILE",
        help="How to name and join the tensors.  [default: what fits]",
    )(function)


def making_options(function: F) -> F:
    """How a torrent is made."""
    for add in (
        option("--private", is_flag=True, help="No DHT, no peer exchange."),
        option(
            "--web-seed", "web_seeds", multiple=True, metavar="URL", help="An HTTP mirror; may be repeated."
        ),
        option("--tracker", "trackers", multiple=True, metavar="URL", help="A tracker; may be repeated."),
        option(
            "--piece-length", metavar="SIZE", help="A power of two, 16KiB to 128MiB.  [default: by the size]"
        ),
        option(
            "--torrent-version",
            "--version",
            type=click.Choice(("v1", "v2", "hybrid")),
            default="v1",
            show_default=True,
            help="BitTorrent v1, v2, or both in one.",
        ),
    ):
        function = add(function)
    return function


def fetch_options(function: F) -> F:
    """What a fetch and its plan have in common."""
    text = "Dequantise pairs and cast floating tensors on the way.  [default: as they are stored]"
    function = option("--dtype", type=click.Choice(DTYPES), help=text)(function)
    text = "Bound of what is held while converting."
    function = option("--memory", default="1GiB", show_default=True, metavar="SIZE", help=text)(function)
    text = "What becomes of the torrent's own files: keep them in DEST/payload, or not."
    kinds = click.Choice(PAYLOADS)
    return option("--payload", type=kinds, default="discard", show_default=True, help=text)(function)


def http_option(function: F) -> F:
    """Where probes and metrics are served."""
    text = "Serve /livez, /readyz and /metrics here, to everybody."
    return option("--http", metavar="ADDRESS:PORT", help=text)(function)


def watch_options(function: F) -> F:
    """Whose run to look at, from outside."""
    text = "Where unfinished shards of a bucket wait.  [default: the user's cache]"
    function = option("--work-dir", type=Place(), metavar="DIR", help=text)(function)
    text = "Only this host's part, like 3/8.  [default: every part that is there]"
    return option("--host", metavar="I/N", help=text)(function)


def rename_option(function: F) -> F:
    """The names that a model expects."""
    text = "Names a model expects: the name of a renaming table, or a TOML file."
    return option("--rename", metavar="NAME|FILE", help=text)(function)


def output_options(function: F) -> F:
    """How the command speaks; the command gets an `Output` as `output`."""

    @functools.wraps(function)
    def command(*args: Any, json: bool, quiet: bool, verbose: bool, **values: Any) -> Any:
        output = click.get_current_context().ensure_object(Output)
        output.json, output.quiet, output.verbose = json, quiet, verbose
        output.start()
        return function(*args, output=output, **values)

    decorated: Any = command  # functools.wraps keeps the name and the text; options are added from below
    decorated = option("--verbose", "-v", is_flag=True, help="Diagnosis on standard error.")(decorated)
    decorated = option("--quiet", "-q", is_flag=True, help="No progress; errors and the result only.")(
        decorated
    )
    decorated = option(
        "--json", is_flag=True, help="Events and the result as JSON lines on standard output."
    )(decorated)
    result: F = decorated
    return result
