"""The ``cnnbench`` command: a table of commands, each a module of `cnnbench.commands` that is imported once chosen."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from cnnbench import __version__
from cnnbench.console import note, out_text, refusal
from cnnbench.errors import Stopped, UserError, unknown
from cnnbench.files import reason
from cnnbench.options import parse
from cnnbench.stopping import stoppable
from cnnbench.trust import Trust, enforced

TRAINING = {
    "fit": "train a network",
    "validate": "run the validation split",
    "test": "run the test set, once, whole",
    "predict": "compute class probabilities of the test set",
}
"""Commands of LightningCLI, which reads their options itself."""
COMMANDS = {
    "bench": "measure networks on data sets, a record per cell, and report",
    "report": "make tables, pictures and a page from records",
    "explain": "see what a CNN does: the instruments of a course",
    "count": "count parameters, MACs, training MACs and memory of any network",
    "speed": "time networks against each other: latency, throughput, training steps",
    "compare": "compare the records of two runs: costs, times, accuracy, each with its interval and a verdict",
    "list": "list the networks, what they cost and how good they are, and the data sets",
}
"""Commands of this package. A module of `cnnbench.commands` has ``Options``, a dataclass as in `cnnbench.options`;
``EXAMPLE``, a command line; and ``run(options)``, which returns the exit code. Where a file may give options, it also
has ``check_file``. The module of `explain`, whose tools are commands themselves, has ``main(words)`` instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Returns:
        0; 1 when a cell or a gate failed; 2 on bad input, and where something cannot be written; 128 and the number of
        the signal that stopped it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with stoppable(), enforced(Trust.in_arguments(words)):
            code = _run(words)
            if not sys.stdout.closed:
                sys.stdout.flush()
        return code
    except UserError as error:
        refusal(error)
    except Stopped as stop:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the others do not know what the first one kept
            note(f"cnnbench: stopped by {stop}; {stop.hint}")
        return stop.exit_code
    except KeyboardInterrupt:  # not by a signal, which raises Stopped
        note("cnnbench: interrupted")
        return 130
    except BrokenPipeError:
        _close_stdout()
        return 0
    except OSError as error:
        if error.filename is None:
            _close_stdout()
        refusal(_about_files(error))
    except MemoryError:
        note("cnnbench: the machine has not enough memory for this; take smaller images, batches or networks")
    except RecursionError:
        note("cnnbench: the input is nested too deeply; give a plainer one")
    return 2


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        out_text(_overview())
        return 0
    name, *rest = words
    if name == "--version":
        out_text(f"cnnbench {__version__}")
        return 0
    if name in TRAINING:
        fit = importlib.import_module("cnnbench.commands.fit")
        fit.main(list(words))
        return 0
    if name not in COMMANDS:
        raise unknown("command", name, [*TRAINING, *COMMANDS])
    module = importlib.import_module(f"cnnbench.commands.{name}")
    if name == "explain":
        return int(module.main(rest))
    return run_command(module, rest, f"cnnbench {name}")


def run_command(module: Any, words: Sequence[str], command: str) -> int:
    """Read the options of a command's module and run it.

    Args:
        module: A module with ``Options``, ``EXAMPLE`` and ``run``.
        words: The command line after the command.
        command: The command, as in ``cnnbench count``.
    """
    options = parse(module.Options, words, command, module.EXAMPLE, getattr(module, "check_file", None))
    return int(module.run(options))


def _overview() -> str:
    """Return the help of the command itself."""
    lines = ["usage: cnnbench COMMAND ...", "", "Which CNN, at what cost, how good, and why.", ""]
    for name, text in COMMANDS.items():
        lines.append(f"  {name:<9} {text}")
    for name, text in TRAINING.items():
        lines.append(f"  {name:<9} {text} (LightningCLI)")
    lines += ["", "`cnnbench COMMAND --help` has the options of a command, --version the version.", ""]
    lines.append("example: cnnbench bench --models LeNet5,ResNet18 --data CIFAR10 --budget 60s")
    return "\n".join(lines)


def _close_stdout() -> None:
    """Have what is still to be written go nowhere, so that Python does not fail on it once more at the end."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _about_files(error: OSError) -> str:
    """Return one line that says which file could not be written or read, and what to do."""
    name = f"'{error.filename}'" if error.filename is not None else "the output"
    mends = {
        errno.ENOSPC: "make room on the disk, or choose another folder with --out",
        errno.EDQUOT: "make room within your quota, or choose another folder with --out",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EMFILE: "allow more open files with ulimit -n",
    }
    mend = mends.get(error.errno or 0, "choose another folder with --out, or mend its permissions")
    return f"{name} cannot be written or read: {reason(error)}; {mend}"
