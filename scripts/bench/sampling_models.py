"""Checkpoints and prompts of the sampling benchmark, written once to a work folder.

work/<size>/a, work/<size>/b  random Llamas of one architecture, other weights, in float32 as training writes them
work/prompts.jsonl            the quickstart's prompts
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

from alignloop.config.bundled import QUICKSTART
from alignloop.engines.base import GenerateRequest
from alignloop.records import Message, PromptRow, Source
from scripts.bench.sampling_cases import MIXED_MAX_TOKENS, MODELS, PROMPT_TOKENS, Generating, Size

BASE = QUICKSTART / "base"
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
SEEDS = {"a": 1, "b": 2}
NUM_SPECIAL = 16
"""First ids of the tokenizer, which made-up prompts do not use: the special tokens are among them."""


def checkpoint(work: Path, size: Size, which: str) -> Path:
    """A random model that stops about as rarely as chance has it: built where it is missing."""
    directory = work / size / which
    if not directory.is_dir():
        partial = directory.with_name(f"{which}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _save_random(partial, size=size, seed=SEEDS[which])
        for name in COMPANIONS:
            shutil.copyfile(BASE / name, partial / name)
        partial.rename(directory)
    return directory


def copies(work: Path, *, count: int) -> list[Path]:
    """`count` directories of 5M checkpoints, by turns `a` and `b`: as in a run, none is served twice."""
    directories = []
    for number in range(count):
        source = checkpoint(work, "5m", "ab"[number % 2])
        directory = work / "copies" / f"{number:03d}"
        if not directory.is_dir():
            shutil.copytree(source, directory, copy_function=os.link)
        directories.append(directory)
    return directories


def prompt_rows(*, count: int) -> list[PromptRow]:
    """The first of the quickstart's bundled prompts."""
    with (QUICKSTART / "data" / "prompts.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["prompt"] for _, line in zip(range(count), file, strict=False)]
    return [
        PromptRow(
            id=f"prompt-{number:05d}",
            messages=[Message(role="user", content=text)],
            source=Source(file="prompts.jsonl", line=number),
        )
        for number, text in enumerate(texts, start=1)
    ]


def one_length_requests(case: Generating, *, max_tokens: int, vocab_size: int) -> list[GenerateRequest]:
    """Prompts of random tokens, all of one length."""
    draw = random.Random(case.name)
    return [
        GenerateRequest(
            prompt_ids=tuple(draw.randrange(NUM_SPECIAL, vocab_size) for _ in range(PROMPT_TOKENS)),
            max_tokens=max_tokens,
            num_candidates=case.num_candidates,
            temperature=0.0 if case.greedy else 1.0,
            seed=number if case.seeded else None,
        )
        for number in range(case.num_prompts)
    ]


def mixed_requests(case: Generating) -> list[GenerateRequest]:
    """Bundled prompts for the quickstart's base, which ends its turns by itself; most tokens drawn per request."""
    from alignloop.chat.load import load_format

    chat = load_format(BASE)
    draw = random.Random(case.name)
    return [
        GenerateRequest(
            prompt_ids=chat.prompt_ids(row.messages),
            max_tokens=draw.choice(MIXED_MAX_TOKENS),
            num_candidates=case.num_candidates,
            stop_token_ids=chat.stop_token_ids,
        )
        for row in prompt_rows(count=case.num_prompts)
    ]


def _save_random(directory: Path, *, size: Size, seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = MODELS[size]
    config = LlamaConfig.from_pretrained(
        BASE,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_heads,
        head_dim=model.hidden_size // model.num_heads,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(directory)
