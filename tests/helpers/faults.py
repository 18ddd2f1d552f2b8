"""A store that fails as stores do: an HTTP proxy on this machine in front of a real S3 server.

Requests are passed on unchanged, Host and all, so that their signatures hold. Processes that are told
`AWS_ENDPOINT_URL=proxy.endpoint` meet the faults, those that are told the server's own endpoint do not.
"""

from __future__ import annotations

import http.client
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

import pytest
from seaweed import environment

Kind = Literal["error", "slow_down", "reset", "lost", "cut_answer", "cut_upload", "delay", "hang"]
"""error: 500. slow_down: 503. reset: the connection breaks before the server hears of the request. lost: the server
does it, and the connection breaks before its answer. cut_answer: it breaks in the middle of the answer. cut_upload: in
the middle of the request's body. delay: the answer comes `delay` seconds later. hang: it never comes."""
PASSING: tuple[Kind, ...] = ("error", "slow_down", "reset", "lost", "cut_answer", "cut_upload", "delay")
"""All but the one that lasts until the client's patience ends."""
_STATUS = {"error": (500, "InternalError"), "slow_down": (503, "SlowDown")}
_HOP = frozenset({"connection", "keep-alive", "expect", "transfer-encoding", "content-length"})
_XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>by plan</Message></Error>'


@dataclass(frozen=True)
class Asked:
    """One request, when it came and what befell it; `path` with its query."""

    method: str
    path: str
    fault: Kind | None
    time: float


class Faults:
    """The proxy, as a context manager.

    Of the requests that `where(method, path)` picks, a share `rate` meets a fault, `times` at most, drawn from `kinds`
    by `seed`. The order of requests is the clients', so the seed fixes how many faults there are and of which kinds,
    not which calls meet them. `down` makes every request fail that way until it is None again; `down_after` sets it
    to "reset" once so many requests have come.
    """

    def __init__(
        self,
        target: str,
        *,
        rate: float = 0.0,
        seed: int = 0,
        kinds: tuple[Kind, ...] = PASSING,
        where: Callable[[str, str], bool] = lambda method, path: True,
        times: int | None = None,
        delay: float = 0.2,
        down_after: int | None = None,
    ) -> None:
        self.target, self.rate, self.kinds, self.where, self.delay = target, rate, kinds, where, delay
        self.times, self.down_after = times, down_after
        self.down: Kind | None = None
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"faults": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint(self) -> str:
        """What clients are to take for the store's own address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def counts(self) -> Counter[str]:
        """Faults so far, by kind."""
        return Counter(asked.fault for asked in list(self.asked) if asked.fault is not None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def draw(self, method: str, path: str, has_body: bool) -> Kind | None:
        """What befalls this request."""
        with self._lock:
            if self.down_after is not None and len(self.asked) >= self.down_after:
                self.down = self.down or "reset"
            fault = self.down or self._planned(method, path, has_body)
            self.asked.append(Asked(method, path, fault, time.monotonic()))
            return fault

    def _planned(self, method: str, path: str, has_body: bool) -> Kind | None:
        kinds = [kind for kind in self.kinds if has_body or kind != "cut_upload"]
        if self.times == 0 or not kinds or not self.where(method, path) or self._random.random() >= self.rate:
            return None
        if self.times is not None:
            self.times -= 1
        return self._random.choice(kinds)


def lead(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """From now on this process takes `endpoint` for the store."""
    import s3fs

    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Many clients connect at once; a full queue would be a fault of ours.
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    faults: Faults
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_expect_100(self) -> bool:
        # Only a request that is to be answered asks for its body.
        return True

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        fault = self.faults.draw(self.command, self.path, chunked or length > 1)
        if fault == "reset":
            return self.break_off()
        if "100-continue" in self.headers.get("Expect", "").lower():
            self.send_response_only(100)
            self.end_headers()
        if fault == "cut_upload" and not chunked:
            self.pass_on(self.rfile.read(length // 2), length, cut=True)
            return self.break_off()
        body = self.read_chunks() if chunked else self.rfile.read(length)
        if fault == "cut_upload":
            self.pass_on(body[: len(body) // 2], len(body), cut=True)
            return self.break_off()
        if fault == "hang":
            return self.hang()
        if fault == "delay":
            time.sleep(self.faults.delay)
        if fault in ("error", "slow_down"):
            status, code = _STATUS[fault]
            return self.answer(status, [("Content-Type", "application/xml")], _XML.format(code).encode())
        status, headers, data = self.pass_on(body, len(body))
        if fault == "lost":
            return self.break_off()
        self.answer(status, headers, data, cut=fault == "cut_answer")
        return None

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def pass_on(self, body: bytes, length: int, cut: bool = False) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's answer to this request with `body`; where it is `cut` nobody waits for one."""
        where = urlsplit(self.faults.target)
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            if self.command in ("PUT", "POST") or length:
                connection.putheader("Content-Length", str(length))
            connection.putheader("Connection", "close")
            connection.endheaders(body)
            if cut:
                return 0, [], b""
            answer = connection.getresponse()
            data = answer.read()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
            if self.command == "HEAD" and answer.getheader("Content-Length"):
                headers.append(("Content-Length", str(answer.getheader("Content-Length"))))
            return answer.status, headers, data
        finally:
            connection.close()

    def answer(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False) -> None:
        """The answer; where it is `cut`, the first half of its body, or a few bytes where there is no body."""
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if self.command != "HEAD" and status not in (204, 304):
            lines.append(f"Content-Length: {len(data)}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        has_body = bool(data) and self.command != "HEAD"
        if cut:
            self.wfile.write(head + data[: len(data) // 2] if has_body else head[:7])
            self.close_connection = True
        else:
            self.wfile.write(head + data if has_body else head)

    def break_off(self) -> None:
        """Reset the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        # The server's own way of closing would say goodbye first; what is still to be read makes this a reset.
        self.rfile.close()
        self.connection.close()

    def hang(self) -> None:
        """Say nothing until the client hangs up."""
        while not self.faults.closing.is_set():
            if select.select([self.connection], [], [], 0.05)[0]:
                break
        self.close_connection = True

    def read_chunks(self) -> bytes:
        """A body in chunks, whole."""
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b"\n", b""):
            continue
        return body

    def log_message(self, format: str, *args: object) -> None:
        pass
