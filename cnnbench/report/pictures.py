"""The pictures of a report, drawn one at a time: each is drawn, saved and released before the next.

A picture that cannot be drawn does not affect the others. The report then says which picture is missing, and why.
"""

from __future__ import annotations

import gc
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure
from PIL import Image

from cnnbench import progress
from cnnbench.files import reason, write_bytes
from cnnbench.pages import data_uri
from cnnbench.plots.drawing import MOST_PANELS, plain_text
from cnnbench.record import Record
from cnnbench.report import charts, engine_pictures, reliability
from cnnbench.report.confusion_pictures import DPI_OF_MANY, MatrixPainter
from cnnbench.report.contenders import Contender, contenders
from cnnbench.report.findings import (
    LATENCY,
    MACS,
    first_of_each_label,
    first_sentences,
    front_sentences,
    left_out_sentences,
    measured,
    speed_sentences,
)
from cnnbench.report.trend_pictures import by_panel, trend
from cnnbench.report.trends import TRACKED, Tracked, all_series, has_trends, trend_sentences

MOST_MATRICES = 36
"""Largest number of confusion matrices on the page; the folder of pictures has all of them."""
LARGEST_SVG = 250_000
"""Largest size of an SVG picture on the page in bytes. A larger picture is shown as PNG, whose size does not grow with
the number of networks."""
LARGEST_PNG = 250_000
"""Largest size of a PNG picture on the page in bytes; a larger picture is shown as WebP."""
MOST_VECTORS = 300
"""Largest number of records for which comparisons are tried as SVG; with more, the file would be too large."""
DRAWN_BY_PAGE = ("reference_latency", "accuracy_macs", "accuracy_latency", "macs_latency", "learning_curves", "engines")
"""Names of the comparisons that the page draws itself, from `cnnbench.report.panels`."""
DPI = 160
"""Pixels per inch of a PNG file, unless that would exceed `MOST_PIXELS`."""
MOST_PIXELS = 5_000_000
"""Largest number of pixels of a picture; a picture with many panels has a lower resolution."""


class Sheet(Protocol):
    """A drawn picture that can be saved."""

    def png(self) -> bytes:
        """Return the picture as a PNG file."""

    def svg(self) -> bytes:
        """Return the picture as an SVG file."""


@dataclass(frozen=True)
class FigureSheet:
    """A matplotlib figure that can be saved."""

    figure: Figure

    def png(self) -> bytes:
        """Return the figure as a PNG file of at most `MOST_PIXELS`."""
        # A picture of width x height inches has width * height * dpi ** 2 pixels.
        width, height = self.figure.get_size_inches()
        return self._save("png", min(DPI, math.sqrt(MOST_PIXELS / (width * height))))

    def svg(self) -> bytes:
        """Return the figure as an SVG file."""
        return self._save("svg", None)

    def _save(self, kind: str, dpi: float | None) -> bytes:
        """Return the figure as a file, at the figure's own resolution if `dpi` is None."""
        out = io.BytesIO()
        # An SVG file contains the date of its drawing unless it is left out here.
        if dpi is None:
            self.figure.savefig(out, format=kind, metadata={"Date": None})
        else:
            self.figure.savefig(out, format=kind, dpi=dpi)
        return out.getvalue()


@dataclass(frozen=True)
class Picture:
    """A picture that can be drawn.

    Attributes:
        name: File name without suffix.
        draw: Function that draws the picture; it returns None if the records have nothing to show.
        describe: Function that returns the alternative text, for readers who cannot see the picture.
        caption: Function that returns the sentences below the picture, which also say what it leaves out.
        matrix: Whether the picture is the confusion matrix of a cell; otherwise it is a comparison.
        vectors: Whether the picture may be small enough as SVG.
        on_page: Whether the page shows the picture itself; otherwise it draws the content with HTML, see
            `cnnbench.report.page`.
    """

    name: str
    draw: Callable[[], Sheet | None]
    describe: Callable[[], str]
    caption: Callable[[], list[str]] = list
    matrix: bool = False
    vectors: bool = True
    on_page: bool = True


@dataclass(frozen=True)
class Shown:
    """A picture that was drawn and is shown on the page.

    Attributes:
        name: File name without suffix.
        uri: Data URI that contains the picture; empty if the page draws the content itself.
        alt: Alternative text, for readers who cannot see the picture.
        caption: Sentences below the picture.
    """

    name: str
    uri: str
    alt: str
    caption: Sequence[str]


