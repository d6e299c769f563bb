"""Attacks: nothing that a file says is run, and nothing that it says reaches a terminal, page or spreadsheet raw.

Each attack leaves a mark if it succeeds: a file named ``pwned``.
"""

from __future__ import annotations

import ast
import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_record
from page_reader import check_scripts

import cnnbench
from cnnbench.checkpoints import open_checkpoint, read_checkpoint
from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.files import with_checksum, without_checksum
from cnnbench.record import Record, write_record
from cnnbench.report.outputs import Report, to_csv, to_html, to_markdown
from cnnbench.text import printable
from cnnbench.trust import Trust, check_code, module_command

MARK = Path("pwned")
SMALL = ["--data=Synthetic", "--data.train_images=40", "--data.test_images=20", "--data.batch_size=10"]
FIT = ["fit", "--model=LeNet5", *SMALL, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
QUIET = ["--trainer.enable_progress_bar=false"]
EVIL = """
from pathlib import Path
from torch import nn
from cnnbench.models import get_model
Path("pwned").write_text("by importing")

class Net(get_model("LeNet5")):
    pass

class NoNet:
    def __init__(self, **kwargs):
        pass

def make(num_classes=10, in_channels=1):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a training of one epoch, which the tests of this file copy."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["cnnbench"])
        assert main([*FIT, *QUIET]) == 0
    return folder / "results"


@pytest.fixture
def checkpoint(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good checkpoint, and a module in the working folder that marks its import."""
    shutil.copytree(trained, "results")
    Path("evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    return next(Path("results/runs").glob("*/*/checkpoints/last.ckpt"))


def _changed(path: Path, **hyper_parameters: Any) -> Path:
    """A copy of a checkpoint that says something else of its network."""
    stored = torch.load(path, weights_only=True)
    del stored["network"]  # `_in_the_other_key` attacks through it
    torch.save({**stored, "hyper_parameters": hyper_parameters}, "bad.ckpt")
    return Path("bad.ckpt")


def _in_the_other_key(path: Path) -> Path:
    """A copy of a checkpoint that names its network as a network itself does, and not as LightningCLI does."""
    stored = torch.load(path, weights_only=True)
    name = stored["hyper_parameters"].pop("_class_path")
    torch.save({**stored, "network": name}, "other.ckpt")
    return Path("other.ckpt")


def _refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The line of a command that refuses; it ran nothing and left nothing."""
    before = set(Path().rglob("*"))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert not MARK.exists()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    new = {path for path in set(Path().rglob("*")) - before if "__pycache__" not in str(path)}
    assert not new, new
    return captured.err.strip().splitlines()[-1]


CALLS = [
    {"_class_path": "os.system", "command": "touch pwned"},
    {"_class_path": "subprocess.Popen", "args": ["touch", "pwned"]},
    {"_class_path": "builtins.eval", "source": "open('pwned', 'w')"},
    {"_class_path": "builtins.open", "file": "pwned", "mode": "w"},
    {"_class_path": "torch.hub.load", "repo_or_dir": ".", "model": "x", "source": "local"},
    {"_class_path": "torch.os.system", "command": "touch pwned"},
    {"_class_path": "pathlib.Path", "x": 1},
    {"_class_path": "torch.nn.Linear", "in_features": 1, "out_features": 1},
    {"_class_path": "cnnbench.cli.main", "arguments": ["list"]},
    {"_class_path": "cnnbench.network.os.system", "command": "touch pwned"},
    {"_class_path": "evil.Net"},
    {"_class_path": "evil.NoNet"},
    {"_class_path": "evil"},
    {"_class_path": ["os.system"]},
    {"_class_path": None},
    {},
    {"_class_path": "cnnbench.network.External", "name": "os:system(command='touch pwned')"},
    {"_class_path": "cnnbench.network.External", "name": " os : system (command='touch pwned')"},
    {"_class_path": "cnnbench.network.External", "name": "subprocess:run(args='touch pwned',shell=True)"},
    {"_class_path": "cnnbench.network.External", "name": "torch.hub:load(repo_or_dir='.',source='local')"},
    {"_class_path": "cnnbench.network.External", "name": "evil:make"},
    {"_class_path": "cnnbench.network.External", "name": "torchvision.models:resnet18"},
    {"_class_path": "cnnbench.network.External", "name": ["os:system"]},
    {"_class_path": "cnnbench.network.External"},
]


# All four commands read a checkpoint by the same code. So each attack is tried on two of them, in turn and once in each
# key, and `make test-slow` tries all of them.
@pytest.mark.parametrize("share", [2, pytest.param(8, marks=pytest.mark.slow)], ids=["two commands", "every command"])
def test_no_command_calls_what_a_checkpoint_names(share: int, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    tools = (["explain", "filters"], ["explain", "feature-maps"], ["explain", "sizes"])
    config = checkpoint.parent.parent / "config.yaml"
    for number, hyper_parameters in enumerate(CALLS):
        path = _changed(checkpoint, num_classes=10, in_channels=3, image_size=32, **hyper_parameters)
        capsys.readouterr()
        for command in tools:
            _refused([*command, "--ckpt_path", str(path)], capsys)
        named = "_class_path" in hyper_parameters  # without one, the weights go into the configured network
        if named and not str(hyper_parameters["_class_path"]).startswith("torch.nn"):
            other = _in_the_other_key(path)
            pairs = [(command, file) for command in ("test", "fit", "validate", "predict") for file in (path, other)]
            # From one attack to the next by three: two neighbours have both keys, and all pairs have their turn.
            turn = 3 * number % len(pairs)
            for command, file in (pairs + pairs)[turn : turn + share]:
                _refused([command, f"--config={config}", "--ckpt_path", str(file), *QUIET], capsys)
        if "_class_path" in hyper_parameters:
            with pytest.raises(UserError):
                cnnbench.load(_in_the_other_key(path))
            assert not MARK.exists()


def test_the_refusal_names_the_option_and_the_option_is_the_word(
    checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    path = _changed(checkpoint, _class_path="evil.Net", num_classes=10, in_channels=3, image_size=32)
    line = _refused(["explain", "filters", "--ckpt_path", str(path)], capsys)
    assert "add --trust evil" in line
    assert main(["explain", "filters", "--ckpt_path", str(path), "--trust", "evil"]) == 0
    assert MARK.read_text() == "by importing"  # the user's word
    other = _changed(checkpoint, _class_path="evil.NoNet", num_classes=10)
    assert main(["explain", "filters", "--ckpt_path", str(other), "--trust", "evil"]) == 2
    assert "is no ImageClassifier" in capsys.readouterr().err


def test_trust_in_a_module_is_not_trust_in_what_it_imported() -> None:
    Path("reexports.py").write_text("from os import system\nfrom torch.nn import Sequential\n")
    trust = Trust.of(["reexports"])
    check_code("reexports:Sequential", "plan", trust)
    with pytest.raises(UserError, match=r"is code of posix, not of reexports"):
        check_code("reexports:system(command='touch pwned')", "plan", trust)
    for module in ("re exports", "", "a/b", "--x"):
        with pytest.raises(UserError, match="is not a module"):
            Trust.of([module])


class _Runs:
    """What a pickle runs that is read without care."""

    def __reduce__(self) -> tuple:
        return Path.touch, (MARK,)


@pytest.mark.parametrize("how", ["torch.save", "pickle", "zip"])
def test_pickles_are_not_run(how: str, capsys: pytest.CaptureFixture) -> None:
    stored = {"state_dict": _Runs(), "hyper_parameters": {"_class_path": "cnnbench.models.lenet.LeNet5"}}
    if how == "torch.save":
        torch.save(stored, "bad.ckpt")
    elif how == "pickle":
        Path("bad.ckpt").write_bytes(pickle.dumps(stored))
    else:
        with zipfile.ZipFile("bad.ckpt", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(stored))
    _refused(["explain", "filters", "--ckpt_path", "bad.ckpt"], capsys)
    _refused(["test", "--model=LeNet5", *SMALL, "--ckpt_path", "bad.ckpt"], capsys)


@pytest.mark.parametrize(
    "module",
    ["cnnbench", "cnnbench.report.wandb_child", "cnnbench.engines.onnx_int8_tool", "cnnbench.verification.memory"],
)
def test_a_process_of_its_own_runs_no_file_of_the_working_folder(module: str) -> None:
    for name in ("argparse", "cnnbench", "json", "numpy", "onnx", "onnxruntime", "runpy", "socket", "torch", "wandb"):
        Path(f"{name}.py").write_text(f"open({str(MARK)!r}, 'w')\n")
    done = subprocess.run(module_command(module, "--version"), capture_output=True, text=True, check=False)
    assert not MARK.exists(), done.stderr
    assert "Error finding module" not in done.stderr
    if module == "cnnbench":
        assert done.stdout.strip().endswith(cnnbench.__version__)
    # The attack works where nobody prevents it.
    subprocess.run([sys.executable, "-m", module], capture_output=True, check=False)
    assert MARK.exists()


def test_every_process_of_the_package_is_started_in_this_way() -> None:
    package = Path(cnnbench.__file__).parent
    # The check on a GPU runs pytest in the folder of the repository, which is meant.
    started = {path.name for path in package.rglob("*.py") if "sys.executable" in path.read_text()}
    assert started == {"trust.py", "gpu.py"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no switch for a safe path")
def test_a_process_that_times_runs_no_file_of_the_working_folder() -> None:
    for name in ("multiprocessing", "pickle", "runpy", "socket", "tempfile"):
        Path(f"{name}.py").write_text(f"open({str(MARK)!r}, 'w')\n")
    timed = "speed LeNet5 --device cpu --rounds 1 --processes 2 --batch_size 1 --train_batch_size 2".split()
    # As the installed command is: without the working folder on its own path.
    done = subprocess.run(module_command("cnnbench", *timed), capture_output=True, text=True, check=False)
    assert not MARK.exists(), done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": "10; touch pwned"},
        {"num_classes": 10**9},
        {"num_classes": 10**30},
        {"num_classes": -1},
        {"image_size": 10**9},
        {"in_channels": None},
        {"optimizer": "os.system"},
        {"colour": "red"},
    ],
)
def test_arguments_in_a_checkpoint_are_checked(checkpoint: Path, options: dict[str, Any]) -> None:
    known = {"_class_path": "cnnbench.models.lenet.LeNet5", "num_classes": 10, "in_channels": 3, "image_size": 32}
    with pytest.raises(UserError):
        read_checkpoint(_changed(checkpoint, **(known | options)))


def test_a_flipped_bit_of_a_checkpoint_is_found(checkpoint: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content[largest.header_offset + largest.file_size] ^= 1  # within the weights of the largest layer
    Path("flipped.ckpt").write_bytes(content)
    torch.load("flipped.ckpt", weights_only=True)  # torch does not notice
    with pytest.raises(UserError, match=r"damaged: the checksum of its part .*data/"):
        open_checkpoint(Path("flipped.ckpt"))


CONFIGS = [
    {"model": {"class_path": "os.system", "init_args": {"command": "touch pwned"}}},
    {"model": {"class_path": "External", "init_args": {"name": "os:system(command='touch pwned')"}}},
    {"model": {"class_path": "cnnbench.network.External", "init_args": {"name": "evil:make"}}},
    {"model": {"class_path": "evil.Net"}},
    {"model.class_path": "evil.Net"},
    {"model": "evil.Net"},
    {"model": {"class_path": "LeNet5", "init_args": {"optimizer": "os.system"}}},
    {"model": {"class_path": "LeNet5", "init_args": {"optimizer": {"class_path": "os.system",
     "init_args": {"command": "touch pwned"}}}}},
    {"model": {"class_path": "LeNet5", "init_args": {"optimizer": {"class_path": "torch.os.system",
     "init_args": {"command": "touch pwned"}}}}},
    {"model": {"class_path": "LeNet5", "init_args": {"optimizer": {"class_path": "torch.hub.load",
     "init_args": {"repo_or_dir": ".", "model": "x"}}}}},
    {"model": {"class_path": "LeNet5", "init_args": {"lr_scheduler": "subprocess.run"}}},
    {"trainer": {"callbacks": [{"class_path": "evil.Net"}]}},
    {"trainer": {"callbacks+": {"class_path": "evil.Net"}}},
    {"trainer": {"callbacks": [{"class_path": "LambdaCallback", "init_args": {"on_fit_start": "os.system"}}]}},
    {"trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.LambdaCallback",
     "init_args": {"on_fit_start": {"class_path": "subprocess.Popen", "init_args": {"args": "touch pwned"}}}}]}},
    {"trainer": {"logger": {"class_path": "evil.Net"}}},
    {"trainer": {"strategy": "evil.Net"}},
    {"trainer": {"plugins": ["evil.Net"]}},
    {"data": {"class_path": "evil.Net"}},
    {"trust": "evil"},
]  # fmt: skip


TEXTS = {
    "JSON in a text": """
model: '{"class_path": "External", "init_args": {"name": "evil:make"}}'
data: Synthetic
""",
    "callbacks in a text": """
model: LeNet5
data: Synthetic
trainer: {callbacks: '[{"class_path": "evil.Net"}]'}
""",
    "a trainer in a text": """
model: LeNet5
data: Synthetic
trainer: '{"callbacks": [{"class_path": "evil.Net"}]}'
""",
    "a function in a text": """
model: LeNet5
data: Synthetic
trainer:
  callbacks: >-
    [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "subprocess.getoutput"}}]
""",
    "a name outside ASCII": "model: {class_path: External, init_args: {name: 'évil:make'}}\ndata: Synthetic\n",
    "an attribute outside ASCII": "model: {class_path: External, init_args: {name: 'evil:é'}}\ndata: Synthetic\n",
    "an invisible character": 'model: {class_path: External, init_args: {name: "evil\\u200b:make"}}\ndata: Synthetic\n',
    "a class like a file": "model: LeNet5\ndata: Synthetic\ntrainer: {callbacks: evil.Log}\n",
    "classes like files": "model: LeNet5\ndata: Synthetic\ntrainer: {callbacks: [evil.Csv, evil.Pt]}\n",
    "a file of another ending": "model: inner.txt\ndata: Synthetic\n",
    "a trainer of another ending": "model: LeNet5\ndata: Synthetic\ntrainer: trainer.txt\n",
    "a callback of another ending": "model: LeNet5\ndata: Synthetic\ntrainer: {callbacks: [callback.txt]}\n",
    "merged keys": "x: &x {class_path: evil.Net}\nmodel: {<<: *x}\ndata: Synthetic\n",
    "a class of torch that starts programs": """
model: LeNet5
data: Synthetic
trainer:
  fast_dev_run: true
  accelerator: cpu
  strategy:
    class_path: lightning.pytorch.strategies.DDPStrategy
    init_args:
      process_group_backend: gloo
      ddp_comm_state:
        class_path: torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler
        init_args: {entrypoint: /usr/bin/touch, args: [pwned], env: {}, stdout: null, stderr: null, local_rank_id: 0,
                    numa_options: null}
""",
}


def _evil_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("evil.py", "évil.py"):
        Path(name).write_text(EVIL)
    Path("inner.txt").write_text("class_path: External\ninit_args: {name: 'evil:make'}\n")
    Path("trainer.txt").write_text("callbacks: [{class_path: evil.Net}]\n")
    Path("callback.txt").write_text("class_path: evil.Net\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_of_fit_names_classes_of_the_libraries_only(
    config: dict[str, Any], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _evil_files(monkeypatch)
    whole = {"model": "LeNet5", "data": "Synthetic", **config}
    if "model.class_path" in config:
        del whole["model"]
    Path("x.yaml").write_text(yaml.safe_dump(whole))
    _refused(["fit", "--config=x.yaml"], capsys)
    # The same in a file that the configuration refers to.
    Path("outer.yaml").write_text("data: Synthetic\nmodel: inner.yaml\n")
    if isinstance(config.get("model"), dict):
        Path("inner.yaml").write_text(yaml.safe_dump(config["model"]))
        _refused(["fit", "--config=outer.yaml"], capsys)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_no_corner_of_a_configuration_names_code(
    text: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _evil_files(monkeypatch)
    Path("x.yaml").write_text(text)
    assert main(["fit", "--config=x.yaml", *QUIET]) in (0, 2)  # 0: what stands anywhere stays a table
    assert not MARK.exists()
    assert "Traceback" not in capsys.readouterr().err


def test_files_that_are_typed_name_no_code_either(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _evil_files(monkeypatch)
    plain = ["fit", "--model=LeNet5", "--data=Synthetic"]
    _refused([*plain, "--trainer=trainer.txt"], capsys)
    _refused([*plain, "--trainer.callbacks=callback.txt"], capsys)
    _refused(["fit", "--model=inner.txt", "--data=Synthetic"], capsys)


def test_what_is_typed_is_trusted_and_only_for_that_command(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own.py").write_text("import lightning as L\nclass Mine(L.Callback):\n    pass\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert main([*FIT, *QUIET, "--trainer.callbacks=own.Mine"]) == 0
    printed = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("test it:"))
    assert printed.endswith("--trust own")
    command = shlex.split(printed.partition("cnnbench ")[2])
    assert main([*command, *QUIET]) == 0
    capsys.readouterr()
    line = _refused([*command[:3], *QUIET], capsys)
    assert "names 'own.Mine'" in line
    assert "add --trust own" in line


def test_good_configurations_still_name_their_classes() -> None:
    Path("x.yaml").write_text(
        "model: {class_path: LeNet5, init_args: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}}}\n"
        "data: Synthetic\n"
        "trainer: {fast_dev_run: true, logger: {class_path: CSVLogger, init_args: {save_dir: a.b, name: 'x:y'}},\n"
        "  callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/loss}}]}\n"
    )
    assert main(["fit", "--config=x.yaml", "--trainer.accelerator=cpu", *QUIET]) == 0


def test_a_plan_and_a_bench_file_name_no_code(capsys: pytest.CaptureFixture) -> None:
    Path("evil.py").write_text(EVIL)
    Path("x.yaml").write_text("models: ['LeNet5', 'evil:make']\ndata: Synthetic\nmeasures: complexity\n")
    assert "add --trust evil" in _refused(["bench", "--config=x.yaml"], capsys)
    Path("t.yaml").write_text("models: LeNet5\ntrust: evil\n")
    assert "unknown key 'trust'" in _refused(["bench", "--config=t.yaml"], capsys)
    small = ["--data_options={train_images: 40, test_images: 20}", "--device=cpu", "--epochs=1", "--out=run"]
    assert main(["bench", "--models=LeNet5", "--data=Synthetic", "--measures=complexity", *small]) == 0
    plan = without_checksum(json.loads(Path("run/plan.json").read_text()), "")
    for name in ("evil:make", "os:system(command='touch pwned')", " os:system(command='touch pwned')"):
        Path("run/plan.json").write_text(json.dumps(with_checksum(plan | {"models": [name]})))
        capsys.readouterr()
        assert "whose code lies outside cnnbench" in _refused(["bench", "--resume", "--out=run"], capsys)


HOSTILE = {
    "escape": "\x1b]0;title\x07\x1b[2J",
    "c1": "\x9b31mred",
    "bidi": "\u202egnp.exe\u2066",
    "return": "good\rbad",
    "lines": "a\nb | c |\n# heading\n",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "link": "[x](javascript:alert(1)) ![x](http://evil.example/p.png)",
    "autolink": "https://evil.example www.evil.example me@evil.example",
    "formula": "=HYPERLINK(1)",
    "plus": "+1+cmd|' /C calc'!A0",
    "emphasis": "**bold** _it_ `code` ~~no~~ $x$",
    "jinja": "{{ 7 * 7 }}{% raw %}",
    "null": "a\x00b",
    "separator": "a\u2028b",
}


def _hostile(text: str) -> list[Record]:
    """Records with a text in every place that a file decides."""
    plain = make_record()
    return [
        make_record(model=text, environment={**plain.environment, "device": text, "os": text, "python": text},
                    config={**plain.config, "precision": text, "precision_reason": text, "device": text},
                    data={**plain.data, "label": text, "name": text, "class_names": [text, "b", text + "c"]},
                    training={**plain.training, "recipe": text}, skipped={text: text},
                    measures={**plain.measures, "suspect": [text]}),
        make_record(model="fails", status="error", reason=text, training={}, confusion_matrix=None,
                    measures={"params": 1}),
    ]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_texts_of_records_are_safe_in_every_format(text: str) -> None:
    report = Report(_hostile(text))
    page, document, table = to_html(report), to_markdown(report), to_csv(report)
    for made in (page, document, table):
        assert printable(made, lines=True) == made
    check_scripts(page)
    assert "<img src=x" not in page
    assert not re.search(r"(?<!\\)<(script|img)", document)
    for link in re.findall(r"(?<!\\)\]\((.*?)\)", document):
        assert link.startswith("figures/"), link
    assert not re.search(r"(?<!\\)://|(?<!\\)@|www\.", document)
    heads = [line for line in document.splitlines() if line.startswith("#")]
    assert not any("heading" in head for head in heads)
    for row in table.splitlines():
        assert not re.search(r'(^|,)"?[=+@-](?!\d)', row), row


@pytest.mark.usefixtures("without_pictures")
def test_texts_of_records_are_safe_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number, text in enumerate(HOSTILE.values()):
        for index, record in enumerate(_hostile(text)):
            write_record(tmp_path / "run" / "records" / f"{number}-{index}.json", record)
    for command in (["report", "run", "--out=r"], ["compare", "run", "run"], ["report", "run", "--out=r", "--json"]):
        assert main(command) in (0, 1)
        captured = capsys.readouterr()
        for shown in (captured.out, captured.err):
            assert printable(shown, lines=True) == shown
        if "--json" in command:
            assert len(json.loads(captured.out)["cells"]) == 2 * len(HOSTILE)


def test_only_the_console_prints() -> None:
    """A `print` elsewhere would send text of a file to the terminal as it is; the races print their own figures."""
    folder = Path(cnnbench.__file__).parent
    for file in folder.rglob("*.py"):
        if "verification" in file.parts or file.name in ("console.py", "__main__.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            assert name not in ("print", "Console"), f"{file}:{node.lineno} calls {name}"  # type: ignore[attr-defined]
