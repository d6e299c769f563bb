"""The catalogue of the zoo: figures that are kept in the package, so that `cnnbench list` is quick.

`make catalog` counts every architecture and writes ``models/catalog.json``; an entry holds as long as the module of its
architecture, and those that this builds on, are the same. What is new or changed is counted on the spot, which needs
torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnbench.console import note, out
from cnnbench.files import write_json
from cnnbench.references import FILE as RECORDS
from cnnbench.references import references, take_over
from cnnbench.registry import natural, split_names

if TYPE_CHECKING:
    from cnnbench.training.classifier import ImageClassifier

PACKAGE = Path(__file__).parent
FILE = PACKAGE / "models" / "catalog.json"
PAPER = re.compile(r"(?P<title>.+); (?P<authors>.+); (?P<year>\d{4})(?:; (?P<arxiv>\d{4}\.\d{4,5}))?\.")
SIZES = {"32": (32, 10), "224": (224, 1000)}
"""Image size and classes of the two forms that are counted."""


def sources(room: str = "models") -> dict[str, str]:
    """Fingerprints of the modules that define architectures, or data sets, by their names.

    That of an architecture contains what it builds on: the blocks, the classifier, every module of the folder that it
    mentions.
    """
    texts = {f.stem: f.read_bytes() for f in sorted((PACKAGE / room).glob("*.py")) if f.name != "__init__.py"}
    for init in sorted((PACKAGE / room).glob("*/__init__.py")):
        texts[init.parent.name] = b"".join(f.read_bytes() for f in sorted(init.parent.rglob("*.py")))
    shared = b""
    if room == "models":
        shared = b"".join((PACKAGE / name).read_bytes() for name in ("blocks.py", "training/classifier.py"))

    def whole(name: str, seen: frozenset[str] = frozenset()) -> bytes:
        below = {word.decode() for word in re.findall(rb"[a-zA-Z]\w*", texts[name])} & texts.keys()
        return texts[name] + b"".join(whole(n, seen | {name}) for n in sorted(below - seen - {name}))

    return {name: hashlib.sha256(shared + whole(name)).hexdigest()[:16] for name in texts}


def load_catalog() -> dict[str, Any]:
    """The catalogue: entries as they are kept, and counted anew where a file of the zoo is new or has changed."""
    kept = _kept()
    modules, data_modules = sources(), sources("data")
    fresh = {name for name, fingerprint in modules.items() if kept["modules"].get(name) != fingerprint}
    models = {name: entry for name, entry in kept["models"].items() if entry["module"] in modules.keys() - fresh}
    if fresh:
        note(f"counting the networks of {', '.join(sorted(fresh))}, new or changed; `make catalog` keeps the figures")
        models |= count_models(fresh)
    # Reading records takes a tenth of a second, so that they are read again only where they have changed.
    if kept["records"] != records_fingerprint():
        measured = measured_accuracies()
        models = {name: {**entry, "measured": measured.get(name, [])} for name, entry in models.items()}
    data = kept["data"] if kept["data_modules"] == data_modules else describe_data()
    return {"models": {name: models[name] for name in sorted(models, key=natural)}, "data": data}


def _kept() -> dict[str, Any]:
    """What is kept; nothing where the file is missing or broken."""
    try:
        kept = json.loads(FILE.read_text(encoding="utf-8"))
        return {key: kept[key] for key in ("modules", "data_modules", "models", "data", "records")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        note(f"'{FILE}' cannot be read ({type(error).__name__}); `make catalog` writes it anew")
        return {"modules": {}, "data_modules": {}, "models": {}, "data": {}, "records": ""}


def count_models(modules: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Entries of the architectures that these modules of the zoo define."""
    from cnnbench.models import all_models

    measured = measured_accuracies()
    entries = {}
    for name, cls in all_models().items():
        module = cls.__module__.split(".")[2]
        if module in modules:
            entries[name] = {"module": module, **_paper(cls), **_costs(cls), "measured": measured.get(name, [])}
    return entries


