"""Counts against brute force, closed forms, published figures and torch's own counter."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brute_force import Loops
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from cnnbench.cli import main
from cnnbench.counting.complexity import Complexity, complexity
from cnnbench.counting.memory import training_memory
from cnnbench.counting.meta_copy import building_on_meta, meta_copy
from cnnbench.counting.meta_run import MetaRun, tensors_in
from cnnbench.errors import UserError
from cnnbench.models import get_model
from cnnbench.network import get_network


def _macs(layer: nn.Module, *shape: int) -> int:
    return complexity(layer, shape).macs


# Brute force: a convolution is done number by number, its result compared with torch's, its multiplications counted.


@st.composite
def _convolutions(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.sampled_from([1, 1, 2, 2, 2, 3]))
    most = {1: 4, 2: 3, 3: 2}[dims]

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    groups = draw(st.integers(1, 3))
    kernel, dilation, padding, stride = sizes(1, most), sizes(1, 2), sizes(0, 2), sizes(1, 3)
    transposed = draw(st.booleans())
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = 1 if transposed else max(1, max(s - 2 * p for s, p in zip(spans, padding, strict=True)))
    extents = sizes(least, least + 3)
    options = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if transposed:
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        out = [
            (n - 1) * s - 2 * p + span + e
            for n, s, p, span, e in zip(extents, stride, padding, spans, extra, strict=True)
        ]
        if min(out) < 1:  # torch refuses an empty output: no padding then
            options["padding"] = (0,) * dims
        options["output_padding"] = tuple(extra)
    frozen = draw(st.sampled_from([None, None, "weight", "bias"]))
    return {"dims": dims, "transposed": transposed, "extents": extents, "options": options, "frozen": frozen,
            "first": draw(st.booleans()), "batch": draw(st.integers(1, 2))}  # fmt: skip


CASES = 300


@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(case=_convolutions())
def test_convolutions_cost_what_doing_them_costs(case: dict[str, Any]) -> None:
    kind = f"Conv{'Transpose' if case['transposed'] else ''}{case['dims']}d"
    torch.manual_seed(0)
    layer = getattr(nn, kind)(**case["options"]).double()
    if case["frozen"] == "weight" or (case["frozen"] == "bias" and layer.bias is not None):
        getattr(layer, case["frozen"]).requires_grad_(False)
    shape = (case["options"]["in_channels"], *case["extents"])
    x = torch.randn(case["batch"], *shape, dtype=torch.double, requires_grad=True)
    out = layer(x)
    grad = torch.randn_like(out)

    options = case["options"]
    loops = Loops(
        x.detach(), layer.weight.detach(), out.shape[2:], options["stride"], options["padding"], options["dilation"],
        options["groups"], case["transposed"],
    )  # fmt: skip
    bias = 0 if layer.bias is None else layer.bias.detach().reshape(-1, *(1,) * case["dims"])
    torch.testing.assert_close(loops.forward() + bias, out.detach())
    forward = loops.multiplications
    trained = [x, *([layer.weight] if layer.weight.requires_grad else [])]
    expected_dx, *expected_dw = torch.autograd.grad(out, trained, grad)
    torch.testing.assert_close(loops.input_gradient(grad), expected_dx)
    input_gradient = loops.multiplications - forward
    weight_gradient = 0
    if expected_dw:
        torch.testing.assert_close(loops.weight_gradient(grad), expected_dw[0])
        weight_gradient = loops.multiplications - forward - input_gradient

    network: nn.Module = layer if case["first"] else nn.Sequential(_Scale().double(), layer)
    found = complexity(network, shape)
    per_image = forward + weight_gradient + (0 if case["first"] else input_gradient)
    assert found.macs * case["batch"] == forward
    assert found.train_macs * case["batch"] == per_image
    assert found.batch_linear
    assert found.uncounted == ()


class _Scale(nn.Module):
    """Something to train before a layer, so that the layer needs the gradient of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


# Closed forms.


def test_single_layers_have_their_closed_form() -> None:
    found = complexity(nn.Conv2d(3, 32, 3, padding=1), (3, 224, 224))
    macs = 3 * 9 * 32 * 224 * 224
    assert (found.params, found.macs, found.flops, found.activations) == (896, macs, 2 * macs, 32 * 224 * 224)
    assert found.other_ops == 32 * 224 * 224  # the bias
    assert found.train_macs == 2 * macs  # no gradient for the images
    assert found.receptive_field == {"size": 3, "jump": 1, "start": 0.5}
    assert found.layers[0].output_shape == (32, 224, 224)
    assert _macs(nn.Conv2d(3, 64, 7, 2, 3), 3, 224, 224) == 118_013_952 == 236_027_904 // 2
    assert _macs(nn.Conv2d(8, 16, 3, groups=4, dilation=2), 8, 12, 12) == 2 * 9 * 16 * 8 * 8
    assert _macs(nn.Conv2d(8, 8, 3, padding=1, groups=8), 8, 12, 12) == 9 * 8 * 12 * 12
    assert _macs(nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"), 4, 6, 6) == 4 * 4 * 9 * 36
    assert _macs(nn.Conv1d(4, 6, 3), 4, 10) == 4 * 6 * 3 * 8
    assert _macs(nn.Conv3d(2, 3, 2), 2, 4, 5, 6) == 2 * 3 * 8 * 3 * 4 * 5
    assert _macs(nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1), 8, 7, 7) == 8 * 4 * 16 * 49
    assert _macs(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), 3, 4, 4) == 480
    assert _macs(nn.Linear(5, 7), 3, 4, 5) == 3 * 4 * 5 * 7


