"""Networks by name: those of the zoo, torchvision and timm, and the user's own.

A name has the form ``NAME``, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:callable``. Arguments may follow
in brackets, as in ``VGG16(batch_norm=True)`` or ``torchvision:googlenet(aux_logits=False)``. Networks are built with
random weights, never with pretrained ones.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import models

from cnnbench.errors import Stopped, UserError
from cnnbench.models import all_models
from cnnbench.names import MODEL, call_words, import_callable, parse_name, unknown_name, unknown_of_many
from cnnbench.registry import check_arguments, optional
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.loss import loss_and_logits

_MADE: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Networks that were built and still exist; a callable that returns one of them again is refused."""


@dataclass(frozen=True)
class Network:
    """Network that is not built yet, and the shape of its images.

    Attributes:
        name: Name as the user wrote it.
        in_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.
        num_classes: Number of classes; None if it is not known before the network is built.
        build: Function that builds the network with random weights.
    """

    name: str
    in_channels: int
    image_size: int
    num_classes: int | None
    build: Callable[[], nn.Module]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the shape of an image, (C, H, W)."""
        return (self.in_channels, self.image_size, self.image_size)


@dataclass(frozen=True)
class _Wanted:
    """Sizes that the user asked for; None stands for the network's own default."""

    in_channels: int | None
    image_size: int | None
    num_classes: int | None

    def given(self) -> dict[str, int]:
        """Return the sizes that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}


class External(ImageClassifier):
    """A network from outside the zoo, trained and measured like those of the zoo.

    If the network is an `ImageClassifier` of the user's, this class uses only its layers and its peak learning rate.
    Its own training code runs in `bench`, and with ``fit --model package.module.Class``.

    Args:
        name: Name as ``torchvision:NAME``, ``timm:NAME`` or ``package.module:callable``, optionally with arguments in
            brackets.

    Raises:
        UserError: The network does not exist, does not accept these images, or does not return one logit per class.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if ":" not in name:
            raise UserError(
                f"'{name}' names no network from elsewhere; give torchvision:NAME, timm:NAME or module:callable"
            )
        self.name = name
        # A callable may lack arguments for these sizes; `_try` shows whether the network fits all the same.
        self.features = get_network(name, self.in_channels, self.image_size, self.num_classes, strict=False).build()
        # Only a network that is built under device meta on purpose may have weights without values.
        if torch.get_default_device().type != "meta" and any(p.is_meta for p in self.features.parameters()):
            raise UserError(f"model '{name}' has no values (device meta); let it make its weights on the CPU")
        # The network has a head of its own, so the classifier passes its output on.
        self.classifier = nn.Identity()
        if isinstance(self.features, ImageClassifier) and kwargs.get("learning_rate") is None:
            self.learning_rate = self.features.learning_rate
        self._try()

    @property
    def display_name(self) -> str:
        return self.name

    def forward(self, x: Tensor) -> Any:
        """Compute logits, (N, K), from images x, (N, C, H, W); in training also those of auxiliary heads."""
        output = super().forward(x)
        # Some networks return a tuple in evaluation as well; its first item is the output of the main head.
        return output[0] if isinstance(output, tuple) and not self.training else output

    def _try(self) -> None:
        """Run a training pass and an evaluation pass on a few images, so that an unsuitable network is refused early.

        Afterwards training modes, buffers and the CPU's random state are as before, and gradients are cleared.

        Raises:
            UserError: A pass fails, or the network does not return one logit per class.
        """
        training = {module: module.training for module in self.modules()}
        buffers = {buffer: buffer.clone() for buffer in self.buffers()}
        # Training uses this memory format, in which a `view` of the features may fail.
        self.to(memory_format=self.memory_format)
        try:
            with torch.random.fork_rng(devices=[]):
                # Batch norm needs more than one value per channel in training, so there are two images.
                loss, _ = self._logits_of(2, self.train())
                loss.backward()
                with torch.no_grad():
                    logits = self._logits_of(1, self.eval())[1]
        except UserError as error:
            raise UserError(f"model '{self.name}': {error}") from error
        except Stopped:
            raise
        except BaseException as error:  # foreign code may raise anything
            text = " ".join(str(error).split())[:300]
            hint = "try another image_size of the data, or another network"
            if "does not require grad" in text:
                hint = "it has nothing to train; some parameter must require a gradient and reach the output"
            elif "view size is not compatible" in text:
                hint = "use flatten(1) or reshape in place of view, since the channels are last in memory"
            raise UserError(
                f"model '{self.name}' cannot be trained on images of "
                f"{self.in_channels}x{self.image_size}x{self.image_size}: {type(error).__name__}: {text}; {hint}"
            ) from error
        finally:
            self.zero_grad(set_to_none=True)
            for module, mode in training.items():
                module.training = mode
            with torch.no_grad():
                for buffer, value in buffers.items():
                    buffer.copy_(value)
        if logits.shape != (1, self.num_classes):
            raise UserError(
                f"model '{self.name}' gives {logits.shape[1]} logits, but the data has {self.num_classes} classes; "
                "let it take an argument num_classes"
            )

    def _logits_of(self, count: int, model: ImageClassifier) -> tuple[Tensor, Tensor]:
        device = next(self.features.parameters(), torch.empty(0)).device
        images = torch.zeros(count, self.in_channels, self.image_size, self.image_size, device=device)
        labels = torch.zeros(count, dtype=torch.long, device=device)
        return loss_and_logits(model(images.contiguous(memory_format=self.memory_format)), labels)


