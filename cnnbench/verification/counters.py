"""Other programs that count MACs or FLOPs: how each is called, and how its count differs from ours.

The rules of each counter are known from its documentation and source. Applied to the calls that
`cnnbench.verification.recorded_calls` records, they give the amounts that it adds and misses. These amounts do not
depend on our own counts, except for the factor 2 between our MACs of training and the FLOPs of torch's counter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import NamedTuple, cast

import torch
from fvcore.nn import FlopCountAnalysis
from ptflops import get_model_complexity_info
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary

from cnnbench.counting.meta_run import tensors_in
from cnnbench.network import Network
from cnnbench.verification.recorded_calls import (
    ACTIVATIONS,
    CONVOLUTIONS,
    ELEMENTWISE,
    MATMULS,
    POOLINGS,
    Call,
    Calls,
    record_calls,
)

CONV_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
ACTIVATION_MODULES = (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6, nn.GELU)
POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class Subject(NamedTuple):
    """A network under audit, with its recorded calls and our counts.

    Attributes:
        network: Network by its name, with the shape of its images.
        model: The network on the meta device, where tensors have no values.
        real: The network with values.
        calls: Calls of a forward pass with one image.
        macs: Our count of the MACs of inference per image.
        train_macs: Our count of the MACs of a training step per image.
    """

    network: Network
    model: nn.Module
    real: nn.Module
    calls: Calls
    macs: int
    train_macs: int

    @property
    def images(self) -> Tensor:
        """Return a batch of one image on the meta device, (1, C, H, W)."""
        return torch.empty(1, *self.network.image_shape, device="meta")


# The other counters, each called as its documentation says.


def _flop_counter(subject: Subject) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.model.eval()(subject.images)
    return counter.get_total_flops()


def _flop_counter_training(subject: Subject) -> int:
    images = torch.empty(2, *subject.network.image_shape, device="meta")  # batch norm needs two images
    with FlopCounterMode(display=False) as counter:
        outputs = [t for t in tensors_in(subject.model.train()(images)) if t.requires_grad]
        # The counter only needs the shapes, so the gradients of the outputs have no values.
        torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
    subject.model.zero_grad()
    # FLOPs per image: the batch has two.
    return counter.get_total_flops() // 2


def _ptflops(subject: Subject) -> int:
    # It needs real values: on the meta device torch computes a linear layer by functions that ptflops also counts.
    macs, _ = get_model_complexity_info(
        subject.real.eval(), subject.network.image_shape, print_per_layer_stat=False, as_strings=False
    )
    return int(macs)


def _torchinfo(subject: Subject) -> int:
    counts = summary(subject.model, input_data=subject.images, verbose=0, device="meta", mode="eval")
    return int(counts.total_mult_adds)


def _fvcore(subject: Subject) -> int:
    images = torch.randn(1, *subject.network.image_shape)  # tracing needs values
    analysis = FlopCountAnalysis(subject.real.eval(), (images,))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return int(analysis.total())


# The causes of the differences. A positive amount is what the other counter adds to our count, a negative one is what
# it misses.


def _ptflops_causes(subject: Subject) -> Counter[str]:
    """Return the causes for ptflops, which hooks modules of known types and also replaces functions.

    A function that is called by a hooked module is counted twice. A convolution, a linear layer or an attention that is
    called as a function, outside of a known module, is not counted.
    """
    causes: Counter[str] = Counter()
    for module, x, out in subject.calls.modules:
        causes.update(_ptflops_of_module(module, x, out))
    for call in subject.calls.functions:
        causes.update(_ptflops_of_function(call))
    return causes


def _ptflops_of_module(module: nn.Module, x: tuple[int, ...], out: tuple[int, ...]) -> dict[str, int]:
    """Return the amounts that ptflops adds for a module, by cause.

    Args:
        module: Module that ran.
        x: Shape of its input.
        out: Shape of its output.
    """
    kind = type(module)
    if kind in (*CONV_MODULES, nn.Linear) and module.bias is not None:
        return {"bias": prod(out)}
    if kind in NORM_MODULES:
        # Scale and shift count as much as the normalisation itself.
        return {"normalisation": prod(x) * (2 if getattr(module, "affine", False) else 1)}
    if kind in ACTIVATION_MODULES:
        return {"activation": prod(out)}
    if kind in POOL_MODULES:
        return {"pooling": prod(x)}
    if kind is nn.MultiheadAttention:
        # Biases of queries, keys, values and the output; then the scaling of the queries, and the softmax.
        images, tokens, _ = x
        softmax = images * cast(int, module.num_heads) * tokens**2
        return {"bias": 4 * prod(x), "activation": prod(x) + softmax}
    return {}


def _ptflops_of_function(call: Call) -> dict[str, int]:
    """Return the amounts that ptflops adds for a call of a function, or misses in it, by cause."""
    kind = type(call.module)
    if call.function in ACTIVATIONS:
        return {"counted twice" if kind in ACTIVATION_MODULES else "activation": call.size}
    if call.function in POOLINGS:
        return {"counted twice" if kind in POOL_MODULES else "pooling": call.size}
    if call.function in ELEMENTWISE:
        return {"element-wise": call.size}
    # Matrix products are counted as functions, and these modules by their hooks, but no other function with MACs is.
    in_attention = any(type(module) is nn.MultiheadAttention for module in call.modules)
    if call.function in MATMULS or kind in (*CONV_MODULES, nn.Linear) or in_attention:
        return {}
    return {"missing functional": -call.macs}


def _torchinfo_causes(subject: Subject) -> Counter[str]:
    """Return the causes for torchinfo, which computes its count from the parameters of the innermost modules.

    It multiplies them by the positions of the output where the name of the class contains Conv, and elsewhere by the
    number of images only.
    """
    causes: Counter[str] = Counter()
    for module, x, out in subject.calls.modules:
        if any(module.children()):
            continue
        sizes = {name: p.numel() for name, p in module.named_parameters(recurse=False)}
        if isinstance(module, CONV_MODULES):
            causes["bias"] += prod(out) if "bias" in sizes else 0
            # The MACs of a transposed convolution follow from the positions of its input.
            if module.transposed:
                causes["transposed by outputs"] += out[0] * (prod(out[2:]) - prod(x[2:])) * sizes["weight"]
        elif isinstance(module, nn.Linear):
            # A linear layer on tokens is counted as if each image had one position.
            causes["bias"] += out[0] * sizes.get("bias", 0)
            causes["one position for all"] -= (prod(out[:-1]) - out[0]) * sizes["weight"]
        else:
            causes["normalisation"] += out[0] * sum(sizes.values())
    for call in subject.calls.functions:
        if not isinstance(call.module, (*CONV_MODULES, nn.Linear)):
            causes["missing functional"] -= call.macs
    return causes


def _fvcore_causes(subject: Subject) -> Counter[str]:
    """Return the causes for fvcore, which counts the operators of a trace.

    It has rules for convolutions and matrix products, normalisation and adaptive average pooling, but none for the
    fused attention of torch.
    """
    causes: Counter[str] = Counter()
    for module, x, _ in subject.calls.modules:
        if isinstance(module, NORM_MODULES):
            causes["normalisation"] += prod(x) * (2 if isinstance(module, nn.modules.batchnorm._BatchNorm) else 5)
    for call in subject.calls.functions:
        if call.function == "adaptive_avg_pool2d":
            causes["pooling"] += call.size
        elif call.function == "scaled_dot_product_attention":
            causes["missing functional"] -= call.macs
    return causes


def _flop_counter_causes(subject: Subject) -> Counter[str]:
    # It counts 2 FLOPs per MAC.
    return Counter({"factor 2": subject.calls.macs})


def _training_causes(subject: Subject) -> Counter[str]:
    """Return the causes for FlopCounterMode in training, which counts gradients of grouped convolutions wrongly.

    It counts the weight gradient of a convolution with g groups as that of a dense one, which is g times too much
    (pytorch#183405).
    """
    # The forward pass of training includes the auxiliary heads. It has two images, so its MACs equal the FLOPs of one.
    with_heads = record_calls(subject.model, subject.network.image_shape, training=True)
    extra = sum((call.groups - 1) * call.macs for call in with_heads.functions if call.function in CONVOLUTIONS)
    return Counter({"factor 2": subject.train_macs, "grouped gradient": extra})


COUNTERS: dict[str, tuple[Callable[[Subject], int], Callable[[Subject], Counter[str]]]] = {
    "shapes of calls": (lambda subject: subject.calls.macs, lambda subject: Counter()),
    "FlopCounterMode": (_flop_counter, _flop_counter_causes),
    "ptflops": (_ptflops, _ptflops_causes),
    "torchinfo": (_torchinfo, _torchinfo_causes),
    "fvcore": (_fvcore, _fvcore_causes),
    "FlopCounterMode, training": (_flop_counter_training, _training_causes),
}
"""Two functions by name of the counter: one returns its count, the other the causes of its difference from ours."""
TIMED = tuple(name for name in COUNTERS if name != "shapes of calls")
"""Counters that are timed. The shapes of calls are recorded before, so there is nothing to time."""
