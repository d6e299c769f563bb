"""Four algorithms for the convolution against torch, and the facts that the tool shows."""

from __future__ import annotations

import functools
import json
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.explain import Explanation, convolution, run
from cnnbench.explain.convolution import (
    ALGORITHMS,
    EDGE,
    Settings,
    _apart,
    _draw_race,
    _growth,
    _milliseconds,
    _verdict,
    conv2d,
    crossover,
    multiply_adds,
    toeplitz_matrix,
    torch_conv2d,
)

ONE_PLACE = ("--dilation", "3")
"""The kernel fits in one place, so that the animation, which no test of the race looks at, has one frame."""


@functools.cache
def _explained(*options: str) -> Explanation:
    """Return what the tool shows without a race; drawing the animation takes a second."""
    return run("convolution", [*options, "--rounds", "0"])


PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def _cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Settings]:
    kernel, dilation, groups = draw(PAIR), draw(PAIR), draw(st.integers(1, 3))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 8)) for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    channels, filters = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    x = random.standard_normal((draw(st.integers(1, 2)), channels * groups, *size))
    w = random.standard_normal((filters * groups, channels, *kernel))
    return x, w, Settings.of(draw(PAIR), padding, dilation, groups, draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(_cases())
def test_all_algorithms_are_torchs_convolution(case: tuple[np.ndarray, np.ndarray, Settings]) -> None:
    expected = torch_conv2d(*case)
    for name, algorithm in ALGORITHMS.items():
        found = algorithm(*case)
        assert found.shape == expected.shape, name
        np.testing.assert_allclose(found, expected, atol=1e-10, err_msg=name)


def test_flipping_is_the_convolution_of_mathematics() -> None:
    """NumPy's own convolution of polynomials, on rows of one pixel's height."""
    image, kernel = np.array([1.0, 4, 2, 8, 5]), np.array([1.0, -2, 3])
    for algorithm in ALGORITHMS.values():
        found = algorithm(image[None, None, None], kernel[None, None, None], Settings.of(flip=True))
        np.testing.assert_allclose(found[0, 0, 0], np.convolve(image, kernel, "valid"))


def test_example_of_the_course(capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "convolution", "--rounds", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["output"] == np.outer([1, 2, 3, 2, 1], [1, 1, 0, -1, -1]).tolist()
    assert max(found["largest_error"].values()) < 1e-12
    with Image.open("results/explain/convolution.gif") as animation:
        assert animation.n_frames == 25


@pytest.mark.parametrize(
    ("x", "w", "options", "words"),
    [
        ((1, 1, 4, 4), (1, 1, 5, 5), {}, "larger than the padded image of 4x4"),
        ((1, 1, 4, 4), (1, 1, 3, 3), {"dilation": 2}, "spans 5x5 pixels"),
        ((1, 3, 4, 4), (1, 1, 3, 3), {}, "do not fit"),
        ((1, 4, 4, 4), (3, 2, 3, 3), {"groups": 2}, "do not fit"),
        ((1, 4, 4), (3, 2, 3, 3), {}, "4 axes"),
        ((1, 1, 4, 4), (0, 1, 3, 3), {}, "weights of 0x1x3x3 are empty"),
        ((1, 1, 4, 4), (1, 1, 0, 3), {}, "weights of 1x1x0x3 are empty"),
    ],
)
def test_what_torch_refuses_is_refused(x: tuple, w: tuple, options: dict, words: str) -> None:
    import torch

    with pytest.raises(RuntimeError):
        torch.nn.functional.conv2d(torch.zeros(x if len(x) == 4 else (2, *x)), torch.zeros(w), **options)
    for algorithm in ALGORITHMS.values():
        with pytest.raises(UserError, match=words):
            algorithm(np.zeros(x), np.zeros(w), Settings.of(**options))


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (2, 0, 5, 5)])
def test_no_images_and_no_channels_are_computed_too(shape: tuple[int, ...]) -> None:
    weights = np.ones((3, shape[1], 3, 3))
    for algorithm in ALGORITHMS.values():
        found = algorithm(np.ones(shape), weights)
        assert found.shape == (shape[0], 3, 3, 3)
        assert not found.any()


def test_settings_out_of_range_are_refused() -> None:
    for options in ({"stride": 0}, {"padding": (0, -1)}, {"dilation": 0}):
        with pytest.raises(UserError, match="must be at least"):
            Settings.of(**options)
    with pytest.raises(UserError, match="too large"):
        toeplitz_matrix(EDGE[None, None], (1, 100, 100))


