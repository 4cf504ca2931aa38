"""A saved reward model is anybody's: packed scoring, transformers and vLLM give the same raw rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine_case import run_vllm
from transformers import AutoModelForSequenceClassification

from alignloop.chat.load import load_format
from alignloop.config.bundled import resolve_base, resolve_file
from alignloop.packing.groups import PromptGroup
from alignloop.progress import QuietProgress
from alignloop.records import Message
from alignloop.training.checkpoints import save_checkpoint
from alignloop.training.model import load_reward_model
from alignloop.training.scoring import score_groups

BASE = Path(resolve_base("quickstart"))
NUM_PROMPTS, NUM_CANDIDATES = 8, 4
POOLING = """
import json, sys
from vllm import LLM, PoolingParams
model, rows = sys.argv[1], json.load(open(sys.argv[2]))
llm = LLM(
    model=model, runner="pooling", dtype="float32", max_model_len=1024, enforce_eager=True,
    kv_cache_memory_bytes=2**26, enable_chunked_prefill=False, max_num_batched_tokens=8192,
)
outputs = llm.encode(
    [{"prompt_token_ids": row} for row in rows], pooling_params=PoolingParams(use_activation=False),
    pooling_task="classify", use_tqdm=False,
)
print(json.dumps([float(output.outputs.data.reshape(-1)[0]) for output in outputs]))
"""


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled base with a score head whose rewards are some units apart."""
    model = load_reward_model(BASE, seed=3)
    with torch.no_grad():
        model.score.weight.mul_(20)
    return save_checkpoint(model, tmp_path_factory.mktemp("reward") / "checkpoint", companions=BASE)


@pytest.fixture(scope="module")
def groups() -> list[PromptGroup]:
    """32 samples: the prompts of eight preferences, each with four answers of theirs, of other lengths."""
    chat = load_format(BASE)
    lines = resolve_file("quickstart", kind="preferences").read_text(encoding="utf-8").splitlines()[:NUM_PROMPTS]
    rows = [json.loads(line) for line in lines]
    texts = [row[key] for row in rows for key in ("chosen", "rejected")]
    return [
        PromptGroup(
            f"prompt {index}",
            chat.prompt_ids([Message(role="user", content=row["prompt"])]),
            tuple(chat.completion(texts[(2 * index + k) % len(texts)]) for k in range(NUM_CANDIDATES)),
            (0,) * NUM_CANDIDATES,
        )
        for index, row in enumerate(rows)
    ]


def separate_rows(groups: list[PromptGroup]) -> list[tuple[int, ...]]:
    return [group.prompt_ids + completion.token_ids for group in groups for completion in group.completions]


@pytest.fixture(scope="module")
def packed(reward_model: Path, groups: list[PromptGroup]) -> list[float]:
    rewards = score_groups(groups, reward_model=reward_model, progress=QuietProgress(), dtype="float32")
    flat = [reward for group in rewards for reward in group]
    assert len(flat) == NUM_PROMPTS * NUM_CANDIDATES
    assert max(flat) - min(flat) > 0.5  # a thousandth is small beside it
    return flat


def test_transformers_gives_the_packed_rewards(
    reward_model: Path, groups: list[PromptGroup], packed: list[float]
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32).eval()
    with torch.inference_mode():
        rewards = [float(model(input_ids=torch.tensor([row])).logits) for row in separate_rows(groups)]
    assert rewards == pytest.approx(packed, abs=1e-3)


def test_vllm_pooling_gives_the_packed_rewards(
    reward_model: Path, groups: list[PromptGroup], packed: list[float], tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(separate_rows(groups)))
    assert run_vllm(POOLING, str(reward_model), str(rows)) == pytest.approx(packed, abs=1e-3)
