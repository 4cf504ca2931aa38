"""Runs that share stages with a finished one, and its controls: small, and everything is the real thing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignloop import run
from alignloop.artifacts import digest_of
from alignloop.config import Recipe
from alignloop.config.training import DpoConfig
from alignloop.errors import RunDirError, UserError
from alignloop.loop.control import KINDS, control, control_recipe
from alignloop.progress import QuietProgress
from alignloop.records import RoundRow
from alignloop.report.paired import Spent
from alignloop.run_dir.layout import changed_fields, enter
from alignloop.run_dir.reader import published_stages, write_rounds
from alignloop.run_dir.verification import verify_run

SMALL = (
    "engine.name=transformers",
    "sample.num_prompts=12",
    "sample.num_candidates=3",
    "sample.max_tokens=24",
    "collect.num_annotations=8",
    "data.split_rounds=60",
    "data.heldout_fraction=0.01",
    "evaluate.limit=4",
    "evaluate.max_gen_tokens=24",
    "evaluate.test_tasks=[]",
    "measure.num_prompts=4",
    "measure.num_candidates=2",
    "reward.epochs=1",
    "sft.epochs=1",
)
HOTTER = (*SMALL, "dpo.learning_rate=1e-4")
BEFORE_DPO = (
    "01_collect 02_train_reward 03_average 04_sample 05_score 06_select 07_prune 08_train_sft 09_average".split()
)
BEFORE_DPO.append("10_build_pairs")


@dataclass
class Said(QuietProgress):
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of the quickstart."""
    return run("quickstart", rounds=2, run_dir=tmp_path_factory.mktemp("runs") / "mine", overrides=SMALL).run_dir


@pytest.fixture(scope="module")
def hotter(finished: Path) -> Path:
    """One round with another learning rate in DPO, which shares nothing."""
    return run("quickstart", rounds=1, run_dir=finished.with_name("hotter"), overrides=HOTTER).run_dir


def outcome(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "rounds.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def shared(run_dir: Path) -> dict[int, list[str]]:
    """Folders of the stages that were taken over, by round."""
    return {
        number: [stage.dir.name for stage in published_stages(run_dir, number) if "taken_from" in stage.manifest.facts]
        for number in range(3)
    }


def require_equal(run_dir: Path, other: Path) -> None:
    assert outcome(run_dir) == outcome(other)
    assert digest_of(run_dir / "final" / "model.safetensors") == digest_of(other / "final" / "model.safetensors")


def test_the_same_recipe_elsewhere_shares_everything(finished: Path, tmp_path: Path) -> None:
    said, run_dir = Said(), tmp_path / "again"
    result = run("quickstart", rounds=2, run_dir=run_dir, overrides=SMALL, share_with=[finished], progress=said)
    assert result.num_engine_starts == 0
    everything = {number: [stage.dir.name for stage in published_stages(finished, number)] for number in range(3)}
    assert shared(run_dir) == everything
    assert "  12_average          shared  from mine" in said.lines
    require_equal(run_dir, finished)
    num_artifacts, damaged = verify_run(run_dir, progress=QuietProgress())
    assert (num_artifacts > 50, damaged) == (True, [])
    shutil.rmtree(run_dir / "round-02")  # it needs nothing of the other run
    for manifest in run_dir.glob("round-*/*/manifest.json"):
        values = json.loads(manifest.read_text())
        assert values["facts"].pop("taken_from").startswith("../")
        assert str(finished.parent) not in json.dumps(values)


def test_what_changes_dpo_shares_all_before_it(finished: Path, hotter: Path, tmp_path: Path) -> None:
    """And comes to the same bytes as without sharing."""
    run_dir = tmp_path / "run"
    run("quickstart", rounds=1, run_dir=run_dir, overrides=HOTTER, share_with=[finished])
    assert shared(run_dir) == {0: ["01_ingest", "02_base", "03_evaluate", "04_measure"], 1: BEFORE_DPO, 2: []}
    require_equal(run_dir, hotter)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_equal(finished: Path, hotter: Path, tmp_path: Path) -> None:
    """Between two stages that are shared, and in the first that is not."""
    run_dir = tmp_path / "run"
    sets = [part for override in HOTTER for part in ("--set", override)]
    command = [sys.executable, "-m", "alignloop", "run", "quickstart", "--rounds", "1", "--run-dir", str(run_dir)]
    command += ["--share-with", str(finished), *sets]
    for place in ("round-01/04_sample", "round-01/11_train_dpo.partial"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        end = time.monotonic() + 240
        while not (run_dir / place).exists():
            assert process.poll() is None, f"the run ended before {place}"
            assert time.monotonic() < end, f"{place} did not appear"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run("quickstart", rounds=1, run_dir=run_dir, overrides=HOTTER, share_with=[finished])
    require_equal(run_dir, hotter)


def test_what_is_no_other_run_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no run lies here"):
        run("quickstart", run_dir=tmp_path / "run", share_with=[tmp_path])
    with pytest.raises(UserError, match="is the run itself"):
        run("quickstart", rounds=2, run_dir=finished, overrides=SMALL, share_with=[finished])
    assert not (tmp_path / "run").exists()


# ---- controls --------------------------------------------------------------------------------------------------------


def recipe_of(**sections: Any) -> Recipe:
    return Recipe.model_validate(
        {"preferences": ["rows.jsonl"], "name": "mine", "sample": {"max_tokens": 64}} | sections
    )


ANNOTATED = {"annotator": "simulated", "num_annotations": 8}
SPENT = Spent(sft_tokens=3000, dpo_tokens=1000, annotations=8, seconds=1.0)
"""Of two rounds."""


def changed_by(kind: str, recipe: Recipe, *, spent: Spent = SPENT) -> dict[str, Any]:
    """What a kind changes, but for name and rounds."""
    changes = changed_fields(
        recipe.model_dump(mode="json"), control_recipe(recipe, kind, spent=spent, rounds=2).model_dump(mode="json")
    )
    split = (change.partition(": ") for change in changes)
    return {key: values.partition(" -> ")[2] for key, _, values in split}


TOKENS = {"sft.train_tokens": "1500", "dpo.train_tokens": "500"}
FILES_AND_ANNOTATED = "['file', 'annotated']"
NOT_BY_REWARD = {"prune.quality.enabled": "False", "prune.quality.by": "judge", "prune.difficulty.enabled": "False"}


def test_sft_in_one_round_of_two_has_all_its_tokens_there() -> None:
    changes = changed_by("offline", recipe_of(collect=ANNOTATED, sft={"at": [1]}))
    assert (changes["sft.train_tokens"], changes["dpo.train_tokens"]) == ("3000", "500")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (
            "offline",
            {
                "sample.policy": "base",
                "collect.pairing": "random",
                "prune.sources": FILES_AND_ANNOTATED,
                "pairs.sources": FILES_AND_ANNOTATED,
                **NOT_BY_REWARD,
                **TOKENS,
            },
        ),
        (
            "random-pick",
            {
                "select.pick": "random",
                "collect.pairing": "random",
                "pairs.sources": FILES_AND_ANNOTATED,
                **NOT_BY_REWARD,
                **TOKENS,
            },
        ),
        ("sft-only", {"pairs.sources": "[]", "sft.train_tokens": "2000"}),
        ("dpo-only", {"prune.sources": "[]", "dpo.train_tokens": "2000"}),
        ("no-annotation", {"collect.annotator": "none", **TOKENS}),
        (
            "no-pruning",
            {f"prune.{step}.enabled": "False" for step in ("clean", "quality", "difficulty", "semantic_dedup")}
            | TOKENS,
        ),
    ],
)
def test_a_kind_changes_its_organ_and_the_tokens_of_a_round(kind: str, changes: dict[str, str]) -> None:
    assert changed_by(kind, recipe_of(collect=ANNOTATED)) == changes
    named = control_recipe(recipe_of(collect=ANNOTATED), kind, spent=SPENT, rounds=2)
    assert (named.name, named.rounds) == (f"mine-{kind}", 2)


