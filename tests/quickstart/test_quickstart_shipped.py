"""The files the package ships: their size, that they parse, that the benchmarks are held out, that the base runs."""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignloop.config.bundled import QUICKSTART
from alignloop.quickstart.annotator import check
from alignloop.records import STRENGTHS, Message, PreferenceRow, PromptRow, Source
from scripts.world.corpus import CLEAN, NOISY, SIBLING, documents
from scripts.world.datasets import BENCHMARKS, write_datasets
from scripts.world.entities import SUBJECTS, build_world
from scripts.world.instructions import SEEN, UNSEEN, combination_key, draw_task

DATA, BASE = QUICKSTART / "data", QUICKSTART / "base"
SOURCE = Source(file="shipped")


def _jsonl(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def _questions(split: str) -> dict[str, list[list[str]]]:
    found = {}
    for path in sorted((DATA / "mmlu" / split).glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            found[path.stem.removesuffix(f"_{split}")] = list(csv.reader(file))
    return found


@pytest.fixture(scope="module")
def preferences() -> list[dict[str, Any]]:
    return _jsonl("preferences.jsonl")


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, Any]]:
    return _jsonl("prompts.jsonl")


@pytest.fixture(scope="module")
def benchmarks() -> dict[str, list[dict[str, Any]]]:
    return {name: _jsonl(name) for name in BENCHMARKS}


@pytest.fixture(scope="module")
def asked() -> set[str]:
    return {row[0] for split in ("dev", "test") for rows in _questions(split).values() for row in rows}


def test_everything_shipped_is_under_8_mb() -> None:
    sizes = [path.stat().st_size for folder in (DATA, BASE) for path in folder.rglob("*") if path.is_file()]
    assert 1_000_000 < sum(sizes) < 8_000_000


def test_the_same_seed_gives_the_shipped_prompts_and_benchmarks(tmp_path: Path) -> None:
    write_datasets(tmp_path, build_world(), seed=0)
    made, shipped = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in (tmp_path, DATA)
    )
    assert {*made, Path("preferences.jsonl")} == shipped.keys()  # those are sampled from models
    assert [str(name) for name, content in made.items() if content != shipped[name]] == []


def test_preferences_are_valid_rows_of_all_strengths(preferences: list[dict[str, Any]]) -> None:
    for number, row in enumerate(preferences):
        messages = [Message(role="user", content=row["prompt"])]
        rest = {name: value for name, value in row.items() if name != "prompt"}
        PreferenceRow.model_validate({"id": str(number), "messages": messages, "source": SOURCE, **rest})
    assert len(preferences) == 2100
    assert {row["strength"] for row in preferences} == set(STRENGTHS)
    edited = [row for row in preferences if "edited" in row]
    assert len(edited) == 210
    assert all(row["edited"] not in (row["chosen"], row["rejected"]) for row in edited)


def test_preferences_are_what_models_said_not_gold(preferences: list[dict[str, Any]]) -> None:
    """Most of the `chosen` answers to instructions are wrong; noise has some right ones rejected; an edit helps."""
    rows = [row for row in preferences if "kwargs" in row["meta"]]

    def share_right(which: str) -> float:
        found = [check(row["meta"], row[which], prompt=row["prompt"]) for row in rows if which in row]
        return sum(map(all, found)) / len(found)

    assert 0.2 < share_right("chosen") < 0.5
    assert 0.01 < share_right("rejected") < 0.1
    assert share_right("chosen") < share_right("edited") < 0.8


def test_prompts_are_distinct_and_can_be_judged(prompts: list[dict[str, Any]]) -> None:
    for number, row in enumerate(prompts):
        prompt = PromptRow(
            id=str(number), messages=[Message(role="user", content=row["prompt"])], source=SOURCE, meta=row["meta"]
        )
        assert len(check(prompt.meta, "The otter swims.")) in (1, 2)
    assert len({row["prompt"] for row in prompts}) == len(prompts) >= 1500
    assert 0.05 < sum("answer" in row["meta"] for row in prompts) / len(prompts) < 0.3


