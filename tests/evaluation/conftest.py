"""A random Llama with the Llama 3 chat format over bytes, and the engine that serves it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import alignloop.chat.templates
from alignloop.config.engine import EngineConfig
from alignloop.engines.transformers_engine import TransformersEngine

sys.path.insert(0, str(Path(__file__).parent))
SHARED_DATA = Path(__file__).resolve().parents[2] / "../shared/data"
SPECIAL_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Hugging Face directory: 2 layers, hidden 32, one token a byte, 4,096 positions."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[3], pad_token=SPECIAL_TOKENS[3]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS[1:3])})
    templates = Path(alignloop.chat.templates.__file__).parent
    tokenizer.chat_template = (templates / "llama3.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def engine() -> TransformersEngine:
    return TransformersEngine(EngineConfig(name="transformers", dtype="float32"))


@pytest.fixture
def sentence_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """nltk's sentence data from the shared material."""
    import nltk

    if not (SHARED_DATA / "nltk_data").is_dir():
        pytest.skip(f"no {SHARED_DATA / 'nltk_data'}")
    monkeypatch.setattr(nltk.data, "path", [str(SHARED_DATA / "nltk_data")])


@pytest.fixture
def without_sentence_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither nltk's own folders nor a package have them."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "none")])
    monkeypatch.setattr("alignloop.evaluation.ifeval.SENTENCE_PACKAGE", ("no_such_package", ""))
