"""Fields measured by gradients against the analytic ones, effective fields and coverage against arithmetic by hand."""

from __future__ import annotations

import json
from itertools import pairwise
from math import gcd
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnnbench.cli import main
from cnnbench.counting.meta_copy import build_without_values
from cnnbench.errors import UserError
from cnnbench.explain import effective_field, run
from cnnbench.explain.effective_field import (
    LayerField,
    Measured,
    at_initialisation,
    chosen_fields,
    coverage,
    effective_fields,
    first_without_field,
    gaussian_fit,
    largest_gap,
    layer_fields,
    measure_fields,
    parse_rates,
    scales_near_zero,
    stack_in_words,
    steps_of,
)
from cnnbench.explain.receptive_field import _Layer, _share
from cnnbench.models import all_models
from cnnbench.network import get_network


def _last(name: str, count: int = 3, **options: int) -> tuple[nn.Module, tuple[int, int, int], list[LayerField]]:
    """A network, its images, and the fields of its last layers at each resolution."""
    network = get_network(name, **options)
    model, _ = build_without_values(network.build)
    return model, network.image_shape, chosen_fields(layer_fields(model, network.image_shape), None, count)


# Deep networks repeat the blocks of shallower ones; `make test-slow` measures them too.
DEEP = {
    *("ResNet34", "ResNet101", "ResNet152", "PlainNet34", "PlainNet44", "PlainNet56", "PlainNet110"),
    *("ResNet44", "ResNet56", "ResNet110", "DenseNet169", "DenseNet201", "EfficientNetB1", "EfficientNetB2"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in all_models()])
def test_zoo_networks_see_what_is_measured(name: str) -> None:
    model, shape, chosen = _last(name, 1 if name.startswith(("DenseNet", "ResNet1")) else 3)
    measured = measure_fields(model, shape, chosen)
    assert all(measured[f.name].agrees for f in chosen)
    assert [measured[f.name].size for f in chosen] == [f.size for f in chosen]


@pytest.mark.parametrize(
    "name", ["AlexNet", "GoogLeNet", "MobileNetV1", "MobileNetV2", "ResNet18", "ResNet50", "VGG16", "EfficientNetB0"]
)
def test_forms_for_imagenet_see_what_is_measured(name: str) -> None:
    model, shape, chosen = _last(f"{name}(form=imagenet)", image_size=224)
    assert all(found.agrees for found in measure_fields(model, shape, chosen).values())


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 195),
        ("vgg16", 212),
        ("resnet18", 435),
        ("resnet50", 427),
        ("inception_v3", 1311),
        ("shufflenet_v2_x0_5", None),
        ("mnasnet0_5", None),
        ("regnet_x_400mf", None),
        ("squeezenet1_1", None),
        ("vit_b_16", 16),
        ("mobilenet_v3_small", None),
    ],
)
def test_torchvision_networks_see_what_is_measured(name: str, size: int | None) -> None:
    model, shape, chosen = _last(f"torchvision:{name}")
    measured = measure_fields(model, shape, chosen)
    assert all(found.agrees for found in measured.values())
    if size is not None:
        assert max(max(found.size) for found in measured.values()) == size


# Every fourth network, so that each family has some; `make test-slow` measures all of them, stage by stage.
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models)[::4])
def test_a_late_layer_of_networks_of_torchvision_sees_what_is_measured(name: str) -> None:
    """The last layer whose field is not so large that it takes long to measure."""
    network = get_network(f"torchvision:{name}")
    model = build_without_values(network.build)[0]
    late = [f for f in layer_fields(model, network.image_shape) if max(f.size) <= 1200][-1:]
    (measured,) = measure_fields(model, network.image_shape, late).values()
    assert measured.agrees
    assert measured.size == late[0].size


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_network_of_torchvision_sees_what_is_measured(name: str) -> None:
    network = get_network(f"torchvision:{name}")
    model = build_without_values(network.build)[0]
    local = layer_fields(model, network.image_shape)
    if not local:
        pytest.skip(first_without_field(model, network.image_shape) or "no maps")
    chosen = chosen_fields(local, None, 10)
    assert all(found.agrees for found in measure_fields(model, network.image_shape, chosen).values())


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("convnext_tiny", {"features.1.0.block.0": 28, "features.1.0.block.3": 28, "features.1.0.block.5": 28}),
        ("swin_t", {"features.0.0": 4, "features.0.2": 4, "features.1.0.norm1": 4}),
    ],
)
def test_layers_with_channels_last_are_looked_at_in_the_middle(name: str, layers: dict[str, int]) -> None:
    """Patches of 4 pixels and one 7x7 convolution on them see 4 + 6 * 4 pixels, whatever the order of the axes."""
    network = get_network(f"torchvision:{name}")
    torch.manual_seed(0)
    model = network.build().eval()
    chosen = chosen_fields(layer_fields(model, network.image_shape), ",".join(layers), 0)
    assert [f.dims for f in chosen] == [(2, 3), (1, 2), (1, 2)]
    measured = measure_fields(model, network.image_shape, chosen)
    effective = effective_fields(model, torch.randn(1, *network.image_shape), chosen)
    for field in chosen:
        size = layers[field.name]
        assert (field.size, measured[field.name].size, measured[field.name].agrees) == ((size,) * 2, (size,) * 2, True)
        assert effective[field.name].pixels <= size**2
        assert effective[field.name].centre == pytest.approx((114, 114), abs=2)


