"""Pruning without the loop: any file of dialogs or preferences in, its pruned rows out, every row accounted for.

FILE --read--> items --alignloop.pruning.pipeline--> rows, dropped rows, funnel
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from alignloop.alone.out_file import OneStage, beside, check_out, dropped_lines, there_text, unreadable, work_dir
from alignloop.artifacts import Artifact, write_text
from alignloop.config import Recipe, load_recipe
from alignloop.config.bundled import bundled_benchmarks, resolve_base, resolve_file
from alignloop.data.convert import row_file
from alignloop.data.files import why_not_twice
from alignloop.data.rows import Dialogs, Options
from alignloop.errors import DataError, UserError
from alignloop.progress import Progress, QuietProgress
from alignloop.pruning.items import FileRows, as_preference, as_sft, kind_of_rows, read_rows
from alignloop.pruning.models import POLICY, Embedding, by_vectors, read_vectors
from alignloop.pruning.pipeline import FunnelLine, funnel_lines, prune
from alignloop.records import PreferenceRow, SftRow
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.prune import Outputs as OutputsInARun
from alignloop.stages.prune import Settings, kept_beside, named_by_path, tools
from alignloop.stages.prune import settings as settings_in_a_run

OWN_DEFAULTS = {"preferences": ["quickstart"], "prune": {"near_duplicates": {"enabled": True}}}
"""Without a recipe. A recipe must name preferences, which pruning does not look at."""
FUNNEL = "funnel.json"


class PruneFileConfig(Settings):
    """What a pruned file is recognised by."""

    file: str
    """As given: rows name it as their source."""
    max_bad_fraction: float
    form: str | None
    columns: dict[str, str]
    dialogs: Dialogs
    max_characters: int
    parquet: bool

    @property
    def options(self) -> Options:
        """How rows are made of the file's."""
        return Options(self.dialogs, self.max_characters, self.columns)


@dataclass(frozen=True)
class Inputs:
    rows: Artifact
    embeddings: Artifact | None
    policy: Artifact | None
    """Embeds the rows where the embedder is `policy`."""
    embedder: str | None
    benchmarks: tuple[Artifact, ...]
    labelled: Artifact | None
    judge_prompts: str | None = None
    judge_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs(OutputsInARun):
    funnel: Artifact


@dataclass(frozen=True)
class PrunedFile:
    """What came of it; `was_there`: the file was there already, made from the same things.

    `funnel` is that of `funnel.json` beside `out`: rows by step, with why a step was skipped.
    """

    out: Path
    funnel: dict[str, Any]
    was_there: bool


def prune_file(
    file: str | Path,
    *,
    out: Path,
    embedder: str | None = None,
    embeddings: Path | None = None,
    benchmarks: Sequence[str] = (),
    form: str | None = None,
    columns: Mapping[str, str] | None = None,
    config: str | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> PrunedFile:
    """Prune a file of dialogs or preferences.

    Steps that lack what they need (rewards, pass rates, an embedder, benchmarks) are skipped by name, in the funnel.

    Args:
        out: `.jsonl` or `.parquet`; preferences stay preferences. `<stem>.dropped.jsonl`, `<stem>.funnel.json` and a
            manifest are written beside it.
        embedder: a sentence-transformers model's folder or id, a causal model's folder (mean-pooled states), or
            `policy`: the recipe's base (without a recipe, the quickstart's).
        embeddings: a `.npy` file with a vector for each row of the file, in place of an embedder.
        benchmarks: lm-eval tasks, `ifeval=FILE`, `mmlu=FOLDER` or `quickstart`: no row may contain one of their
            questions. None named: the recipe's, if there is one.
        form, columns: of the rows, as `data.form` and `data.columns`; None: the recipe's, without one detected.
        config: a recipe whose `prune`, `judge`, `engine`, `data` and `seed` are used; None: the defaults, with
            near-duplicate prompts dropped.
        overrides: `a.b=value` strings, for example `prune.semantic_dedup.threshold=0.9`.

    Raises:
        UserError: bad input; nothing is written.
    """
    progress = progress or QuietProgress()
    out = check_out(out)
    if out.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--out {out}: end it with .jsonl or .parquet, which says what is written")
    file = str(resolve_file(str(file), kind="preferences"))
    recipe = load_recipe(OWN_DEFAULTS if config is None else config, overrides=overrides)
    policy, name = _embedder(recipe, embedder)
    values, reading = dict(settings_in_a_run(recipe)), recipe.data.reading
    values["semantic_dedup"] = recipe.prune.semantic_dedup.model_copy(update={"embedder": name})
    values["tasks"], values["include_path"] = _benchmarks(recipe, benchmarks, with_recipe=config is not None)
    reading |= {"form": form or reading["form"], "columns": dict(columns or reading["columns"])}
    settings = PruneFileConfig(**values, **reading, file=file, parquet=out.suffix == ".parquet")
    _check_inputs(file, settings, embedder=embedder, embeddings=embeddings)
    inputs = Inputs(
        rows=Artifact.of(Path(file)),
        embeddings=None if embeddings is None else Artifact.of(embeddings.expanduser()),
        policy=None if policy is None else Artifact.of(policy),
        **named_by_path(settings),
    )
    stage = Stage("prune_file", Inputs, Outputs, lambda recipe: settings, run)
    with work_dir(out) as work:
        pruning = OneStage(stage, recipe, inputs, recipe.engine)
        was_there = pruning.make(out, work, progress, output="rows", quietly=True, beside_it={FUNNEL: "funnel"})
    return PrunedFile(out, json.loads(beside(out, FUNNEL).read_text(encoding="utf-8")), was_there)


def _embedder(recipe: Recipe, embedder: str | None) -> tuple[Path | None, str]:
    """The causal model whose states embed the rows, if any, and what the recipe's embedder is then.

    Without `embedder`, the recipe's own counts where it is a model; its policy is not known here.
    """
    own = recipe.prune.semantic_dedup.embedder
    name = embedder if embedder is not None else own if own != POLICY else None
    if name is None:
        return None, POLICY
    if name != POLICY and not _is_causal(Path(name).expanduser()):
        return None, name
    policy = Path(resolve_base(recipe.base) if name == POLICY else name).expanduser()
    if not policy.is_dir():
        raise UserError(f"--embedder {embedder}: {policy} is no model folder; download it and give its path")
    return policy, POLICY


def _is_causal(folder: Path) -> bool:
    if (folder / "modules.json").is_file():
        return False
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError):
        return False
    return any(str(name).endswith("ForCausalLM") for name in names)


