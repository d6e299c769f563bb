"""Engines that run a network outside of torch's eager mode, and the files in which they take one.

This module says by name which formats and engines there are, what each needs, and which number formats it computes in.
It imports neither torch nor an engine, so that a name or a missing package is refused before anything else happens.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cnnbench.errors import UserError, unknown
from cnnbench.machine import cannot_compute_bf16

# OpenVINO and NNCF report what they convert to a web service of Intel, if this package of theirs can be imported. In a
# process that has not imported it before, they find none, and report nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

METADATA_KEY = "cnnbench"
"""Key under which an exported file holds facts about its network, as one JSON document."""
CALIBRATION_IMAGES = 512
"""Number of training images, the first ones, from which the ranges of activations in int8 are found by default."""
BFLOAT16 = "bf16-true"
"""Number format of a network in bfloat16."""
INT8 = "int8"
"""Number format of a network whose weights and activations were quantised to 8 bits after its training."""


@dataclass(frozen=True)
class Quantiser:
    """A tool that turns a trained network into one of 8-bit integers, from images that show how large its values get.

    Attributes:
        tool: Function of the tool, for metadata and sentences.
        package: Package whose version the metadata states.
        module: Module of this package that calls the tool, in ``quantise``, and says how, in ``method``.
        modules: Modules that it needs.
        extra: Extra of this package that installs them.
    """

    tool: str
    package: str
    module: str
    modules: tuple[str, ...]
    extra: str

    @property
    def version(self) -> str:
        """Return the version of the tool's package."""
        return importlib.metadata.version(self.package)


@dataclass(frozen=True)
class Format:
    """A kind of file that holds a network together with its weights.

    Attributes:
        name: Name of the format in ``cnnbench export --to``.
        title: Name for readers.
        suffix: End of the file's name. OpenVINO's weights are in a second file, whose name ends in ``.bin``.
        module: Module that writes such files, in ``write``, and opens them in the engine that reads them, in
            ``open_session``. See `cnnbench.engines.export` and `cnnbench.engines.sessions`.
        modules: Modules, by name of their package, that write or read the format.
        extra: Extra of this package that installs them; empty if torch has everything.
        quantiser: Tool that quantises networks for the engine that reads the format; None if there is none.
    """

    name: str
    title: str
    suffix: str
    module: str
    modules: tuple[str, ...] = ()
    extra: str = ""
    quantiser: Quantiser | None = None


@dataclass(frozen=True)
class Engine:
    """A program that runs networks in inference.

    Attributes:
        name: Name of the engine in ``--engine``.
        title: Name for readers.
        format: Name of the format that the engine reads; empty for torch, which runs the network itself.
        package: Package whose version a record states.
        modules: Modules that the engine needs.
        extra: Extra of this package that installs them; empty if torch has everything.
        cpu: Number formats of inference on a CPU.
        bf16_by_hardware: Whether the engine computes in bfloat16 only on a CPU with suitable instructions.
        cuda: Number formats of inference on a CUDA device; empty if the engine does not run there.
    """

    name: str
    title: str
    format: str
    package: str
    modules: tuple[str, ...] = ()
    extra: str = ""
    cpu: tuple[str, ...] = ()
    bf16_by_hardware: bool = False
    cuda: tuple[str, ...] = ()

    def precisions(self, device: str) -> tuple[str, ...]:
        """Return the number formats in which the engine computes here on a device, such as ``cpu`` or ``cuda:0``."""
        found = {"cpu": self.cpu, "cuda": self.cuda}.get(device.partition(":")[0], ())
        return tuple(each for each in found if not self.lacks_instructions(each))

    def lacks_instructions(self, precision: str) -> bool:
        """Return whether the engine has a number format on a CPU, but this one has no instructions for it."""
        return precision == BFLOAT16 and self.bf16_by_hardware and cannot_compute_bf16()

    def left_out(self, precision: str, device: str) -> str:
        """Return a sentence that says why the engine has no row in a number format on a device."""
        lacks = self.lacks_instructions(precision)
        place = "this processor, which has no instructions for bfloat16" if lacks else f"device {device}"
        return f"{self.title} has no {precision} on {place}, so that row is left out"

    def is_usable(self, device: str) -> bool:
        """Return whether the engine is installed and runs on a device, such as ``cpu`` or ``cuda:0``."""
        return bool(self.precisions(device)) and not _missing(self.modules)

    @property
    def suffix(self) -> str:
        """Return the end of the names of the files that the engine reads."""
        return FORMATS[self.format].suffix

    @property
    def version(self) -> str:
        """Return the version of the engine's package, or of the one that has its module, such as onnxruntime-gpu."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            others = importlib.metadata.packages_distributions().get(self.package, [])
            if not others:
                raise
            return f"{importlib.metadata.version(others[0])} ({others[0]})"


_ONNX = ("onnx", "onnxscript", "onnxruntime")
"""Modules for ONNX. ONNX Runtime is among them, because every exported file is run and compared."""
FORMATS = {
    each.name: each
    for each in (
        Format(
            "onnx",
            title="ONNX",
            suffix=".onnx",
            module="cnnbench.engines.onnx_runtime",
            modules=_ONNX,
            extra="onnxruntime",
            quantiser=Quantiser(
                "onnxruntime.quantization.quantize_static",
                package="onnxruntime",
                module="cnnbench.engines.onnx_int8",
                modules=(),
                extra="onnxruntime",
            ),
        ),
        Format(
            "openvino",
            title="OpenVINO IR",
            suffix=".xml",
            module="cnnbench.engines.open_vino",
            modules=("openvino",),
            extra="openvino",
            quantiser=Quantiser(
                "nncf.quantize",
                package="nncf",
                module="cnnbench.engines.open_vino_int8",
                modules=("nncf",),
                extra="openvino",
            ),
        ),
        Format("torch-export", title="torch.export", suffix=".pt2", module="cnnbench.engines.torch_export"),
        Format(
            "aot-inductor",
            title="AOTInductor",
            suffix=".pt2",
            module="cnnbench.engines.aot_inductor",
            quantiser=Quantiser(
                "torchao PT2E with X86InductorQuantizer",
                package="torchao",
                module="cnnbench.engines.aot_int8",
                modules=("torchao",),
                extra="engines",
            ),
        ),
    )
}
"""Formats by name."""

TORCH = "torch"
ENGINES = {
    each.name: each
    for each in (
        Engine(
            TORCH,
            title="torch",
            format="",
            package="torch",
            cpu=("32-true", "bf16-mixed", "bf16-true"),
            cuda=("32-true", "tf32", "bf16-mixed", "bf16-true", "16-mixed", "16-true"),
        ),
        Engine(
            "aot-inductor",
            title="AOTInductor",
            format="aot-inductor",
            package="torch",
            cpu=("32-true", "bf16-true", INT8),
            cuda=("32-true", "tf32", "bf16-true", "16-true"),
        ),
        Engine(
            "onnxruntime",
            title="ONNX Runtime",
            format="onnx",
            package="onnxruntime",
            modules=_ONNX,
            extra="onnxruntime",
            cpu=("32-true", INT8),
            cuda=("32-true", "tf32", "16-true"),
        ),
        Engine(
            "tensorrt",
            title="TensorRT",
            format="onnx",
            package="onnxruntime",
            modules=_ONNX,
            extra="onnxruntime",
            # TensorRT computes float32 as TF32 where the GPU has it, and a session cannot switch that off.
            cuda=("tf32", "16-true"),
        ),
        Engine(
            "openvino",
            title="OpenVINO",
            format="openvino",
            package="openvino",
            modules=("openvino",),
            extra="openvino",
            cpu=("32-true", BFLOAT16, INT8),
            # Without such instructions OpenVINO computes in float32 in its place. With AVX-512 alone it emulates
            # bfloat16. Its session finds out where the instructions are not known.
            bf16_by_hardware=True,
        ),
    )
}
"""Engines by name. TensorRT runs as a provider of ONNX Runtime."""


def find_format(name: str) -> Format:
    """Return the format with this name.

    Raises:
        UserError: There is none, or a package that it needs is missing.
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    found = FORMATS[name]
    _check_installed(found.title, found.modules, found.extra)
    return found


