"""Why a source holds no pair, in words: what was looked for, what is there, and what to set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.foreign import foreign
from rwkvfusion.stages.source.layouts import Layout
from rwkvfusion.stages.source.pair import Found, Unpaired, is_picture
from rwkvfusion.stages.source.splits import split_name

_SHOWN = 8


def no_pair(layout: Layout, names: Iterable[str], found: Sequence[Found]) -> str:
    """What was looked for among `names`, and what is there; `found`: files of modalities that fit no others."""
    looked = ", ".join(place.words() for place in layout.places if place.role in layout.modalities)
    if layout.is_sequence:
        looked = "folders of two or more pictures each, the exposures of one scene"
    if found:
        first = {file.place.role: file.name for file in reversed(found)}
        counts = Counter(file.place.role for file in found)
        seen = ", ".join(f"{counts[role]} {role} (e.g. {printable(name)})" for role, name in sorted(first.items()))
        return f"looked for {looked}; there is {seen}, but no two whose names fit each other"
    folders = {name.rpartition("/")[0] or "the root itself" for name in names if is_picture(name)}
    if len(folders) > _SHOWN:
        folders = {f"{folder.split('/')[0]}/..." for folder in folders}
    more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    few = printable(", ".join(sorted(folders)[:_SHOWN])) + more
    strangers = [name for name in names if foreign(name)]
    also = f"; {printable(strangers[0])} {foreign(strangers[0])} ({len(strangers)} such files)" if strangers else ""
    return f"looked for {looked}; " + (f"pictures are in {few}" if folders else "there are no pictures") + also


def what_to_set(found: Sequence[Found], strange: Collection[str], *, is_own: bool) -> str:
    """What to do where `no_pair`. `strange`: folders that the layout does not have; `is_own`: it is `paired`."""
    if strange:
        names = sorted({split_name(folder) for folder in strange})
        folders = printable(" or ".join(sorted(strange)[:4]))
        return (
            f"The layout has no folder {folders}: set source.root to one of them, or"
            f" source.splits=[{','.join(names[:4])}] to take each as a split"
        )
    if found:
        return (
            "Where they differ in how they begin or end, layout paired takes source.modalities.ROLE.prefix and .suffix"
        )
    if is_own:
        return "Set source.modalities.ROLE.folder (or .prefix, .suffix) to where they are, or source.root"
    return "Set source.root to the folder above these, or another layout, or paired with folders of your own"


def no_scene(layout: Layout, unpaired: Sequence[Unpaired]) -> str:
    """The same of a layout of scenes or arrays."""
    if unpaired:
        more = f"; and {len(unpaired) - 4} more" if len(unpaired) > 4 else ""
        return "; ".join(f"{printable(one.name)}: {one.reason}" for one in unpaired[:4]) + more
    kinds = " or ".join(f".{extension}" for extension in sorted(layout.extensions))
    return f"no file there ends in {kinds}. Set source.root to the folder above them, or another layout"
