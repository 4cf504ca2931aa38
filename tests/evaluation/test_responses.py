from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignloop.errors import DataError
from alignloop.evaluation.ifeval import load_checkers
from alignloop.evaluation.responses import score_file

SHARED_DATA = Path(__file__).resolve().parents[2] / "../shared/data"
IFEVAL = SHARED_DATA / "ifeval" / "input_data.jsonl"
METRICS = ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc")
ROWS: list[dict[str, Any]] = [
    {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Few words. No commas.",
        "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
        "kwargs": [{"relation": "less than", "num_words": 4}, {}],
    },
]


def _lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _responses(path: Path, *pairs: tuple[str, Any]) -> Path:
    return _lines(path, [{"prompt": prompt, "response": response} for prompt, response in pairs])


def _answer(row: dict[str, Any], number: int) -> str:
    """An answer of one of ten kinds: they follow and break instructions of every type, strictly and loosely."""
    prompt = row["prompt"]
    kinds = [
        f"{prompt}\n\nHere is an answer. It has two sentences.",
        "Sure, here it is:\n* one\n* two\n* three\n\nP.S. *this* and *that* and **those**",
        "<<A title>>\n\nall lower case words without any comma in them\n\nhope this helps, bye",
        '"MY ANSWER IS YES."',
        'Of course:\n```json\n{"a": [1]}\n```',
        "",
        " ".join(["The quick brown fox jumps over the lazy dog."] * 60),
        "Paragraph one.\n\n***\n\nParagraph two.\n\n***\n\nParagraph three.\n\nIs there anything else I can help with?",
        "SECTION 1\nFirst [name] [place] [date].\nSECTION 2\nSecond, with a comma.\n******\nAnother one. P.P.S. done",
        "Ich weiß nicht, was soll es bedeuten, dass ich so traurig bin.\n" + "wort " * 120,
    ]
    return kinds[number % len(kinds)]