class _Corner(nn.Module):
    """A map of only the first units, none of which is in the middle of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 2, 5), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x)[..., :3, :2])


def test_where_no_unit_is_in_the_middle_the_nearest_one_is_looked_at() -> None:
    torch.manual_seed(0)
    last = layer_fields(_Corner(), (1, 40, 40))[-1]
    found = effective_fields(_Corner(), torch.randn(1, 1, 40, 40), [last])[last.name]
    assert found.unit == (2, 1)
    layer = _Layer(last, Measured(((2, 7), (1, 6)), True), {"at initialisation": found})
    assert _share(layer, "at initialisation") == found.pixels / 25 <= 1
    assert np.argwhere(found.magnitude).min(0).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("torchvision:resnet18", "From avgpool (AdaptiveAvgPool2d) on units see the whole image"),
        ("torchvision:convnext_tiny", "From avgpool (AdaptiveAvgPool2d) on units see the whole image"),
        (
            "torchvision:vit_b_32",
            "From encoder.layers.encoder_layer_0.self_attention (MultiheadAttention) on units see",
        ),
        ("timm:vit_tiny_patch16_224", "From blocks.0.attn (Attention) on units see the whole image"),
        ("torchvision:swin_t", "From features.1.0 (SwinTransformerBlock) on the field of a unit is not known"),
    ],
)
def test_it_says_from_where_on_units_see_everything(name: str, sentence: str) -> None:
    network = get_network(name)
    found = first_without_field(build_without_values(network.build)[0], network.image_shape)
    assert found is not None
    assert found.startswith(sentence)


def test_a_network_of_one_layer_is_called_by_its_kind() -> None:
    found = first_without_field(nn.GroupNorm(1, 3), (3, 8, 8))
    assert found == "From GroupNorm on units see the whole image, so layers after it are left out."
    assert layer_fields(nn.Conv2d(3, 4, 3), (3, 8, 8))[0].label == "Conv2d"


@pytest.mark.parametrize(("name", "size"), [("ResNet50", 483), ("ResNet101", 1027), ("ResNet152", 1507)])
def test_resnets_of_the_paper_have_the_published_fields(name: str, size: int) -> None:
    model, shape, chosen = _last(f"{name}(form=imagenet, stride_on=1x1)", 1, image_size=224)
    assert (chosen[-1].size, chosen[-1].jump, chosen[-1].start) == ((size, size), (32, 32), (0.5, 0.5))
    (measured,) = measure_fields(model, shape, chosen).values()
    assert measured.size == (size, size)
    assert measured.agrees


def test_the_example_of_the_course_sees_16_pixels() -> None:
    stack = [(3, 1), (3, 1), (2, 2), (3, 1), (3, 1), (2, 2)]
    model = nn.Sequential(*(nn.MaxPool2d(k) if s == 2 else nn.Conv2d(1, 1, k, padding=1) for k, s in stack))
    found = layer_fields(model, (1, 32, 32))
    assert [f.size[0] for f in found] == [3, 5, 6, 10, 14, 16]
    assert measure_fields(model, (1, 32, 32), found[-1:])[found[-1].name].size == (16, 16)
    theirs = ours = 1
    for kernel, stride in reversed(stack):
        theirs, ours = stride * theirs + (kernel - 1), stride * ours + (kernel - stride)
    assert (theirs, ours) == (19, 16)


def test_a_wrong_analytic_field_does_not_agree() -> None:
    model, shape, chosen = _last("SimpleCNN", in_channels=1, image_size=28)
    right = chosen[-1]
    assert (right.size, right.jump, right.start) == ((22, 22), (8, 8), (4, 4))
    for wrong in (
        right._replace(size=(29, 22)),  # as the course's code has it
        right._replace(size=(22, 23)),
        right._replace(start=(4, 5)),
    ):
        assert not measure_fields(model, shape, [wrong])[right.name].agrees


def test_thin_images_measure_what_square_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ResNet20", "torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5"):
        model, shape, chosen = _last(name)
        thin = measure_fields(model, shape, chosen)
        monkeypatch.setattr(effective_field, "THINNEST", 10**6)
        assert measure_fields(model, shape, chosen) == thin
        monkeypatch.undo()


class _Everything(nn.Module):
    """Windows of all kinds, also functional ones, activations in place, parameters beside the map, an odd field."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, (3, 5), (2, 1), padding="valid", dilation=(1, 2))
        self.b = nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.norm(self.a(x)))
        y = nn.functional.max_pool2d(self.b(x) * self.scale, 3, 1, padding=1, dilation=1)
        y = nn.functional.relu6(y, inplace=True)
        y += x
        return self.last(torch.cat([nn.functional.max_pool2d(y, (1, 2), (1, 2), dilation=2), y[..., 1:-1:2]], 1))


