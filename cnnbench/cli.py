"""The ``cnnbench`` command: it looks up a subcommand in a table and runs the module that implements it.

Each subcommand of this package is a module of `cnnbench.commands`, which is imported only when the subcommand is
chosen. Subcommands that do not need torch, such as ``list``, therefore start without it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import itertools
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

from cnnbench import __version__
from cnnbench.command_line import typed
from cnnbench.commands.fit_help import short_help, wants_all
from cnnbench.commands.known_names import check_names, check_words
from cnnbench.console import is_first_process, note, out_text, plain_output, refusal
from cnnbench.errors import WORKER_HINT, Stopped, UserError, unknown
from cnnbench.files import reason
from cnnbench.interrupts import requeue, stoppable
from cnnbench.options import parse
from cnnbench.progress import watching
from cnnbench.trust import Trust, enforced

TRAINING = {
    "fit": "train a network",
    "validate": "run the validation split",
    "test": "run the test set, once, whole",
    "predict": "compute class probabilities of the test set",
}
"""Subcommands that LightningCLI runs, with their help texts; LightningCLI parses their options itself."""
PLAIN_OPTION = "--plain"
COMMANDS = {
    "bench": "measure networks on data sets, a record per cell, and report",
    "pick": "choose a network by accuracy, time and cost, from records and publications",
    "report": "make tables, pictures and a page from records",
    "search": "search for the settings of a training by validation accuracy",
    "explain": "see what a CNN does: the tools of a course",
    "count": "count parameters, MACs, training MACs and memory of any network",
    "speed": "time networks against each other: latency, throughput, training steps",
    "compare": "compare the records of two runs: costs, times, accuracy, each with its interval and a verdict",
    "export": "write a network to a file for ONNX Runtime, OpenVINO or another engine, and compare the two",
    "card": "write a model card for each trained network of a run",
    "list": "list the networks, what they cost and how good they are, and the data sets",
    "completion": "print the script with which a shell completes commands, options and names",
}
"""Subcommands of this package, with their help texts.

Each is a module of `cnnbench.commands` that defines ``Options``, a dataclass as in `cnnbench.options`; ``EXAMPLE``, the
options of an example command line; and ``run(options)``, which returns the exit code. A module whose options may come
from a file can also define ``check_file``; see `cnnbench.options.parse`. The module of ``explain`` defines
``main(words)`` instead, because its tools are subcommands themselves, and that of ``completion`` ``main(words,
commands)``.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code.

    Args:
        arguments: Words of the command line after ``cnnbench``; None for those of this process.

    Returns:
        0 on success; 1 if a benchmark cell, a network or a gate failed; 2 for bad input, for a file that cannot be read
        or written, and for too little memory; 128 plus the number of the signal that stopped the command.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Every command takes this option, at any place.
    output: AbstractContextManager[None] = contextlib.nullcontext()
    if PLAIN_OPTION in words:
        words = [word for word in words if word != PLAIN_OPTION]
        output = plain_output()
    with output:
        return _guarded(words)


def _guarded(words: Sequence[str]) -> int:
    """Run a subcommand, report its errors in a line each, and return the exit code; see `main`."""
    try:
        with typed(words), stoppable(), enforced(Trust.in_arguments(words)), watching(_command(words)):
            code = _run(words)
            # A full disk or a closed pipe shows only when the buffer is written, so write it while errors are caught.
            if not sys.stdout.closed:
                sys.stdout.flush()
        return code
    except UserError as error:
        refusal(error)
    except Stopped as stop:
        if is_first_process():  # which alone knows what was kept
            note(f"cnnbench: stopped by {stop}; {stop.hint}")
            requeue(stop.number, words, stop.goes_on)
        return stop.exit_code
    except KeyboardInterrupt:  # not from a signal, since that raises Stopped
        note("cnnbench: interrupted")
        return 130
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough; that is no failure.
        _close_stdout()
        return 0
    except OSError as error:
        # An error that names no file is taken to come from writing to stdout.
        if error.filename is None:
            _close_stdout()
        refusal(_about_files(error))
    except (MemoryError, RuntimeError) as error:
        note(f"cnnbench: {_about_resources(error)}")
    return 2


