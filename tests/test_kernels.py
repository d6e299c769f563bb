"""Classic filters against their values in the literature and against scipy-free arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.explain import run
from cnnbench.explain.kernels import (
    CAPTION,
    CAPTION_IN_COLOUR,
    apply,
    bank,
    binomial,
    box,
    cross,
    gaussian,
    grey,
    magnitude,
    wrapped_share,
)
from cnnbench.explain.networks import read_photo
from cnnbench.plots.grids import limits

SQUARES = np.arange(25.0).reshape(5, 5) ** 2


def _valid(name: str) -> list[list[float]]:
    """The filter where it lies wholly within the image of squares."""
    kernel = {"gauss3": binomial(3), "gauss5": binomial(5)}.get(name)
    kernel = bank()[name].values if kernel is None else kernel
    border = len(kernel) // 2
    return apply(SQUARES, kernel)[border:-border, border:-border].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sobel_x", [[96, 112, 128], [176, 192, 208], [256, 272, 288]]),
        ("sobel_y", [[480, 560, 640], [880, 960, 1040], [1280, 1360, 1440]]),
        ("gauss3", [[49, 62, 77], [134, 157, 182], [269, 302, 337]]),
        ("gauss5", [[170]]),
        ("sharpen", [[-16, -3, 12], [69, 92, 117], [204, 237, 272]]),
        ("emboss", [[468, 553, 640], [913, 1008, 1105], [1408, 1513, 1620]]),
        ("laplacian_4", [[52] * 3] * 3),
        ("laplacian_8", [[156] * 3] * 3),
    ],
)
def test_filters_by_correlation(name: str, expected: list[list[float]]) -> None:
    assert _valid(name) == expected


def test_example_of_the_course() -> None:
    image = np.zeros((7, 7))
    image[2:5, 2:5] = 1
    found = apply(image, bank()["prewitt_x"].values)[1:-1, 1:-1]
    assert found.tolist() == np.outer([1, 2, 3, 2, 1], [1, 1, 0, -1, -1]).tolist()


def test_flipping_changes_the_sign_of_sobel_and_the_values_of_emboss() -> None:
    image = np.random.default_rng(0).random((9, 11))
    sobel, emboss = bank()["sobel_x"].values, bank()["emboss"].values
    np.testing.assert_allclose(apply(image, sobel, convolve=True), -apply(image, sobel))
    assert not np.allclose(np.abs(apply(image, emboss, convolve=True)), np.abs(apply(image, emboss)))


def test_a_vertical_edge_answers_to_sobel_x_alone() -> None:
    image = np.zeros((8, 8))
    image[:, 4:] = 1
    x, y = (apply(image, bank()[n].values) for n in ("sobel_x", "sobel_y"))
    assert x.max() == 4
    assert np.all(y == 0)
    np.testing.assert_array_equal(magnitude(x, y), np.abs(x))
    assert magnitude(np.array(3.0), np.array(4.0)) == 5


def test_smoothing_twice_is_the_larger_binomial() -> None:
    assert (binomial(5) * 256).tolist() == np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]).tolist()
    impulse = np.zeros((9, 9))
    impulse[4, 4] = 1
    np.testing.assert_allclose(apply(apply(impulse, binomial(3)), binomial(3))[2:7, 2:7], binomial(5))


def test_a_sampled_gaussian_has_its_deviation() -> None:
    kernel, at = gaussian(25, 2.5), np.arange(25) - 12
    assert kernel.sum() == pytest.approx(1)
    assert (kernel.sum(0) * at**2).sum() == pytest.approx(2.5**2, rel=1e-3)
    assert box(3).tolist() == [[1 / 9] * 3] * 3


def test_sums_keep_or_remove_even_ground() -> None:
    flat = np.full((9, 9), 3.0)
    for name, kernel in bank(7, 1.5).items():
        expected = 0 if kernel.signed else 3
        np.testing.assert_allclose(apply(flat, kernel.values), expected, atol=1e-12, err_msg=name)


def test_pillow_filters_alike() -> None:
    """Pillow's is one more implementation by correlation."""
    photo = np.random.default_rng(1).integers(0, 256, (20, 20), dtype=np.uint8)
    for name, kernel in (("box", box(5)), *((n, bank()[n].values) for n in ("sharpen", "emboss", "binomial_5"))):
        size, flat = kernel.shape, kernel[::-1].flatten().tolist()  # Pillow's kernel begins with its lowest row
        theirs = np.asarray(Image.fromarray(photo).filter(ImageFilter.Kernel(size, flat, 1)))
        ours = np.clip(apply(photo, kernel), 0, 255)
        np.testing.assert_allclose(ours[2:-2, 2:-2], theirs[2:-2, 2:-2], atol=0.51, err_msg=name)


