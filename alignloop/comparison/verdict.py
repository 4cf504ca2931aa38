"""What the numbers say, in plain words, and what they do not say."""

from __future__ import annotations

from dataclasses import dataclass

NUM_TESTS = 4
"""Means and distributions, of all candidates and of the best of K: one of four small p-values is no small p-value."""
SURE = 0.01 / NUM_TESTS
HINT = 0.05 / NUM_TESTS
FEW_PROMPTS = 30
UNSEEN_ERRORS = 2.8
"""A shift of this many standard errors is found in four of five cases (1.96 + 0.84, normal approximation)."""


@dataclass(frozen=True)
class Finding:
    """The difference of one kind of rewards.

    Attributes:
        mean, stderr, mean_pvalue: of the per-prompt difference, B minus A.
        swap_pvalue: how often a random exchange of A and B sets the distributions as far apart.
        std: of A's rewards: the yardstick of sizes.
    """

    mean: float
    stderr: float | None
    mean_pvalue: float | None
    swap_pvalue: float
    std: float | None


def verdict(everything: Finding, best: Finding, *, num_prompts: int, best_of: str, same_rewards: bool) -> list[str]:
    """Sentences: one on the outcome, then how far it can be trusted.

    Args:
        everything, best: rewards of all candidates, and of the best of K.
    """
    if same_rewards:
        return ["A and B have the same rewards, candidate by candidate: on these prompts they sample the same."]
    if num_prompts < 2:
        return ["One common prompt: nothing can be said about the two."]
    lines = [_outcome(everything, best, best_of=best_of)]
    if everything.stderr and not _found(everything, sure=True):
        lines.append(
            "That is no proof that they are alike: a shift of the mean reward below about "
            f"{UNSEEN_ERRORS * everything.stderr:.3g}{_in_std(UNSEEN_ERRORS * everything.stderr, everything.std)} "
            "could well go unseen here."
        )
    if num_prompts < FEW_PROMPTS:
        lines.append(f"With {num_prompts} prompts even the standard errors are rough: take more.")
    lines.append("It holds for these prompts and this reward model, which may not see what a reader would.")
    return lines


def _outcome(everything: Finding, best: Finding, *, best_of: str) -> str:
    kinds = (("all candidates", everything), (f"the best of {best_of}", best))
    for sure, word in ((True, "differ"), (False, "may differ, but chance is not ruled out")):
        shifted = [_shift(name, finding) for name, finding in kinds if _shifted(finding, sure=sure)]
        if shifted:
            return f"A and B {word}: " + "; ".join(shifted) + "."
        spread = [name for name, finding in kinds if _spread(finding, sure=sure)]
        if spread:
            return (
                f"A and B {word}: not in their mean rewards, but in how those of {' and of '.join(spread)} are spread; "
                "look at the quantiles."
            )
    return (
        "No difference was found: B's mean reward is "
        f"{everything.mean:+.3g} +- {_error(everything)} from A's over all candidates, {best.mean:+.3g} +- "
        f"{_error(best)} for the best of {best_of}."
    )


def _shift(name: str, finding: Finding) -> str:
    way = "higher" if finding.mean > 0 else "lower"
    size = _in_std(abs(finding.mean), finding.std)
    return f"B's mean reward of {name} is {way} by {abs(finding.mean):.3g} +- {_error(finding)}{size}"


def _shifted(finding: Finding, *, sure: bool) -> bool:
    return finding.mean_pvalue is not None and finding.mean_pvalue < (SURE if sure else HINT)


def _spread(finding: Finding, *, sure: bool) -> bool:
    return finding.swap_pvalue < (SURE if sure else HINT)


def _found(finding: Finding, *, sure: bool) -> bool:
    return _shifted(finding, sure=sure) or _spread(finding, sure=sure)


def _error(finding: Finding) -> str:
    return "?" if finding.stderr is None else f"{finding.stderr:.2g}"


def _in_std(size: float, std: float | None) -> str:
    return f" ({size / std:.2g} of A's standard deviation)" if std else ""
