"""Every listed network: its published counts, torchvision's outputs, and what any network must do."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cnnbench.blocks import (
    ASPP,
    ConvNormAct,
    SeparableConv,
    WhiteningConv2d,
    initialise,
    make_divisible,
    resolve_form,
)
from cnnbench.catalog import FILE, PAPER, counting_fingerprint, load_catalog, sources
from cnnbench.catalog_update import count_models, describe_data, first_paragraph
from cnnbench.counting.complexity import Complexity, complexity
from cnnbench.counting.meta_copy import building_on_meta
from cnnbench.errors import UserError
from cnnbench.hardware import autocast, tf32
from cnnbench.models import all_models, get_model, load_torchvision
from cnnbench.models.densenet import DenseLayer
from cnnbench.models.efficientnet import TABLE_1 as EFFICIENTNET
from cnnbench.models.efficientnet import MBConv, compound_scaling
from cnnbench.models.mobilenet_v2 import InvertedResidual
from cnnbench.models.resnet import BasicBlock, Bottleneck
from cnnbench.network import get_network
from cnnbench.references import references
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.loss import loss_and_logits

MODELS = sorted(all_models())
# Large networks, for which a smaller one of the same family stands in the quick tests.
DEEP = {
    *("VGG13", "VGG19", "ResNet34", "ResNet101", "ResNet152", "PlainNet34", "DenseNet169", "DenseNet201"),
    *("EfficientNetB1", "EfficientNetB2"),
}


def _deep_ones_slow(names: Iterable[str]) -> list[Any]:
    """Return the names as parameters of a test, of which `make test-slow` runs the deep ones."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name for name in names]


TORCHVISION = [name for name in MODELS if get_model(name).torchvision_name]

COURSE = """LeNet5 SimpleCNN AlexNet VGG11 VGG13 VGG16 VGG19 GoogLeNet ResNet18 ResNet34 ResNet50 ResNet101 ResNet152
ResNet20 ResNet32 ResNet44 ResNet56 ResNet110 PlainNet18 PlainNet34 PlainNet20 PlainNet32 PlainNet44 PlainNet56
PlainNet110 DenseNet121 DenseNet169 DenseNet201 MobileNetV1 MobileNetV2 EfficientNetB0 EfficientNetB1 EfficientNetB2
SpeedNet""".split()

# Parameters and MACs from the layer shapes of the papers and of the usual CIFAR code; where torchvision has the network
# they agree with what it prints. 224 goes with 1000 classes. (network, channels, size, parameters, MACs)
PUBLISHED = [
    ("AlexNet", 3, 224, 61_100_840, 714_188_480),
    ("VGG11", 3, 224, 132_863_336, 7_609_090_048),
    ("VGG13", 3, 224, 133_047_848, 11_308_466_176),
    ("VGG16", 3, 224, 138_357_544, 15_470_264_320),
    ("VGG16(batch_norm=True)", 3, 224, 138_365_992, 15_470_264_320),
    ("VGG19", 3, 224, 143_667_240, 19_632_062_464),
    ("GoogLeNet", 3, 224, 13_004_888, 1_498_376_192),
    ("GoogLeNet(aux_heads=False)", 3, 224, 6_624_904, 1_498_376_192),
    ("ResNet18", 3, 224, 11_689_512, 1_814_073_344),
    ("ResNet34", 3, 224, 21_797_672, 3_663_761_408),
    ("ResNet50", 3, 224, 25_557_032, 4_089_184_256),
    ("ResNet50(stride_on=1x1)", 3, 224, 25_557_032, 3_857_973_248),
    ("ResNet101", 3, 224, 44_549_160, 7_801_405_440),
    ("ResNet152", 3, 224, 60_192_808, 11_513_626_624),
    ("DenseNet121", 3, 224, 7_978_856, 2_834_161_664),
    ("DenseNet169", 3, 224, 14_149_480, 3_359_843_328),
    ("DenseNet201", 3, 224, 20_013_928, 4_291_365_888),
    ("EfficientNetB0", 3, 224, 5_288_548, 385_814_752),
    ("MobileNetV1", 3, 224, 4_231_976, 568_740_352),
    ("MobileNetV2", 3, 224, 3_504_872, 300_774_272),
    ("LeNet5", 1, 32, 61_706, 416_520),
    ("SimpleCNN", 1, 28, 93_322, 5_682_304),
    ("VGG16", 3, 32, 14_728_266, 313_201_664),
    ("ResNet18", 3, 32, 11_173_962, 555_422_720),
    ("ResNet50", 3, 32, 23_520_842, 1_297_829_888),
    ("ResNet20", 3, 32, 269_722, 40_551_040),
    ("ResNet56", 3, 32, 853_018, 125_485_696),
    ("ResNet110", 3, 32, 1_727_962, 252_887_680),
    ("MobileNetV1", 3, 32, 3_217_226, 46_354_432),
    ("MobileNetV2", 3, 32, 2_296_922, 91_154_944),
    ("GoogLeNet", 3, 32, 6_166_250, 1_521_756_160),
    ("DenseNet121", 3, 32, 6_956_298, 888_350_720),
]

