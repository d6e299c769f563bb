"""Multiply-adds of a convolution by doing it: plain loops over numbers, each multiplication counted as it happens.

Written for the tests alone, from the definition of the operation, with no formula for the number of operations and
nothing of the package. Padding is a number that is multiplied like any other, which is the usual convention.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Loops:
    """A convolution that is done number by number, and its gradients.

    Args:
        x: Input, (N, C, ...), of a few numbers.
        weight: As torch has it: (O, C / groups, ...), or (C, O / groups, ...) where transposed.
        out_size: Extents of the output.
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
        """Every weight at every place where it is applied: index of the weight, of the input, of the output.

        An index is None where the window leaves the input, or the output of a transposed convolution.
        """
        x, weight = self.x, self.weight
        walked = x.shape[2:] if self.transposed else self.out_size  # the positions at which the kernel is put down
        other = self.out_size if self.transposed else x.shape[2:]
        per_group_first = weight.shape[0] // self.groups
        for n in range(x.shape[0]):
            for position in itertools.product(*map(range, walked)):
                for tap in itertools.product(*map(range, weight.shape[2:])):
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
        """The output; the sum over all places where a weight meets an input."""
        out = torch.zeros(self.out_shape, dtype=self.x.dtype)
        nothing = torch.zeros((), dtype=self.x.dtype)
        for w, i, o in self._meetings():
            product = self._multiply(self.weight[w], nothing if i is None else self.x[i])
            if o is not None:
                out[o] += product
        return out

    def input_gradient(self, grad: Tensor) -> Tensor:
        """The gradient of the input, from that of the output."""
        result, nothing = torch.zeros_like(self.x), torch.zeros((), dtype=grad.dtype)
        for w, i, o in self._meetings():
            product = self._multiply(self.weight[w], nothing if o is None else grad[o])
            if i is not None:
                result[i] += product
        return result

    def weight_gradient(self, grad: Tensor) -> Tensor:
        """The gradient of the weight, from that of the output."""
        result, nothing = torch.zeros_like(self.weight), torch.zeros((), dtype=grad.dtype)
        for w, i, o in self._meetings():
            product = self._multiply(nothing if i is None else self.x[i], nothing if o is None else grad[o])
            result[w] += product
        return result
