"""Sampling against vLLM alone, the two engines against each other, weight swaps, and warm against cold runs.

Models are random Llamas in float32 with the quickstart's tokenizer, which stop about as rarely as chance has it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from alignloop.artifacts import Artifact
from alignloop.chat.load import load_format
from alignloop.config.bundled import QUICKSTART
from alignloop.config.engine import EngineConfig
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.reading import Reading as FileReading
from alignloop.engines.base import GenerateRequest
from alignloop.engines.checkpoint import num_parameters, weight_files
from alignloop.engines.process import EngineProcess
from alignloop.engines.worker import child_environment
from alignloop.progress import QuietProgress
from alignloop.records import CandidateRow
from alignloop.run_dir.stage import Location, run_stage
from alignloop.stages import sample
from scripts.bench.case import Bench, BenchError, Case, Figure, Reading, Readings, Sides
from scripts.bench.processes import Hosted, alone, memory_mib
from scripts.bench.vllm_alone import RawVllm, run_quickstart

BASE = QUICKSTART / "base"
MODELS = {"5m": (256, 6, 4, 704), "300m": (1024, 24, 16, 2816)}
"""Hidden size, layers, heads of 64, intermediate size of 5.3 and 310 million parameters."""
ENGINE: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "kv_cache_gb": 1.0}
"""Of every engine but the quickstart's: float32 as there, else defaults."""
NUM_SPECIAL, PROMPT_TOKENS, MAX_TOKENS = 16, 64, 128
MIXED_MAX_TOKENS = (16, 32, 64, 128, 256)
NUM_CANDIDATES, WARM_UP_PROMPTS = 16, 8
TOKENS_TOLERANCE = 0.01
"""Share by which the tokens of stage and vLLM may differ where completions are not identical."""
KINDS = {"k16": (16, 16), "k16_unseeded": (32, 16), "k1": (32, 1), "k1_unseeded": (256, 1), "k1_greedy": (256, 1)}
"""Prompts and candidates of requests to the two engines. With a seed each, as in the sample stage, the transformers
engine generates one prompt at a time."""
NUM_SETTLING = 5
"""Swaps before the first reading of memory."""
SHORTENED = (
    "collect.num_annotations=16 reward.max_steps=4 sample.num_prompts=32 sample.num_candidates=4 sample.max_tokens=48 "
    "prune.human_rows=32 sft.max_steps=4 dpo.max_steps=4 evaluate.limit=12"
).split()
"""The quickstart with `--quick`."""


def _checkpoint(bench: Bench, size: str, which: str) -> Path:
    """A random model, made where it is missing; `a` and `b` differ in weights."""
    folder = bench.work / size / which
    if not folder.is_dir():
        from transformers import AutoTokenizer

        from scripts.world.pretraining import ModelSize, new_model

        tokenizer = AutoTokenizer.from_pretrained(BASE)
        partial_folder = folder.with_name(f"{which}.partial")
        new_model(ModelSize(*MODELS[size]), tokenizer, seed="ab".index(which) + 1).save_pretrained(partial_folder)
        tokenizer.save_pretrained(partial_folder)
        partial_folder.rename(folder)
    return folder


def _prompts(count: int) -> list[Any]:
    return list(islice(FileReading(QUICKSTART / "data" / "prompts.jsonl", "prompts"), count))


def _engine(bench: Bench, name: str, first: Path) -> tuple[Any, float]:
    """alignloop's engine, warm, serving a checkpoint, and the seconds it took to start."""
    started = time.perf_counter()
    config = EngineConfig.model_validate({"name": name, **ENGINE})
    engine = bench.stack.enter_context(EngineProcess(config, log_file=bench.work / f"engine-{name}.log"))
    engine.load_weights(first)
    return engine, time.perf_counter() - started


def _raw_vllm(bench: Bench, first: Path) -> Hosted:
    config = EngineConfig.model_validate({"name": "vllm", **ENGINE})
    environment = child_environment(config)
    log = bench.work / "vllm-alone.log"
    return bench.stack.enter_context(Hosted(RawVllm, config, first, log=log, environment=environment))


