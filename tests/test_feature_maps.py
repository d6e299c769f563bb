"""Filters, feature maps, Grad-CAM and patches: closed forms, planted patterns, and networks that stay as they are."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbench.blocks import initialise
from cnnbench.cli import main
from cnnbench.counting.complexity import receptive_fields
from cnnbench.data import get_data
from cnnbench.errors import UserError
from cnnbench.explain import run
from cnnbench.explain.activations import check_layers, outputs, predict_logits, record, stages
from cnnbench.explain.filters import colours, convolutions, grey_shares, norms
from cnnbench.explain.grad_cam import (
    _Check,
    _standard_error,
    _verdict,
    cascade,
    grad_cam,
    overlay,
    weight_groups,
    weighted_map,
)
from cnnbench.explain.images import pixels_of, training_images
from cnnbench.explain.networks import load_checkpoint
from cnnbench.explain.options import DataOptions
from cnnbench.explain.patches import Responses, cut, selective_channels, strongest_units, top_images, window
from cnnbench.network import get_network

SHAPE = (3, 12, 12)


def _network(pool: nn.Module, inputs: int) -> nn.Sequential:
    """Two convolutions with activations in place, a pooling, one linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 5, 3, padding=1),
            relu=nn.ReLU(inplace=True),
            down=nn.MaxPool2d(2),
            second=nn.Conv2d(5, 6, 3, padding=1),
            last=nn.ReLU(inplace=True),
            pool=pool,
            flat=nn.Flatten(),
            head=nn.Linear(inputs, 4),
        )
    )


def _images(count: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) - 0.4


def _state(model: nn.Module) -> tuple:
    """All that a look at a network must not change."""
    hooks = [
        len(getattr(m, kind))
        for m in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
        hooks,
        torch.get_rng_state(),
    )


def _assert_same(before: tuple, after: tuple) -> None:
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0] | after[0])
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])


# Grad-CAM


def test_grad_cam_after_average_pooling_is_the_class_activation_map() -> None:
    """Zhou et al. 2016: the weights of the linear layer; Grad-CAM has them over H times W (Selvaraju et al. 2017)."""
    model, images, classes = _network(nn.AdaptiveAvgPool2d(1), 6), _images(3), torch.tensor([0, 3, 1])
    with torch.no_grad():
        maps = model[:5](images)
    expected = torch.einsum("nk,nkhw->nhw", model.head.weight.detach()[classes], maps) / maps[0, 0].numel()
    torch.testing.assert_close(weighted_map(model, images, "last", classes), expected)
    torch.testing.assert_close(grad_cam(model, images, "last", classes), expected.relu())
    assert (expected < 0).any()


def test_grad_cam_after_max_pooling_has_the_same_weights() -> None:
    """The gradient reaches one position of each map; its mean is the weight over H times W again."""
    model, images, classes = _network(nn.AdaptiveMaxPool2d(1), 6), _images(2), torch.tensor([2, 2])
    model.last = nn.Identity()  # maxima of a ReLU may tie at zero
    with torch.no_grad():
        maps = model[:5](images)
    expected = torch.einsum("k,nkhw->nhw", model.head.weight.detach()[2], maps) / maps[0, 0].numel()
    torch.testing.assert_close(weighted_map(model, images, "last", classes), expected)


def test_grad_cam_before_a_flat_head_has_the_mean_weights() -> None:
    model, images, classes = _network(nn.Identity(), 6 * 36), _images(2), torch.tensor([1, 0])
    with torch.no_grad():
        maps = model[:5](images)
    means = model.head.weight.detach().view(4, 6, 36).mean(2)[classes]
    expected = torch.einsum("nk,nkhw->nhw", means, maps)
    torch.testing.assert_close(weighted_map(model, images, "last", classes), expected)


def test_grad_cam_of_a_layer_that_an_activation_in_place_follows() -> None:
    """At ``second`` the gradient stops where its output is negative."""
    model, images, classes = _network(nn.AdaptiveAvgPool2d(1), 6), _images(1), torch.tensor([1])
    with torch.no_grad():
        maps = model[:4](images)
    weights = model.head.weight.detach()[1] * (maps[0] > 0).float().mean((1, 2)) / 36
    torch.testing.assert_close(
        weighted_map(model, images, "second", classes)[0], torch.einsum("k,khw->hw", weights, maps[0])
    )


