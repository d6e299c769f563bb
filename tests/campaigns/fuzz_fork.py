"""Run the command of the project in a forked child, so that a case of the fuzz costs no start-up.

The parent imports everything and computes nothing: a child of a process whose torch has computed may wait for threads
that it does not have. The child does what the interpreter does for a real process: it prints a traceback of what is not
caught, flushes its output and turns both into an exit code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

MOST_MEMORY = 12 * 2**30
"""Bytes of address space of a child: what would take more is refused by the system and not by the whole machine."""
HEAVY = (
    "cnnbench.cli",
    "cnnbench.commands.fit",
    "cnnbench.benchmark.run",
    "cnnbench.report.outputs",
    "cnnbench.report.compare",
    "cnnbench.benchmark.display",
    "cnnbench.report.figures",
    "cnnbench.report.tracking",
    "cnnbench.explain.confusions",
    "cnnbench.explain.filters",
    "cnnbench.explain.kernels",
    "cnnbench.models",
    "cnnbench.commands.count",
    "cnnbench.commands.speed",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "torchvision.models",
)
"""Modules that the parent imports for its children."""
Command = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: Exit code as `subprocess` gives it; negative for a signal.
        stdout: What it printed.
        stderr: The same.
        folder: Where it ran.
        hung: Whether it was ended because it took too long.
        seconds: How long it took.
        before: Hashes of the files that were there before, by path below the folder.
        after: The same, afterwards.
    """

    code: int
    stdout: str
    stderr: str
    folder: Path
    hung: bool = False
    seconds: float = 0.0
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)

    @property
    def new(self) -> list[str]:
        """Files and folders that were not there before."""
        return sorted(set(self.after) - set(self.before))

    @property
    def changed(self) -> list[str]:
        """Files that are gone or have other content."""
        return sorted(path for path, digest in self.before.items() if self.after.get(path) != digest)


@dataclass
class Child:
    """A command at work."""

    pid: int
    folder: Path
    out: Path
    limit_s: float
    before: dict[str, str]
    start: float = field(default_factory=time.monotonic)

    def poll(self) -> Outcome | None:
        """Return how it ended; None while it is at work. One that is past its limit is killed."""
        seconds = time.monotonic() - self.start
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        hung = pid == 0 and seconds > self.limit_s
        if pid == 0 and not hung:
            return None
        # Also what it started, such as git or the processes of a timing.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if hung:
            _, status = os.waitpid(self.pid, 0)
        texts = [(self.out / name).read_text("utf-8", errors="backslashreplace") for name in ("stdout", "stderr")]
        code = os.waitstatus_to_exitcode(status)
        return Outcome(code, texts[0], texts[1], self.folder, hung, seconds, self.before, hashes(self.folder))


def preload(names: Sequence[str] = HEAVY) -> None:
    """Import what the commands need; modules that are not there are left out."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def product_main() -> Command:
    """Return the command of the project."""
    return cast(Command, importlib.import_module("cnnbench.cli").main)


def hashes(folder: Path) -> dict[str, str]:
    """Return a hash of every file below a folder; links, folders and pipes are named as what they are."""
    found: dict[str, str] = {}
    for base, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(base, name)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            if os.path.islink(path):
                found[key] = "link"
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    found[key] = hashlib.sha1(file.read()).hexdigest()
            else:
                found[key] = "folder" if os.path.isdir(path) else "special"
    return found


def start(
    arguments: Sequence[str],
    folder: Path,
    out: Path,
    limit_s: float,
    command: Command | None = None,
    stdout: str = "",
    modules: Path | None = None,
    pictures: bool = True,
) -> Child:
    """Start a command in a child.

    Args:
        arguments: Of the command.
        folder: Where it runs.
        out: Folder for its output, not below the one where it runs.
        limit_s: Seconds after which it is killed.
        command: What is run; None for that of the project.
        stdout: File that stdout goes to in place of ours, such as ``/dev/full``.
        modules: File that the child lists its modules in at its end.
        pictures: Whether pictures are drawn; see `_draw_nothing`.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = hashes(folder)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid == 0:
        try:
            if not pictures:
                _draw_nothing()
            _be_child(arguments, folder, out, command or product_main(), stdout, modules)
        finally:
            os._exit(111)
    return Child(pid, folder, out, limit_s, before)


def run(arguments: Sequence[str], folder: Path, out: Path, limit_s: float, **options: Any) -> Outcome:
    """Run a command in a child to its end; see `start`."""
    child = start(arguments, folder, out, limit_s, **options)
    while (outcome := child.poll()) is None:
        time.sleep(0.005)
    return outcome


def _be_child(
    arguments: Sequence[str], folder: Path, out: Path, command: Command, stdout: str, modules: Path | None
) -> NoReturn:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    _environment(folder)
    targets = (os.devnull, stdout or str(out / "stdout"), str(out / "stderr"))
    (out / "stdout").touch()
    for number, path in enumerate(targets):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        handle = os.open(path, flags if number == 0 or not stdout or number == 2 else os.O_WRONLY)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8", "strict")
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    sys.argv = ["cnnbench"]
    code = _exit_code(arguments, command)
    if modules is not None:
        with modules.open("a") as file:
            file.write("\n".join(sys.modules) + "\n")
    os._exit(code)


def _draw_nothing() -> None:
    """Have matplotlib save an empty picture: drawing takes most of the time of a case, and few kinds are about it."""
    from matplotlib.figure import Figure
    from PIL import Image

    def savefig(figure: Figure, fname: Any, *, format: str | None = None, **options: Any) -> None:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, format="PNG")
        content = file.getvalue()
        if format == "svg":
            content = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"></svg>\n'
        if hasattr(fname, "write"):
            fname.write(content if not isinstance(fname, io.TextIOBase) else content.decode())
        else:
            Path(fname).write_bytes(content)

    replaced: Any = Figure
    replaced.savefig = savefig
    replaced.draw_without_rendering = lambda figure: None


def _environment(folder: Path) -> None:
    """Set the environment of a case: no data, keys or cache of the user, and no network."""
    for name in ("CNNBENCH_DATA", "CNNBENCH_MIRROR", "WANDB_API_KEY"):
        os.environ.pop(name, None)
    # A proxy that refuses at once: a case never downloads.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        os.environ[name] = "http://127.0.0.1:9"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["NETRC"] = str(folder / "no-netrc")
    sys.path.insert(0, str(folder))  # modules of the case, as `python -m` finds them


def _exit_code(arguments: Sequence[str], command: Command) -> int:
    """Return the exit code that the interpreter would end with."""
    import torch

    torch.set_num_threads(1)
    try:
        code: object = command(list(arguments))
    except SystemExit as error:
        code = error.code
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        pass  # ValueError: a network has closed it, which the interpreter passes over too
    except Exception as error:
        print(f"Exception ignored in: {sys.stdout!r}\n{type(error).__name__}: {error}", file=sys.stderr)
        code = 120
    with contextlib.suppress(ValueError):
        sys.stderr.flush()
    return int(code or 0) & 0xFF if isinstance(code, int) else 0
