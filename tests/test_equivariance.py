"""Translation equivariance: facts about shifts, BlurPool's filter, copies with BlurPool, networks on shifted images."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbench.cli import main
from cnnbench.data import get_data
from cnnbench.errors import UserError
from cnnbench.explain import Explanation, run
from cnnbench.explain.equivariance import (
    BlurPool,
    Layer,
    _unseen_images,
    equivariance_error,
    layers,
    shift_curve,
    shifted,
    with_blurpool,
)
from cnnbench.models.lenet import SimpleCNN
from cnnbench.network import get_network

IMAGE = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _layer(name: str) -> Layer:
    (found,) = [layer for layer in layers() if layer.name == name]
    return found


def _errors(name: str, pixels: int) -> tuple[float, float]:
    return equivariance_error(_layer(name), IMAGE, pixels)[:2]


@pytest.mark.parametrize("pixels", [1, 2, 5])
def test_a_circular_convolution_is_equivariant(pixels: int) -> None:
    assert _errors("conv 3x3, circular", pixels)[0] < 1e-14


@pytest.mark.parametrize("pixels", [1, 3])
def test_zero_padding_errs_where_border_and_shifted_border_are(pixels: int) -> None:
    whole, centre, places = equivariance_error(_layer("conv 3x3, zero padding"), IMAGE, pixels)
    wrong = (places > 1e-12).any(0).nonzero().flatten().tolist()
    # the border columns 0 and 31, and where the shift has taken them; rows do not move, nor does their border
    assert wrong == sorted({0, 31, pixels, pixels - 1})
    assert whole > 0.05
    assert centre < 1e-14


@pytest.mark.parametrize("name", ["conv, stride 2, ReLU", "max pool 2x2", "average pool 2x2", "max pool, BlurPool"])
def test_a_stride_of_two_is_equivariant_for_even_shifts_alone(name: str) -> None:
    assert all(_errors(name, pixels)[0] < 1e-14 for pixels in (0, 2, 4, 6))
    assert all(_errors(name, pixels)[0] > 0.05 for pixels in (1, 3))


def test_three_stages_come_back_at_eight() -> None:
    for name in ("3 stages, max pool", "3 stages, BlurPool"):
        assert _errors(name, 8)[0] < 1e-13
        assert _errors(name, 4)[0] > 0.01


@pytest.mark.parametrize(
    ("plain", "blurred"),
    [("conv, stride 2, ReLU", "conv, ReLU, BlurPool"), ("max pool 2x2", "max pool, BlurPool"),
     ("3 stages, max pool", "3 stages, BlurPool")],
)  # fmt: skip
def test_blurpool_lessens_the_error_on_noise(plain: str, blurred: str) -> None:
    assert _errors(blurred, 1)[0] < 0.7 * _errors(plain, 1)[0]


def test_layers_have_the_stride_and_the_reach_that_they_say() -> None:
    """A place depends on pixels at most so far away: the gradient says on which."""
    for layer in layers():
        image = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
        maps = layer.module(image)
        assert maps.shape[2:] == (64 // layer.stride,) * 2
        middle = maps.shape[2] // 2
        maps[:, :, middle, middle].sum().backward()
        columns = image.grad.abs().sum((0, 1, 2)).nonzero().flatten()
        first, last = middle * layer.stride, (middle + 1) * layer.stride - 1
        assert first - layer.reach <= columns.min(), layer.name
        assert columns.max() <= last + layer.reach, layer.name


def test_between_places_a_wave_is_shifted_exactly() -> None:
    at = torch.arange(16, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * 3 * at / 16).expand(1, 1, 4, 16)
    expected = torch.cos(2 * torch.pi * 3 * (at - 2.5) / 16).expand(1, 1, 4, 16)
    torch.testing.assert_close(shifted(wave, 2.5), expected)
    assert torch.equal(shifted(IMAGE, 3), IMAGE.roll(3, 3))


def test_the_blur_is_the_binomial_filter() -> None:
    dot = torch.zeros(1, 1, 7, 7)
    dot[0, 0, 3, 3] = 16
    assert BlurPool(1)(dot)[0, 0, 2:5, 2:5].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    row = torch.tensor([1.0, 4, 6, 4, 1])
    assert torch.equal(BlurPool(1, 5)(16 * dot)[0, 0, 1:6, 1:6], torch.outer(row, row))


def test_a_checkerboard_becomes_grey_and_a_constant_stays() -> None:
    board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float()[None, None]
    assert board[..., ::2, ::2].unique().tolist() == [0]  # without a blur it is black,
    assert board.roll(1, 3)[..., ::2, ::2].unique().tolist() == [1]  # or white, by where it is
    for moved in (board, board.roll(1, 3)):
        assert torch.equal(BlurPool(2, 3, "circular")(moved), torch.full((1, 1, 4, 4), 0.5))
    for mode in ("replicate", "circular"):
        torch.testing.assert_close(BlurPool(2, 5, mode)(torch.full((2, 3, 9, 9), 0.7)), torch.full((2, 3, 5, 5), 0.7))


def test_global_average_pooling_after_circular_convolutions_is_invariant() -> None:
    torch.manual_seed(0)

    def conv(channels: int, stride: int = 1) -> nn.Module:
        return nn.Conv2d(channels, 6, 3, stride, 1, padding_mode="circular")

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    invariant = nn.Sequential(conv(3), nn.ReLU(), conv(6), nn.ReLU(), *head).double()
    strided = nn.Sequential(conv(3, 2), nn.ReLU(), conv(6), nn.ReLU(), *head).double()
    moved = IMAGE.roll((3, 5), (2, 3))
    torch.testing.assert_close(invariant(moved), invariant(IMAGE))
    assert not torch.allclose(strided(moved), strided(IMAGE))


@pytest.mark.parametrize("name", ["SimpleCNN", "LeNet5", "VGG11", "ResNet18", "MobileNetV2", "DenseNet121"])
@pytest.mark.parametrize("filter_size", [3, 5])
def test_a_copy_with_blurpool_has_the_weights_and_sizes(name: str, filter_size: int) -> None:
    model = get_network(name).build().eval()
    copy = with_blurpool(model, filter_size).eval()
    assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), model.parameters(), strict=True))
    assert any(isinstance(m, BlurPool) for m in copy.modules())
    assert not any(isinstance(m, BlurPool) for m in model.modules())
    strided = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    assert all(m.stride in (1, (1, 1)) for m in copy.modules() if isinstance(m, strided))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert copy(x).shape == model(x).shape
        assert not torch.allclose(copy(x), model(x))


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 0), (1, 2, 0)])
def test_a_blurred_pooling_is_pooling_then_blur_of_the_same_size(
    size: int, kernel: int, stride: int, padding: int
) -> None:
    x = torch.rand(1, 2, size, size)
    plain = nn.Sequential(nn.MaxPool2d(kernel, stride, padding))
    found = with_blurpool(plain)(x)
    assert found.shape == plain(x).shape
    row = torch.tensor([1.0, 2, 1]) / 4 if stride == 2 else torch.tensor([1.0, 4, 6, 4, 1]) / 16
    dense = F.pad(F.max_pool2d(x, kernel, 1, padding), (len(row) // 2,) * 4, mode="replicate")
    expected = F.conv2d(dense, torch.outer(row, row).expand(2, 1, -1, -1), stride=stride, groups=2)
    torch.testing.assert_close(found, expected)


def test_the_blur_goes_behind_the_activation_as_in_the_paper() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
    found = with_blurpool(nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten()).eval())
    x = torch.randn(2, 3, 8, 8)
    dense = torch.relu(norm.eval()(F.conv2d(x, conv.weight, conv.bias, 1, 1)))
    torch.testing.assert_close(found(x), BlurPool(2)(dense).flatten(1))


@pytest.mark.parametrize("stride", [2, 3, 4, 6])
def test_a_wave_that_a_stride_cannot_hold_is_blurred_away(stride: int) -> None:
    """A wave as long as the stride becomes a constant, whose value says where the image was: all of it is aliasing."""
    wave = torch.cos(2 * torch.pi * torch.arange(48) / stride).expand(1, 1, 48, 48)
    plain = nn.Sequential(nn.MaxPool2d(1, stride))
    assert plain(wave).abs().min() > 0.99
    found = with_blurpool(plain)(wave)
    assert found.shape == plain(wave).shape
    assert found[..., 2:-2, 2:-2].abs().max() < 0.07


def test_a_convolution_that_serves_twice_is_blurred_twice() -> None:
    convolution = nn.Conv2d(2, 2, 3, stride=2, padding=1)
    model = nn.Sequential(convolution, nn.ReLU(), convolution)
    blurred = with_blurpool(model)
    x = torch.randn(1, 2, 32, 32)
    assert blurred(x).shape == model(x).shape == (1, 2, 8, 8)
    assert sum(isinstance(module, BlurPool) for module in blurred.modules()) == 2
    assert sum(p.numel() for p in blurred.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_pooling_that_serves_twice_is_blurred_twice() -> None:
    pool = nn.MaxPool2d(2)
    copy = with_blurpool(nn.Sequential(pool, pool))
    assert sum(isinstance(m, BlurPool) for m in copy.modules()) == 2
    assert copy(torch.rand(1, 1, 8, 8)).shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "nothing to blur"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), "not rounded up"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, (1, 2))), "strides must be equal"),
    ],
)
def test_what_cannot_be_blurred_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(UserError, match=words):
        with_blurpool(model)


class _Left(nn.Module):
    """Tells whether the left half of an image is the brighter one."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[3] // 2
        return torch.stack([x[..., :half].mean((1, 2, 3)), x[..., half:].mean((1, 2, 3))], 1)


