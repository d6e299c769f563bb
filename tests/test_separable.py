"""Separable against standard convolutions: weights and multiply-adds by the formula, and what the tool says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cnnbench.cli import main
from cnnbench.explain.separable import Case, layer, measure
from cnnbench.roofline.peaks import Peaks


@pytest.mark.parametrize(("channels", "kernel_size", "standard", "separable"), [(256, 3, 589_824, 67_840)])
def test_parameters_are_those_of_the_paper(channels: int, kernel_size: int, standard: int, separable: int) -> None:
    counts = [
        sum(p.numel() for p in layer(kind, channels, kernel_size).parameters()) for kind in ("standard", "separable")
    ]
    assert counts == [standard, separable]
    assert counts[1] / counts[0] == pytest.approx(1 / channels + 1 / kernel_size**2)


def test_a_separable_layer_is_a_standard_one_of_rank_one() -> None:
    """Its filters are the outer product of a filter per input channel and a weight per pair of channels."""
    torch.manual_seed(0)
    standard, separable = layer("standard", 6, 5).double(), layer("separable", 6, 5).double()
    depthwise, pointwise = (m.weight for m in separable)
    with torch.no_grad():
        standard[0].weight.copy_(pointwise * depthwise[:, 0])
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(standard(x), separable(x))


def test_the_tool_counts_and_times(capsys: pytest.CaptureFixture) -> None:
    options = ["--channels", "8,4", "--resolutions", "4", "--rounds", "1", "--batch_size", "2", "--device", "cpu"]
    assert main(["explain", "separable", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["channels"] for c in found["cases"]] == [4, 8]
    for case in found["cases"]:
        n = case["channels"]
        assert case["macs"] == [9 * n * n * 16, (9 * n + n * n) * 16]
        assert case["macs_ratio"] == pytest.approx(1 / (1 / n + 1 / 9))
        for kind in ("forward", "training"):
            assert case[f"{kind}_ratio"] > 0
            assert case[f"{kind}_ratio_interval"] == [None, None]  # of one round there is none
            allowed = case[f"{kind}_roofline_ms"]
            assert case[f"{kind}_roofline_ratio"] == pytest.approx(allowed[0] / allowed[1])
            assert min(allowed) > 0
    assert Path("results/explain/separable.png").is_file()


@pytest.mark.parametrize(("peaks", "ratio"), [(Peaks({"fp32": 1.0}, 1e12), 0), (Peaks({"fp32": 1e12}, 1.0), 1)])
def test_the_roofline_predicts_the_ratio_of_its_limit(peaks: Peaks, ratio: int) -> None:
    """Where arithmetic is slow that of the operations, where memory is slow that of the bytes, counted by hand."""
    images, n, pixels = 2, 8, 16
    (case,) = measure([Case(n, 4)], 3, images, 1, torch.device("cpu"), "32-true", peaks)
    maps, mean = images * n * pixels, images * n
    operations = [2 * images * pixels * w + maps for w in (9 * n * n, 9 * n + n * n)]  # with the mean of each channel
    numbers = [2 * maps + 9 * n * n + maps + mean, 4 * maps + 9 * n + n * n + maps + mean]
    expected = (operations, numbers)[ratio]
    assert case["forward_roofline_ratio"] == pytest.approx(expected[0] / expected[1])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--channels", "a"], "channels 'a' are not whole numbers"),
        (["--kernel_size", "4"], "kernel_size 4 must be odd"),
        (["--rounds", "0"], "rounds 0 must be at least 1"),
    ],
)
def test_bad_options_are_refused(option: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "separable", *option]) == 2
    assert words in capsys.readouterr().err
