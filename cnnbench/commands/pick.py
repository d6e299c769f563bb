"""The command `cnnbench pick`: choose a network by accuracy, time and cost, from what is known of each.

It reads records and stored figures alone, without torch. ``--measure`` times what is missing, which needs torch, in
`cnnbench.commands.pick_measure`.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cnnbench.benchmark.plan import INFERENCE_FORMATS
from cnnbench.catalog import load_catalog
from cnnbench.commands.speed import Options as SpeedOptions
from cnnbench.console import make_console, note, out, out_json, out_text, show
from cnnbench.engines import ENGINES, INT8, TORCH
from cnnbench.errors import UserError, unknown
from cnnbench.machine import cpu_name, gpu_names
from cnnbench.options import option
from cnnbench.record import Record, load_by_path, load_records
from cnnbench.references import FILE as SHIPPED_RECORDS
from cnnbench.report import choice_words
from cnnbench.report.choice import (
    Candidate,
    Choice,
    Images,
    Timing,
    candidates,
    choose,
    first_of_each_way,
    in_all,
    is_on,
    of_device,
    settings_of,
    timings,
)
from cnnbench.report.conditions import QUANTITIES, Condition, Quantity
from cnnbench.report.settings import Setting
from cnnbench.text import printable

EXAMPLE = "--data CIFAR10 --accuracy 90 --max_latency 5ms --device cpu --max_params 5M"
PIPE_WIDTH = 80
"""Line width, in characters, if the output is not a terminal."""
SPEED_FOLDER = Path("results/speed")
"""Folder of the records that ``--measure`` writes."""
MOST_FILES = 2
"""Largest number of files of records that a source names."""
FULL_EPOCHS = 100
"""Epochs of the training that is proposed, if nothing says how many a full training on the data has."""
FORMATS = (*INFERENCE_FORMATS, "tf32", INT8)
IMAGENET = {"channels": 3, "size": 224, "classes": 1000}
"""Images of ImageNet, on which accuracies are published, and which the package does not read itself."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choose a network: which are good, fast and small enough, by records, reference trainings and publications."""

    records: tuple[str, ...] = option(
        "Record files and run folders (default: those in results/bench, results/runs and results/speed; --measure "
        "always reads the last of these).",
        default=(),
        positional=True,
        metavar="RECORDS",
    )
    data: str = option("Data set of the accuracies, such as MNIST or ImageNet.", default="CIFAR10", metavar="NAME")
    accuracy: str | None = option(
        "Smallest test accuracy in per cent, such as 90 or 90%.", default=None, metavar="PERCENT"
    )
    max_latency: str | None = option(
        "Longest time of one image, such as 5ms, 300us or 0.5s.", default=None, metavar="TIME"
    )
    min_images_per_s: str | None = option(
        "Smallest inference throughput in a large batch, such as 1000 or 2k.", default=None, metavar="N"
    )
    max_params: str | None = option("Largest number of parameters, such as 5M.", default=None, metavar="N")
    max_macs: str | None = option(
        "Largest number of multiply-adds of one image, such as 100M.", default=None, metavar="N"
    )
    max_memory: str | None = option(
        "Largest memory of a training step, such as 2GiB, where records have it.", default=None, metavar="SIZE"
    )
    device: str | None = option(
        "Device whose times count: cpu or cuda of this machine, or a part of the name of any device in the records "
        "(default: the devices of this machine).",
        default=None,
        metavar="NAME",
    )
    precision: str | None = option(
        f"Number format of the times: {', '.join(FORMATS)} (default: that of most networks).", default=None
    )
    engine: str = option(
        f"What runs the networks in these times: {', '.join(ENGINES)}, or any, which chooses a network and an engine.",
        default=TORCH,
        metavar="NAME",
    )
    image_size: int | None = option(
        "Height and width of the images in pixels (default: the usual size of the data).",
        default=None,
        metavar="N",
        least=1,
    )
    sort: Literal["latency", "accuracy", "params", "macs", "images_per_s"] | None = option(
        "What the networks are sorted by (default: latency where it is known, else macs).", default=None
    )
    measure: bool = option(
        "First time the networks whose accuracy and counts satisfy the conditions, if their times are not known here; "
        "the records are kept in results/speed. No accuracy is measured.",
        default=False,
    )
    json: bool = option("Print one JSON document on stdout.", default=False)

    def __post_init__(self) -> None:
        self.conditions()  # raises the error of a wrong value
        if self.precision is not None and self.precision not in FORMATS:
            raise unknown("precision", self.precision, FORMATS)
        if self.engine not in (*ENGINES, choice_words.ANY):
            raise unknown("engine", self.engine, [*ENGINES, choice_words.ANY])
        if self.measure and self.engine == choice_words.ANY:
            raise UserError(f"--measure times one engine; name it with --engine, such as --engine {TORCH}")
        if self.measure and self.device not in (None, "cpu", "cuda"):
            raise UserError(
                f"--measure times networks on this machine, not on a device named '{self.device}'; "
                "give --device cpu or cuda"
            )

    def conditions(self) -> list[Condition]:
        """Return the conditions that the options set.

        Raises:
            UserError: A value is wrong.
        """
        found = []
        for key, name in OPTIONS.items():
            text = getattr(self, name)
            if text is not None:
                quantity = QUANTITIES[key]
                found.append(Condition(quantity, quantity.read(text, name)))
        return found

    def needed_times(self) -> list[Quantity]:
        """Return the quantities that are taken from timed records: the latency, and those that are asked for."""
        asked = ["latency", *(condition.quantity.key for condition in self.conditions()), self.sort]
        keys = dict.fromkeys(key for key in asked if key is not None)
        return [QUANTITIES[key] for key in keys if QUANTITIES[key].work]


