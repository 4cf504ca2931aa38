"""Evaluation through alignloop's warm engine against lm-eval's own `hf` model class: speed, and the same verdicts.

Both sides are lm-eval model classes and get the same tasks, built by lm-eval with the checkpoint's chat template.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from alignloop.chat.load import load_format
from alignloop.config.bundled import QUICKSTART
from alignloop.config.engine import EngineConfig
from alignloop.engines.process import EngineProcess
from alignloop.evaluation.tasks import local_ifeval, local_mmlu
from alignloop.progress import QuietProgress
from scripts.bench.case import Bench, BenchError, Case, Figure, Reading, Readings, Sides

BASE = QUICKSTART / "base"
HF_BATCH, MAX_GEN_TOKENS, MAX_MODEL_LEN = 16, 1280, 2048
"""Longest answer: lm-eval's own limit for IFEval. Longest sequence: enough for five shots of every MMLU subject."""
AS_CHAT: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": True}
TIE = 1e-3
"""Nats between a question's two best options below which float noise may turn their order."""
TOKENS_TOLERANCE = 0.1
"""Share by which the two sides' answers may differ in length and still be the same work: where float noise changes one
token of a greedy answer, the rest of it differs."""
Verdicts = Mapping[tuple[str, int], tuple[float, float]]
"""(task, question) -> lm-eval's `acc`, and the nats between the best option and the second."""


def _ifeval(bench: Bench) -> Sides:
    """One `generate_until` call on IFEval's prompts (the bundled ones where those are missing), with tokenising."""
    file = bench.data / "ifeval" / "input_data.jsonl"
    source = "IFEval's" if file.is_file() else "the bundled"
    task = local_ifeval(file if file.is_file() else QUICKSTART / "data" / "ifeval.jsonl").tasks["ifeval"]
    task.set_config(key="num_fewshot", value=0)
    ours, hf = _engine_lm(_engine(bench), BASE), _hf_lm(BASE)

    def read(lm: Any, num_prompts: int, max_gen_tokens: int) -> Reading:
        task.config.generation_kwargs["max_gen_toks"] = max_gen_tokens
        with _quiet():
            task.build_all_requests(limit=num_prompts, chat_template=lm.apply_chat_template, **AS_CHAT)
            requests = list(task.instances)
            started = time.perf_counter()
            texts = lm.generate_until(requests, disable_tqdm=True)
            return {"rate": len(texts) / (time.perf_counter() - started), "texts": texts}

    def check(mine: Readings, other: Readings) -> list[str]:
        texts = mine[-1]["texts"], other[-1]["texts"]
        same = sum(a == b for a, b in zip(*texts, strict=True))
        tokens = [sum(len(ours.tok_encode(text)) for text in side) for side in texts]
        if abs(tokens[0] - tokens[1]) > TOKENS_TOLERANCE * tokens[1]:
            raise BenchError(f"{tokens[0]:,} and {tokens[1]:,} tokens: not the same work")
        return [
            f"{len(texts[0])} of {source} prompts; {same} answers are the same to the last character "
            f"({tokens[0]:,} and {tokens[1]:,} tokens)"
        ]

    for lm in (ours, hf):
        read(lm, HF_BATCH, 8)
    amounts = (bench.amount, MAX_GEN_TOKENS)
    return Sides(lambda: read(ours, *amounts), lambda: read(hf, *amounts), check)


def _mmlu(bench: Bench) -> Sides:
    """5-shot questions, as many of each subject, on two checkpoints: verdicts that differ and are no float tie."""
    folder = bench.need("mmlu")
    checkpoints = {"base": BASE, "qwen2": _random_qwen2(bench.work)}
    engine = _engine(bench)

    def read(lm_of: Any) -> Reading:
        verdicts, seconds = {}, 0.0
        for name, checkpoint in checkpoints.items():
            lm = lm_of(checkpoint)
            started = time.perf_counter()
            verdicts[name] = _verdicts(lm, folder, limit=bench.amount)
            seconds += time.perf_counter() - started
        return {"rate": sum(map(len, verdicts.values())) / seconds, "verdicts": verdicts}

    def check(mine: Readings, other: Readings) -> list[str]:
        return [_compared(name, mine[-1]["verdicts"][name], other[-1]["verdicts"][name]) for name in checkpoints]

    return Sides(lambda: read(partial(_engine_lm, engine)), lambda: read(_hf_lm), check)


