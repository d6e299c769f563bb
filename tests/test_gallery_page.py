"""The page of the gallery: what it shows of which network, and its script in a real browser, against torch."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shlex
import signal
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accessibility import violations
from browsers import open_page
from page_reader import PageReader
from PIL import Image, ImageStat
from playwright.sync_api import Browser, Page
from torch import nn

from cnnbench.cli import main
from cnnbench.commands import gallery
from cnnbench.commands.gallery_network import describe_shipped, describe_training, history
from cnnbench.errors import Stopped, UserError
from cnnbench.explain import Explanation, Table, run
from cnnbench.explain.exercises import exercises
from cnnbench.explain.gallery import PARTS, Trained, chosen_parts, page
from cnnbench.options import parse
from cnnbench.references import weights_file

MINUS = "\N{MINUS SIGN}"
TOOLS = ("convolution", "equivariance", "confusions")
CLASSIC = {
    "vertical": lambda k: (2 * torch.arange(k) - k + 1).sign().expand(k, k),
    "horizontal": lambda k: (2 * torch.arange(k) - k + 1).sign().expand(k, k).T,
    "sum": lambda k: torch.ones(k, k),
}
"""Filters of the explorer by their value in its menu, written anew."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a few parts, of shipped weights and synthetic images."""
    folder = tmp_path_factory.mktemp("gallery")
    checkpoint = weights_file("SimpleCNN", "CIFAR10")
    trained = describe_training(checkpoint, images="Synthetic")
    parts = []
    for part in chosen_parts(TOOLS, blurpool=False):
        words = trained.words(part)
        if part.tool == "convolution":
            words = ["convolution", "--rounds", "0"]
        if part.tool == "equivariance":
            words = ["equivariance"]
        parts.append((part, run(words[0], words[1:])))
    path = folder / "index.html"
    path.write_text(page(parts, trained), encoding="utf-8")
    return path


# What is shown


