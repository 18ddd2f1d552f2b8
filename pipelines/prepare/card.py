"""What a finished dataset says of itself: dataset.json, sizes.json and README.md, the card.

The card is front matter for the hub, what the dataset holds and what made it, and code that reads it elsewhere.
"""

from __future__ import annotations

import json
import textwrap
import types
import typing
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import yaml
from pydantic import BaseModel

from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.pictures.units import odd_words
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import MissingError, Store, sha256
from rwkvfusion.pipelines.prepare.plan import Job
from rwkvfusion.pipelines.prepare.price.cost import Cost, costs
from rwkvfusion.stages.dataset.manifest import CARD, FACTS, SIZES, Manifest
from rwkvfusion.stages.dataset.members import Members, differences, total_members
from rwkvfusion.stages.dataset.origin import UNKNOWN, Method, licence_of
from rwkvfusion.stages.dataset.sample import META, SCHEMA_VERSION, Sample, is_in_meta
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.guidance.chain import BUILTIN

_PICTURES = {
    False: "The pictures are the source's own bytes, or losslessly cut out of its scenes",
    True: "The pictures are the source's own bytes, or brought to one format without loss (see `original_ext`)",
}
_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))
_DTYPES: dict[str, dict[str, Any]] = {"caption.txt": {"dtype": "string"}, "text.npy": {"list": {"list": "float16"}}}


def finish_dataset(job: Job, manifests: Sequence[Manifest]) -> None:
    """Write `dataset.json`, `sizes.json` (WebDataset's shard sizes) and `README.md` (the card)."""
    facts = _facts(job, manifests)
    sizes = {manifest.tar: len(manifest.keys) for manifest in manifests if manifest.keys}
    job.store.write(SIZES, _json(sizes))
    job.store.write(CARD, _card(job, facts, manifests).encode())
    job.store.write(FACTS, _json(facts))


def is_finished(store: Store, manifests: Sequence[Manifest]) -> bool:
    """Whether what the dataset at `store` says of itself is of these shards."""
    try:
        told = parse_json(store.read(FACTS))
    except (MissingError, ValueError):
        return False
    return isinstance(told, dict) and told.get("fingerprint") == _fingerprint(manifests)


