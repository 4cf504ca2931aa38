"""The tables: hand-made rounds, cell by cell, and never wider than a terminal."""

from __future__ import annotations

from alignloop.records import RoundRow
from alignloop.report.table import WIDTH, markdown_table, other_columns, quality_columns, render, text_tables

BASE = RoundRow(
    round=0,
    policy="round-00/02_base/checkpoint",
    metrics={
        "ifeval/prompt_level_strict_acc": 0.18,
        "ifeval/prompt_level_loose_acc": 0.2,
        "ifeval/inst_level_strict_acc": 0.25,
        "ifeval/inst_level_loose_acc": 0.27,
        "ifeval/mean": 0.225,
        "ifeval/type/startend:quotation": 0.1,
        "mmlu/acc": 0.4111,
        "mmlu_rivers/acc": 0.5,
    },
    stderr={"ifeval/mean": 0.0131},
    reward_model={},
    rows={"ingest_kept": 40},
    seconds={"evaluating": 9.6, "other": 0.2},
)
FIRST = BASE.model_copy(
    update={
        "round": 1,
        "metrics": {**BASE.metrics, "ifeval/mean": 1.0},
        "reward_model": {"heldout_accuracy": 0.707, "mean_reward_random": -1.234, "mean_reward_best": 0.5},
        "rows": {
            "collect_preferences": 474,
            "collect_annotated": 26,
            "sample_candidates": 1920,
            "prune_kept": 618,
            "prune_dropped": 48,
            "build_pairs_kept": 487,
            "build_pairs_dropped": 179,
        },
        "seconds": {
            "sampling": 3.4,
            "training": 12.0,
            "scoring": 2.0,
            "evaluating": 5.0,
            "averaging": 1.0,
            "other": 0.6,
        },
    }
)
ROWS = [BASE, FIRST]


def test_quality_cell_by_cell() -> None:
    lines = render(quality_columns(ROWS), ROWS).splitlines()
    assert lines[-2].split() == ["0", "18.0", "20.0", "25.0", "27.0", "22.5", "1.3", "41.1", "-", "-", "-"]
    assert lines[-1].split()[5:] == ["100.0", "1.3", "41.1", "70.7", "-1.23", "0.50"]
    assert "IFEval, %" in lines[0]
    assert "MMLU" in lines[0]
    assert "reward model" in lines[0]


def test_work_cell_by_cell() -> None:
    last = text_tables(ROWS).splitlines()[-1].split()
    # 474 + 26 preferences; other = averaging 1.0 + other 0.6 -> 2; all = 3.4 + 12 + 2 + 5 + 1 + 0.6 = 24.
    assert last == ["1", "500", "1920", "618", "48", "487", "179", "3", "12", "2", "5", "2", "24"]


def test_no_line_is_wider_than_a_terminal() -> None:
    large = FIRST.model_copy(
        update={
            "round": 12,
            "rows": dict.fromkeys(FIRST.rows, 98765),
            "seconds": dict.fromkeys(FIRST.seconds, 9876.5),
            "reward_model": {"heldout_accuracy": 1.0, "mean_reward_random": -12.34, "mean_reward_best": -11.5},
        }
    )
    assert max(map(len, text_tables([BASE, large]).splitlines())) <= WIDTH


def test_other_benchmarks_get_columns_of_their_main_metric() -> None:
    metrics = {"arc/acc": 0.3, "arc/acc_norm": 0.35, "gsm8k/exact_match,strict-match": 0.1, "gsm8k/stop_rate": 1.0}
    row = BASE.model_copy(update={"metrics": metrics})
    assert [column.heading[1] for column in other_columns([row])] == ["acc_norm", "exact_match,strict-match"]
    text = text_tables([row])
    assert "35.0" in text
    assert "10.0" in text
    assert "IFEval" not in text
    assert "MMLU" not in text


def test_many_benchmarks_are_split_over_tables() -> None:
    row = BASE.model_copy(update={"metrics": {f"benchmark_number_{n}/acc": 0.5 for n in range(9)}})
    assert max(map(len, text_tables([row]).splitlines())) <= WIDTH
    assert text_tables([row]).count("50.0") == 9


def test_markdown_has_a_cell_a_column() -> None:
    lines = markdown_table(ROWS).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {12}
    assert lines[0].startswith("| round | IFEval prompt strict | IFEval prompt loose |")
    assert "reward model held-out" in lines[0]
