"""Energy from counters that are files or libraries made here: what is summed, what is refused, and what records say."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.record import load_records
from cnnbench.timing import energy, energy_counters
from cnnbench.timing.energy import spend
from cnnbench.timing.energy_counters import Nvml, Rapl, find_counter
from cnnbench.timing.processes import pooled
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed

CPU = torch.device("cpu")
WATTS = 100.0


def domain(folder: Path, name: str, energy_uj: object, largest: int | None = 262_143_328_850) -> Path:
    """Write a domain of RAPL as Linux shows it."""
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    if largest is not None:
        (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder / "energy_uj"


class Steady:
    """A counter of a device that always takes the same power, in microjoules."""

    name, update_s, includes, excludes = "steady", 0.001, "everything", "nothing"

    def read(self) -> tuple[int, ...]:
        return (int(1e6 * WATTS * time.perf_counter()),)

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        return (after[0] - before[0]) / 1e6


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEASURED_S", "RUN_IN_S", "REST_S"):
        monkeypatch.setattr(energy, name, 0.02)


@pytest.fixture
def steady(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "find_counter", lambda device: Steady())


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    first = domain(tmp_path / "intel-rapl:0", "package-0", 1_000_000)
    second = domain(tmp_path / "intel-rapl:1", "package-1", 5_000_000)
    others = [
        domain(tmp_path / "intel-rapl:0:0", "core", 0),
        domain(tmp_path / "intel-rapl:0:1", "dram", 0),
        domain(tmp_path / "intel-rapl:2", "psys", 0),
        domain(tmp_path / "intel-rapl-mmio:0", "package-0", 0),
    ]
    counter = Rapl(tmp_path)
    before = counter.read()
    first.write_text("3500000\n")
    second.write_text("5250000\n")
    for other in others:
        other.write_text("9000000\n")
    assert counter.joules(before, counter.read()) == pytest.approx(2.5 + 0.25)


def test_a_counter_that_starts_again_goes_on_from_its_largest_value(tmp_path: Path) -> None:
    file = domain(tmp_path / "intel-rapl:0", "package-0", 9_000_000, 10_000_000)
    steady = domain(tmp_path / "intel-rapl:1", "package-1", 0, 10_000_000)
    counter = Rapl(tmp_path)
    before = counter.read()
    file.write_text("500000\n")
    steady.write_text("250000\n")
    assert counter.joules(before, counter.read()) == pytest.approx(1.0 + 0.5 + 0.25)


@pytest.mark.parametrize(("largest", "message"), [(None, "max_energy_range_uj: No such file"), (0, "went back")])
def test_a_counter_that_goes_back_for_no_known_reason_is_refused(
    tmp_path: Path, largest: int | None, message: str
) -> None:
    file = domain(tmp_path / "intel-rapl:0", "package-0", 9_000_000, largest)
    counter = Rapl(tmp_path)
    before = counter.read()
    file.write_text("500000\n")
    with pytest.raises(UserError, match=message):
        counter.joules(before, counter.read())


def test_why_a_processors_counter_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"this processor's counter cannot be read: .*/none is not there"):
        Rapl(tmp_path / "none")
    domain(tmp_path / "one" / "intel-rapl:0", "psys", 0)
    with pytest.raises(UserError, match="has no package of RAPL"):
        Rapl(tmp_path / "one")
    domain(tmp_path / "two" / "intel-rapl:0", "package-0", "none")
    with pytest.raises(UserError, match="energy_uj is 'none'"):
        Rapl(tmp_path / "two")
    closed = domain(tmp_path / "three" / "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def without_permission(path: Path, *arguments: Any, **named: Any) -> str:
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", without_permission)
    with pytest.raises(UserError, match=r"three/intel-rapl:0/energy_uj: Permission denied"):
        Rapl(tmp_path / "three")


def test_a_counter_that_does_not_move_is_refused(tmp_path: Path) -> None:
    domain(tmp_path / "intel-rapl:0", "package-0", 1_000_000)
    with pytest.raises(UserError, match=r"the counter of RAPL did not move in 0\.0 s"):
        spend(Rapl(tmp_path), lambda: None, 0.01)


class NotSupportedError(Exception):
    pass


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    return torch.device("cuda", 0)


def test_a_gpus_counter_is_in_millijoules(a_gpu: torch.device) -> None:
    readings = iter([0, 1_000, 351_000])

    def reading(gpu: str) -> int:
        assert gpu == "handle of GPU-1-2"
        return next(readings)

    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID="handle of {}".format,
        nvmlDeviceGetTotalEnergyConsumption=reading,
    )
    counter = Nvml(a_gpu, lambda: library)
    assert counter.joules(counter.read(), counter.read()) == pytest.approx(350.0)


def test_why_a_gpus_counter_cannot_be_read_is_said(a_gpu: torch.device) -> None:
    def refuse(gpu: str) -> int:
        raise NotSupportedError("not on a part of a GPU")

    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=refuse,
    )
    with pytest.raises(UserError, match="this GPU's counter cannot be read: NotSupportedError: not on a part"):
        Nvml(a_gpu, lambda: library)

    def missing() -> Any:
        raise ImportError("No module named 'pynvml'")

    with pytest.raises(UserError, match="ImportError: No module named 'pynvml'"):
        Nvml(a_gpu, missing)
    with pytest.raises(UserError, match="no counter for device mps"):
        find_counter(torch.device("mps"))


class Sleeps(nn.Module):
    """A network that takes 5 milliseconds for any batch, and fails when it is told to."""

    fails = False

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise ValueError("no power")
        time.sleep(0.005)
        out: Tensor = self.linear(x.flatten(1))
        return out


CONFIG = SpeedConfig(CPU, "32-true", 4, 2, rounds=1, warmup_s=0.0, energy=True)
SUBJECT = Subject(Sleeps, (3, 8, 8), 10, kinds=("latency", "inference"))


@pytest.mark.usefixtures("steady")
def test_energy_per_image_is_power_times_time_per_image() -> None:
    found = measure_speed({"a": SUBJECT}, CONFIG)["a"]
    assert found["idle_power_w"] == pytest.approx(WATTS, rel=0.1)
    # 100 W for at least 5 ms are half a joule, for one image or for a batch of four; a loaded machine takes longer.
    assert 500 <= found["energy_mj_single_image"] < 5_000
    assert 125 <= found["energy_mj_per_image"] < 1_250
    facts = found["energy_facts"]
    assert facts["counter"] == "steady"
    for kind, images in (("latency", 1), ("inference", 4)):
        of_kind = facts[kind]
        assert of_kind["seconds"] >= 0.02
        assert of_kind["images"] % images == 0
        assert of_kind["power_w"] == pytest.approx(WATTS, rel=0.1)
    per_image = 1e3 * facts["inference"]["joules"] / facts["inference"]["images"]
    assert found["energy_mj_per_image"] == pytest.approx(per_image, rel=1e-3)


def test_energy_is_measured_only_if_it_is_asked_for() -> None:
    found = measure_speed({"a": SUBJECT}, SpeedConfig(CPU, "32-true", 4, 2, rounds=1, warmup_s=0.0))["a"]
    assert not [key for key in found if "energy" in key]


@pytest.mark.usefixtures("quick")
def test_without_a_counter_times_stay_and_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    domain(tmp_path / "intel-rapl:0", "package-0", 1_000_000)
    monkeypatch.setattr(energy_counters, "POWERCAP", tmp_path)
    found = measure_speed({"a": SUBJECT}, CONFIG)["a"]
    assert found["energy_facts"] == {"error": "the counter of RAPL did not move in 0.0 s"}
    assert found["latency_ms_median"] > 0
    assert "energy_mj_per_image" not in found


@pytest.mark.usefixtures("steady")
def test_a_network_that_fails_when_its_energy_is_measured_keeps_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(device: torch.device) -> Steady:
        monkeypatch.setattr(Sleeps, "fails", True)
        return Steady()

    monkeypatch.setattr(energy, "find_counter", failing)
    found = measure_speed({"a": SUBJECT}, CONFIG)["a"]
    assert found["energy_facts"] == {"error": "ValueError: no power"}
    assert found["latency_ms_median"] > 0


def test_processes_agree_on_an_energy_or_there_is_none() -> None:
    times = {"samples_ms": {"latency": [[1.0]]}, "cold_ms": {"latency": 1.0}, "conditions": {}, "suspect": []}
    known = times | {"energy_mj_per_image": 3.0, "energy_facts": {"counter": "RAPL"}}
    more = times | {"energy_mj_per_image": 5.0, "energy_facts": {"counter": "RAPL"}}
    unknown = times | {"energy_facts": {"error": "it did not move"}}
    busy = ["other processes kept 0.2 processors busy", "other processes kept 0.5 processors busy"]
    facts = [{"counter": "RAPL", "suspect": doubts} for doubts in ([], busy[:1], busy[1:])]
    (doubt,) = pooled([known | {"energy_facts": each} for each in facts])["energy_facts"]["suspect"]
    assert doubt == f"{busy[1]} (at most, in 2 of 3 processes)"
    assert pooled([known, more])["energy_mj_per_image"] == 4.0
    for runs in ([known, unknown], [unknown, known]):
        found = pooled(runs)
        assert found.get("energy_mj_per_image") is None
        assert found["energy_facts"] == {"error": "it did not move"}


SPEED = ["speed", "LeNet5", "--device=cpu", "--rounds=1", "--batch_size=2", "--train_batch_size=2", "--energy"]


@pytest.mark.usefixtures("steady")
def test_speed_has_columns_of_energy_and_says_how_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*SPEED, "--records", str(tmp_path / "a.jsonl")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "mJ/image" in printed
    assert "energy by steady: everything; not nothing; the counter is updated about every 1 ms" in printed
    (record,) = load_records([tmp_path / "a.jsonl"])
    assert record.measures["energy_mj_per_image"] > 0
    assert record.measures["energy_facts"]["inference"]["images"] > 0
    assert "energy" not in record.skipped


def test_speed_says_why_there_is_no_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(energy_counters, "POWERCAP", tmp_path / "powercap")
    assert main([*SPEED, "--records", str(tmp_path / "a.jsonl")]) == 0
    reason = f"this processor's counter cannot be read: {tmp_path / 'powercap'} is not there"
    assert f"energy is not known (LeNet5): {reason}" in capsys.readouterr().out
    (record,) = load_records([tmp_path / "a.jsonl"])
    assert record.skipped["energy"] == reason
    assert "energy_facts" not in record.measures


@pytest.mark.usefixtures("without_pictures", "steady")
def test_bench_measures_energy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = '--data_options={"train_images": 60, "test_images": 20}'
    sizes = ["--batch_size=4", "--speed_batch_size=4", "--device=cpu", "--precision=32-true"]
    bench = ["bench", "--models=LeNet5", "--data=Synthetic", options, *sizes]
    assert main([*bench, "--measures=speed,energy", "--out=known"]) == 0
    (record,) = load_records([Path("known")])
    assert record.measures["energy_mj_per_image"] > 0
    assert "Energy mJ/image" in Path("known/report.md").read_text()
    monkeypatch.setattr(energy, "find_counter", find_counter)
    monkeypatch.setattr(energy_counters, "POWERCAP", tmp_path / "powercap")
    assert main([*bench, "--measures=speed,energy", "--out=unknown"]) == 0
    (record,) = load_records([Path("unknown")])
    assert record.skipped["energy"].endswith("powercap is not there")
    assert "powercap is not there" in Path("unknown/report.md").read_text()
    assert main([*bench, "--measures=energy", "--out=alone"]) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_takes_power_between_idle_and_its_limit() -> None:
    device = torch.device("cuda", 0)

    def convolutions() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 256, 7), nn.Conv2d(256, 256, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    network = Subject(convolutions, (3, 64, 64), 256, kinds=("latency", "inference"))
    found = measure_speed({"a": network}, SpeedConfig(device, "32-true", 256, 2, rounds=4, energy=True))["a"]
    facts = found["energy_facts"]
    assert "error" not in facts
    limit = found["conditions"]["power_limit_w"]
    assert 10 < found["idle_power_w"] < facts["inference"]["power_w"] < 1.05 * limit
    assert facts["inference"]["power_w"] > 50
    assert 0 < found["energy_mj_per_image"] < found["energy_mj_single_image"]
