from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignloop.errors import DataError
from alignloop.evaluation.ifeval import estimates, load_checkers, read_ifeval, score_response

IFEVAL = Path(__file__).resolve().parents[2] / "../shared/data/ifeval/input_data.jsonl"
ROW: dict[str, Any] = {
    "key": 7,
    "prompt": "Tell me about the old mill in three words, without commas.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "less than", "num_words": 4}],
}


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _responses(prompt: str) -> list[str]:
    """Answers of many kinds, so that verdicts of both kinds come up."""
    return [
        f"{prompt}\n\nHere is an answer. It has two sentences.",
        "* one\n* two\n* three\n\nP.S. *this* and *that* and **those**",
        "<<A title>>\n\nall lower case words without any comma in them",
        '"MY ANSWER IS YES."',
        '```json\n{"a": [1]}\n```',
        "",
    ]


@pytest.mark.usefixtures("sentence_data")
def test_verdicts_are_those_of_lm_evals_own_functions() -> None:
    if not IFEVAL.is_file():
        pytest.skip(f"no {IFEVAL}")
    utils = load_checkers()
    rows = read_ifeval(IFEVAL)
    num_followed = num_asked = 0
    for row, raw in list(zip(rows, map(json.loads, IFEVAL.read_text(encoding="utf-8").splitlines()), strict=True))[::9]:
        for response in _responses(row.prompt):
            strict = utils.test_instruction_following_strict(utils.InputExample(**raw), response)
            loose = utils.test_instruction_following_loose(utils.InputExample(**raw), response)
            assert score_response(row, response) == {
                "prompt_level_strict_acc": strict.follow_all_instructions,
                "inst_level_strict_acc": strict.follow_instruction_list,
                "prompt_level_loose_acc": loose.follow_all_instructions,
                "inst_level_loose_acc": loose.follow_instruction_list,
            }
            num_followed += sum(strict.follow_instruction_list)
            num_asked += len(strict.follow_instruction_list)
    assert num_asked > 500
    assert 0.1 < num_followed / num_asked < 0.9


def test_a_row_scores_by_hand(tmp_path: Path) -> None:
    (row,) = read_ifeval(_write(tmp_path / "data.jsonl", json.dumps(ROW)))
    assert score_response(row, "old quiet mill")["inst_level_strict_acc"] == [True, True]
    assert score_response(row, "old, quiet, and very small mill")["inst_level_strict_acc"] == [False, False]
    # Without its first line the answer has no comma: loose lets that pass, strict does not.
    verdicts = score_response(row, "Sure, here:\nold mill")
    assert verdicts["inst_level_strict_acc"] == [False, False]
    assert verdicts["inst_level_loose_acc"] == [True, True]


def test_figures_by_hand() -> None:
    # Prompt 1 follows a and b, prompt 2 follows a only, prompt 3 (b alone) nothing.
    strict = [[True, True], [True, False], [False]]
    verdicts = [
        {
            "prompt_level_strict_acc": all(followed),
            "inst_level_strict_acc": followed,
            "prompt_level_loose_acc": True,
            "inst_level_loose_acc": [True] * len(followed),
        }
        for followed in strict
    ]
    figures = estimates(verdicts, instruction_ids=[["a", "b"], ["a", "b"], ["b"]])
    assert figures["prompt_level_strict_acc"].value == pytest.approx(1 / 3)
    assert figures["inst_level_strict_acc"].value == pytest.approx(3 / 5)
    assert figures["prompt_level_loose_acc"].value == 1.0
    assert figures["mean"].value == pytest.approx((1 / 3 + 3 / 5 + 1 + 1) / 4)
    assert figures["type/a"].value == 1.0
    assert figures["type/b"].value == pytest.approx(1 / 3)
    # type b: sd of (1, 0, 0) is sqrt(1/3), over sqrt(3): 1/3
    assert figures["type/b"].stderr == pytest.approx(1 / 3)


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
    path = _write(tmp_path / "data.jsonl", json.dumps(ROW), json.dumps({**ROW, **change}))
    with pytest.raises(DataError, match="line 2") as caught:
        read_ifeval(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_ifeval(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no rows"):
        read_ifeval(_write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(DataError, match=r"line 1: invalid JSON at column 10: .* it is cut short"):
        read_ifeval(_write(tmp_path / "broken.jsonl", '{"key": 1'))
    with pytest.raises(DataError, match="line 1: invalid JSON: "):
        read_ifeval(_write(tmp_path / "deep.jsonl", "[" * 100_000))


def test_missing_sentence_data_are_an_error_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr("alignloop.evaluation.ifeval.SENTENCE_PACKAGE", ("no_such_package", ""))
    sentences = {
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 2}],
    }
    (row,) = read_ifeval(_write(tmp_path / "data.jsonl", json.dumps({**ROW, **sentences})))
    with pytest.raises(DataError, match="NLTK_DATA") as caught:
        score_response(row, "One. Two.")
    assert "length_constraints:number_sentences" in str(caught.value)


def test_sentence_data_are_found_in_the_package_that_carries_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    for text, verdict in (("Mr. Smith came. He left.", True), ("He came at 5 p.m. and stayed.", False)):
        sentences = {
            "instruction_id_list": ["length_constraints:number_sentences"],
            "kwargs": [{"relation": "at least", "num_sentences": 2}],
        }
        (row,) = read_ifeval(_write(tmp_path / "data.jsonl", json.dumps({**ROW, **sentences})))
        assert score_response(row, text)["prompt_level_strict_acc"] is verdict
    assert nltk.data.path[0] == str(tmp_path)  # a user's own folder comes first


def test_reading_leaves_the_global_random_stream_alone(tmp_path: Path) -> None:
    # `keywords:letter_frequency` without arguments draws a letter of its own.
    open_row = {**ROW, "instruction_id_list": ["keywords:letter_frequency"], "kwargs": [{}]}
    path = _write(tmp_path / "data.jsonl", json.dumps(open_row))
    random.seed(3)
    expected = random.random()
    random.seed(3)
    read_ifeval(path)
    assert random.random() == expected


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