def test_curves_follow_what_moves_across_and_what_moves_down() -> None:
    images = torch.zeros(10, 1, 8, 8)
    images[:, :, :, 3] = 1  # a line in the left half
    found = shift_curve("left", _Left(), images, torch.zeros(10, dtype=torch.long), 3)
    assert found.shifts == [-3, -2, -1, 0, 1, 2, 3]
    # Shifts of 1 and 2 take it to the right half; one of 3 also brings its mirror image from -3 to 0: a draw, which
    # argmax gives to the left. On the other side its mirror image is at 11, too far away.
    expected = [1, 1, 1, 1, 0, 0, 1]
    assert [s.value for s in found.accuracy["across"]] == expected
    assert [s.value for s in found.consistency["across"]] == expected
    assert [s.value for s in found.accuracy["down"]] == [1] * 7
    # Wilson's interval of 10 in 10 begins at n / (n + z^2)
    assert found.accuracy["down"][0].low == pytest.approx(10 / (10 + 1.959964**2))
    assert found.mean("accuracy") == pytest.approx(10 / 12)


def test_consistency_is_about_the_prediction_and_accuracy_about_the_class() -> None:
    images = torch.zeros(4, 1, 8, 8)
    images[..., 2] = 1
    found = shift_curve("left", _Left(), images, torch.tensor([0, 0, 0, 1]), 1)
    assert {s.value for s in found.accuracy["across"]} == {0.75}
    assert {s.value for s in found.consistency["across"]} == {1.0}


