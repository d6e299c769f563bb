"""Optimizers and training recipes: Muon for convolution filters, AdamW in one kernel on a GPU, and recipes by name.

Muon replaces the momentum of a layer by a nearly orthogonal matrix. ``torch.optim.Muon`` takes matrices only, so this
file has a version for filters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from cnnbench import hardware
from cnnbench.errors import UserError


class Recipe(NamedTuple):
    """Recipe with which networks of every kind can be trained, in place of each architecture's own recipe.

    Attributes:
        words: Description of the optimizer, for records.
        peak_lr: Peak of the learning rate.
        warmup: Share of the training in which the learning rate rises.
        label_smoothing: Share of the target that is spread over all classes.
        build: Function that builds the optimizer from a network and the peak of the learning rate.
    """

    words: str
    peak_lr: float
    warmup: float
    label_smoothing: float
    build: Callable[[nn.Module, float], torch.optim.Optimizer]


def _sgd(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _muon(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Build Muon for a network in which a normalisation follows every convolution.

    Muon keeps the length of the filters fixed, which makes no difference if a normalisation follows them.

    Raises:
        UserError: The network has fewer normalisations than convolutions.
    """
    convolutions = normalisations = 0
    for module in network.modules():
        # The names of the classes are compared, so that layers of other libraries count too.
        kind = type(module).__name__
        convolutions += kind.startswith("Conv")
        normalisations += "Norm" in kind
    if convolutions > normalisations:
        raise UserError(
            f"recipe 'muon' is for networks with a normalisation after every convolution, and {type(network).__name__} "
            f"has convolutions without; leave the recipe out, or take {RECIPES['sgd'].words} by recipe 'sgd'"
        )
    matrix_lr = MUON_HEAD_LR * lr
    return MuonSGD(network.parameters(), lr=lr, matrix_lr=matrix_lr, vector_lr=matrix_lr, weight_decay=5e-4)


