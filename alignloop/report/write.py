"""Where reports are written: by the loop at the end of every round, and by `alignloop report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from alignloop.artifacts import write_text
from alignloop.errors import UserError
from alignloop.report.facts import read_run
from alignloop.report.page import run_page
from alignloop.report.render import render
from alignloop.report.several import several_page

REPORT = "report.html"


def write_report(run_dir: Path, *, out: Path | None = None) -> Path:
    """Write the report of one run; returns where it lies.

    Args:
        out: default `<run_dir>/report.html`.

    Raises:
        RunDirError: there is no run.
    """
    path = out if out is not None else run_dir / REPORT
    _write(path, render(run_page(read_run(run_dir))))
    return path


def write_report_or_say(run_dir: Path, *, say: Callable[[str], None]) -> None:
    """Write the report at the end of a round; where that fails it is said, and the run goes on.

    The report is made from what is published: `alignloop report` makes it again at any time.
    """
    try:
        write_report(run_dir)
    except Exception as error:  # hours of training are worth more than a page
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        say(f"  report.html: {type(error).__name__}: {first}; `alignloop report {run_dir}` makes it again")


def write_reports(run_dirs: Sequence[Path], *, out: Path | None) -> Path:
    """The report of one run, or of several beside each other.

    Raises:
        RunDirError: one of them is no run.
        UserError: several without `out`, the same run twice, or an `out` that cannot be written.
    """
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UserError(f"--out {out}: no file can be written there; name one in a folder that exists")
    if len(run_dirs) == 1:
        return write_report(run_dirs[0], out=out)
    if out is None:
        raise UserError("several runs make a report of their own: name its file, for example --out compared.html")
    resolved = [folder.resolve() for folder in run_dirs]
    twice = next((folder for folder in resolved if resolved.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: named twice; a run is compared with others")
    _write(out, render(several_page([read_run(folder) for folder in run_dirs])))
    return out


def _write(path: Path, page: str) -> None:
    try:
        write_text(path, page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file with --out") from error