def test_the_matrix_is_doubly_block_toeplitz() -> None:
    """Its blocks are the same along each diagonal of blocks, and constant along the diagonals within them."""
    kernel = np.random.default_rng(0).standard_normal((1, 1, 3, 3))
    blocks = toeplitz_matrix(kernel, (1, 6, 6)).reshape(4, 4, 6, 6).transpose(0, 2, 1, 3)
    for i, j in np.ndindex(3, 5):
        np.testing.assert_array_equal(blocks[i, j], blocks[i + 1, j + 1])
    block = blocks[0, 0]
    for offset in range(-3, 6):
        assert np.ptp(np.diagonal(block, offset)) == 0
    assert np.count_nonzero(blocks) == 9 * 16


def test_the_crossover_is_where_the_fft_stays_ahead() -> None:
    times = {
        "FFT": {"8,3": [2.0, 2, 9], "8,5": [1.0, 2, 3], "8,7": [2.0, 2, 2]},
        "im2col": {"8,3": [1.0, 3, 9], "8,5": [1.0, 2, 3], "8,7": [3.0, 3, 3]},
    }
    assert crossover(times, 8, [3, 5, 7]) == 7  # level at 5, ahead at 3 by luck does not count
    assert crossover({"FFT": {"8,3": [2.0]}, "im2col": {"8,3": [1.0]}}, 8, [3]) is None


def test_multiply_adds_of_the_direct_ways() -> None:
    assert multiply_adds("im2col", 28, 5) == multiply_adds("loop", 28, 5) == 28 * 28 * 25
    assert multiply_adds("Toeplitz", 4, 3) == 256
    assert multiply_adds("FFT", 64, 31) < multiply_adds("im2col", 64, 31) / 8


def test_the_race_runs_everything_that_is_not_too_long(capsys: pytest.CaptureFixture) -> None:
    arguments = ["--sizes", "8,80", "--kernels", "3,9", "--rounds", "2", "--stride", "2", "--padding", "1", "--json"]
    assert main(["explain", "convolution", *arguments]) == 0
    times = json.loads(capsys.readouterr().out)["race_ms"]
    assert set(times["torch"]) == {"8,3", "80,3", "80,9"}
    assert set(times["loop"]) == set(times["Toeplitz"]) == {"8,3"}
    assert all(len(rounds) == 2 and min(rounds) > 0 for found in times.values() for rounds in found.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kernels", "4"], "must be odd"),
        (["--sizes", "x"], "sizes 'x' are not whole numbers"),
        (["--stride", "0"], "stride 0 must be at least 1"),
        (["--dilation", "4"], "larger than the padded image"),
        (["--padding", "9", "--stride", "4"], "padding 9 of the drawn window must be at most 8"),
        (["--stride", "33"], "stride 33 of the drawn window must be at most 32"),
        (["--kernels", "3", "--sizes", "100000", "--rounds", "1"], "has 90,000,000,000 entries; take smaller --sizes"),
        (["--kernels", "101", "--sizes", "4096"], "has 171,144,380,416 entries"),
        (["--rounds", "1001"], "rounds 1001 must be from 0, for no race, to 1,000"),
        (["--rounds=-1"], "rounds -1 must be from 0"),
        (["--kernels", "3,3"], "kernels '3,3' have a number twice"),
    ],
)
def test_bad_options_are_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "convolution", *options]) == 2
    assert words in capsys.readouterr().err


def test_images_of_any_type_are_computed_in_floating_point() -> None:
    image = np.full((1, 1, 3, 3), 255, dtype=np.uint8)
    assert conv2d(image, np.full((1, 1, 3, 3), 200, dtype=np.uint8)).item() == 9 * 255 * 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "The kernel subtracts left from right, so it answers at vertical edges"),
        (["--convolve"], "The kernel, flipped, subtracts right from left, so"),
        (["--dilation", "3"], "at the places of this stride and dilation it answers 0"),
    ],
)
def test_the_remarks_say_what_is_seen(options: list[str], words: str) -> None:
    assert words in _explained(*options).remarks[0]


def test_the_facts_say_whether_the_kernel_is_flipped() -> None:
    for options, words in (([], "correlation, which networks call convolution"), (["--convolve"], "is flipped")):
        found = _explained(*options)
        assert words in dict(found.tables[1].rows)["Operation"]


def test_the_strip_has_only_steps_that_there_are() -> None:
    strip = _explained("--dilation", "3").pictures[1].image
    assert isinstance(strip, Figure)
    assert [ax.get_title() for ax in strip.axes if ax.get_title()] == ["place 1 of 1"]


def test_a_race_beside_other_processes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--sizes", "8", "--kernels", "3", "--rounds", "1", *ONE_PLACE]
    for doubts in ([], ["other processes kept 1.0 processors busy"]):
        monkeypatch.setattr("cnnbench.explain.convolution.reasons_to_doubt", lambda _, doubts=doubts: doubts)
        found = run("convolution", options)
        picture = found.pictures[-1]
        assert found.numbers["race_suspect"] == doubts
        assert ("(suspect)" in picture.title) == bool(doubts)
        assert (
            "The times of the race are suspect: other processes kept 1.0 processors busy." in found.remarks
        ) == bool(doubts)


