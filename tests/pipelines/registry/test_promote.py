"""`promote` on small models: each verdict, and what is left in the registry after it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from made_datasets import pair, write_dataset
from made_registries import GRAINIER, GRAINY, NAME, SMOOTH, Registry, fuser

from rwkvfusion.model.names import CONFIG, WEIGHTS
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.registry.entry import Entry, PromoteError, Verdict
from rwkvfusion.pipelines.registry.history import History
from rwkvfusion.pipelines.registry.recipe import PromoteRecipe
from rwkvfusion.pipelines.registry.run import Promotion, promote
from rwkvfusion.stages.dataset.dataset import Dataset

Make = Callable[..., PromoteRecipe]


def judge(registry: Registry, recipe: PromoteRecipe, **how: object) -> Promotion:
    return promote(recipe, tracking=registry.uri, say=lambda _: None, **how)  # type: ignore[arg-type]


def entries(registry: Registry) -> list[Entry]:
    history = History.find(registry.uri, NAME, "champion")
    return [] if history is None else [history.read(proof) for proof in history.proofs]


def two(registry: Registry, champion: float, candidate: float) -> None:
    registry.add(fuser(champion), "champion")
    registry.add(fuser(candidate), "candidate")


def test_a_better_candidate_is_promoted_and_the_history_says_by_whom_when_and_why(
    registry: Registry, make_recipe: Make, pairs_url: str, tmp_path: Path
) -> None:
    two(registry, GRAINY, GRAINIER)
    found = judge(registry, make_recipe(gate={"by": ["night=*n"]}))
    assert (found.verdict, found.before, found.after, found.is_promoted) == (Verdict.PROMOTED, "1", "2", True)
    assert found.reasons[0].startswith("AG wins by +")
    assert registry.champion == "2"
    first, entry = entries(registry)
    assert (first.verdict, first.after, first.version) == (Verdict.FOUND, "1", "1")
    assert (entry.number, entry.version, entry.before, entry.after) == (2, "2", "1", "2")
    weights = [hashlib.sha256((registry.files(v) / WEIGHTS).read_bytes()).hexdigest() for v in ("1", "2")]
    assert [entry.champion_sha256, entry.weights_sha256] == weights
    (judged,) = entry.sets.values()
    assert (judged.fingerprint, judged.pairs) == (Dataset.open(pairs_url).fingerprint, 12)
    assert "@" in entry.who
    tags = registry.client.get_model_version(NAME, "2").tags
    assert {tag: tags[f"promotion.{tag}"] for tag in ("verdict", "date", "entry")} == {
        "verdict": "promoted", "date": entry.when, "entry": "2",
    }  # fmt: skip
    history = History.find(registry.uri, NAME, "champion")
    assert history is not None
    assert entry.report is not None
    folder = Path(registry.client.download_artifacts(history.run_id, entry.report, str(tmp_path)))
    sums = (folder / "SHA256SUMS").read_bytes()
    assert hashlib.sha256(sums).hexdigest() == entry.report_sha256
    listed = dict(line.split("  ")[::-1] for line in sums.decode().splitlines())
    assert {"report.md", "results.json", "pairs.parquet", "gallery/index.html"} <= set(listed)
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in listed.items())
    text = (folder / "report.md").read_text()
    assert text.startswith(f"# {NAME} version 2 against version 1: promoted\n\n- AG wins by +")
    assert "of night" in text
    # Again: it is the champion, and nothing is judged or written.
    again = judge(registry, make_recipe())
    assert (again.verdict, again.judged, again.entry, again.is_promoted) == (Verdict.PROMOTED, False, 2, True)
    assert len(entries(registry)) == 2


def test_the_same_weights_are_not_better(registry: Registry, make_recipe: Make) -> None:
    two(registry, GRAINY, GRAINY)
    found = judge(registry, make_recipe())
    assert (found.verdict, registry.champion) == (Verdict.NOT_BETTER, "1")
    assert found.reasons == ("AG ties by +0.00 % (+0.00 % to +0.00 %), 12 pairs",)
    assert [entry.after for entry in entries(registry)] == ["1", "1"]
    assert registry.client.get_model_version(NAME, "2").tags["promotion.verdict"] == "not better"


def test_a_worse_candidate_is_refused_and_the_champion_untouched(registry: Registry, make_recipe: Make) -> None:
    two(registry, GRAINIER, GRAINY)
    found = judge(registry, make_recipe(gate={"loss": 0.005}))
    assert (found.verdict, found.is_promoted, registry.champion) == (Verdict.WORSE, False, "1")
    assert any(reason.startswith("AG loses by -") for reason in found.reasons)
    registry.add(fuser(GRAINY), "champion")
    registry.add(fuser(GRAINIER), "candidate")
    elsewhere = judge(registry, make_recipe(gate={"losses": {"EN": 0.01}}))
    assert (elsewhere.verdict, registry.champion) == (Verdict.WORSE, "3")
    assert elsewhere.reasons[0].startswith("EN loses by -")
    assert elsewhere.reasons[-1].startswith("AG wins by +")


def test_a_first_model_needs_the_floor(registry: Registry, make_recipe: Make) -> None:
    registry.add(fuser(SMOOTH), "candidate")
    found = judge(registry, make_recipe())
    assert (found.verdict, found.after, registry.champion) == (Verdict.FLOOR, None, None)
    assert "that of the trivial answer 'source b alone' 6.4" in found.reasons[0]
    registry.add(fuser(GRAINY), "candidate")
    assert judge(registry, make_recipe()).verdict is Verdict.PROMOTED
    assert registry.champion == "2"
    assert [(entry.before, entry.after) for entry in entries(registry)] == [(None, None), (None, "2")]


def test_too_few_pairs_say_what_they_could_show(registry: Registry, make_recipe: Make, pairs_url: str) -> None:
    two(registry, GRAINY, GRAINIER)
    sets = {"made": {"url": pairs_url, "fingerprint": Dataset.open(pairs_url).fingerprint, "limit": 5}}
    found = judge(registry, make_recipe(sets=sets))
    assert (found.verdict, registry.champion) == (Verdict.TOO_FEW, "1")
    assert "AG cannot be told: 5 pairs can show nothing" in found.reasons[0]


def _lose_files(folder: Path) -> None:
    shutil.rmtree(folder)


def _of_newer_format(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"version": 99}))


def _of_other_roles(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"roles": ["mri", "pet"]}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_lose_files, "no such folder"), (_of_newer_format, "version"), (_of_other_roles, "this model fuses mri + pet")],
)
def test_a_champion_that_cannot_be_scored_is_reported_and_does_not_block(
    registry: Registry, make_recipe: Make, spoil: Callable[[Path], None], words: str
) -> None:
    two(registry, GRAINIER, GRAINY)
    spoil(registry.files("1"))
    found = judge(registry, make_recipe())
    assert (found.verdict, registry.champion) == (Verdict.PROMOTED, "2")
    assert found.notes[0].startswith("@champion, version 1, cannot be scored and is not compared with: ")
    assert words in found.notes[0]
    assert entries(registry)[-1].reasons[-1] == found.notes[0]
    # But for what its pictures must be in any case.
    registry.add(fuser(SMOOTH), "candidate")
    spoil(registry.files("2"))
    assert judge(registry, make_recipe()).verdict is Verdict.FLOOR
    assert registry.champion == "2"


def test_a_set_is_scored_only_as_it_was_pinned(registry: Registry, make_recipe: Make, tmp_path: Path) -> None:
    two(registry, GRAINY, GRAINIER)
    url = write_dataset(tmp_path / "set", [[pair(seed).replace(split="test") for seed in range(2)]], split="test")
    before = Dataset.open(url).fingerprint
    write_dataset(url, [[pair(seed).replace(split="test") for seed in range(3)]], split="test")
    after = Dataset.open(url).fingerprint
    with pytest.raises(PromoteError, match=f"its fingerprint is {after} now; if it was meant to change, set sets.a.f"):
        judge(registry, make_recipe(sets={"a": {"url": url, "fingerprint": before}}))
    with pytest.raises(PromoteError, match=rf"^sets\.a\.fingerprint is not given, .* it is {after} now$"):
        judge(registry, make_recipe(sets={"a": {"url": url}}))
    # Of other splits nothing counts.
    write_dataset(url, [[pair(7)]], split="train")
    assert Dataset.open(url).fingerprint != after
    assert Dataset.open(url).select(["test"]).fingerprint == after
    assert (registry.champion, entries(registry)) == ("1", [])


def test_a_dry_run_judges_and_changes_nothing(registry: Registry, make_recipe: Make, tmp_path: Path) -> None:
    two(registry, GRAINY, GRAINIER)
    before = (registry.folder / "mlflow.db").read_bytes()
    recipe = make_recipe()
    unpinned = recipe.model_copy(
        update={"sets": {"made": recipe.sets["made"].model_copy(update={"fingerprint": None})}}
    )
    said: list[str] = []
    place = str(tmp_path / "report")
    found = promote(unpinned, tracking=registry.uri, say=said.append, dry_run=True, report_url=place)
    assert said == [f"sets.made.fingerprint is {recipe.sets['made'].fingerprint}"]
    assert (found.verdict, found.is_promoted, found.entry, found.after) == (Verdict.PROMOTED, True, None, "1")
    assert registry.champion == "1"
    assert entries(registry) == []
    assert registry.client.get_model_version(NAME, "2").tags.keys() == {"weights_sha256"}
    assert (registry.folder / "mlflow.db").read_bytes() == before
    assert not (registry.folder / "mlartifacts").exists()
    assert (tmp_path / "report" / "gallery" / "index.html").is_file()


def test_pixels_that_are_not_finite_clipped_or_of_tiles_are_refused(registry: Registry, make_recipe: Make) -> None:
    two(registry, GRAINY, GRAINIER)
    tiles = judge(registry, make_recipe(pixels={"tiles": 0.0}))
    assert (tiles.verdict, registry.champion) == (Verdict.PIXELS, "1")
    assert "00n in tiles of 24 pixels is off by " in tiles.reasons[0]
    white = fuser(GRAINIER)
    torch.nn.init.constant_(white.network.head.bias, 9.0)
    registry.add(white, "candidate")
    clipped = judge(registry, make_recipe(pixels={"clipped": 0.01}))
    assert (clipped.verdict, registry.champion) == (Verdict.PIXELS, "1")
    assert clipped.reasons[0].startswith("100.00% of the values are black or white (")
    broken = fuser(GRAINIER)
    torch.nn.init.constant_(broken.network.head.bias, float("nan"))
    registry.add(broken, "candidate")
    nans = judge(registry, make_recipe())
    assert (nans.verdict, registry.champion) == (Verdict.PIXELS, "1")
    assert "values that are not finite" in nans.reasons[0]
    assert len(entries(registry)) == 4


def test_costs_beyond_the_champions_are_refused(registry: Registry, make_recipe: Make) -> None:
    registry.add(fuser(GRAINY), "champion")
    registry.add(fuser(GRAINIER, width=24), "candidate")
    found = judge(registry, make_recipe(costs={"time": 0.001, "memory": 0.001, "parameters": 1.5}))
    assert registry.champion == "1"
    beyond = [reason.split()[0] for reason in found.reasons if "times the champion's" in reason]
    assert beyond == ["parameters", "time", "memory"]


def cli(registry: Registry, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--tracking-uri", registry.uri])


def test_the_commands_tell_by_exit_codes_and_one_sentence(
    registry: Registry, make_recipe: Make, tmp_path: Path
) -> None:
    path = tmp_path / "promote.yaml"
    path.write_text(json.dumps(make_recipe().model_dump(mode="json")))
    none = cli(registry, "promote", str(path))
    assert (none.exit_code, none.stdout) == (1, "")
    assert "no model models:/tiny@candidate: tiny has versions none and aliases none" in none.stderr
    two(registry, GRAINY, GRAINY)
    refused = cli(registry, "promote", str(path), "--json")
    assert refused.exit_code == 4, refused.output
    assert json.loads(refused.stdout)["verdict"] == "not better"
    registry.add(fuser(GRAINIER), "candidate")
    done = cli(registry, "promote", str(path), "--report", str(tmp_path / "report"))
    assert done.exit_code == 0, done.output
    assert "tiny version 3: promoted\n" in done.stdout
    assert "@champion is version 3, before version 1; entry 3 of the history\n" in done.stdout
    why = cli(registry, "promote", str(path), "--why", "2")
    assert why.exit_code == 0, why.output
    assert "version 2 not better; @champion stays at version 1\n  AG ties by" in why.stdout
    back = cli(registry, "rollback", NAME)
    assert back.exit_code == 0, back.output
    assert "version 1 rolled back to; @champion from version 3 to version 1\n" in back.stdout
    # What runs by the clock does not undo it.
    again = cli(registry, "promote", str(path))
    assert (again.exit_code, "tiny version 3: withdrawn\n  entry 4 took " in again.stdout) == (4, True)
    nobody = cli(registry, "rollback", "nobody")
    assert nobody.exit_code == 1
    assert "has no model 'nobody': it has tiny" in nobody.stderr
    other = cli(registry, "promote", NAME, "--why", "77")
    assert (other.exit_code, "tiny has no version 77" in other.stderr) == (1, True)
    nowhere = f"sqlite:///{tmp_path}/nowhere.db"
    for words in (["rollback", NAME], ["promote", NAME, "--why", "1"], ["promote", str(path)]):
        lost = CliRunner().invoke(main, [*words, "--tracking-uri", nowhere])
        assert (lost.exit_code, f"there is no registry at {nowhere}" in lost.stderr) == (1, True), lost.output
    assert not (tmp_path / "nowhere.db").exists()
