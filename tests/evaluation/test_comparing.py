from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from alignloop.errors import RunDirError
from alignloop.evaluation.comparing import (
    Measured,
    ProtocolMismatch,
    compare,
    measured,
    of_rounds,
    protocol_changes,
    read_differences,
    write_differences,
)
from alignloop.evaluation.report import EvalReport, EvalSample, Protocol, TaskProtocol


def _task(name: str, **more: Any) -> TaskProtocol:
    values = {
        "task": name,
        "version": "1.0",
        "output_type": "multiple_choice",
        "num_fewshot": 5,
        "num_samples": 4,
        "num_available": 4,
        "chat_template_digest": "t",
        "data_digest": "d",
        "prompt_digest": "p",
    }
    return TaskProtocol.model_validate({**values, **more})


def _protocol(**more: Any) -> Protocol:
    values: dict[str, Any] = {
        "lm_eval_version": "0.4",
        "seed": 0,
        "max_model_len": 512,
        "tasks": {"quiz": _task("quiz")},
        "engine_dtype": "float32",
        "stop_token_ids": [4],
    }
    return Protocol.model_validate({**values, **more})


def _of_samples(
    verdicts: dict[str, list[dict[str, Any]]],
    metrics: dict[str, float],
    *,
    name: str = "a",
    protocol: Protocol | None = None,
    **more: Any,
) -> Measured:
    samples = [
        EvalSample(task=task, index=index, messages=[], prompt="?", verdicts=of, **more)
        for task, rows in verdicts.items()
        for index, of in enumerate(rows)
    ]
    protocol = protocol or _protocol(tasks={task: _task(task) for task in verdicts})
    return measured(EvalReport(metrics=metrics, stderr={}, counts={}, protocol=protocol), samples, name=name)


def _measured(right: list[float], *, name: str = "a", protocol: Protocol | None = None) -> Measured:
    metrics = {"quiz/acc": sum(right) / len(right)}
    return _of_samples({"quiz": [{"acc": value} for value in right]}, metrics, name=name, protocol=protocol)


def test_a_difference_by_hand() -> None:
    # 1 0 0 0 -> 1 1 1 0: +2/4. Changes 0 1 1 0, less their mean: -1/2 1/2 1/2 -1/2; sd^2 = 4 * 1/4 / 3 = 1/3,
    # standard error sqrt(1/3 / 4) = 0.288675; times 1.959964: 0.565793.
    (found,) = compare(_measured([1, 0, 0, 0]), _measured([1, 1, 1, 0]))
    assert (found.key, found.before, found.after, found.difference) == ("quiz/acc", 0.25, 0.75, 0.5)
    assert found.num_pairs == 4
    assert found.low == pytest.approx(0.5 - 0.565793, abs=1e-6)
    assert found.high == pytest.approx(0.5 + 0.565793, abs=1e-6)
    assert not found.is_clear


def test_pairing_is_surer_than_two_errors_added() -> None:
    # Of 100 questions 50 are right before; 10 more are right after, none is lost. Changes: 10 ones, 90 zeros:
    # sd^2 = (10 * 0.9^2 + 90 * 0.1^2) / 99 = 1/11, standard error sqrt(1/11 / 100) = 0.0301511.
    before, after = [1.0] * 50 + [0.0] * 50, [1.0] * 60 + [0.0] * 40
    (found,) = compare(_measured(before), _measured(after))
    assert found.low == pytest.approx(0.1 - 1.959964 * 0.0301511, abs=1e-6)
    assert found.is_clear
    # Unpaired: sqrt(0.25 / 99 + 0.24 / 99) = 0.0704, and the same gain would be within the noise.
    assert 0.1 - 1.96 * math.sqrt(0.25 / 99 + 0.24 / 99) < 0


def test_nothing_changed_is_no_progress_and_one_question_has_no_interval() -> None:
    for before, after, expected in (([1, 0, 1], [1, 0, 1], (0.0, 0.0, 0.0)), ([0], [1], (1.0, None, None))):
        (found,) = compare(_measured(before), _measured(after))  # type: ignore[arg-type]
        assert (found.difference, found.low, found.high) == expected
        assert not found.is_clear


