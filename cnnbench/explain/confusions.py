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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cnnbench.confusion import ClassFigures, Confusion, Counts, accuracy, class_figures, most_confused
from cnnbench.data import get_data
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError, unknown
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.networks import load_checkpoint, predict
from cnnbench.explain.options import ConfusionsOptions
from cnnbench.files import read_text, reason
from cnnbench.plots.grids import grid, outline, show
from cnnbench.record import Record, load_records
from cnnbench.references import weights_file
from cnnbench.registry import split_names
from cnnbench.report.charts import draw_confusion, name_classes
from cnnbench.report.contenders import contenders
from cnnbench.stats import discoveries, mean_difference, two_proportions_p, wilson_interval

IMAGES = 8
"""Largest number of images that are shown for each kind of mistake."""
_ROUNDED = 1e-3
"""Largest difference from 1 of the sum of an image's probabilities, which are rounded to six digits in the file."""
FEWEST = 10
"""Smallest count in a cell for which a difference is tested: the sum over both networks of their mean count per run."""
FALSE_SHARE = 0.05
"""Largest expected share of chance differences among those that are called real."""

MATRIX_CAPTION = (
    "Rows are what the images show, columns what the network takes them for; the colour is the share of the row. "
    "Correct answers lie on the diagonal, so look for dark cells beside it."
)
MISTAKES_CAPTION = (
    "Test images behind the most frequent mistakes, a row each, the most confident mistakes first; above each image is "
    "the probability that the network gives to its wrong answer. Ask what you would have said."
)
DIFFERENCE_CAPTION = (
    "Each cell says by how many percentage points the two networks differ in the share of its true class: red where "
    "the network that the title names first has more, blue where it has less. Outlined cells differ by more than the"
    " draw of images and, where both networks were trained several times, by more than the chance in training. At "
    "most 5 % of them do so falsely, on average."
)
"""Captions of the three pictures."""


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
        return np.array(self.runs, dtype=object).sum(axis=0).tolist()  # integers of Python, which cannot overflow

    @property
    def trainings(self) -> int:
        """Return the number of training runs."""
        return len(self.runs)

    @property
    def unit(self) -> str:
        """Return the unit of the counts; several training runs give several answers for each image."""
        if self.trainings > 1:
            return f"answers in {self.trainings} trainings"
        return "images"

    @property
    def title(self) -> str:
        """Return the network, its data set and the number of trainings, if there are several, for titles."""
        title = f"{self.name} on {self.label}"
        if self.trainings > 1:
            title += f", {self.trainings} trainings added up"
        return title


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
        # With j below i, every pair comes once, whichever of its classes is taken for the other.
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
    several = min(len(first), len(second)) > 1
    # Mean count per run in each cell.
    first_means, second_means = np.array(first).mean(axis=0).tolist(), np.array(second).mean(axis=0).tolist()
    tested = []
    for true, (first_row, second_row) in enumerate(zip(first_means, second_means, strict=True)):
        # Images of the true class in one run: the trials of the test.
        n, m = sum(first_row), sum(second_row)
        for predicted, (a, b) in enumerate(zip(first_row, second_row, strict=True)):
            if a + b < FEWEST:  # too few for the normal approximation of the z test
                continue
            p = two_proportions_p(a, n, b, m)
            if several:
                # A difference is real only if neither source of chance explains it, so the larger p value counts.
                first_shares = [run[true][predicted] / n for run in first]
                second_shares = [run[true][predicted] / m for run in second]
                p = max(p, mean_difference(first_shares, second_shares).p)
            tested.append(Difference(true, predicted, a / n, b / m, p, False))
    # Some cells would pass one test each by chance alone, so all p values are judged together.
    real = discoveries([cell.p_value for cell in tested], FALSE_SHARE)
    marked = [cell._replace(real=is_real) for cell, is_real in zip(tested, real, strict=True)]
    return sorted(marked, key=lambda cell: -abs(cell.first - cell.second))


class _Summary(NamedTuple):
    """What the confusion matrix of a network says.

    Attributes:
        matrix: Confusion matrices of the network.
        images: Number of test images, which all training runs share.
        accuracy: Share of correct answers with its interval, by the keys that `cnnbench.confusion.accuracy` uses.
        classes: Figures of each class.
        pairs: Most confused pairs of classes, in either direction.
        mistakes: Most frequent mistakes, in one direction each.
    """

    matrix: Matrix
    images: float
    accuracy: dict[str, float]
    classes: Sequence[ClassFigures]
    pairs: Sequence[Pair]
    mistakes: Sequence[Confusion]


