"""What one model samples: its requests to the engine and its candidates, a shard at a time, of which a crash costs one.

steered prompts --a shard--> requests --engine, its weights swapped in--> shard files --> <file>.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.artifacts import derive_seed, write_whole
from alignloop.config.sampling import SampleConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.base import Completion, Engine, GenerateRequest
from alignloop.errors import DataError, ModelError
from alignloop.records import CandidateRow, PromptRow, candidates_of
from alignloop.run_dir.stage import StageContext
from alignloop.sampling.steering import Steering, steer

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

CANDIDATES = "candidates.jsonl"
"""The policy's own."""


@dataclass(frozen=True)
class SteeredPrompt:
    prompt: PromptRow
    steering: Steering
    prompt_ids: tuple[int, ...]


def ask(prompt: PromptRow, *, chat: ChatFormat, config: SampleConfig, round: int, seed: int) -> SteeredPrompt:
    """A prompt steered and in the policy's tokens; `seed` is the stage's; raises ModelError with its id where the
    template refuses it."""
    steering = steer(prompt, config=config, round=round, seed=seed)
    try:
        return SteeredPrompt(prompt, steering, chat.prompt_ids(steering.messages))
    except ModelError as error:
        steered = "" if steering.system_prompt is None else ", with a system prompt of sample.system_prompts"
        raise ModelError(f"prompt {prompt.id} ({prompt.source}){steered}: {error}") from error


@dataclass(frozen=True)
class Sampler:
    """A model's requests, and the rows of what comes back.

    Attributes:
        policy: the model, as its rows have it.
        places: which of a prompt's candidates it writes.
        mark: stands before `k` in their ids.
    """

    chat: ChatFormat
    config: SampleConfig
    policy: str
    round: int
    places: range
    mark: str = ""

    def request(self, asked: SteeredPrompt) -> GenerateRequest:
        # The policy has the prompt's own seed, each other model one of its own.
        start, seed = self.places.start, asked.steering.seed
        return GenerateRequest(
            prompt_ids=asked.prompt_ids,
            max_tokens=self.config.max_tokens,
            num_candidates=len(self.places),
            temperature=asked.steering.temperature,
            top_p=asked.steering.top_p,
            seed=derive_seed(seed, "candidates from", start) if start else seed,
            stop_token_ids=self.chat.stop_token_ids,
        )

    def rows(self, asked: SteeredPrompt, completions: Sequence[Completion]) -> Iterator[CandidateRow]:
        prompt, steering = asked.prompt, asked.steering
        seen = self.config.train_on_system_prompt
        for row_id, completion in zip(self.row_ids(prompt), completions, strict=True):
            yield CandidateRow(
                id=row_id,
                prompt_id=prompt.id,
                messages=steering.messages if seen else prompt.messages,
                completion=self.chat.decode(completion.token_ids),
                completion_ids=list(completion.token_ids),
                finish_reason=completion.finish_reason,
                round=self.round,
                policy=self.policy,
                temperature=steering.temperature,
                top_p=steering.top_p,
                system_prompt=None if seen else steering.system_prompt,
                meta=prompt.meta,
            )

    def row_ids(self, prompt: PromptRow) -> list[str]:
        start = candidates_of(prompt.id, round=self.round) + self.mark
        return [f"{start}{k}" for k in self.places]

    def sample(self, asked: Sequence[SteeredPrompt], engine: Engine) -> list[CandidateRow]:
        """Its candidates of each prompt, from the weights that the engine serves."""
        generated = engine.generate([self.request(one) for one in asked])
        return [row for one, completions in zip(asked, generated, strict=True) for row in self.rows(one, completions)]

    def finished(self, asked: Sequence[SteeredPrompt], file: Path) -> list[CandidateRow] | None:
        """The rows of a file with the candidates of exactly these prompts, else None. A power cut can leave a file
        without its bytes, and a person one of other prompts: both are sampled again."""
        if not file.is_file():
            return None
        try:
            rows = list(load_jsonl(file, CandidateRow))
        except DataError:
            return None
        wanted = [row_id for one in asked for row_id in self.row_ids(one.prompt)]
        return rows if [row.id for row in rows] == wanted else None


def sample_all(
    sampler: Sampler, asked: Sequence[SteeredPrompt], weights: Path, ctx: StageContext, *, file: str
) -> list[CandidateRow]:
    """All candidates of one model, in the order of the prompts; what a crash left finished is taken over."""
    into, mark = ctx.dir / file, "" if file == CANDIDATES else f"{Path(file).stem}-"
    rows = sampler.finished(asked, into)
    size = sampler.config.shard_prompts
    parts = [asked[start : start + size] for start in range(0, len(asked), size)]
    shards = [ctx.dir / f"{mark}shard-{number:05d}.jsonl" for number in range(len(parts))]
    if rows is None:
        rows = []
        with ctx.progress.task("sampling", total=len(asked), unit="prompts") as advance:
            for part, shard in zip(parts, shards, strict=True):
                done = sampler.finished(part, shard)
                if done is None:
                    ctx.engine.load_weights(weights)
                    done = sampler.sample(part, ctx.engine)
                    write_whole(shard, (row.model_dump_json().encode() + b"\n" for row in done))
                rows += done
                advance(len(part))
        write_whole(into, (shard.read_bytes() for shard in shards))
    for shard in shards:
        shard.unlink(missing_ok=True)
    return rows