@dataclass
class Drawn:
    """The drawn pictures of a report.

    Attributes:
        comparisons: Pictures that compare networks.
        matrices: Confusion matrices on the page, at most `MOST_MATRICES`.
        all_matrices: Number of confusion matrices that were drawn.
        not_drawn: Number of confusion matrices without a picture, because there are too many.
        failures: Sentences on pictures that could not be drawn.
        notes: Sentences that replace pictures with nothing to show.
        files: Paths of the written files.
    """

    comparisons: list[Shown] = field(default_factory=list)
    matrices: list[Shown] = field(default_factory=list)
    all_matrices: int = 0
    not_drawn: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def more_matrices(self) -> str:
        """Return a sentence on the matrices that only the folder has; empty if the page has all of them."""
        if self.all_matrices == len(self.matrices):
            return ""
        words = (
            f"The page has the first {len(self.matrices)} of {self.all_matrices:,} confusion matrices; "
            f"the other {self.all_matrices - len(self.matrices):,} are in the folder figures/."
        )
        if self.not_drawn:
            words += (
                f" Those of {self.not_drawn:,} further records are not drawn, because these records have no row in the "
                "table; a report of fewer records draws them."
            )
        return words


def draw_pictures(records: Sequence[Record], folder: Path) -> Drawn:
    """Draw all pictures of a report, and write them to a folder as PNG files.

    Args:
        records: Records of the report.
        folder: Folder of the PNG files.

    Raises:
        OSError: A file cannot be written.
    """
    matrices = sum(record.confusion_matrix is not None for record in records)
    drawn = Drawn(not_drawn=matrices - sum(r.confusion_matrix is not None for r in first_of_each_label(records)))
    # Collected in a list of their own, because the report names only the first of very many failures.
    failures: list[str] = []
    # Texts are laid out again when a figure is saved, so drawing and saving are both inside the block.
    with plain_text(), _collecting_new_objects_only(), progress.doing("drawing pictures") as step:
        for picture in all_pictures(records):
            step.text = f"drawing {picture.name}"
            # The page shows all comparisons, but only the first confusion matrices.
            page = not picture.matrix or len(drawn.matrices) < MOST_MATRICES
            try:
                png, shown = _make(picture, page, drawn)
            except Exception as error:  # an error in one picture must not cost the rest of the report
                failures.append(failure(picture, error))
                continue
            finally:
                if not picture.matrix:
                    gc.collect()  # the parts of a figure refer to each other, so only this frees them soon
            if png is None:
                continue
            # The file is written outside the try statement: a full disk concerns all pictures, so its error is raised.
            path = folder / f"{picture.name}.png"
            write_bytes(path, png)
            drawn.files.append(path)
            drawn.all_matrices += picture.matrix
            if shown:
                group = drawn.matrices if picture.matrix else drawn.comparisons
                group.append(shown)
    drawn.failures += first_sentences(failures, "more pictures could not be drawn")
    return drawn


@contextmanager
def _collecting_new_objects_only() -> Iterator[None]:
    """Keep the objects that exist now from the garbage collector until the end of the block.

    A collection looks at every object of the process. Beside torch that takes half a second, for the few objects of one
    figure. Within the block it looks only at the objects that were made inside.
    """
    if gc.get_freeze_count():  # a program that has frozen objects itself must find them frozen afterwards
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def failure(picture: Picture, error: Exception) -> str:
    """Return a sentence that says which picture could not be drawn, and why."""
    return f"The picture {picture.name} could not be drawn ({type(error).__name__}: {reason(error)})."


def _make(picture: Picture, page: bool, drawn: Drawn) -> tuple[bytes | None, Shown | None]:
    """Draw a picture and save it in the formats that it needs.

    Args:
        picture: Picture to draw.
        page: Whether the page shows it.
        drawn: Collection that receives the caption as a note if there is nothing to show.

    Returns:
        The PNG file, or None if there is nothing to show; and the picture for the page, or None if it is not shown.
    """
    sheet = picture.draw()
    caption = picture.caption()
    # The sentences of a caption are worth reading without the picture too.
    if sheet is None:
        drawn.notes += caption
        return None, None
    png = sheet.png()
    if not page:
        return png, None
    if not picture.on_page:
        return png, Shown(picture.name, "", picture.describe(), caption)
    # SVG is preferred, then PNG, each unless it is too large; WebP is the smallest.
    # An empty text stands for a picture without SVG.
    svg = sheet.svg() if picture.vectors else b""
    if 0 < len(svg) <= LARGEST_SVG:
        uri = data_uri(svg, "image/svg+xml")
    elif len(png) <= LARGEST_PNG:
        uri = data_uri(png, "image/png")
    else:
        uri = data_uri(_webp(png), "image/webp")
    return png, Shown(picture.name, uri, picture.describe(), caption)