class _Comparison(NamedTuple):
    """Two networks on the same data set.

    Attributes:
        first: Confusion matrices of the first network.
        second: Confusion matrices of the second network.
        cells: Difference in each tested cell, the largest first.
    """

    first: Matrix
    second: Matrix
    cells: Sequence[Difference]

    @property
    def title(self) -> str:
        """Return the networks and the data set, for titles."""
        return f"{self.second.name} against {self.first.name} on {self.first.label}"

    @property
    def several(self) -> bool:
        """Return whether both networks were trained more than once, so that the chance in training is known."""
        return min(self.first.trainings, self.second.trainings) > 1


class _Answers(NamedTuple):
    """Answers of a network to the test images of a data set.

    Attributes:
        matrix: Confusion matrix of the answers.
        data: Data set, whose test images are looked up.
        labels: True class of each image, (N,).
        probabilities: Probability of each class, (N, K).
    """

    matrix: Matrix
    data: ImageDataModule
    labels: Tensor
    probabilities: Tensor


class _Result(NamedTuple):
    """Everything that the tool shows.

    Attributes:
        summaries: Summary of each network; that of the answers, if there are any, is the last one.
        answers: Answers to the test images; None if there are only records.
        groups: Networks by label of their data set.
        comparisons: Comparisons on the data sets with two networks.
        limit: Largest number of mistakes in a list.
    """

    summaries: Sequence[_Summary]
    answers: _Answers | None
    groups: Mapping[str, Sequence[Matrix]]
    comparisons: Sequence[_Comparison]
    limit: int


def explain(options: ConfusionsOptions) -> Explanation:
    """Show which classes are confused, from records, a checkpoint or predictions.

    Raises:
        UserError: The options name neither records nor a checkpoint nor predictions, or one of these cannot be used.
    """
    with_images = bool(options.ckpt_path or options.predictions or options.weights)
    if not options.records and not with_images:
        raise UserError("give RECORDS of `cnnbench bench`, or --ckpt_path FILE, or --predictions FILE with --data NAME")
    matrices: list[Matrix] = []
    if options.records:
        matrices += _from_records(options)
    answers: _Answers | None = None
    if with_images:
        answers = _find_answers(options)
        matrices.append(answers.matrix)
    summaries = [_summarise(matrix, options.pairs) for matrix in matrices]
    # Only networks on the same data can be compared, and only two of them fit into one picture.
    groups: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        groups.setdefault(matrix.label, []).append(matrix)
    comparisons = []
    for group in groups.values():
        if len(group) == 2:
            first, second = group
            comparisons.append(_Comparison(first, second, differences(first.runs, second.runs)))
    result = _Result(summaries, answers, groups, comparisons, options.pairs)
    return Explanation(_numbers(result), _tables(result), _draw(result), _remarks(result))


def _summarise(matrix: Matrix, limit: int) -> _Summary:
    """Compute the figures of a network, with at most `limit` pairs and mistakes."""
    counts = matrix.counts
    # `accuracy` takes every count for a separate image. The interval is computed anew from the mean counts per run.
    figures = accuracy(counts)
    images = sum(map(sum, counts)) / matrix.trainings
    low, high = wilson_interval(figures["test_accuracy"] * images, images)
    figures |= {"test_accuracy_low": low, "test_accuracy_high": high}
    return _Summary(
        matrix,
        images,
        figures,
        class_figures(counts, matrix.trainings),
        confused_pairs(counts, limit, matrix.trainings),
        most_confused(counts, limit),
    )


# Where the confusion matrices come from


def _from_records(options: ConfusionsOptions) -> list[Matrix]:
    """Return one matrix per network, data set and settings, with all of its training runs."""
    # Records of a benchmark of speed alone have no confusion matrix.
    records = [r for r in load_records(options.records) if r.confusion_matrix is not None]
    if not records:
        raise UserError("the records have no confusion matrices; measure quality with `cnnbench bench`")
    records = _only(records, "data", "data_name", split_names(options.data or ""))
    records = _only(records, "model", "model", options.models or ())
    matrices = []
    for entry in contenders(records):
        runs = [record.confusion_matrix or [] for record in entry.records]
        matrices.append(Matrix(entry.name, entry.label, entry.records[0].data["class_names"], runs))
    return matrices


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
    known = list(dict.fromkeys(getattr(record, key) for record in records))
    for name in names:
        if name not in known:
            raise unknown(f"{kind} in the records", name, known)
    return [record for record in records if getattr(record, key) in names]