def _facts(job: Job, manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What the dataset holds: counts by split, quarantine by reason, stages, and a fingerprint of all its shards."""
    pairs: Counter[str] = Counter()
    for manifest in manifests:
        pairs[manifest.split] += len(manifest.keys)
    reasons = sum((manifest.reasons for manifest in manifests), Counter[str]())
    members = _all_members(manifests)
    return {
        **job.facts,
        "name": job.dataset,
        "schema_version": SCHEMA_VERSION,
        "fingerprint": _fingerprint(manifests),
        "pairs": dict(sorted(pairs.items())),
        "shards": [manifest.shard for manifest in manifests],
        "bytes": sum(manifest.size for manifest in manifests),
        "quarantined": dict(sorted(reasons.items())),
        "narrow": narrow_of(manifests),
        "differences": differences(members, sum(pairs.values())) if members else list(job.differences),
        "planned_pairs": job.n_pairs,
        "effort": {step: asdict(cost) for step, cost in _effort(manifests).items()},
        "recipe": job.recipe.model_dump(mode="json", exclude={"ray", "output"}),
        "package_version": package_version(),
        "commit": commit(),
    }


def _fingerprint(manifests: Sequence[Manifest]) -> str:
    """Hex SHA-256 of the shards' names and hashes: equal where every byte of every shard is."""
    return sha256(json.dumps([[m.shard, m.sha256] for m in manifests]).encode())


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _all_members(manifests: Sequence[Manifest]) -> Members | None:
    """What the tars hold together; None where a shard is older than manifests that say it."""
    filled = [manifest for manifest in manifests if manifest.keys]
    described = [manifest.members for manifest in filled if manifest.members is not None]
    return total_members(described) if len(described) == len(filled) else None


def narrow_of(manifests: Iterable[Manifest]) -> dict[str, int]:
    """By role, the pictures that use little of their 16 bits while nothing declares their scale."""
    return dict(sorted(sum((manifest.narrow for manifest in manifests), Counter[str]()).items()))


def scale_setting(task: str) -> str:
    """The setting that declares the scale of pictures for `task`."""
    return "source.scene.scale" if TASKS[task].sharpens else "source.scale"


def narrow_lines(narrow: Mapping[str, int], setting: str) -> list[str]:
    """`narrow_of` in words, a line a role; `setting` is the one that would declare the scale."""
    return [
        odd_words(f"{count} {role} picture{'s' * (count > 1)}", (), f"set {setting}", plural=count > 1)
        for role, count in narrow.items()
    ]


def _card(job: Job, facts: dict[str, Any], manifests: Sequence[Manifest]) -> str:
    members = _all_members(manifests)
    splits = "\n".join(f"| {split} | {count} |" for split, count in facts["pairs"].items())
    stages = "\n".join(_stage_row(identity) for identity in facts["stages"])
    measured = any(identity["config"].get("method") in BUILTIN for identity in facts["stages"])
    bad = "\n".join(f"- {kind}: {count}" for kind, count in facts["quarantined"].items()) or "- none"
    title = TASKS[job.task].title
    return f"""{_front_matter(job, manifests, members)}
# {job.dataset}

Registered image pairs for {title} with captions, object masks and encoded captions, as WebDataset shards.
Made by rwkvfusion {facts["package_version"]}: layout `{job.recipe.source.layout}`, guidance `{job.recipe.guidance}`.
{_PICTURES[job.recipe.shard.uniform]}; the source's licence holds for them.

| split | pairs |
|---|---|
{splits}

## Guidance

| stage | method | model | weights (SHA-256) |
|---|---|---|---|
{stages}

{_masks(job)}
{_captions(facts)}
{"The built-in methods measure the pictures; they do not recognise objects." if measured else ""}

## Left out

Quarantined pairs (files and reasons in `_quarantine/` and the manifests):
{bad}

Files that pair with nothing: {len(facts["unpaired"])} (named in `dataset.json`).
Pairs that the recipe's choice of splits leaves out: {facts["left_out"]}.
{_assumed(facts)}{_narrow(facts)}
## What it took

{_took(facts, manifests)}

## Reading it

Each sample is `KEY.ROLE.EXTENSION` for each modality, `KEY.caption.txt`, `KEY.mask.png` (uint8 object indices,
0 = background), `KEY.text.npy` (float16, tokens x width) and `KEY.meta.json`. A shard counts only if `_manifests/`
holds its proof. Folders that begin with `_` hold no samples: give loaders that list files themselves `*.tar`.

{_reading(facts, manifests, members)}

{_fields_of_meta()}

Fingerprint: `{facts["fingerprint"]}`
"""


def _stage_row(identity: Mapping[str, Any]) -> str:
    stage, method, model, digest = Method.of(identity)
    return f"| {stage} | {method} | {model} | {digest[:16]} |"


def _masks(job: Job) -> str:
    if all(stage.name != "merge" for stage in job.stages):
        return "There are no masks."
    if job.recipe.segment.method == "annotation":
        return "Masks are the dataset's own annotation; a pair without one has no objects."
    return "Masks come from the dataset's own annotation where a pair has one, else from the stages above."


def _captions(facts: Mapping[str, Any]) -> str:
    own, planned = facts["own_captions"], facts["planned_pairs"]
    if not own:
        return "Captions come from the stage above."
    rest = "" if own == planned else " The others come from the stage above."
    of = f"Of {planned} planned pairs {own} have a caption file of the dataset's own, which is used unless it is empty:"
    return f"{of} then `captions` in `meta.json` is empty.{rest}"


def _assumed(facts: Mapping[str, Any]) -> str:
    names: dict[str, list[str]] = defaultdict(list)
    for one in facts["assumed"]:
        names[one["what"]].append(one["name"])
    lines = "".join(f"- {what}: `{same[0]}` ({len(same)} in all)\n" for what, same in names.items())
    head = "\n## Taken for granted\n\nNothing declares it; files are named in `dataset.json`.\n\n"
    return head + lines if lines else ""


def _narrow(facts: Mapping[str, Any]) -> str:
    lines = narrow_lines(facts["narrow"], scale_setting(facts["task"]))
    return "\n## Values\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _effort(manifests: Sequence[Manifest]) -> dict[str, Cost]:
    """By step, what it took to make each shard as it is, in the run that wrote it last."""
    return costs(record for manifest in manifests for record in manifest.stages)


def _took(facts: Mapping[str, Any], manifests: Sequence[Manifest]) -> str:
    rows = "\n".join(
        f"| {step} | {cost.pairs} | {cost.per_pair:.4f} | {f'{cost.cpu:.4f}' if cost.noted else '-'} | {cost.retries} |"
        f" {cost.bytes / 1e6:.1f} |"
        for step, cost in _effort(manifests).items()
        if cost.pairs
    )
    return f"""What it took in the run that wrote each shard last, of the pairs that each step ran on then. What a stage
had in its cache it did not make again, and what that took in earlier runs is not counted. MB are read by the source,
and cached by the stages; the shards have {facts["bytes"] / 1e6:.1f}.

| step | pairs | seconds a pair | of a CPU | retries | MB |
|---|---|---|---|---|---|
{rows}"""


def _front_matter(job: Job, manifests: Sequence[Manifest], members: Members | None) -> str:
    """What the hub and Hugging Face `datasets` read: which tars are which split, and the columns of all samples.

    Without the columns, the library takes those of the first samples for all. A licence that was filled in stays.
    """
    splits = {manifest.split: None for manifest in manifests if manifest.keys}
    count = sum(len(manifest.keys) for manifest in manifests)
    facts: dict[str, Any] = {
        "pretty_name": job.dataset,
        "license": licence_of(job.store),
        "task_categories": ["image-to-image"],
        "size_categories": [next((words for most, words in _SIZES if count < most), "n>10M")],
        "tags": ["image-fusion", job.task, "webdataset", "rwkvfusion"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}-[0-9]*.tar"} for split in splits],
            }
        ],
    }
    if members:
        facts["dataset_info"] = {"config_name": "default", "features": _features(members)}
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=120)
    unknown = f"license: {UNKNOWN}"
    return "---\n" + text.replace(f"{unknown}\n", f"{unknown}  # to be filled in: the source's\n") + "---\n"