def test_fields_of_odd_networks_are_measured_per_axis() -> None:
    model = _Everything().double()
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = {f.name: f for f in layer_fields(model, (2, 40, 40))}
    measured = measure_fields(model, (2, 40, 40), list(found.values()))
    assert measured["a"].size == (3, 9)  # 5 with dilation 2
    assert measured["b"].size == (3 + 2 * 2, 9 + 2)
    assert measured["last"].size[0] == 3 + 2 * 2 + 2 * 2  # the pooling sees three rows, with a jump of 2
    assert all(m.agrees for m in measured.values())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(m._forward_hooks for m in model.modules())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_random_stacks_have_the_field_of_the_recurrence(stack: list[tuple[int, int, int, int, bool]]) -> None:
    layers: list[nn.Module] = []
    size = jump = 1
    for kernel, stride, padding, dilation, pool in stack:
        padding = min(padding, kernel // 2)
        if pool:
            layers.append(nn.MaxPool2d(kernel, stride, padding, dilation))
        else:
            layers.append(nn.Conv2d(2, 2, kernel, stride, padding, dilation))
        size += dilation * (kernel - 1) * jump
        jump *= stride
    model = nn.Sequential(*layers)
    image = (2, side := max(200, size + 2 * jump), side)
    found = layer_fields(model, image)[-1]
    assert (found.size, found.jump) == ((size, size), (jump, jump))
    measured = measure_fields(model, image, [found])[found.name]
    assert measured.size == (size, size)
    assert measured.agrees


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_uniform_convolutions_spread_by_two_thirds_a_layer(n: int) -> None:
    model = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(n))).double()
    for p in model.parameters():
        nn.init.constant_(p, 1 / 9)
    last = layer_fields(model, (1, 33, 33))[-1]
    assert last.size == (2 * n + 1, 2 * n + 1)
    found = effective_fields(model, torch.zeros(2, 1, 33, 33, dtype=torch.double), [last])[last.name]
    assert found.sigma == pytest.approx(((2 * n / 3) ** 0.5,) * 2)
    assert found.centre == pytest.approx((16.5, 16.5))
    row = np.ones(1)
    for _ in range(n):
        row = np.convolve(row, np.ones(3))
    np.testing.assert_allclose(found.magnitude[16, 16 - n : 17 + n], row / row.max(), rtol=1e-9)
    assert found.pixels == (np.outer(row, row) > 0.0455 * row.max() ** 2).sum()


