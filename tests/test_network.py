"""Any network by name: what names mean, and how networks from elsewhere become classifiers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnbench.errors import UserError
from cnnbench.names import parse_name
from cnnbench.network import External, get_network, make_classifier

MODULE = """
import torch
from torch import nn
from cnnbench.training.classifier import ImageClassifier

def small(num_classes=10, in_channels=3):
    layers = nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, num_classes))

def takes_any(**options):
    return small(**options)

def changes_dtype():
    torch.set_default_dtype(torch.float64)
    return small()

def changes_settings():
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.manual_seed(99)
    torch.set_grad_enabled(False)
    return small()

class Averages(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))

class Views(Averages):
    def forward(self, x):
        return self.conv(x).view(len(x), -1)[:, :10]

class Frozen(Averages):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)

class Exits(Averages):
    def forward(self, x):
        raise SystemExit(3)

class Dictionary(Averages):
    def forward(self, x):
        return {"logits": self.conv(x)}

SHARED = small()

def shared():
    return SHARED

class Twice(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.layers = small(num_classes)

    def forward(self, x):
        return self.layers(x), self.layers(x)

class Own(ImageClassifier):
    peak_lr = 0.25

    def __init__(self, **options):
        super().__init__(**options)
        self.features = nn.Conv2d(self.in_channels, 4, 3)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, self.num_classes))
"""


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    Path("elsewhere.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("elsewhere", None)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A", {}),
        ("A(b=5x5, c=cifar,d=0.5)", {"b": "5x5", "c": "cifar", "d": 0.5}),
        (
            "A(b=true,c=False,d=no,e=on,f=null,g=None)",
            {"b": True, "c": False, "d": False, "e": True, "f": None, "g": None},
        ),
        ("A(w=(1, 2),x=-1e-3,y=[a],z='q,r')", None),
        ("A(w=(1, 2),x=-1e-3,z='q,r')", {"w": (1, 2), "x": -0.001, "z": "q,r"}),
        ("A(1)", None),
        ("A(b=1,b=2)", None),
        ("A(b=1", None),
        ("A(b=__import__('os'))", None),
    ],
)
def test_arguments_are_read_as_they_are_written(text: str, values: dict | None) -> None:
    if values is None:
        with pytest.raises(UserError, match="cannot read"):
            parse_name(text)
    else:
        assert parse_name(text) == ("A", values)


def test_a_word_for_false_is_false() -> None:
    for word in ("false", "False", "no", "off"):
        model = make_classifier(f"VGG11(batch_norm={word})", 10, 3, 32)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_learning_rate_of_a_name_holds() -> None:
    assert make_classifier("LeNet5(learning_rate=0.5)", 10, 3, 32, learning_rate=None).learning_rate == 0.5
    with pytest.raises(UserError, match=r"says learning_rate=0.5 and --learning_rate says 0.1"):
        make_classifier("LeNet5(learning_rate=0.5)", 10, 3, 32, learning_rate=0.1)


def test_trying_a_network_leaves_no_trace() -> None:
    network = get_network("elsewhere:small")  # imports the module, which draws numbers too
    torch.manual_seed(0)
    state = torch.get_rng_state()
    plain = network.build()
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    model = External("elsewhere:small")
    assert torch.equal(torch.get_rng_state(), after)
    assert model.training
    for a, b in zip(plain.state_dict().values(), model.features.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_callables_get_what_they_take() -> None:
    assert make_classifier("elsewhere:takes_any", 7, 1, 32)(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert make_classifier("torchvision.models:resnet18", 7, 3, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(UserError, match="unexpected keyword argument 'depth'"):
        make_classifier("elsewhere:takes_any(num_classes=7,depth=3)", 7, 1, 32)


def test_two_builds_never_share_weights() -> None:
    first = make_classifier("elsewhere:shared", 10, 3, 32)
    with pytest.raises(UserError, match="'elsewhere:shared' made the same network twice"):
        make_classifier("elsewhere:shared", 10, 3, 32)
    assert first.training


def test_a_network_leaves_the_default_number_format() -> None:
    model = get_network("elsewhere:changes_dtype").build()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert torch.get_default_dtype() == torch.float32


def test_a_network_leaves_threads_seed_and_gradients() -> None:
    threads, seed = torch.get_num_threads(), torch.initial_seed()
    get_network("elsewhere:changes_settings").build()
    assert (torch.get_num_threads(), torch.initial_seed(), torch.is_grad_enabled()) == (threads, seed, True)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Views", "use flatten\\(1\\) or reshape"),
        ("Frozen", "it has nothing to train"),
        ("Exits", "SystemExit: 3"),
        ("Dictionary", "the network returns a dict"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_its_name(attribute: str, message: str) -> None:
    with pytest.raises(UserError, match=f"model 'elsewhere:{attribute}'.*{message}"):
        make_classifier(f"elsewhere:{attribute}", 10, 3, 32)


def test_several_outputs_are_logits_first() -> None:
    model = make_classifier("elsewhere:Twice", 10, 3, 32)
    x = torch.zeros(2, 3, 32, 32)
    assert len(model(x)) == 2
    assert model.eval()(x).shape == (2, 10)


def test_a_classifier_of_the_user_s_keeps_its_training_code() -> None:
    model = make_classifier("elsewhere:Own", 7, 1, 32)
    assert type(model).__name__ == "Own"
    assert model.learning_rate == 0.25
    assert make_classifier("elsewhere:Own", 7, 1, 32, learning_rate=0.5).learning_rate == 0.5
    with pytest.raises(UserError, match=r"recipe 'sgd'.*'elsewhere:Own' has training code of its own"):
        make_classifier("elsewhere:Own", 7, 1, 32, recipe="sgd")


def test_external_needs_a_source() -> None:
    with pytest.raises(UserError, match="'LeNet5' names no network from elsewhere"):
        External("LeNet5")


@pytest.mark.parametrize("name", ["os:_exit(status=0)", "gc:collect", "builtins:print", "os:getcwd"])
def test_functions_of_python_itself_are_not_called(name: str) -> None:
    with pytest.raises(UserError, match="is a function that is not written in Python, which makes no network"):
        get_network(name)
