"""The verbs that look at rows and runs: `status`, `inspect`, `report`, `why`, `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from alignloop.errors import UserError
from alignloop.terminal import say, say_json

JsonOption = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")] = Path("runs/quickstart"),
    verify: Annotated[bool, typer.Option("--verify", help="Read all that is published: is it whole?")] = False,
) -> None:
    """Say what a run directory holds.

    Also whether a run is at work in it, and the table so far.
    """
    from alignloop.look.status import status_text, verify_text
    from alignloop.progress import for_terminal

    if verify:
        say(verify_text(run_dir, progress=for_terminal()))
        return
    say(status_text(run_dir))


def inspect(
    row: Annotated[str, typer.Argument(metavar="ROW", help="FILE:LINE, FILE:ID or RUN_DIR:ID.")],
    objective: Annotated[
        Literal["reward", "sft", "dpo"] | None, typer.Option(help="Default: all that the row can serve.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Whose tokenizer; default: the run's, or the quickstart's.")] = None,
    chat_template: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="In place of the base's own, as in the recipe.")
    ] = None,
    config: Annotated[str | None, typer.Option(metavar="RECIPE", help="Lengths, strengths and base.")] = None,
    train_on: Annotated[
        Literal["last_assistant", "all_assistant"] | None, typer.Option(help="As in the recipe's sft.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Also a table of ids and positions.")] = False,
) -> None:
    """Show which tokens of a row are trained.

    \b
    alignloop inspect data.jsonl:1 --base my-model --chat-template llama3
    alignloop inspect runs/mine/round-01/09_build_pairs/pairs.jsonl:3
    """
    from alignloop.look.rows import find_row
    from alignloop.look.screen import print_views
    from alignloop.look.setting import find_setting
    from alignloop.look.views import views_of

    found = find_row(row)
    setting = find_setting(found.file, base=base, chat_template=chat_template, config=config)
    print_views(found, views_of(found.row, setting, objective=objective, train_on=train_on), setting=setting, ids=ids)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are compared.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default, of one run: RUN/report.html.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the first run's differences there.")
    ] = None,
) -> None:
    """Make the report of a run, or of several to compare.

    One HTML file that opens offline. Of a run that has not finished a round it shows what there is. Of several runs the
    first is compared with each of the others, question by question.

    \b
    alignloop report runs/quickstart
    alignloop report runs/mine runs/mine-offline --out compared.html
    """
    from alignloop.alone.out_file import check_writable
    from alignloop.artifacts import write_text
    from alignloop.report.pages import write_comparison, write_report

    if len(runs) == 1:
        if json_file is not None:
            raise UserError("--json: has the differences between runs: name two or more")
        say(f"report  {write_report(runs[0], out=out)}")
        return
    check_writable(json_file, option="--json")
    compared = write_comparison(runs, out=out)
    if json_file is not None:
        write_text(json_file, compared.json())
    say(f"{compared.text()}\n\nreport  {out}")


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
    from alignloop.look.life import lives_json, lives_text
    from alignloop.look.why import lives_of

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

    from alignloop.look.diff import diff_json, diff_of, diff_text

    found = diff_of(run_dir, before=before, after=after)
    say_json(diff_json(found)) if as_json else say(diff_text(found))
