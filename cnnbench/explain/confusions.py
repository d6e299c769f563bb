"""Tables and pictures of which classes a network mistakes for which.

The confusion matrices come from records of ``cnnbench bench``, from a checkpoint, or from predictions. Records hold the
counts, which are enough for everything except pictures of the test images. The counts of several training runs of a
network on the same data with the same settings are added up.

Intervals are 95 % Wilson score intervals (Wilson 1927), which treat the test images as a random sample. All training
runs see the same test images, so a further run does not add images, and the intervals use the mean counts per run.
Training runs also differ by chance; only several runs of each network show by how much.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cnnbench.confusion import Counts, accuracy, most_confused
from cnnbench.data import get_data
from cnnbench.errors import UserError, unknown
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.networks import load_checkpoint, predict
from cnnbench.explain.options import ConfusionsOptions
from cnnbench.files import read_text, reason
from cnnbench.plots.grids import grid, outline, show
from cnnbench.record import Record, load_records
from cnnbench.registry import split_names
from cnnbench.report.charts import draw_confusion, name_classes
from cnnbench.report.findings import contenders
from cnnbench.stats import discoveries, mean_difference, two_proportions_p, wilson_interval

IMAGES = 8
"""Largest number of images that are shown for each kind of mistake."""
_ROUNDED = 1e-3
"""Largest difference from 1 of the sum of an image's probabilities, which are rounded to six digits in the file."""
FEWEST = 10
"""Smallest count in a cell for which a difference is tested: the sum over both networks of their mean count per run."""
FALSE_SHARE = 0.05
"""Largest expected share of chance differences among those that are called real."""


class Matrix(NamedTuple):
    """The confusion matrices of a network on the test images of a data set.

    Attributes:
        name: Name of the network.
        label: Label of the data set.
        classes: Names of the classes.
        runs: Counts of each training run; rows are true classes, columns predicted ones. A seed that was trained twice
            is in the list twice.
    """

    name: str
    label: str
    classes: Sequence[str]
    runs: Sequence[list[list[int]]]

    @property
    def counts(self) -> list[list[int]]:
        """Return the sum of the counts over all training runs."""
        return [[sum(cell) for cell in zip(*rows, strict=True)] for rows in zip(*self.runs, strict=True)]

    @property
    def trainings(self) -> int:
        """Return the number of training runs."""
        return len(self.runs)

    @property
    def unit(self) -> str:
        """Return the unit of the counts; several training runs give several answers for each image."""
        return f"answers in {self.trainings} trainings" if self.trainings > 1 else "images"

    @property
    def title(self) -> str:
        return f"{self.name} on {self.label}" + (f", {self.trainings} trainings added up" if self.trainings > 1 else "")


class ClassFigures(NamedTuple):
    """Figures of one class.

    Attributes:
        images: Number of images of the class, summed over all training runs.
        recall: Share of the images of the class that are classified correctly.
        low: Lower end of the 95 % interval of the recall.
        high: Upper end of that interval.
        precision: Share of the images predicted as the class that belong to it; None if no image is predicted as it.
        f1: Harmonic mean of precision and recall; 0 if no image of the class is classified correctly.
    """

    images: int
    recall: float
    low: float
    high: float
    precision: float | None
    f1: float


class Pair(NamedTuple):
    """Two classes that are mistaken for each other.

    Attributes:
        first: Index of the class with the smaller index.
        second: Index of the other class.
        images: Number of mistakes in both directions, summed over all training runs.
        share: Share of the images of both classes that are mistaken in this way.
        low: Lower end of the 95 % interval of the share.
        high: Upper end of that interval.
    """

    first: int
    second: int
    images: int
    share: float
    low: float
    high: float


