"""What a person meets in a terminal: names refused at once, signs of life, widths, colours, completion, and signals."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_record
from scipy.stats import binomtest

from cnnbench import catalog, console, progress
from cnnbench.benchmark.display import LiveDisplay
from cnnbench.cli import main
from cnnbench.commands import count, fit_help
from cnnbench.commands.fit_arguments import check_names as names_of_fit
from cnnbench.commands.fit_outcome import outcome_table
from cnnbench.commands.known_names import check_words
from cnnbench.console import note
from cnnbench.data import all_data, get_bench_data
from cnnbench.errors import UserError
from cnnbench.models import all_models
from cnnbench.network import get_network
from cnnbench.record import write_record

SMALL = ["--data.train_images=200", "--data.test_images=50", "--data.in_channels=1", "--data.batch_size=32"]
FIT = ["fit", "--model=LeNet5", "--data=Synthetic", *SMALL, "--trainer.accelerator=cpu"]
PACKAGE = Path(__file__).parent.parent


def _python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, which has imported nothing yet."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


MISSPELT = [
    "count LeNett5",
    "count LeNet5 VGG(batch_norm=True)",
    "speed vgg16",
    "bench --models LeNet5,LeNett5",
    "bench --data MNISTT",
    "search --model LeNett5",
    "search --model LeNet5 --data Cifar",
    "explain sizes LeNett5",
    "explain filters LeNet5 --data CIFAR",
    "explain gallery --data CIFAR",
    "fit --model LeNett5 --data MNIST",
    "fit --model LeNet5 --data=mnist",
    "validate --model LeNett5 --data MNIST",
    "test --model=VGG(batch_norm=true) --data MNIST",
    "predict --model LeNett5 --data MNIST",
    "speed LeNet5 --mode eagr",
    "speed LeNet5 --mode eager,compiled",
    "speed LeNet5 --precision bf16",
    "speed LeNet5 --memory_format channel_last",
    "speed LeNet5 --engine torch,onxruntime",
    "speed LeNet5 --device gpu",
    "bench --engine onxruntime",
    "bench --engine openvino --engine_precision in8",
    "bench --precision bf16-mix",
    "bench --measures complexity,spede",
    "bench --device cud",
]


def test_a_misspelt_name_is_refused_without_torch() -> None:
    code = (
        "import sys\n"
        "from cnnbench.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    assert main(line.split()) == 2, line\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    done = _python(code, *MISSPELT)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(MISSPELT)
    assert all("; did you mean '" in line and line.startswith("cnnbench: unknown ") for line in lines)


def test_a_misspelt_name_has_the_words_of_the_code_that_imports_it(capsys: pytest.CaptureFixture) -> None:
    for line, look_up in (
        ("count LeNett5", lambda: get_network("LeNett5")),
        ("bench --data MNISTT", lambda: get_bench_data("MNISTT")),
        ("fit --model LeNett5", lambda: names_of_fit(["fit", "--model", "LeNett5"])),
        ("fit --data mnist", lambda: names_of_fit(["fit", "--data", "mnist"])),
    ):
        with pytest.raises(UserError) as caught:
            look_up()
        assert main(line.split()) == 2
        assert capsys.readouterr().err == f"cnnbench: {caught.value}\n"


def test_names_of_the_catalogue_are_those_of_the_classes() -> None:
    assert catalog.listed_names("models") == list(all_models())
    assert catalog.listed_names("data") == list(all_data())


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "torchvision:resnet18", "--data", "folder:/tmp/a"],
        ["--model=External", "--model.name=timm:x", "--data", "ImageFolder"],
        ["--model", "my.module.Net", "--data", "net.yaml"],
        ["--model", '{"class_path": "LeNett5"}'],
        ["--model", "VGG16(batch_norm=true)", "--data", "CIFAR10(image_size=64)"],
    ],
)
def test_names_of_other_forms_are_left_to_the_code_that_imports_them(words: list[str]) -> None:
    check_words(words)


def test_with_a_new_module_no_name_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = json.loads(catalog.FILE.read_text())
    kept["modules"]["vgg"] = "another"
    Path("old.json").write_text(json.dumps(kept))
    monkeypatch.setattr(catalog, "FILE", Path("old.json").absolute())
    assert catalog.listed_names("models") is None
    check_words(["--model", "LeNett5"])
    assert "VGG16" not in catalog.stored_counts()
    assert "LeNet5" in catalog.stored_counts()
    kept["counting"] = "another"
    Path("old.json").write_text(json.dumps(kept))
    os.utime("old.json", (1, 1))
    assert catalog.stored_counts() == {}


def _count_options(*models: str, **given: object) -> count.Options:
    return count.Options(models=models, **given)  # type: ignore[arg-type]


FORMS = [{}, {"image_size": 224, "num_classes": 1000}]


@pytest.mark.parametrize("name", ["LeNet5", "GoogLeNet", "ResNet20", "SpeedNet"])
def test_a_stored_count_is_that_of_counting(name: str) -> None:
    for form in FORMS:
        options = _count_options(name, **form)
        assert count._stored(options) == json.loads(json.dumps(count._counted(options)[0]))


@pytest.mark.slow
def test_every_stored_count_is_that_of_counting() -> None:
    for name in all_models():
        test_a_stored_count_is_that_of_counting(name)


@pytest.mark.parametrize(
    "given",
    [
        {"image_size": 64},
        {"image_size": 0},
        {"num_classes": 7},
        {"in_channels": 1},
        {"per_layer": True},
        {"no_training": True},
        {"batch_size": 8},
    ],
)
def test_a_count_of_another_form_is_not_stored(given: dict[str, object]) -> None:
    assert count._stored(_count_options("LeNet5", **given)) is None


def test_a_count_of_other_names_is_not_stored() -> None:
    assert count._stored(_count_options("LeNet5", "LeNet5")) is None
    assert count._stored(_count_options("LeNet5", "VGG16(batch_norm=True)")) is None
    assert len(count._stored(_count_options("all")) or ()) == len(all_models())


def test_count_of_the_zoo_needs_no_torch() -> None:
    code = "import sys\nfrom cnnbench.cli import main\nmain(['count', 'VGG16'])\nassert 'torch' not in sys.modules\n"
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert "14,728,266" in done.stdout
    assert "313,201,664" in done.stdout


@pytest.fixture
def quick_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let signs of life come after a tenth of a second."""
    monkeypatch.setattr(progress, "SILENT_S", 0.1)


