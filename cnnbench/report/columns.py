"""Columns of the report: where a value comes from, how it is shown and what it means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cnnbench.record import Record
from cnnbench.references import percent, reference_of
from cnnbench.report.findings import budget
from cnnbench.units import short

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """A column of every table: where its value comes from, how it is shown and what it means."""

    title: str
    key: str
    show: Callable[[Record], str]
    meaning: str
    numeric: bool = True


def _number(key: str, pattern: str, scale: float = 1.0) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        value = record.measures.get(key)
        return DASH if value is None else pattern.format(value * scale)

    return show


def _significant(key: str) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        value = record.measures.get(key)
        return DASH if value is None else f"{value:#.3g}".rstrip(".")

    return show


def _count(key: str) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        value = record.measures.get(key)
        return DASH if value is None else short(value)

    return show


def _rate(key: str) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        value = record.measures.get(key)
        return DASH if value is None else f"{float(f'{value:.3g}'):,.0f}" if value >= 10 else f"{value:.2g}"

    return show


def _timed(show: Callable[[Record], str]) -> Callable[[Record], str]:
    """The same with a question mark where the times are suspect."""

    def marked(record: Record) -> str:
        shown = show(record)
        return f"{shown}?" if shown != DASH and record.measures.get("suspect") else shown

    return marked


def _percent(key: str) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        value = record.measures.get(key)
        if value is None:
            return DASH
        low, high = (record.measures.get(f"{key}_{end}", value) for end in ("low", "high"))
        return f"{value * 100:.{2 if 0 < high - low < 0.01 else 1}f}"

    return show


def _accuracy(record: Record) -> str:
    if record.status == "error":
        return "failed"
    shown = _percent("test_accuracy")(record)
    return shown if shown == DASH or record.training.get("converged", True) else f"{shown}*"


def _interval(record: Record) -> str:
    low, high = (record.measures.get(f"test_accuracy_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return DASH
    decimals = 2 if high - low < 0.01 else 1
    return f"{low * 100:.{decimals}f}{DASH}{high * 100:.{decimals}f}"


def _reference(record: Record) -> str:
    known = reference_of(record)
    return DASH if known is None else percent(known.accuracy).removesuffix(" %")


def _epochs(record: Record) -> str:
    epochs = record.training.get("epochs")
    return DASH if epochs is None else f"{epochs:#.2g}" if epochs < 10 else f"{epochs:.0f}"


COLUMNS = (
    Column("Model", "model", lambda r: r.model, "Architecture; the command cnnbench list says more.", numeric=False),
    Column("Data", "data", lambda r: r.data["label"], "The images that were used.", numeric=False),
    Column("Seed", "seed", lambda r: str(r.seed), "Seed of initialisation, order of the batches and augmentation."),
    Column("Params", "params", _count("params"), "Weights and biases, frozen or not; a shared one counts once."),
    Column(
        "MACs", "macs", _count("macs"),
        "Multiply-adds of one image in inference; convolutions and matrix products only, bias excluded.",
    ),
    Column("FLOPs", "flops", _count("flops"), "Floating-point operations: exactly twice the MACs."),
    Column(
        "Activations", "activations", _count("activations"),
        "Values that convolutions and matrix products put out for one image: a proxy of memory traffic.",
    ),
    Column(
        "Latency ms", "latency_ms_median", _timed(_significant("latency_ms_median")),
        "One image through the network, batch size 1: median over interleaved rounds. A question mark: suspect, "
        "for the reason above the table.",
    ),
    Column(
        "Images/s", "images_per_s", _timed(_rate("images_per_s")),
        "Inference throughput at a large batch (size below), from the median time of a batch.",
    ),
    Column(
        "Train images/s", "train_images_per_s", _timed(_rate("train_images_per_s")),
        "Throughput of a whole training step (forward, backward, the recipe's optimizer) at the batch size of "
        "training, without data loading.",
    ),
    Column(
        "Peak MiB", "peak_memory_bytes", _number("peak_memory_bytes", "{:,.0f}", 2**-20),
        "Largest memory allocated on the GPU in a training step: weights, gradients, optimizer state, activations, "
        "without the images.",
    ),
    Column(
        "Resident MiB", "resident_bytes", _number("resident_bytes", "{:,.0f}", 2**-20),
        "By how much the resident memory of a fresh process grows at most in training steps, with images, the "
        "workspaces of kernels and what the C library keeps.",
    ),
    Column("Budget", "budget", budget, "How long each network was trained."),
    Column("Epochs", "epochs", _epochs, "How often training saw the training images within the budget."),
    Column(
        "Train accuracy %", "train_accuracy", _percent("train_accuracy"),
        "Share of training images (the first ones of the training split, as many as the test set has at most) that are "
        "classified right after the last step, in evaluation mode and without augmentation.",
    ),
    Column(
        "Accuracy %", "test_accuracy", _accuracy,
        "Share of the test set, whole, that is classified right after the last step of training; no choice among "
        "epochs. A star: a short training, fewer epochs than a full one, so not converged.",
    ),
    Column(
        "95 % interval", "test_accuracy_interval", _interval,
        "Wilson interval of the accuracy for the size of the test set; the spread between seeds is not in it.",
    ),
    Column(
        "Reference %", "reference_accuracy", _reference,
        "What the network reaches after its reference training, from the records that the package ships; the mean over "
        "seeds. It stands beside a short training, which says how fast a network learns and not how good it is.",
    ),
)  # fmt: skip


def columns_of(records: Sequence[Record]) -> list[Column]:
    """Columns in which some record has content; seed and budget only where they differ."""
    same = {c.key for c in COLUMNS if c.key in ("seed", "budget") and len({c.show(r) for r in records}) == 1}
    return [c for c in COLUMNS if c.key not in same and any(c.show(r) != DASH for r in records)]
