"""`export`: a model as one file for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rwkvfusion.infra.storage import sha256, split_file
from rwkvfusion.model.fusing.export import check, input_names, save
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.names import HASH
from rwkvfusion.model.registry.find import resolve

EXAMPLE = Path(__file__).with_name("example.py")
"""A program that uses such a file; each brings it along."""


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    output: str
    model: str
    task: str
    inputs: tuple[str, ...]
    n_bytes: int
    sha256: str

    @property
    def line(self) -> str:
        """For a person."""
        return (
            f"{self.model} -> {self.output}: {self.n_bytes / 1e6:.1f} MB, {self.task}, inputs {', '.join(self.inputs)}"
        )


def export_model(uri: str, output: str, tracking: str | None = None) -> Exported:
    """Write the model behind `uri` (see `resolve`) to `output`, a path or URL that ends in .onnx or .pt2.

    ExportError for another ending, a package that is missing, and weights that do not allow it; errors as of `resolve`,
    `Fuser.load` and `Store.write`.
    """
    folder, name = split_file(output)
    check(name)
    source = resolve(uri, tracking)
    fuser = Fuser.load(source.folder)
    facts = {
        "model": source.uri,
        HASH: str(fuser.weights_sha256),
        "example": EXAMPLE.read_text(encoding="utf-8"),
    }
    with TemporaryDirectory() as place:
        path = Path(place) / name
        save(fuser, path, facts)
        data = path.read_bytes()
    folder.write(name, data)
    return Exported(output, source.uri, fuser.config.task, tuple(input_names(fuser)), len(data), sha256(data))