# ---- the sample stage against vLLM ------------------------------------------------------------------------------


def _stage_vs_vllm(bench: Bench) -> Sides:
    """Tokens a second of the whole stage over those of one `LLM.generate` call on the stage's requests."""
    first = _checkpoint(bench, "5m", "a")
    engine, _ = _engine(bench, "vllm", first)
    raw = _raw_vllm(bench, first)
    rows = _prompts(bench.amount)
    requests: list[GenerateRequest] = []
    generate = engine.generate

    def noted(some: Sequence[GenerateRequest]) -> Any:
        requests.extend(some)
        return generate(some)

    engine.generate = noted

    def stage(some: Sequence[Any]) -> Reading:
        requests.clear()
        return _run_stage(bench, engine, first, some)

    def vllm() -> Reading:
        seconds, ids = raw.call("generate", list(requests))
        return {"rate": sum(map(len, ids)) / seconds, "ids": ids}

    stage(rows[:WARM_UP_PROMPTS])
    vllm()
    return Sides(lambda: stage(rows), vllm, _same_tokens)


def _run_stage(bench: Bench, engine: Any, first: Path, rows: Sequence[Any]) -> Reading:
    """From the stage's first look at the run directory to its published manifest."""
    settings = {"num_candidates": NUM_CANDIDATES, "max_tokens": MAX_TOKENS}
    recipe = Recipe.model_validate({"preferences": ["quickstart"], "sample": settings, "engine": ENGINE})
    round_dir = bench.work / "stage" / "round-01"
    shutil.rmtree(round_dir, ignore_errors=True)
    round_dir.mkdir(parents=True)
    prompts = round_dir.parent / "prompts.jsonl"
    dump_jsonl(prompts, rows)
    inputs = sample.Inputs(Artifact.of(first), Artifact.of(prompts))
    location = Location(round_dir / "04_sample", round=1, run_seed=0)
    config, progress = sample.settings(recipe), QuietProgress()
    started = time.perf_counter()
    outputs = run_stage(sample.STAGE, config, inputs, location=location, engine=engine, progress=progress)
    seconds = time.perf_counter() - started
    ids = [tuple(row.completion_ids) for row in load_jsonl(outputs.candidates.path, CandidateRow)]
    return {"rate": sum(map(len, ids)) / seconds, "ids": ids}


def _same_tokens(ours: Readings, peer: Readings) -> list[str]:
    mine, other = ours[-1]["ids"], peer[-1]["ids"]
    same = sum(a == b for a, b in zip(mine, other, strict=True))
    tokens = [sum(map(len, side)) for side in (mine, other)]
    if abs(tokens[0] - tokens[1]) > TOKENS_TOLERANCE * tokens[1]:
        raise BenchError(f"the two sides sampled {tokens[0]:,} and {tokens[1]:,} tokens: not the same work")
    return [f"{same:,} of {len(mine):,} completions are the same to the last token ({tokens[0]:,} tokens)"]


# ---- vLLM against transformers ----------------------------------------------------------------------------------


def _engines(bench: Bench) -> Sides:
    """Prompts of random tokens, all of one length; completions as long as they come."""
    requests = {kind: _random_requests(kind, min(prompts, bench.amount), k) for kind, (prompts, k) in KINDS.items()}
    return _two_engines(bench, _checkpoint(bench, "5m", "a"), requests)


def _random_requests(kind: str, num_prompts: int, num_candidates: int) -> list[GenerateRequest]:
    draw = random.Random(kind)
    return [
        GenerateRequest(
            prompt_ids=tuple(draw.randrange(NUM_SPECIAL, 2048) for _ in range(PROMPT_TOKENS)),
            max_tokens=MAX_TOKENS,
            num_candidates=num_candidates,
            temperature=0.0 if "greedy" in kind else 1.0,
            seed=number if kind in ("k16", "k1") else None,
        )
        for number in range(num_prompts)
    ]


