"""`lineage`: from a fused picture to the model's version, its run, the data, its shards and what made their guidance.

Each step is known by a hash: the picture names the weights, the registry the run that has them, the run the shards.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from rwkvfusion.infra.errors import RwkvFusionError, first_line, printable, redacted
from rwkvfusion.infra.hashes import HEX
from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.pictures.encode import text_of
from rwkvfusion.infra.provenance import package_version
from rwkvfusion.infra.storage import StorageError, split_file
from rwkvfusion.infra.tracking import TrackingError, tracking_uri, using
from rwkvfusion.model.names import HASH, MADE_BY, SHIPPED, VERSION
from rwkvfusion.model.shipped import with_weights
from rwkvfusion.pipelines.registry.entry import PromoteError
from rwkvfusion.pipelines.registry.history import aliases_of
from rwkvfusion.pipelines.registry.rollback import reached
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.manifest import DatasetError
from rwkvfusion.stages.dataset.origin import DATA, INIT, TRAINED, Method, Origin

if TYPE_CHECKING:
    from mlflow import MlflowClient


class LineageError(RwkvFusionError):
    """A picture that leads nowhere; the message is one sentence and says why."""


@dataclass(frozen=True)
class Data:
    """A dataset that a run has read.

    Args:
        use: what for: `trained`, `validated` or `scored`.
        url, fingerprint: as the run noted them.
        splits, pairs, shards, stages, source, licence: as of `Origin`; None where the run is of a version of the
            package that did not note it, and the dataset is no longer what it was.
        is_as_it_was: whether all shards that were read are still there, the same to the byte by their manifests; None
            where that cannot be known.
        state: that in words.
    """

    use: str
    url: str
    fingerprint: str
    is_as_it_was: bool | None
    state: str
    splits: tuple[str, ...] | None = None
    pairs: int | None = None
    shards: Mapping[str, str | None] | None = None
    stages: tuple[Mapping[str, Any], ...] | None = None
    source: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Run:
    """A training; None for what MLflow does not have.

    Args:
        began: UTC. commit: of the code. recipe: all of it.
        init_sha256: of the weights that it began with, where it began with any. init_versions: those that have them,
            and the model that comes with the package and has them.
        note: why something is missing.
    """

    run_id: str
    name: str | None = None
    experiment: str | None = None
    status: str | None = None
    began: str | None = None
    commit: str | None = None
    recipe: Mapping[str, Any] | None = None
    init_sha256: str | None = None
    init_versions: tuple[str, ...] = ()
    data: tuple[Data, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Version:
    """A registered version that has the weights: when it was `made` (UTC), its aliases now, and its tags.

    `run`: the training; None of one that came with the package, as its tags SHIPPED and VERSION say.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    made: str
    tags: Mapping[str, str]
    run: Run | None


@dataclass(frozen=True)
class Lineage:
    """What a picture comes from: `versions` are those of `registry` that have the weights, the newest first.

    Args:
        shipped: of the model with these weights that comes with the package its name, the package's version and the
            model's `Facts`; None where there is none.
        note: why there are no versions.
    """

    picture: str
    weights_sha256: str
    registry: str
    versions: tuple[Version, ...]
    shipped: Mapping[str, Any] | None = None
    note: str = ""


def lineage(picture: str, tracking: str | None = None) -> Lineage:
    """What made the PNG at `picture`, or the picture whose record of `fuse` (JSON) that is.

    A run, an artifact or a dataset that is not there any more, or cannot be reached, is told in its place.

    Raises:
        LineageError: nothing there says what made it, or neither a version nor a model that comes with the package has
            these weights.
        TrackingError, PromoteError: the registry cannot be reached, and no model that comes with the package has them.
        StorageError: there is no such file.
    """
    weights = _weights_of(picture)
    own = with_weights(weights)
    if own is None:
        where, versions = _versions(picture, weights, tracking)
        return Lineage(picture, weights, redacted(where), versions)
    facts = {"name": own.name, VERSION: package_version(), **own.facts.model_dump(mode="json")}
    try:
        where, versions = _versions(picture, weights, tracking)
    except (LineageError, PromoteError, TrackingError) as error:
        return Lineage(picture, weights, redacted(tracking_uri(tracking)), (), facts, str(error))
    return Lineage(picture, weights, redacted(where), versions, facts)


