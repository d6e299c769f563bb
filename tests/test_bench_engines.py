"""Rows of engines in `bench`: torch, NumPy and SciPy are the oracles. One run is shared by the tests that only read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import FULL_TRAINING, make_record
from scipy.stats import binomtest
from warm import warm_context

from cnnbench.benchmark import launchers
from cnnbench.benchmark.launchers import Job
from cnnbench.benchmark.plan import load_plan
from cnnbench.checkpoints import open_checkpoint
from cnnbench.cli import main
from cnnbench.data import get_data
from cnnbench.errors import UserError
from cnnbench.files import with_checksum, without_checksum, write_checked_json
from cnnbench.machine import cannot_compute_bf16
from cnnbench.models import get_model
from cnnbench.predictions import Predictions, write_predictions
from cnnbench.record import Record, load_records, write_record
from cnnbench.references import reference_of
from cnnbench.report.answer import answers
from cnnbench.report.choice import Images, candidates, timings
from cnnbench.report.conditions import QUANTITIES
from cnnbench.report.contenders import contenders, rivals_by_label
from cnnbench.report.findings import front_sentences
from cnnbench.report.pairs import Pairs
from cnnbench.report.pictures import Drawn
from cnnbench.report.trained import find_trained
from cnnbench.timing.speed import SpeedConfig

IMAGES = {"train_images": 60, "test_images": 150}
OPTIONS = [
    "--data=Synthetic", "--device=cpu", "--precision=bf16-mixed", "--epochs=1", "--speed_batch_size=4",
    "--batch_size=8", f"--data_options={json.dumps(IMAGES)}",
]  # fmt: skip
ENGINES = ["--engine=torch,onnxruntime,openvino", "--engine_precision=32-true,bf16-true"]
BRANCHES = """
from torch import nn
class branches(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.layer = nn.Linear(in_channels * 1024, num_classes)
    def forward(self, x):
        y = self.layer(x.flatten(1))
        return y if y.sum() > 0 else -y
"""
"""A network whose flow depends on values, which no engine can take."""
WAYS = ["torch, 32-true", "torch, bf16-true", "onnxruntime, 32-true", "openvino, 32-true"]
"""Engines and number formats of the run's rows."""
if not cannot_compute_bf16():
    WAYS.append("openvino, bf16-true")
WEIGHTS = 4 * 62_006  # bytes; LeCun et al. 1998, with ten logits and three channels


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time in few rounds, start processes from one that has imported everything, and draw nothing."""
    _quick(monkeypatch)


def _quick(patch: pytest.MonkeyPatch) -> None:
    context = warm_context(["cnnbench.engines.onnx_runtime", "cnnbench.engines.open_vino"])
    patch.setattr("cnnbench.timing.processes.multiprocessing.get_context", lambda _: context)
    patch.setattr("cnnbench.benchmark.run.SpeedConfig", partial(SpeedConfig, rounds=6, warmup_s=0.05))
    patch.setattr("cnnbench.report.outputs.draw_pictures", lambda records, folder: Drawn())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with two networks, one of which no engine can take."""
    folder = tmp_path_factory.mktemp("engines")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(str(folder))
        Path("networks_of_this_test.py").write_text(BRANCHES)
        _quick(patch)
        assert main(["bench", "--models=LeNet5,networks_of_this_test:branches", *OPTIONS, *ENGINES, "--out=run"]) == 1
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture(scope="module")
def records(finished: Path) -> dict[str, Record]:
    return {record.model: record for record in load_records([finished])}


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the run with LeNet5 alone, which a test may change and resume."""
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    for file in (run / "records").glob("networks_of_this_test*"):
        file.unlink()
    plan = without_checksum(json.loads((run / "plan.json").read_text()), "plan")
    (run / "plan.json").write_text(json.dumps(with_checksum({**plan, "models": ["LeNet5"]})))
    return run


def _bytes(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "records").iterdir()}


def test_each_engine_and_format_is_a_row_of_its_own(records: dict[str, Record]) -> None:
    assert set(records) == {
        *("LeNet5", "networks_of_this_test:branches"),
        *(f"{model} [{way}]" for model in ("LeNet5", "networks_of_this_test:branches") for way in WAYS),
    }
    own = records["LeNet5"]
    assert "engine" not in own.config
    assert (own.config["precision"], own.config["inference_precision"]) == ("bf16-mixed", "bf16-true")
    for way in WAYS:
        row, (engine, precision) = records[f"LeNet5 [{way}]"], way.split(", ")
        assert (row.network, row.config["engine"]) == ("LeNet5", engine)
        assert row.config["settle_s"] == 0.3
        assert row.status == "ok"
        assert row.config["precision"] == row.config["inference_precision"] == precision
        assert row.config["precision_reason"] == "as asked; trained by torch in bf16-mixed"
        assert set(row.measures["samples_ms"]) == {"latency", "inference", "yardstick"}
        assert row.measures["macs"] == own.measures["macs"]
        assert row.training == {**own.training, "curve": []}
        assert "train_images_per_s" not in row.measures
    assert own.training["curve"]
    ort = records["LeNet5 [onnxruntime, 32-true]"]
    assert ort.environment["packages"]["onnxruntime"] == onnxruntime.__version__
    assert "onnxruntime" not in own.environment["packages"]
    assert ort.measures["engine_facts"]["latency"]["batch_size"] == 1
    assert ort.measures["engine_facts"]["test"]["provider"] == "CPUExecutionProvider"


def test_files_are_as_large_as_the_weights_and_little_more(records: dict[str, Record]) -> None:
    for model, record in records.items():
        if model.startswith("LeNet5") and record.status == "ok":
            # torch's own file has the weights in 16 bits; OpenVINO casts those of its file when it loads it.
            weights = WEIGHTS // 2 if model == "LeNet5 [torch, bf16-true]" else WEIGHTS
            assert weights <= record.measures["file_bytes"] < weights + 100_000, model


@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        ("torch, 32-true", torch.float32),
        ("onnxruntime, 32-true", torch.float32),
        ("openvino, 32-true", torch.float32),
        ("torch, bf16-true", torch.bfloat16),
    ],
)
def test_accuracy_is_that_of_the_trained_weights_on_the_whole_test_set(
    finished: Path, records: dict[str, Record], way: str, dtype: torch.dtype
) -> None:
    record = records[f"LeNet5 [{way}]"]
    data = get_data("Synthetic")(data_dir=None, batch_size=8, **IMAGES)
    data.prepare_data()
    data.setup()
    model = get_model("LeNet5")(num_classes=10, in_channels=3, image_size=32)
    model.load_state_dict(open_checkpoint(finished / record.training["weights"])["state_dict"])
    model = model.eval().to(dtype)
    with torch.inference_mode():
        logits = torch.cat([model(images.to(dtype)) for images, _ in data.test_dataloader()]).float()
    true = torch.cat([labels for _, labels in data.test_dataloader()]).numpy()
    stored = np.load(finished / "predictions" / f"{record.key}.npz")
    assert stored["true"].tolist() == true.tolist()
    # bfloat16 has eight bits, so that two logits may be equal, or change places in another order of additions.
    assert (stored["predicted"] == logits.argmax(1).numpy()).mean() >= (1 if dtype == torch.float32 else 0.95)
    assert record.measures["test_accuracy"] == (stored["predicted"] == true).mean()
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (true, stored["predicted"]), 1)
    assert record.confusion_matrix == counts.tolist()
    expected = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(true).long()))
    assert record.measures["nll"] == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 2e-2)


def test_a_network_that_engines_cannot_take_is_a_row_with_the_reason(records: dict[str, Record]) -> None:
    for way in WAYS[2:]:
        row = records[f"networks_of_this_test:branches [{way}]"]
        assert row.status == "error"
        assert row.reason.startswith("torch.export cannot record 'networks_of_this_test:branches'")
        assert "timing failed: torch.export cannot record" in row.reason
    assert records["networks_of_this_test:branches"].status == "ok"
    assert records["networks_of_this_test:branches [torch, 32-true]"].status == "ok"


def test_only_the_networks_themselves_are_trainings(finished: Path, records: dict[str, Record]) -> None:
    assert [each.record.model for each in find_trained(finished)] == ["LeNet5", "networks_of_this_test:branches"]
    report = " ".join((finished / "report.md").read_text().split())
    assert "in 2 of 2 trainings" in report or "in 1 of 2 trainings" in report  # of the hardest class
    assert "more than one packages" not in report
    assert "differ in engine" in report


def test_rows_are_ranked_with_those_of_their_engine_and_format_alone(records: dict[str, Record]) -> None:
    for entries in rivals_by_label(contenders(list(records.values()))).values():
        ways = {(e.records[0].config.get("engine", "torch"), e.records[0].config["precision"]) for e in entries}
        assert len(ways) == 1
    ranked = _two_networks()
    sentences = [*answers(ranked), *front_sentences(ranked, "latency_ms_median")]
    # In torch A is the best network. In int8 B is, and it is the only one on the front.
    assert len(sentences) == 4
    assert sentences[0].startswith("Most accurate on MNIST (32-true, ")
    assert "torch): A, 90.0 %" in sentences[0]
    assert "onnxruntime): B [onnxruntime, int8], 80.0 %" in sentences[1]
    assert sentences[2].endswith("torch): B, A.")
    assert sentences[3].endswith("onnxruntime): B [onnxruntime, int8].")


def _two_networks() -> list[Record]:
    """Return full trainings of two networks, and their rows in int8, where the less accurate one is the better one."""
    found = []
    for network, right, latency in (("A", 9, 2.0), ("B", 8, 1.0)):
        found.append(_tested(network, network, right, latency))
        quantised = {"A": 3, "B": 8}[network]
        found.append(_tested(f"{network} [onnxruntime, int8]", network, quantised, latency / 4))
    return sorted(found, key=lambda record: record.config.get("engine", ""))


def _tested(model: str, network: str, right: int, latency: float) -> Record:
    base = make_record(model)
    config = dict(base.config) | {"precision": "32-true", "inference_precision": "32-true"}
    if model != network:
        config |= {"network": network, "engine": "onnxruntime", "precision": "int8", "inference_precision": "int8"}
    data = dict(base.data) | {"train_images": 100, "full_train_images": 100, "test_images": 10}
    measures = {"latency_ms_median": latency, "macs": 1000, "flops": 2000, "params": 10, "test_accuracy": right / 10}
    matrix = [[right, 10 - right, 0], [0, 0, 0], [0, 0, 0]]
    training = {**FULL_TRAINING, "weights": f"weights/{network}.ckpt", "weights_sha256": network.lower() * 64}
    return make_record(model, data=data, config=config, measures=measures, confusion_matrix=matrix, training=training)


def test_pick_takes_the_accuracy_of_the_row_whose_time_it_takes() -> None:
    found = _two_networks()
    here = Images("MNIST", channels=1, size=32, classes=3, usual_size=28)
    groups = timings(found, here, [QUANTITIES["latency"]])
    assert [group.newest.config.get("engine") for group in groups] == [None, "onnxruntime"]
    for group, accuracies, latencies in zip(groups, ((0.9, 0.8), (0.3, 0.8)), ((2.0, 1.0), (0.5, 0.25)), strict=True):
        entries = {entry.model: entry.values for entry in candidates(found, {}, here, group)}
        assert tuple(entries[name]["accuracy"].value for name in "AB") == accuracies
        assert tuple(entries[name]["latency"].value for name in "AB") == latencies
    # A reference accuracy of the network in floating point says nothing certain about int8.
    (own,) = [record for record in found if record.model == "A"]
    assert reference_of(own) is None


def test_quantised_network_is_compared_with_the_network_itself_by_mcnemars_test(tmp_path: Path) -> None:
    """Of 40 images, 12 are right with the network alone, and 3 with its row in int8 alone."""
    true = np.zeros(40, dtype=np.int64)
    own, row = true.copy(), true.copy()
    row[:12] = 1
    own[12:15] = 1
    for model, predicted in (("A", own), ("A [onnxruntime, int8]", row)):
        record = _tested(model, "A", 9, 1.0)
        right = int((predicted == 0).sum())
        changed = make_record(
            model,
            data=dict(record.data) | {"test_images": 40},
            config=record.config,
            measures={"test_accuracy": right / 40},
            confusion_matrix=[[right, 40 - right, 0], [0, 0, 0], [0, 0, 0]],
            training=record.training,
        )
        write_record(tmp_path / "records" / f"{changed.key}.json", changed)
        write_predictions(tmp_path / "predictions" / f"{changed.key}.npz", Predictions(true, predicted), 3)
    pairs = Pairs(load_records([tmp_path]))
    assert not pairs.verdicts  # the two are no rivals
    (verdict,) = pairs.engines
    assert (verdict.first.name, verdict.second.name) == ("A", "A [onnxruntime, int8]")
    assert (verdict.only_first, verdict.only_second) == (12, 3)
    assert verdict.p == pytest.approx(binomtest(3, 15).pvalue)
    assert "12 images are right with A only, 3 with A [onnxruntime, int8] only" in verdict.sentence
    (table,) = pairs.tables
    assert table.title == "The same training in engines"


@pytest.mark.usefixtures("quick")
def test_rows_that_an_interruption_left_out_are_made_from_the_weights_that_were_kept(copied: Path) -> None:
    before = _bytes(copied)
    gone = "LeNet5__onnxruntime__32-true_-Synthetic-seed0.json"
    (copied / "records" / gone).unlink()
    speed = (copied / "speed.json").read_bytes()
    assert [json.loads(speed)[name] for name in ("settle_s", "first_settle_s")] == [0.3, 0.7]
    assert main(["bench", "--resume", f"--out={copied}"]) == 0
    after = _bytes(copied)
    assert {name for name in after if after[name] != before[name]} <= {gone}
    assert (copied / "speed.json").read_bytes() == speed
    old, new = (json.loads(each[gone])["measures"] for each in (before, after))
    assert new == old  # times from speed.json, accuracy from the same weights


@pytest.mark.usefixtures("quick")
def test_times_of_other_turns_are_not_used(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in (copied / "records").iterdir():
        record.unlink()
    stored = json.loads((copied / "speed.json").read_bytes())
    old = {"figures": stored["figures"], "environment": stored["environment"]}
    write_checked_json(copied / "speed.json", old)
    assert main(["bench", "--resume", f"--out={copied}"]) == 0
    assert "timing all networks again, since the time before each turn" in capsys.readouterr().err
    assert json.loads((copied / "speed.json").read_bytes())["settle_s"] == 0.3


@pytest.mark.usefixtures("quick")
def test_rows_belong_to_the_weights_of_their_cell(copied: Path) -> None:
    (copied / "records" / "LeNet5-Synthetic-seed0.json").unlink()
    assert main(["bench", "--resume", f"--out={copied}"]) == 0
    hashes = {record.training["weights_sha256"] for record in load_records([copied])}
    assert len(hashes) == 1
    (copied / "records" / "LeNet5__onnxruntime__32-true_-Synthetic-seed0.json").unlink()
    (copied / "weights" / "LeNet5-Synthetic-seed0.ckpt").write_bytes(b"other weights")
    assert main(["bench", "--resume", f"--out={copied}"]) == 1
    failed = {record.model: record.reason for record in load_records([copied]) if record.status == "error"}
    words = "are gone or have changed; delete the record of LeNet5-Synthetic-seed0"
    assert words in failed["LeNet5 [onnxruntime, 32-true]"]


def test_another_version_of_an_engine_is_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = property(lambda engine: "0.1" if engine.name == "openvino" else "2")
    monkeypatch.setattr("cnnbench.engines.Engine.version", version)
    assert main(["bench", "--resume", f"--out={copied}"]) == 2
    assert "was measured with packages" in capsys.readouterr().err


class _Here:
    """Launcher that measures in this process."""

    def run(self, jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, Record | str]]:
        for job in jobs:
            yield job.key, job.measure()


@pytest.mark.usefixtures("quick")
def test_rows_are_made_after_the_cells_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "find_launcher", lambda name, options, device: _Here())
    options = ["--measures=quality", "--engine=onnxruntime", "--seeds=0,1"]
    assert main(["bench", "--models=LeNet5", *OPTIONS, *options, "--out=run"]) == 0
    found = {(record.model, record.seed): record for record in load_records([Path("run")])}
    assert len(found) == 4
    for seed in (0, 1):
        own, row = found["LeNet5", seed], found["LeNet5 [onnxruntime, 32-true]", seed]
        assert row.training["weights_sha256"] == own.training["weights_sha256"]
        assert "latency_ms_median" not in row.measures
        assert row.skipped["speed"] == "not asked for"


def test_a_dry_run_names_the_rows(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--models=LeNet5", *OPTIONS, *ENGINES, "--dry_run", "--out=run"]
    assert main([*words, "--json"]) == 0
    captured = capfd.readouterr()
    rows = json.loads(captured.out)["engine_rows"]
    assert rows[2] == "LeNet5__onnxruntime__32-true_-Synthetic-seed0"
    assert len(rows) == len(WAYS)
    assert "ONNX Runtime has no bf16-true on device cpu, so that row is left out" in captured.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine=onxruntime"], "unknown engine 'onxruntime'; did you mean 'onnxruntime'?"),
        (["--engine=tensorrt"], "engine 'tensorrt' does not run on device cpu"),
        (["--engine=openvino,openvino"], "engine openvino,openvino names something twice"),
        (["--engine=openvino", "--engine_precision=int9"], "unknown engine_precision 'int9'"),
        (["--engine_precision=bf16-true"], "--engine_precision is that of --engine"),
        (["--engine=openvino", "--measures=complexity"], "add speed or quality to the measures"),
    ],
)
def test_bad_engines_are_refused_before_anything_is_written(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--models=LeNet5", *OPTIONS, *options, "--out=run"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("run").exists()


def test_a_missing_extra_is_named_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cnnbench.engines._missing", list)
    assert main(["bench", "--models=LeNet5", *OPTIONS, "--engine=openvino", "--out=run"]) == 2
    assert "pip install 'cnnbench[openvino]'" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_plan_with_an_unknown_engine_is_refused(copied: Path) -> None:
    plan = without_checksum(json.loads((copied / "plan.json").read_text()), "plan")
    (copied / "plan.json").write_text(json.dumps(with_checksum({**plan, "engines": ["nothing"]})))
    with pytest.raises(UserError, match="cannot be resumed: unknown engine 'nothing'"):
        load_plan(copied)


def test_another_engine_is_another_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--resume", f"--out={copied}", "--engine=openvino"]) == 2
    assert "was started with engine ('torch', 'onnxruntime', 'openvino'), not" in capsys.readouterr().err


def test_compare_sets_each_row_beside_itself(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(finished), str(finished), "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    compared = {change["model"] for change in changes if change["figure"] == "latency_ms_median"}
    assert {"LeNet5", "LeNet5 [onnxruntime, 32-true]", "LeNet5 [openvino, 32-true]"} <= compared
    assert all(change["before"] == change["after"] for change in changes)
