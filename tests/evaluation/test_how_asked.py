"""How questions reach a model and what of its text is judged: system turns, rendered prompts, reasoning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_case import Lines, NoEngine, Scripted, asked, lines, mmlu_folder, samples_in

from alignloop.alone.evaluate import find_protocol
from alignloop.chat.load import load_format
from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.engines.transformers_engine import TransformersEngine
from alignloop.errors import DataError, ModelError
from alignloop.evaluation.comparing import protocol_changes
from alignloop.evaluation.questions import without_reasoning
from alignloop.stages.evaluate import local_prompts, too_long

THOUGHT = "<think>\nNo commas, and bullets:\n* one\n</think>\n\n"
BENCH: list[dict[str, Any]] = [
    {"key": 1, "prompt": "About a swan. No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Give exactly 2 bullet points about the mill.",
        "instruction_id_list": ["detectable_format:number_bullet_lists"],
        "kwargs": [{"num_bullets": 2}],
    },
]
ANSWERS = ["The swan is white.", "* It grinds.\n* It turns."]
LIKE_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n{{ m.content | trim }}<|eot_id|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)


@pytest.fixture
def bench(tmp_path: Path) -> str:
    return f"ifeval={lines(tmp_path / 'bench.jsonl', BENCH)}"


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    return mmlu_folder(tmp_path / "mmlu", {"mills": ["Where is it?,a,b,c,d,B"]}, ["One and one?,1,2,3,4,B"] * 2)


def with_template(checkpoint: Path, folder: Path, template: str) -> Path:
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def test_without_a_system_turn_the_description_stands_before_the_first_user_turn(
    engine: TransformersEngine, tiny_checkpoint: Path, mmlu: Path, tmp_path: Path
) -> None:
    checkpoint = with_template(tiny_checkpoint, tmp_path / "gemma", LIKE_GEMMA)
    report = asked(engine, checkpoint, f"mmlu={mmlu}", samples_file=tmp_path / "samples.jsonl")
    (sample,) = samples_in(tmp_path / "samples.jsonl")
    assert [message.role for message in sample.messages] == ["user", "assistant"] * 2 + ["user"]
    assert sample.messages[0].content.startswith(
        "The following are multiple choice questions (with answers) about mills.\n\nOne and one?\nA. 1"
    )
    assert sample.messages[2].content.startswith("One and one?")
    assert report.protocol.system_turn is False
    plain = asked(engine, tiny_checkpoint, f"mmlu={mmlu}")
    assert plain.protocol.system_turn is True
    assert any("system_turn: True -> False" in change for change in protocol_changes(plain.protocol, report.protocol))
    # The check measures the same: one token too few is refused, the right number is not.
    tasks = local_prompts(f"mmlu={mmlu}", bundled=False)
    chat = load_format(checkpoint)
    needed = len(chat.prompt_ids(sample.messages)) + 2
    assert too_long(tasks, chat=chat, limit=None, max_model_len=needed) == []
    (found,) = too_long(tasks, chat=chat, limit=None, max_model_len=needed - 1)
    assert found.longest == needed
    with pytest.raises(DataError, match=f"longest needs {needed}"):
        asked(engine, checkpoint, f"mmlu={mmlu}", max_model_len=needed - 1)


def test_what_a_template_writes_by_itself_is_in_the_protocol(tiny_checkpoint: Path, bench: str, tmp_path: Path) -> None:
    dated, other = (with_template(tiny_checkpoint, tmp_path / x, LIKE_GEMMA + f"{{# {x} #}}") for x in "ab")
    digests = []
    for checkpoint in (dated, other, tiny_checkpoint):
        report = asked(Scripted(checkpoint, ANSWERS), checkpoint, bench)
        protocol = report.protocol.tasks["ifeval"]
        digests.append((protocol.prompt_digest, protocol.rendered_digest))
        assert protocol.rendered_digest
    assert digests[0] == digests[1]  # other templates, the same ids
    assert digests[0][0] == digests[2][0]  # the same messages, other ids
    assert digests[0][1] != digests[2][1]
    older = {"tasks": {"ifeval": protocol.model_copy(update={"rendered_digest": None})}}
    old = report.protocol.model_copy(update={**older, "strip_reasoning": None, "system_turn": None})
    assert protocol_changes(old, report.protocol) == []  # not recorded is not different


def test_reasoning_is_judged_or_taken_off_as_the_protocol_says(
    tiny_checkpoint: Path, bench: str, tmp_path: Path
) -> None:
    engine = Scripted(tiny_checkpoint, [THOUGHT + answer for answer in ANSWERS])
    said = Lines()
    report = asked(engine, tiny_checkpoint, bench, progress=said)
    assert report.metrics["ifeval/prompt_level_strict_acc"] == 0.0
    assert report.protocol.strip_reasoning is False
    (line,) = said.lines
    assert "2 of 2 answers hold reasoning" in line
    assert "evaluate.strip_reasoning: true" in line

    said, samples = Lines(), tmp_path / "samples.jsonl"
    stripped = asked(engine, tiny_checkpoint, bench, progress=said, strip_reasoning=True, samples_file=samples)
    assert stripped.metrics["ifeval/prompt_level_strict_acc"] == 1.0
    assert stripped.protocol.strip_reasoning is True
    assert said.lines == []
    first = samples_in(samples)[0]
    assert (first.response, first.reasoning) == (ANSWERS[0], "No commas, and bullets:\n* one")
    assert any("strip_reasoning" in change for change in protocol_changes(report.protocol, stripped.protocol))


def test_stop_strings_are_looked_for_in_the_answer_alone(tiny_checkpoint: Path, mmlu: Path) -> None:
    """lm-eval's `mmlu_generative` stops at a line break, of which reasoning is full."""
    engine = Scripted(tiny_checkpoint, [f"{THOUGHT}B\nbecause"])
    report = asked(engine, tiny_checkpoint, f"mmlu_generative={mmlu}", strip_reasoning=True)
    assert report.metrics["mmlu_generative/exact_match,get_response"] == 1.0
    assert engine.asked[0].stop_strings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", (None, "plain")),
        ("<think>a</think>b", ("a", "b")),
        ("a</think>\n\nb", ("a", "b")),  # the template opened it
        ("<think>a, and then", ("<think>a, and then", "")),  # cut while it thought: no answer
        ("b <think>", (None, "b <think>")),
    ],
)
def test_without_reasoning(text: str, expected: tuple[str | None, str]) -> None:
    assert without_reasoning(text) == expected


