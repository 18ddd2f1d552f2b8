"""An HTTP server on this machine for tests: plain files, and a hub that answers as huggingface.co does."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Loopback:
    """What is served, and what was asked for.

    `files`: by path; `models`: by (hub id, commit) the files of a repository; `cut`: paths whose bodies break off
    halfway, with how often they do so; `broken`: paths with a status to answer instead; `asked`: methods and paths.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    models: dict[tuple[str, str], Mapping[str, bytes]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)


@contextmanager
def loopback() -> Iterator[Loopback]:
    """A server that is there for the length of a `with`."""
    site = Loopback()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    site: Loopback
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.site.asked.append(f"{self.command} {path}")
        if path in self.site.broken:
            self.answer(self.site.broken[path])
        elif path in self.site.files:
            self.send_file(path, self.site.files[path])
        elif found := re.fullmatch(r"/api/models/(.+)/(revision|tree)/(\w+)", path):
            self.describe(*found.groups())
        elif found := re.fullmatch(r"/(.+)/resolve/(\w+)/(.+)", path):
            self.resolve(*found.groups())
        else:
            self.answer(404)

    do_HEAD = do_GET

    def describe(self, model: str, what: str, commit: str) -> None:
        """The facts of a model at a commit, or the list of its files."""
        if not (files := self.model(model, commit)):
            return
        if what == "revision":
            facts: object = {"id": model, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        else:
            facts = [_entry(name, data) for name, data in files.items()]
        self.answer(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def resolve(self, model: str, commit: str, name: str) -> None:
        """A file of a model: small ones at once, large ones by a redirect to where they are kept."""
        if not (files := self.model(model, commit)):
            return
        if model in self.site.gated:
            self.answer(403, headers={"X-Error-Code": "GatedRepo"})
        elif name not in files:
            self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
        elif _large(name):
            digest = hashlib.sha256(files[name]).hexdigest()
            self.site.files.setdefault(f"/large/{digest}", files[name])
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(files[name]))}
            # Another host: clients take such an answer for the file's facts and do not send their token there.
            there = self.site.url.replace("127.0.0.1", "localhost")
            self.answer(302, headers={"Location": f"{there}/large/{digest}", "X-Repo-Commit": commit, **linked})
        else:
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_git(files[name])}"'}
            self.send_file(f"/{model}/{name}", files[name], headers)

    def model(self, model: str, commit: str) -> Mapping[str, bytes] | None:
        """The files of a repository; where there is none, the answer has been given."""
        if files := self.site.models.get((model, commit)):
            return files
        known = any(name == model for name, _ in self.site.models)
        self.answer(404, headers={"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        return None

    def send_file(self, path: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        more = {"Accept-Ranges": "bytes", **(headers or {})}
        status, total = 200, len(data)
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
            data, status = data[start : end + 1], 206
            more["Content-Range"] = f"bytes {start}-{end}/{total}"
        cut = self.command == "GET" and self.site.cut.get(path, 0) > 0
        if cut:
            self.site.cut[path] -= 1
        self.answer(status, data, more, cut=cut)

    def answer(
        self, status: int, data: bytes = b"", headers: Mapping[str, str] | None = None, *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: object) -> None:
        pass


def _large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": _git(data)}
    if _large(name):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry
