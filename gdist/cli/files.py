"""Files that a command is asked to write: looked at before the work, and there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gdist.cli.output import Output
from gdist.errors import RequestError, translate


def check_target(option: str, value: str | None, suffixes: tuple[str, ...]) -> Path | None:
    """The path that an option names, or None.

    Raises:
        RequestError: when its name would promise another format, or its directory is not there.
    """
    if value is None:
        return None
    path = Path(value)
    if path.suffix.lower() not in suffixes:
        raise RequestError(
            f"{option} writes {suffixes[0].removeprefix('.').upper()}, and {value!r} is named otherwise",
            hint=f"name it {path.stem or 'out'}{suffixes[0]}",
        )
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise RequestError(
            f"{option}: {value!r} cannot be a file", hint="give a file in a directory that exists"
        )
    return path


def write_whole(path: Path, text: str, output: Output) -> None:
    """Writes a file in one step, in the place of one that was there, and says so.

    Raises:
        FilesystemError, SpaceError: when it cannot be written; nothing is left of it.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise translate(error, f"writing {path}") from error
    output.say(f"wrote {path}")
