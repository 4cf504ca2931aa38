"""Token ids with what each token is for. Torch-free: the types that cross between chat, packing and training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CompletionTokens:
    """One completion as it follows its prompt: content, then the termination tokens.

    Attributes:
        token_ids: T ids.
        formatting_mask: T flags, True on termination tokens (`<|eot_id|>` and what the template puts after it
            within the turn). The assistant header belongs to the prompt.
    """

    token_ids: tuple[int, ...]
    formatting_mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.formatting_mask), "one flag per token"


@dataclass(frozen=True)
class DialogTokens:
    """A whole dialog with the spans that carry loss.

    Attributes:
        token_ids: T ids, every turn included.
        assistant_spans: half-open (start, end) per assistant turn: content and termination tokens.
        formatting_mask: T flags, True on headers and termination tokens.
    """

    token_ids: tuple[int, ...]
    assistant_spans: tuple[tuple[int, int], ...]
    formatting_mask: tuple[bool, ...]
