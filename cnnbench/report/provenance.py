"""Warnings about the figures of a report, and facts about how they were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cnnbench.engines import ENGINES
from cnnbench.record import Record
from cnnbench.report.findings import first_sentences, listed
from cnnbench.report.settings import NOT_SAID, Setting, applies, budget, in_group, packages, said, setting
from cnnbench.report.ways import engine_version


def warnings(records: Sequence[Record]) -> list[str]:
    """Return the warnings that a reader needs before trusting a number."""
    return [
        *_synthetic(records),
        *_copies(records),
        *_trainings(records),
        *first_sentences(list(_diverged(records)), "more trainings diverged"),
        *first_sentences(list(_suspects(records)), "more reasons to suspect times; see results.csv"),
        *first_sentences(list(_same_weights(records)), "more trainings have several tests"),
        *_differences(records),
        *first_sentences(list(_failures(records)), "more cells failed; see results.csv"),
    ]


def _synthetic(records: Sequence[Record]) -> Iterator[str]:
    """Yield a warning if a record was measured on synthetic data."""
    labels = listed(dict.fromkeys(r.data["label"] for r in records if r.data["synthetic"]))
    if labels:
        yield (
            f"SYNTHETIC data: {labels}. These images are drawn by a formula; accuracy on them says nothing about "
            "photographs or handwriting. Costs and speed are those of real images of the same size."
        )


def _trainings(records: Sequence[Record]) -> Iterator[str]:
    """Yield a warning if a training was shorter than a full one."""
    short = [r for r in records if not r.fully_trained]
    if short:
        budgets = listed(dict.fromkeys(budget(r) for r in short))
        part = ""
        if any(r.training.get("converged", True) for r in short):
            part = ", or on a part of the training images"
        yield (
            f"* Not converged: trained for a budget of {budgets}, less than a full training{part}. These accuracies "
            "compare how far the networks come within the budget on this machine, not how good they are in the end."
        )


def _copies(records: Sequence[Record]) -> Iterator[str]:
    """Yield what a copy of a data set is, if a record was measured on one."""
    if any(JPEG_COPY in str(r.data["label"]) for r in records):
        yield f"{JPEG_MEANING}."


def _diverged(records: Sequence[Record]) -> Iterator[str]:
    """Yield a warning per training that diverged."""
    for r in records:
        if r.training.get("diverged"):
            yield f"Training of {r.model} on {r.data['label']} diverged: its loss was not a number."


def _suspects(records: Sequence[Record]) -> Iterator[str]:
    """Yield a warning per reason to doubt times, with the networks that it concerns."""
    reasons: dict[str, dict[str, None]] = {}
    for r in records:
        for reason in r.measures.get("suspect", ()):
            # The seeds of a cell share one timing and its reasons, so the cell is named once.
            reasons.setdefault(reason, {})[f"{r.model} on {r.data['label']}"] = None
    cells = len({(r.model, r.data["label"]) for r in records})
    for reason, names in reasons.items():
        # A reason that concerns all networks needs no list of them.
        which = "all" if len(names) == cells else listed(names)
        yield f"? Suspect times ({which}): {reason}. Time them again before believing small differences."


def _differences(records: Sequence[Record]) -> Iterator[str]:
    """Yield a warning per setting, and per property of the machine, in which the records differ."""
    differing = {row.name for row in in_group("row") if len({_value_words(row, r) for r in records}) > 1}
    for row in in_group("row"):
        # Packages are looked at below, since engines have packages of their own.
        if row.unless in differing and row.name != "packages":
            continue
        # A benchmark that timed nothing has no batch size of the timing, for example.
        values = list(dict.fromkeys(_value_words(row, r) for r in records if applies(row, r)))
        if len(values) < 2 or (row.name == "packages" and _by_engine_alone(records)):
            continue
        if row.place == "environment":
            yield f"The records come from more than one {row.name}: speed does not compare between them."
        else:
            yield f"The records differ in {row.name} ({listed(values)}): not every row compares with every other."


def _by_engine_alone(records: Sequence[Record]) -> bool:
    """Return whether versions of packages differ in the engines' own packages alone, each engine having one version.

    A row names the version of its engine, which the rows of other engines do not have.
    """
    own = {engine.package for engine in ENGINES.values() if engine.package != "torch"}
    others: set[str] = set()
    of_engines: dict[Any, set[Any]] = {}
    for record in records:
        versions = record.environment.get("packages") or {}
        others.add(packages({name: version for name, version in versions.items() if name not in own}))
        of_engines.setdefault(setting(record, "engine"), set()).add(engine_version(record))
    return len(of_engines) > 1 and len(others) == 1 and all(len(versions) == 1 for versions in of_engines.values())


def _value_words(row: Setting, record: Record) -> str:
    """Return the value of a setting of a record as a text."""
    value = row.value(record)
    # A step takes one batch unless the record says otherwise.
    if row.name == "images_per_step" and value is None:
        value = record.config.get("batch_size")
    return "none" if value is None else str(value)


def _same_weights(records: Sequence[Record]) -> Iterator[str]:
    """Yield a warning per training with several records, such as that of `fit` and those of `test` of its weights."""
    rows: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        if r.training.get("weights_sha256"):
            rows.setdefault((r.model, r.data["label"], r.training["weights_sha256"]), []).append(r)
    for (model, label, _), members in rows.items():
        if len(members) > 1:
            yield (
                f"{len(members)} rows of {model} on {label}, seed {members[0].seed}, are tests of the same weights, "
                "and not repeats of a training."
            )


def _failures(records: Sequence[Record]) -> Iterator[str]:
    """Yield a warning per cell that failed."""
    for r in records:
        if r.status == "error":
            yield f"{r.model} on {r.data['label']} failed: {r.reason}"


def facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return machine, versions, data and settings as pairs of name and value, with different values joined."""
    # Different values of a fact are kept in the order of their first appearance.
    rows: dict[str, dict[str, None]] = {}
    for r in records:
        for name, value in _facts(r):
            rows.setdefault(name, {})[value] = None
    pairs = [(name, listed(values, "; ")) for name, values in rows.items()]
    rates = _learning_rates(records)
    if rates:
        place = list(rows).index("Recipe") + 1  # a record with a learning rate has a training, and so a recipe
        pairs.insert(place, ("Peak learning rate", listed(rates, "; ")))
    return pairs


