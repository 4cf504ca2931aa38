"""The verbs that look after data files: `data check`, `data convert`, `data prune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from alignloop.cli import prune as cli_prune
from alignloop.errors import UserError
from alignloop.terminal import say

app = typer.Typer(
    name="data",
    help="Look at data files, convert them, prune them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

FilesArgument = Annotated[
    list[str],
    typer.Argument(metavar="FILES", help="JSON (lines), CSV, Parquet, Arrow, a saved data set, a pipe, hub:NAME."),
]
KindOption = Annotated[
    Literal["preferences", "sft", "prompts"] | None,
    typer.Option(help="What the rows are; default: what they look like."),
]
FormOption = Annotated[str | None, typer.Option(metavar="NAME", help="How they are written; default: detected.")]
ColumnOption = Annotated[
    list[str] | None, typer.Option("--column", metavar="OURS=THEIRS", help="A column by its name: prompt=question.")
]
DialogsOption = Annotated[
    Literal["last_turn", "every_turn"], typer.Option(help="Of a dialog: its last turn, or an example for each.")
]
LengthOption = Annotated[
    int, typer.Option("--max-characters", min=1, metavar="N", help="Longer rows are refused, as data.max_characters.")
]
MAX_CHARACTERS = 1_000_000
"""As `data.max_characters`; a test holds the two together, so that the command line need not load the recipe."""


@app.command()
def check(
    files: FilesArgument,
    kind: KindOption = None,
    form: FormOption = None,
    column: ColumnOption = None,
    dialogs: DialogsOption = "last_turn",
    max_characters: LengthOption = MAX_CHARACTERS,
    base: Annotated[str | None, typer.Option(help="Whose tokens; default: quickstart; none: no tokens.")] = None,
    chat_template: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="In place of the base's own, as in the recipe.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, max=20, help="First rows shown.")] = 2,
    bad: Annotated[int, typer.Option(min=0, max=1000, help="Bad rows shown.")] = 10,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes for a long file; default: the cores.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all that was found there.")] = None,
) -> None:
    """Show how files are read, and what is wrong with them.

    Exit code 0 where every row can be read, else 1.

    \b
    alignloop data check preferences.jsonl
    alignloop data check *.parquet --base my-model --json check.json
    """
    from alignloop.alone.data_check import as_json, check_alone
    from alignloop.alone.data_check_text import check_text
    from alignloop.artifacts import write_text
    from alignloop.data.columns import parse_columns
    from alignloop.data.rows import Options

    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise UserError(f"--json {json_file}: no file can be written there; name one in a folder that exists")
    columns = parse_columns(column or ())
    found = check_alone(
        files,
        kind=kind,
        form=form,
        options=Options(dialogs, max_characters, columns),
        base=base,
        chat_template=chat_template,
        workers=workers,
    )
    say("\n\n".join(check_text(one, num_rows=rows, num_bad=bad) for one in found))
    if json_file is not None:
        write_text(json_file, json.dumps([as_json(one) for one in found], indent=1, ensure_ascii=False) + "\n")
    if not all(one.is_good for one in found):
        raise typer.Exit(1)


@app.command()
def convert(
    files: FilesArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .jsonl or .parquet file.")],
    kind: KindOption = None,
    form: FormOption = None,
    column: ColumnOption = None,
    dialogs: DialogsOption = "last_turn",
    max_characters: LengthOption = MAX_CHARACTERS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file where it exists.")] = False,
) -> None:
    """Write files of any form as one of canonical rows.

    Rows that cannot be read go to NAME.rejected_rows.jsonl beside it, with reasons.

    \b
    alignloop data convert hh/*.jsonl.gz --out preferences.jsonl
    """
    from alignloop.alone.data_check_text import converted_text
    from alignloop.alone.out_file import check_out
    from alignloop.data.check_files import guess_kind
    from alignloop.data.columns import parse_columns
    from alignloop.data.convert import convert as convert_files
    from alignloop.data.rows import Options

    columns = parse_columns(column or ())
    done = convert_files(
        files,
        out=check_out(out),
        kind=kind or guess_kind(files[0], columns=columns),
        form=form,
        options=Options(dialogs, max_characters, columns),
        overwrite=overwrite,
    )
    say(converted_text(done))


app.command()(cli_prune.prune)
