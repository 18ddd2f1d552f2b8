"""Where the files of known datasets lie: one record a layout, and how a record reads a file's name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rwkvfusion.infra.plugins import Plugin, find, plain, plugins
from rwkvfusion.stages.dataset.task import TASKS, Task
from rwkvfusion.stages.source.names import words

TARGET, MASK, CAPTION = "target", "mask", "caption"
EXTRAS = (TARGET, MASK, CAPTION)
"""What a pair may have beside its modalities. A caption is a text file, the others are pictures."""
ARRAY_EXTENSIONS = frozenset({"mat", "h5", "hdf5"})
SPLITS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folder names that say the split, in any case, and the split they say."""


ANY = "*"


def _one_of(texts: tuple[str, ...], splits: tuple[str, ...] = ()) -> str:
    """A pattern of any of `texts` (of nothing, where there are none), in which `{split}` is a split's name.

    `splits`: such names besides the usual.
    """
    split = f"(?P<split>{'|'.join((*SPLITS, *map(re.escape, splits)))})"
    return "|".join(re.escape(text).replace(re.escape("{split}"), split) for text in texts)


@dataclass(frozen=True)
class Place:
    """Where the files of one role lie; all names are read without regard to case.

    `folders`: names of the folder, none for any; `{split}` in one stands for a split. `prefixes`, `suffixes`: how the
    stem begins and ends; what is left of it names the pair. `splits`: names of splits besides the usual.
    """

    role: str
    folders: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    optional: bool = False
    splits: tuple[str, ...] = ()

    @cached_property
    def _folder(self) -> re.Pattern[str]:
        # One `split` group only: alternatives that hold it cannot each name it.
        plain = tuple(name for name in self.folders if "{split}" not in name)
        with_split = tuple(name for name in self.folders if "{split}" in name)
        pattern = "|".join(filter(None, (_one_of(plain), _one_of(with_split, self.splits))))
        return re.compile(rf"(?:^|/)(?:{pattern})(?=/|$)", re.IGNORECASE)

    @cached_property
    def _stem(self) -> re.Pattern[str]:
        pattern = rf"(?:{_one_of(self.prefixes)})(?P<stem>.*?)(?:{_one_of(self.suffixes)})"
        return re.compile(pattern, re.IGNORECASE | re.DOTALL)

    def find_folder(self, folder: str) -> re.Match[str] | None:
        """The deepest part of the path `folder` that is this place's."""
        return max(self._folder.finditer(folder), key=re.Match.end, default=None)

    def cut_stem(self, stem: str) -> str | None:
        """`stem` without this place's prefix and suffix; None where it lacks them."""
        match = self._stem.fullmatch(stem)
        return match["stem"] if match else None

    def words(self) -> str:
        """Where this is, for a person."""
        parts = [f"in a folder {_or(self.folders)}"] if self.folders else []
        parts += [f"with a name that starts with {_or(self.prefixes)}"] if self.prefixes else []
        parts += [f"with a name that ends in {_or(self.suffixes)}"] if self.suffixes else []
        return f"{self.role} {' and '.join(parts)}"


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in names)


