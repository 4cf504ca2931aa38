"""RLOO as a round drives it, on the bundled base, a real engine and a few prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stage_case import at_door, context, written

from alignloop.artifacts import Artifact, digest_of
from alignloop.config.bundled import resolve_base
from alignloop.config.engine import EngineConfig
from alignloop.config.load import load_recipe
from alignloop.config.rloo import RlooConfig
from alignloop.config.training import TrainingConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.base import Completion, GenerateRequest
from alignloop.engines.open import open_engine
from alignloop.errors import DataError, EngineError, RecipeError, UserError
from alignloop.records import CandidateRow, Message, PromptRow, Source
from alignloop.stages import average, train_rloo
from alignloop.training.job import prompt_batches

NUM_PROMPTS, K, MAX_TOKENS = 6, 3, 12
ENGINE = EngineConfig(name="transformers", dtype="float32", max_model_len=96)
BY_LENGTH = {"function": "alignloop.rewards:length_reward", "weight": 1.0}
RLOO: dict[str, Any] = {
    "dtype": "float32",
    "learning_rate": 3e-4,
    "batch_groups": 1,
    "num_minibatches": 2,
    "num_iterations": 2,
    "num_candidates": K,
    "max_length": 64,
    "kl_coefficient": 0.1,
    "save_every_steps": 4,
}
"""Three batches of two prompts; two passes of two steps over each."""


def shorter(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward function: the fewer tokens, the better."""
    return [-float(len(ids)) for ids in completion_ids]


SHORTER = {"function": f"{__name__}:shorter"}


