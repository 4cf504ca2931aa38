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
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alignloop import __version__
from alignloop.cli import data as cli_data
from alignloop.cli import look as cli_lineage
from alignloop.cli import report as cli_report
from alignloop.cli import sample as cli_sampling
from alignloop.cli.sample import SetOption
from alignloop.config import environment
from alignloop.errors import AlignloopError, Interrupted, PeopleNeeded, UserError
from alignloop.streams import guard
from alignloop.terminal import printable, say

if TYPE_CHECKING:
    from alignloop.loop.run import RunResult

# Newer typers carry a click of their own: the class that is caught must be that one.
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")

STOPPED = 130
WAITS_FOR_PEOPLE = 3
OF_THE_MACHINE = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EPERM,
        errno.EROFS,
        errno.EIO,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.ENODEV,
        errno.ESTALE,
        errno.EFBIG,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOTEMPTY,
        errno.EBUSY,
        errno.EXDEV,
        errno.ENOTSUP,
    }
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

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a bundled recipe's name.")]
RoundsOption = Annotated[int | None, typer.Option("--rounds", help="Overrides the recipe's number of rounds.")]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", help="Default: runs/<the recipe's name>.")]
TasksOption = Annotated[str | None, typer.Option(metavar="NAMES", help="With commas; default: its run's or bundled.")]
IncludeOption = Annotated[
    str | None, typer.Option(metavar="quickstart|DIR", help="Looked through first; empty: lm-eval's.")
]
ProtocolOption = Annotated[
    str | None, typer.Option(metavar="RECIPE|RUN_DIR", help="Whose protocol holds; default: its run's.")
]
StripOption = Annotated[bool, typer.Option("--strip-reasoning", help="Judge what follows </think> alone.")]
RebuildOption = Annotated[bool, typer.Option("--rebuild", help="Do stages again that no longer match, and all after.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        say(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeArgument = "quickstart",
    rounds: RoundsOption = None,
    run_dir: RunDirOption = None,
    overrides: SetOption = None,
    rebuild: RebuildOption = False,
) -> None:
    """Run a recipe, or go on with it.

    What an earlier call has published is not run again.

    \b
    alignloop run                            the quickstart, offline
    alignloop run --rounds 8                 two rounds more on a run of six
    alignloop run my.yaml --run-dir runs/mine
    alignloop run my.yaml --set dpo.beta=0.2 --set sample.num_candidates=16
    """
    from alignloop.config import load_recipe
    from alignloop.engines.log import LOG_FILE, log_named
    from alignloop.loop.run import run as run_loop
    from alignloop.progress import for_terminal

    config = load_recipe(recipe, overrides=[*(overrides or ()), *([] if rounds is None else [f"rounds={rounds}"])])
    folder = run_dir if run_dir is not None else Path("runs") / config.name
    with log_named(folder / LOG_FILE):
        result = run_loop(config, run_dir=folder, rebuild=rebuild, progress=for_terminal())
    say("\n" + result_text(result))


@app.command()
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
    from alignloop.plan import make_plan, plan_text, recipe_or_problems

    config = recipe_or_problems(recipe, overrides=overrides or (), rounds=rounds)
    folder = run_dir if run_dir is not None else Path("runs") / config.name
    planned = make_plan(config, run_dir=folder, rebuild=rebuild)
    say(plan_text(planned))
    if planned.drifted:
        raise UserError("published stages no longer match (see `drift`): put it back, or pass --rebuild")


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")] = Path("runs/quickstart"),
    verify: Annotated[bool, typer.Option("--verify", help="Read all that is published: is it whole?")] = False,
) -> None:
    """Say what a run directory holds.

    Also whether a run is at work in it, and the table so far.
    """
    from alignloop.look.status import read_status, status_text, verify_text
    from alignloop.progress import for_terminal

    if verify:
        say(verify_text(run_dir, progress=for_terminal()))
        return
    say(status_text(read_status(run_dir)))