@pytest.mark.usefixtures("sentence_data")
def test_verdicts_on_all_540_prompts_are_lm_evals_own(tmp_path: Path) -> None:
    if not IFEVAL.is_file():
        pytest.skip(f"no {IFEVAL}")
    rows = [json.loads(line) for line in IFEVAL.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 540
    answers = [_answer(row, number) for number, row in enumerate(rows)]
    # The file has them in another order than the benchmark.
    pairs = [(row["prompt"], answer) for row, answer in zip(rows, answers, strict=True)]
    scored = score_file(_responses(tmp_path / "r.jsonl", *reversed(pairs)), benchmark=f"ifeval={IFEVAL}").as_json()
    utils = load_checkers()
    # Two prompts ask for "#" and "!" as letters: lm-eval draws a letter instead, from the stream it seeds with 0.
    random.seed(0)
    own = [utils.process_results(row, [answer]) for row, answer in zip(rows, answers, strict=True)]
    assert [row["key"] for row in scored["prompts"]] == [row["key"] for row in rows]
    for found, expected in zip(scored["prompts"], own, strict=True):
        assert {name: found[name] for name in METRICS} == expected, found["prompt"]
    # All four figures, as lm-eval aggregates them; both kinds of verdict are there, and loose passes more.
    for level in ("strict", "loose"):
        prompt_level, inst_level = f"prompt_level_{level}_acc", f"inst_level_{level}_acc"
        assert scored[prompt_level] == pytest.approx(sum(row[prompt_level] for row in own) / 540)
        assert scored[inst_level] == pytest.approx(utils.agg_inst_level_acc([row[inst_level] for row in own]))
    assert 0.1 < scored["inst_level_strict_acc"] < scored["inst_level_loose_acc"] < 0.9


def test_the_command_writes_figures_and_verdicts(alignloop: Callable[..., Any], tmp_path: Path) -> None:
    data = _lines(tmp_path / "data.jsonl", ROWS)
    # The first follows; the second breaks the comma, and without its first line only that it was there.
    file = _responses(tmp_path / "r.jsonl", (ROWS[0]["prompt"], "fine"), (ROWS[1]["prompt"], "Sure, so:\nold mill"))
    outcome = alignloop("eval", "--responses", file, "--benchmark", f"ifeval={data}", "--json", "out.json")
    assert outcome.code == 0, outcome.err
    assert "prompt_level_strict_acc      0.5000" in outcome.out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["prompt_level_strict_acc"] == 0.5
    assert written["inst_level_strict_acc"] == pytest.approx(1 / 3)
    assert written["prompt_level_loose_acc"] == written["inst_level_loose_acc"] == 1.0
    assert written["mean"] == pytest.approx((0.5 + 1 / 3 + 1 + 1) / 4)
    # sd of (1, 0) is sqrt(1/2), over sqrt(2)
    assert written["prompt_level_strict_acc_stderr"] == pytest.approx(0.5)
    assert [row["inst_level_strict_acc"] for row in written["prompts"]] == [[True], [False, False]]
    assert [row["inst_level_loose_acc"] for row in written["prompts"]] == [[True], [True, True]]
    assert [row["prompt_level_strict_acc"] for row in written["prompts"]] == [True, False]
    assert written["prompts"][1]["instruction_id_list"] == ROWS[1]["instruction_id_list"]


def test_responses_that_do_not_match_are_named_with_their_lines(tmp_path: Path) -> None:
    data = _lines(tmp_path / "data.jsonl", ROWS)
    first = ROWS[0]["prompt"]
    file = _responses(tmp_path / "r.jsonl", (first, "a"), (first, "b"), ("What?", "c"), (f"{first}\n", "d"))
    with pytest.raises(DataError, match=r"r\.jsonl") as caught:
        score_file(file, benchmark=f"ifeval={data}")
    text = str(caught.value)
    assert "line 2: the prompt 'No commas.' has a response in line 1 already" in text
    assert f"line 3: the prompt 'What?' is not one of {data}" in text
    assert f"line 4: the prompt 'No commas.' is not one of {data}; it is there with other white space" in text
    assert f"1 of the 2 prompts of {data} have no response: 'Few words. No commas.'" in text


def test_many_wrong_lines_are_counted(tmp_path: Path) -> None:
    data = _lines(tmp_path / "data.jsonl", ROWS)
    file = _responses(tmp_path / "r.jsonl", *((f"prompt {number}", "x") for number in range(20)))
    with pytest.raises(DataError, match="2 of the 2 prompts") as caught:
        score_file(file, benchmark=f"ifeval={data}")
    assert "line 5" in str(caught.value)
    assert "line 6" not in str(caught.value)
    assert "... and 15 lines more" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file has no responses; it must have JSON lines of `prompt` and `response`"),
        (b"\n\n", "the file has no responses"),
        (b'{"prompt": "a"', r"line 1: invalid JSON at column 15: .* it is cut short"),
        (b'{"prompt": "No commas.", "response": "x"}\n["No commas."]\n', "line 2: a list, not an object"),
        (b'{"prompt": "No commas."}', r"line 1: `response` is missing \(it has prompt\)"),
        (b'{"instruction": "a", "output": "b"}', r"line 1: `prompt` is missing \(it has instruction, output\)"),
        (b'{"prompt": "No commas.", "response": null}', "line 1: `response` is null, not a text"),
        (b'{"prompt": "No commas.", "response": ["x"]}', r'line 1: `response` is \["x"\], not a text'),
        (b'{"prompt": "\xff", "response": "x"}', "line 1: not UTF-8"),
        (b"[" * 100_000, "line 1: invalid JSON: "),
        (b'{"prompt": 1' + b"0" * 5000 + b"}", "line 1: invalid JSON: "),
    ],
)
def test_a_file_in_another_form_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    data = _lines(tmp_path / "data.jsonl", ROWS)
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        score_file(tmp_path / "r.jsonl", benchmark=f"ifeval={data}")


def test_wrong_flags_and_missing_data_say_what_to_do(
    alignloop: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _lines(tmp_path / "data.jsonl", ROWS)
    file = _responses(tmp_path / "r.jsonl", (ROWS[0]["prompt"], "a"))
    outcomes = {
        "--benchmark ifeval=DATA.jsonl is missing": ("--responses", file),
        "--responses FILE is missing": ("--benchmark", f"ifeval={data}"),
        "name a CHECKPOINT to measure, or --responses": (),
        "scored without a model": ("model", "--responses", file, "--benchmark", f"ifeval={data}"),
        "eval: --limit and --responses": ("--responses", file, "--benchmark", f"ifeval={data}", "--limit", 1),
        "a folder. Responses are": ("--responses", tmp_path, "--benchmark", f"ifeval={data}"),
        "other benchmarks need a model": ("--responses", file, "--benchmark", "mmlu=folder"),
        "no such file. Responses are": ("--responses", tmp_path / "none", "--benchmark", f"ifeval={data}"),
        "no such file. IFEval data are": ("--responses", file, "--benchmark", "ifeval=none.jsonl"),
    }
    for message, arguments in outcomes.items():
        outcome = alignloop("eval", *arguments)
        assert outcome.code == 2
        assert message in " ".join(outcome.err.split()), outcome.err
    import nltk

    monkeypatch.setattr(nltk.data, "path", [os.fspath(tmp_path)])
    monkeypatch.setattr("alignloop.evaluation.ifeval.SENTENCE_PACKAGE", ("no_such_package", ""))
    sentences = {
        **ROWS[0],
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 2}],
    }
    outcome = alignloop("eval", "--responses", file, "--benchmark", f"ifeval={_lines(data, [sentences])}")
    assert outcome.code == 2
    assert "set NLTK_DATA to" in " ".join(outcome.err.split())
