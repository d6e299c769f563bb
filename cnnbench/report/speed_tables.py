"""What records say about speed: the tables and sentences of `cnnbench speed`, and the ratios of two networks' times.

Only networks that ran in the same way, or one network that ran in several ways, are compared with each other.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from cnnbench.engines import ENGINES
from cnnbench.measures import figures
from cnnbench.record import AFTER_TIMES, KINDS, Record
from cnnbench.stats import FEWEST_ROUNDS, Interval, paired_ratio, shift
from cnnbench.units import mebibytes, percent, plain, with_unit

SUSPECT = "?"
"""Mark of a time that there are reasons to doubt."""
SPEED_COLUMNS = {
    "Latency ms": "latency_ms_median",
    "p10": "latency_ms_p10",
    "p90": "latency_ms_p90",
    "Images/s": "images_per_s",
    "Images/s, queued": "images_per_s_queued",
    "Train images/s": "train_images_per_s",
    "Train images/s, queued": "train_images_per_s_queued",
    "Cold start ms": "cold_start_ms",
    "Peak MiB": "peak_memory_bytes",
    "File MiB": "file_bytes",
    "Inference MiB": "inference_resident_bytes",
    "mJ/image": "energy_mj_per_image",
    "mJ, single": "energy_mj_single_image",
}
"""Columns of the first table: keys of figures by title."""
OPTIONAL = ("file_bytes", "inference_resident_bytes", "energy_mj_per_image", "energy_mj_single_image")
"""Figures of the first table that have a column only if a record has them."""
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
"""Columns of the second table: keys of figures by title."""
ENGINE_COLUMNS = {"Latency ms": "latency_ms_engine", "Batch ms": "inference_ms_engine"}
"""Columns of the table of times by the clocks of engines: keys of figures by title."""
LIMITED = ("inference", "latency")
"""Kinds of work whose limits are shown."""
WAY = ("precision", "inference_precision", "memory_format", "mode", "cudnn_benchmark", "engine")
"""Settings that together form a way of running a network."""


def time_ratio(first: Mapping[str, Any], second: Mapping[str, Any], kind: str) -> Interval:
    """Return the ratio of the first network's time to the second's, from the rounds in which both were timed.

    With fewer than `FEWEST_ROUNDS` processes, each round gives one value; the rounds of two engines are then compared
    as they are, not in pairs. Otherwise each process gives one value, so
    that the interval includes what differs from process to process, such as the position in memory.

    Args:
        first: Figures of one network.
        second: Figures of another network, from the same run.
        kind: One of `KINDS`.
    """
    a, b = _rounds(first, kind), _rounds(second, kind)
    # A process of one engine and the process of another that ran next to it are a pair too.
    if min(len(first.get("process_rounds", ())), len(second.get("process_rounds", ()))) >= FEWEST_ROUNDS:
        return paired_ratio(_of_processes(a, first["process_rounds"]), _of_processes(b, second["process_rounds"]))
    if _engine(first, kind) == _engine(second, kind):
        return paired_ratio(a, b)
    # Different engines never share a process, so their rounds are no pairs.
    logs = shift([math.log(ms) for ms in a], [math.log(ms) for ms in b])
    if logs.low is None or logs.high is None:
        return Interval(math.exp(logs.estimate), None, None)
    return Interval(*map(math.exp, (logs.estimate, logs.low, logs.high)))


def _engine(measures: Mapping[str, Any], kind: str) -> str | None:
    """Return the name of the engine that computed a kind of work; None for torch."""
    name: str | None = measures.get("engine_facts", {}).get(kind, {}).get("engine")
    return name


def _of_processes(rounds_ms: Sequence[float], process_rounds: Sequence[int]) -> list[float]:
    """Return the median of the rounds of each process; all rounds follow each other in one list."""
    medians = []
    start = 0
    for rounds in process_rounds:
        medians.append(statistics.median(rounds_ms[start : start + rounds]))
        start += rounds
    return medians


def _rounds(measures: Mapping[str, Any], kind: str) -> list[float]:
    """Return the time of each round, the median of its calls."""
    return [statistics.median(times) for times in measures["samples_ms"][kind]]


def all_ratios(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the ratios of times of every pair of records that may be ranked, by kind of work."""
    ratios = []
    for group in _groups(records):
        for a, b in itertools.combinations(group, 2):
            row: dict[str, Any] = {"first": a.model, "second": b.model}
            for kind in KINDS:
                if _both_have(kind, a, b):
                    row[kind] = time_ratio(a.measures, b.measures, kind)._asdict()
            ratios.append(row)
    return ratios


