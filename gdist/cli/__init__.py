"""The command line: `gdist fetch`, `reshard`, `inspect`, `verify`, `plan`, `simulate`, `seed`, and more.

Commands read options, call `gdist.api`, and say what came of it. What is said, and with which exit code, is
decided here and in `gdist.cli.exits` alone: an error of ours never shows a traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

import click

from gdist import __version__
from gdist.cli import exits
from gdist.cli.lazy import LazyGroup
from gdist.cli.output import Output
from gdist.cli.streams import ReaderGone, drop, open_streams, put, say
from gdist.errors import GdistError, translate

COMMANDS = {  # in the order of the help, each where it is imported from when it is asked for
    "fetch": "gdist.cli.commands.fetch:fetch",
    "cluster": "gdist.cli.commands.cluster:cluster",
    "bootstrap": "gdist.cli.commands.bootstrap:bootstrap",
    "status": "gdist.cli.commands.status:status",
    "wait": "gdist.cli.commands.wait:wait",
    "reshard": "gdist.cli.commands.reshard:reshard",
    "view": "gdist.cli.commands.view:view",
    "inspect": "gdist.cli.commands.inspect:inspect",
    "verify": "gdist.cli.commands.verify:verify",
    "export": "gdist.cli.commands.export:export",
    "plan": "gdist.cli.commands.plan:plan",
    "simulate": "gdist.cli.commands.simulate:simulate",
    "seed": "gdist.cli.commands.seed:seed",
    "make-torrent": "gdist.cli.commands.make_torrent:make_torrent",
    "publish": "gdist.cli.commands.publish:publish",
    "manifest": "gdist.cli.commands.manifest:manifest",
    "rules": "gdist.cli.commands.rules:rules",
    "releases": "gdist.cli.commands.releases:releases",
    "completion": "gdist.cli.commands.completion:completion",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
ISSUES = "run it again with --verbose and report what it shows"


@click.group(
    cls=LazyGroup,
    commands_at=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, "-V", "--version", message="gdist %(version)s")
def cli() -> None:
    """Stream a magnet link of a model checkpoint into a verified, sharded Zarr store.

    Every option can be given by an environment variable: --mesh is GDIST_MESH. Progress goes to standard
    error, the result alone to standard output; --json gives both as JSON lines. Exit codes: 0 done, 2 usage,
    10 no peers, 11 stalled, 12 corrupt, 13 no space, 14 unsupported, 15 another job's work, 16 hosts missing,
    17 file system, 20 interrupted.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments (default: the process's); the exit code."""
    # Before NumPy comes: its BLAS starts threads that spin for a while, and nothing here uses it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    open_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    output = Output(json=_asks_json(arguments))  # for errors that come before the options are read
    try:
        code = cli.main(arguments, prog_name="gdist", standalone_mode=False, obj=output)
        put("")
        return code if isinstance(code, int) else exits.DONE
    except GdistError as error:
        return _say(partial(output.error, error))
    except click.ClickException as error:
        return _say(partial(_usage, output, error))
    except (KeyboardInterrupt, click.Abort):
        return _say(lambda: output.failure(exits.KEYBOARD, "Interrupted", "interrupted"))
    except (BrokenPipeError, ReaderGone):
        return _pipe()
    except SystemExit as ended:
        if ended.code == 1:  # click's own answer to a reader that is gone, and nobody else's
            return _pipe()
        raise
    except Exception as error:
        if _interrupted(error):
            return _say(lambda: output.failure(exits.KEYBOARD, "Interrupted", "interrupted"))
        if isinstance(error, OSError) and error.errno in FULL:
            # of click's own words: where we write, it is translated
            return _say(partial(output.error, translate(error, "writing to standard output")))
        # everything foreseen is a GdistError: this is a bug of ours
        if output.verbose:
            traceback.print_exc()
        message = f"gdist failed in a way nobody foresaw: {type(error).__name__}: {error}"
        return _say(partial(_internal, output, message))


def _interrupted(error: BaseException | None) -> bool:
    """True for what a library that was just being loaded made of Ctrl-C: NumPy, an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _asks_json(arguments: Sequence[str]) -> bool:
    if "--json" in arguments:
        return True
    with contextlib.suppress(click.BadParameter):  # which the option itself tells
        return bool(click.BOOL.convert(os.environ.get("GDIST_JSON") or "no", None, None))
    return False


def _internal(output: Output, message: str) -> int:
    put("")  # click's own words are written past it: where those failed, this says why
    return output.failure(exits.INTERNAL, "Internal", message, ISSUES)


def _usage(output: Output, error: click.ClickException) -> int:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        if type(error).__name__ == "NoArgsIsHelpError":  # `gdist` alone: its message is the whole help
            click.echo(error.ctx.get_help(), err=True)
            return 2
        hint = f"{error.ctx.command_path} --help"
    return output.failure(2, "RequestError", error.format_message().rstrip("."), hint)


def _say(tell: Callable[[], int]) -> int:
    try:
        code = tell()
        put("")
        return code
    except (BrokenPipeError, ReaderGone):
        return _pipe()
    except GdistError as error:  # of standard output itself, where the error should have gone
        say(f"error: {error.message}\nhint: {error.hint}\n")
        return exits.exit_of(error).code


def _pipe() -> int:
    """Whoever read our output is gone: what is still buffered must not be an error at exit."""
    drop(1)
    return exits.PIPE
