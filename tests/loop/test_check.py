"""What the checks learn, let through and write down; what they find wrong is held in `tests/golden`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.engines.checkpoint import tensor_shapes
from alignloop.errors import DiskFullError, UserError
from alignloop.loop.check import Checked, check, disk_needs_named, run_bytes
from alignloop.stages.facts import ProblemsError

SMALL: dict[str, Any] = {
    "base": "quickstart",
    "rounds": 2,
    "sample": {"max_tokens": 64},
    "evaluate": {"include_path": "quickstart"},
    "engine": {"max_model_len": 384, "name": "transformers"},
    **{stage: {"max_length": 384} for stage in ("reward", "sft", "dpo")},
}
NO_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
ALL_ASSISTANT = {"max_length": 384, "train_on": "all_assistant"}


def row(number: int, **columns: Any) -> dict[str, Any]:
    good = {"prompt": f"Name river number {number}.", "chosen": f"River {number} it is.", "rejected": "No."}
    return {**good, "topic": ("maths", "talk")[number % 2], **columns}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.jsonl", [row(number) for number in range(40)])


def look(preferences: Path, *, run_dir: Path | None = None, **values: Any) -> Checked:
    return check(load_recipe({**SMALL, "preferences": str(preferences), **values}), run_dir=run_dir)


def test_counts_and_lengths_of_a_good_file(good: Path, tmp_path: Path) -> None:
    checked = look(good, run_dir=tmp_path / "run")
    assert len(checked.rows.train) + len(checked.rows.heldout) == 40
    assert checked.rows.heldout
    assert len(checked.rows.prompts) == len(checked.rows.train)
    assert not checked.rows.rejected
    assert not (tmp_path / "run").exists()
    assert checked.base.had_template
    assert checked.base.max_positions
    assert checked.lengths is not None
    assert checked.lengths.prompt > 5


def test_quickstart_recipe_has_no_problem() -> None:
    checked = check(load_recipe("quickstart", overrides=["engine.name=transformers"]))
    assert len(checked.rows.train) > 1000
    assert len(checked.rows.prompts) > 500
    assert not checked.rows.rejected


@pytest.mark.parametrize(
    "values",
    [
        {"measure": {"enabled": False}, "data": {"heldout_fraction": 0.1}},
        {"pairs": {"max_preference_pairs": 0}},
        {"sample": {"max_tokens": 64, "num_candidates": 20_000}},  # more than vLLM takes
        {
            "sample": {
                "max_tokens": 64,
                "system_prompts": [{"text": "Show your steps.", "topics": ["maths"]}, {"text": "Be kind."}],
            }
        },
        {
            "data": {"heldout_fraction": 0.1},
            "sft": {"max_length": 384, "num_checkpoints": 2, "variants": [{}, {"seed": 1}]},
            "averaging": {"sft": {"choose": 3, "weights": [1, 1, 2]}, "dpo": {"choose": 1, "weights": [1]}},
        },
        {"judge": {"model": str(QUICKSTART / "base"), "max_tokens": 64}},
        {"judge": {"model": "nowhere", "prompt": "difficulty"}, "measure": {"judge": False}},
    ],
)
def test_settings_that_fit_say_nothing(good: Path, values: dict[str, Any]) -> None:
    assert look(good, **values).notes == ()


def test_a_rank_of_a_layers_smaller_side_is_no_note(good: Path) -> None:
    shapes = tensor_shapes(QUICKSTART / "base")
    width = min(min(shape) for name, shape in shapes.items() if name.endswith("k_proj.weight"))
    for rank, noted in ((width, False), (width + 1, True)):
        sft = {"max_length": 384, "lora": {"rank": rank, "target_modules": ["k_proj"]}}
        assert any("lora.rank" in note for note in look(good, sft=sft).notes) is noted


def test_system_prompts_that_are_never_used_are_noted(good: Path) -> None:
    for prompts, unused in (
        ([{"text": "x", "first_round": 3}, {"text": "y"}], 0),
        ([{"text": "x"}, {"text": "y", "topics": ["maths"]}], 1),
    ):
        (note,) = look(good, sample={"max_tokens": 64, "system_prompts": prompts}).notes
        assert note.startswith(f"sample.system_prompts[{unused}] is put before no prompt")


def test_reward_functions_that_can_be_called(good: Path, module_folder: Path) -> None:
    (module_folder / "rewards_of_check.py").write_text(
        "def good(completions, topic, rubric=None, **columns): return [0.0] * len(completions)\n"
    )
    assert look(good, score={"reward_functions": [{"function": "rewards_of_check:good"}]}).notes == ()


def test_columns_by_name(tmp_path: Path) -> None:
    rows = [{"ask": f"River {n}?", "a": {"text": f"It is {n}."}, "b": "No."} for n in range(40)]
    columns = {"prompt": "ask", "chosen": "a.text", "rejected": "b"}
    checked = look(write(tmp_path / "p.jsonl", rows), data={"columns": columns})
    assert len(checked.rows.train) + len(checked.rows.heldout) == 40


@pytest.mark.parametrize("template", ["llama3", "chatml"])
def test_a_base_without_a_template_and_a_named_one_is_enough(good: Path, tmp_path: Path, template: str) -> None:
    base = shutil.copytree(QUICKSTART / "base", tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    checked = look(good, base=str(base), chat_template=template)
    assert checked.base.had_template is False
    assert checked.lengths is not None


def test_a_template_without_system_role_matters_only_to_system_prompts(good: Path, tmp_path: Path) -> None:
    base = shutil.copytree(QUICKSTART / "base", tmp_path / "base")
    (base / "chat_template.jinja").write_text(NO_SYSTEM)
    assert look(good, base=str(base)).rows.prompts
    with pytest.raises(ProblemsError, match="System role not supported"):
        look(good, base=str(base), sample={"max_tokens": 64, "system_prompts": [{"text": "Be kind."}]})


def test_earlier_answers_pass_where_they_do_not_train_or_are_written_alike(tmp_path: Path) -> None:
    def turns(number: int) -> list[dict[str, Any]]:
        texts = ("Hello!", "Hi.", f"River {number}?")
        return [
            {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), texts, strict=True)
        ]

    rows = [row(n, prompt=turns(n)) for n in range(20)]
    path = write(tmp_path / "talks.jsonl", rows)
    assert look(path, chat_template="qwen3_training", sft=ALL_ASSISTANT).rows.prompts
    assert look(path, chat_template="qwen3").rows.prompts
    rows[3]["prompt"][1]["weight"] = 0
    marked = write(tmp_path / "marked.jsonl", rows)
    assert look(marked, chat_template="qwen3_training").rows.prompts
    with pytest.raises(ProblemsError, match=r"1 of 20 rows hold turns .*line 4, prompt\[1\]\.weight"):
        look(marked, chat_template="qwen3_training", sft=ALL_ASSISTANT)


def test_local_task_files(good: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text("task: my_rivers\noutput_type: multiple_choice\n")
    tasks = {"include_path": str(tmp_path / "tasks"), "tasks": ["my_rivers"]}
    assert look(good, evaluate=tasks, best_metric="my_rivers/acc").rows.prompts


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes want two cores")
def test_an_accelerate_file_that_is_used(tmp_path: Path, good: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: MULTI_GPU")
    assert look(good, training={"num_processes": 2, "accelerate": str(path)}).notes == ()


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ({"prompt": "Hi", "rejected": "No."}, "chosen", "is missing"),
        ({"prompt": "Hi", "chosen": "Same.", "rejected": "Same. "}, None, "the same text"),
        ('{"prompt": "Hi", "chosen": ', None, "invalid JSON"),
    ],
)
def test_bad_row_is_named_and_written_down(tmp_path: Path, line: Any, field: str | None, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", [row(1), line, row(2)])
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match=r"1 of 3 rows \(33.3%\) cannot be read") as caught:
        look(path, run_dir=run_dir)
    assert f"{path}, line 2" in str(caught.value)
    assert reason in str(caught.value)
    assert str(run_dir / "rejected_rows.jsonl") in str(caught.value)
    (rejected,) = [json.loads(text) for text in (run_dir / "rejected_rows.jsonl").read_text().splitlines()]
    assert (rejected["line"], rejected["field"]) == (2, field)
    # Allowed, the same rows go through, and a mended file leaves no stale list behind.
    assert len(look(path, run_dir=run_dir, data={"max_bad_fraction": 0.5}).rows.rejected) == 1
    look(write(path, [row(1), row(2)]), run_dir=run_dir)
    assert not (run_dir / "rejected_rows.jsonl").exists()


@pytest.mark.parametrize("lines", [[{"prompt": "Hi", "rejected": "No."}] * 3, ["{", "[]", "3"], [{"ask": "Hi"}] * 3])
def test_rejected_rows_are_written_also_where_none_can_be_read(tmp_path: Path, lines: list[Any]) -> None:
    path, run_dir = write(tmp_path / "bad.jsonl", lines), tmp_path / "run"
    with pytest.raises(ProblemsError, match=r"rejected_rows\.jsonl"):
        look(path, run_dir=run_dir)
    rejected = [json.loads(text) for text in (run_dir / "rejected_rows.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [1, 2, 3]


def test_rejected_rows_are_not_written_into_a_strangers_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [row(1), {"prompt": "Hi"}])
    stranger = tmp_path / "thesis"
    stranger.mkdir()
    (stranger / "chapter.txt").write_text("words")
    with pytest.raises(UserError):
        look(path, run_dir=stranger)
    assert [file.name for file in stranger.iterdir()] == ["chapter.txt"]


def test_disk_of_a_run() -> None:
    recipe = load_recipe({**SMALL, "preferences": "p.jsonl", "sample": {"max_tokens": 10, "num_candidates": 3}})
    # One float32 checkpoint of 1M parameters: 4 MB. A round: 3 stages x (1 kept + 1 averaged) = 24 MB, and rows:
    # 100 prompts x 3 candidates x (20 + 10) tokens x 12 bytes x 3 copies = 324 kB. Beside the rounds: base and final
    # (8 MB), a resume point (12 MB), 50 MB of small things.
    expected = 2 * (24_000_000 + 324_000) + 8_000_000 + 12_000_000 + 50_000_000
    assert run_bytes(recipe, num_parameters=1_000_000, num_prompts=100, prompt_tokens=20.0) == expected


def test_a_disk_that_fills_says_what_the_run_still_needs(tmp_path: Path) -> None:
    def fill() -> None:
        with disk_needs_named(tmp_path, needed_bytes=50_000_000):
            (tmp_path / "b").write_bytes(bytes(20_000_000))
            raise DiskFullError(tmp_path / "a.jsonl")

    with pytest.raises(DiskFullError, match=r"a\.jsonl: the disk is full; about 30 MB are needed, [\d,]+ MB are free"):
        fill()
