"""Stands in for kubectl and the Kubernetes behind it: RayJobs are files of the folder $FAKE_KUBERNETES.

It knows `create --filename FILE` and `get rayjobs.ray.io[/NAME]`, each with `--output json`; a RayJob ends by `end`.
Every call is a line of `calls.txt`; while a file `down` is there, it does not answer. A file `unheard` or `unanswered`
is for one `create`, which then does not come through, or does and has no answer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def install(bin_folder: Path, kubernetes: Path) -> dict[str, str]:
    """Put it on a PATH of its own: the environment by which a process finds it."""
    for folder in (bin_folder, kubernetes):
        folder.mkdir(parents=True)
    program = bin_folder / "kubectl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "FAKE_KUBERNETES": str(kubernetes)}


def jobs(kubernetes: Path) -> list[str]:
    """The names of all RayJobs, in the order in which they were made."""
    return [path.stem for path in sorted(kubernetes.glob("*.json"), key=lambda path: path.stat().st_ctime_ns)]


def calls(kubernetes: Path) -> list[str]:
    """What kubectl was called with."""
    log = kubernetes / "calls.txt"
    return log.read_text().splitlines() if log.exists() else []


def end(kubernetes: Path, name: str, deployment: str = "Complete", job: str = "SUCCEEDED", **more: str) -> None:
    """What KubeRay writes into the status as a RayJob ends."""
    path = kubernetes / f"{name}.json"
    made = json.loads(path.read_text())
    made["status"] = {"jobDeploymentStatus": deployment, "jobStatus": job, **more}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(made))
    new.replace(path)


def _answer(verb: str, what: list[str], kubernetes: Path) -> Any:
    if verb == "create" and what[0] == "--filename":
        made = yaml.safe_load(Path(what[1]).read_text())
        made["metadata"]["name"] = f"{made['metadata']['generateName']}{time.time_ns() % 36**5:05d}"
        (kubernetes / f"{made['metadata']['name']}.json").write_text(json.dumps(made))
        return made
    if verb == "get" and what == ["rayjobs.ray.io"]:
        return {
            "kind": "List",
            "items": [json.loads((kubernetes / f"{name}.json").read_text()) for name in jobs(kubernetes)],
        }
    if verb == "get" and what[0].startswith("rayjobs.ray.io/"):
        path = kubernetes / f"{what[0].partition('/')[2]}.json"
        if not path.exists():
            sys.exit(f'Error from server (NotFound): rayjobs.ray.io "{path.stem}" not found')
        return json.loads(path.read_text())
    sys.exit(f"error: unknown command {verb!r} {what}")


def main() -> None:
    kubernetes = Path(os.environ["FAKE_KUBERNETES"])
    verb, *what, output, kind = sys.argv[1:]
    with (kubernetes / "calls.txt").open("a") as log:
        log.write(" ".join(sys.argv[1:]) + "\n")
    if (kubernetes / "down").exists():
        sys.exit("The connection to the server localhost:8080 was refused - did you specify the right host or port?")
    assert (output, kind) == ("--output", "json")
    lost = [name for name in ("unheard", "unanswered") if verb == "create" and (kubernetes / name).exists()]
    for name in lost:
        (kubernetes / name).unlink()
    answer = None if "unheard" in lost else _answer(verb, what, kubernetes)
    if lost:
        sys.exit("Unable to connect to the server: net/http: TLS handshake timeout")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
