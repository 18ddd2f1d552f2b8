"""The training step with nothing hidden, and its checkpoint. Knows no cluster: the caller may wrap the network in DDP.

All that is random is a function of seed, rank and step, so a checkpoint needs no random state beyond those.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.parse import parse_json
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.model.training.loader import Batch
from rwkvfusion.model.training.losses.config import LossConfig
from rwkvfusion.model.training.losses.loss import Terms, training_loss
from rwkvfusion.stages.dataset.task import LUMA_TASKS

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
BEST = "best.safetensors"
"""Of a checkpoint: the averaged weights of the best validation, where there was any."""


class TrainingError(RwkvFusionError):
    """The training cannot go on; the message says from which step, and what to change."""


class CheckpointError(RwkvFusionError, ValueError):
    """A folder that is not a checkpoint of this training; the message names the file."""


class OptimConfig(BaseModel):
    """AdamW, its schedule, and what guards it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    lr: float = Field(default=1e-3, gt=0, description="highest learning rate")
    final_lr: float = Field(default=0.01, ge=0, le=1, description="learning rate of the last step, as a part of `lr`")
    warmup: int = Field(default=100, ge=0, description="steps of linear rise; never more than a tenth of all steps")
    weight_decay: float = Field(default=1e-6, ge=0, description="of AdamW")
    clip: float = Field(default=1.0, gt=0, description="gradients of a larger norm are scaled down to it")
    ema: float = Field(default=0.999, ge=0, lt=1, description="part of the old average kept per step, after a warm-up")
    max_skipped: int = Field(default=10, ge=1, description="steps in a row without finite gradients that end the run")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on GPUs, fp32 on CPUs")