def test_the_cross_detector_prefers_crosses() -> None:
    image = np.zeros((9, 30))
    image[4, 2:7] = image[2:7, 4] = 1  # a cross
    image[4, 12:17] = 1  # a bar
    image[2:7, 22:27] = 1  # a block
    found = apply(image, cross(5))
    assert found[4, 4] == pytest.approx(1)
    assert found[4, 14] == pytest.approx(5 / 9)
    assert found[4, 24] == pytest.approx(0)
    assert np.unravel_index(found.argmax(), found.shape) == (4, 4)


def test_eight_bits_are_not_enough_for_edges() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (60, 60)).astype(np.uint8)
    exact = apply(photo, bank()["sobel_x"].values)
    wrapped = np.mean(exact.astype(np.int64).astype(np.uint8) != exact)
    assert wrapped_share(photo, bank()["sobel_x"].values) == wrapped > 0.4


def test_half_of_a_photo_wraps_around_in_eight_bits() -> None:
    """Computed as a beginner would, by slices of arrays of uint8, beside the same in integers of enough bits."""
    photo = np.asarray(grey(read_photo(None)).round(), dtype=np.uint8)

    def sobel(a: np.ndarray) -> np.ndarray:
        right, left = a[:, 2:], a[:, :-2]
        change = right - left
        return change[:-2] + change[1:-1] + change[1:-1] + change[2:]

    inner = sobel(photo) != sobel(photo.astype(np.int32))
    whole = wrapped_share(photo, bank()["sobel_x"].values)
    # The course's photo, where it is 47.5 %, is another one: this is what matplotlib ships.
    assert inner.mean() == pytest.approx(0.5070, abs=0.0005)
    assert whole == pytest.approx(inner.mean(), abs=2 * sum(photo.shape) / photo.size)  # the border is not in both


def test_large_filters_are_filtered_row_by_row_alike() -> None:
    from torch.nn.functional import conv2d, pad

    image = np.random.default_rng(0).random((60, 70))
    kernel = np.random.default_rng(1).random((51, 31))
    padded = pad(torch.tensor(image)[None, None], (15, 15, 25, 25), mode="reflect")
    np.testing.assert_allclose(apply(image, kernel), conv2d(padded, torch.tensor(kernel)[None, None])[0, 0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size=401"], "from 1 to 101"),
        (["--size=-3"], "from 1 to 101"),
        (["--kernels="], "kernels is empty; leave it out for the default"),
        (["--kernels=box,box"], "'box' is named twice"),
        (["--sigma", "1e-200"], "sigma 1e-200 of a Gaussian must be from 0.05 to 1000 pixels"),
        (["--sigma", "1e300"], "sigma 1e+300 of a Gaussian must be from 0.05 to 1000 pixels"),
        (["--sigma", "nan"], "sigma 'nan' is not a number"),
    ],
)
def test_wrong_options_are_refused(options: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "kernels", *options]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("sigma", [0.05, 1000])
def test_the_extreme_gaussians_are_a_pixel_and_a_square(sigma: float) -> None:
    expected = box(5) if sigma > 1 else np.outer([0, 0, 1, 0, 0], [0, 0, 1, 0, 0])
    np.testing.assert_allclose(gaussian(5, sigma), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(14000, 14000), (10000, 9001)])  # Pillow refuses the one and warns of the other
