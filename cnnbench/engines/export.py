"""Export of a network to a file: ONNX, OpenVINO's IR, torch.export, or a program that AOTInductor compiled.

All formats come from one program, which ``torch.export`` records with a batch of any size. A program takes images,
(N, C, H, W), and returns the logits of the main head, (N, K).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from cnnbench.engines import ENGINES, FORMATS, INT8, find_quantiser
from cnnbench.engines.comparison import TOLERANCE, random_images
from cnnbench.errors import Stopped, UserError, first_line
from cnnbench.hardware import weights_type
from cnnbench.training.loss import loss_and_logits, output_of

LARGEST_BATCH = 65536
CALIBRATION_BATCH = 64
"""Images per call when a network is calibrated."""
NOISE_IMAGES = 64
"""Images of `calibration_noise`."""
ON_NOISE = "noise: for speed only"
"""What a network was calibrated on if only its speed matters."""


class Deployed(nn.Module):
    """A network as it is deployed: logits of the main head alone, and the normalisation inside if it is wanted.

    Args:
        model: Network to wrap; it is set to evaluation mode.
        mean: Mean of each channel, which is subtracted from images with values from 0 to 1; empty if the images that
            come in are already normalised.
        std: Standard deviation of each channel, by which they are then divided.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, model: nn.Module, mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
        super().__init__()
        self.model = model
        # Buffers, so that they are part of the program as the weights are; (1, C, 1, 1) broadcasts over a batch.
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1) if mean else None)
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, -1, 1, 1) if std else None)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, K), from images, (N, C, H, W)."""
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        output = self.model(images)
        return output[0] if isinstance(output, tuple) else output


def record_program(
    model: nn.Module, image_shape: Sequence[int], name: str, dtype: torch.dtype = torch.float32
) -> ExportedProgram:
    """Record a network as a program for batches of any size.

    Args:
        model: Network, on the device and with the weights that the program is to have.
        image_shape: Channels, height and width of its images.
        name: Name of the network, for messages.
        dtype: Type of its images.

    Raises:
        UserError: torch cannot record it, for example because its control flow depends on the values, or its logits
            depend on chance.
    """
    device = next(model.parameters(), torch.empty(0)).device
    # Two images, because torch would take a batch of one as a constant. The program keeps them, so they are copied
    # out of the memory that all random images share.
    images = random_images(image_shape, 0)[:2].clone().to(device, dtype)
    with torch.inference_mode():
        labels = torch.zeros(2, dtype=torch.long, device=device)
        # A network without logits is refused here, by a message that says what it returns.
        first, again = (loss_and_logits(output_of(model, images, name), labels)[1].float() for _ in range(2))
    if (first - again).abs().max() > TOLERANCE["bf16-true"] * first.abs().max():
        raise UserError(
            f"'{name}' returns other logits for the same images each time, also in evaluation mode, so a file cannot "
            "be compared with it; take chance out of its evaluation, such as by nn.Dropout in place of F.dropout"
        )
    try:
        with _quiet():
            return torch.export.export(
                model, (images,), dynamic_shapes=({0: Dim("batch", min=1, max=LARGEST_BATCH)},), strict=False
            )
    except Stopped:
        raise
    except GuardOnDataDependentSymNode as error:
        raise UserError(
            f"torch.export cannot record '{name}': what it computes depends on the values of the images, and a file "
            f"has one program for all; replace the condition, such as by torch.where ({_place_of(error)})"
        ) from error
    except Exception as error:
        raise UserError(f"torch.export cannot record '{name}': {first_line(error)}") from error


def _place_of(error: BaseException) -> str:
    """Return the line of the network's code that torch names in the text of an error."""
    found = re.search(r'raised this error:\s+File "(.+)", line (\d+)', str(error))
    return f"{Path(found[1]).name}, line {found[2]}" if found else first_line(error)


def write_program(
    program: ExportedProgram, format_name: str, path: Path, metadata: Mapping[str, Any], name: str
) -> None:
    """Write a program to a file. The caller moves it to its place when it is known to be right.

    Args:
        program: Program of a network, from `record_program`.
        format_name: Name of the format.
        path: File to write. OpenVINO's weights go to a second file beside it.
        metadata: Facts about the network, which are stored in the file.
        name: Name of the network, for messages.

    Raises:
        UserError: The format has no such operator, or the file cannot be written.
    """
    try:
        with _quiet():
            writer = importlib.import_module(FORMATS[format_name].module)
            writer.write(program, path, json.dumps(metadata, sort_keys=True))
    except (Stopped, UserError, OSError):
        raise
    except Exception as error:
        title = FORMATS[format_name].title
        # The first line of OpenVINO's errors names a place in its code, and the next ones the operator.
        text = " ".join(str(error).split())[:300]
        raise UserError(f"'{name}' cannot be written as {title}: {type(error).__name__}: {text}") from error


