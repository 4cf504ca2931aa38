"""Tiny random checkpoints with a tokenizer, and one engine of each kind for all tests of the folder: a start costs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

VOCAB = 512


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`a`, `b`: one architecture, tied head, other weights. `nudged`: `a` with its weights moved by 1e-5.

    `spelled`: `a` with a tokenizer of bytes. `untied`, `untied_b`: with a head of their own.
    """
    folder = tmp_path_factory.mktemp("checkpoints")
    return SimpleNamespace(
        a=_save(folder / "a", seed=1, tied=True),
        b=_save(folder / "b", seed=2, tied=True),
        nudged=_save(folder / "nudged", seed=1, tied=True, nudge=1e-5),
        spelled=_save(folder / "spelled", seed=1, tied=True, spelled=True),
        untied=_save(folder / "untied", seed=3, tied=False),
        untied_b=_save(folder / "untied_b", seed=4, tied=False),
    )


@pytest.fixture(scope="session")
def said() -> list[str]:
    return []


@pytest.fixture(scope="session")
def process_engine(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Iterator[object]:
    """An engine process with the transformers engine inside: it starts sooner than vLLM, all else is the same."""
    from alignloop.config.engine import EngineConfig
    from alignloop.engines.process import EngineProcess

    values = {"name": "transformers", "dtype": "float32", "max_model_len": 256, "max_num_seqs": 8}
    config = EngineConfig.model_validate({**values, "stall_seconds": 3.0, "max_restarts": 99})
    log_file = tmp_path_factory.mktemp("process") / "engine.log"
    with EngineProcess(config, log_file=log_file, say=said.append) as engine:
        yield engine


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


def _save(path: Path, *, seed: int, tied: bool, nudge: float = 0.0, spelled: bool = False) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
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
    if spelled:
        letters = ["w000", "w001", "w002", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokens = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
        tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokens.decoder = decoders.ByteLevel()
    else:
        tokens = Tokenizer(models.WordLevel({f"w{i:03d}": i for i in range(VOCAB)}, unk_token="w003"))
        tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="w001", pad_token="w002").save_pretrained(path)
    return path
