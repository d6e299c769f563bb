"""Catalogue of the zoo: figures that are stored in the package, so that `cnnbench list` is fast.

`make catalog` counts every architecture and writes ``models/catalog.json``. An entry stays valid as long as the module
of its architecture, and the modules that this one builds on, do not change. An architecture that is new or has changed
is counted when the catalogue is loaded, which needs torch.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnbench.console import note
from cnnbench.references import FILE as RECORDS
from cnnbench.references import references
from cnnbench.registry import natural

PACKAGE = Path(__file__).parent
FILE = PACKAGE / "models" / "catalog.json"
PAPER = re.compile(r"(?P<title>.+); (?P<authors>.+); (?P<year>\d{4})(?:; (?P<arxiv>\d{4}\.\d{4,5}))?\.")
"""Form of the first paragraph in the docstring of an architecture that has a paper."""
SIZES = {"32": (32, 10), "224": (224, 1000)}
"""Forms of a network that are counted, by name: image size in pixels and number of classes."""


def sources(room: str = "models") -> dict[str, str]:
    """Return fingerprints of the modules that define architectures or data sets, by the name of the module.

    The fingerprint of an architecture also covers the code that it builds on: the blocks, the classifier, and every
    module of the folder that its source mentions.

    Args:
        room: Folder of the modules: ``models`` or ``data``.
    """
    texts: dict[str, bytes] = {}
    for file in sorted((PACKAGE / room).glob("*.py")):
        if file.name != "__init__.py":
            texts[file.stem] = file.read_bytes()
    # A folder with several files counts as one module.
    for init in sorted((PACKAGE / room).glob("*/__init__.py")):
        texts[init.parent.name] = b"".join(f.read_bytes() for f in sorted(init.parent.rglob("*.py")))
    shared = b""
    if room == "models":
        for name in ("blocks.py", "training/classifier.py"):
            shared += (PACKAGE / name).read_bytes()
    mentioned = {name: _mentioned(name, texts) for name in texts}
    fingerprints = {}
    for name in texts:
        whole = b"".join(texts[other] for other in _reached(name, mentioned))
        fingerprints[name] = hashlib.sha256(shared + whole).hexdigest()[:16]
    return fingerprints


def _mentioned(name: str, texts: Mapping[str, bytes]) -> set[str]:
    """Return the modules that the source of a module mentions, with the module itself.

    A module counts as mentioned if its name is a word of the source, in an import or anywhere else.
    """
    words = {word.decode() for word in re.findall(rb"[a-zA-Z]\w*", texts[name])}
    return (words & texts.keys()) | {name}


def _reached(name: str, mentioned: Mapping[str, set[str]]) -> list[str]:
    """Return the modules that a module mentions, that these mention, and so on, in alphabetical order."""
    # Modules may mention each other. Each is visited once, so the work does not grow with the number of paths.
    reached, waiting = {name}, [name]
    while waiting:
        new = mentioned[waiting.pop()] - reached
        reached |= new
        waiting += new
    return sorted(reached)


def counting_fingerprint() -> str:
    """Return a fingerprint of the code that counts."""
    files = sorted((PACKAGE / "counting").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def stored_counts() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the documents of ``cnnbench count`` for networks that have not changed, by name and by form in `SIZES`.

    It is empty if the code that counts has changed since they were stored.
    """
    kept = _kept()
    if kept["counting"] != counting_fingerprint():
        return {}
    now = sources()
    valid = {name for name, entry in kept["models"].items() if kept["modules"][entry["module"]] == now[entry["module"]]}
    return {name: forms for name, forms in kept["counts"].items() if name in valid}


def listed_names(room: str) -> list[str] | None:
    """Return the names of the classes of networks or data sets, without importing them.

    Args:
        room: ``models`` or ``data``.

    Returns:
        The names in natural order; None if the modules have changed since the catalogue was stored.
    """
    kept = _kept()
    if kept["modules" if room == "models" else "data_modules"] != sources(room):
        return None
    if room == "models":
        return sorted(kept["models"], key=natural)
    return sorted((entry["class"] for entry in kept["data"].values()), key=natural)


def data_forms() -> dict[str, str]:
    """Return the form in which each data set is named, such as ``folder:PATH``, by the name of its class."""
    return {entry["class"]: form for form, entry in _kept()["data"].items()}


def load_catalog() -> dict[str, Any]:
    """Return the catalogue, with stored entries, and with new entries for modules that are new or have changed.

    Returns:
        ``models``: entries of the networks by name, in natural order; ``data``: entries of the data sets by name.
    """
    kept = _kept()
    modules, data_modules = sources(), sources("data")
    fresh = {name for name, fingerprint in modules.items() if kept["modules"].get(name) != fingerprint}
    unchanged = modules.keys() - fresh
    models = {name: entry for name, entry in kept["models"].items() if entry["module"] in unchanged}
    data = kept["data"]
    if fresh or kept["data_modules"] != data_modules:
        # Imported here, because counting needs torch, and reading the stored entries does not.
        from cnnbench.catalog_update import count_models, describe_data

        data = describe_data()
    if fresh:
        note(f"counting the networks of {', '.join(sorted(fresh))}, new or changed; `make catalog` keeps the figures")
        models |= count_models(fresh)
    # Reading the records takes a tenth of a second, so they are read again only if they have changed.
    if kept["records"] != records_fingerprint():
        measured = measured_accuracies()
        for name, entry in models.items():
            entry["measured"] = measured.get(name, [])
    return {"models": {name: models[name] for name in sorted(models, key=natural)}, "data": data}


_EMPTY: dict[str, Any] = {
    "modules": {},
    "data_modules": {},
    "counting": "",
    "models": {},
    "counts": {},
    "data": {},
    "records": "",
}
"""Catalogue without entries."""


@functools.cache
def _read(path: Path, changed: int) -> dict[str, Any]:
    """Return the content of the stored catalogue; the time of its last change makes the cache forget an old one."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {key: kept[key] for key in _EMPTY}


def _kept() -> dict[str, Any]:
    """Return the stored catalogue, or an empty one if its file is missing or broken."""
    try:
        return copy.deepcopy(_read(FILE, FILE.stat().st_mtime_ns))
    except (OSError, ValueError, KeyError, TypeError) as error:
        note(f"'{FILE}' cannot be read ({type(error).__name__}); `make catalog` writes it anew")
        return copy.deepcopy(_EMPTY)


def records_fingerprint() -> str:
    """Return a fingerprint of the reference records, or an empty text if there are none."""
    return hashlib.sha256(RECORDS.read_bytes()).hexdigest()[:16] if RECORDS.is_file() else ""


def measured_accuracies() -> dict[str, list[dict[str, Any]]]:
    """Return the reference accuracies, in per cent, of every network at 32x32 pixels, by the name of the network."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for (model, label, _, size), reference in sorted(references().items()):
        if size == 32:
            accuracy, epochs = round(100 * reference.accuracy, 2), round(reference.epochs, 1)
            entry = {"accuracy": accuracy, "data": label, "seeds": reference.seeds, "epochs": epochs}
            by_model.setdefault(model, []).append(entry | {"date": reference.created})
    return by_model