@app.command(name="eval")
def eval_checkpoint(
    checkpoint: Annotated[Path | None, typer.Argument(help="A Hugging Face model folder.")] = None,
    tasks: TasksOption = None,
    include_path: IncludeOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a task, for a quick look.")] = None,
    config: ProtocolOption = None,
    chat_template: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="In place of the model's own.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the whole report there.")] = None,
    samples: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all answers and verdicts there.")] = None,
    engine: Annotated[Literal["vllm", "transformers"] | None, typer.Option(help="What generates.")] = None,
    responses: Annotated[Path | None, typer.Option(metavar="FILE", help="Score these, without a model.")] = None,
    benchmark: Annotated[str | None, typer.Option(metavar="ifeval=DATA", help="The prompts that they answer.")] = None,
    strip_reasoning: StripOption = False,
) -> None:
    """Run benchmarks on a checkpoint, or on responses.

    \b
    alignloop eval runs/quickstart/final
    alignloop eval my-model --tasks ifeval=input_data.jsonl,mmlu=mmlu/
    alignloop eval --responses mine.jsonl --benchmark ifeval=input_data.jsonl
    """
    from alignloop.cli import evaluate as cli_eval

    cli_eval.check_files(json_file=json_file, samples=samples)
    if responses is not None or benchmark is not None:
        model_options = {
            "CHECKPOINT": checkpoint,
            "--tasks": tasks,
            "--include-path": include_path,
            "--limit": limit,
            "--config": config,
            "--chat-template": chat_template,
            "--engine": engine,
            "--samples": samples,
        }
        cli_eval.score(
            responses,
            benchmark=benchmark,
            json_file=json_file,
            strip_reasoning=strip_reasoning,
            model_options=model_options,
        )
        return
    if checkpoint is None:
        raise UserError("eval: name a CHECKPOINT to measure, or --responses FILE --benchmark ifeval=DATA to score")
    cli_eval.measure(
        checkpoint,
        tasks=tasks,
        include_path=include_path,
        limit=limit,
        config=config,
        chat_template=chat_template,
        engine=engine,
        json_file=json_file,
        samples=samples,
        strip_reasoning=strip_reasoning or None,
    )


@app.command()
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
    from alignloop.engines.log import log_named
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


@app.command()
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


app.add_typer(cli_data.app)
app.command()(cli_report.report)
app.command()(cli_sampling.sample)
app.command()(cli_sampling.score)
app.command(name="compare-sampling")(cli_sampling.compare_sampling)
app.command()(cli_lineage.why)
app.command()(cli_lineage.diff)


@app.command()
def recipes() -> None:
    """List the bundled recipes."""
    from alignloop.config.bundled import RECIPES

    for path in sorted(RECIPES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        say(_wrapped(f"{path.stem:<16} {first}", width=80, indent=17))


def result_text(result: RunResult) -> str:
    """The tables of a finished run, what it took, and how to load the final model."""
    from alignloop.chat.load import template_kwargs_of
    from alignloop.report.model_card import transformers_snippet, vllm_snippet
    from alignloop.report.table import text_tables

    minutes, seconds = divmod(round(result.seconds), 60)
    starts = "no engine start (all was published)" if not result.num_engine_starts else "1 engine start"
    if result.num_engine_starts > 1:
        starts = f"{result.num_engine_starts} engine starts"
    path = str(result.final_model)
    kwargs = template_kwargs_of(Path(path))
    return "\n".join(
        [
            text_tables(result.rounds),
            "",
            f"took         {minutes} min {seconds} s, {starts}, peak memory at most {peak_gib():.1f} GiB",
            f"best round   {result.final_round}, by {result.best_metric}",
            f"final model  {path} (its model card: README.md)",
            *([f"report       {result.report}"] if result.report.is_file() else []),
            "",
            *_indented("# transformers\n" + transformers_snippet(path, template_kwargs=kwargs)),
            "",
            *_indented("# vLLM\n" + vllm_snippet(path, template_kwargs=kwargs)),
        ]
    )


def peak_gib() -> float:
    """An upper bound of the memory in use at any time, in GiB: this process's peak and its largest child's."""
    import resource

    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20


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


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
