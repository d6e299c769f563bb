"""Names of networks and data sets: reading and writing of arguments in brackets, and import of the user's own code.

A name may have arguments, as in ``ResNet18(form=imagenet)`` or ``torchvision:EMNIST(split=letters)``. A name
``package.module:callable`` stands for code of the user's.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cnnbench.errors import Stopped, UserError, unknown
from cnnbench.trust import CodeKind, check_code, current

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
"""Number formats of a training, by Lightning's names; ``auto`` is the best one for this machine."""
INFERENCE_PRECISIONS = ("bf16-true", "16-true")
"""Further number formats for inference only, in which weights and images have 16 bits too."""
DEVICES = ("auto", "cpu", "cuda", "mps", "cuda:N")
"""Devices by torch's names; ``auto`` is the first GPU, else the CPU, and ``N`` stands for a number."""
MODES = ("eager", "compile", "cuda-graph")
"""Modes in which torch can run a network; see `cnnbench.timing.timed_network.Way`."""
MEMORY_FORMATS = ("channels_last", "contiguous")
"""Orders of the values of images in memory."""


@dataclass(frozen=True)
class Kind:
    """Kind of thing that names stand for, in words for messages.

    Attributes:
        word: Word for one of them.
        forms: Forms that a name may have.
        example: A name with arguments.
        code: Word for code of the user's that makes one, as in `cnnbench.trust`.
        others: The forms of names that are not listed, which end the message about an unknown name.
    """

    word: str
    forms: str
    example: str
    code: CodeKind
    others: str


MODEL = Kind(
    "model",
    "a name from `cnnbench list`, torchvision:NAME, timm:NAME or package.module:callable",
    "ResNet18(form=imagenet)",
    "network",
    "other networks are torchvision:NAME, timm:NAME and package.module:callable",
)
DATA = Kind(
    "data set",
    "a name from `cnnbench list --data`, folder:PATH, torchvision:NAME, medmnist:NAME or package.module:Class",
    "torchvision:EMNIST(split=letters)",
    "data set",
    "others are folder:PATH, torchvision:NAME, medmnist:NAME and package.module:Class",
)


def parse_name(name: str, kind: Kind = MODEL) -> tuple[str, dict[str, Any]]:
    """Split ``name(key=value, ...)`` into the name and its arguments; a value is a Python literal or a bare word.

    Args:
        name: Text to split.
        kind: Kind of thing that the name stands for, for messages.

    Raises:
        UserError: The text does not have this form.
    """
    match = re.fullmatch(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*", name, re.DOTALL)
    if match is None:
        raise UserError(f"cannot read {kind.word} '{name}'; give {kind.forms}, arguments as in {kind.example}")
    plain, text = match.groups()
    # With its bare words in quotes, the text is a call in Python's syntax, which Python's own parser can read.
    # A bare word stands between an equals sign and the next comma or the end.
    quoted = re.sub(r"(?<==)\s*([\w.+-]+)\s*(?=,|$)", _quoted, text or "")
    try:
        call = cast(ast.Call, ast.parse(f"f({quoted})", mode="eval").body)
        values = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        # Positional arguments, ** and repeated names are not accepted.
        if call.args or None in [k.arg for k in call.keywords] or len(values) < len(call.keywords):
            raise ValueError
    except (SyntaxError, ValueError):
        raise UserError(f"cannot read the arguments of {kind.word} '{name}'; write them as in {kind.example}") from None
    return plain, values


def call_words(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a name with arguments, ``name(key=value, ...)``, as `parse_name` reads it."""
    if not arguments:
        return name
    return f"{name}({', '.join(f'{key}={_as_word(value)}' for key, value in arguments.items())})"


def _as_word(value: Any) -> str:
    """Return an argument as `parse_name` reads it: a text as a bare word where possible, else as a Python literal."""
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.+-]*", value) and value.lower() not in _LITERALS
    return value if is_word else repr(value)


_LITERALS = {
    **dict.fromkeys(("true", "yes", "on"), "True"),
    **dict.fromkeys(("false", "no", "off"), "False"),
    **dict.fromkeys(("none", "null"), "None"),
}
"""Python's literal for each word of YAML that stands for true, false or none."""


def _quoted(word: re.Match[str]) -> str:
    """Return a bare word as Python source.

    A word such as ``cifar`` or ``3x3`` becomes a string. Numbers, and the words for true, false and none, keep their
    value.
    """
    if word[1].lower() in _LITERALS:
        return _LITERALS[word[1].lower()]
    try:
        ast.literal_eval(word[1])
    except (SyntaxError, ValueError):
        return repr(word[1])
    return word[1]


def unknown_name(kind: Kind, name: str, valid: Iterable[str]) -> UserError:
    """Return the error for a name that is none of the listed ones, with the forms of all other names."""
    return UserError(f"{unknown(kind.word, name, valid)}; {kind.others}")


def unknown_of_many(kind: str, name: str, valid: Sequence[str]) -> UserError:
    """Return the error for an unknown name where many are valid: the message shows only the similar ones."""
    near = difflib.get_close_matches(name, valid, n=8, cutoff=0.4) or list(valid)[:8]
    return UserError(f"{unknown(kind, name, near)}, and {len(valid) - len(near)} more")


def import_callable(name: str, module: str, attribute: str, kind: Kind = MODEL) -> Callable[..., Any]:
    """Import the class or function that makes a network or a data set.

    Args:
        name: Network or data set as it was named, for messages.
        module: Module to import.
        attribute: Name of the class or function in it.
        kind: Kind of thing that it makes.

    Raises:
        UserError: The module or the name is not there or not trusted, or it is nothing that makes one.
    """
    trust = current()
    if trust is not None:
        check_code(name, "a file", trust, kind.code)
    # Modules in the working folder can be imported, as with `python -m`.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except Stopped:
        raise
    except BaseException as error:  # the user's module may raise anything
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot import '{module}' of {kind.word} '{name}': {type(error).__name__}: {text}; "
            f"a {kind.word} is {kind.forms}"
        ) from error
    factory = getattr(found, attribute, None)
    if not callable(factory):
        public = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
        raise unknown_of_many(f"callable of module '{module}':", attribute, public)
    if inspect.isbuiltin(factory):  # such as os._exit, which would end the process silently
        raise UserError(
            f"'{name}' is a function that is not written in Python, which makes no {kind.code}; give a class or "
            "function that does"
        )
    return cast("Callable[..., Any]", factory)
