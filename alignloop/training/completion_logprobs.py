"""Logprobs of completions under a model, token by token: one prompt, K completions, the prompt computed once.

A plain forward pass, not the engine's: the same bytes whatever the engine has served before, and no weights swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import auto_row_tokens
from alignloop.progress import Progress
from alignloop.training.forward import TokenLogprobs, backbone_of, check_head
from alignloop.training.memory import loading_memory
from alignloop.training.models import Dtype, check_vocabulary, free_memory, load_policy, pad_token_id_of
from alignloop.training.precision import uses_bfloat16
from alignloop.training.row_runner import RowRunner
from alignloop.training.scoring import split_groups


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
    if not groups:
        return []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bfloat16 = uses_bfloat16(dtype, device=device, progress=progress)
    weights = torch.bfloat16 if bfloat16 and device.type != "cpu" else torch.float32
    with loading_memory(checkpoint, dtype=weights, device=device, remedy=""):
        model = load_policy(checkpoint, dtype=weights)
        module = TokenLogprobs(model).to(device)
    check_vocabulary(model, groups, checkpoint=checkpoint)
    check_head(module)
    longest = max(group.longest for group in groups)
    row_tokens = auto_row_tokens(longest)
    runner = RowRunner(
        mode=choose_layout(backbone_of(module.model), longest=longest, progress=progress),
        row_tokens=row_tokens,
        rows=rows_per_microbatch,
        pad_token_id=pad_token_id_of(model),
        device=device,
        bfloat16=bfloat16,
        progress=progress,
    )
    try:
        # A prompt with all its completions may be many times a row: it never takes more memory than the microbatch.
        pieces = split_groups(groups, capacity=rows_per_microbatch * row_tokens)
        found = iter(_logprobs(module, [piece for own in pieces for piece in own], runner=runner))
        return [[logprobs for _ in own for logprobs in next(found)] for own in pieces]
    finally:
        del model, module
        if device.type != "cpu":
            # On a CPU the weights go with their last name; a whole collection takes longer than a small model's pass.
            free_memory()


def _logprobs(module: TokenLogprobs, groups: Sequence[PromptGroup], *, runner: RowRunner) -> list[list[list[float]]]:
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