def test_sources_that_the_run_goes_without_stay_out() -> None:
    recipe = recipe_of(collect=ANNOTATED, pairs={"sources": ["annotated", "on_policy"]})
    assert changed_by("offline", recipe)["pairs.sources"] == "['annotated']"


def test_what_a_judge_decides_in_pruning_stays() -> None:
    judge = {"judge": {"model": "j"}, "collect": ANNOTATED}
    either = changed_by("random-pick", recipe_of(prune={"quality": {"by": "either"}}, **judge))
    assert either["prune.quality.by"] == "judge"
    assert "prune.quality.enabled" not in either
    judged = recipe_of(prune={"quality": {"by": "judge"}, "difficulty": {"by": "judge"}}, **judge)
    assert [key for key in changed_by("random-pick", judged) if key.startswith("prune")] == []


def test_tokens_are_those_of_one_training_and_lift_a_limit_of_steps() -> None:
    variants = [{}, {"seed": 1}]
    recipe = recipe_of(collect=ANNOTATED, sft={"max_steps": 9, "variants": variants}, dpo={"max_steps": 9})
    changes = changed_by("no-annotation", recipe)
    assert (changes["sft.train_tokens"], changes["sft.max_steps"]) == ("750", "None")
    assert "sft.max_steps" in changed_by("sft-only", recipe)
    assert "dpo.max_steps" not in changed_by("sft-only", recipe)
    without_dpo = changed_by("no-annotation", recipe, spent=SPENT._replace(dpo_tokens=0))
    assert not any(key.startswith("dpo.") for key in without_dpo)


