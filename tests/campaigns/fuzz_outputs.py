"""Cases with output paths that cannot be written to: files in the way, names that are too long, full devices."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

from campaigns.fuzz_fork import Outcome
from campaigns.fuzz_judge import RIGHT, Finding, Prepared, wrong
from campaigns.fuzz_options import COMMANDS
from campaigns.fuzz_templates import LAST, SMALL, Templates

OUTPUTS: dict[str, tuple[str, ...]] = {
    "bench": COMMANDS["bench"],
    "report": ("report", "run"),
    "fit": COMMANDS["fit"],
    "predict": ("predict", "--ckpt_path", LAST, *SMALL),
    "explain": ("explain", "kernels", "--kernels", "box"),
    "export": ("report", "run", "--out", "rep"),
    "records": COMMANDS["speed"],
}
"""Commands that write files; ``export`` and ``records`` are cases of `report --export` and `speed --records`."""


def _without_out(arguments: tuple[str, ...]) -> tuple[str, ...]:
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


def outputs(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which a command gets an output path that cannot be written to, or a full device as stdout."""
    name = rng.choice(sorted(OUTPUTS))
    templates.copy("run", folder)
    templates.copy("fit", folder)
    if rng.random() < 0.2:
        command = COMMANDS[rng.choice(sorted(set(COMMANDS) - {"fit", "predict"}))]
        json_too = ("--json",) if command[0] not in ("test",) and rng.random() < 0.6 else ()
        written = ("out*", "ex*", "rep*", "results*")
        return Prepared((*command, *json_too), f"{command[0]}: a full device as stdout", _full, "/dev/full", written)
    option = {"export": "--export", "records": "--records"}.get(name, "--out")
    base = OUTPUTS[name] if name in ("export", "records") else _without_out(OUTPUTS[name])
    what = rng.choice(["file", "below a file", "long name", "long path", "device", "link", "empty", "in the way"])
    place = _place(what, name, folder, rng)
    # The command may meet the obstacle only after it has written something.
    left = ("place*", "rep*", "results*") if what in ("in the way", "device", "link") else ("rep*",)
    check = partial(_check_output, what=what, place=place)
    arguments = (*base, option, place)
    return Prepared(arguments, f"{name}: {what}", check, left=left, touched=("place*",) if what == "in the way" else ())


def _place(what: str, name: str, folder: Path, rng: random.Random) -> str:
    """Make the obstacle of a case, and return the output path that meets it."""
    place = folder / "place"
    if what in ("file", "below a file"):
        place.write_text("mine")
        return "place/deep/er" if what == "below a file" else "place"
    if what == "long name":
        return "n" * 300
    if what == "long path":
        return "/".join(["n" * 200] * 30)
    if what == "device":
        return rng.choice(["/dev/full", "/dev/null/x", "/proc/x/y", "/dev/full/x"])
    if what == "link":
        place.symlink_to("place")
        return "place"
    if what == "empty":
        return ""
    names = [
        "records",
        "figures",
        "report.html",
        "report.md",
        "results.csv",
        "plan.json",
        "speed.json",
        ".lock",
        "box.png",
        "kernels.png",
        "LeNet5-Synthetic",
    ]
    # Put files where the command makes folders, and folders where it writes files.
    for entry in rng.sample(names, 3):
        path = place / entry
        path.parent.mkdir(exist_ok=True)
        if entry in ("records", "figures", "LeNet5-Synthetic"):
            path.write_text("mine")
        else:
            path.mkdir()
    return "place"


def _full(outcome: Outcome) -> Finding:
    return wrong(f"exit code {outcome.code} although nothing could be printed")


def _check_output(outcome: Outcome, what: str, place: str) -> Finding:
    """Judge an accepted output path: the command must succeed, and must not change files that were there before."""
    if what in ("file", "below a file"):
        return wrong("a file in the way was accepted")
    if what in ("long name", "long path", "link"):
        return wrong(f"'{what}' was accepted")
    if what == "in the way" and any(path.startswith("place/") for path in outcome.changed):
        return wrong(f"changed {outcome.changed[0]}")
    return RIGHT if outcome.code == 0 else wrong(f"exit code {outcome.code}")
