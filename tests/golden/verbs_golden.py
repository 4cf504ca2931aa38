"""The other verbs on wrong options and files: on run directories, on one stage, on files without the loop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from golden_case import SMALL, Case, base, call, edit, folder, no_template, put, row, without

from alignloop.artifacts import Manifest
from alignloop.config import load_recipe
from alignloop.run_dir.layout import enter, locked


def run_dir(*changes: Callable[[Path], object], **recipe: Any) -> Callable[[Path], None]:
    """A run of `SMALL` that has begun and published nothing."""

    def make(path: Path) -> None:
        with locked(path):
            enter(path, load_recipe({**SMALL, **recipe}), rebuild=False)
        for change in changes:
            change(path)

    return make


def on_run(verb: str, *changes: Callable[[Path], object], **recipe: Any) -> Case:
    """`run` or `plan` of `SMALL` in a directory that holds this."""
    return Case((verb, "mine.yaml", "--run-dir", "mine"), {"mine": run_dir(*changes, **recipe)}, {})


def stage_folder(name: str, manifest: str | None) -> Callable[[Path], None]:
    """Puts a stage's folder in a run, with this manifest."""

    def change(path: Path) -> None:
        (path / name).mkdir(parents=True)
        if manifest is not None:
            (path / name / "manifest.json").write_text(manifest, encoding="utf-8")
        else:
            (path / name / "rows.jsonl").write_text("{}\n", encoding="utf-8")

    return change


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another run is at work in `mine`."""
    with locked(path / "mine"):
        yield


def newer(path: Path) -> None:
    edit(path / "resolved.json", run_version=99)


def reward_model(path: Path) -> None:
    """The bundled base with a head of one label."""
    from safetensors.torch import load_file, save_file

    base(architectures=["LlamaForSequenceClassification"])(path)
    tensors = load_file(path / "model.safetensors")
    hidden = json.loads((path / "config.json").read_text())["hidden_size"]
    tensors["score.weight"] = next(iter(tensors.values())).new_zeros(1, hidden)
    save_file(tensors, path / "model.safetensors")


def no_system(path: Path) -> None:
    """The chat template refuses dialogs with a system prompt."""
    template = path / "chat_template.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(refusal + template.read_text(encoding="utf-8"), encoding="utf-8")


def candidate(number: int, **columns: Any) -> dict[str, Any]:
    """A scored candidate as the `score` stage writes it; `columns` in place of its own."""
    made: dict[str, Any] = {
        "id": f"c{number}",
        "prompt_id": f"p{number // 2}",
        "messages": [{"role": "user", "content": f"Name river number {number // 2}."}],
        "completion": f"River {number}.",
        "completion_ids": [5, 6, 7],
        "finish_reason": "stop",
        "round": 1,
        "policy": "sha256:0",
        "reward": 0.5,
        "total_reward": 0.5,
    }
    return {name: value for name, value in (made | columns).items() if value is not None}


def scored(*words: str, rows: Any = None, model: Callable[[Path], None] = reward_model, **files: Any) -> Case:
    """`alignloop score` on candidates of one's own."""
    rows = [{"prompt": "Hi", "candidates": ["A", "B"]}] if rows is None else rows
    return call("score", "rm", "rows.jsonl", "--out", "scored.jsonl", *words, rm=model, rows__jsonl=rows, **files)


def staged(name: str, *words: str, **files: Any) -> Case:
    """`alignloop stage` into a new folder."""
    return call("stage", name, "--out", "made", "--set", "engine.name=transformers", *words, **files)


def sampled(*words: str, **files: Any) -> Case:
    """`alignloop sample` into a new file."""
    return call("sample", *words, "--out", "candidates.jsonl", "--engine", "transformers", **files)


def evaluated(tasks: str, *words: str) -> Case:
    """`alignloop eval` of the bundled base."""
    command = ("eval", "my-base", "--engine", "transformers", "--tasks", tasks, *words)
    return call(*command, **{"my-base": base()})


