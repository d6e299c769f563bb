"""The choice of a network: what is known of each, which of them satisfy conditions, and which miss them narrowly.

Every value keeps its source, because the sources differ in what they are worth. Counts and times come from records, an
accuracy from a full training among the records, from the reference training that the package ships, or from a
publication. Times are taken from one group of records alone, whose settings and machine are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cnnbench.engines import INT8, TORCH
from cnnbench.record import Record
from cnnbench.references import is_as_good_as_the_reference
from cnnbench.registry import natural
from cnnbench.report.conditions import QUANTITIES, Condition, Quantity, Sort
from cnnbench.report.contenders import Contender, contenders, values_of
from cnnbench.report.pareto import pareto_front
from cnnbench.report.settings import ALL, BY_NAME, NOT_SAID, SETTLING, Dependent, Setting, setting
from cnnbench.report.ways import PRECISION_TITLES, engine_of, engine_title, engine_version, way_of


@dataclass(frozen=True)
class Images:
    """The images for which a network is chosen.

    Attributes:
        data: Name of the data set.
        channels, size: Channels, and height and width in pixels, of the images that a network sees.
        classes: Number of classes.
        usual_size: Size that networks see of this data set if nobody asks for another.
        full_epochs: Epochs of a full training; None if they are not known.
    """

    data: str
    channels: int
    size: int
    classes: int
    usual_size: int
    full_epochs: int | None = None

    @property
    def shape(self) -> str:
        """Return the shape of an image, such as 3x32x32."""
        return f"{self.channels}x{self.size}x{self.size}"


class Accuracy(NamedTuple):
    """A known accuracy of a network.

    Attributes:
        share: Share of the test images that are classified correctly.
        is_full: Whether it was reached by a full training among the records.
        label: Label of the data set.
        source: Where it comes from, in words, with the data set.
        kind: Where it comes from, in one or two words.
    """

    share: float
    is_full: bool
    label: str
    source: str
    kind: str


class Value(NamedTuple):
    """A value of a quantity, its source in words, and whether the run that measured it doubts it."""

    value: float
    source: str
    suspect: bool = False


@dataclass(frozen=True)
class Candidate:
    """A network with what is known of it.

    Attributes:
        model: Name of the network.
        values: Known values by key of the quantity.
        accuracies: All known accuracies; the first one is the value.
        timing: Group of records from which its times are taken; None without times.
        way: Engine and number format in words, if networks in several engines are to be chosen from; else empty.
    """

    model: str
    values: Mapping[str, Value]
    accuracies: Sequence[Accuracy] = ()
    timing: Timing | None = None
    way: str = ""

    @property
    def name(self) -> str:
        """Return the name of the network, followed by its engine if there are several."""
        return f"{self.model} in {self.way}" if self.way else self.model


class Timing(NamedTuple):
    """Records of networks that were timed under the same settings on the same machine.

    Attributes:
        settings: Values of the settings that agree, as texts.
        records: Newest record by name of the network.
        origin: Files that hold the records, in words; empty if that is not known.
    """

    settings: tuple[str, ...]
    records: Mapping[str, Record]
    origin: str = ""

    @property
    def newest(self) -> Record:
        """Return the newest of the records."""
        return max(self.records.values(), key=lambda record: record.created)

    @property
    def device(self) -> str:
        """Return the product name of the device."""
        return str(self.newest.environment["device"])

    @property
    def precision(self) -> str:
        """Return the number format of inference, by Lightning's name."""
        return str(setting(self.newest, "inference_precision"))

    @property
    def is_of_torch(self) -> bool:
        """Return whether torch ran the networks."""
        return bool(setting(self.newest, "engine") == TORCH)

    @property
    def engine(self) -> str:
        """Return the name of the engine."""
        return engine_of(self.newest)

    @property
    def way(self) -> str:
        """Return the engine and the number format in words."""
        return way_of(self.newest).short

    @property
    def words(self) -> str:
        """Return device, settings, engine, date and files in words."""
        record = self.newest
        threads = f"{record.environment['threads']} threads"
        words = [self.device, f"{PRECISION_TITLES.get(self.precision, self.precision)} ({self.precision})"]
        # The mode and the order of the images in memory are torch's.
        if self.engine == TORCH:
            words += [str(setting(record, "mode")), str(setting(record, "memory_format") or NOT_SAID)]
        words += [BY_NAME[name].said(record) for name in SETTLING if setting(record, name)]
        version = engine_version(record) or NOT_SAID
        words += [threads, f"{engine_title(self.engine)} {version}", record.created[:10]]
        return ", ".join([*words, f"from {self.origin}"] if self.origin else words)


