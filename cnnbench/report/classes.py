"""Accuracy per class: a row per class of each record, for ``classes.csv``, and the class that is hardest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cnnbench.record import Record
from cnnbench.report.contenders import by_label, contenders
from cnnbench.report.findings import first_of_each_label
from cnnbench.stats import wilson_interval

HEAD = ("model", "data", "label", "seed", "class", "images", "right", "recall", "low", "high")
"""Columns of ``classes.csv``: images of the class, how many are classified right, and their share with its interval."""


def rows(records: Sequence[Record]) -> Iterator[list[Any]]:
    """Yield a row of `HEAD` per class of each record that has a confusion matrix and a row in the tables.

    The interval is Wilson's, of one trained network on other images of the class. A class without images has none.
    """
    for record in first_of_each_label(records):
        if record.confusion_matrix is None:
            continue
        names = record.data["class_names"]
        for index, (name, row) in enumerate(zip(names, record.confusion_matrix, strict=True)):
            right, images = row[index], sum(row)
            share: list[float | None] = [None, None, None]
            if images:
                share = [right / images, *wilson_interval(right, images)]
            yield [record.title, record.data_name, record.data["label"], record.seed, name, images, right, *share]


def hardest_sentences(records: Sequence[Record]) -> list[str]:
    """Return a sentence per data set that names the class with the lowest recall, over all networks of a report.

    Args:
        records: Records of one or several runs.
    """
    sentences = []
    for label, entries in by_label(contenders(records)).items():
        # The row of an engine is no further training.
        ours = [r for entry in entries for r in entry.records if not r.is_of_an_engine]
        tested = [r for r in ours if r.confusion_matrix is not None]
        # Records of one label may differ in their classes, if they come from several runs.
        tested = [r for r in tested if r.data["class_names"] == tested[0].data["class_names"]]
        if not tested or len(tested[0].data["class_names"]) < 2:
            continue
        sentences.append(_hardest(label, tested))
    return sentences


def _hardest(label: str, records: Sequence[Record]) -> str:
    """Return the sentence on one data set."""
    counts = np.array([record.confusion_matrix for record in records])
    right = counts.diagonal(axis1=1, axis2=2)  # (records, K)
    images = counts.sum(axis=2)
    known = images.min(axis=0) > 0
    # A class without test images is not hard.
    shares = np.where(known, right / np.maximum(images, 1), np.nan)
    means = shares.mean(axis=0)
    worst = int(np.nanargmin(means))
    networks = len(dict.fromkeys(record.title for record in records))
    agree = int((np.nanargmin(shares, axis=1) == worst).sum())
    low, high = wilson_interval(float(right[:, worst].mean()), float(images[:, worst].mean()))
    of = "the network" if networks == 1 else f"{networks} networks"
    trainings = "1 training" if len(records) == 1 else f"{len(records)} trainings"
    star, note = "", ""
    if not all(record.fully_trained for record in records):
        star, note = "*", " A star: some of these trainings were short."
    return (
        f"Hardest class on {label}: {records[0].data['class_names'][worst]}, of which {100 * means[worst]:.1f}{star} % "
        f"are classified right (95 % interval {100 * low:.1f} to {100 * high:.1f} %, mean of {of}); it is the hardest "
        f"one in {agree} of {trainings}.{note} All classes are in classes.csv."
    )