def test_separable_convolution_has_the_ratio_of_the_paper() -> None:
    standard = _macs(nn.Conv2d(256, 256, 3, padding=1), 256, 14, 14)
    separable = _macs(nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, groups=256), nn.Conv2d(256, 256, 1)), 256, 14, 14)
    assert separable / standard == pytest.approx(1 / 256 + 1 / 9)


class _Module(nn.Module):
    """A forward of one's own, with weights or without."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(s)) for s in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


@pytest.mark.parametrize(
    ("function", "weights", "shape", "macs", "train_macs"),
    [
        (F.linear, [(7, 5)], (5,), 35, 70),
        (lambda x, w: x @ w, [(5, 7)], (4, 5), 4 * 35, 2 * 4 * 35),
        (lambda x: x @ x.transpose(1, 2), [], (4, 5), 4 * 4 * 5, 4 * 4 * 5),
        (lambda x, w: torch.einsum("nchw,cd->ndhw", x, w), [(3, 6)], (3, 4, 4), 3 * 6 * 16, 2 * 3 * 6 * 16),
        (lambda x, w: torch.einsum("nij,jk,kl->nil", x, w, w), [(5, 5)], (3, 5), 2 * 75, 5 * 75),
        (lambda x, w: F.conv1d(x, w, dilation=2, groups=2), [(4, 1, 3)], (2, 9), 4 * 3 * 5, 2 * 4 * 3 * 5),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), [(3, 2, 2, 2)], (3, 4, 4), 24 * 16, 2 * 24 * 16),
        (lambda x, w: torch.baddbmm(x, x, w.expand(len(x), 5, 5)), [(5, 5)], (3, 5), 75, 150),
        # Attention with a projection of the queries: 2 products of 6x6x8 after one of 6x8x8; backward has two
        # gradients for each of the former, and for the latter the weight's alone.
        (lambda x, w: F.scaled_dot_product_attention(x @ w, x, x), [(8, 8)], (1, 6, 8), 2 * 288 + 384, None),
    ],
)  # fmt: skip
def test_functional_products_count(
    function: Callable[..., Tensor], weights: list, shape: tuple[int, ...], macs: int, train_macs: int | None
) -> None:
    found = complexity(_Module(function, *weights), shape)
    assert found.macs == macs
    assert found.uncounted == ()
    if train_macs is not None:
        assert found.train_macs == train_macs


def test_attention_is_counted_in_full() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    found = complexity(Attention(), (10, 16))
    assert found.macs == 4 * 10 * 16 * 16 + 2 * 10 * 10 * 16  # four projections; scores and their use
    assert found.train_macs == 3 * found.macs - 3 * 10 * 16 * 16  # the images' gradient is missing in three
    assert found.uncounted == ()


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_networks_count_each_step(kind: type[nn.Module], gates: int) -> None:
    found = complexity(kind(5, 6, batch_first=True), (7, 5))
    assert found.macs == 7 * gates * 6 * (5 + 6)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_convolution_of_complex_numbers_is_one_convolution(by_name: bool) -> None:
    def convolve(x: Tensor) -> Tensor:
        z, w = x.to(torch.complex64), torch.ones(4, 3, 3, 3, dtype=torch.complex64, device=x.device)
        return F.conv2d(input=z, weight=w).abs() if by_name else F.conv2d(z, w).abs()

    assert complexity(_Module(convolve), (3, 8, 8)).macs == 36 * 27 * 4


def test_a_product_of_values_in_the_forward_pass_can_be_read() -> None:
    def halve(x: Tensor) -> Tensor:
        one = torch.ones(1, 1)
        return x[:, : int(torch.addmm(one, one, one).item())]

    assert complexity(_Module(halve), (3, 8, 8)).macs == 1  # the product of a 1x1 by a 1x1 matrix


def test_functional_calls_and_shared_modules_count() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.tied = self.conv

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.tied(self.conv(x)), torch.ones(1, 2, 1, 1, device=x.device))

    found = complexity(Network(), (2, 5, 5))
    assert found.params == 2 * 2 * 9 + 2
    assert found.macs == 25 * (2 * 36 + 2)
    rows = {layer.name: layer for layer in found.layers}
    assert (rows["conv"].calls, rows["conv"].macs, rows[""].macs) == (2, 25 * 72, 50)
    # The first call needs no gradient of its input, the second does; the constant kernel has no weight gradient.
    assert rows["conv"].train_macs == 25 * 36 * 5
    assert rows[""].train_macs == 2 * 50


def test_tied_weights_count_once_and_work_twice() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    found = complexity(model, (6,))
    assert (found.params, found.macs, found.train_macs) == (36, 72, 72 + 36 + 72)


def test_other_operations_have_their_own_column() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Softmax(1))
    found = complexity(model, (3, 8, 8))
    assert found.macs == 3 * 4 * 64
    assert [layer.other_ops for layer in found.layers] == [0, 2 * 256, 256, 4 * 64, 5 * 64]
    assert found.other_ops == 2 * 256 + 256 + 4 * 64 + 5 * 64
    assert found.layers[1].params == 8


def test_what_cannot_be_counted_is_listed() -> None:
    found = complexity(_Module(lambda x: torch.fft.fft2(x).abs()), (3, 8, 8))
    assert len(found.uncounted) == 1
    assert found.uncounted[0].startswith("aten._fft_")
    assert complexity(_Module(lambda x: torch.linalg.inv(x @ x.mT)), (3, 8, 8)).uncounted


def test_conventions_of_other_operations() -> None:
    def other(module: nn.Module, *shape: int) -> int:
        return complexity(module, shape, training=False).other_ops

    assert other(nn.Upsample(scale_factor=0.25, mode="bilinear"), 1, 16, 16) == (2 * 4 - 1) * 16
    assert other(nn.Upsample(scale_factor=2, mode="bilinear"), 1, 8, 8) == (2 * 4 - 1) * 256
    assert other(_Module(lambda x: (x > 0) * x), 1, 4, 4) == other(_Module(lambda x: x * (x > 0)), 1, 4, 4) == 2 * 16
    assert other(nn.AdaptiveAvgPool2d(3), 1, 7, 7) == 9**2  # windows of 3 pixels that share their borders
    assert other(nn.AdaptiveAvgPool2d(1), 1, 7, 7) == 49
    assert other(nn.GLU(1), 8, 4, 4) == 2 * 4 * 16
    assert other(nn.AvgPool2d(3, 1, 1), 2, 8, 8) == 9 * 2 * 64
    assert other(nn.GroupNorm(2, 4), 4, 3, 3) == 6 * 36
    assert other(_Module(lambda x: x[:, torch.arange(2)]), 4, 3, 3) == 0  # indices are no arithmetic


# Training.


def test_frozen_layers_cost_no_weight_gradient() -> None:
    def build(*frozen: int) -> nn.Module:
        model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
        for index in frozen:
            model[index].requires_grad_(False)
        return model

    one = 4 * 4 * 9 * 36
    train = {frozen: complexity(build(*frozen), (4, 6, 6)).train_macs for frozen in ((), (0,), (1,), (0, 1), (0, 1, 2))}
    assert train == {
        (): one * (3 + 3 + 2),
        (0,): one * (3 + 2 + 1),  # no gradient has to go further back than the second layer
        (1,): one * (3 + 2 + 2),
        (0, 1): one * (3 + 1),
        (0, 1, 2): one * 3,
    }


def test_mobilenet_training_is_what_the_layer_shapes_give() -> None:
    with building_on_meta():
        model = get_model("MobileNetV1")(image_size=224, num_classes=1000)
    stem = 3 * 9 * 32 * 112**2
    assert complexity(model, (3, 224, 224)).train_macs == 3 * 568_740_352 - stem == 1_695_383_040


def test_torchs_counter_ignores_groups_in_the_weight_gradient() -> None:
    # pytorch#183405; when this fails, torch has mended it, and the audit's named cause may go.
    layer = nn.Conv2d(64, 64, 3, padding=1, groups=64)
    x = torch.randn(1, 64, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    found = complexity(nn.Sequential(_Scale(), layer), (64, 8, 8))
    assert found.train_macs == 3 * found.macs
    assert counter.get_total_flops() / 2 == 66 * found.macs


def test_torch_says_another_number_for_mobilenet() -> None:
    with torch.device("meta"):
        model = get_model("MobileNetV1")(image_size=224, num_classes=1000)
        images = torch.empty(2, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        out = model(images)
        out.backward(torch.empty_like(out))
    assert counter.get_total_flops() == 2 * 2 * 5_955_400_704  # two images, two FLOPs


def test_dense_networks_train_as_torch_counts() -> None:
    model = get_model("VGG16")()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert complexity(model, (3, 32, 32)).train_macs == counter.get_total_flops() // 4


def test_checkpointing_costs_a_second_forward() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 5, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.second, self.first(x), use_reentrant=False)

    first, second, third = 12 * 36, 144 * 36, 20 * 36
    found = complexity(Network(), (3, 6, 6))
    assert found.macs == first + second + third
    # Computing again stops when all that backward needs is there: the output of the last layer is not.
    assert found.train_macs == 2 * first + 4 * second + 3 * third


# The batch.


def test_cost_that_does_not_grow_with_the_batch_is_found() -> None:
    fixed = _Module(lambda x, v, w: F.linear(x, v @ w), (5, 6), (6, 7))
    found = complexity(fixed, (7,))
    assert not found.batch_linear
    assert found.macs == 5 * 7 + 5 * 6 * 7
    assert found.train_macs == 2 * 5 * 7 + 3 * 5 * 6 * 7
    assert complexity(nn.Linear(7, 5), (7,)).batch_linear


@pytest.mark.parametrize("name", ["torchvision:swin_t", "torchvision:googlenet", "ResNet18", "torchvision:vit_b_16"])
def test_layers_add_up(name: str) -> None:
    network = get_network(name)
    with building_on_meta():
        model = network.build()
    found = complexity(model, network.image_shape)
    for column in ("params", "macs", "other_ops", "train_macs"):
        assert sum(getattr(layer, column) for layer in found.layers) == getattr(found, column)
    assert found.batch_linear
    assert found.uncounted == ()


def test_cost_that_is_not_linear_in_the_batch_has_no_cost_of_one_image() -> None:
    def similarities(x: Tensor, w: Tensor) -> Tensor:
        z = x.flatten(1) * w
        return z @ z.T

    found = complexity(_Module(similarities, (192,)), (3, 8, 8))
    assert found.macs == 192
    assert found.train_macs is None
    assert any("so that one image has no cost" in line for line in found.remarks)


# Results of operators that are not worked out by torch.


class _Checked(MetaRun):
    """Compares every result with torch's own."""

    def _result(self, kind: str, func: Any, args: Any, kwargs: Any) -> Any:
        out = super()._result(kind, func, args, kwargs)
        if kind != "run":
            real = func(*args, **kwargs)
            assert type(out) is type(real) or isinstance(out, (list, tuple)), func
            for a, b in zip(tensors_in([out]), tensors_in([real]), strict=True):
                # Statistics that batch norm does not keep in inference have no shape worth comparing.
                if not (kind == "batch norm" and a.dim() == 1):
                    assert (a.shape, a.dtype, _strides(a)) == (b.shape, b.dtype, _strides(b)), func
        return out


