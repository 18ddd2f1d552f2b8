"""From a fused picture to what it is made of, also where some of that is gone, has changed, or was noted otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made import write_pairs
from made_datasets import pair, write_dataset
from made_registries import NAME, Registry, fuser

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png, with_text
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.infra.tracking import RunInfo, Tracker, start_run
from rwkvfusion.model.names import HASH, MADE_BY, WEIGHTS
from rwkvfusion.model.registry.loaded import load
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.registry.lineage import LineageError, lineage, lines
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.manifest import StageRecord, read_manifests, write_manifest
from rwkvfusion.stages.dataset.origin import DATA, INIT, SCORED, TRAINED, Origin

TEXT = {
    "stage": "text", "version": 2, "config": {"method": "encoder"},
    "weights": {"model": "t5-small", "revision": "0123456789abcdef", "sha256": "e" * 64},
}  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A dataset of two shards to train on, whose captions were encoded by a model, and one that is held out."""
    found = write_dataset(tmp_path / "made", [[pair(0), pair(1)], [pair(2)]])
    write_dataset(found, [[pair(3)]], split="test")
    store = Store(found)
    stage = StageRecord(stage="text", identity=TEXT, fingerprint="0" * 64, seconds=1.0)
    for manifest in read_manifests(store):
        write_manifest(store, manifest.model_copy(update={"stages": (stage,)}))
    store.write("README.md", b"---\nlicense: cc-by-4.0\n---\n# made\n")
    shards = [manifest.shard for manifest in read_manifests(store)]
    facts = {"recipe": {"source": {"layout": "tno", "root": "/raw/tno"}}, "shards": shards}
    store.write("dataset.json", json.dumps(facts).encode())
    return found


def trained(registry: Registry, noted: Any, **tags: str) -> tuple[RunInfo, str]:
    """A run that noted that of its data, and the version that it registered as the candidate."""
    params = {"steps": 7, "seed": 3, "data": {"splits": ["train"]}, "network": {"size": "tiny"}, "init": None}
    run = start_run(registry.uri, "lines", "first", params, {"commit": "abc", **tags})
    Tracker(run.uri, run.run_id).json(DATA, noted)
    folder = registry.folder / "model"
    fuser().save(folder)
    weights = {HASH: sha256((folder / WEIGHTS).read_bytes())}
    version = str(registry.client.create_model_version(NAME, folder.as_uri(), run.run_id, tags=weights).version)
    registry.point("candidate", version)
    return run, version


def fused(registry: Registry) -> str:
    """A picture that the candidate made."""
    sources = [image.data for image in pair(5).images]
    out = registry.folder / "fused.png"
    out.write_bytes(load(f"models:/{NAME}@candidate", device="cpu", tracking_uri=registry.uri)(*sources))
    return str(out)


def origins(url: str) -> dict[str, Any]:
    dataset = Dataset.open(url)
    splits = {TRAINED: "train", SCORED: "test"}
    return {
        use: [one.model_dump(mode="json") for one in Origin.of_each(dataset.select([split]).shards)]
        for use, split in splits.items()
    }