def test_a_silent_command_says_what_it_does(quick_signs: None, capsys: pytest.CaptureFixture) -> None:
    with progress.watching("running cnnbench x"):
        time.sleep(0.35)
        with progress.doing(lambda: "drawing", 3) as step:
            step.advance()
            time.sleep(0.35)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    # The command has taken 0.7 s by the last line, which rounds to a second.
    assert {re.sub(r"^\[0:0[01]\]", "[0:00]", line) for line in lines} == {
        "[0:00] still running cnnbench x",
        "[0:00] still drawing, 1 of 3",
    }
    assert 4 <= len(lines) <= 8
    time.sleep(0.25)
    assert capsys.readouterr().err == ""  # the thread has ended
    assert not [thread for thread in threading.enumerate() if thread.name == "signs of life"]


def test_a_command_that_prints_is_left_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(progress, "SILENT_S", 0.4)
    with progress.watching("x"):
        for _ in range(6):
            note("line")
            time.sleep(0.1)
    assert capsys.readouterr().err == "line\n" * 6


def test_the_thread_does_not_wake_while_something_is_timed(
    quick_signs: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    looks = []
    watched = progress._show_if_due
    monkeypatch.setattr(
        progress, "_show_if_due", lambda watch: looks.append(threading.current_thread()) or watched(watch)
    )
    with progress.watching("x"), progress.doing("timing"):
        time.sleep(0.05)
        for _ in range(3):
            with progress.hushed():
                looks.clear()
                time.sleep(0.3)
                assert looks == []
                assert capsys.readouterr().err == ""
            # What is due is printed between two rounds, by the thread that times.
            assert looks[0] is threading.main_thread()
            assert re.fullmatch(r"\[0:0\d\] still timing\n", capsys.readouterr().err)


def test_rounds_are_timed_while_the_thread_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnbench.timing import speed

    seen = []
    whole = speed._take_round
    monkeypatch.setattr(
        speed, "_take_round", lambda *arguments: seen.append(progress._watch.asleep) or whole(*arguments)
    )
    network = get_network("LeNet5")
    subject = speed.Subject(network.build, network.image_shape, 10, kinds=("latency",))
    config = speed.SpeedConfig(
        torch.device("cpu"), "32-true", 2, 2, rounds=3, fewest_rounds=3, warmup_s=0.0, block_s=0.0
    )
    with progress.watching("x"):
        speed.measure_speed({"LeNet5": subject}, config)
    assert seen == [True] * 3


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_the_next_line_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "FIRST_BAR_S", 0.0)
    monkeypatch.setattr(progress, "BAR_S", 0.05)
    with progress.watching("x"):
        with progress.doing("drawing", 4) as step:
            step.advance()
            time.sleep(0.2)
        note("done")
    text = terminal.getvalue()
    assert f"\r\x1b[K[0:00] [{'#' * 6}{'-' * 18}] drawing, 1 of 4" in text
    assert "\r\x1b[Kdone\n" in text
    assert "\n" not in text.partition("done")[0]


