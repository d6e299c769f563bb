"""What a network costs on paper, in inference and in training, counted operator by operator without running it.

A copy without values runs on the meta device; every operator, also those of functional calls and of the backward
graph, passes through the table of `cnnbench.measure.operators` and is booked to the module that called it. What the
table does not have is listed by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench.errors import UserError
from cnnbench.measure import operators
from cnnbench.measure.meta import MetaRun, eager, meta_copy, tensors_in, untouched_randomness
from cnnbench.measure.receptive_field import Field, FieldTracker

CONVENTION = (
    "1 MAC = 1 multiply-add = 2 FLOPs; convolutions and matrix products only; bias excluded; one image; inference; "
    "training MACs are those of forward, input gradients and weight gradients"
)
# What a record of a benchmark keeps.
COUNTS = ("params", "macs", "flops", "activations", "other_ops", "train_macs")


@dataclass(frozen=True)
class Layer:
    """Share of one module: what it does itself, without its children.

    Attributes:
        name: Path of the module, empty for the network itself.
        type: Its class.
        output_shape: Shape of its output for one image, without the batch; None if it was not called.
        params: Parameters that it holds; a shared one belongs to the module that comes first.
        macs: Multiply-adds of all its calls for one image.
        other_ops: Its other arithmetic.
        train_macs: Multiply-adds of a training step per image, forward and backward; None if not asked for.
        calls: How often it ran in inference.
        receptive_field: ``size``, ``jump`` and ``start`` in pixels; ``"image"`` if it sees all of any image; None
            where it is not defined.
    """

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    params: int
    macs: int
    other_ops: int
    train_macs: int | None
    calls: int
    receptive_field: dict[str, Any] | str | None


@dataclass(frozen=True)
class Complexity:
    """What one image costs.

    Attributes:
        params: Weights and biases, frozen or not; a shared one counts once.
        trainable_params: Those that want a gradient.
        macs: Multiply-adds of convolutions and matrix products in inference, bias excluded.
        other_ops: Other arithmetic in inference: bias, normalisation, activations, pooling, element-wise.
        activations: Values that convolutions and matrix products put out (Radosavovic et al. 2020, arXiv 2003.13678).
        train_forward_macs: Multiply-adds of the forward pass in training mode, auxiliary heads included.
        train_macs: Those of a training step per image: forward, gradients of inputs, gradients of weights. Loss and
            optimizer have none.
        receptive_field: Of the last map whose units see different parts of the image; see `Layer`.
        batch_linear: Whether 8 images cost exactly 8 times the MACs of one, and the forward pass of 4 in training
            twice that of 2.
        uncounted: Operators without a rule, with their number of calls, and hooks that were left out.
        layers: Modules in the order of their first call. Their parameters, MACs, other operations and training MACs
            add up to those of the network.
    """

    params: int
    trainable_params: int
    macs: int
    other_ops: int
    activations: int
    train_forward_macs: int | None
    train_macs: int | None
    receptive_field: dict[str, Any] | str | None
    batch_linear: bool
    uncounted: tuple[str, ...]
    layers: tuple[Layer, ...]

    @property
    def flops(self) -> int:
        """Twice the MACs."""
        return 2 * self.macs

    def figures(self) -> dict[str, Any]:
        """Everything but the layers, for records and JSON."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layers"}
        return found | {"flops": self.flops, "uncounted": list(self.uncounted)}


def complexity(model: nn.Module, image_shape: Sequence[int], training: bool = True) -> Complexity:
    """Counts what a network costs for one image.

    The network is neither run nor changed: a copy without values runs on the meta device, in inference with 1 and with
    8 images, in training with 2 and with 4, since batch norm needs more than one value per channel there. Of what is
    spent once per batch, whatever its size, one image bears all.

    Args:
        model: Any network that takes one batch of images and returns tensors.
        image_shape: Channels and extents of one image, such as (C, H, W); (C, L) and (C, D, H, W) work too.
        training: Whether to count a training step as well; its figures are None otherwise.

    Raises:
        UserError: The network does not run on such images, or needs their values; the message names the module.
    """
    passes = _Passes(model, tuple(image_shape))
    one, eight = passes.inference(1), passes.inference(8)
    linear = eight.total("macs") == 8 * one.total("macs")
    two = four = None
    if training:
        two, check = passes.training(2), passes.training(4, backward=False)
        if check.forward_macs != 2 * two.forward_macs:  # else backward, product by product, grows as forward does
            linear, four = False, passes.training(4)
    unknown = one.unknown | two.unknown if two else one.unknown
    layers = tuple(passes.layers(one, two, four))
    return Complexity(
        params=sum(layer.params for layer in layers),
        trainable_params=sum(p.numel() for p in passes.model.parameters() if p.requires_grad),
        macs=one.total("macs"),
        other_ops=one.total("other"),
        activations=one.activations,
        train_forward_macs=_of_one(two, four, lambda books: books.forward_macs),
        train_macs=_of_one(two, four, lambda books: books.total("macs")),
        receptive_field=passes.receptive_field(one),
        batch_linear=linear,
        uncounted=(*(f"{name} ({calls} calls)" for name, calls in sorted(unknown.items())), *passes.removed_hooks),
        layers=layers,
    )


def _of_one(two: _Books | None, four: _Books | None, cost: Callable[[_Books], int]) -> int | None:
    """The cost of one image from that of two, and of four if a part is spent once per batch."""
    if two is None:
        return None
    return cost(two) // 2 if four is None else (3 * cost(two) - cost(four)) // 2


