"""How questions reach a model and what of its text is judged: system turns, rendered prompts, reasoning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from alignloop.chat.load import load_format
from alignloop.engines.base import Completion, Engine, GenerateRequest
from alignloop.engines.transformers_engine import TransformersEngine
from alignloop.errors import DataError
from alignloop.evaluation.comparing import protocol_changes
from alignloop.evaluation.evaluate import evaluate
from alignloop.evaluation.ifeval import require_sentence_data
from alignloop.evaluation.reasoning import without_reasoning
from alignloop.evaluation.report import EvalReport, EvalSample
from alignloop.progress import QuietProgress
from alignloop.stages.evaluate import local_prompts, too_long

THOUGHT = "<think>\nNo commas, and bullets:\n* one\n</think>\n\n"
BENCH = [
    {"key": 1, "prompt": "About a swan. No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Give exactly 2 bullet points about the mill.",
        "instruction_id_list": ["detectable_format:number_bullet_lists"],
        "kwargs": [{"num_bullets": 2}],
    },
    {
        "key": 3,
        "prompt": "In lowercase English only: who keeps the bees?",
        "instruction_id_list": ["change_case:english_lowercase"],
        "kwargs": [{}],
    },
]
ANSWERS = ["The swan is white.", "* It grinds.\n* It turns.", "the old keeper does."]
LIKE_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n{{ m.content | trim }}<|eot_id|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)


class Said(QuietProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Scripted:
    """An engine that says what it is told to; ids are those of the checkpoint's tokenizer."""

    def __init__(self, checkpoint: Path, texts: Sequence[str]) -> None:
        self._chat = load_format(checkpoint)
        self._texts = texts
        self.asked: list[GenerateRequest] = []

    def load_weights(self, checkpoint: Path) -> None:
        pass

    def generate(self, requests: Sequence[GenerateRequest]) -> list[tuple[Completion, ...]]:
        self.asked += requests
        ids = [self._chat.completion(text).token_ids for text in self._texts]
        return [(Completion(token_ids, "stop"),) for token_ids in ids]


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def with_template(checkpoint: Path, folder: Path, template: str) -> Path:
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def asked(engine: Any, checkpoint: Path, task: str, **options: Any) -> EvalReport:
    settings: dict[str, Any] = {"include_path": None, "limit": None, "max_gen_tokens": 8, "seed": 0}
    settings |= {"progress": QuietProgress(), **options}
    return evaluate(cast(Engine, engine), checkpoint=checkpoint, tasks=[task], **settings)


def mmlu(folder: Path) -> Path:
    for part, rows in (("test", ["Where is it?,a,b,c,d,B"]), ("dev", ["One and one?,1,2,3,4,B"] * 2)):
        (folder / "mmlu" / part).mkdir(parents=True)
        (folder / "mmlu" / part / f"mills_{part}.csv").write_text("\n".join(rows) + "\n")
    return folder / "mmlu"


