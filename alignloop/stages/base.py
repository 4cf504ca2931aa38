"""The base model, made ready: chat template with the recipe's kwargs, special tokens, an eos that stops."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.artifacts import Artifact
from alignloop.chat.load import prepare_tokenizer
from alignloop.chat.templates import Template, load_template, template_file
from alignloop.config.base import Section
from alignloop.config.bundled import resolve_base
from alignloop.config.recipe import Recipe, TemplateValue
from alignloop.engines.checkpoint import longest_sequence, stored_tensors, text_config
from alignloop.errors import ModelError
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.base_files import check_causal, check_machine, look_at_weights, loras
from alignloop.stages.facts import BaseFacts, Findings
from alignloop.training.adapter_files import base_of, has_tokenizer, is_adapter
from alignloop.training.base_weights import check_tokenizer_fits
from alignloop.training.new_tokens import NewToken, OwnTokens, State, ensure_pad, find_new_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignloop.chat.format import ChatFormat

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_STATES: dict[State, str] = {
    "added": "added; their rows are drawn, near the mean of the others",
    "empty": "never trained; their rows are drawn anew, near the mean of the others",
    "weak": "hardly trained, by their short rows",
}


@dataclass(frozen=True)
class Inputs:
    base: str | Artifact
    """A Hugging Face directory, or a hub id."""
    chat_template: str | Artifact | None
    """A shipped template's name or a Jinja file; None: the base's own."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoint: Artifact
    """`metrics["had_template"]` is 1 where the base brought its own chat template, or the tokens of the recipe's;
    `facts["chat_template_kwargs"]` is what the template is rendered with, chosen or found."""


class Settings(Section):
    chat_template_kwargs: dict[str, TemplateValue]


def settings(recipe: Recipe) -> Settings | None:
    """None where nothing is chosen."""
    kwargs = recipe.chat_template_kwargs
    return Settings(chat_template_kwargs=kwargs) if kwargs else None


def inputs(recipe: Recipe) -> Inputs:
    """The base's folder with its digest, or its hub id; likewise its chat template's file or name."""
    path = Path(resolve_base(recipe.base)).expanduser()
    return Inputs(Artifact.of(path) if path.is_dir() else recipe.base, template_input(recipe))


def template_input(recipe: Recipe) -> str | Artifact | None:
    file = None if recipe.chat_template is None else template_file(recipe.chat_template)
    return recipe.chat_template if file is None else Artifact.of(file)


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


def look_at_base(recipe: Recipe, *, findings: Findings) -> BaseFacts:
    """What config.json, the weights' headers and the tokenizer say; nothing is loaded."""
    template: Template | None = None
    if recipe.chat_template is not None:
        with findings.collecting():
            template = load_template(recipe.chat_template)
    check_machine(recipe, findings=findings)
    folder, adapter = None, None
    with findings.collecting():
        folder, adapter = _folders(recipe.base, findings=findings)
    if folder is None:
        return BaseFacts()
    parameters, positions, num_rows, had_template, chat, usable = None, None, None, None, None, None
    with findings.collecting():
        config = text_config(folder)
        check_causal(folder, config)
        positions = longest_sequence(config)
        parameters, num_rows = look_at_weights(recipe, folder, config, adapter=adapter, findings=findings)
        usable = folder
    with findings.collecting():
        tokenizer = load_tokenizer(adapter if adapter is not None and has_tokenizer(adapter) else folder)
        if num_rows is not None:
            _check_rows(tokenizer, num_rows=num_rows, base=recipe.base, findings=findings)
        # An adapter may have trained rows of its base: what it made of them is known when it is merged.
        tensors = stored_tensors(folder) if num_rows is not None and adapter is None else {}
        had_template, chat = _look_at_template(recipe, tokenizer, template, tensors=tensors, findings=findings)
    return BaseFacts(parameters, positions, had_template, chat, usable)