@dataclass(frozen=True)
class Choice:
    """The networks, sorted by whether they satisfy the conditions.

    Attributes:
        sort: Quantity by which the networks are sorted.
        fitting: Networks that satisfy all conditions, the best first.
        missing: Networks that miss a condition, with the conditions that they miss, the nearest first.
        unknown: Networks that miss no condition as far as is known, with the quantities that are not known.
        front: Names of the fitting networks, with their engines if there are several, on the Pareto front of accuracy
            against a cost.
        cost: Quantity that is the cost of the front.
        by_default: Whether nobody asked for an order, so that it is the latency where that is known.
    """

    sort: Quantity
    fitting: Sequence[Candidate]
    missing: Sequence[tuple[Candidate, Sequence[Condition]]]
    unknown: Sequence[tuple[Candidate, Sequence[Quantity]]]
    front: frozenset[str]
    cost: Quantity
    by_default: bool


def plain_name(text: str) -> str:
    """Return a name of a data set without case and punctuation: ``CIFAR-10`` and ``CIFAR10`` are the same."""
    return re.sub(r"[\W_]", "", text.lower())


def is_label_of(label: str, data: str) -> bool:
    """Return whether a label such as "CIFAR-10 (JPEG copy)" or "ImageNet, 10 crops" is of a data set.

    Args:
        label: Label of an accuracy.
        data: Name of the data set, also with its source, as in ``torchvision:CIFAR100``.
    """
    # Behind the name of the data set, a label says which copy, recipe or crops were used.
    name = re.split(r",| \(| V2\b", label)[0]
    return plain_name(name) in (plain_name(data), plain_name(data.partition(":")[2] or data))


def is_on(record: Record, data: str) -> bool:
    """Return whether a record is of a data set, and not of images that stand in for it."""
    if record.data["synthetic"]:
        return record.data["name"] == data
    return record.data_name == data or is_label_of(record.data["label"], data)


# What is known


def in_all(
    records: Sequence[Record],
    catalog: Mapping[str, Mapping[str, Any]],
    images: Images,
    groups: Sequence[Timing],
    precision: str = "",
) -> list[Candidate]:
    """Return all networks with what is known of them, once for each group that has times of them.

    Args:
        records: Records without those that failed.
        catalog: Entries of the networks of the zoo by name.
        images: Images for which a network is chosen.
        groups: Groups of records from which times are taken, of several engines and number formats.
        precision: Number format that was asked for; empty for any.
    """
    found: list[Candidate] = []
    for timing in groups:
        every = candidates(records, catalog, images, timing)
        found += [replace(entry, way=timing.way) for entry in every if entry.timing is not None]
    timed = {entry.model for entry in found}
    rest = candidates(records, catalog, images, None, precision)
    return [*found, *(entry for entry in rest if entry.model not in timed)]


def candidates(
    records: Sequence[Record],
    catalog: Mapping[str, Mapping[str, Any]],
    images: Images,
    timing: Timing | None,
    precision: str = "",
) -> list[Candidate]:
    """Return all networks of the catalogue and of the records on these images, with what is known of them.

    Args:
        records: Records without those that failed.
        catalog: Entries of the networks of the zoo by name; see `cnnbench.catalog.load_catalog`.
        images: Images for which a network is chosen.
        timing: Group of records from which times are taken; None for none.
        precision: Number format that was asked for, if there is no such group. In int8 a network has only accuracies
            that were measured in int8.
    """
    here = [record for record in records if is_on(record, images.data) and _has_shape(record, images)]
    accuracies: Mapping[str, Sequence[Accuracy]] = {}
    if timing is not None and timing.precision == INT8:
        accuracies = _accuracies_of_rows(here, timing)
    elif timing is not None or precision != INT8:
        accuracies = _accuracies(here, catalog, images)
    counted = {}
    for record in sorted(here, key=lambda r: r.created):
        if record.measures.get("params") is not None:
            counted[record.network] = record
    timed = timing.records if timing else {}
    names = sorted({*catalog, *counted, *timed}, key=natural)
    found = []
    for name in names:
        values = {**_stored_counts(catalog.get(name), images), **_counts(counted.get(name))}
        if name in accuracies:
            best = accuracies[name][0]
            values["accuracy"] = Value(best.share, best.source)
        if timing is not None and name in timed:
            values |= _times(timed[name], timing)
        found.append(Candidate(name, values, accuracies.get(name, ()), timing if name in timed else None))
    return found


def _has_shape(record: Record, images: Images) -> bool:
    return (record.data["in_channels"], record.data["image_size"]) == (images.channels, images.size)


def _stored_counts(entry: Mapping[str, Any] | None, images: Images) -> dict[str, Value]:
    """Return the counts of a network in the catalogue; empty if it has none for images of this size."""
    if entry is None or f"macs_{images.size}" not in entry:
        return {}
    classes = {32: 10, 224: 1000}.get(images.size)
    source = f"the catalogue, for 3x{images.size}x{images.size} images and {classes} classes"
    return {key: Value(entry[f"{key}_{images.size}"], source) for key in ("params", "macs")}


