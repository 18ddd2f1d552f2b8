"""`promote --model`: what comes with the package as a version, judged and told like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from made_fusers import pan_fuser
from made_registries import GRAINIER, GRAINY, NAME, SMOOTH, Registry, fuser
from made_shipped import ROOT, ship

from rwkvfusion.infra.provenance import package_version
from rwkvfusion.infra.storage import sha256
from rwkvfusion.infra.tracking import start_run, using
from rwkvfusion.model.fusing.fuser import FuserError
from rwkvfusion.model.names import HASH, WEIGHTS
from rwkvfusion.model.registry.loaded import load
from rwkvfusion.model.shipped import CARD, SCORES, ShippedError
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.registry.entry import PromoteError, Verdict
from rwkvfusion.pipelines.registry.history import aliases_of
from rwkvfusion.pipelines.registry.lineage import LineageError, lineage, lines
from rwkvfusion.pipelines.registry.recipe import PromoteRecipe
from rwkvfusion.pipelines.registry.rollback import rollback
from rwkvfusion.pipelines.registry.run import Promotion, promote
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.origin import INIT

Make = Callable[..., PromoteRecipe]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "package"
    ship(folder, "vif", fuser(GRAINY))
    ship(folder, "vif-smooth", fuser(SMOOTH))
    ship(folder, "vif-other", fuser(roles=("near", "far")))
    ship(folder, "pansharpening-x", pan_fuser())
    monkeypatch.setattr(ROOT, folder)
    return folder


def judge(uri: str, recipe: PromoteRecipe, **how: object) -> Promotion:
    return promote(recipe, tracking=uri, say=lambda _: None, **how)  # type: ignore[arg-type]


def picture(pairs_url: str, folder: Path, model: str, uri: str | None = None) -> str:
    sample = next(iter(Dataset.open(pairs_url).samples()))
    out = folder / f"{sha256(model.encode())}.png"
    out.write_bytes(load(model, device="cpu", tracking_uri=uri)(*(image.data for image in sample.images)))
    return str(out)


def test_it_is_the_first_champion_and_is_beaten_and_comes_back(
    root: Path, registry: Registry, make_recipe: Make, pairs_url: str, tmp_path: Path
) -> None:
    first = judge(registry.uri, make_recipe(), model="vif")
    assert (first.verdict, first.version, first.before, first.after) == (Verdict.PROMOTED, "1", None, "1")
    version = registry.client.get_model_version(NAME, "1")
    weights = sha256((root / "vif" / WEIGHTS).read_bytes())
    kept = {tag: version.tags[tag] for tag in ("shipped", "package_version", HASH, "task", "promotion.verdict")}
    assert kept == {
        "shipped": "vif", "package_version": package_version(), HASH: weights, "task": "vif",
        "promotion.verdict": "promoted",
    }  # fmt: skip
    assert version.description == (root / "vif" / CARD).read_text()
    assert aliases_of(registry.client, registry.uri, NAME) == {"candidate": "1", "champion": "1"}
    run = registry.client.get_run(version.run_id)
    assert (run.info.status, run.data.tags["shipped"]) == ("FINISHED", "vif")
    with using(registry.uri):
        files = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(tmp_path / "files")))
    for name in (CARD, SCORES):
        assert (files / name).read_bytes() == (root / "vif" / name).read_bytes()
    # The same again finds it, and registers nothing.
    again = judge(registry.uri, make_recipe(), model="vif")
    assert (again.version, again.judged, again.is_promoted) == ("1", False, True)
    # Then it is a champion like any other: a better one takes its place, it does not win back, a rollback goes to it.
    registry.add(fuser(GRAINIER), "candidate")
    assert judge(registry.uri, make_recipe()).after == "2"
    back = judge(registry.uri, make_recipe(gate={"metrics": ["AG"], "loss": 0.001}), model="vif")
    assert (back.verdict, back.version, registry.champion) == (Verdict.WORSE, "1", "2")
    assert rollback(NAME, "champion", tracking=registry.uri).after == registry.champion == "1"
    found = lineage(picture(pairs_url, tmp_path, f"models:/{NAME}@champion", registry.uri), registry.uri)
    (one,) = found.versions
    assert (one.version, one.run, found.shipped and found.shipped["name"]) == ("1", None, "vif")
    told = "\n".join(lines(found))
    assert f"  {NAME} version 1 @candidate @champion, registered" in told
    assert f"    came with rwkvfusion {package_version()} as vif" in told
    assert "no run is noted" not in told


def test_it_is_judged_and_refused_like_any_other(root: Path, registry: Registry, make_recipe: Make) -> None:
    found = judge(registry.uri, make_recipe(), model="vif-smooth")
    assert (found.verdict, found.version, registry.champion) == (Verdict.FLOOR, "1", None)


def test_a_dry_run_registers_nothing_and_makes_no_registry(root: Path, tmp_path: Path, make_recipe: Make) -> None:
    where = f"sqlite:///{tmp_path}/none/mlflow.db"
    found = judge(where, make_recipe(), model="vif", dry_run=True)
    assert (found.verdict, found.version, found.before, found.dry_run) == (Verdict.PROMOTED, "vif", None, True)
    assert not (tmp_path / "none").exists()


def test_what_does_not_fit_is_refused_before_it_is_registered(
    root: Path, registry: Registry, make_recipe: Make
) -> None:
    waiting = registry.add(fuser(GRAINIER), "candidate")
    with pytest.raises(
        PromoteError, match="pansharpening-x is a model for pansharpening, and the recipe's sets are of"
    ):
        judge(registry.uri, make_recipe(), model="pansharpening-x")
    with pytest.raises(FuserError, match=r"this model fuses near \+ far, but was given visible \+ infrared"):
        judge(registry.uri, make_recipe(), model="vif-other")
    with pytest.raises(ShippedError, match="no model 'mef' comes with the package: there is vif, "):
        judge(registry.uri, make_recipe(), model="mef")
    assert aliases_of(registry.client, registry.uri, NAME) == {"candidate": waiting}
    done = CliRunner().invoke(main, ["promote", NAME, "--why", "1", "--model", "vif"])
    assert (done.exit_code, "with --why they have no effect" in done.output) == (2, True)


def test_its_pictures_lead_to_it_without_a_registry(
    root: Path, registry: Registry, pairs_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = picture(pairs_url, tmp_path, "vif-smooth")
    done = CliRunner().invoke(main, ["lineage", made, "--tracking-uri", f"sqlite:///{tmp_path}/none.db", "--json"])
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["versions"], facts["shipped"]["name"]) == (0, [], "vif-smooth")
    told = "\n".join(lines(lineage(made, registry.uri)))
    assert f"vif-smooth, which comes with rwkvfusion {package_version()}: vif-smooth, of random weights" in told
    assert f"no version in the registry at {registry.uri} has the weights" in told
    # What began with it says so too.
    run = start_run(registry.uri, "lines", "warm", {"init": "vif-smooth"}, {INIT: facts["weights_sha256"]})
    fuser(GRAINIER).save(tmp_path / "warm")
    tags = {HASH: sha256((tmp_path / "warm" / WEIGHTS).read_bytes())}
    registry.client.create_model_version(NAME, (tmp_path / "warm").as_uri(), run.run_id, tags=tags)
    warm = picture(pairs_url, tmp_path, str(tmp_path / "warm"))
    began = f"began with weights {facts['weights_sha256']}: vif-smooth, which comes with rwkvfusion {package_version()}"
    assert began in "\n".join(lines(lineage(warm, registry.uri)))
    # Of another installation nothing is known.
    monkeypatch.setattr(ROOT, tmp_path / "none")
    with pytest.raises(LineageError):
        lineage(made, registry.uri)
