"""A run against others: differences by hand, the same in the page, the text and the JSON; what cannot be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_run import begin, lines, protocol, put
from test_report_page import ShownPage

from alignloop.evaluation.report import EvalReport, EvalSample
from alignloop.evaluation.results import estimates_of
from alignloop.records import RoundRow
from alignloop.report.pages import write_comparison
from alignloop.report.paired import compare_runs

KEY = "gsm8k/exact_match"
Right = Sequence[int]
"""One a question: 1 where it is answered right."""


def evaluated(run_dir: Path, number: int, right: Right, *, shots: int = 0, more: Right = ()) -> RoundRow:
    """Publish a round's evaluation of gsm8k, and of another task where `more` has its answers."""
    answers = {"gsm8k": right, **({"arc": more} if more else {})}
    how = protocol().tasks["ifeval"]
    tasks = {
        name: how.model_copy(update={"task": name, "num_fewshot": shots if name == "gsm8k" else 0}) for name in answers
    }
    samples = [
        EvalSample(task=name, index=index, messages=[], prompt=f"{index}", verdicts={"exact_match": float(value)})
        for name, values in answers.items()
        for index, value in enumerate(values)
    ]
    metrics = {key: counted[0].value for key, counted in estimates_of(samples, groups={}).items()}
    asked = protocol().model_copy(update={"tasks": tasks})
    report = EvalReport(metrics=metrics, stderr={}, counts={}, protocol=asked)
    texts = {
        "report.json": report.model_dump_json(),
        "samples.jsonl": "".join(row.model_dump_json() + "\n" for row in samples),
    }
    put(run_dir, number, "13_evaluate", files=texts, metrics=metrics, seconds={"evaluating": 4.0})
    return RoundRow(round=number, policy="p", metrics=metrics, stderr={}, reward_model={}, rows={}, seconds={})


