"""Cost of a network in inference and in training, counted operator by operator without running the network.

A copy of the network without values runs on the meta device. Every operator of the forward pass and of the backward
graph is looked up in the cost table of `cnnbench.counting.operators`, and its cost is added to the module that called
it. So functional calls count like modules, and the cost of training comes from the graph that autograd builds.
Operators that the table does not contain are listed by name.
"""

from __future__ import annotations

import contextlib
import html
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnbench.counting import operators
from cnnbench.counting.dry_run import DryRun, Listener
from cnnbench.counting.meta_copy import unregistered_modules
from cnnbench.counting.meta_run import tensors_in
from cnnbench.counting.receptive_field import Field, FieldTracker
from cnnbench.errors import UserError
from cnnbench.measures import COMPLEXITY, Subject, Taken


@dataclass(frozen=True)
class Layer:
    """Cost of one module on its own, without its submodules.

    Attributes:
        name: Path of the module in the network; empty for the network itself.
        type: Class name of the module.
        output_shape: Shape of the first tensor of its output for one image, without the batch dimension; None if the
            module was not called.
        params: Number of parameters that the module holds; a shared parameter belongs to the first module that holds
            it.
        macs: Multiply-adds of all calls of the module for one image in inference.
        other_ops: Other arithmetic operations of these calls; see `cnnbench.counting.operators`.
        train_macs: Multiply-adds of a training step per image, forward and backward; None if training was not counted.
        calls: Number of calls in one forward pass in inference.
        receptive_field: Dictionary with ``size``, ``jump`` and ``start`` in pixels; ``"image"`` if each unit sees the
            whole of any image; None where the receptive field is not defined.
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
    """Cost of one image.

    Attributes:
        params: Number of weights and biases, trainable or frozen; a shared parameter counts once.
        trainable_params: Number of those that require a gradient.
        macs: Multiply-adds of convolutions and matrix products in inference, bias excluded.
        other_ops: Other arithmetic in inference: bias, normalisation, activations, pooling, element-wise operators.
        activations: Number of output values of convolutions and matrix products in inference (Radosavovic et al. 2020,
            arXiv 2003.13678).
        train_forward_macs: Multiply-adds of the forward pass in training mode, auxiliary heads included; None where
            ``train_macs`` is None.
        train_macs: Multiply-adds of a training step per image: forward pass, input gradients and weight gradients. The
            loss and the optimizer have none. None if training was not counted, or if one image has no cost of its own
            because the cost is no straight line over the batch size.
        receptive_field: Receptive field of the last feature map whose units see different parts of the image; see
            `Layer`.
        depth: Number of convolutions and linear layers on the longest path from image to output. A shared layer counts
            once per call; layers of shorter parallel branches do not count. None if the images have no spatial
            dimensions, or if memory that was written in parts hides the path.
        batch_linear: Whether 8 images cost exactly 8 times the MACs of one, and, if training was counted, the forward
            pass of 4 images in training mode costs exactly twice that of 2.
        uncounted: Operators without a rule and their number of calls, hooks that were left out, and objects that the
            copy shares with the network.
        remarks: Other facts that a reader of the count must know, such as a cost that does not grow with the batch.
        layers: Modules in the order of their first call. Their parameters, MACs, other operations and training MACs add
            up to those of the network.
    """

    params: int
    trainable_params: int
    macs: int
    other_ops: int
    activations: int
    train_forward_macs: int | None
    train_macs: int | None
    receptive_field: dict[str, Any] | str | None
    depth: int | None
    batch_linear: bool
    uncounted: tuple[str, ...]
    remarks: tuple[str, ...]
    layers: tuple[Layer, ...]

    @property
    def flops(self) -> int:
        """Return the floating-point operations, which are twice the MACs."""
        return 2 * self.macs

    def __str__(self) -> str:
        """Return a table of ten lines."""
        return "\n".join(f"{title:<17} {value:>16} {remark}".rstrip() for title, value, remark in self._rows())

    def _repr_html_(self) -> str:
        """Return the same table for a notebook."""
        rows = []
        for cells in self._rows():
            columns = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            rows.append(f"<tr>{columns}</tr>")
        return f"<table>{''.join(rows)}</table>"

    def _rows(self) -> list[tuple[str, str, str]]:
        """Return title, value and remark of each row of the table."""
        frozen, remark_on_frozen, ratio = self.params - self.trainable_params, "", ""
        if frozen:
            remark_on_frozen = f"{frozen:,} of them frozen"
        if self.macs and self.train_macs:
            ratio = f"{self.train_macs / self.macs:.4g} x inference"
        train_macs = "-" if self.train_macs is None else f"{self.train_macs:,}"
        depth = "-" if self.depth is None else str(self.depth)
        uncounted = ", ".join(self.uncounted)
        return [
            ("parameters", f"{self.params:,}", remark_on_frozen),
            ("MACs", f"{self.macs:,}", "multiply-adds of one image"),
            ("FLOPs", f"{self.flops:,}", "twice the MACs"),
            ("training MACs", train_macs, ratio),
            ("other operations", f"{self.other_ops:,}", "normalisation, activations, pooling, bias"),
            ("activations", f"{self.activations:,}", "outputs of convolutions and matrix products"),
            ("receptive field", _size_of_field(self.receptive_field), "pixels, of the last map"),
            ("depth", depth, "layers with weights on the longest path"),
            ("modules", str(len(self.layers)), "that compute or hold parameters"),
            ("not counted", uncounted or "nothing", ""),
        ]

    def figures(self) -> dict[str, Any]:
        """Return every figure except the layers, for records and JSON."""
        figures = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layers"}
        # JSON has lists and no tuples.
        return figures | {"flops": self.flops, "uncounted": list(self.uncounted), "remarks": list(self.remarks)}


def _size_of_field(field: dict[str, Any] | str | None) -> str:
    """Return the size of a receptive field as text, with a number per axis if the axes differ."""
    if field is None:
        return "-"
    if isinstance(field, str):
        return field
    if isinstance(field["size"], list):
        return "x".join(f"{n:g}" for n in field["size"])
    return str(field["size"])


def complexity(model: nn.Module, image_shape: Sequence[int], training: bool = True) -> Complexity:
    """Count the cost of a network for one image.

    The network itself is neither run nor changed. A copy without values runs on the meta device: in inference with 1
    and 8 images, and in training with 2 and 4, since batch norm may need more than one. Work that is done once per
    batch, whatever the batch size, is charged in full to the one image.

    Args:
        model: Network that takes one batch of images and returns tensors.
        image_shape: Channels and spatial dimensions of one image, such as (C, H, W); (C, L) and (C, D, H, W) work too.
        training: Whether to count a training step as well; the training figures are None otherwise.

    Returns:
        The figures of the network and of each of its layers.

    Raises:
        UserError: The shape is not valid, or the network does not run on such images, or its forward pass needs the
            values of a tensor. The message names the module.
    """
    if any(not isinstance(n, int) or n < 1 for n in image_shape):
        raise UserError(f"image_shape {tuple(image_shape)} must be channels and extents, whole numbers of at least 1")
    return _Passes(model, tuple(image_shape)).complexity(training)


def take_complexity(subject: Subject) -> Taken:
    """Take the measure `complexity` of a benchmark.

    Args:
        subject: Network to measure, with the shape of its images.

    Returns:
        The figures of the measure; operators without a rule are named under ``skipped``.
    """
    cost = complexity(subject.model, subject.image_shape)
    skipped = {}
    if cost.uncounted:
        skipped["operators"] = f"not counted: {', '.join(cost.uncounted)}"
    return Taken({figure.key: getattr(cost, figure.key) for figure in COMPLEXITY.figures}, skipped)


def receptive_fields(model: nn.Module, image_shape: Sequence[int]) -> dict[str, dict[str, Any] | str | None]:
    """Return the receptive field of the first output of every module that runs, by module name.

    Unlike `complexity`, whose layers all have a cost, this includes blocks and other containers.

    Args:
        model: Network that takes one batch of images and returns tensors.
        image_shape: Channels and spatial dimensions of one image.

    Returns:
        Receptive fields by module name, in the form that `Layer` describes.

    Raises:
        UserError: The network does not run on such images, or its forward pass needs the values of a tensor.
    """
    passes = _Passes(model, tuple(image_shape))
    # Receptive fields are followed only in a pass of one image; see `_Passes.start`.
    fields_of = passes.inference(1).fields
    shown: dict[str, dict[str, Any] | str | None] = {}
    for module, name in passes.names.items():
        if module in fields_of:
            shown[name] = passes.shown(fields_of[module])
    return shown


def map_dimensions(model: nn.Module, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return which dimension of the output runs along each axis of the image, by module name.

    Modules whose output has no such dimensions, or whose receptive field is not defined, are left out; see
    `receptive_fields` for arguments and errors.
    """
    passes = _Passes(model, tuple(image_shape))
    fields_of = passes.inference(1).fields
    dimensions = {}
    for module, name in passes.names.items():
        field = fields_of.get(module)
        if field is not None and field.map_dims is not None:
            dimensions[name] = field.map_dims
    return dimensions