def write_quantised(
    program: ExportedProgram,
    format_name: str,
    path: Path,
    metadata: Mapping[str, Any],
    name: str,
    calibration: Tensor,
    calibrated_on: str,
) -> dict[str, Any]:
    """Quantise a program of float32 to 8-bit integers by the tool of a format, and write it to a file.

    Args:
        program: Program of a network, from `record_program`.
        format_name: Name of the format.
        path: File to write. OpenVINO's weights go to a second file beside it.
        metadata: Facts about the network, which are stored in the file, together with those that are returned.
        name: Name of the network, for messages.
        calibration: Images as the program takes them, (N, C, H, W), from which the tool learns how large the values
            between layers get.
        calibrated_on: What these images are, in words.

    Returns:
        Facts about the quantisation: tool, version, method, and the images it was calibrated on.

    Raises:
        UserError: The tool is missing, or cannot quantise this network.
    """
    quantiser = find_quantiser(format_name)
    try:
        # NNCF draws bars of its progress, which must not get into a document on stdout.
        with _quiet(), contextlib.redirect_stdout(io.StringIO()):
            # Imported here, because these tools take seconds to import.
            module = importlib.import_module(quantiser.module)
            facts = {
                "tool": quantiser.tool,
                "version": quantiser.version,
                "method": module.method(),
                "calibrated_on": calibrated_on,
                "calibration_images": len(calibration),
            }
            stored = json.dumps({**metadata, "quantisation": facts}, sort_keys=True)
            module.quantise(program, path, stored, calibration.float().cpu().split(CALIBRATION_BATCH))
    except (Stopped, UserError, OSError):
        raise
    except Exception as error:
        title = FORMATS[format_name].title
        raise UserError(f"'{name}' cannot be quantised for {title}: {first_line(error)}") from error
    return facts


def calibration_noise(image_shape: Sequence[int], seed: int) -> Tensor:
    """Return images of Gaussian noise, (N, C, H, W), to calibrate a network whose accuracy does not matter."""
    return torch.randn(NOISE_IMAGES, *image_shape, generator=torch.Generator().manual_seed(seed))


def files_of(path: Path) -> list[Path]:
    """Return the files that together hold an exported network."""
    if path.suffix == FORMATS["openvino"].suffix:
        return [path, path.with_suffix(".bin")]
    return [path]


def write_for_engine(
    model: nn.Module,
    image_shape: Sequence[int],
    name: str,
    engine: str,
    precision: str,
    device: torch.device,
    path: Path,
    calibration: Tensor | None = None,
    calibrated_on: str = "",
) -> dict[str, Any]:
    """Write a network as the file that an engine runs.

    Args:
        model: Network, which may be changed: its weights get the type of the file, and it is set to evaluation mode.
        image_shape: Channels, height and width of its images, which come normalised.
        name: Name of the network, for messages.
        engine: Name of the engine.
        precision: Number format in which the engine is to run it.
        device: Device on which it is to run.
        path: File to write.
        calibration: For ``int8``: normalised training images, (N, C, H, W), or noise if only the speed matters.
        calibrated_on: What these images are, in words.

    Returns:
        Facts about the quantisation, as from `write_quantised`; empty for other number formats.

    Raises:
        UserError: The network cannot be recorded or written, or there are no images to calibrate it.
    """
    dtype = weights_of(engine, precision)
    # AOTInductor compiles for the device on which the network is. Other files hold no code.
    at = device if ENGINES[engine].format == "aot-inductor" else torch.device("cpu")
    program = record_program(Deployed(model).to(at, dtype), image_shape, name, dtype)
    facts = {"network": name}
    if precision != INT8:
        write_program(program, ENGINES[engine].format, path, facts, name)
        return {}
    if calibration is None:
        raise UserError(f"'{name}' cannot be quantised without images to calibrate it")
    return write_quantised(program, ENGINES[engine].format, path, facts, name, calibration, calibrated_on)


def weights_of(engine: str, precision: str) -> torch.dtype:
    """Return the type of the weights in a file: OpenVINO casts them itself when it loads the file."""
    return torch.float32 if engine == "openvino" else weights_type(precision)


def bytes_on_disk(path: Path) -> int:
    """Return the size of an exported network on the disk, in bytes."""
    return sum(file.stat().st_size for file in files_of(path))


def bytes_of_weights(model: nn.Module) -> int:
    """Return the size of the file that ``torch.save`` writes of a network's weights, in bytes."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes


class _OthersStderr(io.TextIOBase):
    """Stderr without what the present thread writes. Other threads, such as that of the progress, still write to it.

    Args:
        stream: Stderr itself.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._silent = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write a text of another thread."""
        return len(text) if threading.get_ident() == self._silent else self._stream.write(text)

    def flush(self) -> None:
        """Flush stderr."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Return whether stderr is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor of stderr."""
        return self._stream.fileno()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Run the body without the warnings, the log lines and the text on stderr of exporters.

    They do not concern the user's network, or repeat at length an error that is raised too.
    """
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir", "nncf", "torchao")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stderr(_OthersStderr(sys.stderr)):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
