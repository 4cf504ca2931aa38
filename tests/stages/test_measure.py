"""The measure stage on the bundled base, a policy a step away from it, and two drawn reward models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stage_case import Listening

from alignloop.artifacts import Artifact, digest_of
from alignloop.config import load_recipe
from alignloop.config.bundled import resolve_base
from alignloop.config.engine import EngineConfig
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.engines.base import Engine
from alignloop.engines.open import open_engine
from alignloop.evaluation.measures import Figures
from alignloop.judging.verdicts import Appraisal, JudgeTexts, PairToCompare, Points, Verdict
from alignloop.progress import QuietProgress
from alignloop.records import MeasuredRow, Message, PreferenceRow, Source
from alignloop.run_dir.stage import StageContext
from alignloop.stages import measure
from alignloop.stages.measure import Settings, settings
from alignloop.stages.measured_answers import (
    GeneratedText,
    HeldoutAnswers,
    add_judged,
    add_logprobs,
    heldout_of,
    key_of,
    logprob_groups,
)

QUESTIONS = ("Tell me about the bear.", "What is a river?", "Who made the scissors?", "Name a town.")
END_OF_TURN = 4
"""`<|eot_id|>` of the bundled base."""
NO_ROWS = measure.RoundRows()
SET = ("measure.num_prompts=3", "measure.num_candidates=2", "measure.max_tokens=12", "engine.name=transformers")


def preference(number: int, question: str, **more: Any) -> PreferenceRow:
    return PreferenceRow(
        id=f"h{number}",
        messages=[Message(role="user", content=question)],
        chosen="The bear has a grey coat.",
        rejected="No.",
        source=Source(file="given"),
        **more,
    )


ROWS = [
    *(preference(number, question, strength="better") for number, question in enumerate(QUESTIONS)),
    preference(4, QUESTIONS[0] + " ", strength="marginally_better"),
    preference(5, "word " * 500),
]


def recipe(*more: str) -> Recipe:
    return load_recipe("quickstart", overrides=[*SET, *more])


def recipe_config(*more: str) -> Settings:
    return settings(recipe(*more))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    import torch

    from alignloop.training.checkpoints import save_checkpoint
    from alignloop.training.model import load_policy, load_reward_model

    base = Path(resolve_base("quickstart"))
    folder = tmp_path_factory.mktemp("models")
    moved = load_policy(base)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.02 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return {
        "base": Artifact.of(base),
        "policy": Artifact.of(save_checkpoint(moved, folder / "policy", companions=base)),
        "reward": Artifact.of(save_checkpoint(load_reward_model(base, seed=3), folder / "reward", companions=base)),
        "first": Artifact.of(save_checkpoint(load_reward_model(base, seed=4), folder / "first", companions=base)),
    }


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    with open_engine(EngineConfig(name="transformers", dtype="float32", max_model_len=384), log_file=log) as engine:
        yield engine


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rows_file(tmp_path_factory.mktemp("rows"), ROWS)


def rows_file(folder: Path, rows: Sequence[PreferenceRow]) -> Artifact:
    dump_jsonl(folder / "heldout.jsonl", rows)
    return Artifact.of(folder / "heldout.jsonl")


def measured(
    folder: Path, inputs: measure.Inputs, engine: Engine, *, round: int = 1, say: Listening | None = None, **config: Any
) -> measure.Outputs:
    folder.mkdir(parents=True)
    ctx = StageContext(dir=folder, seed=round, round=round, engine=engine, progress=say or Listening())
    return measure.run(recipe_config().model_copy(update=config), inputs, ctx)


@pytest.fixture(scope="module")
def of_base(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, Artifact], heldout: Artifact, engine: Engine
) -> measure.Outputs:
    folder = tmp_path_factory.mktemp("round0") / "measure"
    return measured(folder, measure.Inputs(models["base"], heldout), engine, round=0)


def in_round_one(
    policy: str, models: dict[str, Artifact], heldout: Artifact, of_base: measure.Outputs
) -> measure.Inputs:
    before = measure.of_base(models["base"], of_base)
    return measure.inputs(
        recipe(), before, policy=models[policy], reward_model=models["reward"], heldout=heldout, rows=NO_ROWS
    )


def test_of_the_base_there_is_what_needs_no_reward_model(of_base: measure.Outputs) -> None:
    figures = {name for name in of_base.metrics if not name.endswith("_stderr")}
    assert figures == {
        *("chosen_logprob/policy", "end_of_turn_logprob/chosen", "end_of_turn_logprob/rejected"),
        *("stop_rate", "truncation_rate", "repetition_rate", "tail_repetition_rate", "abrupt_end_rate"),
        *("empty_rate", "mean_tokens"),
    }
    assert json.loads(of_base.measures.path.read_text()) == of_base.metrics
    rows = list(load_jsonl(of_base.completions.path, MeasuredRow))
    assert len(rows) == 3
    assert {row.reward for row in rows} == {None}
    assert of_base.counts == {"in": 6, "kept": 5, "dropped": 1, "prompts": 3}
    (dropped,) = of_base.dropped.path.read_text().splitlines()
    assert "for a completion exceed 384" in dropped


def test_a_policy_that_is_the_base_has_not_moved(
    tmp_path: Path, models: dict[str, Artifact], heldout: Artifact, of_base: measure.Outputs, engine: Engine
) -> None:
    """Every answer is the base's own: ties, no gain, no drift, no divergence."""
    found = measured(tmp_path / "m", in_round_one("base", models, heldout, of_base), engine).metrics
    for name in ("previous", "base"):
        assert found[f"win_rate/{name}"] == 0.5
        assert found[f"win_rate/{name}_ties"] == 1.0
        assert found[f"reward/gain_over_{name}"] == 0.0
        assert found[f"reward/{name}_heldout"] == found["reward/policy_heldout"]
    for name in ("chosen_logprob/drift", "kl_to_base", "kl_to_base_k3", "kl_to_base_completion"):
        assert found[name] == 0.0
        assert found[f"{name}_stderr"] == 0.0
    assert found["first_reward/policy_heldout"] == found["reward/policy_heldout"]
    assert found["reward/random"] <= found["reward/best_of_k"]