def _strides(x: Tensor) -> tuple[int, ...]:
    return tuple(stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet", "swin_t", "densenet121"])
@pytest.mark.parametrize("training", [False, True])
def test_results_have_the_shape_that_torch_gives_them(name: str, training: bool) -> None:
    with building_on_meta():
        model = get_network(f"torchvision:{name}").build()
    copied = meta_copy(model)[0].train(training)
    calls = 0

    def listen(*call: Any) -> None:
        nonlocal calls
        calls += 1

    with torch.set_grad_enabled(training), _Checked(listen):
        outputs = list(tensors_in(copied(torch.empty(2, 3, 96, 96, device="meta"))))
        if training:
            torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
    assert calls > 100


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.glu(x, 1),
        lambda x: torch.where(torch.signbit(x), x, -x),
        lambda x: x.split(2, 1)[0].relu().view(-1, 8),
        lambda x: F.batch_norm(x.split(2, 1)[0], None, None, training=True).view(-1, 8),
        lambda x: x.transpose(1, 2).relu().transpose(1, 2) @ x.new_ones(4, 4),
        lambda x: torch.frexp(x)[0],
        lambda x: (x > 0).logical_xor(x < 1).to(x.dtype),
        lambda x: x.expand(3, *x.shape[1:]).sigmoid().reshape(-1, 8) if len(x) == 1 else x,
    ],
)
def test_odd_operators_run_as_on_a_cpu(function: Callable[[Tensor], Tensor]) -> None:
    expected = function(torch.randn(1, 4, 4, 4)).shape
    shapes: list[Any] = []

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = function(x)
            shapes.append(out.shape)
            return out

    complexity(Network(), (4, 4, 4), training=False)
    assert shapes[0] == expected