def _group(values: dict[str, list[float]]) -> Measured:
    pooled = [value for right in values.values() for value in right]
    means = [sum(right) / len(right) for right in values.values()]
    protocol = _protocol(tasks={task: _task(task) for task in values}, groups={"exam": list(values)})
    metrics = {"exam/acc": sum(pooled) / len(pooled), "exam/acc_macro": sum(means) / len(means)}
    verdicts = {task: [{"acc": value} for value in right] for task, right in values.items()}
    return _of_samples(verdicts, metrics, protocol=protocol)


def test_macro_and_micro_of_a_group_by_hand() -> None:
    before = _group({"a": [0, 0], "b": [0, 0, 0, 0]})
    after = _group({"a": [1, 0], "b": [1, 1, 0, 0]})
    micro, macro = compare(before, after)
    assert micro.difference == pytest.approx(3 / 6)
    assert macro.difference == pytest.approx((1 / 2 + 2 / 4) / 2)
    # Of a: sd^2 = 1/2 over 2; of b: sd^2 = 1/3 over 4; the macro average has a quarter of their sum.
    error = math.sqrt((1 / 4 + 1 / 12) / 4)
    assert macro.high is not None
    assert macro.high - macro.difference == pytest.approx(1.959964 * error, abs=1e-6)
    assert (micro.num_pairs, macro.num_pairs) == (6, 6)


def _ifeval(lists: list[list[bool]]) -> Measured:
    verdicts = [
        {f"{level}_level_{mode}_acc": value for level, value in (("prompt", float(all(own))), ("inst", own))
         for mode in ("strict", "loose")}
        for own in lists
    ]  # fmt: skip
    metrics = {"ifeval/inst_level_strict_acc": sum(map(sum, lists)) / (2 * len(lists)), "ifeval/mean_tokens": 3.0}
    wrote = {"response": "x", "finish_reason": "stop", "num_tokens": 3, "instruction_ids": ["a", "b"]}
    return _of_samples({"ifeval": verdicts}, metrics, **wrote)


def test_instructions_of_one_prompt_change_together() -> None:
    # Of two prompts the first gains both instructions, the second none: +2/4. Changes of influence by prompt:
    # (2 - 1) / 4 and (0 - 1) / 4, so the error is sqrt(2 * 2/16) = 1/2, as of two trials, not four.
    inst, tokens = compare(_ifeval([[False, False]] * 2), _ifeval([[True, True], [False, False]]))
    assert inst.difference == 0.5
    assert inst.high == pytest.approx(0.5 + 1.959964 * 0.5, abs=1e-6)
    assert inst.num_pairs == 2
    assert (tokens.key, tokens.difference) == ("ifeval/mean_tokens", 0.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"max_model_len": 256}, "max_model_len: 512 -> 256"),
        ({"engine_dtype": "bfloat16"}, "engine_dtype: float32 -> bfloat16"),
        ({"quantization": "fp8"}, "quantization: (none) -> fp8"),
        ({"stop_token_ids": [4, 1]}, "stop_token_ids: [4] -> [4, 1]"),
        ({"tasks": {"quiz": _task("quiz", num_fewshot=0)}}, "tasks.quiz.num_fewshot: 5 -> 0"),
        ({"tasks": {"quiz": _task("quiz", version="2.0")}}, "tasks.quiz.version: 1.0 -> 2.0"),
        ({"tasks": {"quiz": _task("quiz", chat_template_digest="u")}}, "tasks.quiz.chat_template_digest: t -> u"),
        ({"tasks": {"quiz": _task("quiz", data_digest="e")}}, "tasks.quiz.data_digest: d -> e"),
        (
            {"tasks": {"quiz": _task("quiz", generation={"max_gen_toks": 9})}},
            "tasks.quiz.generation.max_gen_toks: (none) -> 9",
        ),
        ({"tasks": {}}, "tasks.quiz: only the first has it"),
    ],
)
def test_other_protocols_are_refused_and_named(change: dict[str, Any], named: str) -> None:
    before, after = _measured([1, 0]), _measured([1, 0], name="b", protocol=_protocol(**change))
    with pytest.raises(ProtocolMismatch, match="a and b were measured by different protocols") as caught:
        compare(before, after)
    assert f"  - {named}" in str(caught.value)