# Layers on the longest path, as the papers and MathWorks' table of pretrained networks name them.
DEPTHS = {
    "AlexNet": 8,
    "VGG16": 16,
    "VGG19": 19,
    "GoogLeNet": 22,
    "ResNet18": 18,
    "ResNet50": 50,
    "ResNet101": 101,
    "ResNet110": 110,
    "PlainNet56": 56,
    "DenseNet201": 201,
    "MobileNetV1": 28,
    "MobileNetV2": 53,
    "EfficientNetB0": 82,
    "torchvision:squeezenet1_1": 18,
    "torchvision:inception_v3": 48,
}


def test_the_course_is_complete() -> None:
    assert set(COURSE) <= set(MODELS)


@functools.cache
def _counted(name: str, channels: int, size: int | None, num_classes: int) -> Complexity:
    """Return the count of a network, which several tests compare with sources of their own."""
    network = get_network(name, channels, size, num_classes)
    with building_on_meta():
        model = network.build()
    return complexity(model, network.image_shape, training=False)


@pytest.mark.parametrize(("name", "channels", "size", "params", "macs"), PUBLISHED)
def test_complexity_is_the_published_one(name: str, channels: int, size: int, params: int, macs: int) -> None:
    found = _counted(name, channels, size, 1000 if size == 224 else 10)
    assert (found.params, found.macs, found.flops) == (params, macs, 2 * macs)


@pytest.mark.parametrize("name", TORCHVISION)
def test_complexity_is_what_torchvision_prints(name: str) -> None:
    weights = torchvision.models.get_model_weights(get_model(name).torchvision_name).IMAGENET1K_V1
    size = weights.transforms.keywords["crop_size"]
    found = _counted(name, 3, size, 1000)
    with building_on_meta():
        auxiliary = getattr(get_model(name)(num_classes=1000, image_size=size), "auxiliary", nn.Module())
    assert round(found.macs / 1e9, 3) == weights.meta["_ops"]
    assert found.params - sum(p.numel() for p in auxiliary.parameters()) == weights.meta["num_params"]


def test_auxiliary_heads_cost_in_training_only() -> None:
    with building_on_meta():
        model = get_model("GoogLeNet")(num_classes=1000, image_size=224)
    assert complexity(model, (3, 224, 224)).train_forward_macs == 1_506_748_416


@pytest.mark.parametrize(("name", "depth"), DEPTHS.items())
def test_depth_is_that_of_the_longest_path(name: str, depth: int) -> None:
    size, classes = (None, 10) if ":" in name else (224, 1000)
    assert _counted(name, 3, size, classes).depth == depth


@functools.lru_cache(maxsize=2)
def _built(name: str, channels: int, num_classes: int) -> ImageClassifier:
    torch.manual_seed(0)
    return get_model(name)(in_channels=channels, num_classes=num_classes)


def _small(name: str, channels: int = 3, num_classes: int = 10) -> ImageClassifier:
    """A network with its initial weights, for 32x32."""
    return copy.deepcopy(_built(name, channels, num_classes))


