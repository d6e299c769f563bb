"""Damage to the content of files: to bytes, to text, and to the structure of JSON and YAML documents.

Every function draws from the random generator that it receives, so a case can be repeated. It returns a short
description of the damage together with the damaged content.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Path_ = tuple[Any, ...]
"""Keys and indices that lead from the root of a document to a value."""
TEXTS = (
    "",
    " ",
    "a" * 5000,
    "\x1b[2Jx",
    "\x1b]0;title\x07",
    "a\nb",
    "a\rb",
    "\u202egnp.exe",
    "\ud800",
    "na\x00me",
    "$x$ $5",
    "$\\frac{$",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "=1+1",
    "+cmd",
    "../../x",
    "/etc/passwd",
    "漢字🙂",
    "| a | b |",
    "# head",
    "nan",
    "null",
    "1e999",
    "%s%n",
    "{0.__class__}",
    "os:system(command='touch pwned')",
)
"""Texts that have caused faults in some program."""
NUMBERS = (
    0,
    -1,
    1,
    2,
    17,
    2**31,
    2**63,
    2**64,
    10**30,
    -(10**30),
    0.5,
    -0.5,
    1e-300,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
)
"""Special and extreme numbers."""
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A few lines of YAML whose aliases expand to more than 10^8 values."""


class Raw:
    """A piece of text that is written into a document without change, such as a very deep list."""

    def __init__(self, text: str) -> None:
        self.text = text


def damage_bytes(content: bytes, rng: random.Random, other: bytes = b"") -> tuple[str, bytes]:
    """Return a description of the damage, and the content with one kind of damage.

    Args:
        content: Content of an undamaged file.
        rng: Random generator for the kind and the place of the damage.
        other: Content of a file of another kind, which may replace the file.
    """
    kinds: list[Callable[[bytes, random.Random], tuple[str, bytes]]] = [
        _truncate,
        _truncate_at_a_border,
        _flip_bits,
        _zero,
        _duplicate,
        _cut_out,
        _insert,
        _append,
        _empty,
        _swap_halves,
    ]
    if other:
        kinds.append(lambda content, rng: ("another kind of file", other))
    return rng.choice(kinds)(content, rng)


def _place(content: bytes, rng: random.Random) -> int:
    # Put half of all damage near the start, where the headers are.
    limit = min(len(content), 64) if rng.random() < 0.5 else len(content)
    return rng.randrange(max(1, limit))