class _MadeLater(nn.Module):
    """Network whose classifier is made in the first forward pass, and which `eval` changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.fc: nn.Linear | None = None
        self.deployed = False
        self.own: dict[str, Any] = {}
        self.own["itself"] = self.own

    def eval(self) -> _MadeLater:
        self.deployed = True
        return super().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) if self.deployed else self.conv(self.conv(x)[:, :3])
        if self.fc is None:
            self.fc = nn.Linear(4, 10, bias=False, device=x.device)
        return self.fc(x.mean((2, 3)))


def test_a_layer_made_in_the_forward_pass_is_counted_and_eval_is_the_network_s_own() -> None:
    found = complexity(_MadeLater(), (3, 8, 8), training=False)
    assert found.params == found.trainable_params == 3 * 4 * 9 + 40
    assert found.macs == 64 * 108 + 40
    training_memory(_MadeLater(), (3, 8, 8), 2)  # the table that holds itself is no endless search


# No trace.


def _state(model: nn.Module) -> dict[str, Any]:
    return {
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "identity": [id(p) for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [sorted(m._forward_hooks) + sorted(m._forward_pre_hooks) for m in model.modules()],
        "keys": [sorted(vars(m)) for m in model.modules()],
        "torch_random": torch.get_rng_state(),
        "random": random.getstate(),
    }


@pytest.mark.parametrize("name", ["ResNet18", "MobileNetV1", "torchvision:googlenet", "torchvision:efficientnet_b0"])
def test_counting_leaves_no_trace(name: str) -> None:
    network = get_network(name, image_size=64)
    model = network.build()
    model.train()
    next(model.children()).eval()
    seen: list[Tensor] = []
    list(model.modules())[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = _state(model)
    found = complexity(model, network.image_shape)
    after = _state(model)
    for part in ("values", "grads"):
        torch.testing.assert_close(after.pop(part), before.pop(part), rtol=0, atol=0)
    assert torch.equal(after.pop("torch_random"), before.pop("torch_random"))
    assert after == before
    assert seen == []
    assert [u for u in found.uncounted if u.startswith("forward_hook of")]
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_randomness_inside_a_network_is_put_back() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x * (random.random() + torch.rand(1).item() + torch.randn(()))

    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    complexity(_Module(noisy), (3, 4, 4))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_compiled_networks_are_counted_and_stay_compiled() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    plain = complexity(model, (3, 8, 8))
    compilations = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compilations
        compilations += 1
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    nested = nn.Sequential(compiled)
    x = torch.randn(1, 3, 8, 8)
    compiled(x)
    assert compilations == 1
    for network in (compiled, nested):
        found = complexity(network, (3, 8, 8))
        assert (found.macs, found.params, found.train_macs) == (plain.macs, plain.params, plain.train_macs)
    model.compile(backend=backend)
    assert complexity(model, (3, 8, 8)).macs == plain.macs
    compiled(x)
    assert compilations == 1
    assert model._compiled_call_impl is not None


def test_compiled_functions_inside_run_as_written() -> None:
    double = torch.compile(lambda x: 2 * x @ torch.ones(3, 3, device=x.device), backend="eager")
    assert complexity(_Module(lambda x: double(x)), (2, 3)).macs == 18


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()),
        torch.nn.utils.weight_norm,
    ],
    ids=["weight_norm", "pruning", "parametrization", "old weight_norm"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_networks_with_changed_weights_are_counted(change: Callable[[nn.Module], Any]) -> None:
    layer = nn.Conv2d(3, 4, 3)
    change(layer)
    kept = copy.deepcopy(layer.state_dict())
    found = complexity(layer, (3, 8, 8))
    assert found.macs == 3 * 4 * 9 * 36
    assert found.params == sum(p.numel() for p in layer.parameters())
    torch.testing.assert_close(layer.state_dict(), kept, rtol=0, atol=0)
    assert layer(torch.randn(1, 3, 8, 8)).shape == (1, 4, 6, 6)


def test_meta_copy_has_the_structure_and_no_memory() -> None:
    model = get_model("ResNet18")()
    model.features[0].requires_grad_(False)
    duplicate, _ = meta_copy(model)
    assert [n for n, _ in duplicate.named_modules()] == [n for n, _ in model.named_modules()]
    for (name, a), (other, b) in zip(duplicate.named_parameters(), model.named_parameters(), strict=True):
        assert (name, a.shape, a.requires_grad, a.is_meta) == (other, b.shape, b.requires_grad, True)
    assert all(b.is_meta for b in duplicate.buffers())


def test_building_on_meta_allocates_no_parameters() -> None:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shared = nn.Parameter(torch.empty(3, 3))
            self.a, self.b = shared, shared
            self.fixed = torch.arange(3).tolist()
            self.register_buffer("table", torch.ones(2))

    with building_on_meta():
        model = get_network("VGG16", image_size=224, num_classes=1000).build()
        made = Made()
    assert all(p.is_meta for p in model.parameters())
    assert made.a is made.b
    assert made.a.is_meta
    assert made.fixed == [0, 1, 2]
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_counting_vgg16_needs_no_memory_for_its_weights() -> None:
    code = """