@pytest.fixture(scope="module", params=_deep_ones_slow(MODELS))
def listed(request: pytest.FixtureRequest) -> str:
    """Return the name of a listed network. All tests of one network follow each other, so that it is built once."""
    return str(request.param)


def test_training_step_has_finite_gradients(listed: str) -> None:
    model = _small(listed, channels=1, num_classes=7).train()  # the form for MNIST
    output = model(torch.randn(4, 1, 32, 32))
    loss, logits = loss_and_logits(output, torch.tensor([0, 1, 2, 6]))
    assert logits.shape == (4, 7)
    loss.backward()
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert not frozen or listed == "SpeedNet"
    for key, parameter in model.named_parameters():
        if key not in frozen:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.ndim == 1 or parameter.grad.any(), f"{key} does not learn"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_training_step_on_a_gpu_has_finite_gradients(name: str) -> None:
    model = _small(name).train().to("cuda", memory_format=torch.channels_last)
    x = torch.randn(8, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    with autocast("bf16-mixed", x.device):
        loss, logits = loss_and_logits(model(x), torch.arange(8, device="cuda"))
    loss.backward()
    assert logits.is_cuda
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad(), tf32(x.device, False):
        on_cpu = _small(name).eval()(x.cpu())
        on_gpu = _small(name).eval().cuda()(x).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-2, atol=1e-2 * float(on_cpu.std()))


def test_eval_agrees_whatever_batch_layout_and_precision(listed: str) -> None:
    model = _small(listed).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together = model(x)
        assert together.shape == (3, 10)
        assert torch.equal(together, model(x))
        alone = torch.cat([model(image[None]) for image in x])
        with autocast("bf16-mixed", torch.device("cpu")):
            short = model(x)
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    scale = float(together.std())
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(last, together, rtol=1e-3, atol=1e-4 * scale)
    assert short.dtype == torch.bfloat16
    assert float((short.float() - together).abs().max()) < 0.25 * scale


def test_checkpoints_restore_the_network(listed: str, tmp_path: Path) -> None:
    model = _small(listed, channels=1, num_classes=7).eval()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    torch.load(tmp_path / "x.ckpt", weights_only=True)  # holds nothing but data
    loaded = type(model).load_from_checkpoint(tmp_path / "x.ckpt").eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def _deviations(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Standard deviation of what each convolution and linear layer puts out."""
    found: dict[str, float] = {}
    for key, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda _, __, out, key=key: found.update({key: float(out.detach().std())}))
    with torch.no_grad():
        model(x)
    return found


def test_activations_neither_vanish_nor_explode(listed: str) -> None:
    found = _deviations(_small(listed).train(), torch.randn(16, 3, 32, 32))
    assert all(0.05 < deviation < 20 for deviation in found.values()), found


@pytest.mark.parametrize("name", ["AlexNet", "VGG16", "VGG19"])
def test_activations_survive_without_normalisation(name: str) -> None:
    torch.manual_seed(0)
    model = get_model(name)(form="imagenet", image_size=64).eval()  # the paper's form has no batch norm
    found = list(_deviations(model, torch.randn(4, 3, 64, 64)).values())
    assert all(0.2 < deviation < 5 for deviation in found), found


def test_torch_s_own_initialisation_makes_vgg16_vanish() -> None:
    """The check can fail: .6 in the first layer, .01 in the last with torch's default (a known trap)."""
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None, init_weights=False).eval()
    found = list(_deviations(model, torch.randn(2, 3, 64, 64)).values())
    assert found[0] > 0.4
    assert found[-1] < 0.03


