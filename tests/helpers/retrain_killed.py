"""`rwkvfusion retrain` that dies by SIGKILL at one point: `retrain_killed.py POINT RECIPE`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.registry import run as promote_run
from rwkvfusion.pipelines.retrain import run

POINTS = ("in prepare", "prepared", "begun", "in train", "trained", "in promote", "judged", "told")


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **words: Any) -> None:
        function(*args, **words)
        die()

    return wrapped


def dying(point: str) -> None:
    """Put the death where it is to be."""
    prepare, train, write = run.prepare, run.train, run.Store.write

    def killed_preparing(job: Any, **words: Any) -> Any:
        return prepare(job, **{**words, "on_shard": die})

    def killed_training(recipe: Any, **words: Any) -> Any:
        def watch(progress: Any) -> None:
            if progress.step > recipe.steps // 2:
                die()

        return train(recipe, progress=watch, **words)

    def write_and_die(store: Any, name: str, data: bytes) -> None:
        write(store, name, data)
        if name == run.CYCLE and (point == "told") == (b'"told": null' not in data):
            die()

    if point == "in prepare":
        run.prepare = killed_preparing
    elif point == "in train":
        run.train = killed_training
    elif point == "in promote":
        promote_run.report.write = then_die(promote_run.report.write)
    elif point in ("begun", "told"):
        run.Store.write = write_and_die  # type: ignore[method-assign]
    else:
        name = {"prepared": "_prepared", "trained": "train", "judged": "promote"}[point]
        setattr(run, name, then_die(getattr(run, name)))


if __name__ == "__main__":
    dying(sys.argv[1])
    main(["retrain", *sys.argv[2:]])
