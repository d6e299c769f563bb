"""Networks in int8: the engines' own graphs, statsmodels, and the files of a planted data set are the oracles."""

from __future__ import annotations

import importlib.util
import json
import struct
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from conftest import onnx_options
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint
from torch import nn

from cnnbench.cli import main
from cnnbench.commands import export_run
from cnnbench.commands.speed import Options
from cnnbench.commands.speed_ways import ways_of
from cnnbench.data.module import ImageDataModule
from cnnbench.data.sets import Synthetic
from cnnbench.engines import ENGINES, FORMATS, find_quantiser
from cnnbench.engines.accuracy import Paired, right_answers
from cnnbench.engines.export import bytes_on_disk, calibration_noise, write_for_engine
from cnnbench.engines.sessions import Session, logits_of, open_session
from cnnbench.errors import UserError
from cnnbench.machine import may_saturate
from cnnbench.network import get_network
from cnnbench.record import load_records

CPU = torch.device("cpu")
QUICK = ("onnxruntime", "openvino")
"""Engines whose files are made in a few seconds; AOTInductor compiles."""


@pytest.fixture(scope="module")
def data() -> ImageDataModule:
    found = Synthetic(train_images=1200, test_images=400, batch_size=50)
    found.setup()
    return found


@pytest.fixture(scope="module")
def trained(data: ImageDataModule) -> nn.Module:
    """LeNet5 after a short training, which is enough for these drawn images."""
    torch.manual_seed(0)
    network = get_network("LeNet5", 3, 32, 10).build().train()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for images, labels in 3 * list(data.first_training_batches(1000)):
        for x, y in zip(images.split(50), labels.split(50), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
    return network.eval()


def quantised(engine: str, network: nn.Module, data: ImageDataModule, folder: Path) -> Path:
    path = folder / f"int8{FORMATS[ENGINES[engine].format].suffix}"
    images = torch.cat([batch for batch, _ in data.first_training_batches(130)])
    facts = write_for_engine(network, (3, 32, 32), "LeNet5", engine, "int8", CPU, path, images, "training images")
    assert facts["calibration_images"] == 130
    return path


@pytest.fixture(scope="module")
def files(trained: nn.Module, data: ImageDataModule, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("int8")
    return {engine: quantised(engine, trained, data, folder) for engine in QUICK}


@pytest.fixture(scope="module")
def sessions(files: dict[str, Path]) -> dict[str, Session]:
    return {engine: open_session(engine, path, "int8", CPU, threads=1) for engine, path in files.items()}


@pytest.mark.parametrize("engine", QUICK)
def test_accuracy_in_int8_is_within_points_of_float32(
    sessions: dict[str, Session], trained: nn.Module, data: ImageDataModule, engine: str
) -> None:
    with torch.inference_mode():
        of_float = right_answers(trained, data.test_dataloader()).mean()
    assert of_float > 0.8
    found = right_answers(lambda x: logits_of(sessions[engine], x), data.test_dataloader()).mean()
    assert abs(found - of_float) <= 0.03


@pytest.mark.parametrize("engine", QUICK)
def test_logits_in_int8_are_those_of_each_image_in_batches_of_any_size(
    sessions: dict[str, Session], trained: nn.Module, data: ImageDataModule, engine: str
) -> None:
    x = next(iter(data.test_dataloader()))[0][:5]
    together = logits_of(sessions[engine], x)
    alone = torch.cat([logits_of(sessions[engine], image[None]) for image in x])
    torch.testing.assert_close(together, alone)
    with torch.inference_mode():
        expected = trained(x)
    # An int8 step is 1/256 of a range; errors of some layers add up. Equal values would mean that nothing is quantised.
    assert 0.0005 < (together - expected).abs().max() / expected.abs().max() < 0.2


def test_quantising_onnx_runs_no_module_of_the_working_folder(trained: nn.Module, data: ImageDataModule) -> None:
    for name in ("onnx", "numpy", "onnxruntime"):
        Path(f"{name}.py").write_text("from pathlib import Path\n\nPath('ran').touch()\n")
    found = Path("found").resolve()
    found.mkdir()
    assert quantised("onnxruntime", trained, data, found).exists()
    assert not list(Path().rglob("ran"))


def test_onnx_runtime_computes_every_layer_in_integers(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(str(files["onnxruntime"]))
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["QuantizeLinear"] >= 5
    types = {each.name: each.data_type for each in model.graph.initializer}
    dequantised = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 5  # three convolutions and two dense layers, LeCun et al. 1998
    for node in layers:
        assert types[dequantised[node.input[1]]] == onnx.TensorProto.INT8, node.name
    # What ONNX Runtime makes of the file on this machine.
    options = onnx_options()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(files["onnxruntime"], options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert (kinds["QLinearConv"], kinds["QGemm"]) == (3, 2)
    assert not {"Conv", "FusedConv", "Gemm"} & set(kinds)


def test_openvino_computes_every_layer_in_integers(files: dict[str, Path]) -> None:
    compiled = openvino.Core().compile_model(files["openvino"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    used = []
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in ("Convolution", "FullyConnected"):
            used.append(info["runtimePrecision"].astype(str))
    assert len(used) == 5
    assert set(used) <= {"i8", "u8"}


@pytest.mark.parametrize("engine", QUICK)
def test_file_in_int8_is_about_a_quarter(files: dict[str, Path], trained: nn.Module, engine: str) -> None:
    weights = sum(p.numel() for p in trained.parameters())
    # One byte per weight; the graph itself takes some tens of kB.
    assert weights < bytes_on_disk(files[engine]) < 1.1 * weights + 40_000


def test_files_say_how_they_were_quantised(files: dict[str, Path]) -> None:
    (entry,) = onnx.load(str(files["onnxruntime"])).metadata_props
    facts = json.loads(entry.value)
    assert facts["quantisation"]["version"] == onnxruntime.__version__
    model = openvino.Core().read_model(files["openvino"])
    of_openvino = json.loads(model.get_rt_info("cnnbench").astype(str))
    for each in (facts, of_openvino):
        assert each["quantisation"]["calibrated_on"] == "training images"
        assert each["quantisation"]["calibration_images"] == 130


@pytest.mark.slow
def test_aot_inductor_computes_every_layer_in_integers(
    trained: nn.Module, data: ImageDataModule, tmp_path: Path
) -> None:
    path = quantised("aot-inductor", trained, data, tmp_path)
    with zipfile.ZipFile(path) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("wrapper.cpp")]
        code = archive.read(name).decode()
    assert "qconv_pointwise" in code
    assert "qlinear_pointwise" in code
    assert "aoti_torch_cpu_convolution" not in code
    session = open_session("aot-inductor", path, "int8", CPU)
    with torch.inference_mode():
        of_float = right_answers(trained, data.test_dataloader()).mean()
    found = right_answers(lambda x: logits_of(session, x), data.test_dataloader()).mean()
    assert abs(found - of_float) <= 0.03
    for count in (1, 7):
        assert logits_of(session, torch.randn(count, 3, 32, 32)).shape == (count, 10)


@pytest.mark.slow
def test_compiled_network_that_computes_something_else_is_refused(
    trained: nn.Module, data: ImageDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbench.engines.aot_int8.AotSession.run", lambda self, images: torch.ones(len(images), 10))
    with pytest.raises(UserError, match="AOTInductor computes something else than the quantised network"):
        quantised("aot-inductor", trained, data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_aot_inductor_is_right_or_refused(channels: int, tmp_path: Path) -> None:
    """The compiler of torch 2.14 computes a quantised convolution of one channel wrong."""
    torch.manual_seed(0)
    network = get_network("LeNet5", channels, 32, 10)
    model, noise = network.build().eval(), calibration_noise(network.image_shape, 0)
    path = tmp_path / "int8.pt2"
    try:
        write_for_engine(model, network.image_shape, "LeNet5", "aot-inductor", "int8", CPU, path, noise)
    except UserError as error:
        if channels != 1 or "computes something else" not in str(error):
            raise
        return
    with torch.inference_mode():
        expected = model(noise)
    found = logits_of(open_session("aot-inductor", path, "int8", CPU), noise)
    assert (found - expected).norm() < 0.2 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("name", ["SpeedNet", "MobileNetV2", "EfficientNetB0", "DenseNet121", "GoogLeNet", "VGG11"])
def test_networks_of_each_kind_can_be_quantised(name: str, engine: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = get_network(name, 3, 32, 10)
    path = tmp_path / f"int8{FORMATS[ENGINES[engine].format].suffix}"
    noise = calibration_noise(network.image_shape, 0)
    write_for_engine(network.build(), network.image_shape, name, engine, "int8", CPU, path, noise)
    assert logits_of(open_session(engine, path, "int8", CPU), noise[:3]).isfinite().all()


def _paired(only_file: int, only_network: int, both: int, neither: int) -> Paired:
    file = [True] * only_file + [False] * only_network + [True] * both + [False] * neither
    network = [False] * only_file + [True] * only_network + [True] * both + [False] * neither
    return Paired("int8 in ONNX", "all test images", np.array(file), np.array(network))


@pytest.mark.parametrize("counts", [(3, 9, 80, 8), (0, 1, 50, 9), (40, 71, 800, 89), (0, 0, 90, 10)])
def test_mcnemar_and_intervals_are_those_of_statsmodels(counts: tuple[int, int, int, int]) -> None:
    only_file, only_network, both, neither = counts
    paired = _paired(*counts)
    images = sum(counts)
    document = paired.document()
    assert (document["only_file_right"], document["only_network_right"]) == (only_file, only_network)
    exact = only_file + only_network < 25
    expected = mcnemar([[both, only_network], [only_file, neither]], exact=exact, correction=True)
    assert document["p"] == pytest.approx(expected.pvalue)
    assert document["differ"] == (expected.pvalue <= 0.05)
    for key, right in (("file", both + only_file), ("network", both + only_network)):
        low, high = proportion_confint(right, images, method="wilson")
        assert document[key]["accuracy"] == right / images
        assert (document[key]["low"], document[key]["high"]) == pytest.approx((low, high))


def test_sentences_say_what_the_test_shows() -> None:
    accuracy, verdict = _paired(40, 71, 800, 89).sentences
    assert accuracy.startswith("Accuracy on all test images: 84.00 % (95 % interval 81.60 to 86.14) in int8 in ONNX, ")
    assert verdict.startswith("The two differ: -3.10 points")
    assert verdict.endswith("right in int8 in ONNX only: 40 images, in float32 only: 71 images.")
    assert _paired(0, 1, 50, 9).sentences[1].startswith("The two are not shown to differ: ")
    assert _paired(0, 1, 50, 9).sentences[1].endswith("only: 0 images, in float32 only: 1 image.")
    assert "exactly the same images" in _paired(0, 0, 50, 9).sentences[1]


def test_logits_that_are_not_finite_have_no_accuracy() -> None:
    batches = [(torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(UserError, match="not finite"):
        right_answers(lambda x: torch.full((2, 3), torch.nan), batches)
    with pytest.raises(UserError, match="no test images"):
        right_answers(lambda x: x, [])


def _write_mnist(folder: Path) -> None:
    """Write MNIST's files with 200 training images and 40 test images; every pixel of image i has the value i."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, values in (("train", np.arange(200)), ("t10k", np.full(40, 255))):
        images = np.repeat(values.astype(np.uint8), 28 * 28)
        labels = (np.arange(len(values)) % 10).astype(np.uint8)
        header = [struct.pack(">4i", 2051, len(values), 28, 28), struct.pack(">2i", 2049, len(values))]
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header[0] + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header[1] + labels.tobytes())


class _Guarded(dict):
    """The splits of a data set: test images may be used once `open` is true, and validation images never."""

    open = False

    def __getitem__(self, name: str) -> Any:
        assert name != "val"
        assert name != "test" or self.open, "test images were used before the test"
        return super().__getitem__(name)


def test_int8_is_calibrated_on_training_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_mnist(tmp_path / "data")
    setup, write = ImageDataModule.setup, export_run.write_quantised
    guards, used = [], []

    def guarded(self: ImageDataModule, stage: str | None = None) -> None:
        setup(self, stage)
        self._splits = _Guarded(self._splits)
        guards.append(self._splits)

    def watched(*arguments: Any) -> dict[str, Any]:
        used.append(arguments[5])
        facts = write(*arguments)
        guards[-1].open = True
        return facts

    monkeypatch.setattr(ImageDataModule, "setup", guarded)
    monkeypatch.setattr(export_run, "write_quantised", watched)
    words = ["export", "LeNet5", "--weights", "reference", "--data", "MNIST", "--data_dir", "data", "--normalise"]
    int8 = ["--precision", "int8", "--calibration_images", "50", "--to", "openvino"]
    assert main([*words, *int8, "--out", "out", "--images", "60", "--json"]) == 0
    # The reference training had no validation split, so the training split is the whole permutation with seed 0.
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    # The normalisation is inside, so the file takes values from 0 to 1. LeNet5 gets 28 pixels in a border of black.
    values = (255 * used[0]).round().int()
    assert values.shape == (50, 1, 32, 32)
    assert values[:, 0, 16, 16].tolist() == order[:50].tolist()
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    (entry,) = document["files"]
    assert entry["quantisation"]["calibrated_on"].startswith("the first 50 images of the training split of MNIST")
    assert entry["test"]["file"]["images"] == entry["test"]["network"]["images"] == 40
    model = openvino.Core().read_model("out/LeNet5-MNIST-int8-normalised.xml")
    stored = json.loads(model.get_rt_info("cnnbench").astype(str))
    assert stored["quantisation"] == entry["quantisation"]
    assert stored["precision"] == "int8"
    for sentence in entry["test"]["sentences"]:
        assert sentence in captured.err


def test_float_file_can_be_tested_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_mnist(tmp_path / "data")
    words = ["export", "LeNet5", "--weights", "reference", "--data", "MNIST", "--data_dir", "data", "--images", "60"]
    assert main([*words, "--to", "torch-export", "--test", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert entry["test"]["file"] == entry["test"]["network"]
    assert "32-true in torch.export" in entry["test"]["sentences"][0]
    assert "quantisation" not in entry


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["LeNet5", "--precision", "int8"], "int8 is for trained networks; add --weights reference"),
        (["LeNet5", "--test"], "--test is for trained networks; add --weights reference"),
        (["LeNet5", "--calibration_images", "9"], "--calibration_images is about int8; add --precision int8"),
        (["LeNet5", "--to", "torch-export", "--precision", "int8"], "torch.export has no int8 here; choose onnx"),
    ],
)
def test_what_int8_needs_is_said_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("format_name", "command"),
    [
        ("openvino", r"needs nncf; install with: pip install 'cnnbench\[openvino\]'"),
        ("aot-inductor", r"needs torchao; install with: pip install 'cnnbench\[engines\]'"),
    ],
)
def test_missing_tool_is_named_with_its_command(
    format_name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbench.engines._missing", lambda modules: list(modules))
    with pytest.raises(UserError, match=command):
        find_quantiser(format_name)


def test_extras_of_the_tools_exist(pytestconfig: pytest.Config) -> None:
    text = (pytestconfig.rootpath / "pyproject.toml").read_text()
    for each in FORMATS.values():
        assert each.quantiser is None or f"\n{each.quantiser.extra} = [" in text


def test_speed_in_int8_says_that_it_was_calibrated_on_noise(
    quick_processes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["speed", "LeNet5", "--engine", "torch,openvino", "--precision", "int8", "--rounds", "2"]
    assert main([*words, "--batch_size", "4", "--records", "speed.jsonl"]) == 0
    captured = capsys.readouterr()
    assert "torch has no int8 on device cpu, so that row is left out" in captured.err
    assert "calibrated on noise: for speed only" in " ".join(captured.out.split())
    (record,) = load_records([Path("speed.jsonl")])
    assert (record.config["engine"], record.config["precision"]) == ("openvino", "int8")
    assert record.measures["engine_facts"]["latency"]["quantisation"]["calibrated_on"] == "noise: for speed only"
    assert not any("accuracy" in key for key in record.measures)
    assert record.measures["file_bytes"] < 2 * 62_006  # one byte per weight, LeCun et al. 1998, and the graph


def test_torch_itself_has_no_int8(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "LeNet5", "--precision", "int8"]) == 2
    assert "precision 'int8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "avx2 avx512f", True),
        ("x86_64", "avx2 avx512_vnni amx_int8", False),
        ("AMD64", "avx2 avx_vnni", False),
        ("aarch64", "asimd", False),
    ],
)
def test_processors_without_vnni_get_seven_bits(
    machine: str, flags: str, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"model name : X\nflags : {flags}\n")
    monkeypatch.setattr("cnnbench.machine.CPU_INFO", file)
    monkeypatch.setattr("cnnbench.machine.platform.machine", lambda: machine)
    assert may_saturate() is saturates


def test_all_number_formats_include_int8_where_its_tool_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = Options(models=("LeNet5",), engine="torch,onnxruntime,openvino", precision="all", device="cpu")

    def rows_of(options: Options) -> set[tuple[str, str]]:
        return {(way.engine, way.precision) for way in ways_of(options)[1] if way is not None}

    rows = rows_of(options)
    assert {("onnxruntime", "int8"), ("openvino", "int8"), ("torch", "32-true"), ("openvino", "32-true")} <= rows
    assert ("torch", "int8") not in rows
    assert ("onnxruntime", "bf16-true") not in rows
    capsys.readouterr()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else found(name))
    assert rows_of(options) == rows - {("openvino", "int8")}
    assert "nncf" in capsys.readouterr().err
    with pytest.raises(UserError, match="nncf"):
        ways_of(replace(options, precision="int8"))