def find_base(base: str) -> Path | None:
    """The base's folder; None for a hub id that is not on this machine; raises ModelError for a path that is no
    folder."""
    path = Path(resolve_base(base)).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"base: {base} is a file; give the folder of config.json, weights and tokenizer")
    if HUB_ID.fullmatch(base) and not path.parent.is_dir():
        return _cached_snapshot(base)
    folders = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, folders, n=3, cutoff=0.5)
    hint = f" (near: {', '.join(str(path.parent / name) for name in near)})" if near else ""
    raise ModelError(
        f"base: {base}: no such folder{hint} - give a Hugging Face model folder, or a hub id such as "
        "meta-llama/Llama-3.2-1B"
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; raises ModelError where there is none, or it cannot be read."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"{folder}: holds no tokenizer file ({', '.join(TOKENIZER_FILES)}); save it there")
    import transformers

    # AutoTokenizer imports torch, which takes seconds, and is not needed where tokenizer.json lies.
    fast = (folder / "tokenizer.json").is_file()
    try:
        loader: Any = transformers.PreTrainedTokenizerFast if fast else transformers.AutoTokenizer
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(folder)
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise ModelError(f"{folder}: the tokenizer cannot be read ({error}); save it again") from error
    return tokenizer


def _folders(base: str, *, findings: Findings) -> tuple[Path | None, Path | None]:
    """(model, adapter): the second is None where the base is no adapter, the first where it is not on this machine."""
    folder = find_base(base)
    if folder is None:
        findings.notes.append(f"base: {base} is not on this machine: it is fetched from the hub when the run starts")
        return None, None
    if not is_adapter(folder):
        return folder, None
    of = base_of(folder)
    model = _cached_snapshot(of) if isinstance(of, str) else of
    what_happens = "it is merged into that when the run starts" if model else "which is fetched when the run starts"
    findings.notes.append(f"base: {base} is an adapter of {of}: {what_happens}")
    return model, folder


def _cached_snapshot(hub_id: str) -> Path | None:
    """The folder in the hub's local cache; never asks the network."""
    from transformers.utils import cached_file

    try:
        found = cached_file(hub_id, "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found).parent


def _check_rows(tokenizer: PreTrainedTokenizerBase, *, num_rows: int, base: str, findings: Findings) -> None:
    unused = check_tokenizer_fits(tokenizer, num_rows=num_rows, where=f"base: {base}")
    if unused:
        names = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
        findings.notes.append(f"base: special tokens without an embedding row, which nothing here writes: {names}")


def _look_at_template(
    recipe: Recipe,
    tokenizer: Any,
    template: Template | None,
    *,
    tensors: Mapping[str, Any],
    findings: Findings,
) -> tuple[bool | None, ChatFormat | None]:
    """(whether the base brings its own template, or the tokens of the recipe's; the format): None where unknown."""
    own, brought = OwnTokens.of(tokenizer), bool(tokenizer.chat_template)
    if not brought and recipe.chat_template is None:
        known = tokenizer.get_vocab()
        marks = {"llama3": "<|start_header_id|>", "chatml": "<|im_start|>"}
        fitting = next((name for name, mark in marks.items() if mark in known), None)
        hint = f"{fitting}, whose tokens its tokenizer has" if fitting else "llama3, chatml or a Jinja file"
        raise ModelError(f"base: {recipe.base} has no chat template of its own - set chat_template: {hint}")
    if recipe.chat_template is not None and template is None:
        return None, None
    chat = prepare_tokenizer(
        tokenizer, template=template, kwargs=recipe.chat_template_kwargs, name=f"base: {recipe.base}"
    )
    num_new = len(tokenizer) - own.num
    if brought and template is not None:
        unknown = f", with {num_new} tokens new to its tokenizer" if num_new else ""
        findings.notes.append(f"chat_template: {recipe.chat_template} replaces the base's own{unknown}")
    ensure_pad(tokenizer, end_ids=(own.eos, tokenizer.eos_token_id))
    if new := find_new_tokens(tokenizer, chat, own=own, tensors=tensors):
        findings.notes.append(_new_tokens(recipe, new))
    return brought and num_new == 0, chat


def _new_tokens(recipe: Recipe, new: Sequence[NewToken]) -> str:
    """The tokens that the base was never trained on, and what becomes of their rows."""
    parts = [
        f"{', '.join(token.token for token in new if token.state == state)} ({words})"
        for state, words in _STATES.items()
        if any(token.state == state for token in new)
    ]
    count = "1 token is" if len(new) == 1 else f"{len(new)} tokens are"
    stages = ", ".join(loras(recipe))
    train = f"; they train beside the adapters of {stages}" if stages else ""
    return f"base: {count} new to it: {', '.join(parts)}{train}"
