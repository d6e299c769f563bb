"""The command `cnnbench explain`: tools, options, pictures, JSON."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from cnnbench import explain
from cnnbench.checkpoints import read_checkpoint
from cnnbench.cli import main
from cnnbench.commands import gallery, gallery_network
from cnnbench.errors import UserError
from cnnbench.explain.gallery import PARTS, Part, Trained, chosen_parts, page
from cnnbench.explain.options import TOOLS
from cnnbench.models.speednet import SpeedNet
from cnnbench.network import get_network


def test_every_tool_is_a_module_and_says_how_it_is_used(capsys: pytest.CaptureFixture) -> None:
    modules = {p.stem for p in Path(explain.__file__).parent.glob("*.py")}
    assert {name.replace("-", "_") for name in TOOLS} <= modules
    assert main(["explain"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in TOOLS)
    for name in TOOLS:
        with pytest.raises(SystemExit) as ended:
            main(["explain", name, "--help"])
        assert ended.value.code == 0
        assert f"cnnbench explain {name} " in capsys.readouterr().out


def test_tools_and_options_are_shown_without_torch() -> None:
    code = "import sys; from cnnbench.cli import main; main(['explain']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kernel"], "did you mean 'kernels'"),
        (["kernels", "--sizes", "3"], "did you mean '--size'"),
        (["kernels", "--size", "4"], "must be odd"),
        (["kernels", "--kernels", "sobel"], "unknown filter 'sobel'"),
        (["kernels", "nothing.png"], "image 'nothing.png' does not exist"),
        (["kernels", "--size", "1"], "size 1 of a cross is too small"),
        (["parameters", "--out", "/dev/null"], "'/dev/null' is a file; name a folder with --out"),
        (["parameters", "--out", "/dev/null/sub"], "'/dev/null' is a file; name a folder with --out"),
        (["parameters", "--out", "/proc/none"], "cannot write to '/proc/none'"),
        (["convolution", "--padding", "30"], "padding 30 gives 65x65 places"),
        (
            ["convolution", "--sizes", "8,16", "--kernels", "3,31"],
            "kernel 31 of the race is larger than its largest image",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["explain", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not Path("results").exists()


def test_json_has_the_numbers_and_the_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.effect_noise((40, 30), 50).save(tmp_path / "noise.png")
    assert main(["explain", "kernels", str(tmp_path / "noise.png"), "--out", "pictures", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [p["file"] for p in document["pictures"]] == ["pictures/kernels.png"]
    assert document["kernels"]["sobel_x"] == [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    with Image.open("pictures/kernels.png") as image:
        assert image.format == "PNG"
    assert len(list(Path("pictures").iterdir())) == 1


def test_captions_are_printed_and_in_the_document(capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "parameters"]) == 0
    assert "Four layers that make the same maps" in capsys.readouterr().out
    assert main(["explain", "parameters", "--json"]) == 0
    (picture,) = json.loads(capsys.readouterr().out)["pictures"]
    assert picture["file"] == "results/explain/parameters.png"
    assert picture["caption"].startswith("Four layers")


def test_frames_become_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), 100 * n) for n in range(3)]
    path = explain.write_picture(explain.Picture("moving", "", "", frames), tmp_path)
    with Image.open(path) as image:
        assert (path.name, image.n_frames) == ("moving.gif", 3)


def test_a_picture_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    class Broken(Figure):
        def savefig(self, file: object, **options: object) -> None:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        explain.write_picture(explain.Picture("broken", "", "", Broken()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_columns_of_numbers_are_recognised() -> None:
    table = explain.Table("", ("", "a", "b", "c"), [("3", "1,000", "x", "-"), ("4", "-", "2", "-")])
    assert [table.numeric(i) for i in range(4)] == [False, True, False, False]
    for cell in (
        "1.57",
        "-3",
        "+0.31",
        "2.2e-15",
        "61.7k",
        "5.1%",
        "3x32x32",
        "8.6 x 8.7",
        "0.6 to 1.95",
        "2.1 (suspect)",
    ):
        assert explain.Table("", ("", "a"), [("", cell)]).numeric(1), cell
    for cell in ("3 to 32 channels", "5 and 8", "3·3·3·32", "5x5 conv", "x", "3rd"):
        assert not explain.Table("", ("", "a"), [("", cell)]).numeric(1), cell


def test_a_checkpoint_gives_back_the_network_and_its_data() -> None:
    size = ["--data.train_images=20", "--data.image_size=28", "--data.in_channels=1", "--data.batch_size=10"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    model = "--model=SimpleCNN(convs=5x5,batch_norm=True)"
    assert main(["fit", model, "--data=Synthetic", *size, *quiet]) == 0
    (path,) = Path("results/runs").glob("*/*/checkpoints/last.ckpt")
    model, data, options = read_checkpoint(path)
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert (type(model).__name__, model.image_size, model.in_channels, data) == ("SimpleCNN", 28, 1, "Synthetic")
    given = {"train_images": 20, "image_size": 28, "in_channels": 1, "batch_size": 10, "val_fraction": 0.1}
    assert given.items() <= options.items()
    assert "data_dir" not in options
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    torch.save(
        {"state_dict": {}, **{k: v for k, v in torch.load(path).items() if k == "hyper_parameters"}}, "other.ckpt"
    )
    with pytest.raises(UserError, match="are not those of SimpleCNN"):
        read_checkpoint(Path("other.ckpt"))
    Path("text.ckpt").write_text("nothing")
    with pytest.raises(UserError, match=r"'text.ckpt' is not a checkpoint"):
        read_checkpoint(Path("text.ckpt"))


def test_the_gallery_shows_every_tool_with_its_command() -> None:
    assert [part.command.split()[0] for part in PARTS] == list(TOOLS)


def test_the_gallery_trains_on_few_photos_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(30):
            Image.new("RGB", (70, 70), (4 * index, 0, 0)).save(tmp_path / "photos" / name / f"{index}.png")
    folder = f"folder:{tmp_path / 'photos'}"
    # Of 60 images, 12 are the test set and 5 the validation split; 43 // 4 = 10 steps.
    options = gallery._recipe(gallery.Options(data=folder))
    assert {"--data.image_size=64", "--data.batch_size=4"} <= set(options)
    assert "--data.image_size=16" in gallery._recipe(gallery.Options(data=folder, image_size=16))
    assert not [word for word in gallery._recipe(gallery.Options(data="Synthetic")) if word.startswith("--data.")]
    with pytest.raises(UserError, match="--image_size is decided by the file of --config"):
        gallery.Options(config=Path("x.yaml"), image_size=16)


def test_the_gallery_names_what_was_trained() -> None:
    options = ["--data.train_images=20", "--data.image_size=28", "--data.in_channels=1", "--trainer.max_epochs=1"]
    fit = ["--model=SimpleCNN(convs=5x5,batch_norm=True)", "--data=Synthetic", *options, "--out=runs"]
    trained = gallery_network.describe_training(gallery.train(fit, Path("runs")), shlex.join(["cnnbench", "fit", *fit]))
    assert trained.model == "SimpleCNN(batch_norm=True,convs=5x5)"
    assert trained.command.startswith("cnnbench fit '--model=SimpleCNN(convs=5x5,batch_norm=True)' --data=Synthetic")
    for form in ("SpeedNet", "SpeedNet(depth=3)"):
        assert gallery_network.written_name(get_network(form).build()) == form
    assert gallery_network.written_name(SpeedNet(widths=[32, 128, 128])) == "SpeedNet"
    assert "It was trained for 1 epoch on 18 images of Synthetic" in " ".join(trained.history)
    (part,) = [part for part in chosen_parts(None, blurpool=True) if part.title == "Shifts"]
    words = trained.words(part)
    assert words[:5] == [
        "equivariance", "SimpleCNN(batch_norm=True,dropout=0.0)", "--data", "Synthetic", "--image_size=28"
    ]  # fmt: skip
    assert words[5:] == ["--in_channels=1", "--train_steps", "250", "--compare", str(trained.checkpoint)]


def test_the_page_needs_nothing_else() -> None:
    found = explain.Explanation(
        {},
        [explain.Table("Rows", ("a",), [("<b>",)])],
        [explain.Picture("p", "Title", "Caption", Figure())],
        ["Remark"],
    )
    trained = Trained(
        "SimpleCNN(convs=5x5)", "CIFAR-10 (JPEG copy)", Path("a b/last.ckpt"), ["CIFAR10"], command="cnnbench fit"
    )
    parts = [
        Part("One", "Why?", "kernels CHECKPOINT"),
        Part("Two", "How?", "equivariance A --data DATA --train_steps 2"),
    ]
    text = page([(part, found) for part in parts], trained)
    for words in (
        "Why?", "Title", "Caption", "Remark", "&lt;b&gt;", "SimpleCNN(convs=5x5)</span> on CIFAR-10 (JPEG copy)",
        "explain kernels &#39;a b/last.ckpt&#39;", "--data CIFAR10", "Part 2 trains another network",
    ):  # fmt: skip
        assert words in text
    assert "data:image/webp;base64," in text
    assert text.count("<script") == 1
    assert all(link.startswith(("data:", "#")) for link in re.findall(r'(?:src|href)="([^"]*)', text))
