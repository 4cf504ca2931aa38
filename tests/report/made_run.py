"""A run directory with all that a report is made from, in plain files; no model is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from alignloop.artifacts import digest_of
from alignloop.config import load_recipe
from alignloop.evaluation.comparing import Difference, RoundDifferences
from alignloop.evaluation.report import EvalReport, EvalSample, Protocol, TaskProtocol
from alignloop.records import Message, RoundRow
from alignloop.run_dir.manifest import PARTIAL, ArtifactRecord, Manifest, publish

EVIL = '<script>alert("1")</script> "q" \'a\' &amp; \x1b[31m \u202eabc\u2066 \x00 </pre><img src=http://example.com/x>'
"""Markup, quotes, control characters, letters that turn the reading order."""
TYPES = ("change_case:english_capital", "keywords:existence")
NUMBERS = ("zero", "one", "two")
OUTPUTS = {"train_log.jsonl": "logs"}
"""Names of outputs that are not their files'."""
IFEVAL = ("prompt_level_strict_acc", "prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc")


def put(
    run_dir: Path,
    number: int,
    name: str,
    *,
    files: dict[str, str] | None = None,
    checkpoint: dict[str, str] | None = None,
    **fields: Any,
) -> Path:
    """Publish a stage's folder: files of outputs that the stage has, those of its checkpoint and a manifest."""
    partial = run_dir / f"round-{number:02d}" / (name + PARTIAL)
    partial.mkdir(parents=True)
    for file, text in (files or {}).items():
        (partial / file).write_text(text, encoding="utf-8", errors="surrogatepass")
    outputs: dict[str, Any] = {
        OUTPUTS.get(file, Path(file).stem): [ArtifactRecord(path=file, digest="sha256:0")] for file in files or {}
    }
    published = import_module(f"alignloop.stages.{name.partition('_')[2]}").Outputs
    assert outputs.keys() <= {field.name for field in dataclasses.fields(published)}, name
    if checkpoint is not None:
        (partial / "checkpoint").mkdir()
        for file, text in checkpoint.items():
            (partial / "checkpoint" / file).write_text(text)
        outputs["checkpoint"] = ArtifactRecord(path="checkpoint", digest=digest_of(partial / "checkpoint"))
    empty: dict[str, Any] = {"config": {}, "counts": {}, "metrics": {}, "seconds": {}, "inputs": {}}
    manifest = Manifest(
        stage=name.partition("_")[2], round=number, fingerprint="f", outputs=outputs,
        seed=0, versions={"torch": "2.13.0"}, started="", ended="", **{**empty, **fields},
    )  # fmt: skip
    return publish(partial, manifest)


def lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def protocol(*, num_samples: int = 3, seed: int = 0) -> Protocol:
    def task(name: str, kind: str) -> TaskProtocol:
        return TaskProtocol(
            task=name, version="4", output_type=kind, num_fewshot=0, num_samples=num_samples, num_available=3,
            chat_template_digest="c" * 64, data_digest="d" * 64, prompt_digest="e" * 64,
        )  # fmt: skip

    tasks = {"ifeval": task("ifeval", "generate_until"), "mmlu_law": task("mmlu_law", "multiple_choice")}
    groups = {"mmlu": ["mmlu_law"]}
    return Protocol(lm_eval_version="0.4.13", seed=seed, max_model_len=384, tasks=tasks, groups=groups)


def metrics_of(number: int) -> dict[str, float]:
    """A climb by hand: IFEval 0.2 and 0.1 more a round, MMLU 0.5 and 0.01 more."""
    values = {f"ifeval/{name}": 0.2 + 0.1 * number + 0.01 * i for i, name in enumerate(IFEVAL)}
    values |= {
        "ifeval/mean": 0.215 + 0.1 * number,
        "mmlu/acc": 0.5 + 0.01 * number,
        "mmlu_law/acc": 0.5 + 0.01 * number,
    }
    values |= {f"ifeval/type/{name}": 0.125 * number for name in TYPES}
    return values | {"ifeval/stop_rate": 1.0, "ifeval/mean_tokens": 20.0 + number}


