"""Access to what a network computes between image and logits: its layers, the ends of its stages, their feature maps.

The network is not changed. It runs in evaluation mode with temporary hooks. Afterwards, also after an error, the hooks
are removed, and modes, buffers and random states are restored.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from cnnbench.counting.meta_copy import untouched_randomness
from cnnbench.counting.meta_run import tensors_in
from cnnbench.counting.operators import base_name
from cnnbench.errors import Stopped, UserError, unknown

ACTIVATIONS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "hardswish": "hard swish",
    "hardtanh": "hard tanh",
    "leaky_relu": "leaky ReLU",
    "_prelu_kernel": "PReLU",
    "elu": "ELU",
    "mish": "Mish",
    "softplus": "softplus",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hard sigmoid",
    "tanh": "tanh",
}
"""Names of activation functions by torch's operators. ReLU6 is called a hard tanh, because torch runs it as one."""


class LayerMap(NamedTuple):
    """Feature maps of a layer.

    Attributes:
        values: Feature maps, (N, C, H, W).
        activation: Name of the activation function that computed the layer's output; None if another operator did.
    """

    values: Tensor
    activation: str | None


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[list[RemovableHandle]]:
    """Put a network in evaluation mode for a block, and restore its modes, buffers and the random states after it.

    Yields:
        An empty list for handles of hooks; the hooks in it are removed at the end of the block.
    """
    # Modules can be in different modes, such as a frozen batch norm, which `model.train()` would not restore.
    modes = [(module, module.training) for module in model.modules()]
    buffers = []
    for module in model.modules():
        for name, tensor in module._buffers.items():
            if tensor is not None:
                buffers.append((module, name, tensor, tensor.clone()))
    handles: list[RemovableHandle] = []
    try:
        # Tensors made in inference mode cannot take part in a backward pass, which Grad-CAM needs.
        with untouched_randomness(), torch.inference_mode(False):
            model.eval()
            yield handles
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, value in buffers:
            # A forward pass may have replaced the buffer, or have changed its values in place.
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of a network in its present mode, (N, K); if it has several heads, those of the first.

    Args:
        model: Any classifier.
        images: Normalised images, (N, C, H, W).

    Raises:
        UserError: The network does not run on such images, or its output is not logits.
    """
    try:
        output = model(images)
    except (UserError, Stopped):
        raise
    except BaseException as error:  # a user's network may raise any kind of exception
        size = "x".join(map(str, images.shape[1:]))
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"{type(model).__name__} does not run on images of {size}: {type(error).__name__}: {text}; try another "
            "--image_size"
        ) from error
    logits = next(tensors_in(output), None)
    if logits is None or logits.ndim != 2 or len(logits) != len(images):
        kind = "nothing" if logits is None else f"a tensor of {tuple(logits.shape)}"
        raise UserError(f"{type(model).__name__} puts out {kind}, not logits, (N, K); give it a head for classes")
    return logits


def predict_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of a network in evaluation mode, without gradients; see `forward`."""
    with undisturbed(model), torch.no_grad():
        return forward(model, images)


