"""Probes: small checks of a device, which run one by one, so that a failure does not stop the others.

`cnnbench.verification.gpu` runs this file in a process of its own and compares its numbers with the expected ranges.
On a CPU the same code runs in tiny sizes, and the probes that need a GPU are skipped.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import platform
import shutil
import statistics
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from cnnbench import hardware
from cnnbench.checkpoints import CheckpointFile
from cnnbench.console import note
from cnnbench.data.sets import Synthetic
from cnnbench.files import write_json
from cnnbench.models import get_model
from cnnbench.optimizers import MuonSGD, adamw
from cnnbench.record import environment
from cnnbench.roofline.peaks import measure_peaks
from cnnbench.timing.cuda_graphs import capture
from cnnbench.timing.gpu_state import GpuState
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed
from cnnbench.timing.stopwatch import Stopwatch
from cnnbench.timing.timed_network import Way, settle
from cnnbench.training.trainer import make_trainer, quiet_lightning
from cnnbench.verification import run as run_race

Numbers = dict[str, float]
"""Measured numbers by name."""
MIB = 2**20


class Skipped(Exception):  # noqa: N818
    """The reason why a probe cannot run on this device."""


def _needs_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        raise Skipped("it needs a CUDA device")


def machine(device: torch.device) -> dict[str, Any]:
    """Return the facts about the machine that a reader of the numbers needs."""
    facts: dict[str, Any] = environment(hardware.device_name(device), torch.get_num_threads())
    facts |= {"accelerator": hardware.accelerator_facts(device), "libc": " ".join(platform.libc_ver())}
    include = sysconfig.get_paths()["include"]
    # Triton compiles the code that launches its kernels, for which it needs a compiler and these headers.
    facts["compiler"] = shutil.which("gcc") or shutil.which("cc") or "none"
    facts["python_headers"] = (Path(include) / "Python.h").is_file()
    return facts


def empty_call(device: torch.device) -> Numbers:
    """Time a call with almost no work, which shows the cost of launching it and waiting for it."""
    watch, x = Stopwatch(device), torch.zeros(8, device=device)
    walls = []
    for _ in range(200):
        watch.begin()
        x.add_(1)
        walls.append(watch.end().wall_ms)
    # The median of the 200 calls, in microseconds.
    numbers = {"empty call wall us": 1e3 * sorted(walls)[100]}
    if watch.has_queue:
        laps = [watch.queued(lambda: x.add_(1), walls[-1]).device_ms or 0.0 for _ in range(20)]
        numbers["empty call device us"] = 1e3 * sorted(laps)[10]
    return numbers


def products_and_copies(device: torch.device) -> Numbers:
    """Measure the peaks that the roofline uses: products in each number format, and copies in memory."""
    tiny: dict[str, Any] = {}
    if device.type != "cuda":
        tiny = {"sizes": (128,), "copied_bytes": 2**22, "probe_s": 0.01}
    peaks = measure_peaks(device, **tiny)
    numbers = {f"{name} TFLOP/s": rate / 1e12 for name, rate in peaks.flops_per_s.items()}
    numbers["copy of memory TB/s"] = peaks.bytes_per_s / 1e12
    for size, rate in peaks.cached:
        # A copy of 16 MiB reads and writes twice as many bytes, which is the size that `peaks` names.
        if size == 2 * 16 * MIB:
            numbers["copy of 16 MiB TB/s"] = rate / 1e12
    return numbers


def tf32_is_off(device: torch.device) -> Numbers:
    """Compare float32 products with float64 ones: the size of the error shows whether TF32 was used."""
    _needs_gpu(device)
    # A significand of 24 bits (float32) or of 11 bits (TF32) leaves errors of very different size.
    a, b = (torch.randn(1024, 1024, device=device) for _ in range(2))
    exact = a.double() @ b.double()
    errors = {}
    for switch, allowed in (("off", False), ("on", True)):
        with hardware.tf32(device, allowed):
            error = float(((a @ b).double() - exact).norm() / exact.norm())
        errors[f"error of a product, TF32 {switch}"] = error
    return errors


def graph_of_a_training_step(device: torch.device) -> Numbers:
    """Train a small network eagerly and with a CUDA graph, and compare the weights."""
    _needs_gpu(device)
    torch.manual_seed(0)
    twin = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).to(device)
    net = copy.deepcopy(twin)
    batches = [torch.randn(16, 3, 8, 8, device=device) for _ in range(6)]
    labels = torch.randint(10, (16,), device=device)

    def step_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
        # With this option AdamW keeps its count of steps on the device, where the replay of a graph can advance it.
        optimizer = adamw(model.parameters(), lr=1e-3, capturable=True)

        def step(x: Tensor) -> Tensor:
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    eager = step_of(twin)
    replay, _ = capture(step_of(net), batches[0])
    # The capture has trained three steps on the first batch, so the eager twin takes them too.
    for x in [batches[0]] * 3 + batches:
        eager(x)
    for x in batches:
        replay(x)
    pairs = zip(twin.parameters(), net.parameters(), strict=True)
    return {"graph against eager, largest difference": max(float((a - b).abs().max()) for a, b in pairs)}


class _Reads(nn.Module):
    """A network that reads one of its values from the device, which makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        return out if out.sum().item() > -1e9 else -out


