"""What the pages say of files, fields and tests is what there is."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

import cv2
import pytest
import yaml
from accounts import make
from made import scene, write_pairs
from made_fusers import luma_fuser, run
from pydantic import BaseModel

from rwkvfusion.infra.lease import LeaseRecord
from rwkvfusion.model.detection import detector
from rwkvfusion.model.fusing.export import metadata
from rwkvfusion.model.fusing.fuser import FuserConfig
from rwkvfusion.model.names import HASH
from rwkvfusion.model.network.network import NetworkConfig
from rwkvfusion.model.shipped import Facts
from rwkvfusion.model.training.losses.config import LossConfig
from rwkvfusion.model.training.trainer import STATE, OptimConfig, Trainer
from rwkvfusion.pipelines.evaluate import rows
from rwkvfusion.pipelines.prepare.card import _fields_of_meta, finish_dataset
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.registry.entry import Entry, Proof
from rwkvfusion.pipelines.retrain import run as retraining
from rwkvfusion.pipelines.train import job
from rwkvfusion.pipelines.train.recipe import NetworkOverrides, TrainRecipe
from rwkvfusion.stages.dataset.manifest import CARD, FACTS, Effort, Manifest, PlannedShards, Quarantined, StageRecord
from rwkvfusion.stages.dataset.origin import Origin

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
}
FORMATS = PAGES["docs/formats.md"]
MODELS: list[tuple[str, type[BaseModel]]] = [
    ("### `_manifests/SHARD.json`", Manifest),
    ("Of each of its `stages`:", StageRecord),
    ("Of an `effort`:", Effort),
    ("Of a quarantined sample", Quarantined),
    ("`_plan/shards.json` has", PlannedShards),
    ("### `_lease/NUMBER.json`", LeaseRecord),
    ("`config.json` beside it:", FuserConfig),
    ("`scores.json` besides:", Facts),
    ("| field of job.json", job._Record),
    ("`data.json` among", Origin),
    ("| field of cycle.json", retraining._Cycle),
    ("## The history of an alias", Entry),
]


def shown(start: str) -> set[str]:
    """The fields in the first column of the first table from `start` on."""
    assert FORMATS.count(start) == 1, start
    lines = FORMATS[FORMATS.index(start) :].splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    table = lines[head + 1 : head + 1 + next(i for i, line in enumerate(lines[head + 1 :]) if not line.startswith("|"))]
    return {name for line in table for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}


@pytest.mark.parametrize(("start", "model"), MODELS, ids=[model.__name__ for _, model in MODELS])
def test_every_field_of_a_file_is_on_the_page(start: str, model: type[BaseModel]) -> None:
    assert shown(start) == {*model.model_fields}


def test_every_field_of_the_network_of_meta_and_of_the_parameter_that_proves_an_entry_is_on_the_page() -> None:
    assert shown("Of a `network`;") == {field.name for field in dataclasses.fields(NetworkConfig)}
    assert _fields_of_meta() in FORMATS
    assert shown("## A detector") == {"version", "n", *(field.name for field in dataclasses.fields(detector.Facts))}
    proof = FORMATS[FORMATS.index("the parameter that proves it") :].partition(").")[0]
    assert {*re.findall(r"`(\w+)`", proof)} == {*Proof.model_fields}
    (parquet,) = re.findall(r"^\| `pairs.parquet` \|.*$", FORMATS, re.MULTILINE)
    assert {name for name, _ in rows._FIXED} <= {*re.findall(r"`(\w+)`", parquet)}


def test_every_field_of_a_checkpoint_a_fused_picture_and_an_export_is_on_the_page(tmp_path: Path) -> None:
    fuser = luma_fuser()
    trainer = Trainer(fuser.network, task="vif", loss=LossConfig(), optim=OptimConfig(), total=1, seed=0)
    (tmp_path / "checkpoint").mkdir()
    trainer.save(tmp_path / "checkpoint")
    assert shown("| field of state.json") == {*json.loads((tmp_path / "checkpoint" / STATE).read_text())}
    assert shown("## An exported network") == {*metadata(fuser), "model", HASH, "example"}
    fuser.save(tmp_path / "model")
    for seed, name in enumerate(("a", "b")):
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), scene(seed))
    pictures = [tmp_path / f"{name}.png" for name in ("a", "b", "fused")]
    result = run("fuse", "--model", tmp_path / "model", *pictures[:2], "-o", pictures[2])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "fused.json").read_text())
    assert shown("`NAME.json` beside a picture:") == {*record, "notes", "beside"}
    assert {*record["output"]} <= {*re.findall(r"`(\w+)`", FORMATS.partition("| `output` |")[2].partition("\n")[0])}


def test_every_field_of_a_dataset_and_its_cards_head_is_on_the_page(tmp_path: Path) -> None:
    write_pairs(tmp_path / "raw", ["a", "b"], height=32, width=32)
    source = {"layout": "msrs", "root": str(tmp_path / "raw"), "scale": {"*": 255}}
    job = plan_job(PrepareRecipe.model_validate({"source": source, "output": str(tmp_path / "out"), "masks": "none"}))
    done = make(job, [shard.name for shard in job.shards])
    finish_dataset(done, [done.committed[shard.name] for shard in done.shards])
    facts = json.loads(done.store.read(FACTS))
    assert shown("| field of dataset.json") == {*facts}
    (row,) = re.findall(r"^\| `effort` \| by step.*$", FORMATS, re.MULTILINE)
    assert {*facts["effort"]["source"]} <= {*re.findall(r"`(\w+)`", row)}
    head = yaml.safe_load(done.store.read(CARD).decode().split("---")[1])
    assert shown("| field of the card's head") == {*head}


def test_every_field_of_a_report_and_of_an_outcome_is_on_the_page(tmp_path: Path) -> None:
    for seed, folder in enumerate(("a", "b", "fused")):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / "1.png"), scene(seed, 32, 32))
    sides = [part for side in ("a", "b") for part in (f"--{side}", tmp_path / side)]
    result = run("evaluate", *sides, "--fused", f"x={tmp_path / 'fused'}", "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report" / "results.json").read_text())
    assert shown("| field of results.json") == {*report}
    assert shown("| field of a table") == {*report["tables"][0]}
    outcome = {field.name for field in dataclasses.fields(retraining.Retraining)}
    assert shown("| field of the outcome") == outcome | {"text"}


def of(pattern: str) -> Iterable[tuple[str, str]]:
    """(page, what it names in code) for each of the pattern's matches."""
    return [(page, name) for page, text in PAGES.items() for name in re.findall(rf"`({pattern})`", text)]


