"""The model card of a run's final model: what it is, how it became that, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from alignloop.artifacts import Manifest, read_manifest
from alignloop.chat.load import template_kwargs_of
from alignloop.chat.template_defaults import Value, in_yaml
from alignloop.config import Recipe
from alignloop.config.yaml_values import dump_yaml
from alignloop.records import RoundRow
from alignloop.report.table import markdown_table
from alignloop.run_dir.reader import published_stages

TITLE = "# {name}, round {round}"


def model_card(run_dir: Path, *, rows: Sequence[RoundRow], best: RoundRow, recipe: Recipe) -> str:
    """Markdown with a YAML front matter.

    Args:
        rows: one a round, the base's first.
        best: the row whose policy the card is of.
    """
    kwargs = template_kwargs_of(run_dir / best.policy)
    sections = [
        _front_matter(recipe),
        TITLE.format(name=recipe.name, round=best.round),
        _what(rows, best, recipe),
        "## Rounds\n\nIFEval and MMLU in percent; round 0 is the base. The reward model's accuracy is on held-out "
        f"preferences.\n\n{markdown_table(rows)}",
        "## Use\n\n```python\n"
        + transformers_snippet("PATH_TO_THIS_FOLDER", template_kwargs=kwargs)
        + "\n```\n\n```python\n"
        + vllm_snippet("PATH_TO_THIS_FOLDER", template_kwargs=kwargs)
        + "\n```"
        + _asked_as(kwargs),
        _recipe_section(recipe),
        _lineage(run_dir, best),
    ]
    return "\n\n".join(sections) + "\n"


def transformers_snippet(path: str, *, template_kwargs: Mapping[str, Value] | None = None) -> str:
    """How to chat with the model in `path` by transformers.

    Args:
        template_kwargs: what its chat template was trained with.
    """
    asked = ", ".join(f"{key}={value!r}" for key, value in (template_kwargs or {}).items())
    trained = f"# asks with {asked}, as training did: its chat template says so\n" if asked else ""
    return trained + (
        "from transformers import pipeline\n"
        f'chat = pipeline("text-generation", model="{path}")\n'
        'answer = chat([{"role": "user", "content": "Hello!"}], max_new_tokens=256)\n'
        'print(answer[0]["generated_text"][-1]["content"])'
    )


def vllm_snippet(path: str, *, template_kwargs: Mapping[str, Value] | None = None) -> str:
    """How to chat with the model in `path` by vLLM; runs as a script on GPU and CPU alike.

    Args:
        template_kwargs: what its chat template was trained with.
    """
    asked = f", chat_template_kwargs={dict(template_kwargs)!r}" if template_kwargs else ""
    return (
        "from vllm import LLM, SamplingParams\n"
        'if __name__ == "__main__":  # the engine is a process that imports this file again\n'
        f'    llm = LLM("{path}", gpu_memory_utilization=0.5)\n'
        '    answer = llm.chat([{"role": "user", "content": "Hello!"}], SamplingParams(max_tokens=256)'
        f"{asked})\n"
        "    print(answer[0].outputs[0].text)"
    )


def _asked_as(kwargs: Mapping[str, Value]) -> str:
    if not kwargs:
        return ""
    return (
        f"\n\nIt was trained and measured with the chat template's `{in_yaml(kwargs)}`. The template in this folder "
        "takes these values where a request names no others, so that a server asks as training did."
    )


def _front_matter(recipe: Recipe) -> str:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignloop", "dpo", "rejection-sampling", "sft"],
    }
    # The hub takes ids only: a path of the machine that trained the model tells nobody anything.
    if recipe.base.count("/") == 1 and not recipe.base.startswith((".", "/", "~")) and not Path(recipe.base).exists():
        values["base_model"] = recipe.base
    return "---\n" + dump_yaml(values, sort_keys=True) + "---"


def _what(rows: Sequence[RoundRow], best: RoundRow, recipe: Recipe) -> str:
    base = "the bundled quickstart base" if recipe.base == "quickstart" else f"`{Path(recipe.base).name}`"
    metric = recipe.best_metric
    lines = [
        f"Aligned from {base} by alignloop: round {best.round} of {rows[-1].round} of reward modelling, rejection "
        "sampling, supervised fine-tuning and direct preference optimisation (after The Llama 3 Herd of Models, "
        f"section 4). It is the best round by `{metric}`: {best.metrics[metric]:.3f} against "
        f"{rows[0].metrics[metric]:.3f} at the base.",
    ]
    if recipe.collect.annotator == "simulated" and recipe.collect.num_annotations:
        lines.append(
            "**The annotator is simulated.** Where the paper has people compare each round's new completions, this run "
            "had a program: the benchmark's own instruction checkers, on training prompts only."
        )
    if recipe.collect.annotator == "judge" and recipe.collect.num_annotations and recipe.judge is not None:
        lines.append(
            f"**The annotator is a model.** New completions of each round were compared by `{recipe.judge.model}` "
            f"(prompt `{recipe.judge.prompt}`), not by people."
        )
    return "\n\n".join(lines)


ENGINES = {"vllm": "vLLM", "transformers": "transformers (plain `generate`)"}


def _number_or_range(value: float | tuple[float, float]) -> str:
    return f"{value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else f"{value:g}"


def _recipe_section(recipe: Recipe) -> str:
    masked = "masked" if recipe.dpo.mask_formatting_tokens else "kept"
    lines = [
        f"- rounds {recipe.rounds}, seed {recipe.seed}, K {recipe.sample.num_candidates} candidates a prompt at "
        f"temperature {_number_or_range(recipe.sample.temperature)}, sampled with {ENGINES[recipe.engine.name]}",
        f"- reward model: learning rate {recipe.reward.learning_rate:g}, starts from {recipe.reward.start_from}",
        f"- SFT: learning rate {recipe.sft.learning_rate:g}, starts from {recipe.sft.start_from}",
        f"- DPO: learning rate {recipe.dpo.learning_rate:g}, beta {recipe.dpo.beta:g}, NLL coefficient "
        f"{recipe.dpo.nll_coefficient:g}, formatting tokens {masked}",
    ]
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    for name in ("base", "preferences", "prompts"):
        if name in values:
            values[name] = _names(values[name])
    sparse = dump_yaml(values).strip()
    return "## Recipe\n\n" + "\n".join(lines) + f"\n\n```yaml\n{sparse}\n```"


def _lineage(run_dir: Path, best: RoundRow) -> str:
    rows = [("policy", f"`{best.policy}`", _policy_digest(run_dir, best))]
    rows += [("reward model", f"round {best.round}", digest) for digest in _reward_model_digest(run_dir, best.round)]
    versions: Mapping[str, str] = {}
    for stage in published_stages(run_dir, 0):
        versions = stage.manifest.versions
        for kind in ("preferences", "prompts"):
            entries = stage.manifest.inputs[kind] if stage.name == "ingest" else []
            rows += [(kind, f"`{_names(entry['path'])}`", entry["digest"]) for entry in entries]
    table = "\n".join(f"| {what} | {which} | `{digest}` |" for what, which, digest in rows)
    made_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"## Lineage\n\n| what | which | digest |\n| --- | --- | --- |\n{table}\n\nMade with {made_with}."


def _policy_digest(run_dir: Path, best: RoundRow) -> str:
    manifest = read_manifest((run_dir / best.policy).parent)
    return "" if manifest is None else _checkpoint_digest(manifest)


def _reward_model_digest(run_dir: Path, number: int) -> list[str]:
    """Of the average that follows `train_reward`; none in round 0."""
    stages = published_stages(run_dir, number)
    return [_checkpoint_digest(after.manifest) for before, after in pairwise(stages) if before.name == "train_reward"]


def _checkpoint_digest(manifest: Manifest) -> str:
    record = manifest.outputs.get("checkpoint")
    return "" if record is None or isinstance(record, list) else record.digest


def _names(value: Any) -> Any:
    """File names without the folders of the machine they lay on."""
    if isinstance(value, list):
        return [_names(item) for item in value]
    return Path(value).name if Path(value).is_absolute() else value
