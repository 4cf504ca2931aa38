"""Packed rows against one plain row per completion, through transformers' own models."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForSequenceClassification,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.attention import hidden_states, use_own_attention
from alignloop.packing.batch import collate
from alignloop.packing.check import choose_layout, packed_difference
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import pack
from alignloop.progress import QuietProgress
from alignloop.training.model import CompletionRewards, TokenLogprobs, check_head

VOCAB = 97
SIZE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZE, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZE, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=16),
    "gemma3": Gemma3TextConfig(**SIZE, num_key_value_heads=1, head_dim=16, sliding_window=64),
    "mistral": MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=None),
    "gpt_neox": GPTNeoXConfig(**SIZE),
}


def tiny(config: Any, *, attention: str | None = "sdpa") -> Any:
    """`attention` None: transformers' own choice."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def made_up_groups(sizes: list[tuple[int, int]]) -> list[PromptGroup]:
    """Groups of (prompt tokens, completions)."""
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1, VOCAB) for _ in range(count))

    groups = []
    for number, (prompt, count) in enumerate(sizes):
        lengths = [draw.randrange(1, 7) for _ in range(count)]
        completions = tuple(CompletionTokens(tokens(n), (False,) * n) for n in lengths)
        groups.append(PromptGroup(f"g{number}", tokens(prompt), completions, tuple(range(count))))
    return groups


GROUPS = made_up_groups([(5, 1), (4, 2), (1, 2), (9, 3), (1, 1), (6, 16)])


def plain_logprobs(model: Any, group: PromptGroup, number: int) -> torch.Tensor:
    completion = group.completions[number].token_ids
    ids = torch.tensor([group.prompt_ids + completion])
    logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    where = torch.arange(len(group.prompt_ids) - 1, ids.shape[1] - 1)
    return logprobs[where, torch.tensor(completion)]


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("row_tokens", [1, 200], ids=["one group a row", "many groups a row"])
def test_logprobs_and_gradients_equal_plain_rows(name: str, row_tokens: int) -> None:
    model = tiny(CONFIGS[name])
    module = TokenLogprobs(model)
    check_head(module)
    batch = collate(pack(GROUPS, row_tokens=row_tokens), pad_token_id=0, mode="packed")
    packed = module(batch)
    # A weight of its own for every token, so that no two errors cancel in the gradient.
    weight = torch.linspace(-1, 1, len(packed))
    (packed * weight).sum().backward()
    packed_gradients = gradients(model)
    model.zero_grad()

    expected = torch.zeros_like(packed)
    for c, (group, number) in enumerate(zip(batch.completion_group, batch.completion_number, strict=True)):
        expected = expected.masked_scatter(
            batch.completion_index == c, plain_logprobs(model, GROUPS[int(group)], int(number))
        )
    (expected * weight).sum().backward()
    assert len(packed) == sum(len(c.token_ids) for group in GROUPS for c in group.completions)
    torch.testing.assert_close(packed, expected, atol=2e-5, rtol=1e-5)
    for parameter, gradient in gradients(model).items():
        torch.testing.assert_close(packed_gradients[parameter], gradient, atol=2e-4, rtol=1e-4, msg=parameter)


