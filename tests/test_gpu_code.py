"""What runs on a GPU only, as far as it can be tried without one: with fake events, tensors and devices."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cnnbench import hardware
from cnnbench.benchmark import run as runner
from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.models import get_model
from cnnbench.optimizers import NEWTON_SCHULZ, MuonSGD, adamw, orthogonalise
from cnnbench.record import load_records
from cnnbench.roofline import peaks
from cnnbench.roofline.model import layer_traffic
from cnnbench.timing import cuda_graphs, speed
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed
from cnnbench.timing.stopwatch import Stopwatch
from cnnbench.timing.sweep import sweep
from cnnbench.timing.timed_network import Timed, Way
from cnnbench.training.clock import TrainingClock

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


# The stopwatch


class _Stream:
    """A GPU with a queue and a clock of its own: work begins when it is launched and what was before it is done."""

    def __init__(self) -> None:
        self.host_ms = self.free_ms = 0.0
        self.events = 0
        self.slept_ms = 0.0

    def launch(self, host_ms: float, device_ms: float) -> None:
        self.host_ms += host_ms
        self.free_ms = max(self.free_ms, self.host_ms) + device_ms

    def wait(self, device: torch.device) -> None:
        self.host_ms = max(self.host_ms, self.free_ms)

    def sleep(self, cycles: int) -> None:
        self.slept_ms = cycles / 2e6
        self.launch(0.005, self.slept_ms)

    def event(self, enable_timing: bool) -> Any:
        self.events += 1
        event = SimpleNamespace(at=0.0)
        event.record = lambda stream: setattr(event, "at", max(self.free_ms, self.host_ms))
        event.elapsed_time = lambda other: other.at - event.at
        return event


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> _Stream:
    found = _Stream()
    monkeypatch.setattr(torch.cuda, "Event", found.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream")
    monkeypatch.setattr(torch.cuda, "_sleep", found.sleep, raising=False)
    monkeypatch.setattr("cnnbench.timing.stopwatch.on_device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr("cnnbench.timing.stopwatch.synchronise", found.wait)
    monkeypatch.setattr("cnnbench.timing.stopwatch.time.perf_counter", lambda: found.host_ms / 1e3)
    return found


def test_a_queued_call_is_timed_without_the_gaps_in_which_the_gpu_waits_for_the_host(stream: _Stream) -> None:
    watch = Stopwatch(CUDA)
    assert watch.has_queue
    assert not Stopwatch(CPU).has_queue

    def forty_kernels() -> None:
        for _ in range(40):
            stream.launch(host_ms=0.005, device_ms=0.001)
        watch.mark()

    watch.begin()
    forty_kernels()
    alone = watch.end()
    assert alone.wall_ms == pytest.approx(0.201)
    assert alone.device_ms == pytest.approx(0.201)  # in it the GPU waited for the host 39 times
    queued = watch.queued(forty_kernels, alone.wall_ms)
    assert queued.device_ms == pytest.approx(0.04)
    assert stream.slept_ms > alone.wall_ms  # so that all is launched when the GPU comes to it
    assert len(queued.parts_ms) == 2
    assert stream.events == 3  # made once


def test_short_copies_are_timed_many_at_a_time(stream: _Stream) -> None:
    """A copy takes 4 us, and launching it 6: its rate is that of the copy."""
    calls = 0

    def copy() -> None:
        nonlocal calls
        calls += 1
        stream.launch(host_ms=0.006, device_ms=0.004)

    seconds = peaks._best_seconds(copy, CUDA, 0.001, Stopwatch(CUDA))
    assert seconds == pytest.approx(4e-6)
    assert calls > 500


# Graphs


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("called a synchronizing CUDA operation"), UserError),
        (RuntimeError("out of memory"), RuntimeError),
        (ValueError("synchronizing"), ValueError),
    ],
)
def test_a_network_that_waits_is_refused_before_anything_is_recorded(
    error: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    words = "time it in mode eager" if expected is UserError else str(error)
    with pytest.raises(expected, match=words), cuda_graphs._no_waiting():
        raise error
    assert modes == ["error", 1]


# A device that fails


def test_an_error_that_breaks_the_device_leaves_the_figures_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an illegal access: every later call fails, whosever it is."""
    broken = [False]
    calls = [0]

    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(192, 10)

        def forward(self, x: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] > 60:
                broken[0] = True
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return self.linear(x.flatten(1))

    def synchronise(device: torch.device) -> None:
        if broken[0]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(speed, "synchronise", synchronise)
    good = Subject(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), (3, 8, 8), 10)
    subjects = {"good": good, "bad": Subject(Breaks, (3, 8, 8), 10)}
    config = SpeedConfig(CPU, "32-true", 4, 2, rounds=200, fewest_rounds=200, warmup_s=0.0, block_calls=1)
    found = measure_speed(subjects, config)
    assert "illegal memory access" in found["bad"]["error"]
    assert found["good"]["latency_ms_median"] > 0
    assert any("the timing ended early, as bad broke the device" in text for text in found["good"]["suspect"])
    # The round in which it broke is left out, since not everybody had a turn in it.
    rounds = {len(samples) for samples in found["good"]["samples_ms"].values()}
    assert len(rounds) == 1
    assert 0 < rounds.pop() < 60