def test_responses_with_reasoning(alignloop: Callable[..., Any], bench: str, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "response": THOUGHT + a} for row, a in zip(BENCH, ANSWERS, strict=True)]
    responses = lines(tmp_path / "responses.jsonl", rows)
    command = ["eval", "--responses", responses, "--benchmark", bench, "--json", tmp_path / "s.json"]
    whole = alignloop(*command)
    assert "prompt_level_strict_acc      0.0000" in whole.out
    assert "2 of 2 answers hold reasoning, which is judged as part of the answer; --strip" in whole.out
    stripped = alignloop(*command, "--strip-reasoning")
    assert "prompt_level_strict_acc      1.0000" in stripped.out
    assert "reasoning" not in stripped.out
    assert json.loads((tmp_path / "s.json").read_text())["strip_reasoning"] is True


def test_a_checkpoint_without_a_template_is_refused_with_the_remedy(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(tiny_checkpoint, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"bare: the tokenizer has no chat template.*--chat-template llama3"):
        asked(NoEngine(), bare, "ifeval", include_path="quickstart")


def test_a_runs_checkpoint_is_measured_as_the_run_does(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", overrides=["evaluate.limit=7"])
    (tmp_path / "run" / "round-01").mkdir(parents=True)
    (tmp_path / "run" / "resolved.json").write_text(
        json.dumps({"run_version": 1, "recipe": recipe.model_dump(mode="json")})
    )
    own = shutil.copytree(QUICKSTART / "base", tmp_path / "run" / "round-01" / "model")
    setting, _ = find_protocol(own, {})
    assert (setting.evaluate, setting.engine) == (recipe.evaluate, recipe.engine)
    assert find_protocol(own, {"tasks": ("ifeval",)})[0].evaluate.limit == 7
    # Other tasks than the run's have lengths of their own; so has a checkpoint outside any run.
    other, _ = find_protocol(own, {"tasks": ("gsm8k",)})
    assert (other.evaluate.limit, other.engine.max_model_len, other.engine.dtype) == (None, 2048, "float32")
    outside, origin = find_protocol(QUICKSTART / "base", {})
    assert (outside.evaluate.include_path, origin) == ("quickstart", None)
    assert find_protocol(QUICKSTART / "base", {"include_path": ""})[0].evaluate.include_path is None
    named, _ = find_protocol(QUICKSTART / "base", {"limit": 3}, config=str(tmp_path / "run"))
    assert (named.evaluate.limit, named.engine.max_model_len) == (3, recipe.engine.max_model_len)
