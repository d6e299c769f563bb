"""What the command `cnnbench speed` prints: tables with their doubts, ratios, and the JSON document."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from cnnbench import hardware
from cnnbench.commands import speed_limits as limits
from cnnbench.commands.count import PIPE_WIDTH
from cnnbench.console import out, show
from cnnbench.network import Network
from cnnbench.record import Record, environment
from cnnbench.stats import FEWEST_ROUNDS, Interval
from cnnbench.timing.speed import KINDS, time_ratio
from cnnbench.timing.sweep import Sweep
from cnnbench.timing.work import SpeedConfig, Way
from cnnbench.units import plain

SUSPECT = " (suspect)"
COLUMNS = {
    "Latency ms": "latency_ms_median",
    "p10": "latency_ms_p10",
    "p90": "latency_ms_p90",
    "Images/s": "images_per_s",
    "Images/s, queued": "images_per_s_queued",
    "Train images/s": "train_images_per_s",
    "Train images/s, queued": "train_images_per_s_queued",
    "Cold start ms": "cold_start_ms",
    "Peak MiB": "peak_memory_bytes",
}
STEP_COLUMNS = {
    "Forward ms": "train_forward_ms",
    "Backward ms": "train_backward_ms",
    "Optimizer ms": "train_optimizer_ms",
    "Reserved MiB": "peak_reserved_bytes",
    "Latency, device ms": "latency_ms_device",
    "Batch, device ms": "inference_ms_device",
    "Step, device ms": "train_step_ms_device",
    "Resident MiB": "resident_bytes",
}
"""The second table; a column that no network has is left out."""


@dataclass(frozen=True)
class Row:
    """A line of the tables: a network, and the way it runs; None where there is one way only."""

    network: Network
    way: Way | None

    @property
    def name(self) -> str:
        return self.network.name if self.way is None else f"{self.network.name} [{self.way.words}]"


def document(
    config: SpeedConfig, rows: Sequence[Row], figures: Mapping[str, Any], limited: Any, sweeps: Mapping[str, Sweep]
) -> dict[str, Any]:
    """Everything that was found, for JSON.

    Args:
        config: How it was timed.
        rows: In their order.
        figures: Of `measure_speed`, by name of the row.
        limited: `cnnbench.commands.speed_limits.Limits`, if they were asked for.
        sweeps: By name of the row, if they were asked for.
    """
    settings = {**vars(config), "device": str(config.device)}
    lines = [
        {"row": row.name, **_shape(row.network), "way": vars(row.way) if row.way else None, **figures[row.name]}
        for row in rows
    ]
    ratios = [ratio for group in _groups(rows, figures) for ratio in _ratios(group, figures)]
    found = {"config": settings, "environment": _machine(config), "networks": lines, "ratios": ratios}
    if limited is not None:
        found["limits"] = limited.document()
    if sweeps:
        found["sweep"] = {name: asdict(one) for name, one in sweeps.items()}
    return found


def records(
    config: SpeedConfig, rows: Sequence[Row], figures: Mapping[str, Any], limited: Any, sweeps: Mapping[str, Sweep]
) -> list[Record]:
    """The same as records, one per row, whose name has the way that it runs where there are several.

    Args:
        config, rows, figures, limited, sweeps: As of `document`.
    """
    found = []
    for row in rows:
        measures = {key: value for key, value in figures[row.name].items() if value is not None}
        error = measures.pop("error", "")
        more = {"limits": limited.networks.get(row.name) if limited is not None else None}
        more["sweep"] = asdict(sweeps[row.name]) if row.name in sweeps else None
        settings = {
            "budget_s": None, "epochs": None, "device": str(config.device), "measures": ["speed"],
            **_settings(row.way or config.way), "batch_size": config.train_batch_size,
            "speed_batch_size": config.batch_size,
        }  # fmt: skip
        measures |= {key: value for key, value in more.items() if value}
        status = "error" if error else "ok"
        data = _noise(row.network)
        found.append(Record(row.name, data, 0, status, settings, _machine(config), error, measures))
    return found


def _settings(way: Way) -> dict[str, Any]:
    order = "channels_last" if way.channels_last else "contiguous"
    found = {"precision": way.precision, "memory_format": order, "mode": way.mode}
    return found | {"inference_precision": way.precision_of("inference"), "cudnn_benchmark": way.cudnn_benchmark}


def _noise(network: Network) -> dict[str, Any]:
    """What records say of data, of random images."""
    shape = "x".join(map(str, network.image_shape))
    images = dict.fromkeys(("train_images", "val_images", "test_images", "full_train_images", "full_epochs"), 0)
    return {
        "name": "noise", "label": f"random images of {shape}", "synthetic": False, "class_names": [],
        "in_channels": network.in_channels, "image_size": network.image_size, "augment": False, **images,
    }  # fmt: skip


def _machine(config: SpeedConfig) -> dict[str, Any]:
    """Machine and software. Whether TF32 is allowed is the way's to say."""
    facts = hardware.accelerator_facts(config.device)
    return {
        **environment(hardware.device_name(config.device), torch.get_num_threads()),
        "accelerator": {name: value for name, value in facts.items() if not name.startswith("tf32")},
        "allocator": hardware.keep_freed_memory(),
    }


