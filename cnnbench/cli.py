"""The ``cnnbench`` command. Heavy imports are inside the subcommands, so that the light ones start at once."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from cnnbench import __version__
from cnnbench.catalog import listing
from cnnbench.console import make_console, note, out, out_json, refusal, show, stdout_kept
from cnnbench.count import add_arguments as add_count_arguments
from cnnbench.count import count
from cnnbench.errors import Stopped, UserError, unknown
from cnnbench.files import parse_yaml, read_yaml, reason
from cnnbench.registry import split_names
from cnnbench.stopping import stoppable
from cnnbench.timing import add_arguments as add_speed_arguments
from cnnbench.timing import speed
from cnnbench.trust import OPTION, Trust, check_network, enforced, words

TRAINING = {
    "fit": "train a network",
    "validate": "run the validation split",
    "test": "run the test set, once, whole",
    "predict": "compute class probabilities of the test set",
}
BENCH_ROOT = Path("results/bench")


def _whole_number(text: str) -> int:
    """Read a whole number of 64 bits; argparse says which option a larger one was given for."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(text)
    return value


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and which option was probably meant."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", int, _whole_number)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            given = rest[0].split("=")[0]
            near = difflib.get_close_matches(given, self._option_string_actions, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"`{self.prog} --help` lists the options"
            raise UserError(f"unknown option '{given}'; {hint}")
        return parsed, rest


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"seeds '{text}' are not whole numbers; write for example --seeds 0,1,2") from None


def _table(text: str) -> Any:
    try:
        return parse_yaml(text, "the table")
    except UserError as error:
        raise UserError(f"{error}; write for example '{{image_size: 28, augment: false}}'") from None