def _find_answers(options: ConfusionsOptions) -> _Answers:
    """Return the answers of a checkpoint, or those in a predictions file, to the test images.

    Raises:
        UserError: The data set is not known, the options contradict each other, or the predictions do not fit the data.
    """
    if options.predictions is not None:
        name = options.predictions.name
        data, probabilities = _read_predictions(options.predictions, options)
    else:
        path = options.ckpt_path
        if options.weights is not None:
            assert options.models is not None  # The options have checked this.
            path = weights_file(options.models[0], options.data)
        assert path is not None
        subject = load_checkpoint(path, options)
        if subject.data is None:
            raise UserError("the checkpoint does not say which data it is for; add --data NAME")
        name, data = subject.name, subject.data
        data.prepare_data()
        data.setup()
        # Probabilities instead of logits let the pictures say how confident a mistake is.
        probabilities = predict(subject.model, data.test_dataloader()).softmax(1)
    # The test loader does not shuffle, so row i of the probabilities belongs to image i.
    labels = data.test_dataloader().labels
    k = data.num_classes
    if probabilities.shape != (len(labels), k):
        raise UserError(
            f"the predictions are {tuple(probabilities.shape)}, but {data.label} has {len(labels)} test images of "
            f"{k} classes; name the data that they are for with --data"
        )
    # The index label * k + prediction numbers the cells of the matrix row by row.
    cells = labels * k + probabilities.argmax(1)
    # Without `minlength`, cells after the last one that occurs would be missing.
    counts = torch.bincount(cells, minlength=k * k).reshape(k, k).tolist()
    return _Answers(Matrix(name, data.label, data.class_names, [counts]), data, labels, probabilities)


def _read_predictions(path: Path, options: ConfusionsOptions) -> tuple[ImageDataModule, Tensor]:
    """Return the data set of a predictions file and the probabilities in the file, (N, K).

    The shape alone cannot tell that a file is about the test images of a data set: two data sets may have the same
    numbers of images and classes. So the names of the classes and the true class of every image are compared.

    Raises:
        UserError: The options contradict each other, the file is not one of predictions, it has other classes than the
            data set, or an image in it has another true class.
    """
    if options.ckpt_path or options.data is None:
        raise UserError("--predictions goes with --data NAME, and without --ckpt_path")
    rows = _read_rows(path)
    probabilities = _probabilities(path, rows)
    data = get_data(options.data)(data_dir=options.data_dir)
    data.prepare_data()
    data.setup()
    names = list(data.class_names)
    true_names = [names[label] for label in data.test_dataloader().labels.tolist()]
    # Columns from the fourth on are named after the classes; the second column is the true class.
    if rows[0][3:] != names or [row[1] for row in rows[1:]] != true_names:
        raise UserError(
            f"'{path}' is not about the test images of {data.label}; name the data that it is for with --data"
        )
    return data, probabilities


def _read_rows(path: Path) -> list[list[str]]:
    """Read the cells of a file of comma-separated values."""
    text = read_text(path, "predictions")
    try:
        # The csv module handles line ends itself, since a quoted cell may contain one; `newline=""` leaves them alone.
        return list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"predictions '{path}' cannot be read: {reason(error)}") from error


def _probabilities(path: Path, rows: list[list[str]]) -> Tensor:
    """Return the probabilities, (N, K), from the cells of a file that ``cnnbench predict`` wrote.

    Raises:
        UserError: The file is not such a file; the message names the line.
    """
    mend = "`cnnbench predict` writes such a file"
    if not rows or rows[0][:3] != ["image", "true", "predicted"]:
        raise UserError(f"predictions '{path}' do not begin with the columns image, true, predicted; {mend}")
    if len(rows) == 1:
        raise UserError(f"predictions '{path}' have no row; {mend}")
    values: list[list[float]] = []
    # The head is line 1 of the file, so the first row is line 2.
    for number, row in enumerate(rows[1:], 2):
        try:
            values.append([float(cell) for cell in row[3:]])
        except ValueError as error:
            raise UserError(f"predictions '{path}', line {number}: {reason(error)}; {mend}") from error
        if len(row) != len(rows[0]):
            raise UserError(f"predictions '{path}', line {number} has {len(row)} cells, not {len(rows[0])}; {mend}")
        # This also catches NaN, since every comparison with it is false.
        if not all(0 <= value <= 1 for value in values[-1]) or abs(sum(values[-1]) - 1) > _ROUNDED:
            raise UserError(f"predictions '{path}', line {number}: its cells are not probabilities; {mend}")
    return torch.tensor(values)