OPTIONS = {
    "accuracy": "accuracy",
    "latency": "max_latency",
    "images_per_s": "min_images_per_s",
    "params": "max_params",
    "macs": "max_macs",
    "memory": "max_memory",
}
"""Names of the options with conditions, by key of the quantity."""


@dataclass(frozen=True)
class Known:
    """Everything that the answer is made from.

    Attributes:
        records: Records without those that failed.
        models: Entries of the networks in the catalogue, by name.
        images: Images for which a network is chosen.
        files: Names of the files that hold records, by the identity of the record.
    """

    records: Sequence[Record]
    models: Mapping[str, Mapping[str, Any]]
    images: Images
    files: Mapping[int, str] = field(default_factory=dict)


def run(options: Options) -> int:
    """Print the answer; return 1 if no network satisfies the conditions."""
    catalog = load_catalog()
    files = _read(options.records, options.measure)
    records = [record for several in files.values() for record in several]
    origins = {id(record): name for name, several in files.items() for record in several}
    known = Known(records, catalog["models"], _images(options, records, catalog["data"]), origins)
    preferred = None
    if options.measure:
        # Imported here, because torch comes with it.
        from cnnbench.commands.pick_measure import measure

        measured = measure(options, known, time_settings(options), SPEED_FOLDER)
        origins |= {id(record): str(SPEED_FOLDER) for record in measured.records}
        known = Known([*records, *measured.records], known.models, known.images, origins)
        preferred = measured.settings
    used, others = find_times(options, known, preferred)
    conditions = options.conditions()
    chosen = choose(_candidates(options, known, used), conditions, options.sort)
    if options.json:
        commands = [shlex.join(words) for words in _commands(options, known.images, chosen).values()]
        document = choice_words.document(chosen, conditions, known.images, used, others)
        out_json({**document, "commands": commands})
    else:
        _print(options, known.images, chosen, used, others)
    return 0 if chosen.fitting else 1