def _webp(png: bytes) -> bytes:
    """Return a picture as WebP, which has a fifth of the size of a PNG with many points."""
    out = io.BytesIO()
    # The content is known to be PNG, so Pillow need not try its decoders for other formats.
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        image.save(out, "webp", quality=90)
    return out.getvalue()


def all_pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Yield the pictures of a report: the comparisons, then the confusion matrix of each record that has one.

    Of more than `MOST_ROWS` records, those without a row in the table have no picture of their own.
    """
    yield from comparisons(records)
    # Many matrices are drawn at a lower resolution and without SVG, since there may be thousands of them.
    painter = MatrixPainter(DPI if len(records) <= MOST_MATRICES else DPI_OF_MANY)
    listed = {id(record) for record in first_of_each_label(records)}
    for name, record in zip(matrix_names(records), records, strict=True):
        if record.confusion_matrix is not None and id(record) in listed:
            yield matrix_picture(name, record, painter, vectors=len(records) <= MOST_MATRICES)


def matrix_picture(name: str, record: Record, painter: MatrixPainter, vectors: bool = True) -> Picture:
    """Return the picture of the confusion matrix of a record.

    Args:
        name: File name without suffix.
        record: Record of the cell.
        painter: Painter of the matrix; sharing one painter between many matrices is much faster.
        vectors: Whether the page shows the picture as SVG, which is four times as large.
    """

    def describe() -> str:
        mistakes = charts.confusion_sentence(record)
        return f"Confusion matrix of {record.model} on {record.data['label']}; {mistakes}"

    def draw() -> Sheet | None:
        # The painter draws later, when it is asked for a file.
        return painter if painter.draw(record) else None

    many_classes = len(record.data["class_names"]) > charts.MOST_NUMBERED_CLASSES
    return Picture(name, draw, describe, matrix=True, vectors=vectors, on_page=many_classes)


def comparisons(records: Sequence[Record]) -> list[Picture]:
    """Return the pictures that compare networks."""
    return [
        # The accuracies that say which network is better come first, those of short trainings after them.
        _reference_picture(records),
        *(_accuracy_picture(records, cost) for cost in charts.COST_PICTURES),
        _speed_picture(records),
        _engines_picture(records),
        _curves_picture(records),
        *_trend_pictures(records),
        _reliability_picture(records),
    ]


def _comparison(
    records: Sequence[Record],
    name: str,
    draw: Callable[[], Figure | None],
    description: str,
    caption: Callable[[], list[str]],
) -> Picture:
    """Return a picture that compares networks; its parts are those of `Picture`."""
    vectors = len(records) <= MOST_VECTORS
    # The lambda delays the drawing until `_make` asks for the picture, so that one figure at a time is in memory.
    on_page = name not in DRAWN_BY_PAGE
    return Picture(name, lambda: _sheet(draw()), lambda: description, caption, vectors=vectors, on_page=on_page)


def _reference_picture(records: Sequence[Record]) -> Picture:
    """Return the picture of accuracies after a reference or full training against latency."""

    def caption() -> list[str]:
        entries = charts.with_references(records, LATENCY)
        # Without such a picture there is nothing that the sentence could be about.
        words = ["These are the accuracies of reference trainings, whose length is said under the table."]
        return [*(words if entries else []), *_panels_left_out(entries)]

    description = f"Test accuracy after the reference training against {charts.COST_PICTURES[LATENCY][0]}"
    draw = partial(charts.reference_against, records, LATENCY)
    return _comparison(records, "reference_latency", draw, description, caption)


def _accuracy_picture(records: Sequence[Record], cost: str) -> Picture:
    """Return the picture of test accuracies against a cost, a key of `charts.COST_PICTURES`."""

    def caption() -> list[str]:
        keys = (cost, "test_accuracy")
        entries = measured(contenders(records), *keys)
        return [*front_sentences(records, cost), *left_out_sentences(records, *keys), *_panels_left_out(entries)]

    title, name = charts.COST_PICTURES[cost]
    draw = partial(charts.accuracy_against, records, cost)
    return _comparison(records, name, draw, f"Test accuracy against {title}", caption)


def _speed_picture(records: Sequence[Record]) -> Picture:
    """Return the picture of latency against multiply-adds."""

    def caption() -> list[str]:
        keys = (MACS, LATENCY)
        entries = measured(contenders(records), *keys)
        return [*speed_sentences(records), *left_out_sentences(records, *keys), *_panels_left_out(entries)]

    description = "Latency of one image against multiply-adds (MACs) per image"
    return _comparison(records, "macs_latency", partial(charts.latency_against_macs, records), description, caption)


def _engines_picture(records: Sequence[Record]) -> Picture:
    """Return the picture of latencies by engine."""
    draw, caption = partial(engine_pictures.draw, records), partial(engine_pictures.caption, records)
    return _comparison(records, engine_pictures.NAME, draw, engine_pictures.description(records), caption)


def _curves_picture(records: Sequence[Record]) -> Picture:
    """Return the picture of the learning curves."""

    def caption() -> list[str]:
        words = _labels_left_out(len(charts.with_curves(records)))
        if any(not r.fully_trained for r in records):
            words.insert(
                0, "Within a short training these curves show how fast networks learn, not how good they become."
            )
        return words

    description = "Training accuracy against training images seen"
    return _comparison(records, "learning_curves", partial(charts.learning_curves, records), description, caption)


def _trend_pictures(records: Sequence[Record]) -> list[Picture]:
    """Return a picture per figure of its trend by day and commit; none for records of too few runs."""
    if not has_trends(records):
        return []
    pictures = []
    for tracked in TRACKED:
        draw, caption = partial(trend, records, tracked), partial(_trend_caption, records, tracked)
        pictures.append(
            _comparison(records, tracked.name, draw, f"Trend of {tracked.words} by day and commit", caption)
        )
    return pictures


def _trend_caption(records: Sequence[Record], tracked: Tracked) -> list[str]:
    """Return the sentences below the picture of a trend."""
    series = all_series(records, tracked)
    return [*trend_sentences(series), *_labels_left_out(len(by_panel(series)))]


def _reliability_picture(records: Sequence[Record]) -> Picture:
    """Return the picture of accuracies against confidences."""

    def caption() -> list[str]:
        networks = len(reliability.with_confidences(records))
        if not networks:
            return []
        words = [
            "A calibrated network is right in 80 % of the images of which it is sure by 80 %. Below the dashed line it "
            "is too sure. The numbers of images are those of all seeds together. ECE is the expected calibration error "
            "over 15 bins of equal width (Guo et al. 2017)."
        ]
        if networks > reliability.MOST_NETWORKS:
            words.append(f"The picture has the first {reliability.MOST_NETWORKS} of {networks:,} networks.")
        return words

    description = "Test accuracy against confidence, with the number of images in each bin"
    return _comparison(records, "reliability", partial(reliability.reliability_diagram, records), description, caption)


def _panels_left_out(entries: Sequence[Contender]) -> list[str]:
    """Return a sentence on the data sets of these networks that have no panel, or none."""
    return _labels_left_out(len({e.label for e in entries}))


def _labels_left_out(labels: int) -> list[str]:
    """Return a sentence if there are more data sets than a picture has panels."""
    if labels <= MOST_PANELS:
        return []
    return [f"The picture has the first {MOST_PANELS} of {labels:,} data sets; the table has all."]


def _sheet(figure: Figure | None) -> FigureSheet | None:
    """Return a figure, if there is one, as a picture that can be saved."""
    return None if figure is None else FigureSheet(figure)


def matrix_names(records: Sequence[Record]) -> list[str]:
    """Return a file name for the confusion matrix of each record, numbered if several records are of the same cell."""
    seen: Counter[str] = Counter()
    names = []
    for record in records:
        seen[record.key] += 1
        name = f"confusion_{record.key}"
        # The first record of a cell has no number, so that a single one keeps the plain name.
        if seen[record.key] > 1:
            name += f"-{seen[record.key]}"
        names.append(name)
    return names