@dataclass(frozen=True)
class Best:
    """The validation with the best value so far: after how many steps, by which metric, and the averaged weights."""

    step: int
    metric: str
    value: float
    weights: dict[str, Tensor] = field(repr=False)


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Of `step`, from 0: linear rise, then half a cosine down to `final_lr` at the last step."""
    warmup = min(config.warmup, total // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(total - 1 - warmup, 1)
    low = config.final_lr
    return config.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class Trainer:
    """One rank's part of a training.

    Args:
        network: on `device` already.
        wrap: makes the module that is called in training out of the network, e.g. DistributedDataParallel.
        loss: None in it is the preset of `task`, with `paper` the paper's.
        total: steps of the whole training, which the learning rate's schedule needs.
    """

    def __init__(
        self,
        network: RWKVFusion,
        *,
        task: str,
        loss: LossConfig,
        paper: bool = False,
        optim: OptimConfig,
        total: int,
        seed: int,
        rank: int = 0,
        wrap: Callable[[RWKVFusion], nn.Module] = lambda network: network,
    ) -> None:
        self.network, self.task, self.optim = network, task, optim
        self.loss = loss.resolved(task, paper=paper)
        self.total, self.seed, self.rank = total, seed, rank
        self.device = next(network.parameters()).device
        self.module = wrap(network)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=True
        )
        self.ema = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self.done = 0
        """Steps taken: the number of the next one."""
        self.skipped = 0
        self.last_loss = torch.full((), math.nan)
        """Of the last step, the mean over all ranks; not a number before the first."""
        self.best: Best | None = None
        self.waited = 0
        """Validations since the best one."""
        self.stopped = False
        """Whether so many were waited for in vain that the training is over before its last step."""
        self._skipped_in_a_row = 0
        self._bf16 = optim.precision == "bf16" or (optim.precision == "auto" and self.device.type == "cuda")

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step on `batch`; the loss, its terms and the gradient's norm as detached scalars, means over all ranks.

        A step whose loss or gradient is not finite on any rank changes no weight on any. TrainingError after
        `max_skipped` of them in a row.
        """
        torch.manual_seed(hash((self.seed, self.rank, self.done)) % 2**63)
        lr = learning_rate(self.optim, self.done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = self._loss(batch.to(self.device))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.optim.clip)
        values = torch.stack([loss.detach(), *terms.values()])
        if dist.is_initialized():
            dist.all_reduce(values)
            values /= dist.get_world_size()
        self._update(finite=bool(torch.isfinite(values[0]) & torch.isfinite(norm)))
        self.done += 1
        self.last_loss = values[0]
        return {"loss": values[0], **dict(zip(terms, values[1:], strict=True)), "gradient_norm": norm.detach()}

    def _loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            fused = self.module(batch.images, batch.mask, batch.text, batch.text_mask)
        if self.task not in LUMA_TASKS and batch.target is None:
            raise TrainingError(f"{self.task} is trained on a target, and {', '.join(batch.keys)} are without one")
        sources = batch.images if self.task in LUMA_TASKS else ()
        return training_loss(fused, sources, self.loss, mask=batch.mask, target=batch.target)

    def _update(self, *, finite: bool) -> None:
        if not finite:
            self.skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= self.optim.max_skipped:
                raise TrainingError(
                    f"step {self.done}: loss or gradient was not finite {self._skipped_in_a_row} times in a row; "
                    f"try a lower optim.lr than {self.optim.lr:g} or optim.precision=fp32"
                )
            return
        self._skipped_in_a_row = 0
        self.optimizer.step()
        # At the first steps the weights are far from any that are worth remembering.
        decay = min(self.optim.ema, (1 + self.done) / (10 + self.done))
        now = self.network.state_dict()
        torch._foreach_lerp_([self.ema[name] for name in now], list(now.values()), 1 - decay)

    def judge(self, metric: str, value: float, *, better: Literal["higher", "lower"], patience: int | None) -> bool:
        """Note the value of a validation of the averaged weights; whether it is the best so far, which keeps them.

        After `patience` validations in a row that are not, the training is `stopped`. Not a number is never the best.
        """
        sign = 1 if better == "higher" else -1
        is_best = not math.isnan(value) and (self.best is None or sign * value > sign * self.best.value)
        self.waited = 0 if is_best else self.waited + 1
        self.stopped = patience is not None and self.waited >= patience
        if is_best:
            weights = {name: average.clone() for name, average in self.ema.items()}
            self.best = Best(self.done, metric, value, weights)
        return is_best

    def predict(self, batch: Batch) -> Tensor:
        """Fuse `batch` with the averaged weights: (B, C, H, W) float32, on the CPU."""
        batch = batch.to(self.device)
        self.network.eval()
        with torch.inference_mode():
            inputs = (batch.images, batch.mask, batch.text, batch.text_mask)
            fused: Tensor = torch.func.functional_call(self.network, self.ema, inputs)
        return fused.float().cpu()

    def save(self, folder: Path) -> None:
        """Write a checkpoint to `folder`, which is created if missing; the state last, as proof of the rest."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {MODEL: self.network.state_dict(), EMA: self.ema, OPTIMIZER: self._optimizer_tensors()}
        if self.best is not None:
            tensors[BEST] = self.best.weights
        for name, values in tensors.items():
            _save(values, folder / name)
        state = {**self._state(), "files": {name: _file_sha256(folder / name) for name in tensors}}
        (folder / STATE).write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")

    def load(self, folder: Path) -> None:
        """Resume exactly where `save` was called. CheckpointError for a folder of another training, or damaged."""
        with _reading(folder):
            state = _proved(folder, self._identity())
            network, average, moments = (load_file(folder / name) for name in (MODEL, EMA, OPTIMIZER))
            average = {name: average[name].to(self.device) for name in self.ema}
            counts = [int(state[name]) for name in ("done", "skipped", "skipped_in_a_row")]
            last_loss = torch.tensor(float(state["last_loss"]))
            best = _best(folder, state, self.device)
            waited, stopped = int(state.get("waited", 0)), bool(state.get("stopped", False))
            self.network.load_state_dict(network)
        self.ema, self.last_loss = average, last_loss
        self.best, self.waited, self.stopped = best, waited, stopped
        self.done, self.skipped, self._skipped_in_a_row = counts
        self._restore_optimizer(moments)

    def _identity(self) -> dict[str, Any]:
        return {"total": self.total, "seed": self.seed, "task": self.task}

    def _state(self) -> dict[str, Any]:
        counts = {"done": self.done, "skipped": self.skipped, "skipped_in_a_row": self._skipped_in_a_row}
        best = self.best
        return {
            **self._identity(),
            **counts,
            "last_loss": float(self.last_loss),
            "network": asdict(self.network.config),
            "best": None if best is None else {"step": best.step, "metric": best.metric, "value": best.value},
            "waited": self.waited,
            "stopped": self.stopped,
        }

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """`PARAMETER/exp_avg` and so on; a parameter that never had a gradient has none."""
        return {
            f"{name}/{moment}": value
            for name, parameter in self.network.named_parameters()
            for moment, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _restore_optimizer(self, moments: dict[str, Tensor]) -> None:
        parameters = dict(self.network.named_parameters())
        self.optimizer.state.clear()
        for key, value in moments.items():
            name, _, moment = key.rpartition("/")
            # AdamW keeps its counter of steps on the CPU.
            place = "cpu" if moment == "step" else self.device
            self.optimizer.state[parameters[name]][moment] = value.to(place)


@dataclass(frozen=True)
class Trained:
    """What a checkpoint leaves to those who use the network: on the CPU, with the averaged weights.

    Those of the best validation, where there was one (`best`, here without its weights), else the last.
    """

    network: RWKVFusion
    steps: int
    """That were made."""
    loss: float
    """Of the last step."""
    best: Best | None = None


def read_averaged(folder: Path, config: NetworkConfig, *, total: int, seed: int, task: str) -> Trained:
    """The averaged network of the checkpoint in `folder`, of a training of `total` steps with `seed` on `task`.

    CheckpointError for a folder of another training, or damaged.
    """
    with _reading(folder):
        state = _proved(folder, {"total": total, "seed": seed, "task": task})
        best = _best(folder, state, torch.device("cpu"))
        network = RWKVFusion(config)
        network.load_state_dict(load_file(folder / EMA) if best is None else best.weights)
        noted = None if best is None else replace(best, weights={})
        return Trained(network.eval(), int(state["done"]), float(state["last_loss"]), noted)


def _best(folder: Path, state: dict[str, Any], device: torch.device) -> Best | None:
    """Of the checkpoint in `folder`, whose state is `state`; None where it had no validation."""
    noted = state.get("best")
    if noted is None:
        return None
    weights = {name: value.to(device) for name, value in load_file(folder / BEST).items()}
    return Best(int(noted["step"]), str(noted["metric"]), float(noted["value"]), weights)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """CheckpointError for whatever reading a damaged checkpoint raises."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no checkpoint of this training: {error}") from None


def _proved(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The state, once every file is proved to be the one it was written with."""
    state = parse_json((folder / STATE).read_text())
    if not isinstance(state, dict) or not isinstance(files := state.get("files"), dict):
        raise CheckpointError(f"{folder / STATE} does not say what belongs to it")
    names = (MODEL, EMA, OPTIMIZER, *([BEST] if state.get("best") is not None else []))
    damaged = [name for name in names if files.get(name) != _file_sha256(folder / name)]
    if damaged:
        raise CheckpointError(f"{folder} is damaged, or was not stored whole: {', '.join(damaged)}")
    differs = [name for name, value in identity.items() if state.get(name) != value]
    if differs:
        raise CheckpointError(f"{folder / STATE} is of another training: {', '.join(differs)} differ")
    return state


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
