"""One benchmark through alignloop's warm engine and through lm-eval's own `hf` model class: answers, verdicts, seconds.

Both sides are lm-eval model classes and get the same tasks, built by lm-eval with the checkpoint's chat template.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.config.bundled import QUICKSTART
from alignloop.config.engine import EngineConfig
from alignloop.engines.process import EngineProcess
from alignloop.evaluation.tasks import LoadedTasks
from alignloop.progress import QuietProgress

BASE = QUICKSTART / "base"
HF_BATCH = 16
MAX_MODEL_LEN = 2048
"""Of the quickstart's base, and enough for five shots of every subject."""
AS_CHAT: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": True}


@dataclass(frozen=True)
class Answers:
    """Attributes:
    texts: one a prompt.
    seconds: of `generate_until`, from lm-eval's requests to its answers.
    """

    texts: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    right: lm-eval's `acc`.
    margin: nats between the best option and the second.
    """

    right: float
    margin: float


def engine_config() -> EngineConfig:
    """Of the run's engine: float32, as the other side."""
    return EngineConfig(name="vllm", dtype="float32", max_model_len=MAX_MODEL_LEN, kv_cache_gb=1.0)


def random_qwen2(work: Path) -> Path:
    """A random Qwen2 of 1.3 million parameters with the quickstart's tokenizer and the chatml template; built once."""
    folder = work / "qwen2"
    if folder.is_dir():
        return folder
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from alignloop.training.start import prepare_base

    bare = work / "qwen2-bare"
    shutil.rmtree(bare, ignore_errors=True)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2080,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_MODEL_LEN,
        # Wide enough that the options' logprobs lie apart: at 0.02 all letters are as likely.
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BASE / name, bare / name)
    prepare_base(str(bare), chat_template="chatml", out_dir=folder)
    return folder


def engine_lm(engine: EngineProcess, checkpoint: Path, *, max_gen_tokens: int) -> Any:
    """alignloop's lm-eval model class over a warm engine."""
    from transformers import AutoTokenizer

    from alignloop.chat.load import load_format
    from alignloop.evaluation.lm import EngineLM, GenerationLimits

    return EngineLM(
        engine,
        checkpoint=checkpoint,
        tokenizer=AutoTokenizer.from_pretrained(str(checkpoint)),
        chat=load_format(checkpoint),
        limits=GenerationLimits(max_model_len=MAX_MODEL_LEN, max_gen_tokens=max_gen_tokens),
        seed=0,
        progress=QuietProgress(),
    )


def hf_lm(checkpoint: Path) -> Any:
    """lm-eval's own; without `add_bos_token` it puts the tokenizer's BOS before a rendered template that has none."""
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        return HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=HF_BATCH, add_bos_token=False)


def generate(lm: Any, task: Any, *, num_prompts: int, max_gen_tokens: int) -> Answers:
    """One `generate_until` call for the first prompts of a task."""
    task.set_config(key="num_fewshot", value=0)
    task.config.generation_kwargs["max_gen_toks"] = max_gen_tokens
    with _quiet():
        task.build_all_requests(limit=num_prompts, chat_template=lm.apply_chat_template, **AS_CHAT)
        requests = list(task.instances)
        started = time.perf_counter()
        texts = lm.generate_until(requests, disable_tqdm=True)
        return Answers(tuple(texts), time.perf_counter() - started)


def verdicts(lm: Any, loaded: LoadedTasks, *, limit: int | None) -> tuple[dict[tuple[str, int], Verdict], float]:
    """(task, question) -> its verdict, for every question of every task, and the seconds that lm-eval took."""
    from lm_eval.evaluator import evaluate as lm_eval_evaluate

    with _quiet():
        started = time.perf_counter()
        results: Mapping[str, Any] = lm_eval_evaluate(
            lm=lm,
            task_dict={"tasks": loaded.tasks, "groups": loaded.groups, "group_map": {}},
            limit=limit,
            bootstrap_iters=0,
            **AS_CHAT,
        )
        seconds = time.perf_counter() - started
    found = {}
    for task, rows in results["samples"].items():
        for row in rows:
            best, second = sorted((response[0][0] for response in row["resps"]), reverse=True)[:2]
            found[task, int(row["doc_id"])] = Verdict(float(row["acc"]), best - second)
    return found, seconds


@contextmanager
def _quiet() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
