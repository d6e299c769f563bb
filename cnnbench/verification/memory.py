"""The estimated memory of a training step beside the memory that real training steps take.

Each case runs in a process of its own. On a GPU the measured peak is that of torch's allocator. On a CPU two peaks are
measured: the memory that torch's allocator reports to the profiler, and the growth of the resident memory. The latter
also includes the workspaces of the kernels and the freed memory that the C library keeps.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cnnbench.counting.memory import training_memory
from cnnbench.counting.meta_copy import build_without_values
from cnnbench.errors import UserError
from cnnbench.hardware import choose_device
from cnnbench.network import get_network
from cnnbench.timing.process_memory import resident_growth
from cnnbench.timing.timed_network import SpeedConfig, Subject, Way, settle
from cnnbench.training.step import training_step
from cnnbench.trust import module_command
from cnnbench.verification import run as run_race
from cnnbench.verification import write_race

CASES = {
    **dict.fromkeys(("LeNet5", "SimpleCNN", "VGG16", "ResNet18", "MobileNetV1"), 128),
    # These take images of 224 pixels, so fewer of them fit into memory.
    **dict.fromkeys(("torchvision:resnet50", "torchvision:densenet121", "torchvision:mobilenet_v2"), 16),
}
"""Batch sizes by name of the network."""
STEPS = 3
"""Training steps of each measurement."""
MIB = 2**20


def measure(name: str, batch_size: int, precision: str, device: torch.device) -> dict[str, int]:
    """Run training steps of a network and measure their memory.

    Args:
        name: Name of the network.
        batch_size: Images per training step.
        precision: Number format in Lightning's notation.
        device: Device to train on.

    Returns:
        Peaks in bytes: ``allocated``, the memory that torch allocated, and on a CPU also ``resident``, the growth of
        the process.
    """
    network = get_network(name)

    def run() -> None:
        # Built inside, so that weights, images and optimizer state belong to the measured memory.
        model = network.build().to(device)
        images = torch.randn(batch_size, *network.image_shape, device=device)
        step = training_step(model, images, precision)
        for _ in range(STEPS):
            step()

    if device.type == "cuda":
        # Run a small network first: cuBLAS and cuDNN keep workspaces for the process, which the estimate leaves out.
        config = SpeedConfig(device, precision, 2, 2, warmup_s=0.0)
        settle(config.way, config, ("training",))
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return {"allocated": torch.cuda.max_memory_allocated(device) - before}
    subject = Subject(network.build, network.image_shape, network.num_classes or 1, way=Way(precision, False))
    resident = resident_growth(subject, SpeedConfig(device, precision, batch_size, batch_size, warmup_s=0.0))
    gc.collect()
    return {"allocated": _profiled_peak(run), "resident": resident}


def _profiled_peak(run: Callable[[], None]) -> int:
    """Return the largest number of bytes that torch's CPU allocator had in use at once during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    # Each event is an allocation, or, with a negative size, a release; their running sum is the memory in use.
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare estimate and measurement for all cases, print the table and write ``results/races/memory.json``.

    With ``--measure`` only measure one case in this process, and print the peaks as JSON.

    Returns:
        The exit code 0.

    Raises:
        UserError: The process of a case failed.
    """
    parser = argparse.ArgumentParser(prog="python -m cnnbench.verification.memory", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--measure", nargs=3, metavar=("MODEL", "BATCH", "PRECISION"), help="one case, in this process")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    if options.measure:
        name, batch_size, precision = options.measure
        print(json.dumps(measure(name, int(batch_size), precision, device)))
        return 0
    rows: list[dict[str, Any]] = []
    print("| Network | Batch | Precision | Estimate MiB | Allocated MiB | of estimate | Resident MiB | of estimate |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    ratios: dict[str, dict[str, float]] = {}
    for name, batch_size in CASES.items():
        for precision in ("32-true", "bf16-mixed"):
            row = _compare(name, batch_size, precision, device)
            rows.append(row)
            print(_line(row))
            share = row["measured_allocated_bytes"] / row["peak_bytes"]
            # Each case is measured once, so its ratio has no spread.
            ratios[f"allocated / estimate, {name}, {precision}"] = {"median": share, "low": share, "high": share}
    goals = {"allocated within 10 % of the estimate": all(0.9 <= case["median"] <= 1.1 for case in ratios.values())}
    print(f"written: {write_race('memory', rows, ratios, goals, device)}")
    return 0


def _compare(name: str, batch_size: int, precision: str, device: torch.device) -> dict[str, Any]:
    """Return the estimate of one case, and its measurement in a fresh process; raise UserError if that fails."""
    network = get_network(name)
    model, _ = build_without_values(network.build)
    estimate = training_memory(model, network.image_shape, batch_size, precision)
    # In a process of its own, a case cannot use memory again that another case has freed.
    words = ["--device", str(device), "--measure", name, str(batch_size), precision]
    command = module_command("cnnbench.verification.memory", *words)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        # A process that the system kills, such as for lack of memory, says nothing.
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{name} with {batch_size} images failed: {reason}")
    row = {"name": name, "batch_size": batch_size, "precision": precision, **estimate.figures()}
    # The peaks are the last line that the process prints.
    for key, peak_bytes in json.loads(done.stdout.splitlines()[-1]).items():
        row[f"measured_{key}_bytes"] = peak_bytes
    return row


def _line(row: Mapping[str, Any]) -> str:
    """Return the line of one case in the table."""
    estimate = row["peak_bytes"]
    cells = [row["name"], str(row["batch_size"]), row["precision"], f"{estimate / MIB:,.1f}"]
    for key in ("allocated", "resident"):
        measured = row.get(f"measured_{key}_bytes")
        if measured:
            cells += [f"{measured / MIB:,.1f}", f"{measured / estimate:.2f}"]
        else:
            cells += ["-", "-"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run_race("memory", main)