def _candidates(options: Options, known: Known, used: Sequence[Timing]) -> list[Candidate]:
    """Return all networks with what is known of them, once for each engine if any may be chosen."""
    if options.engine == choice_words.ANY:
        return in_all(known.records, known.models, known.images, used, options.precision or "")
    return candidates(known.records, known.models, known.images, used[0] if used else None, options.precision or "")


def _read(names: Sequence[str], measuring: bool) -> dict[str, list[Record]]:
    """Return the records of files and folders without those that failed, by path.

    Args:
        names: Files and folders that the user names; without any, those in the working folder are read.
        measuring: Whether networks may be timed. What was timed before is then read too, so as not to do it again.

    Raises:
        UserError: A named file or folder is wrong. A wrong one that nobody named is left out with a note.
    """
    records = load_by_path([Path(name) for name in names]) if names else {}
    found = [] if names else _found_here()
    if names and measuring:
        found = _timed_here()
    named = {path.resolve() for path in records}
    for path in found:
        # A folder that is named has its files already.
        if named & {path.resolve(), path.parent.resolve()}:
            continue
        try:
            records |= load_by_path([path])
        except UserError as error:
            note(f"left out: {error}")
    return {str(path): [record for record in several if record.status == "ok"] for path, several in records.items()}


def _found_here() -> list[Path]:
    """Return the run folders and record files of the working folder."""
    results = Path("results")
    # A run of `fit` that was given a name by ``--run`` is a folder of runs/ itself.
    folders = [*sorted(results.glob("bench/*")), *sorted(results.glob("runs/*")), *sorted(results.glob("runs/*/*"))]
    runs = [folder for folder in folders if any((folder / "records").glob("*.json"))]
    return [*runs, *_timed_here()]


def _timed_here() -> list[Path]:
    """Return the record files of `cnnbench speed` and of ``--measure`` in the working folder."""
    return sorted(SPEED_FOLDER.glob("*.jsonl"))


def _images(options: Options, records: Sequence[Record], data: Mapping[str, Mapping[str, Any]]) -> Images:
    """Return the images of the data set that the options name.

    Raises:
        UserError: The data set is unknown, or nothing says what its images are.
    """
    name = options.data
    shipped = [record for record in load_records([SHIPPED_RECORDS]) if is_on(record, name)]
    own = [record for record in records if is_on(record, name)]
    stored = _stored_facts(name, data)
    full_epochs = next((record.data["full_epochs"] for record in (*shipped, *own)), None) or None
    # Networks see some data sets in another size than that of the files, as shipped records say.
    if shipped or (own and (stored is None or None in stored.values())):
        facts = (shipped or own)[-1].data
        stored = {"channels": facts["in_channels"], "size": facts["image_size"], "classes": len(facts["class_names"])}
    if stored is None:
        names = {record.data_name for record in records}
        raise unknown("data set", name, sorted({*(form for form in data if ":" not in form), "ImageNet", *names}))
    if None in stored.values():
        raise UserError(
            f"nothing says how large the images of data set '{name}' are; name records of it, such as those of "
            f"`cnnbench bench --data {shlex.quote(name)}`"
        )
    usual = stored["size"]
    return Images(name, stored["channels"], options.image_size or usual, stored["classes"], usual, full_epochs)


