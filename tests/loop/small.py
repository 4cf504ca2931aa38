"""A quickstart of seconds: few annotations, prompts, candidates and questions, sampled without vLLM."""

from __future__ import annotations

SMALL = (
    "engine.name=transformers",
    "collect.num_annotations=4",
    "data.split_rounds=60",
    "data.heldout_fraction=0.01",
    "sample.num_prompts=8",
    "sample.num_candidates=3",
    "sample.max_tokens=24",
    "evaluate.limit=4",
    "evaluate.max_gen_tokens=16",
    "sft.epochs=1",
)