def test_files_and_tests_that_pages_name_are_there() -> None:
    tests = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    files = [*of(r"(?:infra|kernels|model|pipelines|stages|tests|docs)/[a-z0-9_/.]+\.[a-z]+")]
    assert len(files) > 80
    assert [one for one in files if not (ROOT / one[1]).is_file()] == []
    assert [one for one in of(r"test_\w+\.py") if one[1] not in tests] == []
    functions = {name for text in tests.values() for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    assert [one for one in of(r"test_\w+") if one[1] not in functions] == []


def test_names_in_code_that_pages_give_as_file_and_name_are_there() -> None:
    named = [*of(r"[a-z0-9_/]+\.py:[A-Za-z_.]+")]
    assert len(named) > 25
    missing = []
    for page, name in named:
        file, _, path = name.partition(":")
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        for part in path.split("."):
            found = next((node for node in body if part in _names(node)), None)
            if found is None:
                missing.append((page, name))
                break
            body = getattr(found, "body", [])
    assert missing == []


def _names(node: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef) else set()


def test_every_equation_table_and_figure_of_the_paper_has_a_row() -> None:
    first = [line.split(" | ")[0].strip("| ") for line in PAGES["docs/paper.md"].splitlines() if line.startswith("| ")]
    equations = [number for cell in first if re.fullmatch(r"[\d, ]+", cell) for number in cell.split(", ")]
    assert [*map(int, equations)] == [*range(1, 24)]
    for kind, last in (("Tab.", 10), ("Fig.", 13)):
        cells = [cell for cell in first if cell.startswith(("Sect.", "Tab.", "Fig."))]
        lists = [found for cell in cells for found in re.findall(rf"{re.escape(kind)} ([\d]+(?:, \d+)*)", cell)]
        assert sorted(int(number) for found in lists for number in found.split(", ")) == [*range(1, last + 1)]


def test_departures_from_the_paper_are_settings() -> None:
    page = PAGES["docs/paper.md"]
    table = page[page.index("| setting | the paper | ours | why |") :].partition("\n\n")[0]
    settings = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    assert len(settings) > 8
    assert settings <= {*NetworkOverrides.model_fields, *TrainRecipe.model_fields}


def test_every_page_has_its_promises_and_its_figures_beside_what_holds_them() -> None:
    ran = PAGES["docs/ran.md"]
    own = {"docs/ran.md", "docs/survives.md", "docs/extend.md"}
    rows = {
        link for link in re.findall(r"^\| \[(\w+\.md)\]", ran[ran.index("## What the pages promise") :], re.MULTILINE)
    }
    assert {page for page in PAGES if page.startswith("docs/")} - own <= {f"docs/{name}" for name in rows}
    for heading in ("## What the README promises", "## What the pages promise"):
        table = ran[ran.index(heading) :].partition("\n## ")[0]
        cells = [line.strip("| ").split(" | ")[-1] for line in table.splitlines() if line.startswith("| ")][1:]
        assert [cell for cell in cells if not re.search(r"test_|make |no test", cell)] == []


def test_what_pages_type_on_a_cluster_is_what_its_own_page_says() -> None:
    tried = (ROOT / "infra/deploy/README.md").read_text(encoding="utf-8")
    lines = [
        line for text in PAGES.values() for line in re.findall(r"^    ((?:ray|kubectl|sed) .*)$", text, re.MULTILINE)
    ]
    assert len(lines) > 3
    assert [line for line in lines if line not in tried] == []


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert PAGES["README.md"].count("\n") < 120
    assert [page for page in PAGES if page.startswith("docs/") and f"({page})" not in PAGES["README.md"]] == []
