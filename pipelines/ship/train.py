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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvfusion.model.network.config import Size, preset
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.model.training.losses.loss import training_loss
from rwkvfusion.model.training.losses.presets import weights
from rwkvfusion.pipelines.ship.packed import Pack, read


@dataclass(frozen=True)
class Recipe:
    """How one shipped network is trained; what it does not say is its task's preset."""

    task: str
    size: Size = "full"
    steps: int = 6000
    moment: int = 10
    """Of which tenth of the training the averaged weights are shipped."""
    loss: dict[str, float] = field(default_factory=dict)
    crop: int = 128
    """Side of the squares in pixels."""
    batch: int = 8
    lr: float = 1.5e-3
    final_lr: float = 0.01
    """Of the last step, as a part of `lr`: half a cosine, after a rise over the first hundredth."""
    clip: float = 1.0
    ema: float = 0.999
    weight_decay: float = 1e-6
    drop_guidance: float = 0.1
    simulate: float = 0.0
    """Part of the crops whose sources are made of the target, or of a picture that is alone."""
    simulation: str = ""
    """How: a name of `SIMULATIONS`."""
    stops: tuple[float, float, float] = (1.5, 3.5, 3.0)
    """Of exposures that are made: deviation of the light at most, and by how much they are darker and brighter."""
    uneven: float = 0.0
    """By how much sources that are made of one picture differ in level and noise, of those of `SIMULATIONS` that can:
    which of them is in focus then counts where there is nothing to see, too."""
    seed: int = 0
    after: str | None = None
    """The recipe whose averaged weights it begins with."""

    def amount(self, parts: np.ndarray) -> np.ndarray:
        """(B, 4) in 0-1 as `SIMULATIONS` take it: those of exposures in stops."""
        scales = (*self.stops, 1.0) if self.task == "mef" else (1.0,) * 4
        return (parts * scales).astype(np.float32)


RECIPES = {
    "vif": Recipe("vif", steps=18_000, moment=3),
    "vif-tiny": Recipe("vif", "tiny", steps=9_000),
    "vif-after": Recipe(
        "vif",
        steps=1_500,
        loss={"nearer": 34.0, "ssim7": 9.0, "anchor": 600.0},
        batch=3,
        lr=3e-4,
        after="vif",
    ),
    "vif-tiny-after": Recipe(
        "vif",
        "tiny",
        steps=2_700,
        moment=2,
        loss={"nearer": 25.0, "ssim7": 8.2, "anchor": 650.0},
        batch=3,
        lr=3e-4,
        after="vif-tiny",
    ),
    "mif": Recipe("mif", moment=2),
    "mef": Recipe("mef", steps=3_000, simulate=1.0, simulation="exposures"),
    "mef-after": Recipe(
        "mef",
        steps=3_000,
        moment=2,
        loss={"ssim7": 6.0, "qabf": 5.0, "vif": 1.2, "qcb": 0.0, "anchor": 1500.0},
        crop=96,
        batch=3,
        lr=1e-3,
        simulate=1.0,
        simulation="exposures",
        stops=(2.5, 4.5, 3.5),
        after="mef",
    ),
    "mff": Recipe("mff", steps=3_200, simulate=0.5, simulation="focus"),
    "mff-after": Recipe(
        "mff", steps=2_000, moment=3, batch=3, lr=5e-4, simulate=0.5, simulation="focus", uneven=1.0, after="mff"
    ),
}
"""NAME-after goes on with NAME; of the two the later is shipped."""
MOMENTS = 10
"""How often the samples that are held out are looked at, and the averaged weights of then kept."""
_LOGS = 200
_WARM_UP = 0.01
_BEFORE_CAPTURE = 3
"""Steps in which libraries choose how to compute."""


