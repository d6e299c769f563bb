"""Files are read strictly and written whole or not at all; texts leave as what they are."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbench import files
from cnnbench.errors import UserError
from cnnbench.text import markdown, printable, to_csv, to_json


@pytest.mark.parametrize("make", ["missing", "folder", "pipe", "device", "dangling", "loop"])
def test_only_regular_files_are_read(make: str) -> None:
    path = Path("x.json")
    if make == "folder":
        path.mkdir()
    elif make == "pipe":
        os.mkfifo(path)
    elif make == "device":
        path = Path("/dev/zero")
    elif make in ("dangling", "loop"):
        path.symlink_to("nowhere" if make == "dangling" else path.name)
    with pytest.raises(UserError, match=re.escape(f"record file '{path}'")) as error:
        files.read_json(path, "record file")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe{}", b"{", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 1}',
     b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 5000, b"\xef\xbb\xbf{}", b'{"a": "\x00"}', b'{"a": 1}{"b": 2}',
     b"{'a': 1}", b'{"a": 01}', b'{"a": "\xed\xa0\x80"}'],
)  # fmt: skip
def test_json_that_is_none_ends_in_one_line(content: bytes) -> None:
    Path("x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^plan 'x\.json' .*") as error:
        files.read_json(Path("x.json"), "plan")
    assert len(str(error.value).splitlines()) == 1


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        *[ALIASES.encode(), b"a: [1", b"a: 1\na: 2\n", b"a: 1\n b: 2\n", b"\xff\xfea", b"&a [*a]", b"a: &a {b: *a}"],
        *[b"a: *b", b"!!python/name:os.x", b"!!python/object/apply:os.system ['true']", b"a: !!timestamp x"],
        *[b"a: !!bool x", b"a: !!int x", b"a: !own x", b"a: 2026-13-45", b"- " * 3000, b"[" * 3000],
        *[b"a: 1\n---\nb: 2\n", b"? [a]\n: b", b"\x00", b"a: \x07"],
    ],
)
def test_yaml_that_is_none_ends_in_one_line(content: bytes) -> None:
    Path("x.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"^config 'x\.yaml'") as error:
        files.read_yaml(Path("x.yaml"), "config")
    assert len(str(error.value).splitlines()) == 1


def test_good_yaml_is_read_as_ever() -> None:
    Path("x.yaml").write_text("base: &base {a: 1, b: [1, 2]}\nmore: {<<: *base, c: null}\nd: 1.5\n")
    assert files.read_yaml(Path("x.yaml"), "config") == {
        "base": {"a": 1, "b": [1, 2]}, "more": {"a": 1, "b": [1, 2], "c": None}, "d": 1.5,
    }  # fmt: skip
    Path("x.yaml").write_text("# nothing\n")
    assert files.read_yaml(Path("x.yaml"), "config") is None


def test_a_write_that_fails_leaves_the_old_file_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_text(Path("x"), "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left") as error:
            files.write_text(Path("x"), "new")
    assert error.value.filename == "x"
    assert Path("x").read_text() == "old"
    assert not list(Path().glob(".x*"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_whatever_stops_a_write_leaves_nothing(error: type[BaseException]) -> None:
    files.write_text(Path("x"), "old")

    def write() -> None:
        with files.replacing(Path("x")) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert Path("x").read_text() == "old"
    assert [path.name for path in Path().iterdir()] == ["x"]


def test_a_file_is_written_beside_its_place() -> None:
    with files.replacing(Path("deep/er/x")):
        parts = list(Path("deep/er").iterdir())
        assert len(parts) == 1
        assert parts[0].name.endswith(".part")
    assert [path.name for path in Path("deep/er").iterdir()] == ["x"]
    Path("deep/er/.x.abc.part").write_text("of a killed process")
    files.remove_parts(Path("deep/er"))
    assert [path.name for path in Path("deep/er").iterdir()] == ["x"]


def test_what_a_killed_writer_left_goes_with_the_next_file() -> None:
    code = (
        "import os, signal; from pathlib import Path; from cnnbench import files\n"
        "with files.replacing(Path('place/x[1]')): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = Path("place").iterdir()
    with files.replacing(Path("place/y")):  # of a process that is still there
        files.write_text(Path("place/z"), "z")
        names = sorted(path.name for path in Path("place").iterdir())
        assert len(names) == 2
        assert left.name not in names
    assert sorted(path.name for path in Path("place").iterdir()) == ["y", "z"]


@pytest.mark.parametrize("place", ["file/x", "folder", "x" * 300])
def test_places_that_cannot_be_written_are_errors_with_their_name(place: str) -> None:
    Path("file").write_text("")
    Path("folder").mkdir()
    with pytest.raises(OSError, match=r".+") as error:
        files.write_text(Path(place), "x")
    assert error.value.filename == place
    assert {path.name for path in Path().iterdir()} == {"file", "folder"}


@given(st.text(max_size=400))
def test_names_of_files_are_short_and_differ_where_the_texts_do(text: str) -> None:
    name = files.safe_name(text)
    assert len(name.encode()) <= files.LONGEST_NAME
    assert "/" not in name
    assert "\x00" not in name
    longer = files.safe_name(text + "x" * 200)
    assert len(longer.encode()) <= files.LONGEST_NAME
    assert longer != files.safe_name(text + "x" * 199 + "y")


def test_a_checksum_finds_changes_and_says_how_to_make_them() -> None:
    value = files.with_checksum({"a": [1, 2.5, "é"], "b": {"c": None}, "t": (1, 2)})
    assert files.without_checksum(json.loads(json.dumps(value)), "x") == {
        "a": [1, 2.5, "é"], "b": {"c": None}, "t": [1, 2],
    }  # fmt: skip
    reordered = dict(reversed(list(value.items())))
    files.without_checksum(reordered, "x")
    with pytest.raises(UserError, match=r"not as it was written.*remove its key 'checksum'"):
        files.without_checksum({**value, "b": {"c": 0}}, "x")
    with pytest.raises(UserError, match="not as it was written"):
        files.without_checksum({**value, "checksum": None}, "x")
    assert files.without_checksum({"a": 1}, "x") == {"a": 1}  # of before there were checksums


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_printable_text_has_no_unprintable_character_and_keeps_the_rest(text: str) -> None:
    shown = printable(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    assert printable(shown) == shown
    shown.encode()
    assert json.loads(to_json({"x": text})) == {"x": text}


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=("Cs",))) | st.integers() | st.none(), min_size=2)))
def test_csv_has_the_cells_that_were_given(rows: list) -> None:
    read = list(csv.reader(io.StringIO(to_csv(rows))))
    assert len(read) == len(rows)
    for given_row, row in zip(rows, read, strict=True):
        for value, cell in zip(given_row, row, strict=True):
            if isinstance(value, str):
                assert cell in (printable(value), "'" + printable(value))
                assert not cell.startswith(("=", "+", "-", "@"))
            else:
                assert cell == ("" if value is None else str(value))


@pytest.mark.parametrize(
    "text",
    ["plain", "LeNet5", "torchvision:resnet18", "MobileNetV1(width_multiplier=0.5)", "CIFAR-10 (JPEG copy)", "12.5"],
)
def test_markdown_of_plain_names_is_readable(text: str) -> None:
    assert markdown(text).replace("\\", "") == text
    assert markdown("12.5 %") == "12.5 %"


@pytest.mark.parametrize("text", ["1e-3", "3E-3", "1e5", "-2e+3", "1.5e3", ".5e-1", "1.e2", "1.0e-3", "1_0e3"])
def test_a_number_with_an_exponent_is_a_number(text: str) -> None:
    value = files.parse_yaml(f"a: [{text}]", "the text")["a"][0]
    # Python's own reading of the text, which needs none of YAML's point and sign.
    assert value == float(text)
    assert isinstance(value, float)


@pytest.mark.parametrize("text", ["e3", "1e", "1e-", "1e3x", "v1e3", "1-e3", "1.2.3e4"])
def test_a_text_like_a_number_with_an_exponent_stays_a_text(text: str) -> None:
    assert files.parse_yaml(f"a: {text}", "the text") == {"a": text}
