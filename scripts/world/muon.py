"""Muon for the hidden matrices, with the orthogonalisation in float32 and batched by shape.

torch's own works in bfloat16, which is slower than everything else together on a CPU without bfloat16 units.
Method: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: torch.Tensor, *, num_steps: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrices, about, by Newton-Schulz steps. Shape [N, rows, columns], rows <= columns."""
    a, b, c = _COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; its size matches AdamW's (root mean square 0.2).

    Args:
        matrices: 2-D parameters of hidden layers.
        lr: as for AdamW.
    """

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[torch.nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[min(matrix.shape), max(matrix.shape)].append(matrix)
            for matrices in by_shape.values():
                self._step_alike(matrices, group)

    def _step_alike(self, matrices: list[torch.nn.Parameter], group: dict[str, float]) -> None:
        """Matrices of one shape, or its transpose, in one batch."""
        updates = []
        for matrix in matrices:
            gradient = matrix.grad
            assert gradient is not None, "step() takes matrices with a gradient only"
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            momentum.lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(momentum, group["momentum"])
            updates.append(update if matrix.shape[0] <= matrix.shape[1] else update.mT)
        scale = 0.2 * max(matrices[0].shape) ** 0.5
        for matrix, update in zip(matrices, orthogonalised(torch.stack(updates)), strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(update if matrix.shape[0] <= matrix.shape[1] else update.mT, alpha=-group["lr"] * scale)
