"""Engines side by side as sentences and tables; see `cnnbench.report.engines`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from cnnbench import text
from cnnbench.report.engines import Agreement, EngineView, Swap, TimedRow
from cnnbench.report.findings import DASH
from cnnbench.report.seeds import SeedTable
from cnnbench.report.ways import RecordedWay
from cnnbench.stats import FEWEST_FOR_CORRELATION, FEWEST_FOR_CORRELATION_INTERVAL, FEWEST_ROUNDS, Interval
from cnnbench.units import mebibytes, plain

SUSPECT = "?"
"""Mark of a latency that its run flagged as suspect."""
MOST_NAMES = 3
"""Largest number of networks that a sentence names; of more it has one fewer and the number of the others."""
MOST_SWAPS = 20
"""Largest number of changes of place that a table has; the JSON document has all."""


def heading(view: EngineView, views: Sequence[EngineView]) -> str:
    """Return the data set of a view, with the machine and the turns if the views differ in them."""
    words = [view.label]
    if len({(other.device, other.threads) for other in views}) > 1:
        words += [view.device, f"{view.threads} threads"]
    if len({other.turns for other in views}) > 1:
        words.append(view.turns)
    return ", ".join(words)


# Sentences


def sentences(view: EngineView) -> list[str]:
    """Return what the engines of a view mean: how fast they are, whether the ranking changes, and how far it agrees."""
    return [*_speed_sentences(view), _change_sentence(view), _agreement_sentence(view)]


def notes(view: EngineView) -> list[str]:
    """Return what must be known before trusting the sentences and tables."""
    lines = [
        "An interval beside a latency is about the run that measured it. The intervals of ratios are about further "
        "processes too, and a ratio counts as a difference only if its interval leaves out 1. A ratio comes "
        "from pairs of processes that ran next to each other (Hodges and Lehmann's estimate), so it may differ from "
        "the ratio of the two latencies."
    ]
    processes = [len(cell.record.measures.get("process_rounds", ())) or 1 for cell in view.cells.values()]
    if min(processes) < FEWEST_ROUNDS:
        lines.append(
            f"Some times come from fewer than {FEWEST_ROUNDS} processes. Their ratios have wide intervals, which "
            "assume how much processes usually differ."
        )
    if view.suspect:
        lines.append(
            f"{SUSPECT}: a suspect time, for the reason in the warnings. Sentences and ratios with it are suspect too."
        )
    if view.baseline is None:
        lines.append("There are no ratios, since no record has times of torch in float32.")
    return lines


def _speed_sentences(view: EngineView) -> list[str]:
    """Return a sentence for each number format on how fast the ways with it are beside torch in float32."""
    base = view.baseline
    if base is None:
        return []
    clauses: dict[str, list[str]] = {}
    for way in view.ways:
        clause = _speed_clause(view, way) if way != base else ""
        if clause:
            clauses.setdefault(way.precision, []).append(clause)
    if not clauses:
        return [f"No network has times of both {view.names[base]} and another engine."]
    return [f"Beside {view.names[base]}, {'; '.join(several)}." for several in clauses.values()]


def _speed_clause(view: EngineView, way: RecordedWay) -> str:
    """Return how fast a way is beside torch in float32, as far as intervals show it; empty without a common network."""
    faster: list[str] = []
    slower: list[str] = []
    unclear: list[str] = []
    ratios: dict[str, Interval] = {}
    for network in view.networks:
        found = view.times_as_fast(network, way)
        if found is None:
            continue
        ratios[network] = found
        if not found.differs:
            unclear.append(network)
        else:
            (faster if found.estimate > 1 else slower).append(network)
    if not ratios:
        return ""
    parts = []
    for names, opening, kind in ((faster, "is", "times as fast"), (slower, "is slower,", "times as fast,")):
        if names:
            values = [ratios[name].estimate for name in names]
            parts.append(f"{opening} {_range(values)} {kind} {_which(view, way, names, len(ratios))}")
    if unclear:
        parts.append(f"shows no clear difference {_which(view, way, unclear, len(ratios))}")
    return f"{view.names[way]} {', and '.join(parts)}"


def _range(values: Sequence[float]) -> str:
    """Return the lowest and the highest value, or the only one."""
    low, high = plain(min(values)), plain(max(values))
    return low if low == high else f"{low} to {high}"


def _which(view: EngineView, way: RecordedWay, names: Sequence[str], total: int) -> str:
    """Return which of the common networks are meant."""
    if len(names) == total > MOST_NAMES:
        marked = [_marked(view, name, view.baseline, way) for name in names]
        return f"for all {total} networks{SUSPECT if marked != list(names) else ''}"
    return f"for {_few([_marked(view, name, view.baseline, way) for name in names])}"


def _marked(view: EngineView, network: str, *ways: RecordedWay | None) -> str:
    """Return the name of a network, with a mark if its latency in one of the ways is suspect."""
    cells = [view.cells[network, way] for way in ways if way is not None and (network, way) in view.cells]
    return f"{network}{SUSPECT}" if any(cell.suspect for cell in cells) else network


def _few(names: Sequence[str]) -> str:
    """Return names as an enumeration; of many the first ones and the number of the others."""
    every = list(names)
    if len(every) > MOST_NAMES:
        more = every[MOST_NAMES - 1 :]
        doubt = SUSPECT if any(name.endswith(SUSPECT) for name in more) else ""
        every = [*every[: MOST_NAMES - 1], f"{len(more)} more{doubt}"]
    return every[0] if len(every) == 1 else f"{', '.join(every[:-1])} and {every[-1]}"


def _ranked(view: EngineView) -> list[Agreement]:
    """Return the agreements that the sentences are about: those with torch in float32, or without it all of them."""
    with_base = [found for found in view.agreements if view.baseline in (found.first, found.second)]
    return [found for found in with_base or view.agreements if found.pairs]


def _change_sentence(view: EngineView) -> str:
    """Return which networks change places between engines."""
    ranked = _ranked(view)
    if not ranked:
        return "Whether engines rank networks alike is not known: no two networks have times in two engines."
    changes = [(swap, found) for found in ranked for swap in found.swaps]
    turned = sum(found.turned for found in ranked)
    if not changes:
        within = ""
        if turned:
            within = f"; {turned} pair{'s are' if turned > 1 else ' is'} in another order, but within the intervals"
        return f"No two networks change places between {_compared(view)} beyond their intervals{within}."
    swap, found = max(changes, key=lambda change: change[0].clearness)
    example = _swap_words(view, swap, found)
    pairs = {frozenset((one.first, one.second)) for one, _ in changes}
    if len(pairs) == 1:
        return f"One pair of networks changes places: {example}."
    looked = {frozenset(pair) for one in ranked for pair in combinations(one.networks, 2)}
    return (
        f"{len(pairs)} of {len(looked)} pairs of networks change places between {_compared(view)}, beyond their "
        f"intervals. The clearest: {example}."
    )


def _compared(view: EngineView) -> str:
    """Return what the rankings of the sentences are of."""
    others = {found.second.engine for found in _ranked(view)}
    if view.baseline is None or not any(found.first == view.baseline for found in _ranked(view)):
        return "engines"
    base = view.names[view.baseline]
    return f"{base} and {'another engine' if len(others) == 1 else 'other engines'}"


def _swap_words(view: EngineView, swap: Swap, found: Agreement) -> str:
    """Return a change of place in words."""
    first, second = (_marked(view, name, found.first, found.second) for name in (swap.first, swap.second))
    return (
        f"{first} is faster than {second} in {view.names[found.first]} and slower in {view.names[found.second]} "
        f"({_ratio(swap.in_first)} and {_ratio(swap.in_second)} times its latency)"
    )


def _ratio(ratio: Interval) -> str:
    """Return a ratio with its interval."""
    if ratio.low is None or ratio.high is None:
        return plain(ratio.estimate)
    return f"{plain(ratio.estimate)} [{plain(ratio.low)} to {plain(ratio.high)}]"


def _agreement_sentence(view: EngineView) -> str:
    """Return how far the rankings of the engines agree."""
    known = [found for found in _ranked(view) if found.correlation is not None]
    if not known:
        return f"There is no rank correlation, since no {FEWEST_FOR_CORRELATION} networks have times in two engines."
    known.sort(key=lambda found: found.correlation.value if found.correlation else 0.0)
    lowest, highest = known[0], known[-1]
    start = "Spearman's rank correlation of the latencies"
    if lowest is highest:
        return f"{start} is {_correlation(view, lowest)}."
    values = {f"{found.correlation.value:.2f}" for found in known if found.correlation}
    if len(values) == 1:
        return f"{start} is {values.pop()} between {_compared(view)}, in all {len(known)} comparisons."
    return f"{start} is lowest, {_correlation(view, lowest)}, and highest, {_correlation(view, highest)}."


def _correlation(view: EngineView, found: Agreement) -> str:
    """Return a rank correlation with its interval and the ways that it compares."""
    assert found.correlation is not None
    ways = f"between {view.names[found.first]} and {view.names[found.second]}"
    return f"{found.correlation.value:.2f} {ways} ({_correlation_interval(found)}, {len(found.networks)} networks)"


def _correlation_interval(found: Agreement) -> str:
    """Return the interval of a rank correlation, or why it has none."""
    assert found.correlation is not None
    if found.correlation.interval is not None:
        low, high = found.correlation.interval
        return f"95 % interval {low:.2f} to {high:.2f}"
    if len(found.networks) < FEWEST_FOR_CORRELATION_INTERVAL:
        return "too few for an interval"
    return "no interval, since all resamples agree"


# Tables


def tables(view: EngineView) -> list[SeedTable]:
    """Return the tables: latencies, ratios, places, agreements, sizes and accuracies, as far as records have them."""
    made = [_grid(view, "Latency of one image, ms (95 % interval)", view.ways, _latency)]
    if view.baseline is not None:
        others = [way for way in view.ways if way != view.baseline]
        title = f"Times as fast as {view.names[view.baseline]} (95 % interval)"
        made.append(_table(view, title, others, lambda name, way: _fast(view, name, way)))
    places = {way: {name: str(place) for place, name in enumerate(view.of_way(way), 1)} for way in view.ways}
    made.append(_table(view, "Place by latency", view.ways, lambda name, way: places[way].get(name, DASH)))
    made.append(_agreement_table(view))
    changes = _change_rows(view)
    if len(changes) > 1:
        made.append(SeedTable("Networks that change places", changes, 4, []))
    if any(cell.file_bytes is not None for cell in view.cells.values()):
        made.append(_grid(view, "Size on disk, MiB", view.ways, _size))
    if any(cell.accuracy is not None for cell in view.cells.values()):
        made.append(_grid(view, "Test accuracy, %", view.ways, _accuracy))
    return made


def _table(
    view: EngineView, title: str, ways: Sequence[RecordedWay], show: Callable[[str, RecordedWay], str]
) -> SeedTable:
    """Return a table with a row per network and a column per way."""
    head = ["Network", *(view.names[way] for way in ways)]
    rows = [[network, *(show(network, way) for way in ways)] for network in view.networks]
    return SeedTable(title, [head, *rows], 1, [])


def _grid(view: EngineView, title: str, ways: Sequence[RecordedWay], show: Callable[[TimedRow], str]) -> SeedTable:
    """Return a table of what each network has in each way; a dash where it was not timed."""

    def shown(network: str, way: RecordedWay) -> str:
        cell = view.cells.get((network, way))
        return DASH if cell is None else show(cell)

    return _table(view, title, ways, shown)


def _latency(cell: TimedRow) -> str:
    latency, mark = cell.latency, SUSPECT if cell.suspect else ""
    return f"{plain(latency.estimate)}{mark}{_ends(latency)}"


def _fast(view: EngineView, network: str, way: RecordedWay) -> str:
    ratio = view.times_as_fast(network, way)
    if ratio is None:
        return DASH
    cells = [view.cells[network, each] for each in (view.baseline, way) if each is not None]
    doubt = SUSPECT if any(cell.suspect for cell in cells) else ""
    return f"{plain(ratio.estimate)}{doubt}{_ends(ratio)}"


def _ends(interval: Interval) -> str:
    """Return the ends of an interval in brackets; empty without an interval."""
    if interval.low is None or interval.high is None:
        return ""
    return f" ({plain(interval.low)}{DASH}{plain(interval.high)})"


def _size(cell: TimedRow) -> str:
    return DASH if cell.file_bytes is None else mebibytes(cell.file_bytes)


def _accuracy(cell: TimedRow) -> str:
    if cell.accuracy is None:
        return DASH
    return f"{100 * cell.accuracy:.2f}{'' if cell.fully_trained else '*'}"


def _agreement_table(view: EngineView) -> SeedTable:
    """Return the table of how far each two engines agree about the ranking."""
    rows = [["", "Beside", "Networks", "Spearman", "95 % interval", "Pairs", "Change places", "Within intervals"]]
    for found in view.agreements:
        value = interval = DASH
        if found.correlation is not None:
            value = f"{found.correlation.value:.2f}"
            if found.correlation.interval is not None:
                interval = f"{found.correlation.interval[0]:.2f} to {found.correlation.interval[1]:.2f}"
        names = [view.names[found.second], view.names[found.first]]
        counts = [found.pairs, len(found.swaps), found.turned]
        rows.append([*names, str(len(found.networks)), value, interval, *map(str, counts)])
    return SeedTable("How far the rankings agree", rows, 2, [])


def _change_rows(view: EngineView) -> list[list[str]]:
    """Return the clearest changes of place, header first."""
    rows = [["Faster in", "and slower in", "Network", "than", "Ratio in the first", "Ratio in the second"]]
    changes = [(swap, found) for found in view.agreements for swap in found.swaps]
    changes.sort(key=lambda change: -change[0].clearness)
    for swap, found in changes[:MOST_SWAPS]:
        names = [view.names[found.first], view.names[found.second], swap.first, swap.second]
        rows.append([*names, _ratio(swap.in_first), _ratio(swap.in_second)])
    return rows


def to_csv(views: Sequence[EngineView]) -> str:
    """Return all views as CSV, with a row per network and way; empty without a view."""
    lines: list[list[object]] = []
    for view in views:
        for figures in view.rows():
            row = {"label": view.label, "device": view.device, "threads": view.threads, **figures}
            if not lines:
                lines.append(list(row))
            lines.append(list(row.values()))
    return text.to_csv(lines) if lines else ""
