from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FULL_TRAINING, make_record

from cnnbench import hardware, machine
from cnnbench.catalog import load_catalog
from cnnbench.cli import main
from cnnbench.commands import pick, pick_measure
from cnnbench.commands.named_networks import find_networks
from cnnbench.commands.speed import Options as SpeedOptions
from cnnbench.commands.speed_run import time_networks, without_times
from cnnbench.errors import UserError
from cnnbench.record import Record, load_records, write_lines
from cnnbench.report.choice import Candidate, Value, candidates, choose, is_label_of, settings_of, timings
from cnnbench.report.conditions import QUANTITIES, Condition
from cnnbench.report.contenders import values_of
from cnnbench.units import COUNTS, MILLISECONDS, parse_amount, parse_percent

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "experiments" / "results" / "2026-11-23-cpu-zoo.jsonl"
HERE = "Test CPU"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cnnbench.commands.pick", "cnnbench.report.choice_words"):
        monkeypatch.setattr(f"{module}.cpu_name", lambda: HERE)
    monkeypatch.setattr("cnnbench.commands.pick.gpu_names", list)


def timed(model: str, ms: float, device: str = HERE, precision: str = "32-true", **changes: Any) -> Record:
    """Return a record with a latency on images of MNIST, without a training."""
    measures = {"latency_ms_median": ms, "params": 1000, "macs": 5000}
    record = make_record(model, measures=measures, training={}, confusion_matrix=None, **changes)
    record.config["inference_precision"] = precision
    record.environment["device"] = device
    return record


def trained(model: str, right: int, **training: Any) -> Record:
    """Return a record of a training on MNIST whose test has so many of ten images right."""
    matrix = [[right, 10 - right, 0], [0, 0, 0], [0, 0, 0]]
    return make_record(model, confusion_matrix=matrix, training={**FULL_TRAINING, **training})


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["pick", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def model_names(document: dict[str, Any], status: str) -> list[str]:
    return [entry["model"] for entry in document["networks"] if entry["status"] == status]


@pytest.mark.parametrize(
    ("text", "units", "expected"),
    [
        ("5ms", MILLISECONDS, 5),
        ("0.5 s", MILLISECONDS, 500),
        ("300us", MILLISECONDS, 0.3),
        ("300 µs", MILLISECONDS, 0.3),
        ("5M", COUNTS, 5_000_000),
        ("11.2m", COUNTS, 11_200_000),
        ("61706", COUNTS, 61_706),
        ("1.5G", COUNTS, 1_500_000_000),
        ("2K", COUNTS, 2000),
    ],
)
def test_amounts_are_read_with_their_units(text: str, units: dict[str, float], expected: float) -> None:
    assert parse_amount(text, "x", units, "5") == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["", "5", "ms", "-5ms", "0ms", "5 minutes", "5mss", "nan", "1e3ms", "9" * 400 + "s", "5,5ms", "\u0665x"]
)
def test_a_wrong_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write for example --max_latency 5ms"):
        parse_amount(text, "max_latency", MILLISECONDS, "5ms")


@pytest.mark.parametrize(("text", "share"), [("90", 0.9), ("90%", 0.9), ("99.5 %", 0.995), ("0.5%", 0.005), ("100", 1)])
def test_per_cent_is_read(text: str, share: float) -> None:
    assert parse_percent(text, "accuracy") == pytest.approx(share)


def test_a_share_in_place_of_per_cent_is_refused_with_what_was_meant() -> None:
    with pytest.raises(UserError, match=r"accuracy '0\.9' looks like a share; write per cent, as in --accuracy 90$"):
        parse_percent("0.9", "accuracy")
    for text in ("101", "0", "-1", "ninety", "90 percent", "1%%"):
        with pytest.raises(UserError, match=f"accuracy '{text}'"):
            parse_percent(text, "accuracy")