def _counts(record: Record | None) -> dict[str, Value]:
    """Return the counts in a record."""
    if record is None:
        return {}
    source = f"records on {record.data['label']}"
    return {key: Value(record.measures[key], source) for key in ("params", "macs") if key in record.measures}


def _times(record: Record, timing: Timing) -> dict[str, Value]:
    """Return the times and the memory in a record of a group."""
    values = {}
    for quantity in QUANTITIES.values():
        if quantity.work is None:
            continue
        key = next((key for key in quantity.figures if record.measures.get(key) is not None), None)
        if key is not None:
            suspect = bool(record.doubts(quantity.work))
            values[quantity.key] = Value(record.measures[key], timing.words, suspect)
    return values


def _accuracies(
    records: Sequence[Record], catalog: Mapping[str, Mapping[str, Any]], images: Images
) -> dict[str, list[Accuracy]]:
    """Return all known accuracies of networks in floating point by network, the one that counts first.

    A full training among the records counts first. Without one, the highest of the others does: a training as good as
    the reference's, the reference's itself, and the published ones. A reference training may be shorter than a full
    one, so its accuracy says what a network reaches at least.
    """
    known: dict[str, list[Accuracy]] = {}
    # In floating point, an engine has the accuracy of the network itself up to rounding.
    tested = [r for r in records if r.measures.get("test_accuracy") is not None and not r.is_of_an_engine]
    for entry in contenders(tested):
        if entry.settled is not None and entry.reference is None:
            known.setdefault(entry.records[0].network, []).append(_of_records(entry))
    # References and publications are on images of the usual size.
    if images.size == images.usual_size:
        for name, stored in catalog.items():
            known.setdefault(name, []).extend(_of_catalog(stored, images.data))
    for several in known.values():
        several.sort(key=lambda accuracy: (accuracy.is_full, accuracy.share), reverse=True)
    return {name: several for name, several in known.items() if several}


def _accuracies_of_rows(records: Sequence[Record], timing: Timing) -> dict[str, list[Accuracy]]:
    """Return the accuracies of full trainings in the engine and number format of the times, by network.

    Quantisation changes a network, so its accuracy in floating point says nothing certain about it.
    """
    way = [BY_NAME[name] for name in ("engine", "inference_precision")]
    alike = [record for record in records if values_of(record, way) == values_of(timing.newest, way)]
    known: dict[str, list[Accuracy]] = {}
    for entry in contenders([r for r in alike if r.measures.get("test_accuracy") is not None]):
        if entry.converged:
            known.setdefault(entry.records[0].network, []).append(_of_records(entry))
    for several in known.values():
        several.sort(key=lambda accuracy: accuracy.share, reverse=True)
    return known


def _of_records(entry: Contender) -> Accuracy:
    """Return the accuracy of trainings among the records."""
    is_full = entry.converged
    # Without a full training, `settled` has made sure that this one is as good as the reference.
    kind = "full training" if is_full else "training as good as the reference"
    assert is_full or is_as_good_as_the_reference(entry.records[0])
    epochs = entry.records[0].training.get("epochs", 0.0)
    name = entry.name.removeprefix(entry.model).strip()
    trained = _trained(epochs, len(entry.per_seed("test_accuracy")))
    source = f"records, {kind}: {trained}, {entry.records[0].created[:10]}, on {entry.label} {name}".strip()
    return Accuracy(entry.mean("test_accuracy"), is_full, entry.label, source, kind)


def _trained(epochs: float, seeds: int) -> str:
    return f"{epochs:.0f} epochs, {seeds} seed{'s' if seeds > 1 else ''}"


def _of_catalog(stored: Mapping[str, Any], data: str) -> list[Accuracy]:
    """Return the reference accuracy and the published accuracies of a network on a data set."""
    found = []
    for entry in stored["measured"]:
        if is_label_of(entry["data"], data):
            trained = _trained(entry["epochs"], entry["seeds"])
            source = f"reference training of the package: {trained}, {entry['date']}, on {entry['data']}"
            found.append(Accuracy(entry["accuracy"] / 100, False, entry["data"], source, "reference training"))
    for entry in stored["published"]:
        if is_label_of(entry["data"], data):
            source = f"published: {entry['source']}, on {entry['data']}"
            found.append(Accuracy(entry["accuracy"] / 100, False, entry["data"], source, "published"))
    return found


# Times of one group of records