def find_quantiser(format_name: str) -> Quantiser:
    """Return the tool that quantises networks for a format.

    Raises:
        UserError: There is none, or a package that it needs is missing.
    """
    form = FORMATS[format_name]
    if form.quantiser is None:
        fitting = [each.name for each in FORMATS.values() if each.quantiser is not None]
        raise UserError(f"{form.title} has no {INT8} here; choose {', '.join(fitting)}")
    _check_installed(f"{form.title} in {INT8}", form.quantiser.modules, form.quantiser.extra)
    return form.quantiser


def find_engine(name: str, device: str) -> Engine:
    """Return the engine with this name.

    Args:
        name: Name of the engine.
        device: Device on which it is to run, such as ``cpu`` or ``cuda:0``.

    Raises:
        UserError: There is none, it does not run on the device, or a package that it needs is missing.
    """
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    found = ENGINES[name]
    _check_installed(found.title, found.modules, found.extra)
    # torch itself runs on every device, such as an Apple GPU.
    if name != TORCH and not found.precisions(device):
        fitting = [each.name for each in ENGINES.values() if each.name == TORCH or each.precisions(device)]
        raise UserError(f"engine '{name}' does not run on device {device}; there are {', '.join(fitting)}")
    return found


def check_precision(option: str, name: str, engines: Sequence[Engine], device: str) -> None:
    """Check that at least one of the engines computes in a number format on a device.

    Args:
        option: Name of the option that names the format, for the message.
        name: Name of the format.
        engines: Engines that the user named.
        device: Device, such as ``cpu`` or ``cuda:0``.

    Raises:
        UserError: None of them does.
    """
    known = sorted({each for engine in engines for each in engine.precisions(device)})
    if name in known:
        return
    if any(name in engine.precisions(device) for engine in ENGINES.values()):
        titles = ", ".join(engine.title for engine in engines)
        lacking = [engine for engine in engines if engine.lacks_instructions(name)]
        reason = f" ({lacking[0].title} has it on processors with instructions for bfloat16)" if lacking else ""
        raise UserError(f"{titles}: no {option} '{name}' on device {device}{reason}; choose {', '.join(known)}")
    raise unknown(option, name, known)


def all_precisions() -> list[str]:
    """Return the number formats that at least one engine has on some device."""
    names: dict[str, None] = {}
    for engine in ENGINES.values():
        names |= dict.fromkeys((*engine.cpu, *engine.cuda))
    return list(names)


def _missing(modules: tuple[str, ...]) -> list[str]:
    """Return the modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _check_installed(title: str, modules: tuple[str, ...], extra: str) -> None:
    """Raise UserError, with the command that installs them, if modules are missing."""
    missing = _missing(modules)
    if missing:
        raise UserError(f"{title} needs {', '.join(missing)}; install with: pip install 'cnnbench[{extra}]'")
