"""SpeedNet: a small network that reaches a good CIFAR-10 accuracy in as little training time as possible."""

from __future__ import annotations

from functools import partial
from itertools import chain, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from cnnbench.blocks import WhiteningConv2d, initialise
from cnnbench.optimizers import MuonSGD
from cnnbench.training.classifier import ImageClassifier


class Group(nn.Module):
    """3x3 convolutions with batch norm and GELU; max pooling after the first, a shortcut over two or more others."""

    def __init__(self, in_channels: int, out_channels: int, depth: int) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        norm = partial(nn.BatchNorm2d, out_channels)
        self.first = nn.Sequential(conv(in_channels, out_channels), nn.MaxPool2d(2), norm(), nn.GELU())
        others = [(conv(out_channels, out_channels), norm(), nn.GELU()) for _ in range(depth - 1)]
        self.others = nn.Sequential(*chain(*others))
        self.shortcut = depth > 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.others(x) if self.shortcut else self.others(x)


class SpeedNet(ImageClassifier):
    """94% on CIFAR-10 in 3.29 Seconds on a Single GPU; Jordan; 2024; 2404.00498.

    A 2x2 convolution whitens the image. Its filters are the eigenvectors of the covariance of the images' 2x2 patches,
    and their negatives, so that the first layer need not be learnt. Training sets them from its first batch; until then
    they are a random orthogonal basis. Three groups and a global max pooling follow. The factors of batch norm are
    fixed at 1, and the logits are divided by a constant, which keeps the start of training stable.
    The recipe is Muon for the filters (see `MuonSGD`), SGD with Nesterov momentum for the classifier and the offsets of
    batch norm, and a learning rate that falls linearly from the first step. Muon gains 2.8 points over SGD alone here.
    `experiments/cifar10_speednet.yaml` adds alternating mirroring, label smoothing, and images that grow from epoch to
    epoch; the last two have shown little or no gain (`experiments/LOG.md`).
    Differences from the paper: 32, 128, 128 in place of 64, 256, 256 channels, for the CPU; ReLU after the whitening,
    and no bias there; whitening from the first batch, not from 5,000 images; logits divided by 128, not by 9; torch's
    default epsilon and momentum in batch norm; He initialisation of all weights that do not start as the identity.

    Args:
        widths: Numbers of output channels of the three groups.
        depth: Number of convolutions of each group: 2 as in the paper, or 3 as in its network for 96 %.
        logit_scale: Divisor of the logits.
        muon: Whether Muon trains the filters; otherwise SGD with Nesterov momentum does, to compare the two.
    """

    min_image_size = 9
    peak_lr = 0.12
    warmup = 0.0
    recipe_words = "Muon for the filters, SGD with Nesterov momentum for the rest"
    key_idea = "whitened input, few wide layers: fast to train"

    def __init__(
        self,
        widths: tuple[int, int, int] = (32, 128, 128),
        depth: int = 2,
        logit_scale: float = 128.0,
        muon: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.check_positive(widths=min(widths), depth=depth, logit_scale=logit_scale)
        self.logit_scale = logit_scale
        self.muon = muon
        if not muon:
            self.recipe_words = "SGD with Nesterov momentum"
        patch = self.in_channels * 2 * 2
        whitening = WhiteningConv2d(self.in_channels)  # (N, 24, 31, 31) from 3x32x32
        groups = [Group(*channels, depth) for channels in pairwise((2 * patch, *widths))]
        self.features = nn.Sequential(whitening, nn.ReLU(inplace=True), *groups)  # (N, 128, 3, 3)
        head = nn.Linear(widths[-1], self.num_classes, bias=False)
        self.classifier = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), head)
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.requires_grad_(False)
            elif isinstance(module, nn.Conv2d) and module is not whitening:
                nn.init.dirac_(module.weight[: module.in_channels])  # identity: the image reaches the classifier
        whitening.set_basis(nn.init.orthogonal_(torch.empty(patch, patch, device=whitening.weight.device)))

    def recipe_optimizer(self) -> torch.optim.Optimizer:
        """Build MuonSGD, or SGD alone, with all learning rates in proportion to `learning_rate`."""
        rate = self.learning_rate / self.peak_lr
        matrix_lr, vector_lr = 86.0 * rate, 4.0 * rate
        if self.muon:
            return MuonSGD(self.parameters(), lr=self.learning_rate, matrix_lr=matrix_lr, vector_lr=vector_lr)
        groups = [
            {"params": [p for p in self.parameters() if p.requires_grad and p.ndim == axes], "lr": lr}
            for axes, lr in ((4, 1.0 * rate), (2, matrix_lr), (1, vector_lr))
        ]
        return torch.optim.SGD(groups, momentum=0.85, nesterov=True)

    def forward(self, x: Tensor) -> Any:
        """Compute logits, (N, K), from normalised images x, (N, C, H, W)."""
        return super().forward(x) / self.logit_scale

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Whiten with the first batch, but only once, since the later layers learn from these filters."""
        if self.trainer.global_step == 0 and batch_idx == 0:
            layer = cast(WhiteningConv2d, cast(nn.Sequential, self.features)[0])
            if not layer.whitened:
                layer.whiten(batch[0] if self.steps_per_call is None else batch[0][0])
                layer.weight.copy_(self.trainer.strategy.broadcast(layer.weight))  # batches differ between processes
        return super().on_train_batch_start(batch, batch_idx)
