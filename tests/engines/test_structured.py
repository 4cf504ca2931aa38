"""Completions held to a JSON schema, on real vLLM with the bundled base's real tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import validate
from transformers import PreTrainedTokenizerFast

from alignloop.config.bundled import resolve_base
from alignloop.config.engine import EngineConfig
from alignloop.engines.base import GenerateRequest
from alignloop.engines.process import EngineProcess
from alignloop.errors import EngineError

pytest.importorskip("vllm")

BASE = Path(resolve_base("quickstart"))
SCHEMA = {
    "type": "object",
    "properties": {
        "winner": {"enum": ["first", "second", "tie"]},
        "points": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["winner", "points"],
    "additionalProperties": False,
}
CONFIG = EngineConfig(dtype="float32", max_model_len=256, max_num_seqs=16, kv_cache_gb=0.1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with EngineProcess(CONFIG, log_file=tmp_path_factory.mktemp("log") / "engine.log") as engine:
        yield engine


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(BASE)


def asked(tokenizer: PreTrainedTokenizerFast, *, schema: str | None, seed: int = 1) -> GenerateRequest:
    ids = tuple(tokenizer("Which of the two is better?", add_special_tokens=False)["input_ids"])
    return GenerateRequest(ids, max_tokens=100, num_candidates=4, temperature=1.5, seed=seed, json_schema=schema)


def test_every_completion_parses_and_fits_the_schema(engine: EngineProcess, tokenizer: PreTrainedTokenizerFast) -> None:
    engine.load_weights(BASE)
    compact = json.dumps(SCHEMA)
    held, free, held_again = engine.generate(
        [asked(tokenizer, schema=compact), asked(tokenizer, schema=None), asked(tokenizer, schema=compact, seed=2)]
    )
    done = [c for c in [*held, *held_again] if c.finish_reason == "stop"]
    assert len(done) >= 6  # white space may fill a completion up; what ended is whole
    for completion in done:
        validate(json.loads(tokenizer.decode(completion.token_ids, skip_special_tokens=True)), SCHEMA)
    assert engine.generate([asked(tokenizer, schema=None)]) == [free]  # a neighbour's schema changes nothing
    assert engine.generate([asked(tokenizer, schema=compact)]) == [held]


def test_a_checkpoint_without_a_tokenizer_is_refused_and_the_engine_lives_on(
    engine: EngineProcess, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(BASE / name, bare / name)
    engine.load_weights(bare)
    with pytest.raises(EngineError, match=r"bare: its tokenizer cannot be read, which .* JSON schemas need"):
        engine.generate([asked(tokenizer, schema=json.dumps(SCHEMA))])
    assert engine.generate([asked(tokenizer, schema=None)])
    engine.load_weights(BASE)
    assert engine.generate([asked(tokenizer, schema=json.dumps(SCHEMA))])
    assert engine.num_starts == 1


def test_a_schema_vllm_cannot_hold_to_is_refused_and_the_engine_lives_on(
    engine: EngineProcess, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.load_weights(BASE)
    unique = json.dumps({"type": "array", "items": {"type": "integer"}, "uniqueItems": True})
    with pytest.raises(EngineError, match="cannot hold completions to a JSON schema"):
        engine.generate([asked(tokenizer, schema=None), asked(tokenizer, schema=unique)])
    assert engine.generate([asked(tokenizer, schema=json.dumps(SCHEMA))])
    assert engine.num_starts == 1
