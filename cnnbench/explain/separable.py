"""The tool ``separable``: depthwise separable against standard convolutions in parameters, multiply-adds and time.

A depthwise separable convolution replaces a standard k x k convolution from N to N channels by two layers: one k x k
filter per channel, and a 1x1 convolution that mixes the channels. This leaves 1/N + 1/k² of the weights and of the
multiply-adds (Howard et al. 2017, 1704.04861, equation 5). The time falls less, because the filter per channel does
little arithmetic for each number that it reads. The roofline shows how much time could be saved at best. It is
predicted from the machine's peaks of arithmetic and memory, which are measured in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from torch import Tensor, nn

from cnnbench import hardware, progress
from cnnbench.counting.complexity import complexity
from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.options import SeparableOptions
from cnnbench.plots.drawing import MARKERS, PALETTE
from cnnbench.registry import whole_numbers
from cnnbench.report.speed_tables import time_ratio
from cnnbench.roofline.model import predicted_seconds
from cnnbench.roofline.peaks import Peaks, measure_peaks
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed
from cnnbench.units import with_unit

BOTH = ("standard", "separable")
"""Kinds of layers, in the order of all pairs of values; ratios are the first over the second."""
PASSES = {"forward": ("inference", "inference_ms"), "training": ("training", "train_step_ms")}
"""Kind of work and key of its times in the figures of `cnnbench.timing.speed.measure_speed`, by name of the pass."""
SECONDS_PER_TURN = 0.015
CAPTION = (
    "How many times more a standard convolution costs than a separable one with the same number of channels. The "
    "dashed line counts multiply-adds, and the points are measured times. The dotted line is the time that the "
    "machine's peaks of arithmetic and memory allow. Bars are 95 % intervals, and hollow points are suspect. Look "
    "where the dotted line lies below the dashed one: there the filter per channel, with little work for each number"
    " that it reads, waits for memory."
)


class Case(NamedTuple):
    """Size of the layers in one comparison.

    Attributes:
        channels: Number of input channels, and of output channels.
        resolution: Height and width in pixels of the input, and of the output.
    """

    channels: int
    resolution: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the input."""
        return self.channels, self.resolution, self.resolution


def layer(kind: str, channels: int, kernel_size: int) -> nn.Sequential:
    """Return a convolution without bias that keeps channels and resolution.

    Args:
        kind: ``standard`` or ``separable``.
        channels: Number of input and output channels.
        kernel_size: Height and width of the kernel in pixels, odd.
    """
    # With an odd kernel, this padding keeps the resolution.
    padding = kernel_size // 2
    if kind == "standard":
        return nn.Sequential(nn.Conv2d(channels, channels, kernel_size, padding=padding, bias=False))
    # First one filter per channel, which sees no other channel; then weighted sums of the channels, pixel by pixel.
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


