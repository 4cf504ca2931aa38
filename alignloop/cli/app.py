"""The command line: verbs only. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import errno
import io
import os
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from alignloop import __version__, environment
from alignloop.cli import data, evaluate, look, run, sample
from alignloop.errors import AlignloopError, Interrupted, PeopleNeeded, UserError
from alignloop.streams import guard
from alignloop.terminal import printable, say

# Newer typers carry a click of their own: the class that is caught must be that one.
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")

STOPPED = 130
WAITS_FOR_PEOPLE = 3
OF_THE_MACHINE = frozenset(
    getattr(errno, name)
    for name in "EACCES EEXIST EPERM EROFS EIO EISDIR ENOTDIR ELOOP ENAMETOOLONG ENXIO ENODEV ESTALE EFBIG EMFILE "
    "ENFILE ENOTEMPTY EBUSY EXDEV ENOTSUP".split()
)
"""What the system refuses a file for that no code of ours is to blame for: said in a line, as every wrong input is."""
READER_GONE = 128 + signal.SIGPIPE

app = typer.Typer(
    name="alignloop",
    help="Iterative post-training: reward model, best of K, SFT, DPO, again.",
    epilog="Begin with `alignloop run`: the bundled tiny model, offline, on a CPU.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        say(__version__)
        raise typer.Exit


app.command()(run.run)
app.command()(run.control)
app.command()(run.plan)
app.command()(look.status)
app.command(name="eval")(evaluate.evaluate)
app.command()(run.stage)
app.command()(look.inspect)
app.add_typer(data.app)
app.command()(look.report)
app.command()(sample.sample)
app.command()(sample.score)
app.command(name="compare-sampling")(sample.compare_sampling)
app.command()(look.why)
app.command()(look.diff)


@app.command()
def recipes() -> None:
    """List the bundled recipes."""
    from alignloop.config.bundled import RECIPES

    for path in sorted(RECIPES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        say(_wrapped(f"{path.stem:<16} {first}", width=80, indent=17))


def main() -> None:
    """The `alignloop` command: exit code 2 for what the user can put right, 3 where people are waited for, 1 for other
    failures, 130 for a stop, 141 where the reader of the output has gone (`| head`)."""
    output = guard()
    environment.prepare()
    environment.silence()
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
        signal.signal(signal.SIGHUP, _stop)
    code = _exit_code()
    sys.stdout.flush()
    if output.error is not None:
        code = _say_lost(output.error, code)
    sys.exit(code)


def _say_lost(error: OSError, code: int) -> int:
    """Say that not all was printed; the exit code then, which stays what it is where the command failed anyway."""
    went_well = "" if code else "; the command itself ended well"
    _say(f"stdout: {error.strerror}: not all was printed{went_well}", code)
    return code or (READER_GONE if error.errno == errno.EPIPE else 1)


def _exit_code() -> int:
    try:
        _check_names(sys.argv[1:])
        code = app(standalone_mode=False)
    except UserError as error:
        return _say(_in_words(error), 2)
    except (KeyboardInterrupt, typer.Abort, Interrupted):
        code = STOPPED
    except PeopleNeeded as wait:
        again = shlex.join(["alignloop", *sys.argv[1:]])
        return _say(f"\n{wait}\nThen go on with: {again}", WAITS_FOR_PEOPLE)
    except AlignloopError as error:
        return _say(_in_words(error), 1)
    except OSError as error:
        if error.filename is None or error.errno not in OF_THE_MACHINE:
            raise
        # Of a rename it is the target that is in the way: what is moved there is our own.
        return _say(f"error: {os.fsdecode(error.filename2 or error.filename)}: {error.strerror}", 2)
    except UsageError as error:
        words = io.StringIO()
        error.show(words)  # type: ignore[attr-defined]
        return _say(words.getvalue().rstrip(), 2)
    if code == STOPPED:  # what typer makes of Ctrl-C in a verb
        return _say(f"\nStopped. Go on with: {shlex.join(['alignloop', *sys.argv[1:]])}", STOPPED)
    return code if isinstance(code, int) else 0


def _check_names(arguments: Sequence[str]) -> None:
    """Paths and names are of one line: others would forge lines of what is printed. `a.b=value` may hold a text."""
    for argument in arguments:
        first, *more = argument.splitlines() or [""]
        if more and "=" not in first:
            raise UserError(f"{printable(argument, keep='')}: a name with a line break; give the file another")


def _in_words(error: AlignloopError) -> str:
    """The error and what was noted on it on the way up."""
    return "\n".join([f"error: {error}", *getattr(error, "__notes__", ())])


def _say(text: str, code: int) -> int:
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(_wrapped(line, width=width) for line in text.split("\n"))
    say(text, err=True)
    return code


def _wrapped(line: str, *, width: int, indent: int | None = None) -> str:
    """A line broken at words, the rest under its text; paths stay whole, for copying."""
    rest = " " * (len(line) - len(line.lstrip(" -")) if indent is None else indent)
    return textwrap.fill(line, width, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
