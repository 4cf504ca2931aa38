"""The verbs that look after data files: `data check`, `data convert`, `data prune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from alignloop.cli.options import ConfigOption, SetOption
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
    from alignloop.alone.data_check import as_json, check_alone, check_text
    from alignloop.alone.out_file import check_writable
    from alignloop.artifacts import write_text
    from alignloop.data.columns import parse_columns
    from alignloop.data.rows import Options

    check_writable(json_file, option="--json")
    found = check_alone(
        files,
        kind=kind,
        form=form,
        options=Options(dialogs, max_characters, parse_columns(column or ())),
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
    from alignloop.alone.data_check import converted_text
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


@app.command()
def prune(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Dialogs to fine-tune on, or preferences, in any form that is read.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The rows that are kept: .jsonl or .parquet.")],
    embedder: Annotated[
        str | None,
        typer.Option(metavar="PATH|ID|policy", help="Embeds rows; without one none are compared by meaning."),
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Vectors you have, one a row of FILE, in its order.")
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="ifeval=FILE, mmlu=FOLDER, quickstart, an lm-eval task; repeatable."),
    ] = None,
    form: FormOption = None,
    column: ColumnOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Prune a file of rows.

    Steps: clean, topic, quality, difficulty, duplicates, benchmarks, mix.

    Steps that lack what they need (rewards, a judge, an embedder) are skipped by name. What is dropped goes to
    <out>.dropped.jsonl with its reason, the funnel to <out>.funnel.json.

    \b
    alignloop data prune rows.jsonl --out kept.jsonl --embedder my-minilm
    alignloop data prune pairs.parquet --out kept.parquet --benchmarks ifeval=ifeval.jsonl
    alignloop data prune rows.jsonl --out kept.jsonl --set prune.semantic_dedup.threshold=0.9
    """
    from alignloop.alone.prune import prune_file, pruned_text
    from alignloop.data.columns import parse_columns
    from alignloop.progress import for_terminal

    result = prune_file(
        file,
        out=out,
        embedder=embedder,
        embeddings=embeddings,
        benchmarks=benchmarks or (),
        form=form,
        columns=parse_columns(column or ()),
        config=config,
        overrides=overrides or (),
        progress=for_terminal(),
    )
    say(pruned_text(result))
