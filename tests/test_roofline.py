"""The roofline against what can be worked out by hand: bytes, operations, times and verdicts."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn

from cnnbench.cli import main
from cnnbench.counting.complexity import complexity
from cnnbench.counting.operators import KINDS
from cnnbench.errors import UserError
from cnnbench.network import get_network
from cnnbench.report.roofline_picture import draw_roofs
from cnnbench.roofline.bounds import seconds_by_kind
from cnnbench.roofline.model import Load, Timed, Work, bound, layer_traffic, predicted_seconds
from cnnbench.roofline.peaks import Peaks, measure_peaks

CPU = torch.device("cpu")
FAKE = Peaks({"fp32": 1000.0, "bf16": 4000.0}, 100.0)
"""A machine with its ridge at 10 FLOP/byte in float32, 40 in bfloat16."""


def test_bytes_and_operations_of_a_convolution_are_those_by_hand() -> None:
    load = layer_traffic(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 5, 7), batch_size=2)
    assert load.flops == 2 * 2 * (5 * 7) * 8 * 3 * 9
    assert load.other_ops == 0
    assert load.moved_bytes == 4 * (2 * 3 * 5 * 7 + 8 * 3 * 9 + 2 * 8 * 5 * 7)
    assert list(load.by_kind()) == ["convolution"]


@pytest.mark.parametrize("n", [4, 64])
def test_intensity_of_a_square_matrix_product_is_a_sixth_of_its_size(n: int) -> None:
    """2 n^3 operations, 3 n^2 numbers of 4 bytes."""
    load = layer_traffic(nn.Linear(n, n, bias=False), (n,), batch_size=n)
    assert load.operations == 2 * n**3
    assert load.intensity == pytest.approx(n / 6)


def test_a_bias_is_read_and_added() -> None:
    load = layer_traffic(nn.Linear(10, 6), (10,), batch_size=3)
    assert (load.flops, load.other_ops) == (2 * 3 * 10 * 6, 3 * 6)
    assert load.moved_bytes == 4 * (3 * 10 + 10 * 6 + 6 + 3 * 6)


def test_kinds_of_layers_are_told_apart_and_views_move_nothing() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 2),
    )  # fmt: skip
    parts = layer_traffic(network, (4, 6, 6), batch_size=1).by_kind()
    assert list(parts) == ["depthwise convolution", "linear", "normalisation", "activation and pooling"]
    assert set(parts) < set(KINDS)
    activation = parts["activation and pooling"]
    assert len(activation.works) == 2  # the flattening is a view
    assert activation.works[0].moved_bytes == 2 * 4 * 4 * 16  # in place: read and written


def test_one_channel_to_one_is_no_depthwise_convolution() -> None:
    assert list(layer_traffic(nn.Conv2d(1, 6, 3), (1, 6, 6), 1).by_kind()) == ["convolution"]


def test_casts_of_autocast_are_in_the_traffic() -> None:
    parts = layer_traffic(nn.Conv2d(2, 3, 1, bias=False), (2, 4, 4), 1, "bf16-mixed").by_kind()
    images, weights, results = 2 * 16, 6, 3 * 16
    assert parts["convolution"].moved_bytes == 2 * (images + weights + results)
    assert parts["other"].moved_bytes == (4 + 2) * (images + weights)


@pytest.mark.parametrize("name", ["ResNet18", "MobileNetV1", "LeNet5"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_operations_are_those_of_the_count(name: str, precision: str) -> None:
    network = get_network(name)
    model = network.build()
    cost = complexity(model, network.image_shape)
    load = layer_traffic(model, network.image_shape, 4, precision)
    assert (load.flops, load.other_ops, load.uncounted) == (4 * cost.flops, 4 * cost.other_ops, ())
    assert layer_traffic(model, network.image_shape, 4, precision, training=True).flops == 8 * (cost.train_macs or 0)


def test_predicted_time_is_the_longer_of_both_summed_over_layers() -> None:
    wide, narrow = nn.Linear(100, 100, bias=False), nn.Linear(100, 1, bias=False)
    wide_s = max(2 * 50 * 100 * 100 / 1000, 4 * (50 * 100 + 100 * 100 + 50 * 100) / 100)
    narrow_s = max(2 * 50 * 100 / 1000, 4 * (50 * 100 + 100 + 50) / 100)
    assert wide_s == 1000  # by arithmetic, memory 800
    assert narrow_s == 206  # by memory, arithmetic 10
    predicted = predicted_seconds(nn.Sequential(wide, narrow), (100,), 50, FAKE, "32-true")
    assert predicted == pytest.approx(wide_s + narrow_s)


def test_small_traffic_moves_at_the_rate_of_caches() -> None:
    peaks = Peaks({"fp32": 1.0}, 10.0, copied_bytes=512, cached=((64, 160.0), (256, 40.0)))
    assert [peaks.rate_of(n) for n in (1, 64, 128, 256, 1024, 10**6)] == pytest.approx([160, 160, 80, 40, 10, 10])
    noisy = Peaks({"fp32": 1.0}, 10.0, copied_bytes=512, cached=((64, 1.0),))
    assert noisy.seconds_to_move(20) == 2.0


def load(flops: int, moved_bytes: int, batch_size: int = 1, precision: str = "32-true") -> Load:
    return Load(batch_size, precision, (Work("convolution", flops, 0, moved_bytes),))


@pytest.mark.parametrize(
    ("flops", "moved_bytes", "precision", "verdict"),
    [
        (2000, 100, "32-true", "compute-bound"),
        (900, 100, "32-true", "memory-bound"),
        (2000, 100, "bf16-mixed", "memory-bound"),
    ],
)
def test_the_ridge_divides_memory_from_compute(flops: int, moved_bytes: int, precision: str, verdict: str) -> None:
    found = bound(Timed(load(flops, moved_bytes, precision=precision), 4.0), FAKE, graph_s=4.0)
    assert found.bound == verdict
    assert found.evidence.startswith(f"{verdict}: the roofline allows ")
    assert found.intensity == flops / moved_bytes
    assert found.of_peak_flops == pytest.approx(flops / 4.0 / FAKE.of(precision))
    assert found.of_peak_bandwidth == pytest.approx(moved_bytes / 4.0 / 100)
    assert found.per_call_share == 0


def test_a_batch_that_costs_hardly_more_is_launch_bound() -> None:
    one, many = Timed(load(100, 1), 10.0), Timed(load(6400, 64, 64), 16.3)  # 9.9 s a call and 0.1 s an image
    found = bound(many, FAKE, other=one)
    assert found.bound == "launch-bound"
    assert found.per_call_share == pytest.approx(9.9 / 16.3)
    assert "64 times the images take 1.63 times as long, 61 % of this pass spent per call" in found.evidence
    assert bound(one, FAKE, other=many).per_call_share == pytest.approx(0.99)


def test_the_devices_own_time_shows_launching_that_a_graph_has_too() -> None:
    """As of a small network on a GPU: a graph saves 48 %, since its own launch is as long as the work."""
    timed = Timed(load(2000, 1), 11.5)
    assert bound(timed, FAKE, graph_s=6.0).bound == "compute-bound"
    assert bound(timed, FAKE, graph_s=6.0, device_s=2.5).bound == "launch-bound"


def test_the_straight_line_shows_launching_that_the_devices_own_time_has_too() -> None:
    """As of a network with more launches than a queue holds: the device waits for the host in between."""
    one, many = Timed(load(100, 1), 10.0), Timed(load(6400, 64, 64), 16.3)
    found = bound(many, FAKE, other=one, device_s=16.0)
    assert found.bound == "launch-bound"
    assert found.per_call_share == pytest.approx(9.9 / 16.3)


def test_time_that_grows_with_the_batch_is_not_launch_bound() -> None:
    one, many = Timed(load(100, 1), 0.5), Timed(load(6400, 64, 64), 32.0)
    assert bound(many, FAKE, other=one).per_call_share == pytest.approx(0, abs=1e-12)
    assert bound(one, FAKE, other=many).bound == "compute-bound"


def test_reading_the_weights_is_no_launching() -> None:
    """A thousand bytes are moved for any number of images: 10 s of the 10.1 s that one takes."""
    one, many = Timed(load(10, 1001), 10.1), Timed(load(640, 1064, 64), 11.0)
    found = bound(one, FAKE, other=many)
    assert found.bound == "memory-bound"
    assert found.per_call_share == pytest.approx(0.0086, abs=0.001)


def test_what_a_graph_saves_was_launching() -> None:
    timed = Timed(load(2000, 100), 10.0)
    assert bound(timed, FAKE, graph_s=4.0).bound == "launch-bound"
    assert "as a CUDA graph 4,000 ms, 60 % less" in bound(timed, FAKE, graph_s=4.0).evidence
    assert bound(timed, FAKE, graph_s=8.0).bound == "compute-bound"


def test_slow_kernels_are_named() -> None:
    slow = bound(Timed(load(1000, 1), 100.0), FAKE, graph_s=99.0)
    assert "so the kernels themselves are slow" in slow.evidence
    assert "so the kernels themselves are slow" not in bound(Timed(load(1000, 1), 2.0), FAKE, graph_s=2.0).evidence


def test_without_a_second_batch_or_a_graph_a_slow_pass_is_not_explained() -> None:
    found = bound(Timed(load(1000, 1), 100.0), FAKE)  # 1 s by the roofline
    assert found.bound == "not determined"
    assert found.per_call_share is None
    assert "give a --batch_size above 1" in found.evidence
    far = bound(Timed(load(1000, 1), 11.0), FAKE, Timed(load(2000, 2, 2), 22.0))
    assert (far.bound, far.per_call_share) == ("not determined", 0.0)  # nothing is spent per call, nor as is allowed
    assert "9.1 % of it, so the kernels themselves are slow" in far.evidence
    assert bound(Timed(load(1000, 1), 1.9), FAKE).bound == "compute-bound"  # nine tenths of it cannot be launching


def test_peaks_are_positive_and_those_asked_for() -> None:
    peaks = measure_peaks(CPU, ["32-true"], sizes=(16, 32), copied_bytes=2**16, probe_s=0.001)
    assert set(peaks.flops_per_s) == {"fp32"}
    assert peaks.of("32-true") == max((peaks.probes or {}).values()) > 0
    assert peaks.bytes_per_s > 0
    assert peaks.ridge("32-true") == peaks.of("32-true") / peaks.bytes_per_s
    assert peaks.cached == ()  # all of these copies are larger than the one asked for


def test_the_better_of_two_measurements_holds() -> None:
    first = Peaks({"fp32": 2.0}, 5.0, 64, ((8, 9.0),), {"a": 2.0})
    second = Peaks({"fp32": 3.0}, 4.0, 64, ((8, 7.0),), {"a": 3.0})
    assert first.best(second) == Peaks({"fp32": 3.0}, 5.0, 64, ((8, 9.0),), {"a": 3.0})


def test_operators_are_timed_by_kind() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval()
    found = seconds_by_kind(network, torch.randn(2, 3, 6, 6), "32-true", CPU)
    assert set(found) == {"convolution", "activation and pooling"}
    assert min(found.values()) > 0


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(7, -1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: layer_traffic(nn.ReLU(), (1,), 0), "batch_size 0 must be at least 1"),
        (lambda: layer_traffic(nn.ReLU(), (1,), 1, "auto"), "unknown precision 'auto'"),
        (
            lambda: layer_traffic(Broken(), (1, 3), 2),
            "cannot trace Broken on images of 1x3: in its forward: RuntimeError",
        ),
        (lambda: Peaks({"fp32": 0.0}, 1.0), "peak fp32 0.0 must be above 0"),
        (lambda: FAKE.of("16-mixed"), "the peak of 16-mixed (fp16) was not measured; there are fp32, bf16"),
        (lambda: measure_peaks(CPU, ["64-true"]), "unknown precision '64-true'"),
        (lambda: measure_peaks(CPU, ["16-mixed"]), "'16-mixed' has no fast arithmetic on a CPU"),
        (lambda: measure_peaks(CPU, sizes=(0,)), "must be at least 1"),
        (lambda: bound(Timed(load(1, 1), 0.0), FAKE), "time 0.0 s must be above 0"),
        (lambda: bound(Timed(load(1, 1), 1.0), FAKE, Timed(load(1, 1), 1.0)), "the slope needs two batch sizes"),
    ],
)
def test_bad_input_is_refused(call: object, words: str) -> None:
    with pytest.raises(UserError) as error:
        call()  # type: ignore[operator]
    assert words in str(error.value)


@pytest.fixture
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = Peaks({"fp32": 1e11, "bf16": 4e11}, 1e10, 2**27, ((2**20, 5e10),))
    monkeypatch.setattr("cnnbench.roofline.bounds.measure_peaks", lambda *_, **__: peaks)


@pytest.mark.usefixtures("quick_peaks")
def test_the_command_says_what_limits_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--device=cpu", "--precision=32-true", "--batch_size=2", "--train_batch_size=2", "--rounds=1"]
    call = ["speed", "LeNet5", "SimpleCNN", *options, "--limits", "--out", str(tmp_path)]
    assert main([*call, "--json"]) == 0
    limits = json.loads(capsys.readouterr().out)["limits"]
    assert limits["peaks"]["bytes_per_s"] == 1e10
    assert Path(limits["picture"]) == tmp_path / "roofline.png"
    assert [p.name for p in tmp_path.iterdir()] == ["roofline.png"]
    for found in limits["networks"].values():
        for kind, images in (("latency", 1), ("inference", 2)):
            verdict = found[kind]
            assert verdict["batch_size"] == images
            assert verdict["bound"] in ("launch-bound", "memory-bound", "compute-bound", "not determined")
            operations = verdict["flops"] + verdict["other_ops"]
            assert verdict["intensity"] == pytest.approx(operations / verdict["moved_bytes"])
            assert verdict["of_peak_flops"] == pytest.approx(operations / verdict["measured_s"] / 1e11)
        assert sum(g["flops"] for g in found["groups"]) == found["inference"]["flops"]
        assert sum(g["moved_bytes"] for g in found["groups"]) == found["inference"]["moved_bytes"]
        assert all(g["seconds"] > 0 for g in found["groups"])
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert "What limits inference" in printed
    assert "peaks measured in this run: fp32 100 GFLOP/s" in printed
    assert "LeNet5 at 2 images: " in printed
    busy = iter([["others kept 1.0 processors busy"], [], ["others kept 1.0 processors busy"], ["others"]])
    monkeypatch.setattr("cnnbench.roofline.bounds.reasons_to_doubt", lambda _: next(busy))
    assert main(call) == 0
    assert "suspect peaks" not in capsys.readouterr().out  # the better of before and after
    assert main(call) == 0
    assert "suspect peaks: others kept 1.0 processors busy" in capsys.readouterr().out


def test_names_in_the_picture_cover_neither_each_other_nor_a_point() -> None:
    costs = {"flops": 10**9, "other_ops": 0, "moved_bytes": 10**8}
    limits = {
        name: {
            "inference": {**costs, "measured_s": 0.1 + 0.001 * i},
            "groups": [{**costs, "kind": "linear", "seconds": 1}],
        }
        for i, name in enumerate(("ResNet18", "VGG16", "MobileNetV1", "LeNet5"))
    }
    peaks = Peaks({"fp32": 1e11, "bf16": 4e11}, 1e10, 2**27, ((2**20, 5e10),)).figures()
    figure = draw_roofs(limits, peaks, "fp32", "a machine")
    (ax,) = figure.axes
    figure.draw_without_rendering()
    boxes = {text.get_text(): Text.get_window_extent(text) for text in ax.texts}
    assert boxes.keys() == {*limits, "ridge 10 FLOP/byte"}
    assert not any(a.overlaps(b) for a, b in combinations(boxes.values(), 2))
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_ylim()[1] > 4e11
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries[:3] == [
        "roof: 100 GFLOP/s (fp32), 10 GB/s",
        "copies within caches: up to 50 GB/s",
        "bf16: 400 GFLOP/s",
    ]


def test_a_folder_for_the_picture_needs_limits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["speed", "LeNet5", "--out", str(tmp_path)]) == 2
    assert "--out is for the picture of --limits" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["speed", "LeNet5", "--limits", "--out", str(tmp_path / "file" / "folder")]) == 2
    assert "cannot be made: Not a directory" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_peaks_of_a_gpu_are_ordered() -> None:
    peaks = measure_peaks(torch.device("cuda"), sizes=(4096,))
    assert set(peaks.flops_per_s) == {"fp32", "bf16", "fp16", "tf32"}
    assert peaks.flops_per_s["fp32"] < peaks.flops_per_s["bf16"]
    assert peaks.ridge("bf16-mixed") > 1
