"""What the sampling cases run on: random checkpoints with the quickstart's tokenizer, prompts, engines, vLLM alone."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

from alignloop.config.bundled import QUICKSTART
from scripts.bench.case import Bench
from scripts.bench.processes import Hosted

BASE = QUICKSTART / "base"
MODELS = {"5m": (256, 6, 4, 704), "300m": (1024, 24, 16, 2816)}
"""Hidden size, layers, heads of 64, intermediate size of 5.3 and 310 million parameters."""
ENGINE: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "kv_cache_gb": 1.0}
"""Of every engine but the quickstart's: float32 as there, the rest by default."""


def checkpoint(bench: Bench, size: str, which: str) -> Path:
    """A random model, made where it is missing; `a` and `b` have other weights."""
    from transformers import AutoTokenizer

    from scripts.world.pretraining import ModelSize, new_model

    folder = bench.work / size / which
    if not folder.is_dir():
        hidden, layers, heads, intermediate = MODELS[size]
        tokenizer = AutoTokenizer.from_pretrained(BASE)
        model = new_model(ModelSize(hidden, layers, heads, intermediate), tokenizer, seed=1 if which == "a" else 2)
        partial_folder = folder.with_name(f"{which}.partial")
        model.save_pretrained(partial_folder)
        tokenizer.save_pretrained(partial_folder)
        partial_folder.rename(folder)
    return folder


def prompt_rows(count: int) -> list[Any]:
    """The first of the quickstart's bundled prompts."""
    from alignloop.data.reading import Reading as FileReading

    return list(islice(FileReading(QUICKSTART / "data" / "prompts.jsonl", "prompts"), count))


def engine(bench: Bench, name: str, first: Path) -> Any:
    """alignloop's engine, warm, serving a checkpoint, and the seconds from nothing to there."""
    from alignloop.config.engine import EngineConfig
    from alignloop.engines.process import EngineProcess

    started = time.perf_counter()
    config = EngineConfig.model_validate({"name": name, **ENGINE})
    opened = bench.stack.enter_context(EngineProcess(config, log_file=bench.work / f"engine-{name}.log"))
    opened.load_weights(first)
    return opened, time.perf_counter() - started


def vllm_alone(bench: Bench, first: Path) -> Hosted:
    """vLLM with the engine's settings and nothing of the engine around it."""
    from alignloop.config.engine import EngineConfig
    from alignloop.engines.environment import child_environment
    from alignloop.engines.placement import EnginePlace, num_cores
    from scripts.bench.vllm_alone import RawVllm

    config = EngineConfig.model_validate({"name": "vllm", **ENGINE})
    environment = child_environment(config, place=EnginePlace(num_cores()))
    hosted = Hosted(RawVllm, config, first, log=bench.work / "vllm-alone.log", environment=environment)
    return bench.stack.enter_context(hosted)
