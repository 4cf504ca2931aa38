"""What the benchmarks do not show, as pure functions: values in, figures with standard errors out.

Texts: lengths, endings and repetitions. Winning: how often one model's completion is better than another's. Calibration
of a reward model. Divergence: how far a policy has moved from another.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from alignloop.chat.reasoning import answer_of, has_answer
from alignloop.errors import ModelError
from alignloop.evaluation.length_controlled import length_controlled
from alignloop.evaluation.standard_error import Estimate, clustered, mean

STDERR = "_stderr"
"""What a figure's standard error is named by: `win_rate/base` and `win_rate/base_stderr`."""
LENGTH_CONTROLLED = "_length_controlled"
"""What a win rate's form at equal lengths is named by."""
NGRAM = 4
NUM_BINS = 10
WIN, TIE, LOSS = 1.0, 0.5, 0.0
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_GOES_ON = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl", "No", "Pd", "Ps")
_COMMAS = ",;:\u060c\u3001\uff0c\uff1a\uff1b"
Logprobs = Sequence[float]
"""Of each token of a completion."""


@dataclass
class Figures:
    """Figures by name, in the order they are put in; the standard errors and the details come after them."""

    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)
    """Numbers of which there are many (the bins of a curve)."""

    def add(self, name: str, estimate: Estimate) -> None:
        """Add a figure, and its standard error where there is more than one prompt."""
        self.values[name] = estimate.value
        if estimate.stderr is not None:
            self.errors[name + STDERR] = estimate.stderr

    @property
    def flat(self) -> dict[str, float]:
        """All of them. Raises ModelError where one is not a finite number."""
        flat = {**self.values, **self.errors, **self.details}
        for name, value in flat.items():
            if not math.isfinite(value):
                raise ModelError(f"measure: {name} is {value}: a model that it is told from has diverged in training")
        return flat


@dataclass(frozen=True)
class Ending:
    text: str
    num_tokens: int
    """The stop token counted."""
    stopped: bool
    """It ended by itself; otherwise it was cut at its token limit."""


def add_texts(figures: Figures, completions: Sequence[Ending]) -> None:
    """How completions end, repeat themselves and how long they are (docs/measures.md), of one completion a prompt."""
    figures.add("stop_rate", mean([float(each.stopped) for each in completions]))
    figures.add("truncation_rate", mean([float(not each.stopped) for each in completions]))
    figures.add("repetition_rate", mean([repeated_ngram_share(each.text) for each in completions]))
    figures.add("tail_repetition_rate", mean([float(repeats_at_end(each.text)) for each in completions]))
    abrupt = [each.stopped and ends_in_mid_sentence(each.text) for each in completions]
    figures.add("abrupt_end_rate", mean([float(one) for one in abrupt]))
    figures.add("empty_rate", mean([float(not has_answer(each.text)) for each in completions]))
    figures.add("mean_tokens", mean([float(each.num_tokens) for each in completions]))


def words(text: str) -> list[str]:
    """The text's words; in scripts written without spaces, characters."""
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)


def repeated_ngram_share(text: str) -> float:
    """Share of the text's 4-word sequences that occurred before in it: 0 without repeats, towards 1 in a loop."""
    found = words(text.casefold())
    num_ngrams = len(found) - NGRAM + 1
    if num_ngrams <= 0:
        return 0.0
    distinct = set(zip(*(found[start : start + num_ngrams] for start in range(NGRAM)), strict=True))
    return 1.0 - len(distinct) / num_ngrams


def repeats_at_end(text: str) -> bool:
    """Whether the text's last 4 words stood in it before, in this order: so it is in a loop, whatever its length."""
    found = words(text.casefold())
    last = found[-NGRAM:]
    return any(found[start : start + NGRAM] == last for start in range(len(found) - NGRAM))


def ends_in_mid_sentence(text: str) -> bool:
    """Whether the answer's last character is a letter, a digit, a dash, an opening bracket or one of `,;:`.

    Full stops and the like, closing brackets, quotes and marks (`*`, a code fence) end something.
    """
    last = answer_of(text).rstrip()[-1:]
    return bool(last) and (unicodedata.category(last) in _GOES_ON or last in _COMMAS)


def add_win_rate(figures: Figures, name: str, outcomes: Sequence[float], *, lengths: Sequence[float]) -> str | None:
    """`name`: wins and half of the ties (0.5 is as good as the other); `name_ties`: the share of ties;
    `name_length_controlled`: what it would be at equal lengths, left out where it cannot be estimated: the answer is
    then why. Of one outcome a prompt, at least one; `lengths` has what our answer is longer by, in tokens."""
    figures.add(name, mean(outcomes))
    figures.values[f"{name}_ties"] = sum(outcome == TIE for outcome in outcomes) / len(outcomes)
    controlled = length_controlled(outcomes, lengths)
    if isinstance(controlled, str):
        return controlled
    figures.add(name + LENGTH_CONTROLLED, controlled)
    return None


