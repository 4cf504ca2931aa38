"""The trainer on a tiny Llama: what it writes, that it learns, that it is exact and can be killed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignloop.config.training import LoraConfig, SftConfig, TrainingConfig
from alignloop.errors import ModelError, TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.training import model as models
from alignloop.training.job import OPTIMIZER, learning_rate, step_batches
from alignloop.training.loop import train
from alignloop.training.objectives import OBJECTIVES, Objective, sft_step

MakeGroups = Callable[..., list[PromptGroup]]


# ---- what comes out


@pytest.mark.parametrize("objective", ["reward", "dpo"])
def test_preferences_are_learnt(run: Any, objective: str, tmp_path: Path) -> None:
    result = run(objective, tmp_path, epochs=12)
    rows = run.log(tmp_path)
    assert result.num_steps == len(rows) == 36
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert result.metrics["eval_accuracy"] > 0.9
    assert set(rows[0]) >= {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second"}


def test_sft_learns_on_rows_it_has_not_seen(run: Any, tmp_path: Path, make_groups: MakeGroups) -> None:
    # 200 rows: the tokens are random within a range, and 24 rows would be learnt by heart instead of the range.
    result = run("sft", tmp_path, groups=make_groups(200, completions=1), epochs=2)
    assert result.metrics["eval_loss"] < math.log(64) - 0.3


def test_sft_steps_are_those_of_a_plain_loop(run: Any, policy: Path, tmp_path: Path, make_groups: MakeGroups) -> None:
    """transformers' own logits on one row at a time, torch's AdamW, nothing of ours but order and learning rate."""
    groups = make_groups(24, completions=1)
    run("sft", tmp_path, groups=groups)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    config = SftConfig(batch_groups=8, learning_rate=3e-3)
    batches = step_batches([1] * 24, config=config, seed=5)
    for step, (batch, row) in enumerate(zip(batches, run.log(tmp_path), strict=True)):
        optimizer.param_groups[0]["lr"] = learning_rate(step, num_steps=3, config=config)
        logprobs = torch.cat([plain_logprobs(model, groups[number]) for number in batch])
        loss = -logprobs.mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert row["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
        assert row["grad_norm"] == pytest.approx(float(grad_norm), rel=1e-4)


def plain_logprobs(model: Any, group: PromptGroup) -> torch.Tensor:
    completion = group.completions[0].token_ids
    ids = torch.tensor([group.prompt_ids + completion])
    where = torch.arange(len(group.prompt_ids) - 1, ids.shape[1] - 1)
    return model(input_ids=ids).logits[0].log_softmax(-1)[where, torch.tensor(completion)]


def test_another_objective_trains_by_its_entry_alone(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of SFT's loss: the same steps at a gradient half as long."""

    def half(*arguments: Any, **named: Any) -> Any:
        loss, metrics = sft_step(*arguments, **named)
        return loss / 2, {"half": loss.detach() / 2, **metrics}

    entry = Objective(unfit=lambda group: None, losses=lambda job, processes: (half, half))
    monkeypatch.setitem(OBJECTIVES, "half", entry)  # type: ignore[arg-type]
    run("sft", tmp_path / "sft")
    train(replace(run.job("sft", tmp_path / "half"), objective="half"))
    first, whole = run.log(tmp_path / "half")[0], run.log(tmp_path / "sft")[0]
    assert first["loss"] == first["half"] == pytest.approx(whole["loss"] / 2)
    assert first["grad_norm"] == pytest.approx(whole["grad_norm"] / 2, rel=1e-5)


def test_two_trainings_with_one_optimizer_are_one(
    run: Any, policy: Path, tmp_path: Path, make_groups: MakeGroups
) -> None:
    """One group a training, at one rate: two epochs, or one and one more that goes on with the optimizer's state."""
    knobs: dict[str, Any] = {
        "groups": make_groups(1, completions=2),
        "reference": policy,
        "warmup_fraction": 0.0,
        "final_lr_fraction": 1.0,
    }
    whole = run("dpo", tmp_path / "whole", epochs=2, **knobs).checkpoints[-1]
    first = run("dpo", tmp_path / "first", keeps_optimizer=True, **knobs).checkpoints[-1]
    state = tmp_path / "first" / OPTIMIZER
    second = run("dpo", tmp_path / "second", checkpoint=first, optimizer=state, **knobs).checkpoints[-1]
    anew = run("dpo", tmp_path / "anew", checkpoint=first, **knobs).checkpoints[-1]
    assert run.digest(second) == run.digest(whole) != run.digest(anew)
    # Nothing that this training ends with is kept unless it is asked for.
    assert not (tmp_path / "second" / OPTIMIZER).exists()


