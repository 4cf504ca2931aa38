"""A checkpoint as plain transformers reads it: what the fallback engine serves and the canary compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignloop.engines.checkpoint import num_parameters, weight_files
from alignloop.errors import ModelError

_LARGE_MODEL = 2_000_000_000
"""Above this many parameters weights that are not stored in float32 are not widened to it, to halve their memory."""


def plain_model(checkpoint: Path, *, dtype: str) -> Any:
    """The causal language model in `checkpoint`, on the CPU, for one forward pass in float32.

    Weights stored in float32, as all that are trained here are, stay in the file they are mapped from and are rounded
    where they are used: no second copy of the model is made.

    Args:
        dtype: weights are rounded to it.

    Raises:
        ModelError: the checkpoint lacks weights.
    """
    import torch

    if _stored_dtypes(checkpoint) != {"F32"}:
        model = load_plain(checkpoint, dtype=dtype)
        return model.float() if num_parameters(checkpoint) <= _LARGE_MODEL else model
    model = load_plain(checkpoint, dtype="float32")
    if dtype != "float32":
        rounding = _Rounding(getattr(torch, dtype))
        for module in model.modules():
            rounding.attach(module)
    return model


class _Rounding:
    """Rounds a module's own weights while it runs, in memory that the next module uses again.

    Fresh memory for each would take longer than the arithmetic.
    """

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._narrow: Any = None
        self._wide: Any = None

    def attach(self, module: Any) -> None:
        import torch

        own = dict(module.named_parameters(recurse=False))
        if type(module) is torch.nn.Embedding:  # rounding the rows that were looked up is the same
            module.register_forward_hook(lambda _module, _inputs, rows: rows.to(self._dtype).float())
        elif own:
            stored: dict[str, Any] = {}
            # Children of a module that runs would overwrite what is being used.
            alone = len(own) == 1 and next(module.children(), None) is None

            def before(*_: object) -> None:
                for name, parameter in own.items():
                    stored[name] = parameter.data
                    parameter.data = self._rounded(parameter.data) if alone else self._rounded_anew(parameter.data)

            def after(*_: object) -> None:
                for name, parameter in own.items():
                    parameter.data = stored.pop(name)

            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)

    def _rounded_anew(self, weights: Any) -> Any:
        return weights.to(self._dtype).float()

    def _rounded(self, weights: Any) -> Any:
        import torch

        size = weights.numel()
        if self._wide is None or self._wide.numel() < size:
            self._narrow, self._wide = torch.empty(size, dtype=self._dtype), torch.empty(size)
        narrow, wide = self._narrow[:size].view(weights.shape), self._wide[:size].view(weights.shape)
        return wide.copy_(narrow.copy_(weights))


def _stored_dtypes(checkpoint: Path) -> set[str]:
    """As safetensors names them: F32, BF16, ..."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in weight_files(checkpoint):
        with safe_open(str(file), framework="pt") as tensors:
            found.update(tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118 - no dict
    return found


def load_plain(checkpoint: Path, *, dtype: str) -> Any:
    """The causal language model in `checkpoint`, on the CPU.

    Args:
        dtype: its weights are rounded to it.

    Raises:
        ModelError: the checkpoint lacks weights, which transformers would fill with random numbers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{checkpoint}: lacks {len(missing)} weights of a {type(model).__name__}, {missing[0]} first: save the "
            "model again, or give the directory of the language model (a reward model has no language-model head)"
        )
    return model.eval()