def test_the_tool_trains_two_networks_that_share_all_but_the_blur(capsys: pytest.CaptureFixture) -> None:
    options = ["SimpleCNN(dropout=0.0)", "--data=Synthetic", "--train_seconds=0.3", "--images=60", "--max_shift=2"]
    assert main(["explain", "equivariance", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    steps = f"{found['train_steps']:,} steps"
    assert [n["model"] for n in found["networks"]] == [f"SimpleCNN(dropout=0.0), {steps}", f"with BlurPool, {steps}"]
    assert found["train_steps"] >= 1
    assert {(n["images"], n["kind"]) for n in found["networks"]} == {(60, "validation images")}
    assert [Path(p["file"]).name for p in found["pictures"]] == [
        "equivariance_maps.png", "equivariance_layers.png", "equivariance_accuracy.png"
    ]  # fmt: skip
    middle = [n["consistency"][axis][2]["value"] for n in found["networks"] for axis in ("across", "down")]
    assert middle == [1.0] * 4


def _fit(*options: str) -> Path:
    """The checkpoint of a short training on Synthetic."""
    before = set(Path("results/runs").glob("*/*"))
    small = ["--data=Synthetic", "--data.train_images=100", "--data.test_images=30", "--trainer.max_epochs=1"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    assert main(["fit", "--model=LeNet5", *small, *quiet, *options]) == 0
    (made,) = set(Path("results/runs").glob("*/*")) - before
    return made / "checkpoints" / "last.ckpt"


def _shown(*options: str) -> Explanation:
    return run("equivariance", [*options, "--images=10", "--max_shift=1"])


def test_images_and_augmentation_are_those_of_the_run() -> None:
    half = _fit("--data.val_fraction=0.5", "--data.augment=true", "--data.padding=1", "--data.flip=alternate")
    found = _shown(f"--ckpt_path={half}")
    assert "10 validation images of Synthetic" in found.tables[1].title
    assert "shift of up to 1 pixels (reflect), alternate mirroring" in " ".join(found.remarks)
    every = _fit("--data.val_fraction=0")
    found = _shown(f"--ckpt_path={every}")
    assert "10 test images of Synthetic" in found.tables[1].title
    assert "Augmentation of the training images: none." in " ".join(found.remarks)
    found = _shown(f"--ckpt_path={half}", f"--compare={every}")  # what one left out, the other was trained on
    assert "10 test images of Synthetic" in found.tables[1].title
    assert "none (LeNet5, trained (2))" in " ".join(found.remarks)


def test_a_trained_network_without_its_data_is_shown_test_images() -> None:
    data = get_data("Synthetic")(train_images=20, test_images=10, val_fraction=0.5)
    data.prepare_data()
    data.setup()
    known = SimpleNamespace(trained=True, caveat="", data=data)
    assert _unseen_images(data, [known], 5)[0] == "validation images"  # type: ignore[list-item]
    unknown = SimpleNamespace(trained=True, caveat="", data=None)
    assert _unseen_images(data, [known, unknown], 5)[0] == "test images"  # type: ignore[list-item]


def test_an_old_checkpoint_is_shown_what_no_network_has_seen() -> None:
    stored = torch.load(_fit(), weights_only=True)
    del stored["datamodule_hyper_parameters"]
    torch.save(stored, "old.ckpt")
    found = _shown("--ckpt_path=old.ckpt")
    assert "10 test images of Synthetic" in found.tables[1].title
    assert "Augmentation of the training images: not known." in " ".join(found.remarks)
    options = ["--ckpt_path=old.ckpt", "--index=3", "--images=20"]
    found = run("feature-maps", options)
    assert found.tables[0].title == "LeNet5, trained: maps of image 3 of the training set"
    assert dict(found.tables[-1].rows)["Images searched"] == "20 images of the training set of Synthetic"
    assert any("which of them the network was trained on is not known" in line for line in found.remarks)


def test_a_pair_is_trained_for_so_many_steps_and_a_checkpoint_drawn_beside_it() -> None:
    found = run("equivariance", ["LeNet5", "--data=Synthetic", "--train_steps=2", f"--compare={_fit()}",
                                 "--images=10", "--max_shift=1", "--image_size=32"])  # fmt: skip
    names = [n["model"] for n in found.numbers["networks"]]
    assert names == ["LeNet5, 2 steps", "with BlurPool, 2 steps", "LeNet5, trained"]
    assert found.numbers["train_steps"] == 2
    assert "10 test images" in found.tables[1].title  # the checkpoint has other images to split


def test_blurpool_lowers_the_error_of_max_pooling_on_the_photo() -> None:
    found = run("equivariance", [])
    cells = {row[0]: row[2] for row in found.tables[0].rows}
    errors = {layer["layer"]: layer["relative_error"][1] for layer in found.numbers["layers"]}
    for name in ("max pool 2x2", "max pool, BlurPool"):
        assert cells[name] == f"{errors[name]:.3f}"
    assert errors["max pool, BlurPool"] < errors["max pool 2x2"]


def test_a_network_with_random_weights_is_called_so(capsys: pytest.CaptureFixture) -> None:
    options = ["SimpleCNN", "--data=Synthetic", "--images=20", "--max_shift=1"]
    assert main(["explain", "equivariance", *options]) == 0
    out = capsys.readouterr().out
    assert "SimpleCNN, random weights" in out
    assert "20 validation images" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SimpleCNN"], "name it with --data"),
        (["SimpleCNN", "--data=Synthetic", "--images=1001"], "more than the 1,000 validation images"),
        (["SimpleCNN", "--data=Synthetic", "--max_shift=32"], "below the image size, 32"),
        (["--images=0"], "images 0 must be at least 1"),
        (["SimpleCNN", "--train_seconds=1"], "give both"),
        (["--compare=a.ckpt"], "give --ckpt_path FILE too"),
        (["SimpleCNN", "--data=Synthetic", "--compare=a.ckpt"], "'a.ckpt' does not exist"),
        (["SimpleCNN", "--data=Synthetic", "--train_seconds=-1"], "train_seconds -1 must be at least 0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "equivariance", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert not Path("results").exists()


def test_the_model_that_is_copied_is_left_as_it_was() -> None:
    model = SimpleCNN()
    before = str(model)
    with_blurpool(model)
    assert str(model) == before