def test_what_an_older_report_did_not_record_is_not_held_against_it() -> None:
    older = _protocol(engine_dtype=None, stop_token_ids=None)
    assert protocol_changes(older, _protocol(quantization="fp8")) == []
    assert protocol_changes(older, _protocol(seed=2)) == ["seed: 0 -> 2"]


def test_other_questions_are_refused() -> None:
    with pytest.raises(ProtocolMismatch, match=r"samples\.jsonl"):
        compare(_measured([1, 0]), _measured([1, 0, 1]))


def test_each_round_stands_against_the_one_before_and_the_base() -> None:
    rounds = dict(enumerate([_measured([0, 0, 1]), _measured([1, 0, 1]), _measured([1, 1, 1])]))
    entries = of_rounds(rounds, tested={})
    assert [(entry.round, entry.against) for entry in entries] == [(1, 0), (2, 1), (2, 0)]
    assert [entry.differences[0].difference for entry in entries] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_rounds_that_were_asked_nothing_are_passed_over() -> None:
    rounds = {0: _measured([0, 0, 1]), 5: _measured([1, 0, 1]), 10: _measured([1, 1, 1])}
    assert [(entry.round, entry.against) for entry in of_rounds(rounds, tested={})] == [(5, 0), (10, 5), (10, 0)]
    assert of_rounds({0: rounds[0]}, tested={}) == []


def test_the_last_round_stands_against_the_best_too() -> None:
    rounds = dict(enumerate([_measured([0, 0, 1]), _measured([1, 1, 1]), _measured([1, 0, 1]), _measured([0, 0, 1])]))
    pairs = [(entry.round, entry.against) for entry in of_rounds(rounds, tested={}, best=1)]
    assert pairs == [(1, 0), (2, 1), (2, 0), (3, 2), (3, 0), (3, 1)]
    assert of_rounds(rounds, tested={}, best=1)[-1].differences[0].difference == pytest.approx(-2 / 3)
    for best in (0, 2, 3):  # these pairs are there, or none
        assert of_rounds(rounds, tested={}, best=best) == of_rounds(rounds, tested={})


def test_test_tasks_are_compared_where_both_rounds_have_them() -> None:
    rounds = dict(enumerate([_measured([0, 0, 1]), _measured([1, 0, 1]), _measured([1, 1, 1])]))
    tested = {
        number: _of_samples({"exam": [{"acc": value} for value in right]}, {"exam/acc": sum(right) / 4})
        for number, right in {0: [0, 0, 0, 1], 2: [1, 1, 0, 1]}.items()
    }
    found = {
        (e.round, e.against): {d.key: d.difference for d in e.differences} for e in of_rounds(rounds, tested=tested)
    }
    assert found[1, 0].keys() == found[2, 1].keys() == {"quiz/acc"}
    assert found[2, 0] == pytest.approx({"quiz/acc": 2 / 3, "exam/acc": 2 / 4})


def test_a_refused_pair_is_written_with_its_reason(tmp_path: Path) -> None:
    other = _measured([1, 0], name="round 1", protocol=_protocol(seed=1))
    write_differences(tmp_path, {0: _measured([0, 0], name="round 0"), 1: other}, tested={})
    (entry,) = read_differences(tmp_path)
    assert entry.differences == []
    assert entry.refused is not None
    assert "seed: 0 -> 1" in entry.refused


def test_what_a_longer_run_wrote_stands(tmp_path: Path) -> None:
    rounds = dict(enumerate([_measured([0, 0, 1]), _measured([1, 0, 1]), _measured([1, 1, 1])]))
    write_differences(tmp_path, rounds, tested={})
    long = (tmp_path / "differences.json").read_bytes()
    write_differences(tmp_path, {0: rounds[0], 1: rounds[1]}, tested={})
    assert (tmp_path / "differences.json").read_bytes() == long
    write_differences(tmp_path, {0: rounds[0], 1: rounds[2]}, tested={})
    assert len(read_differences(tmp_path)) == 1
    (tmp_path / "differences.json").write_text(json.dumps([1]))
    with pytest.raises(RunDirError, match=r"differences\.json: not a run's differences"):
        read_differences(tmp_path)