class Watched:
    """A real engine, which can be made to die at a call of `generate`; notes what it is asked."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.dies_at = engine, -1
        self.served: list[tuple[Path, str]] = []
        self.num_generated = 0

    def load_weights(self, checkpoint: Path) -> None:
        self.engine.load_weights(checkpoint)
        self.served.append((checkpoint, digest_of(checkpoint / "model.safetensors")))

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        if self.num_generated == self.dies_at:
            raise EngineError("the engine died")
        self.num_generated += 1
        found: list[list[Completion]] = self.engine.generate(requests)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


@pytest.fixture(scope="module")
def real_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_engine(ENGINE, log_file=tmp_path_factory.mktemp("engine") / "engine.log") as engine:
        yield engine


@pytest.fixture
def engine(real_engine: Any) -> Watched:
    return Watched(real_engine)


@pytest.fixture(scope="module")
def base() -> Artifact:
    return Artifact.of(Path(resolve_base("quickstart")))


@pytest.fixture(scope="module")
def reward_model(base: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from alignloop.training.checkpoints import save_checkpoint
    from alignloop.training.model import load_reward_model

    path = tmp_path_factory.mktemp("reward") / "checkpoint"
    save_checkpoint(load_reward_model(base.path, seed=1), path, companions=base.path)
    return Artifact.of(path)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = [
        PromptRow(
            id=f"p{n}",
            messages=[Message(role="user", content=f"Name river {n}." if n < NUM_PROMPTS else "Name it. " * 99)],
            source=Source(file="f"),
        )
        for n in range(NUM_PROMPTS + 1)
    ]
    return written(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def settings(*, functions: Sequence[dict[str, Any]] = (), **rloo: Any) -> train_rloo.Settings:
    recipe = {
        "preferences": "p.jsonl",
        "policy": {"by": "rloo"},
        "rloo": {**RLOO, **rloo},
        "sample": {"max_tokens": MAX_TOKENS},
        "score": {"dtype": "float32", "reward_functions": list(functions)},
        "engine": ENGINE.model_dump(),
    }
    return train_rloo.settings(load_recipe(recipe))


def log_of(outputs: train_rloo.Outputs) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outputs.logs[0].path.read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(
    real_engine: Any, base: Artifact, reward_model: Artifact, prompts: Artifact, tmp_path_factory: Any
) -> tuple[train_rloo.Outputs, Watched]:
    engine = Watched(real_engine)
    inputs = train_rloo.Inputs(base, prompts, base, reward_model)
    folder = tmp_path_factory.mktemp("unbroken") / "11_train_rloo"
    return at_door(train_rloo.STAGE, settings(), inputs, folder, engine=engine), engine  # type: ignore[arg-type]


def test_it_samples_rewards_trains_and_swaps(
    unbroken: tuple[train_rloo.Outputs, Watched], base: Artifact, reward_model: Artifact
) -> None:
    outputs, engine = unbroken
    rows = list(load_jsonl(outputs.samples.path, CandidateRow))
    assert len(rows) == len({row.id for row in rows}) == NUM_PROMPTS * K
    assert {row.prompt_id for row in rows} == {f"p{n}" for n in range(NUM_PROMPTS)}
    assert rows[0].id == f"{rows[0].prompt_id}/1/batch-0-0"
    assert all(row.reward is not None and row.total_reward == row.reward for row in rows)
    assert outputs.counts == {"in": 7, "kept": 6, "dropped": 1, "dropped_by_length": 1}
    # The base, then what was trained so far, each in a folder of its own, none of which stays.
    paths, digests = zip(*engine.served, strict=True)
    assert engine.num_generated == len(set(paths)) == len(set(digests)) == 3
    assert digests[0] == digest_of(base.path / "model.safetensors")
    folder = outputs.samples.path.parent
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        *("checkpoints", "dropped.jsonl", "manifest.json", "samples.jsonl", "train_log.jsonl", "train_summary.json")
    ]
    assert outputs.checkpoints[0].path.name == "step-000012"


def test_its_log_has_a_line_a_step(unbroken: tuple[train_rloo.Outputs, Watched]) -> None:
    outputs, _ = unbroken
    log = log_of(outputs)
    assert [row["step"] for row in log] == list(range(1, 13))
    wanted = {"reward", "kl", "advantage_std", "clip_share", "entropy", "completion_tokens", "stop_rate", "failed"}
    assert all(wanted <= row.keys() for row in log)
    assert log[0]["kl"] == pytest.approx(0.0, abs=1e-9)  # the reference is where it starts
    assert log[-1]["kl"] != pytest.approx(0.0, abs=1e-6)
    # The first step on what was sampled is at the policy that sampled it; later ones are not.
    assert [row["ratio"] for row in log[::4]] == pytest.approx([1.0] * 3, abs=1e-5)
    assert all(row["ratio"] != pytest.approx(1.0, abs=1e-5) for row in log[2::4])
    assert 0.0 < log[0]["entropy"] < 7.0
    assert {"train_reward", "train_kl", "train_clip_share"} <= outputs.metrics.keys()
    assert outputs.facts["trained_tokens"] == sum(row["num_tokens"] for row in log)


def test_the_stage_after_it_averages_it(unbroken: tuple[train_rloo.Outputs, Watched], tmp_path: Path) -> None:
    outputs, _ = unbroken
    averaged = at_door(
        average.RLOO, average.RLOO.settings(load_recipe({"preferences": "x"})), average.of(outputs), tmp_path / "a"
    )
    ours, theirs = (path / "model.safetensors" for path in (outputs.checkpoints[0].path, averaged.checkpoint.path))
    assert digest_of(ours) == digest_of(theirs)
    assert average.stage_for(load_recipe({"preferences": "x"}), average.of(outputs)) is average.RLOO


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_what_died_goes_on_to_the_same_bytes(
    unbroken: tuple[train_rloo.Outputs, Watched],
    engine: Watched,
    base: Artifact,
    reward_model: Artifact,
    prompts: Artifact,
    tmp_path: Path,
    dies_at: int,
) -> None:
    """At the first batch, at the second (after the resume point of step 4), and at the third."""
    inputs = train_rloo.Inputs(base, prompts, base, reward_model)
    folder = tmp_path / "11_train_rloo"
    engine.dies_at = dies_at
    with pytest.raises(EngineError, match="the engine died"):
        at_door(train_rloo.STAGE, settings(), inputs, folder, engine=engine)  # type: ignore[arg-type]
    again = Watched(engine.engine)
    outputs = at_door(train_rloo.STAGE, settings(), inputs, folder, engine=again)  # type: ignore[arg-type]
    assert again.num_generated == 3 - dies_at  # a batch that was sampled is not sampled again
    expected = unbroken[0]
    assert outputs.samples.digest == expected.samples.digest
    assert outputs.checkpoints[0].digest == expected.checkpoints[0].digest
    assert [row | {"tokens_per_second": 0} for row in log_of(outputs)] == [
        row | {"tokens_per_second": 0} for row in log_of(expected)
    ]


def test_without_a_resume_point_it_trains_again_on_what_was_sampled(
    unbroken: tuple[train_rloo.Outputs, Watched],
    engine: Watched,
    base: Artifact,
    reward_model: Artifact,
    prompts: Artifact,
    tmp_path: Path,
) -> None:
    inputs = train_rloo.Inputs(base, prompts, base, reward_model)
    config = settings(save_every_steps=100)
    engine.dies_at = 2
    with pytest.raises(EngineError):
        at_door(train_rloo.STAGE, config, inputs, tmp_path / "a", engine=engine)  # type: ignore[arg-type]
    again = Watched(engine.engine)
    outputs = at_door(train_rloo.STAGE, config, inputs, tmp_path / "a", engine=again)  # type: ignore[arg-type]
    assert again.num_generated == 1
    assert outputs.checkpoints[0].digest == unbroken[0].checkpoints[0].digest


def test_functions_alone_may_reward_and_what_they_say_is_learnt(
    engine: Watched, base: Artifact, prompts: Artifact, tmp_path: Path
) -> None:
    """Shorter is better: from the first epoch to the last, completions get shorter. No model but the policy is loaded,
    and adapters train."""
    config = settings(
        functions=[SHORTER],
        kl_coefficient=0.0,
        learning_rate=3e-3,
        epochs=4,
        batch_groups=3,
        num_iterations=1,
        failure_penalty=0.0,
        lora={"rank": 4},
    )
    outputs = at_door(train_rloo.STAGE, config, train_rloo.Inputs(base, prompts), tmp_path / "a", engine=engine)  # type: ignore[arg-type]
    log = log_of(outputs)
    assert len(log) == 8
    assert "kl" not in log[0]
    assert log[-1]["completion_tokens"] < log[0]["completion_tokens"]
    rows = list(load_jsonl(outputs.samples.path, CandidateRow))
    assert all(row.reward is None and row.total_reward == -len(row.completion_ids) for row in rows)
    assert (outputs.checkpoints[0].path / "adapter").is_dir()


def test_what_fails_is_worth_the_least(base: Artifact, prompts: Artifact, tmp_path: Path) -> None:
    gate = {"function": f"{__name__}:shorter", "gate": -5.0}
    batcher = train_rloo._Batcher(
        settings(functions=[gate]), train_rloo.Inputs(base, prompts), context(tmp_path), None, ()
    )  # type: ignore[arg-type]

    def row(total: float, *, text: str = "Yes.", finish: str = "stop", gates: Sequence[str] = ()) -> CandidateRow:
        values = {"completion": text, "finish_reason": finish, "failed_gates": list(gates), "total_reward": total}
        dialog = [Message(role="user", content="?")]
        return CandidateRow(id="c", prompt_id="p", messages=dialog, completion_ids=[1], round=1, policy="x", **values)

    rows = [row(2.0), row(9.0, finish="length"), row(0.5), row(7.0, text=" "), row(8.0, gates=[gate["function"]])]
    assert batcher._worth(rows) == [2.0, -0.5, 0.5, -0.5, -0.5]


def test_what_cannot_be_is_named_before_anything_runs(
    base: Artifact, reward_model: Artifact, prompts: Artifact, tmp_path: Path
) -> None:
    ctx = context(tmp_path / "a")
    whole = train_rloo.Inputs(base, prompts, base, reward_model)
    with pytest.raises(UserError, match=r"trains in one process, and training\.num_processes is 2: set it to 1"):
        train_rloo.run(settings(), whole, replace(ctx, training=TrainingConfig(num_processes=2)))
    with pytest.raises(UserError, match=r"rloo.kl_coefficient is 0.1, and no reference model is given"):
        train_rloo.run(settings(), replace(whole, reference=None), ctx)
    with pytest.raises(
        UserError, match=r"no reward model is given, and score\.reward_functions has none with a weight"
    ):
        train_rloo.run(settings(functions=[{**SHORTER, "weight": 0.0}]), replace(whole, reward_model=None), ctx)
    with pytest.raises(DataError, match="none of 7 prompts leaves room for a completion of 12 tokens within 13"):
        train_rloo.run(settings(max_length=13), whole, ctx)


@pytest.mark.parametrize(
    ("rloo", "message"),
    [
        ({"num_candidates": 1}, "num_candidates"),
        ({"variants": [{"seed": 1}]}, "variants"),
        ({"clip": 0.3, "clip_high": 0.2}, r"clip_high \(0.2\) is under clip \(0.3\)"),
        ({"reward_model": False}, "rloo.reward_model is false, and score.reward_functions has none"),
        ({"reference": "ema"}, "reference"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(rloo: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe({"preferences": "x.jsonl", "policy": {"by": "rloo"}, "rloo": rloo})


def test_batches_by_hand() -> None:
    """Five prompts, two a step: steps of 2, 2 and 1; two steps sampled together, each twice; ten steps of twelve."""
    config = RlooConfig(batch_groups=2, num_minibatches=2, num_iterations=2, epochs=2, max_steps=10)
    batches = prompt_batches(5, config=config, seed=0)
    assert [[len(step) for step in batch] for batch in batches] == [[2, 2, 2, 2], [1, 1], [2, 2, 2, 2]]
    assert all(batch[: len(batch) // 2] == batch[len(batch) // 2 :] for batch in batches)
    first = {prompt for batch in batches[:2] for step in batch for prompt in step}
    assert first == set(range(5))
    assert batches[0] != batches[2]
    assert prompt_batches(5, config=config.model_copy(update={"max_steps": 3}), seed=0) == [batches[0][:3]]