def _versions(picture: str, weights: str, tracking: str | None) -> tuple[str, tuple[Version, ...]]:
    """The registry, and its versions that have the weights; errors as of `lineage`."""
    where = reached(tracking, write=False)
    with using(where) as client:
        found = _with_weights(client, weights)
        if not found:
            raise LineageError(
                f"no version in the registry at {where} has the weights that made {printable(picture)} (SHA-256"
                f" {weights}): --tracking-uri names another registry"
            )
        aliases = {name: aliases_of(client, where, name) for name in {one.name for one in found}}
        datasets = _Datasets()
        return where, tuple(_version(client, one, aliases[one.name], datasets) for one in found)


def _with_weights(client: MlflowClient, weights: str) -> list[Any]:
    """The registered versions that have them, the newest first."""
    found = client.search_model_versions(f"tags.{HASH} = '{weights}'")
    return sorted(found, key=lambda one: (-one.creation_timestamp, one.name))


def _weights_of(url: str) -> str:
    """Hex SHA-256 of the weights that a picture, or its record, names."""
    folder, name = split_file(url)
    data = folder.read(name)
    found: Any = text_of(data).get(MADE_BY)
    if found is None and data.lstrip()[:1] == b"{":
        try:
            found = parse_json(data)["model"][HASH]
        except (ValueError, KeyError, TypeError):
            raise LineageError(f"{printable(url)} is no record of `rwkvfusion fuse`") from None
    if found is None:
        raise LineageError(
            f"{printable(url)} does not say what made it: only PNGs of this package do (of other formats, and of PNGs"
            " that another program has saved anew, give the JSON that `fuse` wrote beside them)"
        )
    if not isinstance(found, str) or not HEX.fullmatch(found):
        raise LineageError(f"{printable(url)} is damaged: it names its weights by {str(found)[:80]!r}, no SHA-256")
    return found


class _Datasets:
    """Datasets as they are now, each asked for once: a store that gives no answer takes a minute."""

    def __init__(self) -> None:
        self._known: dict[str, Dataset | str] = {}

    def open(self, url: str) -> Dataset | str:
        """The dataset, or why it cannot be had."""
        if url not in self._known:
            try:
                self._known[url] = Dataset.open(url, allow_incomplete=True)
            except (DatasetError, StorageError) as error:
                self._known[url] = str(error)
        return self._known[url]


def _version(client: MlflowClient, version: Any, aliases: Mapping[str, str], datasets: _Datasets) -> Version:
    return Version(
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(version.version))),
        made=_when(version.creation_timestamp),
        tags=dict(version.tags),
        run=_run(client, version.run_id, datasets) if version.run_id and SHIPPED not in version.tags else None,
    )


def _run(client: MlflowClient, run_id: str, datasets: _Datasets) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return Run(run_id, note="MLflow does not have it any more")
    notes: list[str] = []
    recipe = _artifact(client, run_id, "recipe.yaml", notes)
    data = _artifact(client, run_id, f"{DATA}.json", notes)
    if data is None and "datasets" in run.data.tags:
        urls, prints = (run.data.tags[tag].split(" ") for tag in ("datasets", "dataset_fingerprint"))
        data = dict(zip(urls, prints, strict=False))
    init = run.data.tags.get(INIT)
    began_with = [f"{one.name} version {one.version}" for one in (_with_weights(client, init) if init else [])]
    if init and (own := with_weights(init)) is not None:
        began_with.append(f"{own.name}, which comes with rwkvfusion {package_version()}")
    if run.info.lifecycle_stage != "active":
        notes.append("it is deleted")
    return Run(
        run_id=run_id,
        name=run.info.run_name,
        experiment=client.get_experiment(run.info.experiment_id).name,
        status=run.info.status.lower(),
        began=_when(run.info.start_time),
        commit=run.data.tags.get("commit"),
        recipe=recipe,
        init_sha256=init,
        init_versions=tuple(began_with),
        data=tuple(_data(data or {}, recipe or {}, datasets)),
        note="; ".join(notes),
    )


