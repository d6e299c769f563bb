"""The answer of ``cnnbench pick`` as sentences, a table and a JSON document."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from cnnbench.engines import INT8, TORCH
from cnnbench.machine import cpu_name
from cnnbench.report.choice import Candidate, Choice, Images, Timing, Value
from cnnbench.report.conditions import QUANTITIES, Condition, Quantity
from cnnbench.report.ways import PRECISION_TITLES

ALWAYS = ("accuracy", "latency", "params", "macs")
"""Quantities that have a column in every table."""
MOST_ROWS = 60
"""Largest number of networks in the table; of more it has the first ones."""
MOST_MISSES = 5
"""Largest number of networks named that miss a condition."""
MOST_NAMED = 4
"""Largest number of names in a sentence on networks of which something is not known."""
MOST_TIMINGS = 4
"""Largest number of groups of records named whose times are not used."""
ANY = "any"
"""Value of ``--engine`` that chooses among all engines."""
FRONT = "*"
"""Mark of a network on the Pareto front."""
ORIGIN_TITLE = "Accuracy from"
"""Heading of the column that says where an accuracy comes from."""
ORIGINS = {
    "records": "an accuracy from trainings in the records that were read",
    "package": "an accuracy from a reference training of this package",
    "published": "an accuracy from a publication, reached by another recipe, so that small differences say little",
}
"""Where an accuracy may come from, in one word for the table, and what that word means."""
CHEAPER = {"latency": "faster", "params": "smaller", "macs": "cheaper in multiply-adds"}
"""What a network is that has less of a cost, by key of the cost."""


def wanted_words(conditions: Sequence[Condition]) -> str:
    """Return the conditions in words, joined; empty without any."""
    return ", ".join(condition.words for condition in conditions)


def headline(choice: Choice, conditions: Sequence[Condition]) -> str:
    """Return the sentence with the answer."""
    wanted = wanted_words(conditions)
    if not choice.fitting:
        return f"No network is known to have {wanted}." if conditions else "Nothing is known of any network."
    best = choice.fitting[0]
    parts = []
    for key in dict.fromkeys(("accuracy", choice.sort.key, *(c.quantity.key for c in conditions))):
        if key in best.values:
            parts.append(_short_value(best, QUANTITIES[key]))
    among = f" with {wanted}" if wanted else f" of {len(choice.fitting)} networks"
    return f"{choice.sort.best}{among}: {best.name}, {', '.join(parts)}."


def _short_value(entry: Candidate, quantity: Quantity) -> str:
    """Return a value of the answer, with a short form of its source in brackets."""
    words = quantity.words(entry.values[quantity.key].value)
    if quantity.key == "accuracy":
        return f"{words} ({_short_source(entry)})"
    timing = entry.timing
    if quantity.work and timing is not None:
        record = timing.newest
        device = timing.device
        if device == cpu_name() and record.config["device"] == "cpu":
            device = "this CPU"
        formats = PRECISION_TITLES.get(timing.precision, timing.precision)
        # The name of one of several engines stands beside that of the network.
        if timing.engine != TORCH and not entry.way:
            formats = timing.way
        doubt = ", suspect" if entry.values[quantity.key].suspect else ""
        return f"{words} ({device}, {formats}, {record.created[:10]}{doubt})"
    return words


def _short_source(entry: Candidate) -> str:
    first = entry.accuracies[0]
    return first.source if first.kind == "published" else f"{first.kind}, on {first.label}"


def _origin(entry: Candidate) -> str:
    """Return the word of `ORIGINS` for the accuracy that counts of a network; a dash without one."""
    if not entry.accuracies:
        return "-"
    kind = entry.accuracies[0].kind
    return {"published": "published", "reference training": "package"}.get(kind, "records")


def choice_table(choice: Choice, conditions: Sequence[Condition], letters: Mapping[str, str]) -> Table:
    """Return the table of the networks that satisfy the conditions.

    Where the accuracy comes from stands in a column beside it, since accuracies of different origins were reached by
    different recipes, and maybe on different images.

    Args:
        choice: The networks.
        conditions: Conditions that they satisfy.
        letters: Letter of each source, from `source_letters`.
    """
    table = Table(header_style="bold", title_justify="left", title_style="bold", title=_title(choice, conditions))
    table.add_column("", no_wrap=True)
    table.add_column("Network", overflow="fold", min_width=8)
    quantities = shown(choice, conditions)
    for quantity in quantities:
        table.add_column(quantity.title, justify="right", no_wrap=True)
        if quantity.key == "accuracy":
            table.add_column(ORIGIN_TITLE)
    for entry in choice.fitting[:MOST_ROWS]:
        cells = []
        for quantity in quantities:
            cells.append(_cell(entry.values.get(quantity.key), quantity, letters))
            if quantity.key == "accuracy":
                cells.append(_origin(entry))
        table.add_row(FRONT if entry.name in choice.front else "", entry.name, *cells)
    return table


def _title(choice: Choice, conditions: Sequence[Condition]) -> str:
    """Return the title of the table: how many networks it has, and why these."""
    count = len(choice.fitting)
    networks = "1 network" if count == 1 else f"{count:,} networks"
    if count > MOST_ROWS:
        networks = f"the first {MOST_ROWS} of {networks} (--json has all)"
    if conditions:
        verb = "satisfies" if count == 1 else "satisfy"
        return f"{networks[0].upper()}{networks[1:]} that {verb} the conditions"
    # Without conditions a network is left out only if it lacks the figure by which the others are sorted.
    if choice.unknown:
        return f"No condition given: {networks}; {len(choice.unknown)} more have no value to sort by"
    if 1 < count <= MOST_ROWS:
        networks = f"all {networks}"
    return f"No condition given: {networks}"


def shown(choice: Choice, conditions: Sequence[Condition]) -> list[Quantity]:
    """Return the quantities that have a column: those of `ALWAYS`, of the conditions and of the order, if known."""
    asked = {*ALWAYS, choice.sort.key, *(condition.quantity.key for condition in conditions)}
    known = {key for entry in choice.fitting for key in entry.values}
    return [quantity for key, quantity in QUANTITIES.items() if key in asked & known]


def _cell(value: Value | None, quantity: Quantity, letters: Mapping[str, str]) -> str:
    """Return a value with the letter of its source; a question mark for a suspect time."""
    if value is None:
        return "-"
    doubt = "?" if value.suspect else ""
    return f"{quantity.show(value.value)}{doubt} {letters[value.source]}"


def source_letters(choice: Choice, conditions: Sequence[Condition]) -> dict[str, str]:
    """Return a letter for each source of a value in the table, in the order in which they appear."""
    sources: dict[str, str] = {}
    for entry in choice.fitting[:MOST_ROWS]:
        for quantity in shown(choice, conditions):
            value = entry.values.get(quantity.key)
            if value is not None and value.source not in sources:
                sources[value.source] = _letter(len(sources))
    return sources


def _letter(number: int) -> str:
    """Return a to z for 0 to 25, then aa, ab and so on."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    rest, last = divmod(number, len(alphabet))
    return (_letter(rest - 1) if rest else "") + alphabet[last]


