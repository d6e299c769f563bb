"""Cases with wrong options of every command: names, values, too many, too few, and options that contradict each other.

Whether a value is valid is decided here by the words of the help texts, independently of the package.
"""

from __future__ import annotations

import json
import math
import random
import re
import shlex
from functools import partial
from pathlib import Path

from campaigns.fuzz_cases import records_of
from campaigns.fuzz_fork import Outcome
from campaigns.fuzz_judge import RIGHT, Finding, Prepared, wrong
from campaigns.fuzz_templates import LAST, SMALL, Templates

_DATA = "--data Synthetic --data_options '{train_images: 60, test_images: 20}' --batch_size 16"
_SMALL = shlex.join(SMALL)
_FIT = "--model LeNet5 --data Synthetic --data.train_images 60 --data.test_images 20 --data.batch_size 16"
_SHORT = "--trainer.max_epochs 1 --trainer.max_steps 8"
"""Options that end a training after a few steps, even if a case asks for more epochs."""
_COMMANDS = {
    "bench": f"bench --models LeNet5 {_DATA} --measures complexity --epochs 1 --device cpu --out out",
    "count": "count LeNet5",
    "speed": "speed LeNet5 --rounds 2 --batch_size 2 --train_batch_size 2 --device cpu",
    "report": "report run --out rep",
    "compare": "compare run run",
    "list": "list",
    "fit": f"fit {_FIT} {_SHORT} --trainer.limit_train_batches 2 --out out {_SMALL}",
    "test": f"test --ckpt_path {LAST} --out out {_SMALL}",
    "predict": f"predict --ckpt_path {LAST} --out out {_SMALL}",
    "explain filters": "explain filters LeNet5 --out ex",
    "explain kernels": "explain kernels --kernels box --out ex",
    "explain parameters": "explain parameters --out ex",
    "explain confusions": "explain confusions run --out ex",
}
COMMANDS = {name: tuple(shlex.split(text)) for name, text in _COMMANDS.items()}
"""Arguments of a short call of each command, which succeeds."""
WHOLE, ABOVE0, SHARE, SEED, NAME, GATE = "whole", "above 0", "share", "seed", "name", "gate"
"""Kinds of values: whole number, number above 0, share from 0 to 1, seed, name or other text, limit of a gate."""
OPTIONS: dict[str, dict[str, str]] = {
    "bench": {
        "--models": NAME,
        "--data": NAME,
        "--measures": NAME,
        "--seeds": SEED,
        "--budget": ABOVE0,
        "--epochs": WHOLE,
        "--device": NAME,
        "--precision": NAME,
        "--batch_size": WHOLE,
        "--speed_batch_size": WHOLE,
        "--processes": WHOLE,
        "--eval_batch_size": WHOLE,
        "--learning_rate": ABOVE0,
        "--data_dir": NAME,
        "--data_options": NAME,
        "--wandb": NAME,
    },
    "count": {
        "--in_channels": WHOLE,
        "--image_size": WHOLE,
        "--num_classes": WHOLE,
        "--batch_size": WHOLE,
        "--precision": NAME,
        "--optimizer": NAME,
    },
    "speed": {
        "--rounds": WHOLE,
        "--batch_size": WHOLE,
        "--train_batch_size": WHOLE,
        "--seed": SEED,
        "--device": NAME,
        "--precision": NAME,
        "--memory_format": NAME,
        "--mode": NAME,
        "--cudnn_benchmark": NAME,
        "--processes": WHOLE,
        "--image_size": WHOLE,
    },
    "report": {"--wandb": NAME},
    "compare": {"--gate": GATE},
    "list": {},
    "fit": {
        "--model": NAME,
        "--data": NAME,
        "--data.train_images": WHOLE,
        "--data.batch_size": WHOLE,
        "--data.image_size": WHOLE,
        "--data.val_fraction": SHARE,
        "--data.subset": WHOLE,
        "--model.learning_rate": ABOVE0,
        "--model.label_smoothing": SHARE,
        "--trainer.max_epochs": WHOLE,
        "--trainer.precision": NAME,
        "--trainer.accelerator": NAME,
        "--seed_everything": SEED,
        "--trainer.gradient_clip_val": ABOVE0,
        "--data.split_seed": SEED,
        "--wandb": NAME,
    },
    "test": {
        "--trainer.limit_test_batches": WHOLE,
        "--model": NAME,
        "--data": NAME,
        "--data.test_images": WHOLE,
        "--trainer.precision": NAME,
    },
    "predict": {"--trainer.limit_predict_batches": WHOLE, "--data.test_images": WHOLE},
    "explain filters": {
        "--layer": NAME,
        "--sort": NAME,
        "--filters": WHOLE,
        "--seed": SEED,
        "--image_size": WHOLE,
        "--in_channels": WHOLE,
        "--num_classes": WHOLE,
        "--data": NAME,
    },
    "explain kernels": {"--kernels": NAME, "--size": WHOLE, "--sigma": ABOVE0},
    "explain parameters": {},
    "explain confusions": {"--models": NAME, "--pairs": WHOLE, "--data": NAME},
}
"""Options of each command with the kind of their value."""
NUMBERS = (
    *"0 -1 -0 nan inf -inf 1e999 1e-320 0.5 1_000 0x10 ٣ 1e3 99999999999999999999".split(),
    *"2147483648 4294967296 1,2 true None null 1;2 --1 100000 3".split(),
    "",
    " ",
    "1" * 40,
)
"""Values for options that take a number, valid and invalid ones."""
WORDS = (
    "",
    " ",
    "x" * 3000,
    "naïve漢字🙂",
    "\x1b[2Jx",
    "a\nb",
    "\u202egnp",
    "../..",
    "/dev/zero",
    "LeNet5,LeNet5",
    ",",
    "LeNet5,",
    "None",
    "null",
    "nan",
    "-1",
    "[1, 2]",
    "{a: 1}",
    "{a: &a [*a]}",
    "!!python/name:os.system",
    "a" + "(" * 500,
    "(",
    "LeNet5(",
    "LeNet5()",
    "LeNet5(x=1)",
    "lenet5",
    "os:system(command='touch pwned')",
    "torchvision:nothing",
    "timm:nothing",
    "%s",
    "$(touch pwned)",
    "`touch pwned`",
    "\udce9",
    "cuda:99",
    "Synthetic,Synthetic",
    "{image_size: 100000}",
    "{train_images: -1}",
    "{train_images: 1.5}",
    "{image_size: nan}",
    "{train_images: [1]}",
    "{'': 1}",
)
"""Values for options that take a name or a text, valid and invalid ones."""


