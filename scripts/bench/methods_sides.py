"""Both sides of RLOO, and a semi-online run, each measured in the process that calls it.

A step is what is sampled together, rewarded and trained on once. The quickstart's base and prompts, the same reward on
either side; the optimiser, KL and clipping are TRL's defaults on both, and TRL samples with transformers, as it does
without a vLLM server.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from alignloop.progress import PlainProgress, QuietProgress

LEARNING_RATE, KL_COEFFICIENT, CLIP = 1e-5, 0.05, 0.2
MAX_MODEL_LEN = 384
OWN_WORK = ("sample", "score", "build_pairs", "train_dpo")


@dataclass(frozen=True)
class Rloo:
    """How much is done, and where."""

    folder: Path
    steps: int
    engine: str
    num_prompts: int = 16
    num_candidates: int = 8
    max_tokens: int = 128


def words(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
    """The reward of both sides: words, up to forty."""
    return [min(40.0, len(completion[0]["content"].split())) / 40.0 for completion in completions]


class _Steps(QuietProgress):
    """Notes when each step of the training ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        yield lambda num_done: self.ends.append(time.perf_counter()) if unit == "steps" else None


def _a_step(ends: Sequence[float]) -> float:
    """Seconds: the first step warms up."""
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _prompts(job: Rloo) -> list[Any]:
    from alignloop.config.bundled import QUICKSTART
    from alignloop.data.reading import Reading as FileReading

    return list(islice(FileReading(QUICKSTART / "data" / "prompts.jsonl", "prompts"), job.num_prompts * job.steps))


def rloo_ours(job: Rloo) -> dict[str, float]:
    """The stage, on an engine that starts before."""
    from alignloop.artifacts import Artifact
    from alignloop.config import load_recipe
    from alignloop.config.bundled import QUICKSTART
    from alignloop.data.jsonl import dump_jsonl, load_jsonl
    from alignloop.engines.open import open_engine
    from alignloop.records import CandidateRow
    from alignloop.run_dir.stage import Location, run_stage
    from alignloop.stages import train_rloo

    recipe = load_recipe(
        {
            "preferences": "quickstart",
            "policy": {"by": "rloo"},
            "sample": {"max_tokens": job.max_tokens},
            "score": {"reward_functions": [{"function": f"{__name__}:words"}]},
            "rloo": {
                "learning_rate": LEARNING_RATE,
                "kl_coefficient": KL_COEFFICIENT,
                "clip": CLIP,
                "batch_groups": job.num_prompts,
                "num_candidates": job.num_candidates,
                "max_steps": job.steps,
                "max_length": MAX_MODEL_LEN,
                "dtype": "float32",
                "warmup_fraction": 0.0,
                "reward_model": False,
                "failure_penalty": 0.0,
            },
            "engine": {"name": job.engine, "dtype": "float32", "max_model_len": MAX_MODEL_LEN, "kv_cache_gb": 0.5},
        }
    )
    folder, base, progress = job.folder / "ours", Artifact.of(QUICKSTART / "base"), _Steps()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dump_jsonl(folder / "prompts.jsonl", _prompts(job))
    inputs = train_rloo.Inputs(base, Artifact.of(folder / "prompts.jsonl"), base)
    with open_engine(recipe.engine, log_file=folder / "engine.log") as engine:
        engine.load_weights(base.path)
        location, config = Location(folder / "round-01" / "11_train_rloo", 1, 0), train_rloo.settings(recipe)
        location.dir.parent.mkdir()
        outputs = run_stage(train_rloo.STAGE, config, inputs, location=location, engine=engine, progress=progress)
    rows = list(load_jsonl(outputs.samples.path, CandidateRow))
    later = [row.total_reward or 0.0 for row in rows[len(rows) // 2 :]]
    tokens = fmean(len(row.completion_ids) for row in rows)
    return {"seconds": _a_step(progress.ends), "tokens": tokens, "reward": fmean(later)}


def rloo_trl(job: Rloo) -> dict[str, float]:
    """`RLOOTrainer`, a forward pass a step, which is its fastest here."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.utils import logging
    from trl import RLOOConfig, RLOOTrainer

    from alignloop.config.bundled import QUICKSTART

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    disable_progress_bars()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rewards: list[float] = []
    lengths: list[int] = []
    ends: list[float] = []

    def noted_words(completions: list[list[dict[str, str]]], completion_ids: list[list[int]], **_: Any) -> list[float]:
        values = words(completions)
        rewards.extend(values)
        lengths.extend(map(len, completion_ids))
        return values

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    config = RLOOConfig(
        output_dir=str(job.folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        beta=KL_COEFFICIENT,
        epsilon=CLIP,
        num_generations=job.num_candidates,
        per_device_train_batch_size=job.num_prompts * job.num_candidates,
        max_completion_length=job.max_tokens,
        max_steps=job.steps,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    prompts = [[message.model_dump(include={"role", "content"}) for message in row.messages] for row in _prompts(job)]
    trainer = RLOOTrainer(
        AutoModelForCausalLM.from_pretrained(QUICKSTART / "base", dtype=torch.float32, attn_implementation="sdpa"),
        reward_funcs=noted_words,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(QUICKSTART / "base", padding_side="left"),
        callbacks=[Watch()],
    )
    trainer.train()
    return {"seconds": _a_step(ends), "tokens": fmean(lengths), "reward": fmean(rewards[len(rewards) // 2 :])}


class _Rounds(PlainProgress):
    """Notes when each round begins."""

    def __init__(self) -> None:
        super().__init__(interval=30.0)
        self.begins: list[float] = []

    def say(self, line: str) -> None:
        if line.startswith("round ") and " of " in line:
            self.begins.append(time.perf_counter())
        super().say(line)


def semi_online_rounds(run_dir: Path, rounds: int, overrides: Sequence[str]) -> list[tuple[float, dict[str, float]]]:
    """Of every round but the last its wall seconds, and those within each stage of `OWN_WORK`."""
    from alignloop.loop.run import run
    from alignloop.run_dir.reader import published_stages

    progress = _Rounds()
    run("semi_online", rounds=rounds, run_dir=run_dir, overrides=overrides, progress=progress)
    found = []
    for number, (begin, end) in enumerate(zip(progress.begins, progress.begins[1:], strict=False), start=1):
        stages = {stage.name: sum(stage.manifest.seconds.values()) for stage in published_stages(run_dir, number)}
        found.append((end - begin, {name: stages[name] for name in OWN_WORK}))
    return found
