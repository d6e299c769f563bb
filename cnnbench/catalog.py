"""Catalogue of the zoo: figures that are stored in the package, so that `cnnbench list` is fast.

`make catalog` counts every architecture and writes ``models/catalog.json``. An entry stays valid as long as the module
of its architecture, and the modules that this one builds on, do not change. An architecture that is new or has changed
is counted when the catalogue is loaded, which needs torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    return {name: hashlib.sha256(shared + _whole_text(name, texts)).hexdigest()[:16] for name in texts}


def _whole_text(name: str, texts: Mapping[str, bytes], above: frozenset[str] = frozenset()) -> bytes:
    """Return the source of a module, followed by the sources of all modules that it mentions, except those `above`."""
    # A module counts as mentioned if its name is a word of the source, in an import or anywhere else. Two modules may
    # mention each other, so the modules that led to this one are left out.
    words = {word.decode() for word in re.findall(rb"[a-zA-Z]\w*", texts[name])}
    whole = texts[name]
    # The order of a set differs between processes, and the fingerprint must not.
    for other in sorted((words & texts.keys()) - above - {name}):
        whole += _whole_text(other, texts, above | {name})
    return whole


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
    if fresh:
        note(f"counting the networks of {', '.join(sorted(fresh))}, new or changed; `make catalog` keeps the figures")
        models |= count_models(fresh)
    # Reading the records takes a tenth of a second, so they are read again only if they have changed.
    if kept["records"] != records_fingerprint():
        measured = measured_accuracies()
        for name, entry in models.items():
            entry["measured"] = measured.get(name, [])
    data = kept["data"] if kept["data_modules"] == data_modules else describe_data()
    return {"models": {name: models[name] for name in sorted(models, key=natural)}, "data": data}


def _kept() -> dict[str, Any]:
    """Return the stored catalogue, or an empty one if its file is missing or broken."""
    try:
        kept = json.loads(FILE.read_text(encoding="utf-8"))
        return {key: kept[key] for key in ("modules", "data_modules", "models", "data", "records")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        note(f"'{FILE}' cannot be read ({type(error).__name__}); `make catalog` writes it anew")
        return {"modules": {}, "data_modules": {}, "models": {}, "data": {}, "records": ""}


def count_models(modules: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the catalogue entries of all architectures that some modules of the zoo define, by name.

    Args:
        modules: Names of the modules, as in `sources`.
    """
    from cnnbench.models import all_models

    measured = measured_accuracies()
    entries = {}
    for name, cls in all_models().items():
        # The third part, as in cnnbench.models.resnet, is a module or the folder of a network in several files.
        module = cls.__module__.split(".")[2]
        if module in modules:
            entries[name] = {"module": module, **_paper(cls), **_costs(cls), "measured": measured.get(name, [])}
    return entries


def _paper(cls: type[ImageClassifier]) -> dict[str, Any]:
    """Return what the docstring of a class, or of the family that the class belongs to, says about its paper."""
    texts = [first_paragraph(base) for base in cls.__mro__ if base.__doc__]
    paper: dict[str, Any] = {"title": None, "authors": None, "year": None, "arxiv": None}
    # The class itself comes first, so a paper of its own has precedence over that of its family.
    for text in texts:
        match = PAPER.fullmatch(text)
        if match:
            paper = {**match.groupdict(), "year": int(match["year"])}
            break
    return {"summary": texts[0], **paper, "key_idea": cls.key_idea, "published": list(_accuracies(cls))}


def first_paragraph(cls: type) -> str:
    """Return the first paragraph of a class's docstring as one line."""
    return " ".join(str(cls.__doc__).strip().split("\n\n")[0].split())


def _accuracies(cls: type[ImageClassifier]) -> Iterator[dict[str, Any]]:
    """Yield the best published accuracies: torchvision's for ImageNet, and the class's own for other data."""
    own = vars(cls)  # attributes of the class itself: a derived architecture does not inherit an accuracy
    if own.get("torchvision_name"):
        yield _torchvision_accuracy(own["torchvision_name"])
    if own.get("published"):
        yield own["published"]._asdict()


def _torchvision_accuracy(name: str) -> dict[str, Any]:
    """Return the best accuracy on ImageNet of torchvision's weights for an architecture, with the data and a source."""
    from torchvision.models import get_model_weights

    # Weights called FEATURES are those of a backbone without a classifier, so they have no accuracy.
    classifiers = [weights for weights in get_model_weights(name) if "FEATURES" not in weights.name]
    best = max(classifiers, key=lambda weights: weights.meta["_metrics"]["ImageNet-1K"]["acc@1"])
    accuracy = best.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    data = "ImageNet"
    if best.name.endswith("V2"):
        data += " V2"
    size = best.transforms.keywords["crop_size"]
    if size != 224:  # the usual size is not named
        data += f", {size} pixels"
    return {"accuracy": accuracy, "data": data, "source": f"torchvision, {best}"}


def _costs(cls: type[ImageClassifier]) -> dict[str, int | None]:
    """Return parameters and MACs of an architecture in each form of `SIZES`, and its depth in the last form."""
    from cnnbench.counting.complexity import complexity
    from cnnbench.counting.meta_copy import building_on_meta

    figures: dict[str, int | None] = {}
    for suffix, (size, classes) in SIZES.items():
        with building_on_meta():
            model = cls(image_size=size, num_classes=classes)
        cost = complexity(model, (3, size, size), training=False)
        # Layers that inference does not call, such as auxiliary heads, are left out of the parameters.
        unused = sum(layer.params for layer in cost.layers if layer.output_shape is None)
        figures |= {"depth": cost.depth, f"params_{suffix}": cost.params - unused, f"macs_{suffix}": cost.macs}
    return figures


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


def describe_data() -> dict[str, Any]:
    """Return the catalogue entries of all data sets, by name."""
    from cnnbench.data import all_data

    return {name: {"summary": first_paragraph(cls)} for name, cls in all_data().items()}


def _take_over(runs: Sequence[Path], weights: Sequence[str]) -> None:
    """Copy records from run folders into the package as references, with the weights of some networks (seed 0)."""
    from cnnbench.checkpoints import write_halved

    for record in take_over(runs):
        note(f"reference: {record.key}")
        # The weights of a network are in the run folder that made its record.
        for run in runs:
            file = run / "weights" / f"{record.key}.ckpt"
            if record.model in weights and record.seed == 0 and file.is_file():
                # `weights_file` in `cnnbench.references` looks for a file of this name.
                write_halved(file, RECORDS.parent / f"{record.model}-{record.data['name']}.ckpt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take over reference records, count every architecture and write the catalogue.

    Args:
        arguments: Words of the command line; None for those of this process.
    """
    parser = argparse.ArgumentParser(prog="python -m cnnbench.catalog", description="Count the zoo again.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders whose records are references")
    parser.add_argument("--weights", default="", metavar="A,B", help="networks whose weights, seed 0, are kept too")
    options = parser.parse_args(arguments)
    if options.runs:
        _take_over(options.runs, split_names(options.weights))
    modules = sources()
    counted = count_models(modules)
    catalog = {"modules": modules, "data_modules": sources("data"), "models": counted, "data": describe_data()}
    catalog["records"] = records_fingerprint()
    write_json(FILE, catalog)
    out(f"{FILE.relative_to(PACKAGE.parent)}: {len(modules)} modules, {len(counted)} networks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