def test_the_bar_of_a_benchmark_replaces_the_line_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "FIRST_BAR_S", 0.0)
    monkeypatch.setattr(progress, "BAR_S", 0.05)
    with progress.watching("x"):
        time.sleep(0.1)
        with LiveDisplay() as display:
            display.expect("speed", 20)
            display.update("speed", 0.5, "round 1")
    text = terminal.getvalue()
    assert "[0:00] x" in text
    assert "[0:00] speed" in text
    # A code that removes a line would be seen if it had been printed as text.
    assert "\\x" not in text


def test_all_lines_of_progress_have_the_time_since_the_command_began(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_run", lambda watch: None)  # the thread, in whose place this test looks
    with progress.watching("running cnnbench bench"):
        now[0] += 63
        # The display and the step begin a minute after the command, whose clock they show nevertheless.
        with LiveDisplay() as display, progress.doing("drawing", 3):
            now[0] += 2
            display.note("LeNet5: measured")
            progress._show_if_due(progress._watch)  # nothing, since a line has just been printed
            now[0] += 61
            progress._show_if_due(progress._watch)
    assert capsys.readouterr().err.splitlines() == ["[1:05] LeNet5: measured", "[2:06] still drawing, 0 of 3"]


def test_a_plain_terminal_gets_lines(quick_signs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with console.plain_output(), progress.watching("x"):
        time.sleep(0.25)
    assert set(terminal.getvalue().splitlines()) == {"[0:00] still x"}
    assert not console.is_plain()


def test_a_bar_of_a_training_is_not_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert main([*FIT, "--trainer.max_epochs=1"]) == 0
    assert "Epoch 0" in terminal.getvalue()
    assert capsys.readouterr().out == ""
    with console.plain_output():
        terminal.truncate(0)
        assert main([*FIT, "--trainer.max_epochs=1"]) == 0
    assert "Epoch 0" not in terminal.getvalue()
    assert "\r" not in terminal.getvalue()


def test_the_outcome_of_a_test_has_the_interval_of_scipy() -> None:
    counts = [[90, 10], [7, 93]]
    low, high = binomtest(183, 200).proportion_ci(method="wilson")
    table = outcome_table("LeNet5, MNIST", "test", {"test/accuracy": 0.915, "test/loss": 0.031122334}, counts)
    names, values = (list(column.cells) for column in table.columns)
    assert names == ["accuracy", "95 % interval", "images", "loss"]
    assert values == ["91.50%", f"{low:.2%} to {high:.2%}", "200", "0.03112"]
    other = outcome_table("Mine", "val", {"val/f1": 0.123456}, None)
    assert [list(column.cells) for column in other.columns] == [["val/f1"], ["0.1235"]]


STOPPED = ["list", "count LeNet5 --image_size 40", "report records.jsonl", "explain sizes LeNet5", "fit --help all"]
"""Commands that keep nothing; others have tests of their own, since what they keep decides how they go on."""


@pytest.mark.parametrize("line", STOPPED)
def test_an_interrupted_command_says_how_to_go_on(line: str) -> None:
    code = (
        "import os, signal, sys, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cnnbench import cli\n"
        "class Module:\n"
        "    def __getattr__(self, name):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "cli._module_of = lambda name: Module()\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    done = _python(code, *line.split())
    assert done.returncode == 130
    assert done.stderr == "cnnbench: stopped by SIGINT; nothing was kept; start it again\n"


def test_ctrl_c_during_the_first_imports_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from cnnbench.__main__ import main as start

    class Interrupted:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "cnnbench.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "cnnbench.cli")
    monkeypatch.setattr("sys.meta_path", [Interrupted(), *sys.meta_path])
    assert start() == 130
    assert capsys.readouterr().err == "cnnbench: stopped by SIGINT; nothing was kept; start it again\n"


@pytest.mark.parametrize(
    "line", ["list", "list --data", "count LeNet5 VGG16", "--plain", "explain --plain", "list --help", "compare a a"]
)
def test_plain_output_has_no_lines_and_no_colours(line: str, capsys: pytest.CaptureFixture) -> None:
    write_record(Path("a.json"), make_record())
    words = line.replace("a a", "a.json a.json").split()
    with contextlib.suppress(SystemExit):
        assert main([*words, "--plain"]) == 0
    out = capsys.readouterr().out
    assert out
    assert out.isascii()
    assert not console.is_plain()


def test_plain_output_of_a_terminal_has_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["count", "LeNet5", "--plain"]) == 0
    assert "\x1b" not in terminal.getvalue()
    assert terminal.getvalue().isascii()


@pytest.mark.parametrize("name", list(fit_help.OPTIONS))
def test_the_help_of_a_training_is_short(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 26
    assert max(map(len, lines)) <= 120
    assert lines[-1].startswith(f"example: cnnbench {name} --")


def test_the_options_of_the_short_help_are_those_of_the_parser(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model=LeNet5", "--data=MNIST", "--help", "all"])
    whole = capsys.readouterr().out
    assert len(whole.splitlines()) > 300
    for option, _ in fit_help.OPTIONS["fit"]:
        flag = option.split()[0]
        # The arguments of a class are listed with the class.
        if not flag.startswith(("--model.", "--data.")):
            assert f"  {flag} " in whole or f", {flag} " in whole or f"{flag}{{" in whole, flag
    assert "--model.help" in whole
    for room, classes in (("data", all_data()), ("model", all_models())):
        for option, _ in fit_help.OPTIONS["fit"] + fit_help.OPTIONS["test"]:
            if option.startswith(f"--{room}."):
                argument = option.split()[0].partition(".")[2]
                bases = [base for cls in classes.values() for base in cls.__mro__]
                assert any(argument in inspect.signature(base).parameters for base in bases), option


def test_the_short_help_needs_no_torch() -> None:
    code = "import sys\nfrom cnnbench.cli import main\nmain(['fit', '--help'])\nassert 'torch' not in sys.modules\n"
    done = _python(code)
    assert done.returncode == 0, done.stderr


def _listed(capsys: pytest.CaptureFixture, *words: str) -> dict[str, dict[str, Any]]:
    room = "data" if "--data" in words else "models"
    assert main(["list", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)[room]


def test_list_shows_what_meets_all_conditions(capsys: pytest.CaptureFixture) -> None:
    every = _listed(capsys)
    few = _listed(capsys, "--where", "params<5M,year>=2015", "--sort", "macs")
    expected = [n for n, e in every.items() if e["params_32"] < 5_000_000 and (e["year"] or 0) >= 2015]
    assert list(few) == sorted(expected, key=lambda name: every[name]["macs_32"])
    good = _listed(capsys, "--where", "reference>99.5")
    assert set(good) == {n for n, e in every.items() if any(m["accuracy"] > 99.5 for m in e["measured"])}
    assert 0 < len(good) < len(every)
    published = _listed(capsys, "--where=published>=93,published<94.5")
    assert {"ResNet110"} <= set(published)
    assert "AlexNet" not in published


@pytest.mark.parametrize(("sort", "key"), [("params", "params_32"), ("macs", "macs_32"), ("year", "year")])
def test_list_sorts_by_a_figure(sort: str, key: str, capsys: pytest.CaptureFixture) -> None:
    values = [entry[key] for entry in _listed(capsys, "--sort", sort).values()]
    known = [value for value in values if value is not None]
    assert values == sorted(known) + [None] * (len(values) - len(known))


def test_list_sorts_by_accuracy_on_one_data_set(capsys: pytest.CaptureFixture) -> None:
    entries = _listed(capsys, "--sort", "accuracy").values()
    of_cifar = [[m["accuracy"] for m in e["measured"] if m["data"].startswith("CIFAR-10")] for e in entries]
    first = [values[0] for values in of_cifar if values]
    assert len(first) > 3
    assert of_cifar == [[value] for value in sorted(first, reverse=True)] + [[]] * (len(of_cifar) - len(first))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--where", "prams<5M"], "unknown figure of --where 'prams'; did you mean 'params'? valid: params, macs"),
        (["--where", "params"], "where 'params' is no condition; write for example --where 'params<5M'"),
        (["--where", "params<many"], "where 'params<many': 'many' is not a number; write for example 5M"),
        (["--sort", "size"], "unknown sort 'size'; valid: name, params, macs, accuracy, year"),
        (["--data", "--sort", "params"], "unknown sort 'params'; valid: name, classes, size"),
        (["--data", "--where", "params<5"], "unknown figure of --where 'params'; valid: classes, channels, size"),
    ],
)
def test_list_refuses_what_it_cannot_read(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", *words]) == 2
    text = capsys.readouterr().err
    assert message.split(";")[0] in text
    assert text.count("\n") == 1


def test_list_says_that_nothing_meets_the_conditions(capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "--where", "params<1"]) == 0
    assert capsys.readouterr().out == "nothing meets params<1\n"
    assert list(_listed(capsys, "--data", "--where", "classes=10")) == ["CIFAR10", "MNIST", "Synthetic"]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_list_breaks_no_word_and_says_what_it_leaves_out(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("cnnbench.commands.list.PIPE_WIDTH", width)
    assert main(["list", "--plain"]) == 0
    table, _, rest = capsys.readouterr().out.partition("32: 3x32x32")
    lines = table.splitlines()
    every = ("Year", "Key idea", "Depth", "Params 32", "MACs 32", "Params 224", "MACs 224", "Published", "Reference")
    for title in every:
        assert (title in lines[0]) != (title in lines[-1]), title
    if "Left out" in lines[-1]:
        lines.pop()
    assert max(map(len, lines)) <= width
    # No row is longer than its accuracies: a line for each of at most three.
    assert len([line for line in lines if line[:1].strip()]) == len(all_models()) + 1
    if "Key idea" not in lines[0]:
        assert len(lines) <= 2 * len(all_models())
    if "Reference" in lines[0]:
        assert "86.4 CIFAR-10*" in table
    assert "* is a JPEG copy" in rest


@pytest.fixture(scope="module")
def completes() -> Callable[[str], set[str]]:
    """Return a function that lets bash complete a command line."""
    script = _python("import sys\nfrom cnnbench.cli import main\nsys.exit(main(['completion', 'bash']))")
    assert script.returncode == 0, script.stderr
    name = re.search(r"complete .*-F (\w+) cnnbench", script.stdout)
    assert name is not None

    def complete(line: str) -> set[str]:
        words = line.split(" ")
        program = (
            f"{script.stdout}\nCOMP_WORDS=({' '.join(shlex.quote(word) for word in words)})\n"
            f"COMP_CWORD={len(words) - 1}\n{name[1]}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60, check=True)
        assert done.stderr == ""
        return set(done.stdout.split())

    return complete


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cnnbench co", {"compare", "completion", "count"}),
        ("cnnbench count LeN", {"LeNet5"}),
        ("cnnbench count LeNet5 ResNet1", {"ResNet18", "ResNet101", "ResNet110", "ResNet152"}),
        ("cnnbench bench --models Mob", {"MobileNetV1", "MobileNetV2"}),
        ("cnnbench bench --data M", {"MNIST"}),
        ("cnnbench bench --laun", {"--launcher", "--launcher_options"}),
        ("cnnbench fit --model AlexN", {"AlexNet"}),
        ("cnnbench fit --test ", {"last", "best", "none"}),
        ("cnnbench fit --trainer.max_", {"--trainer.max_epochs", "--trainer.max_time"}),
        ("cnnbench test --weights ", {"reference"}),
        ("cnnbench count VGG16 --optimizer sg", {"sgd", "sgd-momentum"}),
        ("cnnbench explain sep", {"separable"}),
        ("cnnbench explain filters VGG1", {"VGG11", "VGG13", "VGG16", "VGG19"}),
        ("cnnbench completion ", {"bash", "zsh", "tcsh"}),
        ("cnnbench list --wh", {"--where"}),
    ],
)
def test_bash_completes(line: str, expected: set[str], completes: Callable[[str], set[str]]) -> None:
    assert completes(line) == expected


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script(shell: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "MobileNetV2" in text
    assert "compare" in text
    assert main(["completion", "fish"]) == 2
    assert "unknown shell 'fish'" in capsys.readouterr().err
