"""Prompt groups: one prompt, one or more completions. The unit all three objectives train on."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.chat.tokens import CompletionTokens
from alignloop.records import Strength


@dataclass(frozen=True)
class PromptGroup:
    """One prompt and its completions (DESIGN: packed rows).

    Attributes:
        prompt_ids: the prompt, assistant header included; at least one token.
        completions: SFT one; DPO chosen, rejected; reward two or three; scoring K.
        ranks: one per completion, 0 the best; equal ranks are not compared.
        prompt_loss_mask: flags over prompt_ids for `train_on: all_assistant`; None: nothing in the prompt trains.
        strength: how much better the chosen completion is than the rejected one; None where nobody said.
        reward_gap: by how much its reward is above the rejected one's; None where they were not scored together.
    """

    id: str
    prompt_ids: tuple[int, ...]
    completions: tuple[CompletionTokens, ...]
    ranks: tuple[int, ...]
    prompt_loss_mask: tuple[bool, ...] | None = None
    strength: Strength | None = None
    reward_gap: float | None = None

    def __post_init__(self) -> None:
        assert self.prompt_ids, f"group {self.id}: empty prompt"
        assert self.completions, f"group {self.id}: no completion"
        assert len(self.ranks) == len(self.completions), f"group {self.id}: one rank per completion"

    @property
    def num_tokens(self) -> int:
        """Tokens in a packed row: the prompt once, every completion."""
        return len(self.prompt_ids) + sum(len(c.token_ids) for c in self.completions)

    @property
    def longest(self) -> int:
        """Tokens of the prompt plus longest completion, as in a separate row."""
        return len(self.prompt_ids) + max(len(c.token_ids) for c in self.completions)
