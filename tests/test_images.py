"""Image files: which are opened, what they become, and what is refused; PNGs are written by hand here."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import socket
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

import cnnbench
from cnnbench import images
from cnnbench.data.class_folders import load_class_folders
from cnnbench.errors import UserError
from cnnbench.explain.networks import read_photo
from cnnbench.images import open_image, read_rgb, to_rgb


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, depth: int, kind: int, rows: list[bytes], *extra: bytes) -> bytes:
    """A PNG by the specification: kind 0 is grey, 2 colour, 3 palette, 4 and 6 the first two with transparency."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [_chunk(b"IHDR", header), *extra, _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


PALETTE = _chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 0]))
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(ran) (w) file closefile\nshowpage\n"
PLAIN = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (_png(2, 1, 1, 0, [b"\x40"]), [[0] * 3, [255] * 3]),
        (_png(2, 1, 2, 0, [b"\x60"]), [[85] * 3, [170] * 3]),
        (_png(2, 1, 4, 0, [b"\x1f"]), [[17] * 3, [255] * 3]),
        (_png(2, 1, 8, 0, [b"\x07\xc8"]), [[7] * 3, [200] * 3]),
        (_png(2, 1, 8, 0, [b"\x07\xc8"], _chunk(b"tRNS", b"\0\x07")), [[255] * 3, [200] * 3]),
        (_png(2, 1, 16, 0, [struct.pack(">2H", 257 * 7, 257 * 200 + 200)]), [[7] * 3, [201] * 3]),
        (_png(2, 1, 16, 0, [struct.pack(">2H", 300, 257)], _chunk(b"tRNS", b"\x01\x2c")), [[255] * 3, [1] * 3]),
        (_png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6])]), [[1, 2, 3], [4, 5, 6]]),
        (_png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6])], _chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3]))),
         [[255] * 3, [4, 5, 6]]),
        (_png(2, 1, 8, 3, [b"\0\1"], PALETTE), [[10, 20, 30], [200, 100, 0]]),
        (_png(2, 1, 1, 3, [b"\x40"], PALETTE), [[10, 20, 30], [200, 100, 0]]),
        (_png(2, 1, 8, 3, [b"\0\1"], PALETTE, _chunk(b"tRNS", b"\xff\0")), [[10, 20, 30], [255] * 3]),
        (_png(2, 1, 8, 4, [bytes([9, 255, 9, 0])]), [[9] * 3, [255] * 3]),
        (_png(2, 1, 8, 6, [bytes([1, 2, 3, 255, 1, 2, 3, 0])]), [[1, 2, 3], [255] * 3]),
    ],
)  # fmt: skip
def test_every_kind_of_png_becomes_rgb(content: bytes, expected: list, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert read_rgb(tmp_path / "x.png").tolist() == [expected]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_every_kind_of_jpeg_becomes_rgb(mode: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).convert(mode).save(tmp_path / "x.jpg", quality=95)
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    expected = [grey] * 3 if mode == "L" else [200, 100, 50]
    np.testing.assert_allclose(read_rgb(tmp_path / "x.jpg").mean((0, 1)), expected, atol=3)


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("La", (0, 0), [255] * 3),
        ("RGBa", (0, 0, 0, 0), [255] * 3),
        ("PA", (0, 0), [255] * 3),
        ("I", (65535,), [255] * 3),
    ],
)
def test_modes_that_pillow_makes_itself_become_rgb(mode: str, pixel: tuple, expected: list, tmp_path: Path) -> None:
    image = Image.new(mode, (1, 1))
    image.putpixel((0, 0), pixel if len(pixel) > 1 else pixel[0])
    assert to_rgb(image, tmp_path).tolist() == [[expected]]


