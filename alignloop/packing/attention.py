"""Who attends to whom in packed rows. The one place that knows: everything else calls `hidden_states`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alignloop.packing.batch import PADDING_GROUP, RowBatch


def dense_mask(batch: RowBatch, *, isolate: bool = True) -> Tensor:
    """The attention mask of packed rows.

    A token sees an earlier token (or itself) of its own group that is in the prompt or in its own completion.
    Padding sees itself alone: a row of the mask without any True gives NaN.

    Args:
        isolate: False lets a completion see the earlier completions of its group too, as the reward model of
            The Llama 3 Herd of Models (section 4.1.2) did.

    Returns:
        [B, 1, L, L] bool, True where the query (third axis) may see the key (fourth).
    """
    length = batch.input_ids.shape[1]
    pieces, segments = batch.pieces, batch.segments
    seen = (pieces[:, :, None] == pieces[:, None, :]) & (pieces != PADDING_GROUP)[:, None, :]
    if isolate:
        seen &= (segments[:, None, :] == 0) | (segments[:, :, None] == segments[:, None, :])
    seen &= torch.ones(length, length, dtype=torch.bool, device=pieces.device).tril()
    seen |= torch.eye(length, dtype=torch.bool, device=pieces.device)
    return seen[:, None]


def hidden_states(backbone: nn.Module, batch: RowBatch, *, isolate: bool = True) -> Tensor:
    """Last hidden states of a batch of rows.

    Args:
        backbone: a transformers model without its head (`model.base_model`).

    Returns:
        [B * L, D], rows one after another.
    """
    mask = dense_mask(batch, isolate=isolate) if batch.mode == "packed" else (batch.pieces != PADDING_GROUP).long()
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": mask, "use_cache": False}
    if batch.mode == "packed":
        inputs["position_ids"] = batch.position_ids
    hidden: Tensor = backbone(**inputs).last_hidden_state
    return hidden.flatten(0, 1)