def test_a_layer_that_the_logits_do_not_need_has_no_grad_cam() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.head = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3), nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return self.head(self.used(x).mean((2, 3)))

    with pytest.raises(UserError, match="do not depend on layer 'unused'"):
        grad_cam(Beside(), _images(1), "unused", torch.tensor([0]))


def test_the_cascade_randomises_from_the_top_and_only_a_copy() -> None:
    """The first step leaves the maps: Grad-CAM then is the closed form with new weights, drawn from the seed."""
    model, images, classes = _network(nn.AdaptiveAvgPool2d(1), 6), _images(2), torch.tensor([0, 1])
    groups = weight_groups(model, SHAPE, stages(model, SHAPE))
    assert groups == [("head", ["head"]), ("last", ["second"]), ("relu", ["first"])]
    before = _state(model)
    steps = cascade(model, images, "last", classes, [names for _, names in groups], seed=7)
    _assert_same(before, _state(model))
    head = copy.deepcopy(model.head)
    torch.manual_seed(7)
    initialise(head)
    with torch.no_grad():
        maps = model[:5](images)
    expected = torch.einsum("nk,nkhw->nhw", head.weight.detach()[classes], maps) / 36
    torch.testing.assert_close(steps[0], expected)
    original = weighted_map(model, images, "last", classes)
    assert len(steps) == 3
    assert not any(torch.allclose(step, original) for step in steps)


def test_every_weight_that_runs_is_in_one_group() -> None:
    network = get_network("GoogLeNet(aux_heads=True)")
    model = network.build()
    groups = weight_groups(model, network.image_shape, stages(model, network.image_shape))
    names = [name for _, group in groups for name in group]
    held = {n for n, m in model.named_modules() if list(m.parameters(recurse=False)) and not n.startswith("auxiliary")}
    assert len(names) == len(set(names))
    assert set(names) == held
    assert groups[0] == ("head", ["classifier.3"])


def test_the_overlay_is_the_image_where_the_map_is_zero() -> None:
    pixels = np.random.default_rng(0).random((4, 4, 3))
    shown = overlay(pixels, torch.zeros(2, 2))
    np.testing.assert_allclose(shown, np.repeat(pixels.mean(2)[..., None], 3, 2))
    red, _, blue = overlay(np.zeros((2, 2)), torch.ones(2, 2))[0, 0]
    assert red > 0.5 > blue


@pytest.mark.parametrize(
    ("trained", "mean", "error", "words"),
    [
        (True, 0.1, 0.05, "changes as much as chance does"),
        (True, 0.2, 0.05, "does not change as much as chance does"),
        (True, None, None, "no verdict"),
        (False, 0.1, 0.05, "train the network first"),
    ],
)
def test_the_check_ends_with_what_its_numbers_say(
    trained: bool, mean: float | None, error: float | None, words: str
) -> None:
    check = _Check(["head", "first"], [], [0.5, 0.1], [0.9, mean], [0.1, 0.3], error, 16)
    assert words in _verdict(trained, check)


def test_the_standard_error_knows_that_images_share_weights_and_draws_share_images() -> None:
    generator = np.random.default_rng(0)
    draws, images = generator.normal(0, 0.3, (4000, 3, 1)), generator.normal(0, 0.2, (4000, 1, 16))
    errors = [_standard_error(values.tolist()) for values in draws + images]
    assert np.mean(np.square(errors)) == pytest.approx(0.3**2 / 3 + 0.2**2 / 16, rel=0.05)
    assert _standard_error([[0.1], [0.2], [0.3]]) == pytest.approx(0.1 / 3**0.5)
    assert _standard_error([[None, None], [0.1, 0.2]]) is None