FORMS = [
    pytest.param(name, form, marks=[pytest.mark.slow] * (name in DEEP))
    for name in MODELS
    for form in (("cifar", "imagenet") if "form" in inspect.signature(get_model(name)).parameters else (None,))
]
"""Each listed network in each of its forms; None for a network that has one form only."""


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_an_image_too_small_is_refused(name: str, form: str | None) -> None:
    """The smallest image that a form names works, one that is smaller is refused."""
    options = {"form": form} if form else {}
    with building_on_meta():
        smallest = get_model(name)(image_size=80, **options).min_image_size
        model = get_model(name)(image_size=smallest, **options).eval().to("meta")
    assert model(torch.zeros(1, 3, smallest, smallest, device="meta")).shape == (1, 10)
    too_small = rf"{smallest - 1}x{smallest - 1} .*too small for {name}.*{smallest}x{smallest}"
    with building_on_meta(), pytest.raises(UserError, match=too_small):
        get_model(name)(image_size=smallest - 1, **options)
    with pytest.raises(UserError, match="too small"):
        model.train()(torch.zeros(1, 3, smallest - 1, smallest, device="meta"))


FORMS_WITH_OWN_LAYERS = (
    "AlexNet VGG11 GoogLeNet ResNet18 ResNet50 DenseNet121 MobileNetV1 MobileNetV2 EfficientNetB0".split()
)


@pytest.mark.parametrize("name", FORMS_WITH_OWN_LAYERS)
def test_the_paper_s_form_learns_in_every_layer(name: str) -> None:
    torch.manual_seed(0)
    model = get_model(name)(form="imagenet", image_size=64, in_channels=1).train()
    loss_and_logits(model(torch.randn(4, 1, 64, 64)), torch.arange(4))[0].backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.ndim == 1 or parameter.grad.any(), f"{key} does not learn"


@pytest.mark.parametrize("name", MODELS)
def test_counts_in_the_documentation_are_true(name: str) -> None:
    text = " ".join(str(get_model(name).__doc__).split())
    pattern = r"([\d,]{6,}) parameters(?: and ([\d,]{6,}) MACs)? at (?:(\d)x)?(\d+)x\d+(?:/(\d+))?"
    for params, macs, channels, size, classes in re.findall(pattern, text):
        form = f"{name}(aux_heads=False)" if "auxiliary" in text and size == "224" else name
        found = _counted(form, int(channels or 3), int(size), int(classes or 10))
        assert found.params == int(params.replace(",", ""))
        assert not macs or found.macs == int(macs.replace(",", ""))


@pytest.mark.parametrize("name", MODELS)
def test_documentation_names_source_and_differences(name: str) -> None:
    cls = get_model(name)
    families = [base for base in cls.__mro__ if base.__doc__ and PAPER.fullmatch(first_paragraph(base))]
    assert name == "SimpleCNN" or "Differences from the paper" in str(families[0].__doc__)
    assert cls.key_idea
    if cls.published:
        assert 50 < cls.published.accuracy < 100
        assert cls.published.source


def test_model_files_stay_short() -> None:
    files = [f for f in (Path(__file__).parent.parent / "cnnbench" / "models").glob("*.py") if f.name != "__init__.py"]
    assert sum(len(file.read_text().splitlines()) for file in files) / len(files) < 120


