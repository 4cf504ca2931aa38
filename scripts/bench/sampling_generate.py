"""Generation: the sample stage against vLLM alone, and alignloop's two engines against each other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from alignloop.artifacts import Artifact
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.engines.base import GenerateRequest
from alignloop.engines.checkpoint import text_config
from alignloop.progress import QuietProgress
from alignloop.records import CandidateRow, PromptRow
from alignloop.run_dir.stage import Place, run_stage
from alignloop.stages import sample
from scripts.bench.sampling_cases import (
    CASES,
    ENGINE,
    MIXED,
    ONE_LENGTH,
    Generating,
    Model,
    Result,
    ratio_result,
)
from scripts.bench.sampling_models import mixed_requests, one_length_requests, prompt_rows
from scripts.bench.sampling_room import RecordingEngine, Room
from scripts.bench.sampling_vllm import Completions

NUM_CANDIDATES = 16
WARM_UP_PROMPTS = 8
TOKENS_TOLERANCE = 0.01
"""Share by which the tokens of the two sides may differ where their completions are not the same to the last."""


# ---- the sample stage against vLLM ------------------------------------------------------------------------------


def stage_vs_vllm(room: Room) -> list[Result]:
    """Tokens a second of the whole stage over those of one `LLM.generate` call on the requests the stage made."""
    engine, raw = room.engine("vllm", "5m"), room.raw("5m")
    rows = prompt_rows(count=room.amount.num_prompts)
    _stage(room, engine, rows[:WARM_UP_PROMPTS])
    raw.call("generate", engine.requests)
    pairs: list[tuple[float, float]] = []
    requests: list[GenerateRequest] = []
    ours_ids: Completions = []
    theirs_ids: Completions = []
    for number in range(room.amount.pairs):
        # The first pair's stage goes first: what it asks of its engine is what vLLM is asked.
        rates: dict[str, float] = {}
        for side in ("stage", "vllm") if number % 2 == 0 else ("vllm", "stage"):
            if side == "stage":
                seconds, ours_ids = _stage(room, engine, rows)
                requests = list(engine.requests)
                rates[side] = _num_tokens(ours_ids) / seconds
            else:
                seconds, theirs_ids = raw.call("generate", requests)
                rates[side] = _num_tokens(theirs_ids) / seconds
        pairs.append((rates["stage"], rates["vllm"]))
    result = ratio_result(CASES["stage_vs_vllm"], pairs, unit="tok/s")
    remark, problem = _compared(ours_ids, theirs_ids)
    what = f"{len(rows)} prompts, K = {NUM_CANDIDATES}, up to {room.amount.max_tokens} tokens; {remark}"
    return [replace(result, remarks=(what,), problem=problem)]


def _stage(room: Room, engine: RecordingEngine, rows: Sequence[PromptRow]) -> tuple[float, Completions]:
    """Seconds of the stage, from its first look at the run directory to its published manifest, and the token ids."""
    recipe = Recipe(
        preferences=("quickstart",),
        sample={"num_candidates": NUM_CANDIDATES, "max_tokens": room.amount.max_tokens},
        engine=ENGINE,
    )
    round_dir = room.work / "stage" / "round-01"
    shutil.rmtree(round_dir, ignore_errors=True)
    round_dir.mkdir(parents=True)
    prompts = round_dir.parent / "prompts.jsonl"
    dump_jsonl(prompts, rows)
    inputs = sample.Inputs(Artifact.of(room.checkpoint("5m", "a")), Artifact.of(prompts))
    engine.requests.clear()
    started = time.perf_counter()
    outputs = run_stage(
        sample.STAGE,
        recipe.sample_stage,
        inputs,
        place=Place(round_dir / "04_sample", round=1, run_seed=0),
        engine=engine,
        progress=QuietProgress(),
    )
    seconds = time.perf_counter() - started
    by_prompt: dict[str, list[tuple[int, ...]]] = {}
    for row in load_jsonl(outputs.candidates.path, CandidateRow):
        by_prompt.setdefault(row.prompt_id, []).append(tuple(row.completion_ids))
    return seconds, list(by_prompt.values())


def _compared(ours: Completions, theirs: Completions) -> tuple[str, str | None]:
    """What the two sides' completions have in common, and why that is too little."""
    flat_ours, flat_theirs = ([ids for some in side for ids in some] for side in (ours, theirs))
    same = sum(a == b for a, b in zip(flat_ours, flat_theirs, strict=True))
    remark = f"{same:,} of {len(flat_ours):,} completions are the same to the last token"
    tokens = _num_tokens(ours), _num_tokens(theirs)
    if abs(tokens[0] - tokens[1]) <= TOKENS_TOLERANCE * tokens[1]:
        return f"{remark} ({tokens[0]:,} tokens)", None
    return remark, f"stage_vs_vllm: the two sides sampled {tokens[0]:,} and {tokens[1]:,} tokens: not the same work"


def _num_tokens(completions: Completions) -> int:
    return sum(len(ids) for some in completions for ids in some)


# ---- vLLM against transformers ----------------------------------------------------------------------------------


def vllm_vs_transformers(room: Room) -> list[Result]:
    """A result for each case, and their smallest under the name of all."""
    case = CASES["vllm_vs_transformers"]
    vocab_size = int(text_config(room.checkpoint("5m", "a"))["vocab_size"])

    def requests_of(one: Generating) -> list[GenerateRequest]:
        return one_length_requests(one, max_tokens=room.amount.max_tokens, vocab_size=vocab_size)

    results = [
        _compare_engines(room, _cut(one, room), requests_of, model="5m", name=f"{case.name}_{one.name}")
        for one in ONE_LENGTH
    ]
    slowest = min(results, key=lambda result: result.value)
    return [*results, replace(slowest, name="", remarks=(f"the smallest of the cases above: {slowest.key}",))]


def vllm_vs_transformers_mixed(room: Room) -> list[Result]:
    """Prompts and completions of many lengths, on a model that ends its turns itself."""
    return [_compare_engines(room, _cut(MIXED, room), mixed_requests, model="base", name="vllm_vs_transformers_mixed")]


def _cut(one: Generating, room: Room) -> Generating:
    most = room.amount.most_prompts
    return one if most is None else replace(one, num_prompts=min(one.num_prompts, most))


def _compare_engines(
    room: Room, one: Generating, requests_of: Callable[[Generating], list[GenerateRequest]], *, model: Model, name: str
) -> Result:
    requests = requests_of(one)
    engines = [room.engine("vllm", model), room.engine("transformers", model)]
    for engine in engines:
        engine.generate(requests[:2])
    pairs, lengths = [], []
    for number in range(room.amount.pairs):
        rates: dict[int, float] = {}
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            started = time.perf_counter()
            completions = engines[side].generate(requests)
            seconds = time.perf_counter() - started
            drawn = [len(completion.token_ids) for some in completions for completion in some]
            lengths.extend(drawn)
            rates[side] = sum(drawn) / seconds
        pairs.append((rates[0], rates[1]))
    case = CASES["vllm_vs_transformers_mixed" if model == "base" else "vllm_vs_transformers"]
    prompts = [len(request.prompt_ids) for request in requests]
    remark = f"{one.words}; prompts of {_span(prompts)} tokens, completions of {_span(lengths)}"
    return replace(ratio_result(case, pairs, unit="tok/s", name=name), remarks=(remark,))


def _span(lengths: Sequence[int]) -> str:
    if min(lengths) == max(lengths):
        return f"{lengths[0]}"
    return f"{min(lengths)} to {max(lengths)} (median {median(lengths):.0f})"