@pytest.mark.parametrize(
    ("kind", "sections", "error"),
    [
        ("ofline", {"collect": ANNOTATED}, "--kind ofline: no such control; did you mean offline"),
        ("everything", {"collect": ANNOTATED}, "known: offline, random-pick, sft-only"),
        ("no-annotation", {}, "goes without that already"),
        ("sft-only", {"pairs": {"sources": []}}, "goes without that already"),
        ("offline", {"collect": {"annotator": "human", "num_annotations": 4}}, "people would have to compare anew"),
        ("sft-only", {"collect": {"annotator": "human", "num_annotations": 4}}, "take --kind no-annotation"),
    ],
)
def test_controls_that_cannot_be_made(kind: str, sections: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        control_recipe(recipe_of(**sections), kind, spent=SPENT, rounds=2)


def test_people_are_not_asked_without_annotations() -> None:
    people = {"annotator": "human", "num_annotations": 4, "min_annotated": 2}
    assert changed_by("no-annotation", recipe_of(collect=people))["collect.annotator"] == "none"


def test_only_a_finished_run_of_the_recipe_has_a_control(tmp_path: Path) -> None:
    row = RoundRow(round=0, policy="p", metrics={}, stderr={}, reward_model={}, rows={}, seconds={})
    recipe = recipe_of(rounds=3, collect=ANNOTATED)
    (tmp_path / "mine").mkdir()
    enter(tmp_path / "mine", recipe, rebuild=False)
    write_rounds(tmp_path / "mine", [row.model_copy(update={"round": number}) for number in range(3)])

    def ask(recipe: Recipe = recipe, of: str = "mine", **how: Any) -> None:
        control(recipe, kind="offline", of=tmp_path / of, **how)

    with pytest.raises(RunDirError, match=r"no run lies here; .*alignloop run RECIPE|runs there: .*mine"):
        ask(of="other")
    with pytest.raises(UserError, match=r"(?s)another recipe.*dpo\.beta: 0\.1 -> 0\.2.*mine/recipe.yaml"):
        ask(recipe.model_copy(update={"dpo": DpoConfig(beta=0.2)}))
    with pytest.raises(UserError, match=r"2 of its 3 rounds are done.*finish it with `alignloop run RECIPE --run-dir"):
        ask()
    write_rounds(tmp_path / "mine", [row.model_copy(update={"round": number}) for number in range(4)])
    with pytest.raises(UserError, match=r"--rounds 4: .*mine has 3.*give it as many first"):
        ask(rounds=4)
    assert not (tmp_path / "mine-offline").exists()


MOST_OF_A_STEP = 16 * 640
"""Tokens: a training ends with the step that reaches what it is to have."""


def trained_on(run_dir: Path, stage: str) -> list[int]:
    """Tokens, round by round."""
    found = [each.manifest for number in (1, 2) for each in published_stages(run_dir, number) if each.name == stage]
    return [manifest.facts["trained_tokens"] for manifest in found]


def test_an_offline_control_of_a_real_run(finished: Path, alignloop: Callable[..., Any]) -> None:
    sets = [part for override in SMALL for part in ("--set", override)]
    command = ["control", "quickstart", "--kind", "offline", "--of", finished, *sets]
    done = alignloop(*command)
    assert done.code == 0, done.err
    run_dir = finished.with_name("mine-offline")
    taken = shared(run_dir)
    assert taken[0] == ["01_ingest", "02_base", "03_evaluate", "04_measure"]
    # Nobody annotates in round 1: it collects the same, by other settings.
    assert taken[1] == ["02_train_reward", "03_average", "04_sample", "05_score", "06_select"]
    stages = {stage.name: stage.manifest for stage in published_stages(run_dir, 2)}
    assert stages["sample"].inputs["policy"]["path"] == "round-00/02_base/checkpoint"
    origins = {
        json.loads(line)["origin"] for line in (run_dir / "round-02/07_prune/rows.jsonl").read_text().splitlines()
    }
    assert "on_policy" not in origins
    for stage in ("train_sft", "train_dpo"):
        wanted, had = sum(trained_on(finished, stage)) / 2, trained_on(run_dir, stage)
        assert all(wanted <= each + 1 < wanted + MOST_OF_A_STEP for each in had)  # it is rounded
    lines = done.out.splitlines()
    assert lines[0].startswith("control  offline of ")
    said = "\n".join(lines)
    assert "mine minus mine-offline: points, with 95 % intervals paired by question" in said
    assert "all rounds, as a page: alignloop report" in said
    again = alignloop(*command)
    assert again.code == 0
    assert "04_sample           cached" in again.out


def test_without_dpo_the_policy_is_sfts(finished: Path) -> None:
    made = control("quickstart", kind="sft-only", of=finished, rounds=1, overrides=SMALL)
    run_dir = made.run.run_dir
    assert run_dir == finished.with_name("mine-sft-only")
    assert shared(run_dir)[1] == BEFORE_DPO[:7]
    assert digest_of(run_dir / "round-01/12_average/checkpoint") == digest_of(
        run_dir / "round-01/09_average/checkpoint"
    )
    assert trained_on(run_dir, "train_dpo") == [0]
    both = trained_on(finished, "train_sft")[0] + trained_on(finished, "train_dpo")[0]
    assert both <= trained_on(run_dir, "train_sft")[0] < both + MOST_OF_A_STEP
    assert list(made.compared.runs) == ["mine", "mine-sft-only"]


def test_the_command_says_all_kinds(alignloop: Callable[..., Any]) -> None:
    text = alignloop("control", "--help").out
    assert [kind for kind in KINDS if f"\n  {kind:<13}" not in text] == []
