"""Recipes: every one in the tree loads, and as what. Errors, and the nearest right key: tests/golden."""

from __future__ import annotations

import os
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from alignloop.config import find_recipe, load_recipe
from alignloop.config.load import sound_part
from alignloop.errors import RecipeError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_opens_with_what_it_does(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.rounds >= 1
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 40


def test_the_recipes_are_there() -> None:
    assert {"quickstart", "small_gpu", "llama3_paper", "own_data"} <= {path.stem for path in RECIPES}


def test_bundled_recipe_is_found_by_name() -> None:
    assert find_recipe("small_gpu").name == "small_gpu.yaml"
    assert load_recipe("small_gpu").dpo.learning_rate == 5e-7


def test_paper_recipe_has_the_papers_numbers() -> None:
    paper = load_recipe("llama3_paper")
    assert (paper.rounds, paper.sample.num_candidates) == (6, 30)
    assert paper.reward.start_from == paper.sft.start_from == "base"
    assert paper.sft.learning_rate == paper.dpo.learning_rate == 1e-5
    assert (paper.dpo.beta, paper.dpo.nll_coefficient) == (0.1, 0.2)
    assert paper.pairs.sources == ("file", "annotated")


def test_sources_are_a_set() -> None:
    recipe = load_recipe({"preferences": "x", "pairs": {"sources": ["on_policy", "file", "file"]}})
    assert recipe.pairs.sources == ("file", "on_policy")
    assert recipe.prune.sources == ("file", "annotated", "on_policy")


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ({"max_gap_quantile": 0.5}, r"max_gap_quantile \(0.5\) is not above min_gap_quantile \(0.5\)"),
        ({"max_gap": 1.0, "min_gap": 2.0}, r"max_gap \(1.0\) is under min_gap \(2.0\): no pair would be left"),
        ({"on_policy_share": 0.5, "sources": ["on_policy"]}, r"on_policy_share is 0.5, but sources is \[on_policy\]"),
        ({"on_policy_share": 0.5, "sources": ["file"]}, r"on_policy_share is 0.5, but sources is \[file\]"),
    ],
)
def test_limits_of_pairs_that_leave_nothing_are_refused(pairs: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe({"preferences": "x", "pairs": pairs})


def test_rips_limits_go_together_with_narrow_gaps_kept() -> None:
    quantiles = {"max_gap_quantile": 0.5, "min_rejected_reward_quantile": 0.5, "min_rejected_length_quantile": 0.5}
    pairs = load_recipe({"preferences": "x", "pairs": {"min_gap_quantile": 0.0, **quantiles}}).pairs
    assert pairs.model_dump(include=quantiles.keys()) == quantiles


def test_a_policy_of_a_round_is_of_one_before_the_last() -> None:
    recipe = {"preferences": "x", "rounds": 3, "sample": {"policy": "round-2"}}
    assert load_recipe(recipe).sample.policy_round == 2
    assert load_recipe("quickstart").sample.policy_round is None
    with pytest.raises(
        RecipeError, match=r"sample\.policy: round-2 samples in the rounds after round 2, and the run has 2"
    ):
        load_recipe(recipe, overrides=["rounds=2"])
    for wrong in ("round-0", "round-03", "last"):
        with pytest.raises(RecipeError, match=r"sample\.policy: must be best, previous, base or a round as round-3"):
            load_recipe(recipe, overrides=[f"sample.policy={wrong}"])


def commands_of(document: Path) -> list[list[str]]:
    """The words of each `alignloop run` and `plan` in a document's shell blocks."""
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"alignloop (run|plan)\b", line)]
    return [found[2:] for found in words]


@pytest.mark.parametrize("name", ["README.md", "docs/data.md", "docs/evaluation.md"])
def test_the_overrides_in_documents_are_known_keys(name: str) -> None:
    commands = commands_of(ROOT / name)
    assert commands or name != "README.md"
    for words in commands:
        overrides = [after for before, after in pairwise(words) if before == "--set"]
        recipe = words[0] if words and (ROOT / words[0]).is_file() else "quickstart"
        assert load_recipe(recipe if recipe == "quickstart" else ROOT / recipe, overrides=overrides)


def test_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("preferences: p.jsonl\ndpo: {learning_rate: 5e-7}\nsft: {learning_rate: 1E-5}\n")
    recipe = load_recipe(path, overrides=["reward.learning_rate=3e-4"])
    assert recipe.dpo.learning_rate == 0.0000005
    assert recipe.sft.learning_rate == 0.00001
    assert recipe.reward.learning_rate == 0.0003


def test_one_file_or_a_list() -> None:
    assert load_recipe({"preferences": "a.jsonl"}).preferences == ("a.jsonl",)
    assert load_recipe({"preferences": ["a.jsonl", "b.json"]}).preferences == ("a.jsonl", "b.json")


@pytest.mark.parametrize("rounds", [-2, "six", 2.5, True, None, [3]])
def test_nothing_else_is_taken_for_a_number(rounds: object) -> None:
    with pytest.raises(RecipeError, match="rounds: must be"):
        load_recipe({"preferences": "quickstart", "rounds": rounds})


def test_sound_part_keeps_what_is_right() -> None:
    """Further errors in the files are found with the fields that are right, not with defaults."""
    values = {"preferences": "p.jsonl", "rounds": 0, "betta": 1, "engine": {"max_model_len": 384, "dtype": 3}}
    sound = sound_part(values, overrides=["sample.max_tokens=16", "dpo=3"])
    assert sound is not None
    assert (sound.preferences, sound.engine.max_model_len, sound.rounds) == (("p.jsonl",), 384, 6)
    assert sound_part({"rounds": 0}) is None


def test_a_pipe_is_no_recipe_and_said_to_be_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="is a pipe or a device, no file"):
        load_recipe(tmp_path / "pipe")
