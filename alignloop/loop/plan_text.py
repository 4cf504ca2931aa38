"""A run on the screen: what it is about to do, and its plan, one round in full and the others in a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from alignloop.chat.template_defaults import in_yaml
from alignloop.config import Recipe
from alignloop.config.sampling import Pairing
from alignloop.config.training import LoraConfig, ObjectiveName, OptimizerConfig
from alignloop.loop.check import Checked
from alignloop.loop.estimate import few_steps
from alignloop.loop.plan import Plan, PlannedStage
from alignloop.loop.round_inputs import files_of_rounds
from alignloop.report.rounds import names_of
from alignloop.run_dir.layout import RESOLVED
from alignloop.stages import average
from alignloop.stages.average import num_checkpoints
from alignloop.terminal import wrapped
from alignloop.training.variants import changed_fields, changed_in_words

NAME_WIDTH = 20
NOTE_WIDTH = 9
MOST_LINES = 12
"""Of a run of more rounds those in a row that have as many stages to do share a line."""
DIGEST_LENGTH = 19
"""`sha256:` and the first 12 digits."""
TOKENS_OF = {"sample": "sample", "score": "sample"} | dict.fromkeys(
    ("train_reward", "train_sft", "train_dpo", "train_rloo", "bootstrap"), "train"
)
"""The activity that a stage's tokens are added to, where rounds have a line each."""


def opening_lines(checked: Checked, *, recipe: Recipe, run_dir: Path) -> list[str]:
    size = "" if checked.base.num_parameters is None else f", {in_words(checked.base.num_parameters)} parameters"
    rows = checked.rows
    rejected = f", {len(rows.rejected):,} unreadable" if rows.rejected else ""
    num_shown = sum(map(len, rows.demonstrations.values()))
    shown = f", {num_shown:,} demonstrations" if rows.demonstrations else ""
    forms = ", ".join(sorted(set(rows.forms.values())))
    known = (run_dir / RESOLVED).is_file()
    rounds = "1 round" if recipe.rounds == 1 else f"{recipe.rounds} rounds"
    lines = [
        f"recipe   {recipe.name}: {rounds}, K {recipe.sample.num_candidates}, seed {recipe.seed}",
        f"base     {recipe.base}{size}",
        f"rows     {len(rows.train):,} preferences, {len(rows.heldout):,} held out{rejected} ({forms}); "
        f"{len(rows.prompts):,} prompts{shown}",
        f"run dir  {run_dir}{', which is gone on with' if known else ''}",
    ]
    return lines + _note_lines([*checked.notes, *few_steps(recipe, checked)])


def _note_lines(notes: Sequence[str]) -> list[str]:
    return [line for note in notes for line in _line("note", note, indent=NOTE_WIDTH).split("\n")]


def plan_text(plan: Plan) -> str:
    lines = opening_lines(plan.checked, recipe=plan.recipe, run_dir=plan.run_dir)
    lines += [*_note_lines(plan.checked.left_out), "", *_rounds(plan), "", *_setting_lines(plan), ""]
    needed, free = (in_words(number, units=_BYTES) for number in (plan.checked.disk_bytes, plan.free_bytes))
    lines.append(f"{'disk':<{NAME_WIDTH}}about {needed} needed, {free} free at {plan.run_dir}")
    return "\n".join(lines)


def _rounds(plan: Plan) -> Iterator[str]:
    yield f"{'stage':<22}{'state':<11}{'rows':>9}{'steps':>8}{'tokens':>9}"
    rounds = [list(members) for _, members in groupby(plan.stages, key=lambda stage: stage.round)]
    begun = ("drift", "begun", "published", "waits")
    # Round 0 and the first round still to do are shown stage by stage; the rest is alike.
    first = next((r[0].round for r in rounds if r[0].round > 0 and any(s.state != "published" for s in r)), None)

    def look(stages: Sequence[PlannedStage]) -> tuple[bool, bool, int, int | None]:
        """Whether all is published; whether it is shown stage by stage; how many stages; its number where no other
        round shares its line."""
        published, number = all(stage.state == "published" for stage in stages), stages[0].round
        is_open = not published and (number in (0, first) or any(stage.state in begun for stage in stages))
        is_alone = is_open or number == 0 or plan.recipe.rounds <= MOST_LINES
        return published, is_open, len(stages), number if is_alone else None

    for (published, is_open, _, _), members in groupby(rounds, key=look):
        alike = list(members)
        if is_open:
            yield f"round {alike[0][0].round}"
            yield from (line for stage in alike[0] for line in _stage_lines(stage))
        else:
            yield _in_one_line(alike, published=published)


