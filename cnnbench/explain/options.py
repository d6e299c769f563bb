"""Options of the tools of `cnnbench explain`, apart from the tools, whose imports take a second or two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from cnnbench.errors import UserError
from cnnbench.options import option

NOTATION = (
    "convK, tconvK (transposed), maxpoolK, avgpoolK with kernel size K, each followed by what is needed of: /S stride "
    "(of a pool K unless given), pP padding, dD dilation, same (padding of a conv that keeps the size), ceil (rounds "
    "a pool's size up), oO output padding of a tconv, :C output channels; and padN zeros around, or padLxRxTxB left, "
    "right, top, bottom. Two numbers are height x width: 'conv3x5/2x3p1x2'"
)
SHIFTED_IMAGES = 1000
"""Largest number of images that are shifted by default."""
FEW_FILTERS = 8
"""Default number of filters in a picture in which each filter has a row of its own."""
STACKS = "1,1,1 2,2,2 1,2,3 1,2,5 6+12+18 1,2,5,6+12+18"
"""Default of ``--dilations``: stacks that show gridding, and stacks that avoid it."""
ROWS = 10
"""Largest number of layers in a table of fields, unless they are named."""


@dataclass(frozen=True, kw_only=True)
class ToolOptions:
    """Options of every tool."""

    out: Path = option("Folder for the pictures.", default=Path("results/explain"), metavar="DIR")
    json: bool = option("Print one JSON document on stdout.", default=False)
    trust: tuple[str, ...] = option(
        "Modules whose networks a checkpoint may name, such as mynets.", default=(), metavar="MODULE"
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(ToolOptions):
    """Options of tools that take images from a data set."""

    data: str | None = option(
        "Data set of `cnnbench list` (default: that of the checkpoint).", default=None, metavar="NAME", names="data"
    )
    data_dir: str | None = option(
        "Folder of the data (default: CNNBENCH_DATA, else data).", default=None, metavar="DIR"
    )


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(DataOptions):
    """Options of tools that look at a network: one by name, with random or shipped weights, or a checkpoint."""

    model: str | None = option(
        "Network with random weights: a name from `cnnbench list`, torchvision:NAME, timm:NAME or "
        "package.module:callable; arguments in brackets, quoted.",
        default=None,
        positional=True,
        metavar="MODEL",
        names="models",
    )
    ckpt_path: Path | None = option("Checkpoint of `cnnbench fit`, in place of MODEL.", default=None, metavar="FILE")
    weights: Literal["reference"] | None = option(
        "Take MODEL with trained weights, which the package ships for a few small networks.", default=None
    )
    in_channels: int | None = option("Channels of the images (default: the network's own).", default=None, metavar="C")
    image_size: int | None = option(
        "Height and width of the images in pixels (default: the network's own).", default=None, metavar="N"
    )
    num_classes: int | None = option("Number of classes (default: the network's own).", default=None, metavar="K")
    seed: int = option("Random seed for weights and for choices.", default=0)

    @property
    def form(self) -> dict[str, int | None]:
        """Return the form of the network as it was asked for; None is the network's own."""
        return {"in_channels": self.in_channels, "image_size": self.image_size, "num_classes": self.num_classes}

    def check_network(self) -> None:
        """Raise UserError unless the options name one network."""
        if (self.model is None) == (self.ckpt_path is None):
            raise UserError("give either a MODEL, for random weights, or --ckpt_path FILE, for a trained network")
        if self.weights is not None and self.model is None:
            raise UserError("--weights reference needs MODEL, such as SimpleCNN")


@dataclass(frozen=True, kw_only=True)
class ParametersOptions(ToolOptions):
    """Count dense, locally connected and convolutional layers for the same maps."""

    in_channels: int = option("Channels of the image.", default=3, metavar="C")
    image_size: int = option("Height and width of the image in pixels.", default=224, metavar="N")
    out_channels: int = option("Number of maps.", default=32, metavar="O")
    kernel_size: int = option("Height and width of the kernel in pixels.", default=3, metavar="K")
    stride: int = option("Stride of the window.", default=1, metavar="S")
    padding: int | None = option(
        "Zeros on each side (default: half the kernel, which keeps the size of the maps if it is odd).",
        default=None,
        metavar="P",
    )
    units: int = option("Units of a dense layer without maps.", default=1000, metavar="U")


@dataclass(frozen=True, kw_only=True)
class ConvolutionOptions(ToolOptions):
    """Show the sliding window step by step, its matrix, and algorithms for it against each other."""

    stride: int = option("Stride of the drawn window.", default=1, metavar="S")
    padding: int = option("Zeros on each side.", default=0, metavar="P")
    dilation: int = option("Pixels between taps.", default=1, metavar="D")
    convolve: bool = option("Flip the kernel: convolution in place of correlation.", default=False)
    sizes: str = option("Sizes of the race's images, in pixels.", default="16,32,64,128,256", metavar="A,B")
    kernels: str = option("Sizes of the race's kernels, in pixels.", default="3,5,7,11,15,21,31", metavar="A,B")
    rounds: int = option("Turns of the race; 0 for none.", default=5, metavar="N")


