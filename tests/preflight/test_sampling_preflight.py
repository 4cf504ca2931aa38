"""What sampling and scoring would stop at is said before anything runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.preflight import Checked, check
from alignloop.preflight.findings import PreflightError
from alignloop.sampling.reward_functions import load

SMALL: dict[str, Any] = {
    "base": "quickstart",
    "rounds": 2,
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


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """40 preferences with topics; the working directory is theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    load.cache_clear()
    rows = [
        {
            "prompt": f"Name river number {n}.",
            "chosen": f"River {n} it is.",
            "rejected": "No.",
            "topic": ("maths", "talk")[n % 2],
        }
        for n in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield path
    load.cache_clear()


def look(path: Path, *, sample: dict[str, Any] | None = None, **values: Any) -> Checked:
    sampling = {"max_tokens": 64, **(sample or {})}
    return check(load_recipe({**SMALL, "preferences": str(path), "sample": sampling, **values}))


def problems(path: Path, **values: Any) -> tuple[str, ...]:
    with pytest.raises(PreflightError) as caught:
        look(path, **values)
    return caught.value.problems


def steered(*system_prompts: dict[str, Any]) -> dict[str, Any]:
    return {"system_prompts": list(system_prompts)}


def notes(path: Path, *system_prompts: dict[str, Any]) -> list[str]:
    return [note for note in look(path, sample=steered(*system_prompts)).notes if "system_prompts" in note]


def test_system_prompts_that_fit_say_nothing(prompts: Path) -> None:
    assert notes(prompts, {"text": "Show your steps.", "topics": ["maths"]}, {"text": "Be kind."}) == []


def test_a_template_without_system_role_is_a_problem_only_where_it_matters(prompts: Path, tmp_path: Path) -> None:
    base = shutil.copytree(QUICKSTART / "base", tmp_path / "base")
    (base / "chat_template.jinja").write_text(NO_SYSTEM)
    assert look(prompts, base=str(base)).num_prompts
    (problem,) = problems(prompts, base=str(base), sample=steered({"text": "Be kind."}))
    assert problem.startswith("sample.system_prompts[0]: the base's chat template takes no system message there: ")
    assert "System role not supported" in problem


def test_topics_that_no_prompt_has(prompts: Path) -> None:
    (problem,) = problems(prompts, sample=steered({"text": "x", "topics": ["math"]}))
    assert "sample.system_prompts[0].topics: no prompt has the topic 'math' - did you mean maths?" in problem
    said = notes(prompts, {"text": "x", "topics": ["cooking"]})
    assert said[0] == "sample.system_prompts[0].topics: no prompt has the topic 'cooking'"
    assert said[1].startswith("sample.system_prompts[0] is put before no prompt in rounds 1 to 2")


def test_system_prompts_that_are_never_used_are_noted(prompts: Path) -> None:
    (late,) = notes(prompts, {"text": "x", "first_round": 3}, {"text": "y"})
    assert late.startswith("sample.system_prompts[0] is put before no prompt")
    (hidden,) = notes(prompts, {"text": "x"}, {"text": "y", "topics": ["maths"]})
    assert hidden.startswith("sample.system_prompts[1] is put before no prompt")


def test_prompts_that_do_not_fit_with_their_system_prompt(prompts: Path) -> None:
    long = "Always name the river kindly. " * 40
    (problem,) = problems(prompts, sample=steered({"text": long}))
    assert problem.startswith("sample.system_prompts: with their system prompts ")
    assert "exceed 320 tokens" in problem
    (note,) = notes(prompts, {"text": long, "topics": ["maths"]}, {"text": "Be kind.", "topics": ["talk"]})
    assert note.endswith("they are left out and counted")


def functions(*names: str) -> dict[str, Any]:
    return {"reward_functions": [{"function": name} for name in names]}


def test_reward_functions_are_loaded(prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "rewards_of_preflight.py").write_text(
        "def good(completions, **columns): return [0.0] * len(completions)\n"
        "def wants(completions, answer): return [0.0] * len(completions)\n"
        "number = 3\n"
    )
    module = "rewards_of_preflight"
    assert look(prompts, score=functions(f"{module}:good")).num_prompts
    found = problems(prompts, score=functions(f"{module}:god", f"{module}:number", "nowhere:f", f"{module}:wants"))
    assert [problem.partition(": ")[2] or problem for problem in found[:3]] == [
        f"{tmp_path / module}.py has no 'god'; did you mean good?",
        f"number in {tmp_path / module}.py is of type int: name a function",
        f"no module 'nowhere' in {tmp_path} or among the installed packages",
    ]
    assert found[3].startswith(f"reward function {module}:wants wants answer, which is no column of the prompts")
    assert "columns: topic" in found[3]
    (twice,) = problems(prompts, score=functions(f"{module}:good", f"{module}:good"))
    assert "is named 2 times" in twice


def test_more_candidates_than_vllm_takes(prompts: Path) -> None:
    engine = {"max_model_len": 384, "name": "vllm"}
    found = problems(prompts, engine=engine, sample={"num_candidates": 20_000})
    assert any("sample.num_candidates: vLLM samples at most 16384" in problem for problem in found)
    assert look(prompts, sample={"num_candidates": 20_000}).num_prompts