def by_reward(ours: float, theirs: float) -> float:
    """The outcome by reward; equal rewards are a tie."""
    return TIE if ours == theirs else WIN if ours > theirs else LOSS


def without_asking(ours: str, theirs: str) -> float | None:
    """The outcome that needs no judge: the same text ties, none loses against some; None: a judge must say."""
    ours, theirs = ours.strip(), theirs.strip()
    if ours == theirs:
        return TIE
    return None if ours and theirs else WIN if ours else LOSS


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of a range of confidence: [low, high), the last bin's end included.

    Attributes:
        confidence: their mean confidence.
        accuracy: the share of them in which the reward model is right; an undecided pair counts half.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def is_right(margin: float) -> float:
    """By the margin r_chosen - r_rejected: 1 where it is above 0, 0 where it is below, one half where it is 0."""
    return 0.5 if margin == 0.0 else float(margin > 0.0)


def confidence(margin: float) -> float:
    """Probability, in [0.5, 1], that a reward model gives to the completion it sides with: sigmoid(|margin|).

    By Bradley-Terry `chosen` is better with probability sigmoid(r_chosen - r_rejected). A reward model is calibrated
    where it is right in a share c of the pairs it has a confidence of c in.
    """
    return 1.0 / (1.0 + math.exp(-abs(margin)))


def pair_loss(margin: float) -> float:
    """-logsigmoid(margin): what the reward model is trained to lower."""
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


def reliability(margins: Sequence[float]) -> list[ReliabilityBin]:
    """The pairs by confidence, in ranges of equal width from 0.5 to 1; ranges without a pair are left out."""
    width = 0.5 / NUM_BINS
    members: dict[int, list[float]] = {}
    for margin in margins:
        index = min(int((confidence(margin) - 0.5) / width), NUM_BINS - 1)
        members.setdefault(index, []).append(margin)
    return [
        ReliabilityBin(
            low=0.5 + index * width,
            high=0.5 + (index + 1) * width,
            count=len(own),
            confidence=math.fsum(map(confidence, own)) / len(own),
            accuracy=math.fsum(map(is_right, own)) / len(own),
        )
        for index, own in sorted(members.items())
    ]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error: the mean over pairs of |accuracy - confidence| of the pair's bin; 0 is calibrated.

    With few pairs a bin it is above 0 by chance alone.
    """
    num_pairs = sum(each.count for each in bins)
    return math.fsum(each.count * abs(each.accuracy - each.confidence) for each in bins) / num_pairs


def add_divergence(
    figures: Figures, policy: Sequence[Logprobs], base: Sequence[Logprobs], *, prompts: Sequence[Hashable]
) -> None:
    """`kl_to_base`, `kl_to_base_k3` (nats a token) and `kl_to_base_completion` (nats a completion).

    KL(policy || base) is the mean of log policy(y) - log base(y) over completions y drawn from the policy itself, at
    temperature 1. Both estimators are unbiased at each token for what follows the tokens before it:

        k1 = log policy - log base               may be negative on few tokens
        k3 = base / policy - 1 - log(base / policy)   never negative, and steadier where the two are close

    (Schulman, Approximating KL Divergence, 2020). The larger the two differ from each other, the less either is to be
    trusted: the base then gives the policy's tokens probabilities that a few tokens decide about.

    `policy` and `base` hold, of each of n completions, its T > 0 logprobs; errors are those of the `prompts`, one each.
    """
    pairs = list(zip(policy, base, strict=True))
    sums = [sum_k1(ours, theirs) for ours, theirs in pairs]
    num_tokens = [float(len(ours)) for ours in policy]
    k3 = [sum_k3(ours, theirs) for ours, theirs in pairs]
    figures.add("kl_to_base", clustered(sums, clusters=prompts, counts=num_tokens))
    figures.add("kl_to_base_k3", clustered(k3, clusters=prompts, counts=num_tokens))
    figures.add("kl_to_base_completion", clustered(sums, clusters=prompts))


def sum_k1(policy: Logprobs, base: Logprobs) -> float:
    """Sum over a completion's tokens."""
    return math.fsum(ours - theirs for ours, theirs in zip(policy, base, strict=True))


def sum_k3(policy: Logprobs, base: Logprobs) -> float:
    return math.fsum(math.expm1(theirs - ours) - (theirs - ours) for ours, theirs in zip(policy, base, strict=True))