def graph_that_reads(device: torch.device) -> Numbers:
    """Check that a network that cannot become a CUDA graph is refused, and that the process can still compute."""
    _needs_gpu(device)
    config = SpeedConfig(device, "32-true", 8, 8, rounds=2, warmup_s=0.0)
    subject = Subject(_Reads, (3, 8, 8), 10, way=Way("32-true", mode="cuda-graph"))
    speed = measure_speed({"reads": subject}, config)["reads"]
    if "time it in mode eager" not in speed.get("error", ""):
        raise RuntimeError(f"it was not refused: {speed.get('error', 'it was timed')}")
    # If the refused recording has left torch unable to free memory, this call raises the error.
    torch.cuda.empty_cache()
    product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
    return {"product after a refused graph": float(product[0, 0])}


def driver(device: torch.device) -> Numbers:
    """Read the state of the GPU from its driver while the device works."""
    _needs_gpu(device)
    state = GpuState(device)
    x = torch.randn(4096, 4096, device=device)
    # At four looks a second, 1.5 seconds give about six of them.
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        x @ x
        torch.cuda.synchronize(device)
    state.stop()
    figures = state.figures()
    if "gpu_state_error" in figures:
        raise RuntimeError(figures["gpu_state_error"])
    return {"driver looks": float(figures["gpu_looks"]), "clock MHz": float(figures["clock_mhz"])}


def peak_memory(device: torch.device) -> Numbers:
    """Measure the peak memory of a training step of a network whose number of weights is known."""
    _needs_gpu(device)
    config = SpeedConfig(device, "32-true", 2, 2, rounds=1, warmup_s=0.0)
    # Loaded libraries and their workspaces are no part of the step's memory.
    settle(config.way, config)
    # The weight matrix, (width, 192) in float32, takes 64 MiB.
    megabytes = 64
    width = megabytes * MIB // 4 // 192
    subject = Subject(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, width, bias=False)), (3, 8, 8), 10)
    peak_bytes = measure_speed({"a": subject}, config)["a"]["peak_memory_bytes"]
    # Four times the weights: the weights, their gradients, and the two moments of AdamW.
    return {"peak of a step over four times its weights": peak_bytes / (4 * 4 * 192 * width)}