def measures_of(number: int) -> dict[str, float]:
    found = {"stop_rate": 1.0, "truncation_rate": 0.0, "mean_tokens": 24.0 + number, "mean_tokens_stderr": 0.5}
    if number:
        found |= {"heldout/accuracy": 0.7 + 0.02 * number, "heldout/accuracy_stderr": 0.03}
        found |= {"heldout/calibration_error": 0.08, "win_rate/base": 0.6, "win_rate/base_stderr": 0.05}
        found |= {"reward/best_of_k": 2.5, "reward/random": 1.0, "reward/policy_heldout": 1.25 + number}
        found |= {"truth/random": 0.25, "truth/pick": 0.25 + 0.125 * number, "truth/pick_stderr": 0.0625}
        found |= {"truth/chosen_annotated": 0.75} if number > 1 else {}
        found |= {"kl_to_base": 0.05 * number, "kl_to_base_stderr": 0.01, "own/measure": float(number)}
        for low, right in ((0.5, 0.55), (0.75, 0.8)):
            name = f"heldout/reliability/{low:.2f}-{low + 0.05:.2f}"
            found |= {f"{name}/confidence": low + 0.02, f"{name}/accuracy": right, f"{name}/count": 8.0}
    return found


def samples_of(number: int, *, num: int = 3, response: str = EVIL) -> str:
    rows = [
        EvalSample(
            task="ifeval",
            index=index,
            messages=[Message(role="user", content=f"Question {NUMBERS[index % 3]} {EVIL}")],
            prompt=f"Question {NUMBERS[index % 3]} {EVIL}",
            response=f"round {number} says {response}",
            finish_reason="stop",
            num_tokens=7,
            instruction_ids=[TYPES[0]],
            verdicts={"prompt_level_strict_acc": float(number > index), "inst_level_strict_acc": [number > index]},
        )
        for index in range(num)
    ]
    law = EvalSample(task="mmlu_law", index=0, messages=[], prompt="Which?", options=["a", "b"], verdicts={"acc": 1.0})
    return "".join(row.model_dump_json() + "\n" for row in [*rows, law])


def difference(number: int, against: int) -> RoundDifferences:
    before, after = metrics_of(against)["ifeval/mean"], metrics_of(number)["ifeval/mean"]
    gain = after - before
    found = Difference(
        key="ifeval/mean", before=before, after=after, difference=gain, low=gain - 0.05, high=gain + 0.05, num_pairs=3
    )
    return RoundDifferences(round=number, against=against, differences=[found])


def evaluate(run_dir: Path, number: int, name: str, *, num_samples: int = 3, samples: str | None = None) -> None:
    values = metrics_of(number)
    counts = dict.fromkeys(values, 3)
    errors = {"ifeval/mean": 0.03, "mmlu/acc": 0.02}
    report = EvalReport(metrics=values, stderr=errors, counts=counts, protocol=protocol(num_samples=num_samples))
    texts = {"report.json": report.model_dump_json(), "samples.jsonl": samples or samples_of(number)}
    put(run_dir, number, name, files=texts, metrics=values, seconds={"evaluating": 4.0})


def base_round(run_dir: Path) -> None:
    put(run_dir, 0, "01_ingest", counts={"in": 9, "kept": 8, "dropped": 1}, seconds={"other": 1.0})
    put(run_dir, 0, "02_base", seconds={"other": 0.5})
    evaluate(run_dir, 0, "03_evaluate")


