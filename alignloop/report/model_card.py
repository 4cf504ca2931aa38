"""The model card of a run's final model, of `templates/model_card.md.jinja`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from alignloop.chat.load import template_kwargs_of
from alignloop.chat.template_defaults import Value, in_yaml
from alignloop.config import Recipe
from alignloop.config.yaml_values import dump_yaml
from alignloop.evaluation.comparing import read_differences
from alignloop.records import RoundRow
from alignloop.report.rounds import doubt_of, groups_of, markdown_table, names_of
from alignloop.run_dir.manifest import Manifest, read_manifest
from alignloop.run_dir.reader import PublishedStage, published_stages

ENGINES = {"vllm": "vLLM", "transformers": "transformers (plain `generate`)"}


def model_card(run_dir: Path, *, rows: Sequence[RoundRow], best: RoundRow, recipe: Recipe) -> str:
    """Markdown with a YAML front matter. `rows` are one a round, the base's first; the card is of the policy of
    `best`."""
    kwargs = template_kwargs_of(run_dir / best.policy)
    base_stages = published_stages(run_dir, 0)
    template = _environment().get_template("model_card.md.jinja")
    return template.render(
        recipe=recipe,
        rows=rows,
        best=best,
        doubt=doubt_of(best.round, recipe.best_metric, rows, read_differences(run_dir)),
        tests=names_of(recipe.evaluate.test_tasks),
        front_matter=dump_yaml(_front_matter(recipe), sort_keys=True),
        base="the bundled quickstart base" if recipe.base == "quickstart" else f"`{Path(recipe.base).name}`",
        rounds_table=markdown_table(rows, groups=groups_of(run_dir)),
        template_kwargs=kwargs,
        template_kwargs_yaml=in_yaml(kwargs),
        engine=ENGINES[recipe.engine.name],
        sparse_recipe=_sparse(recipe),
        lineage=list(_lineage(run_dir, best, base_stages)),
        versions=base_stages[-1].manifest.versions if base_stages else {},
    )


def snippet(engine: str, path: str, *, template_kwargs: Mapping[str, Value] | None = None) -> str:
    """How to chat with the model in `path` by `transformers` or `vllm`, as a script that runs on GPU and CPU alike;
    `template_kwargs` are what its chat template was trained with."""
    macros: Any = _environment().get_template("snippets.md.jinja").module
    return str(getattr(macros, f"{engine}_snippet")(path, template_kwargs))


@cache
def _environment() -> Environment:
    """Of Markdown: nothing is escaped."""
    environment = Environment(
        loader=PackageLoader("alignloop.report", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"repr": repr, "short": "{:g}".format}
    return environment


def _front_matter(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignloop", recipe.policy.by, "rejection-sampling", "sft"],
    }
    # The hub takes ids only: a path of the machine that trained the model tells nobody anything.
    if recipe.base.count("/") == 1 and not recipe.base.startswith((".", "/", "~")) and not Path(recipe.base).exists():
        values["base_model"] = recipe.base
    return values


def _sparse(recipe: Recipe) -> str:
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    for name in {"base", "preferences", "prompts"} & values.keys():
        values[name] = _names(values[name])
    return dump_yaml(values).strip()


def _lineage(run_dir: Path, best: RoundRow, base_stages: Sequence[PublishedStage]) -> Iterator[tuple[str, str, str]]:
    """What, which and its digest: of the policy, the reward model and the data."""
    policy = read_manifest((run_dir / best.policy).parent)
    yield "policy", f"`{best.policy}`", "" if policy is None else _checkpoint_digest(policy)
    # The reward model is the average that follows `train_reward`; there is none in round 0. An ensemble's members are
    # what `score` took.
    for before, after in pairwise(published_stages(run_dir, best.round)):
        if before.name == "train_reward":
            yield "reward model", f"round {best.round}", _checkpoint_digest(after.manifest)
        if after.name == "score" and isinstance(after.manifest.inputs["reward_model"], list):
            for number, member in enumerate(after.manifest.inputs["reward_model"], start=1):
                yield f"reward ensemble, {number}", f"`{member['path']}`", member["digest"]
    for stage in base_stages:
        for kind in ("preferences", "prompts") if stage.name == "ingest" else ():
            for entry in stage.manifest.inputs[kind]:
                yield kind, f"`{_names(entry['path'])}`", entry["digest"]


def _checkpoint_digest(manifest: Manifest) -> str:
    record = manifest.outputs.get("checkpoint")
    return "" if record is None or isinstance(record, list) else record.digest


def _names(value: Any) -> Any:
    """File names without the folders of the machine they lay on."""
    if isinstance(value, list):
        return [_names(item) for item in value]
    return Path(value).name if Path(value).is_absolute() else value