@dataclass(frozen=True, kw_only=True)
class KernelsOptions(ToolOptions):
    """Filter a photo with classic kernels: Sobel, Laplacian, Gaussian, sharpen, emboss and more."""

    image: Path | None = option(
        "PNG or JPEG file (default: a photo of matplotlib's).", default=None, positional=True, metavar="IMAGE"
    )
    kernels: str | None = option(
        "Use only these filters; gradient is the magnitude of Sobel's (default: all).", default=None, metavar="A,B"
    )
    size: int = option("Size of box, Gaussian, unsharp mask and cross, in pixels.", default=5, metavar="N")
    sigma: float = option("Width of Gaussian and unsharp mask, in pixels.", default=1.0, metavar="X")
    colour: bool = option("Filter red, green and blue, each for itself (default: brightness).", default=False)
    convolve: bool = option("Flip the kernels: convolution in place of correlation.", default=False)


@dataclass(frozen=True, kw_only=True)
class EquivarianceOptions(NetworkOptions):
    """Show whether maps and classes follow when the image is shifted, with and without BlurPool."""

    compare: Path | None = option(
        "Another checkpoint of `cnnbench fit`, drawn beside the network.", default=None, metavar="FILE"
    )
    train_seconds: float = option(
        "Train MODEL for about this many seconds, and a copy with BlurPool for as many steps, and compare them "
        "(default: train nothing).",
        default=0.0,
        metavar="S",
        least=0,
    )
    train_steps: int = option(
        "Train both for this many steps, whatever the machine (default: train nothing).",
        default=0,
        metavar="N",
        least=0,
    )
    images: int | None = option(
        f"Validation images; test images where no validation images are known (default: {SHIFTED_IMAGES}, or all).",
        default=None,
        metavar="N",
        least=1,
    )
    max_shift: int = option("Largest shift of the images.", default=8, metavar="PIXELS", least=1)

    def __post_init__(self) -> None:
        if self.train_seconds and self.train_steps:
            raise UserError("give --train_seconds or --train_steps, not both")
        trains = self.train_seconds or self.train_steps
        if trains and not (self.model and self.data):
            asked = "--train_steps" if self.train_steps else "--train_seconds"
            raise UserError(f"{asked} trains MODEL on --data; give both, such as SimpleCNN --data CIFAR10")
        if self.compare and not (self.model or self.ckpt_path):
            raise UserError("--compare is drawn beside a network; give --ckpt_path FILE too")


@dataclass(frozen=True, kw_only=True)
class FiltersOptions(NetworkOptions):
    """Show the filters of a convolution as images, learnt or random."""

    layer: str | None = option("Convolution to show (default: the first that learns).", default=None, metavar="NAME")
    sort: str = option("Order: norm for the largest first, network for the network's own.", default="norm")
    filters: int | None = option(
        f"Filters to show (default: 96, or {FEW_FILTERS} where each has a row).", default=None, metavar="N", least=1
    )


@dataclass(frozen=True, kw_only=True)
class FeatureMapsOptions(NetworkOptions):
    """Show what layers answer to an image, Grad-CAM, and the patches that excite channels most."""

    image: Path | None = option(
        "Image to look at (default: --index 0 of the data, else a photo).", default=None, metavar="FILE"
    )
    index: int | None = option(
        "Training image to look at, in the order of the split.", default=None, metavar="N", least=0
    )
    layers: str | None = option("Layers by name (default: the last of every resolution).", default=None, metavar="A,B")
    before_activation: bool = option(
        "Show what goes into the activation function at the end of a layer.", default=False
    )
    cam_layer: str | None = option("Layer for Grad-CAM (default: the last of --layers).", default=None, metavar="NAME")
    patches: int = option("Patches for each channel; 0 for none.", default=6, metavar="K", least=0)
    images: int = option("Training images to take patches from.", default=2000, metavar="N", least=1)


@dataclass(frozen=True, kw_only=True)
class SizesOptions(ToolOptions):
    """Show how large the maps of a network are, layer by layer, with parameters and memory."""

    model: str | None = option(
        "Network: a name from `cnnbench list`, torchvision:NAME, timm:NAME or package.module:callable; arguments in "
        "brackets, quoted.",
        default=None,
        positional=True,
        metavar="MODEL",
        names="models",
    )
    layers: str | None = option(f"Stack of layers, in place of MODEL: {NOTATION}.", default=None, metavar="'A B'")
    image_size: str | None = option(
        "Height and width in pixels, or, with --layers, HEIGHTxWIDTH (default: the network's own; 224 with --layers).",
        default=None,
        metavar="N",
    )
    in_channels: int | None = option(
        "Channels of the images (default: the network's own, or 3).", default=None, metavar="C"
    )
    num_classes: int | None = option("Number of classes (default: the network's own).", default=None, metavar="K")