def test_without_a_system_turn_the_description_stands_before_the_first_user_turn(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = with_template(tiny_checkpoint, tmp_path / "gemma", LIKE_GEMMA)
    folder, samples = mmlu(tmp_path), tmp_path / "samples.jsonl"
    report = asked(engine, checkpoint, f"mmlu={folder}", samples_file=samples)
    (sample,) = [EvalSample.model_validate_json(line) for line in samples.read_text().splitlines()]
    assert [message.role for message in sample.messages] == ["user", "assistant"] * 2 + ["user"]
    assert sample.messages[0].content.startswith(
        "The following are multiple choice questions (with answers) about mills.\n\nOne and one?\nA. 1"
    )
    assert sample.messages[2].content.startswith("One and one?")
    assert report.protocol.system_turn is False
    plain = asked(engine, tiny_checkpoint, f"mmlu={folder}")
    assert plain.protocol.system_turn is True
    assert any("system_turn: True -> False" in change for change in protocol_changes(plain.protocol, report.protocol))
    # Preflight measures the same: one token too few is refused, the right number is not.
    tasks = local_prompts(f"mmlu={folder}", bundled=False)
    chat = load_format(checkpoint)
    needed = len(chat.prompt_ids(sample.messages)) + 2
    assert too_long(tasks, chat=chat, limit=None, max_model_len=needed) == []
    (found,) = too_long(tasks, chat=chat, limit=None, max_model_len=needed - 1)
    assert found.longest == needed
    with pytest.raises(DataError, match=f"longest needs {needed}"):
        asked(engine, checkpoint, f"mmlu={folder}", max_model_len=needed - 1)


def test_what_a_template_writes_by_itself_is_in_the_protocol(tiny_checkpoint: Path, tmp_path: Path) -> None:
    template = (tiny_checkpoint / "chat_template.jinja").read_text()
    dated = with_template(tiny_checkpoint, tmp_path / "dated", LIKE_GEMMA + "{# a #}")
    other = with_template(tiny_checkpoint, tmp_path / "other", LIKE_GEMMA + "{# b #}")
    assert template != LIKE_GEMMA
    bench = lines(tmp_path / "bench.jsonl", BENCH)
    digests = []
    for checkpoint in (dated, other, tiny_checkpoint):
        report = asked(Scripted(checkpoint, ANSWERS), checkpoint, f"ifeval={bench}")
        protocol = report.protocol.tasks["ifeval"]
        digests.append((protocol.prompt_digest, protocol.rendered_digest))
        assert protocol.rendered_digest
    assert digests[0] == digests[1]  # other templates, the same ids
    assert digests[0][0] == digests[2][0]  # the same messages, other ids
    assert digests[0][1] != digests[2][1]
    old = report.protocol.model_copy(
        update={
            "tasks": {"ifeval": protocol.model_copy(update={"rendered_digest": None})},
            "strip_reasoning": None,
            "system_turn": None,
        }
    )
    assert protocol_changes(old, report.protocol) == []  # not recorded is not different


def test_reasoning_is_judged_or_taken_off_as_the_protocol_says(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bench, samples = lines(tmp_path / "bench.jsonl", BENCH), tmp_path / "samples.jsonl"
    texts = [THOUGHT + answer for answer in ANSWERS]
    whole, said = Scripted(tiny_checkpoint, texts), Said()
    report = asked(whole, tiny_checkpoint, f"ifeval={bench}", progress=said)
    assert report.metrics["ifeval/prompt_level_strict_acc"] == 0.0
    assert report.protocol.strip_reasoning is False
    (line,) = said.lines
    assert "3 of 3 answers hold reasoning" in line
    assert "evaluate.strip_reasoning: true" in line

    said = Said()
    stripped = asked(
        Scripted(tiny_checkpoint, texts), tiny_checkpoint, f"ifeval={bench}",
        progress=said, strip_reasoning=True, samples_file=samples,
    )  # fmt: skip
    assert stripped.metrics["ifeval/prompt_level_strict_acc"] == 1.0
    assert stripped.protocol.strip_reasoning is True
    assert said.lines == []
    first = EvalSample.model_validate_json(samples.read_text().splitlines()[0])
    assert (first.response, first.reasoning) == (ANSWERS[0], "No commas, and bullets:\n* one")
    assert any("strip_reasoning" in change for change in protocol_changes(report.protocol, stripped.protocol))


def test_stop_strings_are_looked_for_in_the_answer_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """lm-eval's `mmlu_generative` stops at a line break, of which reasoning is full."""
    folder = mmlu(tmp_path)
    engine = Scripted(tiny_checkpoint, [f"{THOUGHT}B\nbecause"])
    report = asked(engine, tiny_checkpoint, f"mmlu_generative={folder}", strip_reasoning=True)
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


def test_responses_with_reasoning(alignloop, tmp_path: Path) -> None:
    bench = lines(tmp_path / "bench.jsonl", BENCH)
    rows = [{"prompt": row["prompt"], "response": THOUGHT + a} for row, a in zip(BENCH, ANSWERS, strict=True)]
    responses = lines(tmp_path / "responses.jsonl", rows)
    command = ["eval", "--responses", responses, "--benchmark", f"ifeval={bench}", "--json", tmp_path / "s.json"]
    whole = alignloop(*command)
    assert "prompt_level_strict_acc      0.0000" in whole.out
    assert "3 of 3 answers hold reasoning, which is judged as part of the answer; --strip" in whole.out
    stripped = alignloop(*command, "--strip-reasoning")
    assert "prompt_level_strict_acc      1.0000" in stripped.out
    assert "reasoning" not in stripped.out
    assert json.loads((tmp_path / "s.json").read_text())["strip_reasoning"] is True


def test_sentence_data_installed_as_hard_links_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As uv and conda install: nltk refuses files that have several links."""
    import nltk

    from alignloop.evaluation import ifeval

    require_sentence_data(["length_constraints:number_sentences"], where="here")
    found = Path(str(nltk.data.find(ifeval.SENTENCE_DATA)))
    linked = tmp_path / "linked" / ifeval.SENTENCE_DATA
    shutil.copytree(found, linked)
    for file in list(linked.iterdir()):
        file.with_suffix(".link").hardlink_to(file)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "linked")])
    require_sentence_data(["length_constraints:number_sentences"], where="here")
    row = ifeval.IfevalRow.model_validate(
        {
            "key": 1,
            "prompt": "p",
            "instruction_id_list": ["length_constraints:number_sentences"],
            "kwargs": [{"num_sentences": 2, "relation": "at least"}],
        }
    )
    assert ifeval.score_response(row, "One. Two. Three.")["prompt_level_strict_acc"] is True