def test_the_fastest_of_the_zoo_is_what_a_join_of_two_files_finds(capsys: pytest.CaptureFixture[str]) -> None:
    """Join published and reference accuracies with the latencies of the zoo by hand."""
    latencies = {}
    for line in ZOO.read_text().splitlines():
        record = json.loads(line)
        latencies[record["model"]] = record["measures"]["latency_ms_median"]
    expected = []
    for name, entry in json.loads((ROOT / "cnnbench/models/catalog.json").read_text())["models"].items():
        known = [e["accuracy"] for e in (*entry["published"], *entry["measured"]) if e["data"].startswith("CIFAR-10")]
        if known and max(known) >= 90:
            expected.append((latencies[name], name, max(known)))
    code, document = answer(capsys, str(ZOO), "--accuracy", "90", "--device", "AMD EPYC")
    fitting = [entry for entry in document["networks"] if entry["status"] == "satisfies"]
    found = []
    for entry in fitting:
        values = entry["values"]
        found.append((values["latency"]["value"], entry["model"], pytest.approx(100 * values["accuracy"]["value"])))
    assert code == 0
    assert found == sorted(expected)
    assert document["answer"] == "ResNet20"
    # A network is on the front if no other one has a higher accuracy and a lower latency.
    front = {name for ms, name, percent in expected if not any(m < ms and p > percent for m, _, p in expected)}
    assert {entry["model"] for entry in fitting if entry["on_front"]} == front
    # By default, the times of another machine do not count.
    code, document = answer(capsys, str(ZOO), "--accuracy", "90")
    assert (document["times"], document["other_times"][0]["device"]) == (None, "AMD EPYC")
    assert code == 0
    assert document["sort"] == "macs"


def test_the_answer_is_the_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pick", str(ZOO), "--accuracy", "90%", "--max_latency", "5ms", "--device", "EPYC"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(
        "Fastest with at least 90 %, at most 5 ms: ResNet20, 91.25 % (published: 1512.03385, table 6, on CIFAR-10), "
        "3.45 ms (AMD EPYC, mixed bfloat16, 2026-11-23)."
    )
    assert "ResNet44: 6.04 ms, 1.04 above 5 ms" in text
    assert "different images: CIFAR-10, CIFAR-10 (JPEG copy)" in text
    assert "Other accuracies of ResNet20: 86.37 % (reference training of the package: 12 epochs" in text


def test_nothing_that_satisfies_is_exit_code_1_with_the_nearest_misses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pick", str(ZOO), "--accuracy", "95.05", "--max_latency", "36ms", "--device", "EPYC"]) == 1
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("Nearest misses:") + 1
    # MobileNetV2 has 94.43 % at 13.8 ms; DenseNet121, with 95.04 % at 36.02 ms, misses both.
    assert lines[first] == "   MobileNetV2: 94.43 %, 0.62 points below 95.05 % (published)"
    misses = [line for line in lines[first : first + 6] if line.startswith("   ")]
    assert len(misses) == 5


@pytest.mark.parametrize("order", [None, "latency", "accuracy", "params", "images_per_s"])
def test_choice_is_that_of_brute_force(order: Any) -> None:
    generator = random.Random(f"{order}")
    keys = ["accuracy", "latency", "params", "macs", "images_per_s"]
    for _ in range(200):
        entries = []
        for number in range(generator.randrange(8)):
            known = [key for key in keys if generator.random() < 0.8]
            entries.append(Candidate(f"n{number}", {key: Value(generator.randrange(1, 5), "s") for key in known}))
        limits = {key: generator.randrange(1, 5) for key in keys if generator.random() < 0.4}
        choice = choose(entries, [Condition(QUANTITIES[key], limit) for key, limit in limits.items()], order)
        expected: dict[str, set[str]] = {"fitting": set(), "missing": set(), "unknown": set()}
        for entry in entries:
            values = {key: value.value for key, value in entry.values.items()}
            missed = False
            for key, limit in limits.items():
                if key in ("accuracy", "images_per_s"):
                    missed |= values.get(key, 9) < limit
                else:
                    missed |= values.get(key, 0) > limit
            absent = ({*limits, order} - {None}) - values.keys()
            expected["missing" if missed else "unknown" if absent else "fitting"].add(entry.model)
        assert {entry.model for entry in choice.fitting} == expected["fitting"]
        assert {entry.model for entry, _ in choice.missing} == expected["missing"]
        assert {entry.model for entry, _ in choice.unknown} == expected["unknown"]
        key = order or ("latency" if any("latency" in entry.values for entry in entries) else "macs")
        values = [entry.values[key].value for entry in choice.fitting if key in entry.values]
        assert values == sorted(values, reverse=key in ("accuracy", "images_per_s"))


