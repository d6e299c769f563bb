"""The races of recipes, their settings, files and our half, and the calibration of the timing."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import airbench
import lightning as L
import pytest
import torch
import yaml
from torch import nn

from cnnbench.errors import UserError
from cnnbench.models import get_model
from cnnbench.timing.speed import KINDS, SpeedConfig
from cnnbench.verification import calibrate as calibrate
from cnnbench.verification import recipes as recipes

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.mark.parametrize(("goal", "depth", "steps_per_epoch"), [(94, 2, 25), (96, 3, 50)])
def test_recipes_for_a_gpu_have_airbenchs_network_and_its_images(
    goal: int, depth: int, steps_per_epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "cuda", lambda self: self)
    theirs = {94: airbench.make_net94, 96: airbench.make_net96}[goal]()
    settings = yaml.safe_load((EXPERIMENTS / f"cifar10_speednet_{goal}.yaml").read_text())
    data = recipes.make_data(settings)
    model = recipes.make_network(settings, data)
    assert len(model.features[2].others) == 3 * (depth - 1)  # type: ignore[index, arg-type]
    whitening_bias = 24  # which ours has not
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters()) - whitening_bias
    optimizer = model.make_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [
        settings["model"]["init_args"]["optimizer"]["init_args"][key] for key in ("lr", "matrix_lr", "vector_lr")
    ]
    assert 50_000 // data.batch_size == steps_per_epoch
    assert settings["trainer"]["max_epochs"] <= {94: 9.9, 96: 40.0}[goal]  # airbench's
    assert settings["trainer"]["benchmark"]
    cutout = data.augmentation.cutout if data.augmentation is not None else None
    assert cutout == {94: 0, 96: 12}[goal]


def test_our_half_trains_tests_and_says_how_long(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNBENCH_DATA", str(class_folders))
    settings = yaml.safe_load((EXPERIMENTS / "cifar10_speednet_94.yaml").read_text())
    settings["model"]["init_args"] |= {"widths": [8, 8, 8]}
    settings["data"]["init_args"] |= {"batch_size": 5}
    settings["trainer"] |= {"max_epochs": 2, "precision": "32-true"}
    kept = []
    monkeypatch.setattr(L.Trainer, "save_checkpoint", lambda *arguments, **options: kept.append(arguments))
    result = recipes.train_ours(settings, seed=0, device=torch.device("cpu"))
    assert (
        0 < result["steps_s"] < result["training_s"]
    )  # the latter with making the network and the Trainer's own start
    assert result["evaluation_s"] > 0
    assert kept == []  # airbench, which it is compared with, writes nothing
    assert result["accuracy"] in {n / 10 for n in range(11)}


def test_airbench_reads_the_files(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNBENCH_DATA", str(class_folders))
    label = recipes.write_airbench_files(tmp_path / "files")
    assert label.startswith("CIFAR-10 (JPEG copy), incomplete")
    loader = airbench.CifarLoader(str(tmp_path / "files" / "cifar10"), train=True, batch_size=4, gpu="cpu")
    assert loader.images.shape == (20, 3, 32, 32)
    assert sorted(loader.labels.tolist()) == sorted(2 * list(range(10)))
    of_class_3 = loader.images[loader.labels == 3]  # red 60, as the fixture paints it
    assert (255 * of_class_3[:, 0].float()).sub(60).abs().max() < 3


def test_the_first_of_each_does_not_count() -> None:
    numbers = iter(range(100))
    found = recipes.race(lambda: {"s": next(numbers)}, lambda: {"s": next(numbers)}, rounds=3)
    assert {name: len(results) for name, results in found.items()} == {"cnnbench": 3, "airbench": 3}
    assert not {0, 1} & {result["s"] for results in found.values() for result in results}


def test_there_is_no_race_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="CUDA GPU only"):
        recipes.main([])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_airbench_trains_on_the_gpu(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNBENCH_DATA", str(class_folders))
    recipes.write_airbench_files(tmp_path / "files")
    hyp = airbench.lib_airbench94.hyp["opt"]
    monkeypatch.setitem(hyp, "batch_size", 10)
    result = recipes.train_airbench(94, tmp_path / "files", torch.device("cuda", 0))
    assert 0 <= result["accuracy"] <= 1


def test_a_shortcut_goes_around_the_later_convolutions() -> None:
    torch.manual_seed(0)
    group = get_model("SpeedNet")(widths=(8, 8, 8), depth=3).features[2]
    x = torch.randn(2, 24, 8, 8)
    group.eval()
    for module in group.others:
        if isinstance(module, nn.Conv2d):
            module.weight.data.zero_()
    assert torch.equal(group(x), group.first(x))  # zeros pass batch norm and GELU as zeros


def test_a_calibration_counts_false_verdicts_and_finds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Times are planted: the copy is alike, the slower twin 5 % slower, one of four repetitions wrong in both,
    and one disturbed by other processes, which the spread of the ratio leaves out."""
    exact = {"estimate": 1.0, "low": 0.99, "high": 1.01}
    wrong, slow = {"estimate": 1.1, "low": 1.05, "high": 1.2}, {"estimate": 1.05, "low": 1.01, "high": 1.1}
    cases = iter(
        [(exact, slow, 2.0, 1.0), (exact, slow, 2.02, 2.0), (wrong, exact, 1.98, 3.0), (exact, slow, 4.0, 9.0)]
    )
    reasons = iter([[], ["latency drifted"], [], ["other processes kept 1.0 processors busy"]])

    def planted(config: object) -> dict[str, object]:
        copy, slower, ratio, usual = next(cases)
        return {
            "copy": dict.fromkeys(KINDS, copy), "slower": dict.fromkeys(KINDS, slower), "ratio": ratio,
            "usual": usual, "usual, as many calls": usual, "suspect": next(reasons),
        }  # fmt: skip

    def run_of(function: object, config: SpeedConfig) -> dict[str, object]:
        """A network a millisecond longer than the one before, with noise; VGG16 is twice as slow in the second run."""
        noise, found = random.Random(config.seed), {}
        for index, name in enumerate(calibrate.DEFAULT):
            ms = (index + 1.0) * (2 if name == "VGG16" and config.seed > 5 else 1)
            samples = {kind: [[ms * noise.gauss(1, 0.01)] for _ in range(6)] for kind in KINDS}
            samples["yardstick"] = [[1.0]] * 6
            keys = ("latency_ms_median", "inference_ms_median", "train_step_ms_median")
            found[name] = {
                **dict.fromkeys(keys, ms), "images_per_s": 1.0, "train_images_per_s": 1.0, "samples_ms": samples,
                "suspect": [], "conditions": {}, "cold_ms": {"latency": 9.0},
            }  # fmt: skip
        return found

    monkeypatch.setattr(calibrate, "repetition", planted)
    monkeypatch.setattr(calibrate, "in_process", run_of)
    assert calibrate.main(["--repetitions", "4", "--device", "cpu"]) == 1
    written = json.loads(Path("results/races/calibrate.json").read_text())
    figures = written["figures"]
    assert figures["false verdicts"] == pytest.approx(1 / 4)
    assert figures["planted slowdowns found"] == pytest.approx(3 / 4)
    spreads = figures["coefficients_of_variation"]
    # of 2.00, 2.02 and 1.98, by hand: 0.02 / 2, and 1.4826 * 0.02 / 2; of 1, 2, 3: 1 / 2, and 1.4826 * 1 / 2
    assert spreads["quiet"]["paired rounds"] == pytest.approx([0.01, 0.014826])
    assert spreads["quiet"]["one after the other"] == pytest.approx([0.5, 0.7413])
    assert spreads["all"]["paired rounds"][0] == pytest.approx(1.0 / 2.5, rel=1e-2)
    assert figures["suspect"] == 2
    # VGG16 takes part in 3 of 6 pairs of each kind, and its verdicts are those of the 4 networks that are false
    assert figures["ratios that agree"] == pytest.approx(1 / 2)
    assert figures["false verdicts of compare"] == pytest.approx(1 / 4)
    assert figures["verdicts of compare"] == 12 * (1 + 6)
    assert (written["verdict"], list(written["goals"].values())) == ("short", [False, False, True, False, False, False])
    printed = capsys.readouterr().out
    # Wilson's interval of 3 of 12, by hand: (3 + 1.9208 -+ 1.96 * sqrt(3 * 9 / 12 + 0.9604)) / (12 + 3.8415)
    assert "| verdicts on a copy (false) | 3 | 12 | 25.0% | 8.9% to 53.2% |" in printed
    assert "| verdicts of compare, one process each (false) | 18 | 72 | 25.0% |" in printed
    # by the spread that is assumed of one process a side, 1.96 * 0.07 * sqrt(2) = 19 %, only VGG16's doubling is found
    assert "| slowdowns of 5% found by compare, one process each | 18 | 72 | 25.0% |" in printed
    assert "| slowdowns of 5% found by compare, 6 processes each | 12 | 12 | 100.0% |" in printed
    assert "| ratios whose intervals meet, one process each | 54 | 108 | 50.0% |" in printed


def test_the_planted_slowdown_is_one_of_passes_and_of_steps() -> None:
    model = calibrate._Slower(nn.Linear(1, 1), 0.5, torch.device("cpu"))
    model.model.register_forward_hook(lambda *_: time.sleep(0.02))
    start = time.perf_counter()
    model.eval()(torch.zeros(1))
    assert time.perf_counter() - start >= 0.03
    optimizer = calibrate._SlowerAdamW(model)
    start = time.perf_counter()
    loss = model.train()(torch.zeros(1))
    assert time.perf_counter() - start < 0.03  # a step waits once, at its end
    loss.backward()
    time.sleep(0.02)
    optimizer.step()
    assert time.perf_counter() - start >= 0.06
