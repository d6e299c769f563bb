"""The memory of a training step against what can be worked out by hand, and against a real step."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from cnnbench import hardware
from cnnbench.commands import count
from cnnbench.counting import memory
from cnnbench.counting.dry_run import DryRun, Listener
from cnnbench.counting.memory import training_memory
from cnnbench.errors import UserError
from cnnbench.models import get_model
from cnnbench.network import make_classifier
from cnnbench.verification.memory import _compare, measure

MAP = 2 * 4 * 8 * 8 * 4  # 2 images, 4 channels, 8x8 pixels, 4 bytes


def _net(inplace: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.ReLU(inplace=inplace),
    )


def test_parts_are_what_they_are_by_hand() -> None:
    found = training_memory(_net(inplace=True), (3, 8, 8), 2)
    weights = 4 * (3 * 4 * 9 + 4 * 4 * 9)
    assert (found.parameter_bytes, found.gradient_bytes, found.optimizer_bytes) == (weights, weights, 2 * weights)
    assert found.input_bytes == 2 * 3 * 64 * 4
    assert found.activation_bytes == 2 * MAP  # of each ReLU, whose memory is that of the convolution
    # Backward of the second convolution: both maps, the gradients of the output, of the last ReLU and of the input of
    # the convolution, and that of its weight.
    fixed = found.parameter_bytes + found.optimizer_bytes + found.input_bytes
    assert found.peak_bytes == fixed + 5 * MAP + 4 * 4 * 4 * 9


def test_maps_that_are_not_needed_go() -> None:
    in_place, apart = (training_memory(_net(inplace), (3, 8, 8), 2) for inplace in (True, False))
    assert in_place.activation_bytes == apart.activation_bytes
    sigmoid = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid())
    gelu = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU())
    kept = [training_memory(model, (3, 8, 8), 2).activation_bytes for model in (sigmoid, gelu)]
    assert kept == [MAP, 2 * MAP]  # a sigmoid's gradient needs its output, GELU's its input; the output is there too


def test_mixed_precision_halves_maps_and_casts_weights() -> None:
    full, half = (training_memory(_net(True), (3, 8, 8), 2, p) for p in ("32-true", "bf16-mixed"))
    casts = full.parameter_bytes // 2 + full.input_bytes // 2
    assert half.activation_bytes == full.activation_bytes // 2 + casts
    assert half.parameter_bytes == full.parameter_bytes


def test_optimizers_and_frozen_layers() -> None:
    model = _net(True)
    states = [
        training_memory(model, (3, 8, 8), 2, optimizer=o).optimizer_bytes for o in ("sgd", "sgd-momentum", "adamw")
    ]
    size = training_memory(model, (3, 8, 8), 2).parameter_bytes
    assert states == [0, size, 2 * size]
    model[0].requires_grad_(False)
    frozen = training_memory(model, (3, 8, 8), 2)
    assert frozen.gradient_bytes == 4 * 4 * 4 * 9
    with pytest.raises(UserError, match="unknown precision 'fp8'"):
        training_memory(model, (3, 8, 8), 2, "fp8")
    with pytest.raises(UserError, match="unknown optimizer 'lion'"):
        training_memory(model, (3, 8, 8), 2, optimizer="lion")


def test_the_command_offers_what_the_estimate_knows() -> None:
    hints = get_type_hints(count.Options)  # each a Literal or None
    choices = {name: get_args(get_args(hints[name])[0]) for name in ("precision", "optimizer")}
    assert choices == {"precision": memory.STEP_PRECISIONS, "optimizer": tuple(memory.STATES_PER_WEIGHT)}


def test_activations_grow_with_the_batch() -> None:
    model = get_model("ResNet18")()
    small, large = (training_memory(model, (3, 32, 32), batch) for batch in (8, 16))
    assert small.parameter_bytes == large.parameter_bytes == 4 * 11_173_962
    assert large.activation_bytes == pytest.approx(2 * small.activation_bytes, rel=0.01)
    assert next(model.parameters()).grad is None


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_estimate_is_close_to_what_torch_allocates(precision: str) -> None:
    row = _compare("SimpleCNN", 64, precision, torch.device("cpu"))  # measured in a fresh process
    # without bfloat16 instructions torch's convolutions work on copies in float32, which the estimate does not have
    most = 1.1 if precision == "32-true" or hardware.cpu_has_bf16() else 1.5
    assert 0.95 < row["measured_allocated_bytes"] / row["peak_bytes"] < most
    assert row["measured_resident_bytes"] > 0


def test_networks_that_cannot_train_are_refused_in_one_line() -> None:
    message = (
        r"cannot estimate the memory of Sequential on images of 4x1x1 in training \(batch of 1\): in 0: ValueError"
    )
    with pytest.raises(UserError, match=message):
        training_memory(nn.Sequential(nn.BatchNorm2d(4)), (4, 1, 1), 1)
    with pytest.raises(UserError, match="batch_size 0 must be at least 1"):
        training_memory(_net(True), (3, 8, 8), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_estimate_is_close_to_what_a_gpu_allocates(precision: str) -> None:
    model = get_model("ResNet18")()
    estimate = training_memory(model, (3, 32, 32), 256, precision).peak_bytes
    measured = measure("ResNet18", 256, precision, torch.device("cuda"))["allocated"]
    assert 0.9 < measured / estimate < 1.25


def test_the_estimate_prints_nothing_and_shares_nothing(capfd: pytest.CaptureFixture) -> None:
    """A network may keep tensors in objects of its own, which torch would complain about when it copies them."""
    model = make_classifier("LeNet5", 10, 3, 32)
    sums = model._outcomes._sums
    run = DryRun(model, (3, 32, 32), Listener(), "estimate", "cpu")
    assert run.left_out == ()
    assert run.model._outcomes is not model._outcomes
    assert model._outcomes._sums is sums
    training_memory(model, (3, 32, 32), 2)
    assert capfd.readouterr() == ("", "")