def test_times_of_different_settings_are_never_in_one_ranking(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        timed("LeNet5", 2.0, created="2026-11-01T00:00:00+00:00"),
        timed("SimpleCNN", 3.0),
        timed("LeNet5", 1.0, precision="bf16-true"),
        timed("LeNet5", 0.1, device="Fast GPU"),
        timed("LeNet5", 0.5, created="2026-11-02T00:00:00+00:00"),
    ]
    records[3].config["device"] = "cuda:0"
    write_lines(Path("r.jsonl"), records)

    def found(*words: str) -> dict[str, float]:
        code, document = answer(capsys, "r.jsonl", "--data", "MNIST", "--sort", "latency", *words)
        assert code == (0 if model_names(document, "satisfies") else 1)
        return {
            entry["model"]: entry["values"]["latency"]["value"]
            for entry in document["networks"]
            if entry["status"] == "satisfies"
        }

    # The newest record of a network counts, and the group with the most networks.
    assert found() == {"LeNet5": 0.5, "SimpleCNN": 3.0}
    assert found("--device", "cpu") == {"LeNet5": 0.5, "SimpleCNN": 3.0}
    assert found("--precision", "bf16-true") == {"LeNet5": 1.0}
    assert found("--device", "fast") == {"LeNet5": 0.1}
    assert found("--device", "Slow") == {}
    assert main(["pick", "r.jsonl", "--data", "MNIST"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 network on Fast GPU, float32 (32-true)" in text
    assert "(--device 'Fast GPU')" in text
    assert "(--precision bf16-true)" in text


def test_times_of_other_images_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    other = timed("SimpleCNN", 1.0)
    other.data["in_channels"] = 3
    larger = timed("SimpleCNN", 1.0)
    larger.data["image_size"] = 64
    write_lines(Path("r.jsonl"), [timed("LeNet5", 2.0), other, larger])
    _, document = answer(capsys, "r.jsonl", "--data", "MNIST", "--sort", "latency")
    assert model_names(document, "satisfies") == ["LeNet5"]
    _, document = answer(capsys, "r.jsonl", "--data", "MNIST", "--sort", "latency", "--image_size", "64")
    assert model_names(document, "satisfies") == ["SimpleCNN"]
    # The accuracies of references and publications are those of the usual size.
    assert all("accuracy" not in entry["values"] for entry in document["networks"])


def test_a_suspect_time_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    record = timed("LeNet5", 2.0)
    record.measures["suspect"] = ["the machine was busy"]
    write_lines(Path("r.jsonl"), [record])
    assert main(["pick", "r.jsonl", "--data", "MNIST", "--sort", "latency"]) == 0
    text = capsys.readouterr().out
    assert "2.00? " in text
    assert "?: a suspect time" in text
    assert "suspect)" in text.partition("\n\u250f")[0]


def accuracy_of(document: dict[str, Any], model: str) -> tuple[float, str]:
    (entry,) = [entry for entry in document["networks"] if entry["model"] == model]
    return entry["values"]["accuracy"]["value"], entry["accuracies"][0]["kind"]


def test_an_accuracy_comes_from_a_full_training_first(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        trained("LeNet5", 7),
        trained("LeNet5", 8, recipe="another"),
        trained("SimpleCNN", 9, converged=False),
        trained("mynets:own", 8),
        trained("mynets:short", 10, converged=False),
    ]
    write_lines(Path("r.jsonl"), records)
    _, document = answer(capsys, "r.jsonl", "--data", "MNIST")
    # A published accuracy is higher, but this training was made here. Of two recipes the better one counts.
    assert accuracy_of(document, "LeNet5") == (0.8, "full training")
    # The accuracy of a short training says nothing; that of the package's reference training does.
    shipped = {name: entry["measured"] for name, entry in load_catalog()["models"].items()}
    (reference,) = [e["accuracy"] for e in shipped["SimpleCNN"] if e["data"] == "MNIST"]
    assert accuracy_of(document, "SimpleCNN") == (pytest.approx(reference / 100), "reference training")
    assert accuracy_of(document, "mynets:own") == (0.8, "full training")
    (short,) = [entry for entry in document["networks"] if entry["model"] == "mynets:short"]
    assert "accuracy" not in short["values"]


def test_a_mean_over_seeds_counts(capsys: pytest.CaptureFixture[str]) -> None:
    records = []
    for seed, right in enumerate((6, 7, 9)):
        record = trained("LeNet5", right)
        object.__setattr__(record, "seed", seed)
        records.append(record)
    write_lines(Path("r.jsonl"), records)
    _, document = answer(capsys, "r.jsonl", "--data", "MNIST")
    assert accuracy_of(document, "LeNet5") == (pytest.approx(22 / 30), "full training")
    assert "3 seeds" in json.dumps(document)


def rows_of(text: str) -> dict[str, list[str]]:
    """Return the cells of the rows of the table, by the name of the network; the header has the name ``Network``."""
    rows = {}
    for line in text.splitlines():
        if line[:1] in ("\u2502", "\u2503"):
            _, name, *cells = [
                cell.strip() for cell in line.strip("\u2502\u2503").replace("\u2503", "\u2502").split("\u2502")
            ]
            rows[name] = cells
    return rows


def test_where_an_accuracy_comes_from_stands_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    records = [trained("mynets:own", 8), trained("LeNet5", 9), trained("AlexNet", 9, converged=False)]
    write_lines(Path("r.jsonl"), records)
    assert main(["pick", "r.jsonl", "--data", "MNIST"]) == 0
    rows = rows_of(capsys.readouterr().out)
    # MNIST has a reference training of ResNet18, and two networks were fully trained in the file.
    assert [rows[name][1] for name in ("mynets:own", "LeNet5", "ResNet18", "AlexNet")] == [
        *("records", "records", "package", "-")
    ]
    assert main(["pick", "--accuracy", "84"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "published: an accuracy from a publication, reached by another recipe" in text
    assert "SimpleCNN: 80.03 %, 3.97 points below 84 % (package)" in text


def test_every_published_accuracy_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Compare the column with the stored accuracies of CIFAR-10, of which the highest counts."""
    assert main(["pick"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["Network"][:2] == ["Accuracy %", "Accuracy from"]
    expected = {}
    for name, entry in load_catalog()["models"].items():
        known = [(e["accuracy"], "published") for e in entry["published"] if is_label_of(e["data"], "CIFAR10")]
        known += [(e["accuracy"], "package") for e in entry["measured"] if is_label_of(e["data"], "CIFAR10")]
        expected[name] = max(known)[1] if known else "-"
    assert {name: cells[1] for name, cells in rows.items() if name != "Network"} == expected
    assert {"published", "package", "-"} == set(expected.values())


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ([], "No condition given: all 34 networks"),
        (["--sort", "accuracy"], "No condition given: 14 networks; 20 more have no value to sort by"),
        (["--max_params", "270k"], "4 networks that satisfy the conditions"),
        (["--max_params", "100k"], "1 network that satisfies the conditions"),
    ],
)
def test_the_title_says_why_these_networks_are_in_the_table(
    words: list[str], title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pick", *words]) == 0
    assert title in [line.strip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("label", "data", "expected"),
    [
        ("CIFAR-10 (JPEG copy)", "CIFAR10", True),
        ("CIFAR-10", "CIFAR10", True),
        ("CIFAR-100", "CIFAR10", False),
        ("CIFAR-100", "torchvision:CIFAR100", True),
        ("ImageNet V2, 240 pixels", "ImageNet", True),
        ("ImageNet, 10 crops", "ImageNet", True),
        ("MNIST", "CIFAR10", False),
        ("Synthetic (stands in for MNIST)", "MNIST", False),
    ],
)
def test_labels_are_of_their_data_set(label: str, data: str, expected: bool) -> None:
    assert is_label_of(label, data) == expected


def test_records_of_the_working_folder_are_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"bench/a/records": "m:one", "runs/m-MNIST/t/records": "m:two", "runs/first/records": "m:named"}
    for place, model in (*places.items(), ("speed", "m:three")):
        folder = Path("results") / place
        folder.mkdir(parents=True)
        suffix = ".jsonl" if place == "speed" else ".json"
        write_lines(folder / f"r{suffix}", [timed(model, 1.0)])
    Path("results/speed/broken.jsonl").write_text("{")
    (Path("results/bench/b")).mkdir()
    code = main(["pick", "--data", "MNIST", "--sort", "latency", "--json"])
    captured = capsys.readouterr()
    assert model_names(json.loads(captured.out), "satisfies") == ["m:named", "m:one", "m:three", "m:two"]
    assert code == 0
    assert captured.err.startswith("left out: record file 'results/speed/broken.jsonl'")
    # A file that somebody named must be right.
    assert main(["pick", "results/speed/broken.jsonl"]) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--accuracy", "0.9"], "accuracy '0.9' looks like a share"),
        (["--max_latency", "5"], "max_latency '5' is not a positive number with a unit"),
        (["--max_params", "5X"], "max_params '5X' is not a positive number with or without a unit"),
        (["--max_memory", "5"], "max_memory '5' is not a positive number with a unit"),
        (["--precision", "float32"], "unknown precision 'float32'"),
        (["--data", "CIFAR1"], "unknown data set 'CIFAR1'; did you mean 'CIFAR10'?"),
        (["--data", "folder:photos"], "nothing says how large the images of data set 'folder:photos' are"),
        (["--measure", "--device", "H200"], "--measure times networks on this machine"),
        (["absent.jsonl"], "records 'absent.jsonl' do not exist"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pick", *words]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_lines_fit_and_names_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["\x1b[31mred", "²", "a\nb", "x" * 300, "$(touch hacked) `id`", "\u202eright to left"]
    records = [timed(name, number + 1.0, device=f"dev\x1b[{number % 2}m") for number, name in enumerate(names)]
    write_lines(Path("r.jsonl"), records)
    assert main(["pick", "r.jsonl", "--data", "MNIST", "--device", "dev", "--sort", "latency"]) == 0
    text = capsys.readouterr().out
    assert not {"\x1b", "\u202e"} & set(text)
    assert "\\x1b[31mred" in text
    # A command has whole words, since a shell would take a broken one for two.
    lines = [line for line in text.splitlines() if "x" * 300 not in line]
    assert len(lines) == len(text.splitlines()) - 1
    assert max(map(len, lines)) <= 80
    # Nothing else is known of these names, so that a command has them, in quotes.
    assert main(["pick", "r.jsonl", "--data", "MNIST", "--accuracy", "1%", "--device", "dev"]) in (0, 1)
    text = capsys.readouterr().out
    assert not {"\x1b", "\u202e"} & set(text)
    assert "$(touch hacked) `id`" in text
    # The words of the command are in quotes, in which a shell runs nothing.
    words = shlex.split(text[text.index("cnnbench bench") :].replace("\\\n", ""))
    assert "$(touch hacked) `id`" in words[3]


def test_commands_in_the_answer_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    _, document = answer(capsys, "--data", "MNIST", "--accuracy", "99", "--max_latency", "5ms", "--max_params", "1M")
    bench, speed = document["commands"]
    # All of these have fewer parameters and no known accuracy; a full training on MNIST has 10 epochs.
    names = ["PlainNet20", "PlainNet32", "PlainNet44", "PlainNet56", "ResNet32", "ResNet44", "ResNet56", "SpeedNet"]
    assert bench == f"cnnbench bench --models {','.join(names)} --data MNIST --epochs 10"
    words = speed.split()
    assert words[:2] == ["cnnbench", "speed"]
    assert words[-8:-2] == ["--in_channels", "1", "--image_size", "32", "--num_classes", "10"]
    # LeNet5 has 99.25 % and few parameters, so nothing but its time is missing.
    assert "LeNet5" in words


# --measure


def test_records_without_times_have_the_settings_of_real_ones() -> None:
    options = SpeedOptions(models=("LeNet5",), in_channels=1, image_size=32, device="cpu", rounds=1)
    networks = find_networks(options)
    (blank,), (real,) = without_times(options, networks), time_networks(options, networks)
    settings = settings_of({"latency", "inference", "training"})
    assert values_of(blank, settings) == values_of(real, settings)
    assert (blank.model, blank.data) == (real.model, real.data)
    assert "latency_ms_median" in real.measures
    assert "latency_ms_median" not in blank.measures


def test_measure_times_what_is_missing_and_the_next_pick_finds_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = hardware.device_name(torch.device("cpu"))
    monkeypatch.setattr("cnnbench.commands.pick.cpu_name", lambda: name)
    calls: list[list[str]] = []

    def fake(options: SpeedOptions, networks: Any) -> list[Record]:
        calls.append([network.name for network in networks])
        records = without_times(options, networks)
        for record in records:
            record.measures["latency_ms_median"] = 7.5
        return records

    monkeypatch.setattr(pick_measure, "time_networks", fake)
    # Times with other settings are there for more networks, and the own code of a file is not imported.
    own = trained("mynets:own", 10)
    write_lines(Path("old.jsonl"), [own, *(timed(f"m:{n}", 1.0, device=name) for n in range(9))])
    words = ["old.jsonl", "--data", "MNIST", "--accuracy", "99", "--max_params", "1M", "--device", "cpu"]
    assert main(["pick", *words, "--measure", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [sorted(names) for names in calls] == [["LeNet5", "ResNet20", "SimpleCNN"]]
    assert "not timed: mynets:own" in captured.err
    assert {entry["values"]["latency"]["value"] for entry in document["networks"] if "latency" in entry["values"]} == {
        7.5
    }
    (file,) = Path("results/speed").glob("*.jsonl")
    assert len(load_records([file])) == 3
    # Nothing is timed twice, whether the new file is named or not.
    for new in ([], [str(file)], ["results/speed"]):
        assert main(["pick", "old.jsonl", *new, *words[1:], "--measure", "--json"]) == 0
        assert len(calls) == 1
        captured = capsys.readouterr()
        assert "all times are known" in captured.err
        assert json.loads(captured.out)["times"]["networks"] == 3
    assert main(["pick", *words[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["times"]["networks"] == 3


def test_engines_are_chosen_from_records_with_the_same_turns(capsys: pytest.CaptureFixture[str]) -> None:
    """torch alone is timed without calls before each turn that do not count, and beside engines with them."""
    beside = [timed("LeNet5", ms) for ms in (2.0, 0.1)]
    for record, engine in zip(beside, ("torch", "onnxruntime"), strict=True):
        record.config.update(engine=engine, settle_s=0.1)
    alone = replace(timed("LeNet5", 1.5), created="2027-01-01T00:00:00+00:00")
    write_lines(Path("r.jsonl"), [*beside, alone, trained("LeNet5", 10)])
    _, document = answer(capsys, "r.jsonl", "--data", "MNIST", "--engine", "any")
    found = [e["values"]["latency"]["value"] for e in document["networks"] if "latency" in e["values"]]
    assert sorted(found) == [0.1, 2.0]
    assert main(["pick", "r.jsonl", "--data", "MNIST", "--engine", "any"]) == 0
    assert "0.1 s of uncounted calls in each turn" in " ".join(capsys.readouterr().out.split())


def test_only_networks_that_fit_otherwise_are_timed() -> None:
    options = pick.Options(data="CIFAR10", accuracy="93", max_params="1M")
    images = pick.Images("CIFAR10", 3, 32, 10, 32)
    known = pick.Known([], load_catalog()["models"], images)
    assert pick.names_to_time(options, known) == ["ResNet56"]
    assert timings([], images, options.needed_times()) == []
    assert candidates([], {}, images, None) == []


# The machine


def test_names_of_the_machine_need_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.cpu_name() == hardware.device_name(torch.device("cpu"))
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz \nmodel name\t: Other\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    assert machine.cpu_name() == "Some CPU @ 2 GHz"
    for number, name in enumerate(["NVIDIA H200", "NVIDIA H200", "NVIDIA L4"]):
        folder = tmp_path / "gpus" / f"000{number}"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ: 0\n")
    monkeypatch.setattr(machine, "GPU_FOLDER", tmp_path / "gpus")
    assert machine.gpu_names() == ["NVIDIA H200", "NVIDIA L4"]
    monkeypatch.setattr(machine, "GPU_FOLDER", tmp_path / "none")
    assert machine.gpu_names() == []


def test_pick_starts_without_torch_and_scipy() -> None:
    code = (
        "import sys; from cnnbench.cli import main; main(['pick', sys.argv[1], '--json']); "
        "sys.exit(str({'torch', 'scipy', 'lightning', 'matplotlib'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ZOO)], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_measure_does_not_time_for_a_folder_that_cannot_be_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pick_measure, "time_networks", lambda *_: pytest.fail("it was timed"))
    Path("results").write_text("mine")
    assert main(["pick", "--data", "MNIST", "--accuracy", "99", "--max_params", "100k", "--measure"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    # No option names this folder, so none is proposed.
    assert line == (
        "cnnbench: folder results/speed cannot be made: Not a directory; "
        "start the command in a folder that can be written to"
    )


def test_int8_takes_no_accuracy_of_another_number_format(capsys: pytest.CaptureFixture) -> None:
    words = ["pick", "--data=CIFAR10", "--accuracy=70", "--json"]
    assert main(words) == 0
    capsys.readouterr()
    for engine in ("onnxruntime", "any"):
        assert main([*words, f"--engine={engine}", "--precision=int8"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert document["networks"] == [] or all(entry["status"] != "satisfies" for entry in document["networks"])