def origin_lines(choice: Choice) -> list[str]:
    """Return what each word in the column `ORIGIN_TITLE` means."""
    used = {_origin(entry) for entry in choice.fitting[:MOST_ROWS]}
    return [f"{word}: {meaning}" for word, meaning in ORIGINS.items() if word in used]


def accuracy_sentences(choice: Choice) -> list[str]:
    """Return sentences on the images of the accuracies, and on other accuracies of the first network."""
    sentences = []
    labels: dict[str, None] = {}
    for entry in (*choice.fitting, *(entry for entry, _ in choice.missing)):
        labels |= dict.fromkeys(accuracy.label for accuracy in entry.accuracies)
    if len(labels) > 1:
        sentences.append(f"The accuracies here are on different images: {', '.join(labels)}.")
        if any("JPEG copy" in label for label in labels):
            sentences.append("The JPEG copy has pixels that differ a little from the published images.")
    first = choice.fitting[0] if choice.fitting else None
    if first is not None and len(first.accuracies) > 1:
        others = "; ".join(f"{100 * other.share:.4g} % ({other.source})" for other in first.accuracies[1:4])
        sentences.append(f"Other accuracies of {first.name}: {others}.")
    timings = [entry.timing for entry in choice.fitting if entry.timing is not None and entry.accuracies]
    if any(timing.engine != TORCH and timing.precision != INT8 for timing in timings):
        sentences.append(
            "The accuracies of networks in engines are those of the networks themselves, which engines in floating "
            "point keep up to rounding; `cnnbench bench --engine` tests them."
        )
    return sentences


def front_sentence(choice: Choice) -> str:
    """Return what the mark of the Pareto front means; empty without marks."""
    if not choice.front:
        return ""
    return f"{FRONT}: on the Pareto front: no network here is both more accurate and {CHEAPER[choice.cost.key]}."


def doubt_sentence(choice: Choice) -> str:
    """Return what a question mark in the table means; empty without one."""
    suspect = any(value.suspect for entry in choice.fitting for value in entry.values.values())
    return "?: a suspect time; `cnnbench report` says why." if suspect else ""


