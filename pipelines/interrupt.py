"""Ctrl-C and SIGTERM: one line, exit code 130 or 143 within seconds, and no process of ours left behind.

The first signal raises KeyboardInterrupt, so that leases, runs and folders are given back. What is not done with that
after a few seconds, or when a second signal comes, is cut off: what is committed stays, as after any death.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from rwkvfusion.pipelines import console

GRACE_SECONDS = 4.0
"""What a command may take to give back what it holds."""
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Watch:
    """Listens for signals while a command runs."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The first that came."""
        self._has_raised, self._is_ending, self._printed = False, False, False
        self._family: set[psutil.Process] = set()
        self._lock = threading.RLock()
        self._stderr = os.dup(2)
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def handle(self, number: int, _: FrameType | None) -> None:
        """The handler of both signals; the main thread runs it, before or after the listener hears of the signal."""
        if not self._has_raised:
            self._has_raised = True
            self.signal = self.signal or number
            self._mute()
            raise KeyboardInterrupt

    def caused(self, error: BaseException) -> bool:
        """Whether a signal ended the command by `error`, whatever that is; Ray's handler of SIGTERM exits with 15."""
        if self.signal is None and isinstance(error, KeyboardInterrupt):
            self.signal = signal.SIGINT
        if self.signal is None and isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            self.signal = signal.SIGTERM
        return self.signal is not None

    def end(self) -> int:
        """Say what came, and end the processes that this one started: the exit code."""
        assert self.signal is not None
        self._begin(self.signal)
        with self._lock:
            if not self._printed:
                word = _WORDS[signal.Signals(self.signal)]
                line = f"rwkvfusion: {word}; what was committed stays, the same command goes on\n"
                with contextlib.suppress(OSError):
                    os.write(self._stderr, line.encode())
            self._printed = True
            for process in self._family | _children():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        return 128 + self.signal

    def close(self) -> None:
        """Stop listening. Once a signal has come, the time until the process ends stays limited."""
        if self.signal is None:
            self.writer.close()
            os.close(self._stderr)

    def _listen(self) -> None:
        """Hear of signals past their handlers, which libraries replace: Ray's ends with an exit code of its own."""
        with self.reader:
            while numbers := self.reader.recv(64):
                for number in numbers:
                    if number in _WORDS and not self._begin(number):
                        self._cut()

    def _begin(self, number: int) -> bool:
        """Mute the process and limit the time until it ends. False where that was done before."""
        with self._lock:
            if self._is_ending:
                return False
            self._is_ending = True
            self.signal = self.signal or number
            self._mute()
            # Else a main thread that computes lets this one run for each file of /proc only after 5 ms.
            sys.setswitchinterval(1e-4)
            # First of all: on a busy machine, listing processes takes seconds.
            timer = threading.Timer(GRACE_SECONDS, self._cut)
            timer.daemon = True
            timer.start()
            console.clear()
            self._family = _children()
            return True

    def _mute(self) -> None:
        """What libraries print of their parts that end now would say that something went wrong, or goes on."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)

    def _cut(self) -> None:
        os._exit(self.end())


_watch: Watch | None = None


@contextmanager
def watched() -> Iterator[Watch | None]:
    """Listen for signals while the block runs; None in another thread than the main one, which gets no signals."""
    global _watch
    if threading.current_thread() is not threading.main_thread() or _watch is not None:
        yield None
        return
    watch = _watch = Watch()
    handlers = {number: signal.getsignal(number) for number in _WORDS}
    descriptor = signal.set_wakeup_fd(watch.writer.fileno(), warn_on_full_buffer=False)
    restore_handlers()
    try:
        yield watch
    finally:
        if watch.signal is None:
            signal.set_wakeup_fd(descriptor)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        watch.close()
        _watch = None


def restore_handlers() -> None:
    """Handle the signals here again, after a library has taken them over."""
    if _watch is not None and threading.current_thread() is threading.main_thread():
        for number in _WORDS:
            signal.signal(number, _watch.handle)


def is_ending() -> bool:
    """Whether a signal has come, and stderr is muted for good."""
    return _watch is not None and _watch.signal is not None


def _children() -> set[psutil.Process]:
    try:
        return set(psutil.Process().children(recursive=True))
    except psutil.Error:
        return set()
