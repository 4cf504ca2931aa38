"""Everything that can be known before a model is loaded is said at once, with file, line, field and what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.errors import DiskFullError, UserError
from alignloop.preflight import Checked, check
from alignloop.preflight.disk import disk_needs_named, run_bytes
from alignloop.preflight.findings import PreflightError

SMALL: dict[str, Any] = {
    "base": "quickstart",
    "sample": {"max_tokens": 64},
    "evaluate": {"include_path": "quickstart"},
    "engine": {"max_model_len": 384, "name": "transformers"},
    **{stage: {"max_length": 384} for stage in ("reward", "sft", "dpo")},
}


def row(number: int, **columns: Any) -> dict[str, Any]:
    good = {"prompt": f"Name river number {number}.", "chosen": f"River {number} it is.", "rejected": "No."}
    return {**good, **columns}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.jsonl", [row(number) for number in range(40)])


def look(preferences: Path, *, run_dir: Path | None = None, **values: Any) -> Checked:
    return check(load_recipe({**SMALL, "preferences": str(preferences), **values}), run_dir=run_dir)


def problems(preferences: Path, **values: Any) -> tuple[str, ...]:
    with pytest.raises(PreflightError) as caught:
        look(preferences, **values)
    return caught.value.problems


def test_counts_and_lengths_of_a_good_file(good: Path, tmp_path: Path) -> None:
    checked = look(good, run_dir=tmp_path / "run")
    assert checked.num_preferences + checked.num_heldout == 40
    assert checked.num_heldout >= 1
    assert checked.num_prompts == checked.num_preferences
    assert checked.num_rejected == 0
    assert not (tmp_path / "run").exists()
    assert checked.base.had_template
    assert checked.base.max_positions
    assert checked.lengths is not None
    assert checked.lengths.prompt > 5


def test_quickstart_recipe_has_no_problem() -> None:
    checked = check(load_recipe("quickstart", overrides=["engine.name=transformers"]))
    assert checked.num_preferences > 1000
    assert checked.num_prompts > 500
    assert checked.num_rejected == 0


def test_all_problems_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path / "none.jsonl",
        base=str(tmp_path / "nothing"),
        chat_template="llama4",
        evaluate={"include_path": "quickstart", "tasks": ["ifevl", "mmlu"]},
        best_metric="mmlu/acc",
    )
    assert len(found) == 4
    assert "none.jsonl: no such file" in found[0]
    assert "llama4" in found[1]
    assert "llama3" in found[1]
    assert "no such folder" in found[2]
    assert found[3] == "evaluate.tasks: 'ifevl' is unknown - did you mean ifeval?"


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ({"prompt": "Hi", "rejected": "No."}, "chosen", "is missing"),
        ({"prompt": "Hi", "chosen": "Same.", "rejected": "Same. "}, None, "the same text"),
        ('{"prompt": "Hi", "chosen": ', None, "invalid JSON"),
    ],
)
def test_bad_row_is_named_and_written_down(tmp_path: Path, line: Any, field: str | None, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", [row(1), line, row(2)])
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match=r"1 of 3 rows \(33.3%\) cannot be read") as caught:
        look(path, run_dir=run_dir)
    assert f"{path}, line 2" in str(caught.value)
    assert reason in str(caught.value)
    assert str(run_dir / "rejected_rows.jsonl") in str(caught.value)
    (rejected,) = [json.loads(text) for text in (run_dir / "rejected_rows.jsonl").read_text().splitlines()]
    assert (rejected["line"], rejected["field"]) == (2, field)
    # Allowed, the same rows go through, and a mended file leaves no stale list behind.
    assert look(path, run_dir=run_dir, data={"max_bad_fraction": 0.5}).num_rejected == 1
    look(write(path, [row(1), row(2)]), run_dir=run_dir)
    assert not (run_dir / "rejected_rows.jsonl").exists()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([{"prompt": "Hi", "rejected": "No."}] * 3, "is missing"),
        (["{", "[]", "3"], "invalid JSON"),
        ([{"ask": "Hi"}] * 3, "is of no known form"),
    ],
)
def test_rejected_rows_are_written_also_where_none_can_be_read(tmp_path: Path, lines: list[Any], reason: str) -> None:
    path, run_dir = write(tmp_path / "bad.jsonl", lines), tmp_path / "run"
    with pytest.raises(PreflightError, match=r"rejected_rows\.jsonl"):
        look(path, run_dir=run_dir)
    rejected = [json.loads(text) for text in (run_dir / "rejected_rows.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [1, 2, 3]
    assert reason in rejected[0]["reason"]


def test_prompts_that_cannot_be_read_are_not_said_to_be_held_out(tmp_path: Path, good: Path) -> None:
    (problem,) = problems(good, prompts=str(write(tmp_path / "empty.jsonl", [])))
    assert "the file is empty" in problem


def test_rejected_rows_are_not_written_into_a_strangers_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [row(1), {"prompt": "Hi"}])
    stranger = tmp_path / "thesis"
    stranger.mkdir()
    (stranger / "chapter.txt").write_text("words")
    with pytest.raises(UserError):
        look(path, run_dir=stranger)
    assert [file.name for file in stranger.iterdir()] == ["chapter.txt"]


def test_each_bad_file_is_named(tmp_path: Path, good: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", [])
    recipe = load_recipe({**SMALL, "preferences": [str(empty), str(tmp_path / "god.jsonl"), str(good)]})
    with pytest.raises(PreflightError) as caught:
        check(recipe)
    first, second = caught.value.problems
    assert "empty.jsonl: the file is empty" in first
    assert "no such file" in second
    assert "did you mean good.jsonl" in second


def test_strengths_that_leave_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [row(number, strength="marginally_better") for number in range(12)])
    (problem,) = problems(path)
    assert problem.startswith("reward.strengths: none of the")
    assert "significantly_better or better" in problem
    first, second = problems(path, pairs={"on_policy": False})
    assert first == problem
    assert second.startswith("pairs.strengths")


def test_simulated_annotator_wants_prompts_it_can_judge(good: Path) -> None:
    (problem,) = problems(good, collect={"annotator": "simulated", "num_annotations": 4})
    assert problem.startswith("collect.annotator")
    assert "good.jsonl, line " in problem


def test_nothing_held_out_is_a_note(good: Path) -> None:
    assert any("no preference row is held out" in note for note in look(good, data={"heldout_fraction": 0.0}).notes)


def test_held_out_rows_of_other_strengths_are_not_called_none(tmp_path: Path) -> None:
    rows = [row(number, strength="slightly_better" if number % 2 else "better") for number in range(80)]
    checked = look(
        write(tmp_path / "rows.jsonl", rows),
        reward={"max_length": 384, "strengths": ["better"]},
        data={"heldout_fraction": 0.02, "max_heldout": 1},
        seed=2,
    )
    assert [held.strength for held in checked.rows.heldout] == ["slightly_better"]
    (note,) = [note for note in checked.notes if "accuracy is not measured" in note]
    assert note.startswith("none of the 1 held-out rows is better, so the reward model's accuracy is not measured")


def test_lengths_against_the_model(good: Path) -> None:
    (problem,) = problems(good, engine={"max_model_len": 100_000, "name": "transformers"})
    assert problem.startswith("engine.max_model_len: 100000 tokens, but the base has")
    assert len(problems(good, sft={"max_length": 4}, dpo={"max_length": 4})) == 2
    (problem,) = problems(good, sample={"max_tokens": 380})
    assert "all" not in problem
    assert problem.startswith("sample: ")
    assert "exceed 4 tokens" in problem


@pytest.mark.parametrize("metric", ["ifevl/mean", "gsm8k/acc"])
def test_best_metric_of_no_task(good: Path, metric: str) -> None:
    (problem,) = problems(good, best_metric=metric)
    assert problem.startswith("best_metric")
    assert "ifeval, mmlu" in problem


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("ifeval/maen", "'ifeval/maen': ifeval reports prompt_level_strict_acc"),
        ("mmlu/acc_norm", "did you mean mmlu/acc"),
    ],
)
def test_a_metric_that_no_benchmark_reports_is_known_before_the_base_is_measured(
    good: Path, metric: str, said: str
) -> None:
    (problem,) = problems(good, best_metric=metric)
    assert problem.startswith(f"best_metric: {metric!r}")
    assert said in problem
    (problem,) = problems(good, gate={"max_regression": 0.1, "metrics": ["mmlu/acc_macro", "ifeval/type/x", metric]})
    assert problem.startswith("gate.metrics: ")


def test_local_task_files(good: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "mine.yaml").write_text("task: my_rivers\noutput_type: multiple_choice\n")
    right = {"include_path": str(tasks), "tasks": ["my_rivers"]}
    assert look(good, evaluate=right, best_metric="my_rivers/acc").num_prompts
    (problem,) = problems(good, evaluate={**right, "tasks": ["my_river"]}, best_metric="my_river/acc")
    assert "did you mean my_rivers?" in problem
    (problem,) = problems(good, evaluate={"tasks": [f"ifeval={tmp_path}/none.jsonl"]})
    assert "no such file" in problem


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(QUICKSTART / "base", tmp_path / "my-base"))


def test_base_path_has_near_names(good: Path, base: Path) -> None:
    (problem,) = problems(good, base=str(base.with_name("my-bass")))
    assert f"near: {base}" in problem


def test_base_is_a_file(good: Path, base: Path) -> None:
    (problem,) = problems(good, base=str(base / "config.json"))
    assert "is a file" in problem


def test_base_of_a_hub_id_that_is_not_here_is_a_note(good: Path) -> None:
    assert any("fetched from the hub" in note for note in look(good, base="no-such-org/no-such-model").notes)


def test_base_without_config(good: Path, base: Path) -> None:
    (base / "config.json").unlink()
    (problem,) = problems(good, base=str(base))
    assert "no config.json" in problem


def test_base_without_weights_and_no_tokenizer(good: Path, base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "tokenizer.json").unlink()
    weights, tokenizer = problems(good, base=str(base))
    assert "no .safetensors file" in weights
    assert "no tokenizer" in tokenizer


def test_base_cut_weights(good: Path, base: Path) -> None:
    (base / "model.safetensors").write_bytes(b"\x10\x00")
    (problem,) = problems(good, base=str(base))
    assert "no whole safetensors file" in problem


def test_base_is_a_classifier(good: Path, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    (problem,) = problems(good, base=str(base))
    assert "writes no text" in problem


def test_base_without_template_says_which_to_set(good: Path, base: Path) -> None:
    without_template(base)
    (problem,) = problems(good, base=str(base))
    assert "no chat template of its own - set chat_template: llama3" in problem


@pytest.mark.parametrize("name", ["llama3", "chatml"])
def test_base_with_a_named_template_is_enough(good: Path, base: Path, name: str) -> None:
    without_template(base)
    checked = look(good, base=str(base), chat_template=name)
    assert checked.base.had_template is False
    assert checked.lengths is not None


def test_base_with_a_template_that_cannot_be_rendered(good: Path, base: Path) -> None:
    (base / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content ")
    (problem,) = problems(good, base=str(base))
    assert "template" in problem


def without_template(base: Path) -> None:
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))


def test_disk_of_a_run() -> None:
    recipe = load_recipe(
        {**SMALL, "preferences": "p.jsonl", "rounds": 2, "sample": {"max_tokens": 10, "num_candidates": 3}}
    )
    # One float32 checkpoint of 1M parameters: 4 MB. A round: 3 stages x (1 kept + 1 averaged) = 24 MB, and rows:
    # 100 prompts x 3 candidates x (20 + 10) tokens x 12 bytes x 3 copies = 324 kB. Beside the rounds: base and final
    # (8 MB), a resume point (12 MB), 50 MB of small things.
    expected = 2 * (24_000_000 + 324_000) + 8_000_000 + 12_000_000 + 50_000_000
    assert run_bytes(recipe, num_parameters=1_000_000, num_prompts=100, prompt_tokens=20.0) == expected


def broken_base(folder: Path, name: str) -> Path:
    """The bundled base with one thing wrong."""
    base = folder / name
    shutil.copytree(QUICKSTART / "base", base)
    weights, config = base / "model.safetensors", base / "config.json"
    values = json.loads(config.read_text())
    if name == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif name == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif name == "noise":
        weights.write_bytes(b"\xff" * 500)
    else:
        changes = {"width": {"hidden_size": 999}, "layers": {"num_hidden_layers": 99}, "kind": {"model_type": "lama"}}
        config.write_text(json.dumps(values | changes[name]))
    return base


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut", r"is cut short: [\d,]+ of [\d,]+ bytes"),
        ("pointer", "Git LFS pointer"),
        ("noise", "no whole safetensors file"),
        ("width", "the hidden size is 999, .* has width"),
        ("layers", "the config has 99 layers, the weights"),
        ("kind", r"'lama' is no causal language model .* did you mean llama\?"),
    ],
)
def test_a_base_whose_weights_cannot_be_used_is_found_unloaded(
    tmp_path: Path, good: Path, name: str, message: str
) -> None:
    (problem,) = problems(good, base=str(broken_base(tmp_path, name)))
    assert re.search(message, problem)


def test_settings_that_leave_nothing_are_found(good: Path) -> None:
    (problem,) = problems(good, prune={"human_rows": 0, "quality": {"top_fraction": 0}})
    assert "SFT would have nothing" in problem
    pairs = {"max_preference_pairs": 0}
    (problem,) = problems(good, pairs=pairs, sample={"max_tokens": 64, "num_candidates": 1})
    assert "DPO would have no pair" in problem
    assert look(good, pairs=pairs).num_preferences > 0


def test_a_file_named_twice_is_noted(good: Path) -> None:
    checked = check(load_recipe({**SMALL, "preferences": [str(good), str(good)]}))
    assert f"preferences: {good} is named 2 times" in checked.notes[0]


def test_a_disk_that_fills_says_what_the_run_still_needs(tmp_path: Path) -> None:
    def fill() -> None:
        with disk_needs_named(tmp_path, needed_bytes=50_000_000):
            (tmp_path / "b").write_bytes(bytes(20_000_000))
            raise DiskFullError(tmp_path / "a.jsonl")

    with pytest.raises(DiskFullError, match=r"a\.jsonl: the disk is full; about 30 MB are needed, [\d,]+ MB are free"):
        fill()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes want two cores")
def test_an_accelerate_file_that_cannot_be_is_found(tmp_path: Path, good: Path) -> None:
    path = tmp_path / "mine.yaml"
    training = {"num_processes": 2, "accelerate": str(path)}
    path.write_text("distributed_type: MULTI_GPU\nnum_proceses: 2")
    (problem,) = problems(good, training=training)
    assert problem.startswith(f"{path}: unknown key 'num_proceses'; did you mean num_processes?")
    path.write_text(
        "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
        "  fsdp_transformer_layer_cls_to_wrap: LamaLayer"
    )
    (problem,) = problems(good, training=training)
    assert problem.startswith(f"{path}: fsdp_transformer_layer_cls_to_wrap: the base ")
    assert "has no layer of class 'LamaLayer' - name " in problem
    path.write_text("distributed_type: MULTI_GPU")
    assert "not used" not in " ".join(look(good, training=training).notes)


def test_an_accelerate_setting_that_is_not_used_is_noted(good: Path) -> None:
    notes = look(good, training={"accelerate": "fsdp2"}).notes
    assert "training.accelerate: fsdp2 is not used: training.num_processes is 1" in notes
    (problem,) = problems(good, training={"accelerate": "fsdp3"})
    assert "training.accelerate: no such file: fsdp3" in problem


def test_a_rank_above_a_layers_smaller_side_is_noted(good: Path) -> None:
    from alignloop.engines.checkpoint import tensor_shapes

    shapes = tensor_shapes(QUICKSTART / "base")
    width = min(min(shape) for name, shape in shapes.items() if name.endswith("k_proj.weight"))
    notes = look(good, sft={"max_length": 384, "lora": {"rank": width + 1, "target_modules": ["k_proj"]}}).notes
    (note,) = [note for note in notes if note.startswith("sft.lora.rank")]
    assert f"sft.lora.rank is {width + 1}, above the smaller side of " in note
    assert re.search(
        rf"layers\.\d+\.self_attn\.k_proj, \d+ x \d+ \(and of \d+ more\): what is above {width} costs memory", note
    )
    for rank, targets in ((width, ["k_proj"]), (16, "all-linear")):
        notes = look(good, sft={"max_length": 384, "lora": {"rank": rank, "target_modules": targets}}).notes
        assert not any("lora.rank" in note for note in notes)


def test_engines_the_machine_has_no_room_for_are_a_problem(good: Path) -> None:
    engine = {**SMALL["engine"], "tensor_parallel": 2}
    with pytest.raises(PreflightError, match=r"engine.tensor_parallel: 2, but .* transformers serves a model"):
        look(good, engine=engine)


def test_what_cannot_be_measured_is_noted(good: Path) -> None:
    assert not [note for note in look(good).notes if note.startswith("measure")]
    (note,) = [n for n in look(good, data={"heldout_fraction": 0.0}).notes if n.startswith("measure")]
    assert "win rates" in note
    off = look(good, data={"heldout_fraction": 0.0}, measure={"enabled": False})
    assert not [note for note in off.notes if note.startswith("measure")]
    # 370 of 384 tokens for an answer leave 14: the prompts here have more.
    (note,) = [n for n in look(good, measure={"max_tokens": 370}).notes if n.startswith("measure")]
    assert "none of" in note
    assert "held-out rows fits engine.max_model_len (384)" in note
    with pytest.raises(UserError, match=r"measure\.max_tokens \(384\) leaves no room"):
        look(good, measure={"max_tokens": 384})


def test_a_judge_that_measure_asks_must_compare(good: Path) -> None:
    judge = {"model": str(QUICKSTART / "base"), "max_tokens": 64}
    assert look(good, judge=judge)
    (found,) = problems(good, judge={**judge, "prompt": "difficulty"})
    assert "measure.judge asks the judge to" in found
    (found,) = problems(good, judge={**judge, "model": "nowhere"})
    assert "judge.model: nowhere: no such folder" in found
    assert look(good, judge={**judge, "prompt": "difficulty"}, measure={"judge": False})


@pytest.mark.parametrize("kind", ["preferences", "prompts"])
def test_data_that_cannot_be_read_twice_is_a_problem(tmp_path: Path, good: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("hub:owner/name", str(tmp_path / "pipe"), str(tmp_path / "gone.jsonl")):
        found = problems(good, **{kind: name}) if kind == "prompts" else problems(Path(name))
        assert [line for line in found if name in line and ("data convert" in line or "no such file" in line)], found


def test_columns_by_name_and_scores_that_say_otherwise(tmp_path: Path) -> None:
    rows = [
        {"ask": f"River {n}?", "a": {"text": f"It is {n}."}, "b": "No.", "score_chosen": n, "score_rejected": 4}
        for n in range(40)
    ]
    columns = {"prompt": "ask", "chosen": "a.text", "rejected": "b"}
    checked = look(write(tmp_path / "p.jsonl", rows), data={"columns": columns})
    assert checked.num_preferences + checked.num_heldout == 40
    assert [note for note in checked.notes if "of 40 preferences 4 have scores that say the rejected" in note]
    assert [note for note in checked.notes if "1 have scores that tie" in note]
    with pytest.raises(UserError, match=r"data.columns"):
        load_recipe({**SMALL, "preferences": "a", "data": {"columns": {"promt": "ask"}}})


THOUGHT = "<think>\nIt flows.\n</think>\n\n"


def thinking_rows(number: int, *, earlier: str = "") -> list[dict[str, Any]]:
    """Rows whose chosen answers hold reasoning; the rejected ones hold none."""
    start = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": earlier}] if earlier else []
    return [
        row(n, prompt=[*start, {"role": "user", "content": f"River {n}?"}], chosen=f"{THOUGHT}River {n}.")
        for n in range(number)
    ]


def test_reasoning_behind_an_empty_thinking_block_is_refused_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "thinks.jsonl", thinking_rows(20))
    (problem,) = problems(path, chat_template="qwen3")
    assert problem.startswith(f"preferences: 20 of 40 answers cannot be trained (first: {path}, line ")
    assert "set chat_template_kwargs: {enable_thinking: true}, or take the reasoning out of the rows" in problem
    notes = look(path, chat_template="qwen3", chat_template_kwargs={"enable_thinking": True}).notes
    assert any("20 of 40 answers hold no reasoning" in note for note in notes)
    # Its generation prompt opens the block: what holds no reasoning cannot follow it.
    (problem,) = problems(path, chat_template="qwen3_5_think", chat_template_kwargs={"enable_thinking": True})
    assert "20 of 40 answers cannot be trained" in problem
    assert "set chat_template_kwargs: {enable_thinking: false}" in problem


def test_reasoning_on_a_template_that_takes_none_is_noted(tmp_path: Path) -> None:
    notes = look(write(tmp_path / "thinks.jsonl", thinking_rows(20))).notes
    assert any("20 of 40 answers begin with <think>" in note for note in notes)


def test_earlier_answers_that_sampling_never_asks_for_are_refused(tmp_path: Path) -> None:
    rows = [{**each, "chosen": "It is."} for each in thinking_rows(20, earlier="Hi.")]
    path = write(tmp_path / "talks.jsonl", rows)
    sft = {"max_length": 384, "train_on": "all_assistant"}
    (problem,) = problems(path, chat_template="qwen3", sft=sft)
    assert "sft.train_on: all_assistant: 20 of 20 earlier answers cannot be trained" in problem
    assert "last_assistant" in problem
    assert look(path, chat_template="qwen3_training", sft=sft)
    assert look(path, chat_template="qwen3")
    first, answer, last = rows[3]["prompt"]
    rows[3]["prompt"] = [first, answer | {"weight": 0}, last]
    marked = write(tmp_path / "marked.jsonl", rows)
    (problem,) = problems(marked, chat_template="qwen3_training", sft=sft)
    assert "1 of 20 rows hold turns that are marked as not to be trained on" in problem
    assert "line 4, prompt[1].weight" in problem
    assert look(marked, chat_template="qwen3_training")


def test_a_template_in_place_of_the_bases_own_is_noted(good: Path) -> None:
    checked = look(good, chat_template="chatml")
    assert "chat_template: chatml replaces the base's own, with 2 tokens new to its tokenizer" in checked.notes
    assert not checked.base.had_template


def test_a_template_without_end_is_stopped_by_name(good: Path, base: Path) -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (base / "chat_template.jinja").write_text(endless)
    (problem,) = problems(good, base=str(base))
    assert f"base: {base}: the chat template did not come to an end within 5 s" in problem


def test_kwargs_of_no_template_are_refused(good: Path) -> None:
    (problem,) = problems(good, chat_template_kwargs={"enable_thinking": True})
    assert "chat_template_kwargs: the chat template does not take enable_thinking" in problem
