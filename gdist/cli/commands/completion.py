"""`gdist completion`: the script that makes a shell complete gdist's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from gdist.cli.streams import put

HOW = {
    "bash": 'eval "$(gdist completion bash)"',
    "zsh": 'eval "$(gdist completion zsh)"',
    "fish": "gdist completion fish | source",
}


@click.command()
@click.argument("shell", type=click.Choice(tuple(HOW)))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    For bash, put this into ~/.bashrc: eval "$(gdist completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None, f"click completes {shell}"
    root = click.get_current_context().find_root().command
    made = kind(root, {}, "gdist", "_GDIST_COMPLETE")
    put(f"{made.source_template % made.source_vars()}\n")  # `source()` would run bash to learn its version
