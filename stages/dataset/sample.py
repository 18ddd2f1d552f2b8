"""The sample: the one contract between the stages, the shards and the training loader.

A `Sample` is one set of registered pictures of one scene with all that guides their fusion. `SCHEMA` is its Arrow
form (derived, never written by hand), `Sample.members` its form in a WebDataset tar.
"""

from __future__ import annotations

import io
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from rwkvfusion.infra.errors import RwkvFusionError, first_invalid
from rwkvfusion.infra.pictures.units import Scale, parse_scale, percentiles_of, unit_of
from rwkvfusion.stages.dataset.manifest import Key
from rwkvfusion.stages.dataset.task import Task

SCHEMA_VERSION = 2
MAX_OBJECTS = 20
MAX_PIXELS = 2**30

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Extension = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{1,8}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Run = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
RESERVED = frozenset({"target", "caption", "mask", "text", "meta"})
_ELSEWHERE = frozenset({"annotation", "caption", "error", "text"})
"""Fields of a sample that its meta.json does not hold."""
_OPTIONAL = ("black", "percentiles", "original_ext", "original_sha256")
"""Fields of a picture that are not written where they are None: readers of before them know the rest."""
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f2', 'fortran_order': False, 'shape': \(([0-9]{1,9}), ([0-9]{1,9})\), \} *\n",
    re.DOTALL,
)


class SampleFormatError(RwkvFusionError, ValueError):
    """Bytes that are not a sample of this schema; the message names the key and the field."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Image(_Part):
    """One picture as it came: the original encoded bytes, and what they hold (sizes in pixels, bits per value)."""

    role: Name = Field(description="what it is: visible, infrared, target ...; its member is `KEY.ROLE.EXTENSION`")
    path: str = Field(description="name in the source, relative to its root")
    data: bytes = Field(repr=False)
    ext: Extension = Field(description="true format, from the content")
    height: Size = Field(description="pixels")
    width: Size = Field(description="pixels")
    channels: Size = Field(description="bands, without alpha")
    bit_depth: Size = Field(description="of the decoded values: 8 and 16 are unsigned integers, 32 floats")
    sha256: Sha256 = Field(description="of the member")
    scale: float | None = Field(
        default=None, description="value that counts as 1; None: the largest of its type (255, 65535, 1.0)"
    )
    black: float | None = Field(default=None, description="with `scale`, the value that counts as 0; None: 0")
    percentiles: tuple[float, float] | None = Field(
        default=None,
        description="of its own values, in per cent: what `black` and `scale` were taken from, if they were",
    )
    original_ext: Extension | None = Field(
        default=None, description="format of the source's file, where shard.uniform made another of it"
    )
    original_sha256: Sha256 | None = Field(default=None, description="of the source's file then")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.scale is None and (self.black is not None or self.percentiles is not None):
            raise ValueError("black and percentiles go with a scale: give it too")
        if self.scale is not None and self.scale <= (self.black or 0):
            raise ValueError(f"the value that counts as 1 must lie above {self.black or 0:g}, not be {self.scale:g}")
        return self

    @property
    def declared(self) -> Scale | None:
        """The value that counts as 1, or those for 0 and 1; None where none is declared, and its type says it."""
        if self.scale is None or self.black is None:
            return self.scale
        return (self.black, self.scale)

    @property
    def rule(self) -> Scale | None:
        """The declaration that may be shared with other pictures: percentiles, if it was these, else `declared`."""
        return self.declared if self.percentiles is None else parse_scale("p{:g}-p{:g}".format(*self.percentiles))

    def with_scale(self, scale: Scale | None, values: np.ndarray) -> Image:
        """The picture with `scale` declared of its `values` (H, W, C); UnitError as `unit_of`."""
        if scale is None:
            return self
        unit = unit_of(values, scale)
        percentiles = percentiles_of(scale)
        black = unit.black if unit.black or percentiles else None
        return self.model_copy(update={"scale": unit.white, "black": black, "percentiles": percentiles})


class Caption(_Part):
    """The text of one modality."""

    role: Name = Field(description="the modality it describes")
    text: str = Field(description="KEY.caption.txt joins those of all modalities")


class Box(_Part):
    """A detection in one modality: pixel edges, x1 and y1 exclusive, and a score in [0, 1]."""

    role: Name = Field(description="the modality it was found in")
    label: str = Field(description="what was found")
    score: float = Field(description="the detector's, 0 to 1")
    x0: float = Field(description="left edge, pixels")
    y0: float = Field(description="upper edge, pixels")
    x1: float = Field(description="right edge, exclusive")
    y1: float = Field(description="lower edge, exclusive")


class Rle(_Part):
    """A binary mask as COCO's uncompressed run lengths: column-major, the first run counts zeros."""

    height: Size = Field(description="pixels")
    width: Size = Field(description="pixels")
    counts: tuple[Run, ...] = Field(repr=False, description="runs of 0 and 1 in turn, down the columns")

    @model_validator(mode="after")
    def _filled(self) -> Self:
        if sum(self.counts) != self.height * self.width or self.height * self.width > MAX_PIXELS:
            raise ValueError(f"runs of {sum(self.counts)} pixels do not fill a mask of {self.height}x{self.width}")
        return self


