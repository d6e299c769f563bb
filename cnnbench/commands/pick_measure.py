"""The timing behind ``cnnbench pick --measure``: networks whose times are not known here, timed as `speed` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cnnbench.commands.named_networks import find_networks
from cnnbench.commands.pick import Known, names_to_time, speed_options
from cnnbench.commands.pick import Options as PickOptions
from cnnbench.commands.speed_run import time_networks, without_times
from cnnbench.console import note
from cnnbench.files import make_folder
from cnnbench.record import Record, write_lines
from cnnbench.report.choice import timings
from cnnbench.report.choice_words import few
from cnnbench.report.contenders import values_of
from cnnbench.report.settings import Setting
from cnnbench.trust import foreign_module


class Measured(NamedTuple):
    """New records, without those that failed, and the settings of the group of records that they belong to."""

    records: Sequence[Record]
    settings: tuple[str, ...] | None


def measure(options: PickOptions, known: Known, settings: Sequence[Setting], folder: Path) -> Measured:
    """Time the networks whose accuracy and counts satisfy the conditions, unless records have such times.

    Only times with the settings that a timing here and now would have are not measured again.

    Args:
        options: Options of ``cnnbench pick``.
        known: What is known.
        settings: Settings that must agree before times are ranked.
        folder: Folder in which a new file of records is written.

    Raises:
        UserError: The device or the number format is not there, or a network does not take such images.
    """
    names = []
    for name in names_to_time(options, known):
        # A name that only a file has must not decide which code runs here.
        if foreign_module(name):
            note(f"not timed: {name}, whose code only records name; time it with `cnnbench speed`")
        else:
            names.append(name)
    if not names:
        note("nothing to time: no network is known whose accuracy and counts satisfy the conditions")
        return Measured([], None)
    wanted = speed_options(options, known.images, names)
    networks = find_networks(wanted)
    # Without times, the records that a timing would write say which records have the same settings.
    here = values_of(without_times(wanted, networks[:1])[0], settings)
    there = [group for group in timings(known.records, known.images, options.needed_times()) if group.settings == here]
    timed = set(there[0].records) if there else set()
    missing = [network for network in networks if network.name not in timed]
    if not missing:
        note("nothing to time: all times are known")
        return Measured([], here)
    note(f"timing {few([network.name for network in missing])}; accuracies are not measured")
    path = _new_file(make_folder(folder))
    records = time_networks(speed_options(options, known.images, [n.name for n in missing]), missing)
    write_lines(path, records)
    note(f"records: {path}")
    for record in records:
        if record.status == "error":
            note(f"{record.network} failed: {record.reason}")
    return Measured([record for record in records if record.status == "ok"], here)


def _new_file(folder: Path) -> Path:
    """Return the path of a file of records that does not exist yet, named by date and time."""
    stem = datetime.now().strftime("%Y%m%d-%H%M%S")
    path, number = folder / f"{stem}.jsonl", 1
    while os.path.lexists(path):
        number += 1
        path = folder / f"{stem}-{number}.jsonl"
    return path
