"""A tiny policy directory, groups of made-up tokens, and trainings of the one on the other."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from alignloop.chat.tokens import CompletionTokens
from alignloop.config.training import DpoConfig, RewardConfig, SftConfig
from alignloop.packing.groups import PromptGroup
from alignloop.progress import QuietProgress
from alignloop.training.job import TrainJob, TrainResult
from alignloop.training.loop import train

VOCAB = 64
CONFIGS: dict[str, Any] = {"reward": RewardConfig, "sft": SftConfig, "dpo": DpoConfig}
NUM_COMPLETIONS = {"reward": 3, "sft": 1, "dpo": 2}

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


class Killed(Exception):
    pass


class Heard:
    def __init__(self, killed_after: float) -> None:
        self.lines: list[str] = []
        self.left = killed_after

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        def advance(num_done: int) -> None:
            self.left -= num_done if unit == "steps" else 0
            if self.left <= 0:
                raise Killed

        yield advance

    def say(self, line: str) -> None:
        self.lines.append(line.strip())


class Runs:
    """24 groups, three steps an epoch, and eight held-out groups; `said` is of the last training."""

    def __init__(self, policy: Path, make_groups: MakeGroups) -> None:
        self._policy, self._make_groups = policy, make_groups
        self.said: list[str] = []

    def job(self, objective: Any, out_dir: Path, **knobs: Any) -> TrainJob:
        """`knobs` are fields of the job, or of the objective's config."""
        num, start = NUM_COMPLETIONS[objective], knobs.get("checkpoint", self._policy)
        values: dict[str, Any] = {
            "groups": self._make_groups(24, completions=num),
            "eval_groups": self._make_groups(8, completions=num, seed=1),
            "checkpoint": start,
            "reference": start if objective == "dpo" else None,
            "seed": 5,
            "progress": QuietProgress(),
        }
        values |= {field.name: knobs.pop(field.name) for field in fields(TrainJob) if field.name in knobs}
        settings = {"dtype": "float32", "batch_groups": 8, "learning_rate": 3e-3, "rows_per_microbatch": 2} | knobs
        return TrainJob(objective, out_dir=out_dir, config=CONFIGS[objective](**settings), **values)

    def __call__(
        self, objective: Any, out_dir: Path, *, killed_after: float = float("inf"), **knobs: Any
    ) -> TrainResult:
        heard = Heard(killed_after)
        self.said = heard.lines
        return train(self.job(objective, out_dir, progress=heard, **knobs))

    def killed(self, objective: Any, out_dir: Path, *, after: int, **knobs: Any) -> None:
        with pytest.raises(Killed):
            self(objective, out_dir, killed_after=after, **knobs)

    @staticmethod
    def log(out_dir: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (out_dir / "train_log.jsonl").read_text().splitlines()]

    @staticmethod
    def digest(checkpoint: Path) -> str:
        return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def run(policy: Path, make_groups: MakeGroups) -> Runs:
    return Runs(policy, make_groups)