class Instance(_Part):
    """One object's mask in one modality, with the segmenter's own quality estimates in [0, 1]."""

    role: Name = Field(description="the modality it was segmented in")
    label: str = Field(description="what it shows")
    predicted_iou: float = Field(description="the segmenter's own estimate of its quality, 0 to 1")
    stability: float = Field(description="how little it depends on the segmenter's threshold, 0 to 1")
    rle: Rle = Field(description="its pixels, as COCO's uncompressed run lengths")


class Mask(_Part):
    """Merged objects: PNG of uint8 (H, W), 0 = background, index i + 1 = the object named `labels[i]`."""

    png: bytes = Field(repr=False)
    labels: tuple[str, ...] = Field(
        max_length=MAX_OBJECTS, description="object i + 1 of KEY.mask.png is what `labels[i]` names"
    )


class Text(_Part):
    """Encoded caption: float16, C order, (tokens, width), only the real tokens."""

    data: bytes = Field(repr=False)
    tokens: int = Field(strict=True, ge=0, le=2**20)
    width: int = Field(strict=True, ge=1, le=2**16)

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if len(self.data) != 2 * self.tokens * self.width:
            raise ValueError(f"text of {self.tokens}x{self.width} needs {2 * self.tokens * self.width} bytes")
        return self

    @classmethod
    def of(cls, vectors: np.ndarray) -> Text:
        """From (tokens, width), any float type."""
        tokens, width = vectors.shape
        return cls(data=np.ascontiguousarray(vectors, "<f2").tobytes(), tokens=tokens, width=width)

    def array(self) -> np.ndarray:
        """(tokens, width) float16."""
        return np.frombuffer(self.data, "<f2").reshape(self.tokens, self.width)

    def to_npy(self) -> bytes:
        """As NumPy's own file."""
        out = io.BytesIO()
        np.save(out, self.array(), allow_pickle=False)
        return out.getvalue()

    @classmethod
    def from_npy(cls, data: bytes) -> Text:
        """The inverse; ValueError for an array of another type or shape. Nothing that a header claims is allocated."""
        header = _NPY.match(data)
        if header is None or int.from_bytes(data[8:10], "little") != header.end() - 10:
            raise ValueError("text.npy must be a (tokens, width) array of float16")
        return cls(data=data[header.end() :], tokens=int(header[1]), width=int(header[2]))


class SampleError(_Part):
    """Why a sample is quarantined: the stage it failed in, the kind of failure, and words for a person."""

    stage: str
    kind: Name
    message: str


