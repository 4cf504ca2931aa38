"""A row's life and the difference of two rounds, read from a small run written by hand: every number can be counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_run import put

from alignloop.config import load_recipe
from alignloop.errors import RunDirError, UserError
from alignloop.look.diff import diff_json, diff_of, diff_text
from alignloop.look.life import lives_text
from alignloop.look.why import lives_of
from alignloop.records import (
    CandidateRow,
    DroppedRow,
    Message,
    PairRow,
    PreferenceRow,
    PromptRow,
    RejectedRow,
    Row,
    SelectedRow,
    SftRow,
    Source,
)
from alignloop.run_dir.layout import enter, locked

POLICY = "sha256:" + "ab" * 32


def ask(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def stage(run: Path, number: int, name: str, outputs: dict[str, Sequence[Row]], **values: Any) -> None:
    """Publish a stage that left these rows."""
    texts = {f"{output}.jsonl": "".join(f"{row.model_dump_json()}\n" for row in of) for output, of in outputs.items()}
    put(run, number, name, files=texts, **values)


def new_run(folder: Path) -> Path:
    with locked(folder):
        enter(folder, load_recipe("quickstart"), rebuild=False)
    return folder


def preference(row_id: str, line: int | None, strength: Any, *, file: str = "/data/mine.jsonl") -> PreferenceRow:
    return PreferenceRow(
        id=row_id, messages=ask(f"Ask {row_id}"), chosen="Yes.", rejected="No.", strength=strength,
        source=Source(file=file, line=line), meta={"topic": "trees"},
    )  # fmt: skip


def dropped(row_id: str, stage: str, rule: str, reason: str, **more: Any) -> DroppedRow:
    return DroppedRow(id=row_id, stage=stage, rule=rule, reason=reason, **more)


def candidates(prompt: str, number: int, rewards: Sequence[float]) -> list[CandidateRow]:
    return [
        CandidateRow(
            id=f"{prompt}/{number}/{k}", prompt_id=prompt, messages=ask(f"Tell {prompt}"),
            completion=f"{prompt} text {k}", completion_ids=[1] * (k + 1), finish_reason="stop", round=number,
            policy=POLICY, reward=reward,
        )
        for k, reward in enumerate(rewards)
    ]  # fmt: skip


def selected(rows: list[CandidateRow]) -> SelectedRow:
    rewards = [row.reward or 0.0 for row in rows]
    row = rows[rewards.index(max(rewards))]
    return SelectedRow(
        id=row.id, prompt_id=row.prompt_id, messages=row.messages, completion=row.completion, finish_reason="stop",
        reward=max(rewards), random_reward=min(rewards), rewards=rewards, pass_rate=0.5, round=row.round, policy=POLICY,
    )  # fmt: skip


def sft(row_id: str, text: str, origin: Any = "best_of_k") -> SftRow:
    messages = [*ask(f"Ask {row_id}"), Message(role="assistant", content=text)]
    return SftRow(id=row_id, messages=messages, origin=origin, quality_score=1.5, source=Source(file="round-01"))


def write_round(run: Path, number: int, prompts: dict[str, list[float]], *, whole: bool = True) -> None:
    """A round over `prompts`; the first prompt is kept, the second lost to the first as a near twin."""
    batch = [preference("better-1", 1, "better"), preference("slight-2", 2, "slightly_better")] if number == 1 else []
    if number == 2:
        made = preference("annotated/p/1/1/p/1/0", None, "better", file="round-01")
        batch = [made.model_copy(update={"annotator": "ada"})]
    stage(run, number, "01_collect", {"preferences": batch}, counts={"preferences": len(batch)})
    batches = [{"path": f"round-{n:02d}/01_collect/preferences.jsonl"} for n in range(1, number + 1)]
    stage(
        run, number, "02_train_reward", {"dropped": [dropped("slight-2", "train_reward", "strength", "slight")]},
        config={"strengths": ["better"]}, inputs={"preferences": batches}, counts={"in": 2, "kept": 2},
    )  # fmt: skip
    by_prompt = [candidates(prompt, number, rewards) for prompt, rewards in prompts.items()]
    rows = [row for found in by_prompt for row in found]
    policy = {"policy": {"path": "round-00/02_base/checkpoint", "digest": POLICY}}
    stage(run, number, "04_sample", {"candidates": rows, "dropped": []}, inputs=policy)
    stage(run, number, "05_score", {"candidates": rows})
    if not whole:
        return
    best = [selected(found) for found in by_prompt]
    stage(run, number, "06_select", {"selected": best})
    near = [dropped(row.id, "prune", "semantic_dedup", f"near {best[0].id}", twin=best[0].id) for row in best[1:]]
    kept = [sft(best[0].id, best[0].completion), sft("better-1", "Yes.", "preference")][: 3 - number]
    counts = {"in": len(best), "kept": 1, "dropped": len(near)}
    stage(run, number, "07_prune", {"rows": kept, "dropped": near}, config={"human_rows": 1}, counts=counts)
    long = [dropped("better-1", "train_sft", "length", "80 tokens, max_length is 64")]
    stage(run, number, "08_train_sft", {"dropped": long}, counts={"in": 2, "kept": 1, "dropped": 1})
    first, *others = prompts
    rewards = prompts[first]
    high, low = max(rewards), min(rewards)
    pair = PairRow(
        id=f"{first}/{number}/{rewards.index(high)}>{rewards.index(low)}", messages=ask("x"), chosen="a", rejected="b",
        strength="better", origin="on_policy", reward_gap=high - low, source=Source(file=f"round-{number:02d}"),
    )  # fmt: skip
    drops = [dropped("slight-2", "build_pairs", "strength", "strength slightly_better")]
    drops += [dropped(prompt, "build_pairs", "pairs", "no gap") for prompt in others]
    stage(run, number, "10_build_pairs", {"pairs": [pair], "dropped": drops}, inputs={"preferences": [batches[-1]]})
    stage(run, number, "11_train_dpo", {}, counts={"in": 1, "kept": 1, "dropped": 0})
    stage(run, number, "13_evaluate", {})
    stage(run, number, "14_measure", {"dropped": [dropped("held-3", "measure", "length", "too long")] * number})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = new_run(tmp_path_factory.mktemp("lineage") / "run")
    prompts = [
        PromptRow(id=name, messages=ask(f"Tell {name}"), source=Source(file="/data/prompts.jsonl", line=line))
        for line, name in enumerate(("p", "q", "only-later"), start=1)
    ]
    ingested = {
        "preferences": [preference("better-1", 1, "better"), preference("slight-2", 2, "slightly_better")],
        "heldout": [preference("held-3", 3, "better")],
        "prompts": prompts,
        "rejected_rows": [RejectedRow(file="/data/mine.jsonl", line=4, field="chosen", reason="is missing", text="{")],
    }
    stage(folder, 0, "01_ingest", ingested)
    write_round(folder, 1, {"p": [0.5, 2.5, 1.0], "q": [0.0, 1.0, 0.5]})
    write_round(folder, 2, {"p": [1.5, 3.5, 2.0], "only-later": [5.0, 1.0, 2.0]})
    write_round(folder, 3, {"q": [0.0, 1.0, 0.5]}, whole=False)
    return folder


def steps_of(run: Path, row_id: str) -> list[tuple[int, str, str]]:
    (life,) = lives_of(row_id, run)
    return [(step.round, step.stage[3:], step.verdict) for step in life.steps]


def test_a_preferences_life(run: Path) -> None:
    assert steps_of(run, "better-1") == [
        (0, "ingest", "read"),
        (1, "collect", "in batch"),
        (1, "train_reward", "trained"),
        (1, "prune", "kept"),
        (1, "train_sft", "not trained"),  # too long
        (2, "train_reward", "trained"),
        (3, "train_reward", "trained"),
    ]
    assert steps_of(run, "slight-2") == [
        (0, "ingest", "read"),
        (1, "collect", "in batch"),
        (1, "train_reward", "not trained"),
        (1, "prune", "not drawn"),
        (1, "build_pairs", "no pair"),
        (2, "train_reward", "not trained"),
        (3, "train_reward", "not trained"),
    ]
    assert steps_of(run, "held-3") == [(0, "ingest", "held out")]


def test_rows_that_hold_a_benchmarks_question_end_where_they_came_in(tmp_path: Path) -> None:
    reason = "holds 79% of ifeval 3, the longest piece 'x'"
    drops = {
        name: [dropped(row_id, "ingest", "decontaminate", reason, twin="ifeval 3",
                       source=Source(file=f"/data/{name}.jsonl", line=9))]
        for name, row_id in (("dropped", "asked-9"), ("dropped_prompts", "prompt-9"))
    }  # fmt: skip
    stage(new_run(tmp_path), 0, "01_ingest", {"preferences": [], **drops})
    for row_id, kind in (("asked-9", "preference"), ("prompt-9", "prompt"), ("dropped.jsonl:9", "preference")):
        (life,) = lives_of(row_id, tmp_path)
        assert life.kind == kind
        assert [(step.verdict, step.text) for step in life.steps] == [("dropped", f"by decontaminate: {reason}")]
    assert "by decontaminate: holds 79% of ifeval 3" in lives_text(lives_of("asked-9", tmp_path))


def test_a_candidates_life_tells_rewards_pair_and_comparison(run: Path) -> None:
    (life,) = lives_of("p/1/1", run)
    assert [(c.reward, c.mark, c.asked) for c in life.candidates] == [
        (0.5, "rejected", False), (2.5, "best, chosen", True), (1.0, "", False),
    ]  # fmt: skip
    assert life.facts["checkpoint"] == "round-00/02_base/checkpoint"
    assert life.trained == (
        "round 1 08_train_sft as SFT target",
        "round 1 11_train_dpo as chosen",
        "round 2 02_train_reward as a ranking",
        "round 3 02_train_reward as a ranking",
    )
    compared = next(step for step in life.steps if step.verdict == "compared")
    assert compared.text == "by ada: chosen over p/1/0, better"
    (other,) = lives_of("p/1/2", run)
    assert [step.text for step in other.steps if step.verdict == "not best"] == [
        "reward 1 is number 2 of 3; the best, p/1/1, has 2.5"
    ]
    assert not other.trained


def test_a_random_pick_is_not_called_the_best(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    stage(
        run, 0, "01_ingest", {"prompts": [PromptRow(id="p", messages=ask("Tell p"), source=Source(file="f", line=1))]}
    )
    rows = candidates("p", 1, [0.5, 2.5, 1.0])
    stage(run, 1, "01_collect", {"preferences": []})
    stage(run, 1, "04_sample", {"candidates": rows, "dropped": []})
    stage(run, 1, "05_score", {"candidates": rows})
    stage(run, 1, "06_select", {"selected": [selected(rows[::2])]}, config={"pick": "random"})
    (picked,), (best,) = lives_of("p/1/2", run), lives_of("p/1/1", run)
    assert [c.mark for c in picked.candidates] == ["", "", "picked"]
    assert [(s.verdict, s.text) for s in picked.steps if s.stage == "06_select"] == [
        ("picked", "at random, reward 1; 50% of 2 pass")
    ]
    assert [(s.verdict, s.text) for s in best.steps if s.stage == "06_select"] == [
        ("not picked", "reward 2.5 is number 1 of 3; picked at random is p/1/2")
    ]


def test_every_pair_of_a_prompt_is_told(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    asked = PromptRow(id="p", messages=ask("Tell p"), source=Source(file="f", line=1))
    stage(run, 0, "01_ingest", {"prompts": [asked]})
    rows = candidates("p", 1, [0.5, 2.5, 1.0, 2.0, 1.5])
    stage(run, 1, "01_collect", {"preferences": []})
    stage(run, 1, "04_sample", {"candidates": rows, "dropped": []})
    stage(run, 1, "05_score", {"candidates": rows})
    pairs = [
        PairRow(
            id=row_id, messages=ask("x"), chosen="a", rejected="b", origin="on_policy", source=Source(file="round-01")
        )
        for row_id in ("p/1/1>0", "p/1/3>2")
    ]
    stage(run, 1, "10_build_pairs", {"pairs": pairs, "dropped": []})
    stage(run, 1, "11_train_dpo", {}, counts={"in": 2, "kept": 2, "dropped": 0})
    (life,) = lives_of("p", run)
    assert [step.facts["pair"] for step in life.steps if step.verdict == "pair"] == ["p/1/1>0", "p/1/3>2"]
    assert [c.mark for c in life.candidates] == ["rejected", "chosen", "rejected", "chosen", ""]
    (second,), (neither,) = lives_of("p/1/2", run), lives_of("p/1/4", run)
    assert second.trained == ("round 1 11_train_dpo as rejected",)
    assert [step.text for step in neither.steps if step.verdict == "no pair"] == [
        "the prompt's pairs are p/1/1>0, p/1/3>2"
    ]


def test_a_near_twin_is_shown_side_by_side(run: Path) -> None:
    (life,) = lives_of("q/1/1", run)
    (twin,) = life.twins
    assert (twin.twin, twin.twin_text) == ("p/1/1", "Tell p\n\np text 1")
    text = lives_text([life])
    assert "lost to p/1/1" in text
    assert f"{'q text 1':<38} | p text 1" in text
    assert "Nothing trained on it." in text
    assert max(map(len, text.split("\n"))) <= 80


def test_a_prompts_life_names_the_rounds_that_did_not_draw_it(run: Path) -> None:
    (life,) = lives_of("p", run)
    assert life.facts == {"source": "/data/prompts.jsonl, line 1", "not drawn": "in round 3"}
    assert {candidate.round for candidate in life.candidates} == {1, 2}
    assert "not drawn     in round 3" in lives_text([life])
    (pair,) = lives_of("p/1/1>0", run)
    assert pair.facts["reward gap"] == 2.0
    assert [candidate.asked for candidate in pair.candidates] == [True, True, False]
    assert pair.trained == ("round 1 11_train_dpo as the pair",)


def test_rows_are_found_by_line_by_beginning_and_by_likeness(run: Path) -> None:
    assert [life.id for life in lives_of("mine.jsonl:2", run)] == ["slight-2"]
    assert [life.id for life in lives_of("/data/prompts.jsonl:3", run)] == ["only-later"]
    (rejected,) = lives_of("mine.jsonl:4", run)
    assert rejected.steps[0].text == "field chosen: is missing"
    assert [life.id for life in lives_of("only", run)] == ["only-later"]  # its candidates begin so, too
    with pytest.raises(UserError, match=r"(?s)^p/1/: 3 rows begin so.*candidate +p/1/0.*candidate +p/1/2$"):
        lives_of("p/1/", run)
    with pytest.raises(UserError, match=r"bettr-1: no row .* near: better-1"):
        lives_of("bettr-1", run)
    with pytest.raises(UserError, match="its rows are lines 1 to 3"):
        lives_of("mine.jsonl:77", run)
    with pytest.raises(UserError, match=r"come from /data/mine\.jsonl, /data/prompts\.jsonl"):
        lives_of("yours.jsonl:1", run)
    with pytest.raises(RunDirError, match="no run lies here"):
        lives_of("p", run / "round-01")


def test_a_run_without_rows_says_so(tmp_path: Path) -> None:
    new_run(tmp_path)
    with pytest.raises(UserError, match=r"^p: .* holds no rows yet: no stage that reads or makes them is published$"):
        lives_of("p", tmp_path)
    with pytest.raises(UserError, match=r"^mine\.jsonl:1: .* holds no rows of a file yet$"):
        lives_of("mine.jsonl:1", tmp_path)


def test_what_changed_between_two_rounds(run: Path) -> None:
    found = diff_of(run, before=1, after=2)
    assert {o.name: (o.num_before, o.num_after, o.num_common, o.share) for o in found.overlaps} == {
        "preferences": (2, 1, 0, 0.0),
        "prompts": (2, 2, 1, pytest.approx(1 / 3)),
        "SFT rows": (2, 1, 0, 0.0),
        "DPO pairs": (1, 1, 1, 1.0),
    }
    rewards = {change.name: (change.before, change.after) for change in found.groups["best-of-K reward"]}
    # Best of 2.5 and 1.0, then of 3.5 and 5.0.
    assert rewards["50%"] == (1.75, 4.25)
    assert rewards["10%"] == (pytest.approx(1.15), pytest.approx(3.65))
    origins = {change.name: (change.before, change.after) for change in found.groups["SFT rows by origin"]}
    assert origins == {"best_of_k": (0.5, 1.0), "preference": (0.5, 0.0)}
    for changes in found.groups.values():
        assert [change.size for change in changes] == sorted((change.size for change in changes), reverse=True)
    assert [change.size for change in found.largest] == sorted((c.size for c in found.largest), reverse=True)
    assert max(map(len, diff_text(found).split("\n"))) <= 80 + len(str(run))
    drops = {change.name: (change.before, change.after) for change in found.groups["drops by reason"]}
    assert drops == {
        "train_reward strength": (1, 1),
        "prune semantic_dedup": (1, 1),
        "train_sft length": (1, 1),
        "build_pairs strength": (1, 1),
        "build_pairs pairs": (1, 1),
        "measure length": (1, 2),
    }


def test_an_unfinished_round_shows_what_it_has(run: Path) -> None:
    found = diff_of(run, before=2, after=3)
    assert found.missing == {3: ("select", "prune", "train_sft", "build_pairs", "train_dpo", "evaluate", "measure")}
    text = " ".join(diff_text(found).split())
    assert "round 3 is not finished: select, prune," in text
    value = json.loads(diff_json(found))
    rewards = value["groups"]["best-of-K reward"]
    assert [row["after"] for row in rewards] == [None] * 5


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ((1, 9), "round 9: .* has no such round; it has rounds 1, 2, 3"),
        ((0, 1), "round 0 is the base"),
        ((2, 2), "the same round"),
    ],
)
def test_rounds_that_cannot_be_compared(run: Path, rounds: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        diff_of(run, before=rounds[0], after=rounds[1])


def test_the_verbs(run: Path, alignloop: Callable[..., Any]) -> None:
    assert "preference better-1" in alignloop("why", "better-1", run).out
    assert json.loads(alignloop("why", "p/1/1", run, "--json").out)["rows"][0]["kind"] == "candidate"
    assert "largest changes" in alignloop("diff", run, 1, 2).out
    wrong = alignloop("diff", run, 1, 7)
    assert (wrong.code, "no such round" in wrong.err) == (2, True)