def _stored_facts(name: str, data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return channels, size and classes of a data set in the catalogue, each None if not fixed; None if absent."""
    if name == "ImageNet":
        return IMAGENET
    facts = data.get(name)
    source, colon, rest = name.partition(":")
    for form, described in data.items():
        # The entry torchvision:NAME has the facts about each name that is known.
        if colon and form.partition(":")[0] == source:
            facts = described.get("names", {}).get(rest, described)
    if facts is None:
        return None
    return {key: facts[key] for key in ("channels", "size", "classes")}


# Times


def find_times(
    options: Options, known: Known, preferred: tuple[str, ...] | None = None
) -> tuple[list[Timing], list[Timing]]:
    """Return the groups of records from which times are taken, and the other groups.

    There is one group with times at most, or with ``--engine any`` one for each engine in each number format.

    Args:
        options: Options of the command.
        known: What is known.
        preferred: Settings of the group to take, if there is one; None for the group with the most networks, of equal
            ones the newest.
    """
    groups = [_with_origin(g, known) for g in timings(known.records, known.images, options.needed_times())]
    engine = None if options.engine == choice_words.ANY else options.engine
    suitable = of_device(groups, _fits(options.device), options.precision, engine)
    if engine is None:
        used = first_of_each_way(suitable)
    else:
        # Sorting is stable, so without the preferred group the largest one stays the first.
        used = sorted(suitable, key=lambda group: group.settings != preferred)[:1]
    return used, [group for group in groups if not any(group is other for other in used)]


def _with_origin(group: Timing, known: Known) -> Timing:
    """Return a group of records that names the files of its records."""
    files = list(dict.fromkeys(known.files.get(id(record), "") for record in group.records.values()))
    named = [name for name in files if name]
    more = f" and {len(named) - MOST_FILES} more" if len(named) > MOST_FILES else ""
    return group._replace(origin=f"{', '.join(named[:MOST_FILES])}{more}")


def time_settings(options: Options) -> tuple[Setting, ...]:
    """Return the settings that must agree before the times that the options need are ranked."""
    return settings_of({quantity.work for quantity in options.needed_times() if quantity.work})


def _fits(device: str | None) -> Callable[[Record], bool]:
    """Return a function that says whether the times of a record are of a device that ``--device`` asks for."""
    cpu, gpus = cpu_name(), gpu_names()

    def fits(record: Record) -> bool:
        name = record.environment["device"]
        on_gpu = record.config["device"].startswith("cuda")
        # Where the driver lists no GPUs, those of the records are taken for this machine's; the answer names them.
        of_this_machine = name in gpus or (not gpus and device == "cuda") if on_gpu else name == cpu
        if device is None:
            return of_this_machine
        if device in ("cpu", "cuda"):
            return of_this_machine and on_gpu == (device == "cuda")
        return device.lower() in name.lower()

    return fits


# Output


def _print(options: Options, images: Images, chosen: Choice, used: list[Timing], others: list[Timing]) -> None:
    """Print the answer as sentences and a table."""
    conditions = options.conditions()
    width = min(make_console(pipe_width=PIPE_WIDTH).width, 2 * PIPE_WIDTH)
    _say(choice_words.headline(chosen, conditions), width)
    if chosen.fitting:
        letters = choice_words.source_letters(chosen, conditions)
        show(choice_words.choice_table(chosen, conditions, letters), pipe_width=PIPE_WIDTH)
        for line in choice_words.origin_lines(chosen):
            _say(line, width)
        for source, letter in letters.items():
            _say(f"{letter}: {source}", width)
        _say(choice_words.doubt_sentence(chosen), width)
        sentences = [choice_words.front_sentence(chosen), *choice_words.accuracy_sentences(chosen)]
        _say(" ".join(filter(None, sentences)), width)
    else:
        for timing in used:
            _say(f"Times are those of {timing.words}.", width)
    _list("Nearest misses:", choice_words.miss_sentences(chosen), width)
    if not used:
        of_engine = "" if options.engine in (TORCH, choice_words.ANY) else f" in {ENGINES[options.engine].title}"
        _say(f"No record has times of this device{of_engine} for these images.", width)
    _list("Times that are not used:", choice_words.timing_sentences(used, others, options.engine), width)
    commands = _commands(options, images, chosen)
    for sentence, words in commands.items():
        _say(sentence, width)
        out_text(_wrapped_command(words, width))
    if any(words[1] == "speed" for words in commands.values()) and not _cannot_measure(options):
        _say("`cnnbench pick` with --measure and these options does this, and then answers.", width)


def _cannot_measure(options: Options) -> bool:
    """Return whether ``--measure`` was given already, or is not possible with the other options."""
    return options.measure or options.engine == choice_words.ANY


def _say(text: str, width: int) -> None:
    """Print a sentence in lines of at most so many characters; nothing for an empty one."""
    if text:
        # Control characters become escapes first, since an escape is longer. A unit stays with its number.
        joined = re.sub(r"(?<=\d) (?=\S)", "\N{NO-BREAK SPACE}", printable(text))
        lines = textwrap.fill(joined, width, subsequent_indent="   ", break_on_hyphens=False)
        out_text(lines.replace("\N{NO-BREAK SPACE}", " "))


def _list(title: str, lines: Sequence[str], width: int) -> None:
    """Print a title with lines below it; nothing without lines."""
    if lines:
        out(title)
    for line in lines:
        _say(f"   {line}", width)


def _wrapped_command(words: Sequence[str], width: int) -> str:
    """Return a command for a shell, with a backslash at the end of each line but the last."""
    lines = ["  "]
    for word in (printable(shlex.quote(word)) for word in words):
        if len(lines[-1]) + len(word) + 3 > width and lines[-1].strip():
            lines.append("    ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _commands(options: Options, images: Images, chosen: Choice) -> dict[str, list[str]]:
    """Return the commands that would measure what is not known, by a sentence that says what that is."""
    commands = {}
    counts = choice_words.unknown_names(chosen, "params", "macs")
    if counts:
        sentence = f"Parameters or multiply-adds are not known of {choice_words.few(counts)}; this counts them:"
        commands[sentence] = [*_bench(images, counts), "--measures", "complexity"]
    trained = choice_words.unknown_names(chosen, "accuracy")
    if trained:
        sentence = f"The accuracy is not known of {choice_words.few(trained)}; this trains and tests them:"
        commands[sentence] = [*_bench(images, trained), "--epochs", str(images.full_epochs or FULL_EPOCHS)]
    timed = choice_words.names_to_time(chosen)
    if timed:
        sentence = f"Times here are not known of {choice_words.few(timed)}; this measures them:"
        commands[sentence] = _speed(options, images, timed)
    return commands


def _bench(images: Images, names: Sequence[str]) -> list[str]:
    """Return the words of a benchmark of networks on the data set."""
    words = ["cnnbench", "bench", "--models", ",".join(names), "--data", images.data]
    if images.size != images.usual_size:
        words += ["--data_options", f"{{image_size: {images.size}}}"]
    return words


def _speed(options: Options, images: Images, names: Sequence[str]) -> list[str]:
    """Return the words of a timing of networks on images of the same shape."""
    wanted = speed_options(options, images, names)
    words = ["cnnbench", "speed", *names]
    defaults = {"engine": TORCH}
    for name in ("in_channels", "image_size", "num_classes", "device", "engine", "precision"):
        value = getattr(wanted, name)
        if value != defaults.get(name, "auto"):
            words += [f"--{name}", str(value)]
    if wanted.memory:
        words.append("--memory")
    return [*words, "--records", str(SPEED_FOLDER / "more.jsonl")]


def speed_options(options: Options, images: Images, names: Sequence[str]) -> SpeedOptions:
    """Return the options of ``cnnbench speed`` that time networks on images of the same shape."""
    device = options.device if options.device in ("cpu", "cuda") else "auto"
    return SpeedOptions(
        models=tuple(names),
        in_channels=images.channels,
        image_size=images.size,
        num_classes=images.classes,
        device=device,
        engine="all" if options.engine == choice_words.ANY else options.engine,
        precision=options.precision or "auto",
        # On a GPU the memory of a step is always measured, and `speed` refuses the option.
        memory=options.max_memory is not None and device == "cpu",
    )


def names_to_time(options: Options, known: Known) -> list[str]:
    """Return the networks that satisfy the conditions on accuracy and counts, whose times matter therefore."""
    conditions = [condition for condition in options.conditions() if condition.quantity.work is None]
    entries: Sequence[Candidate] = candidates(known.records, known.models, known.images, None)
    return [entry.model for entry in choose(entries, conditions, None).fitting]
