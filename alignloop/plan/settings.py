"""Where each model of a run comes from, by the recipe's own names: what a person checks before a long run."""

from __future__ import annotations

import textwrap
from itertools import groupby

from alignloop.chat.template_defaults import in_yaml
from alignloop.config import Recipe
from alignloop.config.training import AverageConfig, OptimizerConfig
from alignloop.loop.round_inputs import files_of_rounds
from alignloop.plan.walk import Plan
from alignloop.preflight.averaging import STAGE_NAMES, StageName, num_checkpoints
from alignloop.training.variants import changed_fields, changed_in_words

NAME_WIDTH = 20
LINE_WIDTH = 80
DIGEST_LENGTH = 19
"""`sha256:` and the first 12 digits."""


def setting_lines(plan: Plan) -> list[str]:
    """Policy, starts, reference and data window; then averaging, variants, adapters and processes where they are
    other than one plain training."""
    recipe = plan.recipe
    lines = [
        *_template_lines(plan),
        _line("sample.policy", _policy(plan)),
        _line("reward.start_from", f"{recipe.reward.start_from}: {_reward_start(recipe)}"),
        _line("sft.start_from", f"{recipe.sft.start_from}: {_sft_start(recipe)}"),
        _line("dpo start", "the SFT model of its round, which is its reference too"),
        *_known_reference(plan),
        _line("pairs.data_window", f"{recipe.pairs.data_window}: {_window(recipe)}"),
        *_batch_lines(plan),
    ]
    for name in STAGE_NAMES:
        stage: OptimizerConfig = getattr(recipe, name)
        lines += [
            _line(f"{name}.variants" if number == 1 else "", f"{number}: {changed_in_words(changed_fields(variant))}")
            for number, variant in enumerate(stage.variants, start=1)
        ]
    if any(num_checkpoints(getattr(recipe, name)) > 1 for name in STAGE_NAMES):
        lines += [_line(f"averaging.{name}", _averaging(recipe, name)) for name in STAGE_NAMES]
    else:
        lines.append(_line("averaging", "none: each stage goes on with its last checkpoint"))
    lines += [_line(f"{name}.lora", _lora(getattr(recipe, name))) for name in STAGE_NAMES if getattr(recipe, name).lora]
    processes = recipe.training.num_processes
    if processes > 1:
        lines.append(_line("training", f"{processes} processes, {recipe.training.accelerate}"))
    return lines


def _line(name: str, text: str) -> str:
    indent = " " * NAME_WIDTH
    return textwrap.fill(
        text,
        width=LINE_WIDTH,
        initial_indent=f"{name:<{NAME_WIDTH}}",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _template_lines(plan: Plan) -> list[str]:
    """What the chat template is rendered with, where anything was chosen or found."""
    chat = plan.checked.base.chat
    if chat is None or not chat.template_kwargs:
        return []
    whose = "" if plan.recipe.chat_template_kwargs else ", as answers without reasoning need it"
    able = "answers may hold reasoning" if chat.trains_reasoning else "answers hold no reasoning"
    able = "answers hold reasoning" if chat.opens_reasoning else able
    return [_line("chat template", f"{in_yaml(chat.template_kwargs)}{whose}: {able}")]


def _policy(plan: Plan) -> str:
    recipe = plan.recipe
    bootstrapped = any(stage.round == 0 and stage.name.endswith("_bootstrap") for stage in plan.stages)
    first = "the base, fine-tuned on the first batch" if bootstrapped else "the base"
    if recipe.sample.policy == "previous":
        return f"previous: the last round's policy (round 1: {first})"
    return f"best: the best so far by {recipe.best_metric} (round 1: {first})"


def _reward_start(recipe: Recipe) -> str:
    if recipe.reward.start_from == "base":
        return "the base, with a new head, in every round"
    return "the last round's (round 1: the base, new head)"


def _sft_start(recipe: Recipe) -> str:
    if recipe.sft.start_from == "base":
        return "the base, in every round"
    return "the last round's policy (round 1: the base)"


def _known_reference(plan: Plan) -> list[str]:
    """The digest of the latest reference model that is made."""
    known = [stage for stage in plan.stages if stage.reference is not None]
    return [_line("dpo reference", f"of round {s.round}: {str(s.reference)[:DIGEST_LENGTH]}") for s in known[-1:]]


def _window(recipe: Recipe) -> str:
    window = recipe.pairs.data_window
    rounds = "the round's preferences" if window == 1 else f"preferences of the last {window} rounds"
    if recipe.data.batches == "all":
        rounds = "all preferences (data.batches: all)"
    return rounds + (", and best/worst of its candidates" if recipe.pairs.on_policy else "")


def _batch_lines(plan: Plan) -> list[str]:
    """Which file is which round's, and where the run will stop for people."""
    recipe, lines = plan.recipe, []
    for index, (numbers, file) in enumerate(_rounds_by_file(plan)):
        lines.append(_line("data.batches" if index == 0 else "", f"{numbers}: {file}"))
    if recipe.collect.annotator == "human" and recipe.rounds > 1:
        needed = recipe.collect.min_annotated
        enough = "" if needed is None else f", {needed} answers are enough"
        text = "human: each round from 2 on stops until people have compared its pairs (at most "
        lines.append(_line("collect.annotator", f"{text}{recipe.collect.num_annotations}{enough})"))
    return lines


def _rounds_by_file(plan: Plan) -> list[tuple[str, str]]:
    """(rounds, file), where each file is one round's."""
    if plan.recipe.data.batches != "files":
        return []
    files = files_of_rounds(plan.recipe, plan.run_dir, number=plan.recipe.rounds)
    told = []
    for file, members in groupby(enumerate(files, start=1), key=lambda entry: entry[1]):
        numbers = [number for number, _ in members]
        rounds = f"round {numbers[0]}" if len(numbers) == 1 else f"rounds {numbers[0]} to {numbers[-1]}"
        told.append((rounds, file.name))
    return told


def _averaging(recipe: Recipe, name: StageName) -> str:
    """`uniform over 6 (3 checkpoints x 2 variants)`."""
    config: AverageConfig = getattr(recipe.averaging, name)
    stage: OptimizerConfig = getattr(recipe, name)
    kept = num_checkpoints(stage)
    if kept == 1:
        return "none: its last checkpoint"
    several = "checkpoints" if stage.num_checkpoints > 1 else "checkpoint"
    what = f"{kept} checkpoints"
    if stage.variants:
        what = f"{kept} ({stage.num_checkpoints} {several} x {len(stage.variants)} variants)"
    if config.choose is not None and config.choose < kept:
        best = {"loss": "lowest", "accuracy": "highest"}[config.metric]
        what = f"the {config.choose} of {what} with the {best} held-out {config.metric}"
        if config.choose == 1:
            return what
    if config.weights is None:
        return f"uniform over {what}"
    return f"weights {', '.join(f'{weight:g}' for weight in config.weights)} over {what}"


def _lora(config: OptimizerConfig) -> str:
    lora = config.lora
    assert lora is not None, "only asked where there is one"
    modules = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    quantized = "" if lora.quantize == "none" else f", base weights in {lora.quantize}"
    return f"rank {lora.rank}, alpha {lora.alpha:g}, on {modules}{quantized}; merged for the next stage"
