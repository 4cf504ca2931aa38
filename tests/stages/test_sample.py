"""The sample stage: what is asked of the engine, what lands in the rows, and what a crash costs."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stage_case import Listening, ScriptedEngine, at_door, context, written

from alignloop.artifacts import Artifact, derive_seed, stage_seed
from alignloop.chat.template_defaults import with_defaults
from alignloop.chat.templates import bundled_by_trl, give_template, load_template
from alignloop.config.bundled import resolve_base
from alignloop.config.engine import EngineConfig
from alignloop.config.sampling import SystemPrompt
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.base import Completion, Engine, GenerateRequest
from alignloop.engines.open import open_engine
from alignloop.engines.process import EngineProcess
from alignloop.errors import DataError, EngineError, ModelError, UserError
from alignloop.progress import Advance, Progress, QuietProgress
from alignloop.records import CandidateRow, DroppedRow, Message, PromptRow, Source
from alignloop.run_dir.stage import StageContext
from alignloop.stages import sample

NO_SYSTEM = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)


@pytest.fixture(scope="module")
def policy() -> Artifact:
    return Artifact.of(Path(resolve_base("quickstart")))


def config(**values: Any) -> sample.Settings:
    default = {"num_candidates": 3, "max_tokens": 6, "shard_prompts": 2, "max_model_len": 128}
    engine = {"engine": "vllm", "engine_dtype": "float32", "quantization": None}
    return sample.Settings(**{**default, **engine, **values})


def prompt(n: int, **values: Any) -> PromptRow:
    text = values.pop("text", f"Name river {n}.")
    source = Source(file="prompts.jsonl", line=n + 1)
    return PromptRow(
        **{"id": f"p{n}", "messages": [Message(role="user", content=text)], "source": source, "meta": {}, **values}
    )


def sampled(
    folder: Path,
    policy: Artifact,
    prompts: Sequence[PromptRow],
    settings: sample.Settings,
    engine: Engine | None = None,
    *,
    number: int = 1,
    progress: Progress | None = None,
) -> sample.Outputs:
    """In `folder/round-NN/04_sample`."""
    folder.mkdir(exist_ok=True)
    inputs = sample.Inputs(policy, written(folder / "prompts.jsonl", prompts))
    return at_door(
        sample.STAGE,
        settings,
        inputs,
        folder / f"round-{number:02d}" / "04_sample",
        number=number,
        run_seed=7,
        engine=engine,
        progress=progress,
    )


def rows_of(outputs: sample.Outputs) -> list[CandidateRow]:
    return list(load_jsonl(outputs.candidates.path, CandidateRow))


def test_rows_say_how_they_were_sampled(policy: Artifact, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    outputs = sampled(
        tmp_path, policy, [prompt(n, meta={"topic": "x"}) for n in range(5)], config(temperature=(0.5, 1.5)), engine
    )
    rows = rows_of(outputs)
    assert [row.id for row in rows] == [f"p{n}/1/{k}" for n in range(5) for k in range(3)]
    assert [len(call) for call in engine.requests] == [2, 2, 1]  # shards of two prompts
    requests = [request for call in engine.requests for request in call]
    own_seed = stage_seed(7, round=1, stage="sample")
    for n, request in enumerate(requests):
        of = [row for row in rows if row.prompt_id == f"p{n}"]
        assert request.seed == derive_seed(own_seed, f"p{n}")
        assert {row.temperature for row in of} == {request.temperature}
        assert {row.top_p for row in of} == {request.top_p} == {1.0}
        assert request.num_candidates == 3
        assert request.max_tokens == 6
        assert 4 in request.stop_token_ids
    assert len({request.temperature for request in requests}) == 5
    assert {(row.policy, row.round, row.system_prompt) for row in rows} == {(policy.digest, 1, None)}
    assert rows[0].meta == {"topic": "x"}
    assert not list((tmp_path / "round-01" / "04_sample").glob("*shard*"))
    assert not list((tmp_path / "round-01" / "04_sample").glob("*.tmp"))


def test_metrics_by_hand(policy: Artifact, tmp_path: Path) -> None:
    stop = Completion((4,), "stop")  # nothing but the end of turn: empty
    said = Completion((72, 73, 4), "stop")
    cut = Completion((72, 73, 74, 75, 76, 77), "length")

    class Fixed(ScriptedEngine):
        def _completions(self, request: GenerateRequest) -> list[Completion]:
            return [said, said, cut, stop]

    outputs = sampled(tmp_path, policy, [prompt(0), prompt(1)], config(num_candidates=4), Fixed())
    rows = rows_of(outputs)
    assert [row.finish_reason for row in rows[:4]] == ["stop", "stop", "length", "stop"]
    assert rows[3].completion == ""
    assert rows[0].completion_ids == [72, 73, 4]  # as sampled, with the stop token
    assert rows[0].completion == rows[1].completion != ""
    assert outputs.counts == {"in": 2, "kept": 2, "dropped": 0, "candidates": 8}
    assert outputs.metrics == {
        "stop_rate": 0.75,
        "truncation_rate": 0.25,
        "mean_tokens": (3 + 3 + 6 + 1) / 4,
        "empty_rate": 0.25,
        "reasoning_rate": 0.0,
        "unique_candidates": 3.0,
        "duplicate_rate": 0.25,
    }


def test_a_system_prompt_steers_and_is_seen_by_training_only_where_asked(policy: Artifact, tmp_path: Path) -> None:
    prompts = [
        prompt(0, meta={"topic": "maths"}),
        prompt(1, meta={"topic": "talk"}),
        prompt(2, meta={"topic": "maths"}, messages=[Message(role="system", content="Own."), *prompt(2).messages]),
    ]
    steering = (SystemPrompt(text="Show your steps.", first_round=2, topics=("maths",)),)
    plain, hidden, seen = ScriptedEngine(), ScriptedEngine(), ScriptedEngine()
    before = rows_of(sampled(tmp_path, policy, prompts, config(system_prompts=steering), plain))
    unseen = rows_of(sampled(tmp_path, policy, prompts, config(system_prompts=steering), hidden, number=2))
    assert {row.system_prompt for row in before} == {None}
    assert [row.system_prompt for row in unseen[::3]] == ["Show your steps.", None, None]
    assert [row.messages for row in unseen[::3]] == [p.messages for p in prompts]
    shown = config(system_prompts=steering, train_on_system_prompt=True)
    both = rows_of(sampled(tmp_path / "seen", policy, prompts, shown, seen, number=2))
    assert {row.system_prompt for row in both} == {None}
    assert [[m.role for m in row.messages] for row in both[::3]] == [["system", "user"], ["user"], ["system", "user"]]
    assert [row.messages[0].content for row in both[::3]] == ["Show your steps.", "Name river 1.", "Own."]
    # The policy is asked the same in both, and more than it was in round 1.
    asked = [[request.prompt_ids for call in engine.requests for request in call] for engine in (plain, hidden, seen)]
    assert asked[1] == asked[2]
    assert [len(b) > len(a) for a, b in zip(asked[0], asked[1], strict=True)] == [True, False, False]
    assert [row.completion_ids for row in both] == [row.completion_ids for row in unseen]


def copied_policy(policy: Artifact, folder: Path, *, template: str) -> Artifact:
    shutil.copytree(policy.path, folder)
    (folder / "chat_template.jinja").write_text(template)
    return Artifact.of(folder)


def test_a_template_without_system_role_is_said_before_the_engine_is_asked(policy: Artifact, tmp_path: Path) -> None:
    bare = copied_policy(policy, tmp_path / "bare", template=NO_SYSTEM)
    engine = ScriptedEngine(dies_at=0)
    settings = config(system_prompts=(SystemPrompt(text="Be kind."),))
    with pytest.raises(
        ModelError,
        match=r"prompt p0 \(prompts.jsonl, line 1\), with a system prompt of sample.system_prompts: .*System role not",
    ):
        sampled(tmp_path, bare, [prompt(0)], settings, engine)
    assert len(rows_of(sampled(tmp_path, bare, [prompt(0)], config()))) == 3  # without one it samples


@pytest.mark.parametrize(
    ("template", "kwargs", "unasked"),
    [
        ("qwen3", {"enable_thinking": False}, True),
        ("qwen3", {"enable_thinking": True}, False),
        ("gptoss", {"thinking": False}, True),  # its prompt looks the same either way
        ("llama3", {}, True),  # its template knows no reasoning
    ],
)
def test_reasoning_that_nobody_asked_for_is_counted_and_said(
    policy: Artifact, tmp_path: Path, template: str, kwargs: dict[str, bool], unasked: bool
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    give_template(tokenizer, load_template(str(bundled_by_trl()[template])))
    tokenizer.chat_template = with_defaults(tokenizer.chat_template, kwargs)
    folder = tmp_path / "policy"
    shutil.copytree(policy.path, folder)
    tokenizer.save_pretrained(folder)
    texts = ("<think>\nhm\n</think>\n\nyes", "<think>\nhm", "yes", "no")
    ids = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    class Thinks(ScriptedEngine):
        def _completions(self, request: GenerateRequest) -> list[Completion]:
            return [Completion(each, "length") for each in ids]

    notes = Listening()
    settings = config(num_candidates=4, max_tokens=32, max_model_len=512)
    outputs = sampled(tmp_path, Artifact.of(folder), [prompt(0)], settings, Thinks(), progress=notes)
    assert outputs.metrics["reasoning_rate"] == 0.5
    said = [line.partition(",")[0].strip() for line in notes.lines if "reasoning" in line]
    assert said == ["2 of 4 completions hold reasoning"] * unasked


def test_prompts_without_room_are_dropped_with_their_system_prompt_counted(policy: Artifact, tmp_path: Path) -> None:
    from alignloop.chat.load import load_format

    chat = load_format(policy.path)
    long = prompt(1, text="Name a river and then another river.")
    length = len(chat.prompt_ids(long.messages))
    assert len(chat.prompt_ids(prompt(0).messages)) < length
    fits = config(max_model_len=length + 6)
    assert sampled(tmp_path, policy, [prompt(0), long], fits).counts["dropped"] == 0
    tight = config(max_model_len=length + 5)
    outputs = sampled(tmp_path / "tight", policy, [prompt(0), long], tight)
    (drop,) = load_jsonl(outputs.dropped.path, DroppedRow)
    assert (drop.id, drop.rule) == ("p1", "length")
    assert drop.reason == f"{length} prompt tokens and 6 for the completion exceed {length + 5}"
    assert outputs.counts == {"in": 2, "kept": 1, "dropped": 1, "candidates": 3}
    steered = fits.model_copy(update={"system_prompts": (SystemPrompt(text="Be very kind to rivers, always."),)})
    with pytest.raises(DataError, match=r"none of 2 prompts leaves room .*p0: \d+ prompt tokens \(the system prompt"):
        sampled(tmp_path / "steered", policy, [prompt(0), long], steered)


def test_bad_input_is_named_before_the_engine_is_asked(policy: Artifact, tmp_path: Path) -> None:
    engine = ScriptedEngine(dies_at=0)
    twice = [prompt(0), prompt(1), prompt(2, id="p0")]
    with pytest.raises(DataError, match=r"two prompts have the id 'p0' \(prompts.jsonl, line 1; prompts.jsonl, line 3"):
        sampled(tmp_path, policy, twice, config(), engine)
    with pytest.raises(UserError, match=r"engine.max_model_len: 4096 tokens, but .* has 2048 positions"):
        sampled(tmp_path, policy, [prompt(0)], config(max_model_len=4096), engine)
    with pytest.raises(UserError, match=r"sample.max_tokens \(128\) leaves no room .*max_model_len \(128\)"):
        sampled(tmp_path, policy, [prompt(0)], config(max_tokens=128), engine)
    with pytest.raises(UserError, match=r"vLLM samples at most 16384 candidates a prompt, not 16385"):
        sampled(tmp_path, policy, [prompt(0)], config(num_candidates=16_385), engine)


PROMPTS = [prompt(n) for n in range(7)]


def ran(
    policy: Artifact, folder: Path, engine: ScriptedEngine, prompts: Sequence[PromptRow] = PROMPTS
) -> sample.Outputs:
    """In a working folder, which keeps what an earlier call left."""
    inputs = sample.Inputs(policy, written(folder.with_suffix(".jsonl"), prompts))
    return sample.run(config(), inputs, context(folder, seed=11, engine=engine))


@pytest.fixture
def unbroken(policy: Artifact, tmp_path: Path) -> bytes:
    return ran(policy, tmp_path / "unbroken", ScriptedEngine()).candidates.path.read_bytes()


@pytest.mark.parametrize("dies_at", [0, 1, 3])
def test_a_crash_costs_one_shard(policy: Artifact, tmp_path: Path, unbroken: bytes, dies_at: int) -> None:
    with pytest.raises(EngineError):
        ran(policy, tmp_path / "room", ScriptedEngine(dies_at=dies_at))
    assert len(list((tmp_path / "room").glob("shard-*.jsonl"))) == dies_at
    again = ScriptedEngine()
    outputs = ran(policy, tmp_path / "room", again)
    assert outputs.candidates.path.read_bytes() == unbroken
    assert len(again.requests) == 4 - dies_at  # 7 prompts are 4 shards
    assert {path.name for path in (tmp_path / "room").iterdir()} == {"candidates.jsonl", "dropped.jsonl"}


def _cut(path: Path) -> bytes:
    whole = path.read_bytes()
    return whole[: len(whole) // 2]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half written": lambda shard: shard.rename(f"{shard}.tmp").write_bytes(_cut(Path(f"{shard}.tmp"))),
    "without its bytes": lambda shard: shard.write_bytes(b""),
    "cut short": lambda shard: shard.write_bytes(_cut(shard)),
    "of other prompts": lambda shard: shutil.copyfile(shard.with_name("shard-00000.jsonl"), shard),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_shard_that_is_not_whole_is_sampled_again(
    policy: Artifact, tmp_path: Path, unbroken: bytes, how: str
) -> None:
    with pytest.raises(EngineError):
        ran(policy, tmp_path / "room", ScriptedEngine(dies_at=3))
    DAMAGE[how](tmp_path / "room" / "shard-00001.jsonl")
    again = ScriptedEngine()
    outputs = ran(policy, tmp_path / "room", again)
    assert outputs.candidates.path.read_bytes() == unbroken
    assert [len(call) for call in again.requests] == [2, 1]  # the damaged one and the last
    assert {path.name for path in (tmp_path / "room").iterdir()} == {"candidates.jsonl", "dropped.jsonl"}


def test_a_crash_after_the_last_shard_costs_nothing(policy: Artifact, tmp_path: Path, unbroken: bytes) -> None:
    first = ran(policy, tmp_path / "room", ScriptedEngine())
    (tmp_path / "room" / "shard-00002.jsonl").write_text("left when it was killed between two removals")
    again = ScriptedEngine(dies_at=0)
    outputs = ran(policy, tmp_path / "room", again)
    assert outputs.candidates.path.read_bytes() == unbroken
    assert outputs.metrics == first.metrics
    assert {path.name for path in (tmp_path / "room").iterdir()} == {"candidates.jsonl", "dropped.jsonl"}


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        (config(shard_prompts=3), PROMPTS),
        (config(), [*PROMPTS[:1], prompt(9), *PROMPTS[1:]]),
        (config(), [prompt(0, text="Name a lake."), *PROMPTS[1:]]),  # the same ids
        (config(temperature=0.5), PROMPTS),
        (config(system_prompts=(SystemPrompt(text="Be kind."),)), PROMPTS),
    ],
)
def test_shards_of_another_configuration_or_other_prompts_are_not_taken_over(
    policy: Artifact, tmp_path: Path, settings: sample.Settings, prompts: list[PromptRow]
) -> None:
    with pytest.raises(EngineError):
        sampled(tmp_path, policy, PROMPTS, config(), ScriptedEngine(dies_at=3))
    assert len(list(tmp_path.glob("round-01/04_sample.partial/shard-*.jsonl"))) == 3
    engine = ScriptedEngine()
    outputs = sampled(tmp_path, policy, prompts, settings, engine)
    assert sum(len(call) for call in engine.requests) == len(prompts)
    fresh = sampled(tmp_path / "fresh", policy, prompts, settings)
    assert outputs.candidates.path.read_bytes() == fresh.candidates.path.read_bytes()


def test_what_a_prompt_is_sampled_depends_on_no_other_prompt(policy: Artifact, tmp_path: Path, unbroken: bytes) -> None:
    outputs = ran(policy, tmp_path / "few", ScriptedEngine(), [PROMPTS[5], PROMPTS[2]])
    lines = set(unbroken.splitlines())
    assert [line in lines for line in outputs.candidates.path.read_bytes().splitlines()] == [True] * 6


def test_a_sleeping_engine_wakes_with_the_policy_and_nothing_else(policy: Artifact, tmp_path: Path) -> None:
    loaded = []

    class Sleeping(ScriptedEngine):
        """Asleep, as training left it, with another checkpoint."""

        def load_weights(self, checkpoint: Path) -> None:
            loaded.append(checkpoint)

        def wake(self) -> None:
            loaded.append(Path("served before"))

    sampled(tmp_path, policy, [prompt(0)], config(), Sleeping())
    assert loaded == [policy.path]


class KillsOnce(QuietProgress):
    """Kills the engine's process after the first shard, as the system does where memory runs out."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._killed = False

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Advance]:
        def advance(num_done: int) -> None:
            if not self._killed and self._engine.pid is not None:
                os.kill(self._engine.pid, signal.SIGKILL)
                self._killed = True

        yield advance


@pytest.mark.slow
def test_an_engine_that_is_killed_is_started_again_and_samples_the_same(policy: Artifact, tmp_path: Path) -> None:
    inputs = sample.Inputs(policy, written(tmp_path / "prompts.jsonl", PROMPTS[:4]))
    settings = config(engine="transformers")
    engine_config = EngineConfig(name="transformers", dtype="float32", max_model_len=128)
    found = []
    with open_engine(engine_config, log_file=tmp_path / "engine.log") as engine:
        assert isinstance(engine, EngineProcess)
        for name, progress in (("killed", KillsOnce(engine)), ("whole", QuietProgress())):
            room = tmp_path / name
            room.mkdir()
            ctx = StageContext(dir=room, seed=11, round=1, engine=engine, progress=progress)
            found.append(sample.run(settings, inputs, ctx).candidates.path.read_bytes())
        assert engine.num_starts == 2
    assert found[0] == found[1]
    assert found[0].count(b"\n") == 12
