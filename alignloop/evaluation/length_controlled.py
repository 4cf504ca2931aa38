"""Win rates as they would be at equal lengths of both answers (Length-Controlled AlpacaEval, arXiv 2404.04475).

A generalised linear model tells the outcome y of a prompt (win 1, tie 1/2, loss 0) from the difference of lengths d:

    P(win) = sigmoid(a + b * tanh(d / sd(d)))

and the length-controlled win rate is P at d = 0: sigmoid(a). The paper's model has one more term, an instruction's
difficulty, which it learns from many models' answers to the same 805 instructions; without it, as here, its model is
AlpacaEval's `length_controlled_minimal`. The fit is by plain maximum likelihood (AlpacaEval adds an L1 penalty that it
chooses by cross-validation), so that its error has a closed form: with p_i the fitted probabilities, the row X_i =
(1, x_i) and H = sum p_i (1 - p_i) X_i' X_i, prompt i moves (a, b) by H^-1 X_i' (y_i - p_i), and the win rate p by
p (1 - p) times the first of the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignloop.evaluation.standard_error import Estimate, mean

MAX_STEPS = 100
TOLERANCE = 1e-10


def length_controlled(outcomes: Sequence[float], differences: Sequence[float]) -> Estimate | str:
    """The win rate at equal lengths of one outcome a prompt, in [0, 1], or in words why it cannot be estimated.

    `differences` are the length of this model's answer less that of the other's. Where every answer is as long as the
    other's it is the plain win rate. The standard deviation of the differences is taken as given by the error.
    """
    y, d = np.asarray(outcomes, dtype=np.float64), np.asarray(differences, dtype=np.float64)
    assert len(y) == len(d) > 0, "one outcome and one difference a prompt"
    if not d.any():
        return mean(outcomes)
    if len(set(d.tolist())) == 1:
        return f"all answers differ by the same length, {d[0]:+g}"
    x = np.tanh(d / d.std(ddof=1))
    if (why := _separated(y, x)) is not None:
        return why
    rows = np.stack([np.ones_like(x), x], axis=1)
    weights = _fitted(y, rows)
    if weights is None:
        return f"the regression does not settle within {MAX_STEPS} steps"
    p = _sigmoid(rows @ weights)
    moved = np.linalg.solve(_curvature(rows, p), (rows * (y - p)[:, None]).T)[0]
    rate = float(_sigmoid(weights[:1])[0])
    return Estimate(rate, tuple((rate * (1.0 - rate) * moved).tolist()))


def _separated(y: NDArray[np.float64], x: NDArray[np.float64]) -> str | None:
    """Why the likelihood has no maximum: one outcome alone, or lengths that tell wins from losses without a miss. A tie
    is half a win and half a loss."""
    wins, losses = x[y > 0.0], x[y < 1.0]
    if not len(wins) or not len(losses):
        return "all are losses" if not len(wins) else "all are wins"
    if wins.min() >= losses.max() or losses.min() >= wins.max():
        return "the lengths alone tell wins from losses"
    return None


def _fitted(y: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The maximum of the log-likelihood, which is concave, by Newton's steps, each halved until it goes up."""
    weights = np.zeros(rows.shape[1])
    for _ in range(MAX_STEPS):
        p = _sigmoid(rows @ weights)
        step = np.linalg.solve(_curvature(rows, p), rows.T @ (y - p))
        if np.abs(step).max() < TOLERANCE:
            return weights
        here, size = _likelihood(y, rows @ weights), 1.0
        while _likelihood(y, rows @ (weights + size * step)) < here and size > TOLERANCE:
            size /= 2.0
        weights = weights + size * step
    return None


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -logits))


def _likelihood(y: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    return float(np.sum(y * logits - np.logaddexp(0.0, logits)))


def _curvature(rows: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    return (rows * (p * (1.0 - p))[:, None]).T @ rows