_CONVOLUTIONS: frozenset[Any] = frozenset(
    (torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
)


class ComplexConvolutions(TorchFunctionMode):
    """Filter that counts a complex convolution once.

    Torch computes a complex convolution as three real ones and some additions (Gauss's trick). A complex multiply-add
    counts as one, as in a complex matrix product. So the first of the three convolutions is counted and the other
    operators are skipped. The filter slows every call of torch, so it is off until a complex tensor appears.

    Attributes:
        on: Whether the filter watches for complex convolutions.
        needed: Whether a complex tensor appeared while the filter was off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on = self.needed = False
        self._inside = False
        self._booked = False
        self._skipped_nodes: set[int] = set()

    def __enter__(self) -> ComplexConvolutions:
        self._skipped_nodes.clear()
        if self.on:
            super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.on:
            super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = (*args, *(kwargs or {}).values())
        is_complex = func in _CONVOLUTIONS and any(isinstance(value, Tensor) and value.is_complex() for value in values)
        if not is_complex:
            return func(*args, **(kwargs or {}))
        # Torch splits a complex convolution below this call, so all operators until it returns belong to the trick.
        self._inside, self._booked = True, False
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._inside = False

    def skips(self, operator: Any, out: Any, backward_node: Any) -> bool:
        """Return whether an operator is part of the trick and must not be counted.

        Args:
            operator: Operator that has just run.
            out: Result of the operator.
            backward_node: Node of the backward graph that called the operator; None in the forward pass.
        """
        if not self.on:
            # A first complex result tells `_Passes.complexity` to repeat the pass with the filter on.
            self.needed = self.needed or (isinstance(out, Tensor) and out.is_complex())
            return False
        if backward_node is not None:
            # A node of the backward graph has the sequence number of the forward operator that it belongs to.
            return backward_node._sequence_nr() in self._skipped_nodes
        if not self._inside:
            return False
        # The first convolution stands for the complex one. The nodes that autograd made for the other operators are
        # remembered, so that their gradients are skipped in the backward pass too.
        if operator.overloadpacket is torch.ops.aten.convolution and not self._booked:
            self._booked = True
            return False
        self._skipped_nodes.add(torch._C._autograd._get_sequence_nr() - 1)
        return True


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
        self.has_backward = False
        self.depth: int | None = None

    def total(self, column: str) -> int:
        """Return the sum of a column over all modules."""
        return sum(getattr(self, column).values())


class _Training(NamedTuple):
    """Books of a training step of two images, and of four if part of the cost arises once per batch."""

    two: _Books
    four: _Books | None

    def of_one(self, cost: Callable[[_Books], int]) -> int:
        """Return a cost for one image, with all of the cost that arises once per batch."""
        if self.four is None:
            return cost(self.two) // 2
        # A cost of f per batch and v per image gives two = f + 2v and four = f + 4v, so f + v = (3 two - four) / 2.
        return (3 * cost(self.two) - cost(self.four)) // 2

    def macs_of(self, module: nn.Module) -> int:
        """Return the multiply-adds of a module for one image."""
        return self.of_one(lambda books: books.macs[module])


def _per_image(one: tuple[int, ...] | None, eight: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return a shape without its batch dimension if that is the first one, else the shape unchanged."""
    # The batch dimension is the one that grows with the number of images.
    if one and eight and eight == (8 * one[0], *one[1:]):
        return one[1:]
    return one


class _Passes(Listener):
    """Forward and backward passes of a dry run; each pass fills its own books."""

    def __init__(self, model: nn.Module, image_shape: tuple[int, ...]) -> None:
        self.image_shape = image_shape
        self._complex = ComplexConvolutions()
        self._books = _Books()
        self._fields: FieldTracker | None = None
        self._module_of_node: dict[int, nn.Module] = {}
        self._rules: dict[Any, operators.Rule | None] = {}
        self._unregistered = unregistered_modules(model)
        self._run = DryRun(model, image_shape, self, "count")
        self.names = self._run.names

    def complexity(self, training: bool) -> Complexity:
        """Run all passes and return the figures; training figures are None if training is False."""
        # Inference: one image for the figures, and eight to see whether the MACs grow in proportion.
        one = self.inference(1)
        if self._complex.needed:
            # There are complex tensors, and the filter for their convolutions was off.
            self._complex.on = True
            one = self.inference(1)
        eight = self.inference(8)
        macs, macs_of_eight = one.total("macs"), eight.total("macs")
        linear, remarks = macs_of_eight == 8 * macs, []
        if not linear:
            remarks.append(f"8 images cost {macs_of_eight:,} MACs, which is not 8 times the {macs:,} of one")
        unknown = one.unknown
        train: _Training | None = None
        train_macs: int | None = None
        train_forward_macs: int | None = None
        if training:
            train, more = self.train()
            linear = linear and train is not None and train.four is None
            remarks += more
        if train is not None:
            # The union of two counters keeps the larger number of calls of each operator; it does not add them.
            unknown = unknown | train.two.unknown
            train_macs = train.of_one(lambda books: books.total("macs"))
            train_forward_macs = train.of_one(lambda books: books.forward_macs)
        # The warnings come last, since they depend on what all passes did.
        remarks += self._warnings()
        layers = tuple(self.layers(one, eight, train))
        return Complexity(
            params=sum(layer.params for layer in layers),
            trainable_params=sum(p.numel() for p in self._run.model.parameters() if p.requires_grad),
            macs=macs,
            other_ops=one.total("other"),
            activations=one.activations,
            train_forward_macs=train_forward_macs,
            train_macs=train_macs,
            receptive_field=self.receptive_field(one),
            depth=one.depth,
            batch_linear=linear,
            uncounted=(*(f"{name} ({calls} calls)" for name, calls in sorted(unknown.items())), *self._run.left_out),
            remarks=tuple(remarks),
            layers=layers,
        )

    def _warnings(self) -> Iterator[str]:
        """Yield the reasons why the count may not describe what the user has in mind."""
        unregistered = self._unregistered
        if unregistered:
            several = ""
            if len(unregistered) > 3:
                several = f" and {len(unregistered) - 3} more"
            yield (
                f"{', '.join(unregistered[:3])}{several}: layers in a plain list, tuple or dict run, but their "
                "weights are not counted, not trained and not saved; use nn.ModuleList or nn.ModuleDict"
            )
        if self._run.random_in:
            yield (
                f"the forward pass draws random numbers in {' and '.join(self._run.random_in)}: what it does may "
                "differ from call to call, and the counts are those of one draw"
            )

    def train(self) -> tuple[_Training | None, list[str]]:
        """Count training steps at as many batch sizes as the cost of one image requires.

        Returns:
            The books of these steps, or None if one image has no cost of its own; and remarks for the reader.
        """
        two, check = self.training(2), self.training(4, backward=False)
        remarks = []
        if not two.has_backward and any(p.requires_grad for p in self._run.model.parameters()):
            remarks.append("no output of the network leads back to its parameters: the training step is forward only")
        # Each product of the backward pass grows with the batch as its product in the forward pass does.
        if check.forward_macs == 2 * two.forward_macs:
            return _Training(two, None), remarks
        four, six = self.training(4), self.training(6)
        # A fixed cost per batch plus a cost per image is a straight line: both differences are equal.
        totals = [books.total("macs") for books in (two, four, six)]
        if totals[2] - totals[1] != totals[1] - totals[0]:
            remarks.append(f"training steps of 2, 4 and 6 images cost {totals} MACs, so that one image has no cost")
            return None, remarks
        remarks.append(
            f"{(2 * totals[0] - totals[1]):,} MACs of a training step are spent once for any number of images"
        )
        return _Training(two, four), remarks

    def inference(self, batch: int) -> _Books:
        """Run the forward pass in inference; with one image, follow receptive fields and depth as well."""
        with self._pass(batch, training=False) as images:
            outputs = self._run.forward(images)
            if not outputs:
                # Inside the pass, this becomes a `UserError` that names the network.
                raise TypeError("its forward returns no tensor")
            if self._fields is not None:
                depths = [self._fields.depth_of(t) for t in outputs]
                known = [depth for depth in depths if depth is not None]
                # If one of the paths is hidden, nobody knows which is the longest.
                if len(known) == len(depths):
                    self._books.depth = max(known)
        return self._books

    def training(self, batch: int, backward: bool = True) -> _Books:
        """Run a training step without loss and optimizer; without `backward`, its forward pass alone."""
        with self._pass(batch, training=True) as images:
            # An output that depends on no trainable parameter has no backward pass.
            outputs = [t for t in self._run.forward(images) if t.requires_grad]
            self._books.forward_macs = self._books.total("macs")
            self._books.has_backward = bool(outputs)
            if outputs and backward:
                self._run.backward(outputs)
        return self._books

    @contextlib.contextmanager
    def _pass(self, batch: int, training: bool) -> Iterator[Tensor]:
        """Open new books and a pass of the dry run."""
        self._books = _Books()
        self._module_of_node = {}
        with self._complex, self._run.images(batch, training) as images:
            yield images

    def start(self, images: Tensor) -> None:
        """Follow receptive fields from one image on, but not from a batch."""
        self._fields = None
        if len(images) == 1 and images.dim() > 2:
            self._fields = FieldTracker(images)

    def layers(self, one: _Books, eight: _Books, train: _Training | None) -> list[Layer]:
        """Return the layers that have a cost, or that ran and have no submodules, in the order of their first call."""
        order = {module: index for index, module in enumerate(one.calls)}
        seen: set[int] = set()
        ranked: list[tuple[int, Layer]] = []
        # A network may have made, replaced or removed modules in its passes, so they are asked for anew.
        for name, module in self._run.model.named_modules():
            # A shared parameter belongs to the first module that holds it.
            params = [p for p in module.parameters(recurse=False) if id(p) not in seen]
            seen.update(map(id, params))
            layer = Layer(
                name=name,
                type=type(module).__name__,
                output_shape=_per_image(one.shapes.get(module), eight.shapes.get(module)),
                params=sum(p.numel() for p in params),
                macs=one.macs[module],
                other_ops=one.other[module],
                train_macs=None if train is None else train.macs_of(module),
                calls=one.calls[module],
                receptive_field=self.shown(one.fields.get(module)),
            )
            has_cost = layer.params or layer.macs or layer.other_ops or layer.train_macs
            if has_cost or (layer.calls and not any(module.children())):
                # Modules that inference does not call come last.
                ranked.append((order.get(module, len(order)), layer))
        ranked.sort(key=lambda pair: pair[0])
        return [layer for _, layer in ranked]

    def receptive_field(self, one: _Books) -> dict[str, Any] | str | None:
        """Return the receptive field of the last feature map whose units see different parts of the image.

        The search goes back from the last module to finish. It ends early, with None or ``"image"``, at an output whose
        field is undefined or is the whole image.
        """
        for field in reversed(one.fields.values()):
            if field is None or field.whole or (field.local and field.pure):
                return self.shown(field)
        return None

    def shown(self, field: Field | None) -> dict[str, Any] | str | None:
        """Return a field in the form that records use; see `Layer`."""
        if field is None or not field.pure:
            return None
        # A pooled unit whose field covers every pixel of this image is reported as seeing the whole image.
        covers = all(a.low <= 0 and a.high >= n for a, n in zip(field.axes, self.image_shape[1:], strict=True))
        if field.whole or (covers and not field.local):
            return "image"
        return field.as_dict()

    def enter(self, module: nn.Module) -> None:
        """Count a call."""
        self._books.calls[module] += 1

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep the output shape and the receptive field of the first call of a module."""
        if module in self._books.shapes:
            return
        first = next(tensors_in(output), None)
        self._books.shapes[module] = None if first is None else tuple(first.shape)
        if self._fields is not None and first is not None:
            self._books.fields[module] = self._fields.field_of(first)

    def operator(self, operator: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Add the cost of an operator to a module.

        In the forward pass this is the module that is running; in the backward pass, the module of the forward operator
        whose gradient is computed.
        """
        if operator not in self._rules:
            self._rules[operator] = operators.rule_of(operator)
        rule, books = self._rules[operator], self._books
        # The node of the backward graph that autograd is running, or None outside the backward pass.
        node: Any = torch._C._current_autograd_node()
        if torch.is_grad_enabled():
            # A checkpointed part runs forward again in the backward pass, with gradients enabled: it counts as forward.
            node = None
        module = self._module_of_operator(node)
        cost: operators.Cost | None = None
        if rule is not None:
            cost = rule(args, out)
        # Fields and depth pass through all operators, counted or not.
        if self._fields is not None:
            self._fields(operator, args, out, bool(cost and cost.macs))
        if self._complex.skips(operator, out, node):
            return
        if cost is None:
            books.unknown[str(operator)] += 1
            return
        if cost.macs:
            books.macs[module] += cost.macs
            # Only results of the forward pass are activations, not gradients.
            if node is None:
                books.activations += out.numel()
        if cost.other:
            books.other[module] += cost.other

    def _module_of_operator(self, node: Any) -> nn.Module:
        """Return the module to which an operator belongs; `node` is its node in the backward pass, None in forward."""
        if node is not None:
            # A node that no forward operator made, such as one that accumulates a gradient, counts for the network.
            return self._module_of_node.get(node._sequence_nr(), self._run.model)
        # The latest sequence number is that of the node that autograd made for this operator. An operator without a
        # node leaves the number of an earlier one, which keeps its module.
        module = self._run.running
        self._module_of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, module)
        return module
