"""A tiny policy directory and groups of made-up tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.groups import PromptGroup

VOCAB = 64

MakeGroups = Callable[..., list[PromptGroup]]


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with tokenizer, chat template and generation config."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("policy")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)
    words = {"<pad>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, VOCAB)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    tokenizer.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1], "pad_token_id": 0}))
    return path


@pytest.fixture
def make_groups() -> MakeGroups:
    """Groups whose completions draw from a range of the vocabulary that tells their rank: something to learn.

    Every rank has a range of its own: two ranks of one range would make their order a coin toss that nobody can learn.
    """

    def make(count: int, *, completions: int, seed: int = 0) -> list[PromptGroup]:
        draw = random.Random(seed)

        def completion(rank: int) -> CompletionTokens:
            low, high = ((VOCAB // 2, VOCAB), (VOCAB // 4, VOCAB // 2), (2, VOCAB // 4))[rank]
            length = draw.randrange(3, 9)
            ids = (*(draw.randrange(low, high) for _ in range(length)), 1)
            return CompletionTokens(ids, (False,) * length + (True,))

        return [
            PromptGroup(
                id=f"row-{number}",
                prompt_ids=tuple(draw.randrange(2, VOCAB) for _ in range(draw.randrange(1, 12))),
                completions=tuple(completion(rank) for rank in range(completions)),
                ranks=tuple(range(completions)),
            )
            for number in range(count)
        ]

    return make
