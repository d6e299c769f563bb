"""The zoo: every file of this folder is imported, and every public `ImageClassifier` in it is listed.

To add an architecture is therefore to add one file. The architecture then has a name for ``--model``, a row in
``cnnbench list`` and a place in ``cnnbench bench``, and the tests of all architectures include it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models import get_model as build_torchvision

from cnnbench.errors import UserError
from cnnbench.registry import attribute, discover, lookup
from cnnbench.training.classifier import ImageClassifier


def all_models() -> dict[str, type[ImageClassifier]]:
    """Return every listed architecture by name, in alphabetical order."""
    return discover(sys.modules[__name__], ImageClassifier)


listed = all_models
"""Alias of `all_models`; `cnnbench.data` has the same alias for its data sets."""


def __getattr__(name: str) -> type[ImageClassifier]:
    """Return a listed architecture, as in ``from cnnbench.models import VGG16``."""
    return attribute(__name__, name, all_models)


def get_model(name: str) -> type[ImageClassifier]:
    """Return the class of the architecture with this name.

    Raises:
        UserError: No architecture has this name; the message suggests the nearest one.
    """
    return lookup("model", name, all_models())


def load_torchvision(model: ImageClassifier, state: Mapping[str, Tensor]) -> None:
    """Load the weights of torchvision's network of the same architecture into a network.

    Both networks define their layers in the same order, so the entries are matched by position, in torchvision's order.
    The names of two matched entries may differ, but their kind (such as ``weight``) and shape must agree. The batch
    counters of batch normalisation, which old files lack, keep their values. torchvision's GoogLeNet with pretrained
    weights also rescales its input (``transform_input``); here the caller has to do this.

    Args:
        model: Network with a `torchvision_name`, that is, in its ``imagenet`` form with the layers of torchvision.
        state: Result of ``state_dict()`` of that network of torchvision.

    Raises:
        UserError: The weights do not fit the network. The message names the first entry that differs, and the network
            stays unchanged.
    """
    name = type(model).__name__
    # A name that is inherited does not count: a subclass may have other layers.
    own = "torchvision_name" in {*vars(model), *vars(type(model))}
    if not own or model.torchvision_name is None:
        raise UserError(
            f"torchvision has no network that is this {name}; valid are the imagenet forms (form=imagenet, or images "
            f"of 64 pixels and more) of {', '.join(_in_torchvision())}"
        )
    reference = _torchvision_on_meta(model.torchvision_name, any(key.startswith("aux") for key in state)).state_dict()
    strange = [key for key in state if key not in reference]
    if strange:
        raise UserError(f"'{strange[0]}' is no entry of torchvision's {model.torchvision_name}; give its state_dict()")
    theirs = [key for key in reference if key in state and not key.endswith("num_batches_tracked")]
    target = model.state_dict()
    ours = [key for key in target if not key.endswith("num_batches_tracked")]
    if len(ours) != len(theirs):
        raise UserError(
            f"the state has {len(theirs)} entries and {name} {len(ours)}; give the whole state of torchvision's "
            f"{model.torchvision_name}, and a network of its form"
        )
    pairs = list(zip(ours, theirs, strict=True))
    for our, their in pairs:
        same_kind = our.rpartition(".")[2] == their.rpartition(".")[2]
        if not same_kind or target[our].shape != state[their].shape:
            raise UserError(
                f"{their} {tuple(state[their].shape)} does not fit {our} {tuple(target[our].shape)} of {name}; "
                f"give the state of torchvision's {model.torchvision_name}, and a network of its classes"
            )
    model.load_state_dict({our: state[their] for our, their in pairs}, strict=False)


def _torchvision_on_meta(name: str, aux_logits: bool) -> nn.Module:
    """Return a network of torchvision without values (device meta), which shows the order of its layers."""
    options = {"aux_logits": aux_logits, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        return build_torchvision(name, weights=None, **options)


def _in_torchvision() -> list[str]:
    return [name for name, cls in all_models().items() if "torchvision_name" in vars(cls)]