def tables(records: Sequence[Record]) -> list[Table]:
    """Return the tables of a timing: times, parts of a training step, ratios, limits, and batch sizes."""
    drawn = [_figure_table("", records, _filled(SPEED_COLUMNS, records))]
    parts = _filled(STEP_COLUMNS, records)
    if parts:
        drawn.append(_figure_table("A training step, and memory", records, parts))
    engines = _filled(ENGINE_COLUMNS, records)
    if engines:
        drawn.append(_figure_table("By the engine's own clock, without the call from Python", records, engines))
    # A group of one record has nothing to be compared with.
    drawn += [_ratio_table(group) for group in _groups(records) if len(group) > 1]
    limited = [record for record in records if "limits" in record.measures]
    if limited:
        drawn.append(_limits_table(limited))
    swept = [record for record in records if "sweep" in record.measures]
    if swept:
        drawn.append(_sweep_table(swept))
    return drawn


def sentences(records: Sequence[Record]) -> Iterator[str]:
    """Yield sentences on how the networks were timed, what limits them, and which times are doubtful."""
    processes = max((len(record.measures.get("process_rounds", ())) for record in records), default=0)
    yield _how_timed(records, processes)
    if processes < FEWEST_ROUNDS and any(len(group) > 1 for group in _groups(records)):
        yield (
            "these intervals are of this run alone: in another process memory lies elsewhere, and ratios differ by "
            f"some per cent more; --processes {FEWEST_ROUNDS} includes this in the intervals"
        )
    yield from _engine_sentences(records)
    yield from _energy_sentences(records)
    # The peaks are those of the machine, the same in every record of a run.
    if "peaks" in records[0].environment:
        yield from _limit_sentences(records)
    for record in records:
        if "sweep" in record.measures:
            yield f"batches of {record.model}: {record.measures['sweep']['end']}"
    yield from _suspect_sentences(records)


def _how_timed(records: Sequence[Record], processes: int) -> str:
    """Return a sentence on the machine, the way of running, the batch sizes and the rounds."""
    # All records of a run have the same batch sizes and the same device.
    config = records[0].config
    training = f", a training step (forward, backward, AdamW) at {config['batch_size']} images"
    if not any("training" in record.measures["samples_ms"] for record in _timed(records)):
        training = ""
    rounds = max((len(record.measures["samples_ms"]["latency"]) for record in _timed(records)), default=0)
    shared = f" of {processes} processes" if processes > 1 else ""
    return (
        f"{records[0].environment['device']}, {way_words(records)}; latency at 1 image, throughput at "
        f"{config['speed_batch_size']}{training}; "
        f"medians of {rounds} rounds{shared} in random order; ratios from paired rounds with 95 % intervals"
    )


def _engine_sentences(records: Sequence[Record]) -> Iterator[str]:
    """Yield a sentence for each engine other than torch: its version, and the settings that it computed with.

    Another says how networks were quantised, and on what they were calibrated.
    """
    by_engine = {}
    for record in _timed(records):
        if "engine_facts" in record.measures:
            by_engine[record.config.get("engine"), record.config["precision"]] = record
    for (name, precision), record in by_engine.items():
        facts = record.measures["engine_facts"]["latency"]
        left_out = ("engine", "batch_size", "quantisation")
        settings = [f"{key} {value}" for key, value in facts.items() if value and key not in left_out]
        package = ENGINES[str(name)].package
        version = record.environment["packages"][package]
        yield f"{name}, {precision} ({package} {version}): {', '.join(settings)}"
        if "quantisation" in facts:
            yield _quantised(str(name), facts["quantisation"])


def _quantised(engine: str, facts: Mapping[str, Any]) -> str:
    """Return a sentence on how an engine's networks were quantised."""
    return (
        f"{engine}, int8: quantised by {facts['tool']} {facts['version']} ({facts['method']}); calibrated on "
        f"{facts['calibrated_on']}"
    )


def _energy_sentences(records: Sequence[Record]) -> Iterator[str]:
    """Yield sentences on how energy was measured and which of it is doubtful, and on why it or memory is not known."""
    measured = [record for record in records if "energy_facts" in record.measures]
    for record in measured[:1]:
        # All records of a run share a device, and so a counter.
        facts = record.measures["energy_facts"]
        idle = facts["idle"]
        yield (
            f"energy by {facts['counter']}: {facts['includes']}; not {facts['excludes']}; the counter is updated about "
            f"every {1e3 * facts['update_s']:.0f} ms, and {idle['seconds']:.1f} s of work were measured; the idle "
            f"device took {record.measures['idle_power_w']:.1f} W"
        )
    for record in measured:
        for reason in record.measures["energy_facts"].get("suspect", ()):
            yield f"suspect energy ({record.model}): {reason}"
    for measure in AFTER_TIMES:
        reasons: dict[str, list[str]] = {}
        for record in records:
            if measure in record.skipped:
                reasons.setdefault(record.skipped[measure], []).append(record.model)
        for reason, names in reasons.items():
            yield f"{measure} is not known ({', '.join(names)}): {reason}"