def test_a_map_of_one_value_has_no_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of zeros has no gradient, as torchvision's vision transformers begin."""
    (tmp_path / "zeros.py").write_text(
        "from torch import nn\n\n"
        "def make():\n"
        "    head = nn.Linear(4, 3)\n"
        "    nn.init.zeros_(head.weight)\n"
        "    body = [nn.Linear(4, 4) for _ in range(4)]\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *body, head)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = run("feature-maps", ["zeros:make", "--image_size", "16"])
    assert [p.name for p in found.pictures] == ["feature-maps", "grad-cam"]
    assert any("one value everywhere" in remark for remark in found.remarks)
    assert not any("rank correlation" in table.title for table in found.tables)
    network = get_network("zeros:make", image_size=16)
    groups = weight_groups(network.build(), network.image_shape, ["0"])
    assert [title for title, _ in groups] == ["all behind 0", "0"]


# Maps and hooks


def test_maps_are_kept_before_an_activation_in_place_overwrites_them() -> None:
    model, images = _network(nn.AdaptiveAvgPool2d(1), 6).eval(), _images(2)
    with torch.no_grad():
        expected = F.conv2d(images, model.first.weight, model.first.bias, padding=1)
    found = record(model, images, ["first", "relu"])
    torch.testing.assert_close(found["first"].values, expected)
    torch.testing.assert_close(found["relu"].values, expected.relu())
    assert (expected < 0).any()
    assert (found["first"].activation, found["relu"].activation) == (None, "ReLU")
    before = record(model, images, ["first", "relu", "down"], before=True)
    torch.testing.assert_close(before["relu"].values, expected)
    torch.testing.assert_close(before["down"].values, F.max_pool2d(expected.relu(), 2))
    assert before["down"].activation is None


@pytest.mark.parametrize("function", [torch.relu, torch.relu_, F.gelu, F.silu, torch.tanh])
def test_before_the_activation_of_a_block_that_calls_a_function(function: object) -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x * 2 - 0.1)

    model = nn.Sequential(Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = _images(2)
    torch.testing.assert_close(record(model, images, ["0"], before=True)["0"].values, images * 2 - 0.1)
    torch.testing.assert_close(record(model, images, ["0"])["0"].values, function(images * 2 - 0.1))


@pytest.mark.parametrize("name", ["SimpleCNN(batch_norm=True)", "SpeedNet", "ResNet20", "MobileNetV2", "VGG16"])
def test_a_look_changes_nothing(name: str) -> None:
    network = get_network(name)
    model = network.build()
    model.train()
    modules = list(model.modules())
    modules[len(modules) // 2].eval()
    next(model.parameters()).requires_grad_(False)
    before = _state(model)
    images = torch.randn(2, *network.image_shape, generator=torch.Generator().manual_seed(0))
    ends = stages(model, network.image_shape)
    logits = predict_logits(model, images)
    record(model, images, ends, before=True)
    groups = [names for _, names in weight_groups(model, network.image_shape, ends)]
    cascade(model, images, ends[-1], logits.argmax(1), groups[:1], seed=0)
    found = grad_cam(model, images, ends[-1], logits.argmax(1))
    _assert_same(before, _state(model))
    assert found.shape[0] == 2
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(images))


def test_hooks_are_gone_after_an_error() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("on purpose")

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), Breaks())
    model.train()
    before = _state(model)
    looks = (
        lambda: outputs(model, SHAPE),
        lambda: record(model, _images(1), ["0"]),
        lambda: grad_cam(model, _images(1), "0", torch.tensor([0])),
    )
    for look in looks:
        with pytest.raises(UserError, match="does not run on images of 3x12x12: RuntimeError: on purpose"):
            look()
    _assert_same(before, _state(model))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_training_images_are_those_of_the_run(share: float) -> None:
    small = ["--data.train_images=100", "--data.test_images=30", f"--data.val_fraction={share}", "--data.split_seed=3"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    assert main(["fit", "--model=LeNet5", "--data=Synthetic", *small, *quiet]) == 0
    (path,) = Path("results/runs").glob("*/*/checkpoints/last.ckpt")
    subject = load_checkpoint(path, DataOptions())
    assert subject.data is not None
    train, _ = get_data("Synthetic")(train_images=100).load()
    chosen = torch.randperm(100, generator=torch.Generator().manual_seed(3))[round(share * 100) :]
    assert subject.data.describe()["train_images"] == len(chosen)
    pixels = pixels_of(training_images(subject.data, [4])[0][0], subject.data)
    expected = train.images[chosen[4]].permute(1, 2, 0).numpy() / 255
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    assert subject.caveat == ""


def test_networks_with_gradients_switched_off_have_grad_cam() -> None:
    model = _network(nn.AdaptiveAvgPool2d(1), 6).requires_grad_(False)
    with torch.inference_mode():
        images = _images(1)
        assert grad_cam(model, images.clone(), "last", torch.tensor([0])).shape == (1, 6, 6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:resnet18", ["relu", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("torchvision:vgg11_bn", ["features.2", "features.6", "features.13", "features.20", "features.27"]),
        ("SimpleCNN", ["features.0", "features.2", "features.4"]),
        ("SpeedNet", ["features.1", "features.2", "features.3", "features.4"]),
        ("LeNet5", ["features.1", "features.4"]),
    ],
)
def test_stages_end_before_the_resolution_changes(name: str, expected: list[str]) -> None:
    """By the networks' definitions: before a pooling, or the last block of a width."""
    network = get_network(name, image_size=64 if ":" in name else None)
    assert stages(network.build(), network.image_shape) == expected


