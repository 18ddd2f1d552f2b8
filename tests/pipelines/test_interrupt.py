"""Ctrl-C and SIGTERM: one line, the right exit code in time, and nothing left behind, whatever the command is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from made import scene
from made_datasets import pairs, write_dataset

from rwkvfusion.infra.pictures.encode import encode_png

STUBBORN = """
import subprocess, sys, time
import click
from rwkvfusion.pipelines.cli import main

@main.command()
def stubborn():
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(2, 1); time.sleep(300)"])
    print("ready", flush=True)
    while True:
        try:
            time.sleep(300)
        except KeyboardInterrupt:
            print("Traceback of a library: retrying", file=sys.stderr, flush=True)
            {then}

main(["stubborn"])
"""
LINES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def check(process: subprocess.Popen[str], number: signal.Signals, family: list[psutil.Process], log: Path) -> None:
    """Ended with the signal's exit code within 10 s, with nothing of it left, and its line as the last one."""
    start = time.monotonic()
    code = process.wait(60)
    seconds = time.monotonic() - start
    text = log.read_text()
    assert code == 128 + number, text
    assert text.splitlines()[-1] == f"rwkvfusion: {LINES[number]}; what was committed stays, the same command goes on"
    assert "Traceback" not in text
    assert "goes on with" not in text
    assert "going on" not in text
    # Those that a busy machine has not buried yet.
    _, left = psutil.wait_procs(family, timeout=3)
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE], left
    assert seconds < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("then", ["raise", "pass", "while True: sum(range(1000))"])
def test_a_signal_ends_a_command_that_swallows_it_too(number: signal.Signals, then: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-c", STUBBORN.format(then=then)], stdout=subprocess.PIPE, stderr=sink, text=True
        )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(number)
    check(process, number, family, log)


def test_a_command_that_waits_is_interrupted_though_the_listener_was_first() -> None:
    program = """
import os, time
from rwkvfusion.pipelines.interrupt import watched
with watched() as watch:
    watch.writer.send(bytes([2]))
    while watch.signal is None:
        time.sleep(0.01)
    try:
        watch.handle(2, None)
    except KeyboardInterrupt:
        os.write(1, b"raised")
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "raised"


class Command:
    """A command in a process group of its own, as a shell starts it."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.log = folder / "log"
        self.family: set[psutil.Process] = set()
        with self.log.open("w") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rwkvfusion.pipelines.cli", *words],
                stdout=sink, stderr=sink, cwd=folder, start_new_session=True, text=True,
                env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "RAY_worker_niceness": "0"},
            )  # fmt: skip

    def wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 400
        while not ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
            self.family |= set(psutil.Process(self.process.pid).children(recursive=True))

    def interrupt(self, number: signal.Signals, *, group: bool) -> None:
        """To all of the group, as a terminal does, or to the command alone."""
        self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
        os.killpg(self.process.pid, number) if group else self.process.send_signal(number)
        check(self.process, number, list(self.family), self.log)

    def runs(self, name: str) -> bool:
        """Whether a process of that name is one of its own."""
        for process in self.family:
            try:
                if any(name in word for word in process.cmdline()):
                    return True
            except psutil.Error:
                continue
        return False


MOMENTS = {
    "prepare": ("imports", "starting Ray", "raylet", "MapWorker", "a manifest"),
    "train": ("reading the datasets", "starting Ray", "RayTrainWorker", "a checkpoint", "storing the model"),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("command", "moment"), [(command, moment) for command, moments in MOMENTS.items() for moment in moments]
)
def test_ctrl_c_at_any_moment(command: str, moment: str, tmp_path: Path) -> None:
    group = moment in ("starting Ray", "MapWorker", "a checkpoint", "storing the model")
    number = signal.SIGTERM if moment in ("raylet", "RayTrainWorker") else signal.SIGINT
    if command == "prepare":
        for folder in ("vi", "ir"):
            (tmp_path / "s" / folder).mkdir(parents=True)
            for i in range(60):
                (tmp_path / "s" / folder / f"{i:02}.png").write_bytes(encode_png(scene(i + (folder == "ir") * 100)))
        sets = ["source.layout=tno", "source.root=s", "output=o", "shard.pairs=2"]
        words = ["prepare", "vif.yaml", *(word for one in sets for word in ("--set", one))]
    else:
        url = write_dataset(tmp_path / "made", pairs(8, 4))
        write_dataset(url, pairs(4, 4), split="test")
        recipe = {
            "data": {"url": url, "crop": [32, 32], "batch": 2}, "network": {"width": 8, "levels": [1]}, "workers": 2,
            "steps": 2000 if moment != "storing the model" else 10, "log_every": 5, "checkpoint_every": 5,
            "output": "t",
        }  # fmt: skip
        recipe["network"] |= {"channel_factors": [1]}  # type: ignore[operator]
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
        words = ["train", "r.yaml"]
    running = Command(tmp_path, *words)
    seen = {
        "imports": lambda: psutil.Process(running.process.pid).cpu_times().user > 1,
        "a manifest": lambda: any(tmp_path.glob("o/*/_manifests/*.json")),
        "a checkpoint": lambda: any(tmp_path.glob("t/*/checkpoint_*/state.json")),
        "raylet": lambda: running.runs("raylet"),
        "MapWorker": lambda: running.runs("MapWorker"),
        "RayTrainWorker": lambda: running.runs("RayTrainWorker"),
    }
    running.wait(seen.get(moment, lambda: moment in running.log.read_text()))
    running.interrupt(number, group=group)
