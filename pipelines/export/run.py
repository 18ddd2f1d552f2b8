"""`export`: a registered model as one file for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.fusing.export import ExportError, check, graph_of, input_names, save
from rwkvfusion.model.fusing.fuser import WEIGHTS, Fuser
from rwkvfusion.model.registry.registry import resolve

EXAMPLE = Path(__file__).with_name("example.py")
"""What the files are used with: told in each."""


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
    """Write the model behind `uri` (see `registry.resolve`) to `output`, which ends in .onnx or .pt2.

    ExportError for another ending, a folder that is not there, a package that is missing, and weights that do not
    allow it.
    """
    path = Path(output).expanduser()
    check(path)
    if not path.parent.is_dir():
        raise ExportError(f"{output}: there is no folder {path.parent}")
    source = resolve(uri, tracking)
    fuser = Fuser.load(source.folder)
    facts = {
        "model": source.uri,
        "weights_sha256": sha256((source.folder / WEIGHTS).read_bytes()),
        "example": EXAMPLE.read_text(encoding="utf-8"),
    }
    save(graph_of(fuser), fuser, path, facts)
    data = path.read_bytes()
    return Exported(output, source.uri, fuser.config.task, tuple(input_names(fuser)), len(data), sha256(data))
