"""Counts the zoo again for the catalogue, and takes over records as references.

``python -m cnnbench.catalog_update`` (``make catalog``) writes ``models/catalog.json``, which `cnnbench.catalog` reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torchvision.models import get_model_weights

from cnnbench.catalog import (
    FILE,
    PACKAGE,
    PAPER,
    SIZES,
    counting_fingerprint,
    measured_accuracies,
    records_fingerprint,
    sources,
)
from cnnbench.checkpoints import write_halved
from cnnbench.console import note, out
from cnnbench.counting.complexity import complexity
from cnnbench.counting.counts import count_network
from cnnbench.counting.meta_copy import building_on_meta
from cnnbench.data import all_data
from cnnbench.data.torchvision_images import FACTS, TorchvisionImages
from cnnbench.files import write_json
from cnnbench.models import all_models
from cnnbench.network import get_network
from cnnbench.references import FILE as RECORDS
from cnnbench.references import REFERENCE_SEED, take_over
from cnnbench.registry import split_names
from cnnbench.training.classifier import ImageClassifier


def count_models(modules: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the catalogue entries of all architectures that some modules of the zoo define, by name.

    Args:
        modules: Names of the modules, as in `sources`.
    """
    measured = measured_accuracies()
    entries = {}
    for name, cls in all_models().items():
        # The third part, as in cnnbench.models.resnet, is a module or the folder of a network in several files.
        module = cls.__module__.split(".")[2]
        if module in modules:
            entries[name] = {"module": module, **_paper(cls), **_costs(cls), "measured": measured.get(name, [])}
    return entries


def count_documents(name: str) -> dict[str, dict[str, Any]]:
    """Return the document of ``cnnbench count`` for a network of the zoo in each form of `SIZES`."""
    documents = {}
    for form, (size, classes) in SIZES.items():
        network = get_network(name, None, size, classes)
        documents[form] = count_network(network, True, None).document(per_layer=False)
    return documents


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
    return " ".join(str(cls.__doc__).strip().split("\n\n")[0].split()).replace("``", "")


def _accuracies(cls: type[ImageClassifier]) -> Iterator[dict[str, Any]]:
    """Yield the best published accuracies: torchvision's for ImageNet, and the class's own for other data."""
    own = vars(cls)  # attributes of the class itself: a derived architecture does not inherit an accuracy
    if own.get("torchvision_name"):
        yield _torchvision_accuracy(own["torchvision_name"])
    if own.get("published"):
        yield own["published"]._asdict()


def _torchvision_accuracy(name: str) -> dict[str, Any]:
    """Return the best accuracy on ImageNet of torchvision's weights for an architecture, with the data and a source."""
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
    figures: dict[str, int | None] = {}
    for suffix, (size, classes) in SIZES.items():
        with building_on_meta():
            model = cls(image_size=size, num_classes=classes)
        cost = complexity(model, (3, size, size), training=False)
        # Layers that inference does not call, such as auxiliary heads, are left out of the parameters.
        unused = sum(layer.params for layer in cost.layers if layer.output_shape is None)
        figures |= {"depth": cost.depth, f"params_{suffix}": cost.params - unused, f"macs_{suffix}": cost.macs}
    return figures


def describe_data() -> dict[str, Any]:
    """Return the catalogue entries of all data sets, by name."""
    entries: dict[str, Any] = {}
    for name, cls in all_data().items():
        # What is None depends on the folder or on the name.
        facts = {
            "class": name,
            "classes": None if cls.form else cls.num_classes,
            "channels": getattr(cls, "in_channels", None),
            "size": getattr(cls, "native_size", None),
        }
        entries[cls.form or name] = {"summary": first_paragraph(cls), **facts}
    for name, found in FACTS.items():
        entries[TorchvisionImages.form]["names"] = entries[TorchvisionImages.form].get("names", {}) | {
            name: {"classes": found.classes, "channels": found.channels, "size": found.side}
        }
    return entries


def _take_over(runs: Sequence[Path], weights: Sequence[str]) -> None:
    """Copy records from run folders into the package as references, with the weights of some networks (seed 0)."""
    for record in take_over(runs):
        note(f"reference: {record.key}")
        # The weights of a network are in the run folder that made its record.
        for run in runs:
            file = run / "weights" / f"{record.key}.ckpt"
            if record.model in weights and record.seed == REFERENCE_SEED and file.is_file():
                # `weights_file` in `cnnbench.references` looks for a file of this name.
                write_halved(file, RECORDS.parent / f"{record.model}-{record.data['name']}.ckpt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take over reference records, count every architecture and write the catalogue.

    Args:
        arguments: Words of the command line; None for those of this process.
    """
    parser = argparse.ArgumentParser(prog="python -m cnnbench.catalog_update", description="Count the zoo again.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders whose records are references")
    parser.add_argument("--weights", default="", metavar="A,B", help="networks whose weights, seed 0, are kept too")
    options = parser.parse_args(arguments)
    if options.runs:
        _take_over(options.runs, split_names(options.weights))
    modules = sources()
    counted = count_models(modules)
    catalog = {
        "modules": modules,
        "data_modules": sources("data"),
        "counting": counting_fingerprint(),
        "models": counted,
        "counts": {name: count_documents(name) for name in counted},
        "data": describe_data(),
        "records": records_fingerprint(),
    }
    write_json(FILE, catalog)
    out(f"{FILE.relative_to(PACKAGE.parent)}: {len(modules)} modules, {len(counted)} networks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
