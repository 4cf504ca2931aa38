"""Which prompts and candidates are compared, what is said of them, and how it is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alignloop.comparison.compare import Side, compare, read_side
from alignloop.comparison.printed import comparison_page, comparison_text
from alignloop.comparison.result import ComparedRewards, Histogram, RewardDifference, SamplingComparison, verdict
from alignloop.comparison.run import SideSource, compare_sampling
from alignloop.data.jsonl import dump_jsonl
from alignloop.errors import DataError
from alignloop.progress import QuietProgress
from alignloop.records import CandidateRow, FinishReason, Message, by_prompt
from alignloop.report.drawing import DARK, SERIES
from alignloop.run_dir.manifest import Manifest
from alignloop.sampling.reward_statistics import Summary


def candidate(
    prompt: str, k: int, reward: float | None, *, finish: FinishReason = "stop", **more: object
) -> CandidateRow:
    values = {
        "id": f"{prompt}/1/{k}", "prompt_id": prompt, "messages": [Message(role="user", content=f"Question {prompt}")],
        "completion": f"answer {k}", "completion_ids": [7] * (k + 1), "finish_reason": finish, "round": 1,
        "policy": "p", "reward": reward,
    }  # fmt: skip
    return CandidateRow.model_validate(values | more)


def side(name: str, rewards: dict[str, list[float]], **more: Any) -> Side:
    rows = {prompt: [candidate(prompt, k, reward) for k, reward in enumerate(of)] for prompt, of in rewards.items()}
    return Side(name=name, file=Path(f"{name}.jsonl"), rows=rows, **more)


def side_of(name: str, *rows: CandidateRow) -> Side:
    return Side(name=name, file=Path(name), rows=by_prompt(rows))


def test_common_prompts_are_compared_and_the_rest_counted() -> None:
    found = compare(side("a", {"x": [1.0, 2.0], "y": [3.0, 4.0], "z": [9.0]}), side("b", {"y": [4.0, 6.0], "w": [0.0]}))
    assert (found.num_common, found.only_in_a, found.only_in_b) == (1, 2, 1)
    assert (found.all.a.mean, found.all.b.mean) == (3.5, 5.0)
    assert (found.best.a.mean, found.best.b.mean) == (4.0, 6.0)
    assert found.all.difference.mean == 1.5
    assert found.verdict == ["One common prompt: nothing can be said about the two."]
    assert "not compared: 2 prompts only in A, 1 only in B" in found.notes


def test_no_common_prompt_is_an_error() -> None:
    with pytest.raises(DataError, match="no prompt in common"):
        compare(side("a", {"x": [1.0]}), side("b", {"y": [1.0]}))


def test_the_best_is_taken_of_as_many_candidates() -> None:
    found = compare(
        side("a", {"x": [1.0, 2.0], "y": [0.0, 1.0]}), side("b", {"x": [1.0, 2.0, 50.0], "y": [0.0, 1.0, 60.0]})
    )
    assert found.best.b.mean == found.best.a.mean == 1.5
    assert (found.best_of, found.all.b.n) == ("2", 6)
    assert any("first 2 in both" in note for note in found.notes)


def test_a_truncated_candidate_is_not_the_best() -> None:
    a = side_of("a", candidate("x", 0, 1.0), candidate("x", 1, 9.0, finish="length"))
    found = compare(a, side("b", {"x": [1.0, 2.0]}))
    assert found.best.a.mean == 1.0
    assert found.a.completions.truncated == 0.5


def test_prompts_are_found_by_dialog_or_by_id_where_a_system_prompt_differs() -> None:
    system = [Message(role="system", content="Be brief."), Message(role="user", content="Question x")]
    renamed = [Message(role="user", content="Question y")]
    b = side_of("b", candidate("x", 0, 5.0, messages=system), candidate("1", 0, 6.0, messages=renamed))
    found = compare(side("a", {"x": [1.0], "y": [2.0]}), b)
    assert found.num_common == 2
    assert found.all.difference.mean == 4.0  # (5 - 1 + 6 - 2) / 2


def test_rewards_of_two_reward_models_are_not_compared() -> None:
    with pytest.raises(DataError, match="different reward models"):
        compare(side("a", {"x": [1.0]}, reward_model="sha256:1"), side("b", {"x": [1.0]}, reward_model="sha256:2"))
    one = (("m:f", 1.0, None),)
    for other in ((("m:f", 2.0, None),), (("m:f", 1.0, 0.5),)):  # another weight, a gate
        with pytest.raises(DataError, match="different reward functions"):
            compare(side("a", {"x": [1.0]}, reward_functions=one), side("b", {"x": [1.0]}, reward_functions=other))


def test_completions_by_hand() -> None:
    texts = ["ab", "ab", " "]
    a = side_of("a", *(candidate("x", k, 1.0, completion=text) for k, text in enumerate(texts)))
    facts = compare(a, side("b", {"x": [1.0]})).a.completions
    assert facts.mean_tokens == 2.0  # 1, 2 and 3
    assert facts.mean_characters == pytest.approx(5 / 3)
    assert facts.empty == pytest.approx(1 / 3)
    assert facts.distinct == pytest.approx(2 / 3)


def of(mean: float, stderr: float, pvalue: float, swap: float) -> ComparedRewards:
    """B against A, whose rewards have a standard deviation of 2."""
    side = Summary(n=9, mean=0.0, std=2.0, quantiles={})
    difference = RewardDifference(
        mean=mean, stderr=stderr, mean_pvalue=pvalue, ks=0.1, ks_pvalue=swap, swap_pvalue=swap, num_swaps=999
    )
    return ComparedRewards(a=side, b=side, difference=difference, histogram=Histogram(edges=[], a=[], b=[]))


NOTHING = of(0.1, 0.1, 0.3, 0.4)


def test_verdict_claims_no_more_than_was_found() -> None:
    def words(everything: ComparedRewards, best: ComparedRewards, *, num_prompts: int = 100) -> str:
        return " ".join(verdict(everything, best, num_prompts=num_prompts, best_of="4", same_rewards=False))

    none = words(NOTHING, NOTHING)
    assert "No difference was found" in none
    # 2.8 standard errors of 0.1, of a standard deviation of 2.
    assert "no proof" in none
    assert "0.28 (0.14 of A's standard deviation)" in none
    clear = words(of(-0.5, 0.1, 1e-5, 0.001), NOTHING)
    assert "A and B differ: B's mean reward of all candidates is lower by 0.5 +- 0.1 (0.25 of" in clear
    assert "no proof" not in clear
    # 0.02 is no small p-value among four.
    assert "No difference was found" in words(of(0.2, 0.1, 0.02, 0.4), NOTHING)
    assert "may differ" in words(of(0.2, 0.1, 0.01, 0.4), NOTHING)
    assert "spread" in words(of(0.0, 0.1, 1.0, 0.001), NOTHING)
    assert "take more" in words(NOTHING, NOTHING, num_prompts=12)
    assert "same" in verdict(NOTHING, NOTHING, num_prompts=9, best_of="4", same_rewards=True)[0]


@pytest.fixture
def comparison() -> SamplingComparison:
    name = "<b>one</b> & a name that is rather longer than a line of a terminal has columns, or so it seems.jsonl"
    of_a = {str(n): [n % 7 - 3.0, n % 5 + 0.25] for n in range(40)}
    of_b = {str(n): [n % 7 - 2.0, n % 3 + 0.5] for n in range(50)}
    return compare(
        side(name, of_a, settings={"sample": {"temperature": 1.0}}),
        side("two.jsonl", of_b, settings={"sample": {"temperature": 0.7}}),
    )


def test_text_fits_a_terminal(comparison: SamplingComparison) -> None:
    lines = comparison_text(comparison).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in (
        "sample.temperature: 1 -> 0.7",
        "40 prompts in both",
        "median",
        "KS statistic",
        "cut at the limit",
        "#",
    ):
        assert part in text


def test_page_stands_alone(comparison: SamplingComparison) -> None:
    page = comparison_page(comparison)
    assert page.count("<svg") == page.count("</svg>") == 2
    assert page.count("<table") == page.count("</table>") == 6  # what differs, three of numbers, one a chart
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,", "#rewards", "#numbers"]
    assert "<b>one</b>" not in page
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("% of completions</text>") == 2
    charts = page[page.index("<body") :]
    for colour in SERIES[:2]:  # A and B: an outline, a mean and a key in each of two charts
        assert charts.count(f'stroke="{colour}"') == 6
        assert f'.chart [stroke="{colour}"] {{ stroke: {DARK[colour]} }}' in page
    # A: (2.875 - 3 + 2 + 0.25) / 2, B: (2.875 - 2 + 0.975 + 0.5) / 2.
    assert "mean of A 1.0625, of B 1.1750" in page


def write_scored(file: Path, rewards: dict[str, float | None], *, reward_model: str | None = None) -> Path:
    dump_jsonl(file, [candidate(prompt, 0, reward) for prompt, reward in rewards.items()])
    if reward_model is not None:
        manifest = Manifest(
            stage="score", round=1, fingerprint="f", config={}, inputs={"reward_model": {"digest": reward_model}},
            outputs={}, counts={}, metrics={}, seed=0, versions={}, started="", ended="", seconds={},
        )  # fmt: skip
        file.with_name(f"{file.stem}.manifest.json").write_text(manifest.model_dump_json())
    return file


def test_files_are_compared_and_written(tmp_path: Path) -> None:
    one = write_scored(tmp_path / "one.jsonl", {"x": 1.0, "y": 2.0}, reward_model="sha256:1")
    two = write_scored(tmp_path / "two.jsonl", {"x": 2.0, "y": 5.0}, reward_model="sha256:1")
    out = tmp_path / "compared"
    for _ in range(2):  # a second time into the same folder
        found = compare_sampling(SideSource(str(one)), SideSource(str(two)), out=out, progress=QuietProgress())
    assert found.all.difference.mean == 2.0
    written = SamplingComparison.model_validate_json((out / "comparison.json").read_text())
    assert written == found
    assert json.loads((out / "comparison.json").read_text())["comparison_version"] == 1
    assert (out / "comparison.html").read_text().startswith("<!doctype html>")


def test_bad_files(tmp_path: Path) -> None:
    unscored = write_scored(tmp_path / "unscored.jsonl", {"x": None})
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"prompt": "Hi", "candidates": ["a", "b"]}) + "\n")
    with pytest.raises(DataError, match="candidate x/1/0 has no reward: score the file first"):
        read_side(unscored, name="a")
    with pytest.raises(DataError, match="holds no scored candidates"):
        read_side(own, name="a")
    with pytest.raises(DataError, match="no such file"):
        read_side(tmp_path / "none.jsonl", name="a")
    for first in ("{", "[1]", '{"prompt": "Hi"}'):
        odd = tmp_path / "odd.jsonl"
        odd.write_text(f"{first}\n{unscored.read_text()}")
        with pytest.raises(DataError, match=r"odd.jsonl, line 1.*The file should hold CandidateRow lines"):
            read_side(odd, name="a")
