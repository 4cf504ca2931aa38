"""IFEval on local files: rows read, verdicts that are lm-eval's own, responses scored without a model."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_case import SENTENCES, SHARED_DATA, lines

from alignloop.errors import DataError
from alignloop.evaluation import ifeval
from alignloop.evaluation.ifeval import (
    ACCURACIES,
    estimates,
    load_checkers,
    read_ifeval,
    require_sentence_data,
    score_response,
)
from alignloop.evaluation.responses import score_file

IFEVAL = SHARED_DATA / "ifeval" / "input_data.jsonl"
ROW: dict[str, Any] = {
    "key": 7,
    "prompt": "Tell me about the old mill in three words, without commas.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "less than", "num_words": 4}],
}
ROWS: list[dict[str, Any]] = [
    {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {**ROW, "prompt": "Few words. No commas."},
]


def responses(path: Path, *pairs: tuple[str, Any]) -> Path:
    return lines(path, [{"prompt": prompt, "response": response} for prompt, response in pairs])


def answer(row: dict[str, Any], number: int) -> str:
    """An answer of one of ten kinds: they follow and break instructions of every type, strictly and loosely."""
    kinds = [
        f"{row['prompt']}\n\nHere is an answer. It has two sentences.",
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
    answers = [answer(row, number) for number, row in enumerate(rows)]
    # The file has them in another order than the benchmark.
    pairs = [(row["prompt"], text) for row, text in zip(rows, answers, strict=True)]
    scored = score_file(responses(tmp_path / "r.jsonl", *reversed(pairs)), benchmark=f"ifeval={IFEVAL}").as_json()
    utils = load_checkers()
    # Two prompts ask for "#" and "!" as letters: lm-eval draws a letter instead, from the stream it seeds with 0.
    random.seed(0)
    own = [utils.process_results(row, [text]) for row, text in zip(rows, answers, strict=True)]
    assert [row["key"] for row in scored["prompts"]] == [row["key"] for row in rows]
    for found, expected in zip(scored["prompts"], own, strict=True):
        assert {name: found[name] for name in ACCURACIES} == expected, found["prompt"]
    # All four figures, as lm-eval aggregates them; both kinds of verdict are there, and loose passes more.
    for level in ("strict", "loose"):
        prompt_level, inst_level = f"prompt_level_{level}_acc", f"inst_level_{level}_acc"
        assert scored[prompt_level] == pytest.approx(sum(row[prompt_level] for row in own) / 540)
        assert scored[inst_level] == pytest.approx(utils.agg_inst_level_acc([row[inst_level] for row in own]))
    assert 0.1 < scored["inst_level_strict_acc"] < scored["inst_level_loose_acc"] < 0.9


def test_a_row_scores_by_hand(tmp_path: Path) -> None:
    (row,) = read_ifeval(lines(tmp_path / "data.jsonl", [ROW]))
    assert score_response(row, "old quiet mill")["inst_level_strict_acc"] == [True, True]
    assert score_response(row, "old, quiet, and very small mill")["inst_level_strict_acc"] == [False, False]
    # Without its first line the answer has no comma: loose lets that pass, strict does not.
    verdicts = score_response(row, "Sure, here:\nold mill")
    assert verdicts["inst_level_strict_acc"] == [False, False]
    assert verdicts["inst_level_loose_acc"] == [True, True]


def test_figures_by_hand() -> None:
    # Prompt 1 follows a and b, prompt 2 follows a only, prompt 3 (b alone) nothing.
    verdicts = [
        {
            "prompt_level_strict_acc": all(followed),
            "inst_level_strict_acc": followed,
            "prompt_level_loose_acc": True,
            "inst_level_loose_acc": [True] * len(followed),
        }
        for followed in ([True, True], [True, False], [False])
    ]
    figures = estimates(verdicts, instruction_ids=[["a", "b"], ["a", "b"], ["b"]])
    assert {name: figure.value for name, (figure, _) in figures.items()} == pytest.approx(
        {
            "prompt_level_strict_acc": 1 / 3,
            "inst_level_strict_acc": 3 / 5,
            "prompt_level_loose_acc": 1,
            "inst_level_loose_acc": 1,
            "mean": (1 / 3 + 3 / 5 + 1 + 1) / 4,
            "type/a": 1,
            "type/b": 1 / 3,
        }
    )
    # type b: sd of (1, 0, 0) is sqrt(1/3), over sqrt(3): 1/3
    assert figures["type/b"][0].stderr == pytest.approx(1 / 3)
    assert [count for _, count in figures.values()] == [3, 5, 3, 5, 3, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction_id_list": ["punctuation:no_coma", "length_constraints:number_words"]}, "punctuation:no_comma"),
        ({"kwargs": [{}]}, "1 objects for 2 instructions"),
        ({"kwargs": [{}, {"num_wrods": 4}]}, "num_wrods"),
        ({"kwargs": [{}, {"relation": "fewer", "num_words": 4}]}, "kwargs of length_constraints:number_words"),
        ({"prompt": ""}, "prompt: "),
        ({"key": "x"}, "key: "),
    ],
)
def test_a_wrong_row_names_file_line_and_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = lines(tmp_path / "data.jsonl", [ROW, {**ROW, **change}])
    with pytest.raises(DataError, match=rf"data\.jsonl, line 2.*{message}"):
        read_ifeval(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("\n", "no rows"),
        ('{"key": 1', r"line 1: invalid JSON at column 10: .* it is cut short"),
        ("[" * 100_000, "line 1: invalid JSON: "),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_ifeval(tmp_path / "data.jsonl")


def test_missing_sentence_data_are_an_error_with_the_remedy(
    alignloop: Callable[..., Any], tmp_path: Path, without_sentence_data: None
) -> None:
    data = lines(tmp_path / "data.jsonl", [{**ROW, **SENTENCES}])
    (row,) = read_ifeval(data)
    with pytest.raises(DataError, match=r"length_constraints:number_sentences needs .* set NLTK_DATA to"):
        score_response(row, "One. Two.")
    file = responses(tmp_path / "r.jsonl", (ROW["prompt"], "a"))
    outcome = alignloop("eval", "--responses", file, "--benchmark", f"ifeval={data}")
    assert outcome.code == 2
    assert "set NLTK_DATA to" in " ".join(outcome.err.split())


def test_sentence_data_are_found_in_the_package_that_carries_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    (row,) = read_ifeval(lines(tmp_path / "data.jsonl", [{**ROW, **SENTENCES}]))
    for text, verdict in (("Mr. Smith came. He left.", True), ("He came at 5 p.m. and stayed.", False)):
        assert score_response(row, text)["prompt_level_strict_acc"] is verdict
    assert nltk.data.path[0] == str(tmp_path)  # a user's own folder comes first


def test_sentence_data_installed_as_hard_links_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As uv and conda install: nltk refuses files that have several links."""
    import nltk

    require_sentence_data(SENTENCES["instruction_id_list"], where="here")  # type: ignore[arg-type]
    linked = tmp_path / "linked" / ifeval.SENTENCE_DATA
    shutil.copytree(str(nltk.data.find(ifeval.SENTENCE_DATA)), linked)
    for file in list(linked.iterdir()):
        file.with_suffix(".link").hardlink_to(file)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "linked")])
    (row,) = read_ifeval(lines(tmp_path / "data.jsonl", [{**ROW, **SENTENCES}]))
    assert score_response(row, "One. Two. Three.")["prompt_level_strict_acc"] is True