def _engines_mixed(bench: Bench) -> Sides:
    """Bundled prompts for the quickstart's base, which ends its turns by itself; most tokens drawn per request."""
    chat, draw = load_format(BASE), random.Random("mixed")
    requests = [
        GenerateRequest(
            prompt_ids=chat.prompt_ids(row.messages),
            max_tokens=draw.choice(MIXED_MAX_TOKENS),
            num_candidates=4,
            stop_token_ids=chat.stop_token_ids,
        )
        for row in _prompts(bench.amount)
    ]
    return _two_engines(bench, BASE, {"mixed": requests})


def _two_engines(bench: Bench, model: Path, requests: Mapping[str, Sequence[GenerateRequest]]) -> Sides:
    engines = [_engine(bench, name, model)[0] for name in ("vllm", "transformers")]

    def read(engine: Any) -> Reading:
        rates: dict[str, Any] = {}
        for kind, some in requests.items():
            started = time.perf_counter()
            lengths = [len(done.token_ids) for each in engine.generate(some) for done in each]
            rates |= {kind: sum(lengths) / (time.perf_counter() - started), f"{kind}_lengths": lengths}
        return rates

    def spans(ours: Readings, peer: Readings) -> list[str]:
        return [
            f"{kind}: {len(some)} prompts of {_span([len(one.prompt_ids) for one in some])} tokens, completions of "
            f"{_span([length for reading in (*ours, *peer) for length in reading[f'{kind}_lengths']])}"
            for kind, some in requests.items()
        ]

    for engine in engines:
        engine.generate(next(iter(requests.values()))[:2])
    return Sides(partial(read, engines[0]), partial(read, engines[1]), spans)


def _span(lengths: Sequence[int]) -> str:
    if min(lengths) == max(lengths):
        return f"{lengths[0]}"
    return f"{min(lengths)} to {max(lengths)} (median {median(lengths):.0f})"


# ---- weight swaps -----------------------------------------------------------------------------------------------


def _swaps(bench: Bench) -> Sides:
    """Medians of `amount` swaps between two checkpoints, after one to each that settles allocator and page cache.

    The peer reads all bytes of the same weight files into memory, from the disk or from the page cache.
    """
    a, b = (_checkpoint(bench, bench.size, which) for which in "ab")
    engine, cold_start = _engine(bench, "vllm", a)
    raw = _raw_vllm(bench, a)
    turns = [(b, a)[number % 2] for number in range(bench.amount + 2)]

    def seconds(work: Callable[[Path], Any], *, cached: bool) -> float:
        return median([_seconds(work, one, cached=cached) for one in turns][2:])

    def both(work: Callable[[Path], Any]) -> dict[str, float]:
        return {"disk": seconds(work, cached=False), "cached": seconds(work, cached=True)}

    def read_ours() -> Reading:
        bare = median([float(raw.call("swap", one)) for one in turns][2:])
        return {**both(engine.load_weights), "bare": bare, "cold_start": cold_start}

    return Sides(
        read_ours,
        lambda: both(lambda one: [file.read_bytes() for file in weight_files(one)]),
        lambda ours, peer: [f"{num_parameters(a):,} parameters, {bench.amount} swaps"],
    )


def _seconds(work: Callable[[Path], Any], checkpoint: Path, *, cached: bool) -> float:
    """Without `cached` the weight files are dropped from the page cache first, after a sync to disk."""
    for path in () if cached else weight_files(checkpoint):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    work(checkpoint)
    return time.perf_counter() - started