def _learning_rates(records: Sequence[Record]) -> list[str]:
    """Return each peak learning rate with the networks that were trained with it."""
    models: dict[float, dict[str, None]] = {}
    for r in records:
        if "peak_lr" in r.training and not r.is_of_an_engine:
            models.setdefault(r.training["peak_lr"], {})[r.model] = None
    return [f"{rate:g} {listed(names)}" for rate, names in models.items()]


def _facts(r: Record) -> list[tuple[str, str]]:
    """Return the facts about the measurement of a record; a name may occur twice."""
    env, config, data = r.environment, r.config, r.data
    facts = [("Device", f"{said(env, 'device')} ({said(config, 'device')})")]
    for name, value in (env.get("accelerator") or {}).items():
        facts.append((f"GPU {name}", str(value)))
    facts += [
        ("Machine", _machine(env)),
        ("Software", f"Python {said(env, 'python')}, {packages(env.get('packages')) or 'packages not said'}"),
        ("Commit", _commit(env)),
    ]
    # Records from before 2026-11-30, and those of Python's functions, have none.
    if env.get("command_line"):
        facts.append(("Command", str(env["command_line"])))
    facts += [
        ("Numbers", _numbers(config)),
        ("Batch size", _batch_sizes(config)),
        ("Data", _data(data)),
    ]
    # A record without a training has neither a budget nor a recipe.
    if r.training:
        facts += [("Budget", f"{budget(r)} per cell"), ("Recipe", str(said(r.training, "recipe")))]
    for name, reason in r.skipped.items():
        facts.append(("Not measured", f"{name}: {reason}"))
    if config.get("macs_convention"):
        facts.append(("Counting", str(config["macs_convention"])))
    facts.append(("Date", r.created[:10]))
    return facts


def _machine(env: Mapping[str, Any]) -> str:
    """Return processor cores, threads, memory and operating system in words."""
    cores, threads, memory = said(env, "cpu_cores"), said(env, "threads"), said(env, "memory_gib")
    return f"{cores} CPU cores, {threads} threads, {memory} GiB memory, {said(env, 'os')}"


def _commit(env: Mapping[str, Any]) -> str:
    """Return the commit of the code, and whether files had been changed since."""
    if not env.get("commit"):
        return "not known"
    changes = " with local changes" if env.get("dirty") else ""
    # Git finds a commit by the first digits of its hash.
    return f"{env['commit'][:12]}{changes}"


def _numbers(config: Mapping[str, Any]) -> str:
    """Return the number formats, the memory format, the run mode and cuDNN's search as one text."""
    words = str(said(config, "precision"))
    if config.get("precision_reason"):
        words += f" ({config['precision_reason']})"
    # The format of inference is worth a word only where it differs from that of training.
    inference = config.get("inference_precision")
    if inference not in (None, config.get("precision")):
        words += f"; inference is timed in {inference}"
    words += f", memory format {said(config, 'memory_format')}"
    if config.get("mode"):
        words += f", {config['mode']}"
    if config.get("cudnn_benchmark"):
        words += ", cuDNN's search for kernels on"
    return words


def _batch_sizes(config: Mapping[str, Any]) -> str:
    """Return the batch sizes of training, inference and test in words."""
    words = f"{said(config, 'batch_size')} in training, {said(config, 'speed_batch_size')} for images/s"
    if config.get("eval_batch_size"):
        words += f", {config['eval_batch_size']} in the test"
    return f"{words}, 1 for latency"


JPEG_COPY = "JPEG copy"
"""Words in the label of a data set that was read from class folders of JPEG files."""
JPEG_MEANING = (
    "JPEG copy: class folders of CIFAR-10's images that somebody saved as JPEG files, whose pixels differ a little "
    "from the originals; accuracies are not those of the original files"
)


def _data(data: Mapping[str, Any]) -> str:
    """Return a data set in words: its label, the sizes of its splits, its images and its augmentation."""
    label = str(data["label"])
    # Records of `cnnbench speed` are of random images without splits.
    if not data.get("train_images"):
        return label
    training, validation, test = _images(data, "train"), _images(data, "val"), _images(data, "test")
    size = said(data, "image_size")
    return (
        f"{label}: {training} training, {validation} validation and {test} test images, "
        f"{said(data, 'in_channels')}x{size}x{size}, augmentation: {_augmentation(data)}, "
        f"full training {said(data, 'full_epochs')} epochs"
    )


def _images(data: Mapping[str, Any], split: str) -> str:
    """Return the number of images of a split as text."""
    count = data.get(f"{split}_images")
    return NOT_SAID if count is None else f"{count:,}"


def _augmentation(data: Mapping[str, Any]) -> str:
    """Return the augmentation in words."""
    if data.get("augmentation") is not None:
        return str(data["augmentation"])
    # Records from before 2026-11-23 store only a flag.
    if "augment" not in data:
        return NOT_SAID
    return "random shift and mirroring" if data["augment"] else "none"