def _in_one_line(rounds: Sequence[Sequence[PlannedStage]], *, published: bool) -> str:
    """Of a round, or of several in a row with as many stages."""
    first, last = rounds[0][0].round, rounds[-1][0].round
    name, each = (f"round {first}", "") if first == last else (f"rounds {first} to {last}", " each")
    stages = [stage for members in rounds for stage in members]
    if published:
        seconds = sum(stage.seconds or 0.0 for stage in stages)
        return f"{name:<22}published  all {len(rounds[0])} stages{each} ({seconds:.0f} s)"
    tokens: Counter[str] = Counter()
    for stage in stages:
        tokens[TOKENS_OF.get(stage.name.partition("_")[2], "")] += stage.expected.tokens or 0
    expected = [f"{what} {in_words(tokens[what])}" for what in ("sample", "train") if tokens[what]]
    text = f"{name:<22}to do      {len(rounds[0])} stages{each}"
    return f"{text}{', tokens: ' if expected else ''}{', '.join(expected)}"


def _stage_lines(stage: PlannedStage) -> list[str]:
    rows, steps = ("" if n is None else f"{n:,}" for n in (stage.expected.rows, stage.expected.steps))
    tokens = "" if stage.expected.tokens is None else in_words(stage.expected.tokens)
    line = f"  {stage.name:<20}{stage.state:<11}{rows:>9}{steps:>8}{tokens:>9}".rstrip()
    return [line, *(f"      {change}" for change in stage.changes)]


def _setting_lines(plan: Plan) -> list[str]:
    """Averaging, variants, adapters and processes only where they are other than one plain training."""
    recipe = plan.recipe
    references = [stage for stage in plan.stages if stage.reference is not None]
    trained = recipe.trainings
    lines = [
        *_template(plan),
        ("sample.policy", f"{recipe.sample.policy}: {_policy(plan)}"),
        ("reward.start_from", f"{recipe.reward.start_from}: {_REWARD_STARTS[recipe.reward.start_from]}"),
        ("sft.start_from", f"{recipe.sft.start_from}: {_SFT_STARTS[recipe.sft.start_from]}"),
        _policy_start(recipe),
        *_schedules(recipe),
        *(
            (f"{recipe.policy.by} reference", f"of round {s.round}: {str(s.reference)[:DIGEST_LENGTH]}")
            for s in references[-1:]
        ),
        *_demonstrations(plan),
        _what_trains(recipe),
        *_batches(plan),
        *_tests(recipe),
        *(
            (f"{name}.variants" if number == 1 else "", f"{number}: {changed_in_words(changed_fields(variant))}")
            for name, config in trained.items()
            for number, variant in enumerate(config.variants, start=1)
        ),
        *_ensemble(recipe),
    ]
    if any(num_checkpoints(config) > 1 for config in trained.values()):
        lines += [(f"averaging.{name}", _averaging(recipe, name, config)) for name, config in trained.items()]
    else:
        lines.append(("averaging", "none: each stage goes on with its last checkpoint"))
    lines += [(f"{name}.lora", _adapter(config.lora)) for name, config in trained.items() if config.lora is not None]
    if recipe.training.num_processes > 1:
        lines.append(("training", f"{recipe.training.num_processes} processes, {recipe.training.accelerate}"))
    return [_line(*line) for line in lines]


_REWARD_STARTS = {
    "base": "the base, with a new head, in every round",
    "previous": "the last round's (round 1: the base, new head)",
}
_SFT_STARTS = {"base": "the base, in every round", "previous": "the last round's policy (round 1: the base)"}