def timings(records: Sequence[Record], images: Images, needed: Sequence[Quantity]) -> list[Timing]:
    """Return the records with times of images of this shape, in groups of the same settings, the largest first.

    Args:
        records: Records without those that failed.
        images: Images for which a network is chosen.
        needed: Quantities of which a record must have one. The settings that they depend on make the groups.
    """
    settings = settings_of({quantity.work for quantity in needed if quantity.work})
    keys = [key for quantity in needed if quantity.work for key in quantity.figures]
    groups: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in sorted(records, key=lambda r: r.created):
        if _has_shape(record, images) and any(record.measures.get(key) is not None for key in keys):
            # Later records of a network take the place of earlier ones.
            groups.setdefault(values_of(record, settings), {})[record.network] = record
    found = [Timing(values, members) for values, members in groups.items()]
    # The times of another engine than torch are taken only where torch has none.
    return sorted(found, key=lambda group: (group.is_of_torch, len(group.records), group.newest.created), reverse=True)


def settings_of(works: set[Dependent]) -> tuple[Setting, ...]:
    """Return the settings that must agree before times of these kinds of work are ranked."""
    rows = [row for row in ALL if works & set(row.affects)]
    return (*rows, BY_NAME["packages"])


def of_device(
    groups: Sequence[Timing], fits: Callable[[Record], bool], precision: str | None, engine: str | None
) -> list[Timing]:
    """Return the groups of a device and, if they are asked for, of a number format and of an engine."""
    found = [g for g in groups if fits(g.newest) and precision in (None, g.precision)]
    return [g for g in found if engine in (None, g.engine)]


def first_of_each_way(groups: Sequence[Timing]) -> list[Timing]:
    """Return the first group of each engine in each number format, all with the same turns and threads.

    Of several kinds of turns, those that most engines and formats have are taken; of equal ones, those of the first.
    """
    ways: dict[tuple[Any, ...], dict[tuple[str, str], Timing]] = {}
    for group in groups:
        turns = tuple(setting(group.newest, name) for name in (*SETTLING, "threads"))
        ways.setdefault(turns, {}).setdefault((group.engine, group.precision), group)
    return list(max(ways.values(), key=len, default={}).values())


# The choice


def choose(entries: Sequence[Candidate], conditions: Sequence[Condition], sort: Sort | None) -> Choice:
    """Sort networks by whether they satisfy the conditions.

    Args:
        entries: All networks.
        conditions: Conditions that a network has to satisfy.
        sort: Quantity by which the networks are sorted, which then has to be known; None for the latency where it is
            known, and multiply-adds for the others.
    """
    timed = any("latency" in entry.values for entry in entries)
    order = QUANTITIES[sort or ("latency" if timed else "macs")]
    needed = [condition.quantity for condition in conditions]
    if sort is not None and order not in needed:
        needed.append(order)
    fitting: list[Candidate] = []
    missing: list[tuple[Candidate, Sequence[Condition]]] = []
    unknown: list[tuple[Candidate, Sequence[Quantity]]] = []
    for entry in entries:
        known = [c for c in conditions if c.quantity.key in entry.values]
        missed = [c for c in known if c.shortfall(entry.values[c.quantity.key].value) > 0]
        absent = [quantity for quantity in needed if quantity.key not in entry.values]
        if missed:
            missing.append((entry, missed))
        elif absent:
            unknown.append((entry, absent))
        else:
            fitting.append(entry)
    fitting.sort(key=lambda entry: _rank(entry, order))
    missing.sort(key=lambda pair: _distance(pair[0], pair[1], conditions))
    cost = order if order.key in ("latency", "params", "macs") else QUANTITIES["latency" if timed else "macs"]
    return Choice(order, fitting, missing, unknown, _front(fitting, cost), cost, sort is None)


def _rank(entry: Candidate, order: Quantity) -> tuple[Any, ...]:
    """Return the key by which fitting networks are sorted; those without the quantity come last, by multiply-adds."""
    value = entry.values.get(order.key)
    macs = entry.values.get("macs")
    by = 0.0
    if value is not None:
        by = -value.value if order.more_is_better else value.value
    accuracy = entry.values["accuracy"].value if "accuracy" in entry.values else 0.0
    return value is None, by, -accuracy, macs is None, macs.value if macs else 0.0, natural(entry.name)


def _distance(entry: Candidate, missed: Sequence[Condition], conditions: Sequence[Condition]) -> tuple[Any, ...]:
    """Return the key by which networks that miss conditions are sorted: unknown figures, missed ones, and how far."""
    absent = sum(condition.quantity.key not in entry.values for condition in conditions)
    worst = max(c.shortfall(entry.values[c.quantity.key].value) / c.limit for c in missed)
    return absent, len(missed), worst, natural(entry.name)


def _front(entries: Sequence[Candidate], cost: Quantity) -> frozenset[str]:
    """Return the names of the networks that no other one beats in both accuracy and cost."""
    rivals = [entry for entry in entries if {"accuracy", cost.key} <= entry.values.keys()]
    points = [(entry.values[cost.key].value, entry.values["accuracy"].value) for entry in rivals]
    return frozenset(rivals[index].name for index in pareto_front(points))