def way_words(rows: Sequence[Row], config: SpeedConfig) -> str:
    """How the rows ran."""
    if len({row.way for row in rows}) > 1:
        return "ways as named"
    if rows[0].way is not None:
        return rows[0].way.words
    return config.way.words.replace(", eager", "")


def print_tables(
    processes: int, config: SpeedConfig, rows: Sequence[Row], figures: Mapping[str, Any], limited: Any,
    sweeps: Mapping[str, Sweep],
) -> None:  # fmt: skip
    """Prints tables, and below them how it was measured and what is doubtful.

    Args:
        processes: That shared the rounds.
        config, rows, figures, limited, sweeps: As of `document`.
    """
    main, there = (_with_values(columns, figures) for columns in (COLUMNS, STEP_COLUMNS))
    tables = [_table("", rows, figures, main)]
    if there:
        tables.append(_table("A training step, and memory", rows, figures, there))
    tables += [_ratio_table(group, figures) for group in _groups(rows, figures) if len(group) > 1]
    if limited is not None and limited.networks:
        doubtful = {name for names in _suspects(figures).values() for name in names}
        tables.append(limits.table(limited, {name: name + SUSPECT for name in doubtful}))
    if sweeps:
        tables.append(_sweep_table(sweeps))
    show(*tables, pipe_width=PIPE_WIDTH)
    shared = f" of {processes} processes" if processes > 1 else ""
    out(
        f"{hardware.device_name(config.device)}, {way_words(rows, config)}; latency at 1 image, throughput at "
        f"{config.batch_size}, a training step (forward, backward, AdamW) at {config.train_batch_size} images; medians "
        f"of {_rounds(figures)} rounds{shared} in random order; ratios from paired rounds with 95 % intervals"
    )
    if processes < FEWEST_ROUNDS and any(len(group) > 1 for group in _groups(rows, figures)):
        out(
            "these intervals are of this run alone: in another process memory lies elsewhere, and ratios differ by "
            f"some per cent more; --processes {FEWEST_ROUNDS} has that in them"
        )
    for line in limits.lines(limited) if limited is not None else ():
        out(line)
    for name, found in sweeps.items():
        out(f"batches of {name}: {found.end}")
    for reason, names in _suspects(figures).items():
        out(f"suspect ({', '.join(names)}): {reason}")
    swept = {f"{n}, {p['batch_size']} images": p for n, found in sweeps.items() for p in found.batches}
    for reason, names in _suspects(swept).items():
        out(f"suspect ({'; '.join(names)}): {reason}")


