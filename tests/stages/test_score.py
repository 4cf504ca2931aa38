"""The score stage on the bundled base with a drawn reward head: raw rewards, functions beside them, their sum."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from stage_case import ScriptedEngine, context

from alignloop.artifacts import Artifact
from alignloop.config.bundled import resolve_base
from alignloop.config.sampling import RewardFunction, ScoreConfig, SelectConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.errors import DataError, ModelError, UserError
from alignloop.records import CandidateRow, Message, PreferenceRow, SelectedRow, Source
from alignloop.sampling import candidate_values
from alignloop.stages import score, select
from alignloop.stages.reward_models import RewardModel

TEXTS = {"p": ["A river.", "No.", "The river Alder runs there."], "q": ["Yes, it is.", "A river."]}
FUNCTIONS = '''
calls = []

def length(completions, **columns):
    calls.append(len(completions))
    return [len(c[0]["content"].split()) for c in completions]

def exact(prompts, completions, answer):
    """Where the prompt has an answer."""
    assert prompts[0][-1]["role"] == "user"
    return [None if a is None else float(c[0]["content"] == a) for c, a in zip(completions, answer)]

def tampers(completions, answer, **columns):
    for completion, a in zip(completions, answer):
        completion[0]["content"] = "spoilt"
    columns["notes"][0].append("spoilt")
    return [0.0] * len(completions)

def broken(completions, **columns):
    return [float("nan") if "No" in c[0]["content"] else 1.0 for c in completions]
'''


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from alignloop.training.checkpoints import save_checkpoint
    from alignloop.training.model import load_reward_model

    base = Path(resolve_base("quickstart"))
    folder = tmp_path_factory.mktemp("models") / "reward"
    return Artifact.of(save_checkpoint(load_reward_model(base, seed=3), folder, companions=base))


@pytest.fixture
def functions(module_folder: Path) -> str:
    name = "rewards_of_test_score"
    (module_folder / f"{name}.py").write_text(FUNCTIONS)
    return name


@pytest.fixture(scope="module")
def rows() -> list[CandidateRow]:
    from alignloop.chat.load import load_format

    chat = load_format(Path(resolve_base("quickstart")))
    made = []
    for prompt_id, texts in TEXTS.items():
        for k, text in enumerate(texts):
            made.append(
                CandidateRow(
                    id=f"{prompt_id}/1/{k}",
                    prompt_id=prompt_id,
                    messages=[Message(role="user", content=f"What is {prompt_id}?")],
                    completion=text,
                    completion_ids=[*chat.completion(text).token_ids],
                    finish_reason="stop",
                    round=1,
                    policy="sha256:x",
                    meta={"notes": []} if prompt_id == "q" else {"answer": "No.", "notes": []},
                )
            )
    return made


def stage_config(**config: Any) -> score.Settings:
    return score.Settings(dtype="float32", sources={}, strengths=("significantly_better", "better"), **config)


def scored(
    folder: Path, rows: Sequence[CandidateRow], reward_model: RewardModel, **config: Any
) -> tuple[score.Outputs, list[CandidateRow]]:
    folder.mkdir(exist_ok=True)
    dump_jsonl(folder / "in.jsonl", rows)
    inputs = score.Inputs(Artifact.of(folder / "in.jsonl"), reward_model)
    outputs = score.run(stage_config(**config), inputs, context(folder, engine=ScriptedEngine()))
    return outputs, list(load_jsonl(outputs.candidates.path, CandidateRow))


def test_raw_rewards_are_kept_and_functions_added(
    rows: list[CandidateRow], reward_model: Artifact, functions: str, tmp_path: Path
) -> None:
    plain, alone = scored(tmp_path / "plain", rows, reward_model)
    assert plain.metrics == {"mean_reward": pytest.approx(sum(row.reward or 0.0 for row in alone) / 5)}
    assert all(row.total_reward == row.reward and row.extra_rewards == {} for row in alone)
    assert len({row.reward for row in alone}) == 5
    length, exact = f"{functions}:length", f"{functions}:exact"
    both = (RewardFunction(function=length, weight=-0.5), RewardFunction(function=exact, weight=10.0))
    outputs, found = scored(tmp_path / "both", rows, reward_model, reward_functions=both)
    assert [row.reward for row in found] == [row.reward for row in alone]
    # Words: 2, 1, 5, 3, 2. Only p has an answer, "No.", which is its second candidate.
    assert [row.extra_rewards for row in found] == [
        {length: 2.0, exact: 0.0},
        {length: 1.0, exact: 1.0},
        {length: 5.0, exact: 0.0},
        {length: 3.0},
        {length: 2.0},
    ]
    added = [-1.0, -0.5 + 10.0, -2.5, -1.5, -1.0]
    raw = [row.reward for row in alone if row.reward is not None]
    assert [row.total_reward for row in found] == pytest.approx([r + a for r, a in zip(raw, added, strict=True)])
    assert outputs.metrics[f"applies/{exact}"] == 0.6
    assert outputs.metrics[f"mean/{exact}"] == pytest.approx(1 / 3)
    assert outputs.metrics[f"mean/{length}"] == 13 / 5
    # Selection goes by the total: p's second candidate wins by its 10.
    picked = select.run(SelectConfig(), select.Inputs(outputs.candidates), context(tmp_path))
    best = next(row for row in load_jsonl(picked.selected.path, SelectedRow) if row.prompt_id == "p")
    assert (best.id, best.reward) == ("p/1/1", found[1].total_reward)
    assert best.rewards == [row.total_reward for row in found[:3]]


def test_rewards_find_their_rows_in_a_file_of_any_order(
    rows: list[CandidateRow], reward_model: Artifact, functions: str, tmp_path: Path
) -> None:
    name = f"{functions}:length"
    one = (RewardFunction(function=name),)
    _, usual = scored(tmp_path / "a", rows, reward_model, reward_functions=one)
    mixed = [rows[i] for i in (4, 0, 3, 2, 1)]
    _, found = scored(tmp_path / "b", mixed, reward_model, reward_functions=one)
    assert [row.id for row in found] == [row.id for row in mixed]
    of = {row.id: row for row in usual}
    assert [row.reward for row in found] == pytest.approx([of[row.id].reward for row in found], abs=1e-5)
    assert [row.extra_rewards for row in found] == [of[row.id].extra_rewards for row in found]


def test_functions_are_called_on_batches_of_whole_prompts(
    rows: list[CandidateRow], functions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate_values, "BATCH_CANDIDATES", 2)
    prompts = score.grouped(rows, where="x")
    assert candidate_values.function_values(f"{functions}:length", prompts) == {
        "p/1/0": 2.0,
        "p/1/1": 1.0,
        "p/1/2": 5.0,
        "q/1/0": 3.0,
        "q/1/1": 2.0,
    }
    assert sys.modules[functions].calls == [3, 2]


def test_a_function_cannot_spoil_the_rows(rows: list[CandidateRow], functions: str) -> None:
    before = [row.model_copy(deep=True) for row in rows]
    assert set(candidate_values.function_values(f"{functions}:tampers", score.grouped(rows, where="x")).values()) == {
        0.0
    }
    assert rows == before


def test_a_wrong_value_is_named_before_anything_is_scored(
    rows: list[CandidateRow], reward_model: Artifact, functions: str, tmp_path: Path
) -> None:
    name = f"{functions}:broken"
    with pytest.raises(UserError, match=f"reward function {name} gives candidate p/1/1 the value nan"):
        scored(tmp_path / "a", rows, reward_model, reward_functions=(RewardFunction(function=name),))
    twice = (RewardFunction(function=name), RewardFunction(function=name, weight=2.0))
    with pytest.raises(UserError, match=f"{name} is named 2 times"):
        scored(tmp_path / "b", rows, reward_model, reward_functions=twice)


def test_the_penalty_on_length_comes_off_the_total_by_hundreds_of_tokens(rows: list[CandidateRow]) -> None:
    """A reward of 3 at 250 tokens and 0.4 a hundred: 3 - 1 = 2, under the 2.9 - 0.2 = 2.7 of 50 tokens."""
    long = rows[0].model_copy(update={"completion_ids": [1] * 250})
    short = rows[1].model_copy(update={"completion_ids": [1] * 50})
    config = ScoreConfig(length_penalty=0.4)
    found = [
        score.penalised(score.scored_row(row, reward, {}, []), config) for row, reward in ((long, 3.0), (short, 2.9))
    ]
    assert [row.reward for row in found] == [3.0, 2.9]
    assert [row.total_reward for row in found] == [pytest.approx(2.0), pytest.approx(2.7)]
    assert select.best_of(found).id == short.id
    plain = score.scored_row(long, 3.0, {}, [])
    assert score.penalised(plain, ScoreConfig()) == plain


def test_weights_that_leave_the_numbers_are_an_error(rows: list[CandidateRow]) -> None:
    functions = [RewardFunction(function="m:f", weight=1e308)]
    with pytest.raises(UserError, match="candidate p/1/0: the total reward is inf"):
        score.scored_row(rows[0], 1.0, {"m:f": {"p/1/0": 100.0}}, functions)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "two candidates have the id 'p/1/0'"),
        ({"id": "p/1/9", "completion_ids": []}, "candidate p/1/9 has no completion_ids"),
        ({"id": "p/1/9", "messages": [Message(role="user", content="Else?")]}, "p/1/0 and p/1/9 have the prompt_id"),
    ],
)
def test_candidates_that_cannot_be_told_apart(rows: list[CandidateRow], change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"in.jsonl: .*{said}"):
        score.grouped([*rows, rows[0].model_copy(update=change)], where="in.jsonl")
    with pytest.raises(DataError, match=r"in.jsonl: holds no candidate"):
        score.grouped([], where="in.jsonl")


def test_another_tokenizer_is_noticed(rows: list[CandidateRow], reward_model: Artifact, tmp_path: Path) -> None:
    other = [row.model_copy(update={"completion_ids": [i + 7 for i in row.completion_ids]}) for row in rows]
    with pytest.raises(ModelError, match="candidate p/1/0 was sampled with another tokenizer"):
        scored(tmp_path / "a", other, reward_model)
    beyond = [rows[0].model_copy(update={"completion_ids": [10**7, 4]})]
    with pytest.raises(ModelError, match="another tokenizer"):
        scored(tmp_path / "b", beyond, reward_model)


def test_what_of_the_batch_is_not_peoples_is_scored_with_the_candidates(
    tmp_path: Path, rows: list[CandidateRow], reward_model: Artifact, functions: str
) -> None:
    """Picks of a judge and of the simulated annotator, and what people hardly preferred; never what people wrote."""
    sampled = next(row for row in rows if row.completion == "No.")

    def preference(row_id: str, **more: Any) -> PreferenceRow:
        made = {"id": row_id, "messages": sampled.messages, "chosen": "No.", "rejected": "Yes.", "source": "f", **more}
        return PreferenceRow(**{**made, "source": Source(file="f"), "meta": sampled.meta})  # type: ignore[arg-type]

    batch = [
        preference("clear", strength="better", chosen_reward=None),
        preference("silent"),
        preference("weak", strength="slightly_better"),
        preference("edited", strength="slightly_better", edited="No, never."),
        preference(
            "judge",
            strength="better",
            compared_by="judge",
            chosen_ids=sampled.completion_ids[:-1],
            chosen_finish_reason="stop",
        ),
        preference("simulated", compared_by="simulated", chosen_reward=99.0),
        preference("too long", compared_by="judge", chosen="No. " * 4000),
    ]
    dump_jsonl(tmp_path / "batch.jsonl", batch)
    dump_jsonl(tmp_path / "in.jsonl", rows)
    given = score.Inputs(Artifact.of(tmp_path / "in.jsonl"), reward_model, Artifact.of(tmp_path / "batch.jsonl"))
    exact = RewardFunction(function=f"{functions}:exact", weight=0.5)
    outputs = score.run(stage_config(reward_functions=(exact,)), given, context(tmp_path, engine=ScriptedEngine()))
    candidate = next(row for row in load_jsonl(outputs.candidates.path, CandidateRow) if row.id == sampled.id)
    assert candidate.total_reward is not None
    assert candidate.reward is not None
    assert candidate.total_reward == pytest.approx(candidate.reward + 0.5)
    after = {row.id: row.chosen_reward for row in load_jsonl(outputs.preferences[0].path, PreferenceRow)}
    assert list(after) == [row.id for row in batch]
    # The same prompt and text, sampled or tokenised, has the reward that the candidate has now; 99 was another model's.
    for name in ("weak", "judge", "simulated"):
        assert after.pop(name) == pytest.approx(candidate.total_reward, abs=1e-5)
    assert after == dict.fromkeys(("clear", "silent", "edited", "too long"))
    assert outputs.counts == {"preferences_scored": 3}
    assert outputs.metrics[f"applies/{functions}:exact"] == pytest.approx(3 / 5)


@pytest.fixture(scope="module")
def members(reward_model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, ...]:
    """Three heads on one base."""
    from alignloop.training.checkpoints import save_checkpoint
    from alignloop.training.model import load_reward_model

    base = Path(resolve_base("quickstart"))
    folder = tmp_path_factory.mktemp("members")
    others = [
        Artifact.of(save_checkpoint(load_reward_model(base, seed=seed), folder / f"seed-{seed}", companions=base))
        for seed in (4, 5)
    ]
    return (reward_model, *others)


@pytest.mark.parametrize(
    ("config", "make"),
    [
        ({"ensemble": "mean"}, lambda rewards: fmean(rewards)),
        ({"ensemble": "least"}, lambda rewards: min(rewards)),
        ({"ensemble": "mean_minus_spread"}, lambda rewards: fmean(rewards) - pstdev(rewards)),
        (
            {"ensemble": "mean_minus_spread", "spread_penalty": 0.5},
            lambda rewards: fmean(rewards) - 0.5 * pstdev(rewards),
        ),
    ],
)
def test_an_ensembles_reward_is_made_of_its_members(
    rows: list[CandidateRow],
    members: tuple[Artifact, ...],
    tmp_path: Path,
    config: dict[str, Any],
    make: Callable[[list[float]], float],
) -> None:
    outputs, found = scored(tmp_path / "all", rows, members, **config)
    alone = [scored(tmp_path / f"{k}", rows, member)[1] for k, member in enumerate(members)]
    assert [row.member_rewards for row in found] == [
        [row.reward for row in of_row] for of_row in zip(*alone, strict=True)
    ]
    for row in found:
        assert len(set(row.member_rewards)) == 3
        assert row.reward == row.total_reward == pytest.approx(make(row.member_rewards))
        assert row.reward_spread == pytest.approx(pstdev(row.member_rewards))
    assert outputs.metrics["mean_reward"] == pytest.approx(fmean(row.reward or 0.0 for row in found))
    assert outputs.metrics["mean_spread"] == pytest.approx(fmean(row.reward_spread or 0.0 for row in found))


def test_one_reward_model_leaves_no_column_of_an_ensemble(
    rows: list[CandidateRow], reward_model: Artifact, members: tuple[Artifact, ...], tmp_path: Path
) -> None:
    plain, _ = scored(tmp_path / "plain", rows, reward_model)
    assert "member_rewards" not in plain.candidates.path.read_text()
    assert "reward_spread" not in plain.candidates.path.read_text()
    _, by_all = scored(tmp_path / "all", rows, members, ensemble="mean")
    again, _ = scored(tmp_path / "again", by_all, reward_model)  # what an ensemble left there is gone
    assert again.candidates.path.read_bytes() == plain.candidates.path.read_bytes()
    assert stage_config().model_dump(mode="json").keys().isdisjoint({"ensemble", "spread_penalty"})
    dumped = stage_config(ensemble="mean_minus_spread", spread_penalty=2.0).model_dump(mode="json")
    assert (dumped["ensemble"], dumped["spread_penalty"]) == ("mean_minus_spread", 2.0)


def test_functions_and_gates_stand_beside_an_ensemble(
    rows: list[CandidateRow], members: tuple[Artifact, ...], functions: str, tmp_path: Path
) -> None:
    one = (RewardFunction(function=f"{functions}:length", weight=2.0),)
    _, found = scored(tmp_path / "all", rows, members, ensemble="least", reward_functions=one, length_penalty=1.0)
    for row, words in zip(found, (2, 1, 5, 3, 2), strict=True):
        expected = min(row.member_rewards) + 2.0 * words - len(row.completion_ids) / 100
        assert row.total_reward == pytest.approx(expected)


def test_as_many_reward_models_as_the_recipe_says(
    rows: list[CandidateRow], reward_model: Artifact, members: tuple[Artifact, ...], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"score\.ensemble is mean, and there is one reward model: give its members"):
        scored(tmp_path / "one", rows, reward_model, ensemble="mean")
    with pytest.raises(UserError, match=r"3 reward models, and score\.ensemble is average_weights, which scores with"):
        scored(tmp_path / "many", rows, members)


def test_a_member_whose_training_has_diverged_is_named(
    rows: list[CandidateRow], members: tuple[Artifact, ...], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(members[1].path, broken)
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"] = weights["score.weight"] * float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{broken}: gives a completion of p the reward nan: its training"):
        scored(tmp_path / "all", rows, (members[0], Artifact.of(broken)), ensemble="least")
