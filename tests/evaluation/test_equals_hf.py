"""MMLU through our engine and through lm-eval's own `hf` model class: the same verdict on every question."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluation_case import SHARED_DATA, asked, samples_in

from alignloop.config.bundled import QUICKSTART
from alignloop.engines.transformers_engine import TransformersEngine
from alignloop.evaluation.report import EvalSample
from alignloop.evaluation.tasks import local_mmlu

MMLU = SHARED_DATA / "mmlu"
NUM_QUESTIONS = 2
"""Of each of the ten subjects; scripts/bench/run.py --cases mmlu_equal compares them all."""
TIE = 1e-4
"""Nats between two options below which float noise may turn their order."""


@pytest.fixture(scope="module")
def random_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 layers, hidden 64, the quickstart's tokenizer with the chatml template."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from alignloop.training.start import prepare_base

    folder = tmp_path_factory.mktemp("qwen2")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2080,  # the class adds a token of its own
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(QUICKSTART / "base" / name, folder / "bare" / name)
    prepare_base(str(folder / "bare"), chat_template="chatml", out_dir=folder / "qwen2")
    return folder / "qwen2"


def _by_hf(checkpoint: Path) -> dict[tuple[str, int], Any]:
    """(task, question) -> lm-eval's sample, of its own model class."""
    from lm_eval.evaluator import evaluate as lm_eval_evaluate
    from lm_eval.models.huggingface import HFLM

    loaded = local_mmlu(MMLU)
    # Without `add_bos_token` it puts the tokenizer's BOS before a rendered template that has none.
    lm = HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=16, add_bos_token=False)
    results = lm_eval_evaluate(
        lm=lm,
        task_dict={"tasks": loaded.tasks, "groups": loaded.groups, "group_map": {}},
        limit=NUM_QUESTIONS,
        bootstrap_iters=0,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    return {(task, row["doc_id"]): row for task, rows in results["samples"].items() for row in rows}


def _by_engine(engine: TransformersEngine, checkpoint: Path, folder: Path) -> dict[tuple[str, int], EvalSample]:
    asked(engine, checkpoint, f"mmlu={MMLU}", limit=NUM_QUESTIONS, samples_file=folder / "samples.jsonl")
    return {(row.task, row.index): row for row in samples_in(folder / "samples.jsonl")}


@pytest.mark.parametrize("which", ["quickstart", "qwen2"])
def test_mmlu_equals_lm_evals_hf_class(
    which: str, engine: TransformersEngine, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if not MMLU.is_dir():
        pytest.skip(f"no {MMLU}")
    checkpoint = QUICKSTART / "base" if which == "quickstart" else request.getfixturevalue("random_qwen2")
    ours, theirs = _by_engine(engine, checkpoint, tmp_path), _by_hf(checkpoint)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 10 * NUM_QUESTIONS
    right = 0
    for key, sample in ours.items():
        other = [response[0][0] for response in theirs[key]["resps"]]
        # lm-eval counts the header's line breaks to the option: the same term in all four.
        shift = other[0] - sample.option_logprobs[0]
        assert [value - shift for value in other] == pytest.approx(sample.option_logprobs, abs=1e-3)
        best, second = sorted(sample.option_logprobs)[:-3:-1]
        assert best - second > TIE, f"{key}: the two best options are a float tie: choose another seed"
        assert sample.verdicts["acc"] == float(theirs[key]["acc"])
        right += int(theirs[key]["acc"])
    assert 0 < right < len(ours)
