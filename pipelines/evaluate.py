"""`evaluate`: mean metrics of folders of fused pictures against their sources, with the floor beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rwkvfusion.infra.codec import EXTENSIONS, ImageError, decode
from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics import METRICS, evaluate, luma


class EvaluateError(RwkvFusionError):
    """Folders that cannot be compared; the message says which file or folder is the cause."""


@dataclass(frozen=True)
class Table:
    """{name: {metric: mean}} over the pairs that every folder has."""

    means: dict[str, dict[str, float]]
    pairs: int
    left_out: tuple[str, ...]


def baselines(sources: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The floor every fused picture must be held against: each source alone, their mean, their maximum (luma)."""
    planes = np.stack([luma(source) for source in sources])
    alone = {f"source {chr(97 + i)} alone": plane for i, plane in enumerate(planes)}
    made = alone | {"mean": np.rint(planes.mean(axis=0)), "maximum": planes.max(axis=0)}
    return {name: plane.astype(np.uint8) for name, plane in made.items()}


def evaluate_folders(
    a: str, b: str, fused: Mapping[str, str], metrics: Sequence[str] = tuple(METRICS), *, floor: bool = True
) -> Table:
    """Score each folder of `fused` (name -> URL) on the pairs of `a` and `b`, matched by file stem.

    Stems that are not in every folder are left out and named. EvaluateError where nothing is left to compare.
    """
    folders = {"a": a, "b": b, **{f"fused {name}": url for name, url in fused.items()}}
    listed = {name: _stems(url) for name, url in folders.items()}
    shared = sorted(set.intersection(*(set(stems) for stems in listed.values())))
    if not shared:
        counts = ", ".join(f"{name} {len(stems)}" for name, stems in listed.items())
        raise EvaluateError(f"no file stem is in every folder (pictures found: {counts})")
    left_out = sorted(set.union(*(set(stems) for stems in listed.values())) - set(shared))
    scores: dict[str, list[dict[str, float]]] = {}
    for stem in shared:
        pictures = {name: _read(folders[name], stems[stem]) for name, stems in listed.items()}
        sources = [pictures.pop("a"), pictures.pop("b")]
        rows = baselines(sources) if floor else {}
        rows |= {name.removeprefix("fused "): picture for name, picture in pictures.items()}
        for name, picture in rows.items():
            try:
                scores.setdefault(name, []).append(evaluate(picture, sources, metrics))
            except ValueError as error:
                raise EvaluateError(f"{stem}, {name}: {error}") from None
    means = {name: {m: float(np.mean([s[m] for s in rows])) for m in metrics} for name, rows in scores.items()}
    return Table(means, len(shared), tuple(left_out))


def table_lines(means: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The table as aligned text; `*` marks the best of each metric."""
    names = list(next(iter(means.values()))) if means else []
    wide = max((len(name) for name in means), default=0)
    better = {m: (max if METRICS[m].better == "max" else min)(row[m] for row in means.values()) for m in names}
    yield " " * wide + "".join(f"{m:>9} " for m in names).rstrip()
    for name, row in means.items():
        yield (
            f"{name:<{wide}}" + "".join(f"{row[m]:>9.3f}{'*' if row[m] == better[m] else ' '}" for m in names)
        ).rstrip()


def _stems(url: str) -> dict[str, str]:
    store = Store(url)
    if not store.isdir():
        raise EvaluateError(f"{store.url} is not a folder")
    names = [name for name in store.files(deep=False) if name.rpartition(".")[2].lower() in EXTENSIONS]
    return {name.rpartition(".")[0]: name for name in names}


def _read(url: str, name: str) -> np.ndarray:
    store = Store(url)
    try:
        return decode(store.read(name))
    except ImageError as error:
        raise EvaluateError(f"{store.join(name)}: {error}") from None