def _suspect_sentences(records: Sequence[Record]) -> Iterator[str]:
    """Yield a sentence per reason to doubt times: first those of networks, then those of single batch sizes."""
    for reason, names in _suspects({record.model: record.measures for record in records}).items():
        yield f"suspect, marked {SUSPECT} ({', '.join(names)}): {reason}"
    points = {}
    for record in records:
        for point in record.measures.get("sweep", {}).get("batches", ()):
            points[f"{record.model}, {point['batch_size']} images"] = point
    # These names contain commas themselves, so semicolons separate them.
    for reason, names in _suspects(points).items():
        yield f"suspect, marked {SUSPECT} ({'; '.join(names)}): {reason}"


def way_words(records: Sequence[Record]) -> str:
    """Return in words how the networks ran; if they ran in several ways, their names already say it."""
    if len({_way(record) for record in records}) > 1:
        return "ways as named"
    first = records[0]
    name = first.config["network"]
    # A network that was asked for in several ways has the way in its name, in brackets.
    if first.model != name:
        return first.model.removeprefix(f"{name} [").removesuffix("]")
    config = first.config
    formats = config["precision"]
    if config["inference_precision"] != formats:
        formats = f"{config['inference_precision']} (training {formats})"
    words = f"{formats}, {config['memory_format']}"
    if config["cudnn_benchmark"]:
        words += ", cuDNN benchmark"
    return words


def _way(record: Record) -> tuple[Any, ...]:
    """Return the settings that form the way in which a network ran."""
    return tuple(record.config.get(name) for name in WAY)


def _timed(records: Sequence[Record]) -> list[Record]:
    """Return the records of the networks whose timing did not fail."""
    return [record for record in records if record.status == "ok"]


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """Return groups of records that may be ranked: networks that ran in the same way, and the ways of each network."""
    by_way: dict[Any, list[Record]] = {}
    by_network: dict[str, list[Record]] = {}
    for record in _timed(records):
        by_way.setdefault(_way(record), []).append(record)
        by_network.setdefault(record.config["network"], []).append(record)
    # If all networks ran in one way, the groups by network would have a single record each.
    if len(by_way) == 1:
        return list(by_way.values())
    return [*by_way.values(), *by_network.values()]


def _both_have(kind: str, *records: Record) -> bool:
    """Return whether a kind of work was timed for all records; networks with 16-bit weights are not trained."""
    return all(kind in record.measures["samples_ms"] for record in records)


def _filled(columns: Mapping[str, str], records: Sequence[Record]) -> dict[str, str]:
    """Return the columns without the optional ones that no record fills, such as those that need a GPU."""
    kept = {}
    engines = any(record.config.get("engine", "torch") != "torch" for record in records)
    for title, key in columns.items():
        # Beside other engines, which train nothing, torch has no training step either.
        optional = (
            engines or key in (*STEP_COLUMNS.values(), *ENGINE_COLUMNS.values(), *OPTIONAL) or key.endswith("_queued")
        )
        if not optional or any(record.measures.get(key) is not None for record in records):
            kept[title] = key
    return kept


