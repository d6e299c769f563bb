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
from itertools import product
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from torch import Tensor, nn

from cnnbench import hardware
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
TIMES = ("forward", "training")
SECONDS_PER_TURN = 0.015


class Case(NamedTuple):
    """Size of the layers in one comparison.

    Attributes:
        channels: Number of input channels, and of output channels.
        resolution: Height and width in pixels of the input, and of the output.
    """

    channels: int
    resolution: int


def layer(kind: str, channels: int, kernel_size: int) -> nn.Sequential:
    """Return a convolution without bias that keeps channels and resolution.

    Args:
        kind: ``standard`` or ``separable``.
        channels: Number of input and output channels.
        kernel_size: Height and width of the kernel in pixels, odd.
    """
    padding = kernel_size // 2
    if kind == "standard":
        return nn.Sequential(nn.Conv2d(channels, channels, kernel_size, padding=padding, bias=False))
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


def explain(options: SeparableOptions) -> Explanation:
    """Return counts and times of both kinds of layer over a grid of channels and resolutions.

    Raises:
        UserError: An option is wrong, or a layer cannot be timed.
    """
    numbers = [whole_numbers(name, getattr(options, name)) for name in ("channels", "resolutions")]
    cases = [Case(*pair) for pair in product(*numbers)]
    k = options.kernel_size
    if k < 1 or k % 2 == 0:
        raise UserError(f"kernel_size {k} must be odd, so that the map keeps its size, such as 3 or 5")
    device = hardware.choose_device(options.device)
    precision, _ = hardware.choose_precision(options.precision, device)
    peaks = measure_peaks(device, [precision])
    results = measure(cases, k, options.batch_size, options.rounds, device, precision, peaks)
    rows = [
        (
            f"{r['channels']}{' (suspect)' if r['suspect'] else ''}",
            f"{r['resolution']}x{r['resolution']}",
            f"{r['params'][0]:,}",
            f"{r['params'][1]:,}",
            f"{r['params_ratio']:.2f}",
            f"{r['macs_ratio']:.2f}",
            *(
                text
                for n in TIMES
                for text in (
                    _with_interval(r[f"{n}_ratio"], r[f"{n}_ratio_interval"]),
                    f"{r[f'{n}_roofline_ratio']:.2f}",
                )
            ),
        )
        for r in results
    ]
    head = (
        "Channels",
        "Map",
        "Standard params",
        "Separable params",
        "Params ÷",
        "MACs ÷",
        "Forward time ÷",
        "Roofline ÷",
        "Training time ÷",
        "Roofline ÷",
    )
    where = f"{hardware.device_name(device)}, {precision}, {options.batch_size} images"
    return Explanation(
        {
            "kernel_size": k,
            "device": str(device),
            "precision": precision,
            "batch_size": options.batch_size,
            "peaks": peaks.figures(),
            "cases": results,
        },
        [Table(f"Standard over separable, {k}x{k}; {where}", head, rows)],
        [Picture("separable", "Standard over separable convolutions", _caption(results, where), _draw(results, k))],
        [
            *_findings(results),
            "In brackets: 95 % interval of the ratio, from paired rounds; there is none with fewer than 6 of them.",
            "Roofline: the times that the machine's measured peaks of arithmetic and of copying allow, standard over "
            f"separable; arithmetic {with_unit(peaks.of(precision), 'FLOP/s')}, "
            f"memory {with_unit(peaks.bytes_per_s, 'B/s')}.",
            *_doubts(results),
        ],
    )


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

    class Timed(nn.Module):
        """Layer that is timed as if inside a network: its input gets a gradient, and channel means are its logits."""

        def __init__(self, kind: str, channels: int) -> None:
            super().__init__()
            self.layer = layer(kind, channels, kernel_size)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.detach().requires_grad_() if self.training else x).mean((2, 3))

    def subject(kind: str, case: Case) -> Subject:
        shape = (case.channels, case.resolution, case.resolution)
        return Subject(
            lambda: Timed(kind, case.channels),
            shape,
            case.channels,
            lambda m: torch.optim.SGD(m.parameters(), lr=0.0),
            kinds=("inference", "training"),
        )

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
    subjects = {f"{kind} {case}": subject(kind, case) for kind in BOTH for case in cases}
    times = measure_speed(subjects, config)
    failed = next((f"{name}: {found['error']}" for name, found in times.items() if "error" in found), None)
    if failed:
        raise UserError(f"could not time {failed}; try a smaller --batch_size, or --device cpu")
    results = []
    for case in cases:
        shape = (case.channels, case.resolution, case.resolution)
        costs = [complexity(layer(kind, case.channels, kernel_size), shape, training=False) for kind in BOTH]
        found: dict[str, Any] = {
            **case._asdict(),
            "params": [c.params for c in costs],
            "macs": [c.macs for c in costs],
        }
        for name in ("params", "macs"):
            found[f"{name}_ratio"] = found[name][0] / found[name][1]
        standard, separable = (times[f"{kind} {case}"] for kind in BOTH)
        found["suspect"] = list(dict.fromkeys([*standard["suspect"], *separable["suspect"]]))
        for name, kind, key in (("forward", "inference", "inference_ms"), ("training", "training", "train_step_ms")):
            ratio = time_ratio(standard, separable, kind)
            found[f"{name}_ms"] = [figures[f"{key}_median"] for figures in (standard, separable)]
            found[f"{name}_ratio"], found[f"{name}_ratio_interval"] = ratio.estimate, [ratio.low, ratio.high]
            allowed = [
                predicted_seconds(Timed(which, case.channels), shape, batch_size, peaks, precision, name == "training")
                for which in BOTH
            ]
            found[f"{name}_roofline_ms"] = [1e3 * seconds for seconds in allowed]
            found[f"{name}_roofline_ratio"] = allowed[0] / allowed[1]
        results.append(found)
    return results