def test_network_of_the_page_follows_from_the_options() -> None:
    assert not gallery.Options().trains
    assert not gallery.Options(weights="reference", data="MNIST").trains
    assert not gallery.Options(ckpt_path=Path("a.ckpt"), data="MNIST").trains
    for options in ({"train": True}, {"data": "MNIST"}, {"epochs": 1}, {"image_size": 32}):
        assert gallery.Options(**options).trains


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "a.ckpt", "--weights", "reference"], "name two networks"),
        (["--ckpt_path", "a.ckpt", "--train"], "--train is about a training, and --ckpt_path trains nothing"),
        (["--ckpt_path", "a.ckpt"], "checkpoint 'a.ckpt' does not exist"),
        (["--parts", "convolutoin"], "did you mean 'convolution'"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "gallery", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.parametrize("options", [["--ckpt_path", str(weights_file("SimpleCNN", "MNIST"))], ["--train"]])
def test_folder_that_cannot_be_made_is_refused_before_anything_takes_time(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for slow in ("run_tool", "train"):
        monkeypatch.setattr(gallery, slow, lambda *_: pytest.fail("the tools were run"))
    Path("file").write_text("mine")
    assert main(["explain", "gallery", *options, "--data", "Synthetic", "--out", "file/made"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "file" in line]
    assert line == "cnnbench: --out file/made cannot be made: Not a directory; give another --out"
    assert Path("file").read_text() == "mine"


def test_page_that_is_stopped_after_its_training_says_how_to_show_the_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = weights_file("SimpleCNN", "CIFAR10")
    described = describe_training(checkpoint, images="Synthetic")
    monkeypatch.setattr("cnnbench.commands.gallery_network.describe_training", lambda *_: described)

    def stop(*_: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(gallery, "train", lambda *_: checkpoint)
    monkeypatch.setattr(gallery, "run_tool", stop)
    words = ["--data", "Synthetic", "--parts", "filters,parameters", "--out", "a folder"]
    assert main(["explain", "gallery", "--train", *words]) == 143
    last = capsys.readouterr().err.splitlines()[-1]
    start = "cnnbench: stopped by SIGTERM; the trained network was kept; show it with: cnnbench "
    assert last.startswith(start)
    # The command line that is printed is one that the command takes, with the same parts and the same folder.
    found = parse(gallery.Options, shlex.split(last.removeprefix(start))[2:], "cnnbench explain gallery", "")
    assert found == gallery.Options(ckpt_path=checkpoint, parts=("filters", "parameters"), out=Path("a folder"))


def test_command_makes_a_page_of_a_checkpoint_without_training(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(weights_file("SimpleCNN", "MNIST"))
    words = ["--ckpt_path", checkpoint, "--data", "Synthetic", "--parts", "parameters,filters", "--out", "made"]
    assert main(["explain", "gallery", *words]) == 0
    assert [path.name for path in Path("made").iterdir()] == ["index.html"]
    text = Path("made/index.html").read_text(encoding="utf-8")
    assert f"cnnbench explain filters --ckpt_path {checkpoint} --data Synthetic" in text
    assert "The network was trained on MNIST, not on Synthetic." in text
    assert "1 of 2: Why convolutions" in capsys.readouterr().err


def test_shipped_network_is_described_by_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    # The data of CIFAR-10 itself is not on every machine.
    described = Trained("SimpleCNN", "CIFAR-10", weights_file("SimpleCNN", "CIFAR10"), ["CIFAR10"])
    monkeypatch.setattr("cnnbench.commands.gallery_network.describe_training", lambda path: described)
    trained = describe_shipped("SimpleCNN", "CIFAR10")
    words = " ".join(trained.history)
    # The figures of experiments/bench/reference-cpu-small.yaml, at the top of the file.
    assert "It was trained for 30 epochs on 50,000 images of CIFAR-10 (JPEG copy), in 3 minutes on Intel" in words
    assert "It classifies 80.0 % of 10,000 test images correctly (95 % interval 79.2 % to 80.8 %)." in words
    assert "A full training on these images takes 100 epochs." in words
    by_tool = {part.tool: trained.words(part) for part in PARTS}
    assert by_tool["filters"] == ["filters", "SimpleCNN", "--data", "CIFAR10", "--weights", "reference"]
    assert by_tool["confusions"][1:] == ["--models", *by_tool["filters"][1:]]
    # No command names a path of this machine.
    assert not [word for words in by_tool.values() for word in words if "/" in word]
    assert history(None) == ["How it was trained is not known, since there is no record beside its checkpoint."]


def test_shipped_weights_are_tested_by_confusions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "confusions", "--weights", "reference"]) == 2
    assert "--weights reference needs one network" in capsys.readouterr().err
    assert main(["explain", "confusions", "--weights", "reference", "--models", "VGG16", "--data", "MNIST"]) == 2
    assert "there are no weights of VGG16 on MNIST" in capsys.readouterr().err
    assert main(["explain", "confusions", "r.jsonl", "--weights", "reference", "--models", "SimpleCNN"]) == 2
    assert "takes the place of RECORDS" in capsys.readouterr().err


# Exercises


def _answers(tool: str, numbers: dict[str, Any] | None = None) -> str:
    return " ".join(exercise.answer for exercise in exercises(tool, Explanation(numbers or {})))


def test_answers_agree_with_torch() -> None:
    conv, dense = nn.Conv2d(3, 16, 5, padding=2), 3 * 32 * 32 * 16 * 32 * 32
    answers = _answers("parameters")
    assert f"{sum(p.numel() for p in conv.parameters()):,} parameters" in answers
    assert f"= {dense:,} weights, and 16,384 biases" in answers
    answers = _answers("convolution")
    side = nn.Conv2d(1, 1, 3, 2, 1)(torch.zeros(1, 1, 7, 7)).shape[-1]
    assert f"= {side}, so the output is {side}x{side}" in answers
    assert "Stride 2. Of the strides" in answers
    assert nn.Conv2d(3, 64, 7, 2, 3)(torch.zeros(1, 3, 224, 224)).shape[-1] == 112
    assert "Every output is 0:" in answers


def test_answers_on_sizes_and_fields_agree_with_torch() -> None:
    x, sides = torch.zeros(1, 1, 32, 32), [32]
    for layer in (nn.Conv2d(1, 1, 5), nn.MaxPool2d(2)) * 2:
        x = layer(x)
        sides.append(x.shape[-1])
    layers = [{"name": "a", "kind": "Linear", "params": 75}, {"name": "b", "kind": "Conv2d", "params": 25}]
    answers = _answers("sizes", {"layers": layers, "params": 100})
    assert " → ".join(map(str, sides)) in answers
    assert "They are 3x3. No window reads the last row and column." in answers
    assert "a, Linear: 75 of 100, 75%." in answers
    answers = _answers("receptive-field")
    # 16 pixels at the end, not the 19 that a wrong rule gives; 7, and 1 + 2 + 4 + 8 = 15; 1 + 2 n >= 224.
    assert answers.startswith("3, 5, 6, 10, 14, 16 pixels.")
    assert "7 pixels, and 15 pixels with the dilations" in answers
    assert "112, for each adds 2 pixels" in answers


def test_answers_on_pooling_mistakes_and_separable_convolutions() -> None:
    answers = _answers("equivariance")
    assert "For shifts by 2, 4, 6 and 8 pixels." in answers
    assert f"= {64 * 64 * 10 + 10:,} without the pooling" in answers
    assert f"= {64 * 10 + 10:,} are left" in answers
    mistakes = [{"true": "cat", "predicted": "dog", "images": 20, "share": 0.2}]
    network = {"confusion_matrix": [[80, 20], [0, 100]], "mistakes": mistakes}
    answers = _answers("confusions", {"networks": [network]})
    # Wilson's interval of 180 of 200, and of 720 of 800, by statsmodels 0.14.
    assert "Between 85.06% and 93.43%, and with four times the images between 87.73% and 91.89%" in answers
    assert "It takes cat for dog: 20 images, 20.0% of the class." in answers
    assert "dog" not in _answers("confusions", {"networks": [network | {"mistakes": []}]})
    standard, separable = 9 * 128 * 128 * 256, (9 * 128 + 128 * 128) * 256
    answers = _answers("separable")
    assert f"{standard:,} and {separable:,}: {standard / separable:.1f} times fewer" in answers


def test_course_has_exercises_on_every_subject() -> None:
    mistake = {"true": "a", "predicted": "b", "images": 1, "share": 1.0}
    networks = [{"confusion_matrix": [[1]], "mistakes": [mistake]}]
    numbers = {"networks": networks, "layers": [{"name": "a", "kind": "b", "params": 1}], "params": 1}
    counts = {part.tool: len(exercises(part.tool, Explanation(numbers))) for part in PARTS}
    assert sum(counts.values()) == 15
    assert {tool for tool, count in counts.items() if count} >= {
        "parameters", "sizes", "receptive-field", "separable", "equivariance", "confusions"
    }  # fmt: skip


# The page


def test_page_runs_one_script_of_ours_and_loads_nothing(shown: Path) -> None:
    text = shown.read_text(encoding="utf-8")
    reader = PageReader(text)
    code = files("cnnbench.pages").joinpath("gallery.js").read_text(encoding="utf-8")
    assert reader.scripts == [("", code)]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert reader.policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert all(re.match(r"#|data:", link) for link in reader.links), reader.links
    assert not {name for name in reader.attributes if name.startswith("on")}


@pytest.mark.parametrize("width", [1280, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_every_screen_without_an_accessibility_violation(
    browser: Browser, shown: Path, width: int, scheme: Any
) -> None:
    page = open_page(browser, shown, width, color_scheme=scheme)
    page.locator("main details, .folded").evaluate_all("all => all.forEach((element) => element.open = true)")
    # The largest grids and the longest numbers.
    for name, value in {"size": "9", "padding": "2", "kernel": "2", "picture": "digits", "filter": "surround"}.items():
        _set(page, name, value)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert violations(page) == []
    too_wide = "cells => cells.filter((cell) => cell.scrollWidth > cell.clientWidth + 1).length"
    assert page.locator("#x-input td, #x-output td").evaluate_all(too_wide) == 0


def test_contents_are_beside_the_text_or_folded(browser: Browser, shown: Path) -> None:
    page = open_page(browser, shown)
    assert page.locator("#contents a").all_text_contents() == [
        "1. The sliding window", "2. Shifts", "3. What is confused"
    ]  # fmt: skip
    assert not page.locator(".folded").is_visible()
    page.locator("#part2 h2").evaluate("title => title.scrollIntoView()")
    page.locator("#contents a[aria-current]", has_text="Shifts").wait_for()
    # It stays on screen, and names the part that is read.
    assert page.locator("#contents").bounding_box()["y"] >= 0  # type: ignore[index]
    page = open_page(browser, shown, 390)
    assert not page.locator("#contents").is_visible()
    page.locator(".folded summary").click()
    page.locator(".folded a", has_text="Shifts").click()
    assert page.url.endswith("#part2")


def test_dark_mode_puts_pictures_on_a_white_card(browser: Browser, shown: Path) -> None:
    page = open_page(browser, shown, color_scheme="dark")
    assert page.locator("figure .scroll").first.evaluate("e => getComputedStyle(e).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    with Image.open(io.BytesIO(page.screenshot())) as image:
        assert ImageStat.Stat(image.convert("L")).mean[0] < 80


def test_answers_are_hidden_until_asked_for(browser: Browser, shown: Path) -> None:
    page = open_page(browser, shown)
    answers = page.locator(".exercises details p")
    assert answers.count() == 7
    assert not any(answer.is_visible() for answer in answers.all())
    page.locator(".exercises summary").first.press("Enter")
    assert answers.first.is_visible()


def test_page_without_script_has_everything_but_the_explorer(browser: Browser, shown: Path) -> None:
    page = open_page(browser, shown, java_script_enabled=False)
    assert not page.locator("#explorer").is_visible()
    assert page.locator("section[id]").count() == 3
    assert page.locator("figure img").first.is_visible()
    page.locator(".exercises summary").first.click()
    assert page.locator(".exercises details p").first.is_visible()


def test_nothing_is_cut_off_on_paper(browser: Browser, shown: Path) -> None:
    page = open_page(browser, shown)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": round(186 / 25.4 * 96), "height": 1000})
    right = "all => Math.max(...all.map((element) => element.getBoundingClientRect().right))"
    assert page.locator("main img, main p, #explorer td").evaluate_all(right) <= round(186 / 25.4 * 96) + 1
    for hidden in ("#contents", "#x-play", "#x-size"):
        assert not page.locator(hidden).is_visible()
    # Paper cannot move.
    assert page.locator("picture img").first.evaluate("image => image.currentSrc").startswith("data:image/png")


def test_hostile_names_stay_text(browser: Browser, tmp_path: Path) -> None:
    name = "</script><script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"
    trained = Trained(name, name, Path(name), [name], [name], name)
    network = {
        "confusion_matrix": [[1, 1], [0, 1]],
        "mistakes": [{"true": name, "predicted": name, "images": 1, "share": 0.5}],
    }
    (part,) = chosen_parts(["confusions"], blurpool=False)
    found = Explanation({"networks": [network]}, [Table(name, [name], [[name]])], [], [name])
    path = tmp_path / "page.html"
    path.write_text(page([(part._replace(title=name, question=name), found)], trained), encoding="utf-8")
    opened = open_page(browser, path)
    assert opened.title() == "What a CNN does"
    assert opened.locator("img").count() == 0
    assert opened.locator("script").count() == 1
    assert name in (opened.locator(".exercises").text_content() or "")


# The explorer against torch


def _set(page: Page, name: str, value: Any) -> None:
    """Set a slider or a menu of the explorer, as a user's move does."""
    page.locator(f"#x-{name}").evaluate(
        "(control, value) => { control.value = value; control.dispatchEvent(new Event('input')); }", str(value)
    )


def _grid(page: Page, name: str) -> torch.Tensor:
    """The values of a grid, (H, W); empty without rows."""
    script = "rows => rows.map((row) => [...row.cells].map((cell) => Number(cell.dataset.value)))"
    return torch.tensor(page.locator(f"#x-{name} tr").evaluate_all(script), dtype=torch.float64)


@pytest.mark.parametrize("picture", ["square", "digits"])
@pytest.mark.parametrize(
    ("n", "k", "s", "p", "d", "filter"),
    [
        (7, 3, 1, 0, 1, "vertical"),
        (7, 3, 2, 1, 1, "horizontal"),
        (9, 2, 2, 0, 3, "sum"),
        (8, 5, 1, 2, 2, "vertical"),
        (5, 4, 3, 2, 1, "horizontal"),
        (9, 1, 4, 2, 3, "sum"),
        (9, 5, 4, 2, 3, "vertical"),
        (3, 3, 1, 0, 1, "sum"),
    ],
)
def test_explorer_computes_what_torch_computes(
    browser: Browser, shown: Path, n: int, k: int, s: int, p: int, d: int, filter: str, picture: str
) -> None:
    page = open_page(browser, shown)
    settings = {"size": n, "kernel": k, "stride": s, "padding": p, "dilation": d, "filter": filter, "picture": picture}
    for name, value in settings.items():
        _set(page, name, value)
    padded, kernel = _grid(page, "input"), _grid(page, "weights")
    assert torch.equal(kernel, CLASSIC[filter](k).double())
    x = padded[p : p + n, p : p + n]
    assert torch.equal(F.pad(x, (p,) * 4), padded)
    expected = F.conv2d(x[None, None], kernel[None, None], None, s, p, d)[0, 0]
    assert torch.equal(_grid(page, "output"), expected)
    side = len(expected)
    assert (page.locator("#x-formula").text_content() or "").endswith(f"+ 1 = {side}")
    # The last step: its number, its sum and the pixels that it reads.
    _set(page, "step", side * side)
    words = (page.locator("#x-sum").text_content() or "").replace(MINUS, "-")
    assert words.startswith(f"Row {side}, column {side} of the output: ")
    assert float(words.rpartition("= ")[2]) == expected[-1, -1]
    seen = torch.zeros_like(padded)
    seen[(side - 1) * s :: d, (side - 1) * s :: d][:k, :k] = 1
    taps = page.locator("#x-input td").evaluate_all("cells => cells.map((cell) => cell.classList.contains('tap'))")
    assert torch.equal(torch.tensor(taps).view_as(seen), seen.bool())
    # A pixel that no window reads has no gradient, whatever the filter.
    x = x.clone().requires_grad_()
    F.conv2d(x[None, None], torch.ones(1, 1, k, k, dtype=x.dtype), None, s, p, d).sum().backward()
    assert x.grad is not None
    assert page.locator("#x-input td.unread").count() == int((x.grad == 0).sum())


@pytest.mark.parametrize(("k", "s", "d"), [(3, 1, 1), (3, 2, 1), (2, 2, 1), (5, 1, 2), (3, 3, 3), (1, 2, 1)])
def test_receptive_fields_of_the_explorer_are_those_of_gradients(
    browser: Browser, shown: Path, k: int, s: int, d: int
) -> None:
    page = open_page(browser, shown)
    for name, value in {"kernel": k, "stride": s, "dilation": d, "layers": 4, "size": 9}.items():
        _set(page, name, value)
    rows = page.locator("#x-fields tbody tr").evaluate_all(
        "rows => rows.map((r) => [...r.cells].map((c) => c.innerText))"
    )
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4]
    for count, row in enumerate(rows, 1):
        image = torch.zeros(1, 1, 1000, requires_grad=True)
        maps = [image]
        for _ in range(count):
            maps.append(F.conv1d(maps[-1], torch.ones(1, 1, k), None, s, 0, d))
        read = []
        for unit in (0, 1):
            (gradient,) = torch.autograd.grad(maps[-1][0, 0, unit], image, retain_graph=True)
            read.append(gradient[0, 0].nonzero().flatten())
        assert int(row[1]) == read[0].max() - read[0].min() + 1
        assert int(row[2]) == read[1].min() - read[0].min()
        side = 9
        for _ in range(count):
            side = max(0, (side - d * (k - 1) - 1) // s + 1) if side else 0
        assert row[3] == (str(side) if side else "does not fit")
    assert (page.locator("#x-growth").text_content() or "").endswith(f"= {rows[-1][1]} pixels")


def test_explorer_says_when_the_window_does_not_fit(browser: Browser, shown: Path) -> None:
    page = open_page(browser, shown)
    for name, value in {"size": 3, "kernel": 3, "dilation": 2}.items():
        _set(page, name, value)
    with pytest.raises(RuntimeError, match="can't be greater than actual input size"):
        F.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3), dilation=2)
    assert (
        "The window is 5 pixels wide and does not fit into 3 + 2·0 = 3 pixels"
        in page.locator("#x-formula").inner_text()
    )
    assert page.locator("#x-output td").count() == 0
    assert page.locator("#x-next").is_disabled()
    _set(page, "padding", 1)
    assert page.locator("#x-output td").count() == 1
    assert page.locator("#x-next").is_enabled()


def test_window_moves_by_keyboard_buttons_and_clicks(browser: Browser, shown: Path) -> None:
    page = open_page(browser, shown)
    step, now = page.locator("#x-step"), "#x-output td.now"
    index = "cell => [...cell.closest('table').querySelectorAll('td')].indexOf(cell)"
    step.press("ArrowRight")
    assert page.locator(now).evaluate(index) == 1
    step.press("End")
    assert page.locator(now).evaluate(index) == 24
    page.locator("#x-next").press("Enter")  # There is no further step.
    assert page.locator(now).evaluate(index) == 24
    page.locator("#x-back").click()
    assert page.locator(now).evaluate(index) == 23
    page.locator("#x-output td").nth(7).click()
    assert (step.input_value(), page.locator(now).evaluate(index)) == ("8", 7)


def test_play_goes_through_the_steps_and_stops(browser: Browser, shown: Path) -> None:
    page = open_page(browser, shown)
    page.clock.install()
    _set(page, "kernel", 5)
    _set(page, "size", 6)
    play = page.locator("#x-play")
    play.press("Enter")
    assert play.text_content() == "Pause"
    assert page.locator("#x-output td.later").count() == 3
    page.clock.run_for(600)
    assert page.locator("#x-step").input_value() == "2"
    page.clock.run_for(5000)
    assert page.locator("#x-step").input_value() == "4"
    assert play.text_content() == "Play"
    assert page.locator("#x-output td.later").count() == 0
    play.click()
    assert page.locator("#x-step").input_value() == "1"
    play.click()
    page.clock.run_for(5000)
    assert page.locator("#x-step").input_value() == "1"


def test_nothing_moves_for_readers_who_want_no_motion(browser: Browser, shown: Path) -> None:
    page = open_page(browser, shown, reduced_motion="reduce")
    assert not page.locator("#x-play").is_visible()
    animation = page.locator("picture img").first
    animation.scroll_into_view_if_needed()
    assert animation.evaluate("image => image.currentSrc").startswith("data:image/png")
    page = open_page(browser, shown)
    animation = page.locator("picture img").first
    animation.scroll_into_view_if_needed()
    assert animation.evaluate("image => image.currentSrc").startswith("data:image/gif")


def test_hand_made_options_are_checked() -> None:
    with pytest.raises(UserError, match="unknown part of the gallery 'x'"):
        gallery.Options(parts=("x",))
