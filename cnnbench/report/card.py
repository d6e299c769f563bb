"""Model cards: what a trained network is, what it does well and badly, and how to use it, from its record alone.

A card is Markdown with a head in YAML, the form of cards on the Hugging Face Hub.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnbench import text
from cnnbench.confusion import class_figures, most_confused
from cnnbench.files import safe_name, to_yaml, write_text
from cnnbench.measures import figures
from cnnbench.record import Record
from cnnbench.references import published_words, reference_of
from cnnbench.report import provenance
from cnnbench.report.columns import COLUMNS
from cnnbench.report.findings import DASH
from cnnbench.report.outputs import MarkdownPage
from cnnbench.report.seeds import KEY, OverSeeds
from cnnbench.report.settings import budget, said, setting
from cnnbench.report.trained import Trained

CARD = "MODEL.md"
"""File name of the card of a single network."""
MOST_CLASSES = 30
"""Number of classes from which on only those that are recognised worst have a row."""
MOST_MISTAKES = 10
"""Number of kinds of mistakes that a card lists."""
SHORT_TAG = "short-training"
"""Tag of a network whose training was not a full one, by which the Hub finds it."""
_COSTS = (
    *("params", "macs", "activations", "latency_ms_median", "images_per_s", "train_images_per_s"),
    *("peak_memory_bytes", "resident_bytes"),
)
"""Figures in the table of costs."""
_OUTSIDE = ("torchvision", "timm")
"""Sources of networks whose code needs no trust."""


def write_cards(networks: Sequence[Trained], folder: Path) -> list[Path]:
    """Write a card per network: ``MODEL.md`` for a single one, else ``<cell>.md``.

    Returns:
        Paths of the cards.
    """
    if len(networks) == 1:
        names = [CARD]
    else:
        names = []
        for network in networks:
            name, number = f"{network.record.key}.md", 1
            # Two records of one cell may differ in their settings.
            while name in names:
                number += 1
                name = f"{network.record.key}-{number}.md"
            names.append(name)
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in zip(names, networks, strict=True):
        write_text(folder / name, to_card(network))
    return [folder / name for name in names]


def to_card(network: Trained) -> str:
    """Return the card of a trained network."""
    record = network.record
    page = MarkdownPage()
    page.heading(network.name, 1)
    for line in limits(network):
        page.quote(line)
    page.paragraph(
        f"{record.title}, an image classifier of {record.data['num_classes']} classes, trained on "
        f"{record.data['label']} with seed {record.seed}. All figures are from the record of its run."
    )
    _add_accuracy(page, network)
    _add_classes(page, record)
    page.heading("Costs")
    page.table(_costs(record), [False, True, False])
    page.heading("Data")
    page.bullets(_data(record))
    page.heading("Training")
    page.bullets(_training(record))
    page.heading("How to load it")
    _add_loading(page, network)
    page.heading("How it was made")
    page.bullets(_provenance(record))
    command = made_by(network)
    if command:
        page.code([command], "sh")
    return f"---\n{to_yaml(head(network))}---\n\n{page}"


def head(network: Trained) -> dict[str, Any]:
    """Return the head of the card, as the Hugging Face Hub reads it.

    Only the head is in the Hub's lists of models and of results. So it says there too that a training was short: as a
    tag, and in the name of the accuracy.
    """
    record = network.record
    values: dict[str, Any] = {
        "library_name": "cnnbench",
        "pipeline_tag": "image-classification",
        "tags": ["cnnbench", "image-classification", safe_name(text.printable(record.model))],
        "metrics": ["accuracy"],
    }
    name = "Test accuracy"
    if not record.fully_trained:
        values["tags"].append(SHORT_TAG)
        name += f" after a short training ({record.training['epochs']:.3g} epochs)"
    accuracy = record.measures.get("test_accuracy")
    if accuracy is None:
        return values
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {
            "type": safe_name(text.printable(record.data_name)).lower(),
            "name": text.printable(record.data["label"]),
            "split": "test",
        },
        "metrics": [{"type": "accuracy", "value": accuracy, "name": name}],
    }
    values["model-index"] = [{"name": text.printable(record.title), "results": [result]}]
    return values


def limits(network: Trained) -> list[str]:
    """Return what must be known before the network is used or its figures are believed."""
    record = network.record
    # The warnings of a report on this record alone: synthetic data, JPEG copy, short training, suspect times.
    lines = provenance.warnings([record])
    if len(network.same.by_seed(KEY)) < 2:
        lines.append(
            "A single seed: other seeds of this training would reach other accuracies, by how much is not known."
        )
    if record.confusion_matrix is None:
        lines.append("Not tested: the record has no accuracy on the test set.")
    return lines


# Accuracy


def _add_accuracy(page: MarkdownPage, network: Trained) -> None:
    """Add the accuracies with their intervals, and the references beside them."""
    record = network.record
    rows = [["Accuracy", "%", "95 % interval", "Images"]]
    for split, words in (("test", "test set"), ("val", "validation split"), ("train", "training images")):
        value = record.measures.get(f"{split}_accuracy")
        if value is None:
            continue
        low, high = (record.measures.get(f"{split}_accuracy_{end}", value) for end in ("low", "high"))
        images = (
            record.measures.get("train_accuracy_images") if split == "train" else record.data.get(f"{split}_images")
        )
        shown = DASH if images is None else f"{images:,}"
        rows.append([words, f"{100 * value:.2f}", f"{100 * low:.2f} to {100 * high:.2f}", shown])
    if len(rows) == 1:
        return
    page.heading("Accuracy")
    page.table(rows, [False, True, True, True])
    page.paragraph("The intervals (Wilson) are for other images of the same kind; the spread of seeds is not in them.")
    seeds = OverSeeds(network.same, network.same.by_seed(KEY))
    if seeds.deviation is not None:
        mean = seeds.interval
        interval = ""
        if mean.low is not None and mean.high is not None:
            interval = f" (95 % interval, Student's t, {100 * mean.low:.2f} to {100 * mean.high:.2f})"
        page.paragraph(
            f"Over {len(seeds.accuracies)} seeds of this training the mean is {100 * mean.estimate:.2f} %{interval}, "
            f"with a standard deviation of {100 * seeds.deviation:.2f} points."
        )
    known = reference_of(record)
    if known is not None:
        page.paragraph(f"After the reference training of the package, the network reaches {known.words}.")
    published = published_words(record.model, str(record.data["label"]))
    if published:
        page.paragraph(f"{published[:1].upper()}{published[1:]}.")


def _add_classes(page: MarkdownPage, record: Record) -> None:
    """Add the most frequent mistakes, and the recall and precision of each class."""
    counts = record.confusion_matrix
    if counts is None:
        return
    names = [str(name) for name in record.data["class_names"]]
    page.heading("What it confuses")
    mistakes = most_confused(counts, MOST_MISTAKES)
    if not mistakes:
        page.paragraph("No test image is classified wrong.")
    else:
        rows = [["True class", "Taken for", "Images", "Share of the class"]]
        for m in mistakes:
            rows.append([names[m.true], names[m.predicted], f"{m.images:,}", f"{100 * m.share:.1f} %"])
        page.table(rows, [False, False, True, True])
    classes = list(enumerate(class_figures(counts)))
    if len(classes) > MOST_CLASSES:
        classes = sorted(classes, key=lambda item: item[1].recall)[:MOST_CLASSES]
        page.paragraph(f"The {MOST_CLASSES} of {len(counts):,} classes that are recognised worst:")
    rows = [["Class", "Images", "Recall %", "95 % interval", "Precision %"]]
    for index, c in classes:
        precision = DASH if c.precision is None else f"{100 * c.precision:.1f}"
        interval = f"{100 * c.low:.1f} to {100 * c.high:.1f}"
        rows.append([names[index], f"{c.images:,}", f"{100 * c.recall:.1f}", interval, precision])
    page.table(rows, [False, True, True, True, True])


# Costs, data and training


def _costs(record: Record) -> list[list[str]]:
    """Return the table of costs, header first."""
    columns = {column.key: column for column in COLUMNS}
    rows = [["Cost", "Value", "Measured"]]
    for key in _COSTS:
        if record.measures.get(key) is None:
            continue
        shown = columns[key].show(record)
        if key == "latency_ms_median" and "latency_ms_low" in record.measures:
            shown += f" ({record.measures['latency_ms_low']:.3g} to {record.measures['latency_ms_high']:.3g})"
        rows.append([columns[key].title, shown, _conditions(record, key)])
    return rows


def _conditions(record: Record, key: str) -> str:
    """Return where and how a cost was measured, in words."""
    work = figures()[key].work
    if work is None:
        return "counted, not measured" if figures()[key].kind == "count" else "measured"
    precision = setting(record, "precision" if work == "training" else "inference_precision")
    batch = {"latency": 1, "inference": record.config.get("speed_batch_size")}.get(
        work, record.config.get("batch_size")
    )
    device, threads = said(record.environment, "device"), said(record.environment, "threads")
    return f"{device}, {threads} {'thread' if threads == 1 else 'threads'}, {precision}, batch {batch}"


def _data(record: Record) -> list[tuple[str, str]]:
    """Return the facts about the data, as pairs of name and value."""
    data = record.data
    size, channels = said(data, "image_size"), said(data, "in_channels")
    pairs = [("Data", str(data["label"])), ("Images", f"{channels}x{size}x{size} (channels, height, width)")]
    for split, words in (("train", "Training images"), ("val", "Validation images"), ("test", "Test images")):
        if data.get(f"{split}_images") is not None:
            pairs.append((words, f"{data[f'{split}_images']:,}"))
    pairs.append(("Classes", ", ".join(str(name) for name in data["class_names"][:MOST_CLASSES])))
    if len(data["class_names"]) > MOST_CLASSES:
        pairs[-1] = ("Classes", f"{pairs[-1][1]} and {len(data['class_names']) - MOST_CLASSES:,} more")
    pairs.append(("Fingerprint of the images", str(said(data, "fingerprint"))))
    return pairs


def _training(record: Record) -> list[tuple[str, str]]:
    """Return the facts about the training, as pairs of name and value."""
    training = record.training
    pairs = [
        ("Recipe", str(said(training, "recipe"))),
        ("Peak learning rate", f"{said(training, 'peak_lr')}"),
        ("Batch size", str(said(record.config, "batch_size"))),
        ("Number format", str(said(record.config, "precision"))),
        ("Augmentation", str(said(record.data, "augmentation"))),
        ("Limit", budget(record)),
        ("Length", f"{training['epochs']:.4g} epochs, {training['steps']:,} steps, {training['seconds']:,.0f} s"),
        ("Seed", str(record.seed)),
    ]
    if training.get("optimizer"):
        pairs.insert(1, ("Optimizer", str(training["optimizer"])))
    return pairs


def _provenance(record: Record) -> list[tuple[str, str]]:
    """Return machine, software, commit, command and date, as pairs of name and value."""
    wanted = ("Device", "Machine", "Software", "Commit", "Command", "Date", "Counting")
    return [(name, value) for name, value in provenance.facts([record]) if name in wanted]


# Loading


def _add_loading(page: MarkdownPage, network: Trained) -> None:
    """Add how the weights are loaded in Python and tested on the command line."""
    if not network.weights:
        page.paragraph(
            "The run kept no weights. The command cnnbench fit keeps them, and so does bench with --keep_weights."
        )
        return
    digest = network.record.training.get("weights_sha256")
    state = "The checkpoint" if network.weights_are_there else "The checkpoint, which is not beside this card,"
    page.paragraph(f"{state} is {network.weights} in the run folder, with the SHA-256 hash {digest}. In that folder:")
    source, colon, _ = network.record.model.partition(":")
    trust = ""
    # Code of the user's runs only if the user trusts its module.
    if colon and source not in _OUTSIDE:
        trust = f", trust=[{text.printable(source)!r}]"
    path = text.printable(network.weights)
    page.code(
        [
            "from cnnbench import load",
            "",
            f"network = load({path!r}{trust})  # on the CPU, in evaluation mode",
            "logits = network(images)  # images as the data set normalises them",
        ],
        "python",
    )
    words = ["cnnbench", "test", "--ckpt_path", path]
    # A run of `fit` keeps its configuration beside its checkpoints, one of `bench` has none.
    if not _has_configuration(network):
        words += ["--model", network.record.model, "--data", network.record.data_name]
    if trust:
        words += ["--trust", source]
    page.code([_command(words)], "sh")


def _has_configuration(network: Trained) -> bool:
    """Return whether the run folder has a configuration of `fit`."""
    return network.folder is not None and (network.folder / "config.yaml").is_file()


def _command(words: Sequence[str]) -> str:
    """Return words as a command line, in which a shell expands nothing."""
    return " ".join(shlex.quote(text.printable(word)) for word in words)


def made_by(network: Trained) -> str:
    """Return a command that makes the network again, as far as its record has the options; empty if it has not.

    A run of `fit` keeps its configuration. The record of a cell of `bench` has all options that come from no file.
    """
    record, config = network.record, network.record.config
    if config.get("command") in ("fit", "test"):
        return "cnnbench fit --config config.yaml" if _has_configuration(network) else ""
    if any(config.get(name) for name in ("recipe_settings", "data_options", "max_steps")):
        return ""
    words = ["cnnbench", "bench", "--models", record.model, "--data", record.data_name, "--seeds", str(record.seed)]
    if config.get("budget_s") is not None:
        words += ["--budget", f"{config['budget_s']:g}s"]
    for name in ("epochs", "batch_size", "precision", "recipe", "learning_rate"):
        if config.get(name) is not None:
            words += [f"--{name}", str(config[name])]
    return _command(words)
