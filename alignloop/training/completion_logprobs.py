"""Logprobs of completions under a model, token by token: one prompt, K completions, the prompt computed once.

A plain forward pass, not the engine's: the same bytes whatever the engine has served before, and no weights swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from alignloop.packing.groups import PromptGroup
from alignloop.progress import Progress
from alignloop.training.forward import TokenLogprobs, check_head
from alignloop.training.frozen_pass import frozen_pass
from alignloop.training.models import Dtype, load_policy
from alignloop.training.row_runner import RowRunner


def completion_logprobs(
    groups: Sequence[PromptGroup],
    *,
    checkpoint: Path,
    progress: Progress,
    rows_per_microbatch: int = 16,
    dtype: Dtype = "bfloat16",
) -> list[list[list[float]]]:
    """Natural-log probability of every token of every completion.

    Args:
        groups: N prompts with K completions each (K may differ); ranks are not looked at.
        checkpoint: a causal language model.

    Returns:
        N lists of K lists of T logprobs, formatting tokens included, in order.

    Raises:
        ModelError: no model at the path, no memory for it, or token ids outside its vocabulary.
        TrainingError: no memory for a single row.
    """
    return frozen_pass(
        groups,
        checkpoint=checkpoint,
        load=lambda weights: load_policy(checkpoint, dtype=weights),
        wrap=_token_logprobs,
        read=_logprobs,
        rows_per_microbatch=rows_per_microbatch,
        dtype=dtype,
        progress=progress,
    )


def _token_logprobs(model: PreTrainedModel) -> TokenLogprobs:
    module = TokenLogprobs(model)
    check_head(module)
    return module


def _logprobs(module: TokenLogprobs, groups: Sequence[PromptGroup], runner: RowRunner) -> list[list[list[float]]]:
    found: list[list[list[float]]] = [[[] for _ in group.completions] for group in groups]
    with runner.progress.task("logprobs", total=sum(len(g.completions) for g in groups), unit="completions") as advance:
        for batch, output, numbers in runner.outputs(module, groups):
            owners = list(zip(batch.completion_group.tolist(), batch.completion_number.tolist(), strict=True))
            # A completion's targets stand in the order of its tokens, whatever lies between.
            order = torch.argsort(batch.trained_index, stable=True)
            tokens = zip(batch.completion_index[order].tolist(), output[order].tolist(), strict=True)
            for completion, logprob in tokens:
                group, number = owners[completion]
                found[numbers[group]][number].append(logprob)
            advance(len(owners))
    return found
