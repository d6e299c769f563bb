"""What limits the networks that `cnnbench speed --limits` times: peaks of the machine, verdicts, table and picture."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from cnnbench.console import note
from cnnbench.errors import Stopped, UserError
from cnnbench.files import replacing
from cnnbench.report.roofs import draw_roofs
from cnnbench.roofline.bounds import CONVENTION, find_limits
from cnnbench.roofline.model import percent
from cnnbench.roofline.peaks import Peaks, hardware_precisions, measure_peaks
from cnnbench.timing.conditions import Conditions, reasons_to_doubt
from cnnbench.timing.speed import SpeedConfig, Subject
from cnnbench.units import with_unit

SHOWN = ("inference", "latency")
PICTURE = "roofline.png"


@dataclass(frozen=True)
class Limits:
    """What was found.

    Attributes:
        peaks: Of the machine, the better of before and after the timing.
        networks: By name, of `find_limits`.
        failed: Reasons why a network has none.
        number_format: Whose roof the picture has.
        doubts: Reasons to doubt the peaks.
    """

    peaks: Peaks
    networks: Mapping[str, dict[str, Any]]
    failed: Mapping[str, str]
    number_format: str
    doubts: Sequence[str]
    picture: Path | None = field(default=None)

    def document(self) -> dict[str, Any]:
        """For JSON."""

        return {
            "convention": CONVENTION,
            "peaks": self.peaks.figures(),
            "suspect": list(self.doubts),
            "number_format": self.number_format,
            "networks": self.networks,
            "failed": self.failed,
            "picture": str(self.picture) if self.picture else None,
        }


def make_folder(folder: Path, option: str = "out") -> Path:
    """Makes a folder for what an option of the command is to write, before anything is timed.

    Raises:
        UserError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be made: {error.strerror}; give another --{option}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {folder} is closed to writing; give another --{option}")
    return folder


def peaks_now(config: SpeedConfig) -> tuple[Peaks, list[str]]:
    """The peaks of the device, of all precisions that it is made for and of the one that is timed; and reasons to doubt
    them."""

    note("peaks of this machine")
    with Conditions(config.device) as conditions:
        precisions = dict.fromkeys([config.precision, config.way.precision_of("inference")])
        precisions |= dict.fromkeys(hardware_precisions(config.device))
        peaks = measure_peaks(config.device, list(precisions))
    return peaks, reasons_to_doubt(conditions.figures())


def find(
    subjects: Mapping[str, Subject], figures: Mapping[str, Mapping[str, Any]], config: SpeedConfig,
    before: tuple[Peaks, list[str]], out: Path, where: str, graphs: Mapping[str, Mapping[str, Any]],
) -> Limits:  # fmt: skip
    """Finds what limits networks that were timed, and draws it into a folder.

    Args:
        subjects: By name.
        figures: Of `measure_speed`.
        config: How they were timed.
        before: Of `peaks_now`, from before the timing.
        out: Folder of the picture.
        where: Title of the picture.
        graphs: Figures of the same networks as CUDA graphs, where there are any.
    """
    peaks, doubts = before
    try:
        again, doubts_again = peaks_now(config)
        peaks = peaks.best(again)
        doubts = [reason for reason in doubts if doubts_again]  # one quiet look will do
    except RuntimeError as error:  # a network has broken the device; the figures of the others are there
        doubts = [*doubts, f"the peaks were not measured again: {type(error).__name__}: {error}"]
    found, failed = {}, {}
    for name in (name for name in subjects if "error" not in figures[name]):
        note(f"what limits {name}")
        try:
            graph = graphs.get(name, {})
            graph_s = {k: graph[f"{k}_ms_median"] / 1e3 for k in SHOWN if f"{k}_ms_median" in graph}
            device_s = _device_seconds(figures[name], graph)
            found[name] = find_limits(subjects[name], figures[name], config, peaks, graph_s, device_s)
        except Stopped:
            raise
        except BaseException as error:  # whatever a network does wrong is its own failure, not the others'
            failed[name] = " ".join(str(error).split())
    number_format = peaks.format_of(config.way.precision_of("inference"))
    suspect = " (suspect)" if doubts or any(figures[name]["suspect"] for name in found) else ""
    picture = _draw(found, peaks, number_format, where + suspect, out) if found else None
    return Limits(peaks, found, failed, number_format, doubts, picture)


def _device_seconds(*figures: Mapping[str, Any]) -> dict[str, float]:
    """Return what the GPU itself takes for each kind of work at least, by any of some figures of one network."""
    keys = {kind: f"{kind}_ms_device" for kind in SHOWN}
    return {kind: min(f[key] for f in figures if key in f) / 1e3 for kind, key in keys.items() if key in figures[0]}


def _draw(networks: Mapping[str, Any], peaks: Peaks, number_format: str, where: str, out: Path) -> Path:

    path = out / PICTURE
    with replacing(path) as file:
        draw_roofs(networks, peaks.figures(), number_format, where).savefig(file, format="png", dpi=160)
    return path


def _images(verdict: Mapping[str, Any]) -> str:
    return "1 image" if verdict["batch_size"] == 1 else f"{verdict['batch_size']} images"


def table(limits: Limits, names: Mapping[str, str]) -> Table:
    """Verdicts of a batch and of one image, with the achieved shares of the peaks.

    Args:
        limits: What was found.
        names: In place of those of the networks, for some of them.
    """
    titles = {kind: _images(found[kind]) for found in limits.networks.values() for kind in SHOWN}
    drawn = Table(title="What limits inference", title_justify="left", header_style="bold")
    drawn.add_column("Model", overflow="fold")
    for kind in SHOWN:
        drawn.add_column(f"At {titles[kind]}: FLOP/byte", justify="right")
        for column in ("of peak", "of memory's rate", "of roofline"):
            drawn.add_column(column, justify="right")
        drawn.add_column("Bound")
    for name, found in limits.networks.items():
        cells = []
        for kind in SHOWN:
            verdict = found[kind]
            shares = (verdict[f"of_{key}"] for key in ("peak_flops", "peak_bandwidth", "roofline"))
            cells += [f"{verdict['intensity']:.3g}", *map(percent, shares), verdict["bound"]]
        drawn.add_row(names.get(name, name), *cells)
    return drawn


def lines(limits: Limits) -> Iterator[str]:
    """Peaks, evidence and where the picture is, in sentences."""
    peaks = limits.peaks
    rates = ", ".join(f"{name} {with_unit(rate, 'FLOP/s')}" for name, rate in peaks.flops_per_s.items())
    fast = max((rate for _, rate in peaks.cached), default=peaks.bytes_per_s)
    within = f", within caches up to {with_unit(fast, 'B/s')}" if fast > peaks.bytes_per_s else ""
    yield (
        f"peaks measured in this run: {rates}; copying {peaks.copied_bytes / 2**20:,.0f} MiB "
        f"{with_unit(peaks.bytes_per_s, 'B/s')}{within}"
    )
    yield from (f"suspect peaks: {reason}" for reason in limits.doubts)
    for name, found in limits.networks.items():
        for kind in reversed(SHOWN):
            yield f"{name} at {_images(found[kind])}: {found[kind]['evidence']}"
        if found["uncounted"]:
            yield f"{name}: arithmetic not counted: {', '.join(found['uncounted'])}"
    if limits.picture:
        yield f"{limits.picture}: achieved against possible, by network and kind of layer"
