"""Findings from several records, in sentences: Pareto fronts, and multiply-adds against speed.

Only networks that ran under the same settings on the same machine are ranked against each other. An accuracy after a
short training never ranks networks; a reference accuracy stands in for it where one is known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from cnnbench.record import Record
from cnnbench.references import percent, published_words
from cnnbench.report.contenders import Contender, compare_alike, contenders, rivals_by_label
from cnnbench.report.pareto import Spread, inversion, pareto_front
from cnnbench.report.settings import said
from cnnbench.stats import Correlation, correlate

Row = TypeVar("Row")
MOST_NAMED_WITHOUT = 5
"""Largest number of networks without a reference accuracy that a sentence names; of more it gives the number."""
MOST_LISTED = 60
"""Largest number of names, values or sentences that are written out; the rest is only counted."""
MOST_ROWS = 2000
"""Largest number of records with a row in the tables and a picture of their confusion matrix; ``results.csv`` has all
records. With more, the page would be slow to open, and the pictures would take most of the time."""
DASH = "\N{EN DASH}"
"""Text that tables show for a figure that a record does not have; it also stands between the ends of a range."""
LATENCY = "latency_ms_median"
MACS = "macs"
COST_WORDS = {MACS: "MACs", LATENCY: "latency"}
"""Costs that accuracy is compared with, in words, by key of the figure."""


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Return the names joined in one text; after the first `MOST_LISTED`, the rest is only counted."""
    every = list(names)
    more = len(every) - MOST_LISTED
    if more > 0:
        every[MOST_LISTED:] = [f"and {more:,} more"]
    return separator.join(every)


def first_sentences(sentences: Sequence[str], rest: str) -> list[str]:
    """Return the sentences; after the first `MOST_LISTED`, one last sentence counts the rest.

    Args:
        sentences: Sentences on different things.
        rest: Words that follow the number of omitted sentences, such as "more networks failed; see results.csv".
    """
    more = len(sentences) - MOST_LISTED
    if more <= 0:
        return list(sentences)
    return [*sentences[:MOST_LISTED], f"{more:,} {rest}."]


def most_per_label(labels: Sequence[str]) -> int:
    """Return how many rows each data set has in a table, so that the table has at most `MOST_ROWS` rows.

    Args:
        labels: Label of the data set of each row that the table could have.

    Returns:
        Number of rows; data sets with fewer rows have all of theirs. It is at least 1, so that no data set is missing.
    """
    sizes = Counter(labels).values()
    if len(labels) <= MOST_ROWS:
        return MOST_ROWS
    # A data set that has fewer rows than its share leaves more for the others, so the number is searched for.
    fits = bisect_right(range(1, MOST_ROWS + 1), MOST_ROWS, key=lambda most: sum(min(most, size) for size in sizes))
    return max(1, fits)


def first_of_each(rows: Sequence[Row], label: Callable[[Row], str]) -> list[Row]:
    """Return what has a row in a table, and a picture: the first of each data set, in their order; see `MOST_ROWS`.

    Args:
        rows: Everything that the table could have a row of.
        label: Function that returns the label of the data set of a row.
    """
    most = most_per_label([label(row) for row in rows])
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[label(row)] += 1
        if seen[label(row)] <= most:
            kept.append(row)
    return kept


def first_of_each_label(records: Sequence[Record]) -> list[Record]:
    """Return the records that have a row in the tables and a picture of their confusion matrix; see `MOST_ROWS`."""
    return first_of_each(records, lambda record: record.data["label"])


def measured(entries: Sequence[Contender], *keys: str) -> list[Contender]:
    """Return the contenders that have all these figures above 0, since costs are compared as ratios."""
    complete = []
    for e in entries:
        if e.has(*keys) and all(e.mean(key) > 0 for key in keys):
            complete.append(e)
    return complete


def means(entries: Sequence[Contender], key: str) -> list[float]:
    """Return a figure of each contender, as its mean over the seeds."""
    return [e.mean(key) for e in entries]


def several_seeds(entries: Sequence[Contender]) -> bool:
    """Return whether a contender has accuracies of several seeds."""
    return any(len(e.per_seed("test_accuracy")) > 1 for e in entries)


def with_settled(entries: Sequence[Contender]) -> list[Contender]:
    """Return the contenders whose accuracy after a full or a reference training is known."""
    return [e for e in entries if e.settled is not None]


