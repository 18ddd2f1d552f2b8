"""Plug-ins: what other packages add, by entry points that are imported when they are used, or as `module:Name`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rwkvfusion.infra.errors import RwkvFusionError, printable

KINDS = {
    "layouts": "layout",
    "stages": "method",
    "metrics": "metric",
    "losses": "loss term",
    "backends": "back end",
}
"""What a plug-in of each group is called; the entry points of a group are those of `rwkvfusion.GROUP`."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_REFERENCE = re.compile(r"[\w.]+:[\w.]+")


class PluginError(RwkvFusionError):
    """A plug-in that cannot be used; the message names it, its package, and what to do."""


@dataclass(frozen=True)
class Plugin:
    """Something of another package, not imported yet.

    Args:
        group: of `KINDS`.
        name: by which it is used.
        reference: `module:Name`, or a module.
        package: distribution and version; empty of a bare reference.
    """

    group: str
    name: str
    reference: str
    package: str = ""

    def __str__(self) -> str:
        if not self.package:
            return f"{KINDS[self.group]} {self.reference}"
        return f"{KINDS[self.group]} {self.name!r} of {self.package} ({self.reference})"

    @property
    def distribution(self) -> str:
        """The package without its version, or the module's first name."""
        return self.package.partition(" ")[0] or self.reference.partition(".")[0].partition(":")[0]

    def load(self) -> Any:
        """The object, imported; PluginError where that fails."""
        module, _, attributes = self.reference.partition(":")
        try:
            found = importlib.import_module(module)
            for attribute in filter(None, attributes.split(".")):
                found = getattr(found, attribute)
        # Another package's import raises what it likes.
        except Exception as error:  # noqa: BLE001
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            raise self.wrong(f"cannot be imported: {printable(reason)}") from None
        return found

    def wrong(self, what: str) -> PluginError:
        """The error that says `what` is wrong with it, and what to do."""
        if self.package:
            cure = f"mend {self.distribution}, or uninstall it"
        else:
            cure = "mend it, or install its package here and on all of the cluster"
        return PluginError(f"{self} {what}; {cure}")


def plugins(group: str, taken: Collection[str] = ()) -> Mapping[str, Plugin]:
    """The plug-ins of a group by name, in the order of their names; none is imported.

    `taken`: names that are built in; case, - and _ make no difference. PluginError where one is taken, is used by two
    packages, or is no plain name.
    """
    found: dict[str, Plugin] = {}
    letters = {plain(name): "is built in" for name in taken}
    for plugin in sorted((_plugin(group, one) for one in _entry_points(group)), key=lambda one: one.name):
        if _NAME.fullmatch(plugin.name) is None:
            raise plugin.wrong("is no plain name: it takes up to 32 letters, digits, - and _")
        if (by := letters.get(plain(plugin.name))) is not None:
            raise plugin.wrong(f"has a name that {by}, and needs one of its own")
        letters[plain(plugin.name)] = f"{plugin.package} has too"
        found[plugin.name] = plugin
    return found


def find(group: str, name: str, taken: Collection[str] = ()) -> Plugin | None:
    """The plug-in that a recipe means by `name`: an entry point's, or `module:Name`; None where it is neither."""
    if _REFERENCE.fullmatch(name):
        return Plugin(group, name.rpartition(":")[2], name)
    return plugins(group, taken).get(name)


def packages_of(group: str, names: Iterable[str]) -> str:
    """The packages that plug-ins of these names are of, for a record; what is not installed is left out."""
    found = installed().get(group, {})
    return ", ".join(dict.fromkeys(found[name] for name in names if name in found))


def plain(name: str) -> str:
    """What of a name tells it from others: its letters and digits, whatever their case."""
    return re.sub("[-_ ]", "", name.lower())


def installed() -> dict[str, dict[str, str]]:
    """{group: {name: package}} of all plug-ins of this environment; groups without any are left out."""
    found = {group: {one.name: _plugin(group, one).package for one in _entry_points(group)} for group in KINDS}
    return {group: packages for group, packages in found.items() if packages}


@cache
def _entry_points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"rwkvfusion.{group}"))


def _plugin(group: str, one: EntryPoint) -> Plugin:
    package = f"{one.dist.name} {one.dist.version}" if one.dist is not None else ""
    return Plugin(group, one.name, one.value, package)
