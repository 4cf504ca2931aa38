"""What the tests of evaluation share: small benchmarks, engines without a model, and an evaluation by short names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignloop.chat.load import load_format
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.base import Completion, GenerateRequest
from alignloop.evaluation.evaluate import evaluate
from alignloop.evaluation.report import EvalReport, EvalSample
from alignloop.progress import QuietProgress

SHARED_DATA = Path(__file__).resolve().parents[2] / "../shared/data"
SENTENCES = {
    "instruction_id_list": ["length_constraints:number_sentences"],
    "kwargs": [{"relation": "at least", "num_sentences": 2}],
}
"""An instruction whose checker needs nltk's sentence data."""


class Lines(QuietProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class NoEngine:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the engine was asked to {name}")


class Scripted:
    """An engine that says what it is told to; ids are those of the checkpoint's tokenizer."""

    def __init__(self, checkpoint: Path, texts: Sequence[str]) -> None:
        self._chat = load_format(checkpoint)
        self._texts = texts
        self.asked: list[GenerateRequest] = []

    def load_weights(self, checkpoint: Path) -> None:
        pass

    def generate(self, requests: Sequence[GenerateRequest]) -> list[tuple[Completion, ...]]:
        self.asked += requests
        ids = [self._chat.completion(text).token_ids for text in self._texts]
        return [(Completion(token_ids, "stop"),) for token_ids in ids]


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def mmlu_folder(path: Path, test: dict[str, Sequence[str]], dev: Sequence[str] = ()) -> Path:
    """Subjects by name, each with its rows and, where there are any, the shots."""
    for part, rows_of in (("test", test), ("dev", dict.fromkeys(test, dev) if dev else {})):
        for subject, rows in rows_of.items():
            (path / part).mkdir(parents=True, exist_ok=True)
            (path / part / f"{subject}_{part}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def asked(engine: Any, checkpoint: Path, *tasks: str, **options: Any) -> EvalReport:
    settings: dict[str, Any] = {"limit": None, "max_gen_tokens": 12, "seed": 0, "progress": QuietProgress()}
    return evaluate(engine, checkpoint=checkpoint, **{"tasks": tasks, **settings, **options})


def samples_in(path: Path) -> list[EvalSample]:
    return list(load_jsonl(path, EvalSample))
