"""The laboratory's tables and figures, made of what runs came to.

outcomes by arm and seed --differences, paired--> docs/method.md (text_of), docs/method.json (figures_of)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from alignloop.evaluation.standard_error import NORMAL_95
from scripts.bench.method_arms import ARMS, CLAIMS, LOOP, Arm, Claim
from scripts.bench.method_record import KNOWLEDGE, STRICT, UNSEEN, Outcome

Outcomes = Mapping[str, Mapping[int, Outcome]]
"""By arm and seed."""
SHOWN = (LOOP, "offline", "random-pick")
"""Arms whose climb is shown round by round."""
AGAINST_LOOP = {
    "semi_online_minus_rounds": "semi-online",
    "rloo_minus_dpo": "rloo",
    "rip_minus_default": "rip",
    "ensemble_minus_default": "ensemble",
    "two_models_minus_default": "two-models",
    "verifier_minus_reward_model": "oracle-pick",
}
"""Differences to the loop by the names of `docs/method.json`."""
ENOUGH_SEEDS = 3
"""From so many on an interval is over seeds; of fewer it is over questions, and says nothing of other draws."""


@dataclass(frozen=True)
class Gap:
    """One arm minus another, in shares.

    Attributes:
        value: the mean over the seeds that both have.
        half: half of the 95 % interval; None where nothing gives one.
    """

    value: float
    half: float | None
    num_seeds: int

    @property
    def is_clear(self) -> bool:
        return self.half is not None and abs(self.value) > self.half

    def __str__(self) -> str:
        points = f"{100 * self.value:+.1f}"
        if self.half is None:
            return points
        return f"{points} ({100 * (self.value - self.half):+.1f} to {100 * (self.value + self.half):+.1f})"


def over_seeds(values: Sequence[float]) -> Gap:
    """Mean and 95 % interval by the t-distribution; no interval of one value."""
    from scipy.stats import t

    half = None
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Gap(mean(values), half, len(values))


def over_questions(pairs: Sequence[tuple[str, str]]) -> Gap:
    """One arm's answers minus another's, a pair of strings of 0 and 1 a seed, question by question: a normal interval.

    Raises:
        ValueError: the two of a seed were asked different questions.
    """
    changes = [int(ours) - int(theirs) for one, other in pairs for ours, theirs in zip(one, other, strict=True)]
    return Gap(mean(changes), NORMAL_95 * stdev(changes) / math.sqrt(len(changes)), len(pairs))


def gap(outcomes: Outcomes, one: str, other: str) -> Gap | None:
    """What arm `one` has on arm `other` after the last round, on the test half; None where no seed has both."""
    ours, theirs = outcomes.get(one, {}), outcomes.get(other, {})
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    if len(seeds) >= ENOUGH_SEEDS:
        return over_seeds([last(ours[seed], STRICT) - last(theirs[seed], STRICT) for seed in seeds])
    return over_questions([(ours[seed].answers, theirs[seed].answers) for seed in seeds])


def last(outcome: Outcome, key: str) -> float:
    return outcome.metrics[-1][key]


def figures_of(outcomes: Outcomes) -> dict[str, float]:
    """`docs/method.json`: the bars and other differences with their intervals, and each arm's mean on the test half
    after its last round."""
    loop = outcomes.get(LOOP, {})
    figures: dict[str, float] = {"num_seeds": len(loop)}
    others = {name: gap(outcomes, arm, LOOP) for name, arm in AGAINST_LOOP.items()}
    differences = headline(outcomes) | {name: found for name, found in others.items() if found is not None}
    for name, found in differences.items():
        figures[name] = found.value
        if found.half is not None:
            figures |= {f"{name}_low": found.value - found.half, f"{name}_high": found.value + found.half}
    return figures | {arm: mean(last(one, STRICT) for one in of.values()) for arm, of in outcomes.items()}


def headline(outcomes: Outcomes) -> dict[str, Gap]:
    """The bars: loop against its controls, its climb, what it never trained on, what it must not forget."""
    loop, offline = outcomes.get(LOOP, {}), outcomes.get("offline", {})
    both = sorted(loop.keys() & offline.keys())
    unseen_gap = [last(loop[seed], UNSEEN) - last(offline[seed], UNSEEN) for seed in both]
    climbs = {
        "round6_minus_round1": [last(one, STRICT) - one.metrics[1][STRICT] for one in loop.values()],
        "unseen_minus_base": [last(one, UNSEEN) - one.metrics[0][UNSEEN] for one in loop.values()],
        "unseen_minus_offline": unseen_gap,
        "mmlu_minus_base": [last(one, KNOWLEDGE) - one.metrics[0][KNOWLEDGE] for one in loop.values()],
    }
    against = {"loop_minus_offline": "offline", "loop_minus_random_pick": "random-pick"}
    found = {name: gap(outcomes, LOOP, arm) for name, arm in against.items()}
    return {name: one for name, one in found.items() if one is not None} | {
        name: over_seeds(values) for name, values in climbs.items() if values
    }


_HEAD = """\
# What of the method can be seen to help

