"""Other programs that count, how each is called, and what its rules make of the calls of a network.

What a counter adds and misses is worked out from its documentation and source and from the calls that
`cnnbench.validation.calls` noted, not from our counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from cnnbench.counting.meta import tensors_in
from cnnbench.network import Network
from cnnbench.validation.calls import ACTIVATIONS, CONVOLUTIONS, ELEMENTWISE, MATMULS, POOLINGS, Calls, record_calls

CONV_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
ACTIVATION_MODULES = (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6, nn.GELU)
POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class Subject(NamedTuple):
    """A network under audit, on the meta device and with values, with what it calls and what we count."""

    network: Network
    model: nn.Module
    real: nn.Module
    calls: Calls
    macs: int
    train_macs: int

    @property
    def images(self) -> Tensor:
        return torch.empty(1, *self.network.image_shape, device="meta")


# The others, each as its documentation says that it is called.


def _flop_counter(subject: Subject) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.model.eval()(subject.images)
    return counter.get_total_flops()


def _flop_counter_training(subject: Subject) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    images = torch.empty(2, *subject.network.image_shape, device="meta")  # batch norm needs two
    with FlopCounterMode(display=False) as counter:
        outputs = [t for t in tensors_in(subject.model.train()(images)) if t.requires_grad]
        torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
    subject.model.zero_grad()
    return counter.get_total_flops() // 2


def _ptflops(subject: Subject) -> int:
    from ptflops import get_model_complexity_info

    # On the meta device it would count linear layers twice: torch computes them there by functions that it replaces.
    macs, _ = get_model_complexity_info(
        subject.real.eval(), subject.network.image_shape, print_per_layer_stat=False, as_strings=False
    )
    return int(macs)


def _torchinfo(subject: Subject) -> int:
    from torchinfo import summary

    found = summary(subject.model, input_data=subject.images, verbose=0, device="meta", mode="eval")
    return int(found.total_mult_adds)


def _fvcore(subject: Subject) -> int:
    from fvcore.nn import FlopCountAnalysis

    images = torch.randn(1, *subject.network.image_shape)  # tracing needs values
    analysis = FlopCountAnalysis(subject.real.eval(), (images,))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return int(analysis.total())


# Why they differ.


def _ptflops_causes(subject: Subject) -> Counter[str]:
    """Hooks on modules of known types, and replaced functions: what is both is counted twice."""
    found: Counter[str] = Counter()
    for module, x, out in subject.calls.modules:
        kind = type(module)
        if kind in (*CONV_MODULES, nn.Linear) and module.bias is not None:
            found["bias"] += prod(out)
        elif kind in NORM_MODULES:
            found["normalisation"] += prod(x) * (2 if getattr(module, "affine", False) else 1)
        elif kind in ACTIVATION_MODULES:
            found["activation"] += prod(out)
        elif kind in POOL_MODULES:
            found["pooling"] += prod(x)
        elif kind is nn.MultiheadAttention:
            images, tokens, _ = x
            found["bias"] += 4 * prod(x)
            found["activation"] += prod(x) + images * cast(int, module.num_heads) * tokens**2  # scale and softmax
    for call in subject.calls.functions:
        inner = type(call.modules[-1]) if call.modules else None
        in_attention = any(type(m) is nn.MultiheadAttention for m in call.modules)
        if call.function in ACTIVATIONS:
            found["counted twice" if inner in ACTIVATION_MODULES else "activation"] += call.size
        elif call.function in POOLINGS:
            found["counted twice" if inner in POOL_MODULES else "pooling"] += call.size
        elif call.function in ELEMENTWISE:
            found["element-wise"] += call.size
        elif call.function not in MATMULS and inner not in (*CONV_MODULES, nn.Linear) and not in_attention:
            found["missing functional"] -= call.macs
    return found


def _torchinfo_causes(subject: Subject) -> Counter[str]:
    """Parameters of innermost modules, times positions only where the class is called Conv."""
    found: Counter[str] = Counter()
    for module, x, out in subject.calls.modules:
        if any(module.children()):
            continue
        sizes = {name: p.numel() for name, p in module.named_parameters(recurse=False)}
        if isinstance(module, CONV_MODULES):
            found["bias"] += prod(out) if "bias" in sizes else 0
            if module.transposed:
                found["transposed by outputs"] += out[0] * (prod(out[2:]) - prod(x[2:])) * sizes["weight"]
        elif isinstance(module, nn.Linear):
            found["bias"] += out[0] * sizes.get("bias", 0)
            found["one position for all"] -= (prod(out[:-1]) - out[0]) * sizes["weight"]
        else:
            found["normalisation"] += out[0] * sum(sizes.values())
    for call in subject.calls.functions:
        inner = call.modules[-1] if call.modules else None
        if not isinstance(inner, (*CONV_MODULES, nn.Linear)):
            found["missing functional"] -= call.macs
    return found


def _fvcore_causes(subject: Subject) -> Counter[str]:
    """Operators of a trace; it has rules for products, normalisation and adaptive pooling."""
    found: Counter[str] = Counter()
    for module, x, _ in subject.calls.modules:
        if isinstance(module, NORM_MODULES):
            found["normalisation"] += prod(x) * (2 if isinstance(module, nn.modules.batchnorm._BatchNorm) else 5)
    for call in subject.calls.functions:
        if call.function == "adaptive_avg_pool2d":
            found["pooling"] += call.size
        elif call.function == "scaled_dot_product_attention":
            found["missing functional"] -= call.macs
    return found


def _flop_counter_causes(subject: Subject) -> Counter[str]:
    return Counter({"factor 2": subject.calls.macs})


def _training_causes(subject: Subject) -> Counter[str]:
    """Its weight gradient of a convolution in g groups is that of a dense one, g times too much (pytorch#183405)."""
    with_heads = record_calls(subject.model, subject.network.image_shape, training=True)  # two images
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
TIMED = tuple(name for name in COUNTERS if name != "shapes of calls")