def _truncate(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    at = rng.randrange(max(1, len(content)))
    return f"cut after {at} bytes", content[:at]


def _truncate_at_a_border(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    at = rng.choice([1, 4, 8, 16, 17, len(content) // 2, len(content) - 1, len(content) - 4, len(content) - 22])
    return f"cut after {max(at, 0)} bytes", content[: max(at, 0)]


def _flip_bits(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    changed = bytearray(content)
    places = [_place(content, rng) for _ in range(rng.choice([1, 1, 2, 8]))]
    for place in places if content else []:
        changed[place] ^= 1 << rng.randrange(8)
    return f"bits flipped in bytes {', '.join(map(str, places))}", bytes(changed)


def _zero(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    at, size = _place(content, rng), rng.choice([1, 4, 64, 1000])
    size = min(size, len(content) - at)
    return f"{size} bytes zeroed from {at}", content[:at] + bytes(size) + content[at + size :]


def _duplicate(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    at, size = _place(content, rng), rng.choice([1, 16, 500])
    return f"{size} bytes twice from {at}", content[: at + size] + content[at:]


def _cut_out(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    at, size = _place(content, rng), rng.choice([1, 4, 100])
    return f"{size} bytes cut out at {at}", content[:at] + content[at + size :]


def _insert(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    at, piece = _place(content, rng), rng.randbytes(rng.choice([1, 4, 100]))
    return f"{len(piece)} bytes inserted at {at}", content[:at] + piece + content[at:]


def _append(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    piece = rng.choice([b"\0", b"\n", rng.randbytes(100), b"}", b"\0" * 512])
    return f"{len(piece)} bytes appended", content + piece


def _empty(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    return "empty", b""


def _swap_halves(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    middle = len(content) // 2
    return "halves swapped", content[middle:] + content[:middle]


def encodings(text: str, rng: random.Random) -> tuple[str, bytes]:
    """Return a description of the damage, and a text in another encoding or with bytes that are no text."""
    good = text.encode(errors="surrogatepass")
    at = rng.randrange(len(good) + 1)
    return rng.choice(
        [
            ("a byte order mark", b"\xef\xbb\xbf" + good),
            ("UTF-16", text.encode("utf-16", errors="surrogatepass")),
            ("a zero byte", good[:at] + b"\0" + good[at:]),
            ("a byte that is not UTF-8", good[:at] + b"\xff" + good[at:]),
            ("half a surrogate pair", good[:at] + b"\xed\xa0\x80" + good[at:]),
            ("a control character", good[:at] + b"\x1b" + good[at:]),
            ("lines end as on Windows", good.replace(b"\n", b"\r\n")),
        ]
    )


def leaves(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Yield the paths of the values of a document, containers included, without the root.

    Of each list only the first 12 values are visited.
    """
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))[:12]
    for key, below in items:
        yield (*path, key)
        yield from leaves(below, (*path, key))


def get(value: Any, path: Path_) -> Any:
    """Return the value at a path."""
    for key in path:
        value = value[key]
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(below) for key, below in value.items()}
    return [_copy(below) for below in value] if isinstance(value, list) else value


def damage_tree(document: Any, rng: random.Random) -> tuple[str, Any]:
    """Return a description of the damage, and a copy of the document with one value or key damaged."""
    changed = _copy(document)
    paths = list(leaves(changed))
    # Draw the depth first. Most values of a record are samples of times, deep in it, and would be hit nearly always.
    depth = rng.choice(sorted({len(path) for path in paths}))
    path = rng.choice([path for path in paths if len(path) == depth])
    parent, key = get(changed, path[:-1]), path[-1]
    where = ".".join(map(str, path))
    kind = rng.choice(["type", "number", "text", "missing", "unknown", "deep", "twice", "rename"])
    if kind == "missing":
        del parent[key]
        return f"{where} is missing", changed
    if kind in ("unknown", "rename", "twice") and isinstance(parent, dict):
        return _damage_keys(kind, changed, parent, key, where, rng)
    if kind == "number":
        parent[key] = rng.choice(NUMBERS)
    elif kind == "text":
        parent[key] = rng.choice(TEXTS)
    elif kind == "deep":
        parent[key] = Raw("[" * 5000 + "]" * 5000)
        return f"{where} is a list of 5,000 levels", changed
    else:
        parent[key] = rng.choice([None, True, False, "text", 3, 2.5, [], {}, [1, "a"], {"a": 1}, [[]]])
    return f"{where} = {str(parent[key])[:60]!r}", changed


def _damage_keys(
    kind: str, changed: Any, parent: dict[Any, Any], key: Any, where: str, rng: random.Random
) -> tuple[str, Any]:
    if kind == "unknown":
        name = rng.choice(["extra", "__class__", "", "\x1b[2J", "a" * 3000])
        parent[name] = rng.choice([1, None, "x", []])
        return f"an unknown key {name[:20]!r} beside {where}", changed
    value = parent.pop(key)
    if kind == "rename":
        parent[str(key).upper() if str(key).upper() != key else f"{key}x"] = value
        return f"{where} has another name", changed
    parent[key] = value
    parent[_Twin(key)] = rng.choice([None, 1, "x", value])
    return f"{where} is there twice", changed


class _Twin(str):
    """A key with the same text as another key but not equal to it, so that a dictionary can hold both."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def to_json(value: Any) -> str:
    """Return a damaged document as JSON, which may contain NaN, raw pieces and duplicate keys."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))}: {to_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return json.dumps(value)


def damage_json(text: str, rng: random.Random) -> tuple[str, bytes]:
    """Return a description of the damage, and a JSON document whose bytes, encoding or structure are damaged."""
    choice = rng.random()
    if choice < 0.2:
        return damage_bytes(text.encode(), rng, other=b"GIF89a" + rng.randbytes(40))
    if choice < 0.3:
        return encodings(text, rng)
    if choice < 0.38:
        return rng.choice(
            [
                ("a list around it", f"[{text}]".encode()),
                ("null", b"null"),
                ("a number", b"17"),
                ("a text", b'"x"'),
                ("a list", b"[]"),
                ("an object", b"{}"),
                ("two documents", f"{text}\n{text}".encode()),
                ("100,000 levels", b"[" * 100_000),
                ("a number of 5,000 digits", b"9" * 5000),
            ]
        )
    what, damaged = damage_tree(json.loads(text), rng)
    return what, to_json(damaged).encode(errors="surrogatepass")


def damage_yaml(text: str, document: Any, rng: random.Random) -> tuple[str, bytes]:
    """Return a description of the damage, and a YAML document whose bytes, encoding, structure or syntax are damaged.

    Args:
        text: Text of the undamaged document.
        document: Values of the undamaged document.
        rng: Random generator for the damage.
    """
    choice = rng.random()
    if choice < 0.2:
        return damage_bytes(text.encode(), rng, other=b"\x89PNG\r\n\x1a\n" + rng.randbytes(40))
    if choice < 0.3:
        return encodings(text, rng)
    if choice < 0.5:
        return rng.choice(
            [
                ("a bomb of aliases", (text + BOMB).encode()),
                ("a value that contains itself", (text + "own: &own [*own]\n").encode()),
                ("a key that contains itself", b"&a {*a : 1}\n"),
                ("a tag of Python", (text + "own: !!python/object/apply:os.system ['touch pwned']\n").encode()),
                ("a tag of Python's name", (text + "own: !!python/name:os.system\n").encode()),
                ("an unknown tag", (text + "own: !mine 1\n").encode()),
                ("a tab", (text + "\town: 1\n").encode()),
                ("a list", b"- a\n- b\n"),
                ("a text", b"hello\n"),
                ("null", b"null\n"),
                ("comments alone", b"# nothing\n"),
                ("two documents", f"{text}---\n{text}".encode()),
                ("5,000 levels", b"a: " + b"[" * 5000),
                ("an alias of nothing", (text + "own: *none\n").encode()),
                ("a bad date", (text + "own: 2026-99-99\n").encode()),
                ("bad base64", (text + "own: !!binary '%%%'\n").encode()),
                ("a bad merge", (text + "<<: 3\n").encode()),
                ("everything twice", (text + text).encode()),
            ]
        )
    what, damaged = damage_tree(document, rng)
    # JSON is also YAML, except that YAML writes NaN and infinity differently.
    flow = to_json(damaged).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
    return what, flow.encode(errors="surrogatepass")
