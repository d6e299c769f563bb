"""The command `cnnbench speed`: options for timing networks against each other, in turns.

The timing itself is in `cnnbench.commands.speed_run`, which needs torch and is imported when the command runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnnbench.benchmark.plan import MOST_PROCESSES
from cnnbench.commands.named_networks import NetworkOptions
from cnnbench.engines import ENGINES, INT8
from cnnbench.errors import UserError
from cnnbench.names import DEVICES, INFERENCE_PRECISIONS, MEMORY_FORMATS, MODES, PRECISIONS
from cnnbench.options import option

EXAMPLE = "ResNet18 torchvision:resnet18 --image_size 224 --num_classes 1000"


@dataclass(frozen=True, kw_only=True)
class Options(NetworkOptions):
    """Time networks in turns, in random order, over several rounds."""

    batch_size: int | None = option(
        "Images per batch when throughput is timed (default: 128 on a CPU, 1024 on a GPU).",
        default=None,
        metavar="B",
        least=1,
    )
    train_batch_size: int | None = option(
        "Images per training step (default: 32 on a CPU, 256 on a GPU).", default=None, metavar="B", least=1
    )
    rounds: int | None = option(
        "Turns that every network has (default: 120, or at least 12 if these take longer than 5 s per network; "
        "intervals need 6).",
        default=None,
        metavar="N",
        least=1,
    )
    device: str = option("Device: auto, cpu, cuda, cuda:N or mps.", default="auto", valid=DEVICES)
    precision: str = option(
        "Number formats: auto (bfloat16 where the device has it: inference in bf16-true, training in bf16-mixed), "
        "32-true, bf16-mixed, bf16-true, and on a GPU 16-mixed, 16-true and tf32; several are rows of their own; all "
        "for those that the device computes in.",
        default="auto",
        metavar="A,B",
        valid=(*PRECISIONS, *INFERENCE_PRECISIONS, "tf32", INT8, "all"),
    )
    memory_format: str = option(
        "Order of the images in memory: channels_last, contiguous, or all.",
        default="channels_last",
        metavar="A,B",
        valid=(*MEMORY_FORMATS, "all"),
    )
    engine: str = option(
        "What runs the networks: torch, aot-inductor, onnxruntime, openvino, on a GPU tensorrt, or all that are "
        "installed; several are rows of their own, each timed in fresh processes, in inference and (unless --precision "
        "says otherwise) in 32-true. Of the engines beside torch, those for CPUs have --precision int8 too.",
        default="torch",
        metavar="A,B",
        valid=(*ENGINES, "all"),
    )
    mode: str = option(
        "How the network runs: eager, compile, on a GPU cuda-graph, or all.",
        default="eager",
        metavar="A,B",
        valid=(*MODES, "all"),
    )
    cudnn_benchmark: Literal["on", "off"] = option(
        "Whether cuDNN tries its kernels for each shape and takes the fastest, on a GPU.", default="on"
    )
    sweep: bool = option(
        "Time inference in batches of 1, 2, 4 and so on too, up to the largest that fits.", default=False
    )
    max_batch_size: int | None = option(
        "Largest batch of the sweep (default: 512 on a CPU, 65536 on a GPU).", default=None, metavar="B", least=1
    )
    memory: bool = option(
        "Measure by how much a network grows the memory of a fresh process too: in training steps, or in inference "
        "where nothing is trained, as with --engine.",
        default=False,
    )
    energy: bool = option(
        "Measure the energy of inference too, by the counter of the GPU (NVML) or of the processor (RAPL).",
        default=False,
    )
    processes: int = option(
        "Fresh processes that share the rounds; 1 is this one; from 6 on each counts as one value.",
        default=1,
        metavar="N",
        least=1,
    )
    seed: int = option("Random seed for the order of the turns and the input images.", default=0, least=0)
    limits: bool = option(
        "Measure the peaks of this machine too, and say what limits each network: launching, memory or arithmetic; "
        "with a roofline picture.",
        default=False,
    )
    out: Path | None = option("Folder of that picture (default: results/speed).", default=None, metavar="DIR")
    records: Path | None = option(
        "Write a record per row to this new file too, as JSON lines, for `cnnbench compare` and `report`.",
        default=None,
        metavar="FILE",
    )
    json: bool = option("Print one JSON document on stdout.", default=False)

    def __post_init__(self) -> None:
        if self.out and not self.limits:
            raise UserError("--out is for the picture of --limits; add --limits, or leave it out")
        if self.records is not None and os.path.lexists(self.records):
            raise UserError(f"'{self.records}' exists and records are never overwritten; choose another name")
        if self.max_batch_size is not None and not self.sweep:
            raise UserError("--max_batch_size is that of --sweep; add --sweep, or leave it out")
        if self.processes > MOST_PROCESSES:
            raise UserError(f"processes {self.processes} is more than {MOST_PROCESSES}; 6 are enough for an interval")
        if self.engine != "torch":
            self._check_engine()
        if self.limits and self.mode != "eager":
            raise UserError(f"--limits is about operators as they are written; leave out --mode {self.mode}")

    def _check_engine(self) -> None:
        """Raise UserError if an option is about torch alone while another engine is named."""
        for name in ("limits", "sweep"):
            if getattr(self, name):
                raise UserError(f"--{name} is about torch; leave it out, or leave out --engine {self.engine}")


def run(options: Options) -> int:
    """Time networks and print the figures; return 1 if one of them failed."""
    from cnnbench.commands.speed_run import speed

    return speed(options)
