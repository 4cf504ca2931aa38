"""The recipe's adapters, held against the machine and the names in the weights' headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignloop.config import Recipe
from alignloop.config.training import LoraConfig
from alignloop.errors import ModelError
from alignloop.stages.facts import Findings
from alignloop.training.base_weights import INPUT_EMBEDDING, check_can_quantize
from alignloop.training.new_tokens import NewToken, State

_HEADS = ("lm_head", "embed_out")
_STATES: dict[State, str] = {
    "added": "added; their rows are drawn, near the mean of the others",
    "empty": "never trained; their rows are drawn anew, near the mean of the others",
    "weak": "hardly trained, by their short rows",
}


def check_machine(recipe: Recipe, *, findings: Findings) -> None:
    """4-bit weights need bitsandbytes and a GPU, and are not sharded."""
    quantized = [stage for stage, lora in _loras(recipe).items() if lora.quantize != "none"]
    if not quantized:
        return
    where = ", ".join(f"{stage}.lora.quantize" for stage in quantized)
    with findings.collecting():
        check_can_quantize(where)
    if recipe.training.num_processes > 1 and recipe.training.accelerate == "fsdp2":
        findings.problems.append(
            f"{where}: nf4 weights are not sharded over processes - set training.accelerate: ddp, or leave quantize out"
        )


def check_targets(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Every name in `target_modules` is that of a matrix in the weights, beside embedding and output head.

    Raises:
        ModelError: one is not; it names those there are.
    """
    layers = _linear_layers(shapes)
    for stage, lora in _loras(recipe).items():
        names = () if lora.target_modules == "all-linear" else lora.target_modules
        for target in names:
            if not any(_is_called(name, target) for name in layers):
                short = sorted({name.rpartition(".")[2] for name in layers})
                raise ModelError(
                    f"{stage}.lora.target_modules: the base has no linear layer {target!r}; it has {', '.join(short)} "
                    "(all-linear: every one of them)"
                )


def note_high_ranks(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], *, findings: Findings) -> None:
    """A note for a stage whose adapter has a higher rank than a layer it adapts: the product cannot have it."""
    layers = _linear_layers(shapes)
    for stage, lora in _loras(recipe).items():
        targets = None if lora.target_modules == "all-linear" else lora.target_modules
        low = {
            name: shape
            for name, shape in layers.items()
            if lora.rank > min(shape) and (targets is None or any(_is_called(name, target) for target in targets))
        }
        if low:
            name, shape = min(low.items(), key=lambda item: min(item[1]))
            others = f" (and of {len(low) - 1} more)" if len(low) > 1 else ""
            findings.notes.append(
                f"{stage}.lora.rank is {lora.rank}, above the smaller side of {name}, {shape[0]} x {shape[1]}{others}: "
                f"what is above {min(shape)} costs memory and adds nothing there"
            )


def note_new_tokens(recipe: Recipe, new: Sequence[NewToken], *, findings: Findings) -> None:
    """A note of the tokens that the base was never trained on, and of what becomes of their rows."""
    if not new:
        return
    parts = [
        f"{', '.join(token.token for token in new if token.state == state)} ({words})"
        for state, words in _STATES.items()
        if any(token.state == state for token in new)
    ]
    count = "1 token is" if len(new) == 1 else f"{len(new)} tokens are"
    stages = ", ".join(_loras(recipe))
    train = f"; they train beside the adapters of {stages}" if stages else ""
    findings.notes.append(f"base: {count} new to it: {', '.join(parts)}{train}")


def _linear_layers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Matrices by the names of their layers, but embedding and output head."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if len(shape) == 2 and not name.removesuffix(".weight").endswith(_HEADS) and not INPUT_EMBEDDING.search(name)
    }


def _is_called(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _loras(recipe: Recipe) -> dict[str, LoraConfig]:
    stages = {"reward": recipe.reward, "sft": recipe.sft, "dpo": recipe.dpo}
    return {name: stage.lora for name, stage in stages.items() if stage.lora is not None}