def test_a_picture_leads_to_its_version_run_data_and_guidance(registry: Registry, url: str) -> None:
    run, version = trained(registry, origins(url), **{INIT: "f" * 64})
    registry.client.set_model_version_tag(NAME, version, "promotion.verdict", "worse")
    # What it began with is a version of its own.
    registry.client.create_model_version(NAME, "file:///elsewhere", tags={HASH: "f" * 64})
    found = lineage(fused(registry), registry.uri)
    (one,) = found.versions
    assert (one.name, one.version, one.aliases) == (NAME, version, ("candidate",))
    assert found.weights_sha256 == one.tags[HASH]
    assert one.run is not None
    assert (one.run.run_id, one.run.name, one.run.experiment, one.run.commit) == (run.run_id, "first", "lines", "abc")
    assert one.run.recipe is not None
    assert one.run.recipe["data"] == {"splits": ["train"]}
    learnt, scored = one.run.data
    dataset = Dataset.open(url)
    assert (learnt.use, learnt.pairs, learnt.is_as_it_was, learnt.state) == (TRAINED, 3, True, "as it was")
    assert learnt.fingerprint == dataset.select(["train"]).fingerprint
    assert learnt.shards == {m.shard: m.sha256 for m in dataset.manifests if m.split == "train"}
    assert (scored.use, scored.pairs, scored.fingerprint) == (SCORED, 1, dataset.select(["test"]).fingerprint)
    assert (learnt.licence, learnt.source, learnt.stages) == ("cc-by-4.0", "layout tno, /raw/tno", (TEXT,))
    told = list(lines(found, shards=True))
    assert f"  {NAME} version {version} @candidate, registered {one.made} at {registry.uri}" in told
    assert f"    promotion: worse, ?, entry ? (`rwkvfusion promote {NAME} --why {version}`)" in told
    assert "      recipe: 7 steps, seed 3, network tiny (all of it: --json, or the run's recipe.yaml)" in told
    assert f"      began with weights {'f' * 64}: {NAME} version {int(version) + 1}" in told
    assert f"      trained on {url}, split train: 3 pairs in 2 shards, as it was" in told
    assert f"        shard train-000001 {learnt.shards['train-000001']}" in told
    assert f"        text: encoder, version 2, t5-small at 0123456789ab, weights {'e' * 64}" in told
    assert not any(" shard " in line for line in lines(found))
    # The program's answer has all of it; the picture's record leads there too.
    done = CliRunner().invoke(main, ["lineage", found.picture, "--tracking-uri", registry.uri, "--json"])
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["versions"][0]["run"]["data"][0]["stages"][0]["weights"]["sha256"] == "e" * 64
    record = registry.folder / "fused.json"
    record.write_text(json.dumps({"model": {HASH: found.weights_sha256}}))
    assert lineage(str(record), registry.uri).versions == found.versions


def test_what_has_changed_or_is_gone_is_told_in_its_place(registry: Registry, url: str) -> None:
    run, _ = trained(registry, origins(url))
    picture = fused(registry)

    def state() -> list[tuple[bool | None, str]]:
        found = lineage(picture, registry.uri).versions[0].run
        assert found is not None
        return [(one.is_as_it_was, one.state) for one in found.data]

    # A third shard is prepared, then the second anew, then the first is lost.
    store = Store(url)
    before = {file: store.read(file) for file in store.files()}
    write_dataset(url, [[pair(0), pair(1)], [pair(2)], [pair(7)]])
    assert state()[0] == (True, "2 of 2 shards are as they were, 1 more since")
    write_dataset(url, [[pair(0), pair(1)], [pair(8)], [pair(7)]])
    assert state()[0] == (False, "1 of 2 shards are as they were, 1 made anew, 1 more since")
    store.remove("_manifests/train-000000.json")
    assert state()[0] == (False, "0 of 2 shards are as they were, 1 made anew, 1 gone, 1 more since")
    assert state()[1] == (True, "as it was")
    for file in store.files():
        store.remove(file)
    for file, data in before.items():
        store.write(file, data)
    assert state()[0] == (True, "as it was")
    shutil.rmtree(url)
    for is_as_it_was, words in state():
        assert is_as_it_was is None
        assert words.startswith("cannot be reached: no dataset at ")
    # Its shards and its guidance are known all the same.
    told = [*lines(lineage(picture, registry.uri), shards=True)]
    assert sum(" shard t" in line for line in told) == 3
    assert any("weights eeee" in line for line in told)
    # A run whose files are gone, that is deleted, that is gone.
    shutil.rmtree(registry.folder / "mlartifacts" / run.run_id)
    (version,) = lineage(picture, registry.uri).versions
    assert version.run is not None
    assert "its recipe.yaml cannot be read: " in version.run.note
    assert f"its {DATA}.json cannot be read: " in version.run.note
    assert (version.run.recipe, version.run.commit, version.run.data) == (None, "abc", ())
    registry.client.delete_run(run.run_id)
    assert any("it is deleted)" in line for line in lines(lineage(picture, registry.uri)))


