"""The analytic receptive field against the gradient: which pixels a unit really depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnbench.counting.complexity import complexity
from cnnbench.counting.meta_copy import building_on_meta
from cnnbench.models import get_model
from cnnbench.network import get_network


def _all_positive(model: nn.Module) -> nn.Module:
    """Makes every path count: positive weights, and means in place of maxima."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                mean = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, mean)
            elif isinstance(child, nn.ReLU6):  # its gradient ends at 6
                setattr(module, name, nn.ReLU())
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1 / parameter[0].numel() if parameter.dim() > 1 else 1.0)
    return model.double().eval()


def _extent(gradient: Tensor) -> list[tuple[int, int]]:
    """First and last pixel, plus one, on which a unit depends, per axis."""
    found = []
    seen = gradient.abs().sum((0, 1)) > 0
    for axis in range(seen.dim()):
        others = tuple(a for a in range(seen.dim()) if a != axis)
        where = (seen.any(others[0]) if others else seen).nonzero()
        found.append((int(where.min()), int(where.max()) + 1))
    return found


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass; has the map that was reached."""


def _reached(module: nn.Module, inputs: Any, output: Tensor) -> None:
    raise _Reached(output)


def _measured(
    model: nn.Module, features: nn.Module, shape: tuple[int, ...], units: Sequence[tuple[int, ...]]
) -> tuple[list[list[tuple[int, int]]], torch.Size]:
    """The extent of each unit, and the number of units per axis."""
    x = torch.rand(1, *shape, dtype=torch.double, requires_grad=True)
    handle = features.register_forward_hook(_reached)
    with pytest.raises(_Reached) as reached:
        model(x)
    handle.remove()
    (output,) = reached.value.args
    extents = []
    for unit in units:
        (gradient,) = torch.autograd.grad(output[(0, slice(None), *unit)].sum(), x, retain_graph=True)
        extents.append(_extent(gradient))
    return extents, output.shape[2:]


def _agrees(field: dict[str, Any], shape: tuple[int, ...], unit: tuple[int, ...], units: Any, extent: Any) -> bool:
    """Whether a unit sees what its field says, where the field is inside the image.

    Beyond that, a unit at the border of the map sees less than its field: what lies outside of a map further down is
    padding, or was left over by a stride. So of a first unit the far end counts, of a last one the near end.
    """
    axes = {k: v if isinstance(v, list) else [v] * len(unit) for k, v in field.items()}
    compared = 0
    for axis, (size, jump, start) in enumerate(zip(axes["size"], axes["jump"], axes["start"], strict=True)):
        low = start + unit[axis] * jump - size / 2
        ends = ((low, extent[axis][0], unit[axis] > 0), (low + size, extent[axis][1], unit[axis] < units[axis] - 1))
        for expected, found, counts in ends:
            if counts and 0 < expected < shape[1 + axis]:
                compared += 1
                if expected != found:
                    return False
    return compared > 0


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("torchvision:alexnet", "features", 224),
        ("torchvision:vgg11", "features", 224),
        ("torchvision:resnet18", "layer4", 256),
        ("torchvision:squeezenet1_1", "features", 224),
        ("torchvision:googlenet(aux_logits=False)", "inception5b", 224),
        ("torchvision:shufflenet_v2_x0_5", "conv5", 320),
        ("torchvision:mobilenet_v2", "features", 288),
        ("ResNet18(form=cifar)", "features", 96),
        ("MobileNetV1", "features", 192),
        ("SimpleCNN", "features", 32),
    ],
)
def test_networks_see_what_the_gradient_says(name: str, layer: str, size: int) -> None:
    network = get_network(name, image_size=size)
    with building_on_meta():
        model = network.build()
    found = complexity(model, network.image_shape, training=False).receptive_field
    assert isinstance(found, dict)
    # The classifier, which may be large, is never reached and keeps no values.
    for part in {"classifier", "fc"} & {name for name, _ in model.named_children()}:
        setattr(model, part, nn.Identity())
    _all_positive(model.to_empty(device="cpu"))
    features = model.get_submodule(layer)
    asked = ((0, 0), (-1, -1))
    extents, units = _measured(model, features, network.image_shape, asked)
    for unit, extent in zip(asked, extents, strict=True):
        at = tuple(u % n for u, n in zip(unit, units, strict=True))
        assert _agrees(found, network.image_shape, at, units, extent), (at, extent, found)


class _Branches(nn.Module):
    """Two dilated branches and a skip, joined twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=2, dilation=2)
        self.b = nn.Conv2d(2, 3, 5, padding=2)
        self.c = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=2)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.a(x), self.b(x), x], 1)
        return (self.c(joined) + joined).relu()


