"""Recipes from files as rows of a benchmark: what is read, what is refused, and what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cnnbench.benchmark.plan import Plan, load_plan, save_plan
from cnnbench.benchmark.recipe_files import read_recipe, training_options
from cnnbench.cli import main
from cnnbench.record import load_records

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SGD = """
seed_everything: 0
model:
  class_path: LeNet5
  init_args:
    schedule: cosine
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9}}
data:
  class_path: Synthetic
  init_args: {batch_size: 16, train_images: 200, test_images: 30}
trainer: {max_epochs: 2}
"""
PLAIN = """
model: {class_path: cnnbench.LeNet5}
data: {class_path: Synthetic, init_args: {train_images: 200, test_images: 30}}
trainer: {max_epochs: 1}
"""


@pytest.fixture
def files() -> str:
    """Two recipes of one network; returns their names as the option takes them."""
    Path("sgd.yaml").write_text(SGD)
    Path("plain.yaml").write_text(PLAIN)
    return "sgd.yaml,plain.yaml"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_are_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.data in ("MNIST", "CIFAR10")
    options = training_options(recipe)
    if "_sgd" in path.stem:
        optimizer = options["optimizer"]([torch.nn.Parameter(torch.zeros(1))])
        assert isinstance(optimizer, torch.optim.SGD)
        assert optimizer.defaults["nesterov"]


def test_each_recipe_is_a_row_of_the_grid(files: str, few_rounds: None, without_pictures: None) -> None:
    assert main(["bench", "--configs", files, "--device=cpu", "--out=run", "--measures=quality"]) == 0
    records = {record.key: record for record in load_records([Path("run")])}
    assert sorted(records) == ["LeNet5-plain-Synthetic-seed0", "LeNet5-sgd-Synthetic-seed0"]
    sgd, plain = records["LeNet5-sgd-Synthetic-seed0"], records["LeNet5-plain-Synthetic-seed0"]
    # 180 training images beside the validation split make 11 whole batches of 16.
    assert (sgd.training["steps"], sgd.training["images"]) == (22, 352)
    assert sgd.training["optimizer"] == "SGD(lr=0.05, momentum=0.9)"
    assert sgd.training["peak_lr"] == 0.05
    assert sgd.config["epochs"] == 2
    assert plain.config["epochs"] == 1
    assert "AdamW" in plain.training["recipe"]
    assert plain.data["batch_size"] == 32


def test_lightnings_scheduler_takes_the_arguments_of_torchs() -> None:
    scheduler = "{class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {monitor: val/loss, patience: 3}}"
    Path("a.yaml").write_text(
        f"model: {{class_path: LeNet5, init_args: {{optimizer: SGD, lr_scheduler: {scheduler}}}}}"
    )
    options = training_options(read_recipe(Path("a.yaml")))
    built = options["lr_scheduler"](torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    assert (built.patience, built.monitor) == (3, "val/loss")


def test_a_resumed_run_reads_its_recipes_from_the_plan(files: str, without_pictures: None) -> None:
    command = ["bench", "--out=run", "--measures=quality"]
    assert main([*command, "--configs", files, "--device=cpu", "--epochs=1"]) == 0
    first = load_records([Path("run")])
    (Path("run/records") / f"{first[0].key}.json").unlink()
    assert main(["bench", "--resume", "--out=run"]) == 0
    again = {record.key: record for record in load_records([Path("run")])}
    assert again[first[0].key].confusion_matrix == first[0].confusion_matrix
    assert [recipe.epochs for recipe in load_plan(Path("run")).configs] == [None, None]


def test_a_recipe_trains_as_fit_does(files: str, without_pictures: None) -> None:
    cpu = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config=sgd.yaml", *cpu]) == 0
    (fitted,) = load_records([next(Path("results/runs").glob("*/*"))])
    options = ["--device=cpu", "--precision=32-true", "--out=run", "--measures=quality"]
    assert main(["bench", "--configs=sgd.yaml", *options]) == 0
    (benched,) = load_records([Path("run")])
    assert fitted.confusion_matrix == benched.confusion_matrix
    for key in ("steps", "images", "epochs", "recipe", "peak_lr"):
        assert fitted.training[key] == benched.training[key]


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ("max_steps: 15, gradient_clip_val: 0.01", ", gradients clipped to 0.01 (norm)"),
        ("max_epochs: 2, max_steps: 15, gradient_clip_val: 1, gradient_clip_algorithm: value", "clipped to 1 (value)"),
    ],
)
def test_clipping_and_steps_of_a_recipe_are_those_of_fit(
    trainer: str, words: str, without_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("clipped.yaml").write_text(SGD.replace("max_epochs: 2", trainer))
    # As on a GPU with short steps, of which several would share a call.
    monkeypatch.setattr("cnnbench.benchmark.run._Run._steps_per_call", lambda *_: 5)
    cpu = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config=clipped.yaml", *cpu]) == 0
    (fitted,) = load_records([next(Path("results/runs").glob("*/*"))])
    options = ["--device=cpu", "--precision=32-true", "--out=run", "--measures=quality"]
    assert main(["bench", "--configs=clipped.yaml", *options]) == 0
    (benched,) = load_records([Path("run")])
    assert fitted.confusion_matrix == benched.confusion_matrix
    assert benched.training["steps"] == 15
    assert benched.training["steps_per_call"] is None
    assert benched.training["recipe"].endswith(words)
    for key in ("budget_s", "epochs", "max_steps"):
        assert fitted.config[key] == benched.config[key]


def test_a_budget_for_all_takes_the_place_of_steps(without_pictures: None) -> None:
    Path("a.yaml").write_text(SGD.replace("max_epochs: 2", "max_steps: 15, gradient_clip_val: 1"))
    assert main(["bench", "--configs=a.yaml", "--device=cpu", "--out=run", "--measures=quality", "--epochs=1"]) == 0
    (recipe,) = load_plan(Path("run")).configs
    assert (recipe.epochs, recipe.max_steps, recipe.gradient_clip_val) == (None, None, 1.0)
    (record,) = load_records([Path("run")])
    # 180 training images beside the validation split make 11 whole batches of 16.
    assert record.training["steps"] == 11
    assert main(["bench", "--resume", "--out=run"]) == 0


def test_a_plan_from_before_clipping_is_read() -> None:
    newer = ("max_steps", "gradient_clip_val", "gradient_clip_algorithm")
    Path("a.yaml").write_text(PLAIN)
    recipe = read_recipe(Path("a.yaml"))
    assert recipe.settings().keys() == {"arguments", "data", "data_options", "epochs"}
    plan = Plan(
        (), ("Synthetic",), (0,), ("quality",), 9.0, None, "cpu", "32-true", "", 32, 128, 500, configs=(recipe,)
    )
    save_plan(Path(), plan)
    stored = json.loads(Path("plan.json").read_text())
    for table in (stored, *stored["configs"]):
        for name in newer:
            table.pop(name, None)
    del stored["checksum"]
    Path("plan.json").write_text(json.dumps(stored))
    assert load_plan(Path()) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: LeNet5\ntrainer: {accumulate_grad_batches: 2}",
            "accumulate_grad_batches is nothing that bench can set",
        ),
        ("model: LeNet5\ntrainer: {gradient_clip_val: much}", "gradient_clip_val much must be a positive number"),
        ("model: LeNet5\ntrainer: {gradient_clip_val: -1}", "gradient_clip_val -1 must be a positive number"),
        ("model: LeNet5\ntrainer: {gradient_clip_algorithm: norms}", "did you mean 'norm'"),
        ("model: LeNet5\ntrainer: {max_steps: 0}", "max_steps 0 must be a whole number"),
        (
            "model: {class_path: LeNet5, init_args: {steps_per_call: 5}}\ntrainer: {gradient_clip_val: 1}",
            "gradient_clip_val 1.0 does not go with model.steps_per_call",
        ),
        ("model: LeNet5\nckpt_path: a.ckpt", "ckpt_path is nothing that bench can set"),
        ("model: LeNet5\ncheckpoints: {}", "checkpoints is nothing that bench can set"),
        ("model: LeNet5\ntrainer: {unheard: 1}", "trainer.unheard is nothing that bench can set"),
        ("data: MNIST", "model.class_path is missing"),
        ("model: LeNet6", "did you mean 'LeNet5'"),
        ("model: {class_path: LeNet5, init_args: {image_size: 9}}", "model.image_size is decided by the data"),
        ("model: {class_path: LeNet5, init_args: {warmup: much}}", "warmup 'much'"),
        ("model: {class_path: LeNet5, init_args: {optimizer: SGDD}}", "is no class of torch.optim"),
        ("model: {class_path: LeNet5, init_args: {optimizer: os.system}}", "is no class of torch.optim"),
        (
            "model: {class_path: LeNet5, init_args: {optimizer: SGD, lr_scheduler: lightning.pytorch.cli.Trainer}}",
            "'lightning.pytorch.cli.Trainer' is no class of torch.optim.lr_scheduler",
        ),
        ("model: {class_path: LeNet5, init_args: {optimizer: {class_path: SGD, init_args: {lrr: 1}}}}", "mean 'lr'"),
        ("model: LeNet5\ndata: {class_path: MNIST, init_args: {batch_sizes: 3}}", "mean 'batch_size'"),
        ("model: LeNet5\ntrainer: {max_epochs: 0}", "max_epochs 0 must be a whole number"),
        ("model: {class_path: External, init_args: {name: 'mynets:net'}}", "whose code lies outside cnnbench"),
        ("model: [1]", "must be a table"),
    ],
)
def test_what_a_benchmark_cannot_do_is_refused(text: str, message: str, capsys: pytest.CaptureFixture) -> None:
    Path("a.yaml").write_text(text)
    assert main(["bench", "--configs=a.yaml", "--device=cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not Path("results").exists()


def test_options_that_the_files_set_are_refused_beside_them(files: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "--configs", files, "--recipe=sgd"]) == 2
    assert "--recipe and --configs exclude each other" in capsys.readouterr().err
