"""Records, times, plans and YAML: what does not fit ends in a line with file, place and value."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_record

import cnnbench
from cnnbench.cli import main
from cnnbench.commands.bench import Options
from cnnbench.errors import UserError
from cnnbench.files import with_checksum, without_checksum
from cnnbench.options import parse
from cnnbench.record import load_records, parse_record
from cnnbench.schemas import check_record, check_speed

ALL = json.loads(json.dumps(asdict(make_record())))
SMALL = "--data_options={train_images: 40, test_images: 20}"
BENCH = ["bench", "--data=Synthetic", "--device=cpu", "--precision=32-true", "--batch_size=20", SMALL]
RESULTS = Path(cnnbench.__file__).parent.parent / "experiments" / "results"


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place of a document, the containers too."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, part in value.items():
            found += _places(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            found += _places(part, (*path, index))
    return found


def _set(document: Any, path: tuple, value: Any) -> Any:
    changed = copy.deepcopy(document)
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return changed


FREE = {"skipped", "data_options", "packages", "accelerator", "conditions", "limits", "sweep", "process_conditions"}


@pytest.mark.parametrize("path", _places(ALL), ids=lambda path: ".".join(map(str, path)))
def test_another_type_is_refused_at_every_place(path: tuple) -> None:
    place = ".".join(map(str, path))
    for value in ({"a": {"b": 1}}, [[["x"]]], 1e999, float("nan"), True if path[-1] not in _BOOLS else "yes"):
        if FREE & set(path) and not isinstance(value, float):
            continue
        with pytest.raises(UserError) as error:
            check_record(_set(ALL, path, value), "'f.json'")
        message = str(error.value)
        assert message.startswith("'f.json': "), place
        assert str(path[0]) in message, (place, message)
        assert len(message.splitlines()) == 1


_BOOLS = ("synthetic", "augment", "dirty", "converged", "diverged")


@pytest.mark.parametrize(
    "path", [p for p in _places(ALL) if isinstance(p[-1], str)], ids=lambda p: ".".join(map(str, p))
)
def test_a_missing_key_is_named_or_has_a_default(path: tuple) -> None:
    changed = copy.deepcopy(ALL)
    target = changed
    for key in path[:-1]:
        target = target[key]
    del target[path[-1]]
    try:
        check_record(changed, "'f.json'")
    except UserError as error:
        assert str(path[-1]) in str(error) or "confusion_matrix" in str(error), error  # noqa: PT017


CONTRADICTIONS: list[tuple[tuple, Any, str]] = [
    (("measures", "test_accuracy"), 0.8, "the confusion_matrix has 9 of 10 right"),
    (("measures", "test_accuracy"), 17, "test_accuracy is 17: input should be less than or equal to 1"),
    (("measures", "test_accuracy"), -0.1, "greater than or equal to 0"),
    (("measures", "test_accuracy_low"), 0.95, "should not fall"),
    (("measures", "flops"), 833041, "it should be twice the macs, 416520"),
    (("measures", "latency_ms_median"), -0.25, "greater than 0"),
    (("measures", "latency_ms_median"), 0.26, "the median of its samples is 0.25"),
    (("measures", "samples_ms"), {"latency": []}, "samples_ms.latency is empty"),
    (("measures", "process_rounds"), [12, 0], "process_rounds.1 is 0: input should be greater than or equal to 1"),
    (("confusion_matrix",), [[9]], "1 rows of 1 numbers; 3 classes need 3 rows of 3"),
    (("confusion_matrix",), [[4, 0, 0], [1, 2, 0]], "3 classes need 3 rows"),
    (("confusion_matrix",), [[4, 0, 0], [1, 2], [0, 0, 3]], "3 classes need 3 rows"),
    (("confusion_matrix",), [[5, 0, 0], [1, 2, 0], [0, 0, 3]], "counts 11 of 10 test images"),
    (("confusion_matrix",), [[4, 0, 0], [1, 2, 0], [0, 0, -3]], "greater than or equal to 0"),
    (("confusion_matrix",), None, "without a confusion_matrix"),
    (("data", "class_names"), ["a", "b"], "data.num_classes is 3, but data.class_names has 2"),
    (("training", "images"), 641, "not 20 steps of 32 images"),
    (("training", "epochs"), 7.0, "training.epochs is 7.0"),
    (("status",), "error", "errors have a reason"),
    (("reason",), "it failed", "errors have a reason"),
    (("created",), "yesterday", "a date and time"),
    (("seed",), -1, "greater than or equal to 0"),
    (("seed",), 2**32, "less than 4294967296"),
    (("colour",), "red", "unknown key 'colour'"),
    (("measures", "colour"), 1, "measures.colour is not a key"),
    (("training",), {"seconds": 1.0}, "training."),
    (("config", "batch_size"), 0, "greater than or equal to 1"),
    (("model",), "", "at least 1 character"),
    (("model",), "\ud800", "unicode"),
]


@pytest.mark.parametrize(("path", "value", "message"), CONTRADICTIONS)
def test_what_cannot_be_true_together_is_refused(path: tuple, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"^'f\.json': ") as error:
        check_record(_set(ALL, path, value), "'f.json'")
    assert message in str(error.value)


@pytest.mark.parametrize("document", [[], 3, None, "x", {}, {"model": "x"}, {"schema": 1, "model": "x", "data": {}}])
def test_other_documents_are_no_records(document: Any) -> None:
    with pytest.raises(UserError, match=r"^'f\.json'"):
        parse_record(document, "'f.json'")
    with pytest.raises(UserError, match="schema 2; this version reads 1"):
        parse_record({**ALL, "schema": 2})


def test_every_committed_record_is_one() -> None:
    files = sorted(RESULTS.rglob("*.jsonl"))
    assert sum(len(load_records([file])) for file in files) >= 120


def test_records_say_where_they_were_changed(tmp_path: Path) -> None:
    value = with_checksum(ALL)
    lines = [json.dumps(value), "", json.dumps({**value, "seed": 5})]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"r\.jsonl', line 3 is not as it was written"):
        load_records([tmp_path / "r.jsonl"])
    (tmp_path / "r.jsonl").write_text(json.dumps({**ALL, "seed": 5}))  # without a checksum, as before 2026-11-28
    assert load_records([tmp_path / "r.jsonl"])[0].seed == 5


@pytest.fixture
def run() -> Path:
    """A run folder with a record of each of two networks."""
    assert main([*BENCH, "--models=LeNet5,SimpleCNN", "--measures=complexity", "--epochs=1", "--out=run"]) == 0
    return Path("run")


def _edit(path: Path, change: Callable[[dict], Any]) -> None:
    """Changes a file as somebody would who knows its checksum."""
    value = without_checksum(json.loads(path.read_text()), "")
    value = change(value) or value
    path.write_text(json.dumps(with_checksum(value)))


PLANS: list[tuple[Callable[[dict], Any], str]] = [
    (lambda plan: plan.update(batch_size=10), "measured with config.batch_size 20, but now it is 10"),
    (lambda plan: plan.update(epochs=2), "measured with config.epochs 1, but now it is 2"),
    (lambda plan: plan.update(learning_rate=0.1), "measured with config.learning_rate None"),
    (lambda plan: plan.update(data_options={"train_images": 50, "test_images": 20}), "with config.data_options"),
    (
        lambda plan: plan.update(data_options={"train_images": 40, "test_images": 20, "split_seed": 3}),
        "measured with config.data_options",
    ),
    (lambda plan: plan.update(speed_batch_size=7), "config.speed_batch_size 128"),
    (
        lambda plan: plan.update(models=["LeNet5"]),
        "is the record of SimpleCNN-Synthetic-seed0, which is not of this run",
    ),
    (lambda plan: plan.update(models=[]), "models is empty"),
    (lambda plan: plan.update(models="LeNet5"), "models"),
    (lambda plan: plan.update(device=True), "device"),
    (lambda plan: plan.update(data_dir=7), "data_dir"),
    (lambda plan: plan.update(epochs=True), "epochs"),
    (lambda plan: plan.update(epochs="1"), "epochs"),
    (lambda plan: plan.update(seeds=[-1]), "seed -1"),
    (lambda plan: plan.update(colour="red"), "colour"),
    (lambda plan: plan.pop("measures") and None, "measures"),
    (lambda plan: plan.update(batch_size=10**30), "batch_size"),
    (lambda plan: plan.update(processes=10**9), "processes"),
    (lambda plan: plan.update(precision="9-true"), "precision"),
    (lambda plan: plan.update(device="tpu"), "device"),
    (lambda plan: plan.update(data=["Nothing"]), "data set"),
    (lambda plan: plan.update(models=["Nothing"]), "model"),
    (lambda _: {"a": 1}, "plan"),
]


def test_a_plan_that_was_changed_is_refused(run: Path, capsys: pytest.CaptureFixture) -> None:
    original = (run / "plan.json").read_text()
    records = {path: path.read_text() for path in run.glob("records/*")}
    for change, message in PLANS:
        (run / "plan.json").write_text(original)
        _edit(run / "plan.json", change)
        capsys.readouterr()
        assert main(["bench", "--resume", "--out=run"]) == 2, message
        captured = capsys.readouterr()
        assert message in captured.err.splitlines()[-1]
        assert captured.out == ""
        assert {path: path.read_text() for path in run.glob("records/*")} == records
    (run / "plan.json").write_text(original.replace('"epochs": 1', '"epochs": 2'))
    assert main(["bench", "--resume", "--out=run"]) == 2
    assert "is not as it was written" in capsys.readouterr().err
    (run / "plan.json").write_text(original)
    assert main(["bench", "--resume", "--out=run"]) == 0


def test_resume_does_not_mix_data(run: Path, capsys: pytest.CaptureFixture) -> None:
    record = run / "records" / "LeNet5-Synthetic-seed0.json"
    _edit(record, lambda value: value["data"].update(fingerprint="0123456789abcdef"))
    assert main(["bench", "--resume", "--out=run"]) == 2
    assert "measured with data.fingerprint 0123456789abcdef, but now it is" in capsys.readouterr().err
    _edit(record, lambda value: value.update(model="Other"))
    assert main(["bench", "--resume", "--out=run"]) == 2
    assert "is the record of Other-Synthetic-seed0, which is not of this run" in capsys.readouterr().err


def test_a_second_run_does_not_write_its_plan_over_another(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    """Two commands look for a plan before either has the lock; the slower one finds the finished run of the other."""
    from cnnbench.benchmark import plan as plans
    from cnnbench.benchmark.display import LiveDisplay
    from cnnbench.benchmark.run import run as run_plan

    stored = plans.load_plan(run)
    text = (run / "plan.json").read_text()
    other = type(stored)(**{**vars(stored), "seeds": (1,)})
    with pytest.raises(UserError, match=r"not of this run|holds another run"), LiveDisplay() as display:
        run_plan(other, run, display)
    assert (run / "plan.json").read_text() == text


SPEEDS: list[Callable[[dict], Any]] = [
    lambda speed: speed.update(figures={}),
    lambda speed: speed.pop("figures") and None,
    lambda speed: speed.pop("environment") and None,
    lambda speed: speed["figures"]["LeNet5 on Synthetic"].update(latency_ms_median=0.0),
    lambda speed: speed["figures"]["LeNet5 on Synthetic"].update(latency_ms_median=100.0),
    lambda speed: speed["figures"]["LeNet5 on Synthetic"].update(latency_ms_median="1"),
    lambda speed: speed["figures"]["LeNet5 on Synthetic"].update(samples_ms=3),
    lambda speed: speed["environment"].update(threads=[]),
    lambda speed: speed.update(figures=[]),
    lambda _: {"a": 1},
]


@pytest.mark.usefixtures("without_pictures", "few_rounds")
def test_damaged_times_are_taken_again_with_a_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*BENCH, "--models=LeNet5", "--measures=complexity,speed", "--epochs=1", "--out=run"]) == 0
    path, record = Path("run/speed.json"), next(Path("run/records").glob("*"))
    original = path.read_text()
    check_speed(without_checksum(json.loads(original), ""), "speed.json")
    damages: list[str | None] = [None, "", "{", "[]", "null", original[: len(original) // 2]]
    damages += [original.replace('"latency_ms_median": ', '"latency_ms_median": 9', 1)]
    timed = []

    def times(subjects: dict, *_: Any) -> dict:
        timed.append(list(subjects))
        return json.loads(original)["figures"]

    monkeypatch.setattr("cnnbench.benchmark.run.measure_speed", times)
    for damage in [*damages, *SPEEDS]:
        record.unlink(missing_ok=True)
        path.write_text(original)
        if isinstance(damage, str):
            path.write_text(damage)
        elif damage is not None:
            _edit(path, damage)
        timed.clear()
        capsys.readouterr()
        assert main(["bench", "--resume", "--out=run"]) == 0
        said = "timing all networks again" in capsys.readouterr().err
        assert (said, len(timed)) == ((False, 0) if damage is None else (True, 1)), damage
        assert load_records([Path("run")])[0].measures["latency_ms_median"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modles": "LeNet5"}, "unknown key 'modles'; did you mean 'models'?"),
        ({"epochs": True}, "epochs 'True' is not a whole number"),
        ({"epochs": 1.5}, "epochs '1.5' is not a whole number"),
        ({"epochs": "many"}, "epochs 'many' is not a whole number"),
        ({"models": [["LeNet5"]]}, "models"),
        ({"models": {"a": 1}}, "models {'a': 1} is not a name"),
        ({"models": [1]}, "models"),
        ({"learning_rate": float("nan")}, "learning_rate 'nan' is not a number"),
        ({"learning_rate": float("inf")}, "learning_rate 'inf' is not a number"),
        ({"resume": "yes"}, "resume 'yes' is not true or false"),
        ({"wandb": "maybe"}, "unknown wandb 'maybe'"),
        ({"data_options": [1]}, "data_options '[1]' is not a table"),
        ({"seeds": [0, "a"]}, "seeds"),
        ({1: 2}, "1"),
    ],
)
def test_options_of_a_bench_file_are_typed(values: dict, message: str) -> None:
    Path("x.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"^config 'x\.yaml': ") as error:
        parse(Options, ["--config=x.yaml"], "cnnbench bench")
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n", "---\n", "[]\n", "LeNet5\n", "- models: LeNet5\n"])
def test_a_bench_file_without_options_does_not_start_the_default(text: str, capsys: pytest.CaptureFixture) -> None:
    Path("x.yaml").write_text(text)
    assert main(["bench", "--config=x.yaml"]) == 2
    assert "config 'x.yaml' is" in capsys.readouterr().err
    assert not Path("results").exists()
