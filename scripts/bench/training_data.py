"""Models and rows of the training benchmark, written once to a work folder that both sides read.

work/<size>/policy    a random Llama with tokenizer, chat template and generation config
work/<size>/reward    the same with a reward head
work/rows/<name>.json prompt groups: token ids, so that lengths are exact and nothing is tokenised twice
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.groups import PromptGroup
from scripts.bench.training_cases import (
    COMPLETION_TOKENS,
    MADE_UP,
    MAX_LENGTH,
    MODELS,
    PROMPT_TOKENS,
    VOCABULARY,
    Amount,
)

PREFERENCES = "preferences/alpacaeval_graded.jsonl"
CANDIDATES = "candidates/alpacaeval_120x20.jsonl"
SOURCES = {
    "real_pairs": PREFERENCES,
    "real_sft": PREFERENCES,
    "candidates_long": CANDIDATES,
    "candidates_short": CANDIDATES,
}
"""The file each kind of real rows is read from."""

NUM_MADE_UP = 256
NUM_CANDIDATES = 16
RESERVED_TOKENS = 64
"""Entries of the vocabulary that BPE leaves to the chat template and that random prompts do not use."""
TOKENIZER_CHARACTERS = 1_000_000
SEED = 0


def prepare(work: Path, *, sizes: Sequence[str], names: Iterable[str], data_dir: Path) -> None:
    """Write what is missing of models and rows.

    Args:
        names: rows to have, keys of `MADE_UP` or `SOURCES`.
        data_dir: the folder that `SOURCES` lie in; not read for made-up rows alone.
    """
    rows_dir = work / "rows"
    rows_dir.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        _models(work, size=size, data_dir=data_dir)
    for name in sorted(set(names)):
        path = rows_dir / f"{name}.json"
        if not path.is_file():
            groups = _groups(name, work=work, size=sizes[0], data_dir=data_dir)
            path.write_text(json.dumps([_to_json(group) for group in groups]))


def load_groups(work: Path, name: str, *, amount: Amount) -> list[PromptGroup]:
    """The first prompt groups of `name`, or those longer than a quarter of all; fewer where there are fewer."""
    groups = [_from_json(row) for row in json.loads((work / "rows" / f"{name}.json").read_text())]
    if amount.short:
        groups.sort(key=lambda group: group.num_tokens)
        groups = groups[len(groups) // 4 :]
    return groups[: amount.num_groups]


def _to_json(group: PromptGroup) -> dict[str, Any]:
    completions = [
        {"token_ids": completion.token_ids, "formatting": [int(flag) for flag in completion.formatting_mask]}
        for completion in group.completions
    ]
    return {"id": group.id, "prompt_ids": group.prompt_ids, "completions": completions}


def _from_json(row: dict[str, Any]) -> PromptGroup:
    completions = tuple(
        CompletionTokens(tuple(item["token_ids"]), tuple(bool(flag) for flag in item["formatting"]))
        for item in row["completions"]
    )
    return PromptGroup(row["id"], tuple(row["prompt_ids"]), completions, tuple(range(len(completions))))


# ---- models -----------------------------------------------------------------------------------------------------


def _models(work: Path, *, size: str, data_dir: Path) -> None:
    from alignloop.training.checkpoints import save_checkpoint
    from alignloop.training.models import load_reward_model
    from alignloop.training.start import prepare_base

    policy, reward = work / size / "policy", work / size / "reward"
    if not policy.is_dir():
        bare = work / size / "bare"
        _save_bare(bare, size=size, texts=_tokenizer_texts(data_dir))
        prepare_base(str(bare), chat_template="chatml", out_dir=policy)
    if not reward.is_dir():
        save_checkpoint(load_reward_model(policy, seed=SEED), reward, companions=policy)


def _save_bare(directory: Path, *, size: str, texts: Iterable[str]) -> None:
    """A random Llama and a BPE tokenizer, without template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    model = MODELS[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=_bpe(texts), eos_token="<eos>").save_pretrained(directory)