def _illegal(x: Tensor) -> Tensor:
    """An error that a GPU does not recover from, once a batch has four images."""
    if len(x) >= 4:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return x.flatten(1)[:, :10]


class _Illegal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _illegal(x)


def _break_at_four_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the device fail for good from the first batch of four images on."""
    broken = [False]

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        broken[0] = broken[0] or len(x) >= 4
        return _illegal(x)

    def synchronise(device: torch.device) -> None:
        if broken[0]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(_Illegal, "forward", forward)
    monkeypatch.setattr(speed, "synchronise", synchronise)


def _good_and_bad() -> dict[str, Subject]:
    good = Subject(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), (3, 8, 8), 10)
    return {"bad": Subject(_Illegal, (3, 8, 8), 10, kinds=("inference",)), "good": good}


def test_a_device_that_breaks_in_a_warm_up_is_blamed_on_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    _break_at_four_images(monkeypatch)
    found = measure_speed(_good_and_bad(), SpeedConfig(CPU, "32-true", 4, 2, rounds=2, warmup_s=0.0))
    assert found["bad"]["error"].startswith("RuntimeError: CUDA error: an illegal memory access")
    assert found["good"]["error"].startswith("it was not tried: the timing ended early, as bad broke the device")


def test_a_sweep_keeps_what_it_has_when_the_device_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    _break_at_four_images(monkeypatch)
    found = sweep(_good_and_bad(), SpeedConfig(CPU, "32-true", 1, 1, rounds=1, warmup_s=0.0), 64)
    for name, end in (("bad", "4 failed: RuntimeError: CUDA error: an illegal memory access"), ("good", "4 failed: ")):
        assert [point["batch_size"] for point in found[name].batches] == [1, 2]
        assert found[name].end.startswith(end)


def test_a_sweep_keeps_what_it_has_when_the_yardstick_finds_the_device_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sizes = speed._Yardstick, [1, 2]

    def yardstick(config: SpeedConfig) -> Any:
        if not sizes:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        sizes.pop()
        return whole(config)

    monkeypatch.setattr(speed, "_Yardstick", yardstick)
    found = sweep({"good": _good_and_bad()["good"]}, SpeedConfig(CPU, "32-true", 1, 1, rounds=1, warmup_s=0.0), 64)
    assert [point["batch_size"] for point in found["good"].batches] == [1, 2]
    assert found["good"].end.startswith("4 failed: RuntimeError: CUDA error")


def test_peaks_that_cannot_be_measured_again_cost_no_figures(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [(peaks.Peaks({"fp32": 1e11}, 1e10), [])]

    def peaks_now(config: SpeedConfig) -> tuple[peaks.Peaks, list[str]]:
        if not first:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return first.pop()

    for module in ("cnnbench.roofline.bounds", "cnnbench.commands.speed_timing"):
        monkeypatch.setattr(f"{module}.peaks_now", peaks_now)
    options = (
        "--device=cpu --precision=32-true --batch_size=2 --train_batch_size=2 --rounds=1 --out=p --records=r.jsonl"
    )
    assert main(["speed", "LeNet5", "--limits", *options.split()]) == 0
    assert "the peaks were not measured again: RuntimeError" in capsys.readouterr().out
    (record,) = load_records([Path("r.jsonl")])
    assert record.measures["latency_ms_median"] > 0


def test_a_copy_that_was_smaller_does_not_give_the_rate_of_memory() -> None:
    large, small = peaks.Peaks({"fp32": 1.0}, 4e12, 2**32), peaks.Peaks({"fp32": 2.0}, 9e12, 2**24)
    for both in (large.best(small), small.best(large)):
        assert (both.bytes_per_s, both.copied_bytes, both.flops_per_s) == (4e12, 2**32, {"fp32": 2.0})


@pytest.mark.parametrize(("dtype", "batches"), [(torch.float32, 15), (torch.bfloat16, 16)])
def test_inputs_take_turns_that_no_cache_holds(
    dtype: torch.dtype, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times the 60 MiB of an H200's cache, in batches of 12 or 6 MiB, 16 of them at most."""
    properties = SimpleNamespace(L2_cache_size=60 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    timed = Timed.__new__(Timed)
    timed.config = SimpleNamespace(device=CUDA)  # type: ignore[assignment]
    timed.subject = SimpleNamespace(image_shape=(3, 32, 32))  # type: ignore[assignment]
    assert timed._number_of_inputs(1024, dtype.itemsize) == batches


# Switches


@pytest.mark.parametrize("searches", [True, False])
def test_a_way_sets_cudnns_search_around_its_turns(searches: bool) -> None:
    timed = Timed.__new__(Timed)
    timed.config = SimpleNamespace(device=CUDA)  # type: ignore[assignment]
    timed.way = Way("bf16-mixed", cudnn_benchmark=searches)
    before = torch.backends.cudnn.benchmark
    with timed._switches("training"):
        assert torch.backends.cudnn.benchmark is searches
    assert torch.backends.cudnn.benchmark is before


def test_float32_inference_beside_mixed_training_is_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed.__new__(Timed)
    timed.config = SimpleNamespace(device=CUDA)  # type: ignore[assignment]
    timed.way = Way("bf16-mixed", inference_precision="32-true")
    asked: list[bool] = []

    @contextlib.contextmanager
    def noted(device: torch.device, on: bool) -> Iterator[None]:
        asked.append(on)
        yield

    monkeypatch.setattr("cnnbench.timing.timed_network.tf32", noted)
    for kind in ("training", "latency"):
        with timed._switches(kind):
            pass
    assert asked == [False]  # inference alone


def test_tf32_is_switched_whatever_others_have_set() -> None:
    """Torch raises an error where its older and newer switches disagree, and where Lightning or the compiler asks."""
    code = """
import torch
from cnnbench.hardware import tf32
cuda = torch.device("cuda", 0)
def ask():
    return (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.fp32_precision,
            torch.backends.cudnn.conv.fp32_precision)
def check():
    for allowed in (True, False, True):
        with tf32(cuda, allowed):
            word = "tf32" if allowed else "ieee"
            assert ask() == ("high" if allowed else "highest", allowed, allowed, word, word), ask()
before = ask()
check()
assert ask() == before, ask()
torch.set_float32_matmul_precision("high")
check()
assert torch.get_float32_matmul_precision() == "high"
torch.set_float32_matmul_precision("medium")
check()
assert torch.get_float32_matmul_precision() == "medium"
torch.set_float32_matmul_precision("highest")
for word in ("tf32", "ieee"):
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = word
    check()
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == word
torch.backends.fp32_precision = "tf32"
check()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_cudnns_search_is_put_back_and_no_import_leaves_it_on() -> None:
    from cnnbench.verification.data import airbench

    assert not torch.backends.cudnn.benchmark
    with hardware.cudnn_benchmark(True):
        assert torch.backends.cudnn.benchmark
    code = (
        "import torch; from cnnbench.verification.data import airbench; airbench(); import sys\n"
        "sys.exit(torch.backends.cudnn.benchmark)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    airbench()
    assert not torch.backends.cudnn.benchmark


# Optimizers


def test_adamw_is_fused_on_a_gpu_alone() -> None:
    assert not adamw([nn.Parameter(torch.ones(2))], lr=0.1).defaults["fused"]
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameters = [nn.Parameter(torch.ones(2, device="cuda")) for _ in range(2)]
        assert adamw(parameters, lr=0.1).defaults["fused"]
        assert adamw([{"params": parameters, "weight_decay": 0.0}], lr=0.1).defaults["fused"]
        # None lets torch choose, False would be a loop over the parameters.
        assert adamw(parameters, fused=False, lr=0.1).defaults["fused"] is None
        both = [*parameters, nn.Parameter(torch.ones(2))]
        assert not adamw(both, lr=0.1).defaults["fused"]


class _Launches(TorchDispatchMode):
    """Counts operators that are no views, and notes the types of matrix products."""

    VIEWS = ("view", "expand", "transpose", "permute", "unbind", "detach", "alias", "profiler")

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(word in str(func) for word in self.VIEWS):
            self.calls[str(func)] += 1
        if "bmm" in str(func):
            self.products.add(out.dtype)
        return out


def _one_by_one(filters: list[Tensor], gradients: list[list[Tensor]]) -> list[Tensor]:
    """The steps as Jordan describes them, a filter after the other."""
    a, b, c = NEWTON_SCHULZ
    found = []
    for p, steps in zip(filters, gradients, strict=True):
        p, buffer = p.clone(), torch.zeros_like(p)
        for gradient in steps:
            buffer = 0.6 * buffer + gradient
            x = (gradient + 0.6 * buffer).flatten(1)
            x = x / x.norm()
            x = x.T if len(x) > x.shape[1] else x
            for _ in range(3):
                gram = x @ x.T
                x = a * x + (b * gram + c * gram @ gram) @ x
            x = x.T if x.shape[0] != len(p) else x
            p = p * (len(p) ** 0.5 / p.norm()) - 0.12 * x.view_as(p)
        found.append(p)
    return found


def test_muon_steps_the_filters_of_a_network_in_few_launches_and_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    net = get_model("SpeedNet")(widths=(16, 32, 32))
    filters = [p for p in net.parameters() if p.ndim > 2 and p.requires_grad]
    gradients = [[torch.randn(p.shape, generator=generator) for _ in range(3)] for p in filters]
    expected = _one_by_one([p.detach() for p in filters], gradients)
    optimizer = MuonSGD(filters, bfloat16=False)
    for step in range(3):
        for p, of_steps in zip(filters, gradients, strict=True):
            p.grad = of_steps[step].clone()
        with _Launches() as launches:
            optimizer.step()
    assert launches.calls.total() <= 80, launches.calls
    for p, wanted in zip(filters, expected, strict=True):
        assert (p.detach() - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("has_instructions", [True, False])
def test_muons_products_are_in_bfloat16_where_the_device_computes_in_it(
    has_instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "computes_in_bfloat16", lambda device: has_instructions)
    filters = torch.randn(8, 4, 3, 3, requires_grad=True)
    filters.grad = torch.randn_like(filters)
    with _Launches() as launches:
        MuonSGD([filters]).step()
    assert launches.products == {torch.bfloat16 if has_instructions else torch.float32}


def test_orthogonalise_returns_the_type_that_it_is_given() -> None:
    with FakeTensorMode():
        assert orthogonalise(torch.empty(2, 8, 72, device="cuda"), 3, bfloat16=True).dtype == torch.float32


# Checkpoints, and packages that may be missing


def _trainer(device: torch.device, precision: str = "bf16-mixed", clip: float | None = None) -> Any:
    strategy, state = SimpleNamespace(root_device=device), SimpleNamespace(fn=TrainerFn.FITTING)
    facts = {"strategy": strategy, "state": state, "precision": precision, "gradient_clip_val": clip}
    return SimpleNamespace(global_step=3, callbacks=[], **facts)


@pytest.mark.parametrize(
    ("trainer", "fused"),
    [
        (_trainer(CUDA), True),
        (_trainer(CPU), None),
        (_trainer(CUDA, "16-mixed"), True),
        (_trainer(CUDA, "16-mixed", 1.0), None),  # a fused step would take gradients that are still scaled for clipped
        (_trainer(CUDA, "bf16-mixed", 1.0), True),
    ],
)
@pytest.mark.parametrize("stored", [True, None])
def test_adamw_of_a_checkpoint_is_fused_as_this_device_wants_it(trainer: Any, fused: bool, stored: bool) -> None:
    model = get_model("LeNet5")(in_channels=1)
    model._trainer = trainer
    group = {"betas": (0.9, 0.999), "fused": stored}
    model.on_load_checkpoint({"optimizer_states": [{"param_groups": [group]}]})
    assert group["fused"] is fused
    sgd = {"momentum": 0.9, "fused": stored}
    model.on_load_checkpoint({"optimizer_states": [{"param_groups": [sgd]}]})
    assert sgd["fused"] is stored


@pytest.mark.parametrize(("stored", "restored"), [(0, 0), (16, 1)])
def test_a_training_goes_on_on_a_gpu_that_began_on_a_cpu(
    stored: int, restored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *arguments: calls.append(arguments))
    model = get_model("LeNet5")(in_channels=1)
    monkeypatch.setattr(type(model), "device", CUDA)
    model._trainer = _trainer(CUDA)  # type: ignore[assignment]
    state = {"cpu": torch.get_rng_state(), "device": torch.zeros(stored, dtype=torch.uint8)}
    model.on_load_checkpoint({"random_state": state})
    model.on_train_start()
    assert len(calls) == restored


def test_training_and_races_start_without_wandb_and_say_so_where_it_is_asked_for() -> None:
    code = """
import sys
sys.modules["wandb"] = None
import cnnbench.verification.recipes, cnnbench.verification.training
from cnnbench.cli import main
small = ["--data", "Synthetic", "--data.train_images", "40", "--data.test_images", "20", "--data.batch_size", "20"]
fit = ["fit", "--model", "LeNet5", *small, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
codes = main([*fit, "--out", "a"]), main([*fit, "--wandb", "offline", "--out", "b"])
assert codes == (0, 2), codes
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cnnbench: --wandb offline needs the package wandb, which is not installed" in done.stderr


# Number formats of inference


class _Notes(nn.Module):
    """Notes the types that it computes in."""

    def __init__(self, seen: set[tuple[bool, torch.dtype, torch.dtype]]) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 10)
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x.flatten(1))
        self.seen.add((self.training, x.dtype, out.dtype))
        return out


