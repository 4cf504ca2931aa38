"""The base model, looked at without loading it: its config, its weights' headers, its tokenizer and chat template."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.chat.prepare import prepare_tokenizer
from alignloop.chat.templates import Template, load_template
from alignloop.config import Recipe
from alignloop.config.bundled import resolve_base
from alignloop.engines.checkpoint import longest_sequence, stored_tensors, text_config
from alignloop.errors import ModelError
from alignloop.stages.base.adapters import check_machine, check_targets, note_high_ranks, note_new_tokens
from alignloop.stages.base.weights import check_causal, check_stored
from alignloop.stages.facts import BaseFacts, Findings
from alignloop.training.adapter_files import base_of, check_fits, has_tokenizer, is_adapter
from alignloop.training.base_weights import check_is_safetensors, check_tokenizer_fits, embedding_rows
from alignloop.training.new_tokens import OwnTokens, ensure_pad, find_new_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
PARAMETER_BYTES = 4
"""Checkpoints are kept in float32."""


def look_at_base(recipe: Recipe, *, findings: Findings) -> BaseFacts:
    """Everything that config.json, the weights' headers and the tokenizer tell."""
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
        parameters, num_rows = _look_at_weights(recipe, folder, config, adapter=adapter, findings=findings)
        usable = folder
    with findings.collecting():
        tokenizer = load_tokenizer(adapter if adapter is not None and has_tokenizer(adapter) else folder)
        if num_rows is not None:
            _check_rows(tokenizer, num_rows=num_rows, base=recipe.base, findings=findings)
        own, brought = OwnTokens.of(tokenizer), bool(tokenizer.chat_template)
        if not brought and recipe.chat_template is None:
            raise ModelError(_no_template(tokenizer, base=recipe.base))
        if recipe.chat_template is None or template is not None:
            chat = prepare_tokenizer(
                tokenizer, template=template, kwargs=recipe.chat_template_kwargs, name=f"base: {recipe.base}"
            )
            had_template = brought and len(tokenizer) == own.num
            if brought and template is not None:
                findings.notes.append(_replaced(recipe, num_new=len(tokenizer) - own.num))
            ensure_pad(tokenizer, end_ids=(own.eos, tokenizer.eos_token_id))
            # An adapter may have trained rows of its base: what it made of them is known when it is merged.
            tensors = stored_tensors(folder) if num_rows is not None and adapter is None else {}
            note_new_tokens(recipe, find_new_tokens(tokenizer, chat, own=own, tensors=tensors), findings=findings)
    return BaseFacts(parameters, positions, had_template, chat, usable)


def find_base(base: str) -> Path | None:
    """The base's folder; None for a hub id that is not on this machine.

    Raises:
        ModelError: a path where nothing, or no folder, lies.
    """
    path = Path(resolve_base(base)).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"base: {base} is a file; give the folder of config.json, weights and tokenizer")
    near = _near(path)
    if HUB_ID.fullmatch(base) and not path.parent.is_dir():
        return _cached_snapshot(base)
    raise ModelError(
        f"base: {base}: no such folder{near} - give a Hugging Face model folder, or a hub id such as "
        "meta-llama/Llama-3.2-1B"
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
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


def _look_at_weights(
    recipe: Recipe, folder: Path, config: Mapping[str, Any], *, adapter: Path | None, findings: Findings
) -> tuple[int, int | None]:
    """Numbers in the weights and rows of the embedding, read from the headers alone.

    Raises:
        ModelError: there are no weights, or none that can train; a file is broken, they are not those of config.json,
            or an adapter or the recipe's own names do not fit them.
    """
    check_is_safetensors(folder)
    tensors = stored_tensors(folder)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    check_stored(folder, tensors, config=config)
    check_targets(recipe, shapes)
    note_high_ranks(recipe, shapes, findings=findings)
    if adapter is not None:
        check_fits(adapter, shapes, base=str(folder))
    return sum(prod(shape) for shape in shapes.values()), embedding_rows(shapes)


def _check_rows(tokenizer: Any, *, num_rows: int, base: str, findings: Findings) -> None:
    unused = check_tokenizer_fits(tokenizer, num_rows=num_rows, where=f"base: {base}")
    if unused:
        names = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
        findings.notes.append(f"base: special tokens without an embedding row, which nothing here writes: {names}")


def _replaced(recipe: Recipe, *, num_new: int) -> str:
    unknown = f", with {num_new} tokens new to its tokenizer" if num_new else ""
    return f"chat_template: {recipe.chat_template} replaces the base's own{unknown}"


def _no_template(tokenizer: PreTrainedTokenizerBase, *, base: str) -> str:
    known = tokenizer.get_vocab()
    marks = {"llama3": "<|start_header_id|>", "chatml": "<|im_start|>"}
    fitting = next((name for name, mark in marks.items() if mark in known), None)
    hint = f"{fitting}, whose tokens its tokenizer has" if fitting else "llama3, chatml or a Jinja file"
    return f"base: {base} has no chat template of its own - set chat_template: {hint}"


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [other.name for other in path.parent.iterdir() if other.is_dir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f" (near: {', '.join(str(path.parent / name) for name in near)})" if near else ""


def _cached_snapshot(hub_id: str) -> Path | None:
    """Where the hub's local cache holds it; never asks the network."""
    from transformers.utils import cached_file

    try:
        found = cached_file(hub_id, "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found).parent