import resource
import sys
from cnnbench.counting.complexity import complexity
from cnnbench.counting.meta_copy import building_on_meta
from cnnbench.network import get_network

def peak_mib(name):
    network = get_network(name)
    with building_on_meta():
        model = network.build()
    cost = complexity(model, network.image_shape)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return cost.params, kib / 1024

_, before = peak_mib("torchvision:squeezenet1_1")  # a network of 5 MiB
params, after = peak_mib("torchvision:vgg19_bn")
print(4 * params / 2**20, after - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    weights_mib, growth_mib = map(float, done.stdout.split())
    assert weights_mib > 500
    assert growth_mib < 50


class _Out(NamedTuple):
    logits: Tensor
    extra: dict


@dataclasses.dataclass
class _DataOut:
    logits: Tensor


@pytest.mark.parametrize("wrap", [lambda t: _Out(t, {}), _DataOut, lambda t: {"a": [t]}, lambda t: (None, t)])
def test_outputs_of_any_kind_lead_back(wrap: Callable[[Tensor], Any]) -> None:
    found = complexity(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), _Module(wrap)), (4,))
    assert found.train_macs == 2 * 20 + 3 * 30


def test_a_network_without_a_way_back_says_so() -> None:
    found = complexity(nn.Sequential(nn.Linear(4, 5), _Module(torch.no_grad()(lambda x: 2 * x))), (4,))
    assert found.train_macs == 20
    assert any("no output of the network leads back" in line for line in found.remarks)
    with pytest.raises(UserError, match="its forward returns no tensor"):
        complexity(_Module(lambda x: None), (4,))