def _with_values(columns: Mapping[str, str], figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns without those that only a GPU has and no network here."""
    optional = {*STEP_COLUMNS.values(), *(key for key in columns.values() if key.endswith("_queued"))}
    return {
        title: key
        for title, key in columns.items()
        if key not in optional or any(found.get(key) is not None for found in figures.values())
    }


def _groups(rows: Sequence[Row], figures: Mapping[str, Any]) -> list[list[Row]]:
    """Rows that may be ranked: networks that run in the same way; and beside them the ways of each network."""
    timed = [row for row in rows if "error" not in figures[row.name]]
    ways = dict.fromkeys(row.way for row in timed)
    groups = [[row for row in timed if row.way == way] for way in ways]
    if len(ways) > 1:
        groups += [[row for row in timed if row.network is network] for network in _networks(timed)]
    return groups


def _networks(rows: Sequence[Row]) -> list[Network]:
    return list({row.network.name: row.network for row in rows}.values())


def _shape(network: Network) -> dict[str, Any]:
    names = ("in_channels", "image_size", "num_classes")
    return {"model": network.name, **{name: getattr(network, name) for name in names}}


def _table(title: str, rows: Sequence[Row], figures: Mapping[str, dict[str, Any]], columns: Mapping[str, str]) -> Table:

    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("Model", overflow="fold")
    table.add_column("Image")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        found = figures[row.name]
        shape = "x".join(map(str, row.network.image_shape))
        table.add_row(_marked(row.name, found), shape, *(_shown(key, found.get(key)) for key in columns.values()))
    return table


def _marked(name: str, figures: Mapping[str, Any]) -> str:
    """The name, with a mark where there are reasons to doubt the figures."""
    return name + SUSPECT if figures.get("suspect") else name


def _sweep_table(sweeps: Mapping[str, Sweep]) -> Table:
    """Inference by batch size."""
    table = Table(title="Inference by batch size", title_justify="left", header_style="bold")
    for name in ("Model", "Batch", "ms", "95 % interval", "Images/s"):
        table.add_column(name, justify="left" if name == "Model" else "right")
    for name, found in sweeps.items():
        for point in found.batches:
            low, high = point["inference_ms_low"], point["inference_ms_high"]
            interval = f"{plain(low)} to {plain(high)}" if low is not None else "-"
            cells = (f"{point['inference_ms_median']:#.4g}", interval, _shown("images_per_s", point["images_per_s"]))
            alone = ", alone" if point.get("alone") else ""
            table.add_row(_marked(name, point), f"{point['batch_size']}{alone}", *cells)
    return table


def _rounds(figures: Mapping[str, dict[str, Any]]) -> int:
    """Rounds that were made."""
    return max((len(found["samples_ms"]["latency"]) for found in figures.values() if "error" not in found), default=0)


def _suspects(figures: Mapping[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Networks by the reasons to doubt their times."""
    found: dict[str, list[str]] = {}
    for name, values in figures.items():
        for reason in values.get("suspect", ()):
            found.setdefault(reason, []).append(name)
    return found


def _ratios(group: Sequence[Row], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For every pair of rows how many times as long the first takes, by kind of work."""
    found = []
    for a, b in itertools.combinations([row.name for row in group], 2):
        kinds = [kind for kind in KINDS if _both_have(kind, figures[a], figures[b])]
        ratios = {kind: time_ratio(figures[a], figures[b], kind)._asdict() for kind in kinds}
        found.append({"first": a, "second": b, **ratios})
    return found


def _both_have(kind: str, *figures: Mapping[str, Any]) -> bool:
    """Return whether a kind of work was timed of two rows; in 16-bit weights there is no training."""
    return all(kind in found["samples_ms"] for found in figures)


def _ratio_table(group: Sequence[Row], figures: Mapping[str, Any]) -> Table:
    """Times of a group of rows as multiples of those of its first."""
    first, *others = group
    title = f"Times as multiples of {first.name}'s{SUSPECT if figures[first.name]['suspect'] else ''}"
    table = Table(title=Text(title), title_justify="left", header_style="bold")  # brackets of a way are no markup
    table.add_column("Model", overflow="fold")
    for kind in KINDS:
        table.add_column(kind.capitalize(), justify="right")
    for row in others:
        pair = figures[row.name], figures[first.name]
        cells = [_interval(time_ratio(*pair, kind)) if _both_have(kind, *pair) else "-" for kind in KINDS]
        table.add_row(_marked(row.name, figures[row.name]), *cells)
    return table


def _interval(ratio: Interval) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{plain(ratio.estimate)}, too few rounds"
    verdict = "" if ratio.differs else ", no difference found"
    return f"{plain(ratio.estimate)} ({plain(ratio.low)} to {plain(ratio.high)}){verdict}"


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key.endswith("_bytes"):
        return f"{value / 2**20:,.0f}"
    return plain(value)
