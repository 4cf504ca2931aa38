"""Logprobs of packed completions equal those of each completion in a row of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignloop.chat.tokens import CompletionTokens
from alignloop.errors import ModelError
from alignloop.packing.groups import PromptGroup
from alignloop.progress import QuietProgress
from alignloop.training.completion_logprobs import completion_logprobs


def group(name: str, prompt: tuple[int, ...], *completions: tuple[int, ...]) -> PromptGroup:
    # The last token of each is formatting: it has its logprob all the same.
    tokens = tuple(CompletionTokens(ids, (False,) * (len(ids) - 1) + (True,)) for ids in completions)
    return PromptGroup(name, prompt, tokens, tuple(range(len(tokens))))


GROUPS = [
    group("a", (5, 6, 7), (8, 9, 1), (10, 1), (11, 12, 13, 14, 1)),
    group("b", (20,), (21, 1)),
    group("c", (30, 31, 32, 33, 34, 35), (36, 37, 1), (36, 38, 39, 1)),
]


@pytest.mark.parametrize("rows_per_microbatch", [1, 16])
def test_equal_to_separate_rows(policy: Path, rows_per_microbatch: int) -> None:
    found = completion_logprobs(
        GROUPS,
        checkpoint=policy,
        progress=QuietProgress(),
        rows_per_microbatch=rows_per_microbatch,
        dtype="float32",
    )
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    for own, each in zip(found, GROUPS, strict=True):
        for logprobs, completion in zip(own, each.completions, strict=True):
            row = torch.tensor([each.prompt_ids + completion.token_ids])
            with torch.no_grad():
                table = model(row).logits[0].log_softmax(-1)
            start = len(each.prompt_ids)
            expected = [table[start - 1 + k, token].item() for k, token in enumerate(completion.token_ids)]
            assert logprobs == pytest.approx(expected, abs=1e-5)


def test_no_group_no_model(tmp_path: Path) -> None:
    assert completion_logprobs([], checkpoint=tmp_path / "nothing", progress=QuietProgress()) == []
    with pytest.raises(ModelError, match=r"no config\.json"):
        completion_logprobs(GROUPS, checkpoint=tmp_path / "nothing", progress=QuietProgress())