MUON_HEAD_LR = 1.7
"""Learning rate of SGD for matrices and vectors in the recipe ``muon``, as a multiple of the rate for the filters."""
RECIPES = {
    "sgd": Recipe("SGD with Nesterov momentum 0.9, weight decay 0.0005", 0.1, 0.15, 0.0, _sgd),
    "muon": Recipe("Muon for the filters, SGD with Nesterov momentum for the rest", 0.06, 0.05, 0.1, _muon),
}
"""Recipes by name."""

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration (Jordan et al. 2024), chosen for speed: the singular values end
near 1 and do not converge to 1."""


def adamw(params: ParamsT, fused: bool = True, **options: Any) -> torch.optim.AdamW:
    """Return torch's AdamW, with one fused kernel for all parameters if they are all on CUDA devices.

    The fused kernel reads and writes each parameter once; torch's default makes a dozen passes over the parameters.

    Args:
        params: Parameters, or groups of parameters.
        fused: Whether the optimizer may be fused; False is necessary if gradients are clipped in ``16-mixed``.
        options: Further options of ``torch.optim.AdamW``.
    """
    # `params` may be an iterator, such as ``network.parameters()``, which can be read only once.
    groups = list(params)
    tensors = _tensors_in(groups)
    on_cuda = bool(tensors) and all(isinstance(p, Tensor) and p.is_cuda for p in tensors)
    # None lets torch choose; with False it would update one tensor after the other.
    return torch.optim.AdamW(groups, fused=True if fused and on_cuda else None, **options)  # type: ignore[arg-type]


def _tensors_in(groups: list[Any]) -> list[Any]:
    """Return the parameters in a list of parameters or of groups of parameters."""
    tensors: list[Any] = []
    for group in groups:
        if isinstance(group, dict):
            tensors += group["params"]
        else:
            tensors.append(group)
    return tensors


def _by_kind(groups: list[Any]) -> dict[str, list[Tensor]]:
    """Return the parameters to train as filters, matrices and vectors, which differ in their number of axes.

    Raises:
        UserError: A group has options of its own.
    """
    options: set[str] = set()
    for group in groups:
        if isinstance(group, dict):
            options |= group.keys() - {"params"}
    if options:
        raise UserError(f"MuonSGD makes its own groups; leave out {', '.join(sorted(options))} of the given ones")
    kinds: dict[str, list[Tensor]] = {"filters": [], "matrices": [], "vectors": []}
    for parameter in _tensors_in(groups):
        if not parameter.requires_grad:
            continue
        if parameter.ndim > 2:
            kinds["filters"].append(parameter)
        elif parameter.ndim == 2:
            kinds["matrices"].append(parameter)
        else:
            kinds["vectors"].append(parameter)
    return kinds


class MuonSGD(torch.optim.Optimizer):
    """Muon for convolution filters, SGD with Nesterov momentum for everything else.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) writes the Nesterov momentum of a layer as a
    matrix with one row per filter, and brings all of its singular values near 1. A step then moves the weights by about
    the same amount in every direction. ``torch.optim.Muon`` takes matrices only; this class takes filters, and can keep
    their length fixed.

    Args:
        params: Parameters, or groups of parameters without options of their own. Parameters with more than two axes are
            treated as filters, those with two axes as matrices, and the rest as vectors.
        lr: Learning rate of the filters, whose update has singular values near 1.
        momentum: Nesterov momentum of the filters.
        newton_schulz_steps: Number of iterations that bring the singular values near 1.
        unit_filters: Whether the filters of each layer are scaled to a mean square length of 1 before each step. This
            is for layers that a normalisation follows, after which the length of the filters makes no difference. The
            learning rate is then the angle of a step.
        matrix_lr: Learning rate of SGD for matrices, such as the weights of the classifier.
        vector_lr: Learning rate of SGD for vectors: biases, and the factors and offsets of normalisations.
        sgd_momentum: Nesterov momentum of SGD.
        weight_decay: Weight decay of SGD for matrices.
        bfloat16: Whether the Newton-Schulz iteration computes in bfloat16. None chooses it if the device has
            instructions for it; without it, the matrix products of wide layers would take as long as the network.

    Raises:
        UserError: An argument is out of its range, or a group has options of its own.
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
        bfloat16: bool | None = None,
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
        kinds = _by_kind(list(params))
        if bfloat16 is None and kinds["filters"]:
            bfloat16 = hardware.computes_in_bfloat16(kinds["filters"][0].device)
        # The settings are stored in the group, so that a checkpoint keeps them and a resumed training continues as it
        # began.
        muon = {
            "bfloat16": bfloat16,
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
        """Update all parameters that have a gradient.

        Args:
            closure: Function that computes the gradients and returns the loss.

        Returns:
            The result of the closure; None without a closure.
        """
        loss = None
        if closure is not None:
            # The closure runs a backward pass, but the decorator switches gradients off.
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group, all at once.

        On a GPU, many small updates would mostly wait for their launches.

        Args:
            params: Parameters that have a gradient.
            group: Settings of the group.
        """
        gradients = [cast(Tensor, p.grad) for p in params]
        if group.get("weight_decay"):
            # Weight decay is added to the gradient, as in torch's SGD; AdamW instead shrinks the weights themselves.
            gradients = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
        updates = self._nesterov(params, gradients, group["momentum"])
        if group["kind"] == "filters":
            if group["unit_filters"]:
                # A layer of n filters gets the norm sqrt(n), so that the mean of the filters' squared lengths is 1.
                factors = torch._foreach_reciprocal(torch._foreach_norm(params))
                torch._foreach_mul_(factors, [len(p) ** 0.5 for p in params])
                torch._foreach_mul_(params, factors)
            # Older checkpoints do not have the setting "bfloat16"; they were trained in float32.
            updates = _orthogonalised(updates, group["newton_schulz_steps"], group.get("bfloat16", False))
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _nesterov(self, params: list[Tensor], gradients: list[Tensor], momentum: float) -> list[Tensor]:
        """Update the momentum of the parameters, and return their gradients with Nesterov momentum.

        With the momentum factor m, the buffer becomes m * buffer + gradient, and the result is gradient + m * buffer,
        as in torch's SGD.
        """
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=momentum))


def _orthogonalised(updates: list[Tensor], steps: int, bfloat16: bool) -> list[Tensor]:
    """Return the result of `orthogonalise` for the update of each layer; layers of one shape share a call."""
    results = list(updates)
    shapes: dict[tuple[torch.Size, torch.device, torch.dtype], list[int]] = defaultdict(list)
    for index, update in enumerate(updates):
        shapes[update.shape, update.device, update.dtype].append(index)
    for indices in shapes.values():
        # A filter has several axes, (in_channels, height, width), which become one row of the matrix of its layer.
        stacked = torch.stack([updates[index].flatten(1) for index in indices])
        for index, matrix in zip(indices, orthogonalise(stacked, steps, bfloat16), strict=True):
            results[index] = matrix.view_as(updates[index])
    return results


def orthogonalise(matrices: Tensor, steps: int, bfloat16: bool = False) -> Tensor:
    """Bring the singular values of matrices near 1 and keep their singular vectors, by Newton-Schulz iteration.

    Args:
        matrices: Matrices, (..., rows, columns).
        steps: Number of iterations. After 5 iterations the singular values are between 0.7 and 1.2, except those that
            were near 0.
        bfloat16: Whether to compute in bfloat16, as Jordan's own code does. This changes a singular value by about 1 %,
            which is less than the distance from 1 that the iteration leaves.

    Returns:
        Matrices with the shape and type of ``matrices``.
    """
    a, b, c = NEWTON_SCHULZ
    # The products below have one row and one column per row of x, so the smaller side has to be the rows.
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    shape = x.shape
    # baddbmm takes exactly one axis before the two of a matrix.
    x = x.reshape(-1, *shape[-2:])
    if bfloat16:
        x = x.bfloat16()
    # The Frobenius norm is at least the largest singular value, so that all singular values start between 0 and 1.
    # The small number keeps a matrix of zeros from a division by zero.
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    # One iteration is x <- a x + (b g + c g g) x with g = x x^T. It leaves the singular vectors as they are, and maps
    # each singular value s to a s + b s^3 + c s^5.
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.reshape(shape).to(matrices.dtype)
    return x.mT if tall else x
