"""The verb that prunes a file without the loop: `alignloop data prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignloop.cli.sample import ConfigOption, SetOption
from alignloop.terminal import say


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
    form: Annotated[str | None, typer.Option(help="Of the rows; default: detected.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="A column by its name: prompt=question; repeatable."),
    ] = None,
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
