"""Cases with networks of the user that misbehave: they raise, return something else, or have a strange name."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

from campaigns.fuzz_cases import records_of
from campaigns.fuzz_fork import Outcome
from campaigns.fuzz_judge import RIGHT, Finding, Prepared, wrong
from campaigns.fuzz_options import COMMANDS
from campaigns.fuzz_templates import Templates

BEFORE = """import sys, os, torch
from torch import nn
class Mine(BaseException):
    pass
class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer = nn.Sequential(nn.Flatten(), nn.LazyLinear(10) if options.get("lazy") else nn.Linear(3072, 10))
    def forward(self, x):
        return self.layer(x)
def good(num_classes=10, name=""):
    return Net()
"""
"""Start of the module ``mine`` of a case, with a network that works."""
RAISED = (
    "SystemExit(0)",
    "SystemExit(3)",
    "SystemExit('bye')",
    "KeyboardInterrupt()",
    "Mine('odd')",
    "GeneratorExit()",
    "ValueError('\\x1b[2J')",
    "MemoryError()",
    "RecursionError('deep')",
    "StopIteration()",
    "OSError(28, 'full')",
    "UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')",
    "AssertionError()",
    "ValueError('a\\nb\\nc')",
    "ImportError('x')",
    "KeyError('x')",
    "BrokenPipeError()",
    "TimeoutError()",
    "Exception('z' * 100000)",
    "ExceptionGroup('g', [ValueError('x')])",
    "EOFError()",
    "StopAsyncIteration()",
)
"""Exceptions that a network raises, as Python code."""
RETURNED = (
    "None",
    "3",
    "'text'",
    "Net",
    "[Net()]",
    "object()",
    "torch.zeros(3)",
    "lambda x: x",
    "nn.Identity()",
    "Net().half()",
    "Net().to('meta')",
    "Net(lazy=True)",
    "nn.Sequential()",
    "type('E', (), {})()",
)
"""Values that are returned in place of a network, and unusual networks, as Python code."""
NAMES = (
    "",
    " ",
    ":",
    "a:",
    ":b",
    "a:b:c",
    "mine:good:x",
    "torchvision:",
    "timm:",
    "torchvision:resnet1000",
    "mine:nothing",
    "nothing:good",
    "mine.good",
    "os:getcwd",
    "os:_exit(status=0)",
    "builtins:exit",
    "builtins:input",
    "sys:exit",
    "mine:good(",
    "mine:good)",
    "mine:good(3)",
    "mine:good(**{})",
    "mine:good(x=lambda: 1)",
    "mine:good(name=__import__('os'))",
    "mine:good(x=1)",
    "..:x",
    "mine:good(name='\x1b[2J')",
    "LeNet5(form=None)",
    "torchvision:resnet18(weights=DEFAULT)",
    "\x1b]0;x\x07:y",
    "mine:" + "n" * 5000,
    "n" * 5000,
    "e\u0301:x",
    "mine:__class__",
    "mine:__dict__",
    "torch:nn",
    "mine:good(name=1e999)",
    "mine:good(num_classes=99999999999999999999)",
)
"""Odd names of networks, most of them invalid."""


def names(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case with a network that does not exist, raises, returns something else, or has a strange name."""
    kind = rng.choice(
        ["raises", "raises in use", "returns", "import raises", "name", "name", "long", "breaks the rest"]
    )
    text = BEFORE
    model = "mine:bad"
    if kind == "raises":
        text += f"def bad(**_):\n    raise {rng.choice(RAISED)}\n"
    elif kind == "raises in use":
        text += f"class bad(Net):\n    def forward(self, x):\n        raise {rng.choice(RAISED)}\n"
    elif kind == "returns":
        text += f"def bad(**_):\n    return {rng.choice(RETURNED)}\n"
    elif kind == "import raises":
        text += f"raise {rng.choice(RAISED)}\n"
    elif kind == "name":
        model = rng.choice(NAMES)
    elif kind == "long":
        size = rng.choice([100, 195, 250, 4000])
        model = f"mine:good(name='{'n' * size}')"
    else:
        text += rng.choice(
            [
                "def bad(**_):\n    sys.stdout.close()\n    return Net()\n",
                "def bad(**_):\n    print('{' * 100)\n    return Net()\n",
                "class bad(Net):\n    def parameters(self, *a, **k):\n        raise ValueError('no')\n",
                "class bad(Net):\n    def __getattr__(self, name):\n        raise Mine(name)\n",
                "class bad(Net):\n    def state_dict(self, *a, **k):\n        return 3\n",
                "class bad(Net):\n    def train(self, mode=True):\n        raise SystemExit(0)\n",
                "def bad(**_):\n    return torch.nn.Linear(10**7, 10**7)\n",
            ]
        )
    (folder / "mine.py").write_text(text)
    command = rng.choice(["bench", "bench", "count", "speed", "explain", "fit"])
    # In `bench` LeNet5 runs beside the odd network, and its cell must succeed whatever the other network does.
    arguments: tuple[str, ...] = {
        "bench": (
            "bench",
            "--models",
            model if "," in model or not model else f"LeNet5,{model}",
            *COMMANDS["bench"][3:],
        ),
        "count": ("count", model),
        "speed": ("speed", model, *COMMANDS["speed"][2:]),
        "explain": ("explain", "filters", model, "--out", "ex"),
        "fit": ("fit", "--model", model, *COMMANDS["fit"][3:]),
    }[command]
    what = f"{command}: {kind} {model[:50]!a} {text.removeprefix(BEFORE)[:160]!a}"
    return Prepared(arguments, what, partial(_check_network, command=command, kind=kind, model=model))


def _check_network(outcome: Outcome, command: str, kind: str, model: str) -> Finding:
    """Judge an accepted network: it must work, or its cell must fail with a reason while LeNet5 beside it succeeds."""
    if command != "bench":
        return RIGHT if outcome.code == 0 else _failed_rows(outcome, command)
    records = records_of(outcome.folder / "out")
    failed = [record for record in records if record["status"] == "error"]
    if failed and outcome.code == 1:
        lenet = [record for record in records if record["model"] == "LeNet5"]
        whole = all(record["reason"] for record in failed) and all(r["status"] == "ok" for r in lenet)
        return Finding("failed cell") if whole else wrong("a failed cell without a reason, or one too many")
    if failed or outcome.code != 0:
        return wrong(f"{len(failed)} failed cells and exit code {outcome.code}")
    if kind in ("raises", "import raises"):
        return wrong("a network that raises was measured")
    return RIGHT if records and (outcome.folder / "out" / "report.md").is_file() else wrong("no records, or no report")


def _failed_rows(outcome: Outcome, command: str) -> Finding:
    """Judge exit code 1 of a command other than `bench`: only `speed` and `count` may return it, with a message."""
    said = "failed" in (outcome.stdout + outcome.stderr) or "cnnbench: " in outcome.stderr
    return Finding("failed cell") if command in ("speed", "count") and said else wrong(f"exit code {outcome.code}")
