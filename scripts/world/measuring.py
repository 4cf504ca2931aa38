"""Quick measurements of a quickstart checkpoint with plain transformers: what the build prints at its end.

The loop measures with lm-eval on its engine; here the point is to see, while building, what the base can do.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignloop.quickstart.annotator import check
from scripts.world.tokenizer import prompt_text

JsonRow = Mapping[str, Any]
_BATCH = 128


@dataclass(frozen=True)
class FollowReport:
    """How many prompts are followed.

    Attributes:
        greedy: share of prompts whose greedy answer follows every instruction.
        oracle: share of prompts of which at least one sampled answer does.
        sampled: share of sampled answers that do.
        by_type: instruction type -> (share followed by the greedy answer, number of instructions).
        stopped: share of greedy answers that end by themselves.
    """

    greedy: float
    oracle: float
    sampled: float
    by_type: dict[str, tuple[float, int]]
    stopped: float


@torch.no_grad()
def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    num_candidates: int = 0,
    max_tokens: int = 96,
    seed: int = 0,
) -> list[list[tuple[str, bool]]]:
    """Answers per prompt as (text, ended by itself): one greedy (`num_candidates` 0) or several at temperature 1."""
    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[tuple[str, bool]]] = [[] for _ in prompts]
    per_prompt = max(1, num_candidates)
    sampling: dict[str, Any] = {"do_sample": num_candidates > 0}
    if num_candidates:
        sampling |= {"temperature": 1.0, "top_k": 0}
    for start in range(0, len(order), max(1, _BATCH // per_prompt)):
        indices = order[start : start + max(1, _BATCH // per_prompt)]
        texts = [prompt_text(prompts[index]) for index in indices]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        made = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_tokens,
            num_return_sequences=per_prompt,
            **sampling,
        )[:, inputs["input_ids"].shape[1] :]
        ends = torch.isin(made, torch.tensor(model.generation_config.eos_token_id)).any(dim=1).tolist()
        decoded = tokenizer.batch_decode(made, skip_special_tokens=True)
        for place, (text, ended) in enumerate(zip(decoded, ends, strict=True)):
            answers[indices[place // per_prompt]].append((text, ended))
    return answers


def measure_following(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[JsonRow], *, num_candidates: int = 0
) -> FollowReport:
    """Run the IFEval checkers on greedy answers and, with `num_candidates`, on sampled ones."""
    prompts = [row["prompt"] for row in rows]
    greedy = [answers[0] for answers in complete(model, tokenizer, prompts)]
    met = [check(row, text, prompt=row["prompt"]) for row, (text, _) in zip(rows, greedy, strict=True)]
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, flags in zip(rows, met, strict=True):
        for name, flag in zip(row["instruction_id_list"], flags, strict=True):
            hits[name].append(flag)
    oracle = sampled = float("nan")
    if num_candidates:
        many = complete(model, tokenizer, prompts, num_candidates=num_candidates)
        passed = [[all(check(row, text)) for text, _ in answers] for row, answers in zip(rows, many, strict=True)]
        oracle = sum(any(flags) for flags in passed) / len(rows)
        sampled = sum(sum(flags) for flags in passed) / (len(rows) * num_candidates)
    return FollowReport(
        greedy=sum(all(flags) for flags in met) / len(rows),
        oracle=oracle,
        sampled=sampled,
        by_type={name: (sum(flags) / len(flags), len(flags)) for name, flags in sorted(hits.items())},
        stopped=sum(ended for _, ended in greedy) / len(rows),
    )


@torch.no_grad()
def measure_knowledge(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Sequence[str]],
    *,
    form: str = "{question}",
) -> float:
    """Share of multiple-choice rows (question, A, B, C, D, letter) whose right option text is the likeliest.

    The option's total log-probability with its end-of-turn token, after the question as a chat.
    """
    right = 0
    tokenizer.padding_side = "right"
    for start in range(0, len(rows), _BATCH // 4):
        chunk = rows[start : start + _BATCH // 4]
        pairs = [(prompt_text(form.format(question=row[0])), option) for row in chunk for option in row[1:5]]
        scores = _option_scores(model, tokenizer, pairs).view(len(chunk), 4)
        right += sum("ABCD"[best] == row[5] for best, row in zip(scores.argmax(dim=1).tolist(), chunk, strict=True))
    return right / len(rows)


def _option_scores(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]
) -> torch.Tensor:
    """Log-probability of each option after its context. Shape [pairs]."""
    contexts = [tokenizer.encode(context, add_special_tokens=False) for context, _ in pairs]
    options = [tokenizer.encode(option, add_special_tokens=False) for _, option in pairs]
    width = max(len(context) + len(option) for context, option in zip(contexts, options, strict=True))
    ids = torch.full((len(pairs), width), int(model.config.pad_token_id))
    counted = torch.zeros((len(pairs), width), dtype=torch.bool)
    for row, (context, option) in enumerate(zip(contexts, options, strict=True)):
        ids[row, : len(context) + len(option)] = torch.tensor(context + option)
        counted[row, len(context) : len(context) + len(option)] = True
    logprobs = functional.log_softmax(model(input_ids=ids).logits[:, :-1].float(), dim=-1)
    taken = logprobs.gather(2, ids[:, 1:, None])[:, :, 0]
    return (taken * counted[:, 1:]).sum(dim=1)


def read_jsonl(text: str) -> list[dict[str, Any]]:
    """Rows of a JSONL text."""
    return [json.loads(line) for line in text.splitlines() if line]