def _swap_memory(bench: Bench) -> Sides:
    """Growth of the engine process's resident memory over swaps, each to another directory, after the first few."""
    sources = [_checkpoint(bench, "5m", which) for which in "ab"]
    engine, _ = _engine(bench, "vllm", sources[0])

    def read() -> Reading:
        readings = []
        for number in range(NUM_SETTLING + bench.amount):
            directory = bench.work / "copies" / f"{number:03d}"
            if not directory.is_dir():
                shutil.copytree(sources[number % 2], directory, copy_function=os.link)
            engine.load_weights(directory)
            readings.append(memory_mib("VmRSS", process=str(engine.pid)) * 2**20 / 1e6)
        if not readings[0]:
            raise BenchError("this system does not tell a process's resident memory (no /proc)")
        return {"start": readings[NUM_SETTLING - 1], "growth": readings[-1] - readings[NUM_SETTLING - 1]}

    return Sides(read)


# ---- warm against cold ------------------------------------------------------------------------------------------


def _warm_vs_cold(bench: Bench) -> Sides:
    """A whole quickstart with the warm engine, and with vLLM started anew for each use; one run of each."""
    overrides = SHORTENED if bench.quick else []

    def side(name: str) -> Reading:
        run_dir, log = bench.work / f"quickstart-{name}", bench.work / f"quickstart-{name}.log"
        shutil.rmtree(run_dir, ignore_errors=True)
        print(f"  quickstart, {name}: {bench.amount} rounds; what it prints is in {log}", flush=True)
        arguments = (name == "cold", bench.amount, run_dir, overrides)
        reading: Reading = alone(run_quickstart, *arguments, log=log, environment=bench.environment)
        return reading

    def check(ours: Readings, peer: Readings) -> list[str]:
        same = "the same" if ours[0]["metrics"] == peer[0]["metrics"] else "not the same to the last digit"
        starts = json.dumps([ours[0]["starts"], peer[0]["starts"]])
        return [
            f"{bench.amount} rounds, {' '.join(overrides) or 'the recipe as it is'}; engine starts {starts}",
            f"benchmarks of all rounds: {same}",
        ]

    return Sides(partial(side, "warm"), partial(side, "cold"), check)


def _rate(name: str, kind: str, least: float) -> Figure:
    return Figure(name, kind, " tok/s", least=least)


_KINDS = tuple(_rate(f"vllm_vs_transformers_{kind}", kind, 1.0) for kind in KINDS)
_SWAP_5M = (
    Figure("swap_seconds_5m", "cached", " s", most=2.0, peer=False),
    Figure("swap_seconds_5m_without_canary", "bare", " s", peer=False),
    Figure("cold_start_seconds_5m", "cold_start", " s", peer=False),
)
_SWAP_300M = (
    Figure("swap_vs_read_300m", "disk", " s", most=3.0),
    Figure("swap_vs_read_300m_cached", "cached", " s"),
    Figure("swap_seconds_300m_cached_without_canary", "bare", " s", peer=False),
    Figure("cold_start_seconds_300m", "cold_start", " s", peer=False),
)
_MEMORY = (Figure("swap_memory_growth_mb", "growth", " MB", most=20.0), Figure("swap_memory_start_mb", "start", " MB"))
_MIXED = _rate("vllm_vs_transformers_mixed", "mixed", 1.5)
_COLD = Figure("warm_vs_cold", "seconds", " s", least=2.0, inverse=True)
_CASES = (
    Case("stage_vs_vllm", (_rate("stage_vs_vllm", "rate", 0.95),), _stage_vs_vllm, {"5m": 256}, quick=8),
    Case("vllm_vs_transformers", _KINDS, _engines, {"5m": 256}, quick=2),
    Case("vllm_vs_transformers_mixed", (_MIXED,), _engines_mixed, {"base": 128}, quick=4),
    Case("swap_seconds_5m", _SWAP_5M, _swaps, {"5m": 20}, quick=4, once=True),
    Case("swap_memory_growth_mb", _MEMORY, _swap_memory, {"5m": 50}, quick=6, once=True),
    Case("swap_vs_read_300m", _SWAP_300M, _swaps, {"300m": 7}, quick=0),
    Case("warm_vs_cold", (_COLD,), _warm_vs_cold, {"6 rounds": 6}, quick=0, once=True),
)
CASES = tuple(replace(case, needs="vllm") for case in _CASES)