@pytest.mark.parametrize(
    ("precision", "inference", "expected"),
    [
        ("32-true", None, {(False, "float32", "float32"), (True, "float32", "float32")}),
        ("bf16-mixed", None, {(False, "float32", "bfloat16"), (True, "float32", "bfloat16")}),
        ("bf16-mixed", "bf16-true", {(False, "bfloat16", "bfloat16"), (True, "float32", "bfloat16")}),
        ("bf16-true", None, {(False, "bfloat16", "bfloat16")}),
    ],
)
def test_each_kind_of_work_is_timed_in_its_format(
    precision: str, inference: str | None, expected: set[tuple[bool, str, str]]
) -> None:
    seen: set[tuple[bool, torch.dtype, torch.dtype]] = set()
    config = SpeedConfig(CPU, precision, 4, 2, rounds=1, warmup_s=0.0, inference_precision=inference)
    found = measure_speed({"a": Subject(lambda: _Notes(seen), (3, 8, 8), 10)}, config)["a"]
    types = {(training, str(x).removeprefix("torch."), str(y).removeprefix("torch.")) for training, x, y in seen}
    assert types == expected
    assert ("train_step_ms_median" in found) == (precision != "bf16-true")
    assert found["latency_ms_median"] > 0


@pytest.mark.usefixtures("quick_processes")
def test_memory_is_that_of_inference_where_nothing_is_trained(capsys: pytest.CaptureFixture) -> None:
    options = ["--device=cpu", "--rounds=1", "--batch_size=2", "--train_batch_size=2", "--memory", "--json"]
    assert main(["speed", "LeNet5", "--precision", "bf16-true,32-true", *options]) == 0
    half, full = json.loads(capsys.readouterr().out)["networks"]
    assert "inference_resident_bytes" in half
    assert "resident_bytes" not in half
    assert "resident_bytes" in full
    assert "inference_resident_bytes" not in full