@pytest.mark.parametrize("mode", ["packed", "separate"])
def test_rewards_equal_transformers_own(mode: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(LlamaConfig(**SIZE, num_key_value_heads=2, num_labels=1)).eval()
    batch = collate(pack(GROUPS, row_tokens=64, mode=mode), pad_token_id=0, mode=mode)
    with torch.no_grad():
        rewards = CompletionRewards(model)(batch)
        for reward, group, number in zip(rewards, batch.completion_group, batch.completion_number, strict=True):
            ids = GROUPS[int(group)].prompt_ids + GROUPS[int(group)].completions[int(number)].token_ids
            assert float(reward) == pytest.approx(float(model(input_ids=torch.tensor([ids])).logits), abs=2e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_layer_runs_on_the_tokens_that_are_read(checkpointing: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(LlamaConfig(**SIZE, num_key_value_heads=2, num_labels=1))
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    seen: dict[str, int] = {}
    for number, layer in enumerate(model.model.layers):
        for name, module in (("q", layer.self_attn.q_proj), ("k", layer.self_attn.k_proj), ("up", layer.mlp.up_proj)):
            key = f"{name}{number}"
            module.register_forward_hook(lambda _, __, out, key=key: seen.update({key: out.numel() // out.shape[-1]}))
    batch = collate(pack(GROUPS, row_tokens=64), pad_token_id=0, mode="packed")
    rewards = CompletionRewards(model)(batch)
    num_tokens, num_read = batch.input_ids.numel(), len(rewards)
    assert num_read == 25 < num_tokens  # 1 + 2 + 2 + 3 + 1 + 16
    fewer = num_tokens if checkpointing else num_read
    assert seen == {
        "q0": num_tokens,
        "k0": num_tokens,
        "up0": num_tokens,
        "q1": fewer,
        "k1": num_tokens,
        "up1": fewer,
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_the_check_accepts_models_on_which_packing_is_exact(name: str) -> None:
    model = tiny(CONFIGS[name])
    assert packed_difference(model.base_model) < 1e-5
    assert choose_layout(model.base_model, longest=10, progress=QuietProgress()) == "packed"


class Notes(QuietProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


MISTRAL = MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=16)
FALLBACKS: dict[str, tuple[Any, str]] = {
    "capped scores": (
        Gemma2Config(**SIZE, num_key_value_heads=2, head_dim=16, attn_logit_softcapping=5.0),
        "Gemma2Attention changes its attention scores",
    ),
    "a window": (MISTRAL, "sliding_window is 16 tokens"),
    "experts": (
        GptOssConfig(**SIZE, num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
        "not exact on this model",
    ),
    "convolutions": (Lfm2Config(**SIZE, num_key_value_heads=2, layer_types=["conv", "full_attention"]), "conv layers"),
    "recurrence": (
        MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0),
        "not exact on this model",
    ),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_a_model_on_which_packing_is_not_exact_falls_back_and_says_so(name: str) -> None:
    config, reason = FALLBACKS[name]
    backbone, notes = tiny(config, attention=None).base_model, Notes()
    assert choose_layout(backbone, longest=17, progress=notes) == "separate"
    assert reason in notes.lines[0]
    if name == "capped scores":  # SDPA would leave the cap out
        assert backbone.config._attn_implementation == "eager"
    if name == "experts":
        batch = collate(pack(GROUPS, row_tokens=1, mode="separate"), pad_token_id=0, mode="separate")
        assert hidden_states(backbone, batch, at=batch.last_index).isfinite().all()


def test_a_window_counts_where_rows_are_longer_and_in_a_nested_text_config() -> None:
    notes = Notes()
    assert choose_layout(tiny(MISTRAL).base_model, longest=16, progress=notes) == "packed"
    assert notes.lines == []
    text = {**SIZE, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 16}
    wrapped = tiny(Gemma3TextConfig(**text)).base_model
    wrapped.config.get_text_config = lambda: Gemma3TextConfig(**text)
    wrapped.config.sliding_window = None  # as in a config that holds the text model's inside
    assert choose_layout(wrapped, longest=17, progress=notes) == "separate"
    assert "sliding_window is 16 tokens" in notes.lines[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_joined_rows_equal_prompt_and_completions_in_one_plain_row(name: str) -> None:
    """The paper's row (4.1.2): hidden states at each completion's end, and gradients, through the model as it is."""
    backbone = tiny(CONFIGS[name]).base_model
    batch = collate(pack(GROUPS, row_tokens=64, mode="joined"), pad_token_id=0, mode="joined")
    order = (batch.completion_group * 100 + batch.completion_number).argsort()
    joined = hidden_states(backbone, batch, at=batch.last_index, reads="last tokens")[order]
    weight = torch.linspace(-1, 1, joined.numel()).view_as(joined)
    (joined * weight).sum().backward()
    joined_gradients = gradients(backbone)
    backbone.zero_grad()
    use_own_attention(backbone)
    rows = []
    for group in GROUPS:
        ids = torch.tensor([group.prompt_ids + sum((c.token_ids for c in group.completions), ())])
        ends = len(group.prompt_ids) - 1 + torch.tensor([len(c.token_ids) for c in group.completions]).cumsum(0)
        rows.append(backbone(input_ids=ids, use_cache=False).last_hidden_state[0, ends])
    expected = torch.cat(rows)
    (expected * weight).sum().backward()
    torch.testing.assert_close(joined, expected, atol=2e-5, rtol=1e-5)
    for parameter, gradient in gradients(backbone).items():
        torch.testing.assert_close(joined_gradients[parameter], gradient, atol=2e-4, rtol=1e-4, msg=parameter)