def test_a_policy_that_has_moved(
    tmp_path: Path, models: dict[str, Artifact], heldout: Artifact, of_base: measure.Outputs, engine: Engine
) -> None:
    """Divergence and drift against plain forward passes, rewards against the reward model alone."""
    from alignloop.chat.load import load_format
    from alignloop.packing.build import ranked_groups
    from alignloop.packing.groups import PromptGroup
    from alignloop.training.scoring import completion_logprobs, score_groups

    inputs = in_round_one("policy", models, heldout, of_base)
    outputs = measured(tmp_path / "m", inputs, engine)
    found, rows = outputs.metrics, list(load_jsonl(outputs.completions.path, MeasuredRow))
    assert found["kl_to_base"] != 0.0
    assert found["kl_to_base_k3"] > 0.0

    chat = load_format(models["policy"].path)
    kept = [row for row in ROWS if row.id != "h5"]
    margins = [
        chosen - rejected
        for chosen, rejected in score_groups(
            ranked_groups(kept, chat),
            reward_model=models["reward"].path,
            progress=QuietProgress(),
            dtype="float32",
        )
    ]
    # h4 is marginally better: told apart, and no part of the accuracy of what trains.
    assert found["heldout/pairs"] == 4
    assert found["heldout/accuracy"] == sum(margin > 0 for margin in margins[:4]) / 4
    assert found["heldout/accuracy/marginally_better"] == float(margins[4] > 0)

    groups = [
        PromptGroup(row.id, chat.prompt_ids(row.messages), (chat.sampled_completion(row.completion_ids),), (0,))
        for row in rows
    ]
    rewards = score_groups(groups, reward_model=models["reward"].path, progress=QuietProgress(), dtype="float32")
    assert [row.reward for row in rows] == pytest.approx([reward for (reward,) in rewards], abs=1e-5)
    assert found["reward/policy_heldout"] == pytest.approx(sum(reward for (reward,) in rewards) / 3, abs=1e-5)

    content = len(chat.completion("The bear has a grey coat.").token_ids) - 1
    chosen = [PromptGroup(row.id, chat.prompt_ids(row.messages), (chat.completion(row.chosen),), (0,)) for row in rows]
    by = {
        name: [
            sum(logprobs[0][:content])
            for logprobs in completion_logprobs(
                chosen, checkpoint=models[name].path, progress=QuietProgress(), dtype="float32"
            )
        ]
        for name in ("policy", "base")
    }
    drift = (sum(by["policy"]) - sum(by["base"])) / (3 * content)
    assert found["chosen_logprob/drift"] == pytest.approx(drift, abs=1e-5)
    for name, text in (("chosen", "The bear has a grey coat."), ("rejected", "No.")):
        before = [(*chat.prompt_ids(row.messages), *chat.content_ids(text)) for row in rows]
        ends = [end_of_turn(models["policy"].path, ids) for ids in before]
        assert found[f"end_of_turn_logprob/{name}"] == pytest.approx(sum(ends) / 3, abs=1e-5)