def _after_training(model: nn.Module) -> nn.Module:
    """Statistics and factors of batch norm as after some training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.mark.parametrize("name", [*_deep_ones_slow(TORCHVISION), "VGG11(batch_norm=True)"])
def test_outputs_agree_with_torchvision(name: str) -> None:
    torch.manual_seed(0)
    name, batch_norm, _ = name.partition("(batch_norm=True)")
    options = {"batch_norm": True} if batch_norm else {}
    theirs = str(get_model(name).torchvision_name) + ("_bn" if options else "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # on the initialisation of its GoogLeNet
        reference = _after_training(torchvision.models.get_model(theirs, weights=None, num_classes=10))
    with building_on_meta():  # without initial values, which would be replaced
        ours = get_model(name)(image_size=96, form="imagenet", **options).eval()
    ours = ours.to_empty(device="cpu")
    load_torchvision(ours, reference.state_dict())
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5 * float(expected.std()))


def test_weights_that_do_not_fit_are_refused() -> None:
    model = get_model("ResNet18")(image_size=96)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"'layer1.2.conv1.weight' is no entry of torchvision's resnet18"):
        load_torchvision(model, torchvision.models.resnet34(weights=None, num_classes=10).state_dict())
    with pytest.raises(UserError, match=r"fc.weight \(1000, 512\) does not fit classifier.2.weight \(10, 512\)"):
        load_torchvision(model, torchvision.models.resnet18(weights=None).state_dict())
    short = dict(list(torchvision.models.resnet18(weights=None, num_classes=10).state_dict().items())[:-1])
    with pytest.raises(UserError, match="the state has 101 entries and ResNet18 102"):
        load_torchvision(model, short)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_weights_are_refused_by_a_network_that_computes_something_else() -> None:
    class Shifted(get_model("ResNet18")):  # type: ignore[misc]
        """Derived by somebody."""

    state = torchvision.models.resnet50(weights=None, num_classes=10).state_dict()
    for model in (
        get_model("ResNet20")(),
        get_model("ResNet50")(),  # the form for 32x32
        get_model("ResNet50")(image_size=96, stride_on="1x1"),
        Shifted(image_size=96),
    ):
        with pytest.raises(UserError, match="torchvision has no network that is this"):
            load_torchvision(model, state)


def test_weights_are_taken_in_the_order_of_torchvision() -> None:
    torch.manual_seed(0)
    reference = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    ours = get_model("ResNet18")(image_size=96).eval()
    load_torchvision(ours, dict(sorted(reference.state_dict().items(), reverse=True)))
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x))


def test_googlenet_in_training_gives_what_torchvision_gives() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        reference = torchvision.models.googlenet(weights=None, num_classes=10, dropout=0.0, dropout_aux=0.0)
    ours = get_model("GoogLeNet")(image_size=96, form="imagenet", dropout=0.0, aux_dropout=0.0).train()
    load_torchvision(ours, reference.state_dict())
    x, labels = torch.randn(2, 3, 96, 96), torch.tensor([3, 5])
    with torch.no_grad():
        main, second, first = reference.train()(x)
        found = ours(x)
        for ours_, theirs in zip(found, (main, first, second), strict=True):
            torch.testing.assert_close(ours_, theirs, rtol=1e-4, atol=1e-5)
    expected = sum(w * nn.functional.cross_entropy(o, labels) for w, o in ((1, main), (0.3, first), (0.3, second)))
    torch.testing.assert_close(loss_and_logits(found, labels)[0], expected)


@pytest.mark.parametrize("block", [BasicBlock(8, 8, 1), BasicBlock(8, 8, 1, "padding"), Bottleneck(32, 8, 1, "3x3")])
def test_zeroed_residual_is_the_identity(block: nn.Module) -> None:
    residual = block.residual
    nn.init.zeros_(residual[-1][-1].weight)  # the last batch norm
    x = torch.rand(2, 32 if isinstance(block, Bottleneck) else 8, 6, 6)
    assert torch.equal(block.eval()(x), x)


@pytest.mark.parametrize(
    "block",
    [
        InvertedResidual(8, 8, 6, 1, cifar=False),
        MBConv(8, 8, EFFICIENTNET[1], 1, drop_path=0.2),
    ],
)
def test_zeroed_linear_residual_is_the_identity(block: nn.Module) -> None:
    last = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block.eval()(x), x)


def test_plain_block_carries_nothing() -> None:
    block = BasicBlock(8, 8, 1, "nothing").eval()
    nn.init.zeros_(block.residual[-1][-1].weight)
    assert not block(torch.rand(2, 8, 6, 6)).any()


def test_option_a_takes_every_other_pixel_and_adds_zeros() -> None:
    shortcut = BasicBlock(4, 6, 2, "padding").shortcut
    assert shortcut is not None
    x = torch.randn(1, 4, 6, 6)
    y = shortcut(x)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert y.shape == (1, 6, 3, 3)
    assert not y[:, 4:].any()


@pytest.mark.parametrize(("name", "layers"), [("DenseNet121", (6, 12, 24, 16)), ("DenseNet201", (6, 12, 48, 32))])
@pytest.mark.parametrize("growth_rate", [12, 32])
def test_dense_blocks_grow_by_the_growth_rate(name: str, layers: tuple[int, ...], growth_rate: int) -> None:
    with building_on_meta():
        model = get_model(name)(growth_rate=growth_rate).to("meta")
    blocks = [part for part in model.features if isinstance(part, nn.Sequential) and isinstance(part[0], DenseLayer)]
    k0 = 2 * growth_rate
    for block, count in zip(blocks, layers, strict=True):
        assert len(block) == count
        assert block(torch.empty(1, k0, 8, 8, device="meta")).shape[1] == k0 + count * growth_rate
        k0 = (k0 + count * growth_rate) // 2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 2))
def test_separable_convolution_is_the_dense_one_of_its_outer_product(inputs: int, outputs: int, stride: int) -> None:
    """The weights of the equal standard convolution are W[o, i] = pointwise[o, i] * depthwise[i]."""
    separable = SeparableConv(inputs, outputs, stride).double()
    depthwise, pointwise = separable[0][0], separable[1][0]
    weight = pointwise.weight * depthwise.weight[:, 0][None]
    assert weight.shape == (outputs, inputs, 3, 3)
    x = torch.randn(2, inputs, 7, 6, dtype=torch.float64)
    expected = nn.functional.conv2d(x, weight, stride=stride, padding=1)
    torch.testing.assert_close(pointwise(depthwise(x)), expected)


def test_width_multipliers_are_those_of_the_papers() -> None:
    # Howard et al. 2017, table 6, and Sandler et al. 2018, table 4: millions of parameters at 224x224/1000.
    for name, multiplier, millions in (
        ("MobileNetV1", 0.75, 2.6),
        ("MobileNetV1", 0.5, 1.3),
        ("MobileNetV1", 0.25, 0.5),
        ("MobileNetV2", 1.4, 6.1),
    ):
        with building_on_meta():
            model = get_model(name)(image_size=224, num_classes=1000, width_multiplier=multiplier)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    with pytest.raises(UserError, match="width_multiplier 0 of MobileNetV1 must be a positive number"):
        get_model("MobileNetV1")(width_multiplier=0)


def test_compound_scaling_is_the_rule_of_the_paper() -> None:
    assert compound_scaling(0) == (1, 1, 224)
    depth, width, resolution = compound_scaling(1)
    assert depth * width**2 * (resolution / 224) ** 2 == pytest.approx(2, abs=0.1)  # equation 3: twice the MACs
    for name, phi in (("EfficientNetB0", 0), ("EfficientNetB1", 0.5), ("EfficientNetB2", 1)):
        for published, ruled in zip(get_model(name).scaling, compound_scaling(phi), strict=True):  # type: ignore[attr-defined]
            assert published == pytest.approx(ruled, rel=0.05)


def test_aspp_agrees_with_torchvision() -> None:
    from torchvision.models.segmentation import deeplabv3

    torch.manual_seed(0)
    reference = _after_training(deeplabv3.ASPP(12, [2, 3], 8))
    ours = ASPP(12, 8, rates=(2, 3)).eval()
    values = zip(ours.state_dict(), reference.state_dict().values(), strict=True)
    ours.load_state_dict(dict(values))
    x = torch.randn(2, 12, 17, 13)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x))  # its dropout does nothing in evaluation


def test_dilation_keeps_the_resolution_and_widens_the_field() -> None:
    for dilation in (1, 2, 5):
        layer = ConvNormAct(1, 1, dilation=dilation).eval()
        nn.init.ones_(layer[0].weight)
        x = torch.zeros(1, 1, 21, 21)
        x[..., 10, 10] = 1
        y = layer(x)[0, 0]
        assert y.shape == (21, 21)
        reached = y.nonzero()
        assert (reached.max(0).values - reached.min(0).values + 1).tolist() == [2 * dilation + 1] * 2
        assert len(reached) == 9


def test_make_divisible_loses_at_most_a_tenth() -> None:
    # 0.75 * 24 and 1.1 * 112 of the published networks, and small numbers.
    assert [make_divisible(c) for c in (18, 123.2, 1, 11, 12, 32)] == [24, 120, 8, 16, 16, 32]
    assert all(make_divisible(c) >= 0.9 * c and make_divisible(c) % 8 == 0 for c in range(1, 500))


def test_whitening_makes_patches_uncorrelated() -> None:
    torch.manual_seed(0)
    layer = WhiteningConv2d(3)
    images = nn.functional.avg_pool2d(torch.randn(50, 3, 34, 34), 3, stride=1)  # neighbours are alike
    layer.whiten(images, epsilon=0.0)
    out = layer(images).detach()[:, :12].transpose(0, 1).flatten(1)
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(12), atol=1e-3, rtol=0)
    assert torch.equal(layer.weight[12:], -layer.weight[:12])


def test_initialisation_is_he_s() -> None:
    torch.manual_seed(0)
    for layer, fan_in in (
        (nn.Conv2d(64, 256, 3), 576),
        (nn.Conv2d(256, 256, 3, groups=256), 9),
        (nn.Linear(512, 400), 512),
    ):
        layer.apply(initialise)
        assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(UserError, match="unknown form 'cifra'; did you mean 'cifar'"):
        resolve_form("cifra", 32)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown stride_on '5x5'"):
        get_model("ResNet50")(stride_on="5x5")
    with pytest.raises(UserError, match="unknown head 'flatt'; did you mean 'flat'"):
        get_model("SimpleCNN")(head="flatt")
    with pytest.raises(UserError, match="too small for AlexNet, which needs at least 63x63"):
        get_model("AlexNet")(form="imagenet")


@pytest.mark.parametrize(
    "names", [pytest.param(set(MODELS) - DEEP, id="most"), pytest.param(DEEP, id="deep", marks=pytest.mark.slow)]
)
def test_catalogue_is_true(names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = json.loads(FILE.read_text())
    now = sources()
    assert kept["modules"] == {name: now.get(name) for name in kept["modules"]}, "run `make catalog`"
    classes = {name: cls for name, cls in all_models().items() if name in names}
    monkeypatch.setattr("cnnbench.catalog_update.all_models", lambda: classes)
    expected = {name: entry for name, entry in kept["models"].items() if name in names}
    assert expected == count_models(kept["modules"]), "run `make catalog`"
    assert kept["models"].keys() == {name for name in MODELS if _module(name) in kept["modules"]}, "run `make catalog`"
    assert kept["data_modules"] == sources("data"), "run `make catalog`"
    assert kept["counting"] == counting_fingerprint(), "run `make catalog`"
    assert kept["counts"].keys() == kept["models"].keys(), "run `make catalog`"
    assert kept["data"] == describe_data()
    assert set(COURSE) <= set(kept["models"])


def _module(name: str) -> str:
    """Return the module of a listed network, or the folder of one in several files."""
    return get_model(name).__module__.split(".")[2]


def test_fingerprints_cover_the_modules_that_a_module_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty modules that all mention each other have more paths than any machine could follow."""
    monkeypatch.setattr("cnnbench.catalog.PACKAGE", tmp_path)
    names = [f"m{number}" for number in range(20)]
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / "data" / f"{name}.py").write_text(f"# {name}: {' '.join(names)}")
    (tmp_path / "data" / "apart.py").write_text("import user")
    (tmp_path / "data" / "user.py").write_text("import m7")
    before = sources("data")
    (tmp_path / "data" / "m3.py").write_text("changed")
    changed = {name for name, fingerprint in sources("data").items() if fingerprint != before[name]}
    assert changed == {*names, "apart", "user"}
    (tmp_path / "data" / "apart.py").write_text("changed")
    assert {name for name, fingerprint in sources("data").items() if fingerprint != before[name]} == changed
    # After its change, `apart` mentions nothing, so that nothing but `user` itself reaches `user`.
    before = sources("data")
    (tmp_path / "data" / "user.py").write_text("")
    assert {name for name, fingerprint in sources("data").items() if fingerprint != before[name]} == {"user"}


def test_catalogue_has_the_reference_accuracies() -> None:
    found = {(name, m["data"]): m["accuracy"] for name, e in load_catalog()["models"].items() for m in e["measured"]}
    expected = {(r.model, r.label): round(100 * r.accuracy, 2) for r in references().values()}
    assert found == expected