# What is shown


def _numbers(result: _Result) -> dict[str, Any]:
    """Return the numbers of the networks and of their differences."""
    numbers: dict[str, Any] = {"networks": [_network_numbers(summary) for summary in result.summaries]}
    if result.comparisons:
        numbers["differences"] = [_difference_numbers(comparison) for comparison in result.comparisons]
    return numbers


def _network_numbers(summary: _Summary) -> dict[str, Any]:
    """Return the numbers of one network, with names of classes in place of their indices."""
    matrix, names = summary.matrix, summary.matrix.classes
    classes = {}
    for name, figures in zip(names, summary.classes, strict=True):
        classes[name] = figures._asdict() | {"images": figures.images // matrix.trainings}
    pairs = []
    for pair in summary.pairs:
        pairs.append(pair._asdict() | {"first": names[pair.first], "second": names[pair.second]})
    return {
        "model": matrix.name,
        "data": matrix.label,
        "trainings": matrix.trainings,
        **summary.accuracy,
        "confusion_matrix": matrix.counts,
        "classes": classes,
        "pairs": pairs,
        "mistakes": [_cell_numbers(mistake, names) for mistake in summary.mistakes],
    }


def _difference_numbers(comparison: _Comparison) -> dict[str, Any]:
    """Return the numbers of the difference between two networks."""
    first, second = comparison.first, comparison.second
    cells = [_cell_numbers(cell, first.classes) for cell in comparison.cells]
    return {"first": first.name, "second": second.name, "data": first.label, "cells": cells}


def _cell_numbers(cell: Confusion | Difference, names: Sequence[str]) -> dict[str, Any]:
    """Return the numbers of a cell of the matrix, with names of classes in place of their indices."""
    return cell._asdict() | {"true": names[cell.true], "predicted": names[cell.predicted]}


def _tables(result: _Result) -> list[Table]:
    """Return the table of accuracies, then the tables of each network and of each comparison."""
    tables = [_accuracy_table(result.summaries)]
    for summary in result.summaries:
        tables.append(_class_table(summary))
        if summary.mistakes:
            tables += [_mistake_table(summary), _pair_table(summary)]
    for comparison in result.comparisons:
        # A cell of the matrix shows one direction only, so that there are twice as many of them as pairs.
        tables += [_difference_table(comparison, 2 * result.limit), _test_table(comparison)]
    return tables


def _accuracy_table(summaries: Sequence[_Summary]) -> Table:
    """Return the table of the accuracy of each network: the share of its matrix on the diagonal."""
    rows = []
    for summary in summaries:
        matrix, figures = summary.matrix, summary.accuracy
        correct = f"{figures['test_accuracy']:.1%}"
        interval = _interval(figures["test_accuracy_low"], figures["test_accuracy_high"])
        trainings, images = str(matrix.trainings), f"{summary.images:,.0f}"
        rows.append((matrix.name, matrix.label, trainings, images, correct, interval))
    head = ("Network", "Data", "Trainings", "Test images", "Accuracy", "95 % interval")
    return Table("Share of test images on the diagonal", head, rows)


def _class_table(summary: _Summary) -> Table:
    """Return the table of the figures of each class."""
    matrix = summary.matrix
    rows = []
    for name, figures in zip(matrix.classes, summary.classes, strict=True):
        # The counts of a class are sums over all training runs, which saw the same images.
        images = f"{figures.images // matrix.trainings:,}"
        precision = "-" if figures.precision is None else f"{figures.precision:.1%}"
        interval = _interval(figures.low, figures.high)
        rows.append((name, images, precision, f"{figures.recall:.1%}", interval, f"{figures.f1:.3f}"))
    head = ("Class", "Images", "Precision", "Recall", "95 % interval", "F1")
    return Table(f"{matrix.title}: classes", head, rows)


def _mistake_table(summary: _Summary) -> Table:
    """Return the table of the most frequent mistakes, in one direction each."""
    matrix, counts = summary.matrix, summary.matrix.counts
    rows = []
    for mistake in summary.mistakes:
        # As for the classes, the interval uses the mean counts per run.
        per_run = mistake.images / matrix.trainings
        low, high = wilson_interval(per_run, sum(counts[mistake.true]) / matrix.trainings)
        name = _cell_name(mistake, matrix.classes)
        rows.append((name, f"{mistake.images:,}", f"{mistake.share:.1%}", _interval(low, high)))
    head = ("Mistake", matrix.unit.capitalize(), "Share of the class", "95 % interval")
    return Table(f"{matrix.title}: most frequent mistakes", head, rows)


def _pair_table(summary: _Summary) -> Table:
    """Return the table of the most confused pairs of classes."""
    matrix, names = summary.matrix, summary.matrix.classes
    rows = []
    for pair in summary.pairs:
        name = f"{names[pair.first]} and {names[pair.second]}"
        rows.append((name, f"{pair.images:,}", f"{pair.share:.1%}", _interval(pair.low, pair.high)))
    head = ("Pair, in either direction", matrix.unit.capitalize(), "Share of both", "95 % interval")
    return Table(f"{matrix.title}: most confused pairs", head, rows)


def _difference_table(comparison: _Comparison, limit: int) -> Table:
    """Return the table of the largest differences between two networks."""
    first, second = comparison.first, comparison.second
    rows = []
    for cell in comparison.cells[:limit]:
        # Percentage points, second network minus first, as in the picture.
        points = f"{100 * (cell.second - cell.first):+.1f}"
        shares = (f"{cell.first:.1%}", f"{cell.second:.1%}", points)
        # A difference that is not shown to be real may still be real.
        verdict = "yes" if cell.real else "not shown"
        rows.append((_cell_name(cell, first.classes), *shares, f"{cell.p_value:.2g}", verdict))
    beyond = "Beyond chance" if comparison.several else "Beyond the draw of images"
    head = ("Cell", first.name, second.name, "Points", "p", beyond)
    return Table(f"{comparison.title}: largest differences", head, rows)


def _test_table(comparison: _Comparison) -> Table:
    """Return the table of how many cells were tested, and how many differ by more than chance."""
    chance = "the draw of images"
    if comparison.several:
        chance += " and the chance in training"
    real = sum(cell.real for cell in comparison.cells)
    rows = [
        (f"Cells with at least {FEWEST} images, which are tested", str(len(comparison.cells))),
        (f"Cells that differ by more than {chance}", str(real)),
    ]
    return Table(f"{comparison.title}: tests", ("Fact", "Value"), rows)


def _cell_name(cell: Confusion | Difference, names: Sequence[str]) -> str:
    """Return words for a cell of the matrix; one on the diagonal holds correct answers."""
    if cell.true == cell.predicted:
        return f"{names[cell.true]} found"
    return f"{names[cell.true]} taken for {names[cell.predicted]}"


def _interval(low: float, high: float) -> str:
    """Return an interval of a share as text."""
    return f"{low:.1%} to {high:.1%}"


def _remarks(result: _Result) -> list[str]:
    """Return what limits the results, and options that show more."""
    remarks = []
    if result.answers is None:
        remarks.append("Records hold counts; --ckpt_path, or --predictions with --data, shows the images too.")
    for summary in result.summaries:
        if not summary.mistakes:
            remarks.append(f"{summary.matrix.title}: no test image is mistaken.")
        if summary.matrix.trainings > 1:
            remarks.append(
                f"{summary.matrix.title}; all saw the same {summary.images:,.0f} test images, so intervals are those "
                "of one training, without the chance in training."
            )
    for comparison in result.comparisons:
        if not comparison.several:
            once = "one training of one of them"
            if comparison.first.trainings == comparison.second.trainings:
                once = "one training each"
            remarks.append(
                f"{comparison.title}: With {once}, another seed of the same network may differ as much: "
                "`bench --seeds 0,1,2` shows it."
            )
    for label, group in result.groups.items():
        if len(group) > 2:
            remarks.append(f"{len(group)} networks on {label}: name two with --models A,B for their difference.")
    return remarks


def _draw(result: _Result) -> list[Picture]:
    """Return the confusion matrices, the images behind the mistakes, and the differences."""
    pictures = []
    for number, summary in enumerate(result.summaries, 1):
        matrix = summary.matrix
        # Pictures are written to files of this name, so each matrix needs a name of its own.
        name = "confusions" if number == 1 else f"confusions-{number}"
        note = "counts of test images"
        if matrix.trainings > 1:
            note = f"{matrix.trainings} trainings added up"
        title = f"{matrix.name} on {matrix.label}: {summary.accuracy['test_accuracy']:.1%}"
        figure = draw_confusion(matrix.counts, matrix.classes, title, note)
        pictures.append(Picture(name, f"{matrix.title}: confusion matrix", MATRIX_CAPTION, figure))
    if result.answers is not None and result.summaries[-1].mistakes:
        title = f"{result.answers.matrix.title}: images behind the worst cells"
        figure = _draw_mistakes(result.answers, result.summaries[-1].mistakes)
        pictures.append(Picture("mistakes", title, MISTAKES_CAPTION, figure))
    for number, comparison in enumerate(result.comparisons, 1):
        figure = _draw_difference(comparison)
        pictures.append(Picture(f"difference-{number}", comparison.title, DIFFERENCE_CAPTION, figure))
    return pictures


def _draw_mistakes(answers: _Answers, mistakes: Sequence[Confusion]) -> Figure:
    """Draw the test images behind the most frequent mistakes: a row for each mistake, the most confident ones first."""
    names = answers.matrix.classes
    confidence, predicted = answers.probabilities.max(1)
    figure, axes = grid(len(mistakes) * IMAGES, IMAGES, cell=0.71)
    for row, mistake in enumerate(mistakes):
        panels = axes[row * IMAGES : (row + 1) * IMAGES]
        is_in_cell = (answers.labels == mistake.true) & (predicted == mistake.predicted)
        indices = is_in_cell.nonzero().flatten()
        # Positions after sorting count within the cell; `indices` maps them back to the test set.
        most_confident = indices[confidence[indices].argsort(descending=True)][:IMAGES]
        stored = answers.data.stored("test", most_confident).images
        # A rare mistake has fewer images than panels, and the other panels stay empty.
        for ax, index, pixels in zip(panels, most_confident.tolist(), stored, strict=False):
            image = pixels.permute(1, 2, 0).numpy() / 255
            # Grey images are drawn without their only channel.
            if image.shape[2] == 1:
                image = image[..., 0]
            show(ax, image, f"{confidence[index]:.0%}", "unit")
        text = f"{names[mistake.true]}\ntaken for\n{names[mistake.predicted]}\n({mistake.images:,})"
        panels[0].text(-0.12, 0.5, text, transform=panels[0].transAxes, ha="right", va="center", fontsize=8.5)
    return figure


def _draw_difference(comparison: _Comparison) -> Figure:
    """Draw the differences between two networks in all cells, and outline those beyond chance."""
    first, second = comparison.first, comparison.second
    points = 100 * (_shares_of_rows(second.counts) - _shares_of_rows(first.counts))
    # Equal matrices differ by zero everywhere, and the scale still needs two different ends.
    top = float(np.abs(points).max()) or 1.0
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    ax = figure.subplots()
    ax.imshow(points, cmap="RdBu_r", vmin=-top, vmax=top)
    name_classes(ax, first.classes)
    letters = 7 if len(points) <= 10 else 5
    for (row, column), value in np.ndenumerate(points):
        # Numbers that would read 0.0 are left out.
        if abs(value) >= 0.05:
            colour = "white" if abs(value) > 0.6 * top else "#222222"
            ax.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=letters, color=colour)
    for cell in comparison.cells:
        if cell.real:
            # The frame stays a little inside of its cell, so that those of neighbours do not overlap.
            low, high = (cell.true + 0.06, cell.predicted + 0.06), (cell.true + 0.94, cell.predicted + 0.94)
            outline(ax, low, high, "#222222")
    ax.set_title(f"{second.name} minus {first.name}, points", loc="left", fontsize=11, fontweight="bold")
    return figure


def _shares_of_rows(counts: Counts) -> np.ndarray:
    """Return the share of each cell in its row, (K, K); 0 in a row without images."""
    table = np.array(counts, dtype=float)
    return table / np.maximum(table.sum(axis=1, keepdims=True), 1)
