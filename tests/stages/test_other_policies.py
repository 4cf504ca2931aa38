"""Several models in annotation: which they are, what they sample, and that the two answers of a pair are of two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stage_case import Listening, ScriptedEngine, at_door, candidate, context, written

from alignloop.artifacts import Artifact
from alignloop.chat.alike import difference
from alignloop.chat.load import load_format
from alignloop.config import load_recipe
from alignloop.config.bundled import resolve_base
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import EngineError, ModelError, UserError
from alignloop.records import CandidateRow, Message, PreferenceRow, PromptRow, Source
from alignloop.run_dir.manifest import describe
from alignloop.stages import collect, sample
from alignloop.stages.collect import pairs_to_annotate
from alignloop.stages.other_policies import last_policies, most_policies

PROMPTS = [
    PromptRow(id=f"p{n}", messages=[Message(role="user", content=f"Name river {n}.")], source=Source(file="f", line=n))
    for n in range(1, 6)
]


class Swapped(ScriptedEngine):
    """Notes the weights that each call of `generate` finds."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.served = ""
        self.loaded: list[str] = []

    def load_weights(self, checkpoint: Path) -> None:
        if checkpoint.name != self.served:
            self.loaded.append(checkpoint.name)
        self.served = checkpoint.name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """Three checkpoints of one tokenizer and template: `policy`, `one` and `two`."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("policy", "one", "two"):
        shutil.copytree(resolve_base("quickstart"), folder / name)
        (folder / name / "which.txt").write_text(name)
    return [Artifact.of(folder / name) for name in ("policy", "one", "two")]


def config(**values: Any) -> sample.Settings:
    default = {"num_candidates": 5, "max_tokens": 6, "shard_prompts": 2, "max_model_len": 128, "num_of_each_other": 1}
    return sample.Settings(**{**default, "engine": "vllm", "engine_dtype": "float32", "quantization": None, **values})


def ran(models: list[Artifact], folder: Path, engine: ScriptedEngine, **values: Any) -> sample.Outputs:
    policy, *others = models
    prompts = written(folder.with_suffix(".jsonl"), PROMPTS)
    ctx = context(folder, number=3, seed=11, engine=engine)
    return sample.run(config(**values), sample.Inputs(policy, prompts, tuple(others)), ctx)


def rows_of(file: Artifact) -> list[CandidateRow]:
    return list(load_jsonl(file.path, CandidateRow))


def test_k_candidates_are_spread_over_the_models(models: list[Artifact], tmp_path: Path) -> None:
    engine = Swapped()
    outputs = ran(models, tmp_path / "room", engine)
    assert outputs.counts == {"in": 5, "kept": 5, "dropped": 0, "candidates": 15, "other_candidates": 10}
    # K is 5: the policy has three of them, each other model one; each is loaded once, and asked three shards.
    assert engine.loaded == ["policy", "one", "two"]
    assert [[request.num_candidates for request in call] for call in engine.requests] == [
        *([3, 3], [3, 3], [3]),
        *([1, 1], [1, 1], [1]),
        *([1, 1], [1, 1], [1]),
    ]
    files = [outputs.candidates, *outputs.other_candidates]
    assert [file.path.name for file in files] == ["candidates.jsonl", "candidates-2.jsonl", "candidates-3.jsonl"]
    assert [row.id for row in rows_of(outputs.candidates)] == [f"p{n}/3/{k}" for n in range(1, 6) for k in range(3)]
    assert [[row.id for row in rows_of(file)] for file in outputs.other_candidates] == [
        [f"p{n}/3/{k}" for n in range(1, 6)] for k in (3, 4)
    ]
    assert [{row.policy for row in rows_of(file)} for file in files] == [{model.digest} for model in models]
    seeds = [request.seed for call in engine.requests for request in call]
    assert len(set(seeds)) == 15  # no two models draw alike
    assert {path.name for path in (tmp_path / "room").iterdir()} == {"dropped.jsonl", *(f.path.name for f in files)}


def test_the_policys_candidates_are_those_it_has_without_the_others(models: list[Artifact], tmp_path: Path) -> None:
    beside = ran(models, tmp_path / "beside", Swapped())
    alone = ran(models[:1], tmp_path / "alone", Swapped(), num_candidates=3)
    assert alone.candidates.path.read_bytes() == beside.candidates.path.read_bytes()
    assert alone.metrics == beside.metrics
    assert alone.other_candidates == ()


@pytest.mark.parametrize("dies_at", [1, 4, 8])
def test_a_crash_costs_one_shard_of_one_model(models: list[Artifact], tmp_path: Path, dies_at: int) -> None:
    unbroken = ran(models, tmp_path / "unbroken", Swapped())
    with pytest.raises(EngineError):
        ran(models, tmp_path / "room", Swapped(dies_at=dies_at))
    again = Swapped()
    outputs = ran(models, tmp_path / "room", again)
    assert len(again.requests) == 9 - dies_at
    assert [file.digest for file in (outputs.candidates, *outputs.other_candidates)] == [
        file.digest for file in (unbroken.candidates, *unbroken.other_candidates)
    ]
    assert not list((tmp_path / "room").glob("*shard*"))


def test_what_cannot_be_sampled_is_named_before_the_engine_is_asked(models: list[Artifact], tmp_path: Path) -> None:
    engine = Swapped(dies_at=0)
    with pytest.raises(UserError, match=r"sample\.num_candidates \(2\): 2 other models .* leave the policy none"):
        ran(models, tmp_path / "few", engine, num_candidates=2)
    with pytest.raises(UserError, match=r"other_policies: how many candidates each of them writes is not said"):
        ran(models, tmp_path / "none", engine, num_of_each_other=0)
    other = tmp_path / "other"
    shutil.copytree(models[0].path, other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end_header_id|>", "<|end_header_id|> "))
    with pytest.raises(ModelError, match=r"other: its chat template is another: it asks with .* of the same base"):
        ran([models[0], Artifact.of(other)], tmp_path / "template", engine)
    assert engine.loaded == []


def test_formats_are_compared_by_what_they_ask_with(models: list[Artifact], tmp_path: Path) -> None:
    chat = load_format(models[0].path)
    assert difference(chat, load_format(models[1].path)) == ""
    same, more = tmp_path / "same", tmp_path / "more"
    for folder in (same, more):
        shutil.copytree(models[0].path, folder)
    template = same / "chat_template.jinja"
    template.write_text("{# a remark #}" + template.read_text())
    assert difference(chat, load_format(same)) == ""
    tokens = json.loads((more / "tokenizer.json").read_text())
    tokens["added_tokens"].append(tokens["added_tokens"][0] | {"id": 9000, "content": "<|beyond|>"})
    (more / "tokenizer.json").write_text(json.dumps(tokens))
    found = difference(chat, load_format(more))
    assert found.startswith("its tokenizer is another: 1 of ")
    assert "'<|beyond|>'" in found


def test_without_other_models_nothing_is_fingerprinted_by_them(models: list[Artifact]) -> None:
    recipe = Recipe(preferences=("quickstart",))
    described = describe(sample.settings(recipe), sample.Inputs(models[0], models[1]), seed=0)
    assert set(described["inputs"]) == {"policy", "prompts"}
    assert "num_of_each_other" not in described["config"]
    described = describe(collect.settings(recipe), collect.Inputs(models[0], None), seed=0)
    assert not {"other_candidates"} & set(described["inputs"])
    assert not {"policies", "edits", "edits_source"} & set(described["config"])


def of(model: str, prompt: str, k: int, text: str, reward: float | None = None, **values: Any) -> CandidateRow:
    return candidate(prompt, k, text, reward, policy=model, **values)


def test_the_best_of_the_policy_is_set_against_an_answer_of_another_model() -> None:
    rows = [of("new", "p", 0, "red", 1.0), of("new", "p", 1, "blue", 3.0), of("new", "p", 2, "green", 2.0)]
    rows += [of("new", "q", 0, "one", 1.0), of("new", "q", 1, "two", 2.0)]
    others = [
        *(of("old", "p", 3, "grey"), of("old", "q", 2, "two ")),  # the best's own text: nothing to compare
        of("older", "q", 3, "three", finish_reason="length"),  # cut off
    ]
    ((prompt, first, second),) = pairs_to_annotate(rows, others, seed=1)
    assert prompt.id == "p"
    assert {(row.policy, row.completion) for row in (first, second)} == {("new", "blue"), ("old", "grey")}


def test_random_pairs_are_of_two_models_each_as_likely() -> None:
    rows = [of("a", f"p{n}", k, f"a{k}") for n in range(90) for k in range(6)]
    others = [of(model, f"p{n}", k, model) for n in range(90) for k, model in ((6, "b"), (7, "c"))]
    pairs = pairs_to_annotate(rows, others, seed=1, pairing="random")
    assert len(pairs) == 90
    sides = [frozenset((first.policy, second.policy)) for _, first, second in pairs]
    # Of three models a third of the pairs each, 30 of 90 (standard deviation 4.5); by candidates {b, c} had 1 of 28.
    assert all(17 <= sides.count(frozenset(two)) <= 43 for two in ("ab", "ac", "bc"))
    assert sum(first.policy == "a" for _, first, _ in pairs) < 45 + 20  # the policy is not always shown first


def test_further_pairs_go_on_with_other_answers_of_other_models() -> None:
    rows = [of("new", "p", k, f"new {k}", float(k)) for k in range(4)]
    others = [of("old", "p", 4 + k, f"old {k}") for k in range(2)]
    pairs = pairs_to_annotate(rows, others, seed=1, pairs_per_prompt=3)
    assert [{first.policy, second.policy} for _, first, second in pairs] == [{"new", "old"}] * 2  # no third is left
    assert len({row.id for _, *two in pairs for row in two}) == 4
    assert "new 3" in {row.completion for row in pairs[0][1:]}


def test_a_policy_without_a_finished_answer_leaves_the_others_to_be_compared() -> None:
    rows = [of("new", "p", 0, "cut", 9.0, finish_reason="length")]
    others = [of("old", "p", 1, "red"), of("older", "p", 2, "blue")]
    ((_, first, second),) = pairs_to_annotate(rows, others, seed=1)
    assert {first.policy, second.policy} == {"old", "older"}


def made(name: str, digest: str | None = None) -> Artifact:
    return Artifact(Path("/run") / name, f"sha256:{digest or name}")


def test_variants_come_first_then_the_last_rounds_and_no_model_twice() -> None:
    policy, variants = made("r4"), (made("v1"), made("v2", "r4"))  # what trained nothing is the policy again
    passed = [made("r4"), made("r3"), made("r2", "r3"), made("r1")]
    assert [a.path.name for a in last_policies(9, policy, variants=variants, passed=passed)] == ["v1", "r3", "r1"]
    assert [a.path.name for a in last_policies(2, policy, variants=variants, passed=passed)] == ["v1", "r3"]
    assert last_policies(0, policy, variants=variants, passed=passed) == ()
    planned = [Artifact(Path("/run") / name, "not made yet") for name in ("r3", "r2", "r1")]
    assert last_policies(2, planned[0], variants=(), passed=planned) == tuple(planned[1:])


def recipe(*overrides: str) -> Recipe:
    more = ("preferences=quickstart", "collect.annotator=simulated", "collect.num_annotations=4")
    return load_recipe({}, overrides=[*more, *overrides])


def test_so_many_models_a_run_can_have() -> None:
    # Answers of the last round are compared in none; round 2 is the first that samples from a round's policy.
    counts = [most_policies(recipe(f"rounds={rounds}")) for rounds in (1, 2, 3, 4, 6)]
    assert counts == [1, 1, 1, 2, 4]
    variants = "dpo.variants=[{seed: 1}, {seed: 2}]"
    assert [most_policies(recipe(f"rounds={rounds}", variants)) for rounds in (2, 3, 4)] == [1, 3, 4]


def test_a_round_with_fewer_models_uses_what_there_is_and_says_so(models: list[Artifact], tmp_path: Path) -> None:
    settings = collect.settings(recipe("collect.policies=3", "collect.annotator=alignloop.rewards:exact_match"))
    heard = Listening()
    rows = [of("new", "p", k, text, 1.0, meta={"answer": "4"}) for k, text in enumerate(("4", "5"))]
    others = [of("old", "p", 2, "6", meta={"answer": "4"})]
    preferences = written(tmp_path / "given.jsonl", [PreferenceRow(**GIVEN)])
    files = [written(tmp_path / f"{name}.jsonl", each) for name, each in (("scored", rows), ("others", others))]
    for name, more in (("one", ()), ("two", (files[1],))):
        inputs = collect.Inputs(preferences, files[0], other_candidates=more)
        outputs = at_door(collect.STAGE, settings, inputs, tmp_path / name, number=2, progress=heard)
        (row,) = list(load_jsonl(outputs.preferences.path, PreferenceRow))[1:]
        assert (row.chosen, row.rejected) == ("4", "5" if name == "one" else "6")
    assert heard.lines == [
        "  collect.policies asks for 3 models, and the last round had 1: its own answers are compared",
        "  collect.policies asks for 3 models, and the last round had 2: pairs are of 2 models",
    ]


GIVEN: dict[str, Any] = {
    "id": "h",
    "messages": [Message(role="user", content="Hi")],
    "chosen": "Hello",
    "rejected": "No",
    "source": Source(file="f"),
}
