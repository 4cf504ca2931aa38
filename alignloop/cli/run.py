"""The verbs that run: `run`, `plan`, `stage`."""

from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

import typer

from alignloop.cli.options import SetOption
from alignloop.errors import UserError
from alignloop.terminal import say, wrapped

if TYPE_CHECKING:
    from alignloop.loop.run import RunResult

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a bundled recipe's name.")]
RoundsOption = Annotated[int | None, typer.Option("--rounds", help="Overrides the recipe's number of rounds.")]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", help="Default: runs/<the recipe's name>.")]
ShareOption = Annotated[
    list[Path] | None,
    typer.Option("--share-with", metavar="RUN_DIR", help="Take over what it made alike; repeatable."),
]
RebuildOption = Annotated[bool, typer.Option("--rebuild", help="Do stages again that no longer match, and all after.")]


def run(
    recipe: RecipeArgument = "quickstart",
    rounds: RoundsOption = None,
    run_dir: RunDirOption = None,
    overrides: SetOption = None,
    rebuild: RebuildOption = False,
    share_with: ShareOption = None,
) -> None:
    """Run a recipe, or go on with it.

    What an earlier call has published is not run again.

    \b
    alignloop run                            the quickstart, offline
    alignloop run --rounds 8                 two rounds more on a run of six
    alignloop run my.yaml --run-dir runs/mine
    alignloop run my.yaml --set dpo.beta=0.2 --run-dir runs/beta
    """
    from alignloop.loop.run import run as run_loop
    from alignloop.progress import for_terminal

    result = run_loop(
        recipe,
        rounds=rounds,
        run_dir=run_dir,
        overrides=overrides or (),
        rebuild=rebuild,
        share_with=share_with or (),
        progress=for_terminal(),
    )
    say("\n" + result_text(result))


def control(
    recipe: RecipeArgument = "quickstart",
    kind: Annotated[str, typer.Option(metavar="KIND", help="What it goes without: see above.")] = ...,  # type: ignore[assignment]
    of: Annotated[Path | None, typer.Option(metavar="RUN_DIR", help="The run; default: runs/<its name>.")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Default: <the run's>-<kind>.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Default: as many as the run has.")] = None,
    overrides: SetOption = None,
    rebuild: RebuildOption = False,
) -> None:
    """Make a run again without one organ, and compare.

    RECIPE, with the --set that it had, is the finished run's. The control trains on as many tokens and asks for as many
    annotations, and takes over from the run what both make alike. The same command goes on with it.

    \b
    offline        no loop: annotations of what the base says, no on-policy rows
    random-pick    no reward model: it picks nothing that trains or is annotated
    sft-only       no DPO: its tokens go to SFT
    dpo-only       no SFT: its tokens go to DPO
    no-annotation  no annotations of what the policy says
    no-pruning     no pruning: SFT trains on every row

    \b
    alignloop control my.yaml --kind offline
    alignloop control my.yaml --kind random-pick --of runs/mine
    """
    from alignloop.loop.control import control as make_control
    from alignloop.progress import for_terminal

    made = make_control(
        recipe,
        kind=kind,
        of=of,
        run_dir=run_dir,
        rounds=rounds,
        overrides=overrides or (),
        rebuild=rebuild,
        progress=for_terminal(),
    )
    run_dirs = [str(run.dir) for run in made.compared.runs.values()]
    page = shlex.join(["alignloop", "report", *run_dirs, "--out", "compared.html"])
    say(f"\n{result_text(made.run)}\n\n{made.compared.text()}\n\nall rounds, as a page: {page}")


def plan(
    recipe: RecipeArgument = "quickstart",
    rounds: RoundsOption = None,
    run_dir: RunDirOption = None,
    overrides: SetOption = None,
    rebuild: RebuildOption = False,
) -> None:
    """Say what `run` would do, and what is wrong.

    Every error in recipe, data and base is found before any model is loaded; nothing is written.

    \b
    alignloop plan my.yaml
    alignloop plan my.yaml --rounds 8 --run-dir runs/mine
    """
    from alignloop.loop.plan import make_plan, recipe_or_problems
    from alignloop.loop.plan_text import plan_text

    config = recipe_or_problems(recipe, overrides=overrides or (), rounds=rounds)
    folder = run_dir if run_dir is not None else Path("runs") / config.name
    planned = make_plan(config, run_dir=folder, rebuild=rebuild)
    say(plan_text(planned))
    if planned.drifted:
        raise UserError("published stages no longer match (see `drift`): put it back, or pass --rebuild")


def stage(
    name: Annotated[str, typer.Argument(help="For example sample, score, train_dpo.")],
    out: Annotated[Path, typer.Option(help="The folder to publish in.")],
    config: Annotated[str, typer.Option(help="Recipe that configures it.")] = "quickstart",
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="FIELD=PATH", help="An artifact it takes; repeatable.")
    ] = None,
    overrides: SetOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The run's seed; default: the recipe's.")] = None,
    number: Annotated[int, typer.Option("--round", min=0, help="The round it takes itself to be in.")] = 1,
    rebuild: RebuildOption = False,
) -> None:
    """Run one stage alone on given artifacts. Without --input it says which it takes.

    \b
    alignloop stage select --out best --input candidates=scored.jsonl
    alignloop stage average --out mean --input checkpoints=step-100,step-200
    """
    from alignloop.alone.stage import run_alone
    from alignloop.config import load_recipe
    from alignloop.engines.open import log_named
    from alignloop.progress import for_terminal

    seeds = [] if seed is None else [f"seed={seed}"]
    recipe = load_recipe(config, overrides=[*(overrides or ()), *seeds])
    with log_named(out.with_name(out.name + ".engine.log")):
        outputs = run_alone(
            name, recipe=recipe, inputs=inputs or (), out=out, number=number, rebuild=rebuild, progress=for_terminal()
        )
    for key, value in {**outputs.counts, **outputs.metrics}.items():
        say(f"{key}  {value:g}")
    say(f"published in {out}")


def result_text(result: RunResult) -> str:
    """The tables of a finished run, what it took, and how to load the final model."""
    from alignloop.chat.load import template_kwargs_of
    from alignloop.evaluation.comparing import read_differences
    from alignloop.report.model_card import snippet
    from alignloop.report.rounds import doubt_of, groups_of, text_tables

    minutes, seconds = divmod(round(result.seconds), 60)
    by_number = {0: "no engine start (all was published)", 1: "1 engine start"}
    starts = by_number.get(result.num_engine_starts, f"{result.num_engine_starts} engine starts")
    path = str(result.final_model)
    kwargs = template_kwargs_of(Path(path))
    doubt = doubt_of(result.final_round, result.best_metric, result.rounds, read_differences(result.run_dir))
    indented = " " * len("best round   ")
    return "\n".join(
        [
            text_tables(result.rounds, groups=groups_of(result.run_dir)),
            "",
            f"took         {minutes} min {seconds} s, {starts}, peak memory at most {peak_gib():.1f} GiB",
            f"best round   {result.final_round}, by {result.best_metric}",
            *(wrapped(doubt, first=indented, rest=indented) if doubt else ()),
            f"final model  {path} (its model card: README.md)",
            *([f"report       {result.report}"] if result.report.is_file() else []),
            "",
            indent("# transformers\n" + snippet("transformers", path, template_kwargs=kwargs).rstrip(), "  "),
            "",
            indent("# vLLM\n" + snippet("vllm", path, template_kwargs=kwargs).rstrip(), "  "),
        ]
    )


def peak_gib() -> float:
    """An upper bound of the memory in use at any time, in GiB: this process's peak and its largest child's."""
    import resource

    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20
