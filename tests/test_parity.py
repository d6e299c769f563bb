"""Command lines as users of LightningCLI type them: the table of `campaigns.parity`, and each way to be at fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from campaigns.fuzz_fork import Outcome
from campaigns.parity import ROWS, Row, fault_of, says, steps
from warm import Warm

ROOT = Path(__file__).parent.parent


def _run_table(path: Path, *options: str) -> list[dict]:
    """Run the table in a process that has computed nothing, since one that has computed with torch must not fork."""
    log = path.with_name("log")
    Warm(["--out", str(path), *options], ROOT, str(log), module="campaigns.parity").wait(900)
    assert path.is_file(), log.read_text()
    return json.loads(path.read_text())


def _check(verdicts: list[dict]) -> None:
    faults = [f"{row['name']}: {row['fault']}" for row in verdicts if row["fault"]]
    assert not faults, "\n".join(faults)


def test_quick_rows_do_what_the_table_says(tmp_path: Path) -> None:
    verdicts = _run_table(tmp_path / "verdicts.json", "--quick")
    _check(verdicts)
    assert len(verdicts) >= 35


@pytest.mark.slow
def test_all_rows_do_what_the_table_says(tmp_path: Path) -> None:
    _check(_run_table(tmp_path / "verdicts.json"))


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def _outcome(folder: Path, code: int = 0, stderr: str = "", after: dict[str, str] | None = None) -> Outcome:
    return Outcome(code, "", stderr, folder, after=after or {})


def test_each_way_to_be_at_fault_is_found(tmp_path: Path) -> None:
    good = "10 steps in 1.0 s of training\n"
    works, refused = Row("works", ("fit",), (steps(10),)), Row("refused", ("fit",), refused="bad value")
    line = "cnnbench: bad value 3; use 4\n"
    assert fault_of(works, [_outcome(tmp_path, stderr=good)]) == ""
    assert fault_of(refused, [_outcome(tmp_path, 2, line)]) == ""
    assert "ended with 1" in fault_of(works, [_outcome(tmp_path, 1, good)])
    assert "ended with 0" in fault_of(refused, [_outcome(tmp_path, stderr=good)])
    assert "traceback" in fault_of(works, [_outcome(tmp_path, stderr=f"Traceback\n{good}")])
    assert "not 10" in fault_of(works, [_outcome(tmp_path, stderr=good.replace("10", "11"))])
    assert "does not say" in fault_of(Row("x", ("fit",), (says("spy"),)), [_outcome(tmp_path)])
    assert "without 'bad value'" in fault_of(refused, [_outcome(tmp_path, 2, "cnnbench: no\n")])
    assert "it left ['results']" in fault_of(refused, [_outcome(tmp_path, 2, line, {"results": "folder"})])
    (tmp_path / "results" / "runs" / "LeNet5-Synthetic" / "1" / "checkpoints").mkdir(parents=True)
    assert "empty run folders: ['1']" in fault_of(works, [_outcome(tmp_path, stderr=good)])
