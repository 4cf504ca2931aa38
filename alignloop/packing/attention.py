"""Who attends to whom in packed rows: by `grouped_attention` on a CPU, by FlexAttention elsewhere.

Both enter the model by transformers' attention registry, and compute nothing between tokens that do not see each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignloop.packing.batch import PADDING_GROUP, RowBatch
from alignloop.packing.grouped_attention import GroupedAttention, KernelCall, Reads, attention_parts

GROUPED = "prompt_groups"
FLEX = "flex_attention"
PROJECTIONS = ("q_proj", "o_proj")
"""Into queries, and out of attention: needed at tokens that are read. Keys and values are needed at every token."""


@dataclass(frozen=True)
class RowAttention:
    """How the layers attend in a packed row; `last_parts` are the last layer's, whose output is read at few tokens."""

    parts: tuple[KernelCall, ...]
    last_parts: tuple[KernelCall, ...]


def hidden_states(backbone: Any, batch: RowBatch, *, at: Tensor, reads: Reads = "everything") -> Tensor:
    """[N, D] last hidden states of a batch of rows at the flat indices `at` [N] (into B * L), each once.

    What is not read is not computed where that can be left out: in the last layer's attention, projections and MLP.

    Args:
        backbone: a transformers model without its head (`model.base_model`).
        reads: the kind of tokens that `at` holds.

    Raises:
        NotImplementedError: the architecture does not take packed rows.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    isolate = batch.mode != "joined"
    if batch.mode == "separate":
        use_own_attention(backbone)
        inputs["attention_mask"] = (batch.pieces != PADDING_GROUP).long()
    elif batch.input_ids.device.type == "cpu":
        use_attention(backbone, GROUPED)
        parts = attention_parts(batch.spans, isolate=isolate)
        last = attention_parts(batch.spans, isolate=isolate, reads=reads)
        inputs |= {"position_ids": batch.position_ids, "prompt_groups": RowAttention(parts, last)}
        # A mask of four axes is passed on as it is: without one transformers would build [L, L], to no use here.
        inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    else:
        use_attention(backbone, FLEX)
        inputs |= {"position_ids": batch.position_ids, "attention_mask": block_mask(batch, isolate=isolate)}
    # Separate rows are what is always right: they run the model as it is.
    with last_layer_at(backbone, at) if batch.mode != "separate" else nullcontext():
        hidden: Tensor = backbone(**inputs).last_hidden_state
    return hidden.flatten(0, 1)[at]


@contextmanager
def last_layer_at(backbone: Any, at: Tensor) -> Iterator[None]:
    """Run the token-wise parts of the backbone's last layer on the tokens `at` alone; elsewhere they give zero.

    Its output at other tokens is not used. MLP and projections see one token at a time, so outputs and gradients at
    `at` do not change. Models without parts of these names run as they are, and so do those that run layers again in
    the backward pass (gradient checkpointing).
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
    """Dense MLP and projections of the last layer, by transformers' names; as many as there are."""
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return []
    mlp, attention = getattr(layers[-1], "mlp", None), getattr(layers[-1], "self_attn", None)
    found = [mlp, *(getattr(attention, name, None) for name in PROJECTIONS)]
    return [part for part in found if isinstance(part, nn.Module) and _is_linear(part)]


def _is_linear(module: nn.Module) -> bool:
    """Whether all weights are linear layers': routers and experts treat tokens in other ways."""
    holders = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return bool(holders) and all(isinstance(part, nn.Linear) for part in holders)


def use_attention(backbone: Any, name: str) -> None:
    """Set the attention of a model; it stays, because gradient checkpointing runs layers again in the backward pass.

    Raises:
        NotImplementedError: the architecture does not use transformers' attention registry.
    """
    if backbone.config._attn_implementation == name:
        return
    backbone.set_attn_implementation(name)
    if backbone.config._attn_implementation != name:
        raise NotImplementedError(f"{type(backbone).__name__} does not take its attention from transformers' registry")


def block_mask(batch: RowBatch, *, isolate: bool = True) -> BlockMask:
    """The mask of packed rows for FlexAttention, which skips blocks of tokens that do not see each other.

    A token sees an earlier token (or itself) of its own group that is in the prompt or in its own completion.
    Padding sees itself alone: a row of a mask without any True gives NaN.
    """
    pieces, segments = batch.pieces, batch.segments

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (pieces[b, query] == pieces[b, key]) & (pieces[b, key] != PADDING_GROUP)
        if isolate:
            same = same & ((segments[b, key] == 0) | (segments[b, key] == segments[b, query]))
        return (same & (query >= key)) | (query == key)

    rows, length = pieces.shape
    device = pieces.device
    # Compiled, the [L, L] mask from which blocks are found is never written out.
    return create_block_mask(sees, rows, None, length, length, device=device, _compile=device.type == "cuda")


def use_own_attention(backbone: Any) -> None:
    """Set SDPA for plain rows; eager where there is none, or scores are capped (Gemma 2), which SDPA cannot do."""
    capped = getattr(backbone.config.get_text_config(), "attn_logit_softcapping", None)
    if capped or backbone.config._attn_implementation in (GROUPED, FLEX):
        use_attention(backbone, "eager" if capped or not backbone._supports_sdpa else "sdpa")


def _grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    prompt_groups: RowAttention | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, Hkv, T, D] -> [1, T, H, D].

    Without prompt groups this is SDPA. A sliding window in kwargs is ignored: packed rows are used only where nothing
    is longer than the window.
    """
    if prompt_groups is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **kwargs
        )
        return plain
    if softcap is not None or s_aux is not None or position_bias is not None:
        raise NotImplementedError(f"{type(module).__name__} changes its attention scores")
    # Under autocast positions are turned in float32, values stay bfloat16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    num_tokens, head_dim = query.shape[2:]
    heads = key.shape[1]
    scale = head_dim**-0.5 if scaling is None else scaling
    by_key_head = query.view(heads, -1, num_tokens, head_dim).transpose(0, 1)
    config: Any = module.config
    is_last = getattr(module, "layer_idx", None) == config.num_hidden_layers - 1
    parts = prompt_groups.last_parts if is_last else prompt_groups.parts
    out = GroupedAttention.apply(by_key_head, key[0], value[0], parts, scale)  # type: ignore[no-untyped-call]
    return out.permute(2, 1, 0, 3).reshape(1, num_tokens, -1, head_dim), None


AttentionInterface.register(GROUPED, _grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
