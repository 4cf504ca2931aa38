"""Sampling against vLLM alone, the two engines against each other, weight swaps, and warm against cold runs.

Models are random Llamas in float32 with the quickstart's tokenizer, which stop about as rarely as chance has it.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from scripts.bench.case import Bench, BenchError, Case, Figure, Reading, Readings, Sides
from scripts.bench.engines import BASE, ENGINE, checkpoint, engine, prompt_rows, vllm_alone
from scripts.bench.processes import alone
from scripts.bench.swaps import swap_memory, swaps

NUM_SPECIAL, PROMPT_TOKENS, MAX_TOKENS = 16, 64, 128
MIXED_MAX_TOKENS = (16, 32, 64, 128, 256)
NUM_CANDIDATES, WARM_UP_PROMPTS = 16, 8
TOKENS_TOLERANCE = 0.01
"""Share by which the tokens of stage and vLLM may differ where completions are not the same to the last."""
KINDS = {"k16": (16, 16), "k16_unseeded": (32, 16), "k1": (32, 1), "k1_unseeded": (256, 1), "k1_greedy": (256, 1)}
"""Requests to the two engines: prompts and candidates. With a seed each, as the sample stage asks, the transformers
engine generates one prompt at a time."""
SHORTENED = (
    "collect.num_annotations=16 reward.max_steps=4 sample.num_prompts=32 sample.num_candidates=4 sample.max_tokens=48 "
    "prune.human_rows=32 sft.max_steps=4 dpo.max_steps=4 evaluate.limit=12"
).split()
"""Of the quickstart, with `--quick`."""


# ---- the sample stage against vLLM ------------------------------------------------------------------------------


def _stage_vs_vllm(bench: Bench) -> Sides:
    """Tokens a second of the whole stage over those of one `LLM.generate` call on the requests the stage made."""
    first = checkpoint(bench, "5m", "a")
    ours, _ = engine(bench, "vllm", first)
    raw = vllm_alone(bench, first)
    rows = prompt_rows(bench.amount)
    asked: list[Any] = []
    generate = ours.generate

    def noted(requests: Sequence[Any]) -> Any:
        asked.extend(requests)
        return generate(requests)

    ours.generate = noted

    def stage(some: Sequence[Any]) -> Reading:
        asked.clear()
        return _run_stage(bench, ours, first, some)

    def vllm() -> Reading:
        seconds, ids = raw.call("generate", list(asked))
        return {"rate": sum(map(len, ids)) / seconds, "ids": ids}

    stage(rows[:WARM_UP_PROMPTS])
    vllm()
    return Sides(lambda: stage(rows), vllm, _same_tokens)


def _run_stage(bench: Bench, ours: Any, first: Path, rows: Sequence[Any]) -> Reading:
    """From the stage's first look at the run directory to its published manifest."""
    from alignloop.artifacts import Artifact
    from alignloop.config.recipe import Recipe
    from alignloop.data.jsonl import dump_jsonl, load_jsonl
    from alignloop.progress import QuietProgress
    from alignloop.records import CandidateRow
    from alignloop.run_dir.stage import Location, run_stage
    from alignloop.stages import sample

    settings = {"num_candidates": NUM_CANDIDATES, "max_tokens": MAX_TOKENS}
    recipe = Recipe.model_validate({"preferences": ["quickstart"], "sample": settings, "engine": ENGINE})
    round_dir = bench.work / "stage" / "round-01"
    shutil.rmtree(round_dir, ignore_errors=True)
    round_dir.mkdir(parents=True)
    prompts = round_dir.parent / "prompts.jsonl"
    dump_jsonl(prompts, rows)
    inputs = sample.Inputs(Artifact.of(first), Artifact.of(prompts))
    location = Location(round_dir / "04_sample", round=1, run_seed=0)
    started = time.perf_counter()
    outputs = run_stage(
        sample.STAGE, sample.settings(recipe), inputs, location=location, engine=ours, progress=QuietProgress()
    )
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
    most = bench.amount
    requests = {
        kind: _random_requests(kind, min(num_prompts, most), num_candidates)
        for kind, (num_prompts, num_candidates) in KINDS.items()
    }
    return _two_engines(bench, checkpoint(bench, "5m", "a"), requests)