def test_a_network_that_fails_in_16_bit_weights_says_what_to_try() -> None:
    class Float(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(192, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1).float())

    config = SpeedConfig(CPU, "bf16-mixed", 4, 2, rounds=1, warmup_s=0.0, inference_precision="bf16-true")
    found = measure_speed({"a": Subject(Float, (3, 8, 8), 10)}, config)["a"]
    assert found["error"].endswith("(inference in bf16-true; try --precision 32-true)")


def test_in_16_bit_weights_nothing_is_cast() -> None:
    """VGG16's weights are read once, in half the bytes; autocast reads and writes them in every pass besides."""
    model = get_model("VGG16")()
    loads = {name: layer_traffic(model, (3, 32, 32), 1, name) for name in ("32-true", "bf16-mixed", "bf16-true")}
    weights = sum(p.numel() for p in model.parameters())
    assert len({load.flops for load in loads.values()}) == 1
    assert loads["bf16-true"].moved_bytes == pytest.approx(loads["32-true"].moved_bytes / 2, rel=0.01)
    assert loads["bf16-mixed"].moved_bytes - loads["bf16-true"].moved_bytes > 6 * weights
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# The benchmark's training


def test_short_steps_are_trained_several_in_a_call_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `bench` does on a GPU where a step is shorter than what Lightning's loop takes for one."""
    small = '{"train_images": 60, "test_images": 20}'
    options = ["--device=cpu", "--precision=32-true", "--epochs=2", "--batch_size=8", f"--data_options={small}"]
    found = {}
    for together in (None, 3):
        monkeypatch.setattr(runner._Run, "_steps_per_call", lambda self, measures, n=together: n)
        folder = Path(f"run-{together}")
        names = ["bench", "--models=LeNet5", "--data=Synthetic", "--measures=quality"]
        assert main([*names, *options, f"--out={folder}"]) == 0
        (found[together],) = load_records([folder])
    alone, grouped = found[None], found[3]
    assert grouped.training["steps_per_call"] == 3
    assert alone.training["steps"] == grouped.training["steps"] == 12
    assert alone.confusion_matrix == grouped.confusion_matrix


