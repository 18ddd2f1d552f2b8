"""Trains the networks that the package ships, where there is nothing but torch and numpy: `make train-gpu`.

    python infra/checkout.py rwkvfusion.pipelines.ship.train vif --pack vif.npz --out OUT --seconds 300

Each training is a process of its own on a device that they may share. It stops at its limit of time or of steps, and
the same command with more of either goes on where it stopped. OUT/NAME.npz has the weights, the averaged ones of
several moments and what is needed to go on; OUT/NAME.jsonl the curves, with the terms of the loss on samples held out.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rwkvfusion.model.network.config import preset
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.model.training.losses.loss import training_loss
from rwkvfusion.model.training.losses.presets import weights
from rwkvfusion.pipelines.ship.packed import Pack, read
from rwkvfusion.pipelines.ship.pictures import Pictures
from rwkvfusion.pipelines.ship.recipes import RECIPES, Recipe
from rwkvfusion.pipelines.ship.simulations import SIMULATIONS

MOMENTS = 10
"""How often the samples that are held out are looked at, and the averaged weights of then kept."""
_LOGS = 200
_WARM_UP = 0.01
_BEFORE_CAPTURE = 3
"""Steps in which libraries choose how to compute."""


class Training:
    """One training: its network, its place in it, and what it leaves."""

    def __init__(self, name: str, recipe: Recipe, pack: Pack, device: torch.device, folder: Path) -> None:
        self.name, self.recipe, self.pack, self.device, self.folder = name, recipe, pack, device, folder
        torch.manual_seed(recipe.seed)
        config = replace(preset(recipe.task, size=recipe.size), text_width=pack.text_width)
        self.network = RWKVFusion(config).to(device).train()
        self.loss: Any = SimpleNamespace(**(weights(recipe.task) | recipe.loss))
        self.pictures = Pictures(pack, recipe.crop, device, n_objects=config.max_objects)
        self.parameters = dict(self.network.named_parameters())
        self.ema = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=torch.tensor(recipe.lr, device=device) if device.type == "cuda" else recipe.lr,
            weight_decay=recipe.weight_decay,
            capturable=device.type == "cuda",
        )
        self.done, self.seconds = 0, 0.0
        self.moments: dict[str, dict[str, Tensor]] = {}
        self._drawn: dict[str, Tensor] = {}
        self._out: dict[str, Tensor] = {}
        self._graph: Any = None
        self._made = 0

    # One step.

    def step(self, progress: float) -> dict[str, Tensor]:
        """Make one; `progress` is how much of the training is over, 0 to 1. The loss and its terms, not yet read."""
        recipe = self.recipe
        for key, array in self.pictures.draw(recipe, self.done).items():
            tensor = torch.from_numpy(array)
            if key not in self._drawn:
                self._drawn[key] = tensor.to(self.device)
            else:
                self._drawn[key].copy_(tensor, non_blocking=True)
        if self._graph is None and self.device.type == "cuda" and self._made >= _BEFORE_CAPTURE:
            self._capture()
        if self._graph is None:
            self._out = self._differentiate()
        else:
            self._graph.replay()
        self._made += 1
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (recipe.clip / (norm + 1e-6)).clamp(max=1))
        self._set_lr(progress)
        self.optimizer.step()
        decay = min(recipe.ema, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.parameters.values()], 1 - decay)
        self.done += 1
        return self._out | {"gradient_norm": norm}

    def _set_lr(self, progress: float) -> None:
        low, rise = self.recipe.final_lr, min(1.0, (progress + 1e-4) / _WARM_UP)
        lr = self.recipe.lr * rise * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _differentiate(self) -> dict[str, Tensor]:
        images, target, mask, text, real = self.pictures.batch(self._drawn)
        if self.recipe.simulate:
            sharp = images[0] if target is None else target
            made, grain = SIMULATIONS[self.recipe.simulation](
                sharp, self._drawn["amount"], self._drawn["field"], self._grain()
            )
            if target is not None:
                target = torch.where(self._drawn["simulated"], target + grain, target)
            images = [
                torch.where(self._drawn["simulated"], one, images[min(i, len(images) - 1)])
                for i, one in enumerate(made)
            ]
        for parameter in self.parameters.values():
            parameter.grad = None
        with _short_products():
            fused = self.network(images, mask, text, real)
        held = fused.detach().requires_grad_()
        loss, terms = training_loss(held, images, self.loss, mask=mask, target=target)
        loss.backward()
        with _short_products():
            fused.backward(held.grad)
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0, 0, 0)
        return {"loss": loss.detach(), **terms}

    def _grain(self) -> Tensor:
        return self._drawn.get("grain", torch.zeros((), device=self.device).expand(1, 2, 1, 1))

    def _capture(self) -> None:
        """Record the step up to its gradients: replayed, its many small kernels wait for nothing."""
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = self._differentiate()

    # What it leaves.

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """The terms of the loss on the samples that are held out, by the averaged weights; these are kept too."""
        self.moments[str(self.done)] = {name: value.clone() for name, value in self.ema.items()}
        sums: dict[str, float] = {}
        self.network.eval()
        for images, target in self.pictures.held_out(self.recipe):
            fused = cast(Tensor, torch.func.functional_call(self.network, self.ema, (images,)))
            loss, terms = training_loss(fused, images, self.loss, target=target)
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0.0) + float(value) / self.pack.held_out
        self.network.train()
        return sums

    def note(self, kind: str, values: dict[str, float]) -> None:
        """A line of the curves."""
        line = {"kind": kind, "step": self.done, "seconds": round(self.seconds, 2), **values}
        with (self.folder / f"{self.name}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write the checkpoint; what was there before stays until it is whole."""
        arrays: dict[str, Tensor] = {}
        groups: dict[str, Mapping[str, Tensor]] = {
            "network": self.parameters,
            "ema": self.ema,
            **{f"at/{k}": v for k, v in self.moments.items()},
        }
        for group, tensors in groups.items():
            arrays |= {f"{group}/{name}": value for name, value in tensors.items()}
        for name, parameter in self.parameters.items():
            arrays |= {f"{kind}/{name}": value for kind, value in self.optimizer.state.get(parameter, {}).items()}
        state = {
            "name": self.name,
            "recipe": asdict(self.recipe),
            "network": asdict(self.network.config),
            "pack": {"task": self.pack.task, "roles": self.pack.roles, "about": self.pack.about},
            "samples": self.pictures.n_train,
            "done": self.done,
            "seconds": round(self.seconds, 2),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
        }
        part = self.folder / f"{self.name}.npz.part"
        with part.open("wb") as file:
            all_of_it = {key: value.detach().cpu().numpy() for key, value in arrays.items()}
            all_of_it["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
            np.savez(file, **all_of_it)  # type: ignore[arg-type]
        part.replace(self.folder / f"{self.name}.npz")

    def begin_with(self, path: Path) -> None:
        """Take the averaged weights of another training of the same network."""
        state, groups = load(path)
        if state["name"] != self.recipe.after:
            raise SystemExit(f"{path} is of {state['name']}, {self.name} begins with {self.recipe.after}")
        average = averaged(groups, RECIPES[state["name"]].moment)[0]
        self.network.load_state_dict({name: torch.from_numpy(value) for name, value in average.items()})
        self.ema = self._on_device(average)

    def resume(self) -> None:
        """Go on from the checkpoint in the folder, where there is one."""
        path = self.folder / f"{self.name}.npz"
        if not path.exists():
            (self.folder / f"{self.name}.jsonl").unlink(missing_ok=True)
            return
        state, groups = load(path)
        if state["recipe"] != json.loads(json.dumps(asdict(self.recipe))):
            raise SystemExit(f"{path} is of another recipe: give another --out, or move it away")
        self.done, self.seconds = state["done"], state["seconds"]
        self.moments = {k.removeprefix("at/"): self._on_device(v) for k, v in groups.items() if k.startswith("at/")}
        self.ema = self._on_device(groups["ema"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(groups["network"][name]))
                self.optimizer.state[parameter] = {
                    kind: torch.from_numpy(groups[kind][name].copy()).to(self.device)
                    for kind in ("step", "exp_avg", "exp_avg_sq")
                    if name in groups.get(kind, {})
                }

    def _on_device(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(arrays[name].copy()).to(self.device) for name in self.parameters}


@contextmanager
def _short_products() -> Iterator[None]:
    """TF32 within: for the network, whose layers are wide; the variances of the losses need all of float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def load(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """State and arrays of a checkpoint, these by group (`ema`, `network`, `at/STEP` ...) and name."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            group, _, name = key.rpartition("/")
            groups.setdefault(group, {})[name] = file[key]
    return json.loads(groups.pop("")["state"].tobytes()), groups


def averaged(groups: Mapping[str, dict[str, np.ndarray]], moment: int) -> tuple[dict[str, np.ndarray], int]:
    """The averaged weights of a tenth of the training, and the step of then. ValueError where it did not get there."""
    steps = sorted(int(name[3:]) for name in groups if name.startswith("at/"))
    if moment > len(steps):
        raise ValueError(f"{len(steps)} tenths of the training are made: go on with it to the {moment}th")
    return groups[f"at/{steps[moment - 1]}"], steps[moment - 1]


def run(training: Training, seconds: float, steps: int, say: Callable[[str], object] = print) -> None:
    """Train until `steps` are made or `seconds` are over, whichever is first; of 0 steps time is the measure."""
    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.append(True))
    training.resume()
    before, since = training.seconds, time.monotonic()

    def progress() -> float:
        training.seconds = before + time.monotonic() - since
        return training.done / steps if steps else training.seconds / seconds

    sums: dict[str, Tensor] = {}
    count, logged = 0, progress()
    while (now := progress()) < 1 and training.seconds < seconds and not stopped:
        for key, value in training.step(now).items():
            sums[key] = sums[key] + value if key in sums else value.clone()
        count += 1
        if now - logged >= 1 / _LOGS:
            # Reading waits for the device, so that time is that of work that is done.
            means = {key: float(value) / count for key, value in sums.items()}
            training.note("train", means)
            sums, count, logged = {}, 0, now
        # By how many there are, so that a tenth is a tenth also of a training that was stopped in between.
        if now >= (len(training.moments) + 1) / MOMENTS:
            held_out = training.look()
            training.note("held out", held_out)
            training.save()
            shown = ", ".join(f"{key} {value:.4g}" for key, value in held_out.items())
            say(f"{training.name} {100 * now:3.0f} %, step {training.done}, {training.seconds:.0f} s: {shown}")
    if progress() >= 1 and str(training.done) not in training.moments:
        training.note("held out", training.look())
    training.save()
    say(f"{training.name}: {training.done} steps in {training.seconds:.0f} s")


def main() -> int:
    """Train one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES), help="which of the shipped networks")
    parser.add_argument("--pack", type=Path, required=True, help="what `ship.pack` made of its datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and curves")
    parser.add_argument("--seconds", type=float, default=math.inf, help="limit of time, over all goes")
    parser.add_argument(
        "--steps", type=int, help="where not the recipe's; 0: as --seconds allow, the rate falls by time"
    )
    parser.add_argument("--batch", type=int, help="crops a step, where not the recipe's")
    parser.add_argument("--crop", type=int, help="their side in pixels, where not the recipe's")
    parser.add_argument("--init", type=Path, help="checkpoint of the recipe that this one comes after")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="weights of the loss, to try")
    parser.add_argument("--lr", type=float, help="highest learning rate, where not the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.steps == 0 and math.isinf(given.seconds):
        parser.error("--steps 0 takes a limit of --seconds")
    recipe = replace(RECIPES[given.name], seed=given.seed)
    recipe = replace(
        recipe, batch=given.batch or recipe.batch, crop=given.crop or recipe.crop, lr=given.lr or recipe.lr
    )
    changed = {name: float(value) for name, _, value in (one.partition("=") for one in given.set)}
    recipe = replace(recipe, loss=recipe.loss | changed)
    if bool(recipe.after) != bool(given.init):
        parser.error(f"{given.name} begins with {recipe.after or 'nothing'}: give --init its checkpoint, or none")
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    pack = read(given.pack)
    if pack.task != recipe.task:
        parser.error(f"{given.pack} is of {pack.task}, {given.name} of {recipe.task}")
    training = Training(given.name, recipe, pack, torch.device(given.device), given.out)
    if given.init:
        training.begin_with(given.init)
    if training.pictures.left_out:
        print(f"{training.pictures.left_out} samples are smaller than a crop, and left out")
    run(training, given.seconds, recipe.steps if given.steps is None else given.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
