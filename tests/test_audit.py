"""The audit explains what it should, and fails where it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbench.counting.complexity import complexity
from cnnbench.network import get_network
from cnnbench.verification import audit as audit
from cnnbench.verification import interleave, ratio
from cnnbench.verification.counters import COUNTERS, Subject
from cnnbench.verification.recorded_calls import record_calls

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "experiments" / "results" / "2026-11-22-audit.json"


@pytest.mark.parametrize("name", ["LeNet5", "torchvision:mobilenet_v3_small(width_mult=0.5)", "torchvision:googlenet"])
def test_noted_calls_give_our_count(name: str) -> None:
    network = get_network(name, image_size=96)
    model = network.build()
    assert record_calls(model, network.image_shape).macs == complexity(model, network.image_shape, False).macs


def test_calls_are_noted_once_and_by_their_module() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.linear(x), x.new_ones(2, 3))

    calls = record_calls(Network(), (4,)).functions
    assert [(c.function, type(c.modules[-1]).__name__, c.macs) for c in calls] == [
        ("linear", "Linear", 12),
        ("linear", "Network", 6),
    ]
    assert F.linear.__module__ != "cnnbench.verification.recorded_calls"


def test_the_audit_explains_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert audit.main(["--rounds=1", "--models", "LeNet5", "MobileNetV1"]) == 0
    document = json.loads((tmp_path / "results/races/audit.json").read_text())
    assert document["goals"]["every difference explained"]
    assert document["machine"]["packages"]["torch"]
    by_name = {row["name"]: row for row in document["rows"]}
    assert by_name["FlopCounterMode, training"]["causes"]["grouped gradient"]["networks"] == 1
    assert by_name["fvcore"]["equal"] == 1
    for row in by_name.values():
        assert row.get("unexplained", 0) == 0
    shown = capsys.readouterr().out
    assert "unexplained: 0" in shown
    assert "| MobileNetV1 | 46,354,432 | x 2 |" in shown


def test_groups_and_transposition_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "up.py").write_text(
        "from torch import nn\n\n\n"
        "def net():\n"
        "    up = nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=1)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.ReLU(), up, nn.Flatten(), nn.Linear(6 * 144, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    network = get_network("up:net", image_size=8)
    model = network.build()
    noted = [call.groups for call in record_calls(model, network.image_shape).functions if call.groups > 1]
    assert noted == [2]
    comparison, _ = audit.audit(network, 1)
    assert {d.counter: d.unexplained for d in comparison} == {d.counter: 0 for d in comparison}


def test_an_unexplained_difference_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    count, causes = audit.COUNTERS["torchinfo"]
    monkeypatch.setitem(audit.COUNTERS, "torchinfo", (lambda subject: count(subject) + 1, causes))
    assert audit.main(["--rounds=1", "--models", "LeNet5"]) == 1
    captured = capsys.readouterr()
    assert "unexplained: torchinfo on LeNet5: +1" in captured.err
    assert "UNEXPLAINED" in captured.out


def test_ptflops_counts_linear_layers_twice_without_values() -> None:
    # Why the audit gives it a network with values; when this fails, it may have one on the meta device.
    network = get_network("LeNet5")
    model = network.build()
    subject = Subject(network, model, model, record_calls(model, network.image_shape), 0, 0)
    with_values = COUNTERS["ptflops"][0](subject)
    linear = sum(call.macs for call in subject.calls.functions if call.function == "linear")
    assert linear > 0
    without = COUNTERS["ptflops"][0](subject._replace(real=model.to("meta")))
    assert without - with_values >= linear


def test_interleaving_runs_everyone_once_a_round() -> None:
    order: list[str] = []
    times = interleave({name: lambda name=name: order.append(name) for name in "abc"}, 4)  # type: ignore[misc]
    assert {name: len(samples) for name, samples in times.items()} == dict.fromkeys("abc", 4)
    assert all(sorted(order[i : i + 3]) == ["a", "b", "c"] for i in range(0, 15, 3))
    assert ratio([2, 6, 4], [1, 2, 1]) == {"median": 3, "low": 2, "high": 4}


def test_the_readme_shows_the_committed_audit() -> None:
    document: dict[str, Any] = json.loads(RECORD.read_text())
    assert document["goals"]["every difference explained"]
    assert len({d["network"] for d in document["comparisons"] if d["network"].startswith("torchvision:")}) >= 20
    for line in audit.markdown(document).splitlines():
        assert line in (ROOT / "docs" / "counting.md").read_text()
