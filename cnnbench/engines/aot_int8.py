"""Quantisation by torchao (PT2E) for AOTInductor, which then computes in oneDNN's kernels for integers."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from cnnbench.engines import INT8
from cnnbench.engines.aot_inductor import AotSession, compile_program, record_again
from cnnbench.errors import UserError
from cnnbench.machine import may_saturate

LARGEST_ERROR = 0.2
"""Largest difference of a compiled program's logits from those of the quantised network, as a share of their norm.

Roundings that fall to the other side change some values by a step of 8 bits. A wrong kernel changes all logits.
"""


def method() -> str:
    """Return in words how networks are quantised."""
    activations = "uint8 per tensor"
    if may_saturate():
        activations += " in 7 bits, since this processor has no VNNI"
    return f"torchao's defaults: weights int8 per channel, activations {activations}, ranges from histograms"


def quantise(program: ExportedProgram, path: Path, metadata: str, calibration: Sequence[Tensor]) -> None:
    """Quantise a program and compile it.

    Args:
        program: Program of a network in float32, for batches of any size.
        path: File to write.
        metadata: Facts about the network as JSON.
        calibration: Batches of images, (N, C, H, W).

    Raises:
        UserError: This is no x86 processor, or the compiled program computes something else.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise UserError(f"AOTInductor in int8 is for x86 processors here, and this is {platform.machine()}")
    quantiser = X86InductorQuantizer()
    quantiser.set_global(get_default_x86_inductor_quantization_config(reduce_range=may_saturate()))
    prepared = prepare_pt2e(program.module(), quantiser)
    with torch.no_grad():
        for batch in calibration:
            prepared(batch)
        quantised = convert_pt2e(prepared)
        # Without freezing, the compiler would turn the weights back to float32 in each call and compute with those.
        compile_program(record_again(quantised, program), path, metadata, freezing=True)
        _check(path, calibration[0], quantised(calibration[0]))


def _check(path: Path, images: Tensor, expected: Tensor) -> None:
    """Compare a compiled program with the quantised network, which torch runs operator by operator.

    The compiler of torch 2.14.1 computes quantised convolutions of images with one channel wrong.

    Args:
        path: Compiled program, which this process has just written.
        images: Images, (N, C, H, W).
        expected: Logits of the quantised network, (N, K).

    Raises:
        UserError: The two differ by more than rounding.
    """
    session = AotSession(path, INT8, images.device)
    error = (session.run(session.prepare(images)) - expected).norm() / expected.norm()
    # A value that is not a number is not within the limit either.
    if not error <= LARGEST_ERROR:
        raise UserError(
            f"AOTInductor computes something else than the quantised network that it compiled: logits differ by "
            f"{float(error):.0%}; choose another engine for int8"
        )
