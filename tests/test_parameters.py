"""Weights of dense, locally connected and convolutional layers, against torch and published numbers."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from cnnbench.cli import main
from cnnbench.explain.parameters import Cost, costs, stacked


def _by_kind(*arguments: int) -> dict[str, Cost]:
    kinds = ("convolution", "separable", "local", "dense", "per_channel", "units")
    return dict(zip(kinds, costs(*arguments), strict=True))


def test_layers_of_the_course() -> None:
    found = _by_kind(3, 224, 32, 3, 1, 1, 1000)
    assert found["convolution"].params == 896
    assert found["units"].weights == 150_528_000
    assert found["dense"].weights == 241_692_573_696
    assert found["per_channel"].weights == 4_816_896


def test_a_stem_of_resnet() -> None:
    found = _by_kind(3, 224, 64, 7, 2, 3, 1)["convolution"]
    assert (found.params, found.weights, found.macs) == (9_472, 9_408, 118_013_952)


@pytest.mark.parametrize(
    ("c", "o", "k", "share"), [(256, 256, 3, 0.1150174), (32, 64, 3, 0.1267361), (128, 256, 5, 0.0439063)]
)
def test_share_of_a_separable_convolution(c: int, o: int, k: int, share: float) -> None:
    found = _by_kind(c, 16, o, k, 1, k // 2, 1)
    for figure in ("weights", "macs"):
        ratio = getattr(found["separable"], figure) / getattr(found["convolution"], figure)
        assert ratio == pytest.approx(share, rel=2e-6)
        assert ratio == pytest.approx(1 / o + 1 / k**2)


@pytest.mark.parametrize(("size", "k", "stride"), [(6, 3, 1), (7, 3, 2), (5, 2, 1)])
def test_a_convolution_is_a_dense_layer_with_zeros_and_repetitions(size: int, k: int, stride: int) -> None:
    """Without padding its matrix has as many entries that are not zero as a locally connected layer has weights."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, k, stride, bias=False).double()
    matrix = torch.autograd.functional.jacobian(conv, torch.randn(1, 2, size, size, dtype=torch.float64))
    found = _by_kind(2, size, 3, k, stride, 0, 5)
    assert matrix.numel() == found["dense"].weights
    assert matrix.count_nonzero() == found["local"].weights == found["convolution"].macs
    assert len(matrix.unique()) - 1 == found["convolution"].weights == conv.weight.numel()


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_a_locally_connected_layer_that_shares_its_weights_is_a_convolution(stride: int, padding: int) -> None:
    """Windows times weights of their own; with the same weights at every place it gives the maps of a convolution."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, stride, padding, bias=False)
    x = torch.randn(4, 2, 7, 7)
    windows = nn.functional.unfold(x, 3, stride=stride, padding=padding)  # (4, 18, places)
    weights = conv.weight.view(3, 18, 1).repeat(1, 1, windows.shape[2])
    assert weights.numel() == _by_kind(2, 7, 3, 3, stride, padding, 1)["local"].weights
    maps = torch.einsum("nwp,owp->nop", windows, weights)
    torch.testing.assert_close(maps, conv(x).flatten(2))


def test_counts_are_those_of_torch() -> None:
    found = _by_kind(2, 6, 3, 3, 1, 1, 7)
    modules = {
        "convolution": nn.Conv2d(2, 3, 3), "dense": nn.Linear(2 * 36, 3 * 36), "per_channel": nn.Linear(72, 3),
        "units": nn.Linear(72, 7), "separable": nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 3, 1)),
    }  # fmt: skip
    for kind, module in modules.items():
        assert found[kind].params == sum(p.numel() for p in module.parameters()), kind


def test_the_tool_says_what_compares(capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "parameters", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][0]["params"] == 896
    assert main(["explain", "parameters"]) == 0
    out = capsys.readouterr().out
    assert "has 241,692,573,696 weights" in out
    assert "3·3·3·32" in out
    assert "279,736,775" in out  # 241,692,573,696 / 864, in the table
    assert "269,747,968" not in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image_size=99999999"], "has 9,599,999"),
        (["--stride=40", "--image_size=32", "--padding=0"], "both dense layers have 98,304 weights"),
    ],
)
def test_extremes_are_told_as_they_are(options: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "parameters", *options]) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(("option", "words"), [("--kernel_size=9", "does not fit"), ("--stride=0", "stride 0 must")])
def test_what_is_impossible_is_refused(option: str, words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "parameters", "--image_size=4", "--padding=0", option]) == 2
    assert words in capsys.readouterr().err


def test_two_small_kernels_save_only_where_channels_stay() -> None:
    """By hand: 64 to 64 channels 73,728 for 102,400 weights, 3 to 64 channels 38,592 for 4,800."""
    assert stacked(64, 64) == (73_728, 102_400)
    assert stacked(3, 64) == (38_592, 4_800)
    assert [two < one for two, one in (stacked(9, 15), stacked(9, 16), stacked(9, 17))] == [True, False, False]
