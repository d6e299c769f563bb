"""Downloads against a local server that is slow, truncated, wrong or absent."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cnnbench.data import download
from cnnbench.data.download import fetch
from cnnbench.errors import MissingDataError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    requests: list[tuple[str, str | None]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        kind = self.path.strip("/").split("/")[0]
        self.server.requests.append((kind, self.headers.get("Range")))
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "silent":
            time.sleep(3)
            return
        content = bytes(len(CONTENT)) if kind == "wrong" else CONTENT
        start = int(self.headers["Range"].split("=")[1].rstrip("-")) if self.headers.get("Range") else 0
        if kind == "norange":
            start = 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: len(body) // 2] if kind == "truncated" else body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _url(server: Server, kind: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{kind}/file.bin"


def _closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_first_mirror_that_works_is_used(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    fetch([_url(server, "missing"), _url(server, "good")], target, MD5)
    assert target.read_bytes() == CONTENT
    count = len(server.requests)
    fetch([_url(server, "good")], target, MD5)  # it is there and right
    assert len(server.requests) == count


def test_a_part_is_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    fetch([_url(server, "good")], tmp_path / "file.bin", MD5)
    assert server.requests == [("good", "bytes=1000-")]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    fetch([_url(server, "norange")], tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_truncated_mirror_is_continued_by_the_next(server: Server, tmp_path: Path) -> None:
    fetch([_url(server, "truncated"), _url(server, "good")], tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert ("good", f"bytes={len(CONTENT) // 2}-") in server.requests


def test_wrong_content_is_never_kept(server: Server, tmp_path: Path) -> None:
    fetch([_url(server, "wrong"), _url(server, "good")], tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    with pytest.raises(MissingDataError, match="wrong content"):
        fetch([_url(server, "wrong")], tmp_path / "other.bin", MD5)
    assert not (tmp_path / "other.bin").exists()
    assert not (tmp_path / "other.bin.part").exists()


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"damaged")
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:10])
    fetch([_url(server, "good")], tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_every_failure_is_named(server: Server, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{_closed_port()}/file.bin"
    target = tmp_path / "new" / "file.bin"
    with pytest.raises(
        MissingDataError, match=r"tried 127.0.0.1:\d+ \(HTTP 404\); 127.0.0.1:\d+ \(Connection refused\)"
    ):
        fetch([_url(server, "missing"), dead], target, MD5)
    assert not target.parent.exists()


def test_silence_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CONNECT_S", 0.3)
    start = time.monotonic()
    with pytest.raises(MissingDataError, match="no answer within"):
        fetch([_url(server, "silent")] * 3, tmp_path / "file.bin", MD5)
    assert time.monotonic() - start < 2  # not three times a long wait


def test_a_complete_part_needs_no_server(tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch([f"http://127.0.0.1:{_closed_port()}/file.bin"], tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(bytes(len(CONTENT) + 5))
    fetch([_url(server, "good")], tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_own_mirror_comes_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNBENCH_MIRROR", f"http://127.0.0.1:{server.server_port}/good/")
    fetch([_url(server, "missing")], tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_partial_file_that_another_process_renames_is_no_fault(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "file.bin.part"
    part.write_bytes(CONTENT)
    check = download.check_regular

    def renamed_first(path: Path, what: str) -> None:
        if path == part and part.exists():
            part.replace(tmp_path / "file.bin")
        check(path, what)

    monkeypatch.setattr(download, "check_regular", renamed_first)
    fetch([_url(server, "good")], tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_parallel_fetches_load_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    save = download._save
    monkeypatch.setattr(download, "_save", lambda *arguments: saved.append(1) or save(*arguments))
    threads = [
        threading.Thread(target=fetch, args=([_url(server, "good")], tmp_path / "file.bin", MD5)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(saved) == 1