def _paper(cls: type[ImageClassifier]) -> dict[str, Any]:
    """What the docstring of the class, or of the family that it belongs to, says of the paper."""
    texts = [first_paragraph(base) for base in cls.__mro__ if base.__doc__]
    found = next((m for m in map(PAPER.fullmatch, texts) if m), None)
    return {
        "summary": texts[0],
        "title": found and found["title"],
        "authors": found and found["authors"],
        "year": int(found["year"]) if found else None,
        "arxiv": found and found["arxiv"],
        "key_idea": cls.key_idea,
        "published": list(_accuracies(cls)),
    }


def first_paragraph(cls: type) -> str:
    """The first paragraph of a docstring as one line."""
    return " ".join(str(cls.__doc__).strip().split("\n\n")[0].split())


def _accuracies(cls: type[ImageClassifier]) -> Iterator[dict[str, Any]]:
    """The best published accuracies: on ImageNet torchvision's, on other data what the class says."""
    own = vars(cls)  # an architecture derived from another has not its accuracy
    if own.get("torchvision_name"):
        from torchvision.models import get_model_weights

        weights = get_model_weights(own["torchvision_name"])
        best = max(weights, key=lambda w: w.meta["_metrics"]["ImageNet-1K"]["acc@1"] if "FEATURES" not in w.name else 0)
        accuracy = best.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        data = "ImageNet" + " V2" * best.name.endswith("V2")
        size = best.transforms.keywords["crop_size"]
        data += f", {size} pixels" * (size != 224)
        yield {"accuracy": accuracy, "data": data, "source": f"torchvision, {best}"}
    if own.get("published"):
        yield own["published"]._asdict()


def _costs(cls: type[ImageClassifier]) -> dict[str, int | None]:
    from cnnbench.counting.complexity import complexity
    from cnnbench.counting.copies import building_on_meta

    found: dict[str, int | None] = {}
    for suffix, (size, classes) in SIZES.items():
        with building_on_meta():
            model = cls(image_size=size, num_classes=classes)
        cost = complexity(model, (3, size, size), training=False)
        unused = sum(layer.params for layer in cost.layers if layer.output_shape is None)  # auxiliary heads
        found |= {"depth": cost.depth, f"params_{suffix}": cost.params - unused, f"macs_{suffix}": cost.macs}
    return found


def records_fingerprint() -> str:
    """Return a fingerprint of the reference records."""
    return hashlib.sha256(RECORDS.read_bytes()).hexdigest()[:16] if RECORDS.is_file() else ""


def measured_accuracies() -> dict[str, list[dict[str, Any]]]:
    """Return the reference accuracies of every network at 32x32, by its name."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for (model, label, _, size), found in sorted(references().items()):
        if size == 32:
            entry = {"accuracy": round(100 * found.accuracy, 2), "data": label, "seeds": found.seeds}
            by_model.setdefault(model, []).append(entry | {"epochs": round(found.epochs, 1), "date": found.created})
    return by_model


def describe_data() -> dict[str, Any]:
    from cnnbench.data import all_data

    return {name: {"summary": first_paragraph(cls)} for name, cls in all_data().items()}


def _take_over(runs: Sequence[Path], weights: Sequence[str]) -> None:
    """Make the records of run folders the references of the package, with the weights of some networks."""
    from cnnbench.checkpoints import write_halved

    for record in take_over(runs):
        note(f"reference: {record.key}")
        for run in runs:
            file = run / "weights" / f"{record.key}.ckpt"
            if record.model in weights and record.seed == 0 and file.is_file():
                write_halved(file, RECORDS.parent / f"{record.model}-{record.data['name']}.ckpt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take reference records over, count everything and write the catalogue."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.catalog", description="Count the zoo again.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders whose records are references")
    parser.add_argument("--weights", default="", metavar="A,B", help="networks whose weights, seed 0, are kept too")
    options = parser.parse_args(arguments)
    if options.runs:
        _take_over(options.runs, split_names(options.weights))
    modules = sources()
    counted = count_models(modules)
    kept = {"modules": modules, "data_modules": sources("data"), "models": counted, "data": describe_data()}
    kept["records"] = records_fingerprint()
    write_json(FILE, kept)
    out(f"{FILE.relative_to(PACKAGE.parent)}: {len(modules)} modules, {len(counted)} networks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