def test_the_optimizer_of_another_model_is_refused(run: Any, tmp_path: Path) -> None:
    run("dpo", tmp_path / "dpo", keeps_optimizer=True)
    with pytest.raises(TrainingError, match=r"state of another model: model\.score\.weight is not there"):
        run("reward", tmp_path / "reward", optimizer=tmp_path / "dpo" / OPTIMIZER)


def test_a_policy_checkpoint_is_complete_and_trackers_have_what_the_log_has(
    run: Any, policy: Path, tmp_path: Path
) -> None:
    training = TrainingConfig(trackers=("tensorboard",) if find_spec("tensorboard") else ())
    result = run("sft", tmp_path, num_checkpoints=2, average_span=0.5, epochs=2, training=training)
    assert [path.name for path in result.checkpoints] == ["step-000003", "step-000006"]
    last = result.checkpoints[-1]
    assert AutoTokenizer.from_pretrained(last).chat_template == AutoTokenizer.from_pretrained(policy).chat_template
    assert (last / "generation_config.json").read_bytes() == (policy / "generation_config.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(last)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert run.digest(result.checkpoints[0]) != run.digest(last)
    assert not (tmp_path / "resume").exists()
    if not training.trackers:
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told, rows = EventAccumulator(str(tmp_path / "tensorboard")).Reload(), run.log(tmp_path)
    for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "nll_loss", "eval_loss"):
        values = {event.step: event.value for event in told.Scalars(f"train/{name}")}
        assert values == pytest.approx({row["step"]: row[name] for row in rows if name in row}, rel=1e-5)


