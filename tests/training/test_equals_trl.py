"""DPO, NLL, reward and RLOO losses against TRL's own trainers: same rows, same model, batch by batch of a training.

TRL tokenises, collates and trains by itself, on one padded row per completion; ours go through packed rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from alignloop.chat.format import ChatFormat
from alignloop.chat.load import load_format
from alignloop.chat.tokens import CompletionTokens
from alignloop.config.bundled import QUICKSTART
from alignloop.config.rloo import RlooConfig
from alignloop.config.training import DpoConfig, DpoLoss
from alignloop.data.readers import read_preferences
from alignloop.objectives.rloo import leave_one_out
from alignloop.packing.build import ranked_groups
from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.progress import QuietProgress
from alignloop.records import Message, PreferenceRow, Source
from alignloop.training.model import CompletionRewards, TokenLogprobs, load_policy, load_reward_model, pad_token_id_of
from alignloop.training.objectives import DpoStep, RewardStep, RlooStep, StepLoss, count_step
from alignloop.training.reference import reference_sums
from alignloop.training.rows import RowRunner

BATCHES = 4
PAIRS = 6
"""Pairs a batch: six groups of two, or two groups of three."""
MAX_TOKENS = 512
TOLERANCE = 1e-5
LEARNING_RATE, MAX_GRAD_NORM = 0.05, 1.0
CENTER = 0.01
"""What TRL recommends for `center_rewards_coefficient`."""

# Headers end in a special token: rendered alone and with an answer, a prompt then has the same ids, so that TRL, which
# tokenises both and cuts at the common prefix, sees the very rows that we do.
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

OBJECTS = ("a lamp", "two boats", "the old clock", "a red kite", "some bread", "my bicycle")


def rows_in_the_test() -> list[PreferenceRow]:
    rows = []
    for number in range(2 * PAIRS):
        thing = OBJECTS[number % len(OBJECTS)]
        dialog = [Message(role="user", content=f"Tell me about {thing}, {number} times. " * (1 + number % 4))]
        if number % 3 == 0:
            answer = Message(role="assistant", content=f"Which side of {thing}?")
            dialog = [Message(role="system", content="Be brief."), *dialog, answer, dialog[0]]
        rows.append(
            PreferenceRow(
                id=f"row-{number}",
                messages=dialog,
                edited=f"{thing} is what I would look at {'first ' * (number % 5)}and last.",
                chosen=f"I like {thing}." + " Very much so!" * (number % 7),
                rejected=f"{number} {'no ' * (1 + number % 11)}",
                source=Source(file="here", line=number + 1),
            )
        )
    return rows


@dataclass(frozen=True)
class Setting:
    """What both sides get: checkpoints, and BATCHES * PAIRS rows."""

    policy: Path
    reference: Path
    reward: Path
    rows: list[PreferenceRow]
    chat: ChatFormat


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    root = tmp_path_factory.mktemp("trl")
    candidates = (
        rows_in_the_test()
        + read_preferences([QUICKSTART / "data" / "preferences.jsonl"], max_bad_fraction=0.0).rows[:40]
    )
    tokenizer = trained_tokenizer(candidates)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.1,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = LlamaForCausalLM(config)
        policy.save_pretrained(root / "policy")
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        policy.save_pretrained(root / "reference")
        config.num_labels = 1
        LlamaForSequenceClassification(config).save_pretrained(root / "reward")
    for name in ("policy", "reference", "reward"):
        tokenizer.save_pretrained(root / name)
    chat = load_format(root / "policy")
    short = [row for row in candidates if ranked_groups([row], chat)[0].longest <= MAX_TOKENS]
    assert len(short) >= BATCHES * PAIRS
    return Setting(root / "policy", root / "reference", root / "reward", short[: BATCHES * PAIRS], chat)


def trained_tokenizer(rows: Sequence[PreferenceRow]) -> Any:
    """A byte-level BPE of 1,024 tokens from the rows' own text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [text for row in rows for text in (*(m.content for m in row.messages), row.chosen, row.rejected)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[1:4],
    )
    fast.chat_template = TEMPLATE
    return fast


# ---- theirs