def _policy_start(recipe: Recipe) -> tuple[str, str]:
    """What DPO or RLOO starts from, and its reference."""
    by = recipe.policy.by
    config = recipe.dpo if by == "dpo" else recipe.rloo
    reference = {
        "sft": "which is its reference too",
        "base": "its reference is the base",
        "previous": "its reference the last round's policy",
        "ema": f"its reference the moving average of the policies (decay {recipe.dpo.ema_decay:g})",
    }
    always = all(recipe.sft.is_due(number) for number in range(1, recipe.rounds + 1))
    start = "the SFT model of its round" if always else "the SFT model of its round, without one the last policy"
    named = reference[config.reference]
    if by == "dpo" and not recipe.dpo.has_reference:
        named = f"{recipe.dpo.loss} has no reference"
    if by == "rloo" and not recipe.rloo.kl_coefficient:
        named = "without a reference (rloo.kl_coefficient is 0)"
    return f"{by} start", f"{start}, {named}" if always and config.reference == "sft" else f"{start}; {named}"


def _what_trains(recipe: Recipe) -> tuple[str, str]:
    """DPO's pairs, or what RLOO samples."""
    if recipe.policy.by == "dpo":
        return "pairs.data_window", f"{recipe.pairs.data_window}: {_window(recipe)}"
    rloo = recipe.rloo
    together = rloo.batch_groups * rloo.num_minibatches
    steps = rloo.num_minibatches * rloo.num_iterations
    each = (
        f"{together} prompts x {rloo.num_candidates} completions at a time, {steps} step{'s' if steps > 1 else ''} each"
    )
    by = ["the reward model"] if rloo.reward_model else []
    by += [entry.function for entry in recipe.score.reward_functions if entry.weight or entry.gate is not None]
    return "rloo samples", f"{each}; rewarded by {', '.join(by)}; no pairs are built"