def _compared(name: str, ours: Verdicts, other: Verdicts) -> str:
    if ours.keys() != other.keys():
        raise BenchError(f"the two sides were not asked the same questions of {name}")
    differ = [key for key, (right, _) in ours.items() if right != other[key][0]]
    ties = sum(margin <= TIE for _, margin in other.values())
    if beyond := [key for key in differ if other[key][1] > TIE]:
        raise BenchError(f"{name}: {len(beyond)} of {len(ours):,} verdicts differ, {beyond[0]} first")
    shares = (f"{sum(right for right, _ in side.values()) / len(side):.4f}" for side in (ours, other))
    return (
        f"{name}: {len(ours):,} questions, 0 verdicts differ but for {len(differ)} of {ties} float ties (two best "
        f"options within {TIE:g} nats); accuracy {' and '.join(shares)}"
    )


def _verdicts(lm: Any, folder: Path, *, limit: int) -> Verdicts:
    from lm_eval.evaluator import evaluate

    loaded = local_mmlu(folder)
    tasks = {"tasks": loaded.tasks, "groups": loaded.groups, "group_map": {}}
    with _quiet():
        results: Any = evaluate(lm=lm, task_dict=tasks, limit=limit, bootstrap_iters=0, **AS_CHAT)
    found = {}
    for task, rows in results["samples"].items():
        for row in rows:
            best, second = sorted((response[0][0] for response in row["resps"]), reverse=True)[:2]
            found[task, int(row["doc_id"])] = (float(row["acc"]), best - second)
    return found


def _engine(bench: Bench) -> Any:
    config = EngineConfig(name="vllm", dtype="float32", max_model_len=MAX_MODEL_LEN, kv_cache_gb=1.0)
    return bench.stack.enter_context(EngineProcess(config, log_file=bench.work / "engine.log"))


def _engine_lm(engine: Any, checkpoint: Path) -> Any:
    """alignloop's lm-eval model class over a warm engine; another architecture needs a new start."""
    from transformers import AutoTokenizer

    from alignloop.evaluation.lm import EngineLM

    engine.load_weights(checkpoint)
    return EngineLM(
        engine,
        checkpoint=checkpoint,
        tokenizer=AutoTokenizer.from_pretrained(str(checkpoint)),
        chat=load_format(checkpoint),
        max_model_len=MAX_MODEL_LEN,
        max_gen_tokens=MAX_GEN_TOKENS,
        seed=0,
        progress=QuietProgress(),
    )


def _hf_lm(checkpoint: Path) -> Any:
    """lm-eval's own; without `add_bos_token` it puts the tokenizer's BOS before a rendered template that has none."""
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        return HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=HF_BATCH, add_bos_token=False)


def _random_qwen2(work: Path) -> Path:
    """A random Qwen2 of 1.3 million parameters with the quickstart's tokenizer and the chatml template; made once."""
    folder, bare = work / "qwen2", work / "qwen2-bare"
    if not folder.is_dir():
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from alignloop.training.start import prepare_base

        torch.manual_seed(0)
        shape = {"vocab_size": 2080, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": MAX_MODEL_LEN}
        # Weights wide enough that the options' logprobs lie apart: at 0.02 all letters are as likely.
        config = Qwen2Config(**shape, **heads, initializer_range=0.2, bos_token_id=0, eos_token_id=1)
        Qwen2ForCausalLM(config).save_pretrained(bare)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(BASE / name, bare / name)
        prepare_base(str(bare), chat_template="chatml", out_dir=folder)
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


_SPEED = Figure("eval_vs_hf", "rate", " prompts/s", least=2.0)
_RATE = Figure("mmlu_equal_rate", "rate", " questions/s")
CASES = (
    Case("eval_vs_hf", (_SPEED,), _ifeval, {"": 540}, quick=64, needs="vllm"),
    Case("mmlu_equal", (_RATE,), _mmlu, {"": 1_000}, quick=1, once=True, needs="vllm"),
)