def test_random_linear_convolutions_spread_their_energy_by_two_thirds_a_layer() -> None:
    # The mean square of the gradient adds up over paths, as the uniform gradient does.
    torch.manual_seed(0)
    n, width = 6, 24
    channels = [3, *[width] * n]
    model = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels)))
    last = layer_fields(model, (3, 21, 21))[-1]
    found = effective_fields(model, torch.randn(6, 3, 21, 21), [last])[last.name]
    energy = gaussian_fit(found.magnitude**2)
    assert energy.sigma == pytest.approx(((2 * n / 3) ** 0.5,) * 2, rel=0.1)
    assert found.sigma[0] > 1.2 * energy.sigma[0]  # of a Gaussian's root it is the square root of 2 times as much


def test_effective_fields_change_nothing_and_repeat() -> None:
    torch.manual_seed(0)
    network = get_network("SimpleCNN", 1, 28)
    model = network.build().eval()
    chosen = chosen_fields(layer_fields(model, network.image_shape), None, 3)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    images = torch.randn(3, *network.image_shape)
    first, second = (effective_fields(model, images, chosen, seed=1) for _ in range(2))
    assert all(np.array_equal(first[f.name].magnitude, second[f.name].magnitude) for f in chosen)
    for f in chosen:
        assert all(2 * s <= size for s, size in zip(first[f.name].sigma, f.size, strict=True))
        outside = np.ones(first[f.name].magnitude.shape, dtype=bool)
        (top, bottom), (left, right) = (f.span(axis, f.unit_near(axis, 14)) for axis in (0, 1))
        outside[max(int(top), 0) : int(bottom), max(int(left), 0) : int(right)] = False
        assert not first[f.name].magnitude[outside].any()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_gaussian_fits_itself() -> None:
    at = np.arange(61)
    bell = np.outer(np.exp(-((at - 25) ** 2) / (2 * 3.0**2)), np.exp(-((at - 30) ** 2) / (2 * 5.0**2)))
    found = gaussian_fit(7 * bell)
    assert found.centre == pytest.approx((25.5, 30.5))
    assert found.sigma == pytest.approx((3, 5), rel=1e-3)
    assert found.overlap == pytest.approx(1, abs=1e-3)
    radius = 2 * np.log(1 / 0.0455)  # in squared sigmas
    assert found.pixels == pytest.approx(np.pi * radius * 15, rel=0.02)
    assert gaussian_fit(np.eye(41)).overlap < 0.3
    with pytest.raises(UserError, match="vanishes everywhere"):
        gaussian_fit(np.zeros((3, 3)))


def test_networks_start_again_with_statistics_of_the_images() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    images = 5 + torch.randn(4, 1, 12, 12)
    fresh = at_initialisation(model, images, layer_fields(model, (1, 12, 12)), seed=1)
    assert not torch.equal(fresh[0].weight, model[0].weight)
    kept = at_initialisation(model, images, layer_fields(model, (1, 12, 12)))
    assert torch.equal(kept[2].weight, model[2].weight)
    assert not torch.equal(kept[1].running_mean, fresh[1].running_mean)
    with torch.no_grad():
        y = fresh[1](fresh[0](images))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert not any(m.training for m in fresh.modules())


def _paths_of_torch(stack: list[list[int]]) -> np.ndarray:
    """Gradient of a stack whose weights are all one; branches are added."""
    reach = sum(map(max, stack))
    x = torch.ones(1, 1, 2 * reach + 1, 2 * reach + 1, dtype=torch.double, requires_grad=True)
    ones = torch.ones(1, 1, 3, 3, dtype=torch.double)
    y: Tensor = x
    for rates in stack:
        y = sum((nn.functional.conv2d(y, ones, padding=r, dilation=r) for r in rates), torch.zeros(()))
    y[0, 0, reach, reach].backward()
    assert x.grad is not None
    return x.grad[0, 0].numpy()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=4))
def test_paths_are_those_of_the_gradient(stack: list[list[int]]) -> None:
    np.testing.assert_array_equal(coverage(stack), _paths_of_torch(stack))


