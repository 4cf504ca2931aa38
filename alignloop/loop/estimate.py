"""Rows and tokens a stage will see, as far as they follow from the recipe and the files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from alignloop.config import Recipe
from alignloop.config.training import OptimizerConfig, Variant, mix_of
from alignloop.data.split import round_batch
from alignloop.loop.check import Checked, sampled_prompts
from alignloop.records import RowOrigin, Strength
from alignloop.sampling.pairs import of_share
from alignloop.stages.demonstrations import of_round
from alignloop.stages.train_reward import of_strengths
from alignloop.training.job import prompt_batches, step_sizes, train_tokens
from alignloop.training.variants import num_drawn, trainings


@dataclass(frozen=True)
class Expected:
    """Rows (or candidates) of a stage, tokens through the model, epochs and variants counted, and optimiser steps of a
    training, of its shortest variant; None where unknown. Completions are taken to be as long as the preferences'."""

    rows: int | None = None
    tokens: int | None = None
    steps: int | None = None


class Estimator:
    def __init__(self, recipe: Recipe, checked: Checked) -> None:
        self._recipe, self._checked = recipe, checked
        self._lengths = checked.lengths
        self._num_prompts = sampled_prompts(recipe, num_prompts=len(checked.rows.prompts))

    def of(self, stage: str, *, number: int) -> Expected:
        recipe, prompts = self._recipe, self._num_prompts
        new = self._batch(number) + self._annotated(number)
        wanted = sum(self._preferences(number, recipe.prune.sources))
        if stage == "sample":
            return self._sampling()
        if stage == "score":
            return self._sampling(passes=len(recipe.reward.variants) if recipe.score.has_ensemble else 1)
        if stage == "train_reward":
            return self._training(self._preferences_to_date(number), recipe.reward, num_completions=2)
        if stage == "train_sft":
            return self._training(self._sft_rows(number), recipe.sft, num_completions=1)
        if stage == "train_dpo":
            return self._training(self._pairs(number), recipe.dpo, num_completions=2)
        if stage == "train_rloo":
            return self._rloo()
        if stage == "bootstrap":
            return self._training(self._batch(1), recipe.sft, num_completions=1)
        rows = {
            "ingest": self._checked.num_read,
            "collect": new,
            "select": prompts * recipe.sample.num_candidates,
            "prune": prompts + new - wanted + self._human(wanted) + sum(self._shown(number).values()),
            "build_pairs": new + self._most_own(),
            "measure": len(self._checked.rows.heldout),
        }
        return Expected(rows.get(stage))

    def _sampling(self, *, passes: int = 1) -> Expected:
        k = self._recipe.sample.num_candidates
        tokens = None
        if self._lengths is not None:
            completion = min(self._lengths.completion, self._recipe.sample.max_tokens)
            tokens = passes * int(self._num_prompts * (self._lengths.prompt + k * completion))
        return Expected(self._num_prompts * k, tokens)

    def _rloo(self) -> Expected:
        """Prompts that are drawn, and what training on their completions takes; these are sampled beside."""
        recipe, num_prompts = self._recipe.rloo, len(self._checked.rows.prompts)
        batches = prompt_batches(num_prompts, config=recipe, seed=0)
        rows = len({number for batch in batches for minibatch in batch for number in minibatch})
        tokens = None
        if self._lengths is not None:
            completion = min(self._lengths.completion, self._recipe.sample.max_tokens)
            trained = sum(len(minibatch) for batch in batches for minibatch in batch)
            tokens = int(trained * (self._lengths.prompt + recipe.num_candidates * completion))
        return Expected(rows, tokens, sum(map(len, batches)))

    def _training(self, rows: int, config: OptimizerConfig, *, num_completions: int) -> Expected:
        length = None
        if self._lengths is not None:
            length = self._lengths.of_training(num_completions=num_completions, max_length=config.max_length)
        sizes = [_sizes(rows, length, *training) for training in trainings(config)]
        tokens = None if length is None else int(length * sum(map(sum, sizes)))
        unknown = length is None and train_tokens(config) is not None
        return Expected(rows, tokens, None if unknown else min(map(len, sizes)))

    def _batch(self, number: int) -> int:
        data, train = self._recipe.data, self._checked.rows.train
        return (
            len(round_batch(train, round=number, batches=data.batches, split_rounds=data.split_rounds)) if number else 0
        )

    def _annotated(self, number: int) -> int:
        collect = self._recipe.collect
        return collect.num_annotations if number > 1 and collect.annotator != "none" else 0

    def _preferences_to_date(self, number: int) -> int:
        data = self._recipe.data
        share = self._share(self._recipe.reward.strengths)
        num_batches = data.split_rounds
        if data.batches == "files":
            num_batches = len({row.source.file for row in self._checked.rows.train})
        if data.batches == "all":
            seen = len(self._checked.rows.train)
        else:
            seen = sum(self._batch(n) for n in range(1, min(number, num_batches) + 1))
        return round_half(share * seen) + sum(self._annotated(n) for n in range(1, number + 1))

    def _preferences(self, number: int, sources: Sequence[RowOrigin]) -> tuple[int, int]:
        """The round's rows of the files and its annotated ones, as far as these sources name them."""
        batch, annotated = self._batch(number), self._annotated(number)
        return batch if "file" in sources else 0, annotated if "annotated" in sources else 0

    def _human(self, new: int) -> int:
        wanted = self._recipe.prune.human_rows
        return new if wanted < 0 else min(wanted, new)

    def _shown(self, number: int) -> dict[str, int]:
        """Entry of `sft.data` -> its rows of the round."""
        entries = self._checked.rows.demonstrations
        return {file: len(of_round(rows, self._recipe, number)) for file, rows in entries.items()} if number else {}

    def _sft_rows(self, number: int) -> int:
        """People's rows, demonstrations among them, and the part of all others that quality keeps; by shares or epochs
        of demonstrations."""
        others, shown = self._other_sft_rows(number), self._shown(number)
        mix = mix_of(self._recipe.sft.data)
        if mix.shares and others:
            groups = {file: (mix.shares[file], shown.get(file, 0)) for file in mix.shares if shown.get(file)}
            rest = 1.0 - sum(share for share, _ in groups.values())
            free = others + sum(number for file, number in shown.items() if file not in groups)
            sides = [*groups.values(), *([(rest, free)] if rest > 0.0 else [])]
            return round_half(min(number / share for share, number in sides))
        return others + sum(round_half(mix.epochs.get(file, 1.0) * number) for file, number in shown.items())

    def _other_sft_rows(self, number: int) -> int:
        sources = self._recipe.prune.sources
        batch, annotated = self._preferences(number, sources)
        sampled = self._num_prompts if "on_policy" in sources else 0
        peoples = self._share(self._recipe.reward.strengths) * batch
        if self._recipe.collect.annotator == "human":
            peoples += annotated
        new = batch + annotated
        drawn = self._human(new) / new if new else 0.0
        quality = self._recipe.prune.quality
        kept = quality.top_fraction if quality.enabled else 1.0
        return round_half(kept * (sampled + drawn * (new - peoples)) + drawn * peoples)

    def _pairs(self, number: int) -> int:
        pairs = self._recipe.pairs
        window = range(max(1, number - pairs.data_window + 1), number + 1)
        rows = sum(sum(self._preferences(n, pairs.sources)) for n in window)
        human = round_half(self._share(pairs.strengths) * rows)
        human = _capped(human, pairs.max_preference_pairs)
        # Quantiles are taken to drop other pairs each.
        kept = pairs.max_gap_quantile - pairs.min_gap_quantile
        kept *= (1.0 - pairs.min_rejected_reward_quantile) * (1.0 - pairs.min_rejected_length_quantile)
        own = _capped(round_half(kept * self._most_own()) if "on_policy" in pairs.sources else 0, pairs.max_on_policy)
        return sum((own, human) if pairs.on_policy_share is None else of_share(own, human, share=pairs.on_policy_share))

    def _most_own(self) -> int:
        """Pairs of candidates before any is dropped."""
        return self._num_prompts * max(
            1, min(self._recipe.pairs.pairs_per_prompt, self._recipe.sample.num_candidates // 2)
        )

    def _share(self, strengths: Sequence[Strength]) -> float:
        train = self._checked.rows.train
        return len(of_strengths(train, strengths)) / len(train) if train else 0.0


def few_steps(recipe: Recipe, checked: Checked) -> list[str]:
    """A line where some rounds' SFT has fewer steps than `sft.min_steps`."""
    floor, estimator = recipe.sft.min_steps, Estimator(recipe, checked)
    steps = [estimator.of("train_sft", number=number).steps for number in range(1, recipe.rounds + 1)]
    few = [count for count in steps if floor is not None and count is not None and count < floor]
    if not few:
        return []
    found = f"{min(few):,}" if min(few) == max(few) else f"{min(few):,} to {max(few):,}"
    quality = recipe.prune.quality
    judged = " (rows that only the judge keeps not counted)" if quality.enabled and quality.by == "either" else ""
    return [
        f"sft.min_steps: in {len(few)} of {recipe.rounds} rounds the rows give SFT about {found} optimiser steps"
        f"{judged}, under {floor:,}: sample for more prompts, keep more of them (prune.quality.top_fraction), lower "
        "sft.batch_groups, or see them again (sft.epochs)"
    ]


def _sizes(rows: int, length: float | None, config: OptimizerConfig, variant: Variant) -> list[int]:
    """Rows of each optimiser step of a training on rows of `length` tokens on average."""
    drawn, wanted, epochs = num_drawn(rows, fraction=variant.data_fraction), train_tokens(config), config.epochs
    if wanted is not None and length and drawn:
        epochs = math.ceil(wanted / (length * drawn))
    sizes = step_sizes(drawn, batch_groups=config.batch_groups, epochs=epochs, max_steps=config.max_steps)
    if wanted is None or length is None:
        return sizes
    return [size for size, seen in zip(sizes, accumulate(sizes, initial=0), strict=False) if length * seen < wanted]


def round_half(value: float) -> int:
    return int(value + 0.5)


def _capped(value: int, cap: int) -> int:
    return value if cap < 0 else min(value, cap)
