"""From what was asked for to cases and systems."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.pipelines.evaluate.cases.folders import FolderCases
from rwkvfusion.pipelines.evaluate.cases.samples import DatasetCases, select_samples
from rwkvfusion.pipelines.evaluate.systems import FolderSystem, Guidance, ModelSystem, System

_OF_FOLDERS, _OF_DATASETS = ("none", "builtin"), ("none", "text", "mask", "all")


def systems_of(
    folders: Collection[str],
    models: Mapping[str, str],
    guidances: Sequence[Guidance],
    *,
    is_raw: bool,
    tracking: str | None,
    jobs: int,
) -> list[System]:
    """The folders of fused pictures, by name, and then the models behind the URIs of `models`, each once for each of
    `guidances`.

    `is_raw`: whether the pairs are in folders. ScoreError for a guidance that such pairs or a model do not have.
    """
    systems: list[System] = [FolderSystem(name) for name in folders]
    if not models:
        return systems
    # It takes torch to import, which folders do not need.
    from rwkvfusion.pipelines.fuse.guide import Guide
    from rwkvfusion.pipelines.fuse.jobs import Room
    from rwkvfusion.pipelines.fuse.run import open_model

    available, words = (_OF_FOLDERS, "folders") if is_raw else (_OF_DATASETS, "a dataset")
    if unknown := [one for one in guidances if one not in available]:
        raise ScoreError(f"--guidance {unknown[0]}: of {words} there is {', '.join(available)}")
    room = Room(jobs)
    for name, uri in models.items():
        model = open_model(uri, tracking=tracking)
        if "mask" in guidances and not model.fuser.network.config.use_mask:
            raise ScoreError(f"--guidance mask: {name} takes no mask")
        default: Guidance = "none" if is_raw else "all"
        for guidance in dict.fromkeys(guidances) or [default]:
            guide = Guide(model.fuser) if guidance == "builtin" else None
            called = f"{name} ({guidance})" if guidances else name
            systems.append(ModelSystem(called, model.fuser, model.weights_sha256, guidance, room, guide))
    return systems


def cases_of(
    raw: tuple[str | None, str | None, str | None],
    datasets: Sequence[str],
    fused: Mapping[str, str],
    systems: Sequence[System],
    task: str | None,
    *,
    splits: Collection[str],
    limit: int | None,
    allow_incomplete: bool,
    scales: Mapping[str, Scale],
) -> FolderCases | DatasetCases:
    """The samples of `datasets`, or the pairs of the folders `raw` (a, b, target), with the pictures of `fused`.

    `task`: of folders; by default that of the models, and without these vif. ScoreError where a model is for another.
    """
    if datasets:
        urls = dict.fromkeys(datasets)
        selected = [select_samples(url, splits or None, limit, allow_incomplete=allow_incomplete) for url in urls]
        return DatasetCases(selected, fused, scales)
    tasks = {system.fuser.config.task: system.name for system in systems if isinstance(system, ModelSystem)}
    task = task or next(iter(tasks), "vif")
    if other := next((one for one in tasks if one != task), None):
        raise ScoreError(f"{tasks[other]} is a model for {other}, and these are pairs of {task}: set --task")
    a, b, target = raw
    return FolderCases(str(a), str(b), fused, task=task, target=target, scale=scales)