def test_a_photo_that_is_too_large_is_refused(
    size: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("1", size).save(tmp_path / "huge.png")
    assert main(["explain", "kernels", str(tmp_path / "huge.png")]) == 2
    message = capsys.readouterr().err
    assert f"has {size[0] * size[1]:,} pixels; give one of at most 89,478,485" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_photos_that_are_neither_png_nor_jpeg_are_refused(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / f"unit{suffix}"
    Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(path, "TIFF")
    assert main(["explain", "kernels", str(path)]) == 2
    message = capsys.readouterr().err
    assert f"cannot read image '{path}': it is a TIFF image, not PNG or JPEG; give a PNG or JPEG file" in message
    assert message.count("\n") == 1


def test_the_text_is_about_the_filters_that_were_chosen() -> None:
    found = run("kernels", ["--kernels=emboss,gaussian", "--convolve", "--sigma=10"])
    assert [row[0] for row in found.tables[0].rows] == ["gaussian", "emboss"]
    assert [row[3] for row in found.tables[0].rows if row[0] == "emboss"] == ["relief, light from the lower right"]
    assert found.tables[0].title == "Filters, by convolution, the kernel flipped"
    assert "give --size 41 or more" in found.remarks[1]
    assert "before they are flipped" in found.remarks[2]
    found = run("kernels", ["--kernels=gradient,sobel_x,box"])
    assert found.tables[0].title == "Filters, by correlation, as networks compute it"
    assert list(found.tables[0].rows) == [
        ("sobel_x", "3x3", "0", "change along x: vertical edges"),
        ("box", "5x5", "1", "mean of 5x5 pixels"),
        ("gradient", "3x3", "-", "magnitude of Sobel's x and y: edges of all directions"),
    ]
    assert len(found.remarks) == 1


def test_the_caption_explains_the_colours_of_the_picture() -> None:
    assert run("kernels", ["--kernels=box"]).pictures[0].caption == CAPTION
    assert run("kernels", ["--kernels=cross", "--colour"]).pictures[0].caption == CAPTION_IN_COLOUR
    for caption, sign in ((CAPTION, "red where the answer is plus"), (CAPTION_IN_COLOUR, "mid-grey is no answer")):
        assert sign in caption
        assert "to white, its largest value." in caption


def test_a_flat_image_has_no_answers() -> None:
    """What is left of zeros by rounding is not drawn as an answer."""
    assert limits(np.full((4, 4), 3e-17), "signed") == (-1, 1)


def test_photos_are_read_whole(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "deep.png")[..., 0], np.round(values / 257))
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    clear.save(tmp_path / "clear.png")
    assert read_photo(tmp_path / "clear.png").tolist() == [[[255, 255, 255], [10, 20, 30]]]
    turned = Image.new("RGB", (6, 3), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_photo(tmp_path / "turned.jpg").shape == (6, 3, 3)


def test_thin_photos_are_filtered_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("L", (2000, 1)).save(tmp_path / "thin.png")
    assert main(["explain", "kernels", str(tmp_path / "thin.png")]) == 2
    assert "too small for a 3x3 filter" in capsys.readouterr().err


def test_colour_images_are_filtered_by_channel() -> None:
    image = np.random.default_rng(0).random((6, 7, 3))
    found = apply(image, binomial(3))
    np.testing.assert_allclose(found[..., 1], apply(image[..., 1], binomial(3)))
    np.testing.assert_allclose(grey(np.ones((2, 2, 3))), 1)


@pytest.mark.parametrize("make", [lambda: binomial(4), lambda: gaussian(5, 0), lambda: apply(np.ones((2, 9)), box(5)),
                                  lambda: apply(np.ones((20, 20)), np.ones((2, 3)))])  # fmt: skip
def test_impossible_filters_are_refused(make: object) -> None:
    with pytest.raises(UserError):
        make()
