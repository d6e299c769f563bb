"""MuonSGD, against torch's own Muon and SGD."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from cnnbench.benchmark.plan import RECIPE_NAMES
from cnnbench.errors import UserError
from cnnbench.models import get_model
from cnnbench.optimizers import RECIPES, MuonSGD, orthogonalise
from cnnbench.training.classifier import RecipeName


def _stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: Sequence[Tensor]) -> Tensor:
    for gradient in gradients:
        parameter.grad = gradient.view_as(parameter)
        optimizer.step()
    return parameter.detach().flatten(1)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (40, 2, 3, 3)], ids=["wide", "tall"])
def test_filters_are_stepped_as_by_torchs_muon(shape: tuple[int, ...]) -> None:
    gen = torch.Generator().manual_seed(0)
    start = torch.randn(*shape, generator=gen)
    gradients = [torch.randn(*shape, generator=gen).flatten(1) for _ in range(4)]
    filters, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    ours = MuonSGD([filters], lr=0.1, momentum=0.6, newton_schulz_steps=5, unit_filters=False)
    theirs = torch.optim.Muon([matrix], lr=0.1 / max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5, momentum=0.6,
                              weight_decay=0.0, nesterov=True, ns_steps=5)  # fmt: skip
    found, expected = _stepped(ours, filters, gradients), _stepped(theirs, matrix, gradients)
    moved = (expected - start.flatten(1)).norm()
    assert (found - expected).norm() < 0.02 * moved  # theirs iterates in bfloat16


def test_matrices_and_vectors_are_stepped_as_by_sgd() -> None:
    gen = torch.Generator().manual_seed(0)
    head, offset = (nn.Parameter(torch.randn(*shape, generator=gen)) for shape in ((10, 7), (7,)))
    twins = [nn.Parameter(p.detach().clone()) for p in (head, offset)]
    ours = MuonSGD([head, offset], matrix_lr=0.2, vector_lr=0.3, sgd_momentum=0.85, weight_decay=0.1)
    groups = [{"params": [twins[0]], "lr": 0.2, "weight_decay": 0.1}, {"params": [twins[1]], "lr": 0.3}]
    theirs = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    for _ in range(3):
        for p, twin in zip((head, offset), twins, strict=True):
            p.grad = torch.randn(p.shape, generator=gen)
            twin.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for p, twin in zip((head, offset), twins, strict=True):
        torch.testing.assert_close(p, twin)


def test_singular_values_come_near_one_and_singular_vectors_stay() -> None:
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalise(matrix, 5) @ v.T
    assert values.max() / values.min() > 3
    assert inside.diag().min() > 0.65
    assert inside.diag().max() < 1.25
    assert (inside - inside.diag().diag()).abs().max() < 1e-3


def test_filters_keep_their_length_where_asked() -> None:
    filters = nn.Parameter(torch.randn(6, 4, 3, 3) * 9)
    optimizer = MuonSGD([filters], lr=0.0)
    filters.grad = torch.randn_like(filters)
    optimizer.step()
    assert filters.square().sum().item() == pytest.approx(6, rel=1e-4)


def test_state_survives_a_checkpoint() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)

    def run(steps: int, optimizer: MuonSGD, net: nn.Module) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()

    net = get_model("SpeedNet")()
    optimizer = net.make_optimizer()
    assert isinstance(optimizer, MuonSGD)
    run(2, optimizer, net)
    twin = get_model("SpeedNet")()
    twin.load_state_dict(net.state_dict())
    resumed = MuonSGD(twin.parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(2, optimizer, net)
    run(2, resumed, twin)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6 + 6 + 1  # filters, offsets, classifier


def test_groups_with_options_of_their_own_are_refused() -> None:
    with pytest.raises(UserError, match="MuonSGD makes its own groups; leave out lr"):
        MuonSGD([{"params": [torch.zeros(2, 2, requires_grad=True)], "lr": 0.1}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr -1.0 of MuonSGD must be a number of at least 0"),
        ({"momentum": 1.0}, r"momentum 1.0 of MuonSGD must be in \[0, 1\)"),
        ({"newton_schulz_steps": 0}, "newton_schulz_steps 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MuonSGD([torch.zeros(2, 2, requires_grad=True)], **options)  # type: ignore[arg-type]


def test_recipe_muon_refuses_a_network_with_convolutions_that_are_not_normalised() -> None:
    with pytest.raises(UserError, match=r"'muon'.*LeNet5.*recipe 'sgd'"):
        get_model("LeNet5")(recipe="muon").make_optimizer()


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("muon", MuonSGD)])
def test_a_recipe_by_name_sets_optimizer_rate_and_words(name: RecipeName, kind: type) -> None:
    model = get_model("ResNet18")(recipe=name)
    assert isinstance(model.make_optimizer(), kind)
    assert model.learning_rate == RECIPES[name].peak_lr
    assert model.training_words.startswith(RECIPES[name].words)
    assert model.training_words.endswith(f"label smoothing {RECIPES[name].label_smoothing:g}")


@pytest.mark.parametrize("own", [0.0, 0.2])
def test_label_smoothing_of_ones_own_stands_before_that_of_a_recipe(own: float) -> None:
    model = get_model("ResNet18")(recipe="muon", label_smoothing=own)
    assert model.training_words.endswith(f"label smoothing {own:g}")


def test_every_recipe_has_a_name_that_bench_and_fit_accept() -> None:
    assert tuple(RECIPES) == RECIPE_NAMES == get_args(RecipeName)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_copies_and_checkpoints_keep_the_number_format_of_the_products(bfloat16: bool) -> None:
    filters = torch.randn(8, 4, 3, 3, requires_grad=True)
    optimizer = MuonSGD([filters], bfloat16=bfloat16)
    resumed = MuonSGD([filters], bfloat16=not bfloat16)
    resumed.load_state_dict(optimizer.state_dict())
    for other in (copy.deepcopy(optimizer), resumed):
        assert other.param_groups[0]["bfloat16"] is bfloat16


def test_a_checkpoint_from_before_the_choice_goes_on_in_float32() -> None:
    torch.manual_seed(0)
    filters = torch.randn(8, 4, 3, 3)
    ends = []
    for drop in (True, False):
        parameter = filters.clone().requires_grad_()
        optimizer = MuonSGD([parameter], bfloat16=drop)
        state = optimizer.state_dict()
        if drop:
            del state["param_groups"][0]["bfloat16"]
        optimizer.load_state_dict(state)
        parameter.grad = torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
        optimizer.step()
        ends.append(parameter.detach())
    assert torch.equal(*ends)