def outputs(model: nn.Module, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of the first output of every module that runs, without the batch dimension.

    Args:
        model: Any classifier.
        image_shape: Channels, height and width of one image, (C, H, W).

    Returns:
        Shapes by name of the module, in the order in which the first runs of the modules end; ``()`` where the output
        holds no tensor.

    Raises:
        UserError: The network does not run on such images, or its output is not logits.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        # A module that runs again keeps the shape and the place of its first run.
        first = next(tensors_in(output), None)
        shapes.setdefault(name, () if first is None else tuple(first.shape[1:]))

    with undisturbed(model) as handles, torch.no_grad():
        handles += [module.register_forward_hook(partial(note, name)) for name, module in model.named_modules()]
        forward(model, torch.zeros(1, *image_shape))
    return shapes


def is_map(shape: Sequence[int]) -> bool:
    """Return whether an output shape is that of feature maps, (C, H, W), with more than one position."""
    return len(shape) == 3 and shape[1] * shape[2] > 1


def stages(model: nn.Module, image_shape: Sequence[int]) -> list[str]:
    """Return the last layer of each stage, in forward order.

    A stage is a run of layers with the same resolution, at least one of which has weights; a stage that only pools is
    left out. Layers are the parts that the definition of a network puts in sequence: blocks, or single layers where a
    network has no blocks.

    Args:
        model: Any classifier.
        image_shape: Channels, height and width of one image, (C, H, W).

    Returns:
        Names of the layers.

    Raises:
        UserError: The network has no feature maps.
    """
    shapes = outputs(model, image_shape)
    modules = dict(model.named_modules())
    # Feature maps of square images are square as a rule; an output in the order (H, W, C), read as (C, H, W), is not.
    square = {name: shape for name, shape in shapes.items() if is_map(shape) and shape[1] == shape[2]}
    if square:
        shapes = {name: square.get(name, ()) for name in shapes}
    # Names come in the order of the definition, shapes in that of the runs, which is the one that counts.
    parts = sorted(_parts("", modules, shapes), key=list(shapes).index)
    ends = []
    # `groupby` joins neighbours only: a resolution that comes again after another one begins a new stage.
    for _, stage in groupby(parts, key=lambda name: shapes[name][1:]):
        names = list(stage)
        # Parameters with a single dimension, such as biases and scales of norms, do not count as weights here.
        weights = [p for name in names for p in modules[name].parameters() if p.ndim > 1]
        # Identity and dropout do nothing in evaluation mode, so the layer before them is called the last one.
        active = [name for name in names if not isinstance(modules[name], (nn.Identity, nn.Dropout, nn.Dropout2d))]
        if weights:
            ends.append(active[-1])
    if not ends:
        raise UserError(f"{type(model).__name__} has no feature maps; give a network with convolutions")
    return ends


def _parts(name: str, modules: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield the names of a module's parts whose output is feature maps, or its own name if it is a single part."""
    shape = shapes.get(name, ())
    prefix = f"{name}." if name else ""
    resolutions = {s[1:] for n, s in shapes.items() if n.startswith(prefix) and is_map(s)}
    # A block changes the resolution at most once, so a module with more resolutions is a sequence of blocks.
    is_sequence = len(resolutions) > 2 or type(modules[name]) is nn.Sequential
    # A module that is used in several places, such as one ReLU for all blocks, is listed only under its first name.
    children = [prefix + child for child, _ in modules[name].named_children() if prefix + child in modules]
    if is_map(shape) and not (children and is_sequence):
        yield name
        return
    for child in children:
        yield from _parts(child, modules, shapes)


def check_layers(model: nn.Module, image_shape: Sequence[int], names: Sequence[str]) -> None:
    """Raise UserError unless every name is that of a layer that runs and whose output is feature maps.

    Args:
        model: Any classifier.
        image_shape: Channels, height and width of one image, (C, H, W).
        names: Names of layers to check.

    Raises:
        UserError: A name is not that of such a layer. For an unknown name the message lists layers with similar names
            and the last layer of each stage.
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
        near = difflib.get_close_matches(name, maps, 3, 0.5)
        # The start of a name, such as that of a block, stands for all layers in it.
        if name:
            near = [n for n in maps if n.startswith(name)] or near
        raise unknown("layer", name, list(dict.fromkeys([*near[:8], *stages(model, image_shape)])))


class _Witness(TorchDispatchMode):
    """Mode that keeps the output of the last activation function that ran, with its name and, if wanted, its input."""

    def __init__(self, inputs: bool) -> None:
        super().__init__()
        self.inputs = inputs
        self.last: tuple[Tensor, str, Tensor | None] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Every call arrives here as an operator, whether the network uses nn.ReLU, F.relu or a method of the tensor.
        activation = ACTIVATIONS.get(base_name(func))
        before = None
        if activation is not None and self.inputs:
            before = args[0].clone()  # the function may overwrite its input
        out = func(*args, **(kwargs or {}))
        if activation is not None:
            self.last = out, activation, before
        return out


def record(model: nn.Module, images: Tensor, layers: Sequence[str], before: bool = False) -> dict[str, LayerMap]:
    """Return the feature maps of layers for a batch of images.

    Values are copied as soon as a layer has run, because a later activation in place would overwrite them. If a layer
    runs several times, its first run counts.

    Args:
        model: Any classifier.
        images: Normalised images, (N, C, H, W).
        layers: Names of modules whose output is feature maps; see `check_layers`.
        before: Whether to return the input of the activation function that computed a layer's output, if one did.

    Returns:
        Feature maps by name of the layer, in the order of `layers`.
    """
    maps: dict[str, LayerMap] = {}
    witness = _Witness(before)

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if name in maps:
            return
        values, activation = next(tensors_in(output)), None
        # The layer ends with an activation function if its output is the tensor that this function returned.
        if witness.last is not None and witness.last[0] is values:
            _, activation, entered = witness.last
            if entered is not None:
                values = entered
        maps[name] = LayerMap(values.detach().clone(), activation)

    modules = dict(model.named_modules())
    with undisturbed(model) as handles, torch.no_grad(), witness:
        handles += [modules[name].register_forward_hook(partial(note, name)) for name in layers]
        forward(model, images)
    return {name: maps[name] for name in layers}