def _benchmarks(recipe: Recipe, benchmarks: Sequence[str], *, with_recipe: bool) -> tuple[tuple[str, ...], str | None]:
    """Tasks whose questions no row may contain, and the folder they are looked for in."""
    if not recipe.prune.decontaminate.enabled or not (benchmarks or with_recipe):
        return (), None
    if not benchmarks:
        return recipe.evaluate.all_tasks, recipe.evaluate.include_path
    tasks = tuple(task for task in benchmarks if task != "quickstart")
    if "quickstart" in benchmarks:
        return (*tasks, *bundled_benchmarks()), "quickstart"
    return tasks, recipe.evaluate.include_path if with_recipe else None


def _check_inputs(file: str, settings: PruneFileConfig, *, embedder: str | None, embeddings: Path | None) -> None:
    if (reason := why_not_twice(file)) is not None:
        raise UserError(f"{file}: {reason}")
    kind_of_rows(file, form=settings.form, options=settings.options)
    if embeddings is not None:
        if embedder is not None:
            raise UserError("--embedder and --embeddings both are given: give one of the two")
        read_vectors(embeddings.expanduser())


def run(config: PruneFileConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    """As a stage, so that a manifest is written and a judge's answers outlive a crash."""
    with ctx.activity("reading"):
        read = read_rows(
            config.file, max_bad_fraction=config.max_bad_fraction, form=config.form, options=config.options
        )
    with ctx.activity("pruning"):
        by = replace(tools(config, ctx, policy=None if inputs.policy is None else inputs.policy.path), lenient=True)
        if inputs.embeddings is not None:
            by = replace(by, embedding=_file_embedding(inputs.embeddings.path, read))
        pruned = prune(read.items, by)
    for note in pruned.notes:
        ctx.progress.say(f"  {note}")
    path, bad = ctx.dir / ("rows.parquet" if config.parquet else "rows.jsonl"), unreadable(read.rejected)
    with ctx.activity("writing"), row_file(path, PreferenceRow if read.kind == "preferences" else SftRow) as add:
        for item in pruned.kept:
            add(as_preference(item) if read.kind == "preferences" else as_sft(item))
    counts = pruned.counts
    counts |= {"in": counts["in"] + len(bad), "dropped": counts["dropped"] + len(bad), "dropped_by_read": len(bad)}
    first = FunnelLine("read", counts["in"], counts["in"] - len(bad), len(bad), 0.0)
    funnel = {
        "kind": read.kind,
        "form": read.form,
        **{name: counts[name] for name in ("in", "kept", "dropped")},
        "repeated": counts.get("repeated", 0),
        "steps": [asdict(line) for line in (first, *pruned.funnel)],
        "notes": list(pruned.notes),
        "metrics": pruned.metrics,
    }
    write_text(ctx.dir / FUNNEL, json.dumps(funnel, indent=1, ensure_ascii=False) + "\n")
    return Outputs(
        rows=Artifact.of(path),
        dropped=ctx.write_rows("dropped.jsonl", [*bad, *pruned.dropped]),
        funnel=ctx.artifact(FUNNEL),
        counts=counts,
        metrics=pruned.metrics,
        **kept_beside(ctx.dir),
    )


def _file_embedding(path: Path, rows: FileRows) -> Embedding:
    """The user's vectors, one for each row of the file, in its order; those of unreadable rows are skipped.

    A DataError where there is another number of vectors, or a row of the file became several.
    """
    vectors = read_vectors(path)
    if len(vectors) == len(rows.items) and not rows.rejected:
        return by_vectors(vectors, {item.id: number for number, item in enumerate(rows.items)})
    num_read = len(rows.items) + len(rows.rejected)
    lines = {item.source.line for item in rows.items} | {row.line for row in rows.rejected}
    if not len(vectors) == num_read == len(lines - {None}):
        bad = f" and {len(rows.rejected):,} that cannot be read" if rows.rejected else ""
        raise DataError(
            f"{path}: holds {len(vectors):,} vectors for {len(rows.items):,} rows{bad}: give one for each row of "
            "the file, in its order"
        )
    row_of = {line: number for number, line in enumerate(sorted(line for line in lines if line is not None))}
    return by_vectors(vectors, {item.id: row_of[item.source.line or 0] for item in rows.items})


def pruned_text(result: PrunedFile) -> str:
    """The funnel, and what was dropped, as text for the screen."""
    funnel = result.funnel
    more = f" and {funnel['repeated']:,} repeats" if funnel["repeated"] else ""
    lines = [
        f"{funnel['kept']:,} of {funnel['in']:,} rows kept{more} ({funnel['kind']}, {funnel['form']})  "
        f"{result.out}{there_text(result.was_there)}",
        *funnel_lines([FunnelLine(**line) for line in funnel["steps"]], num_in=funnel["in"]),
        *funnel["notes"],
        *dropped_lines(result.out),
        f"the funnel  {beside(result.out, FUNNEL)}",
    ]
    return "\n".join(lines)
