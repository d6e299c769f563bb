"""The short help of ``cnnbench fit``, ``validate``, ``test`` and ``predict``, which needs no torch.

LightningCLI's own help has hundreds of options; ``--help all`` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

_NETWORK = ("--model NAME", "network: of `cnnbench list`, torchvision:NAME, timm:NAME or package.module:callable")
_DATA = ("--data NAME", "data set: of `cnnbench list --data`, folder:PATH, torchvision:NAME or package.module:Class")
_DATA_DIR = ("--data.data_dir DIR", "folder of the data (default: CNNBENCH_DATA, else data)")
_CONFIG = ("--config FILE", "YAML file of these options, such as the config.yaml of a run")
_OUT = ("--out DIR", "folder in which each run makes a folder (default: results/runs)")
_MACHINE = (
    ("--trainer.accelerator NAME", "cpu, gpu or auto (default: auto)"),
    ("--trainer.precision NAME", "32-true, bf16-mixed or 16-mixed (default: what suits the device)"),
)
_OF_A_TEST = (
    ("--ckpt_path FILE", "checkpoint of `cnnbench fit`, or last or best for the newest run of --model and --data"),
    ("--weights reference", "in its place, weights that the package ships for a few small networks"),
    _NETWORK,
    _DATA,
    _DATA_DIR,
    ("--data.eval_batch_size N", "images per step"),
    *_MACHINE,
    _CONFIG,
    _OUT,
)
_TRUST = ("--trust MODULE", "modules whose classes a checkpoint or a configuration may name, such as mynets")

OPTIONS: dict[str, Sequence[tuple[str, str]]] = {
    "fit": (
        _NETWORK,
        _DATA,
        _DATA_DIR,
        ("--trainer.max_epochs N", "epochs (default: those of a full training on the data)"),
        ("--trainer.max_time TIME", "time in place of epochs, as days:hours:minutes:seconds, such as 00:00:10:00"),
        ("--data.batch_size N", "images per step"),
        ("--model.learning_rate X", "peak learning rate (default: the network's own)"),
        ("--seed_everything N", "random seed (default: 0)"),
        *_MACHINE,
        _CONFIG,
        ("--ckpt_path FILE", "checkpoint of a training that goes on, or last"),
        _OUT,
        ("--run NAME", "name of the run folder; with --resume auto a run of this name goes on"),
        ("--test last|best|none", "weights to test at the end (default: last)"),
        ("--wandb online|offline", "log to Weights & Biases too"),
    ),
    "validate": (*_OF_A_TEST, _TRUST),
    "test": (*_OF_A_TEST, _TRUST, ("--json", "print the record as one JSON document")),
    "predict": (*_OF_A_TEST, _TRUST),
}
"""The options that matter first, by subcommand, each with its help."""
EXAMPLES = {
    "fit": "--model LeNet5 --data MNIST --trainer.max_epochs 5",
    "validate": "--ckpt_path best --model LeNet5 --data MNIST",
    "test": "--weights reference --model LeNet5 --data MNIST",
    "predict": "--ckpt_path best --model LeNet5 --data MNIST",
}


def short_help(name: str, summary: str) -> str:
    """Return the help of a subcommand: the options that matter first, and an example.

    Args:
        name: ``fit``, ``validate``, ``test`` or ``predict``.
        summary: What the subcommand does.
    """
    needed = "--model NAME --data NAME" if name == "fit" else "--ckpt_path FILE"
    lines = [f"usage: cnnbench {name} {needed} [OPTIONS]", "", f"{summary[0].upper()}{summary[1:]}.", ""]
    for option, text in OPTIONS[name]:
        lines.append(f"  {option:<27} {text}")
    lines += ["", f"`cnnbench {name} --help all` lists every option; --model.help NAME and --data.help NAME those of a"]
    lines += ["network or a data set.", "", f"example: cnnbench {name} {EXAMPLES[name]}"]
    return "\n".join(lines)


def wants_all(words: Sequence[str]) -> bool | None:
    """Return whether a command line asks for all options; None if it asks for no help."""
    for option in ("-h", "--help"):
        if option in words:
            return "all" in words[words.index(option) + 1 :][:1]
    return None
