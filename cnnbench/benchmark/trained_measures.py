"""Measures of a trained network: temperature scaling, and the accuracy on changed test images.

The changed images are made from the stored pixels, before normalisation, and rounded to whole pixel values again. They
are the same for every network and seed. They are not those of CIFAR-10-C (Hendrycks, Dietterich 2019), whose changes
and strengths are others, so accuracies do not compare with that benchmark.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnbench.benchmark.evaluation import logits_of
from cnnbench.calibration import calibration_error, confidences, fit_temperature, mean_loss
from cnnbench.data.batches import Split, TensorBatches
from cnnbench.errors import UserError
from cnnbench.measures import CHANGES, Subject, Taken
from cnnbench.predictions import MOST_CLASSES

NOISE_SEED = 0
"""Seed of the noise, which is the same for every network."""

# Calibration


def take_calibration(subject: Subject) -> Taken:
    """Fit a temperature on the validation split, and return the calibration error and the loss of the test with it.

    Raises:
        UserError: There is no validation split, or the logits of the test are not known.
    """
    test = subject.model.test_predictions()
    if test.logits is None:
        raise UserError(f"the logits of the test are not finite, or of more than {MOST_CLASSES} classes")
    batches = subject.data.val_dataloader()
    if not len(batches):
        raise UserError("there is no validation split, on which the temperature is fitted; set val_fraction above 0")
    pairs = list(logits_of(subject.model, batches, subject.device, subject.precision))
    logits = torch.cat([of_batch for of_batch, _ in pairs]).numpy()
    if not np.isfinite(logits).all():
        raise UserError("the logits of the validation split are not finite")
    temperature = fit_temperature(logits, torch.cat([labels for _, labels in pairs]).numpy())
    return Taken(
        {
            "temperature": temperature,
            "ece_scaled": calibration_error(confidences(test.logits, temperature), test.right),
            "nll_scaled": mean_loss(test.logits, test.true, temperature),
        }
    )


# Robustness


def take_robustness(subject: Subject) -> Taken:
    """Return the accuracy on the whole test set under each change of `CHANGES`, and the mean of them."""
    data, model = subject.data, subject.model
    images = data.describe()["test_images"]
    right = dict.fromkeys(CHANGES, 0)
    noise = np.random.default_rng(NOISE_SEED)
    for start in range(0, images, data.eval_batch_size):
        # Photos on the disk are decoded once for all changes.
        stored = data.stored("test", slice(start, min(start + data.eval_batch_size, images)))
        pixels = stored.images.to(subject.device).float()
        # NumPy draws the same numbers whatever the size of the batches.
        drawn = torch.from_numpy(noise.standard_normal(tuple(pixels.shape), dtype=np.float32))
        for key, (kind, strength, _) in CHANGES.items():
            changed = _changed(kind, strength, pixels, drawn, start)
            split = Split(changed.round().clamp(0, 255).to(torch.uint8), stored.labels.to(pixels.device))
            options: dict[str, Any] = {"mean": data.mean, "std": data.std, "size": data.image_size}
            batches = TensorBatches(split, len(split.labels), False, **options)
            for logits, labels in logits_of(model, batches, subject.device, subject.precision):
                right[key] += int((logits.argmax(1) == labels).sum())
    accuracies = {key: count / images for key, count in right.items()}
    return Taken({"robust_accuracy": sum(accuracies.values()) / len(accuracies), **accuracies})


def _changed(kind: str, strength: float, pixels: Tensor, drawn: Tensor, start: int) -> Tensor:
    """Return changed images, (n, C, H, W) float32; see `CHANGES`.

    Args:
        kind: Kind of the change.
        strength: Its strength.
        pixels: Images, (n, C, H, W) float32, with values from 0 to 255.
        drawn: Standard normal numbers of the same shape, on the CPU.
        start: Number of the first image in the test set.
    """
    if kind == "shift":
        return shifted(pixels, round(strength), start)
    if kind == "noise":
        return pixels + strength * 255 * drawn.to(pixels.device)
    if kind == "blur":
        return blurred(pixels, strength)
    if kind == "contrast":
        return faded(pixels, strength)
    raise ValueError(f"unknown kind of change '{kind}'")


def shifted(images: Tensor, reach: int, start: int = 0) -> Tensor:
    """Return images that are moved by some pixels, in turn to the right, left, bottom and top.

    Args:
        images: Images, (N, C, H, W).
        reach: Number of pixels; the border is repeated into the free part.
        start: Number of the first image in the test set, which decides its direction.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    moved = torch.empty_like(images)
    # A window that starts further left shows the content further right.
    for turn, (top, left) in enumerate(((reach, 0), (reach, 2 * reach), (0, reach), (2 * reach, reach))):
        place = (turn - start) % 4
        moved[place::4] = padded[place::4, :, top : top + height, left : left + width]
    return moved


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return images after a Gaussian blur, cut off at three standard deviations, with the border repeated.

    Args:
        images: Images, (N, C, H, W).
        sigma: Standard deviation in pixels.
    """
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    count, channels, height, width = images.shape
    flat = F.pad(images.reshape(count * channels, 1, height, width), (reach,) * 4, mode="replicate")
    # The blur of rows and that of columns, one after the other, are the blur of both.
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return flat.view(images.shape)


def faded(images: Tensor, factor: float) -> Tensor:
    """Return images with the distance of each pixel from the mean of its channel in the image multiplied by a factor.

    Args:
        images: Images, (N, C, H, W).
        factor: Contrast that is left, 0 to 1.
    """
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (images - mean)