def _parser() -> Parser:
    parser = Parser(
        prog="cnnbench",
        description="Which CNN, at what cost, how good, and why.",
        epilog="example: cnnbench bench --models LeNet5,ResNet18 --data CIFAR10 --budget 60s",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cnnbench {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, text in TRAINING.items():
        commands.add_parser(name, help=f"{text} (LightningCLI)", add_help=False)
    _add_bench(commands)
    report = commands.add_parser(
        "report",
        help="make tables, pictures and a page from records",
        description="Makes the terminal table, Markdown, CSV, PNG pictures and one self-contained page from records.",
        epilog="example: cnnbench report results/bench/20260101-120000 --out report",
        allow_abbrev=False,
    )
    report.add_argument("records", nargs="+", type=Path, metavar="RECORDS", help="run folders, .json or .jsonl files")
    report.add_argument("--out", type=Path, help="folder of the report (default: the run folder, else results/report)")
    _add_wandb(report, default="off")
    report.add_argument(
        "--export", type=Path, metavar="FILE", help="also write the records as JSON lines to a new file"
    )
    report.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    commands.add_parser("explain", help="see what a CNN does: the instruments of a course", add_help=False)
    counting = commands.add_parser(
        "count",
        help="count parameters, MACs, training MACs and memory of any network",
        description="Counts exactly, operator by operator, on tensors without values.",
        epilog="example: cnnbench count VGG16 torchvision:resnet50 --image_size 224 --num_classes 1000 --per_layer",
        allow_abbrev=False,
    )
    add_count_arguments(counting)
    timing = commands.add_parser(
        "speed",
        help="time networks against each other: latency, throughput, training steps",
        description="Times networks in turns, in random order, over several rounds.",
        epilog="example: cnnbench speed ResNet18 torchvision:resnet18 --image_size 224 --num_classes 1000",
        allow_abbrev=False,
    )
    add_speed_arguments(timing)
    comparison = commands.add_parser(
        "compare",
        help="compare the records of two runs: costs, times, accuracy, each with its interval and a verdict",
        description="Compares every network on every data set that both have, figure by figure.",
        epilog="example: cnnbench compare results/bench/20260101-120000 results/bench/20260102-120000 --gate 5",
        allow_abbrev=False,
    )
    for name in ("a", "b"):
        comparison.add_argument(name, type=Path, metavar=name.upper(), help="run folder, .json or .jsonl file")
    comparison.add_argument(
        "--gate", type=float, metavar="PERCENT", help="exit 1 if a time is longer by more than so many per cent, or "
        "the accuracy lower by so many points, and by more than chance; and if that cannot be said",
    )  # fmt: skip
    comparison.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    listing = commands.add_parser(
        "list",
        help="list the networks, what they cost and how good they are, and the data sets",
        epilog="example: cnnbench list --json",
        allow_abbrev=False,
    )
    listing.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def _add_wandb(parser: argparse.ArgumentParser, **options: Any) -> None:
    choices = ("off", "offline", "online")
    parser.add_argument("--wandb", choices=choices, help="log to W&B too (default: off)", **options)


def _add_bench(commands: Any) -> argparse.ArgumentParser:
    bench = commands.add_parser(
        "bench",
        help="measure networks on data sets, a record per cell, and report",
        description="Counts, times, trains and tests every network on every data set under an equal budget.",
        epilog="example: cnnbench bench --models LeNet5,ResNet18 --data CIFAR10 --budget 60s",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = bench.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML file with these options; the command line wins")
    add(
        "--models",
        type=split_names,
        metavar="A,B",
        help="names of `cnnbench list`, all, torchvision:NAME, timm:NAME, package.module:callable "
        "(default: LeNet5,VGG16,ResNet18,MobileNetV1)",
    )
    add("--data", type=split_names, metavar="A,B", help="data sets (default: MNIST,CIFAR10)")
    add(
        "--measures",
        type=split_names,
        metavar="A,B",
        help="of complexity, speed, quality (default: these), train_quality, memory",
    )
    add("--seeds", metavar="0,1,2", help="one training per seed (default: 0)")
    add("--budget", metavar="TIME", help="training time per cell, such as 60s or 5m (default: 30s on CPU, 120s on GPU)")
    add("--epochs", type=int, metavar="N", help="epochs of training per cell, in place of a time")
    add("--device", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--precision", help="auto, 32-true, bf16-mixed or 16-mixed (default: auto)")
    add("--batch_size", type=int, metavar="N", help="images per training step (default: 32 on CPU, 256 on GPU)")
    add(
        "--speed_batch_size",
        type=int,
        metavar="N",
        help="images per batch of throughput (default: 128 on CPU, 1024 on GPU)",
    )
    add(
        "--processes",
        type=int,
        metavar="N",
        help="fresh processes that share the rounds of the timing; from 4 on two runs compare by them (default: 1)",
    )
    add("--eval_batch_size", type=int, metavar="N", help="images per step in the test (default: 500)")
    add("--learning_rate", type=float, metavar="X", help="peak learning rate for all (default: each network's own)")
    add("--recipe", metavar="NAME", help="sgd or muon, for all networks (default: each network's own)")
    add("--data_dir", metavar="DIR", help="folder of the data (default: CNNBENCH_DATA, else data)")
    add(
        "--data_options",
        metavar="TABLE",
        help="arguments of the data sets as YAML or JSON, such as '{image_size: 28}'",
    )
    add(
        "--keep_weights",
        action="store_true",
        default=argparse.SUPPRESS,
        help="keep the trained weights of each cell in the run folder",
    )
    add("--out", type=Path, metavar="DIR", help="run folder (default: a new one in results/bench)")
    add("--resume", action="store_true", help="go on with the newest run, or that of --out")
    add(
        OPTION,
        type=split_names,
        metavar="MODULE",
        help="modules whose networks a plan or YAML file may name, such as mynets (default: none)",
    )
    _add_wandb(bench)
    add("--json", action="store_true", help="print one JSON document on stdout")
    return bench


def bench(arguments: argparse.Namespace) -> int:
    given = dict(vars(arguments))
    trust = Trust.of(given.pop(OPTION.strip("-"), ()), typed=given.get("models", ()))
    options = _with_config(given, trust)
    from cnnbench.bench import plan as plans
    from cnnbench.bench.display import LiveDisplay
    from cnnbench.bench.run import run
    from cnnbench.bench.tracking import Tracker, resolve_mode

    out: Path | None = options.pop("out", None)
    resume, as_json = options.pop("resume", False), options.pop("json", False)
    asked_mode = options.pop("wandb", "off")
    folder = _run_folder(out, resume)
    asked = _asked(options)
    if resume:
        plan = plans.load_plan(folder, trust)
        different = plans.conflicts(plan, asked)
        if different:
            raise UserError(
                f"the run in '{folder}' was started with {'; '.join(different)}; resume it without this option"
            )
    else:
        plan = _resolve(asked)
    _check_before_start(plan)
    mode = resolve_mode(asked_mode, folder)
    tracker = Tracker(mode, folder) if mode != "off" else None
    try:
        with stdout_kept(), LiveDisplay() as display:
            records = run(plan, folder, display, tracker.log_cell if tracker else lambda _: None)
        if tracker:
            for record in records:  # those of an interrupted run that had not been logged
                tracker.log_cell(record)
            tracker.log_comparison(records)
        _finish(records, folder, as_json)
    except Stopped as stop:
        if (folder / plans.PLAN_FILE).is_file():
            stop.hint = f"go on with: cnnbench bench --resume --out {shlex.quote(str(folder))}{words(plan.models)}"
        raise
    return 1 if any(r.status == "error" for r in records) else 0


def _with_config(options: dict[str, Any], trust: Trust) -> dict[str, Any]:
    """Merge a YAML file of options under those of the command line."""
    options.pop("command")
    path = options.pop("config", None)
    if path is None:
        return options
    from cnnbench.schemas import BenchFile, check

    stored = read_yaml(path, "config")
    if stored is None:
        raise UserError(f"config '{path}' is empty; write for example: models: [LeNet5, ResNet18]")
    where = f"config '{path}'"
    if not isinstance(stored, dict):
        raise UserError(f"{where} is not a list of `option: value` lines")
    check(BenchFile, stored, where, "see `cnnbench bench --help`")
    parser = _add_bench(argparse.ArgumentParser().add_subparsers())
    actions = {a.dest: a for a in parser._actions if a.dest not in ("help", "config")}
    values: dict[str, Any] = {}
    for key, value in stored.items():
        if value is not None:
            values[key] = _convert(actions[key], key, value, path)
    for name in values.get("models", ()):
        check_network(name, where, trust)
    if "epochs" in options:
        values.pop("budget", None)
    if "budget" in options:
        values.pop("epochs", None)
    return values | options


def _convert(action: argparse.Action, key: str, value: Any, path: Path) -> Any:
    """Gives a value of a YAML file the type that the same option has on the command line."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{key} in '{path}': '{value}' is not true or false")
        return value
    if isinstance(value, dict):
        value = json.dumps(value)
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    convert = action.type if callable(action.type) else str
    try:
        result = convert(text)
    except ValueError as error:
        raise UserError(f"{key} in '{path}': '{text}' is not a valid value") from error
    if action.choices is not None and result not in action.choices:
        raise unknown(f"{key} in '{path}'", text, list(action.choices))
    return result


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """Turns options into the settings of a plan, as far as they were given."""
    from cnnbench import hardware
    from cnnbench.bench.plan import parse_budget

    asked = dict(options)
    if asked.get("models") == ("all",):
        from cnnbench.models import all_models

        asked["models"] = tuple(all_models())
    if "data_options" in asked:
        asked["data_options"] = _table(asked["data_options"])
    if "budget" in asked:
        asked["budget_s"] = parse_budget(str(asked.pop("budget")))
        if "epochs" in asked:
            raise UserError("--budget and --epochs exclude each other; give one")
    if "seeds" in asked:
        asked["seeds"] = _seeds(asked["seeds"])
    if "device" in asked:
        asked["device"] = str(hardware.choose_device(asked["device"]))
    if "precision" in asked:
        device = hardware.choose_device(asked.get("device", "auto"))
        asked["precision"], asked["precision_reason"] = hardware.choose_precision(asked["precision"], device)
    return asked


def _resolve(asked: dict[str, Any]) -> Any:
    """Fills what was not asked for with the defaults of this machine."""
    from cnnbench import hardware
    from cnnbench.bench import plan as plans

    device = hardware.choose_device(asked.get("device", "auto"))
    precision, reason = hardware.choose_precision("auto", device)
    batch_size, train_batch_size = hardware.default_batch_sizes(device)
    defaults: dict[str, Any] = {
        "models": plans.DEFAULT_MODELS,
        "data": plans.DEFAULT_DATA,
        "seeds": (0,),
        "measures": plans.DEFAULT_MEASURES,
        "budget_s": None if "epochs" in asked else 30.0 if device.type == "cpu" else 120.0,
        "epochs": None,
        "device": str(device),
        "precision": precision,
        "precision_reason": reason,
        "batch_size": train_batch_size,
        "speed_batch_size": batch_size,
        "eval_batch_size": 500,
    }
    settled = defaults | asked
    settled["inference_precision"] = hardware.inference_precision(settled["precision"])
    settled["cudnn_benchmark"] = device.type == "cuda"
    return plans.Plan(**settled)


def _check_before_start(plan: Any) -> None:
    """Refuses wrong names and folders before a run folder is made."""
    from cnnbench.data import get_data
    from cnnbench.data.sources import resolve_data_dir
    from cnnbench.hardware import choose_device
    from cnnbench.network import get_network

    for name in plan.models:
        get_network(name)
    for name in plan.data:
        get_data(name)
    resolve_data_dir(plan.data_dir)
    choose_device(plan.device)


def _run_folder(out: Path | None, resume: bool) -> Path:
    if resume:
        if out is not None:
            return out
        runs = sorted(p.parent for p in BENCH_ROOT.glob("*/plan.json"))
        if not runs:
            raise UserError(f"there is no run in '{BENCH_ROOT}' to resume; leave out --resume, or name one with --out")
        return runs[-1]
    if out is None:
        return BENCH_ROOT / datetime.now().strftime("%Y%m%d-%H%M%S")
    if out.exists() and not out.is_dir():
        raise UserError(f"'{out}' is a file; name a folder with --out")
    if (out / "plan.json").exists():
        raise UserError(f"'{out}' holds a run already; add --resume to go on with it, or choose another --out")
    return out


def _finish(records: Sequence[Any], folder: Path, as_json: bool) -> None:
    """Prints the table or the JSON document and writes the report."""
    from cnnbench.bench.report import Report, json_document, print_table, write_report

    files = write_report(records, folder)
    if as_json:
        out_json(json_document(records))
    else:
        print_table(Report(records), make_console())
    note(f"report: {files[0]}")


def report(arguments: argparse.Namespace) -> int:
    from cnnbench.record import load_records, write_lines

    records = load_records(arguments.records)
    if arguments.export:
        write_lines(arguments.export, records)
    only = arguments.records[0] if len(arguments.records) == 1 and arguments.records[0].is_dir() else None
    folder = arguments.out or only or Path("results/report")
    if arguments.wandb != "off":
        from cnnbench.bench.tracking import Tracker, resolve_mode

        mode = resolve_mode(arguments.wandb, folder)
        assert mode != "off"
        folder.mkdir(parents=True, exist_ok=True)
        tracker = Tracker(mode, folder)
        for record in records:
            tracker.log_cell(record)
        tracker.log_comparison(records)
    _finish(records, folder, arguments.json)
    return 0


def compare(arguments: argparse.Namespace) -> int:
    from cnnbench.bench import compare as comparing
    from cnnbench.record import load_records

    if arguments.gate is not None and not 0 <= arguments.gate < float("inf"):
        raise UserError(f"gate {arguments.gate} must be a number of per cent, such as 5")
    changes = comparing.compare(*(load_records([path]) for path in (arguments.a, arguments.b)))
    found = comparing.Gate(changes, arguments.gate)
    if arguments.json:
        out_json({"changes": [c._asdict() for c in changes], **found.document()})
    else:
        show(comparing.table(changes))
        for line in comparing.remarks(changes):
            out(line)
    for line in found.lines():
        note(line)
    return 0 if found.passed else 1


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "bench": bench,
    "compare": compare,
    "count": count,
    "speed": speed,
    "report": report,
    "list": listing,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Returns:
        0; 1 when a cell or a gate failed; 2 on bad input, and where something cannot be written; 128 and the number of
        the signal that stopped it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with stoppable(), enforced(Trust.in_arguments(given)):
            code = _run(given)
            if not sys.stdout.closed:
                sys.stdout.flush()
        return code
    except UserError as error:
        refusal(error)
    except Stopped as stop:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the others do not know what the first one kept
            note(f"cnnbench: stopped by {stop}; {stop.hint}")
        return stop.exit_code
    except KeyboardInterrupt:  # not by a signal, which raises Stopped
        note("cnnbench: interrupted")
        return 130
    except BrokenPipeError:
        _close_stdout()
        return 0
    except OSError as error:
        if error.filename is None:
            _close_stdout()
        refusal(_about_files(error))
    except MemoryError:
        note("cnnbench: the machine has not enough memory for this; take smaller images, batches or networks")
    except RecursionError:
        note("cnnbench: the input is nested too deeply; give a plainer one")
    return 2


def _run(given: list[str]) -> int:
    if given and given[0] in TRAINING:
        from cnnbench.train import main as train

        train(given)
        return 0
    if given and given[0] == "explain":
        from cnnbench.explain import main as explain

        return explain(given[1:], Parser)
    parser = _parser()
    if not given:
        parser.print_help()
        return 0
    if given[0] not in COMMANDS and not given[0].startswith("-"):
        raise unknown("command", given[0], [*TRAINING, *COMMANDS, "explain"])
    parsed = parser.parse_args(given)
    return COMMANDS[parsed.command](parsed)


def _close_stdout() -> None:
    """Have what is still to be written go nowhere, so that Python does not fail on it once more at the end."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _about_files(error: OSError) -> str:
    """Say in one line which file could not be written or read, and what to do."""
    name = f"'{error.filename}'" if error.filename is not None else "the output"
    mends = {
        errno.ENOSPC: "make room on the disk, or choose another folder with --out",
        errno.EDQUOT: "make room within your quota, or choose another folder with --out",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EMFILE: "allow more open files with ulimit -n",
    }
    mend = mends.get(error.errno or 0, "choose another folder with --out, or mend its permissions")
    return f"{name} cannot be written or read: {reason(error)}; {mend}"