class Difference(NamedTuple):
    """The difference between two networks in one cell of the confusion matrix.

    Attributes:
        true: Index of the true class.
        predicted: Index of the predicted class.
        first: Share of the images of the true class that the first network predicts so, as a mean over its runs.
        second: The same share of the second network.
        p_value: p value of the hypothesis that both shares are equal.
        real: Whether the difference counts as more than chance, after the correction for the number of cells.
    """

    true: int
    predicted: int
    first: float
    second: float
    p_value: float
    real: bool


def class_figures(counts: Counts, runs: int = 1) -> list[ClassFigures]:
    """Compute precision, recall and F1 of every class.

    A class without images gets a recall of 0 with the interval from 0 to 1.

    Args:
        counts: Confusion matrix, summed over all training runs; rows are true classes, columns predicted ones.
        runs: Number of training runs; all of them were tested on the same images.
    """
    found = []
    for index, row in enumerate(counts):
        hits, images, taken = row[index], sum(row), sum(other[index] for other in counts)
        # Further runs do not add images, so the interval uses the mean counts per run.
        low, high = wilson_interval(hits / runs, images / runs) if images else (0.0, 1.0)
        # The harmonic mean of hits / images and hits / taken, in a form that is defined without hits too.
        f1 = 2 * hits / (images + taken) if images + taken else 0.0
        found.append(
            ClassFigures(images, hits / images if images else 0.0, low, high, hits / taken if taken else None, f1)
        )
    return found


def confused_pairs(counts: Counts, limit: int, runs: int = 1) -> list[Pair]:
    """Return the pairs of classes that are most often mistaken for each other, in either direction.

    Args:
        counts: Confusion matrix, summed over all training runs.
        limit: Largest number of pairs.
        runs: Number of training runs; all of them were tested on the same images.

    Returns:
        Pairs with at least one mistake, the most frequent pair first.
    """
    pairs = []
    for i in range(len(counts)):
        for j in range(i):
            images, total = counts[i][j] + counts[j][i], sum(counts[i]) + sum(counts[j])
            if images:
                pairs.append(Pair(j, i, images, images / total, *wilson_interval(images / runs, total / runs)))
    return sorted(pairs, key=lambda p: (-p.images, p.first, p.second))[:limit]


def differences(first: Sequence[Counts], second: Sequence[Counts]) -> list[Difference]:
    """Test in which cells of the confusion matrix two networks differ by more than chance.

    Only cells with at least `FEWEST` images are tested. Two sources of chance are considered:

    - The choice of test images: a two-proportion z test of the mean counts per run. It treats the images of the two
      networks as independent, but both networks saw the same ones. The test is therefore cautious where both err on the
      same images.
    - The training: Welch's t test (Welch 1947) of the shares in the training runs. It needs at least two runs of each
      network; with a single run the chance in training is not known.

    The larger of the two p values counts. The false discovery rate over all tested cells is at most 5 % (Benjamini and
    Hochberg 1995).

    Args:
        first: Confusion matrix of each training run of the first network.
        second: Confusion matrix of each training run of the second network.

    Returns:
        One difference per tested cell, the largest first.

    Raises:
        UserError: The matrices have different sizes.
    """
    if len(first[0]) != len(second[0]):
        raise UserError(
            f"the networks have {len(first[0])} and {len(second[0])} classes; compare those of the same data"
        )
    # Mean count per run in each cell, for both networks.
    one, other = (
        [[statistics.fmean(cell) for cell in zip(*rows, strict=True)] for rows in zip(*runs, strict=True)]
        for runs in (first, second)
    )
    cells = [(i, j) for i in range(len(one)) for j in range(len(one)) if one[i][j] + other[i][j] >= FEWEST]
    tested = []
    for i, j in cells:
        (a, n), (b, m) = (one[i][j], sum(one[i])), (other[i][j], sum(other[i]))
        p = two_proportions_p(a, n, b, m)
        if min(len(first), len(second)) > 1:
            p = max(p, mean_difference([run[i][j] / n for run in first], [run[i][j] / m for run in second]).p)
        tested.append(Difference(i, j, a / n, b / m, p, False))
    real = discoveries([d.p_value for d in tested], FALSE_SHARE)
    marked = [d._replace(real=is_real) for d, is_real in zip(tested, real, strict=True)]
    return sorted(marked, key=lambda d: -abs(d.first - d.second))