def test_layers_are_checked() -> None:
    model = _network(nn.AdaptiveAvgPool2d(1), 6)
    with pytest.raises(UserError, match=r"unknown layer 'frist'; did you mean 'first'\? valid: first, relu, last"):
        check_layers(model, SHAPE, ["frist"])
    for name in ("pool", "head"):
        with pytest.raises(UserError, match=f"layer '{name}' puts out .* not maps"):
            check_layers(model, SHAPE, [name])


def test_channels_are_shown_by_planted_variance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def make():\n"
        "    conv = nn.Conv2d(3, 5, 1)\n"
        "    with torch.no_grad():\n"
        "        conv.weight.copy_(torch.tensor([1., -5., 0., 3., 2.]).view(5, 1, 1, 1).expand(5, 3, 1, 1))\n"
        "    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ["planted:make", "--image_size", "16", "--layers", "0"]
    found = run("feature-maps", options)
    (layer,) = found.numbers["layers"]
    assert (layer["shown_channels"], layer["constant_channels"]) == ([1, 3, 4, 0], 1)
    assert layer["zeros"] == 0.0  # the bias
    assert [p.name for p in found.pictures] == ["feature-maps", "grad-cam", "grad-cam-check"]
    assert any("--data" in remark for remark in found.remarks)


# Patches