def front(entries: Sequence[Contender], cost: str) -> list[Contender]:
    """Return the contenders on the Pareto front of settled accuracy against a cost, by rising cost.

    A contender without a settled accuracy is left out: the accuracy after a short training says how fast a network
    learns, not how good it is. Accuracies are means over seeds.
    """
    rivals: list[Contender] = []
    points: list[tuple[float, float]] = []
    for e in measured(entries, cost):
        accuracy = e.settled
        if accuracy is not None:
            rivals.append(e)
            points.append((e.mean(cost), accuracy))
    return [rivals[index] for index in pareto_front(points)]


def front_sentences(records: Sequence[Record], cost: str) -> list[str]:
    """Return a sentence per data set that names its Pareto front; none for a data set with fewer than two networks."""
    sentences = []
    for label, entries in rivals_by_label(contenders(records)).items():
        rivals = measured(entries, cost, "test_accuracy")
        if len(rivals) > 1:
            sentences.append(_front_sentence(label, rivals, cost))
    return first_sentences(sentences, "more groups that compare have a front of their own")


def _front_sentence(label: str, entries: Sequence[Contender], cost: str) -> str:
    """Return a sentence that names the networks on the front of a data set, or says why there is no front."""
    ranked = with_settled(entries)
    if len(ranked) < 2:
        return (
            f"No front of accuracy against {COST_WORDS[cost]} is drawn on {label}: these trainings are too short to "
            "say which network is better, and fewer than two of them have a reference accuracy."
        )
    kind = "accuracy"
    # A single reference accuracy among them is enough to say so.
    if any(e.reference for e in ranked):
        kind = f"reference accuracy (after {trained_epochs(ranked)} epochs)"
    if several_seeds(entries):
        kind += " (mean over seeds)"
    names = listed(e.name for e in front(entries, cost))
    return f"Front of {kind} against {COST_WORDS[cost]} on {label}: {names}.{_unranked_sentence(entries)}"


def trained_epochs(entries: Sequence[Contender]) -> str:
    """Return in words how many epochs the trainings took whose accuracies are compared, such as "14 to 30"."""
    numbers = []
    for entry in entries:
        known = entry.reference
        # Without a longer reference training, the accuracy of the run itself is compared.
        numbers.append(round(known.epochs if known else entry.records[0].training["epochs"]))
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _unranked_sentence(entries: Sequence[Contender]) -> str:
    """Return a sentence on the networks that no front can have, with a space before it; empty if there are none."""
    unknown = [e.name for e in entries if e.settled is None]
    if len(unknown) > MOST_NAMED_WITHOUT:
        return f" {len(unknown)} networks are left out, since there is no reference of them."
    if unknown:
        return f" Left out, since there is no reference of them: {listed(unknown)}."
    return ""


def reference_sentences(records: Sequence[Record]) -> list[str]:
    """Return a sentence per network with a short training: the accuracy that its reference training reaches."""
    sentences = []
    for entry in contenders(records):
        known = entry.reference
        # The rows of engines share the training of another row, which has the sentence.
        if known is None or not entry.has("test_accuracy") or entry.records[0].is_of_an_engine:
            continue
        sentence = (
            f"{entry.name} on {entry.label}: within this run's budget {percent(entry.mean('test_accuracy'))}; after "
            f"its reference training {known.words}"
        )
        published = published_words(entry.model, entry.label)
        if published:
            sentence += f"; {published}"
        sentences.append(f"{sentence}.")
    return first_sentences(sentences, "more networks have reference accuracies; see the column Reference %")


def reference_origin(records: Sequence[Record]) -> str:
    """Return a sentence that says where reference trainings come from, and why some are short; empty without any."""
    known = [entry.reference for entry in contenders(records)]
    found = [reference for reference in known if reference is not None]
    if not found:
        return ""
    epochs = sorted(reference.epochs for reference in found)
    low, high = f"{epochs[0]:.0f}", f"{epochs[-1]:.0f}"
    lengths = f"they had {high} epochs"
    if low != high:
        lengths = f"fast networks had up to {high} epochs, slow ones as few as {low}, for lack of time"
    devices = listed(dict.fromkeys(reference.device for reference in found), " and ")
    return (
        f"Reference trainings were run by the authors of the package, on {devices} (settings: experiments/bench): "
        f"{lengths}. Longer trainings may reach more."
    )


def left_out_sentences(records: Sequence[Record], *keys: str) -> list[str]:
    """Return a sentence per cost that names the networks whose cost is 0, which a logarithmic axis cannot show.

    Args:
        records: All records of the picture.
        keys: Keys of the figures that the picture needs.
    """
    entries = [e for e in contenders(records) if e.has(*keys)]
    sentences = []
    for key in keys:
        # Only costs have a logarithmic axis.
        if key not in COST_WORDS:
            continue
        names = [f"{e.name} on {e.label}" for e in entries if e.mean(key) <= 0]
        if names:
            cost = COST_WORDS[key]
            sentences.append(f"Not drawn, since an axis of ratios has no place for 0 {cost}: {listed(names)}.")
    return sentences


