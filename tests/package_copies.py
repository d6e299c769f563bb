"""Commands of a copy of the package, to which a test has added a file or a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def outputs_of_commands(package: Path, *commands: list[str]) -> list[str]:
    """Return what commands of a copy of the package print on stdout; one process runs all, with a short timing."""
    code = (
        "import contextlib, functools, io, json, sys\n"
        "import cnnbench\n"
        "from cnnbench.benchmark import run\n"
        "from cnnbench.cli import main\n"
        "assert cnnbench.__file__.startswith(sys.argv[1])\n"
        "run.SpeedConfig = functools.partial(run.SpeedConfig, rounds=6, warmup_s=0.1)\n"
        "outputs = []\n"
        "for words in json.loads(sys.argv[2]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as stream:\n"
        "        assert main(words) == 0, words\n"
        "    outputs.append(stream.getvalue())\n"
        "print(json.dumps(outputs))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(package), json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(package)},
    )
    assert done.returncode == 0, done.stderr
    outputs: list[str] = json.loads(done.stdout)
    return outputs