def _schedules(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What is not in every round."""
    due = {
        "reward": recipe.trains_reward,
        "sft": recipe.sft.is_due,
        "evaluate": recipe.evaluates,
        "measure": recipe.measures,
    }
    for name, is_due in due.items():
        numbers = [number for number in range(1, recipe.rounds + 1) if is_due(number)]
        if len(numbers) < recipe.rounds:
            few = [str(number) for number in numbers]
            few = few if len(few) <= MOST_LINES else [*few[:3], "...", few[-1]]
            yield name, f"in {len(numbers):,} of {recipe.rounds:,} rounds: {', '.join(few)}"


def _line(name: str, text: str, *, indent: int = NAME_WIDTH) -> str:
    return "\n".join(wrapped(text, f"{name:<{indent}}", " " * indent))


def _template(plan: Plan) -> Iterator[tuple[str, str]]:
    chat = plan.checked.base.chat
    if chat is not None and chat.template_kwargs:
        whose = "" if plan.recipe.chat_template_kwargs else ", as answers without reasoning need it"
        able = "answers may hold reasoning" if chat.trains_reasoning else "answers hold no reasoning"
        able = "answers hold reasoning" if chat.opens_reasoning else able
        yield "chat template", f"{in_yaml(chat.template_kwargs)}{whose}: {able}"


def _policy(plan: Plan) -> str:
    bootstrapped = any(stage.round == 0 and stage.name.endswith("_bootstrap") for stage in plan.stages)
    first = "the base, fine-tuned on the first batch" if bootstrapped else "the base"
    sample, previous = plan.recipe.sample, "the last round's policy"
    if sample.policy == "base":
        return f"{first}, in every round"
    if sample.policy_round is not None:
        return f"{previous}, after round {sample.policy_round} that round's (round 1: {first})"
    later = {"previous": previous, "best": f"the best so far by {plan.recipe.best_metric}"}
    return f"{later[sample.policy]} (round 1: {first})"


_PAIRED: Mapping[Pairing, str] = {
    "best_worst": "best/worst",
    "best_random": "best and another",
    "gap": "two far apart",
    "best_mean_minus_2_sigma": "best and mean - 2 sigma",
}


def _window(recipe: Recipe) -> str:
    window = recipe.pairs.data_window
    rounds = "the round's preferences" if window == 1 else f"preferences of the last {window} rounds"
    if recipe.data.batches == "all":
        rounds = "all preferences (data.batches: all)"
    sources = recipe.pairs.sources
    preferences = [origin for origin in sources if origin != "on_policy"]
    alone = f" ({preferences[0]} alone)" if len(preferences) == 1 else ""
    parts = [f"{rounds}{alone}"] if preferences else []
    if "on_policy" in sources:
        paired, whose = _PAIRED[recipe.pairs.pairing], "its" if parts else "the round's"
        parts.append(f"{paired} of {whose} candidates")
    return ", and ".join(parts) or "no pair (pairs.sources is empty)"


def _demonstrations(plan: Plan) -> Iterator[tuple[str, str]]:
    """How many rows each entry of `sft.data` has, and which of them a round trains on."""
    recipe, rows = plan.recipe, plan.checked.rows.demonstrations
    for number, entry in enumerate(recipe.sft.data):
        share = "" if entry.share is None else f", {entry.share:.0%} of the round's SFT rows"
        epochs = "" if entry.epochs is None else f", {entry.epochs:g} epochs"
        counted = f"{len(rows.get(entry.file, [])):,} rows"
        yield "" if number else "sft.data", f"{entry.file}: {counted}{share}{epochs}"
    if recipe.sft.data:
        window = recipe.sft.data_window
        came = "the round" if window == 1 else f"the last {window} rounds"
        split = f"those that came in in {came}, of {recipe.data.split_rounds} shares"
        yield "sft.data_window", "none: all of them in every round" if window is None else f"{window}: {split}"


def _tests(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.evaluate.test_tasks:
        rounds = {"ends": "of the base, the last and the best round", "all": "of every round"}
        asked = f"{names_of(recipe.evaluate.test_tasks)}: {rounds[recipe.evaluate.test_rounds]}"
        yield "evaluate.test_tasks", f"{asked}; they choose nothing"


def _batches(plan: Plan) -> Iterator[tuple[str, str]]:
    """Which file is which round's, and where the run will stop for people."""
    recipe, name = plan.recipe, "data.batches"
    files = []
    if recipe.data.batches == "files":
        files = files_of_rounds(recipe, plan.run_dir, number=recipe.rounds)
    for file, members in groupby(enumerate(files, start=1), key=lambda entry: entry[1]):
        numbers = [number for number, _ in members]
        rounds = f"round {numbers[0]}" if len(numbers) == 1 else f"rounds {numbers[0]} to {numbers[-1]}"
        yield name, f"{rounds}: {file.name}"
        name = ""
    if recipe.collect.annotator == "human" and recipe.rounds > 1:
        needed = recipe.collect.min_annotated
        enough = "" if needed is None else f", {needed} answers are enough"
        text = "human: each round from 2 on stops until people have compared its pairs (at most "
        yield "collect.annotator", f"{text}{recipe.collect.num_annotations}{enough})"


def _averaging(recipe: Recipe, name: ObjectiveName, stage: OptimizerConfig) -> str:
    """`uniform over 6 (3 checkpoints x 2 variants)`."""
    config = average.STAGES[name].settings(recipe)
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


def _ensemble(recipe: Recipe) -> Iterator[tuple[str, str]]:
    score = recipe.score
    how = {
        "mean": "the mean",
        "mean_minus_spread": f"the mean less {score.penalty:g} x the spread",
        "least": "the least",
    }
    if score.has_ensemble:
        yield "score.ensemble", f"{how[score.ensemble]} of the rewards by {len(recipe.reward.variants)} variants"


def _adapter(lora: LoraConfig) -> str:
    modules = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    quantized = "" if lora.quantize == "none" else f", base weights in {lora.quantize}"
    return f"rank {lora.rank}, alpha {lora.alpha:g}, on {modules}{quantized}; merged for the next stage"


_UNITS = {"T": 1e12, "B": 1e9, "M": 1e6, "k": 1e3}
_BYTES = {" TB": 1e12, " GB": 1e9, " MB": 1e6, " kB": 1e3}


def in_words(number: float, *, units: Mapping[str, float] = _UNITS) -> str:
    """12_345_678 -> `12.3M`."""
    unit = next((name for name, size in units.items() if number >= size), None)
    return f"{number:.0f}" if unit is None else f"{number / units[unit]:.1f}{unit}"