Written by `scripts/bench/method.py`. A seed draws prompts, benchmarks and sampled preferences of its own for the one
base that ships; {rounds} rounds. Figures are prompt-level strict accuracy in % on the test half, which chooses nothing.
Differences are in points with 95 % intervals: of three seeds or more over seeds (t-distribution, paired by seed); of
fewer over the test half's questions (paired by question), which says nothing of other draws: see the column *seeds*.
*seen*: the interval lies clear of zero on the claim's side; *opposite*: on the other; *not seen*: it holds zero.
Of twenty arms that change nothing one would be *seen* or *opposite* by chance. A seed has the same prompts and
benchmarks on every machine; its preferences are sampled, and those of arms that ran on other machines differ a little.
"""


def text_of(outcomes: Outcomes, *, rounds: int) -> str:
    """`docs/method.md`."""
    lines = [_HEAD.format(rounds=rounds), *_bars(outcomes), *_climb(outcomes, rounds=rounds)]
    for claim in CLAIMS:
        lines += _claim(outcomes, claim)
    return "\n".join(lines) + "\n"


def _bars(outcomes: Outcomes) -> Iterator[str]:
    yield "| bar | points | seeds |"
    yield "| --- | --- | --- |"
    for name, found in headline(outcomes).items():
        yield f"| {name.replace('_', ' ')} | {found} | {found.num_seeds} |"
    yield ""


def _climb(outcomes: Outcomes, *, rounds: int) -> Iterator[str]:
    """Round by round, the loop beside its controls, means over their seeds."""
    shown = [name for name in SHOWN if name in outcomes]
    columns = [(outcomes[name], STRICT) for name in shown]
    if LOOP in outcomes:
        columns += [(outcomes[LOOP], UNSEEN), (outcomes[LOOP], KNOWLEDGE)]
    yield f"| round | {' | '.join((*shown, 'unseen types, loop', 'MMLU-form, loop')[: len(columns)])} |"
    yield "| --- " * (len(columns) + 1) + "|"
    for number in range(rounds + 1):
        yield f"| {number or 'base'} | {' | '.join(_at(of, key, number) for of, key in columns)} |"


def _at(outcomes: Mapping[int, Outcome], key: str, number: int) -> str:
    rows = [one.metrics[number] for one in outcomes.values() if number < len(one.metrics)]
    values = [row[key] for row in rows if key in row]
    return f"{100 * mean(values):.1f}" if values else "-"


def _claim(outcomes: Outcomes, claim: Claim) -> Iterator[str]:
    yield f"\n## {claim.name}\n\n{claim.sentence}.\n"
    if claim.reference not in outcomes or not any(name in outcomes for name in claim.arms):
        yield "Not run."
        return
    columns = ("arm", "keys", "seeds", "strict", f"{claim.reference} minus it", *claim.measures, "verdict")
    yield f"| {' | '.join(columns)} |"
    yield "| --- " * len(columns) + "|"
    for name in dict.fromkeys((claim.reference, *claim.arms)):
        if name not in outcomes:
            continue
        found = None if name == claim.reference else gap(outcomes, claim.reference, name)
        own = list(outcomes[name].values())
        cells = [_keys(ARMS[name]), str(len(own)), f"{100 * mean(last(one, STRICT) for one in own):.1f}"]
        cells += ["" if found is None else str(found), *(_measure(own, measure) for measure in claim.measures)]
        yield f"| {name} | {' | '.join(cells)} | {_verdict(found)} |"


def _keys(arm: Arm) -> str:
    kind = [f"control --kind {arm.kind}"] if arm.kind else []
    return ", ".join(f"`{key}`" for key in (*kind, *arm.settings)) or "the quickstart's"


def _measure(outcomes: Sequence[Outcome], name: str) -> str:
    known = [one.measures[name] for one in outcomes if name in one.measures]
    return f"{mean(known):.3f}" if known else "-"


def _verdict(found: Gap | None) -> str:
    if found is None:
        return ""
    if not found.is_clear:
        return "not seen"
    return "seen" if found.value > 0 else "opposite"
