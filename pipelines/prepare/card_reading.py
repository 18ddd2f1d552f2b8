"""What a dataset's card tells other tools: front matter for the hub, what is in a sample, code that reads it."""

from __future__ import annotations

import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml
from pydantic import BaseModel

from rwkvfusion.stages.dataset.manifest import Manifest
from rwkvfusion.stages.dataset.sample import META, Sample, is_in_meta
from rwkvfusion.stages.source.members import Members

_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))
_DTYPES: dict[str, dict[str, Any]] = {"caption.txt": {"dtype": "string"}, "text.npy": {"list": {"list": "float16"}}}


def front_matter(name: str, task: str, manifests: Sequence[Manifest], members: Members | None) -> str:
    """What the hub and Hugging Face `datasets` read: which tars are which split, and the columns of all samples.

    Without the columns, the library takes those of the first samples for all.
    """
    splits = {manifest.split: None for manifest in manifests if manifest.keys}
    count = sum(len(manifest.keys) for manifest in manifests)
    facts: dict[str, Any] = {
        "pretty_name": name,
        "license": "unknown",
        "task_categories": ["image-to-image"],
        "size_categories": [next((words for most, words in _SIZES if count < most), "n>10M")],
        "tags": ["image-fusion", task, "webdataset", "rwkvfusion"],
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
    return "---\n" + text.replace("license: unknown\n", "license: unknown  # to be filled in: the source's\n") + "---\n"


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


def fields_of_meta() -> str:
    """A Markdown table of every field of meta.json, from the model itself."""
    rows = [("schema_version", "int", "of these fields"), *_rows(Sample, "", {})]
    return "| field of meta.json | type | what |\n|---|---|---|\n" + "\n".join(
        f"| `{name}` | {kind} | {words} |" for name, kind, words in rows
    )


def _rows(model: type[BaseModel], prefix: str, told: dict[type[BaseModel], str]) -> Iterator[tuple[str, str, str]]:
    """Path, type and description of each field; of a model that was `told` before, where."""
    hints = typing.get_type_hints(model)
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if not is_in_meta(path.replace("[]", "")):
            continue
        inner, kind = _inner(hints[name])
        words = field.description or ""
        if inner is None or inner not in told:
            yield path, kind, words
        else:
            yield path, kind, f"{words}; its fields are those of `{told[inner]}`"
            continue
        if inner is not None:
            told[inner] = f"{path}[]" if kind.startswith("list") else path
            yield from _rows(inner, f"{told[inner]}.", told)


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


def examples(tar: str, split: str, members: Members) -> str:
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
