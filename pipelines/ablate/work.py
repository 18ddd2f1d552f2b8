"""One process of a study: trains one variant with one seed on one thread, and scores it. `python -m` runs it.

It is given a folder with `job.json`, and says on stdout, a JSON object a line, how far it is and why it failed.

    model/          weights and config, as `Fuser.save` writes them
    training.json   steps, CPU seconds and loss: written last, so that what is there is whole
    KEY.json        scores on the pairs of one dataset
    log.txt         what libraries printed
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from rwkvfusion.infra.errors import RwkvFusionError, redacted
from rwkvfusion.infra.memory import keep_freed_memory
from rwkvfusion.infra.pictures.units import Picture
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.fusing.tiles import Tile
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.model.training.loader import Batch, Loader
from rwkvfusion.model.training.trainer import Trainer
from rwkvfusion.pipelines.ablate.guided import Contrasts, guided_systems
from rwkvfusion.pipelines.ablate.study import TRAINED, Exam, Training, code_version
from rwkvfusion.pipelines.evaluate.cases.samples import DatasetCases
from rwkvfusion.pipelines.evaluate.results import Results, finite
from rwkvfusion.pipelines.evaluate.run import How, evaluate
from rwkvfusion.pipelines.evaluate.systems import ModelSystem
from rwkvfusion.pipelines.train.build import make_fuser, make_trainer
from rwkvfusion.pipelines.train.plan import TrainPlan, plan_training
from rwkvfusion.pipelines.train.recipe import TrainRecipe

JOB, MODEL = "job.json", "model"
FLOORS = "floors"
"""Name of the folder with the scores of the trivial answers."""
SYSTEM, WHOLE, TILES = "model", "whole", "tiles"
"""What is scored: the model as users have it; where there is a truth also on whole pictures or on tiles of the
training's extent, whichever of the two that is not."""
_PROBE = 0.05
"""Part of the CPU seconds that is spent to find out how many steps fit in them."""
_TOLD_SECONDS = 2.0


class AblateError(RwkvFusionError):
    """A training of a study that cannot be done; the message says why."""


@dataclass(frozen=True)
class Job:
    """What is missing of a training, or of the trivial answers (`training` None), in `folder`."""

    folder: Path
    training: Training | None
    exams: tuple[Exam, ...]

    @property
    def title(self) -> str:
        """For a person."""
        return "the trivial answers" if self.training is None else self.training.title

    @property
    def is_trained(self) -> bool:
        """Whether scores are all that is missing."""
        return self.training is None or (self.folder / TRAINED).exists()

    def write(self) -> None:
        """Leave it in its folder, for the process that does it."""
        training = None if self.training is None else asdict(self.training)
        facts = {"training": training, "exams": [asdict(exam) for exam in self.exams]}
        _write(self.folder / JOB, facts)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """What `write` left."""
        facts = json.loads((folder / JOB).read_text(encoding="utf-8"))
        training = None if facts["training"] is None else Training(**facts["training"])
        exams = tuple(
            Exam(**{**exam, **{name: tuple(exam[name]) for name in ("splits", "guidances")}}) for exam in facts["exams"]
        )
        return cls(folder, training, exams)


def main(folder: Path) -> int:
    """Do the job in `folder`; the exit code."""
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        job = Job.read(folder)
        fuser = None if job.training is None else _fuser(job, job.training)
        for exam in job.exams:
            _write(folder / f"{exam.key}.json", _scores(fuser, exam))
        return 0
    except RwkvFusionError as error:
        _tell(error=str(error))
    except Exception as error:  # noqa: BLE001 - whatever a variant may run into, the others go on
        traceback.print_exc()
        words = redacted(str(error)).strip().splitlines() or [""]
        _tell(error=f"{type(error).__name__}: {words[0]}")
    return 1


def _fuser(job: Job, training: Training) -> Fuser:
    """The fuser of a training, which is done unless it was."""
    folder = job.folder
    if not job.is_trained:
        # The parent may have waited for hours: results would be named after code that they are not of.
        if code_version() != training.code:
            raise AblateError("the code has changed since this study was started: start it again")
        part = folder / "model.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        fuser, facts = _train(training)
        fuser.save(part)
        part.rename(folder / MODEL)
        _write(folder / TRAINED, facts)
    return Fuser.load(folder / MODEL)


