"""The last layer's MLP at the tokens that are read: the others' outputs go nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def last_mlp_at(backbone: Any, at: Tensor) -> Iterator[None]:
    """Run the MLP of the backbone's last layer on the tokens `at` alone; its output is zero elsewhere.

    An MLP sees one token at a time, so outputs and gradients at `at` are what they were. Models without such a layer,
    and those that run layers again in the backward pass (gradient checkpointing), run as they are.

    Args:
        at: [N] flat indices into the B * L tokens of the pass, each once.
    """
    mlp = _last_mlp(backbone)
    if mlp is None or getattr(backbone, "is_gradient_checkpointing", False):
        yield
        return
    shapes: list[torch.Size] = []

    def gather(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        shapes.append(inputs[0].shape)
        return (inputs[0].flatten(0, 1)[at],)

    def scatter(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        shape = shapes.pop()
        whole = output.new_zeros(shape[0] * shape[1], output.shape[-1])
        return whole.index_copy(0, at, output).view(shape)

    handles = mlp.register_forward_pre_hook(gather), mlp.register_forward_hook(scatter)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_mlp(backbone: Any) -> nn.Module | None:
    """The dense MLP of the last layer, by the names transformers gives it; None where there is none."""
    layers = getattr(backbone, "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    return mlp if isinstance(mlp, nn.Module) and type(mlp).__name__.endswith("MLP") else None