def test_the_race_says_what_it_measured() -> None:
    """Times as if by hand: from 3x3 to 9x9, nine times the weights, im2col takes 9 times as long, the FFT 2 times."""
    times = {"FFT": {"16,3": [1.0], "16,9": [2.0]}, "im2col": {"16,3": [1.0], "16,9": [9.0]}}
    assert _growth(times, 16).startswith(
        "On images of 16x16, from 3x3 to 9x9, the kernel gets 9 times as many weights; im2col's time becomes 9.0 times"
    )


def test_a_pause_before_the_first_call_is_no_division_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps by a second whenever it is read: one call is made, and it took that second."""
    ticks, calls = count(), []
    monkeypatch.setattr(convolution.time, "perf_counter", lambda: float(next(ticks)))
    assert _milliseconds(lambda: calls.append(1)) == 1000
    assert calls == [1]


@pytest.mark.parametrize(
    ("ahead", "raced", "rounds", "words"),
    [
        (7, [3, 5, 7], 5, "the FFT is faster than im2col from kernels of 7x7 on."),
        (31, [31], 5, "the FFT is faster than im2col with kernels of 31x31, the only ones raced."),
        (3, [3, 5], 5, "the FFT is faster than im2col with all kernels raced, 3x3 to 5x5, so they do not cross."),
        (None, [3, 5], 5, "the FFT is not faster than im2col with kernels of 5x5, the largest raced."),
        (5, [3, 5], 1, "from kernels of 5x5 on. 1 round says little; give --rounds 5 or more."),
        (5, [3, 5], 2, "from kernels of 5x5 on. 2 rounds say little; give --rounds 5 or more."),
    ],
)
def test_the_verdict_claims_no_more_than_was_raced(
    ahead: int | None, raced: list[int], rounds: int, words: str
) -> None:
    assert _verdict(64, ahead, raced, rounds).endswith(words)


@pytest.mark.parametrize(
    ("options", "size", "zeros", "weights", "words"),
    [
        # 25 places with 6 weights each: 150 of 1,225 entries are not zero.
        ([], "25x49", "88%", 6, []),
        # One place, whose middle tap alone lies on the image; it is a zero of the kernel.
        (["--dilation", "4", "--padding", "1"], "1x49", "100%", 0, ["All of the matrix is zero"]),
        (["--dilation", "3"], "1x49", "88%", 6, ["Each weight is in the matrix once"]),
        # One place, with taps at -3, 0 and 3: of its last column two are on the image.
        (["--stride", "7", "--dilation", "3", "--padding", "3"], "1x49", "96%", 2,
         ["Each weight is in the matrix once", "The kernel's other weights that are not zero always fall"]),
    ],
)  # fmt: skip
def test_the_facts_count_the_weights_of_the_matrix(
    options: list[str], size: str, zeros: str, weights: int, words: list[str]
) -> None:
    found = _explained(*options)
    facts = dict(found.tables[1].rows)
    assert facts["Matrix, outputs by pixels"] == size
    assert facts["Entries of the matrix that are zero"] == zeros
    assert facts["Weights of the kernel other than zero"] == "6"
    assert facts["Of these, in the matrix"] == str(weights)
    remarks = found.remarks[1:]
    assert len(remarks) == len(words)
    assert all(remark.startswith(start) for remark, start in zip(remarks, words, strict=True))
    matrix = found.pictures[2].image
    assert isinstance(matrix, Figure)
    low, high = matrix.axes[0].images[0].get_clim()
    assert low < 0 < high


def test_the_race_watches_the_machine_after_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []
    monkeypatch.setattr("cnnbench.timing.conditions.Conditions.look", lambda self: looks.append(None))
    run("convolution", ["--rounds=3", "--sizes=8", "--kernels=3", *ONE_PLACE])
    assert len(looks) == 3


def test_the_race_is_drawn_whole_with_ticks_where_it_was_raced() -> None:
    times = {"im2col": {"16,3": [1.0, 2.0, 50.0], "16,5": [0.01, 2.0, 3.0]}}
    left = _draw_race(times, 16, 3, [16], [3, 5]).axes[0]
    assert left.get_ylim()[0] < 0.01
    assert left.get_ylim()[1] > 50
    assert left.get_xticks().tolist() == [3, 5]
    assert _apart([3, 5, 7, 11, 15, 21, 31]) == [3, 5, 7, 11, 15, 21, 31]
    assert _apart([100, 101, 200]) == [101, 200]
    assert _apart([16]) == [16]