def _train(training: Training) -> tuple[Fuser, dict[str, Any]]:
    settings = {**training.settings, "workers": 1, "threads": 1, "seed": training.seed}
    # What is made ahead is made by other threads.
    settings["data"] = {**settings["data"], "prefetch": 0}
    plan = plan_training(TrainRecipe.model_validate(settings))
    if training.seconds is not None:
        plan = replace(plan, recipe=_fitting(plan, training.seconds))
    trainer, loader = _trainer(plan), plan.loader(0, 1)
    steps = plan.recipe.steps
    begun, wall = time.process_time(), time.perf_counter()
    for _ in _steps(trainer, loader, steps):
        pass
    seconds = time.process_time() - begun
    trainer.network.load_state_dict(trainer.ema)
    return make_fuser(plan, trainer.network.eval()), {
        "variant": training.variant,
        "seed": training.seed,
        "steps": steps,
        "cpu_seconds": seconds,
        "cpu_seconds_a_step": seconds / steps,
        "wall_seconds": time.perf_counter() - wall,
        "loss": float(trainer.last_loss),
        "skipped_steps": trainer.skipped,
        "settings": training.settings,
        "code": training.code,
        "commit": commit(),
        "package_version": package_version(),
    }


def _trainer(plan: TrainPlan) -> Trainer:
    return make_trainer(plan, torch.device("cpu"), rank=0, world=1)


def _fitting(plan: TrainPlan, seconds: float) -> TrainRecipe:
    """The recipe with as many steps as fit in `seconds` of CPU time, found out by steps that are then forgotten."""
    trainer, loader, done = _trainer(plan), plan.loader(0, 1), 0
    # The first steps find memory and kernels cold.
    for batch in islice(loader.stream(), 2):
        trainer.step(batch)
    begun = time.process_time()
    for batch in loader.stream(2):
        trainer.step(batch)
        done += 1
        if time.process_time() - begun > _PROBE * seconds and done >= 3:
            break
    each = (time.process_time() - begun) / done
    return plan.recipe.model_copy(update={"steps": max(int(seconds / each), 1)})


def _steps(trainer: Trainer, loader: Loader, steps: int) -> Iterator[None]:
    told = time.perf_counter()
    batch: Batch
    for batch in islice(loader.stream(), steps):
        values = trainer.step(batch)
        if time.perf_counter() - told > _TOLD_SECONDS:
            told = time.perf_counter()
            _tell(step=trainer.done, of=steps, loss=float(values["loss"]))
        yield


def _scores(fuser: Fuser | None, exam: Exam) -> dict[str, Any]:
    """The values of every metric for every pair, of the model or, without one, of the trivial answers."""
    selected = exam.select()
    has_truth = next(iter(selected.dataset.samples())).target is not None
    systems = [] if fuser is None else [ModelSystem(SYSTEM, fuser)]
    if fuser is not None and has_truth and fuser.config.extent is not None:
        is_whole = fuser.tile_of("auto") is None
        other = _Tiled(fuser, "extent" if is_whole else "whole")
        systems.append(ModelSystem(TILES if is_whole else WHOLE, other))
    if fuser is not None:
        systems += guided_systems(fuser, exam.guidances, selected)
    contrasts = Contrasts() if exam.guidances else None

    def told(done: int, total: int) -> None:
        _tell(scored=done, of=total)

    results = evaluate(
        DatasetCases([selected], {}), systems, How(floors=fuser is None, on_scene=told, on_case=contrasts)
    )
    if results.failed:
        raise ScoreError(results.failed[0])
    return {
        "url": exam.url,
        "splits": list(exam.splits),
        "task": results.task,
        "comparisons": [scored.comparison for scored in results.scored],
        "rows": _rows(results),
        "contrasts": {} if contrasts is None else contrasts.rows,
    }


class _Tiled(Fuser):
    """A fuser that is shown tiles of one size."""

    def __init__(self, fuser: Fuser, tile: Tile) -> None:
        super().__init__(fuser.network, fuser.config)
        self.tile = tile

    def fuse_pictures(
        self,
        pictures: Mapping[str, Picture],
        mask: np.ndarray | None = None,
        text: np.ndarray | None = None,
        tile: Tile = "auto",
    ) -> np.ndarray:
        """As its own kind, in its own tiles."""
        return super().fuse_pictures(pictures, mask, text, self.tile)


def _rows(results: Results) -> dict[str, dict[str, dict[str, float | None]]]:
    """{name: {metric: {pair: value}}} of all comparisons; None for what is not finite."""
    rows: dict[str, dict[str, dict[str, float | None]]] = {}
    for scored in results.scored:
        for name, values in scored.values.items():
            for metric, column in values.items():
                of_pairs = dict(zip(scored.keys, map(float, column), strict=True))
                rows.setdefault(name, {})[metric] = finite(of_pairs)
    return rows


def read_json(path: Path) -> dict[str, Any] | None:
    """A file that `_write` wrote; None where it is not there."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return facts


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    """Whole, or not at all."""
    Store(str(path.parent)).write(path.name, (json.dumps(facts, indent=1) + "\n").encode())


def _tell(**facts: Any) -> None:
    # Where nobody listens any more, the write fails and the work ends.
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