@pytest.mark.parametrize(("name", "num_prompts"), [("ifeval_dev", 705), ("ifeval", 705), ("ifeval_unseen", 300)])
def test_the_following_benchmarks_have_the_official_form(
    name: str, num_prompts: int, benchmarks: dict[str, list[dict[str, Any]]]
) -> None:
    rows = benchmarks[f"{name}.jsonl"]
    assert len({row["key"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows) == num_prompts
    types = Counter(name for row in rows for name in row["instruction_id_list"])
    assert min(types[one] for one in (UNSEEN if name == "ifeval_unseen" else SEEN)) >= 40
    for row in rows:
        assert set(row) == {"key", "prompt", "instruction_id_list", "kwargs"}
        flags = check(row, "A text that is of no use.", prompt=row["prompt"])
        assert len(flags) == len(row["instruction_id_list"]) == len(row["kwargs"]) in (1, 2)
        assert (not UNSEEN.isdisjoint(row["instruction_id_list"])) == (name == "ifeval_unseen")


def test_benchmark_prompts_combinations_and_unseen_types_are_in_no_training_file(
    preferences: list[dict[str, Any]],
    prompts: list[dict[str, Any]],
    benchmarks: dict[str, list[dict[str, Any]]],
) -> None:
    training = [*preferences, *prompts]
    ifeval = [row for rows in benchmarks.values() for row in rows]
    assert not {row["prompt"] for row in ifeval} & {row["prompt"] for row in training}
    tasks = [row["meta"] for row in training if "kwargs" in row["meta"]]
    assert len(tasks) > 3000
    assert not UNSEEN.intersection(name for meta in tasks for name in meta["instruction_id_list"])
    trained = {combination_key(meta["instruction_id_list"], meta["kwargs"]) for meta in tasks}
    held_out = {
        name: {combination_key(row["instruction_id_list"], row["kwargs"]) for row in rows}
        for name, rows in benchmarks.items()
    }
    assert len(trained) > 500
    assert not trained & set().union(*held_out.values())
    assert not held_out["ifeval_dev.jsonl"] & held_out["ifeval.jsonl"]


def test_benchmark_questions_are_in_no_training_file(
    preferences: list[dict[str, Any]], prompts: list[dict[str, Any]], asked: set[str]
) -> None:
    assert len(asked) == 600
    far = [entity.word for entity in build_world() if entity.is_far]
    assert all(any(word in question for word in far) for question in asked)
    training = {row["prompt"] for row in (*preferences, *prompts)}
    assert not any(question in prompt for prompt in training for question in asked if question[:12] in prompt)


def test_benchmarks_are_not_in_the_pretraining_text(
    benchmarks: dict[str, list[dict[str, Any]]], asked: set[str]
) -> None:
    ifeval, world = [row for rows in benchmarks.values() for row in rows], build_world()
    heldout = {row["prompt"] for row in ifeval}
    for mixture in (CLEAN, NOISY, SIBLING):
        for document in itertools.islice(documents(random.Random(7), world, mixture), 800):
            text = f"{document.prompt or ''}\n{document.text}"
            assert document.prompt not in heldout
            assert not any(question in text for question in asked)
    combinations = {combination_key(row["instruction_id_list"], row["kwargs"]) for row in ifeval}
    rng = random.Random(8)
    drawn = {draw_task(rng, world, num_constraints=1 + turn % 2).combination for turn in range(4000)}
    assert not drawn & combinations


def test_questions_have_the_official_form() -> None:
    test, dev = _questions("test"), _questions("dev")
    assert set(test) == set(dev) == {subject.name for subject in SUBJECTS}
    assert sum(len(rows) for rows in test.values()) >= 500
    assert all(len(rows) == 5 for rows in dev.values())
    letters: Counter[str] = Counter()
    for rows in (*test.values(), *dev.values()):
        for row in rows:
            assert len(row) == 6
            assert len(set(row[1:5])) == 4
            letters[row[5]] += 1
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 2 * min(letters.values())


def test_the_base_loads_answers_and_stops() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE)
    chat = [{"role": "user", "content": "Tell me about the otter."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTell me about the otter.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=100, do_sample=False)[0, ids.shape[1] :]
    stops = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert model.generation_config.eos_token_id == stops
    assert made[-1].item() in stops
    assert 3 < len(made) < 100
    assert "otter" in tokenizer.decode(made, skip_special_tokens=True).lower()


def test_the_tokenizer_has_llama_3_control_tokens_and_round_trips() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    names = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")
    ids = tokenizer.convert_tokens_to_ids([*names, "<|finetune_right_pad_id|>"])
    assert len(set(ids)) == 6
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    text = "Zoë's * naïve café - 42!\n\n<<x>> \U0001f98a"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    for role in ("user", "assistant"):
        assert len(tokenizer.encode(role, add_special_tokens=False)) == 1
