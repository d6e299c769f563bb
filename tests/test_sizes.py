"""Sizes against torch itself, on random stacks, and against arithmetic by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cnnbench.cli import main
from cnnbench.counting.meta_copy import build_without_values
from cnnbench.errors import UserError
from cnnbench.explain import run
from cnnbench.explain.output_sizes import (
    Conv,
    Layer,
    Pad,
    Pool,
    Transposed,
    notation,
    output_size,
    parse_layers,
    trace_sizes,
    unread,
)
from cnnbench.explain.sizes import (
    Row,
    evaluated,
    parameter_formula,
    rows_of_layers,
    rows_of_network,
    stages_of,
)
from cnnbench.network import get_network

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def _torch(x: Tensor, layer: Layer) -> Tensor:
    """What torch makes of a map of one channel."""

    def weight(kernel: object) -> Tensor:
        return torch.ones(1, 1, *(kernel if isinstance(kernel, tuple) else (kernel, kernel)))

    if isinstance(layer, Conv):
        return F.conv2d(x, weight(layer.kernel), None, layer.stride, layer.padding, layer.dilation)
    if isinstance(layer, Transposed):
        kernel, stride, padding, output_padding, dilation, _ = layer
        return F.conv_transpose2d(x, weight(kernel), None, stride, padding, output_padding, 1, dilation)
    if isinstance(layer, Pad):
        return F.pad(x, tuple(layer))
    kernel, stride, padding, dilation, ceil_mode, kind = layer
    if kind == "max":
        return F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    return F.avg_pool2d(x, kernel, stride, padding, ceil_mode)


def _extents(low: int, high: int) -> st.SearchStrategy:
    return st.integers(low, high) | st.tuples(st.integers(low, high), st.integers(low, high))


CONVS = st.builds(
    Conv, _extents(1, 7), _extents(1, 3), _extents(0, 4) | st.just("same"), _extents(1, 3), st.none()
)  # fmt: skip
POOLS = st.builds(
    Pool, _extents(1, 5), st.none() | _extents(1, 4), _extents(0, 2), _extents(1, 2), st.booleans(), st.just("max")
)
MEANS = st.builds(
    Pool, _extents(1, 5), st.none() | _extents(1, 4), _extents(0, 2), st.just(1), st.booleans(), st.just("avg")
)
TRANSPOSED = st.builds(
    Transposed, _extents(1, 5), _extents(1, 3), _extents(0, 3), _extents(0, 2), _extents(1, 2), st.none()
)
PADS = st.builds(Pad, *[st.integers(0, 3)] * 4)
STACKS = st.lists(CONVS | POOLS | MEANS | TRANSPOSED | PADS, min_size=1, max_size=5)


@settings(max_examples=800, deadline=None)
@given(st.tuples(st.integers(1, 24), st.integers(1, 24)), STACKS)
def test_random_stacks_have_the_sizes_of_torch_and_are_refused_with_it(size: tuple[int, int], stack: list) -> None:
    x: Tensor | None = torch.zeros(1, 1, *size)
    for number, layer in enumerate(stack, 1):
        try:
            x = _torch(x, layer)
        except (RuntimeError, ValueError):
            with pytest.raises(UserError, match=f"^layer {number}, "):
                output_size(size, stack)
            return
        assert output_size(size, stack[:number]) == tuple(x.shape[2:])
    assert [len(trace_sizes(size, stack)), trace_sizes(size, stack)[0]] == [1 + len(stack), size]


@settings(max_examples=200, deadline=None)
@given(STACKS)
def test_the_notation_is_read_as_it_is_written(stack: list) -> None:
    read = parse_layers(" ".join(map(notation, stack)))
    assert [notation(layer) for layer in read] == [notation(layer) for layer in stack]
    for layer, again in zip(stack, read, strict=True):
        for n in (7, 24):
            try:
                expected = output_size((n, n + 1), [layer])
            except UserError:
                continue
            assert output_size((n, n + 1), [again]) == expected


@pytest.mark.parametrize(
    ("size", "layers", "expected"),
    [
        (28, "conv5 maxpool2 conv5 maxpool2", 4),
        (224, "conv7/2p3 maxpool3/2p1", 56),
        (227, "conv11/4 maxpool3/2", 27),
        (224, "conv11/4 maxpool3/2", 26),
        (28, "maxpool2 maxpool2 maxpool2", 3),
        (28, "maxpool2ceil maxpool2ceil maxpool2ceil", 4),
        (112, "maxpool3/2", 55),
        (112, "maxpool3/2ceil", 56),
        (8, "maxpool3/2", 3),
        (8, "maxpool3/2ceil", 4),
        (8, "avgpool3/2", 3),
        (8, "avgpool3/2ceil", 4),
        (32, "conv3d2", 28),
        (65, "conv3/2p4d4", 33),
        (33, "conv4p2", 34),
        (32, "conv4same", 32),
        (10, "maxpool3/1d2", 6),
        ((17, 23), "conv3x5/2x3p1x2d2x1", (8, 8)),
        (4, "tconv4/2p1", 8),
        (7, "tconv3/2p1o1", 14),
        ((4, 6), "pad1x2x0x3", (7, 9)),
    ],
)
def test_sizes_of_the_course_and_of_known_networks(size: object, layers: str, expected: object) -> None:
    assert output_size(size, parse_layers(layers)) == (expected if isinstance(expected, tuple) else (expected,) * 2)


@pytest.mark.parametrize(
    ("size", "layers", "words"),
    [
        (4, "conv5", "layer 1, conv5, on 4x4: a window of 5 does not fit into 4 pixels"),
        (31, "maxpool2 " * 5, "layer 5, maxpool2, on 1x1"),
        (8, "maxpool2p2", "more than half of its window"),
        (8, "conv3/2same", "'same' is for stride 1"),
        (8, "conv3/1x2same", "'same' is for stride 1"),
        (8, "tconv3/2o2", "output padding 2 must be below"),
        (1, "tconv1p1", "leaves -1 of 1 pixels"),
        (8, "conv0", "kernel 0 must be at least 1"),
        (8, "conv3/0", "stride 0 must be at least 1"),
        (0, "conv3", "at least 1x1 pixels"),
        (8, "conf3", "cannot read layer 'conf3'"),
        (8, "conv3ceil", "'ceil' is not possible here"),
        (8, "conv3p1p2", "'p' is not possible here; conv takes, once each"),
        (8, "conv3p1same", "'same' is not possible"),
        (8, "avgpool3d2", "'d' is not possible"),
        (8, "conv3x3x3", "a kernel has one number"),
        (8, "pad1x2", "give one number, or four"),
        (8, " ", "--layers is empty"),
        (8, "conv99999999999999999999p9999999999999999999999", "99999999999999999999 is too large; take numbers of at"),
        (8, "conv1:65537", "65537 is too large; take numbers of at most 65,536"),
        (300, "tconv1/65536 conv3", "layer 1, tconv1/65536, on 300x300: its map would have a side of 19595265 pixels"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(size: int, layers: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        output_size(size, parse_layers(layers))
    assert "\n" not in str(error.value)


def test_negative_settings_and_dilated_means_are_refused() -> None:
    for layer in (Pad(-1, 0, 0, 0), Conv(3, padding=-1), Pool(3, dilation=2, kind="avg")):
        with pytest.raises(UserError):
            output_size(9, [layer])


@settings(max_examples=150, deadline=None)
@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), CONVS | MEANS)
def test_pixels_that_no_window_reads_have_no_gradient(size: tuple[int, int], layer: Layer) -> None:
    x = torch.zeros(1, 1, *size, requires_grad=True)
    try:
        _torch(x, layer).sum().backward()
    except RuntimeError:
        return
    assert x.grad is not None
    for axis, (last, between) in enumerate(unread(size, layer)):
        read = (x.grad[0, 0] != 0).any(1 - axis).tolist()
        if any(read):  # a window may lie in the padding of the other axis
            assert last == len(read) - 1 - max(i for i, r in enumerate(read) if r)
            assert between == read.count(False) - last


def test_seven_pixels_lose_the_last_row_and_column_in_pooling() -> None:
    assert unread((7, 7), Pool(2)) == ((1, 0), (1, 0))
    assert unread((7, 7), Pool(2, ceil_mode=True)) == ((0, 0), (0, 0))
    assert unread((8, 9), Conv(1, 2)) == ((1, 3), (0, 4))
    assert unread((65_536, 65_536), Conv(32_768, 3)) == ((2, 0), (2, 0))  # 10,923 windows: 32,766 pixels to the last
    rows, left_out = rows_of_network(get_network("SimpleCNN", 1, 28).build(), (1, 28, 28))
    assert [r.unread for r in rows if r.unread] == ["the last row and column"]
    assert left_out == ["4 ReLU", "1 Dropout"]
    words = {r.kind: r.unread for r in rows_of_layers(parse_layers("maxpool3x2/5x2 conv1/2"), (13, 9), 1)}
    assert words["maxpool3x2/5x2"] == "4 of 13 rows, the last column"  # rows 3, 4, 8, 9
    assert words["conv1/2"] == "1 of 3 rows, 2 of 4 columns"


def test_layers_of_the_course_have_their_parameters() -> None:
    rows, _ = rows_of_network(get_network("SimpleCNN", 1, 28).build(), (1, 28, 28))
    assert [r.params for r in rows if r.params] == [320, 18_496, 36_928, 36_928, 650]
    (conv,) = rows_of_layers([Conv(3, padding=1, channels=32)], 224, 3)[1:]
    assert (conv.formula, conv.params) == ("(3·3·3+1)·32", 896)
    assert conv.memory_bytes == 32 * 224 * 224 * 4
    (conv,) = rows_of_layers([Conv(7, 2, 3, channels=64)], 224, 3)[1:]
    assert (conv.params, conv.shape) == (9_472, (64, 112, 112))
    unknown = rows_of_layers([Conv(3), Conv(3, channels=4), Conv(1, channels=5)], 8, 3)[1:]
    assert [(r.params, r.memory_bytes) for r in unknown] == [(None, None), (None, 4 * 16 * 4), (25, 5 * 16 * 4)]


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(6, 9, (3, 5), groups=3),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.ConvTranspose2d(6, 4, (3, 2), groups=2),
        nn.Conv1d(2, 3, 5),
        nn.Linear(7, 3),
        nn.Linear(7, 3, bias=False),
        nn.BatchNorm2d(5),
    ],
)
def test_formulas_give_the_parameters_that_torch_has(module: nn.Module) -> None:
    formula = parameter_formula(module)
    number = sum(p.numel() for p in module.parameters())
    exec_able = formula.replace("·", "*").replace("/", "//") if "/" in formula else formula.replace("·", "*")
    assert evaluated(formula) == number == eval(exec_able)
    assert parameter_formula(nn.ReLU()) == parameter_formula(nn.BatchNorm2d(5, affine=False)) == ""


class _Odd(nn.Module):
    """Functional pooling, a layer that runs twice, one that does not run, non-square windows, one shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, (3, 5), padding=(1, 2))
        self.up = nn.ConvTranspose2d(2, 4, 4, 2, 1)
        self.unused = nn.Linear(3, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.a(self.a(x)), 3, 2, 1).relu()
        return F.avg_pool2d(self.norm(self.up(x)), 2, ceil_mode=True).mean((2, 3))