def make_classifier(name: str, num_classes: int, in_channels: int, image_size: int, **options: Any) -> ImageClassifier:
    """Build a network by name, ready for training.

    Args:
        name: Name in one of the forms that this module describes.
        num_classes: Number of classes of the data.
        in_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.
        options: Further arguments of `ImageClassifier`; those that are None are left out.

    Raises:
        UserError: The network does not exist, or it does not fit the data.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    plain, arguments = parse_name(name)
    given = {key: value for key, value in options.items() if value is not None}
    if ":" in plain:
        external = External(name=name, **sizes, **given)
        if not isinstance(external.features, ImageClassifier):
            return external
        if "recipe" in given:
            raise UserError(
                f"recipe '{given['recipe']}' is for networks that cnnbench trains, and '{name}' has training code of "
                "its own; leave out the recipe"
            )
        external.features.learning_rate = external.learning_rate
        if external.lr_batch_size is not None:
            external.features.lr_batch_size = external.lr_batch_size
        return external.features  # the user's class, with its own training code
    # These two are functions, which cannot be checked as values of a name.
    functions: dict[str, Any] = {key: given.pop(key) for key in ("optimizer", "lr_scheduler") if key in given}
    network = _from_zoo(name, plain, _merged(name, arguments, given), _Wanted(**sizes), functions)
    return cast(ImageClassifier, network.build())


def get_network(
    name: str,
    in_channels: int | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    strict: bool = True,
) -> Network:
    """Return the network with this name, not built yet.

    Args:
        name: Name in one of the forms that this module describes.
        in_channels: Number of channels of the images; None for the network's own.
        image_size: Height and width of the images in pixels; None for 32 in the zoo, for the size of the published
            weights in torchvision and timm, and for the default of the user's callable, or 224 without one.
        num_classes: Number of classes; None for the network's own.
        strict: Whether to raise an error if the user's callable has no argument for a requested number of channels or
            classes.

    Raises:
        UserError: The network does not exist, or does not take these arguments.
    """
    wanted = _Wanted(in_channels, image_size, num_classes)
    for option, value in wanted.given().items():
        if value < 1:
            raise UserError(f"{option} {value} must be at least 1")
    plain, arguments = parse_name(name)
    for pretrained in {"weights", "weights_backbone", "pretrained"} & set(arguments):
        raise UserError(f"model '{name}': networks have random weights here; leave out {pretrained}")
    source, colon, rest = plain.rpartition(":")
    if not colon:
        return _from_zoo(name, rest, arguments, wanted)
    if source == "torchvision":
        return _from_torchvision(name, rest, arguments, wanted)
    if source == "timm":
        return _from_timm(name, rest, arguments, wanted)
    return _from_callable(name, source, rest, arguments, wanted, strict)


def name_of(model: ImageClassifier) -> str:
    """Return the name of a network, with the arguments that differ from their defaults, as `get_network` reads it.

    Sizes that the data decides and settings of the training are left out.

    Args:
        model: Network of the zoo, a network from elsewhere, or one of a class of the user's.
    """
    if isinstance(model, External):
        return model.name
    cls = type(model)
    of_every_network = inspect.signature(ImageClassifier).parameters
    arguments = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in of_every_network and name in model.hparams and model.hparams[name] != parameter.default:
            arguments[name] = model.hparams[name]
    plain = cls.__name__
    if plain not in all_models():
        plain = f"{cls.__module__}:{cls.__qualname__}"
    return call_words(plain, arguments)


def _from_zoo(
    name: str,
    plain: str,
    arguments: dict[str, Any],
    wanted: _Wanted,
    functions: Mapping[str, Any] = MappingProxyType({}),
) -> Network:
    zoo = all_models()
    if plain not in zoo:
        raise unknown_name(MODEL, plain, zoo)
    for key in {"optimizer", "lr_scheduler"} & set(arguments):
        raise UserError(f"model '{name}': {key} cannot be part of a name; it is an option of `cnnbench fit`")
    check_arguments(f"model '{name}'", zoo[plain], arguments)
    options = {**_merged(name, arguments, wanted.given()), **functions}
    # These are the default sizes of `ImageClassifier`.
    defaults = {"in_channels": 3, "image_size": 32, "num_classes": 10} | options
    return Network(
        name,
        defaults["in_channels"],
        defaults["image_size"],
        defaults["num_classes"],
        _checked(name, zoo[plain], options),
    )


def _from_torchvision(name: str, plain: str, arguments: dict[str, Any], wanted: _Wanted) -> Network:
    # Only networks that classify: detection, segmentation, video and quantized ones lie in submodules.
    valid = models.list_models(module=models)
    if plain not in valid:
        raise unknown_of_many("torchvision model", plain, valid)
    # Size of the images that the published weights take.
    # `transforms` is a partial of a preset, whose arguments have the crop size.
    takes = models.get_model_weights(plain).DEFAULT.transforms.keywords.get("crop_size", 224)
    size = wanted.image_size or arguments.get("image_size") or takes
    options = {"weights": None} | arguments
    if wanted.num_classes:
        options = _merged(name, options, {"num_classes": wanted.num_classes})
    # A vision transformer has a position embedding per patch, so it is built for one image size.
    if plain.startswith("vit_"):
        options = _merged(name, options, {"image_size": size})
    build = _checked(name, lambda **kwargs: models.get_model(plain, **kwargs), options)
    channels = wanted.in_channels or 3
    return Network(name, channels, size, options.get("num_classes", 1000), lambda: _with_channels(build(), channels))


def _from_timm(name: str, plain: str, arguments: dict[str, Any], wanted: _Wanted) -> Network:
    timm = optional("timm", f"model '{name}'")
    if not timm.is_model(plain):
        raise unknown_of_many("timm model", plain, timm.list_models())
    config = timm.get_pretrained_cfg(plain)
    # In timm, the size of an image is (C, H, W).
    own_channels, own_size = (config.input_size[0], config.input_size[-1]) if config else (3, 224)
    options = arguments
    for option, key in (("in_channels", "in_chans"), ("num_classes", "num_classes")):
        if getattr(wanted, option):
            options = _merged(name, options, {key: getattr(wanted, option)}, option)
    channels = options.get("in_chans", own_channels)
    size = wanted.image_size or options.get("img_size", own_size)
    classes = options.get("num_classes", config.num_classes if config else 1000)

    def make(**kwargs: Any) -> nn.Module:
        # The network's own size needs no argument, which many networks do not have.
        if size == own_size:
            return timm.create_model(plain, pretrained=False, **kwargs)
        try:
            return timm.create_model(plain, pretrained=False, **kwargs | {"img_size": size})
        except TypeError:  # a network for any size has no argument img_size
            return timm.create_model(plain, pretrained=False, **kwargs)

    return Network(name, channels, size, classes, _checked(name, make, options))


def _from_callable(
    name: str, module: str, attribute: str, arguments: dict[str, Any], wanted: _Wanted, strict: bool
) -> Network:
    factory = import_callable(name, module, attribute)
    if isinstance(factory, nn.Module):
        raise UserError(f"'{name}' is a network already; give what makes it, such as a class or a function")
    try:
        accepted = dict(inspect.signature(factory).parameters)
    except ValueError:  # a function that is not written in Python may have no signature
        accepted = {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    # A size goes to the argument of its name. Without such an argument, a callable with ** may still accept the size;
    # unless `strict`, it is only offered, so that the callable may refuse it.
    options, offered = dict(arguments), {}
    for option, value in wanted.given().items():
        if option in accepted or (takes_any and strict and option != "image_size"):
            options = _merged(name, options, {option: value})
        elif takes_any:
            offered[option] = arguments.get(option, value)
        elif option != "image_size" and strict:
            raise UserError(f"'{name}' takes no {option}; leave out --{option}, or give it such an argument")
    # Integers among the arguments and the defaults are the sizes for which the network is built.
    own = {n: p.default for n, p in accepted.items() if isinstance(p.default, int)} | options
    return Network(
        name,
        own.get("in_channels", 3),
        wanted.image_size or own.get("image_size", 224),
        own.get("num_classes"),
        _checked(name, partial(_with_what_it_takes, factory, offered), options),
    )


def _with_what_it_takes(factory: Callable[..., Any], offered: dict[str, Any], **options: Any) -> Any:
    """Call a function with ``**`` arguments, and leave out those of the offered arguments that it refuses.

    Args:
        factory: Function to call.
        offered: Arguments that may be left out.
        options: Arguments that must be passed.
    """
    while True:
        try:
            return factory(**{**offered, **options})
        except TypeError as error:
            # Python's message names one unexpected argument, so each pass of the loop leaves out one.
            refused = next((o for o in offered if f"unexpected keyword argument '{o}'" in str(error)), None)
            if refused is None or refused in options:
                raise
            offered = {option: value for option, value in offered.items() if option != refused}


def _merged(name: str, arguments: dict[str, Any], options: dict[str, Any], option: str = "") -> dict[str, Any]:
    """Return the arguments in a name together with options; raise UserError where the two contradict each other."""
    for key, value in options.items():
        if arguments.get(key, value) != value:
            raise UserError(
                f"model '{name}' says {key}={arguments[key]} and --{option or key} says {value}; give one of them"
            )
    return arguments | options


def _checked(name: str, factory: Callable[..., Any], options: dict[str, Any]) -> Callable[[], nn.Module]:
    """Return a function that builds a network and turns every failure into a UserError of one line."""

    def build() -> nn.Module:
        try:
            with warnings.catch_warnings(), _settings_kept():
                warnings.simplefilter("ignore", FutureWarning)  # torchvision warns about its own initialisation
                model = factory(**options)
        except (UserError, Stopped):
            raise
        except BaseException as error:  # a foreign constructor may raise anything
            text = " ".join(str(error).split())[:300]
            hint = f"; give arguments in brackets, as in '{name}(a=1)'" if "missing" in text and not options else ""
            raise UserError(f"cannot build model '{name}': {type(error).__name__}: {text}{hint}") from error
        # Two runs with the same object would share its weights, and the second would go on from the first.
        if model in _MADE:
            raise UserError(f"'{name}' made the same network twice; let it make a new one each time")
        if isinstance(model, nn.Module):
            _MADE.add(model)
        else:
            raise UserError(f"'{name}' made a {type(model).__name__}, not a torch.nn.Module; a model is {MODEL.forms}")
        return model

    return build


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """Restore torch's global settings after a constructor, so that it does not affect other networks."""
    dtype, threads, gradients, seed = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.initial_seed(),
    )
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        # If the constructor has set a seed, the generator starts again from the earlier one.
        if torch.initial_seed() != seed:
            torch.manual_seed(seed)


def _with_channels(model: nn.Module, channels: int) -> nn.Module:
    """Give a network for colour images another number of input channels by replacing its first convolution.

    Raises:
        UserError: The first convolution does not have 3 input channels, or has groups.
    """
    if channels == 3:
        return model
    # The first convolution in the order of definition is taken for the one that sees the images.
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            if conv.in_channels != 3 or conv.groups != 1:
                break
            new = nn.Conv2d(
                channels,
                conv.out_channels,
                cast("tuple[int, int]", conv.kernel_size),
                cast("tuple[int, int]", conv.stride),
                cast("tuple[int, int]", conv.padding),
                cast("tuple[int, int]", conv.dilation),
                bias=conv.bias is not None,
                padding_mode=conv.padding_mode,
            )
            # At the top level the parent's name is empty, which `get_submodule` takes for the network itself.
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, new)
            return model
    raise UserError(
        f"{type(model).__name__} does not begin with a convolution of 3 channels; leave out --in_channels {channels}"
    )
