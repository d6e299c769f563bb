"""Quantisation by torchao (PT2E) for AOTInductor, which then computes in oneDNN's kernels for integers."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from cnnbench.engines.aot_inductor import write
from cnnbench.errors import UserError
from cnnbench.machine import may_saturate


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
        UserError: This is no x86 processor.
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
        (images,) = program.example_inputs[0]
        again = torch.export.export(quantised, (images,), dynamic_shapes=({0: _any_size(program)},), strict=False)
        # Without freezing, the compiler would turn the weights back to float32 in each call and compute with those.
        write(again, path, metadata, freezing=True)


def _any_size(program: ExportedProgram) -> Dim:
    """Return the dimension of the batch, with the limits that it has in a program."""
    (limits,) = program.range_constraints.values()
    return Dim("batch", min=int(limits.lower), max=int(limits.upper))