def end_of_turn(checkpoint: Path, token_ids: tuple[int, ...]) -> float:
    """log p(<|eot_id|>) behind these ids, by transformers' own forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([token_ids])).logits[0, -1]
    return float(torch.log_softmax(logits, dim=-1)[END_OF_TURN])


def test_the_end_of_turn_by_hand(tmp_path: Path) -> None:
    """A model whose logits hang on the last token alone: behind a full stop, ln 2047 for <|eot_id|> and 0 for the other
    2047 tokens, so 2047 / (2047 + 2047) = 1/2; behind any other all are 0, so 1/2048.

    Chosen: two end with a full stop and one was cut, which has no end of turn: ln 1/2. Rejected: two without one, and
    one with: (2 ln 1/2048 + ln 1/2) / 3.
    """
    from alignloop.chat.load import load_format
    from alignloop.training.scoring import completion_logprobs

    chat, checkpoint = load_format(Path(resolve_base("quickstart"))), stops_after_full_stop(tmp_path / "tiny")
    texts = [("It is grey.", "No", "stop"), ("It is.", "No", "stop"), ("It is grey.", "No.", "length")]
    rows = [
        preference(n, QUESTIONS[n]).model_copy(
            update={"chosen": chosen, "rejected": rejected, "chosen_finish_reason": reason}
        )
        for n, (chosen, rejected, reason) in enumerate(texts)
    ]
    none = GeneratedText((), (), "", True)
    groups = logprob_groups([HeldoutAnswers(row, chat.prompt_ids(row.messages), none, ()) for row in rows], chat=chat)
    found = completion_logprobs(groups, checkpoint=checkpoint, progress=QuietProgress(), dtype="float32")
    figures = Figures()
    add_logprobs(figures, groups, policy=found, base=None)
    assert figures.values["end_of_turn_logprob/chosen"] == pytest.approx(math.log(1 / 2), abs=1e-5)
    rejected = (2 * math.log(1 / 2048) + math.log(1 / 2)) / 3
    assert figures.values["end_of_turn_logprob/rejected"] == pytest.approx(rejected, abs=1e-5)
    # Every token of an answer has 1/2048, but the first behind a full stop: the end of turn, which is left out.
    assert figures.values["chosen_logprob/policy"] == pytest.approx(-math.log(2048), abs=1e-5)


def stops_after_full_stop(folder: Path) -> Path:
    """A Llama of one layer that adds nothing: the embedding of a full stop points elsewhere than all others."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from alignloop.training.checkpoints import save_checkpoint

    size, full_stop, num_tokens = 8, 19, 2048
    config = LlamaConfig(
        vocab_size=num_tokens, hidden_size=size, intermediate_size=size, num_hidden_layers=1, num_attention_heads=1,
        rms_norm_eps=1e-12, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.embed_tokens.weight[full_stop] = torch.eye(size)[1]
        # The last norm makes a unit vector sqrt(8) long.
        model.lm_head.weight[END_OF_TURN, 1] = math.log(num_tokens - 1) / math.sqrt(size)
    return save_checkpoint(model, folder, companions=Path(resolve_base("quickstart")))


def test_the_next_round_is_held_against_this_one_and_scored_by_the_first_reward_model(
    tmp_path: Path, models: dict[str, Artifact], heldout: Artifact, of_base: measure.Outputs, engine: Engine
) -> None:
    """The same policy again, another reward model: it ties with the last round, and the first model says the same."""
    one = measured(tmp_path / "1", in_round_one("policy", models, heldout, of_base), engine)
    before = measure.after(measure.of_base(models["base"], of_base), reward_model=models["reward"], measured=one)
    inputs = measure.inputs(
        recipe(), before, policy=models["policy"], reward_model=models["first"], heldout=heldout, rows=NO_ROWS
    )
    two = measured(tmp_path / "2", inputs, engine, round=2)
    assert two.metrics["win_rate/previous_ties"] == 1.0
    for name in ("policy_heldout", "random", "base_heldout"):
        assert two.metrics[f"first_reward/{name}"] == pytest.approx(one.metrics[f"reward/{name}"], abs=1e-6)
        assert two.metrics[f"reward/{name}"] != one.metrics[f"reward/{name}"]
    assert two.metrics["first_win_rate/base"] == one.metrics["win_rate/base"]
    assert two.metrics["kl_to_base"] == one.metrics["kl_to_base"]
    again = measure.after(before, reward_model=models["first"], measured=two)
    assert again.first_reward_model == models["reward"]


def test_an_ensemble_rewards_as_its_members_do_together(
    tmp_path: Path, models: dict[str, Artifact], heldout: Artifact, of_base: measure.Outputs, engine: Engine
) -> None:
    """The mean over two models of each figure that is a mean of rewards; the least is under either."""
    asked = in_round_one("policy", models, heldout, of_base)
    one, two, both, least = (
        measured(tmp_path / name, replace(asked, reward_model=model), engine, **config)
        for name, model, config in (
            ("one", models["reward"], {}),
            ("two", models["first"], {}),
            ("both", (models["reward"], models["first"]), {"ensemble": "mean"}),
            ("least", (models["reward"], models["first"]), {"ensemble": "least"}),
        )
    )
    for name in ("reward/policy_heldout", "reward/base_heldout", "reward/random"):
        alone = [one.metrics[name], two.metrics[name]]
        assert both.metrics[name] == pytest.approx(sum(alone) / 2, abs=1e-5)
        assert least.metrics[name] < min(alone) + 1e-5
    first = measure.after(measure.of_base(models["base"], of_base), reward_model=asked.reward_model, measured=both)
    assert first.first_reward_model == models["reward"]


def test_the_same_bytes_again(
    tmp_path: Path, models: dict[str, Artifact], heldout: Artifact, of_base: measure.Outputs, engine: Engine
) -> None:
    """Also where the engine has answered something else before, and where a killed run has left its half."""
    inputs = in_round_one("policy", models, heldout, of_base)
    one = measured(tmp_path / "1", inputs, engine)
    engine.load_weights(models["base"].path)
    left = tmp_path / "2" / "completions.jsonl"
    folder = left.parent
    folder.mkdir()
    left.write_text("half a li")
    ctx = StageContext(dir=folder, seed=1, round=1, engine=engine, progress=QuietProgress())
    two = measure.run(recipe_config(), inputs, ctx)
    for name in ("measures.json", "completions.jsonl", "dropped.jsonl"):
        assert digest_of(tmp_path / "1" / name) == digest_of(tmp_path / "2" / name)
    assert two.metrics == one.metrics


def test_nothing_to_measure_is_said(
    tmp_path: Path, models: dict[str, Artifact], heldout: Artifact, engine: Engine
) -> None:
    said = Listening()
    off = measured(tmp_path / "off", measure.Inputs(models["base"], heldout), engine, say=said, enabled=False)
    assert off.metrics == {}
    assert off.counts == {"in": 0, "kept": 0, "dropped": 0, "prompts": 0}
    (tmp_path / "none").mkdir()
    none = rows_file(tmp_path / "none", [])
    measured(tmp_path / "empty", measure.Inputs(models["base"], none), engine, say=said)
    long = rows_file(tmp_path, [ROWS[-1]])
    measured(tmp_path / "long", measure.Inputs(models["base"], long), engine, say=said)
    assert "measure.enabled is false" in said.lines[0]
    assert "no preference row is held out (data.heldout_fraction)" in said.lines[1]
    assert "none of the 1 held-out rows leaves room for an answer of 12 tokens within 384" in said.lines[2]


def test_prompts_are_each_once_and_hang_on_their_texts_alone() -> None:
    from alignloop.chat.load import load_format

    chat = load_format(Path(resolve_base("quickstart")))
    config = recipe_config()
    found = heldout_of(ROWS, chat=chat, config=config)
    assert [row.id for row in found.dropped] == ["h5"]
    assert len(found.rows) == 5
    keys = {key_of(row) for row in found.prompts}
    assert len(keys) == len(found.prompts) == 3
    other = heldout_of(ROWS[::-1], chat=chat, config=config)
    assert {key_of(row) for row in other.prompts} == keys
    everyone = heldout_of(ROWS, chat=chat, config=config.model_copy(update={"num_prompts": 64}))
    assert [row.id for row in everyone.prompts] == ["h0", "h1", "h2", "h3"]  # h4 asks what h0 asks


class LongerWins:
    """A judge without a model; it cannot read what is about the number nine."""

    name = "longer"

    def __init__(self) -> None:
        self.asked: list[PairToCompare] = []

    def compare(self, items: Sequence[PairToCompare]) -> list[Verdict]:
        self.asked += items
        return [self._verdict(item) for item in items]

    def _verdict(self, item: PairToCompare) -> Verdict:
        if "nine" in item.first + item.second:
            return Verdict(item.id, "unreadable", "no JSON", ("?",))
        return Verdict(item.id, "first" if len(item.first) > len(item.second) else "second", "longer", ("{}",))

    def rate(self, items: Sequence[Appraisal]) -> list[Points]:
        raise NotImplementedError

    def describe(self, items: Sequence[Appraisal]) -> list[JudgeTexts]:
        raise NotImplementedError


def answers(round: int, *texts: str) -> list[MeasuredRow]:
    return [
        MeasuredRow(
            id=f"h{number}",
            messages=[Message(role="user", content=f"Question {number}?")],
            completion=text,
            completion_ids=[1],
            finish_reason="stop",
            chosen="Yes.",
            round=round,
            policy="sha256:x",
        )
        for number, text in enumerate(texts)
    ]


def test_win_rate_by_a_judge() -> None:
    """Two wins by length, a loss, the same text, an empty answer that loses unasked, one unreadable: 2.5 of 5.

    Which of the two comes first is drawn for each prompt, and the outcome does not hang on it.
    """
    ours = answers(2, "a longer one", "longer again", "short", "same", "", "nine")
    theirs = answers(1, "short", "brief", "a longer one", "same", "something", "other")
    figures, judge = Figures(), LongerWins()
    rows = add_judged(
        figures,
        ours,
        {key_of(row): row for row in theirs},
        names=["previous", "base"],
        judge=judge,
        progress=QuietProgress(),
    )
    for name in ("previous", "base"):
        assert figures.values[f"judge_win_rate/{name}"] == 0.5
        assert figures.values[f"judge_win_rate/{name}_ties"] == 0.2
        assert figures.values[f"judge_win_rate/{name}_unreadable"] == pytest.approx(1 / 6)
    assert len(judge.asked) == len(rows) == 4
    assert {row.first.endswith("/2") for row in rows} == {True, False}


def test_a_judge_that_cannot_be_read_gives_no_win_rate() -> None:
    figures, said = Figures(), Listening()
    rows = add_judged(
        figures,
        answers(2, "nine"),
        {key_of(row): row for row in answers(1, "eight")},
        names=["base"],
        judge=LongerWins(),
        progress=said,
    )
    assert figures.values == {}
    assert len(rows) == 1
    assert "none of the judge's 1 answers about base can be read, the first: no JSON" in said.lines[0]