class Pictures:
    """A pack on a device, of which a batch is a gather: nothing waits for the host."""

    def __init__(self, pack: Pack, crop: int, device: torch.device, *, n_objects: int) -> None:
        fitting = [one for one in pack.samples if min(one.planes[0].shape) >= crop]
        self.left_out = len(pack.samples) - len(fitting)
        self.n_train = len(fitting) - pack.held_out
        if self.n_train < 1:
            raise SystemExit(f"no sample is as large as a crop of {crop} pixels, and not held out")
        self.samples, self.crop, self.device = fitting, crop, device
        self.n_images, self.n_objects = len(pack.roles), n_objects
        planes = [plane for one in fitting for plane in one.planes]
        starts = np.cumsum([0, *(plane.size for plane in planes)])
        self.planes = torch.from_numpy(np.concatenate([plane.ravel() for plane in planes])).to(device)
        self.starts = starts[:-1].reshape(len(fitting), -1)
        masks = [one.mask for one in fitting]
        sizes = [0 if mask is None else mask.size for mask in masks]
        # A first crop of zeros stands for all that have no mask.
        nothing = np.zeros(max(one.planes[0].size for one in fitting), np.uint8)
        self.masks = torch.from_numpy(np.concatenate([nothing, *(m.ravel() for m in masks if m is not None)])).to(
            device
        )
        self.mask_starts = np.where(sizes, np.cumsum([nothing.size, *sizes])[:-1], 0)
        self.tokens = np.array([0 if one.text is None else len(one.text) for one in fitting])
        texts = np.zeros((len(fitting), max(1, int(self.tokens.max())), pack.text_width), np.float16)
        for row, one in zip(texts, fitting, strict=True):
            if one.text is not None:
                row[: len(one.text)] = one.text
        self.texts = torch.from_numpy(texts).to(device)

    def draw(self, recipe: Recipe, step: int) -> dict[str, np.ndarray]:
        """What decides the batch of `step`: a function of it and the seed alone."""
        n, epochs = recipe.batch, np.divmod(np.arange(step * recipe.batch, (step + 1) * recipe.batch), self.n_train)
        orders = {e: np.random.default_rng([recipe.seed, 1, int(e)]).permutation(self.n_train) for e in set(epochs[0])}
        chosen = np.array([orders[epoch][i] for epoch, i in zip(*epochs, strict=True)])
        rng = np.random.default_rng([recipe.seed, 2, step])
        sizes = np.array([self.samples[i].planes[0].shape for i in chosen])
        top, left = (rng.integers(sizes[:, axis] - self.crop + 1) for axis in (0, 1))
        down, across = rng.random((2, n)) < 0.5
        sides, heights = (
            np.array([getattr(self.samples[i], name) for i in chosen]) for name in ("names_sides", "names_heights")
        )
        no_text = (rng.random(n) < recipe.drop_guidance) | (sides & across) | (heights & down)
        no_mask = rng.random(n) < recipe.drop_guidance
        table = np.zeros((n, 256), np.int64)
        for row in table:
            row[1 : self.n_objects + 1] = 1 + rng.permutation(self.n_objects)
        return {
            "chosen": chosen,
            "starts": self.starts[chosen],
            "mask_starts": np.where(no_mask, 0, self.mask_starts[chosen]),
            "window": np.stack([sizes[:, 1], top, left, down, across], axis=1).astype(np.int64),
            "table": table,
            "tokens": np.where(no_text, 0, self.tokens[chosen]),
            "simulated": rng.random((n, 1, 1, 1)) < recipe.simulate,
            "amount": recipe.amount(rng.random((n, 4))),
            "field": rng.standard_normal((n, 1, 4, 4)).astype(np.float32),
        } | ({"grain": self._grain(recipe, rng)} if recipe.uneven else {})

    def _grain(self, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
        """(B, 2, H, W) by which two sources of a batch differ: noise of up to 2 grey levels, and a level of up to 3."""
        noise = rng.standard_normal((recipe.batch, 2, self.crop, self.crop)) * rng.random((recipe.batch, 1, 1, 1)) * 2
        level = rng.uniform(-3, 3, (recipe.batch, 2, 1, 1))
        return (recipe.uneven * (noise + level) / 255).astype(np.float32)

    def batch(self, drawn: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None, Tensor, Tensor, Tensor]:
        """Images, target, mask, text and which of its tokens are real: of what `draw` drew."""
        width, top, left, down, across = drawn["window"].unbind(1)
        steps = torch.arange(self.crop, device=self.device)
        rows = top[:, None] + torch.where(down[:, None] > 0, self.crop - 1 - steps, steps)
        columns = left[:, None] + torch.where(across[:, None] > 0, self.crop - 1 - steps, steps)
        places = rows[:, :, None] * width[:, None, None] + columns[:, None, :]
        planes = self.planes[drawn["starts"][:, :, None, None] + places[:, None]].float() / 255
        indices = self.masks[drawn["mask_starts"][:, None, None] + places].long()
        mask = drawn["table"].gather(1, indices.flatten(1)).view_as(indices).to(torch.uint8)
        text = self.texts[drawn["chosen"]].float()
        real = torch.arange(text.shape[1], device=self.device) < drawn["tokens"][:, None]
        return *self._split(planes), mask, text, real

    def held_out(self, recipe: Recipe) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        """The samples that are not trained on: images and target, cut to multiples of 8 pixels."""
        for number, one in enumerate(self.samples[self.n_train :]):
            height, width = (side // 8 * 8 for side in one.planes[0].shape)
            planes = [
                torch.from_numpy(plane[:height, :width].copy()).to(self.device)[None, None].float() / 255
                for plane in one.planes
            ]
            images, target = self._split(torch.cat(planes, dim=1))
            if len(images) < self.n_images:
                rng = np.random.default_rng([recipe.seed, 3, number])
                drawn = recipe.amount(rng.random((1, 4))), rng.standard_normal((1, 1, 4, 4)).astype(np.float32)
                amount, field_ = (torch.from_numpy(one).to(self.device) for one in drawn)
                images, _ = SIMULATIONS[recipe.simulation](images[0], amount, field_, torch.zeros_like(planes[0]))
            yield images, target

    def _split(self, planes: Tensor) -> tuple[list[Tensor], Tensor | None]:
        images = [planes[:, i : i + 1] for i in range(min(self.n_images, planes.shape[1]))]
        return images, planes[:, self.n_images :] if planes.shape[1] > self.n_images else None


def exposures(picture: Tensor, amount: Tensor, field_: Tensor, grain: Tensor) -> tuple[list[Tensor], Tensor]:
    """Two exposures of one picture (B, 1, H, W) under another light, too dark and too bright, each of 8 bits.

    Args:
        picture: in 0-1, taken for a scene by a gamma of 2.2.
        amount: (B, 4): in stops how much the light varies, how dark and how bright; how steep the curve is, in 0-1.
        field_: (B, 1, 4, 4), normal: the light that is laid over the picture, in stops.
        grain: nothing comes of it.
    """
    uneven, dark, bright, curve = (part[:, None, None, None] for part in amount.unbind(1))
    scene = picture**2.2 * torch.exp2(uneven * _stretched(field_, picture))
    power = 1 / (1.8 + 0.8 * curve)
    shots = (scene * torch.exp2(-0.5 - dark), scene * torch.exp2(0.5 + bright))
    return [_rounded(shot.clamp(1e-6, 1) ** power) for shot in shots], grain[:, :1]


def focus(picture: Tensor, amount: Tensor, field_: Tensor, grain: Tensor) -> tuple[list[Tensor], Tensor]:
    """Two pictures of 8 bits, each out of focus where the other is sharp, and the grain of the sharp one of them.

    Args:
        picture: (B, 1, H, W) in 0-1, sharp.
        amount: (B, 4) in 0-1: how far each is out of focus, how hard the border is; the last is not used.
        field_: (B, 1, 4, 4), normal: the first is sharp where it is above 0.
        grain: (B, 2, H, W) that is added to the two.
    """
    near, far, hard, _ = amount.unbind(1)
    share = torch.sigmoid(_stretched(field_, picture) * (4 * 50 ** hard[:, None, None, None]))
    soft = [_out_of_focus(picture, 0.5 * 12**one) for one in (near, far)]
    pictures = torch.lerp(soft[0], picture, share), torch.lerp(picture, soft[1], share)
    first, second = grain[:, :1], grain[:, 1:]
    return [_rounded(one + own) for one, own in zip(pictures, (first, second), strict=True)], torch.lerp(
        second, first, share
    )


def layers(picture: Tensor, amount: Tensor, field_: Tensor, grain: Tensor) -> tuple[list[Tensor], Tensor]:
    """As `focus`, but that what is near spreads over what is behind it where it is out of focus, as a lens has it."""
    near, far, hard, _ = amount.unbind(1)
    share = torch.sigmoid(_stretched(field_, picture) * (4 * 50 ** hard[:, None, None, None]))
    sharp_near = torch.lerp(_out_of_focus(picture, 0.5 * 12**far), picture, share)
    sigma = 0.5 * 12**near
    sharp_far = _out_of_focus(share * picture, sigma) + (1 - _out_of_focus(share, sigma)) * picture
    first, second = grain[:, :1], grain[:, 1:]
    chosen = torch.lerp(second, first, share)
    return [_rounded(sharp_near + first), _rounded((sharp_far + second).clamp(0, 1))], chosen


SIMULATIONS = {"exposures": exposures, "focus": focus, "layers": layers}
"""How two sources are made of one picture, for the tasks of which there are few pairs."""
_TAPS = 33


def _out_of_focus(picture: Tensor, sigma: Tensor) -> Tensor:
    """Each of (B, 1, H, W) under a Gaussian of its own, (B,) pixels."""
    steps = torch.arange(_TAPS, device=picture.device) - _TAPS // 2
    window = torch.exp(-(steps**2) / (2 * sigma[:, None] ** 2))
    window = (window / window.sum(1, keepdim=True))[:, None, None]
    half, planes = _TAPS // 2, picture.transpose(0, 1)
    planes = F.pad(planes, (half,) * 4, mode="reflect")
    planes = F.conv2d(planes, window, groups=len(picture))
    return F.conv2d(planes, window.transpose(2, 3), groups=len(picture)).transpose(0, 1)


def _stretched(field_: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(field_, size=like.shape[2:], mode="bicubic", align_corners=True)


def _rounded(picture: Tensor) -> Tensor:
    return (255 * picture).round() / 255


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
    count, logged, looked = 0, progress(), progress()
    while (now := progress()) < 1 and training.seconds < seconds and not stopped:
        for key, value in training.step(now).items():
            sums[key] = sums[key] + value if key in sums else value.clone()
        count += 1
        if now - logged >= 1 / _LOGS:
            # Reading waits for the device, so that time is that of work that is done.
            means = {key: float(value) / count for key, value in sums.items()}
            training.note("train", means)
            sums, count, logged = {}, 0, now
        if now - looked >= 1 / MOMENTS:
            held_out = training.look()
            training.note("held out", held_out)
            training.save()
            shown = ", ".join(f"{key} {value:.4g}" for key, value in held_out.items())
            say(f"{training.name} {100 * now:3.0f} %, step {training.done}, {training.seconds:.0f} s: {shown}")
            looked = now
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
