"""Which test images the networks of a run disagree on, and their pictures for the page of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cnnbench.benchmark.plan import Cell
from cnnbench.data import BenchData
from cnnbench.data.foreign import ForeignData
from cnnbench.disputed import LARGEST_SIDE, Disputed, disputed_file, most_disputed, write_disputed
from cnnbench.errors import UserError
from cnnbench.predictions import Predictions, read_predictions
from cnnbench.record import Record


def keep_disputed(
    folder: Path,
    cells: Sequence[Cell],
    records: Mapping[str, Record],
    data: Callable[[Cell], BenchData],
    say: Callable[[str], None],
) -> None:
    """Write pictures of the test images on which the networks of a run disagree, a file for each data set.

    A data set that only one network was tested on has no file. Neither has a LightningDataModule of another package:
    its loader need not give the same image in the same place again.

    Args:
        folder: Run folder.
        cells: Cells of the run.
        records: Records by the key of the cell.
        data: Function that returns the data of a cell.
        say: Function that shows a note to the user.
    """
    by_data: dict[str, list[Cell]] = {}
    for cell in cells:
        by_data.setdefault(cell.data, []).append(cell)
    for name, members in by_data.items():
        try:
            disputed = _disputed(folder, members, records, data(members[0]))
        except UserError as error:
            say(f"the report shows no test images of {name}: {error}")
            continue
        if disputed is not None:
            write_disputed(disputed_file(folder, name), disputed)


def _disputed(folder: Path, cells: Sequence[Cell], records: Mapping[str, Record], data: BenchData) -> Disputed | None:
    """Return the disputed images of a data set; None if there are none.

    Raises:
        UserError: A file of predictions or an image cannot be read.
    """
    if isinstance(data, ForeignData) or data.in_channels not in (1, 3):
        return None
    found: list[Predictions] = []
    for cell in cells:
        record = records.get(cell.key)
        path = folder / "predictions" / f"{cell.key}.npz"
        if record is not None and record.confusion_matrix is not None and path.is_file():
            found.append(read_predictions(path, record.confusion_matrix, scores=False))
    # Recipes from files may set options of the data, so only networks with the same test images are compared.
    same = [entry for entry in found if np.array_equal(entry.true, found[0].true)]
    if len(same) < 2:
        return None
    indices = most_disputed([entry.predicted for entry in same])
    if not len(indices):
        return None
    stored = data.stored("test", torch.from_numpy(indices))
    if not np.array_equal(stored.labels.numpy(), same[0].true[indices]):
        raise UserError("the images are not in the order of the predictions")
    return Disputed(_small(stored.images), indices, same[0].true[indices].astype(np.int64))


def _small(images: torch.Tensor) -> np.ndarray:
    """Return pictures, (N, H, W, C) uint8, of images, (N, C, H, W) uint8, made smaller if they are large."""
    if max(images.shape[2:]) > LARGEST_SIDE:
        shape = [max(1, round(side * LARGEST_SIDE / max(images.shape[2:]))) for side in images.shape[2:]]
        # Each pixel becomes the mean of those that it covers.
        images = torch.nn.functional.interpolate(images.float(), shape, mode="area").round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).cpu().numpy()
