"""Runs of a network without values: the one place in which counting, tracing and the teaching tools run a network.

A dry run works on a copy without values, so the network itself is neither run nor changed. It tells a `Listener` when a
module starts and ends, and which operators run. What happens to the copy inside a pass is undone at its end: attributes
and buffers of the modules, random states, hooks of other users and compiled functions are as before.

There are two kinds of tensors without values:

- ``meta``: shapes alone. This is fast, because `MetaRun` stores the shapes of results.
- ``cpu``: shapes, types and a device, so that autocast casts and autograd stores what they do in a real step.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cnnbench.counting.meta_copy import (
    eager,
    meta_copy,
    untouched_randomness,
    without_global_hooks,
)
from cnnbench.counting.meta_run import MetaRun, tensors_in
from cnnbench.errors import Stopped, UserError
from cnnbench.hardware import autocast, weights_type
from cnnbench.names import INFERENCE_PRECISIONS


class Listener:
    """Receiver of what happens in a dry run; subclasses override what they need."""

    def start(self, images: Tensor) -> None:
        """Note the images of a pass, which begins."""

    def enter(self, module: nn.Module) -> None:
        """Note that a module starts."""

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note that a module has ended; after an error its output is None."""

    def operator(self, operator: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note that an operator has run."""


class DryRun:
    """Copy of a network without values, and its passes.

    Args:
        model: Network that takes one batch of images and returns tensors.
        image_shape: Channels and spatial dimensions of one image, such as (C, H, W).
        listener: Receiver of what happens in the passes.
        purpose: What a pass is for, to complete the error message "cannot ...", such as ``count``.
        kind: Kind of the tensors: ``meta`` or ``cpu``.
        precision: Number format of the passes, by Lightning's name; any but ``32-true`` needs the kind ``cpu``.

    Attributes:
        model: Copy of the network.
        image_shape: Shape of one image.
        names: Path of each module of the copy.
        left_out: What the copy leaves out or shares with the network, in words.
        random_in: Kinds of pass, ``inference`` or ``training``, that drew random numbers.

    Raises:
        UserError: The network cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        image_shape: Sequence[int],
        listener: Listener,
        purpose: str,
        kind: str = "meta",
        precision: str = "32-true",
    ) -> None:
        self.model = model
        self.image_shape = tuple(image_shape)
        self.random_in: dict[str, None] = {}
        self._device = kind
        self._listener = listener
        self._purpose = purpose
        self._precision = precision
        self._running = [model]  # modules that run at the moment, innermost last
        self._batch_size: int | None = None  # number of images in the last pass
        self._failed: tuple[BaseException, nn.Module] | None = None  # last error, innermost module that raised it
        if kind == "cpu":
            # The network may also use tensors that the copy does not replace, such as constants of its module file.
            self._fake: Any = FakeTensorMode(allow_non_fake_inputs=True)
            self._mode: TorchDispatchMode = _Heard(listener)
        else:
            # Tensors on the meta device have no values by themselves.
            self._fake, self._mode = contextlib.nullcontext(), MetaRun(listener.operator)
        with self._refusing(), self._undisturbed() as disabled_hooks:
            self.model, left_out = meta_copy(model, kind)
            # In these formats the weights themselves have 16 bits; in the mixed ones autocast casts them in each call.
            if precision in INFERENCE_PRECISIONS:
                for module in self.model.modules():
                    _cast(module, weights_type(precision))
        self.left_out = (*left_out, *disabled_hooks)
        self.names = {module: name for name, module in self.model.named_modules()}
        for module in self.names:
            module.register_forward_pre_hook(self._enter)
            # With `always_call`, torch runs the hook even after an error, which is how `_leave` learns of it.
            module.register_forward_hook(self._leave, always_call=True)
        # Attributes and buffers before the first pass: a network may remember things from one call to the next.
        self._states = [(module, dict(module.__dict__), dict(module._buffers)) for module in self.names]

    @property
    def running(self) -> nn.Module:
        """Return the innermost module that runs at the moment; between modules, the network."""
        return self._running[-1]

    @contextlib.contextmanager
    def images(self, batch_size: int, training: bool = False) -> Iterator[Tensor]:
        """Open a pass: inside the context, the copy can run on the images that it yields.

        Args:
            batch_size: Number of images.
            training: Whether the copy is in training mode and gradients are enabled.

        Raises:
            UserError: The network does not run on such images; the message names the module.
        """
        self._running = [self.model]
        self._batch_size = batch_size
        try:
            with self._refusing(), untouched_randomness() as have_drawn:
                # A network may have its own `train` and `eval`, so these are called as users call them.
                if training:
                    self.model.train()
                else:
                    self.model.eval()
                # The images have the type of the weights, as a network in 16 bits needs it.
                dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
                with self._undisturbed(), torch.set_grad_enabled(training):
                    images = torch.empty(batch_size, *self.image_shape, device=self._device, dtype=dtype)
                    self._listener.start(images)
                    # The mode begins after the images are made, since making them is no operator of the network.
                    with self._mode:
                        yield images
                if have_drawn():
                    self.random_in["training" if training else "inference"] = None
        finally:
            # The copy gets back the attributes and buffers from before the first pass, but keeps its mode.
            for module, attributes, buffers in self._states:
                training = module.training
                module.__dict__.clear()
                module.__dict__.update(attributes, training=training)
                module._buffers.clear()
                module._buffers.update(buffers)
            # Not by `zero_grad`, which a network may define in its own way.
            for parameter in self.model.parameters():
                parameter.grad = None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Run the copy on images of `images` and return the tensors of its output."""
        with autocast(self._precision, torch.device("cpu")):
            return list(tensors_in(self.model(images)))

    def backward(self, outputs: Sequence[Tensor]) -> None:
        """Run the backward pass from outputs that require a gradient.

        The passes are used for shapes alone, so the gradient of a loss is not needed.
        """
        self._running = [self.model]
        torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[list[str]]:
        """Keep other users' contexts, hooks and compiled code out; yield the names of the hooks that are disabled."""
        # The caller may be in inference mode, in which autograd records nothing.
        with torch.inference_mode(False), without_global_hooks() as disabled, eager(), self._fake:
            yield disabled

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn any error inside the context into a one-line `UserError` that names the module."""
        try:
            yield
        except (UserError, Stopped):
            raise
        except BaseException as error:  # a user's network may raise any error
            raise self._refusal(error) from error

    def _refusal(self, error: BaseException) -> UserError:
        """Return the `UserError` for an error in a pass; it names the innermost module that raised it."""
        names = {module: name for name, module in self.model.named_modules()}
        # An error that no hook has seen is attributed to the module that runs.
        failed = self._failed[1] if self._failed and self._failed[0] is error else self.running
        text = " ".join(str(error).split())[:300]
        hint = ""
        if any(sign in text for sign in _NEEDS_VALUES):
            hint = "; it needs the values of a tensor, which a run without values does not have"
        images = "x".join(map(str, self.image_shape))
        training = ""
        if self._batch_size is not None and self.model.training:
            # Batch normalization refuses a single value per channel, so that the batch size may be the cause.
            training = f" in training (batch of {self._batch_size})"
        return UserError(
            f"cannot {self._purpose} {type(self.model).__name__} on images of {images}{training}: in "
            f"{names.get(failed) or 'its forward'}: {type(error).__name__}: {text}{hint}"
        )

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._running.append(module)
        self._listener.enter(module)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note where an error started, and tell the listener that the module has ended."""
        self._running.pop()
        error = sys.exc_info()[1]
        # Hooks of inner modules run first, so that the first one to see an error belongs to the innermost module.
        if error is not None and (self._failed is None or self._failed[0] is not error):
            self._failed = error, module
        self._listener.leave(module, inputs, output)


_NEEDS_VALUES = "meta tensor", "data-dependent", "item()", "data is not allocated"
"""Words in the errors of torch about a tensor whose values are missing."""


class _Heard(TorchDispatchMode):
    """Dispatch mode that runs each operator and tells a listener."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._listener.operator(func, args, kwargs or {}, out)
        return out


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert floating-point parameters and buffers of a module; ``Module.to`` does not work in a `FakeTensorMode`."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_floating_point():
            module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_floating_point():
            module._buffers[name] = buffer.to(dtype)