def pruned(*words: str, **files: Any) -> Case:
    """`alignloop data prune` of the good file."""
    return call("data", "prune", "good.jsonl", "--set", "engine.name=transformers", *words, **files)


OTHER = Manifest(
    stage="ingest", round=0, fingerprint="other", config={"heldout_fraction": 0.5, "gone": True}, inputs={}, outputs={},
    counts={}, metrics={}, seed=1, versions={}, started="", ended="", seconds={},
)  # fmt: skip
RESPONSE = {"prompt": "Hi", "response": "Ho"}
QUESTION = {"key": 1, "prompt": "Hi", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
RUNS: dict[str, Case] = {
    "run-of-another-recipe": on_run("run", dpo={"max_length": 384, "beta": 0.5}, seed=7),
    "plan-of-another-recipe": on_run("plan", dpo={"max_length": 384, "beta": 0.5}, seed=7),
    "run-of-an-older-version": on_run(
        "plan",
        lambda path: edit(
            path / "resolved.json", recipe=json.loads((path / "resolved.json").read_text())["recipe"] | {"old": 1}
        ),
    ),
    "run-of-a-newer-version": on_run("plan", newer),
    "run-of-a-broken-recipe": on_run("run", lambda path: put(path / "resolved.json", "{")),
    "run-of-a-recipe-of-wrong-kinds": on_run(
        "run", lambda path: edit(path / "resolved.json", recipe={"rounds": "six"})
    ),
    "run-in-a-folder-of-other-files": Case(("run", "mine.yaml", "--run-dir", "mine"), {"mine/thesis.tex": "years"}, {}),
    "run-in-a-file": Case(("run", "mine.yaml", "--run-dir", "mine"), {"mine": "years"}, {}),
    "run-that-is-at-work": Case(("run", "mine.yaml", "--run-dir", "mine"), {"mine": run_dir()}, {}, during=held),
    "run-with-a-stage-of-a-newer-version": on_run(
        "plan", stage_folder("round-00/01_ingest", '{"manifest_version": 99}')
    ),
    "run-with-a-broken-manifest": on_run("plan", stage_folder("round-00/01_ingest", "{")),
    "run-with-a-stage-without-manifest": on_run("plan", stage_folder("round-00/01_ingest", None)),
    "run-with-a-stage-of-other-settings": on_run("plan", stage_folder("round-00/01_ingest", OTHER.model_dump_json())),
    "run-over-a-stage-of-other-settings": on_run(
        "plan", stage_folder("round-00/02_base", OTHER.model_copy(update={"stage": "base"}).model_dump_json())
    ),
    "run-inside-a-file": Case(("run", "mine.yaml", "--run-dir", "good.jsonl/mine"), {}, {}),
    "run-with-a-pipe-for-a-lock": Case(("run", "mine.yaml", "--run-dir", "mine"), {"mine/run.lock": os.mkfifo}, {}),
    "run-of-bad-rows": Case(
        ("run", "mine.yaml", "--run-dir", "mine"),
        {"bad.jsonl": [row(1), {"prompt": "Hi", "rejected": "No."}, "{"]},
        {"preferences": "bad.jsonl", "chat_template": "llama4"},
    ),
    "run-of-a-wrong-recipe": Case(("run", "mine.yaml"), {}, {"roundz": 1, "rounds": 0, "preferences": "none.jsonl"}),
    "run-of-a-wrong-base": Case(("run", "mine.yaml", "--run-dir", "mine"), {}, {"base": "nowhere/at/all"}),
    "status-of-no-run": call("status", "runs/other", **{"runs/mine": run_dir()}),
    "status-of-nothing": call("status"),
    "status-of-a-broken-run": call("status", "mine", mine=run_dir(newer)),
    "status-verify-of-no-run": call("status", "mine", "--verify", mine=folder),
    "why-of-no-run": call("why", "abc", "runs/mine"),
    "why-of-an-unknown-row": call("why", "abc", "mine", mine=run_dir()),
    "why-of-an-unknown-line": call("why", "good.jsonl:7", "mine", mine=run_dir()),
    "diff-of-round-0": call("diff", "mine", "0", "1", mine=run_dir()),
    "diff-of-no-round": call("diff", "mine", "1", "2", mine=run_dir()),
    "diff-of-words": call("diff", "mine", "one", "two"),
    "report-of-no-run": call("report", "mine"),
    "report-of-several-without-a-name": call("report", "mine", "other", mine=run_dir(), other=run_dir()),
    "report-of-one-twice": call("report", "mine", "mine", "--out", "all.html", mine=run_dir()),
    "report-in-no-folder": call("report", "mine", "--out", "none/all.html", mine=run_dir()),
}
STAGES: dict[str, Case] = {
    "stage-of-no-name": staged("scor"),
    "stage-without-inputs": staged("score"),
    "stage-of-an-unknown-input": staged("score", "--input", "rm=good.jsonl"),
    "stage-of-no-path": staged("score", "--input", "candidates"),
    "stage-of-an-input-that-is-not-there": staged("score", "--input", "candidates=none.jsonl"),
    "stage-of-two-paths-for-one": staged("select", "--input", "candidates=good.jsonl,good.jsonl"),
    "stage-over-other-files": staged("ingest", "--input", "preferences=good.jsonl", **{"made/notes.txt": "words"}),
    "stage-inside-a-run": call(
        "stage", "ingest", "--out", "mine/made", "--input", "preferences=good.jsonl", mine=run_dir()
    ),
    "stage-ingest-of-bad-rows": staged(
        "ingest", "--input", "preferences=bad.jsonl", bad__jsonl=[row(1), {"prompt": "Hi"}]
    ),
    "stage-base-without-template": staged("base", "--input", "base=my-base", **{"my-base": base(no_template)}),
    "stage-base-of-no-folder": staged("base", "--input", "base=./nowhere"),
    "stage-base-without-weights": staged(
        "base", "--input", "base=my-base", **{"my-base": base(without("model.safetensors"))}
    ),
    "stage-base-of-an-unknown-template": staged(
        "base", "--input", "base=my-base", "--input", "chat_template=llama4", **{"my-base": base()}
    ),
    "stage-select-without-rewards": staged(
        "select", "--input", "candidates=c.jsonl", c__jsonl=[candidate(0, reward=None, total_reward=None)]
    ),
    "stage-select-of-no-rows": staged("select", "--input", "candidates=c.jsonl", c__jsonl=""),
    "stage-select-of-other-rows": staged("select", "--input", "candidates=good.jsonl"),
    "stage-sample-without-room": staged(
        "sample",
        "--input",
        "policy=my-base",
        "--input",
        "prompts=good.jsonl",
        "--set",
        "engine.max_model_len=100000",
        **{"my-base": base()},
    ),
    "stage-score-of-no-rows": staged(
        "score", "--input", "candidates=c.jsonl", "--input", "reward_model=rm", c__jsonl="", rm=reward_model
    ),
    "stage-score-of-an-id-twice": staged(
        "score",
        "--input",
        "candidates=c.jsonl",
        "--input",
        "reward_model=rm",
        c__jsonl=[candidate(0), candidate(1, id="c0")],
        rm=reward_model,
    ),
    "stage-score-without-ids": staged(
        "score",
        "--input",
        "candidates=c.jsonl",
        "--input",
        "reward_model=rm",
        c__jsonl=[candidate(0, completion_ids=[])],
        rm=reward_model,
    ),
    "stage-average-of-several-sections": staged(
        "average",
        "--input",
        "checkpoints=my-base",
        "--set",
        "averaging.sft.choose=1",
        "--set",
        "averaging.dpo.choose=1",
        **{"my-base": base()},
    ),
    "stage-training-of-no-rows": staged(
        "train_sft", "--input", "start=my-base", "--input", "rows=rows.jsonl", rows__jsonl="", **{"my-base": base()}
    ),
}
FILES: dict[str, Case] = {
    "check-of-no-file": call("data", "check", "god.jsonl"),
    "check-of-an-empty-file": call("data", "check", "bad.jsonl", bad__jsonl=""),
    "check-of-no-form": call("data", "check", "bad.jsonl", bad__jsonl=[{"ask": "Hi"}] * 2),
    "check-of-an-unknown-form": call("data", "check", "good.jsonl", "--form", "llama"),
    "check-of-bad-rows": call(
        "data", "check", "bad.jsonl", bad__jsonl=[row(1), row(2, chosen=None), "{", row(3, rejected="River 3 it is.")]
    ),
    "check-of-two-forms": call(
        "data", "check", "bad.jsonl", bad__jsonl=[row(1), {"instruction": "Hi", "chosen": "A", "rejected": "B"}]
    ),
    "check-of-an-unknown-column": call("data", "check", "good.jsonl", "--column", "promt=ask"),
    "check-of-a-column-without-a-name": call("data", "check", "good.jsonl", "--column", "prompt"),
    "check-of-a-column-that-is-not-there": call("data", "check", "good.jsonl", "--column", "prompt=promt"),
    "check-of-no-base": call("data", "check", "good.jsonl", "--base", "nowhere/at/all"),
    "check-into-no-folder": call("data", "check", "good.jsonl", "--json", "none/check.json"),
    "check-of-no-rows-shown": call("data", "check", "good.jsonl", "--rows", "99"),
    "convert-over-itself": call("data", "convert", "good.jsonl", "--out", "good.jsonl"),
    "convert-over-another": call("data", "convert", "good.jsonl", "--out", "other.jsonl", other__jsonl="{}\n"),
    "convert-of-bad-rows-alone": call(
        "data", "convert", "bad.jsonl", "--out", "out.jsonl", bad__jsonl=[{"prompt": "Hi", "rejected": "No."}]
    ),
    "convert-to-another-kind": call("data", "convert", "good.jsonl", "--out", "out.txt"),
    "convert-of-a-list-cut-short": call(
        "data",
        "convert",
        "bad.json",
        "--out",
        "out.jsonl",
        bad__json='[{"prompt": "Hi", "chosen": "A", "rejected": "B"}, {',
    ),
    "prune-to-another-kind": pruned("--out", "out.txt"),
    "prune-into-a-folder": pruned("--out", "out", out=folder),
    "prune-into-no-folder": pruned("--out", "none/out.jsonl"),
    "prune-with-two-embedders": pruned(
        "--out", "out.jsonl", "--embedder", "policy", "--embeddings", "v.npy", v__npy=b""
    ),
    "prune-with-no-vectors": pruned("--out", "out.jsonl", "--embeddings", "v.npy", v__npy=b"no"),
    "prune-with-a-wrong-recipe": pruned("--out", "out.jsonl", "--set", "prune.semantic_dedup.treshold=0.9"),
    "prune-against-no-benchmark": pruned("--out", "out.jsonl", "--benchmarks", "ifeval=none.jsonl"),
    "prune-of-no-file": call("data", "prune", "god.jsonl", "--out", "out.jsonl"),
    "prune-of-no-rewards": call(
        "data",
        "prune",
        "bad.jsonl",
        "--out",
        "out.jsonl",
        "--set",
        "engine.name=transformers",
        bad__jsonl=[row(1, reward="high"), row(2)],
    ),
    "prune-by-a-policy-that-is-not-there": pruned(
        "--out", "out.jsonl", "--embedder", "policy", "--set", "base=./nowhere"
    ),
    "prune-by-no-judge": pruned("--out", "out.jsonl", "--set", "prune.quality.by=judge"),
    "prune-of-a-hub": call("data", "prune", "hub:owner/name", "--out", "out.jsonl"),
    "prune-over-another": pruned("--out", "out.jsonl", out__jsonl="{}\n"),
    "sample-of-no-model": sampled("nowhere", "good.jsonl"),
    "sample-of-a-reward-model": sampled("rm", "good.jsonl", rm=reward_model),
    "sample-of-a-file": sampled("good.jsonl", "good.jsonl"),
    "sample-of-a-folder-without-a-config": sampled("hollow", "good.jsonl", hollow=folder),
    "sample-of-no-prompts": sampled("quickstart", "god.jsonl"),
    "sample-of-bad-prompts": sampled("quickstart", "bad.jsonl", bad__jsonl=[{"prompt": ""}, {"prompt": 3}]),
    "sample-of-an-empty-file": sampled("quickstart", "bad.jsonl", bad__jsonl=""),
    "sample-of-no-candidates": sampled("quickstart", "good.jsonl", "-k", "0"),
    "sample-by-no-recipe": sampled("quickstart", "good.jsonl", "--config", "none.yaml"),
    "sample-without-a-template": sampled("my-base", "good.jsonl", **{"my-base": base(no_template)}),
    "sample-at-no-temperature": sampled("quickstart", "good.jsonl", "--temperature", "warm"),
    "sample-at-a-range-the-wrong-way": sampled("quickstart", "good.jsonl", "--temperature", "1.0,0.5"),
    "sample-without-room": sampled("quickstart", "good.jsonl", "--max-tokens", "100000"),
    "sample-with-more-room-than-there-is": sampled("quickstart", "good.jsonl", "--set", "engine.max_model_len=100000"),
    "sample-with-an-empty-system-prompt": sampled("quickstart", "good.jsonl", "--system-prompt", " "),
    "sample-with-a-system-prompt-that-is-refused": sampled(
        "my-base", "good.jsonl", "--system-prompt", "Be kind.", **{"my-base": base(no_system)}
    ),
    "sample-of-more-than-all-probability": sampled("quickstart", "good.jsonl", "--top-p", "1.5"),
    "sample-into-a-folder": sampled("quickstart", "good.jsonl", candidates__jsonl=folder),
    "sample-with-other-kwargs": sampled(
        "quickstart", "good.jsonl", "--set", "chat_template_kwargs.enable_thinking=true"
    ),
    "sample-over-another": sampled("quickstart", "good.jsonl", candidates__jsonl="{}\n"),
    "score-of-no-reward-model": scored(model=base()),
    "score-without-a-head": scored(model=base(architectures=["LlamaForSequenceClassification"])),
    "score-of-no-candidates": scored(rows=[row(1)]),
    "score-of-bad-candidates": scored(rows=[{"prompt": "Hi", "candidates": []}, {"prompt": "Hi", "candidates": "A"}]),
    "score-of-no-file": call("score", "rm", "none.jsonl", "--out", "scored.jsonl", rm=reward_model),
    "score-over-its-candidates": scored("--out", "rows.jsonl"),
    "score-of-candidates-twice": scored(rows=[candidate(0), candidate(1, id="c0")]),
    "score-of-two-prompts-by-one-id": scored(rows=[candidate(0), candidate(2, prompt_id="p0")]),
    "score-into-one-file-twice": scored("--best", "scored.jsonl"),
    "score-into-files-of-one-name": scored("--best", "scored.json"),
    "score-over-another-best": scored("--best", "best.jsonl", best__jsonl="{}\n"),
    "score-by-no-function": scored("--reward-function", "length"),
    "score-by-a-weight-of-words": scored("--reward-function", "rewards:length=x"),
    "score-by-a-module-that-is-not-there": scored("--reward-function", "not_there:length"),
    "compare-without-models": call("compare-sampling", "quickstart", "quickstart"),
    "compare-of-files-with-models": call(
        "compare-sampling", "a.jsonl", "a.jsonl", "--policy", "quickstart", a__jsonl=[candidate(0)]
    ),
    "compare-of-files-with-settings": call(
        "compare-sampling", "a.jsonl", "b.jsonl", "--set-a", "seed=1", a__jsonl=[candidate(0)], b__jsonl=[candidate(0)]
    ),
    "compare-with-other-kwargs": call(
        "compare-sampling",
        *("quickstart", "quickstart", "--policy", "quickstart", "--reward-model", "rm", "--prompts", "good.jsonl"),
        *("--set-a", "chat_template_kwargs.enable_thinking=true"),
        rm=reward_model,
    ),
    "compare-of-unscored-candidates": call(
        "compare-sampling",
        "a.jsonl",
        "b.jsonl",
        a__jsonl=[candidate(0, reward=None, total_reward=None)],
        b__jsonl=[candidate(0)],
    ),
    "compare-of-other-rows": call("compare-sampling", "good.jsonl", "good.jsonl"),
    "compare-of-other-prompts": call(
        "compare-sampling",
        "a.jsonl",
        "b.jsonl",
        a__jsonl=[candidate(0)],
        b__jsonl=[candidate(8, messages=[{"role": "user", "content": "Name a hill."}])],
    ),
    "compare-by-no-reward-model": call(
        "compare-sampling",
        *(
            "quickstart",
            "quickstart",
            "--policy",
            "quickstart",
            "--reward-model",
            "quickstart",
            "--prompts",
            "good.jsonl",
        ),
    ),
    "compare-into-a-file": call("compare-sampling", "a.jsonl", "a.jsonl", "--out", "a.jsonl", a__jsonl=[candidate(0)]),
    "compare-into-a-folder-of-others": call(
        "compare-sampling",
        "a.jsonl",
        "a.jsonl",
        "--out",
        "made",
        a__jsonl=[candidate(0)],
        **{"made/notes.txt": "words"},
    ),
    "eval-of-nothing": call("eval"),
    "eval-of-no-folder": call("eval", "nowhere"),
    "eval-of-a-reward-model": call("eval", "rm", rm=reward_model),
    "eval-by-no-recipe": call("eval", "my-base", "--config", "smal_gpu", **{"my-base": base()}),
    "eval-into-no-folder": call("eval", "my-base", "--json", "none/report.json"),
    "eval-into-a-folder-of-the-system": call("eval", "my-base", "--json", "/proc/report.json"),
    "eval-into-one-file-twice": call("eval", "my-base", "--json", "a.json", "--samples", "a.json"),
    "eval-of-bundled-questions-twice": evaluated("ifeval,ifeval", "--include-path", "quickstart"),
    "eval-of-lm-evals-questions-twice": evaluated("ifeval,ifeval"),
    "eval-of-responses-without-prompts": call("eval", "--responses", "good.jsonl"),
    "eval-of-responses-with-a-model": call(
        "eval", "my-base", "--responses", "good.jsonl", "--benchmark", "ifeval", "--limit", "3"
    ),
    "eval-of-responses-to-another-benchmark": call("eval", "--responses", "good.jsonl", "--benchmark", "mmlu=x"),
    "eval-of-no-responses": call(
        "eval", "--responses", "none.jsonl", "--benchmark", "ifeval=q.jsonl", q__jsonl=[QUESTION]
    ),
    "eval-of-bad-responses": call(
        "eval",
        "--responses",
        "r.jsonl",
        "--benchmark",
        "ifeval=q.jsonl",
        r__jsonl=[
            "{",
            [1],
            {"prompt": "Hi"},
            RESPONSE | {"response": 3},
            RESPONSE,
            RESPONSE,
            RESPONSE | {"prompt": "Ha"},
        ],
        q__jsonl=[QUESTION, QUESTION | {"key": 2, "prompt": "Hm"}],
    ),
    "inspect-of-no-file": call("inspect", "none.jsonl:1"),
    "inspect-of-a-folder": call("inspect", "rows", rows=folder),
    "inspect-of-an-empty-folder": call("inspect", "rows:abc", rows=folder),
    "inspect-of-no-line": call("inspect", "good.jsonl:99"),
    "inspect-of-no-id": call("inspect", "good.jsonl:abc"),
    "inspect-of-no-base": call("inspect", "good.jsonl:1", "--base", "nowhere/at/all"),
    "inspect-of-an-unknown-template": call("inspect", "good.jsonl:1", "--chat-template", "llama4"),
    "verb-that-is-none": call("rnu"),
    "option-that-is-none": call("run", "--round", "3"),
}
