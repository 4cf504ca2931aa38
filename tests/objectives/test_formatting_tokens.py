"""Prompt groups -> rows -> a model -> DPO: what reaches formatting tokens, and which tokens SFT trains."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignloop.chat.format import ChatFormat
from alignloop.chat.tokens import CompletionTokens
from alignloop.config.training import LOSSES_WITH_MARGIN, DpoConfig, DpoLoss
from alignloop.objectives.dpo import dpo_loss
from alignloop.objectives.output_head import token_logprobs
from alignloop.packing.batch import RowBatch, collate
from alignloop.packing.build import TrainOn, sft_groups
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import LayoutMode, pack
from alignloop.records import Message, SftRow, Source
from alignloop.training.model import TokenLogprobs
from alignloop.training.objectives import DpoStep, count_step, dpo_margins, sft_step

END, NEWLINE = 1, 2


def completion(*content: int) -> CompletionTokens:
    """Two termination tokens, as templates that end a turn with a token and a newline have."""
    return CompletionTokens((*content, END, NEWLINE), (False,) * len(content) + (True, True))


GROUPS = [
    PromptGroup("a", (5, 6, 7), (completion(8, 9, 10), completion(11, 12)), (0, 1)),
    PromptGroup("b", (13,), (completion(14), completion(15, 16, 17, 18)), (0, 1)),
]


def tiny_llama() -> Any:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def dpo_step(**changes: Any) -> DpoStep:
    config = DpoConfig(**{"nll_coefficient": 0.0} | changes)
    return DpoStep([(-9.0, -8.0), (-5.0, -12.0)] if config.has_reference else None, config)


def rows(groups: list[PromptGroup], mode: LayoutMode = "packed") -> RowBatch:
    return collate(pack(groups, row_tokens=32, mode=mode), pad_token_id=0, mode=mode)


def gradients_at_targets(step: DpoStep) -> tuple[RowBatch, Tensor, Tensor]:
    """Of the loss, through a model: [T] by the logprobs, and [T, D] by the states that the output head reads."""
    batch, module = rows(GROUPS), TokenLogprobs(tiny_llama())
    states: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    module.model.base_model.register_forward_hook(keep)
    logprobs = module(batch)
    logprobs.retain_grad()
    loss, _ = step(logprobs, batch=batch, counts=count_step(GROUPS), group_numbers=range(len(GROUPS)))
    loss.backward()
    assert logprobs.grad is not None
    assert states[0].grad is not None
    return batch, logprobs.grad, states[0].grad.flatten(0, 1)[batch.trained_index]


@pytest.mark.parametrize("loss", get_args(DpoLoss))
def test_the_dpo_term_leaves_formatting_tokens_exactly_alone(loss: DpoLoss) -> None:
    batch, by_logprobs, by_states = gradients_at_targets(dpo_step(loss=loss))
    formatting = batch.formatting_mask
    assert int(formatting.sum()) == 8
    assert torch.equal(by_logprobs[formatting], torch.zeros(8))
    assert torch.equal(by_states[formatting], torch.zeros(8, 16))
    assert (by_logprobs[~formatting] != 0).all()
    assert (by_states[~formatting].abs().sum(1) > 0).all()


@pytest.mark.parametrize("loss", get_args(DpoLoss))
def test_packed_rows_are_separate_rows_under_every_loss(loss: DpoLoss) -> None:
    margin: Any = {"margin": "reward"} if loss in LOSSES_WITH_MARGIN else {}
    # Margins of two groups in another order than their numbers in the data, which the batch's order goes by.
    step = replace(dpo_step(loss=loss, **margin), margins=[0.5, 2.0] if margin else None)
    found = []
    modes: tuple[LayoutMode, ...] = ("packed", "separate")
    for mode in modes:
        module = TokenLogprobs(tiny_llama())
        batch = rows(GROUPS[::-1], mode)
        value, metrics = step(module(batch), batch=batch, counts=count_step(GROUPS), group_numbers=[1, 0])
        value.backward()
        gradient = torch.cat([each.grad.flatten() for each in module.parameters() if each.grad is not None])
        found.append((float(value.detach()), {name: float(each) for name, each in metrics.items()}, gradient))
    (packed, metrics, gradient), (separate, other_metrics, other_gradient) = found
    assert packed == pytest.approx(separate, abs=1e-5)
    assert metrics == pytest.approx(other_metrics, abs=1e-5)
    assert float(gradient.norm()) > 1e-3
    torch.testing.assert_close(gradient, other_gradient, atol=1e-5, rtol=1e-4)


def test_margins_are_those_of_their_own_pairs() -> None:
    batch = rows(GROUPS[::-1])
    logprobs = torch.full((len(batch.target_ids),), -1.0)

    def gaps(margins: list[float]) -> float:
        step = DpoStep([(0.0, 0.0), (0.0, 0.0)], DpoConfig(beta=1.0, nll_coefficient=0.0, margin="reward"), margins)
        return float(step(logprobs, batch=batch, counts=count_step(GROUPS), group_numbers=[1, 0])[0])

    # One nat a token: group 0 has -3 against -2 and group 1 -1 against -4, gaps -1 and 3 before their margins.
    expected = (math.log(1 + math.exp(1 + 0.5)) + math.log(1 + math.exp(-3 + 2.0))) / 2
    assert gaps([0.5, 2.0]) == pytest.approx(expected, abs=1e-6)
    assert gaps([2.0, 0.5]) != pytest.approx(expected, abs=1e-2)


def test_margins_of_pairs_by_hand() -> None:
    def margins(config: DpoConfig, **known: Any) -> list[float] | None:
        return dpo_margins([replace(GROUPS[0], **known)], config)

    assert margins(DpoConfig(), strength="better", reward_gap=3.0) is None
    strength = DpoConfig(margin="strength", margin_scale=3.0)
    assert margins(strength, strength="significantly_better") == [3.0]
    assert margins(strength, strength="better", reward_gap=7.0) == [2.0]
    assert margins(strength, reward_gap=7.0) == [0.0]
    reward = DpoConfig(margin="reward", margin_scale=0.5)
    assert margins(reward, reward_gap=3.0, strength="better") == [1.5]
    assert margins(reward, strength="better") == [0.0]
    assert margins(DpoConfig(margin="reward"), reward_gap=3.0) == [3.0]


def test_nll_keeps_the_formatting_tokens_of_the_chosen_completions() -> None:
    batch, by_logprobs, by_states = gradients_at_targets(dpo_step(nll_coefficient=0.2))
    chosen = batch.ranks[batch.completion_index] == 0
    kept, left = batch.formatting_mask & chosen, batch.formatting_mask & ~chosen
    # Chosen tokens, formatting included: 5 of the first pair, 3 of the second: -0.2 / 8 each.
    assert by_logprobs[kept].tolist() == pytest.approx([-0.025] * 4)
    assert (by_states[kept].abs().sum(1) > 0).all()
    assert torch.equal(by_states[left], torch.zeros(4, 16))


def test_without_the_mask_formatting_tokens_count() -> None:
    batch, by_logprobs, _ = gradients_at_targets(dpo_step(mask_formatting_tokens=False))
    assert (by_logprobs[batch.formatting_mask] != 0).all()


def test_masked_logits_have_exactly_no_gradient() -> None:
    # The same from the logits of a plain softmax and from the tiled head: a zero times a finite number.
    batch = rows(GROUPS)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(batch.target_ids), 8, generator=draw)
    weight = torch.randn(20, 8, generator=draw)
    logits = (hidden @ weight.T).requires_grad_()
    hidden.requires_grad_()
    plain = logits.log_softmax(-1).gather(1, batch.target_ids[:, None])[:, 0]
    tiled = token_logprobs(hidden, target_ids=batch.target_ids, head_weight=weight)
    for logprobs, leaf in ((plain, logits), (tiled, hidden)):
        loss, _ = dpo_loss(
            logprobs,
            completion_index=batch.completion_index,
            formatting_mask=batch.formatting_mask,
            chosen=(batch.ranks == 0).nonzero()[:, 0],
            rejected=(batch.ranks == 1).nonzero()[:, 0],
            ref_chosen_logprobs=torch.zeros(2),
            ref_rejected_logprobs=torch.zeros(2),
            nll_coefficient=0.0,
        )
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert torch.equal(gradient[batch.formatting_mask], torch.zeros_like(gradient[batch.formatting_mask]))
        assert (gradient[~batch.formatting_mask].abs().sum(1) > 0).all()


# ---- SFT: the logprob of token k is -k / 10, so that every token of the loss can be told from its value.


def letter_format() -> ChatFormat:
    """A letter is a token: a is 2, b 3, ...; a turn is its content and the end token."""
    from tokenizers import Tokenizer, models

    letters = {"<pad>": 0, "<end>": END} | {letter: number for number, letter in enumerate("abcdefgh", start=2)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(letters, [])), pad_token="<pad>", eos_token="<end>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
    return ChatFormat(tokenizer)


@pytest.mark.parametrize(
    ("train_on", "trained"),
    [
        ("last_assistant", [5, END]),
        ("all_assistant", [3, END, 5, END]),
    ],
)
def test_sft_trains_the_turns_it_is_told_to(train_on: TrainOn, trained: list[int]) -> None:
    dialog = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = SftRow(
        id="a",
        messages=[Message(role=role, content=content) for role, content in dialog],  # type: ignore[arg-type]
        origin="preference",
        source=Source(file="here", line=1),
    )
    groups = sft_groups([row], letter_format(), train_on=train_on)
    batch = rows(groups)
    assert sorted(batch.target_ids.tolist()) == sorted(trained)
    logprobs = -batch.target_ids / 10
    loss, _ = sft_step(logprobs, batch=batch, counts=count_step(groups), group_numbers=[0])
    # last: (0.5 + 0.1) / 2 = 0.3; all: (0.3 + 0.1 + 0.5 + 0.1) / 4 = 0.25.
    assert float(loss) == pytest.approx({"last_assistant": 0.3, "all_assistant": 0.25}[train_on])