def miss_sentences(choice: Choice) -> list[str]:
    """Return a line for each of the networks that miss the conditions by least."""
    # In several engines a network is named once, where it misses by least.
    nearest: dict[str, tuple[Candidate, Sequence[Condition]]] = {}
    for entry, missed in choice.missing:
        nearest.setdefault(entry.model, (entry, missed))
    lines = []
    for entry, missed in list(nearest.values())[:MOST_MISSES]:
        words = []
        for condition in missed:
            said = condition.missed_words(entry.values[condition.quantity.key].value)
            # The origin of an accuracy is part of what it says.
            words.append(f"{said} ({_origin(entry)})" if condition.quantity.key == "accuracy" else said)
        lines.append(f"{entry.name}: {'; '.join(words)}")
    return lines


def timing_sentences(used: Sequence[Timing], others: Sequence[Timing], engine: str) -> list[str]:
    """Return which groups of records are not used for times, each with the options that choose it.

    Args:
        used: Groups whose times are used.
        others: The other groups.
        engine: Engine that was asked for.
    """
    timing = used[0] if used else None
    lines = []
    for other in others[:MOST_TIMINGS]:
        networks = f"{len(other.records)} network{'s' if len(other.records) != 1 else ''}"
        lines.append(f"{networks} on {other.words} ({_how_to_choose(timing, other, engine)})")
    if len(others) > MOST_TIMINGS:
        lines.append(f"and {len(others) - MOST_TIMINGS} more groups of records")
    return lines


def _how_to_choose(timing: Timing | None, other: Timing, engine: str) -> str:
    """Return the options that choose another group of records."""
    words = []
    if timing is None or other.device != timing.device:
        words.append(f"--device {shlex.quote(other.device)}")
    if engine not in (ANY, other.engine):
        words.append(f"--engine {shlex.quote(other.engine)} --precision {other.precision}")
    if words:
        return " ".join(words)
    assert timing is not None
    if other.precision != timing.precision:
        return f"--precision {other.precision}"
    return "name the files with these records alone"


def unknown_names(choice: Choice, *keys: str) -> list[str]:
    """Return the networks of which one of these quantities is not known and decides whether they fit."""
    names = []
    for entry, absent in choice.unknown:
        if any(quantity.key in keys for quantity in absent):
            names.append(entry.model)
    return list(dict.fromkeys(names))


def names_to_time(choice: Choice) -> list[str]:
    """Return the networks of which nothing but times is not known, by which they would be chosen or sorted."""
    names = []
    for entry, absent in choice.unknown:
        if all(quantity.work for quantity in absent):
            names.append(entry.model)
    return list(dict.fromkeys(names + untimed(choice)))


def untimed(choice: Choice) -> list[str]:
    """Return the fitting networks that would be sorted by their latency if it was known."""
    if not choice.by_default:
        return []
    return [entry.model for entry in choice.fitting if "latency" not in entry.values]


def few(names: Sequence[str]) -> str:
    """Return the number of networks and the first names, in words."""
    shown_names = ", ".join(names[:MOST_NAMED])
    more = len(names) - MOST_NAMED
    return f"{len(names)} ({shown_names}{f' and {more} more' if more > 0 else ''})"


def document(
    choice: Choice, conditions: Sequence[Condition], images: Images, used: Sequence[Timing], others: Sequence[Timing]
) -> dict[str, Any]:
    """Return the whole answer for JSON; an accuracy is a share, a latency is in milliseconds, memory in bytes."""
    networks = [_entry(entry, "satisfies", choice) for entry in choice.fitting]
    for entry, missed in choice.missing:
        short = {c.quantity.key: c.shortfall(entry.values[c.quantity.key].value) for c in missed}
        networks.append(_entry(entry, "misses", choice) | {"missed_by": short})
    for entry, absent in choice.unknown:
        networks.append(_entry(entry, "unknown", choice) | {"not_known": [quantity.key for quantity in absent]})
    return {
        "answer": choice.fitting[0].model if choice.fitting else None,
        "answer_in": choice.fitting[0].way or None if choice.fitting else None,
        "data": images.data,
        "image_shape": [images.channels, images.size, images.size],
        "conditions": {condition.quantity.key: condition.limit for condition in conditions},
        "sort": choice.sort.key,
        "front_cost": choice.cost.key,
        "times": _group(used[0]) if used else None,
        "all_times": [_group(timing) for timing in used],
        "other_times": [_group(other) for other in others],
        "networks": networks,
    }


def _entry(entry: Candidate, status: str, choice: Choice) -> dict[str, Any]:
    return {
        "model": entry.model,
        "status": status,
        "on_front": entry.name in choice.front,
        "engine": None if entry.timing is None else entry.timing.engine,
        "precision": None if entry.timing is None else entry.timing.precision,
        "values": {key: value._asdict() for key, value in entry.values.items()},
        "accuracies": [accuracy._asdict() for accuracy in entry.accuracies],
    }


def _group(timing: Timing) -> dict[str, Any]:
    return {
        "device": timing.device,
        "engine": timing.engine,
        "precision": timing.precision,
        "words": timing.words,
        "networks": len(timing.records),
        "newest": timing.newest.created,
    }