def options(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which a command gets an odd option: value, name, number of values, or a contradiction."""
    name = rng.choice(sorted(COMMANDS))
    arguments = list(COMMANDS[name])
    if name in ("report", "compare", "explain confusions"):
        templates.copy("run", folder)
    if name in ("test", "predict"):
        templates.copy("fit", folder)
    choice = rng.random()
    known = OPTIONS[name]
    left = ("out", "out/*") if name in ("predict", "test", "fit") else ()
    if known and choice < 0.7:
        option = rng.choice(sorted(known))
        value = rng.choice(NUMBERS if known[option] != NAME or rng.random() < 0.2 else WORDS)
        _set(arguments, option, value)
        check = partial(_check_value, option=option, value=value, kind=known[option])
        return Prepared(tuple(arguments), f"{name}: {option} {value[:40]!a}", check, left=left if value == "" else ())
    what = rng.choice(["unknown", "abbreviation", "no value", "positional", "twice", "contradiction", "no command"])
    if what == "unknown":
        arguments += [rng.choice(["--surprise", "--", "-x", "--\x1b[2J", "--é", "-", "--models.x=1", "--=1"]), "1"]
    elif what == "abbreviation":
        arguments += [rng.choice(["--jso", "--mod", "--ou", "--conf"]), "x"]
    elif what == "no value":
        arguments.append(rng.choice(sorted(known)) if known else "--out")
    elif what == "positional":
        arguments.insert(rng.randrange(1, len(arguments) + 1), rng.choice(["extra", "", "\x1b[2J", "x" * 2000]))
    elif what == "no command":
        arguments[0] = rng.choice(["bnch", "", "-", "--", "BENCH", "\x1b[2J", "x" * 3000, "bench ", "é"])
    elif what == "twice":
        arguments += arguments[1:] if name != "list" else ["--json", "--json"]
        return Prepared(tuple(arguments), f"{name}: all options twice", _succeeds)
    else:
        arguments += _contradiction(name)
    return Prepared(tuple(arguments), f"{name}: {what}", partial(_check_odd, what=what))


def _set(arguments: list[str], option: str, value: str) -> None:
    if option in arguments:
        arguments[arguments.index(option) + 1] = value
    else:
        arguments += [option, value]
    if option == "--budget" and "--epochs" in arguments:
        at = arguments.index("--epochs")
        del arguments[at : at + 2]


def _contradiction(name: str) -> list[str]:
    """Return options that contradict those in `COMMANDS`, need others that are missing, or have an invalid value."""
    return {
        "bench": ["--budget", "30s"],
        "count": ["--per_layer", "--precision", "bf16"],
        "speed": ["--mode", "cuda-graph"],
        "report": ["--export", "run"],
        "compare": ["--gate", "-1"],
        "list": ["--json=maybe"],
        "fit": ["--model.num_classes", "7"],
        "test": ["--model", "ResNet18"],
        "predict": ["--model", "ResNet18"],
        "explain filters": ["--ckpt_path", "nowhere.ckpt"],
        "explain kernels": ["--sigma", "-1"],
        "explain parameters": ["--out"],
        "explain confusions": ["--predictions", "nowhere.csv"],
    }[name]


def _number(text: str) -> float | None:
    try:
        # YAML reads 0x10 as 16.
        return float(int(text, 16)) if text.startswith("0x") else float(text)
    except ValueError:
        return None


def _fits(value: str, kind: str) -> bool:
    """Return whether a text is a valid value of its kind, by the words of the help texts."""
    number = _number(value)
    if kind == SEED:
        numbers = [_number(part.strip().replace("_", "")) for part in value.split(",")]
        return all(number is not None and 0 <= number < 2**32 and number == int(number) for number in numbers)
    if value.lower() in ("none", "null", "true") and kind != NAME:
        return True  # valid YAML for the training commands; the other commands must refuse it themselves
    if number is None or math.isnan(number):
        return kind == NAME
    if kind == WHOLE:
        return number >= 0 and number == int(number) if math.isfinite(number) else False
    limits = {ABOVE0: (0.0, math.inf), SHARE: (0.0, 1.0), GATE: (0.0, math.inf)}
    low, high = limits.get(kind, (-math.inf, math.inf))
    return low <= number <= high and math.isfinite(number)


def _check_value(outcome: Outcome, option: str, value: str, kind: str) -> Finding:
    """Judge an accepted value: it must be valid for its option, and the plan of a benchmark must contain it."""
    # Lightning judges its own options: limits of batches are counts or shares, and -1 epochs mean no end.
    if option.startswith("--trainer."):
        return RIGHT if outcome.code == 0 else wrong(f"exit code {outcome.code}")
    # The seed of `speed` and `explain` may be any whole number; that of a training has 32 bits.
    if not _fits(value, WHOLE if option == "--seed" else kind):
        return wrong(f"{option} {value[:40]!a} was accepted")
    path = outcome.folder / "out" / "plan.json"
    if path.is_file():
        planned = json.loads(path.read_text())
        key = option.removeprefix("--")
        number = _number(value)
        if number is not None and isinstance(planned.get(key), (int, float)) and planned[key] != number:
            return wrong(f"{option} {value} became {planned[key]}")
        if any(record["status"] == "error" for record in records_of(outcome.folder / "out")):
            return Finding("failed cell") if outcome.code == 1 else wrong("a failed cell and exit code 0")
    if outcome.code == 1 and re.search(r"^\S+ failed: ", outcome.stderr, re.MULTILINE):
        return Finding("failed cell")  # for example if images do not fit into memory
    if outcome.code == 1 and "gate" not in option:
        return wrong("exit code 1")
    return RIGHT


def _succeeds(outcome: Outcome) -> Finding:
    return RIGHT if outcome.code == 0 else wrong(f"exit code {outcome.code}")


def _check_odd(outcome: Outcome, what: str) -> Finding:
    """Judge an accepted odd command line: only the help text can be a right answer."""
    if what in ("unknown", "abbreviation", "no value", "contradiction", "no command"):
        helped = outcome.code == 0 and "usage:" in outcome.stdout.lower()
        return RIGHT if helped else wrong(f"{what} was accepted")
    return wrong("a further argument was passed over")