class _Sliced(nn.Module):
    """Channels that are shuffled, and every second row."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        shuffled = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return shuffled[:, :, 1::2].permute(0, 1, 2, 3)


STACKS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Sequential(nn.Conv2d(2, 4, (3, 5), (2, 3), (1, 2), (2, 1)), nn.AvgPool2d((2, 1), (1, 2))), (2, 40, 44)),
    (nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), _Branches(), nn.AvgPool2d(3, 2, 1, ceil_mode=True)), (2, 48, 40)),
    (nn.Sequential(nn.ZeroPad2d((3, 1, 2, 0)), nn.Conv2d(2, 4, 4), _Sliced(), nn.Conv2d(4, 2, 3)), (2, 24, 24)),
    (nn.Sequential(nn.ConvTranspose2d(2, 3, 4, padding=1), nn.Conv2d(3, 2, 3, 2)), (2, 20, 20)),
    (nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Conv2d(2, 2, 3, padding="same")), (2, 32, 32)),
]


@pytest.mark.parametrize(("model", "shape"), STACKS)
def test_stacks_see_what_the_gradient_says(model: nn.Module, shape: tuple[int, ...]) -> None:
    found = complexity(model, shape, training=False).receptive_field
    assert isinstance(found, dict)
    _all_positive(model)
    units = model(torch.rand(1, *shape, dtype=torch.double)).shape[2:]
    asked = ((0,) * len(units), tuple(n // 2 for n in units), tuple(n - 1 for n in units))
    for unit, extent in zip(asked, _measured(model, model, shape, asked)[0], strict=True):
        assert _agrees(found, shape, unit, units, extent), (unit, extent, found)


def test_published_fields_layer_by_layer() -> None:
    # Araujo, Norris, Sim 2019; VGG16 also in the text of its paper's successors.
    vgg16 = get_network("torchvision:vgg16")
    with building_on_meta():
        model = vgg16.build()
    layers = complexity(model, vgg16.image_shape, training=False).layers
    sizes = [layer.receptive_field["size"] for layer in layers  # type: ignore[index]
             if layer.type in ("Conv2d", "MaxPool2d")]  # fmt: skip
    assert sizes == [3, 5, 6, 10, 14, 16, 24, 32, 40, 44, 60, 76, 92, 100, 132, 164, 196, 212]
    course = complexity(get_model("SimpleCNN")(in_channels=1, image_size=28), (1, 28, 28), training=False)
    fields = [layer.receptive_field["size"] for layer in course.layers  # type: ignore[index]
              if layer.type in ("Conv2d", "MaxPool2d")]  # fmt: skip
    assert fields == [3, 4, 8, 10, 18, 22]
    assert course.receptive_field == {"size": 22, "jump": 8, "start": 4}


def test_other_axes_than_two() -> None:
    one = complexity(nn.Sequential(nn.Conv1d(2, 4, 5, 2), nn.Conv1d(4, 4, 3, dilation=3)), (2, 64), training=False)
    assert one.receptive_field == {"size": 17, "jump": 2, "start": 8.5}
    three = complexity(nn.Conv3d(1, 2, (1, 2, 3)), (1, 8, 8, 8), training=False)
    assert three.receptive_field == {"size": [1, 2, 3], "jump": 1, "start": [0.5, 1, 1.5]}


class _Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def test_what_sees_everything_and_what_is_not_known() -> None:
    conv = nn.Conv2d(3, 4, 3)
    for module in (_Gate(), nn.GroupNorm(2, 4), nn.Softmax(2)):
        assert (
            complexity(nn.Sequential(conv, module, nn.ReLU()), (3, 16, 16), training=False).receptive_field == "image"
        )
    for module in (nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 4, 2, 2), nn.PixelShuffle(2)):
        assert complexity(nn.Sequential(conv, module, nn.ReLU()), (3, 16, 16), training=False).receptive_field is None
    # A linear layer after flattening sees what all units saw together.
    rows = complexity(nn.Sequential(conv, nn.Flatten(), nn.Linear(4 * 14 * 14, 5)), (3, 16, 16), training=False).layers
    assert [row.receptive_field for row in rows][-1] == "image"


def test_what_is_written_in_parts_is_not_guessed() -> None:
    class Network(nn.Module):
        def __init__(self, way: str) -> None:
            super().__init__()
            self.way, self.wide, self.narrow = way, nn.Conv2d(3, 3, 5, padding=2), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.narrow(x)
            if self.way == "part":
                y[:, :1] = self.wide(x)[:, :1]
            elif self.way == "buffer":
                y = torch.zeros_like(x).reshape(x.shape)
                y[:, :2] = self.wide(x)[:, :2]
            elif self.way == "transposed":
                y = y + y.transpose(2, 3)
            elif self.way == "shuffle":
                n, c, h, w = y.shape
                y = y.view(n, c, 1, h, w).expand(n, c, 4, h, w).reshape(n, c, 2, 2, h, w)
                y = y.permute(0, 1, 4, 2, 5, 3).reshape(n, c, 2 * h, 2 * w)
            return y if self.way == "part" else y.relu()

    for way in ("part", "buffer", "transposed", "shuffle"):
        assert complexity(Network(way), (3, 8, 8), training=False).receptive_field is None, way
    assert complexity(nn.Linear(3, 4), (3,), training=False).receptive_field is None


def test_pooling_along_one_axis() -> None:
    found = complexity(nn.Sequential(nn.Conv1d(2, 2, 3), nn.MaxPool1d(2), nn.AvgPool1d(2)), (2, 32), training=False)
    assert found.receptive_field == {"size": 6, "jump": 4, "start": 3}