def made(run_dir: Path, *rounds: Right, tokens: tuple[int, int] = (0, 0), **how: Any) -> Path:
    """A run of gsm8k, the base first; each later round trained on so many tokens in SFT and DPO."""
    begin(run_dir, rounds=len(rounds) - 1, overrides=[f"best_metric={KEY}"])
    for number in range(1, len(rounds)):
        put(run_dir, number, "01_collect", counts={"preferences": 9, "annotated": 3}, seconds={"annotating": 1.0})
        put(run_dir, number, "08_train_sft", facts={"trained_tokens": tokens[0]}, seconds={"training": 2.0})
        put(
            run_dir, number, "11_train_dpo",  # as earlier versions left it: in the log alone
            files={"train_log.jsonl": lines([{"step": step, "num_tokens": tokens[1] // 2} for step in (1, 2)])},
        )  # fmt: skip
    rows = [evaluated(run_dir, number, right, **how) for number, right in enumerate(rounds)]
    (run_dir / "rounds.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return run_dir


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Four questions. The run is best in round 2, with 4 of 4; the control in round 1, with 2 of 4."""
    return (
        made(tmp_path / "mine", (1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 1), tokens=(1000, 600)),
        made(tmp_path / "mine-offline", (1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 0), tokens=(900, 700)),
    )


def test_differences_by_hand(runs: tuple[Path, Path]) -> None:
    """Round 1: by question +1, 0, -1, 0, mean 0. Variance of the mean: 4/3 x sum((d/4)^2) = 4/3 x 2/16 = 1/6."""
    (paired,) = compare_runs(runs).pairs
    assert paired.refused == ()
    of_key = paired.of_key(KEY)
    assert [pair.label for pair, _ in of_key] == ["base", "round 1", "round 2", "best rounds 2 and 1"]
    assert [found.difference for _, found in of_key] == [0.0, 0.0, 1.0, 0.5]
    half = 1.959964 * math.sqrt(1 / 6)
    assert (of_key[1][1].low, of_key[1][1].high) == (pytest.approx(-half), pytest.approx(half))
    # 1, 0, 0, 1 around their mean of 0.5: 4/3 x 4 x (0.5/4)^2 = 1/12.
    best = of_key[3][1]
    half = 1.959964 * math.sqrt(1 / 12)
    assert (best.low, best.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert best.num_pairs == 4


def test_the_text_says_best_and_last_and_what_both_spent(runs: tuple[Path, Path]) -> None:
    assert compare_runs(runs).text().splitlines() == [
        "mine minus mine-offline: points, with 95 % intervals paired by question",
        "  gsm8k/exact_match",
        "    best rounds 2 and 1    100.0   50.0  +50.0 (-6.6 to +106.6)  within noise",
        "    round 2                100.0    0.0  +100.0 (+100.0 to +100.0) better",
        "",
        "                                    SFT tokens  DPO tokens  annotations  seconds",
        "mine                                     2,000       1,200            6       18",
        "mine-offline                             1,800       1,400            6       18",
    ]


def test_where_the_last_round_is_the_best_of_both_it_stands_there_once(tmp_path: Path) -> None:
    one = made(tmp_path / "one", (1, 0, 0, 0), (1, 1, 1, 0))
    two = made(tmp_path / "two", (1, 0, 0, 0), (1, 1, 0, 0))
    assert compare_runs([one, two]).text().splitlines()[2:4] == [
        "    round 1, best of both   75.0   50.0  +25.0 (-24.0 to +74.0)  within noise",
        "",
    ]


def test_page_and_json_have_every_round(runs: tuple[Path, Path], alignloop: Callable[..., Any]) -> None:
    done = alignloop("report", *runs, "--out", "both.html", "--json", "both.json")
    assert done.code == 0
    assert "best rounds 2 and 1" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    page = ShownPage(Path("both.html").read_text(encoding="utf-8"))
    rows = page.cells(f"differences {KEY}: mine minus mine-offline")
    assert rows[0] == ["rounds", "difference", "from", "to", "questions", "verdict"]
    assert [row[:2] for row in rows[1:]] == [["base", "+0.0"], ["1", "+0.0"], ["2", "+100.0"], ["best: 2, 1", "+50.0"]]
    assert page.cells("runs")[0] == [
        "run", "rounds done", "best round", f"{KEY}, %", "SFT tokens", "DPO tokens", "annotations", "seconds",
    ]  # fmt: skip
    values = json.loads(Path("both.json").read_text())
    assert values["runs"]["mine-offline"]["dpo_tokens"] == 1400
    (compared,) = values["compared"]
    assert [entry["differences"][0]["difference"] for entry in compared["rounds"]] == [0.0, 0.0, 1.0, 0.5]
    assert compared["rounds"][3]["is_best"]


def test_json_of_one_run_is_refused(runs: tuple[Path, Path], alignloop: Callable[..., Any]) -> None:
    done = alignloop("report", runs[0], "--json", "one.json")
    assert done.code == 2
    assert "name two or more" in done.err


def test_three_runs_are_two_comparisons(runs: tuple[Path, Path], tmp_path: Path) -> None:
    third = made(tmp_path / "mine-sft-only", (1, 0, 0, 0), (1, 1, 1, 0))
    compared = compare_runs([*runs, third])
    assert [(paired.run, paired.other) for paired in compared.pairs] == [
        ("mine", "mine-offline"),
        ("mine", "mine-sft-only"),
    ]
    assert [pair.label for pair in compared.pairs[1].pairs] == ["base", "round 1", "best rounds 2 and 1"]


def test_another_protocol_is_refused_and_other_tasks_do_not_count(tmp_path: Path) -> None:
    """One run was asked another task beside: what both were asked alike is compared."""
    one = made(tmp_path / "one", (1, 0, 0, 0), (1, 1, 0, 0))
    more = made(tmp_path / "more", (1, 0, 0, 0), (0, 1, 0, 0), more=(1, 1, 0))
    (paired,) = compare_runs([one, more]).pairs
    assert paired.refused == ()
    assert [found.difference for _, found in paired.of_key(KEY)] == [0.0, 0.25, 0.25]
    shots = made(tmp_path / "shots", (1, 0, 0, 0), (0, 1, 0, 0), shots=5)
    compared = compare_runs([one, shots])
    (paired,) = compared.pairs
    assert paired.pairs == ()
    assert "different protocols" in compared.text()
    assert "tasks.gsm8k.num_fewshot: 5 -> 0" in compared.text()
    write_comparison([one, shots], out=tmp_path / "both.html")
    assert "tasks.gsm8k.num_fewshot: 5 -> 0" in ShownPage((tmp_path / "both.html").read_text()).text


def test_a_run_without_a_finished_round_is_compared_with_nothing(runs: tuple[Path, Path], tmp_path: Path) -> None:
    begun = begin(tmp_path / "begun")
    assert "no round of both has a benchmark in common" in compare_runs([runs[0], begun]).text()


def test_answers_that_cannot_be_read_are_said(runs: tuple[Path, Path]) -> None:
    (runs[1] / "round-02" / "13_evaluate" / "samples.jsonl").write_text("{}\n")
    (paired,) = compare_runs(runs).pairs
    assert [pair.label for pair in paired.pairs] == ["base", "round 1", "best rounds 2 and 1"]
    assert "samples.jsonl" in paired.refused[0]