class _Books:
    """Costs of one pass, by module."""

    def __init__(self) -> None:
        self.macs: Counter[nn.Module] = Counter()
        self.other: Counter[nn.Module] = Counter()
        self.calls: Counter[nn.Module] = Counter()
        self.shapes: dict[nn.Module, tuple[int, ...] | None] = {}
        self.fields: dict[nn.Module, Field | None] = {}
        self.unknown: Counter[str] = Counter()
        self.activations = 0
        self.forward_macs = 0

    def total(self, column: str) -> int:
        return sum(getattr(self, column).values())


class _Passes:
    """Passes of the copy of a network; each fills books of its own."""

    def __init__(self, model: nn.Module, image_shape: tuple[int, ...]) -> None:
        self.image_shape = image_shape
        self.model, self.removed_hooks = meta_copy(model)
        self._books = _Books()
        self._fields: FieldTracker | None = None
        self._stack = [self.model]
        self._module_of_node: dict[int, nn.Module] = {}
        self._rules: dict[Any, operators.Rule | None] = {}
        self._mode = MetaRun(self._book)
        for module in self.model.modules():
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    def inference(self, batch: int) -> _Books:
        self.model.eval()
        x = self._images(batch)
        self._fields = FieldTracker(x) if batch == 1 else None
        with torch.no_grad():
            self._forward(x)
        return self._books

    def training(self, batch: int, backward: bool = True) -> _Books:
        self.model.train()
        x = self._images(batch)
        self._fields = None
        with torch.enable_grad():
            outputs = [t for t in tensors_in(self._forward(x)) if t.requires_grad]
            self._books.forward_macs = self._books.total("macs")
            if outputs and backward:
                with untouched_randomness(), eager(), self._mode:
                    torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
        self.model.zero_grad(set_to_none=True)
        return self._books

    def layers(self, one: _Books, two: _Books | None, four: _Books | None) -> Iterator[Layer]:
        """Modules that ran or hold parameters."""
        order = {module: index for index, module in enumerate(one.calls)}
        names = {module: name for name, module in self.model.named_modules()}
        seen: set[int] = set()
        found = []
        for module, name in names.items():
            params = [p for p in module.parameters(recurse=False) if id(p) not in seen]
            seen |= {id(p) for p in params}
            layer = Layer(
                name=name,
                type=type(module).__name__,
                output_shape=one.shapes.get(module),
                params=sum(p.numel() for p in params),
                macs=one.macs[module],
                other_ops=one.other[module],
                train_macs=_of_one(two, four, lambda books, module=module: books.macs[module]),  # type: ignore[misc]
                calls=one.calls[module],
                receptive_field=self._shown(one.fields.get(module)),
            )
            has_cost = layer.params or layer.macs or layer.other_ops or layer.train_macs
            if has_cost or (layer.calls and not any(module.children())):
                found.append((order.get(module, len(order)), layer))
        return (layer for _, layer in sorted(found, key=lambda pair: pair[0]))

    def receptive_field(self, one: _Books) -> dict[str, Any] | str | None:
        """That of the last map whose units see different parts; if there is none after a whole one, the whole."""
        for field in reversed(one.fields.values()):
            if field is None or field.whole or field.local:
                return self._shown(field)
        return None

    def _shown(self, field: Field | None) -> dict[str, Any] | str | None:
        if field is None:
            return None
        covers = all(a.low <= 0 and a.high >= n for a, n in zip(field.axes, self.image_shape[1:], strict=True))
        return "image" if field.whole or (covers and not field.local) else field.as_dict()

    def _images(self, batch: int) -> Tensor:
        self._books = _Books()
        self._stack = [self.model]
        self._module_of_node = {}
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return torch.empty(batch, *self.image_shape, device="meta", dtype=dtype)

    def _forward(self, x: Tensor) -> Any:
        try:
            with untouched_randomness(), eager(), self._mode:
                return self.model(x)
        except Exception as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> UserError:
        names = {module: name for name, module in self.model.named_modules()}
        text = " ".join(str(error).split())[:300]
        needs_values = isinstance(error, NotImplementedError) or "meta" in text
        hint = "; it needs the values of a tensor, which counting does not have" if needs_values else ""
        images = "x".join(map(str, self.image_shape)) + (" in training" if self.model.training else "")
        return UserError(
            f"cannot count {type(self.model).__name__} on images of {images}: in "
            f"{names.get(self._stack[-1]) or 'its forward'}: {type(error).__name__}: {text}{hint}"
        )

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._stack.append(module)
        self._books.calls[module] += 1

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()
        if module not in self._books.shapes:
            first = next(tensors_in(output), None)
            self._books.shapes[module] = None if first is None else tuple(first.shape[1:])
            if self._fields is not None:
                self._books.fields[module] = self._fields.field_of(first)

    def _book(self, operator: Any, args: Any, out: Any) -> None:
        """Books an operator to the module that runs; in the backward pass, to that of the operator it belongs to."""
        if operator not in self._rules:
            self._rules[operator] = operators.rule_of(operator)
        rule, books = self._rules[operator], self._books
        node = torch._C._current_autograd_node()
        backward = node is not None and not torch.is_grad_enabled()
        if backward:
            module = self._module_of_node.get(node._sequence_nr(), self.model)
        else:
            module = self._stack[-1]
            self._module_of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, module)
        if self._fields is not None:
            self._fields(operator, args, out)
        if rule is None:
            books.unknown[str(operator)] += 1
            return
        cost = rule(args, out)
        if cost.macs:
            books.macs[module] += cost.macs
            books.activations += 0 if backward else out.numel()
        if cost.other:
            books.other[module] += cost.other
