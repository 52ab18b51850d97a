"""Where a command's words go: progress and errors to standard error, the result alone to standard output.

With `--json` events and the result go to standard output as JSON lines, and nothing goes to standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gdist.cli.exits import exit_of
from gdist.cli.jsonlines import JsonLines
from gdist.cli.streams import put, say
from gdist.errors import GdistError
from gdist.events import Event, Observer


@dataclass(slots=True)
class Output:
    """How a command speaks; one for each run of the program."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    host: int = 0

    def start(self) -> None:
        """Sends diagnosis to standard error when it is asked for."""
        if self.verbose:
            form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
            logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format=form)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Observer]:
        """The observer for this output: JSON lines, a live view on a terminal, lines elsewhere, or none."""
        if self.json:
            yield JsonLines(self.host)
        elif self.quiet:
            yield _silent
        elif _is_terminal():
            from gdist.cli.live import LiveView

            view = LiveView()
            try:
                yield view
            finally:
                view.close()
        else:
            from gdist.cli.plain import PlainLines

            lines = PlainLines()
            try:
                yield lines
            finally:
                lines.close()

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar of bytes on a terminal, nothing elsewhere; call it with the bytes done so far."""
        if self.json or self.quiet or not _is_terminal():
            yield lambda done: None
            return
        from gdist.cli.live import byte_bar

        with byte_bar(label, total) as show:
            yield show

    def result(self, text: str, values: Mapping[str, object]) -> None:
        """The result: `text` alone, or `values` as the last JSON line."""
        if self.json:
            JsonLines(self.host).write("result", values)
        else:
            put(f"{text}\n")

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.json and not self.quiet:
            say(f"{text}\n")

    def error(self, error: GdistError) -> int:
        """Tells an error of ours, and gives the exit code."""
        entry = exit_of(error)
        kind = type(error).__name__
        self._error(entry.code, kind, error.message, error.hint, retry=entry.retry, facts=error.facts)
        return entry.code

    def _error(
        self,
        code: int,
        kind: str,
        message: str,
        hint: str,
        *,
        retry: bool,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        if self.json:
            values = {
                "code": code,
                "kind": kind,
                "message": message,
                "hint": hint,
                "retry": retry,
                "facts": facts or {},
            }
            JsonLines(self.host).write("error", values)
            return
        say(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))

    def failure(self, code: int, kind: str, message: str, hint: str = "") -> int:
        """Tells an error that is not a `GdistError`, and gives its code back."""
        self._error(code, kind, message, hint, retry=False)
        return code


def _silent(event: Event) -> None:
    """For `--quiet`."""


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
