"""The race against the programs of engines: what is read of their output, and which times are paired."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cnnbench.errors import UserError
from cnnbench.verification import engines
from cnnbench.verification.engines import Entry, Ours

ENTRIES = [Entry(name, engine, Path(f"{name}.{engine}")) for name in ("A", "B") for engine in engines.PROGRAMS]
PRINTED = """[Step 11/11] Dumping statistics report
[ INFO ] Latency:
[ INFO ]    Median:        {}
[ INFO ]    Average:       9.99 ms
"""


def _prints(monkeypatch: pytest.MonkeyPatch, text: str, code: int = 0) -> None:
    """Let every program print a text and end with an exit code."""
    done = subprocess.CompletedProcess([], code, text, "")
    monkeypatch.setattr(engines.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(engines.Path, "exists", lambda _: True)


@pytest.mark.parametrize(("words", "ms"), [("62.94 us", 0.06294), ("6.50 ms", 6.5)])
def test_median_of_benchmark_app_is_read_with_its_unit(monkeypatch: pytest.MonkeyPatch, words: str, ms: float) -> None:
    _prints(monkeypatch, PRINTED.format(words))
    assert engines.benchmark_app(ENTRIES[0]) == pytest.approx(ms)


def test_mean_of_onnxruntime_test_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    _prints(monkeypatch, "model: a.onnx\navg latency: 0.0607 ms\n")
    assert engines.onnxruntime_test(ENTRIES[1]) == 0.0607


@pytest.mark.parametrize("program", [engines.benchmark_app, engines.onnxruntime_test])
@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 0, r"its last line is: \(nothing\)"),
        ("hello\n", 0, "its last line is: hello"),
        ("", 9, r"exit code 9: \(nothing\)"),
    ],
)
def test_program_that_reports_no_time_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, program: Callable[[Entry], float], text: str, code: int, said: str
) -> None:
    _prints(monkeypatch, text, code)
    with pytest.raises(UserError, match=said):
        program(ENTRIES[0])


def test_our_time_of_a_file_is_paired_with_that_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def in_process(function: Callable[..., Any], engine: str, entries: Sequence[Entry]) -> list[Ours]:
        assert function is engines.ours
        calls.append(engine)
        return [Ours(ms, ms) for ms in (1.0 if entry.network == "A" else 2.0 for entry in entries)]

    def program(entry: Entry) -> float:
        calls.append(entry)
        return 10.0 if entry.network == "A" else 20.0

    monkeypatch.setattr(engines, "in_process", in_process)
    monkeypatch.setattr(engines, "PROGRAMS", dict.fromkeys(engines.PROGRAMS, ("a program", program)))
    times = engines._race(ENTRIES, 3)
    for entry, pairs in times.items():
        ms = 1.0 if entry.network == "A" else 2.0
        assert pairs == 3 * [(Ours(ms, ms), 10 * ms)]
    assert sorted(map(str, calls)) == sorted(map(str, 3 * [*engines.PROGRAMS, *ENTRIES]))
