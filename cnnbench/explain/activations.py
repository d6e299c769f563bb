"""What a network computes on the way: its layers, the ends of its stages, their maps.

The network stays as it is. It runs in evaluation mode; hooks are taken off, also after an error, and modes, buffers and
the state of randomness are put back.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from cnnbench.counting.copies import untouched_randomness
from cnnbench.counting.meta import tensors_in
from cnnbench.counting.operators import base_name
from cnnbench.errors import Stopped, UserError, unknown

ACTIVATIONS = {
    "relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "hardswish": "hard swish", "hardtanh": "hard tanh",
    "leaky_relu": "leaky ReLU", "_prelu_kernel": "PReLU", "elu": "ELU", "mish": "Mish", "softplus": "softplus",
    "sigmoid": "sigmoid", "hardsigmoid": "hard sigmoid", "tanh": "tanh",
}  # fmt: skip
"""Activation functions: torch's operators, and what they are called. ReLU6 runs as a hard tanh of 0 to 6."""


class LayerMap(NamedTuple):
    """What a layer put out.

    Attributes:
        values: (N, C, H, W).
        activation: The activation function that made the layer's output; None if something else did.
    """

    values: Tensor
    activation: str | None


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[list[RemovableHandle]]:
    """Evaluation mode inside; then modes, buffers and randomness are as before, and hooks of the list are gone."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    handles: list[RemovableHandle] = []
    try:
        with untouched_randomness(), torch.inference_mode(False):
            model.eval()
            yield handles
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Logits, (N, K), of a network in its present mode; of several heads those of the first.

    Args:
        model: Any classifier.
        images: Normalised, (N, C, H, W).

    Raises:
        UserError: It does not take such images, or puts out something else.
    """
    try:
        output = model(images)
    except (UserError, Stopped):
        raise
    except BaseException as error:  # whatever a network of somebody else's raises
        size = "x".join(map(str, images.shape[1:]))
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"{type(model).__name__} does not run on images of {size}: {type(error).__name__}: {text}; try another "
            "--image_size"
        ) from error
    logits = next(tensors_in(output), None)
    if logits is None or logits.ndim != 2 or len(logits) != len(images):
        found = "nothing" if logits is None else f"a tensor of {tuple(logits.shape)}"
        raise UserError(f"{type(model).__name__} puts out {found}, not logits, (N, K); give it a head for classes")
    return logits


def predict_logits(model: nn.Module, images: Tensor) -> Tensor:
    """`forward` in evaluation mode, without gradients."""
    with undisturbed(model), torch.no_grad():
        return forward(model, images)


def outputs(model: nn.Module, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the first outputs of all modules that run, for one image and without the batch.

    Args:
        model: Any classifier.
        image_shape: (C, H, W).

    Returns:
        By name, in the order in which the modules end; ``()`` where the output is no tensor.
    """
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = next(tensors_in(output), None)
            found.setdefault(name, () if first is None else tuple(first.shape[1:]))

        return hook

    with undisturbed(model) as handles, torch.no_grad():
        handles += [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
        forward(model, torch.zeros(1, *image_shape))
    return found


def is_map(shape: Sequence[int]) -> bool:
    """Whether an output is maps, (C, H, W), of several positions."""
    return len(shape) == 3 and shape[1] * shape[2] > 1


def stages(model: nn.Module, image_shape: Sequence[int]) -> list[str]:
    """The last layer of every resolution at which the network has weights, from the image on.

    Layers are the parts that a network's definition puts in a row: blocks, or single layers where there are no blocks.
    A stage that only pools is left out.

    Raises:
        UserError: The network has no maps.
    """
    shapes = outputs(model, image_shape)
    modules = dict(model.named_modules())
    square = {name: shape if is_map(shape) and shape[1] == shape[2] else () for name, shape in shapes.items()}
    if any(square.values()):  # maps of square images mostly are, and rows of vectors, (H, W, C), are not
        shapes = square
    parts = sorted(_parts("", modules, shapes), key=list(shapes).index)
    ends = []
    for _, stage in groupby(parts, key=lambda name: shapes[name][1:]):
        names = list(stage)
        if any(p.ndim > 1 for name in names for p in modules[name].parameters()):
            ends.append([n for n in names if not isinstance(modules[n], (nn.Identity, nn.Dropout, nn.Dropout2d))][-1])
    if not ends:
        raise UserError(f"{type(model).__name__} has no feature maps; give a network with convolutions")
    return ends


def _parts(name: str, modules: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """Names of the parts of a module that put out maps; of itself where it is one part."""
    shape = shapes.get(name, ())
    prefix = f"{name}." if name else ""
    inside = {s[1:] for n, s in shapes.items() if n.startswith(prefix) and is_map(s)}
    many = len(inside) > 2  # a block changes the resolution once at most
    # A module that is used in several places, such as one ReLU for all, has the name of its first place alone.
    children = [prefix + child for child, _ in modules[name].named_children() if prefix + child in modules]
    if is_map(shape) and not (children and (many or type(modules[name]) is nn.Sequential)):
        yield name
    else:
        for child in children:
            yield from _parts(child, modules, shapes)


def check_layers(model: nn.Module, image_shape: Sequence[int], names: Sequence[str]) -> None:
    """Refuses names of layers that do not run or put out no maps.

    Raises:
        UserError: One of them; the message has the layers that are near it, or the ends of the stages.
    """
    shapes = outputs(model, image_shape)
    maps = [name for name, shape in shapes.items() if is_map(shape)]
    for name in names:
        if name in maps:
            continue
        if name in shapes:
            raise UserError(
                f"layer '{name}' puts out {shapes[name] or 'no tensor'}, not maps, (C, H, W), of several positions; "
                "name another"
            )
        near = [n for n in maps if name and n.startswith(name)] or difflib.get_close_matches(name, maps, 3, 0.5)
        raise unknown("layer", name, list(dict.fromkeys([*near[:8], *stages(model, image_shape)])))


class _Witness(TorchDispatchMode):
    """Keeps what the last activation function put out, and, if wanted, what went into it."""

    def __init__(self, inputs: bool) -> None:
        super().__init__()
        self.inputs = inputs
        self.last: tuple[Tensor, str, Tensor | None] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = base_name(func)
        before = args[0].clone() if self.inputs and name in ACTIVATIONS else None  # it may work in place
        out = func(*args, **(kwargs or {}))
        if name in ACTIVATIONS:
            self.last = out, ACTIVATIONS[name], before
        return out


def record(model: nn.Module, images: Tensor, layers: Sequence[str], before: bool = False) -> dict[str, LayerMap]:
    """Maps of layers for a batch of images.

    Values are copied at once, since an activation in place that follows would overwrite them. Of a layer that runs
    several times the first run counts.

    Args:
        model: Any classifier.
        images: Normalised, (N, C, H, W).
        layers: Names of modules; see `check_layers`.
        before: Whether to take what went into the activation function that made a layer's output, if one did.
    """
    found: dict[str, LayerMap] = {}
    witness = _Witness(before)

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if name in found:
                return
            values, activation = next(tensors_in(output)), None
            if witness.last is not None and witness.last[0] is values:
                _, activation, entered = witness.last
                values = values if entered is None else entered
            found[name] = LayerMap(values.detach().clone(), activation)

        return hook

    modules = dict(model.named_modules())
    with undisturbed(model) as handles, torch.no_grad(), witness:
        handles += [modules[name].register_forward_hook(note(name)) for name in layers]
        forward(model, images)
    return {name: found[name] for name in layers}
