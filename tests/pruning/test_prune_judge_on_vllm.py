"""The judge's questions on the real engine: a model that knows nothing of judging, held to each prompt's schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignloop.config.bundled import QUICKSTART
from alignloop.config.engine import EngineConfig, JudgeConfig
from alignloop.config.pruning import PruneConfig
from alignloop.engines.open import open_engine
from alignloop.pruning.items import item_of_sft
from alignloop.pruning.judge import PruneJudge
from alignloop.pruning.pipeline import prune
from alignloop.pruning.step import Tools
from alignloop.records import Message, SftRow, Source

pytest.importorskip("vllm")

LABELS = ("code", "history", "nature")


def short(folder: Path, name: str, properties: dict[str, Any], verdict: dict[str, Any], user: str) -> str:
    """A judging prompt that fits the tiny model's context."""
    kind = "points" if "maximum" in verdict else "texts"
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"kind": kind, "user": user, "verdict": verdict, "schema": schema}))
    return str(path)


def test_every_question_is_answered_in_its_schema(tmp_path: Path) -> None:
    text = {"type": "string", "minLength": 1, "maxLength": 12}
    topic_fields = {"coarse": {"type": "string"}, "fine": text}
    intentions = {"intentions": {"type": "array", "items": text, "minItems": 1, "maxItems": 3}}
    three = {"points": {"type": "integer", "enum": [1, 2, 3]}}
    two = {"points": {"type": "integer", "enum": [1, 2]}}
    config = PruneConfig.model_validate(
        {
            "clean": {"enabled": False},
            "semantic_dedup": {"enabled": False},
            "decontaminate": {"enabled": False},
            "topic": {
                "by": "judge",
                "labels": LABELS,
                "prompt": short(
                    tmp_path,
                    "mine",
                    topic_fields,
                    {"fields": ["coarse", "fine"], "one_of": "coarse"},
                    "{prompt} {labels}",
                ),
            },
            "quality": {
                "by": "either",
                "top_fraction": 0.5,
                "general_prompt": short(tmp_path, "three", three, {"field": "points", "maximum": 3}, "{completion}"),
                "code_prompt": short(tmp_path, "two", two, {"field": "points", "maximum": 2}, "{completion}"),
            },
            "difficulty": {
                "by": "intentions",
                "intentions_prompt": short(tmp_path, "tags", intentions, {"fields": ["intentions"]}, "{prompt}"),
            },
        }
    )
    answers = ["The swan is white.", "```\nprint(1)\n```", "It was long ago.", "Bees make honey."]
    items = [
        item_of_sft(
            SftRow(
                id=str(number),
                messages=[Message(role="user", content="Tell me."), Message(role="assistant", content=answer)],
                origin="given",
                source=Source(file="f", line=number + 1),
            ),
            reward=float(number),
        )
        for number, answer in enumerate(answers)
    ]
    engine_config = EngineConfig(dtype="float32", max_model_len=384, max_num_seqs=16, kv_cache_gb=0.25)
    with open_engine(engine_config, log_file=tmp_path / "engine.log") as engine:
        judge = PruneJudge(
            JudgeConfig(model=str(QUICKSTART / "base"), max_tokens=128, max_retries=1),
            engine,
            dir=tmp_path / "judge",
            seed=3,
            max_model_len=384,
        )
        result = prune(items, Tools(config=config, seed=3, judge=judge))
    kept = {item.id: item for item in result.kept}
    assert len(kept) + len(result.dropped) == 4
    assert {"2", "3"} <= kept.keys()  # the top half by reward stays, whatever the judge says
    assert all(item.topic in LABELS and item.fine_topic for item in kept.values())
    assert all(1 <= len(item.tags or ()) <= 3 for item in kept.values())
    assert all(set(item.judge) == {"three"} or item.topic == "code" for item in kept.values() if item.id != "1")
    assert result.metrics["quality_num_unreadable"] == result.metrics["topic_num_without"] == 0
