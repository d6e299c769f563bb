"""The parser of ``cnnbench fit``, and its messages in plain words: one line with the bad value and what to do."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from cnnbench.data import all_data
from cnnbench.errors import UserError, unknown
from cnnbench.models import all_models
from cnnbench.trust import OPTION


class Refused(SystemExit):
    """Exception that carries a message of the parser through jsonargparse.

    It is a `SystemExit`, because jsonargparse catches every other kind of error and then tries something else.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class Parser(LightningArgumentParser):
    """Parser that accepts no abbreviated options and raises `Refused` for an error, so that `explain` can reword it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise Refused(message)


def explain(message: str) -> UserError:
    """Return a UserError of one line with a hint, for a message of jsonargparse, which may have many lines.

    Args:
        message: Message of the parser. Its parts, such as the option and the value, are found by regular expressions.
    """
    text = " ".join(message.split())
    # A message can match several of the expressions, so the order counts.
    denied = _first(r"Importing '([^']+)' is not allowed", text)
    if denied:
        return UserError(
            f"a configuration names '{denied}', which is none of the networks, data sets and classes of Lightning and "
            f"torch that a file may name; if you trust its code, add {OPTION} {denied.rpartition('.')[0]}"
        )
    share = re.search(r"You requested to check (\S+) of the `?(\w+)_dataloader`? but .*< 1", text)
    if share:
        options = f"trainer.overfit_batches or trainer.limit_{share[2]}_batches, whichever is set"
        return UserError(f"{share[1]} of the {share[2]} batches is less than one batch; raise {options}")
    # The option that the message is about, if it names one.
    key = _first(r'Parser key "([^"]+)"', text)
    name = _first(r"(?:Expected a dot import path string|[Uu]nable to import[^:]*): ([\w.:]+)", text)
    if name:
        return _no_class(key, name)
    option = _first(r"(?:[Oo]ption|unrecognized arguments:) ['\"]?-*([\w.]+)", text)
    if option and re.search("accept|unrecognized", text):
        return _unknown_option(option)
    file = _first(r"File does not exist: '?([^']+)", text)
    if file:
        return UserError(f"{key or 'file'} '{file}' does not exist")
    required = _first(r"arguments are required: (.*)$", text)
    if required:
        missing = [part.split(".")[-1] for part in required.split(", ")]
        return UserError(f"--{' and --'.join(missing)} missing; name one, or give a --config with it")
    several = _first(r"(Multiple subclasses with name .*?)(?:\.? - Expected .*)?\.?$", text)
    if several:
        return UserError(f"{key}: {several[0].lower()}{several[1:]}")
    # A value of the wrong type: name the types that are valid.
    value = _first(r"(?:Given value|Got value): (.*)$", text).strip()
    # An option with a list of valid words has a type such as Literal['linear', 'cosine'].
    listed = ",".join(re.findall(r"Literal\[([^\]]*)\]", text))
    words = dict.fromkeys(re.findall(r"'([^']*)'", listed))
    if key and value and words:
        return unknown(key, value, words)
    types = " or ".join(dict.fromkeys(re.findall(r"<class '([\w.]+)'>", text)))
    if key and value and types:
        types = re.sub(r"\bNoneType\b", "null, for nothing,", types)
        return UserError(f"{key} '{value}' is not valid; it must be {types}")
    return UserError(text if len(text) <= 400 else text[:399] + "…")


def user_error(error: BaseException) -> UserError:
    """Return the UserError among the causes of an error of jsonargparse or Lightning, or else one made of its text."""
    # A UserError from a constructor may be the cause or the context of the error that arrives here.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return explain(str(error))


def _first(pattern: str, text: str) -> str:
    """Return what the group of a pattern matches at its first place in a text, or an empty text."""
    match = re.search(pattern, text)
    return match[1] if match else ""


def _no_class(key: str, name: str) -> UserError:
    """Return the error for a name that stands for no class.

    Args:
        key: Option that has the name as its value.
        name: Name that the user wrote.
    """
    # The short form of an external network is expanded on the command line only, so a file cannot use it.
    if key == "model" and ":" in name.rstrip(":"):
        return UserError(f"model '{name}': in a file write class_path: External and init_args: {{name: '{name}'}}")
    if key in TABLES:
        kind, valid = TABLES[key]()
        if name not in valid:
            return unknown(kind, name, valid)
    return UserError(f"{key} '{name}' is no class that can be imported; write a name such as AdamW")


TABLES: dict[str, Callable[[], tuple[str, Iterable[str]]]] = {
    "model": lambda: ("model", all_models()),
    "data": lambda: ("data set", all_data()),
}
"""Functions that return the kind of thing that ``--model`` or ``--data`` names, for messages, and the valid names."""


def _unknown_option(option: str) -> UserError:
    near = difflib.get_close_matches(option, _options(), n=1, cutoff=0.7)
    hint = f"did you mean '{near[0]}'?" if near else "`cnnbench fit --help` lists the options"
    return UserError(f"unknown option '{option}'; {hint}")


def _options() -> list[str]:
    """Return every option with its prefix, and the arguments of networks and data sets also without the prefix."""
    names = ["config", "seed_everything", "out", "wandb", "ckpt_path", "model", "data", "trainer"]
    names += [f"trainer.{name}" for name in inspect.signature(L.Trainer.__init__).parameters if name != "self"]
    for prefix, classes in (("model", all_models().values()), ("data", all_data().values())):
        # A class passes most of its arguments on to its base classes, so the signatures of these count too.
        bases = {base for cls in classes for base in cls.__mro__ if base.__module__.startswith("cnnbench")}
        for base in bases:
            for name in inspect.signature(base).parameters:
                names += [name, f"{prefix}.{name}"]
    return names


_KNOWN: tuple[tuple[type[Exception], str, str], ...] = (
    (ModuleNotFoundError, r"(?s)(.*)", "{0}; install that package, or leave out the option that needs it"),
    (
        RuntimeError,
        r"(view size is not compatible)",
        "an optimizer or a callback cannot work on weights whose channels are last in memory ({0}); add "
        "--model.channels_last false",
    ),
    (
        RuntimeError,
        r"Early stopping conditioned on metric `(.+?)` which is not available",
        "EarlyStopping monitors {0}, which the training does not log; monitor a figure that is in metrics.csv",
    ),
)
"""Errors of Lightning and torch that a user can mend: class, regular expression of the text, and our words."""
_LIBRARIES = {
    "cnnbench",
    "lightning",
    "lightning_utilities",
    "torch",
    "torchmetrics",
    "jsonargparse",
    "typeshed_client",
}


def known(error: BaseException) -> UserError | None:
    """Return an error of Lightning or torch in plain words; None for any other error, and for those of a user's code.

    Args:
        error: Error with its traceback.
    """
    place = error.__traceback__
    while place is not None:
        module = str(place.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if module not in _LIBRARIES and module not in sys.stdlib_module_names:
            return None
        place = place.tb_next
    for kind, pattern, words in _KNOWN:
        found = re.search(pattern, str(error))
        if isinstance(error, kind) and found:
            return UserError(words.format(" ".join(found[1].split()).rstrip(".")))
    return None
