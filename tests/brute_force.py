"""Multiply-adds of a convolution by brute force: plain loops over numbers, which count each multiplication they do.

This code is for the tests only. It follows the definition of the operation, and uses neither a formula for the number
of operations nor code of the package. A padding value is multiplied like any other number, which is the usual
convention.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Loops:
    """A convolution and its gradients, computed number by number.

    Args:
        x: Input, (N, C, ...), with few numbers, since every one of them is a step of a Python loop.
        weight: Weight in the layout of torch: (O, C / groups, ...), or (C, O / groups, ...) if transposed.
        out_size: Spatial extents of the output.
        stride: Stride in each spatial dimension.
        padding: Padding in each spatial dimension.
        dilation: Dilation in each spatial dimension.
        groups: Number of groups of channels.
        transposed: Whether this is a transposed convolution.

    Attributes:
        multiplications: Number of multiplications so far.
    """

    def __init__(
        self, x: Tensor, weight: Tensor, out_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
        dilation: Sequence[int], groups: int, transposed: bool,
    ) -> None:  # fmt: skip
        self.x, self.weight, self.transposed = x, weight, transposed
        self.out_size, self.stride, self.padding, self.dilation = out_size, stride, padding, dilation
        self.groups = groups
        self.multiplications = 0
        channels = weight.shape[1] * groups if transposed else weight.shape[0]
        self.out_shape = (x.shape[0], channels, *out_size)

    def _meetings(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...] | None]]:
        """Yield every weight at every position where it is applied: index of the weight, of the input, of the output.

        The index of the input is None where the kernel reaches into the padding. For a transposed convolution the index
        of the output is None where the kernel reaches beyond the output.
        """
        x, weight = self.x, self.weight
        # The kernel has one position per element of the output, and reads from the input. In a transposed convolution
        # it has one position per element of the input, and writes to the output.
        walked = x.shape[2:] if self.transposed else self.out_size
        other = self.out_size if self.transposed else x.shape[2:]
        per_group_first = weight.shape[0] // self.groups
        for n in range(x.shape[0]):
            for position in itertools.product(*map(range, walked)):
                for tap in itertools.product(*map(range, weight.shape[2:])):
                    # The index in the other tensor that this element of the kernel reaches, by definition:
                    # position * stride - padding + tap * dilation.
                    reached = tuple(
                        p * s - pad + t * d
                        for p, s, pad, t, d in zip(position, self.stride, self.padding, tap, self.dilation, strict=True)
                    )
                    inside = all(0 <= r < size for r, size in zip(reached, other, strict=True))
                    for first in range(weight.shape[0]):
                        group = first // per_group_first
                        for second in range(weight.shape[1]):
                            c = group * weight.shape[1] + second
                            w = (first, second, *tap)
                            if self.transposed:
                                yield w, (n, first, *position), (n, c, *reached) if inside else None
                            else:
                                yield w, (n, c, *reached) if inside else None, (n, first, *position)

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor:
        self.multiplications += 1
        return a * b

    def forward(self) -> Tensor:
        """Return the output; each of its elements is a sum of products of a weight and an input."""
        out = torch.zeros(self.out_shape, dtype=self.x.dtype)
        nothing = torch.zeros((), dtype=self.x.dtype)
        for w, i, o in self._meetings():
            product = self._multiply(self.weight[w], nothing if i is None else self.x[i])
            if o is not None:
                out[o] += product
        return out

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient of the loss with respect to the input, from that with respect to the output."""
        result, nothing = torch.zeros_like(self.x), torch.zeros((), dtype=grad.dtype)
        for w, i, o in self._meetings():
            product = self._multiply(self.weight[w], nothing if o is None else grad[o])
            if i is not None:
                result[i] += product
        return result

    def weight_gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient of the loss with respect to the weight, from that with respect to the output."""
        result, nothing = torch.zeros_like(self.weight), torch.zeros((), dtype=grad.dtype)
        for w, i, o in self._meetings():
            product = self._multiply(nothing if i is None else self.x[i], nothing if o is None else grad[o])
            result[w] += product
        return result