def _stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 2, stride=2), nn.AvgPool2d(3, stride=1, padding=1),
        nn.Conv2d(3, 2, 5, stride=2, padding=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


@pytest.mark.parametrize("place", [(0, 0), (2, 3), (4, 4), (1, 4)])
def test_a_window_holds_the_pixels_that_a_unit_depends_on(place: tuple[int, int]) -> None:
    """Found by differentiation, for layers without holes."""
    model, shape = _stack(), (1, 20, 20)
    field = receptive_fields(model, shape)["3"]
    image = torch.rand(1, *shape, requires_grad=True)
    model[:4](image)[0, 0, place[0], place[1]].backward()
    seen = image.grad[0, 0].nonzero()
    low, high = seen.min(0).values.tolist(), (seen.max(0).values + 1).tolist()
    for axis, (first, last) in enumerate(window(field, place)):
        assert (max(first, 0), min(last, 20)) == (low[axis], high[axis])
        assert last - first == field["size"]


def test_receptive_fields_name_blocks_too() -> None:
    """ResNet-18 as in torchvision: 435 pixels, Araujo, Norris, Sim 2019."""
    network = get_network("torchvision:resnet18")
    found = receptive_fields(network.build(), network.image_shape)
    assert found["layer4"] == found["layer4.1"] == {"size": 435, "jump": 32, "start": 0.5}


def test_the_planted_corner_is_found() -> None:
    """A detector of the pattern [[1, 1], [1, -1]] / 3, behind a pooling-free layer with padding."""
    corner = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    detector = nn.Conv2d(1, 2, 2, padding=1, bias=False)
    with torch.no_grad():
        detector.weight.copy_(torch.stack([corner, -corner])[:, None])
    model = nn.Sequential(detector, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images, places = torch.zeros(5, 1, 8, 8), [(2, 3), (0, 0), (5, 1), (6, 6)]
    for index, (row, column) in enumerate(places):
        strength = (0.5, 1.0, 0.25, 0.75)[index]
        images[index, 0, row : row + 2, column : column + 2] = strength * torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    found = strongest_units(model, images.split(2), ["1"])["1"]
    assert top_images(found, 0, 4) == [1, 3, 0, 2]
    assert found.values[:4, 0].tolist() == [1.5, 3.0, 0.75, 2.25]
    field = receptive_fields(model, (1, 8, 8))["1"]
    for index, place in enumerate(places):
        seen = window(field, found.places[index, 0].tolist())
        assert (seen.rows[0], seen.columns[0]) == place
        patch = cut(images[index, 0].numpy(), seen)
        np.testing.assert_array_equal(patch, (0.5, 1.0, 0.25, 0.75)[index] * np.array([[1, 1], [1, 0]]))


def test_equal_responses_go_to_the_first() -> None:
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = strongest_units(model, [torch.ones(3, 2, 4, 4)], ["0"])["0"]
    assert found.places.tolist() == [[[0, 0]] * 2] * 3
    assert top_images(found, 1, 2) == [0, 1]
    assert selective_channels(found, 2, 1) == []  # alike in every image


def test_channels_that_single_images_out_come_first() -> None:
    """By hand: the best two lie (9 - 3) / sqrt(18) = 1.41 and (3.5 - 5/3) / sqrt(20/9) = 1.23 deviations up."""
    values = torch.tensor([[0.0, 1, 0], [0, 2, 0], [0, 3, 9], [0, 4, 9], [0, 0, 0], [0, 0, 0]])
    found = Responses(values, torch.zeros(6, 3, 2, dtype=torch.long))
    assert selective_channels(found, 3, 2) == [2, 1]
    assert selective_channels(found, 1, 2) == [2]
    assert selective_channels(found, 3, 4) == [1, 2]  # (2.5 - 5/3) / sqrt(20/9) = 0.56 and (4.5 - 3) / sqrt(18) = 0.35


def test_patches_are_grey_outside_and_no_larger_than_the_image() -> None:
    image = np.arange(16.0).reshape(4, 4) / 16
    assert cut(image, window({"size": 3, "jump": 1, "start": 0.5}, (0, 3))).tolist() == [
        [0.5, 0.5, 0.5],
        [2 / 16, 3 / 16, 0.5],
        [6 / 16, 7 / 16, 0.5],
    ]
    np.testing.assert_array_equal(cut(image, window({"size": 5, "jump": 1, "start": 0.5}, (0, 0))), image)
    assert (
        cut(image, window({"size": [2, 9], "jump": [2, 1], "start": [1, 0.5]}, (1, 0))).tolist() == image[2:].tolist()
    )
    np.testing.assert_array_equal(cut(image, None), image)
    assert cut(np.ones((4, 4, 3)), window({"size": 2, "jump": 8, "start": 1}, (1, 1))).tolist() == [[[0.5] * 3] * 2] * 2


# Filters


def test_filters_as_colours_have_zero_in_the_middle() -> None:
    kernel = np.zeros((3, 2, 2))
    kernel[0, 0, 0], kernel[1, 0, 1], kernel[2, 1, 0] = -4, 2, 1
    assert colours(kernel)[0, 0].tolist() == [0, 0.5, 0.5]
    assert colours(kernel)[0, 1].tolist() == [0.5, 0.75, 0.5]
    assert colours(kernel)[1].tolist() == [[0.5, 0.5, 0.625], [0.5, 0.5, 0.5]]
    np.testing.assert_array_equal(colours(np.zeros((3, 2, 2))), 0.5)


def test_norms_and_grey_shares_by_hand() -> None:
    weights = np.zeros((4, 3, 1, 2))
    weights[0, :, 0, 0] = 3, 4, 0  # mean 7/3: alike 3 * 49/9 of 25
    weights[1, :, 0, 1] = 2, 2, 2
    weights[2, :, 0, 0] = 1, -1, 0
    np.testing.assert_allclose(norms(weights), [5, np.sqrt(12), np.sqrt(2), 0])
    np.testing.assert_allclose(grey_shares(weights), [49 / 75, 1, 0, 0], atol=1e-12)


def test_convolutions_come_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(4, 2, 1)
            self.never = nn.Conv2d(3, 2, 1)
            self.stem = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x)).mean((2, 3))

    assert list(convolutions(Backwards(), SHAPE)) == ["stem", "head"]
    with pytest.raises(UserError, match="no convolution of images"):
        convolutions(nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 2)), SHAPE)


@pytest.mark.parametrize(
    ("options", "shown", "panels"),
    [
        (["SimpleCNN", "--in_channels", "1"], 32, 32),
        (["SpeedNet", "--sort", "network", "--layer", "features.0"], 24, 24),
        (["ResNet20", "--filters", "5"], 5, 5),
        (["ResNet20", "--layer", "features.1.residual.0.0"], 8, 8 * 12),
        (["MobileNetV1", "--layer", "features.1.0.0"], 32, 32),
        (["SimpleCNN", "--in_channels", "5"], 8, 8 * 5),
    ],
)
def test_filters_of_any_channel_count(options: list[str], shown: int, panels: int) -> None:
    found = run("filters", options)
    numbers, (picture,) = found.numbers, found.pictures
    assert len(numbers["shown"]) == shown
    assert sum(len(ax.images) for ax in picture.image.axes) == panels
    facts = dict(found.tables[1].rows)
    assert facts["Filters in the picture"] == f"{shown} of {numbers['shape'][0]}"
    if "shown_input_channels" in numbers:
        seen = f"the first {numbers['shown_input_channels']} of {numbers['shape'][1]}"
        assert facts["Input channels in the picture"] == seen
    order = np.array(numbers["norms"])[numbers["shown"]]
    assert numbers["shown"] == list(range(shown)) if "--sort" in options else np.all(np.diff(order) <= 0)


