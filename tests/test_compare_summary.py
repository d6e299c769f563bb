"""The short form of `cnnbench compare`: only what changed has a row, and one sentence counts the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_record

from cnnbench.cli import main
from cnnbench.record import Record, write_lines
from cnnbench.report.compare import VERDICTS, Change
from cnnbench.report.gate import remarks
from cnnbench.report.summary import changed, not_compared, sentence


def _change(
    verdict: str, figure: str = "macs", change: float | None = None, reason: str = "", **more: object
) -> Change:
    values = {"model": "A", "label": "D", "before": 1.0, "after": 1.0, "low": None, "high": None, **more}
    return Change(figure=figure, change=change, verdict=verdict, reason=reason, **values)  # type: ignore[arg-type]


def test_the_sentence_counts_every_verdict_once() -> None:
    device = "device X against Y"
    changes = [
        _change("slower", "latency_ms_median", 0.1),
        _change("better", "test_accuracy", 0.01),
        _change("faster", "latency_ms_median", -0.1, model="B"),
        *[_change("no difference found", "latency_ms_median", c, model="C") for c in (0.004, -0.029)],
        _change("no difference found", "test_accuracy", 0.004),
        _change("not comparable", "train_step_ms_median", reason=device),
        _change("not comparable", "test_accuracy", reason="device of the time-limited training X against Y"),
        _change("missing", "all", before=None, model="D"),
    ]
    assert sentence(changes) == (
        "4 networks, 8 figures: 1 worse, 2 better, 1 missing in B, 3 without a difference beyond chance (changes up to "
        "2.9 % and 0.4 points), 2 not comparable (other device)."
    )
    assert [c.verdict for c in changed(changes)] == ["slower", "better", "faster", "missing"]


def test_every_verdict_has_a_word() -> None:
    counted = sentence([_change(verdict) for verdict in VERDICTS])
    numbers = [int(part.split()[0]) for part in counted.partition(": ")[2].split(", ")]
    assert sum(numbers) == len(VERDICTS)


def test_reasons_share_one_line_with_their_numbers() -> None:
    changes = [_change("not comparable", reason=reason) for reason in ("threads 1 against 2", "b", "b")]
    assert not_compared(changes) == ["3 figures not comparable: b (2); threads 1 against 2 (1)."]
    assert "(other" not in sentence(changes)  # the reason b names no setting
    assert "1 not comparable (other threads)" in sentence(changes[:1])


def test_no_line_on_false_verdicts_where_there_are_none() -> None:
    assert remarks([_change("equal"), _change("not comparable", reason="r")], []) == []
    (line,) = remarks([_change("worse", "test_accuracy", -0.1, low=-0.2, high=-0.05)])
    assert line == "By intervals of 95 %, one in twenty of 1 verdicts would be false if nothing differed."


def _compared(a: Record, b: Record, capsys: pytest.CaptureFixture, *options: str) -> str:
    for name, record in (("a", a), ("b", b)):
        Path(f"{name}.jsonl").unlink(missing_ok=True)
        write_lines(Path(f"{name}.jsonl"), [record])
    assert main(["compare", "a.jsonl", "b.jsonl", *options]) == 0
    return capsys.readouterr().out


def test_only_what_changed_has_a_row_unless_all_are_asked_for(capsys: pytest.CaptureFixture) -> None:
    a, b = make_record(), make_record()
    b.measures["params"] += 5
    printed = _compared(a, b, capsys)
    assert printed.startswith("1 network, 5 figures: 1 changed, 2 equal, 1 without a difference beyond chance")
    assert "changed" in printed.partition("\n")[2]
    assert "activations" not in printed
    assert "The table has the 1 figure that changed; --all adds the other 4." in printed
    whole = _compared(a, b, capsys, "--all")
    assert "activations" in whole
    assert "--all" not in whole
    assert len(json.loads(_compared(a, b, capsys, "--json"))["changes"]) == 5


def test_two_devices_say_in_two_lines_that_they_do_not_compare(capsys: pytest.CaptureFixture) -> None:
    a, b = make_record(), make_record()
    b.environment["device"] = "Another CPU"
    printed = _compared(a, b, capsys)
    assert "2 not comparable (other device)." in printed.splitlines()[0]
    assert "device Test CPU against Another CPU" in printed
    assert "verdicts" not in printed
    assert "┃" not in printed  # no table
    assert "No figure changed, so there is no table; --all lists 5 figures with the values." in printed