def test_gridding_and_its_mends() -> None:
    # Three layers of rate 2 see every second pixel of every second row: 7x7 of 13x13.
    paths = coverage(parse_rates("2,2,2"))
    assert paths.shape == (13, 13)
    assert (paths > 0).sum() == 49
    assert not paths[1::2].any()
    assert not paths[:, 1::2].any()
    for rates, size in (("1,2,3", 13), ("1,2,5", 17), ("1,2,4", 15), ("1,2,4,8,16", 63)):
        paths = coverage(parse_rates(rates))
        assert paths.shape == (size, size)
        assert paths.all(), rates
        assert paths.sum() == 9 ** len(rates.split(","))
    assert not coverage(parse_rates("1,2,9")).all()
    alone = coverage(parse_rates("6+12+18"))
    assert (alone > 0).sum() == 3 * 8 + 1  # three squares of 8 pixels and the middle
    assert (coverage(parse_rates("1,2,5,6+12+18")) > 0).mean() > 0.98


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_the_rule_of_hybrid_dilation_promises_full_coverage(rates: list[int]) -> None:
    # The paper's rule, for rates that begin with 1, so that the first layer fills gaps up to its kernel.
    rates = [1, *sorted(rates)]
    if largest_gap(rates) <= 3 and gcd(*rates) == 1:
        assert coverage([[r] for r in rates]).all()


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ("1,1,1", "not dilated"),
        ("2,2,2", "gridding"),
        ("2,4,8", "gridding"),
        ("1,2,5", "HDC"),
        ("1,2,9", "not HDC"),
        ("2", "one dilated layer"),
        ("6+12+18", "ASPP alone"),
        ("1,2,5,6+12+18", "HDC, then ASPP"),
        ("6+12,1,1", "ASPP, then not dilated"),
    ],
)
def test_stacks_are_called_by_what_they_are(rates: str, words: str) -> None:
    assert stack_in_words(parse_rates(rates)) == words


def test_the_picture_of_stacks_names_gridding_hdc_and_aspp() -> None:
    found = run("receptive-field", ["--dilations", "1,1,1 2,2,2 1,2,5 1,2,5,6+12+18"])
    figure = found.pictures[0].image
    assert isinstance(figure, Figure)
    assert [ax.get_title().split("\n")[0] for ax in figure.axes] == [
        "not dilated", "gridding", "HDC", "HDC, then ASPP"
    ]  # fmt: skip
    (table,) = found.tables
    assert [row[:2] for row in table.rows[1:]] == [
        ("2,2,2", "gridding"), ("1,2,5", "HDC"), ("1,2,5,6+12+18", "HDC, then ASPP")
    ]  # fmt: skip
    assert [row[table.head.index("Share")] for row in table.rows[:3]] == ["100.0%", "29.0%", "100.0%"]  # 49 of 169
    assert "atrous spatial pyramid pooling" in " ".join(found.remarks)
    assert "leave a grid of gaps" in " ".join(found.remarks)
    other = run("receptive-field", ["--dilations", "1,2,9"])  # not HDC
    assert not [word for word in ("pyramid", "fill each other", "grid of gaps") if word in " ".join(other.remarks)]
    assert other.pictures[0].caption == found.pictures[0].caption


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("timm:resnet18", 8, "layer1.0.bn2.weight"),  # the last norm of each of its 8 blocks
        ("torchvision:convnext_tiny", 18, "features.1.0.layer_scale"),
        ("torchvision:resnet18", 0, ""),
        ("torchvision:vit_b_32", 0, ""),
    ],
)
def test_branches_that_start_at_nothing_are_found(name: str, count: int, first: str) -> None:
    found = scales_near_zero(get_network(name).build())
    assert (len(found), [*found, ""][0]) == (count, first)


def test_gaps_of_the_paper() -> None:
    # Wang et al. 2018: for 3x3 kernels 1, 2, 5 works (M2 = 2), and 1, 2, 9 fails (M2 = 5).
    assert largest_gap([1, 2, 5]) == 2
    assert largest_gap([1, 2, 9]) == 5


def test_steps_are_blocks_and_single_layers() -> None:
    network = get_network("ResNet18")
    found = steps_of(layer_fields(build_without_values(network.build)[0], network.image_shape))
    assert [f.name for f in found] == ["features.0.0", *(f"features.{n}" for n in range(1, 9))]
    with pytest.raises(UserError, match=r"unknown layer with a local field 'features\.99'"):
        chosen_fields(found, "features.99", 3)
    assert [f.name for f in chosen_fields(found, "features.5,features.1", 1)] == ["features.5", "features.1"]
    with pytest.raises(UserError, match="no layer of this network"):
        chosen_fields([], None, 3)