@pytest.mark.parametrize("mode", ["F", "HSV", "LAB"])
def test_modes_that_no_file_has_are_refused(mode: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"its pixels are of kind {mode}; save it as RGB"):
        to_rgb(Image.new(mode, (1, 1)), tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_photos_are_turned_as_their_exif_says(kind: str, orientation: int, tmp_path: Path) -> None:
    """By the definition of each value: where the first row and the first column of the file are shown."""
    shown = np.zeros((16, 8), dtype=np.uint8)
    shown[:8, :4], shown[:8, 4:], shown[8:, :4] = 255, 160, 80
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {}
    Image.fromarray(undo[orientation](shown).copy()).save(tmp_path / "x", kind, exif=exif, **options)
    np.testing.assert_allclose(read_rgb(tmp_path / "x")[..., 0].astype(int), shown.astype(int), atol=4)


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_16_bits_of_colour_are_refused_not_cut(kind: int, tmp_path: Path) -> None:
    values = {2: 3, 4: 2, 6: 4}[kind]
    (tmp_path / "x.png").write_bytes(_png(1, 1, 16, kind, [bytes(2 * values)]))
    with pytest.raises(UserError, match=r"has 16 bits per value in .*; save it with 8"):
        read_rgb(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_content_decides_not_the_name(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(_saved(PLAIN, kind))
    assert open_image(tmp_path / name).format == kind


OTHERS = [
    (_saved(PLAIN, "GIF"), "a GIF image"),
    (_saved(PLAIN, "BMP"), "a BMP image"),
    (_saved(PLAIN, "TIFF"), "a TIFF image"),
    (_saved(PLAIN, "WEBP"), "a WebP image"),
    (_saved(PLAIN, "EPS"), "a PostScript program"),
    (_saved(PLAIN, "PDF"), "a PDF document"),
    (_saved(PLAIN, "PPM"), "of no known kind"),
    (_saved(PLAIN, "TGA"), "of no known kind"),
    (_saved(PLAIN, "ICO"), "of no known kind"),
    (POSTSCRIPT, "a PostScript program"),
    (b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, len(POSTSCRIPT), 0, 0, 0, 0, 0) + POSTSCRIPT, "a PostScript program"),
    (b"\n " + POSTSCRIPT, "a PostScript program"),
    (b"<!DOCTYPE html><title>404</title>", "a text such as HTML or SVG"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a text such as HTML or SVG"),
    (bytes(1000), "of no known kind"),
]


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of Pillow's PostScript reader was called."""
    reached: list[str] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: reached.append("Ghostscript"))
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", lambda *_: reached.append("opened"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: reached.append("a program"))
    return reached


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
@pytest.mark.parametrize(("content", "what"), OTHERS)
def test_other_formats_are_refused_and_nothing_is_run(
    content: bytes, what: str, name: str, tmp_path: Path, no_ghostscript: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read image '.*{name}': it is {what}, not PNG or JPEG; give"):
        read_photo(tmp_path / name)
    assert no_ghostscript == []


def test_a_postscript_program_in_a_class_folder_is_not_run(
    class_folders: Path, tmp_path: Path, no_ghostscript: list[str]
) -> None:
    from conftest import CLASSES

    folder = class_folders / "cifar10-images"
    (folder / "train" / "cat" / "0001.jpg").write_bytes(POSTSCRIPT)
    with pytest.raises(UserError, match=r"cat/0001.jpg': it is a PostScript program, not PNG or JPEG"):
        load_class_folders(folder, CLASSES)
    assert no_ghostscript == []
    assert not (tmp_path / "ran").exists()


def test_pillow_alone_would_have_opened_the_program(no_ghostscript: list[str]) -> None:
    """So that the two tests above cannot pass because their file is none that Pillow takes for PostScript."""
    with contextlib.suppress(Exception):  # what comes after the reader was called does not matter
        Image.open(io.BytesIO(POSTSCRIPT))
    assert no_ghostscript == ["opened"]


def _message(path: Path) -> str:
    """What an image is refused with; empty if it is not."""
    try:
        assert read_rgb(path).shape[2] == 3
    except UserError as error:
        return str(error)
    return ""


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def test_every_changed_byte_of_a_png_is_noticed(tmp_path: Path) -> None:
    small = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    content = _saved(small, "PNG", pnginfo=None)
    for at in range(len(content)):
        (tmp_path / "x.png").write_bytes(_flipped(content, at))
        with pytest.raises(UserError, match=r"x.png'"):
            read_rgb(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_files_that_are_cut_off_are_refused(kind: str, share: float, tmp_path: Path) -> None:
    content = _saved(PLAIN, kind)
    (tmp_path / "x").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"cannot read image '.*x': .*; give a PNG or JPEG file"):
        read_rgb(tmp_path / "x")


def test_damaged_jpegs_end_in_one_line_or_in_pixels(tmp_path: Path) -> None:
    content = _saved(PLAIN, "JPEG")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        start = int(rng.integers(len(content) - 8))
        (tmp_path / "x.jpg").write_bytes(content[:start] + rng.bytes(8) + content[start + 8 :])
        message = _message(tmp_path / "x.jpg")
        refused += bool(message)
        assert re.fullmatch(r"|[^\n]*x\.jpg[^\n]*", message)
    assert refused > 30


@pytest.mark.parametrize(
    "error",
    [OSError("x"), SyntaxError("x"), ValueError("x\ny"), struct.error("x"), EOFError(), zlib.error("x"), MemoryError(),
     OverflowError("x"), KeyError("x"), IndexError(), TypeError("x"), AttributeError("x"), RecursionError("x")],
)  # fmt: skip
def test_any_error_of_a_decoder_is_one_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "x.png").write_bytes(_saved(PLAIN, "PNG"))
    monkeypatch.setattr(images.Image, "open", fail)
    with pytest.raises(UserError, match=r"^cannot read image '.*x.png': [^\n]+; give a PNG or JPEG file$"):
        read_rgb(tmp_path / "x.png")


@pytest.mark.parametrize("size", [(10_000, 9_001), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(_png(*size, 8, 2, [b""]))
    with pytest.raises(UserError, match=f"has {size[0] * size[1]:,} pixels; give one of at most 89,478,485"):
        read_rgb(tmp_path / "x.png")


def test_files_that_are_too_long_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(images.LARGEST_FILE + 1)  # a hole, which takes no room
    with pytest.raises(UserError, match="has 268,435,457 bytes; at most"):
        read_rgb(tmp_path / "x.png")


def test_animations_are_refused_and_single_frames_are_not(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="it is an animation; save the one picture that is meant"):
        read_rgb(tmp_path / "two.png")
    control = _chunk(b"acTL", struct.pack(">2I", 1, 0))
    (tmp_path / "one.png").write_bytes(_png(1, 1, 8, 0, [b"\x05"], control))
    assert read_rgb(tmp_path / "one.png").tolist() == [[[5] * 3]]


def test_a_jpeg_with_further_pictures_is_its_first(tmp_path: Path) -> None:
    pair = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    pair[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=pair[1:], quality=95)
    assert open_image(tmp_path / "x.jpg").format in ("MPO", "JPEG")
    np.testing.assert_allclose(read_rgb(tmp_path / "x.jpg").mean((0, 1)), [250, 0, 0], atol=4)


def test_damaged_exif_is_one_line_or_passed_over(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for damage in (b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + exif.tobytes()[6:20], os.urandom(40)):
        (tmp_path / "x.jpg").write_bytes(_saved(PLAIN, "JPEG", exif=damage))
        assert re.fullmatch(r"|[^\n]*x\.jpg[^\n]*", _message(tmp_path / "x.jpg"))


def _make(kind: str, path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nowhere.png")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path.name))  # relative: addresses are short
    elif kind == "empty":
        path.touch()


@pytest.mark.parametrize(
    ("kind", "words"),
    [("fifo", "a pipe or a device"), ("folder", "is a folder"), ("dangling link", "it links to nothing"),
     ("loop", "cannot be read"), ("device", "a pipe or a device"), ("socket", "a pipe or a device"),
     ("empty", "it is empty"), ("nothing", "does not exist")],
)  # fmt: skip
def test_what_is_no_file_is_named_and_never_waited_for(kind: str, words: str, tmp_path: Path) -> None:
    _make(kind, tmp_path / "x.png")
    with pytest.raises(UserError, match=words) as caught:
        read_rgb(tmp_path / "x.png")
    assert "x.png" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_closed_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(_saved(PLAIN, "PNG"))
    (tmp_path / "x.png").chmod(stat.S_IWUSR)
    with pytest.raises(UserError, match=r"x.png': Permission denied"):
        read_rgb(tmp_path / "x.png")


# Nothing else opens image files

_READERS = {"imread", "read_image", "decode_image", "decode_png", "decode_jpeg", "ImageFolder", "pil_loader"}


def _hides_the_call(node: ast.ImportFrom) -> bool:
    """Whether an import gives Pillow's function or module another name, under which it would not be found."""
    if node.module == "PIL":
        return any(alias.name == "Image" and alias.asname for alias in node.names)
    return node.module == "PIL.Image" and any(alias.name == "open" for alias in node.names)


def _opened(source: str) -> list[int]:
    """The lines of a source at which an image file may be opened: by Pillow, unless out of a buffer, or otherwise."""
    tree = ast.parse(source)
    buffers = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(("BytesIO(", "io.BytesIO("))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _hides_the_call(node):
            lines.append(node.lineno)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        of_pillow = called in ("Image.open", "PIL.Image.open") or called.endswith(".Image.open")
        argument = ast.unparse(node.args[0]) if node.args else ""
        from_buffer = argument in buffers or argument.startswith(("BytesIO(", "io.BytesIO("))
        if called.split(".")[-1] in _READERS or (of_pillow and not from_buffer):
            lines.append(node.lineno)
    return lines


def test_no_other_module_opens_image_files() -> None:
    root = Path(cnnbench.__file__).parent
    # `images.py` decodes what it has found to be a JPEG. The race reads photos of its own by other packages' recipes.
    allowed = {root / "images.py", root / "verification" / "streaming.py"}
    found = {
        f"{path.relative_to(root)}:{line}"
        for path in root.rglob("*.py")
        # The fuzzing decodes for itself too: it is a witness.
        if not path.name.startswith("fuzz_") and path not in allowed
        for line in _opened(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize(
    "source",
    ["from PIL import Image\nImage.open(path)", "import PIL.Image\nPIL.Image.open('x')", "plt.imread(path)",
     "from PIL.Image import open", "from PIL import Image as I\nI.open(path)",
     "out = open(path, 'rb')\nImage.open(out)", "torchvision.io.read_image(path)"],
)  # fmt: skip
def test_the_scan_finds_every_way_to_open_one(source: str) -> None:
    assert _opened(source)
