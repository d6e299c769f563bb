"""Pictures of confusion matrices, fast enough to draw thousands of them in a minute.

The frame of a matrix (axes, class names) is the same for all records of a data set. matplotlib draws it once, and its
pixels are kept. For each record, the cells are painted over these pixels, and Pillow writes the numbers, the title and
the note: matplotlib takes twenty times as long for the hundred texts of a matrix.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from cnnbench.record import Record
from cnnbench.report.charts import (
    MOST_NUMBERED_CLASSES,
    SOFT,
    cell_colour,
    cell_letters,
    draw_confusion,
    matrix_note,
    matrix_title,
)

DPI = 160
"""Pixels per inch of a PNG file."""
DPI_OF_MANY = 100
"""Pixels per inch if there are many matrices, whose files would otherwise take long to write."""
COMPRESSION = 3
"""Compression level of PNG files; higher levels take longer and save little."""


class MatrixPainter:
    """A painter of confusion matrices; records of the same classes that follow each other share a frame.

    Args:
        dpi: Resolution of PNG files in pixels per inch.
    """

    def __init__(self, dpi: int = DPI) -> None:
        self._dpi = dpi
        self._frame: _Frame | None = None
        self._record: Record | None = None

    def draw(self, record: Record) -> bool:
        """Choose the record that `png` and `svg` draw, and return whether it has a confusion matrix."""
        self._record = record
        return record.confusion_matrix is not None

    def png(self) -> bytes:
        """Return the confusion matrix of the chosen record as a PNG file."""
        record, counts = self._chosen()
        if self._frame is None or self._frame.names != record.data["class_names"]:
            self._frame = _Frame(record.data["class_names"], self._dpi)
        picture = self._frame.paint(np.array(counts), matrix_title(record, counts), matrix_note(record))
        out = io.BytesIO()
        picture.save(out, "png", dpi=(self._dpi, self._dpi), compress_level=COMPRESSION)
        return out.getvalue()

    def svg(self) -> bytes:
        """Return the confusion matrix of the chosen record as an SVG file."""
        record, counts = self._chosen()
        names = record.data["class_names"]
        figure = draw_confusion(counts, names, matrix_title(record, counts), matrix_note(record))
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        return out.getvalue()

    def _chosen(self) -> tuple[Record, list[list[int]]]:
        """Return the record that `draw` chose, and its confusion matrix."""
        assert self._record is not None
        assert self._record.confusion_matrix is not None
        return self._record, self._record.confusion_matrix


class _Frame:
    """The pixels that all matrices of the same classes share, with the positions of cells and texts.

    Args:
        names: Names of the classes.
        dpi: Resolution in pixels per inch.
    """

    def __init__(self, names: Sequence[str], dpi: int) -> None:
        self.names, self._dpi = list(names), dpi
        empty = [[0] * len(names)] * len(names)
        # The title and the note have the largest number of lines, so that the layout has room for those of any record.
        figure = draw_confusion(empty, names, "two\nlines", "three\nlines\nof notes")
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        # From here on the layout is fixed, so that hiding the cells and texts moves nothing.
        figure.set_layout_engine("none")
        (ax,) = figure.axes
        self._place(figure, ax)
        for artist in (ax.images[0], *_texts(figure, ax)):
            artist.set_visible(False)
        canvas.draw()
        # A copy of the canvas's buffer without opacity, (height, width, 3).
        self._pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def _place(self, figure: Figure, ax: Axes) -> None:
        """Compute the pixels of the cells, and the fonts and positions of the texts, with row 0 at the top."""
        classes, height = len(self.names), figure.bbox.height
        self._colours = ax.images[0].get_cmap()
        # Cell k reaches from k - 0.5 to k + 0.5; matplotlib counts rows of pixels from the bottom, Pillow from the top.
        edges = ax.transData.transform([(k - 0.5, k - 0.5) for k in range(classes + 1)])
        columns, rows = np.rint(edges[:, 0]).astype(int), np.rint(height - edges[:, 1]).astype(int)
        self._left, self._top = columns[0], rows[0]
        # The class of each column of pixels, and of each row.
        self._columns = np.repeat(np.arange(classes), np.diff(columns))
        self._rows = np.repeat(np.arange(classes), np.diff(rows))
        self._across, self._down = (columns[:-1] + columns[1:]) / 2, (rows[:-1] + rows[1:]) / 2
        title, note = _texts(figure, ax)
        self._number_font = _font(cell_letters(classes), "normal", self._dpi)
        self._title_font = _font(title.get_fontsize(), "bold", self._dpi)
        self._note_font = _font(note.get_fontsize(), "normal", self._dpi)
        # Anchors for Pillow: lower left corner of the title ("ld"), middle of the lower edge of the note ("md").
        box = title.get_window_extent()
        self._title_place = (box.x0, height - box.y0)
        box = note.get_window_extent()
        self._note_place = ((box.x0 + box.x1) / 2, height - box.y0)

    def paint(self, counts: Any, title: str, note: str) -> Image.Image:
        """Return the picture of a confusion matrix.

        Args:
            counts: Numbers of images, (K, K); rows are true classes, columns are predicted classes.
            title: Title of one or two lines.
            note: Note of up to three lines.
        """
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        pixels = self._pixels.copy()
        colours = self._colours(shares, bytes=True)[..., :3]
        # Repeat the colour of each cell, (K, K, 3), over all of its pixels.
        cells = colours[self._rows][:, self._columns]
        pixels[self._top : self._top + len(self._rows), self._left : self._left + len(self._columns)] = cells
        picture = Image.fromarray(pixels)
        pen = ImageDraw.Draw(picture)
        if len(counts) <= MOST_NUMBERED_CLASSES:
            for i, j in np.argwhere(counts > 0):
                place = (self._across[j], self._down[i])
                colour = cell_colour(shares[i, j])
                pen.text(place, str(counts[i, j]), fill=colour, font=self._number_font, anchor="mm")
        pen.multiline_text(self._title_place, title, fill="black", font=self._title_font, anchor="ld")
        pen.multiline_text(
            self._note_place, note, fill=SOFT, font=self._note_font, anchor="md", align="center", spacing=2
        )
        return picture


def _texts(figure: Figure, ax: Axes) -> tuple[Any, Any]:
    """Return the title and the note of the figure, which matplotlib stores under private names."""
    return ax._left_title, figure._supxlabel  # type: ignore[attr-defined]


def _font(points: float, weight: str, dpi: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font for Pillow, so that painted texts look like those of the frame."""
    path = findfont(FontProperties(family=mpl.rcParams["font.family"], weight=weight))
    # Pillow takes font sizes in pixels; a point is 1/72 inch.
    return ImageFont.truetype(path, round(points * dpi / 72), layout_engine=ImageFont.Layout.BASIC)