def test_reading_leaves_the_global_random_stream_alone(tmp_path: Path) -> None:
    # `keywords:letter_frequency` without arguments draws a letter of its own.
    open_row = {**ROW, "instruction_id_list": ["keywords:letter_frequency"], "kwargs": [{}]}
    random.seed(3)
    state = random.getstate()
    read_ifeval(lines(tmp_path / "data.jsonl", [open_row]))
    assert random.getstate() == state


def test_the_checkers_load_without_any_network(tmp_path: Path) -> None:
    """A process whose every connection attempt ends it, and that has no nltk data."""
    script = (
        "import socket, sys\n"
        "def refuse(*a, **k): sys.exit('tried the network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from alignloop.evaluation.ifeval import load_checkers\n"
        "print(load_checkers().__name__)\n"
    )
    environment = {**os.environ, "NLTK_DATA": str(tmp_path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("LOCAL_RANK", None)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "lm_eval.tasks.ifeval.utils\n"


def test_the_command_writes_figures_and_verdicts(alignloop: Callable[..., Any], tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", ROWS)
    # The first follows; the second breaks the comma, and without its first line only that it was there.
    file = responses(tmp_path / "r.jsonl", (ROWS[0]["prompt"], "fine"), (ROWS[1]["prompt"], "Sure, so:\nold mill"))
    outcome = alignloop("eval", "--responses", file, "--benchmark", f"ifeval={data}", "--json", "out.json")
    assert outcome.code == 0, outcome.err
    assert "prompt_level_strict_acc      0.5000" in outcome.out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["prompt_level_strict_acc"] == 0.5
    assert written["inst_level_strict_acc"] == pytest.approx(1 / 3)
    assert written["prompt_level_loose_acc"] == written["inst_level_loose_acc"] == 1.0
    # sd of (1, 0) is sqrt(1/2), over sqrt(2)
    assert written["prompt_level_strict_acc_stderr"] == pytest.approx(0.5)
    assert [row["inst_level_strict_acc"] for row in written["prompts"]] == [[True], [False, False]]
    assert [row["inst_level_loose_acc"] for row in written["prompts"]] == [[True], [True, True]]
    assert [row["prompt_level_strict_acc"] for row in written["prompts"]] == [True, False]
    assert written["prompts"][1]["instruction_id_list"] == ROWS[1]["instruction_id_list"]


def test_responses_that_do_not_match_are_named_with_their_lines_and_counted(tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", ROWS)
    first = ROWS[0]["prompt"]
    file = responses(tmp_path / "r.jsonl", (first, "a"), (first, "b"), ("What?", "c"), (f"{first}\n", "d"))
    with pytest.raises(DataError, match=r"r\.jsonl") as caught:
        score_file(file, benchmark=f"ifeval={data}")
    text = str(caught.value)
    assert "line 2: the prompt 'No commas.' has a response in line 1 already" in text
    assert f"line 3: the prompt 'What?' is not one of {data}" in text
    assert f"line 4: the prompt 'No commas.' is not one of {data}; it is there with other white space" in text
    assert f"1 of the 2 prompts of {data} have no response: 'Few words. No commas.'" in text
    file = responses(tmp_path / "r.jsonl", *((f"prompt {number}", "x") for number in range(20)))
    with pytest.raises(DataError, match="2 of the 2 prompts") as caught:
        score_file(file, benchmark=f"ifeval={data}")
    assert "line 5" in str(caught.value)
    assert "line 6" not in str(caught.value)
    assert "... and 15 lines more" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n\n", r"the file has no responses; it must have JSON lines of `prompt` and `response`"),
        (b'{"prompt": "a"', r"line 1: invalid JSON at column 15: .* it is cut short"),
        (b'{"prompt": "No commas.", "response": "x"}\n["No commas."]\n', "line 2: a list, not an object"),
        (b'{"prompt": "No commas."}', r"line 1: `response` is missing \(it has prompt\)"),
        (b'{"instruction": "a", "output": "b"}', r"line 1: `prompt` is missing \(it has instruction, output\)"),
        (b'{"prompt": "No commas.", "response": null}', "line 1: `response` is null, not a text"),
        (b'{"prompt": "No commas.", "response": ["x"]}', r'line 1: `response` is \["x"\], not a text'),
        (b'{"prompt": "\xff", "response": "x"}', "line 1: not UTF-8"),
        (b'{"prompt": 1' + b"0" * 5000 + b"}", "line 1: invalid JSON: "),
    ],
)
def test_a_file_in_another_form_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    data = lines(tmp_path / "data.jsonl", ROWS)
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        score_file(tmp_path / "r.jsonl", benchmark=f"ifeval={data}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--responses", "FILE"), "--benchmark ifeval=DATA.jsonl is missing"),
        (("--benchmark", "BENCH"), "--responses FILE is missing"),
        ((), "name a CHECKPOINT to measure, or --responses"),
        (("model", "--responses", "FILE", "--benchmark", "BENCH"), "scored without a model"),
        (("--responses", "FILE", "--benchmark", "BENCH", "--limit", "1"), "eval: --limit and --responses"),
        (("--responses", ".", "--benchmark", "BENCH"), "a folder. Responses are"),
        (("--responses", "FILE", "--benchmark", "mmlu=folder"), "other benchmarks need a model"),
        (("--responses", "none", "--benchmark", "BENCH"), "no such file. Responses are"),
        (("--responses", "FILE", "--benchmark", "ifeval=none.jsonl"), "no such file. IFEval data are"),
    ],
)
def test_wrong_flags_say_what_to_do(
    alignloop: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    data = lines(tmp_path / "data.jsonl", ROWS)
    file = responses(tmp_path / "r.jsonl", (ROWS[0]["prompt"], "a"))
    names = {"FILE": file, "BENCH": f"ifeval={data}"}
    outcome = alignloop("eval", *(names.get(argument, argument) for argument in arguments))
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split()), outcome.err