@pytest.mark.parametrize(
    ("device", "precision", "step_ms", "expected"),
    [
        ("cuda:0", "bf16-mixed", 1.0, runner.STEPS_PER_CALL),
        ("cuda:0", "bf16-mixed", 5.0, None),
        ("cuda:0", "16-mixed", 1.0, None),
        ("cpu", "bf16-mixed", 1.0, None),
        ("cuda:0", "bf16-mixed", None, None),
    ],
)
def test_steps_are_taken_together_where_they_are_short(
    device: str, precision: str, step_ms: float | None, expected: int | None
) -> None:
    run = SimpleNamespace(device=torch.device(device), plan=SimpleNamespace(precision=precision))
    measures = {} if step_ms is None else {"train_step_ms_median": step_ms}
    assert runner._Run._steps_per_call(run, measures) == expected  # type: ignore[arg-type]


def test_the_training_clock_leaves_out_what_is_done_between_epochs() -> None:
    now = [0.0]
    clock = TrainingClock(lambda: now[0])
    module: Any = SimpleNamespace(device=CPU)
    trainer: Any = SimpleNamespace()
    for _ in range(2):
        clock.on_train_epoch_start(trainer, module)
        now[0] += 0.5  # the epoch's images are drawn
        for _ in range(3):
            clock.on_train_batch_start(trainer, module)
            now[0] += 1.0
        clock.on_train_epoch_end(trainer, module)
        now[0] += 10.0  # a checkpoint is written
    clock.on_train_end(trainer, module)
    assert clock.used_s == 7.0