def put_round(run_dir: Path, number: int, **how: Any) -> None:
    """A whole round; `how` goes to its evaluation."""
    put(run_dir, number, "01_collect", counts={"preferences": 50, "annotated": 5}, seconds={"annotating": 0.25})
    put(
        run_dir, number, "02_train_reward",
        files={"train_log.jsonl": lines([{"step": s, "loss": 0.5, "num_tokens": 100} for s in (1, 2)])},
        counts={"in": 55, "kept": 50, "dropped": 5, "dropped_by_strength": 5}, metrics={"eval_accuracy": 0.75},
        seconds={"training": 10.0 + number},
    )  # fmt: skip
    put(
        run_dir, number, "04_sample", config={"engine": "transformers"},
        counts={"in": 4, "kept": 4, "dropped": 0, "candidates": 40},
        metrics={"mean_tokens": 10.0}, seconds={"sampling": 3.0},
    )  # fmt: skip
    picked = [{"reward": 1.0 + i, "random_reward": -1.0 + i} for i in range(4)]
    put(
        run_dir, number, "06_select", files={"selected.jsonl": lines(picked)},
        counts={"in": 40, "kept": 4, "dropped": 36}, metrics={"mean_reward_best": 2.5, "mean_reward_random": 0.5},
    )  # fmt: skip
    reason = {"id": "p", "stage": "prune", "rule": "quality", "reason": f"too low {EVIL}"}
    put(
        run_dir, number, "07_prune", files={"dropped.jsonl": lines([reason])},
        counts={"in": 4, "kept": 3, "dropped": 1, "dropped_by_quality": 1},
    )  # fmt: skip
    pair = {"id": "q", "stage": "build_pairs", "rule": "strength", "reason": "marginal"}
    put(
        run_dir, number, "10_build_pairs", files={"dropped.jsonl": lines([pair, pair])},
        counts={"in": 12, "kept": 10, "dropped": 2, "preference_pairs": 6, "on_policy_pairs": 4},
    )  # fmt: skip
    evaluate(run_dir, number, "13_evaluate", **how)
    answers = [
        {
            "id": f"h{index}",
            "messages": [{"role": "user", "content": f"Held out {index} {EVIL}"}],
            "completion": f"measured {number} {EVIL}",
            "finish_reason": "stop",
            "chosen": "people like this",
            "reward": 0.5,
            "first_reward": 0.25 * number,
        }
        for index in range(2)
    ]
    texts = {"measures.json": json.dumps(measures_of(number)), "completions.jsonl": lines(answers)}
    put(run_dir, number, "14_measure", files=texts, metrics=measures_of(number), seconds={"measuring": 2.0})


def row_of(number: int) -> RoundRow:
    flags = ["over-optimisation: since round 1 the reward rose by 1"] if number == 2 else []
    return RoundRow(
        round=number, policy=f"round-{number:02d}/12_average/checkpoint", metrics=metrics_of(number),
        stderr={"ifeval/mean": 0.03, "mmlu/acc": 0.02}, reward_model={"heldout_accuracy": 0.75} if number else {},
        rows={"prune_kept": 3} if number else {}, seconds={"training": 10.0 + number}, measures=measures_of(number),
        flags=flags, gated="ifeval/mean fell by 0.2" if number == 3 else None,
    )  # fmt: skip


def begin(run_dir: Path, *, rounds: int = 3, overrides: Sequence[str] = ()) -> Path:
    run_dir.mkdir(parents=True)
    asked = ["evaluate.tasks=[ifeval,mmlu]", "evaluate.test_tasks=[]", "best_metric=ifeval/mean"]
    recipe = load_recipe("quickstart", overrides=[f"rounds={rounds}", *asked, *overrides]).model_dump(mode="json")
    (run_dir / "resolved.json").write_text(json.dumps({"run_version": 1, "recipe": recipe}))
    return run_dir


def finish(run_dir: Path, *, rounds: int) -> None:
    (run_dir / "rounds.jsonl").write_text("".join(row_of(n).model_dump_json() + "\n" for n in range(rounds + 1)))
    found = [difference(n, against) for n in range(1, rounds + 1) for against in dict.fromkeys((n - 1, 0))]
    (run_dir / "differences.json").write_text(json.dumps({"rounds": [one.model_dump(mode="json") for one in found]}))


def make_run(run_dir: Path, *, rounds: int = 3, overrides: Sequence[str] = (), **how: Any) -> Path:
    """A finished run; `how` goes to the evaluations of its rounds."""
    begin(run_dir, rounds=rounds, overrides=overrides)
    base_round(run_dir)
    for number in range(1, rounds + 1):
        put_round(run_dir, number, **how)
    finish(run_dir, rounds=rounds)
    return run_dir
