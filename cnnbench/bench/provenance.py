"""What has to be known beside the figures: warnings, and with what they were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cnnbench.bench.findings import SETTINGS, SURROUNDINGS, budget, setting
from cnnbench.record import Record


def warnings(records: Sequence[Record]) -> list[str]:
    """What a reader has to know before believing a number."""
    return [
        *_synthetic(records),
        *_trainings(records),
        *_suspects(records),
        *_differences(records),
        *_failures(records),
    ]


def _synthetic(records: Sequence[Record]) -> Iterator[str]:
    labels = ", ".join(dict.fromkeys(r.data["label"] for r in records if r.data["synthetic"]))
    if labels:
        yield (
            f"SYNTHETIC data: {labels}. These images are drawn by a formula; accuracy on them says nothing about "
            "photographs or handwriting. Costs and speed are those of real images of the same size."
        )


def _trainings(records: Sequence[Record]) -> Iterator[str]:
    short = [r for r in records if not r.training.get("converged", True)]
    if short:
        budgets = ", ".join(dict.fromkeys(budget(r) for r in short))
        yield (
            f"* Not converged: trained for a budget of {budgets}, less than a full training. These accuracies "
            "compare how far the networks come within the budget on this machine, not how good they are in the end."
        )
    for r in records:
        if r.training.get("diverged"):
            yield f"Training of {r.model} on {r.data['label']} diverged: its loss was not a number."


def _suspects(records: Sequence[Record]) -> Iterator[str]:
    reasons: dict[str, dict[str, None]] = {}
    for r in records:
        for reason in r.measures.get("suspect", ()):
            reasons.setdefault(reason, {})[f"{r.model} on {r.data['label']}"] = None
    for reason, names in reasons.items():
        which = "all" if len(names) == len({(r.model, r.data["label"]) for r in records}) else ", ".join(names)
        yield f"? Suspect times ({which}): {reason}. Time them again before believing small differences."


def _differences(records: Sequence[Record]) -> Iterator[str]:
    for what in SETTINGS:
        values = list(dict.fromkeys(str(setting(r, what)) for r in records))
        if len(values) > 1:
            yield f"The records differ in {what} ({', '.join(values)}): not every row compares with every other."
    for what in SURROUNDINGS:
        if len({str(r.environment[what]) for r in records}) > 1:
            yield f"The records come from more than one {what}: speed does not compare between them."


def _failures(records: Sequence[Record]) -> Iterator[str]:
    for r in records:
        if r.status == "error":
            yield f"{r.model} on {r.data['label']} failed: {r.reason}"


def facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Machine, versions, data and settings, each as a name and what was used, joined where records differ."""
    rows: dict[str, dict[str, None]] = {}
    for r in records:
        for name, value in _facts(r):
            rows.setdefault(name, {})[value] = None
    rates: dict[float, dict[str, None]] = {}
    for r in records:
        if "peak_lr" in r.training:
            rates.setdefault(r.training["peak_lr"], {})[r.model] = None
    found = [(name, "; ".join(values)) for name, values in rows.items()]
    if rates:
        rows_of_rates = (f"{rate:g} {', '.join(models)}" for rate, models in rates.items())
        place = next(i for i, (name, _) in enumerate(found) if name == "Recipe") + 1
        found.insert(place, ("Peak learning rate", "; ".join(rows_of_rates)))
    return found


def _old_augmentation(augment: bool) -> str:
    """What records said with one bit until 2026-11-23."""
    return "random shift and mirroring" if augment else "none"


def _facts(r: Record) -> list[tuple[str, str]]:
    env, config, data = r.environment, r.config, r.data
    packages = ", ".join(f"{name} {number}" for name, number in env["packages"].items() if number)
    commit = (
        f"{env['commit'][:12]}{' with local changes' if env['dirty'] else ''}" if env.get("commit") else "not known"
    )
    facts = [
        ("Device", f"{env['device']} ({config['device']})"),
        *[(f"GPU {name}", str(value)) for name, value in (env.get("accelerator") or {}).items()],
        (
            "Machine",
            f"{env['cpu_cores']} CPU cores, {env['threads']} threads, {env['memory_gib']} GiB memory, {env['os']}",
        ),
        ("Software", f"Python {env['python']}, {packages}"),
        ("Commit", commit),
        ("Numbers", _numbers(config)),
        ("Batch size", _batch_sizes(config)),
        ("Data", _data(data)),
    ]
    if r.training:
        facts += [("Budget", f"{budget(r)} per cell"), ("Recipe", r.training["recipe"])]
    facts += [("Not measured", f"{name}: {reason}") for name, reason in r.skipped.items()]
    facts += [("Counting", config["macs_convention"])] if "macs_convention" in config else []
    facts.append(("Date", r.created[:10]))
    return facts


def _numbers(config: Mapping[str, Any]) -> str:
    reason = f" ({config['precision_reason']})" if "precision_reason" in config else ""
    mode = f", {config['mode']}" if config.get("mode") else ""
    return f"{config['precision']}{reason}, memory format {config['memory_format']}{mode}"


def _batch_sizes(config: Mapping[str, Any]) -> str:
    test = f", {config['eval_batch_size']} in the test" if config.get("eval_batch_size") else ""
    return f"{config['batch_size']} in training, {config['speed_batch_size']} for images/s{test}, 1 for latency"


def _data(data: Mapping[str, Any]) -> str:
    shape = f"{data['in_channels']}x{data['image_size']}x{data['image_size']}"
    if not data["train_images"]:
        return data["label"]
    return (
        f"{data['label']}: {data['train_images']:,} training, {data['val_images']:,} validation and "
        f"{data['test_images']:,} test images, {shape}, "
        f"augmentation: {data.get('augmentation') or _old_augmentation(data['augment'])}, "
        f"full training {data['full_epochs']} epochs"
    )