class Timed(nn.Module):
    """Layer that is timed as if inside a network: its input gets a gradient, and channel means are its logits.

    Args:
        kind: ``standard`` or ``separable``.
        channels: Number of input and output channels.
        kernel_size: Height and width of the kernel in pixels, odd.
    """

    def __init__(self, kind: str, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.layer = layer(kind, channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        # Inside a network the layer below needs the gradient of this input, one more convolution in the backward pass.
        if self.training:
            x = x.detach().requires_grad_()
        return self.layer(x).mean((2, 3))  # (N, channels)


def explain(options: SeparableOptions) -> Explanation:
    """Return counts and times of both kinds of layer over a grid of channels and resolutions.

    Raises:
        UserError: An option is wrong, or a layer cannot be timed.
    """
    channels = whole_numbers("channels", options.channels)
    resolutions = whole_numbers("resolutions", options.resolutions)
    cases = [Case(*pair) for pair in product(channels, resolutions)]
    k = options.kernel_size
    if k < 1 or k % 2 == 0:
        raise UserError(f"kernel_size {k} must be odd, so that the map keeps its size, such as 3 or 5")
    device = hardware.choose_device(options.device)
    precision, _ = hardware.choose_precision(options.precision, device)
    peaks = measure_peaks(device, [precision])
    results = measure(cases, k, options.batch_size, options.rounds, device, precision, peaks)
    numbers: dict[str, Any] = {
        "kernel_size": k,
        "device": str(device),
        "precision": precision,
        "batch_size": options.batch_size,
        "peaks": peaks.figures(),
        "cases": results,
    }
    where = f"{hardware.device_name(device)}, {precision}, {options.batch_size} images"
    table = _table(results, f"Standard over separable, {k}x{k}; {where}")
    picture = Picture("separable", "Standard over separable convolutions", CAPTION, _draw(results, k))
    return Explanation(numbers, [table], [picture], _remarks(results, peaks, precision))


def measure(
    cases: Sequence[Case], kernel_size: int, batch_size: int, rounds: int, device: Any, precision: str, peaks: Peaks
) -> list[dict[str, Any]]:
    """Count and time both kinds of layer for every case; in each round the layers take turns.

    Args:
        cases: Sizes of the layers.
        kernel_size: Height and width of the kernels in pixels, odd.
        batch_size: Number of images per call.
        rounds: Number of turns of each layer.
        device: Device to time on.
        precision: Number format, such as ``32-true``.
        peaks: Measured peaks of arithmetic and memory, for the roofline.

    Returns:
        One dict per case. Pairs are in the order standard, separable; ratios are standard over separable.

        ``params`` and ``macs`` are counts. ``forward_ms`` and ``training_ms`` are median times in milliseconds; a
        training step is forward and backward, with the gradient of the layer's input. ``forward_ratio`` and
        ``training_ratio`` come from paired rounds. Their 95 % intervals are (None, None) with fewer than 6 rounds.
        ``forward_roofline_ms`` and ``forward_roofline_ratio``, and the same for training, are the times that the peaks
        allow and their ratio. ``suspect`` lists reasons to doubt the times.

    Raises:
        UserError: A layer cannot be timed, for example because the memory is too small.
    """
    # All rounds are taken, however long they last, and batches of inference and of training have the same size.
    config = SpeedConfig(
        device,
        precision,
        batch_size,
        batch_size,
        rounds,
        rounds,
        block_s=SECONDS_PER_TURN,
        warmup_s=10 * SECONDS_PER_TURN,
    )
    times = _time_layers(cases, kernel_size, config)
    results = []
    for case in cases:
        result = _counts(case, kernel_size)
        first, second = (times[f"{kind} {case}"] for kind in BOTH)
        # Both layers of a case may have the same reason, which counts once.
        result["suspect"] = list(dict.fromkeys([*first["suspect"], *second["suspect"]]))
        # The roofline's times follow from shapes and peaks, so they need no rounds.
        models = [Timed(kind, case.channels, kernel_size) for kind in BOTH]
        for name, (kind, key) in PASSES.items():
            # Whatever slows the machine for a while slows both layers, and cancels in the ratio of a round.
            ratio = time_ratio(first, second, kind)
            result[f"{name}_ms"] = [first[f"{key}_median"], second[f"{key}_median"]]
            result[f"{name}_ratio"], result[f"{name}_ratio_interval"] = ratio.estimate, [ratio.low, ratio.high]
            training = name == "training"
            allowed = [predicted_seconds(each, case.shape, batch_size, peaks, precision, training) for each in models]
            result[f"{name}_roofline_ms"] = [1e3 * allowed[0], 1e3 * allowed[1]]
            result[f"{name}_roofline_ratio"] = allowed[0] / allowed[1]
        results.append(result)
    return results


def _counts(case: Case, kernel_size: int) -> dict[str, Any]:
    """Return the case, and parameters and multiply-adds of both kinds of layer with their ratios."""
    # The layers are counted without the channel means that `Timed` adds.
    standard, separable = (
        complexity(layer(kind, case.channels, kernel_size), case.shape, training=False) for kind in BOTH
    )
    return {
        **case._asdict(),
        "params": [standard.params, separable.params],
        "macs": [standard.macs, separable.macs],
        "params_ratio": standard.params / separable.params,
        "macs_ratio": standard.macs / separable.macs,
    }


def _time_layers(cases: Sequence[Case], kernel_size: int, config: SpeedConfig) -> dict[str, dict[str, Any]]:
    """Time both kinds of layer for every case against each other, and return their figures by kind and case.

    Raises:
        UserError: A layer cannot be timed.
    """
    subjects = {}
    for kind, case in product(BOTH, cases):
        subjects[f"{kind} {case}"] = Subject(
            # The layer is not built here: `measure_speed` calls this function.
            partial(Timed, kind, case.channels, kernel_size),
            case.shape,
            case.channels,
            # A step of length zero leaves the weights as they are, so that every call computes the same.
            lambda model: torch.optim.SGD(model.parameters(), lr=0.0),
            kinds=("inference", "training"),
        )
    with progress.doing("timing"):
        times = measure_speed(subjects, config, progress.now)
    for name, figures in times.items():
        if "error" in figures:
            raise UserError(f"could not time {name}: {figures['error']}; try a smaller --batch_size, or --device cpu")
    return times


def _table(results: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return the table of all cases."""
    head = ["Channels", "Map", "Standard params", "Separable params", "Params ÷", "MACs ÷"]
    for name in ("Forward", "Training"):
        head += [f"{name} time ÷", "Roofline ÷"]
    rows = []
    for result in results:
        channels, resolution = str(result["channels"]), result["resolution"]
        if result["suspect"]:
            channels += " (suspect)"
        standard, separable = result["params"]
        row = [channels, f"{resolution}x{resolution}", f"{standard:,}", f"{separable:,}"]
        row += [f"{result['params_ratio']:.2f}", f"{result['macs_ratio']:.2f}"]
        for name in PASSES:
            ratio = f"{result[f'{name}_ratio']:.2f}"
            low, high = result[f"{name}_ratio_interval"]
            # With few rounds there is no interval.
            if low is not None:
                ratio += f" ({low:.2f} to {high:.2f})"
            row += [ratio, f"{result[f'{name}_roofline_ratio']:.2f}"]
        rows.append(row)
    return Table(title, head, rows)


def _remarks(results: Sequence[Mapping[str, Any]], peaks: Peaks, precision: str) -> list[str]:
    """Return what the times say, how to read the table, and a line for each different reason to doubt the times."""
    arithmetic, memory = with_unit(peaks.of(precision), "FLOP/s"), with_unit(peaks.bytes_per_s, "B/s")
    doubts: list[str] = []
    for result in results:
        doubts += result["suspect"]
    return [
        _on_savings(results),
        _on_extremes(results),
        _on_limits(results),
        "In brackets: 95 % interval of the ratio, from paired rounds; there is none with fewer than 6 of them.",
        "Roofline: the times that the machine's measured peaks of arithmetic and of copying allow, standard over "
        f"separable; arithmetic {arithmetic}, memory {memory}.",
        *(f"suspect: {reason}" for reason in dict.fromkeys(doubts)),
    ]


def _values(results: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Return the value of each case under a key."""
    return [result[key] for result in results]


def _span(values: Sequence[float], form: str = ".1f") -> str:
    """Return the range of values as text, or one number where both ends look the same."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _on_savings(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on how much arithmetic and how much time the separable layers save."""
    macs, forward = _values(results, "macs_ratio"), _values(results, "forward_ratio")
    training = _values(results, "training_ratio")
    less = sum(time < count for time, count in zip(forward, macs, strict=True))
    return (
        f"The standard layer has {_span(macs)} times the multiply-adds of the separable one and takes "
        f"{_span(forward)} times its time forward, {_span(training)} times in a training step: in {less} of "
        f"{len(results)} cases less time is saved forward than arithmetic."
    )


def _on_extremes(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on the cases in which most and least time is saved forward."""
    # A larger ratio of standard over separable saves more time.
    least = min(results, key=lambda result: result["forward_ratio"])
    most = max(results, key=lambda result: result["forward_ratio"])
    return f"Most is saved with {_case_in_words(most)}, least with {_case_in_words(least)}."


def _case_in_words(result: Mapping[str, Any]) -> str:
    """Return a case and its measured forward ratio in words, with the interval, and a mark if it is suspect."""
    size = f"{result['resolution']}x{result['resolution']}"
    ratio = f"{result['forward_ratio']:.2f} times"
    low, high = result["forward_ratio_interval"]
    if low is not None:
        ratio += f", 95 % interval {low:.2f} to {high:.2f}"
    if result["suspect"]:
        ratio += ", suspect"
    return f"{result['channels']} channels on maps of {size} ({ratio})"


def _on_limits(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence that compares the forward times with those that the roofline allows."""
    allowed = _values(results, "forward_roofline_ratio")
    # Share of the roofline's speed that the layers of each kind reach in each case.
    shares: list[list[float]] = [[], []]
    for result in results:
        for own, allowed_ms, ms in zip(shares, result["forward_roofline_ms"], result["forward_ms"], strict=True):
            own.append(allowed_ms / ms)
    standard, separable = shares
    why = "the separable layers make no worse use of the machine than the standard ones."
    if statistics.median(separable) < statistics.median(standard):
        why = (
            "the rest goes into the kernels, above all that of the filter per channel, and the start of two calls in "
            "place of one, which are not told apart here."
        )
    return (
        f"The machine's arithmetic and memory would allow {_span(allowed)} times; the standard layers run at "
        f"{_span(standard, '.0%')} of what they allow, the separable ones at {_span(separable, '.0%')}, so {why}"
    )


def _draw(results: Sequence[Mapping[str, Any]], kernel_size: int) -> Figure:
    """Return a figure of ratios against channels: multiply-adds, measured times by resolution, and the roofline's."""
    figure = Figure(figsize=(9.6, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_panel(left, results, kernel_size, "forward")
    _draw_panel(right, results, kernel_size, "training")
    left.set_title("inference", loc="left", fontsize=11, fontweight="bold")
    right.set_title("training step", loc="left", fontsize=11, fontweight="bold")
    ratios = ["macs_ratio"]
    for name in PASSES:
        ratios += [f"{name}_ratio", f"{name}_roofline_ratio"]
    highest = max(max(_values(results, key)) for key in ratios)
    left.set_ylim(0, 1.25 * highest)  # limits follow the ratios only, so a wide interval may be cut off
    left.set_ylabel("standard over separable, times")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_panel(ax: Axes, results: Sequence[Mapping[str, Any]], kernel_size: int, name: str) -> None:
    """Draw the ratios of a pass against the channels, a colour for each resolution."""
    grey = "#555555"
    channels = sorted(set(_values(results, "channels")))
    # Expected ratio of multiply-adds: the inverse of 1/N + 1/k² (Howard et al. 2017).
    expected = [1 / (1 / n + 1 / kernel_size**2) for n in channels]
    ax.plot(channels, expected, color=grey, linestyle="--", label=f"multiply-adds, 1 / (1/N + 1/{kernel_size**2})")
    for index, resolution in enumerate(sorted(set(_values(results, "resolution")))):
        some = [result for result in results if result["resolution"] == resolution]
        style = {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}
        _draw_resolution(ax, some, name, f"time, maps of {resolution}x{resolution}", style)
    # One entry in the legend stands for the dotted lines of all resolutions.
    ax.plot([], [], color=grey, linestyle=":", linewidth=1.4, label="the same by the roofline")
    ax.axhline(1, color="#b0b0b0", linewidth=0.8)
    ax.set_xlabel("channels N")
    # By default the number of channels doubles from case to case, so a scale with base 2 spaces the cases evenly.
    ax.set_xscale("log", base=2)
    ax.set_xticks(channels)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)


def _draw_resolution(
    ax: Axes, results: Sequence[Mapping[str, Any]], name: str, label: str, style: Mapping[str, Any]
) -> None:
    """Draw measured ratios with their intervals as points, hollow where suspect, and the roofline's ratios dotted."""
    channels = _values(results, "channels")
    ax.plot(channels, _values(results, f"{name}_ratio"), label=label, **style)
    for n, result in zip(channels, results, strict=True):
        low, high = result[f"{name}_ratio_interval"]
        if low is not None:
            ax.plot([n, n], [low, high], color=style["color"], linewidth=1.2, alpha=0.6)
        if result["suspect"]:
            # A white point on the coloured one leaves its edge.
            ax.plot(n, result[f"{name}_ratio"], **style, markerfacecolor="white", linestyle="", zorder=3)
    ax.plot(channels, _values(results, f"{name}_roofline_ratio"), color=style["color"], linestyle=":", linewidth=1.4)