def test_a_reward_checkpoint_is_a_classifier_of_one_label(run: Any, tmp_path: Path) -> None:
    result = run("reward", tmp_path)
    config = json.loads((result.checkpoints[0] / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert len(config["id2label"]) == 1
    assert config["pad_token_id"] == 0
    assert config.get("problem_type") is None
    assert not (result.checkpoints[0] / "generation_config.json").exists()
    model = AutoModelForSequenceClassification.from_pretrained(result.checkpoints[0])
    assert model.score.weight.shape == (1, 32)
    # And it is where the next round's reward model starts from, its head kept.
    again = run("reward", tmp_path / "next", checkpoint=result.checkpoints[0], learning_rate=1e-12)
    next_model = AutoModelForSequenceClassification.from_pretrained(again.checkpoints[0])
    torch.testing.assert_close(next_model.score.weight, model.score.weight, atol=1e-8, rtol=0)


def test_held_out_rows_are_measured_at_every_kept_checkpoint(run: Any, tmp_path: Path, make_groups: MakeGroups) -> None:
    knobs = {"epochs": 2, "num_checkpoints": 3, "average_span": 0.7}
    result = run("dpo", tmp_path / "a", **knobs)
    assert [path.name for path in result.checkpoints] == ["step-000002", "step-000004", "step-000006"]
    rows = run.log(tmp_path / "a")
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4, 6]
    for step, metrics in zip((2, 4, 6), result.checkpoint_metrics, strict=True):
        assert metrics == {name[5:]: value for name, value in rows[step - 1].items() if name.startswith("eval_")}
        assert {"loss", "accuracy", "dpo_loss"} <= metrics.keys()
    assert len({metrics["loss"] for metrics in result.checkpoint_metrics}) == 3
    last = {name[5:]: value for name, value in result.metrics.items() if name.startswith("eval_")}
    assert last == result.checkpoint_metrics[-1]
    # What is measured is that checkpoint: trained no further from there, it measures the same.
    again = run("sft", tmp_path / "b", checkpoint=result.checkpoints[1], learning_rate=1e-12, max_steps=1)
    eval_groups = make_groups(8, completions=1, seed=1)
    model = AutoModelForCausalLM.from_pretrained(result.checkpoints[1], dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = torch.cat([plain_logprobs(model, group) for group in eval_groups])
    assert again.checkpoint_metrics[0]["loss"] == pytest.approx(-float(logprobs.mean()), abs=1e-5)
    # Without held-out rows there is nothing to measure, and still one entry a checkpoint.
    bare = run("sft", tmp_path / "c", eval_groups=[], num_checkpoints=2, average_span=0.5)
    assert bare.checkpoint_metrics == ({}, {})
    assert not any(name.startswith("eval_") for name in bare.metrics)


def test_a_margin_counts_by_the_strength_of_each_row(run: Any, tmp_path: Path, make_groups: MakeGroups) -> None:
    silent = make_groups(24, completions=3)
    strong = [replace(group, strength="significantly_better") for group in silent]
    plain = run("reward", tmp_path / "plain", groups=strong)
    unsaid = run("reward", tmp_path / "unsaid", groups=silent, margin=3.0)
    assert run.digest(plain.checkpoints[-1]) == run.digest(unsaid.checkpoints[-1])
    run("reward", tmp_path / "margin", groups=strong, margin=3.0)
    first, wide = run.log(tmp_path / "plain")[0], run.log(tmp_path / "margin")[0]
    # A new head's rewards are next to zero: of three pairs one is at -log sigmoid(-3) in place of log 2.
    assert first["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert wide["loss"] - first["loss"] == pytest.approx((math.log(1 + math.exp(3)) - math.log(2)) / 3, abs=0.1)
    assert wide["margin"] == pytest.approx(first["margin"], abs=1e-6)


# ---- exactness


@pytest.mark.parametrize("objective", ["reward", "sft", "dpo"])
def test_the_same_arguments_give_the_same_bytes_and_leave_the_global_generator_alone(
    run: Any, objective: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(objective, tmp_path / "a")
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = run(objective, tmp_path / "b")
    assert run.digest(first.checkpoints[-1]) == run.digest(second.checkpoints[-1])
    other = run(objective, tmp_path / "c", seed=6)
    assert run.digest(first.checkpoints[-1]) != run.digest(other.checkpoints[-1])


@pytest.mark.parametrize("objective", ["reward", "sft", "dpo"])
def test_the_loss_does_not_depend_on_how_a_step_is_cut_nor_on_packing(run: Any, objective: str, tmp_path: Path) -> None:
    one = run(objective, tmp_path / "one", rows_per_microbatch=1, row_tokens=16)
    many = run(objective, tmp_path / "many", rows_per_microbatch=64, row_tokens=256)
    checkpointed = run(objective, tmp_path / "gc", gradient_checkpointing=True)
    separate = run(objective, tmp_path / "separate", training=TrainingConfig(layout="separate"))
    for name, rows in ((name, run.log(tmp_path / name)) for name in ("many", "gc", "separate")):
        for ours, theirs in zip(run.log(tmp_path / "one"), rows, strict=True):
            if name == "separate":
                assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-4)
                assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], abs=2e-3, rel=2e-3)
                continue
            for key in set(ours) - {"tokens_per_second"}:
                assert ours[key] == pytest.approx(theirs[key], abs=2e-4, rel=2e-4), (name, key)
    assert one.num_tokens == many.num_tokens == checkpointed.num_tokens == separate.num_tokens


@pytest.mark.parametrize(
    ("objective", "killed_after", "more"),
    [
        ("reward", 3, {}),
        ("dpo", 3, {"weight_decay": 0.1}),
        ("sft", 1, {}),
        ("sft", 5, {"gradient_checkpointing": True}),
        ("dpo", 5, {"train_tokens": 100_000, "epochs": 1, "max_steps": 6}),
        ("sft", 3, {"lora": LoraConfig(rank=4)}),
    ],
)
def test_killed_and_started_again_it_ends_in_the_same_bytes(
    run: Any, objective: str, killed_after: int, more: dict[str, Any], tmp_path: Path
) -> None:
    knobs = {"epochs": 2, "save_every_steps": 2, "num_checkpoints": 2, "average_span": 0.5, **more}
    whole = run(objective, tmp_path / "whole", **knobs)
    run.killed(objective, tmp_path / "cut", after=killed_after, **knobs)
    resumed = run(objective, tmp_path / "cut", **knobs)
    assert [run.digest(path) for path in resumed.checkpoints] == [run.digest(path) for path in whole.checkpoints]
    saved = killed_after // 2 * 2
    assert any(f"going on after step {saved} of 6" in line for line in run.said) == (saved > 0)
    assert [row["step"] for row in run.log(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]
    assert resumed.metrics == pytest.approx(whole.metrics)
    assert resumed.checkpoint_metrics == whole.checkpoint_metrics


def test_a_resume_point_of_other_arguments_is_not_used(run: Any, tmp_path: Path) -> None:
    run.killed("sft", tmp_path / "a", after=2, save_every_steps=1)
    changed = run("sft", tmp_path / "a", learning_rate=1e-3, save_every_steps=1)
    fresh = run("sft", tmp_path / "b", learning_rate=1e-3, save_every_steps=1)
    assert run.digest(changed.checkpoints[-1]) == run.digest(fresh.checkpoints[-1])


# ---- DPO's reference


def test_dpo_starts_at_ln_2_and_caches_its_reference(run: Any, tmp_path: Path) -> None:
    result = run("dpo", tmp_path)
    assert result.metrics["step_0_dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)
    path = tmp_path / "reference_logprobs.json"
    cached = json.loads(path.read_text())
    assert len(cached["sums"]) == 24 + 8
    # A cache of the right key with wrong numbers in it must be caught at step 0.
    cached["sums"] = [[0.0, 3.0]] * 32
    path.write_text(json.dumps(cached))
    with pytest.raises(TrainingError, match="not at ln 2"):
        run("dpo", tmp_path)
    # A key that does not fit is computed anew.
    path.write_text(json.dumps(cached | {"key": "another"}))
    assert run("dpo", tmp_path).metrics["step_0_dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        ("sigmoid_norm", 0.69315),
        ("ipo", 25.0),
        ("hinge", 1.0),
        ("robust", 0.69315),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
    ],
)
def test_every_loss_starts_where_it_must_and_learns(run: Any, tmp_path: Path, loss: str, start: float) -> None:
    knobs = {"loss": loss, "epochs": 4, "nll_coefficient": 0.0}
    result = run("dpo", tmp_path, **knobs)
    assert result.metrics["step_0_dpo_loss"] == pytest.approx(start, abs=2e-4)
    first, last = (run.log(tmp_path)[index] for index in (0, -1))
    assert last["dpo_loss"] < first["dpo_loss"]
    assert last["margin"] > first["margin"] + 1e-3
    assert last["accuracy"] > 0.9
    # Wrong numbers of the reference are caught at step 0.
    path = tmp_path / "reference_logprobs.json"
    cached = json.loads(path.read_text())
    path.write_text(json.dumps(cached | {"sums": [[0.0, 3.0]] * 32}))
    with pytest.raises(TrainingError, match=f"not at {'ln 2 = ' if start < 1 else ''}{start:.5f}"):
        run("dpo", tmp_path, **knobs)


def test_simpo_has_no_reference_and_starts_anywhere(run: Any, tmp_path: Path) -> None:
    run("dpo", tmp_path, loss="simpo", epochs=4, reference=None)
    assert not (tmp_path / "reference_logprobs.json").exists()
    first, last = (run.log(tmp_path)[index] for index in (0, -1))
    assert last["dpo_loss"] < first["dpo_loss"]
    assert last["accuracy"] > 0.9


def test_a_margin_of_dpo_moves_where_it_starts(run: Any, tmp_path: Path, make_groups: MakeGroups) -> None:
    groups = [replace(group, reward_gap=2.0) for group in make_groups(24, completions=2)]
    result = run("dpo", tmp_path / "a", groups=groups, margin="reward", margin_scale=0.5)
    # ln(1 + e^(0.5 * 2)) = 1.313262; the held-out pairs have no gap, and so no margin.
    assert result.metrics["step_0_dpo_loss"] == pytest.approx(1.313262, abs=1e-4)
    assert result.metrics["eval_dpo_loss"] < 0.7
    plain = run("dpo", tmp_path / "b", groups=groups)
    assert run.digest(result.checkpoints[-1]) != run.digest(plain.checkpoints[-1])


# ---- what goes wrong


def change_forward(monkeypatch: pytest.MonkeyPatch, factor: Callable[[Any], float]) -> None:
    """Of every policy from here on: the logprobs of a batch times `factor(batch)`."""
    original = models.TokenLogprobs.forward
    monkeypatch.setattr(models.TokenLogprobs, "forward", lambda self, batch: original(self, batch) * factor(batch))


def test_out_of_memory_halves_the_microbatch_and_says_so(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run("sft", tmp_path / "plain", rows_per_microbatch=2, row_tokens=24)

    def small_memory(batch: Any) -> float:
        if batch.input_ids.numel() > 2 * 24:
            raise torch.OutOfMemoryError("out of memory")
        return 1.0

    change_forward(monkeypatch, small_memory)
    result = run("sft", tmp_path / "small", rows_per_microbatch=8, row_tokens=24)
    assert run.said == [
        "out of memory: going on with 4 rows per microbatch",
        "out of memory: going on with 2 rows per microbatch",
    ]
    assert run.digest(result.checkpoints[-1]) == run.digest(plain.checkpoints[-1])


def test_no_memory_for_one_row_says_what_to_lower(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(batch: Any) -> float:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    change_forward(monkeypatch, no_memory)
    with pytest.raises(TrainingError, match=r"out of memory with one row of 512 tokens.*max_length"):
        run("sft", tmp_path)


def test_a_loss_that_is_not_finite_names_the_step_and_the_rows(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = iter([1.0, 1.0, float("nan")])
    change_forward(monkeypatch, lambda batch: next(factors))
    with pytest.raises(TrainingError, match=r"loss is nan at step 3 of 3, rows: row-\d+"):
        run("sft", tmp_path, rows_per_microbatch=64, row_tokens=1024)


def test_token_ids_outside_the_embedding_and_models_that_are_not_there(
    run: Any, tmp_path: Path, make_groups: MakeGroups
) -> None:
    groups = make_groups(4, completions=1)
    groups[2] = PromptGroup("alien", (5, 64), groups[2].completions, (0,))
    with pytest.raises(ModelError, match=r"row alien has token id 64, but the embedding has only 64 rows"):
        run("sft", tmp_path, groups=groups)
    with pytest.raises(ModelError, match=r"no config.json"):
        run("sft", tmp_path, checkpoint=tmp_path / "nothing")
    with pytest.raises(TrainingError, match="needs a reference"):
        run("dpo", tmp_path, reference=None)


@pytest.mark.parametrize("objective", ["reward", "dpo"])
def test_bfloat16_autocast_keeps_float32_weights(
    run: Any, objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Emulated where the CPU has no bfloat16: slow, but the same code path as on a GPU.
    monkeypatch.setattr(models, "_cpu_has_bfloat16", lambda: True)
    result = run(objective, tmp_path / "bf16", dtype="bfloat16")
    run(objective, tmp_path / "exact")
    ours, theirs = run.log(tmp_path / "bf16"), run.log(tmp_path / "exact")
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=2e-2)
    assert ours[0]["grad_norm"] != theirs[0]["grad_norm"], "the forward pass ran in float32"
    if objective == "dpo":
        assert result.metrics["step_0_dpo_loss"] == pytest.approx(math.log(2), abs=2e-2)
    assert json.loads((result.checkpoints[-1] / "config.json").read_text())["dtype"] == "float32"


def test_a_cpu_without_bfloat16_uses_float32_and_says_so(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_cpu_has_bfloat16", lambda: False)
    result = run("sft", tmp_path / "a", dtype="bfloat16")
    assert any("no bfloat16" in line for line in run.said)
    exact = run("sft", tmp_path / "b")
    assert run.digest(result.checkpoints[-1]) == run.digest(exact.checkpoints[-1])


# ---- completions that see each other


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_completions_that_see_each_other_train_something_else(
    run: Any, lora: LoraConfig | None, tmp_path: Path
) -> None:
    """As in the paper's reward model: another first loss than with each completion alone, and a whole checkpoint."""
    result = run("reward", tmp_path / "seen", isolate=False, lora=lora)
    run("reward", tmp_path / "alone", isolate=True, lora=lora)
    seen, alone = run.log(tmp_path / "seen"), run.log(tmp_path / "alone")
    assert abs(seen[0]["loss"] - alone[0]["loss"]) > 1e-6
    assert all(math.isfinite(row["grad_norm"]) and row["grad_norm"] > 0 for row in seen)
    model = AutoModelForSequenceClassification.from_pretrained(result.checkpoints[-1])
    assert model.config.num_labels == 1
    assert (result.checkpoints[-1] / "adapter").is_dir() == (lora is not None)


def test_that_separate_rows_cannot_see_each_other_is_said(run: Any, policy: Path, tmp_path: Path) -> None:
    """A sliding window shorter than the rows keeps a model from packed ones."""
    from transformers import MistralConfig, MistralForCausalLM

    base = tmp_path / "base"
    shutil.copytree(policy, base)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, sliding_window=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MistralForCausalLM(config).save_pretrained(base)
    for isolate in (False, True):
        run("reward", tmp_path / str(isolate), checkpoint=base, isolate=isolate, max_steps=1)
        said = "reward.isolate: false changes nothing on separate rows" in " ".join(run.said)
        assert said is not isolate
        assert "training on separate rows" in " ".join(run.said)
