"""A process of its own for everything that talks to W&B's server, which therefore cannot hold up a benchmark.

`cnnbench.report.uploading` starts it with one of these lines as arguments::

    account                         print as JSON who is logged in, or why nobody can
    connection                      print as JSON an error if there is no connection with the server
    workspace ENTITY PROJECT GROUP  save a workspace for a group of runs, and print its address as JSON, or an error
    sync NICE [--live] FOLDER ...   upload recorded runs, with --live while they are still being recorded

It ends when the process that started it ends. NICE is by how much an upload gives way to other processes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cnnbench.console import out
from cnnbench.report.uploading import END, LOG_FILE

CONNECT_S, TIMEOUT_S = 5, 10
"""Seconds to wait for a connection with the server, and for each of its answers to the question who is logged in."""


def main(words: list[str]) -> None:
    """Do what the words after the program's name say.

    Args:
        words: Word for what is to be done, and its arguments.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    questions: dict[str, Callable[..., dict[str, str]]] = {
        "account": _account,
        "connection": _connection,
        "workspace": _workspace,
    }
    if words[0] in questions:
        try:
            answer = questions[words[0]](*words[1:])
        except Exception as error:  # whatever is wrong, the command goes on without the server
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        out(json.dumps(answer))
        return
    if hasattr(os, "nice"):  # not on Windows
        os.nice(int(words[1]))
    live = [word for word in words[2:] if word == "--live"]
    for folder in words[2 + len(live) :]:
        _sync(Path(folder), live)


def _sync(run: Path, options: list[str]) -> None:
    """Upload one run, with all output in a file in its folder, whose last line is `END`.

    W&B's client would upload several runs at once, but one that it cannot read keeps it from uploading the others.
    """
    from wandb.cli.cli import cli

    with (run / LOG_FILE).open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    try:
        cli(["beta", "sync", *options, str(run)], standalone_mode=False)
    except (Exception, SystemExit) as error:  # the next run is uploaded all the same
        out(f"ERROR {type(error).__name__}: {error}")
    out(END)


def _end_with_parent() -> None:
    """End this process as soon as the other end of its standard input is closed, at the latest by its parent's end."""
    # Nothing is written to it. A buffered read would hold a lock that Python wants at its own end.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _client() -> Any:
    """Return the package wandb; its import takes a second, during which this process already watches its parent."""
    import wandb

    return wandb


def _account() -> dict[str, str]:
    """Return the default ``entity`` of the user and the address ``app`` of the server's pages, or an ``error``."""
    wandb = _client()
    if not wandb.login(prompt=False, verify=False):
        return {"error": "no key (WANDB_API_KEY or `wandb login`)"}
    # Without this check, the client would try again until the time is over.
    _connection()
    entity = wandb.Api(timeout=TIMEOUT_S).default_entity or ""
    return {"entity": entity, "app": wandb.setup().settings.app_url}


def _connection() -> dict[str, str]:
    """Return an empty answer if the server can be connected with.

    Raises:
        OSError: There is no connection.
    """
    _check_port(_client().setup().settings.base_url)
    return {}


def _workspace(entity: str, project: str, group: str) -> dict[str, str]:
    """Return the address ``url`` of a new workspace for a group of runs."""
    from cnnbench.report.wandb_workspace import make_workspace

    return {"url": make_workspace(entity, project, group)}


def _check_port(url: str) -> None:
    """Raise OSError unless a server can be connected with; nothing is checked if connections go through a proxy."""
    address = urlsplit(url)
    if address.hostname is None or urllib.request.getproxies():
        return
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise OSError(f"no connection with {url} ({error})") from error


if __name__ == "__main__":
    main(sys.argv[1:])
