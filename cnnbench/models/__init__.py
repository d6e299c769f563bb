"""The zoo. Every file of this folder is imported, and every public `ImageClassifier` in it is listed.

So adding an architecture is adding one file: it then has a name for ``--model``, a row in ``cnnbench list``, a
place in ``cnnbench bench`` and its share of the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import Tensor

from cnnbench.classifier import ImageClassifier
from cnnbench.errors import UserError
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


def load_torchvision(model: ImageClassifier, state: Mapping[str, Tensor]) -> None:
    """Gives a network the weights of torchvision's network of the same architecture.

    Both define their layers in the same order, so that the state is taken entry by entry; names need not agree, kind
    and shape must. Counters of batches, which old files lack, stay as they are. torchvision's GoogLeNet with pretrained
    weights also rescales its input (``transform_input``), which is left to the caller.

    Args:
        model: A network whose class has a `torchvision_name`, in its ``imagenet`` form.
        state: ``state_dict()`` of that network of torchvision.

    Raises:
        UserError: The two do not fit; the message names the first entry that differs. The network is unchanged.
    """
    name = type(model).__name__
    if model.torchvision_name is None:
        raise UserError(f"torchvision has no network that is {name}; valid: {', '.join(_in_torchvision())}")
    theirs = [key for key in state if not key.endswith("num_batches_tracked")]
    target = model.state_dict()
    ours = [key for key in target if not key.endswith("num_batches_tracked")]
    pairs = list(zip(ours, theirs, strict=False))
    for our, their in pairs:
        same_kind = our.rpartition(".")[2] == their.rpartition(".")[2]
        if not same_kind or target[our].shape != state[their].shape:
            raise UserError(
                f"{their} {tuple(state[their].shape)} does not fit {our} {tuple(target[our].shape)} of {name}; "
                f"give the state of torchvision's {model.torchvision_name}, and a network of its form and classes"
            )
    if len(ours) != len(theirs):
        raise UserError(
            f"the state has {len(theirs)} entries and {name} {len(ours)}; give that of torchvision's "
            f"{model.torchvision_name}, and a network of its form"
        )
    model.load_state_dict({our: state[their] for our, their in pairs}, strict=False)


def _in_torchvision() -> list[str]:
    return [name for name, cls in all_models().items() if cls.torchvision_name]
