"""What is right of a round's candidates and training rows, by a truth: by hand, and on hand-made artifacts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from stage_case import Listening, ScriptedEngine, candidate, context, preference, written

from alignloop.artifacts import Artifact
from alignloop.config import load_recipe
from alignloop.config.bundled import resolve_base
from alignloop.errors import RecipeError
from alignloop.evaluation.measures import Figures
from alignloop.records import Message, PairRow, PromptRow, SftRow, Source
from alignloop.sampling.reward_functions import load
from alignloop.stages import measure
from alignloop.stages.facts import Facts, Findings, Rows
from alignloop.stages.measured_truth import JudgedCandidate, add_picks

NO_COMMA = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
RIGHT, WRONG = "Blue.", "Blue, then."
FILE, ROUND = Source(file="mine.jsonl", line=3), Source.of_round(1)


def test_picks_by_hand() -> None:
    """Three prompts.

    The first: rewards 3 and 1 are right, 2 and 1 wrong. Random 2/4, the pick is right, of the pairs 3-2, 3-1, 1-2, 1-1
    two are in order and one is a tie: 2.5/4. The second: the wrong one has more, random 1/2, pick wrong, 0/1. The
    third: both are wrong, so it has no pair; the right one was cut, and is not picked from.
    """
    figures = Figures()
    add_picks(
        figures,
        [
            [JudgedCandidate(*of) for of in ((3.0, True), (2.0, False), (1.0, True), (1.0, False))],
            [JudgedCandidate(0.0, True), JudgedCandidate(1.0, False)],
            [JudgedCandidate(9.0, True, truncated=True), JudgedCandidate(0.0, False), JudgedCandidate(1.0, False)],
        ],
    )
    assert figures.values == pytest.approx(
        {
            "truth/random": (0.5 + 0.5 + 0.0) / 3,
            "truth/pick": 1 / 3,
            "truth/oracle": 2 / 3,
            "truth/pick_over_random": (0.5 - 0.5 + 0.0) / 3,
            "truth/pair_accuracy": (0.625 + 0.0) / 2,
        }
    )
    assert figures.details == {"truth/prompts": 3.0}
    # 1, 0, 0 about 1/3: squares 4/9, 1/9, 1/9; sd^2 = 1/3; error sqrt(1/9) = 1/3.
    assert figures.errors["truth/pick_stderr"] == pytest.approx(1 / 3)


def rows_of(module_folder: Path, *, meta: dict[str, Any]) -> dict[str, Artifact]:
    """Two prompts' candidates, of which the second one's truth is unknown, and training rows of every kind."""
    known = [candidate("p", k, text, float(k), meta=meta) for k, text in enumerate((RIGHT, WRONG, RIGHT))]
    unknown = [candidate("q", 0, RIGHT, 0.0), candidate("q", 1, WRONG, 1.0, meta=meta)]
    preferences = [
        preference("f1", chosen=RIGHT, rejected=WRONG, edited="Navy.", meta=meta, source=FILE),
        preference("f2", chosen=WRONG, rejected="Red, or so.", meta=meta, source=FILE),
        preference("f3", chosen=RIGHT, rejected="Red.", source=FILE),  # nothing to check
        preference("a1", chosen=RIGHT, rejected="Red.", meta=meta, source=ROUND),
    ]
    ask, other = (Message(role="user", content=text) for text in ("Name a colour.", "Another?"))
    sft = [
        SftRow(
            id=str(n), messages=[of, Message(role="assistant", content=text)], origin="given", source=FILE, meta=meta
        )
        for n, (of, text) in enumerate(((ask, RIGHT), (ask, RIGHT), (other, WRONG)))
    ]
    asked = {"messages": [ask], "origin": "on_policy", "source": ROUND, "meta": meta}
    pairs = [
        PairRow(id="1", chosen=RIGHT, rejected=WRONG, **asked),
        PairRow(id="2", chosen=WRONG, rejected="Red, or so.", **asked),
    ]
    named = {"scored": [*known, *unknown], "preferences": preferences, "sft_rows": sft, "pairs": pairs}
    return {name: written(module_folder / f"{name}.jsonl", rows) for name, rows in named.items()}


def measured(module_folder: Path, *, truth: str | None, meta: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """The figures, and what was said, where nothing is held out."""
    recipe = load_recipe("quickstart", overrides=[f"measure.truth={truth or 'null'}"])
    nobody = written(module_folder / "heldout.jsonl", [])
    policy, said = Artifact.of(Path(resolve_base("quickstart"))), Listening()
    before = measure.Before(base=policy, base_answers=nobody, last_answers=nobody)
    rows = measure.RoundRows(**rows_of(module_folder, meta=meta))
    inputs = measure.inputs(recipe, before, policy=policy, reward_model=policy, heldout=nobody, rows=rows)
    ctx = context(module_folder / "out", engine=ScriptedEngine(), progress=said)
    return measure.run(measure.settings(recipe), inputs, ctx).metrics, said.lines


def test_what_a_round_picks_among_and_trains_on_is_counted(tmp_path: Path) -> None:
    """By the checkers, also where no answers are measured. Of the one prompt that is known of: two of three right, the
    last picked, and its two right ones lie on either side of the wrong one. SFT: two rows of one prompt and one of
    another, so that errors are of two draws: 4/9 (the clustered mean of test_measures.py)."""
    found, said = measured(tmp_path, truth="checkers", meta=NO_COMMA)
    assert {name.removeprefix("truth/"): value for name, value in found.items()} == pytest.approx(
        {
            "random": 2 / 3,
            "pick": 1.0,
            "oracle": 1.0,
            "pick_over_random": 1 / 3,
            "pair_accuracy": 0.5,
            "prompts": 1.0,
            "chosen_file": 0.5,
            "edited_file": 1.0,
            "rejected_file": 0.0,
            "chosen_annotated": 1.0,
            "rejected_annotated": 1.0,
            "sft": 2 / 3,
            "sft_stderr": 4 / 9,
            "dpo_chosen": 0.5,
            "dpo_rejected": 0.0,
        }
    )
    assert "no answers are measured: no preference row is held out" in said[0]


def test_without_a_truth_nothing_is_asked(tmp_path: Path) -> None:
    found, _ = measured(tmp_path, truth=None, meta=NO_COMMA)
    assert found == {}


def test_a_function_of_the_user_s_own_is_the_truth(module_folder: Path) -> None:
    """It is asked as a reward function is; less than 1 is wrong, and rows without its column have no truth."""
    (module_folder / "mine.py").write_text(
        "def verify(completions, colour):\n"
        "    return [1.5 if c[0]['content'] == f'{of}.' else 0.9 for c, of in zip(completions, colour)]\n"
    )
    found, _ = measured(module_folder, truth="mine:verify", meta={"colour": "Blue"})
    assert (found["truth/random"], found["truth/edited_file"], found["truth/chosen_file"]) == (
        pytest.approx(2 / 3), 0.0, 0.5,
    )  # fmt: skip


def test_the_source_of_a_truth_is_part_of_what_measure_is_known_by(module_folder: Path) -> None:
    recipe = load_recipe("quickstart", overrides=["measure.truth=mine:verify"])
    (module_folder / "mine.py").write_text("def verify(completions):\n    return [1.0 for _ in completions]\n")
    first = measure.settings(recipe).truth_source
    del sys.modules["mine"]
    load.cache_clear()
    (module_folder / "mine.py").write_text("def verify(completions):\n    return [0.0 for _ in completions] \n")
    assert first is not None
    assert measure.settings(recipe).truth_source not in (None, first)
    assert measure.settings(load_recipe("quickstart")).truth_source is None


def findings(truth: str, **meta: Any) -> Findings:
    prompt = PromptRow(id="p", messages=[Message(role="user", content="Name a colour.")], source=FILE, meta=meta)
    recipe = load_recipe("quickstart", overrides=[f"measure.truth={truth}"])
    facts = Facts(recipe, Findings(), Rows(prompts=[prompt]))
    measure.check(facts)
    return facts.findings


def test_a_truth_that_cannot_be_asked_is_found_before_the_run(module_folder: Path) -> None:
    (module_folder / "mine.py").write_text("def verify(completions, colour):\n    return []\n")
    (gone,) = findings("mine:verfy").problems
    assert gone.startswith("measure.truth: reward function mine:verfy: ")
    assert "did you mean verify" in gone
    (wants,) = findings("mine:verify", shade="dark").problems
    assert wants == (
        "measure.truth: reward function mine:verify wants colour, which is no column of the prompts (columns: shade) - "
        "add it to them, or give the parameter a default"
    )
    assert findings("mine:verify", colour="Blue").problems == []
    assert any("none of the 1 does" in note for note in findings("checkers").notes)
    assert not any("checkers" in note for note in findings("checkers", answer="Blue").notes)
    with pytest.raises(RecipeError, match="`checkers`, or a function as module:function"):
        load_recipe("quickstart", overrides=["measure.truth=verifiers"])