def _bpe(texts: Iterable[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - RESERVED_TOKENS,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def _tokenizer_texts(data_dir: Path) -> Iterator[str]:
    """The preferences; where they are missing, this project's own text, which made-up rows never meet."""
    path = data_dir / PREFERENCES
    if path.is_file():
        texts = (text for row in _read(path) for text in (row["prompt"], row["chosen"], row["rejected"]))
    else:
        package = Path(__file__).resolve().parents[2] / "alignloop"
        texts = (source.read_text(encoding="utf-8") for source in sorted(package.rglob("*.py")))
    num_characters = 0
    for text in texts:
        yield text
        num_characters += len(text)
        if num_characters > TOKENIZER_CHARACTERS:
            return


# ---- rows -------------------------------------------------------------------------------------------------------


def _groups(name: str, *, work: Path, size: str, data_dir: Path) -> list[PromptGroup]:
    if name in MADE_UP:
        return _made_up(MADE_UP[name])
    from alignloop.chat.load import load_format

    chat = load_format(work / size / "policy")
    rows = list(_read(data_dir / SOURCES[name]))
    random.Random(SEED).shuffle(rows)
    if name == "real_pairs":
        return _pairs(rows, chat)
    if name == "real_sft":
        return [PromptGroup(pair.id, pair.prompt_ids, pair.completions[:1], (0,)) for pair in _pairs(rows, chat)]
    return _candidates(rows, chat, min_prompt_tokens=PROMPT_TOKENS if name == "candidates_long" else 0)


def _made_up(num_completions: int) -> list[PromptGroup]:
    draw = random.Random(f"{SEED}/{num_completions}")

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY - RESERVED_TOKENS) for _ in range(count))

    mask = (False,) * (COMPLETION_TOKENS - 1) + (True,)
    return [
        PromptGroup(
            f"made-up-{number}",
            ids(PROMPT_TOKENS),
            tuple(CompletionTokens(ids(COMPLETION_TOKENS), mask) for _ in range(num_completions)),
            tuple(range(num_completions)),
        )
        for number in range(NUM_MADE_UP)
    ]


def _pairs(rows: Sequence[dict[str, Any]], chat: Any) -> list[PromptGroup]:
    """Chosen and rejected, cut to `MAX_LENGTH` tokens with their prompt.

    Left out on both sides: prompts that leave no room, and completions without text, which alignloop would drop.
    """
    groups = []
    for number, row in enumerate(rows):
        prompt_ids = chat.prompt_ids(_user(row["prompt"]))
        room = MAX_LENGTH - len(prompt_ids)
        if room > 1 and row["chosen"].strip() and row["rejected"].strip():
            both = tuple(_cut(chat.completion(row[name]), room) for name in ("chosen", "rejected"))
            groups.append(PromptGroup(f"pair-{number}", prompt_ids, both, (0, 1)))
    return groups


def _candidates(rows: Sequence[dict[str, Any]], chat: Any, *, min_prompt_tokens: int) -> list[PromptGroup]:
    """16 candidates a prompt. Short prompts get other prompts with an answer before them: a few-shot context."""
    groups = []
    for number, row in enumerate(rows):
        text, other = row["prompt"], number
        prompt_ids = chat.prompt_ids(_user(text))
        while len(prompt_ids) < min_prompt_tokens:
            other = (other + 1) % len(rows)
            shot = rows[other]
            text = f"{shot['prompt']}\n\n{shot['candidates'][-1]['completion']}\n\n---\n\n{text}"
            prompt_ids = chat.prompt_ids(_user(text))
        completions = tuple(
            _cut(chat.completion(candidate["completion"]), MAX_LENGTH)
            for candidate in row["candidates"][:NUM_CANDIDATES]
        )
        groups.append(PromptGroup(f"prompt-{number}", prompt_ids, completions, tuple(range(len(completions)))))
    return groups


def _user(text: str) -> list[Any]:
    from alignloop.records import Message

    return [Message(role="user", content=text)]


def _cut(completion: CompletionTokens, count: int) -> CompletionTokens:
    return CompletionTokens(completion.token_ids[:count], completion.formatting_mask[:count])


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
