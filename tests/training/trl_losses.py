"""Trains with TRL's own trainer and prints what it computed. A process of its own for each trainer: a second
TrainingArguments breaks an earlier trainer.

    python trl_losses.py JOB.json    (written by test_equals_trl.py)
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, logging


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """Plain SGD over the pairs in their order, in float32."""
    return {
        "output_dir": job["out_dir"],
        "per_device_train_batch_size": job["batch_pairs"],
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "max_length": None,
        "optim": "sgd",
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": job["max_grad_norm"],
        "weight_decay": 0.0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def dpo_trainer(job: dict[str, Any], rows: Dataset, tokenizer: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    model, reference = (
        AutoModelForCausalLM.from_pretrained(job[name], dtype=torch.float32) for name in ("model", "reference")
    )
    config = DPOConfig(**settings(job), beta=0.1, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2])
    return DPOTrainer(model, ref_model=reference, args=config, train_dataset=rows, processing_class=tokenizer)


def reward_trainer(job: dict[str, Any], rows: Dataset, tokenizer: Any) -> Any:
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=torch.float32)
    config = RewardConfig(**settings(job), center_rewards_coefficient=job["center"])
    return RewardTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)


def cpo_trainer(job: dict[str, Any], rows: Dataset, tokenizer: Any) -> Any:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    longest = {"max_length": 4096}  # None is 512 here
    config = CPOConfig(**settings(job) | longest, loss_type="simpo", cpo_alpha=0.2, **job["simpo"])
    return CPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)


def rloo_trainer(job: dict[str, Any], rows: Dataset, tokenizer: Any) -> Any:
    """Its reward: a quarter of how many of a completion's tokens have an even id, and a tenth of its length."""
    from trl import RLOOConfig, RLOOTrainer

    def even_ids(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [sum(token % 2 == 0 for token in ids) / 4 + 0.1 * len(ids) for ids in completion_ids]

    shared = {name: value for name, value in settings(job).items() if name not in ("max_length", "num_train_epochs")}
    shared.pop("train_sampling_strategy")
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    config = RLOOConfig(**(shared | job["rloo"]), shuffle_dataset=False, seed=1)
    return RLOOTrainer(model, reward_funcs=even_ids, args=config, train_dataset=rows, processing_class=tokenizer)


def record_rloo(trainer: Any) -> dict[str, list[Any]]:
    """What the trainer samples, with rewards, old logprobs and advantages, and the loss of each of its steps with the
    rows it is of."""
    noted: dict[str, list[Any]] = {"batches": [], "steps": []}
    sample, compute_loss, rewards_of = (
        trainer._generate_and_score_completions,
        trainer._compute_loss,
        trainer._calculate_rewards,
    )

    def plain(inputs: Any) -> dict[str, Any]:
        def ids(kind: str) -> list[list[int]]:
            pairs = zip(inputs[f"{kind}_ids"], inputs[f"{kind}_mask"], strict=True)
            return [row[mask.bool()].tolist() for row, mask in pairs]

        numbers = {name: inputs[name].tolist() for name in ("old_logps", "advantages")}
        return {"prompts": ids("prompt"), "completions": ids("completion"), **numbers}

    def rewards_and_note(*args: Any, **kwargs: Any) -> Any:
        values = rewards_of(*args, **kwargs)
        noted["rewards"] = values[:, 0].tolist()
        return values

    def sample_and_note(inputs: Any) -> Any:
        found = sample(inputs)
        noted["batches"].append({**plain(found), "rewards": noted.pop("rewards")})
        return found

    def compute_and_note(model: Any, inputs: Any) -> Any:
        loss = compute_loss(model, inputs)
        noted["steps"].append({**plain(inputs), "loss": float(loss.detach())})
        return loss

    trainer._calculate_rewards, trainer._generate_and_score_completions = rewards_and_note, sample_and_note
    trainer._compute_loss = compute_and_note
    return noted


def record(trainer: Any, *, terms: dict[str, dict[str, Any]]) -> list[dict[str, float]]:
    """Lets the trainer note the loss of each batch it trains on, and other losses of the same batch with the norms of
    their gradients: `terms` has the trainer's attributes for each."""
    steps: list[dict[str, float]] = []
    compute_loss = trainer.compute_loss

    def compute_and_note(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        noted = {}
        for term, attributes in terms.items():
            before = {name: getattr(trainer, name) for name in attributes}
            vars(trainer).update(attributes)
            value = compute_loss(model, dict(inputs))
            noted[term], noted[f"{term} gradient"] = float(value.detach()), gradient_norm(value, model)
            vars(trainer).update(before)
        loss = compute_loss(model, inputs, *args, **kwargs)
        steps.append({"loss": float(loss.detach()), **noted})
        return loss

    trainer.compute_loss = compute_and_note
    return steps


def gradient_norm(loss: torch.Tensor, model: Any) -> float:
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def split_ids(row: dict[str, Any]) -> dict[str, list[int]]:
    """CPO's rows hold the prompt before each completion."""
    prompt = row["prompt_input_ids"]
    completions = {f"{name}_ids": row[f"{name}_input_ids"][len(prompt) :] for name in ("chosen", "rejected")}
    return {"prompt_ids": prompt, **completions}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    rows = Dataset.from_list(job["rows"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    build = {"dpo": dpo_trainer, "cpo": cpo_trainer, "reward": reward_trainer, "rloo": rloo_trainer}[job["trainer"]]
    trainer = build(job, rows, tokenizer)
    if job["trainer"] == "rloo":
        noted = record_rloo(trainer)
        trainer.train()
        trainer.model.save_pretrained(job["out_dir"])
        Path(job["out_dir"], "losses.json").write_text(json.dumps(noted))
        return
    steps = record(trainer, terms=job.get("terms", {}))
    trainer.train()
    names = [name for name in ("prompt_ids", "chosen_ids", "rejected_ids") if name in trainer.train_dataset.features]
    of_row = split_ids if job["trainer"] == "cpo" else lambda row: {name: row[name] for name in names}
    ids = [of_row(row) for row in trainer.train_dataset]
    trainer.model.save_pretrained(job["out_dir"])
    Path(job["out_dir"], "losses.json").write_text(json.dumps({"steps": steps, "ids": ids}))


if __name__ == "__main__":
    main()