def _random_requests(kind: str, num_prompts: int, num_candidates: int) -> list[Any]:
    from alignloop.engines.base import GenerateRequest

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
    from alignloop.chat.load import load_format
    from alignloop.engines.base import GenerateRequest

    chat, draw = load_format(BASE), random.Random("mixed")
    requests = [
        GenerateRequest(
            prompt_ids=chat.prompt_ids(row.messages),
            max_tokens=draw.choice(MIXED_MAX_TOKENS),
            num_candidates=4,
            stop_token_ids=chat.stop_token_ids,
        )
        for row in prompt_rows(bench.amount)
    ]
    return _two_engines(bench, BASE, {"mixed": requests})


def _two_engines(bench: Bench, model: Path, requests: dict[str, list[Any]]) -> Sides:
    engines = [engine(bench, name, model)[0] for name in ("vllm", "transformers")]

    def read(one: Any) -> Reading:
        rates: dict[str, Any] = {}
        for kind, some in requests.items():
            started = time.perf_counter()
            completions = [done for each in one.generate(some) for done in each]
            lengths = [len(done.token_ids) for done in completions]
            rates |= {kind: sum(lengths) / (time.perf_counter() - started), f"{kind}_lengths": lengths}
        return rates

    def spans(ours: Readings, peer: Readings) -> list[str]:
        return [
            f"{kind}: {len(some)} prompts of {_span([len(one.prompt_ids) for one in some])} tokens, completions of "
            f"{_span([length for reading in (*ours, *peer) for length in reading[f'{kind}_lengths']])}"
            for kind, some in requests.items()
        ]

    for one in engines:
        one.generate(next(iter(requests.values()))[:2])
    return Sides(partial(read, engines[0]), partial(read, engines[1]), spans)


def _span(lengths: Sequence[int]) -> str:
    if min(lengths) == max(lengths):
        return f"{lengths[0]}"
    return f"{min(lengths)} to {max(lengths)} (median {median(lengths):.0f})"


# ---- warm against cold ------------------------------------------------------------------------------------------


def _warm_vs_cold(bench: Bench) -> Sides:
    """A whole quickstart with the warm engine, and with vLLM started anew for each use; one run of each."""
    from scripts.bench.vllm_alone import run_quickstart

    overrides = SHORTENED if bench.quick else []

    def side(name: str) -> Reading:
        run_dir = bench.work / f"quickstart-{name}"
        shutil.rmtree(run_dir, ignore_errors=True)
        log = bench.work / f"quickstart-{name}.log"
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


def _rate(kind: str, bar: float, name: str = "") -> Figure:
    return Figure(name or f"vllm_vs_transformers_{kind}", kind, " tok/s", bar)


_CASES = (
    Case("stage_vs_vllm", (Figure("stage_vs_vllm", "rate", " tok/s", 0.95),), _stage_vs_vllm, {"5m": 256}, quick=8),
    Case("vllm_vs_transformers", tuple(_rate(kind, 1.0) for kind in KINDS), _engines, {"5m": 256}, quick=2),
    Case("vllm_vs_transformers_mixed", (_rate("mixed", 1.5),), _engines_mixed, {"base": 128}, quick=4),
    Case(
        "swap_seconds_5m",
        (
            Figure("swap_seconds_5m", "cached", " s", 2.0, at_least=False, peer=False),
            Figure("swap_seconds_5m_without_canary", "bare", " s", peer=False),
            Figure("cold_start_seconds_5m", "cold_start", " s", peer=False),
        ),
        swaps,
        {"5m": 20},
        quick=4,
        once=True,
    ),
    Case(
        "swap_memory_growth_mb",
        (
            Figure("swap_memory_growth_mb", "growth", " MB", 20.0, at_least=False),
            Figure("swap_memory_start_mb", "start", " MB"),
        ),
        swap_memory,
        {"5m": 50},
        quick=6,
        once=True,
    ),
    Case(
        "swap_vs_read_300m",
        (
            Figure("swap_vs_read_300m", "disk", " s", 3.0, at_least=False),
            Figure("swap_vs_read_300m_cached", "cached", " s"),
            Figure("swap_seconds_300m_cached_without_canary", "bare", " s", peer=False),
            Figure("cold_start_seconds_300m", "cold_start", " s", peer=False),
        ),
        swaps,
        {"300m": 7},
        quick=0,
    ),
    Case(
        "warm_vs_cold",
        (Figure("warm_vs_cold", "seconds", " s", 2.0, inverse=True),),
        _warm_vs_cold,
        {"6 rounds": 6},
        quick=0,
        once=True,
    ),
)
CASES = tuple(replace(case, needs="vllm") for case in _CASES)
