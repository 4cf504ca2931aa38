"""The verbs that tell where rows come from and what became of them: `why`, `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignloop.terminal import say, say_json

JsonOption = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


def why(
    row_id: Annotated[str, typer.Argument(metavar="ROW-ID", help="An id, the beginning of one, or FILE:LINE.")],
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")] = Path("runs/quickstart"),
    as_json: JsonOption = False,
) -> None:
    """Tell a row's life.

    Where it comes from, kept or dropped why, trained where.

    ROW-ID is that of a prompt, candidate, preference or pair.

    \b
    alignloop why adab44c88dff-491 runs/mine
    alignloop why adab44c88dff-491/2/4 runs/mine
    alignloop why preferences.jsonl:17 runs/mine
    """
    from alignloop.look.life import lives_of
    from alignloop.look.life_text import lives_json, lives_text

    lives = lives_of(row_id, run_dir)
    say_json(lives_json(lives)) if as_json else say(lives_text(lives))


def diff(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    before: Annotated[int, typer.Argument(metavar="ROUND", min=0)],
    after: Annotated[int, typer.Argument(metavar="ROUND", min=0)],
    as_json: JsonOption = False,
) -> None:
    """Tell what changed between two rounds' data.

    The largest changes first.

    \b
    alignloop diff runs/mine 2 3
    """

    from alignloop.look.diff import diff_of
    from alignloop.look.diff_text import diff_json, diff_text

    found = diff_of(run_dir, before=before, after=after)
    say_json(diff_json(found)) if as_json else say(diff_text(found))
