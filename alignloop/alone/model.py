"""The models that commands take: found by name, and refused where they are of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.chat.template_defaults import Value, in_yaml
from alignloop.config.bundled import resolve_base
from alignloop.engines.checkpoint import tensor_shapes, text_config, weight_files
from alignloop.errors import ModelError, UserError
from alignloop.stages.base_files import check_causal

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

CLASSIFIER = "ForSequenceClassification"


def model_folder(checkpoint: str) -> Path:
    """The folder of a model named by its path, or `quickstart` for the bundled base."""
    folder = Path(resolve_base(checkpoint)).expanduser()
    if not folder.is_dir():
        what = "this is a file" if folder.exists() else "no such folder"
        raise ModelError(f"{checkpoint}: {what}; give a Hugging Face model folder, for example <run>/final")
    return folder


def policy_folder(checkpoint: str) -> Path:
    """The folder of a model that writes text; a ModelError where it is of another kind."""
    folder = model_folder(checkpoint)
    check_causal(folder, text_config(folder))
    weight_files(folder)
    return folder


def reward_model_folder(reward_model: str) -> Path:
    """The folder of a reward model, recognised by its config and the names of its weights."""
    folder = model_folder(reward_model)
    names = [str(name) for name in text_config(folder).get("architectures") or []]
    if not any(name.endswith(CLASSIFIER) for name in names):
        found = f"a {names[0]}" if names else "a model of unnamed architecture"
        raise ModelError(
            f"{folder} is {found}, no reward model: give a sequence classifier with one label, for example the "
            "checkpoint that `alignloop stage train_reward` or a run's train_reward stage publishes"
        )
    heads = [shape for name, shape in tensor_shapes(folder).items() if name == "score.weight"]
    if not heads or heads[0][0] != 1:
        found = f"{heads[0][0]} labels" if heads else "no `score.weight`"
        raise ModelError(f"{folder} has {found}: a reward model has a score head with one label")
    return folder


def reward_model_folders(reward_models: str) -> tuple[Path, ...]:
    """The folders of one reward model, or of the members of an ensemble with a comma between."""
    is_one = Path(reward_models).expanduser().is_dir()
    return tuple(reward_model_folder(each) for each in ([reward_models] if is_one else reward_models.split(",")))


def chat_of(folder: Path) -> ChatFormat:
    """A checkpoint's chat format; a ModelError where it has no tokenizer, or no chat template that can be used."""
    from alignloop.chat.load import load_format

    try:
        return load_format(folder)
    except ModelError as error:
        raise ModelError(
            f"{folder}: {str(error).removeprefix(f'{folder}: ')}\n`alignloop stage base --out prepared --input "
            f"base={folder} --input chat_template=llama3` writes a copy with a chat template: prepared/checkpoint"
        ) from error


def require_kwargs(wanted: Mapping[str, Value], *, known: Mapping[str, Value], folder: Path) -> None:
    """Raise a UserError where a recipe's `chat_template_kwargs` are not those of the checkpoint's template.

    A base that was not prepared has none.
    """
    if all(key in known and known[key] == value for key, value in wanted.items()):
        return
    raise UserError(
        f"chat_template_kwargs: the recipe says {in_yaml(wanted)}, and the chat template of {folder} is rendered with "
        f"{in_yaml(known) if known else 'none'}\n`alignloop stage base --config RECIPE --out prepared --input "
        f"base={folder}` writes a copy that is asked as the recipe says: prepared/checkpoint"
    )