def _features(members: Members) -> list[dict[str, Any]]:
    features = []
    for name, formats in members.items():
        if name == "meta.json":
            kind: dict[str, Any] = {"struct": [_feature(field) for field in META]}
        else:
            # Pillow, which decodes images there, opens few TIFFs of several bands or 16 bits.
            kind = _DTYPES.get(name, {"dtype": "binary" if "tif" in formats else "image"})
        features.append({"name": name, **kind})
    return [*features, *({"name": name, "dtype": "string"} for name in ("__key__", "__url__"))]


def _feature(field: pa.Field) -> dict[str, Any]:
    return {"name": field.name, **_kind(field.type)}


def _kind(kind: pa.DataType) -> dict[str, Any]:
    """A type of Arrow as the hub writes it."""
    if pa.types.is_struct(kind):
        return {"struct": [_feature(field) for field in kind]}
    if pa.types.is_list(kind):
        inner = _kind(kind.value_type)
        return {"list": inner.get("struct") or inner.get("dtype") or inner}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind))}


def _fields_of_meta() -> str:
    """A Markdown table of every field of meta.json, from the model itself."""
    rows = [("schema_version", "int", "of these fields"), *_meta_rows(Sample, "", {})]
    return "| field of meta.json | type | what |\n|---|---|---|\n" + "\n".join(
        f"| `{name}` | {kind} | {words} |" for name, kind, words in rows
    )


def _meta_rows(
    model: type[BaseModel], prefix: str, described: dict[type[BaseModel], str]
) -> Iterator[tuple[str, str, str]]:
    """Path, type and description of each field below `prefix`; of a model `described` before, where that was."""
    hints = typing.get_type_hints(model)
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if not is_in_meta(path.replace("[]", "")):
            continue
        inner, kind = _inner(hints[name])
        words = field.description or ""
        if inner is not None and inner in described:
            yield path, kind, f"{words}; its fields are those of `{described[inner]}`"
            continue
        yield path, kind, words
        if inner is not None:
            described[inner] = f"{path}[]" if kind.startswith("list") else path
            yield from _meta_rows(inner, f"{described[inner]}.", described)


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The model inside a field's type, and the type in words."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return None, "one of " + ", ".join(args)
    if origin in (types.UnionType, typing.Union):
        inner, kind = _inner(next(arg for arg in args if arg is not type(None)))
        return inner, f"{kind} or null"
    if origin is tuple:
        inner, kind = _inner(args[0])
        return inner, f"list of {kind}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, "object"
    return None, {str: "text", int: "int", float: "float"}.get(annotation, str(annotation))