def _figure_table(title: str, records: Sequence[Record], columns: Mapping[str, str]) -> Table:
    """Return a table with a row per network and a column per figure."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("Model", overflow="fold")
    table.add_column("Image")
    for name in columns:
        table.add_column(name, justify="right")
    for record in records:
        size = record.data["image_size"]
        cells = [_figure(key, record) for key in columns.values()]
        table.add_row(record.model, f"{record.data['in_channels']}x{size}x{size}", *cells)
    return table


def _ratio_table(group: Sequence[Record]) -> Table:
    """Return the table of times as multiples of those of the first record."""
    first, *others = group
    # As a `Text`, so that brackets in a name are not markup.
    table = Table(title=Text(f"Times as multiples of {first.model}'s"), title_justify="left", header_style="bold")
    table.add_column("Model", overflow="fold")
    for kind in KINDS:
        table.add_column(kind.capitalize(), justify="right")
    for record in others:
        cells = []
        for kind in KINDS:
            words = "-"
            if _both_have(kind, record, first):
                doubted = bool(record.doubts(kind) or first.doubts(kind))
                words = _ratio_words(time_ratio(record.measures, first.measures, kind), SUSPECT if doubted else "")
            cells.append(words)
        table.add_row(record.model, *cells)
    return table


def _ratio_words(ratio: Interval, mark: str) -> str:
    """Return a ratio of times and a mark, with the interval, and whether it shows a difference."""
    if ratio.low is None or ratio.high is None:
        return f"{plain(ratio.estimate)}{mark}, too few rounds"
    words = f"{plain(ratio.estimate)}{mark} ({plain(ratio.low)} to {plain(ratio.high)})"
    # An interval that leaves out 1 by less than `ALIKE` shows no difference either.
    if not ratio.differs:
        words += ", no difference found"
    return words


def _sweep_table(records: Sequence[Record]) -> Table:
    """Return the table of inference times by batch size."""
    table = Table(title="Inference by batch size", title_justify="left", header_style="bold")
    table.add_column("Model")
    for title in ("Batch", "ms", "95 % interval", "Images/s"):
        table.add_column(title, justify="right")
    for record in records:
        for point in record.measures["sweep"]["batches"]:
            table.add_row(record.model, *_sweep_cells(point))
    return table


def _sweep_cells(point: Mapping[str, Any]) -> list[str]:
    """Return batch size, time, interval and throughput of a point of a sweep as table cells."""
    # The mark belongs to the times at this batch size, not to those in the other tables.
    mark = SUSPECT if point.get("suspect") else ""
    batch = str(point["batch_size"])
    if point.get("alone"):
        batch += ", alone"
    low, high = point["inference_ms_low"], point["inference_ms_high"]
    interval = "-" if low is None else f"{plain(low)} to {plain(high)}"
    times = [f"{point['inference_ms_median']:#.4g}{mark}", interval, f"{plain(point['images_per_s'])}{mark}"]
    return [batch, *times]


def _limits_table(records: Sequence[Record]) -> Table:
    """Return the table of what limits a batch and a single image, with the achieved shares of the peaks."""
    table = Table(title="What limits inference", title_justify="left", header_style="bold")
    table.add_column("Model", overflow="fold")
    # The titles name batch sizes, which are the same for all networks of a run.
    last = records[-1].measures["limits"]
    for kind in LIMITED:
        table.add_column(f"At {_images(last[kind])}: FLOP/byte", justify="right")
        for column in ("of peak", "of memory's rate", "of roofline"):
            table.add_column(column, justify="right")
        table.add_column("Bound")
    for record in records:
        cells = []
        for kind in LIMITED:
            verdict = record.measures["limits"][kind]
            mark = SUSPECT if record.doubts(kind) else ""
            cells.append(f"{verdict['intensity']:.3g}")
            cells += [percent(verdict[f"of_{key}"]) + mark for key in ("peak_flops", "peak_bandwidth", "roofline")]
            cells.append(verdict["bound"])
        table.add_row(record.model, *cells)
    return table


def _limit_sentences(records: Sequence[Record]) -> Iterator[str]:
    """Yield sentences on the peaks of the machine, and on the evidence for each verdict."""
    peaks = records[0].environment["peaks"]
    rates = ", ".join(f"{name} {with_unit(rate, 'FLOP/s')}" for name, rate in peaks["flops_per_s"].items())
    of_memory = peaks["bytes_per_s"]
    fast = max((rate for _, rate in peaks["cached"]), default=of_memory)
    copies = f"copying {peaks['copied_bytes'] / 2**20:,.0f} MiB {with_unit(of_memory, 'B/s')}"
    # Smaller copies fit into caches, and may be faster.
    if fast > of_memory:
        copies += f", within caches up to {with_unit(fast, 'B/s')}"
    yield f"peaks measured in this run: {rates}; {copies}"
    for reason in peaks["suspect"]:
        yield f"suspect peaks: {reason}"
    for record in records:
        limits = record.measures.get("limits")
        if limits is None:
            continue
        # The single image comes first, unlike in the table.
        for kind in reversed(LIMITED):
            yield f"{record.model} at {_images(limits[kind])}: {limits[kind]['evidence']}"
        if limits["uncounted"]:
            yield f"{record.model}: arithmetic not counted: {', '.join(limits['uncounted'])}"


def _images(verdict: Mapping[str, Any]) -> str:
    """Return the number of images in a batch, in words."""
    count = verdict["batch_size"]
    return "1 image" if count == 1 else f"{count} images"


def _suspects(measures: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the reasons to doubt times, each with the names that it concerns."""
    names: dict[str, list[str]] = {}
    for name, values in measures.items():
        for reason in values.get("suspect", ()):
            names.setdefault(reason, []).append(name)
    return names


def _figure(key: str, record: Record) -> str:
    """Return a figure as a table cell, bytes in MiB; a time that is doubted has a mark. A dash without a value."""
    value = record.measures.get(key)
    if value is None:
        return "-"
    if key.endswith("_bytes"):
        return mebibytes(value)
    figure = figures()[key]
    timed = figure.kind in ("ms", "per second")
    return plain(value) + (SUSPECT if timed and record.doubts(figure.work) else "")