@dataclass(frozen=True, kw_only=True)
class ReceptiveFieldOptions(NetworkOptions):
    """Show which part of an image a unit can see, and which part it attends to."""

    image: Path | None = option(
        "PNG or JPEG to draw the fields on (default: a photo of matplotlib's).", default=None, metavar="FILE"
    )
    layers: str | None = option(f"Show only these layers (default: {ROWS} of all).", default=None, metavar="A,B")
    samples: int = option(
        "Images for the effective field, of the data if there is any, else noise.", default=8, metavar="N"
    )
    dilations: str | None = option(
        "Rates of stacks of 3x3 convolutions, drawn in place of or beside MODEL; branches in parallel with plus "
        f"(default without MODEL: '{STACKS}').",
        default=None,
        metavar="'A B'",
    )


@dataclass(frozen=True, kw_only=True)
class ConfusionsOptions(DataOptions):
    """Show which classes a network mistakes for which, from records, a checkpoint or predictions."""

    records: tuple[Path, ...] = option(
        "Records: run folders of `cnnbench bench`, .json or .jsonl files.",
        default=(),
        positional=True,
        metavar="RECORDS",
    )
    models: tuple[str, ...] | None = option(
        "Use only these networks of the records; of two on the same data the difference is shown.",
        default=None,
        metavar="A,B",
    )
    ckpt_path: Path | None = option(
        "Checkpoint of `cnnbench fit`: test it, and show the images.", default=None, metavar="FILE"
    )
    weights: Literal["reference"] | None = option(
        "Test the network of --models with trained weights, which the package ships for a few small networks.",
        default=None,
    )
    predictions: Path | None = option(
        "File predictions.csv of `cnnbench predict`, with --data.", default=None, metavar="FILE"
    )
    pairs: int = option("Mistakes in lists and pictures.", default=6, metavar="N", least=1)

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if len(self.models or ()) != 1:
            raise UserError("--weights reference needs one network, such as --models SimpleCNN --data CIFAR10")
        if self.records or self.ckpt_path or self.predictions:
            raise UserError(
                "--weights reference takes the place of RECORDS, --ckpt_path and --predictions; leave them out"
            )


@dataclass(frozen=True, kw_only=True)
class SeparableOptions(ToolOptions):
    """Compare depthwise separable with standard convolutions: parameters, multiply-adds, time."""

    channels: str = option("Channels, in and out.", default="32,64,128,256", metavar="A,B")
    resolutions: str = option("Heights and widths of the maps in pixels.", default="8,16,32", metavar="A,B")
    kernel_size: int = option("Height and width of the kernels in pixels, odd.", default=3, metavar="K")
    batch_size: int = option("Images per call.", default=16, metavar="B", least=1)
    rounds: int = option("Turns of each layer.", default=12, metavar="N", least=1)
    device: str = option("Device: auto, cpu, cuda, cuda:N or mps.", default="auto")
    precision: str = option("Number format: auto, 32-true, bf16-mixed or 16-mixed.", default="32-true")


class Tool(NamedTuple):
    """A tool: what it shows, its options, and a command line as an example."""

    summary: str
    options: type
    example: str


TOOLS = {
    "parameters": Tool(
        "dense, locally connected and convolutional layers for the same maps",
        ParametersOptions,
        "--in_channels 3 --image_size 32 --out_channels 16",
    ),
    "convolution": Tool(
        "the sliding window step by step, and algorithms for it against each other",
        ConvolutionOptions,
        "--stride 2 --padding 1",
    ),
    "kernels": Tool(
        "classic filters on a photo: Sobel, Laplacian, Gaussian, sharpen, emboss and more",
        KernelsOptions,
        "photo.jpg --colour",
    ),
    "equivariance": Tool(
        "whether maps and classes follow when the image is shifted, with and without BlurPool",
        EquivarianceOptions,
        "--ckpt_path results/runs/SimpleCNN-CIFAR10/<date>/checkpoints/last.ckpt",
    ),
    "filters": Tool(
        "the filters of a convolution as images, learnt or random",
        FiltersOptions,
        "--ckpt_path results/runs/ResNet18-CIFAR10/<date>/checkpoints/last.ckpt",
    ),
    "feature-maps": Tool(
        "what layers answer to an image, Grad-CAM, and the patches that excite them most",
        FeatureMapsOptions,
        "--ckpt_path results/runs/ResNet18-CIFAR10/<date>/checkpoints/last.ckpt --index 7",
    ),
    "sizes": Tool(
        "how large the maps of a network are, layer by layer, with parameters and memory",
        SizesOptions,
        "--layers 'conv7/2p3:64 maxpool3/2p1 conv3p1:128' --image_size 224",
    ),
    "receptive-field": Tool(
        "which part of an image a unit can see, and which part it attends to",
        ReceptiveFieldOptions,
        "ResNet18 --image photo.jpg --dilations '2,2,2 1,2,5'",
    ),
    "confusions": Tool(
        "which classes a network mistakes for which, from records or a trained network",
        ConfusionsOptions,
        "results/bench/20260101-120000 --data CIFAR10 --models VGG16,ResNet18",
    ),
    "separable": Tool(
        "depthwise separable against standard convolutions: parameters, multiply-adds, time",
        SeparableOptions,
        "--channels 32,128 --resolutions 16",
    ),
}
"""Tools in the order of the course (see `gallery.PARTS`). The name of a tool's module has underscores for dashes."""