def test_the_command_draws_a_network_and_stacks(capsys: pytest.CaptureFixture[str]) -> None:
    options = "SimpleCNN --in_channels 1 --image_size 28 --samples 2 --dilations 2,2,2 --json"
    assert main(["explain", "receptive-field", *options.split()]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [p["file"] for p in document["pictures"]] == [
        f"results/explain/{name}.png" for name in ("receptive_field", "receptive_field_growth", "dilated_coverage")
    ]
    assert [layer["size"] for layer in document["layers"]] == [[s, s] for s in (3, 4, 8, 10, 18, 22)]
    assert all(layer["agrees"] for layer in document["layers"])
    shares = [layer["effective"]["at initialisation"]["share_in_sight"] for layer in document["layers"]]
    assert all(0 < share <= 1 for share in shares)
    assert document["dilations"]["2,2,2"] == {
        "kind": "gridding", "size": 13, "pixels": 49, "share": 49 / 169, "hdc_m2": 2
    }  # fmt: skip


def test_the_table_has_the_size_of_each_effective_field() -> None:
    found = run("receptive-field", "SimpleCNN --in_channels 1 --image_size 28 --samples 2".split())
    height, width = found.numbers["image_size"]
    table = found.tables[1]
    assert table.title.endswith(f"2 images of Gaussian noise ({height}x{width} pixels)")
    for row, layer in zip(table.rows, found.numbers["layers"], strict=True):
        effective = layer["effective"]["at initialisation"]
        assert row[:2] == (layer["layer"], "at initialisation")
        assert row[4:] == (f"{effective['pixels'] ** 0.5:.1f}", f"{effective['gaussian_overlap']:.0%}")


def test_trained_networks_are_shown_beside_their_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Batches of one image, so that two images are more than a batch.
    fit = "fit --model SimpleCNN --data Synthetic --data.eval_batch_size 1 --trainer.max_steps 2 "
    fit += "--data.test_images 10 --trainer.accelerator cpu"
    assert main([*fit.split(), "--out", str(tmp_path / "runs")]) == 0
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    capsys.readouterr()
    assert main(["explain", "receptive-field", "--ckpt_path", str(checkpoint), "--samples", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "2 training images" in document["inputs"]
    assert list(document["layers"][-1]["effective"]) == ["at initialisation", "trained"]


def test_the_field_after_training_is_that_of_the_trained_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights set by hand: ones in the outer columns of every 3x3 filter, so a variance of 2/3 and of 1 pixel."""
    fit = "fit --model SimpleCNN --data Synthetic --trainer.max_steps 1 --trainer.accelerator cpu"
    assert main([*fit.split(), "--out", str(tmp_path / "runs")]) == 0
    path = next(tmp_path.rglob("*.ckpt"))
    checkpoint = torch.load(path, weights_only=False)
    (weight,) = (t for name, t in checkpoint["state_dict"].items() if name.endswith("features.0.0.weight"))
    weight[:] = torch.tensor([1.0, 0.0, 1.0])
    torch.save(checkpoint, path)
    capsys.readouterr()
    options = ["--ckpt_path", str(path), "--samples", "2", "--layers", "features.0.0", "--json"]
    assert main(["explain", "receptive-field", *options]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    trained, start = layer["effective"]["trained"], layer["effective"]["at initialisation"]
    assert trained["sigma"] == pytest.approx([(2 / 3) ** 0.5, 1])
    assert (trained["pixels"], trained["share_in_sight"]) == (6, pytest.approx(6 / 9))
    assert start["pixels"] == 9
    assert start["sigma"][1] < 0.95


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "features.0"], "give a MODEL"),
        (["SimpleCNN", "--samples", "0"], "samples 0 must be from 1 to 1,000"),
        (["SimpleCNN", "--samples", "100000000"], "samples 100000000 must be from 1 to 1,000"),
        (["torchvision:alexnet", "--image_size", "20"], "cannot count AlexNet on images of 3x20x20"),
        (["SimpleCNN", "--layers", "nothing"], "unknown layer with a local field 'nothing'"),
        (["SimpleCNN", "--image", "nothing.png"], "image 'nothing.png' does not exist"),
        (["--dilations", "1,two"], "'1,two' are not rates"),
        (["--dilations", "1,0"], "'1,0' are not rates"),
        (["--dilations", "100,101"], "too large to be drawn"),
        (["--dilations", " "], "--dilations is empty"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "receptive-field", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not Path("results").exists()