def explain(options: ConfusionsOptions) -> Explanation:
    """Show which classes are confused, from records, a checkpoint or predictions.

    Raises:
        UserError: The options name neither records nor a checkpoint nor predictions, or one of these cannot be used.
    """
    matrices = _from_records(options) if options.records else []
    explanation = Explanation({"networks": []})
    if options.ckpt_path or options.predictions:
        matrix, picture = _from_images(options)
        matrices.append(matrix)
    else:
        picture = None
        explanation.remarks.append(
            "Records hold counts; --ckpt_path, or --predictions with --data, shows the images too."
        )
    if not matrices:
        raise UserError("give RECORDS of `cnnbench bench`, or --ckpt_path FILE, or --predictions FILE with --data NAME")
    for matrix in matrices:
        _describe(matrix, options.pairs, explanation)
    if picture is not None:
        explanation.pictures.append(picture)
    for label in dict.fromkeys(m.label for m in matrices):
        same = [m for m in matrices if m.label == label]
        if len(same) == 2:
            _compare(same[0], same[1], options.pairs, explanation)
        elif len(same) > 2:
            explanation.remarks.append(
                f"{len(same)} networks on {label}: name two with --models A,B for their difference."
            )
    return explanation


def _from_records(options: ConfusionsOptions) -> list[Matrix]:
    """Return one matrix per network, data set and settings, with all of its training runs."""
    records = [r for r in load_records(options.records) if r.confusion_matrix is not None]
    if not records:
        raise UserError("the records have no confusion matrices; measure quality with `cnnbench bench`")
    records = _only(records, "data", "data_name", split_names(options.data or ""))
    records = _only(records, "model", "model", options.models or ())
    found = []
    for entry in contenders(records):
        runs = [r.confusion_matrix or [] for r in entry.records]
        found.append(Matrix(entry.name, entry.label, entry.records[0].data["class_names"], runs))
    return found


def _only(records: Sequence[Record], kind: str, key: str, names: Sequence[str]) -> list[Record]:
    """Return the records of the named data sets or networks, or all records if no name is passed.

    Args:
        records: Records to choose from.
        kind: Word for the named things in the error message, "data" or "model".
        key: Attribute of a record that holds the name.
        names: Names to keep.

    Raises:
        UserError: A name is in none of the records.
    """
    if not names:
        return list(records)
    there = list(dict.fromkeys(getattr(record, key) for record in records))
    for name in names:
        if name not in there:
            raise unknown(f"{kind} in the records", name, there)
    return [record for record in records if getattr(record, key) in names]


def _from_images(options: ConfusionsOptions) -> tuple[Matrix, Picture]:
    """Return the matrix of a checkpoint or of a predictions file, and a picture of the images behind its worst cells.

    Raises:
        UserError: The data set is not known, the options contradict each other, or the predictions do not fit the data.
    """
    if options.predictions is not None:
        if options.ckpt_path or options.data is None:
            raise UserError("--predictions goes with --data NAME, and without --ckpt_path")
        name, probabilities = options.predictions.name, _read_predictions(options.predictions)
        data = get_data(options.data)(data_dir=options.data_dir)
        data.prepare_data()
        data.setup()
    else:
        assert options.ckpt_path is not None
        subject = load_checkpoint(options.ckpt_path, options)
        if subject.data is None:
            raise UserError("the checkpoint does not say which data it is for; add --data NAME")
        name, data = subject.name, subject.data
        data.prepare_data()
        data.setup()
        probabilities = predict(subject.model, data.test_dataloader()).softmax(1)
    images, labels = data.test_dataloader().split
    if options.predictions:
        _check_predictions(options.predictions, data.class_names, labels.tolist(), data.label)
    if probabilities.shape != (len(labels), data.num_classes):
        raise UserError(
            f"the predictions are {tuple(probabilities.shape)}, but {data.label} has {len(labels)} test images of "
            f"{data.num_classes} classes; name the data that they are for with --data"
        )
    predicted = probabilities.argmax(1)
    # The index label * k + prediction numbers the cells of the matrix row by row.
    k = data.num_classes
    counts = torch.bincount(labels * k + predicted, minlength=k * k).reshape(k, k).tolist()
    matrix = Matrix(name, data.label, data.class_names, [counts])
    return matrix, _worst_images(matrix, images, labels, probabilities, options.pairs)


