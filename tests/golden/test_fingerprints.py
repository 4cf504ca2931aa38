"""What every stage of the bundled recipes is fingerprinted by, compared with a golden file: a run directory from before
a change is reused after it only where no fingerprint moved.

Digests of artifacts are left out: `(digest)` stands in their place. Where the change is meant, and all runs are to be
made anew, write the file anew and look at its diff:

    REWRITE_GOLDEN=1 scripts/test tests/golden -n 0
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alignloop.artifacts import fingerprint
from alignloop.config import load_recipe
from alignloop.loop.check import Checked
from alignloop.loop.plan import planned_stages
from alignloop.run_dir.manifest import describe
from alignloop.run_dir.stage import Location, Stage, Standing
from alignloop.stages import runner
from alignloop.stages.facts import BaseFacts, Rows

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("fingerprints.json")
ROUNDS = 2
JUDGE = (
    "judge={model: served, endpoint: 'http://127.0.0.1:9/v1'}",
    "collect.annotator=judge",
    "collect.num_annotations=4",
)
PEOPLE = (
    "data.batches=files",
    "collect.annotator=human",
    "collect.num_annotations=4",
    "prune.decontaminate.enabled=false",
)
RECIPES: dict[str, tuple[Path, tuple[str, ...]]] = {
    **{path.stem: (path, ()) for path in sorted((ROOT / "recipes").glob("*.yaml"))},
    "kill_test": (ROOT / "scripts" / "faults" / "kill_test.yaml", ()),
    "quickstart with a bootstrap": (ROOT / "recipes" / "quickstart.yaml", ("bootstrap=always",)),
    "quickstart with a judge": (ROOT / "recipes" / "quickstart.yaml", (*JUDGE, "prune.quality.by=either")),
    "quickstart with people": (ROOT / "recipes" / "quickstart.yaml", PEOPLE),
    "quickstart from the base": (
        ROOT / "recipes" / "quickstart.yaml",
        ("reward.start_from=base", "sft.start_from=base", "chat_template=llama3", "seed=7"),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_stages_are_fingerprinted_by_what_the_golden_file_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    path, overrides = RECIPES[name]
    found = stages_of(path, overrides, folder=tmp_path, monkeypatch=monkeypatch)
    golden = _golden()
    if os.environ.get("REWRITE_GOLDEN"):
        golden["recipes"][name] = {stage: entry for stage, (entry, _) in found.items()}
        golden["configs"] |= {entry["config"]: config for entry, config in found.values()}
        GOLDEN.write_text(json.dumps(_used(golden), indent=1) + "\n", encoding="utf-8")
    assert {stage: entry for stage, (entry, _) in found.items()} == golden["recipes"].get(name)
    for entry, config in found.values():
        assert config == golden["configs"][entry["config"]]


def test_the_golden_file_holds_these_recipes_and_no_others() -> None:
    assert list(_golden()["recipes"]) == list(RECIPES)


def test_only_measure_hangs_on_a_truth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is right is known to no stage that picks, prunes or trains."""
    path = ROOT / "recipes" / "quickstart.yaml"
    without, with_it = (
        stages_of(path, (f"measure.truth={truth}",), folder=tmp_path, monkeypatch=monkeypatch)
        for truth in ("null", "checkers")
    )
    changed = {name for name, found in with_it.items() if found != without[name]}
    assert changed == {"round-00/04_measure", "round-01/14_measure", "round-02/14_measure"}
    asked = with_it["round-01/14_measure"][0]["inputs"]
    assert [asked[name] for name in ("scored", "preferences", "sft_rows", "pairs")] == ["(digest)"] * 4


def stages_of(
    path: Path, overrides: tuple[str, ...], *, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Stage -> its entry in the golden file, and its config; rounds 0 to 2, as a plan walks them."""
    (folder / "rows.jsonl").write_text('{"prompt": "Hi", "chosen": "A", "rejected": "B"}\n')
    data = [f"preferences={folder / 'rows.jsonl'}", f"rounds={ROUNDS}", "engine.name=vllm"]
    recipe = load_recipe(path, overrides=[*data, *overrides])
    if recipe.prompts:
        recipe = load_recipe(recipe, overrides=[f"prompts={folder / 'rows.jsonl'}"])
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

    def standing(
        stage: Stage[Any, Any, Any], config: Any, inputs: Any, *, location: Location
    ) -> Standing[Any, Any, Any]:
        described = _without_digests(describe(config, inputs, seed=location.seed(stage.name)))
        entry = {
            "fingerprint": fingerprint(described),
            "config": fingerprint(described["config"]),
            "inputs": described["inputs"],
            "seed": described["seed"],
        }
        found[f"round-{location.round:02d}/{location.dir.name}"] = entry, described["config"]
        return Standing(stage, config, inputs, location, described)

    monkeypatch.setattr(runner, "standing", standing)
    checked = Checked(Rows([], [], [], []), BaseFacts(had_template=True), None, 0, ())
    planned_stages(recipe, folder / "run", checked)
    return found


def _without_digests(value: Any) -> Any:
    if isinstance(value, dict):
        return (
            "(digest)" if value.keys() == {"digest"} else {key: _without_digests(each) for key, each in value.items()}
        )
    return [_without_digests(each) for each in value] if isinstance(value, list) else value


def _golden() -> dict[str, Any]:
    empty: dict[str, Any] = {"recipes": {}, "configs": {}}
    return json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else empty


def _used(golden: dict[str, Any]) -> dict[str, Any]:
    """Without recipes that are gone and unused configs, in a fixed order."""
    recipes = {name: golden["recipes"][name] for name in RECIPES if name in golden["recipes"]}
    used = sorted({entry["config"] for stages in recipes.values() for entry in stages.values()})
    return {"recipes": recipes, "configs": {name: golden["configs"][name] for name in used}}