def _command(words: Sequence[str]) -> str:
    """Return the command in words, for the line that says that it is still running."""
    names = itertools.takewhile(lambda word: re.fullmatch(r"[a-z][a-z-]*", word), words[:2])
    return " ".join(["running cnnbench", *names])


def _about_resources(error: MemoryError | RuntimeError) -> str:
    """Return the message for an error that means that the machine has too little of something, or raise the error."""
    if isinstance(error, MemoryError):
        return "the machine has not enough memory for this; take smaller images, batches or networks"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply; give a plainer one"
    # torch's DataLoader raises this wherever the program is when one of its processes ends.
    if "DataLoader worker (pid" in str(error):
        return f"a process that decodes images has ended, {WORKER_HINT}"
    raise error


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        out_text(_overview())
        return 0
    name, *rest = words
    if name == "--version":
        out_text(f"cnnbench {__version__}")
        return 0
    if name in TRAINING:
        asked = wants_all(rest)
        if asked is False:
            out_text(short_help(name, TRAINING[name]))
            return 0
        if asked:
            words = [name, "--help"]
        check_words(rest)
        # LightningCLI parses the subcommand itself, so all four are one module, which gets all words.
        _module_of("fit").main(list(words))
        return 0
    if name not in COMMANDS:
        raise unknown("command", name, [*TRAINING, *COMMANDS])
    module = _module_of(name)
    if name == "explain":
        return int(module.main(rest))
    if name == "completion":
        return int(module.main(rest, COMMANDS | TRAINING))
    return run_command(module, rest, f"cnnbench {name}")


def _module_of(name: str) -> ModuleType:
    """Return the module of a subcommand, which is imported without Python's garbage collector.

    Torch and Lightning bring hundreds of thousands of objects, which are needed to the end. The collector would look at
    all of them several times during the import, then in each of its later rounds, and at the exit. Leaving them out
    takes about a quarter off the time of a short command.
    """
    path = f"cnnbench.commands.{name}"
    if path in sys.modules:
        return sys.modules[path]
    collecting = gc.isenabled()
    gc.disable()
    try:
        module = importlib.import_module(path)
        gc.freeze()  # later rounds leave out what there is now
    finally:
        if collecting:
            gc.enable()
    return module


def run_command(module: Any, words: Sequence[str], command: str) -> int:
    """Parse the options of a subcommand, run it and return its exit code.

    Args:
        module: Module of the subcommand, with ``Options``, ``EXAMPLE`` and ``run``.
        words: Words of the command line after the subcommand.
        command: Full name of the command, such as ``cnnbench count``.

    Raises:
        UserError: An option is unknown, missing or invalid, or the subcommand cannot do what is asked.
    """
    options = parse(module.Options, words, command, module.EXAMPLE, getattr(module, "check_file", None))
    check_names(options)
    return int(module.run(options))


def _overview() -> str:
    """Return the help of ``cnnbench`` itself: the list of its subcommands."""
    lines = ["usage: cnnbench COMMAND ...", "", "Which CNN, at what cost, how good, and why.", ""]
    for name, text in COMMANDS.items():
        lines.append(f"  {name:<10} {text}")
    for name, text in TRAINING.items():
        lines.append(f"  {name:<10} {text} (LightningCLI)")
    lines += ["", "`cnnbench COMMAND --help` has the options of a command, --version the version."]
    lines += ["--plain, with any command, leaves out colours, bars and the lines around tables.", ""]
    lines.append("example: cnnbench bench --models LeNet5,ResNet18 --data CIFAR10 --budget 60s")
    return "\n".join(lines)


def _close_stdout() -> None:
    """Redirect stdout to the null device, so that Python's flush at exit does not raise the same error again."""
    with contextlib.suppress(OSError, ValueError):  # stdout without a file descriptor, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _about_files(error: OSError) -> str:
    """Return one line that names the file that could not be written or read, and says what to do."""
    name = f"'{error.filename}'" if error.filename is not None else "the output"
    mends = {
        errno.ENOSPC: "make room on the disk, or choose another folder with --out",
        errno.EDQUOT: "make room within your quota, or choose another folder with --out",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EMFILE: "allow more open files with ulimit -n",
    }
    mend = mends.get(error.errno or 0, "choose another folder with --out, or mend its permissions")
    return f"{name} cannot be written or read: {reason(error)}; {mend}"