def _read_predictions(path: Path) -> Tensor:
    """Read the probabilities, (N, K), from a file that ``cnnbench predict`` wrote.

    Raises:
        UserError: The file is not such a file; the message names the line.
    """
    rows = _rows_of(path)
    mend = "`cnnbench predict` writes such a file"
    if not rows or rows[0][:3] != ["image", "true", "predicted"]:
        raise UserError(f"predictions '{path}' do not begin with the columns image, true, predicted; {mend}")
    if len(rows) == 1:
        raise UserError(f"predictions '{path}' have no row; {mend}")
    values: list[list[float]] = []
    for number, row in enumerate(rows[1:], 2):
        try:
            values.append([float(cell) for cell in row[3:]])
        except ValueError as error:
            raise UserError(f"predictions '{path}', line {number}: {reason(error)}; {mend}") from error
        if len(row) != len(rows[0]):
            raise UserError(f"predictions '{path}', line {number} has {len(row)} cells, not {len(rows[0])}; {mend}")
        if not all(0 <= value <= 1 for value in values[-1]) or abs(sum(values[-1]) - 1) > _ROUNDED:
            raise UserError(f"predictions '{path}', line {number}: its cells are not probabilities; {mend}")
    return torch.tensor(values)


def _rows_of(path: Path) -> list[list[str]]:
    """Read the cells of a file of comma-separated values."""
    text = read_text(path, "predictions")
    try:
        return list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"predictions '{path}' cannot be read: {reason(error)}") from error


def _check_predictions(path: Path, names: Sequence[str], labels: Sequence[int], label: str) -> None:
    """Raise UserError if a predictions file is about other images than the test images of the data set.

    The shape alone cannot tell: two data sets may have the same numbers of images and classes. So the names of the
    classes and the true class of every image are compared.

    Args:
        path: Predictions file.
        names: Names of the classes of the data set.
        labels: True classes of its test images.
        label: Label of the data set, for the error message.

    Raises:
        UserError: The file has other classes, or an image in it has another true class.
    """
    head, *rows = _rows_of(path)
    if head[3:] != list(names) or [row[1] for row in rows] != [names[i] for i in labels]:
        raise UserError(f"'{path}' is not about the test images of {label}; name the data that it is for with --data")


