"""Exported networks and engines: torch's own outputs, and the engines' own readers, are the oracles."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from conftest import onnx_options
from openvino.tools.ovc import telemetry_utils
from torch import nn

from cnnbench.cli import main
from cnnbench.engines import ENGINES, FORMATS, check_precision, find_engine, find_format, onnx_runtime
from cnnbench.engines.comparison import check_same, compare_logits, random_images
from cnnbench.engines.export import (
    Deployed,
    bytes_of_weights,
    bytes_on_disk,
    record_program,
    write_for_engine,
    write_program,
)
from cnnbench.engines.sessions import logits_of, open_file, open_session
from cnnbench.errors import Stopped, UserError
from cnnbench.machine import cannot_compute_bf16
from cnnbench.models import all_models
from cnnbench.network import get_network
from cnnbench.record import load_records
from cnnbench.timing.processes import scratch_folder
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed
from cnnbench.timing.timed_network import Way

CPU = torch.device("cpu")
FILES = ("onnx", "openvino", "torch-export")
"""Formats that are written in a few seconds; AOTInductor compiles."""
ONE_OF_EACH_KIND = ("SimpleCNN", "MobileNetV2(width_multiplier=0.25)", "ResNet20", "SpeedNet")


def export(network: nn.Module, format_name: str, folder: Path, shape: tuple[int, ...] = (3, 32, 32)) -> Path:
    path = folder / f"network{FORMATS[format_name].suffix}"
    program = record_program(Deployed(network), shape, "network")
    write_program(program, format_name, path, {"network": "network"}, "network")
    return path


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return get_network("LeNet5", 1, 32, 10).build().eval()


@pytest.fixture(scope="module")
def files(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {name: export(small, name, folder / name, (1, 32, 32)) for name in FILES if (folder / name).mkdir() is None}


@pytest.mark.parametrize("format_name", FILES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_file_returns_torchs_logits_for_batches_of_any_size(
    files: dict[str, Path], small: nn.Module, format_name: str, count: int
) -> None:
    x = torch.randn(count, 1, 32, 32)
    found = logits_of(open_file(format_name, files[format_name], "32-true", CPU), x)
    with torch.inference_mode():
        torch.testing.assert_close(found, small(x), rtol=1e-4, atol=1e-5)


def test_engines_own_readers_accept_the_files(files: dict[str, Path], small: nn.Module) -> None:
    x = torch.randn(3, 1, 32, 32)
    with torch.inference_mode():
        expected = small(x).numpy()
    session = onnxruntime.InferenceSession(files["onnx"], onnx_options(), providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(["logits"], {"images": x.numpy()})[0], expected, atol=1e-5)
    model = openvino.Core().read_model(files["openvino"])
    graph = onnx.load(files["onnx"]).graph
    for (value,), sizes in ((graph.input, [1, 32, 32]), (graph.output, [10])):
        batch, *others = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert [size.dim_value for size in others] == sizes
    assert model.inputs[0].get_partial_shape().to_string() == "[?,1,32,32]"  # only the batch is open, as in ONNX
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.allclose(compiled({"images": x.numpy()})["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_session_of_a_fixed_batch_computes_the_same(
    files: dict[str, Path], small: nn.Module, engine: str, batch_size: int
) -> None:
    session = open_session(engine, files[ENGINES[engine].format], "32-true", CPU, batch_size)
    x = torch.randn(batch_size, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(session, x), small(x), rtol=1e-4, atol=1e-5)
    assert session.facts["batch_size"] == batch_size
    if engine == "openvino":
        assert session.facts["shape"] == f"[{batch_size},1,32,32]"  # for an open size its code is slower
    else:
        assert session._session.get_inputs()[0].shape == [batch_size, 1, 32, 32]
    assert session.facts["threads"] == torch.get_num_threads()


def test_images_bound_to_a_session_give_the_same_logits(files: dict[str, Path], small: nn.Module) -> None:
    """The calls that a GPU gets, with the memory of the host in place of that of a GPU."""
    session: Any = open_session("onnxruntime", files["onnx"], "32-true", CPU)
    session._place = ("cpu", 0)
    first, second = torch.randn(2, 3, 1, 32, 32)
    prepared = session.prepare(first)
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(session, second), small(second), rtol=1e-4, atol=1e-5)
        expected = small(first)
    assert np.allclose(session.run(prepared).numpy(), expected.numpy(), atol=1e-5)


def test_sizes_on_disk_are_those_of_the_weights_and_little_more(files: dict[str, Path], small: nn.Module) -> None:
    weights = 4 * sum(p.numel() for p in small.parameters())
    for name, path in files.items():
        assert weights <= bytes_on_disk(path) < weights + 100_000, name
    assert weights <= bytes_of_weights(small) < weights + 10_000


def test_metadata_is_in_the_files(files: dict[str, Path]) -> None:
    stored = {entry.key: entry.value for entry in onnx.load(str(files["onnx"])).metadata_props}
    assert json.loads(stored["cnnbench"]) == {"network": "network"}
    read = openvino.Core().read_model(files["openvino"])
    assert json.loads(read.get_rt_info("cnnbench").astype(str)) == {"network": "network"}
    extra = {"cnnbench": ""}
    torch.export.load(files["torch-export"], extra_files=extra)
    assert json.loads(extra["cnnbench"]) == {"network": "network"}


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_networks_of_each_kind_are_the_same_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    _same_everywhere(name, ("onnx",), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(all_models()))
def test_every_network_is_the_same_in_every_file(name: str, tmp_path: Path) -> None:
    _same_everywhere(name, FILES, tmp_path)


def _same_everywhere(name: str, formats: tuple[str, ...], folder: Path) -> None:
    torch.manual_seed(0)
    network = get_network(name, 3, 32, 10).build().eval()
    x = random_images((3, 32, 32), 1)[:8]
    with torch.inference_mode():
        expected = network(x)
    for format_name in formats:
        found = logits_of(open_file(format_name, export(network, format_name, folder), "32-true", CPU), x)
        # Rounding only: 1e-4 of the largest logit, where an epsilon of float32 is 1e-7.
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), (name, format_name)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_aot_inductor_computes_torchs_logits(small: nn.Module, precision: str, tmp_path: Path) -> None:
    dtype = {"32-true": torch.float32, "bf16-true": torch.bfloat16}[precision]
    network = get_network("LeNet5", 1, 32, 10).build().eval().to(dtype)
    path = tmp_path / "network.pt2"
    program = record_program(Deployed(network), (1, 32, 32), "LeNet5", dtype)
    write_program(program, "aot-inductor", path, {}, "LeNet5")
    x = torch.randn(3, 1, 32, 32)
    with torch.inference_mode():
        expected = network(x.to(dtype)).float()
    found = logits_of(open_session("aot-inductor", path, precision, CPU), x)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_auxiliary_heads_are_left_out(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.layer(x.flatten(1))
            return y, -y

    network = Two().eval()
    path = export(network, "onnx", tmp_path, (1, 2, 2))
    x = torch.randn(2, 1, 2, 2)
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(open_file("onnx", path, "32-true", CPU), x), network(x)[0])


def test_network_whose_flow_depends_on_values_is_refused_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.flatten(1)
            return y if y.sum() > 0 else -y

    said = (
        r"torch\.export cannot record 'Branches': .* values of the images.*torch\.where \(test_engines\.py, line \d+\)"
    )
    with pytest.raises(UserError, match=said):
        record_program(Branches(), (1, 2, 2), "Branches")
    assert capsys.readouterr() == ("", "")  # torch prints the graph it has so far


def test_progress_is_shown_while_an_exporter_is_silenced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(*_: object) -> None:
        print("of the exporter", file=sys.stderr)
        thread = threading.Thread(target=lambda: print("of the progress", file=sys.stderr))
        thread.start()
        thread.join()

    monkeypatch.setattr("cnnbench.engines.onnx_runtime.write", write)
    write_program(None, "onnx", Path("file"), {}, "network")  # type: ignore[arg-type]
    assert capsys.readouterr().err == "of the progress\n"


def test_network_that_is_random_in_evaluation_is_refused_with_a_reason() -> None:
    class Chance(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x.flatten(1), 0.5, training=True)

    with pytest.raises(UserError, match=r"'Chance' returns other logits for the same images each time"):
        record_program(Chance(), (8, 8, 8), "Chance")


def test_another_network_is_refused() -> None:
    x = random_images((1, 2, 2), 0)
    difference = compare_logits("random images", lambda x: x.flatten(1), lambda x: x.flatten(1) * 1.01, x)
    assert difference.relative == pytest.approx(0.01, rel=1e-3)
    assert difference.same_class == 1.0
    with pytest.raises(UserError, match="onnx of X is not the same network"):
        check_same([difference], "32-true", "onnx of X")
    check_same([difference], "bf16-true", "onnx of X")


def test_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbench.engines._missing", lambda modules: list(modules))
    with pytest.raises(UserError, match=r"OpenVINO needs openvino; install with: pip install 'cnnbench\[openvino\]'"):
        find_engine("openvino", "cpu")
    with pytest.raises(UserError, match=r"pip install 'cnnbench\[onnxruntime\]'"):
        find_format("onnx")


@pytest.mark.parametrize(
    ("cpu_info", "has_bf16"),
    [
        ("flags\t\t: fpu sse2 avx2 vaes", False),
        ("flags\t\t: fpu avx2 avx512f avx512bw", True),  # emulated
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("Features\t: fp asimd", True),  # ARM: OpenVINO's session decides
        ("", True),  # not known
    ],
)
def test_openvino_has_bfloat16_unless_the_processor_cannot(
    cpu_info: str, has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{cpu_info}\n")
    monkeypatch.setattr("cnnbench.machine.CPU_INFO", tmp_path / "cpuinfo")
    names = [name for name in ENGINES if "bf16-true" in ENGINES[name].precisions("cpu")]
    assert names == ["torch", "aot-inductor", *(["openvino"] if has_bf16 else [])]
    if not has_bf16:
        where = "this processor, which has no instructions for bfloat16"
        assert (
            ENGINES["openvino"].left_out("bf16-true", "cpu")
            == f"OpenVINO has no bf16-true on {where}, so that row is left out"
        )
        with pytest.raises(UserError, match=r"on device cpu \(OpenVINO has it on .*\); choose 32-true, int8"):
            check_precision("precision", "bf16-true", [ENGINES["onnxruntime"], ENGINES["openvino"]], "cpu")


@pytest.mark.skipif(not cannot_compute_bf16(), reason="this processor may compute in bfloat16")
def test_openvino_is_not_believed_to_compute_in_another_format(tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    write_program(record_program(model, (3, 2, 2), "small"), "openvino", file, {}, "small")
    with pytest.raises(UserError, match="OpenVINO computes in f32 here, not in bf16"):
        open_session("openvino", file, "bf16-true", CPU, 1)


def test_extras_exist(pytestconfig: pytest.Config) -> None:
    text = (pytestconfig.rootpath / "pyproject.toml").read_text()
    for each in (*ENGINES.values(), *FORMATS.values()):
        assert not each.extra or f"\n{each.extra} = [" in text, each.extra


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "LeNet5", "--to", "onx"], "format 'onx'"),
        (["export", "LeNet5", "--to", "onnx", "--precision", "int9"], "precision 'int9'"),
        (["export", "LeNet5", "--to", "openvino", "--precision", "bf16-true"], "OpenVINO chooses its number format"),
        (
            ["export", "LeNet5", "--to", "onnx", "--precision", "bf16-true"],
            "ONNX Runtime does not compute in bf16-true",
        ),
        (["export", "LeNet5", "--to", "onnx,onnx"], "names a format twice"),
        (["export", "LeNet5", "--normalise"], "add --data NAME"),
        (["export", "nothing.ckpt"], "checkpoint 'nothing.ckpt' does not exist"),
        (["speed", "LeNet5", "--engine", "onxruntime"], "engine 'onxruntime'"),
        (["speed", "LeNet5", "--engine", "tensorrt"], "does not run on device cpu"),
        (["speed", "LeNet5", "--engine", "onnxruntime", "--precision", "bf16-true"], "choose 32-true, int8"),
        (["speed", "LeNet5", "--engine", "onnxruntime", "--limits"], "--limits is about torch"),
    ],
)
def test_bad_input_is_refused_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_export_writes_files_beside_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "LeNet5-normalised.onnx"
    old.write_text("old")
    words = ["export", "LeNet5", "--data", "Synthetic", "--normalise", "--images", "40"]
    assert main([*words, "--to", "onnx,torch-export", "--out", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    first, second = (line for line in err.splitlines() if "the weights in float32" in line)
    assert first.endswith("replaces an older file of this name")
    assert "replaces" not in second
    document = json.loads(out)
    assert [entry["replaced"] for entry in document["files"]] == [True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LeNet5-normalised.onnx", "LeNet5-normalised.pt2"]
    assert document["network"]["normalisation"] == "inside"
    for entry in document["files"]:
        assert [each["count"] for each in entry["differences"]] == [64, 40]
        assert all(each["relative"] < 1e-4 for each in entry["differences"])
    # Images with values from 0 to 1 go into the file, whose first operators then normalise them.
    stored = {entry.key: entry.value for entry in onnx.load(str(old)).metadata_props}
    assert json.loads(stored["cnnbench"])["mean"] == document["network"]["mean"]


def test_export_in_float16_is_compared_in_float16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "LeNet5", "--to", "onnx", "--precision", "16-true", "--out", str(tmp_path), "--json"]
    assert main(words) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert Path(entry["path"]).name == "LeNet5-16-true.onnx"
    graph = onnx.load(entry["path"]).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_network_for_other_images_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))\n"
    (tmp_path / "for_small_images.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["export", "for_small_images:net", "--image_size=32", "--out=out"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "'for_small_images:net' does not take images of 3x32x32: RuntimeError" in line


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package for that cannot be imported, and makes no folder at home, where it would number the user."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    export(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "openvino", tmp_path, (1, 2, 2))
    assert not list((tmp_path / "home").iterdir())
    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert sys.modules["openvino_telemetry"] is None


def test_export_that_differs_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "LeNet5.onnx"
    old.write_text("old")
    monkeypatch.setattr("cnnbench.commands.export_run.logits_of", lambda session, x: torch.zeros(len(x), 10))
    assert main(["export", "LeNet5", "--to", "onnx", "--out", str(tmp_path)]) == 2
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_cold_start_includes_the_loading_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_to_open(*arguments: Any) -> Any:
        time.sleep(0.2)
        return usual(*arguments)

    usual = onnx_runtime.open_session
    monkeypatch.setattr(onnx_runtime, "open_session", slow_to_open)
    cpu = torch.device("cpu")
    model = get_network("LeNet5", 3, 32, 10).build()
    file = tmp_path / "LeNet5.onnx"
    write_for_engine(model, (3, 32, 32), "LeNet5", "onnxruntime", "32-true", cpu, file)
    subject = Subject(lambda: model, (3, 32, 32), 10, way=Way("32-true", engine="onnxruntime"), file=file)
    found = measure_speed({"LeNet5": subject}, SpeedConfig(cpu, "32-true", 2, 1, rounds=1, warmup_s=0))["LeNet5"]
    assert found["cold_start_ms"] > 200
    assert all(ms > 200 for ms in found["cold_ms"].values())
    assert found["latency_ms_median"] < 200  # loading is not part of a call


def test_speed_times_each_engine_in_rows_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "speed.jsonl"
    words = ["speed", "LeNet5", "--engine", "torch,onnxruntime", "--rounds", "2", "--batch_size", "4"]
    assert main([*words, "--records", str(file)]) == 0
    torchs, ort = load_records([file])
    assert (torchs.config["engine"], ort.config["engine"]) == ("torch", "onnxruntime")
    assert torchs.config["settle_s"] == ort.config["settle_s"] == 0.3  # the same turns for all engines
    assert ort.config["precision"] == ort.config["inference_precision"] == "32-true"
    assert ort.environment["packages"]["onnxruntime"] == onnxruntime.__version__
    assert "onnxruntime" not in torchs.environment["packages"]
    assert ort.measures["engine_facts"]["latency"]["provider"] == "CPUExecutionProvider"
    for record in (torchs, ort):
        assert set(record.measures["samples_ms"]) == {"latency", "inference", "yardstick"}
        assert record.measures["latency_ms_median"] > 0
        assert "latency_ms_engine" not in record.measures  # neither has a clock of its own
        assert record.measures["file_bytes"] > 4 * 62_006  # LeCun et al. 1998, with ten logits and three channels


@pytest.mark.usefixtures("quick_processes")
def test_openvinos_own_clock_is_beside_ours(tmp_path: Path) -> None:
    file = tmp_path / "speed.jsonl"
    words = ["speed", "LeNet5", "--engine", "openvino", "--rounds", "2", "--batch_size", "256"]
    assert main([*words, "--records", str(file)]) == 0
    *_, row = load_records([file])
    for key in ("latency_ms", "inference_ms"):
        assert 0 < row.measures[f"{key}_engine"] < row.measures[f"{key}_p90"]


@pytest.mark.usefixtures("quick_processes")
def test_memory_of_inference_is_at_least_that_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dense layer is nearly all of the network; activations of one image are some kilobytes."""
    code = "from torch import nn\n\ndef wide():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4000))\n"
    (tmp_path / "heavy.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    weights = 4 * 3 * 32 * 32 * 4000
    options = ["--engine=torch,onnxruntime", "--rounds=1", "--batch_size=1", "--memory"]
    assert main(["speed", "heavy:wide", "--image_size=32", *options, "--records", str(tmp_path / "a.jsonl")]) == 0
    assert "Inference MiB" in capsys.readouterr().out
    for record in load_records([tmp_path / "a.jsonl"]):
        # An engine may keep the weights twice, as they are in the file and in its own order.
        assert 0.98 <= record.measures["inference_resident_bytes"] / weights < 2.5, record.model
        assert "resident_bytes" not in record.measures


@pytest.mark.usefixtures("quick_processes")
@pytest.mark.parametrize("engine", ["torch", "torch,onnxruntime"])
def test_memory_that_cannot_be_measured_costs_no_times(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> dict[str, int]:
        raise UserError("the peak cannot be reset")

    monkeypatch.setattr("cnnbench.timing.process_memory.in_process", refused)
    options = [f"--engine={engine}", "--rounds=1", "--batch_size=1", "--train_batch_size=2", "--memory"]
    assert main(["speed", "LeNet5", *options, "--records", str(tmp_path / "a.jsonl")]) == 0
    assert "memory is not known (LeNet5" in capsys.readouterr().out
    for record in load_records([tmp_path / "a.jsonl"]):
        assert record.measures["latency_ms_median"] > 0
        assert record.skipped["memory"] == "the peak cannot be reset"


@pytest.mark.usefixtures("quick_processes")
def test_nothing_is_trained_beside_an_engine_that_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--engine=torch,onnxruntime", "--precision=bf16-mixed", "--rounds=1", "--batch_size=1", "--device=cpu"]
    assert main(["speed", "LeNet5", *options, "--records", str(tmp_path / "a.jsonl")]) == 0
    assert "ONNX Runtime has no bf16-mixed" in capsys.readouterr().err
    (record,) = load_records([tmp_path / "a.jsonl"])
    assert set(record.measures["samples_ms"]) == {"latency", "inference", "yardstick"}


@pytest.mark.usefixtures("quick_processes")
def test_network_that_raises_costs_only_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
from torch import nn

class Raises(nn.Module):
    def forward(self, x):
        raise ValueError("not on a Monday")

def never_built():
    raise KeyError("no weights")

def works():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
"""
    (tmp_path / "mixed.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["mixed:Raises", "mixed:never_built", "mixed:works"]
    options = ["--image_size=8", "--engine=onnxruntime", "--rounds=1", "--batch_size=1"]
    assert main(["speed", *names, *options, "--records", str(tmp_path / "a.jsonl")]) == 1
    first, second, third = load_records([tmp_path / "a.jsonl"])
    assert first.reason.endswith("ValueError: not on a Monday")
    assert "no weights" in second.reason
    assert third.measures["latency_ms_median"] > 0


def test_version_is_that_of_the_package_that_has_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu is installed in place of onnxruntime, and has the module of the same name."""

    def version(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.23.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    assert ENGINES["onnxruntime"].version == "1.23.0 (onnxruntime-gpu)"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        _ = ENGINES["openvino"].version


@pytest.mark.parametrize("before", [None, "/before"])
def test_temporary_files_of_processes_are_in_a_folder_that_is_removed(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    if before is not None:
        monkeypatch.setenv("TMPDIR", before)
    command = [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"]
    folders: list[Path] = []

    def stopped() -> None:
        with scratch_folder() as folder:
            folders.append(folder)
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(folder)
            raise Stopped(2)

    with pytest.raises(Stopped):
        stopped()
    assert os.environ.get("TMPDIR") == before
    assert not folders[0].exists()