def timed(entries: Sequence[Contender]) -> list[Contender]:
    """Return the contenders with multiply-adds and latency; none if they were timed under different conditions."""
    rivals = measured(entries, MACS, LATENCY)
    if not compare_alike(rivals):
        return []
    return rivals


def latency_correlation(entries: Sequence[Contender]) -> Correlation | None:
    """Return the rank correlation of multiply-adds and latency over the networks of one data set, if it exists."""
    rivals = timed(entries)
    # For fewer than three networks `correlate` returns None, so an empty list needs no case of its own.
    return correlate(means(rivals, MACS), means(rivals, LATENCY))


def misjudged(entries: Sequence[Contender]) -> tuple[Contender, Contender] | None:
    """Return the two networks whose multiply-adds and latency disagree most: the first has fewer, but takes longer."""
    rivals = timed(entries)
    pair = inversion(means(rivals, MACS), [latency_spread(e) for e in rivals])
    if pair is None:
        return None
    # The pair holds indices into `rivals`.
    cheaper, dearer = pair
    return rivals[cheaper], rivals[dearer]


def latency_spread(entry: Contender) -> Spread:
    """Return the first decile, median and ninth decile of the latency; the median replaces deciles that are missing."""
    median = entry.mean(LATENCY)
    low = high = median
    if entry.has("latency_ms_p10"):
        low = entry.mean("latency_ms_p10")
    if entry.has("latency_ms_p90"):
        high = entry.mean("latency_ms_p90")
    return Spread(low, median, high)


def speed_sentences(records: Sequence[Record]) -> list[str]:
    """Return a paragraph per data set on how well multiply-adds predict latency and time per image."""
    sentences = []
    for label, entries in rivals_by_label(contenders(records)).items():
        sentence = _speed_sentence(label, entries)
        if sentence:
            sentences.append(sentence)
    return first_sentences(sentences, "more groups that compare are left out here")


def _speed_sentence(label: str, entries: Sequence[Contender]) -> str:
    """Return a paragraph on one data set; empty if its networks have no correlation."""
    correlation = latency_correlation(entries)
    if correlation is None:
        return ""
    text = (
        f"Rank correlation (Spearman) of MACs and latency, batch 1, over {correlation.networks} networks on {label}: "
        f"{correlation.value:.2f}"
    )
    if correlation.interval:
        low, high = correlation.interval
        text += f" (95 % interval, bootstrap over networks, {low:.2f} to {high:.2f})"
    return f"{text}{_throughput_words(timed(entries), correlation.networks)}.{_example(entries)}"


def _throughput_words(entries: Sequence[Contender], networks: int) -> str:
    """Return how multiply-adds correlate with the time per image in a batch, as the end of a sentence.

    Args:
        entries: Networks that may be ranked.
        networks: Number of networks that the sentence has named before.
    """
    text = ""
    for key, size, work in (
        ("images_per_s", "speed_batch_size", "inference"),
        ("train_images_per_s", "batch_size", "training"),
    ):
        rivals = measured(entries, key)
        # The time per image is the inverse of the throughput.
        times = [1 / rate for rate in means(rivals, key)]
        correlation = correlate(means(rivals, MACS), times)
        if correlation is None:
            continue
        batch = "/".join(dict.fromkeys(str(said(e.records[0].config, size)) for e in rivals))
        text += f"; of MACs and time per image in {work} at batch {batch}"
        # Not every network that was timed has this throughput, such as one that is not trained.
        if correlation.networks != networks:
            text += f", over {correlation.networks}"
        text += f": {correlation.value:.2f}"
    return text


def _example(entries: Sequence[Contender]) -> str:
    """Return a sentence on the pair that multiply-adds misjudge most, with a space before it; empty without one."""
    pair = misjudged(entries)
    if pair is None:
        return ""
    small, large = pair
    # Both ratios are above 1, because the small network has fewer MACs and the longer time.
    fewer = _times(large.mean(MACS) / small.mean(MACS))
    longer = _times(small.mean(LATENCY) / large.mean(LATENCY))
    return (
        f" FLOPs are not speed: {small.name} has {fewer} times fewer MACs than {large.name} and takes {longer} times "
        "as long for one image."
    )


def _times(ratio: float) -> str:
    """Return a ratio as text: with two significant digits below 10, as a whole number from there on."""
    if ratio < 1.1:
        return f"{ratio:.2f}"  # two significant digits could show it as 1
    if ratio < 10:
        return f"{ratio:.2g}"
    return f"{ratio:,.0f}"
