"""Accuracy of an exported network beside that of the network itself, on the same test images.

Both mostly fail on the same images. So their difference is known far better than their two accuracies, and the test is
McNemar's, of the images that only one of the two gets right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnbench.errors import UserError
from cnnbench.stats import ALPHA, Interval, McNemar, mcnemar, paired_interval, wilson_interval
from cnnbench.text import number_of


def right_answers(logits_of: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> np.ndarray:
    """Return whether each image is classified right, (N,).

    Args:
        logits_of: Function that returns logits, (N, K), of images, (N, C, H, W).
        batches: Images and labels, as the loaders of a data set yield them.

    Raises:
        UserError: Logits are not finite, or there are no images.
    """
    right = []
    for images, labels in batches:
        logits = logits_of(images)
        # Of values that are not numbers, argmax would return a class too.
        if not logits.isfinite().all():
            raise UserError("logits of test images are not finite, so there is no accuracy; check the weights")
        right.append(logits.argmax(1) == labels)
    if not right:
        raise UserError("there are no test images, so there is no accuracy")
    return torch.cat(right).numpy()


@dataclass(frozen=True)
class Accuracy:
    """Share of test images that a network classifies right.

    Attributes:
        right: Number of these images.
        images: Number of all test images.
    """

    right: int
    images: int

    @property
    def share(self) -> float:
        """Return the accuracy, 0 to 1."""
        return self.right / self.images

    @property
    def words(self) -> str:
        """Return the accuracy in per cent with Wilson's interval."""
        low, high = wilson_interval(self.right, self.images)
        return f"{100 * self.share:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})"

    def document(self) -> dict[str, Any]:
        """Return the accuracy for JSON, as shares; the interval is Wilson's."""
        low, high = wilson_interval(self.right, self.images)
        return {"right": self.right, "images": self.images, "accuracy": self.share, "low": low, "high": high}


@dataclass(frozen=True)
class Paired:
    """An exported network and the network itself on the same test images.

    Attributes:
        file: Name of the exported network for sentences, such as ``int8 in ONNX Runtime``.
        images: Which images these are, in words.
        of_file: Whether the exported network classifies each image right, (N,).
        of_network: The same for the network itself, in float32 in torch.
    """

    file: str
    images: str
    of_file: np.ndarray
    of_network: np.ndarray

    @property
    def accuracies(self) -> tuple[Accuracy, Accuracy]:
        """Return the accuracy of the exported network and that of the network itself."""
        first, second = (Accuracy(int(right.sum()), len(right)) for right in (self.of_file, self.of_network))
        return first, second

    @property
    def only(self) -> tuple[int, int]:
        """Return how many images only the exported network gets right, and how many only the network itself."""
        return int((self.of_file & ~self.of_network).sum()), int((~self.of_file & self.of_network).sum())

    @cached_property
    def difference(self) -> Interval:
        """Return the accuracy of the exported network minus that of the network itself, with its interval."""
        return paired_interval(*self.only, len(self.of_file))

    @property
    def test(self) -> McNemar:
        """Return McNemar's test of the two."""
        return mcnemar(*self.only)

    @property
    def differ(self) -> bool:
        """Return whether the test says that the two differ."""
        return self.test.p <= ALPHA

    @property
    def sentences(self) -> list[str]:
        """Return both accuracies as a sentence, and what the test says of their difference as another."""
        file, network = self.accuracies
        only_file, only_network = self.only
        both = f"Accuracy on {self.images}: {file.words} in {self.file}, {network.words} in float32 in torch."
        low, high = self.difference.low, self.difference.high
        assert low is not None
        assert high is not None
        if not only_file and not only_network:
            return [
                both,
                "Both are right for exactly the same images, so the two are not shown to differ (95 % interval of the "
                f"difference {100 * low:+.2f} to {100 * high:+.2f} points).",
            ]
        verdict = "differ" if self.differ else "are not shown to differ"
        p = f"= {self.test.p:.3f}" if self.test.p >= 0.001 else "< 0.001"
        return [
            both,
            f"The two {verdict}: {100 * self.difference.estimate:+.2f} points (95 % interval {100 * low:+.2f} to "
            f"{100 * high:+.2f}; {self.test.method}, p {p}); right in {self.file} only: "
            f"{number_of(only_file, 'image')}, in float32 only: {number_of(only_network, 'image')}.",
        ]

    def document(self) -> dict[str, Any]:
        """Return accuracies, difference and test for JSON."""
        file, network = self.accuracies
        only_file, only_network = self.only
        return {
            "file": file.document(),
            "network": network.document(),
            "difference": self.difference.estimate,
            "low": self.difference.low,
            "high": self.difference.high,
            "only_file_right": only_file,
            "only_network_right": only_network,
            "test": self.test.method,
            "p": self.test.p,
            "differ": self.differ,
            "sentences": self.sentences,
        }
