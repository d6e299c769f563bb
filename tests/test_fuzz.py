"""The fuzz: a seeded share of it, and that each of its verdicts can be reached."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from campaigns import fuzz, fuzz_cases, fuzz_damage, fuzz_fork, fuzz_images, fuzz_records, fuzz_templates
from campaigns.fuzz_judge import BAD, RIGHT, Finding, Prepared, judge, wrong
from warm import Warm

LINE = "cnnbench: plan 'x' is not a plan; start anew"


def test_fuzz_of_a_share_has_no_bad_case(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    path = tmp_path / "fuzz.json"
    log = tmp_path / "log"
    words = ["--cases", "40", "--seed", "7", "--jobs", "1", "--out", str(path)]
    Warm(words, root, str(log), module="campaigns.fuzz").wait(600)
    assert path.is_file(), log.read_text()
    found = json.loads(path.read_text())
    bad = [f"{row['verdict']}: {row['repeat']}: {row['damage']}: {row['reason']}" for row in found["rows"]]
    assert not bad
    assert found["cases"] >= 35
    assert all(sum(verdicts.values()) for verdicts in found["kinds"].values()), "a kind has no case"


# The harness itself: commands that are bad in each way


def _outcome(
    tmp_path: Path, command: Callable[[Sequence[str]], int], limit_s: float = 20.0, stdout: str = ""
) -> fuzz_fork.Outcome:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "input.json").write_text("{}")
    return fuzz_fork.run([], folder, tmp_path / "output", limit_s, command=command, stdout=stdout)


def _refuses(*lines: str) -> Callable[[Sequence[str]], int]:
    def command(arguments: Sequence[str]) -> int:
        for line in lines:
            print(line, file=sys.stderr)
        return 2

    return command


def _raises(error: BaseException) -> Callable[[Sequence[str]], int]:
    def command(arguments: Sequence[str]) -> int:
        raise error

    return command


def _does(action: Callable[[], object], code: int = 2) -> Callable[[Sequence[str]], int]:
    def command(arguments: Sequence[str]) -> int:
        action()
        if code == 2:
            print(LINE, file=sys.stderr)
        return code

    return command


@pytest.mark.parametrize(
    ("command", "verdict"),
    [
        (_refuses(LINE), "clear"),
        (_refuses("data: MNIST, incomplete", LINE), "clear"),
        (_refuses(), "traceback"),
        (_refuses(LINE, LINE), "traceback"),
        (_refuses(LINE, "and more"), "traceback"),
        (_refuses("UserWarning: odd", LINE), "traceback"),
        (_refuses("usage: cnnbench", LINE), "traceback"),
        (_refuses("cnnbench: no"), "wrong"),
        (_refuses(f"{LINE} {'x' * 5000}"), "wrong"),
        (_refuses(f"{LINE} \x1b[2J"), "wrong"),
        (_refuses(f"{LINE} \u202e"), "wrong"),
        (_raises(ValueError("x")), "traceback"),
        (_raises(KeyboardInterrupt()), "traceback"),
        (_raises(SystemExit("bye")), "right"),  # exit code 1: the check of the case judges it
        (_raises(SystemExit(3)), "traceback"),
        (_does(lambda: os.kill(os.getpid(), signal.SIGKILL)), "traceback"),
        (_does(lambda: Path("left.json").write_text("")), "wrong"),
        (_does(lambda: Path(".x.part").write_text("")), "wrong"),
        (_does(lambda: Path("run").mkdir()), "wrong"),
        (_does(lambda: Path("input.json").unlink()), "wrong"),
        (_does(lambda: Path("input.json").write_text("[]")), "wrong"),
        (_does(lambda: Path("data.lock").touch()), "clear"),
        (_does(lambda: print("{")), "wrong"),
        (_does(lambda: Path("pwned").touch()), "wrong"),
        (_does(lambda: Path("pwned").touch(), code=0), "wrong"),
        (_does(lambda: Path(".x.part").touch(), code=0), "wrong"),
        (_does(lambda: None, code=0), "right"),
    ],
)
def test_judge_knows_each_way_to_end(command: Callable[[Sequence[str]], int], verdict: str, tmp_path: Path) -> None:
    finding = judge(_outcome(tmp_path, command), Prepared((), "", lambda _: RIGHT))
    assert finding.verdict == verdict, finding.reason


def test_judge_calls_what_does_not_end_a_hang(tmp_path: Path) -> None:
    outcome = _outcome(tmp_path, _does(lambda: time.sleep(60)), limit_s=0.3)
    assert judge(outcome, Prepared((), "")).verdict == "hang"
    assert outcome.seconds < 10


def test_judge_asks_the_check_of_the_case_about_what_is_accepted(tmp_path: Path) -> None:
    outcome = _outcome(tmp_path, _does(lambda: None, code=0))
    assert judge(outcome, Prepared((), "")).verdict == "wrong"
    assert judge(outcome, Prepared((), "", lambda _: wrong("odd"))) == Finding("wrong", "odd")


def test_child_that_cannot_print_ends_as_the_interpreter_does(tmp_path: Path) -> None:
    outcome = _outcome(tmp_path, _does(lambda: print("x"), code=0), stdout="/dev/full")
    assert outcome.code == 120
    assert judge(outcome, Prepared((), "", lambda _: RIGHT)).verdict == "traceback"


@pytest.mark.parametrize("kind", ["batches", "mnist"])
def test_run_cases_finds_a_command_that_accepts_everything(kind: str, tmp_path: Path) -> None:
    templates = fuzz_templates.Templates(tmp_path / "templates", {})
    fuzz_templates.write_mnist(templates.root / "mnist" / "data" / "MNIST" / "raw")
    cases = [fuzz.Case(kind, number, 0) for number in range(3)]
    results = list(fuzz.run_cases(cases, templates, 2, 20.0, command=lambda arguments: 0))
    assert {result.finding.verdict for result in results} == {"wrong"}
    assert len(results) == 3
    assert not list(tmp_path.glob("case-*")), "folders of cases are left"


def test_case_is_the_same_when_it_is_repeated(tmp_path: Path) -> None:
    templates = fuzz_templates.Templates(tmp_path / "templates", {})
    fuzz_templates.write_mnist(templates.root / "mnist" / "data" / "MNIST" / "raw")
    made = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        prepared = [fuzz.KINDS["mnist"][1](fuzz.Case("mnist", 3, 1).generator, folder, templates)]
        made.append((prepared[0].damage, prepared[0].arguments, fuzz_fork.hashes(folder)))
    assert made[0] == made[1]


def test_cases_of_the_default_are_two_thousand_of_every_kind() -> None:
    cases = fuzz.cases_of(list(fuzz.KINDS), fuzz.CASES, seed=0)
    assert len(cases) >= 2000
    assert len(set(cases)) == len(cases)
    assert {case.kind for case in cases} == set(fuzz.KINDS)
    assert cases == fuzz.cases_of(list(fuzz.KINDS), fuzz.CASES, seed=0)


def test_table_counts_every_verdict() -> None:
    outcome = fuzz_fork.Outcome(0, "", "", Path())
    results = [
        fuzz.Result(fuzz.Case("mnist", number, 0), Prepared((), ""), outcome, Finding(verdict))
        for number, verdict in enumerate(["clear", "clear", "hang"])
    ]
    lines = fuzz.table(results)
    assert lines[2:] == ["| mnist | 3 | 2 | 0 | 0 | 0 | 0 | 1 | 0 |", "| all | 3 | 2 | 0 | 0 | 0 | 0 | 1 | 0 |"]
    assert BAD == ("traceback", "hang", "wrong")


# The oracles


def test_idx_fault_finds_what_the_format_forbids(tmp_path: Path) -> None:
    fuzz_templates.write_mnist(tmp_path / "raw")
    assert fuzz_cases._idx_fault(tmp_path / "raw") == ""
    path = tmp_path / "raw" / "t10k-labels-idx1-ubyte"
    good = path.read_bytes()
    for bad in (good[:-1], good + b"\0", good[:-1] + b"\x0a", struct.pack(">I", 0x803) + good[4:], b"", good[8:]):
        path.write_bytes(bad)
        assert fuzz_cases._idx_fault(tmp_path / "raw")


def test_png_fault_finds_every_flipped_byte(tmp_path: Path) -> None:
    fuzz_templates.write_photos(tmp_path / "photos")
    good = (tmp_path / "photos" / "photo.png").read_bytes()
    assert fuzz_images.png_fault(good) == ""
    for place in range(len(good)):
        assert fuzz_images.png_fault(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]), place
    assert fuzz_images.png_fault(good[:-12])
    assert zlib.crc32(b"IEND") == struct.unpack(">I", good[-4:])[0]


_RECORD = {
    "model": "LeNet5",
    "data": {"name": "MNIST", "class_names": ["a", "b"], "test_images": 4},
    "seed": 0,
    "status": "ok",
    "config": {"batch_size": 2},
    "environment": {"device": "cpu"},
    "schema": 1,
    "created": "2026-01-01",
    "measures": {"latency_ms_median": 1.5, "test_accuracy": 0.75},
    "confusion_matrix": [[2, 1], [0, 1]],
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("measures", "latency_ms_median"), -1.0),
        (("measures", "latency_ms_median"), float("nan")),
        (("measures", "test_accuracy"), 17.0),
        (("measures", "test_accuracy"), 0.5),
        (("model",), 3),
        (("seed",), True),
        (("confusion_matrix",), [[4]]),
        (("confusion_matrix",), [[2, 1], [0, 2]]),
        (("config", "batch_size"), "2"),
        (("surprise",), 1),
        (("data",), None),
    ],
)
def test_contradiction_finds_what_no_record_can_say(path: tuple[str, ...], value: object) -> None:
    assert fuzz_records.contradiction(_RECORD, _RECORD) == ""
    damaged = json.loads(json.dumps(_RECORD))
    fuzz_damage.get(damaged, path[:-1])[path[-1]] = value
    assert fuzz_records.contradiction(damaged, _RECORD)


@pytest.mark.parametrize("seed", range(40))
def test_damage_changes_the_document_and_repeats(seed: int) -> None:
    text = json.dumps(_RECORD, indent=1)
    first, second = (fuzz_damage.damage_json(text, random.Random(seed)) for _ in range(2))
    assert first == second
    assert first[1] != text.encode()
