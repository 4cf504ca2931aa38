"""The verbs of rejection sampling without the loop: `sample`, `score`, `compare-sampling`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from alignloop.cli.options import ConfigOption, EngineOption, SeedOption, SetOption
from alignloop.errors import UserError
from alignloop.terminal import say


def sample(
    checkpoint: Annotated[str, typer.Argument(help="A Hugging Face model folder.")],
    prompts: Annotated[str, typer.Argument(help="JSONL of prompts or preferences.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The candidates.")],
    num_candidates: Annotated[int | None, typer.Option("--num-candidates", "-k", min=1, help="K a prompt.")] = None,
    temperature: Annotated[str | None, typer.Option(metavar="T|LOW,HIGH")] = None,
    top_p: Annotated[str | None, typer.Option(metavar="P|LOW,HIGH")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest completion.")] = None,
    seed: SeedOption = None,
    system_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Before each prompt without one.")] = None,
    engine: EngineOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Sample K candidates a prompt.

    \b
    alignloop sample my-model prompts.jsonl --out candidates.jsonl -k 16
    """
    from alignloop.alone.sample import sample_file
    from alignloop.progress import for_terminal

    given = {
        "sample.num_candidates": num_candidates,
        "sample.temperature": _range("--temperature", temperature),
        "sample.top_p": _range("--top-p", top_p),
        "sample.max_tokens": max_tokens,
        "seed": seed,
        "engine.name": engine,
    }
    made = sample_file(
        checkpoint,
        prompts,
        out=out,
        config=config,
        overrides=[*(overrides or ()), *(f"{name}={value}" for name, value in given.items() if value is not None)],
        system_prompt=system_prompt,
        progress=for_terminal(),
    )
    say(made)


def score(
    reward_model: Annotated[str, typer.Argument(help="A sequence classifier with one label; several with a comma.")],
    candidates: Annotated[Path, typer.Argument(help="What `sample` wrote, or your own.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The candidates with their rewards.")],
    best: Annotated[Path | None, typer.Option(metavar="FILE", help="The best of each prompt.")] = None,
    functions: Annotated[
        list[str] | None,
        typer.Option("--reward-function", metavar="MODULE:FUNCTION=WEIGHT", help="Added to the reward; repeatable."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Score candidates, find the best of each prompt.

    Rows of your own: {"prompt": text, "candidates": [text, ...]}.

    \b
    alignloop score my-rm candidates.jsonl --out scored.jsonl --best best.jsonl
    """
    from alignloop.alone.sample import score_file
    from alignloop.progress import for_terminal

    made = score_file(
        reward_model,
        candidates,
        out=out,
        best=best,
        config=config,
        overrides=overrides or (),
        functions=functions or (),
        progress=for_terminal(),
    )
    say(made)


def compare_sampling(
    a: Annotated[str, typer.Argument(metavar="A", help="A recipe, or a file that `score` wrote.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same, to set against A.")],
    policy: Annotated[str | None, typer.Option(metavar="FOLDER", help="What recipes sample from.")] = None,
    reward_model: Annotated[str | None, typer.Option(metavar="FOLDER", help="What scores them.")] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="What they sample for.")] = None,
    set_a: Annotated[list[str] | None, typer.Option(metavar="A.B=VALUE", help="Overrides a field of A.")] = None,
    set_b: Annotated[list[str] | None, typer.Option(metavar="A.B=VALUE", help="Overrides a field of B.")] = None,
    seed: SeedOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Gets comparison.json and .html.")] = None,
) -> None:
    """Compare the rewards of two ways to sample.

    \b
    alignloop compare-sampling one.jsonl two.jsonl --out compared
    alignloop compare-sampling my.yaml my.yaml --set-b engine.quantization=fp8
      --policy my-model --reward-model my-rm --prompts prompts.jsonl
    """
    from alignloop.comparison.printed import comparison_text
    from alignloop.comparison.run import PAGE_FILE, SideSource
    from alignloop.comparison.run import compare_sampling as compare
    from alignloop.progress import for_terminal

    found = compare(
        SideSource(a, tuple(set_a or ())),
        SideSource(b, tuple(set_b or ())),
        policy=policy,
        reward_model=reward_model,
        prompts=prompts,
        seed=seed,
        out=out,
        progress=for_terminal(),
    )
    say(comparison_text(found))
    if out is not None:
        say(f"the page  {out / PAGE_FILE}")


def _range(option: str, text: str | None) -> str | None:
    """`0.7` or `0.7,1.0` as a recipe writes it: `0.7`, `[0.7, 1.0]`.

    Raises:
        UserError: it is neither.
    """
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise UserError(f"{option} {text}: expected a number, or two with a comma between them: {option} 0.7,1.0")
    return json.dumps(numbers[0] if len(numbers) == 1 else numbers)