def _artifact(client: MlflowClient, run_id: str, name: str, notes: list[str]) -> Any:
    """The artifact's values; None, and a note, where it cannot be had."""
    try:
        with tempfile.TemporaryDirectory(prefix="rwkvfusion-lineage-") as scratch:
            text = Path(client.download_artifacts(run_id, name, scratch)).read_text(encoding="utf-8")
        # JSON is YAML too, but read more slowly so.
        return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    # Each kind of store has errors of its own.
    except Exception as error:  # noqa: BLE001
        notes.append(redacted(f"its {name} cannot be read: {first_line(error)}"))
        return None


def _data(noted: Mapping[str, Any], recipe: Mapping[str, Any], datasets: _Datasets) -> Iterator[Data]:
    """Of a run's `data.json`, in its form of today or of earlier versions."""
    for key, value in noted.items():
        if isinstance(value, str):
            splits = tuple(recipe.get("data", {}).get("splits", ()))
            yield _of_older(datasets.open(key), key, value, splits)
            continue
        try:
            origins = [Origin.model_validate(one) for one in value]
        except (ValidationError, TypeError):
            yield Data(key, "", "", None, f"is noted in a form that this version cannot read ({DATA}.json)")
            continue
        for one in origins:
            is_as_it_was, state = _compared(datasets.open(one.url), key, one)
            yield _as_noted(key, one, is_as_it_was, state)


def _as_noted(use: str, origin: Origin, is_as_it_was: bool | None, state: str) -> Data:
    return Data(
        use, origin.url, origin.fingerprint, is_as_it_was, state, origin.splits, origin.pairs, origin.shards,
        origin.stages, origin.source, origin.licence,
    )  # fmt: skip


def _compared(dataset: Dataset | str, use: str, origin: Origin) -> tuple[bool | None, str]:
    """Whether the shards are still there as they were, and that in words."""
    if isinstance(dataset, str):
        return None, f"cannot be reached: {dataset}"
    now = {one.shard: one.sha256 for one in dataset.manifests if one.split in origin.splits}
    gone = origin.shards.keys() - now.keys()
    changed = {name for name, digest in origin.shards.items() if name in now and now[name] != digest}
    # Of what is not trained on a part is taken.
    n_new = len(now.keys() - origin.shards.keys()) if use == TRAINED else 0
    words = [f"{len(changed)} made anew"] if changed else []
    words += [f"{len(gone)} gone"] if gone else []
    words += [f"{n_new} more since"] if n_new else []
    if not words:
        return True, "as it was"
    n_same = len(origin.shards) - len(gone) - len(changed)
    return not gone and not changed, f"{n_same} of {len(origin.shards)} shards are as they were, {', '.join(words)}"


def _of_older(dataset: Dataset | str, url: str, fingerprint: str, splits: tuple[str, ...]) -> Data:
    """Of a run that noted no more than that: what was read is known while the dataset is what it was."""
    if isinstance(dataset, str):
        return Data(TRAINED, url, fingerprint, None, f"cannot be reached: {dataset}", splits or None)
    try:
        now = Origin.of(dataset.select(splits).shards)
    except (DatasetError, StorageError) as error:
        return Data(TRAINED, url, fingerprint, False, f"is another now: {error}", splits or None)
    if now.fingerprint != fingerprint:
        state = f"is another now, of fingerprint {now.fingerprint}"
        return Data(TRAINED, url, fingerprint, False, state, splits or None)
    return _as_noted(TRAINED, now, True, "as it was")


