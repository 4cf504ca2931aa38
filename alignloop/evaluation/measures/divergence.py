"""How far a policy has moved from another, in log-probabilities of completions.

KL(policy || base) is the mean of log policy(y) - log base(y) over completions y drawn from the policy itself. Both
estimators below are unbiased at each token for what follows the tokens before it:

    k1 = log policy - log base               may be negative on few tokens
    k3 = base / policy - 1 - log(base / policy)   never negative, and steadier where the two are close

(Schulman, Approximating KL Divergence, 2020). The larger the two differ from each other, the less either is to be
trusted: the base then gives the policy's tokens probabilities that a few tokens decide about.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from alignloop.evaluation.measures.figures import clustered
from alignloop.evaluation.standard_error import Estimate

Logprobs = Sequence[float]
"""Of each token of a completion."""


@dataclass(frozen=True)
class Divergence:
    """KL(policy || base) in nats.

    Attributes:
        k1, k3: a token: sums over all completions through the number of their tokens.
        completion: a completion, by k1.
    """

    k1: Estimate
    k3: Estimate
    completion: Estimate


def divergence(policy: Sequence[Logprobs], base: Sequence[Logprobs], *, prompts: Sequence[Hashable]) -> Divergence:
    """The divergence on completions that were drawn from the policy at temperature 1.

    Args:
        policy, base: of each of n completions its T > 0 logprobs under either model.
        prompts: the prompt of each completion; errors are those of the prompts.
    """
    pairs = list(zip(policy, base, strict=True))
    sums = [sum_k1(ours, theirs) for ours, theirs in pairs]
    num_tokens = [float(len(ours)) for ours in policy]
    return Divergence(
        k1=clustered(sums, clusters=prompts, counts=num_tokens),
        k3=clustered([sum_k3(ours, theirs) for ours, theirs in pairs], clusters=prompts, counts=num_tokens),
        completion=clustered(sums, clusters=prompts),
    )


def sum_k1(policy: Logprobs, base: Logprobs) -> float:
    """Sum over a completion's tokens of log policy - log base."""
    return math.fsum(ours - theirs for ours, theirs in zip(policy, base, strict=True))


def sum_k3(policy: Logprobs, base: Logprobs) -> float:
    """Sum over a completion's tokens of base / policy - 1 - log(base / policy)."""
    return math.fsum(math.expm1(theirs - ours) - (theirs - ours) for ours, theirs in zip(policy, base, strict=True))
