"""Which networks and data sets ``cnnbench list`` shows, and in which order: the options ``--where`` and ``--sort``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cnnbench.errors import UserError, unknown

Facts = Mapping[str, Any]
"""Entry of the catalogue."""
SORTED_BY = "CIFAR-10"
"""Data set whose reference accuracies order the networks: accuracies on different data do not compare."""
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_PREFIXES = {"": 1.0, "%": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def _accuracies(key: str) -> Callable[[Facts], list[float]]:
    return lambda facts: [entry["accuracy"] for entry in facts[key]]


def _figure(key: str) -> Callable[[Facts], list[float]]:
    return lambda facts: [] if facts[key] is None else [facts[key]]


FIELDS: dict[str, dict[str, Callable[[Facts], list[float]]]] = {
    "models": {
        "params": _figure("params_32"),
        "macs": _figure("macs_32"),
        "params_224": _figure("params_224"),
        "macs_224": _figure("macs_224"),
        "depth": _figure("depth"),
        "year": _figure("year"),
        "published": _accuracies("published"),
        "reference": _accuracies("measured"),
    },
    "data": {name: _figure(name) for name in ("classes", "channels", "size")},
}
"""Figures of networks and of data sets that a condition can name; of several accuracies one has to meet it."""
ORDERS = {"models": ("name", "params", "macs", "accuracy", "year"), "data": ("name", "classes", "size")}
"""Values of ``--sort`` for networks and for data sets."""


class Condition(NamedTuple):
    """Condition such as ``params<5M``: a field, an operator and a number."""

    field: str
    compares: Callable[[float, float], bool]
    number: float


def parse_condition(text: str, room: str) -> Condition:
    """Return the condition in a text.

    Args:
        text: Condition, such as ``params<5M``.
        room: ``models`` or ``data``.

    Raises:
        UserError: It cannot be read, or names no figure.
    """
    example = "params<5M" if room == "models" else "classes>=10"
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|!=|=|<|>)=?\s*(\S+?)\s*", text)
    if match is None:
        raise UserError(f"where '{text}' is no condition; write for example --where '{example}'")
    field, sign, number = match.groups()
    if field not in FIELDS[room]:
        raise unknown("figure of --where", field, FIELDS[room])
    value = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([kMGT%]?)", number)
    if value is None:
        raise UserError(f"where '{text}': '{number}' is not a number; write for example 5M, 90 or 1.5G")
    if field in ("published", "reference") and 0 < float(value[1]) < 1:
        raise UserError(f"where '{text}': accuracies are in per cent; write {field}{sign}{100 * float(value[1]):g}")
    return Condition(field, _OPERATORS[sign], float(value[1]) * _PREFIXES[value[2]])


def chosen(entries: Mapping[str, Facts], room: str, where: Sequence[str], sort: str | None) -> dict[str, Facts]:
    """Return the entries that meet all conditions, in the order that is asked for.

    Args:
        entries: Entries of the catalogue by name.
        room: ``models`` or ``data``.
        where: Conditions.
        sort: One of `ORDERS`; None for the order of the catalogue.

    Raises:
        UserError: A condition cannot be read, or the order does not exist.
    """
    if sort is not None and sort not in ORDERS[room]:
        raise unknown("sort", sort, ORDERS[room])
    conditions = [parse_condition(text, room) for text in where]
    names = [name for name, facts in entries.items() if all(_meets(facts, room, one) for one in conditions)]
    if sort not in (None, "name"):
        # Python's sort is stable, so names that are equal stay in their order.
        names.sort(key=lambda name: _key(entries[name], room, str(sort)))
    return {name: entries[name] for name in names}


def _meets(facts: Facts, room: str, condition: Condition) -> bool:
    """Return whether an entry meets a condition; one without such a figure does not."""
    return any(condition.compares(value, condition.number) for value in FIELDS[room][condition.field](facts))


def _key(facts: Facts, room: str, sort: str) -> tuple[bool, float]:
    """Return the place of an entry; those that lack the figure come last, and the best accuracy first."""
    if sort == "accuracy":
        values = [-entry["accuracy"] for entry in facts["measured"] if entry["data"].startswith(SORTED_BY)]
    else:
        values = FIELDS[room][sort](facts)
    return (not values, min(values, default=0.0))
