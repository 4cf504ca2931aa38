"""Tiny random checkpoints with a tokenizer, and one vLLM engine for all tests of the folder: a start costs most."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

VOCAB = 512


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`a`, `b`: one architecture, tied head, other weights. `nudged`: `a` with its weights moved by 1e-5.

    `untied`, `untied_b`: the same with a head of its own.
    """
    folder = tmp_path_factory.mktemp("checkpoints")
    return SimpleNamespace(
        a=_save(folder / "a", seed=1, tied=True),
        b=_save(folder / "b", seed=2, tied=True),
        nudged=_save(folder / "nudged", seed=1, tied=True, nudge=1e-5),
        untied=_save(folder / "untied", seed=3, tied=False),
        untied_b=_save(folder / "untied_b", seed=4, tied=False),
    )


@pytest.fixture(scope="session")
def vllm_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    pytest.importorskip("vllm")
    from alignloop.config.engine import EngineConfig
    from alignloop.engines.open import open_engine

    config = EngineConfig(dtype="float32", max_model_len=256, max_num_seqs=64, kv_cache_gb=0.25, canary_tolerance=1e-3)
    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        # A user's machine may have no C++ compiler, and this one may have kernels compiled earlier.
        patch.setenv("CXX", "/bin/false")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "kernels"))
        with open_engine(config, log_file=folder / "engine.log") as engine:
            yield engine


@pytest.fixture(scope="session")
def plain_forward() -> SimpleNamespace:
    """What the engines are compared with: transformers in this process, one sequence at a time, float32."""
    return SimpleNamespace(greedy=_greedy, logprobs=_logprobs)


def _save(path: Path, *, seed: int, tied: bool, nudge: float = 0.0) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(nudge)
    model.save_pretrained(path)
    vocab = {f"w{i:03d}": i for i in range(VOCAB)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="w003"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w001", pad_token="w002").save_pretrained(path)
    return path


def _greedy(checkpoint: Path, prompt_ids: tuple[int, ...], *, max_tokens: int, eos: int = 1) -> tuple[int, ...]:
    """Argmax decoding without a cache."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = list(prompt_ids)
    with torch.inference_mode():
        for _ in range(max_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == eos:
                break
    return tuple(ids[len(prompt_ids) :])


def _logprobs(checkpoint: Path, context: tuple[int, ...], continuation: tuple[int, ...]) -> list[float]:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.tensor([[*context, *continuation]])
    with torch.inference_mode():
        all_logprobs = model(ids).logits[0].log_softmax(-1)
    first = len(context)
    return [float(all_logprobs[first - 1 + i, token_id]) for i, token_id in enumerate(continuation)]