def test_a_run_of_an_older_version_knows_its_shards_while_the_data_is_what_it_was(registry: Registry, url: str) -> None:
    fingerprint = Dataset.open(url).select(["train"]).fingerprint
    run, _ = trained(registry, {url: fingerprint}, datasets=f"{url} s3x://b/c", dataset_fingerprint=f"{fingerprint} 12")
    picture = fused(registry)
    (one,) = lineage(picture, registry.uri).versions[0].run.data  # type: ignore[union-attr]
    assert (one.use, one.pairs, one.state, one.stages) == (TRAINED, 3, "as it was", (TEXT,))
    write_dataset(url, [[pair(9)]])
    (one,) = lineage(picture, registry.uri).versions[0].run.data  # type: ignore[union-attr]
    assert (one.is_as_it_was, one.pairs, one.shards, one.splits) == (False, None, None, ("train",))
    assert one.state.startswith("is another now, of fingerprint ")
    # Where its file is gone, its tags say it too.
    (registry.folder / "mlartifacts" / run.run_id / "artifacts" / f"{DATA}.json").unlink()
    first, second = lineage(picture, registry.uri).versions[0].run.data  # type: ignore[union-attr]
    assert (first.url, first.fingerprint, second.url) == (url, fingerprint, "s3x://b/c")
    assert second.state.startswith("cannot be reached: ")


def test_each_mistake_is_one_sentence(registry: Registry, tmp_path: Path) -> None:
    png = encode_png(decode(pair(0).images[0].data))
    cases = {
        "plain.png": (png, "plain.png does not say what made it: only PNGs of this package do"),
        "photo.jpg": (b"\xff\xd8\xff\xe0 no PNG", "photo.jpg does not say what made it"),
        "odd.png": (with_text(png, {MADE_BY: "x' OR name = 'y"}), "odd.png is damaged: it names its weights by"),
        "other.json": (b'{"model": 3}', "other.json is no record of `rwkvfusion fuse`"),
        "unknown.png": (with_text(png, {MADE_BY: "0" * 64}), f"no version in the registry at {registry.uri} has the"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LineageError, match=message.replace("(", r"\(")):
            lineage(str(tmp_path / name), registry.uri)
    for uri, message in {
        f"sqlite:///{tmp_path}/none.db": f"there is no registry at sqlite:///{tmp_path}/none.db",
        registry.uri: "cannot read /nowhere/x.png: there is no such file",
    }.items():
        where = "/nowhere/x.png" if uri == registry.uri else str(tmp_path / "unknown.png")
        done = CliRunner().invoke(main, ["lineage", where, "--tracking-uri", uri])
        assert (done.exit_code, done.stderr.startswith(f"rwkvfusion: {message}")) == (1, True), done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "none.db").exists()


@pytest.mark.slow
def test_prepare_train_fuse_lineage(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All the way by the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    root = write_pairs(tmp_path / "raw", [f"{i:05d}D" for i in range(4)])
    write_pairs(root, ["00007N", "00008N"], "test")

    def run(*words: str) -> Any:
        done = CliRunner().invoke(main, [*words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    sets = [f"source.root={root}", "output=sets", "shard.pairs=3"]
    run("prepare", "msrs", *(word for one in sets for word in ("--set", one)))
    sets = ["data.url=sets/msrs", "steps=4", "workers=1", "data.crop=[32,32]", "network.width=8", "log_every=2",
            "checkpoint_every=2", "validate.every=2", "register.measure=0.1"]  # fmt: skip
    result = run("train", "train_vif_small", *(word for one in sets for word in ("--set", one)))
    pictures = [str(root / "test" / side / "00007N.png") for side in ("vi", "ir")]
    run("fuse", "--model", result["model_uri"], *pictures, "-o", "fused.png")
    facts = run("lineage", "fused.png")
    (version,) = facts["versions"]
    assert (version["name"], version["version"], version["aliases"]) == ("rwkvfusion-vif", "1", ["candidate"])
    assert version["run"]["run_id"] == result["run_id"]
    uses = {one["use"]: one for one in version["run"]["data"]}
    assert {use: (one["pairs"], one["state"], len(one["shards"])) for use, one in uses.items()} == {
        "trained": (4, "as it was", 2), "validated": (2, "as it was", 1), "scored": (2, "as it was", 1),
    }  # fmt: skip
    assert [one["config"]["method"] for one in uses["trained"]["stages"] if one["stage"] == "text"] == ["hashed"]
    for shard, digest in uses["trained"]["shards"].items():
        assert Store("sets/msrs").file_sha256(f"{shard}.tar") == digest
    assert uses["trained"]["source"] == f"layout msrs, {root}"