def _reading(facts: Mapping[str, Any], manifests: Sequence[Manifest], members: Members | None) -> str:
    """How others read the dataset. Shards whose pairs are all in quarantine have no tar."""
    filled = [manifest for manifest in manifests if manifest.keys]
    if not filled:
        return "There is nothing to read: no pair was committed.\n"
    lines = "".join(f"- {line}\n" for line in facts["differences"])
    unlike = (
        "Not alike in all samples, so that a reader which takes the first ones for all loses the rest; the head of this"
        f" file names all columns:\n\n{lines}\n"
    )
    bands = (
        "Pillow opens few TIFFs of several bands or deep values: they are columns of bytes here, and Hugging Face's\n"
        "loader needs `.decode(False)` where it is given the tars without this card.\n\n"
    )
    has_tiffs = any("tif" in formats for formats in (members or {}).values())
    code = _examples(filled[0].tar, filled[0].split, members or {})
    return (unlike if lines else "") + (bands if has_tiffs else "") + code


def _examples(tar: str, split: str, members: Members) -> str:
    """Python that reads the dataset from its folder by other libraries, shows a picture and decodes a mask."""
    names = [name for name in members if _is_picture(name) and not name.startswith("target.")]
    # Pillow shows it, if there is one that it does.
    picture = min(names, key=lambda name: "tif" in members[name], default="")
    show = _show(picture, members)
    mask = """
        mask = np.asarray(Image.open(io.BytesIO(sample["mask.png"])))  # (height, width), 0 where there is no object
        for index, label in enumerate(meta["mask"]["labels"], start=1):
            print(sample["__key__"], label, int((mask == index).sum()), "pixels")
    """
    text = f"""
    ```python
    # pip install webdataset
    import io
    import json

    import numpy as np
    import tifffile
    import webdataset as wds
    from PIL import Image

    for number, sample in enumerate(wds.WebDataset("{tar}", shardshuffle=False)):
        meta = json.loads(sample["meta.json"])
    """
    lines = textwrap.dedent(text).rstrip().split("\n")
    body = show if picture in members else ['print(sample["__key__"], sorted(sample))']
    body += textwrap.dedent(mask).strip().split("\n") if "mask.png" in members else []
    lines += [f"    {line}" for line in body]
    others = f"""
    ```

    ```python
    # pip install datasets: all columns and splits, as the head of this card names them
    import os

    from datasets import load_dataset

    for row in load_dataset(os.getcwd(), split="{split}", streaming=True):
        print(row["__key__"], sorted(name for name, value in row.items() if value is not None))
    ```

    ```python
    # pip install 'ray[data]'
    import ray

    print(ray.data.read_webdataset(os.path.abspath("{tar}"), decoder=False).count(), "samples")
    ```
    """
    if "tif" not in members.get(picture, {}):
        lines.remove("import tifffile")
    if "mask.png" not in members and "tif" not in members.get(picture, {}):
        lines.remove("import numpy as np")
    return "\n".join([*lines, *textwrap.dedent(others).strip().split("\n")])


def _is_picture(name: str) -> bool:
    return name not in ("mask.png", "caption.txt", "text.npy", "meta.json")


def _show(picture: str, members: Mapping[str, Mapping[str, int]]) -> list[str]:
    if "tif" not in members.get(picture, {}):
        return ["if number == 0:", f'    Image.open(io.BytesIO(sample["{picture}"])).show()']
    return [
        f'data = sample["{picture}"]',
        'is_tiff = data[:2] in (b"II", b"MM")',
        "array = tifffile.imread(io.BytesIO(data)) if is_tiff else np.asarray(Image.open(io.BytesIO(data)))",
        "if number == 0:",
        "    band = array if array.ndim == 2 else array[:, :, 0]",
        "    Image.fromarray((band / band.max() * 255).astype(np.uint8)).show()",
    ]
