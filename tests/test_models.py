"""Every listed network against published counts, torchvision's networks and what any classifier must do."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import pytest
import torch
import torchvision
from torch import nn

import cnnbench.models
from cnnbench.classifier import ImageClassifier, TimeBudget, lr_factor
from cnnbench.data import get_data
from cnnbench.errors import UserError
from cnnbench.measure.complexity import complexity
from cnnbench.models import all_models, get_model

MODELS = sorted(all_models())

# Parameters and MACs from the layer shapes of the papers; they agree with torchvision's published figures where it has
# the network. (model, options, channels, size, parameters, MACs)
PUBLISHED = [
    ("LeNet5", {"in_channels": 1}, 32, 61_706, 416_520),
    ("SimpleCNN", {"in_channels": 1}, 28, 93_322, 5_682_304),
    ("VGG16", {}, 32, 14_728_266, 313_201_664),
    ("VGG16", {"num_classes": 1000}, 224, 138_357_544, 15_470_264_320),
    ("VGG16", {"num_classes": 1000, "batch_norm": True}, 224, 138_365_992, 15_470_264_320),
    ("ResNet18", {}, 32, 11_173_962, 555_422_720),
    ("ResNet18", {"num_classes": 1000}, 224, 11_689_512, 1_814_073_344),
    ("MobileNetV1", {}, 32, 3_217_226, 46_354_432),
    ("MobileNetV1", {"num_classes": 1000}, 224, 4_231_976, 568_740_352),
]


@pytest.mark.parametrize(("name", "options", "size", "params", "macs"), PUBLISHED)
def test_complexity_is_the_published_one(name: str, options: dict, size: int, params: int, macs: int) -> None:
    with torch.device("meta"):
        model = get_model(name)(image_size=size, **options)
    found = complexity(model, (options.get("in_channels", 3), size, size))
    assert (found.params, found.macs, found.flops) == (params, macs, 2 * macs)


def _small(name: str, **options: int) -> ImageClassifier:
    torch.manual_seed(0)
    return get_model(name)(**options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_forward_gives_finite_logits_and_gradients(name: str, channels: int) -> None:
    model = _small(name, in_channels=channels, num_classes=7)
    logits = model(torch.randn(4, channels, 32, 32))
    assert logits.shape == (4, 7)
    logits.logsumexp(1).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", MODELS)
def test_eval_is_deterministic_and_independent_of_the_batch(name: str) -> None:
    model = _small(name).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together = model(x)
        assert torch.equal(together, model(x))
        alone = torch.cat([model(image[None]) for image in x])
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_activations_neither_vanish_nor_explode(name: str) -> None:
    model = _small(name).train()
    stds: dict[str, float] = {}
    for key, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda _, __, out, key=key: stds.update({key: float(out.detach().std())}))
    model(torch.randn(32, 3, 32, 32))
    assert all(0.1 < std < 10 for std in stds.values()), stds


@pytest.mark.parametrize("name", MODELS)
def test_an_image_too_small_is_refused(name: str) -> None:
    smallest = get_model(name).min_image_size
    get_model(name)(image_size=smallest).eval()(torch.zeros(1, 3, smallest, smallest))
    with pytest.raises(
        UserError, match=rf"{smallest - 1}x{smallest - 1} .*too small for {name}.*{smallest}x{smallest}"
    ):
        get_model(name)(image_size=smallest - 1)
    with pytest.raises(UserError, match="too small"):
        get_model(name)()(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("name", MODELS)
def test_docstring_names_the_source(name: str) -> None:
    text = get_model(name).__doc__ or ""
    assert re.search(r"\b(19|20)\d\d\b|course", text.splitlines()[0])
    assert name == "SimpleCNN" or "Differences from the paper" in text


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies a state by position, which must agree in every shape."""
    values = source.state_dict().values()
    keys = target.state_dict().keys()
    target.load_state_dict(dict(zip(keys, values, strict=True)))


@pytest.mark.parametrize(
    ("name", "options", "reference"),
    [
        ("VGG16", {"form": "imagenet"}, "vgg16"),
        ("VGG16", {"form": "imagenet", "batch_norm": True}, "vgg16_bn"),
        ("ResNet18", {"form": "imagenet"}, "resnet18"),
    ],
)
def test_outputs_agree_with_torchvision(name: str, options: dict, reference: str) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(reference, weights=None, num_classes=10).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after some training
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = get_model(name)(image_size=96, **options).eval()
    _copy_weights(theirs, ours)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_unknown_model_has_a_hint() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet19'; did you mean 'ResNet18'\? valid: LeNet5"):
        get_model("resnet19")


