"""The last layer at the tokens that are read: what it makes of the others goes nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "o_proj")
"""Of attention: into queries, and out of it. Keys and values are wanted of every token."""


@contextmanager
def last_layer_at(backbone: Any, at: Tensor) -> Iterator[None]:
    """Run the token-wise parts of the backbone's last layer on the tokens `at` alone; elsewhere they give zero.

    MLP and projections see one token at a time, so outputs and gradients at `at` are what they were. Models without
    parts of these names run as they are, and so do those that run layers again in the backward pass (gradient
    checkpointing).

    Args:
        at: [N] flat indices into the B * L tokens of the pass, each once.
    """
    with ExitStack() as stack:
        if not getattr(backbone, "is_gradient_checkpointing", False):
            for module in _token_wise_parts(backbone):
                stack.enter_context(_run_at(module, at))
        yield


@contextmanager
def _run_at(module: nn.Module, at: Tensor) -> Iterator[None]:
    shapes: list[torch.Size] = []

    def gather(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        shapes.append(inputs[0].shape)
        return (inputs[0].flatten(0, 1)[at][None],)

    def scatter(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        shape = shapes.pop()
        whole = output.new_zeros(shape[0] * shape[1], output.shape[-1])
        return whole.index_copy(0, at, output[0]).view(*shape[:2], -1)

    handles = module.register_forward_pre_hook(gather), module.register_forward_hook(scatter)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _token_wise_parts(backbone: Any) -> list[nn.Module]:
    """Dense MLP and projections of the last layer, by the names transformers gives them; as many as there are."""
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return []
    mlp, attention = getattr(layers[-1], "mlp", None), getattr(layers[-1], "self_attn", None)
    found = [mlp, *(getattr(attention, name, None) for name in PROJECTIONS)]
    return [part for part in found if isinstance(part, nn.Module) and _is_linear(part)]


def _is_linear(module: nn.Module) -> bool:
    """Whether all weights are linear layers': routers and experts want to see their tokens in ways of their own."""
    holders = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return bool(holders) and all(isinstance(part, nn.Linear) for part in holders)