def _replaced(model: nn.Sequential) -> nn.Module:
    forward = model.forward
    model.forward = lambda x: forward(x)  # type: ignore[method-assign]
    return model


def _compiled_method(model: nn.Sequential) -> nn.Module:
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    return model


def _closed_over(model: nn.Sequential) -> nn.Module:
    holder = nn.Module()
    holder.model = model
    holder.forward = lambda x: model(x)  # type: ignore[method-assign]
    return holder


class _Child(nn.Module):
    """Leaves the work to its parent, of which it holds a weak reference."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x: Tensor) -> Tensor:
        parent = self.parent()
        assert isinstance(parent, nn.Sequential)
        return parent[2](parent[1](parent[0](x)))


def _weakly_held(model: nn.Sequential) -> nn.Module:
    model.child = _Child(model)
    model.forward = lambda x: model.child(x)  # type: ignore[method-assign,operator]
    return model


@pytest.mark.parametrize("change", [_replaced, _compiled_method, _closed_over, _weakly_held])
def test_functions_that_hold_the_network_get_the_copy(change: Callable[[nn.Sequential], nn.Module]) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    expected = complexity(plain, (3, 8, 8))
    model = change(plain)
    model.train()
    found = complexity(model, (3, 8, 8))
    assert (found.macs, found.train_macs, found.params) == (expected.macs, expected.train_macs, expected.params)
    assert plain[1].num_batches_tracked == 0
    assert all(p.grad is None for p in model.parameters())
    assert not plain[0]._forward_hooks


def test_hooks_of_others_do_not_see_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder:
        seen = 0

        def note(self, module: nn.Module, *inputs: Any) -> None:
            Recorder.seen += 1

    model = nn.Sequential(nn.Linear(3, 3))
    model[0].register_forward_hook(Recorder().note)
    handle = nn.modules.module.register_module_forward_hook(Recorder().note)
    try:
        found = complexity(model, (3,))
    finally:
        handle.remove()
    assert Recorder.seen == 0
    assert found.uncounted == ("forward_hook of 0", "global forward hook of all modules")


class _Odd(nn.Module):
    """What a network may hold: a lock, a module of Python, a state between calls, a constant without a device."""

    def __init__(self, cfg: list[int]) -> None:
        super().__init__()
        self.cfg = cfg
        self.lock = threading.Lock()
        self.math = math
        self.state: Tensor | None = None
        self.layer = nn.Linear(4, cfg[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cfg": list(self.cfg)}

    def forward(self, x: Tensor) -> Tensor:
        assert self.layer.out_features == self.cfg[0]
        with self.lock, contextlib.suppress(ValueError):
            _fail(x)
        y = self.layer(x) + torch.arange(float(self.cfg[0]))
        self.state = y if self.state is None else self.state + y
        np.random.rand()
        return self.state * self.math.pi


def _fail(x: Tensor) -> None:
    raise ValueError(x.shape)


def test_odd_networks_are_counted_and_left_alone() -> None:
    model = nn.ModuleList(_Odd([n]) for n in (2, 3, 5, 6))
    before = np.random.get_state()[2]
    for odd in model:
        found = complexity(odd, (4,))
        assert (found.macs, found.train_macs) == (4 * odd.cfg[0], 8 * odd.cfg[0])
        assert odd.state is None
        assert found.uncounted == ("what a lock of the network does, which cannot be copied and is shared",)
    assert np.random.get_state()[2] == before


def test_inference_mode_hides_nothing() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(self.layers(x), torch.ones(5, 2, device=x.device))

    found = complexity(Network(), (3, 8, 8))
    assert (found.macs, found.uncounted) == (3 * 4 * 9 * 36 + 144 * 5 + 10, ())
    with torch.inference_mode():
        assert complexity(nn.Linear(3, 4), (3,)).train_macs == 24


def test_a_constructor_that_computes_with_weights_is_built_with_them(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scaled.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(6, 2)\n"
        "        self.scale = self.weight.abs().mean().item()\n\n"
        "    def forward(self, x):\n"
        "        print('forward')\n"
        "        return super().forward(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    (found,) = _json(capsys, "scaled:Net", "--image_size=6")
    assert found["macs"] == 3 * 6 * 6 * 2
    assert found["remarks"] == ["built with its weights, because its constructor computes with them"]


class _BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * grad.sum().item()


@pytest.mark.filterwarnings("ignore:.*jit.script.*")
def test_scripted_networks_are_refused() -> None:
    with pytest.raises(UserError, match="0 is a scripted module"):
        complexity(nn.Sequential(torch.jit.script(nn.Linear(8, 3))), (3, 8, 8))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(8, 3), _Module(_BadBackward.apply)), "it needs the values of a tensor"),
        (nn.LazyLinear(3), "lazy layers"),
        (_Module(lambda x: "text"), "returns no tensor"),
    ],
)
def test_networks_that_cannot_be_counted_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        complexity(model, (3, 8, 8))
    with pytest.raises(UserError, match="must be channels and extents"):
        complexity(nn.Linear(8, 3), (3, -8, 8))


# Refusals.


def test_a_network_that_does_not_fit_the_images_is_refused_with_its_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(5, 4, 3)))
    with pytest.raises(UserError, match=r"images of 3x8x8: in 1\.0: RuntimeError: "):
        complexity(model, (3, 8, 8))


def test_a_network_that_cannot_train_on_the_images_is_counted_in_inference(capsys: pytest.CaptureFixture[str]) -> None:
    inception = ["count", "torchvision:inception_v3", "--image_size=224"]
    assert main(inception) == 2
    assert "on images of 3x224x224 in training (batch of 2): in AuxLogits" in capsys.readouterr().err
    assert main([*inception, "--no_training", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["networks"]
    assert found["macs"] > 0
    assert found["train_macs"] is None
    assert main([*inception, "--no_training", "--per_layer"]) == 0


def test_a_network_that_needs_values_is_refused() -> None:
    with pytest.raises(UserError, match="needs the values of a tensor"):
        complexity(_Module(lambda x: x[: int(x.sum().item())]), (3, 8, 8))


# The command.


# At 224x224 with 1000 classes: from the layer shapes; they agree with torchvision's published `_ops`.
GOLD = [
    ("torchvision:alexnet", [], 61_100_840, 714_188_480),
    ("torchvision:vgg16", [], 138_357_544, 15_470_264_320),
    ("torchvision:vgg16_bn", [], 138_365_992, 15_470_264_320),
    ("torchvision:googlenet(aux_logits=False)", [], 6_624_904, 1_498_376_192),
    ("torchvision:googlenet", [], 13_004_888, 1_498_376_192),
    ("torchvision:resnet18", [], 11_689_512, 1_814_073_344),
    ("torchvision:resnet34", [], 21_797_672, 3_663_761_408),
    ("torchvision:resnet50", [], 25_557_032, 4_089_184_256),
    ("torchvision:resnet101", [], 44_549_160, 7_801_405_440),
    ("torchvision:resnet152", [], 60_192_808, 11_513_626_624),
    ("torchvision:densenet121", [], 7_978_856, 2_834_161_664),
    ("torchvision:densenet169", [], 14_149_480, 3_359_843_328),
    ("torchvision:densenet201", [], 20_013_928, 4_291_365_888),
    ("torchvision:efficientnet_b0", [], 5_288_548, 385_814_752),
    ("torchvision:mobilenet_v2", [], 3_504_872, 300_774_272),
    ("VGG16", ["--image_size=224", "--num_classes=1000"], 138_357_544, 15_470_264_320),
    ("VGG16(batch_norm=True)", ["--image_size=224", "--num_classes=1000"], 138_365_992, 15_470_264_320),
    ("ResNet18", ["--image_size=224", "--num_classes=1000"], 11_689_512, 1_814_073_344),
    ("MobileNetV1", ["--image_size=224", "--num_classes=1000"], 4_231_976, 568_740_352),
    ("LeNet5", ["--in_channels=1"], 61_706, 416_520),
    ("SimpleCNN", ["--in_channels=1", "--image_size=28"], 93_322, 5_682_304),
    ("VGG16", [], 14_728_266, 313_201_664),
    ("ResNet18", [], 11_173_962, 555_422_720),
    ("MobileNetV1", [], 3_217_226, 46_354_432),
]
FIELDS = {
    "torchvision:alexnet": {"size": 195, "jump": 32, "start": 31.5},
    "torchvision:vgg16": {"size": 212, "jump": 32, "start": 16},
    "torchvision:resnet18": {"size": 435, "jump": 32, "start": 0.5},
    "torchvision:resnet50": {"size": 427, "jump": 32, "start": 0.5},
    "MobileNetV1": {"size": 315, "jump": 32, "start": 0.5},
    "SimpleCNN": {"size": 22, "jump": 8, "start": 4},
    "torchvision:efficientnet_b0": "image",  # squeeze and excitation
}


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["count", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["networks"]


@pytest.mark.parametrize(("model", "options", "params", "macs"), GOLD)
def test_the_command_gives_the_published_counts(
    model: str, options: list[str], params: int, macs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = _json(capsys, model, *options)
    assert (found["params"], found["macs"], found["flops"]) == (params, macs, 2 * macs)
    assert found["batch_linear"]
    assert found["uncounted"] == []
    if model in FIELDS and options != []:
        assert found["receptive_field"] == FIELDS[model]
    if model == "torchvision:googlenet":
        assert found["train_forward_macs"] == 1_506_748_416  # with the auxiliary heads


@pytest.mark.parametrize("model", [m for m in FIELDS if m.startswith("torchvision")])
def test_receptive_fields_are_the_published_ones(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(capsys, model)[0]["receptive_field"] == FIELDS[model]


def test_per_layer_fields_of_alexnet_and_lenet(capsys: pytest.CaptureFixture[str]) -> None:
    alexnet, lenet = _json(capsys, "torchvision:alexnet", "LeNet5", "--per_layer")
    fields = [layer["receptive_field"] for layer in alexnet["layers"] if layer["type"] in ("Conv2d", "MaxPool2d")]
    assert [field["size"] for field in fields] == [11, 19, 51, 67, 99, 131, 163, 195]
    c5 = next(layer for layer in lenet["layers"] if layer["params"] in (48_120, 30_840))  # 400 (or 256) x 120 + 120
    assert c5["receptive_field"] == {"size": 32, "jump": 4, "start": 16}


def test_max_pool_after_a_3x3_stem_leaves_a_quarter() -> None:
    # Same parameters as ResNet18's form for CIFAR, four times fewer MACs: parameters alone identify nothing.
    model = get_model("ResNet18")()
    assert isinstance(model.features, nn.Sequential)
    model.features.insert(1, nn.MaxPool2d(3, 2, 1))
    found = complexity(model, (3, 32, 32))
    assert (found.params, found.macs) == (11_173_962, 140_186_624)


def test_the_command_takes_networks_from_everywhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\n"
        "def tiny(num_classes=4, width=2):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(), nn.Linear(width * 36, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    found = _json(capsys, "mine:tiny", "mine:tiny(width=3)", "--image_size=8", "--num_classes=5")
    assert [f["params"] for f in found] == [3 * 2 * 9 + 2 + 72 * 5 + 5, 3 * 3 * 9 + 3 + 108 * 5 + 5]
    timm, torchvision = _json(capsys, "timm:resnet18", "torchvision:resnet18", "--num_classes=10", "--in_channels=1")
    assert timm["params"] == torchvision["params"] == 11_689_512 - 990 * 513 - 2 * 49 * 64
    assert timm["macs"] == torchvision["macs"]


def test_the_table_shows_exact_counts_layers_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "LeNet5", "--in_channels=1", "--per_layer", "--batch_size=8", "--precision=bf16-mixed"]) == 0
    shown = capsys.readouterr().out
    for text in ("61,706", "416,520", "833,040", "features.0", "Conv2d", "100.00", "8 images, bf16-mixed", "1 MAC = "):
        assert text in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ResNet19"], "unknown model 'ResNet19'; did you mean 'ResNet18'?"),
        (["torchvision:resnet19"], "unknown torchvision model 'resnet19'; did you mean 'resnet1"),
        (["timm:resnet19x"], "unknown timm model 'resnet19x'"),
        (["nowhere:net"], "cannot import 'nowhere' of model 'nowhere:net'"),
        (["torch.nn:Convv"], "unknown callable of module 'torch.nn': 'Convv'; did you mean 'Conv"),
        (["torch.nn:ReLU", "--num_classes=3"], "takes no num_classes"),
        (["json:dumps(obj=1)"], "'json:dumps(obj=1)' made a str, not a torch.nn.Module"),
        (["torch:ones(size=(3,))"], "'torch:ones(size=(3,))' is a function that is not written in Python"),
        (["json:dumps"], "cannot build model 'json:dumps'"),
        (["ResNet18(width)"], "cannot read the arguments of model 'ResNet18(width)'"),
        (["ResNet18(widht=3)"], "unknown argument of model 'ResNet18(widht=3)': 'widht'; valid: form,"),
        (["ResNet18", "--image_size=0"], "image_size 0 must be at least 1"),
        (["ResNet18", "--image_size=4"], "images of 4x4 pixels are too small for ResNet18"),
        (["ResNet18", "--image_size=99999999999"], "cannot count ResNet18 on images of 3x99999999999x99999999999"),
        (["ResNet18(form=foo)"], "unknown form 'foo'; valid: auto, cifar, imagenet"),
        (["ResNet18(form=cifar, form=auto)"], "cannot read the arguments of model"),
        (["LeNet5(num_classes=1.5)"], "num_classes 1.5"),
        (["torchvision:resnet18(weights=DEFAULT)"], "leave out weights"),
        ([":ResNet18"], "cannot import ''"),
        ([".mine:net"], "cannot import '.mine' of model '.mine:net'"),
        (["torch.nn:Conv2d"], "give arguments in brackets"),
        (["ResNet18(num_classes=3)", "--num_classes=4"], "says num_classes=3 and --num_classes says 4"),
        (["ResNet18", "--batch_size=0"], "batch_size 0 must be at least 1"),
        (
            ["torchvision:inception_v3", "--batch_size=1"],
            "on images of 3x299x299 in training (batch of 1): in AuxLogits.conv1.bn: ValueError: Expected more",
        ),
        (["ResNet18", "--precision=bf16-mixed"], "add --batch_size"),
        (["torchvision:vit_b_16", "--image_size=100"], "cannot build model 'torchvision:vit_b_16'"),
        (["torchvision:alexnet", "--image_size=20"], "cannot count AlexNet on images of 3x20x20"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_figures_are_plain_json() -> None:
    found = complexity(nn.Conv2d(3, 4, 3), (3, 8, 8))
    assert isinstance(found, Complexity)
    assert json.loads(json.dumps(found.figures())) == found.figures()