def lines(found: Lineage, *, shards: bool = False) -> Iterator[str]:
    """The lineage for a person; `shards`: each with its hash."""
    yield found.picture
    yield f"  made by weights {found.weights_sha256}"
    if (own := found.shipped) is not None:
        yield f"  {own['name']}, which comes with rwkvfusion {own[VERSION]}: {own['title']}"
        yield f"    made by `{own['command']}` of {own['trained_on']}; licence of the weights: {own['licence']}"
    if found.note:
        yield f"  {found.note}"
    for version in found.versions:
        at = "".join(f" @{alias}" for alias in version.aliases)
        yield f"  {version.name} version {version.version}{at}, registered {version.made} at {found.registry}"
        if verdict := version.tags.get("promotion.verdict"):
            entry, date = (version.tags.get(f"promotion.{tag}", "?") for tag in ("entry", "date"))
            why = f"`rwkvfusion promote {version.name} --why {version.version}`"
            yield f"    promotion: {verdict}, {date}, entry {entry} ({why})"
        if SHIPPED in version.tags:
            yield f"    came with rwkvfusion {version.tags.get(VERSION, '?')} as {version.tags[SHIPPED]}"
            continue
        yield from (f"    {line}" for line in _run_lines(version.run, shards=shards))


def _run_lines(run: Run | None, *, shards: bool) -> Iterator[str]:
    if run is None:
        yield "no run is noted"
        return
    name = f"{run.name!r} " if run.name else ""
    facts = [f"run {name}{run.run_id}"]
    facts += [f"experiment {run.experiment}"] if run.experiment else []
    facts += [run.status] if run.status else []
    facts += [f"began {run.began}"] if run.began else []
    yield ", ".join(facts) + (f" ({run.note})" if run.note else "")
    if run.commit:
        yield f"  commit {run.commit}"
    if run.recipe is not None:
        yield f"  recipe: {_recipe(run.recipe)}"
    if run.init_sha256 is not None:
        names = ", ".join(run.init_versions) or "of no version in this registry"
        yield f"  began with weights {run.init_sha256}: {names}"
    for data in run.data:
        yield from (f"  {line}" for line in _data_lines(data, shards=shards))
    yield from (f"  {line}" for line in _guidance_lines(run.data))


def _recipe(recipe: Mapping[str, Any]) -> str:
    """What a person asks first."""
    init, size = recipe.get("init"), (recipe.get("network") or {}).get("size")
    words = [f"{recipe.get('steps')} steps", f"seed {recipe.get('seed')}"]
    words += [f"network {size}"] if size else []
    words += [f"init {init}"] if init else []
    return f"{', '.join(words)} (all of it: --json, or the run's recipe.yaml)"


def _data_lines(data: Data, *, shards: bool) -> Iterator[str]:
    n_shards = "" if data.shards is None else f" in {len(data.shards)} shard{'' if len(data.shards) == 1 else 's'}"
    count = "" if data.pairs is None else f": {data.pairs} pair{'' if data.pairs == 1 else 's'}{n_shards}"
    split = f", split {', '.join(data.splits)}" if data.splits else ""
    yield f"{data.use} on {data.url}{split}{count}, {data.state}"
    yield f"  fingerprint {data.fingerprint}"
    if data.source or data.licence:
        yield f"  source: {data.source or 'not noted'}; licence: {data.licence or 'not noted'}"
    if shards and data.shards is not None:
        yield from (f"  shard {name} {digest or 'without a tar'}" for name, digest in data.shards.items())


def _guidance_lines(data: Sequence[Data]) -> Iterator[str]:
    """Each method once, with the datasets that have it, where that is not all."""
    users: dict[Method, set[str]] = {}
    for one in data:
        for identity in one.stages or ():
            users.setdefault(Method.of(identity), set()).add(one.url)
    if users:
        yield "guidance of the data"
    for (stage, method, model, digest), urls in users.items():
        weights = "" if digest == "-" else f", {model}, weights {digest}"
        of = "" if urls == {one.url for one in data} else f" (of {', '.join(sorted(urls))})"
        yield f"  {stage}: {method}{weights}{of}"


def _when(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))