def _with_interval(ratio: float, interval: Sequence[float | None]) -> str:
    """Return a ratio as text, with its interval in brackets if it has one."""
    low, high = interval
    return f"{ratio:.2f}" if low is None or high is None else f"{ratio:.2f} ({low:.2f} to {high:.2f})"


def _doubts(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a remark for each different reason to doubt the times."""
    reasons = dict.fromkeys(reason for r in results for reason in r["suspect"])
    return [f"suspect: {reason}" for reason in reasons]


def _span(values: Sequence[float], form: str = ".1f") -> str:
    """Return the range of values as text, or one number where both ends look the same."""
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _findings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return three sentences: how much is saved, in which cases most and least, and what limits the times."""
    macs, forward, training, allowed = (
        [r[key] for r in results] for key in ("macs_ratio", "forward_ratio", "training_ratio", "forward_roofline_ratio")
    )
    saved = (
        f"The standard layer has {_span(macs)} times the multiply-adds of the separable one and takes "
        f"{_span(forward)} times its time forward, {_span(training)} times in a training step"
    )
    less = sum(time < count for time, count in zip(forward, macs, strict=True))
    saved += f": in {less} of {len(results)} cases less time is saved forward than arithmetic."
    # A larger ratio of standard over separable saves more time.
    least, most = (pick(results, key=lambda r: r["forward_ratio"]) for pick in (min, max))
    where = f"Most is saved with {_case(most)} ({_forward(most)}), least with {_case(least)} ({_forward(least)})."
    # Share of the roofline's speed that the standard (0) and the separable (1) layers reach in each case.
    shares = [[r["forward_roofline_ms"][i] / r["forward_ms"][i] for r in results] for i in range(2)]
    why = (
        f"The machine's arithmetic and memory would allow {_span(allowed)} times; the standard layers run at "
        f"{_span(shares[0], '.0%')} of what they allow, the separable ones at {_span(shares[1], '.0%')}, so "
        + (
            "the rest goes into the kernels, above all that of the filter per channel, and the start of two calls in "
            "place of one, which are not told apart here."
            if statistics.median(shares[1]) < statistics.median(shares[0])
            else "the separable layers make no worse use of the machine than the standard ones."
        )
    )
    return [saved, where, why]


def _forward(result: Mapping[str, Any]) -> str:
    """Return the measured forward ratio in words, with its interval, and a mark if it is suspect."""
    low, high = result["forward_ratio_interval"]
    interval = "" if low is None else f", 95 % interval {low:.2f} to {high:.2f}"
    return f"{result['forward_ratio']:.2f} times{interval}{', suspect' if result['suspect'] else ''}"


def _case(result: Mapping[str, Any]) -> str:
    return f"{result['channels']} channels on maps of {result['resolution']}x{result['resolution']}"


def _caption(results: Sequence[Mapping[str, Any]], where: str) -> str:
    return (
        f"How many times more the standard convolution costs than the separable one ({where}). "
        f"{_findings(results)[0]} Dotted is what the machine's peaks of arithmetic and memory allow: it lies below the "
        "multiply-adds where the filter per channel, with little work for each number that it reads, waits for memory. "
        "Bars are 95 % intervals; hollow points are suspect."
    )


def _draw(results: Sequence[Mapping[str, Any]], kernel_size: int) -> Figure:
    """Return a figure of ratios against channels: multiply-adds, measured times by resolution, and the roofline's."""
    figure = Figure(figsize=(9.6, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    channels = sorted({r["channels"] for r in results})
    for ax, (key, title) in zip(panels, (("forward", "inference"), ("training", "training step")), strict=True):
        # Expected ratio of multiply-adds: the inverse of 1/N + 1/k² (Howard et al. 2017).
        ax.plot(
            channels,
            [1 / (1 / n + 1 / kernel_size**2) for n in channels],
            color="#555555",
            linestyle="--",
            label=f"multiply-adds, 1 / (1/N + 1/{kernel_size**2})",
        )
        for index, resolution in enumerate(sorted({r["resolution"] for r in results})):
            some = [r for r in results if r["resolution"] == resolution]
            style = {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}
            _draw_times(ax, some, key, f"time, maps of {resolution}x{resolution}", style)
            points = [(r["channels"], r[f"{key}_roofline_ratio"]) for r in some]
            ax.plot(*zip(*points, strict=True), color=style["color"], linestyle=":", linewidth=1.4)
        ax.plot([], [], color="#555555", linestyle=":", linewidth=1.4, label="the same by the roofline")
        ax.axhline(1, color="#b0b0b0", linewidth=0.8)
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
        ax.set_xlabel("channels N")
        ax.set_xscale("log", base=2)
        ax.set_xticks(channels)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
    highest = max(r[f"{n}_{what}ratio"] for r in results for n in TIMES for what in ("", "roofline_"))
    highest = max(highest, *(r["macs_ratio"] for r in results))
    panels[0].set_ylim(0, 1.25 * highest)  # limits follow the ratios only, so a wide interval may be cut off
    panels[0].set_ylabel("standard over separable, times")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def _draw_times(ax: Axes, results: Sequence[Mapping[str, Any]], key: str, label: str, style: Mapping[str, Any]) -> None:
    """Draw measured ratios with their intervals as points, hollow where the times are suspect."""
    ax.plot([r["channels"] for r in results], [r[f"{key}_ratio"] for r in results], label=label, **style)
    for r in results:
        low, high = r[f"{key}_ratio_interval"]
        if low is not None:
            ax.plot([r["channels"]] * 2, [low, high], color=style["color"], linewidth=1.2, alpha=0.6)
        if r["suspect"]:
            ax.plot(r["channels"], r[f"{key}_ratio"], **style, markerfacecolor="white", linestyle="", zorder=3)