def test_rows_of_networks_with_functional_pooling() -> None:
    rows, left_out = rows_of_network(_Odd(), (2, 9, 12))
    found = [(r.name, r.kind, r.shape, r.params) for r in rows]
    assert found == [
        ("image", "", (2, 9, 12), 0),
        ("a", "Conv2d conv3x5p1x2", (2, 9, 12), 62),
        ("a", "Conv2d conv3x5p1x2", (2, 9, 12), 0),
        ("", "max_pool2d maxpool3/2p1", (2, 5, 6), 0),
        ("up", "ConvTranspose2d tconv4/2p1", (4, 10, 12), 132),
        ("norm", "BatchNorm2d", (4, 10, 12), 8),
        ("", "avg_pool2d avgpool2ceil", (4, 5, 6), 0),
        ("", "mean", (4,), 0),
        ("unused", "Linear", None, 12),
    ]
    assert left_out == []
    assert sum(r.params or 0 for r in rows) == sum(p.numel() for p in _Odd().parameters())


class _ScaledPool(nn.Module):
    """Block with a parameter of its own that pools in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(images) * self.scale, 2)


def test_a_block_that_pools_in_its_forward_keeps_its_own_parameters() -> None:
    rows, _ = rows_of_network(nn.Sequential(_ScaledPool(), nn.Conv2d(3, 1, 1, bias=False)), (2, 8, 8))
    assert [(r.name, r.kind.split()[0], r.shape, r.params) for r in rows[1:]] == [
        ("0.conv", "Conv2d", (3, 8, 8), 6),
        ("0", "max_pool2d", (3, 4, 4), 0),
        ("0", "_ScaledPool", (3, 4, 4), 3),
        ("1", "Conv2d", (1, 4, 4), 3),
    ]


@pytest.mark.parametrize("name", ["torchvision:vgg16", "torchvision:shufflenet_v2_x0_5", "DenseNet121", "AlexNet"])
def test_rows_add_up_and_shapes_are_those_of_a_real_run(name: str) -> None:
    network = get_network(name, image_size=64)
    torch.manual_seed(0)
    model = network.build().eval()
    rows, _ = rows_of_network(model, network.image_shape)
    assert sum(r.params or 0 for r in rows) == sum(p.numel() for p in model.parameters())
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        module.register_forward_hook(
            lambda m, x, y, path=path: (shapes.setdefault(path, tuple(y.shape[1:])), None)[1]  # type: ignore[misc]
        )
    with torch.no_grad():
        model(torch.zeros(1, *network.image_shape))
    named = [r for r in rows if not r.kind.islower() and r.name in shapes]
    assert len(named) > 10
    assert all(r.shape == shapes[r.name] for r in named)
    for row in rows:
        if row.kind.startswith(("Conv2d", "MaxPool2d", "AvgPool2d")):
            assert row.kind.split()[1]


def test_stages_gather_layers_by_resolution() -> None:
    rows = [Row("", "", (3, 8, 8), 0), Row("", "", (4, 8, 8), 10), Row("", "", (6, 4, 4), 20), Row("", "", (5,), 7)]
    found = stages_of(rows)
    assert list(found) == ["8x8", "4x4", "vectors"]
    assert [s["channels"] for s in found.values()] == [4, 6, 5]
    assert [s["params"] for s in found.values()] == [10, 20, 7]
    assert [s["memory_bytes"] for s in found.values()] == [4 * 7 * 64, 4 * 6 * 16, 4 * 5]


@pytest.mark.parametrize(
    ("name", "resolutions"),
    [
        ("torchvision:swin_t", {"56x56": 384, "28x28": 768, "14x14": 1536, "7x7": 3072}),
        ("torchvision:convnext_tiny", {"56x56": 384, "28x28": 768, "14x14": 1536, "7x7": 3072}),
        # Its MLP works on tokens; four patches are joined before their channels are halved.
        ("timm:swin_tiny_patch4_window7_224", {"56x56": 96, "28x28": 384, "14x14": 768, "7x7": 1536}),
    ],
)
def test_maps_with_channels_last_are_gathered_by_their_resolution(name: str, resolutions: dict[str, int]) -> None:
    """Patches of 4 pixels, then three halvings; the widest map is that of an MLP, four times as wide as its block."""
    network = get_network(name)
    rows, _ = rows_of_network(build_without_values(network.build)[0], network.image_shape)
    found = {key: stage["channels"] for key, stage in stages_of(rows).items()}
    assert {key: found[key] for key in resolutions} == resolutions
    assert set(found) <= {"224x224", *resolutions, "1x1", "vectors"}


def test_views_have_no_memory_of_their_own() -> None:
    network = get_network("VGG16", image_size=224)
    rows, _ = rows_of_network(build_without_values(network.build)[0], network.image_shape)
    last = next(row for row in reversed(rows) if row.shape == (512, 7, 7))
    flat = next(row for row in rows if row.kind == "Flatten")
    assert (last.memory_bytes, flat.memory_bytes) == (4 * 512 * 7 * 7, 0)
    assert [row.kind for row in rows if row.view] == ["Flatten"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "sizes", "--layers", "conv5 maxpool2 conv5:3", "--image_size", "28x14"]) == 0
    assert "?x12x5" in capsys.readouterr().out
    assert main(["explain", "sizes", "SimpleCNN", "--image_size", "28", "--in_channels", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["params"] == 93_322
    shapes = [tuple(row["shape"]) for row in document["layers"] if row["kind"] != "Flatten"]  # which is a view
    assert document["memory_bytes"] == 4 * sum(int(np.prod(shape)) for shape in shapes)
    assert [p["file"] for p in document["pictures"]] == ["results/explain/sizes.png"]


def test_a_table_says_how_much_memory_and_how_many_parameters_each_resolution_has() -> None:
    """By hand: 4 * (3 + 8) * 256 and 4 * (8 + 16) * 64 bytes, (27 + 1) * 8 and (72 + 1) * 16 parameters."""
    found = run("sizes", ["--layers", "conv3p1:8 maxpool2 conv3p1:16", "--image_size", "16"])
    assert list(found.tables[1].rows) == [
        ("16x16", "8", "11.0", "65%", "224", "16%"),
        ("8x8", "16", "6.0", "35%", "1,168", "84%"),
    ]
    assert found.remarks[-1] == "Large maps cost memory, many channels cost parameters."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either a MODEL"),
        (["SimpleCNN", "--layers", "conv3"], "give either a MODEL"),
        (["SimpleCNN", "--image_size", "28x14"], "a MODEL takes square images"),
        (["--layers", "conv3", "--image_size", "big"], "image_size 'big' is not a size"),
        (["--layers", "conv3", "--in_channels", "0"], "in_channels 0 must be at least 1"),
        (["--layers", "conv3", "--num_classes", "5"], "--num_classes is for a MODEL"),
        (["SimpleCNN", "--image_size", "4"], "SimpleCNN"),
        (["--layers", "conv3", "--image_size", "9" * 5000], "must be at most 65,536 pixels"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "sizes", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
