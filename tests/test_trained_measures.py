"""Measures of a trained network: changed images against scipy and NumPy, the temperature of the validation split."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from cnnbench.benchmark.trained_measures import (
    NOISE_SEED,
    blurred,
    faded,
    shifted,
    take_calibration,
    take_robustness,
)
from cnnbench.calibration import calibration_error, confidences, fit_temperature
from cnnbench.cli import main
from cnnbench.data.module import ImageDataModule
from cnnbench.data.sets import Synthetic
from cnnbench.errors import UserError
from cnnbench.measures import CHANGES, Subject
from cnnbench.network import make_classifier
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.trainer import make_trainer

IMAGES = torch.randint(0, 256, (5, 3, 9, 11), generator=torch.Generator().manual_seed(0)).float()


def test_a_blur_is_that_of_scipy() -> None:
    for sigma in (0.5, 1.0):
        expected = ndimage.gaussian_filter(
            IMAGES.numpy(), (0, 0, sigma, sigma), mode="nearest", radius=(0, 0, *[int(np.ceil(3 * sigma))] * 2)
        )
        assert blurred(IMAGES, sigma).numpy() == pytest.approx(expected, abs=1e-3)


def test_a_shift_goes_in_turn_to_the_right_left_bottom_and_top() -> None:
    moved = shifted(IMAGES, 2)
    assert torch.equal(moved[0, :, :, 2:], IMAGES[0, :, :, :-2])
    assert torch.equal(moved[1, :, :, :-2], IMAGES[1, :, :, 2:])
    assert torch.equal(moved[2, :, 2:], IMAGES[2, :, :-2])
    assert torch.equal(moved[3, :, :-2], IMAGES[3, :, 2:])
    assert torch.equal(moved[4, :, :, 2:], IMAGES[4, :, :, :-2])
    assert torch.equal(shifted(IMAGES[3:], 2, start=3), moved[3:])
    # The border is repeated.
    assert torch.equal(moved[0, :, :, 0], IMAGES[0, :, :, 0])


def test_fading_keeps_the_mean_and_scales_the_deviation() -> None:
    pale = faded(IMAGES, 0.25)
    assert pale.mean(dim=(2, 3)).numpy() == pytest.approx(IMAGES.mean(dim=(2, 3)).numpy(), rel=1e-5)
    assert pale.std(dim=(2, 3)).numpy() == pytest.approx(0.25 * IMAGES.std(dim=(2, 3)).numpy(), rel=1e-5)


def _subject(epochs: int = 1, **options: object) -> Subject:
    """Return a network that is trained and tested, with its data."""
    data = Synthetic(train_images=200, test_images=41, batch_size=20, **options)
    torch.manual_seed(0)
    model = make_classifier("LeNet5", data.num_classes, data.in_channels, data.image_size)
    trainer = make_trainer(torch.device("cpu"), [], precision="32-true", max_epochs=epochs, logger=False)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    shape = (data.in_channels, data.image_size, data.image_size)
    return Subject("LeNet5", model, shape, data, "cpu", "32-true")


def _accuracy(model: ImageClassifier, data: ImageDataModule, pixels: np.ndarray) -> float:
    """Return the accuracy on test images of these pixels, (N, C, H, W), normalised by hand."""
    mean, std = (np.array(values).reshape(1, -1, 1, 1) for values in (data.mean, data.std))
    x = torch.from_numpy(((np.rint(pixels).clip(0, 255) / 255 - mean) / std).astype(np.float32))
    with torch.inference_mode():
        predicted = model.eval()(x).argmax(1)
    return float((predicted == data.stored("test", slice(None)).labels).float().mean())


def test_robustness_is_the_accuracy_on_images_that_numpy_changes() -> None:
    subject = _subject()
    data, model = subject.data, subject.model
    figures = take_robustness(subject).figures
    pixels = data.stored("test", slice(None)).images.numpy().astype(np.float64)
    drawn = np.random.default_rng(NOISE_SEED).standard_normal(pixels.shape, dtype=np.float32)
    mean = pixels.mean(axis=(2, 3), keepdims=True)
    assert figures["robust_noise_strong"] == pytest.approx(_accuracy(model, data, pixels + 25.5 * drawn))
    assert figures["robust_noise_mild"] == pytest.approx(_accuracy(model, data, pixels + 12.75 * drawn))
    assert figures["robust_contrast_strong"] == pytest.approx(_accuracy(model, data, mean + (pixels - mean) / 4))
    assert figures["robust_accuracy"] == pytest.approx(np.mean([figures[key] for key in CHANGES]))
    assert all(0 <= figures[key] <= 1 for key in CHANGES)
    data.eval_batch_size = 7
    assert take_robustness(subject).figures == pytest.approx(dict(figures))


def test_the_temperature_comes_from_the_validation_split() -> None:
    subject = _subject(epochs=12, val_fraction=0.3)
    figures = take_calibration(subject).figures
    parts = {}
    for name in ("val", "test"):
        batches = getattr(subject.data, f"{name}_dataloader")()
        with torch.inference_mode():
            parts[name] = torch.cat([subject.model.eval()(images) for images, _ in batches]), batches.labels.numpy()
    temperature = fit_temperature(parts["val"][0].numpy(), parts["val"][1])
    logits, true = parts["test"]
    assert figures["temperature"] == pytest.approx(temperature, rel=1e-3)
    assert 0.06 < temperature < 15
    assert temperature != pytest.approx(fit_temperature(logits.numpy(), true), rel=1e-3)
    sure, right = confidences(logits.numpy(), temperature), logits.argmax(1).numpy() == true
    assert figures["ece_scaled"] == pytest.approx(calibration_error(sure, right), abs=2e-3)
    expected = torch.nn.functional.cross_entropy(logits / temperature, torch.from_numpy(true))
    assert figures["nll_scaled"] == pytest.approx(float(expected), rel=1e-3)


def test_without_a_validation_split_there_is_no_temperature() -> None:
    with pytest.raises(UserError, match="no validation split"):
        take_calibration(_subject(val_fraction=0.0))


def test_a_benchmark_takes_both_measures_and_says_why_one_is_missing() -> None:
    options = ["--models=LeNet5", "--data=Synthetic(train_images=200,test_images=40)", "--epochs=1", "--device=cpu"]
    assert main(["bench", *options, "--measures=quality,calibration,robustness", "--out=run"]) == 0
    (row,) = csv.DictReader(Path("run/results.csv").read_text().splitlines())
    for key in ("ece", "nll", "temperature", "ece_scaled", "nll_scaled", "robust_accuracy", *CHANGES):
        assert float(row[key]) >= 0, key
    text = Path("run/report.md").read_text()
    for title in ("ECE %", "ECE scaled %", "Robust %"):
        assert title in text
    assert "reliability" in text
