"""The base model a run starts from: found, given a chat template if it has none, and able to stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignloop.chat.load import prepare_tokenizer
from alignloop.chat.template_defaults import Value
from alignloop.chat.templates import load_template
from alignloop.engines.checkpoint import stored_tensors, text_config
from alignloop.errors import ModelError
from alignloop.training.adapter_files import base_of, has_tokenizer, is_adapter
from alignloop.training.adapters import merge_into_base
from alignloop.training.base_weights import (
    check_finite,
    check_is_safetensors,
    check_not_quantized,
    check_tokenizer_fits,
    embedding_rows,
)
from alignloop.training.checkpoints import GENERATION_CONFIG, copy_companions, copy_files, save_model, written_aside
from alignloop.training.model import check_complete, quiet_transformers
from alignloop.training.new_tokens import NewToken, OwnTokens, ensure_pad, find_new_tokens, save_new_tokens

NEW_ROWS_SPREAD = 0.1
NEW_ROWS_SEED = 0
"""One for all runs: a base is prepared once and is the same in every run that starts from it."""
COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".safetensors")


@dataclass(frozen=True)
class PreparedBase:
    """A base that every stage can use, in a complete Hugging Face directory.

    Attributes:
        had_template: whether the base brought a chat template of its own, or the tokens of the one that replaces it
            (and so, most likely, chat behaviour).
        template_kwargs: what its template is rendered with beside the messages.
    """

    path: Path
    had_template: bool
    template_kwargs: Mapping[str, Value]


def prepare_base(
    base: str, *, chat_template: str | None, out_dir: Path, template_kwargs: Mapping[str, Value] | None = None
) -> PreparedBase:
    """Make a complete directory of a base model.

    A LoRA adapter is merged into its own base first, in float32. A base keeps its chat template unless one is named; it
    gets the special tokens that it lacks. Rows of tokens it was never trained on start near the mean of the others;
    `new_tokens.json` says which those are. Both end up with a pad token that is not an end token, and with a generation
    config whose eos holds the end-of-turn token: a model whose turn end is not its eos never stops.

    Args:
        base: a directory or a hub id.
        chat_template: `llama3`, `chatml`, a template that TRL bundles or a Jinja file; None: the base's own.
        template_kwargs: what the template is rendered with; written at its head.

    Raises:
        ModelError: no model or tokenizer there, an adapter that does not fit its base, a tokenizer that does not fit
            the embedding, no template at all, or one that cannot be used.
    """
    source = _locate(base)
    with _merged(source, beside=out_dir) if is_adapter(source) else nullcontext(source) as whole:
        return _prepare(whole, base=base, chat_template=chat_template, kwargs=template_kwargs or {}, out_dir=out_dir)


def _prepare(
    source: Path, *, base: str, chat_template: str | None, kwargs: Mapping[str, Value], out_dir: Path
) -> PreparedBase:
    tokenizer = _load_tokenizer(source, base=base)
    tensors = stored_tensors(source)
    check_not_quantized(source, tensors, config=text_config(source))
    check_complete(source)
    check_finite(tensors)
    if (num_rows := embedding_rows({name: tensor.shape for name, tensor in tensors.items()})) is not None:
        check_tokenizer_fits(tokenizer, num_rows=num_rows, where=base)
    brought = tokenizer.chat_template
    if not brought and chat_template is None:
        raise ModelError(
            f"{base}: its tokenizer has no chat template. Set `chat_template: llama3` (or chatml, or a Jinja file)"
        )
    template = None if chat_template is None else load_template(chat_template)
    own, old_eos = OwnTokens.of(tokenizer), _ids(tokenizer.eos_token_id)
    chat = prepare_tokenizer(tokenizer, template=template, kwargs=kwargs, name=base)
    had_template = bool(brought) and len(tokenizer) == own.num
    changed = ensure_pad(tokenizer, end_ids=(own.eos, tokenizer.eos_token_id)) or template is not None
    changed = changed or tokenizer.chat_template != brought
    stop_ids = list(dict.fromkeys((*chat.stop_token_ids, *_ids(tokenizer.eos_token_id), *old_eos)))
    new = find_new_tokens(tokenizer, chat, own=own, tensors=tensors)
    with written_aside(out_dir) as partial:
        if any(token.starts_anew for token in new):
            _save_with_new_rows(source, partial, base=base, new=new)
        else:
            copy_files(source, partial, *(f"*{suffix}" for suffix in COPIED_SUFFIXES))
        save_new_tokens(partial, new)
        if changed or not (partial / "tokenizer_config.json").is_file():
            tokenizer.save_pretrained(partial)
        _set_config(partial, tokenizer, stop_ids)
    return PreparedBase(out_dir, had_template, chat.template_kwargs)


def _locate(base: str) -> Path:
    """The directory of a local base, or of the hub's snapshot of it."""
    path = Path(base).expanduser()
    if path.is_dir():
        return _checked(path)
    if path.exists() or base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ModelError(
            f"{base}: no such directory. `base` is a Hugging Face model directory or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = [f"*{suffix}" for suffix in COPIED_SUFFIXES]
        path = Path(snapshot_download(base, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{base}: no such directory, and the hub did not give a model of that id ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the spelling, or download it and give its path"
        ) from error
    return _checked(path)


@contextmanager
def _merged(adapter: Path, *, beside: Path) -> Iterator[Path]:
    """A directory, until the block ends, of an adapter merged into its base. Its own tokenizer comes along."""
    base = base_of(adapter)
    folder = _locate(base) if isinstance(base, str) else _checked(base)
    model = merge_into_base(adapter, folder)
    target = beside.with_name(beside.name + ".merged")
    try:
        with written_aside(target) as partial:
            save_model(model, partial)
            copy_companions(adapter if has_tokenizer(adapter) else folder, partial, generation=False)
            copy_files(folder, partial, GENERATION_CONFIG)
        del model
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _checked(path: Path) -> Path:
    """A folder that holds a model, or an adapter."""
    if is_adapter(path):
        return path
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: holds no model: there is no config.json. Give a Hugging Face model directory")
    check_is_safetensors(path)
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{path}: holds no weights: there is no *.safetensors file beside config.json")
    return path


def _load_tokenizer(source: Path, *, base: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{base}: its tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{base}: its tokenizer has no fast form (tokenizer.json), which alignloop needs")
    return tokenizer


def _save_with_new_rows(source: Path, target: Path, *, base: str, new: Sequence[NewToken]) -> None:
    """Save the model with an embedding row for every token, those of new tokens drawn.

    A new row is the mean of the others, which changes least what the model predicts, and a tenth of their spread about
    it: rows that start equal get equal gradients where they stand in equal positions.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{base}: no causal language model could be loaded: {error}") from error
    drawn = [token.id for token in new if token.starts_anew]
    num_rows = model.get_input_embeddings().weight.shape[0]
    num_known = min([num_rows, *(token.id for token in new if token.state == "added")])
    if max(drawn) >= num_rows:
        # Without mean_resizing's random draw: the new rows are set below.
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(max(drawn) + 1, mean_resizing=False)
    generator = torch.Generator().manual_seed(NEW_ROWS_SEED)
    known = sorted(set(range(num_known)) - set(drawn))
    with torch.no_grad():
        matrices = (model.get_input_embeddings(), model.get_output_embeddings())
        for weight in {id(part.weight): part.weight for part in matrices if part is not None}.values():
            spread, mean = torch.std_mean(weight[known].float(), dim=0)
            noise = torch.randn(len(drawn), len(mean), generator=generator)
            weight[drawn] = (mean + NEW_ROWS_SPREAD * spread * noise).to(weight.dtype)
    save_model(model, target)
    copy_files(source, target, GENERATION_CONFIG)


def _set_config(directory: Path, tokenizer: Any, stop_ids: list[int]) -> None:
    """eos and pad where engines look for them: the generation config and the model's config."""
    values: dict[str, Any] = {"eos_token_id": stop_ids, "pad_token_id": tokenizer.pad_token_id}
    if tokenizer.bos_token_id is not None:
        values["bos_token_id"] = tokenizer.bos_token_id
    for path in (directory / GENERATION_CONFIG, directory / "config.json"):
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(content | values, indent=2) + "\n", encoding="utf-8")


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)
