"""A server on 127.0.0.1 that speaks as much of W&B's protocol as its client needs, and keeps what it was sent.

The client creates a run by GraphQL, streams history and summary to ``file_stream``, and puts files where the server
told it to. A line of the history counts by its ``_step``, so lines that are sent again replace the earlier ones, and a
resumed run asks for the last step and goes on behind it. That is how W&B's client uploads what is left of a run: it
keeps the first step in a file, so that every upload of the same record has the same steps.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import yaml

Mode = Literal["normal", "denies", "slow", "hangs", "dies", "revokes"]
"""What the server does: answer, say 401 to every request, answer each after a second, never answer, vanish after the
first lines of a history have arrived, or say 401 from then on."""
KEY = "0123456789abcdef" * 2 + "01234567"
"""A key of the form that the client accepts."""
ENTITY = "stubs"


@dataclass
class Run:
    """What the server knows about a run.

    Attributes:
        properties: Last value of each variable that a run was created or changed with, such as ``displayName``.
        config: Configuration as JSON, in which each value is under the key ``value``.
        streams: Lines of each streamed file by offset, parsed; those of the history by step.
        files: Contents of the files that were put, by name.
        artifacts: Name and type of each artifact.
        exit_code: Exit code; None until the run has ended.
    """

    properties: dict[str, Any] = field(default_factory=dict)
    config: str = "{}"
    streams: dict[str, dict[int, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[tuple[str, str]] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Return the lines of the history in the order of their steps."""
        lines = self.streams.get("wandb-history.jsonl", {})
        return [lines[place] for place in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        """Return the last summary."""
        lines = self.streams.get("wandb-summary.json", {})
        return lines[max(lines)] if lines else {}

    @property
    def settings(self) -> dict[str, Any]:
        """Return the configuration without what the client adds for itself."""
        values = json.loads(self.config)
        return {key: entry["value"] for key, entry in values.items() if key != "_wandb"}


class Stub:
    """A running server.

    Attributes:
        url: Address, for ``WANDB_BASE_URL``.
        runs: Runs by id.
        asked: Names of the GraphQL operations that arrived, in order.
        views: Saved workspaces by name.
        sweep: Content of the YAML file of a sweep; None if there is none.
        queue: Values of the parameters of the runs that an agent is to start.
    """

    def __init__(self, mode: Mode = "normal") -> None:
        self.mode = mode
        self.runs: dict[str, Run] = {}
        self.asked: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.sweep: dict[str, Any] | None = None
        self.queue: list[dict[str, Any]] = []
        self.dead = False
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        stub = self

        class Handler(_Handler):
            server_of = stub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.released = threading.Event()
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def die(self) -> None:
        """Close the port, so that further connections are refused."""
        self.dead = True
        # `shutdown` waits for the loop of the server, so it may not be called in a thread that the loop waits for.
        threading.Thread(target=self.close, daemon=True).start()

    def close(self) -> None:
        """Stop the server and let waiting requests end."""
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def run(self, name: str) -> Run:
        """Return the run with an id, which is created if there is none."""
        return self.runs.setdefault(name, Run())

    def named(self, name: str) -> Run:
        """Return the only run that is shown under a name."""
        (found,) = [run for run in self.runs.values() if run.properties.get("displayName") == name]
        return found

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Take lines of a run's streamed files."""
        run = self.run(name)
        for file, chunk in (body.get("files") or {}).items():
            lines = run.streams.setdefault(file, {})
            for place, line in enumerate(chunk["content"], chunk["offset"]):
                # The output of a program is plain text; all other files have a JSON object per line.
                parsed = json.loads(line) if line.startswith("{") else line
                lines[parsed["_step"] if "history" in file else place] = parsed
        if body.get("complete"):
            run.exit_code = body.get("exitcode")
        if run.history and self.mode == "dies":
            self.die()

    def answer(self, operation: str, text: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return the data of the answer to a GraphQL operation."""
        method = getattr(self, f"do_{operation}", None)
        if method is not None:
            return method(values)
        if "serverInfo" in text:
            versions = {"max_cli_version": "99.0", "min_cli_version": "0.1"}
            return {"serverInfo": {"cliVersionInfo": versions, "latestLocalVersionInfo": None, "features": []}}
        if "viewer" in text:
            return {"viewer": _VIEWER}
        # Anything else is answered as by a server that lacks the feature.
        return {"project": None, "entity": None, "model": None}

    def do_UpsertBucket(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = values.get("name") or values["id"].removeprefix("id-")
        run = self.run(name)
        new = not run.properties
        run.properties |= {key: value for key, value in values.items() if value is not None}
        run.config = values.get("config") or run.config
        bucket = {
            "id": f"id-{name}",
            "name": name,
            "displayName": run.properties.get("displayName"),
            "description": "",
            "config": run.config,
            "sweepName": run.properties.get("sweep"),
            "historyLineCount": len(run.history),
            "project": {"id": "p", "name": values.get("project"), "entity": {"id": "e", "name": ENTITY}},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new, "modified": not new}}

    def do_RunResumeStatus(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(values["name"])
        bucket = None
        if run is not None:
            events = run.streams.get("wandb-events.jsonl", {})
            bucket = {
                "id": f"id-{values['name']}",
                "name": values["name"],
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.properties.get("displayName"),
                "logLineCount": 0,
                "historyLineCount": len(run.history),
                "eventsLineCount": len(events),
                "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
                "eventsTail": json.dumps([json.dumps(events[place]) for place in sorted(events)[-1:]]),
                "config": run.config,
                "tags": [],
                # The client takes a run without this entry for one that has not started.
                "wandbConfig": json.dumps({"t": 1}),
            }
        project = {"id": "p", "name": values.get("project"), "entity": {"id": "e", "name": ENTITY}}
        return {"model": project | {"bucket": bucket}}

    def do_CreateRunFiles(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = values["run"]
        files = [{"name": file, "uploadUrl": f"{self.url}/put/{name}/{file}"} for file in values["files"]]
        return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}

    def do_CreateArtifact(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        values = values.get("input") or values
        names = values.get("artifactCollectionNames") or [values.get("artifactCollectionName")]
        self.run(values["runName"]).artifacts.append((names[0], values["artifactTypeName"]))
        sequence = {"id": "sequence", "latestArtifact": None}
        artifact = {"id": f"artifact-{next(self.numbers)}", "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def do_CreateArtifactManifest(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"createArtifactManifest": {"artifactManifest": self._manifest()}}

    def do_UpdateArtifactManifest(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"updateArtifactManifest": {"artifactManifest": self._manifest()}}

    def _manifest(self) -> dict[str, Any]:
        url = f"{self.url}/put/manifest/{next(self.numbers)}"
        return {"id": "m", "file": {"id": "f", "name": "m", "displayName": "m", "uploadUrl": url, "uploadHeaders": []}}

    def do_CreateArtifactFiles(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        asked = (values.get("input") or values).get("artifactFiles") or []
        edges = []
        for file in asked:
            node = {
                "id": f"file-{next(self.numbers)}",
                "name": file["name"],
                "displayName": file["name"],
                "uploadUrl": f"{self.url}/put/artifact/{file['name']}",
                "uploadHeaders": [],
                "storagePath": file["name"],
                "artifact": {"id": file.get("artifactID", "a")},
            }
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def do_CommitArtifact(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}

    def do_UpsertView2(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.views[values["name"]] = values
        return {"upsertView": {"view": {"id": "view", "name": values["name"]}, "inserted": True}}

    def do_SweepWithRuns(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        nothing = ("description", "createdAt", "heartbeatAt", "updatedAt")
        sweep = {
            "id": "sweep",
            "name": values["sweep"],
            "method": "grid",
            "state": "RUNNING",
            "config": yaml.safe_dump(self.sweep),
            **dict.fromkeys(nothing, ""),
            **dict.fromkeys(("earlyStopJobRunning", "bestLoss", "controller", "scheduler")),
            "runs": {"edges": []},
        }
        return {"project": {"sweep": sweep}}

    def do_CreateAgent(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"createAgent": {"agent": {"id": "agent"}}}

    def do_Heartbeat(self, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        running = any(json.loads(values.get("runState") or "{}").values())
        commands: list[dict[str, Any]] = []
        if not running and self.queue:
            arguments = {key: {"value": value} for key, value in self.queue.pop(0).items()}
            trial = {"type": "run", "run_id": f"trial{next(self.numbers)}", "args": arguments}
            commands = [trial | {"program": (self.sweep or {}).get("program", "")}]
        elif not running:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


_VIEWER = {
    "id": "u",
    "entity": ENTITY,
    "username": ENTITY,
    "email": "stub@example.com",
    "admin": False,
    "flags": "{}",
    "teams": {"edges": []},
    "apiKeys": {"edges": []},
}


class _Handler(BaseHTTPRequestHandler):
    """The HTTP side of a `Stub`."""

    server_of: Stub

    def log_message(self, *arguments: Any) -> None:
        return

    def do_GET(self) -> None:
        self._send({})

    def do_PUT(self) -> None:
        content = self._body()
        _, _put, name, *rest = self.path.split("/", 3)
        with self.server_of.lock:
            if rest and name in self.server_of.runs:
                self.server_of.runs[name].files[rest[0]] = content
        self._send({})

    def do_POST(self) -> None:
        body = self._body()
        stub = self.server_of
        if stub.mode == "hangs":
            stub.released.wait()
        if stub.mode == "slow":
            time.sleep(1)
        key = base64.b64decode(self.headers.get("Authorization", "Basic ").split(" ")[-1]).decode()
        with stub.lock:
            late = stub.mode == "revokes" and any(run.history for run in stub.runs.values())
            if stub.mode == "denies" or late or not key.endswith(KEY):
                self._send({"errors": [{"message": "user is not logged in"}]}, 401)
                return
            if "file_stream" in self.path:
                stub.stream(self.path.split("/")[4], json.loads(body))
                self._send({"exitcode": None, "limits": {}})
                return
            request = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            operation = named[1] if named else request["query"][:40]
            stub.asked.append(operation)
            self._send({"data": stub.answer(operation, request["query"], request.get("variables") or {})})

    def _body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            # Each chunk is preceded by its length in hexadecimal digits and followed by an empty line.
            while size := int(self.rfile.readline().strip() or b"0", 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _send(self, document: dict[str, Any], status: int = 200) -> None:
        if self.server_of.dead:
            self.close_connection = True
            return
        content = json.dumps(document).encode()
        # The client may have given up in the meantime.
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


def closed_port() -> str:
    """Return the address of a port of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def serving(mode: Mode = "normal") -> Iterator[Stub]:
    """Run a server inside the block."""
    stub = Stub(mode)
    try:
        yield stub
    finally:
        if not stub.dead:
            stub.close()
