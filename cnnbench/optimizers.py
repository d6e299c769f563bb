"""Optimizers that torch does not have for convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from cnnbench.errors import UserError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration; they are Jordan's, for speed: the singular values end near 1, not at 1."""


class MuonSGD(torch.optim.Optimizer):
    """Muon for convolution filters, SGD with Nesterov momentum for everything else.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes the Nesterov momentum of a layer as a
    matrix with a row per filter and puts all its singular values near 1, so that a step moves every direction alike.
    ``torch.optim.Muon`` is for matrices only; this one takes filters, and can keep their length.

    Args:
        params: Parameters; those with more than two axes are filters, those with two matrices, the rest vectors. Groups
            may not have options of their own.
        lr: Learning rate of the filters, whose update has singular values near 1.
        momentum: Of the filters.
        newton_schulz_steps: Iterations that bring the singular values near 1.
        unit_filters: Scale the filters of each layer to a mean square length of 1 before each step. For layers that a
            normalisation follows, to which the length is nothing; the learning rate is then the angle of a step.
        matrix_lr: SGD's learning rate of matrices, such as the classifier's.
        vector_lr: SGD's learning rate of vectors: biases, factors and offsets of normalisations.
        sgd_momentum: Nesterov momentum of SGD.
        weight_decay: Of SGD, on matrices.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.12,
        momentum: float = 0.6,
        newton_schulz_steps: int = 3,
        unit_filters: bool = True,
        matrix_lr: float = 86.0,
        vector_lr: float = 4.0,
        sgd_momentum: float = 0.85,
        weight_decay: float = 0.0,
    ) -> None:
        rates = {"lr": lr, "matrix_lr": matrix_lr, "vector_lr": vector_lr, "weight_decay": weight_decay}
        for name, value in rates.items():
            if not 0 <= value < float("inf"):
                raise UserError(f"{name} {value} of MuonSGD must be a number of at least 0")
        for name, value in {"momentum": momentum, "sgd_momentum": sgd_momentum}.items():
            if not 0 <= value < 1:
                raise UserError(f"{name} {value} of MuonSGD must be in [0, 1)")
        if newton_schulz_steps < 1:
            raise UserError(f"newton_schulz_steps {newton_schulz_steps} of MuonSGD must be at least 1")
        found = list(params)
        options = {key for group in found if isinstance(group, dict) for key in group if key != "params"}
        if options:
            raise UserError(f"MuonSGD makes its own groups; leave out {', '.join(sorted(options))} of the given ones")
        tensors: list[Any] = [p for group in found for p in (group["params"] if isinstance(group, dict) else [group])]
        kinds: dict[str, list[Tensor]] = {"filters": [], "matrices": [], "vectors": []}
        for p in (p for p in tensors if p.requires_grad):
            kinds["filters" if p.ndim > 2 else "matrices" if p.ndim == 2 else "vectors"].append(p)
        muon = {
            "lr": lr,
            "momentum": momentum,
            "newton_schulz_steps": newton_schulz_steps,
            "unit_filters": unit_filters,
        }
        settings: dict[str, dict[str, Any]] = {
            "filters": muon,
            "matrices": {"lr": matrix_lr, "momentum": sgd_momentum, "weight_decay": weight_decay},
            "vectors": {"lr": vector_lr, "momentum": sgd_momentum, "weight_decay": 0.0},
        }
        groups = [{"params": kinds[kind], "kind": kind, **settings[kind]} for kind in kinds if kinds[kind]]
        super().__init__(groups, defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does one step.

        Args:
            closure: Computes the gradients and returns the loss.

        Returns:
            What the closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient = p.grad
                if group.get("weight_decay"):
                    gradient = gradient.add(p, alpha=group["weight_decay"])
                update = self._nesterov(p, gradient, group["momentum"])
                if group["kind"] == "filters":
                    if group["unit_filters"]:
                        p.mul_(len(p) ** 0.5 / p.norm())
                    update = orthogonalise(update.flatten(1), group["newton_schulz_steps"]).view_as(p)
                p.sub_(update, alpha=group["lr"])
        return loss

    def _nesterov(self, p: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: Tensor = state["momentum_buffer"]
        buffer.mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum)


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """Brings the singular values of a matrix near 1 and keeps its singular vectors, by Newton-Schulz iteration.

    Args:
        matrix: (rows, columns).
        steps: Iterations; with 5, singular values are between 0.7 and 1.2 but for those that were near 0.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