def test_filters_that_are_not_learnt_are_passed_over_and_called_so() -> None:
    found = run("filters", ["SpeedNet"])
    assert (found.numbers["layer"], found.numbers["fixed"]) == ("features.2.first.0", False)
    assert not any(remark.startswith("The filters of") for remark in found.remarks)
    assert "features.0 is fixed, not learnt; --layer features.0 shows it." in found.remarks
    found = run("filters", ["SpeedNet", "--layer", "features.0"])
    assert found.numbers["fixed"]
    assert found.remarks[0].startswith("The filters of features.0 are fixed, not learnt: a random basis")


def test_whitening_filters_are_shown_with_their_negatives() -> None:
    """SpeedNet's first layer has every filter and its negative, twelve apart (Jordan 2024)."""
    network = get_network("SpeedNet")
    weights = convolutions(network.build(), network.image_shape)["features.0"].weight.detach().numpy()
    for index in range(12):
        np.testing.assert_allclose(colours(weights[index]) + colours(weights[index + 12]), 1, atol=1e-6)


# The commands


def test_training_images_are_those_of_evaluation() -> None:
    data = get_data("Synthetic")(train_images=30, image_size=12)
    x, labels = training_images(data, [3, 0])
    batch, truth = next(iter(data.first_training_batches(5)))
    torch.testing.assert_close(x, batch[[3, 0]].contiguous())
    assert labels.tolist() == truth[[3, 0]].tolist()
    stored = data.stored("train", slice(5)).images[3].permute(1, 2, 0).numpy() / 255
    np.testing.assert_allclose(pixels_of(x[0], data), stored, atol=1e-6)
    with pytest.raises(UserError, match="images 0 to 26"):
        training_images(data, [27])


def test_the_command_draws_everything(capsys: pytest.CaptureFixture) -> None:
    options = ["SimpleCNN", "--data", "Synthetic", "--image_size", "28", "--index", "2", "--patches", "3"]
    assert main(["explain", "feature-maps", *options, "--images", "40", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(p["file"]).name for p in document["pictures"]] == [
        "feature-maps.png", "grad-cam.png", "grad-cam-check.png", "top-patches.png",
    ]  # fmt: skip
    assert [layer["shape"] for layer in document["layers"]] == [[32, 28, 28], [64, 14, 14], [64, 7, 7]]
    assert [layer["receptive_field"]["size"] for layer in document["layers"]] == [3, 8, 18]  # the course's network
    camera = document["grad_cam"]
    assert camera["map"] == [7, 7]
    assert sum(c["probability"] for c in camera["classes"]) <= 1
    assert camera["sanity"]["steps"] == ["head", "features.4", "features.2", "features.0"]
    assert all(-1 <= value <= 1 for value in camera["sanity"]["mean_correlation"])
    patches = document["patches"]
    assert patches["images"] == 40
    for layer in patches["layers"]:
        for channel in layer["channels"]:
            values = [patch["value"] for patch in channel["patches"]]
            assert values == sorted(values, reverse=True)
            assert len({patch["image"] for patch in channel["patches"]}) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["filters"], "either a MODEL"),
        (["filters", "SimpleCNN", "--sort", "norms"], "did you mean 'norm'"),
        (["filters", "SimpleCNN", "--layer", "features.9"], "unknown convolution 'features.9'"),
        (["filters", "SimpleCNN", "--filters", "0"], "filters 0 must be at least 1"),
        (["feature-maps", "SimpleCNN", "--layers", "nothing"], "unknown layer 'nothing'"),
        (["feature-maps", "SimpleCNN", "--cam_layer", "classifier.1"], "layer 'classifier.1' puts out"),
        (["feature-maps", "SimpleCNN", "--index", "1"], "needs a data set"),
        (["feature-maps", "SimpleCNN", "--image", "a.png", "--index", "1"], "not both"),
        (["feature-maps", "SimpleCNN", "--image", "none.png"], "image 'none.png' does not exist"),
        (["feature-maps", "SimpleCNN", "--images", "0"], "images 0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not Path("results").exists()
