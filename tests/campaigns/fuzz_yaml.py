"""Cases with damaged YAML: files of options of `bench` and `fit`, and the configuration of a run folder.

If the command accepts a damaged file, the options that it used must be those of the file.
"""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from campaigns.fuzz_cases import strange_file
from campaigns.fuzz_damage import BOMB, damage_yaml
from campaigns.fuzz_fork import Outcome
from campaigns.fuzz_judge import RIGHT, Finding, Prepared, wrong
from campaigns.fuzz_templates import LAST, SMALL, Templates

BENCH_YAML = """models: [LeNet5]
data: [Synthetic]
seeds: [0]
batch_size: 16
eval_batch_size: 20
learning_rate: 0.002
data_options: {train_images: 60, test_images: 20}
"""
"""Undamaged file of options for `bench`."""


def bench_yaml(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which the file of `bench --config` is damaged."""
    what, content = damage_yaml(BENCH_YAML, yaml.safe_load(BENCH_YAML), rng)
    path = folder / "c.yaml"
    path.write_bytes(content)
    if rng.random() < 0.05:
        what = strange_file(path, rng)
    arguments = ("bench", "--config", "c.yaml", "--measures", "complexity", "--epochs", "1", "--device", "cpu")
    return Prepared((*arguments, "--out", "out"), what, partial(_check_bench_yaml, content=content))


def loose_yaml(content: bytes) -> Any:
    """Return the value of a YAML document as a tolerant reader understands it; None if it cannot be read."""
    try:
        # The bomb of aliases must not be expanded here.
        if BOMB.encode()[:30] in content:
            return None
        return yaml.safe_load(content.decode("utf-8-sig"))
    except (ValueError, RecursionError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return None


def _check_bench_yaml(outcome: Outcome, content: bytes) -> Finding:
    """Judge an accepted file: the plan must contain all its values, and a file without options must be reported."""
    asked = loose_yaml(content)
    if not isinstance(asked, dict) or not asked:
        said = "c.yaml" in outcome.stderr
        return RIGHT if said else wrong("a file without options started the default benchmark without a word")
    found = json.loads((outcome.folder / "out" / "plan.json").read_text())
    for key, value in asked.items():
        if value is None:
            continue
        if key not in found:
            return wrong(f"{key!r:.40} was passed over")
        if not _same(value, found[key]):
            return wrong(f"{key} is {value!r:.60} in the file and {found[key]!r:.60} in the plan")
    return RIGHT if outcome.code == 0 else Finding("failed cell")


def _same(asked: Any, planned: Any) -> bool:
    """Return whether a planned value equals the value in the file, where a text may stand for a number or a list."""
    if isinstance(asked, bool) or isinstance(planned, bool):
        return asked is planned
    if isinstance(planned, list):
        parts = asked if isinstance(asked, list) else str(asked).split(",")
        return [str(part).strip() for part in parts] == [str(part) for part in planned]
    if isinstance(asked, (int, float)) and isinstance(planned, (int, float)):
        return asked == planned
    return asked == planned or str(asked).strip() == str(planned)


FIT_YAML = """seed_everything: 3
model:
  class_path: LeNet5
  init_args:
    learning_rate: 0.002
    label_smoothing: 0.1
data:
  class_path: Synthetic
  init_args:
    train_images: 60
    test_images: 20
    batch_size: 16
trainer:
  log_every_n_steps: 1
"""
"""Undamaged file of options for `fit`."""


def fit_yaml(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which the file of `fit --config` is damaged."""
    what, content = damage_yaml(FIT_YAML, yaml.safe_load(FIT_YAML), rng)
    path = folder / "c.yaml"
    path.write_bytes(content)
    if rng.random() < 0.05:
        what = strange_file(path, rng)
    limits = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1")
    arguments = ("fit", "--config", "c.yaml", *limits, *SMALL, "--out", "out")
    return Prepared(arguments, what, partial(_check_fit_yaml, content=content))


def _check_fit_yaml(outcome: Outcome, content: bytes) -> Finding:
    """Judge an accepted file: the saved configuration must have the same values."""
    asked = loose_yaml(content)
    configs = list((outcome.folder / "out").glob("*/*/config.yaml"))
    if outcome.code != 0 or len(configs) != 1:
        return wrong(f"exit code {outcome.code}, {len(configs)} configurations")
    if not isinstance(asked, dict):
        return wrong("a file without options was accepted")
    saved = yaml.safe_load(configs[0].read_text())
    lost = _lost(asked, saved, ())
    return wrong(lost) if lost else RIGHT


def _lost(asked: Any, saved: Any, path: tuple[str, ...]) -> str:
    """Return a description of the first value in the file that the saved configuration lacks; empty if it has all."""
    where = ".".join(path)
    if isinstance(asked, dict) and isinstance(saved, dict):
        for key, value in asked.items():
            if key not in saved:
                return f"{where}.{key!s:.30} was passed over"
            fault = _lost(value, saved[key], (*path, str(key)))
            if fault:
                return fault
        return ""
    if path[-1:] == ("class_path",):
        return "" if str(saved).endswith(str(asked).rsplit(".", 1)[-1]) else f"{where} is {saved}"
    if asked is None or isinstance(asked, dict) or path in (("seed_everything",),):
        return ""
    if isinstance(asked, list):
        return (
            "" if isinstance(saved, (list, tuple)) and list(saved) == asked else f"{where}: {asked!r:.40} {saved!r:.40}"
        )
    return "" if _same(asked, saved) else f"{where} is {asked!r:.40} in the file and {saved!r:.40} in the run"


def run_config(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which a checkpoint is tested beside a damaged ``config.yaml``."""
    root = templates.copy("fit", folder)
    path = root / "config.yaml"
    text = path.read_text()
    if rng.random() < 0.06:
        what, content = strange_file(path, rng), b""
    else:
        what, content = damage_yaml(text, yaml.safe_load(text), rng)
        path.write_bytes(content)
    check = partial(_check_config, content=content, good=yaml.safe_load(text), reference=templates.results["test"])
    return Prepared(("test", "--ckpt_path", LAST, "--out", "of-test", *SMALL), what, check)


def _check_config(outcome: Outcome, content: bytes, good: Any, reference: str) -> Finding:
    """Judge the printed result: it must be that of the undamaged run, unless the file has other valid options."""
    if outcome.code != 0:
        return wrong(f"exit code {outcome.code}")
    if outcome.stdout == reference:
        return RIGHT
    asked = loose_yaml(content)
    if not isinstance(asked, dict):
        return wrong("a configuration that is none, and another result")
    if asked == good:
        return wrong("the same configuration, another result")
    # The user may change options in the file, but not the network, which must be that of the checkpoint.
    same = asked.get("model", {}) == good["model"]
    return RIGHT if same else wrong("another network than the checkpoint's")