@dataclass(frozen=True)
class Layout:
    """A dataset's shape on disk. `places` are in the order of preference; those of the modalities give their order.

    `inner` names the folders, besides those of splits, that may lie between the root and the files; `ignored` those
    that are known to be of no use. `labels` names the values of annotated masks.
    """

    task: Task
    places: tuple[Place, ...]
    labels: Mapping[int, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    kind_in_key: bool = False
    arrays: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the arrays that are high, low and target, the preferred first, in lower case; none of pictures."""
    is_scene: bool = False
    """Whether pictures without a target are scenes, that are cut and degraded into pairs (see scenes.scene)."""
    unused: tuple[str, ...] = ()
    """How the stems of pictures end that are of no use."""
    scale: float | None = None
    """Value of integers that usually counts as 1; None: the largest of their type."""
    scale_by_word: Mapping[str, float] = field(default_factory=dict)
    """The same of files whose names hold a word, in lower case."""
    is_sequence: bool = False
    """Whether each folder holds the exposures of one scene, under whatever names (see sequences)."""
    group: str | None = None
    """Pattern of a stem whose first group names what must stay in one split; None: the stem, and what looks alike."""
    holdout: Mapping[str, float] = field(default_factory=dict)
    """Part of the groups (or of the rows of a scene) that goes to each split by default; none: the folders decide."""

    @property
    def extensions(self) -> frozenset[str]:
        """Of files that hold arrays; none where the files are pictures."""
        return ARRAY_EXTENSIONS if self.arrays else frozenset()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The roles that are fused, in order."""
        return tuple(dict.fromkeys(p.role for p in self.places if p.role not in EXTRAS))

    @property
    def required(self) -> frozenset[str]:
        """The modalities that every pair has."""
        optional = {place.role for place in self.places if place.optional}
        return frozenset(role for role in self.modalities if role not in optional)

    def ignored_by(self, name: str) -> str | None:
        """Why the file `name` is known to be of no use, in words; None where it is not."""
        folder, _, file = name.rpartition("/")
        ignored = {one.lower() for one in self.ignored}
        for part in folder.split("/"):
            if part.lower() in ignored:
                return f"in a folder `{part}`, which this layout has no use for"
        stem = file.rpartition(".")[0]
        ending = next((ending for ending in self.unused if stem.endswith(ending)), None)
        return None if ending is None else f"whose name ends in `{ending}`, which this layout has no use for"

    def usual_scale(self, name: str) -> float | None:
        """What counts as 1 in the integers of the file `name`, where nothing declares it."""
        return next((scale for word, scale in self.scale_by_word.items() if word in words(name)), self.scale)

    def has_inner(self, name: str) -> bool:
        """Whether a folder `name` may lie around the files."""
        return ANY in self.inner or name.lower() in (inner.lower() for inner in self.inner)


_FMB_CLASSES = ("", "", "", "lamp", "sign", "", "", "person", "car", "truck", "bus", "motorcycle", "bicycle", "pole")
"""Road, sidewalk, building, vegetation and sky are no objects that can be counted."""


def _focus(near: tuple[str, ...], far: tuple[str, ...], target: tuple[str, ...]) -> tuple[Place, ...]:
    """Near, far and the all-in-focus truth in a folder each, under one name or names that end in A, B and F."""
    return tuple(
        Place(role, folders, suffixes=suffixes)
        for role, folders, ends in (("near", near, "A"), ("far", far, "B"), (TARGET, target, "F"))
        for suffixes in ((f"_{ends}", f"-{ends}"), ())
    )


_TRIPLETS = _focus(("source_1", "source1"), ("source_2", "source2"), ("full_clear", "all_in_focus", "gt"))
_FUSED = ("Fusion", "F", "GT")
_ENDS = (
    Place("near", suffixes=("_1", "-A", "_A", "-1")),
    Place("far", suffixes=("_2", "-B", "_B", "-2")),
    Place(TARGET, suffixes=("_gt", "-F", "_F")),
)
_VIF = (Place("visible", ("vi", "vis", "visible")), Place("infrared", ("ir", "infrared")))
_MSRS_CLASSES = ("car", "person", "bike", "curve", "car stop", "guardrail", "color cone", "bump")

_PAN_NAMES, _MS_NAMES = ("pan", "panchromatic"), ("ms", "mss", "mul", "multispectral", "xs")


def _named(role: str, names: tuple[str, ...]) -> tuple[Place, ...]:
    """In a folder of one of the names, or with one at an end of the file's own name."""
    ends = tuple(f"{sign}{name}{number}" for name in names for sign in ("", "_", "-", ".") for number in ("", "1", "2"))
    starts = tuple(f"{name}{sign}" for name in names for sign in ("_", "-", "."))
    return Place(role, names), Place(role, suffixes=ends), Place(role, prefixes=starts)


_PAN_AND_MS = (*_named("pan", _PAN_NAMES), *_named("ms", _MS_NAMES), *_named(TARGET, ("gt", "target")))

LAYOUTS: Mapping[str, Layout] = {
    "msrs": Layout(
        "vif",
        (*_VIF, Place(MASK, ("Segmentation_labels",)), Place(MASK, ("mask",))),
        # The official labels hold class ids; the binary masks that other copies hold instead, 0 and 255.
        labels={**dict(enumerate(_MSRS_CLASSES, start=1)), 255: "object"},
        ignored=("detection", "Segmentation_visualize", "edge"),
    ),
    "roadscene": Layout(
        "vif",
        (Place("visible", ("crop_LR_visible", "vi", "vis")), Place("infrared", ("cropinfrared", "ir"))),
        # The raw infrared pictures are not aligned with anything here, the larger visible ones fit no infrared.
        ignored=("infrared", "crop_HR_visible"),
    ),
    "tno": Layout("vif", _VIF),
    "m3fd": Layout("vif", _VIF),
    "vifb": Layout("vif", _VIF),
    "fmb": Layout(
        "vif", (*_VIF, Place(MASK, ("Label",))), labels=dict(enumerate(_FMB_CLASSES, start=1)), ignored=("color",)
    ),
    # Masks of one class, 1 of a palette or 255.
    "fusiondataset": Layout("vif", (*_VIF, Place(MASK, ("label",)))),
    # Pairs of several sets in one folder, beside lists of their names.
    "tardal": Layout("vif", _VIF, ignored=("meta",), inner=(ANY,)),
    # Infrared pictures that are warped on purpose lie beside those that are not.
    "superfusion": Layout("vif", _VIF, ignored=("ir_warp", "flow"), inner=(ANY,)),
    "textfusion": Layout(
        "vif", (Place("visible", suffixes=("vis",)), Place("infrared", suffixes=("ir",))), inner=(ANY,)
    ),
    "llvip": Layout(
        "vif",
        (Place("visible", ("visible", "{split}_LLVIP_vi")), Place("infrared", ("infrared", "{split}_LLVIP_ir"))),
    ),
    "harvard": Layout(
        "mif",
        (
            Place("mri", ("MRI",)),
            Place("ct", ("CT",), optional=True),
            Place("pet", ("PET",), optional=True),
            Place("spect", ("SPECT",), optional=True),
        ),
        inner=("CT-MRI", "PET-MRI", "SPECT-MRI"),
        kind_in_key=True,
        # A name is case * 1000 + slice. The folders of splits mix slices of one case.
        group=r"(\d+?)\d{3}",
        holdout={"test": 0.2},
    ),
    # Dataset_Part1/{scene}/{1..7}.JPG, and Dataset_Part1/Label/{scene}.JPG.
    "sice": Layout("mef", (Place(TARGET, ("Label", "Reference")),), inner=(ANY,), is_sequence=True),
    # dataset5/{Scene}/{scene}{1..5}.jpg
    "mef_hrp": Layout("mef", (Place(TARGET, ("Label", "Reference")),), inner=(ANY,), is_sequence=True),
    "mefb": Layout("mef", (Place("under", suffixes=("_A",)), Place("over", suffixes=("_B",))), inner=(ANY,)),
    "mfifb": Layout("mff", (Place("near", suffixes=("_A",)), Place("far", suffixes=("_B",))), inner=(ANY,)),
    # Files of one folder that differ in how they end, or source_1 and source_2.
    "lytro": Layout("mff", (*_ENDS, *_TRIPLETS), inner=(ANY,)),
    "mffw": Layout("mff", (*_ENDS, *_TRIPLETS), inner=(ANY,)),
    "mfi_whu": Layout("mff", _TRIPLETS, inner=(ANY,)),
    "nyud": Layout("mff", _TRIPLETS, inner=(ANY,)),
    # imageA/001_A.png, imageB/001_B.png, Fusion/001_F.png; elsewhere NEAR, FAR and GT.
    "realmff": Layout("mff", _focus(("imageA", "A", "NEAR"), ("imageB", "B", "FAR"), _FUSED), inner=(ANY,)),
    "pancollection": Layout(
        "pansharpening",
        _PAN_AND_MS,
        # Those that are upsampled already (lms, HSI_up) are not used, here and below.
        arrays={
            "high": ("pan", "i_pan", "panchromatic"),
            "low": ("ms", "i_ms_lr", "i_ms", "mslr", "ms_lr"),
            TARGET: ("gt", "i_gt", "ref", "reference"),
        },
        scale=2047.0,
        scale_by_word={"gf2": 1023.0, "gaofen": 1023.0},
        holdout={"test": 0.25},
    ),
    "psdata3": Layout(
        "pansharpening",
        (Place("pan", suffixes=("_pan",)), Place("ms", suffixes=("_lr",)), Place(TARGET, suffixes=("_mul",))),
        inner=(ANY,),
        unused=("_lr_u", "_pan_d"),
        scale=1023.0,
    ),
    "geotiff": Layout("pansharpening", _PAN_AND_MS, inner=(ANY,), is_scene=True, holdout={"test": 0.25}),
    "hscube": Layout(
        "hmif",
        (Place("ms"), Place("hs")),
        arrays={
            "high": ("rgb", "hrmsi", "hr_msi", "msi", "hmsi"),
            "low": ("lrhsi", "lr_hsi", "hsi_lr", "lhsi", "lrhs"),
            TARGET: ("gt", "ref", "reference", "hrhsi", "hr_hsi"),
        },
        scale=10_000.0,
        holdout={"test": 0.25},
    ),
}
"""Layouts by name. A dataset of another shape is described in the recipe, as layout `paired`."""

PAIRED = "paired"
_BUILT_IN = (*LAYOUTS, PAIRED)


def canonical(name: str) -> str:
    """The name of a layout as `LAYOUTS` or a plug-in has it, whatever its case, `-`, `_` and spaces (MFI-WHU, NYU-D).

    A name that is no layout's is returned as it is. PluginError where a plug-in has the name of a built-in one.
    """

    def among(names: Iterable[str]) -> str | None:
        return next((layout for layout in names if plain(layout) == plain(name)), None)

    return among((*_BUILT_IN, *plugins("layouts", _BUILT_IN))) or name


def find_layout(name: str) -> Layout | None:
    """The layout of that canonical name, or the `module:Name`; PluginError for one of another package that is none."""
    if name in LAYOUTS:
        return LAYOUTS[name]
    plugin = find("layouts", name, _BUILT_IN)
    return None if plugin is None else _checked(plugin, plugin.load())


def default_dataset(layout: str) -> str:
    """What a dataset of a layout is called by default: as its layout is, of `module:Name` the name."""
    return layout.rpartition(":")[2].strip("_").lower()


def _checked(plugin: Plugin, layout: Any) -> Layout:
    if not isinstance(layout, Layout):
        raise plugin.wrong(
            f"must be a `Layout` (rwkvfusion.stages.source.layouts), and is of type {type(layout).__name__}"
        )
    if not isinstance(layout.task, str) or layout.task not in TASKS:
        raise plugin.wrong(f"has task {layout.task!r}, and there is {', '.join(TASKS)}")
    if not isinstance(layout.places, tuple) or not all(isinstance(place, Place) for place in layout.places):
        raise plugin.wrong("must have a tuple of `Place` as its places")
    for place in layout.places:
        for of in ("folders", "prefixes", "suffixes", "splits"):
            names = getattr(place, of)
            # `("lwir")` is a text, which would be taken letter by letter.
            if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
                raise plugin.wrong(f"has {of} {names!r} of {place.role}: {of} must be a tuple of names, as ('lwir',)")
    if len(layout.modalities) < 2 and not (layout.is_sequence or layout.arrays):
        raise plugin.wrong(
            f"must have places of two or more modalities, and has {', '.join(layout.modalities) or 'none'}"
        )
    _check_roles(plugin, layout)
    return layout


def _check_roles(plugin: Plugin, layout: Layout) -> None:
    """PluginError for a role that is a known one misspelt, which would be a modality more.

    Modalities may have names of their own, except where the task sharpens: which one is sharp goes by their names.
    """
    spec = TASKS[layout.task]
    usual = tuple(dict.fromkeys(role for order in spec.orders for role in order))
    strange = [role for role in layout.modalities if role not in usual]
    for role in strange:
        near = difflib.get_close_matches(role.lower(), (*EXTRAS, *usual), 1, cutoff=0.75)
        # `near_2` is one more of them, and no slip.
        if near and not role[-1].isdigit():
            raise plugin.wrong(f"has a place of role {role!r}: did you mean {near[0]!r}? Else call it by another name")
    if spec.sharpens and set(layout.modalities) != set(usual):
        made = ", ".join(layout.modalities)
        raise plugin.wrong(f"has places of {made}, and {layout.task} is made of {' and '.join(usual)}")
