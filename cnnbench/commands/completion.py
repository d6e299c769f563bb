"""The command `cnnbench completion`: print the script with which a shell completes commands, options and names.

The script is made by shtab from the parsers of all commands. It holds the names of networks and data sets that the
catalogue had when it was printed.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import shtab

from cnnbench.catalog import data_forms, load_catalog
from cnnbench.commands import gallery
from cnnbench.commands.fit_help import OPTIONS as OPTIONS_OF_FIT
from cnnbench.console import out_text
from cnnbench.explain.options import TOOLS
from cnnbench.options import facts_of, make_parser, option, parse

EXAMPLE = "bash > ~/.local/share/bash-completion/completions/cnnbench"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print the script with which a shell completes commands, options, and names of networks and data sets."""

    shell: Literal["bash", "zsh", "tcsh"] = option("Shell: bash, zsh or tcsh.", positional=True, metavar="SHELL")


def main(words: Sequence[str], commands: Mapping[str, str]) -> int:
    """Print the script for a shell; return 0.

    Args:
        words: Words of the command line after ``completion``.
        commands: All commands with their help texts.

    Raises:
        UserError: The shell is unknown.
    """
    options = parse(Options, words, "cnnbench completion", EXAMPLE)
    parser = whole_parser(commands)
    out_text(shtab.complete(parser, shell=options.shell))
    return 0


def whole_parser(commands: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return a parser of all commands, whose options know which names and files may follow them."""
    names = {"models": list(load_catalog()["models"]), "data": [n for n, form in data_forms().items() if n == form]}
    root = argparse.ArgumentParser("cnnbench")
    root.add_argument("--version", action="store_true", help="Print the version.")
    parsers = {name: _parser_of(name, names) for name in commands}
    _add(root, parsers, commands)
    return root


def _add(root: argparse.ArgumentParser, parsers: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Add parsers as the subcommands of another one."""
    waiting = iter(parsers.values())
    # argparse makes the parser of a subcommand itself, so the next one is handed to it.
    below = root.add_subparsers(parser_class=lambda **_: next(waiting))  # type: ignore[call-overload]
    for name in parsers:
        below.add_parser(name, help=texts[name])


def _parser_of(name: str, names: Mapping[str, Sequence[str]]) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    command = f"cnnbench {name}"
    if name in OPTIONS_OF_FIT:
        return _parser_of_fit(name, names)
    if name == "explain":
        explain = argparse.ArgumentParser(command)
        tools = {tool: _filled(about.options, f"{command} {tool}", names) for tool, about in TOOLS.items()}
        tools["gallery"] = _filled(gallery.Options, f"{command} gallery", names)
        _add(explain, tools, dict.fromkeys(tools, ""))
        return explain
    options = Options if name == "completion" else importlib.import_module(f"cnnbench.commands.{name}").Options
    return _filled(options, command, names)


def _filled(options: type, command: str, names: Mapping[str, Sequence[str]]) -> argparse.ArgumentParser:
    """Return the parser of a dataclass of options, with what may follow each of them."""
    parser = make_parser(options, command)
    parser.add_argument("--plain", action="store_true", help="Leave out colours, bars and lines around tables.")
    for action in parser._actions:
        found = facts_of(options, action.dest)
        if found is None:
            continue
        if found.names is not None:
            action.choices = names[found.names]
        elif found.choices:
            action.choices = found.choices
        elif found.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def _parser_of_fit(name: str, names: Mapping[str, Sequence[str]]) -> argparse.ArgumentParser:
    """Return a parser of the options of a training that matter first; LightningCLI's own would need torch."""
    parser = argparse.ArgumentParser(f"cnnbench {name}", conflict_handler="resolve")
    for text, help_text in (*OPTIONS_OF_FIT[name], ("--plain", "leave out colours and bars")):
        flag, _, metavar = text.partition(" ")
        if not metavar:
            parser.add_argument(flag, action="store_true", help=help_text)
            continue
        action = parser.add_argument(flag, help=help_text.replace("%", "%%"))
        if flag in ("--model", "--data"):
            action.choices = names["models" if flag == "--model" else "data"]
        elif metavar in ("FILE", "DIR"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif metavar.islower():  # words to choose from, or the only one
            action.choices = metavar.split("|")
    return parser
