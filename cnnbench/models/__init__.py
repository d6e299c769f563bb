"""The zoo. Every file of this folder is imported, and every public `ImageClassifier` in it is listed.

So adding an architecture is adding one file: it then has a name for ``--model``, a row in ``cnnbench list``, a
place in ``cnnbench bench`` and its share of the tests.
"""

from __future__ import annotations

import sys

from cnnbench.classifier import ImageClassifier
from cnnbench.registry import discover, lookup


def all_models() -> dict[str, type[ImageClassifier]]:
    """Every listed architecture by name, in alphabetical order."""
    return discover(sys.modules[__name__], ImageClassifier)


def get_model(name: str) -> type[ImageClassifier]:
    """The architecture of that name.

    Raises:
        UserError: The name is not listed; the message has the nearest one.
    """
    return lookup("model", name, all_models())