def graph_memory(device: torch.device) -> Numbers:
    """Compare the memory of a training step as a CUDA graph with that of an eager one, and time the yardstick."""
    _needs_gpu(device)
    config = SpeedConfig(device, "bf16-mixed", 256, 256, rounds=3, fewest_rounds=3)
    subjects = {}
    for mode in ("eager", "cuda-graph"):
        way = Way("bf16-mixed", mode=mode)
        subjects[mode] = Subject(lambda: get_model("LeNet5")(), (3, 32, 32), 10, way=way)
    speeds = measure_speed(subjects, config)
    eager, graph = speeds["eager"], speeds["cuda-graph"]
    return {
        "peak memory of LeNet5, graph over eager": graph["peak_memory_bytes"] / eager["peak_memory_bytes"],
        "yardstick ms": statistics.median(itertools.chain(*eager["samples_ms"]["yardstick"])),
    }


def _fit(
    device: torch.device,
    model: L.LightningModule,
    folder: Path,
    path: str | None = None,
    callbacks: Sequence[L.Callback] = (),
    **options: Any,
) -> L.Trainer:
    """Train a network on synthetic images, 20 steps per epoch, and return the Trainer."""
    data = Synthetic(in_channels=1, train_images=640, test_images=20, val_fraction=0.0, batch_size=32)
    trainer = make_trainer(
        device,
        callbacks,
        default_root_dir=folder,
        plugins=[CheckpointFile()],
        **options,
    )
    trainer.fit(model, datamodule=data, ckpt_path=path)
    return trainer


def waits_per_step(device: torch.device) -> Numbers:
    """Count how often the training loop waits for the device in a step."""
    _needs_gpu(device)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as seen:
        # By default, Python shows a warning that repeats in one place only once.
        warnings.simplefilter("always")
        try:
            model = get_model("LeNet5")(in_channels=1)
            # Logging reads values from the device and waits for them, so no step of this training logs.
            _fit(device, model, Path(folder), callbacks=[_Watch()], max_epochs=1, log_every_n_steps=1000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing" in str(warning.message) for warning in seen)
    return {"waits per step of fit": waits / (_Watch.LAST - _Watch.FIRST)}


class _Watch(L.Callback):
    """A callback that makes torch warn of waits, between the end of a first step and the end of a last one.

    The start and the end of a training copy and read values, so they are left out.
    """

    FIRST, LAST = 1, 18
    """Numbers of the two steps."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.FIRST:
            torch.cuda.set_sync_debug_mode("warn")
        if trainer.global_step == self.LAST:
            torch.cuda.set_sync_debug_mode("default")


def resume(device: torch.device) -> Numbers:
    """Resume a training on this device that began on the CPU, and count its steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # An epoch has 20 steps: the checkpoint is made after step 20, and the resumed training ends after step 40.
        first = _fit(torch.device("cpu"), get_model("LeNet5")(in_channels=1), folder, max_epochs=1)
        first.save_checkpoint(folder / "half.ckpt")
        second = _fit(device, get_model("LeNet5")(in_channels=1), folder, str(folder / "half.ckpt"), max_epochs=2)
        return {"steps after a resume": float(second.global_step)}


def ways_of_fit(device: torch.device) -> Numbers:
    """Train the same network from the same seed in the ways that `fit` offers, and compare the weights."""
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "steps in one call": ({"steps_per_call": 5}, {"precision": "32-true"}),
        "compiled steps": ({"compile_mode": "default"}, {"precision": "32-true"}),
    }
    if device.type == "cuda":
        ways["16-mixed"] = ({}, {"precision": "16-mixed"})
    plain = _trained(device, {}, {"precision": "32-true"})
    differences = {}
    for name, (of_model, of_trainer) in ways.items():
        weights = _trained(device, of_model, of_trainer)
        differences[f"fit, {name}, difference from the plain"] = float((weights - plain).norm() / plain.norm())
    return differences


def _trained(device: torch.device, of_model: Mapping[str, Any], of_trainer: Mapping[str, Any]) -> Tensor:
    """Return all weights of LeNet5 after an epoch of 20 steps, as one vector."""
    L.seed_everything(0)
    model = get_model("LeNet5")(in_channels=1, **of_model)
    with tempfile.TemporaryDirectory() as folder:
        _fit(device, model, Path(folder), max_epochs=1, **of_trainer)
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