def trl_run(job: dict[str, Any], out_dir: Path) -> dict[str, Any]:
    """What TRL's trainer computed: `steps` (losses of each batch), `ids` (its rows), and its weights in `out_dir`."""
    out_dir.mkdir()
    path = out_dir / "job.json"
    shared = {"out_dir": str(out_dir), "batch_pairs": PAIRS}
    rates = {"learning_rate": LEARNING_RATE, "max_grad_norm": MAX_GRAD_NORM}
    path.write_text(json.dumps({**job, **shared, **rates}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(out_dir / "cache")}
    command = [sys.executable, str(Path(__file__).with_name("trl_losses.py")), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    computed: dict[str, Any] = json.loads((out_dir / "losses.json").read_text())
    return computed


def conversational(messages: Sequence[Message], chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": m.role, "content": m.content} for m in messages],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


# ---- ours


def our_run(
    module: Any,
    step_loss: StepLoss,
    groups: Sequence[PromptGroup],
    *,
    batch_groups: int,
    others: Mapping[str, StepLoss] | None = None,
) -> list[dict[str, float]]:
    """Loss and metrics of each batch of a training by plain SGD, as the trainer takes its steps; and `others` on the
    same batches, with the norms of their gradients."""
    runner, parameters = runner_for(module, groups), list(module.parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    steps = []
    for start in range(0, len(groups), batch_groups):
        numbers = range(start, start + batch_groups)
        batch = [groups[number] for number in numbers]
        counts = count_step(batch)
        noted: dict[str, float] = {"loss": 0.0}
        gradients = {name: [torch.zeros_like(each) for each in parameters] for name in others or {}}
        for cut in runner.cuts(runner.pack(batch)):
            rows = runner.batch(cut)
            output = runner.forward(module, rows)
            for name, other in (others or {}).items():
                value, _ = other(output, batch=rows, counts=counts, group_numbers=numbers)
                noted[name] = noted.get(name, 0.0) + float(value.detach())
                shares = torch.autograd.grad(value, parameters, retain_graph=True)
                gradients[name] = [before + share for before, share in zip(gradients[name], shares, strict=True)]
            loss, metrics = step_loss(output, batch=rows, counts=counts, group_numbers=numbers)
            loss.backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                noted[name] = noted.get(name, 0.0) + float(value)
        for name, summed in gradients.items():
            noted[f"{name} gradient"] = float(torch.stack([gradient.norm() for gradient in summed]).norm())
        torch.nn.utils.clip_grad_norm_(module.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        steps.append(noted)
    return steps


def runner_for(module: Any, groups: Sequence[PromptGroup]) -> RowRunner:
    """Two rows a microbatch: a batch needs several, as in real training."""
    mode = choose_layout(module.model.base_model, longest=MAX_TOKENS, progress=QuietProgress())
    assert mode == "packed"
    return RowRunner(
        mode=mode,
        row_tokens=2 * MAX_TOKENS,
        rows=2,
        pad_token_id=pad_token_id_of(module.model),
        device=torch.device("cpu"),
        bfloat16=False,
        progress=QuietProgress(),
    )


@dataclass(frozen=True)
class BothRuns:
    """Steps of both trainings, and how far the weights moved and lie apart at the end."""

    theirs: list[dict[str, float]]
    ours: list[dict[str, float]]
    moved: float
    apart: float


def weights_apart(model: Any, checkpoint: Path) -> float:
    saved = load_file(checkpoint / "model.safetensors")
    state = model.state_dict()
    assert saved
    return max(float((state[name] - weight).abs().max()) for name, weight in saved.items())


# So many flips that `robust` is far from `sigmoid`.
FLIPPED: dict[str, Any] = {"robust": {"label_smoothing": 0.3}}
LOSSES = {
    loss: DpoConfig(loss=loss, mask_formatting_tokens=False, nll_coefficient=0.0, **FLIPPED.get(loss, {}))
    for loss in get_args(DpoLoss)
}
WITH_REFERENCE = [name for name, config in LOSSES.items() if config.has_reference]


def trl_attributes(config: DpoConfig) -> dict[str, Any]:
    smoothing = {} if config.label_smoothing is None else {"label_smoothing": config.label_smoothing}
    return {"loss_types": [config.loss], "loss_weights": [1.0], "beta": config.beta, **smoothing}


@pytest.fixture(scope="module")
def dpo_runs(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> BothRuns:
    rows = [row.model_copy(update={"edited": None}) for row in setting.rows]
    out_dir = tmp_path_factory.mktemp("dpo") / "trl"
    terms = {name: trl_attributes(LOSSES[name]) for name in WITH_REFERENCE}
    terms["sft"] = {"loss_types": ["sft"], "loss_weights": [1.0]}
    job = {"trainer": "dpo", "model": str(setting.policy), "reference": str(setting.reference), "terms": terms}
    theirs = trl_run({**job, "rows": [conversational(row.messages, row.chosen, row.rejected) for row in rows]}, out_dir)
    groups = ranked_groups(rows, setting.chat)
    assert_same_ids(groups, theirs["ids"])

    reference = TokenLogprobs(load_policy(setting.reference))
    sums = reference_sums(reference, groups, passes=runner_for(reference, groups), mask_formatting_tokens=False)
    module = TokenLogprobs(load_policy(setting.policy))
    step_loss = DpoStep(sums, DpoConfig(mask_formatting_tokens=False))
    others = {name: DpoStep(sums, LOSSES[name]) for name in WITH_REFERENCE}
    ours = our_run(module, step_loss, groups, batch_groups=PAIRS, others=others)
    moved, apart = (weights_apart(module.model, checkpoint) for checkpoint in (setting.policy, out_dir))
    return BothRuns(theirs["steps"], ours, moved, apart)


@pytest.fixture(scope="module")
def simpo_runs(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> BothRuns:
    rows = [row.model_copy(update={"edited": None}) for row in setting.rows]
    out_dir = tmp_path_factory.mktemp("simpo") / "trl"
    config = LOSSES["simpo"]
    job = {
        "trainer": "cpo",
        "model": str(setting.policy),
        "simpo": {"beta": config.beta, "simpo_gamma": config.gamma},
        "terms": {"simpo": {"cpo_alpha": 0.0}},
        "rows": [conversational(row.messages, row.chosen, row.rejected) for row in rows],
    }
    theirs = trl_run(job, out_dir)
    groups = ranked_groups(rows, setting.chat)
    assert_same_ids(groups, theirs["ids"])
    module = TokenLogprobs(load_policy(setting.policy))
    step_loss = DpoStep(None, DpoConfig(loss="simpo", mask_formatting_tokens=False))
    others = {"simpo": DpoStep(None, config)}
    ours = our_run(module, step_loss, groups, batch_groups=PAIRS, others=others)
    moved, apart = (weights_apart(module.model, checkpoint) for checkpoint in (setting.policy, out_dir))
    return BothRuns(theirs["steps"], ours, moved, apart)


def assert_same_ids(groups: Sequence[PromptGroup], rows: Sequence[dict[str, list[int]]]) -> None:
    for group, ids in zip(groups, rows, strict=True):
        assert list(group.prompt_ids) == ids["prompt_ids"]
        assert [list(c.token_ids) for c in group.completions] == [ids["chosen_ids"], ids["rejected_ids"]]


@pytest.fixture(
    scope="module",
    params=[(2, 0.0), (3, 0.0), (2, CENTER), (3, CENTER)],
    ids=["pairs", "three-way", "centred pairs", "centred three-way"],
)
def reward_runs(request: pytest.FixtureRequest, setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> BothRuns:
    rows, (num_ranked, center) = setting.rows, request.param
    if num_ranked == 2:
        rows = [row.model_copy(update={"edited": None}) for row in rows]
        ranked = [(row, (row.chosen, row.rejected)) for row in rows]
    else:
        # Two groups a batch; where nobody edited, the answer to another prompt ranks last.
        rows = [three_way(rows[first], rows[first + 1]) for first in range(0, len(rows), 3)]
        ranked = [(row, (row.edited or "", row.chosen, row.rejected)) for row in rows]
    pairs = [
        conversational(row.messages, texts[better], texts[worse])
        for row, texts in ranked
        for better in range(len(texts))
        for worse in range(better + 1, len(texts))
    ]
    out_dir = tmp_path_factory.mktemp("reward") / "trl"
    job = {"trainer": "reward", "model": str(setting.reward), "center": center or None, "rows": pairs}
    theirs = trl_run(job, out_dir)
    groups = ranked_groups(rows, setting.chat)
    expected = [
        [list(group.prompt_ids + group.completions[number].token_ids) for number in (better, worse)]
        for group in groups
        for better in range(len(group.ranks))
        for worse in range(better + 1, len(group.ranks))
    ]
    assert [[ids["chosen_ids"], ids["rejected_ids"]] for ids in theirs["ids"]] == expected

    module = CompletionRewards(load_reward_model(setting.reward, seed=0, must_have_head=True))
    step_loss = RewardStep(center_rewards=center)
    ours = our_run(module, step_loss, groups, batch_groups=PAIRS if num_ranked == 2 else PAIRS // 3)
    # Centring costs far more than what the two may differ by.
    assert all(("squared_sum" in step) == bool(center) for step in ours)
    assert all(center * step["squared_sum"] > 100 * TOLERANCE for step in ours if center)
    moved, apart = (weights_apart(module.model, checkpoint) for checkpoint in (setting.reward, out_dir))
    return BothRuns(theirs["steps"], ours, moved, apart)


def three_way(row: PreferenceRow, other: PreferenceRow) -> PreferenceRow:
    if row.edited is not None:
        return row
    return row.model_copy(update={"edited": row.chosen, "chosen": row.rejected, "rejected": other.chosen})


# ---- the same


def test_dpo_and_nll_losses_and_the_weights_after_them_are_trls(dpo_runs: BothRuns) -> None:
    for theirs, ours in zip(dpo_runs.theirs, dpo_runs.ours, strict=True):
        assert ours["dpo_loss"] == pytest.approx(theirs["sigmoid"], abs=TOLERANCE)
        assert ours["nll_loss"] == pytest.approx(theirs["sft"], abs=TOLERANCE)
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)
        assert theirs["loss"] == pytest.approx(theirs["sigmoid"] + 0.2 * theirs["sft"], abs=TOLERANCE)
    assert len(dpo_runs.ours) == BATCHES
    assert dpo_runs.moved > 1e-3
    assert dpo_runs.apart < 1e-4 * dpo_runs.moved


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_every_loss_with_a_reference_and_its_gradient_are_trls(dpo_runs: BothRuns, name: str) -> None:
    for theirs, ours in zip(dpo_runs.theirs, dpo_runs.ours, strict=True):
        assert ours[name] == pytest.approx(theirs[name], abs=TOLERANCE)
        gradient = f"{name} gradient"
        assert ours[gradient] == pytest.approx(theirs[gradient], rel=1e-4)
    values = {round(ours[name], 4) for ours in dpo_runs.ours}
    assert len(values) == BATCHES
    # No two are the same on these rows: one would not pass for another.
    far = 10 * TOLERANCE
    for other in set(WITH_REFERENCE) - {name}:
        assert any(abs(ours[name] - ours[other]) > far for ours in dpo_runs.ours), other


def test_simpo_losses_and_the_weights_after_them_are_trls(simpo_runs: BothRuns) -> None:
    for theirs, ours in zip(simpo_runs.theirs, simpo_runs.ours, strict=True):
        assert ours["simpo"] == pytest.approx(theirs["simpo"], abs=TOLERANCE)
        assert ours["simpo gradient"] == pytest.approx(theirs["simpo gradient"], rel=1e-4)
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)
        assert ours["dpo_loss"] == pytest.approx(ours["simpo"], abs=1e-6)
    assert len(simpo_runs.ours) == BATCHES
    assert simpo_runs.moved > 1e-3
    assert simpo_runs.apart < 1e-4 * simpo_runs.moved


def test_reward_losses_and_the_weights_after_them_are_trls(reward_runs: BothRuns) -> None:
    for theirs, ours in zip(reward_runs.theirs, reward_runs.ours, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)
    assert len(reward_runs.ours) == BATCHES
    assert reward_runs.moved > 1e-3
    assert reward_runs.apart < 1e-4 * reward_runs.moved


# ---- RLOO: TRL samples, and both train on that


NUM_CANDIDATES, STEPS_A_BATCH = 4, 4
RLOO = {
    "num_generations": NUM_CANDIDATES,
    "per_device_train_batch_size": 2 * NUM_CANDIDATES,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_completion_length": 12,
    "beta": 0.05,
    "max_steps": 2 * STEPS_A_BATCH,
}


@dataclass(frozen=True)
class RlooRuns:
    """Of each batch the sums of what was sampled and the advantages, of each step the loss; theirs, then ours."""

    sums: tuple[list[float], list[float]]
    advantages: tuple[list[float], list[float]]
    losses: tuple[list[float], list[float]]
    clip_shares: list[float]
    moved: float
    apart: float


@pytest.fixture(scope="module")
def rloo_runs(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> RlooRuns:
    out_dir = tmp_path_factory.mktemp("rloo") / "trl"
    prompts = [{"prompt": [{"role": m.role, "content": m.content} for m in row.messages]} for row in setting.rows]
    theirs = trl_run({"trainer": "rloo", "model": str(setting.policy), "rows": prompts, "rloo": RLOO}, out_dir)
    reference = TokenLogprobs(load_policy(setting.policy))
    module = TokenLogprobs(load_policy(setting.policy))
    sums, advantages, losses, shares = [], [], [], []
    for number, step in enumerate(theirs["steps"]):
        if number % STEPS_A_BATCH == 0:
            batch = theirs["batches"][number // STEPS_A_BATCH]
            old, ref = (batch_sums(model, batch) for model in (module, reference))
            sums += old.flatten().tolist()
            found = leave_one_out(
                torch.tensor(batch["rewards"]).view(-1, NUM_CANDIDATES), kl=old - ref, kl_coefficient=0.05
            )
            advantages += found.flatten().tolist()
        groups, places = grouped(step)
        of_groups = {
            name: [tuple(step[name][place] for place in own) for own in places] for name in ("old_logps", "advantages")
        }
        step_loss = RlooStep(RlooConfig(), of_groups["old_logps"], of_groups["advantages"])
        (noted,) = our_run(module, step_loss, groups, batch_groups=len(groups))
        losses.append(noted["loss"])
        shares.append(noted["clip_share"])
    moved, apart = (weights_apart(module.model, checkpoint) for checkpoint in (setting.policy, out_dir))
    return RlooRuns(
        sums=([value for batch in theirs["batches"] for value in batch["old_logps"]], sums),
        advantages=([value for batch in theirs["batches"] for value in batch["advantages"]], advantages),
        losses=([step["loss"] for step in theirs["steps"]], losses),
        clip_shares=shares,
        moved=moved,
        apart=apart,
    )


def grouped(rows: Mapping[str, Any]) -> tuple[list[PromptGroup], list[list[int]]]:
    """Completions with one prompt as one group, and their places in the rows."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(rows["prompts"]):
        places.setdefault(tuple(prompt), []).append(place)
    groups = []
    for prompt, own in places.items():
        ids = [tuple(rows["completions"][place]) for place in own]
        completions = tuple(CompletionTokens(each, (False,) * len(each)) for each in ids)
        groups.append(PromptGroup(f"group {len(groups)}", prompt, completions, tuple(range(len(own)))))
    return groups, list(places.values())


def batch_sums(module: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    groups, _ = grouped(batch)
    passes = runner_for(module, groups)
    return torch.tensor(reference_sums(module, groups, passes=passes, mask_formatting_tokens=False))


def test_rloo_losses_advantages_and_the_weights_after_them_are_trls(rloo_runs: RlooRuns) -> None:
    theirs, ours = rloo_runs.losses
    assert len(ours) == 2 * STEPS_A_BATCH
    assert ours == pytest.approx(theirs, abs=TOLERANCE)
    for theirs, ours in (rloo_runs.sums, rloo_runs.advantages):
        assert len(ours) == 2 * 4 * NUM_CANDIDATES
        # TRL has its sums in float32.
        assert ours == pytest.approx(theirs, rel=1e-6, abs=TOLERANCE)
    assert any(rloo_runs.clip_shares), "no step was clipped: the test says little"
    assert rloo_runs.moved > 1e-3
    assert rloo_runs.apart < 1e-4 * rloo_runs.moved
