"""Records: complete or not there, refused when they do not add up."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import make_record

from cnnbench.command_line import typed
from cnnbench.errors import UserError
from cnnbench.files import write_json
from cnnbench.record import environment, load_records, parse_record, write_lines, write_record
from cnnbench.report.provenance import facts


def test_records_survive_writing_and_reading(tmp_path: Path) -> None:
    record = make_record()
    write_record(tmp_path / "records" / "a.json", record)
    assert load_records([tmp_path]) == [record]
    assert load_records([tmp_path / "records" / "a.json"]) == [record]
    both = [make_record(model=m) for m in ("A", "B")]
    write_lines(tmp_path / "b.jsonl", both)
    assert load_records([tmp_path / "b.jsonl"]) == both
    with pytest.raises(UserError, match="never overwritten"):
        write_lines(tmp_path / "b.jsonl", both)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confusion_matrix": [[4, 0, 0], [1, 2, 0], [0, 0, 2]]}, "counts 9 of 10 test images"),
        ({"status": "fine"}, "status 'fine'"),
        ({"schema": 99}, "schema 99"),
    ],
)
def test_records_that_do_not_add_up_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_record(**changes)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown key 'colour'"):
        parse_record({**asdict(make_record()), "colour": "red"})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"schema": 1, "model": "x", "data": {}}'])
def test_other_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"record file '.*x\.json'"):
        load_records([tmp_path / "x.json"])


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no records"):
        load_records([tmp_path])
    with pytest.raises(UserError, match=re.escape(f"'{tmp_path / 'no'}' do not exist")):
        load_records([tmp_path / "no"])


def test_keys_are_unique_and_safe_in_file_names() -> None:
    keys = {make_record().key, make_record(seed=1).key, make_record(model="a/b").key, make_record(data="CIFAR10").key}
    assert keys == {"LeNet5-MNIST-seed0", "LeNet5-MNIST-seed1", "a_b-MNIST-seed0", "LeNet5-CIFAR10-seed0"}
    assert make_record(synthetic=True).key == "LeNet5-MNIST-seed0"


def test_environment_names_what_a_result_depends_on() -> None:
    found = environment("Some GPU", threads=3)
    assert found["device"] == "Some GPU"
    assert found["threads"] == 3
    assert re.match(r"\d+\.\d+", found["packages"]["torch"])
    json.dumps(found)


def test_a_figure_that_is_null_is_one_that_is_missing() -> None:
    document = asdict(make_record())
    # Each of them may be missing, by its schema; the median goes with its samples.
    for key in ("latency_ms_median", "samples_ms", "test_accuracy_low", "test_accuracy_high", "params", "flops"):
        document["measures"][key] = None
    record = parse_record(document)
    assert None not in record.measures.values()
    assert set(record.measures) == {"macs", "activations", "images_per_s", "train_images_per_s", "test_accuracy"}
    assert parse_record({**document, "training": None}).training == {}


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        # Five hours behind UTC, so it is the next day there.
        ("2026-11-30T23:30:00-05:00", "2026-12-01T04:30:00+00:00"),
        ("2026-12-02T01:00:00+14:00", "2026-12-01T11:00:00+00:00"),
        ("2026-12-02 10:00:00", "2026-12-02T10:00:00+00:00"),
        ("2026-12-02", "2026-12-02T00:00:00+00:00"),
        ("2026-12-02T10:00:00+00:00", "2026-12-02T10:00:00+00:00"),
    ],
)
def test_the_time_of_a_record_is_in_utc_whatever_the_file_says(created: str, expected: str) -> None:
    assert parse_record({**asdict(make_record()), "created": created}).created == expected


@pytest.mark.parametrize("created", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-02:00", "yesterday", "2026"])
def test_a_time_that_no_calendar_has_is_refused(created: str) -> None:
    with pytest.raises(UserError, match="it should be a date and time"):
        parse_record({**asdict(make_record()), "created": created})


def test_a_record_has_the_command_that_made_it(tmp_path: Path) -> None:
    assert environment("cpu", threads=1)["command_line"] is None  # as in a notebook
    with typed(["bench", "--models=m:net(width=2)", "--data_options={token: abc}"]):
        record = make_record(environment=environment("cpu", threads=1))
    expected = "cnnbench bench '--models=m:net(width=2)' '--data_options={token: ***}'"
    assert record.environment["command_line"] == expected
    write_lines(tmp_path / "r.jsonl", [record])
    (read,) = load_records([tmp_path / "r.jsonl"])
    assert dict(facts([read]))["Command"] == expected
    # Records from before have none, and are read as they are.
    old = make_record()
    assert "command_line" not in old.environment
    write_lines(tmp_path / "old.jsonl", [old])
    assert "Command" not in dict(facts(load_records([tmp_path / "old.jsonl"])))