class Sample(_Part):
    """One set of registered pictures and its guidance. Fields a stage has not filled yet are None or empty."""

    key: Key = Field(description="unique in the dataset")
    dataset: Key = Field(description="the dataset's name")
    split: Name = Field(description="what it is for: train, val, test ...")
    task: Task = Field(description="what is to be made of the pictures")
    images: tuple[Image, ...] = Field(default=(), description="the modalities, in the task's order")
    target: Image | None = Field(default=None, description="the true fused picture, if there is one")
    annotation: Image | None = None
    captions: tuple[Caption, ...] = Field(default=(), description="the texts of single modalities")
    caption: str | None = None
    boxes: tuple[Box, ...] | None = Field(default=None, description="detections of single modalities; null: not sought")
    instances: tuple[Instance, ...] | None = Field(default=None, description="masks of single modalities")
    mask: Mask | None = Field(default=None, description="merged objects; null where there is no KEY.mask.png")
    text: Text | None = None
    error: SampleError | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        roles = self.roles
        if self.error is None and len(roles) < 2:
            raise ValueError(f"{self.key}: a sample has two or more modalities, not {len(roles)}")
        if len(set(roles)) != len(roles) or RESERVED & set(roles):
            raise ValueError(f"{self.key}: roles {roles} are not distinct, or one of {sorted(RESERVED)}")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """The modalities' names, in order."""
        return tuple(image.role for image in self.images)

    @property
    def stem(self) -> str:
        """The name of its first modality's file in the source, without extension: what a fused picture is called."""
        return self.images[0].path.rpartition("/")[2].rpartition(".")[0]

    @property
    def own_caption(self) -> str | None:
        """The source's own caption of the whole pair; None where captions were computed, which are of modalities."""
        return None if self.captions else self.caption

    def image(self, role: str) -> Image:
        """The modality called `role`; KeyError where there is none."""
        for image in self.images:
            if image.role == role:
                return image
        raise KeyError(f"{self.key} has no modality {role!r}, only {', '.join(self.roles)}")

    def replace(self, **changes: Any) -> Sample:
        """A copy with `changes`, validated."""
        return Sample(**{name: getattr(self, name) for name in Sample.model_fields} | changes)

    def failed(self, stage: str, kind: str, message: str) -> Sample:
        """A copy that is to be quarantined."""
        return self.replace(error=SampleError(stage=stage, kind=kind, message=message))

    @property
    def pictures(self) -> tuple[Image, ...]:
        """The modalities and the target, if there is one."""
        return self.images if self.target is None else (*self.images, self.target)

    def members(self, extensions: Mapping[str, str] = MappingProxyType({})) -> dict[str, bytes]:
        """Tar members by name, sorted: `{key}.{role}.{ext}`, target, caption, mask, text and meta.

        `extensions`: those of a role's members throughout a dataset; of roles that are not in it, each picture's own.
        """
        members = {f"{image.role}.{extensions.get(image.role, image.ext)}": image.data for image in self.pictures}
        if self.caption is not None:
            members["caption.txt"] = self.caption.encode()
        if self.mask is not None:
            members["mask.png"] = self.mask.png
        if self.text is not None:
            members["text.npy"] = self.text.to_npy()
        members["meta.json"] = _json(self._meta())
        return {f"{self.key}.{name}": members[name] for name in sorted(members)}

    def _meta(self) -> dict[str, Any]:
        meta = self.model_dump(
            exclude={"annotation": True, "error": True, "text": True, "caption": True, "mask": {"png"},
                     "images": {"__all__": {"data"}}, "target": {"data"}}
        )  # fmt: skip
        for image in [*meta["images"], *([meta["target"]] if meta["target"] else [])]:
            for name in _OPTIONAL:
                if image[name] is None:
                    del image[name]
        return {"schema_version": SCHEMA_VERSION, **meta}

    @classmethod
    def from_members(cls, key: str, members: Mapping[str, bytes]) -> Sample:
        """The inverse of `members`, from names without the key (`visible.png`, `meta.json`, ...).

        Raises SampleFormatError naming the key and what is missing or wrong.
        """
        left = dict(members)
        try:
            meta = json.loads(_take(key, left, "meta.json"))
            if meta.pop("schema_version", None) != SCHEMA_VERSION:
                raise SampleFormatError(f"{key}.meta.json: not of schema version {SCHEMA_VERSION}")
            if not _ELSEWHERE.isdisjoint(meta):
                raise SampleFormatError(f"{key}.meta.json: {min(_ELSEWHERE.intersection(meta))} has no place in it")
            for image in [*meta["images"], *([meta["target"]] if meta["target"] else [])]:
                image["data"] = _take_picture(key, left, image["role"], image["ext"])
            if meta["mask"] is not None:
                meta["mask"]["png"] = _take(key, left, "mask.png")
            if "caption.txt" in left:
                meta["caption"] = left.pop("caption.txt").decode()
            if "text.npy" in left:
                meta["text"] = Text.from_npy(left.pop("text.npy"))
            sample = cls(**meta)
        except SampleFormatError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise SampleFormatError(f"{key}: {_in_short(error)}") from None
        if sample.key != key:
            raise SampleFormatError(f"{key}.meta.json: belongs to {sample.key!r}")
        if left:
            raise SampleFormatError(f"{key}: member {key}.{min(left)} is not one of its fields")
        return sample


