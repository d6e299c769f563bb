"""Options as dataclasses: one reading of command line and YAML, one line for what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from cnnbench.commands import bench, gallery
from cnnbench.errors import UserError
from cnnbench.options import option, parse


@dataclass(frozen=True, kw_only=True)
class Options:
    """Do something with models.

    More that the help does not show.
    """

    models: tuple[str, ...] = option("Names.", positional=True, metavar="MODEL")
    config: tuple[Path, ...] | None = option("YAML file.", default=None, metavar="FILE", is_config=True)
    seeds: tuple[int, ...] = option("Random seeds.", default=(0,), metavar="0,1")
    size: int | None = option("Size in pixels.", default=None, least=1, most=9)
    rate: float = option("Rate.", default=0.5, least=0)
    order: Literal["off", "norm"] = option("Order.", default="norm")
    table: dict[str, Any] | None = option("Table.", default=None)
    fast: bool = option("Be fast.", default=False)
    title: str | None = option("Title.", default=None)
    shift: int = option("Shift.", default=0)


def test_words_become_values_of_their_types() -> None:
    words = ["A(b=1,c=2)", "D", "--seeds", "0,1", "--size=3", "--rate", "1e-3", "--table", "{a: 1}", "--fast"]
    options = parse(Options, words, "x")
    assert options == Options(models=("A(b=1,c=2)", "D"), seeds=(0, 1), size=3, rate=1e-3, table={"a": 1}, fast=True)
    assert parse(Options, ["A"], "x") == Options(models=("A",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: MODEL"),
        (["A", "--size", "0"], "size 0 must be at least 1"),
        (["A", "--size", "10"], "size 10 must be at most 9"),
        (["A", "--size", "2.5"], "size '2.5' is not a whole number"),
        (["A", "--size", "9" * 30], "is not a whole number of 64 bits"),
        (["A", "--seeds", "0,x"], "seeds 'x' is not a whole number"),
        (["A", "--rate", "nan"], "rate 'nan' is not a number"),
        (["A", "--rate=-1"], "rate -1 must be at least 0"),
        (["A", "--order", "nrom"], "unknown order 'nrom'; did you mean 'norm'? valid: off, norm"),
        (["A", "--table", "[1]"], "table '[1]' is not a table; write for example"),
        (["A", "--sise", "3"], "unknown option '--sise'; did you mean '--size'?"),
        (["A", "--si", "3"], "unknown option '--si'"),  # no abbreviations
        (["A", "--size"], "expected one argument"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(Options, words, "x")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_means_the_same_and_the_command_line_overrides_it() -> None:
    Path("x.yaml").write_text("seeds: [3, 4]\nsize: 7\norder: off\ntable: {a: 1}\nfast: true\nrate:\n")
    options = parse(Options, ["A", "--config=x.yaml", "--size=2"], "x")
    expected = Options(
        models=("A",), config=(Path("x.yaml"),), seeds=(3, 4), size=2, order="off", table={"a": 1}, fast=True
    )
    assert options == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: 1.5", "config 'x.yaml': seeds '1.5' is not a whole number; write for example --seeds 0,1"),
        ("title: yes", "config 'x.yaml': title 'True' is not a single text; put it in quotes"),
        ("title: 2020-01-01", "config 'x.yaml': title '2020-01-01' is not a single text"),
        ("title: ''", "config 'x.yaml': title is empty; leave it out for the default"),
        ("table: {1: 2}", "config 'x.yaml': table has the key 1, which is not a name"),
        ("fast: 1", "config 'x.yaml': fast '1' is not true or false"),
        ("order: nrom", "config 'x.yaml': unknown order 'nrom'"),
        ("config: y.yaml", "config 'x.yaml': unknown key 'config'"),
        ("sise: 3", "config 'x.yaml': unknown key 'sise'; did you mean 'size'?"),
        ("- size", "config 'x.yaml' is not a list of `option: value` lines"),
    ],
)
def test_what_is_wrong_in_a_file_names_the_file(text: str, message: str) -> None:
    Path("x.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parse(Options, ["A", "--config=x.yaml"], "x")
    assert message in str(error.value)


def test_names_between_commas_in_a_list_of_a_file_are_several() -> None:
    Path("x.yaml").write_text("models: ['A(b=1,c=2), D', E]\n")
    assert parse(bench.Options, ["--config=x.yaml"], "x").models == ("A(b=1,c=2)", "D", "E")


def test_help_has_description_defaults_and_example(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(Options, ["--help"], "cnnbench x", "A --size 3")
    text = capsys.readouterr().out
    assert "Do something with models." in text
    assert "More that the help" not in text
    assert "Random seeds (default: 0)." in text
    assert "Shift (default: 0)." in text
    assert "example: cnnbench x A --size 3" in text


def test_of_options_that_exclude_each_other_the_command_line_decides() -> None:
    Path("x.yaml").write_text("budget: 30s\nmodels: [LeNet5]\n")
    options = parse(bench.Options, ["--config=x.yaml", "--epochs=2"], "x")
    assert options.settings() == {"models": ("LeNet5",), "epochs": 2}


def test_several_files_are_merged_and_the_last_one_overrides() -> None:
    Path("a.yaml").write_text("models: [LeNet5]\nbudget: 30s\nbatch_size: 8\n")
    Path("b.yaml").write_text("seeds: [0, 1]\nepochs: 2\nbatch_size: 16\n")
    files = ["--config", "a.yaml", "--config=b.yaml"]
    merged = {"models": ("LeNet5",), "seeds": (0, 1), "epochs": 2, "batch_size": 16}
    assert parse(bench.Options, files, "x").settings() == merged
    assert parse(bench.Options, [*files, "--budget=9s"], "x").settings() == (
        {name: value for name, value in merged.items() if name != "epochs"} | {"budget": "9s"}
    )
    assert parse(bench.Options, files[::-1][:1] + files[:2], "x").settings()["batch_size"] == 8


def test_zero_counts_as_given() -> None:
    assert parse(bench.Options, ["--epochs=0"], "x").settings() == {"epochs": 0}


def test_a_file_that_is_not_of_the_own_options_is_only_a_path() -> None:
    Path("fit.yaml").write_text("seed_everything: 0\nmodel: LeNet5\n")
    assert parse(gallery.Options, ["--config=fit.yaml"], "x").config == Path("fit.yaml")


def test_an_option_without_default_is_required() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy:
        """Need a size."""

        size: int = option("Size.")

    with pytest.raises(UserError, match="required: --size"):
        parse(Needy, [], "x")


def test_several_values_are_given_once_and_of_a_single_value_the_last_one_counts() -> None:
    with pytest.raises(UserError, match="--seeds is given twice, as 0 and as 1; give it once, with all values"):
        parse(Options, ["A", "--seeds=0", "--size", "3", "--seeds", "1"], "x")
    assert parse(Options, ["A", "--size", "3", "--size=4"], "x").size == 4
    Path("x.yaml").write_text("size: 2\nseeds: 4\n")
    assert parse(Options, ["A", "--config=x.yaml", "--config=x.yaml", "--size=3"], "x").size == 3