def test_recipe_rises_and_falls() -> None:
    assert lr_factor(0) == pytest.approx(0.1)
    assert lr_factor(0.15) == pytest.approx(1)
    assert lr_factor(0.575) == pytest.approx(0.5)
    assert lr_factor(1) == 0
    assert lr_factor(1.2) == 0


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="num_classes 0"):
        get_model("LeNet5")(num_classes=0)
    with pytest.raises(UserError, match="without optimizer"):
        get_model("LeNet5")(lr_scheduler=lambda optimizer: None)
    with pytest.raises(UserError, match="budget -1"):
        TimeBudget(-1)


def _trainer(**options: object) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,  # type: ignore[arg-type]
    )


def test_time_budget_counts_training_but_not_validation() -> None:
    now = 0.0

    def clock() -> float:
        return now

    class Tick(L.Callback):
        """A batch takes one second, a validation a hundred."""

        def on_train_batch_end(self, *_: object) -> None:
            nonlocal now
            now += 1

        def on_validation_batch_end(self, *_: object) -> None:
            nonlocal now
            now += 100

    budget = TimeBudget(10, clock)
    data = get_data("Synthetic")(in_channels=1, train_images=60, test_images=10, batch_size=9)  # 6 steps an epoch
    trainer = _trainer(max_epochs=-1, callbacks=[budget, Tick()])
    model = _small("LeNet5", in_channels=1)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 10
    assert budget.used_s == 10
    assert now == 110  # one validation, after the complete epoch only
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.2 * model.peak_lr


def test_steps_drive_the_schedule_without_a_budget() -> None:
    data = get_data("Synthetic")(in_channels=1, train_images=200, test_images=10, batch_size=9)
    trainer = _trainer(max_epochs=1)
    model = _small("LeNet5", in_channels=1)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 20
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_confusion_counts_are_those_of_the_predictions() -> None:
    data = get_data("Synthetic")(in_channels=1, train_images=20, test_images=50, eval_batch_size=7)
    model = _small("LeNet5", in_channels=1)
    trainer = _trainer()
    logged = trainer.test(model, datamodule=data, verbose=False)[0]
    test = data.load()[1]
    with torch.no_grad():
        predicted = model.eval()(data.prepare(test, training=False)[0]).argmax(1)
    expected = [[0] * 10 for _ in range(10)]
    for true, guess in zip(test.labels.tolist(), predicted.tolist(), strict=True):
        expected[true][guess] += 1
    assert model.test_confusion_counts() == expected
    right = sum(expected[i][i] for i in range(10))
    assert logged["test/accuracy"] == pytest.approx(right / 50)
    probabilities = torch.cat(trainer.predict(model, datamodule=data))  # type: ignore[arg-type]
    assert torch.equal(probabilities.argmax(1), predicted)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50))


def test_training_learns_the_synthetic_set() -> None:
    L.seed_everything(0, verbose=False)
    data = get_data("Synthetic")(in_channels=1, train_images=3000, test_images=500, batch_size=32)
    model = get_model("LeNet5")(in_channels=1)
    trainer = _trainer(max_epochs=2)
    trainer.fit(model, datamodule=data)
    assert trainer.test(model, datamodule=data, verbose=False)[0]["test/accuracy"] > 0.9


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_restore_the_network(name: str, tmp_path: Path) -> None:
    model = _small(name, num_classes=5, in_channels=1).eval()
    trainer = _trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    torch.load(tmp_path / "x.ckpt", weights_only=True)  # holds nothing but data
    loaded = type(model).load_from_checkpoint(tmp_path / "x.ckpt").eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_a_new_file_is_a_new_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's example of an architecture, as a file of its own, is listed, trained and counted."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "ImageClassifier" in block)
    (tmp_path / "tinynet.py").write_text(code)
    monkeypatch.setattr(cnnbench.models, "__path__", [*cnnbench.models.__path__, str(tmp_path)])
    assert sorted(all_models()) == sorted([*MODELS, "TinyNet"])
    model = get_model("TinyNet")(in_channels=1)
    logits = model(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    assert complexity(model, (1, 32, 32)).params == sum(p.numel() for p in model.parameters())