def whitening(device: torch.device) -> Numbers:
    """Whiten SpeedNet's first layer with the same images on this device and on the CPU, and compare the weights."""
    _needs_gpu(device)  # a CPU would be compared with itself
    torch.manual_seed(0)
    # Sums along the height make neighbouring pixels similar, as they are in photographs.
    images = torch.randn(256, 3, 32, 32).cumsum(2)
    grams = []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        layer: Any = get_model("SpeedNet")().features[0]  # type: ignore[index]
        layer.to(place).whiten(images.to(place))
        filters = layer.weight.detach().cpu().flatten(1)
        # The second half of the filters are the negatives of the first.
        first = filters[: len(filters) // 2]
        # The sign of an eigenvector is arbitrary, so the Gram matrices are compared, in which it cancels.
        grams.append(first.T @ first)
    return {"whitening, difference from the CPU": float((grams[0] - grams[1]).norm() / grams[0].norm())}


def muon(device: torch.device) -> Numbers:
    """Compare steps of MuonSGD on the CPU in float32 with steps on this device, in bfloat16 if it supports that."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(32, 16, 3, 3, generator=generator), torch.randn(64, 16, 3, 3, generator=generator)]
    gradients = []
    for _ in range(3):
        gradients.append([torch.randn(p.shape, generator=generator) for p in start])
    ends = []
    for place, bfloat16 in ((torch.device("cpu"), False), (device, None)):
        filters = [nn.Parameter(p.clone().to(place)) for p in start]
        optimizer = MuonSGD(filters, bfloat16=bfloat16)
        for of_step in gradients:
            for p, gradient in zip(filters, of_step, strict=True):
                p.grad = gradient.to(place)
            optimizer.step()
        ends.append(torch.cat([p.detach().cpu().flatten() for p in filters]))
    return {"MuonSGD, difference from the CPU": float((ends[0] - ends[1]).norm() / ends[0].norm())}


def compilation(device: torch.device) -> Numbers:
    """Time the first compilation of a small network."""
    hardware.check_compiler(device)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).to(device)
    start = time.perf_counter()
    torch.compile(net)(torch.randn(4, 3, 8, 8, device=device))
    hardware.synchronise(device)
    return {"seconds of a first compilation": time.perf_counter() - start}


PROBES: Mapping[str, Callable[[torch.device], Numbers]] = {
    probe.__name__.replace("_", " "): probe
    for probe in (
        empty_call,
        products_and_copies,
        tf32_is_off,
        graph_of_a_training_step,
        graph_that_reads,
        driver,
        peak_memory,
        graph_memory,
        waits_per_step,
        resume,
        ways_of_fit,
        whitening,
        muon,
        compilation,
    )
}
"""Probes by name, in the order in which they run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every probe and write its numbers, or the reason why it has none, to a file.

    Returns:
        The exit code, which is 1 if a probe failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cnnbench.verification.gpu_probes", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    device = hardware.choose_device(options.device)
    quiet_lightning()
    document: dict[str, Any] = {"machine": machine(device), "probes": {}}
    for name, probe in PROBES.items():
        start = time.perf_counter()
        row: dict[str, Any]
        try:
            row = {"status": "PASS", "numbers": probe(device)}
        except Skipped as reason:
            row = {"status": "SKIP", "reason": str(reason), "numbers": {}}
        except Exception as error:
            text = " ".join(str(error).split())
            row = {"status": "FAIL", "reason": f"{type(error).__name__}: {text}", "numbers": {}}
        row["seconds"] = round(time.perf_counter() - start, 2)
        document["probes"][name] = row
        note(f"{row['status']} {name} {row['seconds']} s {row.get('reason', '')}")
        # Written after each probe, so that a probe that kills the process leaves the results of the earlier ones.
        write_json(options.out, document)
    return int(any(row["status"] == "FAIL" for row in document["probes"].values()))


if __name__ == "__main__":
    run_race("gpu-probes", main)
