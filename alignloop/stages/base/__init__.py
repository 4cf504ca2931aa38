"""The base model, made ready: chat template with the recipe's kwargs, special tokens, an eos that stops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignloop.artifacts import Artifact
from alignloop.chat.templates import template_file
from alignloop.config.base import Section
from alignloop.config.bundled import resolve_base
from alignloop.config.recipe import Recipe, TemplateValue
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext


@dataclass(frozen=True)
class Inputs:
    base: str | Artifact
    """A Hugging Face directory, or a hub id."""
    chat_template: str | Artifact | None
    """A shipped template's name or a Jinja file, in place of the base's own; None: the base's own."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoint: Artifact
    """`metrics["had_template"]` is 1 where the base brought its own chat template, or the tokens of the given one;
    `facts["chat_template_kwargs"]` is what the template is rendered with, chosen or found."""


def inputs(recipe: Recipe) -> Inputs:
    """The base's folder with its digest, or its hub id; likewise its chat template's file or name."""
    path = Path(resolve_base(recipe.base)).expanduser()
    return Inputs(Artifact.of(path) if path.is_dir() else recipe.base, template_input(recipe))


def template_input(recipe: Recipe) -> str | Artifact | None:
    """The recipe's chat template: its file with a digest, or the name of one that we ship."""
    file = None if recipe.chat_template is None else template_file(recipe.chat_template)
    return recipe.chat_template if file is None else Artifact.of(file)


class Settings(Section):
    chat_template_kwargs: dict[str, TemplateValue]


def settings(recipe: Recipe) -> Settings | None:
    """None where nothing is chosen."""
    kwargs = recipe.chat_template_kwargs
    return Settings(chat_template_kwargs=kwargs) if kwargs else None


def run(config: Settings | None, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.training.start import prepare_base

    base, template = (str(v.path) if isinstance(v, Artifact) else v for v in (inputs.base, inputs.chat_template))
    assert base is not None, "a recipe always names a base"
    prepared = prepare_base(
        base,
        chat_template=template,
        template_kwargs={} if config is None else config.chat_template_kwargs,
        out_dir=ctx.dir / "checkpoint",
    )
    return Outputs(
        checkpoint=Artifact.of(prepared.path),
        metrics={"had_template": float(prepared.had_template)},
        facts={"chat_template_kwargs": dict(prepared.template_kwargs)},
    )


STAGE = Stage("base", Inputs, Outputs, settings, run)
