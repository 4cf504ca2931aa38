"""Models and rows of the training cases, made once in a work folder that both sides read.

work/<size>/policy    a random Llama with tokenizer, chat template and generation config
work/<size>/reward    the same with a reward head
work/rows/<name>.pkl  prompt groups: token ids, so that lengths are exact and nothing is tokenised twice
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from alignloop.chat.load import load_format
from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from alignloop.records import Message
from scripts.bench.training import PREFERENCES, SOURCES, Spec

VOCABULARY, NUM_SPECIAL = 8192, 16
"""Size of the vocabulary, and its first ids, special tokens among them, which made-up rows do not use."""
MODELS = {"3m": (192, 4, 3, 512), "25m": (512, 8, 8, 1024)}
"""Hidden size, layers, heads of 64, intermediate size of 3.3 and 25.2 million parameters."""
PROMPT_TOKENS, COMPLETION_TOKENS, MAX_LENGTH = 256, 128, 1024
NUM_MADE_UP, NUM_CANDIDATES, NUM_TEXTS = 256, 16, 1_000
SEED = 0
Rows = Sequence[dict[str, Any]]


def prepare(work: Path, size: str, name: str, data_dir: Path) -> None:
    """Make a size's models and the rows `name` where they are missing."""
    _models(work / size, size=size, data_dir=data_dir)
    file = work / "rows" / f"{name}.pkl"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps(_groups(name, policy=work / size / "policy", data_dir=data_dir)))


def load_groups(work: Path, name: str, *, amount: int, short: bool) -> list[PromptGroup]:
    """The first prompt groups, with `short` the shortest of those past the first quartile of lengths."""
    groups: list[PromptGroup] = pickle.loads((work / "rows" / f"{name}.pkl").read_bytes())
    if short:
        groups = sorted(groups, key=lambda group: group.num_tokens)[len(groups) // 4 :]
    return groups[:amount]


def token_counts(spec: Spec, groups: Sequence[PromptGroup]) -> dict[str, float]:
    """Tokens a group, on average: packed, as separate rows, and by the case's peer; its ratio to packed.

    TRL's `RewardTrainer` takes ranked completions apart into pairs, so that each of n is read n - 1 times.
    """
    count = len(groups)
    prompt = sum(len(group.prompt_ids) for group in groups) / count
    completions = sum(len(one.token_ids) for group in groups for one in group.completions) / count
    separate = sum(len(group.completions) * len(group.prompt_ids) for group in groups) / count + completions
    packed = sum(packed_num_tokens(group) for group in groups) / count
    peer = separate * (max(1, len(groups[0].completions) - 1) if spec.kind == "reward" else 1)
    counts = {"prompt": prompt, "completions": completions, "packed": packed, "separate": separate, "peer": peer}
    return counts | {"ratio": peer / packed, "separate_ratio": separate / packed}


def _models(folder: Path, *, size: str, data_dir: Path) -> None:
    from alignloop.training.checkpoints import save_checkpoint
    from alignloop.training.model import load_reward_model
    from scripts.world.pretraining import ModelSize, new_model, train_tokenizer

    policy, reward = folder / "policy", folder / "reward"
    if not policy.is_dir():
        shape = ModelSize(*MODELS[size], vocab=VOCABULARY, max_length=4096)
        tokenizer = train_tokenizer(_texts(data_dir), vocab_size=VOCABULARY, max_length=shape.max_length)
        new_model(shape, tokenizer, seed=SEED).save_pretrained(policy)
        tokenizer.save_pretrained(policy)
    if not reward.is_dir():
        save_checkpoint(load_reward_model(policy, seed=SEED), reward, companions=policy)


def _texts(data_dir: Path) -> Iterator[str]:
    """The preferences; where they are missing, this project's own text, which made-up rows never use."""
    if (data_dir / PREFERENCES).is_file():
        rows = islice(_read(data_dir / PREFERENCES), NUM_TEXTS)
        yield from (row[name] for row in rows for name in ("prompt", "chosen", "rejected"))
    else:
        package = Path(__file__).resolve().parents[2] / "alignloop"
        yield from (source.read_text(encoding="utf-8") for source in sorted(package.rglob("*.py")))


def _groups(name: str, *, policy: Path, data_dir: Path) -> list[PromptGroup]:
    if name not in SOURCES:
        return _made_up({"triples": 3, "twos": 2}[name])
    chat = load_format(policy)
    rows = list(_read(data_dir / SOURCES[name]))
    random.Random(SEED).shuffle(rows)
    if name in ("pairs", "sft"):
        return _pairs(rows, chat, count=2 if name == "pairs" else 1)
    return _candidates(rows, chat, min_prompt_tokens=PROMPT_TOKENS if name == "long" else 0)


def _made_up(num_completions: int) -> list[PromptGroup]:
    """Prompts and completions of random tokens, all of the same length."""
    draw = random.Random(f"{SEED}/{num_completions}")

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(NUM_SPECIAL, VOCABULARY) for _ in range(count))

    mask = (False,) * (COMPLETION_TOKENS - 1) + (True,)
    groups = []
    for number in range(NUM_MADE_UP):
        prompt_ids = ids(PROMPT_TOKENS)
        completions = [CompletionTokens(ids(COMPLETION_TOKENS), mask) for _ in range(num_completions)]
        groups.append(_group(f"made-up-{number}", prompt_ids, completions))
    return groups


def _pairs(rows: Rows, chat: Any, *, count: int) -> list[PromptGroup]:
    """Chosen and rejected, or with a `count` of 1 the chosen alone, cut to `MAX_LENGTH` tokens with their prompt.

    Left out on both sides: prompts without room for a completion, and completions without text, as in alignloop.
    """
    groups = []
    for number, row in enumerate(rows):
        prompt_ids = chat.prompt_ids(_user(row["prompt"]))
        left = MAX_LENGTH - len(prompt_ids)
        if left > 1 and row["chosen"].strip() and row["rejected"].strip():
            both = [_cut(chat.completion(row[name]), left) for name in ("chosen", "rejected")]
            groups.append(_group(f"pair-{number}", prompt_ids, both[:count]))
    return groups


def _candidates(rows: Rows, chat: Any, *, min_prompt_tokens: int) -> list[PromptGroup]:
    """16 candidates a prompt. Short prompts get other prompts with an answer before them: a few-shot context."""
    groups = []
    for number, row in enumerate(rows):
        text, other = row["prompt"], number
        prompt_ids = chat.prompt_ids(_user(text))
        while len(prompt_ids) < min_prompt_tokens:
            other = (other + 1) % len(rows)
            text = f"{rows[other]['prompt']}\n\n{rows[other]['candidates'][-1]['completion']}\n\n---\n\n{text}"
            prompt_ids = chat.prompt_ids(_user(text))
        texts = [candidate["completion"] for candidate in row["candidates"][:NUM_CANDIDATES]]
        completions = [_cut(chat.completion(one), MAX_LENGTH) for one in texts]
        groups.append(_group(f"prompt-{number}", prompt_ids, completions))
    return groups


def _group(name: str, prompt_ids: tuple[int, ...], completions: Sequence[CompletionTokens]) -> PromptGroup:
    return PromptGroup(name, prompt_ids, tuple(completions), tuple(range(len(completions))))


def _user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def _cut(completion: CompletionTokens, count: int) -> CompletionTokens:
    return CompletionTokens(completion.token_ids[:count], completion.formatting_mask[:count])


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
