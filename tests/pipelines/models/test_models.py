"""`models`: a table that a terminal has room for, and all of it for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_fusers import luma_fuser, pan_fuser
from made_shipped import ROOT, score, ship

from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.names import WEIGHTS
from rwkvfusion.pipelines.cli import main

SCORES = {
    "MSRS, 30 pairs": {
        "MI": score(3.61, 0.3), "VIF": score(1.04, 0.03), "SF": score(11.4, 0.9), "Qabf": score(0.71, 0.01),
        "Qcb": score(0.572, 0.02), "Qcv": score(181.2, 30.0), "SSIM": score(1.41, 0.02),
    },
    "TNO, 12 pairs": {"MI": score(2.5, 0.3)},
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ship(tmp_path, "pansharpening-x", pan_fuser(), scores={"GF-2": {"SAM": score(1.2, 0.1)}}, machine="another")
    ship(tmp_path, "vif-tiny", luma_fuser(), scores={"MSRS, 30 pairs": {"MI": score(3.1, 0.2)}}, seconds=0.08)
    ship(tmp_path, "vif", luma_fuser(), scores=SCORES, trained_on="many pairs of pictures, " * 12)
    monkeypatch.setattr(ROOT, tmp_path)
    return tmp_path


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_has_every_score(root: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = CliRunner().invoke(main, ["models"]).stdout
    rows = text.splitlines()
    assert max(map(len, rows)) <= width
    assert [row.split()[0] for row in rows[1:4]] == ["vif", "vif-tiny", "pansharpening-x"]
    assert rows[2].split()[1:] == ["vif", "visible", "+", "infrared", f"{json_of()['vif']['parameters']:,}", "0.08"]
    start = rows.index("MSRS, 30 pairs, n = 30; lower is better: Qcv")
    block = rows[start : rows.index("TNO, 12 pairs, n = 30")]
    # At 120 columns there is one block of metrics, at 80 what has no room is in a second.
    heads = [row.split() for row in block if row.split()[:1] in (["MI"], ["Qcv"], ["SSIM"], ["Qcb"])]
    assert len(heads) == (1 if width == 120 else 2)
    assert [name for head in heads for name in head] == [*SCORES["MSRS, 30 pairs"]]
    assert next(row.split()[1] for row in block if row.startswith("vif ")) == "3.610"
    assert "3.310-3.910" in block[3]
    assert "151-211" in "\n".join(block)
    assert "  made by: made for a test" in rows
    assert rows[-1] == 'use one: rwkvfusion fuse --model vif A B -o OUT, or rwkvfusion.load("vif")'


def json_of() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    return found


def test_programs_get_all_of_it(root: Path) -> None:
    found = json_of()
    assert [*found] == ["vif", "vif-tiny", "pansharpening-x"]
    assert found["vif"]["scores"] == SCORES
    assert found["pansharpening-x"]["roles"] == ["pan", "ms"]
    assert found["vif"]["weights_sha256"] == sha256((root / "vif" / WEIGHTS).read_bytes())


def test_of_an_installation_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ROOT, tmp_path)
    done = CliRunner().invoke(main, ["models"])
    assert (done.exit_code, done.stdout) == (0, "no models come with this installation\n")
