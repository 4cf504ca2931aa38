"""Whether a packed row equals separate rows on this model: checked once, when it is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.attention import hidden_states, use_own_attention
from alignloop.packing.batch import collate
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import LayoutMode, pack
from alignloop.progress import Progress

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference between hidden states, as a share of the largest hidden state."""

WINDOW_FIELDS = ("sliding_window", "attention_chunk_size")


def choose_layout(backbone: Any, *, longest: int, progress: Progress) -> LayoutMode:
    """`packed` where that is exact on this model, else `separate`, with a line that says why.

    `backbone` has no head; `longest` is in tokens, of a prompt + completion.
    """
    config = backbone.config.get_text_config()
    reason = _window_reason(config, longest=longest) or _layer_reason(config) or _difference_reason(backbone)
    if reason is None:
        return "packed"
    use_own_attention(backbone)
    progress.say(f"  packed rows are not exact on this model ({reason}): training on separate rows, which are slower")
    return "separate"


def packed_difference(backbone: Any) -> float:
    """Largest difference of packed from separate hidden states at any completion token of small made-up groups.

    A share of the largest hidden state; NaN where one is not finite.
    """
    groups = _made_up_groups(int(backbone.get_input_embeddings().weight.shape[0]))
    packed = _completion_states(backbone, groups, mode="packed")
    separate = _completion_states(backbone, groups, mode="separate")
    return float((packed - separate).abs().max() / separate.abs().max())


def _window_reason(config: Any, *, longest: int) -> str | None:
    """Packed rows know no window: they are exact only where nothing is longer than it."""
    for name in WINDOW_FIELDS:
        window = getattr(config, name, None)
        if isinstance(window, int) and longest > window:
            return f"its {name} is {window} tokens and the longest row has {longest}"
    return None


def _layer_reason(config: Any) -> str | None:
    """Convolutions and recurrences carry one completion into the next, by little where weights are untrained."""
    others = sorted({kind for kind in getattr(config, "layer_types", None) or () if "attention" not in kind})
    return (
        f"it has {', '.join(others)} layers, which see the tokens before them whoever they belong to"
        if others
        else None
    )


def _difference_reason(backbone: Any) -> str | None:
    try:
        difference = packed_difference(backbone)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        if is_out_of_memory(error):
            raise
        return f"it does not take them: {str(error).splitlines()[0][:120]}"
    tolerance = TOLERANCE.get(next(backbone.parameters()).dtype, 1e-3)
    return None if difference <= tolerance else f"hidden states differ by {difference:.1%}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on an accelerator or on the CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def _made_up_groups(vocab_size: int) -> list[PromptGroup]:
    """Two groups that end up in one row, prompts of 6 and 1 tokens, completions of 2 to 5."""
    draw = np.random.default_rng(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(int(token) for token in draw.integers(0, vocab_size, count))

    def group(name: str, prompt: int, lengths: tuple[int, ...]) -> PromptGroup:
        completions = tuple(CompletionTokens(tokens(n), (False,) * n) for n in lengths)
        return PromptGroup(name, tokens(prompt), completions, tuple(range(len(lengths))))

    return [group("a", 6, (3, 5, 2)), group("b", 1, (4, 2))]


@torch.no_grad()
def _completion_states(backbone: nn.Module, groups: list[PromptGroup], *, mode: LayoutMode) -> torch.Tensor:
    """Hidden states at the trained and last positions of every completion, in group order."""
    device = next(backbone.parameters()).device
    batch = collate(pack(groups, row_tokens=64, mode=mode), pad_token_id=0, mode=mode).to(device)
    owner = batch.completion_group * len(batch.ranks) + batch.completion_number
    order = torch.cat([owner[batch.completion_index], owner]).argsort(stable=True)
    at = torch.cat([batch.trained_index, batch.last_index])[order]
    states = hidden_states(backbone, batch, at=at, reads="completions")
    last = hidden_states(backbone, batch, at=batch.last_index[owner.argsort()], reads="last tokens")
    return torch.cat([states, last]).float()
