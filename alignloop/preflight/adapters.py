"""The recipe's adapters, held against the machine and the names in the weights' headers."""

from __future__ import annotations

from collections.abc import Mapping

from alignloop.config import Recipe
from alignloop.config.recipe import LoraConfig
from alignloop.errors import ModelError
from alignloop.preflight.findings import Findings
from alignloop.training.quantization import check_can_quantize
from alignloop.training.vocabulary import INPUT_EMBEDDING

_HEADS = ("lm_head", "embed_out")


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
    matrices = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
    layers = [name for name in matrices if not name.endswith(_HEADS) and not INPUT_EMBEDDING.search(f"{name}.weight")]
    for stage, lora in _loras(recipe).items():
        names = () if lora.target_modules == "all-linear" else lora.target_modules
        for target in names:
            if not any(f".{name}".endswith(f".{target}") for name in layers):
                short = sorted({name.rpartition(".")[2] for name in layers})
                raise ModelError(
                    f"{stage}.lora.target_modules: the base has no linear layer {target!r}; it has {', '.join(short)} "
                    "(all-linear: every one of them)"
                )


def _loras(recipe: Recipe) -> dict[str, LoraConfig]:
    stages = {"reward": recipe.reward, "sft": recipe.sft, "dpo": recipe.dpo}
    return {name: stage.lora for name, stage in stages.items() if stage.lora is not None}
