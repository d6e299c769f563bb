"""The command `cnnbench export`: write a network to a file for other engines, and compare the two.

The work is in `cnnbench.commands.export_run`, which needs torch and is imported when the command runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnnbench.engines import CALIBRATION_IMAGES, FORMATS, INT8, find_format, find_quantiser
from cnnbench.errors import UserError, unknown
from cnnbench.explain.options import NetworkOptions
from cnnbench.options import option

EXAMPLE = "SimpleCNN --weights reference --data CIFAR10 --to onnx --normalise"
PRECISIONS = ("32-true", "bf16-true", "16-true", INT8)
"""Number formats of ``--precision``."""


@dataclass(frozen=True, kw_only=True)
class Options(NetworkOptions):
    """Write a network to a file for another engine, and compare its outputs with those of the network itself."""

    to: tuple[str, ...] = option(
        f"Formats: {', '.join(FORMATS)}; several make a file each.", default=("onnx",), metavar="A,B"
    )
    out: Path = option(
        "Folder of the files, which are named after network and format.", default=Path("results/export"), metavar="DIR"
    )
    normalise: bool = option(
        "Put the data set's normalisation into the file, which then takes images with values from 0 to 1.",
        default=False,
    )
    precision: str = option(
        "Number format of the weights in the file: 32-true, bf16-true, 16-true, or int8, which quantises a trained "
        "network after its training and tests it.",
        default="32-true",
    )
    calibration_images: int | None = option(
        "First images of the training split from which the ranges of int8 are found (default: "
        f"{CALIBRATION_IMAGES}); test and validation images never are.",
        default=None,
        metavar="N",
        least=1,
    )
    test: bool = option(
        "Test file and network on the whole test set, and compare the two image by image; int8 always does.",
        default=False,
    )
    images: int = option("Training images for the comparison, if there is a data set.", default=256, least=1)

    def __post_init__(self) -> None:
        if self.model is not None and self.ckpt_path is None and self.model.endswith(".ckpt"):
            # A checkpoint may be named without --ckpt_path; the dataclass is frozen, so it is set like this.
            object.__setattr__(self, "ckpt_path", Path(self.model))
            object.__setattr__(self, "model", None)
        self.check_network()
        if not self.to:
            raise UserError(f"--to names no format; choose {', '.join(FORMATS)}")
        for name in self.to:
            find_format(name)
        if len(set(self.to)) < len(self.to):
            raise UserError(f"--to {','.join(self.to)} names a format twice")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        self._check_int8()
        if self.tests and self.is_random:
            why = "int8 is for trained networks" if self.precision == INT8 else "--test is for trained networks"
            raise UserError(f"{why}; add --weights reference, or give a checkpoint of `cnnbench fit`")
        if "openvino" in self.to and self.precision not in ("32-true", INT8):
            raise UserError(
                f"OpenVINO chooses its number format when it loads a file; leave out --precision {self.precision}"
            )
        if "onnx" in self.to and self.precision == "bf16-true":
            raise UserError(
                "ONNX Runtime does not compute in bf16-true on a CPU, where files are compared; choose 16-true"
            )

    @property
    def tests(self) -> bool:
        """Return whether the files are tested on the test set."""
        return self.test or self.precision == INT8

    @property
    def is_random(self) -> bool:
        """Return whether the network has random weights."""
        return self.ckpt_path is None and self.weights is None

    def _check_int8(self) -> None:
        """Raise UserError if a format cannot be quantised, or if an option is about int8 alone."""
        if self.precision == INT8:
            for name in self.to:
                find_quantiser(name)
        elif self.calibration_images is not None:
            raise UserError("--calibration_images is about int8; add --precision int8, or leave it out")


def run(options: Options) -> int:
    """Write the files and name them; return 0."""
    from cnnbench.commands.export_run import export

    return export(options)