def _take(key: str, members: dict[str, bytes], name: str) -> bytes:
    try:
        return members.pop(name)
    except KeyError:
        raise SampleFormatError(f"{key}: member {key}.{name[:100]} is missing") from None


def _take_picture(key: str, members: dict[str, bytes], role: str, ext: str) -> bytes:
    """The role's member, whatever its extension: where formats are mixed it is not the picture's own."""
    names = [name for name in members if name.partition(".")[0] == role]
    return _take(key, members, names[0] if len(names) == 1 else f"{role}.{ext}")


def _in_short(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, ValidationError):
        return first_invalid(error)[:300]
    return (str(error) or type(error).__name__).split("\n")[0][:300]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _arrow(annotation: Any) -> pa.DataType:
    """The Arrow type of a field's annotation."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _arrow(args[0])
    if origin is Literal:
        return pa.string()
    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in args if a is not type(None))
        return _arrow(inner)
    if origin is tuple:
        return pa.list_(_arrow(args[0]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct(_fields(annotation))
    # Large binary: a shard's pictures together may pass the 2 GB of a plain binary column.
    return {str: pa.string(), bytes: pa.large_binary(), int: pa.int64(), float: pa.float64()}[annotation]


def _fields(model: type[BaseModel]) -> list[pa.Field]:
    hints = typing.get_type_hints(model, include_extras=True)
    return [pa.field(name, _arrow(hints[name])) for name in model.model_fields]


def is_in_meta(path: str) -> bool:
    """Whether the field `path` of a sample (names with dots) is in its meta.json; other members hold the rest."""
    return path not in _ELSEWHERE | {"images.data", "target.data", "mask.png"}


def _meta_type(field: pa.Field, prefix: str = "") -> pa.Field:
    """The field as meta.json has it."""
    path, kind = f"{prefix}{field.name}", field.type
    inner = kind.value_type if pa.types.is_list(kind) else kind
    if not pa.types.is_struct(inner):
        return field
    inner = pa.struct([_meta_type(part, f"{path}.") for part in inner if is_in_meta(f"{path}.{part.name}")])
    return pa.field(field.name, pa.list_(inner) if pa.types.is_list(kind) else inner)


SCHEMA = pa.schema(_fields(Sample), metadata={"rwkvfusion.schema_version": str(SCHEMA_VERSION)})
"""Arrow schema of a table of samples."""
META = pa.schema([("schema_version", pa.int64()), *(_meta_type(field) for field in SCHEMA if is_in_meta(field.name))])
"""Arrow schema of meta.json."""


def to_table(samples: Sequence[Sample]) -> pa.Table:
    """One row a sample, in order."""
    return pa.Table.from_pylist([sample.model_dump() for sample in samples], schema=SCHEMA)


def from_table(table: pa.Table, fields: Iterable[str] = SCHEMA.names) -> list[Sample]:
    """The inverse of `to_table`, of these `fields` alone: the others are empty. KeyError where the table lacks one."""
    return [Sample(**row) for row in table.select(list(fields)).to_pylist()]
