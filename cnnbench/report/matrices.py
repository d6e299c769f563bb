"""Pictures of confusion matrices, thousands of them in a minute.

The frame of a matrix (axes, classes) is the same for all records of a data set. matplotlib draws it once, and it is
kept as pixels. For a record the cells are painted over it, and Pillow writes numbers, title and note: matplotlib takes
twenty times as long for the hundred texts of a matrix.
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
from cnnbench.report.figures import (
    MOST_NUMBERED_CLASSES,
    SOFT,
    cell_colour,
    cell_letters,
    draw_confusion,
    matrix_note,
    matrix_title,
)

DPI = 160
DPI_OF_MANY = 100
"""Pixels per inch where there are so many that their files would take long."""
COMPRESSION = 3
"""Level of the PNG files; higher ones take longer and save little."""


class MatrixPainter:
    """Draws the confusion matrices of records, one after the other; all of the same classes share a frame.

    Args:
        dpi: Pixels per inch of PNG files.
    """

    def __init__(self, dpi: int = DPI) -> None:
        self._dpi = dpi
        self._frame: _Frame | None = None
        self._record: Record | None = None

    def draw(self, record: Record) -> bool:
        """Choose the record that `png` and `svg` draw; False if it has no matrix."""
        self._record = record
        return record.confusion_matrix is not None

    def png(self) -> bytes:
        """Return the matrix as a PNG file."""
        record, counts = self._chosen()
        if self._frame is None or self._frame.names != record.data["class_names"]:
            self._frame = _Frame(record.data["class_names"], self._dpi)
        picture = self._frame.paint(np.array(counts), matrix_title(record, counts), matrix_note(record))
        out = io.BytesIO()
        picture.save(out, "png", dpi=(self._dpi, self._dpi), compress_level=COMPRESSION)
        return out.getvalue()

    def svg(self) -> bytes:
        """Return the matrix as an SVG file."""
        record, counts = self._chosen()
        names = record.data["class_names"]
        figure = draw_confusion(counts, names, matrix_title(record, counts), matrix_note(record))
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        return out.getvalue()

    def _chosen(self) -> tuple[Record, list[list[int]]]:
        assert self._record is not None
        assert self._record.confusion_matrix is not None
        return self._record, self._record.confusion_matrix


class _Frame:
    """What the matrices of the same classes share, as pixels, and where the rest goes.

    Args:
        names: Of the classes.
        dpi: Pixels per inch.
    """

    def __init__(self, names: Sequence[str], dpi: int) -> None:
        self.names, self._dpi = list(names), dpi
        empty = [[0] * len(names)] * len(names)
        # As many lines as a title and a note may have, so that the layout fits all records.
        figure = draw_confusion(empty, names, "two\nlines", "three\nlines\nof notes")
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        (ax,) = figure.axes
        self._place(figure, ax)
        for artist in (ax.images[0], *_texts(figure, ax)):
            artist.set_visible(False)
        canvas.draw()
        self._pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def _place(self, figure: Figure, ax: Axes) -> None:
        """Find the pixels of the cells and the fonts and places of the texts; rows of pixels are counted from above."""
        classes, height = len(self.names), figure.bbox.height
        self._colours = ax.images[0].get_cmap()
        edges = ax.transData.transform([(k - 0.5, k - 0.5) for k in range(classes + 1)])
        columns, rows = np.rint(edges[:, 0]).astype(int), np.rint(height - edges[:, 1]).astype(int)
        self._left, self._top = columns[0], rows[0]
        self._columns = np.repeat(np.arange(classes), np.diff(columns))
        self._rows = np.repeat(np.arange(classes), np.diff(rows))
        self._across, self._down = (columns[:-1] + columns[1:]) / 2, (rows[:-1] + rows[1:]) / 2
        title, note = _texts(figure, ax)
        self._number_font = _font(cell_letters(classes), "normal", self._dpi)
        self._title_font = _font(title.get_fontsize(), "bold", self._dpi)
        self._note_font = _font(note.get_fontsize(), "normal", self._dpi)
        box = title.get_window_extent()
        self._title_place = (box.x0, height - box.y0)
        box = note.get_window_extent()
        self._note_place = ((box.x0 + box.x1) / 2, height - box.y0)

    def paint(self, counts: Any, title: str, note: str) -> Image.Image:
        """Return the picture of a matrix.

        Args:
            counts: Rows are true classes, (K, K).
            title: One line or two.
            note: Up to three lines.
        """
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        pixels = self._pixels.copy()
        colours = self._colours(shares, bytes=True)[..., :3]
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
    """Return the title and the note, which matplotlib keeps under private names."""
    return ax._left_title, figure._supxlabel  # type: ignore[attr-defined]


def _font(points: float, weight: str, dpi: int) -> ImageFont.FreeTypeFont:
    path = findfont(FontProperties(family=mpl.rcParams["font.family"], weight=weight))
    return ImageFont.truetype(path, round(points * dpi / 72), layout_engine=ImageFont.Layout.BASIC)
