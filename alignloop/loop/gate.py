"""The gate: a round that falls too far on a metric its recipe names is not sampled from, built on, or published.

rows of the rounds so far, the best value of each metric among those that passed --> why the new round did not, or None
"""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.config import Recipe
from alignloop.config.evaluation import GateConfig
from alignloop.errors import UserError
from alignloop.records import RoundRow

ROUNDING = 1e-9
"""A fall of exactly `max_regression` passes, whatever its last binary digits are."""


def gated(row: RoundRow, earlier: Sequence[RoundRow], recipe: Recipe) -> RoundRow:
    """`row` with the reason why it does not pass, if it does not.

    Args:
        earlier: the rounds before it, the base first, as this function gave them back.

    Raises:
        UserError: a named metric is not reported.
    """
    metrics = recipe.gate.metrics or (recipe.best_metric,)
    return row.model_copy(update={"gated": gate_reason(row, earlier, gate=recipe.gate, metrics=metrics)})


def gate_reason(row: RoundRow, earlier: Sequence[RoundRow], *, gate: GateConfig, metrics: Sequence[str]) -> str | None:
    """Why `row` does not pass: each metric that fell, with its value, the best so far and the limit; None: it passes.

    Raises:
        UserError: one of `metrics` is not reported.
    """
    if gate.max_regression is None:
        return None
    passed = [other for other in earlier if other.gated is None]
    reasons = []
    for metric in metrics:
        require_metric(metric, [row, *passed])
        best = max(passed, key=lambda other: (other.metrics[metric], other.round), default=row)
        fall = best.metrics[metric] - row.metrics[metric]
        if fall > gate.max_regression + ROUNDING:
            reasons.append(
                f"{metric} {row.metrics[metric]:.4f} is {fall:.4f} below round {best.round}'s "
                f"{best.metrics[metric]:.4f}"
            )
    return f"{'; '.join(reasons)} (gate.max_regression {gate.max_regression:g})" if reasons else None


def require_metric(metric: str, rows: Sequence[RoundRow], *, field: str = "gate.metrics") -> None:
    """Raise a UserError with what is reported where one of `rows` lacks `metric`."""
    for row in rows:
        if metric not in row.metrics:
            known = ", ".join(sorted(row.metrics))
            raise UserError(f"{field}: {metric!r} is not reported by this run's tasks - reported: {known}")
