"""Run the command of the project in a forked child process, so that a case of the fuzz costs no start-up.

The parent process imports everything but never computes with torch: after a computation torch has threads, which a fork
does not copy, and a child may wait for them for ever. The child does what the interpreter does at the end of a real
process: it prints the traceback of an uncaught exception, flushes its output, and turns both into an exit code.
"""

from __future__ import annotations

import contextlib
import gc
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
"""Bytes of address space of a child. The system refuses more, so that no case exhausts the memory of the machine."""
HEAVY = (
    "cnnbench.cli",
    "cnnbench.commands.fit",
    "cnnbench.benchmark.run",
    "cnnbench.report.outputs",
    "cnnbench.report.compare",
    "cnnbench.benchmark.display",
    "cnnbench.report.charts",
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
"""Function that runs a command from its arguments and returns its exit code."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Attributes:
        code: Exit code as `subprocess` returns it; negative if a signal ended the process.
        stdout: Text that the command printed on stdout.
        stderr: Text that the command printed on stderr.
        folder: Working folder of the command.
        hung: Whether the command was killed because it took too long.
        seconds: Run time in seconds.
        before: Hashes of the files in the folder before the command ran, by relative path.
        after: Hashes of the files in the folder afterwards, by relative path.
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
        """Return the files and folders that the command made."""
        return sorted(set(self.after) - set(self.before))

    @property
    def changed(self) -> list[str]:
        """Return the files that the command removed or changed."""
        return sorted(path for path, digest in self.before.items() if self.after.get(path) != digest)


@dataclass
class Child:
    """A command that runs in a child process.

    Attributes:
        pid: Number of the process.
        folder: Working folder of the command.
        out: Folder of the files ``stdout`` and ``stderr``.
        limit_s: Time limit in seconds.
        before: Hashes of the files in the folder before the command ran, by relative path.
        start: Time of the start, by the monotonic clock in seconds.
    """

    pid: int
    folder: Path
    out: Path
    limit_s: float
    before: dict[str, str]
    start: float = field(default_factory=time.monotonic)

    def poll(self) -> Outcome | None:
        """Return the outcome of the command, or None while it runs; kill it if it is past its time limit."""
        seconds = time.monotonic() - self.start
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        hung = pid == 0 and seconds > self.limit_s
        if pid == 0 and not hung:
            return None
        # Also kill the processes that the command started, such as git or the processes of a timing.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if hung:
            _, status = os.waitpid(self.pid, 0)
        texts = [(self.out / name).read_text("utf-8", errors="backslashreplace") for name in ("stdout", "stderr")]
        code = os.waitstatus_to_exitcode(status)
        return Outcome(code, texts[0], texts[1], self.folder, hung, seconds, self.before, hashes(self.folder))


def preload(names: Sequence[str] = HEAVY) -> None:
    """Import the modules that the commands need; those that cannot be imported are left out."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    # The collector of a child would write into all that it looks at, and so copy the memory of the parent.
    gc.freeze()


def product_main() -> Command:
    """Return the main function of the command `cnnbench`."""
    return cast(Command, importlib.import_module("cnnbench.cli").main)


def hashes(folder: Path) -> dict[str, str]:
    """Return a hash of every file below a folder, by relative path.

    Links, folders and special files have the words ``link``, ``folder`` and ``special`` in place of a hash.
    """
    # Walk through bytes, because file names may not be UTF-8.
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
    """Start a command in a forked child process.

    Args:
        arguments: Arguments of the command.
        folder: Working folder of the command.
        out: Folder for the output of the command, which must not be below `folder`.
        limit_s: Time limit in seconds, after which the command is killed.
        command: Command to run; None for the command of the project.
        stdout: File that receives stdout, such as ``/dev/full``; empty for a file in `out`.
        modules: File to which the child writes the names of its imported modules at the end; None to write none.
        pictures: Whether pictures are really drawn; see `_draw_nothing`.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = hashes(folder)
    # Text that is still in a buffer would be printed by the child too.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid == 0:
        try:
            if not pictures:
                _draw_nothing()
            _be_child(arguments, folder, out, command or product_main(), stdout, modules)
        finally:
            # The child must never return into the code of the parent.
            os._exit(111)
    return Child(pid, folder, out, limit_s, before)


def run(arguments: Sequence[str], folder: Path, out: Path, limit_s: float, **options: Any) -> Outcome:
    """Run a command in a child process, wait for its end and return its outcome; see `start` for the options."""
    child = start(arguments, folder, out, limit_s, **options)
    while (outcome := child.poll()) is None:
        time.sleep(0.005)
    return outcome


def _be_child(
    arguments: Sequence[str], folder: Path, out: Path, command: Command, stdout: str, modules: Path | None
) -> NoReturn:
    """Prepare the process of the child, run the command and exit with its code."""
    # In a session of its own the child leads a process group, which `Child.poll` can kill as a whole.
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    _environment(folder)
    targets = (os.devnull, stdout or str(out / "stdout"), str(out / "stderr"))
    (out / "stdout").touch()
    # Replace the file descriptors 0, 1 and 2, so that processes that the command starts use them too.
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
    """Make matplotlib save empty pictures: drawing takes most of the time of a case, and few kinds of case test it."""
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
    """Set the environment variables of a case: no data, keys or cache of the user, and no access to the network."""
    for name in ("CNNBENCH_DATA", "CNNBENCH_MIRROR", "WANDB_API_KEY"):
        os.environ.pop(name, None)
    # Nothing listens at this proxy, so a download fails at once.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        os.environ[name] = "http://127.0.0.1:9"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["NETRC"] = str(folder / "no-netrc")
    sys.path.insert(0, str(folder))  # find modules of the case, as `python -m` does


def _exit_code(arguments: Sequence[str], command: Command) -> int:
    """Run the command and return the exit code with which the interpreter would end."""
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
        pass  # ValueError: the code of a network has closed stdout, which the interpreter ignores too
    except Exception as error:
        print(f"Exception ignored in: {sys.stdout!r}\n{type(error).__name__}: {error}", file=sys.stderr)
        code = 120
    with contextlib.suppress(ValueError):
        sys.stderr.flush()
    return int(code or 0) & 0xFF if isinstance(code, int) else 0
