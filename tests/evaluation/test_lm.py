from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignloop.chat.load import load_format
from alignloop.engines.transformers_engine import TransformersEngine
from alignloop.evaluation.lm import EngineLM, GenerationLimits
from alignloop.evaluation.packed import pack_messages, unpack_messages
from alignloop.progress import QuietProgress
from alignloop.records import Message


def _lm(engine: TransformersEngine, checkpoint: Path, *, max_model_len: int = 4096) -> EngineLM:
    engine.load_weights(checkpoint)
    return EngineLM(
        engine,
        checkpoint=checkpoint,
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
        chat=load_format(checkpoint),
        limits=GenerationLimits(max_model_len=max_model_len, max_gen_tokens=20),
        seed=0,
        progress=QuietProgress(),
    )


def _instance(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("task", 0, 1))


def test_messages_survive_lm_evals_strings() -> None:
    messages = [{"role": "system", "content": "Be\nbrief."}, {"role": "user", "content": 'A "mill" <|eot_id|> \x00 ü'}]
    unpacked = unpack_messages(pack_messages(messages))
    assert unpacked == tuple(Message(**message) for message in messages)
    assert unpack_messages("a plain prompt") is None


def test_special_tokens_in_a_prompt_stay_text(engine: TransformersEngine, tiny_checkpoint: Path) -> None:
    lm = _lm(engine, tiny_checkpoint)
    eot = lm.eot_token_id
    counts = []
    for content in ("stop here", "stop <|eot_id|> here"):
        pair = lm._encode_pair(lm.apply_chat_template([{"role": "user", "content": content}]), "<|eot_id|>")
        counts.append(pair[0].count(eot) + pair[1].count(eot))
    assert counts == [1, 1]  # the one that ends the user's turn


def test_rolling_loglikelihood_predicts_each_token_once(engine: TransformersEngine, tiny_checkpoint: Path) -> None:
    import torch

    text = "The old mill stands by the river and turns."
    lm = _lm(engine, tiny_checkpoint)
    (total,) = lm.loglikelihood_rolling([_instance("loglikelihood_rolling", text)])
    ids = torch.tensor([[lm.prefix_token_id, *lm.tok_encode(text)]])
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    with torch.inference_mode():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    direct = float(logprobs.gather(-1, ids[0, 1:, None]).sum())
    assert total == pytest.approx(direct, abs=1e-3)
    # In windows of 18 tokens the sum is another number, of as many terms.
    windowed = _lm(engine, tiny_checkpoint, max_model_len=20)
    (in_windows,) = windowed.loglikelihood_rolling([_instance("loglikelihood_rolling", text)])
    assert in_windows != pytest.approx(direct, abs=1e-3)


def test_empty_continuations_are_certain(engine: TransformersEngine, tiny_checkpoint: Path) -> None:
    lm = _lm(engine, tiny_checkpoint)
    context = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    requests = [_instance("loglikelihood", context, text) for text in ("a", "", "b")]
    results = lm.loglikelihood(requests)
    assert results[1] == (0.0, True)
    assert results[0][0] < 0 > results[2][0]
    assert results[0] != results[2]


def test_tasks_that_sample_do_so_with_the_seed(engine: TransformersEngine, tiny_checkpoint: Path) -> None:
    lm = _lm(engine, tiny_checkpoint)
    context = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    sampled = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 500, "until": "\n\n"}
    assert lm.effective_kwargs(sampled)["max_gen_toks"] == 20
    assert lm.effective_kwargs({"temperature": 0.7})["temperature"] == 0.0
    requests = [_instance("generate_until", context, sampled), _instance("generate_until", context, sampled)]
    first = lm.generate_until(requests)
    assert first == lm.generate_until(requests)
    assert first[0] != first[1]
