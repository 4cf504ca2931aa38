"""The verb that makes reports: `alignloop report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignloop.terminal import say


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are compared.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default, of one run: RUN/report.html.")] = None,
) -> None:
    """Make the report of a run, or of several to compare.

    One HTML file that opens offline. Of a run that has not finished a round it shows what there is.

    \b
    alignloop report runs/quickstart
    alignloop report runs/one runs/two --out compared.html
    """
    from alignloop.report.html.write import write_reports

    say(f"report  {write_reports(runs, out=out)}")
