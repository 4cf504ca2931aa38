"""A round's line from hand-made manifests, its tables cell by cell, and the final model with its card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from made_run import put

from alignloop.artifacts import Artifact, digest_of
from alignloop.chat.template_defaults import with_defaults
from alignloop.config import load_recipe
from alignloop.errors import RunDirError
from alignloop.evaluation.comparing import Difference, RoundDifferences
from alignloop.loop.final import publish_final
from alignloop.records import RoundRow
from alignloop.report.model_card import snippet
from alignloop.report.rounds import doubt_of, markdown_table, round_row, text_tables
from alignloop.run_dir.reader import read_rounds
from alignloop.terminal import WIDTH

CHECKPOINT = {
    "config.json": '{"model_type": "llama"}',
    "generation_config.json": '{"eos_token_id": [7]}',
    "tokenizer.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "model.safetensors": "weights",
}


def make_run(run_dir: Path) -> Path:
    data = {"preferences": [{"path": "/somewhere/private/pairs.jsonl", "digest": "sha256:aa"}], "prompts": []}
    put(run_dir, 0, "01_ingest", counts={"in": 4, "kept": 3, "dropped": 1}, inputs=data)
    put(run_dir, 0, "02_base", checkpoint=CHECKPOINT)
    put(run_dir, 0, "03_evaluate", metrics={"ifeval/mean": 0.2}, seconds={"evaluating": 2.0})
    put(run_dir, 1, "01_collect", counts={"preferences": 3, "annotated": 2})
    trained = {"eval_accuracy": 0.7, "eval_loss": 0.6, "train_accuracy": 0.9}
    put(run_dir, 1, "02_train_reward", metrics=trained, seconds={"training": 3.0, "other": 0.5})
    put(run_dir, 1, "03_average", checkpoint=CHECKPOINT, counts={"checkpoints": 1})
    put(run_dir, 1, "06_select", metrics={"mean_reward_random": -0.5, "mean_reward_best": 1.5})
    put(run_dir, 1, "07_prune", counts={"in": 5, "kept": 4, "dropped": 1, "dropped_by_clean": 1})
    put(run_dir, 1, "08_train_sft", seconds={"training": 4.0, "other": 0.25}, metrics={"train_loss": 1.0})
    put(run_dir, 1, "12_average", checkpoint=CHECKPOINT)
    put(run_dir, 1, "13_evaluate", metrics={"ifeval/mean": 0.6}, seconds={"evaluating": 2.0})
    return run_dir


def rows_of(run_dir: Path) -> list[RoundRow]:
    policies = ("round-00/02_base/checkpoint", "round-01/12_average/checkpoint")
    return [
        round_row(run_dir, number, policy=Artifact.of(run_dir / policy), stderr={"ifeval/mean": 0.01 * (number + 1)})
        for number, policy in enumerate(policies)
    ]


def test_a_round_s_line_gathers_its_stages_and_is_read_back(tmp_path: Path) -> None:
    rows = rows_of(make_run(tmp_path))
    assert rows[1].model_dump(exclude={"rows"}, exclude_defaults=True) == {
        "round": 1,
        "policy": "round-01/12_average/checkpoint",
        "metrics": {"ifeval/mean": 0.6},
        "stderr": {"ifeval/mean": 0.02},
        "reward_model": {
            "heldout_accuracy": 0.7, "heldout_loss": 0.6, "mean_reward_random": -0.5, "mean_reward_best": 1.5,
        },
        "seconds": {"training": 7.0, "other": 0.75, "evaluating": 2.0},
    }  # fmt: skip
    counted = {"prune_kept": 4, "prune_dropped_by_clean": 1, "collect_annotated": 2}
    assert counted.items() <= rows[1].rows.items()
    assert "average_checkpoints" not in rows[1].rows
    assert read_rounds(tmp_path) == []
    (tmp_path / "rounds.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    assert read_rounds(tmp_path) == rows
    for broken in (b'{"round": 1, "policy": "ro', b"\xff\xfe\x00"):
        (tmp_path / "rounds.jsonl").write_bytes(rows[0].model_dump_json().encode() + b"\n" + broken)
        with pytest.raises(RunDirError, match=r"rounds\.jsonl, line 2.*RoundRow lines.*; remove rounds\.jsonl"):
            read_rounds(tmp_path)


def test_final_is_a_whole_model_with_a_card(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    rows = rows_of(run_dir)
    before = digest_of(run_dir / "round-01/12_average/checkpoint")
    sets = {"preferences": "/somewhere/private/pairs.jsonl", "name": "mine", "base": "org/model"}
    recipe = load_recipe({**sets, "engine": {"name": "transformers"}})
    final = publish_final(run_dir, rows=rows, best=rows[1], recipe=recipe)
    assert {path.name for path in final.iterdir()} == {*CHECKPOINT, "README.md"}
    assert json.loads((final / "generation_config.json").read_text())["eos_token_id"] == [7]
    card = (final / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "org/model",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignloop", "dpo", "rejection-sampling", "sft"],
    }
    for part in (
        "# mine, round 1",
        "at temperature 1, sampled with transformers (plain `generate`)",
        "0.600 against 0.200 at the base",
        before,
        "sha256:aa",
        "pairs.jsonl",
        "torch 2.13.0",
        "from vllm import LLM",
        "from transformers import pipeline",
    ):
        assert part in text
    assert "/somewhere" not in card
    assert "simulated" not in text
    # The round's own checkpoint is untouched: its digest is what the next round's manifests name.
    assert digest_of(run_dir / "round-01/12_average/checkpoint") == before


def test_final_is_replaced_and_leaves_nothing_aside(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    rows = rows_of(run_dir)
    collect = {"annotator": "simulated", "num_annotations": 8}
    recipe = load_recipe({"preferences": "quickstart", "collect": collect, "name": "quickstart"})
    publish_final(run_dir, rows=rows, best=rows[0], recipe=recipe)
    final = publish_final(run_dir, rows=rows, best=rows[1], recipe=recipe)
    card = (final / "README.md").read_text()
    assert "# quickstart, round 1" in card
    assert "**The annotator is simulated.**" in card
    assert "base_model" not in card
    assert [path.name for path in run_dir.iterdir() if path.name.startswith("final")] == ["final"]


def ahead(number: int, against: int, by: float, *, reach: float = 0.05) -> RoundDifferences:
    found = Difference(
        key="ifeval/mean", before=0.5, after=0.5 + by, difference=by, low=by - reach, high=by + reach, num_pairs=9
    )
    return RoundDifferences(round=number, against=against, differences=[found])


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([ahead(2, 1, 0.1), ahead(4, 2, -0.1)], None),
        ([ahead(2, 1, 0.04), ahead(4, 2, -0.1)], "not clearly better than round 1: +4.0 (-1.0 to +9.0) points"),
        ([ahead(2, 1, 0.1), ahead(4, 2, -0.01)], "not clearly better than round 4: +1.0 (-4.0 to +6.0) points"),
        (
            [ahead(2, 1, 0.0), ahead(4, 2, 0.0)],
            "not clearly better than round 1: +0.0 (-5.0 to +5.0) points, nor than round 4: -0.0 (-5.0 to +5.0) points",
        ),
        ([ahead(2, 1, 0.1), ahead(3, 2, 0.0)], None),  # neither the round before it nor the last
        ([], None),
    ],
)
def test_a_best_round_that_may_be_no_better_is_said_to_be(
    differences: list[RoundDifferences], said: str | None
) -> None:
    rows = [BASE.model_copy(update={"round": number}) for number in range(5)]
    assert doubt_of(2, "ifeval/mean", rows, differences) == said
    held = [*rows[:4], rows[4].model_copy(update={"gated": "it fell"})]
    assert "round 4" not in (doubt_of(2, "ifeval/mean", held, differences) or "")


def test_the_card_says_whether_the_best_round_is_and_what_chose_nothing(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    rows = rows_of(run_dir)
    tasks = {"tasks": ["ifeval=dev.jsonl"], "test_tasks": ["ifeval_unseen=x.jsonl", "gsm8k"]}
    recipe = load_recipe({"preferences": "quickstart", "name": "mine", "evaluate": tasks})

    def card() -> str:
        return " ".join(
            (publish_final(run_dir, rows=rows, best=rows[1], recipe=recipe) / "README.md").read_text().split()
        )

    assert "0.600 against 0.200 at the base. ifeval_unseen, gsm8k chose nothing: those figures" in card()
    entry = ahead(1, 0, 0.01).model_dump(mode="json")
    (run_dir / "differences.json").write_text(json.dumps({"rounds": [entry]}))
    assert "at the base. It is not clearly better than the base: +1.0 (-4.0 to +6.0) points." in card()


def test_the_card_says_what_the_template_was_rendered_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def card(run_dir: Path) -> str:
        rows = rows_of(make_run(run_dir))
        recipe = load_recipe({"preferences": "p.jsonl", "name": "mine", "base": "org/model"})
        return (publish_final(run_dir, rows=rows, best=rows[1], recipe=recipe) / "README.md").read_text()

    assert "chat_template_kwargs" not in card(tmp_path / "plain")
    monkeypatch.setitem(CHECKPOINT, "chat_template.jinja", with_defaults("{{ messages }}", {"enable_thinking": True}))
    thinks = card(tmp_path / "thinks")
    assert "SamplingParams(max_tokens=256), chat_template_kwargs={'enable_thinking': True})" in thinks
    assert "# asks with enable_thinking=True, as training did" in thinks
    assert "trained and measured with the chat template's `{enable_thinking: true}`" in thinks
    compile(snippet("vllm", "model", template_kwargs={"enable_thinking": True}), "snippet", "exec")


BASE = RoundRow(
    round=0, policy="round-00/02_base/checkpoint", reward_model={}, rows={"ingest_kept": 40},
    metrics={
        "ifeval/prompt_level_strict_acc": 0.18, "ifeval/prompt_level_loose_acc": 0.2,
        "ifeval/inst_level_strict_acc": 0.25, "ifeval/inst_level_loose_acc": 0.27, "ifeval/mean": 0.225,
        "ifeval/type/startend:quotation": 0.1, "mmlu/acc": 0.4111, "mmlu_rivers/acc": 0.5,
    },
    stderr={"ifeval/mean": 0.0131}, seconds={"evaluating": 9.6, "other": 0.2},
)  # fmt: skip
FIRST = BASE.model_copy(
    update={
        "round": 1, "metrics": {**BASE.metrics, "ifeval/mean": 1.0},
        "reward_model": {"heldout_accuracy": 0.707, "mean_reward_random": -1.234, "mean_reward_best": 0.5},
        "rows": {
            "collect_preferences": 474, "collect_annotated": 26, "sample_candidates": 1920, "prune_kept": 618,
            "prune_dropped": 48, "build_pairs_kept": 487, "build_pairs_dropped": 179,
        },
        "seconds": {
            "sampling": 3.4, "training": 12.0, "scoring": 2.0, "evaluating": 5.0, "averaging": 1.0, "other": 0.6,
        },
    }
)  # fmt: skip
ROWS = [BASE, FIRST]
GROUPS = {"mmlu": ["mmlu_rivers"]}
METRICS = ("prompt_level_strict_acc", "mean")


def test_quality_cell_by_cell() -> None:
    lines = text_tables(ROWS, groups=GROUPS).split("\n\n")[0].splitlines()
    assert lines[-2].split() == ["0", "18.0", "20.0", "25.0", "27.0", "22.5", "1.3", "41.1", "-", "-", "-"]
    assert lines[-1].split()[5:] == ["100.0", "1.3", "41.1", "70.7", "-1.23", "0.50"]
    assert all(group in lines[0] for group in ("IFEval, %", "MMLU", "reward model"))


def test_work_cell_by_cell() -> None:
    last = text_tables(ROWS, groups=GROUPS).splitlines()[-1].split()
    # 474 + 26 preferences; other = averaging 1.0 + other 0.6 -> 2; all = 3.4 + 12 + 2 + 5 + 1 + 0.6 = 24.
    assert last == ["1", "500", "1920", "618", "48", "487", "179", "3", "12", "2", "5", "2", "24"]


def test_no_line_is_wider_than_a_terminal() -> None:
    rewards = {"heldout_accuracy": 1.0, "mean_reward_random": -12.34, "mean_reward_best": -11.5}
    counts, seconds = dict.fromkeys(FIRST.rows, 98765), dict.fromkeys(FIRST.seconds, 9876.5)
    large = FIRST.model_copy(update={"round": 12, "rows": counts, "seconds": seconds, "reward_model": rewards})
    assert max(map(len, text_tables([BASE, large], groups=GROUPS).splitlines())) <= WIDTH
    many = BASE.model_copy(update={"metrics": {f"benchmark_number_{n}/acc": 0.5 for n in range(9)}})
    assert max(map(len, text_tables([many], groups={}).splitlines())) <= WIDTH
    assert text_tables([many], groups={}).count("50.0") == 9


def test_of_many_rounds_those_that_were_asked_stand_for_all() -> None:
    """A hundred after the base, every fifth asked: the base, 19 of them and the last; of 500 asked, every 13th."""
    rows = [BASE.model_copy(update={"round": n, "metrics": BASE.metrics if n % 5 == 0 else {}}) for n in range(100)]
    text = text_tables([*rows, BASE.model_copy(update={"round": 100})], groups=GROUPS)
    shown = [line.split()[0] for line in text.split("\n\n")[0].splitlines()]
    assert shown[-21:] == ["0", *(str(n) for n in range(5, 105, 5))]
    assert text.endswith("80 rounds between these are left out")
    asked = [BASE.model_copy(update={"round": n}) for n in range(501)]
    numbers = [line.split("|")[1].strip() for line in markdown_table(asked, groups=GROUPS).splitlines()[2:]]
    assert numbers == [*(str(n) for n in range(0, 500, 13)), "500"]
    assert len(numbers) <= 40


def test_other_benchmarks_get_columns_of_their_main_metric() -> None:
    metrics = {"arc/acc": 0.3, "arc/acc_norm": 0.35, "gsm8k/exact_match,strict-match": 0.1, "gsm8k/stop_rate": 1.0}
    row = BASE.model_copy(update={"metrics": metrics})
    text = text_tables([row], groups={})
    assert "acc_norm exact_match,strict-match" in text
    assert "acc " not in text
    assert {"35.0", "10.0"} <= set(text.split())
    assert not {"IFEval,", "MMLU"} & set(text.split())


def test_halves_of_a_benchmark_stand_beside_each_other_and_may_lack_rounds() -> None:
    def of(task: str, strict: float) -> dict[str, float]:
        return {f"{task}/prompt_level_strict_acc": strict, f"{task}/mean": strict + 0.1, f"{task}/type/x": 0.5}

    dev, test, unseen = (of(task, 0.25) for task in ("ifeval_dev", "ifeval", "ifeval_unseen"))
    asked = BASE.model_copy(update={"metrics": {**dev, "mmlu/acc": 0.5, **test, **unseen}})
    other = FIRST.model_copy(update={"metrics": {**dev, "mmlu/acc": 0.5}})
    lines = text_tables([asked, other], groups={}).split("\n\n")[0].splitlines()
    assert all(f" {name} " in lines[0] for name in ("IFEval dev", "IFEval", "IFEval unseen", "reward model"))
    assert max(map(len, lines)) == WIDTH
    assert lines[-2].split() == ["0", "25.0", "35.0", "-", "25.0", "35.0", "1.3", "25.0", "35.0", "-", "50.0", *"---"]
    assert lines[-1].split()[:8] == ["1", "25.0", "35.0", "-", "-", "-", "1.3", "-"]


def test_a_long_name_widens_its_columns() -> None:
    metrics = {f"ifeval_{name}/{metric}": 0.5 for name in ("dev", "of_quite_a_long_name") for metric in METRICS}
    head, *lines = text_tables([BASE.model_copy(update={"metrics": metrics})], groups={}).split("\n\n")[0].splitlines()
    assert head.index("-- reward model") == lines[0].index("held-") - 1


def test_markdown_has_a_cell_a_column() -> None:
    lines = markdown_table(ROWS, groups=GROUPS).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {12}
    assert lines[0].startswith("| round | IFEval prompt strict | IFEval prompt loose |")
    assert "reward model held-out" in lines[0]