def _describe(matrix: Matrix, limit: int, explanation: Explanation) -> None:
    """Add the tables, the picture and the numbers of one matrix to the explanation."""
    counts, names = matrix.counts, matrix.classes
    figures, pairs = class_figures(counts, matrix.trainings), confused_pairs(counts, limit, matrix.trainings)
    directed = most_confused(counts, limit)
    share = accuracy(counts)
    # `accuracy` takes every count for a separate image. The interval is computed anew from the mean counts per run.
    total = sum(map(sum, counts)) / matrix.trainings
    share["test_accuracy_low"], share["test_accuracy_high"] = wilson_interval(share["test_accuracy"] * total, total)
    explanation.numbers["networks"].append(
        {
            "model": matrix.name,
            "data": matrix.label,
            "trainings": matrix.trainings,
            **share,
            "confusion_matrix": counts,
            "classes": {
                n: f._asdict() | {"images": f.images // matrix.trainings} for n, f in zip(names, figures, strict=True)
            },
            "pairs": [p._asdict() | {"first": names[p.first], "second": names[p.second]} for p in pairs],
            "mistakes": [m._asdict() | {"true": names[m.true], "predicted": names[m.predicted]} for m in directed],
        }
    )
    rows = [
        (
            name,
            f"{f.images // matrix.trainings:,}",
            "-" if f.precision is None else f"{f.precision:.1%}",
            f"{f.recall:.1%}",
            f"{f.low:.1%} to {f.high:.1%}",
            f"{f.f1:.3f}",
        )
        for name, f in zip(names, figures, strict=True)
    ]
    class_head = ("Class", "Images", "Precision", "Recall", "95 % interval", "F1")
    explanation.tables.append(Table(f"{matrix.title}: classes", class_head, rows))
    mistakes = [
        (f"{names[m.true]} taken for {names[m.predicted]}", f"{m.images:,}", f"{m.share:.1%}", _interval(matrix, m))
        for m in directed
    ]
    both = [
        (f"{names[p.first]} and {names[p.second]}", f"{p.images:,}", f"{p.share:.1%}", f"{p.low:.1%} to {p.high:.1%}")
        for p in pairs
    ]
    head = ("Mistake", matrix.unit.capitalize(), "Share of the class", "95 % interval")
    explanation.tables.append(Table(f"{matrix.title}: most frequent mistakes", head, mistakes))
    head = ("Pair, in either direction", matrix.unit.capitalize(), "Share of both", "95 % interval")
    explanation.tables.append(Table(f"{matrix.title}: most confused pairs", head, both))
    correct = share["test_accuracy"]
    worst = (
        f" Most confused are {names[pairs[0].first]} and {names[pairs[0].second]}: {pairs[0].images:,} {matrix.unit}."
        if pairs
        else ""
    )
    caption = (
        "Rows are what the images show, columns what the network takes them for; the colour is the share of the row. "
        f"{correct:.1%} lie on the diagonal.{worst}"
    )
    if matrix.trainings > 1:
        explanation.remarks.append(
            f"{matrix.title}; all saw the same {total:,.0f} test images, so intervals are those of one training, "
            "without the chance in training."
        )
    number = len(explanation.numbers["networks"])
    name = "confusions" if number == 1 else f"confusions-{number}"
    drawn = draw_confusion(counts, names, f"{matrix.name} on {matrix.label}: {correct:.1%}", _note(matrix))
    explanation.pictures.append(Picture(name, f"{matrix.title}: confusion matrix", caption, drawn))


def _interval(matrix: Matrix, mistake: Any) -> str:
    low, high = wilson_interval(mistake.images / matrix.trainings, sum(matrix.counts[mistake.true]) / matrix.trainings)
    return f"{low:.1%} to {high:.1%}"


def _note(matrix: Matrix) -> str:
    return f"{matrix.trainings} trainings added up" if matrix.trainings > 1 else "counts of test images"


def _worst_images(matrix: Matrix, images: Tensor, labels: Tensor, probabilities: Tensor, limit: int) -> Picture:
    """Draw the test images behind the most frequent mistakes: a row for each mistake, the most confident ones first."""
    confidence, predicted = probabilities.max(1)
    worst = most_confused(matrix.counts, limit)
    figure, axes = grid(max(len(worst), 1) * IMAGES, IMAGES, cell=0.71)
    for row, mistake in enumerate(worst):
        cell = ((labels == mistake.true) & (predicted == mistake.predicted)).nonzero().flatten()
        cell = cell[confidence[cell].argsort(descending=True)][:IMAGES]
        for ax, index in zip(axes[row * IMAGES :], cell.tolist(), strict=False):
            image = images[index].permute(1, 2, 0).numpy() / 255
            show(ax, image[..., 0] if image.shape[2] == 1 else image, f"{confidence[index]:.0%}", "unit")
        text = f"{matrix.classes[mistake.true]}\ntaken for\n{matrix.classes[mistake.predicted]}\n({mistake.images:,})"
        axes[row * IMAGES].text(
            -0.12, 0.5, text, transform=axes[row * IMAGES].transAxes, ha="right", va="center", fontsize=8.5
        )
    caption = (
        "Test images behind the most frequent mistakes, a row each, the most confident mistakes first; above each "
        "image is the probability that the network gives to its wrong answer. Ask what you would have said."
    )
    return Picture("mistakes", f"{matrix.title}: images behind the worst cells", caption, figure)


def _compare(first: Matrix, second: Matrix, limit: int, explanation: Explanation) -> None:
    """Add the table, the picture and the numbers of the difference between two networks to the explanation."""
    found = differences(first.runs, second.runs)
    names = first.classes
    rows = [
        (
            f"{names[d.true]} taken for {names[d.predicted]}" if d.true != d.predicted else f"{names[d.true]} found",
            f"{d.first:.1%}",
            f"{d.second:.1%}",
            f"{100 * (d.second - d.first):+.1f}",
            f"{d.p_value:.2g}",
            "yes" if d.real else "not shown",
        )
        for d in found[: 2 * limit]
    ]
    several = min(first.trainings, second.trainings) > 1
    beyond = "the draw of images and the chance in training" if several else "the draw of images"
    head = ("Cell", first.name, second.name, "Points", "p", "Beyond chance" if several else "Beyond the draw of images")
    title = f"{second.name} against {first.name} on {first.label}"
    explanation.tables.append(Table(f"{title}: largest differences", head, rows))
    explanation.numbers.setdefault("differences", []).append(
        {
            "first": first.name,
            "second": second.name,
            "data": first.label,
            "cells": [d._asdict() | {"true": names[d.true], "predicted": names[d.predicted]} for d in found],
        }
    )
    real = sum(d.real for d in found)
    caption = (
        f"Share of each true class, in points: red where {second.name} has more than {first.name}, blue where less. "
        f"{real} of the {len(found)} cells with at least {FEWEST} images differ by more than {beyond} (outlined; at "
        "most 5 % of them falsely, on average)."
    )
    if not several:
        once = "one training each" if first.trainings == second.trainings else "one training of one of them"
        caution = f"With {once}, another seed of the same network may differ as much: `bench --seeds 0,1,2` shows it."
        caption += f" {caution}"
        explanation.remarks.append(f"{title}: {caution}")
    explanation.pictures.append(
        Picture(
            f"difference-{len(explanation.numbers['differences'])}",
            title,
            caption,
            _draw_difference(first, second, found),
        )
    )


def _draw_difference(first: Matrix, second: Matrix, found: Sequence[Difference]) -> Figure:

    shares = [[[n / max(sum(row), 1) for n in row] for row in m.counts] for m in (first, second)]
    points = [[100 * (b - a) for a, b in zip(*rows, strict=True)] for rows in zip(*shares, strict=True)]
    top = max((abs(p) for row in points for p in row), default=1) or 1
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    ax = figure.subplots()
    ax.imshow(points, cmap="RdBu_r", vmin=-top, vmax=top)
    name_classes(ax, first.classes)
    for i, row in enumerate(points):
        for j, value in enumerate(row):
            if abs(value) >= 0.05:
                colour = "white" if abs(value) > 0.6 * top else "#222222"
                ax.text(
                    j,
                    i,
                    f"{value:+.1f}",
                    ha="center",
                    va="center",
                    fontsize=7 if len(points) <= 10 else 5,
                    color=colour,
                )
    for cell in found:
        if cell.real:
            low, high = (cell.true + 0.06, cell.predicted + 0.06), (cell.true + 0.94, cell.predicted + 0.94)
            outline(ax, low, high, "#222222")
    ax.set_title(f"{second.name} minus {first.name}, points", loc="left", fontsize=11, fontweight="bold")
    return figure
